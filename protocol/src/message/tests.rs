use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::properties;
use crate::types::*;

#[derive(Clone, Debug)]
struct Sample {
    topic: String,
    numbers: (u32, i32, i32, i64, u64, u64),
    hosts: (SocketAddr, SocketAddr),
    body: Vec<u8>,
    properties: Vec<Vec<u8>>,
}

impl Sample {
    fn encode(&self) -> Vec<u8> {
        let properties: Vec<&[u8]> = self.properties.iter().map(|part| &**part).collect();
        let parts = MessageParts {
            topic: &self.topic,
            queue_id: QueueId(self.numbers.0),
            flag: self.numbers.1,
            sys_flag: SysFlag(self.numbers.2),
            born_timestamp: BornTimestamp(self.numbers.3),
            born_host: self.hosts.0,
            store_host: self.hosts.1,
            reconsume_times: self.numbers.1,
            prepared_transaction_offset: self.numbers.3,
            body: &self.body,
            properties: &properties,
        };
        assert_eq!(parts.check(&Limits { topic_bytes_max: usize::MAX, ..Limits::default() }), Ok(()));
        let mut out = vec![0xAA; encoded_len(&parts)];
        let (queue_offset, physical_offset) = (QueueOffset(self.numbers.4), PhysicalOffset(self.numbers.5));
        encode_into(&parts, queue_offset, physical_offset, StoreTimestamp(self.numbers.3), &mut out);
        out
    }
}

fn sample() -> impl Strategy<Value = Sample> {
    let bytes = |len| proptest::collection::vec(any::<u8>(), len);
    (
        prop_oneof!["\\PC{1,20}", "[a-zé]{126,130}"],
        any::<(u32, i32, i32, i64, u64, u64)>(),
        any::<(SocketAddr, SocketAddr)>(),
        bytes(1..50),
        proptest::collection::vec(bytes(0..20), 0..4),
    )
        .prop_map(|(topic, numbers, hosts, body, properties)| Sample {
            topic,
            numbers,
            hosts,
            body,
            properties,
        })
}

fn canonical(host: SocketAddr) -> SocketAddr {
    SocketAddr::new(host.ip().to_canonical(), host.port())
}

proptest! {
    #[test]
    fn round_trip(sample in sample()) {
        let bytes = sample.encode();
        let (stored, rest) = StoredMessage::parse(&bytes).unwrap();
        prop_assert!(rest.is_empty() && stored.verify_crc());
        prop_assert_eq!(stored.topic(), &sample.topic);
        prop_assert_eq!(stored.magic() == MESSAGE_MAGIC_V2, sample.topic.len() > 127);
        prop_assert_eq!(stored.body(), &sample.body);
        prop_assert_eq!(stored.properties().as_bytes(), sample.properties.concat());
        prop_assert_eq!((stored.queue_id().0, stored.flag()), (sample.numbers.0, sample.numbers.1));
        prop_assert_eq!((stored.queue_offset().0, stored.physical_offset().0), (sample.numbers.4, sample.numbers.5));
        prop_assert_eq!((stored.born_timestamp().0, stored.store_timestamp().0), (sample.numbers.3, sample.numbers.3));
        prop_assert_eq!((stored.reconsume_times(), stored.prepared_transaction_offset()), (sample.numbers.1, sample.numbers.3));
        prop_assert_eq!(stored.born_host(), canonical(sample.hosts.0));
        prop_assert_eq!(stored.store_host(), canonical(sample.hosts.1));
        prop_assert_eq!(stored.sys_flag().0 & !0x30, sample.numbers.2 & !0x30);
    }

    #[test]
    fn records_follow_each_other_until_one_is_damaged(
        samples in proptest::collection::vec(sample(), 1..4), cut in any::<prop::sample::Index>(),
    ) {
        let records: Vec<_> = samples.iter().map(Sample::encode).collect();
        let bytes = records.concat();
        prop_assert_eq!(messages(&bytes).filter(Result::is_ok).count(), records.len());
        let cut = &bytes[..cut.index(bytes.len())];
        let results: Vec<_> = messages(cut).collect();
        prop_assert!(results.iter().rev().skip(1).all(Result::is_ok), "only the last can fail");
        let whole: usize = results.iter().flatten().map(|message| message.as_bytes().len()).sum();
        prop_assert_eq!(whole == cut.len(), results.iter().all(Result::is_ok));
    }

    #[test]
    fn damaged_records_do_not_panic(sample in sample(), damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = sample.encode();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for message in messages(&bytes).flatten() {
            let _ = (message.verify_crc(), MessageExt::decode(&message, 1 << 16));
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        compression in prop_oneof![Just(Compression::Zlib), Just(Compression::Lz4), Just(Compression::Zstd)],
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = messages(&bytes).count();
        let _ = decompress(compression, &bytes, 1000);
    }

    #[test]
    fn compressed_bodies_round_trip(
        compression in prop_oneof![Just(Compression::Zlib), Just(Compression::Lz4), Just(Compression::Zstd)],
        body in proptest::collection::vec(0..3u8, 0..2000),
        level in 0..12u32,
    ) {
        let compressed = compress(compression, &body, level);
        prop_assert_eq!(decompress(compression, &compressed, body.len()), Ok(body));
    }
}

fn parts<'a>(topic: &'a str, body: &'a [u8], properties: &'a [&'a [u8]]) -> MessageParts<'a> {
    let host = "127.0.0.1:10911".parse().unwrap();
    MessageParts {
        topic,
        queue_id: QueueId(0),
        flag: 0,
        sys_flag: SysFlag(0),
        born_timestamp: BornTimestamp(0),
        born_host: host,
        store_host: host,
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        body,
        properties,
    }
}

#[test]
fn limits_are_checked_before_encoding() {
    let limits = Limits { body_bytes_max: 10, topic_bytes_max: 127 };
    let check =
        |topic: &str, body: &[u8], properties: &[&[u8]]| parts(topic, body, properties).check(&limits);
    assert_eq!(check("T", b"0123456789", &[]), Ok(()));
    assert_eq!(check("T", b"", &[]), Err(MessageIllegal::BodyEmpty));
    assert_eq!(check("", b"b", &[]), Err(MessageIllegal::TopicEmpty));
    assert_eq!(check("T", &[0; 11], &[]), Err(MessageIllegal::BodyTooLong { len: 11, max: 10 }));
    assert_eq!(check(&"t".repeat(128), b"b", &[]), Err(MessageIllegal::TopicTooLong { len: 128, max: 127 }));
    let half: &[u8] = &[0; 16_384];
    assert_eq!(check("T", b"b", &[half, &half[1..]]), Ok(()));
    assert_eq!(
        check("T", b"b", &[half, half]),
        Err(MessageIllegal::PropertiesTooLong { len: 32_768, max: 32_767 })
    );
}

#[test]
fn records_that_are_none_are_refused() {
    let parts = parts("T", b"body", &[b"a\x01b\x02"]);
    let mut good = vec![0; encoded_len(&parts)];
    encode_into(&parts, QueueOffset(0), PhysicalOffset(0), StoreTimestamp(0), &mut good);
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        StoredMessage::parse(&bad).unwrap_err()
    };
    let available = good.len();
    assert_eq!(StoredMessage::parse(&[]).unwrap_err(), MessageError::Length { total: 0, available: 0 });
    assert_eq!(with(0, &[0xFF; 4]), MessageError::Length { total: -1, available });
    assert_eq!(with(0, &[0, 0, 0, 7]), MessageError::Length { total: 7, available });
    assert_eq!(with(0, &[0, 0, 0, 40]), MessageError::Field { field: "the head" });
    assert_eq!(with(4, &BLANK_MAGIC.to_be_bytes()), MessageError::Magic(BLANK_MAGIC));
    assert_eq!(with(52, &[0, 1, 0, 0]), MessageError::Field { field: "born host" });
    assert_eq!(with(84, &[0xFF; 4]), MessageError::Field { field: "body" });
    assert_eq!(with(84, &[0x7F, 0xFF, 0xFF, 0xFF]), MessageError::Field { field: "body" });
    assert_eq!(with(93, &[0xFF]), MessageError::Field { field: "topic" });
    assert_eq!(with(94, &[0, 3]), MessageError::Trailing(1));
    let mut damaged = good.clone();
    damaged[88] ^= 1;
    assert!(!StoredMessage::parse(&damaged).unwrap().0.verify_crc());
}

#[test]
fn every_compression_is_read_and_none_beyond_its_bound() {
    let body = b"the same and the same and the same and the same".repeat(100);
    for compression in [Compression::Zlib, Compression::Lz4, Compression::Zstd] {
        let bytes = compress(compression, &body, 5);
        assert_eq!(decompress(compression, &bytes, body.len()).as_ref(), Ok(&body));
        let max = body.len() - 1;
        assert_eq!(decompress(compression, &bytes, max), Err(DecompressError::TooLong { max }));
        let cut = &bytes[..bytes.len() / 2];
        assert_eq!(decompress(compression, cut, body.len()), Err(DecompressError::Damaged(compression)));

        let sys_flag = SysFlag(0).with_compression(Some(compression));
        let parts = MessageParts { sys_flag, ..parts("T", &bytes, &[]) };
        let mut record = vec![0; encoded_len(&parts)];
        encode_into(&parts, QueueOffset(0), PhysicalOffset(0), StoreTimestamp(0), &mut record);
        let (stored, _) = StoredMessage::parse(&record).unwrap();
        assert_eq!(MessageExt::decode(&stored, BODY_BYTES_MAX).unwrap().message.body, body);
    }
}

#[test]
fn a_message_keeps_its_property_names_unique() {
    let message = Message::new("T", "body").with_tag("A").with_tag("B").with_keys(["k1", "k2"]).with("x", "");
    assert_eq!((message.tag(), message.properties.len()), (Some("B"), 2));
    assert_eq!(message.keys().collect::<Vec<_>>(), ["k1", "k2"]);
    assert_eq!(message.encode_properties().unwrap(), b"TAGS\x01B\x02KEYS\x01k1 k2\x02");
    let bad = message.with("x", "\u{2}").encode_properties();
    assert_eq!(bad, Err(properties::PropertyError::Separator));
}

#[test]
fn the_id_is_the_unique_key_or_the_place() {
    let stored = |properties: &[&[u8]]| {
        let parts = parts("T", b"b", properties);
        let mut record = vec![0; encoded_len(&parts)];
        encode_into(&parts, QueueOffset(0), PhysicalOffset(256), StoreTimestamp(0), &mut record);
        MessageExt::decode(&StoredMessage::parse(&record).unwrap().0, 10).unwrap().message_id()
    };
    assert_eq!(stored(&[b"UNIQ_KEY\x01KEY"]), "KEY");
    assert_eq!(stored(&[]), "7F00000100002A9F0000000000000100");
}

/// A few bytes that say they are a Zstandard frame with a window of 512 MiB, which a decoder would have to keep.
#[test]
fn a_stream_that_wants_too_large_a_window_is_refused_before_it_is_read() {
    let window_of = |exponent: u8| [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, exponent << 3][..], &[1, 0, 0]].concat();
    let read = |exponent| decompress(Compression::Zstd, &window_of(exponent), 1000);
    assert_eq!(read(13), Ok(Vec::new()), "8 MiB, and an empty last block");
    assert_eq!(read(14), Err(DecompressError::Damaged(Compression::Zstd)));
    assert_eq!(read(19), Err(DecompressError::Damaged(Compression::Zstd)));
    assert_eq!(decompress(Compression::Zstd, &window_of(14), 16 << 20), Ok(Vec::new()));
}
