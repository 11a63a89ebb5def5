//! One message at a time per queue, in its order, under the queue's lock.
//!
//!   rebalance ─▶ lock ─▶ offset ─▶ message ─▶ lock counts? ─▶ handler ─┬▶ success ─▶ finished ─▶ next message
//!                          ▲ every 20 s: renew                         └▶ suspend ─▶ wait ─▶ the same message
//!
//! O1  no handler starts without a lock that counts: one that a broker granted when asked less than 30 s ago.
//! O2  a queue has at most one running handler in this client: it stays in the map until its handler has ended, and only
//!     then it can be taken up anew.
//! O3  after the lock was lost nothing of the queue is committed; what was done comes again to whoever has it next.
//! O4  a queue that goes to another member is unlocked after its last handler ended and its offset was stored.

use std::sync::Arc;
use std::time::Duration;

use ringmq_protocol::message::MessageExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::send_back::restored;
use super::{ConsumeResult, Handler, Hold, INCOMPLETE_RETRY, Inner, OrderlyResult, QueueState};
use crate::client::{lock, now_ms};

/// Renews the locks of all queues, sooner again if a broker did not answer.
pub(super) async fn lock_loop(inner: Arc<Inner>) {
    let mut pause = inner.intervals.lock;
    loop {
        sleep(pause).await;
        let all = inner.renew_locks().await;
        pause = if all { inner.intervals.lock } else { inner.intervals.lock.min(INCOMPLETE_RETRY) };
    }
}

/// Handles a queue until it leaves or is discarded.
pub(super) async fn run(
    inner: Arc<Inner>,
    state: Arc<QueueState>,
    mut pulled: mpsc::UnboundedReceiver<MessageExt>,
) {
    let mut hold = state.hold.subscribe();
    loop {
        let message = tokio::select! {
            biased;
            () = no_longer_held(&mut hold) => break,
            // The pull task ends only when the queue does.
            message = pulled.recv() => match message {
                Some(message) => message,
                None => {
                    no_longer_held(&mut hold).await;
                    break;
                }
            },
        };
        inner.handle_in_order(&state, &mut hold, message).await;
    }
    if state.may_commit() {
        inner.persist(&state, false).await;
    }
    let leaves = *state.hold.borrow() == Hold::Leaving;
    state.discard();
    // O4. A lock that was lost is somebody else's affair, and one of a queue that begins anew is needed at once.
    if leaves && inner.needs_locks() {
        inner.client.unlock_queues(&inner.group, std::slice::from_ref(&state.queue)).await;
    }
    // If it begins anew, not before its new offset is stored.
    drop(state.persisted.lock().await);
    // Ends this task too, at its next wait: nothing may follow.
    inner.remove(&state);
    inner.member.rebalance.notify_one();
}

async fn no_longer_held(hold: &mut watch::Receiver<Hold>) {
    // The sender is part of the state that the caller has, so the wait ends only by the value.
    drop(hold.wait_for(|hold| *hold != Hold::Held).await);
}

impl Inner {
    /// Handles one message until it is finished or the queue is no longer held.
    async fn handle_in_order(
        &self,
        state: &Arc<QueueState>,
        hold: &mut watch::Receiver<Hold>,
        mut message: MessageExt,
    ) {
        let Handler::Orderly(handle) = &self.handler else { return };
        loop {
            let permit = tokio::select! {
                biased;
                () = no_longer_held(hold) => return,
                // The semaphore is never closed.
                permit = self.permits.clone().acquire_owned() => match permit {
                    Ok(permit) => Arc::new(permit),
                    Err(_) => return,
                },
            };
            // O1
            if !state.may_commit() {
                return state.discard();
            }
            *lock(&state.consumed_ms) = now_ms();
            let seen = restored(&message);
            let hooks = self.client.hooks();
            let hooked = hooks.before_consume(&self.group, &state.queue, std::slice::from_ref(&seen));
            let begun = Instant::now();
            let work = handle(seen);
            // A task of its own, so that a panic ends the handler and nothing else; it holds the permit too, so that a
            // shutdown waits for it whatever becomes of this task.
            let held = permit.clone();
            let handled = tokio::spawn(async move {
                let result = work.await;
                drop(held);
                result
            });
            let result = handled.await.unwrap_or_else(|panic| {
                tracing::error!(%panic, topic = %state.queue.topic, "the handler panicked");
                OrderlyResult::Suspend
            });
            let (succeeded, took) = (result == OrderlyResult::Success, begun.elapsed());
            state.stats.handled(1, succeeded, took);
            hooks.after_consume(&self.group, &state.queue, &hooked, succeeded, took);
            let pause = match result {
                // O3 is in `finished`.
                OrderlyResult::Success => return state.finished(message.queue_offset),
                OrderlyResult::Suspend => self.intervals.suspend,
                OrderlyResult::SuspendFor(pause) => pause,
            };
            if message.reconsume_times >= self.reconsume_times_max() && state.may_commit() {
                if self.end_retries(state, &message).await {
                    return state.finished(message.queue_offset);
                }
            } else {
                message.reconsume_times = message.reconsume_times.saturating_add(1);
            }
            drop(permit);
            tokio::select! {
                biased;
                () = no_longer_held(hold) => return,
                () = sleep(pause.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// A message failed as often as it may: a broker makes a dead letter of it. `true` if it is finished with that.
    async fn end_retries(&self, state: &QueueState, message: &MessageExt) -> bool {
        if self.offsets.is_none() {
            return self.publish_retry(message, ConsumeResult::DeadLetter).await;
        }
        let (topic, id) = (&state.queue.topic, message.message_id());
        tracing::warn!(%topic, %id, "broadcast message dropped, its handler failed too often");
        true
    }

    /// Returns false if a broker did not answer.
    async fn renew_locks(&self) -> bool {
        let states: Vec<Arc<QueueState>> =
            lock(&self.queues).values().map(|running| running.state.clone()).collect();
        let queues: Vec<_> = states.iter().map(|state| state.queue.clone()).collect();
        // What is valid from the moment of asking is valid at the broker for longer.
        let asked = Instant::now();
        let held = self.client.lock_queues(&self.group, &queues).await;
        let mut all = true;
        for state in states {
            match held.get(&state.queue) {
                // One that had ended may have been somebody else's in the meantime.
                Some(true) if state.may_commit() => {
                    *lock(&state.locked_until) = Some(asked + self.intervals.lock_valid);
                    *lock(&state.locked_ms) = now_ms();
                }
                Some(_) => {
                    let queue = &state.queue;
                    tracing::warn!(topic = %queue.topic, broker = %queue.broker_name, queue = queue.queue_id, "lock lost");
                    state.discard();
                }
                None => {
                    all = false;
                    if !state.may_commit() {
                        state.discard();
                    }
                }
            }
        }
        all
    }
}
