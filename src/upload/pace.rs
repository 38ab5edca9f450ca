//! How fast a backlog may go up.

use std::time::{Duration, Instant};

/// Spaces out what catches up, so that its bytes per second stay below a bound. Time is an argument.
#[derive(Debug)]
pub(super) struct Pace {
    /// 0: no bound.
    bytes_per_sec: u64,
    /// When the next may go.
    next: Option<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_sec: u64) -> Self {
        Self { bytes_per_sec, next: None }
    }

    /// Returns how long something of so many bytes has to wait, and lets what comes after it wait for longer.
    pub(super) fn reserve(&mut self, now: Instant, bytes: u64) -> Duration {
        if self.bytes_per_sec == 0 {
            return Duration::ZERO;
        }
        let start = self.next.map_or(now, |next| next.max(now));
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_sec;
        self.next = Some(start + Duration::from_micros(micros));
        start - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn bytes_are_spread_over_time() {
        let now = clock::monotonic();
        let mut pace = Pace::new(1000);
        assert_eq!(pace.reserve(now, 500), Duration::ZERO);
        assert_eq!(pace.reserve(now, 2000), Duration::from_millis(500));
        assert_eq!(pace.reserve(now + Duration::from_secs(1), 1), Duration::from_millis(1500));
        assert_eq!(
            pace.reserve(now + Duration::from_secs(60), 1),
            Duration::ZERO,
            "time unused is not saved up"
        );
        assert_eq!(Pace::new(0).reserve(now, u64::MAX), Duration::ZERO);
    }
}
