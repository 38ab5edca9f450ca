//! A small histogram of delays that many calls can be added up in.

use std::time::Duration;

/// Buckets per doubling: a percentile is at most 1/16 too high.
const PER_OCTAVE: u64 = 16;
/// 22 doublings of 16 µs are told apart: up to 67 s, which is longer than any delay worth a number.
const BUCKETS: usize = 23 * 16;

/// Delays in microseconds, with their exact maximum.
#[derive(Debug, Clone)]
pub struct LagHistogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Default for LagHistogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: Duration::ZERO }
    }
}

impl LagHistogram {
    /// Counts one delay.
    pub fn record(&mut self, lag: Duration) {
        let last = self.buckets.len() - 1;
        if let Some(bucket) = self.buckets.get_mut(bucket_of(lag).min(last)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(lag);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// Returns how many delays were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the longest delay; zero where none was counted.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// Returns a delay that `percent` of all are not above; zero where none was counted.
    pub fn percentile(&self, percent: u8) -> Duration {
        self.per_mille(u16::from(percent) * 10)
    }

    /// Returns a delay that so many of a thousand are not above; zero where none was counted.
    pub fn per_mille(&self, share: u16) -> Duration {
        let rank = (self.count * u64::from(share)).div_ceil(1000);
        let mut counted = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            counted += bucket;
            if counted >= rank && counted > 0 {
                return upper_bound(index as u64).min(self.max);
            }
        }
        self.max
    }
}

/// Up to 16 µs one bucket per microsecond, then 16 buckets per doubling.
fn bucket_of(lag: Duration) -> usize {
    let micros = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
    let octave = u64::from(micros.max(1).ilog2()).saturating_sub(3);
    let index =
        if octave == 0 { micros } else { octave * PER_OCTAVE + (micros >> (octave - 1)) - PER_OCTAVE };
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// Returns the delay that everything in a bucket is below.
fn upper_bound(index: u64) -> Duration {
    let (octave, step) = (index / PER_OCTAVE, index % PER_OCTAVE);
    let micros = if octave == 0 { step + 1 } else { (PER_OCTAVE + step + 1) << (octave - 1) };
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_close_and_never_too_low() {
        let mut lags = LagHistogram::default();
        assert_eq!((lags.percentile(99), lags.max()), (Duration::ZERO, Duration::ZERO));
        for micros in 1..=10_000 {
            lags.record(Duration::from_micros(micros));
        }
        for percent in [1, 10, 50, 90, 99, 100] {
            let exact = f64::from(percent) * 100.0;
            let found = lags.percentile(percent).as_secs_f64() * 1e6;
            assert!((exact..=exact * 1.0626 + 1.0).contains(&found), "p{percent}: {found}");
        }
        assert_eq!((lags.count(), lags.max()), (10_000, Duration::from_millis(10)));
    }

    #[test]
    fn buckets_follow_one_another() {
        let mut last = 0;
        for micros in 0..100_000 {
            let bucket = bucket_of(Duration::from_micros(micros));
            assert!(bucket == last || bucket == last + 1, "{micros} µs");
            assert!(upper_bound(bucket as u64) > Duration::from_micros(micros), "{micros} µs");
            last = bucket;
        }
    }

    #[test]
    fn what_many_calls_counted_adds_up() {
        let (mut one, mut other) = (LagHistogram::default(), LagHistogram::default());
        one.record(Duration::from_millis(1));
        other.record(Duration::from_secs(3_600));
        one.merge(&other);
        assert_eq!((one.count(), one.max()), (2, Duration::from_secs(3_600)));
        assert!(one.percentile(50) < Duration::from_millis(2));
    }
}
