//! The tail: the recent part of the log in memory, in the very buffers that were written.
//!
//! Memory is a number of *chunks*, aligned to the sector so that the disk can take blocks from them directly. Blocks are filled
//! in place in the current chunk, one after another, and then shared, never copied: by the write, by the tail and by
//! sends. A full chunk leaves a handle behind, its *anchor*; when the blocks of the chunk have left the tail and the
//! last send has ended, the anchor is the only handle left and the chunk is used again, without asking the allocator
//! (fresh pages cost far more than used ones).
//!
//! Invariants
//!   T1  a block leaves the tail only when it is durable, and in the order of the log
//!   T2  chunks ≤ chunks_hard_max; above chunks_max only while sends hold old chunks
//!   T3  an image starts at an aligned address and at a sector of the log

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use ringmq_protocol::types::PhysicalOffset;

/// Alignment of images in memory, enough for direct I/O on all disks.
pub const MEMORY_ALIGN: usize = 4096;

/// An empty buffer with room for `len` bytes that starts at a multiple of `MEMORY_ALIGN`.
pub fn aligned_buffer(len: usize) -> BytesMut {
    align(BytesMut::with_capacity(len + MEMORY_ALIGN))
}

fn align(mut buffer: BytesMut) -> BytesMut {
    debug_assert!(buffer.is_empty());
    let gap = buffer.spare_capacity_mut().as_ptr().align_offset(MEMORY_ALIGN);
    buffer.resize(gap, 0);
    buffer.advance(gap);
    buffer
}

/// A sealed block as it is written: whole sectors, beginning at `image_at`, with the block in it.
#[derive(Clone, Debug)]
pub(crate) struct TailBlock {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) image_at: u64,
    pub(crate) image: Bytes,
    chunk: u64,
}

#[derive(Debug)]
struct Retired {
    chunk: u64,
    anchor: BytesMut,
}

/// No chunk is free: all are full of blocks that wait for the disk or are held by sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoChunk;

#[derive(Debug)]
pub(crate) struct Tail {
    /// The chunk that is being filled. It holds the image of the open block, and nothing else, from its first byte.
    pub(crate) current: BytesMut,
    current_chunk: u64,
    /// What the images in it have left of the bytes that were asked for. Its alignment leaves some more; with them, where blocks end
    /// would depend on addresses.
    current_left: usize,
    blocks: VecDeque<TailBlock>,
    /// Full chunks that still have blocks in the tail, oldest first.
    full: VecDeque<Retired>,
    /// Chunks whose blocks have left the tail, but which sends may still hold.
    lent: Vec<Retired>,
    chunk_bytes: usize,
    chunks_max: usize,
    chunks_hard_max: usize,
    /// See [`Tail::prepare_memory_with`].
    prepare_memory: fn(&mut BytesMut),
}

impl Tail {
    pub(crate) fn new(chunk_bytes: usize, tail_bytes: u64, tail_bytes_hard_max: u64) -> Self {
        let chunks = |bytes: u64| usize::try_from(bytes / chunk_bytes as u64).unwrap_or(usize::MAX);
        Self {
            current: aligned_buffer(chunk_bytes),
            current_chunk: 0,
            current_left: chunk_bytes,
            blocks: VecDeque::new(),
            full: VecDeque::new(),
            lent: Vec::new(),
            chunk_bytes,
            chunks_max: chunks(tail_bytes).max(2),
            chunks_hard_max: chunks(tail_bytes_hard_max).max(2),
            prepare_memory: |_| (),
        }
    }

    /// Shows each chunk to `prepare` before it is first used, this one and those to come.
    pub(crate) fn prepare_memory_with(&mut self, prepare: fn(&mut BytesMut)) {
        self.prepare_memory = prepare;
        prepare(&mut self.current);
    }

    fn new_chunk(&self) -> BytesMut {
        let mut chunk = aligned_buffer(self.chunk_bytes);
        (self.prepare_memory)(&mut chunk);
        chunk
    }

    /// Chunks that exist, in any state.
    pub(crate) fn chunk_count(&self) -> usize {
        1 + self.full.len() + self.lent.len()
    }

    /// Whether the current chunk can take `bytes` more.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.current_left - self.current.len() >= bytes
    }

    /// Starts another chunk. Blocks below `durable` may have to leave the tail for it. No block may be open.
    pub(crate) fn next_chunk(&mut self, durable: u64) -> Result<(), NoChunk> {
        assert!(self.current.is_empty(), "an open block stays where it is");
        let fresh = self.take_chunk(durable)?;
        let anchor = std::mem::replace(&mut self.current, fresh);
        self.full.push_back(Retired { chunk: self.current_chunk, anchor });
        self.current_chunk += 1;
        self.current_left = self.chunk_bytes;
        self.drop_surplus();
        Ok(())
    }

    fn take_chunk(&mut self, durable: u64) -> Result<BytesMut, NoChunk> {
        if let Some(buffer) = self.reclaim_lent() {
            return Ok(buffer);
        }
        if self.chunk_count() < self.chunks_max {
            return Ok(self.new_chunk());
        }
        while self.evict_chunk(durable) {
            if let Some(buffer) = self.reclaim_lent() {
                return Ok(buffer);
            }
            if self.chunk_count() < self.chunks_hard_max {
                break;
            }
        }
        if self.chunk_count() < self.chunks_hard_max { Ok(self.new_chunk()) } else { Err(NoChunk) }
    }

    /// Takes the blocks of the oldest chunk out of the tail, if all are durable (T1).
    fn evict_chunk(&mut self, durable: u64) -> bool {
        let Some(oldest) = self.full.front() else { return false };
        let chunk = oldest.chunk;
        let count = self.blocks.iter().take_while(|block| block.chunk <= chunk).count();
        if count > 0 && self.blocks[count - 1].end > durable {
            return false;
        }
        self.blocks.drain(..count);
        let retired = self.full.pop_front().expect("looked at above");
        self.lent.push(retired);
        true
    }

    fn reclaim_lent(&mut self) -> Option<BytesMut> {
        let chunk_bytes = self.chunk_bytes;
        let at = self.lent.iter_mut().position(|retired| is_free(&mut retired.anchor, chunk_bytes))?;
        Some(align(self.lent.swap_remove(at).anchor))
    }

    /// Gives memory back that was taken beyond the budget, once the sends that held it have ended (T2).
    fn drop_surplus(&mut self) {
        let chunk_bytes = self.chunk_bytes;
        while self.chunk_count() > self.chunks_max {
            let Some(at) = self.lent.iter_mut().position(|retired| is_free(&mut retired.anchor, chunk_bytes))
            else {
                return;
            };
            self.lent.swap_remove(at);
        }
    }

    /// Freezes the current image into a block of the tail and returns it.
    pub(crate) fn push(&mut self, start: u64, end: u64, image_at: u64) -> Bytes {
        self.current_left -= self.current.len();
        let image = self.current.split().freeze();
        debug_assert_eq!(image.as_ptr().align_offset(MEMORY_ALIGN), 0, "T3");
        self.blocks.push_back(TailBlock {
            start,
            end,
            image_at,
            image: image.clone(),
            chunk: self.current_chunk,
        });
        image
    }

    /// A range of one block, without copying.
    pub(crate) fn get(&self, position: PhysicalOffset, len: u32) -> Option<Bytes> {
        let index = self.blocks.partition_point(|block| block.start <= position.0).checked_sub(1)?;
        let block = &self.blocks[index];
        let end = position.0.checked_add(u64::from(len))?;
        if end > block.end {
            return None;
        }
        let at = usize::try_from(position.0 - block.image_at).ok()?;
        Some(block.image.slice(at..at + len as usize))
    }

    /// Where the tail begins; `None` while it is empty.
    pub(crate) fn start(&self) -> Option<PhysicalOffset> {
        self.blocks.front().map(|block| PhysicalOffset(block.start))
    }
}

/// Whether the anchor is the only handle to its chunk; if so it has got all of the room back.
fn is_free(anchor: &mut BytesMut, chunk_bytes: usize) -> bool {
    anchor.clear();
    anchor.try_reclaim(chunk_bytes + MEMORY_ALIGN)
}

#[cfg(test)]
mod tests;
