//! Takes messages one by one until there is none for 10 s: `cargo run --example simple_consumer -- [NAME SERVER]`

use std::error::Error;
use std::time::Duration;

use ringmq_client::{Client, ConsumeFrom};

/// How long a message is ours; it comes again if it is not acknowledged by then.
const INVISIBLE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".into());
    let client = Client::new(name_server).await?;
    let consumer = client
        .simple_consumer("example-borrowers")
        .subscribe("RingmqExample", "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .wait(Duration::from_secs(10))
        .build()
        .await?;

    loop {
        let messages = consumer.receive(16, INVISIBLE).await?;
        if messages.is_empty() {
            break;
        }
        for received in &messages {
            let message = &received.message;
            println!("{} {}", message.message_id(), String::from_utf8_lossy(&message.message.body));
        }
        consumer.ack_all(&messages).await?;
    }

    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
