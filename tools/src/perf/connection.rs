//! One connection: issues requests while it may, writes and reads, and notes the answers (P2, P3).

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::{FLAG_RESPONSE, FRAME_BYTES_MAX, Frame, frame_len};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::shared::{Schedule, Shared};
use super::tally::Tally;
use super::work::{Job, Part, Problem, Until};

/// How long a connection may have requests in flight without any answer. Longer than brokers hold a pull.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long nothing may be delivered, once all is sent, before what is missing is given up.
pub(super) const DELIVERY_MAX: Duration = Duration::from_secs(10);
/// How often a connection that waits looks whether the run is over.
const TICK: Duration = Duration::from_millis(50);
/// Timers of the runtime are precise to 1 ms, so the last of the wait for a paced request is spent polling.
const SPIN: Duration = Duration::from_millis(2);
/// Room for answers: at first, and at most unless one answer needs more.
const RECEIVE_BYTES_FIRST: usize = 16 * 1024;
const RECEIVE_BYTES: usize = 256 * 1024;
/// Frames given to the kernel at a time.
const GATHER_MAX: usize = 64;

/// A connection and its work.
pub(super) struct Connection {
    stream: TcpStream,
    job: Job,
    part: Part,
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
    /// How many messages had been delivered when that was looked at, and when that was last fewer or not yet to be known.
    delivered: (u64, Instant),
    timer: Pin<Box<Sleep>>,
    /// Of the thread that runs the connection, so nobody ever waits for it.
    tally: Arc<Mutex<Tally>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, job: Job, shared: Arc<Shared>, tally: Arc<Mutex<Tally>>) -> Self {
        let slots = job.work.slots();
        Self {
            stream,
            part: job.work.part(),
            job,
            schedule: shared.schedule(),
            shared,
            issued: vec![None; slots],
            in_flight: 0,
            free: (0..slots).collect(),
            unwritten: VecDeque::new(),
            written: 0,
            due: 0,
            received: vec![0; RECEIVE_BYTES_FIRST],
            received_len: 0,
            last_progress: Instant::now(),
            delivered: (0, Instant::now()),
            timer: Box::pin(tokio::time::sleep(TICK)),
            tally,
        }
    }

    /// Runs to the end of the load, or of the connection.
    pub(super) async fn run(mut self) {
        if self.job.skips_warmup {
            tokio::time::sleep_until(self.schedule.start.into()).await;
        }
        if let Err(problem) = self.load().await {
            // What was in flight was not acknowledged.
            let lost = self.in_flight.max(1) as u64;
            self.shared.errors.fetch_add(lost, Ordering::Relaxed);
            self.tally.lock().expect("no connection panics with it").problem(problem, lost);
        }
        self.shared.finish(self.part);
    }

    async fn load(&mut self) -> Result<(), Problem> {
        loop {
            let now = Instant::now();
            let next_due = self.issue(now);
            let over = self.is_over(now);
            // Nobody needs the answer to a pull when the run is over.
            if over && (self.in_flight == 0 || self.part == Part::Read) {
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
                // Whoever else wants this core gets it: the kernel may finish the broker's disk writes here.
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
    }

    fn lost(&self, error: &io::Error) -> Problem {
        Problem { kind: "connection lost".to_string(), words: format!("{}: {error}", self.job.address) }
    }

    /// Whether nothing more is to be issued, ever.
    fn is_over(&mut self, now: Instant) -> bool {
        if self.free.is_empty() && self.in_flight == 0 {
            return true;
        }
        match self.job.until {
            Until::End => {
                let is_late = |end| now >= end && self.due_at().is_none_or(|due| due >= end);
                self.shared.end().is_some_and(is_late) || self.shared.budget_is_spent()
            }
            Until::Delivered => {
                let wanted = self.shared.to_be_delivered();
                let delivered = self.shared.delivered.load(Ordering::Relaxed);
                if wanted.is_none() || delivered != self.delivered.0 {
                    self.delivered = (delivered, now);
                }
                let waited = now.saturating_duration_since(self.delivered.1);
                wanted.is_some_and(|wanted| delivered >= wanted || waited > DELIVERY_MAX)
            }
        }
    }

    /// When the next request is due, if they are paced.
    fn due_at(&self) -> Option<Instant> {
        let pace = self.job.pace.as_ref()?;
        Some(self.schedule.begin + pace.due(self.due))
    }

    /// Issues what may be issued now. Gives when the next is due, if that is what it waits for.
    fn issue(&mut self, now: Instant) -> Option<Instant> {
        let end = match self.job.until {
            Until::End => self.shared.end(),
            Until::Delivered => None,
        };
        while self.in_flight < self.job.in_flight {
            let Some(&slot) = self.free.front() else { break };
            let due = self.due_at();
            let issued = match due {
                Some(due) if due > now => return Some(due),
                Some(due) => due,
                None => now,
            };
            if end.is_some_and(|end| issued >= end) {
                break;
            }
            let is_measured = issued >= self.schedule.start;
            let is_charged = is_measured && self.job.until == Until::End;
            if is_charged && !self.shared.take(self.job.work.charge()) {
                break;
            }
            if self.in_flight == 0 {
                self.last_progress = now;
            }
            self.free.pop_front();
            self.job.work.on_issue(slot, issued.saturating_duration_since(self.schedule.begin));
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
        let since_start = now.saturating_duration_since(self.schedule.start);
        let mut tally = self.tally.lock().expect("no connection panics with it");
        let is_full = self.received_len == self.received.len();
        let end = self.shared.end();
        let (mut at, mut messages, mut bytes, mut errors, mut delivered) = (0, 0, 0, 0, 0);
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
            let is_measured = match (&self.job.pace, end) {
                (None, Some(end)) => now >= self.schedule.start && now < end,
                _ => issued >= self.schedule.start,
            };
            for delivery in self.job.work.deliveries() {
                delivered += delivery.messages;
                let sent = self.schedule.begin + delivery.sent;
                if sent >= self.schedule.start {
                    let latency = now.saturating_duration_since(sent);
                    tally.part(self.part).delivery.record(latency, delivery.messages, since_start);
                }
            }
            // A pull that waited for messages and found none is no measure of anything.
            let is_empty = answer.messages == 0 && answer.problem.is_none();
            if is_measured && !is_empty {
                let measured = tally.part(self.part);
                measured.requests += 1;
                measured.messages += answer.messages;
                measured.bytes += answer.bytes;
                measured.latency.record(now.saturating_duration_since(issued), 1, since_start);
                measured.last_answer = Some(now);
                if self.job.until == Until::End && self.job.work.charge() == 0 {
                    self.shared.take(answer.messages);
                }
            }
            if let Some(problem) = answer.problem {
                errors += 1;
                tally.problem(problem, 1);
            }
        }
        self.received.copy_within(at..self.received_len, 0);
        self.received_len -= at;
        if is_full && self.received.len() < RECEIVE_BYTES {
            self.received.resize(self.received.len() * 2, 0);
        }
        self.last_progress = now;
        let progress = self.shared.part(self.part);
        progress.messages.fetch_add(messages, Ordering::Relaxed);
        progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        if delivered > 0 {
            self.shared.delivered.fetch_add(delivered, Ordering::Relaxed);
        }
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
