//! The queue index: for every queue, where its messages are. Derived from the log, in memory.
//!
//! A queue's entries are kept in *runs*: consecutive queue offsets within one segment of the log, 12 bytes each, so that
//! a segment's part can later be sealed into a file, and dropped when the segment is deleted. Offsets between two runs
//! are lost: their messages were in a block that was found damaged. Lost offsets take no memory and are never used again.
//!
//! Invariants
//!   Q1  a queue's offsets only grow; an offset is given once
//!   Q2  the runs of a queue are in order of offset and of position

use std::collections::VecDeque;

use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, TagsCode};
use rustc_hash::FxHashMap;
use thiserror::Error;

use crate::segment::{BlockIndex, SegmentBase};

/// Number of a queue in a `QueueIndex`, dense. The number of a removed queue is not used again,
/// so that whoever still holds it can never reach another queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIx(pub u32);

/// Where a message of a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub position: PhysicalOffset,
    pub size: u32,
    pub tags_code: TagsCode,
}

/// Which message to take when a time falls between two; RocketMQ's `boundaryType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boundary {
    #[default]
    Lower,
    Upper,
}

/// An offset that the queue has already given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("queue offset {offset} comes after {next} was expected")]
pub struct OffsetUsed {
    pub offset: QueueOffset,
    pub next: QueueOffset,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    pub(crate) relative_position: u32,
    pub(crate) size: u32,
    pub(crate) tags_code: i32,
}

const _: () = assert!(size_of::<Packed>() == 12);

#[derive(Debug)]
struct Run {
    segment: SegmentBase,
    base: u64,
    entries: Vec<Packed>,
}

impl Run {
    fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn entry(&self, index: usize) -> Entry {
        let packed = self.entries[index];
        Entry {
            position: PhysicalOffset(self.segment.0 + u64::from(packed.relative_position)),
            size: packed.size,
            tags_code: TagsCode(packed.tags_code),
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    runs: VecDeque<Run>,
    /// The offset that the next message gets.
    next: u64,
    in_use: bool,
}

#[derive(Debug, Default)]
struct Topic {
    /// Sorted by queue id; ids are dense in practice, so the id is usually the index.
    queues: Vec<(QueueId, QueueIx)>,
}

/// All queues of a shard.
#[derive(Debug)]
pub struct QueueIndex {
    segment_bytes: u64,
    topics: FxHashMap<Box<str>, Topic>,
    queues: Vec<Queue>,
}

impl QueueIndex {
    pub fn new(segment_bytes: u64) -> Self {
        Self { segment_bytes, topics: FxHashMap::default(), queues: Vec::new() }
    }

    /// The queue's number; the queue is made if it is new.
    pub fn queue(&mut self, topic: &str, queue_id: QueueId) -> QueueIx {
        if let Some(found) = self.find(topic, queue_id) {
            return found;
        }
        self.queues.push(Queue { in_use: true, ..Queue::default() });
        let ix = QueueIx(u32::try_from(self.queues.len() - 1).expect("fewer than 2^32 queues"));
        if !self.topics.contains_key(topic) {
            self.topics.insert(topic.into(), Topic::default());
        }
        let queues = &mut self.topics.get_mut(topic).expect("inserted above").queues;
        let at = queues.partition_point(|(id, _)| *id < queue_id);
        queues.insert(at, (queue_id, ix));
        ix
    }

    /// The queue's number, if there is such a queue.
    pub fn find(&self, topic: &str, queue_id: QueueId) -> Option<QueueIx> {
        let queues = &self.topics.get(topic)?.queues;
        match queues.get(queue_id.0 as usize) {
            Some((id, ix)) if *id == queue_id => Some(*ix),
            _ => queues.binary_search_by_key(&queue_id, |(id, _)| *id).ok().map(|at| queues[at].1),
        }
    }

    /// The queues of a topic by id.
    pub fn queues_of(&self, topic: &str) -> impl Iterator<Item = (QueueId, QueueIx)> + '_ {
        self.topics.get(topic).into_iter().flat_map(|topic| topic.queues.iter().copied())
    }

    /// Forgets a topic. Returns the numbers of its queues, which are not used again.
    pub fn remove_topic(&mut self, topic: &str) -> Vec<QueueIx> {
        let removed: Vec<QueueIx> = self
            .topics
            .remove(topic)
            .map_or_else(Vec::new, |topic| topic.queues.iter().map(|(_, ix)| *ix).collect());
        for ix in &removed {
            self.queues[ix.0 as usize] = Queue::default();
        }
        removed
    }

    /// Adds a message at the end of its queue and gives its offset.
    pub fn push(&mut self, ix: QueueIx, entry: Entry) -> QueueOffset {
        let offset = QueueOffset(self.queue_of(ix).next);
        self.push_at(ix, offset, entry).expect("the next offset is free");
        offset
    }

    /// Adds a message that knows its offset, at recovery. The offsets that were skipped are lost, or, before the first
    /// message of the queue, were deleted with their segments.
    pub fn push_at(&mut self, ix: QueueIx, offset: QueueOffset, entry: Entry) -> Result<(), OffsetUsed> {
        let segment = SegmentBase::of(entry.position, self.segment_bytes);
        let queue = &mut self.queues[ix.0 as usize];
        assert!(queue.in_use, "{ix:?} is the number of a removed queue");
        if offset.0 < queue.next {
            return Err(OffsetUsed { offset, next: QueueOffset(queue.next) });
        }
        let goes_on = queue.runs.back().is_some_and(|run| run.segment == segment && run.end() == offset.0);
        if !goes_on {
            queue.runs.push_back(Run { segment, base: offset.0, entries: Vec::new() });
        }
        let run = queue.runs.back_mut().expect("pushed above");
        run.entries.push(Packed {
            relative_position: u32::try_from(entry.position.0 - segment.0)
                .expect("segments have at most 4 GiB"),
            size: entry.size,
            tags_code: entry.tags_code.0,
        });
        queue.next = offset.0 + 1;
        Ok(())
    }

    /// First offset that can be read; the next offset if there is none.
    pub fn min(&self, ix: QueueIx) -> QueueOffset {
        let queue = self.queue_of(ix);
        QueueOffset(queue.runs.front().map_or(queue.next, |run| run.base))
    }

    /// The offset that the next message gets.
    pub fn max(&self, ix: QueueIx) -> QueueOffset {
        QueueOffset(self.queue_of(ix).next)
    }

    /// Entries with offsets in `from..until`, in order. Lost offsets are left out.
    pub fn entries(
        &self,
        ix: QueueIx,
        from: QueueOffset,
        until: QueueOffset,
    ) -> impl Iterator<Item = (QueueOffset, Entry)> + '_ {
        let runs = &self.queue_of(ix).runs;
        let first = runs.partition_point(|run| run.end() <= from.0);
        runs.range(first..).take_while(move |run| run.base < until.0).flat_map(move |run| {
            let from = from.0.max(run.base) - run.base;
            let until = until.0.min(run.end()).max(run.base) - run.base;
            (from..until).map(move |index| (QueueOffset(run.base + index), run.entry(index as usize)))
        })
    }

    /// The entry at an offset; `None` below the minimum, at or above the maximum, and for a lost message.
    pub fn entry(&self, ix: QueueIx, offset: QueueOffset) -> Option<Entry> {
        self.entries(ix, offset, QueueOffset(offset.0.checked_add(1)?)).next().map(|(_, entry)| entry)
    }

    /// The offset for a store time, among the offsets below `until`.
    ///
    /// | case | Lower | Upper |
    /// |---|---|---|
    /// | exact matches | first of them | last of them |
    /// | between two messages | the later one | the earlier one |
    /// | after the last message | `until` | the last message |
    /// | before the first | the minimum | the minimum |
    /// | no message | 0 | 0 |
    pub fn offset_by_time(
        &self,
        ix: QueueIx,
        until: QueueOffset,
        time: StoreTimestamp,
        boundary: Boundary,
        blocks: &BlockIndex,
    ) -> QueueOffset {
        let runs = &self.queue_of(ix).runs;
        if runs.front().is_none_or(|run| run.base >= until.0) {
            return QueueOffset(0);
        }
        let min = runs[0].base;
        // Messages that come before the one looked for: those stored before `time` (Lower), or not after it (Upper).
        let is_before = |entry: Entry| {
            let stored = blocks.store_timestamp(entry.position).unwrap_or(StoreTimestamp(i64::MIN));
            match boundary {
                Boundary::Lower => stored < time,
                Boundary::Upper => stored <= time,
            }
        };
        let run_at = runs.partition_point(|run| run.base < until.0 && is_before(run.entry(0)));
        let before = run_at.checked_sub(1).map(|at| {
            let run = &runs[at];
            let count = usize::try_from(until.0.min(run.end()) - run.base).expect("entries are in memory");
            (run, partition(count, |index| is_before(run.entry(index))), count)
        });
        let offset = match (boundary, before) {
            (_, None) => min,
            (Boundary::Upper, Some((run, index, _))) => run.base + index as u64 - 1,
            (Boundary::Lower, Some((run, index, count))) if index < count => run.base + index as u64,
            (Boundary::Lower, Some(_)) => runs.get(run_at).map_or(until.0, |run| run.base.min(until.0)),
        };
        QueueOffset(offset)
    }

    /// Forgets the entries of the segments below `base`, which were deleted.
    pub fn remove_below(&mut self, base: SegmentBase) {
        for queue in &mut self.queues {
            while queue.runs.front().is_some_and(|run| run.segment < base) {
                queue.runs.pop_front();
            }
        }
    }

    fn queue_of(&self, ix: QueueIx) -> &Queue {
        let queue = &self.queues[ix.0 as usize];
        assert!(queue.in_use, "{ix:?} is the number of a removed queue");
        queue
    }
}

/// The first index below `count` for which `is_before` is false; the trues come first.
fn partition(count: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests;
