use super::*;
use crate::driver::FromShard;
use crossbeam::channel::{self, Receiver, Sender};
use ringmq_ring::Ring;
use ringmq_ring::sim::{SimConfig, SimDisk, SimRing};
use std::path::PathBuf;
use tokio::sync::{Notify, mpsc, oneshot};

fn link(inbox: Receiver<FromShard>, outbox: Sender<ToShard>) -> ShardLink {
    ShardLink {
        broker_name: "broker-a-0".to_owned(),
        address: ([127, 0, 0, 1], 10911).into(),
        directory: "/nowhere".into(),
        log: LogConfig::default(),
        retention: Retention { age: Duration::from_secs(1), bytes: None, forced: false },
        scrub_bytes_per_s: 0,
        rewrite_bytes_per_s: 0,
        sealed: Vec::new(),
        topics: Vec::new(),
        inbox,
        outbox,
        waker: SimRing::new(1, SimDisk::new(1), SimConfig::default()).waker(),
    }
}

/// What served the shards still waited to be notified, and took from who waits for their end what told of it: each stop of a
/// broker lasted as long as a stop may.
#[tokio::test(start_paused = true)]
async fn a_broker_has_stopped_as_soon_as_its_shards_have() {
    let (shard, inbox) = channel::unbounded();
    let (outbox, told) = channel::unbounded();
    let notify = Arc::new(Notify::new());
    let began = tokio::time::Instant::now();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let run = super::super::run(
        vec![link(inbox, outbox)],
        Vec::new(),
        String::new(),
        notify.clone(),
        |_| {},
        stopped,
    );
    let the_shard = async {
        // Not before it is served.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
        while !told.try_iter().any(|message| matches!(message, ToShard::Stop)) {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(shard);
        notify.notify_one();
    };
    let (ended, ()) = tokio::join!(run, the_shard);
    assert!(ended.is_ok());
    // The clock stands still, unless there is nothing left but to wait.
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// Asking again at once made the two threads ask and answer each other without end, as long as a segment was kept.
#[tokio::test]
async fn a_segment_that_is_kept_is_not_asked_for_again_at_once() {
    let (_shard, inbox) = channel::unbounded();
    let (outbox, told) = channel::unbounded();
    let shards: Rc<[ShardLink]> = vec![link(inbox, outbox)].into();
    let shard = &shards[0];
    // Both are due: they were stored in 1970.
    let [first, second] = [SegmentBase(0), SegmentBase(shard.log.segment_bytes)];
    let old = |base| Sealed { base, last_timestamp: StoreTimestamp(1) };
    let mut tenure = Tenure::new(shard.retention, &[]);
    tenure.sealed = [first, second].map(old).into();
    let (give, mut jobs) = mpsc::unbounded_channel();
    let rewriter = Rewriter::new(shards.clone(), 0, give.downgrade());
    let mut keeper = Keeper { shard, tenure, rewriter, told_of: None };
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

/// A scratch folder with a segment of 1 MiB, on the disk as a whole, for each name.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[&str]) -> Folder {
        let path = std::env::temp_dir().join(format!("ringmq-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for file in files {
            std::fs::write(path.join(file), vec![1; 1 << 20]).unwrap();
        }
        Folder(path)
    }

    fn files(&self) -> usize {
        std::fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// H3: all that is in the folder counts, and the segment that the log takes next unless there is a spare for it.
#[test]
fn room_is_short_before_the_log_takes_the_next_segment() {
    const MIB: u64 = 1 << 20;
    let names = ["00000000000000000000", "00000000000001048576", "00000000000001048576.index"];
    let folder = Folder::new("room", &names);
    let is_short = |budget| is_short_of_room(&folder.0, budget, MIB).unwrap();
    assert_eq!((is_short(4 * MIB), is_short(4 * MIB - 1)), (false, true));
    std::fs::write(folder.0.join("00000000000000000000.spare"), vec![1; 1 << 20]).unwrap();
    assert!(!is_short(4 * MIB));
    assert_eq!(folder.files(), 4);
    // Spares go before messages do.
    assert!(is_short(4 * MIB - 1) && folder.files() == 3);
}
