use ringmq_protocol::code::{RequestCode, ResponseCode};

use super::*;
use crate::fake::{FakeServer, group_broker, name_server};

const LONG: Duration = Duration::from_secs(20);

async fn setup(bodies: &'static [&'static str]) -> (FakeServer, FakeServer, Client) {
    let broker = group_broker(bodies, ResponseCode::SUCCESS).await;
    let name_server = name_server(&[("a", broker.address())]).await;
    let client = Client::new(&*name_server.address()).await.expect("a client");
    (broker, name_server, client)
}

fn builder(client: &Client) -> PullConsumerBuilder {
    client.pull_consumer("g").consume_from(ConsumeFrom::FirstOffset)
}

fn queue() -> MessageQueue {
    MessageQueue::new("T", "a", 0)
}

fn bodies(batch: &Batch) -> Vec<&[u8]> {
    batch.messages.iter().map(|message| &*message.message.body).collect()
}

#[tokio::test]
async fn a_member_of_a_group_reads_and_commits() {
    let (broker, _name_server, client) = setup(&["x", "y"]).await;
    let mut consumer = builder(&client).subscribe("T", "*").build().await.expect("a consumer");
    consumer.assigned().await;
    assert_eq!(consumer.assignment(), [queue()]);
    let batch = consumer.poll(LONG).await.expect("a batch");
    assert_eq!((bodies(&batch), batch.next), (vec![&b"x"[..], b"y"], QueueOffset(2)));
    consumer.commit().await.expect("committed");
    consumer.commit().await.expect("nothing to commit");
    let commits = broker.received(RequestCode::UPDATE_CONSUMER_OFFSET);
    assert_eq!(commits.len(), 1);
    assert_eq!(commits[0].ext("commitOffset"), Some("2"));
    consumer.shutdown().await;
    assert_eq!(broker.received(RequestCode::UNREGISTER_CLIENT).len(), 1);
}

/// The broker of the test ignores the filter, as one does for tags with equal hashes.
#[tokio::test]
async fn tags_are_compared_here_too() {
    let (_broker, _name_server, client) = setup(&["x", "y", "z"]).await;
    let mut consumer = builder(&client).assign([queue()], "z || x").build().await.expect("a consumer");
    let batch = consumer.poll(LONG).await.expect("a batch");
    assert_eq!((bodies(&batch), batch.next), (vec![&b"x"[..], b"z"], QueueOffset(3)));
}

/// L3
#[tokio::test]
async fn a_seek_forgets_what_was_fetched() {
    let (broker, _name_server, client) = setup(&["x", "y"]).await;
    let mut consumer = builder(&client).assign([queue()], "*").build().await.expect("a consumer");
    // The second pull shows that the batch of the first one is fetched.
    while broker.received(RequestCode::PULL_MESSAGE).len() < 2 {
        tokio::task::yield_now().await;
    }
    consumer.seek(&queue(), QueueOffset(1)).await.expect("assigned");
    let batch = consumer.poll(LONG).await.expect("a batch");
    assert_eq!(bodies(&batch), [b"y"]);
    assert_eq!(consumer.position(&queue()), Some(QueueOffset(2)));
    assert!(consumer.seek(&MessageQueue::new("T", "a", 1), QueueOffset(0)).await.is_err());
}

#[tokio::test]
async fn a_stream_gives_message_by_message() {
    let (_broker, _name_server, client) = setup(&["x", "y"]).await;
    let mut consumer = builder(&client).assign([queue()], "*").build().await.expect("a consumer");
    let mut stream = consumer.stream();
    for expected in ["x", "y"] {
        let next = poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await.expect("a message");
        assert_eq!(&*next.message.body, expected.as_bytes());
    }
}

#[tokio::test]
async fn a_paused_queue_is_not_pulled() {
    let (broker, _name_server, client) = setup(&["x"]).await;
    let mut consumer = builder(&client).assign([queue()], "*").build().await.expect("a consumer");
    // Tasks of this runtime run only while this one waits, so the pause comes before the first pull.
    consumer.pause(&queue()).expect("assigned");
    assert!(consumer.poll(Duration::from_millis(20)).await.is_none());
    assert!(broker.received(RequestCode::PULL_MESSAGE).is_empty());
    consumer.resume(&queue()).expect("assigned");
    assert!(consumer.poll(LONG).await.is_some());
}

#[tokio::test]
async fn a_consumer_needs_something_to_consume() {
    let (_broker, _name_server, client) = setup(&[]).await;
    assert!(matches!(builder(&client).build().await, Err(ConsumeError::Config(_))));
    let first = builder(&client).subscribe("T", "*").build().await.expect("a consumer");
    let second = builder(&client).subscribe("T", "*").build().await;
    assert!(matches!(second, Err(ConsumeError::Config(_))), "one group, one consumer");
    drop(first);
    assert!(builder(&client).subscribe("T", "*").build().await.is_ok());
}

/// L2: what was polled last may still be under way, and is committed only when more is asked for.
#[tokio::test]
async fn auto_commit_stays_behind_what_is_under_way() {
    let (broker, _name_server, client) = setup(&["x", "y"]).await;
    let commits = || broker.received(RequestCode::UPDATE_CONSUMER_OFFSET);
    let interval = Duration::from_millis(10);
    let mut consumer = builder(&client)
        .assign([queue()], "*")
        .auto_commit(Some(interval))
        .build()
        .await
        .expect("a consumer");
    consumer.poll(LONG).await.expect("a batch");
    while commits().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(commits().iter().all(|commit| commit.ext("commitOffset") == Some("0")));
    assert!(consumer.poll(Duration::ZERO).await.is_none());
    while commits().last().and_then(|commit| commit.ext("commitOffset").map(str::to_string)).as_deref()
        != Some("2")
    {
        tokio::task::yield_now().await;
    }
    consumer.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_commits_what_was_polled_if_commits_are_automatic() {
    for automatic in [false, true] {
        let (broker, _name_server, client) = setup(&["x", "y"]).await;
        let builder = builder(&client).subscribe("T", "*").auto_commit(automatic.then_some(LONG));
        let mut consumer = builder.build().await.expect("a consumer");
        consumer.poll(LONG).await.expect("a batch");
        consumer.shutdown().await;
        let commits = broker.received(RequestCode::UPDATE_CONSUMER_OFFSET);
        let offsets: Vec<_> = commits.iter().filter_map(|commit| commit.ext("commitOffset")).collect();
        assert_eq!(offsets, if automatic { vec!["2"] } else { vec![] });
    }
}

#[tokio::test]
async fn seeks_to_both_ends() {
    let (_broker, _name_server, client) = setup(&["x", "y"]).await;
    let mut consumer = builder(&client).assign([queue()], "*").build().await.expect("a consumer");
    consumer.seek_to_end(&queue()).await.expect("assigned");
    assert_eq!(consumer.position(&queue()), Some(QueueOffset(2)));
    assert!(consumer.poll(Duration::from_millis(20)).await.is_none());
    consumer.pause(&queue()).expect("assigned");
    consumer.seek_to_begin(&queue()).await.expect("assigned");
    assert!(consumer.poll(Duration::from_millis(20)).await.is_none(), "a seek does not end a pause");
    consumer.resume(&queue()).expect("assigned");
    assert_eq!(bodies(&consumer.poll(LONG).await.expect("a batch")), [b"x", b"y"]);
}
