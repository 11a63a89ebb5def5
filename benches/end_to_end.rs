//! From the call of `send` to the consumer's handler, beside what that cannot do without.
//!
//!   cargo bench -p ringmq-tests --bench end_to_end -- [--messages 2000] [--rounds 5] [--broker-arg ARG | --namesrv HOST:PORT] [--json]
//!
//! A broker process with one shard and `sync` flush, its data on the disk of the target directory. In every round, in turn:
//!
//!   delivery   native client, one message in flight: the time from before `send` until the push consumer's handler runs
//!   send       the same, until `send` returns
//!   disk       a write of one 4 KiB sector with O_DIRECT and O_DSYNC into a zeroed file beside the broker's
//!   socket     a bare round trip of a message of the same size between two threads on loopback, on the broker's core and on ours
//!   together   the same round trip, but the other thread writes such a sector before it answers: what a broker without any work of
//!              its own would take. It is more than disk and socket, as both cores sleep for longer in between
//!
//! The consumer cannot see a message before it is on disk, and the message crosses a socket on its way in and on its way out: a
//! delivery costs at least one disk write and the two halves of a round trip. With `--namesrv` a broker that runs already is
//! measured, and only delivery and send.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZero;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use ringmq_client::{Client, ConsumeFrom, ConsumeResult, Message, Producer};
use ringmq_tests::{Broker, Options, TempDir};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const SECTOR: usize = 4096;
const FILE_SECTORS: u64 = 4096;
const MESSAGE_BYTES: usize = 1024;
/// Sent before the first round: route, connection, group and caches are there then.
const WARM_UP: usize = 500;

#[derive(Parser)]
struct Arguments {
    /// Of each kind in each round.
    #[arg(long, default_value_t = 2000)]
    messages: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure the broker behind this name server instead of one of its own.
    #[arg(long)]
    namesrv: Option<String>,
    /// Another argument of the broker, like --broker-arg=--spin --broker-arg=200us.
    #[arg(long, conflicts_with = "namesrv", allow_hyphen_values = true)]
    broker_arg: Vec<String>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Times of one kind, of all rounds.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    /// In microseconds.
    fn percentile(&mut self, percent: f64) -> f64 {
        self.0.sort_unstable();
        let last = self.0.len() - 1;
        self.0[(last as f64 * percent / 100.0).round() as usize].as_secs_f64() * 1e6
    }
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(measure(arguments));
}

async fn measure(arguments: Arguments) {
    let temp = TempDir::new("end-to-end");
    let broker = arguments.namesrv.is_none().then(|| {
        Broker::start_with(Options {
            shards: 1,
            arguments: ["--flush", "sync"]
                .map(str::to_owned)
                .into_iter()
                .chain(arguments.broker_arg)
                .map(Into::into)
                .collect(),
            data: Some(temp.path().join("data")),
        })
    });
    let namesrv =
        broker.as_ref().map(Broker::name_server).or(arguments.namesrv).expect("one of the two is there");
    // The broker's shard is pinned to the first core. Two threads of one core wake each other in a tenth of the time. Where another
    // broker's shards are, its user knows.
    if broker.is_some() {
        pin_to(thread::available_parallelism().map_or(1, NonZero::get) - 1);
    }
    let client = Client::new(&namesrv).await.expect("a client");
    let producer = client.producer("end-to-end-p").build().expect("a producer");
    producer.send(Message::new("EndToEnd", "first")).await.expect("the topic is made by its first message");
    let (handled, mut arrivals) = unbounded_channel();
    let consumer = client
        .push_consumer("end-to-end-c")
        .subscribe("EndToEnd", "*")
        .consume_from(ConsumeFrom::FirstOffset)
        .start(move |_| {
            let _ = handled.send(Instant::now());
            async { ConsumeResult::Success }
        })
        .await
        .expect("a consumer");
    arrivals.recv().await.expect("the first message arrives");

    let disk = zeroed_file(&temp.path().join("sectors"));
    let mut sectors = (0..FILE_SECTORS).cycle();
    let mut socket = echo(|| {});
    let for_echo = zeroed_file(&temp.path().join("sectors-of-echo"));
    let mut sectors_of_echo = (0..FILE_SECTORS).cycle();
    let mut together = echo(move || {
        write_sector(&for_echo, sectors_of_echo.next().expect("a cycle"));
    });
    deliver(&producer, &mut arrivals, WARM_UP, &mut Times::default(), &mut Times::default()).await;
    let [mut delivery, mut send, mut write, mut round_trip, mut both] = <[Times; 5]>::default();
    for _ in 0..arguments.rounds {
        deliver(&producer, &mut arrivals, arguments.messages, &mut delivery, &mut send).await;
        if broker.is_some() {
            write.0.extend(sectors.by_ref().take(arguments.messages).map(|at| write_sector(&disk, at)));
            round_trip.0.extend((0..arguments.messages).map(|_| cross(&mut socket)));
            both.0.extend((0..arguments.messages).map(|_| cross(&mut together)));
        }
    }
    consumer.shutdown().await;
    producer.shutdown().await;
    client.shutdown().await;

    let mut rows = vec![("delivery", &mut delivery), ("send", &mut send)];
    if broker.is_some() {
        rows.extend([("disk", &mut write), ("socket", &mut round_trip), ("together", &mut both)]);
    }
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, times)| (name, times.percentile(50.0), times.percentile(99.0)))
        .collect();
    if arguments.json {
        let times = rows.iter().map(|(name, p50, p99)| (*name, json!({"p50_us": p50, "p99_us": p99})));
        println!("{}", serde_json::Value::from_iter(times));
        return;
    }
    println!("{:>10} {:>10} {:>10}", "us", "p50", "p99");
    for (name, p50, p99) in &rows {
        println!("{name:>10} {p50:>10.1} {p99:>10.1}");
    }
    if let [delivery, _, disk, socket, together] = &rows[..] {
        let (p50, p99) = (delivery.1 / (disk.1 + socket.1), delivery.2 / (disk.2 + socket.2));
        println!("delivery is {p50:.2} (p50) and {p99:.2} (p99) times disk and socket");
        let (p50, p99) = (delivery.1 / together.1, delivery.2 / together.2);
        println!("delivery is {p50:.2} (p50) and {p99:.2} (p99) times both in one round trip");
    }
}

/// Sends messages, the next one when the last one was handled.
async fn deliver(
    producer: &Producer,
    arrivals: &mut UnboundedReceiver<Instant>,
    count: usize,
    delivery: &mut Times,
    send: &mut Times,
) {
    for _ in 0..count {
        let message = Message::new("EndToEnd", vec![b'm'; MESSAGE_BYTES]);
        let begun = Instant::now();
        let sent = async {
            producer.send(message).await.expect("the broker takes it");
            begun.elapsed()
        };
        let (sent, handled) = tokio::join!(sent, arrivals.recv());
        send.0.push(sent);
        delivery.0.push(handled.expect("the consumer runs").duration_since(begun));
    }
}

/// A file whose sectors can be written without a change of anything but their content.
fn zeroed_file(path: &Path) -> File {
    fs::write(path, vec![0; FILE_SECTORS as usize * SECTOR]).expect("room on the disk");
    let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC;
    let file = OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(path);
    let file = file.expect("the file system has direct I/O");
    file.sync_all().expect("the disk takes it");
    file
}

fn write_sector(file: &File, sector: u64) -> Duration {
    // Direct I/O wants memory that begins at a sector.
    let buffer = vec![b's'; 2 * SECTOR];
    let from = buffer.as_ptr().align_offset(SECTOR);
    let begun = Instant::now();
    file.write_all_at(&buffer[from..from + SECTOR], sector * SECTOR as u64).expect("the disk takes it");
    begun.elapsed()
}

/// A thread that sends back whatever it gets when it has done something with it, and a connection to it.
fn echo(mut work: impl FnMut() + Send + 'static) -> TcpStream {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        pin_to(0);
        let (mut peer, _) = listener.accept().expect("one connection");
        peer.set_nodelay(true).expect("a socket");
        let mut buffer = [0; MESSAGE_BYTES];
        while peer.read_exact(&mut buffer).is_ok() {
            work();
            if peer.write_all(&buffer).is_err() {
                break;
            }
        }
    });
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_nodelay(true).expect("a socket");
    socket
}

/// Keeps this thread on a core.
fn pin_to(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).expect("the core is ours");
}

fn cross(socket: &mut TcpStream) -> Duration {
    let mut buffer = [b'm'; MESSAGE_BYTES];
    let begun = Instant::now();
    socket.write_all(&buffer).expect("the echo runs");
    socket.read_exact(&mut buffer).expect("the echo runs");
    begun.elapsed()
}
