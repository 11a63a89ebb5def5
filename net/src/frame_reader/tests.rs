use super::*;
use proptest::prelude::*;
use ringmq_protocol::frame::{Codec, Head, Language, encode};
use ringmq_protocol::types::Opaque;

fn frame(opaque: i32, body: &[u8]) -> Vec<u8> {
    let head = Head {
        codec: if opaque % 2 == 0 { Codec::Json } else { Codec::RocketMq },
        code: 310,
        language: Language::Rust,
        version: 479,
        opaque: Opaque(opaque),
        flag: 0,
        remark: None,
    };
    let mut out = Vec::new();
    encode(&mut out, &head, &(), body.len());
    out.extend_from_slice(body);
    out
}

fn read_in_pieces(stream: &[u8], cuts: &[usize]) -> Vec<(i32, Vec<u8>)> {
    let mut reader = FrameReader::new(1 << 20);
    let mut seen = Vec::new();
    let mut rest = stream;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let len = (*cuts.next().unwrap()).clamp(1, rest.len());
        let (piece, tail) = rest.split_at(len);
        reader
            .feed(piece, |frame| {
                seen.push((frame.header.opaque.0, frame.body.to_vec()));
                true
            })
            .unwrap();
        rest = tail;
    }
    assert_eq!(reader.partial_bytes(), 0);
    seen
}

proptest! {
    #[test]
    fn the_cuts_do_not_matter(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..12),
        cuts in prop::collection::vec(1usize..700, 1..8),
    ) {
        let sent: Vec<(i32, Vec<u8>)> = bodies.into_iter().enumerate().map(|(i, body)| (i as i32, body)).collect();
        let stream: Vec<u8> = sent.iter().flat_map(|(opaque, body)| frame(*opaque, body)).collect();
        prop_assert_eq!(read_in_pieces(&stream, &cuts), sent);
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..2000), cut in 1usize..100) {
        let mut reader = FrameReader::new(1 << 16);
        for piece in data.chunks(cut) {
            if reader.feed(piece, |_| true).is_err() {
                break;
            }
        }
    }
}

#[test]
fn an_announced_length_takes_no_memory() {
    let mut reader = FrameReader::new(16 << 20);
    let mut start = frame(1, &[]);
    start[..4].copy_from_slice(&(15u32 << 20).to_be_bytes());
    reader.feed(&start[..10], |_| true).unwrap();
    assert_eq!(reader.partial_bytes(), 10);
    assert!(reader.partial.capacity() < 1024);
}

#[test]
fn a_frame_beyond_the_limit_is_an_error_before_its_body_arrives() {
    let mut reader = FrameReader::new(100);
    let long = frame(1, &[7; 200]);
    assert!(reader.feed(&long[..12], |_| true).is_err());
}

#[test]
fn feeding_stops_when_told() {
    let mut reader = FrameReader::new(1 << 16);
    let stream = [frame(1, b"a"), frame(2, b"b")].concat();
    let mut seen = 0;
    reader
        .feed(&stream, |_| {
            seen += 1;
            false
        })
        .unwrap();
    assert_eq!(seen, 1);
}
