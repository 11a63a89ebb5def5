//! Judges a history: what clients sent, were told and saw, against what is there at the end. Knows no broker code.
//!
//! A send is *refused* (surely not stored), *acknowledged* (surely stored, at its offset) or of unknown fate. The
//! anomalies are those that Jepsen checks in logs, and those that only a crash can bring about; see [`Anomaly`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

mod pops;
mod retention;
pub mod retries;

use pops::Pops;
use retention::Old;
use retries::Later;

/// Shards have logs of their own: the upper bits of a position name the shard.
pub const SHARD_SHIFT: u32 = 40;

/// A position of a shard's log among the positions of all shards.
pub fn position_in(shard: u64, position: u64) -> u64 {
    shard << SHARD_SHIFT | position
}

/// One message of one producer; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MessageId {
    pub producer: u32,
    pub number: u32,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.producer, self.number)
    }
}

impl MessageId {
    pub fn parse(text: &str) -> Option<MessageId> {
        let (producer, number) = text.split_once('-')?;
        Some(MessageId { producer: producer.parse().ok()?, number: number.parse().ok()? })
    }
}

/// One life of a topic: a topic that is deleted and made again is another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TopicId(pub usize);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Queue {
    pub topic: TopicId,
    pub id: u32,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {} queue {}", self.topic.0, self.id)
    }
}

/// A group's place in a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CommitKey {
    pub group: u32,
    pub queue: Queue,
}

/// What a client saw of a message, in a response to a pull.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub offset: u64,
    pub id: MessageId,
    /// Where it lies in the log.
    pub position: u64,
    pub stored_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Anomaly {
    /// A message whose send was refused is there.
    AbortedRead,
    /// Two messages at one offset.
    InconsistentOffset,
    /// An acknowledged message is not there.
    LostWrite,
    /// One message at two offsets.
    Duplicate,
    /// A pull passed over a message that it should have returned, or went backwards.
    Skipped,
    /// Messages of one connection lie in another order than they were sent in.
    Disorder,
    /// A message was seen, and then was gone.
    Phantom,
    /// A committed offset that was acknowledged is not in force any more.
    RegressedOffset,
    /// A message has other bytes, another tag, or another topic than it was sent with.
    WrongBytes,
    /// A queue has an offset without a message.
    Gap,
    /// Acknowledged although the log had failed before it was sent.
    AcknowledgedAfterFailure,
    /// A request has no answer after the longest time that it may take, though its connection lives.
    Unanswered,
    /// An answer to no request: a second one, or one to a one-way request.
    AnsweredTwice,
    /// An answer that the state of things does not allow, or bytes that are no answer.
    UnexpectedAnswer,
    /// The broker closed a connection without a reason.
    ClosedConnection,
    /// The broker could not start, or not stop, or takes nothing though nothing is wrong any more.
    Stuck,
    /// Damage that the broker kept to itself.
    Unreported,
    /// Damage reported where there is none, or done by the broker itself.
    FalseAlarm,
    /// A segment was released though an online group had still to consume from it, without being told to.
    Robbed,
    /// A message is there again though its segment was deleted.
    Resurrected,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub anomaly: Anomaly,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.anomaly, self.text)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Unknown,
    Refused,
    Acknowledged,
}

/// A send as its producer knows it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub topic: TopicId,
    /// 0 is no tag.
    pub tag: u8,
    pub body_bytes: u32,
    /// Messages of one connection have their order.
    pub connection: u64,
    pub at: u64,
}

struct Placed {
    id: MessageId,
    position: u64,
    is_seen: bool,
    /// When it was stored, once somebody has seen it.
    stored_ms: Option<i64>,
}

struct Pull {
    queue: Queue,
    range: Range<u64>,
    /// Empty means all.
    tags: Vec<u8>,
    offsets: Vec<u64>,
}

struct Commit {
    offset: u64,
    is_acknowledged: bool,
}

/// What is there at the end: every queue, read from its beginning.
pub type Contents = BTreeMap<Queue, Vec<Seen>>;

#[derive(Default)]
pub struct Checker {
    sends: BTreeMap<MessageId, (Sent, Fate)>,
    placed: BTreeMap<(Queue, u64), Placed>,
    places: BTreeMap<MessageId, (Queue, u64)>,
    pulls: Vec<Pull>,
    commits: BTreeMap<CommitKey, Vec<Commit>>,
    /// Topics whose deletion was asked for: what is in them is anybody's guess.
    forsaken: BTreeSet<TopicId>,
    /// Topics whose messages may be gone at any time, and before which place they have to be.
    fading: BTreeMap<TopicId, u64>,
    /// Stretches of the log that the broker reported: unreadable once, and lost for good.
    unreadable: Vec<Range<u64>>,
    lost: Vec<Range<u64>>,
    has_rot: bool,
    /// What became of old segments, by shard.
    old: BTreeMap<u64, Old>,
    later: Later,
    pops: Pops,
    /// Sealed segments may know times to this unit only; less than 2: exactly.
    time_unit_ms: i64,
    /// Acknowledged is not durable.
    is_async: bool,
    /// Queues that have lost their end with the power.
    shortened: BTreeSet<Queue>,
    /// By shard.
    failed_at: BTreeMap<u64, u64>,
    acknowledged: u64,
    seen: u64,
    violations: Vec<Violation>,
    counts: BTreeMap<Anomaly, u64>,
}

/// More of them say no more.
const VIOLATIONS_MAX: usize = 50;

impl Checker {
    /// For a broker that acknowledges before the disk has it, and says so.
    pub fn of_async(is_async: bool) -> Checker {
        Checker { is_async, ..Checker::default() }
    }

    pub fn is_async(&self) -> bool {
        self.is_async
    }

    pub fn report(&mut self, anomaly: Anomaly, text: impl Into<String>) {
        *self.counts.entry(anomaly).or_default() += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { anomaly, text: text.into() });
        }
    }

    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// How often each anomaly was found.
    pub fn counts(&self) -> &BTreeMap<Anomaly, u64> {
        &self.counts
    }

    pub fn acknowledged_count(&self) -> u64 {
        self.acknowledged
    }

    pub fn seen_count(&self) -> u64 {
        self.seen
    }

    // ---- sends

    pub fn sent(&mut self, id: MessageId, sent: Sent) {
        let before = self.sends.insert(id, (sent, Fate::Unknown));
        assert!(before.is_none(), "a message id is used once");
    }

    /// It was surely not stored.
    pub fn refused(&mut self, id: MessageId) {
        self.sends.get_mut(&id).expect("sent before").1 = Fate::Refused;
        if let Some((queue, offset)) = self.places.get(&id) {
            let text = format!("{id} was refused after it was seen at {offset} of {queue}");
            self.report(Anomaly::AbortedRead, text);
        }
    }

    pub fn acknowledged(&mut self, id: MessageId, queue: Queue, offset: u64, position: u64) {
        let (sent, fate) = self.sends.get_mut(&id).expect("sent before");
        *fate = Fate::Acknowledged;
        let at = sent.at;
        self.acknowledged += 1;
        if self.failed_at.get(&(position >> SHARD_SHIFT)).is_some_and(|failed_at| at > *failed_at) {
            self.report(Anomaly::AcknowledgedAfterFailure, format!("{id} at {offset} of {queue}"));
        }
        self.place(queue, Seen { offset, id, position, stored_ms: 0 }, false);
    }

    /// A write to the log of a shard failed at this time: whatever is sent from now on is not to be acknowledged.
    pub fn log_failed(&mut self, shard: u64, at: u64) {
        self.failed_at.entry(shard).or_insert(at);
    }

    /// The broker was started anew.
    pub fn restarted(&mut self) {
        self.failed_at.clear();
    }

    /// Whether anything is known to be in the topic.
    pub fn is_known(&self, topic: TopicId) -> bool {
        let first = (Queue { topic, id: 0 }, 0);
        let last = (Queue { topic, id: u32::MAX }, u64::MAX);
        self.placed.range(first..=last).next().is_some()
    }

    /// Below this offset messages of the queue are known.
    pub fn known_end(&self, queue: Queue) -> u64 {
        self.placed.range((queue, 0)..=(queue, u64::MAX)).next_back().map_or(0, |((_, offset), _)| offset + 1)
    }

    /// An acknowledged message and where it lies, chosen by a number.
    pub fn any_known(&self, choice: u64) -> Option<(MessageId, u64)> {
        let id = MessageId { producer: (choice % 8) as u32, number: (choice >> 8) as u32 % 4096 };
        let (id, place) = self.places.range(id..).next()?;
        Some((*id, self.placed[place].position))
    }

    /// A time at which a message of the queue was stored, chosen by a number, and the offset below which messages were seen.
    pub fn any_time(&self, queue: Queue, choice: u64) -> Option<(i64, u64)> {
        let known = self.placed.range((queue, 0)..=(queue, u64::MAX));
        let seen: Vec<_> =
            known.filter_map(|((_, offset), placed)| Some((*offset, placed.stored_ms?))).collect();
        let (last, _) = seen.last()?;
        let (_, ms) = seen[(choice % seen.len() as u64) as usize];
        Some((ms, last + 1))
    }

    pub fn topic_of(&self, id: MessageId) -> Option<TopicId> {
        self.sends.get(&id).map(|(sent, _)| sent.topic)
    }

    // ---- topics, damage

    /// The deletion of a topic was asked for.
    pub fn forsake(&mut self, topic: TopicId) {
        self.forsaken.insert(topic);
    }

    pub fn is_forsaken(&self, topic: TopicId) -> bool {
        self.forsaken.contains(&topic) || self.fading.contains_key(&topic)
    }

    /// The broker said that it could not read this stretch of the log.
    pub fn unreadable(&mut self, range: Range<u64>) {
        self.unreadable.push(range);
    }

    /// The broker said that this stretch of the log is lost. A queue that lost all of its messages leaves no trace: its
    /// offsets are given again. Gives the number of offsets for which that may happen.
    pub fn lost(&mut self, range: Range<u64>) -> u64 {
        self.lost.push(range);
        let queues_with = |is_meant: &dyn Fn(&Placed) -> bool| -> BTreeSet<Queue> {
            self.placed.iter().filter(|(_, placed)| is_meant(placed)).map(|(place, _)| place.0).collect()
        };
        let is_lost = |placed: &Placed| is_in(&self.lost, placed.position);
        let hit = queues_with(&is_lost);
        let survivors = queues_with(&|placed| !is_lost(placed) && !self.is_released(placed.position));
        let is_gone = |queue: &Queue| hit.contains(queue) && !survivors.contains(queue);
        let gone = self.placed.keys().filter(|place| is_gone(&place.0)).copied().collect();
        self.forget(&gone);
        gone.len() as u64
    }

    /// Bits on the medium were inverted: settings may be lost with messages.
    pub fn rot(&mut self) {
        self.has_rot = true;
    }

    pub fn has_rot(&self) -> bool {
        self.has_rot
    }

    /// After a power cut a shard's log ends at `end`, and everything from `from` on may be lost, but nothing else. Gives the
    /// number of acknowledged messages that are. They must not come back.
    pub fn cut(&mut self, end: u64, from: u64) -> u64 {
        let lost = end.max(from)..((end >> SHARD_SHIFT) + 1) << SHARD_SHIFT;
        let is_lost = |placed: &Placed| lost.contains(&placed.position);
        let gone =
            self.placed.iter().filter(|(_, placed)| is_lost(placed)).map(|(place, _)| *place).collect();
        let acknowledged = self.forget(&gone);
        // A pull may also have passed over lost messages that nobody saw.
        self.clip_pulls(None);
        acknowledged
    }

    /// These places may be taken by other messages. Gives the number of acknowledged messages in them.
    fn forget(&mut self, gone: &BTreeSet<(Queue, u64)>) -> u64 {
        let mut acknowledged = 0;
        for place in gone {
            let placed = self.placed.remove(place).expect("it was found there");
            self.places.remove(&placed.id);
            self.shortened.insert(place.0);
            if let Some((_, fate)) = self.sends.get_mut(&placed.id) {
                acknowledged += u64::from(*fate == Fate::Acknowledged);
                *fate = Fate::Refused;
            }
        }
        let queues: BTreeSet<Queue> = gone.iter().map(|(queue, _)| *queue).collect();
        self.clip_pulls(Some(&queues));
        acknowledged
    }

    /// What pulls of these queues, or of all, found behind the last known message does not count any more.
    fn clip_pulls(&mut self, queues: Option<&BTreeSet<Queue>>) {
        let mut ends: BTreeMap<Queue, u64> = BTreeMap::new();
        for (queue, offset) in self.placed.keys() {
            ends.insert(*queue, offset + 1);
        }
        let is_meant = |pull: &&mut Pull| queues.is_none_or(|queues| queues.contains(&pull.queue));
        for pull in self.pulls.iter_mut().filter(is_meant) {
            let end = ends.get(&pull.queue).copied().unwrap_or(0);
            if pull.range.end > end {
                pull.range.end = end;
                self.shortened.insert(pull.queue);
            }
            pull.offsets.retain(|offset| *offset < pull.range.end);
        }
    }

    /// Whether a consumer may be ahead of what is there.
    pub fn is_shortened(&self, queue: Queue) -> bool {
        self.shortened.contains(&queue)
    }

    /// Whether clients know of a message in this range of the log, and may ask for it.
    pub fn knows(&self, range: &Range<u64>) -> bool {
        let is_in = |(place, placed): (&(Queue, u64), &Placed)| {
            range.contains(&placed.position)
                && !self.is_released(placed.position)
                && !self.is_forsaken(place.0.topic)
        };
        self.placed.iter().any(is_in)
    }

    // ---- look-ups

    /// From now on segments may span more than 49 days. Then their indexes know times to a unit only (docs/storage.md): a look-up may
    /// take what was stored within a unit of the time asked for as stored at that time, and never leaves out what counts.
    pub fn blur_times(&mut self, unit_ms: i64) {
        self.time_unit_ms = unit_ms;
    }

    /// A look-up by time gave this offset. Messages below `seen_end` had been seen when it was asked.
    pub fn found_by_time(&mut self, queue: Queue, ms: i64, is_upper: bool, seen_end: u64, found: u64) {
        if self.has_rot || self.is_forsaken(queue.topic) {
            return;
        }
        let mut wrong = Vec::new();
        let mut is_first = true;
        for ((_, offset), placed) in self.placed.range((queue, 0)..(queue, seen_end)) {
            if self.is_deletable(placed.position) || self.is_excused(placed.position) {
                continue;
            }
            let Some(stored_ms) = placed.stored_ms else {
                is_first = false;
                continue;
            };
            let is_right = match is_upper {
                false if stored_ms >= ms => found <= *offset,
                true if stored_ms <= ms => found >= *offset,
                _ if (stored_ms - ms).abs() < self.time_unit_ms => true,
                false => found > *offset,
                // Before the first message there is none: then it is the first.
                true => found < *offset || (found == *offset && is_first),
            };
            is_first = false;
            if !is_right {
                wrong.push(format!("{queue} at {ms}: {found} was found, {offset} was stored at {stored_ms}"));
            }
        }
        for text in wrong {
            self.report(Anomaly::Skipped, text);
        }
    }

    // ---- pulls

    /// The bytes of a message as a client got it.
    pub fn received(&mut self, topic: TopicId, id: MessageId, tag: u8, body: &[u8]) {
        let Some((sent, _)) = self.sends.get(&id) else {
            return self.report(Anomaly::WrongBytes, format!("{id} was never sent"));
        };
        let expected = body_of(id, sent.body_bytes);
        if sent.topic != topic {
            let text = format!("{id} of topic {} is in topic {}", sent.topic.0, topic.0);
            self.report(Anomaly::WrongBytes, text);
        } else if sent.tag != tag || expected != body {
            let text = format!("{id}: {} bytes were sent, {} came", expected.len(), body.len());
            self.report(Anomaly::WrongBytes, text);
        }
    }

    /// A pull of `queue` from `range.start` returned these messages and goes on at `range.end`.
    pub fn pulled(&mut self, queue: Queue, range: Range<u64>, tags: &[u8], messages: &[Seen]) {
        let ascends = messages.is_sorted_by(|a, b| a.offset < b.offset);
        if !ascends || messages.iter().any(|seen| !range.contains(&seen.offset)) || range.end < range.start {
            let offsets: Vec<u64> = messages.iter().map(|seen| seen.offset).collect();
            self.report(Anomaly::Skipped, format!("{queue}: {range:?} holds {offsets:?}"));
        }
        for seen in messages {
            self.seen += 1;
            self.place(queue, *seen, true);
        }
        let offsets = messages.iter().map(|seen| seen.offset).collect();
        self.pulls.push(Pull { queue, range, tags: tags.to_vec(), offsets });
    }

    fn place(&mut self, queue: Queue, seen: Seen, is_seen: bool) {
        let Seen { offset, id, position, stored_ms } = seen;
        let new = Placed { id, position, is_seen, stored_ms: None };
        let placed = self.placed.entry((queue, offset)).or_insert(new);
        placed.is_seen |= is_seen;
        if is_seen {
            placed.stored_ms = Some(stored_ms);
        }
        if placed.id != id {
            let text = format!("{queue}: {} and {id} at {offset}", placed.id);
            self.report(Anomaly::InconsistentOffset, text);
        } else if placed.position != position {
            let text = format!("{queue}: {id} at {offset} lies at {} and at {position}", placed.position);
            self.report(Anomaly::InconsistentOffset, text);
        }
        let place = *self.places.entry(id).or_insert((queue, offset));
        if place != (queue, offset) {
            let text = format!("{id} at {} of {} and at {offset} of {queue}", place.1, place.0);
            self.report(Anomaly::Duplicate, text);
        }
        match self.sends.get(&id) {
            None => self.report(Anomaly::WrongBytes, format!("{id} was never sent")),
            Some((_, Fate::Refused)) => {
                self.report(Anomaly::AbortedRead, format!("{id} at {offset} of {queue} was refused"));
            }
            Some(_) => {}
        }
    }

    // ---- committed offsets

    /// A commit was sent; the number is for [`Checker::committed`].
    pub fn committing(&mut self, key: CommitKey, offset: u64) -> usize {
        let commits = self.commits.entry(key).or_default();
        commits.push(Commit { offset, is_acknowledged: false });
        commits.len() - 1
    }

    pub fn committed(&mut self, key: CommitKey, number: usize) {
        self.commits.get_mut(&key).expect("committing before")[number].is_acknowledged = true;
    }

    /// The last commit that is acknowledged by now.
    pub fn last_commit(&self, key: CommitKey) -> Option<usize> {
        self.commits.get(&key)?.iter().rposition(|commit| commit.is_acknowledged)
    }

    pub fn commit_keys(&self) -> Vec<CommitKey> {
        self.commits.keys().copied().collect()
    }

    /// A question about an offset was answered. `since` is [`Checker::last_commit`] when it was asked.
    pub fn offset_found(&mut self, key: CommitKey, since: Option<usize>, found: Option<u64>) {
        let commits = self.commits.get(&key).map_or(&[][..], Vec::as_slice);
        let may_be = &commits[since.unwrap_or(0)..];
        let is_allowed = match found {
            Some(offset) => {
                may_be.iter().any(|commit| commit.offset == offset) || (since.is_none() && offset == 0)
            }
            None => since.is_none(),
        };
        if !is_allowed && !self.has_rot && !self.is_forsaken(key.queue.topic) {
            let expected = since.map(|since| commits[since].offset);
            let text = format!(
                "group {} in {}: {expected:?} was acknowledged, {found:?} is there",
                key.group, key.queue
            );
            self.report(Anomaly::RegressedOffset, text);
        }
    }

    // ---- the end

    /// Compares with what is there after the last restart.
    pub fn finish(&mut self, contents: &Contents) {
        for (queue, messages) in contents {
            // Where a queue begins is another question: what is missing before is found below.
            let first = messages.first().map_or(0, |seen| seen.offset);
            for (seen, expected) in messages.iter().zip(first..) {
                self.place(*queue, *seen, false);
                if seen.offset != expected && !self.has_rot {
                    self.report(Anomaly::Gap, format!("{queue}: {} instead of {expected}", seen.offset));
                }
                if self.is_gone(seen.position) {
                    let text =
                        format!("{} at {} of {queue}, position {}", seen.id, seen.offset, seen.position);
                    self.report(Anomaly::Resurrected, text);
                }
            }
        }
        let there: BTreeSet<(Queue, u64)> = contents
            .iter()
            .flat_map(|(queue, messages)| messages.iter().map(|seen| (*queue, seen.offset)))
            .collect();
        let gone: Vec<(Anomaly, String)> = self
            .placed
            .iter()
            .filter(|(place, placed)| {
                let is_reported = is_in(&self.lost, placed.position)
                    || (self.has_rot() && is_in(&self.unreadable, placed.position));
                let is_deleted = self.is_released(placed.position);
                let is_excused = self.is_forsaken(place.0.topic) || is_reported || is_deleted;
                !there.contains(place) && !is_excused
            })
            .flat_map(|((queue, offset), placed)| {
                let is_acknowledged =
                    self.sends.get(&placed.id).is_some_and(|(_, fate)| *fate == Fate::Acknowledged);
                let (id, position) = (placed.id, placed.position);
                let text = format!("{id} at {offset} of {queue}, position {position}");
                let found = [
                    (is_acknowledged, Anomaly::LostWrite),
                    (placed.is_seen || !is_acknowledged, Anomaly::Phantom),
                ];
                found.into_iter().filter(|(is_so, _)| *is_so).map(move |(_, anomaly)| (anomaly, text.clone()))
            })
            .collect();
        for (anomaly, text) in gone {
            self.report(anomaly, text);
        }
        self.check_order();
        self.check_pulls(contents);
    }

    fn check_order(&mut self) {
        let mut last: BTreeMap<(u64, Queue), (MessageId, u64)> = BTreeMap::new();
        let mut found = Vec::new();
        // Ids grow in the order in which a producer sends.
        for (id, (queue, offset)) in &self.places {
            let Some((sent, _)) = self.sends.get(id) else { continue };
            let before = last.insert((sent.connection, *queue), (*id, *offset));
            if let Some((before, at)) = before.filter(|(_, at)| at > offset) {
                found.push(format!("{queue}: {before} at {at}, {id}, sent after it, at {offset}"));
            }
        }
        for text in found {
            self.report(Anomaly::Disorder, text);
        }
    }

    fn check_pulls(&mut self, contents: &Contents) {
        let mut found = Vec::new();
        for pull in &self.pulls {
            if !contents.contains_key(&pull.queue) || pull.range.is_empty() {
                continue;
            }
            let Pull { queue, range, .. } = pull;
            // Also what is deleted by now was there then, or the pull would have been told where the queue begins.
            for ((_, offset), placed) in self.placed.range((*queue, range.start)..(*queue, range.end)) {
                let is_wanted = self
                    .sends
                    .get(&placed.id)
                    .is_some_and(|(sent, _)| pull.tags.is_empty() || pull.tags.contains(&sent.tag));
                let is_returned = pull.offsets.binary_search(offset).is_ok();
                if is_wanted && !is_returned && !self.is_excused(placed.position) {
                    found.push(format!("{queue}: {range:?} without {} at {offset}", placed.id));
                } else if is_returned && !is_wanted {
                    found.push(format!("{queue}: {} at {offset} was not wanted", placed.id));
                }
            }
        }
        for text in found {
            self.report(Anomaly::Skipped, text);
        }
    }
}

fn is_in(ranges: &[Range<u64>], position: u64) -> bool {
    ranges.iter().any(|range| range.contains(&position))
}

/// The body of a message: nothing in it repeats, and no two messages share a body.
pub fn body_of(id: MessageId, len: u32) -> Vec<u8> {
    let mut word =
        (u64::from(id.producer) << 32 | u64::from(id.number)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut body = Vec::with_capacity(len as usize + 8);
    while body.len() < len as usize {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.truncate(len as usize);
    body
}

#[cfg(test)]
mod tests;
