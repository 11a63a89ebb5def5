//! Pops that wait for a message of any queue of their topic, or of their group's retry topic for it.
//!
//! A pop is only here while there was nothing for it; it is looked at again when a message of one of its topics becomes
//! visible or may be popped again, so waiting costs nothing.

use super::super::effects::{ConnectionId, Effects};
use super::super::limits::{POP_HOLDS_MAX, POP_QUEUE_HOLDS_MAX};
use super::super::{Refusal, Shard};
use super::{Kind, Pop, TIMED_OUT};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::request::NotificationResponse;
use ringmq_protocol::types::QueueId;
use ringmq_storage::TopicHash;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PopHoldId(u64);

/// Who waits alike: the group, and the queue if it is one.
type Side = (Rc<str>, Option<QueueId>);

#[derive(Default)]
pub(in crate::shard) struct PopHolds {
    pops: BTreeMap<PopHoldId, Box<Pop>>,
    deadlines: BTreeSet<(i64, PopHoldId)>,
    /// By each topic whose messages they want.
    topics: FxHashMap<TopicHash, BTreeMap<Side, BTreeSet<PopHoldId>>>,
    connections: BTreeSet<(ConnectionId, PopHoldId)>,
    next_id: u64,
}

impl Pop {
    fn side(&self) -> Side {
        (self.group.clone(), self.queue)
    }

    fn topics(&self) -> [TopicHash; 2] {
        [TopicHash::of(&self.topic), TopicHash::of(&self.retry_topic)]
    }
}

impl PopHolds {
    pub(in crate::shard) fn len(&self) -> usize {
        self.pops.len()
    }

    /// How many wait for a group at a queue, or at all queues of a topic.
    pub(super) fn count(&self, group: &Rc<str>, topic: &str, queue: Option<QueueId>) -> usize {
        let sides = self.topics.get(&TopicHash::of(topic));
        sides.and_then(|sides| sides.get(&(group.clone(), queue))).map_or(0, BTreeSet::len)
    }

    fn is_full(&self, pop: &Pop) -> bool {
        self.len() >= POP_HOLDS_MAX || self.count(&pop.group, &pop.topic, pop.queue) >= POP_QUEUE_HOLDS_MAX
    }

    /// Parks a pop until its deadline. One that was here before gets its old place in the order again.
    fn park(&mut self, mut pop: Box<Pop>, deadline_ms: i64) {
        let id = pop.hold.unwrap_or_else(|| {
            self.next_id += 1;
            PopHoldId(self.next_id)
        });
        pop.hold = Some(id);
        self.deadlines.insert((deadline_ms, id));
        for topic in pop.topics() {
            self.topics.entry(topic).or_default().entry(pop.side()).or_default().insert(id);
        }
        self.connections.insert((pop.to.connection, id));
        self.pops.insert(id, pop);
    }

    /// Takes a pop out, to be answered by the caller.
    fn take(&mut self, id: PopHoldId) -> Option<Box<Pop>> {
        let pop = self.pops.remove(&id)?;
        self.deadlines.remove(&(pop.hold_until_ms.expect("a parked pop has a deadline"), id));
        for topic in pop.topics() {
            if let Some(sides) = self.topics.get_mut(&topic) {
                if let Some(ids) = sides.get_mut(&pop.side()) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        sides.remove(&pop.side());
                    }
                }
                if sides.is_empty() {
                    self.topics.remove(&topic);
                }
            }
        }
        self.connections.remove(&(pop.to.connection, id));
        Some(pop)
    }

    fn take_expired(&mut self, now_ms: i64) -> Option<Box<Pop>> {
        let &(deadline_ms, id) = self.deadlines.first()?;
        if deadline_ms > now_ms { None } else { self.take(id) }
    }

    pub(in crate::shard) fn next_deadline_ms(&self) -> Option<i64> {
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Forgets the pops of a closed connection.
    pub(in crate::shard) fn on_closed(&mut self, connection: ConnectionId) {
        let all = (connection, PopHoldId(0))..=(connection, PopHoldId(u64::MAX));
        let ids: Vec<PopHoldId> = self.connections.range(all).map(|(_, id)| *id).collect();
        for id in ids {
            self.take(id);
        }
    }

    fn sides(&self, topic: TopicHash) -> Vec<Side> {
        self.topics.get(&topic).map(|sides| sides.keys().cloned().collect()).unwrap_or_default()
    }

    /// The next one that waits there, after another.
    fn next(&self, topic: TopicHash, side: &Side, after: Option<PopHoldId>) -> Option<PopHoldId> {
        let ids = self.topics.get(&topic)?.get(side)?;
        let from = after.map_or(PopHoldId(0), |id| PopHoldId(id.0 + 1));
        ids.range(from..).next().copied()
    }
}

impl Shard {
    /// There is nothing for a pop: it waits, if it wants to and there is room.
    pub(super) fn hold_pop(&mut self, pop: Box<Pop>, fx: &mut Effects) {
        let until = pop.hold_until_ms.filter(|until| *until > self.now.monotonic_ms);
        match until {
            Some(_) if self.pops.holds.is_full(&pop) => {
                if pop.kind == Kind::Notify {
                    let response = NotificationResponse { has_msg: false, polling_full: Some(true) };
                    return fx.replies.push(pop.to, ResponseCode::SUCCESS, None, &response, &[]);
                }
                let remark = format!(
                    "too many pops are waiting: at most {POP_QUEUE_HOLDS_MAX} of a group at a queue, {POP_HOLDS_MAX} in all"
                );
                self.reply_nothing(&pop, ResponseCode::POLLING_FULL, &remark, fx);
            }
            Some(deadline_ms) => self.pops.holds.park(pop, deadline_ms),
            None => self.time_out(&pop, fx),
        }
    }

    fn time_out(&mut self, pop: &Pop, fx: &mut Effects) {
        if pop.kind == Kind::Notify {
            let response = NotificationResponse { has_msg: false, polling_full: Some(false) };
            return fx.replies.push(pop.to, ResponseCode::SUCCESS, None, &response, &[]);
        }
        self.reply_nothing(pop, ResponseCode::POLLING_TIMEOUT, TIMED_OUT, fx);
    }

    /// A message of the topic may be popped: those who wait there look again, the longest waiting first, until one of them
    /// finds nothing.
    pub(in crate::shard) fn wake_pops(&mut self, topic: TopicHash, fx: &mut Effects) {
        for side in self.pops.holds.sides(topic) {
            let mut disappointed = Vec::new();
            let mut last = None;
            while let Some(id) = self.pops.holds.next(topic, &side, last) {
                last = Some(id);
                let (filter, is_ordered) = {
                    let pop = &self.pops.holds.pops[&id];
                    (pop.filter.clone(), pop.is_ordered)
                };
                if disappointed.contains(&(filter.clone(), is_ordered)) {
                    continue;
                }
                let mut pop = self.pops.holds.take(id).expect("listed at its topic");
                pop.work = 0;
                if !self.evaluate_pop(pop, fx) {
                    disappointed.push((filter, is_ordered));
                }
            }
        }
    }

    /// Pops whose time is over are told so.
    pub(in crate::shard) fn expire_pop_holds(&mut self, fx: &mut Effects) {
        while let Some(pop) = self.pops.holds.take_expired(self.now.monotonic_ms) {
            self.time_out(&pop, fx);
        }
    }

    /// The topic is gone.
    pub(in crate::shard) fn refuse_held_pops(&mut self, topic: &str, fx: &mut Effects) {
        let hash = TopicHash::of(topic);
        for side in self.pops.holds.sides(hash) {
            let mut last = None;
            while let Some(id) = self.pops.holds.next(hash, &side, last) {
                last = Some(id);
                // Who waits for the topic's retry topic too goes on waiting when only that is gone.
                if *self.pops.holds.pops[&id].topic == *topic {
                    let pop = self.pops.holds.take(id).expect("listed at its topic");
                    let refusal = Refusal::no_topic(topic);
                    fx.replies.push(pop.to, refusal.code, Some(&refusal.remark), &(), &[]);
                }
            }
        }
    }
}
