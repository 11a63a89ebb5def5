//! `ringmq log`: the files of a data directory, without their broker.
//!
//!   verify     every byte of every segment, every index held to its log, what is lost named as far as indexes can
//!   repair     what is damaged copied aside, indexes written anew; no byte of a segment is changed
//!   inspect    blocks and records, one after the other
//!   snapshot   a copy of a directory that may be in use, which starts by itself
//!   records    the settings records, for people
//!
//! All but `snapshot` take the directory's lock: what they say would not hold while a broker writes.

pub mod inspect;
pub mod records;
pub mod repair;
pub mod snapshot;
pub mod verify;

use std::io;
use std::path::{Path, PathBuf};

use ringmq_storage::{DataDir, FsStore, LogConfig, NewDataDir, OpenError, RecoverError, Wanted};
use thiserror::Error;

/// What a data directory is told by.
const METADATA_NAME: &str = "ringmq.json";

/// Why a directory could not be worked on to the end.
#[derive(Debug, Error)]
pub enum LogError {
    #[error("{} is no data directory: it has no {METADATA_NAME}", .0.display())]
    NoDirectory(PathBuf),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("data directory {} has no shard {shard}, only 0 to {}", .path.display(), .shards - 1)]
    NoShard { path: PathBuf, shard: u16, shards: u16 },
    #[error("shard {shard}: {source}")]
    Recover { shard: u16, source: RecoverError },
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Snapshot(String),
}

impl LogError {
    fn at(path: &Path) -> impl Fn(io::Error) -> LogError {
        move |source| LogError::Io { path: path.to_path_buf(), source }
    }
}

/// Opens a directory that no broker uses, and keeps brokers out until it is dropped. Never makes one.
pub fn open_stopped(root: &Path) -> Result<DataDir, LogError> {
    if !root.join(METADATA_NAME).is_file() {
        return Err(LogError::NoDirectory(root.to_path_buf()));
    }
    // The directory exists, so what a new one would be is not looked at.
    let new = NewDataDir { shards: 1, segment_bytes: 1 << 30, log_id: 0 };
    Ok(DataDir::open(root, new, Wanted::default())?)
}

/// One shard of a directory.
struct ShardFiles {
    shard: u16,
    directory: PathBuf,
    config: LogConfig,
    store: FsStore,
}

impl ShardFiles {
    fn of(data: &DataDir, shard: u16) -> Self {
        Self::new(data.shard_dir(shard), shard, data.log_id(), data.segment_bytes())
    }

    fn new(directory: PathBuf, shard: u16, log_id: u32, segment_bytes: u64) -> Self {
        let config = LogConfig { shard, log_id, segment_bytes, ..LogConfig::default() };
        let store = FsStore::new(directory.clone());
        Self { shard, directory, config, store }
    }

    fn recover_error(&self) -> impl Fn(RecoverError) -> LogError + use<> {
        let shard = self.shard;
        move |source| LogError::Recover { shard, source }
    }
}
