//! One TCP connection to one server, with many requests in flight.
//!
//!   request ─▶ encode ─▶ queue ─▶ writer task ══▶ server ══▶ reader task ─▶ the request with that opaque
//!                                                               └▶ requests of the server itself ─▶ `ServerRequests`
//!
//! C1  every request ends exactly once: by its answer, by its deadline, or because the connection was lost.
//! C2  a request that timed out does not harm the others: its late answer is dropped by its opaque.
//! C3  memory is bounded: `in_flight_max` requests wait for answers, further ones wait for a permit. Long polls
//!     need no permit, as they are bounded by the number of queues and would starve the rest.
//! C4  frames leave in the order in which they were queued.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{self, Codec, Fields, Head, RemotingCommand};
use ringmq_protocol::types::Opaque;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::RequestError;

/// Frames that may wait for the writer; requests beyond wait in their callers.
const QUEUE_FRAMES_MAX: usize = 256;
/// The writer joins small frames up to this size into one write.
const WRITE_BYTES: usize = 256 * 1024;
/// Requests of one server that may be answered later.
const LATER_MAX: usize = 16;
/// Room for the header of most requests.
const HEADER_BYTES_USUAL: usize = 512;
/// A server from which nothing came for so long is taken for dead. Heartbeats and route requests every 30 s keep a
/// living one well below.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// What the client does with requests of a server.
pub(crate) trait ServerRequests: Send + Sync + 'static {
    /// Returns the answer, which is sent unless the request is one-way. Must not block.
    fn on_request(&self, address: &str, request: RemotingCommand) -> Answer;
}

/// The answer to a request of a server.
pub(crate) enum Answer {
    Now(RemotingCommand),
    Later(Pin<Box<dyn Future<Output = RemotingCommand> + Send>>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionConfig {
    pub(crate) codec: Codec,
    pub(crate) in_flight_max: usize,
    pub(crate) connect_timeout: Duration,
}

/// A request as callers state it.
pub(crate) struct Call<'a> {
    pub(crate) code: RequestCode,
    pub(crate) fields: &'a (dyn Fields + Sync),
    pub(crate) body: Bytes,
    /// Waits at the server by design, so it takes no in-flight permit.
    pub(crate) long_poll: bool,
}

impl<'a> Call<'a> {
    pub(crate) fn new(code: RequestCode, fields: &'a (dyn Fields + Sync)) -> Self {
        Self { code, fields, body: Bytes::new(), long_poll: false }
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn long_poll(mut self) -> Self {
        self.long_poll = true;
        self
    }
}

enum Outgoing {
    Frame(Vec<u8>),
    /// Everything queued before is written, then the connection ends.
    Close,
}

/// Cheap to clone; the connection ends when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    address: Arc<str>,
    codec: Codec,
    outgoing: mpsc::Sender<Outgoing>,
    permits: Semaphore,
    next_opaque: AtomicI32,
    table: Arc<Table>,
}

/// The part that the two tasks own too, so that they do not keep the connection alive.
struct Table {
    waiting: Mutex<Waiting>,
    lost: watch::Sender<bool>,
}

#[derive(Default)]
struct Waiting {
    by_opaque: HashMap<i32, oneshot::Sender<RemotingCommand>>,
    lost: Option<Arc<str>>,
    /// The server asked to go away: no new requests, but those in flight are still answered.
    retired: bool,
}

impl Table {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason is kept; everyone who waits is told.
    fn lose(&self, reason: &str) {
        let mut waiting = self.waiting();
        if waiting.lost.is_none() {
            waiting.lost = Some(Arc::from(reason));
        }
        waiting.by_opaque.clear();
        drop(waiting);
        self.lost.send_replace(true);
    }

    async fn until_lost(&self) {
        // The sender is a field of this very table, so the wait ends only by the value.
        drop(self.lost.subscribe().wait_for(|lost| *lost).await);
    }
}

/// Removes the entry of a request whose caller went away or gave up.
struct Entry<'a> {
    table: &'a Table,
    opaque: i32,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.table.waiting().by_opaque.remove(&self.opaque);
    }
}

impl Connection {
    pub(crate) async fn open(
        address: Arc<str>,
        config: ConnectionConfig,
        server_requests: Arc<dyn ServerRequests>,
    ) -> Result<Self, RequestError> {
        let stream = match timeout(config.connect_timeout, TcpStream::connect(&*address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(RequestError::Connect { address, source: Arc::new(source) }),
            Err(_) => {
                let source = io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection attempt");
                return Err(RequestError::Connect { address, source: Arc::new(source) });
            }
        };
        if let Err(source) = stream.set_nodelay(true) {
            return Err(RequestError::Connect { address, source: Arc::new(source) });
        }
        let (read_half, write_half) = stream.into_split();
        let (outgoing, queue) = mpsc::channel(QUEUE_FRAMES_MAX);
        let table = Arc::new(Table { waiting: Mutex::default(), lost: watch::Sender::new(false) });
        let reader = Reader {
            address: address.clone(),
            table: table.clone(),
            replies: outgoing.downgrade(),
            server_requests,
            later: Arc::new(Semaphore::new(LATER_MAX)),
        };
        tokio::spawn(reader.run(read_half));
        tokio::spawn(write_frames(write_half, queue, table.clone()));
        let shared = Shared {
            address,
            codec: config.codec,
            outgoing,
            permits: Semaphore::new(config.in_flight_max.max(1)),
            next_opaque: AtomicI32::new(0),
            table,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether a new request may be put on it.
    pub(crate) fn is_usable(&self) -> bool {
        let waiting = self.shared.table.waiting();
        waiting.lost.is_none() && !waiting.retired
    }

    /// Takes no new requests; those in flight go on.
    pub(crate) fn retire(&self) {
        self.shared.table.waiting().retired = true;
    }

    /// Sends a request and waits for its answer, whatever its code, until `deadline`.
    pub(crate) async fn request(
        &self,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<RemotingCommand, RequestError> {
        let begun = Instant::now();
        let work = async {
            let _permit = match call.long_poll {
                true => None,
                // The semaphore is never closed, so this waits and does not fail.
                false => self.shared.permits.acquire().await.ok(),
            };
            let opaque = self.shared.next_opaque.fetch_add(1, Ordering::Relaxed);
            let (sender, receiver) = oneshot::channel();
            let is_lost = {
                let mut waiting = self.shared.table.waiting();
                match &waiting.lost {
                    Some(_) => true,
                    None => {
                        waiting.by_opaque.insert(opaque, sender);
                        false
                    }
                }
            };
            if is_lost {
                return Err(self.lost(call.code));
            }
            let _entry = Entry { table: &self.shared.table, opaque };
            self.queue(call, opaque, false).await?;
            receiver.await.map_err(|_| self.lost(call.code))
        };
        match timeout_at(deadline, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::Timeout {
                address: self.shared.address.clone(),
                request: call.code.name(),
                after: begun.elapsed(),
            }),
        }
    }

    /// Queues a one-way request; that it was queued is all that is known.
    pub(crate) async fn one_way(&self, call: &Call<'_>) -> Result<(), RequestError> {
        if !self.is_usable() {
            return Err(self.lost(call.code));
        }
        let opaque = self.shared.next_opaque.fetch_add(1, Ordering::Relaxed);
        self.queue(call, opaque, true).await
    }

    async fn queue(&self, call: &Call<'_>, opaque: i32, one_way: bool) -> Result<(), RequestError> {
        let head = Head::request(self.shared.codec, call.code, Opaque(opaque));
        let head = if one_way { head.oneway() } else { head };
        let mut bytes = Vec::with_capacity(HEADER_BYTES_USUAL + call.body.len());
        frame::encode(&mut bytes, &head, call.fields, call.body.len());
        bytes.extend_from_slice(&call.body);
        self.shared.outgoing.send(Outgoing::Frame(bytes)).await.map_err(|_| self.lost(call.code))
    }

    fn lost(&self, code: RequestCode) -> RequestError {
        let reason = self.shared.table.waiting().lost.clone();
        RequestError::Lost {
            address: self.shared.address.clone(),
            request: code.name(),
            reason: reason.unwrap_or_else(|| Arc::from("closed by the client")),
        }
    }

    /// Writes what is queued and ends the connection; requests still in flight fail.
    pub(crate) async fn close(&self) {
        self.retire();
        if self.shared.outgoing.send(Outgoing::Close).await.is_ok() {
            self.shared.table.until_lost().await;
        }
    }
}

struct Reader {
    address: Arc<str>,
    table: Arc<Table>,
    replies: mpsc::WeakSender<Outgoing>,
    server_requests: Arc<dyn ServerRequests>,
    later: Arc<Semaphore>,
}

impl Reader {
    async fn run(self, mut stream: OwnedReadHalf) {
        let reason = tokio::select! {
            reason = self.read_frames(&mut stream) => reason,
            () = self.table.until_lost() => "closed by the client".to_string(),
        };
        self.table.lose(&reason);
    }

    async fn read_frames(&self, stream: &mut OwnedReadHalf) -> String {
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        loop {
            loop {
                let length = match frame::frame_len(&buffer, frame::FRAME_BYTES_MAX) {
                    Ok(Some(length)) if length <= buffer.len() => length,
                    Ok(Some(length)) => {
                        buffer.reserve(length - buffer.len());
                        break;
                    }
                    Ok(None) => break,
                    Err(problem) => return format!("a frame that is none: {problem}"),
                };
                match RemotingCommand::decode(&buffer.split_to(length).freeze()) {
                    Ok(command) => self.on_command(command),
                    Err(problem) => return format!("a frame that cannot be read: {problem}"),
                }
            }
            if buffer.capacity() - buffer.len() < 8 * 1024 {
                buffer.reserve(64 * 1024);
            }
            match timeout(SILENCE_MAX, stream.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => return "the server closed the connection".to_string(),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return format!("the server was silent for {} s", SILENCE_MAX.as_secs()),
            }
        }
    }

    fn on_command(&self, command: RemotingCommand) {
        let opaque = command.opaque;
        if command.is_response() {
            let waiter = self.table.waiting().by_opaque.remove(&opaque.0);
            match waiter {
                // The caller may have given up in this very moment.
                Some(waiter) => drop(waiter.send(command)),
                None => tracing::debug!(address = %self.address, %opaque, "an answer nobody waits for"),
            }
            return;
        }
        let one_way = command.is_oneway();
        let replies = self.replies.clone();
        let later = match self.server_requests.on_request(&self.address, command) {
            Answer::Now(_) if one_way => return,
            Answer::Now(response) => return reply(&replies, &response),
            Answer::Later(later) => later,
        };
        match self.later.clone().try_acquire_owned() {
            Ok(permit) => drop(tokio::spawn(async move {
                let response = later.await;
                if !one_way {
                    reply(&replies, &response);
                }
                drop(permit);
            })),
            Err(_) => {
                let remark = format!("{LATER_MAX} such requests are under way, ask again later");
                reply(
                    &replies,
                    &RemotingCommand::response(ResponseCode::SYSTEM_BUSY, opaque, Some(remark), &(), ""),
                );
            }
        }
    }
}

/// Does not wait for the writer: a server that floods us with requests and does not read our answers loses answers, not
/// our memory.
fn reply(replies: &mpsc::WeakSender<Outgoing>, response: &RemotingCommand) {
    let mut bytes = Vec::new();
    response.encode(Codec::Json, &mut bytes);
    if let Some(replies) = replies.upgrade() {
        drop(replies.try_send(Outgoing::Frame(bytes)));
    }
}

async fn write_frames(mut stream: OwnedWriteHalf, mut queue: mpsc::Receiver<Outgoing>, table: Arc<Table>) {
    let reason = tokio::select! {
        reason = write_queued(&mut stream, &mut queue) => reason,
        () = table.until_lost() => return,
    };
    // Fails only if the other side is gone already.
    drop(stream.shutdown().await);
    table.lose(&reason);
}

async fn write_queued(stream: &mut OwnedWriteHalf, queue: &mut mpsc::Receiver<Outgoing>) -> String {
    let mut closing = false;
    while !closing {
        let mut bytes = match queue.recv().await {
            Some(Outgoing::Frame(bytes)) => bytes,
            Some(Outgoing::Close) | None => break,
        };
        while bytes.len() < WRITE_BYTES {
            match queue.try_recv() {
                Ok(Outgoing::Frame(more)) => bytes.extend_from_slice(&more),
                Ok(Outgoing::Close) => closing = true,
                Err(_) => break,
            }
        }
        if let Err(error) = stream.write_all(&bytes).await {
            return error.to_string();
        }
    }
    "closed by the client".to_string()
}

/// The answer to a request of a server that this client does not know.
pub(crate) fn not_supported(request: &RemotingCommand) -> RemotingCommand {
    let remark = format!(" request type {} not supported", request.code);
    let code = ResponseCode::REQUEST_CODE_NOT_SUPPORTED;
    RemotingCommand::response(code, request.opaque, Some(remark), &(), Bytes::new())
}

#[cfg(test)]
mod tests;
