use proptest::prelude::*;

use super::*;

fn part() -> impl Strategy<Value = String> {
    "[^\u{1}\u{2}]{1,8}"
}

proptest! {
    #[test]
    fn round_trip(pairs in proptest::collection::vec((part(), part()), 0..6)) {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
        let bytes = encode(pairs.iter().copied()).unwrap();
        let properties = Properties::new(&bytes);
        prop_assert_eq!(properties.iter().collect::<Vec<_>>(), pairs.clone());
        for (name, _) in &pairs {
            let last = pairs.iter().rfind(|(known, _)| known == name).map(|(_, value)| *value);
            prop_assert_eq!(properties.get(name), last);
        }
        let mut copy = Vec::new();
        put_filtered(&mut copy, properties, |_| true);
        prop_assert_eq!(copy, bytes);
    }

    #[test]
    fn arbitrary_bytes_are_properties(bytes in proptest::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..64)) {
        let properties = Properties::new(&bytes);
        for (name, value) in properties.iter() {
            prop_assert!(!name.is_empty() && !value.is_empty());
            prop_assert!(properties.get(name).is_some());
        }
    }
}

#[test]
fn pairs_are_read_as_java_reads_them() {
    let all = |text: &'static str| Properties::new(text.as_bytes()).iter().collect::<Vec<_>>();
    assert_eq!(all("a\u{1}b"), [("a", "b")], "no separator behind the last pair");
    assert_eq!(all("a\u{1}b\u{1}c\u{2}"), [("a", "b\u{1}c")]);
    assert_eq!(all("\u{2}\u{2}a\u{1}\u{2}\u{1}b\u{2}ab\u{2}c\u{1}d\u{2}"), [("c", "d")]);
    assert_eq!(all(""), []);
}

#[test]
fn a_server_appends_its_own() {
    for sent in ["a\u{1}b", "a\u{1}b\u{2}", ""] {
        let sent = sent.as_bytes();
        let stored = [sent, separator(sent), b"TRACE_ON\x01true\x02a\x01c\x02"].concat();
        let properties = Properties::new(&stored);
        assert_eq!((properties.get("TRACE_ON"), properties.get("a")), (Some("true"), Some("c")), "{sent:?}");
    }
    let mut kept = Vec::new();
    put_filtered(&mut kept, Properties::new(b"POP_CK\x01x\x02K\x01v"), |name| name != b"POP_CK");
    assert_eq!(kept, b"K\x01v\x02");
    assert_eq!(put(&mut kept, "a", "b\u{1}"), Err(PropertyError::Separator));
    assert_eq!(put(&mut kept, "a\u{2}", "b"), Err(PropertyError::Separator));
    assert_eq!(put(&mut kept, "", "b"), Err(PropertyError::Empty));
    assert_eq!(kept, b"K\x01v\x02");
}
