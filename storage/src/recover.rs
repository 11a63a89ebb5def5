//! Recovery: from segment files to the end of the log, the block index, and every record once, in order.
//!
//!   step ─▶ next block in one of three places? ──yes──▶ visit its records ─▶ step
//!                    │no
//!                    └▶ search everything behind ──proof that it was acknowledged──▶ report the damage, go on behind it
//!                                    └──no proof──▶ the end of the log
//!
//! Invariants (the argument is in docs/format.md)
//!   R1  a record is given to `visit` only from a block whose checksum and place in the chain are right, or whose
//!       place a later proof of durability implies
//!   R2  a block that was durable is never cut off: it is visited, or reported as damaged, or recovery fails
//!   R3  recovery changes nothing; run twice it gives the same
//!   R4  what was visited is durable when `recover` returns

use std::io;

use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};
use thiserror::Error;

use self::reader::{Gap, Reader};
use crate::block::{BLOCK_ALIGN, BLOCK_MAGIC, BlockHeader, candidates, round_up};
use crate::config::LogConfig;
use crate::record::{Record, RecordError, records};
use crate::segment::{BlockIndex, BlockSpan, SegmentBase};

mod reader;

/// The files of a log, to be read.
pub trait SegmentStore {
    /// Segments with the length of their files, by base.
    fn segments(&mut self) -> io::Result<Vec<(SegmentBase, u64)>>;

    /// Reads at an offset; fewer bytes only at the end of the file. Offset, address and length of the buffer are multiples of
    /// 4096. The bytes must come from the disk itself where that can be had, not from a cache that a failed sync left behind.
    fn read_at(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Makes everything that was read from the segment durable.
    fn sync(&mut self, segment: SegmentBase) -> io::Result<()>;
}

/// Where the log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// End of the last block.
    pub end: PhysicalOffset,
    /// Checksum of the last block.
    pub previous_crc: u32,
    /// Store timestamp of the last block.
    pub store_timestamp: StoreTimestamp,
    pub blocks: BlockIndex,
}

impl Recovered {
    /// A log without blocks.
    pub fn empty(config: &LogConfig) -> Self {
        Self {
            end: PhysicalOffset(0),
            previous_crc: 0,
            store_timestamp: StoreTimestamp(0),
            blocks: BlockIndex::new(config.segment_bytes),
        }
    }
}

/// A stretch of the log that was acknowledged, at least in part, and cannot be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub position: PhysicalOffset,
    pub bytes: u64,
}

/// What recovery found. Everything but `damaged` and `unreadable_records` is normal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segment files.
    pub segments: usize,
    /// Blocks that are part of the log.
    pub blocks: u64,
    /// Records that were visited.
    pub records: u64,
    /// Bytes of those blocks.
    pub bytes: u64,
    /// Where the log ends.
    pub end: PhysicalOffset,
    /// Bytes, in whole sectors, behind the end that are not zero: writes that were under way at a crash and never
    /// acknowledged. They are ignored, and zeroed before the log grows over them.
    pub cut_bytes: u64,
    /// Whole blocks among them.
    pub cut_blocks: u64,
    /// Acknowledged parts of the log that are lost, with the messages in them.
    pub damaged: Vec<Damage>,
    /// Blocks that are intact but hold something that is no record: the block's later records were not visited.
    pub unreadable_records: Vec<RecordError>,
}

/// Why a log cannot be opened. Nothing was changed.
#[derive(Debug, Error)]
pub enum RecoverError {
    #[error("the segments cannot be listed: {0}")]
    List(#[source] io::Error),
    #[error(
        "segment {segment} cannot be read at byte {offset}: {source}. The end of the log cannot be told without it; \
         nothing was changed"
    )]
    Read { segment: SegmentBase, offset: u64, source: io::Error },
    #[error("segment {segment} cannot be synced: {source}")]
    Sync { segment: SegmentBase, source: io::Error },
}

/// Reads the log. `visit` is given every record once, in the order of the log. Memory is bounded by the largest block.
pub fn recover(
    store: &mut impl SegmentStore,
    config: &LogConfig,
    visit: &mut dyn FnMut(Record<'_>),
) -> Result<(Recovered, RecoveryReport), RecoverError> {
    let mut segments = store.segments().map_err(RecoverError::List)?;
    segments.retain(|(base, _)| base.0.is_multiple_of(config.segment_bytes));
    segments.sort_unstable();
    for (_, len) in &mut segments {
        *len = (*len).min(config.segment_bytes);
    }
    let start = segments.first().map_or(0, |(base, _)| base.0);
    let mut walk = Walk {
        config,
        end: start,
        // The block before the oldest segment is gone with its segment; what it was cannot be asked.
        previous_crc: (start == 0).then_some(0),
        store_timestamp: StoreTimestamp(i64::MIN),
        blocks: BlockIndex::new(config.segment_bytes),
        report: RecoveryReport { segments: segments.len(), ..RecoveryReport::default() },
        reader: Reader::new(store, &segments, config),
    };
    loop {
        let unread = match walk.step()? {
            Step::Block(header) => {
                walk.accept(header, visit)?;
                continue;
            }
            Step::None { unread } => unread,
        };
        match walk.search()? {
            Search::GoesOnAt(header) => {
                let bytes = header.position.0 - walk.end;
                walk.report.damaged.push(Damage { position: PhysicalOffset(walk.end), bytes });
                walk.accept(header, visit)?;
            }
            // R2: what could not be read might have been durable.
            Search::End if unread.is_some() => return Err(unread.expect("just looked at").into()),
            Search::End => break,
        }
    }
    let Walk { end, previous_crc, store_timestamp, blocks, mut report, .. } = walk;
    for (segment, _) in segments {
        // R4: after a kill, what was read may not be on disk yet; nothing may depend on it before it is.
        store.sync(segment).map_err(|source| RecoverError::Sync { segment, source })?;
    }
    report.end = PhysicalOffset(end);
    let recovered = Recovered {
        end: PhysicalOffset(end),
        previous_crc: previous_crc.unwrap_or(0),
        store_timestamp: store_timestamp.max(StoreTimestamp(0)),
        blocks,
    };
    Ok((recovered, report))
}

struct Walk<'a, S> {
    config: &'a LogConfig,
    reader: Reader<'a, S>,
    /// End of the last block accepted.
    end: u64,
    /// Checksum of the last block accepted; `None` if the block before is not known.
    previous_crc: Option<u32>,
    store_timestamp: StoreTimestamp,
    blocks: BlockIndex,
    report: RecoveryReport,
}

enum Step {
    Block(BlockHeader),
    /// No block follows. `unread`: a place where it could be was not readable.
    None {
        unread: Option<reader::Unreadable>,
    },
}

enum Search {
    /// What lies between was durable and is damaged.
    GoesOnAt(BlockHeader),
    End,
}

impl<S: SegmentStore> Walk<'_, S> {
    /// Looks for the next block of the chain in the places that `block::place` can give.
    fn step(&mut self) -> Result<Step, RecoverError> {
        let mut unread = None;
        let places = candidates(self.end, u64::from(self.config.sector_bytes), self.config.segment_bytes);
        for position in places {
            match self.block_at(position)? {
                Ok(header) if self.previous_crc.is_none_or(|crc| crc == header.previous_crc) => {
                    return Ok(Step::Block(header));
                }
                Ok(_) | Err(Gap::NotThere) => {}
                Err(Gap::Unreadable(problem)) => {
                    unread.get_or_insert(problem);
                }
            }
        }
        Ok(Step::None { unread })
    }

    /// A complete block at this position that may follow in time.
    fn block_at(&mut self, position: u64) -> Result<Result<BlockHeader, Gap>, RecoverError> {
        let found = self.reader.block(position)?.map(|block| block.header);
        Ok(match found {
            Ok(header) if header.store_timestamp < self.store_timestamp => Err(Gap::NotThere),
            other => other,
        })
    }

    fn accept(&mut self, header: BlockHeader, visit: &mut dyn FnMut(Record<'_>)) -> Result<(), RecoverError> {
        let len = u32::try_from(header.block_bytes()).expect("bounded by BLOCK_BYTES_LIMIT");
        self.blocks.push(BlockSpan { start: header.position, len }, header.store_timestamp);
        self.end = header.end();
        self.previous_crc = Some(header.crc);
        self.store_timestamp = header.store_timestamp;
        self.report.blocks += 1;
        self.report.bytes += header.block_bytes();
        let Ok(block) = self.reader.block(header.position.0)? else {
            let segment = SegmentBase::of(header.position, self.config.segment_bytes);
            let source =
                io::Error::other("a block was there when it was first read, and not the second time");
            return Err(RecoverError::Read { segment, offset: header.position.0 - segment.0, source });
        };
        for record in records(&block) {
            match record {
                Ok(record) => {
                    visit(record);
                    self.report.records += 1;
                }
                Err(error) => self.report.unreadable_records.push(error),
            }
        }
        Ok(())
    }

    /// Looks at everything behind the last block. If a block there says that more than the chain reached had been durable
    /// when it was sealed, the log goes on at the first block found. Else nothing behind was acknowledged.
    fn search(&mut self) -> Result<Search, RecoverError> {
        let sector = u64::from(self.config.sector_bytes);
        let mut first = None;
        let (mut cut_bytes, mut cut_blocks) = (0, 0);
        let mut at = round_up(self.end, BLOCK_ALIGN as u64);
        while let Some((from, bytes)) = self.reader.stretch(at)? {
            let sector_end = (from - from % sector + sector).min(from + bytes.len() as u64);
            let bytes = &bytes[..(sector_end - from) as usize];
            at = sector_end;
            if is_zero(bytes) {
                continue;
            }
            cut_bytes += sector;
            let starts: Vec<u64> = block_starts(bytes).map(|start| from + start).collect();
            for start in starts {
                let Ok(header) = self.block_at(start)? else { continue };
                cut_blocks += 1;
                let first = *first.get_or_insert(header);
                if header.durable_at_seal() > self.end {
                    return Ok(Search::GoesOnAt(first));
                }
            }
        }
        self.report.cut_bytes = cut_bytes;
        self.report.cut_blocks = cut_blocks;
        Ok(Search::End)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().fold(0, |all, word| all | u128::from_ne_bytes(*word)) == 0
        && rest.iter().all(|byte| *byte == 0)
}

/// Where in these bytes, which start at a multiple of 8, a block could begin.
fn block_starts(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let magic = BLOCK_MAGIC.to_le_bytes();
    let is_start =
        move |(index, word): (usize, &[u8])| word.starts_with(&magic).then_some((index * BLOCK_ALIGN) as u64);
    bytes.chunks(BLOCK_ALIGN).enumerate().filter_map(is_start)
}

#[cfg(test)]
mod tests;
