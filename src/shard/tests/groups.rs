//! Settings of groups, membership, and what pulls may do.

use super::*;
use ringmq_protocol::body::{
    CreateTopicListBody, GroupForbidden, MessageModel, SubscriptionGroupConfig, SubscriptionGroupList,
    SubscriptionGroupWrapper, TopicConfig,
};
use ringmq_protocol::request::{
    DeleteSubscriptionGroupRequest, GetSubscriptionGroupConfigRequest, HeartbeatResponse,
    UpdateGroupForbiddenRequest,
};

pub(super) fn consumer(group: &str, topic: &str, expression: &str) -> ConsumerData {
    let mut subscription = SubscriptionData::tag_expression(topic, expression);
    subscription.sub_version = 1;
    ConsumerData {
        group_name: group.into(),
        subscription_data_set: vec![subscription],
        ..ConsumerData::default()
    }
}

impl Fixture {
    /// Code and remark of a request that is answered once the disk has it.
    pub(super) fn done(&mut self, code: RequestCode, fields: &dyn Fields, body: &[u8]) -> (i32, String) {
        let asked = self.request(code, fields, body);
        self.settle();
        let answer = self.answer(asked).expect("an answer");
        (answer.code, answer.remark.unwrap_or_default())
    }

    /// The body of a successful answer.
    pub(super) fn told<B: Body>(&mut self, code: RequestCode, fields: &dyn Fields, body: &[u8]) -> B {
        let asked = self.request(code, fields, body);
        self.settle();
        let answer = self.answer(asked).expect("an answer");
        assert_eq!(answer.code, 0, "{:?}", answer.remark);
        B::from_json(&answer.body).unwrap()
    }

    /// A member's heartbeat; what is answered.
    pub(super) fn beat(
        &mut self,
        from: ConnectionId,
        client_id: &str,
        data: ConsumerData,
    ) -> HeartbeatResponse {
        let (client_id, consumer_data_set) = (client_id.into(), vec![data]);
        self.beat_with(from, &HeartbeatData { client_id, consumer_data_set, ..HeartbeatData::default() })
    }

    fn beat_with(&mut self, from: ConnectionId, heartbeat: &HeartbeatData) -> HeartbeatResponse {
        let asked = self.request_from(from, RequestCode::HEART_BEAT, &(), &heartbeat.to_json());
        HeartbeatResponse::decode(&self.answer(asked).unwrap().header().ext).unwrap()
    }

    fn group_config(&mut self, group: &str) -> SubscriptionGroupConfig {
        let asked = GetSubscriptionGroupConfigRequest { group: group.to_owned().into() };
        self.told(RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG, &asked, &[])
    }

    fn put_group(&mut self, config: &SubscriptionGroupConfig) {
        let done = self.done(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &(), &config.to_json());
        assert_eq!(done.0, 0, "{}", done.1);
    }

    /// Code and forbidden type of the answer to a pull of the group that relies on its heartbeats.
    fn pull_code(&mut self, group: &str) -> (i32, Option<i32>) {
        let pull = PullMessageRequest::new(group.to_owned(), "T", 0, 0);
        let asked = self.request(RequestCode::PULL_MESSAGE, &pull, &[]);
        self.read_all();
        let answer = self.answer(asked).unwrap();
        let forbidden = answer.ext("forbiddenType").map(|number| number.parse().unwrap());
        (answer.code, forbidden)
    }

    /// Connections that were told that the group has changed, since the last call.
    fn notified(&mut self) -> usize {
        let is_notice = |answer: &RemotingCommand| {
            !answer.is_response() && answer.code == RequestCode::NOTIFY_CONSUMER_IDS_CHANGED.0
        };
        let count = self.answers.iter().filter(|answer| is_notice(answer)).count();
        self.answers.retain(|answer| !is_notice(answer));
        count
    }

    fn warnings(&mut self, text: &str) -> usize {
        let is_one = |news: &News| matches!(news, News::Log { line, .. } if line.contains(text));
        let count = self.fx.news.iter().filter(|news| is_one(news)).count();
        self.fx.news.clear();
        count
    }
}

#[test]
fn settings_of_groups_are_made_changed_listed_and_survive() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let one = SubscriptionGroupConfig { retry_max_times: 3, ..SubscriptionGroupConfig::new("one") };
    f.put_group(&one);
    f.put_group(&SubscriptionGroupConfig { retry_queue_nums: 4, ..one.clone() });
    let two = SubscriptionGroupConfig { consume_enable: false, ..SubscriptionGroupConfig::new("two") };
    let list =
        SubscriptionGroupList { group_config_list: vec![two.clone(), SubscriptionGroupConfig::new("three")] };
    assert_eq!(f.done(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, &(), &list.to_json()).0, 0);

    let bad = SubscriptionGroupConfig { retry_queue_nums: -1, ..SubscriptionGroupConfig::new("four") };
    let list = SubscriptionGroupList { group_config_list: vec![SubscriptionGroupConfig::new("five"), bad] };
    let (code, why) = f.done(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, &(), &list.to_json());
    assert_eq!(code, ResponseCode::INVALID_PARAMETER.0);
    assert!(why.contains("retryQueueNums -1 must be between 0 and"), "{why}");
    for (name, wanted) in [("no good", "contains ' '"), (&"x".repeat(121), "at most 120")] {
        let body = SubscriptionGroupConfig::new(name).to_json();
        let (code, why) = f.done(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &(), &body);
        assert_eq!(code, ResponseCode::INVALID_PARAMETER.0);
        assert!(why.contains(wanted), "{why}");
    }

    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    let all: SubscriptionGroupWrapper = f.told(RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &(), &[]);
    let all = all.subscription_group_table;
    assert_eq!(all.keys().collect::<Vec<_>>(), ["one", "three", "two"], "all of a list or nothing");
    assert_eq!(all["one"], SubscriptionGroupConfig { retry_queue_nums: 4, ..one });
    assert_eq!(all["two"], two);
    // The heartbeat makes the retry topic as the settings have it.
    f.beat(CONNECTION, "c", consumer("one", "T", "*"));
    let retry = f.shard.topics.get("%RETRY%one").unwrap();
    assert_eq!((retry.config.read_queue_nums, retry.config.order), (4, false));
}

#[test]
fn pulls_are_checked_in_rocketmqs_order() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"x");
    f.settle();
    let config = SubscriptionGroupConfig::new("g");
    f.put_group(&SubscriptionGroupConfig {
        consume_enable: false,
        consume_broadcast_enable: false,
        ..config.clone()
    });
    let denied = |forbidden_type| (ResponseCode::NO_PERMISSION.0, Some(forbidden_type));
    assert_eq!(f.pull_code("g"), denied(2));
    f.put_group(&SubscriptionGroupConfig { consume_broadcast_enable: false, ..config.clone() });
    assert_eq!(f.pull_code("g"), (ResponseCode::SUBSCRIPTION_NOT_EXIST.0, None), "nobody is online");
    let broadcasting = ConsumerData { message_model: MessageModel::Broadcasting, ..consumer("g", "T", "*") };
    f.beat(CONNECTION, "c", broadcasting);
    assert_eq!(f.pull_code("g"), denied(4));
    f.put_group(&config);

    let forbid = |readable| UpdateGroupForbiddenRequest { group: "g".into(), topic: "T".into(), readable };
    let code = RequestCode::UPDATE_AND_GET_GROUP_FORBIDDEN;
    assert!(f.told::<GroupForbidden>(code, &forbid(None), &[]).readable);
    assert!(!f.told::<GroupForbidden>(code, &forbid(Some(false)), &[]).readable);
    assert_eq!(f.pull_code("g"), denied(5));
    let all: SubscriptionGroupWrapper = f.told(RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &(), &[]);
    assert_eq!(all.forbidden_table["g"]["T"], 4);
    // It survives changes of the group's settings, and restarts.
    f.put_group(&SubscriptionGroupConfig { retry_max_times: 1, ..config.clone() });
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    f.beat(CONNECTION, "c", consumer("g", "T", "*"));
    assert_eq!(f.pull_code("g"), denied(5));
    let pull = f.pull("T", 0, 0, "*");
    f.read_all();
    assert_eq!(f.answer(pull).unwrap().code, ResponseCode::NO_PERMISSION.0, "nor with a filter of its own");
    assert!(f.told::<GroupForbidden>(code, &forbid(Some(true)), &[]).readable);
    assert_eq!(f.group_config("g").retry_max_times, 1);
    let asked = f.pull_code("g");
    assert_ne!(asked.0, ResponseCode::NO_PERMISSION.0);
}

impl Fixture {
    fn commit(&mut self, group: &str, queue_id: u32, offset: i64) -> (i32, String) {
        let commit = UpdateConsumerOffsetRequest {
            consumer_group: group.to_owned().into(),
            topic: "T".into(),
            queue_id: QueueId(queue_id),
            commit_offset: offset,
        };
        self.done(RequestCode::UPDATE_CONSUMER_OFFSET, &commit, &[])
    }

    fn delete_group(&mut self, clean_offset: bool) {
        let group_name = "g".into();
        let delete =
            DeleteSubscriptionGroupRequest { group_name, clean_offset: false, remove_offset: clean_offset };
        assert_eq!(self.done(RequestCode::DELETE_SUBSCRIPTIONGROUP, &delete, &[]).0, 0);
    }
}

#[test]
fn a_deleted_group_loses_its_settings_and_if_asked_its_offsets() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"x");
    f.settle();
    f.put_group(&SubscriptionGroupConfig { retry_max_times: 3, ..SubscriptionGroupConfig::new("g") });
    f.commit("g", 0, 1);
    f.beat(CONNECTION, "c", consumer("g", "T", "*"));
    f.settle();
    f.delete_group(false);
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert!(f.shard.groups.configs.is_empty());
    assert_eq!(f.shard.offsets.get("g", "T", QueueId(0)).map(|offset| offset.0), Some(1));
    assert_eq!(f.group_config("g").retry_max_times, 16, "the next one is a new one");
    f.delete_group(true);
    f.delete_group(true);
    for f in [&f, &Fixture::on(f.disk.clone(), FlushDiskType::Sync)] {
        assert!(f.shard.groups.configs.is_empty() && f.shard.offsets.pairs().is_empty());
        assert!(f.shard.topics.get("%RETRY%g").is_some(), "a topic until it is deleted");
    }
}

#[test]
fn only_those_who_share_queues_are_told_of_changes() {
    let (one, two) = (ConnectionId(1), ConnectionId(2));
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.beat(one, "one", consumer("g", "T", "*"));
    assert_eq!(f.notified(), 1);
    let config = SubscriptionGroupConfig::new("g");
    f.put_group(&SubscriptionGroupConfig { notify_consumer_ids_changed_enable: false, ..config.clone() });
    f.beat(two, "two", consumer("g", "T", "*"));
    assert_eq!(f.notified(), 0, "the group does not want it");
    f.put_group(&config);
    f.shard.on_closed(two, &mut f.fx);
    f.collect();
    assert_eq!(f.notified(), 1);
    let broadcasting =
        |topic| ConsumerData { message_model: MessageModel::Broadcasting, ..consumer("b", topic, "*") };
    f.beat(one, "one", broadcasting("T"));
    f.beat(two, "two", broadcasting("T"));
    assert_eq!(f.notified(), 0, "broadcasting consumers share nothing");
}

#[test]
fn members_that_subscribe_differently_are_reported_once_a_change() {
    let (one, two) = (ConnectionId(1), ConnectionId(2));
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.beat(one, "one", consumer("g", "T", "a"));
    f.beat(two, "two", consumer("g", "T", "a"));
    assert_eq!(f.warnings("subscribe differently"), 0);
    f.beat(two, "two", consumer("g", "T", "a || b"));
    assert_eq!(f.warnings("two wants T (a || b), one wants T (a)"), 1);
    f.beat(one, "one", consumer("g", "T", "a"));
    f.beat(two, "two", consumer("g", "T", "a || b"));
    assert_eq!(f.warnings("subscribe differently"), 0, "nothing has changed");
    f.beat(one, "one", consumer("g", "T", "a || b"));
    assert_eq!(f.warnings("subscribe differently"), 0, "they agree again");
}

#[test]
fn a_heartbeat_without_subscriptions_is_enough_while_they_are_known() {
    let (one, two) = (ConnectionId(1), ConnectionId(2));
    let mut f = Fixture::new(FlushDiskType::Sync);
    let full = |client: &str, fingerprint, topic| HeartbeatData {
        client_id: client.into(),
        consumer_data_set: vec![consumer("g", topic, "*")],
        heartbeat_fingerprint: fingerprint,
        ..HeartbeatData::default()
    };
    let short = |client: &str, fingerprint| {
        let empty = ConsumerData { group_name: "g".into(), ..ConsumerData::default() };
        HeartbeatData { consumer_data_set: vec![empty], without_sub: true, ..full(client, fingerprint, "T") }
    };
    let mut changed = |from, heartbeat: &HeartbeatData| f.beat_with(from, heartbeat).is_sub_change.unwrap();
    assert!(changed(one, &short("one", 7)), "a broker that was started since then knows nothing");
    assert!(!changed(one, &full("one", 7, "T")));
    assert!(!changed(one, &short("one", 7)));
    assert!(changed(two, &full("two", 8, "U")), "another one of the group said something else");
    assert!(changed(one, &short("one", 7)));
    assert!(changed(one, &full("one", 0, "T")), "a client without fingerprints always sends all");
    assert_eq!(f.shard.groups.consumer_group("g").unwrap().members().count(), 2);
}

#[test]
fn a_list_of_topics_is_made_whole_or_not_at_all() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let topic = |name: &str, queues| TopicConfig { order: true, ..TopicConfig::new(name, queues, 6) };
    let list = |topics| CreateTopicListBody { topic_config_list: topics }.to_json();
    let code = RequestCode::UPDATE_AND_CREATE_TOPIC_LIST;
    let bad = list(vec![topic("A", 2), topic("B", limits::TOPIC_QUEUES_MAX + 1)]);
    assert_eq!(f.done(code, &(), &bad).0, ResponseCode::INVALID_PARAMETER.0);
    assert!(f.shard.topics.get("A").is_none());
    let asked = f.request(code, &(), &list(vec![topic("A", 2), topic("B", 3)]));
    f.settle();
    let tickets: Vec<u64> =
        f.fx.news
            .iter()
            .filter_map(|news| match news {
                News::TopicChanged { ticket, .. } => *ticket,
                _ => None,
            })
            .collect();
    assert!(f.answer(asked).is_none() && tickets.len() == 1, "the name servers come first");
    f.shard.on_registered(tickets[0], &mut f.fx);
    f.collect();
    assert_eq!(f.answer(asked).unwrap().code, 0);
    let f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert_eq!(f.shard.topics.get("B").unwrap().config, topic("B", 3));
}
