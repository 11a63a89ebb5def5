//! What stands beside a simulated shard: its files, for recovery, and the housekeeping thread, with its delays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use ringmq::driver::{Backstage, FromShard, ToShard};
use ringmq::housekeeping::{Look, Outlived, Retention, Tenure, is_short_with};
use ringmq::shard::News;
use ringmq_protocol::body::TopicConfig;
use ringmq_ring::sim::{Random, SimDisk};
use ringmq_storage::{
    ChainPoint, Damage, IndexHeader, LogConfig, Prepare, Rewrite, RewriteError, SegmentBase, SegmentIndex,
    SegmentStore, ShardUse, index_path, rebuild_index, seal,
};

use crate::ring::Planted;

/// As the real housekeeping thread: how long zeroing rests after the disk refused room.
const PREPARE_RETRY_NANOS: u64 = 1_000_000_000;

pub(crate) fn segment_path(directory: &Path, segment: SegmentBase) -> PathBuf {
    directory.join(segment.file_name())
}

/// The files of a shard on a simulated disk, as its log wants them.
#[derive(Clone)]
pub(crate) struct SimStore {
    pub(crate) disk: SimDisk,
    pub(crate) directory: PathBuf,
}

const INDEX_SUFFIX: &str = ".index";
/// As in storage: the file of a segment that was released, to become a later one.
const SPARE_EXTENSION: &str = "spare";
const SPARES_MAX: usize = 2;
/// Of the file that a segment is rewritten to.
const ASIDE_EXTENSION: &str = "aside";
/// How often it is looked whether a segment can be rewritten.
const LOOK_NANOS: u64 = 50_000_000;

pub(crate) fn segment_of_index(path: &Path) -> Option<SegmentBase> {
    SegmentBase::from_file_name(path.file_name()?.to_str()?.strip_suffix(INDEX_SUFFIX)?)
}

impl SegmentStore for SimStore {
    fn segments(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        let files = self.disk.list(&self.directory);
        let base = |path: &Path| SegmentBase::from_file_name(path.file_name()?.to_str()?);
        Ok(files.into_iter().filter_map(|(path, len)| Some((base(&path)?, len))).collect())
    }

    fn read_at(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(&segment_path(&self.directory, segment), offset, buffer)
    }

    fn sync(&mut self, segment: SegmentBase) -> io::Result<()> {
        self.disk.sync_file(&segment_path(&self.directory, segment))
    }

    fn indexes(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        let files = self.disk.list(&self.directory);
        Ok(files.into_iter().filter_map(|(path, len)| Some((segment_of_index(&path)?, len))).collect())
    }

    fn read_index(&mut self, segment: SegmentBase, page: u32, buffer: &mut [u8]) -> io::Result<()> {
        let offset = u64::from(page) * buffer.len() as u64;
        match self.disk.read_at(&index_path(&self.directory, segment), offset, buffer)? {
            read if read == buffer.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_index(
        &mut self,
        segment: SegmentBase,
        write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut bytes, path) = (Vec::new(), index_path(&self.directory, segment));
        write(&mut bytes)?;
        let aside = path.with_extension("new");
        if self.disk.exists(&aside) {
            self.disk.remove(&aside)?;
        }
        self.disk.create(&aside)?;
        self.disk.write_at(&aside, 0, &bytes)?;
        self.disk.sync_file(&aside)?;
        self.disk.rename(&aside, &path)?;
        self.disk.sync_dir(&self.directory);
        Ok(())
    }
}

enum Due {
    /// The zeros are written, or a spare has its new name; now that becomes durable.
    Prepared(Prepare),
    PrepareAgain,
    Registered(u64),
    /// The first of the jobs is done, or a step of it.
    Job,
    /// It is looked whether a segment is due to go.
    Retention,
    /// It is looked whether a segment has messages of topics whose own time is over.
    Look,
}

/// What there is to do with the files of full segments: one thing after the other, as the real thread does.
enum Job {
    Seal(Arc<SegmentIndex>),
    Rebuild(SegmentBase, ChainPoint),
    Remove(SegmentBase, Removal),
    /// Without these topics.
    Rewrite(SegmentBase, Vec<String>, Rewriting),
    Kept,
}

/// The steps of a rewriting: the power can be cut between any two of them.
#[derive(Clone, Copy)]
enum Rewriting {
    Aside,
    AsideDurable,
    Renamed,
    RenamedDurable,
}

/// The steps of `remove_segment` in storage: the power can be cut between any two of them.
#[derive(Clone, Copy)]
enum Removal {
    Index,
    IndexDurable,
    Segment,
    SegmentDurable,
}

/// What becomes of old segments.
pub(crate) enum Release {
    /// The shard was asked for the segment that ends here.
    Asked(u64),
    Kept,
    /// The shard has released the segment that ends here.
    Granted(u64),
}

/// What the operator would have read, and what only the simulation hears.
#[derive(Default)]
pub(crate) struct Lines {
    pub(crate) errors: Vec<String>,
    /// Stretches of the log reported as damaged by reads.
    pub(crate) damaged: Vec<Range<u64>>,
    /// The same, by an index that was written anew.
    pub(crate) damaged_anew: Vec<Range<u64>>,
    /// Stretches of the log whose reading failed, or is tried once more.
    pub(crate) stutters: Vec<Range<u64>>,
    pub(crate) releases: Vec<Release>,
    /// Segments whose index cannot be used.
    pub(crate) indexes: Vec<u64>,
    /// Topics that have given up what they have before a place.
    pub(crate) given_up: Vec<(String, u64)>,
    pub(crate) rewritten: u64,
    pub(crate) segments_made: u64,
    /// Of those, the ones that were made of a spare.
    pub(crate) recycled: u64,
}

/// How old segments go in a world, and how often that is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeping {
    pub(crate) retention: Retention,
    pub(crate) check_nanos: u64,
    /// Whether segments are rewritten.
    pub(crate) rewrites: bool,
}

impl Keeping {
    /// For ever.
    pub(crate) const ALL: Keeping = Keeping {
        retention: Retention { age: Duration::MAX, bytes: None, forced: false },
        check_nanos: 10_000_000_000,
        rewrites: false,
    };
}

/// The segment in a line that says that its index cannot be used, or was written anew.
pub(crate) fn index_in(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("the index of segment ")?;
    let is_meant = rest.contains(" cannot be used") || rest.contains(" was written anew");
    rest.split(' ').next()?.parse().ok().filter(|_| is_meant)
}

/// Answers a shard as the housekeeping thread would.
pub(crate) struct Housekeeping {
    store: SimStore,
    log: LogConfig,
    keeping: Keeping,
    tenure: Tenure,
    outlived: Outlived,
    /// The shard was asked, or the segment is being rewritten.
    under_way: Option<Look>,
    /// Of all sealed segments.
    headers: BTreeMap<SegmentBase, IndexHeader>,
    jobs: VecDeque<Job>,
    inbox: Receiver<FromShard>,
    outbox: Sender<ToShard>,
    due: BTreeMap<(u64, u64), Due>,
    sequence: u64,
    random: Random,
    /// Longest delay of an answer, in nanoseconds.
    pub(crate) slowest: u64,
    planted: Option<Planted>,
    pub(crate) lines: Lines,
}

impl Housekeeping {
    /// The shard's end of the channels, and this one. `sealed`: the segments that are sealed at the start.
    pub(crate) fn new(
        store: SimStore,
        log: LogConfig,
        keeping: Keeping,
        (sealed, topics): (&[IndexHeader], &[TopicConfig]),
        planted: Option<Planted>,
        seed: u64,
    ) -> (Backstage, Housekeeping) {
        let (to_shard, inbox) = crossbeam::channel::bounded(64);
        // Small, so that a driver has to keep some of what it wants to say.
        let (outbox, from_shard) = crossbeam::channel::bounded(4);
        let backstage = Backstage { inbox, outbox, notify: Box::new(|| {}) };
        let mut housekeeping = Housekeeping {
            tenure: Tenure::new(keeping.retention, sealed),
            outlived: Outlived::new(log.segment_bytes, topics, sealed),
            under_way: None,
            headers: sealed.iter().map(|header| (header.base, header.clone())).collect(),
            store,
            log,
            keeping,
            jobs: VecDeque::new(),
            inbox: from_shard,
            outbox: to_shard,
            due: BTreeMap::new(),
            sequence: 0,
            random: Random::new(seed),
            slowest: 2_000_000,
            planted,
            lines: Lines::default(),
        };
        if keeping.retention.bytes.is_some() || keeping.retention.age < Duration::MAX {
            housekeeping.later(0, Due::Retention);
        }
        if keeping.rewrites {
            housekeeping.later(0, Due::Look);
        }
        (backstage, housekeeping)
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn stop(&self) {
        self.tell(ToShard::Stop);
    }

    /// Whether the files of a segment are being removed or replaced.
    pub(crate) fn is_removing(&self) -> bool {
        matches!(self.jobs.front(), Some(Job::Remove(..) | Job::Rewrite(..)))
    }

    /// Does what is due, and takes what the shard has said.
    pub(crate) fn act(&mut self, now: u64, wall_ms: i64) {
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Due::Prepared(prepare) => {
                    if self.planted != Some(Planted::UnsyncedSegment) {
                        self.store.sync(prepare.segment).expect("it was made");
                        self.store.disk.sync_dir(&self.store.directory);
                    }
                    self.tell(ToShard::Prepared { segment: prepare.segment, to: prepare.to });
                }
                Due::PrepareAgain => self.tell(ToShard::PrepareAgain),
                Due::Registered(ticket) => self.tell(ToShard::Registered { ticket }),
                Due::Job => self.work(now, wall_ms),
                Due::Retention => {
                    self.ask_for_release(wall_ms);
                    self.later(now + self.keeping.check_nanos, Due::Retention);
                }
                Due::Look => {
                    self.look(now, wall_ms);
                    let at = now + self.random.between(1, LOOK_NANOS);
                    self.later(at, Due::Look);
                }
            }
        }
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                FromShard::Prepare(prepare) => match self.prepare(prepare) {
                    Ok(prepared) => {
                        let at = now + self.random.below(self.slowest);
                        self.later(at, Due::Prepared(prepared));
                    }
                    Err(error) => {
                        self.tell(ToShard::PrepareFailed { reason: error.to_string() });
                        self.later(now + PREPARE_RETRY_NANOS, Due::PrepareAgain);
                    }
                },
                FromShard::News(News::TopicChanged { ticket, config }) => {
                    self.outlived.on_topic(&config);
                    if let Some(ticket) = ticket {
                        let at = now + self.random.below(self.slowest);
                        self.later(at, Due::Registered(ticket));
                    }
                }
                FromShard::News(News::TopicDeleted { topic }) => self.outlived.on_topic_deleted(&topic),
                FromShard::News(News::GivenUp { segment, topics }) => self.on_given_up(now, segment, topics),
                FromShard::News(News::Log { error, line }) => self.hear(error, line),
                FromShard::News(News::Seal(index)) => self.give(now, Job::Seal(index)),
                FromShard::News(News::Rebuild { segment, replay_from }) => {
                    self.give(now, Job::Rebuild(segment, replay_from));
                }
                FromShard::News(News::Released(segment)) => self.release(now, segment),
                FromShard::News(News::Kept { segment, reason }) => {
                    if self.planted == Some(Planted::HastyRelease) && reason.contains("checkpoint") {
                        self.release(now, segment);
                    } else {
                        self.lines.releases.push(Release::Kept);
                        self.give(now, Job::Kept);
                    }
                }
                FromShard::News(News::RouteWanted { ticket, .. }) => {
                    self.tell(ToShard::Route { ticket, queues: None });
                }
            }
        }
    }

    fn release(&mut self, now: u64, segment: SegmentBase) {
        self.lines.releases.push(Release::Granted(segment.0 + self.log.segment_bytes));
        self.give(now, Job::Remove(segment, Removal::Index));
    }

    fn give(&mut self, now: u64, job: Job) {
        self.jobs.push_back(job);
        if self.jobs.len() == 1 {
            self.next_job(now);
        }
    }

    fn next_job(&mut self, now: u64) {
        if !self.jobs.is_empty() {
            let at = now + self.random.below(self.slowest);
            self.later(at, Due::Job);
        }
    }

    /// The first of the jobs, or one step of it.
    fn work(&mut self, now: u64, wall_ms: i64) {
        let job = self.jobs.pop_front().expect("one for each time it is due");
        // After this one the next is looked for; a segment that is kept is not asked for again before the next check.
        let mut asks = true;
        match job {
            Job::Seal(index) => match seal(&mut self.store, &self.log, &index) {
                Ok(header) => {
                    self.tenure.on_sealed(&header);
                    self.outlived.on_sealed(&header);
                    self.headers.insert(header.base, header.clone());
                    self.tell(ToShard::Sealed(Box::new(header)));
                }
                Err(error) => {
                    self.tell(ToShard::SealFailed { reason: error.to_string() });
                    self.jobs.push_front(Job::Seal(index));
                    return self.later(now + PREPARE_RETRY_NANOS, Due::Job);
                }
            },
            Job::Rebuild(segment, replay_from) => {
                let rebuilt = rebuild_index(&mut self.store, &self.log, segment, replay_from);
                let result = rebuilt.map_err(|error| error.to_string()).map(|(header, damaged)| {
                    let range = |damage: &Damage| damage.position.0..damage.position.0 + damage.bytes;
                    self.lines.damaged_anew.extend(damaged.iter().map(range));
                    Box::new(header)
                });
                self.tell(ToShard::Rebuilt { segment, result });
            }
            Job::Remove(segment, step) => {
                let next = match step {
                    Removal::Index => {
                        let path = index_path(&self.store.directory, segment);
                        // A client of the disk may have removed it already.
                        let _ = self.store.disk.remove(&path);
                        Some(Removal::IndexDurable)
                    }
                    Removal::IndexDurable => {
                        self.store.disk.sync_dir(&self.store.directory);
                        Some(Removal::Segment)
                    }
                    Removal::Segment => {
                        self.remove(segment).expect("it was there");
                        Some(Removal::SegmentDurable)
                    }
                    Removal::SegmentDurable => {
                        self.store.disk.sync_dir(&self.store.directory);
                        self.tenure.on_gone(segment);
                        self.outlived.on_gone(segment);
                        None
                    }
                };
                if let Some(next) = next {
                    self.jobs.push_front(Job::Remove(segment, next));
                    asks = false;
                }
            }
            Job::Rewrite(segment, topics, step) => {
                match self.rewrite(segment, &topics, step) {
                    Some(next) => self.jobs.push_front(Job::Rewrite(segment, topics, next)),
                    None => self.under_way = None,
                }
                asks = false;
            }
            Job::Kept => {
                self.tenure.on_kept();
                asks = false;
            }
        }
        if asks {
            self.ask_for_release(wall_ms);
        }
        self.next_job(now);
    }

    fn look(&mut self, now: u64, wall_ms: i64) {
        if self.under_way.is_some() {
            return;
        }
        let since_1970 = Duration::from_millis(u64::try_from(wall_ms).unwrap_or(0));
        // Whether it pays is not asked: it is to happen as often as it can.
        let Some(look) = self.outlived.next(since_1970, &BTreeSet::new()) else { return };
        let (segment, topics, forced) = (look.segment, look.topics.clone(), self.keeping.retention.forced);
        self.under_way = Some(look);
        if self.planted == Some(Planted::HastyRewrite) {
            return self.on_given_up(now, segment, topics);
        }
        self.tell(ToShard::GiveUp { segment, topics, forced });
    }

    fn on_given_up(&mut self, now: u64, segment: SegmentBase, mut topics: Vec<String>) {
        if topics.is_empty() {
            self.under_way = None;
            return;
        }
        let end = segment.0 + self.log.segment_bytes;
        self.lines.given_up.extend(topics.iter().map(|topic| (topic.clone(), end)));
        if self.planted == Some(Planted::GreedyRewrite) {
            topics.push("events".to_owned());
        }
        self.give(now, Job::Rewrite(segment, topics, Rewriting::Aside));
    }

    /// One step of a rewriting, and the next one; `None` if that was the last one, or it cannot go on.
    fn rewrite(&mut self, segment: SegmentBase, topics: &[String], step: Rewriting) -> Option<Rewriting> {
        let path = segment_path(&self.store.directory, segment);
        let aside = path.with_extension(ASIDE_EXTENSION);
        let disk = self.store.disk.clone();
        if !disk.exists(&path) {
            let _ = disk.remove(&aside); // it went meanwhile, and what is aside may not be there
            return None;
        }
        match step {
            Rewriting::Aside => {
                if disk.exists(&aside) {
                    disk.remove(&aside).expect("it is there");
                }
                disk.create(&aside).expect("it is not there");
                disk.set_len(&aside, self.log.segment_bytes).expect("it was made");
                let header = self.headers.get(&segment).expect("it is sealed");
                let mut rewrite = Rewrite::new(&self.log, header, topics.iter().cloned().collect());
                let mut write = |offset: u64, pages: &[u8]| disk.write_at(&aside, offset, pages);
                match rewrite.step(&mut self.store, u64::MAX, &mut write) {
                    Ok(_) => return Some(Rewriting::AsideDurable),
                    Err(RewriteError::Write(_)) => {}
                    // Damaged: it is no other next time.
                    Err(_) => self.outlived.looked_at(self.under_way.as_ref()?),
                }
                disk.remove(&aside).expect("it was made");
                return None;
            }
            Rewriting::AsideDurable => {
                if self.planted != Some(Planted::UnsyncedRewrite) {
                    disk.sync_file(&aside).expect("it was made");
                }
                return Some(Rewriting::Renamed);
            }
            Rewriting::Renamed => {
                disk.rename(&aside, &path).expect("it was made");
                return Some(Rewriting::RenamedDurable);
            }
            Rewriting::RenamedDurable => disk.sync_dir(&self.store.directory),
        }
        self.outlived.looked_at(self.under_way.as_ref()?);
        self.lines.rewritten += 1;
        self.tell(ToShard::Rewritten { segment, freed_bytes: 1 });
        None
    }

    fn ask_for_release(&mut self, wall_ms: i64) {
        let since_1970 = Duration::from_millis(u64::try_from(wall_ms).unwrap_or(0));
        let is_short = self.tenure.may_ask() && self.is_short_of_room();
        if let Some(segment) = self.tenure.due(since_1970, is_short) {
            let forced = self.keeping.retention.forced || self.planted == Some(Planted::IgnoredGroups);
            self.lines.releases.push(Release::Asked(segment.0 + self.log.segment_bytes));
            self.tell(ToShard::Release { segment, forced });
        }
    }

    /// The file of a released segment: a spare from now on, if there is room for one.
    fn remove(&self, segment: SegmentBase) -> io::Result<()> {
        let SimStore { disk, directory } = &self.store;
        let found = self.shard_use();
        let may_keep = self.keeping.retention.bytes.is_none_or(|budget| found.bytes <= budget);
        let path = segment_path(directory, segment);
        if may_keep && found.spares < SPARES_MAX {
            disk.rename(&path, &path.with_extension(SPARE_EXTENSION))
        } else {
            disk.remove(&path)
        }
    }

    fn is_short_of_room(&self) -> bool {
        let Some(budget) = self.keeping.retention.bytes else { return false };
        while self.shard_use().bytes > budget
            && let Some(spare) = self.spares().first()
        {
            self.store.disk.remove(spare).expect("it was listed");
            self.store.disk.sync_dir(&self.store.directory);
        }
        is_short_with(&self.shard_use(), budget, self.log.segment_bytes)
    }

    fn shard_use(&self) -> ShardUse {
        let files = self.store.disk.list(&self.store.directory).into_iter();
        let is_aside = |path: &Path| path.extension().is_some_and(|extension| extension == ASIDE_EXTENSION);
        let bytes = files.filter(|(path, _)| !is_aside(path)).map(|(_, len)| len).sum();
        ShardUse { bytes, spares: self.spares().len() }
    }

    /// Oldest first.
    fn spares(&self) -> Vec<PathBuf> {
        let files = self.store.disk.list(&self.store.directory).into_iter().map(|(path, _)| path);
        files.filter(|path| path.extension().is_some_and(|extension| extension == SPARE_EXTENSION)).collect()
    }

    /// As `ringmq_storage::prepare`: up to where the segment is ready now.
    fn prepare(&mut self, prepare: Prepare) -> io::Result<Prepare> {
        let segment_bytes = self.log.segment_bytes;
        let path = segment_path(&self.store.directory, prepare.segment);
        let is_new = !self.store.disk.exists(&path);
        if is_new {
            self.lines.segments_made += 1;
            if prepare.from == 0 && self.recycle(&path)? {
                self.lines.recycled += 1;
                return Ok(Prepare { to: segment_bytes, ..prepare });
            }
            self.store.disk.create(&path)?;
        }
        if self.store.disk.len(&path)? < segment_bytes {
            self.store.disk.set_len(&path, segment_bytes)?;
        }
        self.store.disk.zero_range(&path, prepare.from, prepare.to)?;
        Ok(prepare)
    }

    /// Gives a spare, if there is one, the name of a segment. Where nothing is released, a copy of the first segment serves as one.
    fn recycle(&mut self, path: &Path) -> io::Result<bool> {
        let segment_bytes = self.log.segment_bytes;
        let oldest = segment_path(&self.store.directory, SegmentBase(0));
        let disk = &self.store.disk;
        for spare in self.spares() {
            // As in storage: a disk that was full while the spare was made has left less than a segment.
            if disk.len(&spare)? == segment_bytes {
                disk.rename(&spare, path)?;
                return Ok(true);
            }
            disk.remove(&spare)?;
        }
        if !disk.exists(&oldest) || self.random.below(2) == 0 {
            return Ok(false);
        }
        let mut contents = vec![0; usize::try_from(segment_bytes).map_err(io::Error::other)?];
        disk.read_at(&oldest, 0, &mut contents)?;
        let spare = oldest.with_extension(SPARE_EXTENSION);
        disk.create(&spare)?;
        disk.set_len(&spare, segment_bytes)?;
        disk.write_at(&spare, 0, &contents)?;
        disk.sync_file(&spare)?;
        disk.rename(&spare, path)?;
        Ok(true)
    }

    fn hear(&mut self, error: bool, line: String) {
        let lines = &mut self.lines;
        let numbers = |text: &str| {
            let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
            Some((numbers.next()?, numbers.next()?))
        };
        if let Some(segment) = index_in(&line).filter(|_| error) {
            lines.indexes.push(segment);
        }
        // Once it is tried again, twice it is damage.
        if let Some((_, rest)) = line.split_once("reading ") {
            let place: Option<(u64, u64)> = numbers(rest);
            lines.stutters.extend(place.map(|(len, start)| start..start + len));
        } else if let Some((_, rest)) = line.split_once("the block of the log at ")
            && error
        {
            lines.damaged.extend(numbers(rest).map(|(start, len)| start..start + len));
        }
        if error {
            lines.errors.push(line);
        }
    }

    fn later(&mut self, at: u64, due: Due) {
        self.sequence += 1;
        self.due.insert((at, self.sequence), due);
    }

    fn tell(&self, message: ToShard) {
        // The channel has room for all that can be on its way.
        self.outbox.try_send(message).expect("the shard takes what it is told");
    }
}
