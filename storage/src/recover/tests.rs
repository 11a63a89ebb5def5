use super::*;
use crate::block::HEADER_BYTES;
use crate::config::LogConfig;
use crate::log::CommitLog;
use crate::record::METADATA_HEADER_BYTES;
use crate::testing::{DISK_SECTOR, Disk, Quick, Random, body, recover_all, small_config};

/// Lone blocks with the numbers `0..count`.
fn filled(count: u64, len: usize) -> Quick {
    let mut quick = Quick::new(small_config());
    for id in 0..count {
        quick.append(id, len, 1000 + id as i64);
    }
    quick
}

fn ids(seen: &[crate::testing::Seen]) -> Vec<u64> {
    seen.iter().map(|seen| u64::from_le_bytes(seen.body[..8].try_into().unwrap())).collect()
}

fn flip(quick: &mut Quick, position: u64) {
    quick.disk.segments.get_mut(&(position >> 20 << 20)).unwrap()[(position & 0xF_FFFF) as usize] ^= 4;
}

#[test]
fn an_empty_directory_is_an_empty_log() {
    let mut quick = Quick::new(small_config());
    let (recovered, report, seen) = recover_all(&mut quick.disk, &small_config());
    assert_eq!((recovered, seen), (Recovered::empty(&small_config()), vec![]));
    assert_eq!(report, RecoveryReport::default());
    // Prepared, but never written.
    quick.prepare();
    let (quick, report, _) = quick.reopen();
    assert_eq!((report.end, report.cut_bytes, report.segments), (PhysicalOffset(0), 0, 1));
    assert_eq!(quick.disk.syncs, 2, "each recovery syncs what it read");
}

#[test]
fn a_clean_log_comes_back_whole_and_goes_on_at_the_next_sector() {
    let quick = filled(5, 200);
    let end = quick.log.end();
    let (mut quick, report, seen) = quick.reopen();
    assert_eq!(ids(&seen), [0, 1, 2, 3, 4]);
    assert_eq!((report.end, report.blocks, report.records), (end, 5, 5));
    assert_eq!((report.cut_bytes, report.cut_blocks, report.damaged.len()), (0, 0, 0));
    assert_eq!(quick.append(5, 200, 2000), PhysicalOffset(4096 + HEADER_BYTES as u64));
    let (_, _, seen) = quick.reopen();
    assert_eq!(ids(&seen), [0, 1, 2, 3, 4, 5]);
}

/// Three writes under way; the first is torn, the others arrive whole. None was acknowledged, so none may come back,
/// neither now nor when the log has grown up to where they lie.
#[test]
fn whole_blocks_behind_a_torn_one_are_cut_for_ever() {
    let mut quick = filled(3, 200);
    for id in [100, 101, 102] {
        quick.log.append_record(7, &body(id, 9000), StoreTimestamp(5000)).unwrap();
        let mut write = quick.log.next_write().unwrap();
        if id == 100 {
            write.data.truncate(DISK_SECTOR * 3);
        }
        quick.disk.write(write.segment, write.offset_in_segment, &write.data);
    }
    let (mut quick, report, seen) = quick.reopen();
    assert_eq!(ids(&seen), [0, 1, 2]);
    assert_eq!((report.cut_blocks, report.damaged.len()), (2, 0));
    // Three sectors each, as their headers say.
    assert_eq!(report.cut_bytes, 3 * 3 * 4096);
    for id in 3..20 {
        quick.append(id, 1000 * id as usize, 6000);
        let (reopened, report, seen) = quick.reopen();
        quick = reopened;
        assert_eq!(ids(&seen), (0..=id).collect::<Vec<_>>());
        assert_eq!(report.damaged, []);
        assert_eq!(report.cut_blocks, 0, "zeroed before the log grew");
    }
}

/// As above, but the broker dies again before it has zeroed anything.
#[test]
fn a_recovery_that_is_interrupted_is_repeated() {
    let mut quick = filled(3, 200);
    for id in [100, 101] {
        quick.log.append_record(7, &body(id, 9000), StoreTimestamp(5000)).unwrap();
        let mut write = quick.log.next_write().unwrap();
        write.data.truncate(if id == 100 { DISK_SECTOR } else { usize::MAX });
        quick.disk.write(write.segment, write.offset_in_segment, &write.data);
    }
    let (quick, first, _) = quick.reopen();
    let (_, second, seen) = quick.reopen();
    assert_eq!(first, second);
    assert_eq!((ids(&seen), second.cut_blocks), (vec![0, 1, 2], 1));
}

#[test]
fn damage_in_the_middle_is_reported_and_costs_one_block() {
    let mut quick = filled(20, 200);
    let position = quick.log.blocks().containing(PhysicalOffset(10 * 264)).unwrap();
    flip(&mut quick, position.start.0 + 100);
    let (mut quick, report, seen) = quick.reopen();
    assert_eq!(seen.len(), 19);
    assert_eq!(report.damaged, [Damage { position: position.start, bytes: u64::from(position.len) }]);
    quick.append(20, 200, 3000);
    let (_, again, seen) = quick.reopen();
    assert_eq!(seen.len(), 20);
    assert_eq!(again.damaged, report.damaged, "it stays reported");
}

/// A block that nobody bears witness of cannot be told from one that was never finished.
#[test]
fn a_damaged_last_block_is_taken_for_a_torn_one_and_said_so() {
    let mut quick = filled(5, 200);
    let last = quick.log.blocks().containing(PhysicalOffset(quick.log.end().0 - 8)).unwrap();
    flip(&mut quick, last.start.0 + 60);
    let (_, report, seen) = quick.reopen();
    assert_eq!(ids(&seen), [0, 1, 2, 3]);
    assert_eq!((report.damaged.len(), report.cut_bytes, report.end), (0, 4096, last.start));
}

#[test]
fn the_first_block_of_all_may_be_damaged_too() {
    let mut quick = filled(5, 200);
    flip(&mut quick, 3);
    let (_, report, seen) = quick.reopen();
    assert_eq!(ids(&seen), [1, 2, 3, 4]);
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(report.damaged[0].position, PhysicalOffset(0));
}

#[test]
fn a_lost_segment_in_the_middle_is_damage() {
    let mut quick = filled(50, 100_000);
    quick.disk.segments.remove(&(1 << 20)).unwrap();
    let (_, report, seen) = quick.reopen();
    assert_eq!(seen.len(), 40);
    assert_eq!(report.damaged.len(), 1);
    let damage = report.damaged[0];
    assert!(damage.position.0 <= 1 << 20 && damage.position.0 + damage.bytes == 2 << 20);
}

#[test]
fn a_file_that_was_cut_short_is_damage() {
    let mut quick = filled(30, 100_000);
    quick.disk.segments.get_mut(&(1 << 20)).unwrap().truncate(500_001);
    let (_, report, seen) = quick.reopen();
    assert_eq!(seen.len(), 24);
    assert_eq!(report.damaged.len(), 1);
}

#[test]
fn a_sector_that_cannot_be_read_costs_its_block() {
    let mut quick = filled(50, 5000);
    let span = quick.log.blocks().containing(PhysicalOffset(100_000)).unwrap();
    quick.disk.unreadable.push(100_000);
    let (mut quick, report, seen) = quick.reopen();
    assert!((46..50).contains(&seen.len()), "{}", seen.len());
    assert_eq!(report.damaged.len(), 1);
    let damage = report.damaged[0];
    assert!(damage.position <= span.start && span.end().0 <= damage.position.0 + damage.bytes);
    quick.disk.unreadable.clear();
    let (_, report, seen) = quick.reopen();
    assert_eq!((seen.len(), report.damaged.len()), (50, 0), "nothing was changed meanwhile");
}

/// If the end of the log cannot be read, it cannot be told where the log ends. Cutting there could lose what was
/// acknowledged, for a disk that only stuttered.
#[test]
fn nothing_is_cut_at_a_sector_that_cannot_be_read() {
    let mut quick = filled(5, 200);
    quick.disk.unreadable.push(quick.log.end().0 - 1);
    let config = small_config();
    let error = recover(&mut quick.disk, &config, None, &mut |_: Record<'_>| {}).unwrap_err();
    assert!(matches!(error, RecoverError::Read { segment: SegmentBase(0), offset: 0, .. }), "{error}");
    quick.disk.unreadable.clear();
    assert_eq!(quick.reopen().2.len(), 5);
}

#[test]
fn blocks_of_another_log_are_not_ours() {
    let mut quick = filled(5, 200);
    for config in [LogConfig { shard: 9, ..small_config() }, LogConfig { log_id: 9, ..small_config() }] {
        let (recovered, report, seen) = recover_all(&mut quick.disk, &config);
        assert_eq!((recovered.end.position, seen.len(), report.blocks), (PhysicalOffset(0), 0, 0));
    }
}

/// What clients send cannot pretend to be a block, even if it is a copy of one.
#[test]
fn a_block_inside_a_message_is_not_a_block() {
    let mut quick = filled(3, 3000);
    let copy = quick.disk.read(0, 12 << 10, 1 << 20).to_vec();
    let appended = quick.log.append_record(7, &copy, StoreTimestamp(9000)).unwrap();
    quick.flush();
    quick.append(4, 100, 9000);
    quick.append(5, 100, 9000);
    flip(&mut quick, appended.position.0 - 20);
    let (_, report, seen) = quick.reopen();
    assert_eq!(seen.len(), 5);
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(report.damaged[0].position.0, appended.position.0 - 48);
}

#[test]
fn random_bytes_are_an_empty_log() {
    let mut random = Random::new(5);
    let mut quick = Quick::new(small_config());
    let mut bytes: Vec<u8> = (0..1 << 20).map(|_| random.number() as u8).collect();
    for at in (0..bytes.len()).step_by(128) {
        bytes[at..at + 4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
    }
    quick.disk.segments.insert(0, bytes);
    let (_, report, seen) = quick.reopen();
    assert_eq!((seen.len(), report.blocks, report.cut_bytes), (0, 0, 0));
}

/// Segments of 8 MiB. The first is full; the second was made of a copy of it, and has lone blocks in it.
fn recycled(block_bytes: usize) -> Quick {
    let mut quick = Quick::new(LogConfig { segment_bytes: 8 << 20, ..small_config() });
    let mut id = 0;
    while quick.log.end().0 + 2 * (block_bytes as u64) < 8 << 20 {
        quick.append(id, block_bytes, 1000);
        id += 1;
    }
    recycle(&mut quick, 8 << 20);
    while quick.log.end().0 < (8 << 20) + 10_000 {
        quick.append(id, 3000, 2000);
        id += 1;
    }
    quick
}

/// The segment that the log will come to next is made of a copy of the first one.
fn recycle(quick: &mut Quick, base: u64) {
    while quick.log.prepare_wanted().is_some_and(|wanted| wanted.segment.0 < base) {
        quick.prepare_step();
    }
    let old = quick.disk.segments[&0].clone();
    quick.log.on_prepared(SegmentBase(base), old.len() as u64);
    quick.disk.segments.insert(base, old);
}

/// What a file held as an older segment is no part of the log, is not called cut, and is not read to its end.
#[test]
fn a_recycled_segment_costs_a_start_no_more_than_a_new_one() {
    for block_bytes in [200, 5000, 100_000] {
        let mut quick = recycled(block_bytes);
        let count = quick.log.blocks().len();
        quick.disk.bytes_read = 0;
        let (mut quick, report, seen) = quick.reopen();
        assert_eq!(ids(&seen), (0..count as u64).collect::<Vec<_>>());
        assert_eq!((report.cut_bytes, report.cut_blocks, report.damaged.len()), (0, 0, 0));
        // Twice: the log, what shows that nothing was written behind it, and windows that are read for nothing.
        let ahead = small_config().ahead_of_durable_bytes_max();
        let most = 2
            * (quick.log.end().0 + ahead + (100_000 + HEADER_BYTES as u64) + 2 * reader::WINDOW_BYTES as u64);
        assert!(quick.disk.bytes_read <= most, "{} bytes were read, not {most}", quick.disk.bytes_read);
        // The file is zeroed before the log goes on in it: it might as well have held blocks that were cut.
        quick.append(7, 200, 3000);
        let behind = quick.log.end().0.next_multiple_of(4096);
        assert!(quick.disk.read(behind, 4096, 8 << 20).iter().all(|byte| *byte == 0));
        assert_eq!(quick.reopen().2.len(), count + 1);
    }
}

/// A client that knows all about a log sends the block that would prove damage where its message will lie once the file is recycled.
#[test]
fn a_message_in_old_contents_is_not_believed_to_be_a_block() {
    let (mut quick, mut id) = (Quick::new(small_config()), 0);
    let mut fill = |quick: &mut Quick, to: u64| {
        while quick.log.end().0 < to {
            quick.append(id, 20_000, 1000);
            id += 1;
        }
        id
    };
    fill(&mut quick, 400_000);
    let body_at = quick.log.end().0 + (HEADER_BYTES + METADATA_HEADER_BYTES) as u64;
    let at = body_at.next_multiple_of(8) + 8000;
    let forged_header = BlockHeader {
        shard: 3,
        position: PhysicalOffset((1 << 20) + at),
        payload_bytes: 952,
        record_count: 1,
        store_timestamp: StoreTimestamp(9000),
        previous_crc: 0,
        log_id: 0x1234_5678,
        undurable_bytes: 0,
        crc: 0,
    };
    let mut forged = vec![7; 1000];
    forged_header.seal(&mut forged);
    let mut body = body(u64::MAX, 30_000);
    body[(at - body_at) as usize..][..1000].copy_from_slice(&forged);
    quick.log.append_record(7, &body, StoreTimestamp(1000)).unwrap();
    quick.flush();
    let records = fill(&mut quick, (1 << 20) - 40_000) + 1;
    recycle(&mut quick, 1 << 20);
    quick.append(0, 100_000, 2000);

    let there = &quick.disk.segments[&(1 << 20)][at as usize..];
    let header = BlockHeader::read(there, small_config().identity(), forged_header.position).unwrap();
    assert!(header.verify(there).is_ok(), "by itself it would be right");
    let (_, report, seen) = quick.reopen();
    assert_eq!((seen.len() as u64, report.damaged.len(), report.cut_bytes), (records + 1, 0, 0));
}

/// A log of format 1 as it was first written, with messages and metadata, two runs of a broker, and blocks that share
/// sectors. It must stay readable, byte for byte, by every later version.
mod fixture {
    use ringmq_protocol::message::{MessageParts, encode_into, encoded_len};
    use ringmq_protocol::types::{BornTimestamp, QueueId, QueueOffset, SysFlag};

    use super::*;

    const BYTES: &[u8] = include_bytes!("../../fixtures/log-format-1.segment");
    const TEXT: &str = include_str!("../../fixtures/log-format-1.txt");
    /// A segment that was rewritten.
    const REWRITTEN: &[u8] = include_bytes!("../../fixtures/log-format-1-rewritten.segment");
    const REWRITTEN_TEXT: &str = include_str!("../../fixtures/log-format-1-rewritten.txt");

    fn config() -> LogConfig {
        LogConfig { shard: 1, log_id: 0xC0FF_EE01, ..small_config() }
    }

    fn append_message(quick: &mut Quick, topic: &str, body: &[u8], now: i64, offset: u64) {
        let parts = MessageParts {
            topic,
            queue_id: QueueId(2),
            flag: 7,
            sys_flag: SysFlag(0),
            born_timestamp: BornTimestamp(now - 1),
            born_host: "192.0.2.1:4000".parse().unwrap(),
            store_host: "192.0.2.2:10911".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            properties: &[b"TAGS\x01red\x02"],
        };
        let len = encoded_len(&parts);
        let write = |position, time, bytes: &mut [u8]| {
            encode_into(&parts, QueueOffset(offset), position, time, bytes)
        };
        quick.log.append(len, StoreTimestamp(now), write).unwrap();
    }

    /// What the fixture was made of. The format has changed if this no longer gives the same bytes.
    fn written_today() -> Vec<u8> {
        let mut quick = Quick::new(config());
        quick.log.append_record(1, b"topic", StoreTimestamp(1_700_000_000_000)).unwrap();
        append_message(&mut quick, "orders", b"first", 1_700_000_000_000, 0);
        append_message(&mut quick, "orders", b"second", 1_700_000_000_001, 1);
        quick.flush();
        append_message(&mut quick, "orders", &[b'x'; 5000], 1_700_000_000_005, 2);
        quick.flush();
        let Quick { mut disk, .. } = quick;
        let (recovered, _) = recover(&mut disk, &config(), None, &mut |_: Record<'_>| {}).unwrap();
        let mut quick = Quick { log: CommitLog::new(config(), recovered), disk };
        append_message(&mut quick, "orders", b"after a restart", 1_600_000_000_000, 3);
        quick.flush();
        quick.log.append_record(3, b"offsets", StoreTimestamp(1_700_000_000_009)).unwrap();
        quick.flush();
        let end = quick.log.end().0.next_multiple_of(4096) as usize;
        quick.disk.segments[&0][..end].to_vec()
    }

    /// Messages of two topics, beside each other and in blocks of their own, and what is left without one of the topics.
    fn rewritten_today() -> Vec<u8> {
        let mut quick = Quick::new(config());
        let blocks: [&[&str]; 3] =
            [&["orders", "brief", "brief", "orders", "brief"], &["brief"], &["orders"]];
        let mut now = 1_700_000_000_000;
        for block in blocks {
            for topic in block {
                now += 1;
                append_message(&mut quick, topic, &[b'x'; 3000], now, now as u64 % 100);
            }
            quick.flush();
        }
        let end = quick.log.end().0.next_multiple_of(4096) as usize;
        let segments = [(SegmentBase(0), quick.disk.segments.remove(&0).unwrap())].into();
        let mut store = crate::MemoryStore { segments, ..crate::MemoryStore::default() };
        let made = crate::rebuild_index(&mut store, &config(), SegmentBase(0), ChainPoint::default());
        let mut rewrite = crate::Rewrite::new(&config(), &made.unwrap().0, ["brief".to_owned()].into());
        let mut bytes = vec![0; end];
        let mut write = |offset: u64, pages: &[u8]| {
            bytes[offset as usize..][..pages.len()].copy_from_slice(pages);
            Ok(())
        };
        while rewrite.step(&mut store, 1 << 20, &mut write).unwrap() {}
        bytes
    }

    fn read(bytes: &[u8]) -> String {
        let mut disk = Disk::default();
        disk.segments.insert(0, bytes.to_vec());
        let mut text = String::new();
        let (recovered, report) = recover(&mut disk, &config(), None, &mut |record: Record<'_>| {
            text += &match record {
                Record::Message { position, message } => format!(
                    "{position} message {} queue {} offset {} stored {} body {} bytes crc {}\n",
                    message.topic(),
                    message.queue_id(),
                    message.queue_offset(),
                    message.store_timestamp(),
                    message.body().len(),
                    message.verify_crc(),
                ),
                Record::Metadata { position, store_timestamp, kind, body } => {
                    format!(
                        "{position} metadata kind {kind} stored {store_timestamp} {}\n",
                        body.escape_ascii()
                    )
                }
                Record::Gap { position, bytes, .. } => format!("{position} gap of {bytes} bytes\n"),
            };
        })
        .unwrap();
        text += &format!(
            "end {} previous crc {:#010x}\n{report:?}\n",
            recovered.end.position, recovered.end.previous_crc
        );
        text
    }

    #[test]
    fn a_log_of_format_1_is_still_read() {
        assert_eq!(read(BYTES), TEXT);
        assert_eq!(read(REWRITTEN), REWRITTEN_TEXT);
    }

    #[test]
    fn and_still_written_in_the_same_way() {
        assert!(
            written_today() == BYTES,
            "the format has changed: it needs a new version number and fixture"
        );
        assert!(rewritten_today() == REWRITTEN, "so has that of rewritten segments");
    }

    /// Makes the fixture. Only for a new format.
    #[test]
    #[ignore = "writes into the source tree"]
    fn write_the_fixture() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let bytes = written_today();
        std::fs::write(dir.join("log-format-1.segment"), &bytes).unwrap();
        std::fs::write(dir.join("log-format-1.txt"), read(&bytes)).unwrap();
        let bytes = rewritten_today();
        std::fs::write(dir.join("log-format-1-rewritten.segment"), &bytes).unwrap();
        std::fs::write(dir.join("log-format-1-rewritten.txt"), read(&bytes)).unwrap();
    }
}

#[test]
fn no_index_is_made_of_a_segment_that_is_gone() {
    let mut quick = filled(5, 200);
    let gone = SegmentBase(9 * small_config().segment_bytes);
    let made = crate::rebuild_index(&mut quick.disk, &small_config(), gone, ChainPoint::default());
    assert!(matches!(made, Err(RecoverError::Missing(segment)) if segment == gone), "{made:?}");
}
