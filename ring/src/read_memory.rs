//! Memory for large reads, used again and again: the first touch of a page that the kernel has just given costs more than
//! reading its bytes from the disk.
//!
//! M1  A buffer is lent to one read at a time. It comes back when the last handle to what was read is dropped, on whichever
//!     thread that happens.
//! M2  There are at most `REGIONS_MAX` regions of buffers, and they stay. Who finds none left gets memory of its own.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::align::{DIRECT_ALIGN, aligned_capacity, prefer_huge_pages};

/// Smaller reads use the allocator, which has their size at hand; larger ones are rare.
const READ_BYTES_MIN: usize = 64 << 10;
/// The longest read that is often made, 512 KiB, with both ends off alignment.
const BUFFER_BYTES: usize = (512 << 10) + 2 * DIRECT_ALIGN;
/// A few huge pages.
const REGION_BUFFERS: usize = 15;
const REGIONS_MAX: usize = 4;

type Home = Arc<Mutex<Free>>;

#[derive(Default)]
struct Free {
    buffers: Vec<BytesMut>,
    regions: usize,
}

#[derive(Default)]
pub(crate) struct ReadMemory(Home);

impl ReadMemory {
    /// An empty buffer with room for at least `len` bytes at an address that is a multiple of [`DIRECT_ALIGN`].
    pub(crate) fn take(&self, len: usize) -> ReadBuffer {
        let pooled = (READ_BYTES_MIN..=BUFFER_BYTES).contains(&len).then(|| self.take_pooled()).flatten();
        let home = pooled.is_some().then(|| self.0.clone());
        ReadBuffer { buffer: pooled.unwrap_or_else(|| aligned_capacity(len)), home }
    }

    fn take_pooled(&self) -> Option<BytesMut> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.buffers.is_empty() && free.regions < REGIONS_MAX {
            free.regions += 1;
            let mut region = aligned_capacity(REGION_BUFFERS * BUFFER_BYTES);
            prefer_huge_pages(&mut region);
            free.buffers.extend((0..REGION_BUFFERS).map(|_| {
                let rest = region.split_off(BUFFER_BYTES);
                std::mem::replace(&mut region, rest)
            }));
        }
        free.buffers.pop()
    }
}

/// A buffer that goes back to where it came from.
pub(crate) struct ReadBuffer {
    pub(crate) buffer: BytesMut,
    home: Option<Home>,
}

impl ReadBuffer {
    /// What the buffer holds, to be shared.
    pub(crate) fn freeze(mut self) -> Bytes {
        match self.home {
            Some(_) => Bytes::from_owner(self),
            None => std::mem::take(&mut self.buffer).freeze(),
        }
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        self.buffer.clear();
        home.lock().unwrap_or_else(PoisonError::into_inner).buffers.push(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        let memory = ReadMemory::default();
        let mut first = memory.take(100_000);
        first.buffer.extend_from_slice(b"first");
        let at = first.buffer.as_ptr();
        assert_eq!(at.align_offset(DIRECT_ALIGN), 0);
        let shared = first.freeze();
        let part = shared.slice(1..3);
        drop(shared);
        let second = memory.take(100_000);
        assert_ne!(second.buffer.as_ptr(), at);
        assert_eq!(&part[..], b"ir");
        drop(part);
        let third = memory.take(BUFFER_BYTES);
        assert_eq!((third.buffer.as_ptr(), third.buffer.len()), (at, 0));
        assert!(third.buffer.capacity() >= BUFFER_BYTES);
    }

    #[test]
    fn buffers_do_not_overlap_and_their_number_is_bounded() {
        let memory = ReadMemory::default();
        let pooled = REGIONS_MAX * REGION_BUFFERS;
        let mut taken: Vec<ReadBuffer> = (0..pooled + 3).map(|_| memory.take(BUFFER_BYTES)).collect();
        for (number, taken) in taken.iter_mut().enumerate() {
            taken.buffer.resize(BUFFER_BYTES, number as u8);
        }
        for (number, taken) in taken.iter().enumerate() {
            assert_eq!(taken.buffer.as_ptr().align_offset(DIRECT_ALIGN), 0);
            assert!(taken.as_ref().iter().all(|&byte| byte == number as u8));
        }
        drop(taken);
        drop(memory.take(100));
        drop(memory.take(10 << 20));
        assert_eq!(memory.0.lock().unwrap().buffers.len(), pooled);
    }
}
