use std::sync::Arc;

use proptest::prelude::*;
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::types::{QueueId, TagsCode};

use super::*;
use crate::key_table::{KeyHash, TopicHash};
use crate::memory_store::MemoryStore;
use crate::queue_index::Entry;
use crate::record::{Record, records};
use crate::recover::{recover, scan_segment};
use crate::seal;
use crate::testing::{Quick, small_config};

/// Blocks of about 40 KB, in more than two segments.
fn log() -> Quick {
    let mut quick = Quick::new(small_config());
    for id in 0..60 {
        quick.append(id, 40_000 + id as usize * 10, 1000 + id as i64);
    }
    quick
}

fn store(quick: Quick) -> MemoryStore {
    let segments = quick.disk.segments.into_iter().map(|(base, bytes)| (SegmentBase(base), bytes));
    MemoryStore { segments: segments.collect(), ..MemoryStore::default() }
}

/// Blocks by position and end, and gaps.
type Shown = (Vec<(u64, u64)>, Vec<Damage>);

fn scan(store: &mut MemoryStore, base: u64, before: Option<ChainPoint>, until: Option<u64>) -> Shown {
    let bytes = store.segments[&SegmentBase(base)].len() as u64;
    let until = until.map(PhysicalOffset);
    let mut scan = SegmentScan::new(&small_config(), SegmentBase(base), bytes, before, until);
    let mut shown = Shown::default();
    loop {
        match scan.next(store).unwrap() {
            Found::Block(block) => {
                assert!(records(&block).all(|record| record.is_ok()));
                shown.0.push((block.header.position.0, block.header.end()));
            }
            Found::Gap(damage) => shown.1.push(damage),
            Found::End => return shown,
        }
    }
}

#[test]
fn a_scan_shows_what_recovery_accepts() {
    let mut store = store(log());
    let (recovered, report) = recover(&mut store, &small_config(), None, &mut |_: Record<'_>| {}).unwrap();
    let bases: Vec<u64> = store.segments.keys().map(|base| base.0).collect();
    let mut count = 0;
    for base in bases {
        let (blocks, gaps) = scan(&mut store, base, None, None);
        assert!(gaps.is_empty());
        count += blocks.len() as u64;
        for (start, end) in blocks {
            let span = recovered.blocks.containing(PhysicalOffset(start)).unwrap();
            assert_eq!((span.start.0, span.end().0), (start, end));
        }
    }
    assert_eq!(count, report.blocks);
}

#[test]
fn a_flipped_bit_costs_its_block_and_no_other() {
    let mut store = store(log());
    let (blocks, _) = scan(&mut store, 0, None, None);
    let until = blocks.last().unwrap().1;
    for (number, (start, end)) in blocks.iter().enumerate() {
        for at in [*start, start + 33, start + 47, (start + end) / 2, end - 9] {
            let byte =
                |store: &mut MemoryStore| store.segments.get_mut(&SegmentBase(0)).unwrap()[at as usize] ^= 4;
            byte(&mut store);
            let (mut left, gaps) = scan(&mut store, 0, None, Some(until));
            byte(&mut store);
            let [gap] = gaps[..] else { panic!("{gaps:?}") };
            assert!((gap.position.0..gap.position.0 + gap.bytes).contains(&at), "{gap:?} {at}");
            left.insert(number, (*start, *end));
            assert_eq!(left, blocks);
        }
    }
}

#[test]
fn the_end_is_known_or_proven() {
    let mut store = store(log());
    let (blocks, _) = scan(&mut store, 0, None, None);
    let (start, end) = *blocks.last().unwrap();
    store.segments.get_mut(&SegmentBase(0)).unwrap()[start as usize + 100] ^= 1;
    // Nothing in this segment testifies for its last block.
    assert_eq!(scan(&mut store, 0, None, None), (blocks[..blocks.len() - 1].to_vec(), vec![]));
    let (_, gaps) = scan(&mut store, 0, None, Some(end));
    let before = blocks[blocks.len() - 2].1;
    assert_eq!(gaps, [Damage { position: PhysicalOffset(before), bytes: end - before }]);
}

#[test]
fn the_first_block_follows_the_segment_before() {
    let mut store = store(log());
    let mut first = SegmentScan::new(&small_config(), SegmentBase(0), 1 << 20, None, None);
    while !matches!(first.next(&mut store).unwrap(), Found::End) {}
    let chain = first.chain().unwrap();
    let next = 1 << 20;
    assert!(scan(&mut store, next, Some(chain), None).1.is_empty());
    let foreign = ChainPoint { previous_crc: !chain.previous_crc, ..chain };
    let nothing = Damage { position: PhysicalOffset(next), bytes: 0 };
    assert_eq!(scan(&mut store, next, Some(foreign), Some(next + 200_000)).1[0], nothing);
    // What is not directly before says nothing.
    assert!(scan(&mut store, 2 * next, Some(foreign), None).1.is_empty());
}

proptest! {
    #[test]
    fn no_bytes_make_a_scan_fail(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), every in 1usize..400, until in 0u64..30_000) {
        let mut bytes = bytes;
        for at in (0..bytes.len().saturating_sub(48)).step_by(every * 8) {
            bytes[at..at + 4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
        }
        let mut store = MemoryStore::default();
        store.segments.insert(SegmentBase(0), bytes);
        let (blocks, gaps) = scan(&mut store, 0, None, Some(until));
        prop_assert!(blocks.is_empty());
        prop_assert_eq!(gaps.iter().map(|gap| gap.bytes).sum::<u64>(), until);
    }
}

fn message(quick: &mut Quick, queue: u32, offset: u64, key: &str) {
    let properties = format!("KEYS\x01{key}\x02");
    let at = ("orders", QueueId(queue), QueueOffset(offset));
    quick.append_message(at, b"a body", &properties, StoreTimestamp(5000 + offset as i64));
    quick.flush();
}

/// What one segment says, and what a walk over it collected.
struct Walked {
    facts: SegmentFacts,
    messages: Vec<Vec<u8>>,
}

fn walk(store: &mut MemoryStore) -> (Walked, SegmentEnd) {
    let mut walked = Walked { facts: SegmentFacts::new(&small_config()), messages: Vec::new() };
    let mut visit = |record: Record<'_>| {
        if let Record::Message { position, message } = record {
            walked.facts.message(position, &message);
            walked.messages.push(message.as_bytes().to_vec());
        }
    };
    let (recovered, _) = scan_segment(store, &small_config(), SegmentBase(0), &mut visit).unwrap();
    let blocks = recovered.blocks.segment(SegmentBase(0)).unwrap().clone();
    (walked, SegmentEnd { end: recovered.end, blocks })
}

/// Checks an index that was made from these messages against the log in the store.
fn check(store: &mut MemoryStore, messages: &[Vec<u8>], keys: bool) -> Result<u64, IndexProblem> {
    let config = small_config();
    let (walked, ended) = walk(store);
    let mut index = QueueIndex::new(config.segment_bytes);
    for bytes in messages {
        let (message, _) = StoredMessage::parse(bytes).unwrap();
        let queue = index.queue(message.topic(), message.queue_id());
        let position = message.physical_offset();
        // Neither tags nor a unique key, and one word of KEYS.
        let entry = Entry { position, size: bytes.len() as u32, tags_code: TagsCode::of("") };
        index.push_at(queue, message.queue_offset(), entry).unwrap();
        if keys {
            let key = message.property("KEYS").unwrap();
            index.push_key(KeyHash::of(TopicHash::of("orders"), key.as_bytes()), position);
        }
    }
    let index = index.freeze(Arc::clone(&ended.blocks), ended.end, ChainPoint::default());
    let header = seal(store, &config, &index).unwrap();
    let mut file = IndexFile::new(&config, header);
    (0..file.header().pages).try_for_each(|page| file.check_page(store, page)).unwrap();
    walked.facts.check(store, &ended, &mut file)
}

#[test]
fn an_index_is_held_to_its_log() {
    let mut quick = Quick::new(small_config());
    for offset in 0..200 {
        message(&mut quick, offset as u32 % 3, offset / 3, &format!("key-{offset}"));
    }
    let mut store = store(quick);
    let (Walked { messages, .. }, _) = walk(&mut store);
    assert_eq!(messages.len(), 200);
    assert_eq!(check(&mut store, &messages, true).unwrap(), 0);
    let differs = |checked| matches!(checked, Err(IndexProblem::Differs(_)));
    assert!(differs(check(&mut store, &messages, false)), "keys are missing");
    assert!(differs(check(&mut store, &messages[..199], true)), "a message is missing");
    let without = [&messages[..100], &messages[101..]].concat();
    assert!(differs(check(&mut store, &without, true)), "a message in the middle is missing");

    // A damaged block: what the index names there is no fault of the index.
    let config = small_config();
    assert_eq!(check(&mut store, &messages, true).unwrap(), 0);
    let index_bytes = store.indexes[&SegmentBase(0)].len() as u64;
    let header = read_index_header(&mut store, &config, SegmentBase(0), index_bytes).unwrap();
    assert!(read_index_header(&mut store, &config, SegmentBase(0), index_bytes - 1).is_err());
    let position = StoredMessage::parse(&messages[50]).unwrap().0.physical_offset();
    store.segments.get_mut(&SegmentBase(0)).unwrap()[position.0 as usize + 60] ^= 1;
    let (walked, ended) = walk(&mut store);
    assert_eq!(walked.messages.len(), 199);
    let gone = walked.facts.check(&mut store, &ended, &mut IndexFile::new(&config, header.clone()));
    assert_eq!(gone.unwrap(), 1);

    // The log went on after the index was written.
    let (walked, ended) = walk(&mut store);
    let earlier = ChainPoint { position: PhysicalOffset(ended.end.position.0 - 8), ..ended.end };
    let mut stale = header;
    stale.end = earlier;
    let checked = walked.facts.check(&mut store, &ended, &mut IndexFile::new(&config, stale));
    assert!(matches!(checked, Err(IndexProblem::End { .. })));
}
