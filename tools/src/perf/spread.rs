//! Which connection works on which queues.

use ringmq_protocol::body::{MASTER_ID, TopicRouteData};

/// A broker's master and the queues of the topic that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BrokerQueues {
    pub(super) address: String,
    /// In order.
    pub(super) queues: Vec<i32>,
}

/// What one connection works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) address: String,
    /// Never empty; the connection begins with the first.
    pub(super) queues: Vec<i32>,
}

/// The brokers of a route, in order of their names, that have queues with this permission (a bit of `perm`).
pub(super) fn brokers(route: &TopicRouteData, permission: i32, write: bool) -> Vec<BrokerQueues> {
    let mut found: Vec<(&str, BrokerQueues)> = Vec::new();
    for data in &route.queue_datas {
        let broker = route.broker_datas.iter().find(|broker| broker.broker_name == data.broker_name);
        let Some(address) = broker.and_then(|broker| broker.broker_addrs.get(&MASTER_ID)) else { continue };
        let count = if write { data.write_queue_nums } else { data.read_queue_nums };
        let count = i32::try_from(count).unwrap_or(i32::MAX).min(65536);
        if data.perm & permission != 0 && count > 0 {
            found.push((
                &data.broker_name,
                BrokerQueues { address: address.clone(), queues: (0..count).collect() },
            ));
        }
    }
    found.sort_by_key(|(name, _)| *name);
    found.into_iter().map(|(_, broker)| broker).collect()
}

/// Every connection works on all queues of its broker; they go to the brokers in turn, and connections of one broker
/// begin with different queues.
pub(super) fn all_queues(brokers: &[BrokerQueues], connections: usize) -> Vec<Assignment> {
    (0..connections)
        .filter_map(|connection| {
            let broker = brokers.get(connection % brokers.len().max(1))?;
            let mut queues = broker.queues.clone();
            let first = connection / brokers.len() % queues.len();
            queues.rotate_left(first);
            Some(Assignment { address: broker.address.clone(), queues })
        })
        .collect()
}

/// Every queue belongs to one connection; there is at least one for each broker.
///
/// # Errors
/// If there are more connections than queues.
pub(super) fn split_queues(brokers: &[BrokerQueues], connections: usize) -> Result<Vec<Assignment>, String> {
    let connections = connections.max(brokers.len());
    let mut assignments = Vec::new();
    for (number, broker) in brokers.iter().enumerate() {
        let count = (number..connections).step_by(brokers.len()).count();
        if count > broker.queues.len() {
            let (address, queues) = (&broker.address, broker.queues.len());
            return Err(format!(
                "{address} has {queues} queues to read, too few for {count} of the connections"
            ));
        }
        assignments.extend((0..count).map(|first| Assignment {
            address: broker.address.clone(),
            queues: broker.queues.iter().skip(first).step_by(count).copied().collect(),
        }));
    }
    Ok(assignments)
}

#[cfg(test)]
mod tests;
