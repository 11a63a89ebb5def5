use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn the_hashes_are_those_of_the_format() {
    // XXH3-64 of nothing, as its authors give it. Another hash makes every index on disk useless.
    assert_eq!(TopicHash::of("").0, 0x2d06_8005_38d3_94c2);
    let topic = TopicHash::of("TopicTest");
    assert_ne!(KeyHash::of(topic, b"order-1"), KeyHash::of(TopicHash::of("Other"), b"order-1"));
    assert_ne!(KeyHash::of(topic, b"order-1"), KeyHash::of(topic, b"order-2"));
}

#[test]
fn an_empty_table_finds_nothing_and_is_small() {
    let table = KeyTable::new();
    assert!(table.is_empty());
    assert_eq!(table.find(KeyHash(0)).count(), 0);
    assert!(table.memory_bytes() < 32 << 10);
}

#[test]
fn memory_is_about_eight_bytes_a_key() {
    let mut table = KeyTable::new();
    let count: u32 = 1 << 20;
    for position in 0..count {
        table.push(KeyHash::of(TopicHash(1), &position.to_le_bytes()), position);
    }
    assert_eq!(table.len(), count as usize);
    let least = count as usize * 8;
    assert!((least..least + 256 * 9 * 1024).contains(&table.memory_bytes()), "{}", table.memory_bytes());
}

proptest! {
    /// Hashes from a small set, so that buckets and the rest collide in every way.
    #[test]
    fn finds_each_message_once_and_no_other_hash(
        pushes in prop::collection::vec((0u64..4, 0u64..4, 0u64..2, 0u32..3), 0..300),
    ) {
        let mut table = KeyTable::new();
        let mut model: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let mut position = 0;
        for (bucket, rest, ignored, step) in &pushes {
            position += step * 8;
            table.push(KeyHash(bucket << 56 | rest << 24 | ignored), position);
            let positions = model.entry(bucket << 32 | rest).or_default();
            if positions.last() != Some(&position) {
                positions.push(position);
            }
        }
        prop_assert_eq!(table.len(), pushes.len());
        for bucket in 0..4u64 {
            for rest in 0..4u64 {
                let found: Vec<u32> = table.find(KeyHash(bucket << 56 | rest << 24)).collect();
                prop_assert_eq!(found, model.get(&(bucket << 32 | rest)).cloned().unwrap_or_default());
            }
        }
    }
}
