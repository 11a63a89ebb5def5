//! How a push consumer is set up and started, and what its handlers return.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ringmq_protocol::body::{ConsumeType, MessageModel};
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::name;
use tokio::sync::{Notify, Semaphore};

use super::{Handler, Inner, Intervals, Limits, PushConsumer, Work, orderly, persist_loop, rebalance_loop};
use crate::client::{Client, now_ms};
use crate::error::ConsumeError;
use crate::group::{ConsumeFrom, Expression, tag_subscription};
use crate::member::ConsumerMember;
use crate::offset_file::OffsetFile;
use crate::producer::Sender;
use crate::retry::QueueChoice;

/// What a handler made of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumeResult {
    /// It is done with.
    Success,
    /// It is to be delivered again, after a while that grows with each time, and at last becomes a dead letter.
    ReconsumeLater,
    /// It is to be delivered again after the delay of this level.
    ReconsumeAfter(DelayLevel),
    /// It becomes a dead letter at once.
    DeadLetter,
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

/// What an orderly handler made of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderlyResult {
    /// It is done with, and the next one of its queue follows.
    Success,
    /// It is handled again after a second; until then the queue waits.
    Suspend,
    /// It is handled again after so long; until then the queue waits.
    SuspendFor(Duration),
}

impl<E: std::fmt::Display> From<Result<(), E>> for OrderlyResult {
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Success,
            Err(error) => {
                tracing::warn!(%error, "queue suspended");
                Self::Suspend
            }
        }
    }
}

/// One of the delays that brokers know, by its number. Unless a broker is set up otherwise, levels 1 to 18 are
/// 1 s, 5 s, 10 s, 30 s, 1 to 10 minutes, 20 and 30 minutes, 1 and 2 hours; higher ones are its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DelayLevel(u8);

impl DelayLevel {
    const SECONDS: [u64; 18] =
        [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];

    /// `None` for 0, which is no delay.
    pub const fn new(level: u8) -> Option<Self> {
        if level == 0 { None } else { Some(Self(level)) }
    }

    /// The first of the usual levels that is at least so long, or the last one.
    pub fn at_least(delay: Duration) -> Self {
        let shorter = Self::SECONDS.iter().take_while(|seconds| Duration::from_secs(**seconds) < delay);
        Self(shorter.count().min(Self::SECONDS.len() - 1) as u8 + 1) // at most 18
    }

    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Settings of a [`PushConsumer`].
pub struct PushConsumerBuilder {
    client: Client,
    group: String,
    topics: Vec<(String, Expression)>,
    from: ConsumeFrom,
    offset_dir: Option<PathBuf>,
    limits: Limits,
    pub(super) intervals: Intervals,
}

impl PushConsumerBuilder {
    pub(super) fn new(client: Client, group: String) -> Self {
        Self {
            client,
            group,
            topics: Vec::new(),
            from: ConsumeFrom::LastOffset,
            offset_dir: None,
            limits: Limits {
                concurrency: 20,
                queue_messages_max: 1000,
                queue_bytes_max: 16 * 1024 * 1024,
                queue_span_max: 2000,
                reconsume_times_max: None,
            },
            intervals: Intervals {
                rebalance: Duration::from_secs(20),
                persist: Duration::from_secs(5),
                lock: Duration::from_secs(20),
                lock_valid: Duration::from_secs(30),
                consume_timeout: Duration::from_secs(15 * 60),
                suspend: Duration::from_secs(1),
                shutdown_wait: Duration::from_secs(30),
            },
        }
    }

    /// Subscribes to a topic; may be called for several. `expression` is `*`, or tags like `a || b`. All members of
    /// a group must subscribe to the same.
    pub fn subscribe(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.topics.push((topic.into(), Expression::Tags(expression.into())));
        self
    }

    /// The same with an SQL92 filter over the properties of messages, like `colour = 'red' AND size > 3`. The broker
    /// evaluates it; a wrong one is refused at the start.
    pub fn subscribe_sql(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.topics.push((topic.into(), Expression::Sql(expression.into())));
        self
    }

    /// Where to begin with a queue of which the group has no offset; the end unless set.
    pub fn consume_from(mut self, from: ConsumeFrom) -> Self {
        self.from = from;
        self
    }

    /// Consumes every queue, whoever else is in the group. Offsets are kept in a file in this directory, named after
    /// the group and written every [`persist_interval`](Self::persist_interval) and at the end: give each consumer a
    /// directory of its own that outlives it. A message whose handler fails is dropped with a warning.
    pub fn broadcasting(mut self, offset_dir: impl Into<PathBuf>) -> Self {
        self.offset_dir = Some(offset_dir.into());
        self
    }

    /// Handlers that may run at the same time; 20 unless set.
    pub fn concurrency(mut self, count: usize) -> Self {
        self.limits.concurrency = count.clamp(1, Semaphore::MAX_PERMITS >> 3);
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

    /// Nothing more of a queue is pulled while its first unfinished message is more than so many offsets behind; 2000
    /// unless set. It bounds what comes again after a crash. Does not apply to orderly consumers.
    pub fn queue_span_max(mut self, offsets: u64) -> Self {
        self.limits.queue_span_max = offsets;
        self
    }

    /// How often a message is delivered again before it becomes a dead letter. Unless set, 16 times, and without end if
    /// orderly.
    pub fn max_reconsume_times(mut self, times: u32) -> Self {
        self.limits.reconsume_times_max = Some(i32::try_from(times).unwrap_or(i32::MAX));
        self
    }

    /// A message whose handler takes longer is sent back and its handler cancelled; 15 minutes unless set. Does not
    /// apply to orderly consumers, whose queues wait.
    pub fn consume_timeout(mut self, timeout: Duration) -> Self {
        self.intervals.consume_timeout = timeout;
        self
    }

    /// How long an orderly queue waits when its handler returned [`OrderlyResult::Suspend`]; 1 s unless set.
    pub fn suspend_time(mut self, time: Duration) -> Self {
        self.intervals.suspend = time;
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
        self.intervals.shutdown_wait = wait;
        self
    }

    /// Joins the group and hands over messages one by one, many at the same time. A handler that panics counts as
    /// [`ConsumeResult::ReconsumeLater`].
    ///
    /// A subscribed topic may appear later.
    pub async fn start<F, Fut, R>(self, handler: F) -> Result<PushConsumer, ConsumeError>
    where
        F: Fn(MessageExt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: Into<ConsumeResult>,
    {
        let handle = move |messages: Vec<MessageExt>| -> Work<ConsumeResult> {
            // A batch of one.
            let work = messages.into_iter().next().map(&handler);
            Box::pin(async move {
                match work {
                    Some(work) => work.await.into(),
                    None => ConsumeResult::Success,
                }
            })
        };
        self.begin(Handler::Concurrent { handle: Box::new(handle), batch_max: 1 }).await
    }

    /// Like [`start`](Self::start) with up to `batch_max` messages of one queue at a time, as many as there are. The
    /// result is that of all of them.
    pub async fn start_batches<F, Fut, R>(
        self,
        batch_max: usize,
        handler: F,
    ) -> Result<PushConsumer, ConsumeError>
    where
        F: Fn(Vec<MessageExt>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: Into<ConsumeResult>,
    {
        let handle = move |messages: Vec<MessageExt>| -> Work<ConsumeResult> {
            let work = handler(messages);
            Box::pin(async move { work.await.into() })
        };
        self.begin(Handler::Concurrent { handle: Box::new(handle), batch_max: batch_max.max(1) }).await
    }

    /// Joins the group and hands over the messages of each queue in their order, one at a time. A message that fails is
    /// handled again before the next one, see [`OrderlyResult`]; a panic counts as [`OrderlyResult::Suspend`].
    ///
    /// The queue is locked at its broker meanwhile, so no other member handles messages of it at the same time, unless
    /// a handler is still running 30 s after the broker was last reached. After a crash it takes up to 60 s until
    /// another member gets the queue.
    pub async fn start_orderly<F, Fut, R>(self, handler: F) -> Result<PushConsumer, ConsumeError>
    where
        F: Fn(MessageExt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: Into<OrderlyResult>,
    {
        let handle = move |message: MessageExt| -> Work<OrderlyResult> {
            let work = handler(message);
            Box::pin(async move { work.await.into() })
        };
        self.begin(Handler::Orderly(Box::new(handle))).await
    }

    async fn begin(self, handler: Handler) -> Result<PushConsumer, ConsumeError> {
        name::validate_group(&self.group).map_err(|error| ConsumeError::Config(error.to_string()))?;
        if self.topics.is_empty() {
            return Err(ConsumeError::Config("subscribe to a topic before starting".into()));
        }
        let mut subscriptions = Vec::new();
        for (topic, expression) in &self.topics {
            subscriptions.push(expression.subscription(topic)?);
        }
        self.client.check_filters(&self.group, &subscriptions).await?;
        let offsets = match self.offset_dir {
            Some(dir) => Some(OffsetFile::open(dir, &self.group).await?),
            None => {
                // What fails comes back through this topic.
                subscriptions.push(tag_subscription(&name::retry_topic(&self.group), "*")?);
                None
            }
        };
        let model = if offsets.is_some() { MessageModel::Broadcasting } else { MessageModel::Clustering };
        let by_topic = subscriptions.iter().map(|s| (s.topic.clone(), Arc::new(s.clone()))).collect();
        let inner = Arc::new_cyclic(|weak: &Weak<Inner>| Inner {
            member: Arc::new(ConsumerMember {
                group: self.group.clone(),
                consume_type: ConsumeType::ConsumePassively,
                message_model: model,
                consume_from_where: self.from.wire(),
                subscriptions,
                started_ms: now_ms(),
                rebalance: Notify::new(),
                requests: weak.clone(),
            }),
            republisher: Sender {
                client: self.client.clone(),
                group: name::CLIENT_INNER_PRODUCER_GROUP.to_string(),
                choice: QueueChoice::new(0),
            },
            client: self.client,
            group: Arc::from(self.group),
            subscriptions: by_topic,
            from: self.from,
            offsets,
            limits: self.limits,
            intervals: self.intervals,
            permits: Arc::new(Semaphore::new(self.limits.concurrency)),
            handler,
            queues: Mutex::default(),
        });
        inner.client.join(&inner.member).await?;
        let mut tasks = vec![
            tokio::spawn(rebalance_loop(inner.clone())).abort_handle(),
            tokio::spawn(persist_loop(inner.clone())).abort_handle(),
        ];
        if inner.needs_locks() {
            tasks.push(tokio::spawn(orderly::lock_loop(inner.clone())).abort_handle());
        }
        Ok(PushConsumer { inner, tasks })
    }
}
