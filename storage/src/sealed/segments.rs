//! Look-ups over all sealed segments of a shard.
//!
//! A queue is in the index of every segment since its first message: with its runs, or with the offset that its next
//! message gets. Its first offsets in the segments only grow, so the segment of an offset is found by binary search.
//! An index that was made from its segment alone does not know the queues that were idle there. So where a queue is
//! absent, the search takes the next segment that has it. That is right whatever is absent: an absent queue has no message there.
//!
//! Every look-up is a pure function of the headers and of pages in the cache. It either has all pages that it needs, or it
//! names those that it misses and knows nothing of the attempt afterwards.

use std::ops::Range;

use bytes::Bytes;
use ringmq_protocol::types::{PhysicalOffset, QueueOffset, StoreTimestamp, TagsCode};

use super::cache::PageCache;
use super::header::Section;
use super::page::{EntryItem, Item, KeyItem, MARK_BYTES, MarkItem, Page, QueueItem, key_home, queue_home};
use super::{IndexError, IndexHeader, Missing, PageId, SealedEntry, SealedQueue};
use crate::block::LogIdentity;
use crate::key_table::KeyHash;
use crate::queue_index::Entry;
use crate::segment::SegmentBase;

/// Most pages that a look-up asks for at a time, and most segments that a search for a key looks at together.
const ASKED_AT_ONCE_MAX: usize = 64;

/// The headers of all sealed segments, and the pages read lately.
pub struct SealedSegments {
    identity: LogIdentity,
    segment_bytes: u64,
    /// Oldest first.
    headers: Vec<IndexHeader>,
    cache: PageCache,
}

/// Consecutive offsets of a queue in a segment; at least one.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    first_entry: u32,
    count: u32,
}

impl Run {
    fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// What a segment knows of a queue.
struct Place {
    /// In order of offset.
    runs: Vec<Run>,
    /// Of the first run, or of the message that comes next in a later segment.
    first: u64,
}

impl SealedSegments {
    /// Holds at most `cache_pages` pages. A look-up that touches `p` pages needs room for `p + 64`: for a key that is a page
    /// or two a segment within the time range, for all else a page for each step of a binary search.
    pub fn new(identity: LogIdentity, segment_bytes: u64, cache_pages: usize) -> Self {
        Self { identity, segment_bytes, headers: Vec::new(), cache: PageCache::new(cache_pages) }
    }

    /// Adds a segment that is newer than all before. Segments between may be lost.
    ///
    /// Panics if it is not newer.
    pub fn push(&mut self, header: IndexHeader) {
        let newest = self.headers.last();
        assert!(newest.is_none_or(|newest| newest.base < header.base), "segments are sealed in order");
        self.headers.push(header);
    }

    /// Takes the place of the index of the same segment, which was rebuilt. Pages of the old one are forgotten.
    ///
    /// Panics if there is no such segment.
    pub fn replace(&mut self, header: IndexHeader) {
        let base = header.base;
        let at = self.at(base).expect("an index is rebuilt for a segment that there is");
        self.headers[at] = header;
        self.cache.remove_segments(|segment| segment == base);
    }

    /// Forgets the segments below `base`, and their pages.
    pub fn remove_below(&mut self, base: SegmentBase) {
        let kept = self.headers.partition_point(|header| header.base < base);
        self.headers.drain(..kept);
        self.cache.remove_segments(|segment| segment < base);
    }

    /// Oldest first.
    pub fn headers(&self) -> impl DoubleEndedIterator<Item = &IndexHeader> + ExactSizeIterator {
        self.headers.iter()
    }

    /// That of one segment, if it is sealed.
    pub fn header(&self, base: SegmentBase) -> Option<&IndexHeader> {
        self.at(base).map(|at| &self.headers[at])
    }

    /// Takes a page that was read. Bytes that are not that page are not taken, and the error says why.
    pub fn put_page(&mut self, id: PageId, bytes: Bytes) -> Result<(), IndexError> {
        let header = self.header(id.segment).ok_or(IndexError::NotAsked)?;
        header.check_page(&bytes, self.identity, id.page)?;
        self.cache.put(id, bytes);
        Ok(())
    }

    /// Entries of a queue at or after `from`, in order, at most `max`, all of one segment: the first that has any.
    /// None if no sealed segment has any.
    pub fn entries(
        &mut self,
        queue: SealedQueue,
        from: QueueOffset,
        max: usize,
    ) -> Result<Vec<(QueueOffset, SealedEntry)>, Missing> {
        match self.run_at_or_after(queue, from.0)? {
            Some((at, place)) if max > 0 => self.collect(at, &place.runs, from.0, max),
            _ => Ok(Vec::new()),
        }
    }

    /// The first offset of a queue that is in a sealed segment.
    pub fn first_offset(&mut self, queue: SealedQueue) -> Result<Option<QueueOffset>, Missing> {
        self.offset_at_or_after(queue, 0)
    }

    /// The first message of a queue that was stored at or after `time`, or, with `after`, after it.
    /// `None` if all in sealed segments are older.
    pub fn first_at_time(
        &mut self,
        queue: SealedQueue,
        time: StoreTimestamp,
        after: bool,
    ) -> Result<Option<QueueOffset>, Missing> {
        let is_before = |stored: i64, time: i64| if after { stored <= time } else { stored < time };
        let older = self.headers.partition_point(|header| is_before(header.last_timestamp.0, time.0));
        let range = self.since(queue.born);
        let Some((at, place)) = self.first_present(queue, range.start.max(older)..range.end)? else {
            return Ok(None);
        };
        // In units of the entries: with a shift, messages of the same unit count as stored at the same time.
        let header = &self.headers[at];
        let (first, shift) = (header.first_timestamp.0, header.time_shift);
        let unit = time.0.saturating_sub(first) >> shift;
        for run in &place.runs {
            let index = self.partition_run(at, run, |entry| is_before(i64::from(entry.time), unit))?;
            if index < run.count {
                return Ok(Some(QueueOffset(run.first + u64::from(index))));
            }
        }
        // Whatever comes behind this segment is not older than its last message.
        let end = place.runs.last().map_or(place.first, Run::end);
        self.offset_at_or_after(queue, end)
    }

    /// The last offset of a queue below `before` that is in a sealed segment.
    pub fn previous(
        &mut self,
        queue: SealedQueue,
        before: QueueOffset,
    ) -> Result<Option<QueueOffset>, Missing> {
        let mut range = self.since(queue.born);
        let mut before = before.0;
        while let Some(limit) = before.checked_sub(1) {
            let Some((at, place)) = self.newest_from(queue, range.clone(), limit)? else { break };
            if let Some(run) = place.runs.iter().rev().find(|run| run.first < before) {
                return Ok(Some(QueueOffset(run.end().min(before) - 1)));
            }
            // Idle there: what is before its next offset is in older segments.
            before = place.first;
            range.end = at;
        }
        Ok(None)
    }

    /// Positions of messages that may have the key, newest first, at most `max`, all below `below`, of segments in which
    /// any message was stored in `begin..=end`.
    ///
    /// Two keys can share the 32 bits of the hash that the index keeps: compare the key in the message.
    pub fn find_key(
        &mut self,
        hash: KeyHash,
        begin: StoreTimestamp,
        end: StoreTimestamp,
        below: PhysicalOffset,
        max: usize,
    ) -> Result<Vec<PhysicalOffset>, Missing> {
        let until = self.headers.partition_point(|header| header.base.0 < below.0);
        let in_time = |header: &IndexHeader| header.first_timestamp <= end && header.last_timestamp >= begin;
        let segments: Vec<usize> = (0..until).rev().filter(|at| in_time(&self.headers[*at])).collect();
        let mut found = Vec::new();
        for group in segments.chunks(ASKED_AT_ONCE_MAX) {
            let mut missing = Vec::new();
            for at in group {
                if found.len() >= max && missing.is_empty() {
                    return Ok(found);
                }
                if let Err(Missing(pages)) = self.find_key_in(*at, hash, below, max, &mut found) {
                    missing.extend(pages);
                }
            }
            if !missing.is_empty() {
                missing.sort_unstable();
                return Err(Missing(missing));
            }
        }
        Ok(found)
    }

    /// Adds what one segment has of a key, newest first, until there are `max`.
    fn find_key_in(
        &mut self,
        at: usize,
        hash: KeyHash,
        below: PhysicalOffset,
        max: usize,
        found: &mut Vec<PhysicalOffset>,
    ) -> Result<(), Missing> {
        let section = self.headers[at].keys;
        if section.homes == 0 {
            return Ok(());
        }
        let base = self.headers[at].base.0;
        let hash = (hash.0 >> 32) as u32;
        let home = section.first_page + key_home(hash, section.homes);
        let is_before = |item: &KeyItem| {
            item.hash() < hash || item.hash() == hash && base + u64::from(item.position()) < below.0
        };
        let (mut number, mut index) = self.locate(at, section, home, is_before)?;
        loop {
            let bytes = self.page(at, number)?;
            for item in (0..index).rev().map(|index| Page::new(&bytes).item::<KeyItem>(index)) {
                if item.hash() != hash || found.len() >= max {
                    return Ok(());
                }
                let position = PhysicalOffset(base + u64::from(item.position()));
                // A message that carries a key twice is there twice.
                if found.last() != Some(&position) {
                    found.push(position);
                }
            }
            if number == home {
                return Ok(());
            }
            number -= 1;
            index = Page::new(&self.page(at, number)?).count();
        }
    }

    /// The start of a block at or before a position, not far from it; `None` if the position is in no sealed segment.
    pub fn block_before(&mut self, position: PhysicalOffset) -> Result<Option<PhysicalOffset>, Missing> {
        let base = SegmentBase::of(position, self.segment_bytes);
        let Some(at) = self.at(base).filter(|at| position < self.headers[*at].end.position) else {
            return Ok(None);
        };
        let marks = self.headers[at].marks;
        let index = ((position.0 - base.0) / MARK_BYTES) as usize; // a segment has at most 2^16
        let bytes = self.page(at, marks.first_page + (index / MarkItem::PER_PAGE) as u32)?;
        let page = Page::new(&bytes);
        let mark = (index % MarkItem::PER_PAGE < page.count()).then(|| page.item(index % MarkItem::PER_PAGE));
        Ok(mark.map(|MarkItem(start)| PhysicalOffset(base.0 + u64::from(start))))
    }

    /// The segment that has the first message of a queue at or after an offset.
    fn run_at_or_after(
        &mut self,
        queue: SealedQueue,
        offset: u64,
    ) -> Result<Option<(usize, Place)>, Missing> {
        let mut range = self.since(queue.born);
        let mut from = offset;
        loop {
            if let Some((at, place)) = self.newest_from(queue, range.clone(), from)? {
                if place.runs.last().is_some_and(|run| run.end() > offset) {
                    return Ok(Some((at, place)));
                }
                range.start = at + 1;
            }
            // All below `from` is done; what comes next says at which offset.
            let Some((at, place)) = self.first_present(queue, range.clone())? else { return Ok(None) };
            range.start = at;
            from = place.first;
        }
    }

    fn offset_at_or_after(
        &mut self,
        queue: SealedQueue,
        offset: u64,
    ) -> Result<Option<QueueOffset>, Missing> {
        let found = self.run_at_or_after(queue, offset)?;
        let run = found.and_then(|(_, place)| place.runs.into_iter().find(|run| run.end() > offset));
        Ok(run.map(|run| QueueOffset(run.first.max(offset))))
    }

    /// Among the segments of `range` that have the queue, the newest whose first offset is at most `offset`.
    fn newest_from(
        &mut self,
        queue: SealedQueue,
        range: Range<usize>,
        offset: u64,
    ) -> Result<Option<(usize, Place)>, Missing> {
        let (mut low, mut high) = (range.start, range.end);
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first_present(queue, middle..high)? {
                Some((at, place)) if place.first <= offset => {
                    found = Some((at, place));
                    low = at + 1;
                }
                _ => high = middle,
            }
        }
        Ok(found)
    }

    /// The first segment of `range` that has the queue.
    fn first_present(
        &mut self,
        queue: SealedQueue,
        range: Range<usize>,
    ) -> Result<Option<(usize, Place)>, Missing> {
        for at in range.clone() {
            match self.place(at, queue) {
                Ok(Some(place)) => return Ok(Some((at, place))),
                Ok(None) => {}
                Err(missing) if at == range.start => return Err(missing),
                // Where one index does not know a queue, the next may not either: one read for many of them.
                Err(Missing(mut pages)) => {
                    let homes = (at + 1..range.end).filter_map(|at| self.home(at, queue));
                    pages.extend(
                        homes.filter(|id| !self.cache.contains(*id)).take(ASKED_AT_ONCE_MAX - pages.len()),
                    );
                    return Err(Missing(pages));
                }
            }
        }
        Ok(None)
    }

    /// The page to look at first for a queue.
    fn home(&self, at: usize, queue: SealedQueue) -> Option<PageId> {
        let header = &self.headers[at];
        let page = header.queues.first_page + queue_home(queue.key.rank().hash, header.queues.homes);
        (header.queues.homes > 0).then_some(PageId { segment: header.base, page })
    }

    /// What a segment knows of a queue; `None` if nothing.
    fn place(&mut self, at: usize, queue: SealedQueue) -> Result<Option<Place>, Missing> {
        let Some(home) = self.home(at, queue) else { return Ok(None) };
        let section = self.headers[at].queues;
        let rank = queue.key.rank();
        let mut runs = Vec::new();
        let mut idle = None;
        let (mut number, mut index) =
            self.locate(at, section, home.page, |item: &QueueItem| item.key.rank() < rank)?;
        'pages: loop {
            let bytes = self.page(at, number)?;
            let page = Page::new(&bytes);
            for item in (index..page.count()).map(|index| page.item::<QueueItem>(index)) {
                if item.key != queue.key {
                    break 'pages;
                }
                match item.count {
                    0 => idle = Some(item.first.0),
                    count => runs.push(Run { first: item.first.0, first_entry: item.first_entry, count }),
                }
            }
            if !page.continues() {
                break;
            }
            (number, index) = (number + 1, 0);
        }
        if self.headers[at].base.0 < queue.born.0 {
            // The queue's first segment. Runs of a deleted topic of the same name can be there too.
            runs = self.since_born(at, runs, queue.born)?;
        }
        let first = runs.first().map(|run| run.first).or(idle);
        Ok(first.map(|first| Place { runs, first }))
    }

    /// The parts of runs that are at or behind a position.
    fn since_born(&mut self, at: usize, runs: Vec<Run>, born: PhysicalOffset) -> Result<Vec<Run>, Missing> {
        let base = self.headers[at].base.0;
        let mut kept = Vec::new();
        for run in runs {
            let skipped = self.partition_run(at, &run, |entry| base + u64::from(entry.position) < born.0)?;
            if skipped < run.count {
                kept.push(Run {
                    first: run.first + u64::from(skipped),
                    first_entry: run.first_entry + skipped,
                    count: run.count - skipped,
                });
            }
        }
        Ok(kept)
    }

    /// Entries of runs of a segment at or after `from`, at most `max`.
    fn collect(
        &mut self,
        at: usize,
        runs: &[Run],
        from: u64,
        max: usize,
    ) -> Result<Vec<(QueueOffset, SealedEntry)>, Missing> {
        let mut found = Vec::new();
        for run in runs.iter().filter(|run| run.end() > from) {
            let mut offset = run.first.max(from);
            while offset < run.end() && found.len() < max {
                // Below `count`, so the difference fits.
                let entry = run.first_entry + (offset - run.first) as u32;
                let (number, index) = self.entry_page(at, entry);
                let bytes = self.page(at, number)?;
                let page = Page::new(&bytes);
                let wanted = (run.end() - offset).min((max - found.len()) as u64);
                let until = (index as u64 + wanted).min(page.count() as u64) as usize;
                for item in (index..until).map(|index| page.item::<EntryItem>(index)) {
                    found.push((QueueOffset(offset), self.sealed_entry(at, item)));
                    offset += 1;
                }
            }
        }
        Ok(found)
    }

    fn sealed_entry(&self, at: usize, item: EntryItem) -> SealedEntry {
        let header = &self.headers[at];
        let millis = i64::try_from(u64::from(item.time) << header.time_shift).unwrap_or(i64::MAX);
        SealedEntry {
            entry: Entry {
                position: PhysicalOffset(header.base.0 + u64::from(item.position)),
                size: item.size,
                tags_code: TagsCode(item.tags_code),
            },
            store_timestamp: StoreTimestamp(header.first_timestamp.0.saturating_add(millis)),
            block: PhysicalOffset(header.base.0 + u64::from(item.block)),
        }
    }

    /// Index in a run of the first entry that is not before what is looked for.
    fn partition_run(
        &mut self,
        at: usize,
        run: &Run,
        is_before: impl Fn(&EntryItem) -> bool,
    ) -> Result<u32, Missing> {
        let (mut low, mut high) = (0, run.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (number, index) = self.entry_page(at, run.first_entry + middle);
            let bytes = self.page(at, number)?;
            if is_before(&Page::new(&bytes).item(index)) { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The page and the index in it of an entry.
    fn entry_page(&self, at: usize, entry: u32) -> (u32, usize) {
        let per_page = EntryItem::PER_PAGE as u32;
        (self.headers[at].entries.first_page + entry / per_page, (entry % per_page) as usize)
    }

    /// The page, and the index in it, of the first item of a hashed section that is not before what is looked for; the index is
    /// behind the page's items if the item can only be in a later page with another home. `home` is the home page of
    /// what is looked for: all items of earlier pages are before it.
    ///
    /// Reads one page if nothing spilled from it; else the logarithm of how far the items spilled.
    fn locate<T: Item>(
        &mut self,
        at: usize,
        section: Section,
        home: u32,
        is_before: impl Fn(&T) -> bool,
    ) -> Result<(u32, usize), Missing> {
        let last = section.first_page + (section.pages - 1);
        // Whether what is looked for is in a page behind this one.
        let is_behind = |page: Page<'_>| {
            let newest = page.count().checked_sub(1).map(|index| page.item(index));
            page.continues() && newest.is_some_and(|item| is_before(&item))
        };
        // The page at `low - 1`, if not before `home`, is behind; the one at `high` is not.
        let (mut low, mut high, mut step) = (home, home, 1);
        while is_behind(Page::new(&self.page(at, high)?)) {
            low = high + 1;
            // No page goes on beyond its section.
            high = last.min(high.saturating_add(step));
            step = step.saturating_mul(2);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if is_behind(Page::new(&self.page(at, middle)?)) { low = middle + 1 } else { high = middle }
        }
        let bytes = self.page(at, low)?;
        Ok((low, Page::new(&bytes).partition(is_before)))
    }

    /// Segments that may have messages at or behind a position.
    fn since(&self, born: PhysicalOffset) -> Range<usize> {
        let first = SegmentBase::of(born, self.segment_bytes);
        self.headers.partition_point(|header| header.base < first)..self.headers.len()
    }

    fn at(&self, base: SegmentBase) -> Option<usize> {
        self.headers.binary_search_by_key(&base, |header| header.base).ok()
    }

    fn page(&mut self, at: usize, page: u32) -> Result<Bytes, Missing> {
        let id = PageId { segment: self.headers[at].base, page };
        self.cache.get(id).ok_or_else(|| Missing(vec![id]))
    }
}
