//! What no client should send: each gets its code or a closed connection, and others notice nothing.

use std::io::Read;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::{Codec, Fields, RemotingCommand};
use ringmq_protocol::request::{
    CreateTopicRequest, PullMessageRequest, QueryConsumerOffsetRequest, SendMessageRequest,
};
use ringmq_protocol::types::QueueId;
use ringmq_tests::{Broker, Options, Raw};

use crate::requests::{bodies, heartbeat, max_offset, pull, send, send_with, store};

const TOPIC: &str = "Topic";

/// A well-behaved client that sends and reads all the while.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Bystander {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut raw = Raw::connect(address);
            let mut count = 0;
            // At least once, however late it comes to run.
            loop {
                let body = format!("message {count}");
                assert_eq!(store(&mut raw, &send("Bystander", 0), body.clone()), count);
                let got =
                    raw.call(RequestCode::PULL_MESSAGE, &pull("Bystander", count, 0, "*"), Bytes::new());
                assert_eq!(bodies(&got), [body.as_bytes()]);
                count += 1;
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Self { stop, thread }
    }

    /// Ends it; it has seen nothing but what it expected.
    fn join(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the bystander is unharmed");
    }
}

/// Fields that are given one by one, so that some can be left out.
fn fields_without(fields: &dyn Fields, name: &str) -> Vec<(String, String)> {
    let pairs = fields.to_pairs();
    let kept: Vec<_> = pairs.iter().filter(|(key, _)| key != name).cloned().collect();
    assert_eq!(kept.len() + 1, pairs.len(), "there is a field {name}");
    kept
}

/// A refusal with this code whose remark has this part.
fn assert_refused(response: &RemotingCommand, code: i32, part: &str) {
    assert_eq!(response.code, code, "{response:?}");
    let remark = response.remark.as_deref().unwrap_or_default();
    assert!(remark.contains(part), "{part:?} is not in {remark:?}");
}

#[test]
fn what_is_no_frame_closes_the_connection() {
    let mut broker = Broker::start(1);
    let bystander = Bystander::start(broker.address(0));
    let frame =
        Raw::connect(broker.address(0)).encode(RequestCode::HEART_BEAT, &(), heartbeat("x", "readers")).1;
    let spoiled = |at: usize, bytes: &[u8]| {
        let mut frame = frame.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let mut random = [0; 4096];
    StdRng::seed_from_u64(7).fill(&mut random[..]);
    random[0] |= 1; // a length of 16 MiB and more
    let header_len = u32::from_be_bytes([0, frame[5], frame[6], frame[7]]);
    let cases: [(&str, Vec<u8>); 8] = [
        ("random bytes", random.to_vec()),
        ("a frame of 16 MiB and a byte", spoiled(0, &(16 << 20 | 1u32).to_be_bytes())),
        ("a frame of less than nothing", spoiled(0, &(-1i32).to_be_bytes())),
        ("a frame without room for its header's length", spoiled(0, &3u32.to_be_bytes())),
        ("a header longer than the frame", spoiled(5, &[0xff, 0xff, 0xff])),
        ("an unknown codec", spoiled(4, &[7])),
        ("a header that ends in the middle", spoiled(5, &(header_len - 9).to_be_bytes()[1..])),
        ("a header that is no UTF-8", spoiled(9, &[0xff])),
    ];
    for (what, bytes) in cases {
        let mut raw = Raw::connect(broker.address(0));
        // The broker may close before all is written.
        let _ = raw.send_bytes(&bytes);
        assert!(raw.is_closed_by_broker(), "{what} leaves the connection open");
    }
    bystander.join();
    broker.stop();
}

#[test]
fn what_is_no_right_request_is_refused() {
    let mut broker = Broker::start(1);
    let bystander = Bystander::start(broker.address(0));
    for codec in [Codec::Json, Codec::RocketMq] {
        let mut raw = Raw::connect(broker.address(0)).with_codec(codec);
        refuse_requests(&mut raw);
    }
    bystander.join();
    broker.stop();
}

fn refuse_requests(raw: &mut Raw) {
    let first = store(raw, &send(TOPIC, 0), "a message");
    let empty = Bytes::new;
    let mut send_call = |request: &SendMessageRequest<'_>, body: Bytes| {
        raw.call(RequestCode::SEND_MESSAGE_V2, &request.fields_v2(), body)
    };

    let (longest, too_long) = ("t".repeat(127), "t".repeat(128));
    assert_eq!(send_call(&send(&longest, 0), "x".into()).code, 0);
    assert_refused(&send_call(&send(&too_long, 0), "x".into()), 29, "127");
    assert_eq!(send_call(&send("no/topic", 0), "x".into()).code, 29);
    assert_refused(&send_call(&send(TOPIC, 4), "x".into()), 29, "queueId[4]");
    let no_template = SendMessageRequest { default_topic: "Nothing".into(), ..send("Unknown", 0) };
    assert_refused(&send_call(&no_template, "x".into()), 17, "Unknown");
    assert_eq!(send_call(&send(TOPIC, 0), vec![0; (4 << 20) + 1].into()).code, 13);
    assert_eq!(send_call(&send(TOPIC, 0), empty()).code, 13);
    // What this version cannot do is refused, not done differently.
    for name in ["TIMER_DELAY_SEC", "TIMER_DELIVER_MS"] {
        assert_refused(&send_call(&send_with(TOPIC, name, "3"), "x".into()), 13, "timed");
    }
    assert_refused(&send_call(&send_with(TOPIC, "DELAY", "soon"), "x".into()), 13, "delay level");
    assert_refused(&send_call(&send("SCHEDULE_TOPIC_XXXX", 0), "x".into()), 16, "forbidden");
    assert_refused(&send_call(&send_with(TOPIC, "TRAN_MSG", "true"), "x".into()), 16, "transaction");
    let prepared = SendMessageRequest { sys_flag: 4, ..send(TOPIC, 0) };
    assert_refused(&send_call(&prepared, "x".into()), 16, "transaction");

    let mut body = Vec::new();
    for text in ["first", "second"] {
        BatchEntry { flag: 0, body: text.as_bytes(), properties: b"" }.encode(&mut body).unwrap();
    }
    let batch = SendMessageRequest { batch: true, ..send(TOPIC, 0) };
    let second = body.len() / 2;
    for (at, what) in [(second, "size"), (second + 16, "body"), (body.len() - 2, "properties")] {
        let mut body = body.clone();
        body[at + 1] = 0x7f;
        let response = raw.call(RequestCode::SEND_BATCH_MESSAGE, &batch.fields_v2(), body);
        assert_refused(&response, 13, what);
    }
    assert_eq!(raw.call(RequestCode::SEND_BATCH_MESSAGE, &batch.fields_v2(), empty()).code, 13);
    let mut delayed = Vec::new();
    BatchEntry { flag: 0, body: b"entry", properties: b"DELAY\x011\x02" }.encode(&mut delayed).unwrap();
    let response = raw.call(RequestCode::SEND_BATCH_MESSAGE, &batch.fields_v2(), delayed);
    assert_refused(&response, 13, "DELAY");

    let request = fields_without(&send(TOPIC, 0), "topic");
    assert_refused(&raw.call(RequestCode::SEND_MESSAGE, &request, "x"), 1, "topic is missing");
    let request = fields_without(&pull(TOPIC, 0, 0, "*"), "queueOffset");
    assert_refused(&raw.call(RequestCode::PULL_MESSAGE, &request, empty()), 1, "queueOffset is missing");
    let request = vec![("topic".to_owned(), TOPIC.to_owned()), ("queueId".to_owned(), "many".to_owned())];
    assert_refused(&raw.call(RequestCode::GET_MAX_OFFSET, &request, empty()), 1, "queueId");

    let unknown = PullMessageRequest { topic: "Unknown".into(), ..pull(TOPIC, 0, 0, "*") };
    assert_refused(&raw.call(RequestCode::PULL_MESSAGE, &unknown, empty()), 17, "Unknown");
    let wrong = PullMessageRequest { queue_id: 4, ..pull(TOPIC, 0, 0, "*") };
    assert_refused(&raw.call(RequestCode::PULL_MESSAGE, &wrong, empty()), 29, "queueId[4]");
    assert_eq!(raw.call(RequestCode::PULL_MESSAGE, &pull(TOPIC, 1 << 40, 0, "*"), empty()).code, 21);
    let sql = PullMessageRequest { expression_type: Some("SQL92".into()), ..pull(TOPIC, 0, 0, "a > 'x'") };
    assert_refused(&raw.call(RequestCode::PULL_MESSAGE, &sql, empty()), 23, "character 5, at `'x'`");
    let other = PullMessageRequest { expression_type: Some("XPATH".into()), ..pull(TOPIC, 0, 0, "//a") };
    assert_refused(&raw.call(RequestCode::PULL_MESSAGE, &other, empty()), 1, "TAG and SQL92");
    assert_eq!(raw.call(RequestCode::HEART_BEAT, &(), "{\"clientID\":").code, 1);
    assert_refused(&raw.call(9999, &(), empty()), 3, "9999");

    // Answers come in the order of requests: one to a one-way request would come before that to the last.
    raw.send_one_way(9999, &(), empty()).unwrap();
    raw.send_one_way(RequestCode::PULL_MESSAGE, &unknown, empty()).unwrap();
    raw.send_one_way(RequestCode::SEND_MESSAGE_V2, &send(TOPIC, 0).fields_v2(), "one way").unwrap();
    assert_eq!(store(raw, &send(TOPIC, 0), "last"), first + 2, "only the one-way message was stored between");
    assert_eq!(max_offset(raw, TOPIC), first + 3);
}

#[test]
fn unknown_topics_are_refused_if_none_may_be_made() {
    let arguments = ["--auto-create-topics", "false"].map(Into::into).to_vec();
    let mut broker = Broker::start_with(Options { shards: 1, arguments, ..Options::default() });
    let mut raw = Raw::connect(broker.address(0));
    let response = raw.call(RequestCode::SEND_MESSAGE_V2, &send("Unknown", 0).fields_v2(), "x");
    assert_refused(&response, 17, "Unknown");
    broker.run_cli(&["topic", "create", "Known"]);
    store(&mut raw, &send("Known", 0), "x");
    let output = broker.cli(&["send", "Unknown", "x"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("Unknown"), "{errors}");
    broker.stop();
}

/// Right requests of all kinds, in both codecs.
fn right_frames(raw: Raw) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut batch = Vec::new();
    for text in ["first", "second", "third"] {
        let entry = BatchEntry { flag: 1, body: text.as_bytes(), properties: b"KEYS\x01k\x02TAGS\x01t" };
        entry.encode(&mut batch).unwrap();
    }
    let topic = CreateTopicRequest::new("Mutated", 4);
    let offset = QueryConsumerOffsetRequest {
        consumer_group: "readers".into(),
        topic: "Mutated".into(),
        queue_id: QueueId(0),
        set_zero_if_not_found: None,
    };
    let mut raw = raw;
    for codec in [Codec::Json, Codec::RocketMq] {
        raw = raw.with_codec(codec);
        let mut add = |code: RequestCode, ext: &dyn Fields, body: &[u8]| {
            frames.push(raw.encode(code, ext, Bytes::copy_from_slice(body)).1);
        };
        add(RequestCode::SEND_MESSAGE, &send("Mutated", 0), b"a body");
        add(RequestCode::SEND_MESSAGE_V2, &send_with("Mutated", "TAGS", "t").fields_v2(), b"a body");
        add(RequestCode::SEND_BATCH_MESSAGE, &send("Mutated", 1).fields_v2(), &batch);
        add(RequestCode::PULL_MESSAGE, &pull("Mutated", 0, 0, "a || b"), b"");
        add(RequestCode::PULL_MESSAGE, &pull("Mutated", 0, 100, "*"), b"");
        add(RequestCode::HEART_BEAT, &(), &heartbeat("mutant", "mutants"));
        add(RequestCode::QUERY_CONSUMER_OFFSET, &offset, b"");
        add(RequestCode::UPDATE_AND_CREATE_TOPIC, &topic, b"");
        add(RequestCode::GET_BROKER_RUNTIME_INFO, &(), b"");
    }
    frames
}

fn mutate(frame: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..frame.len());
        match random.random_range(0..6) {
            0 => frame[at] = random.random(),
            1 => frame[at] ^= 1 << random.random_range(0..8),
            2 => frame.truncate(at.max(1)),
            3 => frame.insert(at, random.random()),
            4 => {
                let end = random.random_range(at..=frame.len().min(at + 64));
                let copy = frame[at..end].to_vec();
                frame.splice(at..at, copy);
            }
            _ => frame[at] = *[0, 0x7f, 0x80, 0xff, b'"', b'{'].get(random.random_range(0..6)).unwrap_or(&0),
        }
    }
    // Most should get beyond the length.
    if random.random_bool(0.7) && frame.len() >= 4 {
        let len = u32::try_from(frame.len() - 4).expect("a small frame");
        frame[..4].copy_from_slice(&len.to_be_bytes());
    }
}

#[test]
fn spoiled_frames_harm_nobody() {
    const SEED: u64 = 20_261_122;
    let mut broker = Broker::start(1);
    let bystander = Bystander::start(broker.address(0));
    let frames = right_frames(Raw::connect(broker.address(0)));
    let mut random = StdRng::seed_from_u64(SEED);
    for number in 0..500 {
        let mut frame = frames[number % frames.len()].clone();
        mutate(&mut frame, &mut random);
        let mut raw = Raw::connect(broker.address(0));
        let _ = raw.send_bytes(&frame);
        // Whatever it takes the frame for, at the end of its input the broker closes.
        let _ = raw.stream().shutdown(Shutdown::Write);
        let closed = raw.stream().read_to_end(&mut Vec::new());
        assert!(
            closed.is_ok() || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
            "frame {number} of seed {SEED} leaves its connection open: {frame:02x?}"
        );
    }
    bystander.join();
    // What of it was stored can be read again.
    let end = max_offset(&mut Raw::connect(broker.address(0)), "Bystander");
    broker.kill9();
    broker.restart();
    assert_eq!(max_offset(&mut Raw::connect(broker.address(0)), "Bystander"), end);
    broker.stop();
    for word in ["panicked", "ERROR"] {
        assert!(!broker.errors().contains(word), "{}", broker.errors());
    }
}
