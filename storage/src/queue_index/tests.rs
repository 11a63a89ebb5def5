use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::segment::{BlockIndex, BlockSpan};

const MIB: u64 = 1 << 20;

fn entry(position: u64) -> Entry {
    Entry { position: PhysicalOffset(position), size: 100, tags_code: TagsCode(position as i32) }
}

#[test]
fn queues_have_names_and_numbers() {
    let mut index = QueueIndex::new(MIB);
    assert_eq!(index.find("A", QueueId(0)), None);
    // Out of order, and far apart: a queue id from the wire must not cost memory.
    let ids = [3, 0, u32::MAX, 1, 7];
    let numbers: Vec<QueueIx> = ids.iter().map(|id| index.queue("A", QueueId(*id))).collect();
    let other = index.queue("B", QueueId(0));
    assert!(!numbers.contains(&other));
    for (id, ix) in ids.iter().zip(&numbers) {
        assert_eq!(index.find("A", QueueId(*id)), Some(*ix));
        assert_eq!(index.queue("A", QueueId(*id)), *ix);
    }
    let by_id: Vec<u32> = index.queues_of("A").map(|(id, _)| id.0).collect();
    assert_eq!(by_id, [0, 1, 3, 7, u32::MAX]);
}

#[test]
fn a_removed_topic_starts_again_at_offset_zero() {
    let mut index = QueueIndex::new(MIB);
    let kept = index.queue("B", QueueId(0));
    let old = index.queue("A", QueueId(0));
    index.push(old, entry(0));
    index.push(kept, entry(200));
    assert_eq!(index.remove_topic("A"), [old]);
    assert_eq!(index.remove_topic("A"), []);
    assert_eq!(index.find("A", QueueId(0)), None);
    let new = index.queue("A", QueueId(0));
    assert_eq!(index.max(new), QueueOffset(0));
    assert_eq!(index.push(new, entry(400)), QueueOffset(0));
    assert_eq!(index.max(kept), QueueOffset(1));
}

#[test]
fn lost_offsets_are_left_out_and_never_given_again() {
    let mut index = QueueIndex::new(MIB);
    let ix = index.queue("A", QueueId(0));
    // The first segments were deleted long ago: the queue begins at 100.
    index.push_at(ix, QueueOffset(100), entry(0)).unwrap();
    index.push_at(ix, QueueOffset(101), entry(100)).unwrap();
    // A damaged block took 102 to 1,000,000.
    index.push_at(ix, QueueOffset(1_000_001), entry(5000)).unwrap();
    assert_eq!(index.memory_start(ix), QueueOffset(100));
    assert_eq!(index.max(ix), QueueOffset(1_000_002));
    let offsets: Vec<u64> =
        index.entries(ix, QueueOffset(0), QueueOffset(u64::MAX)).map(|(offset, _)| offset.0).collect();
    assert_eq!(offsets, [100, 101, 1_000_001]);
    assert_eq!(index.entry(ix, QueueOffset(500)), None);
    assert_eq!(index.entry(ix, QueueOffset(u64::MAX)), None);
    assert_eq!(index.entry(ix, QueueOffset(1_000_001)), Some(entry(5000)));
    let used = index.push_at(ix, QueueOffset(101), entry(6000)).unwrap_err();
    assert_eq!(used, OffsetUsed { offset: QueueOffset(101), next: QueueOffset(1_000_002) });
    assert_eq!(index.push(ix, entry(6000)), QueueOffset(1_000_002));
}

/// An index with its blocks; a block a message, segments frozen as the log does it.
struct Log {
    index: QueueIndex,
    blocks: BlockIndex,
    position: u64,
    frozen: Vec<SegmentBase>,
}

impl Log {
    fn new() -> Self {
        let (index, blocks) = (QueueIndex::new(MIB), BlockIndex::new(MIB));
        Self { index, blocks, position: 0, frozen: Vec::new() }
    }

    /// Puts a message into a block of its own, `gap` bytes behind the last one.
    fn push(&mut self, ix: QueueIx, offset: u64, gap: u64, time: i64) -> Entry {
        let before = self.blocks.last().unwrap_or_default();
        self.position += gap;
        if self.position % MIB + 104 > MIB {
            self.position = self.position.next_multiple_of(MIB); // blocks do not cross segments
        }
        let segment = SegmentBase::of(PhysicalOffset(self.position), MIB);
        if let Some(blocks) = self.blocks.segment(before).filter(|_| segment != before) {
            let end = ChainPoint { position: PhysicalOffset(before.0 + MIB), ..ChainPoint::default() };
            self.index.freeze(blocks.clone(), end, ChainPoint::default());
            self.frozen.push(before);
        }
        self.blocks.push(BlockSpan { start: PhysicalOffset(self.position), len: 104 }, StoreTimestamp(time));
        let entry = entry(self.position + 48);
        self.index.push_at(ix, QueueOffset(offset), entry).unwrap();
        self.index.push_key(KeyHash(offset << 40), entry.position);
        self.position += 104;
        entry
    }

    fn first_at_time(&self, ix: QueueIx, until: u64, time: i64, only_later: bool) -> Option<QueueOffset> {
        let store_time = |position| self.blocks.store_timestamp(position);
        self.index.first_at_time(ix, QueueOffset(until), StoreTimestamp(time), only_later, store_time)
    }

    /// The oldest frozen segment is sealed; gives where the memory begins now.
    fn seal(&mut self) -> u64 {
        if self.frozen.is_empty() {
            return 0;
        }
        let base = self.frozen.remove(0);
        self.index.on_sealed(base);
        self.blocks.remove_through(base);
        base.0 + MIB
    }
}

#[test]
fn a_full_segment_is_handed_out_and_stays_readable_until_it_is_sealed() {
    let mut log = Log::new();
    let (busy, idle) = (log.index.queue("A", QueueId(0)), log.index.queue("A", QueueId(1)));
    log.push(idle, 0, 0, 1);
    for offset in 0..25 {
        log.push(busy, offset, MIB / 10, 1);
    }
    assert_eq!((log.frozen.len(), log.index.frozen_count()), (2, 2));
    let all = |log: &Log, ix| log.index.entries(ix, QueueOffset(0), QueueOffset(100)).count();
    assert_eq!((all(&log, busy), all(&log, idle)), (25, 1));
    assert_eq!(log.index.find_key(KeyHash(3 << 40), PhysicalOffset(u64::MAX)).len(), 1);
    let marks = (log.index.mark(busy).unwrap(), log.index.mark(idle).unwrap());
    log.seal();
    assert_eq!(log.index.memory_start(idle), QueueOffset(1), "its only message is in the file");
    let start = log.index.memory_start(busy);
    assert!((5..12).contains(&start.0));
    assert_eq!(all(&log, busy) as u64, 25 - start.0);
    assert_eq!(log.index.find_key(KeyHash(3 << 40), PhysicalOffset(u64::MAX)), []);
    assert_eq!(marks, (log.index.mark(busy).unwrap(), log.index.mark(idle).unwrap()));
    assert_eq!((marks.1.born, marks.1.next), (PhysicalOffset(48), QueueOffset(1)));
}

#[test]
fn a_frozen_segment_knows_the_queues_that_were_idle() {
    let mut log = Log::new();
    let queues: Vec<QueueIx> = (0..4).map(|id| log.index.queue("A", QueueId(id))).collect();
    log.push(queues[0], 7, 0, 1);
    log.push(queues[1], 0, 0, 1);
    log.index.remove_topic("B");
    log.push(queues[1], 1, MIB, 1); // the first segment is frozen
    log.push(queues[1], 5, 0, 1); // 2 to 4 are lost
    let blocks = log.blocks.segment(SegmentBase(MIB)).unwrap().clone();
    let frozen = log.index.freeze(blocks, ChainPoint::default(), ChainPoint::default());
    let key = |id| QueueKey { topic: TopicHash::of("A"), queue_id: QueueId(id) };
    assert_eq!(frozen.idle, [(key(0), QueueOffset(8))]);
    let runs: Vec<(QueueKey, u64, usize)> =
        frozen.runs.iter().map(|run| (run.queue, run.first.0, run.entries.len())).collect();
    assert_eq!(runs, [(key(1), 1, 1), (key(1), 5, 1)]);
    assert_eq!(log.index.entries(queues[1], QueueOffset(0), QueueOffset(9)).count(), 3);
}

#[test]
fn messages_whose_block_is_not_sealed_are_newer_than_all_others() {
    let mut log = Log::new();
    let ix = log.index.queue("A", QueueId(0));
    for offset in 0..3 {
        log.push(ix, offset, 0, 10 * offset as i64);
    }
    // No block is known for these two.
    for offset in 3..5 {
        log.index.push_at(ix, QueueOffset(offset), entry(log.position + 48 + 100 * (offset - 3))).unwrap();
    }
    let found =
        |until, time, only_later| log.first_at_time(ix, until, time, only_later).map(|offset| offset.0);
    assert_eq!(found(5, 5, false), Some(1));
    assert_eq!((found(5, 20, false), found(5, 20, true)), (Some(2), Some(3)));
    assert_eq!((found(5, 21, false), found(5, i64::MAX, true)), (Some(3), Some(3)));
    assert_eq!(found(3, 21, false), None, "they are not to be seen yet");
}

/// Entries with their store times, by offset.
type NaiveEntries = BTreeMap<u64, (Entry, i64)>;

proptest! {
    #[test]
    fn it_does_what_the_obvious_index_does(
        steps in prop::collection::vec((0u8..20, 0u8..3, 0u32..4, 0u64..9000, 0i64..4), 1..300),
        probes in prop::collection::vec((0u8..3, 0u32..4, 0u64..60, 0u64..60, -1i64..300), 1..30),
    ) {
        const TOPICS: [&str; 3] = ["A", "B", "C"];
        let mut log = Log::new();
        let mut naive: BTreeMap<(u8, u32), (u64, NaiveEntries)> = BTreeMap::new();
        let mut time = 0i64;
        for (action, topic, queue_id, gap, wait) in steps {
            match action {
                0 => {
                    log.index.remove_topic(TOPICS[topic as usize]);
                    naive.retain(|(name, _), _| *name != topic);
                }
                1 => {
                    let start = log.seal();
                    for (_, entries) in naive.values_mut() {
                        entries.retain(|_, (entry, _)| entry.position.0 >= start);
                    }
                }
                _ => {
                    time += wait;
                    let ix = log.index.queue(TOPICS[topic as usize], QueueId(queue_id));
                    let (next, entries) = naive.entry((topic, queue_id)).or_default();
                    let lost = if action == 2 { gap % 3 } else { 0 };
                    let entry = log.push(ix, *next + lost, gap * 16, time);
                    entries.insert(*next + lost, (entry, time));
                    *next += lost + 1;
                }
            }
        }
        for (topic, queue_id, from, len, time) in probes {
            let Some(ix) = log.index.find(TOPICS[topic as usize], QueueId(queue_id)) else {
                prop_assert!(!naive.contains_key(&(topic, queue_id)));
                continue;
            };
            let (next, entries) = &naive[&(topic, queue_id)];
            prop_assert_eq!(log.index.max(ix).0, *next);
            prop_assert_eq!(log.index.memory_start(ix).0, entries.keys().next().copied().unwrap_or(*next));
            let found: Vec<(u64, Entry)> = log.index
                .entries(ix, QueueOffset(from), QueueOffset(from + len))
                .map(|(offset, entry)| (offset.0, entry))
                .collect();
            let expected: Vec<(u64, Entry)> =
                entries.range(from..from + len).map(|(offset, (entry, _))| (*offset, *entry)).collect();
            prop_assert_eq!(found, expected);
            for until in [*next, from.min(*next)] {
                for only_later in [false, true] {
                    let is_before = |stored: i64| if only_later { stored <= time } else { stored < time };
                    let found = log.first_at_time(ix, until, time, only_later);
                    let expected = entries.range(..until).find(|(_, (_, stored))| !is_before(*stored));
                    prop_assert_eq!(found.map(|offset| offset.0), expected.map(|(offset, _)| *offset));
                }
                let previous = log.index.previous(ix, QueueOffset(until)).map(|offset| offset.0);
                prop_assert_eq!(previous, entries.range(..until).next_back().map(|(offset, _)| *offset));
            }
        }
    }
}
