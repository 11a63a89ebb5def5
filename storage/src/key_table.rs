//! The keys of the active segment in memory: which messages may carry a key.
//!
//! 256 buckets by the top 8 bits of the hash; 8 bytes a key: the next 32 bits of the hash and the position in the
//! segment. Two keys can share those 40 bits, so whoever asks compares the key in the message itself.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::chunks::Chunks;

/// A topic as the indexes know it: XXH3-64 of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicHash(pub u64);

impl TopicHash {
    pub fn of(name: &str) -> Self {
        Self(xxh3_64(name.as_bytes()))
    }
}

/// A key of a message of a topic: XXH3-64 of the key, seeded with the topic's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    pub fn of(topic: TopicHash, key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(key, topic.0))
    }

    fn bucket(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The 32 bits below the bucket.
    fn rest(self) -> u32 {
        (self.0 >> 24) as u32
    }
}

const BUCKETS: usize = 256;

/// Keys of the messages of one segment.
#[derive(Clone)]
pub struct KeyTable {
    /// An entry is the hash's 32 bits above the 32 bits of the position.
    buckets: Box<[Chunks<u64>; BUCKETS]>,
}

impl KeyTable {
    pub fn new() -> Self {
        Self { buckets: Box::new(std::array::from_fn(|_| Chunks::default())) }
    }

    /// Adds a key of the message at `relative_position`. Messages come in the order of the log.
    pub fn push(&mut self, hash: KeyHash, relative_position: u32) {
        let entry = u64::from(hash.rest()) << 32 | u64::from(relative_position);
        self.buckets[usize::from(hash.bucket())].push(entry);
    }

    /// Positions in the segment of the messages that may have the key, ascending, each once.
    pub fn find(&self, hash: KeyHash) -> impl Iterator<Item = u32> + '_ {
        let rest = hash.rest();
        let mut last = None;
        self.buckets[usize::from(hash.bucket())].iter().filter_map(move |entry| {
            // A message can carry the same key twice; its positions are then neighbours.
            let position = ((entry >> 32) as u32 == rest).then_some(entry as u32);
            position.filter(|position| last.replace(*position) != Some(*position))
        })
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(Chunks::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes allocated.
    pub fn memory_bytes(&self) -> usize {
        let own = size_of::<[Chunks<u64>; BUCKETS]>();
        own + self.buckets.iter().map(Chunks::memory_bytes).sum::<usize>()
    }

    /// The buckets, ascending by the top 8 bits of the hash.
    pub(crate) fn buckets(&self) -> &[Chunks<u64>] {
        &self.buckets[..]
    }
}

impl Default for KeyTable {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyTable").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
