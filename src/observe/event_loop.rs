//! How late the tasks of this process get their turn: one timer that looks at the clock.
//!
//! A task that waits for a moment and finds it past was kept waiting, by other tasks or by a machine without a free
//! core. A call's task waits as long before it reads its socket. Twenty looks a second cost nothing that can be
//! measured.
//!
//! Timers have a grain of 1 ms and fire in the millisecond after, so about 1 ms is nothing. With several threads the
//! timer goes to whichever is free: one thread that is held shows only as far as the others cannot take its tasks.

use std::time::{Duration, Instant};

use metrics::{gauge, histogram};

use crate::clock;

use super::metrics as names;

/// The time between two looks: short enough to meet a stall of a tenth of a second, as a caller would.
const PERIOD: Duration = Duration::from_millis(50);
/// The longest delay is that of this window and the one before.
const WINDOW: Duration = Duration::from_secs(10);

/// Looks until the runtime ends.
pub async fn watch() {
    let (lag, longest) = (histogram!(names::LOOP_LAG), gauge!(names::LOOP_LONGEST_LAG));
    let mut window = Longest::new(clock::monotonic());
    loop {
        let began = clock::monotonic();
        tokio::time::sleep(PERIOD).await;
        let now = clock::monotonic();
        let late = now.saturating_duration_since(began).saturating_sub(PERIOD);
        lag.record(late.as_secs_f64());
        longest.set(window.record(now, late).as_secs_f64());
    }
}

/// The longest of the values of the last ten to twenty seconds.
struct Longest {
    began: Instant,
    current: Duration,
    previous: Duration,
}

impl Longest {
    fn new(now: Instant) -> Self {
        Self { began: now, current: Duration::ZERO, previous: Duration::ZERO }
    }

    fn record(&mut self, now: Instant, value: Duration) -> Duration {
        if now.saturating_duration_since(self.began) >= WINDOW {
            self.previous = std::mem::take(&mut self.current);
            self.began = now;
        }
        self.current = self.current.max(value);
        self.current.max(self.previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_delay_is_told_for_ten_seconds_and_forgotten_after_twenty() {
        let start = clock::monotonic();
        let mut longest = Longest::new(start);
        let (long, short) = (Duration::from_millis(300), Duration::from_millis(1));
        assert_eq!(longest.record(start, long), long);
        let mut told = |seconds| longest.record(start + Duration::from_secs(seconds), short);
        assert_eq!([told(5), told(10), told(19)], [long; 3]);
        assert_eq!(told(20), short);
    }
}
