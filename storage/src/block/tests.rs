use proptest::prelude::*;

use super::*;

const IDENTITY: LogIdentity = LogIdentity { shard: 2, log_id: 77 };

fn sealed(position: u64, payload: &[u8]) -> (BlockHeader, Vec<u8>) {
    let mut block = vec![0; HEADER_BYTES];
    block.extend_from_slice(payload);
    block.resize(block.len().next_multiple_of(BLOCK_ALIGN), 0);
    let mut header = BlockHeader {
        shard: IDENTITY.shard,
        position: PhysicalOffset(position),
        payload_bytes: (block.len() - HEADER_BYTES) as u32,
        record_count: 3,
        store_timestamp: StoreTimestamp(-5),
        previous_crc: 9,
        log_id: IDENTITY.log_id,
        undurable_bytes: 64,
        crc: 0,
    };
    header.crc = header.seal(&mut block);
    (header, block)
}

#[test]
fn a_sealed_block_reads_back() {
    let (header, block) = sealed(4096, b"records");
    let read = BlockHeader::read(&block, IDENTITY, PhysicalOffset(4096)).unwrap();
    assert_eq!(read, header);
    assert_eq!(read.verify(&block).unwrap().payload, b"records\0");
    assert_eq!(read.end(), 4096 + 56);
    assert_eq!(read.durable_at_seal(), 4032);
}

#[test]
fn a_block_is_only_good_where_it_belongs() {
    let (_, block) = sealed(4096, b"records");
    let read = |identity, position| BlockHeader::read(&block, identity, PhysicalOffset(position));
    assert_eq!(read(IDENTITY, 8192), Err(BlockError::Foreign));
    assert_eq!(read(LogIdentity { shard: 1, ..IDENTITY }, 4096), Err(BlockError::Foreign));
    assert_eq!(read(LogIdentity { log_id: 1, ..IDENTITY }, 4096), Err(BlockError::Foreign));
    assert_eq!(BlockHeader::read(&[0; 48], IDENTITY, PhysicalOffset(0)), Err(BlockError::NotABlock));
    assert_eq!(BlockHeader::read(&block[..47], IDENTITY, PhysicalOffset(4096)), Err(BlockError::Short));
}

#[test]
fn an_impossible_length_is_refused_before_anything_is_allocated() {
    let (_, mut block) = sealed(0, b"");
    block[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let length = HEADER_BYTES as u64 + u64::from(u32::MAX);
    assert_eq!(BlockHeader::read(&block, IDENTITY, PhysicalOffset(0)), Err(BlockError::Length(length)));
}

#[test]
fn blocks_share_a_sector_only_when_they_may_and_never_a_segment_border() {
    let place_at = |end, may_share, bytes| place(end, may_share, bytes, 4096, 1 << 20);
    assert_eq!(place_at(104, true, 256), 104);
    assert_eq!(place_at(104, false, 256), 4096);
    assert_eq!(place_at(8192, false, 256), 8192);
    let near_end = (1 << 20) - 256;
    assert_eq!(place_at(near_end, true, 256), near_end, "it just fits");
    assert_eq!(place_at(near_end, true, 264), 1 << 20, "it would cross");
    assert_eq!(place_at(near_end, false, 256), 1 << 20, "the next sector is the next segment");
}

proptest! {
    #[test]
    fn every_flipped_bit_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0u32..8) {
        let (_, mut block) = sealed(640, &payload);
        let at = at.index(block.len());
        block[at] ^= 1u8 << bit;
        let found = BlockHeader::read(&block, IDENTITY, PhysicalOffset(640)).and_then(|header| header.verify(&block).map(|_| ()));
        prop_assert!(found.is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), is_marked: bool) {
        if is_marked && bytes.len() >= HEADER_BYTES {
            bytes[0..4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
            bytes[4..6].copy_from_slice(&[BLOCK_VERSION, 0]);
            bytes[6..8].copy_from_slice(&IDENTITY.shard.to_le_bytes());
            bytes[8..16].fill(0);
            bytes[18..20].fill(0);
            bytes[36..40].copy_from_slice(&IDENTITY.log_id.to_le_bytes());
        }
        if let Ok(header) = BlockHeader::read(&bytes, IDENTITY, PhysicalOffset(0)) {
            prop_assert!(header.verify(&bytes).is_err());
        }
    }

    /// Recovery must look wherever the writer may have put the next block.
    #[test]
    fn every_place_is_a_candidate(end in 0u64..1 << 19, may_share: bool, bytes in 48u64..1 << 19) {
        let end = end * 8;
        let start = place(end, may_share, bytes, 4096, 1 << 20);
        prop_assert!(candidates(end, 4096, 1 << 20).contains(&start));
        prop_assert!(start >= end && start % (1 << 20) + bytes <= 1 << 20);
    }
}
