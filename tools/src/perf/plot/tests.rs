use std::time::Duration;

use super::*;
use crate::perf::tally::Measured;

fn measured(latencies_us: impl Iterator<Item = u64>) -> Measured {
    let mut measured = Measured::new(true);
    for (number, us) in (0..).zip(latencies_us) {
        measured.latency.record(Duration::from_micros(us), 1, Duration::from_millis(number));
    }
    measured
}

fn draw(curves: &[(&str, &Measured)]) -> String {
    let curves = curves.iter().map(|(name, it)| Curve { name: name.to_string(), latencies: &it.latency });
    Drawing { title: "a < b & c".to_string(), subtitle: String::new(), curves: curves.collect() }.to_string()
}

/// All numbers of an attribute.
fn numbers(svg: &str, attribute: &str) -> Vec<f64> {
    let start = format!(" {attribute}=\"");
    svg.split(&start).skip(1).map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn everything_lies_within_the_picture() {
    let even = measured((0..5000).map(|number| 100 + number % 50));
    let wild = measured((1..3000).map(|number| if number % 100 == 0 { 90_000_000 } else { number }));
    let one = measured([7].into_iter());
    let zero = measured([0].into_iter());
    for curves in [
        vec![("even", &even)],
        vec![("even", &even), ("wild", &wild)],
        vec![("one", &one)],
        vec![("zero", &zero)],
    ] {
        let svg = draw(&curves);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("<text") && svg.contains("a &lt; b &amp; c"));
        let x = ["x", "x1", "x2", "cx"].iter().flat_map(|name| numbers(&svg, name));
        assert!(x.into_iter().all(|x| (0.0..=WIDTH).contains(&x)), "{svg}");
        let y = ["y", "y1", "y2", "cy"].iter().flat_map(|name| numbers(&svg, name));
        assert!(y.into_iter().all(|y| (0.0..=HEIGHT).contains(&y)), "{svg}");
        assert_eq!(svg.matches("<path").count(), 3 * curves.len());
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }
}

#[test]
fn a_part_without_measurements_is_left_out() {
    let (some, none) = (measured([5, 6].into_iter()), Measured::new(true));
    let svg = draw(&[("some", &some), ("none", &none)]);
    assert!(svg.contains(">some<") && !svg.contains(">none<"));
}

#[test]
fn the_curve_reaches_as_many_nines_as_there_are_messages() {
    let svg = draw(&[("x", &measured((0..10_000).map(|number| number + 1)))]);
    for label in ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"] {
        assert!(svg.contains(&format!(">{label}<")), "{label}");
    }
    assert!(!svg.contains("99.999 %"));
}

#[test]
fn a_pause_is_a_gap() {
    let mut paused = measured([5, 6].into_iter());
    paused.latency.record(Duration::from_micros(7), 1, Duration::from_secs(3));
    let svg = draw(&[("x", &paused)]);
    let first = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!((first.matches('M').count(), first.matches('L').count()), (2, 0));
}

#[test]
fn labels_are_round() {
    assert_eq!([500, 2_000, 50_000_000, 1_000_000_000].map(latency), ["500 ns", "2 µs", "50 ms", "1 s"]);
    assert_eq!(even_ticks(10.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
    assert_eq!(even_ticks(45.0), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0]);
    assert_eq!(even_ticks(0.2).len(), 11);
}
