//! Room for messages of topics that keep them for a shorter time than the broker does: the oldest sealed segment of which that
//! frees most is rewritten without them, a piece at a time, beside the log's own work.
//!
//!   look: whose time is over? what would it free? ──GiveUp──▶ shard ──GivenUp──▶ written aside, read back ─▶ keeper: renamed
//!         ──Rewritten──▶ shard
//!
//! W1  Nothing is left out of a segment that the shard has not given up for good.
//! W2  The new file takes the segment's place only in the keeper, which also removes segments: one that is gone stays gone.
//! W3  Before that it was read back from the disk, each block with its checksum and its place in the chain.
//! W4  A segment is looked at again only when the time of more topics is over for it, or topics have changed.

use super::segments::Job;
use super::{ShardLink, log};
use crate::driver::ToShard;
use crate::shard::own_retention_ms;
use ringmq_protocol::body::TopicConfig;
use ringmq_storage::{
    Aside, Found, FsStore, IndexFile, IndexHeader, LogConfig, Rewrite, RewriteError, SegmentBase,
    SegmentScan, TopicHash, discard_aside, index_path, read_index_header, replace_segment, room_left,
    segment_room,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io};
use tokio::sync::mpsc::WeakUnboundedSender;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// A rewriting reads what the segment takes, and writes and reads back what stays of it. Where half of it is freed that is four
/// bytes for each that is; where a quarter is it would be ten.
const FREED_SHARE_MIN: u64 = 2;
/// Bytes that are read at a time, then the rate is kept. What is read ahead at the end of a piece is read for nothing.
const PIECE_BYTES: u64 = 8 << 20;
/// Topics that are left out at a time, and that the shard is asked for.
const TOPICS_AT_ONCE: usize = 4096;
/// Topics that the line for the operator names.
const TOPICS_SAID: usize = 5;

/// Which sealed segments may have messages of topics whose own time is over for all of the segment: decides, and does nothing. The
/// simulator's housekeeping decides with it too.
#[derive(Debug, Default)]
pub struct Outlived {
    /// Of topics that have one of their own.
    times: BTreeMap<String, Duration>,
    /// Counts changes of `times`.
    version: u64,
    sealed: BTreeMap<SegmentBase, SealedTimes>,
    /// Segments from here on may be read by a start, which the shard does not allow to be rewritten.
    needed: SegmentBase,
    segment_bytes: u64,
}

#[derive(Debug)]
struct SealedTimes {
    /// Of the last message, since 1970.
    last: Duration,
    /// What was looked at: so many topics were over, as of a version.
    looked_at: Option<(u64, usize)>,
}

/// A segment to look at.
#[derive(Clone, Debug)]
pub struct Look {
    pub segment: SegmentBase,
    /// Topics whose time is over for all that is in it.
    pub topics: Vec<String>,
    mark: (u64, usize),
}

impl Outlived {
    /// `sealed`: headers of the segments that are sealed at the start, oldest first.
    pub fn new(segment_bytes: u64, topics: &[TopicConfig], sealed: &[IndexHeader]) -> Self {
        let mut outlived = Outlived { segment_bytes, ..Outlived::default() };
        topics.iter().for_each(|topic| outlived.on_topic(topic));
        sealed.iter().for_each(|header| outlived.on_sealed(header));
        outlived
    }

    /// A topic is there, with these settings.
    pub fn on_topic(&mut self, config: &TopicConfig) {
        let time = own_retention_ms(config).and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let before = match time {
            Some(time) if self.times.get(&config.topic_name) == Some(&time) => return,
            Some(time) => self.times.insert(config.topic_name.clone(), time).or(Some(time)),
            None => self.times.remove(&config.topic_name),
        };
        self.version += u64::from(before.is_some());
    }

    pub fn on_topic_deleted(&mut self, topic: &str) {
        self.version += u64::from(self.times.remove(topic).is_some());
    }

    /// The index of one more segment is in its file.
    pub fn on_sealed(&mut self, header: &IndexHeader) {
        let last = Duration::from_millis(u64::try_from(header.last_timestamp.0).unwrap_or(0));
        self.sealed.insert(header.base, SealedTimes { last, looked_at: None });
        self.needed = SegmentBase::of(header.replay_from.position, self.segment_bytes);
    }

    pub fn on_gone(&mut self, segment: SegmentBase) {
        self.sealed.remove(&segment);
    }

    /// The oldest segment that is to be looked at, with the time since 1970, but for these.
    pub fn next(&self, now: Duration, but: &BTreeSet<SegmentBase>) -> Option<Look> {
        if self.times.is_empty() {
            return None;
        }
        let mut times: Vec<Duration> = self.times.values().copied().collect();
        times.sort_unstable();
        self.sealed.range(..self.needed).filter(|(segment, _)| !but.contains(segment)).find_map(
            |(segment, sealed)| {
                let age = now.saturating_sub(sealed.last);
                let mark = (self.version, times.partition_point(|time| *time < age));
                if mark.1 == 0 || sealed.looked_at == Some(mark) {
                    return None;
                }
                let topics = self.times.iter().filter(|(_, time)| **time < age);
                let topics = topics.map(|(topic, _)| topic.clone()).collect();
                Some(Look { segment: *segment, topics, mark })
            },
        )
    }

    /// All that can be done by now was done.
    pub fn looked_at(&mut self, look: &Look) {
        if let Some(sealed) = self.sealed.get_mut(&look.segment) {
            sealed.looked_at = Some(look.mark);
        }
    }
}

/// Bytes that have to come back of a segment that takes `room`.
fn freed_min(room: u64) -> u64 {
    room.div_ceil(FREED_SHARE_MIN)
}

/// Whether it pays to rewrite a segment.
fn pays(room: u64, remains: u64) -> bool {
    room.saturating_sub(remains) >= freed_min(room)
}

/// What came of a look.
enum Plan {
    /// The topics that have messages there.
    Pays(Box<IndexHeader>, Vec<String>),
    /// So many bytes were read to tell.
    PaysNot(u64),
    /// It may later: another link keeps the file, or the disk has no room for the new one.
    Later,
}

/// A new file beside a segment.
pub(super) struct Written {
    segment: SegmentBase,
    topics: Vec<String>,
    messages: u64,
    began: Instant,
}

/// Why there is none.
pub(super) enum NotWritten {
    /// It will be no other next time.
    Segment(String),
    /// It may be tried again.
    Room(String),
}

pub(super) struct Rewriter {
    shards: Rc<[ShardLink]>,
    index: usize,
    jobs: WeakUnboundedSender<Job>,
    outlived: Outlived,
    /// The shard was asked, or the new file is being written.
    under_way: Option<Look>,
    /// Segments that cannot be rewritten before the next check.
    refused: BTreeSet<SegmentBase>,
    may_look: bool,
    /// Looks at many segments, as after a start, are spread over time.
    next_look: tokio::time::Instant,
    /// The segment that was last said not to be rewritten, and why.
    told_of: Option<(SegmentBase, String)>,
}

impl Rewriter {
    /// `jobs` leads to the shard's keeper, who has this.
    pub(super) fn new(shards: Rc<[ShardLink]>, index: usize, jobs: WeakUnboundedSender<Job>) -> Self {
        let shard = &shards[index];
        let outlived = Outlived::new(shard.log.segment_bytes, &shard.topics, &shard.sealed);
        Rewriter {
            jobs,
            outlived,
            shards,
            index,
            under_way: None,
            refused: BTreeSet::new(),
            may_look: true,
            next_look: tokio::time::Instant::now(),
            told_of: None,
        }
    }

    fn shard(&self) -> &ShardLink {
        &self.shards[self.index]
    }

    /// Whether there may be something to do at once.
    pub(super) fn may_look(&self) -> bool {
        self.may_look && self.under_way.is_none() && self.shard().rewrite_bytes_per_s > 0
    }

    /// When, if there may be.
    pub(super) fn next_look(&self) -> tokio::time::Instant {
        self.next_look
    }

    /// It is time to look again at what could not be done.
    pub(super) fn on_check(&mut self) {
        self.refused.clear();
        self.may_look = true;
    }

    pub(super) fn outlived(&mut self) -> &mut Outlived {
        self.may_look = true;
        &mut self.outlived
    }

    /// Looks at one segment. If it pays to rewrite it, the shard is asked.
    pub(super) async fn look(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Some(look) = self.outlived.next(now, &self.refused) else { return self.may_look = false };
        match self.plan(look.segment, look.topics.clone()).await {
            Plan::Pays(_, topics) => {
                let (segment, forced) = (look.segment, self.shard().retention.forced);
                self.under_way = Some(look);
                self.shard().tell(ToShard::GiveUp { segment, topics, forced });
            }
            Plan::PaysNot(read_bytes) => {
                self.outlived.looked_at(&look);
                self.next_look = tokio::time::Instant::now() + self.shard().pause_after(read_bytes);
            }
            Plan::Later => drop(self.refused.insert(look.segment)),
        }
    }

    async fn plan(&mut self, segment: SegmentBase, topics: Vec<String>) -> Plan {
        let (directory, config) = (self.shard().directory.clone(), self.shard().log.clone());
        let planned = spawn_blocking(move || plan(directory, &config, segment, topics)).await;
        planned.map_err(io::Error::other).and_then(|planned| planned).unwrap_or_else(|error| {
            self.say_not(segment, &error.to_string());
            Plan::Later
        })
    }

    /// The shard has given up what these topics have in a segment.
    pub(super) async fn on_given_up(&mut self, segment: SegmentBase, topics: Vec<String>) {
        let Some(look) = self.under_way.as_ref().filter(|look| look.segment == segment) else { return };
        // What is in flight may make another sum.
        let planned = if topics.is_empty() { Plan::Later } else { self.plan(look.segment, topics).await };
        let Plan::Pays(header, topics) = planned else {
            self.under_way = None;
            self.refused.insert(segment);
            return;
        };
        let (shards, index, jobs) = (self.shards.clone(), self.index, self.jobs.clone());
        tokio::task::spawn_local(async move {
            let written = write_aside(&shards[index], &header, topics).await;
            // Else the broker stops: the next start clears away what is aside.
            if let Some(jobs) = jobs.upgrade() {
                let _ = jobs.send(Job::Rewritten { segment, written });
            }
        });
    }

    /// The new file is there, or cannot be: it takes the segment's place, or is thrown away.
    pub(super) async fn on_written(&mut self, segment: SegmentBase, written: Result<Written, NotWritten>) {
        let Some(look) = self.under_way.take() else { return };
        match written {
            Ok(written) => match self.blocking(move |directory| replace_segment(&directory, segment)).await {
                Ok(Some(freed_bytes)) => {
                    self.shard().tell(ToShard::Rewritten { segment, freed_bytes });
                    self.outlived.looked_at(&look);
                    log(false, &format!("{}: {}", self.shard().broker_name, written.line(freed_bytes)));
                }
                Ok(None) => {} // deleted meanwhile
                Err(error) => {
                    self.refused.insert(segment);
                    self.say_not(segment, &error.to_string());
                }
            },
            Err(reason) => {
                let (NotWritten::Segment(line) | NotWritten::Room(line)) = &reason;
                self.say_not(segment, line);
                match reason {
                    NotWritten::Segment(_) => self.outlived.looked_at(&look),
                    NotWritten::Room(_) => drop(self.refused.insert(segment)),
                }
                if let Err(error) = self.blocking(move |directory| discard_aside(&directory, segment)).await {
                    self.say_not(segment, &error.to_string());
                }
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(PathBuf) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let directory = self.shard().directory.clone();
        let done = spawn_blocking(move || work(directory)).await;
        done.map_err(io::Error::other).and_then(|done| done)
    }

    fn say_not(&mut self, segment: SegmentBase, reason: &str) {
        let told = (segment, reason.to_owned());
        if self.told_of.as_ref() != Some(&told) {
            let name = &self.shard().broker_name;
            log(true, &format!("{name}: segment {segment} is not rewritten and stays as it is: {reason}"));
            self.told_of = Some(told);
        }
    }
}

impl Written {
    fn line(&self, freed_bytes: u64) -> String {
        let mut topics =
            self.topics.iter().take(TOPICS_SAID).map(String::as_str).collect::<Vec<_>>().join(", ");
        if let more @ 1.. = self.topics.len().saturating_sub(TOPICS_SAID) {
            topics += &format!(" and {more} more");
        }
        format!(
            "segment {} was rewritten in {:.1} s without {} messages of topics whose own time is over ({topics}): {freed_bytes} bytes given back",
            self.segment,
            self.began.elapsed().as_secs_f64(),
            self.messages,
        )
    }
}

fn plan(
    directory: PathBuf,
    config: &LogConfig,
    segment: SegmentBase,
    topics: Vec<String>,
) -> io::Result<Plan> {
    let Some(room) = segment_room(&directory, segment)? else { return Ok(Plan::Later) };
    let index_bytes = fs::metadata(index_path(&directory, segment))?.len();
    let mut store = FsStore::new(directory.clone());
    let hashes = topics.iter().map(|topic| TopicHash::of(topic)).collect();
    let remains = read_index_header(&mut store, config, segment, index_bytes).and_then(|header| {
        let file = IndexFile::new(config, header.clone());
        Ok((header, file.remains(&mut store, &hashes, room, freed_min(room))?))
    });
    let (header, remains) = remains.map_err(io::Error::other)?;
    let read_bytes = if remains.is_some() { index_bytes } else { 0 };
    let Some(remains) = remains.filter(|remains| pays(room, remains.bytes)) else {
        return Ok(Plan::PaysNot(read_bytes));
    };
    // The log comes first where room is short.
    if room_left(&directory)? < remains.bytes + config.segment_bytes {
        return Ok(Plan::Later);
    }
    let is_there = |topic: &String| remains.topics.contains(&TopicHash::of(topic));
    Ok(Plan::Pays(Box::new(header), topics.into_iter().filter(is_there).take(TOPICS_AT_ONCE).collect()))
}

/// Writes a segment aside without the messages of these topics, and reads that back.
async fn write_aside(
    shard: &ShardLink,
    header: &IndexHeader,
    topics: Vec<String>,
) -> Result<Written, NotWritten> {
    let began = Instant::now();
    let (directory, config, segment) = (shard.directory.clone(), shard.log.clone(), header.base);
    let room = |error: io::Error| NotWritten::Room(format!("the new file cannot be written: {error}"));
    let failed = |error: RewriteError| match error {
        RewriteError::Write(_) => NotWritten::Room(error.to_string()),
        _ => NotWritten::Segment(error.to_string()),
    };
    let ended = |error: tokio::task::JoinError| NotWritten::Room(error.to_string());
    let segment_bytes = config.segment_bytes;
    let aside = spawn_blocking({
        let directory = directory.clone();
        move || Aside::create(&directory, segment, segment_bytes)
    });
    let mut aside = aside.await.map_err(ended)?.map_err(room)?;
    let mut rewrite = Rewrite::new(&config, header, topics.iter().cloned().collect());
    let mut is_last = false;
    while !is_last {
        let (before, directory) = (rewrite.read_bytes() + rewrite.written_bytes(), directory.clone());
        let piece = spawn_blocking(move || {
            let mut write = |offset: u64, pages: &[u8]| aside.write(offset, pages);
            let done = rewrite.step(&mut FsStore::new(directory), PIECE_BYTES, &mut write);
            (done, rewrite, aside)
        });
        let done;
        (done, rewrite, aside) = piece.await.map_err(ended)?;
        is_last = !done.map_err(failed)?;
        rest(shard, rewrite.read_bytes() + rewrite.written_bytes() - before).await;
    }
    let messages = rewrite.messages();
    spawn_blocking(move || aside.finish()).await.map_err(ended)?.map_err(room)?;

    // W3
    let mut scan = SegmentScan::new(&config, segment, segment_bytes, None, Some(header.end.position));
    let wrong =
        |what: String| NotWritten::Room(format!("the new file was read back and is not right: {what}"));
    loop {
        let (before, directory) = (scan.position(), directory.clone());
        let piece = spawn_blocking(move || {
            let read = read_piece(&mut scan, &mut FsStore::aside(directory));
            (read, scan)
        });
        let read;
        (read, scan) = piece.await.map_err(ended)?;
        if read.map_err(|error| wrong(error.to_string()))? {
            break;
        }
        rest(shard, scan.position().0 - before.0).await;
    }
    if scan.chain() != Some(header.end) {
        return Err(wrong("it ends in another place".to_owned()));
    }
    Ok(Written { segment, topics, messages, began })
}

/// True at the end of the segment.
fn read_piece(scan: &mut SegmentScan, store: &mut FsStore) -> io::Result<bool> {
    let until = scan.position().0 + PIECE_BYTES;
    while scan.position().0 < until {
        match scan.next(store)? {
            Found::Block(_) => {}
            Found::Gap(damage) => return Err(io::Error::other(format!("no block at {}", damage.position))),
            Found::End => return Ok(true),
        }
    }
    Ok(false)
}

/// The disk is for others so long.
async fn rest(shard: &ShardLink, bytes: u64) {
    sleep(shard.pause_after(bytes)).await;
}

impl ShardLink {
    fn pause_after(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.rewrite_bytes_per_s as f64)
    }
}

#[cfg(test)]
mod tests;
