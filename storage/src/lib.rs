//! The commit log of a shard and what is derived from it. Sans I/O: the caller submits writes and reads.
//!
//!   block        the unit of writing: header, checksum, chain
//!   record       what is in a block: messages and metadata
//!   log          append → open block → write → durable, in order
//!   tail         the recent part of the log in memory, never copied
//!   segment      which blocks there are: position and time
//!   queue_index  for every queue, where its messages are, while its segment is not sealed
//!   key_table    the keys of those messages
//!   sealed       index files of full segments, and look-ups over all of them
//!   indexes      those files: opened, written, rebuilt
//!   recover      from files to all of the above
//!   rewrite      a full segment without messages that nobody can ask for any more
//!   scan         the same files for those who only look: block by block, and an index held to its log
//!   data_dir     the files themselves: directory, lock, metadata, room ahead of the log
//!   memory_store the same in memory, for whoever wants no disk
//!   chunks       a list that grows without copying
//!   config       every size and limit
//!
//! The layout on disk, and why no crash loses what was acknowledged, is in docs/format.md.
#![forbid(unsafe_code)]

pub mod block;
mod chunks;
mod config;
mod data_dir;
mod indexes;
mod key_table;
mod log;
mod memory_store;
mod queue_index;
mod record;
mod recover;
mod rewrite;
mod scan;
mod sealed;
mod segment;
mod tail;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod testing;

pub use config::{LogConfig, SEGMENT_BYTES_MAX};
pub use data_dir::{
    Aside, DATA_FORMAT, DataDir, FsStore, NewDataDir, OpenError, ShardUse, Wanted, discard_aside, index_path,
    prepare, remove_segment, remove_spare, replace_segment, room_left, segment_path, segment_room, shard_use,
};
pub use indexes::{Indexes, keys_of, open_indexes, push_message, rebuild_index, seal};
pub use key_table::{KeyHash, TopicHash};
pub use log::{AppendError, Appended, BlockSeq, CommitLog, DurableAdvance, LogWrite, Prepare, WriteError};
pub use memory_store::MemoryStore;
pub use queue_index::{Boundary, Entry, OffsetUsed, QueueIndex, QueueIx, QueueMark};
pub use record::{
    GAP_KIND, METADATA_HEADER_BYTES, RINGMQ_RECORD_MAGIC, Record, RecordError, metadata_bytes, records,
    write_metadata,
};
pub use recover::{
    Damage, RecoverError, Recovered, RecoveryReport, SegmentEnd, SegmentStore, Visitor, recover, scan_segment,
};
pub use rewrite::{Rewrite, RewriteError};
pub use scan::{Found, IndexFile, IndexProblem, Remains, SegmentFacts, SegmentScan, read_index_header};
pub use sealed::{
    ChainPoint, IndexHeader, Missing, PAGE_BYTES, PageId, QueueKey, SealedEntry, SealedQueue, SealedSegments,
    SegmentIndex,
};
pub use segment::{BlockIndex, BlockSpan, SegmentBase, SegmentBlocks};
pub use tail::{MEMORY_ALIGN, aligned_buffer};
