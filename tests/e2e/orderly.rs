//! Orderly consumers of the native client: one message of a queue at a time, in its order, whoever has the queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmq_client::{Client, ConsumeFrom, MessageExt, MessageQueue, OrderlyResult, PushConsumer};
use ringmq_tests::Broker;
use tokio::sync::{mpsc, watch};

use crate::consuming::{client, dead_letters, next, number, send_numbers, soon, topic, until};

const TOPIC: &str = "InOrder";

/// What all handlers of a test see together.
#[derive(Default)]
struct Order {
    /// Queue offset of the next message, by broker name and queue.
    expected: BTreeMap<(std::net::SocketAddr, u32), u64>,
    running: BTreeMap<(std::net::SocketAddr, u32), u32>,
    /// What was seen that must not be; a panic in a handler is only a failure of its message.
    violations: Vec<String>,
}

#[derive(Clone, Default)]
struct Watched(Arc<Mutex<Order>>);

impl Watched {
    fn begin(&self, message: &MessageExt) {
        let queue = (message.store_host, message.queue_id.0);
        let mut order = self.0.lock().unwrap();
        let running = order.running.entry(queue).or_default();
        *running += 1;
        let (running, offset) = (*running, message.queue_offset.0);
        let expected = *order.expected.entry(queue).or_default();
        if (running, offset) != (1, expected) {
            order
                .violations
                .push(format!("{queue:?}: {running} handlers, offset {offset} and not {expected}"));
        }
    }

    fn check(&self) {
        let violations = &self.0.lock().unwrap().violations;
        assert!(violations.is_empty(), "{violations:?}");
    }

    fn end(&self, message: &MessageExt, done: bool) {
        let queue = (message.store_host, message.queue_id.0);
        let mut order = self.0.lock().unwrap();
        *order.running.get_mut(&queue).unwrap() -= 1;
        *order.expected.get_mut(&queue).unwrap() += u64::from(done);
    }
}

/// A member that fails each seventh message twice, and waits in those that are `held` until it is released.
async fn member(
    client: &Client,
    order: &Watched,
    held: &'static [u32],
) -> (PushConsumer, mpsc::UnboundedReceiver<u32>, watch::Sender<bool>) {
    let (handled, handling) = mpsc::unbounded_channel();
    let (release, released) = watch::channel(false);
    let order = order.clone();
    let consumer = client
        .push_consumer("orderly")
        .subscribe(TOPIC, "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .suspend_time(Duration::from_millis(5))
        .start_orderly(move |message| {
            let (handled, order, mut released) = (handled.clone(), order.clone(), released.clone());
            async move {
                order.begin(&message);
                let number = number(&message);
                if held.contains(&number) {
                    _ = handled.send(number);
                    released.wait_for(|released| *released).await.unwrap();
                }
                let fails = number.is_multiple_of(7) && message.reconsume_times < 2;
                // Lets others in, if they may.
                tokio::task::yield_now().await;
                order.end(&message, !fails);
                if fails {
                    return OrderlyResult::Suspend;
                }
                if !held.contains(&number) {
                    _ = handled.send(number);
                }
                OrderlyResult::Success
            }
        })
        .await
        .unwrap();
    (consumer, handling, release)
}

fn count(consumer: &PushConsumer) -> usize {
    consumer.assignment().iter().filter(|queue| queue.topic == TOPIC).count()
}

#[tokio::test]
async fn order_is_kept_with_failures_in_between() {
    let broker = Broker::start(2);
    let client = client(&broker).await;
    let queues = topic(&client, TOPIC, 2).await;
    send_numbers(&client, &queues, 0..200).await;
    let order = Watched::default();
    let (consumer, mut handling, _release) = member(&client, &order, &[]).await;
    let mut handled = Vec::new();
    while handled.len() < 200 {
        handled.push(next(&mut handling).await);
    }
    consumer.shutdown().await;
    handled.sort_unstable();
    assert_eq!(handled, (0..200).collect::<Vec<_>>(), "each once");
    let committed = |queue: &MessageQueue| {
        let (client, queue) = (client.clone(), queue.clone());
        async move {
            let offsets = client.admin().group_offsets("orderly", TOPIC).await.unwrap();
            offsets.into_iter().find(|offset| offset.queue == queue).and_then(|offset| offset.committed)
        }
    };
    order.check();
    for queue in &queues {
        assert_eq!(committed(queue).await.map(|offset| offset.0), Some(50));
    }
}

/// Queues move between members, and none has two handlers at any time or loses its place.
#[tokio::test]
async fn a_queue_changes_hands_only_between_messages() {
    let broker = Broker::start(1);
    let (first_client, second_client) = (client(&broker).await, client(&broker).await);
    let queues = topic(&first_client, TOPIC, 2).await;
    let order = Watched::default();
    send_numbers(&first_client, &queues, 0..10).await;
    // The last of both queues, so that whichever goes to the other member is being handled.
    let (first, mut first_handling, release) = member(&first_client, &order, &[8, 9]).await;
    let mut handled = Vec::new();
    while handled.len() < 10 {
        handled.push(next(&mut first_handling).await);
    }
    let (second, mut second_handling, _release) = member(&second_client, &order, &[]).await;
    send_numbers(&first_client, &queues, 10..20).await;
    release.send_replace(true);
    until("each has one", async || count(&first) == 1 && count(&second) == 1).await;
    while handled.len() < 20 {
        handled.push(tokio::select! {
            number = next(&mut first_handling) => number,
            number = next(&mut second_handling) => number,
        });
    }
    handled.sort_unstable();
    assert_eq!(handled, (0..20).collect::<Vec<_>>());

    first.shutdown().await;
    until("the other one has both", async || count(&second) == 2).await;
    send_numbers(&first_client, &queues, 20..30).await;
    while handled.len() < 30 {
        handled.push(next(&mut second_handling).await);
    }
    handled.sort_unstable();
    assert_eq!(handled, (0..30).collect::<Vec<_>>());
    second.shutdown().await;
    order.check();
}

/// The rest of its queue goes on once it is a dead letter.
#[tokio::test]
async fn what_fails_too_often_in_order_becomes_a_dead_letter() {
    let broker = soon();
    let client = client(&broker).await;
    let queues = topic(&client, TOPIC, 1).await;
    send_numbers(&client, &queues[..1], 0..3).await;
    let (handled, mut handling) = mpsc::unbounded_channel();
    let consumer = client
        .push_consumer("orderly")
        .subscribe(TOPIC, "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .suspend_time(Duration::from_millis(1))
        .max_reconsume_times(2)
        .start_orderly(move |message| {
            let number = number(&message);
            _ = handled.send((number, message.reconsume_times));
            async move { if number == 1 { OrderlyResult::Suspend } else { OrderlyResult::Success } }
        })
        .await
        .unwrap();
    for expected in [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)] {
        assert_eq!(next(&mut handling).await, expected);
    }
    assert_eq!(dead_letters(&client, "orderly", 1).await, [1]);
    consumer.shutdown().await;
}
