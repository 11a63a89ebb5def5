//! The summary that people and programs get to see.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::arguments::Common;
use super::load::{PartTotals, Totals};
use super::process::{ThreadUsed, Used};
use super::together::ALONE;
use crate::units::format_bytes;

/// The summary of a run. Serialized, it is what `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    mode: &'static str,
    topic: String,
    threads: u32,
    /// What the command is about.
    #[serde(flatten)]
    main: PartSummary,
    /// Whatever else was measured, by its name.
    other_parts: BTreeMap<&'static str, PartSummary>,
    /// Of `backlog`: latency while others read, divided by that without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    beside_to_alone: Option<Percentiles>,
    /// Kind → count, of the whole run.
    errors: BTreeMap<String, u64>,
    /// Kind → what was said the first time.
    first_errors: BTreeMap<String, String>,
    /// CPU is that of the run of the main part, divided by all messages that were sent and read meanwhile.
    brokers: Vec<ProcessSummary>,
    /// This program.
    generator: Option<ProcessSummary>,
}

/// One side of a load.
#[derive(Debug, Serialize)]
struct PartSummary {
    part: &'static str,
    connections: usize,
    /// Of the measurement, without warm-up.
    seconds: f64,
    messages: u64,
    /// That were there to be read, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u64>,
    messages_per_second: f64,
    /// 10⁶ bytes of bodies.
    mb_per_second: f64,
    requests: u64,
    requests_per_second: f64,
    latency_us: Option<Percentiles>,
    /// Messages that were sent in the measurement and read, however late.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<u64>,
    /// From when messages were sent, or due, to when they were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_us: Option<Percentiles>,
}

/// Displayed without a unit.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p99_9: f64,
    #[serde(rename = "p99.99")]
    p99_99: f64,
    max: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct ProcessSummary {
    pid: u32,
    /// `None` without messages.
    cpu_us_per_message: Option<f64>,
    user_us_per_message: Option<f64>,
    system_us_per_message: Option<f64>,
    user_us: u64,
    system_us: u64,
    peak_rss_bytes: u64,
    threads: Vec<ThreadUsed>,
}

impl Percentiles {
    /// In µs; `None` if nothing was recorded.
    fn new(latency_ns: &Histogram<u64>) -> Option<Self> {
        let quantile = |quantile| latency_ns.value_at_quantile(quantile) as f64 / 1000.0;
        (!latency_ns.is_empty()).then(|| Self {
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            p99_99: quantile(0.9999),
            max: latency_ns.max() as f64 / 1000.0,
        })
    }

    /// Each divided by its like.
    fn to(&self, other: &Self) -> Self {
        Self {
            p50: self.p50 / other.p50,
            p90: self.p90 / other.p90,
            p99: self.p99 / other.p99,
            p99_9: self.p99_9 / other.p99_9,
            p99_99: self.p99_99 / other.p99_99,
            max: self.max / other.max,
        }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Self { p50, p90, p99, p99_9, p99_99, max } = self;
        write!(f, "p50 {p50:.digits$}  p90 {p90:.digits$}  p99 {p99:.digits$}  p99.9 {p99_9:.digits$}  ")?;
        write!(f, "p99.99 {p99_99:.digits$}  max {max:.digits$}")
    }
}

impl PartSummary {
    fn new(totals: &PartTotals) -> Self {
        let PartTotals { name, connections, available, elapsed, measured } = totals;
        let seconds = elapsed.as_secs_f64();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let delivery = &measured.delivery.all;
        Self {
            part: name,
            connections: *connections,
            seconds,
            messages: measured.messages,
            available: *available,
            messages_per_second: rate(measured.messages),
            mb_per_second: rate(measured.bytes) / 1e6,
            requests: measured.requests,
            requests_per_second: rate(measured.requests),
            latency_us: Percentiles::new(&measured.latency.all),
            delivered: (!delivery.is_empty()).then(|| delivery.len()),
            delivery_us: Percentiles::new(delivery),
        }
    }
}

impl fmt::Display for PartSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14}{}", self.part, self.messages)?;
        if let Some(available) = self.available {
            write!(f, " of {available}")?;
        }
        let Self { seconds, messages_per_second, mb_per_second, .. } = self;
        writeln!(f, " messages in {seconds:.2} s: {messages_per_second:.0} msg/s, {mb_per_second:.1} MB/s")?;
        writeln!(f, "  requests    {}: {:.0} a second", self.requests, self.requests_per_second)?;
        if let Some(latency) = &self.latency_us {
            writeln!(f, "  latency     {latency} µs")?;
        }
        if let (Some(delivered), Some(delivery)) = (self.delivered, &self.delivery_us) {
            writeln!(f, "  delivery    {delivery} µs ({delivered} messages)")?;
        }
        Ok(())
    }
}

impl ProcessSummary {
    fn new(used: &Used, messages: u64) -> Self {
        let per_message = |us: u64| (messages > 0).then(|| us as f64 / messages as f64);
        Self {
            pid: used.pid,
            cpu_us_per_message: per_message(used.user_us + used.system_us),
            user_us_per_message: per_message(used.user_us),
            system_us_per_message: per_message(used.system_us),
            user_us: used.user_us,
            system_us: used.system_us,
            peak_rss_bytes: used.peak_rss_bytes,
            threads: used.threads.clone(),
        }
    }
}

impl fmt::Display for ProcessSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cpu_us_per_message, self.user_us_per_message, self.system_us_per_message) {
            (Some(cpu), Some(user), Some(system)) => {
                write!(f, "{cpu:.3} µs CPU per message ({user:.3} user, {system:.3} system)")?;
            }
            _ => write!(f, "no messages")?,
        }
        write!(f, ", peak memory {}", format_bytes(self.peak_rss_bytes))?;
        let total = (self.user_us + self.system_us).max(1) as f64;
        let mut threads: Vec<_> = self.threads.iter().collect();
        threads.sort_by_key(|thread| std::cmp::Reverse(thread.cpu_us));
        for thread in threads.iter().take(8) {
            write!(f, "\n              {:>5.1} % {}", thread.cpu_us as f64 / total * 100.0, thread.name)?;
        }
        Ok(())
    }
}

impl Report {
    /// # Panics
    /// Without any part.
    pub(super) fn new(mode: &'static str, common: &Common, totals: &Totals) -> Self {
        let process = |used| ProcessSummary::new(used, totals.messages_watched);
        let mut parts = totals.parts.iter().map(PartSummary::new);
        let main = parts.next().expect("a load has a part");
        let other_parts: BTreeMap<_, _> = parts.map(|part| (part.part, part)).collect();
        let alone = other_parts.get(ALONE).and_then(|alone| alone.latency_us.as_ref());
        Self {
            mode,
            topic: common.topic.clone(),
            threads: common.threads,
            beside_to_alone: main.latency_us.as_ref().zip(alone).map(|(beside, alone)| beside.to(alone)),
            main,
            other_parts,
            errors: totals.errors.clone(),
            first_errors: totals.words.clone(),
            brokers: totals.brokers.iter().map(process).collect(),
            generator: totals.generator.as_ref().map(process),
        }
    }

    /// Whether there were no errors.
    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// Whether nothing was measured, not even an error.
    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty() && self.main.requests == 0
    }

    /// What a drawing of this run has as its heading, and below.
    pub(super) fn headings(&self) -> (String, String) {
        let Self { mode, topic, main, .. } = self;
        let PartSummary { seconds, messages_per_second, mb_per_second, .. } = main;
        let title = format!("{mode} {topic}: {messages_per_second:.0} msg/s, {mb_per_second:.1} MB/s");
        let latency = main.latency_us.as_ref().map_or(String::new(), |latency| format!(": {latency} µs"));
        (title, format!("{seconds:.1} s, {}{latency}", main.part))
    }

    /// To standard output.
    pub(super) fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match json {
            true => writeln!(out, "{}", serde_json::to_string(self)?),
            false => write!(out, "{self}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.main)?;
        for part in self.other_parts.values() {
            write!(f, "{part}")?;
        }
        if let Some(ratio) = &self.beside_to_alone {
            writeln!(f, "beside/alone  {ratio:.2}")?;
        }
        for broker in &self.brokers {
            writeln!(f, "broker {:<7}{broker}", broker.pid)?;
        }
        if let Some(generator) = &self.generator {
            writeln!(f, "generator     {generator}")?;
        }
        if self.errors.is_empty() {
            return writeln!(f, "errors        none");
        }
        for (kind, count) in &self.errors {
            let words = self.first_errors.get(kind).map_or("", String::as_str);
            writeln!(f, "errors        {count} × {kind}{}{words}", if words.is_empty() { "" } else { ": " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
