//! What the disk has promised to keep, what was done to it all the same, and what a broker owes for that.
//!
//! Knows the head of a block from docs/format.md, and none of the code that writes or reads it.
//!
//! L1  A block counts once its write was reported complete. From then on its bytes are there, or were made wrong here.
//! L2  What was made wrong has to be reported with its position, if it held anything that clients know; a block that was
//!     written over rightly since, as the log does with the sector it ends in, is not wrong.
//! L3  What is reported as lost was made wrong here.
//! L4  A write that never took place where it should have needs a witness: a later, sound block that was sealed when the disk had
//!     reported it complete. Without one the end of the log may be cut there, as after a power cut (docs/format.md, "What is not promised").

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use ringmq_ring::sim::{Random, ReadFault, WriteFault};
use ringmq_storage::SegmentBase;

use crate::backstage::{SimStore, segment_path};

const HEAD_BYTES: u64 = 48;
const PAGE_BYTES: u64 = 4096;
/// A new block begins in the first sector of its write; sectors have at most so many bytes.
const SECTOR_BYTES_MAX: usize = 8192;
/// What was written so far behind a block proves that the disk had it: more than all that can be under way.
const PROOF_BYTES: u64 = 1 << 20;
/// A broker that lives so much longer has said what it had to say, in nanoseconds.
const SAY_NANOS: u64 = 100_000_000;

/// The head of a block, as far as it matters here.
#[derive(Clone, Copy)]
struct Head {
    end: u64,
    /// What was durable when the block was sealed.
    durable: u64,
}

impl Head {
    /// `bytes` begin where the block would, at this position of the log.
    fn read(bytes: &[u8], position: u64) -> Option<Head> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let own = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        if !bytes.starts_with(b"RMQB") || own != position {
            return None;
        }
        let end = position + HEAD_BYTES + u64::from(word(16)?);
        Some(Head { end, durable: position.saturating_sub(u64::from(word(40)?)) })
    }
}

/// A write under way, by the start of its block.
struct Writing {
    tag: u64,
    head: Head,
    /// It will not be there when it is reported complete.
    goes_astray: bool,
}

/// A read under way that was made to fail.
struct Reading {
    segment: SegmentBase,
    offset: u64,
    len: u32,
}

/// How corruption ended.
#[derive(Clone, Copy, Default, Debug)]
pub struct Corruption {
    /// Blocks that were made wrong and are still.
    pub injected: u64,
    /// Of those, the ones that were reported with their position.
    pub reported: u64,
    /// Those that hold nothing that a client knows.
    pub unknown: u64,
}

impl Corruption {
    pub fn add(&mut self, other: Corruption) {
        self.injected += other.injected;
        self.reported += other.reported;
        self.unknown += other.unknown;
    }
}

pub(crate) struct Ledger {
    store: SimStore,
    segment_bytes: u64,
    /// L1, from the start of a block to its end.
    blocks: BTreeMap<u64, u64>,
    /// Starts of blocks that may be wrong.
    wrong: BTreeSet<u64>,
    /// L4: of those, the ones without a witness.
    unproven: BTreeSet<u64>,
    writing: BTreeMap<u64, Writing>,
    reading: BTreeMap<u64, Reading>,
    /// Of the last block.
    end: u64,
    /// Segments before this were released: their files may be gone.
    released: u64,
    /// Reads that came wrong, with the time.
    stutters: Vec<(Range<u64>, u64)>,
    stutters_of_life: Vec<Range<u64>>,
    reported: Vec<Range<u64>>,
    pub(crate) stutters_made: u64,
    pub(crate) stutters_reported: u64,
}

impl Ledger {
    pub(crate) fn new(store: SimStore, segment_bytes: u64) -> Ledger {
        Ledger {
            store,
            segment_bytes,
            blocks: BTreeMap::new(),
            wrong: BTreeSet::new(),
            unproven: BTreeSet::new(),
            writing: BTreeMap::new(),
            reading: BTreeMap::new(),
            end: 0,
            released: 0,
            stutters: Vec::new(),
            stutters_of_life: Vec::new(),
            reported: Vec::new(),
            stutters_made: 0,
            stutters_reported: 0,
        }
    }

    /// File and offset in it of a position of the log.
    pub(crate) fn place(&self, position: u64) -> (PathBuf, u64) {
        let offset = position % self.segment_bytes;
        (segment_path(&self.store.directory, SegmentBase(position - offset)), offset)
    }

    // ---- what the ring does

    pub(crate) fn writing(
        &mut self,
        tag: u64,
        path: Option<&Path>,
        offset: u64,
        data: &[u8],
        fault: Option<WriteFault>,
    ) {
        let Some(segment) = segment_of(path) else { return };
        let first = segment.0 + offset;
        // In front of it may be blocks that are durable.
        let places = (0..data.len().min(SECTOR_BYTES_MAX)).step_by(8).rev();
        let found = places.map(|at| (first + at as u64, at));
        let found = found.filter_map(|(start, at)| Some((start, Head::read(&data[at..], start)?))).next();
        let (start, head) = found.expect("what is written to the log is a block");
        if let Some(WriteFault::Misdirected { by }) = fault {
            let astray = first.saturating_add_signed(by);
            self.make_wrong(&(astray..astray + data.len() as u64));
        }
        let goes_astray = matches!(fault, Some(WriteFault::Misdirected { .. } | WriteFault::Lost));
        self.writing.insert(start, Writing { tag, head, goes_astray });
    }

    pub(crate) fn written(&mut self, tag: u64, is_ok: bool) {
        let found = self.writing.iter().find(|(_, writing)| writing.tag == tag);
        // What failed stays: nothing behind it is durable any more.
        let Some((&start, _)) = found.filter(|_| is_ok) else { return };
        let Writing { head, goes_astray, .. } = self.writing.remove(&start).expect("just found");
        self.blocks.insert(start, head.end);
        self.end = self.end.max(head.end);
        if goes_astray {
            self.wrong.insert(start);
            self.unproven.insert(start);
        } else {
            self.unproven = self.unproven.split_off(&head.durable);
        }
    }

    /// A read that is to go wrong.
    pub(crate) fn reading(&mut self, tag: u64, path: Option<&Path>, offset: u64, len: u32, fault: ReadFault) {
        if let Some(segment) = segment_of(path).filter(|_| !matches!(fault, ReadFault::Slow(_))) {
            self.reading.insert(tag, Reading { segment, offset, len });
        }
    }

    /// A read has ended. If it was made to go wrong where it matters, the broker has to say so.
    pub(crate) fn read(&mut self, tag: u64, bytes: Option<&Bytes>, now: u64) {
        let Some(Reading { segment, offset, len }) = self.reading.remove(&tag) else { return };
        let start = segment.0 + offset;
        let range = start..start + u64::from(len);
        let mut truth = vec![0; len as usize];
        let read = self.store.disk.read_at(&segment_path(&self.store.directory, segment), offset, &mut truth);
        // What is wrong further on, or lost already, may be left to another read.
        let first = self.blocks.get(&start).filter(|_| !self.wrong.contains(&start));
        let first_end = first.copied().unwrap_or(start);
        let is_wrong_at = |at: &usize| bytes.is_none_or(|bytes| bytes[*at] != truth[*at]);
        let mut wrong = (0..read.unwrap_or(0)).filter(is_wrong_at).map(|at| start + at as u64);
        if bytes.is_none() || wrong.any(|position| position < first_end) {
            self.stutters.push((range.clone(), now));
            self.stutters_made += 1;
            self.stutters_of_life.push(range);
        }
    }

    // ---- what is done to the medium

    /// A block that is proven to be durable, chosen by chance.
    pub(crate) fn old_block(&self, random: &mut Random) -> Option<Range<u64>> {
        let end = self.end.checked_sub(PROOF_BYTES).filter(|end| *end > 0)?;
        let (start, end) = self.blocks.range(..random.below(end)).next_back()?;
        (*start >= self.released).then_some(*start..*end)
    }

    /// Bytes in this range of the log are not any more what they were.
    pub(crate) fn make_wrong(&mut self, range: &Range<u64>) {
        let overlapped = self.blocks.range(..range.end).rev().take_while(|(_, end)| **end > range.start);
        self.wrong.extend(overlapped.map(|(start, _)| *start));
    }

    /// The broker has released what is before this.
    pub(crate) fn on_released(&mut self, end: u64) {
        self.released = self.released.max(end);
    }

    // ---- what the broker says

    /// The broker said that it read this range in vain.
    pub(crate) fn stutter_reported(&mut self, range: &Range<u64>) {
        let before = self.stutters.len();
        self.stutters.retain(|(made, _)| made.start >= range.end || made.end <= range.start);
        self.stutters_reported += (before - self.stutters.len()) as u64;
    }

    /// The broker said that this range is lost. An error says what speaks against it (L3).
    pub(crate) fn damage_reported(&mut self, range: &Range<u64>) -> Result<(), String> {
        self.reported.push(range.clone());
        for (start, end) in self.blocks.range(range.clone()) {
            let reason = match (self.wrong.contains(start), self.is_sound(*start..*end)) {
                (true, false) => continue,
                (_, true) => "is sound",
                (false, false) => "was damaged by nobody but the broker",
            };
            return Err(format!("{range:?} is said to be lost: the block at {start} {reason}"));
        }
        Ok(())
    }

    /// The broker said that it read this block in vain, twice. Both reads were made to go wrong, or one was and
    /// the other met a block beside it that is wrong, or this one is, or was before it was written again. Who reads ahead knows
    /// only that a block begins there or in the next sector.
    pub(crate) fn block_reported(&mut self, block: &Range<u64>) -> Result<(), String> {
        self.stutter_reported(block);
        self.reported.push(block.clone());
        let reads = self.stutters_of_life.iter();
        let reads: Vec<_> = reads.filter(|read| read.start < block.end && block.start < read.end).collect();
        let is_beside = reads.iter().any(|read| self.wrong.range(read.start..read.end).next().is_some());
        let next_sector = block.start.next_multiple_of(SECTOR_BYTES_MAX as u64);
        let first = self.blocks.range(block.start..=next_sector).next();
        let is_wrong =
            first.is_some_and(|(start, _)| self.wrong.contains(start)) || self.wrong.contains(&block.start);
        if is_wrong || reads.len() > 1 || is_beside {
            return Ok(());
        }
        Err(format!("{block:?} is said to be damaged: nobody did anything to it"))
    }

    // ---- lives

    /// The power is cut, at this time. Gives the position from which on the end of the log may be lost, and an error if the
    /// broker kept something to itself.
    pub(crate) fn on_crash(&mut self, is_async: bool, now: u64) -> (Option<u64>, Result<(), String>) {
        // Blocks are written in order: what is before all that are under way is there.
        let durable = self.writing.first_key_value().map_or(self.end, |(start, _)| *start);
        let from = [self.unproven.first().copied(), is_async.then_some(durable)].into_iter().flatten().min();
        let kept = self.stutters.drain(..).find(|(_, at)| at + SAY_NANOS < now);
        (from, kept.map_or(Ok(()), |(range, _)| Err(format!("a read of {range:?} went wrong"))))
    }

    /// A broker has found that the log is this.
    pub(crate) fn on_boot(&mut self, log: Range<u64>) {
        let Range { start, end } = log;
        self.released = start;
        self.blocks = self.blocks.split_off(&start);
        self.wrong = self.wrong.split_off(&start);
        for (start, writing) in std::mem::take(&mut self.writing) {
            if start < end && self.is_sound(start..writing.head.end) {
                // It was under way when the power was cut, and is part of the log.
                self.blocks.insert(start, writing.head.end);
            }
        }
        self.blocks.split_off(&end);
        self.wrong.split_off(&end);
        self.reported.retain(|range| range.start < end);
        self.unproven.clear();
        self.reading.clear();
        self.stutters_of_life.clear();
        self.end = end;
    }

    /// What came of all that was made wrong; `is_known` says whether clients know of something in a range. Errors are
    /// ranges that should have been reported (L2).
    pub(crate) fn judge(&self, is_known: impl Fn(&Range<u64>) -> bool) -> (Corruption, Vec<Range<u64>>) {
        let (mut corruption, mut silent) = (Corruption::default(), Vec::new());
        for start in self.wrong.range(self.released..) {
            let block = *start..self.blocks[start];
            if self.is_sound(block.clone()) {
                continue;
            }
            corruption.injected += 1;
            if self.reported.iter().any(|range| range.start <= block.start && block.end <= range.end) {
                corruption.reported += 1;
            } else if is_known(&block) {
                silent.push(block);
            } else {
                corruption.unknown += 1;
            }
        }
        (corruption, silent)
    }

    fn is_sound(&self, block: Range<u64>) -> bool {
        let (path, offset) = self.place(block.start);
        let mut bytes = vec![0; (block.end - block.start) as usize];
        let read = self.store.disk.read_at(&path, offset, &mut bytes);
        let is_whole = read.is_ok_and(|count| count == bytes.len());
        is_whole
            && Head::read(&bytes, block.start).is_some()
            && bytes[44..48] == checksum(&bytes).to_le_bytes()
    }
}

/// Of a whole block.
fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..44]), &block[HEAD_BYTES as usize..])
}

fn segment_of(path: Option<&Path>) -> Option<SegmentBase> {
    SegmentBase::from_file_name(path?.file_name()?.to_str()?)
}

/// How far a write at `offset` of a file goes astray: onto something old if there is, else ahead of everything.
pub(crate) fn misdirection(offset: u64, random: &mut Random) -> i64 {
    match offset.checked_sub(PROOF_BYTES).map(|pages| pages / PAGE_BYTES).filter(|pages| *pages > 0) {
        Some(pages) => (random.below(pages) * PAGE_BYTES) as i64 - offset as i64,
        None => (PROOF_BYTES / 2 + random.below(64) * PAGE_BYTES) as i64,
    }
}

/// Blocks with the checksums that they would have if they had been written like this: [`crate::Planted::UnverifiedReads`].
pub(crate) fn with_right_checksums(bytes: &Bytes) -> Bytes {
    let mut bytes = BytesMut::from(&bytes[..]);
    let mut at = 0;
    while at + HEAD_BYTES as usize <= bytes.len() {
        let own = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().expect("eight bytes"));
        let len = Head::read(&bytes[at..], own).map(|head| (head.end - own) as usize);
        if let Some(len) = len.filter(|len| *len <= bytes.len() - at) {
            let checksum = checksum(&bytes[at..at + len]);
            bytes[at + 44..at + 48].copy_from_slice(&checksum.to_le_bytes());
            at += len;
        } else {
            at += 8;
        }
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests;
