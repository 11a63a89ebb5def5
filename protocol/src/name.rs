//! Names of topics and groups: what is allowed, what is reserved, what is derived.

use thiserror::Error;

/// The longest name of an ordinary topic, in bytes.
pub const TOPIC_BYTES_MAX: usize = 127;
/// The longest name of a retry or dead-letter topic, in bytes.
pub const RETRY_OR_DLQ_TOPIC_BYTES_MAX: usize = 255;
/// The longest name of a group, in bytes.
pub const GROUP_BYTES_MAX: usize = 120;

pub const RETRY_GROUP_TOPIC_PREFIX: &str = "%RETRY%";
pub const DLQ_GROUP_TOPIC_PREFIX: &str = "%DLQ%";
pub const SYSTEM_TOPIC_PREFIX: &str = "rmq_sys_";
pub const REPLY_TOPIC_POSTFIX: &str = "_REPLY_TOPIC";

/// The template of topics that are created by being sent to.
pub const AUTO_CREATE_TOPIC_KEY_TOPIC: &str = "TBW102";
pub const RMQ_SYS_SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
pub const RMQ_SYS_BENCHMARK_TOPIC: &str = "BenchmarkTest";
pub const RMQ_SYS_TRANS_HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
pub const RMQ_SYS_TRANS_OP_HALF_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
pub const RMQ_SYS_TRACE_TOPIC: &str = "RMQ_SYS_TRACE_TOPIC";
pub const RMQ_SYS_TRANS_CHECK_MAX_TIME_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
pub const RMQ_SYS_SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
pub const RMQ_SYS_OFFSET_MOVED_EVENT: &str = "OFFSET_MOVED_EVENT";
pub const RMQ_SYS_CHECKPOINT_TOPIC: &str = "CHECKPOINT_TOPIC";
pub const TIMER_TOPIC: &str = "rmq_sys_wheel_timer";

/// Group under which consumers re-publish what they could not send back.
pub const CLIENT_INNER_PRODUCER_GROUP: &str = "CLIENT_INNER_PRODUCER";
/// Groups that clients refuse, because they stand for a forgotten setting.
pub const DEFAULT_PRODUCER_GROUP: &str = "DEFAULT_PRODUCER";
pub const DEFAULT_CONSUMER_GROUP: &str = "DEFAULT_CONSUMER";

/// The system topics that every broker has; it adds those named after itself and its cluster.
pub const SYSTEM_TOPICS: [&str; 10] = [
    AUTO_CREATE_TOPIC_KEY_TOPIC,
    RMQ_SYS_SCHEDULE_TOPIC,
    RMQ_SYS_BENCHMARK_TOPIC,
    RMQ_SYS_TRANS_HALF_TOPIC,
    RMQ_SYS_TRANS_OP_HALF_TOPIC,
    RMQ_SYS_TRACE_TOPIC,
    RMQ_SYS_TRANS_CHECK_MAX_TIME_TOPIC,
    RMQ_SYS_SELF_TEST_TOPIC,
    RMQ_SYS_OFFSET_MOVED_EVENT,
    RMQ_SYS_CHECKPOINT_TOPIC,
];

/// The topics that no client may send to.
pub const FORBIDDEN_TOPICS: [&str; 6] = [
    RMQ_SYS_SCHEDULE_TOPIC,
    RMQ_SYS_TRANS_HALF_TOPIC,
    RMQ_SYS_TRANS_OP_HALF_TOPIC,
    RMQ_SYS_TRANS_CHECK_MAX_TIME_TOPIC,
    RMQ_SYS_SELF_TEST_TOPIC,
    RMQ_SYS_OFFSET_MOVED_EVENT,
];

/// Why a text cannot name a topic or a group.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("the {what} is blank")]
    Blank { what: &'static str },
    #[error("the {what} has {len} characters, at most {max} are allowed")]
    TooLong { what: &'static str, len: usize, max: usize },
    #[error("the {what} {name:?} contains {found:?}, allowed are only a-z A-Z 0-9 _ - % and |")]
    Character { what: &'static str, name: String, found: char },
}

fn validate(what: &'static str, name: &str, max: usize) -> Result<(), NameError> {
    if name.trim().is_empty() {
        return Err(NameError::Blank { what });
    }
    if name.len() > max {
        return Err(NameError::TooLong { what, len: name.len(), max });
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | '|'))) {
        None => Ok(()),
        Some(found) => Err(NameError::Character { what, name: name.to_owned(), found }),
    }
}

/// Checks the name of a topic: 1 to 127 characters of a-z A-Z 0-9 _ - % |, or 255 for retry and dead-letter topics.
pub fn validate_topic(topic: &str) -> Result<(), NameError> {
    let derived = is_retry_topic(topic) || is_dlq_topic(topic);
    validate("topic", topic, if derived { RETRY_OR_DLQ_TOPIC_BYTES_MAX } else { TOPIC_BYTES_MAX })
}

/// Checks the name of a producer or consumer group: 1 to 120 characters of a-z A-Z 0-9 _ - % |.
pub fn validate_group(group: &str) -> Result<(), NameError> {
    validate("group", group, GROUP_BYTES_MAX)
}

/// Whether a topic belongs to the system of every broker.
pub fn is_system_topic(topic: &str) -> bool {
    topic.starts_with(SYSTEM_TOPIC_PREFIX) || SYSTEM_TOPICS.contains(&topic)
}

/// Whether clients may not send to a topic.
pub fn is_send_forbidden(topic: &str) -> bool {
    FORBIDDEN_TOPICS.contains(&topic)
}

pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_GROUP_TOPIC_PREFIX}{group}")
}

/// Where popped messages go whose time is over.
pub fn pop_retry_topic(group: &str, topic: &str) -> String {
    format!("{RETRY_GROUP_TOPIC_PREFIX}{group}_{topic}")
}

pub fn dlq_topic(group: &str) -> String {
    format!("{DLQ_GROUP_TOPIC_PREFIX}{group}")
}

/// The topic that replies of request-reply messages go to.
pub fn reply_topic(cluster: &str) -> String {
    format!("{cluster}{REPLY_TOPIC_POSTFIX}")
}

pub fn is_retry_topic(topic: &str) -> bool {
    topic.starts_with(RETRY_GROUP_TOPIC_PREFIX)
}

pub fn is_dlq_topic(topic: &str) -> bool {
    topic.starts_with(DLQ_GROUP_TOPIC_PREFIX)
}

/// The group of a retry topic.
pub fn group_of_retry_topic(topic: &str) -> Option<&str> {
    topic.strip_prefix(RETRY_GROUP_TOPIC_PREFIX)
}

/// A TAG expression: which tags a subscription wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagExpression<'a> {
    /// `*`, an empty text, or only separators.
    All,
    /// One of these, in their order in the expression and each once.
    Any(Vec<&'a str>),
}

impl<'a> TagExpression<'a> {
    /// Reads `TagA || TagB`. Every text is an expression.
    pub fn parse(expression: &'a str) -> Self {
        if expression.trim() == "*" {
            return Self::All;
        }
        let mut tags = Vec::new();
        for tag in expression.split("||").map(str::trim).filter(|tag| !tag.is_empty()) {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        if tags.is_empty() { Self::All } else { Self::Any(tags) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_the_error_says_what_is_allowed() {
        assert_eq!(validate_topic("TopicTest_1-a%|"), Ok(()));
        assert_eq!(validate_topic(" "), Err(NameError::Blank { what: "topic" }));
        assert_eq!(validate_topic(&"t".repeat(127)), Ok(()));
        assert_eq!(
            validate_topic(&"t".repeat(128)),
            Err(NameError::TooLong { what: "topic", len: 128, max: 127 })
        );
        assert_eq!(validate_topic(&retry_topic(&"g".repeat(120))), Ok(()));
        assert_eq!(validate_topic(&dlq_topic(&"g".repeat(250))).is_ok(), 250 + 5 <= 255);
        assert!(validate_topic(&dlq_topic(&"g".repeat(251))).is_err());
        assert_eq!(validate_group(&"g".repeat(120)), Ok(()));
        assert!(validate_group(&"g".repeat(121)).is_err());
        let error = validate_group("a b").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the group \"a b\" contains ' ', allowed are only a-z A-Z 0-9 _ - % and |"
        );
        assert!(validate_topic("größe").is_err());
    }

    #[test]
    fn system_and_forbidden_topics() {
        assert!(is_system_topic("TBW102") && is_system_topic("rmq_sys_anything"));
        assert!(!is_system_topic("TopicTest") && !is_system_topic("RMQ_SYS_anything"));
        assert!(is_send_forbidden("SCHEDULE_TOPIC_XXXX") && !is_send_forbidden("TBW102"));
        assert!(FORBIDDEN_TOPICS.iter().all(|topic| is_system_topic(topic)));
        assert_eq!(group_of_retry_topic(&retry_topic("g")), Some("g"));
        assert_eq!(group_of_retry_topic("g"), None);
        assert_eq!(reply_topic("DefaultCluster"), "DefaultCluster_REPLY_TOPIC");
    }

    #[test]
    fn tag_expressions() {
        for all in ["", " ", "*", " * ", "||", " || "] {
            assert_eq!(TagExpression::parse(all), TagExpression::All, "{all:?}");
        }
        assert_eq!(TagExpression::parse("TagA"), TagExpression::Any(vec!["TagA"]));
        assert_eq!(TagExpression::parse(" TagA||TagB || ||TagA"), TagExpression::Any(vec!["TagA", "TagB"]));
    }
}
