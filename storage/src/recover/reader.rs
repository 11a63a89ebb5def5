//! Reading segments in order with one large buffer.
//!
//! A sector that cannot be read does not end a recovery by itself: what is around it is read sector by sector, and
//! only a block that needs the sector is affected.

use std::io;

use bytes::BytesMut;
use ringmq_protocol::types::PhysicalOffset;

use super::{RecoverError, SegmentStore};
use crate::block::{Block, BlockHeader, HEADER_BYTES};
use crate::config::LogConfig;
use crate::segment::SegmentBase;
use crate::tail::{MEMORY_ALIGN, aligned_buffer};

/// Bytes of one read.
pub(super) const WINDOW_BYTES: usize = 4 << 20;
/// More than this is not a few bad sectors: the disk is not there.
const UNREADABLE_SECTORS_MAX: usize = 1024;
const SECTOR: usize = MEMORY_ALIGN;

/// A sector that the disk does not give.
#[derive(Debug)]
pub(super) struct Unreadable {
    segment: SegmentBase,
    offset: u64,
    source: io::Error,
}

impl From<Unreadable> for RecoverError {
    fn from(Unreadable { segment, offset, source }: Unreadable) -> Self {
        RecoverError::Read { segment, offset, source }
    }
}

/// Why there is no block.
#[derive(Debug)]
pub(super) enum Gap {
    /// The bytes are there and are no block, or the file ends.
    NotThere,
    /// They cannot be read.
    Unreadable(Unreadable),
}

pub(super) struct Reader<'a, S> {
    store: &'a mut S,
    segments: Vec<(SegmentBase, u64)>,
    config: &'a LogConfig,
    buffer: BytesMut,
    /// What is in the buffer: this many bytes from this position on.
    window_start: u64,
    window_bytes: usize,
    /// Sectors of the window that could not be read; zeros stand in for them.
    unreadable: Vec<(u64, io::Error)>,
    unreadable_count: usize,
    /// The block that was verified last, so that looking at it twice costs one checksum.
    verified: Option<BlockHeader>,
}

impl<'a, S: SegmentStore> Reader<'a, S> {
    /// `segments`: by base, none longer than a segment is.
    pub(super) fn new(store: &'a mut S, segments: &[(SegmentBase, u64)], config: &'a LogConfig) -> Self {
        Self {
            store,
            segments: segments.to_vec(),
            config,
            buffer: BytesMut::new(),
            window_start: 0,
            window_bytes: 0,
            unreadable: Vec::new(),
            unreadable_count: 0,
            verified: None,
        }
    }

    pub(super) fn store(&mut self) -> &mut S {
        self.store
    }

    /// Whatever is asked for next comes from the disk.
    pub(super) fn forget(&mut self) {
        self.window_bytes = 0;
        self.verified = None;
    }

    /// The block at a position, if there is a whole one.
    pub(super) fn block(&mut self, position: u64) -> Result<Result<Block<'_>, Gap>, RecoverError> {
        let identity = self.config.identity();
        let header = match self.bytes(position, HEADER_BYTES)? {
            Ok(bytes) => BlockHeader::read(bytes, identity, PhysicalOffset(position)),
            Err(gap) => return Ok(Err(gap)),
        };
        let Ok(header) = header else { return Ok(Err(Gap::NotThere)) };
        let length = usize::try_from(header.block_bytes()).expect("bounded by BLOCK_BYTES_LIMIT");
        let known = self.verified.take() == Some(header);
        let bytes = match self.bytes(position, length)? {
            Ok(bytes) => bytes,
            Err(gap) => return Ok(Err(gap)),
        };
        if !known && header.verify(bytes).is_err() {
            return Ok(Err(Gap::NotThere));
        }
        self.verified = Some(header);
        let payload = &self.in_window(position, length)[HEADER_BYTES..];
        Ok(Ok(Block { header, payload }))
    }

    /// The header at a position, whatever is behind it.
    pub(super) fn header(&mut self, position: u64) -> Result<Option<BlockHeader>, RecoverError> {
        let identity = self.config.identity();
        let bytes = self.bytes(position, HEADER_BYTES)?;
        Ok(bytes.ok().and_then(|bytes| BlockHeader::read(bytes, identity, PhysicalOffset(position)).ok()))
    }

    /// Where the block ends that lies here, whole, since the file was an older segment.
    pub(super) fn older_block(&mut self, place: u64) -> Result<Option<u64>, RecoverError> {
        let (identity, segment_bytes) = (self.config.identity(), self.config.segment_bytes);
        let bytes = self.bytes(place, HEADER_BYTES)?;
        let header =
            bytes.ok().and_then(|bytes| BlockHeader::read_older(bytes, identity, place, segment_bytes));
        let Some(header) = header else { return Ok(None) };
        let length = usize::try_from(header.block_bytes()).expect("bounded by BLOCK_BYTES_LIMIT");
        let is_whole = self.bytes(place, length)?.is_ok_and(|bytes| header.verify(bytes).is_ok());
        Ok(is_whole.then_some(place + header.block_bytes()))
    }

    /// Bytes at or behind a position: as many as are in memory at once, with the position of the first. `None` at the end of
    /// the last segment. What cannot be read appears as zeros.
    pub(super) fn stretch(&mut self, mut position: u64) -> Result<Option<(u64, &[u8])>, RecoverError> {
        loop {
            let next = self.segments.partition_point(|(base, len)| base.0 + len <= position);
            let Some((base, len)) = self.segments.get(next).copied() else { return Ok(None) };
            position = position.max(base.0);
            if self.load(position, 1)? {
                let at = (position - self.window_start) as usize; // within the window
                return Ok(Some((position, &self.buffer[at..self.window_bytes])));
            }
            position = base.0 + len; // the file has become shorter
        }
    }

    fn bytes(&mut self, position: u64, len: usize) -> Result<Result<&[u8], Gap>, RecoverError> {
        if !self.load(position, len)? {
            return Ok(Err(Gap::NotThere));
        }
        let end = position + len as u64;
        let bad =
            self.unreadable.iter().find(|(sector, _)| *sector < end && sector + SECTOR as u64 > position);
        if let Some((sector, error)) = bad {
            let segment = SegmentBase::of(PhysicalOffset(*sector), self.config.segment_bytes);
            let source =
                error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            return Ok(Err(Gap::Unreadable(Unreadable { segment, offset: sector - segment.0, source })));
        }
        Ok(Ok(self.in_window(position, len)))
    }

    fn in_window(&self, position: u64, len: usize) -> &[u8] {
        let at = (position - self.window_start) as usize; // the window was loaded for this
        &self.buffer[at..at + len]
    }

    /// Gets these bytes into the window; false if the file ends before.
    fn load(&mut self, position: u64, len: usize) -> Result<bool, RecoverError> {
        let end = position + len as u64;
        if position >= self.window_start && end <= self.window_start + self.window_bytes as u64 {
            return Ok(true);
        }
        let segment = SegmentBase::of(PhysicalOffset(position), self.config.segment_bytes);
        let Ok(file) = self.segments.binary_search_by_key(&segment, |(base, _)| *base) else {
            return Ok(false);
        };
        let file_bytes = self.segments[file].1;
        if end > segment.0 + file_bytes {
            return Ok(false);
        }
        let start = position - position % SECTOR as u64;
        // What is in memory of it stays, so that the disk is asked for one part behind the other.
        let window_end = self.window_start + self.window_bytes as u64;
        let is_next = start >= self.window_start && start < window_end && self.unreadable.is_empty();
        let kept = if is_next { (window_end - start) as usize } else { 0 };
        let wanted = ((end - start) as usize - kept).next_multiple_of(SECTOR).max(WINDOW_BYTES); // bounded by BLOCK_BYTES_LIMIT
        if kept > 0 {
            let from = (start - self.window_start) as usize; // within the window
            self.buffer.copy_within(from..from + kept, 0);
        }
        if self.buffer.len() < kept + wanted {
            let mut larger = aligned_buffer(kept + wanted);
            larger.extend_from_slice(&self.buffer[..kept]);
            larger.resize(kept + wanted, 0);
            self.buffer = larger;
        }
        let offset = start + kept as u64 - segment.0;
        let left = usize::try_from(file_bytes - offset).unwrap_or(usize::MAX).next_multiple_of(SECTOR);
        self.window_start = start;
        self.window_bytes = kept;
        self.unreadable.clear();
        let buffer = &mut self.buffer[kept..kept + wanted.min(left)];
        self.window_bytes += match self.store.read_at(segment, offset, buffer) {
            Ok(count) => count,
            Err(_) => self.load_by_sector(segment, offset, kept, wanted.min(left))?,
        };
        Ok(end <= start + self.window_bytes as u64)
    }

    fn load_by_sector(
        &mut self,
        segment: SegmentBase,
        offset: u64,
        at: usize,
        len: usize,
    ) -> Result<usize, RecoverError> {
        let mut done = 0;
        while done < len {
            let sector = &mut self.buffer[at + done..at + done + SECTOR];
            match self.store.read_at(segment, offset + done as u64, sector) {
                Ok(SECTOR) => {}
                Ok(count) => return Ok(done + count),
                Err(source) if self.unreadable_count == UNREADABLE_SECTORS_MAX => {
                    return Err(RecoverError::Read { segment, offset: offset + done as u64, source });
                }
                Err(error) => {
                    sector.fill(0);
                    self.unreadable.push((segment.0 + offset + done as u64, error));
                    self.unreadable_count += 1;
                }
            }
            done += SECTOR;
        }
        Ok(done)
    }
}
