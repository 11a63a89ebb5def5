use std::time::Duration;

use ringmq_protocol::message::{MessageParts, encode_into, encoded_len};
use ringmq_protocol::types::{BornTimestamp, PhysicalOffset, QueueOffset, StoreTimestamp, SysFlag};

use super::*;
use crate::perf::arguments::MessageArguments;
use crate::perf::produce::Sends;

fn pulls(at_end: AtEnd) -> Pulls {
    let position = Position { queue_id: 3, next: 5, at_end, frame: Vec::new() };
    let (topic, codec) = ("topic".to_string(), Codec::RocketMq);
    let (group, messages_max, verify, run) = ("g".to_string(), 32, true, None);
    let queues = vec![position];
    let mut pulls = Pulls { topic, group, codec, messages_max, verify, run, deliveries: Vec::new(), queues };
    pulls.prepare(0);
    pulls
}

fn asked_offset(pulls: &Pulls) -> i64 {
    let (offset, messages_max) = asked(pulls);
    assert_eq!(messages_max, 32);
    offset
}

/// From where, and how many.
fn asked(pulls: &Pulls) -> (i64, i32) {
    let frame = Frame::decode(pulls.frame(0)).unwrap();
    let asked = PullMessageRequest::decode(&frame.header.ext).unwrap();
    assert_eq!((&*asked.topic, asked.queue_id), ("topic", 3));
    (asked.queue_offset, asked.max_msg_nums)
}

fn record(offset: u64) -> Vec<u8> {
    record_of(offset, b"hello")
}

fn record_of(offset: u64, body: &[u8]) -> Vec<u8> {
    let host = "127.0.0.1:1".parse().unwrap();
    let parts = MessageParts {
        topic: "topic",
        queue_id: QueueId(3),
        flag: 0,
        sys_flag: SysFlag(0),
        born_timestamp: BornTimestamp(0),
        born_host: host,
        store_host: host,
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        body,
        properties: &[],
    };
    let mut bytes = vec![0; encoded_len(&parts)];
    encode_into(&parts, QueueOffset(offset), PhysicalOffset(offset * 100), StoreTimestamp(0), &mut bytes);
    bytes
}

fn reply(code: ResponseCode, next: i64, max: i64, body: Vec<u8>) -> Vec<u8> {
    let fields = PullMessageResponse {
        suggest_which_broker_id: 0,
        next_begin_offset: next,
        min_offset: 0,
        max_offset: max,
        offset_delta: None,
        topic_sys_flag: None,
        group_sys_flag: None,
        forbidden_type: None,
    };
    let mut bytes = Vec::new();
    RemotingCommand::response(code, Opaque(0), None, &fields, body).encode(Codec::RocketMq, &mut bytes);
    bytes
}

fn two_messages() -> Vec<u8> {
    [record(5), record(6)].concat()
}

#[test]
fn goes_on_where_the_broker_says() {
    let mut pulls = pulls(AtEnd::Wait);
    assert_eq!(asked_offset(&pulls), 5);
    let found = reply(ResponseCode::SUCCESS, 7, 7, two_messages());
    assert_eq!(pulls.answered(0, ResponseCode::SUCCESS, &found), Answer::good(2, 10));
    assert_eq!(asked_offset(&pulls), 7);
    let nothing = reply(ResponseCode::PULL_NOT_FOUND, 7, 7, Vec::new());
    assert_eq!(pulls.answered(0, ResponseCode::PULL_NOT_FOUND, &nothing), Answer::default());
    let moved = reply(ResponseCode::PULL_OFFSET_MOVED, 100, 200, Vec::new());
    assert_eq!(pulls.answered(0, ResponseCode::PULL_OFFSET_MOVED, &moved), Answer::default());
    assert_eq!(asked_offset(&pulls), 100);
}

#[test]
fn stops_or_begins_again_at_the_end() {
    let found = reply(ResponseCode::SUCCESS, 7, 7, two_messages());
    assert!(pulls(AtEnd::StopAt(7)).answered(0, ResponseCode::SUCCESS, &found).retired);
    let mut to_eight = pulls(AtEnd::StopAt(8));
    assert!(!to_eight.answered(0, ResponseCode::SUCCESS, &found).retired);
    assert_eq!(asked(&to_eight), (7, 1));
    let mut again = pulls(AtEnd::BeginAt(2));
    assert!(!again.answered(0, ResponseCode::SUCCESS, &found).retired);
    assert_eq!(asked_offset(&again), 2);
    let more = reply(ResponseCode::SUCCESS, 7, 8, two_messages());
    let mut again = pulls(AtEnd::BeginAt(2));
    again.answered(0, ResponseCode::SUCCESS, &more);
    assert_eq!(asked_offset(&again), 7);
}

#[test]
fn damage_and_gaps_are_found() {
    let kind = |body: Vec<u8>| {
        let found = reply(ResponseCode::SUCCESS, 7, 7, body);
        pulls(AtEnd::Wait).answered(0, ResponseCode::SUCCESS, &found).problem.unwrap().kind
    };
    let mut damaged = two_messages();
    let at = damaged.windows(5).rposition(|window| window == b"hello").unwrap();
    damaged[at] ^= 1;
    assert_eq!(kind(damaged), "wrong CRC");
    assert_eq!(kind([record(5), record(7)].concat()), "wrong offset");
    let mut cut = two_messages();
    cut.pop();
    assert_eq!(kind(cut), "malformed message");
}

#[test]
fn a_refusal_ends_the_queue() {
    let refused = reply(ResponseCode::NO_PERMISSION, 7, 7, Vec::new());
    let answer = pulls(AtEnd::Wait).answered(0, ResponseCode::NO_PERMISSION, &refused);
    assert!(answer.retired && answer.problem.is_some_and(|problem| problem.kind == "16 NO_PERMISSION"));
}

#[test]
fn an_answer_without_offsets_ends_the_queue() {
    let mut bytes = Vec::new();
    RemotingCommand::response(ResponseCode::SUCCESS, Opaque(0), None, &(), "")
        .encode(Codec::RocketMq, &mut bytes);
    let answer = pulls(AtEnd::Wait).answered(0, ResponseCode::SUCCESS, &bytes);
    assert!(answer.retired);
    assert_eq!(answer.problem.unwrap().kind, "malformed answer");
}

#[test]
fn what_this_run_has_sent_says_when() {
    let run = RunId::new();
    let messages = MessageArguments { size: 20, batch: 1, seed: 0 };
    let sent_at = |offset, ms| {
        let random = crate::perf::produce::Random::of(offset, 0);
        let mut sends =
            Sends::new(&messages, &[("topic", 3)], 1, Codec::RocketMq, random, Some(run)).unwrap();
        sends.on_issue(0, Duration::from_millis(ms));
        record_of(offset, Frame::decode(sends.frame(0)).unwrap().body)
    };
    let mut pulls = Pulls { run: Some(run), ..pulls(AtEnd::Wait) };
    let body = [sent_at(5, 1), sent_at(6, 1), record(7), sent_at(8, 1), sent_at(9, 2)].concat();
    let found = reply(ResponseCode::SUCCESS, 10, 10, body);
    assert_eq!(pulls.answered(0, ResponseCode::SUCCESS, &found), Answer::good(5, 85));
    let delivery = |ms, messages| Delivery { sent: Duration::from_millis(ms), messages };
    assert_eq!(pulls.deliveries(), [delivery(1, 3), delivery(2, 1)]);
    let nothing = reply(ResponseCode::PULL_NOT_FOUND, 10, 10, Vec::new());
    pulls.answered(0, ResponseCode::PULL_NOT_FOUND, &nothing);
    assert_eq!(pulls.deliveries(), []);
}
