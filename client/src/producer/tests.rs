use super::*;
use crate::fake::{FakeServer, name_server, respond};

fn stored(request: &RemotingCommand) -> Vec<RemotingCommand> {
    let fields = SendMessageResponse {
        msg_id: "id0,id1".into(),
        queue_id: 0,
        queue_offset: 7,
        transaction_id: None,
        batch_uniq_id: None,
        recall_handle: None,
        region_id: None,
        trace_on: None,
    };
    respond(request, ResponseCode::SUCCESS, &fields, "")
}

async fn broker(code: ResponseCode) -> FakeServer {
    FakeServer::start(move |request| match RequestCode(request.code) {
        RequestCode::SEND_MESSAGE_V2 | RequestCode::SEND_BATCH_MESSAGE if code == ResponseCode::SUCCESS => {
            stored(request)
        }
        RequestCode::SEND_MESSAGE_V2 | RequestCode::SEND_BATCH_MESSAGE => respond(request, code, &(), ""),
        _ => respond(request, ResponseCode::SUCCESS, &(), ""),
    })
    .await
}

async fn producer(brokers: &[(&str, &FakeServer)]) -> (FakeServer, Producer) {
    let brokers: Vec<_> = brokers.iter().map(|(name, server)| (*name, server.address())).collect();
    let name_server = name_server(&brokers).await;
    let client = Client::new(&*name_server.address()).await.expect("a client");
    let producer = client.producer("pg").send_timeout(Duration::from_secs(20)).build().expect("a producer");
    (name_server, producer)
}

#[tokio::test]
async fn a_busy_broker_is_left_for_another() {
    let (busy, idle) = (broker(ResponseCode::SYSTEM_BUSY).await, broker(ResponseCode::SUCCESS).await);
    let (_name_server, producer) = producer(&[("a", &busy), ("b", &idle)]).await;
    for _ in 0..2 {
        let sent = producer.send(Message::new("T", "x")).await.expect("stored");
        assert_eq!((&*sent.queue.broker_name, sent.queue_offset), ("b", QueueOffset(7)));
    }
    assert!(!busy.received(RequestCode::SEND_MESSAGE_V2).is_empty(), "one of the two began there");
    // S2
    let keys: Vec<_> =
        busy.received(RequestCode::SEND_MESSAGE_V2).iter().map(|r| r.ext("i").map(str::to_string)).collect();
    let again: Vec<_> =
        idle.received(RequestCode::SEND_MESSAGE_V2).iter().map(|r| r.ext("i").map(str::to_string)).collect();
    assert!(again.contains(&keys[0]));
}

#[tokio::test]
async fn a_message_that_is_refused_is_not_sent_again() {
    let strict = broker(ResponseCode::MESSAGE_ILLEGAL).await;
    let (_name_server, producer) = producer(&[("a", &strict)]).await;
    let error = producer.send(Message::new("T", "x")).await.expect_err("refused");
    assert!(!error.is_transient());
    let text = error.to_string();
    assert!(
        text.contains(&*strict.address()) && text.contains("13") && text.contains("MESSAGE_ILLEGAL"),
        "{text}"
    );
    assert_eq!(strict.received(RequestCode::SEND_MESSAGE_V2).len(), 1);
}

/// S3, with the default of two further attempts.
#[tokio::test]
async fn a_chosen_queue_stays_chosen() {
    let (busy, idle) = (broker(ResponseCode::SYSTEM_BUSY).await, broker(ResponseCode::SUCCESS).await);
    let (_name_server, producer) = producer(&[("a", &busy), ("b", &idle)]).await;
    let queue = MessageQueue::new("T", "a", 0);
    let error = producer.send_to(&queue, Message::new("T", "x")).await.expect_err("busy");
    assert!(error.is_transient());
    assert_eq!(busy.received(RequestCode::SEND_MESSAGE_V2).len(), 3);
    assert_eq!(idle.received(RequestCode::SEND_MESSAGE_V2).len(), 0);
}

#[tokio::test]
async fn a_batch_has_a_result_for_each_message() {
    let broker = broker(ResponseCode::SUCCESS).await;
    let (_name_server, producer) = producer(&[("a", &broker)]).await;
    let sent =
        producer.send_batch(vec![Message::new("T", "x"), Message::new("T", "y")]).await.expect("stored");
    let seen: Vec<_> = sent.iter().map(|sent| (&*sent.offset_message_id, sent.queue_offset)).collect();
    assert_eq!(seen, [("id0", QueueOffset(7)), ("id1", QueueOffset(8))]);
    assert_ne!(sent[0].message_id, sent[1].message_id);
    let requests = broker.received(RequestCode::SEND_BATCH_MESSAGE);
    let bodies: Vec<_> = ringmq_protocol::batch::BatchEntries::new(&requests[0].body)
        .map(|entry| entry.expect("an entry").body.to_vec())
        .collect();
    assert_eq!(bodies, [b"x", b"y"]);
}

#[tokio::test]
async fn long_bodies_are_compressed_if_that_helps() {
    let broker = broker(ResponseCode::SUCCESS).await;
    let (_name_server, producer) = producer(&[("a", &broker)]).await;
    producer.send(Message::new("T", vec![b'x'; 10_000])).await.expect("stored");
    producer.send(Message::new("T", vec![b'x'; 4095])).await.expect("stored");
    let requests = broker.received(RequestCode::SEND_MESSAGE_V2);
    assert!(requests[0].body.len() < 1000);
    assert_eq!(requests[0].ext("f"), Some("769"), "COMPRESSED and ZLIB");
    let body = ringmq_protocol::message::decompress(Compression::Zlib, &requests[0].body, 10_000);
    assert_eq!(body, Ok(vec![b'x'; 10_000]));
    assert_eq!((requests[1].body.len(), requests[1].ext("f")), (4095, Some("0")));
}

#[tokio::test]
async fn what_no_broker_would_take_is_not_sent() {
    let broker = broker(ResponseCode::SUCCESS).await;
    let (_name_server, producer) = producer(&[("a", &broker)]).await;
    let illegal = [
        Message::new("T", ""),
        Message::new("T", vec![0; BODY_BYTES_MAX + 1]),
        Message::new("no spaces", "x"),
        Message::new("SCHEDULE_TOPIC_XXXX", "x"),
        Message::new("T", "x").with("long", &"v".repeat(40_000)),
        Message::new("T", "x").with("separator", "\u{1}"),
    ];
    for message in illegal {
        let topic = message.topic.clone();
        assert!(matches!(producer.send(message).await, Err(SendError::Illegal(_))), "{topic}");
    }
    assert!(matches!(producer.send_batch(Vec::new()).await, Err(SendError::Illegal(_))));
    let two_topics = vec![Message::new("T", "x"), Message::new("U", "x")];
    assert!(matches!(producer.send_batch(two_topics).await, Err(SendError::Illegal(_))));
    let too_much = vec![Message::new("T", vec![0; 3_000_000]); 2];
    assert!(matches!(producer.send_batch(too_much).await, Err(SendError::Illegal(_))));
    assert!(broker.received(RequestCode::SEND_MESSAGE_V2).is_empty());
}

#[test]
fn a_key_has_the_queue_that_java_gives_it() {
    let queues: Vec<MessageQueue> = (0..4).map(|id| MessageQueue::new("T", "a", id)).collect();
    let id = |key: &str| queue_of_key(&queues, key).map(|queue| queue.queue_id);
    // "TagA".hashCode() is 2598919; that of the other is Integer.MIN_VALUE, which has no absolute value.
    assert_eq!(id("TagA"), Some(3));
    assert_eq!(id("polygenelubricants"), Some(0));
    assert_eq!(queue_of_key(&[], "TagA"), None);
}

/// Adds a property to each message, and notes what became of it.
#[derive(Clone, Default)]
struct Noted(Arc<std::sync::Mutex<Vec<(usize, bool)>>>);

impl crate::Hook for Noted {
    fn before_send(&self, group: &str, message: &mut Message) {
        message.set("from", group);
    }

    fn after_send(&self, event: &SendEvent<'_>) {
        assert_eq!((event.group, event.topic), ("pg", "T"));
        self.0.lock().expect("unpoisoned").push((event.messages, event.outcome.is_ok()));
    }
}

#[tokio::test]
async fn sends_are_counted_and_hooked() {
    let broker = broker(ResponseCode::SUCCESS).await;
    let refusing = self::broker(ResponseCode::MESSAGE_ILLEGAL).await;
    let noted = Noted::default();
    for server in [&broker, &refusing] {
        let name_server = name_server(&[("a", server.address())]).await;
        let builder = Client::builder(&*name_server.address()).hook(noted.clone());
        let client = builder.build().await.expect("a client");
        let producer =
            client.producer("pg").send_timeout(Duration::from_secs(20)).build().expect("a producer");
        let single = producer.send(Message::new("T", "four")).await;
        let batch = producer.send_batch(vec![Message::new("T", "a"), Message::new("T", "b")]).await;
        assert_eq!(single.is_ok(), batch.is_ok());
        let metrics = client.metrics();
        let sends = &metrics.sends[0];
        let counts = if single.is_ok() { (3, 0) } else { (0, 3) };
        assert_eq!((&*sends.group, &*sends.topic, (sends.sent, sends.failed)), ("pg", "T", counts));
        assert_eq!((sends.latency.count(), sends.bytes > 4), (2, single.is_ok()));
    }
    assert_eq!(*noted.0.lock().expect("unpoisoned"), [(1, true), (2, true), (1, false), (2, false)]);
    let sent = &broker.received(RequestCode::SEND_MESSAGE_V2)[0];
    let properties =
        ringmq_protocol::properties::Properties::new(sent.ext("i").expect("properties").as_bytes());
    assert_eq!(properties.get("from"), Some("pg"));
}
