use ringmq_protocol::body::MessageModel;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::properties::names;

use super::*;
use crate::fake::{FakeServer, group_broker, group_broker_but, name_server};

/// Orderly, broadcasting, and what brokers ask.
mod modes;

const GROUP: &str = "g";

async fn client(broker: &FakeServer) -> (FakeServer, Client) {
    let name_server = name_server(&[("a", broker.address())]).await;
    let client = Client::new(&*name_server.address()).await.expect("a client");
    (name_server, client)
}

fn builder(client: &Client) -> PushConsumerBuilder {
    client.push_consumer(GROUP).subscribe("T", "*").consume_from(ConsumeFrom::FirstOffset)
}

async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), met).await.expect("what is waited for happens");
}

/// The offset of topic T that the group stored last.
fn committed(broker: &FakeServer) -> Option<String> {
    let of_topic = |request: &&RemotingCommand| request.ext("topic") == Some("T");
    let commits = broker.received(RequestCode::UPDATE_CONSUMER_OFFSET);
    commits.iter().rfind(of_topic).and_then(|commit| commit.ext("commitOffset")).map(str::to_string)
}

#[tokio::test]
async fn what_was_handled_is_stored_as_offset() {
    let broker = group_broker(&["x", "y", "z"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (handled, mut handling) = mpsc::unbounded_channel();
    let consumer = builder(&client)
        .concurrency(1)
        .start(move |message| {
            let sent = handled.send(message.message.body);
            async move { sent }
        })
        .await
        .expect("a consumer");
    for expected in ["x", "y", "z"] {
        assert_eq!(
            handling.recv().await.as_deref(),
            Some(expected.as_bytes()),
            "one handler at a time keeps the order"
        );
    }
    consumer.shutdown().await;
    assert_eq!(committed(&broker).as_deref(), Some("3"));
    let left = broker.received(RequestCode::UNREGISTER_CLIENT);
    assert_eq!(left[0].ext("consumerGroup"), Some(GROUP));
}

/// P4
#[tokio::test]
async fn an_unfinished_message_holds_the_offset() {
    let broker = group_broker(&["x", "stuck", "z"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (handled, mut handling) = mpsc::unbounded_channel();
    let consumer = builder(&client)
        .shutdown_wait(Duration::from_millis(1))
        .start(move |message| {
            let handled = handled.clone();
            async move {
                if &*message.message.body == b"stuck" {
                    std::future::pending::<()>().await;
                }
                handled.send(())
            }
        })
        .await
        .expect("a consumer");
    for _ in 0..2 {
        handling.recv().await;
    }
    consumer.shutdown().await;
    assert_eq!(committed(&broker).as_deref(), Some("1"));
}

async fn consume_one_that_fails(broker: &FakeServer, handled: impl Fn() -> bool, panics: bool) {
    let (_name_server, client) = client(broker).await;
    let consumer = builder(&client)
        .start(move |_| async move {
            assert!(!panics, "this handler panics on purpose");
            ConsumeResult::ReconsumeLater
        })
        .await
        .expect("a consumer");
    until(handled).await;
    consumer.shutdown().await;
}

#[tokio::test]
async fn what_fails_goes_back_to_its_broker() {
    for panics in [false, true] {
        let broker = group_broker(&["x"], ResponseCode::SUCCESS).await;
        let sent_back = || broker.received(RequestCode::CONSUMER_SEND_MSG_BACK);
        consume_one_that_fails(&broker, || !sent_back().is_empty(), panics).await;
        assert_eq!((sent_back()[0].ext("group"), sent_back()[0].ext("offset")), (Some(GROUP), Some("0")));
        assert_eq!(committed(&broker).as_deref(), Some("1"), "a broker has it, so it is finished here");
        assert!(broker.received(RequestCode::SEND_MESSAGE_V2).is_empty());
    }
}

#[tokio::test]
async fn what_cannot_go_back_is_published_to_the_retry_topic() {
    let broker = group_broker(&["x"], ResponseCode::REQUEST_CODE_NOT_SUPPORTED).await;
    let published = || broker.received(RequestCode::SEND_MESSAGE_V2);
    consume_one_that_fails(&broker, || !published().is_empty(), false).await;
    let request = &published()[0];
    let fields = ["a", "b", "j", "l"].map(|letter| request.ext(letter).unwrap_or_default());
    assert_eq!(fields, ["CLIENT_INNER_PRODUCER", "%RETRY%g", "1", "16"]);
    assert_eq!(&*request.body, b"x");
    let encoded = request.ext("i").unwrap_or_default().as_bytes();
    let properties = ringmq_protocol::properties::Properties::new(encoded);
    let values = [names::RETRY_TOPIC, names::DELAY_TIME_LEVEL, names::TAGS].map(|name| properties.get(name));
    assert_eq!(values, [Some("T"), Some("3"), Some("x")]);
    assert_eq!(committed(&broker).as_deref(), Some("1"));
}

/// The one message comes again at the level that its handler chose, or not at all.
#[tokio::test]
async fn a_handler_chooses_when_a_message_comes_again() {
    let level = DelayLevel::new(5).expect("a level");
    for (result, wanted) in [(ConsumeResult::ReconsumeAfter(level), "5"), (ConsumeResult::DeadLetter, "-1")] {
        let broker = group_broker(&["x"], ResponseCode::SUCCESS).await;
        let (_name_server, client) = client(&broker).await;
        let start = builder(&client).max_reconsume_times(7).start(move |_| async move { result });
        let consumer = start.await.expect("a consumer");
        let sent_back = || broker.received(RequestCode::CONSUMER_SEND_MSG_BACK);
        until(|| !sent_back().is_empty()).await;
        consumer.shutdown().await;
        let fields =
            ["delayLevel", "maxReconsumeTimes"].map(|name| sent_back()[0].ext(name).map(str::to_string));
        assert_eq!(fields, [Some(wanted.to_string()), Some("7".to_string())]);
    }
}

#[test]
fn levels_by_their_delays() {
    let level = |seconds| DelayLevel::at_least(Duration::from_secs(seconds)).get();
    assert_eq!([0, 1, 2, 5, 61, 7200, 7201].map(level), [1, 1, 2, 2, 6, 18, 18]);
    assert_eq!(DelayLevel::new(0), None);
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_cancelled_and_its_message_sent_back() {
    let broker = group_broker(&["x"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (dropped, mut dropping) = mpsc::unbounded_channel::<()>();
    let consumer = builder(&client)
        .consume_timeout(Duration::from_millis(1))
        .start(move |_| {
            let dropped = dropped.clone();
            async move {
                std::future::pending::<()>().await;
                dropped.send(())
            }
        })
        .await
        .expect("a consumer");
    until(|| !broker.received(RequestCode::CONSUMER_SEND_MSG_BACK).is_empty()).await;
    consumer.shutdown().await;
    assert_eq!(committed(&broker).as_deref(), Some("1"));
    drop(client);
    assert_eq!(dropping.recv().await, None, "the handler is gone");
}

#[tokio::test]
async fn a_batch_is_what_there_is_up_to_its_bound() {
    let broker = group_broker(&["v", "w", "x", "y", "z"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (handled, mut handling) = mpsc::unbounded_channel();
    let consumer = builder(&client)
        .concurrency(1)
        .start_batches(3, move |messages| {
            let sent =
                handled.send(messages.into_iter().map(|message| message.message.body).collect::<Vec<_>>());
            async move { sent }
        })
        .await
        .expect("a consumer");
    let mut all = Vec::new();
    while all.len() < 5 {
        let batch = handling.recv().await.expect("a batch");
        assert!(!batch.is_empty() && batch.len() <= 3, "{batch:?}");
        all.extend(batch);
    }
    assert_eq!(all, ["v", "w", "x", "y", "z"]);
    consumer.shutdown().await;
    assert_eq!(committed(&broker).as_deref(), Some("5"));
}

/// Nothing more is pulled while the first unfinished message is far behind.
#[tokio::test]
async fn the_span_of_a_queue_is_bounded() {
    let broker = group_broker(&["stuck", "y", "z"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (release, released) = watch::channel(false);
    let (handled, mut handling) = mpsc::unbounded_channel();
    let consumer = builder(&client)
        .queue_span_max(1)
        .start(move |message| {
            let (mut released, handled) = (released.clone(), handled.clone());
            async move {
                if &*message.message.body == b"stuck" {
                    drop(released.wait_for(|released| *released).await);
                }
                handled.send(message.message.body)
            }
        })
        .await
        .expect("a consumer");
    let state = || {
        lock(&consumer.inner.queues)
            .iter()
            .find(|(queue, _)| queue.topic == "T")
            .map(|(_, r)| r.state.clone())
    };
    for _ in 0..2 {
        handling.recv().await;
    }
    let state = state().expect("a queue");
    until(|| lock(&state.process).count() == 1).await;
    assert!(consumer.inner.is_full(&lock(&state.process)), "though only one message is unfinished");
    release.send_replace(true);
    handling.recv().await;
    until(|| !consumer.inner.is_full(&lock(&state.process))).await;
    consumer.shutdown().await;
}

#[derive(Clone, Default)]
struct Noted(Arc<Mutex<Vec<String>>>);

impl crate::Hook for Noted {
    fn before_consume(&self, event: &crate::ConsumeEvent<'_>) {
        lock(&self.0).push(format!("before {}", event.messages[0].queue_offset));
    }

    fn after_consume(&self, event: &crate::ConsumeEvent<'_>, succeeded: bool, _: Duration) {
        lock(&self.0).push(format!("after {} {succeeded}", event.messages[0].queue_offset));
    }
}

#[tokio::test]
async fn handlers_are_counted_and_hooked() {
    for orderly in [false, true] {
        let broker = group_broker(&["x", "fails"], ResponseCode::SUCCESS).await;
        let name_server = name_server(&[("a", broker.address())]).await;
        let noted = Noted::default();
        let client = Client::builder(&*name_server.address()).hook(noted.clone());
        let client = client.build().await.expect("a client");
        let builder = builder(&client).concurrency(1).max_reconsume_times(0);
        let handler = |message: MessageExt| async move {
            if &*message.message.body == b"fails" { Err("on purpose") } else { Ok(()) }
        };
        let started =
            if orderly { builder.start_orderly(handler).await } else { builder.start(handler).await };
        let consumer = started.expect("a consumer");
        until(|| lock(&noted.0).len() == 4).await;
        consumer.shutdown().await;
        assert_eq!(*lock(&noted.0), ["before 0", "after 0 true", "before 1", "after 1 false"]);
        let metrics = client.metrics();
        let of_topic = metrics.consumes.iter().find(|metrics| metrics.topic == "T").expect("metrics");
        let counts = [of_topic.received, of_topic.received_bytes, of_topic.succeeded, of_topic.failed];
        assert_eq!((&*of_topic.group, counts), (GROUP, [2, 6, 1, 1]));
        assert_eq!((of_topic.receiving.count(), of_topic.handling.count()), (1, 2));
    }
}
