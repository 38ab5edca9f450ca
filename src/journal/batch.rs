//! What the writer writes with one call.

use std::time::Instant;

use super::Record;
use super::ledger::Ledger;
use super::record::encode_sealed;
use super::scan::{Found, scan_buffered};
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
    /// How many were appended, those without an entry too.
    pub(super) records: usize,
    /// When the oldest frame in it was sealed.
    pub(super) oldest: Option<Instant>,
    /// The file of which the ledger knows all segments whose runs have no entry.
    pub(super) file: Option<u32>,
}

/// One record of a batch.
pub(super) struct BatchEntry {
    /// Where it begins in the batch.
    pub(super) start: usize,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Record(Record),
    /// A run of sealed frames, the first of its segment for the batch's file.
    Run(SegmentId),
}

impl Batch {
    pub(super) fn push(&mut self, record: Record) {
        let start = self.encoded.len();
        record.encode(&mut self.encoded);
        self.held_bytes += record.held_bytes();
        self.records += 1;
        self.note_age(record.sealed_at());
        self.entries.push(BatchEntry { start, kind: Kind::Record(record) });
    }

    /// Takes a run of sealed frames, with an entry where it `is_news` for the batch's file.
    pub(super) fn push_run(
        &mut self,
        segment: SegmentId,
        offset: u32,
        bytes: &[u8],
        sealed_at: Instant,
        is_news: bool,
    ) {
        let start = self.encoded.len();
        encode_sealed(segment, offset, bytes, &mut self.encoded);
        self.held_bytes += bytes.len();
        self.records += 1;
        self.note_age(Some(sealed_at));
        if is_news {
            self.entries.push(BatchEntry { start, kind: Kind::Run(segment) });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.encoded.clear();
        (self.held_bytes, self.records) = (0, 0);
        (self.oldest, self.file) = (None, None);
        // A single huge record must not keep its memory for ever.
        self.encoded.shrink_to(2 * BATCH_BYTES);
    }

    /// Notes that all of it was written to a file.
    pub(super) fn note_written(&self, ledger: &mut Ledger, file: u32) {
        // Between two files some come into the next that were meant for the one before: then nothing is known of any.
        if self.file != Some(file) && self.records > self.entries.len() {
            scan_buffered(&self.encoded[..], |found| {
                if let Found::Sealed { recording, writer, seq, .. } = found {
                    ledger.note_run(SegmentId { recording, writer, seq }, file);
                }
            });
        }
        for BatchEntry { kind, .. } in &self.entries {
            match kind {
                Kind::Record(record) => ledger.note_written(record, file),
                Kind::Run(segment) => ledger.note_run(*segment, file),
            }
        }
    }

    /// Notes that it could not be written. Frames are handed over again.
    pub(super) fn note_discarded(&self, ledger: &mut Ledger) {
        for BatchEntry { kind, .. } in &self.entries {
            match kind {
                Kind::Record(record) => ledger.note_discarded(record),
                Kind::Run(_) => {}
            }
        }
    }

    fn note_age(&mut self, sealed_at: Option<Instant>) {
        self.oldest = [self.oldest, sealed_at].into_iter().flatten().min();
    }
}
