use super::*;

#[test]
fn buckets_follow_each_other_and_are_an_eighth_wide() {
    let mut next = 0;
    for bucket in 0..BUCKETS {
        assert_eq!(bucket_of(next), bucket, "begins with {next}");
        let highest = highest_of(bucket);
        assert_eq!(bucket_of(highest), bucket);
        assert!(highest - next <= next / 8, "{next} to {highest}");
        next = highest + 1;
    }
    assert_eq!(next, 1 << BITS_MAX);
    assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
}

#[test]
fn quantiles_of_a_thousand_values() {
    let histogram = Histogram::default();
    (1..=1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
    let latency = histogram.snapshot();
    assert_eq!((latency.count(), latency.sum()), (1000, Duration::from_micros(500_500)));
    assert_eq!(latency.mean(), Duration::from_nanos(500_500));
    for (part, exact) in [(0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
        let found = latency.quantile(part).as_micros();
        assert!(found >= exact && found <= exact + exact / 8, "{part}: {found}");
    }
    let none = Histogram::default().snapshot();
    assert_eq!((none.mean(), none.quantile(0.5)), (Duration::ZERO, Duration::ZERO));
}

#[tokio::test]
async fn a_status_is_what_came_since_the_first_sample() {
    let stats = ConsumeStats::default();
    stats.handled(5, true, Duration::from_millis(100));
    assert_eq!(stats.status(), ConsumeStatus::default(), "nothing is known before the first sample");
    stats.sample();
    stats.received(3, 30, Duration::from_millis(4));
    stats.received(0, 0, Duration::from_millis(400));
    stats.handled(2, true, Duration::from_millis(6));
    stats.handled(1, false, Duration::from_millis(2));
    stats.sample();
    let status = stats.status();
    assert_eq!((status.consume_rt, status.pull_rt, status.consume_failed_msgs), (4.0, 4.0, 1));
    assert!(status.consume_ok_tps > status.consume_failed_tps && status.pull_tps > 0.0);
}

#[test]
fn counters_are_found_again_and_listed_in_order() {
    let registry = Registry::default();
    for (group, topic) in [("b", "T"), ("a", "U"), ("a", "T"), ("a", "U")] {
        registry.sends(group, topic).sent(2, 10, true, Some(Duration::from_millis(1)));
        registry.sends(group, topic).sent(1, 10, false, None);
    }
    let metrics = registry.snapshot();
    let seen: Vec<_> =
        metrics.sends.iter().map(|m| (&*m.group, &*m.topic, m.sent, m.failed, m.bytes)).collect();
    assert_eq!(seen, [("a", "T", 2, 1, 10), ("a", "U", 4, 2, 20), ("b", "T", 2, 1, 10)]);
    assert_eq!(metrics.sends[1].latency.count(), 2);
    assert!(metrics.consumes.is_empty());
}
