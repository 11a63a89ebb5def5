//! Sends: frames that are encoded once and sent again and again.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringmq_protocol::batch::{BatchEntry, ENTRY_OVERHEAD};
use ringmq_protocol::body::perm;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{self, Codec, FRAME_BYTES_MAX, Head};
use ringmq_protocol::name::AUTO_CREATE_TOPIC_KEY_TOPIC;
use ringmq_protocol::request::SendMessageRequest;
use ringmq_protocol::types::Opaque;

use super::arguments::{
    Common, LatencyArguments, MessageArguments, ProduceArguments, STAMP_BYTES, TopicsArguments,
};
use super::calls::Caller;
use super::spread::{self, Share};
use super::work::{Answer, Job, Pace, Part, Work};
use crate::units::now_ms;

pub(super) const GROUP: &str = "ringmq-perf";
/// All frames of a run together; more would be a mistake, and would measure the generator's memory.
const FRAMES_BYTES_MAX: usize = 2 << 30;
/// A connection has a frame for each queue up to this many, or one for each topic; with more queues it leaves some out.
const QUEUE_FRAMES_MAX: usize = 64;

/// The sends of one connection.
pub(super) struct Sends {
    /// All frames, one behind the other.
    bytes: Vec<u8>,
    /// By opaque.
    frames: Vec<Range<usize>>,
    messages: u64,
    body_bytes: u64,
    times: Option<Times>,
}

/// Where in a frame the bodies have the time at which they are sent.
#[derive(Clone, Copy)]
struct Times {
    /// Between those of two messages.
    distance: usize,
    /// Of that of the last.
    from_end: usize,
}

/// Which messages a run sends, and how.
#[derive(Clone, Copy)]
pub(super) struct Sending<'a> {
    pub(super) common: &'a Common,
    pub(super) messages: &'a MessageArguments,
    /// Requests that each connection keeps unanswered.
    pub(super) in_flight: u32,
    /// Messages a second over all connections; `None`: as fast as they are acknowledged.
    pub(super) rate: Option<u64>,
    /// Bodies carry this and the time at which they are sent.
    pub(super) stamp: Option<RunId>,
}

/// Tells the messages of this run from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunId([u8; 8]);

impl RunId {
    /// One that no other run has.
    pub(super) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        Self(Random::of(now, u64::from(std::process::id())).next().to_be_bytes())
    }

    /// When a message was sent, after the begin of the run; `None` if another run has sent it.
    pub(super) fn sent(self, body: &[u8]) -> Option<Duration> {
        let stamp: &[u8; STAMP_BYTES] = body.first_chunk()?;
        let (run, ns) = stamp.split_at(8);
        let ns = u64::from_be_bytes(ns.try_into().expect("eight bytes are left"));
        (run == self.0).then(|| Duration::from_nanos(ns))
    }
}

/// What `produce` was asked for, one job for each connection.
pub(super) fn jobs(arguments: &ProduceArguments, caller: &Caller) -> Result<Vec<Job>, String> {
    let ProduceArguments { common, messages, in_flight } = arguments;
    Sending { common, messages, in_flight: *in_flight, rate: None, stamp: None }.jobs(caller)
}

/// What `topics` was asked for.
pub(super) fn topics_jobs(arguments: &TopicsArguments, caller: &Caller) -> Result<Vec<Job>, String> {
    let TopicsArguments { common, messages, topics, in_flight } = arguments;
    let names: Vec<_> = (0..*topics).map(|number| format!("{}-{number}", common.topic)).collect();
    let sending = Sending { common, messages, in_flight: *in_flight, rate: None, stamp: None };
    sending.jobs_for(&names, caller)
}

/// What `latency` was asked for.
pub(super) fn paced_jobs(arguments: &LatencyArguments, caller: &Caller) -> Result<Vec<Job>, String> {
    let LatencyArguments { common, messages, rate, in_flight } = arguments;
    let rate = Some(u64::from(*rate));
    Sending { common, messages, in_flight: *in_flight, rate, stamp: None }.jobs(caller)
}

impl Sending<'_> {
    /// One job for each connection.
    pub(super) fn jobs(&self, caller: &Caller) -> Result<Vec<Job>, String> {
        self.jobs_for(std::slice::from_ref(&self.common.topic), caller)
    }

    fn jobs_for(&self, topics: &[String], caller: &Caller) -> Result<Vec<Job>, String> {
        let Self { common, messages, rate, stamp, .. } = *self;
        let in_flight = self.in_flight as usize;
        let mut queues = Vec::new();
        for (topic, route) in topics.iter().zip(caller.routes_or_create(topics, common.queues)?) {
            let brokers = spread::brokers(&route, perm::WRITE, true);
            if brokers.is_empty() {
                return Err(format!("topic {topic} has no queue that takes messages"));
            }
            queues.push((topic.clone(), brokers));
        }
        let mut jobs = Vec::new();
        let mut total = 0;
        for (connection, share) in
            spread::share_topics(&queues, common.connections as usize).iter().enumerate()
        {
            let targets = targets(share, in_flight);
            let frames = in_flight.next_multiple_of(targets.len());
            total += frames * messages.batch as usize * messages.size as usize;
            if total > FRAMES_BYTES_MAX {
                return Err(
                    "the requests that are prepared, topics or connections × in flight, of batch × size \
                            each, are more than 2 GiB"
                        .to_string(),
                );
            }
            let random = Random::of(messages.seed, connection as u64);
            let work = Sends::new(messages, &targets, frames, caller.codec(), random, stamp)?;
            jobs.push(Job::new(share.address.clone(), work, in_flight));
        }
        let connections = jobs.len() as u64;
        for (connection, job) in (0..).zip(&mut jobs) {
            let seconds = u64::from(messages.batch);
            job.pace = rate.map(|requests| Pace { connection, connections, requests, seconds });
        }
        Ok(jobs)
    }
}

/// Topics and queues of a connection in the order in which they get messages: each topic in turn, then each again with
/// its next queue. Connections begin with different queues.
fn targets<'a>(share: &Share<'a>, in_flight: usize) -> Vec<(&'a str, i32)> {
    let queues_max = share.topics.iter().map(|(_, queues)| queues.len()).max().unwrap_or(1);
    let rounds = (in_flight.max(QUEUE_FRAMES_MAX) / share.topics.len()).clamp(1, queues_max);
    let queue =
        |round: usize, topic: usize, queues: &[i32]| queues[(share.number + round + topic) % queues.len()];
    let topics = || share.topics.iter().enumerate();
    (0..rounds)
        .flat_map(|round| {
            topics().map(move |(number, (topic, queues))| (*topic, queue(round, number, queues)))
        })
        .collect()
}

impl Sends {
    pub(super) fn new(
        messages: &MessageArguments,
        targets: &[(&str, i32)],
        frame_count: usize,
        codec: Codec,
        mut random: Random,
        stamp: Option<RunId>,
    ) -> Result<Self, String> {
        let is_batch = messages.batch > 1;
        let code = if is_batch { RequestCode::SEND_BATCH_MESSAGE } else { RequestCode::SEND_MESSAGE_V2 };
        let (mut bytes, mut frames) = (Vec::new(), Vec::with_capacity(frame_count));
        let (mut message, mut body) = (vec![0; messages.size as usize], Vec::new());
        let born_timestamp = now_ms();
        for number in 0..frame_count {
            let (topic, queue_id) = targets[number % targets.len()];
            body.clear();
            for _ in 0..messages.batch {
                random.fill(&mut message);
                if let Some(RunId(run)) = stamp {
                    message[..run.len()].copy_from_slice(&run);
                }
                if is_batch {
                    let entry = BatchEntry { flag: 0, body: &message, properties: &[] };
                    entry.encode(&mut body).map_err(|error| error.to_string())?;
                } else {
                    body.extend_from_slice(&message);
                }
                if body.len() > FRAME_BYTES_MAX as usize {
                    return Err("batch × size is more than a frame can have (16 MiB)".to_string());
                }
            }
            let fields = SendMessageRequest {
                producer_group: GROUP.into(),
                topic: topic.into(),
                default_topic: AUTO_CREATE_TOPIC_KEY_TOPIC.into(),
                default_topic_queue_nums: 4,
                queue_id,
                sys_flag: 0,
                born_timestamp,
                flag: 0,
                properties: Some("".into()),
                reconsume_times: 0,
                unit_mode: false,
                max_reconsume_times: None,
                batch: is_batch,
                broker_name: None,
            };
            let start = bytes.len();
            let opaque =
                Opaque(i32::try_from(number).map_err(|_| "too many requests in flight".to_string())?);
            frame::encode(&mut bytes, &Head::request(codec, code, opaque), &fields.fields_v2(), body.len());
            bytes.extend_from_slice(&body);
            if bytes.len() - start - 4 > FRAME_BYTES_MAX as usize {
                return Err("batch × size is more than a frame can have (16 MiB)".to_string());
            }
            frames.push(start..bytes.len());
        }
        let body_bytes = u64::from(messages.batch) * u64::from(messages.size);
        // Of an entry of a batch, only the properties stand behind the body: their length, 0.
        let (entry, behind) = if is_batch { (message.len() + ENTRY_OVERHEAD, 2) } else { (message.len(), 0) };
        let times = stamp.map(|_| Times { distance: entry, from_end: message.len() + behind - 8 });
        Ok(Self { bytes, frames, messages: u64::from(messages.batch), body_bytes, times })
    }
}

impl Work for Sends {
    fn part(&self) -> Part {
        Part::Send
    }

    fn slots(&self) -> usize {
        self.frames.len()
    }

    fn frame(&self, slot: usize) -> &[u8] {
        &self.bytes[self.frames[slot].clone()]
    }

    fn charge(&self) -> u64 {
        self.messages
    }

    fn on_issue(&mut self, slot: usize, at: Duration) {
        let Some(Times { distance, from_end }) = self.times else { return };
        let frame = &mut self.bytes[self.frames[slot].clone()];
        let ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).to_be_bytes();
        let mut place = frame.len() - from_end;
        for _ in 0..self.messages {
            frame[place..place + ns.len()].copy_from_slice(&ns);
            place = place.saturating_sub(distance);
        }
    }

    fn answered(&mut self, _slot: usize, code: ResponseCode, frame: &[u8]) -> Answer {
        match code {
            ResponseCode::SUCCESS => Answer::good(self.messages, self.body_bytes),
            _ => Answer::refused(code, frame),
        }
    }
}

/// SplitMix64: a stream of bits that the seed decides.
pub(super) struct Random(u64);

impl Random {
    /// The stream of one connection.
    pub(super) fn of(seed: u64, connection: u64) -> Self {
        let mut streams = Self(seed);
        let first = streams.next();
        Self(first ^ Self(connection).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests;
