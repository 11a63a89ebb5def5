use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::frame::RemotingCommand;

use super::*;
use crate::fake::{FakeServer, group_broker, name_server};

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
    while !condition() {
        tokio::task::yield_now().await;
    }
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
