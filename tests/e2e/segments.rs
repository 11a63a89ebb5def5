//! Many small segments: what was stored is found in all ways when indexes are gone, and what goes when room is short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringmq_client::{
    Client, ConsumeFrom, Message, MessageExt, MessageKey, MessageQueue, PullConsumer, QueueOffset,
};
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::message::messages;
use ringmq_protocol::request::ViewMessageByIdRequest;
use ringmq_tests::{Broker, Options, PATIENCE, Raw, TempDir};
use tokio::task::JoinSet;

use crate::requests::{heartbeat, max_offset, pull, send, store};

const MIB: u64 = 1 << 20;
const TOPICS: [&str; 3] = ["Alpha", "Beta", "Gamma"];
/// Queues of each topic.
const QUEUES: u64 = 4;
/// Messages of each queue: 100 MiB in all.
const MESSAGES: u64 = 268;
const BODY_BYTES: usize = 32 << 10;
/// As many messages of a topic have the same key.
const LOT: u64 = 5;
/// A few messages at the very beginning, and nothing after.
const IDLE: &str = "Idle";
const IDLE_MESSAGES: u64 = 3;
const GROUP: &str = "readers";
/// Every so many messages one is looked for in each way.
const STRIDE: usize = 29;
const IN_FLIGHT: usize = 32;

/// Asks again until it holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "still not after {PATIENCE:?}: {what}");
        // Nothing announces it, and asking takes the broker's time.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A body that tells which message it is, and that does not compress.
fn body(topic: &str, queue_id: i32, number: u64) -> Vec<u8> {
    let mut state = topic
        .bytes()
        .fold(number << 8 | queue_id as u64, |state, byte| state.rotate_left(7) ^ u64::from(byte))
        | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut body = format!("{topic}/{queue_id}@{number} ").into_bytes();
    body.extend(words.flatten().take(BODY_BYTES - body.len()));
    body
}

fn own_key(queue: &MessageQueue, number: u64) -> String {
    format!("{}-{}", queue.queue_id, number)
}

fn lot_key(number: u64) -> String {
    format!("lot-{}", number / LOT)
}

fn assert_is(message: &MessageExt, queue: &MessageQueue, number: u64) {
    assert_eq!((message.queue_id.0 as i32, message.queue_offset.0), (queue.queue_id, number));
    let wanted = body(&queue.topic, queue.queue_id, number);
    assert!(message.message.body == wanted, "the body of {queue:?}@{number} is another");
}

/// Sends everything, to all queues at the same time, each in its order.
async fn produce(client: &Client) {
    let producer = client.producer("senders").compress_over(None).build().unwrap();
    let mut lanes = JoinSet::new();
    for topic in TOPICS {
        for queue in producer.queues(topic).await.unwrap() {
            let producer = producer.clone();
            lanes.spawn(async move {
                for number in 0..MESSAGES {
                    let keys = [own_key(&queue, number), lot_key(number)];
                    let message = Message::new(&queue.topic, body(&queue.topic, queue.queue_id, number))
                        .with_keys(keys.iter().map(String::as_str));
                    let sent = producer.send_to(&queue, message).await.unwrap();
                    assert_eq!(sent.queue_offset, QueueOffset(number));
                }
            });
        }
    }
    finish(lanes).await;
    producer.shutdown().await;
}

async fn finish(mut tasks: JoinSet<()>) {
    while let Some(joined) = tasks.join_next().await {
        joined.unwrap();
    }
}

/// Runs look-ups, a few at a time.
async fn all(lookups: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>) {
    let mut tasks = JoinSet::new();
    for lookup in lookups {
        if tasks.len() >= IN_FLIGHT {
            tasks.join_next().await.unwrap().unwrap();
        }
        tasks.spawn(lookup);
    }
    finish(tasks).await;
}

async fn queues(client: &Client, topics: &[&str]) -> Vec<MessageQueue> {
    let mut queues = Vec::new();
    for topic in topics {
        queues.extend(client.admin().queues(topic).await.unwrap().into_iter().map(|status| status.queue));
    }
    queues
}

/// Messages by queue, in their order.
type Stored = BTreeMap<MessageQueue, Vec<MessageExt>>;

/// Polls until as many messages have come as are wanted. Nothing is skipped within a queue, and nothing comes twice.
async fn poll_all(consumer: &mut PullConsumer, wanted: usize) -> Stored {
    let mut stored = Stored::new();
    let mut count = 0;
    while count < wanted {
        let batch = consumer.poll(PATIENCE).await.unwrap_or_else(|| panic!("{count} of {wanted} messages"));
        let messages = stored.entry(batch.queue.clone()).or_default();
        for message in batch.messages {
            let next = messages.last().map(|last| last.queue_offset.0 + 1);
            assert_is(&message, &batch.queue, next.unwrap_or(message.queue_offset.0));
            messages.push(message);
            count += 1;
        }
    }
    stored
}

/// Reads all queues from offset 0, whatever is left of them.
async fn read_all(client: &Client) -> Stored {
    let ranges = ranges(client).await;
    let count: u64 = ranges.values().map(|range| range.end - range.start).sum();
    let queues: Vec<MessageQueue> = ranges.keys().cloned().collect();
    let builder = client.pull_consumer("TOOLS_CONSUMER").assign(queues.clone(), "*").ignore_committed(true);
    let mut consumer = builder.consume_from(ConsumeFrom::LastOffset).batch_max(32).build().await.unwrap();
    for queue in &queues {
        consumer.seek(queue, QueueOffset(0)).await.unwrap();
    }
    let stored = poll_all(&mut consumer, usize::try_from(count).unwrap()).await;
    consumer.shutdown().await;
    let offsets = |messages: &Vec<MessageExt>| {
        messages[0].queue_offset.0..messages[messages.len() - 1].queue_offset.0 + 1
    };
    let read: BTreeMap<_, _> =
        stored.iter().map(|(queue, messages)| (queue.clone(), offsets(messages))).collect();
    assert_eq!(read, ranges);
    stored
}

/// The offsets that queues have, those without messages left out.
async fn ranges(client: &Client) -> BTreeMap<MessageQueue, Range<u64>> {
    let mut ranges = BTreeMap::new();
    for topic in TOPICS {
        for status in client.admin().queues(topic).await.unwrap() {
            assert_eq!(status.max, QueueOffset(MESSAGES), "{:?}", status.queue);
            ranges.insert(status.queue, status.min.0..status.max.0);
        }
    }
    ranges.retain(|_, range| !range.is_empty());
    ranges
}

/// Looks for messages by both keys, by unique key, by place and by time; what is found is what reading found.
async fn look_up(client: &Client, stored: &Stored) {
    let samples = stored.values().flat_map(|messages| messages.iter().step_by(STRIDE).chain(messages.last()));
    let samples: Vec<MessageExt> = samples.cloned().collect();
    let consumer = client.pull_consumer("TOOLS_CONSUMER").assign(Vec::new(), "*").build().await.unwrap();
    let consumer = std::sync::Arc::new(consumer);
    let lookups = samples.into_iter().map(|sample| {
        let topic = sample.message.topic.clone();
        let (queue, of_queue) = stored
            .iter()
            .find(|(queue, _)| queue.topic == topic && queue.queue_id == sample.queue_id.0 as i32)
            .expect("it was read from there");
        let (queue, number) = (queue.clone(), sample.queue_offset.0);
        let at = sample.store_timestamp;
        let first_at = of_queue.iter().find(|message| message.store_timestamp >= at).map(|m| m.queue_offset);
        let in_lot = |message: &&MessageExt| message.queue_offset.0 / LOT == number / LOT;
        let lot = stored.iter().filter(|(other, _)| other.topic == topic).flat_map(|(_, messages)| messages);
        let mut lot: Vec<MessageExt> = lot.filter(in_lot).cloned().collect();
        lot.sort_by_key(|message| message.physical_offset);
        let (client, consumer) = (client.clone(), consumer.clone());
        async move {
            let admin = client.admin();
            let find = async |key: MessageKey, stored_ms| {
                let found = admin.query_message(&topic, &key, stored_ms, 64).await.unwrap();
                found.into_iter().map(|found| found.message).collect::<Vec<_>>()
            };
            let own = MessageKey::User(own_key(&queue, number));
            let only = vec![sample.clone()];
            assert_eq!(find(own.clone(), 0..=i64::MAX).await, only);
            assert_eq!(find(own.clone(), at.0..=at.0).await, only);
            assert_eq!(find(own, at.0 + 1..=i64::MAX).await, []);
            assert_eq!(find(MessageKey::Unique(sample.message_id()), 0..=i64::MAX).await, only);
            assert_eq!(find(MessageKey::User(lot_key(number)), 0..=i64::MAX).await, lot);
            assert_eq!(admin.message(sample.offset_message_id()).await.unwrap(), sample);
            assert_eq!(Some(consumer.offset_by_time(&queue, at.0).await.unwrap()), first_at);
            assert_eq!(consumer.offset_by_time(&queue, i64::MAX).await.unwrap(), QueueOffset(MESSAGES));
        }
    });
    all(lookups).await;
}

/// The same by the command line, for one message.
fn look_up_by_command(broker: &Broker, sample: &MessageExt) {
    let topic = &sample.message.topic;
    let key = sample.message.keys().next().expect("a key of its own");
    let id = sample.offset_message_id().to_string();
    let printed = broker.run_cli(&["message", "find", "--topic", topic, "--key", key, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&printed).expect("one line of JSON");
    assert_eq!(found["offset_message_id"], id.as_str());
    let stored = found["stored"].as_str().expect("a time");
    let find = |more: &[&str]| {
        let arguments = ["message", "find", "--topic", topic, "--key", key, "--count", "1", "--json"];
        broker.cli(&[&arguments, more].concat()).output().expect("ringmq can be run")
    };
    assert_eq!(String::from_utf8_lossy(&find(&["--begin", stored, "--end", stored]).stdout), printed);
    let after = (sample.store_timestamp.0 + 1).to_string();
    for nothing in [&["--begin", after.as_str()][..], &["--begin", "0ms"], &["--end", "9h"], &["--unique"]] {
        let output = find(nothing);
        assert!(!output.status.success() && output.stdout.is_empty(), "{nothing:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(key), "{output:?}");
    }
    let unique = sample.message_id();
    let people = broker.cli(&["message", "find", "--topic", topic, "--key", &unique, "--unique"]).output();
    let line = people.expect("ringmq can be run").stdout;
    assert!(line.starts_with(stored.as_bytes()), "{}", String::from_utf8_lossy(&line));
    assert!(line.windows(id.len()).any(|window| window == id.as_bytes()), "{id} is not shown");
    let got = broker.cli(&["message", "get", &id, "--raw"]).output().expect("ringmq can be run");
    assert!(got.stdout == [&sample.message.body[..], b"\n"].concat());
}

/// What is not a message: topics, how far the group is, and the ends of a queue that has been idle for long.
async fn small_state(client: &Client) -> String {
    let admin = client.admin();
    let mut offsets = Vec::new();
    for topic in TOPICS {
        for offset in admin.group_offsets(GROUP, topic).await.unwrap() {
            assert_eq!(offset.committed, Some(QueueOffset(MESSAGES)), "{:?}", offset.queue);
            offsets.push(offset);
        }
    }
    let idle: Vec<QueueOffset> = admin.queues(IDLE).await.unwrap().iter().map(|status| status.max).collect();
    assert_eq!(idle, [QueueOffset(IDLE_MESSAGES), QueueOffset(0)]);
    format!("{:?} {offsets:?} {idle:?}", admin.topics().await.unwrap())
}

fn files(dir: &Path, is_wanted: fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, is_wanted));
        } else if path.file_name().and_then(|name| name.to_str()).is_some_and(is_wanted) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn segments(broker: &Broker) -> Vec<PathBuf> {
    files(broker.data(), |name| name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit()))
}

fn indexes(broker: &Broker) -> Vec<PathBuf> {
    files(broker.data(), |name| name.ends_with(".index"))
}

fn bytes_of(paths: &[PathBuf]) -> u64 {
    paths.iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len())).sum()
}

/// Whether there are only so many sealed segments, the one that is written and the next one.
fn only_sealed(broker: &Broker, count: usize) -> bool {
    let (segments, indexes) = (segments(broker), indexes(broker));
    let sealed: Vec<PathBuf> = indexes.iter().map(|path| path.with_extension("")).collect();
    sealed.len() == count && segments.len() == count + 2 && segments.starts_with(&sealed)
}

/// As after a power cut that left the log alone.
fn kill_and_delete_indexes(broker: &mut Broker) {
    broker.kill9();
    let indexes = indexes(broker);
    assert!(!indexes.is_empty());
    indexes.iter().for_each(|path| fs::remove_file(path).unwrap());
    broker.restart();
}

#[tokio::test]
async fn everything_is_found_until_it_is_deleted_and_small_state_for_ever() {
    let temp = TempDir::new("segments");
    let config = temp.path().join("broker.toml");
    fs::write(&config, "").unwrap();
    let mut broker = Broker::start_with(Options {
        shards: 1,
        arguments: vec!["--segment-size".into(), "8MiB".into(), "--config".into(), config.clone().into()],
        data: Some(temp.path().join("data")),
    });
    broker.run_cli(&["topic", "create", IDLE, "--queues", "2"]);
    for number in 0..IDLE_MESSAGES {
        broker.run_cli(&["send", IDLE, &format!("idle {number}"), "--queue", "0", "--key", "of the idle"]);
    }
    let client = Client::new(broker.name_server()).await.unwrap();
    for topic in TOPICS {
        broker.run_cli(&["topic", "create", topic, "--queues", &QUEUES.to_string()]);
    }

    // Consumed while it is produced, and all of it committed.
    let builder = client.pull_consumer(GROUP).assign(queues(&client, &TOPICS).await, "*");
    let mut consumer = builder.consume_from(ConsumeFrom::FirstOffset).build().await.unwrap();
    let everything = usize::try_from(TOPICS.len() as u64 * QUEUES * MESSAGES).unwrap();
    let ((), consumed) = tokio::join!(produce(&client), poll_all(&mut consumer, everything));
    consumer.commit().await.unwrap();
    consumer.shutdown().await;
    let state = small_state(&client).await;
    let bytes = bytes_of(&segments(&broker));
    assert!(bytes > 100 * MIB);

    broker.kill9();
    broker.restart();
    assert!(read_all(&client).await == consumed, "other messages after a kill");
    look_up(&client, &consumed).await;
    look_up_by_command(&broker, &consumed.values().next().expect("queues")[1]);
    assert_eq!(small_state(&client).await, state);

    kill_and_delete_indexes(&mut broker);
    assert!(read_all(&client).await == consumed, "other messages after the indexes were written anew");
    look_up(&client, &consumed).await;
    assert_eq!(small_state(&client).await, state);
    assert!(indexes(&broker).len() >= 11, "{:?}", indexes(&broker));

    // Less room than messages take: the oldest go.
    broker.stop();
    fs::write(&config, "retention-size = \"42MiB\"").unwrap();
    broker.restart();
    // There are the one that is written, the next one, and room for a spare; with a third sealed one it would be too much.
    until("messages fit", async || only_sealed(&broker, 2)).await;
    let bytes_left = bytes_of(&segments(&broker));
    assert!(bytes_left + 64 * MIB < bytes, "{bytes_left} bytes of {bytes} are left");
    let left = read_all(&client).await;
    for (queue, messages) in &consumed {
        let first = left[queue][0].queue_offset;
        assert!(first > QueueOffset(MESSAGES / 2), "{queue:?} still begins at {first}");
        let from = usize::try_from(first.0).unwrap();
        assert!(left[queue] == messages[from..], "other messages in {queue:?} than before");
    }
    look_up(&client, &left).await;
    assert_eq!(small_state(&client).await, state);
    is_gone(&client, &consumed).await;

    kill_and_delete_indexes(&mut broker);
    assert!(read_all(&client).await == left, "other messages after what was deleted");
    look_up(&client, &left).await;
    assert_eq!(small_state(&client).await, state);
    is_gone(&client, &consumed).await;
    // The idle queue goes on where it was.
    broker.run_cli(&["send", IDLE, "awake", "--queue", "0"]);
    let printed = broker.run_cli(&["consume", IDLE, "--json"]);
    let messages: Vec<serde_json::Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        messages.iter().map(|m| (&m["offset"], &m["body"])).collect::<Vec<_>>(),
        [(&3.into(), &"awake".into())]
    );
    client.shutdown().await;
    broker.stop();
}

/// The first message of each queue, and those of the idle topic, are found in no way.
async fn is_gone(client: &Client, consumed: &Stored) {
    let admin = client.admin();
    for (queue, messages) in consumed {
        let key = MessageKey::User(own_key(queue, 0));
        assert!(admin.query_message(&queue.topic, &key, 0..=i64::MAX, 64).await.unwrap().is_empty());
        let error = admin.message(messages[0].offset_message_id()).await.unwrap_err();
        assert!(error.to_string().contains("can not find message by the offset"), "{error}");
    }
    let key = MessageKey::User("of".into());
    assert!(admin.query_message(IDLE, &key, 0..=i64::MAX, 64).await.unwrap().is_empty());
}

const WATCHED: &str = "Topic";
const WATCHED_MESSAGES: i64 = 48;
const WATCHED_BYTES: usize = 1 << 20;

/// A broker with room for two sealed segments of 5 MiB, the one that is written, the next one and a spare; and a connection to it.
fn small_room(data: Option<PathBuf>, rule: &str) -> (Broker, Raw) {
    let arguments = ["--segment-size", "5MiB", "--retention-size", "26MiB", "--retention", rule];
    let arguments = arguments.map(Into::into).to_vec();
    let broker = Broker::start_with(Options { shards: 1, arguments, data });
    let raw = Raw::connect(broker.address(0));
    (broker, raw)
}

fn store_watched(raw: &mut Raw, offset: i64) {
    assert_eq!(store(raw, &send(WATCHED, 0), vec![offset as u8; WATCHED_BYTES]), offset);
}

/// It gets 48 MiB, and the connection is of a group that is online and consumes nothing.
fn overfull(rule: &str) -> (Broker, Raw) {
    let (broker, mut raw) = small_room(None, rule);
    store_watched(&mut raw, 0);
    let response = raw.call(RequestCode::HEART_BEAT, &(), heartbeat("a client", "slow"));
    assert_eq!(response.code, 0, "{response:?}");
    (1..WATCHED_MESSAGES).for_each(|offset| store_watched(&mut raw, offset));
    (broker, raw)
}

/// Reads from offset 0 as a consumer does: the offsets that it is moved to, and those of the messages that it gets.
fn read_from_zero(raw: &mut Raw, count: i64) -> (Vec<i64>, BTreeSet<i64>) {
    let (mut at, mut moved, mut got) = (0, Vec::new(), BTreeSet::new());
    while at < count {
        let response = raw.call(RequestCode::PULL_MESSAGE, &pull(WATCHED, at, 0, "*"), bytes::Bytes::new());
        let next = response.ext("nextBeginOffset").and_then(|next| next.parse().ok()).unwrap();
        assert!(next > at, "{response:?}");
        if response.code == ringmq_client::ResponseCode::PULL_OFFSET_MOVED.0 {
            moved.push(next);
        } else {
            for (message, offset) in messages(&response.body).zip(at..) {
                let message = message.unwrap();
                assert!(message.body() == vec![offset as u8; WATCHED_BYTES]);
                // By its place too: behind a block that is larger than what is read at a time.
                let request = ViewMessageByIdRequest { topic: None, offset: message.physical_offset() };
                let viewed = raw.call(RequestCode::VIEW_MESSAGE_BY_ID, &request, bytes::Bytes::new());
                assert!(viewed.code == 0 && viewed.body == message.as_bytes(), "{:?}", viewed.remark);
                got.insert(offset);
            }
        }
        at = next;
    }
    (moved, got)
}

/// Everything behind the last place that the consumer was moved to was there: a segment may go while it reads.
fn assert_whole((moved, got): (Vec<i64>, BTreeSet<i64>), count: i64) {
    let last = *moved.last().expect("the first segments are gone");
    assert!((last..count).all(|offset| got.contains(&offset)), "{moved:?}: {got:?}");
}

#[tokio::test]
async fn what_an_online_group_has_not_consumed_is_kept_and_said() {
    let (mut broker, mut raw) = overfull("consumed");
    let line = "is due and kept: group slow is online and has still to consume queue 0 of topic Topic";
    until(line, async || broker.errors().contains(line)).await;
    assert_eq!(read_from_zero(&mut raw, WATCHED_MESSAGES), (Vec::new(), (0..WATCHED_MESSAGES).collect()));
    // It leaves, and nothing keeps them any longer.
    drop(raw);
    until("messages fit", async || only_sealed(&broker, 2)).await;
    let mut raw = Raw::connect(broker.address(0));
    let (moved, got) = read_from_zero(&mut raw, WATCHED_MESSAGES);
    assert_eq!(got, (moved[0]..WATCHED_MESSAGES).collect());
    assert!(moved.len() == 1 && moved[0] > WATCHED_MESSAGES / 2, "{moved:?}");
    assert_eq!(max_offset(&mut raw, WATCHED), WATCHED_MESSAGES);
    broker.stop();
}

#[tokio::test]
async fn forced_retention_deletes_what_an_online_group_has_not_consumed() {
    let (mut broker, mut raw) = overfull("force");
    until("messages fit", async || only_sealed(&broker, 2)).await;
    let (moved, got) = read_from_zero(&mut raw, WATCHED_MESSAGES);
    assert_eq!(got, (moved[0]..WATCHED_MESSAGES).collect());
    assert!(moved.len() == 1 && moved[0] > WATCHED_MESSAGES / 2, "{moved:?}");
    assert!(!broker.errors().contains("is due and kept: group"), "{}", broker.errors());
    broker.stop();
}

/// The log goes on in files that it has left; what is kept of it is as good as in new files, at a start too, and a snapshot that
/// shares files with it does not change.
#[tokio::test]
async fn released_files_are_written_over_but_no_snapshot_is() {
    let temp = TempDir::new("recycled");
    let data = temp.path().join("data");
    let (mut broker, mut raw) = small_room(Some(data.clone()), "consumed");
    let mut count = 0;
    // With two spares at most, one of every three has become a segment.
    let mut send_until_used_again = |broker: &Broker, raw: &mut Raw, files: usize| {
        let deadline = Instant::now() + PATIENCE;
        while broker.errors().matches("its file will be used again").count() < files {
            assert!(Instant::now() < deadline, "{}", broker.errors());
            store_watched(raw, count);
            count += 1;
        }
        count
    };
    let stored = send_until_used_again(&broker, &mut raw, 3);
    let snapshot = temp.path().join("snapshot");
    let to = snapshot.to_str().unwrap();
    let linked = broker.run_cli(&["log", "snapshot", data.to_str().unwrap(), "--to", to, "--json"]);
    let linked: serde_json::Value = serde_json::from_str(&linked).unwrap();
    assert!(linked["linked_files"].as_u64() > Some(0), "{linked}");
    let count = send_until_used_again(&broker, &mut raw, 7);
    drop(raw);

    for clean in [false, true] {
        if clean {
            broker.stop()
        } else {
            broker.kill9()
        }
        broker.restart();
        let mut raw = Raw::connect(broker.address(0));
        assert_whole(read_from_zero(&mut raw, count), count);
        assert!(!broker.errors().contains("are damaged"), "{}", broker.errors());
    }
    broker.stop();
    let problems = |directory: &str| {
        let said = broker.run_cli(&["log", "verify", directory, "--json"]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        (said["problems"].clone(), said["shards"][0]["cut_bytes"].clone())
    };
    assert_eq!(problems(data.to_str().unwrap()), (0.into(), 0.into()));
    assert_eq!(problems(to), (0.into(), 0.into()));
    let (mut copy, mut raw) = small_room(Some(snapshot), "consumed");
    assert_whole(read_from_zero(&mut raw, stored), stored);
    copy.stop();
}
