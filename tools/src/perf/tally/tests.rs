use super::*;

const MS: Duration = Duration::from_millis(1);

fn latencies(notes: &[(u32, u32)]) -> Latencies {
    let mut latencies = Latencies::new(true);
    for (at_ms, latency_ms) in notes {
        latencies.record(MS * *latency_ms, 1, MS * *at_ms);
    }
    latencies
}

/// Begin and maximum of each interval, in ms.
fn points(latencies: &Latencies) -> Vec<(u128, u64)> {
    let points = latencies.series.as_ref().unwrap().points();
    points.map(|point| (point.begin.as_millis(), (point.max as f64 / 1e6).round() as u64)).collect()
}

#[test]
fn intervals_have_what_ended_in_them() {
    let latencies = latencies(&[(0, 5), (99, 7), (100, 3), (450, 9), (460, 2)]);
    assert_eq!(points(&latencies), [(0, 7), (100, 3), (400, 9)]);
    assert_eq!(latencies.all.len(), 5);
}

#[test]
fn a_long_run_has_longer_intervals_not_more_of_them() {
    let mut latencies = Latencies::new(true);
    for second in 0..600 {
        latencies.record(MS * (second + 1), 1, MS * (second * 1000));
    }
    let series = latencies.series.as_ref().unwrap();
    assert_eq!(series.interval(), MS * 3200);
    let points: Vec<_> = series.points().collect();
    assert!(points.len() <= INTERVALS_MAX);
    // Of the seconds 0 to 3 the last is the longest; nothing is lost.
    assert_eq!((points[0].begin, points[0].max / 1_000_000), (Duration::ZERO, 4));
    assert_eq!(series.histograms.iter().map(Histogram::len).sum::<u64>(), 600);
}

#[test]
fn threads_are_added_interval_by_interval_whatever_their_lengths() {
    let mut short = latencies(&[(0, 1), (150, 2), (350, 9)]);
    let mut long = Latencies::new(true);
    long.record(MS * 8, 3, MS * 250);
    long.record(MS * 4, 1, MS * 40_000);
    assert_eq!(long.series.as_ref().unwrap().interval(), MS * 200);
    let expected = [(0, 2), (200, 9), (40_000, 4)];
    let mut sum = long.clone();
    sum.add(&short);
    assert_eq!(points(&sum), expected);
    short.add(&long);
    assert_eq!(points(&short), expected);
    assert_eq!((short.all.len(), sum.all.len()), (7, 7));
}

#[test]
fn many_at_once_count_as_many() {
    let mut latencies = Latencies::new(false);
    latencies.record(MS, 99, Duration::ZERO);
    latencies.record(MS * 100, 1, Duration::ZERO);
    assert_eq!((latencies.all.len(), latencies.series.is_none()), (100, true));
    assert!(latencies.all.value_at_quantile(0.99) < 2_000_000);
    assert!(latencies.all.max() >= 100_000_000);
}
