//! Producers with batching: each send its own result, in the order of its queue, whatever happens to the broker.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use ringmq_client::{
    Batching, Client, Compression, ConsumeFrom, Message, MessageExt, MessageQueue, QueueOffset, SendError,
};
use ringmq_tests::{Broker, PATIENCE};

use crate::consuming::{client, number, topic};

/// All that these queues hold.
async fn read(client: &Client, queues: &[MessageQueue]) -> BTreeMap<(MessageQueue, QueueOffset), MessageExt> {
    let status = client.admin().queues(&queues[0].topic).await.unwrap();
    let wanted: u64 =
        status.iter().filter(|status| queues.contains(&status.queue)).map(|status| status.max.0).sum();
    let builder = client.pull_consumer("readers").consume_from(ConsumeFrom::FirstOffset);
    let mut consumer = builder.assign(queues, "*").build().await.unwrap();
    let mut found = BTreeMap::new();
    while (found.len() as u64) < wanted {
        let batch = consumer.poll(PATIENCE).await.expect("all of it");
        found.extend(batch.messages.into_iter().map(|m| ((batch.queue.clone(), m.queue_offset), m)));
    }
    consumer.shutdown().await;
    found
}

#[tokio::test]
async fn sends_that_share_requests_are_where_their_results_say() {
    let broker = Broker::start(2);
    let client = client(&broker).await;
    let queues = topic(&client, "Gathered", 2).await;
    for compression in [Compression::Zlib, Compression::Lz4, Compression::Zstd] {
        let builder = client.producer("gatherers").batching(Batching::default()).compression(compression);
        let producer = builder.build().unwrap();
        // One in ten is long enough to be compressed, and one in twenty has a property of its own.
        let message = |at: usize| {
            let body = format!("{at} ").repeat(if at.is_multiple_of(10) { 4000 } else { 1 });
            let message = Message::new("Gathered", body).with_tag("t").with_keys([&*format!("k{at}")]);
            if at % 20 == 5 { message.with("twentieth", "yes") } else { message }
        };
        let sends = (0..300).map(|at| {
            let (producer, queues, message) = (&producer, &queues, message(at));
            async move {
                match at % 3 {
                    0 => producer.send(message).await,
                    1 => producer.send_to(&queues[at % queues.len()], message).await,
                    _ => producer.send_ordered(message, &at.to_string()).await,
                }
            }
        });
        let sent = join_all(sends).await;
        let stored = read(&client, &queues).await;
        for (at, result) in sent.into_iter().enumerate() {
            let result = result.unwrap();
            let found = &stored[&(result.queue, result.queue_offset)];
            let wanted = message(at);
            assert_eq!((&found.message.body, found.message_id()), (&wanted.body, result.message_id));
            assert_eq!(found.offset_message_id().to_string(), result.offset_message_id);
            let of = |message: &Message| {
                ["TAGS", "KEYS", "twentieth"].map(|name| message.property(name).map(str::to_owned))
            };
            assert_eq!(of(&found.message), of(&wanted));
        }
        producer.shutdown().await;
    }
    assert_eq!(read(&client, &queues).await.len(), 900, "nothing twice");
}

/// The broker is killed three times under sends of which many are under way. Failures are not sent again.
#[tokio::test]
async fn a_queue_keeps_the_order_of_its_sends_though_the_broker_is_killed() {
    let broker = Broker::start(1);
    let client = client(&broker).await;
    let queues = topic(&client, "Ordered", 1).await;
    let producer = client.producer("orderers").batching(Batching::default()).build().unwrap();

    let kill = |mut broker: Broker| {
        tokio::task::spawn_blocking(move || {
            broker.kill9();
            broker.restart();
            broker
        })
    };
    let (mut kills, mut killing, mut revived) = (0, kill(broker), None);
    let mut under_way = FuturesUnordered::new();
    let (mut acknowledged, mut unsent) = (BTreeMap::new(), BTreeSet::new());
    let (mut next, mut stored_since) = (0_u32, 0);
    // Until the last restart, and a while beyond.
    while kills < 3 || stored_since < 200 {
        while under_way.len() < 50 {
            let (producer, queue, number) = (&producer, &queues[0], next);
            under_way.push(async move {
                (number, producer.send_to(queue, Message::new("Ordered", number.to_string())).await)
            });
            next += 1;
        }
        tokio::select! {
            Some((number, outcome)) = under_way.next() => match outcome {
                Ok(result) => {
                    stored_since += 1;
                    acknowledged.insert(number, result.queue_offset);
                }
                Err(SendError::Behind { .. } | SendError::Expired(_)) => drop(unsent.insert(number)),
                Err(SendError::Failed { .. } | SendError::Route(_)) => {}
                Err(error) => panic!("{error}"),
            },
            broker = &mut killing, if kills < 3 && stored_since >= 200 => {
                kills += 1;
                stored_since = 0;
                let broker = broker.expect("it starts again");
                if kills < 3 {
                    killing = kill(broker);
                } else {
                    revived = Some(broker);
                }
            }
        }
    }
    drop(under_way);

    let stored = read(&client, &queues).await;
    for (number, offset) in &acknowledged {
        let found = &stored[&(queues[0].clone(), *offset)];
        assert_eq!(self::number(found), *number);
    }
    let (mut first_copies, mut seen) = (Vec::new(), BTreeSet::new());
    for message in stored.values() {
        if seen.insert(message.message_id()) {
            first_copies.push(number(message));
        }
    }
    assert!(first_copies.is_sorted_by(|one, other| one < other), "{first_copies:?}");
    let wrong: Vec<_> = first_copies.iter().filter(|number| unsent.contains(number)).collect();
    assert!(wrong.is_empty(), "said to be unsent: {wrong:?}");
    drop(revived);
}
