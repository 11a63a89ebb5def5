use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn round_trip(
        entries in proptest::collection::vec(
            (any::<i32>(), proptest::collection::vec(any::<u8>(), 0..20), proptest::collection::vec(any::<u8>(), 0..20)),
            0..5,
        ),
    ) {
        let entries: Vec<_> = entries
            .iter()
            .map(|(flag, body, properties)| BatchEntry { flag: *flag, body, properties })
            .collect();
        let mut bytes = Vec::new();
        for entry in &entries {
            let start = bytes.len();
            entry.encode(&mut bytes).unwrap();
            prop_assert_eq!(bytes.len() - start, entry.encoded_len());
        }
        prop_assert_eq!(BatchEntries::new(&bytes).collect::<Result<Vec<_>, _>>(), Ok(entries));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic_and_an_error_is_the_end(
        bytes in proptest::collection::vec(prop_oneof![9 => Just(0u8), 1 => 0..40u8, 1 => any::<u8>()], 0..80),
    ) {
        let mut entries = BatchEntries::new(&bytes);
        while let Some(entry) = entries.next() {
            if entry.is_err() {
                prop_assert!(entries.next().is_none());
            }
        }
    }
}

#[test]
fn lengths_that_disagree_are_refused() {
    let mut good = Vec::new();
    BatchEntry { flag: 1, body: b"body", properties: b"p" }.encode(&mut good).unwrap();
    let at = good.len();
    BatchEntry { flag: 1, body: b"body", properties: b"p" }.encode(&mut good).unwrap();
    for (byte, value, field) in [
        (0, 0x80, "size"),
        (3, 26, "properties"),
        (16, 0x80, "body"),
        (19, 7, "properties length"),
        (25, 0x80, "properties"),
    ] {
        let mut bad = good.clone();
        bad[at + byte] = value;
        let result: Vec<_> = BatchEntries::new(&bad).collect();
        assert_eq!(result[1..], [Err(BatchError { at, field })], "byte {byte}");
    }
    let too_long = vec![0; PROPERTIES_BYTES_MAX + 1];
    let error = BatchEntry { flag: 0, body: b"", properties: &too_long }.encode(&mut good).unwrap_err();
    assert_eq!(error.field, "properties");
    assert_eq!(good.len(), 2 * at);
}
