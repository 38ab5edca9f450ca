//! When a segment begins and ends.

use std::time::{Duration, Instant};

use crate::domain::cmr::{
    EndReason, Row, RowSpan, Salt, SealError, SegmentIds, SegmentWriter, TrackSpan, TrackTotals, limits,
    sha256,
};
use crate::domain::ids::{TrackId, WriterId};
use crate::domain::time::UnixMillis;

use super::{CallSession, Entropy, EntropyFailed, Output, SealedSegment, SegmentLimits, SessionError};

/// Frame numbers kept free for what one message can need at most: a gap, its audio in parts, the trailer.
const SPARE_FRAMES: u32 = 64;
/// Bytes kept free for the same: a message has at most 1 MiB, its audio and the sealing around it less.
const SPARE_BYTES: usize = 1024 * 1024;
/// A segment gets room for the bytes of the one before and this part of them more.
const SPARE_PART: usize = 16;

/// Where the next segment stands in its writer's chain.
pub(super) struct Chain {
    pub(super) writer: WriterId,
    pub(super) next_seq: u32,
    pub(super) prev: [u8; 16],
    /// Bytes of the segment before.
    pub(super) last_bytes: usize,
}

pub(super) struct OpenSegment {
    pub(super) writer: SegmentWriter,
    pub(super) opened_at: Instant,
    pub(super) journaled_bytes: usize,
}

/// Returns limits that are within those of the format.
pub(super) fn bounded(limits: SegmentLimits) -> SegmentLimits {
    SegmentLimits {
        max_age: limits.max_age.min(Duration::from_secs(limits::SEGMENT_SECS)),
        max_bytes: limits.max_bytes.min(limits::OBJECT_BYTES - SPARE_BYTES),
    }
}

impl CallSession {
    pub(super) fn segment(&mut self) -> Result<&mut SegmentWriter, SessionError> {
        let open = self.open.as_mut().ok_or(SealError::Poisoned)?;
        Ok(&mut open.writer)
    }

    pub(super) fn rotate_if_due(&mut self, now: Instant, wall: UnixMillis) -> Result<(), SessionError> {
        let SegmentLimits { max_age, max_bytes } = self.limits;
        let due = match &self.open {
            Some(open) => {
                let old = now.saturating_duration_since(open.opened_at) >= max_age;
                let full = open.writer.frames() >= limits::FRAMES - SPARE_FRAMES;
                open.has_content() && (old || full || open.writer.bytes().len() >= max_bytes)
            }
            None => true,
        };
        if due {
            self.cut(EndReason::Rotate)?;
            self.open_segment(now, wall)?;
        }
        if let Some(open) = self.open.as_mut().filter(|open| !open.has_content()) {
            open.opened_at = now;
        }
        Ok(())
    }

    pub(super) fn open_segment(&mut self, now: Instant, wall: UnixMillis) -> Result<(), SessionError> {
        let ids = SegmentIds {
            ids: self.kept.setup.ids,
            writer: self.kept.chain.writer,
            seq: self.kept.chain.next_seq,
            created_ms: wall.0,
            prev: self.kept.chain.prev,
        };
        let salt = fresh_salt(self.kept.entropy.as_mut())?;
        let metadata = (ids.seq == 0).then_some(self.kept.metadata.as_slice());
        // As the one before, mostly: a buffer that grows copies and clears everything in it again and again.
        let capacity = self.kept.chain.last_bytes + self.kept.chain.last_bytes / SPARE_PART;
        let (dek, tracks) = (&self.kept.setup.dek, self.kept.track_table.as_slice());
        let writer = SegmentWriter::start(dek, ids, &salt, tracks, metadata, capacity)?;
        self.open = Some(OpenSegment { writer, opened_at: now, journaled_bytes: 0 });
        Ok(())
    }

    pub(super) fn cut(&mut self, reason: EndReason) -> Result<(), SessionError> {
        if self.open.as_ref().is_some_and(|open| open.writer.is_poisoned()) {
            return self.abandon();
        }
        if self.open.is_some() {
            self.seal_left_out(TrackId::CALLER)?;
            self.seal_left_out(TrackId::AGENT)?;
        }
        let Some(open) = self.open.take() else { return Ok(()) };
        let finished = open.writer.finish(reason)?;
        self.kept.chain.next_seq += 1;
        self.kept.chain.prev = finished.commitment_half;
        self.kept.chain.last_bytes = finished.bytes.len();
        self.kept.spans.push(row_span(&finished.tracks));
        self.kept.rows.push(finished.row);
        self.outputs.push_back(Output::Segment(SealedSegment {
            row: finished.row,
            bytes: finished.bytes,
            journaled_bytes: open.journaled_bytes,
            opened_at: open.opened_at,
        }));
        Ok(())
    }

    /// Puts a poisoned segment out as it is and goes on as a new writer.
    pub(super) fn abandon(&mut self) -> Result<(), SessionError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let bytes = open.writer.bytes().to_vec();
        let ids = *open.writer.ids();
        let row = Row {
            writer: ids.writer,
            seq: ids.seq,
            byte_len: u32::try_from(bytes.len()).map_err(|_| SealError::Exhausted)?,
            sha256: sha256(&bytes),
            complete: false,
        };
        self.kept.spans.push(row_span(&open.writer.totals()));
        self.kept.rows.push(row);
        self.outputs.push_back(Output::Segment(SealedSegment {
            row,
            bytes,
            journaled_bytes: open.journaled_bytes,
            opened_at: open.opened_at,
        }));
        self.kept.chain = Chain::new(self.kept.entropy.as_mut())?;
        Ok(())
    }
}

impl Chain {
    pub(super) fn new(entropy: &mut dyn Entropy) -> Result<Self, EntropyFailed> {
        let mut writer = WriterId([0; 16]);
        entropy.fill(&mut writer.0)?;
        Ok(Self { writer, next_seq: 0, prev: [0; 16], last_bytes: 0 })
    }
}

impl OpenSegment {
    /// Whether there is more in it than what every segment begins with.
    pub(super) fn has_content(&self) -> bool {
        self.writer.has_content()
    }
}

pub(super) fn fresh_salt(entropy: &mut dyn Entropy) -> Result<Salt, EntropyFailed> {
    let mut salt = [0; 32];
    entropy.fill(&mut salt)?;
    Ok(salt)
}

pub(super) fn row_span(tracks: &[TrackTotals]) -> RowSpan {
    tracks.iter().map(|t| TrackSpan { track: t.track, first_pts: t.first_pts, end_pts: t.end_pts }).collect()
}
