//! The pull consumer: the application asks for messages, and says what it has done with them.
//!
//!   one task per queue: pull ─▶ bounded channel ─▶ `poll` / `stream` ─▶ application ─▶ `commit`
//!
//! L1  messages of a queue come in its order, by one task per queue.
//! L2  `commit` stores positions: the offsets after the last batches that `poll` returned. Auto commit stores only what
//!     came before the last poll: whoever asks for more has done with that.
//! L3  a batch fetched before a seek, or before its queue was taken away, is never returned: its epoch is past.
//! L4  fetched and not yet polled are at most `FETCHED_MAX` batches and one more per queue.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use ringmq_protocol::body::{
    ConsumeType, ConsumerRunningInfo, MessageModel, MessageQueue, ProcessQueueInfo, SubscriptionData,
};
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::name;
use ringmq_protocol::types::QueueOffset;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, lock, now_ms};
use crate::error::ConsumeError;
use crate::group::{ConsumeFrom, Expression, to_wire};
use crate::member::{ConsumerMember, MemberRequests};
use crate::pull::{Pulled, Puller};

const FETCHED_MAX: usize = 8;
const HOLD: Duration = Duration::from_secs(15);

/// Settings of a [`PullConsumer`].
pub struct PullConsumerBuilder {
    client: Client,
    group: String,
    source: Source,
    from: ConsumeFrom,
    ignore_committed: bool,
    batch_max: i32,
    rebalance_interval: Duration,
    auto_commit: Option<Duration>,
}

enum Source {
    None,
    Subscribe(Vec<(String, Expression)>),
    Assign(Vec<MessageQueue>, Expression),
}

impl PullConsumerBuilder {
    /// Shares the queues of a topic with the other members of the group. May be called for several topics.
    /// `expression` is `*`, or tags like `a || b`. Replaces [`assign`](Self::assign).
    pub fn subscribe(self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.subscribe_by(topic.into(), Expression::Tags(expression.into()))
    }

    /// The same with an SQL92 filter over the properties of messages, like `colour = 'red' AND size > 3`. The broker
    /// evaluates it; a wrong one is refused at the start.
    pub fn subscribe_sql(self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.subscribe_by(topic.into(), Expression::Sql(expression.into()))
    }

    fn subscribe_by(mut self, topic: String, expression: Expression) -> Self {
        match &mut self.source {
            Source::Subscribe(topics) => topics.push((topic, expression)),
            _ => self.source = Source::Subscribe(vec![(topic, expression)]),
        }
        self
    }

    /// Reads exactly these queues, whoever else does. Replaces [`subscribe`](Self::subscribe).
    pub fn assign(mut self, queues: impl Into<Vec<MessageQueue>>, expression: impl Into<String>) -> Self {
        self.source = Source::Assign(queues.into(), Expression::Tags(expression.into()));
        self
    }

    /// The same with an SQL92 filter, as in [`subscribe_sql`](Self::subscribe_sql).
    pub fn assign_sql(mut self, queues: impl Into<Vec<MessageQueue>>, expression: impl Into<String>) -> Self {
        self.source = Source::Assign(queues.into(), Expression::Sql(expression.into()));
        self
    }

    /// Where to begin with a queue of which the group has no offset; the end unless set.
    pub fn consume_from(mut self, from: ConsumeFrom) -> Self {
        self.from = from;
        self
    }

    /// Begins where [`consume_from`](Self::consume_from) says even if the group has an offset.
    pub fn ignore_committed(mut self, ignore: bool) -> Self {
        self.ignore_committed = ignore;
        self
    }

    /// Messages asked for at once; 32 unless set. Brokers have limits of their own.
    pub fn batch_max(mut self, count: u16) -> Self {
        self.batch_max = i32::from(count.max(1));
        self
    }

    /// How often the share of the queues is computed anew when nothing tells of a change; 20 s unless set.
    pub fn rebalance_interval(mut self, interval: Duration) -> Self {
        self.rebalance_interval = interval;
        self
    }

    /// Stores offsets by itself, this often, and at [`shutdown`](PullConsumer::shutdown): to poll again says that the
    /// messages polled before are done with. `None`, as unless set, leaves it to [`commit`](PullConsumer::commit).
    pub fn auto_commit(mut self, interval: Option<Duration>) -> Self {
        self.auto_commit = interval.map(|interval| interval.max(Duration::from_millis(10)));
        self
    }

    /// Joins the group (or takes the queues) and begins to fetch.
    ///
    /// A topic to subscribe to may appear later; other failures of the first contact are returned.
    pub async fn build(self) -> Result<PullConsumer, ConsumeError> {
        name::validate_group(&self.group).map_err(|error| ConsumeError::Config(error.to_string()))?;
        let (queued, fetched) = mpsc::channel(FETCHED_MAX);
        let subscriptions = match &self.source {
            Source::None => return Err(ConsumeError::Config("subscribe to a topic or assign queues".into())),
            Source::Subscribe(topics) => topics
                .iter()
                .map(|(topic, expression)| expression.subscription(topic))
                .collect::<Result<Vec<_>, _>>()?,
            Source::Assign(queues, expression) => {
                let mut topics: Vec<&str> = queues.iter().map(|queue| queue.topic.as_str()).collect();
                topics.sort_unstable();
                topics.dedup();
                topics.iter().map(|topic| expression.subscription(topic)).collect::<Result<Vec<_>, _>>()?
            }
        };
        self.client.check_filters(&self.group, &subscriptions).await?;
        let inner = Arc::new_cyclic(|weak: &Weak<Inner>| Inner {
            member: Arc::new(ConsumerMember {
                group: self.group.clone(),
                consume_type: ConsumeType::ConsumeActively,
                message_model: MessageModel::Clustering,
                consume_from_where: self.from.wire(),
                subscriptions: subscriptions.clone(),
                started_ms: now_ms(),
                rebalance: Notify::new(),
                requests: weak.clone(),
            }),
            client: self.client,
            group: Arc::from(self.group),
            subscriptions: subscriptions.into_iter().map(|s| (s.topic.clone(), Arc::new(s))).collect(),
            from: self.from,
            ignore_committed: self.ignore_committed,
            batch_max: self.batch_max,
            queues: Mutex::default(),
            queued,
            assigned_once: Notify::new(),
            auto_commits: self.auto_commit.is_some(),
        });
        let mut tasks = Vec::new();
        let is_member = match self.source {
            Source::Assign(queues, _) => {
                for queue in queues {
                    inner.start_queue(&queue, None).await?;
                }
                false
            }
            _ => {
                inner.client.join(&inner.member).await?;
                tasks.push(
                    tokio::spawn(rebalance_loop(inner.clone(), self.rebalance_interval)).abort_handle(),
                );
                true
            }
        };
        if let Some(interval) = self.auto_commit {
            tasks.push(tokio::spawn(auto_commit_loop(inner.clone(), interval)).abort_handle());
        }
        Ok(PullConsumer { inner, fetched, is_member, tasks })
    }
}

/// A consumer that is asked for messages.
///
/// With [`subscribe`](PullConsumerBuilder::subscribe) it shares the queues with the other members of its group;
/// with [`assign`](PullConsumerBuilder::assign) it reads the queues it was told. What is not committed comes again:
/// call [`commit`](Self::commit) after the work is done.
pub struct PullConsumer {
    inner: Arc<Inner>,
    fetched: mpsc::Receiver<Fetched>,
    is_member: bool,
    tasks: Vec<AbortHandle>,
}

/// Messages of one queue, in its order.
#[derive(Clone, Debug)]
pub struct Batch {
    pub queue: MessageQueue,
    /// Empty if the queue was advanced past messages that do not match the subscription.
    pub messages: Vec<MessageExt>,
    /// The position after this batch.
    pub next: QueueOffset,
}

struct Inner {
    client: Client,
    group: Arc<str>,
    member: Arc<ConsumerMember>,
    /// By topic.
    subscriptions: BTreeMap<String, Arc<SubscriptionData>>,
    from: ConsumeFrom,
    ignore_committed: bool,
    batch_max: i32,
    queues: Mutex<Queues>,
    queued: mpsc::Sender<Fetched>,
    assigned_once: Notify,
    auto_commits: bool,
}

#[derive(Default)]
struct Queues {
    epoch: u64,
    assigned: BTreeMap<MessageQueue, Assigned>,
}

struct Assigned {
    epoch: u64,
    /// The offset after the last batch that was polled.
    position: QueueOffset,
    /// The offset after what was done with when it was polled last, for auto commit.
    done: QueueOffset,
    committed: Option<QueueOffset>,
    paused: watch::Sender<bool>,
    task: AbortHandle,
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Fetched {
    epoch: u64,
    batch: Batch,
}

impl Drop for PullConsumer {
    fn drop(&mut self) {
        self.stop();
        if self.is_member {
            self.inner.client.forget_consumer(&self.inner.group);
        }
    }
}

impl PullConsumer {
    pub(crate) fn builder(client: Client, group: String) -> PullConsumerBuilder {
        PullConsumerBuilder {
            client,
            group,
            source: Source::None,
            from: ConsumeFrom::LastOffset,
            ignore_committed: false,
            batch_max: 32,
            rebalance_interval: Duration::from_secs(20),
            auto_commit: None,
        }
    }

    /// The next batch of any queue, or `None` if there is none within `wait`.
    ///
    /// Polling again does not commit, see [`commit`](Self::commit). Dropping the future loses nothing.
    pub async fn poll(&mut self, wait: Duration) -> Option<Batch> {
        timeout(wait, poll_fn(|context| self.poll_batch(context))).await.ok().flatten()
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Batch>> {
        if self.inner.auto_commits {
            lock(&self.inner.queues)
                .assigned
                .values_mut()
                .for_each(|assigned| assigned.done = assigned.position);
        }
        loop {
            match self.fetched.poll_recv(context) {
                Poll::Ready(Some(fetched)) => {
                    let mut queues = lock(&self.inner.queues);
                    let assigned = queues.assigned.get_mut(&fetched.batch.queue);
                    // L3
                    if let Some(assigned) = assigned.filter(|assigned| assigned.epoch == fetched.epoch) {
                        assigned.position = fetched.batch.next;
                        return Poll::Ready(Some(fetched.batch));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The messages one by one, without end. A message counts as polled with its whole batch, so
    /// [`commit`](Self::commit) between two messages may cover some that were not yet taken from the stream;
    /// use [`poll`](Self::poll) where that matters.
    pub fn stream(&mut self) -> MessageStream<'_> {
        MessageStream { consumer: self, batch: Vec::new().into_iter() }
    }

    /// Stores the position of every queue as the group's offset, where it changed.
    pub async fn commit(&self) -> Result<(), ConsumeError> {
        self.inner.commit_positions(|assigned| assigned.position, false).await
    }

    /// The same without waiting for answers: fast, and a commit that is lost is made good by the next one.
    pub async fn commit_one_way(&self) -> Result<(), ConsumeError> {
        self.inner.commit_positions(|assigned| assigned.position, true).await
    }

    /// Stores an offset of a queue as the group's, for those who finish less than whole batches.
    pub async fn commit_to(&self, queue: &MessageQueue, offset: QueueOffset) -> Result<(), ConsumeError> {
        self.inner.client.commit_offset(&self.inner.group, queue, offset, false).await?;
        if let Some(assigned) = lock(&self.inner.queues).assigned.get_mut(queue) {
            assigned.committed = Some(offset);
        }
        Ok(())
    }

    /// The queues this consumer reads now.
    pub fn assignment(&self) -> Vec<MessageQueue> {
        lock(&self.inner.queues).assigned.keys().cloned().collect()
    }

    /// Waits until the group's queues have been shared out for the first time. Returns at once with assigned queues.
    pub async fn assigned(&self) {
        if self.is_member {
            self.inner.assigned_once.notified().await;
            // For whoever asks next.
            self.inner.assigned_once.notify_one();
        }
    }

    /// The offset of the next message that [`poll`](Self::poll) returns of this queue.
    pub fn position(&self, queue: &MessageQueue) -> Option<QueueOffset> {
        lock(&self.inner.queues).assigned.get(queue).map(|assigned| assigned.position)
    }

    /// Continues at another offset. What was fetched before is never returned.
    pub async fn seek(&self, queue: &MessageQueue, offset: QueueOffset) -> Result<(), ConsumeError> {
        self.inner.seek(queue, offset)
    }

    /// Continues at the oldest message.
    pub async fn seek_to_begin(&self, queue: &MessageQueue) -> Result<(), ConsumeError> {
        self.inner.seek(queue, self.min_offset(queue).await?)
    }

    /// Continues with the messages that come from now on.
    pub async fn seek_to_end(&self, queue: &MessageQueue) -> Result<(), ConsumeError> {
        self.inner.seek(queue, self.max_offset(queue).await?)
    }

    /// Continues at the first message stored at this time (milliseconds since 1970) or later.
    pub async fn seek_to_time(&self, queue: &MessageQueue, time_ms: i64) -> Result<(), ConsumeError> {
        self.inner.seek(queue, self.offset_by_time(queue, time_ms).await?)
    }

    /// Fetches nothing more of this queue; what was fetched still comes.
    pub fn pause(&self, queue: &MessageQueue) -> Result<(), ConsumeError> {
        self.set_paused(queue, true)
    }

    /// Fetches a paused queue again.
    pub fn resume(&self, queue: &MessageQueue) -> Result<(), ConsumeError> {
        self.set_paused(queue, false)
    }

    fn set_paused(&self, queue: &MessageQueue, paused: bool) -> Result<(), ConsumeError> {
        match lock(&self.inner.queues).assigned.get(queue) {
            Some(assigned) => assigned.paused.send_replace(paused),
            None => return Err(not_assigned(queue)),
        };
        Ok(())
    }

    /// The offset the group committed; `None` if it has none.
    pub async fn committed(&self, queue: &MessageQueue) -> Result<Option<QueueOffset>, ConsumeError> {
        self.inner.client.committed_offset(&self.inner.group, queue).await
    }

    /// The oldest offset of a queue.
    pub async fn min_offset(&self, queue: &MessageQueue) -> Result<QueueOffset, ConsumeError> {
        self.inner.client.min_offset(queue).await
    }

    /// The offset that the next message of a queue will get.
    pub async fn max_offset(&self, queue: &MessageQueue) -> Result<QueueOffset, ConsumeError> {
        self.inner.client.max_offset(queue).await
    }

    /// The offset of the first message stored at this time (milliseconds since 1970) or later.
    pub async fn offset_by_time(
        &self,
        queue: &MessageQueue,
        time_ms: i64,
    ) -> Result<QueueOffset, ConsumeError> {
        self.inner.client.offset_by_time(queue, time_ms).await
    }

    /// Stops fetching and leaves the group. Commits what was polled if [`auto_commit`](PullConsumerBuilder::auto_commit)
    /// is set, else nothing: commit before.
    pub async fn shutdown(mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if self.inner.auto_commits
            && let Err(error) = self.commit().await
        {
            tracing::warn!(%error, group = %self.inner.group, "offsets not stored");
        }
        self.stop();
        if std::mem::take(&mut self.is_member) {
            self.inner.client.remove_consumer(&self.inner.group).await;
        }
    }

    fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        lock(&self.inner.queues).assigned.clear();
    }
}

/// See [`PullConsumer::stream`].
pub struct MessageStream<'a> {
    consumer: &'a mut PullConsumer,
    batch: std::vec::IntoIter<MessageExt>,
}

impl Stream for MessageStream<'_> {
    type Item = MessageExt;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<MessageExt>> {
        let this = self.get_mut();
        loop {
            if let Some(message) = this.batch.next() {
                return Poll::Ready(Some(message));
            }
            match this.consumer.poll_batch(context) {
                Poll::Ready(Some(batch)) => this.batch = batch.messages.into_iter(),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn not_assigned(queue: &MessageQueue) -> ConsumeError {
    ConsumeError::NotAssigned(format!("{} of topic {} on {}", queue.queue_id, queue.topic, queue.broker_name))
}

impl Inner {
    /// Begins to fetch a queue, at the given offset or where the group begins.
    async fn start_queue(
        self: &Arc<Self>,
        queue: &MessageQueue,
        at: Option<QueueOffset>,
    ) -> Result<(), ConsumeError> {
        if !self.subscriptions.contains_key(&queue.topic) {
            return Err(not_assigned(queue));
        }
        let start = match at {
            Some(offset) => offset,
            None => self.first_offset(queue).await?,
        };
        self.fetch_from(queue, start, false, &mut lock(&self.queues));
        Ok(())
    }

    fn seek(&self, queue: &MessageQueue, offset: QueueOffset) -> Result<(), ConsumeError> {
        let mut queues = lock(&self.queues);
        let Some(assigned) = queues.assigned.remove(queue) else { return Err(not_assigned(queue)) };
        let paused = *assigned.paused.borrow();
        drop(assigned);
        self.fetch_from(queue, offset, paused, &mut queues);
        Ok(())
    }

    fn fetch_from(&self, queue: &MessageQueue, start: QueueOffset, paused: bool, queues: &mut Queues) {
        let Some(subscription) = self.subscriptions.get(&queue.topic).cloned() else { return };
        let puller = Puller {
            client: self.client.clone(),
            group: self.group.clone(),
            queue: queue.clone(),
            subscription,
            inline_subscription: true,
            batch_max: self.batch_max,
            hold: HOLD,
            broker_id: 0,
        };
        let (paused, is_paused) = watch::channel(paused);
        queues.epoch += 1;
        let epoch = queues.epoch;
        let task = tokio::spawn(fetch(puller, start, epoch, is_paused, self.queued.clone())).abort_handle();
        let assigned = Assigned { epoch, position: start, done: start, committed: None, paused, task };
        queues.assigned.insert(queue.clone(), assigned);
    }

    /// Stores an offset of every queue as the group's, where it changed.
    async fn commit_positions(
        self: &Arc<Self>,
        position: impl Fn(&Assigned) -> QueueOffset,
        one_way: bool,
    ) -> Result<(), ConsumeError> {
        let changed: Vec<(MessageQueue, u64, QueueOffset)> = lock(&self.queues)
            .assigned
            .iter()
            .map(|(queue, assigned)| (queue, assigned, position(assigned)))
            .filter(|(_, assigned, position)| assigned.committed != Some(*position))
            .map(|(queue, assigned, position)| (queue.clone(), assigned.epoch, position))
            .collect();
        let mut commits = JoinSet::new();
        for (queue, epoch, offset) in changed {
            let inner = self.clone();
            commits.spawn(async move {
                inner.client.commit_offset(&inner.group, &queue, offset, one_way).await?;
                if let Some(assigned) = lock(&inner.queues).assigned.get_mut(&queue)
                    && assigned.epoch == epoch
                {
                    // One that was lost on the way is made good by the next that is asked for an answer.
                    assigned.committed = (!one_way).then_some(offset);
                }
                Ok(())
            });
        }
        let mut outcome = Ok(());
        while let Some(joined) = commits.join_next().await {
            // A commit does not panic, and nobody aborts it.
            outcome = outcome.and(joined.unwrap_or(Err(ConsumeError::ShutDown)));
        }
        outcome
    }

    async fn first_offset(&self, queue: &MessageQueue) -> Result<QueueOffset, ConsumeError> {
        let client = &self.client;
        if !self.ignore_committed {
            return client.first_offset(&self.group, queue, self.from).await;
        }
        match self.from {
            ConsumeFrom::FirstOffset => client.min_offset(queue).await,
            ConsumeFrom::LastOffset => client.max_offset(queue).await,
            ConsumeFrom::Timestamp(time_ms) => client.offset_by_time(queue, time_ms).await,
        }
    }

    /// Takes up and gives up queues so that exactly this client's share is fetched.
    async fn rebalance(self: &Arc<Self>) {
        let mut complete = true;
        for topic in self.subscriptions.keys() {
            let Some(share) = self.client.share(&self.group, topic).await else {
                complete = false;
                continue;
            };
            let (lost, new): (Vec<(MessageQueue, QueueOffset)>, Vec<MessageQueue>) = {
                let mut queues = lock(&self.queues);
                let is_lost = |queue: &MessageQueue| queue.topic == *topic && !share.contains(queue);
                let lost = queues.assigned.iter().filter(|(queue, _)| is_lost(queue));
                let lost = lost.map(|(queue, assigned)| (queue.clone(), assigned.done)).collect();
                queues.assigned.retain(|queue, _| !is_lost(queue));
                (lost, share.into_iter().filter(|queue| !queues.assigned.contains_key(queue)).collect())
            };
            for (queue, done) in lost.into_iter().filter(|_| self.auto_commits) {
                if let Err(error) = self.client.commit_offset(&self.group, &queue, done, false).await {
                    tracing::warn!(%error, %topic, broker = %queue.broker_name, "offset not stored");
                }
            }
            for queue in new {
                if let Err(error) = self.start_queue(&queue, None).await {
                    tracing::warn!(%error, topic = %queue.topic, broker = %queue.broker_name, "queue not started");
                    complete = false;
                }
            }
        }
        if complete {
            self.assigned_once.notify_one();
        }
    }
}

impl MemberRequests for Inner {
    fn reset_offsets(self: Arc<Self>, offsets: BTreeMap<MessageQueue, QueueOffset>) {
        for (queue, offset) in offsets {
            // A queue that is not ours begins at the group's offset if it ever becomes so.
            if self.seek(&queue, offset).is_ok() {
                tracing::info!(topic = %queue.topic, queue = queue.queue_id, %offset, "offset reset");
            }
        }
    }

    fn offsets(&self, topic: &str) -> BTreeMap<MessageQueue, QueueOffset> {
        let queues = lock(&self.queues);
        let of_topic = queues.assigned.iter().filter(|(queue, _)| queue.topic == topic);
        of_topic.map(|(queue, assigned)| (queue.clone(), assigned.position)).collect()
    }

    fn running_info(&self) -> ConsumerRunningInfo {
        let queues = lock(&self.queues);
        let info = |assigned: &Assigned| ProcessQueueInfo {
            commit_offset: to_wire(assigned.position),
            ..ProcessQueueInfo::default()
        };
        ConsumerRunningInfo {
            mq_table: queues
                .assigned
                .iter()
                .map(|(queue, assigned)| (queue.clone(), info(assigned)))
                .collect(),
            ..self.member.running_info(false)
        }
    }
}

async fn auto_commit_loop(inner: Arc<Inner>, interval: Duration) {
    loop {
        sleep(interval).await;
        if let Err(error) = inner.commit_positions(|assigned| assigned.done, false).await {
            tracing::warn!(%error, group = %inner.group, "offsets not stored");
        }
    }
}

async fn rebalance_loop(inner: Arc<Inner>, interval: Duration) {
    loop {
        inner.rebalance().await;
        tokio::select! {
            () = sleep(interval) => {}
            () = inner.member.rebalance.notified() => {}
        }
    }
}

async fn fetch(
    mut puller: Puller,
    start: QueueOffset,
    epoch: u64,
    mut paused: watch::Receiver<bool>,
    queued: mpsc::Sender<Fetched>,
) {
    let mut offset = start;
    let stats = puller.client.registry().consumes(&puller.group, &puller.queue.topic);
    // The sender of `paused` lives as long as this task may run.
    while paused.wait_for(|paused| !paused).await.is_ok() {
        let begun = Instant::now();
        match puller.pull(offset, None).await {
            Ok(Pulled { messages, next, .. }) => {
                let bytes = messages.iter().map(|message| message.message.body.len()).sum();
                stats.received(messages.len(), bytes, begun.elapsed());
                if next == offset && messages.is_empty() {
                    continue;
                }
                offset = next;
                let batch = Batch { queue: puller.queue.clone(), messages, next };
                if queued.send(Fetched { epoch, batch }).await.is_err() {
                    return;
                }
            }
            Err(error) => puller.recover(&error).await,
        }
    }
}

#[cfg(test)]
mod tests;
