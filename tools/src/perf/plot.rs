//! The drawing of `--plot`: latency over time, and the percentile curve. An SVG file that needs nothing else and follows
//! the reader's choice of light or dark.

use std::fmt;
use std::ops::Range;

use super::tally::{Latencies, Point, Series};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 760.0;
/// The part of the width that panels have.
const X: Range<f64> = 78.0..876.0;
/// From top to bottom.
const TIME_Y: Range<f64> = 108.0..378.0;
const QUANTILE_Y: Range<f64> = 446.0..716.0;
/// Points of a percentile curve for each factor of ten.
const POINTS_PER_DECADE: u32 = 40;
/// Labels of an axis of latencies; with more, only powers of ten have one.
const LABELS_MAX: usize = 9;

/// Light and dark, for each curve in turn.
const COLORS: [(&str, &str); 4] =
    [("#1d62d1", "#6ea8ff"), ("#c2570c", "#ff9d57"), ("#157f4c", "#54d28c"), ("#8b3fc4", "#c99bf5")];

/// One kind of latency.
pub(super) struct Curve<'a> {
    pub(super) name: String,
    pub(super) latencies: &'a Latencies,
}

/// Displayed, it is the text of an SVG file.
pub(super) struct Drawing<'a> {
    pub(super) title: String,
    pub(super) subtitle: String,
    /// Those in which nothing was measured are left out.
    pub(super) curves: Vec<Curve<'a>>,
}

/// Where numbers lie on a line of the drawing. A logarithmic one takes logarithms.
struct Scale {
    numbers: Range<f64>,
    pixels: Range<f64>,
}

impl Scale {
    fn at(&self, number: f64) -> f64 {
        let part = (number - self.numbers.start) / (self.numbers.end - self.numbers.start);
        self.pixels.start + part * (self.pixels.end - self.pixels.start)
    }
}

impl fmt::Display for Drawing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let curves: Vec<_> = self.curves.iter().filter(|curve| !curve.latencies.all.is_empty()).collect();
        writeln!(
            f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">"
        )?;
        style(f)?;
        writeln!(f, "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>")?;
        let left = X.start;
        let title = escape(&self.title);
        writeln!(
            f,
            "<text class=\"ink\" x=\"{left}\" y=\"30\" font-size=\"17\" font-weight=\"600\">{title}</text>"
        )?;
        writeln!(f, "<text class=\"faint\" x=\"{left}\" y=\"50\">{}</text>", escape(&self.subtitle))?;
        legend(f, &curves)?;
        over_time(f, &curves)?;
        by_quantile(f, &curves)?;
        writeln!(f, "</svg>")
    }
}

fn style(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let theme = |f: &mut fmt::Formatter<'_>, paper, ink, faint, grid, dark| {
        write!(f, ".paper{{fill:{paper}}} .ink{{fill:{ink}}} .faint{{fill:{faint}}} .grid{{stroke:{grid}}}")?;
        for (number, color) in COLORS.iter().enumerate() {
            let color = if dark { color.1 } else { color.0 };
            write!(f, " .line{number}{{stroke:{color}}} .dot{number}{{fill:{color}}}")?;
        }
        Ok(())
    };
    write!(f, "<style>")?;
    theme(f, "#ffffff", "#1c2430", "#5a6675", "#dde3ea", false)?;
    write!(f, "\n@media (prefers-color-scheme: dark) {{ ")?;
    theme(f, "#11161d", "#e8edf3", "#9aa7b6", "#2b3542", true)?;
    writeln!(f, " }}</style>")
}

fn legend(f: &mut fmt::Formatter<'_>, curves: &[&Curve<'_>]) -> fmt::Result {
    let (mut x, y) = (X.start, 76.0);
    for (number, curve) in curves.iter().enumerate() {
        let color = number % COLORS.len();
        writeln!(
            f,
            "<rect class=\"dot{color}\" x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" rx=\"2\"/>",
            y - 10.0
        )?;
        writeln!(f, "<text class=\"ink\" x=\"{}\" y=\"{y}\">{}</text>", x + 18.0, escape(&curve.name))?;
        // About the width of the letters, and a gap.
        x += 44.0 + 6.6 * curve.name.chars().count() as f64;
    }
    Ok(())
}

fn over_time(f: &mut fmt::Formatter<'_>, curves: &[&Curve<'_>]) -> fmt::Result {
    let series: Vec<_> = curves.iter().filter_map(|curve| curve.latencies.series.as_ref()).collect();
    let points: Vec<Vec<Point>> = series.iter().map(|series| series.points().collect()).collect();
    let all = || points.iter().flatten();
    let longest = |(series, points): (&&Series, &Vec<Point>)| {
        points.last().map_or(0.0, |point| (point.begin + series.interval()).as_secs_f64())
    };
    let seconds = series.iter().zip(&points).map(longest).fold(0.1, f64::max);
    let x = Scale { numbers: 0.0..seconds, pixels: X };
    let lowest = all().map(|point| point.p50).min().unwrap_or(1);
    let y = latency_axis(f, TIME_Y, lowest, all().map(|point| point.max).max().unwrap_or(1))?;
    for tick in even_ticks(seconds) {
        vertical(f, x.at(tick), TIME_Y, &format!("{} s", short(tick)))?;
    }
    heading(f, TIME_Y.start, "Latency over time: line p50, dashes p99, dots the maximum of each interval")?;
    for (number, (series, points)) in series.iter().zip(&points).enumerate() {
        let color = number % COLORS.len();
        let middle = |point: &Point| x.at((point.begin + series.interval() / 2).as_secs_f64());
        let marks = [("2", "", (|point| point.p50) as fn(&Point) -> u64), ("1.3", "5 3", |point| point.p99)];
        for (width, dashes, value) in marks {
            write!(f, "<path class=\"line{color}\" fill=\"none\" stroke-width=\"{width}\"")?;
            if !dashes.is_empty() {
                write!(f, " stroke-dasharray=\"{dashes}\"")?;
            }
            write!(f, " d=\"")?;
            let mut before = None;
            for point in points {
                // Where nothing was answered there is no line.
                let follows = before == Some(point.begin);
                let letter = if follows { 'L' } else { 'M' };
                write!(f, "{letter}{:.1} {:.1}", middle(point), y.at(log(value(point))))?;
                before = Some(point.begin + series.interval());
            }
            writeln!(f, "\"/>")?;
        }
        for point in points {
            let (cx, cy) = (middle(point), y.at(log(point.max)));
            writeln!(f, "<circle class=\"dot{color}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"1.7\"/>")?;
        }
    }
    Ok(())
}

fn by_quantile(f: &mut fmt::Formatter<'_>, curves: &[&Curve<'_>]) -> fmt::Result {
    let histograms = || curves.iter().map(|curve| &curve.latencies.all);
    let decades = |count: u64| (count.max(10) as f64).log10();
    let longest = histograms().map(|histogram| decades(histogram.len())).fold(1.0, f64::max);
    let x = Scale { numbers: 0.0..longest, pixels: X };
    let lowest = histograms().map(|histogram| histogram.min()).min().unwrap_or(1);
    let highest = histograms().map(|histogram| histogram.max()).max().unwrap_or(1);
    let y = latency_axis(f, QUANTILE_Y, lowest, highest)?;
    vertical(f, x.at(0.5_f64.recip().log10()), QUANTILE_Y, "50 %")?;
    // Up to what the room ends with: 90 %, 99 %, 99.9 % and so on.
    for nines in 1..=longest as usize {
        let digits = nines.saturating_sub(2);
        let percent = 100.0 - 100.0 * 0.1_f64.powi(nines as i32);
        vertical(f, x.at(nines as f64), QUANTILE_Y, &format!("{percent:.digits$} %"))?;
    }
    heading(f, QUANTILE_Y.start, "Latency by percentile, to the maximum")?;
    for (number, histogram) in histograms().enumerate() {
        let color = number % COLORS.len();
        let end = decades(histogram.len());
        let steps = (end * f64::from(POINTS_PER_DECADE)) as u32;
        let places = (0..=steps).map(|step| f64::from(step) / f64::from(POINTS_PER_DECADE));
        write!(f, "<path class=\"line{color}\" fill=\"none\" stroke-width=\"2\" d=\"")?;
        let quantiles: Vec<f64> = places.clone().map(|place| 1.0 - 10_f64.powf(-place)).collect();
        for (place, value) in places.zip(histogram.value_at_quantiles(quantiles)) {
            let letter = if place == 0.0 { 'M' } else { 'L' };
            write!(f, "{letter}{:.1} {:.1}", x.at(place), y.at(log(value)))?;
        }
        let (cx, cy) = (x.at(end), y.at(log(histogram.max())));
        writeln!(f, "L{cx:.1} {cy:.1}\"/>")?;
        writeln!(f, "<circle class=\"dot{color}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"/>")?;
    }
    Ok(())
}

/// Lines and labels from a round number below the lowest latency to one above the highest; takes and labels ns.
fn latency_axis(
    f: &mut fmt::Formatter<'_>,
    pixels: Range<f64>,
    lowest: u64,
    highest: u64,
) -> Result<Scale, fmt::Error> {
    let steps: Vec<u64> =
        (0..12).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power))).collect();
    let first = steps.iter().rposition(|step| *step <= lowest.max(1)).unwrap_or(0);
    let last =
        steps.iter().position(|step| *step >= highest && *step > steps[first]).unwrap_or(steps.len() - 1);
    let shown = &steps[first..=last];
    let numbers = log(steps[first])..log(steps[last]);
    let scale = Scale { numbers, pixels: pixels.end..pixels.start };
    for step in shown {
        let y = scale.at(log(*step));
        let is_power = step.to_string().starts_with('1');
        if shown.len() > LABELS_MAX && !is_power {
            continue;
        }
        writeln!(
            f,
            "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            X.start, X.end
        )?;
        let (x, y, label) = (X.start - 8.0, y + 4.0, latency(*step));
        writeln!(f, "<text class=\"faint\" x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>")?;
    }
    Ok(scale)
}

/// A line of the grid across a panel, with its label below.
fn vertical(f: &mut fmt::Formatter<'_>, x: f64, panel: Range<f64>, label: &str) -> fmt::Result {
    let (top, bottom, below) = (panel.start, panel.end, panel.end + 18.0);
    writeln!(f, "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>")?;
    writeln!(f, "<text class=\"faint\" x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>")
}

fn heading(f: &mut fmt::Formatter<'_>, top: f64, text: &str) -> fmt::Result {
    writeln!(
        f,
        "<text class=\"ink\" x=\"{}\" y=\"{}\" font-weight=\"600\">{text}</text>",
        X.start,
        top - 10.0
    )
}

/// Round distances, at most ten of them, from 0 to the end.
fn even_ticks(end: f64) -> Vec<f64> {
    let rough = end / 10.0;
    let power = 10_f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    let step = round.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough);
    (0..).map(|number| f64::from(number) * step).take_while(|tick| *tick <= end * 1.001).collect()
}

fn log(ns: u64) -> f64 {
    (ns.max(1) as f64).log10()
}

/// `200 µs`; for round numbers.
fn latency(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", short(ns as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", short(ns as f64 / 1e6)),
        _ => format!("{} s", short(ns as f64 / 1e9)),
    }
}

/// Without the zeros that say nothing.
fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests;
