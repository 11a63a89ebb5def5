//! The hot paths of a shard without a disk or a network: `cargo bench`.
//!
//! Each figure is the time of one operation on one core. `send` is everything between a received frame and the bytes of
//! the log and of the answer; `pull` everything between a received frame and the ranges to be sent.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringmq::shard::{ConnectionId, Effects, FlushDiskType, Shard, ShardConfig, Time, limits};
use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::{Codec, Fields, Frame, RemotingCommand};
use ringmq_protocol::request::{PullMessageRequest, SendMessageRequest, pull_flag};
use ringmq_storage::{LogConfig, MemoryStore};
use std::hint::black_box;

/// A shard on a disk that takes no time: writes are complete as soon as they are submitted.
struct Fast {
    shard: Shard,
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
            key_salt: 1,
        };
        let log = LogConfig { record_bytes_max: limits::RECORD_BYTES_MAX as u32, ..LogConfig::default() };
        let mut shard = Shard::boot(config, log, &mut MemoryStore::default(), 0, &mut |_| {}).unwrap().shard;
        shard.begin_turn(Time { monotonic_ms: 1, wall_ms: 1_700_000_000_000 });
        Fast { shard, fx: Effects::default() }
    }

    fn turn(&mut self, frame: &[u8]) {
        let frame = Frame::decode(frame).unwrap();
        self.shard.on_frame(ConnectionId(1), "127.0.0.1:4567".parse().unwrap(), &frame, &mut self.fx);
        while let Some(wanted) = self.shard.prepare_wanted() {
            self.shard.on_prepared(wanted.segment, wanted.to);
        }
        while let Some(write) = self.shard.next_write() {
            self.shard.on_written(write.block, Ok(()), &mut self.fx);
        }
        self.fx.replies.drain(|_, head, body| {
            black_box((head, body));
        });
    }
}

fn frame(codec: Codec, code: RequestCode, fields: &dyn Fields, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    RemotingCommand::request(code, fields, Bytes::copy_from_slice(body)).encode(codec, &mut out);
    out
}

fn send_frame(codec: Codec, topic: &str, batch: bool, body: &[u8]) -> Vec<u8> {
    let key = "UNIQ_KEY\x017F00000100002A9F0000000000000001\x02WAIT\x01true\x02TAGS\x01TagA\x02";
    let send = SendMessageRequest {
        producer_group: "bench".into(),
        topic: topic.to_owned().into(),
        default_topic: "TBW102".into(),
        default_topic_queue_nums: 4,
        queue_id: 0,
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
    let pull = PullMessageRequest {
        consumer_group: "bench".into(),
        topic: "T".into(),
        queue_id: 0,
        queue_offset: from,
        max_msg_nums: count,
        sys_flag: pull_flag::SUBSCRIPTION,
        commit_offset: 0,
        suspend_timeout_millis: 0,
        subscription: Some("*".into()),
        sub_version: 0,
        expression_type: Some("TAG".into()),
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
    }
    let mut fast = Fast::new();
    let bytes = send_frame(Codec::RocketMq, "T", true, &batch_body(1000, 128));
    group.throughput(Throughput::Elements(1000));
    group.bench_function("batch_1000_of_128B", |b| b.iter(|| fast.turn(black_box(&bytes))));
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
        });
    }
    group.finish();
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

criterion_group!(benches, frames, sends, pulls);
criterion_main!(benches);
