//! What was done to the indexes of sealed segments, and what a broker owes for it: nothing is lost by it, and it is said.
//!
//! X1  A page that was harmed, and was read since, is reported, and so is a harmed header at the start.
//! X2  What is reported was harmed here, or read wrongly.
//! X3  An index that was reported is written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use ringmq_ring::sim::Random;
use ringmq_storage::{SegmentBase, SegmentStore, index_path};

use crate::backstage::SimStore;

const PAGE_BYTES: u64 = 4096;
/// A broker that lives so much longer has said what it had to say, in nanoseconds.
const SAY_NANOS: u64 = 5_000_000_000;

/// What can be done to an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Harm {
    FlippedBit,
    Truncated,
    Removed,
}

/// How harm to indexes ended.
#[derive(Clone, Copy, Default, Debug)]
pub struct IndexHarm {
    pub injected: u64,
    pub reported: u64,
    /// Gone with the segment, or with an index that a start had to write again in any case.
    pub undone: u64,
    /// Of pages that nobody has read since.
    pub unread: u64,
}

impl IndexHarm {
    pub fn add(&mut self, other: IndexHarm) {
        self.injected += other.injected;
        self.reported += other.reported;
        self.undone += other.undone;
        self.unread += other.unread;
    }
}

struct Harmed {
    /// The file as it was left, by its checksum; `None` if it was removed.
    left_as: Option<u32>,
    harm: Harm,
    /// Pages from here to there are not right.
    pages: Range<u64>,
    is_reported: bool,
    /// When one of them was read, and not reported yet.
    read_at: Option<u64>,
}

/// The indexes as a broker that starts finds them.
pub(crate) struct Owed {
    /// Their header, or their length, is wrong.
    wrong: Vec<SegmentBase>,
    /// They were removed, but not their segments.
    gone: Vec<SegmentBase>,
    whole: Vec<SegmentBase>,
}

impl Owed {
    /// The segments of whose index the broker had to say something and did not, if it said so of those in `told`.
    pub(crate) fn unsaid(&self, told: &BTreeSet<SegmentBase>) -> Vec<SegmentBase> {
        // Behind the newest index that could be read, one that is gone cannot be told from one that was never there.
        let newest = self.whole.iter().rev().find(|segment| !told.contains(segment));
        let gone = self.gone.iter().filter(|segment| Some(*segment) < newest);
        self.wrong.iter().chain(gone).filter(|segment| !told.contains(segment)).copied().collect()
    }
}

pub(crate) struct IndexLedger {
    store: SimStore,
    harmed: BTreeMap<SegmentBase, Harmed>,
    pub(crate) count: IndexHarm,
}

impl IndexLedger {
    pub(crate) fn new(store: SimStore) -> IndexLedger {
        IndexLedger { store, harmed: BTreeMap::new(), count: IndexHarm::default() }
    }

    fn file(&self, segment: SegmentBase) -> io::Result<Vec<u8>> {
        let path = index_path(&self.store.directory, segment);
        let mut bytes = vec![0; self.store.disk.len(&path)? as usize];
        self.store.disk.read_at(&path, 0, &mut bytes)?;
        Ok(bytes)
    }

    fn checksum(&self, segment: SegmentBase) -> Option<u32> {
        self.file(segment).ok().map(|bytes| crc32c::crc32c(&bytes))
    }

    /// Harms an index, if there is one that is not harmed yet: its segment, and the pages that are not right any more.
    pub(crate) fn harm(&mut self, harm: Harm, random: &mut Random) -> Option<(SegmentBase, Range<u64>)> {
        self.forget_undone();
        let indexes = self.store.indexes().expect("the disk is there");
        let sound: Vec<_> = indexes.into_iter().filter(|(base, _)| !self.harmed.contains_key(base)).collect();
        let (segment, len) = sound.get(random.below(sound.len() as u64) as usize).copied()?;
        let path = index_path(&self.store.directory, segment);
        let (disk, count) = (&self.store.disk, len / PAGE_BYTES);
        let pages = match harm {
            Harm::FlippedBit => {
                let at = random.below(len);
                disk.flip_bit(&path, at, random.below(8) as u8).expect("it is there");
                at / PAGE_BYTES..at / PAGE_BYTES + 1
            }
            Harm::Truncated => {
                let left = random.below(len);
                disk.set_len(&path, left).expect("it is there");
                left / PAGE_BYTES..count
            }
            Harm::Removed => {
                disk.remove(&path).expect("it is there");
                0..count
            }
        };
        disk.sync_dir(&self.store.directory);
        let _ = disk.sync_file(&path);
        let left_as = self.checksum(segment);
        self.harmed.insert(
            segment,
            Harmed { left_as, harm, pages: pages.clone(), is_reported: false, read_at: None },
        );
        self.count.injected += 1;
        Some((segment, pages))
    }

    /// Whether any index is as it was left.
    pub(crate) fn is_any_harmed(&self) -> bool {
        self.harmed.iter().any(|(segment, harmed)| self.checksum(*segment) == harmed.left_as)
    }

    /// The broker has read this page of an index from the disk.
    pub(crate) fn read(&mut self, segment: SegmentBase, offset: u64, now: u64) {
        let Some(harmed) = self.harmed.get(&segment) else { return };
        // One that was removed is read by who had it open.
        let is_wrong = harmed.left_as.is_some() && harmed.left_as == self.checksum(segment);
        if is_wrong && !harmed.is_reported && harmed.pages.contains(&(offset / PAGE_BYTES)) {
            self.harmed.get_mut(&segment).expect("just seen").read_at.get_or_insert(now);
        }
    }

    /// The broker said that an index cannot be used (X2).
    pub(crate) fn reported(&mut self, segment: SegmentBase) -> Result<(), String> {
        match self.harmed.get_mut(&segment) {
            Some(harmed) => {
                self.count.reported += u64::from(!harmed.is_reported);
                (harmed.is_reported, harmed.read_at) = (true, None);
                Ok(())
            }
            None => Err(format!(
                "the index of segment {segment} is said to be damaged: nobody did anything to it"
            )),
        }
    }

    /// The power is cut. Gives an error if the broker kept something to itself (X1).
    pub(crate) fn on_crash(&mut self, now: u64) -> Result<(), String> {
        let read =
            self.harmed.iter_mut().filter_map(|(segment, harmed)| Some((segment, harmed.read_at.take()?)));
        let kept = read.filter(|(_, at)| at + SAY_NANOS < now).last();
        kept.map_or(Ok(()), |(segment, _)| {
            Err(format!("a harmed page of the index of segment {segment} was read"))
        })
    }

    /// A broker starts: what it must not keep to itself.
    pub(crate) fn owed_at_start(&mut self) -> Owed {
        self.forget_undone();
        let mut store = self.store.clone();
        let indexes: BTreeMap<_, _> = store.indexes().expect("the disk is there").into_iter().collect();
        let segments = store.segments().expect("the disk is there");
        // The header tells the length of the file; what is wrong in a page behind it is not seen.
        let is_whole = |segment: &SegmentBase| {
            self.harmed
                .get(segment)
                .is_none_or(|harmed| harmed.harm == Harm::FlippedBit && harmed.pages.start > 0)
        };
        let is_there = |segment: &SegmentBase| segments.iter().any(|(base, _)| base == segment);
        let wrong = self.harmed.keys().filter(|segment| !is_whole(segment) && is_there(segment)).copied();
        let (wrong, gone) = wrong.partition(|segment| indexes.contains_key(segment));
        Owed { wrong, gone, whole: indexes.into_keys().filter(is_whole).collect() }
    }

    /// What is not as it was left was written again, or is gone with its segment.
    pub(crate) fn forget_undone(&mut self) {
        let segments = self.store.segments().expect("the disk is there");
        let is_undone = |(segment, harmed): &(&SegmentBase, &Harmed)| {
            self.checksum(**segment) != harmed.left_as || segments.iter().all(|(base, _)| base != *segment)
        };
        let undone: Vec<SegmentBase> =
            self.harmed.iter().filter(is_undone).map(|(segment, _)| *segment).collect();
        for segment in undone {
            let harmed = self.harmed.remove(&segment);
            self.count.undone += u64::from(harmed.is_some_and(|harmed| !harmed.is_reported));
        }
    }

    pub(crate) fn judge(&mut self) -> IndexHarm {
        self.forget_undone();
        let unread = self.harmed.values().filter(|harmed| !harmed.is_reported).count();
        IndexHarm { unread: unread as u64, ..self.count }
    }
}
