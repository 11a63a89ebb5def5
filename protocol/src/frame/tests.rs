use proptest::prelude::*;

use super::*;

/// Text with what JSON has to escape, what properties are made of, and characters outside the basic plane.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9_ ]{0,12}",
        "\\PC{0,8}",
        "[\u{0}-\u{20}\"\\\\/\u{7f}\u{e9}\u{ffff}\u{1F600}]{0,12}"
    ]
}

fn command() -> impl Strategy<Value = RemotingCommand> {
    let numbers = (any::<i32>(), any::<i16>(), any::<i32>(), 0..4i32, 0..14u8);
    let ext = proptest::collection::vec((text(), text()), 0..6);
    let body = proptest::collection::vec(any::<u8>(), 0..40);
    (numbers, proptest::option::of(text()), ext, body).prop_map(|(numbers, remark, ext, body)| {
        RemotingCommand {
            code: numbers.0,
            version: i32::from(numbers.1),
            opaque: Opaque(numbers.2),
            flag: numbers.3,
            language: Language::from_byte(numbers.4),
            // The binary codec cannot tell an empty remark from none.
            remark: remark.filter(|remark| !remark.is_empty()),
            ext,
            body: body.into(),
        }
    })
}

fn json_frame(header: &str) -> Vec<u8> {
    let mut bytes = ((4 + header.len()) as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&(header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes
}

/// The fields of a JSON header, or why it is none.
fn ext_of(header: &str) -> Result<Vec<(String, String)>, FrameError> {
    let bytes = json_frame(header);
    Frame::decode(&bytes).map(|frame| frame.header.ext.to_pairs())
}

fn read_everything(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(frame_len(bytes, u32::MAX), Ok(Some(bytes.len())));
        frame.header.ext.iter().for_each(drop);
        frame.header.ext.get("a");
    }
}

proptest! {
    #[test]
    fn round_trip(command in command(), codec in prop_oneof![Just(Codec::Json), Just(Codec::RocketMq)]) {
        let mut bytes = vec![1, 2, 3];
        command.encode(codec, &mut bytes);
        let bytes = bytes::Bytes::from(bytes).slice(3..);
        prop_assert_eq!(frame_len(&bytes, FRAME_BYTES_MAX), Ok(Some(bytes.len())));
        let fits = i16::try_from(command.code).is_ok();
        prop_assert_eq!(bytes[4], if fits { codec as u8 } else { 0 });
        prop_assert_eq!(RemotingCommand::decode(&bytes).unwrap(), command);
    }

    #[test]
    fn what_is_written_is_strict_json(command in command()) {
        let mut bytes = Vec::new();
        command.encode(Codec::Json, &mut bytes);
        let header = &bytes[8..bytes.len() - command.body.len()];
        let json: serde_json::Value = serde_json::from_slice(header).unwrap();
        prop_assert_eq!(&json["code"], &serde_json::json!(command.code));
        for (key, _) in &command.ext {
            prop_assert_eq!(json["extFields"][key].as_str(), command.ext(key));
        }
    }

    #[test]
    fn what_others_write_is_read(key in text(), value in text()) {
        let ascii: String = value.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        let plain = serde_json::to_string(&value).unwrap();
        let key_json = serde_json::to_string(&key).unwrap();
        let header = format!(" {{ \"extFields\" : {{ {key_json} : {plain} ,\"ascii\":\"{ascii}\"}} , \"code\" : 1 }} ");
        let ext = ext_of(&header).unwrap();
        prop_assert_eq!(ext, vec![(key, value.clone()), ("ascii".to_owned(), value)]);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        read_everything(&bytes);
    }

    #[test]
    fn arbitrary_headers_do_not_panic(
        binary in any::<bool>(),
        header in prop_oneof![
            proptest::collection::vec(0..4u8, 0..64),
            "[{}\\[\\]\":,\\\\u0-9aéx ]{0,40}".prop_map(String::into_bytes),
            "\\{\"extFields\":\\{(\"[a\\\\u0]{0,3}\":[\"{}n\\[\\]0]{1,4},?){0,3}\\}?\\}?".prop_map(String::into_bytes),
        ],
    ) {
        let mut bytes = ((4 + header.len()) as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(&(u32::from(binary) << 24 | header.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&header);
        read_everything(&bytes);
    }

    #[test]
    fn damaged_frames_do_not_panic(
        command in command(), at in any::<prop::sample::Index>(), byte in any::<u8>(), binary in any::<bool>(),
    ) {
        let mut bytes = Vec::new();
        command.encode(if binary { Codec::RocketMq } else { Codec::Json }, &mut bytes);
        read_everything(&bytes[..at.index(bytes.len())]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_everything(&bytes);
    }
}

#[test]
fn json_is_read_as_java_reads_it() {
    let ext = ext_of(
        r#"{"code":"310","unknown":[{"deep":["]",{}]}],"version":null,"extFields":
            {"n":3,"b":true,"f":-1.5e3,"gone":null,"o":{"a":[1]},"e":"","s":"\/\b\f\n\r\t"}}"#,
    );
    let pairs = [
        ("n", "3"),
        ("b", "true"),
        ("f", "-1.5e3"),
        ("o", r#"{"a":[1]}"#),
        ("e", ""),
        ("s", "/\u{8}\u{c}\n\r\t"),
    ];
    assert_eq!(ext.unwrap(), pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(ext_of(r#"{"extFields":null}"#), Ok(vec![]));
    assert_eq!(ext_of("{}"), Ok(vec![]));
    // Half a surrogate pair, and a pair the wrong way round.
    let ext = ext_of(r#"{"extFields":{"a":"\ud83dx\ude00\ud83d","b":"\uDE00\uD83D\uDE00"}}"#).unwrap();
    assert_eq!(ext[0].1, "\u{FFFD}x\u{FFFD}\u{FFFD}");
    assert_eq!(ext[1].1, "\u{FFFD}\u{1F600}");
}

#[test]
fn json_that_is_none_is_refused() {
    for header in [
        "",
        "[]",
        "{",
        "{}x",
        r#"{"code":x}"#,
        r#"{"code":2147483648}"#,
        r#"{"code":1.5}"#,
        r#"{"code" 1}"#,
        r#"{"extFields":3}"#,
        r#"{"extFields":{"a":"b"}"#,
        r#"{"extFields":{"a":}}"#,
        r#"{"extFields":{a:"b"}}"#,
        r#"{"extFields":{"a":"b""c":"d"}}"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\u12G4"}"#,
        r#"{"a":[}]}"#,
        r#"{"a":nul}"#,
        r#"{"code":1 "flag":2}"#,
        r#"{"a":--1}"#,
    ] {
        assert!(ext_of(header).is_err(), "{header}");
    }
    let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(ext_of(&deep(64)), Ok(vec![]));
    assert!(matches!(ext_of(&deep(65)), Err(FrameError::Json { problem: "nested too deep", .. })));
}

#[test]
fn lengths_are_checked_before_they_are_believed() {
    assert_eq!(frame_len(&[0, 0, 0], 100), Ok(None));
    assert_eq!(frame_len(&[0, 0, 0, 3], 100), Err(FrameError::Length { length: 3, max: 100 }));
    assert_eq!(frame_len(&[0, 0, 0, 101], 100), Err(FrameError::Length { length: 101, max: 100 }));
    assert_eq!(
        frame_len(&[255, 0, 0, 0], u32::MAX),
        Err(FrameError::Length { length: -1 << 24, max: u32::MAX })
    );
    assert_eq!(frame_len(&[0, 0, 0, 100, 0, 0], 100), Ok(None));
    assert_eq!(frame_len(&[0, 0, 0, 100, 0, 0, 0, 96], 100), Ok(Some(104)));
    assert_eq!(
        frame_len(&[0, 0, 0, 100, 0, 0, 0, 97], 100),
        Err(FrameError::HeaderLength { length: 97, max: 96 })
    );
    assert_eq!(frame_len(&[0, 0, 0, 100, 2, 0, 0, 0], 100), Err(FrameError::UnknownCodec(2)));
    let large = FRAME_BYTES_MAX.to_be_bytes();
    let header = [1, 4, 0, 1];
    assert_eq!(
        frame_len(&[large, header].concat(), FRAME_BYTES_MAX),
        Err(FrameError::HeaderLength { length: HEADER_BYTES_MAX + 1, max: HEADER_BYTES_MAX })
    );
    let not_one = Frame::decode(&[0, 0, 0, 6, 0, 0, 0, 2, b'{', b'}', 0]);
    assert_eq!(not_one.unwrap_err(), FrameError::NotOneFrame { got: 11, expected: 10 });
}

#[test]
fn properties_of_the_greatest_length_fit_a_json_header() {
    let properties = "\u{1}".repeat(crate::properties::PROPERTIES_BYTES_MAX);
    let mut bytes = Vec::new();
    let head = Head::request(Codec::Json, 310, Opaque(1));
    encode(&mut bytes, &head, &[("i", Value::Str(&properties))], 0);
    assert_eq!(frame_len(&bytes, FRAME_BYTES_MAX), Ok(Some(bytes.len())));
    assert_eq!(Frame::decode(&bytes).unwrap().header.ext.get("i").unwrap(), properties);
}

#[test]
fn what_is_no_utf8_in_a_binary_header_is_replaced_as_in_java() {
    let mut bytes = Vec::new();
    let head = Head::request(Codec::RocketMq, crate::code::RequestCode::SEND_MESSAGE, Opaque(1));
    encode(&mut bytes, &head, &[("key", Value::Str("value"))], 0);
    let value = bytes.len() - "value".len();
    bytes[value] = 0xff;
    let frame = Frame::decode(&bytes).unwrap();
    assert_eq!(frame.header.ext.get("key").as_deref(), Some("\u{fffd}alue"));
}

#[test]
fn the_last_of_two_fields_of_one_name_counts() {
    let bytes = json_frame(r#"{"extFields":{"a":"1","b":"2","a":"3"}}"#);
    assert_eq!(Frame::decode(&bytes).unwrap().header.ext.get("a").unwrap(), "3");
    let fields = Both(&[("x", Value::U64(u64::MAX))], &[("y", Value::Bool(true)), ("z", Value::I64(-1))]);
    let command = RemotingCommand::request(1, &fields, Vec::new());
    assert_eq!(command.ext("x"), Some("18446744073709551615"));
    assert_eq!((command.ext("y"), command.ext("z"), command.ext("w")), (Some("true"), Some("-1"), None));
}

#[test]
fn a_reply_answers_in_the_codec_and_with_the_opaque_of_its_request() {
    let mut bytes = Vec::new();
    RemotingCommand { opaque: Opaque(-7), ..RemotingCommand::request(34, &(), Vec::new()) }
        .encode(Codec::RocketMq, &mut bytes);
    let request = Frame::decode(&bytes).unwrap().header;
    let head = request.reply(crate::code::ResponseCode::SUCCESS, Some("done"));
    let mut bytes = Vec::new();
    encode(&mut bytes, &head, &(), 0);
    let reply = Frame::decode(&bytes).unwrap().header;
    assert!(reply.is_response() && !reply.is_oneway());
    assert_eq!(
        (reply.codec, reply.opaque, reply.remark.as_deref()),
        (Codec::RocketMq, Opaque(-7), Some("done"))
    );
    assert!(Head::request(Codec::Json, 15, Opaque(1)).oneway().flag & FLAG_ONEWAY != 0);
}
