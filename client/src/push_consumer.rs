//! The push consumer: messages go to a handler, and come again if it fails.
//!
//!   rebalance ─▶ one pull task and one handling task per queue
//!   pull ─▶ process queue ─▶ handling ─┬─ `concurrent`: many at a time
//!      ▲ (waits while it is full)      └─ `orderly`: one at a time per queue, under the queue's lock
//!                                      ─▶ finished ─▶ offset ─▶ broker, or file if broadcasting
//!
//! P3  a message is finished only after its handler succeeded, or after a broker took it for a later delivery; if
//!     broadcasting, also after it failed.
//! P4  the offset never passes an unfinished message (see `process_queue`).
//! P5  once a queue is discarded nothing of it is committed any more; commits of a queue go one after the other.
//!
//! Map: here are the life of a consumer and its queues; `builder` is how it is set up; `concurrent` and `orderly` handle; `send_back` gives to brokers what failed;
//! `requests` answers what brokers and tools ask.

mod builder;
mod concurrent;
mod orderly;
mod requests;
mod send_back;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmq_protocol::body::{MessageQueue, SubscriptionData};
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::name;
use ringmq_protocol::types::QueueOffset;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::client::{Client, lock, now_ms};
use crate::error::ConsumeError;
use crate::group::ConsumeFrom;
use crate::member::ConsumerMember;
use crate::metrics::ConsumeStats;
use crate::offset_file::OffsetFile;
use crate::process_queue::ProcessQueue;
use crate::producer::Sender;
use crate::pull::{Pulled, Puller};
use crate::route::TopicRoute;

pub use builder::{ConsumeResult, DelayLevel, OrderlyResult, PushConsumerBuilder};

const HOLD: Duration = Duration::from_secs(15);
const PULL_BATCH_MAX: i32 = 32;
/// How soon the share is computed again while a part of it could not be taken up: first, and at most.
const INCOMPLETE_RETRY: Duration = Duration::from_secs(1);
const INCOMPLETE_RETRY_MAX: Duration = Duration::from_secs(5);
/// Deliveries of a message before it becomes a dead letter, unless orderly.
const RECONSUME_TIMES_MAX: i32 = 16;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum Handler {
    Concurrent { handle: Box<dyn Fn(Vec<MessageExt>) -> Work<ConsumeResult> + Send + Sync>, batch_max: usize },
    Orderly(Box<dyn Fn(MessageExt) -> Work<OrderlyResult> + Send + Sync>),
}

#[derive(Clone, Copy)]
struct Limits {
    concurrency: usize,
    queue_messages_max: usize,
    queue_bytes_max: usize,
    queue_span_max: u64,
    reconsume_times_max: Option<i32>,
}

#[derive(Clone, Copy)]
struct Intervals {
    rebalance: Duration,
    persist: Duration,
    /// How often queue locks are renewed.
    lock: Duration,
    /// How long a lock counts after it was asked for. Brokers keep it twice as long.
    lock_valid: Duration,
    consume_timeout: Duration,
    /// How long an orderly queue waits after a failure.
    suspend: Duration,
    shutdown_wait: Duration,
}

/// A running consumer. It consumes until [`shutdown`](Self::shutdown), or until it is dropped, which is the same as
/// a crash: what was not stored as offset comes again.
pub struct PushConsumer {
    inner: Arc<Inner>,
    tasks: Vec<AbortHandle>,
}

struct Inner {
    client: Client,
    group: Arc<str>,
    member: Arc<ConsumerMember>,
    /// By topic, with the retry topic.
    subscriptions: BTreeMap<String, Arc<SubscriptionData>>,
    from: ConsumeFrom,
    /// The offsets of a broadcasting consumer.
    offsets: Option<OffsetFile>,
    limits: Limits,
    intervals: Intervals,
    permits: Arc<Semaphore>,
    handler: Handler,
    republisher: Sender,
    queues: Mutex<BTreeMap<MessageQueue, Running>>,
}

/// A queue being consumed.
struct Running {
    state: Arc<QueueState>,
    pull: AbortHandle,
    handling: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.pull.abort();
        self.handling.abort();
    }
}

/// Whether a queue is still this consumer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Held,
    /// It goes to another member: what runs is finished and committed, then the lock is given up.
    Leaving,
    /// P5
    Discarded,
}

struct QueueState {
    queue: MessageQueue,
    stats: Arc<ConsumeStats>,
    process: Mutex<ProcessQueue>,
    /// Something finished, so there may be room.
    room: Notify,
    hold: watch::Sender<Hold>,
    /// Until when the queue's lock counts; `None` if it needs none.
    locked_until: Mutex<Option<Instant>>,
    /// The offset stored last; held over each commit, so that they go one after the other.
    persisted: tokio::sync::Mutex<Option<QueueOffset>>,
    /// Milliseconds since 1970, for tools that ask.
    pulled_ms: Mutex<i64>,
    consumed_ms: Mutex<i64>,
    locked_ms: Mutex<i64>,
}

impl QueueState {
    fn finished(&self, offset: QueueOffset) {
        if !self.may_commit() {
            // What does not count leaves a gap: nothing behind it may be handled as if it did.
            return self.discard();
        }
        lock(&self.process).finished(offset);
        self.room.notify_one();
    }

    /// Whether what is done now still counts.
    fn may_commit(&self) -> bool {
        *self.hold.borrow() != Hold::Discarded
            && lock(&self.locked_until).is_none_or(|until| Instant::now() < until)
    }

    fn discard(&self) {
        self.hold.send_replace(Hold::Discarded);
    }
}

impl Drop for PushConsumer {
    fn drop(&mut self) {
        self.stop();
        lock(&self.inner.queues).clear();
        self.inner.client.forget_consumer(&self.inner.group);
    }
}

impl PushConsumer {
    pub(crate) fn builder(client: Client, group: String) -> PushConsumerBuilder {
        PushConsumerBuilder::new(client, group)
    }

    /// The queues this consumer consumes now, those of the retry topic included.
    pub fn assignment(&self) -> Vec<MessageQueue> {
        lock(&self.inner.queues).keys().cloned().collect()
    }

    /// Pulls no more, waits for running handlers, stores the offsets, gives up locks and leaves the group.
    pub async fn shutdown(self) {
        self.stop();
        let inner = &self.inner;
        let states: Vec<Arc<QueueState>> = {
            let queues = lock(&inner.queues);
            queues.values().for_each(|running| running.pull.abort());
            queues.values().map(|running| running.state.clone()).collect()
        };
        // All permits are free only when no handler runs; taking them all also keeps the rest from starting.
        let all = u32::try_from(inner.limits.concurrency).unwrap_or(u32::MAX);
        let idle = timeout(inner.intervals.shutdown_wait, inner.permits.acquire_many(all)).await;
        if idle.is_err() {
            tracing::warn!(group = %inner.group, "handlers still run; their messages will come again");
        }
        let mut commits = JoinSet::new();
        for state in &states {
            let (inner, state) = (inner.clone(), state.clone());
            commits.spawn(async move {
                inner.persist(&state, false).await;
                state.discard();
            });
        }
        while commits.join_next().await.is_some() {}
        inner.save_offsets().await;
        // While a handler runs nobody else may have its queue: then the locks end by themselves.
        if inner.needs_locks() && idle.is_ok() {
            let queues: Vec<MessageQueue> = states.iter().map(|state| state.queue.clone()).collect();
            inner.client.unlock_queues(&inner.group, &queues).await;
        }
        inner.client.remove_consumer(&inner.group).await;
        // Before the permits go back, so that nothing starts with them.
        lock(&inner.queues).clear();
        drop(idle);
    }

    fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn rebalance_loop(inner: Arc<Inner>) {
    let interval = inner.intervals.rebalance;
    let mut retry = INCOMPLETE_RETRY;
    loop {
        let mut pause = interval;
        if !inner.rebalance().await {
            pause = interval.min(retry);
            retry = (retry * 2).min(INCOMPLETE_RETRY_MAX);
        } else {
            retry = INCOMPLETE_RETRY;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = inner.member.rebalance.notified() => retry = INCOMPLETE_RETRY,
        }
    }
}

async fn persist_loop(inner: Arc<Inner>) {
    let interval = inner.intervals.persist;
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let states: Vec<_> = lock(&inner.queues).values().map(|running| running.state.clone()).collect();
        for state in states {
            state.stats.sample();
            inner.persist(&state, true).await;
        }
        inner.save_offsets().await;
    }
}

impl Inner {
    fn is_orderly(&self) -> bool {
        matches!(self.handler, Handler::Orderly(_))
    }

    /// Whoever broadcasts shares its queues with nobody.
    fn needs_locks(&self) -> bool {
        self.is_orderly() && self.offsets.is_none()
    }

    fn reconsume_times_max(&self) -> i32 {
        let usual = if self.is_orderly() { i32::MAX } else { RECONSUME_TIMES_MAX };
        self.limits.reconsume_times_max.unwrap_or(usual)
    }

    /// Takes up and gives up queues so that exactly this client's share is consumed. Returns false if something of it
    /// could not be taken up yet.
    async fn rebalance(self: &Arc<Self>) -> bool {
        let mut complete = self.is_retry_topic_everywhere().await;
        for topic in self.subscriptions.keys() {
            let share = match &self.offsets {
                Some(_) => self.client.route(topic, None).await.ok().map(|route| route.readable.clone()),
                None => self.client.share(&self.group, topic).await,
            };
            let Some(share) = share else {
                complete = false;
                continue;
            };
            let lost: Vec<Arc<QueueState>> = {
                let queues = lock(&self.queues);
                let lost = queues.iter().filter(|(queue, _)| queue.topic == *topic && !share.contains(queue));
                lost.map(|(_, running)| running.state.clone()).collect()
            };
            for state in lost {
                self.give_up(&state).await;
            }
            let mut new: Vec<MessageQueue> = {
                let queues = lock(&self.queues);
                // One that is leaving and belongs to us again is taken up anew when it has left.
                let held =
                    |queue: &MessageQueue| queues.get(queue).map(|running| *running.state.hold.borrow());
                complete &= share.iter().all(|queue| matches!(held(queue), None | Some(Hold::Held)));
                share.into_iter().filter(|queue| held(queue).is_none()).collect()
            };
            let mut locked_until = None;
            if self.needs_locks() && !new.is_empty() {
                locked_until = Some(Instant::now() + self.intervals.lock_valid);
                let locked = self.client.lock_queues(&self.group, &new).await;
                let wanted = new.len();
                new.retain(|queue| locked.get(queue) == Some(&true));
                complete &= new.len() == wanted;
            }
            for queue in new {
                // After the lock: until then another member may have committed.
                match self.first_offset(&queue).await {
                    Ok(offset) => self.take_up(queue, offset, locked_until),
                    Err(error) => {
                        complete = false;
                        tracing::warn!(%error, %topic, broker = %queue.broker_name, "queue not started yet");
                    }
                }
            }
        }
        complete
    }

    /// Brokers make the group's retry topic when they first hear of the group, one sooner than another: a route of before
    /// would hide for long what comes again.
    async fn is_retry_topic_everywhere(&self) -> bool {
        if self.offsets.is_some() {
            return true;
        }
        let retry_topic = name::retry_topic(&self.group);
        let mut names = BTreeSet::new();
        for topic in self.subscriptions.keys().filter(|topic| **topic != retry_topic) {
            if let Ok(route) = self.client.route(topic, None).await {
                names.extend(route.brokers.keys().cloned());
            }
        }
        let covers = |route: &TopicRoute| names.iter().all(|name| route.brokers.contains_key(name));
        match self.client.route(&retry_topic, None).await {
            Ok(route) if covers(&route) => true,
            _ => {
                self.client.route(&retry_topic, Some(Instant::now())).await.is_ok_and(|route| covers(&route))
            }
        }
    }

    async fn first_offset(&self, queue: &MessageQueue) -> Result<QueueOffset, ConsumeError> {
        match &self.offsets {
            Some(offsets) => match offsets.get(queue) {
                Some(offset) => Ok(offset),
                None => self.client.start_offset(queue, self.from).await,
            },
            None => self.client.first_offset(&self.group, queue, self.from).await,
        }
    }

    async fn give_up(&self, state: &Arc<QueueState>) {
        if self.is_orderly() {
            // Its task ends when its handler has, see `orderly`.
            state.hold.send_if_modified(|hold| {
                let held = *hold == Hold::Held;
                if held {
                    *hold = Hold::Leaving;
                }
                held
            });
            return;
        }
        let running = lock(&self.queues).remove(&state.queue);
        drop(running);
        self.persist(state, false).await;
        state.discard();
    }

    /// Ends the consumption of a queue without a commit; the next rebalance takes it up at `offset`.
    async fn begin_anew(&self, state: &Arc<QueueState>, offset: QueueOffset) {
        {
            // Behind a commit that is under way; and whoever wants to take the queue up again waits for this one.
            let _committing = state.persisted.lock().await;
            state.discard();
            if let Some(offsets) = &self.offsets {
                offsets.set(&state.queue, offset);
            } else if let Err(error) =
                self.client.commit_offset(&self.group, &state.queue, offset, false).await
            {
                tracing::warn!(%error, topic = %state.queue.topic, "offset not stored");
                sleep(INCOMPLETE_RETRY).await;
            }
        }
        if !self.is_orderly() {
            self.remove(state);
        }
        self.member.rebalance.notify_one();
    }

    /// Forgets a queue, if it was not taken up anew in the meantime, and ends its tasks at their next wait.
    fn remove(&self, state: &Arc<QueueState>) {
        let mut queues = lock(&self.queues);
        if queues.get(&state.queue).is_some_and(|running| Arc::ptr_eq(&running.state, state)) {
            queues.remove(&state.queue);
        }
    }

    fn take_up(self: &Arc<Self>, queue: MessageQueue, offset: QueueOffset, locked_until: Option<Instant>) {
        let Some(subscription) = self.subscriptions.get(&queue.topic).cloned() else { return };
        let state = Arc::new(QueueState {
            queue: queue.clone(),
            stats: self.client.registry().consumes(&self.group, &queue.topic),
            process: Mutex::new(ProcessQueue::new(offset)),
            room: Notify::new(),
            hold: watch::Sender::new(Hold::Held),
            locked_until: Mutex::new(locked_until),
            persisted: tokio::sync::Mutex::default(),
            pulled_ms: Mutex::default(),
            consumed_ms: Mutex::default(),
            locked_ms: Mutex::new(locked_until.map_or(0, |_| now_ms())),
        });
        let puller = Puller {
            client: self.client.clone(),
            group: self.group.clone(),
            queue: queue.clone(),
            subscription,
            inline_subscription: false,
            batch_max: PULL_BATCH_MAX,
            hold: HOLD,
            broker_id: 0,
        };
        // Bounded by the process queue: what is in the channel is unfinished.
        let (pulled, to_handle) = mpsc::unbounded_channel();
        // Tasks of the queue end when it is removed from the map: it must be there before they can remove it.
        let mut queues = lock(&self.queues);
        let pull = tokio::spawn(pull_loop(self.clone(), state.clone(), puller, pulled)).abort_handle();
        let handling = match &self.handler {
            Handler::Concurrent { .. } => {
                tokio::spawn(concurrent::run(self.clone(), state.clone(), to_handle))
            }
            Handler::Orderly(_) => tokio::spawn(orderly::run(self.clone(), state.clone(), to_handle)),
        };
        queues.insert(queue, Running { state, pull, handling: handling.abort_handle() });
    }

    /// Stores the offset of a queue, if it changed.
    async fn persist(&self, state: &QueueState, one_way: bool) {
        let mut persisted = state.persisted.lock().await;
        let offset = lock(&state.process).commit_offset();
        if !state.may_commit() || *persisted == Some(offset) {
            return;
        }
        if let Some(offsets) = &self.offsets {
            offsets.set(&state.queue, offset);
            *persisted = Some(offset);
            return;
        }
        match self.client.commit_offset(&self.group, &state.queue, offset, one_way).await {
            // One that was lost on the way is made good at the end, when it is asked for an answer.
            Ok(()) => *persisted = (!one_way).then_some(offset),
            Err(error) => tracing::warn!(%error, topic = %state.queue.topic, "offset not stored"),
        }
    }

    async fn save_offsets(&self) {
        if let Some(offsets) = &self.offsets
            && let Err(error) = offsets.save().await
        {
            tracing::warn!(%error, group = %self.group, "offsets not saved");
        }
    }

    /// Whether a queue has enough to do.
    fn is_full(&self, process: &ProcessQueue) -> bool {
        process.count() >= self.limits.queue_messages_max
            || process.bytes() >= self.limits.queue_bytes_max
            || (!self.is_orderly() && process.span() > self.limits.queue_span_max)
    }
}

async fn pull_loop(
    inner: Arc<Inner>,
    state: Arc<QueueState>,
    mut puller: Puller,
    pulled: mpsc::UnboundedSender<MessageExt>,
) {
    loop {
        let (offset, commit) = {
            let process = lock(&state.process);
            ((!inner.is_full(&process)).then(|| process.next()), process.commit_offset())
        };
        let Some(offset) = offset else {
            state.room.notified().await;
            continue;
        };
        let commits = inner.offsets.is_none() && state.may_commit() && commit.0 > 0;
        let begun = Instant::now();
        let outcome = puller.pull(offset, commits.then_some(commit)).await;
        *lock(&state.pulled_ms) = now_ms();
        match outcome {
            Ok(Pulled { moved: true, next, .. }) => {
                tracing::warn!(
                    topic = %state.queue.topic, broker = %state.queue.broker_name, queue = state.queue.queue_id,
                    from = %offset, to = %next, "the broker has us continue elsewhere"
                );
                // Not in this task, which ends with the queue.
                tokio::spawn(async move { inner.begin_anew(&state, next).await });
                return;
            }
            Ok(Pulled { messages, next, .. }) => {
                let size = |message: &MessageExt| message.message.body.len();
                state.stats.received(messages.len(), messages.iter().map(size).sum(), begun.elapsed());
                let sizes = messages.iter().map(|message| (message.queue_offset, size(message)));
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

#[cfg(test)]
mod tests;
