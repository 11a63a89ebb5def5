//! A disk for tests: what is durable, what is under way, and what a crash leaves of it.

use std::collections::BTreeMap;
use std::io;

use ringmq_protocol::message::{MessageParts, encode_into, encoded_len};
use ringmq_protocol::types::{BornTimestamp, PhysicalOffset, QueueId, QueueOffset, StoreTimestamp, SysFlag};

use crate::config::LogConfig;
use crate::log::{CommitLog, LogWrite, Prepare};
use crate::record::Record;
use crate::recover::{Recovered, RecoveryReport, SegmentStore, recover};
use crate::segment::SegmentBase;

/// The unit that comes back old or new after a crash.
pub(crate) const DISK_SECTOR: usize = 512;

/// xorshift64*: a stream of numbers that a seed fixes for ever.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.number() >> 11) % bound
    }

    pub(crate) fn one_of(&mut self, numbers: &[u64]) -> u64 {
        numbers[self.below(numbers.len() as u64) as usize]
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A small log: segments of 1 MiB, records up to 128 KiB.
pub(crate) fn small_config() -> LogConfig {
    LogConfig {
        shard: 3,
        log_id: 0x1234_5678,
        segment_bytes: 1 << 20,
        block_bytes_max: 32 << 10,
        record_bytes_max: 128 << 10,
        tail_bytes: 512 << 10,
        tail_bytes_hard_max: 1 << 20,
        chunk_bytes: 256 << 10,
        staged_bytes_max: 512 << 10,
        writes_in_flight_enough: LogConfig::default().writes_in_flight_max,
        prepare_step_bytes: 1 << 20,
        prepare_ahead_bytes: 1 << 20,
        ..LogConfig::default()
    }
}

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) segments: BTreeMap<u64, Vec<u8>>,
    pub(crate) in_flight: Vec<LogWrite>,
    pub(crate) unreadable: Vec<u64>,
    pub(crate) syncs: usize,
    pub(crate) bytes_read: u64,
}

impl Disk {
    pub(crate) fn write(&mut self, segment: SegmentBase, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.segments.get_mut(&segment.0).expect("prepared")[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn read(&self, position: u64, len: usize, segment_bytes: u64) -> &[u8] {
        let base = position - position % segment_bytes;
        let at = usize::try_from(position - base).unwrap();
        &self.segments[&base][at..at + len]
    }

    pub(crate) fn zero(&mut self, wanted: Prepare, segment_bytes: u64) {
        let segment =
            self.segments.entry(wanted.segment.0).or_insert_with(|| vec![0; segment_bytes as usize]);
        segment[wanted.from as usize..wanted.to as usize].fill(0);
    }

    /// Of each write under way each sector has arrived or not.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        for write in std::mem::take(&mut self.in_flight) {
            // All, nothing, or a random part: whole losses are what makes the chain break cleanly.
            let percent = [0, 100, 50, 90][random.below(4) as usize];
            for (index, sector) in write.data.chunks(DISK_SECTOR).enumerate() {
                if random.chance(percent) {
                    self.write(write.segment, write.offset_in_segment + (index * DISK_SECTOR) as u64, sector);
                }
            }
        }
    }
}

impl SegmentStore for Disk {
    fn segments(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        Ok(self.segments.iter().map(|(base, bytes)| (SegmentBase(*base), bytes.len() as u64)).collect())
    }

    fn read_at(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        assert_eq!(buffer.as_ptr().align_offset(4096), 0, "direct reads need aligned memory");
        assert!(
            offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096),
            "direct reads need whole sectors"
        );
        let start = segment.0 + offset;
        if self.unreadable.iter().any(|at| (start..start + buffer.len() as u64).contains(at)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let bytes = self.segments[&segment.0].get(offset as usize..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.bytes_read += count as u64;
        Ok(count)
    }

    fn sync(&mut self, _: SegmentBase) -> io::Result<()> {
        self.syncs += 1;
        Ok(())
    }

    // These tests are about the log alone; tests of indexes use `MemoryStore`.
    fn indexes(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        Ok(Vec::new())
    }

    fn read_index(&mut self, _: SegmentBase, _: u32, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn write_index(
        &mut self,
        _: SegmentBase,
        _: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A record of the tests: a number, and filler that the number fixes.
pub(crate) fn body(id: u64, len: usize) -> Vec<u8> {
    let mut body = id.to_le_bytes().to_vec();
    body.resize(len.max(8), id as u8);
    body
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) position: PhysicalOffset,
    pub(crate) store_timestamp: StoreTimestamp,
    pub(crate) body: Vec<u8>,
}

/// Recovers twice, for the second run must find what the first found.
pub(crate) fn recover_all(disk: &mut Disk, config: &LogConfig) -> (Recovered, RecoveryReport, Vec<Seen>) {
    let mut once = || {
        let mut seen = Vec::new();
        let (recovered, report) = recover(disk, config, None, &mut |record: Record<'_>| match record {
            Record::Metadata { position, store_timestamp, body, .. } => {
                seen.push(Seen { position, store_timestamp, body: body.to_vec() });
            }
            Record::Message { .. } | Record::Gap { .. } => panic!("tests append metadata"),
        })
        .expect("the disk can be read");
        (recovered, report, seen)
    };
    let (first, second) = (once(), once());
    assert_eq!(first, second, "recovery changes nothing");
    first
}

/// A log on a disk where everything asked for happens at once.
pub(crate) struct Quick {
    pub(crate) log: CommitLog,
    pub(crate) disk: Disk,
}

impl Quick {
    pub(crate) fn new(config: LogConfig) -> Self {
        let recovered = Recovered::empty(&config);
        Self { log: CommitLog::new(config, recovered), disk: Disk::default() }
    }

    pub(crate) fn reopen(self) -> (Self, RecoveryReport, Vec<Seen>) {
        let Self { log, mut disk } = self;
        let (recovered, report, seen) = recover_all(&mut disk, log.config());
        (Self { log: CommitLog::new(log.config().clone(), recovered), disk }, report, seen)
    }

    pub(crate) fn prepare(&mut self) {
        while self.prepare_step() {}
    }

    /// Fills what is asked for with zeros; false if nothing is.
    pub(crate) fn prepare_step(&mut self) -> bool {
        let Some(wanted) = self.log.prepare_wanted() else { return false };
        self.disk.zero(wanted, self.log.config().segment_bytes);
        self.log.on_prepared(wanted.segment, wanted.to);
        true
    }

    /// Appends a record and makes it durable, in a block of its own.
    pub(crate) fn append(&mut self, id: u64, len: usize, now: i64) -> PhysicalOffset {
        let appended = self.log.append_record(7, &body(id, len), StoreTimestamp(now)).expect("accepted");
        self.flush();
        appended.position
    }

    /// A message at its offset in a queue.
    pub(crate) fn append_message(
        &mut self,
        (topic, queue_id, offset): (&str, QueueId, QueueOffset),
        body: &[u8],
        properties: &str,
        now: StoreTimestamp,
    ) {
        let parts = MessageParts {
            topic,
            queue_id,
            flag: 0,
            sys_flag: SysFlag(0),
            born_timestamp: BornTimestamp(1),
            born_host: "192.0.2.1:4000".parse().unwrap(),
            store_host: "192.0.2.2:10911".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            properties: &[properties.as_bytes()],
        };
        let write = |position, time, bytes: &mut [u8]| encode_into(&parts, offset, position, time, bytes);
        self.log.append(encoded_len(&parts), now, write).unwrap();
    }

    pub(crate) fn flush(&mut self) {
        self.prepare();
        while let Some(write) = self.log.next_write() {
            self.disk.write(write.segment, write.offset_in_segment, &write.data);
            self.log.on_written(write.block, Ok(()));
        }
        assert_eq!(self.log.durable(), self.log.end());
    }
}
