//! What can go wrong, one small enum per operation.
//!
//! Every error that came from a server names its address, the code with RocketMQ's name for it, and the remark.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringmq_protocol::body::MessageQueue;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::name::NameError;

/// One request to one server did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection could be made.
    #[error("cannot connect to {address}: {source}")]
    Connect { address: Arc<str>, source: Arc<io::Error> },
    /// The connection was lost before the answer came: the request may have been carried out or not.
    #[error("{address}: connection lost before {request} was answered: {reason}")]
    Lost { address: Arc<str>, request: &'static str, reason: Arc<str> },
    /// No answer in time: the request may have been carried out or not. The connection lives on.
    #[error("{address}: {request} was not answered in {} ms", .after.as_millis())]
    Timeout { address: Arc<str>, request: &'static str, after: Duration },
    /// The server answered with a code other than success.
    #[error("{address} answered {request} with {} ({}){}", .code.0, .code.name(), remark_suffix(.remark))]
    Refused { address: Arc<str>, request: &'static str, code: ResponseCode, remark: String },
    /// The server answered something that cannot be read.
    #[error("{address}: the answer to {request} cannot be read: {problem}")]
    Malformed { address: Arc<str>, request: &'static str, problem: String },
}

impl RequestError {
    /// The response code, if a server refused.
    pub fn code(&self) -> Option<ResponseCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the transport failed, as opposed to a server that said no.
    pub fn is_transport(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Lost { .. } | Self::Timeout { .. })
    }

    /// The server the request went to.
    pub fn address(&self) -> &str {
        match self {
            Self::Connect { address, .. }
            | Self::Lost { address, .. }
            | Self::Timeout { address, .. }
            | Self::Refused { address, .. }
            | Self::Malformed { address, .. } => address,
        }
    }
}

fn remark_suffix(remark: &str) -> String {
    let remark = remark.trim();
    if remark.is_empty() { String::new() } else { format!(": {remark}") }
}

/// The client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no name server address in {0:?}; give host:port, several separated by ';'")]
    NoNameServer(String),
    #[error("{0:?} is not a name server address; give host:port")]
    NameServerAddress(String),
    #[error("the client must be built inside a tokio runtime")]
    NoRuntime,
    #[error(transparent)]
    Group(#[from] NameError),
    #[error("compression level {0} does not exist; levels are 0 to 9")]
    CompressionLevel(u32),
    #[error(
        "a linger of {} ms leaves nothing of the send timeout of {} ms; make it shorter",
        .linger.as_millis(),
        .send_timeout.as_millis()
    )]
    Linger { linger: Duration, send_timeout: Duration },
}

/// The way to a topic is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RouteError {
    /// No name server answered; the last one tried says why.
    #[error("no name server answered: {0}")]
    NameServers(#[source] RequestError),
    /// The name servers know no such topic.
    #[error("topic {topic} does not exist (name server {address} has no route for it)")]
    TopicNotExist { topic: String, address: Arc<str> },
    /// The topic exists, but no broker of it can do what is asked.
    #[error("topic {topic} has no {wanted} queue")]
    NoQueue { topic: String, wanted: &'static str },
    /// The broker is in no route the client knows.
    #[error("broker {0} is in no route; is it registered with the name server?")]
    UnknownBroker(String),
}

/// A message was not (known to be) stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    #[error("the message is refused before sending: {0}")]
    Illegal(String),
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The last attempt failed so; `attempts` were made.
    #[error("{source} (attempt {attempts} of at most {attempts_max})")]
    Failed { source: RequestError, attempts: u32, attempts_max: u32 },
    /// With batching: its turn did not come in time, and nothing of it was sent.
    #[error("not sent: its turn did not come within {} ms", .0.as_millis())]
    Expired(Duration),
    /// With batching: a message before it in its queue was not (known to be) stored, and so nothing of it was sent.
    #[error("not sent, as a message before it in queue {} of {} failed: {source}", .queue.queue_id, .queue.broker_name)]
    Behind { queue: MessageQueue, source: Arc<SendError> },
    /// With batching: the runtime that was to send it ended; it may have been stored or not.
    #[error("the runtime ended before the outcome was known")]
    Stopped,
}

impl SendError {
    /// Whether sending the same message again can help: the network or the broker was at fault, not the message.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Route(RouteError::TopicNotExist { .. }) | Self::Illegal(_) | Self::Stopped => false,
            Self::Route(_) | Self::Expired(_) | Self::Behind { .. } => true,
            Self::Failed { source, .. } => crate::retry::is_retryable(source),
        }
    }
}

/// A consumer could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("queue {0} is not assigned to this consumer")]
    NotAssigned(String),
    #[error("the consumer is shut down")]
    ShutDown,
    /// The offsets of a broadcasting consumer cannot be read.
    #[error("offset file {}: {source}", .path.display())]
    OffsetFile { path: PathBuf, source: io::Error },
}

impl AdminError {
    /// The response code, if a server refused.
    pub fn code(&self) -> Option<ResponseCode> {
        match self {
            Self::Request(error) | Self::Route(RouteError::NameServers(error)) => error.code(),
            _ => None,
        }
    }
}

/// An administrative request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{0}")]
    Illegal(String),
}
