//! The io_uring of a shard, and beside it a simulated one.
//!
//! A driver owns one [`Ring`], hands it operations and gets completions back, once per turn:
//!
//! ```text
//! submit(tag, Op) … ─▶ turn ─▶ Completion { tag, outcome } …
//! ```
//!
//! Two things implement the trait: [`Uring`], the kernel's ring, and [`sim::SimRing`], a network and a disk under a
//! seed and virtual time. The same conformance tests hold both to the rules below, so a driver that is right on one
//! is right on the other.
//!
//! R1  Every operation ends. `Send`, `SendFile`, `Write`, `Read` and `Close` have one completion. `Accept` and
//!     `Receive` have many; an error, or the end of the stream, is their last.
//! R2  What is submitted is gone from the caller (buffers move by value) and stays untouched until its last completion.
//! R3  Sends of one socket leave in the order of submission, each whole before the next begins; the first one that
//!     fails fails all that follow it on that socket.
//! R4  After `Close` is submitted every pending operation of the socket completes, with [`Errno::Cancelled`] unless
//!     it ended by itself before; then `Closed` arrives, last. The handle is dead from the submission of `Close` on:
//!     an operation on a dead handle completes with [`Errno::BadHandle`] and can never touch a later socket.
//! R5  Operations on files have no order among them. Who needs one waits for the completion.
//! R6  Nothing here waits but [`Ring::turn`], nothing blocks but the few calls that say so.
//!
//! `unsafe` is allowed only in the modules that talk to the kernel: `uring` with its `work`, `buffers`, `socket`, `file`
//! and `setup`. The process must ignore SIGPIPE, as every Rust program does unless told otherwise.

#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]

mod align;
mod buffers;
mod errno;
mod file;
mod read_memory;
mod setup;
pub mod sim;
mod slab;
mod socket;
mod uring;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use align::{DIRECT_ALIGN, aligned_buffer, is_direct_aligned, prefer_huge_pages};
pub use errno::Errno;
pub use file::{DirectAlignment, direct_alignment};
pub use setup::{Config, SetupError, available_cores, pin_current_thread};
pub use uring::Uring;

/// The ring of one shard. It belongs to the thread that made it.
pub trait Ring {
    /// The time: read anew at each call, virtual in a simulation.
    fn now(&self) -> Now;

    /// Binds and listens, with SO_REUSEADDR; port 0 lets the system choose, and the address really bound is returned.
    /// Connections arrive once an [`Op::Accept`] is submitted. Every accepted socket has TCP_NODELAY set.
    fn listen(&mut self, addr: SocketAddr) -> io::Result<(Listener, SocketAddr)>;

    /// Stops listening. A pending `Accept` completes with [`Errno::Cancelled`]; sockets accepted before live on.
    fn close_listener(&mut self, listener: Listener);

    /// Opens a file that exists. This call may block for a short while (path lookup): not for a hot path.
    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<File>;

    /// Closes the file once its operations in flight have completed; they complete as usual. The handle is dead at once.
    fn close_file(&mut self, file: File);

    /// The address of the other end; `None` once the handle is dead.
    fn peer(&self, socket: Socket) -> Option<SocketAddr>;

    /// The address of our end; `None` once the handle is dead.
    fn local(&self, socket: Socket) -> Option<SocketAddr>;

    /// Queues an operation; it starts with the next [`Ring::turn`]. `tag` comes back with each completion of it.
    fn submit(&mut self, tag: u64, op: Op);

    /// Asks that nothing more be received on the socket for now, so that TCP pushes back on the peer. What was already
    /// taken from the socket still arrives. Without a pending `Receive` it does nothing.
    fn pause_receive(&mut self, socket: Socket);

    /// Takes [`Ring::pause_receive`] back.
    fn resume_receive(&mut self, socket: Socket);

    /// Starts everything queued, then waits until there is at least one completion or the deadline (of
    /// [`Now::monotonic`]) has come, and appends what has completed to `out`. `None` waits without end; a deadline
    /// that is past only collects. An error means that the ring itself is unusable.
    fn turn(&mut self, deadline: Option<Nanos>, out: &mut Vec<Completion>) -> io::Result<()>;

    /// The bytes of a receive buffer, until it is given back.
    fn received(&self, buffer: &RecvBuffer) -> &[u8];

    /// Gives a receive buffer back. There are few of them, all sockets share them, and receiving stalls while all are
    /// out: take the bytes and recycle within the turn.
    fn recycle(&mut self, buffer: RecvBuffer);

    /// A handle with which any thread can end a wait in [`Ring::turn`].
    fn waker(&self) -> Waker;
}

/// An operation. Its completion says how it ended: see [`Outcome`].
#[derive(Debug)]
pub enum Op {
    /// Accepts connections, one completion each, until an error. After an error ([`Errno::TooManyFiles`] for one)
    /// nothing is accepted until it is submitted again. One at a time per listener.
    Accept { listener: Listener },
    /// Receives until the end of the stream or an error, one completion per filled buffer, in order. Lack of buffers is
    /// no error: it goes on as buffers are recycled. One at a time per socket.
    Receive { socket: Socket },
    /// Sends all bytes of all parts. Any number of parts; empty ones are allowed.
    Send { socket: Socket, parts: Vec<Bytes> },
    /// Sends `len` bytes of the file from `offset`, all of them or an error, without bringing them into this process.
    /// After an error the peer may have got a prefix, so the socket is good for nothing but `Close`. Do not open the
    /// file with `direct`: that would bypass the page cache from which this sends.
    SendFile { socket: Socket, file: File, offset: u64, len: u64 },
    /// Writes all of `data` at `offset`. With `durable` it completes when the data is on stable storage. On a `direct`
    /// file address, offset and length must be multiples of [`DIRECT_ALIGN`]: anything else is a panic, for it is
    /// the caller's mistake. After an error any part of the range may have been written.
    Write { file: File, offset: u64, data: Bytes, durable: bool },
    /// Reads exactly `len` bytes at `offset`, whatever their alignment; fewer is [`Errno::UnexpectedEof`].
    Read { file: File, offset: u64, len: u32 },
    /// Ends the connection in both directions, cancels what is pending on it and closes it, once.
    Close { socket: Socket },
}

/// One result of an operation submitted with `tag`. [`Outcome::Woken`] has [`WAKE_TAG`].
#[derive(Debug)]
pub struct Completion {
    pub tag: u64,
    pub outcome: Outcome,
}

/// The tag of [`Outcome::Woken`], which belongs to no operation.
pub const WAKE_TAG: u64 = u64::MAX;

#[derive(Debug)]
pub enum Outcome {
    /// An error is the last of this `Accept`.
    Accepted(Result<(Socket, SocketAddr), Errno>),
    /// `Ok(None)` is the end of the stream. That and an error are the last of this `Receive`.
    Received(Result<Option<RecvBuffer>, Errno>),
    /// Of `Send` and `SendFile`.
    Sent(Result<(), Errno>),
    Written(Result<(), Errno>),
    Read(Result<Bytes, Errno>),
    Closed,
    /// Somebody called [`Waker::wake`] once or more since the last one of these.
    Woken,
}

/// Names a slot of a table for one lifetime of it: a handle of an earlier lifetime finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Slot {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A listening socket of a ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Listener(pub(crate) Slot);

/// A connection of a ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Socket(pub(crate) Slot);

impl Socket {
    /// Dense: small, and reused after the socket is closed. Good as an index of a table beside the ring.
    pub fn index(self) -> usize {
        self.0.index as usize
    }
}

/// An open file of a ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct File(pub(crate) Slot);

/// Received bytes that still lie in a buffer of the ring. Not `Clone`: each is given back once, with [`Ring::recycle`].
#[derive(Debug)]
#[must_use = "a receive buffer must be given back with Ring::recycle"]
pub struct RecvBuffer {
    pub(crate) ring: u32,
    pub(crate) id: u16,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl RecvBuffer {
    /// Bytes received; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }
}

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenMode {
    pub access: Access,
    /// O_DIRECT. The open fails with `InvalidInput` where the file system has none; what then is the caller's decision.
    pub direct: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    /// Reading and writing in place. Nothing here creates, truncates or appends.
    Write,
}

/// A point in time, in both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    pub monotonic: Nanos,
    /// Milliseconds since 1970-01-01 UTC, as the system clock has it: may jump.
    pub wall_ms: i64,
}

/// Nanoseconds of a clock that never goes back; its zero means nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    #[must_use]
    pub fn plus(self, duration: Duration) -> Nanos {
        Nanos(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` until this one; zero if it is not earlier.
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Ends a wait in [`Ring::turn`], from any thread. Calls between two turns become one [`Outcome::Woken`].
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    pub(crate) fn new(wake: impl Fn() + Send + Sync + 'static) -> Waker {
        Waker(Arc::new(wake))
    }

    /// Never blocks. Without effect once the ring is gone.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}
