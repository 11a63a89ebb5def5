//! Messages that are stored now and delivered later.

use super::*;
use proptest::prelude::*;
use ringmq_protocol::body::DelayOffsets;
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::name::RMQ_SYS_SCHEDULE_TOPIC;
use ringmq_protocol::properties::names;
use ringmq_protocol::request::DeleteTopicRequest;

/// Milliseconds after which messages of levels 1 to 4 are due: one more than the delay, because times are rounded down.
const DELAYS: [i64; 4] = [1_001, 5_001, 10_001, 30_001];

impl Fixture {
    /// A broker that starts on the same disk, later.
    pub(super) fn restart_later(&self, ms: i64) -> Fixture {
        let segment_bytes = self.shard.log.config().segment_bytes;
        let mut f = Fixture::with_segments(self.disk.clone(), FlushDiskType::Sync, segment_bytes);
        f.now = Time { monotonic_ms: 5, wall_ms: self.now.wall_ms + ms };
        f.shard.begin_turn(f.now);
        f
    }

    /// Turns until nothing is due any more: ticks, reads, writes.
    pub(super) fn turn(&mut self, ms: i64) {
        self.tick(ms);
        loop {
            let reads = self.read_all();
            let wrote = self.shard.log.staged_bytes() > 0;
            self.settle();
            let is_due = self.shard.next_deadline_ms().is_some_and(|at| at <= self.now.monotonic_ms);
            if reads == (0, 0) && !wrote && !is_due {
                return;
            }
            self.tick(0);
        }
    }

    /// The messages of queue 0 of a topic, all of them.
    pub(super) fn all(&mut self, topic: &str) -> Vec<MessageExt> {
        let mut all = Vec::new();
        loop {
            let pull = self.pull(
                topic,
                all.last().map_or(0, |last: &MessageExt| last.queue_offset.0 + 1) as i64,
                0,
                "*",
            );
            self.read_all();
            let answer = self.answer(pull).unwrap();
            if answer.code != 0 {
                return all;
            }
            all.extend(
                messages(&answer.body).map(|message| MessageExt::decode(&message.unwrap(), 8 << 20).unwrap()),
            );
        }
    }

    pub(super) fn bodies(&mut self, topic: &str) -> Vec<String> {
        let text = |message: MessageExt| String::from_utf8(message.message.body.to_vec()).unwrap();
        self.all(topic).into_iter().map(text).collect()
    }
}

/// A block stays open while the disk is busy, and what is in it has the time of its beginning. A delay must not count from before its
/// message was sent. Found by a client that took the time.
#[test]
fn a_delay_counts_from_the_send_and_not_from_when_its_block_was_opened() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"opens a block");
    f.tick(40);
    f.send("T", 0, "DELAY\x011\x02", b"later");
    f.settle();
    f.turn(DELAYS[0] - 1);
    assert_eq!(f.bodies("T"), ["opens a block"]);
    f.turn(1);
    assert_eq!(f.bodies("T"), ["opens a block", "later"]);
}

#[test]
fn a_delayed_message_is_there_when_it_is_due_and_only_once() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let properties = "TAGS\x01red\x02KEYS\x01k\x02UNIQ_KEY\x01U\x02DELAY\x012\x02WAIT\x01true\x02";
    let send = f.send("T", 3, properties, b"later");
    assert!(f.answer(send).is_none(), "it is not on disk yet");
    f.settle();
    let answer = f.answer(send).unwrap();
    let answer = SendMessageResponse::decode(&answer.header().ext).unwrap();
    assert_eq!((answer.queue_id, answer.queue_offset), (3, 0));
    f.turn(0);
    assert_eq!(f.shard.next_deadline_ms(), Some(f.now.monotonic_ms + DELAYS[1]));
    f.turn(DELAYS[1] - 1);
    let queue = f.shard.known_queue("T", QueueId(3)).unwrap();
    assert_eq!(f.shard.bounds(queue).unwrap().1.0, 0);
    f.tick(1);
    assert_eq!(f.shard.bounds(queue).unwrap().1.0, 0, "due, but not on disk there");
    let told = |f: &Fixture| f.shard.delay_info().map(|(_, progress)| progress).collect::<Vec<_>>();
    assert_eq!(told(&f), ["0,1"], "S2: nor is anyone told of it");
    f.turn(0);
    assert_eq!(f.shard.bounds(queue).unwrap().1.0, 1);
    assert_eq!(told(&f), ["1,1"]);
    f.turn(100_000);
    assert_eq!(f.shard.bounds(queue).unwrap().1.0, 1, "once");
    assert_eq!(f.shard.next_deadline_ms(), None);

    let mut request = send_request("T", 3, "", false);
    request.topic = RMQ_SYS_SCHEDULE_TOPIC.into();
    let direct = f.request(RequestCode::SEND_MESSAGE, &request, b"x");
    assert_eq!(f.answer(direct).unwrap().code, ResponseCode::NO_PERMISSION.0);
    let entry = f.shard.index.entries(queue, QueueOffset(0), QueueOffset(1)).next().unwrap().1;
    let bytes = f.shard.log.tail(entry.position, entry.size).unwrap();
    let message = MessageExt::decode(&messages(&bytes).next().unwrap().unwrap(), 100).unwrap();
    assert_eq!((message.message.topic.as_str(), message.queue_id), ("T", QueueId(3)));
    assert_eq!((message.born_timestamp.0, message.born_host), (1, "10.1.2.3:4567".parse().unwrap()));
    assert_eq!((message.message.flag, message.reconsume_times), (9, 0));
    for (name, value) in [
        (names::DELAY_TIME_LEVEL, "2"),
        (names::REAL_TOPIC, "T"),
        (names::REAL_QUEUE_ID, "3"),
        (names::WAIT_STORE_MSG_OK, "false"),
        (names::TAGS, "red"),
        (names::UNIQ_KEY, "U"),
    ] {
        assert_eq!(message.message.property(name), Some(value), "{name}");
    }
    assert_eq!(entry.tags_code, ringmq_protocol::types::TagsCode::of("red"));
    let by_key = |topic| {
        let hash = ringmq_storage::KeyHash::of(ringmq_storage::TopicHash::of(topic), b"k");
        f.shard.index.find_key(hash, f.shard.log.end())
    };
    assert_eq!(by_key("T"), [entry.position], "keys are those of the real topic");
}

#[test]
fn levels_beyond_the_table_are_the_last_one_and_none_is_no_delay() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for (level, at_once) in [("0", true), ("-1", true), ("1", false), ("99", false)] {
        let send = f.send("T", 0, &format!("DELAY\x01{level}\x02"), level.as_bytes());
        f.settle();
        assert_eq!(f.answer(send).unwrap().code, 0, "{level}");
        assert_eq!(f.bodies("T").contains(&level.to_owned()), at_once, "{level}");
    }
    f.turn(DELAYS[0]);
    assert_eq!(f.bodies("T"), ["0", "-1", "1"]);
    f.turn(7_200_000);
    assert_eq!(f.bodies("T"), ["0", "-1", "1", "99"]);
    let asked = f.request(RequestCode::GET_ALL_DELAY_OFFSET, &(), &[]);
    let offsets = DelayOffsets::from_json(&f.answer(asked).unwrap().body).unwrap().offset_table;
    assert_eq!(offsets.into_iter().collect::<Vec<_>>(), [(1, 1), (18, 1)]);
    let asked = f.request(RequestCode::GET_BROKER_RUNTIME_INFO, &(), &[]);
    let info = ringmq_protocol::body::KvTable::from_json(&f.answer(asked).unwrap().body).unwrap().table;
    assert_eq!(
        (info["scheduleMessageOffset_1"].as_str(), info["scheduleMessageOffset_18"].as_str()),
        ("1,1", "1,1")
    );
    assert!(info["messageDelayLevel"].ends_with("1h 2h") && !info.contains_key("scheduleMessageOffset_2"));
}

#[test]
fn a_batch_with_a_delayed_message_is_refused_whole() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let mut body = Vec::new();
    for properties in [&b"TAGS\x01x\x02"[..], b"DELAY\x011\x02"] {
        BatchEntry { flag: 0, body: b"entry", properties }.encode(&mut body).unwrap();
    }
    let send = f.request(RequestCode::SEND_MESSAGE, &send_request("T", 0, "", true), &body);
    f.settle();
    let answer = f.answer(send).unwrap();
    assert_eq!(answer.code, ResponseCode::MESSAGE_ILLEGAL.0);
    assert!(answer.remark.unwrap().contains("DELAY"));
    assert_eq!(f.bodies("T"), [""; 0]);
}

#[test]
fn the_longest_message_can_be_delayed() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let topic = "t".repeat(127);
    let long = |bytes: usize| format!("DELAY\x011\x02x\x01{}\x02", "v".repeat(bytes));
    // What the broker adds is about 200 bytes; the sender is told at once if it does not fit.
    let body = vec![7; limits::MESSAGE_BYTES_MAX];
    let too_long = f.send(&topic, 0, &long(32_600), &body);
    assert_eq!(f.answer(too_long).unwrap().code, ResponseCode::MESSAGE_ILLEGAL.0);
    let send = f.send(&topic, 0, &long(32_400), &body);
    f.settle();
    assert_eq!(f.sent(send), 0);
    f.turn(DELAYS[0]);
    assert_eq!(f.all(&topic).len(), 1);
}

#[test]
fn messages_of_a_deleted_topic_go_with_it() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for (topic, body) in [("T", b"1"), ("Gone", b"2"), ("Gone", b"3"), ("T", b"4")] {
        f.send(topic, 0, "DELAY\x011\x02", body);
        f.settle();
    }
    f.request(RequestCode::DELETE_TOPIC_IN_BROKER, &DeleteTopicRequest { topic: "Gone".into() }, &[]);
    f.settle();
    f.turn(DELAYS[0]);
    assert_eq!(f.bodies("T"), ["1", "4"]);
    assert_eq!(
        (f.lines("2 delayed messages went with their topic"), f.lines("delayed messages went")),
        (1, 1)
    );
    assert!(f.shard.topics.get("Gone").is_none());
    let mut f = f.restart_later(100);
    f.turn(0);
    assert_eq!(f.bodies("T"), ["1", "4"]);
    assert_eq!(f.lines("delayed messages went"), 0);
}

#[test]
fn delivery_waits_for_a_log_that_takes_nothing() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "DELAY\x011\x02", b"later");
    f.settle();
    f.send("T", 0, "", &vec![b'x'; 4 << 20]);
    f.send("T", 0, "", &vec![b'x'; (4 << 20) - 8_000]);
    let is_refused = |f: &mut Fixture| {
        let send = f.send("T", 0, "", b"as many as the disk may be behind");
        f.answer(send).is_some_and(|answer| answer.code == ResponseCode::SYSTEM_BUSY.0)
    };
    assert!((0..100).any(|_| is_refused(&mut f)));
    f.tick(DELAYS[0]);
    assert_eq!(f.shard.next_deadline_ms(), Some(f.now.monotonic_ms + limits::DELAY_RETRY_MS));
    f.settle();
    f.turn(limits::DELAY_RETRY_MS);
    assert_eq!(f.all("T").last().unwrap().message.body, "later");
    // Nor does a poisoned log keep the shard busy.
    f.send("T", 0, "DELAY\x011\x02", b"never");
    let write = f.writes().remove(0);
    f.shard.on_written(write.block, Err("EIO".into()), &mut f.fx);
    f.tick(DELAYS[0]);
    assert_eq!(f.shard.next_deadline_ms(), None);
}

#[test]
fn a_level_goes_on_after_a_restart_from_old_and_from_new_segments() {
    let mut f = Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, segments::SMALL);
    let mut sent = 0;
    let mut send = |f: &mut Fixture, level: u32| {
        f.send("T", 0, &format!("DELAY\x01{level}\x02"), format!("{level}:{sent}").as_bytes());
        sent += 1;
        f.settle();
    };
    for level in [4, 4, 2, 1, 2] {
        send(&mut f, level);
    }
    let mut filled = 0;
    f.fill("Fill", 1, &mut filled);
    send(&mut f, 4);
    f.fill("Fill", 2, &mut filled);
    let early = ["1:3", "2:2", "2:4"];
    f.turn(0);
    let mut f = f.restart_later(1_000);
    assert_eq!(f.sealed(), [0, 1], "the first messages are on disk only");
    f.turn(0);
    f.turn(10_000);
    assert_eq!(f.bodies("T"), early);
    let kept = f.release(0, true).unwrap();
    assert!(kept.contains("delay level 4 are still to be delivered"), "{kept}");
    // The pages and the messages are read when they are due.
    let mut f = f.restart_later(1_000);
    f.tick(0);
    f.tick(DELAYS[3]);
    assert!(!f.fx.reads.is_empty());
    f.turn(0);
    assert_eq!(f.bodies("T"), [&early[..], &["4:0", "4:1", "4:5"]].concat());
    assert_eq!(f.release(0, false), None, "what was delivered is not needed any more");
    let mut f = f.restart_later(DELAYS[3]);
    f.turn(0);
    f.turn(100_000);
    assert_eq!(f.all("T").len(), 6);
}

#[test]
fn a_read_that_fails_is_tried_again_and_damage_costs_the_messages_in_it() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for body in [&b"one"[..], b"two", b"three"] {
        f.send("T", 0, "DELAY\x011\x02", body);
        f.settle();
    }
    let mut failing = f.restart_later(DELAYS[0]);
    failing.tick(0);
    let read = failing.fx.reads.pop().unwrap();
    failing.shard.on_read(read.id, Err("EIO".into()), &mut failing.fx);
    failing.turn(limits::DELAY_FAILED_MS - 1);
    assert_eq!((failing.bodies("T"), failing.lines("EIO")), (Vec::<String>::new(), 1));
    failing.turn(1);
    assert_eq!(failing.bodies("T"), ["one", "two", "three"]);

    let mut damaged = f.restart_later(DELAYS[0]);
    damaged.tick(0);
    while damaged.shard.next_deadline_ms().is_some() || !damaged.fx.reads.is_empty() {
        while let Some(read) = damaged.fx.reads.pop() {
            let mut bytes = damaged.bytes_of(&read).to_vec();
            if let Some(at) = bytes.windows(3).position(|window| window == b"two") {
                bytes[at] ^= 1;
            }
            damaged.shard.on_read(read.id, Ok(bytes.into()), &mut damaged.fx);
        }
        damaged.settle();
        damaged.tick(0);
    }
    assert_eq!(damaged.bodies("T"), ["one", "three"]);
    assert_eq!(damaged.lines("is damaged"), 1);
}

/// What happens to a broker, a step each.
#[derive(Clone, Debug)]
enum Step {
    /// A message of a level and of so many bytes.
    Send(usize, usize),
    /// So many milliseconds, with what is due in them.
    Wait(i64),
    /// The oldest write ends.
    Write,
    Settle,
}

/// What the body of a message says.
fn number(message: &MessageExt) -> usize {
    std::str::from_utf8(&message.message.body).unwrap().parse().unwrap()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..=3usize, prop_oneof![4 => 8..100usize, 1 => Just(60_000)]).prop_map(|(level, bytes)| Step::Send(level, bytes)),
        3 => (1..6_000i64).prop_map(Step::Wait),
        2 => Just(Step::Write),
        2 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A crash behind any block: whatever was acknowledged by then is delivered once, the rest at most once, each level in order,
    /// nothing before its time.
    #[test]
    fn every_message_is_delivered_once_whatever_block_a_crash_comes_behind(steps in steps()) {
        let mut f = Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, segments::SMALL);
        let mut sends: Vec<(Opaque, usize)> = Vec::new();
        let mut crashes = Vec::new();
        let mut writes = std::collections::VecDeque::new();
        for step in steps {
            let write_count = match step {
                Step::Send(level, bytes) => {
                    let body = format!("{:0bytes$}", sends.len());
                    sends.push((f.send("T", 0, &format!("DELAY\x01{level}\x02"), body.as_bytes()), level));
                    0
                }
                Step::Wait(ms) => {
                    f.tick(ms);
                    f.read_all();
                    0
                }
                Step::Write => 1,
                Step::Settle => usize::MAX,
            };
            for _ in 0..write_count {
                f.prepare();
                writes.extend(f.writes());
                let Some(write) = writes.pop_front() else { break };
                f.complete(&write);
                let answered = |(number, (opaque, _)): (usize, &(Opaque, usize))| {
                    f.answers.iter().any(|answer| answer.opaque == *opaque && answer.code == 0).then_some(number)
                };
                let acknowledged: Vec<usize> = sends.iter().enumerate().filter_map(answered).collect();
                crashes.push((f.disk.clone(), f.now.wall_ms, acknowledged));
            }
        }
        for (disk, wall_ms, acknowledged) in crashes {
            let mut f = Fixture::with_segments(disk, FlushDiskType::Sync, segments::SMALL);
            f.now.wall_ms = wall_ms;
            f.shard.begin_turn(f.now);
            let stored: Vec<Vec<MessageExt>> = (0..3).map(|level| f.schedule(level)).collect();
            for message in f.all("T") {
                let (number, level) = (number(&message), sends[number(&message)].1);
                let is_it = |stored: &&MessageExt| stored.message.body == message.message.body;
                let stored = stored[level - 1].iter().find(is_it).expect("it was stored");
                prop_assert!(stored.store_timestamp.0 + DELAYS[level - 1] <= wall_ms, "{number} came early");
            }
            for _ in 0..6 {
                f.turn(5_000);
            }
            let mut numbers: Vec<usize> = f.all("T").iter().map(number).collect();
            for level in 1..=3 {
                let of_level: Vec<usize> = numbers.iter().copied().filter(|number| sends[*number].1 == level).collect();
                prop_assert!(of_level.is_sorted(), "level {level}: {of_level:?}");
            }
            numbers.sort_unstable();
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "twice: {numbers:?}");
            for number in acknowledged {
                prop_assert!(numbers.binary_search(&number).is_ok(), "{number} is lost");
            }
        }
    }
}

impl Fixture {
    /// All messages of a queue of the schedule topic.
    fn schedule(&mut self, queue_id: u32) -> Vec<MessageExt> {
        let Some(queue) = self.shard.known_queue(RMQ_SYS_SCHEDULE_TOPIC, QueueId(queue_id)) else {
            return Vec::new();
        };
        let max = self.shard.index.max(queue);
        let entries: Vec<_> =
            self.shard.index.entries(queue, QueueOffset(0), max).map(|(_, entry)| entry).collect();
        let read = |entry: &ringmq_storage::Entry| {
            let (segment, at) = self.shard.locate(entry.position);
            let bytes = &self.disk.segments[&segment][at as usize..][..entry.size as usize];
            MessageExt::decode(&messages(bytes).next().unwrap().unwrap(), 1 << 20).unwrap()
        };
        entries.iter().map(read).collect()
    }
}
