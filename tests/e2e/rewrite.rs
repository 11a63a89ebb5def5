//! Room on the disk comes back for messages of a topic whose own time is over, and everything else stays what it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringmq_client::{Client, ConsumeFrom, Message, MessageExt, MessageKey, MessageQueue, QueueOffset};
use ringmq_protocol::body::{Body, KvTable};
use ringmq_protocol::code::RequestCode;
use ringmq_tests::{Broker, Options, PATIENCE, Raw, TempDir, binaries};
use tokio::task::JoinSet;

const BRIEF: &str = "Brief";
const LASTING: &str = "Lasting";
const QUEUES: u64 = 2;
/// Of each queue of both topics: 45 MiB in all, nearly all of it brief.
const MESSAGES: u64 = 500;
const BRIEF_BYTES: usize = 42 << 10;
const LASTING_BYTES: usize = 1500;
const SEGMENT: u64 = 8 << 20;
const GROUP: &str = "readers";

fn body(topic: &str, queue_id: i32, number: u64) -> Vec<u8> {
    let mut state = number << 9 | (queue_id as u64) << 1 | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let bytes = if topic == BRIEF { BRIEF_BYTES } else { LASTING_BYTES };
    words.flatten().take(bytes).collect()
}

fn key(topic: &str, queue_id: i32, number: u64) -> String {
    format!("{topic}-{queue_id}-{number}")
}

/// Asks again until it holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "still not after {PATIENCE:?}: {what}");
        // Nothing announces it, and asking takes the broker's time.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All queues at the same time, each in its order.
async fn produce(client: &Client) {
    let producer = client.producer("senders").compress_over(None).build().unwrap();
    let mut lanes = JoinSet::new();
    for topic in [BRIEF, LASTING] {
        for queue in producer.queues(topic).await.unwrap() {
            let producer = producer.clone();
            lanes.spawn(async move {
                for number in 0..MESSAGES {
                    let bytes = body(&queue.topic, queue.queue_id, number);
                    let key = key(&queue.topic, queue.queue_id, number);
                    let message = Message::new(&queue.topic, bytes).with_keys([key.as_str()]);
                    let sent = producer.send_to(&queue, message).await.unwrap();
                    assert_eq!(sent.queue_offset, QueueOffset(number));
                }
            });
        }
    }
    while let Some(joined) = lanes.join_next().await {
        joined.unwrap();
    }
    producer.shutdown().await;
}

/// All messages of the lasting topic, each with the bytes that were sent, found by offset, by key and by place.
async fn read_lasting(client: &Client) -> Vec<MessageExt> {
    let queues: Vec<MessageQueue> =
        client.admin().queues(LASTING).await.unwrap().into_iter().map(|status| status.queue).collect();
    let builder = client.pull_consumer(GROUP).assign(queues, "*").ignore_committed(true);
    let mut consumer = builder.consume_from(ConsumeFrom::FirstOffset).build().await.unwrap();
    let mut next = [0; QUEUES as usize];
    let mut all = Vec::new();
    while all.len() < (QUEUES * MESSAGES) as usize {
        let batch = consumer.poll(PATIENCE).await.unwrap_or_else(|| panic!("after {} messages", all.len()));
        for message in batch.messages {
            let next = &mut next[batch.queue.queue_id as usize];
            assert_eq!(message.queue_offset, QueueOffset(*next), "{:?}", batch.queue);
            assert!(message.message.body == body(LASTING, batch.queue.queue_id, *next), "another body");
            *next += 1;
            all.push(message);
        }
    }
    consumer.shutdown().await;
    all.sort_by_key(|message| message.physical_offset);
    let admin = client.admin();
    for sample in all.iter().step_by(37) {
        let key = MessageKey::User(key(LASTING, sample.queue_id.0 as i32, sample.queue_offset.0));
        let found = admin.query_message(LASTING, &key, 0..=i64::MAX, 8).await.unwrap();
        assert!(found.len() == 1 && found[0].message == *sample);
        assert!(admin.message(sample.offset_message_id()).await.unwrap() == *sample);
    }
    all
}

async fn first_offsets(client: &Client, topic: &str) -> Vec<u64> {
    client.admin().queues(topic).await.unwrap().iter().map(|status| status.min.0).collect()
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit())
    };
    let listed = fs::read_dir(data.join("shard-00")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<PathBuf> = listed.filter(is_segment).collect();
    segments.sort();
    segments
}

/// Bytes that a file has on the disk.
fn room(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn room_given_back(broker: &Broker) -> u64 {
    let mut raw = Raw::connect(broker.address(0));
    let answer = raw.call(RequestCode::GET_BROKER_RUNTIME_INFO, &(), Vec::new());
    KvTable::from_json(&answer.body).unwrap().table["roomGivenBackTotal"].parse().unwrap()
}

fn log_tool(data: &Path, command: &str, more: &[&str]) -> String {
    let mut tool = Command::new(binaries::binary("ringmq"));
    let output = tool.args(["log", command]).arg(data).args(more).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[tokio::test]
async fn a_topic_with_a_shorter_time_gives_its_room_back_and_others_keep_everything() {
    let temp = TempDir::new("rewrite");
    let data = temp.path().join("data");
    let mut broker = Broker::start_with(Options {
        shards: 1,
        arguments: ["--segment-size", "8MiB", "--rewrite-rate", "512MiB"].map(Into::into).to_vec(),
        data: Some(data.clone()),
    });
    let queues = QUEUES.to_string();
    broker.run_cli(&["topic", "create", BRIEF, "--queues", &queues, "--retention", "2s"]);
    broker.run_cli(&["topic", "create", LASTING, "--queues", &queues]);
    let client = Client::new(broker.name_server()).await.unwrap();
    produce(&client).await;
    let stored = read_lasting(&client).await;
    let whole = segments(&data);
    assert!(whole.len() >= 5, "{whole:?}");
    // The newest ones may be read by a start, and stay as they are.
    let old = &whole[..whole.len() - 3];
    until("old segments are rewritten", async || old.iter().all(|path| room(path) < SEGMENT / 4)).await;
    assert!(old.iter().all(|path| fs::metadata(path).unwrap().len() == SEGMENT));
    until("the broker says so", async || room_given_back(&broker) > old.len() as u64 * SEGMENT / 2).await;
    let said = broker.errors();
    let line = format!("segment {} was rewritten", old[0].file_name().unwrap().to_str().unwrap());
    assert!(!said.contains("ERROR"), "{said}");
    assert!(said.contains(&line) && said.contains("(Brief)") && said.contains("bytes given back"), "{said}");

    until("the time of all is over", async || first_offsets(&client, BRIEF).await == [MESSAGES; 2]).await;
    // A longer time brings nothing back.
    broker.run_cli(&["topic", "create", BRIEF, "--queues", &queues, "--retention", "72h"]);
    for way in ["as it is", "killed", "killed and without indexes"] {
        if way != "as it is" {
            broker.kill9();
            if way != "killed" {
                whole.iter().for_each(|path| drop(fs::remove_file(path.with_extension("index"))));
            }
            broker.restart();
        }
        assert!(read_lasting(&client).await == stored, "{way}: other messages");
        assert_eq!(first_offsets(&client, LASTING).await, [0; 2], "{way}");
        assert_eq!(first_offsets(&client, BRIEF).await, [MESSAGES; 2], "{way}");
        let gone = MessageKey::User(key(BRIEF, 0, 1));
        let found = client.admin().query_message(BRIEF, &gone, 0..=i64::MAX, 8).await.unwrap();
        assert!(found.is_empty(), "{way}");
    }
    client.shutdown().await;
    broker.stop();
    assert!(old.iter().all(|path| room(path) < SEGMENT / 4), "a start changed them");
    let verified = log_tool(&data, "verify", &[]);
    assert!(!verified.contains("damaged") && !verified.contains("wrong"), "{verified}");
    let shown = log_tool(&data, "inspect", &["--records", "--count", "100"]);
    assert!(
        shown.contains("  gap ") && shown.contains("topic Lasting") && !shown.contains("topic Brief"),
        "{shown}"
    );
}
