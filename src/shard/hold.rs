//! Held pulls: requests at the end of their queue that wait for a message.
//!
//! H1  A held pull is answered exactly once: by data, by its deadline, or not at all because its connection closed.
//! H2  A held pull costs nothing while nothing happens to its queue.

use super::effects::{ConnectionId, ReplyTo};
use super::filter::Filter;
use ringmq_protocol::types::QueueOffset;
use ringmq_storage::QueueIx;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A checked pull request: what is needed to evaluate it, now or later.
#[derive(Clone, Debug)]
pub(super) struct Pull {
    pub(super) to: ReplyTo,
    pub(super) queue: QueueIx,
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

#[derive(Default)]
pub(super) struct Holds {
    pulls: BTreeMap<HoldId, Pull>,
    deadlines: BTreeSet<(i64, HoldId)>,
    queues: FxHashMap<QueueIx, BTreeSet<HoldId>>,
    connections: FxHashMap<ConnectionId, BTreeSet<HoldId>>,
    next_id: u64,
}

impl Holds {
    pub(super) fn len(&self) -> usize {
        self.pulls.len()
    }

    /// Parks a pull until `deadline_ms`.
    pub(super) fn park(&mut self, pull: Pull, deadline_ms: i64) {
        let id = HoldId(self.next_id);
        self.next_id += 1;
        self.deadlines.insert((deadline_ms, id));
        self.queues.entry(pull.queue).or_default().insert(id);
        self.connections.entry(pull.to.connection).or_default().insert(id);
        self.pulls.insert(id, Pull { hold_until_ms: Some(deadline_ms), ..pull });
    }

    /// The pulls that wait at a queue, oldest first.
    pub(super) fn at(&self, queue: QueueIx) -> Vec<HoldId> {
        self.queues.get(&queue).map(|ids| ids.iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn is_any_at(&self, queue: QueueIx) -> bool {
        self.queues.contains_key(&queue)
    }

    pub(super) fn get(&self, id: HoldId) -> Option<&Pull> {
        self.pulls.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: HoldId) -> Option<&mut Pull> {
        self.pulls.get_mut(&id)
    }

    /// Takes a pull out, to be answered by the caller.
    pub(super) fn take(&mut self, id: HoldId) -> Option<Pull> {
        let pull = self.pulls.remove(&id)?;
        self.deadlines.remove(&(pull.hold_until_ms.expect("a parked pull has a deadline"), id));
        remove_from(&mut self.queues, pull.queue, id);
        remove_from(&mut self.connections, pull.to.connection, id);
        Some(pull)
    }

    /// Takes out one pull whose deadline has come.
    pub(super) fn take_expired(&mut self, now_ms: i64) -> Option<Pull> {
        let &(deadline_ms, id) = self.deadlines.first()?;
        if deadline_ms > now_ms { None } else { self.take(id) }
    }

    pub(super) fn next_deadline_ms(&self) -> Option<i64> {
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Forgets the pulls of a closed connection.
    pub(super) fn on_closed(&mut self, connection: ConnectionId) {
        for id in self.connections.remove(&connection).unwrap_or_default() {
            self.take(id);
        }
    }
}

fn remove_from<K: std::hash::Hash + Eq>(map: &mut FxHashMap<K, BTreeSet<HoldId>>, key: K, id: HoldId) {
    if let Some(ids) = map.get_mut(&key) {
        ids.remove(&id);
        if ids.is_empty() {
            map.remove(&key);
        }
    }
}
