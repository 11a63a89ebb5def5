//! Attributes of a topic: what RingMQ keeps there beside RocketMQ's settings.
//!
//!   ringmq.flush       sync | async     when a send is acknowledged; without it, as the broker is set
//!   ringmq.retention   90s, 15m, 12h …  messages older than this are not delivered any more

use super::FlushDiskType;
use ringmq_protocol::body::TopicConfig;
use std::collections::BTreeMap;

const FLUSH: &str = "ringmq.flush";
const RETENTION: &str = "ringmq.retention";

/// What a topic's attributes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct TopicPolicy {
    pub(super) flush: Option<FlushDiskType>,
    pub(super) retention_ms: Option<i64>,
}

impl TopicPolicy {
    /// Attributes that make no sense count as absent; `change` lets none in.
    pub(super) fn of(attributes: &BTreeMap<String, String>) -> Self {
        TopicPolicy {
            flush: attributes.get(FLUSH).and_then(|value| flush(value)),
            retention_ms: attributes.get(RETENTION).and_then(|value| millis(value)),
        }
    }
}

/// For how many milliseconds a topic keeps its messages, if it has a time of its own.
pub fn own_retention_ms(config: &TopicConfig) -> Option<i64> {
    TopicPolicy::of(&config.attributes).retention_ms
}

/// Applies changes as RocketMQ's tools write them: `+name=value` and `-name`, separated by commas.
pub(super) fn change(
    attributes: &BTreeMap<String, String>,
    changes: &str,
) -> Result<BTreeMap<String, String>, String> {
    let mut changed = attributes.clone();
    for change in changes.split(',').map(str::trim).filter(|change| !change.is_empty()) {
        if let Some(name) = change.strip_prefix('-') {
            changed.remove(name.trim());
            continue;
        }
        let (name, value) = change
            .strip_prefix('+')
            .and_then(|change| change.split_once('='))
            .ok_or_else(|| format!("attribute change {change:?} is neither +name=value nor -name"))?;
        let (name, value) = (name.trim(), value.trim());
        let is_right = match name {
            FLUSH => flush(value).is_some(),
            RETENTION => millis(value).is_some(),
            _ => {
                return Err(format!(
                    "topic attribute {name} is not known here: there are {FLUSH} and {RETENTION}"
                ));
            }
        };
        if !is_right {
            return Err(format!(
                "{value:?} is no value for {name}: {FLUSH} is sync or async, {RETENTION} a time like 90s, 15m or 12h"
            ));
        }
        changed.insert(name.to_owned(), value.to_owned());
    }
    Ok(changed)
}

fn flush(value: &str) -> Option<FlushDiskType> {
    match value {
        "sync" => Some(FlushDiskType::Sync),
        "async" => Some(FlushDiskType::Async),
        _ => None,
    }
}

fn millis(value: &str) -> Option<i64> {
    let time = crate::config::parse_duration(value).ok().filter(|time| !time.is_zero())?;
    i64::try_from(time.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_applied_in_order_or_refused_whole() {
        let none = BTreeMap::new();
        let set = change(&none, "+ringmq.flush=async, +ringmq.retention=2h").unwrap();
        let policy = TopicPolicy { flush: Some(FlushDiskType::Async), retention_ms: Some(7_200_000) };
        assert_eq!(TopicPolicy::of(&set), policy);
        let less = change(&set, "-ringmq.flush").unwrap();
        assert_eq!(TopicPolicy::of(&less), TopicPolicy { flush: None, ..policy });
        assert_eq!(change(&set, ""), Ok(set.clone()));
        for wrong in
            ["ringmq.flush=sync", "+ringmq.flush=later", "+ringmq.retention=0s", "+message.type=FIFO", "+a"]
        {
            assert!(change(&set, wrong).is_err(), "{wrong}");
        }
    }
}
