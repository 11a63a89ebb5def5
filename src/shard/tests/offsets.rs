//! Offsets set from outside, and what operators are told of progress.

use super::groups::consumer;
use super::*;
use ringmq_protocol::body::{
    ConsumeStats, ConsumeStatsList, ConsumerOffsetTable, MessageQueue, OffsetWrapper, QueryConsumeQueueBody,
    QueryConsumeTimeSpanBody, QueryCorrectionOffsetBody, QuerySubscriptionBody, ResetOffsetBody, TopicList,
};
use ringmq_protocol::request::{
    CloneGroupOffsetRequest, DeleteTopicRequest, GetConsumeStatsInBrokerRequest, GetConsumeStatsRequest,
    InvokeBrokerToResetOffsetRequest, QueryConsumeQueueRequest, QueryConsumeTimeSpanRequest,
    QueryCorrectionOffsetRequest, QuerySubscriptionByConsumerRequest, QueryTopicsByConsumerRequest,
};

const MOVED: i32 = ResponseCode::PULL_OFFSET_MOVED.0;

fn reset(queue_id: i32, offset: Option<i64>, timestamp: i64) -> InvokeBrokerToResetOffsetRequest<'static> {
    InvokeBrokerToResetOffsetRequest {
        group: "g".into(),
        topic: "T".into(),
        queue_id,
        offset,
        timestamp,
        is_force: true,
    }
}

impl Fixture {
    /// Ten messages in queue 0 of T, a second apart, and group g at 4.
    fn with_progress() -> Fixture {
        let mut f = Fixture::new(FlushDiskType::Sync);
        for number in 0..10u8 {
            f.send("T", 0, "TAGS\x01a\x02", &[number]);
            f.settle();
            f.tick(1_000);
        }
        assert_eq!(f.commit_as("g", 4).0, 0);
        f
    }

    fn commit_as(&mut self, group: &str, offset: i64) -> (i32, String) {
        let commit = UpdateConsumerOffsetRequest {
            consumer_group: group.to_owned().into(),
            topic: "T".into(),
            queue_id: QueueId(0),
            commit_offset: offset,
        };
        self.done(RequestCode::UPDATE_CONSUMER_OFFSET, &commit, &[])
    }

    fn committed(&self, group: &str) -> Option<u64> {
        self.shard.offsets.get(group, "T", QueueId(0)).map(|offset| offset.0)
    }

    fn ask_where_to_begin(&mut self, from: ConnectionId) -> i64 {
        let query = QueryConsumerOffsetRequest {
            consumer_group: "g".into(),
            topic: "T".into(),
            queue_id: QueueId(0),
            set_zero_if_not_found: None,
        };
        let asked = self.request_from(from, RequestCode::QUERY_CONSUMER_OFFSET, &query, &[]);
        OffsetResponse::decode(&self.answer(asked).unwrap().header().ext).unwrap().offset
    }

    fn reset_to(&mut self, request: &InvokeBrokerToResetOffsetRequest<'_>) -> Vec<(i32, i64)> {
        let code = RequestCode::INVOKE_BROKER_TO_RESET_OFFSET;
        let body: ResetOffsetBody = self.told(code, request, &[]);
        body.offset_table.into_iter().map(|(queue, offset)| (queue.queue_id, offset)).collect()
    }

    /// Code and next offset of the answer to a pull, once the disk has what it says.
    fn pull_settled(&mut self, from: i64) -> (i32, i64) {
        let pull = self.pull("T", from, 0, "*");
        self.settle();
        self.read_all();
        let (code, next, _) = self.pulled(pull).expect("an answer");
        (code, next)
    }
}

#[test]
fn a_reset_moves_a_live_consumer_and_old_commits_do_not_count() {
    let mut f = Fixture::with_progress();
    assert_eq!(f.pull_settled(4), (0, 10));
    let held = f.pull("T", 10, 30_000, "*");
    let other = f.pull_from(ConnectionId(8), "T", 10, 30_000, "*");
    let asked =
        f.request(RequestCode::INVOKE_BROKER_TO_RESET_OFFSET, &reset(-1, None, 1_700_000_003_000), &[]);
    assert!(f.answer(asked).is_none() && f.answer(held).is_none(), "O2: not durable yet");
    assert_eq!(f.committed("g"), Some(3));
    f.settle();
    let queue = |id| MessageQueue::new("T", "b-0", id);
    let told = ResetOffsetBody::from_json(&f.answer(asked).unwrap().body).unwrap().offset_table;
    assert_eq!(told[&queue(0)], 3);
    assert_eq!(told.len(), 4, "every queue of the topic");
    for held in [held, other] {
        assert_eq!(f.pulled(held).unwrap(), (MOVED, 3, vec![]), "who waits is told at once");
    }
    // It has been taken: the group goes on from there, and commits count.
    assert_eq!(f.commit_as("g", 5), (0, String::new()));
    assert_eq!(f.committed("g"), Some(5));

    // Nobody waits: the next pull is told, and what the consumer commits until then is of before.
    assert_eq!(f.reset_to(&reset(0, Some(1), 0)), [(0, 1)]);
    assert_eq!(f.commit_as("g", 9), (0, "Offset has been previously reset".to_owned()));
    assert_eq!(f.committed("g"), Some(1));
    assert_eq!(f.pull_settled(9), (MOVED, 1));
    assert_eq!(f.pull_settled(1), (0, 10));
    assert_eq!(f.commit_as("g", 9), (0, String::new()));
    assert_eq!(f.committed("g"), Some(9));
}

#[test]
fn a_restart_loses_no_reset_and_repeats_none() {
    let mut f = Fixture::with_progress();
    f.reset_to(&reset(0, Some(2), 0));
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert_eq!(f.commit_as("g", 7).1, "Offset has been previously reset");
    let told = f.pull("T", 7, 0, "*");
    assert!(f.pulled(told).is_none(), "that it was taken is not durable yet");
    let again = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert_eq!(again.committed("g"), Some(2));
    f.settle();
    assert_eq!(f.pulled(told).unwrap(), (MOVED, 2, vec![]));
    f.commit_as("g", 8);
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert_eq!(f.committed("g"), Some(8));
    assert_eq!(f.pull_settled(8), (0, 10));
}

#[test]
fn a_consumer_that_begins_where_it_was_told_is_not_moved_again() {
    let mut f = Fixture::with_progress();
    f.reset_to(&reset(0, Some(2), 0));
    // A tool that asks does not take the reset, nor does a consumer that happens to be there.
    assert_eq!(f.ask_where_to_begin(ConnectionId(99)), 2);
    assert_eq!(f.pull_settled(2), (MOVED, 2));
    f.reset_to(&reset(0, Some(2), 0));
    assert_eq!(f.ask_where_to_begin(CONNECTION), 2);
    assert_eq!(f.pull_settled(2), (0, 10), "O3");
    assert_eq!(f.commit_as("g", 6), (0, String::new()));
}

#[test]
fn resets_go_to_a_time_the_ends_or_an_offset_in_the_queue() {
    let mut f = Fixture::with_progress();
    let time = |seconds: i64| reset(0, None, 1_700_000_000_000 + seconds * 1_000);
    for (request, target) in [
        (time(-5), 0),
        (time(6), 6),
        (time(60), 10),
        (reset(0, None, -1), 10),
        (reset(0, Some(-1), 0), 0),
        (reset(0, Some(7), 0), 7),
    ] {
        assert_eq!(f.reset_to(&request), [(0, target)]);
    }
    let code = RequestCode::INVOKE_BROKER_TO_RESET_OFFSET;
    for (request, wanted, text) in [
        (reset(0, Some(12), 0), ResponseCode::SYSTEM_ERROR, "not in consume queue range [0-10]"),
        (reset(4, None, 0), ResponseCode::INVALID_PARAMETER, "has 4 queues"),
        (
            InvokeBrokerToResetOffsetRequest { topic: "U".into(), ..reset(0, None, 0) },
            ResponseCode::TOPIC_NOT_EXIST,
            "U",
        ),
        (
            InvokeBrokerToResetOffsetRequest { group: "h".into(), ..reset(0, None, 0) },
            ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST,
            "[h]",
        ),
    ] {
        let (code, remark) = f.done(code, &request, &[]);
        assert_eq!(code, wanted.0, "{remark}");
        assert!(remark.contains(text), "{remark}");
    }
    let delete = DeleteTopicRequest { topic: "T".into() };
    f.done(RequestCode::DELETE_TOPIC_IN_BROKER, &delete, &[]);
    assert_eq!(f.shard.offsets.groups_with_resets().count(), 0);
}

#[test]
fn pending_resets_are_in_checkpoints() {
    let mut f = Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, 6 << 20);
    f.send("T", 0, "", b"x");
    f.settle();
    f.commit_as("g", 1);
    f.reset_to(&reset(0, Some(0), 0));
    for _ in 0..20 {
        f.send("U", 0, "", &[7; 1 << 20]);
        f.settle();
        f.tick(50);
    }
    assert!(f.shard.checkpoints.replay_from.position.0 > 6 << 20);
    let mut f = Fixture::with_segments(f.disk.clone(), FlushDiskType::Sync, 6 << 20);
    assert_eq!(f.commit_as("g", 1).1, "Offset has been previously reset");
    assert_eq!(f.pull_settled(1), (MOVED, 0));
}

#[test]
fn a_clone_sets_a_group_to_where_another_one_is() {
    let mut f = Fixture::with_progress();
    f.commit_as("h", 9);
    let clone = |src: &'static str, topic: Option<&'static str>| CloneGroupOffsetRequest {
        src_group: src.into(),
        dest_group: "h".into(),
        topic: topic.map(Into::into),
        offline: false,
    };
    let code = RequestCode::CLONE_GROUP_OFFSET;
    assert_eq!(f.done(code, &clone("g", None), &[]).0, 0);
    assert_eq!(f.committed("h"), Some(4));
    assert_eq!(f.commit_as("h", 9).1, "Offset has been previously reset", "as after a reset");
    assert_eq!(f.done(code, &clone("g", Some("U")), &[]).0, ResponseCode::TOPIC_NOT_EXIST.0);
    // What the source does not consume any more is not its progress.
    f.beat(CONNECTION, "c", consumer("g", "U", "*"));
    f.reset_to(&reset(0, Some(8), 0));
    assert_eq!(f.done(code, &clone("g", Some("T")), &[]).0, 0);
    assert_eq!(f.committed("h"), Some(4));
    assert_eq!(f.done(code, &CloneGroupOffsetRequest { offline: true, ..clone("g", Some("T")) }, &[]).0, 0);
    assert_eq!(f.committed("h"), Some(8));
}

#[test]
fn operators_are_told_how_far_groups_are() {
    let mut f = Fixture::with_progress();
    f.pull_settled(4);
    let queue = |id| MessageQueue::new("T", "b-0", id);
    let stats = |topic: Option<&'static str>| GetConsumeStatsRequest {
        consumer_group: "g".into(),
        topic: topic.map(Into::into),
        topic_list: None,
    };
    let code = RequestCode::GET_CONSUME_STATS;
    let told: ConsumeStats = f.told(code, &stats(None), &[]);
    let progress = OffsetWrapper {
        broker_offset: 10,
        consumer_offset: 4,
        last_timestamp: 1_700_000_003_000,
        pull_offset: 10,
    };
    assert_eq!(told.offset_table[&queue(0)], progress);
    assert_eq!(told.offset_table.len(), 4);
    let all: ConsumeStatsList = f.told(
        RequestCode::GET_BROKER_CONSUME_STATS,
        &GetConsumeStatsInBrokerRequest { is_order: false },
        &[],
    );
    assert_eq!((all.total_diff, all.total_inflight_diff), (6, 6));
    assert_eq!(all.consume_stats_list[0]["g"], [told]);
    let ordered = GetConsumeStatsInBrokerRequest { is_order: true };
    let ordered: ConsumeStatsList = f.told(RequestCode::GET_BROKER_CONSUME_STATS, &ordered, &[]);
    assert_eq!((ordered.total_diff, ordered.consume_stats_list[0]["g"].len()), (0, 0));

    let spans = QueryConsumeTimeSpanRequest { topic: "T".into(), group: "g".into() };
    let spans: QueryConsumeTimeSpanBody = f.told(RequestCode::QUERY_CONSUME_TIME_SPAN, &spans, &[]);
    let span = &spans.consume_time_span_set[0];
    let at = |seconds: i64| 1_700_000_000_000 + seconds * 1_000;
    let times = [span.min_time_stamp, span.max_time_stamp, span.consume_time_stamp, span.delay_time];
    assert_eq!(times, [at(0), at(9), at(3), 6_000]);
    let empty = &spans.consume_time_span_set[1];
    assert_eq!(
        [empty.min_time_stamp, empty.max_time_stamp, empty.consume_time_stamp, empty.delay_time],
        [-1, -1, -1, 0]
    );

    f.commit_as("h", 2);
    f.commit_as("i", 3);
    let correction = |filter: &'static str, compare: &'static str| QueryCorrectionOffsetRequest {
        filter_groups: Some(filter.into()),
        compare_group: compare.into(),
        topic: "T".into(),
    };
    for (filter, compare, lowest) in
        [("", "none", 2), ("h", "none", 3), ("h", "g", 3), ("h,i", "h", i64::MAX)]
    {
        let code = RequestCode::QUERY_CORRECTION_OFFSET;
        let told: QueryCorrectionOffsetBody = f.told(code, &correction(filter, compare), &[]);
        assert_eq!(told.correction_offsets[&0], lowest, "without {filter}, beside {compare}");
    }
    let table: ConsumerOffsetTable = f.told(RequestCode::GET_ALL_CONSUMER_OFFSET, &(), &[]);
    assert_eq!(table.offset_table["T@g"][&0], 4);
    let topics = QueryTopicsByConsumerRequest { group: "g".into() };
    let topics: TopicList = f.told(RequestCode::QUERY_TOPICS_BY_CONSUMER, &topics, &[]);
    assert_eq!(topics.topic_list.into_iter().collect::<Vec<_>>(), ["T"]);

    let subscription = QuerySubscriptionByConsumerRequest { group: "g".into(), topic: Some("T".into()) };
    let code = RequestCode::QUERY_SUBSCRIPTION_BY_CONSUMER;
    assert_eq!(f.told::<QuerySubscriptionBody>(code, &subscription, &[]).subscription_data, None);
    f.beat(CONNECTION, "c", consumer("g", "T", "a"));
    let told: QuerySubscriptionBody = f.told(code, &subscription, &[]);
    assert_eq!(told.subscription_data.unwrap().sub_string, "a");
    // Topics that the online group does not want are left out.
    f.beat(CONNECTION, "c", consumer("g", "U", "a"));
    for topic in [None, Some("T")] {
        let told: ConsumeStats = f.told(RequestCode::GET_CONSUME_STATS, &stats(topic), &[]);
        assert!(told.offset_table.is_empty());
    }
}

#[test]
fn entries_of_a_queue_are_shown_from_memory_and_from_sealed_indexes() {
    let mut f = Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, 6 << 20);
    for number in 0..16 {
        f.send("T", 0, if number % 2 == 0 { "TAGS\x01a\x02" } else { "" }, &[7; 1 << 20]);
        f.settle();
        f.tick(50);
    }
    let disk = f.disk.clone();
    let mut f = Fixture::with_segments(disk, FlushDiskType::Sync, 6 << 20);
    f.beat(CONNECTION, "c", consumer("g", "T", "a"));
    let show = |queue_id, index, count| QueryConsumeQueueRequest {
        topic: "T".into(),
        queue_id,
        index,
        count,
        consumer_group: Some("g".into()),
    };
    let mut shown = Vec::new();
    while shown.len() < 16 {
        let asked = f.request(RequestCode::QUERY_CONSUME_QUEUE, &show(0, shown.len() as i64, 100), &[]);
        f.read_all();
        let body = QueryConsumeQueueBody::from_json(&f.answer(asked).unwrap().body).unwrap();
        assert_eq!((body.min_queue_index, body.max_queue_index), (0, 16));
        assert!(!body.queue_data.is_empty());
        shown.extend(body.queue_data);
    }
    assert!(shown.windows(2).all(|pair| pair[0].physic_offset < pair[1].physic_offset));
    assert!(shown.iter().enumerate().all(|(number, entry)| entry.eval == (number % 2 == 0)));
    assert!(shown.iter().all(|entry| entry.physic_size > 1 << 20));
    let none = f.request(RequestCode::QUERY_CONSUME_QUEUE, &show(3, 0, 1), &[]);
    assert_eq!(f.answer(none).unwrap().code, ResponseCode::SYSTEM_ERROR.0);
}
