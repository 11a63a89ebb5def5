//! POP: messages in flight, acknowledged, given again, in order; and all of it across restarts.

use super::segments::{SMALL, create_request};
use super::*;
use proptest::prelude::*;
use ringmq_protocol::body::{
    BatchAck, BatchAckBody, MessageQueue, MessageRequestMode, MessageRequestModes, QueryAssignmentBody,
    QueryAssignmentResult, SetMessageRequestModeBody,
};
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::properties::names;
use ringmq_protocol::receipt::{PopSource, Receipt};
use ringmq_protocol::request::{
    AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, NotificationRequest,
    NotificationResponse, PeekMessageRequest, PollingInfoRequest, PollingInfoResponse, PopMessageRequest,
    PopMessageResponse,
};

const INVISIBLE_MS: i64 = 10_000;

/// A message as its consumer has it.
#[derive(Clone, Debug)]
pub(super) struct Got {
    body: String,
    /// The number that a body of `fill` begins with.
    pub(super) number: u64,
    /// As a client makes it, or as it came.
    receipt: String,
    reconsume_times: i32,
    /// In order mode: how often it was popped before.
    times: i32,
}

impl Got {
    fn receipt(&self) -> Receipt<'_> {
        Receipt::parse(&self.receipt).unwrap()
    }

    fn ack_request(&self) -> AckMessageRequest<'_> {
        let receipt = self.receipt();
        AckMessageRequest {
            consumer_group: "g".into(),
            topic: receipt.source.topic_of("g", "T").into(),
            queue_id: receipt.queue_id.0 as i32,
            extra_info: (&*self.receipt).into(),
            offset: receipt.queue_offset.unwrap().0 as i64,
        }
    }
}

fn bodies(got: &[Got]) -> Vec<&str> {
    got.iter().map(|got| &*got.body).collect()
}

pub(super) fn pop_request(max: i32) -> PopMessageRequest<'static> {
    PopMessageRequest::new("g", "T", max, INVISIBLE_MS)
}

/// Infos of one kind by flag and queue.
fn infos(text: Option<&str>) -> BTreeMap<(String, String), String> {
    let mut infos = BTreeMap::new();
    for info in text.unwrap_or_default().split(';').filter(|info| !info.is_empty()) {
        let parts: Vec<&str> = info.split(' ').collect();
        let known = infos.insert((parts[0].to_owned(), parts[1].to_owned()), parts[2].to_owned());
        assert!(known.is_none(), "each flag and queue once: {text:?}");
    }
    infos
}

/// What Java's client makes of an answer.
fn received(answer: &RemotingCommand) -> Vec<Got> {
    let response = PopMessageResponse::decode(&answer.header().ext).unwrap();
    let starts = infos(response.start_offset_info.as_deref());
    let offsets = infos(response.msg_offset_info.as_deref());
    let counts = infos(response.order_count_info.as_deref());
    let mut seen: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut all = Vec::new();
    for message in messages(&answer.body) {
        let message = message.unwrap();
        assert!(message.verify_crc());
        let own = message.property(names::POP_CK).map(str::to_owned);
        let is_retry = own.is_some() || message.topic().starts_with("%RETRY%");
        let flag = if is_retry { "1" } else { "0" }.to_owned();
        let key = (flag.clone(), message.queue_id().0.to_string());
        let offset = message.queue_offset().0;
        seen.entry(key.clone()).or_default().push(offset.to_string());
        let made = || {
            let PopMessageResponse { pop_time, invisible_time, revive_qid, .. } = response;
            format!("{} {pop_time} {invisible_time} {revive_qid} {flag} b-0 {} {offset}", starts[&key], key.1)
        };
        let counted =
            counts.get(&(flag.clone(), format!("qo{}%{offset}", key.1))).or_else(|| counts.get(&key));
        all.push(Got {
            body: String::from_utf8_lossy(message.body()).into_owned(),
            number: message.body().first_chunk().map_or(0, |number| u64::from_be_bytes(*number)),
            receipt: own.unwrap_or_else(made),
            reconsume_times: message.reconsume_times(),
            times: counted.map_or(0, |count| count.parse().unwrap()),
        });
        assert_eq!(response.revive_qid == 999, response.order_count_info.is_some());
    }
    for (key, of) in seen {
        assert_eq!(offsets[&key], of.join(","), "in the order of the body");
    }
    all
}

impl Fixture {
    /// Lets everything end that is under way.
    pub(super) fn calm(&mut self) {
        loop {
            self.settle();
            if self.read_all() == (0, 0) {
                return;
            }
        }
    }

    fn start_pop(&mut self, request: &PopMessageRequest<'_>) -> Opaque {
        self.request(RequestCode::POP_MESSAGE, request, &[])
    }

    fn finish_pop(&mut self, opaque: Opaque) -> Vec<Got> {
        self.calm();
        let answer = self.answer(opaque).expect("the pop is answered");
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => received(&answer),
            ResponseCode::POLLING_TIMEOUT => Vec::new(),
            code => panic!("{code}: {:?}", answer.remark),
        }
    }

    pub(super) fn pop_with(&mut self, request: &PopMessageRequest<'_>) -> Vec<Got> {
        let opaque = self.start_pop(request);
        self.finish_pop(opaque)
    }

    pub(super) fn pop(&mut self, max: i32) -> Vec<Got> {
        self.pop_with(&pop_request(max))
    }

    /// Code of the answer to an acknowledgement.
    fn ack(&mut self, got: &Got) -> i32 {
        let opaque = self.request(RequestCode::ACK_MESSAGE, &got.ack_request(), &[]);
        self.calm();
        self.answer(opaque).unwrap().code
    }

    /// The new receipt, if the old one counts.
    fn change(&mut self, got: &Got, invisible_ms: i64) -> Option<Got> {
        let receipt = got.receipt();
        let AckMessageRequest { consumer_group, topic, queue_id, extra_info, offset } = got.ack_request();
        let request = ChangeInvisibleTimeRequest {
            consumer_group,
            topic,
            queue_id,
            extra_info,
            offset,
            invisible_time: invisible_ms,
        };
        let opaque = self.request(RequestCode::CHANGE_MESSAGE_INVISIBLETIME, &request, &[]);
        self.calm();
        let answer = self.answer(opaque).unwrap();
        if answer.code != 0 {
            assert_eq!(answer.code, ResponseCode::MESSAGE_ILLEGAL.0, "{:?}", answer.remark);
            return None;
        }
        let changed = ChangeInvisibleTimeResponse::decode(&answer.header().ext).unwrap();
        let new = Receipt {
            start_offset: receipt.queue_offset.unwrap(),
            pop_time: changed.pop_time,
            invisible_time: changed.invisible_time,
            revive_queue_id: changed.revive_qid,
            ..receipt.clone()
        };
        Some(Got { receipt: new.to_string(), ..got.clone() })
    }

    fn store(&mut self, queue_id: i32, properties: &str, body: &str) {
        let send = self.send("T", queue_id, properties, body.as_bytes());
        self.settle();
        self.sent(send);
    }

    fn later(&mut self, ms: i64) {
        self.tick(ms);
        self.calm();
    }

    /// Goes on from what is on disk, at the same time.
    pub(super) fn again(&self) -> Fixture {
        let segment_bytes = self.shard.log.config().segment_bytes;
        let mut f = Fixture::with_segments(self.disk.clone(), FlushDiskType::Sync, segment_bytes);
        f.now = self.now;
        f.opaque = self.opaque;
        f.shard.begin_turn(f.now);
        f
    }

    fn offset(&mut self, topic: &str, queue_id: u32) -> Option<i64> {
        self.shard.offsets.get("g", topic, QueueId(queue_id)).map(|offset| offset.0 as i64)
    }

    fn in_flight(&self) -> usize {
        self.shard.pops.flights.len()
    }

    /// The queues that a client of the group is told, and in which mode, when this is the topic's route.
    fn assigned(
        &mut self,
        client: &str,
        route: Option<Vec<(String, u32)>>,
    ) -> Option<Vec<(MessageQueue, MessageRequestMode)>> {
        let query = QueryAssignmentBody {
            client_id: client.into(),
            consumer_group: "g".into(),
            strategy_name: "AVG".into(),
            topic: "T".into(),
            ..QueryAssignmentBody::default()
        };
        let opaque = self.request(RequestCode::QUERY_ASSIGNMENT, &(), &query.to_json());
        assert!(self.answer(opaque).is_none(), "a name server is asked first");
        let wanted = self.fx.news.iter().rev().find_map(|news| match news {
            News::RouteWanted { topic, ticket } => Some((&**topic, *ticket)),
            _ => None,
        });
        let (topic, ticket) = wanted.unwrap();
        assert_eq!(topic, "T");
        self.shard.on_route(ticket, route, &mut self.fx);
        self.collect();
        let answer = self.answer(opaque).unwrap();
        assert_eq!(answer.code, 0);
        let result = QueryAssignmentResult::from_json(&answer.body).unwrap();
        let assignments = result.message_queue_assignments?.into_iter();
        Some(assignments.map(|assigned| (assigned.message_queue, assigned.mode)).collect())
    }

    fn dead(&mut self) -> Vec<String> {
        let pull = self.pull("%DLQ%g", 0, 0, "*");
        self.read_all();
        let Some(answer) = self.answer(pull).filter(|answer| answer.code == 0) else { return Vec::new() };
        let text = |message: StoredMessage<'_>| String::from_utf8_lossy(message.body()).into_owned();
        messages(&answer.body).map(|message| text(message.unwrap())).collect()
    }
}

/// In async mode a message is there for consumers while its block is open, with no place in the list of blocks. A pop in
/// the same turn stopped the shard. Found by a simulated broker that acknowledged too early.
#[test]
fn what_is_visible_before_its_block_is_sealed_can_be_popped() {
    let mut f = Fixture::new(FlushDiskType::Async);
    let first = f.send("T", 0, "TAGS\x01a\x02", b"first");
    let pop = f.start_pop(&pop_request(32));
    let filtered = PopMessageRequest {
        consumer_group: "h".into(),
        exp_type: Some("SQL92".into()),
        exp: Some("TAGS = 'a'".into()),
        ..pop_request(32)
    };
    let filtered = f.start_pop(&filtered);
    f.sent(first);
    assert_eq!(bodies(&f.finish_pop(pop)), ["first"]);
    assert_eq!(bodies(&f.finish_pop(filtered)), ["first"]);
}

#[test]
fn a_popped_message_is_nobody_elses_until_it_is_acknowledged() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for number in 0..3 {
        f.store(0, "", &format!("m{number}"));
    }
    let pop = f.start_pop(&pop_request(2));
    assert!(f.answer(pop).is_none(), "O1: its record is not durable");
    let first = f.finish_pop(pop);
    assert_eq!(bodies(&first), ["m0", "m1"]);
    let second = f.pop(32);
    assert_eq!(bodies(&second), ["m2"]);
    assert_eq!(second[0].receipt().start_offset, QueueOffset(2));
    assert_eq!(bodies(&f.pop(32)), [""; 0]);
    assert_eq!((f.ack(&first[0]), f.ack(&first[0]), f.in_flight()), (0, 0, 2), "twice is once");
    // All of that is there after a restart, and nothing is given again before its time.
    let mut f = f.again();
    assert_eq!((f.in_flight(), f.offset("T", 0)), (2, Some(3)));
    f.later(INVISIBLE_MS - 1);
    assert_eq!(bodies(&f.pop(32)), [""; 0]);
    assert_eq!((f.ack(&second[0]), f.in_flight()), (0, 1));
    f.later(1);
    let again = f.pop(32);
    assert_eq!((bodies(&again), again[0].reconsume_times), (vec!["m1"], 1));
    assert_eq!(again[0].receipt().source, PopSource::RetryV1);
    assert_eq!(f.ack(&first[1]), 0, "an old receipt does no harm");
    assert_eq!(f.in_flight(), 1);
    assert_eq!((f.ack(&again[0]), f.in_flight()), (0, 0));
    f.later(INVISIBLE_MS);
    assert_eq!(bodies(&f.pop(32)), [""; 0]);
    assert_eq!(f.shard.next_flight_ms(), None, "nothing is due any more");
}

#[test]
fn what_is_never_acknowledged_is_given_again_until_it_is_dead() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(0, "KEYS\x01k\x02UNIQ_KEY\x01U\x02", "poison");
    f.pop(1);
    f.shard.groups.configs.get_mut("g").unwrap().retry_max_times = 3;
    let first_pop = f.now.wall_ms;
    for times in 1..=3 {
        f.later(INVISIBLE_MS);
        let opaque = f.start_pop(&pop_request(32));
        f.calm();
        let answer = f.answer(opaque).unwrap();
        let message = messages(&answer.body).next().unwrap().unwrap();
        assert_eq!((message.topic(), message.reconsume_times()), ("T", times));
        assert_eq!(message.property(names::FIRST_POP_TIME), Some(&*first_pop.to_string()));
        assert_eq!(message.property(names::KEYS), Some("k"));
    }
    f.later(INVISIBLE_MS);
    assert_eq!((f.in_flight(), bodies(&f.pop(32)).len()), (0, 0));
    let pull = f.pull("%DLQ%g", 0, 0, "*");
    let answer = f.answer(pull).unwrap();
    let dead = messages(&answer.body).next().unwrap().unwrap();
    assert_eq!(dead.property(names::RETRY_TOPIC), Some("T"));
    assert!(dead.property(names::ORIGIN_MESSAGE_ID).is_some() && dead.property(names::POP_CK).is_none());
}

#[test]
fn the_time_of_a_message_can_be_changed_under_a_new_receipt() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(0, "", "m");
    let got = f.pop(1);
    f.later(INVISIBLE_MS - 1);
    let longer = f.change(&got[0], 60_000).unwrap();
    assert!(f.change(&got[0], 1).is_none(), "the old receipt does not count any more");
    assert_eq!((f.ack(&got[0]), f.in_flight()), (0, 1));
    f.later(59_999);
    assert_eq!(bodies(&f.pop(1)), [""; 0]);
    let mut f = f.again();
    let now = f.change(&longer, 0).unwrap();
    f.later(0);
    assert_eq!(bodies(&f.pop(1)), ["m"]);
    assert!(f.change(&now, 1).is_none());
    let request = |offset: i64, queue_id: i32, info: &str| ChangeInvisibleTimeRequest {
        consumer_group: "g".into(),
        topic: "T".into(),
        queue_id,
        extra_info: info.to_owned().into(),
        offset,
        invisible_time: 1_000,
    };
    let receipt = &*got[0].receipt;
    for (request, code) in [
        (request(1, 0, receipt), ResponseCode::NO_MESSAGE),
        (request(-1, 0, receipt), ResponseCode::NO_MESSAGE),
        (request(0, 99, receipt), ResponseCode::MESSAGE_ILLEGAL),
        (request(0, 0, "1 2 3"), ResponseCode::MESSAGE_ILLEGAL),
        (
            ChangeInvisibleTimeRequest { topic: "U".into(), ..request(0, 0, receipt) },
            ResponseCode::TOPIC_NOT_EXIST,
        ),
        (
            ChangeInvisibleTimeRequest { invisible_time: -1, ..request(0, 0, receipt) },
            ResponseCode::INVALID_PARAMETER,
        ),
    ] {
        let opaque = f.request(RequestCode::CHANGE_MESSAGE_INVISIBLETIME, &request, &[]);
        assert_eq!(f.answer(opaque).unwrap().code, code.0, "{request:?}");
    }
}

#[test]
fn a_batch_acknowledges_what_it_names() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for number in 0..6 {
        f.store(0, "", &format!("m{number}"));
    }
    let got = f.pop_with(&PopMessageRequest { queue_id: 0, ..pop_request(5) });
    let ack = |offsets: &[u32], pop_time: i64, topic: &str| BatchAck {
        offsets: offsets.iter().copied().collect(),
        consumer_group: "g".into(),
        invisible_time: INVISIBLE_MS,
        pop_time,
        queue_id: 0,
        retry: "0".into(),
        revive_queue_id: 0,
        start_offset: 0,
        topic: topic.into(),
    };
    let pop_time = got[0].receipt().pop_time;
    let acks = vec![
        // Offset 5 was not popped, 900 is not there.
        ack(&[0, 3, 5, 900], pop_time, "T"),
        ack(&[1], pop_time + 1, "T"),
        ack(&[2], pop_time, "Unknown"),
    ];
    let mut send = |acks: Vec<BatchAck>| {
        let body = BatchAckBody { acks, broker_name: "b-0".into() }.to_json();
        let opaque = f.request(RequestCode::BATCH_ACK_MESSAGE, &(), &body);
        f.calm();
        f.answer(opaque).unwrap().code
    };
    assert_eq!(send(acks), 0);
    assert_eq!(send(vec![]), ResponseCode::NO_MESSAGE.0);
    assert_eq!(send(vec![ack(&[70_000], pop_time, "T")]), ResponseCode::INVALID_PARAMETER.0);
    let mut f = f.again();
    f.later(INVISIBLE_MS);
    let got = f.pop(32);
    let mut left = bodies(&got);
    left.sort_unstable();
    assert_eq!(left, ["m1", "m2", "m4", "m5"]);
}

#[test]
fn a_pop_waits_for_a_message_of_any_queue_or_until_its_time_is_over() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(0, "TAGS\x01a\x02", "first");
    f.pop(1);
    let waits = |ms| PopMessageRequest { poll_time: ms, ..pop_request(32) };
    let one = f.start_pop(&waits(5_000));
    let two = f.start_pop(&waits(5_000));
    let tagged = f.start_pop(&PopMessageRequest {
        exp: Some("b".into()),
        exp_type: Some("TAG".into()),
        ..waits(9_000)
    });
    let gone = f.request_from(ConnectionId(8), RequestCode::POP_MESSAGE, &waits(5_000), &[]);
    f.shard.on_closed(ConnectionId(8), &mut f.fx);
    let polling = PollingInfoRequest { consumer_group: "g".into(), topic: "T".into(), queue_id: -1 };
    let info = f.request(RequestCode::POLLING_INFO, &polling, &[]);
    let info = f.answer(info).unwrap();
    assert_eq!(PollingInfoResponse::decode(&info.header().ext).unwrap().polling_num, 3);
    let deadline = f.shard.pops.holds.next_deadline_ms();
    assert_eq!(deadline, Some(f.now.monotonic_ms + 5_000));
    f.store(3, "TAGS\x01c\x02", "second");
    assert_eq!(bodies(&f.finish_pop(one)), ["second"], "who waits longest");
    assert!(f.answer(two).is_none() && f.answer(gone).is_none() && f.answer(tagged).is_none());
    f.later(5_000);
    assert_eq!(f.answer(two).unwrap().code, ResponseCode::POLLING_TIMEOUT.0);
    f.store(1, "TAGS\x01b\x02", "third");
    assert_eq!(bodies(&f.finish_pop(tagged)), ["third"]);
    // What comes back wakes too.
    let again = f.start_pop(&waits(60_000));
    f.later(INVISIBLE_MS);
    let got = f.finish_pop(again);
    assert!(got.iter().all(|got| got.reconsume_times == 1) && !got.is_empty(), "{got:?}");
    assert_eq!(f.shard.pops.holds.len(), 0);
    let late = PopMessageRequest { born_time: f.now.wall_ms - 2_000, poll_time: 1_000, ..pop_request(1) };
    let late = f.start_pop(&late);
    assert_eq!(f.answer(late).unwrap().code, ResponseCode::POLLING_TIMEOUT.0);
    // The topic goes.
    f.later(0);
    while !f.pop(32).is_empty() {}
    let held = f.start_pop(&waits(5_000));
    let delete = ringmq_protocol::request::DeleteTopicRequest { topic: "T".into() };
    f.request(RequestCode::DELETE_TOPIC_IN_BROKER, &delete, &[]);
    assert_eq!(f.answer(held).unwrap().code, ResponseCode::TOPIC_NOT_EXIST.0);
    f.calm();
    assert!(f.shard.pops.flights.pairs().all(|(_, topic)| topic != "T"));
    assert!(f.again().shard.pops.flights.pairs().all(|(_, topic)| topic != "T"));
}

#[test]
fn so_many_pops_may_wait_and_no_more() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(0, "", "x");
    f.pop(1);
    let waits = PopMessageRequest { poll_time: 5_000, ..pop_request(1) };
    for _ in 0..limits::POP_QUEUE_HOLDS_MAX {
        f.start_pop(&waits);
    }
    let full = f.start_pop(&waits);
    assert_eq!(f.answer(full).unwrap().code, ResponseCode::POLLING_FULL.0);
    let other = f.start_pop(&PopMessageRequest { queue_id: 0, ..waits.clone() });
    assert!(f.answer(other).is_none(), "at one queue there is room");
    let notify = NotificationRequest {
        consumer_group: "g".into(),
        topic: "T".into(),
        queue_id: -1,
        poll_time: 5_000,
        born_time: f.now.wall_ms,
        order: false,
        attempt_id: None,
    };
    let notified = f.request(RequestCode::NOTIFICATION, &notify, &[]);
    let response = f.answer(notified).unwrap();
    let response = NotificationResponse::decode(&response.header().ext).unwrap();
    assert_eq!((response.has_msg, response.polling_full), (false, Some(true)));
    f.store(2, "", "one");
    f.calm();
    let answered = f.answers.iter().filter(|answer| answer.is_response()).count();
    assert_eq!((answered, f.shard.pops.holds.len()), (1, limits::POP_QUEUE_HOLDS_MAX));
}

#[test]
fn wrong_pops_are_refused_with_the_reason() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(0, "", "x");
    let long: String = "x".repeat(256);
    let base = || pop_request(1);
    for (request, code) in [
        (base_with(|r| r.max_msg_nums = 33), ResponseCode::INVALID_PARAMETER),
        (base_with(|r| r.max_msg_nums = 0), ResponseCode::INVALID_PARAMETER),
        (base_with(|r| r.queue_id = 4), ResponseCode::INVALID_PARAMETER),
        (base_with(|r| r.invisible_time = 0), ResponseCode::INVALID_PARAMETER),
        (PopMessageRequest { topic: "U".into(), ..base() }, ResponseCode::TOPIC_NOT_EXIST),
        (PopMessageRequest { consumer_group: "a b".into(), ..base() }, ResponseCode::INVALID_PARAMETER),
        (PopMessageRequest { attempt_id: Some(long.into()), ..base() }, ResponseCode::INVALID_PARAMETER),
        (
            PopMessageRequest { exp_type: Some("SQL92".into()), exp: Some("a >".into()), ..base() },
            ResponseCode::SUBSCRIPTION_PARSE_FAILED,
        ),
    ] {
        let opaque = f.start_pop(&request);
        let answer = f.answer(opaque).unwrap();
        assert_eq!(answer.code, code.0, "{request:?}");
        assert!(answer.remark.is_some_and(|remark| !remark.is_empty()));
    }
    f.shard.groups.put(ringmq_protocol::body::SubscriptionGroupConfig {
        consume_enable: false,
        ..ringmq_protocol::body::SubscriptionGroupConfig::new("g")
    });
    let opaque = f.start_pop(&base());
    assert_eq!(f.answer(opaque).unwrap().code, ResponseCode::NO_PERMISSION.0);
    assert_eq!(f.in_flight(), 0);
}

fn base_with(change: impl FnOnce(&mut PopMessageRequest<'static>)) -> PopMessageRequest<'static> {
    let mut request = pop_request(1);
    change(&mut request);
    request
}

#[test]
fn in_order_a_queue_waits_for_what_is_in_flight() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for number in 0..6 {
        f.store(0, "", &format!("m{number}"));
    }
    let ordered = |max, attempt: &'static str| PopMessageRequest {
        queue_id: 0,
        order: true,
        attempt_id: Some(attempt.into()),
        ..pop_request(max)
    };
    let first = f.pop_with(&ordered(3, "a"));
    assert_eq!(bodies(&first), ["m0", "m1", "m2"]);
    assert!(first[0].receipt().is_ordered());
    assert_eq!(bodies(&f.pop_with(&ordered(3, "b"))), [""; 0], "O4");
    // The answer was lost: the same attempt gets the same, which is no further try.
    let same = f.pop_with(&ordered(3, "a"));
    assert_eq!((bodies(&same), same[2].times), (vec!["m0", "m1", "m2"], 0));
    assert_eq!(f.ack(&same[1]), 0);
    let illegal =
        Got { receipt: same[0].receipt.rsplit_once(' ').unwrap().0.to_owned() + " 4", ..same[0].clone() };
    assert_eq!(f.ack(&illegal), ResponseCode::MESSAGE_ILLEGAL.0, "offset is illegal: it was not popped");
    // Across a restart, and until the time of all that is left is over.
    let mut f = f.again();
    let held = f.start_pop(&PopMessageRequest { poll_time: 2 * INVISIBLE_MS, ..ordered(3, "c") });
    f.later(INVISIBLE_MS - 1);
    assert!(f.answer(held).is_none());
    f.later(1);
    let again = f.finish_pop(held);
    assert_eq!(bodies(&again), ["m0", "m2", "m3"], "without what was acknowledged");
    assert_eq!(again.iter().map(|got| got.times).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(again[0].reconsume_times, 0, "it never left its queue");
    // Longer for one of them; the receipts of the others stay.
    assert_eq!(
        f.change(&again[0], INVISIBLE_MS * 2).unwrap().receipt().pop_time,
        again[0].receipt().pop_time
    );
    let waits = f.start_pop(&PopMessageRequest { poll_time: 60_000, ..ordered(32, "d") });
    f.later(INVISIBLE_MS);
    assert!(f.answer(waits).is_none());
    for got in again.iter().rev() {
        assert_eq!(f.ack(got), 0);
    }
    let rest = f.finish_pop(waits);
    assert_eq!(bodies(&rest), ["m4", "m5"], "woken by the last acknowledgement");
    for got in &rest {
        f.ack(got);
    }
    assert_eq!((f.in_flight(), f.offset("T", 0)), (0, Some(6)));
}

#[test]
fn a_new_group_begins_where_it_says() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    for number in 0..3 {
        f.store(0, "", &format!("m{number}"));
    }
    let last = f.pop_with(&PopMessageRequest { init_mode: 1, queue_id: 0, ..pop_request(32) });
    assert_eq!(last.len(), 3, "all of the queue is recent");
    let filtered = PopMessageRequest {
        consumer_group: "h".into(),
        exp: Some("tag".into()),
        queue_id: 0,
        ..pop_request(32)
    };
    assert_eq!(bodies(&f.pop_with(&filtered)), [""; 0]);
    let next = f.shard.offsets.get("h", "T", QueueId(0));
    assert_eq!(next, Some(QueueOffset(3)), "what is not wanted is not looked at again");
}

#[test]
fn messages_are_shown_and_announced_without_being_popped() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(1, "", "m");
    let peek =
        PeekMessageRequest { topic: "T".into(), queue_id: -1, max_msg_nums: 4, consumer_group: "g".into() };
    for _ in 0..2 {
        let opaque = f.request(RequestCode::PEEK_MESSAGE, &peek, &[]);
        let answer = f.answer(opaque).unwrap();
        assert_eq!((answer.code, messages(&answer.body).count()), (0, 1));
    }
    let notify = |f: &Fixture| NotificationRequest {
        consumer_group: "g".into(),
        topic: "T".into(),
        queue_id: -1,
        poll_time: 3_000,
        born_time: f.now.wall_ms,
        order: false,
        attempt_id: None,
    };
    let has_message = |answer: RemotingCommand| {
        assert_eq!(answer.code, 0);
        NotificationResponse::decode(&answer.header().ext).unwrap().has_msg
    };
    let request = notify(&f);
    let opaque = f.request(RequestCode::NOTIFICATION, &request, &[]);
    assert!(has_message(f.answer(opaque).unwrap()));
    assert_eq!(bodies(&f.pop(32)), ["m"]);
    let opaque = f.request(RequestCode::PEEK_MESSAGE, &peek, &[]);
    assert_eq!(f.answer(opaque).unwrap().code, ResponseCode::PULL_NOT_FOUND.0);
    let request = notify(&f);
    let (woken, timed) = (f.request(RequestCode::NOTIFICATION, &request, &[]), f.start_pop(&pop_request(1)));
    assert_eq!(f.answer(timed).unwrap().code, ResponseCode::POLLING_TIMEOUT.0);
    assert!(f.answer(woken).is_none());
    f.store(2, "", "n");
    assert!(has_message(f.answer(woken).unwrap()));
    assert_eq!(bodies(&f.pop(32)), ["n"]);
    let request = notify(&f);
    let over = f.request(RequestCode::NOTIFICATION, &request, &[]);
    f.later(3_000);
    assert!(!has_message(f.answer(over).unwrap()));
}

/// Old messages are found in sealed indexes and read from disk; what is in flight outlives the segment that says so, and keeps the one
/// that it is in.
#[test]
fn old_messages_are_popped_from_disk() {
    let mut f = Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, SMALL);
    let mut count = 0;
    f.fill("T", 1, &mut count);
    let mut f = f.again();
    let long = PopMessageRequest { invisible_time: 3_600_000, ..pop_request(32) };
    let mut seen = std::collections::BTreeSet::new();
    let first = f.pop_with(&long);
    // Bodies of 20,000 bytes, and at most 256 KiB at a time.
    assert_eq!(first.len(), 12);
    seen.extend(first.iter().map(|got| got.number));
    let second = f.pop_with(&long);
    assert!(second.iter().all(|got| seen.insert(got.number)), "each once");
    let sql = PopMessageRequest {
        consumer_group: "s".into(),
        exp_type: Some("SQL92".into()),
        exp: Some("KEYS = 'key100 all' OR KEYS = 'key200 all'".into()),
        ..pop_request(32)
    };
    let mut chosen = Vec::new();
    for _ in 0..200 {
        chosen.extend(f.pop_with(&sql).iter().map(|got| got.number));
    }
    chosen.sort_unstable();
    assert_eq!(chosen, [100, 200], "and nothing else was ever in flight for them");
    let of_group = f.shard.pops.flights.pairs().filter(|(group, _)| *group == "s").count();
    assert_eq!(of_group, 1);
    f.ack(&first[0]);
    f.fill("T", 4, &mut count);
    let in_flight = f.in_flight();
    assert_eq!(f.release(0, false).as_deref(), Some("messages of topic T are in flight for group g"));
    assert_eq!(f.release(0, true), None, "unless it is forced");
    for segment in 1..3 {
        f.release(segment, true);
    }
    let mut f = f.again();
    assert_eq!(f.in_flight(), in_flight, "from the checkpoint");
    // Their messages are gone: they are done with.
    f.later(3_600_000);
    for _ in 0..100 {
        f.later(1_000);
    }
    assert_eq!(f.in_flight(), 0);
    assert!(f.fx.news.iter().all(|news| !matches!(news, News::Log { error: true, .. })));
}

#[test]
fn a_log_that_takes_nothing_is_asked_again() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(0, "", "m");
    f.pop(1);
    // The disk is full: what is prepared is all there is.
    let mut big = 0;
    f.shard.on_prepare_failed("no space left".into());
    loop {
        let send = f.send("Filler", 0, "", &vec![1; 1 << 20]);
        let writes = f.writes();
        writes.iter().for_each(|write| f.complete(write));
        if f.answer(send).is_some_and(|answer| answer.code != 0) {
            break;
        }
        big += 1;
        assert!(big < 1000);
    }
    loop {
        let send = f.send("Filler", 0, "", b"small");
        f.writes().iter().for_each(|write| f.complete(write));
        if f.answer(send).is_some_and(|answer| answer.code != 0) {
            break;
        }
    }
    f.tick(INVISIBLE_MS);
    f.read_all();
    assert_eq!(f.in_flight(), 1);
    assert!(
        f.fx.news
            .iter()
            .any(|news| matches!(news, News::Log { error: true, line } if line.contains("try again")))
    );
    assert_eq!(f.shard.next_flight_ms(), Some(f.now.monotonic_ms + limits::POP_REVIVE_RETRY_MS));
    // There is room again.
    f.keep_house();
    f.prepare();
    f.later(limits::POP_REVIVE_RETRY_MS);
    let again = f.pop(1);
    assert_eq!((bodies(&again), again[0].reconsume_times), (vec!["m"], 1));
}

#[test]
fn clients_are_told_which_queues_they_have() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.store(0, "", "x");
    let heartbeat = |client: &str| HeartbeatData {
        client_id: client.into(),
        consumer_data_set: vec![ConsumerData {
            group_name: "g".into(),
            subscription_data_set: vec![SubscriptionData::tag_expression("T", "*")],
            ..ConsumerData::default()
        }],
        ..HeartbeatData::default()
    };
    f.request_from(ConnectionId(1), RequestCode::HEART_BEAT, &(), &heartbeat("c1").to_json());
    f.request_from(ConnectionId(2), RequestCode::HEART_BEAT, &(), &heartbeat("c2").to_json());
    let route = || Some(vec![("b-0".to_owned(), 2), ("b-1".to_owned(), 2)]);
    let queue = |broker: &str, id| MessageQueue::new("T", broker, id);
    let pull = MessageRequestMode::Pull;
    assert_eq!(f.assigned("c2", route()).unwrap(), [(queue("b-1", 0), pull), (queue("b-1", 1), pull)]);
    assert_eq!(f.assigned("c2", None), None, "nobody knows where the topic is");
    assert_eq!(f.assigned("c3", route()), Some(vec![]), "no member");

    let mode = |topic: &str| SetMessageRequestModeBody {
        consumer_group: "g".into(),
        mode: MessageRequestMode::Pop,
        pop_share_queue_num: 0,
        topic: topic.into(),
    };
    for (topic, code) in
        [("T", 0), ("U", ResponseCode::TOPIC_NOT_EXIST.0), ("%RETRY%g", ResponseCode::NO_PERMISSION.0)]
    {
        let opaque = f.request(RequestCode::SET_MESSAGE_REQUEST_MODE, &(), &mode(topic).to_json());
        f.settle();
        assert_eq!(f.answer(opaque).unwrap().code, code, "{topic}");
    }
    let pop = MessageRequestMode::Pop;
    assert_eq!(f.assigned("c2", route()).unwrap(), [(queue("b-0", -1), pop), (queue("b-1", -1), pop)]);
    let mut f = f.again();
    let opaque = f.request(RequestCode::GET_ALL_MESSAGE_REQUEST_MODE, &(), &[]);
    let modes = MessageRequestModes::from_json(&f.answer(opaque).unwrap().body).unwrap();
    assert_eq!(modes.message_request_mode_map["T"]["g"], mode("T"));
    f.request(RequestCode::UPDATE_AND_CREATE_TOPIC, &create_request("V", 1, false, ""), &[]);
}

#[derive(Clone, Debug)]
enum Step {
    Send(i32),
    Pop {
        max: i32,
        invisible_ms: i64,
    },
    /// The consumer that has it at this place among all that were ever given.
    Ack(usize),
    Change(usize, i64),
    Later(i64),
    /// A crash, with a pop and an acknowledgement that are not on disk.
    Crash(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4).prop_map(Step::Send),
        4 => (1..6, 1..5_000i64).prop_map(|(max, invisible_ms)| Step::Pop { max, invisible_ms }),
        5 => (0..100usize).prop_map(Step::Ack),
        2 => (0..100usize, 0..5_000i64).prop_map(|(at, ms)| Step::Change(at, ms)),
        3 => (0..4_000i64).prop_map(Step::Later),
        1 => (0..100usize).prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

/// What a message is, for those who only see answers.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Is {
    Free,
    /// Invisible until then, under the receipt with this number.
    InFlight {
        until: i64,
        receipt: usize,
    },
    Done,
}

/// Everything that was sent is given; nothing while it is invisible or after it is done; and all of it ends.
fn check_model(steps: Vec<Step>) {
    let mut f = Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, SMALL);
    f.store(0, "", "0");
    f.shard.groups.put(ringmq_protocol::body::SubscriptionGroupConfig {
        retry_max_times: 1_000,
        ..ringmq_protocol::body::SubscriptionGroupConfig::new("g")
    });
    let mut model = vec![Is::Free];
    let mut receipts: Vec<(usize, Got)> = Vec::new();
    let take =
        |model: &mut Vec<Is>, receipts: &mut Vec<(usize, Got)>, got: Vec<Got>, now: i64, until: i64| {
            for got in got {
                let message: usize = got.body.parse().unwrap();
                match model[message] {
                    Is::Done => panic!("{message} is done with"),
                    Is::InFlight { until, .. } => {
                        assert!(until <= now, "{message} is invisible until {until}, now {now}")
                    }
                    Is::Free => {}
                }
                model[message] = Is::InFlight { until, receipt: receipts.len() };
                receipts.push((message, got));
            }
        };
    for step in steps {
        match step {
            Step::Send(queue) => {
                f.store(queue, "", &model.len().to_string());
                model.push(Is::Free);
            }
            Step::Pop { max, invisible_ms } => {
                let got = f.pop_with(&PopMessageRequest { invisible_time: invisible_ms, ..pop_request(max) });
                assert!(got.len() <= max as usize);
                let now = f.now.wall_ms;
                if got.is_empty() {
                    assert!(!model.contains(&Is::Free), "{model:?}");
                }
                take(&mut model, &mut receipts, got, now, now + invisible_ms);
            }
            Step::Ack(at) if !receipts.is_empty() => {
                let at = at % receipts.len();
                let (message, got) = receipts[at].clone();
                assert_eq!(f.ack(&got), 0);
                if matches!(model[message], Is::InFlight { until, receipt } if receipt == at && until > f.now.wall_ms)
                {
                    model[message] = Is::Done;
                }
            }
            Step::Change(at, ms) if !receipts.is_empty() => {
                let at = at % receipts.len();
                let (message, got) = receipts[at].clone();
                let counts = matches!(model[message], Is::InFlight { until, receipt } if receipt == at && until > f.now.wall_ms);
                let changed = f.change(&got, ms);
                assert_eq!(changed.is_some(), counts, "{message}: {:?}", model[message]);
                if let Some(changed) = changed {
                    model[message] = Is::InFlight { until: f.now.wall_ms + ms, receipt: receipts.len() };
                    receipts.push((message, changed));
                    f.later(0);
                }
            }
            Step::Later(ms) => f.later(ms),
            Step::Crash(at) => {
                f.start_pop(&pop_request(5));
                if !receipts.is_empty() {
                    let got = &receipts[at % receipts.len()].1;
                    let receipt = got.receipt();
                    let ack = AckMessageRequest {
                        consumer_group: "g".into(),
                        topic: receipt.source.topic_of("g", "T").into(),
                        queue_id: receipt.queue_id.0 as i32,
                        extra_info: got.receipt.clone().into(),
                        offset: receipt.queue_offset.unwrap().0 as i64,
                    };
                    f.request(RequestCode::ACK_MESSAGE, &ack, &[]);
                }
                let config = f.shard.groups.configs["g"].clone();
                f = f.again();
                f.shard.groups.put(config);
            }
            Step::Ack(_) | Step::Change(..) => {}
        }
    }
    for _ in 0..1_000 {
        f.later(5_000);
        let got = f.pop(32);
        if got.is_empty() && f.in_flight() == 0 {
            break;
        }
        let now = f.now.wall_ms;
        take(&mut model, &mut receipts, got.clone(), now, now + INVISIBLE_MS);
        for got in got {
            assert_eq!(f.ack(&got), 0);
            model[got.body.parse::<usize>().unwrap()] = Is::Done;
        }
    }
    assert!(model.iter().all(|is| *is == Is::Done), "{model:?}");
    assert_eq!((f.in_flight(), f.dead()), (0, vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn nothing_is_lost_and_nothing_is_given_while_it_is_invisible(steps in steps()) {
        check_model(steps);
    }
}
