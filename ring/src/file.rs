//! Files, and the pipes through which a file goes to a socket.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{Access, DIRECT_ALIGN, OpenMode};

/// What a pipe holds, if the system lets us: less makes `SendFile` slower, not wrong.
pub(crate) const PIPE_BYTES: u32 = 256 << 10;

/// Pipes that are kept for reuse.
const PIPES_IDLE_MAX: usize = 16;

pub(crate) struct FileEntry {
    pub(crate) file: File,
    pub(crate) direct: bool,
    /// Operations alive on it.
    pub(crate) users: u32,
    pub(crate) closing: bool,
}

/// `O_CLOEXEC` comes with the standard library.
pub(crate) fn open(path: &Path, mode: OpenMode) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(mode.access == Access::Write);
    if mode.direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options.open(path)
}

/// What direct I/O on a file must be aligned to, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectAlignment {
    /// Of memory addresses.
    pub memory: u32,
    /// Of file offsets and lengths.
    pub offset: u32,
}

/// What direct I/O on this file must be aligned to, as the kernel says (Linux 6.1 or later); `None` if the file takes
/// no direct I/O. A kernel that does not say gets the answer that is right for every common disk: a page in memory,
/// 512 bytes in the file. This crate always aligns to [`DIRECT_ALIGN`], so a file that asks for more than that is
/// to be opened without `direct`.
pub fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    // SAFETY: statx is a plain C struct for which all zeroes are valid.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string literal, the descriptor is open, and the kernel writes one `statx` to `answer`.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if answer.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(Some(DirectAlignment { memory: DIRECT_ALIGN as u32, offset: 512 }));
    }
    let alignment = DirectAlignment { memory: answer.stx_dio_mem_align, offset: answer.stx_dio_offset_align };
    Ok(if alignment.offset == 0 { None } else { Some(alignment) })
}

pub(crate) struct Pipe {
    pub(crate) reader: PipeReader,
    pub(crate) writer: PipeWriter,
}

/// At most `max` pipes, of which the empty ones are reused.
pub(crate) struct Pipes {
    idle: Vec<Pipe>,
    made: usize,
    max: usize,
}

impl Pipes {
    pub(crate) fn new(max: usize) -> Pipes {
        assert!(max > 0, "pipes_max: SendFile needs at least one pipe");
        Pipes { idle: Vec::new(), made: 0, max }
    }

    /// `Ok(None)` if all are in use.
    pub(crate) fn take(&mut self) -> io::Result<Option<Pipe>> {
        if let Some(pipe) = self.idle.pop() {
            return Ok(Some(pipe));
        }
        if self.made == self.max {
            return Ok(None);
        }
        let (reader, writer) = io::pipe()?;
        // A refusal leaves the size as it is, which is fine.
        // SAFETY: a plain call with an integer argument on a descriptor that `writer` keeps open.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        self.made += 1;
        Ok(Some(Pipe { reader, writer }))
    }

    pub(crate) fn any_free(&self) -> bool {
        !self.idle.is_empty() || self.made < self.max
    }

    /// A pipe with bytes left in it is dropped, so that they can never reach another socket.
    pub(crate) fn give_back(&mut self, pipe: Pipe, bytes_left: u32) {
        if bytes_left == 0 && self.idle.len() < PIPES_IDLE_MAX {
            self.idle.push(pipe);
        } else {
            self.made -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_with_bytes_in_it_is_never_reused() {
        let mut pipes = Pipes::new(1);
        let first = pipes.take().unwrap().unwrap();
        assert!(pipes.take().unwrap().is_none());
        let reader = first.reader.as_raw_fd();
        pipes.give_back(first, 0);
        let again = pipes.take().unwrap().unwrap();
        assert_eq!(again.reader.as_raw_fd(), reader);
        pipes.give_back(again, 1);
        assert!(pipes.idle.is_empty());
        assert!(pipes.take().unwrap().is_some());
    }

    #[test]
    fn a_directory_takes_no_direct_io_and_a_file_says_what_it_takes() {
        let exe = File::open(std::env::current_exe().unwrap()).unwrap();
        if let Some(alignment) = direct_alignment(&exe).unwrap() {
            assert!(alignment.offset.is_power_of_two() && alignment.memory.is_power_of_two());
        }
    }
}
