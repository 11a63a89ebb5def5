//! Sending and reading at the same time: `mixed`, `fanout` and `backlog`.

use std::time::Duration;

use super::arguments::{
    BacklogArguments, FanoutArguments, From, MessageArguments, MixedArguments, TailArguments,
};
use super::calls::Caller;
use super::consume::{Ending, Queues, Reading};
use super::load::{self, Totals};
use super::produce::{GROUP, RunId, Sending};
use super::work::{Part, Plan, Until};

/// A backlog is written in batches of about so many bytes, with so many on the way on each connection.
const FILL_BATCH_BYTES: u32 = 64 * 1024;
const FILL_IN_FLIGHT: u32 = 4;
/// How long producers are measured alone, unless the user says so.
const ALONE_DEFAULT: Duration = Duration::from_secs(10);
/// The name of the part that `backlog` is compared with.
pub(super) const ALONE: &str = "alone";

pub(super) fn mixed(arguments: &MixedArguments, caller: &Caller, plan: Plan<'_>) -> Result<Totals, String> {
    tail(&arguments.tail, &[GROUP.to_string()], arguments.readers, caller, plan)
}

pub(super) fn fanout(arguments: &FanoutArguments, caller: &Caller, plan: Plan<'_>) -> Result<Totals, String> {
    let groups: Vec<_> = (0..arguments.groups).map(|number| format!("{GROUP}-{number}")).collect();
    tail(&arguments.tail, &groups, 1, caller, plan)
}

/// Sends, while each group reads everything, with so many connections.
fn tail(
    arguments: &TailArguments,
    groups: &[String],
    readers: u32,
    caller: &Caller,
    plan: Plan<'_>,
) -> Result<Totals, String> {
    let TailArguments { common, messages, rate, pull_batch, .. } = arguments;
    let run = RunId::new();
    let (in_flight, rate) = (arguments.in_flight(), rate.map(u64::from));
    let mut jobs = Sending { common, messages, in_flight, rate, stamp: Some(run) }.jobs(caller)?;
    let queues = Queues::look(&common.topic, caller)?;
    for group in groups {
        let reading = Reading {
            group,
            from: From::Last,
            at_end: Ending::Wait,
            times: 1,
            connections: readers,
            pull_batch: *pull_batch,
            verify: false,
            run: Some(run),
        };
        let mut readers = queues.jobs(&reading, caller.codec())?;
        readers.iter_mut().for_each(|job| job.until = Until::Delivered);
        jobs.append(&mut readers);
    }
    load::run(jobs, Plan { copies: groups.len() as u64, ..plan })
}

/// In this order: the producers beside the readers, the readers, the producers alone, and how that was prepared.
pub(super) fn backlog(
    arguments: &BacklogArguments,
    caller: &Caller,
    plan: Plan<'_>,
) -> Result<Totals, String> {
    let BacklogArguments { common, messages, in_flight, .. } = arguments;
    let mut before = Vec::new();
    let mut run = |name, jobs, plan: Plan<'_>| {
        let mut totals = load::run(jobs, Plan { live: plan.live.and(Some(name)), ..plan })?;
        totals.parts[0].name = name;
        let Totals { parts, errors, words, .. } = totals;
        let rate = parts[0].measured.messages as f64 / parts[0].elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        before.push((parts, errors, words));
        Ok::<_, String>(rate)
    };

    if let Some(bytes) = arguments.backlog {
        let batch = (FILL_BATCH_BYTES / messages.size).max(1);
        let messages = &MessageArguments { batch, ..*messages };
        let count = Some(bytes.div_ceil(u64::from(messages.size)).max(1));
        let filling = Sending { common, messages, in_flight: FILL_IN_FLIGHT, rate: None, stamp: None };
        let plan = Plan { warmup: Duration::ZERO, measured: None, count, series: false, ..plan };
        run("fill", filling.jobs(caller)?, plan)?;
    } else if caller.route(&common.topic)?.is_none() {
        return Err(format!("there is no topic {}; --backlog 1GiB makes and fills it", common.topic));
    }

    let alone = Plan { measured: Some(common.seconds.unwrap_or(ALONE_DEFAULT)), ..plan };
    let sending = Sending { common, messages, in_flight: *in_flight, rate: None, stamp: None };
    let rate = match (arguments.rate, arguments.share) {
        (Some(rate), _) => u64::from(rate),
        (None, share) => {
            let limit = run("limit", sending.jobs(caller)?, Plan { series: false, ..alone })?;
            (limit * share.unwrap_or(0.5)) as u64
        }
    };
    let sending = Sending { rate: Some(rate.max(1)), ..sending };
    run(ALONE, sending.jobs(caller)?, alone)?;

    let queues = Queues::look(&common.topic, caller)?;
    let reading = Reading {
        group: GROUP,
        from: From::First,
        at_end: Ending::Stop,
        times: 1,
        connections: arguments.readers,
        pull_batch: arguments.pull_batch,
        verify: false,
        run: None,
    };
    let mut jobs = sending.jobs(caller)?;
    let mut readers = queues.jobs(&reading, caller.codec())?;
    readers.iter_mut().for_each(|job| job.skips_warmup = true);
    jobs.append(&mut readers);
    let live = plan.live.and(Some("beside readers"));
    let beside = Plan { measured: common.seconds, ends_with: Some(Part::Read), live, ..plan };
    let mut totals = load::run(jobs, beside)?;
    if totals.parts[0].measured.requests == 0 {
        return Err(
            "the backlog was read before a message was answered; a longer one gives figures".to_string()
        );
    }
    totals.parts[1].available = Some(queues.messages());
    for (parts, errors, words) in before.into_iter().rev() {
        totals.parts.extend(parts);
        for (kind, count) in errors {
            *totals.errors.entry(kind).or_default() += count;
        }
        totals.words.extend(words);
    }
    Ok(totals)
}
