use ringmq_protocol::batch::BatchEntries;
use ringmq_protocol::frame::Frame;

use super::*;

fn sends(batch: u32, codec: Codec, seed: u64) -> Sends {
    let messages = MessageArguments { size: 100, batch, seed };
    Sends::new(&messages, &[("topic", 4), ("topic", 7)], 4, codec, Random::of(seed, 0), None).unwrap()
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
    let refused = Sends::new(&messages, &[("topic", 0)], 1, Codec::RocketMq, Random::of(0, 0), None);
    assert!(refused.is_err_and(|problem| problem.contains("16 MiB")));
}

fn targets_of(topics: &[(&str, &[i32])], number: usize, in_flight: usize) -> Vec<String> {
    let share = Share { address: String::new(), number, topics: topics.to_vec() };
    targets(&share, in_flight).into_iter().map(|(topic, queue)| format!("{topic}{queue}")).collect()
}

#[test]
fn queues_get_equally_many_messages_beginning_with_another_for_each_connection() {
    let topic: &[(&str, &[i32])] = &[("t", &[0, 1, 2])];
    assert_eq!(targets_of(topic, 0, 1), ["t0", "t1", "t2"]);
    assert_eq!(targets_of(topic, 2, 9), ["t2", "t0", "t1"]);
    let queues: Vec<i32> = (0..100).collect();
    assert_eq!(targets_of(&[("t", &queues)], 0, 1).len(), QUEUE_FRAMES_MAX);
    assert_eq!(targets_of(&[("t", &queues)], 0, 200).len(), 100);
}

#[test]
fn topics_get_messages_in_turn() {
    let topics: &[(&str, &[i32])] = &[("t", &[0, 1]), ("u", &[0, 1]), ("v", &[5])];
    assert_eq!(targets_of(topics, 0, 1), ["t0", "u1", "v5", "t1", "u0", "v5"]);
    let names: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let topics: Vec<(&str, &[i32])> = names.iter().map(|name| (name.as_str(), &[0, 1, 2][..])).collect();
    assert_eq!(targets_of(&topics, 0, 1).len(), 100);
}

#[test]
fn every_body_carries_the_time_at_which_it_is_issued() {
    let (run, other) = (RunId([7; 8]), RunId([8; 8]));
    for (batch, size) in [(1, 16), (1, 100), (3, 16), (3, 100)] {
        let messages = MessageArguments { size, batch, seed: 0 };
        let random = || Random::of(0, 0);
        let new = |stamp| Sends::new(&messages, &[("t", 0)], 2, Codec::RocketMq, random(), stamp).unwrap();
        let (mut stamped, plain) = (new(Some(run)), new(None));
        let at = Duration::new(5, 123_456_789);
        stamped.on_issue(1, at);
        let bodies = |sends: &Sends, slot| -> Vec<Vec<u8>> {
            let body = Frame::decode(sends.frame(slot)).unwrap().body;
            match batch {
                1 => vec![body.to_vec()],
                _ => BatchEntries::new(body).map(|entry| entry.unwrap().body.to_vec()).collect(),
            }
        };
        assert_eq!(bodies(&stamped, 1).len(), batch as usize);
        for (body, plain) in bodies(&stamped, 1).iter().zip(bodies(&plain, 1)) {
            assert_eq!((run.sent(body), other.sent(body)), (Some(at), None));
            assert_eq!(body[STAMP_BYTES..], plain[STAMP_BYTES..]);
        }
        // What is in flight already keeps its time.
        assert!(bodies(&stamped, 0).iter().all(|body| run.sent(body) != Some(at)));
    }
    assert_eq!(run.sent(&[7; 15]), None);
}
