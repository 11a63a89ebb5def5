//! How far groups are, as operators ask for it: statistics, spans of time, entries of queues.

use super::admin::reply_body;
use super::effects::Effects;
use super::limits::{CONSUME_STATS_MAX, QUEUE_ENTRIES_SHOWN_MAX, STATS_PAGES_MAX};
use super::{Refusal, Request, Shard};
use ringmq_protocol::body::{
    ConsumeQueueData, ConsumeStats, ConsumeStatsList, ConsumerOffsetTable, MessageQueue, OffsetWrapper,
    QueryConsumeQueueBody, QueryConsumeTimeSpanBody, QueryCorrectionOffsetBody, QuerySubscriptionBody,
    QueueTimeSpan, TopicList,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::request::{
    GetConsumeStatsInBrokerRequest, GetConsumeStatsRequest, QueryConsumeQueueRequest,
    QueryConsumeTimeSpanRequest, QueryCorrectionOffsetRequest, QuerySubscriptionByConsumerRequest,
    QueryTopicsByConsumerRequest,
};
use ringmq_protocol::types::{QueueId, QueueOffset};
use ringmq_storage::{Entry, Missing, QueueIx};
use std::collections::BTreeMap;

impl Shard {
    pub(super) fn on_progress(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let (to, ext) = (request.to, &request.header.ext);
        match request.code() {
            RequestCode::GET_CONSUME_STATS => {
                let asked = GetConsumeStatsRequest::decode(ext)?;
                reply_body(to, &self.consume_stats(&asked)?, fx);
            }
            RequestCode::GET_BROKER_CONSUME_STATS => {
                let asked = GetConsumeStatsInBrokerRequest::decode(ext)?;
                reply_body(to, &self.all_consume_stats(asked.is_order)?, fx);
            }
            RequestCode::QUERY_CONSUME_TIME_SPAN => {
                let asked = QueryConsumeTimeSpanRequest::decode(ext)?;
                reply_body(to, &self.consume_time_span(&asked.group, &asked.topic)?, fx);
            }
            RequestCode::QUERY_CORRECTION_OFFSET => {
                let asked = QueryCorrectionOffsetRequest::decode(ext)?;
                reply_body(to, &self.correction_offsets(&asked)?, fx);
            }
            RequestCode::GET_ALL_CONSUMER_OFFSET => {
                let mut body = ConsumerOffsetTable::default();
                for (group, topic) in self.offsets.pairs() {
                    let queues = self.offsets.queues(group, topic);
                    let queues = queues.map(|(queue, offset)| (queue.0 as i32, offset.0 as i64));
                    body.offset_table.insert(format!("{topic}@{group}"), queues.collect());
                }
                reply_body(to, &body, fx);
            }
            RequestCode::QUERY_TOPICS_BY_CONSUMER => {
                let asked = QueryTopicsByConsumerRequest::decode(ext)?;
                let topic_list = self.offsets.topics_of(&asked.group).map(str::to_owned).collect();
                let broker_addr = Some(self.config.address.to_string());
                reply_body(to, &TopicList { topic_list, broker_addr }, fx);
            }
            RequestCode::QUERY_SUBSCRIPTION_BY_CONSUMER => {
                let asked = QuerySubscriptionByConsumerRequest::decode(ext)?;
                let topic = asked.topic.as_deref().unwrap_or_default();
                let group = self.groups.consumer_group(&asked.group);
                let subscription_data = group.and_then(|group| group.subscription(topic)).cloned();
                let (group, topic) = (asked.group.to_string(), topic.to_owned());
                reply_body(to, &QuerySubscriptionBody { group, subscription_data, topic }, fx);
            }
            RequestCode::QUERY_CONSUME_QUEUE => {
                let asked = QueryConsumeQueueRequest::decode(ext)?;
                reply_body(to, &self.queue_entries(&asked)?, fx);
            }
            RequestCode::INVOKE_BROKER_TO_RESET_OFFSET => return self.on_reset_offset(request, fx),
            RequestCode::CLONE_GROUP_OFFSET => return self.on_clone_offsets(request, fx),
            _ => return self.on_relay(request, fx),
        }
        Ok(())
    }

    /// True if the group is online and wants other topics, but not this one.
    pub(super) fn does_not_subscribe(&self, group: &str, topic: &str) -> bool {
        let online = self.groups.consumer_group(group);
        online.is_some_and(|group| {
            group.subscriptions().next().is_some() && group.subscription(topic).is_none()
        })
    }

    /// GET_CONSUME_STATS (208): the topics listed, or the one named, or all that the group has offsets for; topics that
    /// an online group does not subscribe to are left out.
    fn consume_stats(&mut self, asked: &GetConsumeStatsRequest<'_>) -> Result<ConsumeStats, Refusal> {
        let group = &*asked.consumer_group;
        let mut listed: Vec<String> = match (asked.topic_list.as_deref(), asked.topic.as_deref()) {
            (Some(list), _) if !list.is_empty() => {
                list.split(';').filter(|topic| !topic.is_empty()).map(str::to_owned).collect()
            }
            (_, Some(topic)) if !topic.is_empty() => vec![topic.to_owned()],
            _ => self.offsets.topics_of(group).map(str::to_owned).collect(),
        };
        listed.retain(|name| !self.does_not_subscribe(group, name));
        let mut stats = ConsumeStats::default();
        let mut missing = Missing::default();
        for name in &listed {
            self.add_progress(group, name, &mut stats, &mut missing);
        }
        if missing.0.is_empty() { Ok(stats) } else { Err(missing.into()) }
    }

    /// Adds how far a group is in each queue of a topic, if there is such a topic.
    fn add_progress(&mut self, group: &str, name: &str, stats: &mut ConsumeStats, missing: &mut Missing) {
        let Some(topic) = self.topics.get(name) else { return };
        let number = self.groups.admission(group).map(|admission| admission.number);
        for queue_id in 0..topic.config.read_queue_nums {
            let committed = self.offsets.get(group, name, QueueId(queue_id)).unwrap_or_default();
            let queue = self.known_queue(name, QueueId(queue_id));
            let visible = queue.map_or(QueueOffset(0), |queue| self.queues[queue.0 as usize].visible);
            let pulled = number.zip(queue).and_then(|(group, queue)| self.offsets.pulled(group, queue));
            let last_timestamp = match queue.map(|queue| self.store_time_before(queue, committed)) {
                Some(Err(more)) => {
                    missing.0.extend(more.0);
                    0
                }
                Some(Ok(timestamp)) => timestamp,
                None => 0,
            };
            let wrapper = OffsetWrapper {
                broker_offset: visible.0 as i64,
                consumer_offset: committed.0 as i64,
                pull_offset: pulled.unwrap_or_default().max(committed).0 as i64,
                last_timestamp,
            };
            let queue = MessageQueue::new(name, &self.config.broker_name, queue_id as i32);
            stats.offset_table.insert(queue, wrapper);
        }
    }

    /// GET_BROKER_CONSUME_STATS (317): the same for every group.
    fn all_consume_stats(&mut self, only_ordered: bool) -> Result<ConsumeStatsList, Refusal> {
        let wanted = |shard: &Shard, group: &str, topic: &str| {
            let topic_config = shard.topics.get(topic).map(|topic| &topic.config);
            topic_config.is_some_and(|config| !only_ordered || config.order)
                && shard.groups.admission(group).is_some()
                && !shard.does_not_subscribe(group, topic)
        };
        let pairs = self.offsets.pairs().into_iter().filter(|(group, topic)| wanted(self, group, topic));
        let pairs: Vec<(String, String)> = pairs.map(|(g, t)| (g.to_owned(), t.to_owned())).collect();
        let mut groups: BTreeMap<String, Vec<ConsumeStats>> =
            self.groups.configs.keys().map(|group| (group.clone(), Vec::new())).collect();
        let mut body =
            ConsumeStatsList { broker_addr: self.config.address.to_string(), ..Default::default() };
        let (mut missing, mut queues) = (Missing::default(), 0);
        for (group, topic) in pairs {
            let mut stats = ConsumeStats::default();
            self.add_progress(&group, &topic, &mut stats, &mut missing);
            queues += stats.offset_table.len();
            if queues > CONSUME_STATS_MAX {
                let remark = format!(
                    "the groups of this broker consume more than {CONSUME_STATS_MAX} queues: ask for single groups"
                );
                return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
            }
            for wrapper in stats.offset_table.values() {
                body.total_diff += wrapper.broker_offset - wrapper.consumer_offset;
                body.total_inflight_diff += wrapper.pull_offset - wrapper.consumer_offset;
            }
            groups.entry(group).or_default().push(stats);
        }
        if !missing.0.is_empty() && missing.0.len() <= STATS_PAGES_MAX {
            return Err(missing.into());
        }
        // Store times that would need more pages than that stay 0, which says that they are not known.
        body.consume_stats_list = groups.into_iter().map(|group| BTreeMap::from([group])).collect();
        Ok(body)
    }

    /// QUERY_CONSUME_TIME_SPAN (303).
    fn consume_time_span(&mut self, group: &str, name: &str) -> Result<QueryConsumeTimeSpanBody, Refusal> {
        let topic = self.topics.get(name).ok_or_else(|| Refusal::no_topic(name))?;
        let mut body = QueryConsumeTimeSpanBody::default();
        let mut missing = Missing::default();
        for queue_id in 0..topic.config.write_queue_nums {
            let message_queue = MessageQueue::new(name, &self.config.broker_name, queue_id as i32);
            let committed = self.offsets.get(group, name, QueueId(queue_id));
            let span = match self.known_queue(name, QueueId(queue_id)) {
                Some(queue) => self.time_span(queue, committed),
                None => Ok([-1, -1, -1, 0]),
            };
            match span {
                Ok([min_time_stamp, max_time_stamp, consume_time_stamp, delay_time]) => {
                    body.consume_time_span_set.push(QueueTimeSpan {
                        consume_time_stamp,
                        delay_time,
                        max_time_stamp,
                        message_queue,
                        min_time_stamp,
                    });
                }
                Err(more) => missing.0.extend(more.0),
            }
        }
        if missing.0.is_empty() { Ok(body) } else { Err(missing.into()) }
    }

    /// Store times of the first, the last and the last consumed message (-1 if there is none), and the age of the next.
    fn time_span(&mut self, queue: QueueIx, committed: Option<QueueOffset>) -> Result<[i64; 4], Missing> {
        let (min, max) = self.bounds(queue)?;
        let first = self.store_time(queue, min, max)?.map_or(-1, |time| time.0);
        let last = match self.store_time_before(queue, max)? {
            0 => -1,
            time => time,
        };
        let consumed = match committed {
            Some(offset) if offset > min => self.store_time_before(queue, offset)?,
            _ => 0,
        };
        let next = self.store_time(queue, committed.unwrap_or(min).max(min), max)?;
        let delay = next.map_or(0, |next| (self.now.wall_ms - next.0).max(0));
        Ok([first, last, if consumed > 0 { consumed } else { first }, delay])
    }

    /// QUERY_CORRECTION_OFFSET (308): for each queue the lowest offset of all groups but those left out; `i64::MAX` where
    /// the group that it is compared with is further back.
    fn correction_offsets(
        &mut self,
        asked: &QueryCorrectionOffsetRequest<'_>,
    ) -> Result<QueryCorrectionOffsetBody, Refusal> {
        let left_out: Vec<&str> = asked.filter_groups.as_deref().unwrap_or_default().split(',').collect();
        let groups =
            self.offsets.groups_of(&asked.topic).into_iter().filter(|group| !left_out.contains(group));
        let all: Vec<(QueueId, QueueOffset)> =
            groups.flat_map(|group| self.offsets.queues(group, &asked.topic)).collect();
        let mut correction_offsets: BTreeMap<i32, i64> = BTreeMap::new();
        for (queue_id, offset) in all {
            let min = match self.known_queue(&asked.topic, queue_id) {
                Some(queue) => self.bounds(queue)?.0,
                None => QueueOffset(0),
            };
            if offset >= min {
                let lowest = correction_offsets.entry(queue_id.0 as i32).or_insert(i64::MAX);
                *lowest = (*lowest).min(offset.0 as i64);
            }
        }
        for (queue_id, compared) in self.offsets.queues(&asked.compare_group, &asked.topic) {
            if let Some(lowest) = correction_offsets.get_mut(&(queue_id.0 as i32))
                && *lowest > compared.0 as i64
            {
                *lowest = i64::MAX;
            }
        }
        Ok(QueryCorrectionOffsetBody { correction_offsets })
    }

    /// QUERY_CONSUME_QUEUE (321).
    fn queue_entries(
        &mut self,
        asked: &QueryConsumeQueueRequest<'_>,
    ) -> Result<QueryConsumeQueueBody, Refusal> {
        let (topic, queue_id) = (&*asked.topic, asked.queue_id);
        let known = u32::try_from(queue_id).ok().and_then(|id| self.known_queue(topic, QueueId(id)));
        let queue = known.ok_or_else(|| {
            Refusal::new(ResponseCode::SYSTEM_ERROR, format!("{queue_id}@{topic} is not exist!"))
        })?;
        let (min, max) = self.bounds(queue)?;
        let mut body = QueryConsumeQueueBody {
            max_queue_index: max.0 as i64,
            min_queue_index: min.0 as i64,
            ..QueryConsumeQueueBody::default()
        };
        if let Some(group) = asked.consumer_group.as_deref().filter(|group| !group.is_empty()) {
            let online = self.groups.consumer_group(group);
            body.subscription_data = online.and_then(|group| group.subscription(topic)).cloned();
            if body.subscription_data.is_none() {
                body.filter_data = Some(format!("{group}@{topic} is not online!"));
            }
        }
        let count = usize::try_from(asked.count).unwrap_or(0).min(QUEUE_ENTRIES_SHOWN_MAX);
        let from = QueueOffset(u64::try_from(asked.index).unwrap_or(0)).max(min);
        let mut entries: Vec<(QueueOffset, Entry)> = Vec::new();
        let mut next = from;
        // A look-up gives what one segment has.
        while entries.len() < count {
            let sealed = self.sealed_entries(queue, next, count - entries.len())?;
            let Some((last, _)) = sealed.last() else { break };
            next = QueueOffset(last.0 + 1);
            entries.extend(sealed.into_iter().map(|(offset, sealed)| (offset, sealed.entry)));
        }
        let room = count - entries.len();
        entries.extend(self.index.entries(queue, next, max).take(room));
        entries.retain(|(offset, _)| *offset < max);
        body.queue_data = entries
            .into_iter()
            .map(|(_, entry)| ConsumeQueueData {
                eval: body
                    .subscription_data
                    .as_ref()
                    .is_some_and(|data| data.matches_tags_code(entry.tags_code)),
                physic_offset: entry.position.0 as i64,
                physic_size: entry.size as i32,
                tags_code: i64::from(entry.tags_code.0),
            })
            .collect();
        Ok(body)
    }
}
