//! What a push consumer answers when brokers and tools ask.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmq_protocol::body::{
    ConsumeMessageDirectlyResult, ConsumerRunningInfo, MessageQueue, ProcessQueueInfo,
};
use ringmq_protocol::message::MessageExt;
use ringmq_protocol::types::QueueOffset;
use tokio::time::Instant;

use super::send_back::restored;
use super::{ConsumeResult, Handler, Hold, Inner, OrderlyResult, QueueState};
use crate::client::lock;
use crate::group::to_wire;
use crate::member::{Consuming, MemberRequests};

impl MemberRequests for Inner {
    fn reset_offsets(self: Arc<Self>, offsets: BTreeMap<MessageQueue, QueueOffset>) {
        let of_mine: Vec<(Arc<QueueState>, QueueOffset)> = {
            let queues = lock(&self.queues);
            let state = |queue| queues.get(queue).map(|running| running.state.clone());
            offsets.iter().filter_map(|(queue, offset)| Some((state(queue)?, *offset))).collect()
        };
        tokio::spawn(async move {
            for (state, offset) in of_mine {
                tracing::info!(topic = %state.queue.topic, queue = state.queue.queue_id, %offset, "offset reset");
                self.begin_anew(&state, offset).await;
            }
        });
    }

    fn offsets(&self, topic: &str) -> BTreeMap<MessageQueue, QueueOffset> {
        let queues = lock(&self.queues);
        let of_topic = queues.iter().filter(|(queue, _)| queue.topic == topic);
        of_topic
            .map(|(queue, running)| (queue.clone(), lock(&running.state.process).commit_offset()))
            .collect()
    }

    fn running_info(&self) -> ConsumerRunningInfo {
        let now = Instant::now();
        let queues = lock(&self.queues);
        let mq_table = queues.iter().map(|(queue, running)| (queue.clone(), running.state.info(now)));
        let mut info = ConsumerRunningInfo {
            mq_table: mq_table.collect(),
            status_table: queues
                .iter()
                .map(|(queue, running)| (queue.topic.clone(), running.state.stats.status()))
                .collect(),
            ..self.member.running_info(self.is_orderly())
        };
        let concurrency = self.limits.concurrency.to_string();
        info.properties.insert(ConsumerRunningInfo::PROP_THREADPOOL_CORE_SIZE.into(), concurrency);
        info
    }

    fn consume_directly(self: Arc<Self>, message: MessageExt) -> Option<Consuming> {
        let begun = Instant::now();
        let message = restored(&message);
        Some(Box::pin(async move {
            let handled = match &self.handler {
                Handler::Concurrent { handle, .. } => {
                    let handled = tokio::spawn(handle(vec![message]));
                    handled.await.map(|result| result == ConsumeResult::Success)
                }
                Handler::Orderly(handle) => {
                    let handled = tokio::spawn(handle(message));
                    handled.await.map(|result| result == OrderlyResult::Success)
                }
            };
            let (result, remark) = match handled {
                Ok(true) => ("CR_SUCCESS", None),
                Ok(false) => ("CR_LATER", None),
                Err(panic) => ("CR_THROW_EXCEPTION", Some(panic.to_string())),
            };
            ConsumeMessageDirectlyResult {
                auto_commit: true,
                consume_result: result.to_string(),
                order: self.is_orderly(),
                remark,
                spent_time_mills: i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX),
            }
        }))
    }
}

impl QueueState {
    fn info(&self, now: Instant) -> ProcessQueueInfo {
        let process = lock(&self.process);
        let (first, last) = process.bounds();
        let locked_for = lock(&self.locked_until).and_then(|until| until.checked_duration_since(now));
        ProcessQueueInfo {
            cached_msg_count: i32::try_from(process.count()).unwrap_or(i32::MAX),
            cached_msg_min_offset: to_wire(first),
            cached_msg_max_offset: to_wire(last),
            cached_msg_size_in_mi_b: i32::try_from(process.bytes() >> 20).unwrap_or(i32::MAX),
            commit_offset: to_wire(process.commit_offset()),
            droped: *self.hold.borrow() == Hold::Discarded,
            last_consume_timestamp: *lock(&self.consumed_ms),
            last_lock_timestamp: *lock(&self.locked_ms),
            last_pull_timestamp: *lock(&self.pulled_ms),
            locked: locked_for.is_some(),
            ..ProcessQueueInfo::default()
        }
    }
}
