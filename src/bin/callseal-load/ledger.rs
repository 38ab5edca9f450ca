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

    /// Compares a track that is placed where it was heard: `silence` may stand before, between and behind its samples. Answers
    /// how much stands between as well, in samples.
    pub(crate) fn of_queued(
        sent: &[u8],
        played: &[u8],
        lost: &[Range<usize>],
        silence: &[u8],
    ) -> (Self, u64) {
        let size = silence.len();
        let mut ledger = Self { sent: (sent.len() / size) as u64, ..Self::default() };
        let (mut first, mut last) = (None, None);
        let mut played = played.chunks_exact(size).enumerate();
        for (number, sample) in sent.chunks_exact(size).enumerate() {
            let is_lost = |at: &usize| lost.iter().any(|gap| gap.contains(at));
            match played.find(|(at, heard)| *heard == sample || *heard != silence || is_lost(at)) {
                Some((at, _)) if is_lost(&at) => ledger.declared += 1,
                Some((at, heard)) if heard == sample => {
                    ledger.playable += 1;
                    // Silence that was sent cannot be told from silence that was put there.
                    if sample != silence {
                        first.get_or_insert((number, at));
                        last = Some((number, at));
                    }
                }
                Some(_) | None => ledger.silent += 1,
            }
        }
        let between = |((from, from_at), (to, to_at)): ((usize, usize), (usize, usize))| {
            ((to_at - from_at) - (to - from)) as u64
        };
        (ledger, first.zip(last).map_or(0, between))
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

    #[test]
    fn what_was_queued_may_have_pauses_and_nothing_else() {
        let sent = [1, 2, 0, 0, 3, 4];
        let compare = |played: &[u8], lost: &[Range<usize>]| {
            let (ledger, pauses) = Ledger::of_queued(&sent, played, lost, &[0]);
            assert_eq!(ledger.sent, ledger.playable + ledger.declared + ledger.silent);
            (ledger.playable, ledger.declared, ledger.silent, pauses)
        };
        assert_eq!(compare(&[1, 2, 0, 0, 3, 4], &[]), (6, 0, 0, 0));
        assert_eq!(compare(&[0, 0, 1, 2, 0, 0, 3, 4, 0], &[]), (6, 0, 0, 0));
        assert_eq!(compare(&[0, 1, 0, 0, 2, 0, 0, 3, 0, 4], &[]), (6, 0, 0, 3));
        // A sample that is missing, another, one too many, one of the silences.
        for wrong in
            [&[1, 0, 0, 3, 4][..], &[1, 9, 0, 0, 3, 4], &[1, 1, 2, 0, 0, 3, 4], &[1, 2, 0, 3, 4], &[]]
        {
            assert!(compare(wrong, &[]).2 > 0, "{wrong:?}");
        }
        assert_eq!(compare(&[0, 1, 0, 0, 0, 3, 4], std::slice::from_ref(&(2..3))), (5, 1, 0, 0));
        // Two bytes a sample: half of one is no silence.
        let (whole, pauses) = Ledger::of_queued(&[1, 0, 2, 0], &[1, 0, 0, 0, 2, 0], &[], &[0, 0]);
        assert_eq!((whole.playable, whole.silent, pauses), (2, 0, 1));
        assert_eq!(Ledger::of_queued(&[1, 0, 2, 0], &[1, 0, 0, 2, 0, 0], &[], &[0, 0]).0.silent, 1);
    }
}
