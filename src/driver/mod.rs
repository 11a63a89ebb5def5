//! The event loop of a shard: the only place where ring, connections and state machine meet.
//!
//!   ring.turn ─▶ completions ─▶ connections ─▶ frames ─▶ shard ─▶ effects ─▶ writes, sends, reads, news
//!
//! D1  Nothing here decides: what happens to a message is the shard's business, how bytes move is the ring's.
//! D2  A turn never blocks but in `ring.turn`. What could block (zeroing, name servers, logging) goes to the
//!     housekeeping thread through a bounded channel; what does not fit waits here for the next turn.
//! D3  One send is in flight per connection; what is said meanwhile is gathered into the next.
//! D4  A peer that does not read is not read from; see [`ringmq_net::Limits`].
//!
//! The driver is generic over the ring, so the simulator runs this very code.

mod log_files;

use crate::shard::{ConnectionId, Effects, LogFile, News, Shard, Time};
use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, TrySendError};
pub use log_files::LogFiles;
use ringmq_net::{Connection, Limits, Verdict};
use ringmq_ring::{Completion, Errno, Listener, Nanos, Now, Op, Outcome, Ring, Socket};
use ringmq_storage::{BlockSeq, IndexHeader, Prepare, SegmentBase};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// How often deadlines of connections are looked at.
const SWEEP: Duration = Duration::from_secs(5);
/// Replies not taken by the peer beyond which nothing more is read from it.
const UNSENT_PAUSE_BYTES: usize = 4 << 20;
/// How long a stopping shard waits for peers to take their last replies.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Messages to the housekeeping thread that wait for room, beyond which lines for the operator are dropped.
const WAITING_LINES_MAX: usize = 1024;

/// What others tell a shard.
#[derive(Debug)]
pub enum ToShard {
    /// The segment's file is zeroed up to this offset.
    Prepared {
        segment: SegmentBase,
        to: u64,
    },
    PrepareFailed {
        reason: String,
    },
    /// Some time has gone by since: there may be room now.
    PrepareAgain,
    /// The index of a full segment is in its file.
    Sealed(Box<IndexHeader>),
    SealFailed {
        reason: String,
    },
    /// The index of a segment was written anew, or could not be.
    Rebuilt {
        segment: SegmentBase,
        result: Result<Box<IndexHeader>, String>,
    },
    /// The oldest segment is due to go.
    Release {
        segment: SegmentBase,
        forced: bool,
    },
    /// A segment would be rewritten without the messages of these topics.
    GiveUp {
        segment: SegmentBase,
        topics: Vec<String>,
        forced: bool,
    },
    /// The segment's name leads to another file now, which says the same but for what was given up.
    Rewritten {
        segment: SegmentBase,
        freed_bytes: u64,
    },
    /// The name servers know what was announced under this ticket.
    Registered {
        ticket: u64,
    },
    /// Where a topic is, as a name server says: the queues to read at each broker; `None` if none could say.
    Route {
        ticket: u64,
        queues: Option<Vec<(String, u32)>>,
    },
    /// Make durable what is staged, say goodbye and end.
    Stop,
}

/// What a shard tells the housekeeping thread.
#[derive(Debug)]
pub enum FromShard {
    Prepare(Prepare),
    News(News),
}

/// The shard's end of its channels to the housekeeping thread.
pub struct Backstage {
    pub inbox: Receiver<ToShard>,
    pub outbox: Sender<FromShard>,
    /// Tells the other side that there is something in `outbox`; must not block.
    pub notify: Box<dyn Fn()>,
}

struct Open {
    id: ConnectionId,
    socket: Socket,
    connection: Connection,
    dirty: bool,
    paused: bool,
    closing: bool,
}

/// Runs one shard on one ring.
pub struct Driver<R: Ring> {
    ring: R,
    shard: Shard,
    limits: Limits,
    files: LogFiles,
    listeners: Vec<Listener>,
    /// Listeners that stopped accepting after an error; the next sweep starts them again.
    accept_again: Vec<usize>,
    /// By `Socket::index`.
    connections: Vec<Option<Open>>,
    connection_count: usize,
    connections_made: u64,
    dirty: Vec<usize>,
    effects: Effects,
    completions: Vec<Completion>,
    backstage: Backstage,
    waiting: VecDeque<FromShard>,
    next_sweep: Nanos,
    stop_by: Option<Nanos>,
}

/// The ring itself failed: the shard cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the io_uring of this shard failed: {0}")]
pub struct DriverError(#[from] io::Error);

/// Kinds of operations, in the upper byte of their tag.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Accept = 1,
    Receive,
    Send,
    Close,
    Write,
    Read,
}

const KIND_SHIFT: u32 = 56;
/// A connection id is a slot in its lower bits and, above, a number that is never used twice.
const SLOT_BITS: u32 = 20;

fn tag(kind: Kind, value: u64) -> u64 {
    debug_assert!(value >> KIND_SHIFT == 0);
    (kind as u64) << KIND_SHIFT | value
}

fn tag_value(tag: u64) -> u64 {
    tag & ((1 << KIND_SHIFT) - 1)
}

impl<R: Ring> Driver<R> {
    /// `listeners` are of this ring; connections are accepted from the first turn on.
    pub fn new(
        mut ring: R,
        listeners: Vec<Listener>,
        shard: Shard,
        limits: Limits,
        files: LogFiles,
        backstage: Backstage,
    ) -> Self {
        assert!(limits.connection_count_max < 1 << SLOT_BITS);
        for (index, &listener) in listeners.iter().enumerate() {
            ring.submit(tag(Kind::Accept, index as u64), Op::Accept { listener });
        }
        Driver {
            ring,
            shard,
            limits,
            files,
            listeners,
            accept_again: Vec::new(),
            connections: Vec::new(),
            connection_count: 0,
            connections_made: 0,
            dirty: Vec::new(),
            effects: Effects::default(),
            completions: Vec::new(),
            backstage,
            waiting: VecDeque::new(),
            next_sweep: Nanos(0),
            stop_by: None,
        }
    }

    /// Turns until told to stop.
    pub fn run(mut self) -> Result<(), DriverError> {
        while self.turn()? {}
        Ok(())
    }

    /// Waits for something to happen and deals with all of it. False once the shard has stopped.
    pub fn turn(&mut self) -> Result<bool, DriverError> {
        let deadline = self.deadline();
        self.ring.turn(deadline, &mut self.completions)?;
        let now = self.ring.now();
        self.shard
            .begin_turn(Time { monotonic_ms: (now.monotonic.0 / 1_000_000) as i64, wall_ms: now.wall_ms });
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.on_completion(completion, now);
        }
        self.completions = completions;
        while let Ok(message) = self.backstage.inbox.try_recv() {
            self.on_message(message, now);
        }
        self.shard.on_tick(&mut self.effects);
        if now.monotonic >= self.next_sweep {
            self.sweep(now);
        }
        self.carry_out(now);
        Ok(!self.has_stopped(now))
    }

    /// For the simulator: the state machine and its ring.
    pub fn parts(&mut self) -> (&mut R, &mut Shard) {
        (&mut self.ring, &mut self.shard)
    }

    fn deadline(&self) -> Option<Nanos> {
        let tick = self.shard.next_deadline_ms().map(|ms| Nanos(ms.max(0) as u64 * 1_000_000));
        let sweep = (self.connection_count > 0 || !self.accept_again.is_empty()).then_some(self.next_sweep);
        let retry =
            (!self.waiting.is_empty()).then(|| self.ring.now().monotonic.plus(Duration::from_millis(1)));
        [tick, sweep, retry, self.stop_by].into_iter().flatten().min()
    }

    fn on_completion(&mut self, completion: Completion, now: Now) {
        let value = tag_value(completion.tag);
        match completion.outcome {
            Outcome::Accepted(Ok((socket, peer))) => self.on_accepted(socket, peer, now),
            Outcome::Accepted(Err(errno)) => {
                if self.stop_by.is_none() {
                    self.effects
                        .log_error(format!("cannot accept connections, will try again soon: {errno}"));
                    self.accept_again.push(value as usize);
                }
            }
            Outcome::Received(result) => self.on_received(ConnectionId(value), result, now),
            Outcome::Sent(result) => self.on_sent(ConnectionId(value), result, now),
            Outcome::Closed => {
                let slot = slot_of(ConnectionId(value));
                assert!(self.connections[slot].as_ref().is_some_and(|open| open.id == ConnectionId(value)));
                self.connections[slot] = None;
                self.connection_count -= 1;
            }
            Outcome::Written(result) => {
                self.files.on_done();
                let result = result.map_err(|errno| errno.to_string());
                self.shard.on_written(BlockSeq(value), result, &mut self.effects);
            }
            Outcome::Read(result) => {
                self.files.on_done();
                self.shard.on_read(value, result.map_err(|errno| errno.to_string()), &mut self.effects);
            }
            Outcome::Woken => {}
        }
    }

    fn on_accepted(&mut self, socket: Socket, peer: SocketAddr, now: Now) {
        let slot = socket.index();
        self.connections_made += 1;
        let id = ConnectionId((self.connections_made << SLOT_BITS | slot as u64) & ((1 << KIND_SHIFT) - 1));
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        assert!(self.connections[slot].is_none(), "a slot is free once its socket is closed");
        let refuse = self.connection_count >= self.limits.connection_count_max || self.stop_by.is_some();
        let connection = Connection::new(peer, &self.limits, now.monotonic.0);
        let open = Open { id, socket, connection, dirty: false, paused: false, closing: refuse };
        self.connections[slot] = Some(open);
        self.connection_count += 1;
        if refuse {
            self.effects.log_error(format!(
                "connection from {peer} refused: {} are open, which is the limit",
                self.limits.connection_count_max
            ));
            self.ring.submit(tag(Kind::Close, id.0), Op::Close { socket });
        } else {
            self.ring.submit(tag(Kind::Receive, id.0), Op::Receive { socket });
        }
    }

    fn on_received(
        &mut self,
        id: ConnectionId,
        result: Result<Option<ringmq_ring::RecvBuffer>, Errno>,
        now: Now,
    ) {
        let buffer = match result {
            Ok(Some(buffer)) => buffer,
            Ok(None) | Err(_) => return self.close(id),
        };
        let mut problem = None;
        if let Some(open) = find(&mut self.connections, id) {
            let peer = open.connection.peer();
            let bytes = self.ring.received(&buffer);
            let (shard, effects) = (&mut self.shard, &mut self.effects);
            let fed = open.connection.on_received(bytes, now.monotonic.0, |frame| {
                shard.on_frame(id, peer, frame, effects);
                true
            });
            problem = fed.err().map(|error| format!("connection from {peer} closed: {error}"));
        }
        self.ring.recycle(buffer);
        if let Some(line) = problem {
            self.effects.log(line);
            self.close(id);
        }
    }

    fn on_sent(&mut self, id: ConnectionId, result: Result<(), Errno>, now: Now) {
        if result.is_err() {
            return self.close(id);
        }
        let Some(open) = find(&mut self.connections, id) else { return };
        open.connection.on_sent(now.monotonic.0);
        if open.connection.unsent_bytes() > 0 {
            mark_dirty(open, &mut self.dirty);
        }
        if open.paused && open.connection.unsent_bytes() <= UNSENT_PAUSE_BYTES / 2 {
            open.paused = false;
            self.ring.resume_receive(open.socket);
        }
    }

    fn close(&mut self, id: ConnectionId) {
        let Some(open) = find(&mut self.connections, id) else { return };
        open.closing = true;
        self.ring.submit(tag(Kind::Close, id.0), Op::Close { socket: open.socket });
        self.shard.on_closed(id, &mut self.effects);
    }

    fn on_message(&mut self, message: ToShard, now: Now) {
        match message {
            ToShard::Prepared { segment, to } => self.shard.on_prepared(segment, to),
            ToShard::PrepareFailed { reason } => self.shard.on_prepare_failed(reason),
            ToShard::PrepareAgain => self.shard.on_prepare_again(),
            ToShard::Sealed(header) => self.shard.on_sealed(*header),
            ToShard::SealFailed { reason } => self.shard.on_seal_failed(&reason),
            ToShard::Rebuilt { segment, result } => {
                self.files.forget(&mut self.ring, segment);
                self.shard.on_rebuilt(segment, result.map(|header| *header), &mut self.effects);
            }
            ToShard::Release { segment, forced } => self.shard.on_release(segment, forced, &mut self.effects),
            ToShard::GiveUp { segment, topics, forced } => {
                self.shard.on_give_up(segment, topics, forced, &mut self.effects);
            }
            ToShard::Rewritten { segment, freed_bytes } => {
                self.files.forget(&mut self.ring, segment);
                self.shard.on_rewritten(freed_bytes);
            }
            ToShard::Route { ticket, queues } => self.shard.on_route(ticket, queues, &mut self.effects),
            ToShard::Registered { ticket } => self.shard.on_registered(ticket, &mut self.effects),
            ToShard::Stop => {
                if self.stop_by.is_none() {
                    self.stop_by = Some(now.monotonic.plus(STOP_GRACE));
                    for listener in self.listeners.drain(..) {
                        self.ring.close_listener(listener);
                    }
                    self.shard.on_stop(&mut self.effects);
                }
            }
        }
    }

    fn sweep(&mut self, now: Now) {
        self.next_sweep = now.monotonic.plus(SWEEP);
        for index in self.accept_again.drain(..) {
            if let Some(&listener) = self.listeners.get(index) {
                self.ring.submit(tag(Kind::Accept, index as u64), Op::Accept { listener });
            }
        }
        let mut closing = Vec::new();
        for open in self.connections.iter_mut().flatten().filter(|open| !open.closing) {
            if let Verdict::Close(reason) = open.connection.check(&self.limits, now.monotonic.0) {
                closing.push((open.id, open.connection.peer(), reason));
            }
        }
        for (id, peer, reason) in closing {
            self.effects.log(format!("connection from {peer} closed: {reason}"));
            self.close(id);
        }
    }

    /// Turns the effects of this turn into operations.
    fn carry_out(&mut self, now: Now) {
        while let Some(write) = self.shard.next_write() {
            match self.files.get(&mut self.ring, LogFile::Segment, write.segment) {
                Ok(file) => {
                    let op =
                        Op::Write { file, offset: write.offset_in_segment, data: write.data, durable: true };
                    self.files.on_submitted();
                    self.ring.submit(tag(Kind::Write, write.block.0), op);
                }
                Err(reason) => self.shard.on_written(write.block, Err(reason), &mut self.effects),
            }
        }
        let mut reads = std::mem::take(&mut self.effects.reads);
        // A file that cannot be opened is answered at once, and what is asked again then is not to be lost.
        while !reads.is_empty() {
            for read in reads.drain(..) {
                match self.files.get(&mut self.ring, read.file, read.segment) {
                    Ok(file) => {
                        self.files.on_submitted();
                        let op = Op::Read { file, offset: read.offset, len: read.len };
                        self.ring.submit(tag(Kind::Read, read.id), op);
                    }
                    Err(reason) => self.shard.on_read(read.id, Err(reason), &mut self.effects),
                }
            }
            std::mem::swap(&mut reads, &mut self.effects.reads);
        }
        self.effects.reads = reads;
        self.send_replies(now);
        self.tell_backstage();
    }

    fn send_replies(&mut self, now: Now) {
        let (connections, dirty) = (&mut self.connections, &mut self.dirty);
        self.effects.replies.drain(|id, head, body: Vec<Bytes>| {
            if let Some(open) = find(connections, id) {
                open.connection.push(head, body);
                mark_dirty(open, dirty);
            }
        });
        let mut overfull = Vec::new();
        for slot in std::mem::take(&mut self.dirty) {
            let Some(open) = self.connections[slot].as_mut().filter(|open| !open.closing) else { continue };
            open.dirty = false;
            if let Some(parts) = open.connection.next_send(now.monotonic.0) {
                self.ring.submit(tag(Kind::Send, open.id.0), Op::Send { socket: open.socket, parts });
            }
            let unsent = open.connection.unsent_bytes();
            if unsent > self.limits.unsent_bytes_max {
                overfull.push((open.id, open.connection.peer()));
            } else if unsent > UNSENT_PAUSE_BYTES && !open.paused {
                open.paused = true;
                self.ring.pause_receive(open.socket);
            }
        }
        for (id, peer) in overfull {
            let limit = self.limits.unsent_bytes_max;
            self.effects
                .log_error(format!("connection from {peer} closed: it left {limit} bytes of replies unread"));
            self.close(id);
        }
    }

    fn tell_backstage(&mut self) {
        if let Some(prepare) = self.shard.prepare_wanted() {
            self.waiting.push_back(FromShard::Prepare(prepare));
        }
        for news in self.effects.news.drain(..) {
            if let News::Released(segment) = news {
                self.files.forget(&mut self.ring, segment);
            }
            // Lines for the operator are the one thing that may be dropped; topics are bounded by their own limit.
            if self.waiting.len() < WAITING_LINES_MAX || !matches!(news, News::Log { .. }) {
                self.waiting.push_back(FromShard::News(news));
            }
        }
        if self.waiting.is_empty() {
            return;
        }
        while let Some(message) = self.waiting.pop_front() {
            match self.backstage.outbox.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    self.waiting.push_front(message);
                    break;
                }
                // The housekeeping thread has ended: the process is stopping.
                Err(TrySendError::Disconnected(_)) => self.waiting.clear(),
            }
        }
        (self.backstage.notify)();
    }

    fn has_stopped(&self, now: Now) -> bool {
        self.stop_by.is_some_and(|by| {
            let silent = self.connections.iter().flatten().all(|open| open.connection.unsent_bytes() == 0);
            // Not while a write is under way, which is at most one turn after there was one to make; but a peer that takes no
            // goodbye, or a disk without room for more, is not waited for.
            self.files.is_quiet() && ((self.shard.is_quiet() && silent) || now.monotonic >= by)
        })
    }
}

fn slot_of(id: ConnectionId) -> usize {
    (id.0 & ((1 << SLOT_BITS) - 1)) as usize
}

/// The connection, unless it is closed or being closed.
fn find(connections: &mut [Option<Open>], id: ConnectionId) -> Option<&mut Open> {
    connections.get_mut(slot_of(id))?.as_mut().filter(|open| open.id == id && !open.closing)
}

fn mark_dirty(open: &mut Open, dirty: &mut Vec<usize>) {
    if !open.dirty {
        open.dirty = true;
        dirty.push(slot_of(open.id));
    }
}
