use proptest::prelude::*;
use ringmq_protocol::message::{MessageParts, encode_into, encoded_len};
use ringmq_protocol::types::{BornTimestamp, QueueId, QueueOffset, SysFlag};

use super::*;
use crate::block::BlockHeader;

fn header(payload: &[u8], record_count: u32) -> BlockHeader {
    BlockHeader {
        shard: 0,
        position: PhysicalOffset(1000),
        payload_bytes: payload.len() as u32,
        record_count,
        store_timestamp: StoreTimestamp(5),
        previous_crc: 0,
        log_id: 0,
        undurable_bytes: 0,
        crc: 0,
    }
}

fn walk(payload: &[u8], record_count: u32) -> Vec<Result<Record<'_>, RecordError>> {
    records(&Block { header: header(payload, record_count), payload }).collect()
}

fn message(position: u64) -> Vec<u8> {
    let parts = MessageParts {
        topic: "T",
        queue_id: QueueId(1),
        flag: 0,
        sys_flag: SysFlag(0),
        born_timestamp: BornTimestamp(1),
        born_host: "127.0.0.1:1".parse().unwrap(),
        store_host: "127.0.0.1:2".parse().unwrap(),
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        body: b"hello",
        properties: &[],
    };
    let mut bytes = vec![0; encoded_len(&parts)];
    encode_into(&parts, QueueOffset(4), PhysicalOffset(position), StoreTimestamp(5), &mut bytes);
    bytes
}

fn metadata(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; metadata_bytes(body.len())];
    write_metadata(kind, body, &mut bytes);
    bytes
}

#[test]
fn messages_and_metadata_share_a_block() {
    let mut payload = metadata(3, b"offsets");
    let message_at = 1048 + payload.len() as u64;
    payload.extend(message(message_at));
    payload.extend(metadata(1, b""));
    payload.extend([0; 5]);
    let found = walk(&payload, 3);
    assert!(matches!(
        found[0],
        Ok(Record::Metadata {
            position: PhysicalOffset(1048),
            kind: 3,
            body: b"offsets",
            store_timestamp: StoreTimestamp(5)
        })
    ));
    let Ok(Record::Message { position, message }) = found[1] else { panic!("{found:?}") };
    assert_eq!((position.0, message.topic(), message.body()), (message_at, "T", b"hello".as_slice()));
    assert!(matches!(found[2], Ok(Record::Metadata { kind: 1, body: b"", .. })));
    assert_eq!(found.len(), 3);
}

#[test]
fn what_is_no_record_is_an_error_with_a_position() {
    let good = metadata(1, b"x");
    for (bad, problem) in [
        (vec![0; 16], "an impossible size"),
        (vec![0, 0, 1, 0, 0, 0, 0, 0], "a size beyond the block"),
        (vec![0, 0], "the block ends before its last record"),
        (vec![0, 0, 0, 8, 1, 2, 3, 4], "neither a message nor a record of RingMQ"),
        (
            [8i32.to_be_bytes(), RINGMQ_RECORD_MAGIC.to_be_bytes()].concat(),
            "a metadata record without a kind",
        ),
        (message(12345), "a message that belongs elsewhere"),
    ] {
        let payload = [good.clone(), bad, good.clone()].concat();
        let payload = if problem.ends_with("last record") { &payload[..good.len() + 2] } else { &payload };
        let found = walk(payload, 3);
        assert_eq!(found.len(), 2, "{problem}: nothing behind it");
        let position = PhysicalOffset(1048 + good.len() as u64);
        assert_eq!(found[1].unwrap_err(), RecordError { position, problem });
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(payload in prop::collection::vec(any::<u8>(), 0..400), count in 0u32..50, size in 0u8..40) {
        let mut payload = payload;
        if payload.len() > 8 {
            payload[..4].copy_from_slice(&[0, 0, 0, size]);
            if size % 2 == 0 {
                payload[4..8].copy_from_slice(&RINGMQ_RECORD_MAGIC.to_be_bytes());
            }
        }
        prop_assert!(walk(&payload, count).len() <= count as usize);
    }
}
