//! Reads of the log for messages that are not in the tail any more.
//!
//! C1  What is read is a *stretch*: blocks one behind the other, from the start of one of them. Each is checked before
//!     anything of it leaves, once.
//! C2  A first block that is found damaged is read once more: a disk may stutter. If it stays damaged it costs the messages
//!     in it and is reported; it stops nobody. Behind a damaged block a stretch ends.
//! C3  The last few stretches are kept, so that readers of neighbouring queues, and the next pull, find them. A read serves
//!     all who wait for something in it.
//! C4  Behind a stretch that a pull was served from, the next one is read ahead while nothing else is to be read.
//! C5  Few reads are under way at a time, and fewer while the log is being written: a disk serves what it was asked in
//!     order, and a durable send must not wait behind megabytes that somebody else catches up with. Of those that wait,
//!     who waits longest and who is farthest back take turns: those behind come up with the others and share their reads,
//!     and nobody waits for ever.
//! C6  While messages are being sent, old ones come in small pieces: reads and answers are shorter, and a turn gives
//!     one answer out of what was read. Who sends waits for the rest of a turn, and for the read that the disk is at.
//!     While the disk is at a write and nothing more is sent there is none, unless it is late: the kernel finishes a write on
//!     the core that the disk interrupts, this one perhaps, and a thread that is busy keeps it waiting for milliseconds.
//! C7  Where messages were left out of a segment that was rewritten, an index may still name them: they are not there. Nobody is to
//!     get there, as no queue begins before what it has given up; but a log that lost that record has only this.
//! C8  A pull is answered once it has what fits into an answer, out of as many stretches as that takes: where many queues
//!     share a log, one stretch has little of each, and many small answers cost more than what is in them. It keeps memory
//!     meanwhile, so few do that at a time.

mod beside_sends;
mod gather;

use super::Shard;
use super::delay::DelayLevel;
use super::effects::{Effects, FileRead, LogFile, ReplyTo};
use super::expiry::is_message;
use super::find::Find;
use super::limits::{
    COLD_CACHE_COUNT, COLD_GATHER_BYTES, COLD_READ_BYTES, COLD_READ_BYTES_BESIDE_WRITES,
    COLD_READS_BESIDE_WRITES_MAX, COLD_READS_MAX, COLD_WAITING_MAX,
};
use super::pop::{Pop, PopRead, Revive};
use super::relay::Question;
use super::retry::SendBack;
use bytes::Bytes;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::types::{PhysicalOffset, QueueOffset};
use ringmq_storage::block::{BLOCK_ALIGN, BlockError, BlockHeader};
use ringmq_storage::{BlockSpan, Entry, Missing, Record, SegmentBase, records};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

pub(super) use gather::ColdPull;

/// Messages of a queue that lie side by side in one block of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogRange {
    pub(super) position: PhysicalOffset,
    pub(super) len: u32,
    /// Where the block begins. Nobody asks that of what is in the tail, where the block may be open still, in async mode.
    pub(super) block: PhysicalOffset,
    /// Of the first message.
    pub(super) offset: QueueOffset,
}

impl LogRange {
    pub(super) fn end(&self) -> PhysicalOffset {
        PhysicalOffset(self.position.0 + u64::from(self.len))
    }
}

/// Who waits for a read.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A pull, and what was read for it so far.
    Pull(Box<ColdPull>),
    /// A look-up of the message at this position.
    View { to: ReplyTo, position: PhysicalOffset },
    /// A question for a client about the message at this position.
    Question { question: Box<Question>, position: PhysicalOffset },
    /// A search for messages with a key, of which the next one is here.
    Find { find: Box<Find>, position: PhysicalOffset },
    /// A message that its consumer sends back.
    SendBack { back: Box<SendBack>, position: PhysicalOffset },
    /// Messages of a delay level that are due, a range each.
    Delay { level: DelayLevel, ranges: Vec<LogRange> },
    /// Messages that were popped, of which the next to be read begins here.
    Popped(Box<PopRead>),
    /// A pop whose filter has to see the messages of a block.
    PopAgain { pop: Box<Pop>, block: PhysicalOffset },
    /// A popped message whose time is over.
    Revive { revive: Revive, range: LogRange },
}

impl Purpose {
    /// Who is to be told if the read cannot be made; `None` if that is the shard itself.
    fn asker(&self) -> Option<ReplyTo> {
        match self {
            Purpose::Pull(cold) => Some(cold.pull.to),
            Purpose::View { to, .. } => Some(*to),
            Purpose::Question { question, .. } => Some(question.to),
            Purpose::Find { find, .. } => Some(find.to),
            Purpose::SendBack { back, .. } => Some(back.to),
            Purpose::Popped(read) => Some(read.to()),
            Purpose::PopAgain { pop, .. } => Some(pop.to),
            Purpose::Delay { .. } | Purpose::Revive { .. } => None,
        }
    }
}

/// A part of the log that was read, as far as it was found right.
pub(super) struct Stretch {
    start: PhysicalOffset,
    bytes: Bytes,
    /// Blocks that were checked, in order.
    blocks: Vec<BlockSpan>,
    /// Where the block behind them may begin.
    next: PhysicalOffset,
}

/// What a stretch has of a place in the log.
pub(super) enum Seen {
    Bytes(Bytes),
    /// Nothing: its block is damaged, or there is no such thing.
    Nothing,
    /// The stretch ends before it, and the block behind begins here.
    Behind(PhysicalOffset),
}

impl Stretch {
    fn slice(&self, position: PhysicalOffset, len: u32) -> Bytes {
        let from = (position.0 - self.start.0) as usize;
        self.bytes.slice(from..from + len as usize)
    }

    fn rest(&self, position: PhysicalOffset) -> &[u8] {
        self.bytes.get((position.0 - self.start.0) as usize..).unwrap_or_default()
    }

    /// Whether the block that begins here is there and was found right.
    fn has(&self, block: PhysicalOffset) -> bool {
        self.blocks.binary_search_by_key(&block, |b| b.start).is_ok()
    }

    fn range(&self, range: LogRange) -> Seen {
        if !self.has(range.block) {
            return if range.block > self.start { Seen::Behind(self.next) } else { Seen::Nothing };
        }
        let bytes = self.slice(range.position, range.len);
        if is_message(&bytes) { Seen::Bytes(bytes) } else { Seen::Nothing } // C7
    }

    /// The message that begins at a position.
    fn message(&self, position: PhysicalOffset, shard: &Shard) -> Seen {
        let at = self.blocks.partition_point(|block| block.start <= position);
        match at.checked_sub(1).map(|at| self.blocks[at]).filter(|block| position < block.end()) {
            Some(block) => {
                let bytes = self.slice(block.start, block.len);
                shard.message_in(block.start, &bytes, position).map_or(Seen::Nothing, Seen::Bytes)
            }
            None if at == self.blocks.len() && self.next <= position && self.next > self.start => {
                Seen::Behind(self.next)
            }
            None => Seen::Nothing,
        }
    }
}

/// Why the first block of a read is not there.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    /// It says that it has this many bytes.
    #[error("only a part of its {0} bytes is there")]
    Longer(u32),
    #[error(transparent)]
    Block(BlockError),
}

#[derive(Clone, Copy)]
struct ColdRead {
    at: ReadAt,
    len: u32,
    is_second_try: bool,
}

impl ColdRead {
    fn covers(&self, at: ReadAt) -> bool {
        self.at == at || (self.at.block..self.end()).contains(&at.block)
    }

    fn end(&self) -> PhysicalOffset {
        PhysicalOffset(self.at.block.0 + u64::from(self.len))
    }
}

/// Where a stretch is to begin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ReadAt {
    block: PhysicalOffset,
    /// A block begins there, as the index says; else there or in the next sector.
    is_exact: bool,
}

/// How many of those who wait longest are looked at for one who waits for no read under way: the others get theirs soon.
const OLDEST_SEEN_MAX: usize = 64;

/// Tells those apart who wait for the same place, oldest first.
type Ticket = u64;

#[derive(Default)]
pub(super) struct ColdReads {
    in_flight: BTreeMap<u64, ColdRead>,
    waiting: BTreeMap<(ReadAt, Ticket), Purpose>,
    /// The same, oldest first.
    by_age: BTreeMap<Ticket, ReadAt>,
    next_ticket: Ticket,
    /// C6: pulls that a later turn answers from these.
    ready: VecDeque<(Purpose, Rc<Stretch>)>,
    /// When the log was last seen being written.
    wrote_at_ms: Option<i64>,
    /// Something was appended in this turn.
    has_appended: bool,
    /// Since when nothing has left `ready`.
    waiting_since_ms: i64,
    /// The next read is for who waits longest.
    is_turn_of_oldest: bool,
    /// Newest last.
    kept: VecDeque<Rc<Stretch>>,
    /// Where damage was found last: it is not read ahead again.
    damaged: Option<PhysicalOffset>,
    segment_bytes: u64,
}

impl ColdReads {
    pub(super) fn new(segment_bytes: u64) -> Self {
        ColdReads { segment_bytes, ..ColdReads::default() }
    }

    /// A kept stretch that has the block at `block`.
    fn kept(&self, block: PhysicalOffset) -> Option<&Rc<Stretch>> {
        self.kept.iter().rev().find(|stretch| stretch.has(block))
    }

    fn keep(&mut self, stretch: Rc<Stretch>) {
        if self.kept.len() == COLD_CACHE_COUNT {
            self.kept.pop_front();
        }
        self.kept.push_back(stretch);
    }

    pub(super) fn on_appended(&mut self) {
        self.has_appended = true;
    }

    /// True while pulls wait for their turn to be answered.
    pub(super) fn has_answers(&self) -> bool {
        !self.ready.is_empty()
    }

    /// True while a read of the segment is under way.
    pub(super) fn is_reading(&self, segment: SegmentBase) -> bool {
        self.in_flight.values().any(|read| SegmentBase::of(read.at.block, self.segment_bytes) == segment)
    }

    fn wait(&mut self, at: ReadAt, purpose: Purpose) {
        self.waiting.insert((at, self.next_ticket), purpose);
        self.by_age.insert(self.next_ticket, at);
        self.next_ticket += 1;
    }

    fn take(&mut self, at: ReadAt, ticket: Ticket) -> Option<Purpose> {
        self.by_age.remove(&ticket);
        self.waiting.remove(&(at, ticket))
    }

    /// Those who wait for exactly this place, oldest first.
    fn take_all_at(&mut self, at: ReadAt) -> Vec<Purpose> {
        let tickets: Vec<Ticket> =
            self.waiting.range((at, 0)..=(at, Ticket::MAX)).map(|((_, ticket), _)| *ticket).collect();
        tickets.into_iter().filter_map(|ticket| self.take(at, ticket)).collect()
    }

    /// Those whose block is in a stretch.
    fn take_all_in(&mut self, stretch: &Stretch) -> Vec<Purpose> {
        let from = ReadAt { block: stretch.start, is_exact: false };
        let to = ReadAt { block: stretch.next, is_exact: false };
        let waiting = self.waiting.range((from, 0)..(to, 0)).map(|(key, _)| *key);
        let is_there = |(at, _): &(ReadAt, Ticket)| stretch.has(at.block);
        let found: Vec<(ReadAt, Ticket)> = waiting.filter(is_there).collect();
        found.into_iter().filter_map(|(at, ticket)| self.take(at, ticket)).collect()
    }

    fn covering(&self, at: ReadAt) -> Option<&ColdRead> {
        self.in_flight.values().find(|read| read.covers(at))
    }

    /// C5: where the next read is to begin, if somebody waits for what no read under way will bring.
    fn next_to_read(&mut self) -> Option<ReadAt> {
        self.is_turn_of_oldest = !self.is_turn_of_oldest;
        if self.is_turn_of_oldest {
            let mut oldest = self.by_age.values().take(OLDEST_SEEN_MAX).copied();
            if let Some(at) = oldest.find(|at| self.covering(*at).is_none()) {
                return Some(at);
            }
        }
        let mut from = ReadAt { block: PhysicalOffset(0), is_exact: false };
        loop {
            let ((at, _), _) = self.waiting.range((from, 0)..).next()?;
            match self.covering(*at) {
                None => return Some(*at),
                // The next one that this read does not bring.
                Some(read) if at.block < read.end() => from = ReadAt { block: read.end(), is_exact: false },
                Some(_) => return None,
            }
        }
    }
}

impl Shard {
    /// Where a message is, and whether it has to be read. Its block is known for messages of sealed segments.
    pub(super) fn log_range(
        &self,
        offset: QueueOffset,
        entry: Entry,
        block: Option<PhysicalOffset>,
    ) -> (LogRange, bool) {
        let is_cold = entry.position < self.log.tail_start();
        let in_memory = || self.log.blocks().containing(entry.position).expect("indexed, not sealed").start;
        let block = if is_cold { block.unwrap_or_else(in_memory) } else { PhysicalOffset(0) };
        (LogRange { position: entry.position, len: entry.size, block, offset }, is_cold)
    }

    /// How far the ranges may go of a pull that begins with the block at `block` and gathers (C8).
    pub(super) fn gather_limit(&self, block: PhysicalOffset) -> PhysicalOffset {
        self.cold_limit(block).max(PhysicalOffset(block.0 + COLD_GATHER_BYTES))
    }

    /// How far ranges may go that are to be read together with the block at `block`.
    pub(super) fn cold_limit(&self, block: PhysicalOffset) -> PhysicalOffset {
        match self.cold.kept(block) {
            Some(stretch) => stretch.next,
            None => PhysicalOffset(block.0 + u64::from(self.cold_len(block))),
        }
    }

    /// Bytes to read from a block on: a stretch, as far as its segment and the durable log go.
    fn cold_len(&self, block: PhysicalOffset) -> u32 {
        let (segment, offset) = self.locate(block);
        let in_segment = self.log.config().segment_bytes - offset;
        let left = in_segment.min(self.log.durable().0.saturating_sub(segment.0 + offset));
        // Where blocks are long, half of one is of no use.
        let lately = self.cold.kept.back().and_then(|stretch| stretch.blocks.first());
        let piece = if self.is_beside_writes() { COLD_READ_BYTES_BESIDE_WRITES } else { COLD_READ_BYTES };
        let wanted = lately.map_or(piece, |block| piece.max(block.len));
        left.min(u64::from(wanted)) as u32
    }

    /// A read of as much, but without the part of a block at its end, as far as is known where blocks begin: it would be read again.
    fn new_read(&mut self, at: ReadAt) -> ColdRead {
        let len = self.cold_len(at.block);
        let last = self.block_before(PhysicalOffset(at.block.0 + u64::from(len)));
        // What lies between here and the next sector may be no block, but what is before one.
        let sector = at.block.0.next_multiple_of(u64::from(self.log.config().sector_bytes));
        let whole = last.ok().flatten().filter(|last| last.0 > sector);
        let len = whole.map_or(len, |end| (end.0 - at.block.0) as u32); // at most `len`
        ColdRead { at, len, is_second_try: false }
    }

    /// Gets the stretch that begins at a block, now or once it is read, and goes on with its purpose.
    pub(super) fn read_cold(&mut self, block: PhysicalOffset, purpose: Purpose, fx: &mut Effects) {
        self.read_stretch(ReadAt { block, is_exact: true }, purpose, fx);
    }

    fn read_stretch(&mut self, at: ReadAt, purpose: Purpose, fx: &mut Effects) {
        if let Some(stretch) = self.cold.kept(at.block).cloned() {
            return self.serve(purpose, &stretch, fx);
        }
        if self.cold.waiting.len() >= COLD_WAITING_MAX {
            let remark =
                format!("[OVERLOAD]{COLD_WAITING_MAX} reads of the log are waiting, which is the limit");
            return self.fail_read(purpose, ResponseCode::SYSTEM_BUSY, &remark, fx);
        }
        self.cold.wait(at, purpose);
        self.read_waiting(fx);
    }

    /// Makes reads for those who wait, as many as may be under way.
    pub(super) fn read_waiting(&mut self, fx: &mut Effects) {
        if self.cold.waiting.is_empty() || self.cold.has_answers() {
            return;
        }
        let reads_max = if self.is_beside_writes() { COLD_READS_BESIDE_WRITES_MAX } else { COLD_READS_MAX };
        while self.cold.in_flight.len() < reads_max
            && let Some(at) = self.cold.next_to_read()
        {
            if at.block < self.log_start() {
                // The segment was released meanwhile.
                self.give_up_read(at, fx);
            } else {
                let read = self.new_read(at);
                self.submit_cold(read, fx);
            }
        }
    }

    /// C4
    fn read_ahead(&mut self, stretch: &Stretch, fx: &mut Effects) {
        let at = ReadAt { block: stretch.next, is_exact: false };
        let is_kept = self.cold.kept.iter().any(|kept| (kept.start..kept.next).contains(&at.block));
        let is_cold = at.block < self.log.tail_start();
        let end = || self.segment_end(stretch.start).min(self.log.durable());
        let is_there = || Some(at.block) != self.cold.damaged && at.block < end();
        if self.cold.in_flight.is_empty() && self.cold.waiting.is_empty() && is_cold && !is_kept && is_there()
        {
            let read = self.new_read(at);
            self.submit_cold(read, fx);
        }
    }

    /// Where the last block ends of the segment around a position.
    fn segment_end(&self, position: PhysicalOffset) -> PhysicalOffset {
        let segment = self.locate(position).0;
        let in_memory = self.log.blocks().segment(segment).and_then(|blocks| blocks.end());
        let sealed = || self.sealed.header(segment).map(|header| header.end.position);
        in_memory.or_else(sealed).unwrap_or(position)
    }

    /// What is wanted there is gone. Where its queue begins now is a pull's next question.
    fn give_up_read(&mut self, at: ReadAt, fx: &mut Effects) {
        for purpose in self.cold.take_all_at(at) {
            match purpose {
                Purpose::Pull(cold) => self.evaluate(cold.pull, fx),
                purpose => {
                    let nothing =
                        Stretch { start: at.block, bytes: Bytes::new(), blocks: Vec::new(), next: at.block };
                    self.on_stretch(purpose, &nothing, fx);
                }
            }
        }
    }

    fn submit_cold(&mut self, read: ColdRead, fx: &mut Effects) {
        let id = self.next_read_id();
        let (segment, offset) = self.locate(read.at.block);
        fx.reads.push(FileRead { id, file: LogFile::Segment, segment, offset, len: read.len });
        self.cold.in_flight.insert(id, read);
    }

    /// A read has ended.
    pub fn on_read(&mut self, id: u64, result: Result<Bytes, String>, fx: &mut Effects) {
        if self.on_page_read(id, &result, fx) {
            return;
        }
        let read = self.cold.in_flight.remove(&id).expect("a read ends once");
        match result {
            Ok(bytes) => self.on_cold_bytes(read, bytes, fx),
            Err(reason) => {
                let at = read.at.block;
                let line = format!("reading {} bytes of the log at {at} failed: {reason}", read.len);
                for purpose in self.cold.take_all_at(read.at) {
                    self.fail_read(purpose, ResponseCode::SYSTEM_ERROR, &line, fx);
                }
                fx.log_error(format!("{}: {line}", self.config.broker_name));
            }
        }
        self.read_waiting(fx);
    }

    fn fail_read(&mut self, mut purpose: Purpose, code: ResponseCode, line: &str, fx: &mut Effects) {
        if let Purpose::Pull(cold) = purpose {
            match self.answer_gathered(cold, fx) {
                Some(cold) => purpose = Purpose::Pull(cold),
                None => return,
            }
        }
        if let Some(to) = purpose.asker() {
            fx.replies.push(to, code, Some(line), &(), &[]);
        }
        match purpose {
            Purpose::Delay { level, .. } => self.deliver_later(level),
            Purpose::Revive { revive, .. } => self.revive_failed(revive),
            _ => {}
        }
    }

    fn on_cold_bytes(&mut self, read: ColdRead, bytes: Bytes, fx: &mut Effects) {
        let (stretch, first) = self.check(read.at, bytes);
        // What lies before the first block, if it begins at the next sector.
        let before = if stretch.blocks.is_empty() { (stretch.next.0 - stretch.start.0) as u32 } else { 0 };
        match first {
            Ok(()) => {}
            Err(Wrong::Longer(len)) if before + len > read.len => {
                return self.submit_cold(ColdRead { len: before + len, ..read }, fx);
            }
            Err(problem) if !read.is_second_try => {
                fx.log(format!(
                    "{}: reading {} bytes of the log at {} again: {problem}",
                    self.config.broker_name, read.len, read.at.block
                ));
                return self.submit_cold(ColdRead { is_second_try: true, ..read }, fx);
            }
            Err(problem) => {
                self.cold.damaged = Some(read.at.block);
                fx.log_error(format!(
                    "{}: the block of the log at {} ({} bytes) is damaged: {problem}; its messages cannot be delivered",
                    self.config.broker_name,
                    stretch.next,
                    self.damaged_bytes(&stretch)
                ));
            }
        }
        let stretch = Rc::new(stretch);
        if !stretch.blocks.is_empty() {
            self.cold.keep(stretch.clone());
        }
        let mut served = self.cold.take_all_at(read.at);
        served.append(&mut self.cold.take_all_in(&stretch));
        for purpose in served {
            self.serve(purpose, &stretch, fx);
        }
    }

    /// C1: every block against its checksum. The result is what is to be said of the first one.
    fn check(&self, at: ReadAt, bytes: Bytes) -> (Stretch, Result<(), Wrong>) {
        let mut stretch = Stretch { start: at.block, bytes, blocks: Vec::new(), next: at.block };
        loop {
            // Between the end of a block and the next sector there is a block, the remains of one that was cut, or zeros.
            let end = stretch.next;
            let sector = end.0.next_multiple_of(u64::from(self.log.config().sector_bytes));
            let mut block = self.block_at(&stretch, end);
            let may_be_later = !at.is_exact || !stretch.blocks.is_empty();
            if block.is_err() && may_be_later && sector > end.0 {
                let later = self.block_at(&stretch, PhysicalOffset(sector));
                if matches!(later, Ok(_) | Err(Wrong::Longer(_))) {
                    (block, stretch.next) = (later, PhysicalOffset(sector));
                }
            }
            match block {
                Ok(header) => {
                    let len = header.block_bytes() as u32; // below BLOCK_BYTES_LIMIT
                    stretch.blocks.push(BlockSpan { start: stretch.next, len });
                    stretch.next = PhysicalOffset(header.end());
                }
                Err(problem) => {
                    let first = if stretch.blocks.is_empty() { Err(problem) } else { Ok(()) };
                    return (stretch, first);
                }
            }
        }
    }

    fn block_at(&self, stretch: &Stretch, position: PhysicalOffset) -> Result<BlockHeader, Wrong> {
        let rest = stretch.rest(position);
        let header = BlockHeader::read(rest, self.log.config().identity(), position).map_err(Wrong::Block)?;
        match header.verify(rest) {
            Ok(_) => Ok(header),
            Err(BlockError::Short) => Err(Wrong::Longer(header.block_bytes() as u32)), // below BLOCK_BYTES_LIMIT
            Err(error) => Err(Wrong::Block(error)),
        }
    }

    /// How far the damage at the start of a stretch goes: to the next right block.
    fn damaged_bytes(&self, stretch: &Stretch) -> u64 {
        let end = stretch.start.0 + stretch.bytes.len() as u64;
        let mut positions = (stretch.next.0 + BLOCK_ALIGN as u64..end).step_by(BLOCK_ALIGN);
        let next = positions.find(|position| self.block_at(stretch, PhysicalOffset(*position)).is_ok());
        next.unwrap_or(end).saturating_sub(stretch.next.0)
    }

    fn on_stretch(&mut self, purpose: Purpose, stretch: &Stretch, fx: &mut Effects) {
        match purpose {
            Purpose::Pull(cold) => self.answer_cold(*cold, stretch, fx),
            Purpose::View { to, position } => match stretch.message(position, self) {
                Seen::Behind(block) => {
                    self.read_stretch(ReadAt { block, is_exact: false }, Purpose::View { to, position }, fx)
                }
                Seen::Bytes(message) => self.reply_view(to, position, Some(message), fx),
                Seen::Nothing => self.reply_view(to, position, None, fx),
            },
            Purpose::Question { question, position } => match stretch.message(position, self) {
                Seen::Behind(block) => {
                    self.read_stretch(
                        ReadAt { block, is_exact: false },
                        Purpose::Question { question, position },
                        fx,
                    );
                }
                Seen::Bytes(message) => self.on_question_message(*question, message, fx),
                Seen::Nothing => self.reply_view(question.to, position, None, fx),
            },
            Purpose::Find { find, position } => match stretch.message(position, self) {
                Seen::Behind(block) => {
                    self.read_stretch(ReadAt { block, is_exact: false }, Purpose::Find { find, position }, fx)
                }
                Seen::Bytes(message) => self.on_candidate(find, Some(message), fx),
                Seen::Nothing => self.on_candidate(find, None, fx),
            },
            Purpose::SendBack { back, position } => match stretch.message(position, self) {
                Seen::Behind(block) => {
                    self.read_stretch(
                        ReadAt { block, is_exact: false },
                        Purpose::SendBack { back, position },
                        fx,
                    );
                }
                Seen::Bytes(message) => self.send_back(&back, position, Some(message), fx),
                Seen::Nothing => self.send_back(&back, position, None, fx),
            },
            Purpose::Delay { level, ranges } => {
                let mut found = Vec::with_capacity(ranges.len());
                for range in ranges {
                    match stretch.range(range) {
                        Seen::Bytes(bytes) => found.push((range.offset, Some(bytes))),
                        Seen::Nothing => found.push((range.offset, None)),
                        Seen::Behind(_) => break,
                    }
                }
                self.deliver(level, found, fx);
            }
            Purpose::Popped(mut read) => {
                for (range, bytes, is_lost) in read.wanted() {
                    match stretch.range(range) {
                        Seen::Bytes(found) => *bytes = Some(found),
                        // What lies before the stretch, or behind it, is read with another.
                        Seen::Nothing => *is_lost = range.block == stretch.start || stretch.has(range.block),
                        Seen::Behind(_) => {}
                    }
                }
                self.read_popped(read, fx);
            }
            Purpose::PopAgain { pop, block } => {
                self.pop_again(pop, block, stretch.has(block).then_some(stretch.bytes.len() as u64), fx);
            }
            Purpose::Revive { revive, range } => match stretch.range(range) {
                Seen::Bytes(message) => self.on_revived(revive, Some(message), fx),
                Seen::Nothing | Seen::Behind(_) => self.on_revived(revive, None, fx),
            },
        }
    }

    /// The start of the block around a position, or of one shortly before it. `None` if the log has nothing there.
    pub(super) fn block_before(
        &mut self,
        position: PhysicalOffset,
    ) -> Result<Option<PhysicalOffset>, Missing> {
        match self.log.blocks().containing(position) {
            Some(block) => Ok(Some(block.start).filter(|_| position < self.log.durable())),
            None => self.sealed.block_before(position),
        }
    }

    /// A range, if a kept stretch has it. It may be a gap: [`is_message`] tells.
    pub(super) fn kept_range(&self, range: LogRange) -> Option<Bytes> {
        Some(self.cold.kept(range.block)?.slice(range.position, range.len))
    }

    /// The message at a position, if a kept stretch has it.
    pub(super) fn kept_message(&self, position: PhysicalOffset) -> Option<Bytes> {
        let has = |stretch: &&Rc<Stretch>| stretch.start <= position && position < stretch.next;
        match self.cold.kept.iter().rev().find(has)?.message(position, self) {
            Seen::Bytes(message) => Some(message),
            Seen::Nothing | Seen::Behind(_) => None,
        }
    }

    /// The message that begins at `position`, out of the block around it, which was checked or comes from memory.
    pub(super) fn message_in(
        &self,
        block: PhysicalOffset,
        bytes: &Bytes,
        position: PhysicalOffset,
    ) -> Option<Bytes> {
        let header = BlockHeader::read(bytes, self.log.config().identity(), block);
        let block = header.and_then(|header| header.unchecked(bytes)).ok()?;
        records(&block).flatten().find_map(|record| match record {
            Record::Message { position: at, message } if at == position => {
                Some(bytes.slice_ref(message.as_bytes()))
            }
            _ => None,
        })
    }
}
