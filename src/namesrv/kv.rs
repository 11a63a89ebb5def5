//! The KV configuration: small texts by namespace and key, of which RocketMQ itself uses only the namespace
//! ORDER_TOPIC_CONFIG. Pure; `server` keeps it in a file if it is told one.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// The namespace of the queues that ordered topics may use: topic → `brokerA:8;brokerB:8`.
pub const ORDER_TOPIC_CONFIG: &str = "ORDER_TOPIC_CONFIG";
/// Bytes of all namespaces, keys and values together.
pub const KV_BYTES_MAX: usize = 4 * 1024 * 1024;

/// All namespaces. As JSON it is RocketMQ's kvConfig.json.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KvConfig {
    #[serde(rename = "configTable", default)]
    table: BTreeMap<String, BTreeMap<String, String>>,
}

/// A change asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KvChange {
    Put { namespace: String, key: String, value: String },
    Delete { namespace: String, key: String },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the KV configuration would exceed {KV_BYTES_MAX} bytes")]
pub struct KvFull;

impl KvConfig {
    pub fn get(&self, namespace: &str, key: &str) -> Option<&str> {
        self.table.get(namespace)?.get(key).map(String::as_str)
    }

    /// `None` if nothing was ever put there.
    pub fn namespace(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.table.get(namespace)
    }

    /// This configuration with one change. Deleting what is absent is no error.
    pub fn changed(&self, change: KvChange) -> Result<KvConfig, KvFull> {
        let mut next = self.clone();
        match change {
            KvChange::Put { namespace, key, value } => {
                next.table.entry(namespace).or_default().insert(key, value);
                if next.bytes() > KV_BYTES_MAX {
                    return Err(KvFull);
                }
            }
            KvChange::Delete { namespace, key } => {
                if let Some(keys) = next.table.get_mut(&namespace) {
                    keys.remove(&key);
                }
            }
        }
        Ok(next)
    }

    fn bytes(&self) -> usize {
        let keys =
            |keys: &BTreeMap<String, String>| keys.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        self.table.iter().map(|(namespace, table)| namespace.len() + keys(table)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> KvChange {
        KvChange::Put { namespace: ORDER_TOPIC_CONFIG.into(), key: key.into(), value: value.into() }
    }

    #[test]
    fn put_get_delete() {
        let kv = KvConfig::default().changed(put("T", "a:8")).unwrap().changed(put("T", "b:8")).unwrap();
        assert_eq!(kv.get(ORDER_TOPIC_CONFIG, "T"), Some("b:8"));
        assert_eq!(kv.get(ORDER_TOPIC_CONFIG, "U"), None);
        assert_eq!(kv.get("other", "T"), None);
        let delete = KvChange::Delete { namespace: ORDER_TOPIC_CONFIG.into(), key: "T".into() };
        let deleted = kv.changed(delete.clone()).unwrap().changed(delete).unwrap();
        assert_eq!(deleted.get(ORDER_TOPIC_CONFIG, "T"), None);
        assert_eq!(deleted.namespace(ORDER_TOPIC_CONFIG).map(BTreeMap::len), Some(0));
        assert!(deleted.namespace("other").is_none());
    }

    #[test]
    fn it_is_the_json_of_rocketmq() {
        let json = r#"{"configTable":{"ORDER_TOPIC_CONFIG":{"T":"a:8"}}}"#;
        let kv = KvConfig::default().changed(put("T", "a:8")).unwrap();
        assert_eq!(serde_json::to_string(&kv).unwrap(), json);
        assert_eq!(serde_json::from_str::<KvConfig>(json).unwrap(), kv);
    }

    #[test]
    fn it_is_bounded() {
        let kv = KvConfig::default().changed(put("T", &"x".repeat(KV_BYTES_MAX - 100))).unwrap();
        assert_eq!(kv.changed(put("U", &"x".repeat(100))), Err(KvFull));
        assert!(kv.changed(put("T", "small again")).is_ok());
    }
}
