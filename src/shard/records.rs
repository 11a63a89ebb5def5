//! The settings records of the log: their kinds and bodies (docs/format.md).

use super::offsets::Commit;
use ringmq_protocol::types::{QueueId, QueueOffset};

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
}

/// Bytes of commits in one record, give or take one commit.
const COMMITS_BYTES: usize = 64 << 10;

/// Encodes commits into as few records as their size allows. A commit is: length of the group's name (u8), the name,
/// length of the topic's name (u8), the name, queue id (u32 LE), offset (u64 LE).
pub(super) fn encode_commits<'a>(commits: impl Iterator<Item = Commit<'a>>) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut body = Vec::new();
    for commit in commits {
        for name in [commit.group, commit.topic] {
            body.push(u8::try_from(name.len()).expect("names are checked to be shorter than 256 bytes"));
            body.extend_from_slice(name.as_bytes());
        }
        body.extend_from_slice(&commit.queue_id.0.to_le_bytes());
        body.extend_from_slice(&commit.offset.0.to_le_bytes());
        if body.len() >= COMMITS_BYTES {
            records.push(std::mem::take(&mut body));
        }
    }
    if !body.is_empty() {
        records.push(body);
    }
    records
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
    fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
        let (taken, tail) = rest.split_at_checked(len)?;
        *rest = tail;
        Some(taken)
    }
    fn name<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
        let len = take(rest, 1)?[0];
        std::str::from_utf8(take(rest, usize::from(len))?).ok()
    }
    let (group, topic) = (name(rest)?, name(rest)?);
    let queue_id = QueueId(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?));
    let offset = QueueOffset(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?));
    Some(Commit { group, topic, queue_id, offset })
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
        fn arbitrary_bytes_end(body in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(decode_commits(&body).count() <= body.len());
        }
    }
}
