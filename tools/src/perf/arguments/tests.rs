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
    match command("ringmq-perf consume --topic t --from last --repeat") {
        Command::Consume(consume) => assert!(consume.validate().is_err()),
        other => panic!("{other:?}"),
    }
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
    let common = produce("ringmq-perf produce --topic a/b").common;
    assert!(common.validate().is_err());
    assert!(produce("ringmq-perf produce --topic a_b").common.validate().is_ok());
}

#[test]
fn sizes_take_units() {
    let sizes =
        [("1", 1), ("128B", 128), ("1KiB", 1024), ("2MiB", 2 << 20), ("3kB", 3000), ("1MB", 1_000_000)];
    for (text, bytes) in sizes {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in ["", "KiB", "-1", "1.5KiB", "1 KiB", "1GiB", "9999MiB", "0", "99999999999"] {
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
