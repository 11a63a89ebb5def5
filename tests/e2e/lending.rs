//! The simple consumer of the native client: messages are lent, and come again unless they are acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmq_client::{Client, ConsumeFrom, Received, SimpleConsumer};
use ringmq_tests::{Broker, PATIENCE};

use crate::consuming::{client, dead_letters, number, send_numbers, topic};

const TOPIC: &str = "Lent";
/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(300);
const SHORT: Duration = Duration::from_millis(100);

async fn member(client: &Client) -> SimpleConsumer {
    let builder =
        client.simple_consumer("borrowers").subscribe(TOPIC, "*").consume_from(ConsumeFrom::FirstOffset);
    builder.wait(PATIENCE).build().await.unwrap()
}

fn numbers(received: &[Received]) -> Vec<u32> {
    received.iter().map(|received| number(&received.message)).collect()
}

/// Receives until there are so many.
async fn receive(consumer: &SimpleConsumer, count: usize, invisible: Duration) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        let left = u32::try_from(count - all.len()).unwrap().min(32);
        let received = consumer.receive(left, invisible).await.unwrap();
        assert!(!received.is_empty(), "{} of {count} messages came", all.len());
        all.extend(received);
    }
    all
}

#[tokio::test]
async fn what_is_acknowledged_is_done_and_what_is_not_comes_again() {
    let broker = Broker::start(2);
    let client = client(&broker).await;
    let queues = topic(&client, TOPIC, 2).await;
    send_numbers(&client, &queues, 0..40).await;
    let consumer = member(&client).await;

    let first = receive(&consumer, 40, LONG).await;
    let mut seen = numbers(&first);
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>(), "each once, as long as they are invisible");
    let (done, mut forgotten): (Vec<_>, Vec<_>) =
        first.into_iter().partition(|received| number(&received.message).is_multiple_of(2));
    consumer.ack(&done[0]).await.unwrap();
    consumer.ack_all(&done).await.unwrap();

    for received in &mut forgotten {
        consumer.change_invisible(received, SHORT).await.unwrap();
    }
    let mut wanted = numbers(&forgotten);
    while !wanted.is_empty() {
        for received in receive(&consumer, 1, LONG).await {
            assert_eq!(received.message.message.topic, TOPIC, "also when it comes again");
            assert!(received.message.reconsume_times > 0);
            let number = number(&received.message);
            assert!(wanted.contains(&number), "{number} was acknowledged");
            wanted.retain(|wanted| *wanted != number);
            consumer.ack(&received).await.unwrap();
        }
    }
    consumer.shutdown().await;
}

#[tokio::test]
async fn a_member_that_waits_gets_what_is_sent_to_any_shard() {
    let broker = Broker::start(2);
    let client = client(&broker).await;
    let queues = topic(&client, TOPIC, 1).await;
    assert_eq!(queues.len(), 2);
    let consumer = member(&client).await;
    for number in 0..6 {
        let sent = send_numbers(&client, &queues, number..number + 1);
        let (received, ()) = tokio::join!(receive(&consumer, 1, LONG), sent);
        assert_eq!(numbers(&received), [number]);
        consumer.ack_all(&received).await.unwrap();
    }
    consumer.shutdown().await;
}

#[tokio::test]
async fn more_time_or_less_as_the_application_likes() {
    let broker = Broker::start(1);
    let client = client(&broker).await;
    let queues = topic(&client, TOPIC, 1).await;
    send_numbers(&client, &queues, 0..2).await;
    let consumer = member(&client).await;
    let mut received = receive(&consumer, 2, LONG).await;
    received.sort_by_key(|received| number(&received.message));
    consumer.change_invisible(&mut received[1], SHORT).await.unwrap();
    let again = receive(&consumer, 1, LONG).await;
    assert_eq!(numbers(&again), [1], "the other one is still invisible");
    consumer.ack(&again[0]).await.unwrap();
    let before = received[0].receipt().to_string();
    consumer.change_invisible(&mut received[0], LONG).await.unwrap();
    assert_ne!(received[0].receipt(), before);
    consumer.ack(&received[0]).await.unwrap();
    consumer.shutdown().await;
}

/// What a member had when the broker crashed is invisible as before, and can still be acknowledged.
#[tokio::test]
async fn loans_survive_a_crash_of_the_broker() {
    let mut broker = Broker::start(1);
    let client = client(&broker).await;
    let queues = topic(&client, TOPIC, 1).await;
    send_numbers(&client, &queues, 0..4).await;
    let consumer = member(&client).await;
    let received = receive(&consumer, 2, LONG).await;
    broker.kill9();
    broker.restart();
    let mut outcome = consumer.ack_all(&received).await;
    while outcome.is_err() {
        outcome = consumer.ack_all(&received).await;
    }
    let mut rest = BTreeMap::new();
    while rest.len() < 2 {
        // Fails while the broker is on its way back.
        for received in consumer.receive(4, LONG).await.unwrap_or_default() {
            consumer.ack(&received).await.unwrap();
            rest.insert(number(&received.message), ());
        }
    }
    let mut all: Vec<u32> = numbers(&received);
    all.extend(rest.keys());
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3]);
    consumer.shutdown().await;
}

#[tokio::test]
async fn what_is_never_acknowledged_becomes_a_dead_letter() {
    let broker = Broker::start(1);
    let client = client(&broker).await;
    let queues = topic(&client, TOPIC, 1).await;
    send_numbers(&client, &queues, 0..2).await;
    let consumer = member(&client).await;
    let mut times = Vec::new();
    // Once, and 16 times again.
    while times.len() < 17 {
        for received in receive(&consumer, 1, Duration::from_millis(10)).await {
            match number(&received.message) {
                0 => times.push(received.message.reconsume_times),
                _ => consumer.ack(&received).await.unwrap(),
            }
        }
    }
    assert_eq!(times, (0..17).collect::<Vec<_>>());
    assert_eq!(dead_letters(&client, "borrowers", 1).await, [0]);
    consumer.shutdown().await;
}
