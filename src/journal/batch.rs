//! What the writer writes with one call.

use std::sync::Arc;
use std::time::Instant;

use super::Record;
use super::ledger::Ledger;
use super::record::encode_sealed;
use super::runs::{Run, Waiting};
use super::whole::SegmentId;

/// From how many bytes on a batch is written; bounds the memory of the writer.
pub(super) const BATCH_BYTES: usize = 4 << 20;

/// Records to be written with one call, as they are on disk, and what is noted once they are.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<BatchEntry>,
    pub(super) encoded: Vec<u8>,
    /// The bytes of callers that the records held.
    pub(super) held_bytes: usize,
    /// When the oldest frame in it was sealed.
    pub(super) oldest: Option<Instant>,
}

/// One record of a batch.
pub(super) struct BatchEntry {
    /// Where it begins in the batch.
    pub(super) start: usize,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Record(Record),
    /// A run of sealed frames, whose bytes are only in the batch any more.
    Run {
        segment: SegmentId,
        way: Arc<Waiting>,
    },
}

impl Batch {
    pub(super) fn push(&mut self, record: Record) {
        let start = self.encoded.len();
        record.encode(&mut self.encoded);
        self.held_bytes += record.held_bytes();
        self.note_age(record.sealed_at());
        self.entries.push(BatchEntry { start, kind: Kind::Record(record) });
    }

    /// Takes what waits on a recording's way, unless it was taken back.
    pub(super) fn push_waiting(&mut self, way: Arc<Waiting>) {
        let Some(run) = way.take() else { return };
        let Run { writer, seq, offset, bytes, sealed_at } = run;
        let segment = SegmentId { recording: way.recording(), writer, seq };
        let start = self.encoded.len();
        encode_sealed(segment, offset, &bytes, &mut self.encoded);
        self.held_bytes += bytes.len();
        self.note_age(Some(sealed_at));
        way.give_back(bytes);
        self.entries.push(BatchEntry { start, kind: Kind::Run { segment, way } });
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.encoded.clear();
        self.held_bytes = 0;
        self.oldest = None;
        // A single huge record must not keep its memory for ever.
        self.encoded.shrink_to(2 * BATCH_BYTES);
    }

    fn note_age(&mut self, sealed_at: Option<Instant>) {
        self.oldest = [self.oldest, sealed_at].into_iter().flatten().min();
    }
}

impl Kind {
    /// Notes that it was written to a file.
    pub(super) fn note_written(&self, ledger: &mut Ledger, file: u32) {
        match self {
            Self::Record(record) => ledger.note_written(record, file),
            // Of the runs of a segment only the first in a file is news.
            Self::Run { segment, way } => {
                if way.note_written(*segment, file) {
                    ledger.note_run(*segment, file);
                }
            }
        }
    }

    /// Notes that it could not be written.
    pub(super) fn note_discarded(&self, ledger: &mut Ledger) {
        match self {
            Self::Record(record) => ledger.note_discarded(record),
            // Its frames are handed over again.
            Self::Run { .. } => {}
        }
    }
}
