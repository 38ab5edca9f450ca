//! The list of missing audio that ends up in the manifest.

use crate::domain::cmr::GapReason;
use crate::domain::ids::TrackId;
use crate::domain::recording::{GapEntry, MAX_GAP_ENTRIES, StreamCounts};

/// Gaps in the order they were noticed; late audio takes them back.
#[derive(Debug, Default)]
pub(super) struct GapLedger {
    entries: Vec<GapEntry>,
}

impl GapLedger {
    /// Notes a gap.
    pub(super) fn add(
        &mut self,
        track: TrackId,
        pts: u32,
        samples: u32,
        reason: GapReason,
        counts: &mut StreamCounts,
    ) {
        let gap = GapEntry { track: track.number(), pts, samples, reason: reason.number() };
        push_or_count(&mut self.entries, gap, counts);
    }

    /// Takes back what audio from `pts` on for `samples` fills.
    pub(super) fn fill(&mut self, track: TrackId, pts: u32, samples: u32, counts: &mut StreamCounts) {
        let end = pts.saturating_add(samples);
        let mut kept = Vec::with_capacity(self.entries.len());
        for gap in self.entries.drain(..) {
            let gap_end = gap.pts.saturating_add(gap.samples);
            if gap.track != track.number() || end <= gap.pts || gap_end <= pts {
                push_or_count(&mut kept, gap, counts);
                continue;
            }
            if gap.pts < pts {
                push_or_count(&mut kept, GapEntry { samples: pts - gap.pts, ..gap }, counts);
            }
            if end < gap_end {
                push_or_count(&mut kept, GapEntry { pts: end, samples: gap_end - end, ..gap }, counts);
            }
        }
        self.entries = kept;
    }

    /// Whether audio was lost, rather than not made by the source.
    pub(super) fn has_loss(&self) -> bool {
        self.entries.iter().any(GapEntry::is_loss)
    }

    /// Returns the gaps.
    pub(super) fn into_entries(self) -> Vec<GapEntry> {
        self.entries
    }
}

fn push_or_count(entries: &mut Vec<GapEntry>, gap: GapEntry, counts: &mut StreamCounts) {
    if entries.len() < MAX_GAP_ENTRIES {
        entries.push(gap);
        return;
    }
    counts.unlisted_gaps += 1;
    counts.unlisted_gap_samples += u64::from(gap.samples);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_audio_takes_a_gap_back_in_part_or_whole() {
        let mut counts = StreamCounts::default();
        let mut ledger = GapLedger::default();
        ledger.add(TrackId::CALLER, 100, 100, GapReason::LostBeforeUs, &mut counts);
        ledger.fill(TrackId::AGENT, 100, 100, &mut counts);
        ledger.fill(TrackId::CALLER, 120, 20, &mut counts);
        let spans = |l: &GapLedger| l.entries.iter().map(|g| (g.pts, g.samples)).collect::<Vec<_>>();
        assert_eq!(spans(&ledger), [(100, 20), (140, 60)]);
        ledger.fill(TrackId::CALLER, 0, 1000, &mut counts);
        assert_eq!(spans(&ledger), []);
        assert!(!ledger.has_loss());
    }

    #[test]
    fn the_list_is_bounded_and_the_rest_counted() {
        let mut counts = StreamCounts::default();
        let mut ledger = GapLedger::default();
        for i in 0..2000 {
            ledger.add(TrackId::CALLER, i, 1, GapReason::Source, &mut counts);
        }
        assert_eq!((ledger.entries.len(), counts.unlisted_gaps), (512, 1488));
    }
}
