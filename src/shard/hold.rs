//! Held pulls: requests at the end of their queue that wait for a message.
//!
//! H1  A held pull is answered exactly once: by data, by its deadline, or not at all because its connection closed.
//! H2  A held pull costs nothing while nothing happens to its queue, and next to nothing when a message comes that it does not
//!     want: pulls are found by the tag they wait for.
//! H3  However many pulls are woken or expire at once, a turn answers `HOLD_ANSWERS_MAX` of them; the others are due, in order.

use super::effects::{ConnectionId, ReplyTo};
use super::filter::Filter;
use super::groups::GroupNumber;
use super::limits::HOLD_ANSWERS_MAX;
use super::sql::Sql;
use ringmq_protocol::types::{QueueOffset, TagsCode};
use ringmq_storage::QueueIx;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// A checked pull request: what is needed to evaluate it, now or later.
#[derive(Clone, Debug)]
pub(super) struct Pull {
    pub(super) to: ReplyTo,
    pub(super) queue: QueueIx,
    pub(super) group: GroupNumber,
    /// What the client asked for.
    pub(super) from: QueueOffset,
    /// Everything before this was looked at and does not match the filter.
    pub(super) scanned: QueueOffset,
    pub(super) messages_max: usize,
    pub(super) filter: Rc<Filter>,
    /// Bytes that its SQL filter has looked at since it was asked or woken.
    pub(super) work: u64,
    /// Monotonic time until which the pull may wait; `None` if it may not, or not any more.
    pub(super) hold_until_ms: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct HoldId(u64);

/// The pulls that wait at one queue, by what they wait for.
pub(super) struct AtQueue {
    /// Every message before this was offered to all of them.
    pub(super) offered: QueueOffset,
    pub(super) any: BTreeSet<HoldId>,
    tags: BTreeSet<(TagsCode, HoldId)>,
    pub(super) sql: BTreeMap<Rc<Sql>, BTreeSet<HoldId>>,
}

impl AtQueue {
    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.tags.is_empty() && self.sql.is_empty()
    }

    /// True if what is new must be looked at to know who wants it.
    pub(super) fn is_choosy(&self) -> bool {
        !self.tags.is_empty() || !self.sql.is_empty()
    }

    pub(super) fn waits_for_tags(&self) -> bool {
        !self.tags.is_empty()
    }

    /// The pulls that wait for a tag.
    pub(super) fn of_tag(&self, code: TagsCode) -> impl Iterator<Item = HoldId> {
        self.tags.range((code, HoldId(0))..=(code, HoldId(u64::MAX))).map(|(_, id)| *id)
    }

    fn insert(&mut self, filter: &Filter, id: HoldId) {
        match filter {
            Filter::All => {
                self.any.insert(id);
            }
            Filter::Tags(codes) => self.tags.extend(codes.iter().map(|code| (*code, id))),
            Filter::Sql(sql) => {
                self.sql.entry(sql.clone()).or_default().insert(id);
            }
        }
    }

    /// True if the pull did wait here.
    fn remove(&mut self, filter: &Filter, id: HoldId) -> bool {
        match filter {
            Filter::All => self.any.remove(&id),
            Filter::Tags(codes) => {
                let removed = codes.iter().filter(|code| self.tags.remove(&(**code, id)));
                removed.count() > 0
            }
            Filter::Sql(sql) => {
                let Some(ids) = self.sql.get_mut(sql) else { return false };
                let removed = ids.remove(&id);
                if ids.is_empty() {
                    self.sql.remove(sql);
                }
                removed
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Holds {
    pulls: FxHashMap<HoldId, Pull>,
    deadlines: BTreeSet<(i64, HoldId)>,
    queues: FxHashMap<QueueIx, AtQueue>,
    connections: BTreeSet<(ConnectionId, HoldId)>,
    /// Woken, in the order in which they are answered. Some may be gone.
    due: VecDeque<HoldId>,
    /// Pulls that may still be answered in this turn.
    answers_left: usize,
    next_id: u64,
}

impl Holds {
    pub(super) fn len(&self) -> usize {
        self.pulls.len()
    }

    pub(super) fn begin_turn(&mut self) {
        self.answers_left = HOLD_ANSWERS_MAX;
    }

    /// Lets a pull wait that has seen everything that is visible of its queue.
    pub(super) fn park(&mut self, pull: Pull, deadline_ms: i64) {
        let id = HoldId(self.next_id);
        self.next_id += 1;
        self.deadlines.insert((deadline_ms, id));
        self.connections.insert((pull.to.connection, id));
        let at = self.queues.entry(pull.queue).or_insert_with(|| AtQueue {
            offered: pull.scanned.max(pull.from),
            any: BTreeSet::new(),
            tags: BTreeSet::new(),
            sql: BTreeMap::new(),
        });
        at.insert(&pull.filter, id);
        self.pulls.insert(id, Pull { hold_until_ms: Some(deadline_ms), work: 0, ..pull });
    }

    /// The group that a pull is for.
    pub(super) fn group_of(&self, id: HoldId) -> Option<GroupNumber> {
        self.pulls.get(&id).map(|pull| pull.group)
    }

    /// What waits at a queue, if anything does.
    pub(super) fn waiting_at(&self, queue: QueueIx) -> Option<&AtQueue> {
        self.queues.get(&queue)
    }

    /// All pulls of a queue, oldest first.
    pub(super) fn at(&self, queue: QueueIx) -> Vec<HoldId> {
        let Some(at) = self.queues.get(&queue) else { return Vec::new() };
        let of_sql = at.sql.values().flatten();
        let mut ids: Vec<HoldId> =
            at.any.iter().chain(at.tags.iter().map(|(_, id)| id)).chain(of_sql).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The messages of a queue before `to` were offered to all who wait there: these want one of them.
    pub(super) fn on_offered(&mut self, queue: QueueIx, to: QueueOffset, wanted_by: Vec<HoldId>) {
        for id in wanted_by {
            self.leave_queue(id);
            self.due.push_back(id);
        }
        if let Some(at) = self.queues.get_mut(&queue) {
            at.offered = to;
        }
    }

    /// Takes a pull out of what waits at its queue.
    fn leave_queue(&mut self, id: HoldId) {
        let Some(pull) = self.pulls.get_mut(&id) else { return };
        let Some(at) = self.queues.get_mut(&pull.queue) else { return };
        if at.remove(&pull.filter, id) {
            pull.scanned = pull.scanned.max(at.offered);
        }
        if at.is_empty() {
            self.queues.remove(&pull.queue);
        }
    }

    /// Takes a pull out, to be answered by the caller.
    pub(super) fn take(&mut self, id: HoldId) -> Option<Pull> {
        self.leave_queue(id);
        let pull = self.pulls.remove(&id)?;
        self.deadlines.remove(&(pull.hold_until_ms.expect("a parked pull has a deadline"), id));
        self.connections.remove(&(pull.to.connection, id));
        Some(pull)
    }

    /// Takes out a pull that was woken, or whose deadline has come, as long as the turn has time for one.
    pub(super) fn take_due(&mut self, now_ms: i64) -> Option<Pull> {
        if self.answers_left == 0 {
            return None;
        }
        let pull = loop {
            match self.due.pop_front() {
                None => break self.take_expired(now_ms)?,
                Some(id) => match self.take(id) {
                    Some(pull) => break pull,
                    None => continue, // its connection has closed, or its deadline has come
                },
            }
        };
        self.answers_left -= 1;
        Some(pull)
    }

    fn take_expired(&mut self, now_ms: i64) -> Option<Pull> {
        let &(deadline_ms, id) = self.deadlines.first()?;
        if deadline_ms > now_ms { None } else { self.take(id) }
    }

    /// When the next pull is to be answered if no message comes; now, if some are due.
    pub(super) fn next_deadline_ms(&self, now_ms: i64) -> Option<i64> {
        if !self.due.is_empty() {
            return Some(now_ms);
        }
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Forgets the pulls of a closed connection.
    pub(super) fn on_closed(&mut self, connection: ConnectionId) {
        let all = (connection, HoldId(0))..=(connection, HoldId(u64::MAX));
        let ids: Vec<HoldId> = self.connections.range(all).map(|(_, id)| *id).collect();
        for id in ids {
            self.take(id);
        }
    }
}
