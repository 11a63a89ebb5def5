//! Topics with a time of their own: what they give up, and segments that are rewritten without it.

use super::pop::pop_request;
use super::segments::{SMALL, create_request};
use super::*;
use ringmq_protocol::request::{
    BoundaryType, PopMessageRequest, SearchOffsetRequest, ViewMessageByIdRequest,
};
use ringmq_storage::{Rewrite, SegmentBase};

const BRIEF: &str = "T";
const KEPT: &str = "Kept";

fn fixture() -> Fixture {
    Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, SMALL)
}

impl Fixture {
    /// Sends messages of 20,000 bytes to queue 0 of both topics in turn, with a key each, one a millisecond, until the log is in a
    /// segment. The number of each message is the sum of those before.
    fn fill_both(&mut self, segment: u64, next: &mut u64) {
        while self.shard.log.end().0 < segment * SMALL + SMALL / 2 {
            let mut body = vec![b'x'; 20_000];
            body[..8].copy_from_slice(&next.to_be_bytes());
            let properties = format!("KEYS\x01key{next}\x02");
            let topic = [BRIEF, KEPT][(*next % 2) as usize];
            let send = self.send(topic, 0, &properties, &body);
            self.settle();
            assert_eq!(self.sent(send), (*next / 2) as i64);
            *next += 1;
            self.tick(1);
            self.settle();
            self.keep_house();
        }
    }

    fn set(&mut self, topic: &'static str, attributes: &str) {
        let create = create_request(topic, 4, false, attributes);
        self.request(RequestCode::UPDATE_AND_CREATE_TOPIC, &create, &[]);
        self.settle();
        self.fx.news.clear();
    }

    /// Topics that the shard has said to be given up, once.
    fn given_up(&mut self) -> Option<Vec<String>> {
        let at = self.fx.news.iter().position(|news| matches!(news, News::GivenUp { .. }))?;
        let News::GivenUp { topics, .. } = self.fx.news.remove(at) else { unreachable!() };
        Some(topics)
    }

    fn give_up_in(&mut self, segment: u64, forced: bool) -> Vec<String> {
        let topics = [BRIEF, KEPT, "nobody knows it"].map(str::to_owned).to_vec();
        self.shard.on_give_up(SegmentBase(segment * SMALL), topics, forced, &mut self.fx);
        self.calm();
        self.given_up().expect("it is answered")
    }

    /// As the housekeeping thread does. Gives the number of messages that were left out.
    fn rewrite(&mut self, segment: u64, topics: &[&str]) -> u64 {
        let (base, log) = (SegmentBase(segment * SMALL), self.shard.log.config().clone());
        let header = self.shard.sealed_headers().into_iter().find(|header| header.base == base).unwrap();
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let mut rewrite = Rewrite::new(&log, &header, topics);
        let mut file = vec![0; SMALL as usize];
        let mut write = |offset: u64, pages: &[u8]| {
            file[offset as usize..][..pages.len()].copy_from_slice(pages);
            Ok(())
        };
        while rewrite.step(&mut self.disk, 1 << 20, &mut write).unwrap() {}
        self.disk.segments.insert(base, file);
        self.shard.on_rewritten(SMALL - rewrite.written_bytes());
        rewrite.messages()
    }

    fn position_of(&mut self, topic: &str, offset: i64) -> PhysicalOffset {
        let pull = self.pull(topic, offset, 0, "*");
        self.read_all();
        let answer = self.answer(pull).unwrap();
        messages(&answer.body).next().unwrap().unwrap().physical_offset()
    }
}

fn numbers_of(topic: usize, from: u64, count: u64) -> Vec<u64> {
    (from * 2 + topic as u64..count).step_by(2).collect()
}

#[test]
fn a_segment_is_rewritten_without_what_a_topic_has_given_up() {
    let mut f = fixture();
    let mut count = 0;
    f.fill_both(3, &mut count);
    assert_eq!(f.sealed(), [0, 1, 2]);
    let brief_position = f.position_of(BRIEF, 3);
    let kept_position = f.position_of(KEPT, 3);
    f.set(BRIEF, "+ringmq.retention=1h");
    assert_eq!(f.give_up_in(0, false), [""; 0], "its time is not over");
    f.tick(2 * 3_600_000);
    let min = f.min(BRIEF);
    assert_eq!(min, count.div_ceil(2) as i64);
    // The segment that a start reads stays as it is.
    assert_eq!(f.give_up_in(2, true), [""; 0]);
    let topics = vec![BRIEF.to_owned()];
    f.shard.on_give_up(SegmentBase(SMALL), topics, false, &mut f.fx);
    assert_eq!(f.given_up(), None, "not before the record is durable");
    f.settle();
    assert_eq!(f.given_up().unwrap(), [BRIEF]);
    for segment in [1, 0] {
        assert_eq!(f.give_up_in(segment, false), [BRIEF]);
        assert!(f.rewrite(segment, &[BRIEF]) > 100);
    }

    // Whatever becomes of the topic's time now, its messages do not come back.
    for attributes in ["+ringmq.retention=900h", "-ringmq.retention"] {
        f.set(BRIEF, attributes);
        assert_eq!(f.min(BRIEF), min);
    }
    for without_indexes in [false, true] {
        let mut f = f.again();
        if without_indexes {
            f.disk.indexes.clear();
            f = f.again();
        }
        let expected = numbers_of(1, 0, count);
        assert_eq!(f.numbers(KEPT, 0, expected.len() as i64), expected);
        assert_eq!(f.min(KEPT), 0);
        assert_eq!(f.min(BRIEF), min);
        let pull = f.pull(BRIEF, 0, 0, "*");
        f.read_all();
        let (code, next, _) = f.pulled(pull).unwrap();
        assert_eq!((code, next), (ResponseCode::PULL_OFFSET_MOVED.0, min));
        assert_eq!(f.find(KEPT, "key7", false), [7]);
        assert_eq!(f.find(BRIEF, "key6", false), [0u64; 0]);
        let kept = f.ask(
            RequestCode::VIEW_MESSAGE_BY_ID,
            &ViewMessageByIdRequest { topic: None, offset: kept_position },
        );
        assert_eq!(messages(&kept.body).next().unwrap().unwrap().body()[..8], 7u64.to_be_bytes());
        let view = ViewMessageByIdRequest { topic: None, offset: brief_position };
        assert_ne!(f.ask(RequestCode::VIEW_MESSAGE_BY_ID, &view).code, 0);
        let search = SearchOffsetRequest {
            topic: BRIEF.into(),
            queue_id: QueueId(0),
            timestamp: 0,
            boundary_type: BoundaryType::Lower,
        };
        let answer = f.ask(RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &search);
        assert!(OffsetResponse::decode(&answer.header().ext).unwrap().offset == 0 || min < count as i64 / 2);
        let send = f.send(BRIEF, 0, "", b"goes on");
        f.settle();
        assert_eq!(f.sent(send), count.div_ceil(2) as i64, "no offset is given again");
        assert_eq!(f.min(BRIEF), min);
    }
}

/// Given up is also what a longer time would bring back; checkpoints carry that along.
#[test]
fn a_longer_time_brings_nothing_back() {
    let mut f = fixture();
    let mut count = 0;
    f.set(BRIEF, "+ringmq.retention=200ms");
    f.fill_both(2, &mut count);
    f.tick(0);
    let min = f.min(BRIEF);
    assert!(min > 0 && min < count as i64 / 2, "{min} of {count}");
    f.set(BRIEF, "+ringmq.retention=1h");
    let floor = f.min(BRIEF);
    assert!((min..min + 3).contains(&floor), "{min} {floor}");
    f.fill_both(6, &mut count);
    assert_eq!(f.min(BRIEF), floor);
    for segment in 0..4 {
        assert_eq!(f.release(segment, true), None);
    }
    let after = f.min(BRIEF);
    assert!(after > floor);
    // The record itself has gone with its segment, and the topic's time is removed.
    let mut f = f.again();
    f.set(BRIEF, "-ringmq.retention");
    let given_up = f.shard.topics.get(BRIEF).unwrap().given_up;
    assert!(given_up > StoreTimestamp(0));
    assert_eq!(f.min(BRIEF), after);
    // A topic of the same name is another one.
    f.request(
        RequestCode::DELETE_TOPIC_IN_BROKER,
        &ringmq_protocol::request::DeleteTopicRequest { topic: BRIEF.into() },
        &[],
    );
    f.settle();
    let send = f.send(BRIEF, 0, "", b"the first");
    f.settle();
    assert_eq!(f.sent(send), 0);
    assert_eq!(f.min(BRIEF), 0);
    assert_eq!(f.shard.topics.get(BRIEF).unwrap().given_up, StoreTimestamp(0));
}

#[test]
fn what_is_in_flight_stays_unless_retention_is_forced() {
    let mut f = fixture();
    let mut count = 0;
    f.fill_both(2, &mut count);
    f.set(BRIEF, "+ringmq.retention=1h");
    let got = f.pop_with(&PopMessageRequest { invisible_time: 48 * 3_600_000, ..pop_request(3) });
    assert_eq!(got.iter().map(|got| got.number).collect::<Vec<_>>(), [0, 2, 4]);
    f.tick(2 * 3_600_000);
    assert_eq!(f.give_up_in(0, false), [""; 0]);
    let mut again = f.again();
    again.tick(0);
    assert_eq!(again.give_up_in(0, false), [""; 0]);
    assert_eq!(f.give_up_in(0, true), [BRIEF]);
    assert!(f.rewrite(0, &[BRIEF]) > 0);
    // Its time is over: there is nothing left to give again, but what a reader has in memory.
    let mut f = f.again();
    f.tick(47 * 3_600_000);
    f.calm();
    assert_eq!(f.shard.pops.flights.len(), 0);
    assert!(f.pop(32).is_empty());
}

/// The record of what was given up is lost, and the index still names messages that were left out: they are passed over.
#[test]
fn an_index_that_names_what_is_not_there_does_no_harm() {
    let mut f = fixture();
    let mut count = 0;
    f.fill_both(2, &mut count);
    assert!(f.rewrite(0, &[BRIEF]) > 100);
    let mut f = f.again();
    let left: Vec<u64> = f.numbers(BRIEF, 0, count as i64 / 2);
    assert!(left.len() > 100 && left == numbers_of(0, left[0] / 2, count), "{left:?}");
    let by_filter = |f: &mut Fixture| {
        let (mut from, mut found) = (0, 0);
        while from < count as i64 / 2 {
            let pull = PullMessageRequest {
                expression_type: Some("SQL92".into()),
                ..pull_request(BRIEF, from, 0, "KEYS IS NOT NULL")
            };
            let pull = f.request(RequestCode::PULL_MESSAGE, &pull, &[]);
            f.read_all();
            let (_, next, bodies) = f.pulled(pull).unwrap();
            assert!(next > from);
            (from, found) = (next, found + bodies.len());
        }
        found
    };
    assert_eq!(by_filter(&mut f), left.len());
    for filter in [None, Some("KEYS IS NOT NULL")] {
        let mut f = f.again();
        let mut popped = Vec::new();
        // A queue of them is in flight at most; far fewer are there.
        for _ in 0..count {
            let exp_type = filter.map(|_| "SQL92".into());
            let got =
                f.pop_with(&PopMessageRequest { exp: filter.map(Into::into), exp_type, ..pop_request(32) });
            popped.extend(got.into_iter().map(|got| got.number));
        }
        assert_eq!(popped, left, "{filter:?}");
    }
    assert_eq!(f.find(BRIEF, "key6", false), [0u64; 0]);
}

/// A pull waits for its read while its messages are given up and the segment is rewritten.
#[test]
fn who_reads_too_late_is_told_where_the_queue_begins() {
    let mut f = fixture();
    let mut count = 0;
    f.set(BRIEF, "+ringmq.retention=1h");
    f.fill_both(2, &mut count);
    let mut f = f.again();
    let pull = f.pull(BRIEF, 0, 0, "*");
    let mut slow = Vec::new();
    while let Some(read) = f.fx.reads.pop() {
        if read.file == LogFile::Segment {
            slow.push(read);
        } else {
            let bytes = f.bytes_of(&read);
            f.shard.on_read(read.id, Ok(bytes), &mut f.fx);
        }
    }
    f.tick(2 * 3_600_000);
    assert_eq!(f.give_up_in(0, false), [BRIEF]);
    assert!(f.rewrite(0, &[BRIEF]) > 100);
    assert_eq!(slow.len(), 1);
    for read in slow {
        let bytes = f.bytes_of(&read);
        f.shard.on_read(read.id, Ok(bytes), &mut f.fx);
    }
    f.calm();
    let (code, next, bodies) = f.pulled(pull).unwrap();
    assert_eq!((code, bodies.len()), (ResponseCode::PULL_OFFSET_MOVED.0, 0));
    assert_eq!(next, count.div_ceil(2) as i64);
}
