//! What producers and consumers of a process share: name servers, routes, connections, heartbeats.
//!
//!   every 30 s   refresh the routes in use ─▶ heartbeat to every broker of them
//!   on connect   heartbeat first, so that a broker knows our groups before it sees their requests
//!   on demand    `route` (cached), `call` (a request to an address), `call_name_server`
//!
//! R1  one connection per address; callers that find none share one attempt and its outcome.
//! R2  after a failed attempt the next one waits, longer each time up to `BACKOFF_MAX`.
//! R3  a route that could not be refreshed stays for a while: a stale way is better than none, and while the brokers
//!     of a topic restart, name servers say that it does not exist.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringmq_protocol::body::{Body, ConsumerData, HeartbeatData, ProducerData, TopicRouteData};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Codec, RemotingCommand};
use ringmq_protocol::id::UniqueKeys;
use ringmq_protocol::name::AUTO_CREATE_TOPIC_KEY_TOPIC;
use ringmq_protocol::request::{GetRouteInfoRequest, UnregisterClientRequest};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout, timeout_at};

use crate::connection::{Call, Connection, ConnectionConfig};
use crate::error::{ConfigError, ConsumeError, RequestError, RouteError};
use crate::hook::{Hook, Hooks};
use crate::member::{ConsumerMember, Requests};
use crate::metrics::{Metrics, Registry};
use crate::route::TopicRoute;

/// Queues per broker asked for when a send creates its topic.
pub(crate) const NEW_TOPIC_QUEUES: u32 = 4;
/// A route taken from `TBW102` is soon replaced by the topic's own.
const DERIVED_ROUTE_AGE_MAX: Duration = Duration::from_secs(1);
/// A route that no name server knows any more is kept for so long: its brokers may only be restarting.
const ROUTE_KEPT: Duration = Duration::from_secs(300);
/// How long a shutdown waits for what is queued on a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Settings of a [`Client`]; the defaults are RocketMQ's.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    name_servers: String,
    request_timeout: Duration,
    connect_timeout: Duration,
    poll_interval: Duration,
    in_flight_max: usize,
    json: bool,
    unit: Option<String>,
    hooks: Hooks,
}

impl ClientBuilder {
    /// How long a request may take; 3 s unless set. Long polls and sends have their own limits.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long a connection attempt may take; 3 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often routes are refreshed and heartbeats sent; 30 s unless set. Brokers forget clients after 120 s.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(Duration::from_millis(10));
        self
    }

    /// Requests per connection that may wait for their answers; 1024 unless set. Further ones wait to be sent.
    pub fn in_flight_max(mut self, count: usize) -> Self {
        self.in_flight_max = count;
        self
    }

    /// Headers in JSON, for servers or proxies that do not read RocketMQ's binary headers.
    pub fn json_headers(mut self, json: bool) -> Self {
        self.json = json;
        self
    }

    /// A name that becomes part of the client id, for people who look at connection lists.
    pub fn unit_name(mut self, name: impl Into<String>) -> Self {
        self.unit = Some(name.into());
        self
    }

    /// Something to be called around every send and every handler.
    pub fn hook(mut self, hook: impl Hook) -> Self {
        self.hooks.0.push(Arc::new(hook));
        self
    }

    /// Makes the client and starts its background task. Connects to nothing yet.
    pub async fn build(self) -> Result<Client, ConfigError> {
        let name_servers = parse_name_servers(&self.name_servers)?;
        tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let ip = local_ip(&name_servers[0]).await;
        let inner = Arc::new_cyclic(|weak: &Weak<Inner>| Inner {
            id: client_id(ip, self.unit.as_deref()),
            unique_keys: Mutex::new(UniqueKeys::new(ip, std::process::id() as u16, rand::random())), // half, like Java
            name_servers,
            name_server_in_use: AtomicUsize::new(0),
            request_timeout: self.request_timeout,
            connection: ConnectionConfig {
                codec: if self.json { Codec::Json } else { Codec::RocketMq },
                in_flight_max: self.in_flight_max,
                connect_timeout: self.connect_timeout,
            },
            slots: Mutex::default(),
            routes: Mutex::default(),
            route_fetch: tokio::sync::Mutex::new(()),
            members: Mutex::default(),
            metrics: Registry::default(),
            hooks: self.hooks,
            background: tokio::spawn(maintain(weak.clone(), self.poll_interval)).abort_handle(),
            server_requests: Arc::new(Requests(weak.clone())),
        });
        Ok(Client { inner })
    }
}

/// Shared core of producers, consumers and the admin client. Cheap to clone.
///
/// Ends when [`Client::shutdown`] is called or all clones, producers and consumers are gone.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    id: String,
    unique_keys: Mutex<UniqueKeys>,
    name_servers: Vec<Arc<str>>,
    name_server_in_use: AtomicUsize,
    request_timeout: Duration,
    connection: ConnectionConfig,
    slots: Mutex<BTreeMap<Arc<str>, Arc<Slot>>>,
    routes: Mutex<BTreeMap<String, CachedRoute>>,
    route_fetch: tokio::sync::Mutex<()>,
    members: Mutex<Members>,
    metrics: Registry,
    hooks: Hooks,
    background: AbortHandle,
    server_requests: Arc<Requests>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.background.abort();
    }
}

#[derive(Clone)]
struct CachedRoute {
    route: Arc<TopicRoute>,
    fetched: Instant,
    /// Taken from `TBW102`; the topic does not exist yet.
    derived: bool,
}

#[derive(Default)]
struct Slot {
    attempts: AtomicU64,
    state: tokio::sync::Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    connection: Option<Connection>,
    failures: u32,
    retry_at: Option<Instant>,
    last_error: Option<RequestError>,
}

/// The groups of this client, as its heartbeats tell brokers.
#[derive(Default)]
struct Members {
    /// Producer group → how many producers of this client are in it.
    producers: BTreeMap<String, usize>,
    consumers: BTreeMap<String, Arc<ConsumerMember>>,
}

impl Client {
    /// `name_servers` is `host:port`, several separated by `;`.
    pub fn builder(name_servers: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            name_servers: name_servers.into(),
            request_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(3),
            poll_interval: Duration::from_secs(30),
            in_flight_max: 1024,
            json: false,
            unit: None,
            hooks: Hooks::default(),
        }
    }

    /// A client with the default settings.
    pub async fn new(name_servers: impl Into<String>) -> Result<Self, ConfigError> {
        Self::builder(name_servers).build().await
    }

    /// What brokers call this client.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// What this client sent and consumed since it was built.
    pub fn metrics(&self) -> Metrics {
        self.inner.metrics.snapshot()
    }

    /// Unregisters every group and closes every connection, after writing what was queued. Shut producers and
    /// consumers down before, as they have more to finish.
    pub async fn shutdown(&self) {
        self.inner.background.abort();
        let (producers, consumers) = {
            let members = self.members();
            let producers: Vec<String> = members.producers.keys().cloned().collect();
            let consumers: Vec<String> = members.consumers.keys().cloned().collect();
            (producers, consumers)
        };
        for group in producers {
            self.unregister(Some(&group), None).await;
        }
        for group in consumers {
            self.unregister(None, Some(&group)).await;
        }
        let slots = std::mem::take(&mut *lock(&self.inner.slots));
        for slot in slots.into_values() {
            let close = async {
                let connection = slot.state.lock().await.connection.take();
                if let Some(connection) = connection {
                    connection.close().await;
                }
            };
            // A server that does not read must not keep us.
            if timeout(CLOSE_TIMEOUT, close).await.is_err() {
                tracing::debug!("a connection was left to the operating system");
            }
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.metrics
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.inner.hooks
    }

    pub(crate) fn name_servers(&self) -> String {
        self.inner.name_servers.join(";")
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.inner.request_timeout
    }

    /// A new id for a message, unique among all clients.
    pub(crate) fn unique_key(&self) -> String {
        lock(&self.inner.unique_keys).next_key(now_ms()).to_string()
    }

    // ---- routes -------------------------------------------------------------------------------------------------

    /// The route of a topic that exists. A cached one is good enough if it was fetched after `newer_than`.
    pub(crate) async fn route(
        &self,
        topic: &str,
        newer_than: Option<Instant>,
    ) -> Result<Arc<TopicRoute>, RouteError> {
        self.find_route(topic, newer_than, false).await
    }

    /// The route for sending, which for an unknown topic is the one it will get when the first message makes it.
    pub(crate) async fn publish_route(
        &self,
        topic: &str,
        newer_than: Option<Instant>,
    ) -> Result<Arc<TopicRoute>, RouteError> {
        self.find_route(topic, newer_than, true).await
    }

    async fn find_route(
        &self,
        topic: &str,
        newer_than: Option<Instant>,
        derive: bool,
    ) -> Result<Arc<TopicRoute>, RouteError> {
        let cached = || {
            let cached = lock(&self.inner.routes).get(topic).cloned()?;
            let fresh = !cached.derived || cached.fetched.elapsed() < DERIVED_ROUTE_AGE_MAX;
            let usable = derive || !cached.derived;
            let new_enough = newer_than.is_none_or(|instant| cached.fetched >= instant);
            (fresh && usable && new_enough).then_some(cached.route)
        };
        if let Some(route) = cached() {
            return Ok(route);
        }
        // One at a time: whoever waited most likely finds what it wants in the cache.
        let _fetching = self.inner.route_fetch.lock().await;
        if let Some(route) = cached() {
            return Ok(route);
        }
        match self.fetch_route(topic, derive).await {
            Ok(fetched) => {
                let route = fetched.route.clone();
                self.store_route(fetched);
                Ok(route)
            }
            // R3
            Err(error) => match lock(&self.inner.routes).get(topic) {
                Some(stale) if derive || !stale.derived => Ok(stale.route.clone()),
                _ => Err(error),
            },
        }
    }

    /// Returns whether the route is news.
    fn store_route(&self, fetched: CachedRoute) -> bool {
        let mut routes = lock(&self.inner.routes);
        let topic = fetched.route.topic.clone();
        let changed = routes.get(&topic).is_none_or(|old| old.route != fetched.route);
        routes.insert(topic, fetched);
        changed
    }

    async fn fetch_route(&self, topic: &str, derive: bool) -> Result<CachedRoute, RouteError> {
        let fetched = Instant::now();
        match self.fetch_route_data(topic).await {
            Ok(data) => {
                Ok(CachedRoute { route: Arc::new(TopicRoute::new(topic, &data)), fetched, derived: false })
            }
            Err(error @ RouteError::TopicNotExist { .. }) if derive => {
                // Without the template the answer is that the topic does not exist.
                let data = self.fetch_route_data(AUTO_CREATE_TOPIC_KEY_TOPIC).await.map_err(|_| error)?;
                let route = TopicRoute::for_new_topic(topic, &data, NEW_TOPIC_QUEUES);
                Ok(CachedRoute { route: Arc::new(route), fetched, derived: true })
            }
            Err(error) => Err(error),
        }
    }

    async fn fetch_route_data(&self, topic: &str) -> Result<TopicRouteData, RouteError> {
        let request = GetRouteInfoRequest { topic: topic.into(), accept_standard_json_only: true };
        let call = Call::new(RequestCode::GET_ROUTEINFO_BY_TOPIC, &request);
        let (address, response) = self.call_name_server(&call).await?;
        let code = ResponseCode(response.code);
        if code == ResponseCode::TOPIC_NOT_EXIST {
            return Err(RouteError::TopicNotExist { topic: topic.to_string(), address });
        }
        let response = success(&address, call.code, response).map_err(RouteError::NameServers)?;
        TopicRouteData::from_json(&response.body)
            .map_err(|problem| RouteError::NameServers(malformed(&address, call.code, problem.to_string())))
    }

    /// Topics of a consumer that are unknown now are looked for again, so only known ones are refreshed.
    async fn refresh_routes(&self) {
        let topics: Vec<(String, bool)> =
            lock(&self.inner.routes).iter().map(|(topic, cached)| (topic.clone(), cached.derived)).collect();
        for (topic, derived) in topics {
            match self.fetch_route(&topic, derived).await {
                Ok(fetched) => {
                    if self.store_route(fetched) {
                        self.rebalance_all();
                    }
                }
                Err(error) => {
                    tracing::warn!(%topic, %error, "route not refreshed");
                    let is_gone = matches!(error, RouteError::TopicNotExist { .. });
                    let mut routes = lock(&self.inner.routes);
                    if is_gone && routes.get(&topic).is_some_and(|old| old.fetched.elapsed() > ROUTE_KEPT) {
                        routes.remove(&topic);
                    }
                }
            }
        }
    }

    pub(crate) fn forget_route(&self, topic: &str) {
        lock(&self.inner.routes).remove(topic);
    }

    fn broker_addresses(&self, masters_only: bool) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> = Vec::new();
        for cached in lock(&self.inner.routes).values() {
            for address in cached.route.addresses(masters_only) {
                if !all.contains(&address) {
                    all.push(address);
                }
            }
        }
        all
    }

    // ---- requests -----------------------------------------------------------------------------------------------

    /// A request to a broker; the answer may have any code.
    pub(crate) async fn call(
        &self,
        address: &Arc<str>,
        call: &Call<'_>,
        timeout: Duration,
    ) -> Result<RemotingCommand, RequestError> {
        self.call_until(address, call, Instant::now() + timeout, true).await
    }

    /// A request to a broker that must succeed.
    pub(crate) async fn ask(
        &self,
        address: &Arc<str>,
        call: &Call<'_>,
        timeout: Duration,
    ) -> Result<RemotingCommand, RequestError> {
        success(address, call.code, self.call(address, call, timeout).await?)
    }

    async fn call_until(
        &self,
        address: &Arc<str>,
        call: &Call<'_>,
        deadline: Instant,
        is_broker: bool,
    ) -> Result<RemotingCommand, RequestError> {
        let connection = self.connection(address, call.code, deadline, is_broker).await?;
        let response = connection.request(call, deadline).await?;
        if ResponseCode(response.code) != ResponseCode::GO_AWAY {
            return Ok(response);
        }
        // The server is about to stop and did nothing: once more, on a connection of whatever comes after it.
        connection.retire();
        let connection = self.connection(address, call.code, deadline, is_broker).await?;
        connection.request(call, deadline).await
    }

    pub(crate) async fn one_way(&self, address: &Arc<str>, call: &Call<'_>) -> Result<(), RequestError> {
        let deadline = Instant::now() + self.request_timeout();
        self.connection(address, call.code, deadline, true).await?.one_way(call).await
    }

    /// Asks the name server that answered last, then the others. The answer may have any code.
    pub(crate) async fn call_name_server(
        &self,
        call: &Call<'_>,
    ) -> Result<(Arc<str>, RemotingCommand), RouteError> {
        let count = self.inner.name_servers.len();
        let first = self.inner.name_server_in_use.load(Ordering::Relaxed);
        let mut attempt = 0;
        loop {
            let index = (first + attempt) % count;
            let address = &self.inner.name_servers[index];
            match self.call_until(address, call, Instant::now() + self.request_timeout(), false).await {
                Ok(response) => {
                    self.inner.name_server_in_use.store(index, Ordering::Relaxed);
                    return Ok((address.clone(), response));
                }
                Err(error) if attempt + 1 == count => return Err(RouteError::NameServers(error)),
                Err(error) => tracing::warn!(%error, "name server failed, trying the next"),
            }
            attempt += 1;
        }
    }

    /// A request to every name server, which know nothing of each other; the first failure is returned at the end.
    pub(crate) async fn ask_all_name_servers(&self, call: &Call<'_>) -> Result<(), RequestError> {
        let mut outcome = Ok(());
        for address in &self.inner.name_servers {
            let deadline = Instant::now() + self.request_timeout();
            let response = self.call_until(address, call, deadline, false).await;
            let response = response.and_then(|response| success(address, call.code, response));
            outcome = outcome.and(response.map(drop));
        }
        outcome
    }

    async fn connection(
        &self,
        address: &Arc<str>,
        code: RequestCode,
        deadline: Instant,
        is_broker: bool,
    ) -> Result<Connection, RequestError> {
        let begun = Instant::now();
        let slot = lock(&self.inner.slots).entry(address.clone()).or_default().clone();
        match timeout_at(deadline, self.connect(&slot, address, is_broker)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::Timeout {
                address: address.clone(),
                request: code.name(),
                after: begun.elapsed(),
            }),
        }
    }

    async fn connect(
        &self,
        slot: &Slot,
        address: &Arc<str>,
        is_broker: bool,
    ) -> Result<Connection, RequestError> {
        let attempts_seen = slot.attempts.load(Ordering::Acquire);
        let mut state = slot.state.lock().await;
        if let Some(connection) = state.connection.as_ref().filter(|connection| connection.is_usable()) {
            return Ok(connection.clone());
        }
        state.connection = None;
        // R1: an attempt that ended while we waited for the lock was ours too.
        if slot.attempts.load(Ordering::Acquire) != attempts_seen
            && let Some(error) = state.last_error.clone()
        {
            return Err(error);
        }
        if let Some(retry_at) = state.retry_at {
            sleep_until(retry_at).await;
        }
        let opened =
            Connection::open(address.clone(), self.inner.connection, self.inner.server_requests.clone())
                .await;
        slot.attempts.fetch_add(1, Ordering::AcqRel);
        match opened {
            Ok(connection) => {
                if is_broker {
                    self.introduce(&connection, address).await;
                }
                state.failures = 0;
                // A server that accepts and hangs up at once must not be hammered either.
                state.retry_at = Some(Instant::now() + BACKOFF_MIN);
                state.last_error = None;
                state.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let backoff = BACKOFF_MIN.saturating_mul(1 << state.failures.min(8)).min(BACKOFF_MAX);
                state.failures = state.failures.saturating_add(1);
                state.retry_at = Some(Instant::now() + backoff);
                state.last_error = Some(error.clone());
                Err(error)
            }
        }
    }

    // ---- groups and heartbeats ----------------------------------------------------------------------------------

    /// Tells a broker our groups before anything else goes over a new connection: it forgot them with the old one.
    async fn introduce(&self, connection: &Connection, address: &Arc<str>) {
        let Some(body) = self.heartbeat_body() else { return };
        let call = Call::new(RequestCode::HEART_BEAT, &()).body(body);
        let outcome = connection.request(&call, Instant::now() + self.request_timeout()).await;
        if let Err(error) = outcome.and_then(|response| success(address, call.code, response)) {
            tracing::warn!(%error, "heartbeat failed");
        }
    }

    fn heartbeat_body(&self) -> Option<Bytes> {
        let members = self.members();
        if members.producers.is_empty() && members.consumers.is_empty() {
            return None;
        }
        let producer = |group: &String| ProducerData { group_name: group.clone() };
        let consumer = |member: &Arc<ConsumerMember>| ConsumerData {
            group_name: member.group.clone(),
            consume_type: member.consume_type,
            message_model: member.message_model,
            consume_from_where: member.consume_from_where,
            subscription_data_set: member.subscriptions.clone(),
            unit_mode: false,
        };
        let data = HeartbeatData {
            client_id: self.inner.id.clone(),
            producer_data_set: members.producers.keys().map(producer).collect(),
            consumer_data_set: members.consumers.values().map(consumer).collect(),
            ..HeartbeatData::default()
        };
        Some(data.to_json().into())
    }

    /// Heartbeats to every broker of every route in use, at the same time.
    pub(crate) async fn heartbeat_all(&self) {
        let Some(body) = self.heartbeat_body() else { return };
        let masters_only = self.members().consumers.is_empty();
        let mut heartbeats = JoinSet::new();
        for address in self.broker_addresses(masters_only) {
            let (client, body) = (self.clone(), body.clone());
            heartbeats.spawn(async move {
                let call = Call::new(RequestCode::HEART_BEAT, &()).body(body);
                if let Err(error) = client.ask(&address, &call, client.request_timeout()).await {
                    tracing::warn!(%error, "heartbeat failed");
                }
            });
        }
        while heartbeats.join_next().await.is_some() {}
    }

    pub(crate) fn add_producer(&self, group: &str) {
        *self.members().producers.entry(group.to_string()).or_default() += 1;
    }

    pub(crate) async fn remove_producer(&self, group: &str) {
        let last = {
            let mut members = self.members();
            match members.producers.get_mut(group) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => members.producers.remove(group).is_some(),
            }
        };
        if last {
            self.unregister(Some(group), None).await;
        }
    }

    /// Makes a consumer a member of its group and tells the brokers of its topics; one that does not exist may appear later.
    ///
    /// # Errors
    /// If this client has a consumer in that group already: brokers could not tell the two apart.
    pub(crate) async fn join(&self, member: &Arc<ConsumerMember>) -> Result<(), ConsumeError> {
        match self.members().consumers.entry(member.group.clone()) {
            Entry::Occupied(_) => {
                let group = &member.group;
                return Err(ConsumeError::Config(format!("this client has a consumer in group {group}")));
            }
            Entry::Vacant(place) => place.insert(member.clone()),
        };
        // Routes first, as heartbeats go to the brokers of known routes.
        for subscription in &member.subscriptions {
            if let Err(error) = self.route(&subscription.topic, None).await {
                tracing::debug!(%error, "subscribed all the same");
            }
        }
        self.heartbeat_all().await;
        Ok(())
    }

    pub(crate) async fn remove_consumer(&self, group: &str) {
        if self.forget_consumer(group) {
            self.unregister(None, Some(group)).await;
        }
    }

    /// The same without telling the brokers, which notice when the connection closes.
    pub(crate) fn forget_consumer(&self, group: &str) -> bool {
        self.members().consumers.remove(group).is_some()
    }

    async fn unregister(&self, producer_group: Option<&str>, consumer_group: Option<&str>) {
        let mut requests = JoinSet::new();
        for address in self.broker_addresses(false) {
            let client = self.clone();
            let (producer, consumer) =
                (producer_group.map(str::to_string), consumer_group.map(str::to_string));
            requests.spawn(async move {
                let request = UnregisterClientRequest {
                    client_id: client.id().into(),
                    producer_group: producer.as_deref().map(Into::into),
                    consumer_group: consumer.as_deref().map(Into::into),
                };
                let call = Call::new(RequestCode::UNREGISTER_CLIENT, &request);
                // A broker that cannot be told notices by itself.
                if let Err(error) = client.ask(&address, &call, Duration::from_secs(1)).await {
                    tracing::debug!(%error, "not unregistered");
                }
            });
        }
        while requests.join_next().await.is_some() {}
    }

    /// The consumer of this client in a group.
    pub(crate) fn member(&self, group: &str) -> Option<Arc<ConsumerMember>> {
        self.members().consumers.get(group).cloned()
    }

    pub(crate) fn rebalance_all(&self) {
        for member in self.members().consumers.values() {
            member.rebalance.notify_one();
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        lock(&self.inner.members)
    }
}

async fn maintain(inner: Weak<Inner>, interval: Duration) {
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let client = Client { inner };
        client.refresh_routes().await;
        client.heartbeat_all().await;
    }
}

/// An answer with a code other than success becomes an error.
pub(crate) fn success(
    address: &Arc<str>,
    request: RequestCode,
    response: RemotingCommand,
) -> Result<RemotingCommand, RequestError> {
    match ResponseCode(response.code) {
        ResponseCode::SUCCESS => Ok(response),
        code => Err(RequestError::Refused {
            address: address.clone(),
            request: request.name(),
            code,
            remark: response.remark.unwrap_or_default(),
        }),
    }
}

pub(crate) fn malformed(address: &Arc<str>, request: RequestCode, problem: String) -> RequestError {
    RequestError::Malformed { address: address.clone(), request: request.name(), problem }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half changed under these locks, so a panic elsewhere does not spoil what they guard.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn parse_name_servers(text: &str) -> Result<Vec<Arc<str>>, ConfigError> {
    let mut addresses: Vec<Arc<str>> = Vec::new();
    for part in text.split([';', ',']).map(str::trim).filter(|part| !part.is_empty()) {
        let is_address = part
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if !is_address {
            return Err(ConfigError::NameServerAddress(part.to_string()));
        }
        if !addresses.iter().any(|known| **known == *part) {
            addresses.push(Arc::from(part));
        }
    }
    if addresses.is_empty() { Err(ConfigError::NoNameServer(text.to_string())) } else { Ok(addresses) }
}

/// The address this machine uses towards the name server, found without sending anything.
async fn local_ip(name_server: &str) -> IpAddr {
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let Ok(socket) = tokio::net::UdpSocket::bind(bind).await else { continue };
        if socket.connect(name_server).await.is_ok()
            && let Ok(local) = socket.local_addr()
        {
            return SocketAddr::ip(&local);
        }
    }
    Ipv4Addr::LOCALHOST.into()
}

/// `<ip>@<pid>#<random>[@<unit>]`: like Java's, unique per client and not per process.
fn client_id(ip: IpAddr, unit: Option<&str>) -> String {
    let unit = unit.map(|unit| format!("@{unit}")).unwrap_or_default();
    format!("{ip}@{}#{}{unit}", std::process::id(), rand::random::<u64>())
}

#[cfg(test)]
mod tests;
