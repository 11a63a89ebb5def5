//! A block: what one write appends to the log. Byte map in docs/format.md.
//!
//!   header 48 bytes | records … | zeros up to a multiple of 8
//!
//! Invariants
//!   B1  every block starts at a multiple of 8 and ends at one, within one segment
//!   B2  the checksum covers every byte of the block but itself
//!   B3  `previous_crc` is the checksum of the block before: a chain
//!   B4  everything below `durable_at_seal` was on disk before this block was written

use ringmq_protocol::types::{PhysicalOffset, StoreTimestamp};
use thiserror::Error;

/// First four bytes of a block, `RMQB`.
pub const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"RMQB");
/// Version of the block layout that this code writes, and the only one that it reads.
pub const BLOCK_VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 48;
/// Blocks start and end at multiples of this.
pub const BLOCK_ALIGN: usize = 8;
/// No block is longer than this, whatever a header says; recovery never allocates more for one.
pub const BLOCK_BYTES_LIMIT: u32 = 64 << 20;

const POSITION_AT: usize = 8;
const CRC_AT: usize = 44;
const _: () = assert!(CRC_AT + 4 == HEADER_BYTES && HEADER_BYTES.is_multiple_of(BLOCK_ALIGN));

/// Which log a block belongs to. A block of another shard or directory is never taken for one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    pub shard: u16,
    /// Random, given to the data directory at its creation.
    pub log_id: u32,
}

/// The fields of a header, in the order of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    pub shard: u16,
    /// Physical offset of the header's first byte.
    pub position: PhysicalOffset,
    /// Bytes after the header, a multiple of 8.
    pub payload_bytes: u32,
    pub record_count: u32,
    /// Store timestamp of every message of the block.
    pub store_timestamp: StoreTimestamp,
    /// Checksum of the block before; 0 for the first block of a log.
    pub previous_crc: u32,
    pub log_id: u32,
    /// How far before `position` the durable part of the log ended when the block was sealed.
    pub undurable_bytes: u32,
    /// CRC-32C of the block without this field.
    pub crc: u32,
}

/// Why bytes are not the block that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    #[error("no block starts here")]
    NotABlock,
    #[error("block format version {0} is not known")]
    Version(u8),
    #[error("the block belongs to another shard, data directory or position")]
    Foreign,
    #[error("the block says it is {0} bytes long, which cannot be")]
    Length(u64),
    #[error("only a part of the block is there")]
    Short,
    #[error("the checksum is {found:#010x}, but the bytes give {computed:#010x}")]
    Checksum { found: u32, computed: u32 },
}

impl BlockHeader {
    /// Bytes of the whole block.
    pub fn block_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// Where the block ends.
    pub fn end(&self) -> u64 {
        self.position.0 + self.block_bytes()
    }

    /// Everything below this was durable when the block was sealed (B4).
    pub fn durable_at_seal(&self) -> u64 {
        self.position.0.saturating_sub(u64::from(self.undurable_bytes))
    }

    /// Writes the header over the first bytes of `block`, with the checksum of all of it, which it returns.
    pub(crate) fn seal(&self, block: &mut [u8]) -> u32 {
        assert_eq!(block.len() as u64, self.block_bytes(), "B1: a block is its header and its payload");
        block[0..4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
        block[4] = BLOCK_VERSION;
        block[5] = 0;
        block[6..8].copy_from_slice(&self.shard.to_le_bytes());
        block[POSITION_AT..POSITION_AT + 8].copy_from_slice(&self.position.0.to_le_bytes());
        block[16..20].copy_from_slice(&self.payload_bytes.to_le_bytes());
        block[20..24].copy_from_slice(&self.record_count.to_le_bytes());
        block[24..32].copy_from_slice(&self.store_timestamp.0.to_le_bytes());
        block[32..36].copy_from_slice(&self.previous_crc.to_le_bytes());
        block[36..40].copy_from_slice(&self.log_id.to_le_bytes());
        block[40..44].copy_from_slice(&self.undurable_bytes.to_le_bytes());
        let crc = checksum(block);
        block[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads a header that must be the one of `position` in this log. The checksum is not looked at: `verify` does.
    pub fn read(
        bytes: &[u8],
        identity: LogIdentity,
        position: PhysicalOffset,
    ) -> Result<BlockHeader, BlockError> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(BlockError::Short)?;
        let u32_at =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != BLOCK_MAGIC {
            return Err(BlockError::NotABlock);
        }
        let found = BlockHeader {
            shard: u16::from_le_bytes([header[6], header[7]]),
            position: PhysicalOffset(u64_at(POSITION_AT)),
            payload_bytes: u32_at(16),
            record_count: u32_at(20),
            store_timestamp: StoreTimestamp(u64_at(24) as i64), // the same 64 bits
            previous_crc: u32_at(32),
            log_id: u32_at(36),
            undurable_bytes: u32_at(40),
            crc: u32_at(CRC_AT),
        };
        if found.position != position || found.shard != identity.shard || found.log_id != identity.log_id {
            return Err(BlockError::Foreign);
        }
        if header[4] != BLOCK_VERSION || header[5] != 0 {
            return Err(BlockError::Version(header[4]));
        }
        if found.block_bytes() > u64::from(BLOCK_BYTES_LIMIT) || !found.block_bytes().is_multiple_of(8) {
            return Err(BlockError::Length(found.block_bytes()));
        }
        Ok(found)
    }

    /// Reads a header that must be the one that `place` had when its file was an older segment of this log.
    pub(crate) fn read_older(
        bytes: &[u8],
        identity: LogIdentity,
        place: u64,
        segment_bytes: u64,
    ) -> Option<BlockHeader> {
        let position = u64::from_le_bytes(*bytes.get(POSITION_AT..)?.first_chunk()?);
        let is_older = position < place && (place - position).is_multiple_of(segment_bytes);
        if is_older { Self::read(bytes, identity, PhysicalOffset(position)).ok() } else { None }
    }

    /// The block of bytes that `verify` was content with, or that never left the memory.
    pub fn unchecked<'a>(&self, bytes: &'a [u8]) -> Result<Block<'a>, BlockError> {
        let length =
            usize::try_from(self.block_bytes()).map_err(|_| BlockError::Length(self.block_bytes()))?;
        let block = bytes.get(..length).ok_or(BlockError::Short)?;
        Ok(Block { header: *self, payload: &block[HEADER_BYTES..] })
    }

    /// Checks the whole block against its checksum. `bytes` may be longer than the block.
    pub fn verify<'a>(&self, bytes: &'a [u8]) -> Result<Block<'a>, BlockError> {
        let block = self.unchecked(bytes)?;
        let computed = checksum(&bytes[..HEADER_BYTES + block.payload.len()]);
        if computed != self.crc {
            return Err(BlockError::Checksum { found: self.crc, computed });
        }
        Ok(block)
    }
}

/// A block whose checksum was right.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    pub header: BlockHeader,
    /// The records, and up to 7 zeros.
    pub payload: &'a [u8],
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..CRC_AT]), &block[HEADER_BYTES..])
}

/// The next multiple of `align`, a power of two.
pub(crate) fn round_up(number: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    (number + (align - 1)) & !(align - 1)
}

/// Where a block of at least `block_bytes` starts after one that ended at `end`.
/// `may_share`: no write in flight covers the sector in which the last block ended.
pub(crate) fn place(
    end: u64,
    may_share: bool,
    block_bytes: u64,
    sector_bytes: u64,
    segment_bytes: u64,
) -> u64 {
    let start = if may_share { end } else { round_up(end, sector_bytes) };
    let segment_end = start - start % segment_bytes + segment_bytes;
    if start + block_bytes <= segment_end { start } else { segment_end }
}

/// The places where recovery looks for the block after one that ended at `end`: all that `place` can give.
pub(crate) fn candidates(end: u64, sector_bytes: u64, segment_bytes: u64) -> [u64; 3] {
    [end, round_up(end, sector_bytes), end.div_ceil(segment_bytes) * segment_bytes]
}

#[cfg(test)]
mod tests;
