//! Keeps the messages of each account in order: `cargo run --example ordered -- [NAME SERVER]`

use std::error::Error;

use futures_util::future::try_join_all;
use ringmq_client::{Client, Message, SendError};

const TOPIC: &str = "RingmqExample";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".into());
    let client = Client::new(name_server).await?;
    let producer = client.producer("example-producers").build()?;

    // Accounts are independent, so they may go at the same time; within an account each send waits for the one before.
    let accounts = ["alice", "bob", "carol"].map(|account| {
        let producer = producer.clone();
        async move {
            for step in 1..=5 {
                let message = Message::new(TOPIC, format!("{account} step {step}"));
                let sent = producer.send_ordered(message, account).await?;
                let (broker, queue) = (&sent.queue.broker_name, sent.queue.queue_id);
                println!("{account} step {step}: {broker} queue {queue} offset {}", sent.queue_offset);
            }
            Ok::<(), SendError>(())
        }
    });
    try_join_all(accounts).await?;

    producer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
