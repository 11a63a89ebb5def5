//! Counts and latencies of what a client sends and consumes, see [`Client::metrics`](crate::Client::metrics).
//!
//! M1  counting takes no lock: whoever counts has the counters of its group and topic at hand, or looks them up once per
//!     send. M2  memory is bounded by the groups and topics that the client uses.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmq_protocol::body::ConsumeStatus;
use tokio::time::Instant;

use crate::client::lock;

/// Buckets per doubling of the value, as a power of two.
const SUB_BITS: u32 = 3;
/// Values of so many bits and more, in microseconds, are in the last bucket: above 12 days.
const BITS_MAX: u32 = 40;
const BUCKETS: usize = ((BITS_MAX - SUB_BITS + 1) << SUB_BITS) as usize;

/// What a client has done since it was built; a snapshot. In order of group and topic.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub sends: Vec<SendMetrics>,
    pub consumes: Vec<ConsumeMetrics>,
}

/// What the producers of a group sent to a topic.
#[derive(Clone, Debug)]
pub struct SendMetrics {
    pub group: String,
    pub topic: String,
    /// Messages that a broker stored, or that left for a broker without asking for an answer.
    pub sent: u64,
    /// Messages whose last attempt failed.
    pub failed: u64,
    /// Bytes of the bodies sent, as they travelled.
    pub bytes: u64,
    /// From the call to its outcome, attempts and waits included; one value per send or batch.
    pub latency: Latency,
}

/// What the consumers of a group did with a topic. What comes again comes through the group's retry topic.
#[derive(Clone, Debug)]
pub struct ConsumeMetrics {
    pub group: String,
    pub topic: String,
    /// Messages that brokers delivered.
    pub received: u64,
    /// Bytes of their bodies, decompressed.
    pub received_bytes: u64,
    /// Messages that a handler was done with, or that a simple consumer acknowledged.
    pub succeeded: u64,
    /// Messages that a handler failed on, took too long for, or panicked at; each time counts.
    pub failed: u64,
    /// Requests for messages that brought some, the broker's wait included.
    pub receiving: Latency,
    /// How long handlers took; one value per message or batch.
    pub handling: Latency,
}

/// How long something took: a histogram whose values are exact to an eighth.
#[derive(Clone, Debug)]
pub struct Latency {
    counts: Box<[u64]>,
    count: u64,
    sum: Duration,
}

impl Latency {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all values.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The average; zero without values.
    pub fn mean(&self) -> Duration {
        let nanos = self.sum.as_nanos().checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The value that this part of all values does not exceed: 0.5 is the median. At most an eighth above the true one;
    /// zero without values.
    pub fn quantile(&self, part: f64) -> Duration {
        // Of a few values the highest one is the last.
        let rank = ((self.count as f64 * part.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(highest_of(bucket));
            }
        }
        Duration::ZERO
    }
}

fn bucket_of(micros: u64) -> usize {
    let micros = micros.min((1 << BITS_MAX) - 1);
    if micros < 1 << SUB_BITS {
        return micros as usize; // below 8
    }
    let doubling = u64::BITS - 1 - micros.leading_zeros() - SUB_BITS;
    ((u64::from(doubling) << SUB_BITS) + (micros >> doubling)) as usize // below BUCKETS
}

/// The highest value of a bucket.
fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doubling = (bucket >> SUB_BITS).saturating_sub(1);
    ((bucket - (doubling << SUB_BITS) + 1) << doubling) - 1
}

struct Histogram {
    counts: Box<[AtomicU64]>,
    micros: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), micros: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn record(&self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket_of(micros)].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Latency {
        let counts: Box<[u64]> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let count = counts.iter().sum();
        Latency { counts, count, sum: Duration::from_micros(self.micros.load(Ordering::Relaxed)) }
    }
}

/// What happened to the messages of a group and topic.
#[derive(Default)]
pub(crate) struct SendStats {
    sent: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    latency: Histogram,
}

impl SendStats {
    /// A send of so many messages ended; one that asked for no answer took no time.
    pub(crate) fn sent(&self, messages: usize, bytes: usize, succeeded: bool, took: Option<Duration>) {
        let count = if succeeded { &self.sent } else { &self.failed };
        count.fetch_add(messages as u64, Ordering::Relaxed);
        if succeeded {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        if let Some(took) = took {
            self.latency.record(took);
        }
    }
}

#[derive(Default)]
pub(crate) struct ConsumeStats {
    received: AtomicU64,
    received_bytes: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    receiving: Histogram,
    handling: Histogram,
    recent: Mutex<VecDeque<(Instant, Totals)>>,
}

/// Sums at one moment.
#[derive(Clone, Copy, Default)]
struct Totals {
    received: u64,
    succeeded: u64,
    failed: u64,
    receives: u64,
    receiving: Duration,
    handles: u64,
    handling: Duration,
}

/// How far back [`ConsumeStats::status`] looks, and how many samples that takes at most.
const RECENT: Duration = Duration::from_secs(60);
const SAMPLES_MAX: usize = 64;

impl ConsumeStats {
    pub(crate) fn received(&self, messages: usize, bytes: usize, took: Duration) {
        if messages > 0 {
            self.received.fetch_add(messages as u64, Ordering::Relaxed);
            self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            self.receiving.record(took);
        }
    }

    pub(crate) fn acknowledged(&self, messages: usize) {
        self.succeeded.fetch_add(messages as u64, Ordering::Relaxed);
    }

    pub(crate) fn handled(&self, messages: usize, succeeded: bool, took: Duration) {
        let count = if succeeded { &self.succeeded } else { &self.failed };
        count.fetch_add(messages as u64, Ordering::Relaxed);
        self.handling.record(took);
    }

    fn totals(&self) -> Totals {
        let (receiving, handling) = (self.receiving.snapshot(), self.handling.snapshot());
        Totals {
            received: self.received.load(Ordering::Relaxed),
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            receives: receiving.count,
            receiving: receiving.sum,
            handles: handling.count,
            handling: handling.sum,
        }
    }

    /// Remembers how far things are now; to be called now and then.
    pub(crate) fn sample(&self) {
        let now = Instant::now();
        let mut recent = lock(&self.recent);
        if recent.back().is_none_or(|(last, _)| now - *last >= RECENT / SAMPLES_MAX as u32) {
            recent.push_back((now, self.totals()));
        }
        while recent.len() > SAMPLES_MAX || recent.front().is_some_and(|(first, _)| now - *first > RECENT) {
            recent.pop_front();
        }
    }

    /// How it went in the last minute, as far as it was sampled.
    pub(crate) fn status(&self) -> ConsumeStatus {
        let Some((since, before)) = lock(&self.recent).front().copied() else {
            return ConsumeStatus::default();
        };
        let now = self.totals();
        let seconds = since.elapsed().as_secs_f64().max(1e-3);
        let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
        let mean_ms = |sum: Duration, count: u64| sum.as_secs_f64() * 1e3 / count.max(1) as f64;
        ConsumeStatus {
            consume_failed_msgs: i64::try_from(now.failed - before.failed).unwrap_or(i64::MAX),
            consume_failed_tps: rate(now.failed, before.failed),
            consume_ok_tps: rate(now.succeeded, before.succeeded),
            consume_rt: mean_ms(now.handling.saturating_sub(before.handling), now.handles - before.handles),
            pull_rt: mean_ms(now.receiving.saturating_sub(before.receiving), now.receives - before.receives),
            pull_tps: rate(now.received, before.received),
        }
    }
}

type Table<T> = Mutex<BTreeMap<String, BTreeMap<String, Arc<T>>>>;

/// All counters of a client, by group and topic.
#[derive(Default)]
pub(crate) struct Registry {
    sends: Table<SendStats>,
    consumes: Table<ConsumeStats>,
}

fn of<T: Default>(table: &Table<T>, group: &str, topic: &str) -> Arc<T> {
    let mut table = lock(table);
    if let Some(stats) = table.get(group).and_then(|topics| topics.get(topic)) {
        return stats.clone();
    }
    table.entry(group.to_string()).or_default().entry(topic.to_string()).or_default().clone()
}

fn list<T, M>(table: &Table<T>, metrics: impl Fn(String, String, &T) -> M) -> Vec<M> {
    let table = lock(table);
    let topics = table
        .iter()
        .flat_map(|(group, topics)| topics.iter().map(move |(topic, stats)| (group, topic, stats)));
    topics.map(|(group, topic, stats)| metrics(group.clone(), topic.clone(), stats)).collect()
}

impl Registry {
    pub(crate) fn sends(&self, group: &str, topic: &str) -> Arc<SendStats> {
        of(&self.sends, group, topic)
    }

    pub(crate) fn consumes(&self, group: &str, topic: &str) -> Arc<ConsumeStats> {
        of(&self.consumes, group, topic)
    }

    pub(crate) fn snapshot(&self) -> Metrics {
        let sends = |group, topic, stats: &SendStats| SendMetrics {
            group,
            topic,
            sent: stats.sent.load(Ordering::Relaxed),
            failed: stats.failed.load(Ordering::Relaxed),
            bytes: stats.bytes.load(Ordering::Relaxed),
            latency: stats.latency.snapshot(),
        };
        let consumes = |group, topic, stats: &ConsumeStats| ConsumeMetrics {
            group,
            topic,
            received: stats.received.load(Ordering::Relaxed),
            received_bytes: stats.received_bytes.load(Ordering::Relaxed),
            succeeded: stats.succeeded.load(Ordering::Relaxed),
            failed: stats.failed.load(Ordering::Relaxed),
            receiving: stats.receiving.snapshot(),
            handling: stats.handling.snapshot(),
        };
        Metrics { sends: list(&self.sends, sends), consumes: list(&self.consumes, consumes) }
    }
}

#[cfg(test)]
mod tests;
