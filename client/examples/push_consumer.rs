//! Prints what comes until Enter is pressed: `cargo run --example push_consumer -- [NAME SERVER]`

use std::error::Error;

use ringmq_client::{Client, ConsumeFrom, ConsumeResult};
use tokio::sync::oneshot;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name_server = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9876".into());
    let client = Client::new(name_server).await?;
    let consumer = client
        .push_consumer("example-consumers")
        .subscribe("RingmqExample", "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .concurrency(8)
        .start(|message| async move {
            println!("{} {}", message.message_id(), String::from_utf8_lossy(&message.message.body));
            // `ReconsumeLater` would bring it again after 10 s.
            ConsumeResult::Success
        })
        .await?;

    eprintln!("press Enter to end");
    let (pressed, enter) = oneshot::channel();
    std::thread::spawn(move || {
        let read = std::io::stdin().read_line(&mut String::new());
        pressed.send(read)
    });
    enter.await??;

    // Waits for running handlers and stores the offsets.
    consumer.shutdown().await;
    client.shutdown().await;
    Ok(())
}
