//! A histogram of one task: values are counted where they arise and handed over now and then.

use std::time::Duration;

/// Bounds of the local histogram, in seconds; the last bucket has none.
const LOCAL_BOUNDS: [f64; 10] = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0];

/// A histogram kept by one task and published now and then, so that the hot path shares nothing.
///
/// Values are published at the upper bound of their bucket, so the sum is an upper estimate.
#[derive(Debug, Default)]
pub struct LocalHistogram {
    counts: [u32; LOCAL_BOUNDS.len()],
}

impl LocalHistogram {
    /// Counts one value.
    pub fn record(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        let bucket = LOCAL_BOUNDS.partition_point(|bound| *bound < seconds).min(LOCAL_BOUNDS.len() - 1);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }

    /// Adds everything to a shared histogram and starts over.
    pub fn publish(&mut self, shared: &metrics::Histogram) {
        for (count, bound) in self.counts.iter_mut().zip(LOCAL_BOUNDS) {
            if *count > 0 {
                shared.record_many(bound, usize::try_from(*count).unwrap_or(usize::MAX));
                *count = 0;
            }
        }
    }
}
