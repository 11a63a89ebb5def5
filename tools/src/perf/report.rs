//! What people and programs get to see.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::arguments::Common;
use super::load::Totals;
use super::process::{ThreadUsed, Used};
use crate::units::format_bytes;

/// The summary of a run. Serialized, it is what `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    mode: &'static str,
    topic: String,
    connections: u32,
    threads: u32,
    /// Of the measurement, without warm-up.
    seconds: f64,
    messages: u64,
    messages_per_second: f64,
    /// 10⁶ bytes of bodies.
    mb_per_second: f64,
    requests: u64,
    requests_per_second: f64,
    /// Kind → count, of the whole run.
    errors: BTreeMap<String, u64>,
    /// Kind → what was said the first time.
    first_errors: BTreeMap<String, String>,
    latency_us: Option<LatencySummary>,
    brokers: Vec<ProcessSummary>,
    /// This program.
    generator: Option<ProcessSummary>,
}

/// In µs.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct LatencySummary {
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

impl LatencySummary {
    /// `None` if nothing was recorded.
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
}

impl fmt::Display for LatencySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, p99_9, p99_99, max } = self;
        write!(
            f,
            "p50 {p50:.1}  p90 {p90:.1}  p99 {p99:.1}  p99.9 {p99_9:.1}  p99.99 {p99_99:.1}  max {max:.1} µs"
        )
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
    pub(super) fn new(mode: &'static str, common: &Common, totals: &Totals) -> Self {
        let measured = &totals.measured;
        let seconds = totals.elapsed.as_secs_f64();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let process = |used| ProcessSummary::new(used, totals.messages_watched);
        Self {
            mode,
            topic: common.topic.clone(),
            connections: common.connections,
            threads: common.threads,
            seconds,
            messages: measured.messages,
            messages_per_second: rate(measured.messages),
            mb_per_second: rate(measured.bytes) / 1e6,
            requests: measured.requests,
            requests_per_second: rate(measured.requests),
            errors: totals.errors.clone(),
            first_errors: totals.words.clone(),
            latency_us: LatencySummary::new(&measured.latency.all),
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
        self.errors.is_empty() && self.requests == 0
    }

    /// What a drawing of this run has as its heading, and below.
    pub(super) fn headings(&self) -> (String, String) {
        let Self { mode, topic, seconds, messages_per_second, mb_per_second, .. } = self;
        let title = format!("{mode} {topic}: {messages_per_second:.0} msg/s, {mb_per_second:.1} MB/s");
        let latency = self.latency_us.as_ref().map_or(String::new(), |latency| format!(": {latency}"));
        (title, format!("{seconds:.1} s{latency}"))
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
        writeln!(
            f,
            "messages      {} in {:.2} s: {:.0} msg/s, {:.1} MB/s",
            self.messages, self.seconds, self.messages_per_second, self.mb_per_second
        )?;
        writeln!(f, "requests      {}: {:.0} a second", self.requests, self.requests_per_second)?;
        match &self.latency_us {
            Some(latency) => writeln!(f, "latency       {latency}")?,
            None => writeln!(f, "latency       unknown")?,
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

/// The line that is written over each second. Dropped, it ends the line.
pub(super) struct LiveLine {
    begin: Instant,
    start: Instant,
    shown: Instant,
    messages: u64,
    bytes: u64,
}

impl LiveLine {
    pub(super) fn new(begin: Instant, start: Instant) -> Self {
        Self { begin, start, shown: begin, messages: 0, bytes: 0 }
    }

    /// Shows what happened since the line was shown last, if that is about a second ago.
    pub(super) fn show(&mut self, now: Instant, messages: u64, bytes: u64, errors: u64) {
        let since = now - self.shown;
        if since < Duration::from_millis(900) {
            return;
        }
        let rate = |count: u64, before: u64| (count - before) as f64 / since.as_secs_f64();
        let phase = if now < self.start { "warm-up" } else { "measuring" };
        let line = format!(
            "{:>5.0} s  {phase}  {:.0} msg/s  {}/s  {errors} errors",
            (now - self.begin).as_secs_f64(),
            rate(messages, self.messages),
            format_bytes(rate(bytes, self.bytes) as u64),
        );
        // A terminal that is gone is no reason to stop measuring.
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
        (self.shown, self.messages, self.bytes) = (now, messages, bytes);
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

#[cfg(test)]
mod tests;
