//! The data directory: who may use it, what it is, and its files.
//!
//!   <root>/lock              held while a broker uses the directory
//!   <root>/ringmq.json       what the directory is: written once, aside, synced, renamed
//!   <root>/shard-00/         segments of shard 0, one file each, named by the position of its first byte
//!
//!   released segment ─▶ spare ─▶ the next segment that is needed, prepared over its whole length at once
//!   sealed segment ─▶ rewritten aside ─▶ the same segment, with holes (`aside`)
//!
//! Invariants (docs/format.md says what rests on them)
//!   P1  a spare becomes only a segment behind the one that it was: no block in it is right at its new place
//!   P2  no file that another directory shares is written over
//!   P3  whatever was a segment when the log was opened is filled with zeros before it is written behind the log's end
//!
//! Functions here block; they are for start and for the housekeeping thread.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use memmap2::MmapMut;
use rustix::fs::{Advice, FallocateFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::SEGMENT_BYTES_MAX;
use crate::indexes::{INDEX_SUFFIX, index_file_name};
use crate::log::Prepare;
use crate::recover::SegmentStore;
use crate::segment::SegmentBase;
use crate::tail::aligned_buffer;
pub use aside::{Aside, discard_aside, replace_segment, room_left, segment_room};

mod aside;

/// Format of a data directory that this code writes, and the newest that it reads.
pub const DATA_FORMAT: u32 = 1;
const LOCK_NAME: &str = "lock";
const METADATA_NAME: &str = "ringmq.json";
const METADATA_ASIDE_NAME: &str = "ringmq.json.new";
/// A killed broker's writes can outlive it by a moment, and with them its lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const INDEX_ASIDE_SUFFIX: &str = ".index.new";
/// Of whatever is made aside; without a start in between it may be under way.
const ASIDE_SUFFIX: &str = ".new";
const SPARE_SUFFIX: &str = ".spare";
/// Spares of a shard. A log uses one for each that retention gives it; the second is for when they come in pairs.
const SPARES_MAX: usize = 2;
/// Unit of `st_blocks`.
const ALLOCATED_UNIT: u64 = 512;
/// Zeros are written in pieces. Large ones cost least, but a disk may do one thing after the other: then each step of a durable write
/// of the log, its data, the file's metadata and the flush, waits for one. Through the page cache each keeps the log's own writes
/// to the file waiting.
const ZEROS_BYTES: usize = 2 << 20;
const ZEROS_URGENT_BYTES: usize = 4 << 20;
const ZEROS_CACHED_BYTES: usize = 128 << 10;
/// Behind each piece that is not urgent the disk is left alone for this many times as long as it took.
const ZEROS_PAUSE: u32 = 3;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What a new data directory becomes; not looked at when the directory exists.
#[derive(Clone, Copy, Debug)]
pub struct NewDataDir {
    pub shards: u16,
    pub segment_bytes: u64,
    /// A random number; blocks of other directories are told by it.
    pub log_id: u32,
}

/// What was asked for by name. An existing directory that differs is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub shards: Option<u16>,
    pub segment_bytes: Option<u64>,
}

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("data directory {}: {what}: {source}", .path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    #[error("data directory {}: another broker uses it; stop that one, or give this one a directory of its own with --data", .path.display())]
    Locked { path: PathBuf },
    #[error(
        "data directory {} has format {found}, this version of RingMQ knows formats up to {DATA_FORMAT}; use the version that wrote it, or a newer one",
        .path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("data directory {}: {METADATA_NAME} cannot be understood: {problem}; restore it from a backup", .path.display())]
    Metadata { path: PathBuf, problem: String },
    #[error(
        "data directory {} was made with {what} {found}, but {wanted} is asked for; this cannot be changed later: leave the setting out, or use another directory",
        .path.display()
    )]
    Differs { path: PathBuf, what: &'static str, found: u64, wanted: u64 },
    #[error("data directory {} has shards but no {METADATA_NAME}: it is not complete; restore the file from a backup, or use another directory", .path.display())]
    Incomplete { path: PathBuf },
    #[error(
        "data directory {}: the folder shard-{shard:02} is missing; restore it from a backup, or, to go on without what it held, make \
         an empty one",
        .path.display()
    )]
    NoShard { path: PathBuf, shard: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Metadata {
    format: u32,
    shards: u16,
    segment_bytes: u64,
    log_id: u32,
}

/// An open data directory. No other process can open it until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    metadata: Metadata,
    lock: File,
}

impl DataDir {
    /// Opens the directory, or makes it if it does not exist or is empty. Waits up to a second for the lock of a broker that ends.
    pub fn open(root: &Path, new: NewDataDir, wanted: Wanted) -> Result<Self, OpenError> {
        let failed =
            |what: &'static str| move |source| OpenError::Io { path: root.to_path_buf(), what, source };
        fs::create_dir_all(root).map_err(failed("it cannot be made"))?;
        let lock_path = root.join(LOCK_NAME);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(lock_path);
        let lock = lock.map_err(failed("it cannot be written to"))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: root.to_path_buf() }),
                Err(TryLockError::Error(source)) => return Err(failed("it cannot be locked")(source)),
            }
        }
        let metadata = match fs::read(root.join(METADATA_NAME)) {
            Ok(bytes) => parse_metadata(root, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(root, new, wanted)?,
            Err(source) => return Err(failed("its metadata cannot be read")(source)),
        };
        let differs = |what, found: u64, wanted: u64| OpenError::Differs {
            path: root.to_path_buf(),
            what,
            found,
            wanted,
        };
        if let Some(shards) = wanted.shards.filter(|shards| *shards != metadata.shards) {
            return Err(differs("shards =", metadata.shards.into(), shards.into()));
        }
        if let Some(bytes) = wanted.segment_bytes.filter(|bytes| *bytes != metadata.segment_bytes) {
            return Err(differs("segment_bytes =", metadata.segment_bytes, bytes));
        }
        if let Some(shard) = (0..metadata.shards).find(|shard| !shard_dir(root, *shard).is_dir()) {
            return Err(OpenError::NoShard { path: root.to_path_buf(), shard });
        }
        Ok(Self { root: root.to_path_buf(), metadata, lock })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that says what the directory is; it always exists.
    pub fn metadata_path(&self) -> PathBuf {
        self.root.join(METADATA_NAME)
    }

    pub fn shards(&self) -> u16 {
        self.metadata.shards
    }

    pub fn segment_bytes(&self) -> u64 {
        self.metadata.segment_bytes
    }

    pub fn log_id(&self) -> u32 {
        self.metadata.log_id
    }

    /// The file whose lock keeps other processes out. Writes of a killed process can still be on their way for a moment
    /// after its lock is gone; a ring that holds on to this file until its last operation has ended closes that gap.
    pub fn lock_file(&self) -> &File {
        &self.lock
    }

    /// The folder of a shard's segments.
    pub fn shard_dir(&self, shard: u16) -> PathBuf {
        shard_dir(&self.root, shard)
    }

    /// The files of a shard's log, for recovery.
    pub fn store(&self, shard: u16) -> FsStore {
        FsStore::new(self.shard_dir(shard))
    }
}

fn shard_dir(root: &Path, shard: u16) -> PathBuf {
    root.join(format!("shard-{shard:02}"))
}

/// The file of a segment.
pub fn segment_path(shard_dir: &Path, segment: SegmentBase) -> PathBuf {
    shard_dir.join(segment.file_name())
}

/// The file of a segment's index.
pub fn index_path(shard_dir: &Path, segment: SegmentBase) -> PathBuf {
    shard_dir.join(index_file_name(segment))
}

fn parse_metadata(root: &Path, bytes: &[u8]) -> Result<Metadata, OpenError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let broken = |problem: String| OpenError::Metadata { path: root.to_path_buf(), problem };
    let format: Format = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
    if format.format > DATA_FORMAT {
        return Err(OpenError::Newer { path: root.to_path_buf(), found: format.format });
    }
    let metadata: Metadata = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
    let size = metadata.segment_bytes;
    if metadata.format == 0
        || metadata.shards == 0
        || !size.is_multiple_of(1 << 20)
        || size == 0
        || size > SEGMENT_BYTES_MAX
    {
        return Err(broken("its numbers are impossible".to_string()));
    }
    Ok(metadata)
}

fn create(root: &Path, new: NewDataDir, wanted: Wanted) -> Result<Metadata, OpenError> {
    let failed = |what: &'static str| move |source| OpenError::Io { path: root.to_path_buf(), what, source };
    let metadata = Metadata {
        format: DATA_FORMAT,
        shards: wanted.shards.unwrap_or(new.shards),
        segment_bytes: wanted.segment_bytes.unwrap_or(new.segment_bytes),
        log_id: new.log_id,
    };
    let mut text = serde_json::to_string_pretty(&metadata).expect("numbers are JSON");
    text.push('\n');
    parse_metadata(root, text.as_bytes())?;
    // Segments without metadata: the file was lost. A new log id would disown them all.
    for entry in fs::read_dir(root).map_err(failed("it cannot be listed"))? {
        let entry = entry.map_err(failed("it cannot be listed"))?;
        if entry.file_name().to_string_lossy().starts_with("shard-") && has_segments(&entry.path()) {
            return Err(OpenError::Incomplete { path: root.to_path_buf() });
        }
    }
    let write = || -> io::Result<()> {
        for shard in 0..metadata.shards {
            fs::create_dir_all(shard_dir(root, shard))?;
        }
        let aside = root.join(METADATA_ASIDE_NAME);
        let mut file = File::create(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        sync_dir(root)?; // the metadata must not be there without the folders
        fs::rename(&aside, root.join(METADATA_NAME))?;
        sync_dir(root)?;
        // The directory is an entry of its parent, which may be new as well, now or in a run that was killed.
        let root = root.canonicalize()?;
        root.ancestors().skip(1).try_for_each(|parent| match File::open(parent) {
            Ok(_) => sync_dir(parent),
            Err(_) => Ok(()), // not ours to look at, so not made by us either
        })
    };
    write().map_err(failed("its metadata cannot be written"))?;
    Ok(metadata)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // File systems without anything to sync for a directory.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

fn has_segments(dir: &Path) -> bool {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name().to_str().and_then(SegmentBase::from_file_name).is_some())
}

/// Makes a stretch of a segment's file ready to be written, durably; makes the file, at its full size, if need be. Answers
/// up to where it is ready: a new segment that is made of a spare is so at once and as a whole, anything else is
/// filled with zeros as far as was asked. For the housekeeping thread. An error leaves the log as it was: it may be tried again.
///
/// Past the page cache where the file system can do that: pages that it kept would have to be thrown out by each direct
/// write of the log, which for that reason would go to a kernel worker thread.
pub fn prepare(shard_dir: &Path, wanted: Prepare, segment_bytes: u64) -> io::Result<u64> {
    let path = segment_path(shard_dir, wanted.segment);
    if wanted.from == 0 && !path.try_exists()? && use_spare(shard_dir, wanted.segment, segment_bytes)? {
        return Ok(segment_bytes);
    }
    let open =
        |flags| OpenOptions::new().create(true).truncate(false).write(true).custom_flags(flags).open(&path);
    let (file, piece_bytes) = match open(libc::O_DIRECT) {
        Ok(file) => (file, if wanted.is_urgent { ZEROS_URGENT_BYTES } else { ZEROS_BYTES }),
        Err(_) => (open(0)?, ZEROS_CACHED_BYTES),
    };
    if file.metadata()?.len() < segment_bytes {
        file.set_len(segment_bytes)?;
    }
    // Where there is room already, writing zeros does not lock the file against the log's own writes, which would then go
    // to a kernel worker thread. A file system that cannot reserve room finds it as it writes, or says then that it is full.
    let _ = rustix::fs::fallocate(&file, FallocateFlags::empty(), wanted.from, wanted.to - wanted.from);
    let memory = zero_pages(piece_bytes)?;
    let zeros = &memory[memory.as_ptr().align_offset(HUGE_PAGE_BYTES)..][..piece_bytes];
    let mut at = wanted.from;
    while at < wanted.to {
        let step = (wanted.to - at).min(piece_bytes as u64);
        let begun = Instant::now();
        file.write_all_at(&zeros[..step as usize], at)?; // at most `piece_bytes`
        at += step;
        if !wanted.is_urgent {
            thread::sleep(begun.elapsed() * ZEROS_PAUSE);
        }
    }
    // Also the directory, each time: a run that was killed may have made the file and not come so far.
    file.sync_all()?;
    sync_dir(shard_dir)?;
    Ok(wanted.to)
}

/// Zeros from the first huge page's start on. Nobody writes to them, so they are the kernel's one huge page of zeros: they take no
/// memory, and a write of many finds few pages to look up, which cost it more than all else.
fn zero_pages(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes + HUGE_PAGE_BYTES)?;
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

/// Gives a spare the name of a segment that does not exist; false if there is none that may be used.
fn use_spare(shard_dir: &Path, segment: SegmentBase, segment_bytes: u64) -> io::Result<bool> {
    let path = segment_path(shard_dir, segment);
    for former in spares(shard_dir)? {
        if former >= segment {
            // P1: of another history of this log, as when older files were copied back over it.
            fs::remove_file(spare_path(shard_dir, former))?;
            continue;
        }
        fs::rename(spare_path(shard_dir, former), &path)?;
        if is_reusable(&path, segment_bytes)? {
            // Pages that whoever read the segment has left in the cache: see `prepare`.
            let _ = rustix::fs::fadvise(File::open(&path)?, 0, None, Advice::DontNeed);
            sync_dir(shard_dir)?;
            return Ok(true);
        }
        fs::remove_file(&path)?;
    }
    Ok(false)
}

/// Takes a segment out of the log, and its index before it: an index without its segment is a loss, and would be reported as
/// one. True if its file was kept as a spare; never if `may_keep` is false, if there are enough, or if writing over it would
/// save nothing or change what somebody else has linked.
pub fn remove_segment(
    shard_dir: &Path,
    segment: SegmentBase,
    segment_bytes: u64,
    may_keep: bool,
) -> io::Result<bool> {
    remove_if_there(&index_path(shard_dir, segment))?;
    sync_dir(shard_dir)?;
    let (path, spare) = (segment_path(shard_dir, segment), spare_path(shard_dir, segment));
    let is_kept = may_keep && spares(shard_dir)?.len() < SPARES_MAX;
    if !is_kept {
        remove_if_there(&path)?;
        sync_dir(shard_dir)?;
        return Ok(false);
    }
    match fs::rename(&path, &spare) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    }
    // P2: only now, for nobody links a segment any more that has another name.
    let is_kept = is_reusable(&spare, segment_bytes)?;
    if !is_kept {
        fs::remove_file(&spare)?;
    }
    sync_dir(shard_dir)?;
    Ok(is_kept)
}

/// Deletes the oldest spare; false if there is none.
pub fn remove_spare(shard_dir: &Path) -> io::Result<bool> {
    let Some(oldest) = spares(shard_dir)?.into_iter().next() else { return Ok(false) };
    fs::remove_file(spare_path(shard_dir, oldest))?;
    sync_dir(shard_dir)?;
    Ok(true)
}

/// What the files of a shard take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardUse {
    /// Lengths of all files, also where a segment has no room on the disk yet; of one that is sealed, and may have been rewritten,
    /// the room that it has. What is made aside does not count.
    pub bytes: u64,
    pub spares: usize,
}

/// Looks at all files in the folder of a shard.
pub fn shard_use(shard_dir: &Path) -> io::Result<ShardUse> {
    let mut found = ShardUse::default();
    for entry in fs::read_dir(shard_dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| metadata.is_file() && !name.ends_with(ASIDE_SUFFIX))
        else {
            continue;
        };
        let is_sealed = SegmentBase::from_file_name(name)
            .is_some_and(|segment| index_path(shard_dir, segment).try_exists().unwrap_or(false));
        found.bytes += if is_sealed { aside::room_of(&metadata) } else { metadata.len() };
        found.spares += usize::from(spare_of(name).is_some());
    }
    Ok(found)
}

fn spare_path(shard_dir: &Path, former: SegmentBase) -> PathBuf {
    shard_dir.join(format!("{former}{SPARE_SUFFIX}"))
}

fn spare_of(name: &str) -> Option<SegmentBase> {
    name.strip_suffix(SPARE_SUFFIX).and_then(SegmentBase::from_file_name)
}

/// The segments that the spares were, oldest first.
fn spares(shard_dir: &Path) -> io::Result<Vec<SegmentBase>> {
    let mut spares = Vec::new();
    for entry in fs::read_dir(shard_dir)? {
        spares.extend(entry?.file_name().to_str().and_then(spare_of));
    }
    spares.sort_unstable();
    Ok(spares)
}

/// Whether the file is ours alone, and has room on the disk for the whole of a segment: only then writing over it saves
/// zeroing. Not on file systems that compress, or write elsewhere what is written over.
fn is_reusable(path: &Path, segment_bytes: u64) -> io::Result<bool> {
    let found = fs::metadata(path)?;
    let has_room = found.len() == segment_bytes && found.blocks() * ALLOCATED_UNIT >= segment_bytes;
    Ok(has_room && found.nlink() == 1)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Segment files of one shard, read past the page cache where the file system can do that: after a failed sync the
/// page cache may hold what the disk does not.
///
/// Whoever reads a segment from one end to the other finds the next part read ahead.
#[derive(Debug)]
pub struct FsStore {
    dir: PathBuf,
    /// Behind the names of segments.
    suffix: &'static str,
    open: Option<(SegmentBase, Arc<File>)>,
    is_direct: bool,
    ahead: Option<ReadAhead>,
}

/// A read that is under way in a thread of its own.
#[derive(Debug)]
struct ReadAhead {
    segment: SegmentBase,
    offset: u64,
    len: usize,
    thread: JoinHandle<io::Result<BytesMut>>,
}

/// Shorter reads are not followed by reading ahead.
const READ_AHEAD_BYTES_MIN: usize = 1 << 20;

impl FsStore {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, suffix: "", open: None, is_direct: true, ahead: None }
    }

    /// Reads the files beside segments in the place of the segments.
    pub fn aside(dir: PathBuf) -> Self {
        Self { suffix: ASIDE_SUFFIX, ..Self::new(dir) }
    }

    /// Whether reads go past the page cache, as far as it is known: the first read tells.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    fn file(&mut self, segment: SegmentBase) -> io::Result<&Arc<File>> {
        if self.open.as_ref().is_none_or(|(base, _)| *base != segment) {
            let flags = if self.is_direct { libc::O_DIRECT } else { 0 };
            let path = self.dir.join(format!("{segment}{}", self.suffix));
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            self.open = Some((segment, Arc::new(file)));
        }
        Ok(&self.open.as_ref().expect("opened above").1)
    }

    fn read(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (segment, offset, buffer.len());
        let ahead = self.ahead.take().filter(|ahead| (ahead.segment, ahead.offset, ahead.len) == wanted);
        let mut used = BytesMut::new();
        let done = match ahead.map(|ahead| ahead.thread.join()) {
            Some(Ok(Ok(bytes))) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                used = bytes;
                used.len()
            }
            // What went wrong there is seen again here.
            _ => read_fully(self.file(segment)?, offset, buffer)?,
        };
        if done == buffer.len() && done >= READ_AHEAD_BYTES_MIN {
            let (file, offset, len) = (self.file(segment)?.clone(), offset + done as u64, buffer.len());
            let read = move || {
                let mut bytes = if used.len() == len { used } else { aligned_buffer(len) };
                bytes.resize(len, 0);
                let done = read_fully(&file, offset, &mut bytes)?;
                bytes.truncate(done);
                Ok(bytes)
            };
            let thread = thread::Builder::new().name("read-ahead".to_owned()).spawn(read)?;
            self.ahead = Some(ReadAhead { segment, offset, len, thread });
        }
        Ok(done)
    }
}

/// Reads until the buffer is full or the file ends.
fn read_fully(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

impl SegmentStore for FsStore {
    fn segments(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(base) = entry.file_name().to_str().and_then(SegmentBase::from_file_name) {
                segments.push((base, entry.metadata()?.len()));
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }

    fn read_at(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self.read(segment, offset, buffer) {
            // The file system does not know direct reads, or not of this size.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && self.is_direct => {
                self.is_direct = false;
                self.open = None;
                self.read(segment, offset, buffer)
            }
            other => other,
        }
    }

    fn sync(&mut self, segment: SegmentBase) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn indexes(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        let mut indexes = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(base) = name.strip_suffix(INDEX_SUFFIX).and_then(SegmentBase::from_file_name) {
                indexes.push((base, entry.metadata()?.len()));
            } else if name.ends_with(ASIDE_SUFFIX) {
                fs::remove_file(entry.path())?;
            }
        }
        indexes.sort_unstable();
        Ok(indexes)
    }

    fn read_index(&mut self, segment: SegmentBase, page: u32, buffer: &mut [u8]) -> io::Result<()> {
        let file = File::open(index_path(&self.dir, segment))?;
        file.read_exact_at(buffer, u64::from(page) * buffer.len() as u64)
    }

    fn write_index(
        &mut self,
        segment: SegmentBase,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = index_path(&self.dir, segment);
        let aside = self.dir.join(format!("{segment}{INDEX_ASIDE_SUFFIX}"));
        let mut file = File::create(&aside)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_dir(&self.dir)
    }
}

#[cfg(test)]
mod tests;
