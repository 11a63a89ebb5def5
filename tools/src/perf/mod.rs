//! The load generator behind `ringmq-perf`. It talks frames on connections of its own, so that it costs little and
//! runs against any broker that speaks the protocol; of RingMQ it shares the frames only.
//!
//! ```text
//!   arguments   what the user asked for
//!   calls       questions and answers before the load: routes, topics, offsets
//!   spread      which connection works on which topics and queues
//!   produce, consume   the requests of a connection, and what their answers mean
//!   together    sending and reading at the same time, and one load after the other
//!   work        what a connection is asked to do
//!   load        threads and their connections, the processes that are watched
//!   shared      the clock of a run, how far it is, the live line
//!   connection  windows and pacing; what is measured
//!   tally       counts, histograms, and how threads are added up
//!   process     CPU and memory of the broker, from /proc
//!   report      the summary
//!   plot        the drawing
//! ```
//!
//! P1  Frames are encoded before the load begins, one for each request that may be in flight. The opaque of a request
//!     is the number of its frame, which is sent again once it was answered: sending encodes nothing during the run.
//!     Only pulls are written anew, with the next offset.
//! P2  What counts: in a closed loop with an end in time, what is acknowledged between warm-up and end; else what is
//!     issued after warm-up, however late its answer. A delivery counts if its message was issued after warm-up, however
//!     late it was read.
//! P3  A paced request's latency counts from when it was due, not from when it could be sent, so a broker that stalls
//!     is charged for every request that the stall delayed.
//! P4  All latencies of a run are in one histogram; a drawing has another for each of its intervals. No percentile is made
//!     of other percentiles.
//! P5  Bodies are what the seed makes them; where deliveries are timed, their first 16 bytes are not, and 8 of these are
//!     written as a request is issued.

mod arguments;
mod calls;
mod connection;
mod consume;
mod load;
mod plot;
mod process;
mod produce;
mod report;
mod shared;
mod spread;
mod tally;
mod together;
mod work;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;

pub use arguments::Arguments;
use arguments::Command;
use calls::Caller;
use plot::{Curve, Drawing};
use report::Report;
use work::Plan;

/// Does what was asked and prints the summary. Says whether everything was answered well.
///
/// # Errors
/// One line that says why there is no measurement.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let common = arguments.command.common();
    arguments.command.validate()?;
    let caller = Caller::new(common.name_servers(), common.codec());
    let processes: Vec<_> =
        common.broker_pid.iter().map(|pid| process::Watched::new(*pid)).collect::<Result<_, _>>()?;
    let drawing = common.plot.as_deref().map(Output::create).transpose()?;
    let live = std::io::stderr().is_terminal().then_some("measuring");
    let (warmup, measured) = (arguments.command.warmup(), arguments.command.measured());
    let plan = Plan {
        threads: common.threads,
        warmup,
        measured,
        count: common.count,
        ends_with: None,
        copies: 0,
        processes: &processes,
        series: drawing.is_some(),
        live,
    };
    let totals = match &arguments.command {
        Command::Produce(produce) => load::run(produce::jobs(produce, &caller)?, plan)?,
        Command::Topics(topics) => load::run(produce::topics_jobs(topics, &caller)?, plan)?,
        Command::Consume(consume) => load::run(consume::jobs(consume, &caller)?, plan)?,
        Command::Mixed(mixed) => together::mixed(mixed, &caller, plan)?,
        Command::Fanout(fanout) => together::fanout(fanout, &caller, plan)?,
        Command::Backlog(backlog) => together::backlog(backlog, &caller, plan)?,
        Command::Latency(latency) => load::run(produce::paced_jobs(latency, &caller)?, plan)?,
    };
    let report = Report::new(arguments.command.name(), common, &totals);
    let printed = report.print(common.json);
    // Whoever closed our output has read enough.
    if let Err(error) = printed.or_else(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    }) {
        return Err(format!("cannot print the summary: {error}"));
    }
    if report.is_empty() {
        return Err("nothing was answered in the time measured".to_string());
    }
    if let Some(drawing) = drawing {
        let (title, subtitle) = report.headings();
        let drawn = totals.parts.iter().filter(|part| part.measured.latency.series.is_some());
        let curves = drawn.flat_map(|part| {
            let name = part.name.to_string();
            let answers = Curve { name, latencies: &part.measured.latency };
            [answers, Curve { name: "delivery".to_string(), latencies: &part.measured.delivery }]
        });
        let curves = curves.collect();
        drawing.write(&Drawing { title, subtitle, curves }.to_string())?;
    }
    Ok(report.is_clean())
}

/// A file to be written, which is made before the load: a path that cannot be written should not cost a measurement.
struct Output<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Output<'a> {
    fn create(path: &'a Path) -> Result<Self, String> {
        let file = File::create(path)
            .map_err(|error| format!("--plot {}: cannot be written: {error}", path.display()))?;
        Ok(Self { path, file })
    }

    fn write(mut self, text: &str) -> Result<(), String> {
        self.file
            .write_all(text.as_bytes())
            .map_err(|error| format!("--plot {}: cannot be written: {error}", self.path.display()))
    }
}
