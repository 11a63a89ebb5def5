//! Where groups go on, set from outside: resets, skips and clones of groups that are online and of those that are not;
//! ordered topics.

use std::collections::BTreeSet;

use ringmq_client::{Client, ConsumeFrom, ConsumeResult, PushConsumer};
use ringmq_tests::Broker;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::consuming::{client, next, number, send_numbers, topic, until};

/// A member of group g that tells the numbers it handles.
async fn member(client: &Client, topic: &str) -> (PushConsumer, mpsc::UnboundedReceiver<u32>) {
    member_of(client, "g", topic).await
}

async fn member_of(
    client: &Client,
    group: &str,
    topic: &str,
) -> (PushConsumer, mpsc::UnboundedReceiver<u32>) {
    let (handled, handling) = mpsc::unbounded_channel();
    let consumer = client
        .push_consumer(group)
        .subscribe(topic, "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .persist_interval(std::time::Duration::from_millis(20))
        .start(move |message| {
            let handled = handled.clone();
            async move {
                _ = handled.send(number(&message));
                ConsumeResult::Success
            }
        })
        .await
        .unwrap();
    (consumer, handling)
}

/// Takes numbers until all of these have come; nothing else may come.
async fn take(handling: &mut mpsc::UnboundedReceiver<u32>, numbers: impl IntoIterator<Item = u32>) {
    let mut awaited: BTreeSet<u32> = numbers.into_iter().collect();
    while !awaited.is_empty() {
        let number = next(handling).await;
        assert!(awaited.remove(&number), "{number} is not awaited, or came twice");
    }
}

fn told(broker: &Broker, arguments: &[&str]) -> Value {
    let printed = broker.run_cli(&[arguments, &["--json"]].concat());
    serde_json::from_str(&printed).expect("JSON")
}

/// Broker, queue, and where it was before and after.
fn resets(broker: &Broker, arguments: &[&str]) -> Vec<[Value; 4]> {
    let said = told(broker, arguments);
    let queues = said["queues"].as_array().expect("queues").iter();
    queues.map(|queue| ["broker", "queue", "before", "after"].map(|name| queue[name].clone())).collect()
}

/// In how many queues of the topic the group has an offset; without one there is no lag to speak of.
fn begun(broker: &Broker, topic: &str) -> usize {
    let described = told(broker, &["group", "describe", "g"]);
    let queues = described["queues"].as_array().expect("queues").iter();
    queues.filter(|queue| queue["topic"] == topic && queue["committed_offset"].is_u64()).count()
}

fn lag(broker: &Broker) -> u64 {
    told(broker, &["group", "describe", "g"])["lag"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_moves_groups_that_are_online_and_those_that_are_not() {
    let mut broker = Broker::start(2);
    let first = client(&broker).await;
    let queues = topic(&first, "Moved", 1).await;
    // Even numbers to the first shard, odd ones to the second.
    send_numbers(&first, &queues, 0..10).await;
    let (consumer, mut handling) = member(&first, "Moved").await;
    take(&mut handling, 0..10).await;
    until("everything is committed", async || begun(&broker, "Moved") == 2 && lag(&broker) == 0).await;

    let dry = ["group", "reset-offset", "g", "--topic", "Moved", "--to", "first", "--dry-run"];
    let moved: Vec<[Value; 4]> =
        [0, 1].map(|shard| [json!(format!("broker-a-{shard}")), json!(0), json!(5), json!(0)]).into();
    assert_eq!(resets(&broker, &dry), moved);
    assert_eq!(resets(&broker, &dry), moved, "nothing was changed");
    assert_eq!(resets(&broker, &dry[..7]), moved);
    take(&mut handling, 0..10).await;
    until("everything is committed again", async || lag(&broker) == 0).await;

    // What the tool shows of a group that is online.
    let described = told(&broker, &["group", "describe", "g"]);
    let member_id = first.id();
    assert_eq!(described["members"][0]["client_id"], json!(member_id));
    assert_eq!(described["subscriptions"][1], json!({ "topic": "Moved", "type": "TAG", "expression": "*" }));
    let of_topic: Vec<&Value> =
        described["queues"].as_array().unwrap().iter().filter(|queue| queue["topic"] == "Moved").collect();
    assert_eq!(of_topic.len(), 2);
    for queue in of_topic {
        let offsets =
            ["min_offset", "committed_offset", "max_offset", "lag", "owner"].map(|name| &queue[name]);
        assert_eq!(offsets, [&json!(0), &json!(5), &json!(5), &json!(0), &json!(member_id)]);
    }
    let listed = broker.run_cli(&["group", "list"]);
    let line = listed.lines().find(|line| line.starts_with("g ")).expect("the group");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["g", "1", "0"]);
    consumer.shutdown().await;
    first.shutdown().await;

    // Nobody is online, and the broker is killed before somebody comes: the reset holds.
    let one = ["group", "reset-offset", "g", "--topic", "Moved", "--to", "3", "--queue", "broker-a-1:0"];
    assert_eq!(resets(&broker, &one), [[json!("broker-a-1"), json!(0), json!(5), json!(3)]]);
    assert_eq!(lag(&broker), 2);
    broker.kill9();
    broker.restart();
    let second = client(&broker).await;
    let (consumer, mut handling) = member(&second, "Moved").await;
    take(&mut handling, [7, 9]).await;
    until("what was reset is committed", async || lag(&broker) == 0).await;
    consumer.shutdown().await;

    // What came meanwhile is skipped; another group follows the first one.
    let queues = second.admin().route("Moved").await.unwrap().writable.clone();
    send_numbers(&second, &queues, 10..14).await;
    broker.run_cli(&["group", "clone", "g", "copy", "--topic", "Moved"]);
    broker.run_cli(&["group", "skip", "g", "--topic", "Moved"]);
    assert_eq!(lag(&broker), 0);
    assert_eq!(told(&broker, &["group", "describe", "copy"])["lag"], json!(4));
    send_numbers(&second, &queues, 14..16).await;
    let (consumer, mut handling) = member(&second, "Moved").await;
    take(&mut handling, [14, 15]).await;
    consumer.shutdown().await;
    second.shutdown().await;
}

/// How far groups are, what an operator does about it, and what a deleted group leaves: all of it over kills, and then consumers
/// begin accordingly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_where_the_tool_put_them_over_kills() {
    let mut broker = Broker::start(2);
    let first = client(&broker).await;
    let queues = topic(&first, "Piled", 1).await;
    // Even numbers to the first shard, odd ones to the second.
    send_numbers(&first, &queues, 0..10).await;
    first.shutdown().await;
    let lags = |broker: &Broker| {
        ["g", "copy", "gone"].map(|group| {
            let described = told(broker, &["group", "describe", group]);
            let queues = described["queues"].as_array().expect("queues");
            let of_each: u64 = queues.iter().filter_map(|queue| queue["lag"].as_u64()).sum();
            assert_eq!(described["lag"], json!(of_each));
            let committed = queues.iter().filter(|queue| queue["committed_offset"].is_u64()).count();
            (committed, of_each)
        })
    };
    for group in ["g", "copy", "gone"] {
        broker.run_cli(&["group", "create", group]);
    }
    for group in ["g", "gone"] {
        broker.run_cli(&["group", "reset-offset", group, "--topic", "Piled", "--to", "2"]);
    }
    assert_eq!(lags(&broker), [(2, 6), (0, 0), (2, 6)]);
    broker.run_cli(&["group", "clone", "g", "copy"]);
    broker.run_cli(&["group", "skip", "g", "--topic", "Piled", "--queue", "broker-a-1:0"]);
    broker.run_cli(&["group", "delete", "gone", "--keep-offsets"]);
    broker.kill9();
    broker.restart();

    let is_listed = |broker: &Broker| {
        let listed = broker.run_cli(&["group", "list"]);
        listed.lines().any(|line| line.starts_with("gone "))
    };
    assert!(!is_listed(&broker));
    broker.run_cli(&["group", "create", "gone"]);
    assert_eq!(lags(&broker), [(2, 3), (2, 6), (2, 6)]);
    broker.run_cli(&["group", "skip", "g", "--topic", "Piled"]);
    broker.run_cli(&["group", "delete", "gone"]);
    broker.kill9();
    broker.restart();

    assert!(!is_listed(&broker));
    broker.run_cli(&["group", "create", "gone"]);
    assert_eq!(lags(&broker), [(2, 0), (2, 6), (0, 0)]);
    let second = client(&broker).await;
    send_numbers(&second, &queues, 10..12).await;
    for (group, numbers) in [("g", 10..12), ("copy", 4..12), ("gone", 0..12)] {
        let (consumer, mut handling) = member_of(&second, group, "Piled").await;
        take(&mut handling, numbers).await;
        consumer.shutdown().await;
        assert!(handling.try_recv().is_err(), "{group} is given nothing else");
    }
    second.shutdown().await;
}

#[test]
fn what_cannot_be_reset_is_refused_with_the_reason() {
    let broker = Broker::start(1);
    broker.run_cli(&["topic", "create", "Short", "--queues", "1"]);
    let refused = |arguments: &[&str], wanted: &str| {
        let output = broker.cli(arguments).output().expect("ringmq can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(wanted), "{arguments:?}: {errors}");
    };
    let to = |place| ["group", "reset-offset", "g", "--topic", "Short", "--to", place];
    refused(&to("first"), "`ringmq group create g` makes it");
    refused(&to("soon"), "first, last or an offset");
    broker.run_cli(&["group", "create", "g", "--retries", "3"]);
    refused(&to("1"), "offset 1 is not in queue broker-a-0:0, which has 0 to 0");
    refused(&[&to("0")[..], &["--queue", "broker-a-0:7"]].concat(), "has no queue 7");
    refused(&["group", "create", "no good"], "contains ' '");
    broker.run_cli(&to("first"));

    broker.run_cli(&["group", "delete", "g"]);
    assert!(!broker.run_cli(&["group", "list"]).lines().any(|line| line.starts_with("g ")));
    refused(&to("first"), "`ringmq group create g` makes it");
}

#[test]
fn an_ordered_topic_has_one_queue_or_a_number_that_the_name_server_keeps() {
    let broker = Broker::start(2);
    for _ in 0..2 {
        broker.run_cli(&["topic", "create", "One", "--order", "global"]);
        let queues = told(&broker, &["topic", "describe", "One"])["queues"].clone();
        let queues = queues.as_array().unwrap();
        assert_eq!(queues.len(), 1, "{queues:?}");
        assert_eq!(queues[0]["broker"], "broker-a-0", "the same whoever asks");
    }
    broker.run_cli(&["topic", "create", "Many", "--queues", "2"]);
    let output = broker.cli(&["topic", "create", "Many", "--order", "global"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("broker-a-0:0, broker-a-0:1, broker-a-1:0"),
        "{errors}"
    );

    broker.run_cli(&["topic", "create", "Keyed", "--queues", "3", "--order", "queue"]);
    let mut name_server = ringmq_tests::Raw::connect(broker.name_server().parse().unwrap());
    let mut order_of = |topic: &'static str| {
        use ringmq_protocol::body::TopicRouteData;
        let asked = ringmq_protocol::request::GetRouteInfoRequest {
            topic: topic.into(),
            accept_standard_json_only: true,
        };
        let code = ringmq_protocol::code::RequestCode::GET_ROUTEINFO_BY_TOPIC;
        let answer = name_server.call(code, &asked, bytes::Bytes::new());
        TopicRouteData::from_json(&answer.body).expect("a route").order_topic_conf
    };
    assert_eq!(order_of("Keyed").as_deref(), Some("broker-a-0:3;broker-a-1:3"));
    assert_eq!(order_of("One").as_deref(), Some("broker-a-0:1"));
    // The next topic of the name is another one.
    broker.run_cli(&["topic", "delete", "Keyed"]);
    broker.run_cli(&["topic", "create", "Keyed", "--queues", "1"]);
    assert_eq!(order_of("Keyed"), None);
}
