//! Sealed segments: the index of a full segment as a file of checked pages, and look-ups over all of them.
//!
//!   build      SegmentIndex → file, in one pass
//!   header     the first page: what a shard keeps in memory of a sealed segment
//!   page       the layout of pages and items, and the check that a page must pass
//!   cache      the pages that a shard read lately
//!   segments   look-ups: they answer, or name the pages to read first
//!
//! No I/O here. Byte map in docs/storage.md, section "Index file".
//!
//! Invariants
//!   I1  the file is a function of the `SegmentIndex` and the identity: no clock, no random number, no order of a hash map
//!   I2  no byte of a page is looked at before its checksum, which covers the log, the segment and the page's number, was right
//!   I3  no look-up panics on a checked page, whatever is in it
//!   I4  items of a hashed section are in order over the whole section, and none is before its home page

mod build;
mod cache;
mod header;
mod page;
mod segments;

use std::sync::Arc;

use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset, StoreTimestamp};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::chunks::Chunks;
use crate::key_table::{KeyTable, TopicHash};
use crate::queue_index::{Entry, Packed};
use crate::segment::{SegmentBase, SegmentBlocks};

pub(crate) use build::write_index;
pub use header::IndexHeader;
pub use page::PAGE_BYTES;
pub use segments::SealedSegments;

/// A queue of a topic, as the sealed indexes know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueKey {
    pub topic: TopicHash,
    pub queue_id: QueueId,
}

impl QueueKey {
    /// Where the queue stands in the section of queues: by hash; equal hashes by the key itself.
    fn rank(self) -> QueueRank {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.topic.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.queue_id.0.to_le_bytes());
        QueueRank { hash: xxh3_64(&bytes), key: self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct QueueRank {
    hash: u64,
    key: QueueKey,
}

/// A place between two blocks of the log, with what the block behind it must agree with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainPoint {
    pub position: PhysicalOffset,
    /// Checksum of the last block before `position`; 0 if there is none.
    pub previous_crc: u32,
    /// Store timestamp of that block.
    pub store_timestamp: StoreTimestamp,
}

/// Consecutive offsets of a queue within one segment.
#[derive(Clone, Debug)]
pub struct SealedRun {
    pub queue: QueueKey,
    pub first: QueueOffset,
    pub(crate) entries: Chunks<Packed>,
}

/// Everything known of one full segment: what its index file is made from.
#[derive(Clone, Debug)]
pub struct SegmentIndex {
    pub base: SegmentBase,
    /// The end of the segment's last block, with the checksum and time of that block.
    pub end: ChainPoint,
    /// The block with which the newest complete checkpoint begins, with the checksum and time of the block before it.
    pub replay_from: ChainPoint,
    pub first_timestamp: StoreTimestamp,
    pub blocks: Arc<SegmentBlocks>,
    /// In any order. A queue has several if offsets were lost.
    pub runs: Vec<SealedRun>,
    /// Queues without a message in the segment, and the offset that their next message gets.
    pub idle: Vec<(QueueKey, QueueOffset)>,
    pub keys: KeyTable,
}

/// A page of the index file of a segment; page 0 is its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    pub segment: SegmentBase,
    pub page: u32,
}

/// A queue to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedQueue {
    pub key: QueueKey,
    /// Position of the queue's first message. What is older belongs to a deleted topic of the same name and is not seen.
    pub born: PhysicalOffset,
}

/// A message of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedEntry {
    pub entry: Entry,
    /// Exact if the segment spans less than 49 days, else rounded down by at most one part in 2^32 of its span.
    pub store_timestamp: StoreTimestamp,
    /// Start of the block around the message.
    pub block: PhysicalOffset,
}

/// Where an index says that a message is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryPlace {
    pub(crate) position: PhysicalOffset,
    pub(crate) bytes: u32,
    /// Start of the block around it.
    pub(crate) block: PhysicalOffset,
}

/// Pages to read before a look-up can be answered, ascending, at most 64. Ask again when `put_page` took them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Error)]
#[error("{} pages of sealed indexes must be read first", .0.len())]
pub struct Missing(pub Vec<PageId>);

/// Why bytes are not the page of an index that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IndexError {
    #[error("a page of an index has {PAGE_BYTES} bytes, not {0}")]
    Length(usize),
    #[error("this is not an index of a segment")]
    NotAnIndex,
    #[error("the checksum is {found:#010x}, but the bytes give {computed:#010x}")]
    Checksum { found: u32, computed: u32 },
    #[error("index format version {0} is not known")]
    Version(u16),
    #[error("the index belongs to another shard, data directory or segment")]
    Foreign,
    #[error("no look-up reads this page")]
    NotAsked,
    #[error("the page's checksum is right, but {0}")]
    Content(&'static str),
}

#[cfg(test)]
mod tests;
