//! Sending.
//!
//!   send ─▶ prepare (check, unique key, compress) ─▶ route ─▶ queue ─▶ request ─▶ SendResult
//!                         └─▶ accumulator ──────────────▲────────────────┘ another broker, while attempts and time last
//!                             (with batching)
//!
//! S1  a `SendResult` is returned only for a message that a broker said it stored (codes 0, 10, 11 and 12).
//! S2  every attempt carries the same unique key, so that whoever must can tell a duplicate.
//! S3  a send to a chosen queue is repeated on that queue only.

use std::borrow::Borrow;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::body::MessageQueue;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::{BODY_BYTES_MAX, Message, TOPIC_BYTES_MAX_V1, compress};
use ringmq_protocol::name;
use ringmq_protocol::properties::{self, Properties, names};
use ringmq_protocol::request::{SendMessageRequest, SendMessageResponse};
use ringmq_protocol::types::{Compression, QueueOffset, SysFlag, TagsCode};
use tokio::time::{Instant, sleep};

use crate::client::{Client, NEW_TOPIC_QUEUES, malformed, now_ms};
use crate::connection::Call;
use crate::error::{ConfigError, RequestError, RouteError, SendError};
use crate::group::from_wire;
use crate::hook::SendEvent;
use crate::retry::{QueueChoice, is_retryable};

mod accumulator;

use accumulator::Accumulator;
pub use accumulator::Batching;

/// The highest ZLIB level.
const COMPRESSION_LEVEL_MAX: u32 = 9;
/// Pause before the same broker is asked again.
const SAME_BROKER_PAUSE: Duration = Duration::from_millis(50);
/// What a broker stores of a message besides body, topic and properties, at most.
const STORED_OVERHEAD: usize = 128;
/// A message with one of these goes alone: brokers look for them, or put what belongs to them, in requests for one message.
const ALONE: [&str; 9] = [
    names::DELAY_TIME_LEVEL,
    names::TIMER_DELAY_SEC,
    names::TIMER_DELAY_MS,
    names::TIMER_DELIVER_MS,
    names::TIMER_DEL_UNIQKEY,
    names::TRANSACTION_PREPARED,
    names::WAIT_STORE_MSG_OK,
    names::CORRELATION_ID,
    names::MSG_TYPE,
];

/// How far a stored message had got when the broker answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendStatus {
    /// Stored as the broker's flush mode demands.
    SendOk,
    /// Stored, but not known to be on disk in time.
    FlushDiskTimeout,
    /// Stored, but not known to be on a slave's disk in time.
    FlushSlaveTimeout,
    /// Stored, but there is no slave.
    SlaveNotAvailable,
}

/// Where a message went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendResult {
    pub status: SendStatus,
    /// The unique key that the producer gave it.
    pub message_id: String,
    /// The broker's id: its address and the position in its log.
    pub offset_message_id: String,
    pub queue: MessageQueue,
    pub queue_offset: QueueOffset,
}

/// Settings of a [`Producer`].
pub struct ProducerBuilder {
    client: Client,
    group: String,
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    send_timeout: Duration,
    retries: u32,
    message_bytes_max: usize,
    compress_over: Option<usize>,
    compression: Compression,
    compression_level: u32,
    batching: Option<Batching>,
}

impl ProducerBuilder {
    /// How long a send may take with all its attempts; 3 s unless set. With [batching](Self::batching) up to twice that,
    /// as the messages of a batch have the time of the one that came last.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.settings.send_timeout = timeout;
        self
    }

    /// Attempts after the first one; 2 unless set.
    pub fn retries(mut self, count: u32) -> Self {
        self.settings.retries = count;
        self
    }

    /// The largest body, in bytes and before compression, and the largest batch; 4 MiB unless set, like in brokers.
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.message_bytes_max = bytes;
        self
    }

    /// Bodies of so many bytes are compressed if that makes them smaller, except by [`send_batch`](Producer::send_batch);
    /// 4096 unless set, `None` never compresses.
    pub fn compress_over(mut self, bytes: Option<usize>) -> Self {
        self.settings.compress_over = bytes;
        self
    }

    /// How bodies are compressed; ZLIB unless set, which every consumer can read. Those of Java read the others from
    /// version 5 on, those of Go and Node.js do not.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.settings.compression = compression;
        self
    }

    /// How hard ZLIB tries, from 0 to 9; 5 unless set, like in RocketMQ. LZ4 and Zstandard have one level here, the fastest.
    pub fn compression_level(mut self, level: u32) -> Self {
        self.settings.compression_level = level;
        self
    }

    /// Sends that are under way at the same time travel together; off unless set.
    pub fn batching(mut self, batching: Batching) -> Self {
        self.settings.batching = Some(batching);
        self
    }

    pub fn build(self) -> Result<Producer, ConfigError> {
        let settings = self.settings;
        name::validate_group(&self.group)?;
        if settings.compression_level > COMPRESSION_LEVEL_MAX {
            return Err(ConfigError::CompressionLevel(settings.compression_level));
        }
        if let Some(linger) = settings.batching.map(|batching| batching.linger)
            && linger >= settings.send_timeout
        {
            return Err(ConfigError::Linger { linger, send_timeout: settings.send_timeout });
        }
        self.client.add_producer(&self.group);
        let choice = QueueChoice::new(rand::random::<u16>().into());
        let sender = Arc::new(Sender { client: self.client, group: self.group, choice });
        let accumulator =
            settings.batching.map(|batching| Accumulator::new(sender.clone(), batching, &settings));
        Ok(Producer { inner: Arc::new(Inner { sender, settings, accumulator }) })
    }
}

/// Sends messages. Cheap to clone; all methods take `&self`.
///
/// Every `send` is a future of its own: await them one by one for the strictest order, or many at a time for speed
/// (`join_all`, a task each, `FuturesOrdered` …). The requests then share one connection per broker, and the
/// client's `in_flight_max` slows the sender down rather than filling its memory. Requests that are in flight at the
/// same time may be stored in any order.
///
/// With [`ProducerBuilder::batching`] sends that are under way at the same time share requests, and those to one queue keep
/// their order, see [`Batching`].
///
/// A failed send may have been stored all the same (its answer may have been lost), and a repeated one may be stored
/// twice: delivery is at least once.
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

struct Inner {
    sender: Arc<Sender>,
    settings: Settings,
    accumulator: Option<Arc<Accumulator>>,
}

impl Producer {
    pub(crate) fn builder(client: Client, group: String) -> ProducerBuilder {
        let settings = Settings {
            send_timeout: Duration::from_secs(3),
            retries: 2,
            message_bytes_max: BODY_BYTES_MAX,
            compress_over: Some(4096),
            compression: Compression::Zlib,
            compression_level: 5,
            batching: None,
        };
        ProducerBuilder { client, group, settings }
    }

    /// Sends to the next queue in turn; another broker is tried if one fails.
    pub async fn send(&self, message: Message) -> Result<SendResult, SendError> {
        let outbound = self.prepare(message)?;
        self.deliver(outbound, None).await
    }

    /// Sends to one queue, see [`queues`](Self::queues).
    pub async fn send_to(&self, queue: &MessageQueue, message: Message) -> Result<SendResult, SendError> {
        check_queue(queue, &message)?;
        let outbound = self.prepare(message)?;
        self.deliver(outbound, Some(queue)).await
    }

    /// Sends to the queue that belongs to the sharding key, so that messages of one key keep their order as long as
    /// each send is awaited before the next. The choice is that of Java's `SelectMessageQueueByHash`, and changes
    /// when the topic's queues do.
    pub async fn send_ordered(
        &self,
        mut message: Message,
        sharding_key: &str,
    ) -> Result<SendResult, SendError> {
        message.set(names::SHARDING_KEY, sharding_key);
        let queues = self.queues(&message.topic).await?;
        let queue = queue_of_key(&queues, sharding_key)
            .ok_or_else(|| no_queue(&message.topic))
            .map_err(SendError::Route)?;
        let outbound = self.prepare(message)?;
        self.deliver(outbound, Some(queue)).await
    }

    /// Sends without asking for an answer: fast, and nobody knows whether it arrived. It waits for no batch.
    pub async fn send_one_way(&self, message: Message) -> Result<(), SendError> {
        let outbound = self.prepare(message)?;
        let sender = &self.inner.sender;
        let stats = sender.client.registry().sends(&sender.group, &outbound.topic);
        let route = sender.client.publish_route(&outbound.topic, None).await?;
        let queue = sender.choice.next(&route.writable, &[], Instant::now());
        let queue = queue.ok_or_else(|| no_queue(&outbound.topic))?;
        let name = &queue.broker_name;
        let address = route.master(name).ok_or_else(|| RouteError::UnknownBroker(name.clone()))?;
        let request = sender.request(&outbound, queue);
        let fields = request.fields_v2();
        let call = Call::new(RequestCode::SEND_MESSAGE_V2, &fields).body(outbound.body.clone());
        let failed = |source| SendError::Failed { source, attempts: 1, attempts_max: 1 };
        let left = sender.client.one_way(&address, &call).await;
        stats.sent(1, outbound.body.len(), left.is_ok(), None);
        left.map_err(failed)
    }

    /// Sends messages of one topic as a unit: all or none are stored, one behind the other in one queue. Their
    /// bodies and properties together must not exceed the largest message. One result per message, in order.
    pub async fn send_batch(&self, messages: Vec<Message>) -> Result<Vec<SendResult>, SendError> {
        self.deliver_batch(messages, None).await
    }

    /// A batch to one queue.
    pub async fn send_batch_to(
        &self,
        queue: &MessageQueue,
        messages: Vec<Message>,
    ) -> Result<Vec<SendResult>, SendError> {
        if let Some(message) = messages.first() {
            check_queue(queue, message)?;
        }
        self.deliver_batch(messages, Some(queue)).await
    }

    async fn deliver_batch(
        &self,
        messages: Vec<Message>,
        queue: Option<&MessageQueue>,
    ) -> Result<Vec<SendResult>, SendError> {
        let (outbound, keys) = self.prepare_batch(messages)?;
        let result = self.deliver(outbound, queue).await?;
        Ok(results_of_batch(&result, keys).collect())
    }

    /// The queues of a topic that take messages, in RocketMQ's order. For a topic that does not exist yet, those it
    /// will have once the first message creates it.
    pub async fn queues(&self, topic: &str) -> Result<Vec<MessageQueue>, SendError> {
        check_topic(topic)?;
        Ok(self.inner.sender.client.publish_route(topic, None).await?.writable.clone())
    }

    /// Tells brokers that this producer is gone. Sends under way are not waited for: await them.
    pub async fn shutdown(self) {
        let sender = &self.inner.sender;
        sender.client.remove_producer(&sender.group).await;
    }

    async fn deliver(
        &self,
        outbound: Outbound,
        queue: Option<&MessageQueue>,
    ) -> Result<SendResult, SendError> {
        let (settings, sender) = (&self.inner.settings, &self.inner.sender);
        let outbound = Arc::new(outbound);
        let begun = Instant::now();
        let outcome = match &self.inner.accumulator {
            // What goes alone keeps its place among the others of its queue; without a queue there is no place to keep.
            Some(accumulator) if queue.is_some() || outbound.joins => {
                accumulator.deliver(outbound.clone(), queue).await
            }
            _ => sender.deliver(&outbound, queue, settings.send_timeout, settings.retries).await,
        };
        let took = begun.elapsed();
        let stats = sender.client.registry().sends(&sender.group, &outbound.topic);
        stats.sent(outbound.messages, outbound.body.len(), outcome.is_ok(), Some(took));
        sender.client.hooks().after_send(&SendEvent {
            group: &sender.group,
            topic: &outbound.topic,
            message_id: &outbound.message_id,
            messages: outbound.messages,
            outcome: outcome.as_ref(),
            took,
        });
        outcome
    }

    fn prepare(&self, message: Message) -> Result<Outbound, SendError> {
        let settings = &self.inner.settings;
        let mut outbound = self.prepare_as_it_is(message)?;
        if settings.compress_over.is_some_and(|over| outbound.body.len() >= over) {
            let compressed = compress(settings.compression, &outbound.body, settings.compression_level);
            if compressed.len() < outbound.body.len() {
                outbound.body = compressed.into();
                outbound.sys_flag = outbound.sys_flag.with_compression(Some(settings.compression));
            }
        }
        Ok(outbound)
    }

    fn prepare_as_it_is(&self, mut message: Message) -> Result<Outbound, SendError> {
        let (settings, sender) = (&self.inner.settings, &self.inner.sender);
        sender.client.hooks().before_send(&sender.group, &mut message);
        check_topic(&message.topic)?;
        check_body(&message.body, settings.message_bytes_max)?;
        let message_id = self.give_key(&mut message);
        Ok(Outbound {
            properties: encode_properties(&message)?,
            flag: message.flag,
            joins: joins_batches(&message),
            topic: message.topic,
            body: message.body,
            sys_flag: SysFlag(0),
            message_id,
            born_timestamp: now_ms(),
            batch: false,
            messages: 1,
            reconsume_times: 0,
            max_reconsume_times: None,
        })
    }

    fn prepare_batch(&self, messages: Vec<Message>) -> Result<(Outbound, Vec<String>), SendError> {
        let illegal = |problem: &str| SendError::Illegal(problem.to_string());
        let mut entries: Vec<Outbound> = Vec::with_capacity(messages.len());
        for message in messages {
            let entry = self.prepare_as_it_is(message)?;
            if Properties::new(entry.properties.as_bytes()).get(names::DELAY_TIME_LEVEL).is_some() {
                return Err(illegal("a delayed message goes in no batch"));
            }
            if name::is_retry_topic(&entry.topic) {
                return Err(illegal("a retry topic takes no batch"));
            }
            if entries.first().is_some_and(|first| first.topic != entry.topic) {
                return Err(illegal("the messages of a batch go to one topic"));
            }
            entries.push(entry);
        }
        let bytes_max = self.inner.settings.message_bytes_max;
        let stored_bytes: usize = entries.iter().map(Outbound::stored_bytes).sum();
        if stored_bytes > bytes_max && entries.len() > 1 {
            return Err(SendError::Illegal(format!(
                "the batch takes {stored_bytes} bytes, more than the {bytes_max} allowed; send fewer at a time"
            )));
        }
        let outbound = Outbound::of_batch(&entries, self.inner.sender.client.unique_key())?;
        Ok((outbound, entries.into_iter().map(|entry| entry.message_id).collect()))
    }

    fn give_key(&self, message: &mut Message) -> String {
        if let Some(key) = message.property(names::UNIQ_KEY) {
            return key.to_string();
        }
        let key = self.inner.sender.client.unique_key();
        message.set(names::UNIQ_KEY, &key);
        key
    }
}

/// A message ready to be sent, as often as it takes.
pub(crate) struct Outbound {
    pub(crate) topic: String,
    pub(crate) body: Bytes,
    pub(crate) properties: String,
    pub(crate) flag: i32,
    pub(crate) sys_flag: SysFlag,
    pub(crate) message_id: String,
    pub(crate) born_timestamp: i64,
    pub(crate) batch: bool,
    /// How many it is.
    pub(crate) messages: usize,
    /// Whether it may become part of a batch.
    pub(crate) joins: bool,
    pub(crate) reconsume_times: i32,
    pub(crate) max_reconsume_times: Option<i32>,
}

impl Outbound {
    /// Messages of one topic as one request. All have the flags of the first one, which say whether they are compressed.
    fn of_batch<E: Borrow<Outbound>>(entries: &[E], message_id: String) -> Result<Self, SendError> {
        let illegal = |problem: &dyn Display| SendError::Illegal(problem.to_string());
        let Some(first) = entries.first() else { return Err(illegal(&"a batch needs a message")) };
        let first = first.borrow();
        let mut body = Vec::with_capacity(entries.iter().map(|entry| entry.borrow().stored_bytes()).sum());
        for entry in entries {
            let Self { flag, body: bytes, properties, .. } = entry.borrow();
            let entry = BatchEntry { flag: *flag, body: bytes, properties: properties.as_bytes() };
            entry.encode(&mut body).map_err(|error| illegal(&error))?;
        }
        let mut properties = Vec::new();
        properties::put(&mut properties, names::UNIQ_KEY, &message_id).map_err(|error| illegal(&error))?;
        Ok(Self {
            topic: first.topic.clone(),
            body: body.into(),
            properties: String::from_utf8_lossy(&properties).into_owned(),
            flag: 0,
            sys_flag: first.sys_flag,
            message_id,
            born_timestamp: first.born_timestamp,
            batch: true,
            messages: entries.len(),
            joins: false,
            reconsume_times: 0,
            max_reconsume_times: None,
        })
    }

    /// What the stored message takes, at most.
    fn stored_bytes(&self) -> usize {
        STORED_OVERHEAD + self.topic.len() + self.body.len() + self.properties.len()
    }
}

/// The part of a producer that consumers need too, for messages whose processing failed.
pub(crate) struct Sender {
    pub(crate) client: Client,
    pub(crate) group: String,
    pub(crate) choice: QueueChoice,
}

impl Sender {
    pub(crate) async fn deliver(
        &self,
        outbound: &Outbound,
        chosen: Option<&MessageQueue>,
        timeout: Duration,
        retries: u32,
    ) -> Result<SendResult, SendError> {
        let deadline = Instant::now() + timeout;
        let attempts_max = retries.saturating_add(1);
        let mut tried: Vec<String> = Vec::new();
        let mut route_newer_than = None;
        loop {
            let route = self.client.publish_route(&outbound.topic, route_newer_than).await?;
            let queue = match chosen {
                Some(queue) => queue,
                None => self
                    .choice
                    .next(&route.writable, &tried, Instant::now())
                    .ok_or_else(|| no_queue(&outbound.topic))?,
            };
            let name = &queue.broker_name;
            let address = route.master(name).ok_or_else(|| RouteError::UnknownBroker(name.clone()))?;
            if tried.last() == Some(name) {
                sleep(SAME_BROKER_PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
            let begun = Instant::now();
            let source = match self.attempt(outbound, queue, &address, deadline).await {
                Ok(result) => {
                    self.choice.succeeded(name);
                    return Ok(result);
                }
                Err(error) => error,
            };
            let attempts = u32::try_from(tried.len() + 1).unwrap_or(u32::MAX);
            if source.is_transport() {
                self.choice.failed(name, Instant::now());
                route_newer_than = Some(begun);
            }
            if attempts >= attempts_max || !is_retryable(&source) || Instant::now() >= deadline {
                return Err(SendError::Failed { source, attempts, attempts_max });
            }
            tracing::info!(error = %source, attempts, "sending again");
            tried.push(name.clone());
        }
    }

    async fn attempt(
        &self,
        outbound: &Outbound,
        queue: &MessageQueue,
        address: &Arc<str>,
        deadline: Instant,
    ) -> Result<SendResult, RequestError> {
        let code =
            if outbound.batch { RequestCode::SEND_BATCH_MESSAGE } else { RequestCode::SEND_MESSAGE_V2 };
        let request = self.request(outbound, queue);
        let fields = request.fields_v2();
        let call = Call::new(code, &fields).body(outbound.body.clone());
        let timeout = deadline.saturating_duration_since(Instant::now());
        let response = self.client.call(address, &call, timeout).await?;
        send_result(address, code, &response, outbound, queue)
    }

    fn request<'a>(&'a self, outbound: &'a Outbound, queue: &'a MessageQueue) -> SendMessageRequest<'a> {
        SendMessageRequest {
            producer_group: (&*self.group).into(),
            topic: (&*outbound.topic).into(),
            default_topic: name::AUTO_CREATE_TOPIC_KEY_TOPIC.into(),
            default_topic_queue_nums: NEW_TOPIC_QUEUES as i32, // 4
            queue_id: queue.queue_id,
            sys_flag: outbound.sys_flag.0,
            born_timestamp: outbound.born_timestamp,
            flag: outbound.flag,
            properties: Some((&*outbound.properties).into()),
            reconsume_times: outbound.reconsume_times,
            unit_mode: false,
            max_reconsume_times: outbound.max_reconsume_times,
            batch: outbound.batch,
            broker_name: Some((&*queue.broker_name).into()),
        }
    }
}

fn send_result(
    address: &Arc<str>,
    request: RequestCode,
    response: &RemotingCommand,
    outbound: &Outbound,
    queue: &MessageQueue,
) -> Result<SendResult, RequestError> {
    let status = match ResponseCode(response.code) {
        ResponseCode::SUCCESS => SendStatus::SendOk,
        ResponseCode::FLUSH_DISK_TIMEOUT => SendStatus::FlushDiskTimeout,
        ResponseCode::FLUSH_SLAVE_TIMEOUT => SendStatus::FlushSlaveTimeout,
        ResponseCode::SLAVE_NOT_AVAILABLE => SendStatus::SlaveNotAvailable,
        code => {
            return Err(RequestError::Refused {
                address: address.clone(),
                request: request.name(),
                code,
                remark: response.remark.clone().unwrap_or_default(),
            });
        }
    };
    let header = response.header();
    let fields = SendMessageResponse::decode(&header.ext)
        .map_err(|problem| malformed(address, request, problem.to_string()))?;
    Ok(SendResult {
        status,
        message_id: outbound.message_id.clone(),
        offset_message_id: fields.msg_id.into_owned(),
        queue: MessageQueue { queue_id: fields.queue_id, ..queue.clone() },
        queue_offset: from_wire(fields.queue_offset),
    })
}

/// What the answer to a batch says of each of its messages.
fn results_of_batch(
    batch: &SendResult,
    message_ids: impl IntoIterator<Item = String>,
) -> impl Iterator<Item = SendResult> {
    let mut offset_ids = batch.offset_message_id.split(',');
    message_ids.into_iter().zip(batch.queue_offset.0..).map(move |(message_id, offset)| SendResult {
        status: batch.status,
        message_id,
        offset_message_id: offset_ids.next().unwrap_or_default().to_string(),
        queue: batch.queue.clone(),
        queue_offset: QueueOffset(offset),
    })
}

/// Java's choice: the absolute value of the key's hash, modulo the number of queues.
fn queue_of_key<'q>(queues: &'q [MessageQueue], key: &str) -> Option<&'q MessageQueue> {
    let hash = TagsCode::of(key).0.checked_abs().unwrap_or(0);
    let index = usize::try_from(hash).unwrap_or(0).checked_rem(queues.len())?;
    queues.get(index)
}

fn no_queue(topic: &str) -> RouteError {
    RouteError::NoQueue { topic: topic.to_string(), wanted: "writable" }
}

fn check_topic(topic: &str) -> Result<(), SendError> {
    name::validate_topic(topic).map_err(|error| SendError::Illegal(error.to_string()))?;
    if name::is_send_forbidden(topic) {
        return Err(SendError::Illegal(format!("topic {topic} belongs to the brokers")));
    }
    Ok(())
}

/// Brokers take no batch to a retry topic or to one with a name that long.
fn joins_batches(message: &Message) -> bool {
    message.topic.len() <= TOPIC_BYTES_MAX_V1
        && !name::is_retry_topic(&message.topic)
        && !ALONE.iter().any(|name| message.property(name).is_some())
}

fn check_queue(queue: &MessageQueue, message: &Message) -> Result<(), SendError> {
    if queue.topic == message.topic {
        return Ok(());
    }
    Err(SendError::Illegal(format!(
        "the message is for topic {}, the queue of {}",
        message.topic, queue.topic
    )))
}

fn check_body(body: &Bytes, bytes_max: usize) -> Result<(), SendError> {
    match body.len() {
        0 => Err(SendError::Illegal("the body is empty; RocketMQ stores no empty messages".into())),
        length if length > bytes_max => {
            Err(SendError::Illegal(format!("the body has {length} bytes, {bytes_max} are allowed")))
        }
        _ => Ok(()),
    }
}

fn encode_properties(message: &Message) -> Result<String, SendError> {
    let bytes = message.encode_properties().map_err(|error| SendError::Illegal(error.to_string()))?;
    if bytes.len() > properties::PROPERTIES_BYTES_MAX {
        let max = properties::PROPERTIES_BYTES_MAX;
        return Err(SendError::Illegal(format!(
            "the properties take {} bytes, {max} are allowed",
            bytes.len()
        )));
    }
    // They were made of strings and ASCII separators.
    String::from_utf8(bytes).map_err(|error| SendError::Illegal(error.to_string()))
}

#[cfg(test)]
mod tests;
