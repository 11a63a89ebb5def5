//! What the age of the data costs: starts, look-ups and memory of a shard whose log grows to many GiB.
//!
//!   cargo bench --bench age -- [--dir DIR] [--gib 25] [--queues 100000] [--body 100] [--json]
//!
//! A shard is driven without a network on real files. Messages have a unique key each and go to the queues in turn, in batches.
//! At several sizes the shard is dropped and started again from its files, which is timed; then messages all over the
//! log are looked up by key, once with nothing in memory (the page cache is told to forget the indexes), and again at once.
//! Writes are not durable here: that is measured by `append_disk`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use ringmq::shard::{
    ConnectionId, DelayTable, Effects, FileRead, FlushDiskType, LogFile, News, Shard, ShardConfig, Time,
    limits,
};
use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::{Codec, Fields, Frame, RemotingCommand};
use ringmq_protocol::request::{QueryMessageRequest, SendMessageRequest};
use ringmq_storage::{FsStore, LogConfig, SegmentBase, SegmentStore, index_path, seal, segment_path};
use rustix::fs::Advice;
use serde::{Deserialize, Serialize};

type Failure = Box<dyn Error>;

const FOLDER: &str = "ringmq-age";
const GIB: u64 = 1 << 30;
const QUEUES_PER_TOPIC: u64 = 8;
const BATCH: u64 = 200;
/// Messages looked up at each size.
const LOOKUPS: u64 = 200;

#[derive(Parser)]
struct Arguments {
    /// Where the files are made (in a folder of their own): the disk to be measured.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// How far the log grows.
    #[arg(long, default_value_t = 25)]
    gib: u64,
    /// Queues, in topics of eight.
    #[arg(long, default_value_t = 100_000)]
    queues: u64,
    /// Bytes of a message's body.
    #[arg(long, default_value_t = 100)]
    body: usize,
    /// One JSON array instead of a table.
    #[arg(long)]
    json: bool,
    /// Only measure what is there, for this many messages.
    #[arg(long, hide = true)]
    measure: Option<u64>,
    /// The time for that.
    #[arg(long, hide = true, default_value_t = 0)]
    wall_ms: i64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What was measured at one size of the log.
#[derive(Serialize, Deserialize)]
struct Row {
    gib: f64,
    messages: u64,
    segments: usize,
    /// MiB of the log that a start read.
    read_mib: u64,
    start_ms: f64,
    /// Of the process after the start, without the tail.
    memory_mib: f64,
    /// By the formula of docs/storage.md.
    formula_mib: f64,
    cold_p50_ms: f64,
    cold_max_ms: f64,
    warm_p50_us: f64,
    warm_max_us: f64,
}

struct Engine {
    directory: PathBuf,
    shard: Shard,
    fx: Effects,
    log: LogConfig,
    files: BTreeMap<(bool, SegmentBase), File>,
    wall_ms: i64,
}

impl Engine {
    /// Starts a shard; gives how long that took and how many MiB of the log were read.
    fn start(directory: &Path, wall_ms: i64) -> Result<(Engine, Duration, u64), Failure> {
        let config = ShardConfig {
            broker_name: "bench-0".into(),
            cluster_name: "bench".into(),
            address: "127.0.0.1:10911".parse()?,
            flush: FlushDiskType::Sync,
            auto_create_topics: true,
            delays: DelayTable::default(),
            key_salt: 1,
        };
        let log = LogConfig { record_bytes_max: limits::RECORD_BYTES_MAX as u32, ..LogConfig::default() };
        let mut store = FsStore::new(directory.to_path_buf());
        let begun = Instant::now();
        let boot = Shard::boot(config, log.clone(), &mut store, wall_ms, &mut |_| {})?;
        let took = begun.elapsed();
        if !boot.problems.is_empty() || !boot.report.damaged.is_empty() {
            return Err(
                format!("the log is not as it was written: {:?} {:?}", boot.problems, boot.report).into()
            );
        }
        let (directory, files) = (directory.to_path_buf(), BTreeMap::new());
        let engine = Engine { directory, shard: boot.shard, fx: Effects::default(), log, files, wall_ms };
        Ok((engine, took, boot.report.bytes >> 20))
    }

    fn file(&mut self, kind: LogFile, segment: SegmentBase) -> std::io::Result<&File> {
        let key = (kind == LogFile::Index, segment);
        if !self.files.contains_key(&key) {
            let file = match kind {
                LogFile::Index => File::open(index_path(&self.directory, segment))?,
                LogFile::Segment => {
                    let path = segment_path(&self.directory, segment);
                    let file =
                        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
                    file.set_len(self.log.segment_bytes)?;
                    file
                }
            };
            self.files.insert(key, file);
        }
        Ok(&self.files[&key])
    }

    fn request(&mut self, code: RequestCode, fields: &dyn Fields, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let mut frame = Vec::new();
        RemotingCommand::request(code, fields, Bytes::from(body)).encode(Codec::RocketMq, &mut frame);
        let frame = Frame::decode(&frame)?;
        self.wall_ms += 1;
        self.shard.begin_turn(Time { monotonic_ms: self.wall_ms, wall_ms: self.wall_ms });
        self.shard.on_frame(ConnectionId(1), "127.0.0.1:4567".parse()?, &frame, &mut self.fx);
        let mut answer = Vec::new();
        loop {
            self.fx.replies.drain(|_, head, body| {
                answer.extend_from_slice(head);
                body.iter().for_each(|range| answer.extend_from_slice(range));
            });
            if !answer.is_empty() {
                return Ok(answer);
            }
            self.turn()?;
        }
    }

    /// Does everything that the shard wants done.
    fn turn(&mut self) -> Result<(), Failure> {
        self.shard.on_tick(&mut self.fx);
        while let Some(wanted) = self.shard.prepare_wanted() {
            self.file(LogFile::Segment, wanted.segment)?;
            self.shard.on_prepared(wanted.segment, wanted.to);
        }
        while let Some(write) = self.shard.next_write() {
            let file = self.file(LogFile::Segment, write.segment)?;
            file.write_all_at(&write.data, write.offset_in_segment)?;
            self.shard.on_written(write.block, Ok(()), &mut self.fx);
        }
        for FileRead { id, file, segment, offset, len } in std::mem::take(&mut self.fx.reads) {
            let mut bytes = vec![0; len as usize];
            self.file(file, segment)?.read_exact_at(&mut bytes, offset)?;
            self.shard.on_read(id, Ok(Bytes::from(bytes)), &mut self.fx);
        }
        for news in std::mem::take(&mut self.fx.news) {
            if let News::Seal(index) = news {
                let mut store = FsStore::new(self.directory.clone());
                self.shard.on_sealed(seal(&mut store, &self.log, &index)?);
            }
        }
        Ok(())
    }

    /// Sends the next batch of messages.
    fn send(&mut self, number: &mut u64, queues: u64, body: &[u8]) -> Result<(), Failure> {
        let queue = *number / BATCH % queues;
        let mut entries = Vec::new();
        for key in *number..*number + BATCH {
            let properties = format!("UNIQ_KEY\x01{}\x02", key_of(key));
            BatchEntry { flag: 0, body, properties: properties.as_bytes() }.encode(&mut entries)?;
        }
        *number += BATCH;
        let send = SendMessageRequest {
            producer_group: "bench".into(),
            topic: topic_of(queue).into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: QUEUES_PER_TOPIC as i32,
            queue_id: (queue % QUEUES_PER_TOPIC) as i32,
            sys_flag: 0,
            born_timestamp: self.wall_ms,
            flag: 0,
            properties: Some("".into()),
            reconsume_times: 0,
            unit_mode: false,
            max_reconsume_times: None,
            batch: true,
            broker_name: None,
        };
        let answer = self.request(RequestCode::SEND_BATCH_MESSAGE, &send.fields_v2(), entries)?;
        match RemotingCommand::decode(&answer.into())? {
            answer if answer.code == 0 => Ok(()),
            answer => Err(format!("a send was refused: {:?}", answer.remark).into()),
        }
    }

    /// Looks a message up by its key, over all time.
    fn find(&mut self, number: u64, queues: u64) -> Result<Duration, Failure> {
        let query = QueryMessageRequest {
            topic: topic_of(number / BATCH % queues).into(),
            key: key_of(number).into(),
            max_num: 32,
            begin_timestamp: 0,
            end_timestamp: i64::MAX,
            unique_key_query: true,
        };
        let begun = Instant::now();
        let answer = self.request(RequestCode::QUERY_MESSAGE, &query, Vec::new())?;
        let took = begun.elapsed();
        let answer = RemotingCommand::decode(&answer.into())?;
        let is_found = answer.body.windows(20).any(|window| window == key_of(number).as_bytes());
        if is_found {
            Ok(took)
        } else {
            Err(format!("message {number} was not found: {:?}", answer.remark).into())
        }
    }

    /// Tells the page cache to forget the indexes.
    fn forget_indexes(&mut self) -> Result<(), Failure> {
        for (segment, _) in FsStore::new(self.directory.clone()).indexes()? {
            let file = self.file(LogFile::Index, segment)?;
            file.sync_all()?;
            rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }
}

fn topic_of(queue: u64) -> String {
    format!("T{:05}", queue / QUEUES_PER_TOPIC)
}

/// 20 characters.
fn key_of(number: u64) -> String {
    format!("K{number:019}")
}

fn resident_mib() -> Result<f64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse::<f64>()? / 1024.0)
}

/// Measures in a process of its own, so that the memory is that of the start alone.
fn measure_apart(arguments: &Arguments, wall_ms: i64, messages: u64) -> Result<Row, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .arg("--dir")
        .arg(&arguments.dir)
        .args(["--queues", &arguments.queues.to_string(), "--body", &arguments.body.to_string()])
        .args(["--measure", &messages.to_string(), "--wall-ms", &wall_ms.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn measure(arguments: &Arguments, directory: &Path, wall_ms: i64, messages: u64) -> Result<Row, Failure> {
    let before = resident_mib()?;
    let (mut engine, start, read_mib) = Engine::start(directory, wall_ms)?;
    let memory_mib = resident_mib()? - before;
    let segments = engine.shard.sealed_headers().len() + 1;
    let sealed: u64 = engine.shard.sealed_headers().iter().map(|header| header.messages).sum();
    let active = messages - sealed;
    let blocks = (read_mib << 20) / (BATCH * (arguments.body as u64 + 220)) + 1;
    let queues = arguments.queues.min(messages / BATCH);
    let topics = queues / QUEUES_PER_TOPIC;
    let lists = 12 * active + 8 * active + 16 * blocks;
    let formula = lists + 250 * queues + 230 * topics + 200 * segments as u64 + (12 << 20);
    engine.forget_indexes()?;
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for number in (0..LOOKUPS).map(|at| messages / LOOKUPS * at + at) {
        if cold.len() % 20 == 0 {
            // What earlier look-ups left in the shard and in the page cache would help the next ones.
            (engine, ..) = Engine::start(directory, wall_ms)?;
            engine.forget_indexes()?;
            cold.push(engine.find(number, arguments.queues)?.as_secs_f64() * 1e3);
        } else {
            cold.push(engine.find(number, arguments.queues)?.as_secs_f64() * 1e3);
        }
        warm.push(engine.find(number, arguments.queues)?.as_secs_f64() * 1e6);
    }
    cold.sort_by(f64::total_cmp);
    warm.sort_by(f64::total_cmp);
    Ok(Row {
        gib: engine
            .shard
            .sealed_headers()
            .last()
            .map_or(0.0, |header| header.end.position.0 as f64 / GIB as f64)
            + read_mib as f64 / 1024.0,
        messages,
        segments,
        read_mib,
        start_ms: start.as_secs_f64() * 1e3,
        memory_mib,
        formula_mib: formula as f64 / f64::from(1 << 20),
        cold_p50_ms: cold[cold.len() / 2],
        cold_max_ms: cold[cold.len() - 1],
        warm_p50_us: warm[warm.len() / 2],
        warm_max_us: warm[warm.len() - 1],
    })
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let directory = arguments.dir.join(FOLDER);
    if let Some(messages) = arguments.measure {
        let row = measure(&arguments, &directory, arguments.wall_ms, messages)?;
        println!("{}", serde_json::to_string(&row)?);
        return Ok(());
    }
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let mut rows = Vec::new();
    let (mut engine, ..) = Engine::start(&directory, 1_700_000_000_000)?;
    let body = vec![b'x'; arguments.body];
    let (mut number, mut bytes) = (0, 0);
    let sizes = [1, 2, 5, 10, 20, 50, 100].into_iter().filter(|gib| *gib < arguments.gib);
    for gib in sizes.chain([arguments.gib]) {
        // Half a segment more, so that each start has as much to read.
        while bytes < gib * GIB + GIB / 2 {
            let at = number;
            engine.send(&mut number, arguments.queues, &body)?;
            bytes += (number - at) * (arguments.body as u64 + 91 + 6 + 30);
            engine.turn()?;
        }
        while !engine.shard.is_quiet() {
            engine.turn()?;
        }
        for file in engine.files.values() {
            file.sync_all()?;
        }
        let wall_ms = engine.wall_ms;
        drop(engine);
        let row = measure_apart(&arguments, wall_ms, number)?;
        if !arguments.json {
            print(&row, rows.is_empty());
        }
        rows.push(row);
        (engine, ..) = Engine::start(&directory, wall_ms)?;
    }
    drop(engine);
    fs::remove_dir_all(&directory)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

fn print(row: &Row, is_first: bool) {
    if is_first {
        println!(
            "| GiB | messages | segments | start reads MiB | start ms | memory MiB | formula MiB | cold look-up p50 / max ms | warm p50 / max µs |"
        );
        println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    }
    println!(
        "| {:.1} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.2} / {:.2} | {:.0} / {:.0} |",
        row.gib,
        row.messages,
        row.segments,
        row.read_mib,
        row.start_ms,
        row.memory_mib,
        row.formula_mib,
        row.cold_p50_ms,
        row.cold_max_ms,
        row.warm_p50_us,
        row.warm_max_us
    );
}
