use super::*;
use crate::testing::{Quick, body, small_config};

fn log() -> CommitLog {
    log_with(small_config())
}

fn log_with(config: LogConfig) -> CommitLog {
    let recovered = Recovered::empty(&config);
    let mut log = CommitLog::new(config, recovered);
    let wanted = log.prepare_wanted().unwrap();
    log.on_prepared(wanted.segment, wanted.to);
    log
}

fn append(log: &mut CommitLog, len: usize) -> Appended {
    log.append_record(1, &body(0, len), StoreTimestamp(1)).unwrap()
}

fn write_ok(log: &mut CommitLog, write: &LogWrite) -> Option<DurableAdvance> {
    log.on_written(write.block, Ok(()))
}

#[test]
fn records_of_one_turn_share_a_block_and_the_next_waits_for_a_slot() {
    let mut log = log();
    let first = append(&mut log, 100);
    let second = append(&mut log, 100);
    assert_eq!((first.block, second.block), (BlockSeq(0), BlockSeq(0)));
    assert_eq!(first.position, PhysicalOffset(48));
    assert_eq!(second.position, PhysicalOffset(48 + 110));
    let write = log.next_write().unwrap();
    assert_eq!((write.block, write.segment, write.offset_in_segment), (BlockSeq(0), SegmentBase(0), 0));
    assert_eq!(write.data.len(), 4096);
    assert!(log.next_write().is_none(), "nothing waits");
    let mut writes: Vec<LogWrite> = (0..3)
        .map(|_| {
            append(&mut log, 100);
            log.next_write().unwrap()
        })
        .collect();
    let waiting = append(&mut log, 100);
    assert!(log.next_write().is_none(), "four are in flight");
    let more = append(&mut log, 100);
    assert_eq!(more.block, waiting.block, "the open block grows meanwhile");
    assert_eq!(write_ok(&mut log, &writes.remove(0)), None, "the one before is still under way");
    let advance = write_ok(&mut log, &write).unwrap();
    assert_eq!(advance.block, BlockSeq(1), "both at once");
    assert_eq!(log.durable(), advance.position);
    assert_eq!(log.next_write().unwrap().block, waiting.block);
    assert!(log.next_write().is_none());
}

#[test]
fn beside_enough_writes_a_block_goes_only_when_it_is_full() {
    let mut log = log_with(LogConfig { writes_in_flight_enough: 1, ..small_config() });
    append(&mut log, 100);
    let first = log.next_write().unwrap();
    append(&mut log, 100);
    assert!(log.next_write().is_none(), "it can still grow");
    let block_bytes = log.config().block_bytes_max as usize;
    append(&mut log, block_bytes - 1000);
    let third = append(&mut log, 1000);
    assert_eq!((log.next_write().unwrap().block, third.block), (BlockSeq(1), BlockSeq(2)), "full");
    assert!(log.next_write().is_none());
    write_ok(&mut log, &first).unwrap();
    assert!(log.next_write().is_none(), "one is still under way");
}

#[test]
fn a_batch_stays_in_one_block_even_if_it_is_larger_than_blocks_usually_are() {
    let mut log = log();
    append(&mut log, 20_000);
    let records = 70;
    log.reserve(records * 1010, StoreTimestamp(2)).unwrap();
    let blocks: Vec<BlockSeq> = (0..records).map(|_| append(&mut log, 1000).block).collect();
    assert!(blocks.iter().all(|block| *block == BlockSeq(1)));
    assert_eq!(append(&mut log, 1000).block, BlockSeq(2), "but it takes no others in");
    assert_eq!(log.next_write().unwrap().block, BlockSeq(0));
    assert_eq!(log.next_write().unwrap().block, BlockSeq(1));
}

#[test]
fn what_is_reserved_can_be_appended_even_at_the_limit_of_what_may_wait() {
    let config = LogConfig { staged_bytes_max: 140_000, ..small_config() };
    let mut log = CommitLog::new(config.clone(), Recovered::empty(&config));
    let wanted = log.prepare_wanted().unwrap();
    log.on_prepared(wanted.segment, wanted.to);
    append(&mut log, 20_000);
    assert!(log.next_write().is_some(), "the next record opens a block, with a header of its own");
    let room = (config.staged_bytes_max - log.staged_bytes()) as usize;
    log.reserve(room, StoreTimestamp(1)).unwrap();
    let first = append(&mut log, 1000);
    let last = append(&mut log, room - 1010 - 10);
    assert_eq!((first.block, last.block), (BlockSeq(1), BlockSeq(1)));
    let beyond = log.reserve(1, StoreTimestamp(1));
    assert!(matches!(beyond, Err(AppendError::Busy { .. })), "{beyond:?}");
}

#[test]
fn a_reservation_that_is_not_used_leaves_no_block() {
    let mut log = log();
    log.reserve(1000, StoreTimestamp(1)).unwrap();
    assert!(log.next_write().is_none());
    log.reserve(100_000, StoreTimestamp(1)).unwrap();
    assert_eq!(append(&mut log, 10).block, BlockSeq(0));
    assert_eq!(log.next_write().unwrap().data.len(), 4096);
}

#[test]
fn sizes_out_of_range_are_refused() {
    let mut log = log();
    let max = log.config().record_bytes_max;
    for len in [0, max as usize + 1, usize::MAX] {
        assert_eq!(log.reserve(len, StoreTimestamp(0)), Err(AppendError::Size { len, max }));
    }
    append(&mut log, max as usize - METADATA);
    const METADATA: usize = record::METADATA_HEADER_BYTES;
}

#[test]
fn a_disk_that_is_behind_makes_senders_wait_and_loses_nothing() {
    let mut log = log();
    let mut accepted = Vec::new();
    let refused = loop {
        match log.append_record(1, &body(0, 10_000), StoreTimestamp(1)) {
            Ok(appended) => accepted.push(appended.block),
            Err(error) => break error,
        }
        assert!(log.staged_bytes() <= log.config().staged_bytes_max);
    };
    assert!(matches!(refused, AppendError::Busy { .. }), "{refused}");
    let mut last = None;
    while let Some(write) = log.next_write() {
        last = write_ok(&mut log, &write);
    }
    assert_eq!(last.unwrap().block, *accepted.last().unwrap());
    assert_eq!(log.staged_bytes(), 0);
    append(&mut log, 10_000);
}

#[test]
fn after_a_failed_write_nothing_is_durable_any_more() {
    let mut log = log();
    let writes: Vec<LogWrite> = (0..3)
        .map(|_| {
            append(&mut log, 100);
            log.next_write().unwrap()
        })
        .collect();
    assert!(write_ok(&mut log, &writes[0]).is_some());
    let durable = log.durable();
    assert_eq!(log.on_written(writes[2].block, Err(WriteError("EIO".into()))), None);
    assert_eq!(write_ok(&mut log, &writes[1]), None, "written, but the log has stopped");
    assert_eq!(log.durable(), durable);
    assert_eq!(log.poisoned(), Some("EIO"));
    let refused = log.append_record(1, b"x", StoreTimestamp(1)).unwrap_err();
    assert_eq!(refused, AppendError::Poisoned { reason: "EIO".into() });
    assert!(log.next_write().is_none());
    assert!(log.prepare_wanted().is_none());
    assert!(log.tail(PhysicalOffset(48), 110).is_some(), "reads go on");
}

#[test]
#[should_panic(expected = "only a block in flight can end")]
fn a_write_cannot_end_twice() {
    let mut log = log();
    append(&mut log, 10);
    append(&mut log, 10);
    let write = log.next_write().unwrap();
    write_ok(&mut log, &write);
    write_ok(&mut log, &write);
}

/// A store that answered "no space" keeps what it has accepted, goes on as far as the prepared space reaches, and
/// accepts again as soon as there is space, without a restart.
#[test]
fn a_full_disk_is_said_and_forgotten() {
    let mut quick = Quick::new(small_config());
    quick.append(1, 1000, 1);
    quick.log.on_prepare_failed("28 no space left on device");
    let wanted = quick.log.prepare_wanted();
    let mut id = 2;
    let refused = loop {
        match quick.log.append_record(7, &body(id, 50_000), StoreTimestamp(1)) {
            Ok(_) => id += 1,
            Err(error) => break error,
        }
        while let Some(write) = quick.log.next_write() {
            quick.disk.write(write.segment, write.offset_in_segment, &write.data);
            quick.log.on_written(write.block, Ok(()));
        }
    };
    assert_eq!(refused, AppendError::NoSpace { reason: "28 no space left on device".into() });
    assert!(id > 12, "what was prepared was used");
    assert_eq!(quick.log.durable(), quick.log.end());
    assert!(wanted.is_none() || quick.log.prepare_wanted().is_some());
    quick.prepare();
    quick.append(id, 50_000, 1);
    let (_, report, seen) = quick.reopen();
    assert_eq!(seen.len() as u64, id);
    assert_eq!(report.damaged, []);
}

#[test]
fn nothing_is_written_beyond_what_is_prepared() {
    let config = small_config();
    let recovered = Recovered::empty(&config);
    let mut log = CommitLog::new(config, recovered);
    append(&mut log, 100);
    assert!(log.next_write().is_none());
    let wanted = log.prepare_wanted().unwrap();
    assert_eq!((wanted.segment, wanted.from), (SegmentBase(0), 0));
    assert_eq!(log.prepare_wanted(), Some(wanted), "asked for until it is done");
    append(&mut log, 100);
    log.on_prepared(wanted.segment, wanted.to);
    assert_eq!(log.next_write().unwrap().data.len(), 4096, "both records, one block");
}

#[test]
fn space_is_prepared_in_steps_across_segments() {
    let config = LogConfig {
        segment_bytes: 8 << 20,
        prepare_step_bytes: 4 << 20,
        prepare_ahead_bytes: 10 << 20,
        ..small_config()
    };
    let recovered = Recovered::empty(&config);
    let mut log = CommitLog::new(config, recovered);
    let mut steps = Vec::new();
    while let Some(wanted) = log.prepare_wanted() {
        steps.push((wanted.segment.0 >> 20, wanted.from >> 20, wanted.to >> 20, wanted.is_urgent));
        log.on_prepared(wanted.segment, wanted.to);
    }
    // A short first step, then whole ones that end at multiples of the step, never across a border; short ones again, and no hurry,
    // once half of it is ready.
    assert_eq!(
        steps,
        [(0, 0, 1, true), (0, 1, 4, true), (0, 4, 8, true), (8, 0, 1, false), (8, 1, 2, false)]
    );
}

#[test]
fn store_timestamps_follow_the_clock_but_never_back() {
    let mut quick = Quick::new(small_config());
    for (id, now) in [100, 50, 120, 119].into_iter().enumerate() {
        quick.append(id as u64, 10, now);
    }
    let (quick, _, seen) = quick.reopen();
    let times: Vec<i64> = seen.iter().map(|seen| seen.store_timestamp.0).collect();
    assert_eq!(times, [100, 100, 120, 120]);
    let mut log = quick.log;
    let appended = log.append_record(1, b"x", StoreTimestamp(3)).unwrap();
    assert_eq!(appended.store_timestamp, StoreTimestamp(120), "nor across a restart");
}

#[test]
fn the_store_time_of_a_message_is_known_before_its_block_is_sealed() {
    let mut log = log();
    let append = |log: &mut CommitLog, now| log.append_record(1, b"x", StoreTimestamp(now)).unwrap().position;
    let first = append(&mut log, 100);
    assert_eq!(log.store_timestamp(first), Some(StoreTimestamp(100)));
    assert_eq!(log.blocks().store_timestamp(first), None, "it is not sealed");
    log.next_write().unwrap();
    let (second, third) = (append(&mut log, 120), append(&mut log, 130));
    let stored = |position| log.store_timestamp(position).unwrap().0;
    assert_eq!((stored(first), stored(second), stored(third)), (100, 120, 120));
}

/// The figure to watch: what a lone durable send costs the disk for ever.
#[test]
fn a_lone_record_costs_its_bytes_and_a_header() {
    let mut quick = Quick::new(small_config());
    let records = 1000;
    let before = quick.log.end().0;
    for id in 0..records {
        quick.append(id, 190, 1); // a record of 200 bytes
    }
    assert_eq!((quick.log.end().0 - before) / records, 248);
    let padded = LogConfig { pad_blocks: true, ..small_config() };
    let mut quick = Quick::new(padded);
    for id in 0..100 {
        quick.append(id, 190, 1);
    }
    assert_eq!(quick.log.end().0.next_multiple_of(4096) / 100, 4096);
}

#[test]
fn the_tail_gives_what_was_appended() {
    let mut quick = Quick::new(small_config());
    let mut positions = Vec::new();
    for id in 0..300 {
        positions.push((id, quick.append(id, 3000, 1)));
    }
    let appended = quick.log.append_record(7, &body(300, 3000), StoreTimestamp(1)).unwrap();
    positions.push((300, appended.position));
    let mut in_memory = 0;
    for (id, position) in &positions {
        let Some(bytes) = quick.log.tail(*position, 3010) else {
            assert!(*position < quick.log.tail_start());
            continue;
        };
        assert_eq!(bytes[10..], body(*id, 3000));
        in_memory += 1;
    }
    assert!((40..100).contains(&in_memory), "{in_memory}");
    assert!(quick.log.tail(PhysicalOffset(appended.position.0), 3011).is_none(), "not beyond the end");
    assert!(quick.log.tail(quick.log.end(), 1).is_none());
    assert!(quick.log.chunk_count() <= 2);
}

#[test]
fn segments_are_left_behind_whole() {
    let mut quick = Quick::new(small_config());
    for id in 0..40 {
        quick.append(id, 100_000, 1);
    }
    let has = |quick: &Quick, segment: u64| quick.log.blocks().segment(SegmentBase(segment << 20)).is_some();
    assert!((0..4).all(|segment| has(&quick, segment)) && !has(&quick, 4));
    quick.log.forget_blocks(SegmentBase(1 << 20));
    quick.disk.segments.retain(|base, _| *base >= 2 << 20);
    assert_eq!(quick.log.blocks().containing(PhysicalOffset(48)), None);
    let (quick, report, seen) = quick.reopen();
    assert_eq!(seen[0].position, PhysicalOffset((2 << 20) + 48), "every segment begins with a block");
    assert_eq!((report.damaged, seen.len()), (vec![], 20));
    assert_eq!(quick.log.blocks().first().unwrap(), SegmentBase(2 << 20));
}
