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
use std::sync::Arc;

use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};
use thiserror::Error;

use self::reader::{Gap, Reader};
use crate::block::{BLOCK_ALIGN, BLOCK_MAGIC, BlockHeader, candidates, round_up};
use crate::config::LogConfig;
use crate::record::{Record, RecordError, records};
use crate::sealed::ChainPoint;
use crate::segment::{BlockIndex, BlockSpan, SegmentBase, SegmentBlocks};

mod reader;

/// The files of a log: its segments, to be read, and the indexes beside them.
pub trait SegmentStore {
    /// Segments with the length of their files, by base.
    fn segments(&mut self) -> io::Result<Vec<(SegmentBase, u64)>>;

    /// Reads at an offset; fewer bytes only at the end of the file. Offset, address and length of the buffer are multiples of
    /// 4096. The bytes must come from the disk itself where that can be had, not from a cache that a failed sync left behind.
    fn read_at(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Makes everything that was read from the segment durable.
    fn sync(&mut self, segment: SegmentBase) -> io::Result<()>;

    /// Indexes with the length of their files, by segment. Files that were not finished are removed.
    fn indexes(&mut self) -> io::Result<Vec<(SegmentBase, u64)>>;

    /// One page of an index; an error also if the file ends before.
    fn read_index(&mut self, segment: SegmentBase, page: u32, buffer: &mut [u8]) -> io::Result<()>;

    /// Makes or replaces an index. It is there as a whole and durable when this returns, or as it was.
    fn write_index(
        &mut self,
        segment: SegmentBase,
        write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()>;
}

/// A segment to whose end the log has come.
#[derive(Clone, Debug)]
pub struct SegmentEnd {
    /// End of its last block.
    pub end: ChainPoint,
    /// Its blocks; all of them unless the log was read from the middle of the segment.
    pub blocks: Arc<SegmentBlocks>,
}

/// Is told what the log says, in order.
pub trait Visitor<S> {
    /// A record, once. `before`: the end of the log before the record's block.
    fn record(&mut self, record: Record<'_>, before: ChainPoint);

    /// All records of a segment were visited, and another one follows. True if its blocks need not stay in memory.
    fn segment_ended(&mut self, ended: SegmentEnd, store: &mut S) -> io::Result<bool>;

    /// Records that come here in the log are lost, and will not be visited.
    fn damaged(&mut self, _damage: Damage) {}
}

/// For whoever wants the records alone.
impl<S, F: FnMut(Record<'_>)> Visitor<S> for F {
    fn record(&mut self, record: Record<'_>, _before: ChainPoint) {
        self(record);
    }

    fn segment_ended(&mut self, _ended: SegmentEnd, _store: &mut S) -> io::Result<bool> {
        Ok(false)
    }
}

/// Where the log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// End of the last block.
    pub end: ChainPoint,
    /// The blocks that the visitor did not take over.
    pub blocks: BlockIndex,
}

impl Recovered {
    /// A log without blocks.
    pub fn empty(config: &LogConfig) -> Self {
        Self { end: ChainPoint::default(), blocks: BlockIndex::new(config.segment_bytes) }
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
    /// Bytes behind the end, in whole sectors, of blocks that are right or have a header that is: writes that were under way at
    /// a crash and never acknowledged. They are ignored, and zeroed before the log grows over them.
    pub cut_bytes: u64,
    /// Right blocks among them.
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
    #[error("segment {0} is not there")]
    Missing(SegmentBase),
    #[error("segment {segment} cannot be synced: {source}")]
    Sync { segment: SegmentBase, source: io::Error },
    #[error("the index of segment {segment} cannot be written: {source}; the log itself was not touched")]
    Index { segment: SegmentBase, source: io::Error },
}

/// Reads the log, from a point that an earlier reading of it came through, or from its beginning. Memory is bounded by the
/// largest block, and the blocks that the visitor wants to be kept.
pub fn recover<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
    from: Option<ChainPoint>,
    visitor: &mut dyn Visitor<S>,
) -> Result<(Recovered, RecoveryReport), RecoverError> {
    let mut segments = list_segments(store, config)?;
    if let Some(from) = from {
        let first = SegmentBase::of(from.position, config.segment_bytes);
        segments.retain(|(base, _)| *base >= first);
    }
    let mut walk = Walk::new(store, config, &segments, from);
    walk.run(visitor)?;
    let Walk { end, blocks, mut report, .. } = walk;
    for (segment, _) in segments {
        // R4: after a kill, what was read may not be on disk yet; nothing may depend on it before it is.
        store.sync(segment).map_err(|source| RecoverError::Sync { segment, source })?;
    }
    report.end = end.position;
    let store_timestamp = end.store_timestamp.max(StoreTimestamp(0));
    Ok((Recovered { end: ChainPoint { store_timestamp, ..end }, blocks }, report))
}

/// Reads one segment by itself. Its end is where its last block ends that can be read.
pub fn scan_segment<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
    base: SegmentBase,
    visitor: &mut dyn Visitor<S>,
) -> Result<(Recovered, RecoveryReport), RecoverError> {
    let mut segments = list_segments(store, config)?;
    segments.retain(|(segment, _)| *segment == base);
    if segments.is_empty() {
        return Err(RecoverError::Missing(base));
    }
    let mut walk = Walk::new(store, config, &segments, None);
    walk.is_whole_log = false;
    walk.run(visitor)?;
    let Walk { end, blocks, report, .. } = walk;
    Ok((Recovered { end, blocks }, RecoveryReport { end: end.position, ..report }))
}

pub(crate) fn list_segments<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
) -> Result<Vec<(SegmentBase, u64)>, RecoverError> {
    let mut segments = store.segments().map_err(RecoverError::List)?;
    segments.retain(|(base, _)| base.0.is_multiple_of(config.segment_bytes));
    segments.sort_unstable();
    for (_, len) in &mut segments {
        *len = (*len).min(config.segment_bytes);
    }
    Ok(segments)
}

struct Walk<'a, S> {
    config: &'a LogConfig,
    reader: Reader<'a, S>,
    /// End of the last block accepted.
    end: ChainPoint,
    /// Whether `end` says what the checksum of the block before is.
    is_chain_known: bool,
    /// The log ends where the walk ends.
    is_whole_log: bool,
    /// The segment of the last block accepted.
    segment: Option<SegmentBase>,
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

impl<'a, S: SegmentStore> Walk<'a, S> {
    fn new(
        store: &'a mut S,
        config: &'a LogConfig,
        segments: &[(SegmentBase, u64)],
        from: Option<ChainPoint>,
    ) -> Self {
        let start = segments.first().map_or(0, |(base, _)| base.0);
        let unknown = ChainPoint {
            position: PhysicalOffset(start),
            previous_crc: 0,
            store_timestamp: StoreTimestamp(i64::MIN),
        };
        Walk {
            config,
            end: from.unwrap_or(unknown),
            // The block before the oldest segment is gone with its segment; what it was cannot be asked.
            is_chain_known: start == 0 || from.is_some(),
            is_whole_log: true,
            segment: None,
            blocks: BlockIndex::new(config.segment_bytes),
            report: RecoveryReport { segments: segments.len(), ..RecoveryReport::default() },
            reader: Reader::new(store, segments, config),
        }
    }

    /// End of the segment that the walk has come to.
    fn segment_end(&self) -> u64 {
        let segment = SegmentBase::of(self.end.position, self.config.segment_bytes);
        segment.0 + self.config.segment_bytes
    }

    fn run(&mut self, visitor: &mut dyn Visitor<S>) -> Result<(), RecoverError> {
        loop {
            let mut step = self.step()?;
            if let Step::None { .. } = step {
                // A disk may stutter: nothing is cut or called damaged at bytes that were read only once.
                self.reader.forget();
                step = self.step()?;
            }
            let unread = match step {
                Step::Block(header) => {
                    self.accept(header, visitor)?;
                    continue;
                }
                Step::None { unread } => unread,
            };
            match self.search()? {
                Search::GoesOnAt(header) => {
                    let bytes = header.position.0 - self.end.position.0;
                    let damage = Damage { position: self.end.position, bytes };
                    self.report.damaged.push(damage);
                    visitor.damaged(damage);
                    self.accept(header, visitor)?;
                }
                Search::End => match unread {
                    // R2: what could not be read might have been durable.
                    Some(unread) if self.is_whole_log => return Err(unread.into()),
                    // More segments follow, so it was.
                    Some(_) => {
                        let bytes = self.segment_end() - self.end.position.0;
                        self.report.damaged.push(Damage { position: self.end.position, bytes });
                        return Ok(());
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    /// Looks for the next block of the chain in the places that `block::place` can give.
    fn step(&mut self) -> Result<Step, RecoverError> {
        let mut unread = None;
        let places =
            candidates(self.end.position.0, u64::from(self.config.sector_bytes), self.config.segment_bytes);
        for position in places {
            match self.block_at(position)? {
                Ok(header) if !self.is_chain_known || self.end.previous_crc == header.previous_crc => {
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
            Ok(header) if header.store_timestamp < self.end.store_timestamp => Err(Gap::NotThere),
            other => other,
        })
    }

    fn accept(&mut self, header: BlockHeader, visitor: &mut dyn Visitor<S>) -> Result<(), RecoverError> {
        let before = self.end;
        let segment = SegmentBase::of(header.position, self.config.segment_bytes);
        if let Some(ended) = self.segment.replace(segment).filter(|ended| *ended != segment) {
            let blocks = self.blocks.segment(ended).expect("it has a block").clone();
            let end = SegmentEnd { end: before, blocks };
            let done = visitor.segment_ended(end, self.reader.store());
            if done.map_err(|source| RecoverError::Index { segment: ended, source })? {
                self.blocks.remove_through(ended);
            }
        }
        let len = u32::try_from(header.block_bytes()).expect("bounded by BLOCK_BYTES_LIMIT");
        self.blocks.push(BlockSpan { start: header.position, len }, header.store_timestamp);
        self.end = ChainPoint {
            position: PhysicalOffset(header.end()),
            previous_crc: header.crc,
            store_timestamp: header.store_timestamp,
        };
        self.is_chain_known = true;
        self.report.blocks += 1;
        self.report.bytes += header.block_bytes();
        let Ok(block) = self.reader.block(header.position.0)? else {
            let source =
                io::Error::other("a block was there when it was first read, and not the second time");
            return Err(RecoverError::Read { segment, offset: header.position.0 - segment.0, source });
        };
        for record in records(&block) {
            match record {
                Ok(record) => {
                    if let Record::Gap { original_crc, .. } = record {
                        self.end.previous_crc = original_crc;
                    }
                    visitor.record(record, before);
                    self.report.records += 1;
                }
                Err(error) => self.report.unreadable_records.push(error),
            }
        }
        Ok(())
    }

    /// Looks at everything behind the last block. If a block there says that more than the chain reached had been durable
    /// when it was sealed, the log goes on at the first block found. Else nothing behind was acknowledged.
    ///
    /// Of a file that was recycled most is left as it was in an older segment. Whole blocks of that time are passed over without a
    /// look at what is in them; and a stretch of them longer than the log writes ahead of its durable mark shows that nothing
    /// behind it, in its file, was ever written (docs/format.md: "Where the search ends").
    fn search(&mut self) -> Result<Search, RecoverError> {
        let sector = u64::from(self.config.sector_bytes);
        let mut first = None;
        let (mut cut_bytes, mut cut_blocks, mut cut_to) = (0, 0, 0);
        let mut older = 0..0;
        let mut at = round_up(self.end.position.0, BLOCK_ALIGN as u64);
        while let Some((from, bytes)) = self.reader.stretch(at)? {
            let sector_end = (from - from % sector + sector).min(from + bytes.len() as u64);
            let bytes = &bytes[..(sector_end - from) as usize];
            at = sector_end;
            if is_zero(bytes) {
                if from == older.end && !from.is_multiple_of(sector) {
                    older.end = sector_end; // the zeros that a write has behind its block
                }
                continue;
            }
            let starts: Vec<u64> = block_starts(bytes).map(|start| from + start).collect();
            for start in starts {
                if let Some(end) = self.reader.older_block(start)? {
                    older = if start == older.end { older.start..end } else { start..end };
                    let is_untouched = older.end - older.start > self.config.ahead_of_durable_bytes_max();
                    let segment = SegmentBase::of(PhysicalOffset(start), self.config.segment_bytes);
                    at = if is_untouched { segment.0 + self.config.segment_bytes } else { end };
                    break;
                }
                let Some(header) = self.reader.header(start)? else { continue };
                let cut_from = cut_to.max(start - start % sector);
                cut_to = cut_to.max(round_up(header.end(), sector));
                cut_bytes += cut_to - cut_from;
                let Ok(header) = self.block_at(start)? else { continue };
                cut_blocks += 1;
                let first = *first.get_or_insert(header);
                // In a segment that others follow, what was cut was zeroed long ago: every right block is of the log.
                if header.durable_at_seal() > self.end.position.0 || !self.is_whole_log {
                    return Ok(Search::GoesOnAt(first));
                }
                at = header.end();
                break;
            }
        }
        self.report.cut_bytes = cut_bytes;
        self.report.cut_blocks = cut_blocks;
        Ok(Search::End)
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
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
