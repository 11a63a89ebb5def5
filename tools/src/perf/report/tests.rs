use super::*;

#[test]
fn quantiles_come_from_one_histogram_in_microseconds() {
    let mut histogram = Histogram::new_with_bounds(1, 100_000_000_000, 3).unwrap();
    assert_eq!(LatencySummary::new(&histogram), None);
    for microseconds in 1..=10_000 {
        histogram.record(microseconds * 1000).unwrap();
    }
    let summary = LatencySummary::new(&histogram).unwrap();
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
    let json = serde_json::to_value(LatencySummary::new(&histogram)).unwrap();
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
