//! Administration of a broker: topics, groups, connections, statistics.

use std::borrow::Cow;

use super::field::headers;
use crate::body::perm;
use crate::name::AUTO_CREATE_TOPIC_KEY_TOPIC;

headers! {
    /// UPDATE_AND_CREATE_TOPIC (17).
    struct CreateTopicRequest<'a> {
        topic: Cow<'a, str> = "topic",
        default_topic: Cow<'a, str> = "defaultTopic",
        read_queue_nums: i32 = "readQueueNums",
        write_queue_nums: i32 = "writeQueueNums",
        perm: i32 = "perm",
        topic_filter_type: Cow<'a, str> = "topicFilterType",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        order: bool = "order" or false,
        /// `+key=value,-key`
        attributes: Option<Cow<'a, str>> = "attributes",
        force: bool = "force" or false,
    }

    /// DELETE_TOPIC_IN_BROKER (215).
    struct DeleteTopicRequest<'a> {
        topic: Cow<'a, str> = "topic",
    }

    /// GET_ALL_TOPIC_CONFIG (21). All absent: everything is wanted at once.
    struct GetAllTopicConfigRequest<'a> {
        topic_seq: Option<i32> = "topicSeq",
        max_topic_num: Option<i32> = "maxTopicNum",
        /// JSON of a `DataVersion`; empty on the first page.
        data_version: Option<Cow<'a, str>> = "dataVersion",
    }

    struct GetAllTopicConfigResponse {
        /// Its presence tells the client to page.
        total_topic_num: Option<i32> = "totalTopicNum",
    }

    /// GET_TOPIC_CONFIG (351).
    struct GetTopicConfigRequest<'a> {
        topic: Cow<'a, str> = "topic",
        lo: Option<bool> = "lo",
    }

    /// GET_TOPIC_STATS_INFO (202).
    struct GetTopicStatsInfoRequest<'a> {
        topic: Cow<'a, str> = "topic",
    }

    /// QUERY_TOPIC_CONSUME_BY_WHO (300).
    struct QueryTopicConsumeByWhoRequest<'a> {
        topic: Cow<'a, str> = "topic",
    }

    /// GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201). All absent: everything is wanted at once.
    struct GetAllSubscriptionGroupRequest<'a> {
        group_seq: Option<i32> = "groupSeq",
        max_group_num: Option<i32> = "maxGroupNum",
        data_version: Option<Cow<'a, str>> = "dataVersion",
    }

    struct GetAllSubscriptionGroupResponse {
        total_group_num: Option<i32> = "totalGroupNum",
    }

    /// GET_SUBSCRIPTIONGROUP_CONFIG (352).
    struct GetSubscriptionGroupConfigRequest<'a> {
        group: Cow<'a, str> = "group",
    }

    /// DELETE_SUBSCRIPTIONGROUP (207).
    struct DeleteSubscriptionGroupRequest<'a> {
        group_name: Cow<'a, str> = "groupName",
        clean_offset: bool = "cleanOffset" or false,
        /// The same, as clients before 5.0 call it.
        remove_offset: bool = "removeOffset" or false,
    }

    /// GET_CONSUMER_CONNECTION_LIST (203).
    struct GetConsumerConnectionListRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
    }

    /// GET_PRODUCER_CONNECTION_LIST (204).
    struct GetProducerConnectionListRequest<'a> {
        producer_group: Cow<'a, str> = "producerGroup",
    }

    /// GET_CONSUME_STATS (208).
    struct GetConsumeStatsRequest<'a> {
        consumer_group: Cow<'a, str> = "consumerGroup",
        topic: Option<Cow<'a, str>> = "topic",
        /// Topics, each ended by `;`.
        topic_list: Option<Cow<'a, str>> = "topicList",
    }

    /// INVOKE_BROKER_TO_RESET_OFFSET (222).
    struct InvokeBrokerToResetOffsetRequest<'a> {
        group: Cow<'a, str> = "group",
        topic: Cow<'a, str> = "topic",
        /// -1: all queues.
        queue_id: i32 = "queueId" or -1,
        offset: Option<i64> = "offset",
        /// Milliseconds; below 0: the end of the queue.
        timestamp: i64 = "timestamp",
        is_force: bool = "isForce" or false,
    }

    /// VIEW_BROKER_STATS_DATA (315).
    struct ViewBrokerStatsDataRequest<'a> {
        stats_name: Cow<'a, str> = "statsName",
        stats_key: Cow<'a, str> = "statsKey",
    }

    /// Response of GET_BROKER_CONFIG (26).
    struct GetBrokerConfigResponse<'a> {
        /// JSON of a `DataVersion`.
        version: Cow<'a, str> = "version",
    }

    /// UPDATE_AND_GET_GROUP_FORBIDDEN (353).
    struct UpdateGroupForbiddenRequest<'a> {
        group: Cow<'a, str> = "group",
        topic: Cow<'a, str> = "topic",
        /// Absent: nothing changes.
        readable: Option<bool> = "readable",
    }

    /// QUERY_TOPICS_BY_CONSUMER (343).
    struct QueryTopicsByConsumerRequest<'a> {
        group: Cow<'a, str> = "group",
    }

    /// QUERY_SUBSCRIPTION_BY_CONSUMER (345).
    struct QuerySubscriptionByConsumerRequest<'a> {
        group: Cow<'a, str> = "group",
        topic: Option<Cow<'a, str>> = "topic",
    }

    /// GET_BROKER_CONSUME_STATS (317).
    struct GetConsumeStatsInBrokerRequest {
        /// Only topics that are ordered.
        is_order: bool = "isOrder" or false,
    }

    /// QUERY_CONSUME_TIME_SPAN (303).
    struct QueryConsumeTimeSpanRequest<'a> {
        topic: Cow<'a, str> = "topic",
        group: Cow<'a, str> = "group",
    }

    /// QUERY_CORRECTION_OFFSET (308).
    struct QueryCorrectionOffsetRequest<'a> {
        /// Groups that do not count, separated by commas.
        filter_groups: Option<Cow<'a, str>> = "filterGroups",
        compare_group: Cow<'a, str> = "compareGroup",
        topic: Cow<'a, str> = "topic",
    }

    /// CLONE_GROUP_OFFSET (314).
    struct CloneGroupOffsetRequest<'a> {
        src_group: Cow<'a, str> = "srcGroup",
        dest_group: Cow<'a, str> = "destGroup",
        /// Absent: all topics of the source.
        topic: Option<Cow<'a, str>> = "topic",
        offline: bool = "offline" or false,
    }

    /// QUERY_CONSUME_QUEUE (321).
    struct QueryConsumeQueueRequest<'a> {
        topic: Cow<'a, str> = "topic",
        queue_id: i32 = "queueId",
        index: i64 = "index",
        count: i32 = "count",
        consumer_group: Option<Cow<'a, str>> = "consumerGroup",
    }
}

impl<'a> CreateTopicRequest<'a> {
    /// A topic of so many queues that can be written and read, as RocketMQ's clients ask for it.
    pub fn new(topic: impl Into<Cow<'a, str>>, queues: i32) -> Self {
        Self {
            topic: topic.into(),
            default_topic: AUTO_CREATE_TOPIC_KEY_TOPIC.into(),
            read_queue_nums: queues,
            write_queue_nums: queues,
            perm: perm::READ | perm::WRITE,
            topic_filter_type: "SINGLE_TAG".into(),
            topic_sys_flag: Some(0),
            order: false,
            attributes: None,
            force: false,
        }
    }
}
