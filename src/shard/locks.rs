//! Queue locks: who may consume a queue in strict order. A lock lives 60 s after its holder last asked for it.

use super::limits::LOCK_MS;
use ringmq_protocol::body::MessageQueue;
use std::collections::BTreeMap;

struct Lock {
    client_id: String,
    taken_ms: i64,
}

/// Locks by group and queue, as the client names them.
#[derive(Default)]
pub(super) struct Locks {
    groups: BTreeMap<String, BTreeMap<MessageQueue, Lock>>,
}

impl Locks {
    /// Takes or renews each queue that no other client holds, and answers which of them `client_id` holds now.
    pub(super) fn lock(
        &mut self,
        group: &str,
        client_id: &str,
        queues: Vec<MessageQueue>,
        now_ms: i64,
    ) -> Vec<MessageQueue> {
        let held = self.groups.entry(group.to_owned()).or_default();
        held.retain(|_, lock| now_ms - lock.taken_ms < LOCK_MS);
        queues
            .into_iter()
            .filter(|queue| {
                let lock = held
                    .entry(queue.clone())
                    .or_insert_with(|| Lock { client_id: client_id.to_owned(), taken_ms: now_ms });
                let mine = lock.client_id == client_id;
                if mine {
                    lock.taken_ms = now_ms;
                }
                mine
            })
            .collect()
    }

    /// True if any client of the group holds a queue.
    pub(super) fn is_any_held(&self, group: &str, now_ms: i64) -> bool {
        let held = self.groups.get(group);
        held.is_some_and(|held| held.values().any(|lock| now_ms - lock.taken_ms < LOCK_MS))
    }

    /// Releases what `client_id` holds of `queues`.
    pub(super) fn unlock(&mut self, group: &str, client_id: &str, queues: &[MessageQueue]) {
        let Some(held) = self.groups.get_mut(group) else { return };
        for queue in queues {
            if held.get(queue).is_some_and(|lock| lock.client_id == client_id) {
                held.remove(queue);
            }
        }
        if held.is_empty() {
            self.groups.remove(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(id: i32) -> MessageQueue {
        MessageQueue::new("T", "b", id)
    }

    #[test]
    fn a_lock_is_exclusive_until_it_expires_or_is_released() {
        let mut locks = Locks::default();
        assert_eq!(locks.lock("g", "c1", vec![queue(0), queue(1)], 0), [queue(0), queue(1)]);
        assert_eq!(locks.lock("g", "c2", vec![queue(0), queue(2)], LOCK_MS - 1), [queue(2)]);
        assert_eq!(locks.lock("g", "c2", vec![queue(0)], LOCK_MS), [queue(0)]);
        locks.unlock("g", "c1", &[queue(0)]);
        assert!(locks.lock("g", "c1", vec![queue(0)], LOCK_MS).is_empty());
        locks.unlock("g", "c2", &[queue(0), queue(2)]);
        assert_eq!(locks.lock("g", "c1", vec![queue(0)], LOCK_MS), [queue(0)]);
    }

    #[test]
    fn a_group_holds_something_until_its_last_lock_is_gone() {
        let mut locks = Locks::default();
        assert!(!locks.is_any_held("g", 0));
        locks.lock("g", "c1", vec![queue(0)], 0);
        locks.lock("g", "c2", vec![queue(1)], 10);
        assert!(!locks.is_any_held("other", 10));
        assert!(locks.is_any_held("g", LOCK_MS + 9), "the second one lives");
        assert!(!locks.is_any_held("g", LOCK_MS + 10));
        locks.unlock("g", "c2", &[queue(1)]);
        assert!(locks.is_any_held("g", LOCK_MS - 1) && !locks.is_any_held("g", LOCK_MS));
    }
}
