//! The state machine, driven by hand: frames in, writes completed in any order, frames out.

mod cold;
mod delay;
mod expiry;
mod filters;
mod groups;
mod holds;
mod locks;
mod offsets;
mod pop;
mod relay;
mod retry;
mod segments;

use super::*;
use bytes::Bytes;
use ringmq_protocol::batch::BatchEntry;
use ringmq_protocol::body::{Body, ConsumerData, HeartbeatData, SubscriptionData};
use ringmq_protocol::frame::{Codec, Fields, RemotingCommand};
use ringmq_protocol::message::messages;
use ringmq_protocol::request::{
    CreateTopicRequest, OffsetResponse, PullMessageRequest, PullMessageResponse, QueryConsumerOffsetRequest,
    SendMessageRequest, SendMessageResponse, UpdateConsumerOffsetRequest,
};
use ringmq_protocol::types::{Opaque, QueueId, QueueOffset, StoreTimestamp};
use ringmq_storage::{Boundary, LogConfig, LogWrite, MemoryStore};

const SEGMENT_BYTES: u64 = 16 << 20;
const CONNECTION: ConnectionId = ConnectionId(7);

struct Fixture {
    shard: Shard,
    /// As far as writes have completed.
    disk: MemoryStore,
    fx: Effects,
    now: Time,
    opaque: i32,
    answers: Vec<RemotingCommand>,
    /// What the start said about indexes.
    notes: Vec<String>,
}

impl Fixture {
    fn new(flush: FlushDiskType) -> Fixture {
        Fixture::on(MemoryStore::default(), flush)
    }

    fn on(disk: MemoryStore, flush: FlushDiskType) -> Fixture {
        Fixture::with_segments(disk, flush, SEGMENT_BYTES)
    }

    fn with_segments(mut disk: MemoryStore, flush: FlushDiskType, segment_bytes: u64) -> Fixture {
        let config = ShardConfig {
            broker_name: "b-0".into(),
            cluster_name: "c".into(),
            address: "127.0.0.1:10911".parse().unwrap(),
            flush,
            auto_create_topics: true,
            delays: DelayTable::default(),
            key_salt: 1,
        };
        let log = LogConfig {
            segment_bytes,
            record_bytes_max: limits::RECORD_BYTES_MAX as u32,
            tail_bytes: 16 << 20,
            tail_bytes_hard_max: 32 << 20,
            staged_bytes_max: 8 << 20,
            writes_in_flight_enough: 4,
            ..LogConfig::default()
        };
        let boot = Shard::boot(config, log, &mut disk, 0, &mut |_| {}).unwrap();
        assert_eq!(boot.problems, Vec::<String>::new());
        let now = Time { monotonic_ms: 1_000, wall_ms: 1_700_000_000_000 };
        let mut fixture = Fixture {
            shard: boot.shard,
            disk,
            fx: Effects::default(),
            now,
            opaque: 0,
            answers: Vec::new(),
            notes: boot.notes,
        };
        fixture.shard.begin_turn(now);
        fixture.prepare();
        fixture
    }

    /// All the zeros that the log wants.
    fn prepare(&mut self) {
        while let Some(wanted) = self.shard.prepare_wanted() {
            let bytes = self.shard.log.config().segment_bytes as usize;
            let file = self.disk.segments.entry(wanted.segment).or_insert_with(|| vec![0; bytes]);
            file[wanted.from as usize..wanted.to as usize].fill(0);
            self.shard.on_prepared(wanted.segment, wanted.to);
        }
    }

    fn request(&mut self, code: RequestCode, fields: &dyn Fields, body: &[u8]) -> Opaque {
        self.request_from(CONNECTION, code, fields, body)
    }

    fn request_from(
        &mut self,
        from: ConnectionId,
        code: RequestCode,
        fields: &dyn Fields,
        body: &[u8],
    ) -> Opaque {
        self.opaque += 1;
        let mut command = RemotingCommand::request(code, fields, Bytes::copy_from_slice(body));
        command.opaque = Opaque(self.opaque);
        let mut bytes = Vec::new();
        // The binary codec has no room for large codes.
        let is_json = self.opaque % 2 == 0 || i16::try_from(code.0).is_err();
        command.encode(if is_json { Codec::Json } else { Codec::RocketMq }, &mut bytes);
        let frame = Frame::decode(&bytes).unwrap();
        self.shard.on_frame(from, "10.1.2.3:4567".parse().unwrap(), &frame, &mut self.fx);
        self.collect();
        command.opaque
    }

    /// Lines of the log with this in them.
    fn lines(&self, part: &str) -> usize {
        let has = |news: &&News| matches!(news, News::Log { line, .. } if line.contains(part));
        self.fx.news.iter().filter(has).count()
    }

    fn collect(&mut self) {
        let answers = &mut self.answers;
        self.fx.replies.drain(|_, head, body| {
            let mut frame = head.to_vec();
            frame.extend(body.concat());
            answers.push(RemotingCommand::decode(&frame.into()).unwrap());
        });
    }

    fn writes(&mut self) -> Vec<LogWrite> {
        std::iter::from_fn(|| self.shard.next_write()).collect()
    }

    fn complete(&mut self, write: &LogWrite) {
        let file = self.disk.segments.get_mut(&write.segment).unwrap();
        file[write.offset_in_segment as usize..][..write.data.len()].copy_from_slice(&write.data);
        self.shard.on_written(write.block, Ok(()), &mut self.fx);
        self.collect();
    }

    /// Everything staged becomes durable.
    fn settle(&mut self) {
        loop {
            self.prepare();
            let writes = self.writes();
            if writes.is_empty() {
                return;
            }
            writes.iter().for_each(|write| self.complete(write));
        }
    }

    fn bytes_of(&self, read: &FileRead) -> Bytes {
        let files = match read.file {
            LogFile::Segment => &self.disk.segments,
            LogFile::Index => &self.disk.indexes,
        };
        Bytes::copy_from_slice(&files[&read.segment][read.offset as usize..][..read.len as usize])
    }

    /// Serves reads until none is wanted; gives how many of each kind there were.
    fn read_all(&mut self) -> (usize, usize) {
        let (mut of_segments, mut of_indexes) = (0, 0);
        loop {
            while let Some(read) = self.fx.reads.pop() {
                match read.file {
                    LogFile::Segment => of_segments += 1,
                    LogFile::Index => of_indexes += 1,
                }
                let bytes = self.bytes_of(&read);
                self.shard.on_read(read.id, Ok(bytes), &mut self.fx);
            }
            self.answer_ready();
            if self.fx.reads.is_empty() {
                return (of_segments, of_indexes);
            }
        }
    }

    /// Turns, as long as the shard has answers for the next one.
    fn answer_ready(&mut self) {
        while self.shard.has_ready() {
            self.tick(0);
        }
        self.collect();
    }

    fn tick(&mut self, ms: i64) {
        self.now.monotonic_ms += ms;
        self.now.wall_ms += ms;
        self.shard.begin_turn(self.now);
        self.shard.on_tick(&mut self.fx);
        self.collect();
    }

    fn answer(&mut self, opaque: Opaque) -> Option<RemotingCommand> {
        let at = self.answers.iter().position(|answer| answer.is_response() && answer.opaque == opaque)?;
        Some(self.answers.remove(at))
    }

    fn send(&mut self, topic: &str, queue_id: i32, properties: &str, body: &[u8]) -> Opaque {
        self.request(RequestCode::SEND_MESSAGE, &send_request(topic, queue_id, properties, false), body)
    }

    fn sent(&mut self, opaque: Opaque) -> i64 {
        let answer = self.answer(opaque).expect("the send is answered");
        assert_eq!(answer.code, 0, "{:?}", answer.remark);
        SendMessageResponse::decode(&answer.header().ext).unwrap().queue_offset
    }

    fn pull(&mut self, topic: &str, from: i64, hold_ms: i64, expression: &str) -> Opaque {
        self.pull_from(CONNECTION, topic, from, hold_ms, expression)
    }

    fn pull_from(
        &mut self,
        by: ConnectionId,
        topic: &str,
        from: i64,
        hold_ms: i64,
        expression: &str,
    ) -> Opaque {
        let pull = pull_request(topic, from, hold_ms, expression);
        self.request_from(by, RequestCode::PULL_MESSAGE, &pull, &[])
    }

    /// Code, next offset and bodies of the answer to a pull.
    fn pulled(&mut self, opaque: Opaque) -> Option<(i32, i64, Vec<Vec<u8>>)> {
        let answer = self.answer(opaque)?;
        let next = PullMessageResponse::decode(&answer.header().ext).unwrap().next_begin_offset;
        let bodies = messages(&answer.body).map(|message| {
            let message = message.unwrap();
            assert!(message.verify_crc());
            message.body().to_vec()
        });
        Some((answer.code, next, bodies.collect()))
    }
}

fn pull_request<'a>(topic: &'a str, from: i64, hold_ms: i64, expression: &'a str) -> PullMessageRequest<'a> {
    PullMessageRequest::new("g", topic, 0, from).filtered(expression).held(hold_ms)
}

fn send_request(topic: &str, queue_id: i32, properties: &str, batch: bool) -> SendMessageRequest<'static> {
    SendMessageRequest {
        producer_group: "p".into(),
        topic: topic.to_owned().into(),
        default_topic: "TBW102".into(),
        default_topic_queue_nums: 4,
        queue_id,
        sys_flag: 0,
        born_timestamp: 1,
        flag: 9,
        properties: Some(properties.to_owned().into()),
        reconsume_times: 0,
        unit_mode: false,
        max_reconsume_times: None,
        batch,
        broker_name: None,
    }
}

#[test]
fn a_send_is_answered_and_visible_only_when_it_is_durable() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let send = f.send("T", 0, "", b"hello");
    assert!(f.answer(send).is_none());
    let early = f.pull("T", 0, 0, "*");
    assert_eq!(f.pulled(early).unwrap().0, ResponseCode::PULL_NOT_FOUND.0);
    f.settle();
    assert_eq!(f.sent(send), 0);
    let pull = f.pull("T", 0, 0, "*");
    assert_eq!(f.pulled(pull).unwrap(), (0, 1, vec![b"hello".to_vec()]));
}

#[test]
fn async_sends_are_answered_and_visible_at_once() {
    let mut f = Fixture::new(FlushDiskType::Async);
    let send = f.send("T", 0, "", b"hello");
    assert_eq!(f.sent(send), 0);
    let pull = f.pull("T", 0, 0, "*");
    assert_eq!(f.pulled(pull).unwrap().2, [b"hello"]);
    // The block is not sealed, but its time is known.
    let queue = f.shard.known_queue("T", QueueId(0)).unwrap();
    let mut at = |ms| f.shard.offset_by_time(queue, StoreTimestamp(ms), Boundary::Lower).unwrap().0;
    let now = f.now.wall_ms;
    assert_eq!((at(now - 1), at(now), at(now + 1)), (0, 0, 1));
}

#[test]
fn async_sends_wait_for_a_disk_that_is_far_behind() {
    let mut f = Fixture::new(FlushDiskType::Async);
    let body = vec![b'x'; 100_000];
    let at_once = f.shard.log.config().staged_bytes_max / limits::ASYNC_UNDURABLE_PART;
    let in_memory = at_once as usize / body.len();
    let sends: Vec<Opaque> = (0..2 * in_memory).map(|_| f.send("T", 0, "", &body)).collect();
    let answered =
        sends.iter().filter(|send| f.answer(**send).is_some_and(|answer| answer.code == 0)).count();
    assert!((in_memory - 1..=in_memory).contains(&answered), "{answered}");
    let behind = f.pull("T", answered as i64, 0, "*");
    assert_eq!(
        f.pulled(behind).unwrap().0,
        ResponseCode::PULL_NOT_FOUND.0,
        "A3: nobody sees what is not acknowledged"
    );
    // Once the disk has caught up the others do not wait for their own blocks.
    f.prepare();
    let mut writes = f.writes().into_iter();
    while f.shard.log.staged_bytes() > at_once {
        f.complete(&writes.next().expect("enough to catch up"));
    }
    assert!(f.shard.log.staged_bytes() > 0);
    for (offset, send) in sends.into_iter().enumerate().skip(answered) {
        assert_eq!(f.sent(send), offset as i64, "in their order, and none refused");
    }
    let pull = f.pull("T", 2 * in_memory as i64 - 1, 0, "*");
    assert_eq!(f.pulled(pull).unwrap().2.len(), 1);
    let send = f.send("T", 0, "", b"at once again");
    assert_eq!(f.sent(send), 2 * in_memory as i64);
}

#[test]
fn answers_keep_the_order_of_the_log_whatever_the_order_of_the_writes() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"first, so that the topic is there");
    f.settle();
    let (mut sends, mut writes) = (Vec::new(), Vec::new());
    for body in [b"1", b"2", b"3"] {
        sends.push(f.send("T", 0, "", body));
        writes.extend(f.writes());
    }
    assert_eq!(writes.len(), 3);
    f.complete(&writes[2]);
    f.complete(&writes[1]);
    assert!(sends.iter().all(|send| f.answer(*send).is_none()));
    f.complete(&writes[0]);
    assert_eq!(sends.iter().map(|send| f.sent(*send)).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_failed_write_refuses_who_waits_and_who_comes_but_serves_pulls() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"kept");
    f.settle();
    let lost = f.send("T", 0, "", b"lost");
    let writes = f.writes();
    f.shard.on_written(writes[0].block, Err("EIO".into()), &mut f.fx);
    f.collect();
    let late = f.send("T", 0, "", b"late");
    for send in [lost, late] {
        assert_eq!(f.answer(send).unwrap().code, ResponseCode::SERVICE_NOT_AVAILABLE.0);
    }
    let pull = f.pull("T", 0, 0, "*");
    assert_eq!(f.pulled(pull).unwrap().2, [b"kept"]);
    assert_eq!(f.fx.news.iter().filter(|news| matches!(news, News::Log { error: true, .. })).count(), 1);
}

#[test]
fn a_batch_is_consecutive_messages_of_one_queue() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let mut body = Vec::new();
    for text in ["a", "bb", "ccc"] {
        BatchEntry { flag: 0, body: text.as_bytes(), properties: b"TAGS\x01x\x02" }
            .encode(&mut body)
            .unwrap();
    }
    let send = f.request(RequestCode::SEND_MESSAGE, &send_request("T", 0, "", true), &body);
    f.settle();
    let answer = f.answer(send).unwrap();
    let response = SendMessageResponse::decode(&answer.header().ext).unwrap();
    assert_eq!((response.queue_offset, response.msg_id.split(',').count()), (0, 3));
    let pull = f.pull("T", 0, 0, "x");
    assert_eq!(f.pulled(pull).unwrap(), (0, 3, vec![b"a".to_vec(), b"bb".to_vec(), b"ccc".to_vec()]));
    // Cut anywhere, it is refused whole.
    for cut in 1..body.len() {
        let send = f.request(RequestCode::SEND_MESSAGE, &send_request("T", 0, "", true), &body[..cut]);
        f.settle();
        let code = f.answer(send).unwrap().code;
        let whole_entries = [22 + 7 + 1, 2 * 29 + 3].contains(&cut);
        assert_eq!(code == 0, whole_entries, "cut at {cut}: code {code}");
    }
}

#[test]
fn what_the_broker_cannot_do_is_refused() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let refused = [
        ("DELAY\x01soon\x02", ResponseCode::MESSAGE_ILLEGAL),
        ("TIMER_DELAY_SEC\x015\x02", ResponseCode::MESSAGE_ILLEGAL),
        ("TRAN_MSG\x01true\x02", ResponseCode::NO_PERMISSION),
    ];
    for (properties, code) in refused {
        let send = f.send("T", 0, properties, b"x");
        assert_eq!(f.answer(send).unwrap().code, code.0, "{properties}");
    }
    for (queue, body, code) in [
        (4, &b"x"[..], ResponseCode::INVALID_PARAMETER),
        (0, b"", ResponseCode::MESSAGE_ILLEGAL),
        (0, &vec![1; limits::MESSAGE_BYTES_MAX + 1], ResponseCode::MESSAGE_ILLEGAL),
    ] {
        let send = f.send("T", queue, "", body);
        assert_eq!(f.answer(send).unwrap().code, code.0);
    }
    let unknown = f.request(RequestCode(9999), &(), &[]);
    assert_eq!(f.answer(unknown).unwrap().code, ResponseCode::REQUEST_CODE_NOT_SUPPORTED.0);
    let name = "x".repeat(128);
    let long = f.send(&name, 0, "", b"x");
    assert_eq!(f.answer(long).unwrap().code, ResponseCode::INVALID_PARAMETER.0);
    f.settle();
    let pull = f.pull("T", 0, 0, "*");
    assert_eq!(f.pulled(pull).unwrap().0, ResponseCode::PULL_NOT_FOUND.0, "nothing was stored");
}

#[test]
fn held_pulls_are_answered_once_by_a_match_a_deadline_or_not_at_all() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"old");
    f.settle();
    let wanted = f.pull("T", 1, 5_000, "a || b");
    let timed = f.pull("T", 1, 2_000, "other");
    let gone = f.pull_from(ConnectionId(8), "T", 1, 5_000, "*");
    f.send("T", 0, "TAGS\x01c\x02", b"not wanted");
    f.shard.on_closed(ConnectionId(8), &mut f.fx);
    f.settle();
    assert!(f.answer(wanted).is_none() && f.answer(gone).is_none());
    f.tick(2_000);
    // It has seen that nothing up to 2 matches: progress.
    assert_eq!(f.pulled(timed).unwrap(), (ResponseCode::PULL_RETRY_IMMEDIATELY.0, 2, vec![]));
    f.send("T", 0, "TAGS\x01b\x02", b"wanted");
    f.settle();
    assert_eq!(f.pulled(wanted).unwrap(), (0, 3, vec![b"wanted".to_vec()]));
    f.tick(10_000);
    assert_eq!(f.shard.holds.len(), 0);
    assert!(f.answer(gone).is_none());
    assert_eq!(f.shard.next_deadline_ms(), None);
}

#[test]
fn offsets_outside_the_queue_are_moved_into_it() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let empty = f.send("T", 1, "", b"x");
    f.settle();
    f.sent(empty);
    let pull = f.pull("T", 5, 1_000, "*");
    assert_eq!(f.pulled(pull).unwrap(), (ResponseCode::PULL_OFFSET_MOVED.0, 0, vec![]));
    let unknown = f.pull("U", 0, 0, "*");
    assert_eq!(f.answer(unknown).unwrap().code, ResponseCode::TOPIC_NOT_EXIST.0);
}

#[test]
fn everything_that_was_acknowledged_is_there_after_a_restart() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let bodies: Vec<Vec<u8>> = (0..200u32).map(|i| vec![i as u8; 1 + (i as usize * 997) % 90_000]).collect();
    for (i, body) in bodies.iter().enumerate() {
        f.send("T", 0, "TAGS\x01t\x02", body);
        if i % 3 == 0 {
            f.settle();
        }
    }
    let commit = UpdateConsumerOffsetRequest {
        consumer_group: "g".into(),
        topic: "T".into(),
        queue_id: QueueId(0),
        commit_offset: 120,
    };
    let commit = f.request(RequestCode::UPDATE_CONSUMER_OFFSET, &commit, &[]);
    assert!(f.answer(commit).is_none(), "the offset is not on disk yet");
    let create = CreateTopicRequest::new("Made", 3);
    let create = f.request(RequestCode::UPDATE_AND_CREATE_TOPIC, &create, &[]);
    f.settle();
    assert_eq!(f.answer(commit).unwrap().code, 0);
    assert!(f.answer(create).is_none(), "the name servers do not know it yet");
    let ticket = f.fx.news.iter().find_map(|news| match news {
        News::TopicChanged { config, ticket } if config.topic_name == "Made" => *ticket,
        _ => None,
    });
    f.shard.on_registered(ticket.unwrap(), &mut f.fx);
    f.collect();
    assert_eq!(f.answer(create).unwrap().code, 0);

    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert!(
        f.shard
            .topic_configs()
            .iter()
            .any(|config| config.topic_name == "Made" && config.read_queue_nums == 3)
    );
    let query = QueryConsumerOffsetRequest {
        consumer_group: "g".into(),
        topic: "T".into(),
        queue_id: QueueId(0),
        set_zero_if_not_found: None,
    };
    let query = f.request(RequestCode::QUERY_CONSUMER_OFFSET, &query, &[]);
    assert_eq!(OffsetResponse::decode(&f.answer(query).unwrap().header().ext).unwrap().offset, 120);
    // Nothing is in memory after a restart: every pull is a read of the disk.
    let (mut next, mut got) = (0, Vec::new());
    while next < 200 {
        let pull = f.pull("T", next, 0, "t");
        f.read_all();
        let (code, then, bodies) = f.pulled(pull).unwrap();
        assert_eq!(code, 0);
        assert_eq!(then, next + bodies.len() as i64);
        got.extend(bodies);
        next = then;
    }
    assert_eq!(got, bodies);
    let send = f.send("T", 0, "", b"and on it goes");
    f.settle();
    assert_eq!(f.sent(send), 200);
}

/// Reads that wait for their turn may find that what they want was read meanwhile: then the turn is that of the next one in line. There was
/// one turn for each read that ended once, and who was left then waited until somebody else had something read.
#[test]
fn every_read_in_line_has_its_turn() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"m");
    f.settle();
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    let pulls: Vec<Opaque> = (0..3 * limits::COLD_READS_MAX).map(|_| f.pull("T", 0, 0, "*")).collect();
    f.read_all();
    for pull in pulls {
        assert_eq!(f.pulled(pull).expect("answered").2, [b"m"]);
    }
}

#[test]
fn a_damaged_block_is_read_again_and_costs_its_messages_if_it_stays_damaged() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for body in [&b"one"[..], b"two", b"three"] {
        f.send("T", 0, "", body);
        f.settle();
    }
    let all = vec![b"one".to_vec(), b"two".to_vec(), b"three".to_vec()];
    // The first read is right up to the damage; the second begins with it; the third is the second try.
    let without = vec![all[0].clone(), all[2].clone()];
    for (spoiled_reads, bodies, is_damage) in [(3, without, true), (2, all.clone(), false), (1, all, false)] {
        let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
        let (mut reads, mut next, mut got) = (0, 0, Vec::new());
        while next < 3 {
            let pull = f.pull("T", next, 0, "*");
            while let Some(read) = f.fx.reads.pop() {
                let mut bytes = f.bytes_of(&read).to_vec();
                let found = bytes.windows(3).position(|window| window == b"two");
                if let Some(at) = found.filter(|_| reads < spoiled_reads) {
                    bytes[at] ^= 1;
                }
                reads += 1;
                f.shard.on_read(read.id, Ok(bytes.into()), &mut f.fx);
                f.answer_ready();
            }
            f.answer_ready();
            let (_, then, bodies) = f.pulled(pull).unwrap();
            assert!(then > next, "P4");
            next = then;
            got.extend(bodies);
        }
        assert_eq!(got, bodies);
        let is_report =
            |news: &News| matches!(news, News::Log { error: true, line } if line.contains("damaged"));
        assert_eq!(f.fx.news.iter().any(is_report), is_damage);
    }
}

#[test]
fn members_of_a_group_are_told_of_each_other() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let heartbeat = |client: &str| HeartbeatData {
        client_id: client.into(),
        consumer_data_set: vec![ConsumerData {
            group_name: "g".into(),
            subscription_data_set: vec![SubscriptionData::tag_expression("T", "*")],
            ..ConsumerData::default()
        }],
        ..HeartbeatData::default()
    };
    let beat = f.request_from(ConnectionId(1), RequestCode::HEART_BEAT, &(), &heartbeat("one").to_json());
    assert_eq!(f.answer(beat).unwrap().code, 0);
    f.answers.clear();
    f.request_from(ConnectionId(2), RequestCode::HEART_BEAT, &(), &heartbeat("two").to_json());
    let notices =
        |f: &Fixture| f.answers.iter().filter(|answer| !answer.is_response() && answer.is_oneway()).count();
    assert_eq!(notices(&f), 2);
    f.answers.clear();
    f.request_from(ConnectionId(2), RequestCode::HEART_BEAT, &(), &heartbeat("two").to_json());
    assert_eq!(notices(&f), 0, "nothing has changed");
    f.shard.on_closed(ConnectionId(2), &mut f.fx);
    f.collect();
    assert_eq!(notices(&f), 1);
    f.tick(limits::CLIENT_EXPIRY_MS + limits::CLIENT_SCAN_MS);
    assert!(f.shard.groups.consumer_group("g").is_none());
}

#[test]
fn a_deleted_topic_is_gone_and_can_be_made_again() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.send("T", 0, "", b"before");
    f.settle();
    let held = f.pull("T", 1, 10_000, "*");
    let staged = f.send("T", 0, "", b"staged");
    let delete = ringmq_protocol::request::DeleteTopicRequest { topic: "T".into() };
    let delete = f.request(RequestCode::DELETE_TOPIC_IN_BROKER, &delete, &[]);
    assert_eq!(f.answer(held).unwrap().code, ResponseCode::TOPIC_NOT_EXIST.0);
    f.settle();
    assert_eq!((f.sent(staged), f.answer(delete).unwrap().code), (1, 0));
    let again = f.send("T", 0, "", b"again");
    f.settle();
    assert_eq!(f.sent(again), 0);
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    let queue = f.shard.known_queue("T", QueueId(0)).unwrap();
    assert_eq!(f.shard.bounds(queue).unwrap().1.0, 1);
    let send = f.send("T", 0, "", b"more");
    f.settle();
    assert_eq!(f.sent(send), 1);
}

#[test]
fn the_same_events_give_the_same_effects() {
    let run = || {
        let mut f = Fixture::new(FlushDiskType::Sync);
        for i in 0..50 {
            f.send(&format!("T{}", i % 7), -1, "KEYS\x01k\x02", &[i as u8; 300]);
            f.pull("T1", 0, 1_000, "*");
            if i % 4 == 0 {
                f.settle();
            }
            f.tick(100);
        }
        f.settle();
        let answers: Vec<_> = f.answers.iter().map(|answer| format!("{answer:?}")).collect();
        (answers, f.disk.segments)
    };
    assert!(run() == run());
}
