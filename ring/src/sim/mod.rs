//! A ring under a seed: virtual time, a network ([`SimNet`]) and a disk ([`SimDisk`]) that fail on request.
//!
//! ```text
//! submit ─▶ effect, or event at a drawn time ─▶ heap (time, sequence) ─▶ turn: time jumps to the next event ─▶ out
//! ```
//!
//! S1  What happens depends on the seeds and on the calls made, on nothing else: no clock, no thread, no hash order.
//! S2  Events of one instant happen in the order in which they were scheduled.
//! S3  Time moves only in `turn`, and never beyond its deadline.
//!
//! Where the real ring starts an operation at the next turn, this one starts it when it is submitted: a crash in
//! between finds it in flight.
//!
//! One [`SimRing`] is one shard's world. Several are run in lockstep: call `turn` on each with a deadline that is the
//! least [`SimNet::next_event`] of all.

mod disk;
mod net;
mod random;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::slab::Slab;
use crate::{
    Completion, Errno, File, Listener, Nanos, Now, Op, OpenMode, Outcome, RecvBuffer, Ring, Slot, Socket,
    WAKE_TAG, Waker, is_direct_aligned,
};
pub use disk::{CrashReport, ReadFault, SECTOR_BYTES, SimDisk, WriteFault};
use disk::{FileId, WriteId};
use net::{Chunk, Connection};
pub use net::{Direction, SimClient, SimNet, WINDOW_BYTES};
pub use random::Random;

/// 2024-01-01 UTC: where the wall clock of a simulation starts.
const WALL_START_MS: i64 = 1_704_067_200_000;

/// Bounds of a simulated ring, as of the real one.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub recv_buffer_count: u16,
    pub recv_buffer_bytes: u32,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig { recv_buffer_count: 32, recv_buffer_bytes: 16 << 10 }
    }
}

/// A simulated ring.
pub struct SimRing {
    world: Rc<RefCell<World>>,
    /// What the receive buffers that are out hold. Here and not in the world, so that it can be lent.
    buffers: Vec<Vec<u8>>,
    number: u32,
    woken: Arc<AtomicBool>,
}

/// All that a ring and its clients share.
pub(crate) struct World {
    now: u64,
    sequence: u64,
    random: Random,
    events: BTreeMap<(u64, u64), Event>,
    config: SimConfig,
    disk: SimDisk,
    delay: (Duration, Duration),
    listeners: Slab<SimListener>,
    sockets: Slab<SimSocket>,
    files: Slab<SimFile>,
    connections: Vec<Connection>,
    ports: u16,
    buffers_free: BTreeSet<u16>,
    /// Sockets that have bytes and found no buffer, longest waiting first.
    starved: VecDeque<Slot>,
    ready: VecDeque<Ready>,
}

enum Event {
    Connect { connection: usize, listener: Slot },
    Arrive { connection: usize, direction: Direction },
    Reset { connection: usize },
    Written { tag: u64, write: WriteId, file: Slot },
    Read { tag: u64, file: Slot, offset: u64, len: u32, fault: Option<ReadFault> },
}

enum Ready {
    Completion(Completion),
    /// Bytes that become a buffer of the ring when they are handed out.
    Received {
        tag: u64,
        buffer: u16,
        bytes: Vec<u8>,
    },
}

struct SimListener {
    address: SocketAddr,
    accept: Option<u64>,
    backlog: VecDeque<usize>,
}

struct SimSocket {
    connection: usize,
    local: SocketAddr,
    receive: Option<Receive>,
    sends: VecDeque<Sending>,
    send_error: Option<Errno>,
}

struct Receive {
    tag: u64,
    paused: bool,
}

struct Sending {
    tag: u64,
    parts: VecDeque<Bytes>,
    /// How it ends once all parts are sent.
    end: Result<(), Errno>,
}

struct SimFile {
    id: FileId,
    direct: bool,
    users: u32,
    closing: bool,
}

impl SimRing {
    /// A ring with a world of its own, except for the disk, which others may share.
    pub fn new(seed: u64, disk: SimDisk, config: SimConfig) -> SimRing {
        static RINGS: AtomicU32 = AtomicU32::new(0);
        let buffers = vec![Vec::new(); usize::from(config.recv_buffer_count)];
        let world = World {
            now: 0,
            sequence: 0,
            random: Random::new(seed),
            events: BTreeMap::new(),
            buffers_free: (0..config.recv_buffer_count).collect(),
            config,
            disk,
            delay: (Duration::from_micros(5), Duration::from_micros(200)),
            listeners: Slab::new(),
            sockets: Slab::new(),
            files: Slab::new(),
            connections: Vec::new(),
            ports: 20_000,
            starved: VecDeque::new(),
            ready: VecDeque::new(),
        };
        SimRing {
            world: Rc::new(RefCell::new(world)),
            buffers,
            // Only compared: it reaches no decision, so S1 holds.
            number: RINGS.fetch_add(1, Ordering::Relaxed),
            woken: Arc::default(),
        }
    }

    /// The network from which clients reach this ring. It stays usable when the ring has moved into a driver.
    pub fn net(&self) -> SimNet {
        SimNet(Rc::clone(&self.world))
    }
}

impl World {
    fn now(&self) -> Nanos {
        Nanos(self.now)
    }

    fn next_event(&self) -> Option<Nanos> {
        if !self.ready.is_empty() {
            return Some(self.now());
        }
        self.events.first_key_value().map(|((time, _), _)| Nanos(*time))
    }

    fn schedule(&mut self, wait: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + wait.as_nanos() as u64, self.sequence), event);
    }

    fn report(&mut self, tag: u64, outcome: Outcome) {
        self.ready.push_back(Ready::Completion(Completion { tag, outcome }));
    }

    fn listener_at(&self, address: SocketAddr) -> Option<Slot> {
        self.listeners.iter().find(|(_, listener)| listener.address == address).map(|(slot, _)| slot)
    }

    /// Lets everything happen that is due.
    fn happen(&mut self) {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= self.now
        {
            let event = entry.remove();
            self.on_event(event);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Connect { connection, listener } => match self.listeners.get_mut(listener) {
                Some(entry) => {
                    entry.backlog.push_back(connection);
                    self.accept(listener);
                }
                None => self.refuse(connection),
            },
            Event::Arrive { connection, direction } => {
                let changed = self.connections[connection].pipe(direction).on_arrival();
                if changed
                    && direction == Direction::ToServer
                    && let Some(socket) = self.connections[connection].socket
                {
                    self.pump_receive(socket);
                }
            }
            Event::Reset { connection } => self.on_reset(connection),
            Event::Written { tag, write, file } => {
                let result = self.disk.finish_write(write);
                self.release_file(file);
                self.report(tag, Outcome::Written(result));
            }
            Event::Read { tag, file, offset, len, fault } => {
                let id = self.files.get(file).expect("a file lives as long as its operations").id;
                let result = self.disk.finish_read(id, offset, u64::from(len), fault).and_then(|bytes| {
                    if bytes.len() == len as usize {
                        Ok(Bytes::from(bytes))
                    } else {
                        Err(Errno::UnexpectedEof)
                    }
                });
                self.release_file(file);
                self.report(tag, Outcome::Read(result));
            }
        }
    }

    fn accept(&mut self, listener: Slot) {
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        let Some(tag) = entry.accept else { return };
        let local = entry.address;
        for connection in std::mem::take(&mut entry.backlog) {
            if self.connections[connection].reset {
                continue;
            }
            let slot = self.sockets.insert(SimSocket {
                connection,
                local,
                receive: None,
                sends: VecDeque::new(),
                send_error: None,
            });
            self.connections[connection].socket = Some(slot);
            let peer = self.connections[connection].client;
            self.report(tag, Outcome::Accepted(Ok((Socket(slot), peer))));
        }
    }

    /// Nobody will ever serve this connection.
    fn refuse(&mut self, connection: usize) {
        let connection = &mut self.connections[connection];
        connection.server_closed = true;
        connection.to_client.clear();
    }

    fn on_reset(&mut self, connection: usize) {
        self.connections[connection].reset = true;
        self.connections[connection].to_server.clear();
        let Some(slot) = self.connections[connection].socket else { return };
        let Some(socket) = self.sockets.get_mut(slot) else { return };
        socket.send_error = socket.send_error.or(Some(Errno::Reset));
        if let Some(receive) = socket.receive.take() {
            self.report(receive.tag, Outcome::Received(Err(Errno::Reset)));
        }
        self.pump_sends(slot);
    }

    /// Hands out what has arrived, as far as there are buffers.
    fn pump_receive(&mut self, slot: Slot) {
        loop {
            let Some(socket) = self.sockets.get_mut(slot) else { return };
            let Some(Receive { tag, paused: false }) = socket.receive else { return };
            let connection = &mut self.connections[socket.connection];
            let end = if connection.reset {
                Some(Err(Errno::Reset))
            } else if connection.to_server.arrived.is_empty() && connection.to_server.ended {
                Some(Ok(None))
            } else {
                None
            };
            if let Some(end) = end {
                socket.receive = None;
                return self.report(tag, Outcome::Received(end));
            }
            let available = connection.to_server.arrived_bytes().min(self.config.recv_buffer_bytes as usize);
            if available == 0 {
                return;
            }
            let Some(buffer) = self.buffers_free.pop_first() else {
                if !self.starved.contains(&slot) {
                    self.starved.push_back(slot);
                }
                return;
            };
            // TCP keeps no boundaries: now and then a piece ends anywhere.
            let len = if self.random.chance(25) {
                self.random.between(1, available as u64) as usize
            } else {
                available
            };
            let bytes = connection.to_server.take(len);
            self.ready.push_back(Ready::Received { tag, buffer, bytes });
        }
    }

    /// Sends as much as the window takes, in order.
    fn pump_sends(&mut self, slot: Slot) {
        loop {
            let Some(socket) = self.sockets.get_mut(slot) else { return };
            let (connection, error) = (socket.connection, socket.send_error);
            let Some(front) = socket.sends.front_mut() else { return };
            let room = self.connections[connection].to_client.room();
            match front.parts.front_mut() {
                Some(part) if error.is_none() => {
                    let piece = part.split_to(part.len().min(room));
                    if part.is_empty() {
                        front.parts.pop_front();
                    } else if piece.is_empty() {
                        return;
                    }
                    if !piece.is_empty() {
                        self.travel(connection, Direction::ToClient, Chunk::Data(piece));
                    }
                }
                _ => {
                    let sending = socket.sends.pop_front().expect("it was at the front");
                    let result = error.map_or(sending.end, Err);
                    socket.send_error = result.err();
                    self.report(sending.tag, Outcome::Sent(result));
                }
            }
        }
    }

    fn send(&mut self, socket: Slot, sending: Sending) {
        match self.sockets.get_mut(socket) {
            Some(entry) => {
                entry.sends.push_back(sending);
                self.pump_sends(socket);
            }
            None => self.report(sending.tag, Outcome::Sent(Err(Errno::BadHandle))),
        }
    }

    fn close(&mut self, tag: u64, slot: Slot) {
        if let Some(socket) = self.sockets.remove(slot) {
            if let Some(receive) = socket.receive {
                self.report(receive.tag, Outcome::Received(Err(Errno::Cancelled)));
            }
            for sending in socket.sends {
                self.report(sending.tag, Outcome::Sent(Err(Errno::Cancelled)));
            }
            let connection = &mut self.connections[socket.connection];
            connection.socket = None;
            connection.server_closed = true;
            connection.to_server.clear();
            if !connection.reset {
                self.travel(socket.connection, Direction::ToClient, Chunk::End);
            }
        }
        self.report(tag, Outcome::Closed);
    }

    fn release_file(&mut self, slot: Slot) {
        let entry = self.files.get_mut(slot).expect("a file lives as long as its operations");
        entry.users -= 1;
        if entry.closing && entry.users == 0 {
            self.files.remove(slot);
        }
    }

    fn open_file(&mut self, file: File) -> Option<&mut SimFile> {
        self.files.get_mut(file.0).filter(|entry| !entry.closing)
    }

    fn submit(&mut self, tag: u64, op: Op) {
        match op {
            Op::Accept { listener } => match self.listeners.get_mut(listener.0) {
                Some(entry) => {
                    assert!(entry.accept.is_none(), "one Accept at a time per listener");
                    entry.accept = Some(tag);
                    self.accept(listener.0);
                }
                None => self.report(tag, Outcome::Accepted(Err(Errno::BadHandle))),
            },
            Op::Receive { socket } => match self.sockets.get_mut(socket.0) {
                Some(entry) => {
                    assert!(entry.receive.is_none(), "one Receive at a time per socket");
                    entry.receive = Some(Receive { tag, paused: false });
                    self.pump_receive(socket.0);
                }
                None => self.report(tag, Outcome::Received(Err(Errno::BadHandle))),
            },
            Op::Send { socket, parts } => {
                self.send(socket.0, Sending { tag, parts: parts.into(), end: Ok(()) })
            }
            Op::SendFile { socket, file, offset, len } => {
                let disk = self.disk.clone();
                let Some(entry) = self.open_file(file) else {
                    return self.report(tag, Outcome::Sent(Err(Errno::BadHandle)));
                };
                assert!(
                    !entry.direct,
                    "SendFile reads through the page cache: open the file without `direct`"
                );
                let (_, fault) = disk.begin_read();
                let (bytes, end) = match disk.finish_read(entry.id, offset, len, fault) {
                    Ok(bytes) if bytes.len() as u64 == len => (bytes, Ok(())),
                    Ok(bytes) => (bytes, Err(Errno::UnexpectedEof)),
                    Err(error) => (Vec::new(), Err(error)),
                };
                self.send(socket.0, Sending { tag, parts: [Bytes::from(bytes)].into(), end });
            }
            Op::Write { file, offset, data, durable } => {
                let disk = self.disk.clone();
                let Some(entry) = self.open_file(file) else {
                    return self.report(tag, Outcome::Written(Err(Errno::BadHandle)));
                };
                assert!(!entry.direct || is_direct_aligned(offset, &data), "a direct write must be aligned");
                if data.is_empty() {
                    return self.report(tag, Outcome::Written(Ok(())));
                }
                entry.users += 1;
                let (write, time) = disk.begin_write(entry.id, offset, data, durable);
                self.schedule(time, Event::Written { tag, write, file: file.0 });
            }
            Op::Read { file, offset, len } => {
                let disk = self.disk.clone();
                let Some(entry) = self.open_file(file) else {
                    return self.report(tag, Outcome::Read(Err(Errno::BadHandle)));
                };
                entry.users += 1;
                let (time, fault) = disk.begin_read();
                self.schedule(time, Event::Read { tag, file: file.0, offset, len, fault });
            }
            Op::Close { socket } => self.close(tag, socket.0),
        }
    }
}

impl Ring for SimRing {
    fn now(&self) -> Now {
        let now = self.world.borrow().now;
        // Nanoseconds of a simulation as milliseconds: far from overflow.
        Now { monotonic: Nanos(now), wall_ms: WALL_START_MS + (now / 1_000_000) as i64 }
    }

    fn listen(&mut self, mut addr: SocketAddr) -> io::Result<(Listener, SocketAddr)> {
        let world = &mut *self.world.borrow_mut();
        if addr.port() == 0 {
            addr.set_port(world.ports);
            world.ports += 1;
        }
        if world.listener_at(addr).is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let listener = SimListener { address: addr, accept: None, backlog: VecDeque::new() };
        Ok((Listener(world.listeners.insert(listener)), addr))
    }

    fn close_listener(&mut self, listener: Listener) {
        let world = &mut *self.world.borrow_mut();
        let Some(entry) = world.listeners.remove(listener.0) else { return };
        for connection in entry.backlog {
            world.refuse(connection);
        }
        if let Some(tag) = entry.accept {
            world.report(tag, Outcome::Accepted(Err(Errno::Cancelled)));
        }
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<File> {
        let world = &mut *self.world.borrow_mut();
        let id = world.disk.open(path, mode.direct)?;
        Ok(File(world.files.insert(SimFile { id, direct: mode.direct, users: 0, closing: false })))
    }

    fn close_file(&mut self, file: File) {
        let world = &mut *self.world.borrow_mut();
        if let Some(entry) = world.files.get_mut(file.0) {
            entry.closing = true;
            if entry.users == 0 {
                world.files.remove(file.0);
            }
        }
    }

    fn peer(&self, socket: Socket) -> Option<SocketAddr> {
        let world = self.world.borrow();
        world.sockets.get(socket.0).map(|entry| world.connections[entry.connection].client)
    }

    fn local(&self, socket: Socket) -> Option<SocketAddr> {
        self.world.borrow().sockets.get(socket.0).map(|entry| entry.local)
    }

    fn submit(&mut self, tag: u64, op: Op) {
        self.world.borrow_mut().submit(tag, op);
    }

    fn pause_receive(&mut self, socket: Socket) {
        if let Some(entry) = self.world.borrow_mut().sockets.get_mut(socket.0)
            && let Some(receive) = &mut entry.receive
        {
            receive.paused = true;
        }
    }

    fn resume_receive(&mut self, socket: Socket) {
        let world = &mut *self.world.borrow_mut();
        if let Some(entry) = world.sockets.get_mut(socket.0)
            && let Some(receive) = &mut entry.receive
        {
            receive.paused = false;
            world.pump_receive(socket.0);
        }
    }

    /// # Panics
    /// Without a deadline, when nothing can ever happen again: a real ring would wait for ever.
    fn turn(&mut self, deadline: Option<Nanos>, out: &mut Vec<Completion>) -> io::Result<()> {
        let world = &mut *self.world.borrow_mut();
        loop {
            if self.woken.swap(false, Ordering::AcqRel) {
                world.report(WAKE_TAG, Outcome::Woken);
            }
            world.happen();
            if !world.ready.is_empty() {
                break;
            }
            let next = world.next_event().map(|next| next.0);
            let until = match (next, deadline) {
                (Some(next), Some(Nanos(deadline))) => next.min(deadline.max(world.now)),
                (Some(next), None) => next,
                (None, Some(Nanos(deadline))) => deadline.max(world.now),
                (None, None) => panic!("the ring waits without a deadline for something that cannot happen"),
            };
            if deadline.is_some_and(|deadline| next.is_none_or(|next| next > deadline.0)) {
                world.now = until;
                break;
            }
            world.now = until;
        }
        for ready in world.ready.drain(..) {
            out.push(match ready {
                Ready::Completion(completion) => completion,
                Ready::Received { tag, buffer, bytes } => {
                    let len = u32::try_from(bytes.len()).expect("at most recv_buffer_bytes");
                    self.buffers[usize::from(buffer)] = bytes;
                    let buffer = RecvBuffer { ring: self.number, id: buffer, offset: 0, len };
                    Completion { tag, outcome: Outcome::Received(Ok(Some(buffer))) }
                }
            });
        }
        Ok(())
    }

    fn received(&self, buffer: &RecvBuffer) -> &[u8] {
        assert_eq!(buffer.ring, self.number, "a receive buffer of another ring");
        &self.buffers[usize::from(buffer.id)]
    }

    fn recycle(&mut self, buffer: RecvBuffer) {
        assert_eq!(buffer.ring, self.number, "a receive buffer of another ring");
        // Whoever looks at it after this finds nothing.
        self.buffers[usize::from(buffer.id)] = Vec::new();
        let world = &mut *self.world.borrow_mut();
        world.buffers_free.insert(buffer.id);
        while !world.buffers_free.is_empty()
            && let Some(starved) = world.starved.pop_front()
        {
            world.pump_receive(starved);
        }
    }

    fn waker(&self) -> Waker {
        let woken = Arc::clone(&self.woken);
        Waker::new(move || woken.store(true, Ordering::Release))
    }
}

#[cfg(test)]
mod tests;
