//! The load itself: threads, their connections, and what is measured (invariants P1 to P4 in `perf`).
//!
//! ```text
//!   main thread   connects nothing, measures nothing of a request: wakes at the start and the end of the measurement to
//!                 look at the processes, each second for the live line, and when a thread has finished
//!   each thread   a current-thread runtime; a task for each connection: issue ─▶ write ─▶ read ─▶ note answers
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::Frame;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::arguments::Common;
use super::calls::{connect, first_line};
use super::connection::Connection;
use super::process::{Usage, Used, Watched};
use super::report::LiveLine;
use super::tally::{Measured, Tally};

/// The requests of one connection.
pub(super) trait Work: Send + 'static {
    /// Whether requests in flight at the end of the run are of no interest.
    const ABANDON_AT_END: bool;

    /// How many frames there are; each may be in flight once.
    fn slots(&self) -> usize;

    /// The request to send next from this slot; its opaque is the number of the slot.
    fn frame(&self, slot: usize) -> &[u8];

    /// Messages that a request takes from `--count` when it is issued; 0 if they are taken as they arrive.
    fn charge(&self) -> u64;

    /// Takes note of an answer, a whole frame.
    fn answered(&mut self, slot: usize, code: ResponseCode, frame: &[u8]) -> Answer;
}

/// What an answer meant.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) messages: u64,
    /// Of bodies.
    pub(super) bytes: u64,
    pub(super) problem: Option<Problem>,
    /// The slot has nothing more to ask.
    pub(super) retired: bool,
}

/// Something that went wrong: what kind, counted, and the words of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) kind: String,
    pub(super) words: String,
}

impl Answer {
    pub(super) fn good(messages: u64, bytes: u64) -> Self {
        Self { messages, bytes, ..Self::default() }
    }

    /// An answer with a code that says no.
    pub(super) fn refused(code: ResponseCode, frame: &[u8]) -> Self {
        let remark = Frame::decode(frame).ok().and_then(|frame| frame.header.remark);
        let words = remark.as_deref().map_or("", first_line).to_string();
        Self { problem: Some(Problem { kind: code.to_string(), words }), ..Self::default() }
    }
}

/// One connection to be made, and its work.
pub(super) struct Job<W> {
    pub(super) address: String,
    pub(super) work: W,
    pub(super) in_flight: usize,
    /// `None`: as fast as answers come.
    pub(super) pace: Option<Pace>,
}

/// When the requests of a connection are due: those of all connections, taken in turn, at even distances.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// The number of this connection among all.
    pub(super) connection: u64,
    pub(super) connections: u64,
    /// Over all connections: so many requests in so many seconds.
    pub(super) requests: u64,
    pub(super) seconds: u64,
}

impl Pace {
    /// When request `number` of this connection is due, after the start of the run.
    pub(super) fn due(&self, number: u64) -> Duration {
        // Reckoned from the start each time, so that nothing adds up.
        let before = u128::from(number) * u128::from(self.connections) + u128::from(self.connection);
        let ns = before * 1_000_000_000 * u128::from(self.seconds) / u128::from(self.requests.max(1));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// What a run needs besides its jobs.
pub(super) struct Plan<'a> {
    pub(super) common: &'a Common,
    pub(super) warmup: Duration,
    /// `None` if the messages decide.
    pub(super) measured: Option<Duration>,
    pub(super) processes: Vec<Watched>,
    /// Print the live line.
    pub(super) live: bool,
}

/// What was measured.
pub(super) struct Totals {
    pub(super) measured: Measured,
    /// Kind → count, of the whole run.
    pub(super) errors: BTreeMap<String, u64>,
    /// Kind → the words of the first.
    pub(super) words: BTreeMap<String, String>,
    pub(super) elapsed: Duration,
    /// Between the looks at the processes.
    pub(super) messages_watched: u64,
    pub(super) brokers: Vec<Used>,
    pub(super) generator: Option<Used>,
}

/// From when to when, on the clock of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) begin: Instant,
    /// Start of the measurement.
    pub(super) start: Instant,
    pub(super) end: Option<Instant>,
}

/// What the threads share while the load runs.
pub(super) struct Shared {
    /// Messages of `--count` that are left.
    budget: Option<AtomicU64>,
    /// Of the whole run.
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl Shared {
    pub(super) fn budget_is_spent(&self) -> bool {
        self.budget.as_ref().is_some_and(|left| left.load(Ordering::Relaxed) == 0)
    }

    /// Takes messages from the budget, fewer if fewer are left; `false` if none are left.
    pub(super) fn take(&self, messages: u64) -> bool {
        let Some(left) = &self.budget else { return true };
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left > 0).then(|| left.saturating_sub(messages))
        })
        .is_ok()
    }
}

/// A moment at which the processes were looked at.
struct Look {
    messages: u64,
    brokers: Vec<Option<Usage>>,
    generator: Option<Usage>,
}

/// Connects, runs the load, and gives what was measured.
///
/// # Errors
/// If a connection cannot be made or a thread not be started. What goes wrong later is counted in the totals.
pub(super) fn run<W: Work>(jobs: Vec<Job<W>>, plan: Plan<'_>) -> Result<Totals, String> {
    let common = plan.common;
    let thread_count = (common.threads as usize).min(jobs.len()).max(1);
    let mut shares: Vec<Vec<(std::net::TcpStream, Job<W>)>> = Vec::new();
    shares.resize_with(thread_count, Vec::new);
    for (number, job) in jobs.into_iter().enumerate() {
        let stream = connect(&job.address)?;
        shares[number % thread_count].push((stream, job));
    }

    let shared = Arc::new(Shared {
        budget: common.count.map(AtomicU64::new),
        messages: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    });
    let this = Watched::this();
    let look = || Look {
        messages: shared.messages.load(Ordering::Relaxed),
        brokers: plan.processes.iter().map(Watched::usage).collect(),
        generator: this.usage(),
    };

    let warmup = plan.warmup;
    let mut first_look = warmup.is_zero().then(look);
    let begin = Instant::now();
    let start = begin + warmup;
    let schedule = Schedule { begin, start, end: plan.measured.map(|measured| start + measured) };
    let series = common.plot.is_some();
    let (finished, tallies) = mpsc::channel();
    for (number, share) in shares.into_iter().enumerate() {
        let (shared, finished) = (Arc::clone(&shared), finished.clone());
        std::thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                // The main thread waits for as many tallies as there are threads.
                let _ = finished.send(thread(share, schedule, &shared, series));
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    drop(finished);

    let mut live = plan.live.then(|| LiveLine::new(begin, start));
    let mut last_look = None;
    let mut tally = Tally::new(series);
    let mut running = thread_count;
    while running > 0 {
        let now = Instant::now();
        if first_look.is_none() && now >= start {
            first_look = Some(look());
        }
        if last_look.is_none() && schedule.end.is_some_and(|end| now >= end) {
            last_look = Some(look());
        }
        if let Some(live) = &mut live {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            live.show(now, load(&shared.messages), load(&shared.bytes), load(&shared.errors));
        }
        let second = begin + Duration::from_secs((now - begin).as_secs() + 1);
        let wake = [Some(start), schedule.end, Some(second)]
            .into_iter()
            .flatten()
            .filter(|moment| *moment > now)
            .min();
        match tallies.recv_timeout(wake.unwrap_or(second) - now) {
            Ok(share) => {
                tally.add(share?);
                running -= 1;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err("a thread of the load has died".to_string());
            }
        }
    }
    drop(live);
    let over = Instant::now();
    let last_look = last_look.unwrap_or_else(look);

    let end = match schedule.end {
        Some(end) => end.min(over),
        None => tally.measured.last_answer.unwrap_or(over),
    };
    let (mut brokers, mut generator, mut messages_watched) = (Vec::new(), None, 0);
    if let Some(first) = first_look {
        messages_watched = last_look.messages - first.messages;
        for ((process, first), last) in plan.processes.iter().zip(&first.brokers).zip(&last_look.brokers) {
            brokers.extend(first.as_ref().zip(last.as_ref()).map(|(first, last)| process.used(first, last)));
        }
        generator = first.generator.zip(last_look.generator).map(|(first, last)| this.used(&first, &last));
    }
    if brokers.len() < plan.processes.len() {
        let words = "its use of CPU is not known".to_string();
        tally.problem(Problem { kind: "a broker process has ended".to_string(), words }, 1);
    }
    Ok(Totals {
        measured: tally.measured,
        errors: tally.errors,
        words: tally.words,
        elapsed: end.saturating_duration_since(start),
        messages_watched,
        brokers,
        generator,
    })
}

fn thread<W: Work>(
    share: Vec<(std::net::TcpStream, Job<W>)>,
    schedule: Schedule,
    shared: &Arc<Shared>,
    series: bool,
) -> Result<Tally, String> {
    let cannot = |error: io::Error| format!("cannot start: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let tally = Arc::new(Mutex::new(Tally::new(series)));
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        for (stream, job) in share {
            stream.set_nonblocking(true).map_err(cannot)?;
            let stream = TcpStream::from_std(stream).map_err(cannot)?;
            let (shared, tally) = (Arc::clone(shared), Arc::clone(&tally));
            connections.spawn(Connection::new(stream, job, schedule, shared, tally).run());
        }
        while let Some(connection) = connections.join_next().await {
            connection.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    })?;
    let tally = Arc::into_inner(tally).ok_or("a connection outlived its thread")?;
    tally.into_inner().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
