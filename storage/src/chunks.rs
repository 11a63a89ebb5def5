//! A list that grows without copying: small as a vector, then in chunks of a fixed size.

const CHUNK: usize = 256;

/// Memory is at most twice what the items take below 256 of them, and one chunk more than they take beyond.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<T> {
    full: Vec<Box<[T]>>,
    last: Vec<T>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { full: Vec::new(), last: Vec::new() }
    }
}

impl<T: Copy> Chunks<T> {
    pub(crate) fn push(&mut self, item: T) {
        if self.last.len() == CHUNK {
            let full = std::mem::replace(&mut self.last, Vec::with_capacity(CHUNK));
            self.full.push(full.into_boxed_slice());
        }
        self.last.push(item);
    }

    pub(crate) fn len(&self) -> usize {
        self.full.len() * CHUNK + self.last.len()
    }

    /// Panics if there is no such item.
    pub(crate) fn get(&self, index: usize) -> T {
        match self.full.get(index / CHUNK) {
            Some(chunk) => chunk[index % CHUNK],
            None => self.last[index - self.full.len() * CHUNK],
        }
    }

    /// The items in order, as few slices.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[T]> {
        self.full.iter().map(|chunk| &**chunk).chain(std::iter::once(&*self.last))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.slices().flatten().copied()
    }

    /// Bytes allocated.
    pub(crate) fn memory_bytes(&self) -> usize {
        (self.full.len() * CHUNK + self.last.capacity()) * size_of::<T>()
            + self.full.capacity() * size_of::<Box<[T]>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_where_they_were_pushed() {
        let mut chunks = Chunks::default();
        for count in 0..3 * CHUNK + 7 {
            assert_eq!(chunks.len(), count);
            chunks.push(count as u64);
        }
        assert!((0..chunks.len()).all(|index| chunks.get(index) == index as u64));
        assert!(chunks.iter().eq(0..chunks.len() as u64));
        let least = chunks.len() * 8;
        assert!((least..least + CHUNK * 8 + 1024).contains(&chunks.memory_bytes()));
    }
}
