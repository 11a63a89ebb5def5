//! Settings of topics and groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Body;
use super::route::perm;

/// The age of a set of settings. Two are the same if all three members are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataVersion {
    pub counter: i64,
    pub state_version: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

impl Body for DataVersion {}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TopicFilterType {
    #[default]
    SingleTag,
    MultiTag,
}

impl TopicFilterType {
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleTag => "SINGLE_TAG",
            Self::MultiTag => "MULTI_TAG",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::SingleTag, Self::MultiTag].into_iter().find(|kind| kind.name() == name)
    }
}

/// The settings of a topic on one broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicConfig {
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    #[serde(default)]
    pub order: bool,
    /// See [`perm`].
    #[serde(default = "read_write")]
    pub perm: i32,
    #[serde(default = "sixteen")]
    pub read_queue_nums: u32,
    #[serde(default)]
    pub topic_filter_type: TopicFilterType,
    pub topic_name: String,
    #[serde(default)]
    pub topic_sys_flag: i32,
    #[serde(default = "sixteen")]
    pub write_queue_nums: u32,
}

fn read_write() -> i32 {
    perm::READ | perm::WRITE
}

fn sixteen() -> u32 {
    16
}

impl TopicConfig {
    /// A topic with as many queues to read as to write.
    pub fn new(topic: impl Into<String>, queue_nums: u32, perm: i32) -> Self {
        Self {
            attributes: BTreeMap::new(),
            order: false,
            perm,
            read_queue_nums: queue_nums,
            topic_filter_type: TopicFilterType::SingleTag,
            topic_name: topic.into(),
            topic_sys_flag: 0,
            write_queue_nums: queue_nums,
        }
    }
}

impl Body for TopicConfig {}

/// Body of GET_ALL_TOPIC_CONFIG (21), and part of REGISTER_BROKER (103).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicConfigSerializeWrapper {
    pub data_version: DataVersion,
    pub topic_config_table: BTreeMap<String, TopicConfig>,
}

impl Body for TopicConfigSerializeWrapper {}

/// Body of UPDATE_AND_CREATE_TOPIC_LIST (18).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateTopicListBody {
    pub topic_config_list: Vec<TopicConfig>,
}

impl Body for CreateTopicListBody {}

/// The settings of a consumer group on one broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionGroupConfig {
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    #[serde(default)]
    pub broker_id: i64,
    #[serde(default = "yes")]
    pub consume_broadcast_enable: bool,
    #[serde(default = "yes")]
    pub consume_enable: bool,
    #[serde(default = "yes")]
    pub consume_from_min_enable: bool,
    #[serde(default)]
    pub consume_message_orderly: bool,
    #[serde(default = "consume_timeout_minute")]
    pub consume_timeout_minute: i32,
    pub group_name: String,
    /// Kept as it is.
    #[serde(default = "customized")]
    pub group_retry_policy: serde_json::Value,
    #[serde(default)]
    pub group_sys_flag: i32,
    #[serde(default = "yes")]
    pub notify_consumer_ids_changed_enable: bool,
    #[serde(default = "retry_max_times")]
    pub retry_max_times: i32,
    #[serde(default = "retry_queue_nums")]
    pub retry_queue_nums: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription_data_set: Option<Vec<SimpleSubscriptionData>>,
    #[serde(default = "which_broker_when_consume_slowly")]
    pub which_broker_when_consume_slowly: i64,
}

fn yes() -> bool {
    true
}

fn consume_timeout_minute() -> i32 {
    15
}

fn retry_max_times() -> i32 {
    16
}

fn retry_queue_nums() -> i32 {
    1
}

fn which_broker_when_consume_slowly() -> i64 {
    1
}

fn customized() -> serde_json::Value {
    serde_json::json!({ "type": "CUSTOMIZED" })
}

impl SubscriptionGroupConfig {
    /// A group with Java's defaults.
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            attributes: BTreeMap::new(),
            broker_id: 0,
            consume_broadcast_enable: true,
            consume_enable: true,
            consume_from_min_enable: true,
            consume_message_orderly: false,
            consume_timeout_minute: consume_timeout_minute(),
            group_name: group.into(),
            group_retry_policy: customized(),
            group_sys_flag: 0,
            notify_consumer_ids_changed_enable: true,
            retry_max_times: retry_max_times(),
            retry_queue_nums: retry_queue_nums(),
            subscription_data_set: None,
            which_broker_when_consume_slowly: which_broker_when_consume_slowly(),
        }
    }
}

impl Body for SubscriptionGroupConfig {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimpleSubscriptionData {
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub expression_type: String,
    pub topic: String,
    #[serde(default)]
    pub version: i64,
}

/// Body of GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionGroupWrapper {
    pub data_version: DataVersion,
    pub forbidden_table: BTreeMap<String, BTreeMap<String, i32>>,
    pub subscription_group_table: BTreeMap<String, SubscriptionGroupConfig>,
}

impl Body for SubscriptionGroupWrapper {}

/// Body of UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST (225).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionGroupList {
    pub group_config_list: Vec<SubscriptionGroupConfig>,
}

impl Body for SubscriptionGroupList {}
