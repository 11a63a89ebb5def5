use super::*;

const CHUNK: usize = 64 << 10;

fn tail() -> Tail {
    Tail::new(CHUNK, 2 * CHUNK as u64, 4 * CHUNK as u64)
}

/// Adds a block of one sector that begins at `start` and is filled with `byte`.
fn push(tail: &mut Tail, start: u64, byte: u8, durable: u64) -> Result<Bytes, NoChunk> {
    if !tail.has_room(4096) {
        tail.next_chunk(durable)?;
    }
    tail.current.resize(4096, byte);
    Ok(tail.push(start, start + 4096, start))
}

#[test]
fn buffers_are_aligned() {
    for len in [1, 4096, 100_000] {
        let buffer = aligned_buffer(len);
        assert_eq!(buffer.as_ptr().align_offset(MEMORY_ALIGN), 0);
        assert!(buffer.is_empty() && buffer.capacity() >= len);
    }
}

#[test]
fn ranges_are_given_without_copying_and_only_within_a_block() {
    let mut tail = tail();
    let first = push(&mut tail, 0, 1, 0).unwrap();
    push(&mut tail, 4096, 2, 0).unwrap();
    let range = tail.get(PhysicalOffset(100), 50).unwrap();
    assert_eq!(range, [1; 50].as_slice());
    assert_eq!(range.as_ptr(), first[100..].as_ptr());
    assert_eq!(tail.get(PhysicalOffset(4090), 6).unwrap(), [1; 6].as_slice());
    assert_eq!(tail.get(PhysicalOffset(4090), 7), None);
    assert_eq!(tail.get(PhysicalOffset(8192), 1), None);
    assert_eq!(tail.get(PhysicalOffset(4096), u32::MAX), None);
}

#[test]
fn memory_is_used_again_and_does_not_grow() {
    let mut tail = tail();
    let mut pages = std::collections::BTreeSet::new();
    for block in 0..10_000u64 {
        let start = block * 4096;
        let image = push(&mut tail, start, block as u8, start).unwrap();
        assert_eq!(image.as_ptr().align_offset(MEMORY_ALIGN), 0);
        pages.insert(image.as_ptr() as usize);
        assert!(tail.chunk_count() <= 2);
        // At least a whole chunk of history stays readable.
        let oldest = block.saturating_sub(CHUNK as u64 / 4096 - 1) * 4096;
        assert_eq!(tail.get(PhysicalOffset(oldest), 4096).unwrap()[0], (oldest / 4096) as u8);
    }
    assert_eq!(pages.len(), 2 * CHUNK / 4096, "the same pages over and over");
}

#[test]
fn what_is_held_is_never_overwritten_and_memory_stays_bounded() {
    let mut tail = tail();
    let mut held: Vec<(Bytes, u8)> = Vec::new();
    let mut start = 0;
    let refused = loop {
        match push(&mut tail, start, (start / 4096) as u8, start) {
            Ok(image) => held.push((image, (start / 4096) as u8)),
            Err(refused) => break refused,
        }
        start += 4096;
        assert!(start < 100 * CHUNK as u64, "it must be bounded");
    };
    assert_eq!(refused, NoChunk);
    assert_eq!(held.len(), 4 * CHUNK / 4096, "all of the hard limit was usable");
    for (image, byte) in &held {
        assert!(image.iter().all(|found| found == byte));
    }
    held.clear();
    for _ in 0..200 {
        push(&mut tail, start, 9, start).unwrap();
        start += 4096;
    }
    assert_eq!(tail.chunk_count(), 2, "what was taken beyond the budget is given back");
}

#[test]
fn blocks_that_are_not_durable_stay() {
    let mut tail = tail();
    let mut start = 0;
    while push(&mut tail, start, 0, 0).is_ok() {
        start += 4096;
        assert!(start <= 4 * CHUNK as u64, "it makes room that it does not have");
    }
    assert_eq!(tail.start(), Some(PhysicalOffset(0)));
    assert!(tail.get(PhysicalOffset(0), 4096).is_some());
    // As soon as the oldest chunk is durable there is room again.
    push(&mut tail, start, 0, CHUNK as u64).unwrap();
    assert_eq!(tail.start(), Some(PhysicalOffset(CHUNK as u64)));
}

/// What alignment leaves over does not count: the same appends give the same blocks wherever the memory lies.
#[test]
fn a_chunk_has_room_for_what_was_asked_for_and_no_more() {
    let mut tail = Tail::new(2 * MEMORY_ALIGN, 1 << 20, 1 << 20);
    assert!(tail.has_room(2 * MEMORY_ALIGN) && !tail.has_room(2 * MEMORY_ALIGN + 1));
    tail.current.resize(MEMORY_ALIGN, 1);
    assert!(tail.has_room(MEMORY_ALIGN) && !tail.has_room(MEMORY_ALIGN + 1));
    tail.push(0, 10, 0);
    assert!(tail.has_room(MEMORY_ALIGN) && !tail.has_room(MEMORY_ALIGN + 1));
    tail.next_chunk(0).unwrap();
    assert!(tail.has_room(2 * MEMORY_ALIGN) && !tail.has_room(2 * MEMORY_ALIGN + 1));
}
