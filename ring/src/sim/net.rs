//! The network: connections of two one-way pipes each, and the clients' ends of them.
//!
//! N1  Bytes of a direction arrive in order, none twice, none lost but by a reset.
//! N2  At most [`WINDOW_BYTES`] of a direction are on the way or unread: who reads slowly is sent to slowly.
//! N3  While a direction is cut nothing arrives; mended, everything does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::{Event, World};
use crate::{Nanos, Slot};

/// Bytes of one direction of a connection that were sent and not read.
pub const WINDOW_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    ToServer,
    ToClient,
}

pub(super) enum Chunk {
    Data(Bytes),
    End,
}

#[derive(Default)]
pub(super) struct Pipe {
    travelling: VecDeque<Chunk>,
    pub(super) arrived: VecDeque<Bytes>,
    /// Sent and not read.
    bytes: usize,
    /// When the last chunk on its way arrives: a later one does not overtake it.
    last_arrival: u64,
    end_sent: bool,
    /// The end has arrived: after what is unread nothing comes.
    pub(super) ended: bool,
    cut: bool,
    /// Arrivals that were due while it was cut.
    held: usize,
}

impl Pipe {
    pub(super) fn room(&self) -> usize {
        if self.end_sent { 0 } else { WINDOW_BYTES - self.bytes }
    }

    pub(super) fn arrived_bytes(&self) -> usize {
        self.arrived.iter().map(Bytes::len).sum()
    }

    /// Up to `max` bytes of what has arrived.
    pub(super) fn take(&mut self, max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < max
            && let Some(front) = self.arrived.front_mut()
        {
            let piece = front.len().min(max - bytes.len());
            bytes.extend_from_slice(&front[..piece]);
            front.advance(piece);
            if front.is_empty() {
                self.arrived.pop_front();
            }
        }
        self.bytes -= bytes.len();
        bytes
    }

    /// The next chunk is due. Returns whether anything has changed for the reader.
    pub(super) fn on_arrival(&mut self) -> bool {
        if self.cut {
            self.held += 1;
            return false;
        }
        match self.travelling.pop_front() {
            Some(Chunk::Data(bytes)) => self.arrived.push_back(bytes),
            Some(Chunk::End) => self.ended = true,
            // A reset has emptied it.
            None => return false,
        }
        true
    }

    pub(super) fn clear(&mut self) {
        *self = Pipe { end_sent: true, ended: true, cut: self.cut, ..Pipe::default() };
    }
}

pub(super) struct Connection {
    pub(super) client: SocketAddr,
    pub(super) to_server: Pipe,
    pub(super) to_client: Pipe,
    /// The server's end, once it is accepted and until it is closed.
    pub(super) socket: Option<Slot>,
    pub(super) server_closed: bool,
    /// The client has reset it, and the server knows.
    pub(super) reset: bool,
    pub(super) client_reset: bool,
}

impl Connection {
    pub(super) fn pipe(&mut self, direction: Direction) -> &mut Pipe {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

/// Makes clients of a ring, and tells its time. Clones are the same network.
#[derive(Clone)]
pub struct SimNet(pub(super) Rc<RefCell<World>>);

impl SimNet {
    /// A connection to a listening address: refused if nobody listens there, else accepted as soon as the ring does.
    pub fn connect(&self, server: SocketAddr) -> io::Result<SimClient> {
        let world = &mut *self.0.borrow_mut();
        let listener = world.listener_at(server).ok_or(io::ErrorKind::ConnectionRefused)?;
        let number = world.connections.len();
        // Distinct for the first 2^14 connections, which tells a test apart what it looks at.
        let port = 49_152 + (number % 16_384) as u16;
        world.connections.push(Connection {
            client: SocketAddr::new(server.ip(), port),
            to_server: Pipe::default(),
            to_client: Pipe::default(),
            socket: None,
            server_closed: false,
            reset: false,
            client_reset: false,
        });
        let time = world.draw_delay();
        world.schedule(time, Event::Connect { connection: number, listener });
        Ok(SimClient { world: Rc::clone(&self.0), number })
    }

    /// How long bytes travel, drawn anew for each piece.
    pub fn set_delay(&self, low: Duration, high: Duration) {
        self.0.borrow_mut().delay = (low, high.max(low));
    }

    pub fn now(&self) -> Nanos {
        self.0.borrow().now()
    }

    /// When something will happen by itself next; `None` if nothing will.
    pub fn next_event(&self) -> Option<Nanos> {
        self.0.borrow().next_event()
    }
}

/// The client's end of a connection. It never waits: each call does what can be done at this instant.
pub struct SimClient {
    world: Rc<RefCell<World>>,
    number: usize,
}

impl SimClient {
    pub fn address(&self) -> SocketAddr {
        self.world.borrow().connections[self.number].client
    }

    /// Sends as much as fits the window and returns how much that was. BrokenPipe once the server has closed.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let world = &mut *self.world.borrow_mut();
        let connection = &world.connections[self.number];
        if connection.server_closed || connection.client_reset || connection.to_server.end_sent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = bytes.len().min(connection.to_server.room());
        if len > 0 {
            let data = Bytes::copy_from_slice(&bytes[..len]);
            world.travel(self.number, Direction::ToServer, Chunk::Data(data));
        }
        Ok(len)
    }

    /// Up to `max` of the bytes that have arrived; none does not mean the end.
    pub fn read(&self, max: usize) -> Vec<u8> {
        let world = &mut *self.world.borrow_mut();
        let bytes = world.connections[self.number].to_client.take(max);
        if !bytes.is_empty()
            && let Some(socket) = world.connections[self.number].socket
        {
            world.pump_sends(socket);
        }
        bytes
    }

    /// Bytes that have arrived and were not read.
    pub fn unread(&self) -> usize {
        self.world.borrow().connections[self.number].to_client.arrived_bytes()
    }

    /// Whether the server has ended its stream and all of it was read.
    pub fn is_ended(&self) -> bool {
        let world = self.world.borrow();
        let pipe = &world.connections[self.number].to_client;
        pipe.ended && pipe.arrived.is_empty()
    }

    /// Ends the client's stream; it can still read.
    pub fn finish(&self) {
        let world = &mut *self.world.borrow_mut();
        if !world.connections[self.number].to_server.end_sent {
            world.travel(self.number, Direction::ToServer, Chunk::End);
        }
    }

    /// Drops the connection at once: what is on its way in either direction is lost.
    pub fn reset(&self) {
        let world = &mut *self.world.borrow_mut();
        let connection = &mut world.connections[self.number];
        connection.client_reset = true;
        connection.to_client.clear();
        let time = world.draw_delay();
        world.schedule(time, Event::Reset { connection: self.number });
    }

    /// From now on nothing arrives in this direction.
    pub fn cut(&self, direction: Direction) {
        self.world.borrow_mut().connections[self.number].pipe(direction).cut = true;
    }

    /// What should have arrived meanwhile arrives now.
    pub fn mend(&self, direction: Direction) {
        let world = &mut *self.world.borrow_mut();
        let pipe = world.connections[self.number].pipe(direction);
        pipe.cut = false;
        for _ in 0..std::mem::take(&mut pipe.held) {
            world.schedule(Duration::ZERO, Event::Arrive { connection: self.number, direction });
        }
    }
}

impl World {
    /// Sends a chunk on its way.
    pub(super) fn travel(&mut self, connection: usize, direction: Direction, chunk: Chunk) {
        let now = self.now;
        let earliest = now + self.draw_delay().as_nanos() as u64;
        let pipe = self.connections[connection].pipe(direction);
        match &chunk {
            Chunk::Data(bytes) => pipe.bytes += bytes.len(),
            Chunk::End => pipe.end_sent = true,
        }
        pipe.travelling.push_back(chunk);
        pipe.last_arrival = pipe.last_arrival.max(earliest);
        let wait = Duration::from_nanos(pipe.last_arrival - now);
        self.schedule(wait, Event::Arrive { connection, direction });
    }

    pub(super) fn draw_delay(&mut self) -> Duration {
        let (low, high) = self.delay;
        Duration::from_nanos(self.random.between(low.as_nanos() as u64, high.as_nanos() as u64))
    }
}
