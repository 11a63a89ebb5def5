//! When and where a failed send is tried again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ringmq_protocol::body::MessageQueue;
use ringmq_protocol::code::ResponseCode;
use tokio::time::Instant;

use crate::error::RequestError;

/// A broker that failed is avoided for so long, if there are others.
const SUSPECT: Duration = Duration::from_secs(5);

/// Codes after which RocketMQ's producer tries another broker: the broker, not the message, is at fault.
const RETRYABLE: [ResponseCode; 8] = [
    ResponseCode::SYSTEM_ERROR,
    ResponseCode::SYSTEM_BUSY,
    ResponseCode::SERVICE_NOT_AVAILABLE,
    ResponseCode::NO_PERMISSION,
    ResponseCode::TOPIC_NOT_EXIST,
    ResponseCode::NO_BUYER_ID,
    ResponseCode::NOT_IN_CURRENT_UNIT,
    ResponseCode::GO_AWAY,
];

pub(crate) fn is_retryable(error: &RequestError) -> bool {
    match error.code() {
        Some(code) => RETRYABLE.contains(&code),
        None => error.is_transport(),
    }
}

/// Chooses queues round-robin, and brokers that work over brokers that just failed.
pub(crate) struct QueueChoice {
    turn: AtomicUsize,
    suspects: Mutex<BTreeMap<String, Instant>>,
}

impl QueueChoice {
    /// Producers that start together should not all begin with the same queue, so each begins at its own `start`.
    pub(crate) fn new(start: usize) -> Self {
        Self { turn: AtomicUsize::new(start), suspects: Mutex::default() }
    }

    pub(crate) fn failed(&self, broker_name: &str, now: Instant) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.insert(broker_name.to_string(), now + SUSPECT);
    }

    pub(crate) fn succeeded(&self, broker_name: &str) {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).remove(broker_name);
    }

    /// The next queue in turn. Preferred, in this order: not a broker in `tried` and not suspected; not in `tried`;
    /// not the broker tried last; any. `None` only without queues.
    pub(crate) fn next<'q>(
        &self,
        queues: &'q [MessageQueue],
        tried: &[String],
        now: Instant,
    ) -> Option<&'q MessageQueue> {
        if queues.is_empty() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % queues.len();
        let suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let is_suspect = |name: &str| suspects.get(name).is_some_and(|until| now < *until);
        let in_turn = || queues[turn..].iter().chain(&queues[..turn]);
        let untried = |queue: &&MessageQueue| !tried.contains(&queue.broker_name);
        in_turn()
            .filter(untried)
            .find(|queue| !is_suspect(&queue.broker_name))
            .or_else(|| in_turn().find(untried))
            .or_else(|| in_turn().find(|queue| Some(&queue.broker_name) != tried.last()))
            .or_else(|| in_turn().next())
    }
}

#[cfg(test)]
mod tests;
