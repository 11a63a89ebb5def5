//! POP over the wire: what was popped is nobody else's, also when the broker is killed between pop and acknowledgement; and Rust's
//! simple consumer on top of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringmq_client::{ConsumeFrom, Message, Received};
use ringmq_protocol::body::{
    BatchAck, BatchAckBody, Body, MessageRequestMode, QueryAssignmentBody, QueryAssignmentResult,
    SetMessageRequestModeBody,
};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::properties::names;
use ringmq_protocol::receipt::{PopSource, Receipt};
use ringmq_protocol::request::{AckMessageRequest, PopMessageRequest, PopMessageResponse};
use ringmq_protocol::types::{QueueId, QueueOffset};
use ringmq_tests::{Broker, PATIENCE, Raw};

use crate::consuming::{client, topic};
use crate::requests::{heartbeat, send, store};

const TOPIC: &str = "Topic";
const GROUP: &str = "poppers";

fn pop(max: i32, invisible_ms: i64, poll_ms: i64) -> PopMessageRequest<'static> {
    PopMessageRequest { poll_time: poll_ms, ..PopMessageRequest::new(GROUP, TOPIC, max, invisible_ms) }
}

/// Bodies with the receipts that clients make.
fn received(answer: &RemotingCommand) -> Vec<(String, String)> {
    if answer.code == ResponseCode::POLLING_TIMEOUT.0 {
        return Vec::new();
    }
    assert_eq!(answer.code, 0, "{answer:?}");
    let response = PopMessageResponse::decode(&answer.header().ext).expect("a pop's answer");
    let receipt = |message: &ringmq_protocol::message::StoredMessage<'_>| Receipt {
        start_offset: message.queue_offset(),
        pop_time: response.pop_time,
        invisible_time: response.invisible_time,
        revive_queue_id: response.revive_qid,
        source: PopSource::Topic,
        broker_name: "any",
        queue_id: message.queue_id(),
        queue_offset: Some(message.queue_offset()),
    };
    let got = messages(&answer.body).map(|message| {
        let message = message.expect("a message");
        assert_eq!(message.topic(), TOPIC);
        let own = message.property(names::POP_CK).map(str::to_owned);
        let body = String::from_utf8(message.body().to_vec()).expect("UTF-8");
        (body, own.unwrap_or_else(|| receipt(&message).to_string()))
    });
    got.collect()
}

fn ack(raw: &mut Raw, receipt: &str) {
    let parsed = Receipt::parse(receipt).expect("a receipt");
    let request = AckMessageRequest {
        consumer_group: GROUP.into(),
        topic: parsed.source.topic_of(GROUP, TOPIC).into(),
        queue_id: parsed.queue_id.0 as i32,
        extra_info: receipt.into(),
        offset: parsed.queue_offset.expect("with its offset").0 as i64,
    };
    let answer = raw.call(RequestCode::ACK_MESSAGE, &request, Bytes::new());
    assert_eq!(answer.code, 0, "{answer:?}");
}

/// Popped and not acknowledged, the broker killed: nobody gets the messages before their time, then each comes back once; what was
/// acknowledged never does.
#[test]
fn a_kill_between_pop_and_acknowledgement_loses_nothing_and_repeats_nothing() {
    let mut broker = Broker::start(1);
    let mut raw = Raw::connect(broker.address(0));
    for number in 0..20 {
        store(&mut raw, &send(TOPIC, number % 4), format!("m{number}"));
    }
    let invisible = Duration::from_secs(4);
    let popped_at = Instant::now();
    let first = received(&raw.call(
        RequestCode::POP_MESSAGE,
        &pop(12, invisible.as_millis() as i64, 0),
        Bytes::new(),
    ));
    assert_eq!(first.len(), 12);
    let (done, open) = first.split_at(5);
    done.iter().for_each(|(_, receipt)| ack(&mut raw, receipt));
    broker.kill9();
    broker.restart();

    let mut raw = Raw::connect(broker.address(0));
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while counts.len() < 15 {
        assert!(Instant::now() < deadline, "only {counts:?}");
        let answer = raw.call(RequestCode::POP_MESSAGE, &pop(32, 60_000, 1_000), Bytes::new());
        for (body, receipt) in received(&answer) {
            if open.iter().any(|(popped, _)| *popped == body) {
                // The clock of this test began before the broker's.
                assert!(popped_at.elapsed() >= invisible, "{body} was still invisible");
            }
            ack(&mut raw, &receipt);
            *counts.entry(body).or_default() += 1;
        }
    }
    let expected: BTreeSet<String> = (0..20)
        .map(|number| format!("m{number}"))
        .filter(|body| done.iter().all(|(of, _)| of != body))
        .collect();
    assert!(counts.keys().eq(expected.iter()), "{counts:?}");
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    let rest = raw.call(RequestCode::POP_MESSAGE, &pop(32, 60_000, 0), Bytes::new());
    assert_eq!(received(&rest), []);
}

fn pop_in_order(max: i32, invisible_ms: i64, poll_ms: i64, attempt: &str) -> PopMessageRequest<'_> {
    let request = PopMessageRequest::new(GROUP, TOPIC, max, invisible_ms);
    let attempt_id = Some(attempt.into());
    PopMessageRequest { queue_id: 0, order: true, attempt_id, poll_time: poll_ms, ..request }
}

/// In order mode a queue waits for what is in flight, over a kill of the broker too; the same attempt gets the same again; and
/// what is not acknowledged comes again in its place, before what is new.
#[test]
fn in_order_a_queue_waits_for_what_is_in_flight_though_the_broker_is_killed() {
    fn pop(raw: &mut Raw, request: &PopMessageRequest<'_>) -> (Vec<String>, Vec<String>) {
        let answer = raw.call(RequestCode::POP_MESSAGE, request, Bytes::new());
        received(&answer).into_iter().unzip()
    }
    let none: (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut broker = Broker::start(1);
    let mut raw = Raw::connect(broker.address(0));
    for number in 0..6 {
        store(&mut raw, &send(TOPIC, 0), format!("m{number}"));
    }
    let (got, receipts) = pop(&mut raw, &pop_in_order(3, 60_000, 0, "lost"));
    assert_eq!(got, ["m0", "m1", "m2"]);
    assert!(receipts.iter().all(|receipt| Receipt::parse(receipt).unwrap().is_ordered()));
    ack(&mut raw, &receipts[1]);
    broker.kill9();
    broker.restart();

    // The time of these begins after the kill, so that nothing here depends on how long that took.
    let mut raw = Raw::connect(broker.address(0));
    assert_eq!(pop(&mut raw, &pop_in_order(3, 60_000, 0, "other")), none);
    let invisible = Duration::from_secs(3);
    let popped_at = Instant::now();
    let (same, _) = pop(&mut raw, &pop_in_order(2, invisible.as_millis() as i64, 0, "lost"));
    assert_eq!(same, ["m0", "m2"], "all but what was acknowledged");
    broker.kill9();
    broker.restart();

    let mut raw = Raw::connect(broker.address(0));
    let (again, receipts) = pop(&mut raw, &pop_in_order(3, 60_000, PATIENCE.as_millis() as i64, "waits"));
    assert!(popped_at.elapsed() >= invisible, "they were still invisible");
    assert_eq!(again, ["m0", "m2", "m3"]);
    let (first, last) = receipts.split_last().map(|(last, first)| (first, last)).unwrap();
    first.iter().for_each(|receipt| ack(&mut raw, receipt));
    assert_eq!(pop(&mut raw, &pop_in_order(3, 60_000, 0, "other")), none, "m3 is in flight");
    ack(&mut raw, last);
    broker.kill9();
    broker.restart();

    let mut raw = Raw::connect(broker.address(0));
    let (rest, receipts) = pop(&mut raw, &pop_in_order(32, 60_000, 0, "rest"));
    assert_eq!(rest, ["m4", "m5"]);
    receipts.iter().for_each(|receipt| ack(&mut raw, receipt));
    assert_eq!(pop(&mut raw, &pop_in_order(32, 60_000, 0, "other")), none);
}

/// A waiting pop is woken; a batch of acknowledgements is durable when it is answered.
#[test]
fn waiting_pops_are_woken_and_batches_acknowledged() {
    let mut broker = Broker::start(1);
    let mut writer = Raw::connect(broker.address(0));
    let mut reader = Raw::connect(broker.address(0));
    store(&mut writer, &send(TOPIC, 0), "zero");
    let first = received(&reader.call(RequestCode::POP_MESSAGE, &pop(1, 60_000, 0), Bytes::new()));
    let waiting = reader.send(RequestCode::POP_MESSAGE, &pop(8, 60_000, 50_000), Bytes::new()).unwrap();
    store(&mut writer, &send(TOPIC, 3), "one");
    let answer = reader.response();
    assert_eq!(answer.opaque, waiting);
    let second = received(&answer);
    assert_eq!(second[0].0, "one");
    let acks = [&first[0].1, &second[0].1].map(|receipt| {
        let receipt = Receipt::parse(receipt).unwrap();
        BatchAck {
            offsets: [0].into_iter().collect(),
            consumer_group: GROUP.into(),
            invisible_time: receipt.invisible_time,
            pop_time: receipt.pop_time,
            queue_id: receipt.queue_id.0 as i32,
            retry: "0".into(),
            revive_queue_id: 0,
            start_offset: receipt.start_offset.0 as i64,
            topic: TOPIC.into(),
        }
    });
    let body = BatchAckBody { acks: acks.into(), broker_name: "any".into() };
    assert_eq!(reader.call(RequestCode::BATCH_ACK_MESSAGE, &(), body.to_json()).code, 0);
    broker.kill9();
    broker.restart();
    // A change of what is not in flight any more is refused.
    let mut raw = Raw::connect(broker.address(0));
    let receipt = Receipt::parse(&second[0].1).unwrap();
    assert_eq!((receipt.queue_id, receipt.queue_offset), (QueueId(3), Some(QueueOffset(0))));
    let change = ringmq_protocol::request::ChangeInvisibleTimeRequest {
        consumer_group: GROUP.into(),
        topic: TOPIC.into(),
        queue_id: 3,
        extra_info: second[0].1.clone().into(),
        offset: 0,
        invisible_time: 1_000,
    };
    let answer = raw.call(RequestCode::CHANGE_MESSAGE_INVISIBLETIME, &change, Bytes::new());
    assert_eq!(answer.code, ResponseCode::MESSAGE_ILLEGAL.0, "{answer:?}");
}

/// Whichever shard is asked, the queues of all shards are in the answer.
#[tokio::test]
async fn every_shard_assigns_the_queues_of_all() {
    let broker = Broker::start(2);
    topic(&client(&broker).await, TOPIC, 2).await;
    let mut shards = [0, 1].map(|shard| Raw::connect(broker.address(shard)));
    for raw in &mut shards {
        assert_eq!(raw.call(RequestCode::HEART_BEAT, &(), heartbeat("client", GROUP)).code, 0);
        let mode = SetMessageRequestModeBody {
            consumer_group: GROUP.into(),
            mode: MessageRequestMode::Pop,
            pop_share_queue_num: 0,
            topic: TOPIC.into(),
        };
        assert_eq!(raw.call(RequestCode::SET_MESSAGE_REQUEST_MODE, &(), mode.to_json()).code, 0);
    }
    let query = QueryAssignmentBody {
        client_id: "client".into(),
        consumer_group: GROUP.into(),
        strategy_name: "AVG".into(),
        topic: TOPIC.into(),
        ..QueryAssignmentBody::default()
    };
    let mut answers = Vec::new();
    for raw in &mut shards {
        let answer = raw.call(RequestCode::QUERY_ASSIGNMENT, &(), query.to_json());
        let assigned = QueryAssignmentResult::from_json(&answer.body).expect("an assignment");
        let assigned = assigned.message_queue_assignments.expect("the route is known");
        assert!(
            assigned.iter().all(|of| of.mode == MessageRequestMode::Pop && of.message_queue.queue_id == -1)
        );
        answers.push(assigned.into_iter().map(|of| of.message_queue.broker_name).collect::<BTreeSet<_>>());
    }
    assert_eq!((answers[0].len(), &answers[0]), (2, &answers[1]));
    let unknown = QueryAssignmentBody { topic: "Unknown".into(), ..query };
    let answer = shards[0].call(RequestCode::QUERY_ASSIGNMENT, &(), unknown.to_json());
    assert_eq!(QueryAssignmentResult::from_json(&answer.body).unwrap().message_queue_assignments, None);
}

/// Rust's simple consumer: all is received from both shards, failed once, received again, acknowledged.
#[tokio::test]
async fn the_simple_consumer_receives_everything_and_what_it_gave_back_again() {
    let broker = Broker::start(2);
    let client = client(&broker).await;
    topic(&client, TOPIC, 2).await;
    let producer = client.producer("senders").build().unwrap();
    let expected: BTreeSet<String> = (0..40).map(|number| format!("m{number}")).collect();
    for body in &expected {
        producer.send(Message::new(TOPIC, body.clone())).await.unwrap();
    }
    let consumer = client
        .simple_consumer(GROUP)
        .subscribe(TOPIC, "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .wait(Duration::from_secs(2))
        .build()
        .await
        .unwrap();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < expected.len() || seen.values().any(|count| *count < 2) {
        assert!(Instant::now() < deadline, "{seen:?}");
        for mut received in consumer.receive(32, Duration::from_secs(20)).await.unwrap() {
            let body = String::from_utf8(received.message.message.body.to_vec()).unwrap();
            let count = seen.entry(body).or_default();
            *count += 1;
            match *count {
                1 => consumer.change_invisible(&mut received, Duration::from_millis(1)).await.unwrap(),
                2 => consumer.ack(&received).await.unwrap(),
                more => panic!("{received:?} came {more} times"),
            }
        }
    }
    assert!(seen.keys().eq(expected.iter()));
    consumer.shutdown().await;
    producer.shutdown().await;
}

/// The simple consumer lives through kills of the broker: a receipt of before counts after it, what was acknowledged never comes
/// again, and the rest does, once.
#[tokio::test]
async fn what_the_simple_consumer_has_in_hand_is_its_own_over_a_kill() {
    let mut broker = Broker::start(2);
    let client = client(&broker).await;
    topic(&client, TOPIC, 2).await;
    let producer = client.producer("senders").build().unwrap();
    for number in 0..40 {
        producer.send(Message::new(TOPIC, format!("m{number}"))).await.unwrap();
    }
    producer.shutdown().await;
    let builder = client.simple_consumer(GROUP).subscribe(TOPIC, "*").consume_from(ConsumeFrom::FirstOffset);
    let consumer = builder.wait(Duration::from_secs(1)).build().await.unwrap();
    let body = |received: &Received| String::from_utf8(received.message.message.body.to_vec()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // Kept in hand for long: what is done before the kill, what after it, and what is not needed and given back.
    let mut in_hand = Vec::new();
    while in_hand.len() < 24 {
        assert!(Instant::now() < deadline, "only {in_hand:?}");
        in_hand.extend(consumer.receive(8, Duration::from_secs(600)).await.unwrap());
    }
    let mut back = in_hand.split_off(16);
    let later = in_hand.split_off(8);
    let mut done: BTreeSet<String> = in_hand.iter().map(body).collect();
    consumer.ack_all(&in_hand).await.unwrap();
    broker.kill9();
    broker.restart();

    // The first request may find the connection closed.
    for received in &later {
        while let Err(error) = consumer.ack(received).await {
            assert!(Instant::now() < deadline, "{error}");
        }
        done.insert(body(received));
    }
    let mut expected: BTreeSet<String> = (0..40).map(|number| format!("m{number}")).collect();
    expected.retain(|body| !done.contains(body));
    for received in &mut back {
        while let Err(error) = consumer.change_invisible(received, Duration::from_millis(1)).await {
            assert!(Instant::now() < deadline, "{error}");
        }
    }
    let mut seen = BTreeMap::<String, u32>::new();
    while seen.len() < expected.len() {
        assert!(Instant::now() < deadline, "{seen:?}");
        for received in consumer.receive(32, Duration::from_secs(600)).await.unwrap() {
            *seen.entry(body(&received)).or_default() += 1;
            consumer.ack(&received).await.unwrap();
        }
    }
    assert!(seen.keys().eq(expected.iter()), "{seen:?}");
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
    assert!(consumer.receive(32, Duration::from_secs(600)).await.unwrap().is_empty());
    consumer.shutdown().await;
}
