//! Who is connected: consumer groups with their members and subscriptions, producer groups, group settings.
//!
//! G1  A member is a connection. It leaves with its connection, when it says so, or when its heartbeats stop.
//! G2  Every member of a group is told when its members or the topics of its subscriptions change.
//!     Those of broadcasting groups and of groups that do not want it are not: they share nothing.
//! G3  A group without members keeps its settings and offsets, and forgets its subscriptions.

use super::Refusal;
use super::effects::ConnectionId;
use super::filter::{Filter, FilterError};
use super::limits::CLIENT_EXPIRY_MS;
use ringmq_protocol::body::{
    ConsumeFromWhere, ConsumeType, ConsumerData, MessageModel, SubscriptionData, SubscriptionGroupConfig,
};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::name;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

/// A client as it is seen on one connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) client_id: String,
    pub(super) address: SocketAddr,
    pub(super) language: &'static str,
    pub(super) version: i32,
    pub(super) seen_ms: i64,
}

/// A group as pulls name it: small, and never used for another group while the broker runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct GroupNumber(u32);

/// What a pull has to know of its group's settings.
#[derive(Clone, Copy)]
pub(super) struct Admission {
    pub(super) number: GroupNumber,
    pub(super) consume_enable: bool,
}

/// Characters of a subscription in a warning.
const WARNING_CHARS_MAX: usize = 200;

/// Bit of a forbidden table: the group may not read the topic.
const FORBIDDEN_READ: i32 = 1 << 2;

/// The record of a group in the log: RocketMQ's settings, and beside them the topics that the group may not read.
#[derive(Serialize, Deserialize)]
struct GroupRecord {
    #[serde(flatten)]
    config: SubscriptionGroupConfig,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    forbidden: BTreeMap<String, i32>,
}

struct Member {
    client: Client,
    /// What it subscribes to, for comparison and for people.
    subscribes: Rc<str>,
}

/// What a heartbeat has changed.
#[derive(Default)]
pub(super) struct Registered {
    /// Members or topics of the group.
    pub(super) is_change: bool,
    /// Members that subscribe differently, if that is news.
    pub(super) warning: Option<String>,
    /// The broker does not know what the member subscribes to, or knows something else.
    pub(super) wants_subscriptions: bool,
}

struct Subscription {
    data: SubscriptionData,
    /// A member with a wrong expression is a member; its pulls are told what is wrong.
    filter: Result<Rc<Filter>, FilterError>,
}

#[derive(Default)]
pub(super) struct ConsumerGroup {
    members: BTreeMap<ConnectionId, Member>,
    subscriptions: BTreeMap<String, Subscription>,
    pub(super) consume_type: ConsumeType,
    pub(super) message_model: MessageModel,
    pub(super) consume_from_where: ConsumeFromWhere,
    /// Of the last heartbeat with subscriptions; 0 if it had none.
    fingerprint: i32,
}

impl ConsumerGroup {
    pub(super) fn members(&self) -> impl Iterator<Item = &Client> {
        self.members.values().map(|member| &member.client)
    }

    /// The members with their connections.
    pub(super) fn connections(&self) -> impl Iterator<Item = (ConnectionId, &Client)> {
        self.members.iter().map(|(connection, member)| (*connection, &member.client))
    }

    pub(super) fn subscription(&self, topic: &str) -> Option<&SubscriptionData> {
        self.subscriptions.get(topic).map(|subscription| &subscription.data)
    }

    pub(super) fn subscriptions(&self) -> impl Iterator<Item = (&str, &SubscriptionData)> {
        self.subscriptions.iter().map(|(topic, subscription)| (topic.as_str(), &subscription.data))
    }
}

#[derive(Default)]
pub(super) struct Groups {
    pub(super) configs: BTreeMap<String, SubscriptionGroupConfig>,
    /// By group and topic, see `FORBIDDEN_READ`.
    pub(super) forbidden: BTreeMap<String, BTreeMap<String, i32>>,
    /// Of each group in `configs`.
    admissions: FxHashMap<Box<str>, Admission>,
    next_number: u32,
    consumers: BTreeMap<String, ConsumerGroup>,
    producers: BTreeMap<String, BTreeMap<ConnectionId, Client>>,
    /// The groups of each connection: consumers, then producers.
    connections: FxHashMap<ConnectionId, (BTreeSet<String>, BTreeSet<String>)>,
}

impl Groups {
    pub(super) fn consumer_group(&self, group: &str) -> Option<&ConsumerGroup> {
        self.consumers.get(group)
    }

    pub(super) fn producers(&self, group: &str) -> Option<impl Iterator<Item = &Client>> {
        Some(self.producers.get(group)?.values())
    }

    pub(super) fn has_clients(&self) -> bool {
        !self.connections.is_empty()
    }

    /// Takes a producer's heartbeat.
    pub(super) fn register_producer(&mut self, connection: ConnectionId, client: Client, group: &str) {
        self.connections.entry(connection).or_default().1.insert(group.to_owned());
        self.producers.entry(group.to_owned()).or_default().insert(connection, client);
    }

    /// Takes a consumer's heartbeat. With `without_subscriptions` only the member is renewed, and what the group
    /// subscribes to stays.
    pub(super) fn register_consumer(
        &mut self,
        connection: ConnectionId,
        client: Client,
        data: &ConsumerData,
        without_subscriptions: bool,
        fingerprint: i32,
    ) -> Registered {
        self.connections.entry(connection).or_default().0.insert(data.group_name.clone());
        let group = self.consumers.entry(data.group_name.clone()).or_default();
        let known = group.members.remove(&connection);
        let mut changed = known.as_ref().is_none_or(|known| known.client.client_id != client.client_id);
        let before = known.map(|known| known.subscribes);
        let is_other = group.fingerprint != 0 && group.fingerprint != fingerprint;
        if without_subscriptions {
            let subscribes = before.unwrap_or_default();
            group.members.insert(connection, Member { client, subscribes });
            let wants_subscriptions = is_other || group.subscriptions.is_empty();
            return Registered { is_change: changed, warning: None, wants_subscriptions };
        }
        let subscribes = group.subscribes(data);
        let warning = match before.as_ref() == Some(&subscribes) {
            true => None,
            false => group.difference(&data.group_name, &client.client_id, &subscribes),
        };
        group.members.insert(connection, Member { client, subscribes });
        group.fingerprint = fingerprint;
        group.consume_type = data.consume_type;
        group.message_model = data.message_model;
        group.consume_from_where = data.consume_from_where;
        for new in &data.subscription_data_set {
            match group.subscriptions.get_mut(&new.topic) {
                Some(known) if new.sub_version <= known.data.sub_version => {}
                Some(known) => *known = Subscription::of(new),
                None => {
                    group.subscriptions.insert(new.topic.clone(), Subscription::of(new));
                    changed = true;
                }
            }
        }
        let before = group.subscriptions.len();
        group
            .subscriptions
            .retain(|topic, _| data.subscription_data_set.iter().any(|new| new.topic == *topic));
        let is_change = changed || group.subscriptions.len() != before;
        Registered { is_change, warning, wants_subscriptions: is_other }
    }

    /// What a pull has to know of its group, if there is such a group.
    pub(super) fn admission(&self, group: &str) -> Option<Admission> {
        self.admissions.get(group).copied()
    }

    /// Makes a group or changes its settings.
    pub(super) fn put(&mut self, config: SubscriptionGroupConfig) {
        let next_number = &mut self.next_number;
        let admission = self.admissions.entry(config.group_name.as_str().into()).or_insert_with(|| {
            *next_number += 1;
            Admission { number: GroupNumber(*next_number), consume_enable: true }
        });
        admission.consume_enable = config.consume_enable;
        self.configs.insert(config.group_name.clone(), config);
    }

    /// Forgets the settings of a group.
    pub(super) fn remove(&mut self, group: &str) {
        self.configs.remove(group);
        self.forbidden.remove(group);
        self.admissions.remove(group);
    }

    /// The body of a group's record.
    pub(super) fn record(
        config: &SubscriptionGroupConfig,
        forbidden: Option<&BTreeMap<String, i32>>,
    ) -> Vec<u8> {
        let record =
            GroupRecord { config: config.clone(), forbidden: forbidden.cloned().unwrap_or_default() };
        serde_json::to_vec(&record).expect("settings have a form in JSON")
    }

    /// What a record of the log says.
    pub(super) fn apply(&mut self, body: &[u8]) -> Result<(), serde_json::Error> {
        let GroupRecord { config, forbidden } = serde_json::from_slice(body)?;
        match forbidden.is_empty() {
            true => self.forbidden.remove(&config.group_name),
            false => self.forbidden.insert(config.group_name.clone(), forbidden),
        };
        self.put(config);
        Ok(())
    }

    /// Whether a group was forbidden to read a topic.
    pub(super) fn is_forbidden(&self, group: &str, topic: &str) -> bool {
        let bits = self.forbidden.get(group).and_then(|topics| topics.get(topic));
        bits.is_some_and(|bits| bits & FORBIDDEN_READ != 0)
    }

    /// The topics that the group may not read, if `topic` is made one of them or not.
    pub(super) fn with_forbidden(&self, group: &str, topic: &str, readable: bool) -> BTreeMap<String, i32> {
        let mut topics = self.forbidden.get(group).cloned().unwrap_or_default();
        match readable {
            true => topics.remove(topic),
            false => topics.insert(topic.to_owned(), FORBIDDEN_READ),
        };
        topics
    }

    /// Online groups that subscribe to a topic.
    pub(super) fn subscribers(&self, topic: &str) -> BTreeSet<String> {
        let subscribing = self.consumers.iter().filter(|(_, group)| group.subscriptions.contains_key(topic));
        subscribing.map(|(name, _)| name.clone()).collect()
    }

    /// Groups that are online, each with every topic that it subscribes to.
    pub(super) fn online_subscriptions(&self, model: MessageModel) -> Vec<(String, String)> {
        let groups = self.consumers.iter().filter(|(_, group)| group.message_model == model);
        groups
            .flat_map(|(name, group)| {
                group.subscriptions.keys().map(move |topic| (name.clone(), topic.clone()))
            })
            .collect()
    }

    /// G2: the connections to be told of a change of the group.
    pub(super) fn connections_to_notify(&self, name: &str) -> Vec<ConnectionId> {
        let is_wanted = self.configs.get(name).is_none_or(|config| config.notify_consumer_ids_changed_enable);
        let group = self.consumers.get(name).filter(|group| group.message_model == MessageModel::Clustering);
        let told = group.filter(|_| is_wanted).map(|group| group.members.keys().copied().collect());
        told.unwrap_or_default()
    }

    /// The client leaves the groups named. True if the consumer group has changed.
    pub(super) fn unregister(
        &mut self,
        connection: ConnectionId,
        producer_group: Option<&str>,
        consumer_group: Option<&str>,
    ) -> bool {
        if let Some((consumers, producers)) = self.connections.get_mut(&connection) {
            producer_group.map(|group| producers.remove(group));
            consumer_group.map(|group| consumers.remove(group));
            if consumers.is_empty() && producers.is_empty() {
                self.connections.remove(&connection);
            }
        }
        if let Some(group) = producer_group {
            self.remove_producer(connection, group);
        }
        consumer_group.is_some_and(|group| self.remove_consumer(connection, group))
    }

    /// The connection is gone. Answers the consumer groups that have changed.
    pub(super) fn on_closed(&mut self, connection: ConnectionId) -> Vec<String> {
        let Some((consumers, producers)) = self.connections.remove(&connection) else { return Vec::new() };
        for group in producers {
            self.remove_producer(connection, &group);
        }
        consumers.into_iter().filter(|group| self.remove_consumer(connection, group)).collect()
    }

    /// Removes clients whose heartbeats have stopped. Answers the consumer groups that have changed.
    pub(super) fn expire(&mut self, now_ms: i64) -> Vec<String> {
        let is_stale = |client: &Client| now_ms - client.seen_ms > CLIENT_EXPIRY_MS;
        let of_consumers = self.consumers.values().flat_map(|group| &group.members);
        let of_consumers = of_consumers.map(|(id, member)| (id, &member.client));
        let of_producers = self.producers.values().flatten();
        let stale: BTreeSet<ConnectionId> = of_consumers
            .chain(of_producers)
            .filter(|(_, client)| is_stale(client))
            .map(|(id, _)| *id)
            .collect();
        let changed: BTreeSet<String> =
            stale.into_iter().flat_map(|connection| self.on_closed(connection)).collect();
        changed.into_iter().collect()
    }

    /// The filter of a group for a topic, as its members' heartbeats have it.
    pub(super) fn filter(
        &self,
        group: &str,
        topic: &str,
        wanted_version: i64,
    ) -> Result<Rc<Filter>, Refusal> {
        let known = self.consumers.get(group).ok_or_else(|| Refusal::not_online(group))?;
        let subscription = known.subscriptions.get(topic).ok_or_else(|| {
            let remark = format!("the consumer's subscription not exist, group: {group}, topic: {topic}");
            Refusal::new(ResponseCode::SUBSCRIPTION_NOT_EXIST, remark)
        })?;
        if subscription.data.sub_version < wanted_version {
            let remark = format!("the consumer's subscription not latest, group: {group}, topic: {topic}");
            return Err(Refusal::new(ResponseCode::SUBSCRIPTION_NOT_LATEST, remark));
        }
        Ok(subscription.filter.clone()?)
    }

    fn remove_producer(&mut self, connection: ConnectionId, group: &str) {
        if let Some(members) = self.producers.get_mut(group) {
            members.remove(&connection);
            if members.is_empty() {
                self.producers.remove(group);
            }
        }
    }

    fn remove_consumer(&mut self, connection: ConnectionId, name: &str) -> bool {
        let Some(group) = self.consumers.get_mut(name) else { return false };
        let was_member = group.members.remove(&connection).is_some();
        if group.members.is_empty() {
            self.consumers.remove(name);
        }
        was_member
    }
}

impl Refusal {
    pub(super) fn not_online(group: &str) -> Refusal {
        let remark = format!("the consumer's group info not exist, group: {group}");
        Refusal::new(ResponseCode::SUBSCRIPTION_NOT_EXIST, remark)
    }
}

impl ConsumerGroup {
    /// What a member subscribes to, besides the retry topic that all have; shared with members that say the same.
    fn subscribes(&self, data: &ConsumerData) -> Rc<str> {
        let mut topics: Vec<String> = data
            .subscription_data_set
            .iter()
            .filter(|wanted| !name::is_retry_topic(&wanted.topic))
            .map(|wanted| match wanted.is_tag() {
                true => format!("{} ({})", wanted.topic, wanted.sub_string),
                false => format!("{} ({} {})", wanted.topic, wanted.expression_type, wanted.sub_string),
            })
            .collect();
        topics.sort_unstable();
        let text = topics.join(", ");
        let same = self.members.values().map(|member| &member.subscribes).find(|known| ***known == *text);
        same.cloned().unwrap_or_else(|| text.into())
    }

    /// What to tell the operator if another member does not subscribe to the same.
    fn difference(&self, group: &str, client_id: &str, subscribes: &Rc<str>) -> Option<String> {
        let mut others = self.members.values();
        let other =
            others.find(|member| !member.subscribes.is_empty() && member.subscribes != *subscribes)?;
        let short = |text: &str| -> String { text.chars().take(WARNING_CHARS_MAX).collect() };
        Some(format!(
            "group {group}: its members subscribe differently, so that some messages reach none of them: {client_id} wants {}, {} wants {}; give all members of a group the same subscriptions",
            short(subscribes),
            other.client.client_id,
            short(&other.subscribes)
        ))
    }
}

impl Subscription {
    fn of(data: &SubscriptionData) -> Self {
        Subscription { filter: Filter::of(data).map(Rc::new), data: data.clone() }
    }
}
