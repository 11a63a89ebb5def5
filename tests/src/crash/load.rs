//! The load between two faults, over plain pipelined connections, and what it was promised.
//!
//! A thread drives one connection until the broker is gone. It keeps its records to itself and hands them over at its
//! end; only the gate is shared.

use super::Failure;
use super::history::{Attempt, Commit, Fate, History, MessageId, QueueKey, Stored, TOPICS, queues_of};
use super::payload;
use crate::Raw;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::properties;
use ringmq_protocol::request::{
    CreateTopicRequest, PullMessageRequest, PullMessageResponse, SendMessageRequest, SendMessageResponse,
    UpdateConsumerOffsetRequest,
};
use ringmq_protocol::types::QueueId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The consumer group of the load.
pub const GROUP: &str = "CrashGroup";
/// Producers on each shard.
pub const PRODUCERS: u32 = 3;
/// Topics made on each shard in each cycle.
const TOPICS_MADE: u32 = 3;
/// Requests of one producer that wait for an answer.
const WINDOW: usize = 32;
/// Bytes of them.
const WINDOW_BYTES: usize = 2 << 20;
/// A consumer commits after every so many answers with messages.
const COMMIT_EVERY: u32 = 2;
/// Longest body.
const BODY_BYTES_MAX: usize = 256 << 10;

/// What the threads of a load share.
#[derive(Default)]
pub struct Gate {
    /// The fault is about to begin: what arrives from now on is no promise.
    is_closed: AtomicBool,
    acknowledged: AtomicU64,
}

impl Gate {
    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Answers read from now on are no promises.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }
}

/// A running load.
pub struct Load {
    pub gate: Arc<Gate>,
    producers: Vec<JoinHandle<Result<Sent, Failure>>>,
    consumers: Vec<JoinHandle<Result<Consumed, Failure>>>,
    makers: Vec<JoinHandle<Result<Made, Failure>>>,
}

/// What a load came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub attempted: u64,
    pub acknowledged: u64,
    pub acknowledged_bytes: u64,
    pub consumed: u64,
    pub commits: u64,
    pub topics: u64,
}

struct Sent {
    producer: u32,
    attempts: Vec<Attempt>,
    acknowledged: u64,
    acknowledged_bytes: u64,
}

#[derive(Default)]
struct Consumed {
    seen: Vec<(QueueKey, u64, Stored)>,
    commits: BTreeMap<QueueKey, Commit>,
    commits_acknowledged: u64,
}

type Made = Vec<((u16, String), u32)>;

/// Starts the load of a cycle on shards with these addresses.
pub fn start(addresses: &[SocketAddr], cycle: u32, seed: u64, history: &History) -> Load {
    let gate = Arc::new(Gate::default());
    let mut load = Load { gate: gate.clone(), producers: vec![], consumers: vec![], makers: vec![] };
    for (address, shard) in addresses.iter().copied().zip(0u16..) {
        for index in 0..PRODUCERS {
            let producer = (cycle * addresses.len() as u32 + u32::from(shard)) * PRODUCERS + index;
            let rng = StdRng::seed_from_u64(seed ^ (u64::from(producer) << 20));
            let gate = gate.clone();
            load.producers.push(thread::spawn(move || produce(address, shard, producer, rng, &gate)));
        }
        let from = queues_of(shard).map(|queue| {
            let committed = history.commits.get(&queue).map_or(0, |commit| commit.acknowledged);
            (queue, committed)
        });
        let (from, consumer_gate) = (from.collect(), gate.clone());
        load.consumers.push(thread::spawn(move || consume(address, from, &consumer_gate)));
        let gate = gate.clone();
        load.makers.push(thread::spawn(move || make_topics(address, shard, cycle, &gate)));
    }
    load
}

impl Load {
    /// Waits until all connections have ended, which they do with the broker, and adds what they know to the history.
    pub fn join(self, history: &mut History) -> Result<Figures, Failure> {
        let mut figures = Figures::default();
        for producer in self.producers {
            let sent = joined(producer)?;
            figures.attempted += sent.attempts.len() as u64;
            figures.acknowledged += sent.acknowledged;
            figures.acknowledged_bytes += sent.acknowledged_bytes;
            history.attempts.insert(sent.producer, sent.attempts);
        }
        for consumer in self.consumers {
            let consumed = joined(consumer)?;
            figures.consumed += consumed.seen.len() as u64;
            figures.commits += consumed.commits_acknowledged;
            for (queue, offset, stored) in consumed.seen {
                let seen = history.seen.entry(queue).or_default();
                // Seen before, and different then: counted as damage, whichever of the two is there now.
                seen.entry(offset).and_modify(|old| old.is_intact &= *old == stored).or_insert(stored);
            }
            for (queue, commit) in consumed.commits {
                let known = history.commits.entry(queue).or_default();
                known.acknowledged = known.acknowledged.max(commit.acknowledged);
                known.attempted = known.attempted.max(commit.attempted);
            }
        }
        for maker in self.makers {
            let made = joined(maker)?;
            figures.topics += made.len() as u64;
            history.topics.extend(made);
        }
        Ok(figures)
    }
}

fn joined<T>(thread: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    thread.join().map_err(|_| Failure("a thread of the load panicked".to_owned()))?
}

/// Makes the topics of the load, which are promises like any others.
pub fn make_load_topics(addresses: &[SocketAddr], history: &mut History) -> Result<(), Failure> {
    for (address, shard) in addresses.iter().zip(0u16..) {
        let mut connection = Raw::try_connect(*address)?;
        for (topic, queues) in TOPICS {
            let response = super::survey::call(
                &mut connection,
                RequestCode::UPDATE_AND_CREATE_TOPIC,
                &CreateTopicRequest::new(topic, queues as i32),
            )?;
            expect(&response, &[ResponseCode::SUCCESS])?;
            history.topics.insert((shard, topic.to_owned()), queues);
        }
    }
    Ok(())
}

/// An answer with another code than these is not what this load is made to get.
pub fn expect(response: &RemotingCommand, codes: &[ResponseCode]) -> Result<ResponseCode, Failure> {
    let code = ResponseCode(response.code);
    if codes.contains(&code) {
        return Ok(code);
    }
    Err(Failure(format!(
        "the broker answered {code}: {}",
        response.remark.as_deref().unwrap_or("(no remark)")
    )))
}

/// The next answer; `None` if the broker is gone.
fn next_answer(connection: &mut Raw) -> Result<Option<RemotingCommand>, Failure> {
    loop {
        match connection.receive() {
            Ok(Some(frame)) if frame.is_response() => return Ok(Some(frame)),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(Failure(format!("a connection stalled: {error}"))),
        }
    }
}

/// A request of a producer that waits for its answer.
struct Outstanding {
    sequences: RangeInclusive<u32>,
    bytes: usize,
}

/// Most messages are small, some are large: of the bytes, each size class has its share.
fn body_len(rng: &mut StdRng) -> usize {
    let max = match rng.random_range(0..100) {
        0..60 => 256,
        60..85 => 4 << 10,
        85..97 => 32 << 10,
        _ => BODY_BYTES_MAX,
    };
    rng.random_range(1..=max)
}

fn produce(
    address: SocketAddr,
    shard: u16,
    producer: u32,
    mut rng: StdRng,
    gate: &Gate,
) -> Result<Sent, Failure> {
    let mut sent = Sent { producer, attempts: Vec::new(), acknowledged: 0, acknowledged_bytes: 0 };
    // The fault may come before the connection.
    let Ok(mut connection) = Raw::try_connect(address) else { return Ok(sent) };
    let queues: Vec<QueueKey> = queues_of(shard).collect();
    let mut outstanding: BTreeMap<i32, Outstanding> = BTreeMap::new();
    let mut bytes = 0;
    let mut can_send = true;
    loop {
        while can_send && outstanding.len() < WINDOW && bytes < WINDOW_BYTES {
            let queue = queues[rng.random_range(0..queues.len())];
            let first = sent.attempts.len() as u32;
            let (count, is_one_way) = match rng.random_range(0..16) {
                0 => (1, true),
                1..=3 => (rng.random_range(2..=16), false),
                _ => (1, false),
            };
            let sequences = first..=first + count - 1;
            sent.attempts.extend(sequences.clone().map(|_| Attempt { queue, fate: Fate::Unknown }));
            let (properties, body) = message_or_batch(producer, &sequences, queue, &mut rng)?;
            let len = body.len();
            let is_batch = count > 1;
            let request = send_request(queue, properties.as_deref(), is_batch);
            let code = if is_batch { RequestCode::SEND_BATCH_MESSAGE } else { RequestCode::SEND_MESSAGE_V2 };
            let done = if is_one_way {
                connection.send_one_way(code, &request.fields_v2(), body)
            } else {
                connection.send(code, &request.fields_v2(), body).map(|opaque| {
                    outstanding.insert(opaque.0, Outstanding { sequences, bytes: len });
                    bytes += len;
                })
            };
            // Answers may still be on their way when nothing can be sent any more.
            can_send = done.is_ok();
        }
        let Some(answer) = next_answer(&mut connection)? else { return Ok(sent) };
        let Some(answered) = outstanding.remove(&answer.opaque.0) else {
            return Err(Failure(format!("an answer to nothing: {answer:?}")));
        };
        bytes -= answered.bytes;
        if gate.is_closed() {
            continue;
        }
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => {
                let response = SendMessageResponse::decode(&answer.header().ext)?;
                let offset = u64::try_from(response.queue_offset)?;
                for (sequence, offset) in answered.sequences.zip(offset..) {
                    let attempt = &mut sent.attempts[sequence as usize];
                    if response.queue_id != attempt.queue.queue as i32 {
                        return Err(Failure(format!("sent to {}, answered {response:?}", attempt.queue)));
                    }
                    attempt.fate = Fate::Acknowledged(offset);
                    sent.acknowledged += 1;
                    gate.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                sent.acknowledged_bytes += answered.bytes as u64;
            }
            ResponseCode::SYSTEM_BUSY => {
                for sequence in answered.sequences {
                    sent.attempts[sequence as usize].fate = Fate::Refused;
                }
            }
            _ => {
                expect(&answer, &[])?;
            }
        }
    }
}

/// Properties of the request (none of a batch) and its body.
fn message_or_batch(
    producer: u32,
    sequences: &RangeInclusive<u32>,
    queue: QueueKey,
    rng: &mut StdRng,
) -> Result<(Option<String>, Vec<u8>), Failure> {
    let is_batch = sequences.start() < sequences.end();
    let mut batch = Vec::new();
    for sequence in sequences.clone() {
        let id = MessageId { producer, sequence };
        // Sixteen of the longest would be more than a batch may hold.
        let len = if is_batch { body_len(rng).min(8 << 10) } else { body_len(rng) };
        let name = payload::id_text(id, queue, len);
        let properties = properties::encode([(payload::ID, &*name)])?;
        let body = payload::body(id, len);
        if !is_batch {
            return Ok((Some(String::from_utf8(properties)?), body));
        }
        BatchEntry { flag: 0, body: &body, properties: &properties }.encode(&mut batch)?;
    }
    Ok((None, batch))
}

fn send_request(queue: QueueKey, properties: Option<&str>, batch: bool) -> SendMessageRequest<'_> {
    SendMessageRequest {
        producer_group: "CrashProducers".into(),
        topic: queue.topic.into(),
        default_topic: "TBW102".into(),
        default_topic_queue_nums: 4,
        queue_id: queue.queue as i32,
        sys_flag: 0,
        born_timestamp: 0,
        flag: 0,
        properties: properties.map(Into::into),
        reconsume_times: 0,
        unit_mode: false,
        max_reconsume_times: None,
        batch,
        broker_name: None,
    }
}

/// A pull of `queue` from `offset`.
pub fn pull_request(queue: QueueKey, offset: u64, suspend_ms: i64) -> PullMessageRequest<'static> {
    PullMessageRequest {
        max_msg_nums: 1024,
        ..PullMessageRequest::new(GROUP, queue.topic, queue.queue as i32, offset as i64)
            .filtered("*")
            .held(suspend_ms)
    }
}

/// What an answer to a pull says.
pub struct Pulled {
    pub messages: Vec<(u64, Stored)>,
    pub next: u64,
    /// End of the last message in the log.
    pub log_end: u64,
}

/// Reads an answer to a pull of `queue`.
pub fn pulled(queue: QueueKey, answer: &RemotingCommand) -> Result<Pulled, Failure> {
    let codes = [
        ResponseCode::SUCCESS,
        ResponseCode::PULL_NOT_FOUND,
        ResponseCode::PULL_RETRY_IMMEDIATELY,
        ResponseCode::PULL_OFFSET_MOVED,
    ];
    let code = expect(answer, &codes)?;
    let response = PullMessageResponse::decode(&answer.header().ext)?;
    let mut pulled =
        Pulled { messages: Vec::new(), next: response.next_begin_offset.try_into()?, log_end: 0 };
    if code != ResponseCode::SUCCESS {
        return Ok(pulled);
    }
    for message in messages(&answer.body) {
        let message = message?;
        let mut stored = payload::recognise(queue, message.property(payload::ID), message.body());
        stored.is_intact &= message.topic() == queue.topic
            && message.queue_id() == QueueId(queue.queue)
            && message.verify_crc();
        pulled.messages.push((message.queue_offset().0, stored));
        pulled.log_end = message.physical_offset().0 + message.as_bytes().len() as u64;
    }
    Ok(pulled)
}

/// What an outstanding request of a consumer was.
enum Asked {
    Pull(QueueKey),
    Commit(QueueKey, u64),
}

/// Tails all queues of a shard over one connection, from where the group is, and commits as it goes.
fn consume(address: SocketAddr, from: Vec<(QueueKey, u64)>, gate: &Gate) -> Result<Consumed, Failure> {
    let mut consumed = Consumed::default();
    let Ok(mut connection) = Raw::try_connect(address) else { return Ok(consumed) };
    let mut outstanding = BTreeMap::new();
    let mut answers_of: BTreeMap<QueueKey, u32> = BTreeMap::new();
    let pull = |connection: &mut Raw, queue, offset| {
        // The wait ends with messages or with the broker.
        connection.send(RequestCode::PULL_MESSAGE, &pull_request(queue, offset, 20_000), Vec::new())
    };
    for (queue, offset) in from {
        if let Ok(opaque) = pull(&mut connection, queue, offset) {
            outstanding.insert(opaque.0, Asked::Pull(queue));
        }
    }
    while let Some(answer) = next_answer(&mut connection)? {
        if gate.is_closed() {
            continue;
        }
        match outstanding.remove(&answer.opaque.0) {
            Some(Asked::Pull(queue)) => {
                let pulled = pulled(queue, &answer)?;
                let found = pulled.messages.len();
                consumed
                    .seen
                    .extend(pulled.messages.into_iter().map(|(offset, stored)| (queue, offset, stored)));
                // What cannot be sent any more needs no record: the broker is gone.
                if let Ok(opaque) = pull(&mut connection, queue, pulled.next) {
                    outstanding.insert(opaque.0, Asked::Pull(queue));
                }
                let answers = answers_of.entry(queue).or_default();
                *answers += u32::from(found > 0);
                if found > 0 && answers.is_multiple_of(COMMIT_EVERY) {
                    let commit = consumed.commits.entry(queue).or_default();
                    commit.attempted = commit.attempted.max(pulled.next);
                    let request = UpdateConsumerOffsetRequest {
                        consumer_group: GROUP.into(),
                        topic: queue.topic.into(),
                        queue_id: QueueId(queue.queue),
                        commit_offset: pulled.next as i64,
                    };
                    let sent = connection.send(RequestCode::UPDATE_CONSUMER_OFFSET, &request, Vec::new());
                    if let Ok(opaque) = sent {
                        outstanding.insert(opaque.0, Asked::Commit(queue, pulled.next));
                    }
                }
            }
            Some(Asked::Commit(queue, offset)) => {
                expect(&answer, &[ResponseCode::SUCCESS])?;
                let commit = consumed.commits.entry(queue).or_default();
                commit.acknowledged = commit.acknowledged.max(offset);
                consumed.commits_acknowledged += 1;
            }
            None => return Err(Failure(format!("an answer to nothing: {answer:?}"))),
        }
    }
    Ok(consumed)
}

/// Makes topics while messages flow.
fn make_topics(address: SocketAddr, shard: u16, cycle: u32, gate: &Gate) -> Result<Made, Failure> {
    let mut made = Made::new();
    let Ok(mut connection) = Raw::try_connect(address) else { return Ok(made) };
    for number in 0..TOPICS_MADE {
        let topic = format!("Made-{cycle}-{number}");
        let queues = 1 + (cycle + number) % 7;
        let sent = connection.send(
            RequestCode::UPDATE_AND_CREATE_TOPIC,
            &CreateTopicRequest::new(&*topic, queues as i32),
            Vec::new(),
        );
        if sent.is_err() {
            break;
        }
        let Some(answer) = next_answer(&mut connection)? else { break };
        if gate.is_closed() {
            break;
        }
        expect(&answer, &[ResponseCode::SUCCESS])?;
        made.push(((shard, topic), queues));
        // Spread over the cycle; how exactly does not matter.
        thread::sleep(Duration::from_millis(10));
    }
    Ok(made)
}
