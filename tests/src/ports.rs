//! Free loopback ports.
//!
//! They are taken from below the range that the kernel gives to outgoing connections: a client's socket must not sit on
//! a broker's port while the broker is down and about to come back.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// Ports of neighbouring shards are this far apart.
pub const SHARD_STEP: u16 = 10;
/// Below a shard's port, for clients with the VIP channel.
pub const VIP_BELOW: u16 = 2;

const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;

/// Handed out by this process already, so that tests side by side do not get the same ones.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port `P` such that `P + 10·i` and `P − 2 + 10·i` are free for each of the shards.
pub fn free_for_shards(shards: u16) -> u16 {
    let below = |port: u16| [port, port - VIP_BELOW];
    find(|first| (0..shards).flat_map(|shard| below(first + SHARD_STEP * shard)).collect())
}

/// A free port.
pub fn free() -> u16 {
    find(|port| vec![port])
}

fn find(wanted: impl Fn(u16) -> Vec<u16>) -> u16 {
    let mut taken = TAKEN.lock().expect("nobody panics while holding it");
    for _ in 0..10_000 {
        // Random, for the sake of other processes that look at the same time.
        let first = rand::random_range(FIRST..LAST);
        let ports = wanted(first);
        if ports.iter().all(|port| !taken.contains(port) && is_free(*port)) {
            taken.extend(ports);
            return first;
        }
    }
    panic!("no free ports between {FIRST} and {LAST}");
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
