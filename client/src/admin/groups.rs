//! Consumer groups: who they are, how far they are, and where they go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringmq_protocol::body::{
    Body, ConsumeStats, ConsumeStatsList, ConsumerConnection, ConsumerRunningInfo, MessageModel,
    MessageQueue, QueryConsumeTimeSpanBody, ResetOffsetBody, SubscriptionGroupConfig,
    SubscriptionGroupWrapper, TopicStatsTable,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::Fields;
use ringmq_protocol::name;
use ringmq_protocol::request::{
    CloneGroupOffsetRequest, DeleteSubscriptionGroupRequest, GetConsumeStatsInBrokerRequest,
    GetConsumeStatsRequest, GetConsumerConnectionListRequest, GetConsumerRunningInfoRequest,
    GetTopicStatsInfoRequest, InvokeBrokerToResetOffsetRequest, QueryConsumeTimeSpanRequest,
};
use ringmq_protocol::types::QueueOffset;

use super::{Admin, ClusterBroker};
use crate::client::malformed;
use crate::connection::Call;
use crate::error::{AdminError, RequestError};

/// How a consumer group is made. What is not named here gets RocketMQ's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// How often a message is delivered again before it is a dead letter.
    pub retry_max_times: u32,
    /// Queues of the retry topic on each broker.
    pub retry_queues: u32,
    /// Whether the group may consume at all.
    pub consume_enabled: bool,
    /// Whether it may consume by broadcast.
    pub broadcast_enabled: bool,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self { retry_max_times: 16, retry_queues: 1, consume_enabled: true, broadcast_enabled: true }
    }
}

/// A group in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSummary {
    pub group: String,
    /// Clients that are online.
    pub members: usize,
    /// Messages that the group has not committed, in the topics that it has offsets for.
    pub lag: u64,
}

/// A client of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    pub client_id: String,
    /// Where its connection comes from, as `ip:port`.
    pub address: String,
    /// A name of RocketMQ's list of languages, like `JAVA`.
    pub language: String,
    /// RocketMQ's number of the client's version.
    pub version: i32,
}

/// What a group wants of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSubscription {
    pub topic: String,
    /// `TAG` or `SQL92`.
    pub expression_type: String,
    pub expression: String,
}

/// How far a group is in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupQueue {
    pub queue: MessageQueue,
    /// The oldest offset.
    pub min: QueueOffset,
    /// Where the group goes on; 0 if it never committed.
    pub committed: QueueOffset,
    /// Messages before this were handed out.
    pub pulled: QueueOffset,
    /// The offset that the next message will get.
    pub max: QueueOffset,
    /// Age of the next message to consume, in milliseconds; 0 if there is none.
    pub time_lag_ms: i64,
    /// The client that consumes it, as far as the clients say.
    pub owner: Option<String>,
}

impl GroupQueue {
    /// Messages that the group has not committed.
    pub fn lag(&self) -> u64 {
        self.max.0.saturating_sub(self.committed.0.max(self.min.0))
    }
}

/// All that is known of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupDescription {
    /// By client id. Empty if the group is not online.
    pub members: Vec<GroupMember>,
    /// By topic. Empty if the group is not online.
    pub subscriptions: Vec<GroupSubscription>,
    pub is_broadcasting: bool,
    /// By topic, broker and queue: those for which the group has offsets.
    pub queues: Vec<GroupQueue>,
}

/// Where a group is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// The oldest message of each queue.
    First,
    /// The end of each queue: what is there now is skipped.
    Last,
    /// The first message that was stored at this time or later, in milliseconds since 1970.
    Time(i64),
    /// This offset.
    Offset(QueueOffset),
}

/// A queue whose offset is set, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReset {
    pub queue: MessageQueue,
    /// `None` if the group has no offset there.
    pub before: Option<QueueOffset>,
    pub after: QueueOffset,
}

impl Admin {
    /// Creates a group, or changes it, on every master of the cluster, or of all clusters if none is named. Returns the
    /// names of the brokers.
    pub async fn create_group(
        &self,
        group: &str,
        settings: &GroupSettings,
        cluster: Option<&str>,
    ) -> Result<Vec<String>, AdminError> {
        name::validate_group(group).map_err(|error| AdminError::Illegal(error.to_string()))?;
        let config = SubscriptionGroupConfig {
            retry_max_times: i32::try_from(settings.retry_max_times).unwrap_or(i32::MAX),
            retry_queue_nums: i32::try_from(settings.retry_queues).unwrap_or(i32::MAX),
            consume_enable: settings.consume_enabled,
            consume_broadcast_enable: settings.broadcast_enabled,
            ..SubscriptionGroupConfig::new(group)
        };
        let body = config.to_json();
        let mut names = Vec::new();
        for broker in self.masters(cluster).await? {
            let call = Call::new(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &()).body(body.clone());
            self.client.ask(&broker.address, &call, self.client.request_timeout()).await?;
            names.push(broker.name);
        }
        Ok(names)
    }

    /// Deletes a group with its retry topic, on every master of the cluster or of all clusters; with `offsets` also what it
    /// has consumed and locked. Dead letters stay: their topic is deleted like any other. Clients that are online make
    /// the group again.
    pub async fn delete_group(
        &self,
        group: &str,
        offsets: bool,
        cluster: Option<&str>,
    ) -> Result<Vec<String>, AdminError> {
        name::validate_group(group).map_err(|error| AdminError::Illegal(error.to_string()))?;
        let request = DeleteSubscriptionGroupRequest {
            group_name: group.into(),
            clean_offset: offsets,
            remove_offset: offsets,
        };
        for broker in self.masters(cluster).await? {
            let call = Call::new(RequestCode::DELETE_SUBSCRIPTIONGROUP, &request);
            self.client.ask(&broker.address, &call, self.client.request_timeout()).await?;
        }
        self.delete_topic(&name::retry_topic(group), cluster).await
    }

    /// All groups of all masters, by name.
    pub async fn groups(&self) -> Result<Vec<GroupSummary>, AdminError> {
        let mut groups: BTreeMap<String, (BTreeSet<String>, u64)> = BTreeMap::new();
        for broker in self.masters(None).await? {
            let configs: SubscriptionGroupWrapper =
                self.told(&broker, RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &()).await?;
            for group in configs.subscription_group_table.into_keys() {
                groups.entry(group).or_default();
            }
            let all = GetConsumeStatsInBrokerRequest { is_order: false };
            let stats: ConsumeStatsList =
                self.told(&broker, RequestCode::GET_BROKER_CONSUME_STATS, &all).await?;
            for (group, topics) in stats.consume_stats_list.into_iter().flatten() {
                let queues = topics.iter().flat_map(|topic| topic.offset_table.values());
                let lag =
                    queues.map(|queue| queue.broker_offset.saturating_sub(queue.consumer_offset).max(0));
                groups.entry(group).or_default().1 += lag.sum::<i64>().unsigned_abs();
            }
            for (group, (members, _)) in &mut groups {
                if let Some(online) = self.connections(&broker, group).await? {
                    members.extend(online.connection_set.into_iter().map(|connection| connection.client_id));
                }
            }
        }
        let summary = |(group, (members, lag)): (String, (BTreeSet<String>, u64))| GroupSummary {
            group,
            members: members.len(),
            lag,
        };
        Ok(groups.into_iter().map(summary).collect())
    }

    /// A group with its members, what they subscribe to, and how far they are.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, AdminError> {
        let mut described = GroupDescription::default();
        let (mut members, mut subscriptions, mut queues) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut owners: BTreeMap<MessageQueue, String> = BTreeMap::new();
        for broker in self.masters(None).await? {
            let asked =
                GetConsumeStatsRequest { consumer_group: group.into(), topic: None, topic_list: None };
            let stats: ConsumeStats = self.told(&broker, RequestCode::GET_CONSUME_STATS, &asked).await?;
            self.add_queues(&broker, group, stats, &mut queues).await?;
            let Some(online) = self.connections(&broker, group).await? else { continue };
            described.is_broadcasting |= online.message_model == MessageModel::Broadcasting;
            for connection in online.connection_set {
                let client_id = connection.client_id.clone();
                let member = GroupMember {
                    client_id: connection.client_id,
                    address: connection.client_addr,
                    language: connection.language,
                    version: connection.version,
                };
                if members.insert(client_id.clone(), member).is_none() {
                    let held = self.queues_of(&broker, group, &client_id).await;
                    owners.extend(held.into_iter().map(|queue| (queue, client_id.clone())));
                }
            }
            subscriptions.extend(online.subscription_table);
        }
        described.members = members.into_values().collect();
        let wanted = subscriptions.into_iter().map(|(topic, data)| GroupSubscription {
            topic,
            expression_type: data.expression_type,
            expression: data.sub_string,
        });
        described.subscriptions = wanted.collect();
        for (queue, progress) in queues {
            let owner = owners.remove(&queue);
            described.queues.push(GroupQueue { owner, ..progress });
        }
        Ok(described)
    }

    /// Adds how far a group is in the queues of one broker.
    async fn add_queues(
        &self,
        broker: &ClusterBroker,
        group: &str,
        stats: ConsumeStats,
        queues: &mut BTreeMap<MessageQueue, GroupQueue>,
    ) -> Result<(), AdminError> {
        let topics: BTreeSet<&str> = stats.offset_table.keys().map(|queue| &*queue.topic).collect();
        let (mut firsts, mut lags) = (BTreeMap::new(), BTreeMap::new());
        for topic in topics {
            let asked = GetTopicStatsInfoRequest { topic: topic.into() };
            let ranges: TopicStatsTable =
                self.told(broker, RequestCode::GET_TOPIC_STATS_INFO, &asked).await?;
            firsts.extend(ranges.offset_table.into_iter().map(|(queue, range)| (queue, range.min_offset)));
            let asked = QueryConsumeTimeSpanRequest { topic: topic.into(), group: group.into() };
            let spans: QueryConsumeTimeSpanBody =
                self.told(broker, RequestCode::QUERY_CONSUME_TIME_SPAN, &asked).await?;
            let spans = spans.consume_time_span_set.into_iter();
            lags.extend(spans.map(|span| (span.message_queue, span.delay_time)));
        }
        let offset = |number: i64| QueueOffset(u64::try_from(number).unwrap_or(0));
        for (queue, wrapper) in &stats.offset_table {
            let progress = GroupQueue {
                queue: queue.clone(),
                min: offset(firsts.get(queue).copied().unwrap_or(0)),
                committed: offset(wrapper.consumer_offset),
                pulled: offset(wrapper.pull_offset),
                max: offset(wrapper.broker_offset),
                time_lag_ms: lags.get(queue).copied().unwrap_or(0),
                owner: None,
            };
            queues.insert(queue.clone(), progress);
        }
        Ok(())
    }

    /// The queues that a client says it consumes; none if it does not say.
    async fn queues_of(&self, broker: &ClusterBroker, group: &str, client_id: &str) -> Vec<MessageQueue> {
        let asked = GetConsumerRunningInfoRequest {
            consumer_group: group.into(),
            client_id: client_id.into(),
            jstack_enable: false,
        };
        let info: Result<ConsumerRunningInfo, _> =
            self.told(broker, RequestCode::GET_CONSUMER_RUNNING_INFO, &asked).await;
        info.map(|info| info.mq_table.into_keys().chain(info.mq_pop_table.into_keys()).collect())
            .unwrap_or_default()
    }

    /// Who of a group is connected to a broker; `None` if nobody is.
    async fn connections(
        &self,
        broker: &ClusterBroker,
        group: &str,
    ) -> Result<Option<ConsumerConnection>, AdminError> {
        let asked = GetConsumerConnectionListRequest { consumer_group: group.into() };
        match self.told(broker, RequestCode::GET_CONSUMER_CONNECTION_LIST, &asked).await {
            Ok(online) => Ok(Some(online)),
            Err(error) if error.code() == Some(ResponseCode::CONSUMER_NOT_ONLINE) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a group would go on in each queue of a topic, or in one of them: nothing changes.
    pub async fn plan_reset(
        &self,
        group: &str,
        topic: &str,
        to: ResetTo,
        only: Option<(&str, i32)>,
    ) -> Result<Vec<QueueReset>, AdminError> {
        let is_wanted =
            |queue: &MessageQueue| only.is_none_or(|only| only == (&*queue.broker_name, queue.queue_id));
        let committed = self.group_offsets(group, topic).await?.into_iter();
        let before: BTreeMap<MessageQueue, Option<QueueOffset>> =
            committed.map(|known| (known.queue, known.committed)).collect();
        let mut plan = Vec::new();
        for range in self.queues(topic).await?.into_iter().filter(|range| is_wanted(&range.queue)) {
            let after = match to {
                ResetTo::First => range.min,
                ResetTo::Last => range.max,
                ResetTo::Time(time_ms) => {
                    let found = self.client.offset_by_time(&range.queue, time_ms).await;
                    found.map_err(|error| AdminError::Illegal(error.to_string()))?
                }
                ResetTo::Offset(offset) if offset >= range.min && offset <= range.max => offset,
                ResetTo::Offset(offset) => {
                    let MessageQueue { broker_name, queue_id, .. } = &range.queue;
                    return Err(AdminError::Illegal(format!(
                        "offset {offset} is not in queue {broker_name}:{queue_id}, which has {} to {}",
                        range.min, range.max
                    )));
                }
            };
            let before = before.get(&range.queue).copied().flatten();
            plan.push(QueueReset { queue: range.queue, before, after });
        }
        match (plan.is_empty(), only) {
            (true, Some((broker, queue))) => {
                Err(AdminError::Illegal(format!("topic {topic} has no queue {queue} on broker {broker:?}")))
            }
            _ => Ok(plan),
        }
    }

    /// Sets a group to where a plan says. Consumers that are online go on there at once; others when they come.
    ///
    /// # Errors
    /// If a broker refuses. Queues before that in the plan are set.
    pub async fn reset(&self, group: &str, plan: &[QueueReset]) -> Result<(), AdminError> {
        let Some(first) = plan.first() else { return Ok(()) };
        let route = self.route(&first.queue.topic).await?;
        for QueueReset { queue, after, .. } in plan {
            let address = route
                .master(&queue.broker_name)
                .ok_or_else(|| AdminError::Illegal(format!("broker {} has no master", queue.broker_name)))?;
            let request = InvokeBrokerToResetOffsetRequest {
                group: group.into(),
                topic: (&*queue.topic).into(),
                queue_id: queue.queue_id,
                offset: i64::try_from(after.0).ok(),
                timestamp: -1,
                is_force: true,
            };
            let code = RequestCode::INVOKE_BROKER_TO_RESET_OFFSET;
            let call = Call::new(code, &request);
            let answer = self.client.ask(&address, &call, self.client.request_timeout()).await?;
            // Brokers before 5.0 answer without saying what they did; then there is nothing to compare.
            let said =
                ResetOffsetBody::from_json(&answer.body).map(|body| body.offset_table).unwrap_or_default();
            if said.get(queue).is_some_and(|offset| u64::try_from(*offset) != Ok(after.0)) {
                let problem = format!("{queue:?} was set to something else than {after}");
                return Err(malformed(&address, code, problem).into());
            }
        }
        Ok(())
    }

    /// Sets a group to where another one is, in one topic or in all that the other one has offsets for.
    pub async fn clone_offsets(
        &self,
        source: &str,
        target: &str,
        topic: Option<&str>,
    ) -> Result<Vec<String>, AdminError> {
        name::validate_group(target).map_err(|error| AdminError::Illegal(error.to_string()))?;
        let on_topic = match topic {
            Some(topic) => Some(self.route(topic).await?),
            None => None,
        };
        let mut names = Vec::new();
        for broker in self.masters(None).await? {
            if on_topic.as_ref().is_some_and(|route| !route.brokers.contains_key(&broker.name)) {
                continue;
            }
            let request = CloneGroupOffsetRequest {
                src_group: source.into(),
                dest_group: target.into(),
                topic: topic.map(Into::into),
                offline: true,
            };
            let call = Call::new(RequestCode::CLONE_GROUP_OFFSET, &request);
            self.client.ask(&broker.address, &call, self.client.request_timeout()).await?;
            names.push(broker.name);
        }
        Ok(names)
    }

    /// The body of a broker's answer.
    async fn told<B: Body>(
        &self,
        broker: &ClusterBroker,
        code: RequestCode,
        fields: &(dyn Fields + Sync),
    ) -> Result<B, RequestError> {
        let call = Call::new(code, fields);
        let address: &Arc<str> = &broker.address;
        let response = self.client.ask(address, &call, self.client.request_timeout()).await?;
        B::from_json(&response.body).map_err(|problem| malformed(address, code, problem.to_string()))
    }
}
