//! Reads what nobody has asked for: damage in old segments is found while there may still be another copy, and not when a consumer
//! comes for it.
//!
//!   round: list ─▶ oldest sealed segment, a piece at a time ─▶ its index, page by page ─▶ next ─▶ … ─▶ figures, rest
//!
//! Z1  Only sealed segments are read: nothing writes to them, so whatever is not right there is damage.
//! Z2  No file is held between two pieces: a segment that retention deletes gives its room back. Nothing is said of what was
//!     read in a file that has another name by then: it may have become a new segment.
//! Z3  A damaged place is said once in a run of the broker. A damaged index is also written anew.

use super::segments::Job;
use super::{ShardLink, log};
use ringmq_protocol::types::PhysicalOffset;
use ringmq_storage::{
    Damage, Found, FsStore, IndexFile, IndexHeader, IndexProblem, LogConfig, PAGE_BYTES, SegmentBase,
    SegmentScan, SegmentStore, index_path, read_index_header, segment_path,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use std::{fs, io};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes that are read at a time, then the rate is kept. More than a round trip to another thread costs, less than a disk
/// notices.
const PIECE_BYTES: u64 = 2 << 20;
/// A round begins no sooner after the one before: little data need not be read all day.
const ROUND_PERIOD: Duration = Duration::from_secs(3600);
/// How often it is looked whether there is anything to read at all.
const NOTHING_YET: Duration = Duration::from_secs(10);

/// The files of a shard, from any thread.
#[derive(Clone)]
struct Files {
    directory: PathBuf,
    config: LogConfig,
}

/// What a round has read.
#[derive(Default)]
struct Figures {
    segments: u64,
    bytes: u64,
    damaged: u64,
}

/// What was said, by its place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Damaged(PhysicalOffset),
    Unreadable(SegmentBase),
    Index(SegmentBase),
}

/// A sealed segment, the length of its file, and what its index says.
type Listed = (SegmentBase, u64, Result<IndexHeader, IndexProblem>);

struct Scrub<'a> {
    shard: &'a ShardLink,
    files: Files,
    jobs: UnboundedSender<Job>,
    /// Of every sealed segment, as far as it could ever be read.
    headers: BTreeMap<SegmentBase, IndexHeader>,
    said: BTreeSet<Said>,
    /// When the next piece may be read.
    due: Instant,
    figures: Figures,
}

/// Goes round the sealed segments of a shard for ever. `jobs` leads to the shard's keeper.
pub(super) async fn scrub(shards: Rc<[ShardLink]>, index: usize, jobs: UnboundedSender<Job>) {
    let shard = &shards[index];
    let mut scrub = Scrub {
        shard,
        files: Files { directory: shard.directory.clone(), config: shard.log.clone() },
        jobs,
        headers: shard.sealed.iter().map(|header| (header.base, header.clone())).collect(),
        said: BTreeSet::new(),
        due: Instant::now(),
        figures: Figures::default(),
    };
    loop {
        let started = Instant::now();
        scrub.round().await;
        let Figures { segments, bytes, damaged } = std::mem::take(&mut scrub.figures);
        if segments == 0 {
            sleep(NOTHING_YET).await;
            continue;
        }
        let line = format!(
            "{}: scrubbed {segments} sealed segments, {bytes} bytes in {:.1} s: {damaged} damaged places",
            shard.broker_name,
            started.elapsed().as_secs_f64(),
        );
        log(damaged > 0, &line);
        sleep_until(started + ROUND_PERIOD).await;
    }
}

impl Scrub<'_> {
    async fn round(&mut self) {
        let listed = match self.files.run(|files, store| files.sealed(store)).await {
            Ok(listed) => listed,
            Err(error) => return log(true, &format!("{}: segments cannot be listed: {error}", self.name())),
        };
        self.headers.retain(|base, _| listed.iter().any(|(listed, ..)| listed == base));
        let mut before = None;
        for (base, file_bytes, header) in listed {
            match header {
                Ok(header) => drop(self.headers.insert(base, header)),
                Err(problem) => self.index_is_damaged(base, &problem),
            }
            // A header that was damaged now is still what it was when it was read.
            let Some(header) = self.headers.get(&base).cloned() else { continue };
            let scan =
                SegmentScan::new(&self.files.config, base, file_bytes, before, Some(header.end.position));
            before = self.segment(base, scan).await.then_some(header.end);
            self.index(header).await;
            self.figures.segments += 1;
        }
    }

    /// Reads one segment; false if it could not be read to its end.
    async fn segment(&mut self, base: SegmentBase, mut scan: SegmentScan) -> bool {
        loop {
            self.keep_rate().await;
            let read = self.files.run(move |_, store| {
                let piece = read_piece(&mut scan, store);
                piece.map(|piece| (scan, piece))
            });
            let piece = match read.await {
                Ok((rest, piece)) => {
                    scan = rest;
                    piece
                }
                Err(error) => {
                    self.unreadable(base, &error);
                    return false;
                }
            };
            self.count(piece.bytes);
            if !piece.gaps.is_empty() && !segment_path(&self.files.directory, base).exists() {
                return false;
            }
            for damage in piece.gaps {
                self.figures.damaged += 1;
                if self.said.insert(Said::Damaged(damage.position)) {
                    let line = format!(
                        "{}: {} bytes of the log at {} are damaged; what was in them can no longer be read",
                        self.name(),
                        damage.bytes,
                        damage.position
                    );
                    log(true, &line);
                }
            }
            if piece.is_last {
                return true;
            }
        }
    }

    /// Reads the index of a segment.
    async fn index(&mut self, header: IndexHeader) {
        let pages_at_once = (PIECE_BYTES / PAGE_BYTES as u64) as u32; // 512
        let (base, pages) = (header.base, header.pages);
        let mut file = IndexFile::new(&self.files.config, header);
        let mut page = 0;
        while page < pages {
            self.keep_rate().await;
            let to = pages.min(page.saturating_add(pages_at_once));
            let checked = self.files.run(move |files, store| {
                let checked = (page..to).try_for_each(|page| file.check_page(store, page));
                let is_there = index_path(&files.directory, base).exists();
                Ok((file, checked, is_there))
            });
            let Ok((same, checked, is_there)) = checked.await else { return };
            file = same;
            self.count(u64::from(to - page) * PAGE_BYTES as u64);
            page = to;
            match checked {
                Ok(()) => {}
                Err(_) if !is_there => return, // retention was faster
                Err(problem) => return self.index_is_damaged(base, &problem),
            }
        }
    }

    fn index_is_damaged(&mut self, base: SegmentBase, problem: &IndexProblem) {
        self.figures.damaged += 1;
        if !self.said.insert(Said::Index(base)) {
            return;
        }
        let name = self.name();
        log(true, &format!("{name}: the index of segment {base} is damaged: {problem}"));
        if let Some(header) = self.headers.get(&base) {
            // The keeper ends after this task, and with it the process.
            let _ = self.jobs.send(Job::Rebuild { segment: base, replay_from: header.replay_from });
        }
    }

    fn unreadable(&mut self, base: SegmentBase, error: &io::Error) {
        let is_there = segment_path(&self.files.directory, base).exists();
        if is_there && self.said.insert(Said::Unreadable(base)) {
            log(true, &format!("{}: segment {base} cannot be read to its end: {error}", self.name()));
        }
        self.figures.damaged += u64::from(is_there);
    }

    async fn keep_rate(&mut self) {
        sleep_until(self.due).await;
    }

    fn count(&mut self, bytes: u64) {
        self.figures.bytes += bytes;
        let pause = Duration::from_secs_f64(bytes as f64 / self.shard.scrub_bytes_per_s as f64);
        // Time that was lost, as by a busy disk, is not made up for.
        self.due = self.due.max(Instant::now() - pause) + pause;
    }

    fn name(&self) -> &str {
        &self.shard.broker_name
    }
}

impl Files {
    /// Works on the files in a thread that may wait for them.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files, &mut FsStore) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let files = self.clone();
        let done = spawn_blocking(move || work(&files, &mut FsStore::new(files.directory.clone()))).await;
        done.map_err(io::Error::other).and_then(|done| done)
    }

    /// Sealed segments with the length of their files, oldest first. Not `FsStore::indexes`, which clears away the index that
    /// the keeper is writing.
    fn sealed(&self, store: &mut FsStore) -> io::Result<Vec<Listed>> {
        let segments = store.segments()?;
        let header = |(base, bytes): (SegmentBase, u64)| {
            let index = fs::metadata(index_path(&self.directory, base)).ok()?;
            Some((base, bytes, read_index_header(store, &self.config, base, index.len())))
        };
        Ok(segments.into_iter().filter_map(header).collect())
    }
}

struct Piece {
    bytes: u64,
    gaps: Vec<Damage>,
    is_last: bool,
}

fn read_piece(scan: &mut SegmentScan, store: &mut FsStore) -> io::Result<Piece> {
    let from = scan.position().0;
    let mut gaps = Vec::new();
    loop {
        let is_last = match scan.next(store)? {
            Found::End => true,
            Found::Gap(damage) => {
                gaps.push(damage);
                false
            }
            Found::Block(_) => false,
        };
        let bytes = scan.position().0 - from;
        if is_last || bytes >= PIECE_BYTES {
            return Ok(Piece { bytes, gaps, is_last });
        }
    }
}
