//! What a test of the suite needs of a ring's surroundings.

pub(crate) mod real;
pub(crate) mod simulated;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use ringmq_ring::{Access, Completion, File, Listener, Nanos, Op, OpenMode, Outcome, Ring, Socket, WAKE_TAG};

/// What a client does, one after the other.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Write(Vec<u8>),
    /// Reads exactly so many bytes.
    Read(usize),
    /// Reads until the server ends the stream, or the connection.
    ReadToEnd,
    /// Ends its own stream; it can still read.
    Finish,
    /// Drops the connection with a reset.
    Reset,
    /// Waits until the test opens the gate of this number.
    Gate(u32),
    /// Reaches the test as a wake-up.
    Wake,
}

/// A client by the order of its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) usize);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) recv_buffer_count: u16,
    pub(crate) recv_buffer_bytes: u32,
    pub(crate) pipes_max: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { recv_buffer_count: 32, recv_buffer_bytes: 16 << 10, pipes_max: 8 }
    }
}

pub(crate) trait Surroundings {
    type Ring: Ring;
    /// More bytes than a connection holds between a sender and a reader who does not read.
    const STALLS: usize;
    fn ring(&mut self) -> &mut Self::Ring;
    /// One turn of the ring that ends with completions. Panics if there are none for long.
    fn turn(&mut self) -> Vec<Completion>;
    /// Turns, while clients go on as well, until this time.
    fn turn_until(&mut self, deadline: Nanos) -> Vec<Completion>;
    fn start(&mut self, server: SocketAddr, script: Vec<Act>) -> Client;
    fn open_gate(&mut self, gate: u32);
    /// All that the client has read, after its script has ended.
    fn end(&mut self, client: Client) -> Vec<u8>;
    fn make_file(&mut self, name: &str, content: &[u8]) -> PathBuf;
    fn content(&mut self, path: &Path) -> Vec<u8>;
    /// Whether files here can be opened with `direct`.
    fn is_direct(&self) -> bool;
}

/// The server's side of a test: keeps completions until the test asks for them.
pub(crate) struct Server<S> {
    pub(crate) at: S,
    arrived: Vec<Completion>,
}

impl<S: Surroundings> Server<S> {
    pub(crate) fn new(at: S) -> Server<S> {
        Server { at, arrived: Vec::new() }
    }

    pub(crate) fn ring(&mut self) -> &mut S::Ring {
        self.at.ring()
    }

    pub(crate) fn submit(&mut self, tag: u64, op: Op) {
        self.ring().submit(tag, op);
    }

    /// The next completion of this tag, in order; others are kept.
    pub(crate) fn next(&mut self, tag: u64) -> Outcome {
        loop {
            if let Some(index) = self.arrived.iter().position(|completion| completion.tag == tag) {
                return self.arrived.remove(index).outcome;
            }
            let completions = self.at.turn();
            self.arrived.extend(completions);
        }
    }

    /// The next completion of any tag.
    pub(crate) fn any(&mut self) -> Completion {
        while self.arrived.is_empty() {
            self.arrived = self.at.turn();
        }
        self.arrived.remove(0)
    }

    /// Whether a completion of this tag has arrived already.
    pub(crate) fn has(&self, tag: u64) -> bool {
        self.arrived.iter().any(|completion| completion.tag == tag)
    }

    /// Collects for a while and keeps what arrives.
    pub(crate) fn collect_for(&mut self, time: Duration) {
        let deadline = self.ring().now().monotonic.plus(time);
        let completions = self.at.turn_until(deadline);
        self.arrived.extend(completions);
    }

    pub(crate) fn listen(&mut self, tag: u64) -> (Listener, SocketAddr) {
        let (listener, address) = self.ring().listen("127.0.0.1:0".parse().unwrap()).unwrap();
        self.submit(tag, Op::Accept { listener });
        (listener, address)
    }

    pub(crate) fn accept(&mut self, tag: u64) -> Socket {
        match self.next(tag) {
            Outcome::Accepted(Ok((socket, peer))) => {
                assert_eq!(self.ring().peer(socket), Some(peer));
                socket
            }
            other => panic!("expected a connection, got {other:?}"),
        }
    }

    /// Starts a client and accepts it.
    pub(crate) fn connect(&mut self, script: Vec<Act>) -> (Client, Socket) {
        const ACCEPT: u64 = 1 << 60;
        let (listener, address) = self.listen(ACCEPT);
        let client = self.at.start(address, script);
        let socket = self.accept(ACCEPT);
        self.ring().close_listener(listener);
        assert!(matches!(self.next(ACCEPT), Outcome::Accepted(Err(_))));
        (client, socket)
    }

    /// The next received bytes, or `None` at the end of the stream. The buffer goes back.
    pub(crate) fn receive(&mut self, tag: u64) -> Option<Vec<u8>> {
        match self.next(tag) {
            Outcome::Received(Ok(Some(buffer))) => {
                let bytes = self.ring().received(&buffer).to_vec();
                assert_eq!(bytes.len(), buffer.len());
                assert!(!bytes.is_empty());
                self.ring().recycle(buffer);
                Some(bytes)
            }
            Outcome::Received(Ok(None)) => None,
            other => panic!("expected bytes, got {other:?}"),
        }
    }

    pub(crate) fn receive_exactly(&mut self, tag: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            bytes.extend(self.receive(tag).expect("more bytes"));
        }
        assert_eq!(bytes.len(), len);
        bytes
    }

    pub(crate) fn send(&mut self, tag: u64, socket: Socket, bytes: impl Into<Bytes>) {
        self.submit(tag, Op::Send { socket, parts: vec![bytes.into()] });
        self.expect_sent(tag);
    }

    pub(crate) fn expect_sent(&mut self, tag: u64) {
        let outcome = self.next(tag);
        assert!(matches!(outcome, Outcome::Sent(Ok(()))), "{outcome:?}");
    }

    pub(crate) fn close(&mut self, tag: u64, socket: Socket) {
        self.submit(tag, Op::Close { socket });
        let outcome = self.next(tag);
        assert!(matches!(outcome, Outcome::Closed), "{outcome:?}");
    }

    pub(crate) fn expect_woken(&mut self) {
        assert!(matches!(self.next(WAKE_TAG), Outcome::Woken));
    }

    pub(crate) fn open(&mut self, path: &Path, access: Access, direct: bool) -> File {
        self.ring().open(path, OpenMode { access, direct }).unwrap()
    }
}

/// Bytes that tell their position, so that a piece out of place is seen.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let words = 0..len.div_ceil(8) as u64;
    let mut bytes: Vec<u8> =
        words.flat_map(|i| (i ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).collect();
    bytes.truncate(len);
    bytes
}
