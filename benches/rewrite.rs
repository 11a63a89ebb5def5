//! What it takes to rewrite a sealed segment without messages whose time is over, and how much room comes back.
//!
//!   cargo bench --bench rewrite -- [--dir DIR] [--mib 1024] [--share 0.9] [--body 1024]
//!
//! A segment is filled with messages of two topics, of which one is over: mixed one by one, and in batches of 100 of the same topic, in
//! blocks of 256 KiB as under load. Then it is rewritten as the housekeeping thread does it, without pauses, past the page cache.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use ringmq_protocol::message::{MessageParts, encode_into, encoded_len};
use ringmq_protocol::types::{BornTimestamp, QueueId, QueueOffset, StoreTimestamp, SysFlag};
use ringmq_storage::{
    Aside, ChainPoint, CommitLog, Found, FsStore, IndexFile, LogConfig, Recovered, Rewrite, SegmentBase,
    SegmentScan, TopicHash, prepare, rebuild_index, replace_segment, segment_path, segment_room,
};
use rustix::time::{ClockId, clock_gettime};

type Failure = Box<dyn Error>;

const FOLDER: &str = "ringmq-rewrite";
const BRIEF: &str = "brief";
const LASTING: &str = "lasting";
const BLOCK_BYTES: u64 = 256 << 10;
const FIRST: SegmentBase = SegmentBase(0);

#[derive(Parser)]
struct Arguments {
    /// Where the files are made (in a folder of their own): the disk to be measured.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// MiB of the segment.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Share of messages that are over.
    #[arg(long, default_value_t = 0.9)]
    share: f64,
    /// Bytes of a message's body.
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let folder = arguments.dir.join(FOLDER);
    println!(
        "a segment of {} MiB, messages of {} bytes, {} of them over",
        arguments.mib, arguments.body, arguments.share
    );
    println!("batch   looked at   rewritten   read back   CPU     freed, of what it took");
    for batch in [1, 100] {
        fs::create_dir_all(&folder)?;
        let measured = measure(&folder, &arguments, batch);
        fs::remove_dir_all(&folder)?;
        measured?;
    }
    Ok(())
}

fn measure(folder: &Path, arguments: &Arguments, batch: u64) -> Result<(), Failure> {
    let config = LogConfig { segment_bytes: arguments.mib << 20, ..LogConfig::default() };
    fill(folder, &config, arguments, batch)?;
    let mut store = FsStore::new(folder.to_path_buf());
    let (header, _) = rebuild_index(&mut store, &config, FIRST, ChainPoint::default())?;
    let room = segment_room(folder, FIRST)?.ok_or("somebody has linked the segment")?;

    let began = Instant::now();
    let file = IndexFile::new(&config, header.clone());
    let remains = file.remains(&mut store, &[TopicHash::of(BRIEF)].into(), room, 0)?;
    let looked = began.elapsed();
    let remains = remains.ok_or("the topic has no messages")?.bytes;

    let (began, cpu) = (Instant::now(), cpu_time());
    let aside = Aside::create(folder, FIRST, config.segment_bytes)?;
    let mut rewrite = Rewrite::new(&config, &header, [BRIEF.to_owned()].into());
    let mut write = |offset: u64, pages: &[u8]| aside.write(offset, pages);
    while rewrite.step(&mut store, 2 << 20, &mut write)? {}
    aside.finish()?;
    let rewritten = began.elapsed();

    let began = Instant::now();
    let until = Some(header.end.position);
    let mut scan = SegmentScan::new(&config, FIRST, config.segment_bytes, None, until);
    let mut aside = FsStore::aside(folder.to_path_buf());
    while !matches!(scan.next(&mut aside)?, Found::End) {}
    let read_back = began.elapsed();
    if scan.chain() != Some(header.end) {
        return Err("what was read back is another segment".into());
    }
    let cpu = cpu_time() - cpu;
    let freed = replace_segment(folder, FIRST)?.ok_or("the segment is gone")?;
    println!(
        "{batch:>5}   {:>6.0} ms   {:>7.2} s   {:>7.2} s   {:.2} s  {:.0} MiB of {:.0}: {:.3}; expected {:.3}",
        looked.as_secs_f64() * 1e3,
        rewritten.as_secs_f64(),
        read_back.as_secs_f64(),
        cpu.as_secs_f64(),
        freed as f64 / f64::from(1 << 20),
        room as f64 / f64::from(1 << 20),
        freed as f64 / room as f64,
        1.0 - remains as f64 / room as f64,
    );
    Ok(())
}

/// Fills the first segment.
fn fill(folder: &Path, config: &LogConfig, arguments: &Arguments, batch: u64) -> Result<(), Failure> {
    let mut log = CommitLog::new(config.clone(), Recovered::empty(config));
    let mut file: Option<File> = None;
    let body = vec![b'x'; arguments.body];
    let mut next = [0; 2];
    let (mut random, mut number, mut topic, mut written_to) = (0x9e37_79b9_7f4a_7c15_u64, 0u64, 0, 0);
    while log.end().0 < config.segment_bytes {
        if number.is_multiple_of(batch) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            topic = usize::from((random >> 11) as f64 / (1u64 << 53) as f64 >= arguments.share);
        }
        number += 1;
        let key = format!("UNIQ_KEY\x010A0000010000000000{number:014X}\x02");
        let parts = MessageParts {
            topic: [BRIEF, LASTING][topic],
            queue_id: QueueId(0),
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: BornTimestamp(1),
            born_host: "127.0.0.1:4000".parse()?,
            store_host: "127.0.0.1:10911".parse()?,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: &body,
            properties: &[key.as_bytes()],
        };
        let offset = QueueOffset(next[topic]);
        next[topic] += 1;
        let now = StoreTimestamp(1 + number as i64 / 100);
        while let Some(wanted) = log.prepare_wanted() {
            let to = prepare(folder, wanted, config.segment_bytes)?;
            log.on_prepared(wanted.segment, to);
        }
        log.append(encoded_len(&parts), now, |position, stored, bytes| {
            encode_into(&parts, offset, position, stored, bytes);
        })?;
        if log.end().0 - written_to >= BLOCK_BYTES {
            written_to = log.end().0;
            while let Some(write) = log.next_write() {
                if write.segment != FIRST {
                    break;
                }
                let path = segment_path(folder, FIRST);
                let file = match &file {
                    Some(file) => file,
                    None => file.insert(OpenOptions::new().write(true).open(path)?),
                };
                file.write_all_at(&write.data, write.offset_in_segment)?;
                log.on_written(write.block, Ok(()));
            }
        }
    }
    file.ok_or("nothing was written")?.sync_all()?;
    // What was prepared for the next one is not of interest.
    let next = segment_path(folder, SegmentBase(config.segment_bytes));
    if next.exists() {
        fs::remove_file(next)?;
    }
    Ok(())
}

/// Of all threads of this process.
fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}
