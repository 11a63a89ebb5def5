//! The simulator as a test: sound brokers pass, planted mistakes do not, and a seed is a history.

use ringmq_sim::checker::Anomaly;
use ringmq_sim::{Coverage, Options, Outcome, Planted, run};

fn options() -> Options {
    Options { steps: 1_000, ..Options::default() }
}

/// Runs a seed that must pass.
fn pass(seed: u64, options: &Options) -> Outcome {
    let outcome = run(seed, options);
    let violations: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
    assert!(
        violations.is_empty(),
        "{}\nrun it again with: cargo run --release -p ringmq-sim -- --seed {seed} --steps {} --verbose",
        violations.join("\n"),
        options.steps
    );
    outcome
}

/// Faults that happen in so many worlds that each must have happened in these.
const FAULTS: [&str; 16] = [
    "EIO while the log is recovered",
    "bit flipped on the medium",
    "clock jump",
    "connection reset",
    "disk full",
    "disk slow",
    "network cut",
    "page overwritten on the medium",
    "read EIO",
    "read misdirected, once",
    "read short",
    "read with a wrong bit",
    "reads of a page misdirected, for good",
    "write lost though reported complete",
    "write misdirected",
    "write slow",
];

#[test]
fn sound_brokers_pass_and_the_worlds_are_eventful() {
    let mut all = Coverage::default();
    let (mut acknowledged, mut seen) = (0, 0);
    // Long enough that logs grow while the disk is full.
    let options = Options { steps: 2_500, ..Options::default() };
    for seed in 1..=30 {
        let outcome = pass(seed, &options);
        acknowledged += outcome.acknowledged;
        seen += outcome.seen;
        all.add(&outcome.coverage);
    }
    assert!(acknowledged > 5_000 && seen > 5_000, "{acknowledged} acknowledged, {seen} seen");
    // What never happens is not tested.
    let happened = [
        ("crashes", all.crashes),
        ("stops", all.stops),
        ("faults", all.faults.values().sum()),
        ("roll-overs", all.segments.saturating_sub(30)),
        ("reads from disk", all.disk_reads),
        ("busy answers", all.busy),
        ("answers for lack of space", all.no_space),
        ("failed logs", all.failed_logs),
        ("pulls that waited", all.long_polls),
        ("tails cut by recovery", all.cut_tails),
        ("deleted topics", all.deleted_topics),
        ("lives in async mode", all.async_lives),
        ("messages lost from the end in async mode", all.lost_at_end),
        ("blocks made wrong", all.corruption.injected),
        ("reads gone wrong", all.stutters),
        ("sends after all faults", all.probes),
        ("segments released", all.released),
        ("look-ups", all.look_ups),
        ("delayed messages", all.delayed),
        ("messages sent back", all.sent_back),
        ("messages popped", all.popped),
        ("messages popped in order", all.popped_in_order),
        ("harmed indexes that were reported", all.index_harm.reported),
        ("segments made of spares", all.recycled),
        ("segments rewritten", all.rewritten),
        ("segments that were due and kept", all.kept),
        ("releases cut short by a crash", all.interrupted),
        ("pulls told of a later beginning", all.moved),
    ];
    for (what, count) in happened {
        assert!(count > 0, "no {what}: {all:#?}");
    }
    for fault in FAULTS {
        assert!(all.faults.contains_key(fault), "no {fault}: {all:#?}");
    }
    assert_eq!(all.corruption.injected, all.corruption.reported + all.corruption.unknown);
}

/// Seeds that found mistakes once, in worlds that seeds made then, at the number of steps at which they did.
#[test]
fn mistakes_found_before_are_gone() {
    // Three times a batch at the limit of what may wait for the disk, refused after its room was promised; then two
    // topics and an offset that nobody answered after a failed write. Then a read that was forgotten while its file could not be opened,
    // damaged newest indexes that a start wrote again without a word, and look-ups by time that took unsealed messages for old ones;
    // last, the simulator took for a mistake that a group without an offset is refused while an index is damaged.
    let found = [(51, 1_500), (60, 1_500), (62, 1_500), (29, 1_500), (41, 1_500), (14, 1_500)];
    let later = [(84, 3_000), (32, 3_000), (143, 3_000), (21, 3_000), (25, 3_000), (217, 3_000)];
    for (seed, steps) in found.into_iter().chain(later) {
        pass(seed, &Options { steps, ..Options::default() });
    }
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..5 {
        let (first, second) = (run(seed, &options()), run(seed, &options()));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.acknowledged, second.acknowledged);
    }
    assert_ne!(run(0, &options()).trace, run(1, &options()).trace);
}

/// Whether the checker finds a planted mistake within 100 seeds, as one of these anomalies.
fn finds(planted: Planted, expected: &[Anomaly]) {
    finds_from(0, options(), planted, expected);
}

fn finds_from(first: u64, options: Options, planted: Planted, expected: &[Anomaly]) {
    let options = Options { planted: Some(planted), ..options };
    let mut found = Vec::new();
    for seed in first..first + 100 {
        let outcome = run(seed, &options);
        found.extend(outcome.violations.iter().map(|violation| violation.anomaly));
        if found.iter().any(|anomaly| expected.contains(anomaly)) {
            return;
        }
    }
    panic!("{planted:?} was not found as one of {expected:?}, but as {found:?}");
}

#[test]
fn a_disk_that_lies_is_found() {
    finds(Planted::LyingDisk, &[Anomaly::LostWrite, Anomaly::Phantom]);
}

#[test]
fn a_write_reported_too_early_is_found() {
    finds(Planted::EarlyCompletion, &[Anomaly::LostWrite, Anomaly::Phantom]);
}

#[test]
fn a_failed_write_taken_for_a_success_is_found() {
    finds(Planted::HiddenWriteError, &[Anomaly::LostWrite, Anomaly::Phantom]);
}

#[test]
fn a_segment_that_is_not_made_durable_is_found() {
    finds(Planted::UnsyncedSegment, &[Anomaly::LostWrite, Anomaly::Phantom]);
}

#[test]
fn a_reply_that_is_not_sent_is_found() {
    finds(Planted::LostReply, &[Anomaly::Unanswered]);
}

#[test]
fn a_reply_that_is_sent_twice_is_found() {
    finds(Planted::DoubledReply, &[Anomaly::AnsweredTwice]);
}

#[test]
fn a_wrong_bit_in_a_reply_is_found() {
    finds(Planted::WrongBit, &[Anomaly::WrongBytes]);
}

#[test]
fn acknowledging_too_early_without_saying_so_is_found() {
    finds(Planted::AsyncAsSync, &[Anomaly::LostWrite]);
}

#[test]
fn reads_that_are_not_verified_are_found() {
    finds(Planted::UnverifiedReads, &[Anomaly::WrongBytes]);
}

#[test]
fn damage_that_is_kept_secret_is_found() {
    finds(Planted::SilentDamage, &[Anomaly::Unreported]);
}

#[test]
fn a_release_of_what_the_next_start_needs_is_found() {
    finds(Planted::HastyRelease, &[Anomaly::RegressedOffset, Anomaly::FalseAlarm]);
}

#[test]
fn a_release_of_what_an_online_group_has_still_to_consume_is_found() {
    finds(Planted::IgnoredGroups, &[Anomaly::Robbed]);
}

#[test]
fn a_rewriting_that_leaves_out_what_nobody_gave_up_is_found() {
    finds(Planted::GreedyRewrite, &[Anomaly::LostWrite, Anomaly::Phantom, Anomaly::Skipped]);
}

#[test]
fn a_rewritten_segment_that_is_not_durable_is_found() {
    finds(Planted::UnsyncedRewrite, &[Anomaly::LostWrite, Anomaly::FalseAlarm, Anomaly::Phantom]);
}

#[test]
fn a_rewriting_of_what_is_still_there_for_clients_is_found() {
    // The clock has to be put back, and then somebody has to ask: that takes longer worlds than the others, and some of them.
    let options = Options { steps: 4_000, ..options() };
    finds_from(30, options, Planted::HastyRewrite, &[Anomaly::Resurrected]);
}

#[test]
fn an_acknowledgement_that_does_nothing_is_found() {
    finds(Planted::IdleAcks, &[Anomaly::Duplicate]);
}
