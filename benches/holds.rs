//! What pulls cost that wait for a message.
//!
//!   cargo bench -p ringmq-tests --bench holds -- [--pulls 100000] [--connections 4] [--wakes 1000]
//!
//! A broker process with one shard, its data in memory of the page cache (`--flush async`), so that only what the broker does is
//! in the figures. Pulls are parked over a few connections, in turn:
//!
//!   one       one pull: what waking costs at least
//!   tags      all at one queue, each for a tag of its own
//!   queues    one at each of as many queues
//!   expiry    all at one queue, with deadlines less than a second apart; another connection asks for something all the while
//!
//! Memory is the growth of the process for each pull, the bytes of its connection included. CPU is that of the process while
//! nothing happens. Waking is the time from before the send until the answer to the pull is read.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::properties;
use ringmq_protocol::request::{
    CreateTopicRequest, GetMaxOffsetRequest, PullMessageRequest, SendMessageRequest,
};
use ringmq_protocol::types::QueueId;
use ringmq_tests::process::{cpu_ticks, resident_bytes};
use ringmq_tests::{Broker, Options, Raw};

const QUEUES_PER_TOPIC: usize = 4000;
const IDLE: Duration = Duration::from_secs(5);
const LONG_MS: i64 = 60_000;
/// In which the pulls of `expiry` are to be parked.
const PARKING_MS: i64 = 8_000;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 100_000)]
    pulls: usize,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Messages sent to wake one pull each.
    #[arg(long, default_value_t = 1000)]
    wakes: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Bench {
    broker: Broker,
    writer: Raw,
    readers: Vec<Raw>,
}

impl Bench {
    fn start(connections: usize) -> Bench {
        let arguments = vec!["--flush".into(), "async".into()];
        let broker = Broker::start_with(Options { shards: 1, arguments, ..Options::default() });
        let writer = Raw::connect(broker.address(0));
        let readers = (0..connections).map(|_| Raw::connect(broker.address(0))).collect();
        Bench { broker, writer, readers }
    }

    fn create(&mut self, topic: &str, queues: usize) {
        let request = CreateTopicRequest::new(topic, queues as i32);
        let response = self.writer.call(RequestCode::UPDATE_AND_CREATE_TOPIC, &request, Bytes::new());
        assert_eq!(response.code, 0, "{response:?}");
    }

    /// Parks the i-th pull on one of the connections.
    fn park(&mut self, i: usize, topic: &str, queue: usize, offset: i64, hold_ms: i64, tags: &str) {
        let request =
            PullMessageRequest::new("holds", topic, queue as i32, offset).filtered(tags).held(hold_ms);
        let reader = i % self.readers.len();
        self.readers[reader]
            .send(RequestCode::PULL_MESSAGE, &request, Bytes::new())
            .expect("the broker reads");
    }

    /// Whatever was sent before has been handled.
    fn settle(&mut self, topic: &str) {
        for reader in &mut self.readers {
            max_offset(reader, topic);
        }
    }

    /// Sends a message that wakes the i-th pull; gives the time until its answer is read, and the offset behind it.
    fn wake(&mut self, i: usize, topic: &str, queue: usize, tag: &str) -> (Duration, i64) {
        let properties = properties::encode([("TAGS", tag)]).expect("a tag without separators");
        let request = SendMessageRequest {
            producer_group: "holds".into(),
            topic: topic.into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: 4,
            queue_id: queue as i32,
            sys_flag: 0,
            born_timestamp: 1,
            flag: 0,
            properties: Some(String::from_utf8(properties).expect("UTF-8").into()),
            reconsume_times: 0,
            unit_mode: false,
            max_reconsume_times: None,
            batch: false,
            broker_name: None,
        };
        let reader = i % self.readers.len();
        let begun = Instant::now();
        self.writer
            .send(RequestCode::SEND_MESSAGE_V2, &request.fields_v2(), "wake up")
            .expect("the broker reads");
        let answer = self.readers[reader].response();
        let took = begun.elapsed();
        assert_eq!(answer.code, 0, "{answer:?}");
        assert_eq!(self.writer.response().code, 0);
        (took, answer.ext("nextBeginOffset").and_then(|next| next.parse().ok()).expect("an offset"))
    }
}

fn max_offset(raw: &mut Raw, topic: &str) {
    let request = GetMaxOffsetRequest { topic: topic.into(), queue_id: QueueId(0), committed: true };
    assert_eq!(raw.call(RequestCode::GET_MAX_OFFSET, &request, Bytes::new()).code, 0);
}

/// Median, 99th percentile and the longest, in microseconds.
fn times(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    format!("{:.0} µs median, {:.0} µs p99, {:.0} µs longest", at(50), at(99), at(100))
}

fn idle(pid: u32) -> String {
    let ticks = cpu_ticks(pid);
    std::thread::sleep(IDLE); // not to wait for anything: this is what is measured
    let percent = (cpu_ticks(pid) - ticks) as f64 / IDLE.as_secs_f64();
    format!("{percent:.1} % of a core while idle")
}

/// Parks `pulls` pulls, each at a queue and for a tag, and wakes `wakes` of them one by one.
fn waiting(
    arguments: &Arguments,
    name: &str,
    pulls: usize,
    place: impl Fn(usize) -> (String, usize, String),
) {
    let mut bench = Bench::start(arguments.connections.min(pulls));
    let topics = pulls.div_ceil(QUEUES_PER_TOPIC);
    (0..topics).for_each(|topic| bench.create(&format!("T{topic}"), QUEUES_PER_TOPIC));
    bench.settle("T0");
    let before = resident_bytes(bench.broker.pid());
    let begun = Instant::now();
    for i in 0..pulls {
        let (topic, queue, tag) = place(i);
        bench.park(i, &topic, queue, 0, LONG_MS, &tag);
    }
    bench.settle("T0");
    let parking = begun.elapsed();
    let bytes = (resident_bytes(bench.broker.pid()) - before) / pulls as u64;
    let cpu = idle(bench.broker.pid());
    let wakes = (0..arguments.wakes)
        .map(|wake| {
            let i = wake.wrapping_mul(7919) % pulls;
            let (topic, queue, tag) = place(i);
            let (took, next) = bench.wake(i, &topic, queue, &tag);
            bench.park(i, &topic, queue, next, LONG_MS, &tag);
            let reader = i % bench.readers.len();
            max_offset(&mut bench.readers[reader], &topic); // it waits before the next message comes
            took
        })
        .collect();
    println!("{name}: {pulls} pulls parked in {:.2} s", parking.as_secs_f64());
    if pulls > 1 {
        println!("  {bytes} bytes of memory a pull, {cpu}");
    }
    println!("  waking one: {}", times(wakes));
}

fn expiry(arguments: &Arguments) {
    let mut bench = Bench::start(arguments.connections);
    bench.create("T0", 4);
    let begun = Instant::now();
    for i in 0..arguments.pulls {
        // All deadlines come within less than a second, whenever the pull is parked.
        let hold_ms = PARKING_MS - begun.elapsed().as_millis() as i64;
        assert!(hold_ms > 0, "parking {} pulls took longer than {PARKING_MS} ms", arguments.pulls);
        bench.park(i, "T0", 0, 0, hold_ms, "*");
    }
    let mut writer = bench.writer;
    let total = arguments.pulls;
    let readers: Vec<_> = bench
        .readers
        .into_iter()
        .enumerate()
        .map(|(reader, mut raw)| {
            let count = (total - reader).div_ceil(arguments.connections);
            std::thread::spawn(move || {
                let mut times = (None, Instant::now());
                for _ in 0..count {
                    assert_eq!(raw.response().code, 19);
                    times.1 = Instant::now();
                    times.0.get_or_insert(times.1);
                }
                times
            })
        })
        .collect();
    let mut asked = Vec::new();
    while readers.iter().any(|reader| !reader.is_finished()) {
        let begun = Instant::now();
        max_offset(&mut writer, "T0");
        asked.push((begun, begun.elapsed()));
    }
    let ends: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("a reader")).collect();
    let first = ends.iter().filter_map(|(first, _)| *first).min().expect("answers");
    let last = ends.iter().map(|(_, last)| *last).max().expect("answers");
    let during = asked.iter().filter(|(at, _)| (first..=last).contains(at)).map(|(_, took)| *took).collect();
    println!("expiry: {total} pulls answered within {:.2} s", (last - first).as_secs_f64());
    println!("  another's request meanwhile: {}", times(during));
}

fn main() {
    let arguments = Arguments::parse();
    waiting(&arguments, "one", 1, |_| ("T0".into(), 0, "tag".into()));
    waiting(&arguments, "tags", arguments.pulls, |i| ("T0".into(), 0, format!("tag{i}")));
    let queue = |i| (format!("T{}", i / QUEUES_PER_TOPIC), i % QUEUES_PER_TOPIC, "*".into());
    waiting(&arguments, "queues", arguments.pulls, queue);
    expiry(&arguments);
}
