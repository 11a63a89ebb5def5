//! SQL filters of the native client and the command line.

use std::collections::BTreeSet;

use ringmq_client::{Client, ConsumeError, ConsumeFrom, ConsumeResult, Message, MessageQueue};
use ringmq_protocol::code::ResponseCode;
use ringmq_tests::{Broker, Options};
use tokio::sync::mpsc;

use crate::consuming::{client, next, number, topic};

/// Every third number is red; those that 7 divides have no size.
async fn send_items(client: &Client, queues: &[MessageQueue], numbers: std::ops::Range<u32>) {
    let producer = client.producer("senders").build().unwrap();
    for number in numbers {
        let queue = &queues[number as usize % queues.len()];
        let mut message = Message::new(&queue.topic, number.to_string());
        message.set("colour", ["red", "green", "blue"][number as usize % 3]);
        if number % 7 != 0 {
            message.set("size", &number.to_string());
        }
        producer.send_to(queue, message).await.unwrap();
    }
    producer.shutdown().await;
}

const EXPRESSION: &str = "colour = 'red' AND (size BETWEEN 20 AND 300 OR size IS NULL)";

fn wanted(numbers: std::ops::Range<u32>) -> BTreeSet<u32> {
    numbers.filter(|n| n % 3 == 0 && (n % 7 == 0 || (20..=300).contains(n))).collect()
}

#[tokio::test]
async fn what_sql_chooses_arrives_now_and_after_a_restart() {
    let mut broker = Broker::start_with(Options { shards: 2, ..Options::default() });
    let sender = client(&broker).await;
    let queues = topic(&sender, "Items", 2).await;
    send_items(&sender, &queues, 0..150).await;

    let consumers = client(&broker).await;
    let (handled, mut arrived) = mpsc::unbounded_channel();
    let pushed = consumers
        .push_consumer("pushed")
        .subscribe_sql("Items", EXPRESSION)
        .consume_from(ConsumeFrom::FirstOffset)
        .start(move |message| {
            let handled = handled.clone();
            async move {
                handled.send(number(&message)).unwrap();
                ConsumeResult::Success
            }
        })
        .await
        .unwrap();
    let mut got = BTreeSet::new();
    while got != wanted(0..150) {
        assert!(got.insert(next(&mut arrived).await), "twice");
    }
    // These come onto held pulls.
    send_items(&sender, &queues, 150..400).await;
    while got != wanted(0..400) {
        assert!(got.insert(next(&mut arrived).await), "twice");
    }
    pushed.shutdown().await;
    assert!(arrived.recv().await.is_none(), "nothing that does not match");
    consumers.shutdown().await;
    sender.shutdown().await;

    // After a restart nothing is in memory: the command line reads it all from disk.
    tokio::task::spawn_blocking(move || {
        broker.stop();
        broker.restart();
        for group in [&[][..], &["--group", "lines"]] {
            let mut arguments = vec!["consume", "Items", "--raw", "--sql", EXPRESSION];
            arguments.extend(group);
            let lines: Vec<u32> =
                broker.run_cli(&arguments).lines().map(|line| line.parse().unwrap()).collect();
            assert_eq!(lines.len(), wanted(0..400).len(), "{group:?}");
            assert_eq!(lines.into_iter().collect::<BTreeSet<_>>(), wanted(0..400), "{group:?}");
        }
        let output = broker.cli(&["consume", "Items", "--sql", "size >"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("character 7, at the end"), "{said}");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_wrong_expression_ends_the_start_of_a_consumer() {
    let broker = Broker::start(1);
    let client = client(&broker).await;
    topic(&client, "Items", 1).await;
    let wrong = "colour LIKE 'r%'";
    let pushed = client
        .push_consumer("pushed")
        .subscribe_sql("Items", wrong)
        .start(|_| async { ConsumeResult::Success })
        .await
        .err();
    let polled = client.pull_consumer("polled").subscribe_sql("Items", wrong).build().await.err();
    for error in [pushed, polled] {
        let Some(ConsumeError::Request(error)) = error else { panic!("{error:?}") };
        assert_eq!(error.code(), Some(ResponseCode::SUBSCRIPTION_PARSE_FAILED));
        assert!(error.to_string().contains("character 8, at `LIKE 'r%'`"), "{error}");
    }
    client.shutdown().await;
}
