//! What was tried, what was promised, and what consumers saw, over all crashes of a run.

use std::collections::BTreeMap;
use std::fmt;

/// Topics of the load, with their queues on each shard: one hot queue, and several that share blocks.
pub const TOPICS: [(&str, u32); 3] = [("CrashOne", 1), ("CrashMany", 6), ("CrashPair", 2)];

/// A queue of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueKey {
    pub shard: u16,
    pub topic: &'static str,
    pub queue: u32,
}

impl fmt::Display for QueueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {} of {} on shard {}", self.queue, self.topic, self.shard)
    }
}

/// All queues of the load on one shard.
pub fn queues_of(shard: u16) -> impl Iterator<Item = QueueKey> {
    TOPICS
        .iter()
        .flat_map(move |(topic, queues)| (0..*queues).map(move |queue| QueueKey { shard, topic, queue }))
}

/// One attempt to send one message. A producer lives for one cycle; its sequences count from 0 in the order of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId {
    pub producer: u32,
    pub sequence: u32,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of producer {}", self.sequence, self.producer)
    }
}

/// A message as a broker gave it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// `None` if it does not tell.
    pub id: Option<MessageId>,
    /// Whether topic, queue, length and every byte are those of the message it says it is.
    pub is_intact: bool,
}

/// What became of an attempt, as far as its sender can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not answered, one-way, or answered after the fault began: it may be there or not.
    Unknown,
    /// The broker said that it did not take it.
    Refused,
    /// Acknowledged at this offset.
    Acknowledged(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub queue: QueueKey,
    pub fate: Fate,
}

/// How far the consumer group came in one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The highest offset that was acknowledged.
    pub acknowledged: u64,
    /// The highest one that was sent.
    pub attempted: u64,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct History {
    /// By producer, then sequence.
    pub attempts: BTreeMap<u32, Vec<Attempt>>,
    /// By offset.
    pub seen: BTreeMap<QueueKey, BTreeMap<u64, Stored>>,
    pub commits: BTreeMap<QueueKey, Commit>,
    /// Queues of the topics whose creation was acknowledged, by shard and name.
    pub topics: BTreeMap<(u16, String), u32>,
}

/// What one queue holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueContents {
    pub min: u64,
    /// One more than the last offset.
    pub max: u64,
    /// What pulls from `min` to `max` gave, in their order.
    pub messages: Vec<(u64, Stored)>,
    /// What the broker says the group has committed, if anything.
    pub committed: Option<u64>,
}

/// What a broker has after a start.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub queues: BTreeMap<QueueKey, QueueContents>,
    /// Queues of all topics, by shard and name.
    pub topics: BTreeMap<(u16, String), u32>,
    /// Length of the logs of all shards: what a start had to read.
    pub log_bytes: u64,
}

impl History {
    /// What lies before the beginning of its queue was deleted in due course: nothing is promised of it any more. Gives the
    /// number of acknowledged messages among it.
    pub fn forget_deleted(&mut self, survey: &Survey) -> u64 {
        let begins = |queue: &QueueKey| survey.queues.get(queue).map_or(0, |contents| contents.min);
        let mut deleted = 0;
        for attempt in self.attempts.values_mut().flatten() {
            if let Fate::Acknowledged(offset) = attempt.fate
                && offset < begins(&attempt.queue)
            {
                attempt.fate = Fate::Unknown;
                deleted += 1;
            }
        }
        for (queue, seen) in &mut self.seen {
            *seen = seen.split_off(&begins(queue));
        }
        deleted
    }

    /// What was surveyed is what holds from now on: it counts as seen, and a violation is counted once.
    pub fn settle(&mut self, survey: &Survey) {
        let mut places = BTreeMap::new();
        for (queue, contents) in &survey.queues {
            for (offset, stored) in &contents.messages {
                places.extend(stored.id.map(|id| (id, (*queue, *offset))));
            }
            self.seen.insert(*queue, contents.messages.iter().copied().collect());
            let committed = contents.committed.unwrap_or(0);
            self.commits.insert(*queue, Commit { acknowledged: committed, attempted: committed });
        }
        for (producer, attempts) in &mut self.attempts {
            for (attempt, sequence) in attempts.iter_mut().zip(0..) {
                let place = places.get(&MessageId { producer: *producer, sequence });
                if let Fate::Acknowledged(offset) = attempt.fate
                    && place != Some(&(attempt.queue, offset))
                {
                    attempt.fate = Fate::Unknown;
                }
            }
        }
        self.topics.retain(|topic, queues| survey.topics.get(topic) == Some(queues));
    }
}
