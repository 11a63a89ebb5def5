//! Tells the name servers which shards there are and which topics they have.
//!
//! Each name server has a task of its own with one connection, on which every shard is registered: as soon as it is
//! connected, every 30 s, and with a topic whenever one changes; and it is asked where topics are, for who asks a shard. Name servers forget a shard when the connection ends
//! and learn it again with the next.

use super::ShardLink;
use crate::driver::ToShard;
use bytes::{Bytes, BytesMut};
use ringmq_protocol::body::{
    Body, DataVersion, RegisterBrokerBody, TopicConfig, TopicConfigSerializeWrapper, TopicRouteData, perm,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{
    Codec, FRAME_BYTES_MAX, Fields, Language, RemotingCommand, VERSION_REPORTED, frame_len,
};
use ringmq_protocol::request::{GetRouteInfoRequest, RegisterBrokerRequest, UnregisterBrokerRequest};
use ringmq_protocol::types::Opaque;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// RocketMQ's `registerNameServerPeriod`.
const PERIOD: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// How long the creator of a topic waits for name servers that do not answer.
const TOPIC_PATIENCE: Duration = Duration::from_secs(2);
/// How long one name server is waited for when it is asked where a topic is, and all of them: clients wait 3 s.
const ROUTE_PATIENCE: Duration = Duration::from_secs(1);
const ROUTES_PATIENCE: Duration = Duration::from_secs(2);
/// Changes of topics that wait for one name server; beyond, it learns them with the next full registration.
const JOBS_MAX: usize = 1024;

/// What a name server is told of one shard.
struct Registered {
    topics: BTreeMap<String, TopicConfig>,
    version: DataVersion,
}

struct State {
    cluster_name: String,
    shards: Rc<[ShardLink]>,
    registered: RefCell<Vec<Registered>>,
}

/// Queues to read at each broker.
type Queues = Vec<(String, u32)>;

enum Job {
    /// Where is this topic?
    Route {
        topic: String,
        done: oneshot::Sender<Option<Queues>>,
    },
    /// Register these topics of a shard, besides what it has.
    Topic {
        shard: usize,
        config: TopicConfig,
        done: oneshot::Sender<()>,
    },
    Unregister {
        done: oneshot::Sender<()>,
    },
}

struct Link {
    address: String,
    jobs: mpsc::Sender<Job>,
    first_round: RefCell<Option<oneshot::Receiver<()>>>,
}

pub(super) struct Registrar {
    state: Rc<State>,
    links: Vec<Link>,
}

impl Registrar {
    pub(super) fn start(
        shards: &Rc<[ShardLink]>,
        name_servers: Vec<String>,
        cluster_name: String,
    ) -> Registrar {
        let registered = shards.iter().map(|shard| Registered {
            topics: shard.topics.iter().map(|config| (config.topic_name.clone(), config.clone())).collect(),
            version: next_version(0),
        });
        let state = Rc::new(State {
            cluster_name,
            shards: shards.clone(),
            registered: RefCell::new(registered.collect()),
        });
        let links = name_servers.into_iter().map(|address| {
            let (jobs, receiver) = mpsc::channel(JOBS_MAX);
            let (told, first_round) = oneshot::channel();
            tokio::task::spawn_local(keep_registered(state.clone(), address.clone(), receiver, told));
            Link { address, jobs, first_round: RefCell::new(Some(first_round)) }
        });
        Registrar { links: links.collect(), state: state.clone() }
    }

    /// Waits until every name server knows every shard, for a while. Answers those that do not.
    pub(super) async fn first_round(&self) -> Vec<String> {
        let deadline = Instant::now() + TOPIC_PATIENCE;
        let mut unreachable = Vec::new();
        for link in &self.links {
            let first_round = link.first_round.borrow_mut().take().expect("asked for once");
            if tokio::time::timeout_at(deadline, first_round).await.is_err() {
                unreachable.push(link.address.clone());
            }
        }
        unreachable
    }

    /// A topic of a shard is new or has changed. The shard is told once the name servers know.
    pub(super) fn topic_changed(&self, shard: usize, config: TopicConfig, ticket: Option<u64>) {
        {
            let registered = &mut self.state.registered.borrow_mut()[shard];
            registered.version = next_version(registered.version.counter + 1);
            registered.topics.insert(config.topic_name.clone(), config.clone());
        }
        let mut waiting = Vec::new();
        for link in &self.links {
            let (done, told) = oneshot::channel();
            if link.jobs.try_send(Job::Topic { shard, config: config.clone(), done }).is_ok() {
                waiting.push(told);
            }
        }
        if let Some(ticket) = ticket {
            let state = self.state.clone();
            tokio::task::spawn_local(async move {
                let all = async {
                    for told in waiting {
                        // A link that lost its connection drops the job: the next full registration has the topic.
                        let _ = told.await;
                    }
                };
                let _ = timeout(TOPIC_PATIENCE, all).await;
                state.shards[shard].tell(ToShard::Registered { ticket });
            });
        }
    }

    /// Asks where a topic is, one name server after the other, and tells the shard.
    pub(super) fn find_route(&self, shard: usize, topic: String, ticket: u64) {
        let links: Vec<mpsc::Sender<Job>> = self.links.iter().map(|link| link.jobs.clone()).collect();
        let state = self.state.clone();
        tokio::task::spawn_local(async move {
            let any = async {
                for link in links {
                    let (done, told) = oneshot::channel();
                    if link.try_send(Job::Route { topic: topic.clone(), done }).is_err() {
                        continue;
                    }
                    // One that has no such topic may not have been told yet.
                    if let Ok(Ok(Some(queues))) = timeout(ROUTE_PATIENCE, told).await {
                        return Some(queues);
                    }
                }
                None
            };
            let queues = timeout(ROUTES_PATIENCE, any).await.unwrap_or_default();
            state.shards[shard].tell(ToShard::Route { ticket, queues });
        });
    }

    /// A topic of a shard is gone. RocketMQ's name servers are told by whoever deletes it; here it is left out of
    /// what is registered from now on.
    pub(super) fn topic_deleted(&self, shard: usize, topic: &str) {
        let registered = &mut self.state.registered.borrow_mut()[shard];
        registered.version = next_version(registered.version.counter + 1);
        registered.topics.remove(topic);
    }

    /// Takes the shards out of the routes.
    pub(super) async fn unregister(&self) {
        let mut waiting = Vec::new();
        for link in &self.links {
            let (done, told) = oneshot::channel();
            if link.jobs.try_send(Job::Unregister { done }).is_ok() {
                waiting.push(told);
            }
        }
        let all = async {
            for told in waiting {
                let _ = told.await;
            }
        };
        let _ = timeout(Duration::from_secs(1), all).await;
    }
}

/// The life of one name server's task: connect, register all, then periods and jobs; and again from the start.
async fn keep_registered(
    state: Rc<State>,
    address: String,
    mut jobs: mpsc::Receiver<Job>,
    told: oneshot::Sender<()>,
) {
    let mut told = Some(told);
    let mut is_known_bad = false;
    loop {
        let ended = async {
            let mut connection = Connection::open(&address).await?;
            serve_connection(&state, &mut connection, &mut jobs, &mut told, &mut is_known_bad, &address).await
        };
        match ended.await {
            Ok(()) => return,
            Err(error) if !is_known_bad => {
                is_known_bad = true;
                tracing::warn!("name server {address}: {error}; will try again every second");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve_connection(
    state: &State,
    connection: &mut Connection,
    jobs: &mut mpsc::Receiver<Job>,
    told: &mut Option<oneshot::Sender<()>>,
    is_known_bad: &mut bool,
    address: &str,
) -> io::Result<()> {
    loop {
        for shard in 0..state.shards.len() {
            let body = state.register_body(shard, None);
            state.register(connection, shard, body).await?;
        }
        if let Some(told) = told.take() {
            let _ = told.send(());
        }
        if std::mem::take(is_known_bad) {
            tracing::info!("name server {address}: registered again");
        }
        let next_round = Instant::now() + PERIOD;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next_round) => break,
                job = jobs.recv() => match job {
                    Some(Job::Topic { shard, config, done }) => {
                        let body = state.register_body(shard, Some(config));
                        state.register(connection, shard, body).await?;
                        let _ = done.send(());
                    }
                    Some(Job::Route { topic, done }) => {
                        let _ = done.send(connection.route(&topic).await?);
                    }
                    Some(Job::Unregister { done }) => {
                        for shard in 0..state.shards.len() {
                            state.unregister(connection, shard).await?;
                        }
                        let _ = done.send(());
                        return Ok(());
                    }
                    None => return Ok(()),
                },
                // A name server says nothing unasked: this is the end of the connection.
                closed = connection.closed() => return Err(closed),
            }
        }
    }
}

impl State {
    /// All topics of a shard, or one that changed.
    fn register_body(&self, shard: usize, changed: Option<TopicConfig>) -> RegisterBrokerBody {
        let registered = &self.registered.borrow()[shard];
        let topics = match changed {
            Some(config) => [(config.topic_name.clone(), config)].into(),
            None => registered.topics.clone(),
        };
        RegisterBrokerBody {
            filter_server_list: Vec::new(),
            topic_config_serialize_wrapper: TopicConfigSerializeWrapper {
                data_version: registered.version,
                topic_config_table: topics,
            },
        }
    }

    async fn register(
        &self,
        connection: &mut Connection,
        shard: usize,
        body: RegisterBrokerBody,
    ) -> io::Result<()> {
        let of = &self.shards[shard];
        let address = of.address.to_string();
        let request = RegisterBrokerRequest {
            broker_name: Cow::Borrowed(&of.broker_name),
            broker_addr: Cow::Borrowed(&address),
            cluster_name: Cow::Borrowed(&self.cluster_name),
            // There is no replication, and so nothing that listens there.
            ha_server_addr: Cow::Borrowed(&address),
            broker_id: 0,
            heartbeat_timeout_millis: None,
            enable_acting_master: Some(false),
            compressed: false,
            body_crc32: 0,
            zone_name: None,
        };
        connection.call(RequestCode::REGISTER_BROKER, &request, body.to_json().into()).await
    }

    async fn unregister(&self, connection: &mut Connection, shard: usize) -> io::Result<()> {
        let of = &self.shards[shard];
        let address = of.address.to_string();
        let request = UnregisterBrokerRequest {
            broker_name: Cow::Borrowed(&of.broker_name),
            broker_addr: Cow::Borrowed(&address),
            cluster_name: Cow::Borrowed(&self.cluster_name),
            broker_id: 0,
        };
        connection.call(RequestCode::UNREGISTER_BROKER, &request, Bytes::new()).await
    }
}

fn next_version(counter: i64) -> DataVersion {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    DataVersion { state_version: 0, timestamp: now.as_millis() as i64, counter }
}

/// One connection to a name server, one call at a time.
struct Connection {
    stream: TcpStream,
    received: BytesMut,
    opaque: i32,
}

impl Connection {
    async fn open(address: &str) -> io::Result<Connection> {
        let stream = timeout(CALL_PATIENCE, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, received: BytesMut::new(), opaque: 0 })
    }

    /// Sends a request and waits for its success.
    async fn call(&mut self, code: RequestCode, fields: &dyn Fields, body: Bytes) -> io::Result<()> {
        let answer = self.ask(code, fields, body).await?;
        if answer.code == ResponseCode::SUCCESS.0 {
            return Ok(());
        }
        let remark = answer.remark.unwrap_or_default();
        Err(io::Error::other(format!("{code} was refused with {}: {remark}", ResponseCode(answer.code))))
    }

    /// The queues of a topic that may be read; `None` if this name server knows of none.
    async fn route(&mut self, topic: &str) -> io::Result<Option<Queues>> {
        let request = GetRouteInfoRequest { topic: topic.into(), accept_standard_json_only: true };
        let answer = self.ask(RequestCode::GET_ROUTEINFO_BY_TOPIC, &request, Bytes::new()).await?;
        if answer.code != ResponseCode::SUCCESS.0 {
            return Ok(None);
        }
        let route = TopicRouteData::from_json(&answer.body).map_err(io::Error::other)?;
        let readable = route.queue_datas.into_iter().filter(|queues| queues.perm & perm::READ != 0);
        Ok(Some(readable.map(|queues| (queues.broker_name, queues.read_queue_nums)).collect()))
    }

    /// Sends a request and waits for its answer.
    async fn ask(
        &mut self,
        code: RequestCode,
        fields: &dyn Fields,
        body: Bytes,
    ) -> io::Result<RemotingCommand> {
        self.opaque = self.opaque.wrapping_add(1);
        let mut command = RemotingCommand::request(code, fields, body);
        command.opaque = Opaque(self.opaque);
        command.language = Language::Rust;
        command.version = VERSION_REPORTED;
        let mut frame = Vec::new();
        command.encode(Codec::Json, &mut frame);
        let answer = timeout(CALL_PATIENCE, async {
            self.stream.write_all(&frame).await?;
            loop {
                let answer = self.read_frame().await?;
                if answer.opaque == command.opaque {
                    return io::Result::Ok(answer);
                }
            }
        });
        answer.await.map_err(|_| io::Error::other(format!("no answer to {code}")))?
    }

    async fn read_frame(&mut self) -> io::Result<RemotingCommand> {
        loop {
            let len = frame_len(&self.received, FRAME_BYTES_MAX).map_err(io::Error::other)?;
            if let Some(len) = len.filter(|len| *len <= self.received.len()) {
                let frame = self.received.split_to(len).freeze();
                return RemotingCommand::decode(&frame).map_err(io::Error::other);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }

    /// Waits for the end of the connection.
    async fn closed(&mut self) -> io::Error {
        let mut byte = [0];
        match self.stream.read(&mut byte).await {
            Ok(0) => io::ErrorKind::ConnectionReset.into(),
            Ok(_) => io::Error::other("it sent something that was not asked for"),
            Err(error) => error,
        }
    }
}
