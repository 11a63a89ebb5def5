//! The push consumer: messages go to a handler, many at a time, and come again if it fails.
//!
//!   rebalance ─▶ one pull task and one dispatch task per queue
//!   pull ─▶ process queue ─▶ dispatch ─▶ handler ─┬▶ success ─────────────────▶ finished ─▶ offset
//!              ▲ (waits while it is full)         └▶ failure ─▶ send back (36) ─▶ finished
//!                                                                 └▶ else publish to %RETRY%group
//!                                                                      └▶ else handle it again here, later
//!
//! P3  a message is finished only after its handler succeeded, or after a broker took it for a later delivery.
//! P4  the group's offset never passes an unfinished message (see `process_queue`).
//! P5  when a queue is given up its offset is stored, and what its handlers still do no longer counts.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmq_protocol::body::{ConsumeType, MessageQueue, SubscriptionData};
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::name;
use ringmq_protocol::properties::names;
use ringmq_protocol::request::ConsumerSendMsgBackRequest;
use ringmq_protocol::types::{QueueOffset, SysFlag};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::client::{Client, ConsumerMember, lock, now_ms};
use crate::connection::Call;
use crate::error::ConsumeError;
use crate::group::{ConsumeFrom, tag_subscription};
use crate::process_queue::ProcessQueue;
use crate::producer::{Outbound, Sender};
use crate::pull::{Pulled, Puller};
use crate::retry::QueueChoice;

const HOLD: Duration = Duration::from_secs(15);
const BATCH_MAX: i32 = 32;
const SEND_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Deliveries of a message before it becomes a dead letter, unless the group says otherwise.
const RECONSUME_TIMES_MAX: i32 = 16;
/// The delay level of the first retry, 10 s; each further one is a level higher.
const FIRST_RETRY_LEVEL: i32 = 3;
/// When a message could neither be processed nor sent back, it is processed again here after this time.
const LOCAL_RETRY: Duration = Duration::from_secs(5);

/// What a handler made of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumeResult {
    /// It is done with.
    Success,
    /// It is to be delivered again, after a while that grows with each time, and at last becomes a dead letter.
    ReconsumeLater,
}

impl<E: std::fmt::Display> From<Result<(), E>> for ConsumeResult {
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Success,
            Err(error) => {
                tracing::warn!(%error, "message to be consumed again");
                Self::ReconsumeLater
            }
        }
    }
}

type HandlerFuture = Pin<Box<dyn Future<Output = ConsumeResult> + Send>>;
type Handler = Arc<dyn Fn(MessageExt) -> HandlerFuture + Send + Sync>;

/// Settings of a [`PushConsumer`].
pub struct PushConsumerBuilder {
    client: Client,
    group: String,
    topics: Vec<(String, String)>,
    from: ConsumeFrom,
    limits: Limits,
    intervals: Intervals,
    shutdown_wait: Duration,
}

#[derive(Clone, Copy)]
struct Limits {
    concurrency: usize,
    queue_messages_max: usize,
    queue_bytes_max: usize,
}

#[derive(Clone, Copy)]
struct Intervals {
    rebalance: Duration,
    persist: Duration,
}

impl PushConsumerBuilder {
    /// Subscribes to a topic; may be called for several. `expression` is `*`, or tags like `a || b`. All members of
    /// a group must subscribe to the same.
    pub fn subscribe(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.topics.push((topic.into(), expression.into()));
        self
    }

    /// Where to begin with a queue of which the group has no offset; the end unless set.
    pub fn consume_from(mut self, from: ConsumeFrom) -> Self {
        self.from = from;
        self
    }

    /// Handlers that may run at the same time; 20 unless set.
    pub fn concurrency(mut self, count: usize) -> Self {
        self.limits.concurrency = count.max(1);
        self
    }

    /// Nothing more of a queue is pulled while so many of its messages are unfinished; 1000 unless set.
    pub fn queue_messages_max(mut self, count: usize) -> Self {
        self.limits.queue_messages_max = count.max(1);
        self
    }

    /// Nothing more of a queue is pulled while its unfinished bodies take so many bytes; 16 MiB unless set.
    pub fn queue_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.queue_bytes_max = bytes.max(1);
        self
    }

    /// How often the share of the queues is computed anew when nothing tells of a change; 20 s unless set.
    pub fn rebalance_interval(mut self, interval: Duration) -> Self {
        self.intervals.rebalance = interval.max(Duration::from_millis(10));
        self
    }

    /// How often offsets are stored; 5 s unless set.
    pub fn persist_interval(mut self, interval: Duration) -> Self {
        self.intervals.persist = interval.max(Duration::from_millis(10));
        self
    }

    /// How long a shutdown waits for handlers that run; 30 s unless set. What they do not finish comes again.
    pub fn shutdown_wait(mut self, wait: Duration) -> Self {
        self.shutdown_wait = wait;
        self
    }

    /// Joins the group and begins to consume. A handler that panics counts as [`ConsumeResult::ReconsumeLater`].
    ///
    /// A subscribed topic may appear later.
    pub async fn start<F, Fut, R>(self, handler: F) -> Result<PushConsumer, ConsumeError>
    where
        F: Fn(MessageExt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: Into<ConsumeResult>,
    {
        name::validate_group(&self.group).map_err(|error| ConsumeError::Config(error.to_string()))?;
        if self.topics.is_empty() {
            return Err(ConsumeError::Config("subscribe to a topic before starting".into()));
        }
        let mut subscriptions = Vec::new();
        for (topic, expression) in &self.topics {
            subscriptions.push(tag_subscription(topic, expression)?);
        }
        // What fails comes back through this topic.
        subscriptions.push(tag_subscription(&name::retry_topic(&self.group), "*")?);
        let member = Arc::new(ConsumerMember {
            group: self.group.clone(),
            consume_type: ConsumeType::ConsumePassively,
            consume_from_where: self.from.wire(),
            subscriptions: subscriptions.clone(),
            rebalance: Notify::new(),
        });
        if !self.client.add_consumer(&member) {
            return Err(ConsumeError::Config(format!("this client has a consumer in group {}", self.group)));
        }
        let by_topic = subscriptions.into_iter().map(|s| (s.topic.clone(), Arc::new(s))).collect();
        let handler: Handler = Arc::new(move |message| {
            let work = handler(message);
            Box::pin(async move { work.await.into() })
        });
        let inner = Arc::new(Inner {
            republisher: Sender {
                client: self.client.clone(),
                group: name::CLIENT_INNER_PRODUCER_GROUP.to_string(),
                choice: QueueChoice::new(0),
            },
            client: self.client,
            group: Arc::from(self.group),
            subscriptions: by_topic,
            from: self.from,
            limits: self.limits,
            permits: Arc::new(Semaphore::new(self.limits.concurrency)),
            handler,
            queues: Mutex::default(),
        });
        // Routes first, as heartbeats go to the brokers of known routes.
        for topic in inner.subscriptions.keys() {
            if let Err(error) = inner.client.route(topic, None).await {
                tracing::debug!(%error, "subscribed all the same");
            }
        }
        inner.client.heartbeat_all().await;
        let rebalancer = tokio::spawn(rebalance_loop(inner.clone(), member, self.intervals.rebalance));
        let persister = tokio::spawn(persist_loop(inner.clone(), self.intervals.persist));
        let tasks = [rebalancer.abort_handle(), persister.abort_handle()];
        Ok(PushConsumer { inner, tasks, shutdown_wait: self.shutdown_wait })
    }
}

/// A running consumer. It consumes until [`shutdown`](Self::shutdown), or until it is dropped, which is the same as
/// a crash: what was not stored as offset comes again.
pub struct PushConsumer {
    inner: Arc<Inner>,
    tasks: [AbortHandle; 2],
    shutdown_wait: Duration,
}

struct Inner {
    client: Client,
    group: Arc<str>,
    /// By topic, with the retry topic.
    subscriptions: BTreeMap<String, Arc<SubscriptionData>>,
    from: ConsumeFrom,
    limits: Limits,
    permits: Arc<Semaphore>,
    handler: Handler,
    republisher: Sender,
    queues: Mutex<BTreeMap<MessageQueue, Running>>,
}

/// A queue being consumed.
struct Running {
    state: Arc<QueueState>,
    pull: AbortHandle,
    dispatch: AbortHandle,
}

struct QueueState {
    queue: MessageQueue,
    process: Mutex<ProcessQueue>,
    /// Something finished, so there may be room.
    room: Notify,
    given_up: AtomicBool,
    /// The offset stored last.
    persisted: Mutex<Option<QueueOffset>>,
}

impl QueueState {
    fn finished(&self, offset: QueueOffset) {
        lock(&self.process).finished(offset);
        self.room.notify_one();
    }
}

impl Drop for PushConsumer {
    fn drop(&mut self) {
        self.stop();
        for running in std::mem::take(&mut *lock(&self.inner.queues)).into_values() {
            running.pull.abort();
            running.dispatch.abort();
        }
        self.inner.client.forget_consumer(&self.inner.group);
    }
}

impl PushConsumer {
    pub(crate) fn builder(client: Client, group: String) -> PushConsumerBuilder {
        PushConsumerBuilder {
            client,
            group,
            topics: Vec::new(),
            from: ConsumeFrom::LastOffset,
            limits: Limits { concurrency: 20, queue_messages_max: 1000, queue_bytes_max: 16 * 1024 * 1024 },
            intervals: Intervals { rebalance: Duration::from_secs(20), persist: Duration::from_secs(5) },
            shutdown_wait: Duration::from_secs(30),
        }
    }

    /// The queues this consumer consumes now, those of the retry topic included.
    pub fn assignment(&self) -> Vec<MessageQueue> {
        lock(&self.inner.queues).keys().cloned().collect()
    }

    /// Pulls no more, waits for running handlers, stores the offsets and leaves the group.
    pub async fn shutdown(self) {
        self.stop();
        let states: Vec<Arc<QueueState>> = {
            let queues = lock(&self.inner.queues);
            queues.values().for_each(|running| running.pull.abort());
            queues.values().map(|running| running.state.clone()).collect()
        };
        // All permits are free only when no handler runs; taking them all also keeps the rest from starting.
        let all = u32::try_from(self.inner.limits.concurrency).unwrap_or(u32::MAX);
        let idle = timeout(self.shutdown_wait, self.inner.permits.acquire_many(all)).await;
        if idle.is_err() {
            tracing::warn!(group = %self.inner.group, "handlers still run; their messages will come again");
        }
        let mut commits = JoinSet::new();
        for state in states {
            let inner = self.inner.clone();
            commits.spawn(async move { inner.persist(&state, false).await });
        }
        while commits.join_next().await.is_some() {}
        self.inner.client.remove_consumer(&self.inner.group).await;
        // Before the permits go back, so that nothing starts with them.
        lock(&self.inner.queues).values().for_each(|running| running.dispatch.abort());
        drop(idle);
    }

    fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn rebalance_loop(inner: Arc<Inner>, member: Arc<ConsumerMember>, interval: Duration) {
    loop {
        inner.rebalance().await;
        tokio::select! {
            () = sleep(interval) => {}
            () = member.rebalance.notified() => {}
        }
    }
}

async fn persist_loop(inner: Arc<Inner>, interval: Duration) {
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let states: Vec<_> = lock(&inner.queues).values().map(|running| running.state.clone()).collect();
        for state in states {
            inner.persist(&state, true).await;
        }
    }
}

impl Inner {
    /// Takes up and gives up queues so that exactly this client's share is consumed.
    async fn rebalance(self: &Arc<Self>) {
        for topic in self.subscriptions.keys() {
            let Some(share) = self.client.share(&self.group, topic).await else { continue };
            let lost: Vec<Running> = {
                let mut queues = lock(&self.queues);
                let keys: Vec<MessageQueue> = queues
                    .keys()
                    .filter(|queue| queue.topic == *topic && !share.contains(queue))
                    .cloned()
                    .collect();
                keys.iter().filter_map(|queue| queues.remove(queue)).collect()
            };
            for running in lost {
                self.give_up(running).await;
            }
            for queue in share {
                if lock(&self.queues).contains_key(&queue) {
                    continue;
                }
                match self.client.first_offset(&self.group, &queue, self.from).await {
                    Ok(offset) => self.take_up(queue, offset),
                    Err(error) => {
                        tracing::warn!(%error, %topic, broker = %queue.broker_name, "queue not started yet");
                    }
                }
            }
        }
    }

    async fn give_up(&self, running: Running) {
        running.pull.abort();
        running.dispatch.abort();
        self.persist(&running.state, false).await;
        running.state.given_up.store(true, Ordering::Release);
    }

    fn take_up(self: &Arc<Self>, queue: MessageQueue, offset: QueueOffset) {
        let Some(subscription) = self.subscriptions.get(&queue.topic).cloned() else { return };
        let state = Arc::new(QueueState {
            queue: queue.clone(),
            process: Mutex::new(ProcessQueue::new(offset)),
            room: Notify::new(),
            given_up: AtomicBool::new(false),
            persisted: Mutex::new(None),
        });
        let puller = Puller {
            client: self.client.clone(),
            group: self.group.clone(),
            queue: queue.clone(),
            subscription,
            inline_subscription: false,
            batch_max: BATCH_MAX,
            hold: HOLD,
            broker_id: 0,
        };
        // Bounded by the process queue: what is in the channel is unfinished.
        let (pulled, to_dispatch) = mpsc::unbounded_channel();
        let pull = tokio::spawn(pull_loop(self.clone(), state.clone(), puller, pulled));
        let dispatch = tokio::spawn(dispatch_loop(self.clone(), state.clone(), to_dispatch));
        let running = Running { state, pull: pull.abort_handle(), dispatch: dispatch.abort_handle() };
        lock(&self.queues).insert(queue, running);
    }

    async fn persist(&self, state: &QueueState, one_way: bool) {
        let offset = lock(&state.process).commit_offset();
        if state.given_up.load(Ordering::Acquire) || *lock(&state.persisted) == Some(offset) {
            return;
        }
        match self.client.commit_offset(&self.group, &state.queue, offset, one_way).await {
            // One that was lost on the way is made good at the end, when it is asked for an answer.
            Ok(()) => *lock(&state.persisted) = (!one_way).then_some(offset),
            Err(error) => tracing::warn!(%error, topic = %state.queue.topic, "offset not stored"),
        }
    }

    /// Gives a message that was not processed back to a broker. `true` once a broker has it.
    async fn send_back(&self, queue: &MessageQueue, message: &MessageExt) -> bool {
        let origin = message.message.property(names::ORIGIN_MESSAGE_ID).map(str::to_string);
        let request = ConsumerSendMsgBackRequest {
            offset: message.physical_offset,
            group: (&*self.group).into(),
            delay_level: 0,
            origin_msg_id: Some(message.message_id().into()),
            origin_topic: Some((&*message.message.topic).into()),
            unit_mode: false,
            max_reconsume_times: Some(RECONSUME_TIMES_MAX),
            broker_name: Some((&*queue.broker_name).into()),
        };
        let call = Call::new(RequestCode::CONSUMER_SEND_MSG_BACK, &request);
        let sent_back = match self.client.master_of(queue).await {
            Ok(address) => self
                .client
                .ask(&address, &call, SEND_BACK_TIMEOUT)
                .await
                .map(drop)
                .map_err(ConsumeError::from),
            Err(error) => Err(error.into()),
        };
        let Err(error) = sent_back else { return true };
        tracing::info!(%error, "not sent back, publishing to the retry topic");
        let outbound = match retry_outbound(&self.group, message, origin) {
            Ok(outbound) => outbound,
            Err(error) => {
                tracing::warn!(%error, "a message that cannot be published again");
                return false;
            }
        };
        match self.republisher.deliver(&outbound, None, SEND_BACK_TIMEOUT, 2).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "not published to the retry topic");
                false
            }
        }
    }
}

/// The copy of a failed message that its consumer publishes itself.
fn retry_outbound(
    group: &str,
    message: &MessageExt,
    origin: Option<String>,
) -> Result<Outbound, ringmq_protocol::properties::PropertyError> {
    let mut copy = message.message.clone();
    if copy.property(names::RETRY_TOPIC).is_none() {
        let topic = copy.topic.clone();
        copy.set(names::RETRY_TOPIC, &topic);
    }
    copy.set(names::ORIGIN_MESSAGE_ID, &origin.unwrap_or_else(|| message.message_id()));
    copy.set(names::RECONSUME_TIME, &(message.reconsume_times + 1).to_string());
    copy.set(names::MAX_RECONSUME_TIMES, &RECONSUME_TIMES_MAX.to_string());
    copy.set(names::DELAY_TIME_LEVEL, &(FIRST_RETRY_LEVEL + message.reconsume_times).to_string());
    let properties = copy.encode_properties()?;
    Ok(Outbound {
        topic: name::retry_topic(group),
        body: copy.body,
        properties: String::from_utf8_lossy(&properties).into_owned(),
        flag: copy.flag,
        sys_flag: SysFlag(0),
        message_id: message.message_id(),
        born_timestamp: now_ms(),
        batch: false,
        reconsume_times: message.reconsume_times + 1,
        max_reconsume_times: Some(RECONSUME_TIMES_MAX),
    })
}

async fn pull_loop(
    inner: Arc<Inner>,
    state: Arc<QueueState>,
    mut puller: Puller,
    pulled: mpsc::UnboundedSender<MessageExt>,
) {
    let limits = inner.limits;
    loop {
        let (offset, commit) = {
            let process = lock(&state.process);
            let full =
                process.count() >= limits.queue_messages_max || process.bytes() >= limits.queue_bytes_max;
            if full {
                (None, process.commit_offset())
            } else {
                (Some(process.next()), process.commit_offset())
            }
        };
        let Some(offset) = offset else {
            state.room.notified().await;
            continue;
        };
        match puller.pull(offset, Some(commit).filter(|commit| commit.0 > 0)).await {
            Ok(Pulled { moved: true, next, .. }) => {
                tracing::warn!(
                    topic = %state.queue.topic, broker = %state.queue.broker_name, queue = state.queue.queue_id,
                    from = %offset, to = %next, "the offset does not exist on the broker, continuing elsewhere"
                );
                // P5: the queue is given up as it is, and begins anew where the broker said.
                state.given_up.store(true, Ordering::Release);
                let client = &inner.client;
                if let Err(error) = client.commit_offset(&inner.group, &state.queue, next, false).await {
                    tracing::warn!(%error, "offset not stored");
                }
                let stale = lock(&inner.queues).remove(&state.queue);
                // None: a rebalance gave the queue up in the meantime.
                if let Some(stale) = stale {
                    stale.dispatch.abort();
                    inner.take_up(state.queue.clone(), next);
                }
                return;
            }
            Ok(Pulled { messages, next, .. }) => {
                let sizes = messages.iter().map(|message| (message.queue_offset, message.message.body.len()));
                lock(&state.process).took(sizes, next);
                for message in messages {
                    if pulled.send(message).is_err() {
                        return;
                    }
                }
            }
            Err(error) => puller.recover(&error).await,
        }
    }
}

/// Starts processing each message as soon as a permit is free.
async fn dispatch_loop(
    inner: Arc<Inner>,
    state: Arc<QueueState>,
    mut pulled: mpsc::UnboundedReceiver<MessageExt>,
) {
    // Ends with this task, and all processing with it.
    let mut processing = JoinSet::new();
    while let Some(message) = pulled.recv().await {
        // The semaphore is never closed.
        let Ok(permit) = inner.permits.clone().acquire_owned().await else { return };
        processing.spawn(process(inner.clone(), state.clone(), message, permit));
        while processing.try_join_next().is_some() {}
    }
    while processing.join_next().await.is_some() {}
}

/// P3, from the first run of the handler to the end.
async fn process(
    inner: Arc<Inner>,
    state: Arc<QueueState>,
    message: MessageExt,
    permit: OwnedSemaphorePermit,
) {
    let mut permit = Arc::new(permit);
    loop {
        let work = (inner.handler)(restored(&message));
        // A task of its own, so that a panic ends the handler and nothing else. It shares the permit, so that a
        // handler of a queue that was given up counts as long as it runs.
        let held = permit.clone();
        let handled = tokio::spawn(async move {
            let result = work.await;
            drop(held);
            result
        });
        match handled.await {
            Ok(ConsumeResult::Success) => return state.finished(message.queue_offset),
            Ok(ConsumeResult::ReconsumeLater) => {}
            Err(panic) => tracing::error!(%panic, topic = %state.queue.topic, "the handler panicked"),
        }
        if inner.send_back(&state.queue, &message).await {
            return state.finished(message.queue_offset);
        }
        drop(permit);
        sleep(LOCAL_RETRY).await;
        permit = match inner.permits.clone().acquire_owned().await {
            Ok(permit) => Arc::new(permit),
            // The semaphore is never closed.
            Err(_) => return,
        };
    }
}

/// A message that came back through the retry topic looks to the handler as it did the first time.
fn restored(message: &MessageExt) -> MessageExt {
    let mut message = message.clone();
    if name::is_retry_topic(&message.message.topic)
        && let Some(topic) = message.message.property(names::RETRY_TOPIC).map(str::to_string)
    {
        message.message.topic = topic;
    }
    message
}

#[cfg(test)]
mod tests;
