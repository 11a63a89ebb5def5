use super::*;
use crossbeam::channel;
use ringmq_ring::Ring;
use ringmq_ring::sim::{SimConfig, SimDisk, SimRing};
use tokio::sync::mpsc;

/// Asking again at once made the two threads ask and answer each other without end, as long as a segment was kept.
#[tokio::test]
async fn a_segment_that_is_kept_is_not_asked_for_again_at_once() {
    let (outbox, told) = channel::unbounded();
    let (_shard, inbox) = channel::unbounded();
    let shard = ShardLink {
        broker_name: "broker-a-0".to_owned(),
        address: ([127, 0, 0, 1], 10911).into(),
        directory: "/nowhere".into(),
        log: LogConfig::default(),
        retention: Retention { age: Duration::from_secs(1), bytes: None, forced: false },
        scrub_bytes_per_s: 0,
        sealed: Vec::new(),
        topics: Vec::new(),
        inbox,
        outbox,
        waker: SimRing::new(1, SimDisk::new(1), SimConfig::default()).waker(),
    };
    // Both are due: they were stored in 1970.
    let [first, second] = [SegmentBase(0), SegmentBase(shard.log.segment_bytes)];
    let old = |base| Sealed { base, last_timestamp: StoreTimestamp(1), index_bytes: 4096 };
    let sealed = [first, second].map(old).into();
    let mut keeper = Keeper { shard: &shard, sealed, asked: None, told_of: None };
    let (give, mut jobs) = mpsc::unbounded_channel();
    for _ in 0..3 {
        assert!(give.send(Job::Kept { segment: first, reason: "a test".to_owned() }).is_ok());
    }
    assert!(give.send(Job::Released(first)).is_ok());
    drop(give);
    keeper.serve(&mut jobs).await;

    let mut asked: Vec<SegmentBase> = told
        .try_iter()
        .map(|message| match message {
            ToShard::Release { segment, forced: false } => segment,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked.pop(), Some(second), "the next one is asked for as soon as the first is gone");
    // Not at all if the first check came after all of this.
    assert!(asked.is_empty() || asked == [first], "{asked:?}");
}
