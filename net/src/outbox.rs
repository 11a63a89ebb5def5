//! What waits to be sent on one connection.

use bytes::{Bytes, BytesMut};

/// Shared ranges shorter than this are copied: a copy of a small record costs less than a reference to it and its
/// own entry in the gather list (docs/performance.md has the measurement).
const COPIED_BYTES_MAX: usize = 8 << 10;
/// Size of the buffers that small pieces are gathered into.
const GATHER_BYTES: usize = 16 << 10;

/// Bytes for one peer, in order: small pieces gathered into buffers, large ranges by reference.
#[derive(Debug, Default)]
pub struct Outbox {
    parts: Vec<Bytes>,
    gathered: BytesMut,
    bytes: usize,
}

impl Outbox {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a copy of `data`.
    pub fn push(&mut self, data: &[u8]) {
        if self.gathered.capacity() - self.gathered.len() < data.len() {
            self.close_gathered();
            self.gathered.reserve(data.len().max(GATHER_BYTES));
        }
        self.gathered.extend_from_slice(data);
        self.bytes += data.len();
    }

    /// Appends `range`, by reference when it is long enough for that to pay.
    pub fn push_shared(&mut self, range: Bytes) {
        if range.len() < COPIED_BYTES_MAX {
            self.push(&range);
        } else {
            self.bytes += range.len();
            self.close_gathered();
            self.parts.push(range);
        }
    }

    /// Everything that waits, as one gather list; empty when nothing does.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.close_gathered();
        self.bytes = 0;
        std::mem::take(&mut self.parts)
    }

    /// Gives back memory that is not in use.
    pub fn shrink(&mut self) {
        if self.bytes == 0 {
            *self = Outbox::default();
        }
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.parts.push(self.gathered.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_and_bytes_are_kept(pieces in prop::collection::vec((any::<bool>(), 0usize..20_000), 0..30)) {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for (i, (shared, len)) in pieces.iter().enumerate() {
                let piece = vec![i as u8; *len];
                expected.extend_from_slice(&piece);
                if *shared { outbox.push_shared(Bytes::from(piece)) } else { outbox.push(&piece) }
                prop_assert_eq!(outbox.bytes(), expected.len());
            }
            prop_assert_eq!(outbox.take().concat(), expected);
            prop_assert_eq!(outbox.bytes(), 0);
            prop_assert!(outbox.take().is_empty());
        }
    }

    #[test]
    fn large_ranges_are_not_copied() {
        let range = Bytes::from(vec![1u8; COPIED_BYTES_MAX]);
        let mut outbox = Outbox::default();
        outbox.push(b"head");
        outbox.push_shared(range.clone());
        let parts = outbox.take();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[1].as_ptr(), range.as_ptr());
    }
}
