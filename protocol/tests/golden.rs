//! Bytes written down from the protocol's description, not by this crate: what RocketMQ's own clients and brokers
//! send. Each file is hex, with `#` comments.

use std::net::SocketAddr;

use bytes::Bytes;
use ringmq_protocol::batch::{BatchEntries, BatchEntry};
use ringmq_protocol::code::{RequestCode, ResponseCode};
use ringmq_protocol::frame::{self, Codec, Fields, Frame, Head, Language, RemotingCommand};
use ringmq_protocol::message::{MessageExt, MessageParts, StoredMessage, encode_into, encoded_len, messages};
use ringmq_protocol::request::{PullMessageResponse, SendMessageRequest, SendMessageResponse};
use ringmq_protocol::types::*;

fn golden(hex: &str) -> Vec<u8> {
    let digits = hex.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    digits.map(|byte| u8::from_str_radix(byte, 16).expect("a file of hex")).collect()
}

const PROPERTIES: &str = "TAGS\u{1}TagA\u{2}KEYS\u{1}k1 k2\u{2}";

fn send_request() -> SendMessageRequest<'static> {
    SendMessageRequest {
        producer_group: "pg".into(),
        topic: "TopicTest".into(),
        default_topic: "TBW102".into(),
        default_topic_queue_nums: 4,
        queue_id: 3,
        sys_flag: 0,
        born_timestamp: 1_700_000_000_000,
        flag: 7,
        properties: Some(PROPERTIES.into()),
        reconsume_times: 0,
        unit_mode: false,
        max_reconsume_times: None,
        batch: false,
        broker_name: None,
    }
}

#[test]
fn send_request_in_both_codecs() {
    for (file, codec) in [
        (include_str!("golden/send_request_json.hex"), Codec::Json),
        (include_str!("golden/send_request_binary.hex"), Codec::RocketMq),
    ] {
        let bytes = golden(file);
        assert_eq!(frame::frame_len(&bytes, frame::FRAME_BYTES_MAX), Ok(Some(bytes.len())));
        let frame = Frame::decode(&bytes).unwrap();
        let header = &frame.header;
        assert_eq!((header.codec, header.code), (codec, RequestCode::SEND_MESSAGE_V2.0));
        assert_eq!((header.language, header.version, header.opaque), (Language::Java, 479, Opaque(17)));
        assert!(!header.is_response() && !header.is_oneway() && header.remark.is_none());
        assert_eq!(frame.body, b"hello");
        let request = SendMessageRequest::decode(RequestCode::SEND_MESSAGE_V2, &header.ext).unwrap();
        assert_eq!(request, send_request());
    }
}

#[test]
fn send_request_is_written_as_the_binary_file_has_it() {
    let head = Head {
        language: Language::Java,
        ..Head::request(Codec::RocketMq, RequestCode::SEND_MESSAGE_V2, Opaque(17))
    };
    let mut out = Vec::new();
    frame::encode(&mut out, &head, &send_request().fields_v2(), 5);
    out.extend_from_slice(b"hello");
    assert_eq!(out, golden(include_str!("golden/send_request_binary.hex")));
}

/// Reads the file, compares, and writes the same bytes again.
fn check_response(file: &str, codec: Codec, opaque: i32, remark: Option<&str>, ext: &dyn Fields) -> Bytes {
    let bytes = Bytes::from(golden(file));
    let command = RemotingCommand::decode(&bytes).unwrap();
    let remark = remark.map(str::to_owned);
    let body = command.body.clone();
    let expected = RemotingCommand::response(ResponseCode::SUCCESS, Opaque(opaque), remark, ext, body);
    assert_eq!(command, expected);
    let mut out = Vec::new();
    expected.encode(codec, &mut out);
    assert_eq!(out, bytes);
    command.body
}

#[test]
fn send_response_in_both_codecs() {
    let response = SendMessageResponse {
        msg_id: "7F00000100002A9F0000000000000100".into(),
        queue_id: 3,
        queue_offset: 42,
        transaction_id: Some("KEY".into()),
        batch_uniq_id: None,
        recall_handle: None,
        region_id: Some("DefaultRegion".into()),
        trace_on: Some(true),
    };
    check_response(include_str!("golden/send_response_json.hex"), Codec::Json, 17, None, &response);
    check_response(include_str!("golden/send_response_binary.hex"), Codec::RocketMq, -2, None, &response);
}

#[test]
fn pull_response_in_both_codecs() {
    let response = PullMessageResponse {
        suggest_which_broker_id: 0,
        next_begin_offset: 43,
        min_offset: 0,
        max_offset: 50,
        offset_delta: None,
        topic_sys_flag: None,
        group_sys_flag: None,
        forbidden_type: None,
    };
    for (file, codec) in [
        (include_str!("golden/pull_response_json.hex"), Codec::Json),
        (include_str!("golden/pull_response_binary.hex"), Codec::RocketMq),
    ] {
        let body = check_response(file, codec, 18, Some("FOUND"), &response);
        let topics: Vec<usize> = messages(&body).map(|message| message.unwrap().topic().len()).collect();
        assert_eq!(topics, [9, 130]);
    }
}

fn check_stored(file: &str, topic: &str, hosts: [&str; 2], sys_flag: i32, sys_flag_stored: i32) {
    let bytes = golden(file);
    let [born_host, store_host] = hosts.map(|host| host.parse::<SocketAddr>().unwrap());
    let (stored, rest) = StoredMessage::parse(&bytes).unwrap();
    assert!(rest.is_empty() && stored.verify_crc());
    assert_eq!(stored.topic(), topic);
    assert_eq!((stored.queue_id(), stored.queue_offset()), (QueueId(3), QueueOffset(42)));
    assert_eq!((stored.flag(), stored.sys_flag()), (7, SysFlag(sys_flag_stored)));
    assert_eq!(stored.physical_offset(), PhysicalOffset(256));
    assert_eq!(stored.born_timestamp(), BornTimestamp(1_700_000_000_000));
    assert_eq!(stored.store_timestamp(), StoreTimestamp(1_700_000_000_123));
    assert_eq!((stored.born_host(), stored.store_host()), (born_host, store_host));
    assert_eq!((stored.reconsume_times(), stored.prepared_transaction_offset()), (1, -1));
    assert_eq!((stored.body(), stored.property("TAGS")), (&b"hello"[..], Some("TagA")));

    let parts = MessageParts {
        topic,
        queue_id: QueueId(3),
        flag: 7,
        sys_flag: SysFlag(sys_flag),
        born_timestamp: BornTimestamp(1_700_000_000_000),
        born_host,
        store_host,
        reconsume_times: 1,
        prepared_transaction_offset: -1,
        body: b"hello",
        properties: &[&PROPERTIES.as_bytes()[..10], &PROPERTIES.as_bytes()[10..]],
    };
    let mut out = vec![0; encoded_len(&parts)];
    encode_into(&parts, QueueOffset(42), PhysicalOffset(256), StoreTimestamp(1_700_000_000_123), &mut out);
    assert_eq!(out, bytes);
}

#[test]
fn stored_message_v1_with_ipv4_hosts() {
    let file = include_str!("golden/stored_v1_ipv4.hex");
    // The bits about hosts are what the hosts are, not what the caller says.
    check_stored(file, "TopicTest", ["10.0.0.5:54321", "127.0.0.1:10911"], 0x30, 0);
    let bytes = golden(file);
    let (stored, _) = StoredMessage::parse(&bytes).unwrap();
    let message = MessageExt::decode(&stored, 1024).unwrap();
    assert_eq!(message.message_id(), "7F00000100002A9F0000000000000100");
    assert_eq!(message.message.keys().collect::<Vec<_>>(), ["k1", "k2"]);
}

#[test]
fn stored_message_v2_with_ipv6_hosts() {
    let topic = format!("%RETRY%{}", "g".repeat(123));
    let hosts = ["[2001:db8::5]:54321", "[::1]:10911"];
    check_stored(include_str!("golden/stored_v2_ipv6.hex"), &topic, hosts, 0x8, 0x38);
}

#[test]
fn batch() {
    let bytes = golden(include_str!("golden/batch.hex"));
    let entries: Vec<_> = BatchEntries::new(&bytes).collect::<Result<_, _>>().unwrap();
    let expected = [
        BatchEntry { flag: 0, body: b"one", properties: b"TAGS\x01TagA\x02" },
        BatchEntry { flag: 7, body: b"second", properties: b"" },
    ];
    assert_eq!(entries, expected);
    let mut out = Vec::new();
    expected.iter().for_each(|entry| entry.encode(&mut out).unwrap());
    assert_eq!(out, bytes);
}
