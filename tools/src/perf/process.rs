//! CPU and memory of a process, from /proc.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

/// Linux counts the CPU time it shows in units of 10 ms (USER_HZ) on every architecture that RingMQ runs on.
const TICK_US: u64 = 10_000;

/// A process whose use of CPU is measured between two moments.
#[derive(Debug)]
pub(super) struct Watched {
    pid: u32,
}

/// What a process had used at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    user_us: u64,
    system_us: u64,
    peak_rss_bytes: u64,
    /// Thread → its name, and what it had used, user and system.
    threads: BTreeMap<u32, (String, u64)>,
}

/// What a process used between two moments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Used {
    pub(super) pid: u32,
    pub(super) user_us: u64,
    pub(super) system_us: u64,
    /// The highest since the process began.
    pub(super) peak_rss_bytes: u64,
    /// CPU of the threads that used any, user and system, those of one name together.
    pub(super) threads: Vec<ThreadUsed>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ThreadUsed {
    pub(super) name: String,
    pub(super) cpu_us: u64,
}

impl Watched {
    /// # Errors
    /// If there is no such process, or it may not be looked at.
    pub(super) fn new(pid: u32) -> Result<Self, String> {
        let watched = Self { pid };
        match watched.usage() {
            Some(_) => Ok(watched),
            None => Err(format!("--broker-pid: there is no process {pid} that may be looked at")),
        }
    }

    /// The process that calls.
    pub(super) fn this() -> Self {
        Self { pid: std::process::id() }
    }

    /// `None` once the process is gone.
    pub(super) fn usage(&self) -> Option<Usage> {
        let directory = format!("/proc/{}", self.pid);
        let (_, user_us, system_us) = parse_stat(&fs::read_to_string(format!("{directory}/stat")).ok()?)?;
        let peak_rss_bytes = parse_peak(&fs::read_to_string(format!("{directory}/status")).ok()?)?;
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("{directory}/task")).ok()?.flatten() {
            // A thread that ends meanwhile is left out; the sums of the process have it.
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let stat = fs::read_to_string(entry.path().join("stat")).ok();
            if let Some((id, (name, user, system))) = id.zip(stat.as_deref().and_then(parse_stat)) {
                threads.insert(id, (name.to_string(), user + system));
            }
        }
        Some(Usage { user_us, system_us, peak_rss_bytes, threads })
    }

    pub(super) fn used(&self, begin: &Usage, end: &Usage) -> Used {
        // Workers of the kernel come and go under one name.
        let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
        for (id, (name, cpu_us)) in &end.threads {
            let before = begin.threads.get(id).map_or(0, |(_, before)| *before);
            *by_name.entry(name).or_default() += cpu_us.saturating_sub(before);
        }
        let used = by_name.into_iter().filter(|(_, cpu_us)| *cpu_us > 0);
        let threads = used.map(|(name, cpu_us)| ThreadUsed { name: name.to_string(), cpu_us });
        Used {
            pid: self.pid,
            user_us: end.user_us.saturating_sub(begin.user_us),
            system_us: end.system_us.saturating_sub(begin.system_us),
            peak_rss_bytes: end.peak_rss_bytes,
            threads: threads.collect(),
        }
    }
}

/// Name, user and system time in µs. The name stands in parentheses and may have any character, those too.
fn parse_stat(stat: &str) -> Option<(&str, u64, u64)> {
    let (start, end) = (stat.find('(')? + 1, stat.rfind(')')?);
    let mut fields = stat.get(end + 1..)?.split_ascii_whitespace();
    // The first field behind the name is number 3 of the file; the times are 14 and 15.
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((stat.get(start..end)?, user * TICK_US, system * TICK_US))
}

/// The peak of resident memory, in bytes.
fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_parentheses_and_spaces() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 12 34 0 0 20 0 1 0 100 1000 10";
        assert_eq!(parse_stat(stat), Some(("a) b (c", 120_000, 340_000)));
        assert_eq!(parse_stat("7 (a S 1"), None);
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn the_peak_is_in_bytes() {
        assert_eq!(parse_peak("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2_097_152));
        assert_eq!(parse_peak("Name:\tx\n"), None);
    }

    #[test]
    fn only_what_was_used_in_between_counts() {
        let usage = |user_us, threads: &[(u32, &str, u64)]| Usage {
            user_us,
            system_us: 10,
            peak_rss_bytes: 5,
            threads: threads.iter().map(|(id, name, cpu)| (*id, (name.to_string(), *cpu))).collect(),
        };
        let begin = usage(100, &[(1, "idle", 40), (2, "busy", 60), (3, "gone", 9)]);
        let end = usage(400, &[(1, "idle", 40), (2, "busy", 250), (4, "new", 60), (5, "busy", 50)]);
        let used = Watched { pid: 7 }.used(&begin, &end);
        assert_eq!((used.user_us, used.system_us, used.peak_rss_bytes), (300, 0, 5));
        let threads: Vec<_> = used.threads.iter().map(|thread| (&*thread.name, thread.cpu_us)).collect();
        assert_eq!(threads, [("busy", 240), ("new", 60)]);
    }
}
