//! Topics that keep their messages for a shorter time than the broker does. Their messages are not delivered any more as soon as
//! their time is over; here they are given up for good, so that a segment can be rewritten without them.
//!
//!   on_give_up → whose time is over, and who is still needed? → a record ──write──▶ GivenUp
//!
//! G1  What was given up does not come back, whatever becomes of the topic's time or of the clock: no first offset is ever
//!     before it. So the housekeeping thread hears of it only when the record is durable.
//! G2  What a start may read stays as it is: segments from the newest complete checkpoint on.
//! G3  What is in flight stays, unless retention is forced; and delayed messages, which have not been there for anyone.
//! G4  Groups that have still to consume are not asked: they are not given these messages any more.

use super::effects::{Effects, News};
use super::lookups::Waiter;
use super::records::{self, kind};
use super::{Announcement, Refusal, Shard};
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::name::RMQ_SYS_SCHEDULE_TOPIC;
use ringmq_protocol::types::StoreTimestamp;
use ringmq_storage::{Missing, SegmentBase};
use std::collections::BTreeSet;

impl Shard {
    /// The housekeeping thread would rewrite a segment without the messages of these topics. The answer is `GivenUp`, with those
    /// that may be left out.
    pub fn on_give_up(&mut self, segment: SegmentBase, topics: Vec<String>, forced: bool, fx: &mut Effects) {
        let over = match self.who_is_over(segment, &topics, forced) {
            Ok(over) => over,
            Err(missing) => {
                return self.wait_for(missing, Waiter::GiveUp { segment, topics, forced }, fx);
            }
        };
        let before = self.sealed.header(segment).map_or(0, |header| header.last_timestamp.0 + 1);
        let before = StoreTimestamp(before);
        let is_known = |topic: &&String| self.topics.get(topic).is_some_and(|t| t.given_up >= before);
        let unknown: Vec<String> = over.iter().filter(|topic| !is_known(topic)).cloned().collect();
        let topics = match self.give_up(&unknown, before) {
            Ok(()) => over,
            // A log that takes no record now may take one when it is asked again.
            Err(_) => Vec::new(),
        };
        let news = News::GivenUp { segment, topics };
        match self.last_staged() {
            Some(block) => {
                self.pending(block).announcements.push(Announcement { news, waiter: None });
            }
            None => fx.news.push(news),
        }
    }

    /// Those of the topics whose messages in a segment nobody can ask for, and that nothing else needs.
    fn who_is_over(
        &mut self,
        segment: SegmentBase,
        topics: &[String],
        forced: bool,
    ) -> Result<Vec<String>, Missing> {
        let Some(header) = self.sealed.header(segment) else { return Ok(Vec::new()) };
        let (end, last) = (header.end.position, header.last_timestamp);
        if self.oldest_needed().is_none_or(|needed| segment >= needed) {
            return Ok(Vec::new()); // G2
        }
        let now_ms = self.now.wall_ms;
        let is_over = |topic: &&String| {
            let oldest = self.topics.get(topic).and_then(|topic| topic.oldest(now_ms));
            oldest.is_some_and(|oldest| last < oldest) && **topic != RMQ_SYS_SCHEDULE_TOPIC
        };
        let mut over: BTreeSet<String> = topics.iter().filter(is_over).cloned().collect();
        if !forced {
            let mut missing = Missing::default();
            for (_, topic, queue, first) in self.first_flights(|topic| over.contains(topic)) {
                match self.is_before(queue, first, end) {
                    Ok(true) => drop(over.remove(&*topic)),
                    Ok(false) => {}
                    Err(more) => missing.0.extend(more.0),
                }
            }
            if !missing.0.is_empty() {
                return Err(missing);
            }
        }
        Ok(over.into_iter().collect())
    }

    /// G1: the messages of these topics that were stored before a time.
    pub(super) fn give_up(&mut self, topics: &[String], before: StoreTimestamp) -> Result<(), Refusal> {
        let bodies = records::encode_given_up(topics.iter().map(|topic| (topic.as_str(), before)));
        for body in bodies {
            self.append_record(kind::GIVEN_UP, &body)?;
        }
        for name in topics {
            if let Some(topic) = self.topics.get_mut(name) {
                topic.given_up = topic.given_up.max(before);
            }
            self.refresh_queues(name);
        }
        Ok(())
    }

    /// What is known of a topic's own time goes to its queues.
    pub(super) fn refresh_queues(&mut self, topic: &str) {
        let Some(topic) = self.topics.get(topic) else { return };
        for queue in topic.known_queues() {
            let state = &mut self.queues[queue.0 as usize];
            topic.pass_times(state);
            state.min_releases = None;
        }
    }

    /// A segment was rewritten: so many bytes have come back.
    pub fn on_rewritten(&mut self, freed_bytes: u64) {
        self.counts.room_given_back += freed_bytes;
    }
}

/// Whether bytes that an index names are a message: false for a gap, or a part of one.
pub(super) fn is_message(bytes: &[u8]) -> bool {
    StoredMessage::parse(bytes).is_ok()
}
