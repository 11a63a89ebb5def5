//! `ringmq-perf` against a broker: every command counts exactly what it was asked to send and read, says so in JSON, and
//! draws a picture that a browser can read.

use std::fs;
use std::process::{Command, Stdio};

use ringmq_tests::broker::run_to_its_end;
use ringmq_tests::{Broker, TempDir, binaries};
use serde_json::Value;

/// The command, told where the broker's name server is.
fn perf(broker: &Broker, line: &str) -> Command {
    let mut command = Command::new(binaries::binary("ringmq-perf"));
    command.args(line.split_whitespace()).arg("--namesrv").arg(broker.name_server());
    command
}

/// Runs it to its end with `--json` and `--plot`, and gives the summary.
fn measure(broker: &Broker, line: &str) -> Value {
    let temp = TempDir::new("perf");
    let plot = temp.path().join("plot.svg");
    let pid = broker.pid().to_string();
    let mut command = perf(broker, line);
    command.args(["--json", "--broker-pid", &pid, "--plot"]).arg(&plot);
    let output = command.stdin(Stdio::null()).output().expect("ringmq-perf can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}\n{errors}\n{}", output.status, broker.errors());
    let summary: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    check_numbers(&summary);
    assert_eq!(summary["brokers"][0]["pid"], broker.pid());
    assert!(summary["brokers"][0]["peak_rss_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{summary}");
    check_svg(&fs::read_to_string(&plot).expect("the drawing"));
    summary
}

/// Every figure of a part that says how many messages there were.
fn check_numbers(part: &Value) {
    assert!(part["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{part}");
    for name in ["messages_per_second", "mb_per_second", "requests_per_second"] {
        assert!(part[name].as_f64().is_some_and(|rate| rate > 0.0), "{name}: {part}");
    }
    let mut before = 0.0;
    for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        let us = part["latency_us"][name].as_f64().unwrap_or_else(|| panic!("{name}: {part}"));
        assert!(us >= before, "{name}: {part}");
        before = us;
    }
}

fn count(part: &Value, name: &str) -> u64 {
    part[name].as_u64().unwrap_or_else(|| panic!("{name}: {part}"))
}

/// Whether the tags of a text are properly nested, and there is a line for each kind of figure.
fn check_svg(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("an open tag: {svg}"));
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        let name = tag.split_whitespace().next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{svg}"),
            None if tag.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty() && svg.starts_with("<svg "), "{svg}");
    assert!(svg.contains("<path ") && !svg.contains("NaN"), "{svg}");
}

#[test]
fn produce_and_consume_count_exactly() {
    let broker = Broker::start(1);
    let sent = measure(&broker, "produce --topic Perf --size 100 --count 5000 --warmup 0s --in-flight 8");
    assert_eq!((count(&sent, "messages"), count(&sent, "requests")), (5000, 5000));
    let batches =
        "produce --topic Perf --size 100 --batch 50 --count 5000 --warmup 0s --connections 3 --threads 2";
    let sent = measure(&broker, batches);
    assert_eq!((count(&sent, "messages"), count(&sent, "requests")), (5000, 100));
    let read = measure(&broker, "consume --topic Perf --verify --connections 2 --codec json");
    assert_eq!(count(&read, "messages"), 10_000);
    let read = measure(&broker, "consume --topic Perf --consumers 3");
    assert_eq!(count(&read, "messages"), 30_000);
}

#[test]
fn topics_are_created_and_get_equally_many_messages() {
    let broker = Broker::start(1);
    let line = "topics --topic Many --topics 300 --queues 2 --size 50 --count 1200 --warmup 0s --in-flight 5";
    assert_eq!(count(&measure(&broker, line), "messages"), 1200);
    let topics = broker.run_cli(&["topic", "list"]);
    assert_eq!(topics.lines().filter(|line| line.contains("Many-")).count(), 300, "{topics}");
    for number in [0, 1, 150, 299] {
        let read = measure(&broker, &format!("consume --topic Many-{number}"));
        assert_eq!(count(&read, "messages"), 4);
    }
    // They are there now, and shared by the connections.
    let again = measure(&broker, &format!("{line} --connections 4 --batch 10"));
    assert_eq!(count(&again, "messages"), 1200);
}

#[test]
fn latency_sends_all_that_was_due() {
    let broker = Broker::start(1);
    let sent = measure(&broker, "latency --topic Perf --rate 500 --seconds 1 --warmup 100ms");
    assert_eq!(count(&sent, "messages"), 500);
}

#[test]
fn mixed_reads_each_message_once() {
    let broker = Broker::start(2);
    let line =
        "mixed --topic Perf --size 64 --count 3000 --warmup 0s --connections 2 --in-flight 4 --readers 2";
    // The second time there are older messages, which are not read.
    for batch in [1, 10] {
        let sent = measure(&broker, &format!("{line} --batch {batch}"));
        let read = &sent["other_parts"]["consume"];
        check_numbers(read);
        assert_eq!((sent["part"].as_str(), count(&sent, "messages")), (Some("produce"), 3000));
        assert_eq!((count(read, "messages"), count(read, "delivered")), (3000, 3000));
        assert!(read["delivery_us"]["p99.99"].as_f64().is_some_and(|us| us > 0.0), "{read}");
    }
}

#[test]
fn mixed_at_a_rate_delivers_all_that_was_due() {
    let broker = Broker::start(1);
    let sent = measure(&broker, "mixed --topic Perf --size 64 --rate 400 --seconds 1 --warmup 200ms");
    assert_eq!((count(&sent, "messages"), count(&sent["other_parts"]["consume"], "delivered")), (400, 400));
}

#[test]
fn fanout_delivers_every_message_to_every_group() {
    let broker = Broker::start(1);
    let line = "fanout --topic Perf --size 32 --groups 7 --count 500 --warmup 0s --in-flight 3 --queues 2 --codec json";
    let sent = measure(&broker, line);
    let read = &sent["other_parts"]["consume"];
    assert_eq!((count(&sent, "messages"), count(read, "connections")), (500, 7));
    assert_eq!((count(read, "messages"), count(read, "delivered")), (3500, 3500));
}

#[test]
fn backlog_is_written_and_read_to_its_end_beside_producers() {
    let broker = Broker::start(1);
    // Read three at a time: long enough for some sends beside.
    let beside = measure(&broker, "backlog --topic Perf --size 1000 --backlog 5MB --rate 200 --pull-batch 3");
    let parts = &beside["other_parts"];
    assert_eq!(count(&parts["alone"], "messages"), 2000);
    let (filled, read) = (count(&parts["fill"], "messages"), &parts["consume"]);
    assert!(filled >= 5000, "{parts}");
    // The warm-up of 2 s has sent some, too.
    assert_eq!((count(read, "messages"), count(read, "available")), (filled + 2400, filled + 2400));
    for part in ["fill", "alone", "consume"] {
        check_numbers(&parts[part]);
    }
    for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        assert!(beside["beside_to_alone"][name].as_f64().is_some_and(|ratio| ratio > 0.0), "{beside}");
    }
}

#[test]
fn backlog_reads_what_the_topic_has_at_a_share_of_the_limit() {
    let broker = Broker::start(1);
    measure(&broker, "produce --topic Perf --size 100 --batch 100 --count 30000 --warmup 0s");
    let line =
        "backlog --topic Perf --size 100 --share 0.3 --seconds 1 --warmup 100ms --pull-batch 1 --readers 2";
    let beside = measure(&broker, line);
    let parts = &beside["other_parts"];
    let limit = parts["limit"]["messages_per_second"].as_f64().expect("a rate");
    let alone = parts["alone"]["messages_per_second"].as_f64().expect("a rate");
    // Open loop: what was due in a second was sent, whatever the machine had to do besides.
    assert!((alone - limit * 0.3).abs() <= 2.0, "{alone} of {limit}");
    // 30,000 and those of the measurements before.
    assert!(count(&parts["consume"], "available") > 30_000, "{parts}");
}

#[test]
fn a_drawing_that_cannot_be_written_is_refused_before_the_load() {
    let broker = Broker::start(1);
    let output = run_to_its_end(perf(&broker, "produce --topic Perf --plot /nowhere/plot.svg"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.lines().count() == 1, "{errors}");
    assert!(errors.contains("--plot /nowhere/plot.svg: cannot be written"), "{errors}");
    assert!(broker.run_cli(&["topic", "list"]).lines().all(|line| !line.contains("Perf")));
}

#[test]
fn what_cannot_be_measured_is_said_in_one_line() {
    let broker = Broker::start(1);
    for (line, reason) in [
        ("backlog --topic Nothing", "there is no topic Nothing; --backlog 1GiB makes and fills it"),
        ("consume --topic Nothing", "there is no topic Nothing"),
        ("mixed --topic T --size 15", "--size: bodies say when they were sent, which takes 16 bytes"),
        ("mixed --topic T --queues 2 --readers 3", "too few for 3 of the connections"),
        ("backlog --topic T --count 5", "--count: backlog is measured in time, with --seconds"),
        ("topics --topic a/b --topics 3", "a/b"),
    ] {
        let output = run_to_its_end(perf(&broker, line));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.lines().count() == 1, "{line}: {errors}");
        assert!(errors.contains(reason), "{line}: {errors}");
    }
}
