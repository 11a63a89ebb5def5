use super::*;

const MIB: u64 = 1 << 20;

fn span(start: u64, len: u32) -> BlockSpan {
    BlockSpan { start: PhysicalOffset(start), len }
}

fn index() -> BlockIndex {
    let mut index = BlockIndex::new(MIB);
    for (start, len, time) in
        [(0, 256, 10), (256, 104, 10), (4096, 5000, 12), (MIB, 64, 12), (3 * MIB + 8, 96, 20)]
    {
        index.push(span(start, len), StoreTimestamp(time));
    }
    index
}

#[test]
fn a_position_finds_its_block() {
    let index = index();
    let containing = |position| index.containing(PhysicalOffset(position));
    assert_eq!(containing(0), Some(span(0, 256)));
    assert_eq!(containing(255), Some(span(0, 256)));
    assert_eq!(containing(256), Some(span(256, 104)));
    assert_eq!(containing(360), None, "between two blocks");
    assert_eq!(containing(9095), Some(span(4096, 5000)));
    assert_eq!(containing(9096), None);
    assert_eq!(containing(MIB + 63), Some(span(MIB, 64)));
    assert_eq!(containing(2 * MIB), None, "a segment without blocks");
    assert_eq!(containing(3 * MIB), None);
    assert_eq!(containing(3 * MIB + 8), Some(span(3 * MIB + 8, 96)));
    assert_eq!(containing(u64::MAX), None);
    assert_eq!(index.store_timestamp(PhysicalOffset(5000)), Some(StoreTimestamp(12)));
    assert_eq!(index.store_timestamp(PhysicalOffset(400)), None);
    assert_eq!(index.first(), Some(span(0, 256)));
    assert_eq!(index.len(), 5);
}

#[test]
fn verified_is_remembered_block_by_block() {
    let mut index = BlockIndex::new(MIB);
    for block in 0..200 {
        index.push(span(block * 64, 64), StoreTimestamp(0));
    }
    for block in [0, 63, 64, 199] {
        index.set_verified(span(block * 64, 64));
    }
    let verified: Vec<u64> = (0..200).filter(|block| index.verified(span(block * 64, 64))).collect();
    assert_eq!(verified, [0, 63, 64, 199]);
}

#[test]
fn deleted_segments_are_forgotten() {
    let mut index = index();
    index.remove_below(SegmentBase(3 * MIB));
    assert_eq!(index.segments().collect::<Vec<_>>(), [SegmentBase(3 * MIB)]);
    assert_eq!(index.containing(PhysicalOffset(0)), None);
    assert_eq!(index.first(), Some(span(3 * MIB + 8, 96)));
}

#[test]
fn file_names_are_positions_of_twenty_digits() {
    assert_eq!(SegmentBase(1 << 30).file_name(), "00000000001073741824");
    assert_eq!(SegmentBase::from_file_name("00000000001073741824"), Some(SegmentBase(1 << 30)));
    for other in
        ["1073741824", "0000000000107374182x", "00000000001073741824.idx", "", "99999999999999999999"]
    {
        assert_eq!(SegmentBase::from_file_name(other), None, "{other}");
    }
}

#[test]
fn a_stretch_is_whole_blocks_of_one_segment_below_the_end() {
    let mut index = BlockIndex::new(MIB);
    // Two blocks without a gap, one after a gap, and one in the next segment.
    for (start, len) in [(0, 104), (104, 200), (4096, 96), (MIB, 64)] {
        index.push(span(start, len), StoreTimestamp(0));
    }
    let all = PhysicalOffset(2 * MIB);
    let stretch = |position, bytes_max, end| index.stretch(PhysicalOffset(position), bytes_max, end);
    assert_eq!(stretch(50, 1 << 20, all), Some(span(0, 4192)));
    assert_eq!(stretch(50, 4191, all), Some(span(0, 304)));
    assert_eq!(stretch(50, 10, all), Some(span(0, 104)), "at least one block");
    assert_eq!(stretch(110, 1 << 20, PhysicalOffset(4096)), Some(span(104, 200)));
    assert_eq!(stretch(MIB, 1 << 20, all), Some(span(MIB, 64)));
    assert_eq!(stretch(1000, 1 << 20, all), None, "between blocks");
    let blocks = |stretch| index.blocks_of(stretch).collect::<Vec<_>>();
    assert_eq!(blocks(span(0, 4192)), [span(0, 104), span(104, 200), span(4096, 96)]);
    assert_eq!(blocks(span(104, 200)), [span(104, 200)]);
}
