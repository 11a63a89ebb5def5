//! What is noted of requests, and how the notes of threads are added up (P4): counts, histograms, and for drawings also
//! a histogram of each short interval, so that no percentile is ever made of other percentiles.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::work::{Part, Problem};

/// Latencies above are noted as this, in ns.
const LATENCY_MAX_NS: u64 = 100_000_000_000;
/// The length that intervals begin with.
const INTERVAL_FIRST: Duration = Duration::from_millis(100);
/// More intervals than these are joined in pairs. Each takes 16 KB, and a drawing has no room for more.
const INTERVALS_MAX: usize = 240;

/// What was measured of one part of a load.
pub(super) struct Measured {
    pub(super) messages: u64,
    /// Of bodies.
    pub(super) bytes: u64,
    pub(super) requests: u64,
    /// From issue (or from when it was due) to the answer; refused ones too.
    pub(super) latency: Latencies,
    /// From when messages were sent (or due) to when they were read, for each of them that says when that was.
    pub(super) delivery: Latencies,
    pub(super) last_answer: Option<Instant>,
}

/// What a thread notes, and then the sum over all.
pub(super) struct Tally {
    send: Measured,
    read: Measured,
    /// Kind → count, of the whole run: a run with errors has measured something else.
    pub(super) errors: BTreeMap<String, u64>,
    /// Kind → the words of the first.
    pub(super) words: BTreeMap<String, String>,
}

/// Latencies in ns, all together and, if they are to be drawn, by when they ended.
#[derive(Clone)]
pub(super) struct Latencies {
    pub(super) all: Histogram<u64>,
    pub(super) series: Option<Series>,
}

/// A histogram of two digits for each interval of the measurement. Intervals double in length when there are too many.
#[derive(Clone)]
pub(super) struct Series {
    interval: Duration,
    histograms: Vec<Histogram<u32>>,
}

/// What a drawing shows of one interval; latencies in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// Since the start of the measurement.
    pub(super) begin: Duration,
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

impl Measured {
    /// `series`: also by time.
    pub(super) fn new(series: bool) -> Self {
        let (latency, delivery) = (Latencies::new(series), Latencies::new(series));
        Self { messages: 0, bytes: 0, requests: 0, latency, delivery, last_answer: None }
    }

    fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.latency.add(&other.latency);
        self.delivery.add(&other.delivery);
        self.last_answer = self.last_answer.max(other.last_answer);
    }
}

impl Tally {
    pub(super) fn new(series: bool) -> Self {
        let (send, read) = (Measured::new(series), Measured::new(series));
        Self { send, read, errors: BTreeMap::new(), words: BTreeMap::new() }
    }

    pub(super) fn part(&mut self, part: Part) -> &mut Measured {
        match part {
            Part::Send => &mut self.send,
            Part::Read => &mut self.read,
        }
    }

    /// What was measured of sending, and of reading.
    pub(super) fn into_parts(self) -> [(Part, Measured); 2] {
        [(Part::Send, self.send), (Part::Read, self.read)]
    }

    pub(super) fn problem(&mut self, problem: Problem, count: u64) {
        *self.errors.entry(problem.kind.clone()).or_default() += count;
        self.words.entry(problem.kind).or_insert(problem.words);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.send.add(&other.send);
        self.read.add(&other.read);
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        for (kind, words) in other.words {
            self.words.entry(kind).or_insert(words);
        }
    }
}

impl Latencies {
    fn new(series: bool) -> Self {
        Self { all: histogram(3), series: series.then(Series::new) }
    }

    /// Notes `count` latencies of one length that ended so long after the start of the measurement.
    pub(super) fn record(&mut self, latency: Duration, count: u64, at: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.all.saturating_record_n(ns, count);
        if let Some(series) = &mut self.series {
            series.record(ns, count, at);
        }
    }

    fn add(&mut self, other: &Self) {
        self.all.add(&other.all).expect("histograms of the same bounds");
        if let (Some(series), Some(other)) = (&mut self.series, &other.series) {
            series.add(other.clone());
        }
    }
}

impl Series {
    fn new() -> Self {
        Self { interval: INTERVAL_FIRST, histograms: Vec::new() }
    }

    fn record(&mut self, ns: u64, count: u64, at: Duration) {
        let mut index = self.index(at);
        while index >= INTERVALS_MAX {
            self.join_pairs();
            index = self.index(at);
        }
        while self.histograms.len() <= index {
            self.histograms.push(histogram(2));
        }
        self.histograms[index].saturating_record_n(ns, u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn index(&self, at: Duration) -> usize {
        usize::try_from(at.as_nanos() / self.interval.as_nanos()).unwrap_or(usize::MAX)
    }

    fn join_pairs(&mut self) {
        self.interval *= 2;
        let mut joined: Vec<Histogram<u32>> = Vec::new();
        for (index, histogram) in self.histograms.drain(..).enumerate() {
            match joined.last_mut() {
                Some(first) if index % 2 == 1 => {
                    first.add(histogram).expect("histograms of the same bounds");
                }
                _ => joined.push(histogram),
            }
        }
        self.histograms = joined;
    }

    fn add(&mut self, mut other: Self) {
        while self.interval < other.interval {
            self.join_pairs();
        }
        while other.interval < self.interval {
            other.join_pairs();
        }
        while self.histograms.len() < other.histograms.len() {
            self.histograms.push(histogram(2));
        }
        for (sum, histogram) in self.histograms.iter_mut().zip(&other.histograms) {
            sum.add(histogram).expect("histograms of the same bounds");
        }
    }

    /// How long each interval is.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// The intervals in which something ended, in order.
    pub(super) fn points(&self) -> impl Iterator<Item = Point> + '_ {
        let full = self.histograms.iter().enumerate().filter(|(_, histogram)| !histogram.is_empty());
        full.map(|(index, histogram)| Point {
            // At most INTERVALS_MAX.
            begin: self.interval * index as u32,
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
        })
    }
}

/// Of so many significant digits, from 1 ns to the maximum.
fn histogram<C: hdrhistogram::Counter>(digits: u8) -> Histogram<C> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, digits).expect("bounds that are fixed and valid")
}

#[cfg(test)]
mod tests;
