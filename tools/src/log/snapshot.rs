//! `ringmq log snapshot`: a copy of a data directory, also of one in use, that starts by itself.
//!
//!   list sealed segments ─▶ read the log behind them to its end ─▶ link what is sealed, copy the rest up to that end
//!                        ─▶ sync ─▶ ringmq.json, last
//!
//! N1  A block that was acknowledged before the snapshot began is right on the disk when the log is read, so the end found lies
//!     behind it. Nothing below that end is ever written with other bytes, so the copy needs no help from the broker.
//! N2  Nothing beyond that end is copied: the copy is a log that ends with a right block, not one that a crash tore.
//! N3  A file of the copy that can still be written to is a file of its own. Only segments that the log has left are linked, and
//!     retention never makes a new segment of a file that is linked (P2 of the storage engine's `data_dir`).
//! N4  The directory is none until `ringmq.json` is there.
//! N5  What was read or copied counts only if the file has its name afterwards: one that retention took from the log may have
//!     become a new segment meanwhile, and loses its name first.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ringmq_protocol::types::PhysicalOffset;
use ringmq_storage::{
    DATA_FORMAT, IndexHeader, Record, SegmentBase, SegmentStore, index_path, read_index_header, recover,
    segment_path,
};
use serde::Deserialize;

use super::{LogError, METADATA_NAME, ShardFiles};

/// How often retention may get in the way before it is given up.
const TRIES_MAX: u32 = 10;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files that are shared with the original, as they are never written again.
    pub linked: u64,
    pub copied: u64,
    /// Bytes that were copied.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Metadata {
    format: u32,
    shards: u16,
    segment_bytes: u64,
    log_id: u32,
}

/// A segment was deleted while it was to be copied.
enum Trouble {
    Gone,
    Failed(LogError),
}

impl From<LogError> for Trouble {
    fn from(error: LogError) -> Self {
        Trouble::Failed(error)
    }
}

/// Copies `root` to `target`, which must be empty or not there.
pub fn snapshot(root: &Path, target: &Path) -> Result<Copied, LogError> {
    let metadata_path = root.join(METADATA_NAME);
    let text = fs::read(&metadata_path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LogError::NoDirectory(root.to_path_buf()),
        _ => LogError::at(&metadata_path)(error),
    })?;
    let metadata: Metadata = serde_json::from_slice(&text)
        .map_err(|error| LogError::Snapshot(format!("{}: {error}", metadata_path.display())))?;
    if metadata.format != DATA_FORMAT || metadata.segment_bytes == 0 {
        let text = format!("{} is of format {}, not {DATA_FORMAT}", root.display(), metadata.format);
        return Err(LogError::Snapshot(text));
    }
    fs::create_dir_all(target).map_err(LogError::at(target))?;
    if fs::read_dir(target).map_err(LogError::at(target))?.next().is_some() {
        return Err(LogError::Snapshot(format!("{} is not empty: name a new directory", target.display())));
    }
    let mut all = Copied::default();
    for shard in 0..metadata.shards {
        let name = format!("shard-{shard:02}");
        let (from, to) = (root.join(&name), target.join(&name));
        let mut files = ShardFiles::new(from, shard, metadata.log_id, metadata.segment_bytes);
        let mut tries = 0;
        let copied = loop {
            fs::create_dir_all(&to).map_err(LogError::at(&to))?;
            match copy_shard(&mut files, &to) {
                Ok(copied) => break copied,
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Gone) if tries == TRIES_MAX => {
                    let text = "segments are deleted faster than they can be copied; try again with a longer retention";
                    return Err(LogError::Snapshot(text.to_owned()));
                }
                Err(Trouble::Gone) => tries += 1,
            }
            fs::remove_dir_all(&to).map_err(LogError::at(&to))?;
            // A store keeps the file that it read last.
            files = ShardFiles::new(files.directory, shard, metadata.log_id, metadata.segment_bytes);
        };
        all.linked += copied.linked;
        all.copied += copied.copied;
        all.bytes += copied.bytes;
        sync_dir(&to)?;
    }
    let metadata_copy = target.join(METADATA_NAME);
    let write = || -> io::Result<()> {
        let mut file = File::create(&metadata_copy)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    sync_dir(target)?;
    write().map_err(LogError::at(&metadata_copy))?;
    sync_dir(target)?;
    if let Some(parent) = target.canonicalize().ok().as_deref().and_then(Path::parent) {
        sync_dir(parent)?;
    }
    Ok(all)
}

fn copy_shard(files: &mut ShardFiles, to: &Path) -> Result<Copied, Trouble> {
    let directory = files.directory.clone();
    let sealed = sealed(files)?;
    // The log behind the newest sealed segment, read as a start would. A block that is written meanwhile can be taken for the
    // end of a damaged stretch; that is no harm, as the bytes of the stretch are copied afterwards and only the end counts.
    let from = sealed.last().map(|header| header.end);
    let recovered = recover(&mut files.store, &files.config, from, &mut |_: Record<'_>| {});
    let (recovered, _) =
        recovered.map_err(|error| gone_or(&directory, &sealed, files.recover_error()(error)))?;
    let end = recovered.end.position;
    let last = SegmentBase::of(PhysicalOffset(end.0.saturating_sub(1)), files.config.segment_bytes);

    let mut copied = Copied::default();
    let mut has_last = end.0 == 0;
    let listed = files.store.segments().map_err(LogError::at(&directory))?;
    let newest_sealed = sealed.last().map(|header| header.base);
    // Oldest first: retention deletes the oldest first, so if one is still there all behind it are.
    for base in listed.into_iter().map(|(base, _)| base).filter(|base| *base <= last) {
        let path = segment_path(&directory, base);
        // N3. The last one is not linked, as a start may go on in it.
        if Some(base) <= newest_sealed && base < last {
            copied.link(&path, &to.join(base.file_name()))?;
        } else {
            let wanted = (end.0 - base.0).min(files.config.segment_bytes);
            copied.copy(&path, &to.join(base.file_name()), wanted, files.config.segment_bytes)?;
        }
        has_last |= base == last;
    }
    // N5, for what was read of it.
    if !has_last {
        return Err(Trouble::Gone);
    }
    for header in &sealed {
        let path = index_path(&directory, header.base);
        copied.link(&path, &to.join(path.file_name().expect("a file of the folder")))?;
        // What was listed and deleted before its turn.
        if !segment_path(to, header.base).exists() {
            return Err(Trouble::Gone);
        }
    }
    Ok(copied)
}

/// The segments whose index is there and can be read. Not `FsStore::indexes`: that is for the directory's owner, as it
/// clears away what is unfinished.
fn sealed(files: &mut ShardFiles) -> Result<Vec<IndexHeader>, Trouble> {
    let segments = files.store.segments().map_err(LogError::at(&files.directory))?;
    let header = |(base, _): (SegmentBase, u64)| {
        let index = fs::metadata(index_path(&files.directory, base)).ok()?;
        read_index_header(&mut files.store, &files.config, base, index.len()).ok()
    };
    Ok(segments.into_iter().filter_map(header).collect())
}

/// A reading can also fail because retention was faster.
fn gone_or(directory: &Path, sealed: &[IndexHeader], error: LogError) -> Trouble {
    let is_gone = |header: &IndexHeader| !segment_path(directory, header.base).exists();
    if sealed.iter().any(is_gone) { Trouble::Gone } else { Trouble::Failed(error) }
}

impl Copied {
    /// Links a file, or copies it where links do not go.
    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Trouble> {
        match fs::hard_link(from, to) {
            Ok(()) => {
                self.linked += 1;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Trouble::Gone),
            Err(_) => {}
        }
        // Another file system, or one without links. The kernel copies, by reference where it can.
        let copy = || -> io::Result<u64> {
            let bytes = fs::copy(from, to)?;
            File::open(to)?.sync_all()?;
            Ok(bytes)
        };
        self.count(copy().map_err(|error| failed(from, error))?);
        still_there(from)
    }

    /// Copies the first bytes of a segment; the rest of the new file are zeros.
    fn copy(&mut self, from: &Path, to: &Path, wanted: u64, segment_bytes: u64) -> Result<(), Trouble> {
        let copy = || -> io::Result<u64> {
            let mut target = File::create(to)?;
            let bytes = io::copy(&mut File::open(from)?.take(wanted), &mut target)?;
            target.set_len(segment_bytes)?;
            target.sync_all()?;
            Ok(bytes)
        };
        self.count(copy().map_err(|error| failed(from, error))?);
        still_there(from)
    }

    fn count(&mut self, bytes: u64) {
        self.copied += 1;
        self.bytes += bytes;
    }
}

/// N5
fn still_there(path: &Path) -> Result<(), Trouble> {
    if path.try_exists().map_err(LogError::at(path))? { Ok(()) } else { Err(Trouble::Gone) }
}

fn failed(path: &Path, error: io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::NotFound => Trouble::Gone,
        _ => Trouble::Failed(LogError::at(path)(error)),
    }
}

fn sync_dir(path: &Path) -> Result<(), LogError> {
    let path: PathBuf = path.into();
    File::open(&path).and_then(|file| file.sync_all()).map_err(LogError::at(&path))
}
