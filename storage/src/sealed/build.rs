//! From what is known of a full segment to its index file, in one pass over the output.
//!
//! The header comes first and says how many pages each section takes. So the places of hashed items are counted before
//! any is written: a page takes what spilled from the page before it, then the items whose home it is, as far as they fit.

use std::io;

use ringmq_protocol::types::{QueueOffset, StoreTimestamp};

use super::header::Section;
use super::page::{
    self, EntryItem, Item, KeyItem, MARK_BYTES, MarkItem, PAGE_HEADER_BYTES, QueueItem, homes_for,
};
use super::{IndexHeader, PAGE_BYTES, PageId, QueueKey, QueueRank, SealedRun, SegmentIndex};
use crate::block::LogIdentity;
use crate::key_table::KeyTable;
use crate::segment::{BlockEntry, SegmentBase};

/// Pages that are collected before they are written.
const BUFFER_PAGES: usize = 64;

/// Writes the index file of a segment, in order, and returns what its header says.
///
/// Panics if a message lies outside the blocks of the segment, or if a run is out of the order of the log.
pub(crate) fn write_index(
    index: &SegmentIndex,
    identity: LogIdentity,
    segment_bytes: u64,
    out: &mut impl io::Write,
) -> io::Result<IndexHeader> {
    assert_eq!(index.base, index.blocks.base, "a segment's index is of one segment");
    let queues = Queues::of(index);
    let homes: Vec<u32> = home_counts(
        homes_for::<QueueItem>(queues.ranked.len() as u64),
        queues.ranked.iter().map(|queue| queue.rank.hash),
        page::queue_home,
    );
    let key_homes: Vec<u32> =
        home_counts(homes_for::<KeyItem>(index.keys.len() as u64), key_hashes(&index.keys), page::key_home);

    let mut next_page = 1;
    let mut section = |pages: u64, homes: usize, items: u64| {
        let pages = u32::try_from(pages).expect("an index has fewer than 2^32 pages");
        let first_page = next_page;
        next_page += pages;
        Section { first_page, pages, homes: homes as u32, items }
    };
    let messages = queues.messages;
    let marks = marks(index);
    let header = IndexHeader {
        base: index.base,
        end: index.end,
        replay_from: index.replay_from,
        first_timestamp: index.first_timestamp,
        last_timestamp: index.end.store_timestamp,
        messages,
        time_shift: time_shift(index),
        entries: section(messages.div_ceil(EntryItem::PER_PAGE as u64), 0, messages),
        queues: section(pages_of::<QueueItem>(&homes), homes.len(), queues.ranked.len() as u64),
        keys: section(pages_of::<KeyItem>(&key_homes), key_homes.len(), index.keys.len() as u64),
        marks: section(marks.len().div_ceil(MarkItem::PER_PAGE) as u64, 0, marks.len() as u64),
        pages: next_page,
    };

    let mut pages = PageWriter::new(identity, index.base, out);
    header.write(pages.page(), identity, segment_bytes);
    pages.seal(page::KIND_HEADER, 0, 0, PAGE_BYTES)?;
    write_entries(index, &header, &queues, &mut pages)?;
    write_hashed(&homes, header.queues.pages, queues.items(index), &mut pages)?;
    write_hashed(&key_homes, header.keys.pages, sorted_keys(&index.keys), &mut pages)?;
    for marks in marks.chunks(MarkItem::PER_PAGE) {
        for (mark, bytes) in marks.iter().zip(pages.items_mut::<MarkItem>()) {
            mark.write(bytes);
        }
        pages.seal_items::<MarkItem>(marks.len(), 0)?;
    }
    pages.flush()?;
    assert_eq!(pages.number, header.pages, "the header says how long the file is");
    Ok(header)
}

/// For each multiple of `MARK_BYTES` up to the segment's end, the block from which to look for a position behind it.
fn marks(index: &SegmentIndex) -> Vec<MarkItem> {
    let blocks = &index.blocks.blocks[..];
    let mut at = 0;
    let mut mark = |multiple: u64| {
        let position = u32::try_from(multiple * MARK_BYTES).expect("segments have at most 4 GiB");
        if !blocks.is_empty() {
            at = advance(blocks, at, position);
        }
        MarkItem(blocks.get(at).map_or(0, |block| block.relative_start))
    };
    let bytes = index.end.position.0 - index.base.0;
    (0..bytes.div_ceil(MARK_BYTES)).map(&mut mark).collect()
}

/// The smallest shift that brings every time after the segment's first into 32 bits.
fn time_shift(index: &SegmentIndex) -> u8 {
    let last = index.blocks.blocks.iter().map(|block| block.store_timestamp).max();
    let span = last.map_or(0, |last| millis_after(last, index.first_timestamp));
    (u64::BITS - span.leading_zeros()).saturating_sub(u32::BITS) as u8
}

/// 0 if `time` is not after `first`.
fn millis_after(time: StoreTimestamp, first: StoreTimestamp) -> u64 {
    u64::try_from(time.0.saturating_sub(first.0)).unwrap_or(0)
}

/// Runs and idle queues in the order of the file. The entries of the runs are in the same order.
struct Queues {
    ranked: Vec<RankedQueue>,
    messages: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct RankedQueue {
    rank: QueueRank,
    first: QueueOffset,
    /// Relative position of the first message; tells runs of a deleted topic from later ones of the same name.
    position: Option<u32>,
    /// Index in `SegmentIndex::runs`; `None` for an idle queue.
    run: Option<u32>,
}

impl Queues {
    fn of(index: &SegmentIndex) -> Self {
        let run = |(number, run): (usize, &SealedRun)| RankedQueue {
            rank: run.queue.rank(),
            first: run.first,
            position: run.entries.slices().flatten().next().map(|entry| entry.relative_position),
            run: Some(u32::try_from(number).expect("fewer than 2^32 runs")),
        };
        let idle = |(key, first): &(QueueKey, QueueOffset)| RankedQueue {
            rank: key.rank(),
            first: *first,
            position: None,
            run: None,
        };
        let mut ranked: Vec<RankedQueue> =
            index.runs.iter().enumerate().map(run).chain(index.idle.iter().map(idle)).collect();
        ranked.sort_unstable();
        let messages: usize = index.runs.iter().map(|run| run.entries.len()).sum();
        assert!(u32::try_from(messages).is_ok(), "a segment of 4 GiB holds fewer than 2^32 messages");
        Self { ranked, messages: messages as u64 }
    }

    fn runs<'a>(&'a self, index: &'a SegmentIndex) -> impl Iterator<Item = &'a SealedRun> {
        self.ranked.iter().filter_map(|queue| queue.run).map(|run| &index.runs[run as usize])
    }

    fn items<'a>(&'a self, index: &'a SegmentIndex) -> impl Iterator<Item = QueueItem> + 'a {
        let mut entries = 0;
        self.ranked.iter().map(move |queue| {
            // `messages` fits 32 bits, so these do.
            let count = queue.run.map_or(0, |run| index.runs[run as usize].entries.len() as u32);
            let first_entry = entries;
            entries += count;
            QueueItem { key: queue.rank.key, first: queue.first, first_entry, count }
        })
    }
}

fn write_entries<W: io::Write>(
    index: &SegmentIndex,
    header: &IndexHeader,
    queues: &Queues,
    pages: &mut PageWriter<'_, W>,
) -> io::Result<()> {
    let blocks = &index.blocks.blocks[..];
    let mut count = 0;
    for run in queues.runs(index) {
        let mut at = None;
        for packed in run.entries.slices().flatten() {
            let position = packed.relative_position;
            let block_at = match at {
                None => blocks
                    .partition_point(|block| block.relative_start <= position)
                    .checked_sub(1)
                    .expect("a message is in a block"),
                Some(at) => advance(blocks, at, position),
            };
            at = Some(block_at);
            let block = blocks[block_at];
            let in_block = position.wrapping_sub(block.relative_start);
            assert!(in_block < block.len, "a message is in a block, and a run in the order of the log");
            let item = EntryItem {
                position,
                size: packed.size,
                tags_code: packed.tags_code,
                // `time_shift` is chosen so that it fits.
                time: (millis_after(block.store_timestamp, index.first_timestamp) >> header.time_shift)
                    as u32,
                block: block.relative_start,
            };
            item.write(pages.item::<EntryItem>(count));
            count += 1;
            if count == EntryItem::PER_PAGE {
                pages.seal_items::<EntryItem>(count, 0)?;
                count = 0;
            }
        }
    }
    if count > 0 { pages.seal_items::<EntryItem>(count, 0) } else { Ok(()) }
}

/// The last block that starts at or below a position, which is not before the block `at`. Costs the logarithm of the way.
#[inline]
fn advance(blocks: &[BlockEntry], at: usize, position: u32) -> usize {
    let starts_by =
        |index: usize| blocks.get(index).is_some_and(|block: &BlockEntry| block.relative_start <= position);
    let (mut low, mut step) = (at, 1);
    while starts_by(low + step) {
        low += step;
        step *= 2;
    }
    let (mut low, mut high) = (low, low + step);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if starts_by(middle) { low = middle } else { high = middle }
    }
    low
}

/// How many items have each page as their home.
fn home_counts<H>(homes: u64, hashes: impl Iterator<Item = H>, home: impl Fn(H, u32) -> u32) -> Vec<u32> {
    let homes = u32::try_from(homes).expect("an index has fewer than 2^32 pages");
    let mut counts = vec![0; homes as usize];
    for hash in hashes {
        counts[home(hash, homes) as usize] += 1;
    }
    counts
}

/// Pages of a hashed section: its homes, and behind them what spills from the last.
fn pages_of<T: Item>(homes: &[u32]) -> u64 {
    let per_page = T::PER_PAGE as u64;
    let spilled =
        homes.iter().fold(0u64, |spilled, home| (spilled + u64::from(*home)).saturating_sub(per_page));
    homes.len() as u64 + spilled.div_ceil(per_page)
}

/// Writes a hashed section, from its items in order.
fn write_hashed<T: Item, W: io::Write>(
    homes: &[u32],
    pages_wanted: u32,
    mut items: impl Iterator<Item = T>,
    pages: &mut PageWriter<'_, W>,
) -> io::Result<()> {
    let mut waiting = 0;
    for number in 0..pages_wanted as usize {
        waiting += homes.get(number).copied().unwrap_or(0) as usize;
        let count = waiting.min(T::PER_PAGE);
        waiting -= count;
        for (item, bytes) in items.by_ref().take(count).zip(pages.items_mut::<T>()) {
            item.write(bytes);
        }
        let flags = if waiting > 0 { page::FLAG_CONTINUES } else { 0 };
        pages.seal_items::<T>(count, flags)?;
    }
    assert!(waiting == 0 && items.next().is_none(), "I4: every item has a place");
    Ok(())
}

/// The top 32 bits of the keys' hashes, in any order.
fn key_hashes(keys: &KeyTable) -> impl Iterator<Item = u32> + '_ {
    keys.buckets()
        .iter()
        .enumerate()
        .flat_map(|(bucket, entries)| entries.iter().map(move |entry| (key_item(bucket, entry) >> 32) as u32))
}

/// From an entry of a bucket to the item of the file, without the 8 lowest bits of the hash: so items are in order as numbers.
#[inline]
fn key_item(bucket: usize, entry: u64) -> u64 {
    (bucket as u64) << 56 | entry >> 40 << 32 | entry & u64::from(u32::MAX)
}

/// The keys in order. A bucket is sorted when its turn comes.
fn sorted_keys(keys: &KeyTable) -> impl Iterator<Item = KeyItem> + '_ {
    let mut sorted: Vec<u64> = Vec::new();
    let (mut next_bucket, mut at) = (0, 0);
    std::iter::from_fn(move || {
        while at == sorted.len() {
            let bucket = keys.buckets().get(next_bucket)?;
            sorted.clear();
            sorted.extend(bucket.slices().flatten().map(|entry| key_item(next_bucket, *entry)));
            sorted.sort_unstable();
            next_bucket += 1;
            at = 0;
        }
        at += 1;
        Some(KeyItem(sorted[at - 1]))
    })
}

/// Collects pages and writes many at once.
struct PageWriter<'a, W> {
    identity: LogIdentity,
    base: SegmentBase,
    out: &'a mut W,
    buffer: Box<[u8]>,
    /// Pages of `buffer` that are sealed; the next is the one being filled.
    filled: usize,
    /// Number of the page being filled.
    number: u32,
}

impl<'a, W: io::Write> PageWriter<'a, W> {
    fn new(identity: LogIdentity, base: SegmentBase, out: &'a mut W) -> Self {
        let buffer = vec![0; BUFFER_PAGES * PAGE_BYTES].into_boxed_slice();
        Self { identity, base, out, buffer, filled: 0, number: 0 }
    }

    /// The page being filled. Its bytes are those of an older page, of the first page zeros.
    #[inline]
    fn page(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled * PAGE_BYTES..][..PAGE_BYTES]
    }

    #[inline]
    fn item<T: Item>(&mut self, index: usize) -> &mut [u8] {
        &mut self.page()[PAGE_HEADER_BYTES + index * T::BYTES..][..T::BYTES]
    }

    fn items_mut<T: Item>(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.page()[PAGE_HEADER_BYTES..].chunks_exact_mut(T::BYTES)
    }

    fn seal_items<T: Item>(&mut self, count: usize, flags: u8) -> io::Result<()> {
        self.seal(T::KIND, flags, count, PAGE_HEADER_BYTES + count * T::BYTES)
    }

    /// Ends the page; behind its first `used` bytes it gets zeros.
    fn seal(&mut self, kind: u8, flags: u8, count: usize, used: usize) -> io::Result<()> {
        let id = PageId { segment: self.base, page: self.number };
        let identity = self.identity;
        let page = self.page();
        page[used..].fill(0);
        page::seal(page, identity, id, kind, flags, count);
        self.filled += 1;
        self.number += 1;
        if self.filled == BUFFER_PAGES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer[..self.filled * PAGE_BYTES])?;
        self.filled = 0;
        Ok(())
    }
}
