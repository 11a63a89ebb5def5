//! The table of operations: what each one asks of the kernel (`prep`) and what an answer means (`complete`).
//!
//! W1  Everything a submission points to is on the heap and owned by its `Work`, which stays in the table of
//!     operations, unchanged, from `prep` until the last completion of that submission.
//! W2  A descriptor in a `Work` is open as long as the `Work` lives: it counts as a user of its socket or file.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{cqueue, opcode};

use crate::buffers::GROUP;
use crate::file::{PIPE_BYTES, Pipe};
use crate::read_memory::{ReadBuffer, ReadMemory};
use crate::socket::{Message, Ranges, Wake};
use crate::{DIRECT_ALIGN, Errno, Outcome, Slot};

/// Bytes of one read or write submission; a longer one goes in pieces. The kernel's own limit is just below 2 GiB.
const PIECE_BYTES_MAX: usize = 1 << 30;

const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

pub(super) enum Work {
    Accept {
        listener: Slot,
        fd: RawFd,
    },
    Receive {
        socket: Slot,
        fd: RawFd,
        /// Nothing is to be received: set by `pause_receive`.
        paused: bool,
        /// It is in the list of receives to be armed again.
        listed: bool,
    },
    Send {
        socket: Slot,
        fd: RawFd,
        message: Message,
    },
    SendFile {
        socket: Slot,
        file: Slot,
        transfer: Transfer,
    },
    Write {
        file: Slot,
        fd: RawFd,
        offset: u64,
        data: Bytes,
        durable: bool,
        direct: bool,
    },
    Read {
        file: Slot,
        reading: Reading,
    },
    /// Ends what is pending on a socket that closes.
    Cancel {
        socket: Slot,
        fd: RawFd,
    },
    /// Reads the eventfd.
    Wake {
        wake: Arc<Wake>,
        count: Box<UnsafeCell<[u8; 8]>>,
    },
}

/// What follows from the completion of a submission that has only one.
pub(super) enum Step {
    /// `prep` says how to go on.
    Again,
    Done(Outcome),
}

/// A file on its way to a socket: filled from the file into a pipe, drained from the pipe into the socket, in turns.
pub(super) struct Transfer {
    pub(super) socket_fd: RawFd,
    pub(super) file_fd: RawFd,
    /// Of the file: what is next for the pipe.
    pub(super) offset: u64,
    /// Bytes that have not entered the pipe.
    pub(super) remaining: u64,
    /// Bytes in the pipe.
    pub(super) piped: u32,
    pub(super) pipe: Option<Pipe>,
    /// The socket was full: wait until it is writable.
    pub(super) blocked: bool,
    /// It is in the list of those that wait for a pipe.
    pub(super) listed: bool,
}

/// A read of a range that covers the one asked for, both ends on alignment if the file is direct.
pub(super) struct Reading {
    fd: RawFd,
    direct: bool,
    start: u64,
    /// Where in the buffer the range asked for lies.
    head: usize,
    len: usize,
    /// Bytes to read from `start`.
    covering: usize,
    filled: usize,
    /// Has room for `covering` bytes; its length stays 0 until all is read.
    room: Option<ReadBuffer>,
}

impl Reading {
    pub(super) fn new(fd: RawFd, offset: u64, len: u32, direct: bool, memory: &ReadMemory) -> Reading {
        let align = if direct { DIRECT_ALIGN } else { 1 };
        // Below DIRECT_ALIGN, and `len` is a u32: all of it fits usize.
        let head = (offset % align as u64) as usize;
        let len = len as usize;
        let covering = (head + len).next_multiple_of(align);
        let room = Some(memory.take(covering));
        Reading { fd, direct, start: offset - head as u64, head, len, covering, filled: 0, room }
    }

    fn prep(&mut self) -> Entry {
        let piece = (self.covering - self.filled).min(PIECE_BYTES_MAX);
        let room = self.room.as_mut().expect("it goes with the last completion");
        let room = &mut room.buffer.spare_capacity_mut()[self.filled..][..piece];
        opcode::Read::new(Fd(self.fd), room.as_mut_ptr().cast(), piece as u32)
            .offset(self.start + self.filled as u64)
            .build()
    }

    fn complete(&mut self, count: usize) -> Option<Result<Bytes, Errno>> {
        self.filled += count;
        assert!(self.filled <= self.covering, "the kernel read no more than it was asked to");
        if self.filled < self.head + self.len {
            // A direct read that stops off alignment has met the end of the file, and could not go on from there.
            let ended = count == 0 || self.direct && !self.filled.is_multiple_of(DIRECT_ALIGN);
            return ended.then_some(Err(Errno::UnexpectedEof));
        }
        let mut room = self.room.take().expect("it goes with the last completion");
        // SAFETY: the buffer has room for `covering` bytes, of which the kernel has initialised the first `filled`.
        unsafe { room.buffer.set_len(self.filled) };
        let bytes = room.freeze();
        Some(Ok(bytes.slice(self.head..self.head + self.len)))
    }
}

impl Transfer {
    fn prep(&self) -> Entry {
        let pipe = self.pipe.as_ref().expect("a transfer is started with a pipe");
        if self.blocked {
            return opcode::PollAdd::new(Fd(self.socket_fd), libc::POLLOUT as u32).build();
        }
        if self.piped > 0 {
            let flags = if self.remaining > 0 { libc::SPLICE_F_MORE } else { 0 };
            return opcode::Splice::new(Fd(pipe.reader.as_raw_fd()), -1, Fd(self.socket_fd), -1, self.piped)
                .flags(flags)
                .build();
        }
        let len = self.remaining.min(u64::from(PIPE_BYTES)) as u32;
        let offset = i64::try_from(self.offset).unwrap_or(i64::MAX);
        opcode::Splice::new(Fd(self.file_fd), offset, Fd(pipe.writer.as_raw_fd()), -1, len).build()
    }

    fn complete(&mut self, result: Result<u32, i32>) -> Option<Result<(), Errno>> {
        if self.blocked {
            self.blocked = false;
            return result.err().map(|errno| Err(Errno::from_raw(errno)));
        }
        if self.piped > 0 {
            match result {
                Ok(0) => return Some(Err(Errno::Reset)),
                Ok(count) => self.piped -= count,
                Err(libc::EAGAIN) => self.blocked = true,
                Err(errno) => return Some(Err(Errno::from_raw(errno))),
            }
        } else {
            match result {
                Ok(0) => return Some(Err(Errno::UnexpectedEof)),
                Ok(count) => {
                    self.piped = count;
                    self.offset += u64::from(count);
                    self.remaining -= u64::from(count);
                }
                Err(errno) => return Some(Err(Errno::from_raw(errno))),
            }
        }
        self.is_sent().then_some(Ok(()))
    }

    pub(super) fn is_sent(&self) -> bool {
        self.piped == 0 && self.remaining == 0
    }
}

impl Work {
    /// The submission that is next for this operation.
    pub(super) fn prep(&mut self) -> Entry {
        match self {
            Work::Accept { fd, .. } => {
                // Non-blocking, for splice: it asks the socket, not the submission, whether it may wait. Sends and
                // receives poll by themselves.
                opcode::AcceptMulti::new(Fd(*fd)).flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build()
            }
            Work::Receive { fd, .. } => opcode::RecvMulti::new(Fd(*fd), GROUP).build(),
            Work::Send { fd, message, .. } => match message.ranges() {
                Ranges::One(start, len) => opcode::Send::new(Fd(*fd), start, len).flags(SEND_FLAGS).build(),
                Ranges::Many(header) => {
                    opcode::SendMsg::new(Fd(*fd), header).flags(SEND_FLAGS as u32).build()
                }
            },
            Work::SendFile { transfer, .. } => transfer.prep(),
            Work::Write { fd, offset, data, durable, .. } => {
                let piece = data.len().min(PIECE_BYTES_MAX) as u32;
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(Fd(*fd), data.as_ptr(), piece).offset(*offset).rw_flags(flags).build()
            }
            Work::Read { reading, .. } => reading.prep(),
            Work::Cancel { fd, .. } => opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(*fd)).all()).build(),
            Work::Wake { wake, count } => opcode::Read::new(Fd(wake.fd()), count.get().cast(), 8).build(),
        }
    }

    /// What a completion means, for the operations that have one per submission.
    pub(super) fn complete(&mut self, cqe: &cqueue::Entry) -> Step {
        let result = u32::try_from(cqe.result()).map_err(|_| -cqe.result());
        if result == Err(libc::EINTR) {
            return Step::Again;
        }
        let done = match self {
            Work::Send { message, .. } => match result {
                Ok(count) => {
                    message.advance(count as usize);
                    message.is_sent().then_some(Outcome::Sent(Ok(())))
                }
                Err(libc::EAGAIN | libc::ENOBUFS) => None,
                Err(errno) => Some(Outcome::Sent(Err(Errno::from_raw(errno)))),
            },
            Work::SendFile { transfer, .. } => transfer.complete(result).map(Outcome::Sent),
            Work::Write { offset, data, direct, .. } => match result {
                // The device took nothing, or stopped where a direct write cannot go on.
                Ok(0) => Some(Outcome::Written(Err(Errno::Io))),
                Ok(count) => {
                    data.advance(count as usize);
                    *offset += u64::from(count);
                    if data.is_empty() {
                        Some(Outcome::Written(Ok(())))
                    } else if *direct && !(count as usize).is_multiple_of(DIRECT_ALIGN) {
                        Some(Outcome::Written(Err(Errno::Io)))
                    } else {
                        None
                    }
                }
                Err(libc::EAGAIN) => None,
                Err(errno) => Some(Outcome::Written(Err(Errno::from_raw(errno)))),
            },
            Work::Read { reading, .. } => match result {
                Ok(count) => reading.complete(count as usize).map(Outcome::Read),
                Err(libc::EAGAIN) => None,
                Err(errno) => Some(Outcome::Read(Err(Errno::from_raw(errno)))),
            },
            Work::Accept { .. } | Work::Receive { .. } | Work::Cancel { .. } | Work::Wake { .. } => {
                unreachable!("these have a handler of their own")
            }
        };
        done.map_or(Step::Again, Step::Done)
    }

    pub(super) fn socket(&self) -> Option<Slot> {
        match self {
            Work::Receive { socket, .. }
            | Work::Send { socket, .. }
            | Work::SendFile { socket, .. }
            | Work::Cancel { socket, .. } => Some(*socket),
            _ => None,
        }
    }

    pub(super) fn file(&self) -> Option<Slot> {
        match self {
            Work::SendFile { file, .. } | Work::Write { file, .. } | Work::Read { file, .. } => Some(*file),
            _ => None,
        }
    }
}
