use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::*;

/// Any JSON whose numbers are integers, so that it compares exactly.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,6}|[\u{0}-\u{20}\"\\\\\u{1F600}]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let map = proptest::collection::btree_map(".{0,4}", inner.clone(), 0..4);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            map.prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Key {
    topic: String,
    id: i32,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Sample {
    flag: bool,
    number: i32,
    ratio: f64,
    text: String,
    maybe: Option<i64>,
    by_id: BTreeMap<i64, String>,
    by_key: BTreeMap<Key, i64>,
}

proptest! {
    #[test]
    fn standard_json_round_trips(value in json()) {
        let standard = serde_json::to_vec(&value).unwrap();
        prop_assert_eq!(from_slice::<Value>(&standard), Ok(value.clone()));
        let pretty = serde_json::to_vec_pretty(&value).unwrap();
        prop_assert_eq!(from_slice::<Value>(&pretty), Ok(value.clone()));
        // The two writers agree wherever JSON has the form at all.
        prop_assert_eq!(serde_json::from_slice::<Value>(&to_vec(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn javas_dialect_round_trips(
        by_id in proptest::collection::btree_map(any::<i64>(), ".{0,5}", 0..4),
        by_key in proptest::collection::btree_map(("\\PC{0,5}", any::<i32>()), any::<i64>(), 0..4),
        ratio in -1e9..1e9f64,
        maybe in proptest::option::of(any::<i64>()),
    ) {
        let by_key = by_key.into_iter().map(|((topic, id), value)| (Key { topic, id }, value)).collect();
        let sample = Sample { by_id, by_key, ratio, maybe, ..Sample::default() };
        prop_assert_eq!(from_slice::<Sample>(&to_vec(&sample).unwrap()), Ok(sample));
    }

    #[test]
    fn arbitrary_texts_do_not_panic(
        text in "[{}\\[\\]\":,\\\\a-f0-9.e n-]{0,40}",
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        for bytes in [text.as_bytes(), &bytes] {
            let _ = (from_slice::<Value>(bytes), from_slice::<Sample>(bytes));
        }
    }
}

#[test]
fn what_java_and_go_write_is_read() {
    let sample: Sample = from_slice(
        br#"{"flag":"TRUE","number":"-5","ratio":"1.5","text":7,"maybe":null,"unknown":{"$ref":["]"]},
            "by_id":{0:"a" , "1":"b"},"by_key":{{"topic":"t","id":"1"}:2, {"id":2,"topic":"t"}:"3"}}"#,
    )
    .unwrap();
    let key = |id| Key { topic: "t".to_owned(), id };
    let expected = Sample {
        flag: true,
        number: -5,
        ratio: 1.5,
        text: "7".to_owned(),
        maybe: None,
        by_id: [(0, "a".to_owned()), (1, "b".to_owned())].into(),
        by_key: [(key(1), 2), (key(2), 3)].into(),
    };
    assert_eq!(sample, expected);
    let nulls = br#"{"flag":null,"number":null,"text":null,"by_id":null,"by_key":null,"ratio":null}"#;
    assert_eq!(from_slice(nulls), Ok(Sample::default()), "null is as good as nothing");
}

#[test]
fn what_is_written_is_compact() {
    let sample = Sample {
        by_id: [(-1, "a".to_owned())].into(),
        by_key: [(Key { topic: "t".to_owned(), id: 0 }, 1)].into(),
        ..Sample::default()
    };
    let text = r#"{"flag":false,"number":0,"ratio":0.0,"text":"","maybe":null,"by_id":{-1:"a"},"by_key":{{"topic":"t","id":0}:1}}"#;
    assert_eq!(String::from_utf8(to_vec(&sample).unwrap()).unwrap(), text);
    assert_eq!(to_vec(&f64::NAN).unwrap(), b"null");
}

#[test]
fn what_is_nothing_is_refused() {
    for text in [
        "",
        "{",
        "{}x",
        "[1,]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 \"b\":2}",
        "nul",
        "tru",
        "-",
        "1.2.3",
        "[}",
        "\"",
        "\"\\x\"",
        "{,}",
    ] {
        assert!(from_slice::<Value>(text.as_bytes()).is_err(), "{text}");
    }
    assert!(from_slice::<i32>(b"2147483648").is_err());
    assert!(from_slice::<i32>(b"\"inf\"").is_err());
    assert!(from_slice::<f64>(b"1e999").is_err());
    assert!(from_slice::<bool>(b"2").is_err());
    assert_eq!(from_slice::<Value>(&[b'"', 0xFF, b'"']), Err(JsonError::NotUtf8));
    assert_eq!(
        from_slice::<Value>(&vec![b' '; TEXT_BYTES_MAX + 1]),
        Err(JsonError::TooLong(TEXT_BYTES_MAX + 1))
    );
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(from_slice::<Value>(nested(32).as_bytes()).is_ok());
    assert_eq!(
        from_slice::<Value>(nested(33).as_bytes()),
        Err(JsonError::Syntax { at: 33, problem: "nested too deep" })
    );
    assert!(from_slice::<Value>(nested(1_000_000).as_bytes()).is_err(), "and the stack stays whole");
}
