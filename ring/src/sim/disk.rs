//! A disk that may lose what was not made durable, and that fails on request.
//!
//! D1  A file's content is what was written by completed writes, durable or not: that is what reads return.
//! D2  A crash keeps every sector that was made durable, and decides alone for each other sector that a write touched,
//!     completed or in flight: old, new, or torn (new up to some byte, old from there).
//! D3  A durable write makes the sectors it covers durable when it completes; `sync_file` makes the whole file and its
//!     length durable. A length that was not made durable is lost or kept in a crash, as a whole.
//! D4  A created, renamed or removed name survives a crash surely once `sync_dir` was called; before, by chance. A crash leaves a
//!     renamed file its old name or its new one.
//! D5  Room is taken by what is written for the first time, zeros included, and given back when a file is removed or replaced. Writing over
//!     it, or setting a length, takes none: as on a file system that does not copy on write.
//!
//! The disk is shared: it outlives the rings that work on it, so a test can crash it, drop them and open it anew.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::random::Random;
use crate::Errno;

/// The unit in which a crash decides.
pub const SECTOR_BYTES: u64 = 512;

const PAGE_BYTES: u64 = 4096;

/// What goes wrong with one write through the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteFault {
    /// EIO, and a part of the sectors was written.
    Io,
    /// ENOSPC, and nothing was written.
    NoSpace,
    /// Reported as written, but so many bytes away from where it should be.
    Misdirected { by: i64 },
    /// Reported as written, but it never was.
    Lost,
    /// It takes so much longer.
    Slow(Duration),
}

/// What goes wrong with one read through the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFault {
    Io,
    /// One bit of what is returned, chosen by chance, is wrong; the medium is sound.
    FlipBit,
    /// The bytes of another place of the file are returned, so many bytes away (the other way if the file ends there).
    Misdirected {
        by: i64,
    },
    /// Half of it comes, and then the end, though the file is longer.
    Short,
    Slow(Duration),
}

/// What a crash did, in sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CrashReport {
    pub lost: u64,
    pub kept: u64,
    pub torn: u64,
}

/// A disk with its directories. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<State>>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FileId(u64);

/// A write in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct WriteId(u64);

struct State {
    random: Random,
    names: BTreeMap<PathBuf, FileId>,
    names_durable: BTreeMap<PathBuf, FileId>,
    /// Renamed since the folder was synced: from, to.
    renamed: Vec<(PathBuf, PathBuf)>,
    files: BTreeMap<FileId, Content>,
    in_flight: BTreeMap<WriteId, Write>,
    ids: u64,
    direct: bool,
    space_left: Option<u64>,
    latency: (Duration, Duration),
    /// Writes counted by the faults before they strike.
    write_faults: VecDeque<(u64, WriteFault)>,
    read_faults: VecDeque<(u64, ReadFault)>,
    /// Reads outside of any ring that still succeed before one fails.
    sound_lookups: Option<u64>,
}

struct Write {
    file: FileId,
    offset: u64,
    data: Bytes,
    durable: bool,
    fault: Option<WriteFault>,
}

#[derive(Default)]
struct Content {
    len: u64,
    len_durable: u64,
    /// Room taken, as if files were written from their beginning.
    taken: u64,
    /// Pages whose reads get another page of the file until they are written again.
    misdirected: BTreeMap<u64, u64>,
    /// Absent pages are zero.
    pages: BTreeMap<u64, Box<[u8]>>,
    /// What the medium holds of the sectors whose content is not durable.
    unsynced: BTreeMap<u64, Box<[u8]>>,
}

impl Content {
    fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % PAGE_BYTES) as usize;
            let piece = (len - done).min(PAGE_BYTES as usize - within);
            let page = at / PAGE_BYTES;
            match self.pages.get(self.misdirected.get(&page).unwrap_or(&page)) {
                Some(page) => out[done..done + piece].copy_from_slice(&page[within..within + piece]),
                None => out[done..done + piece].fill(0),
            }
            done += piece;
        }
        len
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE_BYTES) as usize;
            let piece = (data.len() - done).min(PAGE_BYTES as usize - within);
            let from = &data[done..done + piece];
            self.misdirected.remove(&(at / PAGE_BYTES));
            // Zeroes over nothing stay nothing: segments are mostly that.
            if self.pages.contains_key(&(at / PAGE_BYTES)) || from.iter().any(|&byte| byte != 0) {
                let page = self
                    .pages
                    .entry(at / PAGE_BYTES)
                    .or_insert_with(|| vec![0; PAGE_BYTES as usize].into_boxed_slice());
                page[within..within + piece].copy_from_slice(from);
            }
            done += piece;
        }
    }

    fn sector(&self, sector: u64) -> Box<[u8]> {
        let mut bytes = vec![0; SECTOR_BYTES as usize].into_boxed_slice();
        let at = sector * SECTOR_BYTES;
        let page = self.pages.get(&(at / PAGE_BYTES));
        if let Some(page) = page {
            let within = (at % PAGE_BYTES) as usize;
            bytes.copy_from_slice(&page[within..within + SECTOR_BYTES as usize]);
        }
        bytes
    }

    /// A write that has completed but is not durable.
    fn write(&mut self, offset: u64, data: &[u8]) {
        for sector in sectors(offset, data.len()) {
            if !self.unsynced.contains_key(&sector) {
                let old = self.sector(sector);
                self.unsynced.insert(sector, old);
            }
        }
        self.put(offset, data);
        self.len = self.len.max(offset + data.len() as u64);
    }

    fn sync(&mut self, offset: u64, len: usize) {
        for sector in sectors(offset, len) {
            self.unsynced.remove(&sector);
        }
        self.len_durable = self.len_durable.max((offset + len as u64).min(self.len));
    }

    fn sync_all(&mut self) {
        self.unsynced.clear();
        self.len_durable = self.len;
    }

    /// Takes room up to `end`, or all that is left.
    fn take_room(&mut self, end: u64, left: &mut Option<u64>) -> bool {
        let wanted = end.saturating_sub(self.taken);
        let got = left.map_or(wanted, |left| wanted.min(left));
        if let Some(left) = left {
            *left -= got;
        }
        self.taken += got;
        got == wanted
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let cut = vec![0; (self.len - len) as usize];
            self.write(len, &cut);
        }
        self.len = len;
    }

    fn crash(&mut self, mood: &Mood, random: &mut Random, report: &mut CrashReport) {
        for (sector, old) in std::mem::take(&mut self.unsynced) {
            let new = self.sector(sector);
            let sector_after = match mood.fate(random) {
                Fate::Lost => {
                    report.lost += 1;
                    old
                }
                Fate::Kept => {
                    report.kept += 1;
                    new
                }
                Fate::Torn => {
                    report.torn += 1;
                    let cut = random.between(1, SECTOR_BYTES - 1) as usize;
                    [&new[..cut], &old[cut..]].concat().into_boxed_slice()
                }
            };
            self.put(sector * SECTOR_BYTES, &sector_after);
        }
        if self.len != self.len_durable && random.chance(50) {
            let shorter = self.len_durable < self.len;
            self.len = self.len_durable;
            if shorter {
                // What lay beyond is gone for good, also if the file grows again.
                let first_gone = self.len.div_ceil(PAGE_BYTES);
                self.pages.split_off(&first_gone);
                let tail = (self.len % PAGE_BYTES) as usize;
                if let Some(page) = self.pages.get_mut(&(self.len / PAGE_BYTES)) {
                    page[tail..].fill(0);
                }
            }
        }
        self.len_durable = self.len;
    }
}

fn sectors(offset: u64, len: usize) -> std::ops::Range<u64> {
    if len == 0 { 0..0 } else { offset / SECTOR_BYTES..(offset + len as u64).div_ceil(SECTOR_BYTES) }
}

enum Fate {
    Lost,
    Kept,
    Torn,
}

/// How one crash treats sectors: extremes find other mistakes than mixtures.
struct Mood {
    lost_percent: u64,
    torn_percent: u64,
}

impl Mood {
    fn draw(random: &mut Random, tearing: bool) -> Mood {
        let (lost_percent, torn_percent) = match random.below(4) {
            0 => (100, 0),
            1 => (0, 0),
            2 => (50, 0),
            _ => (40, 20),
        };
        Mood { lost_percent, torn_percent: if tearing { torn_percent } else { 0 } }
    }

    fn fate(&self, random: &mut Random) -> Fate {
        let draw = random.below(100);
        if draw < self.lost_percent {
            Fate::Lost
        } else if draw < self.lost_percent + self.torn_percent {
            Fate::Torn
        } else {
            Fate::Kept
        }
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Rc::new(RefCell::new(State {
            random: Random::new(seed),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            renamed: Vec::new(),
            files: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            ids: 0,
            direct: true,
            space_left: None,
            sound_lookups: None,
            latency: (Duration::from_micros(20), Duration::from_micros(400)),
            write_faults: VecDeque::new(),
            read_faults: VecDeque::new(),
        })))
    }

    // What recovery and preparation do, at once and outside any ring.

    /// A new, empty file. Its name survives a crash surely only after `sync_dir`.
    pub fn create(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.ids += 1;
        let id = FileId(state.ids);
        state.files.insert(id, Content::default());
        state.names.insert(path.to_path_buf(), id);
        Ok(())
    }

    pub fn exists(&self, path: &Path) -> bool {
        self.0.borrow().names.contains_key(path)
    }

    /// The files directly in a directory and their lengths, by name.
    pub fn list(&self, directory: &Path) -> Vec<(PathBuf, u64)> {
        let state = self.0.borrow();
        let inside = state.names.iter().filter(|(path, _)| path.parent() == Some(directory));
        inside.map(|(path, id)| (path.clone(), state.files[id].len)).collect()
    }

    pub fn len(&self, path: &Path) -> io::Result<u64> {
        self.with(path, |content| content.len)
    }

    /// As `pread`: fewer bytes than asked for at the end of the file.
    pub fn read_at(&self, path: &Path, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let sound_lookups = self.0.borrow().sound_lookups;
        self.0.borrow_mut().sound_lookups = sound_lookups.and_then(|left| left.checked_sub(1));
        if sound_lookups == Some(0) {
            return Err(io::Error::other("the simulated disk stutters"));
        }
        self.with(path, |content| content.read(offset, out))
    }

    /// As `pwrite`: not durable before `sync_file`.
    pub fn write_at(&self, path: &Path, offset: u64, data: &[u8]) -> io::Result<()> {
        self.take_room(path, offset + data.len() as u64)?;
        self.with(path, |content| content.write(offset, data))
    }

    /// Zeroes a range, extending the file to its end: not durable before `sync_file`. Without room for all of it the beginning
    /// is zeroed.
    pub fn zero_range(&self, path: &Path, from: u64, to: u64) -> io::Result<()> {
        let enough = self.take_room(path, to);
        let to = if enough.is_ok() { to } else { self.with(path, |content| content.taken.clamp(from, to))? };
        self.with(path, |content| {
            let end_of_old = content.len.min(to);
            if from < end_of_old {
                content.write(from, &vec![0; (end_of_old - from) as usize]);
            }
            content.len = content.len.max(to);
        })?;
        enough
    }

    pub fn set_len(&self, path: &Path, len: u64) -> io::Result<()> {
        self.with(path, |content| content.set_len(len))
    }

    /// Makes content and length durable.
    pub fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.with(path, Content::sync_all)
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, directory: &Path) {
        let state = &mut *self.0.borrow_mut();
        state.names_durable.retain(|path, _| path.parent() != Some(directory));
        state.renamed.retain(|(from, _)| from.parent() != Some(directory));
        let inside = state.names.iter().filter(|(path, _)| path.parent() == Some(directory));
        state.names_durable.extend(inside.map(|(path, id)| (path.clone(), *id)));
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        let replaced = state.names.insert(to.to_path_buf(), id);
        if let (Some(left), Some(replaced)) = (&mut state.space_left, replaced) {
            *left += state.files[&replaced].taken;
        }
        state.renamed.push((from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        let id = state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        // The content stays for those who have it open and for a crash that brings the name back; its room is free.
        if let Some(left) = &mut state.space_left {
            *left += state.files[&id].taken;
        }
        Ok(())
    }

    // What goes wrong.

    /// Power is cut. Writes in flight end by D2; rings that work on the disk are to be dropped, what they still have in
    /// flight fails. The same seed on the same history has the same result.
    pub fn crash(&self, seed: u64) -> CrashReport {
        self.crash_as(seed, true)
    }

    /// As `crash`, with or without torn sectors.
    pub fn crash_as(&self, seed: u64, tearing: bool) -> CrashReport {
        let state = &mut *self.0.borrow_mut();
        let mut random = Random::new(seed);
        let mood = Mood::draw(&mut random, tearing);
        let mut report = CrashReport::default();
        for (_, write) in std::mem::take(&mut state.in_flight) {
            let offset = match write.fault {
                Some(WriteFault::Lost) => continue,
                Some(WriteFault::Misdirected { by }) => write.offset.saturating_add_signed(by),
                _ => write.offset,
            };
            if let Some(content) = state.files.get_mut(&write.file) {
                // Its sectors reached the device, or the cache of it: their fate is that of unsynced ones.
                content.write(offset, &write.data);
            }
        }
        for content in state.files.values_mut() {
            content.crash(&mood, &mut random, &mut report);
        }
        for (from, to) in std::mem::take(&mut state.renamed) {
            let was = state.names_durable.get(&from).copied();
            if was.is_none() || state.names.contains_key(&from) || state.names.get(&to).copied() != was {
                continue; // More has happened to these names since, which is decided below.
            }
            if random.chance(50) {
                let id = state.names.remove(&to).expect("just seen");
                state.names.insert(from.clone(), id);
                if let Some(replaced) = state.names_durable.get(&to) {
                    state.names.insert(to.clone(), *replaced);
                }
            }
            // Decided: as if it had been synced.
            for path in [from, to] {
                match state.names.get(&path).copied() {
                    Some(id) => state.names_durable.insert(path, id),
                    None => state.names_durable.remove(&path),
                };
            }
        }
        let paths: BTreeSet<_> = state.names.keys().chain(state.names_durable.keys()).cloned().collect();
        for path in paths {
            let (now, durable) = (state.names.get(&path).copied(), state.names_durable.get(&path).copied());
            if now != durable && random.chance(50) {
                match durable {
                    Some(id) => state.names.insert(path, id),
                    None => state.names.remove(&path),
                };
            }
        }
        state.names_durable = state.names.clone();
        let named: BTreeSet<_> = state.names.values().copied().collect();
        state.files.retain(|id, _| named.contains(id));
        report
    }

    /// Inverts a bit on the medium, for good: what bit rot does.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        self.with(path, |content| {
            let mut byte = [0];
            if content.read(offset, &mut byte) == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            content.put(offset, &[byte[0] ^ 1 << (bit % 8)]);
            Ok(())
        })?
    }

    /// Puts bytes on the medium, for good: what somebody else's misdirected write does. The file does not grow.
    pub fn scribble(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(path, |content| {
            let room = content.len.saturating_sub(offset).min(bytes.len() as u64);
            content.put(offset, &bytes[..room as usize]);
        })
    }

    /// From now on, until it is written again, reads of the 4 KiB page at `offset` get the one at `to`.
    pub fn misdirect_reads(&self, path: &Path, offset: u64, to: u64) -> io::Result<()> {
        self.with(path, |content| {
            content.misdirected.insert(offset / PAGE_BYTES, to / PAGE_BYTES);
        })
    }

    /// The write through a ring that comes after `skip` others suffers this.
    pub fn fail_write(&self, skip: u64, fault: WriteFault) {
        self.0.borrow_mut().write_faults.push_back((skip, fault));
    }

    /// The read through a ring that comes after `skip` others suffers this.
    pub fn fail_read(&self, skip: u64, fault: ReadFault) {
        self.0.borrow_mut().read_faults.push_back((skip, fault));
    }

    /// The read outside of any ring that comes after `skip` others fails, once; or none does.
    pub fn fail_lookup(&self, skip: Option<u64>) {
        self.0.borrow_mut().sound_lookups = skip;
    }

    /// From now on files can grow by so many bytes (D5), through a ring or not; then ENOSPC. `None` is no bound.
    pub fn set_space_left(&self, bytes: Option<u64>) {
        self.0.borrow_mut().space_left = bytes;
    }

    /// How long an operation takes, drawn anew for each: writes in flight together overtake each other.
    pub fn set_latency(&self, low: Duration, high: Duration) {
        self.0.borrow_mut().latency = (low, high.max(low));
    }

    /// Whether files can be opened with `direct`.
    pub fn set_direct(&self, direct: bool) {
        self.0.borrow_mut().direct = direct;
    }

    /// Writes that were submitted and have not completed.
    pub fn writes_in_flight(&self) -> usize {
        self.0.borrow().in_flight.len()
    }

    // What a ring does.

    pub(super) fn open(&self, path: &Path, direct: bool) -> io::Result<FileId> {
        let state = self.0.borrow();
        if direct && !state.direct {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        state.names.get(path).copied().ok_or(io::ErrorKind::NotFound.into())
    }

    /// Starts a write; it takes the time that is returned.
    pub(super) fn begin_write(
        &self,
        file: FileId,
        offset: u64,
        data: Bytes,
        durable: bool,
    ) -> (WriteId, Duration) {
        let state = &mut *self.0.borrow_mut();
        state.ids += 1;
        let id = WriteId(state.ids);
        let fault = strike(&mut state.write_faults);
        let mut time = state.draw_latency();
        if let Some(WriteFault::Slow(longer)) = fault {
            time += longer;
        }
        state.in_flight.insert(id, Write { file, offset, data, durable, fault });
        (id, time)
    }

    pub(super) fn finish_write(&self, id: WriteId) -> Result<(), Errno> {
        let state = &mut *self.0.borrow_mut();
        let write = state.in_flight.remove(&id).ok_or(Errno::Io)?;
        let content = state.files.get_mut(&write.file).ok_or(Errno::Io)?;
        let mut offset = write.offset;
        let end = offset + write.data.len() as u64;
        if write.fault == Some(WriteFault::NoSpace) || !content.take_room(end, &mut state.space_left) {
            return Err(Errno::NoSpace);
        }
        match write.fault {
            Some(WriteFault::Lost) => return Ok(()),
            Some(WriteFault::Misdirected { by }) => offset = offset.saturating_add_signed(by),
            Some(WriteFault::Io) => {
                let count = state.random.below(sectors(0, write.data.len()).end) * SECTOR_BYTES;
                content.write(offset, &write.data[..(count as usize).min(write.data.len())]);
                return Err(Errno::Io);
            }
            Some(WriteFault::NoSpace | WriteFault::Slow(_)) | None => {}
        }
        content.write(offset, &write.data);
        if write.durable {
            content.sync(offset, write.data.len());
        }
        Ok(())
    }

    /// How long a read takes, and what is wrong with it.
    pub(super) fn begin_read(&self) -> (Duration, Option<ReadFault>) {
        let state = &mut *self.0.borrow_mut();
        let fault = strike(&mut state.read_faults);
        let mut time = state.draw_latency();
        if let Some(ReadFault::Slow(longer)) = fault {
            time += longer;
        }
        (time, fault)
    }

    /// Up to `len` bytes: fewer at the end of the file.
    pub(super) fn finish_read(
        &self,
        file: FileId,
        offset: u64,
        len: u64,
        fault: Option<ReadFault>,
    ) -> Result<Vec<u8>, Errno> {
        let state = &mut *self.0.borrow_mut();
        if fault == Some(ReadFault::Io) {
            return Err(Errno::Io);
        }
        let content = state.files.get(&file).ok_or(Errno::Io)?;
        let offset = match fault {
            Some(ReadFault::Misdirected { by }) => [by, -by]
                .into_iter()
                .filter_map(|by| offset.checked_add_signed(by))
                .find(|other| other + len <= content.len)
                .unwrap_or(offset),
            _ => offset,
        };
        let len = if fault == Some(ReadFault::Short) { len / 2 } else { len };
        let present = content.len.saturating_sub(offset).min(len);
        let mut bytes = vec![0; present as usize];
        content.read(offset, &mut bytes);
        if fault == Some(ReadFault::FlipBit) && !bytes.is_empty() {
            let at = state.random.below(present) as usize;
            bytes[at] ^= 1 << state.random.below(8);
        }
        Ok(bytes)
    }

    fn with<T>(&self, path: &Path, act: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let state = &mut *self.0.borrow_mut();
        let id = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(act(state.files.get_mut(id).expect("a name has a file")))
    }

    fn take_room(&self, path: &Path, end: u64) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        let id = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let content = state.files.get_mut(id).expect("a name has a file");
        content.take_room(end, &mut state.space_left).then_some(()).ok_or(io::ErrorKind::StorageFull.into())
    }
}

impl State {
    fn draw_latency(&mut self) -> Duration {
        let (low, high) = self.latency;
        let (low, high) = (low.as_nanos() as u64, high.as_nanos() as u64);
        Duration::from_nanos(self.random.between(low, high))
    }
}

/// Counts an operation against the faults that wait, and takes the one whose turn has come.
fn strike<F: Copy>(faults: &mut VecDeque<(u64, F)>) -> Option<F> {
    let due = faults.iter().position(|(skip, _)| *skip == 0);
    for (skip, _) in faults.iter_mut() {
        *skip = skip.saturating_sub(1);
    }
    due.and_then(|index| faults.remove(index)).map(|(_, fault)| fault)
}

#[cfg(test)]
mod tests;
