//! The commit log on a real disk, without broker and network: what the storage engine itself can do.
//!
//!   cargo bench --bench append_disk -- [--dir DIR] [--only batch,single,sizes,zeroing,recycling] [--json]
//!
//! One thread, pinned to one core, does what a shard does with its log: append, submit every write that the log gives, take
//! completions, tell the log. The disk is a single zeroed file that stands for all segments in turn, so that neither zeroing nor
//! fresh file blocks are part of a figure; only `zeroing` and `recycling` have real segments that are prepared ahead meanwhile.
//!
//!   batch     batches of 64 messages of 1 KiB, so many waiting that all write slots are taken
//!   single    one message of 1 KiB at a time, the next when it is durable
//!   small     the same with 200 bytes: what a lone send takes on disk
//!   sizes     writes of a given size and number in flight, direct and through the page cache
//!   zeroing   `batch` and `single` beside a thread that zeroes segments ahead, as in a broker
//!   recycling the same when that thread makes each segment of one that was released before
//!
//! Latency is from before the append (of the batch) until the log says that it is durable. CPU is that of all threads of this
//! process, kernel workers of the ring included; those and the zeroing thread are also shown by themselves.

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use ringmq_protocol::message::{MessageParts, encode_into, encoded_len};
use ringmq_protocol::types::{BornTimestamp, PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, SysFlag};
use ringmq_ring::{Access, Completion, Config, File, Nanos, Op, OpenMode, Outcome, Ring, Uring};
use ringmq_storage::{BlockSeq, ChainPoint, CommitLog, LogConfig, Prepare, Recovered, SegmentBase};
use ringmq_storage::{prepare, remove_segment, segment_path};
use serde::Serialize;

type Failure = Box<dyn Error>;

const FOLDER: &str = "ringmq-append-disk";
const MIB: u64 = 1 << 20;
/// What a shard appends between two looks at its ring: as much as the ring's receive buffers hold.
const TURN_BYTES: usize = 512 << 10;

#[derive(Parser)]
struct Arguments {
    /// Where the files are made (in a folder of their own): the disk to be measured.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// What to measure; everything if it is left out.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Measure>,
    /// One JSON array instead of a table.
    #[arg(long)]
    json: bool,
    /// Length of each measurement by time.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Appends of `single` and `small`.
    #[arg(long, default_value_t = 20_000)]
    singles: u64,
    /// Batches of `batch` that wait for the disk at any time.
    #[arg(long, default_value_t = 96)]
    waiting: usize,
    /// The core to run on; the last one if it is left out.
    #[arg(long)]
    core: Option<usize>,
    /// Bytes of a segment.
    #[arg(long, default_value_t = 1 << 30)]
    segment_bytes: u64,
    /// Leaves the zeroed file behind, and takes one that is there, so that a series zeroes once.
    #[arg(long)]
    keep: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    Batch,
    Single,
    Small,
    Sizes,
    Zeroing,
    Recycling,
}

/// What is appended, and how much of it waits.
#[derive(Clone, Copy)]
struct Load {
    record: Record,
    /// Records that go into one block together, with one latency.
    batch: usize,
    /// Batches that are not durable, at any time.
    waiting: usize,
    until: Until,
}

#[derive(Clone, Copy)]
enum Record {
    /// A message with a body of this many bytes.
    Message(usize),
    /// A record for which a block of its own takes this many bytes.
    Block(usize),
}

#[derive(Clone, Copy)]
enum Until {
    Elapsed(Duration),
    Batches(u64),
}

impl Record {
    fn bytes(self) -> usize {
        let (Record::Message(bytes) | Record::Block(bytes)) = self;
        bytes
    }
}

/// One line of the result.
#[derive(Serialize)]
struct Row {
    name: String,
    seconds: f64,
    records: u64,
    /// Of message bodies.
    payload_mb_per_s: f64,
    /// Of what the disk was given.
    disk_mb_per_s: f64,
    writes: u64,
    mean_write_bytes: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us_per_record: f64,
    cpu_us_per_mib: f64,
    /// Part of the above in kernel workers: writes that could not be submitted without waiting.
    worker_cpu_us_per_mib: f64,
    zeroing_cpu_us_per_mib: f64,
    /// Growth of the log per byte of payload: what the disk holds.
    log_bytes_per_payload_byte: f64,
    /// Bytes written per byte of payload: what the disk wears.
    written_bytes_per_payload_byte: f64,
    log_bytes_per_batch: f64,
    direct: bool,
}

/// CPU time in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Cpu {
    total: u64,
    workers: u64,
    zeroing: u64,
}

impl Cpu {
    fn now() -> Result<Cpu, Failure> {
        let mut cpu = Cpu::default();
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?.path();
            // A worker may end in between; it was idle then.
            let Ok(times) = fs::read_to_string(task.join("schedstat")) else { continue };
            let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
            let time: u64 = times.split_whitespace().next().ok_or("schedstat is empty")?.parse()?;
            cpu.total += time;
            if name.starts_with("iou-wrk") {
                cpu.workers += time;
            } else if name.starts_with(ZEROING_NAME) {
                cpu.zeroing += time;
            }
        }
        Ok(cpu)
    }
}

/// Where the writes go.
enum Disk {
    /// One file in the place of every segment, all of it zeroed.
    OneFile(File),
    /// Real segments, prepared ahead; those that are left are used again, or deleted.
    Segments {
        directory: PathBuf,
        segment_bytes: u64,
        direct: bool,
        open: VecDeque<(SegmentBase, File)>,
        zeroing: Zeroing,
        recycles: bool,
    },
}

const ZEROING_NAME: &str = "zeroing";

/// A thread that zeroes what the log asks for, one stretch at a time.
struct Zeroing {
    wanted: SyncSender<Prepare>,
    done: Receiver<Result<Prepare, String>>,
    is_busy: bool,
}

impl Zeroing {
    fn start(
        core: usize,
        directory: PathBuf,
        segment_bytes: u64,
        waker: ringmq_ring::Waker,
    ) -> Result<Zeroing, Failure> {
        let (wanted, inbox) = sync_channel::<Prepare>(1);
        let (outbox, done) = sync_channel(1);
        thread::Builder::new().name(ZEROING_NAME.into()).spawn(move || {
            // Elsewhere than the log, as in a broker; if this fails both share a core, and the figures say so.
            let _ = ringmq_ring::pin_current_thread(core);
            for wanted in inbox {
                let result = prepare(&directory, wanted, segment_bytes);
                let result = result.map(|to| Prepare { to, ..wanted }).map_err(|error| error.to_string());
                if outbox.send(result).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Zeroing { wanted, done, is_busy: false })
    }

    fn serve(&mut self, log: &mut CommitLog) -> Result<(), Failure> {
        if let Ok(result) = self.done.try_recv() {
            let done = result?;
            log.on_prepared(done.segment, done.to);
            self.is_busy = false;
        }
        if !self.is_busy
            && let Some(wanted) = log.prepare_wanted()
        {
            match self.wanted.try_send(wanted) {
                Ok(()) => self.is_busy = true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    return Err("zeroing stopped".into());
                }
            }
        }
        Ok(())
    }
}

impl Disk {
    fn one_file(ring: &mut Uring, path: &Path, direct: bool) -> Result<Disk, Failure> {
        Ok(Disk::OneFile(ring.open(path, OpenMode { access: Access::Write, direct })?))
    }

    fn serve(&mut self, log: &mut CommitLog) -> Result<(), Failure> {
        match self {
            Disk::OneFile(_) => {
                while let Some(wanted) = log.prepare_wanted() {
                    log.on_prepared(wanted.segment, wanted.to);
                }
                Ok(())
            }
            Disk::Segments { zeroing, .. } => zeroing.serve(log),
        }
    }

    fn file(&mut self, ring: &mut Uring, segment: SegmentBase) -> Result<File, Failure> {
        let Disk::Segments { directory, segment_bytes, direct, open, recycles, .. } = self else {
            let Disk::OneFile(file) = self else { unreachable!("there are two kinds") };
            return Ok(*file);
        };
        if let Some((_, file)) = open.iter().find(|(base, _)| *base == segment) {
            return Ok(*file);
        }
        let mode = OpenMode { access: Access::Write, direct: *direct };
        let file = ring.open(&segment_path(directory, segment), mode)?;
        open.push_back((segment, file));
        // What lies two segments back is durable: the log keeps far less in flight. Only the disk's space is of interest.
        if open.len() > 2 {
            let (base, file) = open.pop_front().expect("there are three");
            ring.close_file(file);
            remove_segment(directory, base, *segment_bytes, *recycles)?;
        }
        Ok(file)
    }

    fn close(self, ring: &mut Uring) {
        match self {
            Disk::OneFile(file) => ring.close_file(file),
            Disk::Segments { open, .. } => open.into_iter().for_each(|(_, file)| ring.close_file(file)),
        }
    }
}

/// A log, its ring and its disk, and what was seen of them.
struct Engine<'a> {
    ring: &'a mut Uring,
    log: CommitLog,
    disk: Disk,
    /// Appended and not durable: the block, and when the append began.
    waiting: VecDeque<(BlockSeq, Instant)>,
    latencies_ns: Vec<u64>,
    writes: u64,
    written_bytes: u64,
    completed: Vec<Completion>,
    body: Vec<u8>,
}

impl<'a> Engine<'a> {
    fn new(ring: &'a mut Uring, config: LogConfig, disk: Disk) -> Engine<'a> {
        // Two segments have been there already, for those who use them again.
        let position = PhysicalOffset(2 * config.segment_bytes);
        let mut recovered = Recovered::empty(&config);
        recovered.end = ChainPoint { position, ..ChainPoint::default() };
        let mut log = CommitLog::new(config.clone(), recovered);
        log.prepare_memory_with(ringmq_ring::prefer_huge_pages);
        // Not zeros: a disk may know them.
        let body =
            (0..config.record_bytes_max).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        Engine {
            ring,
            log,
            disk,
            waiting: VecDeque::new(),
            latencies_ns: Vec::new(),
            writes: 0,
            written_bytes: 0,
            completed: Vec::new(),
            body,
        }
    }

    /// Appends one batch; false if the log has no room for it now.
    fn append(&mut self, load: &Load) -> Result<bool, Failure> {
        let now = StoreTimestamp(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64);
        let began = Instant::now();
        let host = "10.0.0.1:10911".parse()?;
        let mut parts = MessageParts {
            topic: "TopicTest",
            queue_id: QueueId(0),
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: BornTimestamp(now.0),
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: &[],
            properties: &[],
        };
        let len = match load.record {
            Record::Message(bytes) => {
                parts.body = &self.body[..bytes];
                encoded_len(&parts)
            }
            Record::Block(bytes) => bytes - ringmq_storage::block::HEADER_BYTES,
        };
        if self.log.reserve(len * load.batch, now).is_err() {
            return Ok(false);
        }
        let mut block = BlockSeq(0);
        for _ in 0..load.batch {
            let appended = match load.record {
                Record::Message(_) => self.log.append(len, now, |position, stored, bytes| {
                    encode_into(&parts, QueueOffset(0), position, stored, bytes);
                }),
                Record::Block(_) => {
                    self.log.append(len, now, |_, _, bytes| bytes.copy_from_slice(&self.body[..len]))
                }
            };
            block = appended?.block;
        }
        self.waiting.push_back((block, began));
        Ok(true)
    }

    /// The end of a turn of a shard, as far as its log is concerned: submit what can be written, take what has ended.
    fn turn(&mut self, may_wait: bool) -> Result<(), Failure> {
        self.disk.serve(&mut self.log)?;
        while let Some(write) = self.log.next_write() {
            let file = self.disk.file(self.ring, write.segment)?;
            self.writes += 1;
            self.written_bytes += write.data.len() as u64;
            let op = Op::Write { file, offset: write.offset_in_segment, data: write.data, durable: true };
            self.ring.submit(write.block.0, op);
        }
        let deadline = if may_wait { None } else { Some(Nanos(0)) };
        self.ring.turn(deadline, &mut self.completed)?;
        for completion in self.completed.drain(..) {
            let Outcome::Written(result) = completion.outcome else { continue };
            result.map_err(|errno| format!("a write failed: {errno:?}"))?;
            if let Some(advance) = self.log.on_written(BlockSeq(completion.tag), Ok(())) {
                while self.waiting.front().is_some_and(|(block, _)| *block <= advance.block) {
                    let (_, began) = self.waiting.pop_front().expect("just seen");
                    self.latencies_ns.push(began.elapsed().as_nanos() as u64);
                }
            }
        }
        Ok(())
    }

    /// Keeps `load.waiting` batches waiting until the end; gives the number of batches that became durable.
    fn drive(&mut self, load: &Load) -> Result<u64, Failure> {
        let (began, before) = (Instant::now(), self.latencies_ns.len() as u64);
        loop {
            let done = self.latencies_ns.len() as u64 - before;
            let is_over = match load.until {
                Until::Elapsed(time) => began.elapsed() >= time,
                Until::Batches(count) => done >= count,
            };
            if is_over {
                return Ok(done);
            }
            let mut arrived_bytes = 0;
            let mut is_full = self.waiting.len() == load.waiting;
            while !is_full && arrived_bytes < TURN_BYTES {
                is_full = !self.append(load)? || self.waiting.len() == load.waiting;
                arrived_bytes += load.batch * load.record.bytes();
            }
            self.turn(is_full)?;
        }
    }

    fn measure(mut self, name: &str, load: &Load, direct: bool) -> Result<Row, Failure> {
        // Touches the memory of the tail once: a fresh page costs more than all that is measured here.
        let config = self.log.config();
        let warm_up_bytes = 2 * config.tail_bytes;
        let bulk = Load {
            record: Record::Message(1 << 20),
            batch: 1,
            waiting: 8,
            until: Until::Batches(warm_up_bytes >> 20),
        };
        self.drive(&bulk)?;
        while !self.waiting.is_empty() {
            self.turn(true)?;
        }
        self.latencies_ns.clear();
        let (start, writes, written_bytes) = (self.log.durable().0, self.writes, self.written_bytes);
        let (began, cpu_before) = (Instant::now(), Cpu::now()?);
        let mut batches = self.drive(load)?;
        // All that was begun counts, in time and in bytes.
        let rest = self.waiting.len() as u64;
        while !self.waiting.is_empty() {
            self.turn(true)?;
        }
        batches += rest;
        let (elapsed, cpu) = (began.elapsed(), Cpu::now()?);
        let log_bytes = (self.log.durable().0 - start) as f64;
        let (writes, written_bytes) = (self.writes - writes, (self.written_bytes - written_bytes) as f64);
        let records = batches * load.batch as u64;
        let payload = (records * load.record.bytes() as u64) as f64;
        let seconds = elapsed.as_secs_f64();
        let mib = written_bytes / MIB as f64;
        let us = |after: u64, before: u64| after.saturating_sub(before) as f64 / 1e3;
        self.latencies_ns.sort_unstable();
        let quantile = |q: f64| {
            let last = self.latencies_ns.len() - 1;
            self.latencies_ns[(q * last as f64) as usize] as f64 / 1e3
        };
        let row = Row {
            name: name.to_owned(),
            seconds,
            records,
            payload_mb_per_s: payload / seconds / 1e6,
            disk_mb_per_s: written_bytes / seconds / 1e6,
            writes,
            mean_write_bytes: written_bytes / writes as f64,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            cpu_us_per_record: us(cpu.total, cpu_before.total) / records as f64,
            cpu_us_per_mib: us(cpu.total, cpu_before.total) / mib,
            worker_cpu_us_per_mib: us(cpu.workers, cpu_before.workers) / mib,
            zeroing_cpu_us_per_mib: us(cpu.zeroing, cpu_before.zeroing) / mib,
            log_bytes_per_payload_byte: log_bytes / payload,
            written_bytes_per_payload_byte: written_bytes / payload,
            log_bytes_per_batch: log_bytes / batches as f64,
            direct,
        };
        self.disk.close(self.ring);
        Ok(row)
    }
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let cores = ringmq_ring::available_cores()?;
    let core = arguments.core.or(cores.last().copied()).ok_or("no core to run on")?;
    let other_core = cores.iter().copied().find(|other| *other != core).unwrap_or(core);
    ringmq_ring::pin_current_thread(core)?;
    let directory = arguments.dir.join(FOLDER);
    fs::create_dir_all(&directory)?;
    let result = run(&arguments, &directory, other_core);
    if !arguments.keep {
        fs::remove_dir_all(&directory)?;
    }
    let rows = result?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print_table(&rows);
    }
    Ok(())
}

fn run(arguments: &Arguments, directory: &Path, other_core: usize) -> Result<Vec<Row>, Failure> {
    let config = LogConfig { segment_bytes: arguments.segment_bytes, ..LogConfig::default() };
    let mut ring = Uring::new(Config::default())?;
    let wants = |measure| arguments.only.is_empty() || arguments.only.contains(&measure);
    let for_seconds = Until::Elapsed(Duration::from_secs_f64(arguments.seconds));
    let mut rows = Vec::new();

    let whole = Prepare { segment: SegmentBase(0), from: 0, to: config.segment_bytes, is_urgent: true };
    let path = segment_path(directory, whole.segment);
    if !path.exists() {
        // Under its name only once it is complete, for those that come after us with `--keep`.
        let aside = directory.join("aside");
        fs::create_dir_all(&aside)?;
        prepare(&aside, whole, config.segment_bytes)?;
        fs::rename(segment_path(&aside, whole.segment), &path)?;
    }
    let direct = ring
        .open(&path, OpenMode { access: Access::Read, direct: true })
        .map(|file| ring.close_file(file))
        .is_ok();

    let batch =
        Load { record: Record::Message(1024), batch: 64, waiting: arguments.waiting, until: for_seconds };
    let singles = Until::Batches(arguments.singles);
    let single = |bytes| Load { record: Record::Message(bytes), batch: 1, waiting: 1, until: singles };
    if wants(Measure::Batch) {
        let disk = Disk::one_file(&mut ring, &path, direct)?;
        rows.push(Engine::new(&mut ring, config.clone(), disk).measure(
            "batch of 64 x 1 KiB",
            &batch,
            direct,
        )?);
    }
    for (measure, name, bytes) in
        [(Measure::Single, "single 1 KiB", 1024), (Measure::Small, "single 200 B", 200)]
    {
        if wants(measure) {
            let disk = Disk::one_file(&mut ring, &path, direct)?;
            rows.push(Engine::new(&mut ring, config.clone(), disk).measure(name, &single(bytes), direct)?);
        }
    }
    if wants(Measure::Sizes) {
        for direct in [direct, false].into_iter().take(1 + usize::from(direct)) {
            for kib in [4, 64, 256, 1024] {
                for in_flight in [1, 2, 4] {
                    // One record a block, in sectors of its own: the write has the size that is asked for.
                    let config = LogConfig {
                        writes_in_flight_max: in_flight,
                        writes_in_flight_enough: in_flight,
                        block_bytes_max: 1,
                        pad_blocks: true,
                        ..config.clone()
                    };
                    let load = Load {
                        record: Record::Block(kib << 10),
                        batch: 1,
                        waiting: in_flight,
                        until: for_seconds,
                    };
                    let disk = Disk::one_file(&mut ring, &path, direct)?;
                    let cache = if direct { "" } else { ", page cache" };
                    let name = format!("{kib} KiB, {in_flight} in flight{cache}");
                    rows.push(Engine::new(&mut ring, config, disk).measure(&name, &load, direct)?);
                }
            }
        }
    }
    for (measure, what, recycles) in
        [(Measure::Zeroing, "zeroing ahead", false), (Measure::Recycling, "recycling", true)]
    {
        let ahead = directory.join("ahead");
        for (name, load) in [("batch", batch), ("single 1 KiB", single(1024))] {
            if !wants(measure) {
                continue;
            }
            fs::create_dir_all(&ahead)?;
            let segment_bytes = config.segment_bytes;
            for segment in [SegmentBase(0), SegmentBase(segment_bytes)] {
                if recycles {
                    prepare(
                        &ahead,
                        Prepare { segment, from: 0, to: segment_bytes, is_urgent: true },
                        segment_bytes,
                    )?;
                    remove_segment(&ahead, segment, segment_bytes, true)?;
                }
            }
            let zeroing = Zeroing::start(other_core, ahead.clone(), segment_bytes, ring.waker())?;
            let (directory, open) = (ahead.clone(), VecDeque::new());
            let disk = Disk::Segments { directory, segment_bytes, direct, open, zeroing, recycles };
            let name = format!("{name}, {what}");
            rows.push(Engine::new(&mut ring, config.clone(), disk).measure(&name, &load, direct)?);
            fs::remove_dir_all(&ahead)?;
        }
    }
    Ok(rows)
}

fn print_table(rows: &[Row]) {
    println!(
        "| | MB/s | writes | mean KiB | p50 us | p99 us | CPU us/record | CPU us/MiB | of it workers | zeroing | log/payload | written/payload |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for row in rows {
        println!(
            "| {} | {:.0} | {} | {:.1} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} | {:.3} | {:.3} |",
            row.name,
            row.disk_mb_per_s,
            row.writes,
            row.mean_write_bytes / 1024.0,
            row.p50_us,
            row.p99_us,
            row.cpu_us_per_record,
            row.cpu_us_per_mib,
            row.worker_cpu_us_per_mib,
            row.zeroing_cpu_us_per_mib,
            row.log_bytes_per_payload_byte,
            row.written_bytes_per_payload_byte,
        );
    }
}
