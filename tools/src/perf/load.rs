//! The load itself: threads, their connections, and what is measured (invariants P1 to P4 in `perf`).
//!
//! ```text
//!   main thread   connects, then measures nothing of a request: wakes at the start and the end of the measurement to
//!                 look at the processes, each second for the live line, and when a thread has finished
//!   each thread   a current-thread runtime; a task for each connection: issue ─▶ write ─▶ read ─▶ note answers
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::calls::connect;
use super::connection::{Connection, DELIVERY_MAX};
use super::process::{Usage, Used, Watched};
use super::shared::{LiveLine, Shared};
use super::tally::{Measured, Tally};
use super::work::{Job, Part, Plan, Problem};

/// What was measured.
pub(super) struct Totals {
    /// Those that have connections. The first is what the command is about.
    pub(super) parts: Vec<PartTotals>,
    /// Kind → count, of the whole run.
    pub(super) errors: BTreeMap<String, u64>,
    /// Kind → the words of the first.
    pub(super) words: BTreeMap<String, String>,
    /// Sent and read between the looks at the processes.
    pub(super) messages_watched: u64,
    pub(super) brokers: Vec<Used>,
    pub(super) generator: Option<Used>,
}

pub(super) struct PartTotals {
    pub(super) name: &'static str,
    pub(super) connections: usize,
    /// Messages that were there to be read, if that is known.
    pub(super) available: Option<u64>,
    pub(super) elapsed: Duration,
    pub(super) measured: Measured,
}

/// A moment at which the processes were looked at.
struct Look {
    messages: u64,
    brokers: Vec<Option<Usage>>,
    generator: Option<Usage>,
}

/// Connects, runs the load, and gives what was measured.
///
/// # Errors
/// If a connection cannot be made or a thread not be started. What goes wrong later is counted in the totals.
pub(super) fn run(jobs: Vec<Job>, plan: Plan<'_>) -> Result<Totals, String> {
    let thread_count = (plan.threads as usize).min(jobs.len()).max(1);
    let mut shares: Vec<Vec<(std::net::TcpStream, Job)>> = Vec::new();
    shares.resize_with(thread_count, Vec::new);
    let (mut senders, mut readers) = (0, 0);
    for (number, job) in jobs.into_iter().enumerate() {
        match job.work.part() {
            Part::Send => senders += 1,
            Part::Read => readers += 1,
        }
        let stream = connect(&job.address)?;
        shares[number % thread_count].push((stream, job));
    }

    let this = Watched::this();
    let look = |shared: Option<&Shared>| Look {
        messages: shared.map_or(0, Shared::messages),
        brokers: plan.processes.iter().map(Watched::usage).collect(),
        generator: this.usage(),
    };
    let mut first_look = plan.warmup.is_zero().then(|| look(None));
    let begin = Instant::now();
    let start = begin + plan.warmup;
    let end = plan.measured.map(|measured| start + measured);
    let shared = Arc::new(Shared::new(begin, &plan, senders, readers));
    let (finished, tallies) = mpsc::channel();
    for (number, share) in shares.into_iter().enumerate() {
        let (shared, finished) = (Arc::clone(&shared), finished.clone());
        std::thread::Builder::new()
            .name(format!("load-{number}"))
            .spawn(move || {
                // The main thread waits for as many tallies as there are threads.
                let _ = finished.send(thread(share, &shared, plan.series));
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    drop(finished);

    let mut live = plan.live.map(|name| LiveLine::new(begin, start, name));
    let mut last_look = None;
    let mut tally = Tally::new(plan.series);
    let mut running = thread_count;
    while running > 0 {
        let now = Instant::now();
        if first_look.is_none() && now >= start {
            first_look = Some(look(Some(&shared)));
        }
        if last_look.is_none() && end.is_some_and(|end| now >= end) {
            last_look = Some(look(Some(&shared)));
        }
        if let Some(live) = &mut live {
            live.show(now, &shared);
        }
        let second = begin + Duration::from_secs((now - begin).as_secs() + 1);
        let wake =
            [Some(start), end, Some(second)].into_iter().flatten().filter(|moment| *moment > now).min();
        match tallies.recv_timeout(wake.unwrap_or(second) - now) {
            Ok(share) => {
                tally.add(share?);
                running -= 1;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err("a thread of the load has died".to_string());
            }
        }
    }
    drop(live);
    let over = Instant::now();
    let last_look = last_look.unwrap_or_else(|| look(Some(&shared)));

    let (mut brokers, mut generator, mut messages_watched) = (Vec::new(), None, 0);
    if let Some(first) = first_look {
        messages_watched = last_look.messages - first.messages;
        for ((process, first), last) in plan.processes.iter().zip(&first.brokers).zip(&last_look.brokers) {
            brokers.extend(first.as_ref().zip(last.as_ref()).map(|(first, last)| process.used(first, last)));
        }
        generator = first.generator.zip(last_look.generator).map(|(first, last)| this.used(&first, &last));
    }
    if brokers.len() < plan.processes.len() {
        let words = "its use of CPU is not known".to_string();
        tally.problem(Problem { kind: "a broker process has ended".to_string(), words }, 1);
    }
    let delivered = shared.delivered.load(Ordering::Relaxed);
    let missing = shared.to_be_delivered().unwrap_or(0).saturating_sub(delivered);
    if missing > 0 {
        let words = format!("{delivered} were delivered before {} s without any", DELIVERY_MAX.as_secs());
        tally.problem(Problem { kind: "not delivered".to_string(), words }, missing);
    }
    let Tally { errors, words, .. } = &tally;
    let (errors, words) = (errors.clone(), words.clone());
    let part = |(part, measured): (Part, Measured)| {
        let end = shared.end().map(|end| end.min(over)).or(measured.last_answer).unwrap_or(over);
        let (name, connections) = match part {
            Part::Send => ("produce", senders),
            Part::Read => ("consume", readers),
        };
        let elapsed = end.saturating_duration_since(start);
        (connections > 0).then_some(PartTotals { name, connections, available: None, elapsed, measured })
    };
    let parts = tally.into_parts().into_iter().filter_map(part).collect();
    Ok(Totals { parts, errors, words, messages_watched, brokers, generator })
}

fn thread(
    share: Vec<(std::net::TcpStream, Job)>,
    shared: &Arc<Shared>,
    series: bool,
) -> Result<Tally, String> {
    let cannot = |error: io::Error| format!("cannot start: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let tally = Arc::new(Mutex::new(Tally::new(series)));
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        for (stream, job) in share {
            stream.set_nonblocking(true).map_err(cannot)?;
            let stream = TcpStream::from_std(stream).map_err(cannot)?;
            let (shared, tally) = (Arc::clone(shared), Arc::clone(&tally));
            connections.spawn(Connection::new(stream, job, shared, tally).run());
        }
        while let Some(connection) = connections.join_next().await {
            connection.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    })?;
    let tally = Arc::into_inner(tally).ok_or("a connection outlived its thread")?;
    tally.into_inner().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
