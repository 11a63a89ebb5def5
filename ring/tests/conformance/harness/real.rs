//! The kernel's ring: clients are threads with sockets of the standard library, files are in the target directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ringmq_ring::{Completion, Config, Nanos, Ring, Uring, Waker};

use super::{Act, Bounds, Client, Surroundings};

/// So long nothing may happen before a test is given up. It bounds a failure; no test that passes waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Each gate wakes only those that wait at it.
#[derive(Default)]
struct Gates(Mutex<BTreeMap<u32, Arc<Gate>>>);

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gates {
    fn gate(&self, gate: u32) -> Arc<Gate> {
        Arc::clone(self.0.lock().unwrap().entry(gate).or_default())
    }

    fn open(&self, gate: u32) {
        let gate = self.gate(gate);
        *gate.open.lock().unwrap() = true;
        gate.opened.notify_all();
    }

    fn wait(&self, number: u32) {
        let gate = self.gate(number);
        let open = gate.open.lock().unwrap();
        let (_open, timeout) = gate.opened.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
        assert!(!timeout.timed_out(), "gate {number} was never opened");
    }
}

pub(crate) struct Real {
    ring: Uring,
    directory: PathBuf,
    gates: Arc<Gates>,
    clients: Vec<Option<JoinHandle<Vec<u8>>>>,
}

impl Real {
    pub(crate) fn new(bounds: Bounds) -> Real {
        Real::with(bounds, false)
    }

    pub(crate) fn incremental(bounds: Bounds) -> Real {
        Real::with(bounds, true)
    }

    fn with(bounds: Bounds, recv_incremental: bool) -> Real {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ring-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&directory).unwrap();
        let ring = Uring::new(Config {
            recv_buffer_count: bounds.recv_buffer_count,
            recv_buffer_bytes: bounds.recv_buffer_bytes,
            recv_incremental,
            pipes_max: bounds.pipes_max,
            ..Config::default()
        })
        .unwrap();
        Real { ring, directory, gates: Arc::default(), clients: Vec::new() }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Surroundings for Real {
    type Ring = Uring;
    // A send buffer grows to 4 MiB by default; a receive buffer grows only while it is read.
    const STALLS: usize = 16 << 20;

    fn ring(&mut self) -> &mut Uring {
        &mut self.ring
    }

    fn turn(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        let deadline = self.ring.now().monotonic.plus(PATIENCE);
        self.ring.turn(Some(deadline), &mut out).unwrap();
        assert!(!out.is_empty(), "nothing happened for {PATIENCE:?}");
        out
    }

    fn turn_until(&mut self, deadline: Nanos) -> Vec<Completion> {
        let mut out = Vec::new();
        while self.ring.now().monotonic < deadline {
            self.ring.turn(Some(deadline), &mut out).unwrap();
        }
        out
    }

    fn start(&mut self, server: SocketAddr, script: Vec<Act>) -> Client {
        let (gates, waker) = (Arc::clone(&self.gates), self.ring.waker());
        self.clients.push(Some(std::thread::spawn(move || play(server, &script, &gates, &waker))));
        Client(self.clients.len() - 1)
    }

    fn open_gate(&mut self, gate: u32) {
        self.gates.open(gate);
    }

    fn end(&mut self, client: Client) -> Vec<u8> {
        // What the ring still has to send must not need a turn: tests ask for the end after the last completion.
        self.clients[client.0].take().expect("asked once").join().unwrap()
    }

    fn make_file(&mut self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn content(&mut self, path: &Path) -> Vec<u8> {
        fs::read(path).unwrap()
    }

    fn is_direct(&self) -> bool {
        let probe = self.directory.join("probe");
        let file = fs::File::create(&probe).unwrap();
        let direct = ringmq_ring::direct_alignment(&file).unwrap().is_some();
        fs::remove_file(&probe).unwrap();
        direct
    }
}

fn play(server: SocketAddr, script: &[Act], gates: &Gates, waker: &Waker) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut read = Vec::new();
    for act in script {
        match act {
            // A server that closes while we write is part of some tests.
            Act::Write(bytes) => drop(stream.write_all(bytes)),
            Act::Read(len) => {
                let start = read.len();
                read.resize(start + len, 0);
                stream.read_exact(&mut read[start..]).unwrap();
            }
            Act::ReadToEnd => match stream.read_to_end(&mut read) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            },
            Act::Finish => stream.shutdown(Shutdown::Write).unwrap(),
            Act::Reset => {
                // A close with unread data in our receive buffer is a reset. The test has sent some: wait for it.
                stream.peek(&mut [0]).unwrap();
                return read;
            }
            Act::Gate(gate) => gates.wait(*gate),
            Act::Wake => waker.wake(),
        }
    }
    read
}
