use super::*;

#[test]
fn durations() {
    assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
    assert_eq!(parse_duration("3d"), Ok(Duration::from_secs(259_200)));
    for wrong in ["", "10", "s", "-1s", "1.5s", "10 s", "99999999999999999999s", "18446744073709551615d"] {
        assert!(parse_duration(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn times() {
    let now = 1_763_820_000_000;
    let at = |text: &str| parse_time(text, now);
    assert_eq!(at("1970-01-01"), Ok(0));
    assert_eq!(at("2000-02-29T12:34:56.789Z"), Ok(951_827_696_789));
    assert_eq!(at("2000-02-29 14:34:56.789+02:00"), Ok(951_827_696_789));
    assert_eq!(at("2000-02-29T12:34"), Ok(951_827_640_000));
    assert_eq!(at("1969-12-31T23:59:59.9-00:30"), Ok(1_799_900));
    assert_eq!(at("1763820000123"), Ok(1_763_820_000_123));
    assert_eq!(at("10m"), Ok(now - 600_000));
    for wrong in [
        "",
        "yesterday",
        "2001-02-29",
        "2026-13-01",
        "2026-1-1",
        "2026-11-22T25:00:00Z",
        "2026-11-22x",
        "é026-11-22",
    ] {
        assert!(at(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn times_read_what_they_print() {
    for ms in [0, -1, 951_827_696_789, 1_763_820_000_123, 4_102_444_799_999, -62_135_596_800_000] {
        assert_eq!(parse_time(&format_time(ms), 0), Ok(ms), "{}", format_time(ms));
    }
    // Every day of 800 years, over all kinds of leap years.
    for day in -100_000..192_000i64 {
        let ms = day * 86_400_000;
        assert_eq!(parse_date(&format_time(ms)), Some(ms));
    }
    assert_eq!(format_time(951_827_696_789), "2000-02-29T12:34:56.789Z");
}

#[test]
fn sizes_and_spans() {
    assert_eq!(format_bytes(999), "999 B");
    assert_eq!(format_bytes(45_600_000), "45.6 MB");
    assert_eq!(format_bytes(999_999), "1.0 MB");
    assert_eq!(format_duration(Duration::from_millis(1234)), "1.2 s");
    assert_eq!(format_duration(Duration::from_millis(12)), "12 ms");
    assert_eq!(format_duration(Duration::from_secs(125)), "2 min 5 s");
}
