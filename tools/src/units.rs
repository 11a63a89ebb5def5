//! Durations, points in time and counts of bytes, as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND_MS: i64 = 1000;
const DAY_MS: i64 = 86_400 * SECOND_MS;

/// Reads `500ms`, `10s`, `5m`, `2h` or `3d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("{text:?} is no duration; write it like 500ms, 10s, 5m, 2h or 3d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(problem)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| problem())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(problem()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(problem)
}

/// Reads a point in time: `2026-11-22T14:00:00Z` (also with a fraction, an offset like `+02:00`, a space for the T,
/// or only the date; UTC unless said), milliseconds since 1970, or how long ago, like `10m`.
/// Returns milliseconds since 1970.
pub fn parse_time(text: &str, now_ms: i64) -> Result<i64, String> {
    if text.len() > 8 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("{text} is too far away"));
    }
    if let Ok(ago) = parse_duration(text) {
        return Ok(now_ms - i64::try_from(ago.as_millis()).unwrap_or(i64::MAX));
    }
    parse_date(text).ok_or_else(|| {
        format!("{text:?} is no time; write it like 2026-11-22T14:00:00Z, as milliseconds since 1970, or how long ago, like 10m")
    })
}

fn parse_date(text: &str) -> Option<i64> {
    let text = text.trim();
    let (date, time) = match text.split_at_checked(10)? {
        (date, "") => (date, "00:00:00Z"),
        (date, time) => (date, time.strip_prefix(['T', 't', ' '])?),
    };
    let (year, month, day) = three(date, '-')?;
    let (time, offset_ms) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => match time.rfind(['+', '-']) {
            Some(at) => {
                let (hours, minutes) = time[at + 1..].split_once(':')?;
                let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
                let sign = if time[at..].starts_with('-') { -1 } else { 1 };
                (&time[..at], sign * minutes * 60 * SECOND_MS)
            }
            None => (time, 0),
        },
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let with_seconds = if time.matches(':').count() == 1 { format!("{time}:00") } else { time.to_string() };
    let (hour, minute, second) = three(&with_seconds, ':')?;
    let fraction_ms = format!("{fraction:0<3}").get(..3)?.parse::<i64>().ok()?;
    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second)
        && (1..=9999).contains(&year);
    let seconds = (hour * 60 + minute) * 60 + second;
    in_range
        .then(|| days_since_1970(year, month, day) * DAY_MS + seconds * SECOND_MS + fraction_ms - offset_ms)
}

fn three(text: &str, separator: char) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(separator).map(|part| match part.bytes().all(|byte| byte.is_ascii_digit()) {
        true => part.parse().ok(),
        false => None,
    });
    let three = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(three)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    days_since_1970(next.0, next.1, 1) - days_since_1970(year, month, 1)
}

/// Counts in years that begin in March, so that the leap day is the last of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months_since_march = (month + 9) % 12;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * months_since_march + 2) / 5 + day - 1 - 719_468
}

/// `2026-11-22T14:00:00.123Z`
pub fn format_time(time_ms: i64) -> String {
    let days = time_ms.div_euclid(DAY_MS);
    let in_day_ms = time_ms.rem_euclid(DAY_MS);
    // Never above the year looked for.
    let mut year = 1970 + days.div_euclid(if days < 0 { 365 } else { 366 });
    while days_since_1970(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days_since_1970(year, month + 1, 1) <= days {
        month += 1;
    }
    let day = days - days_since_1970(year, month, 1) + 1;
    let (seconds, ms) = (in_day_ms / SECOND_MS, in_day_ms % SECOND_MS);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// `45.6 MB`; powers of 1000.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1.2 s`
pub fn format_duration(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds => format!("{:.0} min {:.0} s", (seconds / 60.0).floor(), (seconds % 60.0).floor()),
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
