//! Sending: 10, 310, 320, and replies 324, 325, 326; recall 370.

use std::borrow::Cow;

use super::field::headers;
use crate::code::RequestCode;
use crate::frame::{Ext, Fields, Text, Value};
use crate::request::FieldError;

headers! {
    /// SEND_MESSAGE (10), SEND_MESSAGE_V2 (310), SEND_BATCH_MESSAGE (320) and the replies (324, 325).
    renamed struct SendMessageRequest<'a> {
        producer_group: Text<'a> = "producerGroup",
        topic: Cow<'a, str> = "topic",
        default_topic: Text<'a> = "defaultTopic",
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        /// Below 0: the broker chooses.
        queue_id: i32 = "queueId",
        sys_flag: i32 = "sysFlag",
        born_timestamp: i64 = "bornTimestamp",
        flag: i32 = "flag",
        properties: Option<Text<'a>> = "properties",
        reconsume_times: i32 = "reconsumeTimes" or 0,
        unit_mode: bool = "unitMode" or false,
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
        batch: bool = "batch" or false,
        broker_name: Option<Text<'a>> = "bname",
    }

    /// Response of every send; also of codes 10, 11 and 12.
    struct SendMessageResponse<'a> {
        /// Offset message ids, joined by commas for a batch.
        msg_id: Cow<'a, str> = "msgId",
        queue_id: i32 = "queueId",
        queue_offset: i64 = "queueOffset",
        transaction_id: Option<Cow<'a, str>> = "transactionId",
        batch_uniq_id: Option<Cow<'a, str>> = "batchUniqId",
        recall_handle: Option<Cow<'a, str>> = "recallHandle",
        region_id: Option<Cow<'a, str>> = "MSG_REGION",
        trace_on: Option<bool> = "TRACE_ON",
    }

    /// PUSH_REPLY_MESSAGE_TO_CLIENT (326), broker to client.
    struct PushReplyMessageRequest<'a> {
        producer_group: Cow<'a, str> = "producerGroup",
        topic: Cow<'a, str> = "topic",
        default_topic: Cow<'a, str> = "defaultTopic",
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        queue_id: i32 = "queueId",
        sys_flag: i32 = "sysFlag",
        born_timestamp: i64 = "bornTimestamp",
        flag: i32 = "flag",
        properties: Option<Cow<'a, str>> = "properties",
        reconsume_times: Option<i32> = "reconsumeTimes",
        unit_mode: bool = "unitMode" or false,
        /// "ip:port", like the next.
        born_host: Cow<'a, str> = "bornHost",
        store_host: Cow<'a, str> = "storeHost",
        store_timestamp: i64 = "storeTimestamp",
    }

    /// RECALL_MESSAGE (370).
    struct RecallMessageRequest<'a> {
        producer_group: Option<Cow<'a, str>> = "producerGroup",
        topic: Cow<'a, str> = "topic",
        recall_handle: Cow<'a, str> = "recallHandle",
    }

    struct RecallMessageResponse<'a> {
        msg_id: Cow<'a, str> = "msgId",
    }
}

/// Letter and long name of each field, in the order of the letters from `a`.
const NAMES: [(&str, &str); 14] = [
    ("a", "producerGroup"),
    ("b", "topic"),
    ("c", "defaultTopic"),
    ("d", "defaultTopicQueueNums"),
    ("e", "queueId"),
    ("f", "sysFlag"),
    ("g", "bornTimestamp"),
    ("h", "flag"),
    ("i", "properties"),
    ("j", "reconsumeTimes"),
    ("k", "unitMode"),
    ("l", "maxReconsumeTimes"),
    ("m", "batch"),
    ("n", "bname"),
];

/// The letters are in the order of the fields.
fn index_of_letter(name: &[u8]) -> Option<usize> {
    match name {
        [letter @ b'a'..=b'n'] => Some(usize::from(letter - b'a')),
        _ => None,
    }
}

impl<'a> SendMessageRequest<'a> {
    /// Reads the letters of codes 310, 320 and 325, and the long names of any other code.
    pub fn decode(code: RequestCode, ext: &Ext<'a>) -> Result<Self, FieldError> {
        match code {
            RequestCode::SEND_MESSAGE_V2
            | RequestCode::SEND_BATCH_MESSAGE
            | RequestCode::SEND_REPLY_MESSAGE_V2 => Self::decode_by(ext, index_of_letter),
            _ => Self::decode_by(ext, Self::index_of),
        }
    }

    /// The encoded properties as they came; none if there are none.
    pub fn encoded_properties(&self) -> &[u8] {
        self.properties.as_ref().map_or(&[], Text::as_bytes)
    }

    /// The fields under the letters that codes 310, 320 and 325 use.
    pub fn fields_v2(&self) -> SendMessageFieldsV2<'_> {
        SendMessageFieldsV2(self)
    }
}

/// See [`SendMessageRequest::fields_v2`].
#[derive(Clone, Copy, Debug)]
pub struct SendMessageFieldsV2<'a>(&'a SendMessageRequest<'a>);

impl Fields for SendMessageFieldsV2<'_> {
    fn for_each(&self, f: &mut dyn FnMut(&str, Value<'_>)) {
        self.0.for_each(&mut |long, value| {
            if let Some((letter, _)) = NAMES.iter().find(|(_, name)| *name == long) {
                f(letter, value);
            }
        });
    }
}
