//! How far each group has consumed each queue.
//!
//! An offset that its sender waits for becomes a record of the log at once, and the answer waits for it. Offsets
//! that come one-way or with a pull are noted, and written together at least every `OFFSETS_FLUSH_MS`: after a crash
//! a group may consume the last second again, it never skips anything.
//!
//! An offset may also be set from outside, while consumers are elsewhere: a *reset*.
//!
//!   on_reset_offset → record: the offsets, to be taken → the next pull of each queue is answered with its place → record: taken
//!
//! O1  Until a reset is taken, commits of the group for that queue do not count: they are of before.
//! O2  Who resets is told when the reset is durable. A reset is pending or taken in the log like in memory, so no restart
//!     loses one.
//! O3  A consumer that asks where to begin (14) and begins there has taken it.

use super::effects::{ConnectionId, Effects};
use super::groups::GroupNumber;
use super::hold::Pull;
use super::limits::{PULLED_MAX, RESETS_MAX};
use super::records::{self, kind};
use super::{Refusal, Request, Shard};
use ringmq_protocol::body::{Body, MessageQueue, ResetOffsetBody};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::request::{CloneGroupOffsetRequest, InvokeBrokerToResetOffsetRequest};
use ringmq_protocol::types::{QueueId, QueueOffset, StoreTimestamp};
use ringmq_storage::{BlockSeq, Boundary, QueueIx};
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

/// A reset that was not taken yet.
#[derive(Clone, Debug)]
pub(super) struct Reset {
    topic: Box<str>,
    queue_id: QueueId,
    pub(super) target: QueueOffset,
    /// Who was told of it when it asked where to begin.
    pub(super) told: Option<ConnectionId>,
}

impl Reset {
    fn is_of(&self, topic: &str, queue_id: QueueId) -> bool {
        self.queue_id == queue_id && *self.topic == *topic
    }
}

#[derive(Default)]
pub(super) struct Offsets {
    groups: FxHashMap<Box<str>, BTreeMap<Box<str>, Queues>>,
    /// Changed since they were last written to the log.
    unwritten: BTreeSet<(Box<str>, Box<str>, QueueId)>,
    /// By group. What is pending here is the committed offset too.
    resets: BTreeMap<Box<str>, Vec<Reset>>,
    resets_count: usize,
    /// Where the last answer to a pull of the group ended.
    pulled: FxHashMap<(GroupNumber, QueueIx), QueueOffset>,
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
        self.retain_resets(|_, reset| *reset.topic != *topic);
    }

    /// Forgets all offsets of a group.
    pub(super) fn remove_group(&mut self, group: &str) {
        self.groups.remove(group);
        self.unwritten.retain(|(of, _, _)| &**of != group);
        self.retain_resets(|of, _| of != group);
    }

    pub(super) fn has_group(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    fn retain_resets(&mut self, keep: impl Fn(&str, &Reset) -> bool) {
        for (group, resets) in &mut self.resets {
            resets.retain(|reset| keep(group, reset));
        }
        self.resets.retain(|_, resets| !resets.is_empty());
        self.resets_count = self.resets.values().map(Vec::len).sum();
    }

    /// Sets an offset that its consumers have to take.
    pub(super) fn reset(&mut self, commit: Commit<'_>) {
        self.set(commit);
        let Commit { group, topic, queue_id, offset: target } = commit;
        let resets = self.resets.entry(group.into()).or_default();
        match resets.iter_mut().find(|reset| reset.is_of(topic, queue_id)) {
            Some(reset) => (reset.target, reset.told) = (target, None),
            None => {
                resets.push(Reset { topic: topic.into(), queue_id, target, told: None });
                self.resets_count += 1;
            }
        }
    }

    /// The reset of a queue that the group has not taken yet.
    pub(super) fn pending_reset(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: QueueId,
    ) -> Option<&mut Reset> {
        self.resets.get_mut(group)?.iter_mut().find(|reset| reset.is_of(topic, queue_id))
    }

    /// The reset is pending no more.
    pub(super) fn take_reset(&mut self, group: &str, topic: &str, queue_id: QueueId) -> Option<Reset> {
        let resets = self.resets.get_mut(group)?;
        let at = resets.iter().position(|reset| reset.is_of(topic, queue_id))?;
        let taken = resets.remove(at);
        if resets.is_empty() {
            self.resets.remove(group);
        }
        self.resets_count -= 1;
        Some(taken)
    }

    pub(super) fn groups_with_resets(&self) -> impl Iterator<Item = &str> {
        self.resets.keys().map(|group| &**group)
    }

    /// The pending resets of a group.
    pub(super) fn resets_of<'a>(&'a self, group: &'a str) -> impl Iterator<Item = Commit<'a>> {
        self.resets.get(group).into_iter().flatten().map(move |reset| {
            let Reset { topic, queue_id, target, .. } = reset;
            Commit { group, topic, queue_id: *queue_id, offset: *target }
        })
    }

    /// A pull was answered up to here.
    pub(super) fn on_pulled(&mut self, group: GroupNumber, queue: QueueIx, next: QueueOffset) {
        if let Some(pulled) = self.pulled.get_mut(&(group, queue)) {
            *pulled = next;
        } else if self.pulled.len() < PULLED_MAX {
            self.pulled.insert((group, queue), next);
        }
    }

    pub(super) fn pulled(&self, group: GroupNumber, queue: QueueIx) -> Option<QueueOffset> {
        self.pulled.get(&(group, queue)).copied()
    }

    pub(super) fn forget_pulled_by(&mut self, group: GroupNumber) {
        self.pulled.retain(|(of, _), _| *of != group);
    }

    pub(super) fn forget_pulled_from(&mut self, queues: &BTreeSet<QueueIx>) {
        self.pulled.retain(|(_, queue), _| !queues.contains(queue));
    }
}

impl Shard {
    /// INVOKE_BROKER_TO_RESET_OFFSET (222): by time, to the end (a time below 0), or one queue to an offset.
    pub(super) fn on_reset_offset(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = InvokeBrokerToResetOffsetRequest::decode(&request.header.ext)?;
        let (group, topic) = (&*asked.group, &*asked.topic);
        let config =
            self.topics.get(topic).map(|topic| &topic.config).ok_or_else(|| Refusal::no_topic(topic))?;
        let queue_count = config.read_queue_nums;
        if self.groups.admission(group).is_none() {
            return Err(Refusal::no_group(group, "it never consumed here, and nobody made it"));
        }
        let queues = match u32::try_from(asked.queue_id) {
            Ok(queue_id) if queue_id < queue_count => queue_id..queue_id + 1,
            Ok(queue_id) => {
                return Err(Refusal::invalid(format!(
                    "queueId[{queue_id}] is illegal, topic {topic} has {queue_count} queues to read"
                )));
            }
            Err(_) => 0..queue_count,
        };
        let wanted = asked.offset.filter(|offset| asked.queue_id >= 0 && *offset != -1);
        let mut targets = Vec::new();
        for queue_id in queues.map(QueueId) {
            let target = match self.known_queue(topic, queue_id) {
                Some(queue) => self.reset_target(queue, wanted, asked.timestamp)?,
                None => check_target(wanted.unwrap_or(0), QueueOffset(0), QueueOffset(0))?,
            };
            targets.push((queue_id, target));
        }
        self.reset_offsets(group, topic, &targets, fx)?;
        let queue_of =
            |queue_id: QueueId| MessageQueue::new(topic, &self.config.broker_name, queue_id.0 as i32);
        let offset_table =
            targets.into_iter().map(|(queue_id, target)| (queue_of(queue_id), target.0 as i64)).collect();
        self.body_when_durable(request.to, &ResetOffsetBody { offset_table }.to_json(), fx)
    }

    fn reset_target(
        &mut self,
        queue: QueueIx,
        wanted: Option<i64>,
        time_ms: i64,
    ) -> Result<QueueOffset, Refusal> {
        let (min, max) = self.bounds(queue)?;
        match wanted {
            Some(offset) => check_target(offset, min, max),
            None if time_ms < 0 => Ok(max),
            None => Ok(self.offset_by_time(queue, StoreTimestamp(time_ms), Boundary::Lower)?),
        }
    }

    /// CLONE_GROUP_OFFSET (314): a group goes on where another one is. The same as a reset, so that consumers that are
    /// online follow.
    pub(super) fn on_clone_offsets(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = CloneGroupOffsetRequest::decode(&request.header.ext)?;
        let (source, target) = (&*asked.src_group, &*asked.dest_group);
        let named = asked.topic.as_deref().filter(|topic| !topic.trim().is_empty());
        if let Some(topic) = named.filter(|topic| self.topics.get(topic).is_none()) {
            return Err(Refusal::no_topic(topic));
        }
        let topics: Vec<String> = match named {
            Some(topic) => vec![topic.to_owned()],
            None => self.offsets.topics_of(source).map(str::to_owned).collect(),
        };
        self.ensure_group(target, fx)?;
        for topic in topics {
            let is_left_out = !asked.offline && self.does_not_subscribe(source, &topic);
            if is_left_out || self.topics.get(&topic).is_none() {
                continue;
            }
            let offsets: Vec<(QueueId, QueueOffset)> = self.offsets.queues(source, &topic).collect();
            self.reset_offsets(target, &topic, &offsets, fx)?;
        }
        self.reply_when_durable(request.to, fx)
    }

    /// Sets offsets of a group from outside. Pulls that wait there are answered with their new place.
    fn reset_offsets(
        &mut self,
        group: &str,
        topic: &str,
        targets: &[(QueueId, QueueOffset)],
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        if self.offsets.resets_count + targets.len() > RESETS_MAX {
            let remark = format!("[OVERLOAD]{RESETS_MAX} resets wait for consumers, which is the limit");
            return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
        }
        let commits = targets.iter().map(|(queue_id, offset)| {
            let (queue_id, offset) = (*queue_id, *offset);
            Commit { group, topic, queue_id, offset }
        });
        for body in records::encode_resets(true, commits.clone()) {
            self.append_record(kind::RESETS, &body)?;
        }
        commits.clone().for_each(|commit| self.offsets.reset(commit));
        let number = self.groups.admission(group).map(|admission| admission.number);
        for commit in commits {
            let Some(queue) = self.known_queue(topic, commit.queue_id) else { continue };
            for id in self.holds.at(queue) {
                if self.holds.group_of(id) == number {
                    let pull = self.holds.take(id).expect("listed at its queue");
                    self.answer_reset(&pull, commit, fx);
                }
            }
        }
        Ok(())
    }

    /// Answers a pull with the place that its group was set to, once it is durable that the group has taken it.
    pub(super) fn answer_reset(&mut self, pull: &Pull, commit: Commit<'_>, fx: &mut Effects) {
        let response = self.pull_response(pull, commit.offset);
        let replies = match self.note_reset_taken(commit) {
            Ok(block) => &mut self.pending(block).replies,
            // A log that takes no record keeps nobody from consuming: after a restart the group takes the reset again.
            Err(_) => &mut fx.replies,
        };
        replies.push(pull.to, ResponseCode::PULL_OFFSET_MOVED, Some("OFFSET_RESET"), &response, &[]);
    }

    /// A reset is taken: commits count again.
    pub(super) fn note_reset_taken(&mut self, commit: Commit<'_>) -> Result<BlockSeq, Refusal> {
        self.offsets.take_reset(commit.group, commit.topic, commit.queue_id);
        let body = records::encode_resets(false, std::iter::once(commit)).pop().expect("there is one");
        self.append_record(kind::RESETS, &body)
    }
}

/// RocketMQ lets an offset be set to one behind the end.
fn check_target(offset: i64, min: QueueOffset, max: QueueOffset) -> Result<QueueOffset, Refusal> {
    let target = u64::try_from(offset).ok().map(QueueOffset);
    target.filter(|target| *target >= min && target.0 <= max.0 + 1).ok_or_else(|| {
        let remark = format!("Target offset {offset} not in consume queue range [{min}-{max}]");
        Refusal::new(ResponseCode::SYSTEM_ERROR, remark)
    })
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
