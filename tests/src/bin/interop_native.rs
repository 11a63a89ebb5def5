//! The native client's half of the interop scenario `native_compression`: what one client compressed the other reads.
//!
//! Bodies follow from the keys of their messages, so that each side knows what the other one sent.
#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use ringmq_client::{Batching, Client, Compression, ConsumeFrom, Message};

/// Of each kind; they travel in one request.
const MESSAGES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(45);

#[derive(Parser)]
struct Arguments {
    /// host:port of a name server.
    namesrv: String,
    topic: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Sends messages `native_<kind>_<0 to 2>`, those of a kind as a batch to the first queue; prints their keys.
    Send { kinds: Vec<Kind> },
    /// Reads so many messages and prints the key of each, and how its body was compressed. Fails if a body is not what
    /// belongs to its key.
    Receive { count: usize },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Zlib,
    Lz4,
    Zstd,
    /// Too short to be compressed.
    Plain,
}

impl Kind {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Java's side has the same function.
fn body_of(key: &str) -> String {
    let repeated = format!("{key} is compressed, ");
    if key.contains("plain") { repeated } else { repeated.repeat(3000) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("interop_native: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let client = Client::new(&arguments.namesrv).await?;
    match arguments.what {
        What::Send { kinds } => {
            for kind in kinds {
                send(&client, &arguments.topic, kind).await?;
            }
        }
        What::Receive { count } => receive(&client, &arguments.topic, count).await?,
    }
    client.shutdown().await;
    Ok(())
}

async fn send(client: &Client, topic: &str, kind: Kind) -> Result<(), Box<dyn Error>> {
    let compression = match kind {
        Kind::Zlib | Kind::Plain => Compression::Zlib,
        Kind::Lz4 => Compression::Lz4,
        Kind::Zstd => Compression::Zstd,
    };
    let producer =
        client.producer("interop-native").compression(compression).batching(Batching::default()).build()?;
    let queue = producer.queues(topic).await?.first().cloned().ok_or("the topic has no queue")?;
    let keys: Vec<String> = (0..MESSAGES).map(|at| format!("native_{}_{at}", kind.name())).collect();
    let sends = keys
        .iter()
        .map(|key| producer.send_to(&queue, Message::new(topic, body_of(key)).with_keys([&**key])));
    for sent in futures_util::future::join_all(sends).await {
        sent?;
    }
    keys.iter().for_each(|key| println!("{key}"));
    producer.shutdown().await;
    Ok(())
}

async fn receive(client: &Client, topic: &str, count: usize) -> Result<(), Box<dyn Error>> {
    let queues = client.admin().route(topic).await?.readable.clone();
    let builder = client.pull_consumer("interop-native").consume_from(ConsumeFrom::FirstOffset);
    let mut consumer = builder.assign(queues, "*").build().await?;
    let mut received = 0;
    while received < count {
        let batch = consumer.poll(PATIENCE).await.ok_or(format!("{received} of {count} messages came"))?;
        for message in batch.messages {
            received += 1;
            let key = message.message.keys().next().unwrap_or_default();
            if message.message.body != body_of(key) {
                return Err(
                    format!("{key:?} has another body, of {} bytes", message.message.body.len()).into()
                );
            }
            let compression =
                message.sys_flag.compression().map_err(|unknown| format!("compression {unknown}"))?;
            println!("{key} {}", compression.map_or("none".to_owned(), |kind| format!("{kind:?}")));
        }
    }
    consumer.shutdown().await;
    Ok(())
}
