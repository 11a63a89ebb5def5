//! Why an operation failed, as far as a caller can act on it. EINTR, EAGAIN and ENOBUFS never get here.

/// The error of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Errno {
    /// The socket or the listener was closed by us while this was pending.
    #[error("cancelled by close")]
    Cancelled,
    /// The handle was closed before this was submitted, or never was of this ring.
    #[error("the handle is closed")]
    BadHandle,
    /// The peer is gone: ECONNRESET, EPIPE, ENOTCONN, ESHUTDOWN, ECONNABORTED.
    #[error("connection reset by the peer")]
    Reset,
    /// The peer or the path to it fell silent: ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ENETDOWN.
    #[error("connection timed out")]
    TimedOut,
    /// EMFILE, ENFILE.
    #[error("too many open files: raise the limit (ulimit -n)")]
    TooManyFiles,
    /// ENOMEM.
    #[error("out of memory")]
    NoMemory,
    /// ENOSPC, EDQUOT, EFBIG.
    #[error("no space left on the device")]
    NoSpace,
    /// The file ends before the range asked for.
    #[error("the file ends before the range")]
    UnexpectedEof,
    /// EIO, and a device that took part of a write and not the rest.
    #[error("input/output error")]
    Io,
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Other(i32),
}

impl Errno {
    /// From a positive errno.
    pub(crate) fn from_raw(errno: i32) -> Errno {
        match errno {
            libc::ECANCELED => Errno::Cancelled,
            libc::EBADF => Errno::BadHandle,
            libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ESHUTDOWN | libc::ECONNABORTED => {
                Errno::Reset
            }
            libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN => Errno::TimedOut,
            libc::EMFILE | libc::ENFILE => Errno::TooManyFiles,
            libc::ENOMEM => Errno::NoMemory,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Errno::NoSpace,
            libc::EIO => Errno::Io,
            other => Errno::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_acts_on_is_told_apart() {
        for (raw, expected) in [
            (libc::ECANCELED, Errno::Cancelled),
            (libc::EPIPE, Errno::Reset),
            (libc::ECONNRESET, Errno::Reset),
            (libc::EMFILE, Errno::TooManyFiles),
            (libc::EDQUOT, Errno::NoSpace),
            (libc::EIO, Errno::Io),
            (libc::EXDEV, Errno::Other(libc::EXDEV)),
        ] {
            assert_eq!(Errno::from_raw(raw), expected);
        }
        assert!(Errno::Other(libc::EXDEV).to_string().contains("cross-device"));
    }
}
