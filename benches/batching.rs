//! What batching does for a producer of which many sends are under way at the same time.
//!
//!   cargo bench -p ringmq-tests --bench batching -- [--senders 256] [--bytes 128] [--seconds 3] [--rounds 3] [--linger-ms 0]
//!                                                   [--namesrv HOST:PORT]
//!
//! A broker process with one shard and `sync` flush, or the one behind `--namesrv`; all senders are tasks of one thread and
//! await each send before their next. In every round, in turn: with batching off and on, to any queue and to one. Medians of
//! the rounds; processor time is that of this process and of the broker.

use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use ringmq_client::{Batching, Client, Message, MessageQueue, Producer, TopicSettings};
use ringmq_tests::{Broker, Options, TempDir, process};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::task::JoinSet;

const TOPIC: &str = "Batching";
const WARM_UP: Duration = Duration::from_millis(300);

#[derive(Parser)]
struct Arguments {
    /// Sends under way at the same time.
    #[arg(long, default_value_t = 256)]
    senders: usize,
    /// Of each body.
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Of each way in each round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, default_value_t = 0)]
    linger_ms: u64,
    #[arg(long, default_value_t = 1024 * 1024)]
    batch_bytes: usize,
    /// Measure the broker behind this name server instead of one of its own.
    #[arg(long)]
    namesrv: Option<String>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Way {
    name: &'static str,
    producer: Producer,
    queue: Option<MessageQueue>,
    /// Of each round.
    figures: Vec<Figures>,
}

#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    send_us_p50: f64,
    send_us_p99: f64,
    client_us: f64,
    broker_us: Option<f64>,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(measure(arguments));
}

async fn measure(arguments: Arguments) {
    let temp = TempDir::new("batching");
    let broker = arguments.namesrv.is_none().then(|| {
        Broker::start_with(Options {
            shards: 1,
            arguments: vec!["--flush".into(), "sync".into()],
            data: Some(temp.path().join("data")),
        })
    });
    let namesrv = broker
        .as_ref()
        .map(Broker::name_server)
        .or(arguments.namesrv.clone())
        .expect("one of the two is there");
    // The broker's shard is pinned to the first core.
    let mut core = CpuSet::new();
    core.set(thread::available_parallelism().map_or(1, NonZero::get) - 1);
    sched_setaffinity(None, &core).expect("a core that exists");

    let client = Client::new(&namesrv).await.expect("a client");
    let settings =
        TopicSettings { queues: 4, readable: true, writable: true, attributes: Default::default() };
    client.admin().create_topic(TOPIC, settings, None).await.expect("a topic");
    let batching = Batching::default()
        .linger(Duration::from_millis(arguments.linger_ms))
        .bytes_max(arguments.batch_bytes);
    let single = client.producer("single").build().expect("a producer");
    let batches = client.producer("batches").batching(batching).build().expect("a producer");
    let queue = single.queues(TOPIC).await.expect("queues")[0].clone();
    let mut ways = [
        ("off, any queue", &single, None),
        ("on, any queue", &batches, None),
        ("off, one queue", &single, Some(queue.clone())),
        ("on, one queue", &batches, Some(queue)),
    ]
    .map(|(name, producer, queue)| Way { name, producer: producer.clone(), queue, figures: Vec::new() });
    let broker_pid = broker.as_ref().map(Broker::pid);
    let body = Bytes::from(vec![b'x'; arguments.bytes]);
    for _ in 0..arguments.rounds {
        for way in &mut ways {
            send(way, &body, arguments.senders, WARM_UP, broker_pid).await;
            let time = Duration::from_secs_f64(arguments.seconds);
            let figures = send(way, &body, arguments.senders, time, broker_pid).await;
            way.figures.push(figures);
        }
    }
    println!(
        "{:>16} {:>10} {:>12} {:>12} {:>14} {:>14}",
        "batching", "msg/s", "send p50 us", "p99 us", "client us/msg", "broker us/msg"
    );
    for Way { name, figures, .. } in &ways {
        let median = |of: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = figures.iter().map(of).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        // With `--namesrv` the process is not known.
        let broker = figures[0].broker_us.map(|_| median(|figures| figures.broker_us.unwrap_or_default()));
        let broker = broker.map_or("-".to_owned(), |us| format!("{us:.2}"));
        println!(
            "{name:>16} {:>10.0} {:>12.0} {:>12.0} {:>14.2} {broker:>14}",
            median(|figures| figures.per_second),
            median(|figures| figures.send_us_p50),
            median(|figures| figures.send_us_p99),
            median(|figures| figures.client_us),
        );
    }
    client.shutdown().await;
}

/// Sends until the time is over; every sender finishes its last send.
async fn send(way: &Way, body: &Bytes, senders: usize, time: Duration, broker: Option<u32>) -> Figures {
    let ticks = || (process::cpu_ticks(std::process::id()), broker.map(process::cpu_ticks));
    let (begun, (client_begun, broker_begun)) = (Instant::now(), ticks());
    let mut sending = JoinSet::new();
    for _ in 0..senders {
        let (producer, queue, body) = (way.producer.clone(), way.queue.clone(), body.clone());
        sending.spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < time {
                let message = Message::new(TOPIC, body.clone());
                let since = Instant::now();
                match &queue {
                    Some(queue) => producer.send_to(queue, message).await,
                    None => producer.send(message).await,
                }
                .expect("the broker stores it");
                took.push(since.elapsed());
            }
            took
        });
    }
    let mut took = sending.join_all().await.concat();
    let (seconds, (client_ended, broker_ended)) = (begun.elapsed().as_secs_f64(), ticks());
    took.sort_unstable();
    let count = took.len() as f64;
    let us_per_message = |ticks: u64| ticks as f64 * 1e4 / count;
    Figures {
        per_second: count / seconds,
        send_us_p50: took[took.len() / 2].as_secs_f64() * 1e6,
        send_us_p99: took[took.len() * 99 / 100].as_secs_f64() * 1e6,
        client_us: us_per_message(client_ended - client_begun),
        broker_us: broker_begun.zip(broker_ended).map(|(begun, ended)| us_per_message(ended - begun)),
    }
}
