//! HEART_BEAT (34) and what it says of consumers.

use serde::{Deserialize, Serialize};

use super::Body;
use crate::fastjson::{self, JsonError};
use crate::name::TagExpression;
use crate::types::TagsCode;

/// The largest heartbeat that is read, in bytes; a client with thousands of subscriptions stays below it.
pub const HEARTBEAT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What a client instance tells every broker every 30 seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatData {
    #[serde(rename = "clientID")]
    pub client_id: String,
    #[serde(default)]
    pub consumer_data_set: Vec<ConsumerData>,
    /// Not 0 in version 2 of the heartbeat.
    #[serde(default)]
    pub heartbeat_fingerprint: i32,
    #[serde(default)]
    pub producer_data_set: Vec<ProducerData>,
    /// The subscriptions are those of an earlier heartbeat with the same fingerprint.
    #[serde(default)]
    pub without_sub: bool,
}

impl Body for HeartbeatData {
    fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        if bytes.len() > HEARTBEAT_BYTES_MAX {
            return Err(JsonError::TooLong(bytes.len()));
        }
        fastjson::from_slice(bytes)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProducerData {
    pub group_name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerData {
    #[serde(default)]
    pub consume_from_where: ConsumeFromWhere,
    #[serde(default)]
    pub consume_type: ConsumeType,
    pub group_name: String,
    #[serde(default)]
    pub message_model: MessageModel,
    #[serde(default)]
    pub subscription_data_set: Vec<SubscriptionData>,
    #[serde(default)]
    pub unit_mode: bool,
}

/// How messages reach a consumer; informational.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConsumeType {
    ConsumeActively,
    #[default]
    ConsumePassively,
    ConsumePop,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MessageModel {
    Broadcasting,
    #[default]
    Clustering,
}

/// Where a group begins in a queue without an offset. The broker does not use it, so any unknown name is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConsumeFromWhere {
    ConsumeFromFirstOffset,
    ConsumeFromTimestamp,
    ConsumeFromMinOffset,
    ConsumeFromMaxOffset,
    ConsumeFromLastOffsetAndFromMinWhenBootFirst,
    #[default]
    #[serde(other)]
    ConsumeFromLastOffset,
}

/// The expression type of a tag filter.
pub const EXPRESSION_TYPE_TAG: &str = "TAG";
/// The expression type of an SQL filter.
pub const EXPRESSION_TYPE_SQL92: &str = "SQL92";
/// The expression that matches every message.
pub const SUB_ALL: &str = "*";

/// What a group wants of a topic.
///
/// `code_set` always belongs to `tags_set`: what a client sends as codes is not read, since Go hashes differently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "Sent")]
pub struct SubscriptionData {
    pub class_filter_mode: bool,
    /// Sorted; empty for "all" and for other expression types.
    pub code_set: Vec<i32>,
    pub expression_type: String,
    pub sub_string: String,
    /// Grows with each change by the client; its unit is the client's affair.
    pub sub_version: i64,
    pub tags_set: Vec<String>,
    pub topic: String,
}

/// A subscription as clients send it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    #[serde(default)]
    class_filter_mode: bool,
    #[serde(default)]
    expression_type: String,
    #[serde(default)]
    sub_string: String,
    #[serde(default)]
    sub_version: i64,
    #[serde(default)]
    tags_set: Vec<String>,
    topic: String,
}

impl From<Sent> for SubscriptionData {
    fn from(sent: Sent) -> Self {
        let mut subscription = Self {
            class_filter_mode: sent.class_filter_mode,
            code_set: Vec::new(),
            expression_type: sent.expression_type,
            sub_string: sent.sub_string,
            sub_version: sent.sub_version,
            tags_set: sent.tags_set,
            topic: sent.topic,
        };
        if subscription.expression_type.is_empty() {
            EXPRESSION_TYPE_TAG.clone_into(&mut subscription.expression_type);
        }
        if subscription.is_tag() {
            if subscription.tags_set.is_empty() {
                let tags = Self::tag_expression("", &subscription.sub_string);
                subscription.sub_string = tags.sub_string;
                subscription.tags_set = tags.tags_set;
            }
            subscription.code_set = codes(&subscription.tags_set);
        }
        subscription
    }
}

fn codes(tags: &[String]) -> Vec<i32> {
    let mut codes: Vec<i32> = tags.iter().map(|tag| TagsCode::of(tag).0).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

impl SubscriptionData {
    /// A subscription by tags, like `TagA || TagB`, `*` or an empty text.
    pub fn tag_expression(topic: &str, expression: &str) -> Self {
        let (sub_string, tags_set) = match TagExpression::parse(expression) {
            TagExpression::All => (SUB_ALL.to_owned(), Vec::new()),
            TagExpression::Any(tags) => {
                (expression.to_owned(), tags.into_iter().map(str::to_owned).collect())
            }
        };
        Self {
            class_filter_mode: false,
            code_set: codes(&tags_set),
            expression_type: EXPRESSION_TYPE_TAG.to_owned(),
            sub_string,
            sub_version: 0,
            tags_set,
            topic: topic.to_owned(),
        }
    }

    /// A subscription by an SQL92 filter, of version 0.
    pub fn sql_expression(topic: &str, expression: &str) -> Self {
        Self {
            expression_type: EXPRESSION_TYPE_SQL92.to_owned(),
            sub_string: expression.to_owned(),
            topic: topic.to_owned(),
            ..Self::default()
        }
    }

    pub fn is_tag(&self) -> bool {
        self.expression_type == EXPRESSION_TYPE_TAG
    }

    /// Whether a message with this tag may be wanted, as far as tags decide it. Two tags can share a code, so clients
    /// compare the tags again.
    pub fn matches_tags_code(&self, code: TagsCode) -> bool {
        !self.is_tag() || self.tags_set.is_empty() || self.code_set.binary_search(&code.0).is_ok()
    }
}
