//! Listening, connections as the ring keeps them, what a gather-send needs in memory, and the wake-up.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};

use crate::{Errno, Slot, Waker};

/// Connections that the kernel completes before we accept them; the system's own limit (somaxconn) applies too.
const BACKLOG: i32 = 4096;

/// Ranges of one sendmsg: the kernel's IOV_MAX.
const RANGES_MAX: usize = 1024;

pub(crate) struct ListenerEntry {
    pub(crate) listener: TcpListener,
    pub(crate) accept: Option<Slot>,
    pub(crate) closing: bool,
}

pub(crate) struct SocketEntry {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) receive: Option<Slot>,
    /// In order of submission; the first one is under way, or waits for a pipe.
    pub(crate) sends: VecDeque<Slot>,
    /// Set by the first send that fails: R3.
    pub(crate) send_error: Option<Errno>,
    /// Operations alive on it, the cancellation among them. The descriptor is closed only at 0, so its number cannot
    /// be reused while the kernel may still look it up.
    pub(crate) users: u32,
    /// The tag of `Close`.
    pub(crate) closing: Option<u64>,
}

/// Binds and listens with SO_REUSEADDR, which `TcpListener` sets by itself.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    // SAFETY: a plain call on a descriptor that `listener` keeps open; a second listen only changes the backlog.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(listener)
}

/// Takes over the descriptor that an accept has returned. `None` if the connection is already dead.
pub(crate) fn accepted(fd: RawFd) -> Option<(TcpStream, SocketAddr)> {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    let peer = stream.peer_addr().ok()?;
    stream.set_nodelay(true).ok()?;
    Some((stream, peer))
}

/// What is still to be sent, and the memory in which the kernel finds it described.
pub(crate) struct Message {
    parts: Vec<Bytes>,
    /// Parts before this one are sent and released.
    first: usize,
    scatter: Option<Box<Scatter>>,
}

struct Scatter {
    header: libc::msghdr,
    ranges: Vec<libc::iovec>,
}

/// The next send: either one range or several behind a header. Valid until the message changes or goes away.
pub(crate) enum Ranges {
    One(*const u8, u32),
    Many(*const libc::msghdr),
}

impl Message {
    pub(crate) fn new(parts: Vec<Bytes>) -> Message {
        let mut message = Message { parts, first: 0, scatter: None };
        message.advance(0);
        message
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.first == self.parts.len()
    }

    /// `sent` more bytes are with the kernel: what they occupied is released.
    pub(crate) fn advance(&mut self, mut sent: usize) {
        while let Some(part) = self.parts.get_mut(self.first) {
            if sent < part.len() {
                part.advance(sent);
                return;
            }
            sent -= part.len();
            *part = Bytes::new();
            self.first += 1;
        }
        assert_eq!(sent, 0, "the kernel sent no more than it was given");
    }

    /// Describes what is next. The pointers lead to the heap (parts, ranges and header), so the message may move.
    pub(crate) fn ranges(&mut self) -> Ranges {
        let parts = &self.parts[self.first..];
        if let [part] = parts {
            // A longer part is sent in several rounds.
            return Ranges::One(part.as_ptr(), u32::try_from(part.len()).unwrap_or(u32::MAX));
        }
        let scatter = self.scatter.get_or_insert_with(|| {
            // SAFETY: msghdr is a plain C struct for which all zeroes are valid: no address, no ranges, no control data.
            Box::new(Scatter { header: unsafe { std::mem::zeroed() }, ranges: Vec::new() })
        });
        scatter.ranges.clear();
        scatter.ranges.extend(
            parts
                .iter()
                .filter(|part| !part.is_empty())
                .take(RANGES_MAX)
                .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }),
        );
        scatter.header.msg_iov = scatter.ranges.as_mut_ptr();
        scatter.header.msg_iovlen = scatter.ranges.len();
        Ranges::Many(&raw const scatter.header)
    }
}

/// The eventfd behind a [`Waker`].
pub(crate) struct Wake {
    event: File,
    pending: AtomicBool,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Arc<Wake>> {
        // Blocking, as a read of it through the ring would otherwise end at once with EAGAIN.
        // SAFETY: a plain call; the descriptor it returns is ours alone.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        Ok(Arc::new(Wake { event, pending: AtomicBool::new(false) }))
    }

    pub(crate) fn waker(self: &Arc<Wake>) -> Waker {
        let wake = Arc::clone(self);
        Waker::new(move || {
            // One write per wake-up that was taken: it cannot fill the counter, so it cannot block.
            if !wake.pending.swap(true, Ordering::AcqRel) {
                // It cannot fail either, the descriptor is open and 8 bytes are what it takes.
                let _ = (&wake.event).write_all(&1u64.to_ne_bytes());
            }
        })
    }

    /// The ring has read the event. What was done before `wake` is seen after this.
    pub(crate) fn taken(&self) {
        self.pending.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths that the next send would cover.
    fn lengths(message: &mut Message) -> Vec<usize> {
        match message.ranges() {
            Ranges::One(_, len) => vec![len as usize],
            Ranges::Many(_) => {
                message.scatter.as_ref().unwrap().ranges.iter().map(|range| range.iov_len).collect()
            }
        }
    }

    fn part(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[test]
    fn a_message_advances_over_parts_and_into_them() {
        let mut message = Message::new(vec![part(0), part(10), part(0), part(5), part(7)]);
        assert_eq!(lengths(&mut message), [10, 5, 7]);
        message.advance(3);
        assert_eq!(lengths(&mut message), [7, 5, 7]);
        message.advance(13);
        assert_eq!(lengths(&mut message), [6]);
        assert!(!message.is_sent());
        message.advance(6);
        assert!(message.is_sent());
    }

    #[test]
    fn nothing_to_send_is_sent() {
        assert!(Message::new(vec![]).is_sent());
        assert!(Message::new(vec![part(0), part(0)]).is_sent());
    }

    #[test]
    fn more_parts_than_the_kernel_takes_go_in_rounds() {
        let mut message = Message::new((0..2500).map(|_| part(2)).collect());
        let mut rounds = Vec::new();
        while !message.is_sent() {
            let round = lengths(&mut message);
            rounds.push(round.len());
            message.advance(round.iter().sum());
        }
        assert_eq!(rounds, [1024, 1024, 452]);
    }
}
