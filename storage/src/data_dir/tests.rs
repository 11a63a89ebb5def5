use std::sync::atomic::{AtomicU32, Ordering};

use ringmq_protocol::types::StoreTimestamp;

use super::*;
use crate::config::LogConfig;
use crate::log::{CommitLog, LogWrite};
use crate::record::Record;
use crate::recover::{RecoveryReport, recover};

/// A directory that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ringmq-storage-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const NEW: NewDataDir = NewDataDir { shards: 2, segment_bytes: 1 << 20, log_id: 0xABCD };

fn open(path: &Path) -> Result<DataDir, OpenError> {
    DataDir::open(path, NEW, Wanted::default())
}

#[test]
fn a_new_directory_is_made_and_keeps_what_it_is() {
    let scratch = Scratch::new();
    let path = scratch.0.join("not/there/yet");
    drop(open(&path).unwrap());
    // Later defaults do not change it.
    let later = NewDataDir { shards: 8, segment_bytes: 1 << 30, log_id: 1 };
    let dir = DataDir::open(&path, later, Wanted { shards: Some(2), segment_bytes: None }).unwrap();
    assert_eq!((dir.shards(), dir.segment_bytes(), dir.log_id()), (2, 1 << 20, 0xABCD));
    assert!(dir.shard_dir(1).ends_with("shard-01") && dir.shard_dir(1).is_dir());
    assert!(!path.join(METADATA_ASIDE_NAME).exists());
}

#[test]
fn only_one_broker_at_a_time() {
    let scratch = Scratch::new();
    let first = open(&scratch.0).unwrap();
    let error = open(&scratch.0).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    let text = error.to_string();
    assert!(text.contains(scratch.0.to_str().unwrap()) && text.contains("--data"), "{text}");
    drop(first);
    open(&scratch.0).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_with_a_reason_and_left_alone() {
    let scratch = Scratch::new();
    drop(open(&scratch.0).unwrap());
    let metadata = scratch.0.join(METADATA_NAME);
    let written = fs::read(&metadata).unwrap();
    let refused = |wanted| DataDir::open(&scratch.0, NEW, wanted).unwrap_err().to_string();
    let text = refused(Wanted { shards: Some(4), segment_bytes: None });
    assert!(text.contains("shards = 2") && text.contains('4'), "{text}");
    let text = refused(Wanted { shards: None, segment_bytes: Some(2 << 20) });
    assert!(text.contains("segment_bytes = 1048576"), "{text}");
    assert_eq!(fs::read(&metadata).unwrap(), written);

    fs::write(&metadata, r#"{"format": 2, "shards": {"a": "form of the future"}}"#).unwrap();
    assert!(matches!(open(&scratch.0).unwrap_err(), OpenError::Newer { found: 2, .. }));
    for broken in ["", "{}", "[1]", r#"{"format":1,"shards":0,"segment_bytes":1048576,"log_id":1}"#] {
        fs::write(&metadata, broken).unwrap();
        assert!(matches!(open(&scratch.0).unwrap_err(), OpenError::Metadata { .. }), "{broken}");
        assert_eq!(fs::read_to_string(&metadata).unwrap(), broken);
    }
}

/// A new log id would disown every block that is there.
#[test]
fn lost_metadata_is_not_made_up_again() {
    let scratch = Scratch::new();
    let dir = open(&scratch.0).unwrap();
    prepare(
        &dir.shard_dir(0),
        Prepare { segment: SegmentBase(0), from: 0, to: 4096, is_urgent: true },
        1 << 20,
    )
    .unwrap();
    drop(dir);
    fs::remove_file(scratch.0.join(METADATA_NAME)).unwrap();
    assert!(matches!(open(&scratch.0).unwrap_err(), OpenError::Incomplete { .. }));
}

#[test]
fn a_lost_shard_is_not_started_anew_behind_the_users_back() {
    let scratch = Scratch::new();
    drop(open(&scratch.0).unwrap());
    fs::remove_dir(scratch.0.join("shard-01")).unwrap();
    let error = open(&scratch.0).unwrap_err();
    assert!(
        matches!(error, OpenError::NoShard { shard: 1, .. }) && error.to_string().contains("shard-01"),
        "{error}"
    );
    assert!(!scratch.0.join("shard-01").exists());
    fs::create_dir(scratch.0.join("shard-01")).unwrap();
    open(&scratch.0).unwrap();
}

/// Killed while it was making the directory: nothing was stored, so it starts anew.
#[test]
fn a_creation_that_was_interrupted_is_repeated() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.0.join("shard-00")).unwrap();
    fs::write(scratch.0.join(METADATA_ASIDE_NAME), "{\"form").unwrap();
    assert_eq!(open(&scratch.0).unwrap().shards(), 2);
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let scratch = Scratch::new();
    let file = scratch.0.join("file");
    fs::write(&file, "x").unwrap();
    let text = open(&file).unwrap_err().to_string();
    assert!(text.contains(file.to_str().unwrap()), "{text}");
    let text = open(&file.join("below")).unwrap_err().to_string();
    assert!(text.contains("cannot be made"), "{text}");
}

#[test]
fn space_is_made_at_full_size_and_zeroed_where_asked() {
    let scratch = Scratch::new();
    let wanted = Prepare { segment: SegmentBase(1 << 20), from: 4096, to: 12288, is_urgent: false };
    let path = segment_path(&scratch.0, wanted.segment);
    prepare(&scratch.0, wanted, 1 << 20).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    // There is something in it already: only the stretch asked for is touched.
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    prepare(&scratch.0, wanted, 1 << 20).unwrap();
    let bytes = fs::read(&path).unwrap();
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    assert_eq!(
        (bytes.len(), zeros, bytes[4095], bytes[4096], bytes[12287], bytes[12288]),
        (1 << 20, 8192, 7, 0, 0, 7)
    );
    assert!(prepare(&scratch.0.join("gone"), wanted, 1 << 20).is_err());
}

const SEGMENT_BYTES: u64 = 1 << 20;

/// A file with a segment's bytes on the disk.
fn fill(dir: &Path, segment: u64, byte: u8) -> SegmentBase {
    let base = SegmentBase(segment * SEGMENT_BYTES);
    fs::write(segment_path(dir, base), vec![byte; SEGMENT_BYTES as usize]).unwrap();
    File::open(segment_path(dir, base)).unwrap().sync_all().unwrap();
    base
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn release(dir: &Path, segment: SegmentBase) -> bool {
    remove_segment(dir, segment, SEGMENT_BYTES, true).unwrap()
}

fn new_segment(dir: &Path, segment: u64) -> u64 {
    let wanted =
        Prepare { segment: SegmentBase(segment * SEGMENT_BYTES), from: 0, to: 4096, is_urgent: true };
    prepare(dir, wanted, SEGMENT_BYTES).unwrap()
}

#[test]
fn a_released_segment_becomes_the_next_one_that_is_needed() {
    let scratch = Scratch::new();
    let dir = &scratch.0;
    let released = [fill(dir, 0, 1), fill(dir, 1, 2), fill(dir, 2, 3)];
    fs::write(index_path(dir, released[0]), "its index").unwrap();
    assert_eq!(released.map(|segment| release(dir, segment)), [true, true, false], "enough is enough");
    assert_eq!(names(dir), ["00000000000000000000.spare", "00000000000001048576.spare"]);
    assert!(FsStore::new(dir.clone()).segments().unwrap().is_empty(), "a spare is no segment");
    assert_eq!(shard_use(dir).unwrap(), ShardUse { bytes: 2 * SEGMENT_BYTES, spares: 2 });

    // Whole, at once, and as it was: the oldest first.
    assert_eq!(new_segment(dir, 5), SEGMENT_BYTES);
    assert_eq!(names(dir), ["00000000000001048576.spare", "00000000000005242880"]);
    let path = segment_path(dir, SegmentBase(5 * SEGMENT_BYTES));
    assert_eq!(fs::read(&path).unwrap(), vec![1; SEGMENT_BYTES as usize]);
    // A segment that is there is never made of another file; nor is the rest of one.
    assert_eq!(new_segment(dir, 5), 4096);
    assert_eq!(fs::read(&path).unwrap()[..4097], [vec![0; 4096], vec![1]].concat());

    assert!(remove_spare(dir).unwrap());
    assert!(!remove_spare(dir).unwrap());
    assert_eq!(new_segment(dir, 6), 4096, "nothing is left to be used again");
    // Without room for spares, and twice as after a kill in between.
    let last = SegmentBase(5 * SEGMENT_BYTES);
    assert!(!remove_segment(dir, last, SEGMENT_BYTES, false).unwrap() && !path.exists());
    assert!(!release(dir, last));
}

/// A snapshot shares sealed segments with the directory that it was made of.
#[test]
fn a_file_that_somebody_else_has_linked_is_not_written_over() {
    let scratch = Scratch::new();
    let dir = &scratch.0.join("shard");
    fs::create_dir(dir).unwrap();
    let (first, second) = (fill(dir, 0, 1), fill(dir, 1, 2));
    let [before, after] = ["before", "after"].map(|name| scratch.0.join(name));
    fs::hard_link(segment_path(dir, first), &before).unwrap();
    assert!(!release(dir, first));
    assert!(release(dir, second));
    // Somebody who copies by links all that there is.
    fs::hard_link(spare_path(dir, second), &after).unwrap();
    assert_eq!(new_segment(dir, 5), 4096);
    assert_eq!(names(dir), ["00000000000005242880"]);
    assert_eq!((fs::read(before).unwrap()[0], fs::read(after).unwrap()[0]), (1, 2));
}

/// A spare may only become a segment behind the one that it was: blocks in it might be right where they are.
#[test]
fn a_spare_from_the_future_or_of_another_size_is_not_used() {
    let scratch = Scratch::new();
    let dir = &scratch.0;
    for segment in [5, 6] {
        assert!(release(dir, fill(dir, segment, 1)));
    }
    assert_eq!(new_segment(dir, 5), 4096);
    assert_eq!(names(dir), ["00000000000005242880"]);

    let short = SegmentBase(0);
    fs::write(segment_path(dir, short), vec![1; 4096]).unwrap();
    assert!(!release(dir, short));
    // Holes would have to be filled while the log waits.
    let sparse = SegmentBase(SEGMENT_BYTES);
    File::create(segment_path(dir, sparse)).unwrap().set_len(SEGMENT_BYTES).unwrap();
    assert!(!release(dir, sparse));
    assert_eq!(names(dir), ["00000000000005242880"]);
}

/// A log on the files of a shard.
struct RealLog {
    dir: DataDir,
    log: CommitLog,
}

impl RealLog {
    /// Starts on what is there: that, and what was cut.
    fn start(root: &Path) -> (Self, Vec<Vec<u8>>, RecoveryReport) {
        let dir = open(root).unwrap();
        let config = LogConfig {
            shard: 1,
            log_id: dir.log_id(),
            segment_bytes: dir.segment_bytes(),
            record_bytes_max: 300 << 10,
            writes_in_flight_enough: 4,
            ..LogConfig::default()
        };
        let mut found = Vec::new();
        let (recovered, report) =
            recover(&mut dir.store(1), &config, None, &mut |record: Record<'_>| match record {
                Record::Metadata { body, .. } => found.push(body.to_vec()),
                Record::Message { .. } | Record::Gap { .. } => panic!("none was appended"),
            })
            .unwrap();
        assert_eq!(report.damaged, []);
        (Self { dir, log: CommitLog::new(config, recovered) }, found, report)
    }

    /// Appends a record in a block of its own, and gives the write of it. Until it has ended it is under way.
    fn submit(&mut self, body: &[u8], now: i64) -> LogWrite {
        self.log.append_record(2, body, StoreTimestamp(now)).unwrap();
        loop {
            if let Some(write) = self.log.next_write() {
                return write;
            }
            let wanted = self.log.prepare_wanted().expect("room is all that is missing");
            let to = prepare(&self.dir.shard_dir(1), wanted, self.dir.segment_bytes()).unwrap();
            self.log.on_prepared(wanted.segment, to);
        }
    }

    fn arrive(&self, write: &LogWrite) {
        let path = segment_path(&self.dir.shard_dir(1), write.segment);
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&write.data, write.offset_in_segment).unwrap();
        file.sync_data().unwrap();
    }

    fn end(&mut self, write: &LogWrite) {
        self.arrive(write);
        self.log.on_written(write.block, Ok(()));
    }

    fn append(&mut self, body: &[u8], now: i64) {
        let write = self.submit(body, now);
        self.end(&write);
        assert_eq!(self.log.durable(), self.log.end());
    }
}

#[test]
fn a_log_on_real_files_comes_back() {
    let scratch = Scratch::new();
    let mut expected: Vec<Vec<u8>> = Vec::new();
    for run in 0..3 {
        let (mut log, found, report) = RealLog::start(&scratch.0);
        assert!(found == expected && report.cut_bytes == 0, "{report:?}");
        for record in 0..12u8 {
            let body = vec![record; 20_000 * usize::from(record) + 1];
            log.append(&body, run);
            expected.push(body);
        }
    }
    assert!(FsStore::new(scratch.0.join("shard-01")).segments().unwrap().len() > 3);
}

/// Rule Z of docs/format.md. When the power was cut four blocks were under way, and all arrived but the first, so all were cut. They lie in a
/// segment that was made ahead, the last of them in what the others leave of it. Then the broker is asked for the same again within the
/// same millisecond, and writes the same blocks byte for byte, but for the last: instead of it comes one for which that
/// rest is too small. What was cut there would follow the log as if it belonged to it, and what was acknowledged behind it would be lost.
#[test]
fn what_lies_in_a_segment_that_was_there_at_a_start_is_no_part_of_the_log() {
    for is_recycled in [false, true] {
        let scratch = Scratch::new();
        let (mut log, ..) = RealLog::start(&scratch.0);
        let shard_dir = log.dir.shard_dir(1);
        let bodies: Vec<Vec<u8>> = (0..7).map(|id| vec![id; 300_000]).collect();
        let (before, rest) = bodies.split_at(3);
        let (again, last) = rest.split_at(3);
        before.iter().for_each(|body| log.append(body, 1));
        drop(log);
        if is_recycled {
            let spare = spare_path(&shard_dir, SegmentBase(0));
            fs::copy(segment_path(&shard_dir, SegmentBase(0)), spare).unwrap();
        }

        let (mut log, ..) = RealLog::start(&scratch.0);
        let mut writes: Vec<LogWrite> = again.iter().map(|body| log.submit(body, 1)).collect();
        writes.push(log.submit(b"not acknowledged", 1));
        assert!(writes.iter().all(|write| write.segment == SegmentBase(SEGMENT_BYTES)));
        writes[1..].iter().for_each(|write| log.arrive(write));
        drop(log);
        assert!(!names(&shard_dir).iter().any(|name| name.ends_with(".spare")));

        let (mut log, found, report) = RealLog::start(&scratch.0);
        assert_eq!((found.len(), report.cut_blocks), (3, 3));
        let same: Vec<LogWrite> = again.iter().map(|body| log.submit(body, 1)).collect();
        assert!(same.iter().zip(&writes).all(|(same, write)| same.data == write.data));
        same.iter().for_each(|write| log.end(write));
        log.append(&last[0], 1);
        drop(log);

        let (_, found, report) = RealLog::start(&scratch.0);
        assert!(found == bodies, "recycled: {is_recycled}: {} of {} are there", found.len(), bodies.len());
        assert_eq!(report.cut_blocks, 0);
    }
}

fn fill_segment(shard_dir: &Path, segment: SegmentBase) {
    let wanted = Prepare { segment, from: 0, to: SEGMENT_BYTES, is_urgent: true };
    assert_eq!(prepare(shard_dir, wanted, SEGMENT_BYTES).unwrap(), SEGMENT_BYTES);
}

#[test]
fn a_file_made_aside_takes_a_segments_place_and_gives_room_back() {
    let scratch = Scratch::new();
    let (dir, segment) = (&scratch.0, SegmentBase(SEGMENT_BYTES));
    fill_segment(dir, segment);
    assert_eq!(segment_room(dir, segment).unwrap(), Some(SEGMENT_BYTES));
    let mut pages = aligned_buffer(8192);
    pages.resize(8192, 3);
    let aside = Aside::create(dir, segment, SEGMENT_BYTES).unwrap();
    aside.write(40_960, &pages).unwrap();
    aside.finish().unwrap();
    let mut found = aligned_buffer(4096);
    found.resize(4096, 0);
    assert_eq!(FsStore::aside(dir.clone()).read_at(segment, 45_056, &mut found).unwrap(), 4096);
    assert!(found == pages[..4096]);

    // What is not sealed counts in full, what is made aside not at all.
    assert_eq!(shard_use(dir).unwrap(), ShardUse { bytes: SEGMENT_BYTES, spares: 0 });
    let freed = replace_segment(dir, segment).unwrap();
    assert_eq!(freed, Some(SEGMENT_BYTES - 8192));
    assert_eq!(names(dir), [segment.file_name()]);
    assert_eq!(segment_room(dir, segment).unwrap(), Some(8192));
    assert_eq!(shard_use(dir).unwrap().bytes, SEGMENT_BYTES);
    fs::write(index_path(dir, segment), [1; 100]).unwrap();
    assert_eq!(shard_use(dir).unwrap().bytes, 8192 + 100);
    let bytes = fs::read(segment_path(dir, segment)).unwrap();
    assert!(bytes.len() as u64 == SEGMENT_BYTES && bytes[40_960..49_152] == pages[..]);
    assert!(bytes.iter().filter(|byte| **byte != 0).count() == pages.len());
    // It has holes: no log is to run into them.
    assert!(!remove_segment(dir, segment, SEGMENT_BYTES, true).unwrap());
}

#[test]
fn what_is_made_aside_goes_with_its_segment_or_at_a_start() {
    let scratch = Scratch::new();
    let dir = &scratch.0;
    // The segment went meanwhile.
    drop(Aside::create(dir, SegmentBase(0), SEGMENT_BYTES).unwrap());
    assert_eq!(replace_segment(dir, SegmentBase(0)).unwrap(), None);
    assert_eq!(names(dir), [""; 0]);
    // The broker was killed.
    fill_segment(dir, SegmentBase(0));
    drop(Aside::create(dir, SegmentBase(0), SEGMENT_BYTES).unwrap());
    drop(Aside::create(dir, SegmentBase(0), SEGMENT_BYTES).unwrap());
    assert_eq!(names(dir).len(), 2);
    assert_eq!(FsStore::new(dir.clone()).indexes().unwrap(), []);
    assert_eq!(names(dir), [SegmentBase(0).file_name()]);
    // A snapshot would keep what is given up.
    fs::hard_link(segment_path(dir, SegmentBase(0)), dir.join("elsewhere")).unwrap();
    assert_eq!(segment_room(dir, SegmentBase(0)).unwrap(), None);
    assert!(room_left(dir).unwrap() > 0);
}
