//! The queue index of the segments that are not sealed: for every queue, where its latest messages are; and their keys.
//!
//!   active   the segment that the log is writing: a *run* of 12-byte entries a queue, one key table for all
//!   frozen   full segments whose index is being written to a file; shared with the thread that does it
//!
//! Older messages are found through the sealed indexes (`sealed`). Offsets between two runs are lost: their messages
//! were in a block that was found damaged. Lost offsets take no memory and are never used again.
//!
//! Invariants
//!   Q1  a queue's offsets only grow; an offset is given once
//!   Q2  the runs of a queue are in order of offset and of position
//!   Q3  a run lies in one segment; before an entry of another segment comes in, the active one is frozen

use std::collections::VecDeque;
use std::sync::Arc;

use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, TagsCode};
use rustc_hash::FxHashMap;
use thiserror::Error;

use crate::chunks::Chunks;
use crate::key_table::{KeyHash, KeyTable, TopicHash};
use crate::sealed::{ChainPoint, QueueKey, SealedQueue, SealedRun, SegmentIndex};
use crate::segment::{SegmentBase, SegmentBlocks};

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

/// What a checkpoint says of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueMark {
    /// Offset of the first message that the queue ever had.
    pub first: QueueOffset,
    /// Where that message is, or was.
    pub born: PhysicalOffset,
    /// The offset that the next message gets.
    pub next: QueueOffset,
}

#[derive(Debug, Default)]
struct Run {
    first: u64,
    entries: Chunks<Packed>,
}

#[derive(Debug)]
enum Earlier {
    /// In the active segment, before offsets that are lost.
    Active(Run),
    Frozen {
        segment: SegmentBase,
        run: usize,
    },
}

#[derive(Debug)]
struct Queue {
    key: QueueKey,
    first: u64,
    born: PhysicalOffset,
    /// The offset that the next message gets.
    next: u64,
    /// In the active segment; may be empty.
    run: Run,
    earlier: Vec<Earlier>,
    in_use: bool,
}

impl Queue {
    fn new(key: QueueKey) -> Self {
        let (run, earlier) = (Run::default(), Vec::new());
        Self { key, first: 0, born: PhysicalOffset(u64::MAX), next: 0, run, earlier, in_use: true }
    }
}

#[derive(Debug, Default)]
struct Topic {
    /// Sorted by queue id; ids are dense in practice, so the id is usually the index.
    queues: Vec<(QueueId, QueueIx)>,
}

#[derive(Debug)]
struct Frozen {
    index: Arc<SegmentIndex>,
    /// Queues that have a run in it.
    queues: Vec<QueueIx>,
}

/// All queues of a shard.
#[derive(Debug)]
pub struct QueueIndex {
    segment_bytes: u64,
    topics: FxHashMap<Box<str>, Topic>,
    queues: Vec<Queue>,
    active: Option<SegmentBase>,
    /// Queues with a run in the active segment.
    touched: Vec<QueueIx>,
    /// Keys of the active segment's messages.
    keys: KeyTable,
    frozen: VecDeque<Frozen>,
}

/// A run, wherever it is: its segment, its first offset, its entries.
type RunView<'a> = (SegmentBase, u64, &'a Chunks<Packed>);

impl QueueIndex {
    pub fn new(segment_bytes: u64) -> Self {
        Self {
            segment_bytes,
            topics: FxHashMap::default(),
            queues: Vec::new(),
            active: None,
            touched: Vec::new(),
            keys: KeyTable::new(),
            frozen: VecDeque::new(),
        }
    }

    /// The queue's number; the queue is made if it is new.
    pub fn queue(&mut self, topic: &str, queue_id: QueueId) -> QueueIx {
        if let Some(found) = self.find(topic, queue_id) {
            return found;
        }
        self.queues.push(Queue::new(QueueKey { topic: TopicHash::of(topic), queue_id }));
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
            let queue = &mut self.queues[ix.0 as usize];
            *queue = Queue { in_use: false, ..Queue::new(queue.key) };
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
    ///
    /// Panics if the active segment is another one: it has to be frozen first (Q3).
    pub fn push_at(&mut self, ix: QueueIx, offset: QueueOffset, entry: Entry) -> Result<(), OffsetUsed> {
        let segment = SegmentBase::of(entry.position, self.segment_bytes);
        assert_eq!(*self.active.get_or_insert(segment), segment, "Q3");
        let queue = &mut self.queues[ix.0 as usize];
        assert!(queue.in_use, "{ix:?} is the number of a removed queue");
        if offset.0 < queue.next {
            return Err(OffsetUsed { offset, next: QueueOffset(queue.next) });
        }
        if queue.run.entries.len() == 0 {
            queue.run.first = offset.0;
            self.touched.push(ix);
            if queue.born.0 == u64::MAX {
                (queue.first, queue.born) = (offset.0, entry.position);
            }
        } else if offset.0 > queue.run.first + queue.run.entries.len() as u64 {
            let before =
                std::mem::replace(&mut queue.run, Run { first: offset.0, entries: Chunks::default() });
            queue.earlier.push(Earlier::Active(before));
        }
        queue.run.entries.push(Packed {
            relative_position: (entry.position.0 - segment.0) as u32, // segments have at most 4 GiB
            size: entry.size,
            tags_code: entry.tags_code.0,
        });
        queue.next = offset.0 + 1;
        Ok(())
    }

    /// The hash of the queue's topic, as keys are seeded with it.
    pub fn topic_hash(&self, ix: QueueIx) -> TopicHash {
        self.queue_of(ix).key.topic
    }

    /// Notes a key of the message at `position`, in the active segment.
    pub fn push_key(&mut self, key: KeyHash, position: PhysicalOffset) {
        let base = self.active.expect("a key comes after its message");
        self.keys.push(key, (position.0 - base.0) as u32); // segments have at most 4 GiB
    }

    /// Notes a message that is in a sealed index already: at recovery, where the log is read from before its end.
    pub fn pass(&mut self, ix: QueueIx, offset: QueueOffset, position: PhysicalOffset) {
        let queue = &mut self.queues[ix.0 as usize];
        if queue.born.0 == u64::MAX {
            (queue.first, queue.born) = (offset.0, position);
        }
        queue.next = queue.next.max(offset.0 + 1);
    }

    /// What a checkpoint has to say of a queue; `None` if it never had a message.
    pub fn mark(&self, ix: QueueIx) -> Option<QueueMark> {
        let queue = self.queue_of(ix);
        (queue.next > 0).then_some(QueueMark {
            first: QueueOffset(queue.first),
            born: queue.born,
            next: QueueOffset(queue.next),
        })
    }

    /// Takes over what a checkpoint said of a queue.
    pub fn set_mark(&mut self, ix: QueueIx, mark: QueueMark) {
        let queue = &mut self.queues[ix.0 as usize];
        queue.first = mark.first.0;
        queue.born = mark.born;
        queue.next = queue.next.max(mark.next.0);
    }

    /// Gives up the next offsets of a queue: they may have been those of messages that are lost.
    pub fn skip(&mut self, ix: QueueIx, count: u64) {
        let queue = &mut self.queues[ix.0 as usize];
        if queue.next > 0 {
            queue.next += count;
        }
    }

    /// The offset that the next message gets.
    pub fn max(&self, ix: QueueIx) -> QueueOffset {
        QueueOffset(self.queue_of(ix).next)
    }

    /// How the sealed indexes know the queue, and the first offset that it ever had; `None` if it never had a message.
    pub fn sealed_queue(&self, ix: QueueIx) -> Option<(SealedQueue, QueueOffset)> {
        let queue = self.queue_of(ix);
        let sealed = SealedQueue { key: queue.key, born: queue.born };
        (queue.next > 0).then_some((sealed, QueueOffset(queue.first)))
    }

    /// First offset whose entry is in memory; the next offset if there is none.
    pub fn memory_start(&self, ix: QueueIx) -> QueueOffset {
        let first = self.runs(ix).map(|(_, first, _)| first).next();
        QueueOffset(first.unwrap_or_else(|| self.queue_of(ix).next))
    }

    /// Entries in memory with offsets in `from..until`, in order. Lost offsets are left out.
    pub fn entries(
        &self,
        ix: QueueIx,
        from: QueueOffset,
        until: QueueOffset,
    ) -> impl Iterator<Item = (QueueOffset, Entry)> + '_ {
        self.runs(ix).flat_map(move |(segment, first, entries)| {
            let end = first + entries.len() as u64;
            let from = from.0.clamp(first, end) - first;
            let until = until.0.clamp(first, end) - first;
            (from..until).map(move |index| (QueueOffset(first + index), entry_of(segment, entries, index)))
        })
    }

    /// The entry in memory at an offset.
    pub fn entry(&self, ix: QueueIx, offset: QueueOffset) -> Option<Entry> {
        self.entries(ix, offset, QueueOffset(offset.0.checked_add(1)?)).next().map(|(_, entry)| entry)
    }

    /// The first offset in memory and below `until` of a message stored at `time` or later, or only later.
    /// `store_time` tells when the message at a position was stored; one of which it is not known is newer than all others.
    pub fn first_at_time(
        &self,
        ix: QueueIx,
        until: QueueOffset,
        time: StoreTimestamp,
        only_later: bool,
        store_time: impl Fn(PhysicalOffset) -> Option<StoreTimestamp>,
    ) -> Option<QueueOffset> {
        let is_before = |segment: SegmentBase, entries: &Chunks<Packed>, index: u64| {
            let stored = store_time(entry_of(segment, entries, index).position);
            stored.is_some_and(|stored| if only_later { stored <= time } else { stored < time })
        };
        self.runs(ix).find_map(|(segment, first, entries)| {
            let count = (first + entries.len() as u64).min(until.0).saturating_sub(first);
            let index = partition(count, |index| is_before(segment, entries, index));
            (index < count).then_some(QueueOffset(first + index))
        })
    }

    /// The last offset in memory below `before`.
    pub fn previous(&self, ix: QueueIx, before: QueueOffset) -> Option<QueueOffset> {
        let last = |(_, first, entries): RunView<'_>| {
            let end = (first + entries.len() as u64).min(before.0);
            (end > first).then(|| QueueOffset(end - 1))
        };
        self.runs(ix).filter_map(last).last()
    }

    /// Positions below `below` of messages in memory that may have the key, newest first.
    pub fn find_key(&self, key: KeyHash, below: PhysicalOffset) -> Vec<PhysicalOffset> {
        let frozen = self.frozen.iter().map(|frozen| (frozen.index.base, &frozen.index.keys));
        let tables = frozen.chain(self.active.map(|active| (active, &self.keys)));
        let mut found: Vec<PhysicalOffset> = tables
            .flat_map(|(base, keys)| keys.find(key).map(move |at| PhysicalOffset(base.0 + u64::from(at))))
            .filter(|position| *position < below)
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found
    }

    /// The active segment is full: its index is handed out, to be written to a file, and stays readable here until
    /// `on_sealed`. `end` is the end of its last block, `replay_from` that of the log before the newest complete checkpoint.
    pub fn freeze(
        &mut self,
        blocks: Arc<SegmentBlocks>,
        end: ChainPoint,
        replay_from: ChainPoint,
    ) -> Arc<SegmentIndex> {
        let base = blocks.base;
        assert!(self.active.take().is_none_or(|active| active == base), "Q3");
        let (mut runs, mut with_runs) = (Vec::new(), Vec::new());
        for ix in std::mem::take(&mut self.touched) {
            let queue = &mut self.queues[ix.0 as usize];
            let key = queue.key;
            let mut seal = |run: Run| {
                runs.push(SealedRun { queue: key, first: QueueOffset(run.first), entries: run.entries });
                Earlier::Frozen { segment: base, run: runs.len() - 1 }
            };
            for earlier in &mut queue.earlier {
                if let Earlier::Active(run) = earlier {
                    *earlier = seal(std::mem::take(run));
                }
            }
            // A queue that was removed meanwhile has no run any more.
            let run = std::mem::take(&mut queue.run);
            if run.entries.len() > 0 {
                queue.earlier.push(seal(run));
                with_runs.push(ix);
            }
        }
        let is_idle = |queue: &&Queue| {
            let is_here =
                |earlier: &Earlier| matches!(earlier, Earlier::Frozen { segment, .. } if *segment == base);
            queue.in_use && queue.next > 0 && !queue.earlier.last().is_some_and(is_here)
        };
        let idle = self.queues.iter().filter(is_idle).map(|queue| (queue.key, QueueOffset(queue.next)));
        let index = Arc::new(SegmentIndex {
            base,
            end,
            replay_from,
            first_timestamp: blocks.first_timestamp(),
            idle: idle.collect(),
            blocks,
            runs,
            keys: std::mem::take(&mut self.keys),
        });
        self.frozen.push_back(Frozen { index: index.clone(), queues: with_runs });
        index
    }

    /// Segments that are frozen.
    pub fn frozen_count(&self) -> usize {
        self.frozen.len()
    }

    /// The oldest frozen segment is in a file now; its entries leave the memory.
    pub fn on_sealed(&mut self, base: SegmentBase) {
        let frozen = self.frozen.pop_front().expect("only a frozen segment is sealed");
        assert_eq!(frozen.index.base, base, "segments are sealed in order");
        let is_other =
            |earlier: &Earlier| !matches!(earlier, Earlier::Frozen { segment, .. } if *segment == base);
        for ix in frozen.queues {
            let earlier = &mut self.queues[ix.0 as usize].earlier;
            earlier.retain(is_other);
            earlier.shrink_to_fit();
        }
    }

    /// Bytes that the entries and keys of the active segment take.
    pub fn memory_bytes(&self) -> usize {
        let runs = self.touched.iter().map(|ix| self.queues[ix.0 as usize].run.entries.memory_bytes());
        runs.sum::<usize>() + self.keys.memory_bytes() + self.queues.capacity() * size_of::<Queue>()
    }

    fn runs(&self, ix: QueueIx) -> impl Iterator<Item = RunView<'_>> {
        let queue = self.queue_of(ix);
        let active = self.active.unwrap_or_default();
        let earlier = queue.earlier.iter().map(move |earlier| match earlier {
            Earlier::Active(run) => (active, run.first, &run.entries),
            Earlier::Frozen { segment, run } => {
                let frozen = self.frozen.iter().find(|frozen| frozen.index.base == *segment);
                let run = &frozen.expect("kept until it is sealed").index.runs[*run];
                (*segment, run.first.0, &run.entries)
            }
        });
        let last = (queue.run.entries.len() > 0).then_some((active, queue.run.first, &queue.run.entries));
        earlier.chain(last)
    }

    fn queue_of(&self, ix: QueueIx) -> &Queue {
        let queue = &self.queues[ix.0 as usize];
        assert!(queue.in_use, "{ix:?} is the number of a removed queue");
        queue
    }
}

fn entry_of(segment: SegmentBase, entries: &Chunks<Packed>, index: u64) -> Entry {
    let packed = entries.get(index as usize); // entries are in memory
    Entry {
        position: PhysicalOffset(segment.0 + u64::from(packed.relative_position)),
        size: packed.size,
        tags_code: TagsCode(packed.tags_code),
    }
}

/// The first index below `count` for which `is_before` is false; the trues come first.
fn partition(count: u64, is_before: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests;
