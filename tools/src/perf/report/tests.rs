use std::time::Duration;

use clap::Parser;

use super::*;
use crate::perf::Arguments;
use crate::perf::tally::Measured;

#[test]
fn quantiles_come_from_one_histogram_in_microseconds() {
    let mut histogram = Histogram::new_with_bounds(1, 100_000_000_000, 3).unwrap();
    assert_eq!(Percentiles::new(&histogram), None);
    for microseconds in 1..=10_000 {
        histogram.record(microseconds * 1000).unwrap();
    }
    let summary = Percentiles::new(&histogram).unwrap();
    // Three digits are kept.
    let close = |value: f64, expected: f64| (value - expected).abs() <= expected / 1000.0;
    assert!(close(summary.p50, 5000.0), "{summary}");
    assert!(close(summary.p90, 9000.0), "{summary}");
    assert!(close(summary.p99, 9900.0), "{summary}");
    assert!(close(summary.p99_9, 9990.0), "{summary}");
    assert!(close(summary.p99_99, 9999.0), "{summary}");
    assert!(close(summary.max, 10_000.0), "{summary}");
}

#[test]
fn json_has_the_names_that_people_use() {
    let mut histogram = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
    histogram.record(1000).unwrap();
    let json = serde_json::to_value(Percentiles::new(&histogram)).unwrap();
    let names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["max", "p50", "p90", "p99", "p99.9", "p99.99"]);
}

#[test]
fn cpu_is_for_each_message_and_unknown_without_messages() {
    let used = Used { pid: 7, user_us: 300, system_us: 100, peak_rss_bytes: 5_000_000, threads: Vec::new() };
    let summary = ProcessSummary::new(&used, 200);
    assert_eq!(summary.cpu_us_per_message, Some(2.0));
    assert_eq!(
        summary.to_string(),
        "2.000 µs CPU per message (1.500 user, 0.500 system), peak memory 5.0 MB"
    );
    assert_eq!(ProcessSummary::new(&used, 0).cpu_us_per_message, None);
}

fn part(name: &'static str, latencies_ms: &[u64], deliveries: u64) -> PartTotals {
    let mut measured = Measured::new(false);
    for ms in latencies_ms {
        measured.messages += 2;
        measured.requests += 1;
        measured.latency.record(Duration::from_millis(*ms), 1, Duration::ZERO);
    }
    for _ in 0..deliveries {
        measured.delivery.record(Duration::from_millis(7), 1, Duration::ZERO);
    }
    PartTotals { name, connections: 3, available: None, elapsed: Duration::from_secs(2), measured }
}

fn report(parts: Vec<PartTotals>) -> Report {
    let arguments = Arguments::try_parse_from(["ringmq-perf", "produce", "--topic", "t"]).unwrap();
    let totals = Totals {
        parts,
        errors: BTreeMap::from([("2 SYSTEM_BUSY".to_string(), 4)]),
        words: BTreeMap::from([("2 SYSTEM_BUSY".to_string(), "too busy".to_string())]),
        messages_watched: 0,
        brokers: Vec::new(),
        generator: None,
    };
    Report::new("mode", arguments.command.common(), &totals)
}

#[test]
fn the_main_part_stands_at_the_top_and_others_under_their_names() {
    let report = report(vec![part("produce", &[10, 10, 10], 0), part("consume", &[20], 5)]);
    assert!(!report.is_clean() && !report.is_empty());
    let json = serde_json::to_value(&report).unwrap();
    let read = &json["other_parts"]["consume"];
    assert_eq!(
        (&json["mode"], &json["part"], &read["part"]),
        (&"mode".into(), &"produce".into(), &"consume".into())
    );
    assert_eq!((&json["messages"], &read["messages"]), (&6.into(), &2.into()));
    assert_eq!((&json["messages_per_second"], &read["messages_per_second"]), (&3.0.into(), &1.0.into()));
    assert_eq!((json.get("delivered"), &read["delivered"]), (None, &5.into()));
    assert!(read["delivery_us"]["p99.99"].is_f64() && json.get("beside_to_alone").is_none());
    let text = report.to_string();
    let starts: Vec<_> = text.lines().map(|line| line.get(..12).unwrap_or_default().trim_end()).collect();
    assert_eq!(
        starts,
        ["produce", "  requests", "  latency", "consume", "  requests", "  latency", "  delivery", "errors"]
    );
    assert!(text.ends_with("errors        4 × 2 SYSTEM_BUSY: too busy\n"), "{text}");
}

#[test]
fn a_backlog_is_compared_with_what_was_reached_alone() {
    let report = report(vec![part("produce", &[30], 0), part("consume", &[5], 0), part(ALONE, &[10], 0)]);
    let ratio = report.beside_to_alone.as_ref().unwrap();
    assert!((2.99..3.01).contains(&ratio.p50) && (2.99..3.01).contains(&ratio.max), "{ratio}");
    assert!(report.to_string().contains("\nbeside/alone  p50 3.00  p90 3.00"), "{report}");
}
