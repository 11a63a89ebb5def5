//! A server for tests: answers every request as a function says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use ringmq_protocol::body::{
    Body, BrokerData, ConsumerListBody, HeartbeatData, LockBatchBody, LockBatchResult, QueueData,
    TopicRouteData,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Codec, FRAME_BYTES_MAX, Fields, RemotingCommand, Value, frame_len};
use ringmq_protocol::message::{MessageParts, encode_into, encoded_len};
use ringmq_protocol::name::is_retry_topic;
use ringmq_protocol::properties;
use ringmq_protocol::request::{OffsetResponse, PullMessageResponse};
use ringmq_protocol::types::{
    BornTimestamp, Opaque, PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, SysFlag,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::client::lock;

type Answer = Arc<dyn Fn(&RemotingCommand) -> Vec<RemotingCommand> + Send + Sync>;

/// Ends with its value.
pub(crate) struct FakeServer {
    address: SocketAddr,
    received: Arc<Mutex<Vec<RemotingCommand>>>,
    connections: Arc<Mutex<usize>>,
    accepting: JoinHandle<()>,
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl FakeServer {
    pub(crate) async fn start(
        answer: impl Fn(&RemotingCommand) -> Vec<RemotingCommand> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let answer: Answer = Arc::new(answer);
        let (received, connections) = (Arc::new(Mutex::default()), Arc::new(Mutex::new(0)));
        let (log, count) = (received.clone(), connections.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *lock(&count) += 1;
                tokio::spawn(serve(stream, answer.clone(), log.clone()));
            }
        });
        Self { address, received, connections, accepting }
    }

    pub(crate) fn address(&self) -> Arc<str> {
        self.address.to_string().into()
    }

    pub(crate) fn connections(&self) -> usize {
        *lock(&self.connections)
    }

    /// What the client answered to [`ask`], so far.
    pub(crate) fn answers(&self) -> Vec<RemotingCommand> {
        lock(&self.received).iter().filter(|command| command.is_response()).cloned().collect()
    }

    /// Requests with this code, so far.
    pub(crate) fn received(&self, code: RequestCode) -> Vec<RemotingCommand> {
        let is_wanted = |request: &&RemotingCommand| request.code == code.0 && !request.is_response();
        lock(&self.received).iter().filter(is_wanted).cloned().collect()
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, log: Arc<Mutex<Vec<RemotingCommand>>>) {
    let mut buffer = BytesMut::new();
    while stream.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        while let Some(length) = frame_len(&buffer, FRAME_BYTES_MAX).expect("frames") {
            if length > buffer.len() {
                break;
            }
            let request = RemotingCommand::decode(&buffer.split_to(length).freeze()).expect("a frame");
            lock(&log).push(request.clone());
            let mut out = Vec::new();
            answer(&request).iter().for_each(|response| response.encode(Codec::Json, &mut out));
            if stream.write_all(&out).await.is_err() {
                return;
            }
        }
    }
}

/// A request of the server itself, sent beside the answer to a request of the client.
pub(crate) fn ask(code: RequestCode, fields: &dyn Fields, body: impl Into<Bytes>) -> RemotingCommand {
    let mut question = RemotingCommand::request(code, fields, body);
    question.opaque = Opaque(-7);
    question
}

/// A response to `request`.
pub(crate) fn respond(
    request: &RemotingCommand,
    code: ResponseCode,
    fields: &dyn Fields,
    body: impl Into<Bytes>,
) -> Vec<RemotingCommand> {
    vec![RemotingCommand::response(code, request.opaque, None, fields, body)]
}

/// The route of a topic with one queue on each broker.
pub(crate) fn route_data(brokers: &[(&str, Arc<str>)]) -> TopicRouteData {
    let broker = |(name, address): &(&str, Arc<str>)| BrokerData {
        broker_addrs: [(0, address.to_string())].into(),
        broker_name: name.to_string(),
        ..BrokerData::default()
    };
    let queue = |(name, _): &(&str, Arc<str>)| QueueData {
        broker_name: name.to_string(),
        perm: 6,
        read_queue_nums: 1,
        write_queue_nums: 1,
        topic_sys_flag: 0,
    };
    TopicRouteData {
        broker_datas: brokers.iter().map(broker).collect(),
        queue_datas: brokers.iter().map(queue).collect(),
        ..TopicRouteData::default()
    }
}

/// A name server that gives every topic but retry topics the same route.
pub(crate) async fn name_server(brokers: &[(&str, Arc<str>)]) -> FakeServer {
    let route = route_data(brokers).to_json();
    FakeServer::start(move |request| match request.ext("topic") {
        Some(topic) if topic.starts_with("Unknown") => {
            respond(request, ResponseCode::TOPIC_NOT_EXIST, &(), Bytes::new())
        }
        _ => respond(request, ResponseCode::SUCCESS, &(), route.clone()),
    })
    .await
}

/// A broker whose topics other than retry topics have these bodies in queue 0, and that holds every pull beyond.
/// The client that sends heartbeats is the only member of its group, which has the offsets that it stored.
pub(crate) async fn group_broker(bodies: &'static [&'static str], send_back: ResponseCode) -> FakeServer {
    group_broker_but(bodies, send_back, |_| None).await
}

/// The same, but for the requests that `other` answers.
pub(crate) async fn group_broker_but(
    bodies: &'static [&'static str],
    send_back: ResponseCode,
    other: impl Fn(&RemotingCommand) -> Option<Vec<RemotingCommand>> + Send + Sync + 'static,
) -> FakeServer {
    let member: Mutex<String> = Mutex::default();
    let offsets: Mutex<BTreeMap<String, i64>> = Mutex::default();
    FakeServer::start(move |request| {
        if let Some(answer) = other(request) {
            return answer;
        }
        if request.is_response() {
            return Vec::new();
        }
        let success =
            |fields: &dyn Fields, body: Vec<u8>| respond(request, ResponseCode::SUCCESS, fields, body);
        let is_retry = request.ext("topic").is_some_and(is_retry_topic);
        let end = if is_retry { 0 } else { bodies.len() };
        match RequestCode(request.code) {
            RequestCode::HEART_BEAT => {
                let heartbeat = HeartbeatData::from_json(&request.body).expect("a heartbeat");
                *lock(&member) = heartbeat.client_id;
                success(&(), Vec::new())
            }
            RequestCode::GET_CONSUMER_LIST_BY_GROUP => {
                let consumer_id_list = vec![lock(&member).clone()];
                success(&(), ConsumerListBody { consumer_id_list }.to_json())
            }
            RequestCode::QUERY_CONSUMER_OFFSET => {
                match lock(&offsets).get(request.ext("topic").expect("a topic")) {
                    Some(offset) => success(&OffsetResponse { offset: *offset }, Vec::new()),
                    None => respond(request, ResponseCode::QUERY_NOT_FOUND, &(), ""),
                }
            }
            RequestCode::UPDATE_CONSUMER_OFFSET => {
                let topic = request.ext("topic").expect("a topic").to_string();
                let offset =
                    request.ext("commitOffset").and_then(|text| text.parse().ok()).expect("an offset");
                lock(&offsets).insert(topic, offset);
                if request.is_oneway() { Vec::new() } else { success(&(), Vec::new()) }
            }
            RequestCode::GET_MAX_OFFSET => success(&OffsetResponse { offset: end as i64 }, Vec::new()),
            RequestCode::GET_MIN_OFFSET => success(&OffsetResponse { offset: 0 }, Vec::new()),
            RequestCode::PULL_MESSAGE => {
                let from: usize =
                    request.ext("queueOffset").and_then(|text| text.parse().ok()).expect("an offset");
                if from >= end {
                    return Vec::new();
                }
                let body =
                    (from..end).flat_map(|at| record(request.ext("topic").expect("a topic"), at, bodies[at]));
                let fields = PullMessageResponse {
                    suggest_which_broker_id: 0,
                    next_begin_offset: end as i64,
                    min_offset: 0,
                    max_offset: end as i64,
                    offset_delta: None,
                    topic_sys_flag: None,
                    group_sys_flag: None,
                    forbidden_type: None,
                };
                success(&fields, body.collect())
            }
            RequestCode::LOCK_BATCH_MQ => {
                let asked = LockBatchBody::from_json(&request.body).expect("queues to lock");
                success(&(), LockBatchResult { lock_ok_mq_set: asked.mq_set }.to_json())
            }
            RequestCode::CONSUMER_SEND_MSG_BACK => respond(request, send_back, &(), ""),
            RequestCode::SEND_MESSAGE_V2 => {
                let fields =
                    [("msgId", Value::Str("id")), ("queueId", Value::I32(0)), ("queueOffset", Value::I64(0))];
                success(&fields, Vec::new())
            }
            _ if request.is_oneway() => Vec::new(),
            _ => success(&(), Vec::new()),
        }
    })
    .await
}

/// A stored message; its body is also its tag.
pub(crate) fn record(topic: &str, at: usize, body: &str) -> Vec<u8> {
    stored(topic, &[(properties::names::TAGS, body)], at, StoreTimestamp(2), body)
}

/// A stored message of queue 0.
pub(crate) fn stored(
    topic: &str,
    properties: &[(&str, &str)],
    at: usize,
    stored: StoreTimestamp,
    body: &str,
) -> Vec<u8> {
    let host = SocketAddr::from(([127, 0, 0, 1], 10911));
    let properties = properties::encode(properties.iter().copied()).expect("properties");
    let parts = MessageParts {
        topic,
        queue_id: QueueId(0),
        flag: 0,
        sys_flag: SysFlag(0),
        born_timestamp: BornTimestamp(1),
        born_host: host,
        store_host: host,
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        body: body.as_bytes(),
        properties: &[&properties],
    };
    let mut record = vec![0; encoded_len(&parts)];
    let position = PhysicalOffset(1000 * at as u64);
    encode_into(&parts, QueueOffset(at as u64), position, stored, &mut record);
    record
}
