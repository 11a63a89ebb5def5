//! The hot paths of a shard without a disk or a network: `cargo bench`.
//!
//! Each figure is the time of one operation on one core. `send` is everything between a received frame and the bytes of
//! the log and of the answer; `pull` everything between a received frame and the ranges to be sent. `append` is `send` to few
//! queues and to very many, taken in turn and in random order. `filter` is pulls of which no message is wanted.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringmq::shard::sql::Sql;
use ringmq::shard::{
    ConnectionId, DelayTable, Effects, FlushDiskType, News, Shard, ShardConfig, Time, limits,
};
use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{Codec, Fields, Frame, RemotingCommand, encode};
use ringmq_protocol::properties::Properties;
use ringmq_protocol::request::{PullMessageRequest, SendMessageRequest, SendMessageResponse, pull_flag};
use ringmq_storage::{LogConfig, MemoryStore, seal};
use std::hint::black_box;
use std::time::Duration;

const QUEUES_PER_TOPIC: usize = 5;
/// Of a message of `append`.
const BODY_BYTES: usize = 128;

/// A shard on a disk that takes no time: writes are complete as soon as they are submitted.
struct Fast {
    shard: Shard,
    log: LogConfig,
    fx: Effects,
}

impl Fast {
    fn new() -> Fast {
        let config = ShardConfig {
            broker_name: "bench-0".into(),
            cluster_name: "bench".into(),
            address: "127.0.0.1:10911".parse().unwrap(),
            flush: FlushDiskType::Sync,
            auto_create_topics: true,
            delays: DelayTable::default(),
            key_salt: 1,
        };
        let log = LogConfig { record_bytes_max: limits::RECORD_BYTES_MAX as u32, ..LogConfig::default() };
        let mut shard =
            Shard::boot(config, log.clone(), &mut MemoryStore::default(), 0, &mut |_| {}).unwrap().shard;
        shard.begin_turn(Time { monotonic_ms: 1, wall_ms: 1_700_000_000_000 });
        Fast { shard, log, fx: Effects::default() }
    }

    /// With this many queues that hold a message.
    fn with_queues(queues: usize) -> Fast {
        let mut fast = Fast::new();
        let mut send = QueueSend::of(1);
        for queue in 0..queues {
            fast.turn(send.to(queue));
        }
        fast
    }

    fn turn(&mut self, frame: &[u8]) {
        self.turn_with(frame, |head, body| {
            black_box((head, body));
        });
    }

    /// Once more, to see that it is not refusals that were measured.
    fn check(&mut self, frame: &[u8]) {
        let mut code = None;
        self.turn_with(frame, |head, body| {
            let answer = [head, &body.concat()].concat();
            code = Some(RemotingCommand::decode(&answer.into()).expect("an answer").code);
        });
        assert_eq!(code, Some(ResponseCode::SUCCESS.0));
    }

    fn turn_with(&mut self, frame: &[u8], mut on_answer: impl FnMut(&[u8], Vec<Bytes>)) {
        let frame = Frame::decode(frame).unwrap();
        self.shard.on_frame(ConnectionId(1), "127.0.0.1:4567".parse().unwrap(), &frame, &mut self.fx);
        while let Some(wanted) = self.shard.prepare_wanted() {
            self.shard.on_prepared(wanted.segment, wanted.to);
        }
        while let Some(write) = self.shard.next_write() {
            self.shard.on_written(write.block, Ok(()), &mut self.fx);
        }
        self.shard.on_tick(&mut self.fx);
        for news in self.fx.news.drain(..) {
            // Full segments are sealed as in a broker, only not to a disk: that is part of the cost of a message.
            if let News::Seal(index) = news {
                let mut store = MemoryStore::default();
                self.shard.on_sealed(seal(&mut store, &self.log, &index).expect("memory has no errors"));
            }
        }
        self.fx.replies.drain(|_, head, body| on_answer(head, body));
    }
}

fn frame(codec: Codec, code: RequestCode, fields: &dyn Fields, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    RemotingCommand::request(code, fields, Bytes::copy_from_slice(body)).encode(codec, &mut out);
    out
}

fn send_frame(codec: Codec, topic: &str, batch: bool, body: &[u8]) -> Vec<u8> {
    send_frame_to(codec, topic, 0, batch, body)
}

fn send_frame_to(codec: Codec, topic: &str, queue_id: i32, batch: bool, body: &[u8]) -> Vec<u8> {
    let key = "UNIQ_KEY\x017F00000100002A9F0000000000000001\x02WAIT\x01true\x02TAGS\x01TagA\x02";
    let send = SendMessageRequest {
        producer_group: "bench".into(),
        topic: topic.to_owned().into(),
        default_topic: "TBW102".into(),
        default_topic_queue_nums: QUEUES_PER_TOPIC as i32,
        queue_id,
        sys_flag: 0,
        born_timestamp: 1_700_000_000_000,
        flag: 0,
        properties: Some(key.into()),
        reconsume_times: 0,
        unit_mode: false,
        max_reconsume_times: None,
        batch,
        broker_name: None,
    };
    let code = if batch { RequestCode::SEND_BATCH_MESSAGE } else { RequestCode::SEND_MESSAGE_V2 };
    frame(codec, code, &send.fields_v2(), body)
}

fn batch_body(count: usize, bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..count {
        BatchEntry { flag: 0, body: &vec![7; bytes], properties: b"TAGS\x01TagA\x02" }
            .encode(&mut out)
            .unwrap();
    }
    out
}

fn pull_frame(from: i64, count: i32) -> Vec<u8> {
    filtered_pull_frame(from, count, "TAG", "*")
}

fn filtered_pull_frame(from: i64, count: i32, expression_type: &str, expression: &str) -> Vec<u8> {
    let pull = PullMessageRequest {
        consumer_group: "bench".into(),
        topic: "T".into(),
        queue_id: 0,
        queue_offset: from,
        max_msg_nums: count,
        sys_flag: pull_flag::SUBSCRIPTION,
        commit_offset: 0,
        suspend_timeout_millis: 0,
        subscription: Some(expression.into()),
        sub_version: 0,
        expression_type: Some(expression_type.into()),
        max_msg_bytes: None,
        request_source: None,
        proxy_forward_client_id: None,
    };
    frame(Codec::RocketMq, RequestCode::PULL_MESSAGE, &pull, &[])
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for (name, codec) in [("json", Codec::Json), ("rocketmq", Codec::RocketMq)] {
        let bytes = send_frame(codec, "TopicTest", false, &[1; 128]);
        group.bench_function(format!("decode_send_{name}"), |b| {
            b.iter(|| {
                let frame = Frame::decode(black_box(&bytes)).unwrap();
                let code = RequestCode(frame.header.code);
                black_box(SendMessageRequest::decode(code, &frame.header.ext).unwrap().queue_id)
            });
        });
        let answer = SendMessageResponse {
            msg_id: "7F00000100002A9F0000000000000100".into(),
            queue_id: 3,
            queue_offset: 1_234_567,
            transaction_id: Some("7F00000100002A9F0000000000000001".into()),
            batch_uniq_id: None,
            recall_handle: None,
            region_id: Some("DefaultRegion".into()),
            trace_on: Some(true),
        };
        let head = Frame::decode(&bytes).unwrap().header.reply(ResponseCode::SUCCESS, None);
        let mut out = Vec::new();
        group.bench_function(format!("encode_answer_{name}"), |b| {
            b.iter(|| {
                out.clear();
                encode(&mut out, &head, black_box(&answer), 0);
                black_box(out.len())
            });
        });
    }
    group.finish();
}

fn sends(c: &mut Criterion) {
    let mut group = c.benchmark_group("send");
    group.throughput(Throughput::Elements(1));
    for (name, codec) in [("json", Codec::Json), ("rocketmq", Codec::RocketMq)] {
        let mut fast = Fast::new();
        let bytes = send_frame(codec, "T", false, &[1; 1024]);
        group.bench_function(format!("single_1KiB_{name}"), |b| b.iter(|| fast.turn(black_box(&bytes))));
        fast.check(&bytes);
    }
    let mut fast = Fast::new();
    let bytes = send_frame(Codec::RocketMq, "T", true, &batch_body(1000, 128));
    group.throughput(Throughput::Elements(1000));
    group.bench_function("batch_1000_of_128B", |b| b.iter(|| fast.turn(black_box(&bytes))));
    fast.check(&bytes);
    for topics in [10, 10_000] {
        let mut fast = Fast::new();
        let name = |i: usize| format!("T{i}");
        (0..topics).for_each(|i| fast.turn(&send_frame(Codec::RocketMq, &name(i), false, b"x")));
        let mut at = 0;
        group.throughput(Throughput::Elements(64));
        group.bench_function(format!("batch_64_of_128B_over_{topics}_topics"), |b| {
            b.iter_batched(
                || {
                    at = (at + 7919) % topics;
                    send_frame(Codec::RocketMq, &name(at), true, &batch_body(64, 128))
                },
                |bytes| fast.turn(&bytes),
                BatchSize::SmallInput,
            );
            fast.check(&send_frame(Codec::RocketMq, &name(0), true, &batch_body(64, 128)));
        });
    }
    group.finish();
}

/// A send whose queue is changed in the encoded frame, so that making frames costs next to nothing.
struct QueueSend {
    frame: Vec<u8>,
    topic_at: usize,
    queue_at: usize,
}

impl QueueSend {
    /// Sends of this many messages.
    fn of(count: usize) -> QueueSend {
        let [frame, other_topic, other_queue] = [("T00000", 0), ("T00001", 0), ("T00000", 1)]
            .map(|(topic, queue)| queue_frame(topic, queue, count));
        let last_difference =
            |other: &[u8]| frame.iter().zip(other).rposition(|(a, b)| a != b).expect("the frames differ");
        let (topic_at, queue_at) = (last_difference(&other_topic) - 5, last_difference(&other_queue));
        QueueSend { frame, topic_at, queue_at }
    }

    fn to(&mut self, queue: usize) -> &[u8] {
        let mut topic = queue / QUEUES_PER_TOPIC;
        for digit in self.frame[self.topic_at + 1..][..5].iter_mut().rev() {
            *digit = b'0' + (topic % 10) as u8;
            topic /= 10;
        }
        self.frame[self.queue_at] = b'0' + (queue % QUEUES_PER_TOPIC) as u8;
        &self.frame
    }
}

fn queue_frame(topic: &str, queue_id: i32, count: usize) -> Vec<u8> {
    let body = if count > 1 { batch_body(count, BODY_BYTES) } else { vec![7; BODY_BYTES] };
    send_frame_to(Codec::RocketMq, topic, queue_id, count > 1, &body)
}

/// Every queue once, in an order that no prefetcher guesses.
fn shuffled(queues: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..queues).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..queues).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, (state % (at as u64 + 1)) as usize);
    }
    order
}

fn appends(c: &mut Criterion) {
    for count in [64, 1] {
        let mut group = c.benchmark_group(format!("append_{count}_of_128B"));
        group.throughput(Throughput::Elements(count as u64)).measurement_time(Duration::from_secs(3));
        for queues in [10, 100_000] {
            for (name, order) in [("in_turn", (0..queues).collect()), ("random", shuffled(queues))] {
                group.bench_function(format!("{queues}_queues_{name}"), |b| {
                    let mut fast = Fast::with_queues(queues);
                    let mut send = QueueSend::of(count);
                    let mut next = order.iter().cycle();
                    b.iter(|| fast.turn(send.to(*next.next().expect("it goes round"))));
                    fast.check(send.to(0));
                });
            }
        }
        group.finish();
    }
}

fn pulls(c: &mut Criterion) {
    let mut group = c.benchmark_group("pull");
    let mut fast = Fast::new();
    fast.turn(&send_frame(Codec::RocketMq, "T", true, &batch_body(1000, 1024)));
    for count in [1, 100] {
        let bytes = pull_frame(10, count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("tail_{count}_of_1KiB"), |b| b.iter(|| fast.turn(black_box(&bytes))));
    }
    group.finish();
}

/// Pulls that look at a thousand messages and want none; the time is for one message.
fn filters(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter");
    let mut fast = Fast::new();
    fast.turn(&send_frame(Codec::RocketMq, "T", true, &batch_body(1000, 128)));
    group.throughput(Throughput::Elements(1000));
    for (name, expression_type, expression) in [
        ("tag", "TAG", "other || another"),
        ("sql_one_property", "SQL92", "TAGS = 'other'"),
        (
            "sql_three_properties",
            "SQL92",
            "size > 3 AND size < 5 OR colour IN ('red', 'blue') OR TAGS CONTAINS 'b'",
        ),
    ] {
        let bytes = filtered_pull_frame(0, 32, expression_type, expression);
        group
            .bench_function(format!("{name}_of_1000_in_memory"), |b| b.iter(|| fast.turn(black_box(&bytes))));
    }
    group.throughput(Throughput::Elements(1));
    let expression = "size > 3 AND size < 5 OR colour IN ('red', 'blue') OR TAGS CONTAINS 'b'";
    group.bench_function("sql_compile", |b| b.iter(|| Sql::compile(black_box(expression)).unwrap()));
    let sql = Sql::compile(expression).unwrap();
    let properties = b"UNIQ_KEY\x017F00000100002A9F0000000000000001\x02WAIT\x01true\x02size\x0117\x02colour\x01green\x02TAGS\x01TagA\x02";
    group.bench_function("sql_evaluate", |b| b.iter(|| sql.matches(Properties::new(black_box(properties)))));
    group.finish();
}

criterion_group!(benches, frames, sends, appends, pulls, filters);
criterion_main!(benches);
