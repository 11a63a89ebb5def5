//! Requests that are right, for tests to send as they are or to spoil.

use bytes::Bytes;
use ringmq_protocol::body::{Body, ConsumerData, HeartbeatData, ProducerData, SubscriptionData};
use ringmq_protocol::code::RequestCode;
use ringmq_protocol::frame::RemotingCommand;
use ringmq_protocol::message::messages;
use ringmq_protocol::properties;
use ringmq_protocol::request::{
    GetMaxOffsetRequest, PullMessageRequest, SendMessageRequest, SendMessageResponse,
};
use ringmq_protocol::types::QueueId;
use ringmq_tests::Raw;

/// The topic whose settings a new topic gets.
const TEMPLATE: &str = "TBW102";

pub(crate) fn send(topic: &str, queue_id: i32) -> SendMessageRequest<'_> {
    SendMessageRequest {
        producer_group: "senders".into(),
        topic: topic.into(),
        default_topic: TEMPLATE.into(),
        default_topic_queue_nums: 4,
        queue_id,
        sys_flag: 0,
        born_timestamp: 1,
        flag: 0,
        properties: None,
        reconsume_times: 0,
        unit_mode: false,
        max_reconsume_times: None,
        batch: false,
        broker_name: None,
    }
}

/// A send with one property.
pub(crate) fn send_with<'a>(topic: &'a str, name: &str, value: &str) -> SendMessageRequest<'a> {
    let encoded = properties::encode([(name, value)]).expect("a property without separators");
    let encoded = String::from_utf8(encoded).expect("UTF-8");
    SendMessageRequest { properties: Some(encoded.into()), ..send(topic, 0) }
}

/// A pull of queue 0 that may wait for `hold_ms`, for messages with one of these tags.
pub(crate) fn pull<'a>(topic: &'a str, offset: i64, hold_ms: i64, tags: &'a str) -> PullMessageRequest<'a> {
    PullMessageRequest {
        expression_type: Some("TAG".into()),
        ..PullMessageRequest::new("readers", topic, 0, offset).filtered(tags).held(hold_ms)
    }
}

/// What a client with a producer and a consumer says every 30 seconds.
pub(crate) fn heartbeat(client_id: &str, group: &str) -> Bytes {
    let heartbeat = HeartbeatData {
        client_id: client_id.to_owned(),
        consumer_data_set: vec![ConsumerData {
            group_name: group.to_owned(),
            subscription_data_set: vec![SubscriptionData::tag_expression("Topic", "*")],
            ..ConsumerData::default()
        }],
        producer_data_set: vec![ProducerData { group_name: "senders".to_owned() }],
        ..HeartbeatData::default()
    };
    heartbeat.to_json().into()
}

/// Sends a message and demands success; its offset in the queue.
pub(crate) fn store(raw: &mut Raw, request: &SendMessageRequest<'_>, body: impl Into<Bytes>) -> i64 {
    let response = raw.call(RequestCode::SEND_MESSAGE_V2, &request.fields_v2(), body);
    assert_eq!(response.code, 0, "{response:?}");
    SendMessageResponse::decode(&response.header().ext).expect("a send's answer").queue_offset
}

/// The end of queue 0.
pub(crate) fn max_offset(raw: &mut Raw, topic: &str) -> i64 {
    let request = GetMaxOffsetRequest { topic: topic.into(), queue_id: QueueId(0), committed: true };
    let response = raw.call(RequestCode::GET_MAX_OFFSET, &request, Bytes::new());
    assert_eq!(response.code, 0, "{response:?}");
    response.ext("offset").and_then(|offset| offset.parse().ok()).expect("an offset")
}

/// The bodies of the messages in the answer to a pull.
pub(crate) fn bodies(response: &RemotingCommand) -> Vec<Vec<u8>> {
    assert_eq!(response.code, 0, "{response:?}");
    messages(&response.body).map(|message| message.expect("a message").body().to_vec()).collect()
}
