//! Sent against played, sample by sample.

use std::ops::Range;

use serde::Serialize;

/// What became of audio that was sent, in samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Ledger {
    pub(crate) sent: u64,
    /// Plays as it was sent.
    pub(crate) playable: u64,
    /// The manifest declares it lost.
    pub(crate) declared: u64,
    /// Neither: must be 0 in every run.
    pub(crate) silent: u64,
}

impl Ledger {
    pub(crate) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.playable += other.playable;
        self.declared += other.declared;
        self.silent += other.silent;
    }

    /// Compares one track. `lost` are the declared gaps, from the first sample of the recording on.
    ///
    /// What the recording plays in a declared gap does not count, not even where it happens to be right.
    pub(crate) fn of_track(sent: &[u8], played: &[u8], lost: &[Range<usize>]) -> Self {
        Self::of_samples(sent, played, lost, 1)
    }

    /// Compares one track whose samples have `size` bytes each.
    pub(crate) fn of_samples(sent: &[u8], played: &[u8], lost: &[Range<usize>], size: usize) -> Self {
        let samples = sent.len() / size;
        let mut ledger = Self { sent: samples as u64, ..Self::default() };
        let mut is_lost = vec![false; samples];
        for gap in lost {
            let end = gap.end.min(samples);
            is_lost.get_mut(gap.start.min(end)..end).into_iter().flatten().for_each(|lost| *lost = true);
        }
        let mut played = played.chunks_exact(size);
        for (sample, lost) in sent.chunks_exact(size).zip(is_lost) {
            match (lost, played.next() == Some(sample)) {
                (true, _) => ledger.declared += 1,
                (false, true) => ledger.playable += 1,
                (false, false) => ledger.silent += 1,
            }
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_playable_declared_or_silent() {
        let sent = [1, 2, 3, 4, 5, 6];
        let all = Ledger { sent: 6, playable: 6, ..Ledger::default() };
        assert_eq!(Ledger::of_track(&sent, &sent, &[]), all);
        let cut = Ledger { sent: 6, playable: 4, silent: 2, ..Ledger::default() };
        assert_eq!(Ledger::of_track(&sent, &[1, 2, 3, 4], &[]), cut);
        let gap = Ledger { sent: 6, playable: 3, declared: 2, silent: 1 };
        assert_eq!(Ledger::of_track(&sent, &[1, 255, 255, 4, 9, 6], std::slice::from_ref(&(1..3))), gap);
        let behind = Ledger { sent: 6, playable: 5, declared: 1, ..Ledger::default() };
        assert_eq!(Ledger::of_track(&sent, &sent, &[5..100, 200..300]), behind);
        let pairs = Ledger { sent: 3, playable: 1, declared: 1, silent: 1 };
        assert_eq!(Ledger::of_samples(&sent, &[1, 2, 0, 4, 5], std::slice::from_ref(&(2..3)), 2), pairs);
    }
}
