//! What stands beside a simulated shard: its files, for recovery, and the housekeeping thread, with its delays.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crossbeam::channel::{Receiver, Sender};
use ringmq::driver::{Backstage, FromShard, ToShard};
use ringmq::shard::News;
use ringmq_ring::sim::{Random, SimDisk};
use ringmq_storage::{
    ChainPoint, Damage, LogConfig, Prepare, SegmentBase, SegmentIndex, SegmentStore, index_path,
    rebuild_index, seal,
};
use std::sync::Arc;

/// Directory of the segments.
pub(crate) const LOG_DIR: &str = "/log";
/// Where the broker listens.
pub(crate) const ADDRESS: &str = "10.0.0.1:10911";
/// As the real housekeeping thread: how long zeroing rests after the disk refused room.
const PREPARE_RETRY_NANOS: u64 = 1_000_000_000;

pub(crate) fn segment_path(segment: SegmentBase) -> PathBuf {
    Path::new(LOG_DIR).join(segment.file_name())
}

/// The files on a simulated disk, as the log wants them.
pub(crate) struct SimStore(pub SimDisk);

const INDEX_SUFFIX: &str = ".index";

fn of_index(path: &Path) -> Option<SegmentBase> {
    SegmentBase::from_file_name(path.file_name()?.to_str()?.strip_suffix(INDEX_SUFFIX)?)
}

impl SegmentStore for SimStore {
    fn segments(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        let files = self.0.list(Path::new(LOG_DIR));
        let base = |path: &Path| SegmentBase::from_file_name(path.file_name()?.to_str()?);
        Ok(files.into_iter().filter_map(|(path, len)| Some((base(&path)?, len))).collect())
    }

    fn read_at(&mut self, segment: SegmentBase, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(&segment_path(segment), offset, buffer)
    }

    fn sync(&mut self, segment: SegmentBase) -> io::Result<()> {
        self.0.sync_file(&segment_path(segment))
    }

    fn indexes(&mut self) -> io::Result<Vec<(SegmentBase, u64)>> {
        let files = self.0.list(Path::new(LOG_DIR));
        Ok(files.into_iter().filter_map(|(path, len)| Some((of_index(&path)?, len))).collect())
    }

    fn read_index(&mut self, segment: SegmentBase, page: u32, buffer: &mut [u8]) -> io::Result<()> {
        let offset = u64::from(page) * buffer.len() as u64;
        match self.0.read_at(&index_path(Path::new(LOG_DIR), segment), offset, buffer)? {
            read if read == buffer.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_index(
        &mut self,
        segment: SegmentBase,
        write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut bytes, path) = (Vec::new(), index_path(Path::new(LOG_DIR), segment));
        write(&mut bytes)?;
        let aside = path.with_extension("new");
        if self.0.exists(&aside) {
            self.0.remove(&aside)?;
        }
        self.0.create(&aside)?;
        self.0.write_at(&aside, 0, &bytes)?;
        self.0.sync_file(&aside)?;
        self.0.rename(&aside, &path)?;
        self.0.sync_dir(Path::new(LOG_DIR));
        Ok(())
    }
}

enum Due {
    /// The zeros are written, or the file has its new name; now that becomes durable.
    Prepared(Prepare),
    PrepareAgain,
    Registered(u64),
    Seal,
    Rebuild(SegmentBase, ChainPoint),
}

/// What the operator would have read.
#[derive(Default)]
pub(crate) struct Lines {
    pub(crate) errors: Vec<String>,
    /// Stretches of the log reported as damaged by reads.
    pub(crate) damaged: Vec<Range<u64>>,
    /// Stretches of the log whose reading failed, or is tried once more.
    pub(crate) stutters: Vec<Range<u64>>,
}

/// Answers a shard as the housekeeping thread would.
pub(crate) struct Housekeeping {
    disk: SimDisk,
    log: LogConfig,
    /// When the last index was or will be written: they are written in order.
    sealed_at: u64,
    to_seal: VecDeque<Arc<SegmentIndex>>,
    inbox: Receiver<FromShard>,
    outbox: Sender<ToShard>,
    due: BTreeMap<(u64, u64), Due>,
    sequence: u64,
    random: Random,
    /// Longest delay of an answer, in nanoseconds.
    pub(crate) slowest: u64,
    /// [`crate::Planted::UnsyncedSegment`]
    pub(crate) forgets_to_sync: bool,
    pub(crate) lines: Lines,
}

impl Housekeeping {
    /// The shard's end of the channels, and this one.
    pub(crate) fn new(disk: SimDisk, log: LogConfig, seed: u64) -> (Backstage, Housekeeping) {
        let (to_shard, inbox) = crossbeam::channel::bounded(64);
        // Small, so that a driver has to keep some of what it wants to say.
        let (outbox, from_shard) = crossbeam::channel::bounded(4);
        let backstage = Backstage { inbox, outbox, notify: Box::new(|| {}) };
        let housekeeping = Housekeeping {
            disk,
            log,
            sealed_at: 0,
            to_seal: VecDeque::new(),
            inbox: from_shard,
            outbox: to_shard,
            due: BTreeMap::new(),
            sequence: 0,
            random: Random::new(seed),
            slowest: 2_000_000,
            forgets_to_sync: false,
            lines: Lines::default(),
        };
        (backstage, housekeeping)
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn stop(&self) {
        self.tell(ToShard::Stop);
    }

    /// Does what is due, and takes what the shard has said.
    pub(crate) fn act(&mut self, now: u64) {
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Due::Prepared(prepare) => {
                    if !self.forgets_to_sync {
                        self.disk.sync_file(&segment_path(prepare.segment)).expect("it was made");
                        self.disk.sync_dir(Path::new(LOG_DIR));
                    }
                    self.tell(ToShard::Prepared { segment: prepare.segment, to: prepare.to });
                }
                Due::PrepareAgain => self.tell(ToShard::PrepareAgain),
                Due::Registered(ticket) => self.tell(ToShard::Registered { ticket }),
                Due::Seal => {
                    let index = self.to_seal.front().expect("one for each time it is due");
                    match seal(&mut SimStore(self.disk.clone()), &self.log, index) {
                        Ok(header) => {
                            self.to_seal.pop_front();
                            self.tell(ToShard::Sealed(Box::new(header)));
                        }
                        Err(error) => {
                            self.tell(ToShard::SealFailed { reason: error.to_string() });
                            self.later(now + PREPARE_RETRY_NANOS, Due::Seal);
                        }
                    }
                }
                Due::Rebuild(segment, replay_from) => {
                    let mut store = SimStore(self.disk.clone());
                    let rebuilt = rebuild_index(&mut store, &self.log, segment, replay_from);
                    let result = rebuilt.map_err(|error| error.to_string()).map(|(header, damaged)| {
                        let range = |damage: &Damage| damage.position.0..damage.position.0 + damage.bytes;
                        self.lines.damaged.extend(damaged.iter().map(range));
                        Box::new(header)
                    });
                    self.tell(ToShard::Rebuilt { segment, result });
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
                FromShard::News(News::TopicChanged { ticket: Some(ticket), .. }) => {
                    let at = now + self.random.below(self.slowest);
                    self.later(at, Due::Registered(ticket));
                }
                FromShard::News(News::Log { error, line }) => self.hear(error, line),
                FromShard::News(News::Seal(index)) => {
                    self.sealed_at = self.sealed_at.max(now + self.random.below(self.slowest));
                    self.to_seal.push_back(index);
                    self.later(self.sealed_at, Due::Seal);
                }
                FromShard::News(News::Rebuild { segment, replay_from }) => {
                    let at = now + self.random.below(self.slowest);
                    self.later(at, Due::Rebuild(segment, replay_from));
                }
                FromShard::News(News::Released(_) | News::Kept { .. }) => {
                    unreachable!("nothing was asked to go")
                }
                FromShard::News(News::TopicChanged { .. } | News::TopicDeleted { .. }) => {}
            }
        }
    }

    /// As `ringmq_storage::prepare`; a spare is a copy of the first segment, for the simulated log keeps all of its own.
    fn prepare(&mut self, prepare: Prepare) -> io::Result<Prepare> {
        let path = segment_path(prepare.segment);
        if !self.disk.exists(&path) {
            if prepare.segment.0 > 0 && self.random.below(2) == 0 {
                return self.recycle(prepare.segment);
            }
            self.disk.create(&path)?;
        }
        if self.disk.len(&path)? < self.log.segment_bytes {
            self.disk.set_len(&path, self.log.segment_bytes)?;
        }
        self.disk.zero_range(&path, prepare.from, prepare.to)?;
        Ok(prepare)
    }

    fn recycle(&self, segment: SegmentBase) -> io::Result<Prepare> {
        let segment_bytes = self.log.segment_bytes;
        let mut contents = vec![0; usize::try_from(segment_bytes).map_err(io::Error::other)?];
        self.disk.read_at(&segment_path(SegmentBase(0)), 0, &mut contents)?;
        let spare = Path::new(LOG_DIR).join("0.spare");
        if self.disk.exists(&spare) {
            self.disk.remove(&spare)?;
        }
        self.disk.create(&spare)?;
        self.disk.set_len(&spare, segment_bytes)?;
        self.disk.write_at(&spare, 0, &contents)?;
        self.disk.sync_file(&spare)?;
        self.disk.rename(&spare, &segment_path(segment))?;
        Ok(Prepare { segment, from: 0, to: segment_bytes })
    }

    fn hear(&mut self, error: bool, line: String) {
        let lines = &mut self.lines;
        let numbers = |text: &str| {
            let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
            Some((numbers.next()?, numbers.next()?))
        };
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
