//! The open files of a shard: segments of the log, and the indexes beside them.

use crate::shard::LogFile;
use ringmq_ring::{Access, File, OpenMode, Ring};
use ringmq_storage::{SegmentBase, index_path, segment_path};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Files of each kind kept open. A file is closed by the ring once its operations in flight have ended.
const OPEN_FILES_MAX: usize = 64;

/// Opens segment files when they are first needed. All writes go to the newest one or two, reads anywhere.
pub struct LogFiles {
    directory: PathBuf,
    direct: bool,
    segments: BTreeMap<SegmentBase, File>,
    indexes: BTreeMap<SegmentBase, File>,
    in_flight: usize,
}

impl LogFiles {
    /// `directory` holds the files; `direct` says whether they are written and read past the page cache.
    pub fn new(directory: PathBuf, direct: bool) -> Self {
        LogFiles { directory, direct, segments: BTreeMap::new(), indexes: BTreeMap::new(), in_flight: 0 }
    }

    /// A file, or one line that says why it cannot be opened.
    pub(super) fn get<R: Ring>(
        &mut self,
        ring: &mut R,
        kind: LogFile,
        segment: SegmentBase,
    ) -> Result<File, String> {
        // Pages of indexes are small and asked for again and again: those are left to the page cache.
        let (open, path, mode) = match kind {
            LogFile::Segment => {
                let mode = OpenMode { access: Access::Write, direct: self.direct };
                (&mut self.segments, segment_path(&self.directory, segment), mode)
            }
            LogFile::Index => {
                let mode = OpenMode { access: Access::Read, direct: false };
                (&mut self.indexes, index_path(&self.directory, segment), mode)
            }
        };
        if let Some(file) = open.get(&segment) {
            return Ok(*file);
        }
        let file =
            ring.open(&path, mode).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        if open.len() == OPEN_FILES_MAX {
            // The oldest data is the least likely to be asked for again soon.
            let (_, oldest) = open.pop_first().expect("the table is full");
            ring.close_file(oldest);
        }
        open.insert(segment, file);
        Ok(file)
    }

    /// A name of the segment leads to another file now, or both are to go.
    pub(super) fn forget<R: Ring>(&mut self, ring: &mut R, segment: SegmentBase) {
        let files = [self.indexes.remove(&segment), self.segments.remove(&segment)];
        files.into_iter().flatten().for_each(|file| ring.close_file(file));
    }

    pub(super) fn on_submitted(&mut self) {
        self.in_flight += 1;
    }

    pub(super) fn on_done(&mut self) {
        self.in_flight -= 1;
    }

    /// True while no operation on a file is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight == 0
    }
}
