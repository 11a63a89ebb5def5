//! Where a group begins that has no offset in a queue. A client asks for its offset first; only when it is told that there is
//! none does its own rule count: first, last or a time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringmq_client::{Client, ConsumeFrom, ConsumeResult, PushConsumer};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::request::{GetMinOffsetRequest, QueryConsumerOffsetRequest};
use ringmq_protocol::types::QueueId;
use ringmq_tests::{Broker, PATIENCE, Raw};
use tokio::sync::mpsc;

use crate::consuming::{client, next, send_numbers, until};
use crate::requests::{send, store};

const QUEUE: QueueId = QueueId(0);

/// The offset of a group that is new to a topic: the code of the answer, and what it says.
fn offset_of_a_new_group(raw: &mut Raw, topic: &str) -> (i32, Option<String>) {
    let request = QueryConsumerOffsetRequest {
        consumer_group: "new".into(),
        topic: topic.into(),
        queue_id: QUEUE,
        set_zero_if_not_found: None,
    };
    let answer = raw.call(RequestCode::QUERY_CONSUMER_OFFSET, &request, Bytes::new());
    (answer.code, answer.ext("offset").map(str::to_owned))
}

#[test]
fn a_new_group_begins_with_the_first_message_only_as_long_as_that_is_there() {
    let broker = Broker::start(1);
    let mut raw = Raw::connect(broker.address(0));
    assert_eq!(store(&mut raw, &send("Young", 0), "first"), 0);
    assert_eq!(offset_of_a_new_group(&mut raw, "Young"), (ResponseCode::SUCCESS.0, Some("0".to_owned())));

    broker.run_cli(&["topic", "create", "Aged", "--queues", "1", "--retention", "1s"]);
    assert_eq!(store(&mut raw, &send("Aged", 0), "first"), 0);
    let min = GetMinOffsetRequest { topic: "Aged".into(), queue_id: QUEUE };
    let deadline = Instant::now() + PATIENCE;
    while raw.call(RequestCode::GET_MIN_OFFSET, &min, Bytes::new()).ext("offset") != Some("1") {
        assert!(Instant::now() < deadline, "the first message does not go");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(offset_of_a_new_group(&mut raw, "Aged"), (ResponseCode::QUERY_NOT_FOUND.0, None));
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

/// A member of a new group, and the offsets that it handles.
async fn new_group(
    client: &Client,
    group: &str,
    from: ConsumeFrom,
) -> (PushConsumer, mpsc::UnboundedReceiver<u64>) {
    let (handled, handling) = mpsc::unbounded_channel();
    let builder = client.push_consumer(group).subscribe("Aged", "*").consume_from(from);
    let started = builder.start(move |message| {
        _ = handled.send(message.queue_offset.0);
        async { ConsumeResult::Success }
    });
    (started.await.unwrap(), handling)
}

/// On a topic that has lost its beginning a new group begins as it asks, and goes on without a gap.
#[tokio::test]
async fn a_new_group_of_an_aged_topic_begins_as_it_asks() {
    let broker = Broker::start(1);
    broker.run_cli(&["topic", "create", "Aged", "--queues", "1", "--retention", "6s"]);
    let client = client(&broker).await;
    let queues = client.admin().route("Aged").await.unwrap().writable.clone();
    let bounds = async || {
        let status = client.admin().queues("Aged").await.unwrap().remove(0);
        (status.min.0, status.max.0)
    };
    send_numbers(&client, &queues, 0..5).await;
    until("the first messages go", async || bounds().await == (5, 5)).await;
    send_numbers(&client, &queues, 5..10).await;
    // The broker's clock is read once a turn.
    let moment = wall_ms() + 100;
    until("time passes", async || wall_ms() > moment + 100).await;
    send_numbers(&client, &queues, 10..15).await;

    let (begin, end) = bounds().await;
    assert!(begin >= 5 && end == 15);
    let (first, mut of_first) = new_group(&client, "first", ConsumeFrom::FirstOffset).await;
    let (last, mut of_last) = new_group(&client, "last", ConsumeFrom::LastOffset).await;
    let (since, mut of_since) = new_group(&client, "since", ConsumeFrom::Timestamp(moment)).await;
    // One at a time until each has begun: a member may ask for its place after the first of these.
    let (mut sent, mut begun) = (15, [None; 3]);
    while begun.contains(&None) {
        assert!(sent < 10_000, "{begun:?}");
        send_numbers(&client, &queues, sent..sent + 1).await;
        sent += 1;
        for (begun, handling) in begun.iter_mut().zip([&mut of_first, &mut of_last, &mut of_since]) {
            *begun = begun.or_else(|| handling.try_recv().ok());
        }
    }
    // Where it had to begin, if it was slow: messages go on going.
    let later = bounds().await.0;
    let places = [(begin, later), (15, u64::from(sent)), (begin.max(10), later.max(10))];
    for ((from, to), (begun, handling)) in
        places.into_iter().zip(begun.into_iter().flatten().zip([&mut of_first, &mut of_last, &mut of_since]))
    {
        assert!((from..=to).contains(&begun), "{begun} is not in {from} to {to}");
        let mut handled = vec![begun];
        while (handled.len() as u64) < u64::from(sent) - begun {
            handled.push(next(handling).await);
        }
        handled.sort_unstable();
        assert_eq!(handled, (begun..u64::from(sent)).collect::<Vec<_>>());
    }
    for consumer in [first, last, since] {
        consumer.shutdown().await;
    }
}
