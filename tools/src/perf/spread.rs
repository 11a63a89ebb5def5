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

/// What one connection sends to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share<'a> {
    pub(super) address: String,
    /// The number of this connection among those of its broker.
    pub(super) number: usize,
    /// Names and queues, neither ever empty.
    pub(super) topics: Vec<(&'a str, &'a [i32])>,
}

/// Connections go to the brokers in turn; those of one broker have its topics in equal shares, or the same topic if there
/// are fewer topics than connections.
pub(super) fn share_topics(topics: &[(String, Vec<BrokerQueues>)], connections: usize) -> Vec<Share<'_>> {
    let mut brokers: Vec<(&str, Vec<(&str, &[i32])>)> = Vec::new();
    for (topic, queues) in topics {
        for broker in queues {
            let known = brokers.iter_mut().find(|(address, _)| *address == broker.address);
            match known {
                Some((_, topics)) => topics.push((topic, &broker.queues)),
                None => brokers.push((&broker.address, vec![(topic, &broker.queues)])),
            }
        }
    }
    let share = |connection: usize| {
        let (address, topics) = brokers.get(connection % brokers.len().max(1))?;
        let number = connection / brokers.len();
        let of = (connections - connection % brokers.len()).div_ceil(brokers.len());
        let topics = topics.iter().skip(number % topics.len()).step_by(of).copied().collect();
        Some(Share { address: (*address).to_string(), number, topics })
    };
    (0..connections).filter_map(share).collect()
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
