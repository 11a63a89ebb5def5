//! The pull path, in the order it happens:
//!
//!   on_pull → admit → evaluate → (tail | read ──▶ check) → reply | hold ──▶ wake | deadline | close
//!
//! P1  Nothing at or above a queue's visible mark is ever returned.
//! P2  A pull is answered exactly once; a held one by data, by its deadline, or not at all if its connection closed.
//! P3  Bytes that come from disk are checked before they leave (`cold.rs`).
//! P4  An answer without messages carries progress, or the pull has waited: no client can be made to spin.

use super::cold::{ColdPull, LogRange, Purpose};
use super::effects::{Effects, ReplyTo};
use super::filter::Filter;
use super::hold::{AtQueue, HoldId, Pull};
use super::limits::{
    HELD_PULLS_MAX, HOLD_MS_MAX, PULL_BYTES_MAX, PULL_MESSAGES_MAX, PULL_SCAN_MAX, SEALED_SCAN_MAX,
    SQL_WORK_MAX,
};
use super::lookups::Waiter;
use super::offsets::Commit;
use super::sql::Sql;
use super::topics::QueueState;
use super::{Refusal, Request, Shard};
use bytes::Bytes;
use ringmq_protocol::body::{EXPRESSION_TYPE_TAG, MessageModel, perm};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::message::{StoredMessage, messages};
use ringmq_protocol::name::RETRY_GROUP_TOPIC_PREFIX;
use ringmq_protocol::request::{PullMessageRequest, PullMessageResponse, pull_flag};
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, TagsCode};
use ringmq_storage::{Entry, QueueIx, SealedEntry};
use std::rc::Rc;

/// RocketMQ's numbers for what is not permitted.
const FORBIDDEN_GROUP: i32 = 2;
const FORBIDDEN_TOPIC: i32 = 3;
const FORBIDDEN_BROADCAST: i32 = 4;
const FORBIDDEN_SUBSCRIPTION: i32 = 5;

impl Shard {
    /// 1. A pull has arrived: codes 11 and 361.
    pub(super) fn on_pull(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = PullMessageRequest::decode(&request.header.ext)?;
        let pull = self.admit_pull(request.to, &asked, fx)?;
        let (group, topic) = (&*asked.consumer_group, &*asked.topic);
        let queue_id = QueueId(asked.queue_id as u32);
        if let Some(reset) = self.offsets.pending_reset(group, topic, queue_id) {
            let (offset, begins_there) = (reset.target, reset.told == Some(pull.to.connection));
            let commit = Commit { group, topic, queue_id, offset };
            if !begins_there || pull.from != offset {
                self.bounds(pull.queue)?; // a part of the answer
                self.answer_reset(&pull, commit, fx);
                return Ok(());
            }
            // O3. If the log takes no record the group is told again after a restart.
            let _ = self.note_reset_taken(commit);
        }
        if asked.sys_flag & pull_flag::COMMIT_OFFSET != 0 && asked.commit_offset > 0 {
            let offset = QueueOffset(asked.commit_offset as u64);
            self.offsets.note(Commit { group, topic, queue_id, offset });
        }
        self.evaluate(pull, fx);
        Ok(())
    }

    /// 2. Is the queue there, may the group read it, and which messages does it want?
    fn admit_pull(
        &mut self,
        to: ReplyTo,
        asked: &PullMessageRequest<'_>,
        fx: &mut Effects,
    ) -> Result<Pull, Refusal> {
        self.ensure_group(&asked.consumer_group, fx)?;
        let admission = self.groups.admission(&asked.consumer_group).expect("made if it was not there");
        if !admission.consume_enable {
            let remark = format!("subscription group no permission, {}", asked.consumer_group);
            return Err(Refusal::forbidden(FORBIDDEN_GROUP, remark));
        }
        let broker_name = &self.config.broker_name;
        let topic = self.topics.get_mut(&asked.topic).ok_or_else(|| Refusal::no_topic(&asked.topic))?;
        if topic.config.perm & perm::READ == 0 {
            let remark = format!("the topic[{}] pulling message is forbidden", asked.topic);
            return Err(Refusal::forbidden(FORBIDDEN_TOPIC, remark));
        }
        let queue_id = u32::try_from(asked.queue_id).ok().filter(|id| *id < topic.config.read_queue_nums);
        let queue_id = queue_id.map(QueueId).ok_or_else(|| {
            let remark = format!(
                "queueId[{}] is illegal, topic:[{}] topicConfig.readQueueNums:[{}] on {broker_name}",
                asked.queue_id, asked.topic, topic.config.read_queue_nums
            );
            Refusal::new(ResponseCode::INVALID_PARAMETER, remark)
        })?;
        let queue = topic.queue(queue_id, &mut self.index, &mut self.queues);
        self.check_group(asked)?;
        let mut filter = self.filter_of(asked)?;
        if filter.sql().is_some() && asked.topic.starts_with(RETRY_GROUP_TOPIC_PREFIX) {
            // A message that comes back was wanted when it was first delivered.
            filter = Rc::new(Filter::All);
        }
        let from = QueueOffset(asked.queue_offset.max(0) as u64);
        let hold = asked.sys_flag & pull_flag::SUSPEND != 0 && asked.suspend_timeout_millis > 0;
        Ok(Pull {
            to,
            queue,
            group: admission.number,
            from,
            scanned: from,
            messages_max: usize::try_from(asked.max_msg_nums).unwrap_or(0).clamp(1, PULL_MESSAGES_MAX),
            filter,
            work: 0,
            hold_until_ms: hold
                .then(|| self.now.monotonic_ms + asked.suspend_timeout_millis.min(HOLD_MS_MAX)),
        })
    }

    /// 2a. What an operator has forbidden the group. A pull that brings its own filter needs no member that is online.
    fn check_group(&self, asked: &PullMessageRequest<'_>) -> Result<(), Refusal> {
        let (group, topic) = (&*asked.consumer_group, &*asked.topic);
        if asked.sys_flag & pull_flag::SUBSCRIPTION == 0 {
            let online = self.groups.consumer_group(group).ok_or_else(|| Refusal::not_online(group))?;
            let may_broadcast = || self.groups.configs.get(group).is_none_or(|c| c.consume_broadcast_enable);
            if online.message_model == MessageModel::Broadcasting && !may_broadcast() {
                let remark = format!(" the consumer group[{group}] can not consume by broadcast way");
                return Err(Refusal::forbidden(FORBIDDEN_BROADCAST, remark));
            }
        }
        if self.groups.is_forbidden(group, topic) {
            let remark = format!("the consumer group[{group}] is forbidden for topic[{topic}]");
            return Err(Refusal::forbidden(FORBIDDEN_SUBSCRIPTION, remark));
        }
        Ok(())
    }

    /// 2b. The filter comes with the request, or from what the group's heartbeats said.
    fn filter_of(&mut self, asked: &PullMessageRequest<'_>) -> Result<Rc<Filter>, Refusal> {
        if asked.sys_flag & pull_flag::SUBSCRIPTION == 0 {
            return self.groups.filter(&asked.consumer_group, &asked.topic, asked.sub_version);
        }
        let expression_type = asked.expression_type.as_deref().unwrap_or(EXPRESSION_TYPE_TAG);
        let expression = asked.subscription.as_deref().unwrap_or("*");
        Ok(self.filters.get(&asked.topic, expression_type, expression)?)
    }

    /// 3. Finds the messages, or the reason why there are none.
    pub(super) fn evaluate(&mut self, pull: Pull, fx: &mut Effects) {
        let (min, max) = match self.bounds(pull.queue) {
            Ok(bounds) => bounds,
            Err(missing) => return self.wait_for(missing, Waiter::Pull(pull), fx),
        };
        if pull.from < min {
            return self.reply_moved(&pull, min, "OFFSET_TOO_SMALL", fx);
        }
        if pull.from > max {
            let status = if max.0 == 0 { "NO_MESSAGE_IN_QUEUE" } else { "OFFSET_OVERFLOW_BADLY" };
            return self.reply_moved(&pull, max, status, fx);
        }
        let start = pull.scanned.max(pull.from);
        if start >= max {
            return self.hold_or_answer(pull, fx);
        }

        let count = if *pull.filter == Filter::All { pull.messages_max } else { SEALED_SCAN_MAX };
        let sealed = match self.sealed_entries(pull.queue, start, count) {
            Ok(entries) => entries,
            Err(missing) => return self.wait_for(missing, Waiter::Pull(pull), fx),
        };
        let mut found = Found::default();
        let mut next;
        if let Some((last, _)) = sealed.last() {
            next = QueueOffset(last.0 + 1);
            for (offset, SealedEntry { entry, block, .. }) in sealed {
                if pull.filter.may_match(entry.tags_code)
                    && !found.add(offset, entry, Some(block), &pull, self)
                {
                    next = offset;
                    break;
                }
            }
        } else {
            next = QueueOffset(max.0.min(start.0.max(self.index.memory_start(pull.queue).0) + PULL_SCAN_MAX));
            for (offset, entry) in self.index.entries(pull.queue, start, next) {
                if pull.filter.may_match(entry.tags_code) && !found.add(offset, entry, None, &pull, self) {
                    next = offset;
                    break;
                }
            }
        }
        assert!(next <= max, "P1: nothing at or above the visible mark is returned");
        if found.ranges.is_empty() {
            return self.reply_not_matched(&pull, next, fx);
        }
        match found.cold {
            None => {
                self.counts.messages_out += found.messages as u64;
                let tail = |range: &LogRange| {
                    self.log.tail(range.position, range.len).expect("seen in the tail above")
                };
                let body = found.ranges.iter().map(tail).collect();
                self.reply_found(&pull, body, next, fx);
            }
            Some(Cold { block, .. }) => {
                if pull.filter.sql().is_none() {
                    self.counts.messages_out += found.messages as u64;
                }
                let purpose = Purpose::Pull(Box::new(ColdPull::new(pull, found.ranges, next)));
                self.read_cold(block, purpose, fx);
            }
        }
    }

    /// Whether an SQL filter wants a message, and the bytes looked at for that. `None` if the message is not in the tail.
    fn evaluate_sql(&self, sql: &Sql, entry: Entry) -> Option<(bool, u64)> {
        let bytes = self.log.tail(entry.position, entry.size)?;
        let (message, _) = StoredMessage::parse(&bytes).expect("encoded or checked by this broker");
        let properties = message.properties();
        Some((sql.matches(properties), sql.cost(properties)))
    }

    /// 4a. At the end of the queue: wait there, if the client wants to and there is room.
    fn hold_or_answer(&mut self, pull: Pull, fx: &mut Effects) {
        match pull.hold_until_ms {
            Some(_) if self.holds.len() >= HELD_PULLS_MAX => {
                let remark =
                    format!("[OVERLOAD]{HELD_PULLS_MAX} pulls are waiting for messages, which is the limit");
                fx.replies.push(pull.to, ResponseCode::SYSTEM_BUSY, Some(&remark), &(), &[]);
            }
            Some(deadline_ms) => self.holds.park(pull, deadline_ms),
            None if pull.scanned > pull.from => self.reply_not_matched(&pull, pull.scanned, fx),
            None => {
                let next = pull.from;
                self.reply_empty(&pull, ResponseCode::PULL_NOT_FOUND, next, "OFFSET_OVERFLOW_ONE", fx);
            }
        }
    }

    /// 5. Messages of a queue have become visible: who waits for one of them gets it.
    pub(super) fn wake(&mut self, queue: QueueIx, fx: &mut Effects) {
        let Some(at) = self.holds.waiting_at(queue) else { return };
        let visible = self.queues[queue.0 as usize].visible;
        let wanted_by = self.who_wants(queue, at, visible);
        self.holds.on_offered(queue, visible, wanted_by);
        self.answer_holds(fx);
    }

    /// The pulls that want one of the new messages of a queue, oldest first.
    fn who_wants(&self, queue: QueueIx, at: &AtQueue, to: QueueOffset) -> Vec<HoldId> {
        let mut ids: Vec<HoldId> = at.any.iter().copied().collect();
        if !at.is_choosy() {
            return ids;
        }
        let entries = || self.index.entries(queue, at.offered, to).map(|(_, entry)| entry);
        if at.waits_for_tags() {
            let mut codes: Vec<TagsCode> = entries().map(|entry| entry.tags_code).collect();
            codes.sort_unstable();
            codes.dedup();
            ids.extend(codes.into_iter().flat_map(|code| at.of_tag(code)));
        }
        for (sql, waiting) in &at.sql {
            // What is not in memory any more is read, and decided then.
            let may_want = |entry| self.evaluate_sql(sql, entry).is_none_or(|(is_wanted, _)| is_wanted);
            if entries().any(may_want) {
                ids.extend(waiting);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// 5a. Pulls that were woken, and those whose time is over, are answered with what there is.
    pub(super) fn answer_holds(&mut self, fx: &mut Effects) {
        while let Some(pull) = self.holds.take_due(self.now.monotonic_ms) {
            self.evaluate(Pull { hold_until_ms: None, ..pull }, fx);
        }
    }

    /// 6. Messages.
    pub(super) fn reply_found(&mut self, pull: &Pull, body: Vec<Bytes>, next: QueueOffset, fx: &mut Effects) {
        if body.is_empty() {
            // All that was found lies in damaged blocks, which has been reported; the group goes on behind them.
            return self.reply_not_matched(pull, next, fx);
        }
        self.offsets.on_pulled(pull.group, pull.queue, next);
        let response = self.pull_response(pull, next);
        fx.replies.push_ranges(pull.to, Some("FOUND"), &response, body);
    }

    fn reply_not_matched(&mut self, pull: &Pull, next: QueueOffset, fx: &mut Effects) {
        assert!(next > pull.from, "P4: an answer without messages carries progress");
        self.reply_empty(pull, ResponseCode::PULL_RETRY_IMMEDIATELY, next, "NO_MATCHED_MESSAGE", fx);
    }

    fn reply_moved(&mut self, pull: &Pull, next: QueueOffset, status: &str, fx: &mut Effects) {
        self.reply_empty(pull, ResponseCode::PULL_OFFSET_MOVED, next, status, fx);
    }

    fn reply_empty(
        &mut self,
        pull: &Pull,
        code: ResponseCode,
        next: QueueOffset,
        status: &str,
        fx: &mut Effects,
    ) {
        self.offsets.on_pulled(pull.group, pull.queue, next);
        fx.replies.push(pull.to, code, Some(status), &self.pull_response(pull, next), &[]);
    }

    pub(super) fn pull_response(&self, pull: &Pull, next: QueueOffset) -> PullMessageResponse {
        // Known since the pull was evaluated; segments that were released since then matter to the next pull.
        let QueueState { min, visible: max, .. } = self.queues[pull.queue.0 as usize];
        PullMessageResponse {
            suggest_which_broker_id: 0,
            next_begin_offset: next.0 as i64,
            min_offset: min.min(max).0 as i64,
            max_offset: max.0 as i64,
            offset_delta: None,
            topic_sys_flag: None,
            group_sys_flag: None,
            forbidden_type: None,
        }
    }
}

/// The messages of one response: all from the tail, or all from one stretch of the disk.
#[derive(Default)]
struct Found {
    /// Adjacent messages are one range; a range lies in one block.
    ranges: Vec<LogRange>,
    messages: usize,
    bytes: usize,
    /// Where the ranges lie, if not in the tail.
    cold: Option<Cold>,
    /// Bytes that an SQL filter has looked at.
    work: u64,
}

#[derive(Clone, Copy)]
struct Cold {
    /// The first of the blocks to be read.
    block: PhysicalOffset,
    /// What lies behind is left to the next pull.
    limit: PhysicalOffset,
}

impl Found {
    /// Adds a message, if it still fits in the response. Its block is known for messages of sealed segments.
    fn add(
        &mut self,
        offset: QueueOffset,
        entry: Entry,
        block: Option<PhysicalOffset>,
        pull: &Pull,
        shard: &Shard,
    ) -> bool {
        let len = entry.size as usize;
        let (range, is_cold) = shard.log_range(offset, entry, block);
        if let Some(sql) = pull.filter.sql()
            && !is_cold
            && self.cold.is_none()
        {
            if self.work > SQL_WORK_MAX {
                return false;
            }
            let (is_wanted, cost) = shard.evaluate_sql(sql, entry).expect("seen in the tail above");
            self.work += cost;
            if !is_wanted {
                return true;
            }
        }
        if self.messages == 0 {
            // The first message is always taken, whatever its size.
            let limit = |block| match pull.filter.sql() {
                Some(_) => shard.cold_limit(block),
                None => shard.gather_limit(block),
            };
            self.cold = is_cold.then(|| Cold { block: range.block, limit: limit(range.block) });
        } else {
            // What an SQL filter is still to choose from is bounded by what is read at once.
            let is_choice = is_cold && pull.filter.sql().is_some();
            let bytes_max = if is_cold { shard.cold_pull_bytes() } else { PULL_BYTES_MAX };
            let is_full = !is_choice && (self.messages == pull.messages_max || self.bytes + len > bytes_max);
            let is_elsewhere =
                is_cold != self.cold.is_some() || self.cold.is_some_and(|cold| range.end() > cold.limit);
            if is_full || is_elsewhere {
                return false;
            }
        }
        match self.ranges.last_mut() {
            Some(last) if last.end() == range.position && last.block == range.block => last.len += range.len,
            _ => self.ranges.push(range),
        }
        self.messages += 1;
        self.bytes += len;
        true
    }
}

/// The messages of one response that an SQL filter chooses from what was read.
#[derive(Default)]
pub(super) struct Chosen {
    has_looked: bool,
    pub(super) messages: usize,
    bytes: usize,
}

impl Chosen {
    /// Adds those of a range that are wanted. The answer is the offset of the first message that is left to the next pull,
    /// if the response is full or the filter has worked enough for one.
    pub(super) fn choose(
        &mut self,
        pull: &mut Pull,
        range: &Bytes,
        body: &mut Vec<Bytes>,
    ) -> Option<QueueOffset> {
        let filter = pull.filter.clone();
        let sql = filter.sql()?;
        for message in messages(range) {
            let message = message.expect("checked with its block");
            let len = message.as_bytes().len();
            let is_full = self.messages == pull.messages_max || self.bytes + len > PULL_BYTES_MAX;
            if is_full && self.messages > 0 || pull.work > SQL_WORK_MAX && self.has_looked {
                return Some(message.queue_offset());
            }
            self.has_looked = true;
            let properties = message.properties();
            pull.work += sql.cost(properties);
            if sql.matches(properties) {
                body.push(range.slice_ref(message.as_bytes()));
                self.messages += 1;
                self.bytes += len;
            }
        }
        None
    }
}
