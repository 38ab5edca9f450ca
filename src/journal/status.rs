//! How the journal is, for everybody who asks.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Whether the journal can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JournalState {
    /// The last write and sync succeeded.
    #[default]
    Healthy,
    /// Records are discarded until a new file works.
    Failing {
        /// Since when.
        since: Instant,
        /// Why, by the last failure.
        kind: FailureKind,
    },
}

/// Why the journal cannot write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// No space or quota left.
    NoSpace,
    /// The journal has as many bytes as it may.
    Limit,
    /// No right to write, or a read-only file system.
    Denied,
    /// The disk fails.
    Disk,
}

impl FailureKind {
    /// Tells whether there is no room: it may come back without anybody repairing anything.
    pub fn is_full(self) -> bool {
        match self {
            Self::NoSpace | Self::Limit => true,
            Self::Denied | Self::Disk => false,
        }
    }

    /// Names the kind for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoSpace => "no_space",
            Self::Limit => "limit",
            Self::Denied => "denied",
            Self::Disk => "disk",
        }
    }

    pub(super) fn of(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        #[expect(clippy::wildcard_enum_match_arm, reason = "the list of kinds is open")]
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded => Self::NoSpace,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Denied,
            _ => Self::Disk,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSpace => "no space left",
            Self::Limit => "journal.max_bytes are used up",
            Self::Denied => "no right to write",
            Self::Disk => "disk fails",
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct Status {
    generation: AtomicU64,
    state: Mutex<JournalState>,
    disk_bytes: AtomicU64,
}

impl Status {
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn state(&self) -> JournalState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Notes a failure; a row of failures began with its first.
    pub(super) fn fail(&self, now: Instant, kind: FailureKind) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *state {
            JournalState::Healthy => now,
            JournalState::Failing { since, .. } => since,
        };
        *state = JournalState::Failing { since, kind };
    }

    /// Notes that a new file works: callers hand over again what the old one may have lost.
    pub(super) fn recover(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = JournalState::Healthy;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn add_disk_bytes(&self, bytes: u64) {
        self.disk_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove_disk_bytes(&self, bytes: u64) {
        self.disk_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
