//! The open segment files of a shard.

use ringmq_ring::{Access, File, OpenMode, Ring};
use ringmq_storage::SegmentBase;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Segment files kept open. A file is closed by the ring once its operations in flight have ended.
const OPEN_FILES_MAX: usize = 64;

/// Opens segment files when they are first needed. All writes go to the newest one or two, reads anywhere.
pub struct LogFiles {
    directory: PathBuf,
    direct: bool,
    open: BTreeMap<SegmentBase, File>,
    in_flight: usize,
}

impl LogFiles {
    /// `directory` holds the files; `direct` says whether they are written and read past the page cache.
    pub fn new(directory: PathBuf, direct: bool) -> Self {
        LogFiles { directory, direct, open: BTreeMap::new(), in_flight: 0 }
    }

    /// The file of a segment, or one line that says why it cannot be opened.
    pub(super) fn get<R: Ring>(&mut self, ring: &mut R, segment: SegmentBase) -> Result<File, String> {
        if let Some(file) = self.open.get(&segment) {
            return Ok(*file);
        }
        let path = self.directory.join(segment.file_name());
        let mode = OpenMode { access: Access::Write, direct: self.direct };
        let file =
            ring.open(&path, mode).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        if self.open.len() == OPEN_FILES_MAX {
            // The oldest data is the least likely to be asked for again soon.
            let (_, oldest) = self.open.pop_first().expect("the table is full");
            ring.close_file(oldest);
        }
        self.open.insert(segment, file);
        Ok(file)
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
