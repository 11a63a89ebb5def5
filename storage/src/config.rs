//! Limits and sizes of a commit log. Every buffer and queue of this crate is bounded by one of these.

use crate::block::{BLOCK_BYTES_LIMIT, HEADER_BYTES, LogIdentity};

/// Sizes of one shard's commit log. `validate` says what must hold between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub shard: u16,
    /// Random number of the data directory, from its metadata.
    pub log_id: u32,
    /// Bytes of a segment file, a multiple of 1 MiB, at most 4 GiB. Fixed at the creation of the data directory.
    pub segment_bytes: u64,
    /// The open block is sealed before it grows beyond this, unless one reservation is larger.
    pub block_bytes_max: u32,
    /// Most bytes that one `append` or `reserve` may ask for.
    pub record_bytes_max: u32,
    /// Memory for the recent part of the log.
    pub tail_bytes: u64,
    /// Most memory for the recent part while old parts of it are held by sends that do not end.
    pub tail_bytes_hard_max: u64,
    /// Memory is taken in pieces of this size; each holds many blocks.
    pub chunk_bytes: u32,
    /// Most bytes that wait for the disk: the open block, sealed blocks and writes in flight.
    pub staged_bytes_max: u64,
    /// Unit in which the disk is written, a power of two.
    pub sector_bytes: u32,
    /// Start every block at a sector of its own, so that no sector with acknowledged bytes is ever written again.
    pub pad_blocks: bool,
    /// Most writes in flight.
    pub writes_in_flight_max: usize,
    /// With so many writes in flight the disk has enough to do: the open block grows until one of them ends, or it is full.
    pub writes_in_flight_enough: usize,
    /// Segments are prepared ahead in steps of at most this, a multiple of 1 MiB.
    pub prepare_step_bytes: u64,
    /// That goes on until this much is ready.
    pub prepare_ahead_bytes: u64,
}

/// Largest segment: positions within one are 32-bit numbers in the index.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 32;
const MIB: u64 = 1 << 20;

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            shard: 0,
            log_id: 0,
            segment_bytes: 1 << 30,
            block_bytes_max: 1 << 20,
            record_bytes_max: (4 << 20) + (128 << 10),
            tail_bytes: 64 << 20,
            tail_bytes_hard_max: 128 << 20,
            chunk_bytes: 8 << 20,
            staged_bytes_max: 32 << 20,
            sector_bytes: 4096,
            pad_blocks: false,
            writes_in_flight_max: 4,
            writes_in_flight_enough: 2,
            prepare_step_bytes: 32 << 20,
            prepare_ahead_bytes: 64 << 20,
        }
    }
}

impl LogConfig {
    pub fn identity(&self) -> LogIdentity {
        LogIdentity { shard: self.shard, log_id: self.log_id }
    }

    /// No write reaches farther than this from the end of the durable part, as long as it stays in the segment: what may be staged, with
    /// the header and the sector of the last block. Also more than a client can make the log hold in one piece.
    pub(crate) fn ahead_of_durable_bytes_max(&self) -> u64 {
        self.staged_bytes_max + u64::from(self.chunk_bytes)
    }

    /// What is wrong with the sizes, in one line that names the setting.
    pub fn validate(&self) -> Result<(), String> {
        let sector = u64::from(self.sector_bytes);
        let whole_block = u64::from(self.record_bytes_max) + HEADER_BYTES as u64 + 2 * sector;
        let check = |holds: bool, text: &str| if holds { Ok(()) } else { Err(text.to_string()) };
        check(
            self.sector_bytes.is_power_of_two() && (4096..=1 << 16).contains(&self.sector_bytes),
            "sector_bytes must be a power of two from 4096 to 65536",
        )?;
        check(
            self.segment_bytes.is_multiple_of(MIB) && (MIB..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes),
            "segment_bytes must be a multiple of 1 MiB, at most 4 GiB",
        )?;
        check(whole_block <= self.segment_bytes, "record_bytes_max must fit in a segment")?;
        check(
            whole_block <= u64::from(self.chunk_bytes),
            "chunk_bytes must hold a record of record_bytes_max",
        )?;
        check(
            u64::from(self.chunk_bytes).is_multiple_of(sector),
            "chunk_bytes must be a multiple of sector_bytes",
        )?;
        check(self.chunk_bytes < BLOCK_BYTES_LIMIT, "chunk_bytes must be below 64 MiB")?;
        check(self.block_bytes_max > 0, "block_bytes_max must be above 0")?;
        check(self.tail_bytes >= 2 * u64::from(self.chunk_bytes), "tail_bytes must be at least two chunks")?;
        check(
            self.tail_bytes_hard_max >= self.tail_bytes,
            "tail_bytes_hard_max must not be below tail_bytes",
        )?;
        check(
            self.staged_bytes_max >= whole_block && self.staged_bytes_max <= self.tail_bytes,
            "staged_bytes_max must hold a record of record_bytes_max and not exceed tail_bytes",
        )?;
        // The header keeps the distance to the durable position in 32 bits; a roll-over can add less than a block.
        check(self.staged_bytes_max <= 1 << 30, "staged_bytes_max must be at most 1 GiB")?;
        check(
            (1..=self.writes_in_flight_max).contains(&self.writes_in_flight_enough),
            "writes_in_flight_enough must be above 0 and not exceed writes_in_flight_max",
        )?;
        check(
            self.prepare_step_bytes.is_multiple_of(MIB) && self.prepare_step_bytes > 0,
            "prepare_step_bytes must be a multiple of 1 MiB",
        )?;
        check(
            self.prepare_ahead_bytes >= whole_block,
            "prepare_ahead_bytes must hold a record of record_bytes_max",
        )
    }
}
