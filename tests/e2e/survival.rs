//! What a stop and a kill -9 leave: messages, topics and how far groups are.

use std::collections::BTreeSet;

use ringmq_tests::Broker;
use serde_json::Value;

const TOPIC: &str = "Survivors";

fn send(broker: &Broker, numbers: std::ops::Range<u32>) {
    for number in numbers {
        broker.run_cli(&["send", TOPIC, &format!("message {number}")]);
    }
}

/// What the group gets now, as a set; nothing may come twice.
fn consume(broker: &Broker, more: &[&str]) -> BTreeSet<String> {
    let mut arguments = vec!["consume", TOPIC, "--group", "heirs", "--raw"];
    arguments.extend(more);
    let printed = broker.run_cli(&arguments);
    let set: BTreeSet<String> = printed.lines().map(str::to_owned).collect();
    assert_eq!(set.len(), printed.lines().count(), "something came twice:\n{printed}");
    set
}

fn wanted(numbers: std::ops::Range<u32>) -> BTreeSet<String> {
    numbers.map(|number| format!("message {number}")).collect()
}

/// Broker, queue number and end of each queue.
fn queues(broker: &Broker) -> BTreeSet<String> {
    let described: Value =
        serde_json::from_str(&broker.run_cli(&["topic", "describe", TOPIC, "--json"])).expect("JSON");
    let queues = described["queues"].as_array().expect("queues");
    queues.iter().map(Value::to_string).collect()
}

/// A group that is `count` messages further on each time goes on exactly where it was.
fn survive(down_and_up: fn(&mut Broker)) {
    let mut broker = Broker::start(2);
    broker.run_cli(&["topic", "create", TOPIC, "--queues", "3"]);
    send(&broker, 0..20);
    let mut got = consume(&broker, &["--count", "7"]);
    assert_eq!(got.len(), 7);
    let before = queues(&broker);
    assert_eq!(before.len(), 6, "three queues on each of two shards: {before:?}");

    down_and_up(&mut broker);

    assert_eq!(queues(&broker), before);
    let rest = consume(&broker, &[]);
    assert!(got.is_disjoint(&rest), "read again: {:?}", got.intersection(&rest));
    got.extend(rest);
    assert_eq!(got, wanted(0..20));

    send(&broker, 20..24);
    down_and_up(&mut broker);
    assert_eq!(consume(&broker, &[]), wanted(20..24));
    assert_eq!(consume(&broker, &[]), BTreeSet::new());
    broker.stop();
}

#[test]
fn a_stop_keeps_messages_topics_and_offsets() {
    survive(|broker| {
        broker.stop();
        broker.restart();
    });
}

#[test]
fn a_kill_keeps_messages_topics_and_offsets() {
    survive(|broker| {
        broker.kill9();
        broker.restart();
    });
}
