//! The kernel's ring.
//!
//! ```text
//! submit ─▶ ops[slot] ─prep─▶ queue ─▶ SQ ══ enter ══▶ CQ ─▶ ops[slot] ─complete─▶ again | conclude ─▶ ready ─▶ out
//! ```
//!
//! U1  An operation lives in `ops` from `submit` to its last completion and owns its memory for that time. The kernel
//!     knows it by slot and generation, so a stale completion finds nothing.
//! U2  `in_kernel` of an operation is set from the moment its submission is queued until the completion without
//!     F_MORE. It leaves `ops` only while that is unset.
//! U3  A descriptor is closed only when no operation on it is left: see `users`.
//! U4  Only `conclude` reports the end of an operation, and it removes the operation: exactly one last completion.
//! U5  Dropping the ring waits until `in_kernel` is unset everywhere, or leaks what the kernel may still write to.

#![allow(unsafe_code)]

mod end;
mod work;

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use io_uring::squeue::Entry;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};

use crate::buffers::BufferRing;
use crate::file::{self, FileEntry, Pipes};
use crate::read_memory::ReadMemory;
use crate::setup::{self, Config, SetupError};
use crate::slab::Slab;
use crate::socket::{self, ListenerEntry, Message, SocketEntry, Wake};
use crate::{
    Completion, Errno, File, Listener, Nanos, Now, Op, OpenMode, Outcome, RecvBuffer, Ring, Slot, Socket,
    WAKE_TAG, Waker, is_direct_aligned,
};
use work::{Reading, Step, Transfer, Work};

/// The user data of submissions whose completion tells nothing. No slot gets there: indices are dense.
const IGNORED: u64 = u64::MAX;

/// A ring of the kernel. It stays on the thread that made it, which alone may enter it (IORING_SETUP_SINGLE_ISSUER).
pub struct Uring {
    ring: IoUring,
    enter_flags: EnterFlags,
    /// Submissions that are not in the SQ yet.
    queue: VecDeque<Entry>,
    ops: Slab<Running>,
    /// How many of `ops` have `in_kernel` set.
    in_kernel_count: usize,
    listeners: Slab<ListenerEntry>,
    sockets: Slab<SocketEntry>,
    files: Slab<FileEntry>,
    buffers: BufferRing,
    read_memory: ReadMemory,
    spin: Duration,
    pipes: Pipes,
    /// `SendFile`s without a pipe, longest waiting first.
    pipe_waiters: VecDeque<Slot>,
    /// Receives that the kernel has ended for lack of buffers, or at its own discretion.
    disarmed: VecDeque<Slot>,
    /// Kept for its memory only.
    completed: Vec<cqueue::Entry>,
    ready: Vec<Completion>,
    wake: Arc<Wake>,
    /// Not `Send`.
    one_thread: PhantomData<*mut ()>,
}

struct Running {
    tag: u64,
    in_kernel: bool,
    work: Work,
}

impl Uring {
    pub fn new(config: Config) -> Result<Uring, SetupError> {
        let ring = setup::build(&config)?;
        let buffers = setup::buffers(&config, &ring)?;
        let wake = Wake::new().map_err(SetupError::Other)?;
        let mut enter_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() {
            // An idle shard waits for work, not for a disk: without this monitoring shows 100 % I/O wait.
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        let mut uring = Uring {
            ring,
            enter_flags,
            queue: VecDeque::new(),
            ops: Slab::new(),
            in_kernel_count: 0,
            listeners: Slab::new(),
            sockets: Slab::new(),
            files: Slab::new(),
            buffers,
            read_memory: ReadMemory::default(),
            spin: config.spin,
            pipes: Pipes::new(config.pipes_max),
            pipe_waiters: VecDeque::new(),
            disarmed: VecDeque::new(),
            completed: Vec::new(),
            ready: Vec::new(),
            wake: Arc::clone(&wake),
            one_thread: PhantomData,
        };
        let slot = uring.insert(WAKE_TAG, Work::Wake { wake, count: Box::new(UnsafeCell::new([0; 8])) });
        uring.arm(slot);
        Ok(uring)
    }

    /// Keeps a file open, and with it its `flock`, until the kernel has ended the last operation of this ring: a killed
    /// process's writes can land for a moment after it is gone, and nobody else should be writing by then. Once a ring.
    pub fn hold_open(&self, file: &std::fs::File) -> io::Result<()> {
        self.ring.submitter().register_files(&[file.as_raw_fd()])
    }

    fn insert(&mut self, tag: u64, work: Work) -> Slot {
        self.ops.insert(Running { tag, in_kernel: false, work })
    }

    /// Queues the next submission of an operation.
    fn arm(&mut self, slot: Slot) {
        let op = self.ops.get_mut(slot).expect("an operation that goes on is in the table");
        assert!(!op.in_kernel, "U2: one submission at a time");
        op.in_kernel = true;
        self.in_kernel_count += 1;
        self.queue.push_back(op.work.prep().user_data(slot.to_u64()));
    }

    fn report(&mut self, tag: u64, outcome: Outcome) {
        self.ready.push(Completion { tag, outcome });
    }

    /// The end of an operation: reports it and gives back what it used. What waited for its end is started by the
    /// caller, through `pump`.
    fn conclude(&mut self, slot: Slot, outcome: Outcome) {
        let op = self.ops.remove(slot).expect("an operation ends once");
        assert!(!op.in_kernel, "U2: an operation ends after its last completion");
        if let Some(socket) = op.work.socket() {
            let entry = self.sockets.get_mut(socket).expect("U3: a socket outlives its operations");
            entry.users -= 1;
            if let Outcome::Sent(result) = &outcome {
                assert_eq!(entry.sends.pop_front(), Some(slot), "R3: sends end in order");
                entry.send_error = entry.send_error.or(result.err());
            }
        }
        if let Some(file) = op.work.file() {
            let entry = self.files.get_mut(file).expect("U3: a file outlives its operations");
            entry.users -= 1;
            self.close_file_if_unused(file);
        }
        match op.work {
            Work::Accept { listener, .. } => {
                let entry = self.listeners.get_mut(listener).expect("U3: a listener outlives its accept");
                entry.accept = None;
                if entry.closing {
                    self.listeners.remove(listener);
                }
            }
            Work::Receive { socket, .. } => {
                self.sockets.get_mut(socket).expect("U3: a socket outlives its operations").receive = None;
            }
            Work::SendFile { transfer, .. } => {
                if let Some(pipe) = transfer.pipe {
                    self.pipes.give_back(pipe, transfer.piped);
                }
            }
            _ => {}
        }
        self.report(op.tag, outcome);
    }

    fn close_file_if_unused(&mut self, file: Slot) {
        if self.files.get(file).is_some_and(|entry| entry.closing && entry.users == 0) {
            self.files.remove(file);
        }
    }

    /// Brings the sends of a socket forward as far as they go, and closes the socket if that was the last of it.
    fn pump(&mut self, socket: Slot) {
        while let Some(entry) = self.sockets.get(socket) {
            let Some(&front) = entry.sends.front() else { break };
            let op = self.ops.get_mut(front).expect("a queued send is in the table");
            if op.in_kernel {
                break;
            }
            let error = if entry.closing.is_some() { Some(Errno::Cancelled) } else { entry.send_error };
            let result = match (error, &mut op.work) {
                (Some(error), _) => Err(error),
                (None, Work::Send { message, .. }) if message.is_sent() => Ok(()),
                (None, Work::SendFile { transfer, .. }) if transfer.is_sent() => Ok(()),
                (None, Work::SendFile { transfer, .. }) if transfer.pipe.is_none() => {
                    if transfer.listed {
                        break;
                    }
                    match self.pipes.take() {
                        Ok(Some(pipe)) => {
                            transfer.pipe = Some(pipe);
                            self.arm(front);
                            break;
                        }
                        Ok(None) => {
                            transfer.listed = true;
                            self.pipe_waiters.push_back(front);
                            break;
                        }
                        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
                    }
                }
                (None, _) => {
                    self.arm(front);
                    break;
                }
            };
            self.conclude(front, Outcome::Sent(result));
        }
        self.close_if_unused(socket);
    }

    fn close_if_unused(&mut self, socket: Slot) {
        let Some(SocketEntry { users: 0, closing: Some(tag), .. }) = self.sockets.get(socket) else { return };
        let tag = *tag;
        self.sockets.remove(socket);
        self.report(tag, Outcome::Closed);
    }

    /// Gives free pipes to those that wait for one.
    fn serve_pipe_waiters(&mut self) {
        while self.pipes.any_free()
            && let Some(slot) = self.pipe_waiters.pop_front()
        {
            // It may have been cancelled meanwhile.
            let Some(Running { work: Work::SendFile { socket, transfer, .. }, .. }) = self.ops.get_mut(slot)
            else {
                continue;
            };
            transfer.listed = false;
            let socket = *socket;
            self.pump(socket);
        }
    }

    /// Lists a receive to be armed again at the next turn.
    fn disarm(&mut self, slot: Slot) {
        if let Some(Running { work: Work::Receive { listed, .. }, .. }) = self.ops.get_mut(slot)
            && !std::mem::replace(listed, true)
        {
            self.disarmed.push_back(slot);
        }
    }

    /// Arms listed receives, as many as there are buffers: more would only fail again.
    fn arm_receives(&mut self) {
        for _ in 0..self.buffers.offered().min(self.disarmed.len()) {
            let Some(slot) = self.disarmed.pop_front() else { break };
            let Some(Running { in_kernel, work: Work::Receive { paused, listed, .. }, .. }) =
                self.ops.get_mut(slot)
            else {
                continue;
            };
            *listed = false;
            if !*paused && !*in_kernel {
                self.arm(slot);
            }
        }
    }

    fn open_socket(&mut self, socket: Socket) -> Option<&mut SocketEntry> {
        self.sockets.get_mut(socket.0).filter(|entry| entry.closing.is_none())
    }

    fn open_file(&mut self, file: File) -> Option<&mut FileEntry> {
        self.files.get_mut(file.0).filter(|entry| !entry.closing)
    }

    fn submit_send(&mut self, tag: u64, socket: Slot, work: Work) {
        let slot = self.insert(tag, work);
        let entry = self.sockets.get_mut(socket).expect("the caller looked it up");
        entry.users += 1;
        entry.sends.push_back(slot);
        self.pump(socket);
    }

    fn close(&mut self, tag: u64, socket: Socket) {
        let Some(entry) = self.open_socket(socket) else { return self.report(tag, Outcome::Closed) };
        entry.closing = Some(tag);
        // Ends in the kernel what cancellation does not reach, a splice that runs. An error means the peer was faster.
        let _ = entry.stream.shutdown(Shutdown::Both);
        let fd = entry.stream.as_raw_fd();
        if let Some(receive) = entry.receive
            && self.ops.get(receive).is_some_and(|op| !op.in_kernel)
        {
            self.conclude(receive, Outcome::Received(Err(Errno::Cancelled)));
        }
        self.pump(socket.0);
        if let Some(entry) = self.sockets.get_mut(socket.0) {
            entry.users += 1;
            let slot = self.insert(IGNORED, Work::Cancel { socket: socket.0, fd });
            self.arm(slot);
        }
    }

    /// Moves queued submissions to the SQ, submits them, and waits for a completion if asked to. `Ok(false)` says that
    /// the time is up.
    fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> io::Result<bool> {
        let (submitter, mut sq, cq) = self.ring.split();
        while !sq.is_full()
            && let Some(entry) = self.queue.pop_front()
        {
            // SAFETY: U1 and W1: all that the entry points to is owned by the operation in `ops` until its last
            // completion, and on the heap; the receive buffers are, by `BufferRing::register`.
            unsafe { sq.push(&entry) }.expect("there is room");
        }
        sq.sync();
        // The queue is never longer than a u32.
        let to_submit = sq.len() as u32;
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        let wait = wait && self.queue.is_empty() && cq.is_empty();
        // SAFETY: with EXT_ARG the argument is a `SubmitArgs`, that is an io_uring_getevents_arg; it and the timespec
        // in it live until the call returns.
        let result =
            unsafe { submitter.enter(to_submit, u32::from(wait), self.enter_flags.bits(), Some(&args)) };
        match result {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME) => Ok(false),
                // EBUSY and EAGAIN: too many completions wait for us, or memory is short. Collect, then go on.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// Handles what has completed.
    fn collect(&mut self) {
        let mut completed = std::mem::take(&mut self.completed);
        completed.extend(self.ring.completion());
        for cqe in completed.drain(..) {
            self.on_completion(&cqe);
        }
        self.completed = completed;
        self.serve_pipe_waiters();
    }

    fn on_completion(&mut self, cqe: &cqueue::Entry) {
        if cqe.user_data() == IGNORED {
            return;
        }
        let slot = Slot::from_u64(cqe.user_data());
        let op = self.ops.get_mut(slot).expect("U2: the kernel completes only what is in the table");
        if !cqueue::more(cqe.flags()) {
            op.in_kernel = false;
            self.in_kernel_count -= 1;
        }
        match &mut op.work {
            Work::Accept { listener, .. } => {
                let listener = *listener;
                self.on_accept(slot, listener, cqe);
            }
            Work::Receive { socket, .. } => {
                let socket = *socket;
                self.on_receive(slot, socket, cqe);
            }
            Work::Cancel { socket, .. } => {
                let socket = *socket;
                self.ops.remove(slot);
                self.sockets.get_mut(socket).expect("U3: a socket outlives its operations").users -= 1;
                self.close_if_unused(socket);
            }
            Work::Wake { wake, .. } => {
                wake.taken();
                self.report(WAKE_TAG, Outcome::Woken);
                self.arm(slot);
            }
            work => {
                let step = work.complete(cqe);
                let socket = work.socket();
                let closing = socket
                    .and_then(|socket| self.sockets.get(socket))
                    .is_some_and(|entry| entry.closing.is_some());
                match step {
                    Step::Again if closing => self.conclude(slot, Outcome::Sent(Err(Errno::Cancelled))),
                    Step::Done(Outcome::Sent(Err(_))) if closing => {
                        self.conclude(slot, Outcome::Sent(Err(Errno::Cancelled)));
                    }
                    Step::Again => return self.arm(slot),
                    Step::Done(outcome) => self.conclude(slot, outcome),
                }
                if let Some(socket) = socket {
                    self.pump(socket);
                }
            }
        }
    }

    fn on_accept(&mut self, slot: Slot, listener: Slot, cqe: &cqueue::Entry) {
        let tag = self.ops.get(slot).expect("looked up before").tag;
        let closing = self.listeners.get(listener).is_none_or(|entry| entry.closing);
        let accepted = (cqe.result() >= 0).then(|| socket::accepted(cqe.result()));
        if let Some(Some((stream, peer))) = accepted
            && !closing
        {
            let socket = self.sockets.insert(SocketEntry {
                stream,
                peer,
                receive: None,
                sends: VecDeque::new(),
                send_error: None,
                users: 0,
                closing: None,
            });
            self.report(tag, Outcome::Accepted(Ok((Socket(socket), peer))));
        }
        if cqueue::more(cqe.flags()) {
            return;
        }
        let error = match -cqe.result() {
            _ if closing => Errno::Cancelled,
            // The connection died before it was accepted, or the kernel ended the multishot: neither is an error of
            // the listener.
            ..=0 | libc::EAGAIN | libc::EINTR | libc::ECONNABORTED | libc::EPROTO | libc::ENETDOWN => {
                return self.arm(slot);
            }
            errno => Errno::from_raw(errno),
        };
        self.conclude(slot, Outcome::Accepted(Err(error)));
    }

    fn on_receive(&mut self, slot: Slot, socket: Slot, cqe: &cqueue::Entry) {
        let tag = self.ops.get(slot).expect("looked up before").tag;
        let closing = self.sockets.get(socket).is_none_or(|entry| entry.closing.is_some());
        let len = u32::try_from(cqe.result()).unwrap_or(0);
        if let Some(id) = cqueue::buffer_select(cqe.flags())
            && let Some(buffer) = self.buffers.take(id, len, cqueue::buffer_more(cqe.flags()))
        {
            if closing {
                self.buffers.give_back(buffer);
            } else {
                self.report(tag, Outcome::Received(Ok(Some(buffer))));
            }
        }
        if cqueue::more(cqe.flags()) {
            return;
        }
        let end = match -cqe.result() {
            _ if closing => Err(Errno::Cancelled),
            0 => Ok(None),
            ..0 | libc::ENOBUFS | libc::EINTR | libc::EAGAIN | libc::ECANCELED => return self.disarm(slot),
            errno => Err(Errno::from_raw(errno)),
        };
        self.conclude(slot, Outcome::Received(end));
        self.close_if_unused(socket);
    }
}

/// Zero is the first time anybody in the process asked, so that all rings agree.
fn monotonic() -> Nanos {
    static ZERO: OnceLock<Instant> = OnceLock::new();
    let elapsed = ZERO.get_or_init(Instant::now).elapsed();
    Nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

impl Ring for Uring {
    fn now(&self) -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: monotonic(), wall_ms: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX) }
    }

    fn listen(&mut self, addr: SocketAddr) -> io::Result<(Listener, SocketAddr)> {
        let listener = socket::listen(addr)?;
        let bound = listener.local_addr()?;
        let slot = self.listeners.insert(ListenerEntry { listener, accept: None, closing: false });
        Ok((Listener(slot), bound))
    }

    fn close_listener(&mut self, listener: Listener) {
        let Some(entry) = self.listeners.get_mut(listener.0) else { return };
        entry.closing = true;
        match entry.accept {
            Some(slot) => {
                self.queue.push_back(opcode::AsyncCancel::new(slot.to_u64()).build().user_data(IGNORED));
            }
            None => {
                self.listeners.remove(listener.0);
            }
        }
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<File> {
        let file = file::open(path, mode)?;
        Ok(File(self.files.insert(FileEntry { file, direct: mode.direct, users: 0, closing: false })))
    }

    fn close_file(&mut self, file: File) {
        if let Some(entry) = self.files.get_mut(file.0) {
            entry.closing = true;
            self.close_file_if_unused(file.0);
        }
    }

    fn peer(&self, socket: Socket) -> Option<SocketAddr> {
        self.sockets.get(socket.0).filter(|entry| entry.closing.is_none()).map(|entry| entry.peer)
    }

    fn local(&self, socket: Socket) -> Option<SocketAddr> {
        self.sockets.get(socket.0).filter(|entry| entry.closing.is_none())?.stream.local_addr().ok()
    }

    fn submit(&mut self, tag: u64, op: Op) {
        match op {
            Op::Accept { listener } => {
                let Some(entry) = self.listeners.get_mut(listener.0).filter(|entry| !entry.closing) else {
                    return self.report(tag, Outcome::Accepted(Err(Errno::BadHandle)));
                };
                assert!(entry.accept.is_none(), "one Accept at a time per listener");
                let fd = entry.listener.as_raw_fd();
                let work = Work::Accept { listener: listener.0, fd };
                let slot = self.ops.insert(Running { tag, in_kernel: false, work });
                entry.accept = Some(slot);
                self.arm(slot);
            }
            Op::Receive { socket } => {
                let Some(entry) = self.sockets.get_mut(socket.0).filter(|entry| entry.closing.is_none())
                else {
                    return self.report(tag, Outcome::Received(Err(Errno::BadHandle)));
                };
                assert!(entry.receive.is_none(), "one Receive at a time per socket");
                let fd = entry.stream.as_raw_fd();
                let work = Work::Receive { socket: socket.0, fd, paused: false, listed: false };
                let slot = self.ops.insert(Running { tag, in_kernel: false, work });
                entry.receive = Some(slot);
                entry.users += 1;
                self.arm(slot);
            }
            Op::Send { socket, parts } => {
                let Some(entry) = self.open_socket(socket) else {
                    return self.report(tag, Outcome::Sent(Err(Errno::BadHandle)));
                };
                let fd = entry.stream.as_raw_fd();
                let message = Message::new(parts);
                self.submit_send(tag, socket.0, Work::Send { socket: socket.0, fd, message });
            }
            Op::SendFile { socket, file, offset, len } => {
                let socket_fd = self.open_socket(socket).map(|entry| entry.stream.as_raw_fd());
                let (Some(socket_fd), Some(entry)) = (socket_fd, self.open_file(file)) else {
                    return self.report(tag, Outcome::Sent(Err(Errno::BadHandle)));
                };
                assert!(
                    !entry.direct,
                    "SendFile reads through the page cache: open the file without `direct`"
                );
                entry.users += 1;
                let transfer = Transfer {
                    socket_fd,
                    file_fd: entry.file.as_raw_fd(),
                    offset,
                    remaining: len,
                    piped: 0,
                    pipe: None,
                    blocked: false,
                    listed: false,
                };
                self.submit_send(tag, socket.0, Work::SendFile { socket: socket.0, file: file.0, transfer });
            }
            Op::Write { file, offset, data, durable } => {
                let Some(entry) = self.open_file(file) else {
                    return self.report(tag, Outcome::Written(Err(Errno::BadHandle)));
                };
                assert!(!entry.direct || is_direct_aligned(offset, &data), "a direct write must be aligned");
                if data.is_empty() {
                    return self.report(tag, Outcome::Written(Ok(())));
                }
                entry.users += 1;
                let (fd, direct) = (entry.file.as_raw_fd(), entry.direct);
                let slot = self.insert(tag, Work::Write { file: file.0, fd, offset, data, durable, direct });
                self.arm(slot);
            }
            Op::Read { file, offset, len } => {
                let Some(entry) = self.open_file(file) else {
                    return self.report(tag, Outcome::Read(Err(Errno::BadHandle)));
                };
                if len == 0 {
                    return self.report(tag, Outcome::Read(Ok(Bytes::new())));
                }
                entry.users += 1;
                let fd = entry.file.as_raw_fd();
                let reading = Reading::new(fd, offset, len, entry.direct, &self.read_memory);
                let slot = self.insert(tag, Work::Read { file: file.0, reading });
                self.arm(slot);
            }
            Op::Close { socket } => self.close(tag, socket),
        }
    }

    fn pause_receive(&mut self, socket: Socket) {
        let Some(slot) = self.open_socket(socket).and_then(|entry| entry.receive) else { return };
        let Some(Running { in_kernel, work: Work::Receive { paused, .. }, .. }) = self.ops.get_mut(slot)
        else {
            return;
        };
        if !std::mem::replace(paused, true) && *in_kernel {
            self.queue.push_back(opcode::AsyncCancel::new(slot.to_u64()).build().user_data(IGNORED));
        }
    }

    fn resume_receive(&mut self, socket: Socket) {
        let Some(slot) = self.open_socket(socket).and_then(|entry| entry.receive) else { return };
        let Some(Running { in_kernel, work: Work::Receive { paused, .. }, .. }) = self.ops.get_mut(slot)
        else {
            return;
        };
        // If the cancellation has not come back yet, its completion lists the receive.
        if std::mem::replace(paused, false) && !*in_kernel {
            self.disarm(slot);
        }
    }

    fn turn(&mut self, deadline: Option<Nanos>, out: &mut Vec<Completion>) -> io::Result<()> {
        // Looked up only when there is nothing to do: most turns begin with completions.
        let mut sleep_from = None;
        loop {
            self.arm_receives();
            let timeout = deadline.map(|deadline| deadline.since(monotonic()));
            let more_to_arm = !self.disarmed.is_empty() && self.buffers.offered() > 0;
            let is_idle = self.ready.is_empty() && !more_to_arm && timeout != Some(Duration::ZERO);
            let spins = is_idle
                && !self.spin.is_zero()
                && monotonic() < *sleep_from.get_or_insert_with(|| monotonic().plus(self.spin));
            let in_time = self.enter(is_idle && !spins, timeout)?;
            self.collect();
            let unsubmitted = !self.queue.is_empty() || !self.ring.submission().is_empty();
            if !self.ready.is_empty() {
                out.append(&mut self.ready);
                return Ok(());
            }
            if !unsubmitted && !more_to_arm && !spins && (!in_time || timeout == Some(Duration::ZERO)) {
                return Ok(());
            }
        }
    }

    fn received(&self, buffer: &RecvBuffer) -> &[u8] {
        self.buffers.bytes(buffer)
    }

    fn recycle(&mut self, buffer: RecvBuffer) {
        self.buffers.give_back(buffer);
    }

    fn waker(&self) -> Waker {
        self.wake.waker()
    }
}

#[cfg(test)]
mod tests;
