//! Delayed messages: stored in the schedule topic, one queue a level, and again in their real queue when they are due.
//!
//!   stored ─▶ durable ─▶ head of its level ─▶ due ─▶ read (tail or disk) ─▶ in one block: the message, and how far the level is
//!
//! D1  What delivers a message and the record that its level has passed it lie in one block: it is delivered once.
//! D2  A level is in order of its offsets, which is the order of the times at which its messages are due.
//! D3  One look-up or read of a level is under way at most; what fails is tried again, nothing is passed over but what is lost.
//! D4  A message is delivered as it was stored, in its real topic; its property DELAY does not delay it again.

use super::cold::{LogRange, Purpose};
use super::effects::Effects;
use super::limits::{
    DELAY_FAILED_MS, DELAY_LEVELS_MAX, DELAY_MS_MAX, DELAY_RETRY_MS, DELIVERY_BYTES_MAX, DELIVERY_COUNT_MAX,
};
use super::lookups::Waiter;
use super::records::{self, kind};
use super::retry::{Again, Place};
use super::{Refusal, Request, Shard};
use bytes::Bytes;
use ringmq_protocol::body::{Body, DataVersion, DelayOffsets};
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::name::RMQ_SYS_SCHEDULE_TOPIC;
use ringmq_protocol::properties::{self, names};
use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, StoreTimestamp};
use ringmq_storage::{Missing, QueueIx};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// RocketMQ's `messageDelayLevel`.
const DEFAULT_DELAYS: &str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h";

/// How long each level delays a message: level 1 is the first one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DelayTable {
    text: String,
    delays_ms: Vec<i64>,
}

impl DelayTable {
    pub(super) fn len(&self) -> usize {
        self.delays_ms.len()
    }

    /// The level that a message is stored in: above the last one there is none.
    pub(super) fn clamp(&self, level: u32) -> DelayLevel {
        DelayLevel(level.clamp(1, self.delays_ms.len() as u32))
    }

    fn delay_ms(&self, level: DelayLevel) -> i64 {
        self.delays_ms[level.index().min(self.delays_ms.len() - 1)]
    }
}

impl Default for DelayTable {
    fn default() -> Self {
        DEFAULT_DELAYS.parse().expect("the table is right")
    }
}

impl fmt::Display for DelayTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for DelayTable {
    type Err = String;

    /// Times separated by spaces: `1s 5s 10m 2h`, also `100ms`.
    fn from_str(text: &str) -> Result<Self, String> {
        let delay = |word: &str| {
            let ms = match word.strip_suffix("ms").map(str::parse::<u64>) {
                Some(ms) => ms.ok(),
                None => {
                    crate::config::parse_duration(word).ok().and_then(|time| time.as_millis().try_into().ok())
                }
            };
            let ms = ms.and_then(|ms| i64::try_from(ms).ok());
            ms.filter(|ms| (1..=DELAY_MS_MAX).contains(ms)).ok_or_else(|| {
                format!("{word:?} is no delay: use a number and ms, s, m, h or d, from 1ms to 366d, like 10s")
            })
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() || words.len() > DELAY_LEVELS_MAX {
            return Err(format!(
                "there are {} delay levels, between 1 and {DELAY_LEVELS_MAX} are allowed, like \"1s 5s 10s\"",
                words.len()
            ));
        }
        let delays_ms = words.iter().map(|word| delay(word)).collect::<Result<_, _>>()?;
        Ok(DelayTable { text: words.join(" "), delays_ms })
    }
}

/// A delay level, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DelayLevel(pub(super) u32);

impl DelayLevel {
    fn of_index(index: usize) -> Self {
        DelayLevel(index as u32 + 1) // there are few
    }

    fn index(self) -> usize {
        self.0 as usize - 1
    }

    /// The queue of the schedule topic that has its messages.
    pub(super) fn queue_id(self) -> QueueId {
        QueueId(self.0 - 1)
    }
}

/// What a level waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Head {
    /// For a message.
    Empty,
    /// For this wall time: then there is something to do, maybe to look again.
    At(i64),
    /// For a read.
    Busy,
}

#[derive(Debug)]
struct Level {
    /// The next message to be delivered; those before it are.
    next: QueueOffset,
    head: Head,
    /// End of the log when `next` last moved: before that is durable, a crash undoes it.
    moved: PhysicalOffset,
    /// What `next` was before, or earlier, and durable.
    settled: QueueOffset,
}

impl Level {
    /// How far the level is whatever happens.
    fn durable(&self, durable: PhysicalOffset) -> QueueOffset {
        if self.moved <= durable { self.next } else { self.settled }
    }
}

/// How far each level is.
#[derive(Debug)]
pub(super) struct Delays {
    table: DelayTable,
    levels: Vec<Level>,
    /// The earliest time that a level waits for.
    wake_ms: i64,
}

impl Delays {
    /// After recovery, with the next offset of each level as the log has it. All levels look at their queues first.
    pub(super) fn new(table: DelayTable, recovered: &[QueueOffset]) -> Self {
        let level = |index| Level {
            next: recovered.get(index).copied().unwrap_or_default(),
            head: Head::At(i64::MIN),
            moved: PhysicalOffset(0),
            settled: QueueOffset(0),
        };
        let levels = (0..table.len().max(recovered.len())).map(level).collect();
        Delays { table, levels, wake_ms: i64::MIN }
    }

    pub(super) fn table(&self) -> &DelayTable {
        &self.table
    }

    /// The next offset of each level that has delivered something, as the log will have it.
    pub(super) fn progress(&self) -> impl Iterator<Item = (DelayLevel, QueueOffset)> + '_ {
        let moved = self.levels.iter().enumerate().filter(|(_, level)| level.next > QueueOffset(0));
        moved.map(|(index, level)| (DelayLevel::of_index(index), level.next))
    }

    /// Wall time at which a level has something to do.
    pub(super) fn wake_ms(&self) -> Option<i64> {
        (self.wake_ms < i64::MAX).then_some(self.wake_ms)
    }

    /// A message of the level was staged.
    pub(super) fn on_staged(&mut self, level: DelayLevel, stored: StoreTimestamp) {
        if self.levels[level.index()].head == Head::Empty {
            self.set(level, Head::At(self.due_ms(level, stored)));
        }
    }

    /// When a message of the level is due. Times are whole milliseconds, rounded down: only the next one is never too early.
    fn due_ms(&self, level: DelayLevel, stored: StoreTimestamp) -> i64 {
        stored.0 + self.table.delay_ms(level) + 1
    }

    fn set(&mut self, level: DelayLevel, head: Head) {
        self.levels[level.index()].head = head;
        let times = self.levels.iter().filter_map(|level| match level.head {
            Head::At(ms) => Some(ms),
            Head::Empty | Head::Busy => None,
        });
        self.wake_ms = times.min().unwrap_or(i64::MAX);
    }
}

/// Messages that are due, or what the level waits for instead.
struct Due {
    ranges: Vec<LogRange>,
    bytes: u64,
    /// The first of the blocks to be read, if they are not in the tail, and how far one read goes.
    cold: Option<(PhysicalOffset, PhysicalOffset)>,
    head: Head,
}

impl Shard {
    /// Once a turn: what is due by now.
    pub(super) fn deliver_due(&mut self, fx: &mut Effects) {
        if self.delays.wake_ms > self.now.wall_ms || self.log.poisoned().is_some() {
            return;
        }
        for level in (0..self.delays.levels.len()).map(DelayLevel::of_index) {
            if matches!(self.delays.levels[level.index()].head, Head::At(ms) if ms <= self.now.wall_ms) {
                self.deliver_level(level, fx);
            }
        }
    }

    /// Looks at the head of a level, and delivers what is due.
    pub(super) fn deliver_level(&mut self, level: DelayLevel, fx: &mut Effects) {
        let due = match self.due_messages(level) {
            Ok(due) => due,
            Err(missing) => {
                self.delays.set(level, Head::Busy);
                return self.wait_for(missing, Waiter::Delay(level), fx);
            }
        };
        if due.ranges.is_empty() {
            return self.delays.set(level, due.head);
        }
        match due.cold {
            None => {
                let tail = |range: LogRange| (range.offset, self.log.tail(range.position, range.len));
                let found = due.ranges.into_iter().map(tail).collect();
                self.deliver(level, found, fx);
            }
            Some((block, _)) => {
                self.delays.set(level, Head::Busy);
                self.read_cold(block, Purpose::Delay { level, ranges: due.ranges }, fx);
            }
        }
    }

    fn due_messages(&mut self, level: DelayLevel) -> Result<Due, Missing> {
        let retry = Head::At(self.now.wall_ms + DELAY_RETRY_MS);
        let mut due = Due { ranges: Vec::new(), bytes: 0, cold: None, head: retry };
        let next = self.delays.levels[level.index()].next;
        let queue = self.known_queue(RMQ_SYS_SCHEDULE_TOPIC, level.queue_id());
        let Some(queue) = queue.filter(|queue| next < self.index.max(*queue)) else {
            return Ok(Due { head: Head::Empty, ..due });
        };
        let visible = self.queues[queue.0 as usize].visible;
        let sealed = self.sealed_entries(queue, next, DELIVERY_COUNT_MAX)?;
        for (offset, sealed) in &sealed {
            let range = LogRange {
                position: sealed.entry.position,
                len: sealed.entry.size,
                block: sealed.block,
                offset: *offset,
            };
            if !self.add_due(&mut due, level, range, sealed.store_timestamp) {
                return Ok(due);
            }
        }
        if sealed.is_empty() {
            self.due_in_memory(&mut due, level, queue, next, visible);
        }
        Ok(due)
    }

    fn due_in_memory(
        &mut self,
        due: &mut Due,
        level: DelayLevel,
        queue: QueueIx,
        next: QueueOffset,
        visible: QueueOffset,
    ) {
        let mut entries = self.index.entries(queue, next, visible).peekable();
        if entries.peek().is_none() && visible == self.index.max(queue) {
            // Offsets that are lost: the log was damaged there.
            due.head = Head::Empty;
        }
        for (offset, entry) in entries {
            // In async mode it may be visible before its block is even sealed.
            let (Some(block), Some(stored)) = (
                self.log.blocks().containing(entry.position),
                self.log.blocks().store_timestamp(entry.position),
            ) else {
                return;
            };
            let range = LogRange { position: entry.position, len: entry.size, block: block.start, offset };
            if !self.add_due(due, level, range, stored) {
                return;
            }
        }
    }

    /// Adds a message if it is due and goes with those before it.
    fn add_due(&self, due: &mut Due, level: DelayLevel, range: LogRange, stored: StoreTimestamp) -> bool {
        let at_ms = self.delays.due_ms(level, stored);
        let is_cold = range.position < self.log.tail_start();
        if range.position >= self.log.durable() {
            return false;
        }
        if at_ms > self.now.wall_ms {
            due.head = Head::At(at_ms);
            return false;
        }
        if due.ranges.is_empty() {
            due.cold = is_cold.then(|| (range.block, self.cold_limit(range.block)));
        } else {
            let bytes = due.bytes + u64::from(range.len);
            let is_full = due.ranges.len() == DELIVERY_COUNT_MAX || bytes > DELIVERY_BYTES_MAX;
            let is_elsewhere =
                is_cold != due.cold.is_some() || due.cold.is_some_and(|(_, limit)| range.end() > limit);
            if is_full || is_elsewhere {
                return false;
            }
        }
        due.bytes += u64::from(range.len);
        due.ranges.push(range);
        true
    }

    /// D1: stores messages that are due in their real queues, and how far the level is now. Where there are no bytes the block is
    /// damaged, which was said when it was read.
    pub(super) fn deliver(
        &mut self,
        level: DelayLevel,
        found: Vec<(QueueOffset, Option<Bytes>)>,
        fx: &mut Effects,
    ) {
        let Some((last, _)) = found.last() else {
            return self.delays.set(level, Head::At(self.now.wall_ms));
        };
        let next = QueueOffset(last.0 + 1);
        let mut dropped = 0;
        let mut again = Vec::with_capacity(found.len());
        for bytes in found.iter().filter_map(|(_, bytes)| bytes.as_ref()) {
            // Its block was right, so it is a message.
            let Ok((message, _)) = StoredMessage::parse(bytes) else { continue };
            match self.real_place(&message) {
                Some(place) => again.push(Again {
                    message,
                    place,
                    reconsume_times: message.reconsume_times(),
                    properties: Cow::Borrowed(message.properties().as_bytes()),
                }),
                None => dropped += 1,
            }
        }
        let progress = records::encode_levels([(level, next)].into_iter());
        if self.stage_together(&again, &[(kind::DELAY, &progress)]).is_err() {
            // A full disk, or one that is behind: it waits.
            return self.delays.set(level, Head::At(self.now.wall_ms + DELAY_RETRY_MS));
        }
        if dropped > 0 {
            let broker_name = &self.config.broker_name;
            fx.log(format!(
                "{broker_name}: {dropped} delayed messages went with their topic, which was deleted"
            ));
        }
        let state = &mut self.delays.levels[level.index()];
        assert!(state.next < next, "D2: a level only goes on");
        state.settled = state.durable(self.log.durable());
        (state.next, state.moved) = (next, self.log.end());
        // There may be more, which is found out in the next turn.
        self.delays.set(level, Head::At(self.now.wall_ms));
    }

    /// A read or look-up of a level failed, which was said where it failed.
    pub(super) fn deliver_later(&mut self, level: DelayLevel) {
        self.delays.set(level, Head::At(self.now.wall_ms + DELAY_FAILED_MS));
    }

    /// Where a delayed message is to go; `None` if there is no such topic any more.
    fn real_place(&mut self, message: &StoredMessage<'_>) -> Option<Place> {
        let topic = message.property(names::REAL_TOPIC)?;
        let queue_id = message.property(names::REAL_QUEUE_ID)?.parse().ok()?;
        let config = &self.topics.get(topic)?.config;
        // A topic may have been made anew with fewer queues.
        let count = config.read_queue_nums.min(config.write_queue_nums).max(1);
        let known = self.known_queue(topic, QueueId(queue_id)).is_some();
        self.place(topic, QueueId(if known { queue_id } else { queue_id % count }), None)
    }

    /// The queue that messages of a level are stored in.
    pub(super) fn schedule_place(&mut self, level: DelayLevel) -> Place {
        let place = self.place(RMQ_SYS_SCHEDULE_TOPIC, level.queue_id(), Some(level));
        place.expect("every broker has the schedule topic")
    }

    /// A segment with messages that are still to be delivered cannot go: names the first level that has some before `end`.
    pub(super) fn undelivered_before(&mut self, end: PhysicalOffset) -> Result<Option<DelayLevel>, Missing> {
        for level in (0..self.delays.levels.len()).map(DelayLevel::of_index) {
            let next = self.delays.levels[level.index()].durable(self.log.durable());
            let Some(queue) = self.known_queue(RMQ_SYS_SCHEDULE_TOPIC, level.queue_id()) else { continue };
            let first = self.sealed_entries(queue, next, 1)?;
            if first.first().is_some_and(|(_, sealed)| sealed.entry.position < end) {
                return Ok(Some(level));
            }
        }
        Ok(None)
    }

    /// GET_ALL_DELAY_OFFSET (45).
    pub(super) fn on_delay_offsets(&self, request: &Request<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let durable = self.log.durable();
        let levels = self.delays.levels.iter().map(|level| level.durable(durable).0 as i64);
        let offset_table = (1..).zip(levels).filter(|(_, next)| *next > 0).collect();
        let body = DelayOffsets { data_version: DataVersion::default(), offset_table };
        fx.replies.push(request.to, ResponseCode::SUCCESS, None, &(), &body.to_json());
        Ok(())
    }

    /// For the running information: the next offset of each level that is in use, and how many its queue has.
    pub(super) fn delay_info(&self) -> impl Iterator<Item = (String, String)> + '_ {
        (0..self.delays.levels.len()).filter_map(|index| {
            let level = DelayLevel::of_index(index);
            let queue = self.known_queue(RMQ_SYS_SCHEDULE_TOPIC, level.queue_id())?;
            let next = self.delays.levels[index].durable(self.log.durable());
            let max = self.queues[queue.0 as usize].visible;
            Some((format!("scheduleMessageOffset_{}", level.0), format!("{next},{max}")))
        })
    }
}

/// Properties that a delayed message gets: where it goes, and that nobody waits for that. Those of these names that it had before
/// are to be left out, see [`is_of_delay`].
pub(super) fn put_real(out: &mut Vec<u8>, topic: &str, queue_id: QueueId) {
    for (name, value) in [
        (names::WAIT_STORE_MSG_OK, "false"),
        (names::REAL_TOPIC, topic),
        (names::REAL_QUEUE_ID, &*queue_id.to_string()),
    ] {
        properties::put(out, name, value).expect("names of topics have no separators");
    }
}

/// True for properties that [`put_real`] writes.
pub(super) fn is_of_delay(name: &[u8]) -> bool {
    matches!(name, b"WAIT" | b"REAL_TOPIC" | b"REAL_QID")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_or_refused_with_the_reason() {
        let table = DelayTable::default();
        assert_eq!((table.len(), table.to_string()), (18, DEFAULT_DELAYS.to_owned()));
        let delay = |level| table.delay_ms(table.clamp(level));
        assert_eq!([1, 4, 18, 19, 4000].map(delay), [1_000, 30_000, 7_200_000, 7_200_000, 7_200_000]);
        let short: DelayTable = " 100ms  2d ".parse().unwrap();
        assert_eq!((short.delays_ms.clone(), short.to_string()), (vec![100, 172_800_000], "100ms 2d".into()));
        let many = "1s ".repeat(DELAY_LEVELS_MAX + 1);
        for wrong in ["", "1s 5", "0s", "-1s", "ms", "1y", "367d", "99999999999999999999ms", &many] {
            let error = wrong.parse::<DelayTable>().unwrap_err();
            assert!(error.contains("delay"), "{wrong}: {error}");
        }
    }
}
