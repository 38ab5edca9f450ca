//! The only place that reads the machine's clocks.
//!
//! Timers and media order use the monotonic clock; the wall clock only labels things and judges expiry.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::domain::time::UnixMillis;

/// Reads the wall clock; a clock before 1970 reads as 1970.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn wall() -> UnixMillis {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

/// Reads the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn monotonic() -> Instant {
    Instant::now()
}
