//! Runs simulated brokers from seeds, and says which seed to run again when something is wrong.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use ringmq_sim::checker::Anomaly;
use ringmq_sim::{Coverage, IndexHarm, Options, Outcome, Planted, run};

/// Simulates a RingMQ shard under faults: real code, virtual time. Each seed is a world of its own.
#[derive(Parser)]
#[command(name = "ringmq-sim")]
struct Arguments {
    /// How many seeds to run [default: 100, or 1 with --seed]
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// About how many requests the clients of a seed make
    #[arg(long, default_value_t = Options::default().steps)]
    steps: u64,
    /// Plant a mistake that the checker has to find
    #[arg(long, value_enum)]
    plant: Option<Planted>,
    /// Print what happens to each broker
    #[arg(long)]
    verbose: bool,
}

impl Arguments {
    fn replay(&self, seed: u64) -> String {
        let plant = self.plant.and_then(|plant| clap::ValueEnum::to_possible_value(&plant));
        let plant = plant.map(|plant| format!(" --plant {}", plant.get_name())).unwrap_or_default();
        let steps = self.steps;
        format!("cargo run --release -p ringmq-sim -- --seed {seed} --steps {steps}{plant} --verbose")
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or(0);
    let count = arguments.seeds.unwrap_or(if arguments.seed.is_some() { 1 } else { 100 });
    let options = Options { steps: arguments.steps, planted: arguments.plant, verbose: arguments.verbose };
    let started = Instant::now();
    let mut simulated = 0.0;
    let (mut acknowledged, mut seen, mut violations) = (0, 0, 0);
    let mut anomalies: BTreeMap<Anomaly, u64> = BTreeMap::new();
    let mut coverage = Coverage::default();
    for seed in first..first.saturating_add(count) {
        let outcome = run_loudly(seed, &options, &arguments.replay(seed));
        simulated += outcome.simulated.as_secs_f64();
        acknowledged += outcome.acknowledged;
        seen += outcome.seen;
        coverage.add(&outcome.coverage);
        for (anomaly, count) in &outcome.anomalies {
            *anomalies.entry(*anomaly).or_default() += count;
        }
        if arguments.verbose {
            println!("seed {seed}: trace {:016x}", outcome.trace);
        }
        for violation in &outcome.violations {
            violations += 1;
            println!("seed {seed}: {violation}");
        }
        if !outcome.violations.is_empty() {
            println!("seed {seed}: run it again with: {}", arguments.replay(seed));
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    report(&coverage, &anomalies);
    println!("{seen} messages seen by consumers, {:.1} seeds/s", count as f64 / elapsed);
    println!(
        "sim: {count} seeds, {simulated:.0} simulated seconds, {} crash points, {} faults, {acknowledged} acknowledged, {violations} violations",
        coverage.crashes,
        coverage.faults.values().sum::<u64>()
    );
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// What happened, and what was found.
fn report(coverage: &Coverage, anomalies: &BTreeMap<Anomaly, u64>) {
    let Coverage { sectors, corruption, .. } = coverage;
    println!("faults:");
    for (fault, count) in &coverage.faults {
        println!("{count:>8} {fault}");
    }
    println!(
        "crashes: {} ({} after a stop), sectors not durable: {} lost, {} kept, {} torn; {} tails cut; {} lives in async mode, {} acknowledged messages lost from the end as announced",
        coverage.crashes,
        coverage.stops,
        sectors.lost,
        sectors.kept,
        sectors.torn,
        coverage.cut_tails,
        coverage.async_lives,
        coverage.lost_at_end
    );
    println!(
        "corruption: {} blocks made wrong for good, {} reported, {} of nothing that clients know; {} reads gone wrong, {} reported, the others just before a crash; {} lines about damage; {} offsets of queues of which nothing is left, to be given again",
        corruption.injected,
        corruption.reported,
        corruption.unknown,
        coverage.stutters,
        coverage.stutters_reported,
        coverage.damage_reports,
        coverage.free_again
    );
    println!(
        "broker: {} requests, {} reads, {} writes, {} segments ({} of spares); refused: {} busy, {} for lack of space, {} after a failed write ({} logs failed); {} long polls, {} topics deleted; sends taken again after faults: {}",
        coverage.requests,
        coverage.disk_reads,
        coverage.disk_writes,
        coverage.segments,
        coverage.recycled,
        coverage.busy,
        coverage.no_space,
        coverage.failed,
        coverage.failed_logs,
        coverage.long_polls,
        coverage.deleted_topics,
        coverage.probes
    );
    println!(
        "retention: {} segments released, {} still there after a crash, {} times one was due and kept, {} rewritten; {} pulls told of a later beginning",
        coverage.released, coverage.interrupted, coverage.kept, coverage.rewritten, coverage.moved
    );
    let IndexHarm { injected, reported, undone, unread } = coverage.index_harm;
    println!(
        "indexes: {injected} harmed, {reported} reported and written anew, {undone} gone or written again by the way, {unread} never read where they are wrong"
    );
    println!(
        "later: {} delayed messages, {} retries and dead letters; {} messages popped, {} in order; {} look-ups",
        coverage.delayed, coverage.sent_back, coverage.popped, coverage.popped_in_order, coverage.look_ups
    );
    let count = |anomaly| anomalies.get(&anomaly).copied().unwrap_or(0);
    println!(
        "found: {} lost, {} doubled, {} out of order, {} phantom, {} with wrong bytes, {} corruptions not reported, {} anomalies in all",
        count(Anomaly::LostWrite),
        count(Anomaly::Duplicate),
        count(Anomaly::Disorder),
        count(Anomaly::Phantom),
        count(Anomaly::WrongBytes),
        count(Anomaly::Unreported),
        anomalies.values().sum::<u64>()
    );
}

/// A panic of the broker is a finding like any other, but the end of the run.
fn run_loudly(seed: u64, options: &Options, replay: &str) -> Outcome {
    let replay = replay.to_owned();
    std::panic::set_hook(Box::new(move |panic| {
        println!("seed {seed}: {panic}");
        println!("seed {seed}: run it again with: {replay}");
        std::process::exit(1);
    }));
    run(seed, options)
}
