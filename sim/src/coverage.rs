//! What happened in a run, to be counted: what never happens is not tested.

use std::collections::BTreeMap;

use ringmq_ring::sim::CrashReport;

use crate::indexes::IndexHarm;
use crate::ledger::Corruption;

/// What happened in a run besides sends and pulls.
#[derive(Clone, Default, Debug)]
pub struct Coverage {
    pub requests: u64,
    pub crashes: u64,
    pub stops: u64,
    pub faults: BTreeMap<&'static str, u64>,
    /// Fates of sectors in crashes: of writes that were not durable.
    pub sectors: CrashReport,
    pub corruption: Corruption,
    /// Reads that were made to go wrong where it matters, and those of them that the broker mentioned.
    pub stutters: u64,
    pub stutters_reported: u64,
    /// Acknowledged messages that were allowed to be lost with the end of the log, and were.
    pub lost_at_end: u64,
    /// Offsets of queues that lost all of their messages by corruption: they may be given again.
    pub free_again: u64,
    pub async_lives: u64,
    pub segments: u64,
    /// Of those, the ones that were made of the file of a released one.
    pub recycled: u64,
    /// Times that a segment was rewritten without messages that were given up.
    pub rewritten: u64,
    pub disk_reads: u64,
    pub disk_writes: u64,
    pub busy: u64,
    pub no_space: u64,
    pub failed: u64,
    pub long_polls: u64,
    pub cut_tails: u64,
    pub damage_reports: u64,
    pub failed_logs: u64,
    pub deleted_topics: u64,
    /// Sends that were taken again after all faults were taken back.
    pub probes: u64,
    /// Old segments that were released, and times that one was due and kept.
    pub released: u64,
    pub kept: u64,
    /// Starts that found a released segment still there.
    pub interrupted: u64,
    pub index_harm: IndexHarm,
    pub look_ups: u64,
    /// Delayed messages that were accepted, and copies of messages that were sent back.
    pub delayed: u64,
    pub sent_back: u64,
    /// Times that a message was popped.
    pub popped: u64,
    pub popped_in_order: u64,
    /// Pulls that were told of a later beginning of their queue.
    pub moved: u64,
}

impl Coverage {
    pub fn add(&mut self, other: &Coverage) {
        self.requests += other.requests;
        self.crashes += other.crashes;
        self.stops += other.stops;
        for (fault, count) in &other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        self.add_sectors(other.sectors);
        self.corruption.add(other.corruption);
        self.stutters += other.stutters;
        self.stutters_reported += other.stutters_reported;
        self.lost_at_end += other.lost_at_end;
        self.free_again += other.free_again;
        self.async_lives += other.async_lives;
        self.segments += other.segments;
        self.recycled += other.recycled;
        self.rewritten += other.rewritten;
        self.disk_reads += other.disk_reads;
        self.disk_writes += other.disk_writes;
        self.busy += other.busy;
        self.no_space += other.no_space;
        self.failed += other.failed;
        self.long_polls += other.long_polls;
        self.cut_tails += other.cut_tails;
        self.damage_reports += other.damage_reports;
        self.failed_logs += other.failed_logs;
        self.deleted_topics += other.deleted_topics;
        self.probes += other.probes;
        self.released += other.released;
        self.kept += other.kept;
        self.interrupted += other.interrupted;
        self.moved += other.moved;
        self.popped += other.popped;
        self.popped_in_order += other.popped_in_order;
        self.look_ups += other.look_ups;
        self.index_harm.add(other.index_harm);
        self.delayed += other.delayed;
        self.sent_back += other.sent_back;
    }

    pub(crate) fn add_sectors(&mut self, sectors: CrashReport) {
        self.sectors.lost += sectors.lost;
        self.sectors.kept += sectors.kept;
        self.sectors.torn += sectors.torn;
    }
}
