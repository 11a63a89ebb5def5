//! The settings records of docs/format.md, as JSON. Nothing here trusts the bytes.

use serde_json::{Value, json};

/// What a kind of settings record is called, and the number that it has on disk.
pub const TOPIC: u16 = 1;
pub const GROUP: u16 = 2;
pub const OFFSETS: u16 = 3;
pub const TOPIC_DELETED: u16 = 4;
pub const GROUP_DELETED: u16 = 5;
pub const QUEUES: u16 = 6;
pub const CHECKPOINT_BEGIN: u16 = 7;
pub const CHECKPOINT_END: u16 = 8;
pub const DELAY: u16 = 9;
pub const LOCKS: u16 = 12;
pub const RESETS: u16 = 13;
pub const GIVEN_UP: u16 = 16;

/// The name of a kind of record.
pub fn name(kind: u16) -> &'static str {
    match kind {
        TOPIC => "topic",
        GROUP => "group",
        OFFSETS => "offsets",
        TOPIC_DELETED => "topic deleted",
        GROUP_DELETED => "group deleted",
        QUEUES => "queues",
        CHECKPOINT_BEGIN => "checkpoint begin",
        CHECKPOINT_END => "checkpoint end",
        DELAY => "delay levels",
        LOCKS => "queue locks",
        RESETS => "offset resets",
        GIVEN_UP => "topics given up",
        _ => "unknown",
    }
}

/// The body of a record; `None` if it does not mean anything.
pub fn decode(kind: u16, body: &[u8]) -> Option<Value> {
    match kind {
        TOPIC | GROUP => serde_json::from_slice(body).ok(),
        OFFSETS => all(body, offset),
        TOPIC_DELETED => std::str::from_utf8(body).ok().map(|name| json!(name)),
        GROUP_DELETED => {
            let (with_offsets, name) = body.split_first()?;
            Some(json!({ "group": std::str::from_utf8(name).ok()?, "with_offsets": flag(*with_offsets)? }))
        }
        LOCKS => {
            let rest = &mut &*body;
            let [taken] = take(rest)?;
            let (client, group) = (text(rest)?, text(rest)?);
            let queues = all(rest, |rest| {
                let (topic, broker) = (text(rest)?, text(rest)?);
                Some(json!({ "topic": topic, "broker": broker, "queue": i32::from_le_bytes(take(rest)?) }))
            })?;
            Some(json!({ "taken": flag(taken)?, "client": client, "group": group, "queues": queues }))
        }
        RESETS => {
            let (pending, offsets) = body.split_first()?;
            Some(json!({ "pending": flag(*pending)?, "offsets": all(offsets, offset)? }))
        }
        QUEUES => {
            let (topic, marks) = marks(body)?;
            let queues: Vec<Value> = marks
                .iter()
                .map(|[queue, first, born, next]| {
                    json!({ "queue": queue, "first": first, "born": born, "next": next })
                })
                .collect();
            Some(json!({ "topic": topic, "queues": queues }))
        }
        DELAY => all(body, |rest| {
            let (level, next) = (u32::from_le_bytes(take(rest)?), u64::from_le_bytes(take(rest)?));
            Some(json!({ "level": level, "next": next }))
        }),
        GIVEN_UP => all(body, |rest| {
            let (topic, before) = (text(rest)?, i64::from_le_bytes(take(rest)?));
            Some(json!({ "topic": topic, "stored_before": before }))
        }),
        CHECKPOINT_BEGIN | CHECKPOINT_END => body.is_empty().then_some(Value::Null),
        _ => None,
    }
}

/// A topic and how many queues a record of it speaks of.
pub(super) fn topic_of(kind: u16, body: &[u8]) -> Option<(String, u32)> {
    match kind {
        TOPIC => {
            let config: Value = serde_json::from_slice(body).ok()?;
            let number = |name: &str| config.get(name).and_then(Value::as_u64).unwrap_or(0);
            let queues = number("readQueueNums").max(number("writeQueueNums"));
            Some((config.get("topicName")?.as_str()?.to_owned(), u32::try_from(queues).ok()?))
        }
        QUEUES => {
            let (topic, marks) = marks(body)?;
            let queues = marks.iter().map(|[queue, ..]| *queue + 1).max().unwrap_or(0);
            Some((topic.to_owned(), u32::try_from(queues).ok()?))
        }
        _ => None,
    }
}

/// A topic with, for each queue, its id, first offset, position of its first message, and next offset.
fn marks(mut body: &[u8]) -> Option<(&str, Vec<[u64; 4]>)> {
    let rest = &mut body;
    let topic = text(rest)?;
    let mut marks = Vec::new();
    while !rest.is_empty() {
        let queue = u64::from(u32::from_le_bytes(take(rest)?));
        let mut long = || Some(u64::from_le_bytes(take(rest)?));
        marks.push([queue, long()?, long()?, long()?]);
    }
    Some((topic, marks))
}

fn offset(rest: &mut &[u8]) -> Option<Value> {
    let (group, topic) = (text(rest)?, text(rest)?);
    let (queue, offset) = (u32::from_le_bytes(take(rest)?), u64::from_le_bytes(take(rest)?));
    Some(json!({ "group": group, "topic": topic, "queue": queue, "offset": offset }))
}

fn flag(byte: u8) -> Option<bool> {
    (byte <= 1).then_some(byte == 1)
}

fn all(mut rest: &[u8], mut one: impl FnMut(&mut &[u8]) -> Option<Value>) -> Option<Value> {
    let mut values = Vec::new();
    while !rest.is_empty() {
        values.push(one(&mut rest)?);
    }
    Some(Value::Array(values))
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let [len] = take(rest)?;
    let (text, tail) = rest.split_at_checked(usize::from(len))?;
    *rest = tail;
    std::str::from_utf8(text).ok()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<u8> {
        [&[text.len() as u8], text.as_bytes()].concat()
    }

    #[test]
    fn each_kind_is_decoded_and_never_trusted() {
        let offsets =
            [named("G"), named("T"), 3u32.to_le_bytes().to_vec(), 9u64.to_le_bytes().to_vec()].concat();
        let said = decode(OFFSETS, &offsets).unwrap();
        assert_eq!(said, json!([{ "group": "G", "topic": "T", "queue": 3, "offset": 9 }]));
        let numbers = [5u64, 6, 7].map(u64::to_le_bytes).concat();
        let queues = [named("T"), 2u32.to_le_bytes().to_vec(), numbers].concat();
        let said = decode(QUEUES, &queues).unwrap();
        let queue = json!({ "queue": 2, "first": 5, "born": 6, "next": 7 });
        assert_eq!(said, json!({ "topic": "T", "queues": [queue] }));
        assert_eq!(topic_of(QUEUES, &queues), Some(("T".to_owned(), 3)));
        let topic = br#"{"topicName":"T","readQueueNums":4,"writeQueueNums":8}"#;
        assert_eq!(topic_of(TOPIC, topic), Some(("T".to_owned(), 8)));
        assert_eq!(decode(TOPIC_DELETED, b"T"), Some(json!("T")));
        let levels = [3u32.to_le_bytes().to_vec(), 9u64.to_le_bytes().to_vec()].concat();
        assert_eq!(decode(DELAY, &levels), Some(json!([{ "level": 3, "next": 9 }])));
        assert_eq!(decode(DELAY, &levels[..11]), None);
        assert_eq!(decode(GROUP_DELETED, b"\x01G"), Some(json!({ "group": "G", "with_offsets": true })));
        let offset = json!({ "group": "G", "topic": "T", "queue": 3, "offset": 9 });
        let resets = [&[1], &offsets[..]].concat();
        assert_eq!(decode(RESETS, &resets), Some(json!({ "pending": true, "offsets": [offset] })));
        let queue = [named("T"), named("b-0"), 5i32.to_le_bytes().to_vec()].concat();
        let locks = [vec![0], named("c"), named("G"), queue].concat();
        let queue = json!({ "topic": "T", "broker": "b-0", "queue": 5 });
        let said = json!({ "taken": false, "client": "c", "group": "G", "queues": [queue] });
        assert_eq!(decode(LOCKS, &locks), Some(said));
        assert!(decode(LOCKS, &locks[..locks.len() - 1]).is_none() && decode(RESETS, b"\x02").is_none());
        for whole in [&offsets, &queues] {
            // A single byte less is no offset and no queue any more.
            let cut = &whole[..whole.len() - 1];
            assert!(decode(OFFSETS, cut).is_none() && decode(QUEUES, cut).is_none());
        }
        let given_up = [named("T"), 77i64.to_le_bytes().to_vec()].concat();
        let said = json!([{ "topic": "T", "stored_before": 77 }]);
        assert_eq!(decode(GIVEN_UP, &given_up), Some(said));
        assert_eq!(decode(GIVEN_UP, &given_up[1..]), None);
        assert_eq!(decode(99, b"x"), None);
    }
}
