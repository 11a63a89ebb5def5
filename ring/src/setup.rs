//! Making a ring, saying clearly why there is none, and placing the thread that runs it.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};

use crate::buffers::BufferRing;

/// Bounds of one ring. [`Config::default`] suits a shard.
#[derive(Clone, Debug)]
pub struct Config {
    /// Submissions that fit one system call; more are submitted in several. The completion queue is eight times that.
    pub entries: u32,
    /// A power of two up to 32768. Times `recv_buffer_bytes` it should stay within the L2 cache of a core.
    pub recv_buffer_count: u16,
    /// With `recv_incremental` few large ones are best: more of what one peer sends lies in one piece.
    pub recv_buffer_bytes: u32,
    /// Let the kernel fill a receive buffer piece by piece, so that a small receive does not use up a whole one: about a
    /// tenth less CPU. Linux 6.12 or later; before, there are as many buffers of `RECV_WHOLE_BYTES` as take the same memory.
    pub recv_incremental: bool,
    /// `SendFile`s that can be under way at the same time; the others wait for their turn. Each holds a pipe, that is
    /// two file descriptors.
    pub pipes_max: usize,
    /// How long a turn without anything to do looks for completions before it sleeps. Waking a sleeping core takes tens of
    /// microseconds, which this saves whoever comes within that time; it costs as much CPU each time somebody does not.
    pub spin: Duration,
    /// Kernel threads for what cannot be done without waiting, splices and buffered writes, of each of two kinds.
    pub kernel_workers_max: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            entries: 256,
            recv_buffer_count: 2,
            recv_buffer_bytes: 256 << 10,
            recv_incremental: true,
            pipes_max: 256,
            spin: Duration::ZERO,
            kernel_workers_max: 4,
        }
    }
}

/// Most that a receive buffer has that one receive uses up, however little it brings.
const RECV_WHOLE_BYTES: u32 = 16 << 10;

/// Why there is no ring, and what to do about it, in one line.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(
        "io_uring is switched off on this host (kernel.io_uring_disabled = {value}): \
         allow it with `sysctl -w kernel.io_uring_disabled=0`"
    )]
    Disabled { value: u32 },
    #[error(
        "io_uring is forbidden to this process, most likely by the seccomp profile of its container: \
         run it with a profile that allows io_uring_setup, io_uring_enter and io_uring_register \
         (docker: --security-opt seccomp=unconfined)"
    )]
    Forbidden,
    #[error(
        "too little locked memory for an io_uring (limit {limit}): raise it \
         (`ulimit -l`, LimitMEMLOCK= of systemd, docker: --ulimit memlock=-1)"
    )]
    LockedMemory { limit: String },
    #[error("the kernel ({release}) is too old, it lacks {missing}: Linux 6.0 or later is needed")]
    KernelTooOld { release: String, missing: &'static str },
    #[error("too many open files: raise the limit (`ulimit -n`, LimitNOFILE= of systemd)")]
    TooManyFiles,
    #[error("cannot set up an io_uring: {0}")]
    Other(io::Error),
}

/// What else is known of the host when `io_uring_setup` fails.
#[derive(Clone, Debug, Default)]
struct Host {
    /// `kernel.io_uring_disabled`, where the kernel has it (6.6 or later).
    disabled: Option<u32>,
    release: String,
    locked_memory: String,
}

impl Host {
    fn read() -> Host {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_string();
        let limits = line("/proc/self/limits");
        let locked = limits.lines().find_map(|limit| limit.strip_prefix("Max locked memory"));
        Host {
            disabled: line("/proc/sys/kernel/io_uring_disabled").parse().ok(),
            release: line("/proc/sys/kernel/osrelease"),
            locked_memory: locked
                .and_then(|rest| rest.split_whitespace().next())
                .unwrap_or("unknown")
                .to_string(),
        }
    }

    /// `(6, 1)` of `6.1.0-13-amd64`.
    fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    fn explain(self, error: io::Error) -> SetupError {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match self.disabled {
                Some(value @ 1..) => SetupError::Disabled { value },
                _ => SetupError::Forbidden,
            },
            // A filter may also answer as if the call did not exist; the kernel's age tells the two apart.
            Some(libc::ENOSYS) if self.version() >= (5, 1) => SetupError::Forbidden,
            Some(libc::ENOSYS) => SetupError::KernelTooOld { release: self.release, missing: "io_uring" },
            Some(libc::ENOMEM) => SetupError::LockedMemory { limit: self.locked_memory },
            Some(libc::EMFILE | libc::ENFILE) => SetupError::TooManyFiles,
            _ => SetupError::Other(error),
        }
    }
}

/// An io_uring for the calling thread alone, with every operation this crate uses.
pub(crate) fn build(config: &Config) -> Result<IoUring, SetupError> {
    let explain = |error| Host::read().explain(error);
    let ring = create(config).map_err(explain)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(explain)?;
    let too_old = |missing| SetupError::KernelTooOld { release: Host::read().release, missing };
    for (code, missing) in [
        (opcode::AcceptMulti::CODE, "accept on io_uring"),
        (opcode::SendMsg::CODE, "sendmsg on io_uring"),
        (opcode::Splice::CODE, "splice on io_uring"),
        (opcode::AsyncCancel2::CODE, "cancellation on io_uring"),
        // Multishot receive has no code of its own. It came with this operation, in 6.0.
        (opcode::SendZc::CODE, "multishot receive on io_uring"),
    ] {
        if !probe.is_supported(code) {
            return Err(too_old(missing));
        }
    }
    if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        return Err(too_old("waiting with a timeout on io_uring"));
    }
    let mut workers = [config.kernel_workers_max; 2];
    ring.submitter().register_iowq_max_workers(&mut workers).map_err(explain)?;
    Ok(ring)
}

/// Registers the receive buffers, incremental ones if they are wanted and the kernel has them.
pub(crate) fn buffers(config: &Config, ring: &IoUring) -> Result<BufferRing, SetupError> {
    let (count, bytes) = (config.recv_buffer_count, config.recv_buffer_bytes);
    let result = match BufferRing::register(ring, count, bytes, config.recv_incremental) {
        Err(error) if config.recv_incremental && error.raw_os_error() == Some(libc::EINVAL) => {
            let (count, bytes) = whole_buffers(count, bytes);
            BufferRing::register(ring, count, bytes, false)
        }
        result => result,
    };
    result.map_err(|error| Host::read().explain(error))
}

/// Number and size of buffers of which each is used up by one receive, instead of these.
fn whole_buffers(mut count: u16, mut bytes: u32) -> (u16, u32) {
    while bytes > RECV_WHOLE_BYTES && count < 1 << 15 {
        (count, bytes) = (count * 2, bytes.div_ceil(2));
    }
    (count, bytes)
}

/// DEFER_TASKRUN (6.1) runs completions when we ask for them, and only then: no interruption of the shard's thread, and
/// batches. Without it COOP_TASKRUN at least spares the interrupt.
fn create(config: &Config) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_submit_all().setup_cqsize(config.entries.saturating_mul(8));
    let mut deferred = builder.clone();
    match deferred.setup_single_issuer().setup_defer_taskrun().build(config.entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            builder.setup_single_issuer().setup_coop_taskrun().build(config.entries)
        }
        result => result,
    }
}

/// The cores this process may run on, ascending.
pub fn available_cores() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size_of_val(&set)` bytes to `set`, which lives until the call returns.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index is below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Lets the calling thread run on this core only. Kernel workers of a ring made afterwards stay there too.
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no core {core}")));
    }
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is below CPU_SETSIZE; the kernel only reads `set`, which lives until the call returns.
    let result = unsafe {
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(errno: i32, host: &Host) -> String {
        let line = host.clone().explain(io::Error::from_raw_os_error(errno)).to_string();
        assert!(!line.contains('\n'));
        line
    }

    #[test]
    fn each_reason_has_its_own_advice() {
        let host =
            Host { disabled: Some(0), release: "6.8.0-49-generic".into(), locked_memory: "65536".into() };
        let switched_off = Host { disabled: Some(2), ..host.clone() };
        let old = Host { disabled: None, release: "4.19.0".into(), ..host.clone() };
        for (errno, host, expected) in [
            (libc::EPERM, &switched_off, "sysctl -w kernel.io_uring_disabled=0"),
            (libc::EPERM, &host, "seccomp"),
            (libc::ENOSYS, &host, "seccomp"),
            (libc::ENOSYS, &old, "the kernel (4.19.0) is too old, it lacks io_uring: Linux 6.0"),
            (libc::ENOMEM, &host, "(limit 65536): raise it (`ulimit -l`"),
            (libc::EMFILE, &host, "ulimit -n"),
            (libc::EINVAL, &host, "Invalid argument"),
        ] {
            let line = explained(errno, host);
            assert!(line.contains(expected), "{errno}: {line}");
        }
    }

    #[test]
    fn buffers_that_are_used_up_by_one_receive_are_small() {
        assert_eq!(whole_buffers(2, 256 << 10), (32, 16 << 10));
        assert_eq!(whole_buffers(4, 4096), (4, 4096));
        assert_eq!(whole_buffers(1 << 14, 1 << 20), (1 << 15, 1 << 19));
    }

    #[test]
    fn the_version_of_a_release() {
        for (release, expected) in [("6.1.0-13-amd64", (6, 1)), ("5.15", (5, 15)), ("", (0, 0))] {
            assert_eq!(Host { release: release.into(), ..Host::default() }.version(), expected);
        }
        assert!(Host::read().version() > (0, 0));
    }

    #[test]
    fn a_thread_can_be_pinned_to_a_core_it_may_use() {
        std::thread::spawn(|| {
            let core = *available_cores().unwrap().last().unwrap();
            pin_current_thread(core).unwrap();
            assert_eq!(available_cores().unwrap(), [core]);
            assert!(pin_current_thread(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }
}
