//! Who is connected: consumer groups with their members and subscriptions, producer groups, group settings.
//!
//! G1  A member is a connection. It leaves with its connection, when it says so, or when its heartbeats stop.
//! G2  Every member of a group is told when its members or the topics of its subscriptions change.
//! G3  A group without members keeps its settings and offsets, and forgets its subscriptions.

use super::Refusal;
use super::effects::ConnectionId;
use super::filter::{Filter, FilterError};
use super::limits::CLIENT_EXPIRY_MS;
use ringmq_protocol::body::{
    ConsumeFromWhere, ConsumeType, ConsumerData, MessageModel, SubscriptionData, SubscriptionGroupConfig,
};
use ringmq_protocol::code::ResponseCode;
use rustc_hash::FxHashMap;
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

struct Subscription {
    data: SubscriptionData,
    /// A member with a wrong expression is a member; its pulls are told what is wrong.
    filter: Result<Rc<Filter>, FilterError>,
}

#[derive(Default)]
pub(super) struct ConsumerGroup {
    members: BTreeMap<ConnectionId, Client>,
    subscriptions: BTreeMap<String, Subscription>,
    pub(super) consume_type: ConsumeType,
    pub(super) message_model: MessageModel,
    pub(super) consume_from_where: ConsumeFromWhere,
}

impl ConsumerGroup {
    pub(super) fn members(&self) -> impl Iterator<Item = &Client> {
        self.members.values()
    }

    pub(super) fn subscriptions(&self) -> impl Iterator<Item = (&str, &SubscriptionData)> {
        self.subscriptions.iter().map(|(topic, subscription)| (topic.as_str(), &subscription.data))
    }
}

#[derive(Default)]
pub(super) struct Groups {
    pub(super) configs: BTreeMap<String, SubscriptionGroupConfig>,
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

    /// Takes a consumer's heartbeat. True if the group's members or topics have changed. With `without_subscriptions`
    /// only the member is renewed, and what the group subscribes to stays.
    pub(super) fn register_consumer(
        &mut self,
        connection: ConnectionId,
        client: Client,
        data: &ConsumerData,
        without_subscriptions: bool,
    ) -> bool {
        self.connections.entry(connection).or_default().0.insert(data.group_name.clone());
        let group = self.consumers.entry(data.group_name.clone()).or_default();
        let known = group.members.insert(connection, client.clone());
        let mut changed = known.is_none_or(|known| known.client_id != client.client_id);
        if without_subscriptions {
            return changed;
        }
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
        changed || group.subscriptions.len() != before
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

    /// True if a heartbeat without subscriptions leaves nothing unknown about the group.
    pub(super) fn knows_subscriptions(&self, group: &str) -> bool {
        self.consumers.get(group).is_some_and(|group| !group.subscriptions.is_empty())
    }

    /// The connections to be told of a change of the group.
    pub(super) fn connections_of(&self, group: &str) -> Vec<ConnectionId> {
        self.consumers.get(group).map(|group| group.members.keys().copied().collect()).unwrap_or_default()
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
        let known = self.consumers.get(group).ok_or_else(|| {
            let remark = format!("the consumer's group info not exist, group: {group}");
            Refusal::new(ResponseCode::SUBSCRIPTION_NOT_EXIST, remark)
        })?;
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

impl Subscription {
    fn of(data: &SubscriptionData) -> Self {
        Subscription { filter: Filter::of(data).map(Rc::new), data: data.clone() }
    }
}
