//! Messages that are delivered later, come again, or are given up: real processes, every count exact.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringmq_client::{Client, ConsumeFrom, ConsumeResult, Message, MessageExt, QueueOffset};
use ringmq_tests::{Broker, Options, PATIENCE};

const TOPIC: &str = "Work";
/// What the native client asks for: a message is handled once, and then so often again.
const RETRIES: usize = 16;

fn broker(delays: &str) -> Broker {
    let arguments = ["--message-delay-level", delays, "--segment-size", "16MiB"];
    Broker::start_with(Options { shards: 1, arguments: arguments.map(Into::into).into(), data: None })
}

/// Waits until something holds; only a broken broker lets it wait for long.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How many messages a topic has; none if a broker is down or does not know it.
async fn count(client: &Client, topic: &str) -> u64 {
    let queues = client.admin().queues(topic).await.unwrap_or_default();
    queues.iter().map(|queue| queue.max.0).sum()
}

/// All messages of a topic.
async fn all(client: &Client, topic: &str) -> Vec<MessageExt> {
    let queues = client.admin().queues(topic).await.unwrap();
    let (ends, queues): (Vec<_>, Vec<_>) =
        queues.into_iter().map(|status| ((status.queue.clone(), status.max), status.queue)).unzip();
    let consumer = client.pull_consumer("reader").consume_from(ConsumeFrom::FirstOffset);
    let mut consumer = consumer.assign(queues, "*").ignore_committed(true).build().await.unwrap();
    let mut all = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while ends.iter().any(|(queue, end)| consumer.position(queue).unwrap_or(QueueOffset(0)) < *end) {
        assert!(Instant::now() < deadline, "{topic} cannot be read to its end");
        let batch = consumer.poll(Duration::from_millis(100)).await;
        all.extend(batch.into_iter().flat_map(|batch| batch.messages));
    }
    consumer.shutdown().await;
    all
}

fn body(message: &MessageExt) -> String {
    String::from_utf8(message.message.body.to_vec()).unwrap()
}

/// The bodies of a topic, sorted.
async fn bodies(client: &Client, topic: &str) -> Vec<String> {
    let mut bodies: Vec<String> = all(client, topic).await.iter().map(body).collect();
    bodies.sort_unstable();
    bodies
}

/// True when every delayed message of a level was delivered.
fn is_delivered(broker: &Broker, level: u32, count: u64) -> bool {
    let mut raw = ringmq_tests::Raw::connect(broker.address(0));
    let code = ringmq_protocol::code::RequestCode::GET_BROKER_RUNTIME_INFO;
    let answer = raw.call(code, &(), bytes::Bytes::new());
    let info: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    info["table"][format!("scheduleMessageOffset_{level}")] == format!("{count},{count}")
}

#[tokio::test]
async fn a_message_is_retried_until_it_is_processed_or_dead() {
    let broker = broker("10ms 20ms 30ms 50ms");
    let client = Client::new(broker.name_server()).await.unwrap();
    let producer = client.producer("p").build().unwrap();
    for number in 0..20 {
        let message = Message::new(TOPIC, format!("{number:02}")).with_tag("red").with_keys(["key"]);
        producer.send(message).await.unwrap();
    }
    // What each message looked like each time.
    type Seen = BTreeMap<String, Vec<(i32, String, Option<String>)>>;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let handler_seen = seen.clone();
    let consumer = client.push_consumer("g").subscribe(TOPIC, "red").consume_from(ConsumeFrom::FirstOffset);
    let consumer = consumer
        .start(move |message: MessageExt| {
            let origin = message.message.property("ORIGIN_MESSAGE_ID").map(str::to_owned);
            let look = (message.reconsume_times, message.message.topic.clone(), origin);
            handler_seen.lock().unwrap().entry(body(&message)).or_default().push(look);
            // 0, 10: at once; 1, 11: at the second time … ; 7 to 9 and 17 to 19 never.
            let kind: i32 = body(&message)[1..].parse().unwrap();
            async move {
                match kind < 7 && message.reconsume_times == kind {
                    true => ConsumeResult::Success,
                    false => ConsumeResult::ReconsumeLater,
                }
            }
        })
        .await
        .unwrap();
    until("six are dead", async || count(&client, "%DLQ%g").await >= 6).await;
    let retried: u64 = 2 * (1 + 2 + 3 + 4 + 5 + 6) + 6 * RETRIES as u64;
    until("all were retried", async || count(&client, "%RETRY%g").await >= retried).await;
    consumer.shutdown().await;

    let dead = all(&client, "%DLQ%g").await;
    let mut dead_bodies: Vec<String> = dead.iter().map(body).collect();
    dead_bodies.sort_unstable();
    assert_eq!(dead_bodies, ["07", "08", "09", "17", "18", "19"]);
    for message in &dead {
        assert_eq!(message.reconsume_times as usize, RETRIES + 1);
        assert_eq!(message.message.property("RETRY_TOPIC"), Some(TOPIC));
        assert_eq!(message.message.tag(), Some("red"));
        assert_eq!(message.message.property("KEYS"), Some("key"));
    }
    assert_eq!(count(&client, "%RETRY%g").await, retried);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    for number in 0..20usize {
        let looks = &seen[&format!("{number:02}")];
        let times = if number % 10 < 7 { number % 10 + 1 } else { RETRIES + 1 };
        let reconsumed: Vec<usize> = looks.iter().map(|(times, ..)| *times as usize).collect();
        assert_eq!(reconsumed, (0..times).collect::<Vec<_>>(), "message {number}");
        assert!(looks.iter().all(|(_, topic, _)| topic == TOPIC), "the handler sees the original topic");
        let origins: Vec<&String> = looks.iter().filter_map(|(.., origin)| origin.as_ref()).collect();
        assert_eq!(origins.len(), times - 1);
        assert!(origins.windows(2).all(|pair| pair[0] == pair[1]), "the first message is the origin of all");
    }

    // The dead are listed, shown, and sent again: each once.
    assert!(broker.run_cli(&["dlq", "list"]).lines().any(|line| line.split_whitespace().eq(["g", "6"])));
    let shown = broker.run_cli(&["dlq", "show", "g", "--count", "4"]);
    assert_eq!(shown.lines().filter(|line| line.contains("topic Work  retried 17  keys key")).count(), 4);
    let before = count(&client, TOPIC).await;
    let sent = broker.run_cli(&["dlq", "resend", "g", "--count", "2"]);
    assert!(sent.ends_with("sent 2 again\n"), "{sent}");
    let sent = broker.run_cli(&["dlq", "resend", "g", "--all"]);
    assert!(sent.ends_with("sent 4 again\n"), "{sent}");
    assert_eq!(broker.run_cli(&["dlq", "resend", "g", "--all"]), "nothing to send again\n");
    assert_eq!(count(&client, TOPIC).await, before + 6);
    let id = dead[0].offset_message_id().to_string();
    broker.run_cli(&["dlq", "resend", "g", "--id", &id]);
    let again: Vec<MessageExt> = all(&client, TOPIC).await;
    let again: Vec<&MessageExt> =
        again.iter().filter(|message| message.message.property("RINGMQ_RESENT_FROM").is_some()).collect();
    assert_eq!(again.len(), 7);
    for message in again {
        assert_eq!((message.message.tag(), message.message.property("KEYS")), (Some("red"), Some("key")));
        assert_eq!((message.reconsume_times, message.message.property("RETRY_TOPIC")), (0, None));
    }
    for wrong in
        [&["dlq", "show", "nobody"][..], &["dlq", "resend", "g", "--id", "nothing"], &["dlq", "resend", "g"]]
    {
        assert!(!broker.cli(wrong).output().unwrap().status.success(), "{wrong:?}");
    }
    client.shutdown().await;
}

#[tokio::test]
async fn delayed_messages_are_delivered_once_though_the_broker_is_killed() {
    let mut broker = broker("1s 300ms");
    let client = Client::new(broker.name_server()).await.unwrap();
    let producer = client.producer("p").build().unwrap();
    // Between the send and the time at which they are due.
    let mut wanted = Vec::new();
    for number in 0..50 {
        let body = format!("early {number:03}");
        producer.send(Message::new(TOPIC, body.clone()).with("DELAY", "1")).await.unwrap();
        wanted.push(body);
    }
    broker.kill9();
    broker.restart();
    until("all are delivered", async || is_delivered(&broker, 1, 50)).await;
    assert_eq!(bodies(&client, TOPIC).await, wanted);

    // While they are being delivered: some, none or all are durable in their topic when the broker dies.
    for round in 1..=4u64 {
        for number in 0..100 {
            let body = format!("round {round} {number:03}");
            producer.send(Message::new(TOPIC, body.clone()).with("DELAY", "2")).await.unwrap();
            wanted.push(body);
        }
        until("delivery goes on", async || count(&client, TOPIC).await > 50 + (round - 1) * 100).await;
        broker.kill9();
        broker.restart();
        until("all are delivered", async || is_delivered(&broker, 2, round * 100)).await;
        wanted.sort_unstable();
        assert_eq!(bodies(&client, TOPIC).await, wanted);
    }
    producer.shutdown().await;
    client.shutdown().await;
}

#[tokio::test]
async fn what_was_sent_back_survives_a_kill() {
    let mut broker = broker("100ms 100ms 1s");
    let client = Client::new(broker.name_server()).await.unwrap();
    let producer = client.producer("p").build().unwrap();
    for number in 0..10 {
        producer.send(Message::new(TOPIC, format!("{number}"))).await.unwrap();
    }
    let handled: Arc<Mutex<Vec<(String, i32)>>> = Arc::default();
    let start = || {
        let handled = handled.clone();
        client.push_consumer("g").subscribe(TOPIC, "*").consume_from(ConsumeFrom::FirstOffset).start(
            move |message: MessageExt| {
                handled.lock().unwrap().push((body(&message), message.reconsume_times));
                async move {
                    if message.reconsume_times == 0 {
                        ConsumeResult::ReconsumeLater
                    } else {
                        ConsumeResult::Success
                    }
                }
            },
        )
    };
    let consumer = start().await.unwrap();
    // The answers to send-backs are durable: all of them come back, after a second.
    until("all are sent back", async || count(&client, "SCHEDULE_TOPIC_XXXX").await >= 10).await;
    consumer.shutdown().await;
    broker.kill9();
    broker.restart();
    until("all are delivered", async || is_delivered(&broker, 3, 10)).await;
    let consumer = start().await.unwrap();
    let second = |handled: &[(String, i32)]| handled.iter().filter(|(_, times)| *times == 1).count();
    until("all are handled again", async || second(&handled.lock().unwrap()) >= 10).await;
    consumer.shutdown().await;
    let wanted: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(bodies(&client, "%RETRY%g").await, wanted);
    client.shutdown().await;
}

#[test]
fn a_delay_on_the_command_line_is_a_level() {
    let broker = broker("50ms 10m");
    let refused = broker.cli(&["send", "--delay", "10s", TOPIC, "x"]).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("is 10s: it has 50ms 10m"), "{said}");
    broker.run_cli(&["send", "--delay", "10m", TOPIC, "much later"]);
    broker.run_cli(&["send", "--delay", "50ms", TOPIC, "later"]);
    let printed = broker.run_cli(&["consume", TOPIC, "--raw", "--follow", "--count", "1"]);
    assert_eq!(printed, "later\n");
}
