//! What goes wrong: drawn for each life of a broker by the seed, and inflicted in its time.
//!
//! Every world bears what a broker must bear without loss. A *hostile* one also has a disk that loses, misplaces and
//! spoils what it has promised to keep, without a word: that costs messages, and has to be reported ([`crate::ledger`]).

use std::time::Duration;

use ringmq_ring::sim::{Direction, Random, ReadFault, WriteFault};

use super::{MILLI, SECOND, World};
use crate::indexes::Harm;

/// Longest that a fault is about to come: lives last seconds.
const LIFE_NANOS: u64 = 4 * SECOND;
const PAGE_BYTES: u64 = 4096;

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Reset,
    Cut(Direction, u64),
    Dawdle(u64),
    ClockJump(i64),
    Write(WriteFault),
    Read(ReadFault),
    DiskLatency(u64, u64),
    NetDelay(u64, u64),
    /// So many bytes are left, for so long.
    NoSpace(u64, u64),
    SlowHousekeeping(u64),
    Spoil(Spoiling),
    /// An index is harmed.
    Index,
}

/// What becomes of something that was promised to be durable.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spoiling {
    FlippedBit,
    /// A page is overwritten with what belongs elsewhere.
    ForeignPage,
    /// Reads of a page give another one from now on.
    MisdirectedReads,
}

impl Fault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Fault::Reset => "connection reset",
            Fault::Cut(..) => "network cut",
            Fault::Dawdle(_) => "client that does not read",
            Fault::ClockJump(_) => "clock jump",
            Fault::Write(WriteFault::Io) => "write EIO",
            Fault::Write(WriteFault::NoSpace) => "write ENOSPC",
            Fault::Write(WriteFault::Misdirected { .. }) => "write misdirected",
            Fault::Write(WriteFault::Lost) => "write lost though reported complete",
            Fault::Write(WriteFault::Slow(_)) => "write slow",
            Fault::Read(ReadFault::Io) => "read EIO",
            Fault::Read(ReadFault::FlipBit) => "read with a wrong bit",
            Fault::Read(ReadFault::Misdirected { .. }) => "read misdirected, once",
            Fault::Read(ReadFault::Short) => "read short",
            Fault::Read(ReadFault::Slow(_)) => "read slow",
            Fault::DiskLatency(..) => "disk slow",
            Fault::NetDelay(..) => "network slow",
            Fault::NoSpace(..) => "disk full",
            Fault::SlowHousekeeping(_) => "housekeeping slow",
            Fault::Index => "index harmed while the broker runs",
            Fault::Spoil(Spoiling::FlippedBit) => "bit flipped on the medium",
            Fault::Spoil(Spoiling::ForeignPage) => "page overwritten on the medium",
            Fault::Spoil(Spoiling::MisdirectedReads) => "reads of a page misdirected, for good",
        }
    }

    fn draw(random: &mut Random) -> Fault {
        let pages = |random: &mut Random| (random.between(1, 64) * PAGE_BYTES) as i64;
        let within = |random: &mut Random, most| Duration::from_nanos(random.below(most));
        match random.below(100) {
            0..16 => Fault::Reset,
            16..24 => {
                let direction = if random.chance(50) { Direction::ToServer } else { Direction::ToClient };
                Fault::Cut(direction, random.between(MILLI, 3 * SECOND))
            }
            24..34 => Fault::Dawdle(random.between(MILLI, 2 * SECOND)),
            34..39 => Fault::ClockJump(random.below(172_800_000) as i64 - 86_400_000),
            39..43 => Fault::Write(WriteFault::Io),
            43..45 => Fault::Write(WriteFault::NoSpace),
            45..54 => {
                let most = [SECOND, 10 * SECOND][random.below(2) as usize];
                Fault::Write(WriteFault::Slow(within(random, most)))
            }
            54..58 => Fault::Read(ReadFault::Io),
            58..63 => Fault::Read(ReadFault::FlipBit),
            63..68 => Fault::Read(ReadFault::Misdirected { by: pages(random) }),
            68..71 => Fault::Read(ReadFault::Short),
            71..74 => Fault::Read(ReadFault::Slow(within(random, SECOND))),
            74..79 => Fault::DiskLatency(random.below(MILLI), random.between(MILLI, 30 * MILLI)),
            79..82 => Fault::DiskLatency(random.below(100 * MILLI), random.between(100 * MILLI, SECOND)),
            82..87 => Fault::NetDelay(random.below(5 * MILLI), random.between(5 * MILLI, 20 * MILLI)),
            87..95 => {
                let most = [1, 1, 64 << 10, 1 << 20][random.below(4) as usize];
                // Some outlast lives.
                let longest = [SECOND, 3 * SECOND, 15 * SECOND][random.below(3) as usize];
                Fault::NoSpace(random.below(most), random.between(10 * MILLI, longest))
            }
            _ => Fault::SlowHousekeeping(random.between(10 * MILLI, SECOND)),
        }
    }

    /// Of a disk that breaks its promises.
    fn draw_hostile(random: &mut Random) -> Fault {
        match random.below(5) {
            0 => Fault::Spoil(Spoiling::FlippedBit),
            1 => Fault::Spoil(Spoiling::ForeignPage),
            2 => Fault::Spoil(Spoiling::MisdirectedReads),
            3 => Fault::Write(WriteFault::Lost),
            // How far is decided when it is known where.
            _ => Fault::Write(WriteFault::Misdirected { by: 0 }),
        }
    }
}

impl World {
    /// Faults of this life, by time.
    pub(super) fn draw_faults(&mut self) {
        for core in &mut self.cores {
            let random = &mut self.random;
            let count = [0, 2, 5, 12][random.below(4) as usize];
            let hostile = if self.is_hostile { random.below(4) } else { 0 };
            let start = core.watch.borrow().base;
            let mut faults: Vec<(u64, Fault)> = Vec::new();
            for index in 0..count + hostile {
                // Lives are long or short: early moments get as many faults as late ones.
                let at = start + (random.below(LIFE_NANOS) >> random.below(12));
                let fault = if index < count { Fault::draw(random) } else { Fault::draw_hostile(random) };
                faults.push((at, fault));
            }
            if self.plan.harms_indexes {
                for _ in 0..random.below(3) {
                    faults.push((start + (random.below(LIFE_NANOS) >> random.below(12)), Fault::Index));
                }
            }
            // Latest first: they are taken from the end.
            faults.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
            core.faults = faults;
        }
    }

    pub(super) fn count_fault(&mut self, name: &'static str) {
        *self.coverage.faults.entry(name).or_default() += 1;
    }

    pub(super) fn inflict(&mut self, index: usize, fault: Fault) {
        self.count_fault(fault.name());
        self.say(index, || format!("fault: {fault:?}"));
        let core = &mut self.cores[index];
        let now = core.now();
        let mut there: Vec<_> = self.clients.iter_mut().filter(|client| client.core == core.number).collect();
        let victim = self.random.below(there.len() as u64) as usize;
        let victim = &mut *there[victim];
        let broker = core.broker.as_mut().expect("it is alive");
        let nanos = Duration::from_nanos;
        match fault {
            Fault::Reset => victim.reset(),
            Fault::Cut(direction, time) => {
                if let Some(wire) = &mut victim.wire {
                    wire.cut(direction, now + time);
                }
            }
            Fault::Dawdle(time) => {
                if let Some(wire) = &mut victim.wire {
                    wire.dawdle(now + time);
                }
            }
            Fault::ClockJump(ms) => {
                core.watch.borrow_mut().wall_shift_ms += ms;
                if ms < 0 {
                    self.checker.clock_went_back(core.number);
                }
            }
            Fault::Write(fault) => {
                if matches!(fault, WriteFault::Lost | WriteFault::Misdirected { .. }) {
                    self.checker.rot();
                    core.trouble.reads_failed = true;
                }
                core.watch.borrow_mut().write_fault = Some(fault);
            }
            Fault::Read(fault) => {
                core.trouble.reads_failed = true;
                core.watch.borrow_mut().read_fault = Some(fault);
            }
            Fault::DiskLatency(low, high) => self.disk.set_latency(nanos(low), nanos(high)),
            Fault::NetDelay(low, high) => broker.net.set_delay(nanos(low), nanos(high)),
            Fault::NoSpace(bytes, time) => {
                // All cores write to the same disk.
                self.cores.iter_mut().for_each(|core| core.trouble.disk_was_full = true);
                self.disk.set_space_left(Some(bytes));
                self.room_at = Some(now + time);
            }
            Fault::SlowHousekeeping(slowest) => broker.housekeeping.slowest = slowest,
            Fault::Index => self.harm_index(index),
            Fault::Spoil(spoiling) => self.spoil(index, spoiling),
        }
    }

    pub(super) fn make_room(&mut self) {
        self.disk.set_space_left(None);
        self.room_at = None;
    }

    /// Harms an index, if there is any.
    pub(super) fn harm_index(&mut self, index: usize) {
        let harm = [Harm::FlippedBit, Harm::FlippedBit, Harm::Truncated, Harm::Removed];
        let harm = harm[self.random.below(4) as usize];
        let core = &mut self.cores[index];
        let harmed = core.watch.borrow_mut().indexes.harm(harm, &mut self.random);
        if let Some((segment, pages)) = harmed {
            core.trouble.index_harmed = true;
            self.say(index, || format!("index: {harm:?} of segment {segment}, pages {pages:?}"));
        }
    }

    /// Spoils what was written long ago, so that what was written since proves that it was durable.
    fn spoil(&mut self, index: usize, spoiling: Spoiling) {
        let core = &mut self.cores[index];
        let watch = &mut *core.watch.borrow_mut();
        let Some(block) = watch.ledger.old_block(&mut self.random) else { return };
        let position = block.start + self.random.below(block.end - block.start);
        let page = position - position % PAGE_BYTES;
        let (path, offset) = watch.ledger.place(position);
        let page_offset = offset - offset % PAGE_BYTES;
        // Of the same file, and surely another one.
        let other = (page_offset + PAGE_BYTES * self.random.between(1, 100)) % self.segment_bytes;
        let spoiled = match spoiling {
            Spoiling::FlippedBit => {
                let spoiled = self.disk.flip_bit(&path, offset, self.random.below(8) as u8);
                spoiled.map(|()| position..position + 1)
            }
            Spoiling::ForeignPage => {
                let mut foreign = [0; PAGE_BYTES as usize];
                let read = self.disk.read_at(&path, other, &mut foreign);
                let spoiled = read.and_then(|_| self.disk.scribble(&path, page_offset, &foreign));
                spoiled.map(|()| page..page + PAGE_BYTES)
            }
            Spoiling::MisdirectedReads => {
                let spoiled = self.disk.misdirect_reads(&path, page_offset, other);
                spoiled.map(|()| page..page + PAGE_BYTES)
            }
        };
        watch.ledger.make_wrong(&spoiled.expect("it was written"));
        self.checker.rot();
        core.trouble.reads_failed = true;
    }
}
