//! The offsets of a broadcasting consumer, in a file of its own.
//!
//! The file holds what RocketMQ's Java client keeps in `offsets.json`. F1: it is written aside, synced and renamed, so
//! that after a crash it is the old or the new one, whole. F2: an offset of a queue once known is never forgotten.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ringmq_protocol::body::{Body, MessageQueue, ResetOffsetBody};
use ringmq_protocol::types::QueueOffset;

use crate::client::lock;
use crate::error::ConsumeError;
use crate::group::{from_wire, to_wire};

pub(crate) struct OffsetFile {
    path: Arc<Path>,
    table: Mutex<Table>,
    /// One write at a time.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    offsets: BTreeMap<MessageQueue, QueueOffset>,
    changed: bool,
}

impl OffsetFile {
    /// Reads the file of a group, if there is one; makes the directory otherwise.
    pub(crate) async fn open(dir: PathBuf, group: &str) -> Result<Self, ConsumeError> {
        let path = dir.join(format!("{group}.json"));
        let failed = |source: io::Error| ConsumeError::OffsetFile { path: path.clone(), source };
        let (from, to) = (path.clone(), dir);
        let read = move || match fs::read(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(to).map(|()| BTreeMap::new())
            }
            bytes => ResetOffsetBody::from_json(&bytes?)
                .map(|body| body.offset_table)
                .map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem)),
        };
        let read =
            tokio::task::spawn_blocking(read).await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let offsets = read.map_err(failed)?.into_iter().map(|(queue, offset)| (queue, from_wire(offset)));
        let table = Table { offsets: offsets.collect(), changed: false };
        Ok(Self { path: path.into(), table: Mutex::new(table), writing: tokio::sync::Mutex::default() })
    }

    pub(crate) fn get(&self, queue: &MessageQueue) -> Option<QueueOffset> {
        lock(&self.table).offsets.get(queue).copied()
    }

    pub(crate) fn set(&self, queue: &MessageQueue, offset: QueueOffset) {
        let mut table = lock(&self.table);
        table.changed |= table.offsets.insert(queue.clone(), offset) != Some(offset);
    }

    /// Writes the file, if something changed.
    pub(crate) async fn save(&self) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        let bytes = {
            let mut table = lock(&self.table);
            if !std::mem::take(&mut table.changed) {
                return Ok(());
            }
            let offsets = table.offsets.iter().map(|(queue, offset)| (queue.clone(), to_wire(*offset)));
            ResetOffsetBody { offset_table: offsets.collect() }.to_json()
        };
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write(&path, &bytes)).await;
        let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        if written.is_err() {
            lock(&self.table).changed = true;
        }
        written
    }
}

/// F1
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("json.new");
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
