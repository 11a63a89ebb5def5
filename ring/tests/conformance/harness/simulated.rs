//! The simulated ring: clients are scripts that go on whenever the network lets them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ringmq_ring::sim::{SimClient, SimConfig, SimDisk, SimNet, SimRing, WINDOW_BYTES};
use ringmq_ring::{Completion, Nanos, Ring};

use super::{Act, Bounds, Client, Surroundings};

pub(crate) struct Simulated {
    ring: SimRing,
    net: SimNet,
    disk: SimDisk,
    gates: BTreeSet<u32>,
    /// Clients that wait at a closed gate.
    waiting: BTreeMap<u32, Vec<usize>>,
    clients: Vec<Player>,
    /// Those whose script has not ended and that wait at no gate.
    playing: Vec<usize>,
    /// Arrived while the end of a client was waited for.
    kept: Vec<Completion>,
}

struct Player {
    client: SimClient,
    script: Vec<Act>,
    /// Acts done, and bytes of the current one.
    done: usize,
    bytes: usize,
    read: Vec<u8>,
}

impl Simulated {
    pub(crate) fn new(bounds: Bounds, seed: u64) -> Simulated {
        let disk = SimDisk::new(seed);
        let config = SimConfig {
            recv_buffer_count: bounds.recv_buffer_count,
            recv_buffer_bytes: bounds.recv_buffer_bytes,
        };
        let ring = SimRing::new(seed, disk.clone(), config);
        let net = ring.net();
        Simulated {
            ring,
            net,
            disk,
            gates: BTreeSet::new(),
            waiting: BTreeMap::new(),
            clients: Vec::new(),
            playing: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Lets every client do what it can at this instant.
    fn play(&mut self) {
        let waker = self.ring.waker();
        for &index in &self.playing {
            let player = &mut self.clients[index];
            while let Some(act) = player.script.get(player.done) {
                let finished = match act {
                    Act::Write(bytes) => match player.client.write(&bytes[player.bytes..]) {
                        Ok(0) => false,
                        Ok(len) => {
                            player.bytes += len;
                            player.bytes == bytes.len()
                        }
                        Err(_) => true,
                    },
                    Act::Read(len) => {
                        let read = player.client.read(len - player.bytes);
                        player.bytes += read.len();
                        player.read.extend(read);
                        player.bytes == *len
                    }
                    Act::ReadToEnd => {
                        player.read.extend(player.client.read(usize::MAX));
                        player.client.is_ended()
                    }
                    Act::Finish => {
                        player.client.finish();
                        true
                    }
                    Act::Reset => {
                        let arrived = player.client.unread() > 0;
                        if arrived {
                            player.client.reset();
                        }
                        arrived
                    }
                    Act::Gate(gate) => self.gates.contains(gate),
                    Act::Wake => {
                        waker.wake();
                        true
                    }
                };
                if !finished {
                    break;
                }
                player.bytes = 0;
                player.done += 1;
                if player.done == player.script.len() {
                    // As a client that goes away.
                    player.client.finish();
                }
            }
        }
        let (clients, gates, waiting) = (&self.clients, &self.gates, &mut self.waiting);
        self.playing.retain(|&index| match clients[index].script.get(clients[index].done) {
            Some(Act::Gate(gate)) if !gates.contains(gate) => {
                waiting.entry(*gate).or_default().push(index);
                false
            }
            act => act.is_some(),
        });
    }

    /// Time goes on to the next event, at most to `until`. Returns whether there is something left to wait for.
    fn step(&mut self, until: Nanos, out: &mut Vec<Completion>) -> bool {
        self.play();
        let now = self.ring.now().monotonic;
        let before = out.len();
        self.ring.turn(Some(now), out).unwrap();
        self.play();
        if out.len() > before {
            return true;
        }
        let next = self.net.next_event().filter(|next| *next <= until);
        self.ring.turn(Some(next.unwrap_or(until)), out).unwrap();
        next.is_some()
    }
}

impl Surroundings for Simulated {
    type Ring = SimRing;
    const STALLS: usize = 4 * WINDOW_BYTES;

    fn ring(&mut self) -> &mut SimRing {
        &mut self.ring
    }

    fn turn(&mut self) -> Vec<Completion> {
        let mut out = std::mem::take(&mut self.kept);
        while out.is_empty() {
            // A client's wake-up is no event: it shows only in the turn after it.
            let until = self.net.next_event().unwrap_or(self.ring.now().monotonic);
            let more = self.step(until, &mut out);
            assert!(more || !out.is_empty() || self.net.next_event().is_some(), "nothing will ever happen");
        }
        out
    }

    fn turn_until(&mut self, deadline: Nanos) -> Vec<Completion> {
        let mut out = std::mem::take(&mut self.kept);
        while self.ring.now().monotonic < deadline {
            self.step(deadline, &mut out);
        }
        out
    }

    fn start(&mut self, server: SocketAddr, script: Vec<Act>) -> Client {
        let client = self.net.connect(server).unwrap();
        self.clients.push(Player { client, script, done: 0, bytes: 0, read: Vec::new() });
        self.playing.push(self.clients.len() - 1);
        Client(self.clients.len() - 1)
    }

    fn open_gate(&mut self, gate: u32) {
        self.gates.insert(gate);
        self.playing.extend(self.waiting.remove(&gate).unwrap_or_default());
    }

    fn end(&mut self, client: Client) -> Vec<u8> {
        let mut out = Vec::new();
        while self.clients[client.0].done < self.clients[client.0].script.len() {
            let until = self.net.next_event().unwrap_or(self.ring.now().monotonic);
            let more = self.step(until, &mut out);
            let player = &self.clients[client.0];
            assert!(more || player.done == player.script.len(), "the client waits for ever");
        }
        self.kept.append(&mut out);
        std::mem::take(&mut self.clients[client.0].read)
    }

    fn make_file(&mut self, name: &str, content: &[u8]) -> PathBuf {
        let path = Path::new("/data").join(name);
        self.disk.create(&path).unwrap();
        self.disk.write_at(&path, 0, content).unwrap();
        path
    }

    fn content(&mut self, path: &Path) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(self.disk.len(path).unwrap()).unwrap()];
        self.disk.read_at(path, 0, &mut content).unwrap();
        content
    }

    fn is_direct(&self) -> bool {
        true
    }
}
