//! The load itself: threads, their connections, and what is measured (invariants P1 to P4 in `perf`).
//!
//! ```text
//!   main thread   connects nothing, measures nothing of a request: wakes at the start and the end of the measurement to
//!                 look at the processes, each second for the live line, and when a thread has finished
//!   each thread   a current-thread runtime; a task for each connection: issue ─▶ write ─▶ read ─▶ note answers
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::{FLAG_RESPONSE, FRAME_BYTES_MAX, Frame, frame_len};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::arguments::Common;
use super::calls::{connect, first_line};
use super::process::{Usage, Used, Watched};
use super::report::LiveLine;

/// How long a connection may have requests in flight without any answer. Longer than brokers hold a pull.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How often a connection that waits looks whether the run is over.
const TICK: Duration = Duration::from_millis(50);
/// Timers of the runtime are precise to 1 ms, so the last of the wait for a paced request is spent polling.
const SPIN: Duration = Duration::from_millis(2);
/// Latencies above are noted as this, in ns.
const LATENCY_MAX_NS: u64 = 100_000_000_000;
const RECEIVE_BYTES: usize = 256 * 1024;
/// Frames given to the kernel at a time.
const GATHER_MAX: usize = 64;

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
    fn due(&self, number: u64) -> Duration {
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
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) requests: u64,
    /// In ns, from issue (or from when it was due) to the answer; refused ones too.
    pub(super) latency: Histogram<u64>,
    /// Of the whole run, warm-up too: a run with errors has measured something else.
    pub(super) errors: BTreeMap<String, u64>,
    /// The words of the first error of each kind.
    pub(super) words: BTreeMap<String, String>,
    pub(super) elapsed: Duration,
    /// Between the looks at the processes.
    pub(super) messages_watched: u64,
    pub(super) brokers: Vec<Used>,
    pub(super) generator: Option<Used>,
}

/// From when to when, on the clock of this process.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    begin: Instant,
    /// Start of the measurement.
    start: Instant,
    end: Option<Instant>,
}

/// What the threads share while the load runs.
struct Shared {
    /// Messages of `--count` that are left.
    budget: Option<AtomicU64>,
    /// Of the whole run.
    messages: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Shared {
    fn budget_is_spent(&self) -> bool {
        self.budget.as_ref().is_some_and(|left| left.load(Ordering::Relaxed) == 0)
    }

    /// Takes messages from the budget, fewer if fewer are left; `false` if none are left.
    fn take(&self, messages: u64) -> bool {
        let Some(left) = &self.budget else { return true };
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left > 0).then(|| left.saturating_sub(messages))
        })
        .is_ok()
    }
}

/// What one thread measured.
struct Tally {
    messages: u64,
    bytes: u64,
    requests: u64,
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    words: BTreeMap<String, String>,
    last_answer: Option<Instant>,
}

impl Tally {
    fn new() -> Self {
        // Three digits from 1 ns to the maximum are always a valid histogram.
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("bounds that are fixed");
        Self {
            messages: 0,
            bytes: 0,
            requests: 0,
            latency,
            errors: BTreeMap::new(),
            words: BTreeMap::new(),
            last_answer: None,
        }
    }

    fn problem(&mut self, problem: Problem, count: u64) {
        *self.errors.entry(problem.kind.clone()).or_default() += count;
        self.words.entry(problem.kind).or_insert(problem.words);
    }

    fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.requests += other.requests;
        // Both have the same bounds.
        self.latency.add(&other.latency).expect("histograms of the same bounds");
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        for (kind, words) in other.words {
            self.words.entry(kind).or_insert(words);
        }
        self.last_answer = self.last_answer.max(other.last_answer);
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
    let (finished, tallies) = mpsc::channel();
    for (number, share) in shares.into_iter().enumerate() {
        let (shared, finished) = (Arc::clone(&shared), finished.clone());
        std::thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                // The main thread waits for as many tallies as there are threads.
                let _ = finished.send(thread(share, schedule, &shared));
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    drop(finished);

    let mut live = plan.live.then(|| LiveLine::new(begin, start));
    let mut last_look = None;
    let mut tally = Tally::new();
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
        None => tally.last_answer.unwrap_or(over),
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
        messages: tally.messages,
        bytes: tally.bytes,
        requests: tally.requests,
        latency: tally.latency,
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
) -> Result<Tally, String> {
    let cannot = |error: io::Error| format!("cannot start: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        for (stream, job) in share {
            stream.set_nonblocking(true).map_err(cannot)?;
            let stream = TcpStream::from_std(stream).map_err(cannot)?;
            connections.spawn(Connection::new(stream, job, schedule, Arc::clone(shared)).run());
        }
        let mut tally = Tally::new();
        while let Some(connection) = connections.join_next().await {
            tally.add(connection.map_err(|error| error.to_string())?);
        }
        Ok(tally)
    })
}

struct Connection<W> {
    stream: TcpStream,
    job: Job<W>,
    schedule: Schedule,
    shared: Arc<Shared>,
    /// By slot: since when its request is in flight.
    issued: Vec<Option<Instant>>,
    in_flight: usize,
    /// Slots to be used next, those that have waited longest first.
    free: VecDeque<usize>,
    /// Slots whose frames are to be written; of the first, `written` bytes are.
    unwritten: VecDeque<usize>,
    written: usize,
    /// Requests due so far, if paced.
    due: u64,
    received: Vec<u8>,
    received_len: usize,
    last_progress: Instant,
    timer: Pin<Box<Sleep>>,
    tally: Tally,
}

impl<W: Work> Connection<W> {
    fn new(stream: TcpStream, job: Job<W>, schedule: Schedule, shared: Arc<Shared>) -> Self {
        let slots = job.work.slots();
        Self {
            stream,
            job,
            schedule,
            shared,
            issued: vec![None; slots],
            in_flight: 0,
            free: (0..slots).collect(),
            unwritten: VecDeque::new(),
            written: 0,
            due: 0,
            received: vec![0; RECEIVE_BYTES],
            received_len: 0,
            last_progress: Instant::now(),
            timer: Box::pin(tokio::time::sleep(TICK)),
            tally: Tally::new(),
        }
    }

    /// Runs to the end of the load, or of the connection.
    async fn run(mut self) -> Tally {
        if let Err(problem) = self.load().await {
            // What was in flight was not acknowledged.
            let lost = self.in_flight.max(1) as u64;
            self.shared.errors.fetch_add(lost, Ordering::Relaxed);
            self.tally.problem(problem, lost);
        }
        self.tally
    }

    async fn load(&mut self) -> Result<(), Problem> {
        loop {
            let now = Instant::now();
            let next_due = self.issue(now);
            let over = self.is_over(now);
            if over && (self.in_flight == 0 || W::ABANDON_AT_END) {
                return Ok(());
            }
            if self.in_flight > 0 && now.saturating_duration_since(self.last_progress) > STALL_MAX {
                let words = format!("{} did not answer for {} s", self.job.address, STALL_MAX.as_secs());
                return Err(Problem { kind: "no answer".to_string(), words });
            }
            let pause = match next_due {
                Some(due) if due <= now + SPIN => None,
                Some(due) => Some((due - SPIN).min(now + TICK)),
                None => Some(now + TICK),
            };
            let received = self.exchange(pause).await.map_err(|error| self.lost(&error))?;
            if received {
                self.take_answers()?;
            } else if pause.is_none() {
                tokio::task::yield_now().await;
            }
        }
    }

    fn lost(&self, error: &io::Error) -> Problem {
        Problem { kind: "connection lost".to_string(), words: format!("{}: {error}", self.job.address) }
    }

    /// Whether nothing more is to be issued, ever.
    fn is_over(&self, now: Instant) -> bool {
        self.schedule.end.is_some_and(|end| now >= end && self.due_at().is_none_or(|due| due >= end))
            || self.shared.budget_is_spent()
            || (self.free.is_empty() && self.in_flight == 0)
    }

    /// When the next request is due, if they are paced.
    fn due_at(&self) -> Option<Instant> {
        let pace = self.job.pace.as_ref()?;
        Some(self.schedule.begin + pace.due(self.due))
    }

    /// Issues what may be issued now. Gives when the next is due, if that is what it waits for.
    fn issue(&mut self, now: Instant) -> Option<Instant> {
        while self.in_flight < self.job.in_flight {
            let Some(&slot) = self.free.front() else { break };
            let due = self.due_at();
            let issued = match due {
                Some(due) if due > now => return Some(due),
                Some(due) => due,
                None => now,
            };
            if self.schedule.end.is_some_and(|end| issued >= end) {
                break;
            }
            let is_measured = issued >= self.schedule.start;
            if is_measured && !self.shared.take(self.job.work.charge()) {
                break;
            }
            if self.in_flight == 0 {
                self.last_progress = now;
            }
            self.free.pop_front();
            self.issued[slot] = Some(issued);
            self.in_flight += 1;
            self.due += 1;
            self.unwritten.push_back(slot);
        }
        None
    }

    /// Writes what there is to write and waits until something was received, which it says; or until `pause`, or not
    /// at all.
    async fn exchange(&mut self, pause: Option<Instant>) -> io::Result<bool> {
        // Setting the timer costs more than waking once too often.
        if let Some(pause) = pause
            && (self.timer.is_elapsed() || self.timer.deadline() > pause.into())
        {
            self.timer.as_mut().reset(pause.into());
        }
        poll_fn(|context| {
            while !self.unwritten.is_empty() {
                let mut slices = [IoSlice::new(&[]); GATHER_MAX];
                let mut count = 0;
                for (slice, slot) in slices.iter_mut().zip(&self.unwritten) {
                    let skip = if count == 0 { self.written } else { 0 };
                    *slice = IoSlice::new(&self.job.work.frame(*slot)[skip..]);
                    count += 1;
                }
                match Pin::new(&mut self.stream).poll_write_vectored(context, &slices[..count])? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(written) => self.advance(written),
                    Poll::Pending => break,
                }
            }
            let mut buffer = ReadBuf::new(&mut self.received[self.received_len..]);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer)? {
                Poll::Ready(()) if buffer.filled().is_empty() => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "closed by the broker",
                    )));
                }
                Poll::Ready(()) => {
                    self.received_len += buffer.filled().len();
                    return Poll::Ready(Ok(true));
                }
                Poll::Pending if pause.is_none() => return Poll::Ready(Ok(false)),
                Poll::Pending => {}
            }
            ready!(self.timer.as_mut().poll(context));
            Poll::Ready(Ok(false))
        })
        .await
    }

    fn advance(&mut self, written: usize) {
        self.written += written;
        while let Some(slot) = self.unwritten.front() {
            let len = self.job.work.frame(*slot).len();
            if self.written < len {
                break;
            }
            self.written -= len;
            self.unwritten.pop_front();
        }
    }

    /// Takes note of every whole frame that was received.
    fn take_answers(&mut self) -> Result<(), Problem> {
        let now = Instant::now();
        let (mut at, mut messages, mut bytes, mut errors) = (0, 0, 0, 0);
        let malformed = |address: &str, problem: &str| Problem {
            kind: "malformed answer".to_string(),
            words: format!("{address}: {problem}"),
        };
        let mut outcome = Ok(());
        while at < self.received_len {
            let rest = &self.received[at..self.received_len];
            let len = match frame_len(rest, FRAME_BYTES_MAX) {
                Ok(Some(len)) => len,
                Ok(None) => break,
                Err(problem) => {
                    outcome = Err(malformed(&self.job.address, &problem.to_string()));
                    break;
                }
            };
            if len > rest.len() {
                if len > self.received.len() {
                    self.received.resize(len, 0);
                }
                break;
            }
            let frame = &rest[..len];
            at += len;
            let Some(head) = peek(frame) else {
                outcome = Err(malformed(&self.job.address, "its header cannot be read"));
                break;
            };
            if !head.is_response {
                continue; // Brokers notify clients, which does not concern us.
            }
            let slot = usize::try_from(head.opaque).unwrap_or(usize::MAX);
            let Some(issued) = self.issued.get_mut(slot).and_then(Option::take) else {
                outcome = Err(malformed(&self.job.address, "it answers what was not asked"));
                break;
            };
            let answer = self.job.work.answered(slot, head.code, frame);
            self.in_flight -= 1;
            if !answer.retired {
                self.free.push_back(slot);
            }
            messages += answer.messages;
            bytes += answer.bytes;
            let is_measured = match (&self.job.pace, self.schedule.end) {
                (None, Some(end)) => now >= self.schedule.start && now < end,
                _ => issued >= self.schedule.start,
            };
            // A pull that waited for messages and found none is no measure of anything.
            let is_empty = answer.messages == 0 && answer.problem.is_none();
            if is_measured && !is_empty {
                self.tally.requests += 1;
                self.tally.messages += answer.messages;
                self.tally.bytes += answer.bytes;
                let latency = now.saturating_duration_since(issued).as_nanos();
                self.tally.latency.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
                self.tally.last_answer = Some(now);
                if self.job.work.charge() == 0 {
                    self.shared.take(answer.messages);
                }
            }
            if let Some(problem) = answer.problem {
                errors += 1;
                self.tally.problem(problem, 1);
            }
        }
        self.received.copy_within(at..self.received_len, 0);
        self.received_len -= at;
        self.last_progress = now;
        self.shared.messages.fetch_add(messages, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        if errors > 0 {
            self.shared.errors.fetch_add(errors, Ordering::Relaxed);
        }
        outcome
    }
}

/// What has to be known of every answer.
#[derive(Debug, PartialEq, Eq)]
struct HeadSeen {
    code: ResponseCode,
    opaque: i32,
    is_response: bool,
}

/// Reads the fixed fields where they are in the binary codec, and a JSON header as a whole.
fn peek(frame: &[u8]) -> Option<HeadSeen> {
    if frame.get(4) == Some(&1) {
        // After the prefix of 8 bytes: code i16, language u8, version i16, opaque i32, flag i32.
        let fixed: &[u8; 13] = frame.get(8..)?.first_chunk()?;
        let opaque = i32::from_be_bytes([fixed[5], fixed[6], fixed[7], fixed[8]]);
        let flag = i32::from_be_bytes([fixed[9], fixed[10], fixed[11], fixed[12]]);
        let code = ResponseCode(i32::from(i16::from_be_bytes([fixed[0], fixed[1]])));
        return Some(HeadSeen { code, opaque, is_response: flag & FLAG_RESPONSE != 0 });
    }
    let header = Frame::decode(frame).ok()?.header;
    let code = ResponseCode(header.code);
    Some(HeadSeen { code, opaque: header.opaque.0, is_response: header.is_response() })
}

#[cfg(test)]
mod tests;
