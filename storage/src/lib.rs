//! The commit log of a shard and what is derived from it. Sans I/O: the caller submits writes and reads.
//!
//!   block        the unit of writing: header, checksum, chain
//!   record       what is in a block: messages and metadata
//!   log          append → open block → write → durable, in order
//!   tail         the recent part of the log in memory, never copied
//!   segment      which blocks there are: position and time
//!   queue_index  for every queue, where its messages are
//!   recover      from files to all of the above
//!   data_dir     the files themselves: directory, lock, metadata, zeroing ahead
//!   chunks       a list that grows without copying
//!   config       every size and limit
//!
//! The layout on disk, and why no crash loses what was acknowledged, is in docs/format.md.
#![forbid(unsafe_code)]

pub mod block;
mod chunks;
mod config;
mod data_dir;
mod log;
mod queue_index;
mod record;
mod recover;
mod segment;
mod tail;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod testing;

pub use config::{LogConfig, SEGMENT_BYTES_MAX};
pub use data_dir::{DATA_FORMAT, DataDir, FsStore, NewDataDir, OpenError, Wanted, prepare, segment_path};
pub use log::{AppendError, Appended, BlockSeq, CommitLog, DurableAdvance, LogWrite, Prepare, WriteError};
pub use queue_index::{Boundary, Entry, OffsetUsed, QueueIndex, QueueIx};
pub use record::{
    METADATA_HEADER_BYTES, RINGMQ_RECORD_MAGIC, Record, RecordError, metadata_bytes, records, write_metadata,
};
pub use recover::{Damage, RecoverError, Recovered, RecoveryReport, SegmentStore, recover};
pub use segment::{BlockIndex, BlockSpan, SegmentBase};
pub use tail::{MEMORY_ALIGN, aligned_buffer};
