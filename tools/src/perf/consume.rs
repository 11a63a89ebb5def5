//! Pulls: each queue is read by one connection for each consumer, which has one pull for it in flight.

use std::collections::BTreeMap;

use ringmq_protocol::body::perm;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{self, Codec, Frame, Head, RemotingCommand};
use ringmq_protocol::message::messages;
use ringmq_protocol::request::{
    GetMaxOffsetRequest, GetMinOffsetRequest, OffsetResponse, PullMessageRequest, PullMessageResponse,
};
use ringmq_protocol::types::{Opaque, QueueId};

use super::arguments::{ConsumeArguments, From};
use super::calls::{CallError, Caller};
use super::produce::{GROUP, RunId};
use super::spread::{self, BrokerQueues};
use super::work::{Answer, Delivery, Job, Part, Problem, Work};

/// How long a broker may hold a pull that finds nothing; what RocketMQ's clients ask for.
const HOLD_MS: i64 = 15_000;

/// Pulls in flight over all connections; each has a frame of its own.
const PULLS_MAX: usize = 1 << 20;

/// The pulls of one connection.
pub(super) struct Pulls {
    topic: String,
    group: String,
    codec: Codec,
    messages_max: i32,
    verify: bool,
    /// Notes when messages of this run were sent.
    run: Option<RunId>,
    deliveries: Vec<Delivery>,
    /// By opaque.
    queues: Vec<Position>,
}

/// Where reading a queue is.
struct Position {
    queue_id: i32,
    next: i64,
    at_end: AtEnd,
    frame: Vec<u8>,
}

/// What to do where a queue ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtEnd {
    /// Wait for more.
    Wait,
    /// Read no further than this offset.
    StopAt(i64),
    /// Begin again at this offset.
    BeginAt(i64),
}

/// What `consume` was asked for, one job for each connection.
pub(super) fn jobs(arguments: &ConsumeArguments, caller: &Caller) -> Result<Vec<Job>, String> {
    let common = &arguments.common;
    let queues = Queues::look(&common.topic, caller)?;
    let reading = Reading {
        group: GROUP,
        from: arguments.from,
        at_end: match (arguments.repeat, arguments.ends_with_queues()) {
            (true, _) => Ending::Repeat,
            (false, true) => Ending::Stop,
            (false, false) => Ending::Wait,
        },
        times: arguments.consumers,
        connections: common.connections,
        pull_batch: arguments.pull_batch,
        verify: arguments.verify,
        run: None,
    };
    queues.jobs(&reading, caller.codec())
}

/// How a topic is to be read.
pub(super) struct Reading<'a> {
    pub(super) group: &'a str,
    pub(super) from: From,
    pub(super) at_end: Ending,
    /// How often each queue is read.
    pub(super) times: u32,
    /// They share the queues.
    pub(super) connections: u32,
    pub(super) pull_batch: u32,
    pub(super) verify: bool,
    pub(super) run: Option<RunId>,
}

/// What to do where a queue ended when it was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Wait,
    Stop,
    Repeat,
}

/// The queues of a topic, and what was in them at a moment.
pub(super) struct Queues {
    topic: String,
    brokers: Vec<BrokerQueues>,
    /// First offset, and that behind the last.
    offsets: BTreeMap<(String, i32), (i64, i64)>,
}

impl Queues {
    pub(super) fn look(topic: &str, caller: &Caller) -> Result<Self, String> {
        let route = caller.route(topic)?.ok_or_else(|| format!("there is no topic {topic}"))?;
        let brokers = spread::brokers(&route, perm::READ, false);
        let mut found = BTreeMap::new();
        for broker in &brokers {
            for &queue_id in &broker.queues {
                let offsets = offsets(caller, &broker.address, topic, queue_id)?;
                found.insert((broker.address.clone(), queue_id), offsets);
            }
        }
        Ok(Self { topic: topic.to_string(), brokers, offsets: found })
    }

    /// How many messages were there.
    pub(super) fn messages(&self) -> u64 {
        self.offsets.values().map(|(min, max)| u64::try_from(max - min).unwrap_or_default()).sum()
    }

    /// One job for each connection.
    pub(super) fn jobs(&self, reading: &Reading<'_>, codec: Codec) -> Result<Vec<Job>, String> {
        let times = reading.times as usize;
        let mut brokers = Vec::new();
        for BrokerQueues { address, queues } in &self.brokers {
            let mut with_work = queues.clone();
            with_work.retain(|queue_id| {
                let (min, max) = self.offsets[&(address.clone(), *queue_id)];
                reading.at_end == Ending::Wait || min < max
            });
            if !with_work.is_empty() {
                brokers.push(BrokerQueues { address: address.clone(), queues: with_work.repeat(times) });
            }
        }
        let pulls: usize = brokers.iter().map(|broker| broker.queues.len()).sum();
        if pulls == 0 {
            return Err(format!("topic {} has no messages to read", self.topic));
        }
        if pulls > PULLS_MAX {
            return Err(format!("consumers × queues are {pulls} pulls, more than {PULLS_MAX}"));
        }
        let mut jobs = Vec::new();
        for assignment in spread::split_queues(&brokers, reading.connections as usize)? {
            let mut work = Pulls {
                topic: self.topic.clone(),
                group: reading.group.to_string(),
                codec,
                messages_max: i32::try_from(reading.pull_batch).unwrap_or(i32::MAX),
                verify: reading.verify,
                run: reading.run,
                deliveries: Vec::new(),
                queues: Vec::new(),
            };
            for queue_id in assignment.queues {
                let (min, max) = self.offsets[&(assignment.address.clone(), queue_id)];
                let next = if reading.from == From::First { min } else { max };
                let at_end = match reading.at_end {
                    Ending::Wait => AtEnd::Wait,
                    Ending::Stop => AtEnd::StopAt(max),
                    Ending::Repeat => AtEnd::BeginAt(min),
                };
                work.queues.push(Position { queue_id, next, at_end, frame: Vec::new() });
            }
            for slot in 0..work.queues.len() {
                work.prepare(slot);
            }
            let in_flight = work.queues.len();
            jobs.push(Job::new(assignment.address, work, in_flight));
        }
        Ok(jobs)
    }
}

/// Offsets of the first message of a queue, and of the one behind its last.
fn offsets(caller: &Caller, address: &str, topic: &str, queue_id: i32) -> Result<(i64, i64), CallError> {
    let queue_id = QueueId(u32::try_from(queue_id).unwrap_or_default());
    let offset = |code, answer: RemotingCommand| {
        OffsetResponse::decode(&answer.header().ext).map(|response| response.offset).map_err(|problem| {
            CallError::Malformed { address: address.to_string(), code, problem: problem.to_string() }
        })
    };
    let (min, max) = (RequestCode::GET_MIN_OFFSET, RequestCode::GET_MAX_OFFSET);
    let first = caller.ask(address, min, GetMinOffsetRequest { topic: topic.into(), queue_id })?;
    let behind_last =
        caller.ask(address, max, GetMaxOffsetRequest { topic: topic.into(), queue_id, committed: true })?;
    Ok((offset(min, first)?, offset(max, behind_last)?))
}

impl Pulls {
    /// Writes the next pull of a queue.
    fn prepare(&mut self, slot: usize) {
        let position = &mut self.queues[slot];
        let max_msg_nums = match position.at_end {
            AtEnd::StopAt(end) => i32::try_from(end - position.next)
                .map_or(self.messages_max, |left| self.messages_max.min(left)),
            AtEnd::Wait | AtEnd::BeginAt(_) => self.messages_max,
        };
        let (group, topic) = (self.group.as_str(), self.topic.as_str());
        let fields = PullMessageRequest::new(group, topic, position.queue_id, position.next);
        let fields = PullMessageRequest {
            max_msg_nums,
            expression_type: Some("TAG".into()),
            ..fields.filtered("*").held(HOLD_MS)
        };
        position.frame.clear();
        // Slots are at most PULLS_MAX.
        let head = Head::request(self.codec, RequestCode::PULL_MESSAGE, Opaque(slot as i32));
        frame::encode(&mut position.frame, &head, &fields, 0);
    }

    /// Counts the messages of an answer.
    fn read(&mut self, slot: usize, body: &[u8]) -> Answer {
        let position = &self.queues[slot];
        let mut answer = Answer::default();
        for (next, message) in (position.next..).zip(messages(body)) {
            let message = match message {
                Ok(message) => message,
                Err(error) => return problem(answer, "malformed message", error.to_string()),
            };
            answer.messages += 1;
            answer.bytes += message.body().len() as u64;
            if let Some(sent) = self.run.and_then(|run| run.sent(message.body())) {
                match self.deliveries.last_mut() {
                    Some(last) if last.sent == sent => last.messages += 1,
                    _ => self.deliveries.push(Delivery { sent, messages: 1 }),
                }
            }
            if self.verify && answer.problem.is_none() {
                let place = || format!("queue {}, offset {}", position.queue_id, message.queue_offset().0);
                if !message.verify_crc() {
                    answer = problem(answer, "wrong CRC", place());
                } else if i64::try_from(message.queue_offset().0) != Ok(next) {
                    answer = problem(answer, "wrong offset", format!("{} instead of {next}", place()));
                }
            }
        }
        answer
    }
}

fn problem(answer: Answer, kind: &str, words: String) -> Answer {
    Answer { problem: Some(Problem { kind: kind.to_string(), words }), ..answer }
}

impl Work for Pulls {
    fn part(&self) -> Part {
        Part::Read
    }

    fn slots(&self) -> usize {
        self.queues.len()
    }

    fn frame(&self, slot: usize) -> &[u8] {
        &self.queues[slot].frame
    }

    fn charge(&self) -> u64 {
        0
    }

    fn answered(&mut self, slot: usize, code: ResponseCode, frame: &[u8]) -> Answer {
        self.deliveries.clear();
        let mut answer = match code {
            ResponseCode::SUCCESS => Answer::default(),
            ResponseCode::PULL_NOT_FOUND
            | ResponseCode::PULL_RETRY_IMMEDIATELY
            | ResponseCode::PULL_OFFSET_MOVED => Answer::default(),
            // Asked again, it would most likely refuse again, and never come to an end.
            _ => return Answer { retired: true, ..Answer::refused(code, frame) },
        };
        let position = match Frame::decode(frame) {
            Ok(frame) => {
                if code == ResponseCode::SUCCESS {
                    answer = self.read(slot, frame.body);
                }
                PullMessageResponse::decode(&frame.header.ext).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        let found = match position {
            Ok(found) => found,
            // Where to go on is not known.
            Err(error) => return Answer { retired: true, ..problem(answer, "malformed answer", error) },
        };
        let queue = &mut self.queues[slot];
        queue.next = found.next_begin_offset;
        match queue.at_end {
            AtEnd::Wait => {}
            AtEnd::StopAt(end) => answer.retired = queue.next >= end,
            AtEnd::BeginAt(first) if queue.next >= found.max_offset => queue.next = first,
            AtEnd::BeginAt(_) => {}
        }
        self.prepare(slot);
        answer
    }

    fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }
}

#[cfg(test)]
mod tests;
