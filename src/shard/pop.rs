//! POP: messages that are given one by one, each invisible to others until it is acknowledged or its time is over.
//!
//!   on_pop → admit → evaluate → collect → stage ──write──▶ (read) → answer | hold ──▶ wake | deadline | close
//!
//!   flights   what is in flight     ack       done, or later     revive    what was not acknowledged in time
//!   waiting   pops without messages     answer    their bytes and receipts
//!
//! O1  A message is given only when the record that says so is durable, and its bytes are checked.
//! O2  A pop is answered exactly once, or not at all because its connection closed.
//! O3  Nothing at or above a queue's visible mark is popped, and nothing that is in flight, but in order mode by the same attempt
//!     or when its time is over.
//! O4  In order mode nothing of a queue is popped while anything of it is in flight and invisible.

mod ack;
mod answer;
mod flights;
mod revive;
mod waiting;

pub(super) use answer::PopRead;
pub(super) use flights::{Flight, Flights, Popped, decode_done, decode_popped, encode_flights};
pub(super) use revive::Revive;
pub(super) use waiting::PopHolds;

use super::cold::{LogRange, Purpose};
use super::effects::{Effects, ReplyTo};
use super::expiry::is_message;
use super::filter::Filter;
use super::limits::{
    HOLD_MS_MAX, POP_FLIGHTS_MAX, POP_INVISIBLE_MS_MAX, POP_MESSAGES_MAX, POP_QUEUE_FLIGHTS_MAX,
    PULL_BYTES_MAX, PULL_SCAN_MAX, SEALED_SCAN_MAX, SQL_WORK_MAX,
};
use super::lookups::Waiter;
use super::offsets::Commit;
use super::records::kind;
use super::{Refusal, Request, Shard};
use bytes::Bytes;
use flights::{encode_done, encode_popped};
use ringmq_protocol::body::{EXPRESSION_TYPE_TAG, perm};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::name;
use ringmq_protocol::receipt::PopSource;
use ringmq_protocol::request::{
    NotificationRequest, NotificationResponse, PeekMessageRequest, PollingInfoRequest, PollingInfoResponse,
    PopMessageRequest,
};
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset};
use ringmq_storage::{Entry, Missing, QueueIx};
use std::rc::Rc;
use waiting::PopHoldId;

const TIMED_OUT: &str = "POLLING_TIMEOUT";
/// One pop in so many looks into the retry topic first.
const RETRY_FIRST_EVERY: u32 = 5;
/// How late a request may be that has been on its way longer than it wanted to wait.
const LATE_MS: i64 = 500;

/// What POP keeps.
#[derive(Default)]
pub(super) struct Pops {
    pub(super) flights: Flights,
    pub(super) holds: PopHolds,
    /// Counts pops, so that each begins at another queue.
    turn: u32,
    /// Messages that are on their way to a retry topic.
    reviving: usize,
    /// Monotonic time before which no other is.
    revive_again_ms: i64,
}

impl Pops {
    pub(super) fn new(flights: Flights) -> Self {
        Pops { flights, ..Pops::default() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Pop,
    /// Shows messages and leaves everything as it is.
    Peek,
    /// Tells that there are messages.
    Notify,
}

/// A checked request: what is needed to evaluate it, now or later.
#[derive(Debug)]
pub(super) struct Pop {
    pub(super) to: ReplyTo,
    kind: Kind,
    group: Rc<str>,
    topic: Rc<str>,
    /// Of the group, for messages of the topic.
    retry_topic: Rc<str>,
    /// `None`: all queues.
    queue: Option<QueueId>,
    messages_max: usize,
    invisible_ms: i64,
    filter: Rc<Filter>,
    is_ordered: bool,
    attempt: Box<str>,
    /// A queue that the group never popped begins at its last message.
    from_last: bool,
    turn: u32,
    /// Monotonic time until which it may wait.
    hold_until_ms: Option<i64>,
    /// Bytes that its SQL filter has looked at or had read, since it was asked or woken.
    work: u64,
    /// Blocks that cannot be read.
    damaged: Vec<PhysicalOffset>,
    /// Its place among those that wait, if it waited before.
    hold: Option<PopHoldId>,
}

impl Pop {
    /// The topic that holds the messages.
    fn topic(&self, source: PopSource) -> &str {
        if source == PopSource::Topic { &self.topic } else { &self.retry_topic }
    }
}

/// A message on its way into an answer.
#[derive(Debug)]
struct Given {
    range: LogRange,
    times: u16,
    bytes: Option<Bytes>,
    /// Its block is damaged.
    is_lost: bool,
}

/// What a pop takes of one queue.
#[derive(Debug)]
struct Section {
    source: PopSource,
    queue_id: QueueId,
    /// Where it began, and the group's offset afterwards.
    start: QueueOffset,
    next: QueueOffset,
    /// The group had no such offset before.
    is_progress: bool,
    messages: Vec<Given>,
    /// In flight, but deleted with their segments.
    gone: Vec<QueueOffset>,
}

#[derive(Debug, Default)]
struct Collected {
    sections: Vec<Section>,
    messages: usize,
    bytes: usize,
    /// Messages left behind.
    rest: u64,
    is_full: bool,
    /// There is more to look at than one pop looks at.
    is_cut: bool,
    /// The block of a message that an SQL filter has to see first.
    unread: Option<PhysicalOffset>,
    /// Bytes that it has seen.
    work: u64,
}

impl Collected {
    /// Adds a message, if there is room for it.
    fn add(
        &mut self,
        pop: &Pop,
        range: LogRange,
        bytes: Option<Bytes>,
        times: u16,
        section: &mut Section,
    ) -> bool {
        let len = range.len as usize;
        let is_too_much = self.messages > 0 && self.bytes + len > PULL_BYTES_MAX;
        if self.messages == pop.messages_max || is_too_much {
            self.is_full = true;
            return false;
        }
        self.messages += 1;
        self.bytes += len;
        let is_lost = bytes.as_ref().is_some_and(|bytes| !is_message(bytes));
        section.messages.push(Given { range, times, bytes, is_lost });
        true
    }
}

impl Shard {
    /// POP_MESSAGE (200050).
    pub(super) fn on_pop(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = PopMessageRequest::decode(&request.header.ext)?;
        let hold_ms = self.hold_ms(asked.born_time, asked.poll_time)?;
        let messages_max = messages_max(asked.max_msg_nums)?;
        let queue = self.admit_pop(&asked.consumer_group, &asked.topic, asked.queue_id, fx)?;
        if !(1..=POP_INVISIBLE_MS_MAX).contains(&asked.invisible_time) {
            let remark =
                format!("invisibleTime {} must be 1 to {POP_INVISIBLE_MS_MAX} ms", asked.invisible_time);
            return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
        }
        let attempt = asked.attempt_id.as_deref().unwrap_or_default();
        if attempt.len() > usize::from(u8::MAX) {
            let remark = format!("attemptId has {} bytes, at most 255 are allowed", attempt.len());
            return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
        }
        let expression = asked.exp.as_deref().filter(|expression| !expression.is_empty());
        let kind = asked.exp_type.as_deref().filter(|kind| !kind.is_empty() && expression.is_some());
        let kind = kind.unwrap_or(EXPRESSION_TYPE_TAG);
        let filter = self
            .filters
            .get(&asked.topic, kind, expression.unwrap_or("*"))
            .map_err(|error| Refusal::new(ResponseCode::SUBSCRIPTION_PARSE_FAILED, error.to_string()))?;
        let pop = Pop {
            messages_max,
            invisible_ms: asked.invisible_time,
            filter,
            is_ordered: asked.order,
            attempt: attempt.into(),
            from_last: asked.init_mode == 1,
            hold_until_ms: (hold_ms > 0).then(|| self.now.monotonic_ms + hold_ms),
            ..self.new_pop(request.to, Kind::Pop, &asked.consumer_group, &asked.topic, queue)
        };
        self.evaluate_pop(Box::new(pop), fx);
        Ok(())
    }

    /// PEEK_MESSAGE (200052): what a pop would give.
    pub(super) fn on_peek(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = PeekMessageRequest::decode(&request.header.ext)?;
        let messages_max = messages_max(asked.max_msg_nums)?;
        let queue = self.admit_pop(&asked.consumer_group, &asked.topic, asked.queue_id, fx)?;
        let pop = self.new_pop(request.to, Kind::Peek, &asked.consumer_group, &asked.topic, queue);
        self.evaluate_pop(Box::new(Pop { messages_max, ..pop }), fx);
        Ok(())
    }

    /// NOTIFICATION (200054): is there a message, now or within a time?
    pub(super) fn on_notification(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = NotificationRequest::decode(&request.header.ext)?;
        let hold_ms = self.hold_ms(asked.born_time, asked.poll_time)?;
        let queue = self.admit_pop(&asked.consumer_group, &asked.topic, asked.queue_id, fx)?;
        let pop = Pop {
            is_ordered: asked.order,
            attempt: asked.attempt_id.as_deref().unwrap_or_default().into(),
            hold_until_ms: (hold_ms > 0).then(|| self.now.monotonic_ms + hold_ms),
            ..self.new_pop(request.to, Kind::Notify, &asked.consumer_group, &asked.topic, queue)
        };
        self.evaluate_pop(Box::new(pop), fx);
        Ok(())
    }

    /// POLLING_INFO (200055): how many pops wait.
    pub(super) fn on_polling_info(&mut self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let asked = PollingInfoRequest::decode(&request.header.ext)?;
        let queue = self.admit_pop(&asked.consumer_group, &asked.topic, asked.queue_id, fx)?;
        let count = self.pops.holds.count(&Rc::from(&*asked.consumer_group), &asked.topic, queue);
        let response = PollingInfoResponse { polling_num: count as i32 }; // at most POP_QUEUE_HOLDS_MAX
        fx.replies.push(request.to, ResponseCode::SUCCESS, None, &response, &[]);
        Ok(())
    }

    fn new_pop(&mut self, to: ReplyTo, kind: Kind, group: &str, topic: &str, queue: Option<QueueId>) -> Pop {
        self.pops.turn = self.pops.turn.wrapping_add(1);
        Pop {
            to,
            kind,
            group: group.into(),
            topic: topic.into(),
            retry_topic: name::pop_retry_topic(group, topic).into(),
            queue,
            messages_max: 1,
            invisible_ms: 0,
            filter: Rc::new(Filter::All),
            is_ordered: false,
            attempt: "".into(),
            from_last: false,
            turn: self.pops.turn,
            hold_until_ms: None,
            work: 0,
            damaged: Vec::new(),
            hold: None,
        }
    }

    /// How much longer a request may wait that its client made at `born`, by the client's clock.
    fn hold_ms(&self, born: i64, poll_ms: i64) -> Result<i64, Refusal> {
        let poll_ms = poll_ms.clamp(0, HOLD_MS_MAX);
        let on_its_way_ms = if born <= 0 { 0 } else { self.now.wall_ms.saturating_sub(born) };
        if on_its_way_ms > poll_ms + LATE_MS {
            let remark = format!(
                "the request was made {on_its_way_ms} ms ago by its client's clock and wanted to wait {poll_ms} ms"
            );
            return Err(Refusal::new(ResponseCode::POLLING_TIMEOUT, remark));
        }
        Ok((poll_ms - on_its_way_ms).clamp(0, poll_ms))
    }

    /// Is the topic there, may the group pop it, and is there such a queue?
    fn admit_pop(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: i32,
        fx: &mut Effects,
    ) -> Result<Option<QueueId>, Refusal> {
        let known = self.topics.get(topic).ok_or_else(|| Refusal::no_topic(topic))?;
        if known.config.perm & perm::READ == 0 {
            let remark = format!("the topic[{topic}] popping message is forbidden");
            return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
        }
        let queue = u32::try_from(queue_id).ok().map(QueueId);
        if let Some(QueueId(id)) = queue.filter(|id| id.0 >= known.config.read_queue_nums) {
            let count = known.config.read_queue_nums;
            let remark = format!(
                "queueId[{id}] is illegal, topic:[{topic}] topicConfig.readQueueNums:[{count}] on {}",
                self.config.broker_name
            );
            return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
        }
        if name::validate_topic(&name::pop_retry_topic(group, topic)).is_err() {
            let remark =
                format!("{topic} cannot be popped by {group}: their names make none for a retry topic");
            return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
        }
        self.ensure_group(group, fx)?;
        if !self.groups.configs[group].consume_enable {
            let remark = format!("subscription group no permission, {group}");
            return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
        }
        if self.groups.is_forbidden(group, topic) {
            let remark = format!("the consumer group[{group}] is forbidden to read the topic[{topic}]");
            return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
        }
        Ok(queue)
    }

    /// A block that an SQL filter has to see was read: all of it is looked at again. `None` if the block is damaged.
    pub(super) fn pop_again(
        &mut self,
        mut pop: Box<Pop>,
        block: PhysicalOffset,
        read_bytes: Option<u64>,
        fx: &mut Effects,
    ) {
        match read_bytes {
            Some(bytes) => pop.work += bytes,
            None => pop.damaged.push(block),
        }
        self.evaluate_pop(pop, fx);
    }

    /// Finds messages for a pop and puts them in flight. False if there was nothing for it.
    pub(super) fn evaluate_pop(&mut self, pop: Box<Pop>, fx: &mut Effects) -> bool {
        let collected = match self.collect(&pop) {
            Ok(collected) => collected,
            Err(missing) => {
                self.wait_for(missing, Waiter::Pop(pop), fx);
                return true;
            }
        };
        if pop.kind == Kind::Pop {
            self.note_progress(&pop, &collected);
        }
        if let Some(block) = collected.unread.filter(|_| collected.messages == 0) {
            self.read_cold(block, Purpose::PopAgain { pop, block }, fx);
            return true;
        }
        if collected.messages == 0 {
            match pop.kind {
                Kind::Peek => self.reply_nothing(&pop, ResponseCode::PULL_NOT_FOUND, "NO_NEW_MSG", fx),
                // What was looked at is noted: the next pop goes on behind it.
                Kind::Pop if collected.is_cut => {
                    self.reply_nothing(&pop, ResponseCode::POLLING_TIMEOUT, TIMED_OUT, fx);
                }
                Kind::Pop | Kind::Notify => self.hold_pop(pop, fx),
            }
            return false;
        }
        match pop.kind {
            Kind::Pop => self.stage_pop(pop, collected, fx),
            Kind::Peek => {
                let Collected { sections, rest, .. } = collected;
                let pop_time = self.now.wall_ms;
                self.read_popped(Box::new(PopRead { pop, pop_time, staged: None, sections, rest }), fx);
            }
            Kind::Notify => {
                let response = NotificationResponse { has_msg: true, polling_full: Some(false) };
                fx.replies.push(pop.to, ResponseCode::SUCCESS, None, &response, &[]);
            }
        }
        true
    }

    /// The queues that a pop looks at, in their order.
    fn sources(&self, pop: &Pop) -> Vec<(PopSource, QueueId)> {
        let read_queues =
            |topic: &str| self.topics.get(topic).map_or(0, |topic| topic.config.read_queue_nums);
        let mut sources: Vec<(PopSource, QueueId)> = match pop.queue {
            Some(queue_id) => vec![(PopSource::Topic, queue_id)],
            None => {
                let count = read_queues(&pop.topic);
                let first = pop.turn % count.max(1);
                (0..count).map(|at| (PopSource::Topic, QueueId((first + at) % count))).collect()
            }
        };
        if !pop.is_ordered {
            let retries = (0..read_queues(&pop.retry_topic)).map(|id| (PopSource::RetryV1, QueueId(id)));
            let at = if pop.turn.is_multiple_of(RETRY_FIRST_EVERY) { 0 } else { sources.len() };
            sources.splice(at..at, retries);
        }
        sources
    }

    fn collect(&mut self, pop: &Pop) -> Result<Collected, Missing> {
        let mut collected = Collected::default();
        for (source, queue_id) in self.sources(pop) {
            let Some(queue) = self.known_queue(pop.topic(source), queue_id) else { continue };
            self.collect_queue(pop, (source, queue_id, queue), &mut collected)?;
        }
        Ok(collected)
    }

    /// Adds what one queue has for a pop.
    fn collect_queue(
        &mut self,
        pop: &Pop,
        (source, queue_id, queue): (PopSource, QueueId, QueueIx),
        collected: &mut Collected,
    ) -> Result<(), Missing> {
        let topic = pop.topic(source);
        let (min, max) = self.bounds(queue)?;
        let committed = self.offsets.get(&pop.group, topic, queue_id);
        let start = match committed {
            Some(offset) => offset.clamp(min, max),
            None if !pop.from_last || source != PopSource::Topic => min,
            None if self.is_recent_from_zero(queue, min) => QueueOffset(0),
            None => QueueOffset(max.0.saturating_sub(1)).max(min),
        };
        let (messages, gone) = (Vec::new(), Vec::new());
        let mut section =
            Section { source, queue_id, start, next: start, is_progress: false, messages, gone };
        let is_open = !collected.is_full && self.take_again(pop, queue, &mut section, collected)?;
        if is_open {
            self.take_new(pop, queue, max, &mut section, collected)?;
        }
        section.is_progress = committed != Some(section.next);
        if let Some(first) = section.messages.first() {
            section.start = first.range.offset;
        }
        collected.rest += max.0 - section.next.0;
        collected.sections.push(section);
        Ok(())
    }

    /// Messages in flight whose time is over, or that the same attempt had. False if nothing else of the queue may be given.
    fn take_again(
        &mut self,
        pop: &Pop,
        queue: QueueIx,
        section: &mut Section,
        collected: &mut Collected,
    ) -> Result<bool, Missing> {
        let now = self.now.wall_ms;
        let topic = pop.topic(section.source);
        let Some(in_flight) = self.pops.flights.of(&pop.group, topic, section.queue_id) else {
            return Ok(true);
        };
        let is_same_attempt = !pop.attempt.is_empty() && in_flight.attempt == pop.attempt;
        let is_over = |flight: &Flight| flight.is_ordered && (flight.until <= now || is_same_attempt);
        let has_other = in_flight.ordered_count < in_flight.flights.len();
        if pop.is_ordered && (has_other || in_flight.flights.values().any(|flight| !is_over(flight))) {
            return Ok(false); // O4
        }
        if in_flight.ordered_count == 0 {
            return Ok(true);
        }
        // In any other mode they are given as any message that nobody has.
        let is_again = |flight: &Flight| {
            if pop.is_ordered { is_over(flight) } else { flight.is_ordered && flight.until <= now }
        };
        let again = in_flight.flights.iter().filter(|(_, flight)| is_again(flight));
        let times = |flight: &Flight| flight.times.saturating_add(u16::from(!is_same_attempt));
        let mut again: Vec<(QueueOffset, u16)> =
            again.map(|(at, flight)| (*at, times(flight))).take(pop.messages_max + 1).collect();
        let is_all = again.len() <= pop.messages_max;
        again.truncate(pop.messages_max);
        for (offset, times) in again {
            match self.entry_at(queue, offset)? {
                Some((entry, block)) => {
                    let (range, bytes) = self.range_of(offset, entry, block);
                    if !collected.add(pop, range, bytes, times, section) {
                        return Ok(false);
                    }
                }
                None => section.gone.push(offset),
            }
        }
        Ok(is_all)
    }

    /// Messages that the group was never given.
    fn take_new(
        &mut self,
        pop: &Pop,
        queue: QueueIx,
        max: QueueOffset,
        section: &mut Section,
        collected: &mut Collected,
    ) -> Result<(), Missing> {
        // A message that comes back was wanted when it was first given.
        let filter = if section.source == PopSource::Topic { &*pop.filter } else { &Filter::All };
        let in_flight = self.pops.flights.of(&pop.group, pop.topic(section.source), section.queue_id);
        let in_flight = in_flight.map_or(0, |of| of.flights.len());
        let room = POP_QUEUE_FLIGHTS_MAX.saturating_sub(in_flight);
        let room = room.min(POP_FLIGHTS_MAX.saturating_sub(self.pops.flights.len() + collected.messages));
        let count = if *filter == Filter::All { pop.messages_max } else { SEALED_SCAN_MAX };
        let mut looked_at = 0;
        while section.next < max && !collected.is_full {
            let sealed = self.sealed_entries(queue, section.next, count)?;
            let until = match sealed.last() {
                Some((last, ..)) => QueueOffset(last.0 + 1).min(max),
                None => {
                    // What is in no sealed segment is in memory, or lost.
                    let memory_start = section.next.max(self.index.memory_start(queue));
                    QueueOffset(max.0.min(memory_start.0 + PULL_SCAN_MAX))
                }
            };
            looked_at += sealed.len() as u64 * (PULL_SCAN_MAX / SEALED_SCAN_MAX as u64);
            let from = if sealed.is_empty() { section.next } else { until };
            let in_memory = self.index.entries(queue, from, until).map(|(at, entry)| (at, entry, None));
            looked_at += until.0 - from.0;
            let sealed = sealed.into_iter().map(|(at, sealed)| (at, sealed.entry, Some(sealed.block)));
            let entries = sealed.chain(in_memory);
            for (offset, entry, block) in entries {
                section.next = offset;
                if !filter.may_match(entry.tags_code) {
                    continue;
                }
                let (range, bytes) = self.range_of(offset, entry, block);
                if let Some(sql) = filter.sql() {
                    if bytes.is_none() && pop.damaged.contains(&range.block) {
                        continue;
                    }
                    let Some(bytes) = &bytes else {
                        // It is read first, then all of it is looked at again.
                        (collected.unread, collected.is_full) = (Some(range.block), true);
                        return Ok(());
                    };
                    if pop.work + collected.work > SQL_WORK_MAX {
                        collected.is_cut = true;
                        return Ok(());
                    }
                    // What was left out is passed over.
                    let Ok((message, _)) = StoredMessage::parse(bytes) else { continue };
                    collected.work += sql.cost(message.properties());
                    if !sql.matches(message.properties()) {
                        continue;
                    }
                }
                if section.messages.len() >= room || !collected.add(pop, range, bytes, 0, section) {
                    return Ok(());
                }
            }
            section.next = until;
            if looked_at >= PULL_SCAN_MAX && section.next < max {
                collected.is_cut = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Where a message is, and its bytes if they are in memory.
    fn range_of(
        &self,
        offset: QueueOffset,
        entry: Entry,
        block: Option<PhysicalOffset>,
    ) -> (LogRange, Option<Bytes>) {
        let (range, is_cold) = self.log_range(offset, entry, block);
        let bytes = if is_cold { self.kept_range(range) } else { self.log.tail(entry.position, entry.size) };
        (range, bytes)
    }

    /// The entry of a message, and its block if that is known; `None` if the message is not there any more.
    fn entry_at(
        &mut self,
        queue: QueueIx,
        offset: QueueOffset,
    ) -> Result<Option<(Entry, Option<PhysicalOffset>)>, Missing> {
        Ok(match self.sealed_entries(queue, offset, 1)?.first() {
            Some((at, sealed)) => (*at == offset).then_some((sealed.entry, Some(sealed.block))),
            None => self.index.entry(queue, offset).map(|entry| (entry, None)),
        })
    }

    /// Messages that a filter does not want are not looked at again. Where messages are given, the record says it. A reset of the
    /// offset has been taken with that.
    fn note_progress(&mut self, pop: &Pop, collected: &Collected) {
        for section in &collected.sections {
            let topic = pop.topic(section.source);
            let (group, queue_id, offset) = (&*pop.group, section.queue_id, section.next);
            let commit = Commit { group, topic, queue_id, offset };
            if self.offsets.pending_reset(group, topic, queue_id).is_some() {
                // If the log does not take that now, the next pop tries again.
                let _ = self.note_reset_taken(commit);
            }
            if section.is_progress && section.messages.is_empty() {
                self.offsets.note(commit);
            }
        }
    }

    /// O1: the record that says what is in flight. The messages are, from here on.
    fn stage_pop(&mut self, pop: Box<Pop>, collected: Collected, fx: &mut Effects) {
        let pop_time = self.now.wall_ms;
        let (until, is_ordered) = (pop_time + pop.invisible_ms, pop.is_ordered);
        let (mut popped_body, mut done_body) = (Vec::new(), Vec::new());
        let mut all = Vec::new();
        for section in &collected.sections {
            let topic = pop.topic(section.source);
            if !section.gone.is_empty() {
                encode_done(&pop.group, topic, section.queue_id, &section.gone, &mut done_body);
            }
            if section.messages.is_empty() {
                continue;
            }
            let flight = |given: &Given| {
                (given.range.offset, Flight { pop_time, until, times: given.times, is_ordered })
            };
            let popped = Popped {
                group: &pop.group,
                topic,
                queue_id: section.queue_id,
                next: section.next,
                attempt: if is_ordered { &pop.attempt } else { "" },
                flights: section.messages.iter().map(flight).collect(),
            };
            encode_popped(&popped, &mut popped_body);
            all.push(popped);
        }
        let block = match self.append_record(kind::POPPED, &popped_body) {
            Ok(block) => block,
            Err(refusal) => {
                return fx.replies.push(pop.to, refusal.code, Some(&refusal.remark), &(), &[]);
            }
        };
        let end = self.log.end();
        for popped in all {
            let Popped { group, topic, queue_id, next, attempt, flights } = popped;
            self.pops.flights.put(group, topic, queue_id, attempt, flights);
            self.offsets.set(Commit { group, topic, queue_id, offset: next });
        }
        if !done_body.is_empty() {
            self.append_done(&done_body);
        }
        // A place for the answer, should it have to wait.
        self.pending(block);
        let Collected { sections, rest, .. } = collected;
        self.read_popped(Box::new(PopRead { pop, pop_time, staged: Some((block, end)), sections, rest }), fx);
    }

    /// Messages are done with. If the log does not take the record, they stay in flight until it does.
    fn append_done(&mut self, body: &[u8]) -> bool {
        let is_taken = self.append_record(kind::DONE, body).is_ok();
        if is_taken {
            for done in decode_done(body).expect("just encoded") {
                for range in done.ranges {
                    self.pops.flights.remove(done.group, done.topic, done.queue_id, range);
                }
            }
        }
        is_taken
    }
}

fn messages_max(asked: i32) -> Result<usize, Refusal> {
    let count = usize::try_from(asked).ok().filter(|count| (1..=POP_MESSAGES_MAX).contains(count));
    count.ok_or_else(|| {
        let remark = format!("maxMsgNums {asked} must be 1 to {POP_MESSAGES_MAX}");
        Refusal::new(ResponseCode::INVALID_PARAMETER, remark)
    })
}
