//! What consumers ask of brokers for their group: members, shares, locks, offsets.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmq_protocol::body::{
    Body, CheckClientConfigBody, ConsumeFromWhere, ConsumerListBody, LockBatchBody, LockBatchResult,
    MessageQueue, SubscriptionData,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Fields, RemotingCommand};
use ringmq_protocol::name;
use ringmq_protocol::request::{
    BoundaryType, GetConsumerListByGroupRequest, GetMaxOffsetRequest, GetMinOffsetRequest, OffsetResponse,
    QueryConsumerOffsetRequest, SearchOffsetRequest, UpdateConsumerOffsetRequest,
};
use ringmq_protocol::types::{QueueId, QueueOffset};
use tokio::task::JoinSet;

use crate::allocate::allocate_average;
use crate::client::{Client, malformed, now_ms, success};
use crate::connection::Call;
use crate::error::{ConsumeError, RequestError, RouteError};

/// Where a group begins with a queue of which it has no offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumeFrom {
    /// The messages that come after the consumer started. RocketMQ's default.
    ///
    /// A broker that still holds the very first message of a queue in memory starts a new group there all the same.
    LastOffset,
    /// The oldest message there is.
    FirstOffset,
    /// The first message stored at this time or later, in milliseconds since 1970.
    Timestamp(i64),
}

impl ConsumeFrom {
    pub(crate) fn wire(self) -> ConsumeFromWhere {
        match self {
            Self::LastOffset => ConsumeFromWhere::ConsumeFromLastOffset,
            Self::FirstOffset => ConsumeFromWhere::ConsumeFromFirstOffset,
            Self::Timestamp(_) => ConsumeFromWhere::ConsumeFromTimestamp,
        }
    }
}

/// The number of a queue as requests want it; a negative one names no queue and is refused by the broker.
fn queue_id(queue: &MessageQueue) -> QueueId {
    QueueId(u32::try_from(queue.queue_id).unwrap_or(u32::MAX))
}

pub(crate) fn from_wire(offset: i64) -> QueueOffset {
    QueueOffset(u64::try_from(offset).unwrap_or(0))
}

pub(crate) fn to_wire(offset: QueueOffset) -> i64 {
    i64::try_from(offset.0).unwrap_or(i64::MAX)
}

impl Client {
    /// The address of the master of a queue's broker.
    pub(crate) async fn master_of(&self, queue: &MessageQueue) -> Result<Arc<str>, RouteError> {
        let route = self.route(&queue.topic, None).await?;
        route.master(&queue.broker_name).ok_or_else(|| RouteError::UnknownBroker(queue.broker_name.clone()))
    }

    async fn ask_master(
        &self,
        queue: &MessageQueue,
        code: RequestCode,
        fields: &(dyn Fields + Sync),
    ) -> Result<(Arc<str>, RemotingCommand), ConsumeError> {
        let address = self.master_of(queue).await?;
        let response = self.call(&address, &Call::new(code, fields), self.request_timeout()).await?;
        Ok((address, response))
    }

    async fn ask_offset(
        &self,
        queue: &MessageQueue,
        code: RequestCode,
        fields: &(dyn Fields + Sync),
    ) -> Result<QueueOffset, ConsumeError> {
        let (address, response) = self.ask_master(queue, code, fields).await?;
        let response = success(&address, code, response)?;
        Ok(decode_offset(&address, code, &response)?)
    }

    pub(crate) async fn min_offset(&self, queue: &MessageQueue) -> Result<QueueOffset, ConsumeError> {
        let request = GetMinOffsetRequest { topic: (&*queue.topic).into(), queue_id: queue_id(queue) };
        self.ask_offset(queue, RequestCode::GET_MIN_OFFSET, &request).await
    }

    pub(crate) async fn max_offset(&self, queue: &MessageQueue) -> Result<QueueOffset, ConsumeError> {
        let request =
            GetMaxOffsetRequest { topic: (&*queue.topic).into(), queue_id: queue_id(queue), committed: true };
        self.ask_offset(queue, RequestCode::GET_MAX_OFFSET, &request).await
    }

    pub(crate) async fn offset_by_time(
        &self,
        queue: &MessageQueue,
        timestamp_ms: i64,
    ) -> Result<QueueOffset, ConsumeError> {
        let request = SearchOffsetRequest {
            topic: (&*queue.topic).into(),
            queue_id: queue_id(queue),
            timestamp: timestamp_ms,
            boundary_type: BoundaryType::Lower,
        };
        self.ask_offset(queue, RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &request).await
    }

    /// The offset the group committed; `None` if it has none.
    pub(crate) async fn committed_offset(
        &self,
        group: &str,
        queue: &MessageQueue,
    ) -> Result<Option<QueueOffset>, ConsumeError> {
        let request = QueryConsumerOffsetRequest {
            consumer_group: group.into(),
            topic: (&*queue.topic).into(),
            queue_id: queue_id(queue),
            set_zero_if_not_found: Some(false),
        };
        let code = RequestCode::QUERY_CONSUMER_OFFSET;
        let (address, response) = self.ask_master(queue, code, &request).await?;
        if ResponseCode(response.code) == ResponseCode::QUERY_NOT_FOUND {
            return Ok(None);
        }
        let response = success(&address, code, response)?;
        Ok(Some(decode_offset(&address, code, &response)?))
    }

    /// Where the group begins: at its offset, else where `from` says.
    pub(crate) async fn first_offset(
        &self,
        group: &str,
        queue: &MessageQueue,
        from: ConsumeFrom,
    ) -> Result<QueueOffset, ConsumeError> {
        match self.committed_offset(group, queue).await? {
            Some(offset) => Ok(offset),
            None => self.start_offset(queue, from).await,
        }
    }

    /// Where those begin who have no offset.
    pub(crate) async fn start_offset(
        &self,
        queue: &MessageQueue,
        from: ConsumeFrom,
    ) -> Result<QueueOffset, ConsumeError> {
        match (from, name::is_retry_topic(&queue.topic)) {
            // What failed once must not be skipped because the group is new to this queue.
            (ConsumeFrom::LastOffset | ConsumeFrom::FirstOffset, true)
            | (ConsumeFrom::FirstOffset, false) => Ok(QueueOffset(0)),
            (ConsumeFrom::LastOffset, false) | (ConsumeFrom::Timestamp(_), true) => {
                self.max_offset(queue).await
            }
            (ConsumeFrom::Timestamp(timestamp_ms), false) => self.offset_by_time(queue, timestamp_ms).await,
        }
    }

    /// Stores the group's offset. A one-way commit is fast and may be lost; the next one replaces it.
    pub(crate) async fn commit_offset(
        &self,
        group: &str,
        queue: &MessageQueue,
        offset: QueueOffset,
        one_way: bool,
    ) -> Result<(), ConsumeError> {
        let request = UpdateConsumerOffsetRequest {
            consumer_group: group.into(),
            topic: (&*queue.topic).into(),
            queue_id: queue_id(queue),
            commit_offset: to_wire(offset),
        };
        let address = self.master_of(queue).await?;
        let call = Call::new(RequestCode::UPDATE_CONSUMER_OFFSET, &request);
        if one_way {
            self.one_way(&address, &call).await?;
        } else {
            self.ask(&address, &call, self.request_timeout()).await?;
        }
        Ok(())
    }

    /// Takes or renews the locks of queues. Says of each queue whether this client holds it now; queues of brokers that
    /// did not answer are missing.
    pub(crate) async fn lock_queues(
        &self,
        group: &str,
        queues: &[MessageQueue],
    ) -> BTreeMap<MessageQueue, bool> {
        let answers = self.ask_for_locks(RequestCode::LOCK_BATCH_MQ, group, queues).await;
        let mut held = BTreeMap::new();
        for (asked, answer) in answers {
            let locked = answer.and_then(|(address, response)| {
                LockBatchResult::from_json(&response.body).map_err(|problem| {
                    malformed(&address, RequestCode::LOCK_BATCH_MQ, problem.to_string()).into()
                })
            });
            match locked {
                Ok(locked) => held.extend(asked.into_iter().map(|queue| {
                    let is_held = locked.lock_ok_mq_set.contains(&queue);
                    (queue, is_held)
                })),
                Err(error) => tracing::warn!(%group, %error, "queues not locked"),
            }
        }
        held
    }

    /// Gives up the locks of queues. Those that cannot be given up end by themselves.
    pub(crate) async fn unlock_queues(&self, group: &str, queues: &[MessageQueue]) {
        for (_, answer) in self.ask_for_locks(RequestCode::UNLOCK_BATCH_MQ, group, queues).await {
            if let Err(error) = answer {
                tracing::debug!(%group, %error, "queues not unlocked");
            }
        }
    }

    /// Asks each broker about its queues, all at the same time.
    async fn ask_for_locks(
        &self,
        code: RequestCode,
        group: &str,
        queues: &[MessageQueue],
    ) -> Vec<(Vec<MessageQueue>, Result<(Arc<str>, RemotingCommand), ConsumeError>)> {
        let mut by_broker: BTreeMap<(&str, &str), Vec<MessageQueue>> = BTreeMap::new();
        for queue in queues {
            by_broker.entry((&queue.broker_name, &queue.topic)).or_default().push(queue.clone());
        }
        let mut asked = JoinSet::new();
        for queues in by_broker.into_values() {
            let client = self.clone();
            let body = LockBatchBody {
                client_id: self.id().to_string(),
                consumer_group: group.to_string(),
                mq_set: queues.clone(),
                only_this_broker: false,
            };
            asked.spawn(async move {
                let ask = async {
                    let address = client.master_of(&queues[0]).await?;
                    let call = Call::new(code, &()).body(body.to_json());
                    let response = client.ask(&address, &call, client.request_timeout()).await?;
                    Ok((address, response))
                };
                let answer = ask.await;
                (queues, answer)
            });
        }
        asked.join_all().await
    }

    /// This client's share of a topic's queues; `None` if it cannot be known now and the old one stays.
    pub(crate) async fn share(&self, group: &str, topic: &str) -> Option<Vec<MessageQueue>> {
        let route = match self.route(topic, None).await {
            Ok(route) => route,
            // The retry topic appears only with the first heartbeat, and a topic may be subscribed before it exists.
            Err(error) => {
                tracing::debug!(%group, %topic, %error, "no share");
                return None;
            }
        };
        // Any broker of the topic knows all members, as each of them sends heartbeats to all brokers.
        for address in route.addresses(false) {
            let mut members = match self.group_members(&address, group).await {
                Ok(members) => members,
                Err(error) => {
                    tracing::debug!(%group, %topic, %error, "no member list");
                    continue;
                }
            };
            if !members.iter().any(|member| member == self.id()) {
                // This broker does not know us (yet): it was started or added after our last heartbeat.
                self.heartbeat_all().await;
                members = self.group_members(&address, group).await.unwrap_or(members);
            }
            return Some(allocate_average(&route.readable, &members, self.id()));
        }
        None
    }

    /// Asks a broker of each topic whether it can evaluate the filters that only brokers evaluate.
    pub(crate) async fn check_filters<'s>(
        &self,
        group: &str,
        subscriptions: impl IntoIterator<Item = &'s SubscriptionData>,
    ) -> Result<(), ConsumeError> {
        for subscription in subscriptions.into_iter().filter(|subscription| !subscription.is_tag()) {
            // A topic may appear later; then the pulls are told what is wrong.
            let Ok(route) = self.route(&subscription.topic, None).await else { continue };
            let Some(address) = route.addresses(false).into_iter().next() else { continue };
            let body = CheckClientConfigBody {
                client_id: self.id().to_owned(),
                group: group.to_owned(),
                namespace: None,
                subscription_data: subscription.clone(),
            };
            let call = Call::new(RequestCode::CHECK_CLIENT_CONFIG, &()).body(body.to_json());
            self.ask(&address, &call, self.request_timeout()).await?;
        }
        Ok(())
    }

    pub(crate) async fn group_members(
        &self,
        address: &Arc<str>,
        group: &str,
    ) -> Result<Vec<String>, RequestError> {
        let code = RequestCode::GET_CONSUMER_LIST_BY_GROUP;
        let request = GetConsumerListByGroupRequest { consumer_group: group.into() };
        let response = self.ask(address, &Call::new(code, &request), self.request_timeout()).await?;
        let list = ConsumerListBody::from_json(&response.body)
            .map_err(|problem| malformed(address, code, problem.to_string()))?;
        Ok(list.consumer_id_list)
    }
}

fn decode_offset(
    address: &Arc<str>,
    code: RequestCode,
    response: &RemotingCommand,
) -> Result<QueueOffset, RequestError> {
    OffsetResponse::decode(&response.header().ext)
        .map(|fields| from_wire(fields.offset))
        .map_err(|problem| malformed(address, code, problem.to_string()))
}

/// Which messages of a topic a consumer wants.
#[derive(Clone, Debug)]
pub(crate) enum Expression {
    Tags(String),
    Sql(String),
}

impl Expression {
    /// A subscription, as of now.
    pub(crate) fn subscription(&self, topic: &str) -> Result<SubscriptionData, ConsumeError> {
        name::validate_topic(topic).map_err(|error| ConsumeError::Config(error.to_string()))?;
        let mut subscription = match self {
            Self::Tags(tags) => SubscriptionData::tag_expression(topic, tags),
            Self::Sql(expression) => SubscriptionData::sql_expression(topic, expression),
        };
        subscription.sub_version = now_ms();
        Ok(subscription)
    }
}

/// A subscription by tags, as of now.
pub(crate) fn tag_subscription(topic: &str, tags: &str) -> Result<SubscriptionData, ConsumeError> {
    Expression::Tags(tags.to_owned()).subscription(topic)
}
