//! Reads of the log for messages that are not in the tail any more.
//!
//! C1  Bytes from disk are checked, block by block, before anything of them leaves.
//! C2  A damaged block costs the messages in it and is reported each time it is met; it stops nobody.

use super::Shard;
use super::effects::{Effects, LogRead, ReplyTo};
use super::hold::Pull;
use super::limits::{COLD_CACHE_COUNT, COLD_READS_MAX};
use bytes::Bytes;
use ringmq_protocol::types::{PhysicalOffset, QueueOffset};
use std::collections::{BTreeMap, VecDeque};

/// A range of the log within one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogRange {
    pub(super) position: PhysicalOffset,
    pub(super) len: u32,
}

impl LogRange {
    pub(super) fn end(&self) -> u64 {
        self.position.0 + u64::from(self.len)
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

/// A read of whole blocks, and what it is for.
#[derive(Debug)]
pub(super) struct ColdRead {
    /// From the start of a block to the end of one.
    pub(super) span: LogRange,
    pub(super) purpose: Purpose,
}

#[derive(Default)]
pub(super) struct ColdReads {
    next_id: u64,
    in_flight: BTreeMap<u64, ColdRead>,
    waiting: VecDeque<ColdRead>,
    /// Spans lately read and checked, newest last.
    cache: VecDeque<(PhysicalOffset, Bytes)>,
}

impl ColdReads {
    fn cached(&self, span: LogRange) -> Option<Bytes> {
        self.cache.iter().rev().find_map(|(start, bytes)| {
            let offset = span.position.0.checked_sub(start.0)? as usize;
            bytes.get(offset..offset + span.len as usize).map(|range| bytes.slice_ref(range))
        })
    }

    fn remember(&mut self, position: PhysicalOffset, bytes: &Bytes) {
        if self.cache.len() == COLD_CACHE_COUNT {
            self.cache.pop_front();
        }
        self.cache.push_back((position, bytes.clone()));
    }

    fn submit(&mut self, read: ColdRead, fx: &mut Effects) {
        if self.in_flight.len() >= COLD_READS_MAX {
            return self.waiting.push_back(read);
        }
        let id = self.next_id;
        self.next_id += 1;
        fx.reads.push(LogRead { id, position: read.span.position, len: read.span.len });
        self.in_flight.insert(id, read);
    }
}

impl Shard {
    /// Reads a span, now from the cache or later from the disk, and goes on with its purpose.
    pub(super) fn read_cold(&mut self, read: ColdRead, fx: &mut Effects) {
        match self.cold.cached(read.span) {
            Some(bytes) => self.on_cold_bytes(read, &bytes, fx),
            None => self.cold.submit(read, fx),
        }
    }

    /// A read of the log has ended.
    pub fn on_read(&mut self, id: u64, result: Result<Bytes, String>, fx: &mut Effects) {
        let read = self.cold.in_flight.remove(&id).expect("a read ends once");
        match result {
            Ok(bytes) => {
                assert_eq!(bytes.len(), read.span.len as usize);
                self.cold.remember(read.span.position, &bytes);
                self.on_cold_bytes(read, &bytes, fx);
            }
            Err(reason) => {
                let line = format!(
                    "reading {} bytes of the log at {} failed: {reason}",
                    read.span.len, read.span.position
                );
                match read.purpose {
                    Purpose::Pull { pull, .. } => self.refuse_read(pull.to, &line, fx),
                    Purpose::View { to, .. } => self.refuse_read(to, &line, fx),
                }
                fx.log_error(format!("{}: {line}", self.config.broker_name));
            }
        }
        if let Some(waiting) = self.cold.waiting.pop_front() {
            self.read_cold(waiting, fx);
        }
    }

    fn on_cold_bytes(&mut self, read: ColdRead, bytes: &Bytes, fx: &mut Effects) {
        match read.purpose {
            Purpose::Pull { pull, ranges, next } => {
                let body = ranges
                    .into_iter()
                    .filter_map(|range| {
                        let checked = self.checked(range, read.span, bytes);
                        checked.map_err(|line| fx.log_error(line)).ok()
                    })
                    .collect();
                self.reply_found(&pull, body, next, fx);
            }
            Purpose::View { to, position } => {
                let block = self
                    .log
                    .block_containing(position)
                    .map(|span| LogRange { position: span.start, len: span.len });
                let block = block.expect("the read was made for it");
                match self.checked(block, read.span, bytes) {
                    Ok(block_bytes) => self.reply_view(to, position, block.position, &block_bytes, fx),
                    Err(line) => {
                        self.refuse_read(to, &line, fx);
                        fx.log_error(line);
                    }
                }
            }
        }
    }

    /// The bytes of `range`, once the block around it is known to be what was written.
    fn checked(&self, range: LogRange, span: LogRange, bytes: &Bytes) -> Result<Bytes, String> {
        let block =
            self.log.block_containing(range.position).expect("the index names only what is in a block");
        let slice = |range: LogRange| {
            let from = (range.position.0 - span.position.0) as usize;
            bytes.slice(from..from + range.len as usize)
        };
        let whole = slice(LogRange { position: block.start, len: block.len });
        self.log.verify_block(block, &whole).map_err(|problem| {
            format!(
                "{}: the block of the log at {} ({} bytes) is damaged: {problem}; its messages cannot be delivered",
                self.config.broker_name, block.start, block.len
            )
        })?;
        Ok(slice(range))
    }
}
