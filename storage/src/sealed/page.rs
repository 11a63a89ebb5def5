//! Pages and items: where each byte is, and the check that a page must pass before it is used.

use ringmq_protocol::types::{QueueId, QueueOffset};

use super::{IndexError, PageId, QueueKey};
use crate::block::LogIdentity;
use crate::key_table::TopicHash;

/// Bytes of a page of an index file; the file is a whole number of pages.
pub const PAGE_BYTES: usize = 4096;
pub(super) const PAGE_HEADER_BYTES: usize = 8;
pub(super) const PAYLOAD_BYTES: usize = PAGE_BYTES - PAGE_HEADER_BYTES;

pub(super) const KIND_HEADER: u8 = 1;
pub(super) const KIND_ENTRIES: u8 = 2;
pub(super) const KIND_QUEUES: u8 = 3;
pub(super) const KIND_KEYS: u8 = 4;
pub(super) const KIND_MARKS: u8 = 5;

/// One mark stands for this many bytes of the segment.
pub(super) const MARK_BYTES: u64 = 64 << 10;

/// The next page goes on with items whose home is this page or one before it.
pub(super) const FLAG_CONTINUES: u8 = 1;

/// Something that stands in a section, many to a page.
pub(super) trait Item: Sized {
    const KIND: u8;
    const BYTES: usize;
    const PER_PAGE: usize = PAYLOAD_BYTES / Self::BYTES;
    /// Both panic if `bytes` is not `BYTES` long.
    fn read(bytes: &[u8]) -> Self;
    fn write(&self, bytes: &mut [u8]);
}

/// A message of a run. Positions are relative to the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryItem {
    pub(super) position: u32,
    pub(super) size: u32,
    pub(super) tags_code: i32,
    /// Store time after the segment's first, shifted to the right by the header's shift.
    pub(super) time: u32,
    pub(super) block: u32,
}

impl Item for EntryItem {
    const KIND: u8 = KIND_ENTRIES;
    const BYTES: usize = 20;

    fn read(bytes: &[u8]) -> Self {
        Self {
            position: u32_at(bytes, 0),
            size: u32_at(bytes, 4),
            tags_code: u32_at(bytes, 8) as i32,
            time: u32_at(bytes, 12),
            block: u32_at(bytes, 16),
        }
    }

    #[inline]
    fn write(&self, bytes: &mut [u8]) {
        let bytes: &mut [u8; Self::BYTES] = bytes.try_into().expect("an item's bytes");
        bytes[0..4].copy_from_slice(&self.position.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.tags_code.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.time.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.block.to_le_bytes());
    }
}

/// A run of a queue, or, with no entries, a queue that only has a next offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueItem {
    pub(super) key: QueueKey,
    pub(super) first: QueueOffset,
    /// Index of the run's first entry in the section of entries.
    pub(super) first_entry: u32,
    pub(super) count: u32,
}

impl Item for QueueItem {
    const KIND: u8 = KIND_QUEUES;
    const BYTES: usize = 28;

    fn read(bytes: &[u8]) -> Self {
        let key = QueueKey { topic: TopicHash(u64_at(bytes, 0)), queue_id: QueueId(u32_at(bytes, 8)) };
        let first = QueueOffset(u64_at(bytes, 12));
        Self { key, first, first_entry: u32_at(bytes, 20), count: u32_at(bytes, 24) }
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.key.topic.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key.queue_id.0.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.first_entry.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.count.to_le_bytes());
    }
}

/// The top 32 bits of a key's hash above the 32 bits of the message's relative position: in that order as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyItem(pub(super) u64);

impl KeyItem {
    pub(super) fn hash(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn position(self) -> u32 {
        self.0 as u32
    }
}

impl Item for KeyItem {
    const KIND: u8 = KIND_KEYS;
    const BYTES: usize = 8;

    fn read(bytes: &[u8]) -> Self {
        Self(u64_at(bytes, 0))
    }

    #[inline]
    fn write(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.to_le_bytes());
    }
}

/// Relative start of the last block that begins at or before a multiple of `MARK_BYTES` of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MarkItem(pub(super) u32);

impl Item for MarkItem {
    const KIND: u8 = KIND_MARKS;
    const BYTES: usize = 4;

    fn read(bytes: &[u8]) -> Self {
        Self(u32_at(bytes, 0))
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.to_le_bytes());
    }
}

/// The home page of a queue among `homes` pages, from the queue's hash.
pub(super) fn queue_home(hash: u64, homes: u32) -> u32 {
    // Below `homes`, so it fits.
    ((u128::from(hash) * u128::from(homes)) >> 64) as u32
}

/// The home page of a key among `homes` pages, from the top 32 bits of its hash.
pub(super) fn key_home(hash: u32, homes: u32) -> u32 {
    ((u64::from(hash) * u64::from(homes)) >> 32) as u32
}

/// Home pages for `items` items: three quarters full, so that few pages spill into the next.
pub(super) fn homes_for<T: Item>(items: u64) -> u64 {
    items.div_ceil((T::PER_PAGE * 3 / 4) as u64)
}

/// A page that passed `check`.
#[derive(Clone, Copy)]
pub(super) struct Page<'a>(&'a [u8]);

impl<'a> Page<'a> {
    /// `bytes` are a page, or it is a mistake of the program.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        assert_eq!(bytes.len(), PAGE_BYTES, "I2: only checked pages are looked at");
        Self(bytes)
    }

    pub(super) fn count(self) -> usize {
        usize::from(u16::from_le_bytes([self.0[4], self.0[5]]))
    }

    pub(super) fn kind(self) -> u8 {
        self.0[6]
    }

    pub(super) fn continues(self) -> bool {
        self.0[7] & FLAG_CONTINUES != 0
    }

    /// Panics if the page has no such item.
    pub(super) fn item<T: Item>(self, index: usize) -> T {
        assert!(index < self.count());
        T::read(&self.0[PAGE_HEADER_BYTES + index * T::BYTES..][..T::BYTES])
    }

    /// The first item that is not before what is looked for; the items that are come first.
    pub(super) fn partition<T: Item>(self, is_before: impl Fn(&T) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            if is_before(&self.item(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    pub(super) fn items<T: Item>(self) -> impl Iterator<Item = T> + 'a {
        (0..self.count()).map(move |index| self.item(index))
    }
}

/// Writes the header of a page whose payload stands.
pub(super) fn seal(page: &mut [u8], identity: LogIdentity, id: PageId, kind: u8, flags: u8, count: usize) {
    page[4..6].copy_from_slice(&u16::try_from(count).expect("at most 511 items a page").to_le_bytes());
    page[6] = kind;
    page[7] = flags;
    let crc = checksum(page, identity, id);
    page[0..4].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the bytes are the page of this log that they are taken for.
pub(super) fn check(page: &[u8], identity: LogIdentity, id: PageId) -> Result<Page<'_>, IndexError> {
    if page.len() != PAGE_BYTES {
        return Err(IndexError::Length(page.len()));
    }
    let (found, computed) = (u32_at(page, 0), checksum(page, identity, id));
    if found == computed { Ok(Page(page)) } else { Err(IndexError::Checksum { found, computed }) }
}

/// CRC-32C of where the page belongs, then of all of it but the checksum.
fn checksum(page: &[u8], identity: LogIdentity, id: PageId) -> u32 {
    let mut place = [0; 18];
    place[0..4].copy_from_slice(&identity.log_id.to_le_bytes());
    place[4..6].copy_from_slice(&identity.shard.to_le_bytes());
    place[6..14].copy_from_slice(&id.segment.0.to_le_bytes());
    place[14..18].copy_from_slice(&id.page.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), &page[4..])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
