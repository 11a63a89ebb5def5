//! Queues, members, locks and offsets.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Body;
use super::heartbeat::SubscriptionData;

/// One queue of a topic. Ordered as clients sort them for the rebalance: topic, broker name, queue id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueue {
    pub broker_name: String,
    pub queue_id: i32,
    pub topic: String,
}

impl MessageQueue {
    pub fn new(topic: impl Into<String>, broker_name: impl Into<String>, queue_id: i32) -> Self {
        Self { broker_name: broker_name.into(), queue_id, topic: topic.into() }
    }
}

impl Ord for MessageQueue {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.topic, &self.broker_name, self.queue_id).cmp(&(
            &other.topic,
            &other.broker_name,
            other.queue_id,
        ))
    }
}

impl PartialOrd for MessageQueue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Response body of GET_CONSUMER_LIST_BY_GROUP (38).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerListBody {
    pub consumer_id_list: Vec<String>,
}

impl Body for ConsumerListBody {}

/// Request body of LOCK_BATCH_MQ (41) and UNLOCK_BATCH_MQ (42).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockBatchBody {
    pub client_id: String,
    pub consumer_group: String,
    #[serde(default)]
    pub mq_set: Vec<MessageQueue>,
    #[serde(default)]
    pub only_this_broker: bool,
}

impl Body for LockBatchBody {}

/// Response body of LOCK_BATCH_MQ (41): those of the queues that the client now holds, exactly as it named them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockBatchResult {
    #[serde(rename = "lockOKMQSet", default)]
    pub lock_ok_mq_set: Vec<MessageQueue>,
}

impl Body for LockBatchResult {}

/// Body of 220 and 222.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResetOffsetBody {
    #[serde(default)]
    pub offset_table: BTreeMap<MessageQueue, i64>,
}

impl Body for ResetOffsetBody {}

/// Body of 221 and 223.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerStatusBody {
    pub consumer_table: BTreeMap<String, BTreeMap<MessageQueue, i64>>,
    pub message_queue_table: BTreeMap<MessageQueue, i64>,
}

impl Body for ConsumerStatusBody {}

/// Request body of CHECK_CLIENT_CONFIG (46).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckClientConfigBody {
    #[serde(default)]
    pub client_id: String,
    #[serde(default)]
    pub group: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub subscription_data: SubscriptionData,
}

impl Body for CheckClientConfigBody {}

/// Response body of CONSUME_MESSAGE_DIRECTLY (309).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeMessageDirectlyResult {
    pub auto_commit: bool,
    /// CR_SUCCESS, CR_LATER, CR_ROLLBACK, CR_COMMIT, CR_THROW_EXCEPTION or CR_RETURN_NULL.
    pub consume_result: String,
    pub order: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    pub spent_time_mills: i64,
}

impl Body for ConsumeMessageDirectlyResult {}

/// Request body of QUERY_ASSIGNMENT (400).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryAssignmentBody {
    pub client_id: String,
    pub consumer_group: String,
    #[serde(default)]
    pub message_model: super::MessageModel,
    #[serde(default)]
    pub strategy_name: String,
    pub topic: String,
}

impl Body for QueryAssignmentBody {}

/// Response body of QUERY_ASSIGNMENT (400). `None` leaves the client's assignment as it is, an empty list clears it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryAssignmentResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_queue_assignments: Option<Vec<MessageQueueAssignment>>,
}

impl Body for QueryAssignmentResult {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueAssignment {
    #[serde(default)]
    pub attachments: BTreeMap<String, String>,
    pub message_queue: MessageQueue,
    #[serde(default)]
    pub mode: MessageRequestMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MessageRequestMode {
    #[default]
    Pull,
    Pop,
}

/// Request body of SET_MESSAGE_REQUEST_MODE (401).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetMessageRequestModeBody {
    pub consumer_group: String,
    #[serde(default)]
    pub mode: MessageRequestMode,
    /// In POP mode: queues of how many other clients each client shares; 0: every client pops all queues.
    #[serde(default)]
    pub pop_share_queue_num: i32,
    pub topic: String,
}

impl Body for SetMessageRequestModeBody {}

/// Response body of GET_ALL_MESSAGE_REQUEST_MODE (402): by topic, then by group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageRequestModes {
    pub message_request_mode_map: BTreeMap<String, BTreeMap<String, SetMessageRequestModeBody>>,
}

impl Body for MessageRequestModes {}

/// Request body of BATCH_ACK_MESSAGE (200151).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchAckBody {
    pub acks: Vec<BatchAck>,
    pub broker_name: String,
}

impl Body for BatchAckBody {}

/// Messages that came from one queue with one pop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchAck {
    #[serde(rename = "b", alias = "bitSet", default)]
    pub offsets: OffsetBits,
    #[serde(rename = "c", alias = "consumerGroup")]
    pub consumer_group: String,
    #[serde(rename = "it", alias = "invisibleTime", default)]
    pub invisible_time: i64,
    #[serde(rename = "pt", alias = "popTime")]
    pub pop_time: i64,
    #[serde(rename = "q", alias = "queueId")]
    pub queue_id: i32,
    /// The flag of [`crate::receipt::PopSource`].
    #[serde(rename = "r", alias = "retry", default = "zero")]
    pub retry: String,
    #[serde(rename = "rq", alias = "reviveQueueId", default)]
    pub revive_queue_id: i32,
    #[serde(rename = "so", alias = "startOffset")]
    pub start_offset: i64,
    /// The topic that was asked for.
    #[serde(rename = "t", alias = "topic")]
    pub topic: String,
}

fn zero() -> String {
    "0".to_owned()
}

/// Which offsets from a first one on are meant: Java's `BitSet` as little-endian bytes, in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetBits(Vec<u8>);

impl OffsetBits {
    /// Distances from the first offset that are meant, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let bits_of = |byte: u8| (0..8u64).filter(move |bit| byte >> bit & 1 == 1);
        self.0
            .iter()
            .enumerate()
            .flat_map(move |(at, byte)| bits_of(*byte).map(move |bit| at as u64 * 8 + bit))
    }

    /// Bytes of the set.
    pub fn byte_count(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<u32> for OffsetBits {
    fn from_iter<I: IntoIterator<Item = u32>>(distances: I) -> Self {
        let mut bytes = Vec::new();
        for distance in distances {
            let at = (distance / 8) as usize;
            if bytes.len() <= at {
                bytes.resize(at + 1, 0u8);
            }
            bytes[at] |= 1 << (distance % 8);
        }
        Self(bytes)
    }
}

impl Serialize for OffsetBits {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for OffsetBits {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine;
        let text = String::deserialize(deserializer)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        bytes.map(Self).map_err(serde::de::Error::custom)
    }
}

/// Response body of GET_CONSUMER_RUNNING_INFO (307).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerRunningInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jstack: Option<String>,
    pub mq_pop_table: BTreeMap<MessageQueue, PopProcessQueueInfo>,
    pub mq_table: BTreeMap<MessageQueue, ProcessQueueInfo>,
    /// By the names below, and what else the client wants to tell.
    pub properties: BTreeMap<String, String>,
    /// By topic.
    pub status_table: BTreeMap<String, ConsumeStatus>,
    pub subscription_set: Vec<SubscriptionData>,
    pub user_consumer_info: BTreeMap<String, String>,
}

impl ConsumerRunningInfo {
    pub const PROP_NAMESERVER_ADDR: &str = "PROP_NAMESERVER_ADDR";
    pub const PROP_THREADPOOL_CORE_SIZE: &str = "PROP_THREADPOOL_CORE_SIZE";
    /// `true` or `false`.
    pub const PROP_CONSUME_ORDERLY: &str = "PROP_CONSUMEORDERLY";
    /// `CONSUME_PASSIVELY` or another name of [`super::ConsumeType`].
    pub const PROP_CONSUME_TYPE: &str = "PROP_CONSUME_TYPE";
    pub const PROP_CLIENT_VERSION: &str = "PROP_CLIENT_VERSION";
    /// Milliseconds since 1970.
    pub const PROP_CONSUMER_START_TIMESTAMP: &str = "PROP_CONSUMER_START_TIMESTAMP";
}

impl Body for ConsumerRunningInfo {}

/// A queue as its consumer sees it. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessQueueInfo {
    pub cached_msg_count: i32,
    pub cached_msg_max_offset: i64,
    pub cached_msg_min_offset: i64,
    pub cached_msg_size_in_mi_b: i32,
    pub commit_offset: i64,
    /// Dropped, in RocketMQ's spelling.
    pub droped: bool,
    pub last_consume_timestamp: i64,
    pub last_lock_timestamp: i64,
    pub last_pull_timestamp: i64,
    pub locked: bool,
    pub transaction_msg_count: i32,
    pub transaction_msg_max_offset: i64,
    pub transaction_msg_min_offset: i64,
    pub try_unlock_times: i64,
}

/// A queue that is consumed by POP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PopProcessQueueInfo {
    pub droped: bool,
    pub last_pop_timestamp: i64,
    pub wait_ack_count: i32,
}

/// How the consumption of a topic went lately. Times are milliseconds on average, rates are per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumeStatus {
    #[serde(rename = "consumeFailedMsgs")]
    pub consume_failed_msgs: i64,
    #[serde(rename = "consumeFailedTPS")]
    pub consume_failed_tps: f64,
    #[serde(rename = "consumeOKTPS")]
    pub consume_ok_tps: f64,
    #[serde(rename = "consumeRT")]
    pub consume_rt: f64,
    #[serde(rename = "pullRT")]
    pub pull_rt: f64,
    #[serde(rename = "pullTPS")]
    pub pull_tps: f64,
}
