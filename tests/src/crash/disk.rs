//! A file system of our own on a loop device, and its power switch.
//!
//! The switch is the shutdown call of ext4 and xfs (`EXT4_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`, with "do not flush the
//! journal"): from that moment nothing reaches the device any more, and what was only in memory is lost with the
//! unmount, as with the power of the whole machine. The drive's own cache is not modelled.
//!
//! Rust's standard library has no ioctl without `unsafe`, so a helper makes the call: Python or Perl, one of which
//! every Linux has. It is started beforehand and waits for a line, so that the cut comes within microseconds.

use super::Failure;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long an unmount is tried: a killed process's ring lets go of its files a little later than the process ends.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);

const PYTHON: &str = "\
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print('armed', flush=True)
if sys.stdin.readline():
    fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))
    print('cut', flush=True)
";

const PERL: &str = r#"
$| = 1;
open(my $root, "<", $ARGV[0]) or die "$!";
print "armed\n";
if (defined(<STDIN>)) {
    ioctl($root, 0x8004587D, pack("L", 2)) or die "$!";
    print "cut\n";
}
"#;

/// A mounted loop device with a file system. Dropping it unmounts.
pub struct LoopDisk {
    image: PathBuf,
    mount_point: PathBuf,
    is_mounted: bool,
    helper: &'static [&'static str],
    pub unmount_retries: u64,
}

/// A helper that waits for the word to cut.
pub struct Cutter {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl LoopDisk {
    /// Makes and mounts a file system below `dir`. An error says what this machine lacks for it.
    pub fn create(dir: &Path, file_system: &str, bytes: u64) -> Result<Self, Failure> {
        let effective_user = fs::read_to_string("/proc/self/status")?
            .lines()
            .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1).map(str::to_owned));
        if effective_user.as_deref() != Some("0") {
            return Err(Failure("mounting a file system needs root".to_owned()));
        }
        if !Path::new("/dev/loop-control").exists() {
            return Err(Failure("this machine has no loop devices (/dev/loop-control)".to_owned()));
        }
        let helpers: [&'static [&'static str]; 2] = [&["python3", "-c", PYTHON], &["perl", "-e", PERL]];
        let works = |helper: &&'static [&'static str]| {
            let nothing = if helper[1] == "-c" { "pass" } else { "0" };
            run(Command::new(helper[0]).args([helper[1], nothing])).is_ok()
        };
        let helper = helpers.into_iter().find(works).ok_or_else(|| {
            Failure("neither python3 nor perl is there to make the shutdown call".to_owned())
        })?;
        unmount_leftovers(dir);
        let image = dir.join(format!("{file_system}.img"));
        let mount_point = dir.join(file_system);
        fs::create_dir_all(&mount_point)?;
        fs::File::create(&image)?.set_len(bytes)?;
        let make = format!("mkfs.{file_system}");
        run(Command::new(&make).arg("-q").arg(&image)).map_err(Failure::during(&make))?;
        let mut disk = Self { image, mount_point, is_mounted: false, helper, unmount_retries: 0 };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Makes the power switch ready.
    pub fn arm(&self) -> Result<Cutter, Failure> {
        let mut command = Command::new(self.helper[0]);
        command.args(&self.helper[1..]).arg(&self.mount_point);
        // Ctrl-C is for this program alone, here and in `run`.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or_else(|| Failure("the helper has no pipes".to_owned()))?;
        let mut cutter = Cutter { child, stdin, stdout: BufReader::new(stdout) };
        cutter.expect("armed\n")?;
        Ok(cutter)
    }

    /// Power is back: what is on the device, and nothing else. The processes that used it must have been killed.
    pub fn power_on(&mut self) -> Result<(), Failure> {
        self.unmount()?;
        self.mount()
    }

    fn mount(&mut self) -> Result<(), Failure> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount_point))
            .map_err(Failure::during("mount"))?;
        self.is_mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + UNMOUNT_PATIENCE;
        loop {
            match run(Command::new("umount").arg(&self.mount_point)) {
                Ok(()) => break,
                Err(failure) if Instant::now() > deadline => return Err(Failure::during("umount")(failure)),
                Err(_) => self.unmount_retries += 1,
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            // It goes away with its last user; the loop device goes with it.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount_point));
        }
    }
}

impl Cutter {
    /// Cuts the power; returns when it is off.
    pub fn cut(mut self) -> Result<(), Failure> {
        self.stdin.write_all(b"now\n")?;
        self.expect("cut\n")
    }

    fn expect(&mut self, word: &str) -> Result<(), Failure> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line == word {
            return Ok(());
        }
        Err(Failure(format!("the helper that makes the shutdown call said {line:?} instead of {word:?}")))
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        // It holds the file system until it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Unmounts what an earlier run that was killed left below the folder of `dir`.
fn unmount_leftovers(dir: &Path) {
    let (Some(parent), Ok(mounts)) = (dir.parent(), fs::read_to_string("/proc/self/mounts")) else { return };
    for mount in mounts.lines().filter_map(|line| line.split_whitespace().nth(1)) {
        let owner =
            Path::new(mount).strip_prefix(parent).ok().and_then(|below| owner_of(below.iter().next()?));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = run(Command::new("umount").arg("--lazy").arg(mount));
        }
    }
}

/// The process that made a `crash-<pid>-<number>`.
fn owner_of(folder: &OsStr) -> Option<&str> {
    let (pid, _) = folder.to_str()?.strip_prefix("crash-")?.split_once('-')?;
    Some(pid)
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.process_group(0).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure(format!("{}: {}", output.status, said.trim())))
}
