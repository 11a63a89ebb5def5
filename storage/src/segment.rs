//! Segments, and which blocks they hold, as long as the segment's index is in memory.
//!
//! 16 bytes of memory a block. Queue entries say where a message is; this says in which block, and when it was stored.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

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
}

impl SegmentBlocks {
    /// Where the segment begins.
    pub fn base(&self) -> SegmentBase {
        self.base
    }

    /// When the first block was stored; the earliest time if there is none.
    pub(crate) fn first_timestamp(&self) -> StoreTimestamp {
        self.blocks.first().map_or(StoreTimestamp(0), |block| block.store_timestamp)
    }

    /// Where the last block ends.
    pub fn end(&self) -> Option<PhysicalOffset> {
        let last = self.blocks.last()?;
        Some(PhysicalOffset(self.base.0 + u64::from(last.relative_start) + u64::from(last.len)))
    }

    fn find(&self, position: PhysicalOffset) -> Option<BlockEntry> {
        let relative = u32::try_from(position.0.checked_sub(self.base.0)?).ok()?;
        let index = self.blocks.partition_point(|block| block.relative_start <= relative).checked_sub(1)?;
        let block = self.blocks[index];
        (relative - block.relative_start < block.len).then_some(block)
    }
}

/// The blocks of the segments whose index is in memory, oldest first.
///
/// Full segments are shared, so that the thread that seals them can look at them too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIndex {
    segment_bytes: u64,
    segments: VecDeque<Arc<SegmentBlocks>>,
}

impl BlockIndex {
    pub fn new(segment_bytes: u64) -> Self {
        Self { segment_bytes, segments: VecDeque::new() }
    }

    /// Adds the newest block.
    pub(crate) fn push(&mut self, span: BlockSpan, store_timestamp: StoreTimestamp) {
        let base = SegmentBase::of(span.start, self.segment_bytes);
        if self.segments.back().is_none_or(|segment| segment.base < base) {
            self.segments.push_back(Arc::new(SegmentBlocks { base, blocks: Vec::new() }));
        }
        let segment = self.segments.back_mut().expect("pushed above");
        assert_eq!(segment.base, base, "blocks are added in the order of the log");
        let segment = Arc::get_mut(segment).expect("only full segments are shared");
        let relative_start = u32::try_from(span.start.0 - base.0).expect("segments have at most 4 GiB");
        debug_assert!(
            segment.blocks.last().is_none_or(|last| last.relative_start + last.len <= relative_start)
        );
        segment.blocks.push(BlockEntry { relative_start, len: span.len, store_timestamp });
    }

    /// The blocks of one segment.
    pub fn segment(&self, base: SegmentBase) -> Option<&Arc<SegmentBlocks>> {
        self.segments.binary_search_by_key(&base, |segment| segment.base).ok().map(|at| &self.segments[at])
    }

    fn find(&self, position: PhysicalOffset) -> Option<BlockEntry> {
        self.segment(SegmentBase::of(position, self.segment_bytes))?.find(position)
    }

    /// The block that holds a position; `None` between blocks and outside of what is in memory.
    pub fn containing(&self, position: PhysicalOffset) -> Option<BlockSpan> {
        let block = self.find(position)?;
        let base = SegmentBase::of(position, self.segment_bytes);
        Some(BlockSpan { start: PhysicalOffset(base.0 + u64::from(block.relative_start)), len: block.len })
    }

    /// Store timestamp of the messages of the block that holds a position.
    pub fn store_timestamp(&self, position: PhysicalOffset) -> Option<StoreTimestamp> {
        self.find(position).map(|block| block.store_timestamp)
    }

    /// The newest segment.
    pub fn last(&self) -> Option<SegmentBase> {
        self.segments.back().map(|segment| segment.base)
    }

    /// The oldest segment.
    pub fn first(&self) -> Option<SegmentBase> {
        self.segments.front().map(|segment| segment.base)
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.blocks.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Forgets all segments up to and including this one, which were sealed.
    pub fn remove_through(&mut self, base: SegmentBase) {
        while self.segments.front().is_some_and(|segment| segment.base <= base) {
            self.segments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
