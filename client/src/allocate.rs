//! Which queues of a topic belong to which member of a group.
//!
//! Every member computes the whole division for itself, so all must compute the same: this is RocketMQ's default
//! strategy (`AVG`), and mixed groups of Java and Rust consumers agree. A1: for ids without duplicates every queue
//! belongs to exactly one member. A2: shares differ by at most one queue.

use std::cmp::Ordering;

use ringmq_protocol::body::MessageQueue;

/// Java's order of strings (UTF-16 code units), which for most names is the order of their bytes.
pub(crate) fn java_order(left: &str, right: &str) -> Ordering {
    left.encode_utf16().cmp(right.encode_utf16())
}

/// RocketMQ's order of message queues: topic, broker name, queue id.
pub(crate) fn queue_order(left: &MessageQueue, right: &MessageQueue) -> Ordering {
    java_order(&left.topic, &right.topic)
        .then_with(|| java_order(&left.broker_name, &right.broker_name))
        .then_with(|| left.queue_id.cmp(&right.queue_id))
}

/// The share of `member` of all `queues` among all `members`; nothing if it is not one of them.
pub(crate) fn allocate_average(
    queues: &[MessageQueue],
    members: &[String],
    member: &str,
) -> Vec<MessageQueue> {
    let mut queues = queues.to_vec();
    queues.sort_by(queue_order);
    let mut members: Vec<&str> = members.iter().map(String::as_str).collect();
    members.sort_by(|left, right| java_order(left, right));
    let Some(index) = members.iter().position(|other| *other == member) else {
        return Vec::new();
    };
    // The first `extra` members in order take one queue more, so a member's share starts after all shares before it.
    let share = queues.len() / members.len();
    let extra = queues.len() % members.len();
    let start = index * share + index.min(extra);
    let end = start + share + usize::from(index < extra);
    queues[start..end].to_vec()
}

#[cfg(test)]
mod tests;
