//! Spreads waits by chance, so that many who wait for one thing do not come back for it in step.

use std::time::Duration;

/// Returns a time between half of `wait` and all of it.
pub fn jittered(wait: Duration) -> Duration {
    wait / 2 + part_of(wait / 2)
}

/// Returns a random part of `longest`.
pub fn part_of(longest: Duration) -> Duration {
    let mut random = [0x55; 2];
    // A predictable wait, should the system have no random bytes, does no harm.
    let _filled = getrandom::fill(&mut random).is_ok();
    longest.mul_f64(f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_in_their_bounds_and_differ() {
        let wait = Duration::from_secs(2);
        let waits: std::collections::BTreeSet<_> = (0..100).map(|_| jittered(wait)).collect();
        assert!(waits.iter().all(|spread| (wait / 2..=wait).contains(spread)));
        assert!(waits.len() > 50, "{} of 100 differ", waits.len());
    }
}
