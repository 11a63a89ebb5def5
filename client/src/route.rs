//! The way to a topic: which queues it has, and where their brokers are.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmq_protocol::body::{MASTER_ID, MessageQueue, TopicRouteData, perm};

use crate::allocate::queue_order;

/// Queues and brokers of a topic, as a name server told them last.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicRoute {
    pub topic: String,
    /// Broker name → broker id → address. Id 0 is the master.
    pub brokers: BTreeMap<String, BTreeMap<i64, Arc<str>>>,
    /// Queues that take messages, in RocketMQ's order. Those of brokers without a master are left out.
    pub writable: Vec<MessageQueue>,
    /// Queues that give messages, in RocketMQ's order.
    pub readable: Vec<MessageQueue>,
}

impl TopicRoute {
    pub(crate) fn new(topic: &str, data: &TopicRouteData) -> Self {
        let mut brokers: BTreeMap<String, BTreeMap<i64, Arc<str>>> = BTreeMap::new();
        for broker in &data.broker_datas {
            let addresses = brokers.entry(broker.broker_name.clone()).or_default();
            addresses
                .extend(broker.broker_addrs.iter().map(|(id, address)| (*id, Arc::from(address.as_str()))));
        }
        // Queues are numbered in 31 bits, whatever a route says.
        let queue = |broker_name: &str, queue_id: u32| {
            MessageQueue::new(topic, broker_name, i32::try_from(queue_id).unwrap_or(i32::MAX))
        };
        let (mut writable, mut readable) = (Vec::new(), Vec::new());
        for queues in &data.queue_datas {
            let name = queues.broker_name.as_str();
            let Some(addresses) = brokers.get(name) else { continue };
            if queues.perm & perm::READ != 0 {
                readable.extend((0..queues.read_queue_nums).map(|id| queue(name, id)));
            }
            if queues.perm & perm::WRITE != 0 && addresses.contains_key(&MASTER_ID) {
                writable.extend((0..queues.write_queue_nums).map(|id| queue(name, id)));
            }
        }
        if let Some(order) = data.order_topic_conf.as_deref().filter(|order| !order.is_empty()) {
            writable = ordered_queues(order, &brokers)
                .into_iter()
                .flat_map(|(name, count)| (0..count).map(move |id| (name, id)))
                .map(|(name, id)| queue(name, id))
                .collect();
        }
        writable.sort_by(queue_order);
        readable.sort_by(queue_order);
        Self { topic: topic.to_string(), brokers, writable, readable }
    }

    /// The route a new topic will have: that of `TBW102`, whose brokers create topics on their first message.
    pub(crate) fn for_new_topic(topic: &str, template: &TopicRouteData, queue_count_max: u32) -> Self {
        let mut data = template.clone();
        for queues in &mut data.queue_datas {
            let count = queues.read_queue_nums.min(queue_count_max);
            queues.read_queue_nums = count;
            queues.write_queue_nums = count;
        }
        Self::new(topic, &data)
    }

    /// Where the master of a broker is.
    pub fn master(&self, broker_name: &str) -> Option<Arc<str>> {
        self.brokers.get(broker_name)?.get(&MASTER_ID).cloned()
    }

    /// Where to read from: the broker with this id if there is one, else the one with the lowest id.
    pub(crate) fn reader(&self, broker_name: &str, preferred_id: i64) -> Option<Arc<str>> {
        let addresses = self.brokers.get(broker_name)?;
        addresses.get(&preferred_id).or_else(|| addresses.values().next()).cloned()
    }

    /// Every address of every broker, each once, in order of broker name and id.
    pub(crate) fn addresses(&self, masters_only: bool) -> Vec<Arc<str>> {
        let mut addresses = Vec::new();
        for (id, address) in self.brokers.values().flatten() {
            if (!masters_only || *id == MASTER_ID) && !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }
}

/// `broker-a:8;broker-b:8`; parts that are not understood or name unknown brokers are left out.
fn ordered_queues<'a>(
    order: &'a str,
    brokers: &BTreeMap<String, BTreeMap<i64, Arc<str>>>,
) -> Vec<(&'a str, u32)> {
    order
        .split(';')
        .filter_map(|part| part.rsplit_once(':'))
        .filter_map(|(name, count)| Some((name.trim(), count.trim().parse().ok()?)))
        .filter(|(name, _)| brokers.get(*name).is_some_and(|addresses| addresses.contains_key(&MASTER_ID)))
        .collect()
}

#[cfg(test)]
mod tests;
