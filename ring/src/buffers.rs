//! Receive buffers that the kernel picks from: a provided-buffer ring (IORING_REGISTER_PBUF_RING).
//!
//! All sockets share them, so an idle connection costs no buffer. Together they should fit the L2 cache: a pool that
//! does not is slower than copying.
//!
//! B1  A buffer is with the kernel (offered through the ring) or with us; it is offered again only once every
//!     [`RecvBuffer`] cut from it was given back and the kernel has said that it is done with it.
//! B2  The kernel writes only into the part of an offered buffer that it has not reported yet. A `RecvBuffer` covers
//!     only reported bytes, so nobody writes what it covers while it exists.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use io_uring::{IoUring, types};

use crate::RecvBuffer;

/// The group that every receive names. There is one.
pub(crate) const GROUP: u16 = 0;

/// `struct io_uring_buf`. The `tail` of the first one is the tail of the ring: the kernel overlays them.
#[repr(C)]
struct Offer {
    address: AtomicU64,
    len: AtomicU32,
    id: AtomicU16,
    tail: AtomicU16,
}

const OFFERS_PER_PAGE: usize = 4096 / size_of::<Offer>();

/// The kernel wants the ring on page boundaries.
#[repr(C, align(4096))]
struct OfferPage([Offer; OFFERS_PER_PAGE]);

pub(crate) struct BufferRing {
    offers: Box<[OfferPage]>,
    memory: Box<[UnsafeCell<u8>]>,
    state: Vec<State>,
    buffer_bytes: u32,
    incremental: bool,
    tail: u16,
    /// Buffers with the kernel that hold no byte yet, as far as we know.
    offered: usize,
    /// Distinguishes the `RecvBuffer`s of this ring from those of any other.
    ring: u32,
}

#[derive(Clone, Default)]
struct State {
    /// `RecvBuffer`s cut from it and not given back.
    out: u32,
    /// Bytes reported so far, of this round.
    filled: u32,
    with_kernel: bool,
}

impl BufferRing {
    /// Makes buffers and offers them all to the kernel.
    pub(crate) fn register(
        ring: &IoUring,
        count: u16,
        buffer_bytes: u32,
        incremental: bool,
    ) -> io::Result<BufferRing> {
        let mut buffers = BufferRing::new(count, buffer_bytes, incremental);
        let flags = if incremental { types::IOU_PBUF_RING_INC as u16 } else { 0 };
        let address = buffers.offers.as_ptr() as u64;
        // SAFETY: `offers` is page-aligned, holds at least `count` entries that both sides access atomically, and its
        // memory stays in place until `Uring::drop` has unregistered it or has leaked it.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, GROUP, flags)? };
        for id in 0..count {
            buffers.offer(id);
        }
        Ok(buffers)
    }

    /// # Panics
    /// Unless `count` is a power of two of at most 2^15 and `buffer_bytes` is not 0.
    fn new(count: u16, buffer_bytes: u32, incremental: bool) -> BufferRing {
        assert!(count.is_power_of_two() && count <= 1 << 15, "receive buffers: a power of two up to 32768");
        assert!(buffer_bytes > 0);
        static RINGS: AtomicU32 = AtomicU32::new(0);
        let empty = || Offer {
            address: AtomicU64::new(0),
            len: AtomicU32::new(0),
            id: AtomicU16::new(0),
            tail: AtomicU16::new(0),
        };
        let pages = usize::from(count).div_ceil(OFFERS_PER_PAGE);
        let bytes = usize::from(count) * buffer_bytes as usize;
        BufferRing {
            offers: (0..pages).map(|_| OfferPage(std::array::from_fn(|_| empty()))).collect(),
            memory: (0..bytes).map(|_| UnsafeCell::new(0)).collect(),
            state: vec![State::default(); usize::from(count)],
            buffer_bytes,
            incremental,
            tail: 0,
            offered: 0,
            ring: RINGS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The kernel has reported `len` bytes in buffer `id`; `more` says that it goes on filling the same one. `None` if
    /// there are no bytes in it.
    pub(crate) fn take(&mut self, id: u16, len: u32, more: bool) -> Option<RecvBuffer> {
        let state = &mut self.state[usize::from(id)];
        assert!(
            state.with_kernel && state.filled + len <= self.buffer_bytes,
            "B1: the kernel filled what it was offered"
        );
        let offset = state.filled;
        state.filled += len;
        // An incremental report of nothing (end of the stream) never uses a buffer up, but some kernels omit the flag.
        let kept = more || self.incremental && len == 0;
        if !kept {
            state.with_kernel = false;
            self.offered -= 1;
        }
        if len > 0 {
            state.out += 1;
            return Some(RecvBuffer { ring: self.ring, id, offset, len });
        }
        self.offer_if_free(id);
        None
    }

    pub(crate) fn bytes(&self, buffer: &RecvBuffer) -> &[u8] {
        assert_eq!(buffer.ring, self.ring, "a receive buffer of another ring");
        let start = usize::from(buffer.id) * self.buffer_bytes as usize + buffer.offset as usize;
        let cells = &self.memory[start..start + buffer.len as usize];
        // SAFETY: the range is in bounds and initialised; by B2 nobody writes to it while the `RecvBuffer` exists,
        // which the borrow of it outlives, and only this ring's kernel side ever writes to `memory`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len()) }
    }

    pub(crate) fn give_back(&mut self, buffer: RecvBuffer) {
        assert_eq!(buffer.ring, self.ring, "a receive buffer of another ring");
        self.state[usize::from(buffer.id)].out -= 1;
        self.offer_if_free(buffer.id);
    }

    /// Buffers that receives which start now may find.
    pub(crate) fn offered(&self) -> usize {
        self.offered
    }

    /// To be called once no receive is in flight; from then on the kernel touches nothing here.
    pub(crate) fn unregister(&self, ring: &IoUring) -> io::Result<()> {
        ring.submitter().unregister_buf_ring(GROUP)
    }

    /// Gives the memory up for ever, because the kernel may still hold it.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.offers));
        std::mem::forget(std::mem::take(&mut self.memory));
    }

    fn offer_if_free(&mut self, id: u16) {
        let state = &self.state[usize::from(id)];
        if !state.with_kernel && state.out == 0 {
            self.offer(id);
        }
    }

    fn offer(&mut self, id: u16) {
        // A power of two of at most 2^15, so the index wraps with the tail.
        let index = usize::from(self.tail) & (self.state.len() - 1);
        let start = usize::from(id) * self.buffer_bytes as usize;
        let cell = &self.memory[start..][..self.buffer_bytes as usize];
        let offer = &self.offers[index / OFFERS_PER_PAGE].0[index % OFFERS_PER_PAGE];
        offer.address.store(cell.as_ptr() as u64, Ordering::Relaxed);
        offer.len.store(self.buffer_bytes, Ordering::Relaxed);
        offer.id.store(id, Ordering::Relaxed);
        self.tail = self.tail.wrapping_add(1);
        self.offers[0].0[0].tail.store(self.tail, Ordering::Release);
        self.state[usize::from(id)] = State { out: 0, filled: 0, with_kernel: true };
        self.offered += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands for the kernel: it never looks at the memory, only at the order of offers.
    fn ring(count: u16, incremental: bool) -> BufferRing {
        let mut ring = BufferRing::new(count, 100, incremental);
        for id in 0..count {
            ring.offer(id);
        }
        ring
    }

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<Offer>(), std::mem::offset_of!(Offer, tail)), (16, 14));
        assert_eq!(size_of::<OfferPage>(), 4096);
    }

    #[test]
    fn a_buffer_is_offered_again_only_when_all_cuts_are_back() {
        let mut ring = ring(2, true);
        let first = ring.take(0, 60, true).unwrap();
        let second = ring.take(0, 40, false).unwrap();
        assert_eq!((second.offset, ring.tail, ring.offered), (60, 2, 1));
        ring.give_back(first);
        assert_eq!((ring.tail, ring.offered), (2, 1));
        ring.give_back(second);
        assert_eq!((ring.tail, ring.offered), (3, 2));
    }

    #[test]
    fn a_buffer_in_use_by_the_kernel_is_not_offered_twice() {
        let mut ring = ring(2, true);
        let first = ring.take(0, 60, true).unwrap();
        ring.give_back(first);
        assert_eq!((ring.tail, ring.offered), (2, 2));
        assert_eq!(ring.take(0, 40, false).unwrap().offset, 60);
    }

    #[test]
    fn an_empty_report_returns_the_buffer_at_once() {
        let mut ring = ring(2, false);
        assert!(ring.take(1, 0, false).is_none());
        assert_eq!((ring.tail, ring.offered), (3, 2));
    }

    #[test]
    #[should_panic(expected = "another ring")]
    fn a_buffer_of_another_ring_is_refused() {
        let (mut one, two) = (ring(2, false), ring(2, false));
        let buffer = one.take(0, 10, false).unwrap();
        two.bytes(&buffer);
    }
}
