//! Consuming: pulls, offsets, membership, locks' neighbours, and what consumers send back.

use std::borrow::Cow;

use super::field::{BoundaryType, headers};
use crate::types::{PhysicalOffset, QueueId};

/// Bits of [`PullMessageRequest::sys_flag`].
pub mod pull_flag {
    /// `commit_offset` is to be stored for this queue.
    pub const COMMIT_OFFSET: i32 = 1;
    /// The broker may hold the request.
    pub const SUSPEND: i32 = 2;
    /// `subscription` and `expression_type` of the request count.
    pub const SUBSCRIPTION: i32 = 4;
    pub const CLASS_FILTER: i32 = 8;
    pub const LITE_PULL: i32 = 16;
}

headers! {
    /// PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361).
    struct PullMessageRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        /// Below 0 it names no queue.
        queue_id: i32 = "queueId",
        queue_offset: i64 = "queueOffset",
        max_msg_nums: i32 = "maxMsgNums",
        /// See [`pull_flag`].
        sys_flag: i32 = "sysFlag",
        commit_offset: i64 = "commitOffset",
        suspend_timeout_millis: i64 = "suspendTimeoutMillis",
        subscription: Option<Cow<'a, str>> = "subscription",
        sub_version: i64 = "subVersion",
        expression_type: Option<Cow<'a, str>> = "expressionType",
        max_msg_bytes: Option<i32> = "maxMsgBytes",
        request_source: Option<i32> = "requestSource",
        proxy_forward_client_id: Option<Cow<'a, str>> = "proxyFrowardClientId",
    }

    /// The first four fields are required by Java clients on codes 0, 19, 20 and 21.
    struct PullMessageResponse {
        /// 0 is the master; clients fail over to an id that does not exist.
        suggest_which_broker_id: i64 = "suggestWhichBrokerId",
        next_begin_offset: i64 = "nextBeginOffset",
        min_offset: i64 = "minOffset",
        max_offset: i64 = "maxOffset",
        offset_delta: Option<i64> = "offsetDelta",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        group_sys_flag: Option<i32> = "groupSysFlag",
        /// With code 16.
        forbidden_type: Option<i32> = "forbiddenType",
    }

    /// QUERY_CONSUMER_OFFSET (14).
    struct QueryConsumerOffsetRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        queue_id: QueueId = "queueId",
        set_zero_if_not_found: Option<bool> = "setZeroIfNotFound",
    }

    /// Response of 14, 29, 30 and 31.
    struct OffsetResponse {
        offset: i64 = "offset",
    }

    /// UPDATE_CONSUMER_OFFSET (15).
    struct UpdateConsumerOffsetRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Cow<'a, str> = "topic",
        queue_id: QueueId = "queueId",
        commit_offset: i64 = "commitOffset",
    }

    /// GET_MAX_OFFSET (30).
    struct GetMaxOffsetRequest<'a> {
        topic: Cow<'a, str> = "topic",
        queue_id: QueueId = "queueId",
        committed: bool = "committed" or true,
    }

    /// GET_MIN_OFFSET (31).
    struct GetMinOffsetRequest<'a> {
        topic: Cow<'a, str> = "topic",
        queue_id: QueueId = "queueId",
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP (29).
    struct SearchOffsetRequest<'a> {
        topic: Cow<'a, str> = "topic",
        queue_id: QueueId = "queueId",
        timestamp: i64 = "timestamp",
        boundary_type: BoundaryType = "boundaryType" or BoundaryType::Lower,
    }

    /// GET_EARLIEST_MSG_STORETIME (32).
    struct GetEarliestMsgStoretimeRequest<'a> {
        topic: Cow<'a, str> = "topic",
        queue_id: QueueId = "queueId",
    }

    struct GetEarliestMsgStoretimeResponse {
        /// Milliseconds; -1 if the queue is empty.
        timestamp: i64 = "timestamp",
    }

    /// GET_CONSUMER_LIST_BY_GROUP (38).
    struct GetConsumerListByGroupRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
    }

    /// UNREGISTER_CLIENT (35). Note the spelling of its first field.
    struct UnregisterClientRequest<'a> {
        client_id: Cow<'a, str> = "clientID",
        producer_group: Option<Cow<'a, str>> = "producerGroup",
        consumer_group: Option<Cow<'a, str>> = "consumerGroup",
    }

    /// Response of HEART_BEAT (34).
    struct HeartbeatResponse {
        is_support_heart_beat_v2: Option<bool> = "IS_SUPPORT_HEART_BEAT_V2",
        is_sub_change: Option<bool> = "IS_SUB_CHANGE",
    }

    /// NOTIFY_CONSUMER_IDS_CHANGED (40), broker to client.
    struct NotifyConsumerIdsChangedRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
    }

    /// CONSUMER_SEND_MSG_BACK (36).
    struct ConsumerSendMsgBackRequest<'a> {
        offset: PhysicalOffset = "offset",
        group: Cow<'a, str> = "group",
        /// 0: the broker decides; below 0: dead letter; above: the level.
        delay_level: i32 = "delayLevel",
        origin_msg_id: Option<Cow<'a, str>> = "originMsgId",
        origin_topic: Option<Cow<'a, str>> = "originTopic",
        unit_mode: bool = "unitMode" or false,
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
        broker_name: Option<Cow<'a, str>> = "bname",
    }

    /// QUERY_MESSAGE (12).
    struct QueryMessageRequest<'a> {
        topic: Cow<'a, str> = "topic",
        key: Cow<'a, str> = "key",
        max_num: i32 = "maxNum",
        begin_timestamp: i64 = "beginTimestamp",
        end_timestamp: i64 = "endTimestamp",
        unique_key_query: bool = "_UNIQUE_KEY_QUERY" or false,
    }

    struct QueryMessageResponse {
        index_last_update_timestamp: i64 = "indexLastUpdateTimestamp",
        index_last_update_phyoffset: i64 = "indexLastUpdatePhyoffset",
    }

    /// VIEW_MESSAGE_BY_ID (33).
    struct ViewMessageByIdRequest<'a> {
        topic: Option<Cow<'a, str>> = "topic",
        offset: PhysicalOffset = "offset",
    }

    /// GET_CONSUMER_RUNNING_INFO (307), relayed to the client.
    struct GetConsumerRunningInfoRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        client_id: Cow<'a, str> = "clientId",
        jstack_enable: bool = "jstackEnable" or false,
    }

    /// CONSUME_MESSAGE_DIRECTLY (309), relayed to the client with the stored message as body.
    struct ConsumeMessageDirectlyRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        client_id: Option<Cow<'a, str>> = "clientId",
        msg_id: Option<Cow<'a, str>> = "msgId",
        topic: Option<Cow<'a, str>> = "topic",
        broker_name: Option<Cow<'a, str>> = "brokerName",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        group_sys_flag: Option<i32> = "groupSysFlag",
    }

    /// RESET_CONSUMER_CLIENT_OFFSET (220), broker to client.
    struct ResetOffsetRequest<'a> {
        topic: Cow<'a, str> = "topic",
        group: Cow<'a, str> = "group",
        timestamp: i64 = "timestamp",
        is_force: bool = "isForce" or false,
    }

    /// GET_CONSUMER_STATUS_FROM_CLIENT (221), broker to client.
    struct GetConsumerStatusRequest<'a> {
        topic: Cow<'a, str> = "topic",
        group: Cow<'a, str> = "group",
        client_addr: Option<Cow<'a, str>> = "clientAddr",
    }
}

impl<'a> PullMessageRequest<'a> {
    /// A pull of at most 32 messages, by the filter that the group's heartbeats name, answered at once.
    pub fn new(
        consumer_group: impl Into<Cow<'a, str>>,
        topic: impl Into<Cow<'a, str>>,
        queue_id: i32,
        queue_offset: i64,
    ) -> Self {
        Self {
            consumer_group: consumer_group.into(),
            topic: topic.into(),
            queue_id,
            queue_offset,
            max_msg_nums: 32,
            sys_flag: 0,
            commit_offset: 0,
            suspend_timeout_millis: 0,
            subscription: None,
            sub_version: 0,
            expression_type: None,
            max_msg_bytes: None,
            request_source: None,
            proxy_forward_client_id: None,
        }
    }

    /// With a filter of its own: tags with `||` between them, `*` for all messages.
    #[must_use]
    pub fn filtered(self, tags: impl Into<Cow<'a, str>>) -> Self {
        let sys_flag = self.sys_flag | pull_flag::SUBSCRIPTION;
        Self { sys_flag, subscription: Some(tags.into()), ..self }
    }

    /// It may wait for so many milliseconds; not at all for 0.
    #[must_use]
    pub fn held(self, hold_ms: i64) -> Self {
        let suspend = if hold_ms > 0 { pull_flag::SUSPEND } else { 0 };
        Self { sys_flag: self.sys_flag | suspend, suspend_timeout_millis: hold_ms, ..self }
    }
}
