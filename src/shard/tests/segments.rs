//! Segments that fill, are sealed, are found again, and go.

use super::*;
use ringmq_protocol::request::BoundaryType;
use ringmq_protocol::request::{
    GetMinOffsetRequest, QueryMessageRequest, SearchOffsetRequest, ViewMessageByIdRequest,
};
use ringmq_storage::{rebuild_index, seal};

/// Segments in which only a few hundred of the messages below fit.
pub(super) const SMALL: u64 = 8 << 20;

fn fixture() -> Fixture {
    Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, SMALL)
}

impl Fixture {
    fn restart(&self) -> Fixture {
        Fixture::with_segments(self.disk.clone(), FlushDiskType::Sync, SMALL)
    }

    /// Does what the housekeeping thread does with full segments and damaged indexes.
    pub(super) fn keep_house(&mut self) {
        let log = self.shard.log.config().clone();
        for news in std::mem::take(&mut self.fx.news) {
            match news {
                News::Seal(index) => {
                    let header = seal(&mut self.disk, &log, &index).unwrap();
                    self.shard.on_sealed(header);
                }
                News::Rebuild { segment, replay_from } => {
                    let (header, damaged) =
                        rebuild_index(&mut self.disk, &log, segment, replay_from).unwrap();
                    assert_eq!(damaged, []);
                    self.shard.on_rebuilt(segment, Ok(header), &mut self.fx);
                }
                News::Released(segment) => {
                    self.disk.segments.remove(&segment);
                    self.disk.indexes.remove(&segment);
                }
                other => self.fx.news.push(other),
            }
        }
    }

    /// Sends messages of 20,000 bytes to queues 0 to 3 of a topic in turn, with a key each, until the log is in a segment.
    pub(super) fn fill(&mut self, topic: &str, segment: u64, next: &mut u64) {
        while self.shard.log.end().0 < segment * SMALL + SMALL / 2 {
            let mut body = vec![b'x'; 20_000];
            body[..8].copy_from_slice(&next.to_be_bytes());
            let properties = format!("KEYS\x01key{next} all\x02UNIQ_KEY\x01U{next}\x02");
            let send = self.send(topic, (*next % 4) as i32, &properties, &body);
            self.settle();
            assert_eq!(self.sent(send), (*next / 4) as i64);
            *next += 1;
            self.tick(1);
            self.settle();
            self.keep_house();
        }
    }

    /// The answer to a request, after all the reads that it takes.
    pub(super) fn ask(&mut self, code: RequestCode, fields: &dyn Fields) -> RemotingCommand {
        let opaque = self.request(code, fields, &[]);
        self.read_all();
        self.answer(opaque).expect("answered once all is read")
    }

    /// Numbers of the messages of queue 0 from an offset on.
    pub(super) fn numbers(&mut self, topic: &str, mut from: i64, until: i64) -> Vec<u64> {
        let mut numbers = Vec::new();
        while from < until {
            let pull = self.pull(topic, from, 0, "*");
            self.read_all();
            let (_, next, bodies) = self.pulled(pull).unwrap();
            numbers.extend(bodies.iter().map(|body| u64::from_be_bytes(body[..8].try_into().unwrap())));
            assert!(next > from, "progress from {from}");
            from = next;
        }
        numbers
    }

    pub(super) fn min(&mut self, topic: &str) -> i64 {
        let answer = self.ask(
            RequestCode::GET_MIN_OFFSET,
            &GetMinOffsetRequest { topic: topic.into(), queue_id: QueueId(0) },
        );
        OffsetResponse::decode(&answer.header().ext).unwrap().offset
    }

    pub(super) fn find(&mut self, topic: &str, key: &str, unique: bool) -> Vec<u64> {
        let query = QueryMessageRequest {
            topic: topic.into(),
            key: key.into(),
            max_num: 64,
            begin_timestamp: 0,
            end_timestamp: i64::MAX,
            unique_key_query: unique,
        };
        let answer = self.ask(RequestCode::QUERY_MESSAGE, &query);
        let number = |message: ringmq_protocol::message::StoredMessage<'_>| {
            u64::from_be_bytes(message.body()[..8].try_into().unwrap())
        };
        messages(&answer.body).map(|message| number(message.unwrap())).collect()
    }

    pub(super) fn sealed(&self) -> Vec<u64> {
        self.shard.sealed_headers().iter().map(|header| header.base.0 / SMALL).collect()
    }

    pub(super) fn release(&mut self, segment: u64, forced: bool) -> Option<String> {
        self.shard.on_release(SegmentBase(segment * SMALL), forced, &mut self.fx);
        self.read_all();
        self.tick(1);
        let kept = self.fx.news.iter().find_map(|news| match news {
            News::Kept { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        self.fx.news.retain(|news| !matches!(news, News::Kept { .. }));
        self.keep_house();
        kept
    }
}

pub(super) fn create_request(
    topic: &'static str,
    queues: i32,
    order: bool,
    attributes: &str,
) -> CreateTopicRequest<'static> {
    CreateTopicRequest {
        order,
        attributes: (!attributes.is_empty()).then(|| attributes.to_owned().into()),
        ..CreateTopicRequest::new(topic, queues)
    }
}

#[test]
fn old_messages_are_found_by_offset_time_key_and_position() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 5, &mut count);
    let start = f.now.wall_ms - count as i64;
    for mut f in [f.restart(), f] {
        assert_eq!(f.sealed(), [0, 1, 2, 3, 4]);
        assert_eq!(f.index_memory(), (0, true), "only the active segment is in memory");
        let quarter = (count as i64 + 3) / 4;
        let expected: Vec<u64> = (0..count).step_by(4).collect();
        assert_eq!(f.numbers("T", 0, quarter), expected);
        assert_eq!(f.min("T"), 0);
        for number in (0..count).step_by(97) {
            assert_eq!(f.find("T", &format!("key{number}"), false), [number]);
            assert_eq!(f.find("T", &format!("U{number}"), true), [number]);
        }
        assert_eq!(
            f.find("T", "all", false),
            (count - 64..count).collect::<Vec<_>>(),
            "the newest, oldest first"
        );
        assert_eq!(f.find("T", "no such key", false), [0u64; 0]);
        assert_eq!(f.find("Other", "all", false), [0u64; 0]);
        for (at, lower) in [(0, 0), (start - 1, 0), (start + 400, 100), (i64::MAX, quarter)] {
            let search = SearchOffsetRequest {
                topic: "T".into(),
                queue_id: QueueId(0),
                timestamp: at,
                boundary_type: BoundaryType::Lower,
            };
            let answer = f.ask(RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &search);
            let found = OffsetResponse::decode(&answer.header().ext).unwrap().offset;
            assert!((found - lower).abs() <= 1, "{at}: {found} {lower}");
        }
        // By position: what a message id says.
        for number in [3u64, 400, count - 5] {
            let pull = f.pull("T", (number / 4) as i64, 0, "*");
            f.read_all();
            let answer = f.answer(pull).unwrap();
            let first = messages(&answer.body).next().unwrap().unwrap();
            let (position, body) = (first.physical_offset(), first.body().to_vec());
            let view = ViewMessageByIdRequest { topic: None, offset: position };
            let answer = f.ask(RequestCode::VIEW_MESSAGE_BY_ID, &view);
            assert_eq!(messages(&answer.body).next().unwrap().unwrap().body(), body);
            let beside = ViewMessageByIdRequest { topic: None, offset: PhysicalOffset(position.0 + 8) };
            assert_ne!(f.ask(RequestCode::VIEW_MESSAGE_BY_ID, &beside).code, 0);
        }
    }
}

impl Fixture {
    /// Frozen segments, and whether nothing older than the active segment is in the index.
    fn index_memory(&mut self) -> (usize, bool) {
        let queue = self.shard.known_queue("T", QueueId(0)).unwrap();
        let first = self.shard.index.memory_start(queue);
        let entry = self.shard.index.entries(queue, first, QueueOffset(u64::MAX)).next();
        let active = self.shard.active.unwrap();
        (self.shard.index.frozen_count(), entry.is_none_or(|(_, entry)| entry.position.0 >= active.0))
    }
}

/// Without any index the same is found, and the indexes are the same bytes as before.
#[test]
fn deleting_all_indexes_loses_nothing() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 4, &mut count);
    let indexes = std::mem::take(&mut f.disk.indexes);
    let mut again = f.restart();
    assert_eq!(again.disk.indexes, indexes);
    let expected: Vec<u64> = (0..count).step_by(4).collect();
    assert_eq!(again.numbers("T", 0, expected.len() as i64), expected);
    // One that is gone from the middle, and one that is damaged, are made again from their segments.
    let bases: Vec<SegmentBase> = indexes.keys().copied().collect();
    again.disk.indexes.remove(&bases[1]);
    again.disk.indexes.get_mut(&bases[2]).unwrap()[50] ^= 4;
    let mut third = again.restart();
    assert_eq!(third.sealed(), [0, 1, 2, 3]);
    assert_eq!(third.numbers("T", 0, expected.len() as i64), expected);
    assert_eq!(third.find("T", "key7", false), [7]);
    let said = |f: &Fixture, segment: SegmentBase, what: &str| {
        let line = format!("the index of segment {segment} {what}: ");
        f.notes.iter().filter(|note| note.starts_with(&line)).count()
    };
    assert_eq!([bases[1], bases[2]].map(|base| said(&third, base, "was written anew")), [1, 1]);
    // The newest is sealed again as the log is read; that it was damaged is said too.
    third.disk.indexes.get_mut(&bases[3]).unwrap()[50] ^= 4;
    let mut fourth = third.restart();
    assert_eq!(said(&fourth, bases[3], "cannot be used"), 1, "{:?}", fourth.notes);
    assert_eq!(fourth.sealed(), [0, 1, 2, 3]);
    assert_eq!(fourth.numbers("T", 0, expected.len() as i64), expected);
}

#[test]
fn the_small_state_outlives_the_segments_that_it_was_written_in() {
    let mut f = fixture();
    let create = create_request("Kept", 3, true, "");
    f.request(RequestCode::UPDATE_AND_CREATE_TOPIC, &create, &[]);
    let early = f.send("Early", 0, "", b"the only one");
    f.settle();
    assert_eq!(f.sent(early), 0);
    let commit = UpdateConsumerOffsetRequest {
        consumer_group: "g".into(),
        topic: "Kept".into(),
        queue_id: QueueId(2),
        commit_offset: 77,
    };
    f.request(RequestCode::UPDATE_CONSUMER_OFFSET, &commit, &[]);
    f.settle();
    let mut count = 0;
    f.fill("T", 3, &mut count);
    for segment in 0..2 {
        assert_eq!(f.release(segment, false), None);
    }
    assert_eq!(f.sealed(), [2]);
    assert!(f.release(2, false).unwrap().contains("checkpoint"), "R1");
    for without_indexes in [false, true] {
        if without_indexes {
            f.disk.indexes.clear();
        }
        let mut f = f.restart();
        let kept = f.shard.topic_configs().into_iter().find(|config| config.topic_name == "Kept").unwrap();
        assert_eq!((kept.read_queue_nums, kept.order), (3, true));
        let query = QueryConsumerOffsetRequest {
            consumer_group: "g".into(),
            topic: "Kept".into(),
            queue_id: QueueId(2),
            set_zero_if_not_found: None,
        };
        let answer = f.ask(RequestCode::QUERY_CONSUMER_OFFSET, &query);
        assert_eq!(OffsetResponse::decode(&answer.header().ext).unwrap().offset, 77);
        let min = f.min("T");
        assert!(min > 0);
        let expected: Vec<u64> = (min as u64 * 4..count).step_by(4).collect();
        assert_eq!(f.numbers("T", min, expected.len() as i64 + min), expected);
        let below = f.pull("T", 0, 0, "*");
        f.read_all();
        let (code, next, _) = f.pulled(below).unwrap();
        assert_eq!((code, next), (ResponseCode::PULL_OFFSET_MOVED.0, min));
        assert_eq!(f.min("Early"), 1, "its message is gone, its number is not given again");
        let send = f.send("Early", 0, "", b"another");
        f.settle();
        assert_eq!(f.sent(send), 1);
    }
}

#[test]
fn what_an_online_group_has_still_to_consume_stays() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 3, &mut count);
    let heartbeat = HeartbeatData {
        client_id: "c".into(),
        consumer_data_set: vec![ConsumerData {
            group_name: "g".into(),
            subscription_data_set: vec![SubscriptionData::tag_expression("T", "*")],
            ..ConsumerData::default()
        }],
        ..HeartbeatData::default()
    };
    f.request(RequestCode::HEART_BEAT, &(), &heartbeat.to_json());
    let reason = f.release(0, false).unwrap();
    assert!(reason.contains("group g") && reason.contains("topic T"), "{reason}");
    for queue_id in 0..4 {
        let commit = UpdateConsumerOffsetRequest {
            consumer_group: "g".into(),
            topic: "T".into(),
            queue_id: QueueId(queue_id),
            commit_offset: 150,
        };
        f.request(RequestCode::UPDATE_CONSUMER_OFFSET, &commit, &[]);
    }
    assert_eq!(f.release(0, false), None);
    assert!(f.release(1, false).is_some());
    assert_eq!(f.release(1, true), None, "unless it is forced");
    assert_eq!(f.sealed(), [2]);
}

/// A page that comes back wrong twice: whoever needs it is told, the index is made again, and then all is well.
#[test]
fn a_damaged_index_is_noticed_and_made_again() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 2, &mut count);
    let mut f = f.restart();
    let base = SegmentBase(0);
    for page in f.disk.indexes.get_mut(&base).unwrap().chunks_mut(4096).skip(1) {
        page[100] ^= 1;
    }
    let pull = f.pull("T", 10, 0, "*");
    f.read_all();
    assert_eq!(f.answer(pull).unwrap().code, ResponseCode::SYSTEM_ERROR.0);
    let during = f.pull("T", 10, 0, "*");
    assert_eq!(f.answer(during).unwrap().code, ResponseCode::SYSTEM_BUSY.0);
    f.keep_house();
    assert_eq!(f.numbers("T", 10, 12)[..2], [40, 44]);
    assert!(
        f.fx.news
            .iter()
            .any(|news| matches!(news, News::Log { error: true, line } if line.contains("index")))
    );
}

/// The log was left for the next segment, of which nothing survived: it goes on in the old one, whose index is stale.
#[test]
fn a_log_that_goes_back_into_a_sealed_segment_makes_its_index_again() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 1, &mut count);
    assert_eq!(f.sealed(), [0]);
    let mut disk = f.disk.clone();
    disk.segments.get_mut(&SegmentBase(SMALL)).unwrap().fill(0);
    let mut f = Fixture::with_segments(disk, FlushDiskType::Sync, SMALL);
    assert_eq!(f.sealed(), [0u64; 0]);
    let queue = f.shard.known_queue("T", QueueId(0)).unwrap();
    let next = f.shard.bounds(queue).unwrap().1.0 as i64;
    // Small enough to fit behind the last block of the segment.
    for more in 0..20 {
        let send = f.send("T", 0, "", &(1_000_000u64 + more).to_be_bytes());
        f.settle();
        assert_eq!(f.sent(send), next + more as i64);
    }
    assert!(f.shard.log.end().0 <= SMALL);
    for f in [f.restart(), f] {
        let mut f = f;
        assert_eq!(f.numbers("T", next, next + 20), (1_000_000..1_000_020).collect::<Vec<u64>>());
    }
}

#[test]
fn a_topic_may_keep_its_messages_for_a_shorter_time() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 2, &mut count);
    let set = |f: &mut Fixture, attributes: &str| {
        let create = create_request("T", 4, false, attributes);
        let opaque = f.request(RequestCode::UPDATE_AND_CREATE_TOPIC, &create, &[]);
        f.settle();
        f.answer(opaque)
    };
    let refused = set(&mut f, "+ringmq.retention=soon").unwrap();
    assert_eq!(refused.code, ResponseCode::INVALID_PARAMETER.0);
    // A message is stored each millisecond.
    assert_eq!(set(&mut f, "+ringmq.retention=1s"), None, "the name servers are to be told first");
    for mut f in [f.restart(), f] {
        f.now.wall_ms = 1_700_000_000_000 + count as i64;
        f.tick(0);
        let oldest = count as i64 - 1000;
        assert!((f.min("T") - oldest.max(0) / 4).abs() <= 2, "{} of {count}", f.min("T"));
        f.tick(500);
        assert!((f.min("T") - oldest.max(0) / 4).abs() <= 2, "looked at once a second");
        f.tick(600);
        assert_eq!(f.min("T"), count as i64 / 4, "the last one is older than a second by now");
        let pull = f.pull("T", 0, 0, "*");
        f.read_all();
        assert_eq!(f.pulled(pull).unwrap().0, ResponseCode::PULL_OFFSET_MOVED.0);
    }
}

#[test]
fn a_topic_may_be_acknowledged_at_once() {
    let mut f = fixture();
    f.send("T", 0, "", b"durable");
    f.settle();
    let waiting = f.send("T", 0, "", b"not yet durable");
    let create = create_request("T", 4, false, "+ringmq.flush=async");
    f.request(RequestCode::UPDATE_AND_CREATE_TOPIC, &create, &[]);
    let behind = f.send("T", 0, "", b"behind it");
    assert_eq!((f.answer(waiting), f.answer(behind)), (None, None), "not before what waits for the disk");
    let pull = f.pull("T", 0, 0, "*");
    assert_eq!(f.pulled(pull).unwrap().2, [b"durable"]);
    f.settle();
    assert_eq!((f.sent(waiting), f.sent(behind)), (1, 2));
    let quick = f.send("T", 0, "", b"seen at once");
    assert_eq!(f.sent(quick), 3);
    let pull = f.pull("T", 1, 0, "*");
    assert_eq!(f.pulled(pull).unwrap().2.len(), 3);
    let other = f.send("U", 0, "", b"as the broker is set");
    assert_eq!(f.answer(other), None);
}

#[test]
fn nothing_goes_before_the_checkpoint_behind_it_is_durable() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 1, &mut count);
    // The first checkpoint lies in segment 0, so it holds that one; the next comes near the end of segment 1.
    let is_near = |f: &Fixture| f.shard.log.end().0 + 30_000 > 2 * SMALL - SMALL / 16;
    while !is_near(&f) {
        f.send("T", 0, "", &[0; 20_000]);
        f.settle();
        f.tick(1);
    }
    f.settle();
    assert!(f.release(0, true).unwrap().contains("checkpoint"));
    while f.shard.log.end().0 < 2 * SMALL - SMALL / 16 {
        f.send("T", 0, "", &[0; 20_000]);
    }
    f.tick(1);
    assert!(f.shard.checkpoints.pause_ms().is_none(), "it is complete, and still to be written");
    assert!(f.release(0, true).unwrap().contains("checkpoint"));
    f.settle();
    assert_eq!(f.release(0, true), None);
}

/// A page of the old index that arrives after the new one was made is not taken for a page of that.
#[test]
fn a_read_under_way_while_an_index_is_made_again_is_made_again_too() {
    let mut f = fixture();
    let mut count = 0;
    f.fill("T", 2, &mut count);
    let mut f = f.restart();
    let pull = f.pull("T", 10, 0, "*");
    let late = f.fx.reads.pop().unwrap();
    let old = f.bytes_of(&late);
    let query = QueryMessageRequest {
        topic: "T".into(),
        key: "key7".into(),
        max_num: 1,
        begin_timestamp: 0,
        end_timestamp: i64::MAX,
        unique_key_query: false,
    };
    f.request(RequestCode::QUERY_MESSAGE, &query, &[]);
    while let Some(read) = f.fx.reads.pop() {
        let mut bytes = f.bytes_of(&read).to_vec();
        bytes[100] ^= 1;
        f.shard.on_read(read.id, Ok(bytes.into()), &mut f.fx);
    }
    f.keep_house();
    f.shard.on_read(late.id, Ok(old), &mut f.fx);
    let again: Vec<(SegmentBase, u64)> = f.fx.reads.iter().map(|read| (read.segment, read.offset)).collect();
    assert_eq!(again, [(late.segment, late.offset)]);
    f.read_all();
    assert_eq!(f.pulled(pull).unwrap().0, 0);
}
