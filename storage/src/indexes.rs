//! The index files of a log: opened at start, written when a segment is full, rebuilt when one is gone or damaged.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::types::{PhysicalOffset, TagsCode};

use crate::block::BlockHeader;
use crate::config::LogConfig;
use crate::key_table::KeyHash;
use crate::queue_index::{Entry, OffsetUsed, QueueIndex, QueueIx};
use crate::record::Record;
use crate::recover::{Damage, RecoverError, SegmentEnd, SegmentStore, Visitor, list_segments, scan_segment};
use crate::sealed::{ChainPoint, IndexHeader, PAGE_BYTES, SegmentIndex, write_index};
use crate::segment::{SegmentBase, SegmentBlocks};
use crate::tail::{MEMORY_ALIGN, aligned_buffer};

/// Name of the file of a segment's index.
pub(crate) fn index_file_name(segment: SegmentBase) -> String {
    format!("{segment}{INDEX_SUFFIX}")
}

pub(crate) const INDEX_SUFFIX: &str = ".index";

/// What there is of indexes and segments, before the log is read.
#[derive(Debug, Default)]
pub struct Indexes {
    /// Of segments that exist, oldest first.
    pub sealed: Vec<IndexHeader>,
    /// Segments older than the newest of `sealed` whose index is absent or cannot be used, with the reason.
    pub to_rebuild: Vec<(SegmentBase, String)>,
    /// All other indexes that cannot be used, with the reason. Their segments are sealed again as the log is read.
    pub refused: Vec<(SegmentBase, String)>,
    /// Indexes whose segment is gone, between segments that are there.
    pub lost: Vec<IndexHeader>,
}

/// Reads the first page of every index.
pub fn open_indexes<S: SegmentStore>(store: &mut S, config: &LogConfig) -> Result<Indexes, RecoverError> {
    let segments: Vec<SegmentBase> =
        list_segments(store, config)?.into_iter().map(|(base, _)| base).collect();
    let files: BTreeMap<SegmentBase, u64> =
        store.indexes().map_err(RecoverError::List)?.into_iter().collect();
    let mut indexes = Indexes::default();
    let mut refused = BTreeMap::new();
    for (base, len) in &files {
        match read_header(store, config, *base, *len) {
            Ok(header) if segments.binary_search(base).is_ok() => indexes.sealed.push(header),
            Ok(header) => indexes.lost.push(header),
            Err(problem) => drop(refused.insert(*base, problem)),
        }
    }
    let newest = indexes.sealed.last().map(|header| header.base);
    for base in segments.into_iter().filter(|base| Some(*base) < newest) {
        if indexes.sealed.binary_search_by_key(&base, |header| header.base).is_err() {
            let problem = refused.remove(&base).unwrap_or_else(|| "there is none".to_owned());
            indexes.to_rebuild.push((base, problem));
        }
    }
    indexes.refused = refused.into_iter().collect();
    Ok(indexes)
}

fn read_header<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
    base: SegmentBase,
    len: u64,
) -> Result<IndexHeader, String> {
    let mut page = vec![0; PAGE_BYTES];
    store.read_index(base, 0, &mut page).map_err(|error| error.to_string())?;
    let header = IndexHeader::parse(&page, config.identity(), base, config.segment_bytes);
    let header = header.map_err(|error| error.to_string())?;
    match u64::from(header.pages) * PAGE_BYTES as u64 {
        whole if whole == len => Ok(header),
        whole => Err(format!("it has {len} bytes instead of {whole}")),
    }
}

/// Writes the index of a full segment.
pub fn seal<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
    index: &SegmentIndex,
) -> io::Result<IndexHeader> {
    let mut header = None;
    store.write_index(index.base, &mut |mut out| {
        header = Some(write_index(index, config.identity(), config.segment_bytes, &mut out)?);
        Ok(())
    })?;
    Ok(header.expect("write_index was called"))
}

/// Writes the index of a segment anew, from the segment alone. `replay_from` cannot be told from it: the log before the newest
/// checkpoint that was complete at the segment's end, or any point before that.
pub fn rebuild_index<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
    base: SegmentBase,
    replay_from: ChainPoint,
) -> Result<(IndexHeader, Vec<Damage>), RecoverError> {
    let mut rebuild = Rebuild { index: QueueIndex::new(config.segment_bytes) };
    let (scanned, report) = scan_segment(store, config, base, &mut rebuild)?;
    let empty = SegmentBlocks { base, blocks: Vec::new() };
    let blocks = scanned.blocks.segment(base).cloned().unwrap_or_else(|| Arc::new(empty));
    let index = rebuild.index.freeze(blocks, scanned.end, replay_from);
    let header =
        seal(store, config, &index).map_err(|source| RecoverError::Index { segment: base, source })?;
    let mut damaged = report.damaged;
    let end = index.end.position.0;
    if follows(store, config, base, &index.end) == Some(false) {
        damaged.push(Damage { position: index.end.position, bytes: base.0 + config.segment_bytes - end });
    }
    Ok((header, damaged))
}

/// Whether the segment behind goes on where this one ends; `None` if its first block does not tell.
fn follows<S: SegmentStore>(
    store: &mut S,
    config: &LogConfig,
    base: SegmentBase,
    end: &ChainPoint,
) -> Option<bool> {
    let next = base.0 + config.segment_bytes;
    let mut sector = aligned_buffer(MEMORY_ALIGN);
    sector.resize(MEMORY_ALIGN, 0);
    store.read_at(SegmentBase(next), 0, &mut sector).ok()?;
    let header = BlockHeader::read(&sector, config.identity(), PhysicalOffset(next)).ok()?;
    Some(header.previous_crc == end.previous_crc)
}

struct Rebuild {
    index: QueueIndex,
}

impl<S> Visitor<S> for Rebuild {
    fn record(&mut self, record: Record<'_>, _before: ChainPoint) {
        let Record::Message { position, message } = record else { return };
        take_message(&mut self.index, position, &message);
    }

    fn segment_ended(&mut self, _ended: SegmentEnd, _store: &mut S) -> io::Result<bool> {
        Ok(false)
    }
}

/// Adds a message as the log of one segment shows it. True if its topic must have been deleted and made again since the messages
/// before: those do not count any more.
pub(crate) fn take_message(
    index: &mut QueueIndex,
    position: PhysicalOffset,
    message: &StoredMessage<'_>,
) -> bool {
    let queue = index.queue(message.topic(), message.queue_id());
    let is_again = push_message(index, queue, position, message).is_err();
    if is_again {
        index.remove_topic(message.topic());
        let queue = index.queue(message.topic(), message.queue_id());
        push_message(index, queue, position, message).expect("a new queue takes any offset");
    }
    is_again
}

/// What the index takes from a message's properties, found in one pass.
#[derive(Default)]
struct Indexed<'a> {
    tags: &'a str,
    unique_key: &'a str,
    keys: &'a str,
}

impl<'a> Indexed<'a> {
    fn of(message: &StoredMessage<'a>) -> Self {
        let mut indexed = Self::default();
        for (name, value) in message.properties().raw() {
            let text = || std::str::from_utf8(value).unwrap_or_default();
            match name {
                b"TAGS" => indexed.tags = text(),
                b"UNIQ_KEY" => indexed.unique_key = text(),
                b"KEYS" => indexed.keys = text(),
                _ => {}
            }
        }
        indexed
    }
}

/// Adds a stored message, with its keys, to the index of the active segment.
pub fn push_message(
    index: &mut QueueIndex,
    queue: QueueIx,
    position: PhysicalOffset,
    message: &StoredMessage<'_>,
) -> Result<(), OffsetUsed> {
    let size = message.as_bytes().len() as u32; // smaller than a block
    let Indexed { tags, unique_key, keys } = Indexed::of(message);
    let entry = Entry { position, size, tags_code: TagsCode::of(tags) };
    index.push_at(queue, message.queue_offset(), entry)?;
    let topic = index.topic_hash(queue);
    for key in keys_of(unique_key, keys) {
        index.push_key(KeyHash::of(topic, key.as_bytes()), position);
    }
    Ok(())
}

/// The keys of a message: the unique key, and each word of KEYS.
pub fn keys_of<'a>(unique_key: &'a str, keys: &'a str) -> impl Iterator<Item = &'a str> {
    std::iter::once(unique_key).chain(keys.split(' ')).filter(|key| !key.is_empty())
}
