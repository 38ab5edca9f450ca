//! How long this machine lets a process wait that has something to do. A bound in milliseconds holds where a process runs
//! when its time has come; elsewhere it says nothing about the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use callseal::clock;

/// What a sleep asks for.
const STEP: Duration = Duration::from_millis(2);

/// Watches until it is dropped.
pub(crate) struct Stalls {
    worst_ms: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Stalls {
    /// Begins to watch, in a thread of its own.
    pub(crate) fn watch() -> Self {
        let (worst_ms, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (noted, done) = (Arc::clone(&worst_ms), Arc::clone(&over));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let asked = clock::monotonic();
                std::thread::park_timeout(STEP);
                let late = clock::since(asked).saturating_sub(STEP);
                noted.fetch_max(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { worst_ms, over }
    }

    /// Returns a bound on this machine: what holds on an idle one, and as often as two processes could be held up on the
    /// way, the longest that this one was. Prints what was added.
    pub(crate) fn bound(&self, idle_ms: u64) -> u64 {
        let worst = self.worst_ms.load(Ordering::Relaxed);
        println!("the longest stall was {worst} ms");
        idle_ms + 2 * worst
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
