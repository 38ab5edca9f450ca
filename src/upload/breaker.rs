//! When a store that fails is left alone, and when it is tried again. Time is an argument.

use std::time::{Duration, Instant};

/// Failures in a row, of any requests, that open it: more than all puts at once of a small node fail by one hiccup.
const OPENS_AFTER: u32 = 10;
/// The longest wait that a store may ask for; one that asks for more is asked again after this.
pub(super) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Lets requests through until many in a row failed; from then on one at a time, until one succeeds.
#[derive(Debug)]
pub(super) struct Breaker {
    /// How long after one probe the next may go.
    probe_every: Duration,
    failures: u32,
    /// When the next request may go, if only one at a time may.
    next_probe: Option<Instant>,
}

/// Whether a request may go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may.
    Go,
    /// It must ask again after so long, or when the breaker closes.
    Wait(Duration),
}

impl Breaker {
    pub(super) fn new(probe_every: Duration) -> Self {
        Self { probe_every, failures: 0, next_probe: None }
    }

    /// Asks for leave to make one request now.
    pub(super) fn ask(&mut self, now: Instant) -> Verdict {
        match self.next_probe {
            Some(at) if now < at => Verdict::Wait(at - now),
            Some(_) => {
                self.next_probe = Some(now + self.probe_every);
                Verdict::Go
            }
            None => Verdict::Go,
        }
    }

    /// Notes that the store answered, whatever it said; true if that closes the breaker.
    pub(super) fn answered(&mut self) -> bool {
        self.failures = 0;
        self.next_probe.take().is_some()
    }

    /// Notes that the store failed, perhaps asking for a wait.
    pub(super) fn failed(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.failures = self.failures.saturating_add(1);
        if self.failures < OPENS_AFTER {
            return;
        }
        let asked = now + retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        let next = self.next_probe.unwrap_or(now + self.probe_every);
        self.next_probe = Some(next.max(asked));
    }

    pub(super) fn is_open(&self) -> bool {
        self.next_probe.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const EVERY: Duration = Duration::from_secs(5);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(EVERY);
        for _ in 0..OPENS_AFTER {
            assert_eq!(breaker.ask(now), Verdict::Go);
            breaker.failed(now, None);
        }
        breaker
    }

    #[test]
    fn one_success_among_the_failures_keeps_it_closed() {
        let now = clock::monotonic();
        let mut breaker = Breaker::new(EVERY);
        for _ in 0..10 {
            (1..OPENS_AFTER).for_each(|_| breaker.failed(now, None));
            assert!(!breaker.answered(), "it was not open");
        }
        assert!(!breaker.is_open() && breaker.ask(now) == Verdict::Go);
    }

    #[test]
    fn an_open_one_lets_a_probe_through_every_five_seconds() {
        let now = clock::monotonic();
        let mut breaker = opened(now);
        assert!(breaker.is_open());
        assert_eq!(breaker.ask(now), Verdict::Wait(EVERY));
        let later = now + EVERY;
        assert_eq!(breaker.ask(later), Verdict::Go);
        assert_eq!(breaker.ask(later), Verdict::Wait(EVERY), "one only");
        breaker.failed(later + Duration::from_secs(1), None);
        assert_eq!(
            breaker.ask(later + Duration::from_secs(1)),
            Verdict::Wait(EVERY - Duration::from_secs(1))
        );
        assert_eq!(breaker.ask(later + EVERY), Verdict::Go);
        assert!(breaker.answered());
        assert_eq!(breaker.ask(later + EVERY), Verdict::Go);
        assert!(!breaker.is_open());
    }

    #[test]
    fn the_store_may_ask_for_a_longer_wait_but_not_for_ever() {
        let now = clock::monotonic();
        let mut breaker = opened(now);
        breaker.failed(now, Some(Duration::from_secs(20)));
        assert_eq!(breaker.ask(now), Verdict::Wait(Duration::from_secs(20)));
        breaker.failed(now, Some(Duration::from_secs(1)));
        assert_eq!(breaker.ask(now), Verdict::Wait(Duration::from_secs(20)), "the longer one counts");
        breaker.failed(now, Some(Duration::from_secs(86_400)));
        assert_eq!(breaker.ask(now), Verdict::Wait(LONGEST_RETRY_AFTER));
    }

    proptest! {
        /// Requests come at random times and end in any order: while it is open no two start within five seconds.
        #[test]
        fn probes_are_never_closer_than_agreed(steps in vec((0..2_000_u64, 0..3_u8), 1..300)) {
            let mut now = clock::monotonic();
            let mut breaker = opened(now);
            let mut last = None;
            for (wait_ms, step) in steps {
                now += Duration::from_millis(wait_ms);
                match step {
                    0 => breaker.failed(now, None),
                    1 => match breaker.ask(now) {
                        Verdict::Go => {
                            prop_assert!(last.is_none_or(|last| now - last >= EVERY));
                            last = Some(now);
                        }
                        Verdict::Wait(wait) => prop_assert!(wait <= EVERY && wait > Duration::ZERO),
                    },
                    _ => prop_assert!(breaker.is_open()),
                }
            }
        }
    }
}
