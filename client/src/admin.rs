//! What operators ask: topics, clusters, groups and offsets, single messages.

mod groups;
mod order;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ringmq_protocol::body::{Body, ClusterInfo, KvTable, MASTER_ID, MessageQueue, TopicList};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::id::OffsetMessageId;
use ringmq_protocol::message::{MessageExt, StoredMessage, messages};
use ringmq_protocol::name;
use ringmq_protocol::properties::names;
use ringmq_protocol::request::{
    CreateTopicRequest, DeleteTopicRequest, QueryMessageRequest, ViewMessageByIdRequest,
};
use ringmq_protocol::types::QueueOffset;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::client::{Client, malformed, success};
use crate::connection::Call;
use crate::error::{AdminError, ConsumeError, RequestError, RouteError};
use crate::pull::BODY_BYTES_MAX;
use crate::route::TopicRoute;
pub use groups::{
    GroupDescription, GroupMember, GroupQueue, GroupSettings, GroupSubscription, GroupSummary, QueueReset,
    ResetTo,
};
pub use order::TopicOrder;

/// How often a new topic is looked for in the name server.
const ROUTE_POLL: Duration = Duration::from_millis(20);

/// RocketMQ's table of delays, if nobody changes it.
const DELAY_LEVELS_DEFAULT: &str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h";

/// How a topic is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Queues on each broker.
    pub queues: u32,
    pub readable: bool,
    pub writable: bool,
    /// Attributes to set, by name; the others of a topic that exists stay.
    pub attributes: BTreeMap<String, String>,
}

/// A broker that is registered with the name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterBroker {
    pub cluster: String,
    pub name: String,
    /// 0 is the master.
    pub id: i64,
    pub address: Arc<str>,
}

/// What a broker answered when asked how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerHealth {
    /// As the broker tells it; `None` if it does not.
    pub version: Option<String>,
    pub answered_in: Duration,
}

/// The range of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    pub queue: MessageQueue,
    /// The oldest offset.
    pub min: QueueOffset,
    /// The offset that the next message will get.
    pub max: QueueOffset,
}

/// How far a group has come in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    pub queue: MessageQueue,
    /// `None` if the group has no offset there.
    pub committed: Option<QueueOffset>,
    pub max: QueueOffset,
}

/// What messages are looked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageKey {
    /// One of the words that the application gave as keys.
    User(String),
    /// The producer's unique key, which RocketMQ shows as the message id.
    Unique(String),
}

impl MessageKey {
    fn text(&self) -> &str {
        match self {
            Self::User(key) | Self::Unique(key) => key,
        }
    }

    fn is_of(&self, message: &MessageExt) -> bool {
        match self {
            Self::User(key) => message.message.keys().any(|word| word == key),
            Self::Unique(key) => message.message.property(names::UNIQ_KEY) == Some(key),
        }
    }
}

/// A message that was looked for, and the broker that has it.
#[derive(Clone, Debug)]
pub struct FoundMessage {
    pub broker_name: String,
    pub message: MessageExt,
}

/// Administration, see [`Client::admin`].
#[derive(Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Creates a topic, or changes it, on every master of the cluster, or of all clusters if none is named. Returns
    /// the names of the brokers, once the name server knows the topic there.
    pub async fn create_topic(
        &self,
        topic: &str,
        settings: TopicSettings,
        cluster: Option<&str>,
    ) -> Result<Vec<String>, AdminError> {
        name::validate_topic(topic).map_err(|error| AdminError::Illegal(error.to_string()))?;
        let brokers = self.masters(cluster).await?;
        self.create_on(&brokers, topic, &settings, false).await
    }

    async fn create_on(
        &self,
        brokers: &[ClusterBroker],
        topic: &str,
        settings: &TopicSettings,
        order: bool,
    ) -> Result<Vec<String>, AdminError> {
        let queues = i32::try_from(settings.queues).unwrap_or(i32::MAX);
        let changes: Vec<String> =
            settings.attributes.iter().map(|(name, value)| format!("+{name}={value}")).collect();
        let request = CreateTopicRequest {
            perm: if settings.readable { 4 } else { 0 } | if settings.writable { 2 } else { 0 },
            order,
            attributes: (!changes.is_empty()).then(|| changes.join(",").into()),
            ..CreateTopicRequest::new(topic, queues)
        };
        let call = Call::new(RequestCode::UPDATE_AND_CREATE_TOPIC, &request);
        let mut names = Vec::new();
        for broker in brokers {
            self.client.ask(&broker.address, &call, self.client.request_timeout()).await?;
            names.push(broker.name.clone());
        }
        let deadline = Instant::now() + self.client.request_timeout();
        loop {
            match self.client.route(topic, Some(Instant::now())).await {
                Ok(route) if names.iter().all(|name| route.brokers.contains_key(name)) => return Ok(names),
                // The brokers have the topic; that the name server is late shows soon enough.
                _ if Instant::now() >= deadline => return Ok(names),
                _ => sleep(ROUTE_POLL).await,
            }
        }
    }

    /// Deletes a topic with its messages, on every master of the cluster or of all clusters, and in the name servers.
    pub async fn delete_topic(&self, topic: &str, cluster: Option<&str>) -> Result<Vec<String>, AdminError> {
        name::validate_topic(topic).map_err(|error| AdminError::Illegal(error.to_string()))?;
        let request = DeleteTopicRequest { topic: topic.into() };
        let mut names = Vec::new();
        for broker in self.masters(cluster).await? {
            let call = Call::new(RequestCode::DELETE_TOPIC_IN_BROKER, &request);
            self.client.ask(&broker.address, &call, self.client.request_timeout()).await?;
            names.push(broker.name);
        }
        let call = Call::new(RequestCode::DELETE_TOPIC_IN_NAMESRV, &request);
        self.client.ask_all_name_servers(&call).await?;
        self.forget_order(topic).await?;
        self.client.forget_route(topic);
        Ok(names)
    }

    /// The names of all topics, in order.
    pub async fn topics(&self) -> Result<Vec<String>, AdminError> {
        let call = Call::new(RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER, &());
        let list: TopicList = self.ask_name_server(&call).await?;
        Ok(list.topic_list.into_iter().collect())
    }

    /// Which brokers and queues a topic has.
    pub async fn route(&self, topic: &str) -> Result<Arc<TopicRoute>, AdminError> {
        Ok(self.client.route(topic, Some(Instant::now())).await?)
    }

    /// The range of every readable queue of a topic.
    pub async fn queues(&self, topic: &str) -> Result<Vec<QueueStatus>, AdminError> {
        self.of_each_queue(topic, |client, queue| async move {
            let (min, max) = (client.min_offset(&queue).await?, client.max_offset(&queue).await?);
            Ok(QueueStatus { queue, min, max })
        })
        .await
    }

    /// How far a group has come in every readable queue of a topic.
    pub async fn group_offsets(&self, group: &str, topic: &str) -> Result<Vec<GroupOffset>, AdminError> {
        let group: Arc<str> = Arc::from(group);
        self.of_each_queue(topic, move |client, queue| {
            let group = group.clone();
            async move {
                let committed = client.committed_offset(&group, &queue).await?;
                let max = client.max_offset(&queue).await?;
                Ok(GroupOffset { queue, committed, max })
            }
        })
        .await
    }

    /// Asks for all queues at the same time; the answers come in the order of the queues.
    async fn of_each_queue<T, F, Fut>(&self, topic: &str, ask: F) -> Result<Vec<T>, AdminError>
    where
        T: Send + 'static,
        F: Fn(Client, MessageQueue) -> Fut,
        Fut: Future<Output = Result<T, ConsumeError>> + Send + 'static,
    {
        let route = self.route(topic).await?;
        let mut asked = JoinSet::new();
        for (index, queue) in route.readable.iter().enumerate() {
            let answer = ask(self.client.clone(), queue.clone());
            asked.spawn(async move { answer.await.map(|answer| (index, answer)) });
        }
        let mut answers = Vec::with_capacity(route.readable.len());
        while let Some(joined) = asked.join_next().await {
            match joined {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(ConsumeError::Route(error))) => return Err(error.into()),
                Ok(Err(ConsumeError::Request(error))) => return Err(error.into()),
                Ok(Err(other)) => return Err(AdminError::Illegal(other.to_string())),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        answers.sort_by_key(|(index, _)| *index);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Every broker, by cluster, name and id.
    pub async fn brokers(&self) -> Result<Vec<ClusterBroker>, AdminError> {
        let call = Call::new(RequestCode::GET_BROKER_CLUSTER_INFO, &());
        let info: ClusterInfo = self.ask_name_server(&call).await?;
        let mut brokers = Vec::new();
        for (cluster, names) in &info.cluster_addr_table {
            for broker in names.iter().filter_map(|name| info.broker_addr_table.get(name)) {
                brokers.extend(broker.broker_addrs.iter().map(|(id, address)| ClusterBroker {
                    cluster: cluster.clone(),
                    name: broker.broker_name.clone(),
                    id: *id,
                    address: Arc::from(address.as_str()),
                }));
            }
        }
        Ok(brokers)
    }

    /// Asks a broker how it is. Any answer will do: it lives.
    pub async fn health(&self, broker: &ClusterBroker) -> Result<BrokerHealth, RequestError> {
        let begun = Instant::now();
        let call = Call::new(RequestCode::GET_BROKER_RUNTIME_INFO, &());
        let response = self.client.call(&broker.address, &call, self.client.request_timeout()).await?;
        let answered_in = begun.elapsed();
        let version = match ResponseCode(response.code) {
            ResponseCode::SUCCESS => KvTable::from_json(&response.body)
                .ok()
                .and_then(|info| info.table.get("brokerVersionDesc").cloned()),
            _ => None,
        };
        Ok(BrokerHealth { version, answered_in })
    }

    /// The times of the delay levels of every master, as it writes them: level 1 is the first word. A broker that does not tell
    /// is taken to have RocketMQ's.
    pub async fn delay_levels(&self) -> Result<BTreeMap<String, String>, AdminError> {
        let call = Call::new(RequestCode::GET_BROKER_RUNTIME_INFO, &());
        let mut tables = BTreeMap::new();
        for broker in self.masters(None).await? {
            let response = self.client.ask(&broker.address, &call, self.client.request_timeout()).await?;
            let info = KvTable::from_json(&response.body)
                .map_err(|problem| malformed(&broker.address, call.code, problem.to_string()))?;
            let table = info.table.get("messageDelayLevel").map_or(DELAY_LEVELS_DEFAULT, String::as_str);
            tables.insert(broker.name, table.to_owned());
        }
        Ok(tables)
    }

    /// A message by its offset message id, from the broker that the id names.
    pub async fn message(&self, id: OffsetMessageId) -> Result<MessageExt, AdminError> {
        let address: Arc<str> = Arc::from(id.store_host.to_string());
        // The unique key of a producer looks the same but names no broker; do not connect to just any address.
        if !self.brokers().await?.iter().any(|broker| broker.address == address) {
            return Err(AdminError::Illegal(format!(
                "{id} names a broker at {address}, and there is none; give the offset message id (a send shows it), \
                 not the producer's unique key"
            )));
        }
        let code = RequestCode::VIEW_MESSAGE_BY_ID;
        let request = ViewMessageByIdRequest { topic: None, offset: id.physical_offset };
        let response =
            self.client.ask(&address, &Call::new(code, &request), self.client.request_timeout()).await?;
        let message = match StoredMessage::parse(&response.body) {
            Ok((stored, _)) => {
                MessageExt::decode(&stored, BODY_BYTES_MAX).map_err(|problem| problem.to_string())
            }
            Err(problem) => Err(problem.to_string()),
        };
        Ok(message.map_err(|problem| malformed(&address, code, problem))?)
    }

    /// The newest messages of a topic with this key that were stored in these milliseconds since 1970, in the order of
    /// their store times; those of one broker in the order of its log. A broker gives at most 64.
    ///
    /// Fails if one broker of the topic does not answer, as what it has would be missing.
    pub async fn query_message(
        &self,
        topic: &str,
        key: &MessageKey,
        stored_ms: RangeInclusive<i64>,
        count_max: u32,
    ) -> Result<Vec<FoundMessage>, AdminError> {
        let route = self.route(topic).await?;
        let mut asked = JoinSet::new();
        for name in route.brokers.keys() {
            let Some(address) = route.reader(name, MASTER_ID) else { continue };
            let (client, name, topic) = (self.client.clone(), name.clone(), topic.to_string());
            let (key, stored_ms) = (key.clone(), stored_ms.clone());
            asked.spawn(async move {
                let found = query_broker(&client, &address, &topic, &key, &stored_ms, count_max).await?;
                Ok(found.into_iter().map(move |message| FoundMessage { broker_name: name.clone(), message }))
            });
        }
        let mut found = Vec::new();
        while let Some(joined) = asked.join_next().await {
            match joined {
                Ok(Ok(messages)) => found.extend(messages),
                Ok(Err(error)) => return Err(AdminError::Request(error)),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        let order = |found: &FoundMessage| (found.message.store_timestamp, found.message.physical_offset);
        found.sort_by(|a, b| (order(a), &a.broker_name).cmp(&(order(b), &b.broker_name)));
        let excess = found.len().saturating_sub(usize::try_from(count_max).unwrap_or(usize::MAX));
        found.drain(..excess);
        Ok(found)
    }

    async fn masters(&self, cluster: Option<&str>) -> Result<Vec<ClusterBroker>, AdminError> {
        let mut brokers = self.brokers().await?;
        brokers.retain(|broker| broker.id == MASTER_ID && cluster.is_none_or(|name| broker.cluster == name));
        if brokers.is_empty() {
            return Err(AdminError::Illegal(match cluster {
                Some(cluster) => {
                    format!("no broker of cluster {cluster:?} is registered with the name server")
                }
                None => "no broker is registered with the name server".into(),
            }));
        }
        Ok(brokers)
    }

    async fn ask_name_server<B: Body>(&self, call: &Call<'_>) -> Result<B, AdminError> {
        let (address, response) = self.client.call_name_server(call).await?;
        let response = success(&address, call.code, response).map_err(RouteError::NameServers)?;
        B::from_json(&response.body)
            .map_err(|problem| malformed(&address, call.code, problem.to_string()).into())
    }
}

/// What one broker finds. Brokers may find more than was asked for: they compare hashes.
async fn query_broker(
    client: &Client,
    address: &Arc<str>,
    topic: &str,
    key: &MessageKey,
    stored_ms: &RangeInclusive<i64>,
    count_max: u32,
) -> Result<Vec<MessageExt>, RequestError> {
    let code = RequestCode::QUERY_MESSAGE;
    let request = QueryMessageRequest {
        topic: topic.into(),
        key: key.text().into(),
        max_num: i32::try_from(count_max).unwrap_or(i32::MAX),
        begin_timestamp: *stored_ms.start(),
        end_timestamp: *stored_ms.end(),
        unique_key_query: matches!(key, MessageKey::Unique(_)),
    };
    let call = Call::new(code, &request);
    let response = match client.ask(address, &call, client.request_timeout()).await {
        Err(error) if error.code() == Some(ResponseCode::QUERY_NOT_FOUND) => return Ok(Vec::new()),
        answer => answer?,
    };
    let mut found = Vec::new();
    for record in messages(&response.body) {
        let stored = record.map_err(|problem| malformed(address, code, problem.to_string()))?;
        let message = MessageExt::decode(&stored, BODY_BYTES_MAX)
            .map_err(|problem| malformed(address, code, problem.to_string()))?;
        let is_wanted = message.message.topic == topic
            && key.is_of(&message)
            && stored_ms.contains(&message.store_timestamp.0);
        if is_wanted {
            found.push(message);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
