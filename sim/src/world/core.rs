//! One shard of a simulated broker: its process time, its ring and files, and what goes wrong with it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;

use ringmq::driver::Driver;
use ringmq_ring::sim::{SimDisk, SimNet};

use super::faults::Fault;
use crate::backstage::{Housekeeping, SimStore};
use crate::client::Trouble;
use crate::indexes::IndexLedger;
use crate::ledger::Ledger;
use crate::ring::{Planted, SharedWatch, Watch, WatchedRing};

/// A shard that is alive.
pub(super) struct Broker {
    pub(super) driver: Driver<WatchedRing>,
    pub(super) net: SimNet,
    pub(super) housekeeping: Housekeeping,
    pub(super) record_bytes_max: u32,
    /// It was asked to stop, and has.
    pub(super) has_stopped: bool,
}

/// A shard through all of its lives.
pub(super) struct Core {
    pub(super) number: u64,
    pub(super) address: SocketAddr,
    pub(super) store: SimStore,
    pub(super) watch: SharedWatch,
    pub(super) trouble: Trouble,
    /// Latest first.
    pub(super) faults: Vec<(u64, Fault)>,
    pub(super) broker: Option<Broker>,
    /// Everything acknowledged was made durable by a stop.
    pub(super) is_flushed: bool,
    /// From here on the end of the log may be lost.
    pub(super) may_lose_from: Option<u64>,
}

impl Core {
    pub(super) fn new(
        number: u64,
        disk: SimDisk,
        segment_bytes: u64,
        planted: Option<Planted>,
        seed: u64,
    ) -> Core {
        let directory = Path::new("/").join(format!("shard-{number}"));
        let store = SimStore { disk, directory };
        let ledger = Ledger::new(store.clone(), segment_bytes);
        let indexes = IndexLedger::new(store.clone());
        Core {
            number,
            // Ports as docs/architecture.md has them.
            address: SocketAddr::from(([10, 0, 0, 1], 10_911 + 10 * number as u16)),
            store,
            watch: Rc::new(RefCell::new(Watch::new(seed, planted, ledger, indexes))),
            trouble: Trouble::default(),
            faults: Vec::new(),
            broker: None,
            is_flushed: false,
            may_lose_from: None,
        }
    }

    /// Time since the beginning of the run, in nanoseconds.
    pub(super) fn now(&self) -> u64 {
        let life = self.broker.as_ref().map_or(0, |broker| broker.net.now().0);
        self.watch.borrow().base + life
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.broker.as_ref().is_some_and(|broker| broker.has_stopped)
    }

    pub(super) fn broker(&mut self) -> &mut Broker {
        self.broker.as_mut().expect("it is alive")
    }
}
