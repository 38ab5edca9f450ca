//! The way of one recording's sealed bytes into the journal.

use std::time::Instant;

use super::inlet::Noted;
use super::whole::SegmentId;
use super::{Journal, Refused};
use crate::domain::ids::{RecordingId, WriterId};

/// The way of one recording's sealed bytes into the journal.
pub struct Runs {
    journal: Journal,
    recording: RecordingId,
    /// The last segment that the ledger was told of, and for which file.
    noted: Noted,
}

impl Runs {
    /// Hands whole sealed frames over, which begin at `offset` of the segment `seq` of `writer`, in bytes; copies them and waits
    /// for no disk. They are written within [`JournalConfig::flush_interval`](super::JournalConfig::flush_interval).
    ///
    /// # Errors
    /// [`Refused`]; the caller hands a larger range over with its next frames.
    pub fn append(
        &mut self,
        (writer, seq): (WriterId, u32),
        offset: u32,
        bytes: &[u8],
        sealed_at: Instant,
    ) -> Result<(), Refused> {
        let segment = SegmentId { recording: self.recording, writer, seq };
        self.journal.shared.inlet.append_run(segment, offset, bytes, sealed_at, &mut self.noted)
    }
}

impl Journal {
    /// Opens the way for a recording's sealed bytes.
    pub fn runs(&self, recording: RecordingId) -> Runs {
        Runs { journal: self.clone(), recording, noted: None }
    }
}
