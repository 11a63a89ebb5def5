//! Reads of the log for messages that are not in the tail any more.
//!
//! C1  What is read is a *stretch*: whole blocks. Every block of it is checked before anything of it leaves, once.
//! C2  What is found damaged is read once more: a disk may stutter. A block that stays damaged costs the messages in it
//!     and is reported; it stops nobody.
//! C3  The last few stretches are kept, so that readers of neighbouring queues, and the next pull, find them.

use super::Shard;
use super::effects::{Effects, LogRead, ReplyTo};
use super::hold::Pull;
use super::limits::{COLD_CACHE_COUNT, COLD_READ_BYTES_MAX, COLD_READS_MAX, COLD_WAITING_MAX};
use bytes::Bytes;
use ringmq_protocol::code::ResponseCode;
use ringmq_protocol::types::{PhysicalOffset, QueueOffset};
use ringmq_storage::BlockSpan;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// A range of the log within one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogRange {
    pub(super) position: PhysicalOffset,
    pub(super) len: u32,
}

impl LogRange {
    pub(super) fn end(&self) -> PhysicalOffset {
        PhysicalOffset(self.position.0 + u64::from(self.len))
    }
}

/// Who waits for a read.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A pull: these messages, and where it goes on.
    Pull { pull: Pull, ranges: Vec<LogRange>, next: QueueOffset },
    /// A look-up of the message at this position.
    View { to: ReplyTo, position: PhysicalOffset },
}

impl Purpose {
    fn reply_to(&self) -> ReplyTo {
        match self {
            Purpose::Pull { pull, .. } => pull.to,
            Purpose::View { to, .. } => *to,
        }
    }
}

/// A stretch of the log that was read and checked.
pub(super) struct Stretch {
    span: BlockSpan,
    bytes: Bytes,
    damaged: Vec<BlockSpan>,
}

impl Stretch {
    /// The bytes of a range in it, unless the block around it is damaged.
    fn get(&self, range: LogRange) -> Option<Bytes> {
        let is_damaged =
            self.damaged.iter().any(|block| block.start <= range.position && range.end() <= block.end());
        let from = (range.position.0 - self.span.start.0) as usize;
        (!is_damaged).then(|| self.bytes.slice(from..from + range.len as usize))
    }
}

struct ColdRead {
    span: BlockSpan,
    is_second_try: bool,
    purpose: Purpose,
}

#[derive(Default)]
pub(super) struct ColdReads {
    next_id: u64,
    in_flight: BTreeMap<u64, ColdRead>,
    waiting: VecDeque<ColdRead>,
    /// Newest last.
    kept: VecDeque<Rc<Stretch>>,
}

impl ColdReads {
    fn kept(&self, position: PhysicalOffset) -> Option<&Rc<Stretch>> {
        self.kept.iter().rev().find(|stretch| stretch.span.start <= position && position < stretch.span.end())
    }

    fn keep(&mut self, stretch: Rc<Stretch>) {
        if self.kept.len() == COLD_CACHE_COUNT {
            self.kept.pop_front();
        }
        self.kept.push_back(stretch);
    }

    fn submit(&mut self, read: ColdRead, fx: &mut Effects) {
        if self.in_flight.len() >= COLD_READS_MAX {
            return self.waiting.push_back(read);
        }
        let id = self.next_id;
        self.next_id += 1;
        fx.reads.push(LogRead { id, position: read.span.start, len: read.span.len });
        self.in_flight.insert(id, read);
    }
}

impl Shard {
    /// The stretch from which a message at `position` would be taken: one that is kept, or one to be read.
    pub(super) fn cold_span(&self, position: PhysicalOffset) -> BlockSpan {
        let to_read = || self.log.blocks().stretch(position, COLD_READ_BYTES_MAX, self.log.durable());
        let kept = self.cold.kept(position).map(|stretch| stretch.span);
        kept.or_else(to_read).expect("the index names only what is in a block")
    }

    /// Gets a stretch, now or once it is read, and goes on with its purpose.
    pub(super) fn read_cold(&mut self, span: BlockSpan, purpose: Purpose, fx: &mut Effects) {
        match self.cold.kept(span.start).filter(|stretch| stretch.span == span).cloned() {
            Some(stretch) => self.on_stretch(purpose, &stretch, fx),
            None if self.cold.waiting.len() >= COLD_WAITING_MAX => {
                let remark =
                    format!("[OVERLOAD]{COLD_WAITING_MAX} reads of the log are waiting, which is the limit");
                fx.replies.push(purpose.reply_to(), ResponseCode::SYSTEM_BUSY, Some(&remark), &(), &[]);
            }
            None => self.cold.submit(ColdRead { span, is_second_try: false, purpose }, fx),
        }
    }

    /// A read of the log has ended.
    pub fn on_read(&mut self, id: u64, result: Result<Bytes, String>, fx: &mut Effects) {
        let read = self.cold.in_flight.remove(&id).expect("a read ends once");
        let span = read.span;
        match result {
            Ok(bytes) => {
                let (stretch, problems) = self.check(span, bytes);
                if !problems.is_empty() && !read.is_second_try {
                    fx.log(format!(
                        "{}: reading {} bytes of the log at {} again: {}",
                        self.config.broker_name, span.len, span.start, problems[0]
                    ));
                    return self.cold.submit(ColdRead { is_second_try: true, ..read }, fx);
                }
                let stretch = Rc::new(stretch);
                if problems.is_empty() {
                    self.cold.keep(stretch.clone());
                }
                for problem in problems {
                    fx.log_error(format!(
                        "{}: {problem}; its messages cannot be delivered",
                        self.config.broker_name
                    ));
                }
                self.on_stretch(read.purpose, &stretch, fx);
            }
            Err(reason) => {
                let line =
                    format!("reading {} bytes of the log at {} failed: {reason}", span.len, span.start);
                self.refuse_read(read.purpose.reply_to(), &line, fx);
                fx.log_error(format!("{}: {line}", self.config.broker_name));
            }
        }
        if let Some(waiting) = self.cold.waiting.pop_front() {
            self.read_cold(waiting.span, waiting.purpose, fx);
        }
    }

    /// C1: every block against its checksum.
    fn check(&self, span: BlockSpan, bytes: Bytes) -> (Stretch, Vec<String>) {
        assert_eq!(bytes.len(), span.len as usize);
        let (mut damaged, mut problems) = (Vec::new(), Vec::new());
        for block in self.log.blocks().blocks_of(span) {
            let from = (block.start.0 - span.start.0) as usize;
            if let Err(problem) = self.log.verify_block(block, &bytes[from..from + block.len as usize]) {
                problems.push(format!(
                    "the block of the log at {} ({} bytes) is damaged: {problem}",
                    block.start, block.len
                ));
                damaged.push(block);
            }
        }
        (Stretch { span, bytes, damaged }, problems)
    }

    fn on_stretch(&mut self, purpose: Purpose, stretch: &Stretch, fx: &mut Effects) {
        match purpose {
            Purpose::Pull { pull, ranges, next } => {
                let body = ranges.into_iter().filter_map(|range| stretch.get(range)).collect();
                self.reply_found(&pull, body, next, fx);
            }
            Purpose::View { to, position } => {
                let block = self.log.block_containing(position).expect("the read was made for it");
                match stretch.get(LogRange { position: block.start, len: block.len }) {
                    Some(bytes) => self.reply_view(to, position, block.start, &bytes, fx),
                    None => self.refuse_read(
                        to,
                        &format!("the block of the log at {} is damaged", block.start),
                        fx,
                    ),
                }
            }
        }
    }
}
