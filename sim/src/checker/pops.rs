//! Messages that are popped, by one group on each shard.
//!
//! P1  What one consumer was given nobody is given until its time is over, over crashes too.
//! P2  What was acknowledged in time is not given again.
//! P3  In the end each message that is there was given to somebody who acknowledged it, or is given to who asks, or is a dead letter: none
//!     stays invisible.
//! P4  In order mode nothing of a queue is given while something of it that another pop gave is invisible and not done.
//! P5  In order mode messages are first given in the order of their queue, and none is left out that was not deleted.
//!
//! Times are the broker's. Where its clock has gone back, times do not tell what came before: then only P3 and P5 are checked.

use super::{Anomaly, Checker, Contents, MessageId, Queue, SHARD_SHIFT};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Pops {
    given: BTreeMap<(u64, MessageId), Vec<Turn>>,
    dead: BTreeSet<(u64, MessageId)>,
    /// Shards whose clock has gone back.
    timeless: BTreeSet<u64>,
    /// Queues that are popped in order, by shard.
    ordered: BTreeMap<(u64, i32), Order>,
    /// Messages that were left out (P5), which those that cannot be read may be.
    left_out: Vec<(u64, String)>,
}

/// What was given of a queue that is popped in order.
#[derive(Default)]
struct Order {
    /// Behind the last message that was given.
    next: u64,
    /// Turns that may not be over, with the pop that each belongs to.
    open: Vec<(MessageId, usize, u64)>,
    count: u64,
}

/// A message was given, and is invisible for a time.
#[derive(Debug)]
struct Turn {
    pop_time: i64,
    /// `None` while nobody knows, as somebody has asked for another time.
    until: Option<i64>,
    /// Another time was asked for: who knows whether before or after the first one was over.
    is_changed: bool,
    /// Its consumer has asked for it to be done; and it is for sure.
    is_acknowledging: bool,
    is_done: bool,
}

impl Checker {
    pub fn clock_went_back(&mut self, shard: u64) {
        self.pops.timeless.insert(shard);
    }

    /// A consumer was given a message. Gives the number of this turn.
    pub fn popped(&mut self, shard: u64, id: MessageId, pop_time: i64, until: i64) -> usize {
        let turns = self.pops.given.entry((shard, id)).or_default();
        let mut wrong = None;
        for turn in turns.iter() {
            // Answers may arrive in another order than they were given in.
            let (first_end, second) = match turn.pop_time <= pop_time {
                true => (turn.until, pop_time),
                false => (Some(until), turn.pop_time),
            };
            if turn.is_done && turn.pop_time <= pop_time {
                let text =
                    format!("{id} was popped at {}, acknowledged, and popped at {pop_time}", turn.pop_time);
                wrong = Some((Anomaly::Duplicate, text));
            } else if let Some(end) = first_end.filter(|end| second < *end) {
                let text = format!("{id} was popped at {second} while it was invisible, until {end}");
                wrong = Some((Anomaly::Duplicate, text));
            }
        }
        let number = turns.len();
        turns.push(Turn {
            pop_time,
            until: Some(until),
            is_changed: false,
            is_acknowledging: false,
            is_done: false,
        });
        if let Some((anomaly, text)) = wrong.filter(|_| !self.pops.timeless.contains(&shard)) {
            self.report(anomaly, text);
        }
        number
    }

    /// The turn of a message that was popped in order: where it lies, and the pop that gave it.
    pub fn popped_in_order(
        &mut self,
        (shard, queue_id): (u64, i32),
        offset: u64,
        id: MessageId,
        number: usize,
        pop: u64,
    ) {
        let Pops { given, timeless, ordered, left_out, .. } = &mut self.pops;
        let turn = |id: &MessageId, number: usize| &given.get(&(shard, *id)).expect("popped before")[number];
        let this = turn(&id, number);
        let order = ordered.entry((shard, queue_id)).or_default();
        order.count += 1;
        if offset > order.next {
            let text = format!(
                "{id} at {offset} of queue {queue_id} was popped, those from {} on never",
                order.next
            );
            left_out.push((shard, text));
        }
        order.next = order.next.max(offset + 1);
        let mut wrong = None;
        order.open.retain(|(other_id, other_number, other_pop)| {
            let other = turn(other_id, *other_number);
            let (Some(end), false) = (other.until, other.is_acknowledging || other.is_changed) else {
                return false;
            };
            // Answers may arrive in another order than they were given in.
            let is_open = match other.pop_time <= this.pop_time {
                true => this.pop_time < end,
                false => this.until.is_some_and(|until| other.pop_time < until),
            };
            if is_open && *other_pop != pop {
                wrong = Some(format!(
                    "{id} was popped in order while {other_id} was in flight: {this:?}, {other:?}"
                ));
            }
            this.pop_time < end
        });
        order.open.push((id, number, pop));
        if let Some(text) = wrong.filter(|_| !timeless.contains(&shard)) {
            self.report(Anomaly::Disorder, text);
        }
    }

    fn turn(&mut self, shard: u64, id: MessageId, number: usize) -> &mut Turn {
        &mut self.pops.given.get_mut(&(shard, id)).expect("popped before")[number]
    }

    /// A consumer says that it is done with a message.
    pub fn acknowledging(&mut self, shard: u64, id: MessageId, turn: usize) {
        self.turn(shard, id, turn).is_acknowledging = true;
    }

    /// The broker has taken that, at `now` at the latest.
    pub fn acknowledged_pop(&mut self, shard: u64, id: MessageId, turn: usize, now: i64) {
        let turn = self.turn(shard, id, turn);
        turn.is_done = turn.until.is_some_and(|until| now < until);
    }

    /// A consumer has asked for another time: nobody knows which of them counts.
    pub fn changing(&mut self, shard: u64, id: MessageId, turn: usize) {
        let turn = self.turn(shard, id, turn);
        (turn.until, turn.is_changed) = (None, true);
    }

    /// The new one does, under a new receipt.
    pub fn changed(&mut self, shard: u64, id: MessageId, turn: usize, pop_time: i64, until: i64) {
        let turn = self.turn(shard, id, turn);
        (turn.pop_time, turn.until) = (pop_time, Some(until));
    }

    /// The message is in the group's dead letter topic.
    pub fn is_dead_letter(&mut self, shard: u64, id: MessageId) {
        self.pops.dead.insert((shard, id));
    }

    /// Compares with what is there when everything that can be popped was (P3). Gives the number of times that a message was popped, and
    /// that one was in order.
    pub fn finish_popped(
        &mut self,
        shard: u64,
        queues: &[Queue],
        contents: &Contents,
        deletes: bool,
    ) -> (u64, u64) {
        // What cannot be read is not given, and copies of it lie elsewhere.
        let is_damaged = self.unreadable.iter().any(|range| range.start >> SHARD_SHIFT == shard);
        let there = queues.iter().filter_map(|queue| Some((queue, contents.get(queue)?)));
        let mut missing = Vec::new();
        for (queue, seen) in there.flat_map(|(queue, all)| all.iter().map(move |seen| (queue, seen))) {
            let turns = self.pops.given.get(&(shard, seen.id));
            let is_given = turns.is_some_and(|turns| turns.iter().any(|turn| turn.is_acknowledging));
            // What was released nobody can pop any more, also if a crash keeps its segment.
            let is_old = self.was_released(seen.position);
            if !is_given && !self.pops.dead.contains(&(shard, seen.id)) && !is_damaged && !is_old {
                missing.push(format!(
                    "{} at {} of {queue} was never acknowledged and cannot be popped: {turns:?}",
                    seen.id, seen.offset
                ));
            }
        }
        for text in missing {
            self.report(Anomaly::LostWrite, text);
        }
        for (_, text) in self
            .pops
            .left_out
            .extract_if(.., |(of, _)| *of == shard && !is_damaged && !deletes)
            .collect::<Vec<_>>()
        {
            self.report(Anomaly::Skipped, text);
        }
        let given = self.pops.given.iter().filter(|((of, _), _)| *of == shard);
        let ordered = self.pops.ordered.iter().filter(|((of, _), _)| *of == shard);
        (given.map(|(_, turns)| turns.len() as u64).sum(), ordered.map(|(_, order)| order.count).sum())
    }
}
