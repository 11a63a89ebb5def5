//! One question, one answer, on a connection for that alone: what has to be known before the load.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringmq_protocol::body::{Body, ClusterInfo, MASTER_ID, TopicRouteData, perm};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Codec, FRAME_BYTES_MAX, Fields, FrameError, RemotingCommand, frame_len};
use ringmq_protocol::name::AUTO_CREATE_TOPIC_KEY_TOPIC;
use ringmq_protocol::request::{CreateTopicRequest, GetRouteInfoRequest};
use thiserror::Error;

/// For connecting, and for each read and write.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long name servers may take to learn of a new topic: brokers of other makes tell them at their leisure.
const ROUTE_WAIT: Duration = Duration::from_secs(35);
const ROUTE_POLL: Duration = Duration::from_millis(20);

/// Why a question was not answered.
#[derive(Debug, Error)]
pub(super) enum CallError {
    #[error("no name server is named")]
    NoNameServer,
    #[error("cannot reach {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("{address} did not answer {code}: {source}")]
    Lost { address: String, code: RequestCode, source: io::Error },
    #[error("what {address} answered to {code} is not understood: {problem}")]
    Malformed { address: String, code: RequestCode, problem: String },
    #[error("{address} refused {code}: {answer}{remark}")]
    Refused { address: String, code: RequestCode, answer: ResponseCode, remark: String },
    #[error("the cluster has no master on which topic {0} could be created")]
    NoMaster(String),
    #[error("topic {0} was created, but the name server does not give its route")]
    NoRoute(String),
}

impl From<CallError> for String {
    fn from(error: CallError) -> Self {
        error.to_string()
    }
}

/// Asks name servers and brokers.
pub(super) struct Caller {
    name_servers: Vec<String>,
    codec: Codec,
}

impl Caller {
    pub(super) fn new(name_servers: Vec<String>, codec: Codec) -> Self {
        Self { name_servers, codec }
    }

    /// The codec that the user asked for.
    pub(super) fn codec(&self) -> Codec {
        self.codec
    }

    /// The route of a topic, which is created on every master if it does not exist.
    pub(super) fn route_or_create(&self, topic: &str, queues: u32) -> Result<TopicRouteData, CallError> {
        if let Some(route) = self.route(topic)? {
            return Ok(route);
        }
        let masters = self.masters()?;
        if masters.is_empty() {
            return Err(CallError::NoMaster(topic.to_string()));
        }
        let queues = i32::try_from(queues).unwrap_or(i32::MAX);
        let request = CreateTopicRequest {
            topic: topic.into(),
            default_topic: AUTO_CREATE_TOPIC_KEY_TOPIC.into(),
            read_queue_nums: queues,
            write_queue_nums: queues,
            perm: perm::READ | perm::WRITE,
            topic_filter_type: "SINGLE_TAG".into(),
            topic_sys_flag: Some(0),
            order: false,
            attributes: None,
            force: false,
        };
        for (_, address) in &masters {
            self.ask(address, RequestCode::UPDATE_AND_CREATE_TOPIC, &request)?;
        }
        let deadline = Instant::now() + ROUTE_WAIT;
        while Instant::now() < deadline {
            if let Some(route) = self.route(topic)? {
                let has = |name: &str| route.queue_datas.iter().any(|queues| queues.broker_name == name);
                if masters.iter().all(|(name, _)| has(name)) {
                    return Ok(route);
                }
            }
            std::thread::sleep(ROUTE_POLL);
        }
        Err(CallError::NoRoute(topic.to_string()))
    }

    /// The route of a topic; `None` if there is no such topic.
    pub(super) fn route(&self, topic: &str) -> Result<Option<TopicRouteData>, CallError> {
        let code = RequestCode::GET_ROUTEINFO_BY_TOPIC;
        let request = GetRouteInfoRequest { topic: topic.into(), accept_standard_json_only: true };
        match self.ask_name_server(code, &request) {
            Ok((address, answer)) => TopicRouteData::from_json(&answer.body)
                .map(Some)
                .map_err(|problem| CallError::Malformed { address, code, problem: problem.to_string() }),
            Err(CallError::Refused { answer: ResponseCode::TOPIC_NOT_EXIST, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Name and address of every broker that takes messages.
    fn masters(&self) -> Result<Vec<(String, String)>, CallError> {
        let code = RequestCode::GET_BROKER_CLUSTER_INFO;
        let (address, answer) = self.ask_name_server(code, &())?;
        let cluster = ClusterInfo::from_json(&answer.body).map_err(|problem| CallError::Malformed {
            address,
            code,
            problem: problem.to_string(),
        })?;
        Ok(cluster
            .broker_addr_table
            .into_iter()
            .filter_map(|(name, mut broker)| Some((name, broker.broker_addrs.remove(&MASTER_ID)?)))
            .collect())
    }

    /// Asks the first name server that can be reached.
    fn ask_name_server(
        &self,
        code: RequestCode,
        fields: &dyn Fields,
    ) -> Result<(String, RemotingCommand), CallError> {
        let mut unreachable = CallError::NoNameServer;
        for address in &self.name_servers {
            match self.ask(address, code, fields) {
                Ok(answer) => return Ok((address.clone(), answer)),
                Err(error @ (CallError::Connect { .. } | CallError::Lost { .. })) => unreachable = error,
                Err(error) => return Err(error),
            }
        }
        Err(unreachable)
    }

    /// Asks one server; anything but success is an error.
    pub(super) fn ask(
        &self,
        address: &str,
        code: RequestCode,
        fields: &dyn Fields,
    ) -> Result<RemotingCommand, CallError> {
        let mut stream = connect(address)?;
        let mut request = Vec::new();
        RemotingCommand::request(code, fields, Bytes::new()).encode(self.codec, &mut request);
        let lost = |source| CallError::Lost { address: address.to_string(), code, source };
        let malformed = |problem: FrameError| CallError::Malformed {
            address: address.to_string(),
            code,
            problem: problem.to_string(),
        };
        stream.write_all(&request).map_err(lost)?;
        let mut answer = vec![0; 8];
        stream.read_exact(&mut answer).map_err(lost)?;
        let len = frame_len(&answer, FRAME_BYTES_MAX).map_err(malformed)?.unwrap_or(answer.len());
        answer.resize(len, 0);
        stream.read_exact(&mut answer[8..]).map_err(lost)?;
        let answer = RemotingCommand::decode(&answer.into()).map_err(malformed)?;
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => Ok(answer),
            refused => Err(CallError::Refused {
                address: address.to_string(),
                code,
                answer: refused,
                remark: answer.remark.map_or(String::new(), |remark| format!(": {}", first_line(&remark))),
            }),
        }
    }
}

/// Remarks of Java brokers go on with the stack.
pub(super) fn first_line(remark: &str) -> &str {
    remark.lines().next().unwrap_or_default()
}

/// Connects, trying every address of the host.
pub(super) fn connect(address: &str) -> Result<TcpStream, CallError> {
    let attempt = || {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for socket in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&socket, TIMEOUT) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(TIMEOUT))?;
                    stream.set_write_timeout(Some(TIMEOUT))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    attempt().map_err(|source| CallError::Connect { address: address.to_string(), source })
}
