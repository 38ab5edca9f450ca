//! What a process has used, as the kernel counts it (`proc(5)`).

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The kernel's unit of CPU time towards programs; 100 a second on every Linux of today.
const TICKS_PER_SEC: u64 = 100;
/// Files that the generator itself needs open: terminal, timers, the server's counters.
const SPARE_FILES: u64 = 32;

/// A process that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// Watches process `pid`.
    pub(crate) fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Returns user and system time of all its threads so far, in steps of 10 ms.
    pub(crate) fn cpu(self) -> anyhow::Result<Duration> {
        let stat = self.read("stat")?;
        parse_cpu(&stat).with_context(|| format!("/proc/{}/stat has an unknown form", self.0))
    }

    /// Returns its resident memory in KiB.
    pub(crate) fn resident_kib(self) -> anyhow::Result<u64> {
        let status = self.read("status")?;
        parse_resident(&status).with_context(|| format!("/proc/{}/status has an unknown form", self.0))
    }

    /// Returns how many files and sockets it has open; `None` where that may not be seen.
    pub(crate) fn open_files(self) -> Option<usize> {
        Some(fs::read_dir(format!("/proc/{}/fd", self.0)).ok()?.count())
    }

    fn read(self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.0);
        fs::read_to_string(&path).with_context(|| format!("read {path}: is the server's process id right?"))
    }
}

/// Raises the limit of open files as far as it may be: that of this process, and of a server that it starts.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where it cannot be raised, the check says what is missing.
    let _is_raised = setrlimit(Resource::Nofile, raised).is_ok();
}

/// Checks that this process may open a connection for each of `calls`.
pub(crate) fn check_open_files(calls: u32) -> anyhow::Result<()> {
    // Where the limit cannot be read, a call will say so when it fails.
    let Some(limit) = fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(parse_open_files)
    else {
        return Ok(());
    };
    let needed = u64::from(calls) + SPARE_FILES;
    ensure!(
        limit >= needed,
        "{calls} calls need {needed} open files, {limit} are allowed: raise `ulimit -n`"
    );
    Ok(())
}

/// Fields 14 and 15; the second field is the program's name in brackets and may hold anything.
fn parse_cpu(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SEC))
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn parse_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_counters_are_read() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 500 0 3 0 250 75 9 9 20 0 3 0 1234 99 88";
        assert_eq!(parse_cpu(stat), Some(Duration::from_millis(3_250)));
        assert_eq!(parse_cpu("42 (a) S 1"), None);
        assert_eq!(parse_resident("VmPeak:\t 9 kB\nVmRSS:\t   12345 kB\n"), Some(12_345));
        assert_eq!(parse_resident("VmPeak:\t 9 kB\n"), None);
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(parse_open_files(limits), Some(1024));
    }

    #[test]
    fn this_process_can_be_watched() {
        let this = Process::new(std::process::id());
        this.cpu().unwrap();
        assert!(this.resident_kib().unwrap() > 100);
        assert!(this.open_files() > Some(2));
        assert!(check_open_files(1).is_ok() && check_open_files(u32::MAX).is_err());
    }
}
