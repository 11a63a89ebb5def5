use bytes::Bytes;
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::types::StoreTimestamp;

use super::*;
use crate::fake::{FakeServer, name_server, respond, stored};

const INVISIBLE: Duration = Duration::from_secs(60);
const RETRY_RECEIPT: &str = "4 1000 60000 2 1 a 0 4";

/// A broker that lends these records once each, one pop after the other, and says that it has something as long as it
/// does; else its notifications are answered as `idle` says.
async fn broker(
    lent: Vec<Vec<u8>>,
    idle: fn(&RemotingCommand) -> Vec<RemotingCommand>,
) -> (FakeServer, Arc<Mutex<Vec<Vec<u8>>>>) {
    let lent = Arc::new(Mutex::new(lent));
    let left = lent.clone();
    let server = FakeServer::start(move |request| {
        let success =
            |fields: &dyn Fields, body: Vec<u8>| respond(request, ResponseCode::SUCCESS, fields, body);
        match RequestCode(request.code) {
            RequestCode::POP_MESSAGE => {
                let mut left = lock(&left);
                if left.is_empty() {
                    return respond(request, ResponseCode::POLLING_TIMEOUT, &(), "");
                }
                let fields = PopMessageResponse {
                    pop_time: 1000,
                    invisible_time: 60_000,
                    revive_qid: 2,
                    rest_num: left.len() as i64,
                    start_offset_info: Some("0 0 7;1 0 4".into()),
                    msg_offset_info: None,
                    order_count_info: None,
                };
                success(&fields, left.remove(0))
            }
            RequestCode::NOTIFICATION if lock(&left).is_empty() => idle(request),
            RequestCode::NOTIFICATION => {
                success(&NotificationResponse { has_msg: true, polling_full: None }, Vec::new())
            }
            RequestCode::CHANGE_MESSAGE_INVISIBLETIME => success(
                &ChangeInvisibleTimeResponse { pop_time: 2000, invisible_time: 5000, revive_qid: 3 },
                Vec::new(),
            ),
            _ if request.is_oneway() => Vec::new(),
            _ => success(&(), Vec::new()),
        }
    })
    .await;
    (server, lent)
}

fn held(_: &RemotingCommand) -> Vec<RemotingCommand> {
    Vec::new()
}

fn record(at: usize, tag: &str) -> Vec<u8> {
    stored("T", &[(names::TAGS, tag)], at, StoreTimestamp(2), tag)
}

async fn consumer(brokers: &[(&str, &FakeServer)], wait: Duration) -> (FakeServer, Client, SimpleConsumer) {
    let brokers: Vec<_> = brokers.iter().map(|(name, server)| (*name, server.address())).collect();
    let name_server = name_server(&brokers).await;
    let client = Client::new(&*name_server.address()).await.expect("a client");
    let builder = client.simple_consumer("g").subscribe("T", "x || y").wait(wait);
    let consumer = builder.build().await.expect("a consumer");
    (name_server, client, consumer)
}

const LONG: Duration = Duration::from_secs(60);

fn texts(request: &RemotingCommand, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| request.ext(name).unwrap_or("absent").to_string()).collect()
}

#[tokio::test]
async fn what_was_received_is_acknowledged_by_its_receipt() {
    let retried =
        stored("T", &[(names::TAGS, "y"), (names::POP_CK, RETRY_RECEIPT)], 4, StoreTimestamp(2), "y");
    let (broker, _) = broker(vec![[record(7, "x"), record(9, "x")].concat(), retried], held).await;
    let (_name_server, client, consumer) = consumer(&[("a", &broker)], LONG).await;
    let mut received = consumer.receive(8, INVISIBLE).await.expect("messages");
    received.extend(consumer.receive(8, INVISIBLE).await.expect("messages"));
    let receipts: Vec<_> = received.iter().map(Received::receipt).collect();
    assert_eq!(receipts, ["7 1000 60000 2 0 a 0 7", "7 1000 60000 2 0 a 0 9", RETRY_RECEIPT]);
    let pop = &broker.received(RequestCode::POP_MESSAGE)[0];
    let fields =
        texts(pop, &["queueId", "maxMsgNums", "invisibleTime", "pollTime", "initMode", "exp", "order"]);
    assert_eq!(fields, ["-1", "8", "60000", "0", "1", "x || y", "false"]);

    for message in &received {
        consumer.ack(message).await.expect("acknowledged");
    }
    let acks = broker.received(RequestCode::ACK_MESSAGE);
    let acks: Vec<_> =
        acks.iter().map(|ack| texts(ack, &["topic", "queueId", "offset", "extraInfo"])).collect();
    assert_eq!(acks[1], ["T", "0", "9", "7 1000 60000 2 0 a 0 9"]);
    assert_eq!(acks[2], ["%RETRY%g_T", "0", "4", RETRY_RECEIPT], "where the broker keeps it");
    let metrics = client.metrics();
    assert_eq!((metrics.consumes[0].received, metrics.consumes[0].succeeded), (3, 3));
    consumer.shutdown().await;
    assert_eq!(broker.received(RequestCode::UNREGISTER_CLIENT).len(), 1);
}

#[tokio::test]
async fn many_are_acknowledged_with_one_request_per_broker() {
    let retried =
        stored("T", &[(names::TAGS, "y"), (names::POP_CK, RETRY_RECEIPT)], 4, StoreTimestamp(2), "y");
    let (first, _) = broker(vec![[record(7, "x"), record(9, "x"), retried].concat()], held).await;
    let (second, _) = broker(vec![record(8, "x")], held).await;
    let (_name_server, _client, consumer) = consumer(&[("a", &first), ("b", &second)], LONG).await;
    let mut received = Vec::new();
    while received.len() < 4 {
        received.extend(consumer.receive(8, INVISIBLE).await.expect("messages"));
    }
    consumer.ack_all(&received).await.expect("acknowledged");
    let body = |server: &FakeServer| {
        let requests = server.received(RequestCode::BATCH_ACK_MESSAGE);
        assert_eq!(requests.len(), 1);
        BatchAckBody::from_json(&requests[0].body).expect("acknowledgements")
    };
    let acks = body(&first).acks;
    let of_topic: Vec<_> =
        acks.iter().map(|ack| (&*ack.retry, ack.start_offset, ack.offsets.iter().collect())).collect();
    assert_eq!(of_topic, [("0", 7, vec![0, 2]), ("1", 4, vec![0])]);
    assert_eq!((body(&second).broker_name.as_str(), body(&second).acks[0].topic.as_str()), ("b", "T"));
}

#[tokio::test]
async fn a_changed_message_has_a_new_receipt() {
    let (broker, _) = broker(vec![[record(7, "x"), record(9, "y")].concat()], held).await;
    let (_name_server, _client, consumer) = consumer(&[("a", &broker)], LONG).await;
    let mut received = consumer.receive(8, INVISIBLE).await.expect("messages");
    let message = &mut received[1];
    consumer.change_invisible(message, Duration::from_secs(5)).await.expect("changed");
    assert_eq!(message.receipt(), "9 2000 5000 3 0 a 0 9");
    consumer.ack(message).await.expect("acknowledged");
    let request = &broker.received(RequestCode::CHANGE_MESSAGE_INVISIBLETIME)[0];
    let fields = texts(request, &["extraInfo", "offset", "invisibleTime", "topic"]);
    assert_eq!(fields, ["7 1000 60000 2 0 a 0 9", "9", "5000", "T"]);
    let acks = broker.received(RequestCode::ACK_MESSAGE);
    assert_eq!(acks[0].ext("extraInfo"), Some("9 2000 5000 3 0 a 0 9"));
}

/// M3: the broker of this test ignores the filter, as one does for tags with equal hashes.
#[tokio::test]
async fn what_is_not_wanted_does_not_come_again() {
    let (broker, _) = broker(vec![[record(7, "x"), record(8, "z")].concat()], held).await;
    let (_name_server, _client, consumer) = consumer(&[("a", &broker)], LONG).await;
    let received = consumer.receive(8, INVISIBLE).await.expect("messages");
    assert_eq!((received.len(), &*received[0].message.message.body), (1, &b"x"[..]));
    let body = &broker.received(RequestCode::BATCH_ACK_MESSAGE)[0].body;
    let acks = BatchAckBody::from_json(body).expect("acknowledgements").acks;
    assert_eq!(acks[0].offsets.iter().collect::<Vec<_>>(), [1]);
}

/// M1 and M2
#[tokio::test]
async fn who_waits_is_woken_by_a_notification() {
    let (broker, lent) = broker(Vec::new(), |request| {
        let answer = NotificationResponse { has_msg: false, polling_full: None };
        respond(request, ResponseCode::SUCCESS, &answer, "")
    })
    .await;
    let (_name_server, _client, consumer) = consumer(&[("a", &broker)], LONG).await;
    let receive = consumer.receive(8, INVISIBLE);
    tokio::pin!(receive);
    let notifications = || broker.received(RequestCode::NOTIFICATION).len();
    tokio::select! {
        _ = &mut receive => panic!("there is nothing"),
        () = async {
            while notifications() < 3 {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    lock(&lent).push(record(7, "x"));
    assert_eq!(receive.await.expect("a message").len(), 1);
    assert!(broker.received(RequestCode::POP_MESSAGE).iter().all(|pop| pop.ext("pollTime") == Some("0")));
}

#[tokio::test]
async fn nothing_within_the_wait_is_nothing() {
    let (broker, _) = broker(Vec::new(), held).await;
    let (_name_server, _client, consumer) = consumer(&[("a", &broker)], Duration::from_millis(20)).await;
    for _ in 0..3 {
        assert!(consumer.receive(8, INVISIBLE).await.expect("an answer").is_empty());
    }
    assert_eq!(broker.received(RequestCode::NOTIFICATION).len(), 1, "one waits, however often it is asked");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let (broker, _) = broker(vec![b"nonsense".to_vec()], held).await;
    let (_name_server, client, consumer) = consumer(&[("a", &broker)], LONG).await;
    let refused = |result: Result<_, ConsumeError>| result.expect_err("refused").to_string();
    assert!(refused(consumer.receive(33, INVISIBLE).await).contains("1 to 32"));
    assert!(refused(consumer.receive(1, Duration::ZERO).await).contains("at least 1 ms"));
    assert!(refused(consumer.receive(1, INVISIBLE).await).contains("POP_MESSAGE"));
    let builder = client.simple_consumer("h").subscribe("T", "*").consume_from(ConsumeFrom::Timestamp(1));
    assert!(matches!(builder.build().await, Err(ConsumeError::Config(_))));
    assert!(matches!(
        client.simple_consumer("g").subscribe("T", "*").build().await,
        Err(ConsumeError::Config(_))
    ));
    assert!(start_offsets("0 1 2;1 0 x").is_err() && start_offsets("9 1 2").is_err());

    let refusing = FakeServer::start(|request| match RequestCode(request.code) {
        RequestCode::POP_MESSAGE => respond(request, ResponseCode::NO_PERMISSION, &(), Bytes::new()),
        _ => respond(request, ResponseCode::SUCCESS, &(), Bytes::new()),
    })
    .await;
    let (_name_server, _client, consumer) = self::consumer(&[("a", &refusing)], LONG).await;
    assert!(refused(consumer.receive(1, INVISIBLE).await).contains("NO_PERMISSION"));
}
