//! Rewrites a sealed segment without the messages of some topics, so that the disk gets their room back.
//!
//!   block ─▶ dead messages side by side become one gap ─▶ pages ─▶ those that hold anything are written aside
//!
//! The new file takes the place of the old one as a whole (`data_dir`), or is thrown away. Nothing points elsewhere afterwards:
//! positions, and with them message ids and the segment's index, stay as they are.
//!
//! Invariants
//!   W1  every block keeps its place, its length, its time and its link to the block before; every record that stays keeps its
//!       place and its bytes
//!   W2  a gap names the checksum that its block had first, which the block behind names too
//!   W3  a segment that is not right from its first block to the end that its index says is left as it is: what is left of it
//!       may still be wanted

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use bytes::BytesMut;
use thiserror::Error;

use crate::block::{Block, BlockHeader, HEADER_BYTES};
use crate::config::LogConfig;
use crate::record::{Record, chain_crc, records, write_gap};
use crate::recover::{Damage, SegmentStore, is_zero};
use crate::scan::{DISK_PAGE, Found, SegmentScan};
use crate::sealed::{ChainPoint, IndexHeader};
use crate::tail::aligned_buffer;

/// Why a segment is not rewritten. It is as it was.
#[derive(Debug, Error)]
pub enum RewriteError {
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("the new file cannot be written: {0}")]
    Write(#[source] io::Error),
    #[error("{} bytes at {} are damaged", .0.bytes, .0.position)]
    Damaged(Damage),
    #[error("it does not end as its index says")]
    OtherEnd,
}

/// A segment that is being rewritten. It may be dropped or left alone at any point; it holds no file.
#[derive(Debug)]
pub struct Rewrite {
    topics: BTreeSet<String>,
    end: ChainPoint,
    scan: SegmentScan,
    base: u64,
    /// What is still to be written, from a page's start on. Its memory is aligned.
    out: BytesMut,
    /// Position of its first byte.
    out_start: u64,
    messages: u64,
    written_bytes: u64,
}

impl Rewrite {
    /// Of the segment whose index has this header, without the messages of these topics.
    pub fn new(config: &LogConfig, header: &IndexHeader, topics: BTreeSet<String>) -> Self {
        let until = Some(header.end.position);
        Self {
            topics,
            end: header.end,
            scan: SegmentScan::new(config, header.base, config.segment_bytes, None, until),
            base: header.base.0,
            out: BytesMut::new(),
            out_start: header.base.0,
            messages: 0,
            written_bytes: 0,
        }
    }

    /// How far the segment was read.
    pub fn read_bytes(&self) -> u64 {
        self.scan.position().0 - self.base
    }

    /// What was given to `write`.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Messages that were left out.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Goes on through about `bytes` of the segment; false at its end. `write` gets whole pages of the new file with their offset, in
    /// order, in aligned memory; what it does not get are zeros.
    pub fn step<S: SegmentStore>(
        &mut self,
        store: &mut S,
        bytes: u64,
        write: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<bool, RewriteError> {
        let until = self.scan.position().0.saturating_add(bytes);
        while self.scan.position().0 < until {
            match self.scan.next(store).map_err(RewriteError::Read)? {
                Found::Block(block) => {
                    let start = block.header.position.0;
                    let at = (start - self.out_start) as usize; // less than a block and a sector
                    let len = HEADER_BYTES + block.payload.len();
                    extend(&mut self.out, at, len);
                    let messages = put_block(&block, &self.topics, &mut self.out[at..at + len]);
                    self.messages += messages;
                    let pages = self.out.len() as u64 / DISK_PAGE * DISK_PAGE;
                    self.flush(pages as usize, write)?;
                }
                // W3
                Found::Gap(damage) => return Err(RewriteError::Damaged(damage)),
                Found::End => {
                    if self.scan.chain() != Some(self.end) {
                        return Err(RewriteError::OtherEnd);
                    }
                    let (at, pages) = (self.out.len(), self.out.len().next_multiple_of(DISK_PAGE as usize));
                    extend(&mut self.out, at, pages - at);
                    self.flush(pages, write)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Writes the first bytes of `out`, whole pages, and leaves the rest.
    fn flush(
        &mut self,
        bytes: usize,
        write: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), RewriteError> {
        for range in filled(&self.out[..bytes]) {
            let offset = self.out_start + range.start as u64 - self.base;
            self.written_bytes += range.len() as u64;
            write(offset, &self.out[range]).map_err(RewriteError::Write)?;
        }
        self.out.copy_within(bytes.., 0);
        self.out.truncate(self.out.len() - bytes);
        self.out_start += bytes as u64;
        Ok(())
    }
}

/// Zeros up to `at`, and `len` more; the memory stays aligned.
fn extend(out: &mut BytesMut, at: usize, len: usize) {
    if out.capacity() < at + len {
        let mut larger = aligned_buffer((at + len).next_power_of_two());
        larger.extend_from_slice(out);
        *out = larger;
    }
    out.resize(at + len, 0);
}

/// Runs of pages that hold anything.
fn filled(pages: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (number, page) in pages.chunks(DISK_PAGE as usize).enumerate() {
        let at = number * DISK_PAGE as usize;
        match runs.last_mut() {
            _ if is_zero(page) => {}
            Some(last) if last.end == at => last.end += page.len(),
            _ => runs.push(at..at + page.len()),
        }
    }
    runs
}

/// Writes a block without the messages of these topics over `out`, which are zeros. Gives the number of messages that it leaves
/// out; without any it is the same block.
fn put_block(block: &Block<'_>, topics: &BTreeSet<String>, out: &mut [u8]) -> u64 {
    let payload = &mut out[HEADER_BYTES..];
    let (mut kept, mut messages) = (0, 0);
    let mut gaps: Vec<Range<usize>> = Vec::new();
    for record in records(block) {
        let Ok(record) = record else {
            // Nobody knows what it is: all of the block stays.
            payload.copy_from_slice(block.payload);
            block.header.seal(out);
            return 0;
        };
        let at = (record.position().0 - block.header.position.0) as usize - HEADER_BYTES;
        let range = at..at + record.bytes();
        let is_dead = match &record {
            Record::Message { message, .. } => topics.contains(message.topic()),
            Record::Metadata { .. } => false,
            Record::Gap { .. } => true,
        };
        match gaps.last_mut() {
            _ if !is_dead => {
                payload[range.clone()].copy_from_slice(&block.payload[range]);
                kept += 1;
                continue;
            }
            Some(last) if last.end == at => last.end = range.end,
            _ => gaps.push(range),
        }
        messages += u64::from(matches!(record, Record::Message { .. }));
    }
    let original_crc = chain_crc(block);
    let record_count = kept + gaps.len() as u32; // fewer than records before
    gaps.into_iter().for_each(|gap| write_gap(original_crc, &mut payload[gap]));
    BlockHeader { record_count, ..block.header }.seal(out);
    messages
}

#[cfg(test)]
mod tests;
