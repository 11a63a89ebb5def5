//! The load itself: threads, their connections, and what is measured (invariants P1 to P4 in `perf`).
//!
//! ```text
//!   main thread   connects nothing, measures nothing of a request: wakes at the start and the end of the measurement to
//!                 look at the processes, each second for the live line, and when a thread has finished
//!   each thread   a current-thread runtime; a task for each connection: issue ─▶ write ─▶ read ─▶ note answers
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::Frame;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::calls::{connect, first_line};
use super::connection::{Connection, DELIVERY_MAX};
use super::process::{Usage, Used, Watched};
use super::report::LiveLine;
use super::tally::{Measured, Part, Tally};

/// The requests of one connection.
pub(super) trait Work: Send {
    fn part(&self) -> Part;

    /// How many frames there are; each may be in flight once.
    fn slots(&self) -> usize;

    /// The request to send next from this slot; its opaque is the number of the slot.
    fn frame(&self, slot: usize) -> &[u8];

    /// Messages that a request takes from `--count` when it is issued; 0 if they are taken as they arrive.
    fn charge(&self) -> u64;

    /// The request of this slot is about to be sent. It counts as issued so long after the begin of the run.
    fn on_issue(&mut self, _slot: usize, _at: Duration) {}

    /// Takes note of an answer, a whole frame.
    fn answered(&mut self, slot: usize, code: ResponseCode, frame: &[u8]) -> Answer;

    /// Of the answer noted last: the messages that say when they were sent in this run.
    fn deliveries(&self) -> &[Delivery] {
        &[]
    }
}

/// Messages that were sent at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// After the begin of the run.
    pub(super) sent: Duration,
    pub(super) messages: u64,
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
pub(super) struct Job {
    pub(super) address: String,
    pub(super) work: Box<dyn Work>,
    pub(super) in_flight: usize,
    /// `None`: as fast as answers come.
    pub(super) pace: Option<Pace>,
    pub(super) until: Until,
    /// Does nothing before the measurement starts.
    pub(super) skips_warmup: bool,
}

/// When a connection has nothing more to do, if its work does not say so before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// The time is over, or `--count` is spent.
    End,
    /// Every message that was acknowledged in this run was delivered as often as it has to be.
    Delivered,
}

impl Job {
    /// As fast as answers come, to the end of the run.
    pub(super) fn new(address: String, work: impl Work + 'static, in_flight: usize) -> Self {
        let (work, pace, until) = (Box::new(work), None, Until::End);
        Self { address, work, in_flight, pace, until, skips_warmup: false }
    }
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
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) threads: u32,
    pub(super) warmup: Duration,
    /// `None` if the messages decide.
    pub(super) measured: Option<Duration>,
    pub(super) count: Option<u64>,
    /// The run ends when all that belongs to this part is done.
    pub(super) ends_with: Option<Part>,
    /// How often each message has to be delivered; 0 if nobody looks.
    pub(super) copies: u64,
    pub(super) processes: &'a [Watched],
    /// Note latencies also by time.
    pub(super) series: bool,
    /// What the live line calls the measurement; `None`: there is no such line.
    pub(super) live: Option<&'static str>,
}

/// What was measured.
pub(super) struct Totals {
    /// Those that have connections. The first is what the command is about.
    pub(super) parts: Vec<PartTotals>,
    /// Kind → count, of the whole run.
    pub(super) errors: BTreeMap<String, u64>,
    /// Kind → the words of the first.
    pub(super) words: BTreeMap<String, String>,
    /// Sent and read between the looks at the processes.
    pub(super) messages_watched: u64,
    pub(super) brokers: Vec<Used>,
    pub(super) generator: Option<Used>,
}

pub(super) struct PartTotals {
    pub(super) name: &'static str,
    pub(super) connections: usize,
    /// Messages that were there to be read, if that is known.
    pub(super) available: Option<u64>,
    pub(super) elapsed: Duration,
    pub(super) measured: Measured,
}

/// From when to when, on the clock of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) begin: Instant,
    /// Start of the measurement.
    pub(super) start: Instant,
}

/// What the threads share while the load runs.
pub(super) struct Shared {
    schedule: Schedule,
    /// Of the run, in ns after its begin; `u64::MAX` as long as nobody knows.
    end_ns: AtomicU64,
    ends_with: Option<Part>,
    copies: u64,
    /// Messages of `--count` that are left.
    budget: Option<AtomicU64>,
    send: Progress,
    read: Progress,
    /// Messages of this run that were read.
    pub(super) delivered: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// How far a part of the load is.
#[derive(Default)]
pub(super) struct Progress {
    /// Connections that have not finished.
    running: AtomicUsize,
    /// Acknowledged or read in the whole run.
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl Shared {
    pub(super) fn part(&self, part: Part) -> &Progress {
        match part {
            Part::Send => &self.send,
            Part::Read => &self.read,
        }
    }

    /// Sent and read so far.
    pub(super) fn messages(&self) -> u64 {
        self.send.messages.load(Ordering::Relaxed) + self.read.messages.load(Ordering::Relaxed)
    }

    pub(super) fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// When the run ends, once that is known.
    pub(super) fn end(&self) -> Option<Instant> {
        let ns = self.end_ns.load(Ordering::Relaxed);
        (ns < u64::MAX).then(|| self.schedule.begin + Duration::from_nanos(ns))
    }

    /// A connection has done its part.
    pub(super) fn finish(&self, part: Part) {
        // Release: who sees it finished sees what it has counted.
        let others = self.part(part).running.fetch_sub(1, Ordering::AcqRel) - 1;
        if others == 0 && self.ends_with == Some(part) {
            self.end_ns.fetch_min(nanos(self.schedule.begin.elapsed()), Ordering::Relaxed);
        }
    }

    /// How many messages have to be delivered in all, once that is known.
    pub(super) fn to_be_delivered(&self) -> Option<u64> {
        let is_known = self.send.running.load(Ordering::Acquire) == 0;
        is_known.then(|| self.send.messages.load(Ordering::Relaxed) * self.copies)
    }

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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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
pub(super) fn run(jobs: Vec<Job>, plan: Plan<'_>) -> Result<Totals, String> {
    let thread_count = (plan.threads as usize).min(jobs.len()).max(1);
    let mut shares: Vec<Vec<(std::net::TcpStream, Job)>> = Vec::new();
    shares.resize_with(thread_count, Vec::new);
    let (mut senders, mut readers) = (0, 0);
    for (number, job) in jobs.into_iter().enumerate() {
        match job.work.part() {
            Part::Send => senders += 1,
            Part::Read => readers += 1,
        }
        let stream = connect(&job.address)?;
        shares[number % thread_count].push((stream, job));
    }

    let this = Watched::this();
    let look = |shared: Option<&Shared>| Look {
        messages: shared.map_or(0, Shared::messages),
        brokers: plan.processes.iter().map(Watched::usage).collect(),
        generator: this.usage(),
    };
    let mut first_look = plan.warmup.is_zero().then(|| look(None));
    let begin = Instant::now();
    let start = begin + plan.warmup;
    let end = plan.measured.map(|measured| start + measured);
    let shared = Arc::new(Shared {
        schedule: Schedule { begin, start },
        end_ns: AtomicU64::new(end.map_or(u64::MAX, |end| nanos(end - begin))),
        ends_with: plan.ends_with,
        copies: plan.copies,
        budget: plan.count.map(AtomicU64::new),
        send: Progress { running: AtomicUsize::new(senders), ..Progress::default() },
        read: Progress { running: AtomicUsize::new(readers), ..Progress::default() },
        delivered: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    });
    let (finished, tallies) = mpsc::channel();
    for (number, share) in shares.into_iter().enumerate() {
        let (shared, finished) = (Arc::clone(&shared), finished.clone());
        std::thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                // The main thread waits for as many tallies as there are threads.
                let _ = finished.send(thread(share, &shared, plan.series));
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    drop(finished);

    let mut live = plan.live.map(|name| LiveLine::new(begin, start, name));
    let mut last_look = None;
    let mut tally = Tally::new(plan.series);
    let mut running = thread_count;
    while running > 0 {
        let now = Instant::now();
        if first_look.is_none() && now >= start {
            first_look = Some(look(Some(&shared)));
        }
        if last_look.is_none() && end.is_some_and(|end| now >= end) {
            last_look = Some(look(Some(&shared)));
        }
        if let Some(live) = &mut live {
            live.show(now, &shared);
        }
        let second = begin + Duration::from_secs((now - begin).as_secs() + 1);
        let wake =
            [Some(start), end, Some(second)].into_iter().flatten().filter(|moment| *moment > now).min();
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
    let last_look = last_look.unwrap_or_else(|| look(Some(&shared)));

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
    let delivered = shared.delivered.load(Ordering::Relaxed);
    let missing = shared.to_be_delivered().unwrap_or(0).saturating_sub(delivered);
    if missing > 0 {
        let words = format!("{delivered} were delivered before {} s without any", DELIVERY_MAX.as_secs());
        tally.problem(Problem { kind: "not delivered".to_string(), words }, missing);
    }
    let Tally { errors, words, .. } = &tally;
    let (errors, words) = (errors.clone(), words.clone());
    let part = |(part, measured): (Part, Measured)| {
        let end = shared.end().map(|end| end.min(over)).or(measured.last_answer).unwrap_or(over);
        let (name, connections) = match part {
            Part::Send => ("produce", senders),
            Part::Read => ("consume", readers),
        };
        let elapsed = end.saturating_duration_since(start);
        (connections > 0).then_some(PartTotals { name, connections, available: None, elapsed, measured })
    };
    let parts = tally.into_parts().into_iter().filter_map(part).collect();
    Ok(Totals { parts, errors, words, messages_watched, brokers, generator })
}

fn thread(
    share: Vec<(std::net::TcpStream, Job)>,
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
            connections.spawn(Connection::new(stream, job, shared, tally).run());
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
