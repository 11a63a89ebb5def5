//! The cycles of a run: start ─▶ survey ─▶ check ─▶ load ─▶ fault.

use super::Failure;
use super::checker::{Kind, Violation, check};
use super::disk::LoopDisk;
use super::history::History;
use super::load::{self, Figures, Gate};
use super::order::Orderly;
use super::process::{Process, Spec};
use super::survey::survey;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A cycle that has not reached its number of messages by then is cut where it is.
const CYCLE_MAX: Duration = Duration::from_secs(60);
/// The fault comes up to this much after the message that it was to come after.
const JITTER_MICROS: u64 = 10_000;
/// One start in so many is itself cut, at a random moment, before the start that is surveyed.
const CUT_STARTS: u32 = 4;

/// What befalls the broker.
pub enum Fault {
    Kill,
    PowerCut(LoopDisk),
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program.
    pub broker: PathBuf,
    pub cycles: u32,
    pub seed: u64,
    pub shards: u16,
    pub segment_size: String,
    /// `sync` or `async`.
    pub flush: &'static str,
    /// A fault comes after at most this many acknowledged messages.
    pub messages: u64,
    /// Ends the run at the first cycle with a violation.
    pub stop_when_found: bool,
    /// For each start of the broker.
    pub arguments: Vec<String>,
    /// Each start has flags of its own besides, drawn.
    pub is_mixed: bool,
    /// Messages may be deleted from the beginning of queues.
    pub may_delete: bool,
    /// Consumers that lock their queues are there all the time, and their order is checked at the end.
    pub is_orderly: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Cycles that were checked.
    pub cycles: u32,
    /// Starts that were cut before they were complete.
    pub cut_starts: u32,
    pub load: Figures,
    pub violations: BTreeMap<Kind, u64>,
    /// Number of the first cycle with a violation, from 1.
    pub first_violation: Option<u32>,
    /// From the start of the process to the banner, of each start that had a log to read.
    pub restarts: Vec<Duration>,
    /// What the last start had to read.
    pub log_bytes: u64,
    /// Messages in the logs at the end.
    pub stored: u64,
    /// Acknowledged messages that were deleted in due course.
    pub deleted: u64,
    pub unmount_retries: u64,
    /// Messages that orderly consumers handled, and how many of these times it was not for the first time.
    pub in_order: Option<(usize, usize)>,
    /// What was wrong with that.
    pub disorder: Vec<Violation>,
    /// Ended by Ctrl-C.
    pub is_interrupted: bool,
}

impl Totals {
    pub fn violations_in_all(&self) -> u64 {
        self.violations.values().sum()
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.violations.get(&kind).copied().unwrap_or(0)
    }

    /// Median and maximum of the restart times, in milliseconds.
    pub fn restart_ms(&self) -> (u128, u128) {
        let mut sorted = self.restarts.clone();
        sorted.sort_unstable();
        let ms = |at: usize| sorted.get(at).map_or(0, Duration::as_millis);
        (ms(sorted.len() / 2), ms(sorted.len().saturating_sub(1)))
    }
}

/// What one cycle came to, for those who watch.
pub struct Cycle<'a> {
    pub number: u32,
    pub load: Figures,
    pub was_start_cut: bool,
    pub restart: Duration,
    pub log_bytes: u64,
    pub stored: u64,
    pub violations: &'a [Violation],
    /// What the broker said when it started again, if something is wrong.
    pub broker: &'a str,
}

impl fmt::Display for Cycle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cycle {}: {} attempted, {} acknowledged, {} consumed, {} commits, {} topics; {}restart {} ms over {:.1} MiB, {} messages stored",
            self.number,
            self.load.attempted,
            self.load.acknowledged,
            self.load.consumed,
            self.load.commits,
            self.load.topics,
            if self.was_start_cut { "one start cut, " } else { "" },
            self.restart.as_millis(),
            self.log_bytes as f64 / f64::from(1 << 20),
            self.stored,
        )?;
        match self.violations.len() {
            0 => Ok(()),
            wrong => write!(f, "; {wrong} VIOLATIONS"),
        }
    }
}

/// Runs the cycles on `data`, which must not exist yet or be empty.
pub fn run(
    settings: &Settings,
    fault: &mut Fault,
    data: PathBuf,
    stop: &AtomicBool,
    mut watch: impl FnMut(&Cycle<'_>),
) -> Result<Totals, Failure> {
    let mut spec = Spec::new(
        settings.broker.clone(),
        data,
        settings.shards,
        settings.segment_size.clone(),
        settings.flush,
    );
    spec.arguments.clone_from(&settings.arguments);
    let (addresses, name_server_port) = (spec.addresses(), spec.name_server_port);
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut history = History::default();
    let mut totals = Totals::default();

    let mut spec_of_start = |rng: &mut StdRng| {
        if settings.is_mixed {
            let pad = ["true", "false"][usize::from(rng.random_ratio(3, 4))];
            let tail = ["16MiB", "64MiB"][usize::from(rng.random_ratio(1, 2))];
            spec.drawn = ["--pad-blocks", pad, "--tail-memory", tail].map(str::to_owned).to_vec();
        }
        spec.clone()
    };
    let mut process = Process::spawn(&spec_of_start(&mut rng))?;
    process.wait_ready()?;
    load::make_load_topics(&addresses, &mut history)?;
    let orderly =
        if settings.is_orderly { Some(Orderly::start(name_server_port, &addresses)?) } else { None };
    for number in 1..=settings.cycles {
        let switch = Switch::arm(fault)?;
        let after = rng.random_range(0..=settings.messages);
        let jitter = Duration::from_micros(rng.random_range(0..=JITTER_MICROS));
        let load = load::start(&addresses, number, settings.seed, &history);
        let deadline = Instant::now() + CYCLE_MAX;
        while load.gate.acknowledged() < after && Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
            if process.has_ended() {
                return Err(Failure(format!(
                    "cycle {number}: the broker ended by itself\n{}",
                    process.kill()
                )));
            }
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(jitter);
        switch.strike(&mut process, Some(&load.gate))?;
        let figures = load.join(&mut history).map_err(Failure::during(format!("cycle {number}, load")))?;
        fault.repair()?;
        if stop.load(Ordering::Relaxed) {
            totals.is_interrupted = true;
            break;
        }

        let was_start_cut = rng.random_ratio(1, CUT_STARTS);
        let cut_after = rng.random_range(0.0..1.5);
        if was_start_cut {
            let usual = totals.restarts.last().copied().unwrap_or(Duration::from_millis(100));
            let switch = Switch::arm(fault)?;
            process = Process::spawn(&spec_of_start(&mut rng))?;
            thread::sleep(usual.mul_f64(cut_after));
            switch.strike(&mut process, None)?;
            fault.repair()?;
            totals.cut_starts += 1;
        }
        process = Process::spawn(&spec_of_start(&mut rng))?;
        let restart = process.wait_ready().map_err(Failure::during(format!("cycle {number}, restart")))?;
        let survey = survey(&addresses).map_err(|failure| {
            Failure(format!("cycle {number}, survey: {}\n{}", failure.0, process.kill()))
        })?;
        if settings.may_delete {
            totals.deleted += history.forget_deleted(&survey);
        }
        let violations = check(&history, &survey);
        history.settle(&survey);

        totals.cycles = number;
        totals.load.add(figures);
        totals.restarts.push(restart);
        totals.log_bytes = survey.log_bytes;
        totals.stored = survey.queues.values().map(|queue| queue.messages.len() as u64).sum();
        for violation in &violations {
            *totals.violations.entry(violation.kind).or_default() += 1;
            totals.first_violation.get_or_insert(number);
        }
        let must_end = settings.stop_when_found && !violations.is_empty();
        let broker = if violations.is_empty() { String::new() } else { process.said() };
        watch(&Cycle {
            number,
            load: figures,
            was_start_cut,
            restart,
            log_bytes: totals.log_bytes,
            stored: totals.stored,
            violations: &violations,
            broker: &broker,
        });
        if must_end {
            break;
        }
    }
    if let Some(orderly) = orderly
        && !totals.is_interrupted
    {
        let (figures, violations) = orderly.finish()?;
        totals.in_order = Some(figures);
        for violation in &violations {
            *totals.violations.entry(violation.kind).or_default() += 1;
            totals.first_violation.get_or_insert(totals.cycles);
        }
        totals.disorder = violations;
    }
    process.kill();
    if let Fault::PowerCut(disk) = fault {
        totals.unmount_retries = disk.unmount_retries;
    }
    Ok(totals)
}

/// A fault that is ready to happen at once.
enum Switch {
    Kill,
    PowerCut(super::disk::Cutter),
}

impl Switch {
    fn arm(fault: &Fault) -> Result<Self, Failure> {
        match fault {
            Fault::Kill => Ok(Self::Kill),
            Fault::PowerCut(disk) => disk.arm().map(Self::PowerCut),
        }
    }

    fn strike(self, process: &mut Process, gate: Option<&Gate>) -> Result<(), Failure> {
        if let Self::PowerCut(cutter) = self {
            if let Some(gate) = gate {
                gate.close();
            }
            cutter.cut()?;
        }
        process.kill();
        Ok(())
    }
}

impl Fault {
    /// What has to be done before the next start.
    fn repair(&mut self) -> Result<(), Failure> {
        match self {
            Fault::Kill => Ok(()),
            Fault::PowerCut(disk) => disk.power_on(),
        }
    }
}

impl Figures {
    fn add(&mut self, other: Figures) {
        self.attempted += other.attempted;
        self.acknowledged += other.acknowledged;
        self.acknowledged_bytes += other.acknowledged_bytes;
        self.consumed += other.consumed;
        self.commits += other.commits;
        self.topics += other.topics;
    }
}
