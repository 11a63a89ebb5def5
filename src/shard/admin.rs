//! Membership and what operators ask: topics, groups, connections, the broker itself.

use super::attributes::own_retention_ms;
use super::effects::{Effects, News, ReplyTo};
use super::filter::Filter;
use super::groups::Client;
use super::limits::TOPICS_MAX;
use super::records::kind;
use super::topics::check_config;
use super::{Announcement, Refusal, Request, Shard, attributes};
use ringmq_protocol::body::{
    Body, CheckClientConfigBody, Connection, ConsumerConnection, ConsumerListBody, CreateTopicListBody,
    DataVersion, GroupList, HeartbeatData, KvTable, MessageQueue, ProducerConnection, TopicConfig,
    TopicConfigSerializeWrapper, TopicFilterType, TopicList, TopicOffset, TopicStatsTable,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{FRAME_BYTES_MAX, VERSION_REPORTED};
use ringmq_protocol::name;
use ringmq_protocol::request::{
    CreateTopicRequest, DeleteTopicRequest, GetConsumerConnectionListRequest, GetConsumerListByGroupRequest,
    GetProducerConnectionListRequest, GetTopicConfigRequest, GetTopicStatsInfoRequest, HeartbeatResponse,
    QueryTopicConsumeByWhoRequest, UnregisterClientRequest,
};
use ringmq_protocol::types::{QueueId, QueueOffset, StoreTimestamp};
use ringmq_storage::{Missing, QueueIx};
use std::collections::BTreeMap;

/// Room for the header of an answer when its body is compared with the largest frame, in bytes.
const HEADER_ROOM: usize = 64 << 10;

impl Shard {
    /// HEART_BEAT (34): registers the client in its groups, and makes what they need.
    pub(super) fn on_heartbeat(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let heartbeat = HeartbeatData::from_json(request.body).map_err(Refusal::unreadable)?;
        let connection = request.to.connection;
        let client = Client {
            client_id: heartbeat.client_id.clone(),
            address: request.peer,
            language: request.header.language.name(),
            version: request.header.version,
            seen_ms: self.now.monotonic_ms,
        };
        // Without a fingerprint the client always sends all it has.
        let mut must_send_subscriptions = heartbeat.heartbeat_fingerprint == 0;
        for data in &heartbeat.consumer_data_set {
            // A group that cannot be made is left out; its pulls say why.
            if self.ensure_group(&data.group_name, fx).is_err() {
                continue;
            }
            let mut topics =
                data.subscription_data_set.iter().filter_map(|wanted| self.topics.get(&wanted.topic));
            let is_ordered = topics.any(|topic| topic.config.order);
            // Consuming works without it; the next heartbeat tries again.
            let _ = self.ensure_retry_topic(&data.group_name, is_ordered);
            let (without_sub, fingerprint) = (heartbeat.without_sub, heartbeat.heartbeat_fingerprint);
            let client = client.clone();
            let registered =
                self.groups.register_consumer(connection, client, data, without_sub, fingerprint);
            must_send_subscriptions |= registered.wants_subscriptions;
            if let Some(warning) = registered.warning {
                fx.log_error(format!("{}: {warning}", self.config.broker_name));
            }
            if registered.is_change {
                self.notify_group(&data.group_name, fx);
            }
        }
        for data in &heartbeat.producer_data_set {
            self.groups.register_producer(connection, client.clone(), &data.group_name);
        }
        let response = HeartbeatResponse {
            is_support_heart_beat_v2: Some(true),
            is_sub_change: Some(must_send_subscriptions),
        };
        fx.replies.push(request.to, ResponseCode::SUCCESS, None, &response, &[]);
        Ok(())
    }

    /// UNREGISTER_CLIENT (35).
    pub(super) fn on_unregister(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = UnregisterClientRequest::decode(&request.header.ext)?;
        let consumer_group = asked.consumer_group.as_deref();
        if self.groups.unregister(request.to.connection, asked.producer_group.as_deref(), consumer_group) {
            self.notify_group(consumer_group.unwrap_or_default(), fx);
        }
        fx.replies.push(request.to, ResponseCode::SUCCESS, None, &(), &[]);
        Ok(())
    }

    /// GET_CONSUMER_LIST_BY_GROUP (38).
    pub(super) fn on_consumer_list(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = GetConsumerListByGroupRequest::decode(&request.header.ext)?;
        let group = self.groups.consumer_group(&asked.consumer_group).ok_or_else(|| {
            let remark = format!("no consumer for this group, {}", asked.consumer_group);
            Refusal::new(ResponseCode::SYSTEM_ERROR, remark)
        })?;
        let consumer_id_list = group.members().map(|client| client.client_id.clone()).collect();
        reply_body(request.to, &ConsumerListBody { consumer_id_list }, fx);
        Ok(())
    }

    /// CHECK_CLIENT_CONFIG (46): a consumer asks whether its filter can be evaluated here.
    pub(super) fn on_check_client(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = CheckClientConfigBody::from_json(request.body).map_err(Refusal::unreadable)?;
        Filter::of(&asked.subscription_data)?;
        fx.replies.push(request.to, ResponseCode::SUCCESS, None, &(), &[]);
        Ok(())
    }

    /// Everything that is not on the path of a message or of a consumer.
    pub(super) fn on_admin(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let ext = &request.header.ext;
        match request.code() {
            RequestCode::UPDATE_AND_CREATE_TOPIC => {
                self.create_topic(request.to, &CreateTopicRequest::decode(ext)?)
            }
            RequestCode::UPDATE_AND_CREATE_TOPIC_LIST => {
                let list = CreateTopicListBody::from_json(request.body).map_err(Refusal::unreadable)?;
                self.create_topics(request.to, list.topic_config_list, fx)
            }
            RequestCode::DELETE_TOPIC_IN_BROKER => {
                self.delete_topic(request.to, &DeleteTopicRequest::decode(ext)?.topic, fx)
            }
            RequestCode::GET_ALL_TOPIC_CONFIG => {
                let configs = self.topic_configs().into_iter();
                let topic_config_table = configs.map(|config| (config.topic_name.clone(), config)).collect();
                let body =
                    TopicConfigSerializeWrapper { data_version: DataVersion::default(), topic_config_table };
                reply_body(request.to, &body, fx);
                Ok(())
            }
            RequestCode::GET_TOPIC_CONFIG => {
                let asked = GetTopicConfigRequest::decode(ext)?;
                let topic = self.topics.get(&asked.topic).ok_or_else(|| Refusal::no_topic(&asked.topic))?;
                reply_body(request.to, &topic.config, fx);
                Ok(())
            }
            RequestCode::GET_TOPIC_STATS_INFO => {
                let asked = GetTopicStatsInfoRequest::decode(ext)?;
                let body = self.topic_stats(&asked.topic)?;
                reply_body(request.to, &body, fx);
                Ok(())
            }
            RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_BROKER => {
                let topics = self.topics.sorted().into_iter().filter(|topic| !topic.is_recorded);
                let topic_list = topics.map(|topic| topic.config.topic_name.clone()).collect();
                reply_body(request.to, &TopicList { topic_list, broker_addr: None }, fx);
                Ok(())
            }
            RequestCode::QUERY_TOPIC_CONSUME_BY_WHO => {
                let asked = QueryTopicConsumeByWhoRequest::decode(ext)?;
                let mut group_list: std::collections::BTreeSet<String> =
                    self.groups.subscribers(&asked.topic);
                group_list.extend(self.offsets.groups_of(&asked.topic).into_iter().map(str::to_owned));
                reply_body(request.to, &GroupList { group_list }, fx);
                Ok(())
            }
            RequestCode::GET_CONSUMER_CONNECTION_LIST => {
                let asked = GetConsumerConnectionListRequest::decode(ext)?;
                let body = self.consumer_connections(&asked.consumer_group)?;
                reply_body(request.to, &body, fx);
                Ok(())
            }
            RequestCode::GET_PRODUCER_CONNECTION_LIST => {
                let asked = GetProducerConnectionListRequest::decode(ext)?;
                let members = self.groups.producers(&asked.producer_group).ok_or_else(|| {
                    let remark = format!("the producer group[{}] not exist", asked.producer_group);
                    Refusal::new(ResponseCode::SYSTEM_ERROR, remark)
                })?;
                let connection_set = members.map(connection_of).collect();
                reply_body(request.to, &ProducerConnection { connection_set }, fx);
                Ok(())
            }
            RequestCode::GET_ALL_DELAY_OFFSET => self.on_delay_offsets(request, fx),
            RequestCode::GET_BROKER_RUNTIME_INFO => {
                reply_body(request.to, &KvTable { table: self.runtime_info() }, fx);
                Ok(())
            }
            _ => self.on_group_admin(request, fx),
        }
    }

    /// UPDATE_AND_CREATE_TOPIC (17). Answered once the topic is on disk and the name servers know it.
    fn create_topic(&mut self, to: ReplyTo, asked: &CreateTopicRequest<'_>) -> Result<(), Refusal> {
        self.refuse_system_topic(&asked.topic)?;
        let filter_type = TopicFilterType::from_name(&asked.topic_filter_type).ok_or_else(|| {
            Refusal::invalid(format!(
                "topicFilterType {:?} is neither SINGLE_TAG nor MULTI_TAG",
                asked.topic_filter_type
            ))
        })?;
        let known = self.topics.get(&asked.topic).map(|topic| topic.config.attributes.clone());
        let changes = asked.attributes.as_deref().unwrap_or_default();
        let attributes = attributes::change(&known.unwrap_or_default(), changes).map_err(Refusal::invalid)?;
        let count = |what, nums: i32| {
            u32::try_from(nums).map_err(|_| Refusal::invalid(format!("{what} {nums} must not be negative")))
        };
        let config = TopicConfig {
            attributes,
            order: asked.order,
            read_queue_nums: count("readQueueNums", asked.read_queue_nums)?,
            write_queue_nums: count("writeQueueNums", asked.write_queue_nums)?,
            topic_filter_type: filter_type,
            topic_sys_flag: asked.topic_sys_flag.unwrap_or(0),
            ..TopicConfig::new(asked.topic.as_ref(), 0, asked.perm)
        };
        self.put_topic(config, Some(to))
    }

    /// UPDATE_AND_CREATE_TOPIC_LIST (18): all are checked before the first one is made. Answered as 17 is, for the last of them.
    fn create_topics(
        &mut self,
        to: ReplyTo,
        configs: Vec<TopicConfig>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let mut checked = Vec::with_capacity(configs.len());
        let mut made = std::collections::BTreeSet::new();
        for config in configs {
            self.refuse_system_topic(&config.topic_name)?;
            check_topic(&config)?;
            let known = self.topics.get(&config.topic_name).map(|topic| topic.config.attributes.clone());
            if known.is_none() {
                made.insert(config.topic_name.clone());
            }
            // Names come with the sign that says whether they are set or removed, as in 17.
            let changes: Vec<String> = config
                .attributes
                .iter()
                .map(|(name, value)| match name.starts_with('-') {
                    true => name.clone(),
                    false => format!("{name}={value}"),
                })
                .collect();
            let attributes = attributes::change(&known.unwrap_or_default(), &changes.join(","));
            checked.push(TopicConfig { attributes: attributes.map_err(Refusal::invalid)?, ..config });
        }
        if self.topics.len() + made.len() > TOPICS_MAX {
            return Err(Refusal::too_many_topics());
        }
        let Some(last) = checked.pop() else {
            fx.replies.push(to, ResponseCode::SUCCESS, None, &(), &[]);
            return Ok(());
        };
        for config in checked {
            self.put_topic(config, None)?;
        }
        self.put_topic(last, Some(to))
    }

    /// Makes a topic or changes its settings: a record first, the name servers once it is durable.
    pub(super) fn put_topic(&mut self, config: TopicConfig, waiter: Option<ReplyTo>) -> Result<(), Refusal> {
        check_topic(&config)?;
        if self.topics.len() >= TOPICS_MAX && self.topics.get(&config.topic_name).is_none() {
            return Err(Refusal::too_many_topics());
        }
        let known = self.topics.get(&config.topic_name).and_then(|topic| topic.policy.retention_ms);
        let wanted = own_retention_ms(&config);
        if let Some(until_now) = known.filter(|until_now| wanted.is_none_or(|wanted| wanted > *until_now)) {
            // What was over by the shorter time does not come back with the longer one.
            let before = StoreTimestamp(self.now.wall_ms.saturating_sub(until_now));
            self.give_up(std::slice::from_ref(&config.topic_name), before)?;
        }
        let block = self.append_record(kind::TOPIC, &config.to_json())?;
        self.topics.put(config.clone(), true);
        self.refresh_queues(&config.topic_name);
        let news = News::TopicChanged { config, ticket: None };
        self.pending(block).announcements.push(Announcement { news, waiter });
        Ok(())
    }

    /// A topic's record is durable: the housekeeping thread takes it from here.
    pub(super) fn announce(&mut self, announcement: Announcement, fx: &mut Effects) {
        let Announcement { mut news, waiter } = announcement;
        if let (News::TopicChanged { ticket, .. }, Some(to)) = (&mut news, waiter) {
            *ticket = Some(self.next_ticket);
            self.registrations.insert(self.next_ticket, to);
            self.next_ticket += 1;
        }
        fx.news.push(news);
    }

    /// The name servers know what was announced under a ticket.
    pub fn on_registered(&mut self, ticket: u64, fx: &mut Effects) {
        if let Some(to) = self.registrations.remove(&ticket) {
            fx.replies.push(to, ResponseCode::SUCCESS, None, &(), &[]);
        }
    }

    /// DELETE_TOPIC_IN_BROKER (215): the topic, its messages and the offsets of all groups in it.
    fn delete_topic(&mut self, to: ReplyTo, topic: &str, fx: &mut Effects) -> Result<(), Refusal> {
        self.refuse_system_topic(topic)?;
        if self.topics.get(topic).is_none() {
            fx.replies.push(to, ResponseCode::SUCCESS, None, &(), &[]);
            return Ok(());
        }
        let block = self.append_record(kind::TOPIC_DELETED, topic.as_bytes())?;
        let removed = self.topics.remove(topic).expect("seen above");
        for queue in removed.known_queues() {
            self.queues[queue.0 as usize].is_removed = true;
            for id in self.holds.at(queue) {
                let pull = self.holds.take(id).expect("listed at its queue");
                let refusal = Refusal::no_topic(topic);
                fx.replies.push(pull.to, refusal.code, Some(&refusal.remark), &(), &[]);
            }
        }
        self.offsets.forget_pulled_from(&removed.known_queues().collect());
        self.refuse_held_pops(topic, fx);
        self.index.remove_topic(topic);
        self.offsets.remove_topic(topic);
        self.pops.flights.remove_topic(topic);
        self.assignments.remove_topic(topic);
        let pending = self.pending(block);
        pending.replies.push(to, ResponseCode::SUCCESS, None, &(), &[]);
        pending
            .announcements
            .push(Announcement { news: News::TopicDeleted { topic: topic.to_owned() }, waiter: None });
        Ok(())
    }

    fn refuse_system_topic(&self, topic: &str) -> Result<(), Refusal> {
        let is_own = self.topics.get(topic).is_some_and(|topic| !topic.is_recorded);
        if topic.is_empty() || is_own || name::is_system_topic(topic) {
            return Err(Refusal::invalid(format!("The topic[{topic}] is conflict with system topic.")));
        }
        Ok(())
    }

    fn topic_stats(&mut self, name: &str) -> Result<TopicStatsTable, Refusal> {
        let topic = self.topics.get(name).ok_or_else(|| Refusal::no_topic(name))?;
        let mut stats = TopicStatsTable::default();
        let mut missing = Missing::default();
        for queue_id in 0..topic.queue_count() {
            let offsets = match self.known_queue(name, QueueId(queue_id)).map(|queue| self.queue_stats(queue))
            {
                Some(Ok(offsets)) => offsets,
                Some(Err(more)) => {
                    missing.0.extend(more.0);
                    continue;
                }
                None => TopicOffset::default(),
            };
            stats
                .offset_table
                .insert(MessageQueue::new(name, &self.config.broker_name, queue_id as i32), offsets);
        }
        if missing.0.is_empty() { Ok(stats) } else { Err(missing.into()) }
    }

    fn queue_stats(&mut self, queue: QueueIx) -> Result<TopicOffset, Missing> {
        let (min, max) = self.bounds(queue)?;
        let last_update_timestamp = self.store_time_before(queue, max)?;
        Ok(TopicOffset { min_offset: min.0 as i64, max_offset: max.0 as i64, last_update_timestamp })
    }

    /// When the message before an offset was stored; 0 if there is none.
    pub(super) fn store_time_before(&mut self, queue: QueueIx, offset: QueueOffset) -> Result<i64, Missing> {
        let Some(last) = offset.0.checked_sub(1) else { return Ok(0) };
        Ok(self.store_time(queue, QueueOffset(last), offset)?.map_or(0, |timestamp| timestamp.0))
    }

    fn consumer_connections(&self, name: &str) -> Result<ConsumerConnection, Refusal> {
        let group = self.groups.consumer_group(name).ok_or_else(|| {
            Refusal::new(ResponseCode::CONSUMER_NOT_ONLINE, format!("the consumer group[{name}] not online"))
        })?;
        Ok(ConsumerConnection {
            connection_set: group.members().map(connection_of).collect(),
            subscription_table: group
                .subscriptions()
                .map(|(topic, data)| (topic.to_owned(), data.clone()))
                .collect(),
            consume_type: group.consume_type,
            message_model: group.message_model,
            consume_from_where: group.consume_from_where,
        })
    }

    /// GET_BROKER_RUNTIME_INFO (28): what this broker knows of itself, under RocketMQ's names where there is one.
    fn runtime_info(&self) -> BTreeMap<String, String> {
        let put = |name: &str, value: &dyn ToString| (name.to_owned(), value.to_string());
        let mut table = BTreeMap::from([
            put("brokerVersionDesc", &concat!("RingMQ ", env!("CARGO_PKG_VERSION"))),
            put("brokerVersion", &VERSION_REPORTED),
            put("brokerActive", &self.log.poisoned().is_none()),
            put("bootTimestamp", &self.booted_ms),
            put("runtime", &format!("[ {} s ]", (self.now.wall_ms - self.booted_ms).max(0) / 1000)),
            put("commitLogMinOffset", &self.log_start().0),
            put("commitLogMaxOffset", &self.log.durable().0),
            put("remainHowManyDataToFlush", &format!("{} B", self.log.staged_bytes())),
            put("msgPutTotalTodayNow", &self.counts.messages_in),
            put("msgGetTotalTodayNow", &self.counts.messages_out),
            put("putMessageSizeTotal", &self.counts.bytes_in),
            put("roomGivenBackTotal", &self.counts.room_given_back),
            put("heldPulls", &self.holds.len()),
            put("heldPops", &self.pops.holds.len()),
            put("messagesInFlight", &self.pops.flights.len()),
            put("messageDelayLevel", self.delays.table()),
        ]);
        table.extend(self.delay_info());
        table
    }
}

/// What is wrong with a topic's name or settings, if anything.
fn check_topic(config: &TopicConfig) -> Result<(), Refusal> {
    name::validate_topic(&config.topic_name).map_err(|error| Refusal::invalid(error.to_string()))?;
    check_config(config).map_err(Refusal::invalid)
}

impl Refusal {
    fn too_many_topics() -> Refusal {
        let remark = format!("the broker has {TOPICS_MAX} topics at most");
        Refusal::new(ResponseCode::SYSTEM_BUSY, remark)
    }

    pub(super) fn invalid(remark: String) -> Refusal {
        Refusal::new(ResponseCode::INVALID_PARAMETER, remark)
    }

    pub(super) fn unreadable(error: impl ToString) -> Refusal {
        Refusal::new(
            ResponseCode::SYSTEM_ERROR,
            format!("the body of the request cannot be read: {}", error.to_string()),
        )
    }
}

/// Answers with a body, unless no peer would accept a frame that large.
pub(super) fn reply_body(to: ReplyTo, body: &impl Body, fx: &mut Effects) {
    let body = body.to_json();
    if body.len() + HEADER_ROOM > FRAME_BYTES_MAX as usize {
        let remark = format!("the answer of {} bytes exceeds the largest frame", body.len());
        return fx.replies.push(to, ResponseCode::SYSTEM_ERROR, Some(&remark), &(), &[]);
    }
    fx.replies.push(to, ResponseCode::SUCCESS, None, &(), &body);
}

fn connection_of(client: &Client) -> Connection {
    Connection {
        client_id: client.client_id.clone(),
        client_addr: client.address.to_string(),
        language: client.language.to_owned(),
        version: client.version,
    }
}
