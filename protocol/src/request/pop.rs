//! POP: 200050 to 200055. Their codes do not fit the binary codec, so they travel as JSON only.

use std::borrow::Cow;

use super::field::headers;

headers! {
    /// POP_MESSAGE (200050).
    struct PopMessageRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        /// -1: all queues.
        queue_id: i32 = "queueId",
        max_msg_nums: i32 = "maxMsgNums",
        /// Milliseconds.
        invisible_time: i64 = "invisibleTime",
        /// Milliseconds.
        poll_time: i64 = "pollTime",
        /// The client's clock; 0 means "now".
        born_time: i64 = "bornTime" or 0,
        /// 0: from the first message, 1: from the last, for a queue without an offset.
        init_mode: i32 = "initMode",
        exp_type: Option<Cow<'a, str>> = "expType",
        exp: Option<Cow<'a, str>> = "exp",
        order: bool = "order" or false,
        attempt_id: Option<Cow<'a, str>> = "attemptId",
    }

    struct PopMessageResponse<'a> {
        pop_time: i64 = "popTime",
        invisible_time: i64 = "invisibleTime",
        revive_qid: i32 = "reviveQid",
        rest_num: i64 = "restNum",
        start_offset_info: Option<Cow<'a, str>> = "startOffsetInfo",
        msg_offset_info: Option<Cow<'a, str>> = "msgOffsetInfo",
        order_count_info: Option<Cow<'a, str>> = "orderCountInfo",
    }

    /// ACK_MESSAGE (200051).
    struct AckMessageRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        queue_id: i32 = "queueId",
        extra_info: Cow<'a, str> = "extraInfo",
        offset: i64 = "offset",
    }

    /// CHANGE_MESSAGE_INVISIBLETIME (200053).
    struct ChangeInvisibleTimeRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        queue_id: i32 = "queueId",
        extra_info: Cow<'a, str> = "extraInfo",
        offset: i64 = "offset",
        /// Milliseconds from now.
        invisible_time: i64 = "invisibleTime",
    }

    struct ChangeInvisibleTimeResponse {
        pop_time: i64 = "popTime",
        invisible_time: i64 = "invisibleTime",
        revive_qid: i32 = "reviveQid",
    }

    /// PEEK_MESSAGE (200052).
    struct PeekMessageRequest<'a> {
        topic: Cow<'a, str> = "topic",
        queue_id: i32 = "queueId",
        max_msg_nums: i32 = "maxMsgNums",
        consumer_group: Cow<'a, str> = "consumerGroup",
    }

    /// NOTIFICATION (200054).
    struct NotificationRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        queue_id: i32 = "queueId",
        poll_time: i64 = "pollTime",
        born_time: i64 = "bornTime",
        order: bool = "order" or false,
        attempt_id: Option<Cow<'a, str>> = "attemptId",
    }

    struct NotificationResponse {
        has_msg: bool = "hasMsg",
        polling_full: Option<bool> = "pollingFull",
    }
    /// POLLING_INFO (200055).
    struct PollingInfoRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        /// Negative: pops of all queues.
        queue_id: i32 = "queueId",
    }

    struct PollingInfoResponse {
        /// Requests that wait for messages.
        polling_num: i32 = "pollingNum",
    }
}

impl<'a> PopMessageRequest<'a> {
    /// A pop of at most so many messages from all queues of a topic, from their first message on, answered at once.
    pub fn new(
        consumer_group: impl Into<Cow<'a, str>>,
        topic: impl Into<Cow<'a, str>>,
        max_msg_nums: i32,
        invisible_ms: i64,
    ) -> Self {
        Self {
            consumer_group: consumer_group.into(),
            topic: topic.into(),
            queue_id: -1,
            max_msg_nums,
            invisible_time: invisible_ms,
            poll_time: 0,
            born_time: 0,
            init_mode: 0,
            exp_type: None,
            exp: None,
            order: false,
            attempt_id: None,
        }
    }
}
