//! What a connection is asked to do, and what the load has to know of its requests and answers.

use std::time::Duration;

use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::Frame;

use super::calls::first_line;
use super::process::Watched;

/// A part of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Send,
    Read,
}

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
