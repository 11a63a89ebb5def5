//! `ringmq log verify`: what a start without any index would find, and whether each index says the same.
//!
//! The log is read once, by the very code that recovers it. While a segment goes by, what it says is collected; at its
//! end its index is held to that. Memory is bounded by the messages of one segment.

use std::collections::BTreeMap;
use std::io;
use std::mem;

use ringmq_protocol::types::{PhysicalOffset, QueueId, QueueOffset};
use ringmq_storage::{
    ChainPoint, Damage, DataDir, FsStore, IndexFile, IndexHeader, IndexProblem, LogConfig, QueueKey, Record,
    RecoverError, SegmentBase, SegmentEnd, SegmentFacts, SegmentStore, TopicHash, Visitor, read_index_header,
    recover,
};

use super::{LogError, ShardFiles, records};

/// A message that was in a stretch that is damaged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LostMessage {
    pub position: PhysicalOffset,
    pub topic: String,
    pub queue: QueueId,
    pub offset: QueueOffset,
    pub bytes: u32,
}

/// A part of the log that had been durable and cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub damage: Damage,
    /// As far as an index names them, by position.
    pub lost: Vec<LostMessage>,
}

/// What is wrong with the files of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileProblem {
    /// The segment is gone. How many messages it had, if its index is there.
    SegmentMissing { messages: Option<u64> },
    /// It can be written anew.
    IndexMissing,
    /// It can be written anew.
    IndexWrong { problem: String },
}

/// What was found in one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardReport {
    pub shard: u16,
    pub segments: usize,
    pub indexes: usize,
    pub blocks: u64,
    pub records: u64,
    pub bytes: u64,
    /// Where the log ends.
    pub end: PhysicalOffset,
    /// Bytes behind the end that were never acknowledged: the writes that a crash tore. Normal.
    pub cut_bytes: u64,
    pub damaged: Vec<Stretch>,
    /// Records in right blocks that are none.
    pub unreadable: Vec<String>,
    pub files: Vec<(SegmentBase, FileProblem)>,
    /// What is worth knowing and right.
    pub notes: Vec<String>,
}

impl ShardReport {
    /// Everything that is not as it should be.
    pub fn problems(&self) -> usize {
        self.damaged.len() + self.unreadable.len() + self.files.len()
    }
}

/// Checks one shard of a stopped directory. `progress` is told how many bytes of the log were read since it was last told.
pub fn verify(data: &DataDir, shard: u16, progress: &mut dyn FnMut(u64)) -> Result<ShardReport, LogError> {
    let mut files = ShardFiles::of(data, shard);
    let failed = files.recover_error();
    let list_failed = |source| failed(RecoverError::List(source));
    let segments: Vec<SegmentBase> =
        files.store.segments().map_err(list_failed)?.into_iter().map(|(base, _)| base).collect();
    let mut reading = Reading {
        config: &files.config,
        facts: SegmentFacts::new(&files.config),
        indexes: BTreeMap::new(),
        problems: BTreeMap::new(),
        topics: BTreeMap::new(),
        gone: Vec::new(),
        ended: Vec::new(),
        read_to: segments.first().map_or(0, |base| base.0),
        progress,
    };
    for (base, file_bytes) in files.store.indexes().map_err(list_failed)? {
        match read_index_header(&mut files.store, &files.config, base, file_bytes) {
            Ok(header) => drop(
                reading
                    .indexes
                    .insert(base, Index { file: IndexFile::new(&files.config, header), is_checked: false }),
            ),
            Err(problem) => drop(reading.problems.insert(base, problem.to_string())),
        }
    }
    let newest = reading.indexes.keys().next_back().copied();
    let indexes = reading.indexes.len() + reading.problems.len();
    let (recovered, found) = recover(&mut files.store, &files.config, None, &mut reading).map_err(&failed)?;

    let mut report = ShardReport {
        shard,
        segments: segments.len(),
        indexes,
        blocks: found.blocks,
        records: found.records,
        bytes: found.bytes,
        end: found.end,
        cut_bytes: found.cut_bytes,
        unreadable: found.unreadable_records.iter().map(ToString::to_string).collect(),
        ..ShardReport::default()
    };
    if let Some(last) = recovered.blocks.last().filter(|last| reading.indexes.contains_key(last)) {
        let blocks = recovered.blocks.segment(last).expect("it is the last").clone();
        let is_behind = reading.indexes[&last].file.header().end.position < recovered.end.position;
        if is_behind {
            // The segment was left for the next one, of which nothing survived a crash: a start knows that.
            reading.indexes.remove(&last);
            report.notes.push(format!("the log went on in segment {last} after its index was written"));
        } else {
            reading.hold_index(&mut files.store, SegmentEnd { end: recovered.end, blocks });
        }
    }
    reading.check_pages_of_the_rest(&mut files.store);
    let mut damaged = found.damaged;
    let said_end = reading.indexes.values().map(|index| index.file.header().end.position).max();
    if let Some(said_end) = said_end.filter(|said| *said > found.end) {
        // No block is left that testifies for these, but an index does: it was written when all of them were durable.
        damaged.push(Damage { position: found.end, bytes: said_end.0 - found.end.0 });
    }
    reading.settle_gone(&damaged, files.config.segment_bytes);
    report.damaged = damaged.into_iter().map(|damage| reading.stretch(&mut files.store, damage)).collect();
    reading.report_files(&segments, newest, recovered.blocks.last(), &mut report);
    Ok(report)
}

struct Index {
    file: IndexFile,
    is_checked: bool,
}

struct Reading<'a> {
    config: &'a LogConfig,
    /// Of the segment that is being read.
    facts: SegmentFacts,
    /// Whose header can be read.
    indexes: BTreeMap<SegmentBase, Index>,
    /// Indexes that cannot be used.
    problems: BTreeMap<SegmentBase, String>,
    /// Every topic that the log speaks of, with the number of its queues.
    topics: BTreeMap<String, u32>,
    /// Segments whose index names messages in places where there is none.
    gone: Vec<(SegmentBase, u64)>,
    ended: Vec<SegmentBase>,
    read_to: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Visitor<FsStore> for Reading<'_> {
    fn record(&mut self, record: Record<'_>, before: ChainPoint) {
        if before.position.0 > self.read_to {
            (self.progress)(before.position.0 - self.read_to);
            self.read_to = before.position.0;
        }
        match record {
            Record::Message { position, message } => {
                self.topic(message.topic(), message.queue_id().0.saturating_add(1));
                self.facts.message(position, &message);
            }
            Record::Gap { position, bytes, .. } => self.facts.gap(position, bytes),
            Record::Metadata { kind: records::TOPIC_DELETED, body, .. } => {
                if let Ok(topic) = std::str::from_utf8(body) {
                    self.facts.topic_deleted(topic);
                }
            }
            Record::Metadata { kind, body, .. } => {
                if let Some((topic, queues)) = records::topic_of(kind, body) {
                    self.topic(&topic, queues);
                }
            }
        }
    }

    fn segment_ended(&mut self, ended: SegmentEnd, store: &mut FsStore) -> io::Result<bool> {
        self.ended.push(ended.blocks.base());
        self.hold_index(store, ended);
        Ok(true)
    }
}

impl Reading<'_> {
    fn topic(&mut self, name: &str, queues: u32) {
        match self.topics.get_mut(name) {
            Some(known) => *known = queues.max(*known),
            None => drop(self.topics.insert(name.to_owned(), queues)),
        }
    }

    /// Holds the index of a segment that was read to what was read.
    fn hold_index(&mut self, store: &mut FsStore, ended: SegmentEnd) {
        let facts = mem::replace(&mut self.facts, SegmentFacts::new(self.config));
        let base = ended.blocks.base();
        let Some(index) = self.indexes.get_mut(&base) else { return };
        index.is_checked = true;
        let checked =
            check_pages(&mut index.file, store).and_then(|()| facts.check(store, &ended, &mut index.file));
        match checked {
            Ok(0) => {}
            Ok(gone) => self.gone.push((base, gone)),
            Err(problem) => drop(self.problems.insert(base, problem.to_string())),
        }
    }

    /// Indexes of segments of which nothing was read.
    fn check_pages_of_the_rest(&mut self, store: &mut FsStore) {
        for (base, index) in self.indexes.iter_mut().filter(|(_, index)| !index.is_checked) {
            if let Err(problem) = check_pages(&mut index.file, store) {
                self.problems.insert(*base, problem.to_string());
            }
        }
    }

    /// Messages at places where nothing is are lost if the place is damaged; otherwise the index is wrong.
    fn settle_gone(&mut self, damaged: &[Damage], segment_bytes: u64) {
        for (base, gone) in mem::take(&mut self.gone) {
            let is_damaged = damaged.iter().any(|damage| overlaps(damage, base, segment_bytes));
            if !is_damaged {
                self.problems.insert(base, format!("it names {gone} messages where the log has none"));
            }
        }
    }

    /// What a damaged stretch held, as far as an index that can be read names it.
    fn stretch(&mut self, store: &mut FsStore, damage: Damage) -> Stretch {
        let mut lost = Vec::new();
        let range = damage.position.0..damage.position.0 + damage.bytes;
        let segment_bytes = self.config.segment_bytes;
        for (_, index) in self.indexes.iter_mut().filter(|(base, _)| overlaps(&damage, **base, segment_bytes))
        {
            for (topic, queues) in &self.topics {
                for queue in (0..*queues).map(QueueId) {
                    let key = QueueKey { topic: TopicHash::of(topic), queue_id: queue };
                    // An index with a wrong page is reported; what its other pages name is still worth saying.
                    let entries = index.file.entries(store, key, PhysicalOffset(0)).unwrap_or_default();
                    let inside =
                        entries.iter().filter(|(_, sealed)| range.contains(&sealed.entry.position.0));
                    lost.extend(inside.map(|(offset, sealed)| LostMessage {
                        position: sealed.entry.position,
                        topic: topic.clone(),
                        queue,
                        offset: *offset,
                        bytes: sealed.entry.size,
                    }));
                }
            }
        }
        lost.sort_unstable();
        Stretch { damage, lost }
    }

    fn report_files(
        self,
        segments: &[SegmentBase],
        newest: Option<SegmentBase>,
        last: Option<SegmentBase>,
        report: &mut ShardReport,
    ) {
        let mut files: BTreeMap<SegmentBase, FileProblem> = BTreeMap::new();
        for (base, problem) in self.problems {
            files.insert(base, FileProblem::IndexWrong { problem });
        }
        let is_there = |base: &SegmentBase| segments.binary_search(base).is_ok();
        let has_index = |base: &SegmentBase| self.indexes.contains_key(base);
        for base in segments.iter().filter(|base| Some(**base) < newest && !has_index(base)) {
            files.entry(*base).or_insert(FileProblem::IndexMissing);
        }
        for base in self.ended.iter().filter(|base| Some(**base) > newest && !files.contains_key(base)) {
            report.notes.push(format!("segment {base} has no index yet: the next start writes it"));
        }
        // A hole in the row of segments; and what has an index and no segment.
        let holes = segments.windows(2).flat_map(|pair| {
            let step = usize::try_from(self.config.segment_bytes).expect("a segment fits the address space");
            (pair[0].0..pair[1].0).step_by(step).skip(1).map(SegmentBase)
        });
        let orphans = self.indexes.keys().copied().filter(|base| !is_there(base));
        for base in holes.chain(orphans) {
            let messages = self.indexes.get(&base).map(|index| index.file.header().messages);
            files.insert(base, FileProblem::SegmentMissing { messages });
        }
        if let Some(last) = last {
            // The segment that the log ends in is not full: its index, if there is any, is left aside by a start.
            files.retain(|base, problem| {
                *base != last
                    || !matches!(problem, FileProblem::IndexWrong { .. } | FileProblem::IndexMissing)
            });
        }
        report.files = files.into_iter().collect();
    }
}

fn check_pages(file: &mut IndexFile, store: &mut FsStore) -> Result<(), IndexProblem> {
    let pages = file.header().pages;
    (0..pages).try_for_each(|page| file.check_page(store, page))
}

fn overlaps(damage: &Damage, base: SegmentBase, segment_bytes: u64) -> bool {
    damage.position.0 < base.0 + segment_bytes && base.0 < damage.position.0 + damage.bytes
}

/// The header of an index, if it can be read.
pub(super) fn header_of(files: &mut ShardFiles, base: SegmentBase) -> Option<IndexHeader> {
    let mut listed = files.store.indexes().ok()?.into_iter();
    let (_, file_bytes) = listed.find(|(index, _)| *index == base)?;
    read_index_header(&mut files.store, &files.config, base, file_bytes).ok()
}
