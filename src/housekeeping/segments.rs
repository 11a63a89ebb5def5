//! Files of full segments: their indexes are written here, they are rewritten (`rewrite`), and the oldest go when they are due. The file of one
//! that goes is kept as a spare for the log to grow into, as far as there is room for that.
//!
//!   shard ──Seal, Rebuild, Released, Kept──▶ one worker a shard, in order ──Sealed, Rebuilt, Release──▶ shard
//!
//! H1  A segment goes only after its shard has said `Released`, and its index goes before it.
//! H2  What cannot be written is tried again until it can be; the shard keeps it in memory until then.
//! H3  With a budget for room, a segment goes before the log takes another one: all files together take no more than that, unless
//!     what may not go does, or for a moment an index that was just written, or the new file of a segment that is being rewritten.

use super::rewrite::{NotWritten, Rewriter, Written};
use super::{RETRY, ShardLink, log};
use crate::driver::ToShard;
use ringmq_protocol::body::TopicConfig;
use ringmq_protocol::types::StoreTimestamp;
use ringmq_storage::{
    ChainPoint, Damage, FsStore, IndexHeader, LogConfig, RecoverError, SegmentBase, SegmentIndex, ShardUse,
    rebuild_index, remove_segment, remove_spare, seal, shard_use,
};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{UnboundedReceiver, WeakUnboundedSender};
use tokio::task::spawn_blocking;

/// How often the age of segments is looked at.
const RETENTION_CHECK: Duration = Duration::from_secs(10);

/// How long messages are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// A segment is due when its last message is older.
    pub age: Duration,
    /// The oldest segment is due while the shard's files, with the next segment, take more.
    pub bytes: Option<u64>,
    /// Also what an online group has still to consume goes when it is due.
    pub forced: bool,
}

/// What there is to do for a shard, in order.
pub(super) enum Job {
    Seal(Arc<SegmentIndex>),
    Rebuild { segment: SegmentBase, replay_from: ChainPoint },
    Released(SegmentBase),
    Kept { segment: SegmentBase, reason: String },
    Topic(TopicConfig),
    TopicDeleted(String),
    GivenUp { segment: SegmentBase, topics: Vec<String> },
    Rewritten { segment: SegmentBase, written: Result<Written, NotWritten> },
}

/// A sealed segment.
#[derive(Clone, Copy, Debug)]
struct Sealed {
    base: SegmentBase,
    last_timestamp: StoreTimestamp,
}

impl Sealed {
    fn of(header: &IndexHeader) -> Self {
        Sealed { base: header.base, last_timestamp: header.last_timestamp }
    }
}

/// The sealed segments of a shard, and when the oldest is due: decides, and does nothing. The simulator's housekeeping decides
/// with it too.
#[derive(Debug)]
pub struct Tenure {
    retention: Retention,
    /// Oldest first.
    sealed: VecDeque<Sealed>,
    /// The segment that the shard was asked to release.
    asked: Option<SegmentBase>,
}

impl Tenure {
    /// `sealed`: headers of the segments that are sealed at the start, oldest first.
    pub fn new(retention: Retention, sealed: &[IndexHeader]) -> Self {
        Tenure { retention, sealed: sealed.iter().map(Sealed::of).collect(), asked: None }
    }

    /// The index of one more segment is in its file.
    pub fn on_sealed(&mut self, header: &IndexHeader) {
        self.sealed.push_back(Sealed::of(header));
    }

    /// The shard does not release what it was asked for; it may be asked again.
    pub fn on_kept(&mut self) {
        self.asked = None;
    }

    /// The segment was released, and its files are gone or cannot be deleted.
    pub fn on_gone(&mut self, segment: SegmentBase) {
        self.asked = None;
        self.sealed.retain(|sealed| sealed.base != segment);
    }

    /// False while the shard has not answered, or there is nothing to ask for.
    pub fn may_ask(&self) -> bool {
        self.asked.is_none() && !self.sealed.is_empty()
    }

    /// The segment to ask the shard for, with the time since 1970: the oldest if it is due.
    pub fn due(&mut self, now: Duration, is_short_of_room: bool) -> Option<SegmentBase> {
        let oldest = self.sealed.front().filter(|_| self.asked.is_none())?;
        let stored = Duration::from_millis(u64::try_from(oldest.last_timestamp.0).unwrap_or(0));
        let is_old = now.saturating_sub(stored) > self.retention.age;
        self.asked = (is_old || is_short_of_room).then_some(oldest.base);
        self.asked
    }
}

/// Works for one shard until its jobs end; `own` leads to itself.
pub(super) async fn keep(
    shards: Rc<[ShardLink]>,
    index: usize,
    own: WeakUnboundedSender<Job>,
    mut jobs: UnboundedReceiver<Job>,
) {
    let shard = &shards[index];
    let tenure = Tenure::new(shard.retention, &shard.sealed);
    let rewriter = Rewriter::new(shards.clone(), index, own);
    let mut keeper = Keeper { shard, tenure, rewriter, told_of: None };
    keeper.serve(&mut jobs).await;
}

struct Keeper<'a> {
    shard: &'a ShardLink,
    tenure: Tenure,
    rewriter: Rewriter,
    /// The segment that was last said to be kept though it is due, and why.
    told_of: Option<(SegmentBase, String)>,
}

impl Keeper<'_> {
    async fn serve(&mut self, jobs: &mut UnboundedReceiver<Job>) {
        let mut check = tokio::time::interval(RETENTION_CHECK);
        loop {
            tokio::select! {
                job = jobs.recv() => {
                    let Some(job) = job else { return };
                    // What is kept, asked for again at once, would be kept again, over and over: the next check is soon enough.
                    let changes_room =
                        matches!(job, Job::Seal(_) | Job::Rebuild { .. } | Job::Released(_) | Job::Rewritten { .. });
                    self.work(job).await;
                    if !changes_room {
                        continue;
                    }
                }
                _ = check.tick() => self.rewriter.on_check(),
                () = tokio::time::sleep_until(self.rewriter.next_look()), if self.rewriter.may_look() => {
                    self.rewriter.look().await;
                    continue;
                }
            }
            self.ask_for_release().await;
        }
    }

    async fn work(&mut self, job: Job) {
        match job {
            Job::Seal(index) => self.seal(index).await,
            Job::Rebuild { segment, replay_from } => self.rebuild(segment, replay_from).await,
            Job::Released(segment) => self.remove(segment).await,
            Job::Kept { segment, reason } => self.on_kept(segment, reason),
            Job::Topic(config) => self.rewriter.outlived().on_topic(&config),
            Job::TopicDeleted(topic) => self.rewriter.outlived().on_topic_deleted(&topic),
            Job::GivenUp { segment, topics } => self.rewriter.on_given_up(segment, topics).await,
            Job::Rewritten { segment, written } => self.rewriter.on_written(segment, written).await,
        }
    }

    fn on_kept(&mut self, segment: SegmentBase, reason: String) {
        self.tenure.on_kept();
        let told = (segment, reason);
        if self.told_of.as_ref() != Some(&told) {
            let (name, (segment, reason)) = (&self.shard.broker_name, &told);
            log(false, &format!("{name}: segment {segment} is due and kept: {reason}"));
            self.told_of = Some(told);
        }
    }

    async fn seal(&mut self, index: Arc<SegmentIndex>) {
        loop {
            let (index, log_config, mut store) = (index.clone(), self.log_config(), self.store());
            let done = spawn_blocking(move || seal(&mut store, &log_config, &index)).await;
            match done.map_err(io::Error::other).and_then(|done| done) {
                Ok(header) => {
                    self.tenure.on_sealed(&header);
                    self.rewriter.outlived().on_sealed(&header);
                    return self.shard.tell(ToShard::Sealed(Box::new(header)));
                }
                Err(error) => {
                    let name = &self.shard.broker_name;
                    log(
                        true,
                        &format!("{name}: the index of a segment cannot be written, will try again: {error}"),
                    );
                    self.shard.tell(ToShard::SealFailed { reason: error.to_string() });
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn rebuild(&mut self, segment: SegmentBase, replay_from: ChainPoint) {
        let (log_config, mut store) = (self.log_config(), self.store());
        let done = spawn_blocking(move || rebuild_index(&mut store, &log_config, segment, replay_from)).await;
        let rebuilt: Result<(IndexHeader, Vec<Damage>), RecoverError> =
            done.map_err(|error| RecoverError::List(io::Error::other(error))).and_then(|done| done);
        let name = &self.shard.broker_name;
        let result = rebuilt.map_err(|error| error.to_string()).map(|(header, damaged)| {
            for damage in damaged {
                log(
                    true,
                    &format!("{name}: {} bytes of the log at {} are damaged", damage.bytes, damage.position),
                );
            }
            log(false, &format!("{name}: the index of segment {segment} was written anew"));
            Box::new(header)
        });
        self.shard.tell(ToShard::Rebuilt { segment, result });
    }

    async fn remove(&mut self, segment: SegmentBase) {
        let (directory, segment_bytes) = (self.shard.directory.clone(), self.shard.log.segment_bytes);
        let budget = self.shard.retention.bytes;
        let done = spawn_blocking(move || {
            let may_keep = match budget {
                Some(budget) => shard_use(&directory)?.bytes <= budget,
                None => true,
            };
            remove_segment(&directory, segment, segment_bytes, may_keep)
        });
        let name = &self.shard.broker_name;
        match done.await.map_err(io::Error::other).and_then(|done| done) {
            Ok(is_kept) => {
                let file = if is_kept { "; its file will be used again" } else { "" };
                let why = self.shard.retention.why();
                log(false, &format!("{name}: segment {segment} was deleted: {why}{file}"));
            }
            // Not in the way of anything; the next start finds it and treats it as the oldest segment.
            Err(error) => log(true, &format!("{name}: segment {segment} cannot be deleted: {error}")),
        }
        self.tenure.on_gone(segment);
        self.rewriter.outlived().on_gone(segment);
    }

    async fn ask_for_release(&mut self) {
        let is_short = self.tenure.may_ask() && self.is_short_of_room().await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(segment) = self.tenure.due(now, is_short) {
            self.shard.tell(ToShard::Release { segment, forced: self.shard.retention.forced });
        }
    }

    /// Whether a segment has to go for the files, and the next one of the log, to fit the budget. Spares go first.
    async fn is_short_of_room(&self) -> bool {
        let Some(budget) = self.shard.retention.bytes else { return false };
        let (directory, segment_bytes) = (self.shard.directory.clone(), self.shard.log.segment_bytes);
        let done = spawn_blocking(move || is_short_of_room(&directory, budget, segment_bytes)).await;
        done.map_err(io::Error::other).and_then(|done| done).unwrap_or_else(|error| {
            let name = &self.shard.broker_name;
            log(true, &format!("{name}: what the files take cannot be told, will try again: {error}"));
            false
        })
    }

    fn log_config(&self) -> LogConfig {
        self.shard.log.clone()
    }

    fn store(&self) -> FsStore {
        FsStore::new(self.shard.directory.clone())
    }
}

fn is_short_of_room(directory: &Path, budget: u64, segment_bytes: u64) -> io::Result<bool> {
    let mut found = shard_use(directory)?;
    while found.bytes > budget && remove_spare(directory)? {
        found = shard_use(directory)?;
    }
    Ok(is_short_with(&found, budget, segment_bytes))
}

/// Whether these files, and the segment that the log takes next, are more than the budget.
pub fn is_short_with(found: &ShardUse, budget: u64, segment_bytes: u64) -> bool {
    // What is released early is there as a spare when the log needs it.
    let next = if found.spares > 0 { 0 } else { segment_bytes };
    found.bytes + next > budget
}

impl Retention {
    fn why(&self) -> String {
        let hours = self.age.as_secs_f64() / 3600.0;
        let bytes =
            self.bytes.map_or(String::new(), |bytes| format!(", or all files take more than {bytes} bytes"));
        format!("its last message is older than {hours:.1} hours{bytes}")
    }
}

#[cfg(test)]
mod tests;
