//! The name server: routes, its registry of brokers, its key-value settings.

use std::borrow::Cow;

use super::field::headers;

headers! {
    /// GET_ROUTEINFO_BY_TOPIC (105).
    struct GetRouteInfoRequest<'a> {
        topic: Cow<'a, str> = "topic",
        accept_standard_json_only: bool = "acceptStandardJsonOnly" or false,
    }

    /// REGISTER_BROKER (103).
    struct RegisterBrokerRequest<'a> {
        broker_name: Cow<'a, str> = "brokerName",
        broker_addr: Cow<'a, str> = "brokerAddr",
        cluster_name: Cow<'a, str> = "clusterName",
        ha_server_addr: Cow<'a, str> = "haServerAddr",
        broker_id: i64 = "brokerId",
        heartbeat_timeout_millis: Option<i64> = "heartbeatTimeoutMillis",
        enable_acting_master: Option<bool> = "enableActingMaster",
        /// The body is a zlib stream, see `body::RegisterBrokerBody::decode`.
        compressed: bool = "compressed" or false,
        /// CRC-32 of the body as sent, without its sign bit; 0 means "not checked".
        body_crc32: i32 = "bodyCrc32" or 0,
        zone_name: Option<Cow<'a, str>> = "__ZONE_NAME",
    }

    struct RegisterBrokerResponse<'a> {
        ha_server_addr: Option<Cow<'a, str>> = "haServerAddr",
        master_addr: Option<Cow<'a, str>> = "masterAddr",
    }

    /// UNREGISTER_BROKER (104).
    struct UnregisterBrokerRequest<'a> {
        broker_name: Cow<'a, str> = "brokerName",
        broker_addr: Cow<'a, str> = "brokerAddr",
        cluster_name: Cow<'a, str> = "clusterName",
        broker_id: i64 = "brokerId",
    }

    /// QUERY_DATA_VERSION (322).
    struct QueryDataVersionRequest<'a> {
        broker_name: Cow<'a, str> = "brokerName",
        broker_addr: Cow<'a, str> = "brokerAddr",
        cluster_name: Cow<'a, str> = "clusterName",
        broker_id: i64 = "brokerId",
    }

    struct QueryDataVersionResponse {
        changed: bool = "changed",
    }

    /// BROKER_HEARTBEAT (904).
    struct BrokerHeartbeatRequest<'a> {
        cluster_name: Cow<'a, str> = "clusterName",
        broker_addr: Cow<'a, str> = "brokerAddr",
        broker_name: Cow<'a, str> = "brokerName",
        broker_id: Option<i64> = "brokerId",
        epoch: Option<i32> = "epoch",
        max_offset: Option<i64> = "maxOffset",
        confirm_offset: Option<i64> = "confirmOffset",
        heartbeat_timeout_millis: Option<i64> = "heartbeatTimeoutMills",
        election_priority: Option<i32> = "electionPriority",
    }

    /// GET_BROKER_MEMBER_GROUP (901).
    struct GetBrokerMemberGroupRequest<'a> {
        cluster_name: Cow<'a, str> = "clusterName",
        broker_name: Cow<'a, str> = "brokerName",
    }

    /// REGISTER_TOPIC_IN_NAMESRV (217).
    struct RegisterTopicRequest<'a> {
        topic: Cow<'a, str> = "topic",
    }

    /// DELETE_TOPIC_IN_NAMESRV (216).
    struct DeleteTopicInNamesrvRequest<'a> {
        topic: Cow<'a, str> = "topic",
        cluster_name: Option<Cow<'a, str>> = "clusterName",
    }

    /// GET_TOPICS_BY_CLUSTER (224).
    struct GetTopicsByClusterRequest<'a> {
        cluster: Cow<'a, str> = "cluster",
    }

    /// PUT_KV_CONFIG (100).
    struct PutKvConfigRequest<'a> {
        namespace: Cow<'a, str> = "namespace",
        key: Cow<'a, str> = "key",
        value: Cow<'a, str> = "value",
    }

    /// GET_KV_CONFIG (101).
    struct GetKvConfigRequest<'a> {
        namespace: Cow<'a, str> = "namespace",
        key: Cow<'a, str> = "key",
    }

    struct GetKvConfigResponse<'a> {
        value: Option<Cow<'a, str>> = "value",
    }

    /// DELETE_KV_CONFIG (102).
    struct DeleteKvConfigRequest<'a> {
        namespace: Cow<'a, str> = "namespace",
        key: Cow<'a, str> = "key",
    }

    /// GET_KVLIST_BY_NAMESPACE (219).
    struct GetKvListByNamespaceRequest<'a> {
        namespace: Cow<'a, str> = "namespace",
    }

    /// WIPE_WRITE_PERM_OF_BROKER (205).
    struct WipeWritePermRequest<'a> {
        broker_name: Cow<'a, str> = "brokerName",
    }

    struct WipeWritePermResponse {
        wipe_topic_count: i32 = "wipeTopicCount",
    }

    /// ADD_WRITE_PERM_OF_BROKER (327).
    struct AddWritePermRequest<'a> {
        broker_name: Cow<'a, str> = "brokerName",
    }

    struct AddWritePermResponse {
        add_topic_count: i32 = "addTopicCount",
    }
}
