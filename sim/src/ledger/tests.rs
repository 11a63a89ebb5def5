use super::*;
use ringmq_ring::sim::SimDisk;

const SEGMENT_BYTES: u64 = 1 << 20;

/// A block as docs/format.md has it, with zeros for what the ledger does not read.
fn block(position: u64, durable: u64, payload: &[u8]) -> Vec<u8> {
    let mut block = vec![0; HEAD_BYTES as usize];
    block[..4].copy_from_slice(b"RMQB");
    block[8..16].copy_from_slice(&position.to_le_bytes());
    block[16..20].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    block[40..44].copy_from_slice(&((position - durable) as u32).to_le_bytes());
    block.extend_from_slice(payload);
    let crc = checksum(&block);
    block[44..48].copy_from_slice(&crc.to_le_bytes());
    block
}

struct Log {
    disk: SimDisk,
    ledger: Ledger,
    path: PathBuf,
    tags: u64,
}

impl Log {
    fn new() -> Log {
        let disk = SimDisk::new(1);
        let store = SimStore { disk: disk.clone(), directory: PathBuf::from("/log") };
        let ledger = Ledger::new(store, SEGMENT_BYTES);
        let (path, _) = ledger.place(0);
        disk.create(&path).unwrap();
        disk.set_len(&path, SEGMENT_BYTES).unwrap();
        Log { disk, ledger, path, tags: 0 }
    }

    /// Writes a block in a sector of its own; with a fault the disk does not get it.
    fn write(&mut self, position: u64, durable: u64, fault: Option<WriteFault>) {
        let data = block(position, durable, &[7; 80]);
        self.tags += 1;
        self.ledger.writing(self.tags, Some(&self.path), position, &data, fault);
        if fault.is_none() {
            self.disk.write_at(&self.path, position, &data).unwrap();
        }
        self.ledger.written(self.tags, true);
    }

    /// What came of everything, and where the blocks start that should have been reported.
    fn judge(&self) -> (Corruption, Vec<u64>) {
        let (corruption, silent) = self.ledger.judge(|_| true);
        (corruption, silent.into_iter().map(|block| block.start).collect())
    }
}

#[test]
fn what_was_made_wrong_has_to_be_reported_unless_it_is_written_again() {
    let mut log = Log::new();
    log.write(0, 0, None);
    log.write(4096, 128, None);
    log.disk.flip_bit(&log.path, 4096 + 60, 1).unwrap();
    log.ledger.make_wrong(&(4096 + 60..4096 + 61));
    assert_eq!(log.judge().1, [4096]);
    log.ledger.damage_reported(&(4000..8192)).unwrap();
    let (corruption, silent) = log.judge();
    assert_eq!((corruption.injected, corruption.reported, silent.len()), (1, 1, 0));
    log.disk.write_at(&log.path, 4096, &block(4096, 128, &[7; 80])).unwrap();
    assert_eq!(log.judge().0.injected, 0);
}

#[test]
fn nobody_reports_damage_that_is_none() {
    let mut log = Log::new();
    log.write(0, 0, None);
    assert!(log.ledger.damage_reported(&(0..128)).unwrap_err().contains("sound"));
    log.disk.flip_bit(&log.path, 60, 1).unwrap();
    assert!(log.ledger.damage_reported(&(0..128)).unwrap_err().contains("nobody but the broker"));
    assert!(log.ledger.block_reported(&(0..128)).is_err());
}

#[test]
fn a_lost_write_without_a_witness_may_cost_the_end_of_the_log() {
    let mut log = Log::new();
    log.write(0, 0, None);
    log.write(4096, 128, Some(WriteFault::Lost));
    // Sealed when the lost one was not yet complete: no witness.
    log.write(8192, 128, None);
    assert_eq!(log.ledger.on_crash(false, 0).0, Some(4096));
    log.write(12_288, 8192 + 128, None);
    assert_eq!(log.ledger.on_crash(false, 0).0, None);
    assert_eq!(log.judge().1, [4096]);
}

#[test]
fn in_async_mode_the_end_may_be_lost_from_the_first_write_under_way() {
    let mut log = Log::new();
    log.write(0, 0, None);
    log.ledger.writing(99, Some(&log.path), 4096, &block(4096, 128, &[1]), None);
    log.write(8192, 128, None);
    assert_eq!(log.ledger.on_crash(true, 0).0, Some(4096));
    log.ledger.on_boot(0..128);
    assert_eq!(log.ledger.on_crash(true, 0).0, Some(128));
}

#[test]
fn a_read_that_goes_wrong_has_to_be_mentioned_in_time() {
    let mut log = Log::new();
    log.write(0, 0, None);
    let fault = ReadFault::Misdirected { by: 4096 };
    for (bytes, is_owed) in [(block(0, 0, &[7; 80]), false), (vec![0; 128], true)] {
        log.ledger.reading(5, Some(&log.path), 0, 128, fault);
        log.ledger.read(5, Some(&Bytes::from(bytes)), 1_000);
        assert_eq!(log.ledger.on_crash(false, 2_000_000_000).1.is_err(), is_owed);
    }
    log.ledger.reading(6, Some(&log.path), 0, 128, ReadFault::Io);
    log.ledger.read(6, None, 1_000);
    log.ledger.stutter_reported(&(0..128));
    assert!(log.ledger.on_crash(false, 2_000_000_000).1.is_ok());
    assert_eq!((log.ledger.stutters_made, log.ledger.stutters_reported), (2, 1));
}

#[test]
fn unverified_reads_have_right_checksums() {
    let sound = [block(0, 0, &[7; 80]), block(128, 0, &[9; 40])].concat();
    let mut spoiled = sound.clone();
    spoiled[60] ^= 1;
    let repaired = with_right_checksums(&Bytes::from(spoiled.clone()));
    assert_eq!(repaired[44..48], checksum(&spoiled[..128]).to_le_bytes());
    assert_eq!(repaired[128..], sound[128..]);
}
