//! Locked memory for keys: pages that reach neither swap nor core dumps and, where the kernel has `memfd_secret`, that nobody
//! but this process can read, root's debugger included.
//!
//! Knows pages and places of 32 bytes. Must not know which keys lie there. Grows by 64 KiB as keys come, up to
//! 4 MiB or the limit of the system (`RLIMIT_MEMLOCK`), and keeps what it has for as long as the process lives. When
//! no place is left, keys lie on the heap, which is counted and logged, or refused: see [`LockedMemory::require`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use metrics::{counter, gauge};

use crate::domain::cmr::{KEY_BYTES, KeyMemory, KeyPlace, keep_keys_in};
use crate::observe::metrics as names;

/// Bytes that are locked at a time: 2,048 keys. Many systems let a process lock no more than this.
const CHUNK_BYTES: usize = 64 * 1024;
/// 131,072 keys in 4 MiB, half of what systemd lets a service lock. A call has two at a time, one more for each listener.
const MAX_CHUNKS: usize = 64;
/// Places that are kept for what runs already, where keys must lie in locked memory: a running call needs a new key every few
/// seconds, and is not to be cut off by a new one.
const KEPT_BACK: usize = 256;

static MEMORY: LazyLock<LockedMemory> = LazyLock::new(LockedMemory::default);

/// How pages are kept from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `memfd_secret`: locked, and out of the kernel's own reach.
    Secret,
    /// `mlock`, and left out of core dumps and of children.
    Locked,
}

impl Kind {
    /// Returns the name of the system call, as logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "memfd_secret",
            Self::Locked => "mlock",
        }
    }
}

/// A key is refused, because it would not lie in locked memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no locked memory is left for keys; raise the limit of locked memory (LimitMEMLOCK, ulimit -l)")]
pub struct NoRoom;

/// What locked memory there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How the pages are kept.
    pub kind: Kind,
    /// How many keys fit before the system's limit and our own.
    pub keys: usize,
}

/// Pages for keys. One serves the whole process, see [`memory`].
#[derive(Default)]
pub struct LockedMemory {
    state: Mutex<State>,
    is_required: AtomicBool,
}

#[derive(Default)]
struct State {
    free: Vec<KeyPlace>,
    /// How each chunk is kept.
    chunks: Vec<Kind>,
    /// Whether the log has told that there is no more.
    is_told: bool,
}

/// Returns the locked memory of this process, in which keys lie from now on.
pub fn memory() -> &'static LockedMemory {
    let memory = &*MEMORY;
    keep_keys_in(memory);
    memory
}

impl LockedMemory {
    /// Locks the first pages, unless that was done before.
    ///
    /// # Errors
    /// The system refuses.
    pub fn prepare(&self) -> io::Result<Report> {
        let mut state = self.state();
        if state.chunks.is_empty() {
            state.grow()?;
        }
        let kind = if state.chunks.contains(&Kind::Locked) { Kind::Locked } else { Kind::Secret };
        Ok(Report { kind, keys: capacity() })
    }

    /// From now on no key may begin its life outside of locked memory.
    ///
    /// # Errors
    /// The system gives none.
    pub fn require(&self) -> io::Result<()> {
        self.is_required.store(true, Ordering::Relaxed);
        self.prepare().map(drop)
    }

    /// Asks whether a key may be made or opened. What runs already goes on: its next keys are never refused, only counted.
    ///
    /// # Errors
    /// [`NoRoom`], where locked memory is required.
    pub fn admit(&self) -> Result<(), NoRoom> {
        if !self.is_required.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state();
        while state.free.len() <= KEPT_BACK {
            state.grow().map_err(|_| NoRoom)?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyMemory for LockedMemory {
    fn lend(&self) -> Option<KeyPlace> {
        let mut state = self.state();
        if state.free.is_empty()
            && let Err(error) = state.grow()
        {
            counter!(names::KEYS_UNLOCKED).increment(1);
            if !std::mem::replace(&mut state.is_told, true) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "no locked memory is left; keys lie in ordinary memory");
            }
            return None;
        }
        let place = state.free.pop();
        state.show();
        place
    }

    fn take_back(&self, place: KeyPlace) {
        let mut state = self.state();
        state.free.push(place);
        state.show();
    }
}

impl State {
    fn grow(&mut self) -> io::Result<()> {
        if self.chunks.len() >= MAX_CHUNKS {
            return Err(io::Error::other("the keys of this process take all that it may lock"));
        }
        let (kind, chunk) = lock_chunk()?;
        let (places, _none) = chunk.as_chunks_mut::<KEY_BYTES>();
        self.free.extend(places);
        self.chunks.push(kind);
        self.is_told = false;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "at most 131,072 keys are far below 2^52")]
    fn show(&self) {
        let places = self.chunks.len() * (CHUNK_BYTES / KEY_BYTES);
        gauge!(names::KEYS_LOCKED).set(places.saturating_sub(self.free.len()) as f64);
    }
}

/// Locks pages for good; they are zero.
fn lock_chunk() -> io::Result<(Kind, &'static mut [u8])> {
    #[cfg(target_os = "linux")]
    if let Some(chunk) = secret_chunk() {
        return Ok((Kind::Secret, chunk));
    }
    let chunk = memmap2::MmapMut::map_anon(CHUNK_BYTES)?;
    chunk.lock()?;
    #[cfg(target_os = "linux")]
    for advice in [memmap2::Advice::DontDump, memmap2::Advice::DontFork] {
        chunk.advise(advice)?;
    }
    Ok((Kind::Locked, &mut **Box::leak(Box::new(chunk))))
}

/// Pages of `memfd_secret`; none where the kernel has no such thing, or will not lock so much.
#[cfg(target_os = "linux")]
fn secret_chunk() -> Option<&'static mut [u8]> {
    let chunk = memfd_secret::MemfdSecret::new(CHUNK_BYTES).ok()?;
    let chunk = Box::leak(Box::new(chunk)).as_mut_slice();
    // Takes the pages now, so that a machine without any is met here and not in a call.
    chunk.fill(0);
    Some(chunk)
}

/// How many keys may come to lie in locked memory.
fn capacity() -> usize {
    let chunks = MAX_CHUNKS.min(lockable_bytes() / CHUNK_BYTES);
    chunks * (CHUNK_BYTES / KEY_BYTES)
}

/// How much memory this process may lock, by its limit alone: whoever has the right to lock (`CAP_IPC_LOCK`) is not bound by it.
#[cfg(target_os = "linux")]
fn lockable_bytes() -> usize {
    use rustix::process::{Resource, getrlimit};

    let limit = getrlimit(Resource::Memlock).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(not(target_os = "linux"))]
fn lockable_bytes() -> usize {
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_lent_from_locked_pages_and_come_back() {
        let memory = LockedMemory::default();
        let Report { kind, keys } = memory.prepare().expect("64 KiB can be locked");
        println!("{}: {keys} keys", kind.name());
        let mut lent: Vec<_> = (0..CHUNK_BYTES / KEY_BYTES).map(|_| memory.lend().unwrap()).collect();
        assert!(lent.iter().all(|place| **place == [0; KEY_BYTES]));
        assert!(memory.state().free.is_empty());
        lent.push(memory.lend().expect("a second chunk"));
        assert_eq!(memory.state().chunks.len(), 2);
        while let Some(place) = lent.pop() {
            memory.take_back(place);
        }
        assert_eq!(memory.state().free.len(), 2 * CHUNK_BYTES / KEY_BYTES);
    }

    #[test]
    fn a_full_memory_refuses_new_keys_and_lends_what_it_has_kept_back() {
        let memory = LockedMemory::default();
        memory.state().chunks = vec![Kind::Locked; MAX_CHUNKS - 1];
        assert_eq!(memory.admit(), Ok(()), "nobody asks for locked memory");
        memory.require().unwrap();
        let mut lent = Vec::new();
        while memory.admit().is_ok() {
            lent.push(memory.lend().unwrap());
        }
        assert_eq!(lent.len(), CHUNK_BYTES / KEY_BYTES - KEPT_BACK);
        for _ in 0..KEPT_BACK {
            lent.push(memory.lend().expect("kept back for what runs"));
        }
        assert!(memory.lend().is_none());
        assert_eq!(memory.admit(), Err(NoRoom));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_locked_and_left_out_of_dumps() {
        let (kind, chunk) = lock_chunk().unwrap();
        let address = chunk.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines();
        let begins = |line: &str| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            let bound = |text| usize::from_str_radix(text, 16).ok();
            Some((bound(from)?..bound(to)?).contains(&address))
        };
        assert!(lines.any(|line| begins(line) == Some(true)), "the pages are mapped");
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        for flag in ["lo", "dd"] {
            assert!(flags.split(' ').any(|found| found == flag), "{} has {flag}: {flags}", kind.name());
        }
    }
}
