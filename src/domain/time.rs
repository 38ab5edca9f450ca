//! Moments and durations as the rules see them: always an argument, never read here.

use std::time::Duration;

/// A moment of the wall clock in milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Returns the whole seconds since 1970.
    pub fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the moment `later` after this one.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }
}
