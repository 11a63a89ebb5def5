//! A file that is made beside a segment and then takes its place: the segment, rewritten.
//!
//!   <20 digits>.new    written, synced, read back ─▶ renamed over the segment ─▶ the folder synced
//!
//! P4  At any moment, and after a crash at any moment, the name of a segment leads to its old file or to the new one, whole and
//!     durable; either is right. What a crash leaves beside it is removed at the next start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{ALLOCATED_UNIT, ASIDE_SUFFIX, remove_if_there, segment_path, sync_dir};
use crate::segment::SegmentBase;

/// The file beside a segment while it is written. Past the page cache where the file system can do that, as the log is.
#[derive(Debug)]
pub struct Aside {
    file: File,
}

impl Aside {
    /// Makes the file, as long as a segment and without any room on the disk; in the place of an older one.
    pub fn create(shard_dir: &Path, segment: SegmentBase, segment_bytes: u64) -> io::Result<Self> {
        let path = aside_path(shard_dir, segment);
        remove_if_there(&path)?;
        let open = |flags| OpenOptions::new().create_new(true).write(true).custom_flags(flags).open(&path);
        let file = match open(libc::O_DIRECT) {
            Ok(file) => file,
            // A file system may make the file before it says that it does not know direct writes.
            Err(_) => {
                remove_if_there(&path)?;
                open(0)?
            }
        };
        file.set_len(segment_bytes)?;
        Ok(Self { file })
    }

    /// Writes whole pages in aligned memory at an offset.
    pub fn write(&self, offset: u64, pages: &[u8]) -> io::Result<()> {
        self.file.write_all_at(pages, offset)
    }

    /// What was written is durable when this returns.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Puts the file beside a segment, which is finished, in the segment's place. Gives the bytes of room that the disk has back
/// once nobody has the old file open any more; `None` if there is no such segment, and then no such file either.
pub fn replace_segment(shard_dir: &Path, segment: SegmentBase) -> io::Result<Option<u64>> {
    let (aside, path) = (aside_path(shard_dir, segment), segment_path(shard_dir, segment));
    let before = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            discard_aside(shard_dir, segment)?;
            return Ok(None);
        }
        other => room_of(&other?),
    };
    let after = room_of(&fs::metadata(&aside)?);
    fs::rename(&aside, &path)?;
    sync_dir(shard_dir)?;
    Ok(Some(before.saturating_sub(after)))
}

/// Removes the file beside a segment, if there is any.
pub fn discard_aside(shard_dir: &Path, segment: SegmentBase) -> io::Result<()> {
    remove_if_there(&aside_path(shard_dir, segment))
}

/// Room that the disk would have back with the file of a segment; `None` if another link, as of a snapshot, would keep it.
pub fn segment_room(shard_dir: &Path, segment: SegmentBase) -> io::Result<Option<u64>> {
    let found = fs::metadata(segment_path(shard_dir, segment))?;
    Ok((found.nlink() == 1).then(|| room_of(&found)))
}

/// Bytes that may still be written to the disk of a folder.
pub fn room_left(shard_dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(shard_dir)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Of the content; what a file system needs besides for a file in many pieces is not counted.
pub(super) fn room_of(found: &fs::Metadata) -> u64 {
    found.len().min(found.blocks() * ALLOCATED_UNIT)
}

pub(super) fn aside_path(shard_dir: &Path, segment: SegmentBase) -> PathBuf {
    shard_dir.join(format!("{segment}{ASIDE_SUFFIX}"))
}
