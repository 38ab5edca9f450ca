//! What is told of a lane's work to whoever looks at traces.

use crate::domain::cmr::Row;
use crate::domain::recording::Life;
use crate::observe::traces::{Span, words};
use crate::store::StoreError;

use super::{Failed, LaneError, LaneTask};

impl LaneTask {
    pub(super) fn upload_span(&self, row: &Row) -> Span {
        let mut span = Span::part_of(&self.place, words::UPLOAD);
        span.recording(self.context.recording);
        span.number(words::SEGMENT, u64::from(row.seq));
        span.number(words::BYTES, u64::from(row.byte_len));
        span
    }

    pub(super) fn finish_span(&self, life: Life) -> Span {
        let mut span = Span::part_of(&self.place, words::FINISH);
        span.recording(self.context.recording);
        span.word(words::LIFE, life.name());
        span
    }
}

/// Ends a span with what came of its work.
pub(super) fn end(mut span: Span, done: &Result<(), LaneError>) {
    match done {
        Ok(()) => {}
        Err(LaneError::Put(_)) => span.fail("taken"),
        Err(LaneError::Compact(_)) => span.fail("compaction"),
        Err(LaneError::ReadBack(_)) => span.fail("journal"),
    }
}

impl Failed {
    /// Returns the word for why a try was none.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Store(error) => error.as_ref().map_or("timed_out", StoreError::label),
            Self::Journal(_) => "journal",
        }
    }
}
