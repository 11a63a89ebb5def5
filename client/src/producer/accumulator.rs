//! Sends that gather into batches.
//!
//!   deliver ─▶ row ─▶ worker: linger ─▶ take ─▶ one request ─▶ to each send its result
//!              one for each queue, or for a topic when any queue will do
//!
//! B1  What is sent to a queue leaves in the order in which the sends began, and the next request only when the one before has
//!     ended, with all its attempts.
//! B2  When a request to a queue fails for good, all that waits behind it fails too, unsent, and so does what comes until
//!     everybody has heard of it: who has not heard of a failure has nothing stored behind it.
//! B3  Nothing waits whose sender has gone away: what waits is bounded by the futures that live.
//! B4  A row exists as long as something of it waits, is on its way or has failed unheard, and has a worker as long as
//!     something waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ringmq_protocol::body::MessageQueue;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::{Outbound, SendResult, Sender, Settings, results_of_batch};
use crate::client::lock;
use crate::error::SendError;

/// Requests of a topic that may be on their way at the same time when any queue will do.
const TOPIC_REQUESTS_MAX: usize = 4;

/// How the sends of a producer gather into batches, see [`ProducerBuilder::batching`](crate::ProducerBuilder::batching).
///
/// Sends that are under way at the same time travel in one request, and each still has its own result. It is for producers
/// that send concurrently (`join_all`, a task each …): one that awaits each send before the next gains nothing.
///
/// - Sends to one queue ([`send_to`](crate::Producer::send_to), [`send_ordered`](crate::Producer::send_ordered),
///   [`send_batch_to`](crate::Producer::send_batch_to)) leave in the order in which their futures were first polled, one
///   request after the other. When one fails for good, whatever waits behind it in its queue fails with
///   [`SendError::Behind`], unsent, and so does each send that begins before all of them have returned their errors. So nothing is
///   stored behind a gap that its sender has not been told of. What a failed or repeated request left behind may still appear
///   later, with the unique key of the message.
/// - Other sends take the queues in turn, a batch each, with up to four requests on their way; they have no order.
/// - A batch is stored or fails as a whole. A message that cannot be part of one (with a delay, a transaction, `WAIT`, or of a
///   request and its reply) goes alone, to a queue in its place among the others; so do those that are compressed and those
///   that are not, in runs of each.
/// - A send whose future is dropped while it waits is not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batching {
    pub(super) linger: Duration,
    bytes_max: BytesMax,
}

/// The default is far above that of RocketMQ (32 KiB): what gathers while one request is on its way should fit the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BytesMax(usize);

impl Default for BytesMax {
    fn default() -> Self {
        Self(1024 * 1024)
    }
}

impl Batching {
    /// How long a message may wait for others; zero unless set. With zero a request leaves as soon as the one before it is
    /// answered, with whatever has gathered meanwhile, and the first one at once.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// What the messages of a batch may take together, in bytes; a batch that is full waits no longer. 1 MiB unless set, and
    /// never more than the producer's [largest message](crate::ProducerBuilder::message_bytes_max).
    #[must_use]
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = BytesMax(bytes);
        self
    }
}

/// Gathers the sends of one producer.
pub(super) struct Accumulator {
    sender: Arc<Sender>,
    linger: Duration,
    bytes_max: usize,
    send_timeout: Duration,
    retries: u32,
    rows: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    by_key: BTreeMap<Key, Row>,
    /// Sends so far.
    count: u64,
}

/// What gathers together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Any queue of the topic will do.
    Topic(String),
    Queue(MessageQueue),
}

impl Key {
    fn queue(&self) -> Option<&MessageQueue> {
        match self {
            Self::Topic(_) => None,
            Self::Queue(queue) => Some(queue),
        }
    }

    fn requests_max(&self) -> usize {
        match self {
            Self::Topic(_) => TOPIC_REQUESTS_MAX,
            Self::Queue(_) => 1, // B1
        }
    }
}

#[derive(Default)]
struct Row {
    /// In order of their numbers.
    waiting: VecDeque<Waiting>,
    /// What they take together.
    bytes: usize,
    /// A worker waits for what makes the next batch.
    gathers: bool,
    /// Requests on their way.
    requests: usize,
    /// Tells the worker that gathers that its batch cannot grow.
    closed: Arc<Notify>,
    /// B2; only those who have not heard of it keep it.
    failure: Weak<Failure>,
}

/// Why a request to a queue failed.
struct Failure(Arc<SendError>);

/// The end of one send.
struct Failed {
    error: SendError,
    unheard: Option<Arc<Failure>>,
}

impl Row {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.gathers && self.requests == 0 && self.failure.strong_count() == 0
    }

    /// Returns whether the batch in front may be one that cannot grow any more.
    fn push(&mut self, waiting: Waiting, bytes_max: usize) -> bool {
        let goes_on = self.waiting.back().is_none_or(|last| go_together(&last.outbound, &waiting.outbound));
        let joins = waiting.outbound.joins;
        self.bytes += waiting.outbound.stored_bytes();
        self.waiting.push_back(waiting);
        !goes_on || !joins || self.bytes >= bytes_max
    }

    /// The first so many.
    fn pop(&mut self, count: usize) -> Vec<Waiting> {
        let popped: Vec<Waiting> = self.waiting.drain(..count).collect();
        self.bytes -= popped.iter().map(|waiting| waiting.outbound.stored_bytes()).sum::<usize>();
        popped
    }

    /// All of them.
    fn clear(&mut self) -> Vec<Waiting> {
        self.pop(self.waiting.len())
    }

    fn remove(&mut self, number: u64) {
        if let Ok(at) = self.waiting.binary_search_by_key(&number, |waiting| waiting.number)
            && let Some(removed) = self.waiting.remove(at)
        {
            self.bytes -= removed.outbound.stored_bytes();
        }
    }

    /// Tells those who failed, and in a queue those behind them.
    fn fail(&mut self, key: &Key, failed: Vec<Waiting>, error: SendError) {
        let Some(queue) = key.queue() else {
            let tell = |waiting: Waiting| waiting.end(Err(Failed { error: error.clone(), unheard: None }));
            return failed.into_iter().for_each(tell);
        };
        // B2
        let failure = Arc::new(Failure(Arc::new(error)));
        self.failure = Arc::downgrade(&failure);
        for waiting in failed {
            waiting.end(Err(Failed { error: (*failure.0).clone(), unheard: Some(failure.clone()) }));
        }
        for waiting in self.clear() {
            waiting.end(Err(Failed { error: behind(queue, &failure), unheard: Some(failure.clone()) }));
        }
    }

    /// How many from the front go together, and whether nothing that may still come could join them.
    fn batch(&self, bytes_max: usize) -> (usize, bool) {
        let Some(first) = self.waiting.front() else { return (0, false) };
        let mut bytes = first.outbound.stored_bytes();
        for (count, next) in self.waiting.iter().enumerate().skip(1) {
            bytes += next.outbound.stored_bytes();
            if bytes > bytes_max || !go_together(&first.outbound, &next.outbound) {
                return (count, true);
            }
        }
        (self.waiting.len(), bytes >= bytes_max || !first.outbound.joins)
    }
}

/// A send whose turn has not come.
struct Waiting {
    number: u64,
    outbound: Arc<Outbound>,
    since: Instant,
    outcome: oneshot::Sender<Result<SendResult, Failed>>,
}

impl Waiting {
    /// Nobody listens if the future was dropped.
    fn end(self, outcome: Result<SendResult, Failed>) {
        drop(self.outcome.send(outcome));
    }
}

/// All messages of a batch have the flags of its request.
fn go_together(one: &Outbound, other: &Outbound) -> bool {
    one.joins && other.joins && one.sys_flag == other.sys_flag
}

impl Accumulator {
    pub(super) fn new(sender: Arc<Sender>, batching: Batching, settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            sender,
            linger: batching.linger,
            bytes_max: batching.bytes_max.0.min(settings.message_bytes_max),
            send_timeout: settings.send_timeout,
            retries: settings.retries,
            rows: Mutex::default(),
        })
    }

    /// Sends, together with others if there are some. The place among them is taken when the future is first polled.
    pub(super) async fn deliver(
        self: &Arc<Self>,
        outbound: Arc<Outbound>,
        queue: Option<&MessageQueue>,
    ) -> Result<SendResult, SendError> {
        let key = match queue {
            Some(queue) => Key::Queue(queue.clone()),
            None => Key::Topic(outbound.topic.clone()),
        };
        let (outcome, ended) = oneshot::channel();
        let number = self.push(&key, outbound, outcome)?;
        let mut place = Place { accumulator: self, key, number, is_left: false };
        // Dropped before the place, with what it may have been told.
        let ended = ended;
        match ended.await {
            Ok(Ok(result)) => {
                place.is_left = true;
                Ok(result)
            }
            // Now it has been heard, and the place may have been the last of its row.
            Ok(Err(Failed { error, unheard })) => {
                drop(unheard);
                Err(error)
            }
            Err(_) => Err(SendError::Stopped),
        }
    }

    fn push(
        self: &Arc<Self>,
        key: &Key,
        outbound: Arc<Outbound>,
        outcome: oneshot::Sender<Result<SendResult, Failed>>,
    ) -> Result<u64, SendError> {
        let mut rows = lock(&self.rows);
        rows.count += 1;
        let number = rows.count;
        if !rows.by_key.contains_key(key) {
            rows.by_key.insert(key.clone(), Row::default());
        }
        let row = rows.by_key.get_mut(key).expect("it is there or was just made");
        if let (Some(failure), Some(queue)) = (row.failure.upgrade(), key.queue()) {
            return Err(behind(queue, &failure)); // B2
        }
        let may_be_closed =
            row.push(Waiting { number, outbound, since: Instant::now(), outcome }, self.bytes_max);
        if row.gathers {
            if may_be_closed {
                row.closed.notify_one();
            }
        } else if row.requests < key.requests_max() {
            row.gathers = true;
            self.hire(key);
        }
        Ok(number)
    }

    /// To be called by who has set `gathers`.
    fn hire(self: &Arc<Self>, key: &Key) {
        let worker = Worker { accumulator: self.clone(), key: key.clone(), duty: Duty::Gather };
        tokio::spawn(worker.run());
    }

    /// Waits until the batch in front is to leave.
    async fn gather(&self, key: &Key) {
        if self.linger.is_zero() {
            return;
        }
        loop {
            let (until, closed) = {
                let rows = lock(&self.rows);
                let Some(row) = rows.by_key.get(key) else { return };
                match row.waiting.front() {
                    Some(first) if !row.batch(self.bytes_max).1 => {
                        (first.since + self.linger, row.closed.clone())
                    }
                    _ => return,
                }
            };
            tokio::select! {
                () = sleep_until(until) => return,
                () = closed.notified() => {}
            }
        }
    }

    /// What leaves now; nothing if there is nothing left.
    fn take(self: &Arc<Self>, key: &Key) -> Vec<Waiting> {
        let mut rows = lock(&self.rows);
        let Some(row) = rows.by_key.get_mut(key) else { return Vec::new() };
        let is_late = |waiting: &&Waiting| waiting.since.elapsed() >= self.send_timeout;
        let late = row.pop(row.waiting.iter().take_while(is_late).count());
        if !late.is_empty() {
            row.fail(key, late, SendError::Expired(self.send_timeout));
        }
        let batch = row.pop(row.batch(self.bytes_max).0);
        row.gathers = false;
        if !batch.is_empty() {
            row.requests += 1;
            if !row.waiting.is_empty() && row.requests < key.requests_max() {
                row.gathers = true;
                self.hire(key);
            }
        } else if row.is_idle() {
            rows.by_key.remove(key);
        }
        batch
    }

    async fn request(&self, key: &Key, batch: &[Waiting]) -> Result<Vec<SendResult>, SendError> {
        // All have the time of the last one, so that nobody has less than was promised.
        let since = batch.iter().map(|waiting| waiting.since).max().unwrap_or_else(Instant::now);
        let timeout = (since + self.send_timeout).saturating_duration_since(Instant::now());
        let deliver =
            async |outbound| self.sender.deliver(outbound, key.queue(), timeout, self.retries).await;
        if let [single] = batch {
            return Ok(vec![deliver(&single.outbound).await?]);
        }
        let entries: Vec<&Outbound> = batch.iter().map(|waiting| &*waiting.outbound).collect();
        let outbound = Outbound::of_batch(&entries, self.sender.client.unique_key())?;
        let result = deliver(&outbound).await?;
        let message_ids = entries.iter().map(|entry| entry.message_id.clone());
        Ok(results_of_batch(&result, message_ids).collect())
    }

    /// Returns whether the worker has more to do, which is to gather.
    fn settle(&self, key: &Key, batch: Vec<Waiting>, outcome: Result<Vec<SendResult>, SendError>) -> bool {
        let mut rows = lock(&self.rows);
        let Some(row) = rows.by_key.get_mut(key) else { return false };
        row.requests -= 1;
        match outcome {
            Ok(results) => {
                batch.into_iter().zip(results).for_each(|(waiting, result)| waiting.end(Ok(result)))
            }
            Err(error) => row.fail(key, batch, error),
        }
        let goes_on = !row.waiting.is_empty() && !row.gathers;
        row.gathers |= goes_on;
        if row.is_idle() {
            rows.by_key.remove(key);
        }
        goes_on
    }
}

fn behind(queue: &MessageQueue, failure: &Failure) -> SendError {
    SendError::Behind { queue: queue.clone(), source: failure.0.clone() }
}

/// Where a send waits, until it is taken or its future is dropped.
struct Place<'a> {
    accumulator: &'a Accumulator,
    key: Key,
    number: u64,
    is_left: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        let mut rows = lock(&self.accumulator.rows);
        let Some(row) = rows.by_key.get_mut(&self.key) else { return };
        row.remove(self.number);
        if row.is_idle() {
            rows.by_key.remove(&self.key);
        }
    }
}

/// A task that sends what waits in a row.
struct Worker {
    accumulator: Arc<Accumulator>,
    key: Key,
    duty: Duty,
}

/// What the row counts the worker for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    Gather,
    Request,
    None,
}

impl Worker {
    async fn run(mut self) {
        let accumulator = &self.accumulator;
        loop {
            accumulator.gather(&self.key).await;
            let batch = accumulator.take(&self.key);
            self.duty = if batch.is_empty() { Duty::None } else { Duty::Request };
            if batch.is_empty() {
                return;
            }
            let outcome = accumulator.request(&self.key, &batch).await;
            let goes_on = accumulator.settle(&self.key, batch, outcome);
            self.duty = if goes_on { Duty::Gather } else { Duty::None };
            if !goes_on {
                return;
            }
            // Who was just told may have something for the next batch; without this it would leave with the few that came before.
            yield_now().await;
        }
    }
}

impl Drop for Worker {
    /// B4: a task that was aborted, as its runtime ended, leaves nobody waiting. Dropping their places tells them.
    fn drop(&mut self) {
        if self.duty == Duty::None {
            return;
        }
        let mut rows = lock(&self.accumulator.rows);
        let Some(row) = rows.by_key.get_mut(&self.key) else { return };
        match self.duty {
            Duty::Gather => row.gathers = false,
            Duty::Request => row.requests -= 1,
            Duty::None => {}
        }
        let left = row.clear();
        if row.is_idle() {
            rows.by_key.remove(&self.key);
        }
        drop(rows);
        drop(left);
    }
}

#[cfg(test)]
mod tests;
