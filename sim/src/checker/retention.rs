//! Retention: what may be gone, what must not, and what must stay gone.
//!
//! O1  Nothing is gone that the broker did not release, and what was gone at a start stays gone.
//! O2  A client is told that a queue begins later only if all that lies before was released, or is about to be.
//! O3  What a group that is online all the time has still to consume is not released, unless that is forced.

use super::{Anomaly, Checker, CommitKey, Queue, SHARD_SHIFT, TopicId, is_in};
use std::collections::BTreeMap;

/// What became of the old segments of a shard; all are positions among those of all shards.
#[derive(Default)]
pub(super) struct Old {
    /// What lies before this was released: it may be gone, or not yet.
    released: u64,
    /// The same, in any life: after a crash it may be there again.
    ever_released: u64,
    /// What lies before this was gone when the broker started.
    gone: u64,
    releasing: Option<Releasing>,
}

/// A release that the broker was asked for, and has not decided as far as anybody knows.
struct Releasing {
    end: u64,
    /// The last commit of each group that was acknowledged when it was asked.
    commits: BTreeMap<CommitKey, usize>,
    /// What is wrong if it is not released.
    if_kept: Vec<String>,
}

impl Old {
    /// Whether anything was ever released.
    pub(super) fn has_released(&self) -> bool {
        self.released & ((1 << SHARD_SHIFT) - 1) > 0
    }

    /// What is asked for ends here.
    fn asked(&self) -> u64 {
        self.releasing.as_ref().map_or(0, |releasing| releasing.end)
    }
}

impl Checker {
    fn old(&self, position: u64) -> Option<&Old> {
        self.old.get(&(position >> SHARD_SHIFT))
    }

    /// A shard is asked to release its oldest segment, which is before `end`.
    pub fn release_asked(&mut self, shard: u64, end: u64) {
        let commits = self.commits.keys().filter_map(|key| Some((*key, self.last_commit(*key)?))).collect();
        let releasing = Releasing { end, commits, if_kept: Vec::new() };
        self.old.entry(shard).or_default().releasing = Some(releasing);
    }

    /// It keeps the segment: if clients were told that messages in it are gone, that was wrong.
    pub fn release_refused(&mut self, shard: u64) {
        let releasing = self.old.entry(shard).or_default().releasing.take();
        for text in releasing.map(|releasing| releasing.if_kept).unwrap_or_default() {
            self.report(Anomaly::Skipped, text);
        }
    }

    /// It has released what is before `end`. `online`: groups that count and were online all the time, with their topics.
    pub fn release_granted(&mut self, shard: u64, end: u64, online: &[(u32, TopicId)]) {
        let old = self.old.entry(shard).or_default();
        let commits = old.releasing.take().map(|releasing| releasing.commits).unwrap_or_default();
        let oldest = old.released..end;
        old.released = old.released.max(end);
        old.ever_released = old.ever_released.max(end);
        let mut found = Vec::new();
        for (group, topic) in online.iter().filter(|(_, topic)| !self.is_forsaken(*topic)) {
            let first = (Queue { topic: *topic, id: 0 }, 0);
            let last = (Queue { topic: *topic, id: u32::MAX }, u64::MAX);
            for ((queue, offset), placed) in self.placed.range(first..=last) {
                let key = CommitKey { group: *group, queue: *queue };
                let sent = self.commits.get(&key).map_or(&[][..], Vec::as_slice);
                let may_hold = &sent[commits.get(&key).copied().unwrap_or(0)..];
                let is_consumed = may_hold.iter().any(|commit| commit.offset > *offset);
                if oldest.contains(&placed.position) && !is_consumed && !self.is_excused(placed.position) {
                    let id = placed.id;
                    found.push(format!("{id} at {offset} of {queue}, which group {group} has not consumed"));
                }
            }
        }
        for text in found {
            self.report(Anomaly::Robbed, text);
        }
    }

    /// A broker has found that the log of a shard begins here: what was released may still be there, and what is gone was
    /// released (O1). True if a release was cut short by the end of the broker.
    pub fn begins_at(&mut self, start: u64) -> bool {
        let old = self.old.entry(start >> SHARD_SHIFT).or_default();
        let (released, gone) = (old.released, old.gone);
        let ever_released = old.ever_released;
        *old = Old { released: start, ever_released, gone: start, releasing: None };
        if start > released.max(start >> SHARD_SHIFT << SHARD_SHIFT) {
            let text = format!("the log begins at {start}, and only what is before {released} was released");
            self.report(Anomaly::LostWrite, text);
        }
        if start < gone {
            let text = format!("the log begins at {start}, and began at {gone} before");
            self.report(Anomaly::Resurrected, text);
        }
        start < released
    }

    pub(super) fn is_released(&self, position: u64) -> bool {
        self.old(position).is_some_and(|old| position < old.released)
    }

    pub(super) fn is_gone(&self, position: u64) -> bool {
        self.old(position).is_some_and(|old| position < old.gone)
    }

    /// Whether what lies here was released once, or is about to be.
    pub(super) fn was_released(&self, position: u64) -> bool {
        self.old(position).is_some_and(|old| position < old.ever_released.max(old.asked()))
    }

    /// Whether what lies here may be gone by now.
    pub fn is_deletable(&self, position: u64) -> bool {
        self.old(position).is_some_and(|old| position < old.released.max(old.asked()))
    }

    /// What lies before this in a shard was released.
    pub fn released(&self, shard: u64) -> u64 {
        self.old.get(&shard).map_or(0, |old| old.released)
    }

    /// Below this offset everything in the queue is known to be released or given up.
    pub fn first_at_least(&self, queue: Queue) -> u64 {
        let known = self.placed.range((queue, 0)..=(queue, u64::MAX));
        let is_gone = |position| {
            position < self.begin_of(queue.topic, position >> SHARD_SHIFT) || self.is_released(position)
        };
        let gone = known.take_while(|(_, placed)| is_gone(placed.position));
        gone.last().map_or(0, |((_, offset), _)| offset + 1)
    }

    /// The topic has a time of its own: what is older is gone for clients, whoever has still to consume it.
    pub fn fades(&mut self, topic: TopicId) {
        self.fading.insert(topic, 0);
    }

    pub fn is_fading(&self, topic: TopicId) -> bool {
        self.fading.contains_key(&topic)
    }

    /// The broker has given up for good what the topic had before `end`.
    pub fn gave_up(&mut self, topic: TopicId, end: u64) {
        if let Some(begin) = self.fading.get_mut(&topic) {
            *begin = end.max(*begin);
        }
    }

    /// Before this place of a shard nothing of a topic is to be seen any more.
    pub fn begin_of(&self, topic: TopicId, shard: u64) -> u64 {
        // The record of it may be lost, as anything.
        let given_up = self.fading.get(&topic).copied().filter(|_| !self.has_rot);
        given_up.unwrap_or(0).max(self.released(shard))
    }

    /// A client was told that a queue with a time of its own begins at `first`, and asked when all below `at_least` was given up.
    pub fn begins(&mut self, queue: Queue, at_least: u64, first: u64) {
        if first < at_least && !self.has_rot {
            let text = format!("{queue} begins at {first}, all below {at_least} was given up");
            self.report(Anomaly::Resurrected, text);
        }
    }

    /// A client who wanted `from` was told that the queue begins at `first` (O2).
    pub fn moved(&mut self, queue: Queue, from: u64, first: u64) {
        if self.has_rot || self.is_forsaken(queue.topic) || first < from {
            return;
        }
        let (mut wrong, mut if_kept) = (Vec::new(), BTreeMap::<u64, Vec<String>>::new());
        for ((_, offset), placed) in self.placed.range((queue, from)..(queue, first)) {
            let text = format!("{queue} is said to begin at {first}, without {} at {offset}", placed.id);
            match placed.position {
                position if self.is_released(position) || self.is_excused(position) => {}
                position if self.is_deletable(position) => {
                    if_kept.entry(position >> SHARD_SHIFT).or_default().push(text);
                }
                _ => wrong.push(text),
            }
        }
        for (shard, texts) in if_kept {
            let old = self.old.get_mut(&shard).and_then(|old| old.releasing.as_mut());
            old.expect("it is why this is deletable").if_kept.extend(texts);
        }
        for text in wrong {
            self.report(Anomaly::Skipped, text);
        }
    }

    /// A pull that was asked when everything before `released` was released has got this.
    pub fn is_fresh(&mut self, queue: Queue, released: u64, position: u64) {
        if position < released {
            let text = format!("a message of {queue} at {position}, before {released}");
            self.report(Anomaly::Resurrected, text);
        }
    }

    /// Damage was reported here.
    pub(super) fn is_excused(&self, position: u64) -> bool {
        is_in(&self.lost, position) || is_in(&self.unreadable, position)
    }
}
