//! Checkpoints: all of the small state, written into the log near the end of each segment (docs/storage.md).
//!
//!   begin → topics, groups, offsets, flights, modes, queues, delays: a piece a turn, messages in between → end
//!
//! K1  Whoever reads the log from the begin of a complete checkpoint on knows the whole state, without anything before.
//! K2  What a piece says is what holds at that moment; what changes later has its own record behind it.
//! K3  Segments from the begin of the newest complete checkpoint on are needed at the next start, and kept.

use super::limits::{CHECKPOINT_PAUSE_MS, CHECKPOINT_RETRY_MS, CHECKPOINT_TURN_BYTES};
use super::offsets::Commit;
use super::pop::encode_flights;
use super::records::{self, kind};
use super::{Refusal, Shard, groups::Groups};
use ringmq_protocol::body::Body;
use ringmq_protocol::types::{QueueOffset, StoreTimestamp};
use ringmq_storage::{ChainPoint, SegmentBase};
use std::collections::VecDeque;

/// One piece of the state.
#[derive(Debug)]
enum Piece {
    Topic(Box<str>),
    /// Up to which time a topic is given up.
    GivenUp(Box<str>),
    Group(Box<str>),
    /// Offsets of a group for a topic.
    Offsets(Box<str>, Box<str>),
    /// Resets that the consumers of a group have still to take.
    Resets(Box<str>),
    /// Queue locks of a group.
    Locks(Box<str>),
    /// Messages of a topic in flight for a group.
    Flights(Box<str>, Box<str>),
    /// How a topic is consumed by a group.
    Mode(Box<str>, Box<str>),
    /// Queues of a topic.
    Queues(Box<str>),
    /// How far the delay levels are.
    Delays,
}

#[derive(Debug)]
struct Running {
    begin: ChainPoint,
    pieces: VecDeque<Piece>,
    bytes: u64,
}

/// Which checkpoints the log has.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// End of the log before the newest complete one, or the beginning of the log.
    pub(super) replay_from: ChainPoint,
    /// End of that checkpoint: before it is durable, the one before may be needed.
    end: u64,
    /// Where the newest one began, complete or not.
    last_begin: Option<u64>,
    last_bytes: u64,
    running: Option<Running>,
    /// The log did not take the last piece.
    was_refused: bool,
}

impl Checkpoints {
    /// How long to wait before the one that is under way goes on; `None` if none is, or it cannot.
    pub(super) fn pause_ms(&self) -> Option<i64> {
        let pause = if self.was_refused { CHECKPOINT_RETRY_MS } else { CHECKPOINT_PAUSE_MS };
        self.running.is_some().then_some(pause)
    }

    /// At recovery: the log has a checkpoint's begin after `before`.
    pub(super) fn on_begin(&mut self, before: ChainPoint) {
        self.last_begin = Some(before.position.0);
        self.running = Some(Running { begin: before, pieces: VecDeque::new(), bytes: 0 });
    }

    /// At recovery: the end of the checkpoint that began last.
    pub(super) fn on_end(&mut self, end: u64) {
        if let Some(running) = self.running.take() {
            self.last_bytes = end.saturating_sub(running.begin.position.0);
            self.replay_from = running.begin;
        }
    }

    /// At recovery: the log is at its end. A checkpoint that was not finished will never be.
    pub(super) fn on_recovered(&mut self) {
        self.running = None;
    }

    /// True if it is time for one, with the log at `end`.
    fn is_due(&self, end: u64, segment_bytes: u64) -> bool {
        // The first one is not missed either by a log whose messages leave no end that small in any segment.
        let Some(begin) = self.last_begin else { return end >= segment_bytes / 16 * 15 };
        let segments = end / segment_bytes - begin / segment_bytes;
        let is_late = segments >= 2 || (segments == 1 && end % segment_bytes >= segment_bytes / 16 * 15);
        is_late && end - begin >= 8 * self.last_bytes
    }
}

impl Shard {
    /// Once a turn: begins a checkpoint if it is time, and writes some of the one that is under way.
    pub(super) fn write_checkpoint(&mut self) {
        if self.checkpoints.running.is_none() {
            if !self.checkpoints.is_due(self.log.end().0, self.log.config().segment_bytes) {
                return;
            }
            // What the log does not take now it may take in the next turn.
            if self.begin_checkpoint().is_err() {
                return;
            }
        }
        let mut running = self.checkpoints.running.take().expect("begun above");
        let until = running.bytes + CHECKPOINT_TURN_BYTES;
        while running.bytes < until {
            let Some(piece) = running.pieces.front() else {
                match self.append_record(kind::CHECKPOINT_END, &[]) {
                    Ok(_) => {
                        let end = self.log.end().0;
                        let checkpoints = &mut self.checkpoints;
                        checkpoints.end = end;
                        (checkpoints.replay_from, checkpoints.last_bytes) = (running.begin, running.bytes);
                        return;
                    }
                    Err(_) => break,
                }
            };
            match self.write_piece(piece) {
                Ok(bytes) => running.bytes += bytes,
                Err(_) => break,
            }
            running.pieces.pop_front();
        }
        self.checkpoints.was_refused = running.bytes < until;
        self.checkpoints.running = Some(running);
    }

    fn begin_checkpoint(&mut self) -> Result<(), Refusal> {
        self.append_record(kind::CHECKPOINT_BEGIN, &[])?;
        let begin = self.log.sealed_end();
        self.checkpoints.last_begin = Some(begin.position.0);
        let mut pieces = VecDeque::new();
        let topics = self.topics.sorted();
        let name = |name: &str| -> Box<str> { name.into() };
        pieces.extend(
            topics.iter().filter(|t| t.is_recorded).map(|t| Piece::Topic(name(&t.config.topic_name))),
        );
        let given_up = topics.iter().filter(|topic| topic.given_up > StoreTimestamp(0));
        pieces.extend(given_up.map(|t| Piece::GivenUp(name(&t.config.topic_name))));
        pieces.extend(self.groups.configs.keys().map(|group| Piece::Group(name(group))));
        pieces.extend(self.offsets.pairs().into_iter().map(|(g, t)| Piece::Offsets(name(g), name(t))));
        pieces.extend(self.offsets.groups_with_resets().map(|group| Piece::Resets(name(group))));
        pieces.extend(self.locks.groups().map(|group| Piece::Locks(name(group))));
        pieces.extend(self.pops.flights.pairs().map(|(g, t)| Piece::Flights(name(g), name(t))));
        pieces.extend(self.assignments.pairs().map(|(t, g)| Piece::Mode(name(t), name(g))));
        pieces.extend(topics.iter().map(|t| Piece::Queues(name(&t.config.topic_name))));
        pieces.push_back(Piece::Delays);
        self.checkpoints.running = Some(Running { begin, pieces, bytes: 0 });
        Ok(())
    }

    /// Writes what is left of a piece by now; gives the bytes.
    fn write_piece(&mut self, piece: &Piece) -> Result<u64, Refusal> {
        let (kind, bodies) = match piece {
            Piece::Topic(topic) => (
                kind::TOPIC,
                self.topics.get(topic).map(|topic| topic.config.to_json()).into_iter().collect(),
            ),
            Piece::GivenUp(name) => {
                let given_up = self.topics.get(name).map(|topic| (&**name, topic.given_up));
                (kind::GIVEN_UP, records::encode_given_up(given_up.into_iter()))
            }
            Piece::Group(group) => (
                kind::GROUP,
                self.groups
                    .configs
                    .get(&**group)
                    .map(|config| Groups::record(config, self.groups.forbidden.get(&**group)))
                    .into_iter()
                    .collect(),
            ),
            Piece::Offsets(group, topic) => {
                let commits = self.offsets.queues(group, topic);
                let commits = commits.map(|(queue_id, offset)| Commit { group, topic, queue_id, offset });
                (kind::OFFSETS, records::encode_commits(commits))
            }
            Piece::Resets(group) => {
                (kind::RESETS, records::encode_resets(true, self.offsets.resets_of(group)))
            }
            Piece::Locks(group) => (kind::LOCKS, self.locks.encode(group, self.now.monotonic_ms)),
            Piece::Flights(group, topic) => {
                let bodies = self.pops.flights.queues(group, topic).flat_map(|of| {
                    let last = of.flights.last_key_value().map_or(0, |(offset, _)| offset.0 + 1);
                    let next = self.offsets.get(group, topic, of.queue_id).unwrap_or(QueueOffset(last));
                    encode_flights(of, next)
                });
                (kind::POPPED, bodies.collect())
            }
            Piece::Mode(topic, group) => {
                let mode = self.assignments.get(topic, group);
                (kind::REQUEST_MODE, mode.map(|mode| mode.to_json()).into_iter().collect())
            }
            Piece::Queues(topic) => {
                let queues = self.index.queues_of(topic);
                let marks = queues.filter_map(|(id, queue)| Some((id, self.index.mark(queue)?)));
                (kind::QUEUES, records::encode_marks(topic, marks))
            }
            Piece::Delays => {
                let body = records::encode_levels(self.delays.progress());
                (kind::DELAY, Some(body).filter(|body| !body.is_empty()).into_iter().collect())
            }
        };
        let mut bytes = 0;
        for body in bodies {
            self.append_record(kind, &body)?;
            bytes += body.len() as u64;
        }
        Ok(bytes)
    }

    /// K3: the oldest segment that the next start needs; `None` while the newest checkpoint is not durable.
    pub(super) fn oldest_needed(&self) -> Option<SegmentBase> {
        let Checkpoints { replay_from, end, .. } = &self.checkpoints;
        let segment = SegmentBase::of(replay_from.position, self.log.config().segment_bytes);
        (*end <= self.log.durable().0).then_some(segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends of segments that a log jumps over: five messages of 1 MiB do not fit into 5 MiB with their headers.
    #[test]
    fn a_checkpoint_is_due_in_time_though_the_log_never_is_near_the_end_of_a_segment() {
        const MIB: u64 = 1 << 20;
        let mut checkpoints = Checkpoints::default();
        let due = |checkpoints: &Checkpoints, end| checkpoints.is_due(end * MIB, 5 * MIB);
        assert_eq!([1, 4, 6, 9].map(|end| due(&checkpoints, end)), [false, false, true, true]);
        checkpoints.last_begin = Some(6 * MIB);
        assert_eq!([9, 11, 14, 16].map(|end| due(&checkpoints, end)), [false, false, false, true]);
    }

    #[test]
    fn a_checkpoint_is_due_near_the_end_of_each_segment_unless_the_last_one_was_large() {
        let mut checkpoints = Checkpoints::default();
        let due = |checkpoints: &Checkpoints, end| checkpoints.is_due(end, 1600);
        assert_eq!([1499, 1500, 1599].map(|end| due(&checkpoints, end)), [false, true, true]);
        checkpoints.last_begin = Some(1550);
        assert_eq!([1599, 1600, 3099, 3100].map(|end| due(&checkpoints, end)), [false, false, false, true]);
        checkpoints.last_bytes = 200;
        assert_eq!([3100, 3149, 3150].map(|end| due(&checkpoints, end)), [false, false, true]);
    }
}
