//! The commit log of one shard: records in, writes out, durability in order. No I/O, no clock.
//!
//!   append ─▶ open block ──next_write──▶ in flight ──on_written──▶ durable
//!                 └─full─▶ staged ─────────┘
//!
//! Invariants
//!   L1  durable ≤ start of the oldest block that is not durable; each position only grows
//!   L2  blocks become durable in the order of the log, whatever the order in which their writes end
//!   L3  no two writes in flight cover the same sector
//!   L4  a write that covers bytes which are durable carries the same bytes there
//!   L5  no write reaches beyond what is prepared
//!   L6  after the first failed write nothing becomes durable any more, and nothing is accepted
//!   L7  store timestamps never decrease along the log

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};
use thiserror::Error;

use crate::block::{BLOCK_ALIGN, BlockHeader, HEADER_BYTES, place, round_up};
use crate::config::LogConfig;
use crate::record;
use crate::recover::Recovered;
use crate::sealed::ChainPoint;
use crate::segment::{BlockIndex, BlockSpan, SegmentBase};
use crate::tail::{NoChunk, Tail};

/// Number of a block in this run of the process, from 0, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSeq(pub u64);

/// Why a record was not accepted. Nothing of the log has changed for its readers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AppendError {
    /// Try again when writes have ended or sends have let go of old memory.
    #[error("{reason}")]
    Busy { reason: &'static str },
    /// The disk has no room; accepted again as soon as space could be prepared.
    #[error("no disk space: {reason}")]
    NoSpace { reason: String },
    /// A write failed. Only a restart makes the log writable again.
    #[error("the commit log stopped after a failed write: {reason}")]
    Poisoned { reason: String },
    #[error("{len} bytes are not a record: 1 to {max} are allowed")]
    Size { len: usize, max: u32 },
}

/// A write failed; the log takes no second try (a sync that failed once proves nothing when it succeeds later).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct WriteError(pub String);

impl From<std::io::Error> for WriteError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub position: PhysicalOffset,
    pub store_timestamp: StoreTimestamp,
    /// The record is durable when this block is.
    pub block: BlockSeq,
}

/// A write to submit: durable when it completes, or it did not happen.
#[derive(Clone, Debug)]
pub struct LogWrite {
    pub block: BlockSeq,
    pub segment: SegmentBase,
    /// A multiple of the sector size.
    pub offset_in_segment: u64,
    /// Whole sectors, aligned in memory.
    pub data: Bytes,
}

/// The durable part of the log grew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableAdvance {
    /// All blocks up to and including this one are durable.
    pub block: BlockSeq,
    /// Everything below is durable.
    pub position: PhysicalOffset,
}

/// Room wanted: `from..to` of a segment's file, ready before `on_prepared` is called (`data_dir::prepare`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare {
    pub segment: SegmentBase,
    pub from: u64,
    pub to: u64,
    /// The log will soon need it. Otherwise the disk is left to the log's own writes in between.
    pub is_urgent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteState {
    Staged,
    InFlight,
    Written,
}

#[derive(Debug)]
struct Undurable {
    end: u64,
    image_at: u64,
    image: Bytes,
    state: WriteState,
}

#[derive(Debug)]
struct OpenBlock {
    /// Where the header will be.
    start: u64,
    /// The sector in which the block starts; the image begins here.
    image_at: u64,
    record_count: u32,
    store_timestamp: StoreTimestamp,
    /// The image may grow to this length without a look at `block_bytes_max`: room was promised by `reserve`.
    reserved_image_bytes: usize,
}

impl OpenBlock {
    fn header_at(&self) -> usize {
        (self.start - self.image_at) as usize // less than a sector
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct CommitLog {
    config: LogConfig,
    tail: Tail,
    blocks: BlockIndex,
    open: Option<OpenBlock>,
    /// Sealed blocks that are not durable, oldest first; the staged ones are the last `staged_count`.
    undurable: VecDeque<Undurable>,
    staged_count: usize,
    /// Bytes of their images.
    undurable_bytes: u64,
    in_flight: usize,
    next_seq: u64,
    /// End of the last sealed block.
    end: u64,
    /// The bytes of the log from the last sector boundary to `end`.
    last_sector: Vec<u8>,
    /// The sector that holds `end` may be written again (false after a recovery until the next block).
    may_share: bool,
    previous_crc: u32,
    store_timestamp: StoreTimestamp,
    durable: u64,
    /// From the end of the log to here there is room on disk, and nothing that could be taken for a part of the log.
    prepared: u64,
    prepared_at_start: u64,
    prepare_failed: Option<String>,
    poisoned: Option<String>,
}

impl CommitLog {
    /// Goes on after the last block that recovery found, at the next sector.
    ///
    /// Panics if the sizes contradict each other: `config.validate()` tells beforehand.
    pub fn new(config: LogConfig, recovered: Recovered) -> Self {
        if let Err(text) = config.validate() {
            panic!("commit log: {text}");
        }
        let ChainPoint { position: PhysicalOffset(end), previous_crc, store_timestamp } = recovered.end;
        // What lies behind the end may be rests of writes that were never acknowledged: they go first.
        let prepared = round_up(end, u64::from(config.sector_bytes));
        Self {
            tail: Tail::new(config.chunk_bytes as usize, config.tail_bytes, config.tail_bytes_hard_max),
            blocks: recovered.blocks,
            open: None,
            undurable: VecDeque::new(),
            staged_count: 0,
            undurable_bytes: 0,
            in_flight: 0,
            next_seq: 0,
            end,
            last_sector: Vec::with_capacity(config.sector_bytes as usize),
            may_share: false,
            previous_crc,
            store_timestamp,
            durable: end,
            prepared,
            prepared_at_start: prepared,
            prepare_failed: None,
            poisoned: None,
            config,
        }
    }

    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Shows every piece of memory for the tail to `prepare` before it is first used, those there are and those to come: for
    /// advice to the kernel, which a log does not talk to.
    pub fn prepare_memory_with(&mut self, prepare: fn(&mut BytesMut)) {
        self.tail.prepare_memory_with(prepare);
    }

    /// Makes sure that records of `len` bytes together go into one block, so that all or none of them survive.
    ///
    /// Holds until the next call of `next_write`. May seal the open block and open another one, maybe in the next segment.
    pub fn reserve(&mut self, len: usize, now: StoreTimestamp) -> Result<(), AppendError> {
        if let Some(reason) = &self.poisoned {
            return Err(AppendError::Poisoned { reason: reason.clone() });
        }
        if len == 0 || len > self.config.record_bytes_max as usize {
            return Err(AppendError::Size { len, max: self.config.record_bytes_max });
        }
        let image_bytes = self.tail.current.len() + len;
        if self.open.as_ref().is_some_and(|open| image_bytes <= open.reserved_image_bytes) {
            // Promised before. The limits were looked at then; the block's header came on top of what they allow.
            return Ok(());
        }
        if self.staged_bytes() + len as u64 > self.config.staged_bytes_max {
            return Err(AppendError::Busy {
                reason: "the disk is behind: too many bytes wait to be written",
            });
        }
        if self.open.is_some() {
            if self.fits(len) {
                self.check_space(self.open_end() + len as u64)?;
                let promised = self.tail.current.len() + len;
                let open = self.open.as_mut().expect("checked above");
                open.reserved_image_bytes = open.reserved_image_bytes.max(promised);
                return Ok(());
            }
            self.seal();
        }
        self.open_block(len, now)
    }

    /// What is appended next is stored at `now`, and not when a block was opened that is still open: for what is timed.
    ///
    /// To be called before `reserve`.
    pub fn stamp_from(&mut self, now: StoreTimestamp) {
        if self.open.as_ref().is_some_and(|open| open.store_timestamp < now) {
            self.seal();
        }
    }

    /// Appends one record of `len` bytes. `write` fills it, knowing its position and store timestamp; the bytes it is
    /// given are zeros.
    pub fn append(
        &mut self,
        len: usize,
        now: StoreTimestamp,
        write: impl FnOnce(PhysicalOffset, StoreTimestamp, &mut [u8]),
    ) -> Result<Appended, AppendError> {
        self.reserve(len, now)?;
        let open = self.open.as_mut().expect("reserve opens a block");
        let at = self.tail.current.len();
        let position = PhysicalOffset(open.image_at + at as u64);
        self.tail.current.resize(at + len, 0);
        write(position, open.store_timestamp, &mut self.tail.current[at..]);
        open.record_count += 1;
        Ok(Appended { position, store_timestamp: open.store_timestamp, block: BlockSeq(self.next_seq) })
    }

    /// Appends a record that is not a message. The kinds are listed in docs/format.md.
    pub fn append_record(
        &mut self,
        kind: u16,
        body: &[u8],
        now: StoreTimestamp,
    ) -> Result<Appended, AppendError> {
        self.append(record::metadata_bytes(body.len()), now, |_, _, bytes| {
            record::write_metadata(kind, body, bytes)
        })
    }

    /// The next write to submit, or `None` when all write slots are taken, nothing waits, or space is not prepared yet.
    /// Seals the open block if need be. Call until it gives `None`, at the end of each turn.
    pub fn next_write(&mut self) -> Option<LogWrite> {
        if self.poisoned.is_some() || self.in_flight == self.config.writes_in_flight_max {
            return None;
        }
        if self.staged_count == 0 {
            self.open.as_ref().filter(|open| open.record_count > 0)?;
            // Few large writes cost less than many small ones, and so do the answers that leave with each.
            if self.in_flight >= self.config.writes_in_flight_enough {
                return None;
            }
            // L5, before sealing: while it waits for space the open block may grow.
            let image_end = round_up(self.open_end(), u64::from(self.config.sector_bytes));
            if image_end > self.prepared {
                return None;
            }
            self.seal();
        }
        let index = self.undurable.len() - self.staged_count;
        let seq = self.sealed_seq(index);
        let block = &mut self.undurable[index];
        if block.image_at + block.image.len() as u64 > self.prepared {
            return None;
        }
        block.state = WriteState::InFlight;
        self.staged_count -= 1;
        self.in_flight += 1;
        let segment = SegmentBase::of(PhysicalOffset(block.image_at), self.config.segment_bytes);
        Some(LogWrite {
            block: seq,
            segment,
            offset_in_segment: block.image_at - segment.0,
            data: block.image.clone(),
        })
    }

    /// A write ended. Gives the new durable position if it grew; the first failure poisons the log.
    ///
    /// Panics for a block that is not in flight.
    pub fn on_written(&mut self, block: BlockSeq, result: Result<(), WriteError>) -> Option<DurableAdvance> {
        let oldest = self.sealed_seq(0);
        let index = block.0.checked_sub(oldest.0).map_or(usize::MAX, |index| index as usize);
        let written = self.undurable.get_mut(index).filter(|block| block.state == WriteState::InFlight);
        let written = written.expect("only a block in flight can end");
        written.state = WriteState::Written;
        self.in_flight -= 1;
        if let Err(error) = result {
            self.poisoned.get_or_insert(error.0);
        }
        if self.poisoned.is_some() {
            return None; // L6: also for writes before the failed one that end later; they are not needed any more
        }
        let before = self.durable;
        while self.undurable.front().is_some_and(|block| block.state == WriteState::Written) {
            let block = self.undurable.pop_front().expect("looked at above");
            assert!(block.end > self.durable, "L1");
            self.durable = block.end;
            self.undurable_bytes -= block.image.len() as u64;
        }
        (self.durable > before).then(|| DurableAdvance {
            block: BlockSeq(self.sealed_seq(0).0 - 1),
            position: PhysicalOffset(self.durable),
        })
    }

    /// Everything below is durable.
    pub fn durable(&self) -> PhysicalOffset {
        PhysicalOffset(self.durable)
    }

    /// End of all records appended, durable or not.
    pub fn end(&self) -> PhysicalOffset {
        PhysicalOffset(if self.open.is_some() { self.open_end() } else { self.end })
    }

    /// The block that the next record goes to, if it fits: the open block or the next one to be opened.
    pub fn next_block(&self) -> BlockSeq {
        BlockSeq(self.next_seq)
    }

    /// The open block, if one is open.
    pub fn open_block_seq(&self) -> Option<BlockSeq> {
        self.open.as_ref().map(|_| BlockSeq(self.next_seq))
    }

    /// Why the log stopped, if it did.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    /// Bytes of memory that wait for the disk: open, staged, and in flight.
    pub fn staged_bytes(&self) -> u64 {
        // At most one block a chunk-full and a few sectors: the sum over this queue is kept short by writes in flight.
        self.undurable.iter().map(|block| block.image.len() as u64).sum::<u64>()
            + self.tail.current.len() as u64
    }

    /// Number of writes in flight.
    pub fn writes_in_flight(&self) -> usize {
        self.in_flight
    }

    // ---- space

    /// The next stretch of the disk to be prepared, durably, if any is due. The same stretch is given until
    /// `on_prepared`, or more of it; the caller runs one at a time, and spaces its tries after a failure.
    pub fn prepare_wanted(&self) -> Option<Prepare> {
        let head = self.end().0;
        let ahead = self.prepared.saturating_sub(head);
        if self.poisoned.is_some() || ahead >= self.config.prepare_ahead_bytes {
            return None;
        }
        let is_urgent = ahead < self.config.prepare_ahead_bytes / 2;
        // The first step is short: after a start the first send waits for it. So are those that are not urgent: they are made
        // slowly, and what becomes urgent comes behind them.
        let is_first = self.prepared == self.prepared_at_start;
        let part = match (is_first, is_urgent) {
            (true, _) => 8,
            (false, true) => 1,
            (false, false) => 4,
        };
        let step = (self.config.prepare_step_bytes / part).max(1 << 20);
        let segment = SegmentBase::of(PhysicalOffset(self.prepared), self.config.segment_bytes);
        let from = self.prepared - segment.0;
        // Steps end at round positions, so that no page of the page cache belongs to two of them.
        let to = ((from / step + 1) * step).min(self.config.segment_bytes);
        Some(Prepare { segment, from, to, is_urgent })
    }

    /// `..to` of the segment is prepared behind the end of the log, as `prepare_wanted` asked or farther.
    pub fn on_prepared(&mut self, segment: SegmentBase, to: u64) {
        let position = segment.0 + to;
        assert!(to <= self.config.segment_bytes && position >= self.prepared, "space is prepared in order");
        self.prepared = position;
        self.prepare_failed = None;
    }

    /// Space could not be prepared. Records that would go beyond the prepared space are refused until it succeeds.
    pub fn on_prepare_failed(&mut self, reason: impl Into<String>) {
        self.prepare_failed = Some(reason.into());
    }

    // ---- reading

    /// A range of one record or of several in one block, from memory; `None` if it has left the tail.
    pub fn tail(&self, position: PhysicalOffset, len: u32) -> Option<Bytes> {
        if let Some(open) = self.open.as_ref().filter(|open| position.0 >= open.start) {
            // Only for readers that do not wait for durability; a copy, because the block still grows.
            let at = usize::try_from(position.0 - open.image_at).ok()?;
            return self.tail.current.get(at..at.checked_add(len as usize)?).map(Bytes::copy_from_slice);
        }
        self.tail.get(position, len)
    }

    /// Where the part of the log in memory begins; the end of the log if nothing is in memory.
    pub fn tail_start(&self) -> PhysicalOffset {
        self.tail.start().unwrap_or(PhysicalOffset(self.end))
    }

    /// Which blocks there are, and when they were stored.
    pub fn blocks(&self) -> &BlockIndex {
        &self.blocks
    }

    /// When the message at a position was stored; `None` outside of what is in memory. This knows the open block too.
    pub fn store_timestamp(&self, position: PhysicalOffset) -> Option<StoreTimestamp> {
        match &self.open {
            Some(open) if position.0 >= open.start => Some(open.store_timestamp),
            _ => self.blocks.store_timestamp(position),
        }
    }

    /// End of the last sealed block: where the open block, if one is open, goes on.
    pub fn sealed_end(&self) -> ChainPoint {
        ChainPoint {
            position: PhysicalOffset(self.end),
            previous_crc: self.previous_crc,
            store_timestamp: self.store_timestamp,
        }
    }

    /// Forgets the blocks of the segments up to and including this one: they are in sealed indexes.
    pub fn forget_blocks(&mut self, sealed: SegmentBase) {
        self.blocks.remove_through(sealed);
    }

    /// Pieces of memory that the tail has, of `chunk_bytes` each.
    pub fn chunk_count(&self) -> usize {
        self.tail.chunk_count()
    }

    // ---- blocks

    fn sealed_seq(&self, index: usize) -> BlockSeq {
        BlockSeq(self.next_seq - (self.undurable.len() - index) as u64)
    }

    /// End of the records of the open block.
    fn open_end(&self) -> u64 {
        self.open.as_ref().map_or(self.end, |open| open.image_at + self.tail.current.len() as u64)
    }

    fn fits(&self, len: usize) -> bool {
        let Some(open) = &self.open else { return false };
        let image_bytes = self.tail.current.len() + len;
        let payload_bytes = image_bytes - open.header_at() - HEADER_BYTES;
        let wanted =
            payload_bytes <= self.config.block_bytes_max as usize || image_bytes <= open.reserved_image_bytes;
        let end = open.image_at + image_bytes as u64;
        wanted && end <= self.segment_end(open.start) && self.tail.has_room(self.image_room(image_bytes))
    }

    /// What the current image still needs to be `image_bytes` long, padded to the sector.
    fn image_room(&self, image_bytes: usize) -> usize {
        round_up(image_bytes as u64, u64::from(self.config.sector_bytes)) as usize - self.tail.current.len()
    }

    fn segment_end(&self, position: u64) -> u64 {
        SegmentBase::of(PhysicalOffset(position), self.config.segment_bytes).0 + self.config.segment_bytes
    }

    fn check_space(&self, end: u64) -> Result<(), AppendError> {
        match &self.prepare_failed {
            Some(reason) if round_up(end, u64::from(self.config.sector_bytes)) > self.prepared => {
                Err(AppendError::NoSpace { reason: reason.clone() })
            }
            _ => Ok(()),
        }
    }

    fn open_block(&mut self, len: usize, now: StoreTimestamp) -> Result<(), AppendError> {
        let sector = u64::from(self.config.sector_bytes);
        let block_bytes = round_up((HEADER_BYTES + len) as u64, BLOCK_ALIGN as u64);
        // L3: the last sector is only written again when nothing is in flight that covers it.
        let may_share = self.may_share && self.undurable.is_empty() && !self.config.pad_blocks;
        let start = place(self.end, may_share, block_bytes, sector, self.config.segment_bytes);
        self.check_space(start + block_bytes)?;
        let shared_bytes = (start % sector) as usize;
        debug_assert!(shared_bytes == 0 || shared_bytes == self.last_sector.len());
        let image_bytes = round_up(shared_bytes as u64 + block_bytes, sector) as usize;
        if !self.tail.has_room(image_bytes) {
            self.tail.next_chunk(self.durable).map_err(|NoChunk| AppendError::Busy {
                reason: "slow readers hold the memory of the log's tail",
            })?;
        }
        self.tail.current.extend_from_slice(&self.last_sector[..shared_bytes]); // L4
        self.tail.current.resize(shared_bytes + HEADER_BYTES, 0);
        self.open = Some(OpenBlock {
            start,
            image_at: start - shared_bytes as u64,
            record_count: 0,
            store_timestamp: now.max(self.store_timestamp), // L7
            reserved_image_bytes: shared_bytes + HEADER_BYTES + len,
        });
        Ok(())
    }

    fn seal(&mut self) {
        let open = self.open.take().expect("a block is open");
        let sector = u64::from(self.config.sector_bytes);
        let image = &mut self.tail.current;
        if open.record_count == 0 {
            // Reserved, but nothing came: as if it had not been opened.
            image.clear();
            return;
        }
        image.resize(round_up(image.len() as u64, BLOCK_ALIGN as u64) as usize, 0);
        let header_at = open.header_at();
        let block_bytes = (image.len() - header_at) as u64;
        let end = open.start + block_bytes;
        let header = BlockHeader {
            shard: self.config.shard,
            position: PhysicalOffset(open.start),
            payload_bytes: u32::try_from(block_bytes - HEADER_BYTES as u64)
                .expect("a block is smaller than a chunk"),
            record_count: open.record_count,
            store_timestamp: open.store_timestamp,
            previous_crc: self.previous_crc,
            log_id: self.config.log_id,
            undurable_bytes: u32::try_from(open.start - self.durable).expect("bounded by staged_bytes_max"),
            crc: 0,
        };
        self.previous_crc = header.seal(&mut image[header_at..]);
        self.last_sector.clear();
        self.last_sector.extend_from_slice(&image[image.len() - (end % sector) as usize..]);
        image.resize(round_up(image.len() as u64, sector) as usize, 0);
        self.undurable_bytes += image.len() as u64;
        let image = self.tail.push(open.start, end, open.image_at);
        let span = BlockSpan { start: header.position, len: header.block_bytes() as u32 };
        self.blocks.push(span, open.store_timestamp);
        self.undurable.push_back(Undurable {
            end,
            image_at: open.image_at,
            image,
            state: WriteState::Staged,
        });
        self.staged_count += 1;
        self.next_seq += 1;
        self.end = end;
        self.store_timestamp = open.store_timestamp;
        self.may_share = true;
    }
}

#[cfg(test)]
mod tests;
