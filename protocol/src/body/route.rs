//! Where topics are: TopicRouteData and ClusterInfo.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Body;
use crate::fastjson::{self, JsonError};

/// The id of a master in [`BrokerData::broker_addrs`].
pub const MASTER_ID: i64 = 0;
/// Bits of a permission.
pub mod perm {
    /// Topics may be made on the model of this one.
    pub const INHERIT: i32 = 1;
    pub const WRITE: i32 = 2;
    pub const READ: i32 = 4;
}
/// Clients from this version on read standard JSON routes.
pub const STANDARD_JSON_VERSION_MIN: i32 = 401;

/// Which brokers have queues of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicRouteData {
    pub broker_datas: Vec<BrokerData>,
    pub filter_server_table: BTreeMap<String, Vec<String>>,
    /// `brokerA:8;brokerB:8`; producers use exactly these queues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_topic_conf: Option<String>,
    pub queue_datas: Vec<QueueData>,
}

impl TopicRouteData {
    /// Standard JSON, for clients that take it; see [`STANDARD_JSON_VERSION_MIN`].
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a route has a form in JSON")
    }

    /// With broker ids without quotes, for the others.
    pub fn to_json_legacy(&self) -> Vec<u8> {
        fastjson::to_vec(self).expect("a route has a form in JSON")
    }

    /// Reads either form.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        fastjson::from_slice(bytes)
    }
}

/// The addresses of one broker name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerData {
    /// By broker id; the master is 0.
    #[serde(default)]
    pub broker_addrs: BTreeMap<i64, String>,
    pub broker_name: String,
    #[serde(default)]
    pub cluster: String,
    #[serde(default)]
    pub enable_acting_master: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_name: Option<String>,
}

/// The queues of a topic on one broker name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueData {
    pub broker_name: String,
    /// See [`perm`].
    #[serde(default)]
    pub perm: i32,
    #[serde(default)]
    pub read_queue_nums: u32,
    #[serde(default)]
    pub topic_sys_flag: i32,
    #[serde(default)]
    pub write_queue_nums: u32,
}

/// Body of GET_BROKER_CLUSTER_INFO (106); its ids are written without quotes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterInfo {
    pub broker_addr_table: BTreeMap<String, BrokerData>,
    pub cluster_addr_table: BTreeMap<String, BTreeSet<String>>,
}

impl Body for ClusterInfo {}

/// Body of GET_BROKER_MEMBER_GROUP (901).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerMemberGroupBody {
    pub broker_member_group: BrokerMemberGroup,
}

impl Body for BrokerMemberGroupBody {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerMemberGroup {
    #[serde(default)]
    pub broker_addrs: BTreeMap<i64, String>,
    pub broker_name: String,
    #[serde(default)]
    pub cluster: String,
}

/// Body of 206, 224, 304, 305, 311 to 313 and 343.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicList {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_addr: Option<String>,
    pub topic_list: BTreeSet<String>,
}

impl Body for TopicList {}

/// Body of GET_KVLIST_BY_NAMESPACE (219), REGISTER_BROKER (103) and GET_BROKER_RUNTIME_INFO (28).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvTable {
    pub table: BTreeMap<String, String>,
}

impl Body for KvTable {}
