//! The memory of a running process, read as root reads it: every page that is there, and what of a list lies in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Bytes read at a time.
const STEP: u64 = 1 << 20;
/// Set in an entry of `/proc/PID/pagemap` when the page is in memory, or in swap.
const PRESENT: u64 = (1 << 63) | (1 << 62);

/// One thing to look for.
#[derive(Debug, Clone)]
pub(crate) struct Needle {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// One place where one was found.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) name: String,
    /// The mapping, such as `[heap]`, `[stack]` or nothing.
    pub(crate) region: String,
    pub(crate) address: u64,
    /// What lies there and after it, 48 bytes at most.
    pub(crate) bytes: Vec<u8>,
    /// What lies before it, 48 bytes at most.
    pub(crate) before: Vec<u8>,
}

/// What a look at a process has found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) hits: Vec<Hit>,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// Mappings that the kernel shows to nobody.
    pub(crate) secret: Vec<String>,
}

impl Scan {
    /// Returns what was found of one kind of needle: those whose name begins so.
    pub(crate) fn of(&self, name: &str) -> Vec<&Hit> {
        self.hits.iter().filter(|hit| hit.name.starts_with(name)).collect()
    }
}

/// Looks for needles in all memory of a process, but not in pages that are locked and left out of dumps: keys may lie there.
///
/// # Errors
/// The system does not let us read it.
pub(crate) fn scan(pid: u32, needles: &[Needle]) -> io::Result<Scan> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let longest = needles.iter().map(|needle| needle.bytes.len() as u64).max().unwrap_or(1);
    let mut found = Scan::default();
    for region in regions(pid)? {
        if region.is_locked {
            continue;
        }
        for (from, to) in present(&pagemap, &region)? {
            let mut at = from;
            while at < to {
                // What begins in this step may end in the next.
                let mut bytes = vec![0; usize::try_from((at + STEP + longest).min(to) - at).unwrap()];
                match memory.read_at(&mut bytes, at) {
                    Ok(read) => bytes.truncate(read),
                    // The mapping went meanwhile, or is shown to nobody.
                    Err(error) if error.raw_os_error() == Some(5) => {
                        if !found.secret.contains(&region.name) {
                            found.secret.push(region.name.clone());
                        }
                        break;
                    }
                    Err(error) => return Err(error),
                }
                found.bytes += bytes.len() as u64;
                look(&bytes, at, &region.name, needles, &mut found.hits);
                at += STEP;
            }
        }
    }
    Ok(found)
}

fn look(bytes: &[u8], at: u64, region: &str, needles: &[Needle], hits: &mut Vec<Hit>) {
    for needle in needles {
        for place in memchr::memmem::find_iter(bytes, &needle.bytes) {
            hits.push(Hit {
                name: needle.name.clone(),
                region: region.to_owned(),
                address: at + place as u64,
                bytes: bytes[place..(place + 48).min(bytes.len())].to_vec(),
                before: bytes[place.saturating_sub(48)..place].to_vec(),
            });
        }
    }
}

/// One mapping that the process can read.
struct Region {
    from: u64,
    to: u64,
    name: String,
    /// By `mlock`, and left out of dumps: where keys lie without `memfd_secret`.
    is_locked: bool,
}

fn regions(pid: u32) -> io::Result<Vec<Region>> {
    let mut regions: Vec<Region> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag| flags.split(' ').any(|found| found == flag);
            let region = regions.last_mut().unwrap();
            // Those of memfd_secret have the same flags; that they cannot be read is part of the test.
            region.is_locked = has("lo") && has("dd") && !region.name.contains("secretmem");
        } else if let Some(region) = begins_region(line) {
            regions.push(region);
        }
    }
    // Pages of the kernel's own.
    regions.retain(|region| !region.name.starts_with("[v"));
    Ok(regions)
}

/// Reads `7f…-7f… rw-p offset device inode   name`.
fn begins_region(line: &str) -> Option<Region> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let bound = |text| u64::from_str_radix(text, 16).ok();
    let name = rest.split_whitespace().skip(4).collect::<Vec<_>>().join(" ");
    Some(Region { from: bound(from)?, to: bound(to)?, name, is_locked: false })
}

/// Returns the runs of pages that are there: a program reserves far more than it has.
fn present(pagemap: &File, region: &Region) -> io::Result<Vec<(u64, u64)>> {
    let pages = (region.to - region.from) / PAGE;
    let mut entries = vec![0; usize::try_from(pages * 8).unwrap()];
    let read = pagemap.read_at(&mut entries, region.from / PAGE * 8)?;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (page, entry) in (0..).zip(entries[..read].as_chunks::<8>().0) {
        if u64::from_ne_bytes(*entry) & PRESENT == 0 {
            continue;
        }
        let from = region.from + page * PAGE;
        match runs.last_mut() {
            Some((_, to)) if *to == from => *to = from + PAGE,
            _ => runs.push((from, from + PAGE)),
        }
    }
    Ok(runs)
}
