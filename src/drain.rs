//! How the process stops: first it takes no new work, then its calls end, then it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Work is taken.
    Running,
    /// No new calls; running calls go on.
    Draining,
    /// Running calls are closed and their recordings finished.
    Stopping,
}

/// Tells everybody how far stopping has come; clones tell the same.
#[derive(Debug, Clone)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    /// The same as a phase of [`Phase::Stopping`], for whoever asks very often.
    is_stopping: Arc<AtomicBool>,
    live: watch::Sender<usize>,
}

/// Something that must end before the process does. Dropping it says that it has.
#[derive(Debug)]
pub struct Alive {
    live: watch::Sender<usize>,
}

impl Drain {
    /// Starts running.
    pub fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
            is_stopping: Arc::default(),
            live: watch::Sender::new(0),
        }
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        if phase == Phase::Stopping {
            self.is_stopping.store(true, Ordering::Release);
        }
        self.phase.send_if_modified(|now| {
            let further = phase > *now;
            if further {
                *now = phase;
            }
            further
        });
    }

    /// Returns how far stopping has come.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether running calls are to be closed; one read of memory.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Waits until stopping has come to `phase`. Cancel-safe.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`, so the channel cannot close meanwhile.
        let _reached = phases.wait_for(|now| *now >= phase).await.is_ok();
    }

    /// Notes that something lives.
    pub fn alive(&self) -> Alive {
        self.live.send_modify(|live| *live += 1);
        Alive { live: self.live.clone() }
    }

    /// Waits until nothing lives any more; answers how much still does after `limit`.
    pub async fn idle(&self, limit: Duration) -> usize {
        let mut live = self.live.subscribe();
        match tokio::time::timeout(limit, live.wait_for(|live| *live == 0)).await {
            Ok(_) => 0,
            Err(_) => *self.live.borrow(),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.live.send_modify(|live| *live -= 1);
    }
}
