//! Finishes a recording whose writer died: a manifest from nothing but its segments and its DEK.
//!
//! Every segment is opened, so nothing that fails authentication gets into a manifest.

use std::collections::BTreeMap;

use crate::domain::cmr::{
    Dek, EndOfObject, EndState, Expected, Frame, GapReason, ManifestWriter, ObjectKind, ObjectReader,
    ReadError, Row, RowSpan, Salt, SealError, extend_span, sha256,
};
use crate::domain::ids::{TrackId, WriterId};
use crate::domain::recording::{
    EndCause, GapEntry, Life, MAX_GAP_ENTRIES, RecordingEnd, RecordingMetadata, StreamCounts, from_cbor,
    to_cbor,
};
use crate::domain::time::UnixMillis;

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Why segments cannot be joined to a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// A segment does not open.
    #[error("segment {seq} of writer {writer}")]
    Segment {
        /// Its writer.
        writer: WriterId,
        /// Its number.
        seq: u32,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A segment is missing in the middle.
    #[error("segment {seq} of writer {writer} is missing")]
    Hole {
        /// Its writer.
        writer: WriterId,
        /// Its number.
        seq: u32,
    },
    /// No first segment, so nothing is known of the recording.
    #[error("recording has no first segment")]
    Nothing,
    /// The manifest cannot be sealed.
    #[error("manifest")]
    Seal(#[from] SealError),
}

/// Collects segments in any order.
pub struct Rebuild<'k> {
    dek: &'k Dek,
    ids: Expected,
    segments: BTreeMap<(u64, WriterId, u32), Segment>,
    metadata: Option<Vec<u8>>,
    gaps: Vec<GapEntry>,
    counts: StreamCounts,
}

struct Segment {
    row: Row,
    span: RowSpan,
    created_ms: u64,
}

/// A recovered recording.
#[derive(Debug)]
pub struct Rebuilt {
    /// The manifest object.
    pub manifest: Vec<u8>,
    /// What is sealed about its beginning.
    pub metadata: RecordingMetadata,
    /// What is sealed about its end.
    pub end: RecordingEnd,
}

impl<'k> Rebuild<'k> {
    /// Starts with no segment.
    pub fn new(dek: &'k Dek, ids: Expected) -> Self {
        Self {
            dek,
            ids,
            segments: BTreeMap::new(),
            metadata: None,
            gaps: Vec::new(),
            counts: StreamCounts::default(),
        }
    }

    /// Opens one segment, whole or cut short at any byte, and notes what it holds.
    ///
    /// # Errors
    /// [`RebuildError::Segment`]; the segment is left out and should be kept for a closer look.
    pub fn add(&mut self, writer: WriterId, seq: u32, segment: &[u8]) -> Result<(), RebuildError> {
        let failed = |source| RebuildError::Segment { writer, seq, source };
        let mut reader =
            ObjectReader::new(segment, ObjectKind::Segment, self.dek, &self.ids).map_err(failed)?;
        if reader.header().writer != writer || reader.header().seq != seq {
            return Err(failed(ReadError::SequenceMismatch(0)));
        }
        let (mut metadata, mut span, mut scratch) = (Vec::new(), RowSpan::new(), Vec::new());
        while let Some(frame) = reader.next_frame(&mut scratch).map_err(failed)? {
            match frame {
                Frame::Metadata(part) => metadata.extend_from_slice(part),
                Frame::Audio { track, pts, samples, payload } => {
                    self.counts.frames += 1;
                    self.counts.audio_bytes += payload.len() as u64;
                    extend_span(&mut span, track, pts, samples);
                }
                Frame::Gap { track, pts, samples, reason } => self.note_gap(track, pts, samples, reason),
                Frame::Event { .. }
                | Frame::TrackTable(_)
                | Frame::TimeIndex(_)
                | Frame::Trailer(_)
                | Frame::Unknown(_) => {}
            }
        }
        span.sort_by_key(|span| span.track);
        if self.metadata.is_none() && !metadata.is_empty() {
            self.metadata = Some(metadata);
        }
        let row = Row {
            writer,
            seq,
            byte_len: u32::try_from(segment.len())
                .map_err(|_| failed(ReadError::LimitExceeded("segment")))?,
            sha256: sha256(segment),
            complete: reader.end() == Some(EndOfObject::Complete),
        };
        let created_ms = reader.header().created_ms;
        self.segments.insert((created_ms, writer, seq), Segment { row, span, created_ms });
        Ok(())
    }

    /// Seals the manifest as `revision`. `salt` and `writer` must be fresh random bytes.
    ///
    /// # Errors
    /// [`RebuildError::Hole`], [`RebuildError::Nothing`], [`RebuildError::Seal`].
    pub fn finish(
        self,
        revision: u32,
        writer: WriterId,
        salt: &Salt,
        now: UnixMillis,
    ) -> Result<Rebuilt, RebuildError> {
        let segments = self.in_order()?;
        let metadata_bytes = self.metadata.clone().ok_or(RebuildError::Nothing)?;
        let metadata = self.metadata()?;
        let end = self.end(&metadata, &segments);
        let rows: Vec<Row> = segments.iter().map(|segment| segment.row).collect();
        let spans: Vec<RowSpan> = segments.iter().map(|segment| segment.span.clone()).collect();
        let manifest = ManifestWriter {
            ids: self.ids,
            writer,
            revision,
            created_ms: now.0,
            rows: &rows,
            spans: &spans,
            metadata: &metadata_bytes,
            state: EndState::Recovered,
            end: &to_cbor(&end),
        }
        .seal(self.dek, salt)?;
        Ok(Rebuilt { manifest, metadata, end })
    }

    /// Returns what is sealed about the recording's beginning.
    ///
    /// # Errors
    /// [`RebuildError::Nothing`].
    pub fn metadata(&self) -> Result<RecordingMetadata, RebuildError> {
        let bytes = self.metadata.as_deref().ok_or(RebuildError::Nothing)?;
        from_cbor(bytes).map_err(|_| RebuildError::Nothing)
    }

    /// Returns the rows added so far in playing order, for a recording that has no manifest yet.
    ///
    /// # Errors
    /// [`RebuildError::Hole`].
    pub fn rows_so_far(&self) -> Result<Vec<(Row, RowSpan)>, RebuildError> {
        Ok(self.in_order()?.into_iter().map(|segment| (segment.row, segment.span.clone())).collect())
    }

    /// Writers by the time of their first segment, each writer's segments by number, without holes.
    fn in_order(&self) -> Result<Vec<&Segment>, RebuildError> {
        let mut writers: Vec<WriterId> = Vec::new();
        for (_, writer, _) in self.segments.keys() {
            if !writers.contains(writer) {
                writers.push(*writer);
            }
        }
        let mut ordered = Vec::with_capacity(self.segments.len());
        for writer in writers {
            let mut of_writer: Vec<&Segment> =
                self.segments.values().filter(|segment| segment.row.writer == writer).collect();
            of_writer.sort_by_key(|segment| segment.row.seq);
            for (seq, segment) in (0..).zip(&of_writer) {
                if segment.row.seq != seq {
                    return Err(RebuildError::Hole { writer, seq });
                }
            }
            ordered.extend(of_writer);
        }
        Ok(ordered)
    }

    fn end(&self, metadata: &RecordingMetadata, segments: &[&Segment]) -> RecordingEnd {
        let last_pts = segments.iter().flat_map(|s| &s.span).map(|span| span.end_pts).max().unwrap_or(0);
        let last_created = segments.iter().map(|segment| segment.created_ms).max().unwrap_or(0);
        let by_audio = metadata.started_ms.saturating_add(metadata.format.millis(last_pts));
        let ended_ms = by_audio.max(last_created);
        RecordingEnd {
            v: 1,
            life: Life::Recovered,
            cause: EndCause::Crash,
            ended_ms,
            expires_ms: ended_ms.saturating_add(u64::from(metadata.retention_days) * DAY_MS),
            gaps: self.gaps.clone(),
            counts: self.counts,
            notes: BTreeMap::new(),
        }
    }

    fn note_gap(&mut self, track: TrackId, pts: u32, samples: u32, reason: GapReason) {
        if self.gaps.len() < MAX_GAP_ENTRIES {
            self.gaps.push(GapEntry { track: track.number(), pts, samples, reason: reason.number() });
            return;
        }
        self.counts.unlisted_gaps += 1;
        self.counts.unlisted_gap_samples += u64::from(samples);
    }
}
