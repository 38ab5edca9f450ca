//! How long to wait before trying again.

use std::time::Duration;

/// Bounds of the waiting time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The first wait.
    pub base: Duration,
    /// The longest wait.
    pub max: Duration,
    /// How long one try may take.
    pub try_timeout: Duration,
}

/// Doubling waits with full jitter: every wait is random between half and all of its bound, so that nodes spread out.
#[derive(Debug)]
pub struct Retry {
    policy: RetryPolicy,
    tries: u32,
}

impl Retry {
    /// Starts with the shortest wait.
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy, tries: 0 }
    }

    /// Returns how long to wait now. `random` is any number.
    pub fn next_wait(&mut self, random: u32) -> Duration {
        let doubled = self.policy.base.saturating_mul(1 << self.tries.min(16));
        self.tries += 1;
        let bound = doubled.min(self.policy.max);
        bound / 2 + (bound / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_spread() {
        let policy = RetryPolicy {
            base: Duration::from_millis(200),
            max: Duration::from_secs(30),
            try_timeout: Duration::from_secs(10),
        };
        let mut retry = Retry::new(policy);
        assert_eq!(retry.next_wait(0), Duration::from_millis(100));
        assert_eq!(retry.next_wait(u32::MAX), Duration::from_millis(400));
        for _ in 0..40 {
            retry.next_wait(7);
        }
        assert_eq!(retry.next_wait(0), Duration::from_secs(15));
        assert_eq!(retry.next_wait(u32::MAX), Duration::from_secs(30));
    }
}
