//! `ringmq log repair`: damaged stretches copied aside, indexes written anew. No byte of a segment is changed, so what a
//! start finds of the log is what it would have found before; and a second run finds nothing left to do.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use ringmq_protocol::types::PhysicalOffset;
use ringmq_storage::{ChainPoint, Damage, DataDir, SegmentBase, rebuild_index, segment_path};

use super::verify::{FileProblem, ShardReport, header_of, verify};
use super::{LogError, ShardFiles};

/// Copies of damaged stretches, in the folder of their shard.
const DAMAGED_DIR: &str = "damaged";
/// Bytes that are read at a time; where the disk gives none, one sector at a time.
const STEP_BYTES: usize = 1 << 20;
const SECTOR_BYTES: usize = 4096;

/// What was done about a damaged stretch, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copied {
    Now(PathBuf),
    Before(PathBuf),
    /// Its file is gone, or what can be read of it are zeros.
    Nothing,
}

/// What was done about an index, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    pub segment: SegmentBase,
    pub why: String,
    /// Messages that it names now; `None` in a dry run.
    pub messages: Option<u64>,
}

/// What was found in a shard, and what was done about it.
#[derive(Clone, Debug)]
pub struct Repair {
    /// Before anything was done.
    pub found: ShardReport,
    /// One for each of `found.damaged`.
    pub copies: Vec<Copied>,
    pub indexes: Vec<Rewritten>,
}

impl Repair {
    /// Whether anything was done, or would be in a dry run.
    pub fn has_work(&self) -> bool {
        !self.indexes.is_empty() || self.copies.iter().any(|copied| matches!(copied, Copied::Now(_)))
    }
}

/// Repairs one shard of a stopped directory.
pub fn repair(
    data: &DataDir,
    shard: u16,
    is_dry: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<Repair, LogError> {
    // Everything is looked at before anything is written: an index that is written anew names no lost message.
    let found = verify(data, shard, progress)?;
    let mut files = ShardFiles::of(data, shard);
    let copies = found.damaged.iter().map(|stretch| copy(&files, stretch.damage, is_dry));
    let copies = copies.collect::<Result<Vec<_>, LogError>>()?;
    let mut indexes = Vec::new();
    for (segment, problem) in &found.files {
        let why = match problem {
            FileProblem::SegmentMissing { .. } => continue,
            FileProblem::IndexMissing => "there was none".to_owned(),
            FileProblem::IndexWrong { problem } => problem.clone(),
        };
        let messages = if is_dry { None } else { Some(rewrite(&mut files, *segment)?) };
        indexes.push(Rewritten { segment: *segment, why, messages });
    }
    Ok(Repair { found, copies, indexes })
}

/// Writes an index anew; answers how many messages it names.
fn rewrite(files: &mut ShardFiles, segment: SegmentBase) -> Result<u64, LogError> {
    // Where a start reads from is not in the segment. What the index itself said is best, if that can still be read; what
    // an older one said is never wrong, only slower; without any it is the segment itself.
    let older = |files: &mut ShardFiles| {
        let bytes = files.config.segment_bytes;
        let mut base = segment.0;
        while let Some(before) = base.checked_sub(bytes) {
            base = before;
            if !segment_path(&files.directory, SegmentBase(base)).exists() {
                break;
            }
            if let Some(header) = header_of(files, SegmentBase(base)) {
                return header.replay_from;
            }
        }
        ChainPoint { position: PhysicalOffset(segment.0), ..ChainPoint::default() }
    };
    let replay_from = match header_of(files, segment) {
        Some(header) => header.replay_from,
        None => older(files),
    };
    let rebuilt = rebuild_index(&mut files.store, &files.config, segment, replay_from);
    let (header, _) = rebuilt.map_err(files.recover_error())?;
    Ok(header.messages)
}

/// Copies what there is of a damaged stretch into a file of the length of the stretch. What cannot be read are zeros.
fn copy(files: &ShardFiles, damage: Damage, is_dry: bool) -> Result<Copied, LogError> {
    let folder = files.directory.join(DAMAGED_DIR);
    let path = folder.join(format!("{:020}-{}.bin", damage.position.0, damage.bytes));
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == damage.bytes) {
        return Ok(Copied::Before(path));
    }
    let pieces = pieces(files, damage);
    let mut has_content = false;
    for piece in &pieces {
        let mut look = |bytes: &[u8]| {
            has_content |= bytes.iter().any(|byte| *byte != 0);
            Ok(())
        };
        piece.read(&mut look).map_err(LogError::at(&piece.path))?;
    }
    if !has_content {
        return Ok(Copied::Nothing);
    }
    if is_dry {
        return Ok(Copied::Now(path));
    }
    let aside = path.with_extension("bin.new");
    let write = || -> io::Result<()> {
        fs::create_dir_all(&folder)?;
        let mut out = File::create(&aside)?;
        out.set_len(damage.bytes)?;
        for piece in &pieces {
            out.seek(SeekFrom::Start(piece.to))?;
            piece.read(&mut |bytes| out.write_all(bytes))?;
        }
        out.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(&folder)?.sync_all()?;
        File::open(&files.directory)?.sync_all()
    };
    write().map_err(LogError::at(&path))?;
    Ok(Copied::Now(path))
}

/// A part of a stretch that is in a file.
struct Piece {
    path: PathBuf,
    /// Where in that file.
    from: u64,
    /// Where in the stretch.
    to: u64,
    bytes: u64,
}

fn pieces(files: &ShardFiles, damage: Damage) -> Vec<Piece> {
    let (start, end) = (damage.position.0, damage.position.0 + damage.bytes);
    let mut pieces = Vec::new();
    let mut at = start;
    while at < end {
        let base = SegmentBase::of(PhysicalOffset(at), files.config.segment_bytes);
        let next = end.min(base.0 + files.config.segment_bytes);
        let path = segment_path(&files.directory, base);
        let there = fs::metadata(&path).map_or(0, |metadata| base.0 + metadata.len()).min(next);
        if at < there {
            pieces.push(Piece { path, from: at - base.0, to: at - start, bytes: there - at });
        }
        at = next;
    }
    pieces
}

impl Piece {
    fn read(&self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let from = File::open(&self.path)?;
        let mut buffer = vec![0; STEP_BYTES];
        let (mut at, end) = (self.from, self.from + self.bytes);
        while at < end {
            let step = (end - at).min(STEP_BYTES as u64) as usize; // at most STEP_BYTES
            let bytes = &mut buffer[..step];
            if from.read_exact_at(bytes, at).is_err() {
                for (sector, at) in bytes.chunks_mut(SECTOR_BYTES).zip((at..).step_by(SECTOR_BYTES)) {
                    // A sector that the disk does not give: there is nothing of it to keep.
                    if from.read_exact_at(sector, at).is_err() {
                        sector.fill(0);
                    }
                }
            }
            take(bytes)?;
            at += step as u64;
        }
        Ok(())
    }
}
