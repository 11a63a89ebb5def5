//! C8: a pull takes its messages out of several stretches, one after the other, before it is answered.

use bytes::Bytes;
use ringmq_protocol::types::{PhysicalOffset, QueueOffset};

use super::{LogRange, Purpose, Seen, Stretch};
use crate::shard::Shard;
use crate::shard::effects::Effects;
use crate::shard::hold::Pull;
use crate::shard::limits::{COLD_GATHERING_MAX, SQL_WORK_MAX};
use crate::shard::pull::Chosen;

/// A pull whose messages are being read.
#[derive(Debug)]
pub(in crate::shard) struct ColdPull {
    pub(super) pull: Pull,
    /// Still to be read, last one first.
    ranges: Vec<LogRange>,
    /// Where the group goes on once all ranges are read.
    next: QueueOffset,
    /// What was read.
    body: Vec<Bytes>,
    /// Nothing that was asked for was missing.
    is_whole: bool,
}

impl ColdPull {
    pub(in crate::shard) fn new(pull: Pull, mut ranges: Vec<LogRange>, next: QueueOffset) -> Self {
        ranges.reverse();
        ColdPull { pull, ranges, next, body: Vec::new(), is_whole: true }
    }

    /// What is not read by now is left to the next pull.
    fn end_here(&mut self) {
        if let Some(range) = self.ranges.pop() {
            self.next = range.offset;
            self.ranges.clear();
        }
    }

    /// Takes what a stretch has. `Some` is where the next one is to begin.
    fn take_from(&mut self, stretch: &Stretch) -> Option<PhysicalOffset> {
        while let Some(range) = self.ranges.last() {
            match stretch.range(*range) {
                Seen::Bytes(bytes) => self.body.push(bytes),
                Seen::Nothing => self.is_whole = false,
                Seen::Behind(_) => return Some(range.block),
            }
            self.ranges.pop();
        }
        None
    }
}

impl Shard {
    /// Takes what a stretch has for a pull, and has the next one read if that is not all. The pull comes back when it can be
    /// answered.
    pub(super) fn gather_cold(
        &mut self,
        mut cold: Box<ColdPull>,
        stretch: &Stretch,
        fx: &mut Effects,
    ) -> Option<Box<ColdPull>> {
        if cold.pull.filter.sql().is_some() {
            // What it wants is found out when its turn has come.
            return Some(cold);
        }
        if let Some(block) = cold.take_from(stretch) {
            if self.cold.waiting.len() < COLD_GATHERING_MAX {
                self.read_cold(block, Purpose::Pull(cold), fx);
                return None;
            }
            cold.end_here();
        }
        Some(cold)
    }

    /// Answers with what was read before the next read failed; gives the pull back if that is nothing.
    pub(super) fn answer_gathered(
        &mut self,
        mut cold: Box<ColdPull>,
        fx: &mut Effects,
    ) -> Option<Box<ColdPull>> {
        if cold.body.is_empty() {
            return Some(cold);
        }
        cold.end_here();
        self.reply_found(&cold.pull, cold.body, cold.next, fx);
        None
    }

    /// Answers a pull that has all it will get. The last of it came from this stretch.
    pub(super) fn answer_cold(&mut self, cold: ColdPull, stretch: &Stretch, fx: &mut Effects) {
        let ColdPull { mut pull, mut ranges, mut next, mut body, mut is_whole } = cold;
        let mut chosen = Chosen::default();
        pull.work += stretch.bytes.len() as u64;
        while let Some(range) = ranges.pop() {
            match stretch.range(range) {
                Seen::Bytes(bytes) => {
                    if let Some(offset) = chosen.choose(&mut pull, &bytes, &mut body) {
                        next = offset;
                        break;
                    }
                }
                Seen::Nothing => is_whole = false,
                Seen::Behind(_) => {
                    next = range.offset;
                    break;
                }
            }
        }
        // What was there when it was asked may have been given up before it was read.
        if !is_whole && self.bounds(pull.queue).map_or(true, |(min, _)| pull.from < min) {
            return self.evaluate(pull, fx);
        }
        self.counts.messages_out += chosen.messages as u64;
        if body.is_empty() && pull.filter.sql().is_some() && pull.work < SQL_WORK_MAX {
            return self.evaluate(Pull { scanned: next, ..pull }, fx);
        }
        self.reply_found(&pull, body, next, fx);
        self.read_ahead(stretch, fx);
    }
}
