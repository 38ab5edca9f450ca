//! Where each frame belongs on its track's clock, and what is missing between.
//!
//! A provider's timestamps jitter by a millisecond or two around the true 20, jump where no audio was sent, and stay
//! continuous through a network stall. Rules:
//!
//! - less than 10 ms from where the last timestamp says: the frame follows the previous one, sample by sample;
//! - 10 ms ahead or more: a gap up to the timestamp, at most one hour; further ahead is not believed;
//! - more than 10 ms behind: late. A number seen before makes it a duplicate; else it is placed where it belongs, up to
//!   ten seconds back; further back is not believed;
//! - jitter that adds up to 40 ms is set right, so that tracks do not drift apart;
//! - no usable timestamp, or one that is not believed: the frame follows the previous one.

use crate::domain::audio::AudioFormat;

/// Parts of a second, in samples.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Closer than this to the expected time is jitter: 10 ms.
    jitter: i64,
    /// Jitter that has added up to this much is set right: 40 ms.
    drift: i64,
    /// The longest jump ahead that is believed: one hour.
    max_jump: i64,
    /// How late a frame may come: ten seconds. Bounds how many segments overlap in time.
    max_late: i64,
}

impl Bounds {
    fn new(format: AudioFormat) -> Self {
        let second = i64::from(format.rate());
        Self { jitter: second / 100, drift: second / 25, max_jump: 3600 * second, max_late: 10 * second }
    }
}

/// The clock of one track.
#[derive(Debug)]
pub(super) struct TrackClock {
    format: AudioFormat,
    state: Option<Running>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    /// The end of what is placed, in samples.
    end: i64,
    /// Where the provider's next timestamp should be, in samples.
    expected: i64,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its position in samples.
    pub(super) pts: u32,
    /// Samples missing before it, from `pts - gap` on.
    pub(super) gap: u32,
    pub(super) arrival: Arrival,
}

/// How a frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    InOrder,
    Late,
    Untimed,
    Implausible,
}

impl TrackClock {
    /// A clock that no audio has set.
    pub(super) fn new(format: AudioFormat) -> Self {
        Self { format, state: None }
    }

    /// Decides where the next frame goes. `None`: the track's 24-hour clock is full.
    pub(super) fn place(&self, timestamp_ms: Option<u64>) -> Option<Place> {
        let bounds = Bounds::new(self.format);
        let timed = timestamp_ms.and_then(|ms| self.format.samples_in_ms(ms));
        let Some(running) = self.state else {
            let first = timed.filter(|at| *at <= bounds.max_jump);
            let arrival = match (timestamp_ms, first) {
                (_, Some(_)) => Arrival::InOrder,
                (None, None) => Arrival::Untimed,
                (Some(_), None) => Arrival::Implausible,
            };
            return place_at(first.unwrap_or(0), 0, arrival);
        };
        let Some(at) = timed else {
            let arrival = if timestamp_ms.is_some() { Arrival::Implausible } else { Arrival::Untimed };
            return place_at(running.end, 0, arrival);
        };
        running.place(at, bounds)
    }

    /// Moves the clock past a frame of `samples` that was put at `place`.
    pub(super) fn advance(&mut self, place: Place, timestamp_ms: Option<u64>, samples: u32) {
        let end = i64::from(place.pts) + i64::from(samples);
        let running = self.state.get_or_insert(Running { end, expected: end });
        match place.arrival {
            Arrival::Late => running.end = running.end.max(end),
            Arrival::Untimed | Arrival::Implausible => {
                running.expected += end - running.end;
                running.end = end;
            }
            Arrival::InOrder => {
                let at = timestamp_ms.and_then(|ms| self.format.samples_in_ms(ms)).unwrap_or(0);
                running.expected = at.saturating_add(i64::from(samples));
                running.end = end;
            }
        }
    }

    /// Moves the clock over `samples` that are missing.
    pub(super) fn skip(&mut self, samples: u32) {
        let running = self.state.get_or_insert(Running { end: 0, expected: 0 });
        running.end = running.end.saturating_add(i64::from(samples));
        running.expected = running.expected.saturating_add(i64::from(samples));
    }

    /// Returns where the track stands, in samples.
    pub(super) fn end(&self) -> u32 {
        self.state.map_or(0, |running| u32::try_from(running.end).unwrap_or(u32::MAX))
    }
}

impl Running {
    fn place(&self, at: i64, bounds: Bounds) -> Option<Place> {
        let ahead = at - self.expected;
        if !(-bounds.max_late..=bounds.max_jump).contains(&ahead) {
            return place_at(self.end, 0, Arrival::Implausible);
        }
        if ahead < -bounds.jitter {
            return place_at(at, 0, Arrival::Late);
        }
        let drift = at - self.end;
        if ahead >= bounds.jitter || drift >= bounds.drift {
            return place_at(at.max(self.end), drift.max(0), Arrival::InOrder);
        }
        let pts = if drift <= -bounds.drift { at } else { self.end };
        place_at(pts, 0, Arrival::InOrder)
    }
}

fn place_at(pts: i64, gap: i64, arrival: Arrival) -> Option<Place> {
    // Room is kept for the frame itself, so that its end fits as well.
    let pts = u32::try_from(pts.max(0)).ok().filter(|pts| *pts < u32::MAX - (1 << 20))?;
    Some(Place { pts, gap: u32::try_from(gap).ok()?, arrival })
}

/// The numbers a provider has used lately: finds duplicates and holes.
#[derive(Debug, Default)]
pub(super) struct SequenceWindow {
    highest: Option<u64>,
    /// Bit n: `highest - n` was seen.
    seen: u128,
}

/// What a message's number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sequence {
    /// The next one, after `missing` that were never seen.
    Next { missing: u64 },
    /// One of the missing ones, after all.
    Filled,
    /// Seen before.
    Seen,
    /// No number, or one too far away to tell anything.
    Unknown,
}

/// A jump further ahead than this is a broken counter, not a loss: 100 seconds of two tracks.
const MAX_MISSING: u64 = 10_000;

impl SequenceWindow {
    /// Notes a message's number.
    pub(super) fn observe(&mut self, number: Option<u64>) -> Sequence {
        let Some(number) = number else { return Sequence::Unknown };
        let Some(highest) = self.highest else {
            self.highest = Some(number);
            self.seen = 1;
            return Sequence::Next { missing: 0 };
        };
        if let Some(step @ 1..) = number.checked_sub(highest) {
            if step > MAX_MISSING {
                return Sequence::Unknown;
            }
            self.highest = Some(number);
            self.seen = if step < 128 { self.seen << step } else { 0 } | 1;
            return Sequence::Next { missing: step - 1 };
        }
        match highest - number {
            behind @ 0..128 if self.seen & 1 << behind != 0 => Sequence::Seen,
            behind @ 0..128 => {
                self.seen |= 1 << behind;
                Sequence::Filled
            }
            _ => Sequence::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places frames of 160 samples at these milliseconds; answers position and gap of each in milliseconds.
    fn places(timestamps: &[Option<u64>]) -> Vec<(u32, u32, Arrival)> {
        let mut clock = TrackClock::new(AudioFormat::TELEPHONE);
        let put = |ms: &Option<u64>| {
            let place = clock.place(*ms).unwrap();
            clock.advance(place, *ms, 160);
            (place.pts / 8, place.gap / 8, place.arrival)
        };
        timestamps.iter().map(put).collect()
    }

    #[test]
    fn jitter_is_no_gap_and_does_not_add_up_unnoticed() {
        use Arrival::InOrder;
        let placed = places(&[Some(155), Some(174), Some(195), Some(216), Some(234)]);
        assert_eq!(placed.iter().map(|p| p.0).collect::<Vec<_>>(), [155, 175, 195, 215, 235]);
        let slow: Vec<_> = (0..50).map(|i| Some(100 + i * 21)).collect();
        let placed = places(&slow);
        let gaps: Vec<_> = placed.iter().filter(|p| p.1 > 0).collect();
        assert_eq!(gaps, [&(100 + 40 * 21, 40, InOrder)]);
    }

    #[test]
    fn a_jump_is_a_gap_and_the_clock_follows_it() {
        use Arrival::InOrder;
        assert_eq!(
            places(&[Some(0), Some(20), Some(100), Some(120), Some(130)]),
            [(0, 0, InOrder), (20, 0, InOrder), (100, 60, InOrder), (120, 0, InOrder), (140, 0, InOrder)]
        );
    }

    #[test]
    fn late_frames_go_where_they_belong() {
        use Arrival::{InOrder, Late};
        assert_eq!(
            places(&[Some(0), Some(40), Some(20), Some(60)]),
            [(0, 0, InOrder), (40, 20, InOrder), (20, 0, Late), (60, 0, InOrder)]
        );
    }

    #[test]
    fn unbelievable_times_do_not_move_the_clock() {
        use Arrival::{Implausible, InOrder, Untimed};
        let hostile = [Some(0), Some(90_000_000), None, Some(u64::MAX), Some(80)];
        assert_eq!(
            places(&hostile),
            [(0, 0, InOrder), (20, 0, Implausible), (40, 0, Untimed), (60, 0, Implausible), (80, 0, InOrder)]
        );
        assert_eq!(places(&[Some(u64::MAX), Some(20)]), [(0, 0, Implausible), (20, 0, InOrder)]);
        let back = [Some(60_000), Some(1)];
        assert_eq!(places(&back), [(60_000, 0, InOrder), (60_020, 0, Implausible)]);
    }

    #[test]
    fn numbers_tell_holes_and_duplicates() {
        let mut window = SequenceWindow::default();
        let mut see = |n: u64| window.observe(Some(n));
        assert_eq!(see(1), Sequence::Next { missing: 0 });
        assert_eq!(see(2), Sequence::Next { missing: 0 });
        assert_eq!(see(5), Sequence::Next { missing: 2 });
        assert_eq!(see(3), Sequence::Filled);
        assert_eq!(see(3), Sequence::Seen);
        assert_eq!(see(5), Sequence::Seen);
        assert_eq!(see(1 << 40), Sequence::Unknown);
        assert_eq!(see(505), Sequence::Next { missing: 499 });
        assert_eq!(see(4), Sequence::Unknown, "out of the window");
        assert_eq!(SequenceWindow::default().observe(None), Sequence::Unknown);
    }
}
