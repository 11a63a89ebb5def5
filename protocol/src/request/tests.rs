use proptest::prelude::*;

use super::*;
use crate::code::RequestCode;
use crate::frame::{Codec, Ext, Fields, Frame, Head, encode};
use crate::types::{Opaque, PhysicalOffset, QueueId};

/// What arrives of fields that were sent in a codec.
fn through<R>(codec: Codec, fields: &dyn Fields, read: impl FnOnce(&Ext<'_>) -> R) -> R {
    let mut bytes = Vec::new();
    encode(&mut bytes, &Head::request(codec, 1, Opaque(0)), fields, 0);
    read(&Frame::decode(&bytes).unwrap().header.ext)
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Json), Just(Codec::RocketMq)]
}

proptest! {
    #[test]
    fn send_requests_round_trip_under_both_sets_of_names(
        names in (".{0,8}", ".{0,8}", any::<i32>(), any::<i64>(), any::<bool>()),
        properties in proptest::option::of("[\u{1}\u{2}a-zé\"\\\\]{0,20}"),
        max in proptest::option::of(any::<i32>()),
        codec in codec(),
    ) {
        let request = SendMessageRequest {
            producer_group: names.0.into(),
            topic: names.1.into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: 4,
            queue_id: names.2,
            sys_flag: names.2,
            born_timestamp: names.3,
            flag: names.2,
            properties: properties.map(Into::into),
            reconsume_times: 3,
            unit_mode: names.4,
            max_reconsume_times: max,
            batch: !names.4,
            broker_name: None,
        };
        for (code, fields) in [
            (RequestCode::SEND_MESSAGE, &request as &dyn Fields),
            (RequestCode::SEND_REPLY_MESSAGE, &request),
            (RequestCode::SEND_MESSAGE_V2, &request.fields_v2()),
            (RequestCode::SEND_BATCH_MESSAGE, &request.fields_v2()),
            (RequestCode::SEND_REPLY_MESSAGE_V2, &request.fields_v2()),
        ] {
            let got = through(codec, fields, |ext| SendMessageRequest::decode(code, ext).unwrap().fields_v2().to_pairs());
            prop_assert_eq!(got, request.fields_v2().to_pairs());
        }
    }

    #[test]
    fn pull_requests_round_trip(
        names in (".{0,8}", proptest::option::of(".{0,8}")),
        numbers in (any::<i32>(), any::<i64>(), proptest::option::of(any::<i32>())),
        codec in codec(),
    ) {
        let request = PullMessageRequest {
            consumer_group: names.0.into(),
            topic: "T".into(),
            queue_id: numbers.0,
            queue_offset: numbers.1,
            max_msg_nums: 32,
            sys_flag: pull_flag::SUSPEND | pull_flag::COMMIT_OFFSET,
            commit_offset: numbers.1,
            suspend_timeout_millis: 15_000,
            subscription: names.1.map(Into::into),
            sub_version: numbers.1,
            expression_type: None,
            max_msg_bytes: numbers.2,
            request_source: None,
            proxy_forward_client_id: None,
        };
        through(codec, &request, |ext| assert_eq!(PullMessageRequest::decode(ext), Ok(request.clone())));
    }

    #[test]
    fn any_fields_decode_or_name_a_field(fields in proptest::collection::vec(("[a-n]|topic|offset|queueId", ".{0,6}"), 0..16)) {
        let ext = Ext::pairs(&fields);
        let _ = SendMessageRequest::decode(RequestCode::SEND_MESSAGE_V2, &ext);
        if let Err(error) = SearchOffsetRequest::decode(&ext) {
            prop_assert!(["topic", "queueId", "timestamp"].contains(&error.field));
        }
    }
}

#[test]
fn an_error_names_the_field() {
    let missing = pairs(&[("topic", "T"), ("queueId", "0")]);
    let error = UpdateConsumerOffsetRequest::decode(&Ext::pairs(&missing)).unwrap_err();
    assert_eq!(error, FieldError { field: "consumerGroup", problem: FieldProblem::Missing });
    assert_eq!(error.to_string(), "field consumerGroup is missing");
    let negative = pairs(&[("topic", "T"), ("queueId", "-1")]);
    let error = GetMaxOffsetRequest::decode(&Ext::pairs(&negative)).unwrap_err();
    assert_eq!(error, FieldError { field: "queueId", problem: FieldProblem::NotANumber });
    // The binary codec says null as an empty string.
    let empty = pairs(&[("offset", "")]);
    let error = OffsetResponse::decode(&Ext::pairs(&empty)).unwrap_err();
    assert_eq!(error.problem, FieldProblem::Missing);
}

#[test]
fn absence_emptiness_and_defaults_are_three_things() {
    let fields = pairs(&[("topic", "T"), ("queueId", "7"), ("timestamp", "5"), ("unknown", "x")]);
    let request = SearchOffsetRequest::decode(&Ext::pairs(&fields)).unwrap();
    assert_eq!((request.queue_id, request.boundary_type), (QueueId(7), BoundaryType::Lower));
    let request = GetMaxOffsetRequest::decode(&Ext::pairs(&fields)).unwrap();
    assert!(request.committed, "the default of this field is true");

    let fields = pairs(&[("topic", ""), ("offset", "256")]);
    let request = ViewMessageByIdRequest::decode(&Ext::pairs(&fields)).unwrap();
    assert_eq!((request.topic.as_deref(), request.offset), (Some(""), PhysicalOffset(256)));
    let request = ViewMessageByIdRequest::decode(&Ext::pairs(&fields[1..])).unwrap();
    assert_eq!(request.topic, None);

    let fields = pairs(&[("clientID", "c"), ("clientId", "wrong")]);
    assert_eq!(UnregisterClientRequest::decode(&Ext::pairs(&fields)).unwrap().client_id, "c");
}

#[test]
fn booleans_and_boundaries_are_read_as_java_reads_them() {
    let read = |name: &str, text: &str| {
        let fields = pairs(&[("topic", "T"), ("queueId", "0"), ("timestamp", "0"), (name, text)]);
        let boundary = SearchOffsetRequest::decode(&Ext::pairs(&fields)).unwrap().boundary_type;
        (GetMaxOffsetRequest::decode(&Ext::pairs(&fields)).unwrap().committed, boundary)
    };
    assert!(read("committed", "TRUE").0 && !read("committed", "yes").0 && !read("committed", "false").0);
    assert_eq!(read("boundaryType", "upper").1, BoundaryType::Upper);
    assert_eq!(read("boundaryType", "?").1, BoundaryType::Lower);
}

#[test]
fn the_letters_are_those_of_the_protocol() {
    let fields = pairs(&[
        ("a", "pg"),
        ("b", "T"),
        ("c", "TBW102"),
        ("d", "4"),
        ("e", "-1"),
        ("f", "0"),
        ("g", "1"),
        ("h", "2"),
        ("n", "b"),
        ("topic", "ignored under this code"),
        ("z", "?"),
    ]);
    let request = SendMessageRequest::decode(RequestCode::SEND_MESSAGE_V2, &Ext::pairs(&fields)).unwrap();
    assert_eq!((&*request.topic, request.queue_id, request.broker_name), ("T", -1, Some("b".into())));
    assert_eq!((request.reconsume_times, request.max_reconsume_times, request.batch), (0, None, false));
    let error = SendMessageRequest::decode(RequestCode::SEND_MESSAGE, &Ext::pairs(&fields)).unwrap_err();
    assert_eq!(error.field, "producerGroup");
}
