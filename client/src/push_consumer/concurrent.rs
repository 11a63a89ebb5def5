//! Many handlers at a time, in no order.
//!
//!   permit ─▶ handler ─┬▶ success ─────────────────────────▶ finished
//!                      └▶ failure, panic, timeout ─▶ a broker takes it (`send_back`) ─▶ finished
//!                                                     └▶ else handled again here, after `LOCAL_RETRY`

use std::sync::Arc;
use std::time::Duration;

use ringmq_protocol::message::MessageExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::send_back::restored;
use super::{ConsumeResult, Handler, Inner, QueueState};
use crate::client::{lock, now_ms};

/// When a message could neither be processed nor sent back, it is processed again here after this time.
const LOCAL_RETRY: Duration = Duration::from_secs(5);

/// Starts to handle each message as soon as a permit is free.
pub(super) async fn run(
    inner: Arc<Inner>,
    state: Arc<QueueState>,
    mut pulled: mpsc::UnboundedReceiver<MessageExt>,
) {
    let Handler::Concurrent { batch_max, .. } = inner.handler else { return };
    // Ends with this task, and all processing with it.
    let mut processing = JoinSet::new();
    while let Some(message) = pulled.recv().await {
        // The semaphore is never closed.
        let Ok(permit) = inner.permits.clone().acquire_owned().await else { return };
        let mut batch = vec![message];
        while batch.len() < batch_max
            && let Ok(message) = pulled.try_recv()
        {
            batch.push(message);
        }
        processing.spawn(process(inner.clone(), state.clone(), batch, permit));
        while processing.try_join_next().is_some() {}
    }
    while processing.join_next().await.is_some() {}
}

/// P3, from the first run of the handler to the end.
async fn process(
    inner: Arc<Inner>,
    state: Arc<QueueState>,
    mut batch: Vec<MessageExt>,
    permit: OwnedSemaphorePermit,
) {
    let Handler::Concurrent { handle, .. } = &inner.handler else { return };
    let mut permit = Arc::new(permit);
    loop {
        *lock(&state.consumed_ms) = now_ms();
        let messages: Vec<MessageExt> = batch.iter().map(restored).collect();
        let hooks = inner.client.hooks();
        let hooked = hooks.before_consume(&inner.group, &state.queue, &messages);
        let begun = Instant::now();
        let work = handle(messages);
        // A task of its own, so that a panic ends the handler and nothing else. It shares the permit, so that a
        // handler of a queue that was given up counts as long as it runs.
        let held = permit.clone();
        let mut handled = tokio::spawn(async move {
            let result = work.await;
            drop(held);
            result
        });
        let result = match timeout(inner.intervals.consume_timeout, &mut handled).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                tracing::error!(%panic, topic = %state.queue.topic, "the handler panicked");
                ConsumeResult::ReconsumeLater
            }
            Err(_) => {
                handled.abort();
                tracing::warn!(topic = %state.queue.topic, "the handler took too long and is cancelled");
                ConsumeResult::ReconsumeLater
            }
        };
        let (succeeded, took) = (result == ConsumeResult::Success, begun.elapsed());
        state.stats.handled(batch.len(), succeeded, took);
        hooks.after_consume(&inner.group, &state.queue, &hooked, succeeded, took);
        let mut left = Vec::new();
        for message in batch {
            if succeeded || inner.dispose(&state, &message, result).await {
                state.finished(message.queue_offset);
            } else {
                left.push(message);
            }
        }
        if left.is_empty() {
            return;
        }
        batch = left;
        drop(permit);
        sleep(LOCAL_RETRY).await;
        permit = match inner.permits.clone().acquire_owned().await {
            Ok(permit) => Arc::new(permit),
            // The semaphore is never closed.
            Err(_) => return,
        };
    }
}

impl Inner {
    /// Does what is to be done with a message that failed. `true` if it is finished with that.
    async fn dispose(&self, state: &QueueState, message: &MessageExt, result: ConsumeResult) -> bool {
        if self.offsets.is_none() {
            return self.send_back(&state.queue, message, result).await;
        }
        let (topic, id) = (&message.message.topic, message.message_id());
        tracing::warn!(%topic, %id, offset = %message.queue_offset, "broadcast message dropped, its handler failed");
        true
    }
}
