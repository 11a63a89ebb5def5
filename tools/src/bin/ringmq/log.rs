//! `ringmq log …`: the files of a data directory.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ringmq_protocol::properties::names;
use ringmq_protocol::types::PhysicalOffset;
use ringmq_storage::{DataDir, Record, SegmentStore};
use ringmq_tools::log::inspect::{Item, Range, inspect};
use ringmq_tools::log::repair::{Copied, Repair, repair};
use ringmq_tools::log::snapshot::snapshot;
use ringmq_tools::log::verify::{FileProblem, ShardReport, Stretch, verify};
use ringmq_tools::log::{LogError, open_stopped, records};
use ringmq_tools::units::{format_bytes, format_duration, format_time};
use serde_json::{Value, json};

use crate::Failure;
use crate::output::{print, print_json};

#[derive(Subcommand)]
pub(crate) enum LogCommand {
    /// Check every byte of a stopped broker's log and indexes; fails if anything is wrong
    Verify {
        /// The broker's data directory
        dir: PathBuf,
    },
    /// Show the blocks of a stopped broker's log
    Inspect(InspectArguments),
    /// Copy damaged parts aside and write missing and wrong indexes anew; never changes the log itself
    Repair {
        /// The broker's data directory
        dir: PathBuf,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy the data of a broker, which may be running, to a directory that another one can start with
    Snapshot {
        /// The broker's data directory
        dir: PathBuf,
        /// A directory that does not exist yet, or is empty; on the same file system most files are shared by links
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct InspectArguments {
    /// The broker's data directory
    dir: PathBuf,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// Physical offset to begin at: the block around it, or the next one
    #[arg(long, value_name = "POSITION", default_value_t = 0)]
    from: u64,
    /// Most blocks of a shard, with --records most records
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    count: u64,
    /// Show the messages and settings in each block
    #[arg(long)]
    records: bool,
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::new(error.to_string())
    }
}

pub(crate) fn run(command: LogCommand, json: bool) -> Result<(), Failure> {
    match command {
        LogCommand::Verify { dir } => run_verify(&dir, json),
        LogCommand::Inspect(arguments) => run_inspect(&arguments, json),
        LogCommand::Repair { dir, dry_run } => run_repair(&dir, dry_run, json),
        LogCommand::Snapshot { dir, to } => run_snapshot(&dir, &to, json),
    }
}

fn run_verify(dir: &Path, json: bool) -> Result<(), Failure> {
    let data = open_stopped(dir)?;
    let started = Instant::now();
    let bar = progress_bar(&data);
    let shards: Result<Vec<ShardReport>, LogError> =
        (0..data.shards()).map(|shard| verify(&data, shard, &mut |bytes| bar.inc(bytes))).collect();
    bar.finish_and_clear();
    let shards = shards?;
    let took = started.elapsed();
    let problems: usize = shards.iter().map(ShardReport::problems).sum();
    if json {
        let reports: Vec<Value> = shards.iter().map(report_json).collect();
        print_json(&json!({ "problems": problems, "seconds": took.as_secs_f64(), "shards": reports }))?;
    } else {
        shards.iter().try_for_each(print_report)?;
        print(summary(&shards, took))?;
    }
    match problems {
        0 => Ok(()),
        _ => Err(Failure::new(format!(
            "{problems} problems in {}; `ringmq log repair` mends what can be mended",
            dir.display()
        ))),
    }
}

fn summary(shards: &[ShardReport], took: Duration) -> String {
    let sum = |count: fn(&ShardReport) -> u64| shards.iter().map(count).sum::<u64>();
    let bytes = sum(|shard| shard.bytes);
    format!(
        "{} segments, {} indexes, {} blocks, {} records, {} in {}: {:.0} MB/s",
        sum(|shard| shard.segments as u64),
        sum(|shard| shard.indexes as u64),
        sum(|shard| shard.blocks),
        sum(|shard| shard.records),
        format_bytes(bytes),
        format_duration(took),
        bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9),
    )
}

fn print_report(report: &ShardReport) -> std::io::Result<()> {
    let shard = report.shard;
    for Stretch { damage, lost } in &report.damaged {
        let named = match lost.len() {
            0 => "no index names what was in them".to_owned(),
            count => format!("{count} messages of them are known to be lost:"),
        };
        print(format_args!(
            "shard {shard}: {} bytes at {} are damaged; {named}",
            damage.bytes, damage.position
        ))?;
        for message in lost {
            print(format_args!(
                "  at {}: topic {}, queue {}, offset {}, {} bytes",
                message.position, message.topic, message.queue, message.offset, message.bytes
            ))?;
        }
    }
    for problem in &report.unreadable {
        print(format_args!("shard {shard}: {problem}"))?;
    }
    for (segment, problem) in &report.files {
        print(format_args!("shard {shard}: {}", file_line(*segment, problem)))?;
    }
    for note in &report.notes {
        print(format_args!("shard {shard}: {note}"))?;
    }
    let cut = match report.cut_bytes {
        0 => String::new(),
        bytes => format!("; behind it {} of writes that a crash cut off", format_bytes(bytes)),
    };
    print(format_args!("shard {shard}: the log ends at {}{cut}", report.end))
}

fn file_line(segment: ringmq_storage::SegmentBase, problem: &FileProblem) -> String {
    match problem {
        FileProblem::SegmentMissing { messages: Some(messages) } => {
            format!("segment {segment} is missing, with {messages} messages")
        }
        FileProblem::SegmentMissing { messages: None } => {
            format!(
                "segment {segment} is missing, and so is its index: how many messages it had is not known"
            )
        }
        FileProblem::IndexMissing => format!("the index of segment {segment} is missing"),
        FileProblem::IndexWrong { problem } => format!("the index of segment {segment} is wrong: {problem}"),
    }
}

fn stretch_json(stretch: &Stretch) -> Value {
    let message = |lost: &ringmq_tools::log::verify::LostMessage| {
        json!({
            "position": lost.position.0, "topic": lost.topic, "queue": lost.queue.0,
            "offset": lost.offset.0, "bytes": lost.bytes,
        })
    };
    let lost: Vec<Value> = stretch.lost.iter().map(message).collect();
    json!({ "position": stretch.damage.position.0, "bytes": stretch.damage.bytes, "lost_messages": lost })
}

fn report_json(report: &ShardReport) -> Value {
    let damaged: Vec<Value> = report.damaged.iter().map(stretch_json).collect();
    let file = |(segment, problem): &(ringmq_storage::SegmentBase, FileProblem)| {
        let what = match problem {
            FileProblem::SegmentMissing { .. } => "segment missing",
            FileProblem::IndexMissing => "index missing",
            FileProblem::IndexWrong { .. } => "index wrong",
        };
        json!({ "segment": segment.0, "what": what, "text": file_line(*segment, problem) })
    };
    let files: Vec<Value> = report.files.iter().map(file).collect();
    json!({
        "shard": report.shard, "problems": report.problems(), "segments": report.segments, "indexes": report.indexes,
        "blocks": report.blocks, "records": report.records, "bytes": report.bytes, "end": report.end.0,
        "cut_bytes": report.cut_bytes, "damaged": damaged, "unreadable_records": report.unreadable,
        "files": files, "notes": report.notes,
    })
}

fn run_repair(dir: &Path, is_dry: bool, json: bool) -> Result<(), Failure> {
    let data = open_stopped(dir)?;
    let bar = progress_bar(&data);
    let mut repairs = Vec::new();
    for shard in 0..data.shards() {
        repairs.push(repair(&data, shard, is_dry, &mut |bytes| bar.inc(bytes))?);
    }
    bar.finish_and_clear();
    if json {
        let shards: Vec<Value> = repairs.iter().map(repair_json).collect();
        print_json(&json!({ "dry_run": is_dry, "shards": shards }))?;
        return Ok(());
    }
    repairs.iter().try_for_each(|repair| print_repair(repair, is_dry))?;
    match (repairs.iter().any(Repair::has_work), is_dry) {
        (false, _) => print("nothing to do")?,
        (true, true) => print("nothing was changed: this was a dry run")?,
        (true, false) => {}
    }
    Ok(())
}

fn print_repair(repair: &Repair, is_dry: bool) -> std::io::Result<()> {
    print_report(&repair.found)?;
    let shard = repair.found.shard;
    for (Stretch { damage, .. }, copied) in repair.found.damaged.iter().zip(&repair.copies) {
        let what = format!("the {} bytes at {}", damage.bytes, damage.position);
        print(match copied {
            Copied::Now(path) if is_dry => format!("shard {shard}: would copy {what} to {}", path.display()),
            Copied::Now(path) => format!("shard {shard}: copied {what} to {}", path.display()),
            Copied::Before(path) => format!("shard {shard}: {what} are in {} already", path.display()),
            Copied::Nothing => format!("shard {shard}: of {what} nothing is left to copy"),
        })?;
    }
    for index in &repair.indexes {
        let segment = index.segment;
        print(match index.messages {
            None => format!("shard {shard}: would write the index of segment {segment} anew"),
            Some(messages) => {
                format!("shard {shard}: wrote the index of segment {segment} anew: {messages} messages")
            }
        })?;
    }
    let found = &repair.found;
    print(format_args!(
        "shard {shard}: a start finds {} blocks with {} records up to {}, and goes on behind {} damaged parts",
        found.blocks,
        found.records,
        found.end,
        found.damaged.len()
    ))
}

fn repair_json(repair: &Repair) -> Value {
    let copies: Vec<Value> = repair
        .found
        .damaged
        .iter()
        .zip(&repair.copies)
        .map(|(stretch, copied)| {
            let (state, path) = match copied {
                Copied::Now(path) => ("copied", Some(path)),
                Copied::Before(path) => ("copied before", Some(path)),
                Copied::Nothing => ("nothing to copy", None),
            };
            let path = path.map(|path| path.display().to_string());
            json!({ "position": stretch.damage.position.0, "bytes": stretch.damage.bytes, "state": state, "file": path })
        })
        .collect();
    let index = |index: &ringmq_tools::log::repair::Rewritten| json!({ "segment": index.segment.0, "why": index.why, "messages": index.messages });
    let indexes: Vec<Value> = repair.indexes.iter().map(index).collect();
    json!({
        "found": report_json(&repair.found), "has_work": repair.has_work(), "copies": copies, "indexes": indexes,
    })
}

fn run_inspect(arguments: &InspectArguments, json: bool) -> Result<(), Failure> {
    let data = open_stopped(&arguments.dir)?;
    if let Some(shard) = arguments.shard.filter(|shard| *shard >= data.shards()) {
        let path = arguments.dir.clone();
        return Err(LogError::NoShard { path, shard, shards: data.shards() }.into());
    }
    let range = Range {
        from: PhysicalOffset(arguments.from),
        count: arguments.count,
        with_records: arguments.records,
    };
    for shard in arguments.shard.map_or(0..data.shards(), |shard| shard..shard + 1) {
        inspect(&data, shard, range, |item| {
            match json {
                true => print_json(&item_json(shard, &item))?,
                false => print(item_line(shard, &item))?,
            }
            Ok::<(), Failure>(())
        })?;
    }
    Ok(())
}

fn item_line(shard: u16, item: &Item<'_>) -> String {
    match item {
        Item::Block(header) => format!(
            "shard {shard} block {} {} bytes, {} records, {}, crc {:08x} ok",
            header.position,
            header.block_bytes(),
            header.record_count,
            format_time(header.store_timestamp.0),
            header.crc
        ),
        Item::Gap(damage) => format!(
            "shard {shard} DAMAGED {} {} bytes that were durable and are no block",
            damage.position, damage.bytes
        ),
        Item::Record(Record::Message { position, message }) => format!(
            "  message {position} topic {} queue {} offset {} keys {:?} tags {:?} body {} bytes",
            message.topic(),
            message.queue_id(),
            message.queue_offset(),
            message.property(names::KEYS).unwrap_or_default(),
            message.property(names::TAGS).unwrap_or_default(),
            message.body().len()
        ),
        Item::Record(Record::Metadata { position, kind, body, .. }) => {
            let said = records::decode(*kind, body).map_or_else(
                || format!("{} bytes that mean nothing here", body.len()),
                |value| value.to_string(),
            );
            format!("  setting {position} {}: {said}", records::name(*kind))
        }
        Item::Record(Record::Gap { position, bytes, .. }) => {
            format!("  gap {position} {bytes} bytes of messages that were given up")
        }
        Item::Unreadable(problem) => format!("  UNREADABLE {problem}"),
    }
}

fn item_json(shard: u16, item: &Item<'_>) -> Value {
    match item {
        Item::Block(header) => json!({
            "type": "block", "shard": shard, "position": header.position.0, "bytes": header.block_bytes(),
            "records": header.record_count, "stored": format_time(header.store_timestamp.0),
            "durable_below": header.durable_at_seal(), "crc": header.crc, "crc_ok": true,
        }),
        Item::Gap(damage) => json!({
            "type": "damaged", "shard": shard, "position": damage.position.0, "bytes": damage.bytes, "crc_ok": false,
        }),
        Item::Record(Record::Message { position, message }) => json!({
            "type": "message", "shard": shard, "position": position.0, "topic": message.topic(),
            "queue": message.queue_id().0, "offset": message.queue_offset().0,
            "keys": message.property(names::KEYS), "tags": message.property(names::TAGS),
            "message_id": message.property(names::UNIQ_KEY),
            "bytes": message.as_bytes().len(), "body_bytes": message.body().len(),
        }),
        Item::Record(Record::Metadata { position, kind, body, .. }) => json!({
            "type": "setting", "shard": shard, "position": position.0, "kind": kind, "name": records::name(*kind),
            "value": records::decode(*kind, body), "body_bytes": body.len(),
        }),
        Item::Record(Record::Gap { position, bytes, original_crc }) => json!({
            "type": "gap", "shard": shard, "position": position.0, "bytes": bytes, "original_crc": original_crc,
        }),
        Item::Unreadable(problem) => json!({ "type": "unreadable", "shard": shard, "problem": problem }),
    }
}

fn run_snapshot(dir: &Path, to: &Path, json: bool) -> Result<(), Failure> {
    let started = Instant::now();
    let copied = snapshot(dir, to)?;
    let took = started.elapsed();
    if json {
        let (linked, files, bytes) = (copied.linked, copied.copied, copied.bytes);
        print_json(&json!({
            "to": to.display().to_string(), "linked_files": linked, "copied_files": files, "copied_bytes": bytes,
            "seconds": took.as_secs_f64(),
        }))?;
    } else {
        print(format_args!(
            "{}: {} files linked, {} copied with {}, in {}; start it with ringmq-broker --data {0}",
            to.display(),
            copied.linked,
            copied.copied,
            format_bytes(copied.bytes),
            format_duration(took)
        ))?;
    }
    Ok(())
}

/// Shows nothing if standard error is no terminal.
fn progress_bar(data: &DataDir) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // Only the length of the bar: what cannot be listed is reported when it is read.
    let segments = (0..data.shards()).flat_map(|shard| data.store(shard).segments().unwrap_or_default());
    let bar = ProgressBar::new(segments.map(|(_, bytes)| bytes).sum());
    let template = "{spinner} {bar:30} {bytes} of at most {total_bytes}, {bytes_per_sec}, {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
