//! Queue locks: who may consume a queue in strict order (LOCK_BATCH_MQ 41, UNLOCK_BATCH_MQ 42).
//!
//! L1  A lock lives 60 s after its holder last asked for it; after a start, 60 s from then.
//! L2  Taking and giving up are records. Nobody is told that he holds a lock before the record of its taking is durable.
//! L3  Renewing is no record: what it changes ends with the process, see L1.

use super::effects::Effects;
use super::limits::{LOCK_MS, LOCKS_MAX};
use super::records::{self, LockChange, kind};
use super::{Refusal, Request, Shard};
use ringmq_protocol::body::{Body, LockBatchBody, LockBatchResult, MessageQueue};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::types::PhysicalOffset;
use std::collections::BTreeMap;

struct Lock {
    client_id: String,
    /// Monotonic time of its holder's last request; `None` if it comes from the log and nobody asked since the start.
    renewed_ms: Option<i64>,
    /// Where the log ended when the record of its taking was in it.
    recorded: PhysicalOffset,
}

/// Locks by group and queue, as the client names them.
#[derive(Default)]
pub(super) struct Locks {
    groups: BTreeMap<String, BTreeMap<MessageQueue, Lock>>,
    count: usize,
    /// Monotonic time of the first turn.
    started_ms: Option<i64>,
}

impl Locks {
    /// The first turn begins.
    pub(super) fn on_started(&mut self, now_ms: i64) {
        self.started_ms.get_or_insert(now_ms);
    }

    /// True if any client of the group holds a queue.
    pub(super) fn is_any_held(&self, group: &str, now_ms: i64) -> bool {
        self.groups.get(group).is_some_and(|held| held.values().any(|lock| self.is_live(lock, now_ms)))
    }

    fn is_live(&self, lock: &Lock, now_ms: i64) -> bool {
        lock.renewed_ms.or(self.started_ms).is_none_or(|since_ms| now_ms - since_ms < LOCK_MS)
    }

    /// Who holds a queue now.
    fn holder(&self, group: &str, queue: &MessageQueue, now_ms: i64) -> Option<&Lock> {
        self.groups.get(group)?.get(queue).filter(|lock| self.is_live(lock, now_ms))
    }

    /// Forgets the locks whose time is over.
    fn expire(&mut self, now_ms: i64) {
        let mut groups = std::mem::take(&mut self.groups);
        for held in groups.values_mut() {
            held.retain(|_, lock| self.is_live(lock, now_ms));
        }
        groups.retain(|_, held| !held.is_empty());
        self.count = groups.values().map(BTreeMap::len).sum();
        self.groups = groups;
    }

    fn take(&mut self, group: &str, queue: MessageQueue, lock: Lock) {
        let held = match self.groups.get_mut(group) {
            Some(held) => held,
            None => self.groups.entry(group.to_owned()).or_default(),
        };
        self.count += usize::from(held.insert(queue, lock).is_none());
    }

    fn give_up(&mut self, group: &str, queue: &MessageQueue) {
        if let Some(held) = self.groups.get_mut(group) {
            self.count -= usize::from(held.remove(queue).is_some());
            if held.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// What a record of the log says.
    pub(super) fn apply(&mut self, change: LockChange<'_>) {
        for queue in change.queues {
            if change.is_taken {
                let client_id = change.client_id.to_owned();
                self.take(
                    change.group,
                    queue,
                    Lock { client_id, renewed_ms: None, recorded: PhysicalOffset(0) },
                );
            } else {
                self.give_up(change.group, &queue);
            }
        }
    }

    pub(super) fn remove_group(&mut self, group: &str) {
        self.count -= self.groups.remove(group).map_or(0, |held| held.len());
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// The live locks of a group as records, one or more for each holder.
    pub(super) fn encode(&self, group: &str, now_ms: i64) -> Vec<Vec<u8>> {
        let mut holders: BTreeMap<&str, Vec<&MessageQueue>> = BTreeMap::new();
        for (queue, lock) in self.groups.get(group).into_iter().flatten() {
            if self.is_live(lock, now_ms) {
                holders.entry(&lock.client_id).or_default().push(queue);
            }
        }
        let bodies = holders
            .into_iter()
            .map(|(client_id, queues)| records::encode_locks(true, client_id, group, queues.into_iter()));
        bodies.flatten().collect()
    }
}

impl Shard {
    /// LOCK_BATCH_MQ (41): takes or renews each queue that no other client holds, and answers which of them the client
    /// holds now.
    pub(super) fn on_lock(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = read_lock_batch(request.body)?;
        let (group, now_ms) = (&*asked.consumer_group, self.now.monotonic_ms);
        let (mut mine, mut taken) = (Vec::new(), Vec::new());
        for queue in asked.mq_set {
            match self.locks.holder(group, &queue, now_ms) {
                Some(lock) if lock.client_id == asked.client_id => mine.push(queue),
                Some(_) => {}
                None => taken.push(queue),
            }
        }
        taken.sort_unstable();
        taken.dedup();
        if self.locks.count + taken.len() > LOCKS_MAX {
            self.locks.expire(now_ms);
            if self.locks.count + taken.len() > LOCKS_MAX {
                let remark = format!("[OVERLOAD]{LOCKS_MAX} queues are locked, which is the limit");
                return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
            }
        }
        for body in records::encode_locks(true, &asked.client_id, group, taken.iter()) {
            self.append_record(kind::LOCKS, &body)?;
        }
        let end = self.log.end();
        let is_durable = |lock: &Lock| lock.recorded <= self.log.durable();
        let mut may_answer = taken.is_empty();
        for queue in &mine {
            let lock =
                self.locks.groups.get_mut(group).and_then(|held| held.get_mut(queue)).expect("seen above");
            may_answer &= is_durable(lock);
            lock.renewed_ms = Some(now_ms);
        }
        for queue in &taken {
            let client_id = asked.client_id.clone();
            self.locks.take(
                group,
                queue.clone(),
                Lock { client_id, renewed_ms: Some(now_ms), recorded: end },
            );
        }
        mine.append(&mut taken);
        let body = LockBatchResult { lock_ok_mq_set: mine }.to_json();
        if may_answer {
            fx.replies.push(request.to, ResponseCode::SUCCESS, None, &(), &body);
            return Ok(());
        }
        self.body_when_durable(request.to, &body, fx)
    }

    /// UNLOCK_BATCH_MQ (42): gives up those of the queues that the client holds.
    pub(super) fn on_unlock(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = read_lock_batch(request.body)?;
        let (group, now_ms) = (&*asked.consumer_group, self.now.monotonic_ms);
        let is_mine = |queue: &&MessageQueue| {
            self.locks.holder(group, queue, now_ms).is_some_and(|lock| lock.client_id == asked.client_id)
        };
        let mut mine: Vec<&MessageQueue> = asked.mq_set.iter().filter(is_mine).collect();
        mine.sort_unstable();
        mine.dedup();
        for body in records::encode_locks(false, &asked.client_id, group, mine.iter().copied()) {
            self.append_record(kind::LOCKS, &body)?;
        }
        mine.iter().for_each(|queue| self.locks.give_up(group, queue));
        self.reply_when_durable(request.to, fx)
    }
}

fn read_lock_batch(body: &[u8]) -> Result<LockBatchBody, Refusal> {
    let asked = LockBatchBody::from_json(body).map_err(Refusal::unreadable)?;
    let names = asked.mq_set.iter().flat_map(|queue| [&queue.topic, &queue.broker_name]);
    let longest = names.chain([&asked.client_id, &asked.consumer_group]).map(String::len).max().unwrap_or(0);
    if longest > records::NAME_BYTES_MAX {
        let most = records::NAME_BYTES_MAX;
        return Err(Refusal::invalid(format!(
            "a name of {longest} bytes is too long, at most {most} are allowed"
        )));
    }
    Ok(asked)
}
