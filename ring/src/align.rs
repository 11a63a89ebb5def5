//! Memory for O_DIRECT: aligned, and in huge pages where that pays.

#![allow(unsafe_code)]

use bytes::{Buf, BytesMut};

/// Address, offset and length of direct I/O are multiples of this: no device in use asks for more than a page.
pub const DIRECT_ALIGN: usize = 4096;

/// `len` zero bytes whose address is a multiple of [`DIRECT_ALIGN`]. It stays so through `freeze` and `split_off` at
/// multiples of it, but not through growth.
pub fn aligned_buffer(len: usize) -> BytesMut {
    let mut buffer = BytesMut::zeroed(len + DIRECT_ALIGN - 1);
    let skip = buffer.as_ptr().align_offset(DIRECT_ALIGN);
    // `align_offset` may give up (`usize::MAX`) only in const evaluation; there `advance` would panic, never misalign.
    buffer.advance(skip);
    buffer.truncate(len);
    buffer
}

/// An empty buffer with room for at least `len` bytes at an address that is a multiple of [`DIRECT_ALIGN`].
pub(crate) fn aligned_capacity(len: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(len + DIRECT_ALIGN - 1);
    let skip = buffer.as_ptr().align_offset(DIRECT_ALIGN);
    buffer.resize(skip, 0);
    buffer.advance(skip);
    buffer
}

/// Asks the kernel to back the room of an empty buffer with huge pages, as far as it has any: direct I/O looks up each page
/// of its memory, and a core remembers the addresses of few. Large buffers that are used again and again gain a fifth to
/// a quarter of the CPU of a write. Whatever the kernel says to that, the buffer is as good as before.
pub fn prefer_huge_pages(buffer: &mut BytesMut) {
    let room = buffer.spare_capacity_mut();
    let from = room.as_ptr().align_offset(DIRECT_ALIGN).min(room.len());
    let pages = &mut room[from..];
    let len = pages.len() - pages.len() % DIRECT_ALIGN;
    // SAFETY: the range is whole pages of memory that is borrowed exclusively; the advice changes how the kernel backs
    // it, not what it holds.
    unsafe { libc::madvise(pages.as_mut_ptr().cast(), len, libc::MADV_HUGEPAGE) };
}

/// Whether a write of `data` at `offset` is fit for a direct file.
pub fn is_direct_aligned(offset: u64, data: &[u8]) -> bool {
    data.as_ptr().align_offset(DIRECT_ALIGN) == 0
        && offset.is_multiple_of(DIRECT_ALIGN as u64)
        && data.len().is_multiple_of(DIRECT_ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_stay_so_when_frozen() {
        for len in [0, 1, 511, 4096, 4097, 1 << 20] {
            let buffer = aligned_buffer(len);
            assert_eq!((buffer.len(), buffer.as_ptr().align_offset(DIRECT_ALIGN)), (len, 0));
            assert!(buffer.iter().all(|&b| b == 0));
            let whole = buffer.freeze();
            if len > 0 {
                assert_eq!(whole.as_ptr().align_offset(DIRECT_ALIGN), 0);
            }
        }
    }

    #[test]
    fn room_is_aligned_before_it_is_filled() {
        for len in [0, 1, 4096, 100_000] {
            let mut buffer = aligned_capacity(len);
            assert!(buffer.is_empty() && buffer.capacity() >= len);
            let room = buffer.spare_capacity_mut().as_ptr();
            assert_eq!(room.align_offset(DIRECT_ALIGN), 0);
            buffer.resize(len, 1);
            assert_eq!(buffer.as_ptr(), room.cast());
        }
    }

    #[test]
    fn a_buffer_with_huge_pages_is_as_good_as_before() {
        for len in [0, 100, 4096, 8 << 20] {
            let mut buffer = aligned_capacity(len);
            prefer_huge_pages(&mut buffer);
            buffer.resize(len, 7);
            prefer_huge_pages(&mut buffer);
            assert!(buffer.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn alignment_is_of_address_offset_and_length() {
        let buffer = aligned_buffer(8192);
        assert!(is_direct_aligned(4096, &buffer));
        assert!(!is_direct_aligned(512, &buffer));
        assert!(!is_direct_aligned(0, &buffer[..512]));
        assert!(!is_direct_aligned(0, &buffer[512..4608]));
    }
}
