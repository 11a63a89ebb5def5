use ringmq_protocol::batch::BatchEntries;
use ringmq_protocol::frame::Frame;

use super::*;

fn sends(batch: u32, codec: Codec, seed: u64) -> Sends {
    let messages = MessageArguments { size: 100, batch, seed };
    let assignment = Assignment { address: "a".to_string(), queues: vec![4, 7] };
    Sends::new("topic", &messages, &assignment, 4, codec, Random::of(seed, 0)).unwrap()
}

#[test]
fn frames_are_what_a_broker_expects() {
    for codec in [Codec::RocketMq, Codec::Json] {
        let sends = sends(3, codec, 0);
        assert_eq!((sends.slots(), sends.charge(), sends.body_bytes), (4, 3, 300));
        for (slot, queue) in [4, 7, 4, 7].into_iter().enumerate() {
            let frame = Frame::decode(sends.frame(slot)).unwrap();
            assert_eq!((frame.header.codec, frame.header.opaque), (codec, Opaque(slot as i32)));
            let code = RequestCode(frame.header.code);
            assert_eq!(code, RequestCode::SEND_BATCH_MESSAGE);
            let fields = SendMessageRequest::decode(code, &frame.header.ext).unwrap();
            assert_eq!((&*fields.topic, fields.queue_id, fields.batch), ("topic", queue, true));
            let sizes: Vec<_> =
                BatchEntries::new(frame.body).map(|entry| entry.unwrap().body.len()).collect();
            assert_eq!(sizes, [100; 3]);
        }
    }
}

#[test]
fn one_message_is_no_batch() {
    let sends = sends(1, Codec::RocketMq, 0);
    let frame = Frame::decode(sends.frame(0)).unwrap();
    assert_eq!((frame.header.code, frame.body.len()), (RequestCode::SEND_MESSAGE_V2.0, 100));
}

#[test]
fn the_seed_decides_the_bodies() {
    let body = |seed, slot| {
        let sends = sends(1, Codec::RocketMq, seed);
        Frame::decode(sends.frame(slot)).unwrap().body.to_vec()
    };
    assert_eq!(body(7, 0), body(7, 0));
    assert_ne!(body(7, 0), body(7, 1));
    assert_ne!(body(7, 0), body(8, 0));
    assert_ne!(Random::of(7, 0).next(), Random::of(7, 1).next());
}

#[test]
fn what_does_not_fit_a_frame_is_refused() {
    let messages = MessageArguments { size: 1 << 20, batch: 17, seed: 0 };
    let assignment = Assignment { address: "a".to_string(), queues: vec![0] };
    let refused = Sends::new("topic", &messages, &assignment, 1, Codec::RocketMq, Random::of(0, 0));
    assert!(refused.is_err_and(|problem| problem.contains("16 MiB")));
}

#[test]
fn every_queue_gets_equally_many_frames() {
    assert_eq!(
        [(1, 8), (9, 8), (32, 8), (1, 100), (200, 100)].map(|(a, b)| frame_count(a, b)),
        [8, 16, 32, 64, 200]
    );
}
