//! `crash`: what a broker keeps when it is killed, and when the power goes.
//!
//!     cargo run --release -p ringmq-tests --bin crash -- kill9 --cycles 50
//!     sudo … crash powercut --cycles 50 --fs ext4       needs root, loop devices, and python3 or perl
//!     sudo … crash selftest                             shows that the power cuts find a planted bug
//!     … crash storm --seconds 180 --consumers 20        consumers, not brokers, come, leave and crash
//!
//! Exit code 0: nothing is wrong, or (with a line that starts with `skipped:`) the machine lacks what it takes;
//! 1: a promise was broken; 2: the run could not be carried on; 130: Ctrl-C.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmq_tests::crash::Failure;
use ringmq_tests::crash::checker::Kind;
use ringmq_tests::crash::cycle::{Cycle, Fault, Settings, Totals, run};
use ringmq_tests::crash::disk::LoopDisk;
use ringmq_tests::crash::member::Membership;
use ringmq_tests::crash::storm;
use ringmq_tests::{TempDir, binaries};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Crashes a broker under load, again and again, and checks what is there afterwards.
#[derive(Parser)]
#[command(name = "crash")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Run(RunCommand),
    /// Start, end and kill consumers of one group at random while messages flow; the broker stays
    Storm(StormOptions),
    /// Be a consumer that tells what it is given (used by the others)
    #[command(hide = true)]
    Consumer(Membership),
}

/// Faults of the broker.
#[derive(Subcommand)]
enum RunCommand {
    /// Kill the process (-9). Shows that recovery is right; says nothing about durability, as the page cache stays
    Kill9(Common),
    /// Cut the power of a loop-mounted file system, then kill the process
    Powercut {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        disk: Disk,
        /// Start the broker with --flush async, and check as if it had promised to be sync: messages must be found lost
        #[arg(long)]
        planted_async: bool,
    },
    /// Show that the power cuts can find something: succeeds only if the planted bug is found within the cycles
    Selftest {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        disk: Disk,
    },
}

#[derive(Args)]
struct StormOptions {
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// So many at most, and at the beginning and the end
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(2..=200))]
    consumers: u16,
    /// The same seed plans the same changes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Messages a second
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// Consumers lock their queues and handle one message of a queue at a time; order is checked too
    #[arg(long)]
    orderly: bool,
    /// This program, as it is, instead of a broker built from the sources
    #[arg(long, value_name = "FILE")]
    broker: Option<PathBuf>,
    /// One line for each change
    #[arg(long)]
    verbose: bool,
}

#[derive(Args, Clone)]
struct Common {
    /// How many faults [default: 50; selftest: 20]
    #[arg(long)]
    cycles: Option<u32>,
    /// The same seed sends the same messages and plans the same faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 2)]
    shards: u16,
    /// Small, so that the log rolls over often; a segment has to hold the longest message, so 4MiB is too small
    #[arg(long, default_value = "8MiB")]
    segment_size: String,
    /// Start the broker with the same flags each time, not with drawn ones (--pad-blocks, --tail-memory)
    #[arg(long)]
    same_flags: bool,
    /// One more argument for the broker, like --broker-arg=--retention-size=64MiB; as often as wanted
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    broker_arg: Vec<String>,
    /// What these arguments make the broker delete from the beginning of its queues is not lost
    #[arg(long)]
    may_delete: bool,
    /// Keep consumers that handle their queues in order, and check that they did
    #[arg(long)]
    orderly: bool,
    /// A fault comes after at most this many acknowledged messages
    #[arg(long, default_value_t = 3000)]
    messages: u64,
    /// Crash this program, as it is, instead of a broker built from the sources
    #[arg(long, value_name = "FILE")]
    broker: Option<PathBuf>,
    /// One line for each cycle
    #[arg(long)]
    verbose: bool,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone)]
struct Disk {
    #[arg(long, value_enum, default_value = "ext4")]
    fs: FileSystem,
}

#[derive(ValueEnum, Clone, Copy)]
enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }
}

/// A whole run, as asked for.
struct Run {
    /// As the result names it.
    name: String,
    settings: Settings,
    disk: Option<FileSystem>,
    verbose: bool,
    json: bool,
    /// Violations are what the run is for.
    is_selftest: bool,
}

/// Of what is wrong, so much is shown.
const SHOWN: usize = 10;

/// Set by Ctrl-C and SIGTERM; the run then ends in order.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let (name, outcome) = match Arguments::parse().command {
        Command::Consumer(membership) => {
            ("consumer".to_owned(), membership.live().map(|()| ExitCode::SUCCESS))
        }
        Command::Storm(options) => (format!("storm, seed {}", options.seed), blow(options)),
        Command::Run(command) => {
            let run = Run::of(command);
            stop_on_signals();
            (format!("{}, seed {}", run.name, run.settings.seed), carry_out(&run))
        }
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("crash {name}: {}", failure.0);
        ExitCode::from(2)
    })
}

/// A storm, from the command line to its exit code.
fn blow(options: StormOptions) -> Result<ExitCode, Failure> {
    stop_on_signals();
    let temp = TempDir::new("storm");
    let settings = storm::Settings {
        broker: options.broker.unwrap_or_else(|| binaries::binary("ringmq-broker")),
        data: temp.path().join("data"),
        lasts: Duration::from_secs(options.seconds),
        consumers: options.consumers.into(),
        seed: options.seed,
        rate: options.rate,
        orderly: options.orderly,
        verbose: options.verbose,
    };
    let outcome = storm::run(&settings, &STOP)?;
    show(&outcome.wrong, SHOWN);
    let interrupted = if STOP.load(Ordering::Relaxed) { "interrupted: " } else { "" };
    println!("{interrupted}storm{}: {outcome}", if options.orderly { " in order" } else { "" });
    Ok(if outcome.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn show(wrong: &[String], count: usize) {
    for line in wrong.iter().take(count) {
        eprintln!("{line}");
    }
    if wrong.len() > count {
        eprintln!("… and {} more", wrong.len() - count);
    }
}

impl Run {
    fn of(command: RunCommand) -> Self {
        let plan = |name: String, common: Common, cycles, disk, is_planted, is_selftest| Run {
            name,
            settings: Settings {
                // Built now, before there is anything to clean up.
                broker: common.broker.unwrap_or_else(|| binaries::binary("ringmq-broker")),
                cycles: common.cycles.unwrap_or(cycles),
                seed: common.seed,
                shards: common.shards,
                segment_size: common.segment_size,
                flush: if is_planted { "async" } else { "sync" },
                messages: common.messages,
                stop_when_found: is_selftest,
                arguments: common.broker_arg,
                is_mixed: !common.same_flags,
                may_delete: common.may_delete,
                is_orderly: common.orderly,
            },
            disk,
            verbose: common.verbose,
            json: common.json,
            is_selftest,
        };
        match command {
            RunCommand::Kill9(common) => plan("kill9".to_owned(), common, 50, None, false, false),
            RunCommand::Powercut { common, disk, planted_async } => {
                let planted = if planted_async { " with a planted bug" } else { "" };
                let name = format!("powercut on {}{planted}", disk.fs.name());
                plan(name, common, 50, Some(disk.fs), planted_async, false)
            }
            RunCommand::Selftest { common, disk } => {
                plan(format!("selftest on {}", disk.fs.name()), common, 20, Some(disk.fs), true, true)
            }
        }
    }

    /// Room for the log, and for the segments that are zeroed ahead of it.
    fn disk_bytes(&self) -> u64 {
        let Settings { cycles, shards, messages, .. } = self.settings;
        // A message takes 7 KiB on average. The file is sparse, so too much costs nothing.
        (1 << 30) + u64::from(shards) * (512 << 20) + u64::from(cycles) * messages * (16 << 10)
    }
}

fn carry_out(run_: &Run) -> Result<ExitCode, Failure> {
    let temp = TempDir::new("crash");
    let mut fault = match run_.disk {
        None => Fault::Kill,
        Some(file_system) => match LoopDisk::create(temp.path(), file_system.name(), run_.disk_bytes()) {
            Ok(disk) => Fault::PowerCut(disk),
            Err(failure) => {
                println!("skipped: {}: {}", run_.name, failure.0);
                return Ok(ExitCode::SUCCESS);
            }
        },
    };
    let data = match &fault {
        Fault::Kill => temp.path().join("data"),
        Fault::PowerCut(disk) => disk.path().join("data"),
    };
    let started = Instant::now();
    let outcome = run(&run_.settings, &mut fault, data, &STOP, |cycle| report(run_, cycle));
    let is_finding = outcome.as_ref().map_or(true, |totals| totals.violations_in_all() > 0);
    if is_finding && run_.settings.flush == "sync" {
        eprintln!("what is left of the broker's data is kept in {}", temp.path().display());
        std::mem::forget(temp);
    }
    let totals = outcome?;
    show(&totals.disorder.iter().map(ToString::to_string).collect::<Vec<_>>(), SHOWN);
    if run_.json {
        println!("{}", json(run_, &totals, started));
    } else {
        println!("{}", summary(run_, &totals));
    }
    if totals.is_interrupted {
        return Ok(ExitCode::from(130));
    }
    let is_good =
        if run_.is_selftest { totals.count(Kind::Lost) > 0 } else { totals.violations_in_all() == 0 };
    if run_.is_selftest && !is_good {
        eprintln!("the planted bug was not found: the power cuts prove nothing on this machine");
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn report(run: &Run, cycle: &Cycle<'_>) {
    if run.verbose {
        eprintln!("{cycle}");
    }
    // What a self-test finds was planted.
    if !cycle.violations.is_empty() && (run.verbose || run.settings.flush == "sync") {
        for violation in cycle.violations.iter().take(SHOWN) {
            eprintln!("cycle {}, seed {}: {violation}", cycle.number, run.settings.seed);
        }
        if cycle.violations.len() > SHOWN {
            eprintln!("… and {} more", cycle.violations.len() - SHOWN);
        }
        eprintln!("the broker said when it started again:\n{}", cycle.broker);
    }
}

fn summary(run: &Run, totals: &Totals) -> String {
    let (p50, max) = totals.restart_ms();
    let main = [Kind::Lost, Kind::Duplicated, Kind::OutOfOrder, Kind::Phantom];
    let counted = Kind::ALL.iter().filter(|kind| main.contains(kind) || totals.count(**kind) > 0);
    let counted: Vec<String> =
        counted.map(|kind| format!("{} {}", totals.count(*kind), kind.name())).collect();
    let first = totals.first_violation.map(|cycle| format!(", first in cycle {cycle}")).unwrap_or_default();
    let deleted = if run.settings.may_delete {
        format!(", {} deleted as announced", totals.deleted)
    } else {
        String::new()
    };
    let in_order = totals.in_order.map_or(String::new(), |(handled, again)| {
        format!(", {handled} handled in order ({again} of them again)")
    });
    format!(
        "{}{}: {} cycles ({} with a start that was cut too), {} acknowledged, {}{first}, {} consumed{in_order}{deleted}; restart p50 {p50} ms, max {max} ms, the last over {} MiB of log",
        if totals.is_interrupted { "interrupted: " } else { "" },
        run.name,
        totals.cycles,
        totals.cut_starts,
        totals.load.acknowledged,
        counted.join(", "),
        totals.load.consumed,
        totals.log_bytes >> 20,
    )
}

fn json(run: &Run, totals: &Totals, started: Instant) -> serde_json::Value {
    let (p50, max) = totals.restart_ms();
    let violations: serde_json::Map<String, serde_json::Value> =
        Kind::ALL.iter().map(|kind| (kind.name().replace(' ', "_"), totals.count(*kind).into())).collect();
    serde_json::json!({
        "name": run.name,
        "seed": run.settings.seed,
        "shards": run.settings.shards,
        "flush": run.settings.flush,
        "segment_size": run.settings.segment_size,
        "cycles": totals.cycles,
        "cut_starts": totals.cut_starts,
        "attempted": totals.load.attempted,
        "acknowledged": totals.load.acknowledged,
        "acknowledged_bytes": totals.load.acknowledged_bytes,
        "consumed": totals.load.consumed,
        "handled_in_order": totals.in_order.map(|(handled, _)| handled),
        "handled_in_order_again": totals.in_order.map(|(_, again)| again),
        "commits_acknowledged": totals.load.commits,
        "topics_acknowledged": totals.load.topics,
        "stored": totals.stored,
        "deleted": totals.deleted,
        "violations": violations,
        "first_violation_in_cycle": totals.first_violation,
        "restart_ms_p50": p50 as u64,
        "restart_ms_max": max as u64,
        "log_bytes": totals.log_bytes,
        "unmount_retries": totals.unmount_retries,
        "seconds": started.elapsed().as_secs(),
        "is_interrupted": totals.is_interrupted,
    })
}

/// The first signal ends the run in order, the second one at once.
fn stop_on_signals() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return };
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("stopping after this cycle; once more to stop at once");
            }
        });
    });
}
