//! Whether the oldest segment of the log may go. That it is due is decided by the housekeeping thread, from its age and
//! the room that there is; here is what stands against it.
//!
//!   on_release → may it go? → forgotten → the last read of it has ended → released
//!
//! R1  What a start needs stays: segments that are not sealed, and those from the newest complete checkpoint on.
//! R2  What an online group has still to consume stays, unless retention is forced.
//! R3  A segment with a delayed message that is still to be delivered stays, also when retention is forced: it has not been there
//!     for anyone yet.
//! R4  A segment with a popped message that may be given again stays, unless retention is forced.
//! R5  A segment is released when nothing here will ever read its files again.

use super::effects::{Effects, News};
use super::lookups::Waiter;
use super::{Shard, cold};
use ringmq_protocol::body::MessageModel;
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset};
use ringmq_storage::{Missing, QueueIx, SegmentBase};
use std::rc::Rc;

impl Shard {
    /// The housekeeping thread wants the oldest segment to go.
    pub fn on_release(&mut self, segment: SegmentBase, forced: bool, fx: &mut Effects) {
        let reason = match self.reason_to_keep(segment, forced) {
            Ok(None) => {
                self.sealed.remove_below(SegmentBase(segment.0 + self.log.config().segment_bytes));
                self.releases += 1;
                self.releasing.push(segment);
                return;
            }
            Ok(Some(reason)) => reason,
            Err(missing) => return self.wait_for(missing, Waiter::Release { segment, forced }, fx),
        };
        fx.news.push(News::Kept { segment, reason });
    }

    fn reason_to_keep(&mut self, segment: SegmentBase, forced: bool) -> Result<Option<String>, Missing> {
        let oldest = self.sealed.headers().next().filter(|header| header.base == segment);
        let Some(end) = oldest.map(|header| header.end.position) else {
            return Ok(Some("it is not the oldest sealed segment".to_owned()));
        };
        if self.oldest_needed().is_none_or(|needed| segment >= needed) {
            return Ok(Some("the newest complete checkpoint is not behind it".to_owned()));
        }
        if let Some(level) = self.undelivered_before(end)? {
            return Ok(Some(format!("messages of delay level {} are still to be delivered", level.0)));
        }
        if forced {
            return Ok(None);
        }
        if let Some(reason) = self.flight_before(end)? {
            return Ok(Some(reason));
        }
        let mut missing = Missing::default();
        for (group, topic) in self.groups.online_subscriptions(MessageModel::Clustering) {
            let Some(config) = self.topics.get(&topic) else { continue };
            for queue_id in (0..config.queue_count()).map(QueueId) {
                let Some(queue) = self.known_queue(&topic, queue_id) else { continue };
                let next = self.offsets.get(&group, &topic, queue_id).unwrap_or_default();
                match self.is_before(queue, next, end) {
                    Ok(true) => {
                        // Without the offset: the reason is said again when it is another, not whenever the group moves.
                        return Ok(Some(format!(
                            "group {group} is online and has still to consume queue {queue_id} of topic {topic}"
                        )));
                    }
                    Ok(false) => {}
                    Err(more) => missing.0.extend(more.0),
                }
            }
        }
        if missing.0.is_empty() { Ok(None) } else { Err(missing) }
    }

    /// Why messages in flight that were stored before `end` keep it.
    fn flight_before(&mut self, end: PhysicalOffset) -> Result<Option<String>, Missing> {
        let mut missing = Missing::default();
        for (group, topic, queue, first) in self.first_flights(|_| true) {
            match self.is_before(queue, first, end) {
                Ok(true) => {
                    return Ok(Some(format!("messages of topic {topic} are in flight for group {group}")));
                }
                Ok(false) => {}
                Err(more) => missing.0.extend(more.0),
            }
        }
        if missing.0.is_empty() { Ok(None) } else { Err(missing) }
    }

    /// The first message in flight of each queue and group of the topics that are meant. What was popped in order and is due to be
    /// popped again counts while its group is online: nobody else could want it.
    pub(super) fn first_flights(
        &self,
        is_meant: impl Fn(&str) -> bool,
    ) -> Vec<(Rc<str>, Rc<str>, QueueIx, QueueOffset)> {
        let now = self.now.wall_ms;
        let mut firsts = Vec::new();
        for of in self.pops.flights.all().filter(|of| is_meant(&of.topic)) {
            let is_online = self.groups.consumer_group(&of.group).is_some();
            let mut wanted = of.flights.iter().filter(|(_, f)| !f.is_ordered || f.until > now || is_online);
            if let Some((first, _)) = wanted.next()
                && let Some(queue) = self.known_queue(&of.topic, of.queue_id)
            {
                firsts.push((of.group.clone(), of.topic.clone(), queue, *first));
            }
        }
        firsts
    }

    /// Whether the first message of a queue from an offset on was stored before `end`, in a sealed segment.
    pub(super) fn is_before(
        &mut self,
        queue: QueueIx,
        from: QueueOffset,
        end: PhysicalOffset,
    ) -> Result<bool, Missing> {
        let entries = self.sealed_entries(queue, from, 1)?;
        Ok(entries.first().is_some_and(|(_, sealed)| sealed.entry.position < end))
    }

    /// Once a turn: segments whose last read has ended are handed over.
    pub(super) fn release_segments(&mut self, fx: &mut Effects) {
        let (cold, lookups): (&cold::ColdReads, _) = (&self.cold, &self.lookups);
        self.releasing.retain(|segment| {
            let is_read = cold.is_reading(*segment) || lookups.is_reading(*segment);
            if !is_read {
                fx.news.push(News::Released(*segment));
            }
            is_read
        });
    }
}
