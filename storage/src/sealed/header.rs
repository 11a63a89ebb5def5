//! The first page of an index: what a shard keeps in memory of a sealed segment.

use std::ops::Range;

use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};

use super::page::{self, EntryItem, Item, KeyItem, MarkItem, Page, QueueItem, u32_at, u64_at};
use super::{ChainPoint, EntryPlace, IndexError, PAGE_BYTES, PageId, QueueKey};
use crate::block::LogIdentity;
use crate::segment::SegmentBase;

const MAGIC: [u8; 4] = *b"RMQX";
const VERSION: u16 = 1;
const SECTIONS_AT: usize = 112;
const SECTION_BYTES: usize = 24;

/// Consecutive pages with items of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) first_page: u32,
    pub(super) pages: u32,
    /// Of a hashed section, the pages that are the home of items; items that spill take more. Else 0.
    pub(super) homes: u32,
    pub(super) items: u64,
}

impl Section {
    pub(super) fn contains(&self, page: u32) -> bool {
        page >= self.first_page && page - self.first_page < self.pages
    }

    pub(super) fn is_last(&self, page: u32) -> bool {
        page - self.first_page == self.pages - 1
    }
}

/// What the first page of an index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    pub base: SegmentBase,
    /// The end of the segment's last block.
    pub end: ChainPoint,
    /// Where a reading of the log that wants the newest complete checkpoint begins.
    pub replay_from: ChainPoint,
    /// Store time of the segment's first block.
    pub first_timestamp: StoreTimestamp,
    /// Store time of the segment's last block.
    pub last_timestamp: StoreTimestamp,
    /// Messages that have a place in a queue.
    pub messages: u64,
    /// Length of the file in pages of `PAGE_BYTES`.
    pub pages: u32,
    pub(super) time_shift: u8,
    pub(super) entries: Section,
    pub(super) queues: Section,
    pub(super) keys: Section,
    pub(super) marks: Section,
}

impl IndexHeader {
    /// Length of the whole index file in bytes.
    pub fn file_bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES as u64
    }

    /// Reads the first page of the index of the segment at `base`.
    ///
    /// A header that is whole, but of a newer version or of another log, is told from a damaged one.
    pub fn parse(
        bytes: &[u8],
        identity: LogIdentity,
        base: SegmentBase,
        segment_bytes: u64,
    ) -> Result<Self, IndexError> {
        if bytes.len() != PAGE_BYTES {
            return Err(IndexError::Length(bytes.len()));
        }
        if bytes[8..12] != MAGIC {
            return Err(IndexError::NotAnIndex);
        }
        let said_identity =
            LogIdentity { shard: u16::from_le_bytes([bytes[14], bytes[15]]), log_id: u32_at(bytes, 16) };
        let said_base = SegmentBase(u64_at(bytes, 24));
        let checked = page::check(bytes, said_identity, PageId { segment: said_base, page: 0 })?;
        let version = u16::from_le_bytes([bytes[12], bytes[13]]);
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        if said_identity != identity || said_base != base || u64_at(bytes, 32) != segment_bytes {
            return Err(IndexError::Foreign);
        }
        Self::read(checked, bytes, base, segment_bytes).map_err(IndexError::Content)
    }

    fn read(
        page: Page<'_>,
        bytes: &[u8],
        base: SegmentBase,
        segment_bytes: u64,
    ) -> Result<Self, &'static str> {
        let section_count = u32_at(bytes, 108) as usize;
        if page.kind() != page::KIND_HEADER || section_count > (PAGE_BYTES - SECTIONS_AT) / SECTION_BYTES {
            return Err("it is no header");
        }
        let end = chain_point(bytes, 40);
        let mut header = Self {
            base,
            end,
            replay_from: chain_point(bytes, 64),
            first_timestamp: StoreTimestamp(u64_at(bytes, 88) as i64),
            last_timestamp: end.store_timestamp,
            messages: u64_at(bytes, 96),
            pages: u32_at(bytes, 20),
            time_shift: bytes[104],
            entries: Section::default(),
            queues: Section::default(),
            keys: Section::default(),
            marks: Section::default(),
        };
        let mut next_page = 1u32;
        for section in bytes[SECTIONS_AT..].chunks_exact(SECTION_BYTES).take(section_count) {
            let read = Section {
                first_page: u32_at(section, 4),
                pages: u32_at(section, 8),
                homes: u32_at(section, 12),
                items: u64_at(section, 16),
            };
            if read.first_page != next_page {
                return Err("a section is not where the one before it ends");
            }
            next_page = next_page.checked_add(read.pages).ok_or("a section is too long")?;
            match u32_at(section, 0) {
                kind if kind == u32::from(page::KIND_ENTRIES) => header.entries = read,
                kind if kind == u32::from(page::KIND_QUEUES) => header.queues = read,
                kind if kind == u32::from(page::KIND_KEYS) => header.keys = read,
                kind if kind == u32::from(page::KIND_MARKS) => header.marks = read,
                // A later version adds sections that this one has no use for.
                _ => {}
            }
        }
        let segment_end = base.0.checked_add(segment_bytes).ok_or("the segment ends beyond 2^64")?;
        let fits = |section: &Section, per_page: usize, homes: u64| {
            section.items <= u64::from(section.pages) * per_page as u64
                && u64::from(section.homes) == homes
                && section.pages >= section.homes
        };
        if next_page != header.pages {
            return Err("the sections do not make up the file");
        }
        if !(base.0..=segment_end).contains(&end.position.0) || header.replay_from.position > end.position {
            return Err("its positions are not in the segment");
        }
        if header.time_shift >= 64 {
            return Err("its time shift is too large");
        }
        let entry_pages = header.entries.items.div_ceil(EntryItem::PER_PAGE as u64);
        if header.messages != header.entries.items
            || header.entries.items > u64::from(u32::MAX)
            || entry_pages != u64::from(header.entries.pages)
            || !fits(&header.entries, EntryItem::PER_PAGE, 0)
            || !fits(&header.queues, QueueItem::PER_PAGE, page::homes_for::<QueueItem>(header.queues.items))
            || !fits(&header.keys, KeyItem::PER_PAGE, page::homes_for::<KeyItem>(header.keys.items))
            || header.marks.items != header.mark_count()
            || !fits(&header.marks, MarkItem::PER_PAGE, 0)
        {
            return Err("its sections do not hold their items");
        }
        Ok(header)
    }

    /// Writes all of the page but the header of the page, over zeros.
    pub(super) fn write(&self, page: &mut [u8], identity: LogIdentity, segment_bytes: u64) {
        page[8..12].copy_from_slice(&MAGIC);
        page[12..14].copy_from_slice(&VERSION.to_le_bytes());
        page[14..16].copy_from_slice(&identity.shard.to_le_bytes());
        page[16..20].copy_from_slice(&identity.log_id.to_le_bytes());
        page[20..24].copy_from_slice(&self.pages.to_le_bytes());
        page[24..32].copy_from_slice(&self.base.0.to_le_bytes());
        page[32..40].copy_from_slice(&segment_bytes.to_le_bytes());
        write_chain_point(&mut page[40..64], self.end);
        write_chain_point(&mut page[64..88], self.replay_from);
        page[88..96].copy_from_slice(&self.first_timestamp.0.to_le_bytes());
        page[96..104].copy_from_slice(&self.messages.to_le_bytes());
        page[104] = self.time_shift;
        let sections = [
            (page::KIND_ENTRIES, self.entries),
            (page::KIND_QUEUES, self.queues),
            (page::KIND_KEYS, self.keys),
            (page::KIND_MARKS, self.marks),
        ];
        page[108..112].copy_from_slice(&(sections.len() as u32).to_le_bytes());
        for ((kind, section), bytes) in
            sections.into_iter().zip(page[SECTIONS_AT..].chunks_exact_mut(SECTION_BYTES))
        {
            bytes[0..4].copy_from_slice(&u32::from(kind).to_le_bytes());
            bytes[4..8].copy_from_slice(&section.first_page.to_le_bytes());
            bytes[8..12].copy_from_slice(&section.pages.to_le_bytes());
            bytes[12..16].copy_from_slice(&section.homes.to_le_bytes());
            bytes[16..24].copy_from_slice(&section.items.to_le_bytes());
        }
    }

    /// Whether bytes that were read are the page of this index that they should be.
    pub(crate) fn check_page(
        &self,
        bytes: &[u8],
        identity: LogIdentity,
        number: u32,
    ) -> Result<(), IndexError> {
        let page = page::check(bytes, identity, PageId { segment: self.base, page: number })?;
        let checked = if self.entries.contains(number) {
            self.check_entries(page, number)
        } else if self.queues.contains(number) {
            check_hashed(page, &self.queues, number, |item: QueueItem| {
                u64::from(item.first_entry) + u64::from(item.count) <= self.entries.items
                    && item.first.0.checked_add(u64::from(item.count)).is_some()
            })
        } else if self.keys.contains(number) {
            check_hashed(page, &self.keys, number, |item: KeyItem| self.in_segment(item.position()))
        } else if self.marks.contains(number) {
            check_hashed(page, &self.marks, number, |MarkItem(start)| self.in_segment(start))
        } else {
            return Err(IndexError::NotAsked);
        };
        checked.map_err(IndexError::Content)
    }

    /// Pages that say which queues there are.
    pub(crate) fn queue_pages(&self) -> Range<u32> {
        self.queues.first_page..self.queues.first_page + self.queues.pages
    }

    /// The runs of queues in such a page, which was checked, with the numbers of their entries.
    pub(crate) fn queues_in(&self, page: &[u8]) -> impl Iterator<Item = (QueueKey, Range<u32>)> {
        let items = Page::new(page).items::<QueueItem>();
        // They are among the entries, which was checked.
        items.map(|item| (item.key, item.first_entry..item.first_entry + item.count))
    }

    /// Pages that hold these entries, as far as there are so many, each with the places of its own that are meant.
    pub(crate) fn entry_pages(
        &self,
        entries: Range<u32>,
    ) -> impl Iterator<Item = (u32, Range<usize>)> + use<> {
        let per_page = EntryItem::PER_PAGE as u32;
        let count = self.entries.items as u32; // as `read` checks
        let (from, to) = (entries.start.min(count), entries.end.min(count));
        let first_page = self.entries.first_page;
        (from / per_page..to.div_ceil(per_page)).map(move |page| {
            let first = page * per_page;
            let meant = from.saturating_sub(first)..(to - first).min(per_page);
            (first_page + page, meant.start as usize..meant.end as usize)
        })
    }

    /// What some entries of a page say, which was checked.
    pub(crate) fn places_in(&self, page: &[u8], entries: Range<usize>) -> impl Iterator<Item = EntryPlace> {
        let at = |relative: u32| PhysicalOffset(self.base.0 + u64::from(relative));
        let items = entries.map(move |index| Page::new(page).item::<EntryItem>(index));
        items.map(move |item| EntryPlace {
            position: at(item.position),
            bytes: item.size,
            block: at(item.block),
        })
    }

    /// Marks that cover the segment up to the end of its last block.
    pub(super) fn mark_count(&self) -> u64 {
        (self.end.position.0 - self.base.0).div_ceil(page::MARK_BYTES)
    }

    fn in_segment(&self, relative_position: u32) -> bool {
        u64::from(relative_position) < self.end.position.0 - self.base.0
    }

    fn check_entries(&self, page: Page<'_>, number: u32) -> Result<(), &'static str> {
        let before = u64::from(number - self.entries.first_page) * EntryItem::PER_PAGE as u64;
        let expected = (self.entries.items - before).min(EntryItem::PER_PAGE as u64);
        if page.kind() != page::KIND_ENTRIES || page.count() as u64 != expected {
            return Err("it does not have the entries that it should have");
        }
        let fits = |item: EntryItem| item.block <= item.position && self.in_segment(item.position);
        page.items().all(fits).then_some(()).ok_or("an entry is not in the segment")
    }
}

fn check_hashed<T: Item>(
    page: Page<'_>,
    section: &Section,
    number: u32,
    fits: impl Fn(T) -> bool,
) -> Result<(), &'static str> {
    if page.kind() != T::KIND || page.count() > T::PER_PAGE {
        return Err("it does not have the items that it should have");
    }
    if page.continues() && section.is_last(number) {
        return Err("it goes on beyond its section");
    }
    page.items().all(fits).then_some(()).ok_or("an item is not of this segment")
}

fn chain_point(bytes: &[u8], at: usize) -> ChainPoint {
    ChainPoint {
        position: PhysicalOffset(u64_at(bytes, at)),
        previous_crc: u32_at(bytes, at + 8),
        store_timestamp: StoreTimestamp(u64_at(bytes, at + 16) as i64),
    }
}

fn write_chain_point(bytes: &mut [u8], point: ChainPoint) {
    bytes[0..8].copy_from_slice(&point.position.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&point.previous_crc.to_le_bytes());
    bytes[16..24].copy_from_slice(&point.store_timestamp.0.to_le_bytes());
}
