//! The settings records of the log: their kinds and bodies (docs/format.md).

use super::delay::DelayLevel;
use super::limits::DELAY_LEVELS_MAX;
use super::offsets::Commit;
use ringmq_protocol::body::MessageQueue;
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, StoreTimestamp};
use ringmq_storage::QueueMark;

/// What a settings record says. The numbers are on disk.
pub(super) mod kind {
    /// JSON of a `TopicConfig`: the topic is there, with these settings.
    pub(in crate::shard) const TOPIC: u16 = 1;
    /// JSON of a `SubscriptionGroupConfig`.
    pub(in crate::shard) const GROUP: u16 = 2;
    /// Consumer offsets, see [`super::encode_commits`].
    pub(in crate::shard) const OFFSETS: u16 = 3;
    /// The name of a topic: its settings, messages and offsets are gone.
    pub(in crate::shard) const TOPIC_DELETED: u16 = 4;
    /// A group's settings are gone, see [`super::encode_group_deleted`].
    pub(in crate::shard) const GROUP_DELETED: u16 = 5;
    /// How far the queues of a topic are, see [`super::encode_marks`]. Part of a checkpoint.
    pub(in crate::shard) const QUEUES: u16 = 6;
    /// Empty: all of the small state follows, between other records.
    pub(in crate::shard) const CHECKPOINT_BEGIN: u16 = 7;
    /// Empty: the checkpoint that began last is complete.
    pub(in crate::shard) const CHECKPOINT_END: u16 = 8;
    /// How far delay levels are, see [`super::encode_levels`].
    pub(in crate::shard) const DELAY: u16 = 9;
    /// Messages popped, see `pop::flights::encode_popped`.
    pub(in crate::shard) const POPPED: u16 = 10;
    /// Popped messages that were acknowledged or went elsewhere, see `pop::flights::encode_done`.
    pub(in crate::shard) const DONE: u16 = 11;
    /// JSON of a `SetMessageRequestModeBody`: how a group is to receive a topic.
    pub(in crate::shard) const REQUEST_MODE: u16 = 14;
    // 15 is a gap, which is the storage's own.
    /// Up to which time topics are given up, see [`super::encode_given_up`].
    pub(in crate::shard) const GIVEN_UP: u16 = 16;
    /// Queue locks taken or given up, see [`super::encode_locks`].
    pub(in crate::shard) const LOCKS: u16 = 12;
    /// Offsets set from outside that a consumer has to take, or has taken, see [`super::encode_resets`].
    pub(in crate::shard) const RESETS: u16 = 13;
}

/// Bytes of commits or of queues in one record, give or take one of them.
const BODY_BYTES: usize = 64 << 10;
/// Longest name that a record holds.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// Encodes commits into as few records as their size allows. A commit is: length of the group's name (u8), the name,
/// length of the topic's name (u8), the name, queue id (u32 LE), offset (u64 LE).
pub(super) fn encode_commits<'a>(commits: impl Iterator<Item = Commit<'a>>) -> Vec<Vec<u8>> {
    encode_all(&[], commits, put_commit)
}

fn put_commit(body: &mut Vec<u8>, commit: Commit<'_>) {
    put_name(body, commit.group);
    put_name(body, commit.topic);
    body.extend_from_slice(&commit.queue_id.0.to_le_bytes());
    body.extend_from_slice(&commit.offset.0.to_le_bytes());
}

/// Items behind a common head, in as few records as their size allows; none if there is no item.
fn encode_all<T>(head: &[u8], items: impl Iterator<Item = T>, put: impl Fn(&mut Vec<u8>, T)) -> Vec<Vec<u8>> {
    let mut records: Vec<Vec<u8>> = Vec::new();
    for item in items {
        if records.last().is_none_or(|body| body.len() >= BODY_BYTES) {
            records.push(head.to_vec());
        }
        put(records.last_mut().expect("just made"), item);
    }
    records
}

/// Encodes resets: 1 (u8) if the consumers of the queues have still to take them, 0 if they have, then commits as in kind 3.
pub(super) fn encode_resets<'a>(is_pending: bool, commits: impl Iterator<Item = Commit<'a>>) -> Vec<Vec<u8>> {
    encode_all(&[u8::from(is_pending)], commits, put_commit)
}

/// Whether the resets of a record are still to be taken, and the resets; `None` if the bytes make no sense.
pub(super) fn decode_resets(body: &[u8]) -> Option<(bool, impl Iterator<Item = Option<Commit<'_>>>)> {
    let (is_pending, commits) = body.split_first()?;
    Some((flag(*is_pending)?, decode_commits(commits)))
}

/// Encodes that a group is gone: 1 (u8) if its offsets, resets and locks go with it, else 0, then its name.
pub(super) fn encode_group_deleted(with_offsets: bool, group: &str) -> Vec<u8> {
    [&[u8::from(with_offsets)], group.as_bytes()].concat()
}

/// Whether the group's offsets are gone too, and its name; `None` if the bytes make no sense.
pub(super) fn decode_group_deleted(body: &[u8]) -> Option<(bool, &str)> {
    let (with_offsets, group) = body.split_first()?;
    Some((flag(*with_offsets)?, std::str::from_utf8(group).ok()?))
}

/// Queues of a group that one client has locked or given up.
pub(super) struct LockChange<'a> {
    pub(super) is_taken: bool,
    pub(super) client_id: &'a str,
    pub(super) group: &'a str,
    pub(super) queues: Vec<MessageQueue>,
}

/// Encodes locks: 1 (u8) if they are taken, 0 if they are given up, the client's id and the group (each with its length as u8
/// before it), then for each queue topic and broker name (likewise) and queue id (i32 LE).
pub(super) fn encode_locks<'a>(
    is_taken: bool,
    client_id: &str,
    group: &str,
    queues: impl Iterator<Item = &'a MessageQueue>,
) -> Vec<Vec<u8>> {
    let mut head = vec![u8::from(is_taken)];
    put_name(&mut head, client_id);
    put_name(&mut head, group);
    encode_all(&head, queues, |body, queue| {
        put_name(body, &queue.topic);
        put_name(body, &queue.broker_name);
        body.extend_from_slice(&queue.queue_id.to_le_bytes());
    })
}

/// The locks of a record; `None` if the bytes make no sense.
pub(super) fn decode_locks(mut body: &[u8]) -> Option<LockChange<'_>> {
    let rest = &mut body;
    let is_taken = flag(take(rest, 1)?[0])?;
    let (client_id, group) = (name(rest)?, name(rest)?);
    let mut queues = Vec::new();
    while !rest.is_empty() {
        let (topic, broker) = (name(rest)?, name(rest)?);
        queues.push(MessageQueue::new(topic, broker, number(rest)? as i32));
    }
    Some(LockChange { is_taken, client_id, group, queues })
}

pub(super) fn put_name(body: &mut Vec<u8>, name: &str) {
    body.push(u8::try_from(name.len()).expect("names are checked to be shorter than 256 bytes"));
    body.extend_from_slice(name.as_bytes());
}

fn flag(byte: u8) -> Option<bool> {
    (byte <= 1).then_some(byte == 1)
}

/// The commits of a record; ends early, with `None`, where the bytes make no sense.
pub(super) fn decode_commits(body: &[u8]) -> impl Iterator<Item = Option<Commit<'_>>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let commit = decode_commit(&mut rest);
        if commit.is_none() {
            rest = &[];
        }
        Some(commit)
    })
}

fn decode_commit<'a>(rest: &mut &'a [u8]) -> Option<Commit<'a>> {
    let (group, topic) = (name(rest)?, name(rest)?);
    let (queue_id, offset) = (QueueId(number(rest)?), QueueOffset(long(rest)?));
    Some(Commit { group, topic, queue_id, offset })
}

/// Encodes how far queues of a topic are: length of the topic's name (u8), the name, then for each queue its id (u32 LE), the
/// offset and the position of the first message that it ever had, and the offset that its next message gets (u64 LE each).
pub(super) fn encode_marks(topic: &str, marks: impl Iterator<Item = (QueueId, QueueMark)>) -> Vec<Vec<u8>> {
    let mut head = Vec::new();
    put_name(&mut head, topic);
    encode_all(&head, marks, |body, (queue_id, mark)| {
        body.extend_from_slice(&queue_id.0.to_le_bytes());
        for number in [mark.first.0, mark.born.0, mark.next.0] {
            body.extend_from_slice(&number.to_le_bytes());
        }
    })
}

/// The topic and the queues of a record; `None` if the bytes make no sense.
pub(super) fn decode_marks(mut body: &[u8]) -> Option<(&str, Vec<(QueueId, QueueMark)>)> {
    let rest = &mut body;
    let topic = name(rest)?;
    let mut marks = Vec::new();
    while !rest.is_empty() {
        let queue_id = QueueId(number(rest)?);
        let (first, born) = (QueueOffset(long(rest)?), PhysicalOffset(long(rest)?));
        marks.push((queue_id, QueueMark { first, born, next: QueueOffset(long(rest)?) }));
    }
    Some((topic, marks))
}

/// Encodes up to which time topics are given up: for each the length of its name (u8), the name, and the store time (i64 LE)
/// before which nothing of it is there any more.
pub(super) fn encode_given_up<'a>(topics: impl Iterator<Item = (&'a str, StoreTimestamp)>) -> Vec<Vec<u8>> {
    encode_all(&[], topics, |body, (topic, before)| {
        put_name(body, topic);
        body.extend_from_slice(&before.0.to_le_bytes());
    })
}

/// The topics of a record; `None` if the bytes make no sense.
pub(super) fn decode_given_up(mut body: &[u8]) -> Option<Vec<(&str, StoreTimestamp)>> {
    let rest = &mut body;
    let mut topics = Vec::new();
    while !rest.is_empty() {
        topics.push((name(rest)?, StoreTimestamp(long(rest)? as i64))); // the same 64 bits
    }
    Some(topics)
}

/// Encodes how far delay levels are: for each its number from 1 (u32 LE), and the offset of its next message (u64 LE).
pub(super) fn encode_levels(levels: impl Iterator<Item = (DelayLevel, QueueOffset)>) -> Vec<u8> {
    levels.flat_map(|(level, next)| level.0.to_le_bytes().into_iter().chain(next.0.to_le_bytes())).collect()
}

/// The levels of a record; `None` if the bytes make no sense.
pub(super) fn decode_levels(mut body: &[u8]) -> Option<Vec<(DelayLevel, QueueOffset)>> {
    let rest = &mut body;
    let mut levels = Vec::new();
    while !rest.is_empty() {
        let level = number(rest).filter(|level| (1..=DELAY_LEVELS_MAX as u32).contains(level))?;
        levels.push((DelayLevel(level), QueueOffset(long(rest)?)));
    }
    Some(levels)
}

pub(super) fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(taken)
}

pub(super) fn name<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let len = take(rest, 1)?[0];
    std::str::from_utf8(take(rest, usize::from(len))?).ok()
}

pub(super) fn number(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

pub(super) fn long(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn commits_survive(commits in prop::collection::vec(("[a-z%]{1,120}", "[A-Z]{0,127}", any::<u32>(), any::<u64>()), 0..2000)) {
            let commits: Vec<Commit<'_>> = commits
                .iter()
                .map(|(group, topic, queue, offset)| Commit { group, topic, queue_id: QueueId(*queue), offset: QueueOffset(*offset) })
                .collect();
            let records = encode_commits(commits.iter().copied());
            let decoded: Option<Vec<Commit<'_>>> = records.iter().flat_map(|record| decode_commits(record)).collect();
            prop_assert_eq!(decoded, Some(commits));
        }

        #[test]
        fn queues_survive(topic in "[a-z%]{1,127}", marks in prop::collection::vec((any::<u32>(), any::<[u64; 3]>()), 0..6000)) {
            let marks: Vec<(QueueId, QueueMark)> = marks
                .into_iter()
                .map(|(id, [first, born, next])| {
                    let (first, born, next) = (QueueOffset(first), PhysicalOffset(born), QueueOffset(next));
                    (QueueId(id), QueueMark { first, born, next })
                })
                .collect();
            let records = encode_marks(&topic, marks.iter().copied());
            let decoded: Vec<_> = records.iter().flat_map(|body| {
                let (of, marks) = decode_marks(body).unwrap();
                assert_eq!(of, topic);
                marks
            }).collect();
            prop_assert_eq!(decoded, marks);
        }

        #[test]
        fn levels_survive(levels in prop::collection::vec((1..=DELAY_LEVELS_MAX as u32, any::<u64>()), 0..70)) {
            let levels: Vec<_> = levels.into_iter().map(|(level, next)| (DelayLevel(level), QueueOffset(next))).collect();
            prop_assert_eq!(decode_levels(&encode_levels(levels.iter().copied())), Some(levels));
        }

        #[test]
        fn times_survive(topics in prop::collection::vec(("[a-z%]{1,127}", any::<i64>()), 0..3000)) {
            let topics: Vec<(&str, StoreTimestamp)> =
                topics.iter().map(|(topic, before)| (topic.as_str(), StoreTimestamp(*before))).collect();
            let records = encode_given_up(topics.iter().copied());
            let decoded: Vec<_> = records.iter().flat_map(|body| decode_given_up(body).unwrap()).collect();
            prop_assert_eq!(decoded, topics);
        }

        #[test]
        fn locks_survive(is_taken in any::<bool>(), queues in prop::collection::vec(("[a-z%]{1,127}", "[a-z-]{0,99}", any::<i32>()), 1..900)) {
            let queues: Vec<MessageQueue> =
                queues.into_iter().map(|(topic, broker, id)| MessageQueue::new(topic, broker, id)).collect();
            let records = encode_locks(is_taken, "10.0.0.1@7", "g", queues.iter());
            let decoded: Vec<_> = records.iter().flat_map(|body| {
                let change = decode_locks(body).unwrap();
                assert_eq!((change.is_taken, change.client_id, change.group), (is_taken, "10.0.0.1@7", "g"));
                change.queues
            }).collect();
            prop_assert_eq!(decoded, queues);
        }

        #[test]
        fn arbitrary_bytes_end(body in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(decode_commits(&body).count() <= body.len());
            prop_assert!(decode_locks(&body).is_none_or(|change| change.queues.len() <= body.len()));
            prop_assert!(decode_resets(&body).is_none_or(|(_, commits)| commits.count() < body.len()));
            prop_assert!(decode_group_deleted(&body).is_none_or(|(_, group)| group.len() < body.len()));
            prop_assert!(decode_marks(&body).is_none_or(|(_, marks)| marks.len() <= body.len()));
            prop_assert!(decode_given_up(&body).is_none_or(|topics| topics.len() <= body.len() / 9));
            prop_assert!(decode_levels(&body).is_none_or(|levels| levels.len() == body.len() / 12));
        }
    }
}
