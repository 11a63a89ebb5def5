use proptest::prelude::*;
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, StoreTimestamp};

use super::*;
use crate::indexes::rebuild_index;
use crate::key_table::TopicHash;
use crate::memory_store::MemoryStore;
use crate::recover::{Recovered, RecoveryReport, SegmentEnd, recover, scan_segment};
use crate::scan::{IndexFile, SegmentFacts, read_index_header};
use crate::segment::SegmentBase;
use crate::testing::{Quick, small_config};

const TOPICS: [&str; 3] = ["alpha", "beta", "gamma"];
const FIRST: SegmentBase = SegmentBase(0);

/// What is appended: a message of a topic, or a setting, with so many bytes; and whether the block ends behind it.
#[derive(Clone, Debug)]
struct Step {
    topic: Option<usize>,
    bytes: usize,
    ends_block: bool,
}

/// Steps over and over until the log has left its first segment.
fn log(steps: &[Step]) -> MemoryStore {
    let mut quick = Quick::new(small_config());
    let mut next = [0u64; TOPICS.len()];
    for (number, step) in steps.iter().cycle().enumerate() {
        quick.prepare();
        let now = StoreTimestamp(5_000 + number as i64);
        match step.topic {
            Some(topic) => {
                let (body, key) = (vec![number as u8 | 1; step.bytes], format!("KEYS\x01key-{number}\x02"));
                let at = (TOPICS[topic], QueueId((next[topic] % 2) as u32), QueueOffset(next[topic] / 2));
                next[topic] += 1;
                quick.append_message(at, &body, &key, now);
            }
            None => drop(quick.log.append_record(7, &vec![7; step.bytes], now).unwrap()),
        }
        if step.ends_block || quick.log.staged_bytes() > 100_000 {
            quick.flush();
        }
        if quick.log.end().0 > small_config().segment_bytes + 100_000 {
            break;
        }
    }
    quick.flush();
    let segments = quick.disk.segments.into_iter().map(|(base, bytes)| (SegmentBase(base), bytes));
    MemoryStore { segments: segments.collect(), ..MemoryStore::default() }
}

fn set(topics: &[&str]) -> BTreeSet<String> {
    topics.iter().map(|topic| (*topic).to_owned()).collect()
}

fn header(store: &mut MemoryStore) -> IndexHeader {
    let bytes = store.indexes[&FIRST].len() as u64;
    read_index_header(store, &small_config(), FIRST, bytes).unwrap()
}

/// Gives the pages that were written, and messages that were left out.
fn rewrite(store: &mut MemoryStore, topics: &[&str]) -> (u64, u64) {
    let mut rewrite = Rewrite::new(&small_config(), &header(store), set(topics));
    let mut file = vec![0; small_config().segment_bytes as usize];
    let mut next = 0;
    let mut write = |offset: u64, bytes: &[u8]| {
        assert!(offset >= next && offset.is_multiple_of(DISK_PAGE), "in order, in pages");
        assert_eq!(bytes.as_ptr().align_offset(DISK_PAGE as usize), 0);
        assert!(bytes.chunks(DISK_PAGE as usize).all(|page| page.len() == 4096 && !is_zero(page)));
        next = offset + bytes.len() as u64;
        file[offset as usize..next as usize].copy_from_slice(bytes);
        Ok(())
    };
    while rewrite.step(store, 50_000, &mut write).unwrap() {}
    let done = (rewrite.written_bytes() / DISK_PAGE, rewrite.messages());
    store.segments.insert(FIRST, file);
    done
}

/// Messages with their positions, and settings.
type Said = Vec<(u64, Vec<u8>)>;

fn read(store: &mut MemoryStore) -> (Said, Recovered, RecoveryReport, usize) {
    let (mut said, mut gaps) = (Said::new(), 0);
    let mut visit = |record: Record<'_>| match record {
        Record::Message { position, message } => said.push((position.0, message.as_bytes().to_vec())),
        Record::Metadata { position, body, .. } => said.push((position.0, body.to_vec())),
        Record::Gap { .. } => gaps += 1,
    };
    let (recovered, report) = recover(store, &small_config(), None, &mut visit).unwrap();
    (said, recovered, report, gaps)
}

/// Holds the index that is there to its segment.
fn verify(store: &mut MemoryStore) -> Result<u64, crate::IndexProblem> {
    let config = small_config();
    let mut facts = SegmentFacts::new(&config);
    let mut visit = |record: Record<'_>| match record {
        Record::Message { position, message } => facts.message(position, &message),
        Record::Gap { position, bytes, .. } => facts.gap(position, bytes),
        Record::Metadata { .. } => {}
    };
    let (recovered, _) = scan_segment(store, &config, FIRST, &mut visit).unwrap();
    let ended = SegmentEnd { end: recovered.end, blocks: recovered.blocks.segment(FIRST).unwrap().clone() };
    let mut file = IndexFile::new(&config, header(store));
    facts.check(store, &ended, &mut file)
}

fn topic_of(bytes: &[u8]) -> Option<&str> {
    let (message, _) = ringmq_protocol::message::StoredMessage::parse(bytes).ok()?;
    Some(message.topic())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![4 => 50usize..400, 2 => 1_000usize..9_000, 1 => 20_000usize..60_000];
    let topic = prop::option::weighted(0.9, 0usize..TOPICS.len());
    let step = (topic, bytes, prop::bool::weighted(0.3));
    let step = step.prop_map(|(topic, bytes, ends_block)| Step { topic, bytes, ends_block });
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_stays_is_where_it_was_and_all_find_it(steps in steps(), dead in prop::collection::btree_set(0usize..TOPICS.len(), 0..=2)) {
        let dead: Vec<&str> = dead.into_iter().map(|topic| TOPICS[topic]).collect();
        let mut store = log(&steps);
        rebuild_index(&mut store, &small_config(), FIRST, ChainPoint::default()).unwrap();
        let (original, index) = (store.clone(), store.indexes[&FIRST].clone());
        let (before, recovered_before, report_before, _) = read(&mut store);

        let hashes = dead.iter().map(|topic| TopicHash::of(topic)).collect();
        let file = IndexFile::new(&small_config(), header(&mut store));
        // As if it took nothing: then all is counted.
        let expected = file.remains(&mut store, &hashes, 0, 0).unwrap();
        prop_assert_eq!(expected.is_some(), before.iter().any(|(at, bytes)| {
            *at < small_config().segment_bytes && topic_of(bytes).is_some_and(|topic| dead.contains(&topic))
        }));
        let (_, messages) = rewrite(&mut store, &dead);

        // Everything else is there, at the same places, and nothing is damaged.
        let is_left = |(at, bytes): &(u64, Vec<u8>)| {
            let is_dead = topic_of(bytes).is_some_and(|topic| dead.contains(&topic));
            *at >= small_config().segment_bytes || !is_dead
        };
        let (after, recovered, report, gaps) = read(&mut store);
        let left: Said = before.iter().filter(|said| is_left(said)).cloned().collect();
        prop_assert_eq!(before.len() - left.len(), messages as usize);
        prop_assert_eq!(after, left);
        prop_assert_eq!(recovered, recovered_before);
        prop_assert_eq!(&report.damaged, &[]);
        prop_assert_eq!((report.blocks, report.bytes, report.end), (report_before.blocks, report_before.bytes, report_before.end));
        prop_assert!(gaps as u64 <= messages && (gaps > 0) == (messages > 0));
        // The index that is there may stay, and one that is made anew knows what is left.
        prop_assert_eq!(verify(&mut store).unwrap(), 0);
        let (made, damaged) = rebuild_index(&mut store, &small_config(), FIRST, ChainPoint::default()).unwrap();
        prop_assert_eq!(damaged, []);
        prop_assert_eq!(made.end, header(&mut original.clone()).end);
        prop_assert_eq!(verify(&mut store).unwrap(), 0);
        prop_assert_eq!(made.messages + messages, header(&mut original.clone()).messages);

        // Nothing is left to leave out; and it does not matter in how many steps topics went.
        store.indexes.insert(FIRST, index.clone());
        let rewritten = store.segments[&FIRST].clone();
        let (_, again) = rewrite(&mut store, &dead);
        prop_assert_eq!(again, 0);
        prop_assert!(store.segments[&FIRST] == rewritten);
        let mut stepwise = original.clone();
        for topic in &dead {
            rewrite(&mut stepwise, &[topic]);
        }
        prop_assert!(stepwise.segments[&FIRST] == rewritten);
    }

    #[test]
    fn what_would_be_left_is_known_before(steps in steps(), dead in 0usize..TOPICS.len()) {
        // Settings are not in an index.
        let steps: Vec<Step> = steps.into_iter().map(|step| Step { topic: step.topic.or(Some(0)), ..step }).collect();
        let mut store = log(&steps);
        rebuild_index(&mut store, &small_config(), FIRST, ChainPoint::default()).unwrap();
        let hashes = [TopicHash::of(TOPICS[dead])].into();
        let file = IndexFile::new(&small_config(), header(&mut store));
        let remains = |store: &mut MemoryStore, bytes| {
            file.remains(store, &hashes, bytes, bytes / 2).unwrap().map(|remains| remains.bytes)
        };
        let expected = remains(&mut store, 0);
        // With all that it takes given, a small share is not looked at more closely.
        let whole = small_config().segment_bytes;
        let at_most = remains(&mut store, whole);
        let (pages, messages) = rewrite(&mut store, &[TOPICS[dead]]);
        prop_assert_eq!(expected.is_some(), messages > 0);
        if let (Some(expected), Some(at_most)) = (expected, at_most) {
            let (left, _, _, gaps) = read(&mut store);
            // A message begins with its size, whose first bytes are zeros: they do not keep a page.
            let only_zeros = |(at, _): &&(u64, Vec<u8>)| *at < whole && at % DISK_PAGE > DISK_PAGE - 4;
            prop_assert!(expected / DISK_PAGE <= pages + left.iter().filter(only_zeros).count() as u64);
            // A gap may begin in a page of its own.
            prop_assert!(pages <= expected / DISK_PAGE + gaps as u64);
            prop_assert!(at_most >= expected);
        }
    }
}

/// A log in which one message lies beside the other, one block of them a segment.
fn mixed(share: usize) -> MemoryStore {
    let step = |number: usize| Step {
        topic: Some(usize::from(number.is_multiple_of(share))),
        bytes: 1_000,
        ends_block: number % 20 == 19,
    };
    let mut store = log(&(0..200).map(step).collect::<Vec<Step>>());
    rebuild_index(&mut store, &small_config(), FIRST, ChainPoint::default()).unwrap();
    store
}

#[test]
fn pages_without_anything_that_stays_are_not_written() {
    let mut store = mixed(40);
    let (pages, messages) = rewrite(&mut store, &[TOPICS[0]]);
    assert!(messages > 800, "{messages}");
    assert!(pages < 256 / 2, "{pages} of 256 pages were written");
}

#[test]
fn a_damaged_segment_is_left_as_it_is() {
    let mut store = mixed(3);
    let right = header(&mut store);
    let whole = store.segments[&FIRST].clone();
    for at in [10usize, 400_000, right.end.position.0 as usize - 100] {
        store.segments.get_mut(&FIRST).unwrap()[at] ^= 1;
        let mut rewrite = Rewrite::new(&small_config(), &right, set(&[TOPICS[0]]));
        let failed = loop {
            match rewrite.step(&mut store, u64::MAX, &mut |_, _| Ok(())) {
                Ok(true) => {}
                other => break other,
            }
        };
        assert!(matches!(failed, Err(RewriteError::Damaged(_))), "{failed:?}");
        store.segments.insert(FIRST, whole.clone());
    }
    let mut other = right.clone();
    other.end.previous_crc = 7;
    let mut rewrite = Rewrite::new(&small_config(), &other, set(&[]));
    let failed = rewrite.step(&mut store, u64::MAX, &mut |_, _| Ok(()));
    assert!(matches!(failed, Err(RewriteError::OtherEnd)), "{failed:?}");
    let mut rewrite = Rewrite::new(&small_config(), &header(&mut store), set(&[]));
    let failed = rewrite.step(&mut store, u64::MAX, &mut |_, _| Err(io::ErrorKind::StorageFull.into()));
    assert!(matches!(failed, Err(RewriteError::Write(_))), "{failed:?}");
}

/// A message that was left out is not there for a damaged index either, and no gap is taken for a message.
#[test]
fn a_gap_that_is_damaged_is_damage() {
    let mut store = mixed(40);
    rewrite(&mut store, &[TOPICS[0]]);
    let mut gap = None;
    let mut visit = |record: Record<'_>| {
        if let Record::Gap { position, .. } = record {
            gap.get_or_insert(position);
        }
    };
    recover(&mut store, &small_config(), None, &mut visit).unwrap();
    let at = gap.unwrap().0 as usize;
    store.segments.get_mut(&FIRST).unwrap()[at + 1_000] = 1;
    let (_, _, report, _) = read(&mut store);
    assert_eq!(report.damaged.len(), 1);
    assert!(report.damaged[0].position <= PhysicalOffset(at as u64));
}

/// The scrub goes through a segment a piece at a time, and opens its file anew for each.
#[test]
fn a_scan_goes_on_in_the_file_that_takes_its_place() {
    let (mut old, mut new) = (mixed(40), mixed(40));
    rewrite(&mut new, &[TOPICS[0]]);
    let header = header(&mut old);
    let shown = |switch_at: usize, old: &mut MemoryStore, new: &mut MemoryStore| {
        let until = Some(header.end.position);
        let mut scan = SegmentScan::new(&small_config(), FIRST, small_config().segment_bytes, None, until);
        for number in 0.. {
            match scan.next(if number < switch_at { &mut *old } else { &mut *new }).unwrap() {
                Found::Block(_) => {}
                Found::Gap(damage) => panic!("{damage:?} after {switch_at} blocks"),
                Found::End => {
                    assert_eq!(scan.chain(), Some(header.end));
                    return number;
                }
            }
        }
        unreachable!()
    };
    let blocks = shown(0, &mut old, &mut new);
    for switch_at in 0..=blocks {
        assert_eq!(shown(switch_at, &mut old, &mut new), blocks);
        assert_eq!(shown(switch_at, &mut new, &mut old), blocks, "the other way round");
    }
}
