//! Segments, and which blocks they hold: the block and time index.
//!
//! 16 bytes of memory a block. Queue entries say where a message is; this says which block to verify before bytes
//! that were read back from disk may leave, and when a message was stored.

use std::collections::VecDeque;
use std::fmt;

use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};

/// Physical offset of the first byte of a segment; it also names the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentBase(pub u64);

impl SegmentBase {
    /// The segment that holds a position.
    pub fn of(position: PhysicalOffset, segment_bytes: u64) -> Self {
        Self(position.0 - position.0 % segment_bytes)
    }

    /// Name of the segment's file: 20 digits, so that names sort like positions.
    pub fn file_name(self) -> String {
        format!("{:020}", self.0)
    }

    /// The reverse of `file_name`; `None` for every other name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
        if digits { name.parse().ok().map(Self) } else { None }
    }
}

impl fmt::Display for SegmentBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}", self.0)
    }
}

/// Where a block lies: header, records and the zeros at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSpan {
    pub start: PhysicalOffset,
    /// Bytes of the block with its header.
    pub len: u32,
}

impl BlockSpan {
    pub fn end(&self) -> PhysicalOffset {
        PhysicalOffset(self.start.0 + u64::from(self.len))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockEntry {
    pub(crate) relative_start: u32,
    pub(crate) len: u32,
    pub(crate) store_timestamp: StoreTimestamp,
}

/// The blocks of one segment, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentBlocks {
    pub(crate) base: SegmentBase,
    pub(crate) blocks: Vec<BlockEntry>,
    /// A bit a block: read back from disk and found right. Grows with the highest block verified.
    verified: Vec<u64>,
}

/// All blocks of a log that are on disk or on their way to it, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIndex {
    segment_bytes: u64,
    segments: VecDeque<SegmentBlocks>,
}

impl BlockIndex {
    pub fn new(segment_bytes: u64) -> Self {
        Self { segment_bytes, segments: VecDeque::new() }
    }

    /// Adds the newest block.
    pub(crate) fn push(&mut self, span: BlockSpan, store_timestamp: StoreTimestamp) {
        let base = SegmentBase::of(span.start, self.segment_bytes);
        if self.segments.back().is_none_or(|segment| segment.base < base) {
            self.segments.push_back(SegmentBlocks { base, blocks: Vec::new(), verified: Vec::new() });
        }
        let segment = self.segments.back_mut().expect("pushed above");
        assert_eq!(segment.base, base, "blocks are added in the order of the log");
        let relative_start = u32::try_from(span.start.0 - base.0).expect("segments have at most 4 GiB");
        debug_assert!(
            segment.blocks.last().is_none_or(|last| last.relative_start + last.len <= relative_start)
        );
        segment.blocks.push(BlockEntry { relative_start, len: span.len, store_timestamp });
    }

    fn find(&self, position: PhysicalOffset) -> Option<(&SegmentBlocks, usize)> {
        let base = SegmentBase::of(position, self.segment_bytes);
        let segment =
            &self.segments[self.segments.binary_search_by_key(&base, |segment| segment.base).ok()?];
        let relative = u32::try_from(position.0 - base.0).ok()?;
        let index =
            segment.blocks.partition_point(|block| block.relative_start <= relative).checked_sub(1)?;
        let block = &segment.blocks[index];
        (relative - block.relative_start < block.len).then_some((segment, index))
    }

    /// The block that holds a position; `None` between blocks and outside the log.
    pub fn containing(&self, position: PhysicalOffset) -> Option<BlockSpan> {
        let (segment, index) = self.find(position)?;
        let block = segment.blocks[index];
        Some(BlockSpan {
            start: PhysicalOffset(segment.base.0 + u64::from(block.relative_start)),
            len: block.len,
        })
    }

    /// The blocks from the one that holds a position on, as far as they lie within `bytes_max` bytes, below `end` and in
    /// one segment; at least that one block. `None` if no block holds the position.
    pub fn stretch(
        &self,
        position: PhysicalOffset,
        bytes_max: u32,
        end: PhysicalOffset,
    ) -> Option<BlockSpan> {
        let (segment, first) = self.find(position)?;
        let start = segment.blocks[first].relative_start;
        let limit = (u64::from(start) + u64::from(bytes_max)).min(end.0.saturating_sub(segment.base.0));
        let ends_within =
            |block: &BlockEntry| u64::from(block.relative_start) + u64::from(block.len) <= limit;
        let last = segment.blocks[first..].partition_point(ends_within).max(1) + first - 1;
        let last = segment.blocks[last];
        let start_position = PhysicalOffset(segment.base.0 + u64::from(start));
        Some(BlockSpan { start: start_position, len: last.relative_start + last.len - start })
    }

    /// The blocks of a stretch, in order.
    pub fn blocks_of(&self, stretch: BlockSpan) -> impl Iterator<Item = BlockSpan> + '_ {
        let found = self.find(stretch.start);
        let blocks = found.map_or(&[][..], |(segment, first)| &segment.blocks[first..]);
        let base = found.map_or(0, |(segment, _)| segment.base.0);
        let span = move |block: &BlockEntry| BlockSpan {
            start: PhysicalOffset(base + u64::from(block.relative_start)),
            len: block.len,
        };
        blocks.iter().map(span).take_while(move |block| block.end() <= stretch.end())
    }

    /// Store timestamp of the messages of the block that holds a position.
    pub fn store_timestamp(&self, position: PhysicalOffset) -> Option<StoreTimestamp> {
        self.find(position).map(|(segment, index)| segment.blocks[index].store_timestamp)
    }

    /// Whether a block was read back from disk and found right since the start.
    pub fn verified(&self, span: BlockSpan) -> bool {
        self.find(span.start).is_some_and(|(segment, index)| {
            segment.verified.get(index / 64).is_some_and(|bits| bits >> (index % 64) & 1 == 1)
        })
    }

    /// Remembers that a block was read back from disk and found right.
    pub fn set_verified(&mut self, span: BlockSpan) {
        let Some((segment, index)) = self.find(span.start) else { return };
        let base = segment.base;
        let at = self.segments.partition_point(|segment| segment.base < base);
        let verified = &mut self.segments[at].verified;
        if verified.len() <= index / 64 {
            verified.resize(index / 64 + 1, 0);
        }
        verified[index / 64] |= 1 << (index % 64);
    }

    /// The oldest block.
    pub fn first(&self) -> Option<BlockSpan> {
        let segment = self.segments.front()?;
        let block = segment.blocks.first()?;
        Some(BlockSpan {
            start: PhysicalOffset(segment.base.0 + u64::from(block.relative_start)),
            len: block.len,
        })
    }

    /// Bases of the segments that hold blocks, oldest first.
    pub fn segments(&self) -> impl Iterator<Item = SegmentBase> + '_ {
        self.segments.iter().map(|segment| segment.base)
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.blocks.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Forgets all segments below `base`, which were deleted.
    pub fn remove_below(&mut self, base: SegmentBase) {
        while self.segments.front().is_some_and(|segment| segment.base < base) {
            self.segments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
