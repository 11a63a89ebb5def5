//! Records inside a block: stored messages as clients know them, and the log's own metadata records in the same
//! envelope, so that one loop walks over both.
//!
//!   i32 totalSize | i32 magic | … message …              big-endian, as RocketMQ stores it
//!   i32 totalSize | i32 RINGMQ_RECORD_MAGIC | u16 kind | body
//!
//! One kind of metadata is the storage's own: a *gap*, where messages were that a rewriting of the segment left out.

use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};
use thiserror::Error;

use crate::block::{Block, HEADER_BYTES};

/// Second word of a metadata record; no magic of a message.
pub const RINGMQ_RECORD_MAGIC: i32 = i32::from_be_bytes(*b"RMQr");
/// Bytes of a metadata record before its body.
pub const METADATA_HEADER_BYTES: usize = 10;
/// Kind of a gap. Its body: the checksum that its block had before anything was left out (u32 LE), then zeros.
pub const GAP_KIND: u16 = 15;
/// No message is shorter, so that a gap fits where one was.
pub(crate) const GAP_BYTES_MIN: usize = METADATA_HEADER_BYTES + 4;

/// One record of the log.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A stored message, in a block whose checksum was right.
    Message { position: PhysicalOffset, message: StoredMessage<'a> },
    /// A setting, an offset …: see the table of kinds in docs/format.md.
    Metadata { position: PhysicalOffset, store_timestamp: StoreTimestamp, kind: u16, body: &'a [u8] },
    /// Messages that nobody could ask for any more were here, side by side.
    Gap {
        position: PhysicalOffset,
        bytes: u32,
        /// Checksum of the block as it was first written: what the block behind it names.
        original_crc: u32,
    },
}

impl Record<'_> {
    /// Where the record begins.
    pub fn position(&self) -> PhysicalOffset {
        match self {
            Record::Message { position, .. }
            | Record::Metadata { position, .. }
            | Record::Gap { position, .. } => *position,
        }
    }

    /// Length of the whole record.
    pub fn bytes(&self) -> usize {
        match self {
            Record::Message { message, .. } => message.as_bytes().len(),
            Record::Metadata { body, .. } => metadata_bytes(body.len()),
            Record::Gap { bytes, .. } => *bytes as usize,
        }
    }
}

/// A record that is none, in a block whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no record at {position}: {problem}")]
pub struct RecordError {
    pub position: PhysicalOffset,
    pub problem: &'static str,
}

/// Size of a metadata record.
pub fn metadata_bytes(body_bytes: usize) -> usize {
    METADATA_HEADER_BYTES + body_bytes
}

/// Writes a metadata record; `bytes` has exactly its size.
pub fn write_metadata(kind: u16, body: &[u8], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), metadata_bytes(body.len()));
    let total = i32::try_from(bytes.len()).expect("records are smaller than a block");
    bytes[0..4].copy_from_slice(&total.to_be_bytes());
    bytes[4..8].copy_from_slice(&RINGMQ_RECORD_MAGIC.to_be_bytes());
    bytes[8..10].copy_from_slice(&kind.to_be_bytes());
    bytes[METADATA_HEADER_BYTES..].copy_from_slice(body);
}

/// Writes a gap over `bytes`, which are zeros.
pub(crate) fn write_gap(original_crc: u32, bytes: &mut [u8]) {
    let total = i32::try_from(bytes.len()).expect("records are smaller than a block");
    bytes[0..4].copy_from_slice(&total.to_be_bytes());
    bytes[4..8].copy_from_slice(&RINGMQ_RECORD_MAGIC.to_be_bytes());
    bytes[8..10].copy_from_slice(&GAP_KIND.to_be_bytes());
    bytes[METADATA_HEADER_BYTES..GAP_BYTES_MIN].copy_from_slice(&original_crc.to_le_bytes());
}

/// The checksum that the block behind this one names: its own, unless messages were left out since.
pub(crate) fn chain_crc(block: &Block<'_>) -> u32 {
    let mut rest = block.payload;
    for _ in 0..block.header.record_count {
        let Ok(record) = split_record(rest) else { break };
        if let Some(original) = original_crc(record) {
            return original;
        }
        rest = &rest[record.len()..];
    }
    block.header.crc
}

/// What a record says that is a gap.
fn original_crc(record: &[u8]) -> Option<u32> {
    let head = record.get(4..METADATA_HEADER_BYTES)?;
    let is_gap = head[..4] == RINGMQ_RECORD_MAGIC.to_be_bytes() && head[4..] == GAP_KIND.to_be_bytes();
    let crc: &[u8; 4] = record.get(METADATA_HEADER_BYTES..)?.first_chunk()?;
    is_gap.then(|| u32::from_le_bytes(*crc))
}

/// The records of a block, in order. The first error ends it.
pub fn records<'a>(block: &Block<'a>) -> impl Iterator<Item = Result<Record<'a>, RecordError>> + use<'a> {
    let start = block.header.position.0 + HEADER_BYTES as u64;
    let store_timestamp = block.header.store_timestamp;
    let payload = block.payload;
    let mut at = 0usize;
    let mut left = block.header.record_count;
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let position = PhysicalOffset(start + at as u64);
        let record = split_record(&payload[at..]).and_then(|bytes| {
            at += bytes.len();
            parse_record(bytes, position, store_timestamp)
        });
        if record.is_err() {
            left = 0;
        }
        Some(record.map_err(|problem| RecordError { position, problem }))
    })
}

fn parse_record(
    bytes: &[u8],
    position: PhysicalOffset,
    store_timestamp: StoreTimestamp,
) -> Result<Record<'_>, &'static str> {
    if bytes[4..8] != RINGMQ_RECORD_MAGIC.to_be_bytes() {
        let (message, rest) =
            StoredMessage::parse(bytes).map_err(|_| "neither a message nor a record of RingMQ")?;
        return match rest.is_empty() && message.physical_offset() == position {
            true => Ok(Record::Message { position, message }),
            false => Err("a message that belongs elsewhere"),
        };
    }
    let body = bytes.get(METADATA_HEADER_BYTES..).ok_or("a metadata record without a kind")?;
    if let Some(original_crc) = original_crc(bytes) {
        return Ok(Record::Gap { position, bytes: bytes.len() as u32, original_crc }); // smaller than a block
    }
    Ok(Record::Metadata { position, store_timestamp, kind: u16::from_be_bytes([bytes[8], bytes[9]]), body })
}

/// The first record of `bytes`, by its size.
fn split_record(bytes: &[u8]) -> Result<&[u8], &'static str> {
    let total: &[u8; 4] = bytes.first_chunk().ok_or("the block ends before its last record")?;
    let total = usize::try_from(i32::from_be_bytes(*total)).ok().filter(|total| *total >= 8);
    bytes.get(..total.ok_or("an impossible size")?).ok_or("a size beyond the block")
}

#[cfg(test)]
mod tests;
