//! `ringmq log`, and the scrub of a running broker: bytes flipped and files removed in real data directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringmq_client::{Client, Message};
use ringmq_tests::{Broker, Options, PATIENCE, TempDir, binaries};
use serde_json::Value;

const TOPIC: &str = "Archive";
const SEGMENT: u64 = 8 << 20;
/// More than three segments.
const LINES: usize = 20_000;

/// A queue's number and an offset in it.
type Place = (u64, u64);

fn options(data: &Path, more: &[&str]) -> Options {
    let fixed = ["--segment-size", "8MiB", "--tail-memory", "16MiB"];
    let arguments = fixed.iter().chain(more).map(Into::into).collect();
    Options { shards: 1, data: Some(data.to_path_buf()), arguments }
}

fn send_lines(broker: &Broker, lines: usize) {
    let mut command = broker.cli(&["send", TOPIC]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("ringmq can be run");
    let mut input = child.stdin.take().expect("piped");
    let filler = "x".repeat(1500);
    for number in 0..lines {
        writeln!(input, "{number} {filler}").expect("ringmq reads on");
    }
    drop(input);
    assert!(child.wait().expect("it is our child").success());
}

/// Looks again until it holds: no line and no file announces it.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn segment(data: &Path, number: u64) -> PathBuf {
    data.join("shard-00").join(format!("{:020}", number * SEGMENT))
}

fn index(data: &Path, number: u64) -> PathBuf {
    segment(data, number).with_extension("index")
}

/// A running broker with three sealed segments and more.
fn filled(data: &Path, more: &[&str]) -> Broker {
    let broker = Broker::start_with(options(data, more));
    broker.run_cli(&["topic", "create", TOPIC, "--queues", "4"]);
    send_lines(&broker, LINES);
    until("three segments are sealed", || (0..3).all(|number| index(data, number).exists()));
    broker
}

fn stopped(data: &Path) {
    filled(data, &[]).stop();
}

fn log(data: &Path, command: &str, more: &[&str]) -> Output {
    let mut tool = Command::new(binaries::binary("ringmq"));
    tool.args(["log", command]).arg(data).args(more);
    tool.stdin(Stdio::null()).output().expect("ringmq can be run")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The beginning of what was said: the lost messages fill pages.
fn brief(said: &Value) -> String {
    said.to_string().chars().take(800).collect()
}

/// What `verify` says, and that its exit code says the same.
fn verify(data: &Path) -> Value {
    let output = log(data, "verify", &["--json"]);
    let said = json(&output);
    assert_eq!(output.status.success(), said["problems"] == 0, "{}", brief(&said));
    said
}

fn inspect(data: &Path, more: &[&str]) -> Vec<Value> {
    let output = log(data, "inspect", &[&["--json"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} of {value}"))
}

fn place(value: &Value) -> Place {
    (number(value, "queue"), number(value, "offset"))
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file of the broker");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within the file");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("within the file");
    file.sync_all().expect("a disk");
}

/// The bytes of all segments.
fn segments(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(data.join("shard-00")).expect("a shard").flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path.is_file() && path.extension().is_none());
    files.map(|path| (path.clone(), fs::read(path).expect("a segment"))).collect()
}

/// The messages that a broker with these data hands out.
fn consume(data: &Path) -> BTreeSet<Place> {
    let mut broker = Broker::start_with(options(data, &[]));
    let printed = broker.run_cli(&["consume", TOPIC, "--json"]);
    broker.stop();
    let places: Vec<Place> =
        printed.lines().map(|line| place(&serde_json::from_str(line).expect("JSON"))).collect();
    let set: BTreeSet<Place> = places.iter().copied().collect();
    assert_eq!(set.len(), places.len(), "something came twice");
    set
}

/// A block in the middle of a segment, with the places and positions of its messages.
fn middle_block(data: &Path, number_of_segment: u64) -> (Value, BTreeMap<Place, u64>) {
    let from = (number_of_segment * SEGMENT + SEGMENT / 2).to_string();
    let blocks = inspect(data, &["--from", &from, "--count", "1"]);
    let [block] = &blocks[..] else { panic!("{blocks:?}") };
    let (start, records) = (block["position"].to_string(), block["records"].to_string());
    let items = inspect(data, &["--records", "--from", &start, "--count", &records]);
    assert_eq!(&items[0], block);
    let messages = items.iter().filter(|item| item["type"] == "message");
    let messages: BTreeMap<Place, u64> =
        messages.map(|item| (place(item), number(item, "position"))).collect();
    assert!(!messages.is_empty(), "{items:?}");
    (block.clone(), messages)
}

fn lost(stretch: &Value) -> BTreeMap<Place, u64> {
    let messages = stretch["lost_messages"].as_array().expect("a list").iter();
    messages.map(|message| (place(message), number(message, "position"))).collect()
}

#[test]
fn a_right_directory_is_said_to_be_right() {
    let temp = TempDir::new("log");
    let data = temp.path().join("data");
    let refused = log(&data, "verify", &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is no data directory"));
    assert!(!data.exists(), "verify made a directory");

    let mut broker = filled(&data, &[]);
    for command in ["verify", "inspect", "repair"] {
        let refused = log(&data, command, &[]);
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command}: {errors}");
        assert!(errors.contains("another broker uses it"), "{command}: {errors}");
    }
    // A topic that is deleted and made again has messages that its index need not name.
    broker.run_cli(&["topic", "delete", TOPIC]);
    broker.run_cli(&["topic", "create", TOPIC, "--queues", "2"]);
    send_lines(&broker, 6000);
    until("a further segment is sealed", || index(&data, 4).exists());
    broker.stop();

    let said = verify(&data);
    assert_eq!(said["problems"], 0, "{}", brief(&said));
    let shard = &said["shards"][0];
    assert!(number(shard, "indexes") >= 5, "{}", brief(&said));
    let items = inspect(&data, &["--records"]);
    let count = |what: &str| items.iter().filter(|item| item["type"] == what).count() as u64;
    assert_eq!(count("block"), number(shard, "blocks"));
    assert_eq!(count("message"), LINES as u64 + 6000);
    assert_eq!(count("message") + count("setting"), number(shard, "records"));
    assert_eq!(count("damaged") + count("unreadable"), 0);
    let names: BTreeSet<&str> = items.iter().filter_map(|item| item["name"].as_str()).collect();
    assert!(["topic", "topic deleted"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(items.iter().filter(|item| item["type"] == "setting").all(|item| item["name"] != "unknown"));

    let before = segments(&data);
    let repaired = json(&log(&data, "repair", &["--json"]));
    assert_eq!(repaired["shards"][0]["has_work"], false, "{}", brief(&repaired));
    assert!(segments(&data) == before, "repair changed a segment");
    let text = log(&data, "verify", &[]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("MB/s"), "{text:?}");
}

#[test]
fn damage_is_named_and_kept_and_indexes_are_written_anew() {
    let temp = TempDir::new("log");
    let data = temp.path().join("data");
    stopped(&data);
    let all = consume(&data);
    assert_eq!(all.len(), LINES);
    let (block, wanted) = middle_block(&data, 2);
    let (start, bytes) = (number(&block, "position"), number(&block, "bytes"));
    flip(&segment(&data, 2), start - 2 * SEGMENT + bytes / 2);
    flip(&index(&data, 0), 5 * 4096 + 100);
    fs::remove_file(index(&data, 1)).unwrap();

    let found = verify(&data);
    assert_eq!(found["problems"], 3, "{}", brief(&found));
    let shard = &found["shards"][0];
    let files: Vec<(u64, &str)> = shard["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (number(file, "segment"), file["what"].as_str().unwrap()))
        .collect();
    assert_eq!(files, [(0, "index wrong"), (SEGMENT, "index missing")]);
    let [stretch] = &shard["damaged"].as_array().unwrap()[..] else { panic!("{}", brief(shard)) };
    // From the end of the block before to the start of the block behind.
    let (position, length) = (number(stretch, "position"), number(stretch, "bytes"));
    assert!(position <= start && start + bytes <= position + length, "{position} {length} {block}");
    assert_eq!(lost(stretch), wanted);

    let before = segments(&data);
    let dry = json(&log(&data, "repair", &["--json", "--dry-run"]));
    assert_eq!(dry["shards"][0]["copies"][0]["state"], "copied");
    let copy = data.join(format!("shard-00/damaged/{position:020}-{length}.bin"));
    assert!(!copy.exists() && !index(&data, 1).exists(), "a dry run wrote");

    let repaired = json(&log(&data, "repair", &["--json"]));
    let shard = &repaired["shards"][0];
    assert_eq!(lost(&shard["found"]["damaged"][0]), wanted);
    assert_eq!(shard["copies"][0]["file"], copy.to_str().unwrap());
    assert_eq!(shard["indexes"].as_array().unwrap().len(), 2);
    let at = (position - 2 * SEGMENT) as usize;
    assert!(fs::read(&copy).unwrap() == before[&segment(&data, 2)][at..at + length as usize]);
    assert!(segments(&data) == before, "repair changed a segment");

    let again = json(&log(&data, "repair", &["--json"]));
    assert_eq!(again["shards"][0]["has_work"], false, "{}", brief(&again));
    assert_eq!(again["shards"][0]["copies"][0]["state"], "copied before");
    let found = verify(&data);
    assert_eq!(found["problems"], 1, "the damaged block stays: {}", brief(&found));

    let left = consume(&data);
    assert_eq!(all.difference(&left).copied().collect::<BTreeSet<_>>(), wanted.keys().copied().collect());
}

#[test]
fn a_segment_that_is_gone_is_named() {
    let temp = TempDir::new("log");
    let data = temp.path().join("data");
    stopped(&data);
    let from = SEGMENT.to_string();
    let items = inspect(&data, &["--records", "--from", &from]);
    let in_segment = |item: &&Value| (SEGMENT..2 * SEGMENT).contains(&number(item, "position"));
    let messages = items.iter().filter(|item| item["type"] == "message").filter(in_segment);
    let wanted: BTreeMap<Place, u64> = messages.map(|item| (place(item), number(item, "position"))).collect();
    fs::remove_file(segment(&data, 1)).unwrap();

    let found = verify(&data);
    let shard = &found["shards"][0];
    assert_eq!(shard["files"][0]["what"], "segment missing", "{}", brief(&found));
    assert_eq!(number(&shard["files"][0], "segment"), SEGMENT);
    assert!(shard["files"][0]["text"].as_str().unwrap().contains(&format!("{} messages", wanted.len())));
    assert_eq!(lost(&shard["damaged"][0]), wanted);

    let repaired = json(&log(&data, "repair", &["--json"]));
    assert_eq!(repaired["shards"][0]["has_work"], false, "there is nothing to copy: {}", brief(&repaired));
    assert_eq!(consume(&data).len(), LINES - wanted.len());
}

/// One after the other into each queue, until told to stop; counts what was acknowledged.
fn load(broker: &Broker, is_over: &Arc<AtomicBool>) -> (Vec<Arc<AtomicU64>>, std::thread::JoinHandle<()>) {
    let acknowledged: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
    let (name_server, counts, is_over) = (broker.name_server(), acknowledged.clone(), is_over.clone());
    let work = async move {
        let client = Client::builder(name_server).build().await.unwrap();
        let producer = client.producer("senders").build().unwrap();
        let mut lanes = tokio::task::JoinSet::new();
        for (queue, count) in producer.queues("Live").await.unwrap().into_iter().zip(counts) {
            let (producer, is_over) = (producer.clone(), is_over.clone());
            lanes.spawn(async move {
                for number in 0.. {
                    let body = format!("{} {number} {}", queue.queue_id, "y".repeat(3000));
                    producer.send_to(&queue, Message::new("Live", body)).await.unwrap();
                    count.store(number + 1, Ordering::SeqCst);
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.unwrap();
        }
        client.shutdown().await;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    (acknowledged, std::thread::spawn(move || runtime.block_on(work)))
}

#[test]
fn a_snapshot_of_a_broker_under_load_starts_with_all_that_was_acknowledged() {
    let temp = TempDir::new("log");
    let data = temp.path().join("data");
    let mut broker = filled(&data, &[]);
    broker.run_cli(&["topic", "create", "Live", "--queues", "4"]);
    let is_over = Arc::new(AtomicBool::new(false));
    let (acknowledged, sender) = load(&broker, &is_over);
    let mut snapshots = Vec::new();
    for turn in 0..3u64 {
        until("the load goes on", || {
            acknowledged.iter().all(|count| count.load(Ordering::SeqCst) > (turn + 1) * 200)
        });
        let wanted: Vec<u64> = acknowledged.iter().map(|count| count.load(Ordering::SeqCst)).collect();
        let to = temp.path().join(format!("snapshot-{turn}"));
        let output = log(&data, "snapshot", &["--to", to.to_str().unwrap(), "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = json(&output);
        assert!(number(&said, "linked_files") + number(&said, "copied_files") >= 7, "{}", brief(&said));
        snapshots.push((to, wanted));
    }
    is_over.store(true, Ordering::SeqCst);
    sender.join().unwrap();
    let (to, _) = &snapshots[0];
    let refused = log(&data, "snapshot", &["--to", to.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not empty"));

    for (to, wanted) in &snapshots {
        let said = verify(to);
        assert_eq!(
            (&said["problems"], &said["shards"][0]["cut_bytes"]),
            (&0.into(), &0.into()),
            "{}",
            brief(&said)
        );
        let mut copy = Broker::start_with(options(to, &[]));
        let mut next = [0u64; 4];
        for line in copy.run_cli(&["consume", "Live", "--raw"]).lines() {
            let mut words = line.split(' ').map(|word| word.parse::<u64>());
            let (Some(Ok(queue)), Some(Ok(number))) = (words.next(), words.next()) else { panic!("{line}") };
            let next = &mut next[queue as usize];
            assert_eq!(number, *next, "queue {queue}");
            *next += 1;
        }
        assert!(next.iter().zip(wanted).all(|(got, wanted)| got >= wanted), "{next:?} of {wanted:?}");
        assert_eq!(copy.run_cli(&["consume", TOPIC, "--raw"]).lines().count(), LINES);
        // What the copy writes is its own.
        send_lines(&copy, 3000);
        copy.stop();
    }
    // And the other way round.
    send_lines(&broker, 100);
    broker.stop();
    let said = verify(&data);
    assert_eq!(said["problems"], 0, "{}", brief(&said));
}

#[test]
fn the_scrub_finds_what_nobody_reads() {
    let temp = TempDir::new("log");
    let data = temp.path().join("data");
    let mut broker = filled(&data, &["--scrub-rate", "0"]);
    broker.stop();
    let (block, _) = middle_block(&data, 2);
    let (start, bytes) = (number(&block, "position"), number(&block, "bytes"));
    drop(broker);

    let mut broker = Broker::start_with(options(&data, &["--scrub-rate", "4MiB"]));
    flip(&segment(&data, 2), start - 2 * SEGMENT + bytes / 2);
    flip(&index(&data, 2), 3 * 4096 + 100);
    let damaged = "what was in them can no longer be read";
    let index_line = "the index of segment 00000000000016777216 is damaged: page 3";
    let says = |broker: &Broker, lines: &[&str]| lines.iter().all(|line| broker.errors().contains(line));
    let found = [damaged, index_line];
    until("the scrub comes round", || says(&broker, &found) || says(&broker, &["scrubbed"]));
    let is_slow = !says(&broker, &found);
    if is_slow {
        // The scrub was faster than this test: the next run of the broker sees it for certain.
        broker.stop();
        broker.restart();
    }
    until("the scrub has been round", || {
        says(&broker, &[damaged, index_line, "was written anew", "scrubbed"])
    });
    let errors = broker.errors();
    let line = errors.lines().find(|line| line.contains(damaged)).unwrap();
    let at: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(at.iter().any(|at| (start - 4096..=start).contains(at)), "{line} and {block}");
    if !is_slow {
        assert_eq!(errors.matches(damaged).count(), 1, "{errors}");
        assert!(errors.contains("2 damaged places"), "{errors}");
    }
    broker.stop();
    let found = verify(&data);
    assert_eq!(found["problems"], 1, "the index was mended, the block cannot be: {}", brief(&found));
}
