//! How a recording ends: its last segment, and the manifest.

use crate::domain::cmr::{EndReason, EndState, ManifestWriter};
use crate::domain::recording::{EndCause, Life, RecordingEnd, StreamCounts, to_cbor};
use crate::domain::time::UnixMillis;

use super::segments::fresh_salt;
use super::{CallSession, Output, SealedManifest, SessionError};

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl CallSession {
    /// Ends the recording: cuts the last segment and seals the manifest.
    ///
    /// # Errors
    /// [`SessionError`] when the manifest cannot be sealed; the segments put out before can be recovered.
    pub fn finish(&mut self, wall: UnixMillis, cause: EndCause) -> Result<(), SessionError> {
        self.cut(end_reason(cause))?;
        let is_orderly =
            matches!(cause, EndCause::Stop | EndCause::AgentClosed) && !self.kept.notes.joined_late;
        let life = if is_orderly && !self.has_loss() { Life::Complete } else { Life::Partial };
        let end = RecordingEnd {
            v: 1,
            life,
            cause,
            ended_ms: wall.0,
            expires_ms: wall.0.saturating_add(u64::from(self.kept.setup.metadata.retention_days) * DAY_MS),
            gaps: std::mem::take(&mut self.kept.gaps).into_entries(),
            counts: self.counts,
            notes: std::mem::take(&mut self.kept.notes.texts),
        };
        let salt = fresh_salt(self.kept.entropy.as_mut())?;
        let manifest = ManifestWriter {
            ids: self.kept.setup.ids,
            writer: self.kept.chain.writer,
            revision: 0,
            created_ms: wall.0,
            rows: &self.kept.rows,
            spans: &self.kept.spans,
            metadata: &self.kept.metadata,
            state: EndState::Complete,
            end: &to_cbor(&end),
        };
        let bytes = manifest.seal(&self.kept.setup.dek, &salt)?;
        self.outputs.push_back(Output::Finished(SealedManifest {
            bytes,
            rows: std::mem::take(&mut self.kept.rows),
            end,
        }));
        Ok(())
    }

    fn has_loss(&self) -> bool {
        let StreamCounts { missing_messages, undecodable, dropped_frames, .. } = self.counts;
        missing_messages > 0 || undecodable > 0 || dropped_frames > 0 || self.kept.gaps.has_loss()
    }
}

fn end_reason(cause: EndCause) -> EndReason {
    match cause {
        EndCause::Stop | EndCause::ClosedEarly | EndCause::AgentClosed => EndReason::CallEnd,
        EndCause::PeerLost
        | EndCause::AgentLost
        | EndCause::ProtocolError
        | EndCause::Internal
        | EndCause::Crash => EndReason::SourceError,
        EndCause::Limit => EndReason::Limit,
        EndCause::Shutdown => EndReason::Shutdown,
    }
}
