//! Consumers that handle each queue in its order, while the broker under them is killed or loses its power, and comes back.
//!
//! They live through all cycles of a run, in this process, as members of one group; others send all the time. In the end
//! every message that the topic has must have been handled, in the order of its queue and by one member at a time: the
//! locks, the offsets and the messages are all the broker's to keep.

use super::Failure;
use super::checker::{Kind, Violation};
use super::deliveries::Queue;
use super::member::{Ledger, Membership, lock, now, shard_of};
use ringmq_client::{Client, Message, PushConsumer, TopicSettings};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const TOPIC: &str = "CrashInOrder";
const GROUP: &str = "CrashInOrderGroup";
/// Queues on each shard.
const QUEUES: u32 = 4;
const MEMBERS: u32 = 2;
const SENDERS: u32 = 4;
/// A sender that got no answer by then tries the next message: the broker is down.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two messages of a sender.
const PAUSE: Duration = Duration::from_millis(4);
/// How long the rest may take: a lock of a member that lost its connection lives for a minute.
const REST: Duration = Duration::from_secs(150);

/// Running orderly consumers, and who sends to them.
pub struct Orderly {
    runtime: Runtime,
    ledger: Ledger,
    client: Client,
    members: Vec<(Client, PushConsumer)>,
    senders: Vec<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
}

impl Orderly {
    /// The broker must be up.
    pub fn start(name_server_port: u16, shards: &[SocketAddr]) -> Result<Self, Failure> {
        let namesrv = format!("127.0.0.1:{name_server_port}");
        let ports: Vec<u16> = shards.iter().map(SocketAddr::port).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (ledger, is_over) = (Ledger::default(), Arc::new(AtomicBool::new(false)));
        let (client, members, senders) = runtime.block_on(async {
            let client = Client::new(&*namesrv).await?;
            let topic =
                TopicSettings { queues: QUEUES, readable: true, writable: true, attributes: BTreeMap::new() };
            client.admin().create_topic(TOPIC, topic, None).await?;
            let producer =
                client.producer("CrashInOrderProducers").retries(0).send_timeout(ANSWER).build()?;
            let producer = Arc::new(producer);
            let sender = |_| {
                let (producer, is_over) = (Arc::clone(&producer), Arc::clone(&is_over));
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        // What is not acknowledged may be there or not: the consumers see.
                        let _ = producer.send(Message::new(TOPIC, "in order")).await;
                        sleep(PAUSE).await;
                    }
                })
            };
            let senders = (0..SENDERS).map(sender).collect();
            let membership = Membership {
                namesrv: namesrv.clone(),
                group: GROUP.to_owned(),
                topic: TOPIC.to_owned(),
                rebalance_ms: 2000,
                orderly: true,
            };
            let mut members = Vec::new();
            for number in 1..=MEMBERS {
                let (own, ledger, ports) =
                    (Client::new(&*namesrv).await?, Arc::clone(&ledger), ports.clone());
                let consumer = membership
                    .join(&own, move |is_end, message| {
                        let (at, offset, mut told) = (now(), message.queue_offset.0, lock(&ledger));
                        let shard = ports.iter().position(|port| *port == message.store_host.port());
                        let Some(shard) = shard.and_then(|shard| u16::try_from(shard).ok()) else {
                            told.strange.push(format!("a message of {}", message.store_host));
                            return;
                        };
                        let queue = Queue { shard, queue: message.queue_id.0 };
                        if !is_end {
                            told.deliveries.begun(at, number, queue, offset);
                        } else if !told.deliveries.ended(at, number, queue, offset) {
                            told.strange.push(format!("{queue}: {offset} ended twice"));
                        }
                    })
                    .await?;
                members.push((own, consumer));
            }
            Ok::<_, Failure>((client, members, senders))
        })?;
        Ok(Self { runtime, ledger, client, members, senders, is_over })
    }

    /// Waits until all that was sent is handled, with the broker up, and checks. Gives the number of times that messages
    /// were handled, and of those that were not the first for their message.
    pub fn finish(self) -> Result<((usize, usize), Vec<Violation>), Failure> {
        let Self { runtime, ledger, client, members, senders, is_over } = self;
        is_over.store(true, Ordering::Relaxed);
        let sent = runtime.block_on(async {
            for sender in senders {
                sender.await?;
            }
            let mut sent = Vec::new();
            for status in client.admin().queues(TOPIC).await? {
                let broker = &status.queue.broker_name;
                let shard = shard_of(broker).ok_or_else(|| Failure(format!("a broker named {broker}")))?;
                let queue = Queue { shard, queue: status.queue.queue_id.try_into()? };
                sent.extend((0..status.max.0).map(|offset| (queue, offset)));
            }
            let deadline = Instant::now() + REST;
            while !lock(&ledger).deliveries.unhandled(&sent).is_empty() && Instant::now() < deadline {
                sleep(Duration::from_millis(50)).await;
            }
            for (own, consumer) in members {
                consumer.shutdown().await;
                own.shutdown().await;
            }
            client.shutdown().await;
            Ok::<_, Failure>(sent)
        })?;
        let told = lock(&ledger);
        let lost = told.deliveries.unhandled(&sent).into_iter();
        let lost =
            lost.map(|(queue, offset)| (Kind::Lost, format!("{queue}: {offset} was not handled in order")));
        let disorder = told.deliveries.disorder().into_iter().map(|what| (Kind::OutOfOrder, what));
        let strange = told.strange.iter().map(|what| (Kind::Alien, what.clone()));
        let violations =
            lost.chain(disorder).chain(strange).map(|(kind, what)| Violation { kind, what }).collect();
        Ok(((told.deliveries.all().len(), told.deliveries.repeats().0), violations))
    }
}
