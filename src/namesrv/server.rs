//! The name server's sockets, on tokio-uring: one task per connection, all on the thread that calls [`run`].
//!
//! ```text
//! accept ─▶ converse: read ─▶ frames ─▶ answer ─▶ write ─▶ read …          (one request at a time, in order)
//! watch:    every scan_ms: expire brokers, shut down connections past their deadline
//! ```
//!
//! Invariants:
//!
//!  N1  memory follows bytes that arrived: a buffer grows only when it is full, and at most doubles
//!  N2  the buffers of all connections together stay within `buffered_bytes_max`; who would exceed it is closed
//!  N3  every connection has a deadline at any time: for its next frame, for the rest of a frame, or for taking
//!      its replies
//!  N4  a read in flight is never dropped (tokio-uring cannot cancel it safely): deadlines and the end of the
//!      server shut the socket down, which completes it, and the task ends by itself
//!  N5  a change of the KV configuration is visible and answered only once it is on disk, if there is a file
//!  N6  a connection that ends unregisters its brokers, however it ends

use super::handler::{NameServer, Outcome, Reply};
use super::kv::{KvChange, KvConfig};
use super::routes::ConnectionId;
use ringmq_protocol::frame::{self, FRAME_BYTES_MAX, Frame, FrameError};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs;
use tokio_uring::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

/// An idle connection owns this many bytes.
const INPUT_BYTES_INITIAL: usize = 2 * 1024;
/// Replies are written once they are this many bytes, even if more requests have arrived.
const OUTPUT_BYTES_FLUSH: usize = 64 * 1024;
/// After a failed accept (no file descriptors, say) the next one waits.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// A killed process's sockets can outlive it by a moment, until the kernel has ended its ring.
pub(crate) const BIND_PATIENCE: Duration = Duration::from_millis(500);
/// How long the end of the server waits for its connections.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// What [`run`] needs to know besides its address.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the KV configuration is kept; in memory only if `None`.
    pub kv_file: Option<PathBuf>,
    pub limits: Limits,
}

/// Limits on what connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections_max: usize,
    /// The largest frame accepted and sent, in bytes, without its length prefix.
    pub frame_bytes_max: u32,
    /// The buffers of all connections together, in bytes.
    pub buffered_bytes_max: usize,
    /// A connection without a frame for this long is closed.
    pub idle_ms: u64,
    /// A frame must be complete this long after its first byte, and replies be taken this long after their first.
    pub frame_ms: u64,
    /// How often deadlines and brokers are looked at; they may be this much late.
    pub scan_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 16_384,
            frame_bytes_max: FRAME_BYTES_MAX,
            buffered_bytes_max: 512 * 1024 * 1024,
            idle_ms: 120_000,
            frame_ms: 30_000,
            scan_ms: 5_000,
        }
    }
}

/// Why a connection ended, other than by its client's wish.
#[derive(Debug, Error)]
enum Ended {
    #[error(transparent)]
    Malformed(#[from] FrameError),
    #[error("it ended in the middle of a frame")]
    HalfFrame,
    #[error("the buffers of all connections are at their limit")]
    OutOfBuffers,
    #[error("{0}")]
    Deadline(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves until `stop` is ready. `ready` is called once with the address that is listened on.
///
/// Blocks the calling thread, which must not be inside another async runtime.
///
/// # Errors
/// If the KV file cannot be read, the address cannot be listened on, or there is no io_uring. The message says what
/// to do.
pub fn run(
    listen: SocketAddr,
    options: Options,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let kv = match &options.kv_file {
        Some(path) => load_kv(path)?,
        None => KvConfig::default(),
    };
    let listener = bind(listen).map_err(|error| explain_bind(listen, &error))?;
    let address = listener.local_addr()?;
    // The runtime is built here rather than by `tokio_uring::start`, which panics where io_uring is not allowed.
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(|error| explain_ring(&error))?;
    ready(address);
    runtime.block_on(serve(listener, kv, options, stop))
}

fn bind(listen: SocketAddr) -> io::Result<StdListener> {
    let deadline = Instant::now() + BIND_PATIENCE;
    loop {
        match StdListener::bind(listen) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn explain_bind(listen: SocketAddr, error: &io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there; stop it or choose another address or port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 0.0.0.0 or [::] means all it has"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; choose another port",
        _ => "choose another address or port",
    };
    io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}; {advice}"))
}

fn explain_ring(error: &io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "allow it: sysctl kernel.io_uring_disabled=0, and in a container a seccomp profile that has io_uring"
        }
        io::ErrorKind::OutOfMemory => "raise the limit of locked memory (ulimit -l)",
        _ => "a Linux kernel of 5.11 or later is needed",
    };
    io::Error::new(error.kind(), format!("cannot set up io_uring: {error}; {advice}"))
}

/// What all tasks share.
struct Server {
    state: RefCell<NameServer>,
    connections: RefCell<BTreeMap<ConnectionId, Rc<Connection>>>,
    /// The sum of `Connection::buffered`.
    buffered: Cell<usize>,
    /// Connections turned away since the last scan.
    turned_away: Cell<u64>,
    stopping: Cell<bool>,
    /// Told when the last connection is gone after the stop.
    all_gone: tokio::sync::Notify,
    /// Held while a change of the KV configuration is made and written, so that there is one at a time.
    kv_turn: tokio::sync::Mutex<()>,
    kv_file: Option<PathBuf>,
    limits: Limits,
    started: Instant,
}

struct Connection {
    id: ConnectionId,
    peer: SocketAddr,
    stream: TcpStream,
    /// N3, and what is waited for until then.
    deadline: Cell<(Instant, &'static str)>,
    expired: Cell<bool>,
    /// Bytes of buffers accounted for.
    buffered: Cell<usize>,
}

async fn serve(
    listener: StdListener,
    kv: KvConfig,
    options: Options,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    // shutdown(2) wakes an accept in flight. The standard library offers it for streams only; it is the same call.
    let end_of_accept = StdStream::from(OwnedFd::from(listener.try_clone()?));
    let server = Rc::new(Server {
        state: RefCell::new(NameServer::new(kv)),
        connections: RefCell::default(),
        buffered: Cell::new(0),
        turned_away: Cell::new(0),
        stopping: Cell::new(false),
        all_gone: tokio::sync::Notify::new(),
        kv_turn: tokio::sync::Mutex::new(()),
        kv_file: options.kv_file,
        limits: options.limits,
        started: Instant::now(),
    });
    let accepting = tokio_uring::spawn(accept(server.clone(), TcpListener::from_std(listener)));
    let watching = tokio_uring::spawn(watch(server.clone()));
    stop.await;

    server.stopping.set(true);
    let _ = end_of_accept.shutdown(Shutdown::Both);
    let _ = accepting.await;
    watching.abort();
    for connection in server.connections.borrow().values() {
        connection.shut_down();
    }
    if !server.connections.borrow().is_empty() {
        // The runtime cancels what is still in flight after that.
        let _ = tokio::time::timeout(STOP_WAIT, server.all_gone.notified()).await;
    }
    Ok(())
}

async fn accept(server: Rc<Server>, listener: TcpListener) {
    let mut next_id = 0;
    while !server.stopping.get() {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) if server.stopping.get() => return,
            Err(error) => {
                warn!("cannot accept connections: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if server.connections.borrow().len() >= server.limits.connections_max {
            server.turned_away.set(server.turned_away.get() + 1);
            continue;
        }
        // A failure means that the peer is gone already; the first read will say so.
        let _ = stream.set_nodelay(true);
        next_id += 1;
        let connection = Rc::new(Connection {
            id: ConnectionId(next_id),
            peer,
            stream,
            deadline: Cell::new((server.after(server.limits.idle_ms), IDLE)),
            expired: Cell::new(false),
            buffered: Cell::new(0),
        });
        server.connections.borrow_mut().insert(connection.id, connection.clone());
        let registered = Registered { server: server.clone(), connection };
        tokio_uring::spawn(async move {
            let (server, connection) = (&*registered.server, &*registered.connection);
            if let Err(error) = converse(server, connection).await {
                let ended = if connection.expired.get() {
                    Ended::Deadline(connection.deadline.get().1)
                } else {
                    error
                };
                match ended {
                    Ended::Io(error) => debug!("connection of {} failed: {error}", connection.peer),
                    Ended::Deadline(IDLE) => debug!("closed connection of {}: {IDLE}", connection.peer),
                    ended if server.stopping.get() => {
                        debug!("closed connection of {}: {ended}", connection.peer)
                    }
                    ended => warn!("closed connection of {}: {ended}", connection.peer),
                }
            }
        });
    }
}

const IDLE: &str = "it was idle";
const FRAME: &str = "a frame took too long to arrive";
const REPLY: &str = "it did not take its replies";

/// Removes a connection from the server's books when its task ends, in whatever way (N6).
struct Registered {
    server: Rc<Server>,
    connection: Rc<Connection>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Registered { server, connection } = self;
        server.buffered.set(server.buffered.get() - connection.buffered.get());
        let gone = server.state.borrow_mut().routes.on_closed(connection.id);
        if !gone.is_empty() {
            info!("connection of {} closed: unregistered {}", connection.peer, gone.join(", "));
        }
        let mut connections = server.connections.borrow_mut();
        connections.remove(&connection.id);
        if connections.is_empty() && server.stopping.get() {
            server.all_gone.notify_one();
        }
    }
}

/// Reads frames and writes replies until the client closes. Ended by a deadline, it returns whatever the shut down
/// socket gives.
async fn converse(server: &Server, connection: &Connection) -> Result<(), Ended> {
    let limits = &server.limits;
    let mut input: Vec<u8> = Vec::with_capacity(INPUT_BYTES_INITIAL);
    let mut output: Vec<u8> = Vec::new();
    connection.account(server, input.capacity())?;
    loop {
        let mut taken = 0;
        let missing = loop {
            let rest = &input[taken..];
            match frame::frame_len(rest, limits.frame_bytes_max)? {
                Some(length) if length <= rest.len() => {
                    server.answer(connection, &rest[..length], &mut output).await?;
                    taken += length;
                    connection.account(server, input.capacity() + output.capacity())?;
                    if output.len() >= OUTPUT_BYTES_FLUSH {
                        output = connection.send(server, output).await?;
                    }
                }
                Some(length) => break length - rest.len(),
                None => break INPUT_BYTES_INITIAL,
            }
        };
        if !output.is_empty() {
            output = connection.send(server, output).await?;
        }
        input.drain(..taken);
        if input.is_empty() {
            connection.deadline.set((server.after(limits.idle_ms), IDLE));
            if input.capacity() > INPUT_BYTES_INITIAL {
                input = Vec::with_capacity(INPUT_BYTES_INITIAL);
            }
        } else {
            if taken > 0 || connection.deadline.get().1 == IDLE {
                connection.deadline.set((server.after(limits.frame_ms), FRAME));
            }
            if input.len() == input.capacity() {
                input.reserve_exact(missing.min(input.len())); // N1
            }
        }
        connection.account(server, input.capacity() + output.capacity())?;

        let filled = input.len();
        let (result, slice) = connection.stream.read(input.slice(filled..)).await;
        input = slice.into_inner();
        match result? {
            0 if filled == 0 => {
                return if connection.expired.get() { Err(Ended::Deadline(IDLE)) } else { Ok(()) };
            }
            0 => return Err(Ended::HalfFrame),
            _ => {}
        }
    }
}

impl Connection {
    /// Writes all of `output` and returns it empty, for the next replies.
    async fn send(&self, server: &Server, output: Vec<u8>) -> Result<Vec<u8>, Ended> {
        self.deadline.set((server.after(server.limits.frame_ms), REPLY));
        let (result, mut output) = self.stream.write_all(output).await;
        result?;
        if output.capacity() > OUTPUT_BYTES_FLUSH {
            return Ok(Vec::new());
        }
        output.clear();
        Ok(output)
    }

    /// Notes what the buffers of this connection take (N2).
    fn account(&self, server: &Server, bytes: usize) -> Result<(), Ended> {
        let before = self.buffered.replace(bytes);
        let total = server.buffered.get() - before + bytes;
        server.buffered.set(total);
        if bytes > before && total > server.limits.buffered_bytes_max {
            return Err(Ended::OutOfBuffers);
        }
        Ok(())
    }

    fn shut_down(&self) {
        // It fails only if the peer is gone, which ends the connection as well.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Server {
    fn after(&self, ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 // 584 million years fit
    }

    /// Appends the reply to one frame to `output`; none to a oneway request or a response.
    async fn answer(&self, connection: &Connection, bytes: &[u8], output: &mut Vec<u8>) -> Result<(), Ended> {
        let frame = Frame::decode(bytes)?;
        if frame.header.is_response() {
            return Ok(());
        }
        let outcome = self.state.borrow_mut().handle(&frame, connection.id, self.now_ms());
        let reply = match outcome {
            Outcome::Reply(reply) => reply,
            Outcome::ChangeKv(change) => self.change_kv(change).await,
        };
        if !frame.header.is_oneway() {
            reply.fitting(self.limits.frame_bytes_max).encode(&frame.header, output);
        }
        Ok(())
    }

    async fn change_kv(&self, change: KvChange) -> Reply {
        let _turn = self.kv_turn.lock().await;
        let changed = self.state.borrow().kv.changed(change);
        let next = match changed {
            Ok(next) => next,
            Err(full) => return Reply::error(full.to_string()),
        };
        if let Some(path) = &self.kv_file
            && let Err(error) = save_kv(&next, path).await
        {
            warn!("cannot write {}: {error}", path.display());
            return Reply::error(format!("the KV configuration could not be written: {error}"));
        }
        self.state.borrow_mut().kv = next;
        Reply::success()
    }
}

async fn watch(server: Rc<Server>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(server.limits.scan_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let gone = server.state.borrow_mut().routes.expire(server.now_ms());
        if !gone.is_empty() {
            warn!("no sign of life: unregistered {}", gone.join(", "));
        }
        let now = Instant::now();
        for connection in server.connections.borrow().values() {
            if connection.deadline.get().0 < now && !connection.expired.replace(true) {
                connection.shut_down();
            }
        }
        let turned_away = server.turned_away.take();
        if turned_away > 0 {
            warn!("{turned_away} connections turned away: the limit is {}", server.limits.connections_max);
        }
    }
}

fn load_kv(path: &Path) -> io::Result<KvConfig> {
    let explain =
        |kind, problem: String| io::Error::new(kind, format!("KV file {}: {problem}", path.display()));
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| explain(io::ErrorKind::InvalidData, error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(KvConfig::default()),
        Err(error) => Err(explain(error.kind(), error.to_string())),
    }
}

/// Writes aside, syncs, renames, syncs the directory: after a crash there is the old file or the new one.
async fn save_kv(kv: &KvConfig, path: &Path) -> io::Result<()> {
    let bytes = serde_json::to_vec(kv)?;
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let file = fs::File::create(&aside).await?;
    let (written, _) = file.write_all_at(bytes, 0).await;
    let synced = match written {
        Ok(()) => file.sync_all().await,
        Err(error) => Err(error),
    };
    file.close().await?;
    synced?;
    fs::rename(&aside, path).await?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = fs::File::open(parent).await?;
    directory.sync_all().await?;
    directory.close().await
}

#[cfg(test)]
mod tests;
