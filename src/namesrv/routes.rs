//! The route table: which brokers live, and which queues of which topics they serve.
//!
//! Pure and deterministic: no I/O, no clock (`now_ms` is a monotonic time in milliseconds and an argument),
//! ordered maps only. Brokers write it, clients read it:
//!
//! ```text
//! register ──┐                               ┌▶ route, cluster_info, member_group
//! refresh    ├─▶ clusters · brokers · topics ├▶ topic lists
//! expire     │             live              └▶ data_version
//! on_closed ─┘
//! ```
//!
//! Invariants:
//!
//!  R1  a broker name is in `brokers` exactly if it has an address, and then in exactly one cluster of `clusters`
//!  R2  a topic is in `topics` exactly if it has queues, and only broker names of `brokers` have queues
//!  R3  every address of a broker is in `live`: who stops reporting disappears
//!  R4  a registration adds and changes topics, it never removes one (a partial table is an update); a topic
//!      leaves with its last broker or by an explicit delete
//!  R5  no table grows beyond its limit; what would exceed it is refused whole

use ringmq_protocol::body::{
    BrokerData, ClusterInfo, DataVersion, MASTER_ID, QueueData, TopicRouteData, perm,
};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// A broker is forgotten after this time without a sign of life, unless it asked for another time.
pub const BROKER_EXPIRY_MS: u64 = 120_000;
/// Broker addresses in all.
pub const BROKERS_MAX: usize = 16_384;
/// Pairs of topic and broker name in all.
pub const TOPIC_QUEUES_MAX: usize = 2_000_000;
/// Longest accepted name or address, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

const TOPIC_FLAG_UNIT: i32 = 1;
const TOPIC_FLAG_UNIT_SUB: i32 = 2;

/// Identifies the connection a broker registered through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnectionId(pub u64);

/// What a broker says about itself and its topics (REGISTER_BROKER).
#[derive(Clone, Debug)]
pub struct Registration {
    pub cluster: String,
    pub broker_name: String,
    pub broker_addr: String,
    pub broker_id: i64,
    pub ha_server_addr: String,
    pub zone_name: Option<String>,
    /// `None` means [`BROKER_EXPIRY_MS`].
    pub heartbeat_timeout_ms: Option<u64>,
    /// `None` comes from brokers that do not know of acting masters.
    pub enable_acting_master: Option<bool>,
    pub data_version: DataVersion,
    /// Topic names and their queues on this broker.
    pub topics: Vec<(String, Queues)>,
}

/// The queues of one topic on one broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queues {
    pub read_queue_nums: u32,
    pub write_queue_nums: u32,
    pub perm: i32,
    pub topic_sys_flag: i32,
}

/// What a slave learns from its registration; empty for a master.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Registered {
    pub ha_server_addr: Option<String>,
    pub master_addr: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RegisterError {
    /// The first registration of a broker id must carry its whole table. Exactly one topic means that this is a
    /// partial update, sent before the name server (after a restart, say) has seen the table it updates.
    #[error("register broker failed: not registered yet, and this is an update of a single topic")]
    PartialBeforeFull,
    #[error("register broker failed: a name or address is empty or longer than {NAME_BYTES_MAX} bytes")]
    BadName,
    #[error("register broker failed: this name belongs to another cluster")]
    OtherCluster,
    #[error("register broker failed: this name server is full")]
    Full,
}

/// Which topics [`Routes::unit_topics`] returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnitTopics {
    Unit,
    UnitSub,
    UnitSubNotUnit,
}

#[derive(Debug)]
struct Broker {
    cluster: String,
    addrs: BTreeMap<i64, String>,
    zone_name: Option<String>,
    enable_acting_master: bool,
}

#[derive(Debug)]
struct Live {
    last_seen_ms: u64,
    timeout_ms: u64,
    data_version: DataVersion,
    ha_server_addr: String,
    connection: ConnectionId,
}

/// Cluster and address: what identifies a live broker.
type LiveKey = (String, String);

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Routes {
    clusters: BTreeMap<String, BTreeSet<String>>,
    brokers: BTreeMap<String, Broker>,
    topics: BTreeMap<String, BTreeMap<String, Queues>>,
    live: BTreeMap<LiveKey, Live>,
    /// Entries of `topics` over all topics.
    topic_queues: usize,
}

impl Broker {
    fn master_exists(&self) -> bool {
        self.addrs.contains_key(&MASTER_ID)
    }

    fn data(&self, broker_name: &str) -> BrokerData {
        BrokerData {
            cluster: self.cluster.clone(),
            broker_name: broker_name.to_owned(),
            broker_addrs: self.addrs.clone(),
            zone_name: self.zone_name.clone(),
            enable_acting_master: self.enable_acting_master,
        }
    }
}

fn name_ok(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

impl Routes {
    pub fn new() -> Routes {
        Routes::default()
    }

    // ---- brokers write ----

    /// REGISTER_BROKER. With `replace_topics`, topics of this broker name that the table does not name are removed
    /// (deleteTopicWithBrokerRegistration); by default it only adds and changes (R4).
    ///
    /// A registration that lost against a newer broker of the same id is a success that changes nothing.
    pub fn register(
        &mut self,
        registration: Registration,
        replace_topics: bool,
        connection: ConnectionId,
        now_ms: u64,
    ) -> Result<Registered, RegisterError> {
        let Registration { cluster, broker_name, broker_addr, broker_id, data_version, .. } = &registration;
        let broker_id = *broker_id;
        if ![cluster, broker_name, broker_addr].into_iter().all(|name| name_ok(name))
            || registration.ha_server_addr.len() > NAME_BYTES_MAX
            || registration.zone_name.as_ref().is_some_and(|zone| zone.len() > NAME_BYTES_MAX)
            || !registration.topics.iter().all(|(topic, _)| name_ok(topic))
        {
            return Err(RegisterError::BadName);
        }
        let known = self.brokers.get(broker_name);
        if known.is_some_and(|broker| broker.cluster != *cluster) {
            return Err(RegisterError::OtherCluster);
        }
        let holder = known.and_then(|broker| broker.addrs.get(&broker_id));
        if let Some(holder) = holder.filter(|holder| *holder != broker_addr)
            && let Some(live) = self.live.get(&(cluster.clone(), holder.clone()))
            && live.data_version.state_version > data_version.state_version
        {
            self.forget_address(cluster, broker_name, broker_addr);
            return Ok(Registered::default());
        }
        if holder.is_none() && registration.topics.len() == 1 {
            return Err(RegisterError::PartialBeforeFull);
        }
        let new_queues =
            registration.topics.iter().filter(|(topic, _)| !self.has_queues(topic, broker_name)).count();
        let key = (cluster.clone(), broker_addr.clone());
        if self.topic_queues + new_queues > TOPIC_QUEUES_MAX
            || (self.live.len() >= BROKERS_MAX && !self.live.contains_key(&key))
        {
            return Err(RegisterError::Full);
        }

        let first = holder.is_none();
        let version_changed = self.data_version_changed(cluster, broker_addr, data_version);
        let broker = self.brokers.entry(broker_name.clone()).or_insert_with(|| Broker {
            cluster: cluster.clone(),
            addrs: BTreeMap::new(),
            zone_name: None,
            enable_acting_master: false,
        });
        self.clusters.entry(cluster.clone()).or_default().insert(broker_name.clone());
        broker.zone_name = registration.zone_name.clone();
        broker.enable_acting_master = registration.enable_acting_master.unwrap_or(false);
        // An address that returns under another id has moved: a slave that became the master, say.
        broker.addrs.retain(|id, addr| addr != broker_addr || *id == broker_id);
        let replaced = broker.addrs.insert(broker_id, broker_addr.clone()).filter(|addr| addr != broker_addr);
        let is_master = broker_id == MASTER_ID;
        let is_prime_slave = !is_master
            && registration.enable_acting_master.is_some()
            && broker.addrs.first_key_value().is_some_and(|(id, _)| *id == broker_id);
        let read_only = is_prime_slave && broker.enable_acting_master;
        let master_addr = broker.addrs.get(&MASTER_ID).filter(|_| !is_master).cloned();
        if let Some(replaced) = replaced {
            self.forget_live_unless_used(cluster, &replaced);
        }

        if is_master || is_prime_slave {
            if replace_topics {
                let named: BTreeSet<&str> =
                    registration.topics.iter().map(|(topic, _)| topic.as_str()).collect();
                self.remove_queues(broker_name, |topic| !named.contains(topic));
            }
            for (topic, queues) in &registration.topics {
                if first || version_changed || !self.has_queues(topic, broker_name) {
                    let mut queues = *queues;
                    if read_only {
                        queues.perm &= !perm::WRITE;
                    }
                    self.set_queues(topic, broker_name, queues);
                }
            }
        }

        self.live.insert(
            key,
            Live {
                last_seen_ms: now_ms,
                timeout_ms: registration.heartbeat_timeout_ms.unwrap_or(BROKER_EXPIRY_MS),
                data_version: *data_version,
                ha_server_addr: registration.ha_server_addr.clone(),
                connection,
            },
        );
        let Some(master_addr) = master_addr else { return Ok(Registered::default()) };
        match self.live.get(&(cluster.clone(), master_addr.clone())) {
            Some(master) => Ok(Registered {
                ha_server_addr: Some(master.ha_server_addr.clone()),
                master_addr: Some(master_addr),
            }),
            None => Ok(Registered::default()),
        }
    }

    /// UNREGISTER_BROKER. False if the broker is unknown.
    pub fn unregister(&mut self, cluster: &str, broker_name: &str, broker_addr: &str) -> bool {
        self.forget_address(cluster, broker_name, broker_addr)
    }

    /// A sign of life (BROKER_HEARTBEAT, QUERY_DATA_VERSION). False if the broker is unknown.
    pub fn refresh(&mut self, cluster: &str, broker_addr: &str, now_ms: u64) -> bool {
        match self.live.get_mut(&(cluster.to_owned(), broker_addr.to_owned())) {
            Some(live) => {
                live.last_seen_ms = now_ms;
                true
            }
            None => false,
        }
    }

    /// Unregisters who registered through this connection, and has not registered through a newer one since.
    /// Returns their addresses.
    pub fn on_closed(&mut self, connection: ConnectionId) -> Vec<String> {
        self.forget_live(|live| live.connection == connection)
    }

    /// Unregisters who gave no sign of life for its time. Returns their addresses. The connection of such a broker
    /// stays: it may carry other brokers of the same process, and a late heartbeat is harmless.
    pub fn expire(&mut self, now_ms: u64) -> Vec<String> {
        self.forget_live(|live| live.last_seen_ms.saturating_add(live.timeout_ms) < now_ms)
    }

    fn forget_live(&mut self, is_gone: impl Fn(&Live) -> bool) -> Vec<String> {
        let gone: Vec<LiveKey> =
            self.live.iter().filter(|(_, live)| is_gone(live)).map(|(key, _)| key.clone()).collect();
        for (cluster, addr) in &gone {
            let names: Vec<String> = self
                .brokers
                .iter()
                .filter(|(_, broker)| broker.cluster == *cluster && broker.addrs.values().any(|a| a == addr))
                .map(|(name, _)| name.clone())
                .collect();
            for name in names {
                self.forget_address(cluster, &name, addr);
            }
        }
        gone.into_iter().map(|(_, addr)| addr).collect()
    }

    /// Removes one address; with the last address of a name its queues (R1, R2). False if it is not there.
    fn forget_address(&mut self, cluster: &str, broker_name: &str, broker_addr: &str) -> bool {
        let Some(broker) = self.brokers.get_mut(broker_name).filter(|broker| broker.cluster == cluster)
        else {
            return false;
        };
        let before = broker.addrs.len();
        broker.addrs.retain(|_, addr| addr != broker_addr);
        if broker.addrs.len() == before {
            return false;
        }
        let master_gone = !broker.master_exists();
        let acting = broker.enable_acting_master;
        let name_gone = broker.addrs.is_empty();
        self.forget_live_unless_used(cluster, broker_addr);
        if name_gone {
            self.brokers.remove(broker_name);
            if let Some(names) = self.clusters.get_mut(cluster) {
                names.remove(broker_name);
                if names.is_empty() {
                    self.clusters.remove(cluster);
                }
            }
            self.remove_queues(broker_name, |_| true);
        } else if acting && master_gone {
            for queues in self.topics.values_mut().filter_map(|by_broker| by_broker.get_mut(broker_name)) {
                queues.perm &= !perm::WRITE;
            }
        }
        true
    }

    /// Two names share an address only by mistake; the other one keeps its sign of life then (R3).
    fn forget_live_unless_used(&mut self, cluster: &str, addr: &str) {
        let uses = |broker: &Broker| broker.cluster == cluster && broker.addrs.values().any(|a| a == addr);
        if !self.brokers.values().any(uses) {
            self.live.remove(&(cluster.to_owned(), addr.to_owned()));
        }
    }

    fn has_queues(&self, topic: &str, broker_name: &str) -> bool {
        self.topics.get(topic).is_some_and(|by_broker| by_broker.contains_key(broker_name))
    }

    fn set_queues(&mut self, topic: &str, broker_name: &str, queues: Queues) {
        let by_broker = match self.topics.get_mut(topic) {
            Some(by_broker) => by_broker,
            None => self.topics.entry(topic.to_owned()).or_default(),
        };
        if by_broker.insert(broker_name.to_owned(), queues).is_none() {
            self.topic_queues += 1;
        }
    }

    fn remove_queues(&mut self, broker_name: &str, which: impl Fn(&str) -> bool) {
        let removed = &mut self.topic_queues;
        self.topics.retain(|topic, by_broker| {
            if which(topic) && by_broker.remove(broker_name).is_some() {
                *removed -= 1;
            }
            !by_broker.is_empty()
        });
    }

    // ---- administrators write ----

    /// REGISTER_TOPIC_IN_NAMESRV: queues of one topic, of brokers that are known. Stops at the first that is not,
    /// and at the limit. Returns how many were taken.
    pub fn register_topic(&mut self, topic: &str, queues: &[(String, Queues)]) -> usize {
        if !name_ok(topic) {
            return 0;
        }
        let mut taken = 0;
        for (broker_name, queues) in queues {
            if !self.brokers.contains_key(broker_name)
                || (self.topic_queues >= TOPIC_QUEUES_MAX && !self.has_queues(topic, broker_name))
            {
                break;
            }
            self.set_queues(topic, broker_name, *queues);
            taken += 1;
        }
        taken
    }

    /// DELETE_TOPIC_IN_NAMESRV, everywhere or on the brokers of one cluster.
    pub fn delete_topic(&mut self, topic: &str, cluster: Option<&str>) {
        let Some(by_broker) = self.topics.get_mut(topic) else { return };
        let before = by_broker.len();
        match cluster {
            None => by_broker.clear(),
            Some(cluster) => {
                let names = self.clusters.get(cluster);
                by_broker.retain(|name, _| !names.is_some_and(|names| names.contains(name)));
            }
        }
        self.topic_queues -= before - by_broker.len();
        if by_broker.is_empty() {
            self.topics.remove(topic);
        }
    }

    /// WIPE_WRITE_PERM_OF_BROKER: takes the write permission of every topic of a broker, until it registers with
    /// another data version. Returns how many topics it serves.
    pub fn wipe_write_perm(&mut self, broker_name: &str) -> usize {
        self.change_perm(broker_name, |before| before & !perm::WRITE)
    }

    /// ADD_WRITE_PERM_OF_BROKER: sets every topic of a broker to readable and writable. Returns how many.
    pub fn add_write_perm(&mut self, broker_name: &str) -> usize {
        self.change_perm(broker_name, |_| perm::READ | perm::WRITE)
    }

    fn change_perm(&mut self, broker_name: &str, change: impl Fn(i32) -> i32) -> usize {
        let mut count = 0;
        for queues in self.topics.values_mut().filter_map(|by_broker| by_broker.get_mut(broker_name)) {
            queues.perm = change(queues.perm);
            count += 1;
        }
        count
    }

    // ---- everyone reads ----

    /// The route of a topic (GET_ROUTEINFO_BY_TOPIC), `None` if nobody serves it. With `acting_master`, the slave
    /// with the smallest id stands in, read-only, where a broker allows it and has no master.
    pub fn route(&self, topic: &str, acting_master: bool) -> Option<TopicRouteData> {
        let by_broker = self.topics.get(topic)?;
        let mut route = TopicRouteData::default();
        for (broker_name, queues) in by_broker {
            let Some(broker) = self.brokers.get(broker_name) else { continue };
            let mut data = broker.data(broker_name);
            if acting_master
                && broker.enable_acting_master
                && !broker.master_exists()
                && queues.perm & perm::WRITE == 0
                && let Some((_, addr)) = data.broker_addrs.pop_first()
            {
                data.broker_addrs.insert(MASTER_ID, addr);
            }
            route.broker_datas.push(data);
            route.queue_datas.push(QueueData {
                broker_name: broker_name.clone(),
                read_queue_nums: queues.read_queue_nums,
                write_queue_nums: queues.write_queue_nums,
                perm: queues.perm,
                topic_sys_flag: queues.topic_sys_flag,
            });
        }
        (!route.broker_datas.is_empty()).then_some(route)
    }

    /// GET_BROKER_CLUSTER_INFO.
    pub fn cluster_info(&self) -> ClusterInfo {
        ClusterInfo {
            broker_addr_table: self.brokers.iter().map(|(name, b)| (name.clone(), b.data(name))).collect(),
            cluster_addr_table: self.clusters.clone(),
        }
    }

    /// The addresses of a broker name by id (GET_BROKER_MEMBER_GROUP); empty if unknown.
    pub fn member_group(&self, cluster: &str, broker_name: &str) -> BTreeMap<i64, String> {
        match self.brokers.get(broker_name).filter(|broker| broker.cluster == cluster) {
            Some(broker) => broker.addrs.clone(),
            None => BTreeMap::new(),
        }
    }

    /// The data version a broker registered with last.
    pub fn data_version(&self, cluster: &str, broker_addr: &str) -> Option<&DataVersion> {
        self.live.get(&(cluster.to_owned(), broker_addr.to_owned())).map(|live| &live.data_version)
    }

    /// Whether a broker with this data version has news for us. True for an unknown broker.
    pub fn data_version_changed(&self, cluster: &str, broker_addr: &str, version: &DataVersion) -> bool {
        self.data_version(cluster, broker_addr) != Some(version)
    }

    /// All topics.
    pub fn topics(&self) -> BTreeSet<String> {
        self.topics.keys().cloned().collect()
    }

    /// The topics some broker of this cluster serves.
    pub fn topics_of_cluster(&self, cluster: &str) -> BTreeSet<String> {
        let Some(names) = self.clusters.get(cluster) else { return BTreeSet::new() };
        let served = |by_broker: &BTreeMap<String, Queues>| by_broker.keys().any(|name| names.contains(name));
        self.topics
            .iter()
            .filter(|(_, by_broker)| served(by_broker))
            .map(|(topic, _)| topic.clone())
            .collect()
    }

    /// Names of clusters and brokers, which are topics as well, and the address of any one broker.
    pub fn system_topics(&self) -> (BTreeSet<String>, Option<String>) {
        let mut topics = BTreeSet::new();
        for (cluster, names) in &self.clusters {
            topics.insert(cluster.clone());
            topics.extend(names.iter().cloned());
        }
        let addr = self.brokers.values().find_map(|broker| broker.addrs.values().next().cloned());
        (topics, addr)
    }

    /// Topics by their unit flags. As everywhere in RocketMQ, the flags of the first broker stand for all.
    pub fn unit_topics(&self, which: UnitTopics) -> BTreeSet<String> {
        let matches = |flag: i32| {
            let (unit, unit_sub) = (flag & TOPIC_FLAG_UNIT != 0, flag & TOPIC_FLAG_UNIT_SUB != 0);
            match which {
                UnitTopics::Unit => unit,
                UnitTopics::UnitSub => unit_sub,
                UnitTopics::UnitSubNotUnit => unit_sub && !unit,
            }
        };
        let first_flag =
            |by_broker: &BTreeMap<String, Queues>| by_broker.values().next().map(|q| q.topic_sys_flag);
        self.topics
            .iter()
            .filter(|(_, by_broker)| first_flag(by_broker).is_some_and(matches))
            .map(|(topic, _)| topic.clone())
            .collect()
    }

    /// How many broker addresses and topics are known.
    pub fn counts(&self) -> (usize, usize) {
        (self.live.len(), self.topics.len())
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        for (name, broker) in &self.brokers {
            assert!(!broker.addrs.is_empty(), "R1: {name} has no address");
            let clusters = self.clusters.iter().filter(|(_, names)| names.contains(name)).count();
            assert_eq!(clusters, 1, "R1: clusters of {name}");
            assert!(self.clusters[&broker.cluster].contains(name), "R1: cluster of {name}");
            for addr in broker.addrs.values() {
                assert!(
                    self.live.contains_key(&(broker.cluster.clone(), addr.clone())),
                    "R3: {addr} is not live"
                );
            }
        }
        for names in self.clusters.values() {
            assert!(
                !names.is_empty() && names.iter().all(|name| self.brokers.contains_key(name)),
                "R1: {names:?}"
            );
        }
        for (topic, by_broker) in &self.topics {
            assert!(!by_broker.is_empty(), "R2: {topic} has no queues");
            assert!(
                by_broker.keys().all(|name| self.brokers.contains_key(name)),
                "R2: {topic} has unknown brokers"
            );
        }
        assert_eq!(self.topic_queues, self.topics.values().map(BTreeMap::len).sum::<usize>(), "R5: count");
        for (cluster, addr) in self.live.keys() {
            let known = |b: &Broker| b.cluster == *cluster && b.addrs.values().any(|a| a == addr);
            assert!(self.brokers.values().any(known), "R3: {addr} is live but has no broker");
        }
    }
}

#[cfg(test)]
mod tests;
