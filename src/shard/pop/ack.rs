//! What consumers say of messages in flight: done, or later.

use super::super::effects::Effects;
use super::super::limits::{BATCH_ACK_OFFSETS_MAX, POP_INVISIBLE_MS_MAX};
use super::super::records::kind;
use super::super::{Refusal, Request, Shard};
use super::flights::{Flight, Popped, encode_done, encode_popped};
use ringmq_protocol::body::{BatchAckBody, Body};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::name;
use ringmq_protocol::receipt::{PopSource, REVIVE_QUEUE_ORDERED, Receipt};
use ringmq_protocol::request::{AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse};
use ringmq_protocol::types::{QueueId, QueueOffset};
use ringmq_storage::TopicHash;
use std::collections::BTreeSet;

/// A message that someone has a receipt for.
struct Receipted<'a> {
    topic: String,
    queue_id: QueueId,
    offset: QueueOffset,
    receipt: Receipt<'a>,
}

impl Shard {
    /// ACK_MESSAGE (200051). What is not in flight any more, or by a later receipt, is no error: it was done before, or is
    /// given again.
    pub(in crate::shard) fn on_ack(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = AckMessageRequest::decode(&request.header.ext)?;
        let group = &*asked.consumer_group;
        let of =
            self.receipted(group, &asked.topic, asked.queue_id, asked.offset, &asked.extra_info, false)?;
        let pop_time = of.receipt.pop_time;
        let flight = self.pops.flights.receipted(group, &of.topic, of.queue_id, of.offset, pop_time);
        if of.receipt.is_ordered() && flight.is_none() {
            let next = self.offsets.get(group, &of.topic, of.queue_id).unwrap_or_default();
            if of.offset >= next {
                let remark = format!("offset is illegal: {} was not popped yet", of.offset);
                return Err(Refusal::illegal(remark));
            }
        }
        if flight.is_some() {
            let mut body = Vec::new();
            encode_done(group, &of.topic, of.queue_id, &[of.offset], &mut body);
            self.append_record(kind::DONE, &body)?;
            self.done(group, &of.topic, of.queue_id, &[of.offset], fx);
        }
        self.reply_when_durable(request.to, fx)
    }

    /// BATCH_ACK_MESSAGE (200151). What cannot be acknowledged is left out.
    pub(in crate::shard) fn on_batch_ack(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = BatchAckBody::from_json(request.body).map_err(Refusal::unreadable)?;
        if asked.acks.is_empty() {
            return Err(Refusal::new(ResponseCode::NO_MESSAGE, "the batch has no acknowledgement in it"));
        }
        let offsets: usize = asked.acks.iter().map(|ack| ack.offsets.byte_count() * 8).sum();
        if offsets > BATCH_ACK_OFFSETS_MAX {
            let remark =
                format!("the batch spans {offsets} offsets, at most {BATCH_ACK_OFFSETS_MAX} are allowed");
            return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
        }
        let mut body = Vec::new();
        let mut all = Vec::new();
        for ack in &asked.acks {
            let source = PopSource::from_flag(&ack.retry).unwrap_or_default();
            let topic = source.topic_of(&ack.consumer_group, &ack.topic);
            let (Ok(queue_id), Ok(start)) = (u32::try_from(ack.queue_id), u64::try_from(ack.start_offset))
            else {
                continue;
            };
            let queue_id = QueueId(queue_id);
            let Some(in_flight) = self.pops.flights.of(&ack.consumer_group, &topic, queue_id) else {
                continue;
            };
            let is_meant = |offset: &QueueOffset| {
                in_flight.flights.get(offset).is_some_and(|flight| flight.pop_time == ack.pop_time)
            };
            let offsets = ack.offsets.iter().filter_map(|bit| start.checked_add(bit)).map(QueueOffset);
            let offsets: Vec<QueueOffset> = offsets.filter(is_meant).collect();
            if !offsets.is_empty() {
                encode_done(&ack.consumer_group, &topic, queue_id, &offsets, &mut body);
                all.push((&ack.consumer_group, topic, queue_id, offsets));
            }
        }
        if !all.is_empty() {
            self.append_record(kind::DONE, &body)?;
            for (group, topic, queue_id, offsets) in all {
                self.done(group, &topic, queue_id, &offsets, fx);
            }
        }
        self.reply_when_durable(request.to, fx)
    }

    /// CHANGE_MESSAGE_INVISIBLETIME (200053): the time that a message is invisible begins anew, under a new receipt.
    pub(in crate::shard) fn on_change_invisible(&mut self, request: &Request<'_>) -> Result<(), Refusal> {
        let asked = ChangeInvisibleTimeRequest::decode(&request.header.ext)?;
        let group = &*asked.consumer_group;
        if !(0..=POP_INVISIBLE_MS_MAX).contains(&asked.invisible_time) {
            let remark =
                format!("invisibleTime {} must be 0 to {POP_INVISIBLE_MS_MAX} ms", asked.invisible_time);
            return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
        }
        let of =
            self.receipted(group, &asked.topic, asked.queue_id, asked.offset, &asked.extra_info, true)?;
        let old = self.pops.flights.receipted(group, &of.topic, of.queue_id, of.offset, of.receipt.pop_time);
        let old = old.ok_or_else(|| {
            Refusal::illegal(
                "the receipt does not count any more: its message was acknowledged, or its time is over and it is given again",
            )
        })?;
        let until = self.now.wall_ms + asked.invisible_time;
        let pop_time = match old.is_ordered {
            // All messages of an ordered pop keep the receipts that they have.
            true => old.pop_time,
            // So that the old receipt is another one.
            false => self.now.wall_ms.max(old.pop_time + 1),
        };
        let flight = Flight { pop_time, until, ..old };
        let attempt =
            self.pops.flights.of(group, &of.topic, of.queue_id).map_or("".into(), |of| of.attempt.clone());
        let popped = Popped {
            group,
            topic: &of.topic,
            queue_id: of.queue_id,
            next: self.offsets.get(group, &of.topic, of.queue_id).unwrap_or(QueueOffset(of.offset.0 + 1)),
            attempt: &attempt,
            flights: vec![(of.offset, flight)],
        };
        let mut body = Vec::new();
        encode_popped(&popped, &mut body);
        let block = self.append_record(kind::POPPED, &body)?;
        self.pops.flights.put(group, &of.topic, of.queue_id, &attempt, popped.flights);
        let response = ChangeInvisibleTimeResponse {
            pop_time,
            invisible_time: if old.is_ordered { until - pop_time } else { asked.invisible_time },
            revive_qid: if old.is_ordered { REVIVE_QUEUE_ORDERED } else { 0 },
        };
        self.pending(block).replies.push(request.to, ResponseCode::SUCCESS, None, &response, &[]);
        Ok(())
    }

    /// Which message a request with a receipt means. `is_last_plus_one_wrong`: the offset behind the last message is not allowed.
    fn receipted<'a>(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: i32,
        offset: i64,
        receipt: &'a str,
        is_last_plus_one_wrong: bool,
    ) -> Result<Receipted<'a>, Refusal> {
        let receipt = Receipt::parse(receipt).map_err(Refusal::illegal)?;
        let topic = match receipt.source {
            PopSource::Topic => topic.to_owned(),
            // Clients name the retry topic itself; proxies may leave that to us.
            _ if name::is_retry_topic(topic) => topic.to_owned(),
            source => source.topic_of(group, topic),
        };
        let known = self.topics.get(&topic).ok_or_else(|| Refusal::no_topic(&topic))?;
        let count = known.queue_count();
        let queue_id =
            u32::try_from(queue_id).ok().filter(|id| *id < count).map(QueueId).ok_or_else(|| {
                Refusal::illegal(format!(
                    "queueId[{queue_id}] is illegal, topic:[{topic}] has {count} queues"
                ))
            })?;
        let (min, max) = match self.known_queue(&topic, queue_id) {
            Some(queue) => self.bounds(queue)?,
            None => (QueueOffset(0), QueueOffset(0)),
        };
        let end = if is_last_plus_one_wrong { max.0 } else { max.0 + 1 };
        let offset = u64::try_from(offset).ok().filter(|offset| (min.0..end).contains(offset));
        let offset = offset.map(QueueOffset).ok_or_else(|| {
            let remark = format!("the offset is not in the queue, which has {min} to {max}");
            Refusal::new(ResponseCode::NO_MESSAGE, remark)
        })?;
        Ok(Receipted { topic, queue_id, offset, receipt })
    }

    /// Messages are done with, and the log has it. Where others had to wait for that, they look again.
    fn done(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: QueueId,
        offsets: &[QueueOffset],
        fx: &mut Effects,
    ) {
        let offsets: BTreeSet<QueueOffset> = offsets.iter().copied().collect();
        let had_to_wait = self.pops.flights.of(group, topic, queue_id).is_some_and(|of| {
            of.flights.len() >= super::POP_QUEUE_FLIGHTS_MAX
                || offsets.iter().any(|offset| of.flights.get(offset).is_some_and(|flight| flight.is_ordered))
        }) || self.pops.flights.len() >= super::POP_FLIGHTS_MAX;
        for offset in offsets {
            self.pops.flights.remove(group, topic, queue_id, offset..QueueOffset(offset.0 + 1));
        }
        if had_to_wait {
            self.wake_pops(TopicHash::of(topic), fx);
        }
    }
}
