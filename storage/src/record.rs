//! Records inside a block: stored messages as clients know them, and the log's own metadata records in the same
//! envelope, so that one loop walks over both.
//!
//!   i32 totalSize | i32 magic | … message …              big-endian, as RocketMQ stores it
//!   i32 totalSize | i32 RINGMQ_RECORD_MAGIC | u16 kind | body

use ringmq_protocol::message::StoredMessage;
use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};
use thiserror::Error;

use crate::block::{Block, HEADER_BYTES};

/// Second word of a metadata record; no magic of a message.
pub const RINGMQ_RECORD_MAGIC: i32 = i32::from_be_bytes(*b"RMQr");
/// Bytes of a metadata record before its body.
pub const METADATA_HEADER_BYTES: usize = 10;

/// One record of the log.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A stored message, in a block whose checksum was right.
    Message { position: PhysicalOffset, message: StoredMessage<'a> },
    /// A setting, an offset …: see the table of kinds in docs/format.md.
    Metadata { position: PhysicalOffset, store_timestamp: StoreTimestamp, kind: u16, body: &'a [u8] },
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
