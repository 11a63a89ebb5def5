//! For whoever looks at the files of a log without being its broker: block by block through one segment, and whether an
//! index says of its segment what the log says.
//!
//! Nothing here writes. `recover` is the judge of what a log is; this module only looks, at any pace and from anywhere.
//!
//! Invariants
//!   C1  a block is shown only if its checksum is right, it is where a block may start, and it follows the one before
//!   C2  of a segment whose end is known, every byte is part of a block that is shown, lies between two places where blocks
//!       may start, or is reported as a gap

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::types::{PhysicalOffset, QueueOffset, StoreTimestamp};
use thiserror::Error;

use crate::block::{BLOCK_ALIGN, BLOCK_MAGIC, Block, BlockHeader, HEADER_BYTES, round_up};
use crate::config::LogConfig;
use crate::indexes::take_message;
use crate::key_table::{KeyHash, TopicHash};
use crate::queue_index::QueueIndex;
use crate::record::{GAP_BYTES_MIN, chain_crc};
use crate::recover::{Damage, SegmentEnd, SegmentStore};
use crate::sealed::{
    ChainPoint, EntryPlace, IndexHeader, Missing, PAGE_BYTES, PageId, QueueKey, SealedEntry, SealedQueue,
    SealedSegments,
};
use crate::segment::{BlockEntry, SegmentBase, SegmentBlocks};
use crate::tail::{MEMORY_ALIGN, aligned_buffer};

/// Bytes of one read, unless a block is larger. Segments of tests are not to fit into one.
const WINDOW_BYTES: usize = if cfg!(test) { 64 << 10 } else { 1 << 20 };
/// Entries that are compared at a time.
const ENTRIES_AT_ONCE: usize = 1024;
/// Room for every page that one look-up touches; the rest is speed.
const CACHE_PAGES: usize = 1024;
/// In such pages the disk gives room and takes it back.
pub(crate) const DISK_PAGE: u64 = 4096;

/// What comes next in a segment.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    Block(Block<'a>),
    /// No right block here, but the segment goes on behind it. Of no bytes if there is a right block that does not follow the one
    /// before.
    Gap(Damage),
    End,
}

/// One segment, block by block. It may be dropped or left alone at any point; it holds no file.
#[derive(Debug)]
pub struct SegmentScan {
    config: LogConfig,
    base: SegmentBase,
    file_bytes: u64,
    /// Where the last block ended.
    at: u64,
    /// Checksum of that block, where it is known.
    previous_crc: Option<u32>,
    time: StoreTimestamp,
    /// Where the last block of the segment ends, if that is known.
    until: Option<u64>,
    /// The block behind the gap that was shown last.
    pending: Option<BlockHeader>,
    window: BytesMut,
    window_start: u64,
    window_bytes: usize,
}

impl SegmentScan {
    /// `before`: where the log was before, if it is known; not looked at unless that is in the segment directly before. `until`: the end of this segment's last block, if it is known,
    /// as it is of a sealed one; otherwise a gap is only reported where a block behind it proves that it had been durable.
    pub fn new(
        config: &LogConfig,
        base: SegmentBase,
        file_bytes: u64,
        before: Option<ChainPoint>,
        until: Option<PhysicalOffset>,
    ) -> Self {
        let is_first = base.0 == 0;
        let ends_here = |before: &ChainPoint| {
            let last = PhysicalOffset(before.position.0.saturating_sub(1));
            SegmentBase::of(last, config.segment_bytes).0 + config.segment_bytes == base.0
        };
        let before = before.filter(ends_here);
        Self {
            config: config.clone(),
            base,
            file_bytes: file_bytes.min(config.segment_bytes),
            at: base.0,
            previous_crc: before.map(|before| before.previous_crc).or(is_first.then_some(0)),
            time: before.map_or(StoreTimestamp(i64::MIN), |before| before.store_timestamp),
            until: until.map(|until| until.0),
            pending: None,
            window: BytesMut::new(),
            window_start: 0,
            window_bytes: 0,
        }
    }

    /// How far the scan has come.
    pub fn position(&self) -> PhysicalOffset {
        PhysicalOffset(self.at)
    }

    /// The end of the last block that was shown, to begin the next segment with; `None` behind a gap.
    pub fn chain(&self) -> Option<ChainPoint> {
        let point =
            |previous_crc| ChainPoint { position: self.position(), previous_crc, store_timestamp: self.time };
        self.previous_crc.map(point)
    }

    /// The next block or gap. After an error the scan may be asked again; it is where it was.
    pub fn next<S: SegmentStore>(&mut self, store: &mut S) -> io::Result<Found<'_>> {
        if let Some(header) = self.pending.take() {
            return self.show(store, header);
        }
        if self.until.is_some_and(|until| self.at >= until) {
            return Ok(Found::End);
        }
        let at = self.at;
        for place in [at, round_up(at, u64::from(self.config.sector_bytes))] {
            if let Some(header) = self.block_at(store, place)?
                && self.previous_crc.is_none_or(|crc| crc == header.previous_crc)
            {
                return self.show(store, header);
            }
        }
        let next = self.search(store)?;
        let end = match (next, self.until) {
            (Some(header), _) => header.position.0,
            (None, Some(until)) => until,
            (None, None) => return Ok(Found::End),
        };
        (self.at, self.previous_crc, self.pending) = (end, None, next);
        Ok(Found::Gap(Damage { position: PhysicalOffset(at), bytes: end - at }))
    }

    fn show<S: SegmentStore>(&mut self, store: &mut S, header: BlockHeader) -> io::Result<Found<'_>> {
        if !self.load(store, header.position.0, block_len(&header))? {
            return Err(io::Error::other(
                "a block was there when it was first read, and not the second time",
            ));
        }
        let header = self.header_in_window(header.position.0).unwrap_or(header);
        self.at = header.end();
        self.time = header.store_timestamp;
        self.previous_crc = Some(chain_crc(&self.block(&header)));
        Ok(Found::Block(self.block(&header)))
    }

    fn header_in_window(&self, position: u64) -> Option<BlockHeader> {
        let bytes = self.in_window(position, HEADER_BYTES);
        BlockHeader::read(bytes, self.config.identity(), PhysicalOffset(position)).ok()
    }

    /// A block that is loaded.
    fn block(&self, header: &BlockHeader) -> Block<'_> {
        let bytes = self.in_window(header.position.0, block_len(header));
        header.unchecked(bytes).expect("the length was loaded")
    }

    /// The whole block at a position that may follow in time.
    fn block_at<S: SegmentStore>(&mut self, store: &mut S, position: u64) -> io::Result<Option<BlockHeader>> {
        if !self.load(store, position, HEADER_BYTES)? {
            return Ok(None);
        }
        let Some(header) = self.header_in_window(position) else { return Ok(None) };
        let len = block_len(&header);
        if header.store_timestamp < self.time || !self.load(store, position, len)? {
            return Ok(None);
        }
        // A segment that was rewritten meanwhile has another file now, in which the block has the same length.
        let header = self.header_in_window(position).filter(|header| block_len(header) == len);
        let Some(header) = header else { return Ok(None) };
        Ok(header.verify(self.in_window(position, len)).is_ok().then_some(header))
    }

    /// The first right block behind the last, if the segment goes on there.
    fn search<S: SegmentStore>(&mut self, store: &mut S) -> io::Result<Option<BlockHeader>> {
        let end = self.until.unwrap_or(self.base.0 + self.file_bytes);
        let mut first = None;
        let mut at = round_up(self.at, BLOCK_ALIGN as u64);
        while at < end {
            let step = (end - at).min(MEMORY_ALIGN as u64 - at % MEMORY_ALIGN as u64);
            if !self.load(store, at, step as usize)? {
                break; // the file is shorter
            }
            let words = self.in_window(at, step as usize).chunks(BLOCK_ALIGN).enumerate();
            let is_start = |word: &[u8]| word.starts_with(&BLOCK_MAGIC.to_le_bytes());
            let starts: Vec<u64> = words
                .filter(|(_, word)| is_start(word))
                .map(|(word, _)| at + (word * BLOCK_ALIGN) as u64)
                .collect();
            for start in starts {
                let Some(header) = self.block_at(store, start)? else { continue };
                let first = *first.get_or_insert(header);
                if self.until.is_some() || header.durable_at_seal() > self.at {
                    return Ok(Some(first));
                }
            }
            at += step;
        }
        Ok(None)
    }

    fn in_window(&self, position: u64, len: usize) -> &[u8] {
        let at = (position - self.window_start) as usize; // the window was loaded for this
        &self.window[at..at + len]
    }

    /// Gets these bytes into the window; false if the file ends before.
    fn load<S: SegmentStore>(&mut self, store: &mut S, position: u64, len: usize) -> io::Result<bool> {
        let end = position + len as u64;
        if position >= self.window_start && end <= self.window_start + self.window_bytes as u64 {
            return Ok(true);
        }
        if position < self.base.0 || end > self.base.0 + self.file_bytes {
            return Ok(false);
        }
        let start = position - position % MEMORY_ALIGN as u64;
        let left = usize::try_from(self.base.0 + self.file_bytes - start).unwrap_or(usize::MAX);
        let wanted = ((end - start) as usize).max(WINDOW_BYTES).min(left).next_multiple_of(MEMORY_ALIGN);
        if self.window.len() < wanted {
            self.window = aligned_buffer(wanted);
            self.window.resize(wanted, 0);
        }
        (self.window_start, self.window_bytes) = (start, 0);
        self.window_bytes = store.read_at(self.base, start - self.base.0, &mut self.window[..wanted])?;
        Ok(end <= start + self.window_bytes as u64)
    }
}

fn block_len(header: &BlockHeader) -> usize {
    usize::try_from(header.block_bytes()).expect("bounded by BLOCK_BYTES_LIMIT")
}

/// What is wrong with an index.
#[derive(Debug, Error)]
pub enum IndexProblem {
    #[error("page {page} {problem}")]
    Page { page: u32, problem: String },
    #[error("it says that its segment ends at {said}, and the log that it ends at {found}")]
    End { said: PhysicalOffset, found: PhysicalOffset },
    #[error("it does not say what the log says: {0}")]
    Differs(String),
}

/// Reads the first page of the index of a segment, and compares the length of the file with what that says.
pub fn read_index_header<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
    base: SegmentBase,
    file_bytes: u64,
) -> Result<IndexHeader, IndexProblem> {
    let failed = |problem: String| IndexProblem::Page { page: 0, problem };
    let mut page = vec![0; PAGE_BYTES];
    store.read_index(base, 0, &mut page).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let header = IndexHeader::parse(&page, config.identity(), base, config.segment_bytes)
        .map_err(|error| failed(format!("is damaged: {error}")))?;
    match header.file_bytes() {
        whole if whole == file_bytes => Ok(header),
        whole => Err(failed(format!("says that the file has {whole} bytes, and it has {file_bytes}"))),
    }
}

/// What would be left of a segment without the messages of some topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// Room on the disk.
    pub bytes: u64,
    /// Those of the topics that have messages in it.
    pub topics: BTreeSet<TopicHash>,
}

/// The index file of one segment, read page by page as look-ups need it.
pub struct IndexFile {
    config: LogConfig,
    header: IndexHeader,
    sealed: SealedSegments,
}

impl IndexFile {
    pub fn new(config: &LogConfig, header: IndexHeader) -> Self {
        let mut sealed = SealedSegments::new(config.identity(), config.segment_bytes, CACHE_PAGES);
        sealed.push(header.clone());
        Self { config: config.clone(), header, sealed }
    }

    pub fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// Reads one page and checks it; page 0 is the header.
    pub fn check_page<S: SegmentStore>(&mut self, store: &mut S, page: u32) -> Result<(), IndexProblem> {
        if page == 0 {
            let found = read_index_header(store, &self.config, self.header.base, self.header.file_bytes())?;
            let is_same = found == self.header;
            let problem = "is not the one that was read first".to_owned();
            return is_same.then_some(()).ok_or(IndexProblem::Page { page, problem });
        }
        let bytes = self.read_page(store, page)?;
        let id = PageId { segment: self.header.base, page };
        self.sealed.put_page(id, Bytes::from(bytes)).expect("it was checked");
        Ok(())
    }

    /// All messages of a queue that the index names, in order of offset; of a topic that was deleted and made again
    /// only those from `born` on.
    pub fn entries<S: SegmentStore>(
        &mut self,
        store: &mut S,
        key: QueueKey,
        born: PhysicalOffset,
    ) -> Result<Vec<(QueueOffset, SealedEntry)>, IndexProblem> {
        let mut all: Vec<(QueueOffset, SealedEntry)> = Vec::new();
        loop {
            let from = all.last().map_or(QueueOffset(0), |(offset, _)| QueueOffset(offset.0 + 1));
            let queue = SealedQueue { key, born };
            let some = self.ask(store, |sealed| sealed.entries(queue, from, ENTRIES_AT_ONCE))?;
            if some.is_empty() {
                return Ok(all);
            }
            all.extend(some);
        }
    }

    /// How many messages the index names at places that are meant.
    fn count_entries<S: SegmentStore>(
        &self,
        store: &mut S,
        is_meant: impl Fn(PhysicalOffset) -> bool,
    ) -> Result<u64, IndexProblem> {
        let mut count = 0;
        self.each_entry(store, 0..u32::MAX, |entry| count += u64::from(is_meant(entry.position)))?;
        Ok(count)
    }

    /// What the segment would take on the disk without the messages of some topics; `None` if it has none of them. Reads the
    /// index alone. Pages that hold nothing but settings are not known to it: it may be some more.
    ///
    /// `bytes`: what the segment takes now. That is the answer too if the messages of the topics are less than `freed_min`.
    pub fn remains<S: SegmentStore>(
        &self,
        store: &mut S,
        topics: &BTreeSet<TopicHash>,
        bytes: u64,
        freed_min: u64,
    ) -> Result<Option<Remains>, IndexProblem> {
        let (mut dead, mut live, mut present) = (Vec::new(), Vec::new(), BTreeSet::new());
        for page in self.header.queue_pages() {
            let bytes = self.read_page(store, page)?;
            for (key, entries) in self.header.queues_in(&bytes).filter(|(_, entries)| !entries.is_empty()) {
                let is_dead = topics.contains(&key.topic);
                if is_dead {
                    present.insert(key.topic);
                }
                let of: &mut Vec<Range<u32>> = if is_dead { &mut dead } else { &mut live };
                match of.last_mut() {
                    Some(last) if last.end == entries.start => last.end = entries.end,
                    _ => of.push(entries),
                }
            }
        }
        if present.is_empty() {
            return Ok(None);
        }
        let mut dead_bytes = 0;
        let mut kept =
            vec![false; (self.header.end.position.0 - self.header.base.0).div_ceil(DISK_PAGE) as usize];
        let base = self.header.base.0;
        let mut keep = |from: u64, len: u64| {
            let (first, last) = ((from - base) / DISK_PAGE, (from - base + len - 1) / DISK_PAGE);
            let kept_to = kept.len();
            kept[(first as usize).min(kept_to)..(last as usize + 1).min(kept_to)].fill(true);
        };
        for entries in dead {
            self.each_entry(store, entries, |entry| {
                dead_bytes += u64::from(entry.bytes);
                keep(entry.block.0, (HEADER_BYTES + GAP_BYTES_MIN) as u64);
            })?;
        }
        if dead_bytes < freed_min {
            return Ok(Some(Remains { bytes, topics: present }));
        }
        for entries in live {
            self.each_entry(store, entries, |entry| {
                keep(entry.block.0, HEADER_BYTES as u64);
                keep(entry.position.0, u64::from(entry.bytes.max(1)));
            })?;
        }
        let bytes = kept.into_iter().filter(|kept| *kept).count() as u64 * DISK_PAGE;
        Ok(Some(Remains { bytes, topics: present }))
    }

    /// Shows entries by their numbers in the section of entries, as far as there are so many.
    fn each_entry<S: SegmentStore>(
        &self,
        store: &mut S,
        entries: Range<u32>,
        mut show: impl FnMut(EntryPlace),
    ) -> Result<(), IndexProblem> {
        for (page, entries) in self.header.entry_pages(entries) {
            let bytes = self.read_page(store, page)?;
            self.header.places_in(&bytes, entries).for_each(&mut show);
        }
        Ok(())
    }

    /// A page that was checked.
    fn read_page<S: SegmentStore>(&self, store: &mut S, page: u32) -> Result<Vec<u8>, IndexProblem> {
        let mut bytes = vec![0; PAGE_BYTES];
        let read = store.read_index(self.header.base, page, &mut bytes);
        read.map_err(|error| IndexProblem::Page { page, problem: format!("cannot be read: {error}") })?;
        let checked = self.header.check_page(&bytes, self.config.identity(), page);
        checked.map_err(|error| IndexProblem::Page { page, problem: format!("is damaged: {error}") })?;
        Ok(bytes)
    }

    /// A look-up with the pages that it misses.
    fn ask<S: SegmentStore, T>(
        &mut self,
        store: &mut S,
        look_up: impl Fn(&mut SealedSegments) -> Result<T, Missing>,
    ) -> Result<T, IndexProblem> {
        loop {
            match look_up(&mut self.sealed) {
                Ok(found) => return Ok(found),
                Err(Missing(pages)) => {
                    for id in pages {
                        self.check_page(store, id.page)?;
                    }
                }
            }
        }
    }
}

/// What the log says of one segment, to hold its index to. Filled in the order of the log.
#[derive(Debug)]
pub struct SegmentFacts {
    index: QueueIndex,
    config: LogConfig,
    has_deletions: bool,
    /// Where messages were left out, in order.
    gaps: Vec<Range<u64>>,
}

impl SegmentFacts {
    pub fn new(config: &LogConfig) -> Self {
        let index = QueueIndex::new(config.segment_bytes);
        Self { index, config: config.clone(), has_deletions: false, gaps: Vec::new() }
    }

    pub fn message(&mut self, position: PhysicalOffset, message: &StoredMessage<'_>) {
        self.has_deletions |= take_message(&mut self.index, position, message);
    }

    /// An index may go on naming what was here; it need not.
    pub fn gap(&mut self, position: PhysicalOffset, bytes: u32) {
        self.gaps.push(position.0..position.0 + u64::from(bytes));
    }

    fn is_in_gap(&self, position: PhysicalOffset) -> bool {
        let at = self.gaps.partition_point(|gap| gap.start <= position.0);
        at.checked_sub(1).is_some_and(|at| self.gaps[at].contains(&position.0))
    }

    /// An index may go on naming the messages of the topic; it need not.
    pub fn topic_deleted(&mut self, topic: &str) {
        self.index.remove_topic(topic);
        self.has_deletions = true;
    }

    /// Compares with an index, every message and every key. Answers how many messages the index has at places where no block is
    /// right any more, as far as they are in a queue of which the log still has a message here.
    pub fn check<S: SegmentStore>(
        mut self,
        store: &mut S,
        ended: &SegmentEnd,
        file: &mut IndexFile,
    ) -> Result<u64, IndexProblem> {
        let header = file.header().clone();
        // An index that goes on further is right: the last blocks of its segment are damaged.
        if header.end.position <= ended.end.position && header.end != ended.end {
            return Err(IndexProblem::End { said: header.end.position, found: ended.end.position });
        }
        let facts = self.index.freeze(ended.blocks.clone(), ended.end, header.replay_from);
        let differs = |what: String| Err(IndexProblem::Differs(what));
        let blocks = &ended.blocks;
        let is_exact =
            header.last_timestamp.0.saturating_sub(header.first_timestamp.0) <= i64::from(u32::MAX);
        let (mut known, mut gone) = (0, 0);
        let mut queues: Vec<QueueKey> = facts.runs.iter().map(|run| run.queue).collect();
        queues.sort_unstable();
        queues.dedup();
        for key in queues {
            let mut wanted: Vec<(u64, PhysicalOffset, u32, i32)> = Vec::new();
            for run in facts.runs.iter().filter(|run| run.queue == key) {
                let entries = run.entries.iter().zip(run.first.0..);
                wanted.extend(entries.map(|(entry, offset)| {
                    let position = PhysicalOffset(header.base.0 + u64::from(entry.relative_position));
                    (offset, position, entry.size, entry.tags_code)
                }));
            }
            wanted.sort_unstable();
            known += wanted.len() as u64;
            let born = if self.has_deletions { wanted.first().map(|first| first.1) } else { None };
            let found = file.entries(store, key, born.unwrap_or_default())?;
            let found = found.into_iter().filter(|(_, sealed)| !self.is_in_gap(sealed.entry.position));
            let mut found = found.filter(|(_, sealed)| {
                let is_there = find(blocks, sealed.entry.position).is_some();
                gone += u64::from(!is_there);
                is_there
            });
            let queue = format!("queue {} of topic {:016x}", key.queue_id.0, key.topic.0);
            for (offset, position, size, tags_code) in wanted {
                let Some((said, sealed)) = found.next() else {
                    return differs(format!("{queue} has a message with offset {offset} at {position}"));
                };
                let block = find(blocks, position).expect("a message is in a block");
                let entry = sealed.entry;
                if (said.0, entry.position, entry.size, entry.tags_code.0)
                    != (offset, position, size, tags_code)
                    || sealed.block.0 != header.base.0 + u64::from(block.relative_start)
                    || is_exact && sealed.store_timestamp != block.store_timestamp
                {
                    return differs(format!(
                        "the message of {queue} at {position} has the offset {offset}, in the index {} at {}",
                        said.0, entry.position
                    ));
                }
            }
            if let Some((said, sealed)) = found.next() {
                return differs(format!("{queue} has no offset {} at {}", said.0, sealed.entry.position));
            }
        }
        if header.messages < known + gone {
            return differs(format!("the segment has {known} messages, the index {}", header.messages));
        }
        let is_whole = header.end == ended.end && is_without_gaps(blocks, &self.config);
        if !self.gaps.is_empty() {
            known += file.count_entries(store, |position| self.is_in_gap(position))?;
        }
        if is_whole && !self.has_deletions && header.messages != known {
            return differs(format!("the segment has {known} messages, the index {}", header.messages));
        }
        self.check_keys(store, &facts.keys, file)?;
        for block in &blocks.blocks {
            let start = PhysicalOffset(header.base.0 + u64::from(block.relative_start));
            let found = file.ask(store, |sealed| sealed.block_before(start))?;
            if found.is_none_or(|found| found > start) {
                return differs(format!("the block at {start} is not found"));
            }
        }
        Ok(gone)
    }

    fn check_keys<S: SegmentStore>(
        &self,
        store: &mut S,
        keys: &crate::key_table::KeyTable,
        file: &mut IndexFile,
    ) -> Result<(), IndexProblem> {
        let base = file.header.base.0;
        let (begin, end) = (StoreTimestamp(i64::MIN), StoreTimestamp(i64::MAX));
        for (bucket, entries) in keys.buckets().iter().enumerate() {
            for entry in entries.iter() {
                // The 8 bits of the bucket and the next 24 are what an index keeps of a hash.
                let hash = KeyHash((bucket as u64) << 56 | entry >> 40 << 32);
                let position = PhysicalOffset(base + (entry & u64::from(u32::MAX)));
                let below = PhysicalOffset(position.0 + 1);
                let found = file.ask(store, |sealed| sealed.find_key(hash, begin, end, below, 1))?;
                if found.first() != Some(&position) {
                    let what = format!("a key of the message at {position} is not found");
                    return Err(IndexProblem::Differs(what));
                }
            }
        }
        Ok(())
    }
}

fn find(blocks: &SegmentBlocks, position: PhysicalOffset) -> Option<BlockEntry> {
    let relative = u32::try_from(position.0.checked_sub(blocks.base.0)?).ok()?;
    let at = blocks.blocks.partition_point(|block| block.relative_start <= relative).checked_sub(1)?;
    let block = blocks.blocks[at];
    (relative - block.relative_start < block.len).then_some(block)
}

/// Whether each block starts where one may start behind the block before.
fn is_without_gaps(blocks: &SegmentBlocks, config: &LogConfig) -> bool {
    let mut end = blocks.base.0;
    for block in &blocks.blocks {
        let start = blocks.base.0 + u64::from(block.relative_start);
        if start != end && start != round_up(end, u64::from(config.sector_bytes)) {
            return false;
        }
        end = start + u64::from(block.len);
    }
    true
}

#[cfg(test)]
mod tests;
