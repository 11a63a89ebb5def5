//! Sends messages in every way: `cargo run --example produce -- [NAME SERVER]`

use std::error::Error;

use futures_util::future::try_join_all;
use ringmq_client::{Batching, Client, Message};

const TOPIC: &str = "RingmqExample";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".into());
    let client = Client::new(name_server).await?;
    let producer = client.producer("example-producers").build()?;

    // One at a time.
    let sent =
        producer.send(Message::new(TOPIC, "hello").with_tag("greeting").with_keys(["order-17"])).await?;
    println!("{} is at {} of queue {}", sent.message_id, sent.queue_offset, sent.queue.queue_id);

    // Many in flight: each send is a future.
    let sends = (0..100).map(|number| producer.send(Message::new(TOPIC, format!("number {number}"))));
    println!("{} messages were in flight together", try_join_all(sends).await?.len());

    // Many in flight that share requests: each has its own result, and those to one queue keep their order.
    let gatherer = client.producer("example-gatherers").batching(Batching::default()).build()?;
    let steps = (1..=1000).map(|step| Message::new(TOPIC, format!("alice step {step}")));
    let sends = steps.map(|message| gatherer.send_ordered(message, "alice"));
    let sent = try_join_all(sends).await?;
    println!("{} messages are in order behind {}", sent.len(), sent[0].queue_offset);
    gatherer.shutdown().await;

    // All or none, one behind the other in one queue.
    let batch = (0..10).map(|number| Message::new(TOPIC, format!("batched {number}"))).collect();
    let results = producer.send_batch(batch).await?;
    println!("a batch of {} begins at {}", results.len(), results[0].queue_offset);

    // To a queue of one's own choice.
    let queues = producer.queues(TOPIC).await?;
    producer.send_to(&queues[0], Message::new(TOPIC, "to the first queue")).await?;

    // Without knowing whether it arrives.
    producer.send_one_way(Message::new(TOPIC, "whatever becomes of it")).await?;

    producer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
