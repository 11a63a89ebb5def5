//! Reads everything there is and commits it: `cargo run --example pull_consumer -- [NAME SERVER]`

use std::error::Error;
use std::time::Duration;

use futures_util::StreamExt;
use ringmq_client::{Client, ConsumeFrom};

const TOPIC: &str = "RingmqExample";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".into());
    let client = Client::new(name_server).await?;

    // As a member of a group, batch by batch.
    let mut consumer = client
        .pull_consumer("example-pullers")
        .subscribe(TOPIC, "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .build()
        .await?;
    consumer.assigned().await;
    while let Some(batch) = consumer.poll(Duration::from_secs(1)).await {
        println!("{} messages of queue {}", batch.messages.len(), batch.queue.queue_id);
        consumer.commit().await?;
    }
    consumer.shutdown().await;

    // From a queue of one's own choice, as a stream, again from its beginning.
    let queues: Vec<_> = client.admin().queues(TOPIC).await?.into_iter().map(|status| status.queue).collect();
    let mut consumer = client
        .pull_consumer("example-readers")
        .assign(queues, "greeting")
        .consume_from(ConsumeFrom::FirstOffset)
        .ignore_committed(true)
        .build()
        .await?;
    if let Some(message) = consumer.stream().next().await {
        println!("the first greeting: {}", String::from_utf8_lossy(&message.message.body));
    }
    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
