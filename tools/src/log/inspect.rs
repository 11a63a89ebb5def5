//! `ringmq log inspect`: what is in a log, block by block, while it is read.

use ringmq_protocol::types::PhysicalOffset;
use ringmq_storage::block::{Block, BlockHeader};
use ringmq_storage::{
    ChainPoint, Damage, DataDir, Found, Record, SegmentBase, SegmentScan, SegmentStore, read_index_header,
    records,
};

use super::{LogError, ShardFiles};

/// Where to look, and how far.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Blocks that end before are left out.
    pub from: PhysicalOffset,
    /// Most items of a shard; a block with records counts as its records.
    pub count: u64,
    pub with_records: bool,
}

/// What is shown.
pub enum Item<'a> {
    Block(BlockHeader),
    /// Bytes that had been durable and are no block.
    Gap(Damage),
    Record(Record<'a>),
    /// Not a record, though its block is right.
    Unreadable(String),
}

/// Shows one shard of a stopped directory. `show` ends it with an error of its own.
pub fn inspect<E: From<LogError>>(
    data: &DataDir,
    shard: u16,
    range: Range,
    mut show: impl FnMut(Item<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut files = ShardFiles::of(data, shard);
    let failed = LogError::at(&files.directory);
    let segments = files.store.segments().map_err(&failed)?;
    let indexes = files.store.indexes().map_err(&failed)?;
    let first = SegmentBase::of(range.from, files.config.segment_bytes);
    let mut before: Option<ChainPoint> = None;
    let mut left = range.count;
    for (base, file_bytes) in segments.into_iter().filter(|(base, _)| *base >= first) {
        let index = indexes.iter().find(|(index, _)| *index == base).and_then(|(_, index_bytes)| {
            read_index_header(&mut files.store, &files.config, base, *index_bytes).ok()
        });
        let until = index.map(|header| header.end.position);
        let mut scan = SegmentScan::new(&files.config, base, file_bytes, before, until);
        loop {
            if left == 0 {
                return Ok(());
            }
            match scan
                .next(&mut files.store)
                .map_err(LogError::at(&files.directory.join(base.file_name())))?
            {
                Found::End => break,
                Found::Gap(damage) if damage.position.0 + damage.bytes > range.from.0 => {
                    left -= 1;
                    show(Item::Gap(damage))?;
                }
                Found::Block(block) if block.header.end() > range.from.0 => {
                    show(Item::Block(block.header))?;
                    left -= if range.with_records { show_records(&block, left, &mut show)? } else { 1 };
                }
                _ => {}
            }
        }
        before = scan.chain();
    }
    Ok(())
}

fn show_records<E>(
    block: &Block<'_>,
    most: u64,
    show: &mut impl FnMut(Item<'_>) -> Result<(), E>,
) -> Result<u64, E> {
    let mut count = 0;
    for record in records(block).take(usize::try_from(most).unwrap_or(usize::MAX)) {
        count += 1;
        show(match record {
            Ok(record) => Item::Record(record),
            Err(error) => Item::Unreadable(error.to_string()),
        })?;
    }
    Ok(count)
}
