//! How much of a call is missing where a provider sends audio without timestamps.
//!
//! Audio that comes late is not missing: after a stall it comes at once, and then the least delayed message of some seconds is
//! as early as ever. Where a provider sends nothing while nobody speaks, it is late for good. So audio is placed sample after
//! sample, and what the least delayed message of two seconds is behind by becomes a gap. The gap stands where it was noticed:
//! up to two seconds of audio too late, and less than half a second may stay unnoticed.

use std::time::{Duration, Instant};

/// How long is looked at; a stall of the network is over by then, or the connection is given up.
const WINDOW: Duration = Duration::from_secs(2);
/// Less is the network, or clocks that differ.
const NOTICED: Duration = Duration::from_millis(500);

/// Follows the audio of one call over all its sockets.
#[derive(Debug, Default)]
pub struct AbsenceWatch {
    state: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// When audio that has no delay would have begun.
    began: Instant,
    /// Audio and gaps so far.
    placed: Duration,
    window_from: Instant,
    least: Duration,
    /// The socket was lost: the next audio shows at once what is missing.
    is_resumed: bool,
}

impl AbsenceWatch {
    /// Notes that `audio` has arrived at `now`; answers what is missing before it, to be made a gap.
    pub fn audio(&mut self, now: Instant, audio: Duration) -> Option<Duration> {
        let running = self.state.get_or_insert_with(|| Running {
            began: now.checked_sub(audio).unwrap_or(now),
            placed: Duration::ZERO,
            window_from: now,
            least: Duration::MAX,
            is_resumed: false,
        });
        let expected = running.placed + audio;
        let passed = now.saturating_duration_since(running.began);
        let late = passed.saturating_sub(expected);
        // Audio that comes before its time shows that all before it had a delay.
        running.began = running.began.checked_sub(expected.saturating_sub(passed)).unwrap_or(running.began);
        let is_window_over = now.saturating_duration_since(running.window_from) >= WINDOW;
        let missing = match (running.is_resumed, is_window_over) {
            (true, _) => Some(late),
            (false, true) => Some(running.least.min(late)).filter(|least| *least >= NOTICED),
            (false, false) => None,
        };
        running.is_resumed = false;
        running.least =
            if is_window_over || missing.is_some() { Duration::MAX } else { running.least.min(late) };
        if is_window_over || missing.is_some() {
            running.window_from = now;
        }
        let missing = missing.filter(|missing| !missing.is_zero());
        running.placed = expected + missing.unwrap_or_default();
        missing
    }

    /// Notes that the socket was lost.
    pub fn lost(&mut self) {
        if let Some(running) = &mut self.state {
            running.is_resumed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::clock::monotonic;

    use super::*;

    const CHUNK: Duration = Duration::from_millis(20);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Feeds chunks that arrive at these milliseconds; answers the gaps with the number of the chunk before which each is.
    fn gaps(arrivals: impl IntoIterator<Item = u64>) -> Vec<(usize, u64)> {
        let (began, mut watch) = (monotonic(), AbsenceWatch::default());
        let feed = |(number, at)| {
            let gap: Duration = watch.audio(began + ms(at), CHUNK)?;
            Some((number, u64::try_from(gap.as_millis()).unwrap()))
        };
        arrivals.into_iter().enumerate().filter_map(feed).collect()
    }

    #[test]
    fn stalls_are_no_gaps() {
        assert_eq!(gaps((0..1000).map(|number| number * 20)), []);
        // Three seconds of standstill, then all of it at once.
        assert_eq!(
            gaps((0..1000).map(|number| if (200..350).contains(&number) { 7000 } else { number * 20 })),
            []
        );
        // The first message had a delay of a second.
        assert_eq!(gaps((0..1000).map(|number| (number * 20).max(1000))), []);
    }

    #[test]
    fn silence_that_is_not_sent_is_a_gap_and_clocks_that_differ_add_up_to_one() {
        let silent = gaps((0..500).map(|number| number * 20 + if number >= 200 { 6000 } else { 0 }));
        assert_eq!(silent.iter().map(|(_, gap)| gap).sum::<u64>(), 6000, "{silent:?}");
        assert!(silent.iter().all(|(number, _)| (200..330).contains(number)), "{silent:?}");
        // A clock that is slow by a thousandth: half a second after eight minutes and more.
        let drift = gaps((0..50_000).map(|number| number * 20 + number / 50));
        assert!(
            (1..=2).contains(&drift.len()) && drift.iter().all(|(_, gap)| (500..505).contains(gap)),
            "{drift:?}"
        );
    }

    #[test]
    fn what_a_lost_socket_has_missed_is_a_gap_at_once() {
        let (began, mut watch) = (monotonic(), AbsenceWatch::default());
        watch.lost();
        assert_eq!(watch.audio(began, CHUNK), None);
        assert_eq!(watch.audio(began + ms(20), CHUNK), None);
        watch.lost();
        assert_eq!(watch.audio(began + ms(740), CHUNK), Some(ms(700)));
        assert_eq!(watch.audio(began + ms(760), CHUNK), None);
        watch.lost();
        assert_eq!(watch.audio(began + ms(780), CHUNK), None, "nothing was missed");
    }

    proptest! {
        #[test]
        fn what_is_placed_never_runs_far_ahead_or_behind(steps in proptest::collection::vec((0u64..400, 0u64..400, any::<bool>()), 1..300)) {
            let (began, mut watch) = (monotonic(), AbsenceWatch::default());
            let (mut now, mut placed) = (began, Duration::ZERO);
            for (wait, audio, lost) in steps {
                now += ms(wait);
                if lost {
                    watch.lost();
                }
                placed += ms(audio) + watch.audio(now, ms(audio)).unwrap_or_default();
                let running = watch.state.as_ref().unwrap();
                prop_assert_eq!(placed, running.placed);
                prop_assert!(placed <= now.duration_since(running.began));
            }
        }
    }
}
