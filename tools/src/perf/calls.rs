//! Questions and answers on connections for that alone: what has to be known before the load.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use ringmq_protocol::body::{Body, ClusterInfo, MASTER_ID, TopicRouteData};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{
    self, Codec, FRAME_BYTES_MAX, Fields, FrameError, Head, RemotingCommand, frame_len,
};
use ringmq_protocol::request::{CreateTopicRequest, GetRouteInfoRequest};
use ringmq_protocol::types::Opaque;
use thiserror::Error;

/// For connecting, and for each read and write.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long name servers may take to learn of a new topic: brokers of other makes tell them at their leisure.
const ROUTE_WAIT: Duration = Duration::from_secs(35);
const ROUTE_POLL: Duration = Duration::from_millis(20);
/// Few enough that their answers fit into the buffers of a socket while they are written.
const QUESTIONS_AT_A_TIME: usize = 100;

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

    /// The routes of topics, in their order. Those that do not exist are created on every master, many at a time.
    pub(super) fn routes_or_create(
        &self,
        topics: &[String],
        queues: u32,
    ) -> Result<Vec<TopicRouteData>, CallError> {
        let mut routes = self.routes(topics)?;
        let missing = |routes: &[Option<TopicRouteData>]| -> Vec<String> {
            let without = topics.iter().zip(routes).filter(|(_, route)| route.is_none());
            without.map(|(topic, _)| topic.clone()).collect()
        };
        let mut pending = missing(&routes);
        if !pending.is_empty() {
            let masters = self.masters()?;
            if masters.is_empty() {
                return Err(CallError::NoMaster(pending.swap_remove(0)));
            }
            for (_, address) in &masters {
                self.create(address, &pending, queues)?;
            }
            let is_complete = |route: &TopicRouteData| {
                let has = |name: &str| route.queue_datas.iter().any(|queues| queues.broker_name == name);
                masters.iter().all(|(name, _)| has(name))
            };
            let deadline = Instant::now() + ROUTE_WAIT;
            while !pending.is_empty() {
                let found = self.routes(&pending)?;
                let mut found = found.into_iter().map(|route| route.filter(is_complete));
                for route in routes.iter_mut().filter(|route| route.is_none()) {
                    *route = found.next().expect("one for each that is missing");
                }
                pending = missing(&routes);
                if !pending.is_empty() {
                    if Instant::now() >= deadline {
                        return Err(CallError::NoRoute(pending.swap_remove(0)));
                    }
                    std::thread::sleep(ROUTE_POLL);
                }
            }
        }
        Ok(routes.into_iter().flatten().collect())
    }

    /// Creates topics on one broker.
    fn create(&self, address: &str, topics: &[String], queues: u32) -> Result<(), CallError> {
        let queues = i32::try_from(queues).unwrap_or(i32::MAX);
        let requests = topics.iter().map(|topic| CreateTopicRequest::new(topic, queues));
        let code = RequestCode::UPDATE_AND_CREATE_TOPIC;
        for answer in self.ask_all(address, code, requests)? {
            accept(address, code, answer)?;
        }
        Ok(())
    }

    /// The route of a topic; `None` if there is no such topic.
    pub(super) fn route(&self, topic: &str) -> Result<Option<TopicRouteData>, CallError> {
        let mut routes = self.routes(&[topic.to_string()])?;
        Ok(routes.pop().expect("as many routes as topics"))
    }

    /// The routes of topics, in their order; `None` for a topic that does not exist.
    fn routes(&self, topics: &[String]) -> Result<Vec<Option<TopicRouteData>>, CallError> {
        let code = RequestCode::GET_ROUTEINFO_BY_TOPIC;
        let requests = topics.iter().map(|topic| GetRouteInfoRequest {
            topic: topic.as_str().into(),
            accept_standard_json_only: true,
        });
        let (address, answers) = self.ask_name_server(code, requests)?;
        let route = |answer| match accept(&address, code, answer) {
            Ok(answer) => match TopicRouteData::from_json(&answer.body) {
                Ok(route) => Ok(Some(route)),
                Err(problem) => {
                    let (address, problem) = (address.clone(), problem.to_string());
                    Err(CallError::Malformed { address, code, problem })
                }
            },
            Err(CallError::Refused { answer: ResponseCode::TOPIC_NOT_EXIST, .. }) => Ok(None),
            Err(error) => Err(error),
        };
        answers.into_iter().map(route).collect()
    }

    /// Name and address of every broker that takes messages.
    fn masters(&self) -> Result<Vec<(String, String)>, CallError> {
        let code = RequestCode::GET_BROKER_CLUSTER_INFO;
        let (address, mut answers) = self.ask_name_server(code, [()].into_iter())?;
        let answer = accept(&address, code, answers.pop().expect("one answer"))?;
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
    fn ask_name_server<F: Fields>(
        &self,
        code: RequestCode,
        questions: impl Iterator<Item = F> + Clone,
    ) -> Result<(String, Vec<RemotingCommand>), CallError> {
        let mut unreachable = CallError::NoNameServer;
        for address in &self.name_servers {
            match self.ask_all(address, code, questions.clone()) {
                Ok(answers) => return Ok((address.clone(), answers)),
                Err(error @ (CallError::Connect { .. } | CallError::Lost { .. })) => unreachable = error,
                Err(error) => return Err(error),
            }
        }
        Err(unreachable)
    }

    /// Asks one server; anything but success is an error.
    pub(super) fn ask<F: Fields>(
        &self,
        address: &str,
        code: RequestCode,
        question: F,
    ) -> Result<RemotingCommand, CallError> {
        let mut answers = self.ask_all(address, code, [question].into_iter())?;
        accept(address, code, answers.pop().expect("one answer"))
    }

    /// Asks one server on one connection, many questions at a time. Gives the answers, whatever they say, in the order of
    /// the questions.
    fn ask_all<F: Fields>(
        &self,
        address: &str,
        code: RequestCode,
        mut questions: impl Iterator<Item = F>,
    ) -> Result<Vec<RemotingCommand>, CallError> {
        let mut stream = connect(address)?;
        let lost = |source| CallError::Lost { address: address.to_string(), code, source };
        let malformed =
            |problem: String| CallError::Malformed { address: address.to_string(), code, problem };
        let mut answers = Vec::new();
        loop {
            let mut requests = Vec::new();
            let mut waiting = Vec::new();
            for (opaque, question) in (0..).zip(questions.by_ref().take(QUESTIONS_AT_A_TIME)) {
                frame::encode(&mut requests, &Head::request(self.codec, code, Opaque(opaque)), &question, 0);
                waiting.push(None);
            }
            if waiting.is_empty() {
                return Ok(answers);
            }
            stream.write_all(&requests).map_err(lost)?;
            for _ in 0..waiting.len() {
                let answer = receive(&mut stream).map_err(|error| match error {
                    Receive::Lost(source) => lost(source),
                    Receive::Malformed(problem) => malformed(problem.to_string()),
                })?;
                // Servers answer in any order.
                let place = usize::try_from(answer.opaque.0).ok().and_then(|place| waiting.get_mut(place));
                match place {
                    Some(place @ None) => *place = Some(answer),
                    _ => return Err(malformed("it answers what was not asked".to_string())),
                }
            }
            answers.extend(waiting.into_iter().flatten());
        }
    }
}

/// Why a frame was not received.
enum Receive {
    Lost(io::Error),
    Malformed(FrameError),
}

/// The next frame.
fn receive(stream: &mut TcpStream) -> Result<RemotingCommand, Receive> {
    let mut frame = vec![0; 8];
    stream.read_exact(&mut frame).map_err(Receive::Lost)?;
    let len = frame_len(&frame, FRAME_BYTES_MAX).map_err(Receive::Malformed)?.unwrap_or(frame.len());
    frame.resize(len, 0);
    stream.read_exact(&mut frame[8..]).map_err(Receive::Lost)?;
    RemotingCommand::decode(&frame.into()).map_err(Receive::Malformed)
}

/// The answer, if it says success.
fn accept(address: &str, code: RequestCode, answer: RemotingCommand) -> Result<RemotingCommand, CallError> {
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
