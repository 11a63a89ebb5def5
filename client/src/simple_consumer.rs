//! The simple consumer: messages are lent by brokers (POP), one by one, and come again unless they are acknowledged.
//!
//!   receive ─▶ pop from each broker in turn ─┬▶ messages ─▶ application ─▶ ack │ change_invisible
//!                ▲                           └▶ none anywhere
//!                └── a broker has something ◀── one notification waits at each broker
//!
//! M1  no pop waits at a broker: whoever gives up a `receive` while it waits loses nothing.
//! M2  at most one notification of a consumer waits for each topic at each broker, however often `receive` is called.
//! M3  a message that the subscription does not want, but the broker could not tell, is acknowledged here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ringmq_protocol::body::{
    BatchAck, BatchAckBody, Body, ConsumeType, ConsumerRunningInfo, MessageModel, MessageQueue,
    SubscriptionData,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::Fields;
use ringmq_protocol::message::{MessageExt, messages};
use ringmq_protocol::name;
use ringmq_protocol::properties::names;
use ringmq_protocol::receipt::{PopSource, Receipt};
use ringmq_protocol::request::{
    AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, NotificationRequest,
    NotificationResponse, PopMessageRequest, PopMessageResponse,
};
use ringmq_protocol::types::QueueOffset;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{Client, lock, malformed, now_ms, success};
use crate::connection::Call;
use crate::error::{ConsumeError, RequestError, RouteError};
use crate::group::{ConsumeFrom, tag_subscription, to_wire};
use crate::member::{ConsumerMember, MemberRequests};
use crate::pull::{BODY_BYTES_MAX, PULL_SLACK, is_wanted};

/// Messages that brokers lend at once.
const RECEIVE_MAX: u32 = 32;
/// How long a notification waits at a broker.
const NOTIFICATION_HOLD: Duration = Duration::from_secs(15);
/// How soon brokers are asked again that cannot tell when they have something.
const BLIND_RETRY: Duration = Duration::from_secs(1);
/// A broker may have something that this consumer cannot get, and say so again and again.
const IN_VAIN_PAUSE: Duration = Duration::from_millis(50);

/// Settings of a [`SimpleConsumer`].
pub struct SimpleConsumerBuilder {
    client: Client,
    group: String,
    topics: Vec<(String, String)>,
    from: ConsumeFrom,
    wait: Duration,
}

impl SimpleConsumerBuilder {
    /// Subscribes to a topic; may be called for several. `expression` is `*`, or tags like `a || b`.
    pub fn subscribe(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.topics.push((topic.into(), expression.into()));
        self
    }

    /// Where to begin with a queue of which the group has no offset: the first or the last message, which is what is
    /// taken unless set. Brokers cannot begin at a time.
    pub fn consume_from(mut self, from: ConsumeFrom) -> Self {
        self.from = from;
        self
    }

    /// How long [`receive`](SimpleConsumer::receive) waits for a message; 15 s unless set.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Joins the group. A subscribed topic may appear later.
    pub async fn build(self) -> Result<SimpleConsumer, ConsumeError> {
        name::validate_group(&self.group).map_err(|error| ConsumeError::Config(error.to_string()))?;
        if self.topics.is_empty() {
            return Err(ConsumeError::Config("subscribe to a topic before receiving".into()));
        }
        if let ConsumeFrom::Timestamp(_) = self.from {
            let problem = "a simple consumer begins at the first or the last message, not at a time";
            return Err(ConsumeError::Config(problem.into()));
        }
        let subscriptions = self
            .topics
            .iter()
            .map(|(topic, expression)| tag_subscription(topic, expression))
            .collect::<Result<Vec<_>, _>>()?;
        let inner = Arc::new_cyclic(|weak: &Weak<Inner>| Inner {
            member: Arc::new(ConsumerMember {
                group: self.group.clone(),
                consume_type: ConsumeType::ConsumePop,
                message_model: MessageModel::Clustering,
                consume_from_where: self.from.wire(),
                subscriptions: subscriptions.clone(),
                started_ms: now_ms(),
                rebalance: Notify::new(),
                requests: weak.clone(),
            }),
            client: self.client,
            group: self.group,
            subscriptions: subscriptions.into_iter().map(Arc::new).collect(),
            from: self.from,
            wait: self.wait,
            turn: AtomicUsize::new(rand::random::<u16>().into()),
            news: watch::Sender::new(0),
            watching: Mutex::default(),
        });
        inner.client.join(&inner.member).await?;
        Ok(SimpleConsumer { inner })
    }
}

/// A consumer to which brokers lend single messages: many members can work on one queue, and a slow message holds up no
/// other.
///
/// ```no_run
/// # async fn example(client: ringmq_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let consumer = client.simple_consumer("billing").subscribe("Orders", "*").build().await?;
/// for received in consumer.receive(16, Duration::from_secs(60)).await? {
///     println!("{:?}", received.message.message.body);
///     consumer.ack(&received).await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// A message that was received is invisible to all members for the time that [`receive`](Self::receive) names. Unless it
/// is acknowledged until then it comes again, to whoever asks, and after too many times it becomes a dead letter.
/// [`change_invisible`](Self::change_invisible) gives it more time, or less. Dropping the consumer is like a crash.
///
/// All methods take `&self`, so several tasks can receive and acknowledge at the same time.
pub struct SimpleConsumer {
    inner: Arc<Inner>,
}

/// A message that a broker lent.
#[derive(Clone, Debug)]
pub struct Received {
    /// If it comes again its topic is still the one it was sent to.
    pub message: MessageExt,
    topic: String,
    receipt: String,
}

impl Received {
    /// What identifies this loan towards the broker (`POP_CK`); it changes with
    /// [`change_invisible`](SimpleConsumer::change_invisible).
    pub fn receipt(&self) -> &str {
        &self.receipt
    }

    fn parse(&self) -> Result<(Receipt<'_>, QueueOffset), ConsumeError> {
        let receipt =
            Receipt::parse(&self.receipt).map_err(|problem| ConsumeError::Config(problem.to_string()))?;
        let offset = receipt.queue_offset.unwrap_or(self.message.queue_offset);
        Ok((receipt, offset))
    }
}

struct Inner {
    client: Client,
    group: String,
    member: Arc<ConsumerMember>,
    subscriptions: Vec<Arc<SubscriptionData>>,
    from: ConsumeFrom,
    wait: Duration,
    /// The target that is asked first.
    turn: AtomicUsize,
    /// Changes when a broker may have something.
    news: watch::Sender<u64>,
    /// Notifications that wait, by topic and address.
    watching: Mutex<BTreeMap<(String, Arc<str>), AbortHandle>>,
}

/// Where messages of a topic can come from.
struct Target {
    subscription: Arc<SubscriptionData>,
    broker_name: String,
    address: Arc<str>,
}

impl Drop for SimpleConsumer {
    fn drop(&mut self) {
        self.inner.stop_watching();
        self.inner.client.forget_consumer(&self.inner.group);
    }
}

impl SimpleConsumer {
    pub(crate) fn builder(client: Client, group: String) -> SimpleConsumerBuilder {
        let wait = Duration::from_secs(15);
        SimpleConsumerBuilder { client, group, topics: Vec::new(), from: ConsumeFrom::LastOffset, wait }
    }

    /// Up to `count_max` messages of one topic and broker, at most 32, as soon as there are any; none if there were none
    /// for as long as [`wait`](SimpleConsumerBuilder::wait) says. They are invisible to others for `invisible`, from when
    /// the broker lent them; brokers take milliseconds.
    ///
    /// If the future is dropped while a broker is answering, what it lent comes again after that time.
    pub async fn receive(&self, count_max: u32, invisible: Duration) -> Result<Vec<Received>, ConsumeError> {
        if count_max == 0 || count_max > RECEIVE_MAX {
            return Err(ConsumeError::Config(format!(
                "{count_max} messages at once; 1 to {RECEIVE_MAX} are allowed"
            )));
        }
        let invisible_ms = millis(invisible)?;
        let deadline = Instant::now() + self.inner.wait;
        let mut news = self.inner.news.subscribe();
        loop {
            news.mark_unchanged();
            let targets = self.inner.targets().await?;
            let received = self.inner.pop_in_turn(&targets, count_max, invisible_ms).await?;
            if !received.is_empty() || Instant::now() >= deadline {
                return Ok(received);
            }
            for target in &targets {
                self.inner.watch(target);
            }
            // Ends by news or at the deadline; either way brokers are asked once more.
            drop(timeout_at(deadline, news.changed()).await);
        }
    }

    /// Says that a message is done with: it does not come again. To acknowledge it twice, or too late, is no error; too
    /// late it may have come again already.
    pub async fn ack(&self, message: &Received) -> Result<(), ConsumeError> {
        let (receipt, offset) = message.parse()?;
        let topic = receipt.source.topic_of(&self.inner.group, &message.topic);
        let request = AckMessageRequest {
            consumer_group: (&*self.inner.group).into(),
            topic: (&*topic).into(),
            queue_id: i32::try_from(receipt.queue_id.0).unwrap_or(i32::MAX),
            extra_info: (&*message.receipt).into(),
            offset: to_wire(offset),
        };
        self.inner.ask(&message.topic, receipt.broker_name, RequestCode::ACK_MESSAGE, &request).await?;
        self.inner.acknowledged(&message.topic, 1);
        Ok(())
    }

    /// Acknowledges many messages with one request per broker. If one of these fails, those of the others are done with
    /// all the same; to acknowledge all again is no error.
    pub async fn ack_all(&self, messages: &[Received]) -> Result<(), ConsumeError> {
        self.inner.clone().ack_all(messages).await
    }

    /// Makes a received message come again after so long from now, unless it is acknowledged before. From now on only
    /// this very value can acknowledge it: the receipts of clones are worth nothing.
    pub async fn change_invisible(
        &self,
        message: &mut Received,
        invisible: Duration,
    ) -> Result<(), ConsumeError> {
        let (receipt, offset) = message.parse()?;
        let topic = receipt.source.topic_of(&self.inner.group, &message.topic);
        let request = ChangeInvisibleTimeRequest {
            consumer_group: (&*self.inner.group).into(),
            topic: (&*topic).into(),
            queue_id: i32::try_from(receipt.queue_id.0).unwrap_or(i32::MAX),
            extra_info: (&*message.receipt).into(),
            offset: to_wire(offset),
            invisible_time: millis(invisible)?,
        };
        let code = RequestCode::CHANGE_MESSAGE_INVISIBLETIME;
        let (address, response) = self.inner.ask(&message.topic, receipt.broker_name, code, &request).await?;
        let changed = ChangeInvisibleTimeResponse::decode(&response.header().ext)
            .map_err(|problem| malformed(&address, code, problem.to_string()))?;
        let receipt = Receipt {
            start_offset: offset,
            pop_time: changed.pop_time,
            invisible_time: changed.invisible_time,
            revive_queue_id: changed.revive_qid,
            queue_offset: Some(offset),
            ..receipt
        };
        message.receipt = receipt.to_string();
        Ok(())
    }

    /// Leaves the group. What was received and not acknowledged comes again when its time is over.
    pub async fn shutdown(self) {
        self.inner.stop_watching();
        self.inner.client.remove_consumer(&self.inner.group).await;
    }
}

fn millis(invisible: Duration) -> Result<i64, ConsumeError> {
    match i64::try_from(invisible.as_millis()) {
        Ok(millis) if millis > 0 => Ok(millis),
        _ => Err(ConsumeError::Config(format!(
            "a message cannot be invisible for {invisible:?}; at least 1 ms"
        ))),
    }
}

impl Inner {
    fn stop_watching(&self) {
        std::mem::take(&mut *lock(&self.watching)).into_values().for_each(|waiting| waiting.abort());
    }

    fn acknowledged(&self, topic: &str, count: usize) {
        self.client.registry().consumes(&self.group, topic).acknowledged(count);
    }

    /// Every broker of every topic.
    async fn targets(&self) -> Result<Vec<Target>, ConsumeError> {
        let mut targets = Vec::new();
        let mut problem = None;
        for subscription in &self.subscriptions {
            let route = match self.client.route(&subscription.topic, None).await {
                Ok(route) => route,
                Err(error) => {
                    problem = Some(error);
                    continue;
                }
            };
            let mut names: Vec<&String> = route.readable.iter().map(|queue| &queue.broker_name).collect();
            names.dedup();
            targets.extend(names.into_iter().filter_map(|name| {
                let address = route.master(name)?;
                Some(Target { subscription: subscription.clone(), broker_name: name.clone(), address })
            }));
        }
        match (targets.is_empty(), problem) {
            (false, _) => Ok(targets),
            (true, Some(problem)) => Err(problem.into()),
            (true, None) => {
                let topic =
                    self.subscriptions.iter().map(|s| s.topic.as_str()).collect::<Vec<_>>().join(", ");
                Err(RouteError::NoQueue { topic, wanted: "readable" }.into())
            }
        }
    }

    /// Asks one target after the other, until one has something. Fails only if all do.
    async fn pop_in_turn(
        self: &Arc<Self>,
        targets: &[Target],
        count_max: u32,
        invisible_ms: i64,
    ) -> Result<Vec<Received>, ConsumeError> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % targets.len().max(1);
        let mut outcome = None;
        for target in targets[start..].iter().chain(&targets[..start]) {
            match self.pop(target, count_max, invisible_ms).await {
                Ok(received) if !received.is_empty() => return Ok(received),
                Ok(_) => outcome = Some(Ok(Vec::new())),
                Err(error) => {
                    tracing::warn!(%error, topic = %target.subscription.topic, "nothing received");
                    outcome.get_or_insert(Err(error));
                }
            }
        }
        outcome.unwrap_or_else(|| Ok(Vec::new()))
    }

    async fn pop(
        self: &Arc<Self>,
        target: &Target,
        count_max: u32,
        invisible_ms: i64,
    ) -> Result<Vec<Received>, ConsumeError> {
        let subscription = &target.subscription;
        let count_max = i32::try_from(count_max).unwrap_or(i32::MAX);
        let request = PopMessageRequest {
            init_mode: i32::from(self.from == ConsumeFrom::LastOffset),
            exp_type: Some(subscription.expression_type.as_str().into()),
            exp: Some(subscription.sub_string.as_str().into()),
            ..PopMessageRequest::new(&*self.group, &*subscription.topic, count_max, invisible_ms)
        };
        let code = RequestCode::POP_MESSAGE;
        let begun = Instant::now();
        let response = self
            .client
            .call(&target.address, &Call::new(code, &request), self.client.request_timeout())
            .await;
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                // The broker may have moved; the outcome of this only matters to the next pop.
                drop(self.client.route(&subscription.topic, Some(begun)).await);
                return Err(error.into());
            }
        };
        if matches!(
            ResponseCode(response.code),
            ResponseCode::PULL_NOT_FOUND | ResponseCode::POLLING_TIMEOUT | ResponseCode::POLLING_FULL
        ) {
            return Ok(Vec::new());
        }
        let response = success(&target.address, code, response)?;
        let problem = |problem: String| malformed(&target.address, code, problem);
        let header = response.header();
        let fields = PopMessageResponse::decode(&header.ext).map_err(|error| problem(error.to_string()))?;
        let starts =
            start_offsets(fields.start_offset_info.as_deref().unwrap_or_default()).map_err(problem)?;
        let (mut received, mut unwanted) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for stored in messages(&response.body) {
            let message = stored
                .map_err(|error| error.to_string())
                .and_then(|stored| {
                    MessageExt::decode(&stored, BODY_BYTES_MAX).map_err(|error| error.to_string())
                })
                .map_err(problem)?;
            let message = self.received(target, &fields, &starts, message).map_err(problem)?;
            bytes += message.message.message.body.len();
            let list = if is_wanted(subscription, &message.message) { &mut received } else { &mut unwanted };
            list.push(message);
        }
        let stats = self.client.registry().consumes(&self.group, &subscription.topic);
        stats.received(received.len() + unwanted.len(), bytes, begun.elapsed());
        // M3. If it fails they come again, and then it is done again.
        if !unwanted.is_empty()
            && let Err(error) = self.clone().ack_all(&unwanted).await
        {
            tracing::warn!(%error, "unwanted messages not acknowledged");
        }
        Ok(received)
    }

    /// Adds to a message what its receipt needs.
    fn received(
        &self,
        target: &Target,
        fields: &PopMessageResponse<'_>,
        starts: &BTreeMap<(PopSource, u32), QueueOffset>,
        mut message: MessageExt,
    ) -> Result<Received, String> {
        let topic = &target.subscription.topic;
        let receipt = match message.message.property(names::POP_CK) {
            // The broker gave it one, as it does for what comes again.
            Some(receipt) => Receipt::parse(receipt).map_err(|problem| problem.to_string())?.to_string(),
            None => {
                let sources = [PopSource::Topic, PopSource::RetryV1, PopSource::RetryV2];
                let source = sources
                    .into_iter()
                    .find(|source| source.topic_of(&self.group, topic) == message.message.topic)
                    .ok_or_else(|| format!("a message of topic {}", message.message.topic))?;
                let start = starts.get(&(source, message.queue_id.0));
                let receipt = Receipt {
                    start_offset: start.copied().unwrap_or(message.queue_offset),
                    pop_time: fields.pop_time,
                    invisible_time: fields.invisible_time,
                    revive_queue_id: fields.revive_qid,
                    source,
                    broker_name: &target.broker_name,
                    queue_id: message.queue_id,
                    queue_offset: Some(message.queue_offset),
                };
                receipt.to_string()
            }
        };
        message.message.topic.clone_from(topic);
        Ok(Received { message, topic: topic.clone(), receipt })
    }

    async fn ack_all(self: Arc<Self>, messages: &[Received]) -> Result<(), ConsumeError> {
        // By broker and topic; in there by what the messages of one queue of one pop have in common.
        type Key = (PopSource, u32, QueueOffset, i64, i64, i32);
        let mut brokers: BTreeMap<(String, String), BTreeMap<Key, Vec<u32>>> = BTreeMap::new();
        for message in messages {
            let (receipt, offset) = message.parse()?;
            let Receipt { source, queue_id, start_offset, pop_time, invisible_time, revive_queue_id, .. } =
                receipt;
            let Some(distance) =
                offset.0.checked_sub(start_offset.0).and_then(|distance| distance.try_into().ok())
            else {
                return Err(ConsumeError::Config(format!("receipt {} contradicts itself", message.receipt)));
            };
            let broker = (receipt.broker_name.to_string(), message.topic.clone());
            let key = (source, queue_id.0, start_offset, pop_time, invisible_time, revive_queue_id);
            brokers.entry(broker).or_default().entry(key).or_default().push(distance);
        }
        let mut requests = JoinSet::new();
        for ((broker_name, topic), pops) in brokers {
            let inner = self.clone();
            let count = pops.values().map(Vec::len).sum();
            let entry = |(key, distances): (Key, Vec<u32>)| {
                let (source, queue_id, start_offset, pop_time, invisible_time, revive_queue_id) = key;
                BatchAck {
                    offsets: distances.into_iter().collect(),
                    consumer_group: inner.group.clone(),
                    invisible_time,
                    pop_time,
                    queue_id: i32::try_from(queue_id).unwrap_or(i32::MAX),
                    retry: source.flag().to_string(),
                    revive_queue_id,
                    start_offset: to_wire(start_offset),
                    topic: topic.clone(),
                }
            };
            let body = BatchAckBody {
                acks: pops.into_iter().map(entry).collect(),
                broker_name: broker_name.clone(),
            };
            requests.spawn(async move {
                let address = inner.address(&topic, &broker_name).await?;
                let call = Call::new(RequestCode::BATCH_ACK_MESSAGE, &()).body(body.to_json());
                inner.client.ask(&address, &call, inner.client.request_timeout()).await?;
                inner.acknowledged(&topic, count);
                Ok(())
            });
        }
        let mut outcome = Ok(());
        while let Some(joined) = requests.join_next().await {
            // A request does not panic, and nobody aborts it.
            outcome = outcome.and(joined.unwrap_or(Err(ConsumeError::ShutDown)));
        }
        outcome
    }

    async fn address(&self, topic: &str, broker_name: &str) -> Result<Arc<str>, ConsumeError> {
        Ok(self.client.master_of(&MessageQueue::new(topic, broker_name, 0)).await?)
    }

    /// A request that must succeed to the broker that lent a message.
    async fn ask(
        &self,
        topic: &str,
        broker_name: &str,
        code: RequestCode,
        fields: &(dyn Fields + Sync),
    ) -> Result<(Arc<str>, ringmq_protocol::frame::RemotingCommand), ConsumeError> {
        let address = self.address(topic, broker_name).await?;
        let call = Call::new(code, fields);
        let response = self.client.ask(&address, &call, self.client.request_timeout()).await?;
        Ok((address, response))
    }

    /// M2
    fn watch(self: &Arc<Self>, target: &Target) {
        let key = (target.subscription.topic.clone(), target.address.clone());
        let mut watching = lock(&self.watching);
        if watching.contains_key(&key) {
            return;
        }
        let (inner, removed) = (self.clone(), key.clone());
        let task = tokio::spawn(async move {
            let (topic, address) = &removed;
            let tell = || inner.news.send_modify(|count| *count = count.wrapping_add(1));
            match inner.notified(topic, address).await {
                Ok(true) => {
                    tell();
                    sleep(IN_VAIN_PAUSE).await;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%error, %topic, "not notified");
                    sleep(BLIND_RETRY).await;
                }
            }
            lock(&inner.watching).remove(&removed);
            // Whoever still waits asks for the next notification.
            tell();
        });
        watching.insert(key, task.abort_handle());
    }

    /// Waits until a broker has something of a topic; false if it had nothing for long.
    async fn notified(&self, topic: &str, address: &Arc<str>) -> Result<bool, RequestError> {
        let request = NotificationRequest {
            consumer_group: (&*self.group).into(),
            topic: topic.into(),
            queue_id: -1,
            poll_time: i64::try_from(NOTIFICATION_HOLD.as_millis()).unwrap_or(i64::MAX),
            born_time: now_ms(),
            order: false,
            attempt_id: None,
        };
        let code = RequestCode::NOTIFICATION;
        let call = Call::new(code, &request).long_poll();
        let response = self.client.ask(address, &call, NOTIFICATION_HOLD + PULL_SLACK).await?;
        let answer = NotificationResponse::decode(&response.header().ext)
            .map_err(|problem| malformed(address, code, problem.to_string()))?;
        Ok(answer.has_msg)
    }
}

/// `flag queueId startOffset`, joined by `;`.
fn start_offsets(info: &str) -> Result<BTreeMap<(PopSource, u32), QueueOffset>, String> {
    let entry = |entry: &str| {
        let mut parts = entry.split(' ');
        let source = parts.next().and_then(PopSource::from_flag)?;
        let queue_id = parts.next()?.parse().ok()?;
        Some(((source, queue_id), QueueOffset(parts.next()?.parse().ok()?)))
    };
    let entries = info.split(';').filter(|text| !text.is_empty());
    entries
        .map(|text| entry(text).ok_or_else(|| format!("the start offset {text:?} makes no sense")))
        .collect()
}

impl MemberRequests for Inner {
    /// What is lent next is the broker's affair.
    fn reset_offsets(self: Arc<Self>, _: BTreeMap<MessageQueue, QueueOffset>) {}

    fn offsets(&self, _: &str) -> BTreeMap<MessageQueue, QueueOffset> {
        BTreeMap::new()
    }

    fn running_info(&self) -> ConsumerRunningInfo {
        self.member.running_info(false)
    }
}

#[cfg(test)]
mod tests;
