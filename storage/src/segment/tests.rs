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
    assert_eq!(index.first(), Some(SegmentBase(0)));
    assert_eq!(index.len(), 5);
}

#[test]
fn sealed_segments_are_forgotten() {
    let mut index = index();
    let sealed = index.segment(SegmentBase(MIB)).unwrap().clone();
    assert_eq!((sealed.base(), sealed.first_timestamp()), (SegmentBase(MIB), StoreTimestamp(12)));
    index.remove_through(SegmentBase(MIB));
    assert_eq!((index.first(), index.last()), (Some(SegmentBase(3 * MIB)), Some(SegmentBase(3 * MIB))));
    assert_eq!(index.containing(PhysicalOffset(0)), None);
    assert_eq!(index.containing(PhysicalOffset(3 * MIB + 8)), Some(span(3 * MIB + 8, 96)));
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
