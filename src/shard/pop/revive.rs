//! Messages that were popped and not acknowledged in time: each is stored again, in its group's retry topic, or in the dead letter
//! topic after the last retry.
//!
//!   time over ─▶ entry (memory, index pages) ─▶ bytes (tail, disk) ─▶ in one block: the message again, its old place done
//!
//! V1  The message in its new place and the record that its old place is done lie in one block: it is there exactly once.
//! V2  Popped in order, it stays where it is, and whoever pops next in order gets it again.
//! V3  What cannot be moved now is tried again; nobody waits for it but its own group.

use super::super::cold::{LogRange, Purpose};
use super::super::effects::Effects;
use super::super::limits::{POP_REVIVE_RETRY_MS, POP_REVIVES_MAX, POP_REVIVES_TURN_MAX};
use super::super::lookups::Waiter;
use super::super::records::kind;
use super::super::retry::{self, Again};
use super::super::{Refusal, Shard};
use super::flights::{FlightsId, encode_done};
use bytes::Bytes;
use ringmq_protocol::body::{TopicConfig, perm};
use ringmq_protocol::message::{Limits, StoredMessage};
use ringmq_protocol::name;
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::types::{QueueId, QueueOffset};
use ringmq_storage::TopicHash;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::rc::Rc;

/// A message on its way to the retry topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::shard) struct Revive {
    id: FlightsId,
    offset: QueueOffset,
    pop_time: i64,
}

/// Whose message it is.
struct Owner {
    group: Rc<str>,
    topic: Rc<str>,
    queue_id: QueueId,
}

impl Shard {
    /// Once a turn: messages whose time is over.
    pub(in crate::shard) fn expire_flights(&mut self, fx: &mut Effects) {
        if self.log.poisoned().is_some() || self.now.monotonic_ms < self.pops.revive_again_ms {
            return;
        }
        let mut free_again: BTreeSet<TopicHash> = BTreeSet::new();
        for _ in 0..POP_REVIVES_TURN_MAX {
            if self.pops.reviving >= POP_REVIVES_MAX {
                break;
            }
            let Some((id, offset)) = self.pops.flights.take_due(self.now.wall_ms) else { break };
            let Some(of) = self.pops.flights.get(id) else { continue };
            let Some(flight) = of.flights.get(&offset) else { continue };
            if flight.until > self.now.wall_ms {
                continue; // changed since
            }
            if flight.is_ordered {
                free_again.insert(TopicHash::of(&of.topic)); // V2
                continue;
            }
            let revive = Revive { id, offset, pop_time: flight.pop_time };
            self.pops.reviving += 1;
            self.revive(revive, fx);
        }
        for topic in free_again {
            self.wake_pops(topic, fx);
        }
    }

    /// Monotonic time at which there is something to do for messages in flight.
    pub(in crate::shard) fn next_flight_ms(&self) -> Option<i64> {
        if self.log.poisoned().is_some() || self.pops.reviving >= POP_REVIVES_MAX {
            return None; // what is under way ends, and then it is looked again
        }
        let due = self.pops.flights.next_due()?;
        let due_ms = self.now.monotonic_ms + (due - self.now.wall_ms).max(0);
        Some(due_ms.max(self.pops.revive_again_ms))
    }

    /// Whose message it is, if it is still in flight as it was when its time was over.
    fn owner(&self, revive: &Revive) -> Option<Owner> {
        let of = self.pops.flights.get(revive.id)?;
        let flight = of.flights.get(&revive.offset)?;
        let is_same = flight.pop_time == revive.pop_time && flight.until <= self.now.wall_ms;
        is_same.then(|| Owner { group: of.group.clone(), topic: of.topic.clone(), queue_id: of.queue_id })
    }

    /// Finds a message and gets its bytes.
    pub(in crate::shard) fn revive(&mut self, revive: Revive, fx: &mut Effects) {
        let Some(owner) = self.owner(&revive) else { return self.pops.reviving -= 1 };
        let Some(queue) = self.known_queue(&owner.topic, owner.queue_id) else {
            return self.on_revived(revive, None, fx);
        };
        match self.entry_at(queue, revive.offset) {
            Err(missing) => self.wait_for(missing, Waiter::Revive(revive), fx),
            // It went with its segment.
            Ok(None) => self.on_revived(revive, None, fx),
            Ok(Some((entry, block))) => match self.range_of(revive.offset, entry, block) {
                (_, Some(bytes)) => self.on_revived(revive, Some(bytes), fx),
                (range @ LogRange { block, .. }, None) => {
                    self.read_cold(block, Purpose::Revive { revive, range }, fx);
                }
            },
        }
    }

    /// The message was read, or there is none.
    pub(in crate::shard) fn on_revived(&mut self, revive: Revive, bytes: Option<Bytes>, fx: &mut Effects) {
        self.pops.reviving -= 1;
        let Some(owner) = self.owner(&revive) else { return };
        let mut done = Vec::new();
        encode_done(&owner.group, &owner.topic, owner.queue_id, &[revive.offset], &mut done);
        let message = bytes.as_deref().and_then(|bytes| StoredMessage::parse(bytes).ok());
        let moved = match message {
            Some((message, _)) => self.move_on(&owner, &message, &done),
            None => self.append_record(kind::DONE, &done).map(|_| ()),
        };
        match moved {
            Ok(()) => {
                let offsets = revive.offset..QueueOffset(revive.offset.0 + 1);
                self.pops.flights.remove(&owner.group, &owner.topic, owner.queue_id, offsets);
            }
            Err(refusal) => {
                if self.pops.revive_again_ms <= self.now.monotonic_ms && self.log.poisoned().is_none() {
                    fx.log_error(format!(
                        "{}: a message popped by group {} from {} cannot be moved to be given again, will try again: {}",
                        self.config.broker_name, owner.group, owner.topic, refusal.remark
                    ));
                }
                self.revive_later(revive);
            }
        }
    }

    /// It could not be read or stored: later.
    pub(in crate::shard) fn revive_later(&mut self, revive: Revive) {
        self.pops.flights.defer(revive.id, revive.offset, self.now.wall_ms);
        self.pops.revive_again_ms = self.now.monotonic_ms + POP_REVIVE_RETRY_MS;
    }

    /// The same for one whose read did not begin.
    pub(in crate::shard) fn revive_failed(&mut self, revive: Revive) {
        self.pops.reviving -= 1;
        self.revive_later(revive);
    }

    /// V1.
    fn move_on(&mut self, owner: &Owner, message: &StoredMessage<'_>, done: &[u8]) -> Result<(), Refusal> {
        let own_retry = name::pop_retry_topic(&owner.group, "");
        let topic = owner.topic.strip_prefix(&*own_retry).unwrap_or(&owner.topic);
        let retry_max = self.groups.configs.get(&*owner.group).map_or(0, |config| config.retry_max_times);
        let is_dead = message.reconsume_times() >= retry_max;
        let first_pop_time = message.property(names::FIRST_POP_TIME).map(str::to_owned);
        let popped_at = self.pops.flights.of(&owner.group, &owner.topic, owner.queue_id);
        let popped_at = popped_at.and_then(|of| of.flights.get(&message.queue_offset()));
        let first_pop_time = first_pop_time.or_else(|| popped_at.map(|flight| flight.pop_time.to_string()));
        let mut stored = Vec::new();
        let is_ours =
            |name: &[u8]| is_dead && retry::is_of_origin(name) || matches!(name, b"1ST_POP_TIME" | b"POP_CK");
        properties::put_filtered(&mut stored, message.properties(), |name| !is_ours(name));
        if let Some(time) = &first_pop_time {
            // A client can have sent the property with anything in it: then it is left out.
            let _ = properties::put(&mut stored, names::FIRST_POP_TIME, time);
        }
        let place = if is_dead {
            retry::put_origin(&mut stored, message, topic);
            self.dead_letter_place(&owner.group)?
        } else {
            let retry_topic = name::pop_retry_topic(&owner.group, topic);
            if self.topics.get(&retry_topic).is_none() {
                self.put_topic(TopicConfig::new(&*retry_topic, 1, perm::READ | perm::WRITE), None)?;
            }
            self.place(&retry_topic, QueueId(0), None).expect("it is there or was just made")
        };
        let reconsume_times = message.reconsume_times().saturating_add(1);
        let mut again = Again { message: *message, place, reconsume_times, properties: Cow::Owned(stored) };
        if again.parts(self, &[&again.properties]).check(&Limits::default()).is_err() {
            // No room for what was added; without it the message passed before.
            again.properties = Cow::Borrowed(message.properties().as_bytes());
        }
        self.stage_together(&[again], &[(kind::DONE, done)])?;
        Ok(())
    }
}
