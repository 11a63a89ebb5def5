//! How far each group has consumed each queue.
//!
//! An offset that its sender waits for becomes a record of the log at once, and the answer waits for it. Offsets
//! that come one-way or with a pull are noted, and written together at least every `OFFSETS_FLUSH_MS`: after a crash
//! a group may consume the last second again, it never skips anything.

use ringmq_protocol::types::{QueueId, QueueOffset};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// One committed offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Commit<'a> {
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    pub(super) queue_id: QueueId,
    pub(super) offset: QueueOffset,
}

type Queues = BTreeMap<QueueId, QueueOffset>;

#[derive(Default)]
pub(super) struct Offsets {
    groups: FxHashMap<Box<str>, BTreeMap<Box<str>, Queues>>,
    /// Changed since they were last written to the log.
    unwritten: BTreeSet<(Box<str>, Box<str>, QueueId)>,
}

impl Offsets {
    pub(super) fn get(&self, group: &str, topic: &str, queue_id: QueueId) -> Option<QueueOffset> {
        self.groups.get(group)?.get(topic)?.get(&queue_id).copied()
    }

    /// Sets an offset that is or will be in the log by other means.
    pub(super) fn set(&mut self, commit: Commit<'_>) {
        let queues = match self.groups.get_mut(commit.group) {
            Some(topics) => topics,
            None => self.groups.entry(commit.group.into()).or_default(),
        };
        let queues = match queues.get_mut(commit.topic) {
            Some(queues) => queues,
            None => queues.entry(commit.topic.into()).or_default(),
        };
        queues.insert(commit.queue_id, commit.offset);
    }

    /// Sets an offset that is to be written with the next flush. True if that is news.
    pub(super) fn note(&mut self, commit: Commit<'_>) -> bool {
        if self.get(commit.group, commit.topic, commit.queue_id) == Some(commit.offset) {
            return false;
        }
        self.set(commit);
        self.unwritten.insert((commit.group.into(), commit.topic.into(), commit.queue_id))
    }

    pub(super) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// The offsets to be written, in a fixed order.
    pub(super) fn unwritten(&self) -> impl Iterator<Item = Commit<'_>> {
        self.unwritten.iter().filter_map(|(group, topic, queue_id)| {
            let offset = self.get(group, topic, *queue_id)?;
            Some(Commit { group, topic, queue_id: *queue_id, offset })
        })
    }

    /// All of them were written.
    pub(super) fn on_written(&mut self) {
        self.unwritten.clear();
    }

    /// All pairs of a group and a topic that have offsets, in order.
    pub(super) fn pairs(&self) -> Vec<(&str, &str)> {
        let topics = self
            .groups
            .iter()
            .flat_map(|(group, topics)| topics.keys().map(move |topic| (&**group, &**topic)));
        let mut pairs: Vec<(&str, &str)> = topics.collect();
        pairs.sort_unstable();
        pairs
    }

    /// The offsets of a group for a topic.
    pub(super) fn queues(&self, group: &str, topic: &str) -> impl Iterator<Item = (QueueId, QueueOffset)> {
        let queues = self.groups.get(group).and_then(|topics| topics.get(topic));
        queues.into_iter().flatten().map(|(queue_id, offset)| (*queue_id, *offset))
    }

    /// Topics for which the group has offsets, in order.
    pub(super) fn topics_of(&self, group: &str) -> impl Iterator<Item = &str> {
        self.groups.get(group).into_iter().flat_map(|topics| topics.keys().map(|topic| &**topic))
    }

    /// Groups that have offsets for the topic, in order.
    pub(super) fn groups_of(&self, topic: &str) -> Vec<&str> {
        let mut groups: Vec<&str> = self
            .groups
            .iter()
            .filter(|(_, topics)| topics.contains_key(topic))
            .map(|(group, _)| &**group)
            .collect();
        groups.sort_unstable();
        groups
    }

    pub(super) fn remove_topic(&mut self, topic: &str) {
        for topics in self.groups.values_mut() {
            topics.remove(topic);
        }
        self.unwritten.retain(|(_, of, _)| &**of != topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(queue_id: u32, offset: u64) -> Commit<'static> {
        Commit { group: "g", topic: "t", queue_id: QueueId(queue_id), offset: QueueOffset(offset) }
    }

    #[test]
    fn noted_offsets_are_flushed_once() {
        let mut offsets = Offsets::default();
        assert!(offsets.note(commit(1, 10)));
        assert!(!offsets.note(commit(1, 10)));
        offsets.note(commit(1, 12));
        offsets.note(commit(0, 3));
        offsets.set(commit(2, 7));
        let seen: Vec<(u32, u64)> =
            offsets.unwritten().map(|commit| (commit.queue_id.0, commit.offset.0)).collect();
        assert_eq!(seen, [(0, 3), (1, 12)]);
        offsets.on_written();
        assert_eq!(offsets.pairs(), [("g", "t")]);
        let all: Vec<u32> = offsets.queues("g", "t").map(|(queue_id, _)| queue_id.0).collect();
        assert_eq!(all, [0, 1, 2]);
        assert!(!offsets.has_unwritten());
        assert_eq!(offsets.get("g", "t", QueueId(2)), Some(QueueOffset(7)));
        assert_eq!(offsets.groups_of("t"), ["g"]);
        offsets.remove_topic("t");
        assert_eq!(offsets.get("g", "t", QueueId(2)), None);
    }
}
