//! The index pages that a shard used last.
//!
//! Strictly the least recently used page goes first. So a look-up that touches `p` pages, and asks for at most 64 at a time,
//! finds all of them in a cache of `p + 64` when it asks again, if nothing else uses the cache meanwhile.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::PageId;
use crate::segment::SegmentBase;

/// No slot.
const NONE: usize = usize::MAX;

struct Slot {
    id: PageId,
    bytes: Bytes,
    newer: usize,
    older: usize,
}

/// At most `capacity` pages, in the order of their last use.
pub(super) struct PageCache {
    capacity: usize,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Never iterated: its order decides nothing.
    by_id: FxHashMap<PageId, usize>,
    newest: usize,
    oldest: usize,
}

impl PageCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            slots: Vec::new(),
            free: Vec::new(),
            by_id: FxHashMap::default(),
            newest: NONE,
            oldest: NONE,
        }
    }

    pub(super) fn contains(&self, id: PageId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The page, which is now the one used last.
    pub(super) fn get(&mut self, id: PageId) -> Option<Bytes> {
        let slot = *self.by_id.get(&id)?;
        if slot != self.newest {
            self.unlink(slot);
            self.link_newest(slot);
        }
        Some(self.slots[slot].bytes.clone())
    }

    pub(super) fn put(&mut self, id: PageId, bytes: Bytes) {
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.remove(slot);
        } else if self.by_id.len() == self.capacity {
            self.remove(self.oldest);
        }
        let new = Slot { id, bytes, newer: NONE, older: NONE };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = new;
                slot
            }
            None => {
                self.slots.push(new);
                self.slots.len() - 1
            }
        };
        self.by_id.insert(id, slot);
        self.link_newest(slot);
    }

    /// Forgets the pages of the segments for which `gone` says so.
    pub(super) fn remove_segments(&mut self, gone: impl Fn(SegmentBase) -> bool) {
        let mut slot = self.newest;
        while slot != NONE {
            let older = self.slots[slot].older;
            if gone(self.slots[slot].id.segment) {
                self.remove(slot);
            }
            slot = older;
        }
    }

    fn remove(&mut self, slot: usize) {
        self.unlink(slot);
        self.by_id.remove(&self.slots[slot].id);
        self.slots[slot].bytes = Bytes::new();
        self.free.push(slot);
    }

    fn link_newest(&mut self, slot: usize) {
        self.slots[slot].newer = NONE;
        self.slots[slot].older = self.newest;
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.slots[newest].newer = slot,
        }
        self.newest = slot;
    }

    fn unlink(&mut self, slot: usize) {
        let (newer, older) = (self.slots[slot].newer, self.slots[slot].older);
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older].newer = newer,
        }
    }

    /// Pages held, the one used last first.
    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<PageId> {
        let mut slot = self.newest;
        std::iter::from_fn(|| {
            let found = self.slots.get(slot)?;
            slot = found.older;
            Some(found.id)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(page: u64) -> PageId {
        PageId { segment: SegmentBase(page / 8), page: (page % 8) as u32 }
    }

    proptest! {
        #[test]
        fn holds_what_was_used_last(
            capacity in 1usize..9,
            steps in prop::collection::vec((0u8..8, 0u64..24), 0..200),
        ) {
            let mut cache = PageCache::new(capacity);
            // The page used last first.
            let mut model: Vec<(u64, Bytes)> = Vec::new();
            for (number, (what, page)) in steps.into_iter().enumerate() {
                let at = model.iter().position(|(held, _)| *held == page);
                match what {
                    0 => {
                        cache.remove_segments(|segment| segment == id(page).segment);
                        model.retain(|(held, _)| id(*held).segment != id(page).segment);
                    }
                    1..4 => {
                        prop_assert_eq!(cache.contains(id(page)), at.is_some());
                        let found = cache.get(id(page));
                        prop_assert_eq!(found.as_ref(), at.map(|at| &model[at].1));
                        if let Some(at) = at {
                            model[..=at].rotate_right(1);
                        }
                    }
                    _ => {
                        let bytes = Bytes::from(number.to_string());
                        cache.put(id(page), bytes.clone());
                        if let Some(at) = at {
                            model.remove(at);
                        }
                        model.insert(0, (page, bytes));
                        model.truncate(capacity);
                    }
                }
                let expected: Vec<PageId> = model.iter().map(|(page, _)| id(*page)).collect();
                prop_assert_eq!(cache.ids(), expected);
            }
        }
    }
}
