use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use ringmq_protocol::body::{
    Body, ConsumeMessageDirectlyResult, ConsumerRunningInfo, ConsumerStatusBody, HeartbeatData,
    ResetOffsetBody,
};
use ringmq_protocol::request::{
    ConsumeMessageDirectlyRequest, GetConsumerRunningInfoRequest, GetConsumerStatusRequest,
    ResetOffsetRequest,
};

use super::*;
use crate::fake::{ask, record, respond};

fn queue() -> MessageQueue {
    MessageQueue::new("T", "a", 0)
}

/// Hands the bodies that an orderly handler sees to a channel, with how often each came before.
fn seen() -> (impl Fn(&MessageExt), mpsc::UnboundedReceiver<(Bytes, i32)>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let see = move |message: &MessageExt| {
        drop(sender.send((message.message.body.clone(), message.reconsume_times)));
    };
    (see, receiver)
}

/// A broker with one message, that gives nobody a lock while `refuses` says so.
async fn broker_without_locks(refuses: &Arc<AtomicBool>) -> FakeServer {
    let refuses = refuses.clone();
    let broker = group_broker_but(&["x"], ResponseCode::SUCCESS, move |request| {
        let is_lock = RequestCode(request.code) == RequestCode::LOCK_BATCH_MQ;
        (is_lock && refuses.load(Ordering::SeqCst))
            .then(|| respond(request, ResponseCode::SUCCESS, &(), "{\"lockOKMQSet\":[]}"))
    });
    broker.await
}

#[tokio::test]
async fn a_failed_message_holds_those_behind_it() {
    let broker = group_broker(&["x", "fails", "z"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (see, mut saw) = seen();
    let consumer = builder(&client)
        .suspend_time(Duration::from_millis(1))
        .start_orderly(move |message| {
            see(&message);
            let fails = &*message.message.body == b"fails" && message.reconsume_times < 2;
            async move {
                match (fails, message.reconsume_times) {
                    (false, _) => OrderlyResult::Success,
                    (true, 0) => OrderlyResult::Suspend,
                    (true, _) => OrderlyResult::SuspendFor(Duration::from_millis(2)),
                }
            }
        })
        .await
        .expect("a consumer");
    for (body, times) in [("x", 0), ("fails", 0), ("fails", 1), ("fails", 2), ("z", 0)] {
        assert_eq!(saw.recv().await, Some((Bytes::from(body), times)));
    }
    consumer.shutdown().await;
    assert_eq!(committed(&broker).as_deref(), Some("3"));
    let unlocked = broker.received(RequestCode::UNLOCK_BATCH_MQ);
    assert!(
        unlocked.iter().any(|request| request.body.windows(3).any(|part| part == b"\"T\"")),
        "{unlocked:?}"
    );
    assert!(broker.received(RequestCode::CONSUMER_SEND_MSG_BACK).is_empty(), "what fails stays here");
}

/// O1
#[tokio::test]
async fn without_a_lock_nothing_is_pulled() {
    let refused = Arc::new(AtomicBool::new(true));
    let broker = broker_without_locks(&refused).await;
    let (_name_server, client) = client(&broker).await;
    let (see, mut saw) = seen();
    let consumer = builder(&client)
        .rebalance_interval(Duration::from_millis(10))
        .start_orderly(move |message| {
            see(&message);
            async { OrderlyResult::Success }
        })
        .await
        .expect("a consumer");
    until(|| broker.received(RequestCode::LOCK_BATCH_MQ).len() > 4).await;
    assert!(consumer.assignment().is_empty());
    assert!(broker.received(RequestCode::PULL_MESSAGE).is_empty());
    refused.store(false, Ordering::SeqCst);
    assert_eq!(saw.recv().await, Some(("x".into(), 0)));
    consumer.shutdown().await;
}

/// O2 and O3: the lock goes while a handler runs.
#[tokio::test]
async fn after_a_lost_lock_nothing_counts() {
    let lost = Arc::new(AtomicBool::new(false));
    let broker = broker_without_locks(&lost).await;
    let (_name_server, client) = client(&broker).await;
    let (see, mut saw) = seen();
    let running = Arc::new(AtomicUsize::new(0));
    let (release, released) = watch::channel(false);
    let most = running.clone();
    let mut builder = builder(&client).rebalance_interval(Duration::from_millis(10));
    builder.intervals.lock = Duration::from_millis(5);
    let consumer = builder
        .start_orderly(move |message| {
            see(&message);
            let (running, mut released) = (running.clone(), released.clone());
            async move {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                drop(released.wait_for(|released| *released).await);
                running.fetch_sub(1, Ordering::SeqCst);
                OrderlyResult::Success
            }
        })
        .await
        .expect("a consumer");
    assert_eq!(saw.recv().await, Some(("x".into(), 0)));
    let state = lock(&consumer.inner.queues)[&queue()].state.clone();
    lost.store(true, Ordering::SeqCst);
    until(|| *state.hold.borrow() == Hold::Discarded).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert!(consumer.assignment().contains(&queue()), "it stays until its handler has ended");
    release.send_replace(true);
    until(|| !consumer.assignment().contains(&queue())).await;
    assert_eq!(committed(&broker), None);
    lost.store(false, Ordering::SeqCst);
    assert_eq!(saw.recv().await, Some(("x".into(), 0)), "what was done without the lock is done again");
    consumer.shutdown().await;
    assert_eq!(committed(&broker).as_deref(), Some("1"));
}

/// O3: the lock ends while a handler runs, as nobody renews it in time.
#[tokio::test]
async fn after_an_ended_lock_the_queue_begins_anew() {
    let broker = group_broker(&["x", "y"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (see, mut saw) = seen();
    let (release, released) = watch::channel(false);
    let mut builder = builder(&client).rebalance_interval(Duration::from_millis(10));
    builder.intervals.lock = Duration::from_secs(600);
    builder.intervals.lock_valid = Duration::from_millis(500);
    let consumer = builder
        .start_orderly(move |message| {
            see(&message);
            let mut released = released.clone();
            async move {
                drop(released.wait_for(|released| *released).await);
                OrderlyResult::Success
            }
        })
        .await
        .expect("a consumer");
    assert_eq!(saw.recv().await, Some(("x".into(), 0)));
    let state = lock(&consumer.inner.queues)[&queue()].state.clone();
    until(|| !state.may_commit()).await;
    release.send_replace(true);
    assert_eq!(saw.recv().await, Some(("x".into(), 0)), "and not the next one");
    assert_eq!(*state.hold.borrow(), Hold::Discarded);
    consumer.shutdown().await;
}

#[tokio::test]
async fn an_orderly_message_that_fails_too_often_becomes_a_dead_letter() {
    let broker = group_broker(&["fails", "y"], ResponseCode::SUCCESS).await;
    let (_name_server, client) = client(&broker).await;
    let (see, mut saw) = seen();
    let consumer = builder(&client)
        .suspend_time(Duration::from_millis(1))
        .max_reconsume_times(1)
        .start_orderly(move |message| {
            see(&message);
            let failed = if &*message.message.body == b"fails" { Err("on purpose") } else { Ok(()) };
            async move { failed }
        })
        .await
        .expect("a consumer");
    for (body, times) in [("fails", 0), ("fails", 1), ("y", 0)] {
        assert_eq!(saw.recv().await, Some((Bytes::from(body), times)));
    }
    consumer.shutdown().await;
    let published = broker.received(RequestCode::SEND_MESSAGE_V2);
    assert_eq!(
        ["b", "j", "l"].map(|letter| published[0].ext(letter)),
        [Some("%RETRY%g"), Some("2"), Some("1")]
    );
    assert_eq!((published.len(), &*published[0].body), (1, &b"fails"[..]));
}

#[tokio::test]
async fn who_broadcasts_keeps_its_offsets_itself() {
    let dir = std::env::temp_dir().join(format!("ringmq-client-offsets-{}", rand::random::<u64>()));
    let broker = group_broker(&["x", "fails", "z"], ResponseCode::SUCCESS).await;
    for expected in [&["x", "fails", "z"][..], &[]] {
        let (_name_server, client) = client(&broker).await;
        let (see, mut saw) = seen();
        let consumer = builder(&client)
            .concurrency(1)
            .broadcasting(&dir)
            .start(move |message| {
                see(&message);
                let failed = if &*message.message.body == b"fails" { Err("on purpose") } else { Ok(()) };
                async move { failed }
            })
            .await
            .expect("a consumer");
        for body in expected {
            assert_eq!(saw.recv().await, Some((Bytes::from(*body), 0)));
        }
        let pulls = broker.received(RequestCode::PULL_MESSAGE).len();
        until(|| broker.received(RequestCode::PULL_MESSAGE).len() > pulls || expected.is_empty()).await;
        consumer.shutdown().await;
        assert!(saw.recv().await.is_none(), "nothing else came");
        client.shutdown().await;
    }
    let pulls = broker.received(RequestCode::PULL_MESSAGE);
    assert_eq!(pulls.last().and_then(|pull| pull.ext("queueOffset")), Some("3"), "where the first one ended");
    assert!(pulls.iter().all(|pull| pull.ext("topic") == Some("T")), "there are no retries");
    assert!(broker.received(RequestCode::UPDATE_CONSUMER_OFFSET).is_empty());
    assert!(broker.received(RequestCode::CONSUMER_SEND_MSG_BACK).is_empty());
    let heartbeats = broker.received(RequestCode::HEART_BEAT);
    let heartbeat = HeartbeatData::from_json(&heartbeats[0].body).expect("a heartbeat");
    assert_eq!(heartbeat.consumer_data_set[0].message_model, MessageModel::Broadcasting);
    std::fs::remove_dir_all(&dir).expect("the directory of the offsets");
}

/// A broker that asks something when both of its messages are done with.
async fn asking(question: RemotingCommand) -> FakeServer {
    let asked = AtomicBool::new(false);
    group_broker_but(&["x", "y"], ResponseCode::SUCCESS, move |request| {
        let is_commit = RequestCode(request.code) == RequestCode::UPDATE_CONSUMER_OFFSET
            && (request.ext("topic"), request.ext("commitOffset")) == (Some("T"), Some("2"));
        (is_commit && !request.is_response() && !asked.swap(true, Ordering::SeqCst))
            .then(|| vec![question.clone()])
    })
    .await
}

/// Asks a consumer that handles two messages; its answer, and what comes then.
async fn answer_to(question: RemotingCommand, then: &[&'static str]) -> (RemotingCommand, FakeServer) {
    let broker = asking(question).await;
    let (_name_server, client) = client(&broker).await;
    let (see, mut saw) = seen();
    let consumer = builder(&client)
        .concurrency(1)
        .persist_interval(Duration::from_millis(10))
        .start(move |message| {
            see(&message);
            let failed = if &*message.message.body == b"fails" { Err("on purpose") } else { Ok(()) };
            async move { failed }
        })
        .await
        .expect("a consumer");
    for body in ["x", "y"].iter().chain(then) {
        assert_eq!(saw.recv().await, Some((Bytes::from(*body), 0)));
    }
    until(|| !broker.answers().is_empty()).await;
    consumer.shutdown().await;
    (broker.answers()[0].clone(), broker)
}

#[tokio::test]
async fn a_reset_offset_is_where_it_goes_on() {
    let fields = ResetOffsetRequest { topic: "T".into(), group: GROUP.into(), timestamp: 0, is_force: true };
    let body =
        ResetOffsetBody { offset_table: [(queue(), 1), (MessageQueue::new("T", "other", 0), 5)].into() };
    let question = ask(RequestCode::RESET_CONSUMER_CLIENT_OFFSET, &fields, body.to_json());
    let (answer, broker) = answer_to(question, &["y"]).await;
    assert_eq!(answer.code, ResponseCode::SUCCESS.0);
    let commits = broker.received(RequestCode::UPDATE_CONSUMER_OFFSET);
    let topics = commits.iter().filter(|commit| commit.ext("topic") == Some("T"));
    let offsets: Vec<_> = topics.filter_map(|commit| commit.ext("commitOffset")).collect();
    assert!(offsets.contains(&"1") && offsets.last() == Some(&"2"), "{offsets:?}");
}

#[tokio::test]
async fn tools_see_what_a_consumer_does() {
    let fields = GetConsumerRunningInfoRequest {
        consumer_group: GROUP.into(),
        client_id: "".into(),
        jstack_enable: false,
    };
    let (answer, ..) = answer_to(ask(RequestCode::GET_CONSUMER_RUNNING_INFO, &fields, ""), &[]).await;
    let info = ConsumerRunningInfo::from_json(&answer.body).expect("running information");
    assert_eq!(info.mq_table[&queue()].last_lock_timestamp, 0);
    assert!(info.mq_table[&queue()].last_consume_timestamp > 0);
    assert_eq!(info.properties[ConsumerRunningInfo::PROP_CONSUME_ORDERLY], "false");
    assert_eq!(info.subscription_set.len(), 2, "with the retry topic");

    let fields = GetConsumerStatusRequest { topic: "T".into(), group: GROUP.into(), client_addr: None };
    let (answer, ..) = answer_to(ask(RequestCode::GET_CONSUMER_STATUS_FROM_CLIENT, &fields, ""), &[]).await;
    let status = ConsumerStatusBody::from_json(&answer.body).expect("a status");
    assert_eq!(status.message_queue_table.keys().collect::<Vec<_>>(), [&queue()]);

    let fields = GetConsumerStatusRequest { topic: "T".into(), group: "other".into(), client_addr: None };
    let (answer, ..) = answer_to(ask(RequestCode::GET_CONSUMER_STATUS_FROM_CLIENT, &fields, ""), &[]).await;
    assert_eq!(answer.code, ResponseCode::SYSTEM_ERROR.0);
    assert!(answer.remark.is_some_and(|remark| remark.contains("other")));
}

#[tokio::test]
async fn a_message_is_handled_because_a_tool_wants_it() {
    for (body, result) in [("again", "CR_SUCCESS"), ("fails", "CR_LATER")] {
        let fields = ConsumeMessageDirectlyRequest {
            consumer_group: GROUP.into(),
            client_id: None,
            msg_id: None,
            topic: None,
            broker_name: None,
            topic_sys_flag: None,
            group_sys_flag: None,
        };
        let question = ask(RequestCode::CONSUME_MESSAGE_DIRECTLY, &fields, record("T", 7, body));
        let (answer, _broker) = answer_to(question, &[body]).await;
        let direct = ConsumeMessageDirectlyResult::from_json(&answer.body).expect("a result");
        assert_eq!((&*direct.consume_result, direct.order), (result, false));
    }
}
