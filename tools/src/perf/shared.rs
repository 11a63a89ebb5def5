//! What the threads of a run share, and the line that shows it while the run goes on.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::work::{Part, Plan};
use crate::units::format_bytes;

/// From when to when, on the clock of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) begin: Instant,
    /// Start of the measurement.
    pub(super) start: Instant,
}

/// What the threads share while the load runs.
pub(super) struct Shared {
    schedule: Schedule,
    /// Of the run, in ns after its begin; `u64::MAX` as long as nobody knows.
    end_ns: AtomicU64,
    ends_with: Option<Part>,
    copies: u64,
    /// Messages of `--count` that are left.
    budget: Option<AtomicU64>,
    send: Progress,
    read: Progress,
    /// Messages of this run that were read.
    pub(super) delivered: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// How far a part of the load is.
#[derive(Default)]
pub(super) struct Progress {
    /// Connections that have not finished.
    running: AtomicUsize,
    /// Acknowledged or read in the whole run.
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl Shared {
    /// Of a run that begins now, with so many connections.
    pub(super) fn new(begin: Instant, plan: &Plan<'_>, senders: usize, readers: usize) -> Self {
        let end = plan.measured.map(|measured| plan.warmup + measured);
        let progress =
            |connections| Progress { running: AtomicUsize::new(connections), ..Progress::default() };
        Self {
            schedule: Schedule { begin, start: begin + plan.warmup },
            end_ns: AtomicU64::new(end.map_or(u64::MAX, nanos)),
            ends_with: plan.ends_with,
            copies: plan.copies,
            budget: plan.count.map(AtomicU64::new),
            send: progress(senders),
            read: progress(readers),
            delivered: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    pub(super) fn part(&self, part: Part) -> &Progress {
        match part {
            Part::Send => &self.send,
            Part::Read => &self.read,
        }
    }

    /// Sent and read so far.
    pub(super) fn messages(&self) -> u64 {
        self.send.messages.load(Ordering::Relaxed) + self.read.messages.load(Ordering::Relaxed)
    }

    pub(super) fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// When the run ends, once that is known.
    pub(super) fn end(&self) -> Option<Instant> {
        let ns = self.end_ns.load(Ordering::Relaxed);
        (ns < u64::MAX).then(|| self.schedule.begin + Duration::from_nanos(ns))
    }

    /// A connection has done its part.
    pub(super) fn finish(&self, part: Part) {
        // Release: who sees it finished sees what it has counted.
        let others = self.part(part).running.fetch_sub(1, Ordering::AcqRel) - 1;
        if others == 0 && self.ends_with == Some(part) {
            self.end_ns.fetch_min(nanos(self.schedule.begin.elapsed()), Ordering::Relaxed);
        }
    }

    /// How many messages have to be delivered in all, once that is known.
    pub(super) fn to_be_delivered(&self) -> Option<u64> {
        let is_known = self.send.running.load(Ordering::Acquire) == 0;
        is_known.then(|| self.send.messages.load(Ordering::Relaxed) * self.copies)
    }

    pub(super) fn budget_is_spent(&self) -> bool {
        self.budget.as_ref().is_some_and(|left| left.load(Ordering::Relaxed) == 0)
    }

    /// Takes messages from the budget, fewer if fewer are left; `false` if none are left.
    pub(super) fn take(&self, messages: u64) -> bool {
        let Some(left) = &self.budget else { return true };
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left > 0).then(|| left.saturating_sub(messages))
        })
        .is_ok()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The line that is written over each second. Dropped, it ends the line.
pub(super) struct LiveLine {
    begin: Instant,
    start: Instant,
    name: &'static str,
    shown: Instant,
    /// Messages and bytes, sent and read.
    before: [(u64, u64); 2],
}

impl LiveLine {
    /// `name`: what is done from `start` on.
    pub(super) fn new(begin: Instant, start: Instant, name: &'static str) -> Self {
        Self { begin, start, name, shown: begin, before: [(0, 0); 2] }
    }

    /// Shows what happened since the line was shown last, if that is about a second ago.
    pub(super) fn show(&mut self, now: Instant, shared: &Shared) {
        let since = now - self.shown;
        if since < Duration::from_millis(900) {
            return;
        }
        let rate = |count: u64| count as f64 / since.as_secs_f64();
        let phase = if now < self.start { "warm-up" } else { self.name };
        let mut line = format!("{:>5.0} s  {phase}", (now - self.begin).as_secs_f64());
        for ((word, part), before) in
            [("sent", Part::Send), ("read", Part::Read)].iter().zip(&mut self.before)
        {
            let progress = shared.part(*part);
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let (messages, bytes) = (load(&progress.messages), load(&progress.bytes));
            if messages > 0 {
                let (per_second, bytes_per_second) = (rate(messages - before.0), rate(bytes - before.1));
                line +=
                    &format!("  {word} {per_second:.0} msg/s  {}/s", format_bytes(bytes_per_second as u64));
            }
            *before = (messages, bytes);
        }
        line += &format!("  {} errors", shared.errors.load(Ordering::Relaxed));
        // A terminal that is gone is no reason to stop measuring.
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
        self.shown = now;
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
