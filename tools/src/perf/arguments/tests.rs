use super::*;

fn parse(line: &str) -> Result<Arguments, String> {
    Arguments::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())
}

fn command(line: &str) -> Command {
    parse(line).unwrap().command
}

fn produce(line: &str) -> ProduceArguments {
    match parse(line).map(|arguments| arguments.command) {
        Ok(Command::Produce(produce)) => produce,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
}

#[test]
fn only_the_topic_is_needed() {
    let produce = produce("ringmq-perf produce --topic t");
    assert_eq!((produce.messages.size, produce.messages.batch, produce.in_flight), (1024, 1, 1));
    assert_eq!(produce.common.codec(), Codec::RocketMq);
    let command = Command::Produce(produce);
    assert_eq!(command.measured(), Some(Duration::from_secs(10)));
    assert_eq!(command.warmup(), Duration::from_secs(2));
    assert!(parse("ringmq-perf produce").unwrap_err().contains("--topic"));
}

#[test]
fn a_count_replaces_the_time() {
    let counted = command("ringmq-perf produce --topic t --count 5 --warmup 0s --codec json");
    assert_eq!((counted.common().count, counted.measured()), (Some(5), None));
    assert_eq!((counted.warmup(), counted.common().codec()), (Duration::ZERO, Codec::Json));
    assert!(parse("ringmq-perf produce --topic t --count 5 --seconds 1").is_err());
    assert!(parse("ringmq-perf produce --topic t --count 0").is_err());
}

#[test]
fn a_backlog_is_read_to_its_end_unless_told_otherwise() {
    let measured = |options: &str| {
        let command = command(&format!("ringmq-perf consume --topic t {options}"));
        (command.warmup(), command.measured())
    };
    let (two, ten) = (Duration::from_secs(2), Some(Duration::from_secs(10)));
    assert_eq!(measured(""), (Duration::ZERO, None));
    assert_eq!(measured("--repeat"), (two, ten));
    assert_eq!(measured("--from last"), (two, ten));
    assert_eq!(measured("--seconds 5"), (two, Some(Duration::from_secs(5))));
    assert_eq!(measured("--count 5"), (two, None));
    assert!(command("ringmq-perf consume --topic t --from last --repeat").validate().is_err());
}

#[test]
fn latency_needs_a_rate() {
    assert!(parse("ringmq-perf latency --topic t").unwrap_err().contains("--rate"));
    assert!(parse("ringmq-perf latency --topic t --rate 0").is_err());
    assert!(
        matches!(command("ringmq-perf latency --topic t --rate 5"), Command::Latency(it) if it.rate == 5)
    );
}

#[test]
fn several_brokers_are_watched() {
    let watched = produce("ringmq-perf produce --topic t --broker-pid 3 --broker-pid 4");
    assert_eq!(watched.common.broker_pid, [3, 4]);
}

#[test]
fn name_servers_are_separated_by_semicolons() {
    let common = produce("ringmq-perf produce --topic t --namesrv a:1;b:2;").common;
    assert_eq!(common.name_servers(), ["a:1", "b:2"]);
}

#[test]
fn illegal_topics_are_named() {
    assert!(command("ringmq-perf produce --topic a/b").validate().is_err());
    assert!(command("ringmq-perf produce --topic a_b").validate().is_ok());
}

#[test]
fn sizes_take_units() {
    let sizes =
        [("1", 1), ("128B", 128), ("1KiB", 1024), ("2MiB", 2 << 20), ("3kB", 3000), ("1MB", 1_000_000)];
    for (text, bytes) in sizes {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in ["", "KiB", "-1", "1.5KiB", "1 KiB", "1GiB", "17MiB", "9999MiB", "0", "99999999999"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn seconds_take_fractions_and_units() {
    for (text, ms) in [("10", 10_000), ("0.5", 500), ("30s", 30_000), ("2m", 120_000), ("250ms", 250)] {
        assert_eq!(parse_seconds(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    for text in ["0", "-1", "NaN", "inf", "1e99", "5y", "400d", ""] {
        assert!(parse_seconds(text).is_err(), "{text}");
    }
}

#[test]
fn backlogs_are_larger_than_messages() {
    let sizes = [("10GiB", 10 << 30), ("2TB", 2_000_000_000_000), ("1TiB", 1 << 40), ("5", 5)];
    for (text, bytes) in sizes {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for text in ["", "GiB", "1.5GiB", "99999999999TiB", "1PiB"] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
}

#[test]
fn a_backlog_is_read_beside_a_rate_or_a_share() {
    let parsed = |options: &str| parse(&format!("ringmq-perf backlog --topic t {options}"));
    assert!(parsed("").is_ok() && parsed("--rate 100").is_ok() && parsed("--share 0.7").is_ok());
    assert!(parsed("--rate 100 --share 0.5").is_err());
    for share in ["0", "1.1", "-1", "NaN", "half"] {
        assert!(parsed(&format!("--share={share}")).unwrap_err().contains("write it like 0.5"), "{share}");
    }
    let counted = parsed("--count 5").unwrap().command.validate();
    assert!(counted.is_err_and(|problem| problem.starts_with("--count")));
}

#[test]
fn deliveries_are_timed_in_bodies_that_have_room_for_it() {
    let valid = |line: &str| command(&format!("ringmq-perf {line}")).validate();
    assert!(valid("mixed --topic t --size 16").is_ok() && valid("fanout --topic t --groups 3").is_ok());
    for line in ["mixed --topic t --size 15", "fanout --topic t --groups 3 --size 1"] {
        assert!(valid(line).is_err_and(|problem| problem.starts_with("--size")), "{line}");
    }
    assert!(parse("ringmq-perf fanout --topic t").unwrap_err().contains("--groups"));
}

#[test]
fn as_many_are_in_flight_as_the_load_needs() {
    let in_flight = |options: &str| match command(&format!("ringmq-perf mixed --topic t {options}")) {
        Command::Mixed(mixed) => mixed.tail.in_flight(),
        other => panic!("{other:?}"),
    };
    assert_eq!([in_flight(""), in_flight("--rate 9"), in_flight("--rate 9 --in-flight 5")], [1, 1024, 5]);
}
