//! Whole worlds of segments against a model, damage, and sizes that are out of the ordinary.

mod model;

use bytes::Bytes;
use proptest::prelude::*;

use super::page::{EntryItem, Item, KeyItem, QueueItem, homes_for};
use super::*;
use crate::block::LogIdentity;
use crate::key_table::KeyHash;
use model::{Config, Step, World, key_hash, queue_key, topic};

const MIB: u64 = 1 << 20;
const IDENTITY: LogIdentity = LogIdentity { shard: 3, log_id: 0x1234_5678 };

/// A store of index files that serves the pages that look-ups ask for.
struct Served {
    segments: SealedSegments,
    files: Vec<(SegmentBase, Vec<u8>)>,
    reads: usize,
}

impl Served {
    fn new(files: Vec<(SegmentBase, Vec<u8>)>, segment_bytes: u64, cache_pages: usize) -> Self {
        let mut segments = SealedSegments::new(IDENTITY, segment_bytes, cache_pages);
        for (base, file) in &files {
            let header = IndexHeader::parse(&file[..PAGE_BYTES], IDENTITY, *base, segment_bytes).unwrap();
            assert_eq!(header.file_bytes(), file.len() as u64);
            segments.push(header);
        }
        Self { segments, files, reads: 0 }
    }

    fn of(world: &World, cache_pages: usize) -> Self {
        Self::new(world.files(), world.segment_bytes, cache_pages)
    }

    fn page(&self, id: PageId) -> Bytes {
        let at = self.files.binary_search_by_key(&id.segment, |(base, _)| *base).unwrap();
        Bytes::copy_from_slice(&self.files[at].1[id.page as usize * PAGE_BYTES..][..PAGE_BYTES])
    }

    /// Asks, reads what is missing, asks again.
    fn ask<T>(&mut self, look_up: impl Fn(&mut SealedSegments) -> Result<T, Missing>) -> T {
        for _ in 0..10_000 {
            let Missing(pages) = match look_up(&mut self.segments) {
                Ok(answer) => return answer,
                Err(missing) => missing,
            };
            assert!((1..=64).contains(&pages.len()), "{pages:?}");
            assert!(pages.is_sorted_by(|a, b| a < b), "{pages:?}");
            for id in pages {
                self.segments.put_page(id, self.page(id)).unwrap();
                self.reads += 1;
            }
        }
        panic!("a look-up is never answered");
    }
}

/// Compares every kind of look-up with the model.
fn check_all(world: &World, served: &mut Served) -> Result<(), TestCaseError> {
    for queue in world.queues() {
        let sealed = world.sealed_queue(queue);
        let entries = world.entries(queue);
        prop_assert_eq!(
            served.ask(|segments| segments.first_offset(sealed)),
            entries.first().map(|(offset, _)| *offset)
        );
        let mut offsets: Vec<u64> = entries.iter().map(|(offset, _)| offset.0).collect();
        offsets.extend([0, 1, u64::MAX]);
        offsets.extend(entries.iter().map(|(offset, _)| offset.0 + 1));
        for from in offsets {
            for max in [0, 1, 3, 1000] {
                let found = served.ask(|segments| segments.entries(sealed, QueueOffset(from), max));
                prop_assert_eq!(found, world.entries_of_one_segment(queue, from, max), "from {}", from);
            }
            let previous = entries.iter().rfind(|(offset, _)| offset.0 < from).map(|(offset, _)| *offset);
            prop_assert_eq!(
                served.ask(|segments| segments.previous(sealed, QueueOffset(from))),
                previous,
                "before {}",
                from
            );
        }
        let mut times: Vec<i64> = entries.iter().map(|(_, entry)| entry.store_timestamp.0).collect();
        times.extend([i64::MIN, i64::MAX, 0]);
        times.extend(entries.iter().map(|(_, entry)| entry.store_timestamp.0 + 1));
        for time in times {
            for after in [false, true] {
                let is_found = |stored: i64| if after { stored > time } else { stored >= time };
                let expected = entries.iter().find(|(_, entry)| is_found(entry.store_timestamp.0));
                prop_assert_eq!(
                    served.ask(|segments| segments.first_at_time(sealed, StoreTimestamp(time), after)),
                    expected.map(|(offset, _)| *offset),
                    "time {} after {}",
                    time,
                    after
                );
            }
        }
    }
    let end = world.end();
    for key in 0..world.config.keys + 1 {
        for (begin, until) in [(i64::MIN, i64::MAX), (0, world.now / 2), (world.now / 2, world.now)] {
            for (below, max) in [(end, 1000), (end, 2), (end / 2, 1000), (end / 2, 1), (end, 0)] {
                let found = served.ask(|segments| {
                    let (begin, until) = (StoreTimestamp(begin), StoreTimestamp(until));
                    segments.find_key(key_hash(key), begin, until, PhysicalOffset(below), max)
                });
                prop_assert_eq!(found, world.positions_of_key(key, begin, until, below, max));
            }
        }
        // One after the other, each below the one before.
        let all = world.positions_of_key(key, i64::MIN, i64::MAX, u64::MAX, 20);
        let mut below = PhysicalOffset(u64::MAX);
        for position in all {
            let (begin, until) = (StoreTimestamp(i64::MIN), StoreTimestamp(i64::MAX));
            let found = served.ask(|segments| segments.find_key(key_hash(key), begin, until, below, 1));
            prop_assert_eq!(found, vec![position]);
            below = position;
        }
    }
    Ok(())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (0u32..5, 1u8..4).prop_map(|(queue, key)| Step::Message { queue, key }),
        4 => (0u32..5, 1usize..40).prop_map(|(queue, count)| Step::Burst { queue, count }),
        6 => (0i64..50).prop_map(|millis| Step::Block { millis }),
        2 => (0u32..5, 1u64..100).prop_map(|(queue, count)| Step::Lose { queue, count }),
        4 => Just(Step::NextSegment),
        1 => Just(Step::LoseSegment),
        2 => Just(Step::RebuiltSegment),
        1 => (0u32..5).prop_map(|queue| Step::Recreate { queue }),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn look_ups_agree_with_a_model(steps in steps()) {
        let world = World::run(Config::default(), &steps);
        check_all(&world, &mut Served::of(&world, 4096))?;
        // A cache so small that pages come and go all the time.
        let small = 64 + 4 * world.segments() + 8;
        check_all(&world, &mut Served::of(&world, small))?;
    }

    #[test]
    fn deleted_segments_are_forgotten(steps in steps(), percent in 0usize..101) {
        let mut world = World::run(Config::default(), &steps);
        let mut served = Served::of(&world, 4096);
        check_all(&world, &mut served)?;
        let kept = world.bases()[world.segments() * percent / 101];
        served.segments.remove_below(kept);
        world.remove_below(kept);
        check_all(&world, &mut served)?;
        prop_assert_eq!(served.segments.headers().len(), world.segments());
        prop_assert!(served.segments.headers().all(|header| header.base >= kept));
    }
}

#[test]
fn a_queue_that_is_idle_for_long_is_found_with_few_reads() {
    // A message in the first of 500 segments, one in the last, and nothing of the queue between but many lost offsets.
    const LOST: u64 = 1 << 40;
    let mut steps = vec![Step::Message { queue: 0, key: 1 }, Step::Lose { queue: 0, count: LOST }];
    for _ in 0..500 {
        let other = Step::Message { queue: 1, key: 2 };
        steps.extend([Step::NextSegment, Step::Block { millis: 1 }, other]);
    }
    steps.push(Step::Message { queue: 0, key: 1 });
    let world = World::run(Config::default(), &steps);
    let sealed = world.sealed_queue(0);
    let entries = |segments: &mut SealedSegments, from| {
        let found = segments.entries(sealed, QueueOffset(from), 32)?;
        Ok(found.first().map(|(offset, _)| *offset))
    };
    type LookUp<'a> = &'a dyn Fn(&mut SealedSegments) -> Result<Option<QueueOffset>, Missing>;
    let look_ups: [(LookUp<'_>, u64); 6] = [
        (&|segments| entries(segments, 1), LOST + 1),
        (&|segments| entries(segments, LOST + 1), LOST + 1),
        (&|segments| segments.first_offset(sealed), 0),
        (&|segments| segments.previous(sealed, QueueOffset(LOST)), 0),
        (&|segments| segments.previous(sealed, QueueOffset(LOST + 1)), 0),
        (&|segments| segments.first_at_time(sealed, StoreTimestamp(2), false), LOST + 1),
    ];
    for (look_up, expected) in look_ups {
        let mut served = Served::of(&world, 4096);
        assert_eq!(served.ask(look_up), Some(QueueOffset(expected)));
        assert!(served.reads <= 24, "{} pages", served.reads);
    }
}

#[test]
fn where_no_index_knows_idle_queues_many_pages_are_asked_for_at_once() {
    let mut steps = vec![Step::Message { queue: 0, key: 1 }];
    for _ in 0..130 {
        steps.extend([Step::RebuiltSegment, Step::Message { queue: 1, key: 2 }]);
    }
    steps.push(Step::Message { queue: 0, key: 1 });
    let world = World::run(Config::default(), &steps);
    let sealed = world.sealed_queue(0);
    let mut served = Served::of(&world, 131 + 64 + 8);
    let rounds = std::cell::Cell::new(0);
    let found = served.ask(|segments| {
        rounds.set(rounds.get() + 1);
        segments.entries(sealed, QueueOffset(1), 32)
    });
    assert_eq!(found[0].0, QueueOffset(1));
    assert!(rounds.get() <= 12, "{} rounds", rounds.get());
}

#[test]
fn a_key_is_asked_for_in_64_segments_at_once() {
    let mut steps = Vec::new();
    for _ in 0..100 {
        steps.extend([Step::NextSegment, Step::Message { queue: 0, key: 1 }]);
    }
    let world = World::run(Config::default(), &steps);
    let mut served = Served::of(&world, 4096);
    let find = |segments: &mut SealedSegments| {
        let (begin, end) = (StoreTimestamp(i64::MIN), StoreTimestamp(i64::MAX));
        segments.find_key(key_hash(1), begin, end, PhysicalOffset(u64::MAX), 70)
    };
    let Missing(pages) = find(&mut served.segments).unwrap_err();
    assert_eq!(pages.len(), 64);
    assert!(pages[0].segment.0 > 30 * MIB, "the newest ones first: {:?}", pages[0]);
    assert_eq!(served.ask(find).len(), 70);
}

#[test]
fn one_key_in_every_message_does_not_slow_down_the_others() {
    // 60,000 times the same key: its items fill 118 pages behind their home, over the homes of other keys.
    let mut steps = Vec::new();
    for _ in 0..60 {
        steps.push(Step::Burst { queue: 0, count: 1000 });
    }
    let config = Config { burst_key: Some(7), keys: 3000 };
    steps.extend((0..200).map(|_| Step::Burst { queue: 1, count: 10 }));
    let mut world = World::run(config, &steps);
    world.scatter_keys(1, 2000);
    let mut served = Served::of(&world, 4096);
    let mut most = 0;
    for key in [7].into_iter().chain((1000..3000).step_by(17)) {
        served = Served::new(served.files, world.segment_bytes, 4096);
        let found = served.ask(|segments| {
            let (begin, end) = (StoreTimestamp(i64::MIN), StoreTimestamp(i64::MAX));
            segments.find_key(key_hash(key), begin, end, PhysicalOffset(u64::MAX), 32)
        });
        assert_eq!(found, world.positions_of_key(key, i64::MIN, i64::MAX, u64::MAX, 32), "key {key}");
        most = most.max(served.reads);
    }
    assert!((2..=20).contains(&most), "{most} pages");
}

#[test]
fn an_empty_segment_has_an_index_without_items() {
    let world = World::run(Config::default(), &[]);
    let file = &world.files()[0].1;
    assert_eq!(file.len(), 2 * PAGE_BYTES, "the header, and where its only block begins");
    let mut served = Served::of(&world, 1);
    let queue = SealedQueue { key: queue_key(0), born: PhysicalOffset(0) };
    assert_eq!(served.segments.first_offset(queue), Ok(None));
    assert_eq!(served.segments.entries(queue, QueueOffset(0), 10), Ok(vec![]));
    assert_eq!(served.segments.previous(queue, QueueOffset(10)), Ok(None));
    assert_eq!(served.segments.first_at_time(queue, StoreTimestamp(0), false), Ok(None));
    let (begin, end) = (StoreTimestamp(i64::MIN), StoreTimestamp(i64::MAX));
    assert_eq!(served.segments.find_key(KeyHash(0), begin, end, PhysicalOffset(10), 10), Ok(vec![]));
}

#[test]
fn a_hundred_thousand_queues() {
    let mut index = World::run(Config::default(), &[Step::Burst { queue: 0, count: 1000 }]).index(0, true);
    let entries = index.runs[0].entries.clone();
    let key = |number: u32| QueueKey { topic: topic(number / 8), queue_id: QueueId(number % 8) };
    index.runs.clear();
    for number in 0..100_000 {
        if number % 3 == 0 {
            index.idle.push((key(number), QueueOffset(u64::from(number))));
        } else {
            let mut one = Chunks::default();
            one.push(entries.get(number as usize % 1000));
            index.runs.push(SealedRun {
                queue: key(number),
                first: QueueOffset(u64::from(number)),
                entries: one,
            });
        }
    }
    let mut file = Vec::new();
    let header = write_index(&index, IDENTITY, MIB, &mut file).unwrap();
    assert_eq!(header.messages, 66_666);
    let mut served = Served::new(vec![(index.base, file)], MIB, 4096);
    for number in 0..100_000 {
        let queue = SealedQueue { key: key(number), born: PhysicalOffset(0) };
        let expected = (number % 3 != 0).then_some(QueueOffset(u64::from(number)));
        assert_eq!(served.ask(|segments| segments.first_offset(queue)), expected, "queue {number}");
    }
    for number in 100_000..100_100 {
        let queue = SealedQueue { key: key(number), born: PhysicalOffset(0) };
        assert_eq!(served.ask(|segments| segments.first_offset(queue)), None);
    }
}

#[test]
fn a_queue_with_more_runs_than_a_page_holds() {
    // Every second message of a queue is lost: its items go over many pages.
    let mut steps = Vec::new();
    for _ in 0..500 {
        steps.extend([Step::Message { queue: 0, key: 1 }, Step::Lose { queue: 0, count: 1 }]);
    }
    steps.push(Step::Message { queue: 1, key: 2 });
    let world = World::run(Config::default(), &steps);
    let mut served = Served::of(&world, 4096);
    check_all(&world, &mut served).unwrap();
}

#[test]
fn a_segment_that_took_years_is_found_by_time_to_the_unit() {
    // Five years are 37 times 2^32 milliseconds: a unit is 64 of them.
    const YEAR: i64 = 365 * 86_400_000;
    let mut steps = Vec::new();
    for _ in 0..6 {
        steps.extend([Step::Message { queue: 0, key: 1 }, Step::Block { millis: YEAR }]);
    }
    let world = World::run(Config::default(), &steps);
    let mut served = Served::of(&world, 4096);
    let sealed = world.sealed_queue(0);
    for (offset, entry) in world.entries(0) {
        let found = served.ask(|segments| segments.entries(sealed, offset, 1))[0].1;
        let rounded = entry.store_timestamp.0 - found.store_timestamp.0;
        assert!((0..64).contains(&rounded), "{rounded}");
        let lower =
            |segments: &mut SealedSegments| segments.first_at_time(sealed, entry.store_timestamp, false);
        assert_eq!(served.ask(lower), Some(offset));
        let later = StoreTimestamp(entry.store_timestamp.0 + 64);
        let next = (offset.0 < 5).then_some(QueueOffset(offset.0 + 1));
        assert_eq!(served.ask(|segments| segments.first_at_time(sealed, later, false)), next);
    }
}

fn mixed_world() -> World {
    let mut steps = Vec::new();
    for number in 0..40u8 {
        steps.extend([
            Step::Message { queue: u32::from(number % 4), key: number % 5 },
            Step::Burst { queue: 4, count: 10 },
            Step::Block { millis: 7 },
        ]);
        if number % 10 == 9 {
            steps.extend([Step::Lose { queue: 1, count: 3 }, Step::NextSegment]);
        }
    }
    World::run(Config::default(), &steps)
}

/// The format must not drift unseen. If this fails because the layout was changed on purpose, the version goes up.
#[test]
fn the_bytes_of_a_file_are_those_of_version_1() {
    let files = mixed_world().files();
    let sums: Vec<(usize, u32)> = files.iter().map(|(_, file)| (file.len(), crc32c::crc32c(file))).collect();
    assert_eq!(sums, GOLDEN);
}

/// Length and CRC-32C of each file.
const GOLDEN: [(usize, u32); 5] =
    [(20480, 1166464999), (20480, 222579276), (20480, 3768835165), (20480, 1188035292), (12288, 1803485010)];

#[test]
fn a_block_shortly_before_every_position_is_found() {
    let steps: Vec<Step> = (0..300).map(|at| Step::Burst { queue: at % 3, count: 40 }).collect();
    let steps: Vec<Step> = steps.into_iter().flat_map(|burst| [burst, Step::Block { millis: 1 }]).collect();
    let world = World::run(Config::default(), &steps);
    let mut served = Served::of(&world, 4096);
    let segment = world.index(0, true);
    let end = segment.end.position;
    assert!(end.0 > 200_000, "{end} is beyond a few marks");
    for position in (segment.base.0..end.0).step_by(999).map(PhysicalOffset) {
        let found = served.ask(|segments| segments.block_before(position));
        let found = found.expect("the position is in the segment");
        assert!(
            segment
                .blocks
                .blocks
                .iter()
                .any(|block| segment.base.0 + u64::from(block.relative_start) == found.0)
        );
        assert!(found <= position && position.0 - found.0 < 3 * (64 << 10), "{found} for {position}");
    }
    assert_eq!(served.ask(|segments| segments.block_before(end)), None);
}

#[test]
fn every_changed_byte_of_a_page_is_refused() {
    let world = mixed_world();
    let (base, file) = &world.files()[1];
    let mut segments = Served::of(&world, 4096).segments;
    for (number, page) in file.chunks(PAGE_BYTES).enumerate() {
        let id = PageId { segment: *base, page: number as u32 };
        let mut page = page.to_vec();
        for at in 0..PAGE_BYTES {
            // Every bit alone, and all at once.
            for flip in [1u8, 2, 4, 8, 16, 32, 64, 128, 255] {
                page[at] ^= flip;
                if number == 0 {
                    assert!(
                        IndexHeader::parse(&page, IDENTITY, *base, world.segment_bytes).is_err(),
                        "byte {at}"
                    );
                } else if flip == 1 || flip == 255 {
                    let refused = segments.put_page(id, Bytes::copy_from_slice(&page));
                    assert!(
                        matches!(refused, Err(IndexError::Checksum { .. })),
                        "page {number} byte {at}: {refused:?}"
                    );
                }
                page[at] ^= flip;
            }
        }
    }
}

#[test]
fn a_page_of_another_place_is_refused() {
    let world = mixed_world();
    let served = Served::of(&world, 4096);
    let mut segments = Served::of(&world, 4096).segments;
    let ids: Vec<PageId> = served
        .files
        .iter()
        .flat_map(|(base, file)| {
            let pages = (file.len() / PAGE_BYTES) as u32;
            (0..pages).map(move |page| PageId { segment: *base, page })
        })
        .collect();
    for source in &ids {
        for target in &ids {
            let taken = segments.put_page(*target, served.page(*source));
            match (source == target, target.page) {
                (true, 1..) => assert_eq!(taken, Ok(())),
                (true, 0) => assert_eq!(taken, Err(IndexError::NotAsked)),
                (false, _) => {
                    assert!(matches!(taken, Err(IndexError::Checksum { .. })), "{source:?} {target:?}")
                }
            }
        }
    }
    // Pages of another shard and of another data directory.
    for identity in [LogIdentity { shard: 4, ..IDENTITY }, LogIdentity { log_id: 1, ..IDENTITY }] {
        let mut file = Vec::new();
        write_index(&world.index(0, true), identity, world.segment_bytes, &mut file).unwrap();
        let id = PageId { segment: world.bases()[0], page: 1 };
        let foreign = Bytes::copy_from_slice(&file[PAGE_BYTES..2 * PAGE_BYTES]);
        assert!(matches!(segments.put_page(id, foreign), Err(IndexError::Checksum { .. })));
    }
    // A segment that there is not, a page behind the end, and a part of a page.
    let page = served.page(ids[1]);
    let elsewhere = PageId { segment: SegmentBase(77 * MIB), page: 1 };
    assert_eq!(segments.put_page(elsewhere, page.clone()), Err(IndexError::NotAsked));
    assert_eq!(segments.put_page(ids[1], page.slice(..4095)), Err(IndexError::Length(4095)));
}

#[test]
fn a_rebuilt_index_takes_the_place_of_the_damaged_one() {
    let world = mixed_world();
    let mut served = Served::of(&world, 4096);
    check_all(&world, &mut served).unwrap();
    // Rebuilt from its segment alone it does not know idle queues, so it can have other pages.
    let mut file = Vec::new();
    let header = write_index(&world.index(1, false), IDENTITY, world.segment_bytes, &mut file).unwrap();
    served.segments.replace(header);
    served.files[1].1 = file;
    let before = served.reads;
    check_all(&world, &mut served).unwrap();
    assert!(served.reads > before, "pages of the old index are not used any more");
}

#[test]
fn a_header_says_what_is_wrong_with_it() {
    let world = mixed_world();
    let (base, file) = &world.files()[1];
    let page = &file[..PAGE_BYTES];
    let parse = |page: &[u8]| IndexHeader::parse(page, IDENTITY, *base, world.segment_bytes);
    let sealed = |change: &dyn Fn(&mut [u8])| {
        let mut page = page.to_vec();
        change(&mut page);
        super::page::seal(&mut page, IDENTITY, PageId { segment: *base, page: 0 }, 1, 0, 0);
        parse(&page)
    };
    assert!(sealed(&|_| ()).is_ok());
    assert_eq!(parse(&[]), Err(IndexError::Length(0)));
    assert_eq!(parse(&page[..4095]), Err(IndexError::Length(4095)));
    assert_eq!(parse(&[0; PAGE_BYTES]), Err(IndexError::NotAnIndex));
    assert_eq!(parse(&file[PAGE_BYTES..2 * PAGE_BYTES]), Err(IndexError::NotAnIndex));
    assert_eq!(sealed(&|page| page[12] = 2), Err(IndexError::Version(2)));
    let foreign = [
        IndexHeader::parse(page, LogIdentity { shard: 4, ..IDENTITY }, *base, world.segment_bytes),
        IndexHeader::parse(page, LogIdentity { log_id: 4, ..IDENTITY }, *base, world.segment_bytes),
        IndexHeader::parse(page, IDENTITY, SegmentBase(0), world.segment_bytes),
        IndexHeader::parse(page, IDENTITY, *base, 2 * world.segment_bytes),
    ];
    assert!(foreign.iter().all(|parsed| *parsed == Err(IndexError::Foreign)), "{foreign:?}");
    // Whole, but nonsense: pages, end, messages, shift, number and place of sections, homes, items.
    for at in
        [20, 47, 64 + 7, 96, 104, 108, 112 + 4, 112 + 8, 112 + 12, 112 + 16, 136 + 12, 136 + 16, 160 + 22]
    {
        let parsed = sealed(&|page| page[at] ^= 0x80);
        assert!(matches!(parsed, Err(IndexError::Content(_))), "byte {at}: {parsed:?}");
    }
}

#[test]
fn more_pages_than_the_entries_need_are_refused() {
    let world = mixed_world();
    let (base, file) = &world.files()[1];
    let mut page = file[..PAGE_BYTES].to_vec();
    // A page more for the entries; all behind it moves by one.
    for at in [112 + 8, 136 + 4, 160 + 4, 184 + 4, 20] {
        page[at] += 1;
    }
    super::page::seal(&mut page, IDENTITY, PageId { segment: *base, page: 0 }, 1, 0, 0);
    let parsed = IndexHeader::parse(&page, IDENTITY, *base, world.segment_bytes);
    assert_eq!(parsed, Err(IndexError::Content("its sections do not hold their items")));
}

#[test]
fn a_whole_page_with_nonsense_in_it_is_refused() {
    let world = mixed_world();
    let (base, file) = &world.files()[1];
    let mut segments = Served::of(&world, 4096).segments;
    // In this segment each section has one page.
    let mut put = |number: u32, change: &dyn Fn(&mut [u8])| {
        let id = PageId { segment: *base, page: number };
        let mut page = file[number as usize * PAGE_BYTES..][..PAGE_BYTES].to_vec();
        change(&mut page);
        let (kind, flags, count) = (page[6], page[7], u16::from_le_bytes([page[4], page[5]]));
        super::page::seal(&mut page, IDENTITY, id, kind, flags, usize::from(count));
        segments.put_page(id, page.into())
    };
    for number in 1..4 {
        assert_eq!(put(number, &|_| ()), Ok(()));
        let kind = put(number, &|page| page[6] = 1);
        assert!(matches!(kind, Err(IndexError::Content(_))), "page {number}: {kind:?}");
        let count = put(number, &|page| page[4..6].copy_from_slice(&600u16.to_le_bytes()));
        assert!(matches!(count, Err(IndexError::Content(_))), "page {number}: {count:?}");
        // The position of an entry or a key, the number of entries of a run.
        let at = [8, 8 + 24, 8][number as usize - 1];
        let far = put(number, &|page| page[at..at + 4].fill(0xff));
        assert!(matches!(far, Err(IndexError::Content(_))), "page {number}: {far:?}");
    }
    let one_entry_less = put(1, &|page| page[4] -= 1);
    assert!(matches!(one_entry_less, Err(IndexError::Content(_))), "{one_entry_less:?}");
    let block_behind_message = put(1, &|page| page[8 + 16 + 2] = 1);
    assert!(matches!(block_behind_message, Err(IndexError::Content(_))), "{block_behind_message:?}");
    let offsets_end = put(2, &|page| page[8 + 12..8 + 20].fill(0xff));
    assert!(matches!(offsets_end, Err(IndexError::Content(_))), "{offsets_end:?}");
    for number in [2, 3] {
        let goes_on = put(number, &|page| page[7] = 1);
        assert_eq!(goes_on, Err(IndexError::Content("it goes on beyond its section")));
    }
}

#[test]
fn a_page_is_zeros_behind_its_items() {
    // More pages than are written at once, so that buffers are used again.
    let steps: Vec<Step> = (0..200).map(|_| Step::Burst { queue: 0, count: 100 }).collect();
    let mut world = World::run(Config { keys: 0, burst_key: Some(1) }, &steps);
    world.scatter_keys(0, 20_000);
    let (_, file) = &world.files()[0];
    assert!(file.len() > 128 * PAGE_BYTES);
    for page in file.chunks(PAGE_BYTES).skip(1) {
        let item_bytes = [0, 0, 20, 28, 8, 4][usize::from(page[6])];
        let items = usize::from(u16::from_le_bytes([page[4], page[5]]));
        assert!(page[8 + items * item_bytes..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_section_that_a_later_version_adds_is_passed_over() {
    let world = mixed_world();
    let (base, file) = &world.files()[0];
    let header = IndexHeader::parse(&file[..PAGE_BYTES], IDENTITY, *base, world.segment_bytes).unwrap();
    let mut page = file[..PAGE_BYTES].to_vec();
    page[20..24].copy_from_slice(&(header.pages + 2).to_le_bytes());
    let count = page[108];
    page[108] += 1;
    let added = &mut page[112 + usize::from(count) * 24..][..24];
    added[0..4].copy_from_slice(&9u32.to_le_bytes());
    added[4..8].copy_from_slice(&header.pages.to_le_bytes());
    added[8..12].copy_from_slice(&2u32.to_le_bytes());
    super::page::seal(&mut page, IDENTITY, PageId { segment: *base, page: 0 }, 1, 0, 0);
    let parsed = IndexHeader::parse(&page, IDENTITY, *base, world.segment_bytes).unwrap();
    assert_eq!(parsed, IndexHeader { pages: header.pages + 2, ..header });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// I3: whatever stands in a page whose checksum is right, look-ups end, and end without a panic.
    #[test]
    fn nonsense_with_a_right_checksum_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 4usize..400, any::<u8>()), 1..40),
    ) {
        let world = mixed_world();
        let mut served = Served::of(&world, 4096);
        let (segments, files) = (&mut served.segments, &mut served.files);
        for (base, file) in files.iter_mut() {
            let pages = file.len() / PAGE_BYTES;
            for number in 1..pages {
                let page = &mut file[number * PAGE_BYTES..][..PAGE_BYTES];
                let original = page.to_vec();
                for (which, at, value) in &changes {
                    if which.index(pages) == number {
                        page[*at] = *value;
                    }
                }
                let (kind, flags) = (page[6], page[7]);
                let count = u16::from_le_bytes([page[4], page[5]]);
                let id = PageId { segment: *base, page: number as u32 };
                super::page::seal(page, IDENTITY, id, kind, flags, usize::from(count));
                match segments.put_page(id, Bytes::copy_from_slice(page)) {
                    Ok(()) => {}
                    Err(IndexError::Content(_)) => page.copy_from_slice(&original),
                    Err(other) => prop_assert!(false, "{other}"),
                }
            }
        }
        for queue in world.queues() {
            let sealed = world.sealed_queue(queue);
            for offset in [0, 1, 5, 50, u64::MAX].map(QueueOffset) {
                served.ask(|segments| segments.entries(sealed, offset, 40));
                served.ask(|segments| segments.previous(sealed, offset));
                let time = StoreTimestamp(offset.0 as i64);
                served.ask(|segments| segments.first_at_time(sealed, time, true));
            }
        }
        for key in 0..6 {
            let (begin, end) = (StoreTimestamp(i64::MIN), StoreTimestamp(i64::MAX));
            served.ask(|segments| segments.find_key(key_hash(key), begin, end, PhysicalOffset(u64::MAX), 100));
        }
    }
}

#[test]
fn a_write_that_fails_is_told() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let world = mixed_world();
    let error =
        write_index(&world.index(0, true), IDENTITY, world.segment_bytes, &mut Full(5000)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
#[should_panic(expected = "a message is in a block")]
fn a_message_outside_the_blocks_is_a_mistake_of_the_program() {
    let mut index = mixed_world().index(0, true);
    let blocks = Arc::make_mut(&mut index.blocks);
    blocks.blocks.iter_mut().for_each(|block| block.len = 48);
    let _ = write_index(&index, IDENTITY, MIB, &mut Vec::new());
}

#[test]
fn pages_hold_as_many_items_as_the_format_says() {
    assert_eq!((EntryItem::PER_PAGE, QueueItem::PER_PAGE, KeyItem::PER_PAGE), (204, 146, 511));
    assert_eq!(
        (homes_for::<QueueItem>(0), homes_for::<QueueItem>(109), homes_for::<QueueItem>(110)),
        (0, 1, 2)
    );
    assert_eq!((homes_for::<KeyItem>(383), homes_for::<KeyItem>(384)), (1, 2));
}
