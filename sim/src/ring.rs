//! The ring that a simulated broker gets: a [`SimRing`] that is watched, hurried, troubled and, on request, broken.
//!
//! W1  Every operation and completion goes into one hash: equal hashes are equal runs.
//! W2  Time stops where a client wants to act, and turns take some time, so that several things happen in one.
//! W3  Faults are those that a broker must bear. [`Planted`] mistakes are those that the checker must find.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::backstage::segment_of_index;
use crate::indexes::IndexLedger;
use crate::ledger::{self, Ledger};
use bytes::BytesMut;
use ringmq_ring::sim::{Random, ReadFault, SimDisk, SimNet, SimRing, WriteFault};
use ringmq_ring::{
    Completion, File, Listener, Nanos, Now, Op, OpenMode, Outcome, RecvBuffer, Ring, Socket, Waker,
};
use ringmq_storage::SegmentBase;

/// A mistake that a broker or its disk could make; the simulation is worth what it finds of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Planted {
    /// The disk forgets that a write was to be durable.
    LyingDisk,
    /// Writes are reported before they have happened.
    EarlyCompletion,
    /// A failed write is reported as done.
    HiddenWriteError,
    /// A new segment is used before its name and length are durable.
    UnsyncedSegment,
    /// Now and then replies are not sent.
    LostReply,
    /// Now and then replies are sent twice.
    DoubledReply,
    /// Now and then a bit of a reply is wrong.
    WrongBit,
    /// What is read from the log is not compared with its checksums.
    UnverifiedReads,
    /// Damage is not reported.
    SilentDamage,
    /// The broker acknowledges before the disk has it, and says it does not.
    AsyncAsSync,
    /// Old segments go though the next start needs the checkpoint in them.
    HastyRelease,
    /// Old segments go though groups that are online have still to consume from them.
    IgnoredGroups,
    /// A segment is rewritten also without messages that nobody has given up.
    GreedyRewrite,
    /// A rewritten segment takes the place of the old one before it is durable.
    UnsyncedRewrite,
    /// A segment is rewritten though its messages are not given up.
    HastyRewrite,
    /// Acknowledgements of popped messages are answered, and nothing is done.
    IdleAcks,
}

/// What the ring and the world around it tell each other.
pub(crate) struct Watch {
    pub(crate) trace: u64,
    /// Time of all lives before this one.
    pub(crate) base: u64,
    /// When somebody outside wants to act, in time of this life.
    pub(crate) wake_at: u64,
    /// How far the wall clock was moved, in milliseconds.
    pub(crate) wall_shift_ms: i64,
    pub(crate) write_fault: Option<WriteFault>,
    pub(crate) read_fault: Option<ReadFault>,
    /// When the broker heard of a failed write.
    pub(crate) log_failed_at: Option<u64>,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) ledger: Ledger,
    pub(crate) indexes: IndexLedger,
    random: Random,
    planted: Option<Planted>,
}

impl Watch {
    pub(crate) fn new(seed: u64, planted: Option<Planted>, ledger: Ledger, indexes: IndexLedger) -> Watch {
        Watch {
            trace: seed,
            base: 0,
            wake_at: 0,
            wall_shift_ms: 0,
            write_fault: None,
            read_fault: None,
            log_failed_at: None,
            reads: 0,
            writes: 0,
            ledger,
            indexes,
            random: Random::new(seed ^ 0x7261_6365),
            planted,
        }
    }

    /// A broker starts: nothing of the last one is under way.
    pub(crate) fn begin_life(&mut self) {
        self.log_failed_at = None;
        self.write_fault = None;
        self.read_fault = None;
        self.wake_at = 0;
    }

    pub(crate) fn note(&mut self, word: u64) {
        self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn note_bytes(&mut self, bytes: &[u8]) {
        self.note(bytes.len() as u64);
        self.note(u64::from(crc32c::crc32c(bytes)));
    }

    /// How long a turn goes on after the first thing that happens in it.
    fn slack(&mut self) -> u64 {
        let most = match self.random.below(100) {
            0..60 => 10_000,
            60..97 => 300_000,
            _ => 5_000_000,
        };
        self.random.below(most)
    }

    fn note_op(&mut self, tag: u64, op: &Op) {
        self.note(tag);
        match op {
            Op::Accept { .. } => self.note(1),
            Op::Receive { socket } => self.note(2 + ((socket.index() as u64) << 8)),
            Op::Send { socket, parts } => {
                self.note(3 + ((socket.index() as u64) << 8));
                parts.iter().for_each(|part| self.note_bytes(part));
            }
            Op::SendFile { offset, len, .. } => {
                self.note(4 + (offset << 8));
                self.note(*len);
            }
            Op::Write { offset, data, durable, .. } => {
                self.note(5 + u64::from(*durable) + (offset << 8));
                self.note_bytes(data);
            }
            Op::Read { offset, len, .. } => {
                self.note(7 + (offset << 8));
                self.note(u64::from(*len));
            }
            Op::Close { socket } => self.note(8 + ((socket.index() as u64) << 8)),
        }
    }
}

pub(crate) type SharedWatch = Rc<RefCell<Watch>>;

/// See the head of this file.
pub(crate) struct WatchedRing {
    inner: SimRing,
    net: SimNet,
    disk: SimDisk,
    watch: SharedWatch,
    /// Tags of writes that [`Planted::EarlyCompletion`] will report.
    early: Vec<u64>,
    /// Pages of indexes that are being read, by tag.
    index_reads: BTreeMap<u64, (SegmentBase, u64)>,
    /// Open files of the log.
    files: Vec<(File, PathBuf)>,
}

impl WatchedRing {
    pub(crate) fn new(inner: SimRing, disk: SimDisk, watch: SharedWatch) -> WatchedRing {
        WatchedRing {
            net: inner.net(),
            inner,
            disk,
            watch,
            early: Vec::new(),
            index_reads: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    fn spoil(&mut self, tag: u64, op: Op) -> Op {
        let watch = &mut *self.watch.borrow_mut();
        let rarely = watch.random.below(200) == 0;
        match (watch.planted, op) {
            (Some(Planted::LyingDisk), Op::Write { file, offset, data, .. }) => {
                Op::Write { file, offset, data, durable: false }
            }
            (Some(Planted::EarlyCompletion), op @ Op::Write { .. }) => {
                self.early.push(tag);
                op
            }
            (Some(Planted::LostReply), Op::Send { socket, .. }) if rarely => {
                Op::Send { socket, parts: Vec::new() }
            }
            (Some(Planted::DoubledReply), Op::Send { socket, parts }) if rarely => {
                let twice = parts.iter().chain(&parts).cloned().collect();
                Op::Send { socket, parts: twice }
            }
            (Some(Planted::WrongBit), Op::Send { socket, mut parts }) if rarely => {
                if let Some(last) = parts.last_mut().filter(|part| !part.is_empty()) {
                    let mut wrong = BytesMut::from(&last[..]);
                    let at = wrong.len() - 1 - watch.random.below(wrong.len().min(500) as u64) as usize;
                    wrong[at] ^= 1 << watch.random.below(8);
                    *last = wrong.freeze();
                }
                Op::Send { socket, parts }
            }
            (_, op) => op,
        }
    }

    fn watch_completion(&mut self, completion: &mut Completion) {
        let watch = &mut *self.watch.borrow_mut();
        watch.note(completion.tag);
        match &mut completion.outcome {
            Outcome::Accepted(result) => watch.note(result.is_ok().into()),
            Outcome::Received(Ok(Some(buffer))) => watch.note_bytes(self.inner.received(buffer)),
            Outcome::Received(other) => watch.note(2 + u64::from(other.is_ok())),
            Outcome::Sent(result) => watch.note(4 + u64::from(result.is_ok())),
            Outcome::Written(result) => {
                watch.note(6 + u64::from(result.is_ok()));
                if result.is_err() && watch.planted == Some(Planted::HiddenWriteError) {
                    *result = Ok(());
                }
                watch.ledger.written(completion.tag, result.is_ok());
                if result.is_err() {
                    let now = watch.base + self.inner.now().monotonic.0;
                    watch.log_failed_at.get_or_insert(now);
                }
            }
            Outcome::Read(result) => {
                let now = watch.base + self.inner.now().monotonic.0;
                if let Some((segment, offset)) = self.index_reads.remove(&completion.tag) {
                    watch.indexes.read(segment, offset, now);
                }
                watch.ledger.read(completion.tag, result.as_ref().ok(), now);
                match result {
                    Ok(bytes) => {
                        if watch.planted == Some(Planted::UnverifiedReads) {
                            *bytes = ledger::with_right_checksums(bytes);
                        }
                        watch.note_bytes(bytes);
                    }
                    Err(_) => watch.note(9),
                }
            }
            Outcome::Closed => watch.note(10),
            Outcome::Woken => watch.note(11),
        }
    }
}

impl Ring for WatchedRing {
    fn now(&self) -> Now {
        let watch = self.watch.borrow();
        let now = self.inner.now();
        Now { wall_ms: now.wall_ms + (watch.base / 1_000_000) as i64 + watch.wall_shift_ms, ..now }
    }

    fn listen(&mut self, addr: SocketAddr) -> io::Result<(Listener, SocketAddr)> {
        self.inner.listen(addr)
    }

    fn close_listener(&mut self, listener: Listener) {
        self.inner.close_listener(listener);
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<File> {
        let file = self.inner.open(path, mode)?;
        self.files.push((file, path.to_owned()));
        Ok(file)
    }

    fn close_file(&mut self, file: File) {
        self.files.retain(|(open, _)| *open != file);
        self.inner.close_file(file);
    }

    fn peer(&self, socket: Socket) -> Option<SocketAddr> {
        self.inner.peer(socket)
    }

    fn local(&self, socket: Socket) -> Option<SocketAddr> {
        self.inner.local(socket)
    }

    fn submit(&mut self, tag: u64, op: Op) {
        self.watch.borrow_mut().note_op(tag, &op);
        let op = self.spoil(tag, op);
        let mut watch = self.watch.borrow_mut();
        let path = |file| self.files.iter().find(|(open, _)| open == file).map(|(_, path)| path.as_path());
        match &op {
            Op::Write { file, offset, data, .. } => {
                watch.writes += 1;
                let mut fault = watch.write_fault.take();
                if let Some(WriteFault::Misdirected { by }) = &mut fault {
                    *by = ledger::misdirection(*offset, &mut watch.random);
                }
                if let Some(fault) = fault {
                    self.disk.fail_write(0, fault);
                }
                watch.ledger.writing(tag, path(file), *offset, data, fault);
            }
            Op::Read { file, offset, len } => {
                watch.reads += 1;
                if let Some(segment) = path(file).and_then(segment_of_index) {
                    self.index_reads.insert(tag, (segment, *offset));
                }
                if let Some(fault) = watch.read_fault.take() {
                    self.disk.fail_read(0, fault);
                    watch.ledger.reading(tag, path(file), *offset, *len, fault);
                }
            }
            _ => {}
        }
        drop(watch);
        self.inner.submit(tag, op);
    }

    fn pause_receive(&mut self, socket: Socket) {
        self.watch.borrow_mut().note(12 + ((socket.index() as u64) << 8));
        self.inner.pause_receive(socket);
    }

    fn resume_receive(&mut self, socket: Socket) {
        self.watch.borrow_mut().note(13 + ((socket.index() as u64) << 8));
        self.inner.resume_receive(socket);
    }

    fn turn(&mut self, deadline: Option<Nanos>, out: &mut Vec<Completion>) -> io::Result<()> {
        let end = {
            let watch = &mut *self.watch.borrow_mut();
            let wanted = [deadline, self.net.next_event(), Some(Nanos(watch.wake_at))];
            let start = wanted.into_iter().flatten().min().expect("one is there").max(self.net.now());
            Nanos(start.0 + watch.slack())
        };
        let mut happened = Vec::new();
        while self.inner.now().monotonic < end {
            self.inner.turn(Some(end), &mut happened)?;
        }
        if self.watch.borrow().planted == Some(Planted::EarlyCompletion) {
            happened.retain(|completion| !matches!(completion.outcome, Outcome::Written(_)));
            let early = |tag| Completion { tag, outcome: Outcome::Written(Ok(())) };
            happened.extend(self.early.drain(..).map(early));
        }
        for completion in &mut happened {
            self.watch_completion(completion);
        }
        self.watch.borrow_mut().note(end.0);
        out.append(&mut happened);
        Ok(())
    }

    fn received(&self, buffer: &RecvBuffer) -> &[u8] {
        self.inner.received(buffer)
    }

    fn recycle(&mut self, buffer: RecvBuffer) {
        self.inner.recycle(buffer);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}
