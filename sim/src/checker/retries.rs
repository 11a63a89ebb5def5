//! Messages that come later, and again: what was delayed comes once, what was sent back is stored again as often as it was sent back.
//!
//! D1  A delayed message that was acknowledged is in its real queue in the end; that it is there once is checked as of any message.
//! D2  For each send-back of a message with so many retries there is one with one more, in the retry or the dead letter topic.

use super::{Anomaly, Checker, Fate, MessageId};
use std::collections::{BTreeMap, BTreeSet};

/// A message that came so many times to a group.
pub type Retry = (u32, MessageId, i32);

#[derive(Default)]
pub(super) struct Later {
    /// Those that were acknowledged, with their shard.
    accepted: BTreeMap<MessageId, u64>,
    backs: BTreeMap<Retry, Backs>,
}

/// Send-backs of one message: at least so many took place, and at most.
#[derive(Clone, Copy, Default)]
struct Backs {
    acknowledged: u64,
    possible: u64,
}

impl Checker {
    /// A delayed message is stored, where it waits for its time.
    pub fn accepted(&mut self, shard: u64, id: MessageId) {
        let (sent, fate) = self.sends.get_mut(&id).expect("sent before");
        *fate = Fate::Acknowledged;
        let at = sent.at;
        self.acknowledged += 1;
        self.later.accepted.insert(id, shard);
        if self.failed_at.get(&shard).is_some_and(|failed_at| at > *failed_at) {
            self.report(Anomaly::AcknowledgedAfterFailure, format!("{id}, delayed"));
        }
    }

    pub fn sending_back(&mut self, retry: Retry) {
        self.later.backs.entry(retry).or_default().possible += 1;
    }

    pub fn sent_back(&mut self, retry: Retry) {
        self.later.backs.entry(retry).or_default().acknowledged += 1;
    }

    /// It surely did not take place.
    pub fn not_sent_back(&mut self, retry: Retry) {
        self.later.backs.get_mut(&retry).expect("sent before").possible -= 1;
    }

    /// The bytes of a message that was sent back.
    pub fn received_again(&mut self, id: MessageId, body: &[u8]) {
        let is_right =
            self.sends.get(&id).is_some_and(|(sent, _)| super::body_of(id, sent.body_bytes) == body);
        if !is_right {
            self.report(Anomaly::WrongBytes, format!("{id}, sent back, has other bytes"));
        }
    }

    /// Compares with what is there when everything has had its time: copies of messages in retry and dead letter topics. Gives the
    /// numbers of delayed messages and of copies.
    pub fn finish_later(&mut self, copies: &BTreeMap<Retry, u64>) -> (u64, u64) {
        let is_complete = |shard: u64| self.released(shard) <= shard << super::SHARD_SHIFT;
        let lost = self.later.accepted.iter().filter(|(id, shard)| {
            // What was released may have been delivered before.
            !self.places.contains_key(id) && is_complete(**shard)
        });
        let lost: Vec<MessageId> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            self.report(Anomaly::LostWrite, format!("{id} was delayed, and never came"));
        }
        let all: BTreeSet<Retry> =
            self.later.backs.keys().map(|(group, id, times)| (*group, *id, times + 1)).collect();
        let mut wrong = Vec::new();
        for retry in all.union(&copies.keys().copied().collect()) {
            let (group, id, times) = *retry;
            let Backs { acknowledged, possible } =
                self.later.backs.get(&(group, id, times - 1)).copied().unwrap_or_default();
            let there = copies.get(retry).copied().unwrap_or(0);
            let is_all_there = self.old.values().all(|old| !old.has_released());
            let text = format!(
                "{id} was sent back {acknowledged} to {possible} times by group {group} as retry {times}: {there} are there"
            );
            if there > possible {
                wrong.push((Anomaly::Duplicate, text));
            } else if there < acknowledged && is_all_there {
                wrong.push((Anomaly::LostWrite, text));
            }
        }
        for (anomaly, text) in wrong {
            self.report(anomaly, text);
        }
        (self.later.accepted.len() as u64, copies.values().sum())
    }
}
