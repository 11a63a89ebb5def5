//! Queue locks: never two holders, whatever happens.

use super::*;
use ringmq_protocol::body::{LockBatchBody, LockBatchResult, MessageQueue};

fn body(client_id: &str, queues: &[i32]) -> Vec<u8> {
    let mq_set = queues.iter().map(|id| MessageQueue::new("T", "b-0", *id)).collect();
    let (client_id, consumer_group) = (client_id.to_owned(), "g".to_owned());
    LockBatchBody { client_id, consumer_group, mq_set, only_this_broker: false }.to_json()
}

impl Fixture {
    fn lock(&mut self, client_id: &str, queues: &[i32]) -> Opaque {
        self.request(RequestCode::LOCK_BATCH_MQ, &(), &body(client_id, queues))
    }

    fn unlock(&mut self, client_id: &str, queues: &[i32]) -> Opaque {
        self.request(RequestCode::UNLOCK_BATCH_MQ, &(), &body(client_id, queues))
    }

    /// The queues of the answer to a lock, if there is one.
    fn locked(&mut self, opaque: Opaque) -> Option<Vec<i32>> {
        let answer = self.answer(opaque)?;
        assert_eq!(answer.code, 0, "{:?}", answer.remark);
        let mut ids: Vec<i32> = LockBatchResult::from_json(&answer.body)
            .unwrap()
            .lock_ok_mq_set
            .iter()
            .map(|queue| queue.queue_id)
            .collect();
        ids.sort_unstable();
        Some(ids)
    }

    fn lock_now(&mut self, client_id: &str, queues: &[i32]) -> Vec<i32> {
        let asked = self.lock(client_id, queues);
        self.settle();
        self.locked(asked).expect("answered once it is durable")
    }
}

#[test]
fn a_lock_is_exclusive_until_it_expires_or_is_given_up() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    assert_eq!(f.lock_now("one", &[0, 1, 1]), [0, 1]);
    f.tick(limits::LOCK_MS - 1);
    let is_any_held = |f: &Fixture, group| f.shard.locks.is_any_held(group, f.now.monotonic_ms);
    assert!(is_any_held(&f, "g") && !is_any_held(&f, "other"));
    f.tick(1);
    assert!(!is_any_held(&f, "g"), "their time is over");
    f.tick(-1);
    assert_eq!(f.lock_now("two", &[0, 2]), [2]);
    f.tick(1);
    assert_eq!(f.lock_now("two", &[0]), [0]);
    f.unlock("one", &[0]);
    assert_eq!(f.lock_now("one", &[0]), [] as [i32; 0], "only its holder can give it up");
    let given_up = f.unlock("two", &[0, 2]);
    f.settle();
    assert_eq!(f.answer(given_up).unwrap().code, 0);
    assert_eq!(f.lock_now("one", &[0, 2]), [0, 2]);
}

#[test]
fn a_lock_is_told_of_only_when_it_is_durable_and_a_renewal_at_once() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let first = f.lock("one", &[0]);
    let again = f.lock("one", &[0]);
    let other = f.lock("two", &[0]);
    assert!(f.locked(first).is_none() && f.locked(again).is_none(), "a crash would forget it");
    assert_eq!(f.locked(other).unwrap(), [] as [i32; 0], "that it got nothing it may know at once");
    f.settle();
    assert_eq!((f.locked(first).unwrap(), f.locked(again).unwrap()), (vec![0], vec![0]));
    let renewed = f.lock("one", &[0]);
    assert_eq!(f.locked(renewed).unwrap(), [0]);
    assert!(f.writes().is_empty(), "L3: renewing is no record");
}

#[test]
fn locks_survive_a_restart_for_their_time() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    f.lock_now("one", &[0, 1]);
    f.unlock("one", &[1]);
    f.settle();
    let mut f = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert_eq!(f.lock_now("two", &[0, 1]), [1]);
    f.tick(limits::LOCK_MS - 1);
    assert_eq!(f.lock_now("two", &[0]), [] as [i32; 0]);
    let mut renewed = Fixture::on(f.disk.clone(), FlushDiskType::Sync);
    assert_eq!(renewed.lock_now("one", &[0]), [0], "its holder goes on");
    f.tick(1);
    assert_eq!(f.lock_now("two", &[0]), [0], "60 s from the start, and nobody asked");
}

#[test]
fn locks_are_in_checkpoints() {
    let mut f = Fixture::with_segments(MemoryStore::default(), FlushDiskType::Sync, 6 << 20);
    f.lock_now("one", &[3]);
    for _ in 0..30 {
        f.send("T", 0, "", &[7; 1 << 20]);
        f.settle();
        f.tick(50);
        // The holder stays.
        f.lock_now("one", &[3]);
    }
    assert!(
        f.shard.checkpoints.replay_from.position.0 > 6 << 20,
        "the record of the lock is behind the start"
    );
    let from = f.shard.checkpoints.replay_from.position.0;
    let mut f = Fixture::with_segments(f.disk.clone(), FlushDiskType::Sync, 6 << 20);
    assert_eq!(f.shard.checkpoints.replay_from.position.0, from);
    assert_eq!(f.lock_now("two", &[3]), [] as [i32; 0]);
}

#[test]
fn what_cannot_be_a_lock_is_refused() {
    let mut f = Fixture::new(FlushDiskType::Sync);
    let long = f.lock(&"x".repeat(256), &[0]);
    assert_eq!(f.answer(long).unwrap().code, ResponseCode::INVALID_PARAMETER.0);
    let nonsense = f.request(RequestCode::LOCK_BATCH_MQ, &(), b"{");
    assert_eq!(f.answer(nonsense).unwrap().code, ResponseCode::SYSTEM_ERROR.0);
    let all: Vec<i32> = (0..limits::LOCKS_MAX as i32).collect();
    assert_eq!(f.lock_now("one", &all).len(), all.len());
    let more = f.lock("two", &[-1]);
    assert_eq!(f.answer(more).unwrap().code, ResponseCode::SYSTEM_BUSY.0);
    f.tick(limits::LOCK_MS);
    assert_eq!(f.lock_now("two", &[-1]), [-1], "what has expired makes room");
}
