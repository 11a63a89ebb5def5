//! Look-ups: offsets of queues and groups, and a message by its place in the log.

use super::cold::Purpose;
use super::effects::{Effects, ReplyTo};
use super::limits::{RECENT_BYTES, TOPIC_QUEUES_MAX};
use super::offsets::Commit;
use super::{Refusal, Request, Shard};
use bytes::Bytes;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::request::{
    BoundaryType, GetEarliestMsgStoretimeRequest, GetEarliestMsgStoretimeResponse, GetMaxOffsetRequest,
    GetMinOffsetRequest, OffsetResponse, QueryConsumerOffsetRequest, SearchOffsetRequest,
    UpdateConsumerOffsetRequest, ViewMessageByIdRequest,
};
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, StoreTimestamp};
use ringmq_storage::{Boundary, Missing, QueueIx};

impl Shard {
    /// GET_MAX_OFFSET (30): the offset that the next message to become visible will have.
    pub(super) fn on_max_offset(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = GetMaxOffsetRequest::decode(&request.header.ext)?;
        let queue = self.known_queue(&asked.topic, asked.queue_id);
        let offset = queue.map_or(QueueOffset(0), |queue| self.queues[queue.0 as usize].visible);
        reply_offset(request.to, offset, fx);
        Ok(())
    }

    /// GET_MIN_OFFSET (31).
    pub(super) fn on_min_offset(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = GetMinOffsetRequest::decode(&request.header.ext)?;
        let offset = match self.known_queue(&asked.topic, asked.queue_id) {
            Some(queue) => self.bounds(queue)?.0,
            None => QueueOffset(0),
        };
        reply_offset(request.to, offset, fx);
        Ok(())
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP (29), by store time.
    pub(super) fn on_search_offset(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = SearchOffsetRequest::decode(&request.header.ext)?;
        let boundary = match asked.boundary_type {
            BoundaryType::Lower => Boundary::Lower,
            BoundaryType::Upper => Boundary::Upper,
        };
        let offset = match self.known_queue(&asked.topic, asked.queue_id) {
            Some(queue) => self.offset_by_time(queue, StoreTimestamp(asked.timestamp), boundary)?,
            None => QueueOffset(0),
        };
        reply_offset(request.to, offset, fx);
        Ok(())
    }

    /// The offset for a store time.
    ///
    /// | case | Lower | Upper |
    /// |---|---|---|
    /// | exact matches | first of them | last of them |
    /// | between two messages | the later one | the earlier one |
    /// | after the last message | the next offset | the last message |
    /// | before the first | the minimum | the minimum |
    /// | no message | 0 | 0 |
    pub(super) fn offset_by_time(
        &mut self,
        queue: QueueIx,
        time: StoreTimestamp,
        boundary: Boundary,
    ) -> Result<QueueOffset, Missing> {
        let (min, max) = self.bounds(queue)?;
        let Some((sealed_queue, _)) = self.index.sealed_queue(queue).filter(|_| min < max) else {
            return Ok(QueueOffset(0));
        };
        let only_later = boundary == Boundary::Upper;
        let first = self.first_at_time(queue, time, only_later, max)?.unwrap_or(max).max(min);
        if boundary == Boundary::Lower {
            return Ok(first);
        }
        let previous = match self.index.previous(queue, first) {
            Some(offset) => Some(offset),
            None => self.sealed.previous(sealed_queue, first)?,
        };
        Ok(previous.map_or(min, |offset| offset.max(min)))
    }

    /// GET_EARLIEST_MSG_STORETIME (32).
    pub(super) fn on_earliest_store_time(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = GetEarliestMsgStoretimeRequest::decode(&request.header.ext)?;
        let timestamp = match self.known_queue(&asked.topic, asked.queue_id) {
            Some(queue) => {
                let (min, max) = self.bounds(queue)?;
                self.store_time(queue, min, max)?
            }
            None => None,
        };
        let response =
            GetEarliestMsgStoretimeResponse { timestamp: timestamp.map_or(-1, |timestamp| timestamp.0) };
        fx.replies.push(request.to, ResponseCode::SUCCESS, None, &response, &[]);
        Ok(())
    }

    /// The first message below `until` that was stored at `time` or later, or only later.
    pub(super) fn first_at_time(
        &mut self,
        queue: QueueIx,
        time: StoreTimestamp,
        only_later: bool,
        until: QueueOffset,
    ) -> Result<Option<QueueOffset>, Missing> {
        let Some((sealed_queue, _)) = self.index.sealed_queue(queue) else { return Ok(None) };
        Ok(match self.sealed.first_at_time(sealed_queue, time, only_later)? {
            Some(offset) => Some(offset),
            None => {
                let store_time = |position| self.log.store_timestamp(position);
                self.index.first_at_time(queue, until, time, only_later, store_time)
            }
        })
    }

    /// When the first message in `from..until` was stored.
    pub(super) fn store_time(
        &mut self,
        queue: QueueIx,
        from: QueueOffset,
        until: QueueOffset,
    ) -> Result<Option<StoreTimestamp>, Missing> {
        if let Some((offset, sealed)) = self.sealed_entries(queue, from, 1)?.first() {
            return Ok((*offset < until).then_some(sealed.store_timestamp));
        }
        let entry = self.index.entries(queue, from, until).next();
        Ok(entry.and_then(|(_, entry)| self.log.store_timestamp(entry.position)))
    }

    /// QUERY_CONSUMER_OFFSET (14), with RocketMQ's rule for a group that never consumed the queue.
    pub(super) fn on_query_offset(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = QueryConsumerOffsetRequest::decode(&request.header.ext)?;
        let committed = self.offsets.get(&asked.consumer_group, &asked.topic, asked.queue_id);
        let reset = self.offsets.pending_reset(&asked.consumer_group, &asked.topic, asked.queue_id);
        reset.into_iter().for_each(|reset| reset.told = Some(request.to.connection));
        let may_start_at_zero = committed.is_none() && asked.set_zero_if_not_found != Some(false);
        let queue = self.known_queue(&asked.topic, asked.queue_id).filter(|_| may_start_at_zero);
        let offset = match queue {
            Some(queue) => {
                let (min, _) = self.bounds(queue)?;
                self.is_recent_from_zero(queue, min).then_some(QueueOffset(0))
            }
            None => committed,
        };
        let offset = offset.ok_or_else(|| {
            let remark = "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first";
            Refusal::new(ResponseCode::QUERY_NOT_FOUND, remark)
        })?;
        reply_offset(request.to, offset, fx);
        Ok(())
    }

    /// True if the first message of the queue, which begins at `min` now, is there and still counts as "in memory".
    pub(super) fn is_recent_from_zero(&self, queue: QueueIx, min: QueueOffset) -> bool {
        let first = self.index.sealed_queue(queue);
        min == QueueOffset(0)
            && self.queues[queue.0 as usize].visible > QueueOffset(0)
            && first.is_some_and(|(queue, offset)| {
                let is_there = offset == QueueOffset(0) && queue.born >= self.log_start();
                is_there && queue.born.0 + RECENT_BYTES >= self.log.durable().0
            })
    }

    /// UPDATE_CONSUMER_OFFSET (15). Who waits for the answer gets it once the offset is on disk.
    pub(super) fn on_update_offset(
        &mut self,
        request: &Request<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let asked = UpdateConsumerOffsetRequest::decode(&request.header.ext)?;
        self.ensure_group(&asked.consumer_group, fx)?;
        if self.topics.get(&asked.topic).is_none() {
            return Err(Refusal::no_topic(&asked.topic));
        }
        let offset = u64::try_from(asked.commit_offset).map_err(|_| {
            let remark = format!("commitOffset {} is negative", asked.commit_offset);
            Refusal::new(ResponseCode::INVALID_PARAMETER, remark)
        })?;
        if asked.queue_id.0 >= TOPIC_QUEUES_MAX {
            let remark = format!("queueId {} must be below {TOPIC_QUEUES_MAX}", asked.queue_id);
            return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
        }
        let commit = Commit {
            group: &asked.consumer_group,
            topic: &asked.topic,
            queue_id: asked.queue_id,
            offset: QueueOffset(offset),
        };
        if self.offsets.pending_reset(commit.group, commit.topic, commit.queue_id).is_some() {
            let remark = "Offset has been previously reset";
            fx.replies.push(request.to, ResponseCode::SUCCESS, Some(remark), &(), &[]);
            return Ok(());
        }
        self.offsets.note(commit);
        if !request.to.is_oneway() {
            let block = self.flush_offsets()?;
            match block {
                Some(block) => {
                    self.pending(block).replies.push(request.to, ResponseCode::SUCCESS, None, &(), &[])
                }
                // The same offset as before, written before: it may still be on its way.
                None => self.reply_when_durable(request.to, fx)?,
            }
        }
        Ok(())
    }

    /// VIEW_MESSAGE_BY_ID (33): the message that starts at this place of the log.
    pub(super) fn on_view_message(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let position = ViewMessageByIdRequest::decode(&request.header.ext)?.offset;
        match (self.block_before(position)?, self.message_in_memory(position)) {
            (Some(_), Some(message)) => self.reply_view(request.to, position, Some(message), fx),
            (Some(block), None) => self.read_cold(block, Purpose::View { to: request.to, position }, fx),
            (None, _) => return Err(not_there(position)),
        }
        Ok(())
    }

    /// Answers with the message at `position`, if one starts there.
    pub(super) fn reply_view(
        &mut self,
        to: ReplyTo,
        position: PhysicalOffset,
        message: Option<Bytes>,
        fx: &mut Effects,
    ) {
        match message {
            Some(message) => fx.replies.push_ranges(to, None, &(), vec![message]),
            None => {
                let refusal = not_there(position);
                fx.replies.push(to, refusal.code, Some(&refusal.remark), &(), &[]);
            }
        }
    }

    /// The queue, if it exists and was ever used.
    pub(super) fn known_queue(&self, topic: &str, queue_id: QueueId) -> Option<QueueIx> {
        self.topics.get(topic)?.known_queue(queue_id)
    }
}

fn reply_offset(to: ReplyTo, offset: QueueOffset, fx: &mut Effects) {
    let response = OffsetResponse { offset: offset.0 as i64 };
    fx.replies.push(to, ResponseCode::SUCCESS, None, &response, &[]);
}

pub(super) fn not_there(position: PhysicalOffset) -> Refusal {
    Refusal::new(ResponseCode::SYSTEM_ERROR, format!("can not find message by the offset, {position}"))
}
