use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::segment::BlockSpan;

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
    assert_eq!(index.min(ix), QueueOffset(100));
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

#[test]
fn deleting_segments_moves_the_minimum() {
    let mut index = QueueIndex::new(MIB);
    let (busy, idle) = (index.queue("A", QueueId(0)), index.queue("A", QueueId(1)));
    for at in 0..30 {
        index.push(busy, entry(at * (MIB / 10)));
    }
    index.push(idle, entry(50));
    index.remove_below(SegmentBase(2 * MIB));
    let first = index.entries(busy, QueueOffset(0), QueueOffset(30)).next().unwrap();
    assert_eq!(index.min(busy), first.0);
    assert!(first.1.position.0 >= 2 * MIB);
    assert_eq!(
        (index.min(idle), index.max(idle)),
        (QueueOffset(1), QueueOffset(1)),
        "its only message is gone"
    );
    assert_eq!(index.push(idle, entry(3 * MIB)), QueueOffset(1));
}

#[test]
fn times_find_offsets_as_rocketmq_has_it() {
    let mut index = QueueIndex::new(MIB);
    let mut blocks = BlockIndex::new(MIB);
    let ix = index.queue("A", QueueId(0));
    let search = |index: &QueueIndex, blocks: &BlockIndex, time, boundary| {
        index.offset_by_time(ix, index.max(ix), StoreTimestamp(time), boundary, blocks).0
    };
    assert_eq!(search(&index, &blocks, 5, Boundary::Lower), 0, "empty");
    assert_eq!(search(&index, &blocks, 5, Boundary::Upper), 0, "empty");
    // Offsets 10 11 | 12 13 | 14, stored at 100, 200 and 300.
    for (block, (time, count)) in [(100, 2), (200, 2), (300, 1)].into_iter().enumerate() {
        let start = block as u64 * 4096;
        blocks.push(BlockSpan { start: PhysicalOffset(start), len: 4096 }, StoreTimestamp(time));
        for message in 0..count {
            let offset = index.max(ix).0.max(10);
            index.push_at(ix, QueueOffset(offset), entry(start + 48 + message * 100)).unwrap();
        }
    }
    for (time, lower, upper) in [
        (99, 10, 10),  // before the first: the minimum
        (100, 10, 11), // exact: the first, the last
        (150, 12, 11), // between: the later, the earlier
        (200, 12, 13),
        (299, 14, 13),
        (300, 14, 14),
        (301, 15, 14), // after the last: the maximum, the last
    ] {
        assert_eq!(search(&index, &blocks, time, Boundary::Lower), lower, "lower {time}");
        assert_eq!(search(&index, &blocks, time, Boundary::Upper), upper, "upper {time}");
    }
    let visible =
        |time, boundary| index.offset_by_time(ix, QueueOffset(13), StoreTimestamp(time), boundary, &blocks).0;
    assert_eq!(visible(1000, Boundary::Lower), 13, "what is not visible yet does not count");
    assert_eq!(visible(1000, Boundary::Upper), 12);
    assert_eq!(index.offset_by_time(ix, QueueOffset(10), StoreTimestamp(100), Boundary::Upper, &blocks).0, 0);
}

/// Entries with their store times, by offset.
type NaiveEntries = BTreeMap<u64, (Entry, i64)>;

/// The obvious way to write the index.
#[derive(Default)]
struct Naive {
    queues: BTreeMap<(u8, u32), (u64, NaiveEntries)>,
}

impl Naive {
    fn offset_by_time(&self, key: (u8, u32), until: u64, time: i64, boundary: Boundary) -> u64 {
        let Some((_, entries)) = self.queues.get(&key) else { return 0 };
        let visible = || entries.range(..until);
        let Some((min, _)) = visible().next() else { return 0 };
        match boundary {
            Boundary::Lower => {
                visible().find(|(_, (_, stored))| *stored >= time).map_or(until, |(offset, _)| *offset)
            }
            Boundary::Upper => {
                visible().rev().find(|(_, (_, stored))| *stored <= time).map_or(*min, |(offset, _)| *offset)
            }
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_the_obvious_index_does(
        steps in prop::collection::vec((0u8..20, 0u8..3, 0u32..4, 0u64..9000, 0i64..4), 1..300),
        probes in prop::collection::vec((0u8..3, 0u32..4, 0u64..60, 0u64..60, -1i64..300), 1..30),
    ) {
        const TOPICS: [&str; 3] = ["A", "B", "C"];
        let (mut index, mut blocks, mut naive) = (QueueIndex::new(MIB), BlockIndex::new(MIB), Naive::default());
        let (mut position, mut time) = (0u64, 0i64);
        for (action, topic, queue_id, gap, wait) in steps {
            match action {
                0 => {
                    index.remove_topic(TOPICS[topic as usize]);
                    naive.queues.retain(|(name, _), _| *name != topic);
                }
                1 => {
                    let base = SegmentBase((position / MIB).saturating_sub(1) * MIB);
                    index.remove_below(base);
                    for (_, entries) in naive.queues.values_mut() {
                        entries.retain(|_, (entry, _)| entry.position.0 >= base.0);
                    }
                }
                _ => {
                    position += gap * 16;
                    if position % MIB + 104 > MIB {
                        position = position.next_multiple_of(MIB); // blocks do not cross segments
                    }
                    time += wait;
                    blocks.push(BlockSpan { start: PhysicalOffset(position), len: 104 }, StoreTimestamp(time));
                    let entry = entry(position + 48);
                    let ix = index.queue(TOPICS[topic as usize], QueueId(queue_id));
                    let (next, entries) = naive.queues.entry((topic, queue_id)).or_default();
                    let lost = if action == 2 { gap % 3 } else { 0 };
                    index.push_at(ix, QueueOffset(*next + lost), entry).unwrap();
                    entries.insert(*next + lost, (entry, time));
                    *next += lost + 1;
                    position += 104;
                }
            }
        }
        for (topic, queue_id, from, len, time) in probes {
            let Some(ix) = index.find(TOPICS[topic as usize], QueueId(queue_id)) else {
                prop_assert!(!naive.queues.contains_key(&(topic, queue_id)));
                continue;
            };
            let (next, entries) = &naive.queues[&(topic, queue_id)];
            prop_assert_eq!(index.max(ix).0, *next);
            prop_assert_eq!(index.min(ix).0, entries.keys().next().copied().unwrap_or(*next));
            let found: Vec<(u64, Entry)> = index
                .entries(ix, QueueOffset(from), QueueOffset(from + len))
                .map(|(offset, entry)| (offset.0, entry))
                .collect();
            let expected: Vec<(u64, Entry)> =
                entries.range(from..from + len).map(|(offset, (entry, _))| (*offset, *entry)).collect();
            prop_assert_eq!(found, expected);
            for boundary in [Boundary::Lower, Boundary::Upper] {
                for until in [*next, from.min(*next)] {
                    let found = index.offset_by_time(ix, QueueOffset(until), StoreTimestamp(time), boundary, &blocks);
                    let expected = naive.offset_by_time((topic, queue_id), until, time, boundary);
                    prop_assert_eq!(found.0, expected, "{:?} {} until {}", boundary, time, until);
                }
            }
        }
    }
}
