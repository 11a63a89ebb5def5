//! Consumer groups of the native client: every message, though members come, go and crash.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ringmq_client::{
    Client, ConsumeFrom, ConsumeResult, DelayLevel, Message, MessageExt, MessageQueue, PushConsumer,
    QueueOffset,
};
use ringmq_protocol::body::{Body, ConsumeMessageDirectlyResult, ConsumerRunningInfo};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Fields, RemotingCommand};
use ringmq_protocol::request::{
    ConsumeMessageDirectlyRequest, GetConsumerRunningInfoRequest, InvokeBrokerToResetOffsetRequest,
};
use ringmq_tests::{Broker, Options, PATIENCE, Raw, TempDir};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

const OFTEN: Duration = Duration::from_millis(20);

pub(crate) async fn client(broker: &Broker) -> Client {
    Client::new(broker.name_server()).await.unwrap()
}

/// Sends the numbers, as text, each to the next queue of those given.
pub(crate) async fn send_numbers(client: &Client, queues: &[MessageQueue], numbers: std::ops::Range<u32>) {
    let producer = client.producer("senders").build().unwrap();
    for number in numbers {
        let queue = &queues[number as usize % queues.len()];
        producer.send_to(queue, Message::new(&queue.topic, number.to_string())).await.unwrap();
    }
    producer.shutdown().await;
}

/// A topic with this many queues on each shard.
pub(crate) async fn topic(client: &Client, topic: &str, queues: u32) -> Vec<MessageQueue> {
    let settings = ringmq_client::TopicSettings {
        queues,
        readable: true,
        writable: true,
        attributes: std::collections::BTreeMap::new(),
    };
    client.admin().create_topic(topic, settings, None).await.unwrap();
    client.admin().route(topic).await.unwrap().writable.clone()
}

pub(crate) fn number(message: &MessageExt) -> u32 {
    std::str::from_utf8(&message.message.body).unwrap().parse().unwrap()
}

pub(crate) async fn next<T>(from: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, from.recv()).await.expect("a message in time").expect("handlers run")
}

/// Asks again until it is so.
pub(crate) async fn until<Fut: Future<Output = bool>>(what: &str, condition: impl Fn() -> Fut) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(OFTEN).await;
    }
}

/// The numbers in a dead letter topic, once there are so many.
pub(crate) async fn dead_letters(client: &Client, group: &str, count: usize) -> Vec<u32> {
    let topic = format!("%DLQ%{group}");
    // Each shard makes the topic with its first dead letter.
    until("so many dead letters", async || {
        let queues = client.admin().queues(&topic).await.unwrap_or_default();
        queues.iter().map(|status| status.max.0).sum::<u64>() >= count as u64
    })
    .await;
    let queues = client.admin().route(&topic).await.unwrap().readable.clone();
    let builder = client.pull_consumer("undertakers").consume_from(ConsumeFrom::FirstOffset);
    let mut consumer = builder.assign(queues, "*").build().await.unwrap();
    let mut numbers = Vec::new();
    while numbers.len() < count {
        numbers.extend(consumer.poll(PATIENCE).await.expect("dead letters").messages.iter().map(number));
    }
    consumer.shutdown().await;
    numbers.sort_unstable();
    numbers
}

/// A broker whose messages come again soon.
pub(crate) fn soon() -> Broker {
    let arguments = ["--message-delay-level", "50ms"].map(Into::into).into();
    Broker::start_with(Options { shards: 2, arguments, ..Options::default() })
}

#[tokio::test]
async fn what_fails_comes_again_and_at_last_becomes_a_dead_letter() {
    let broker = soon();
    let client = client(&broker).await;
    let queues = topic(&client, "Fails", 2).await;
    send_numbers(&client, &queues, 0..8).await;
    let (handled, mut handling) = mpsc::unbounded_channel();
    let consumer = client
        .push_consumer("failing")
        .subscribe("Fails", "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .max_reconsume_times(2)
        .start(move |message| {
            assert_eq!(message.message.topic, "Fails", "also when it comes again");
            let (number, times) = (number(&message), message.reconsume_times);
            _ = handled.send((number, times));
            async move {
                match number {
                    0 | 1 => ConsumeResult::ReconsumeLater,
                    2 => ConsumeResult::DeadLetter,
                    3 if times == 0 => ConsumeResult::ReconsumeAfter(DelayLevel::at_least(Duration::ZERO)),
                    _ => ConsumeResult::Success,
                }
            }
        })
        .await
        .unwrap();
    assert_eq!(dead_letters(&client, "failing", 3).await, [0, 1, 2]);
    let mut times = std::collections::BTreeMap::<u32, Vec<i32>>::new();
    while times.len() < 8 || times[&3].len() < 2 {
        let (number, reconsumed) = next(&mut handling).await;
        times.entry(number).or_default().push(reconsumed);
    }
    consumer.shutdown().await;
    while let Ok((number, reconsumed)) = handling.try_recv() {
        times.entry(number).or_default().push(reconsumed);
    }
    assert_eq!((&times[&0], &times[&1]), (&vec![0, 1, 2], &vec![0, 1, 2]));
    assert_eq!((&times[&2], &times[&3], &times[&4]), (&vec![0], &vec![0, 1], &vec![0]));
}

/// A member that tells the numbers it handles, and never finishes those that `stuck` names.
async fn member(
    client: &Client,
    topic: &str,
    stuck: fn(u32) -> bool,
) -> (PushConsumer, mpsc::UnboundedReceiver<u32>, watch::Sender<bool>) {
    let (handled, handling) = mpsc::unbounded_channel();
    let (release, released) = watch::channel(false);
    let consumer = client
        .push_consumer("members")
        .subscribe(topic, "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .persist_interval(OFTEN)
        .concurrency(64)
        .start(move |message| {
            let (handled, mut released) = (handled.clone(), released.clone());
            async move {
                let number = number(&message);
                if stuck(number) && released.wait_for(|released| *released).await.is_err() {
                    std::future::pending::<()>().await;
                }
                _ = handled.send(number);
                ConsumeResult::Success
            }
        })
        .await
        .unwrap();
    (consumer, handling, release)
}

#[tokio::test]
async fn the_offset_never_passes_an_unfinished_message() {
    let broker = Broker::start(1);
    let client = client(&broker).await;
    let queues = topic(&client, "Held", 1).await;
    send_numbers(&client, &queues, 0..20).await;
    let committed = || async {
        let offsets = client.admin().group_offsets("members", "Held").await.unwrap();
        offsets[0].committed
    };

    let (consumer, mut handling, release) = member(&client, "Held", |number| number == 7).await;
    let mut handled = BTreeSet::new();
    while handled.len() < 19 {
        handled.insert(next(&mut handling).await);
    }
    assert!(!handled.contains(&7));
    until("the offset of what is unfinished", async || committed().await == Some(QueueOffset(7))).await;
    release.send_replace(true);
    assert_eq!(next(&mut handling).await, 7);
    until("the offset of the end", async || committed().await == Some(QueueOffset(20))).await;
    consumer.shutdown().await;
    assert_eq!(committed().await, Some(QueueOffset(20)));
}

#[tokio::test]
async fn a_member_that_crashes_is_replaced_and_what_it_had_begun_comes_again() {
    let broker = Broker::start(2);
    let (sender, survivor_client, crashing_client) =
        (client(&broker).await, client(&broker).await, client(&broker).await);
    let queues = topic(&sender, "Crashes", 2).await;

    let (crashing, mut crashed_handling, _hold) =
        member(&crashing_client, "Crashes", |number| number.is_multiple_of(5)).await;
    until("all queues", async || crashing.assignment().len() > queues.len()).await;
    let (survivor, mut handling, _release) = member(&survivor_client, "Crashes", |_| false).await;
    // Four queues, and those of the retry topic, between two.
    until("half of the queues", async || {
        let of_topic = |consumer: &PushConsumer| {
            consumer.assignment().iter().filter(|queue| queue.topic == "Crashes").count()
        };
        of_topic(&crashing) == 2 && of_topic(&survivor) == 2
    })
    .await;

    send_numbers(&sender, &queues, 0..40).await;
    // The one that will crash has two queues of ten, two of which are stuck in each.
    let mut begun = BTreeSet::new();
    while begun.len() < 16 {
        begun.insert(next(&mut crashed_handling).await);
    }
    drop(crashing);
    drop(crashing_client);
    let mut handled = BTreeSet::new();
    while handled.union(&begun).count() < 40 {
        handled.insert(next(&mut handling).await);
    }
    let stuck = (0..40u32).filter(|number| number.is_multiple_of(5));
    assert!(stuck.into_iter().all(|number| handled.contains(&number)), "{handled:?}");
    until("the queues of both", async || {
        survivor.assignment().iter().filter(|queue| queue.topic == "Crashes").count() == 4
    })
    .await;
    survivor.shutdown().await;
}

#[tokio::test]
async fn each_of_three_gets_what_is_broadcast() {
    let broker = Broker::start(2);
    let sender = client(&broker).await;
    let queues = topic(&sender, "News", 2).await;
    send_numbers(&sender, &queues, 0..30).await;
    let dirs = TempDir::new("broadcast");

    for (round, expected) in [(0, 0..30), (1, 30..40)] {
        if round == 1 {
            send_numbers(&sender, &queues, expected.clone()).await;
        }
        let mut members = Vec::new();
        for name in ["a", "b", "c"] {
            let client = client(&broker).await;
            let (handled, handling) = mpsc::unbounded_channel();
            let consumer = client
                .push_consumer("audience")
                .subscribe("News", "*")
                .consume_from(ConsumeFrom::FirstOffset)
                .broadcasting(dirs.path().join(name))
                .start(move |message| {
                    let number = number(&message);
                    _ = handled.send(number);
                    // What fails is dropped: it does not come again, here or elsewhere.
                    async move { if number % 10 == 3 { Err("on purpose") } else { Ok(()) } }
                })
                .await
                .unwrap();
            members.push((client, consumer, handling));
        }
        for (client, consumer, mut handling) in members {
            let mut handled = Vec::new();
            while handled.len() < expected.len() {
                handled.push(next(&mut handling).await);
            }
            consumer.shutdown().await;
            client.shutdown().await;
            handled.extend(std::iter::from_fn(|| handling.try_recv().ok()));
            handled.sort_unstable();
            assert_eq!(handled, expected.clone().collect::<Vec<_>>(), "each once");
        }
    }
}

#[tokio::test]
async fn a_pull_consumer_goes_where_it_is_sent() {
    let broker = Broker::start(1);
    let client = client(&broker).await;
    let queues = topic(&client, "Seeks", 2).await;
    send_numbers(&client, &queues, 0..20).await;
    let mut consumer = client
        .pull_consumer("seekers")
        .assign(queues.clone(), "*")
        .ignore_committed(true)
        .build()
        .await
        .unwrap();
    let [first, second] = [&queues[0], &queues[1]];
    // It began at the end.
    consumer.pause(second).unwrap();
    consumer.seek_to_begin(second).await.unwrap();
    consumer.seek(first, QueueOffset(6)).await.unwrap();
    let mut numbers = Vec::new();
    let mut times = Vec::new();
    while numbers.len() < 4 {
        let batch = consumer.poll(PATIENCE).await.expect("messages");
        assert_eq!(batch.queue, *first, "the other one is paused");
        times.extend(batch.messages.iter().map(|message| message.store_timestamp.0));
        numbers.extend(batch.messages.iter().map(number));
    }
    assert_eq!(numbers, [12, 14, 16, 18]);
    consumer.commit().await.unwrap();
    assert_eq!(consumer.committed(first).await.unwrap(), Some(QueueOffset(10)));

    // Messages of one millisecond all have the same time: the first of them is meant.
    consumer.seek_to_time(first, times[3]).await.unwrap();
    let batch = consumer.poll(PATIENCE).await.expect("messages");
    let found = &batch.messages[0];
    assert!(found.store_timestamp.0 == times[3] && number(found) <= 18, "{found:?}");

    consumer.seek_to_end(first).await.unwrap();
    consumer.resume(second).unwrap();
    let batch = consumer.poll(PATIENCE).await.expect("messages");
    assert_eq!((&batch.queue, number(&batch.messages[0])), (second, 1));
    consumer.shutdown().await;
}

/// A request of a tool, on a thread of its own as it waits.
async fn ask<F: Fields + Send + 'static>(
    address: SocketAddr,
    code: RequestCode,
    fields: F,
) -> RemotingCommand {
    let call = move || Raw::connect(address).call(code, &fields, Bytes::new());
    let answer = tokio::task::spawn_blocking(call).await.unwrap();
    assert_eq!(answer.code, ResponseCode::SUCCESS.0, "{answer:?}");
    answer
}

#[tokio::test]
async fn tools_reach_a_consumer_through_its_broker() {
    let broker = Broker::start(1);
    let client = client(&broker).await;
    let queues = topic(&client, "Asked", 1).await;
    send_numbers(&client, &queues, 0..5).await;
    let (handled, mut handling) = mpsc::unbounded_channel();
    let consumer = client
        .push_consumer("asked")
        .subscribe("Asked", "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .persist_interval(OFTEN)
        .concurrency(1)
        .start(move |message| {
            let sent = handled.send((number(&message), message.offset_message_id().to_string()));
            async move { sent }
        })
        .await
        .unwrap();
    let mut ids = Vec::new();
    for expected in 0..5 {
        let (number, id) = next(&mut handling).await;
        assert_eq!(number, expected);
        ids.push(id);
    }
    until("all is committed", async || {
        let offsets = client.admin().group_offsets("asked", "Asked").await.unwrap();
        offsets[0].committed == Some(QueueOffset(5))
    })
    .await;

    let fields = GetConsumerRunningInfoRequest {
        consumer_group: "asked".into(),
        client_id: client.id().to_string().into(),
        jstack_enable: false,
    };
    let answer = ask(broker.address(0), RequestCode::GET_CONSUMER_RUNNING_INFO, fields).await;
    let info = ConsumerRunningInfo::from_json(&answer.body).unwrap();
    assert_eq!(info.mq_table[&queues[0]].commit_offset, 5);
    assert_eq!(info.properties[ConsumerRunningInfo::PROP_CONSUME_TYPE], "CONSUME_PASSIVELY");

    let fields = ConsumeMessageDirectlyRequest {
        consumer_group: "asked".into(),
        client_id: Some(client.id().to_string().into()),
        msg_id: Some(ids[3].clone().into()),
        topic: Some("Asked".into()),
        broker_name: None,
        topic_sys_flag: None,
        group_sys_flag: None,
    };
    let answer = ask(broker.address(0), RequestCode::CONSUME_MESSAGE_DIRECTLY, fields).await;
    let direct = ConsumeMessageDirectlyResult::from_json(&answer.body).unwrap();
    assert_eq!((&*direct.consume_result, next(&mut handling).await.0), ("CR_SUCCESS", 3));

    let fields = InvokeBrokerToResetOffsetRequest {
        group: "asked".into(),
        topic: "Asked".into(),
        queue_id: 0,
        offset: Some(2),
        timestamp: 0,
        is_force: true,
    };
    ask(broker.address(0), RequestCode::INVOKE_BROKER_TO_RESET_OFFSET, fields).await;
    // Its pull waits at the end of the queue, and the next message wakes it.
    send_numbers(&client, &queues, 5..6).await;
    let mut again = Vec::new();
    while again.last() != Some(&5) || !again.contains(&2) {
        again.push(next(&mut handling).await.0);
    }
    assert!(again.ends_with(&[2, 3, 4, 5]), "{again:?}");
    consumer.shutdown().await;
}
