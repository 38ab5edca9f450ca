//! Writes one segment (`docs/FORMAT.md` section 6).

use std::hint::black_box;

use sha2::{Digest, Sha256};

use crate::domain::ids::{TrackId, WriterId, first_16};

use super::error::{ReadError, SealError};
use super::frame::{
    GapReason, KIND_AUDIO, KIND_AUDIO_AT, KIND_EVENT, KIND_GAP, KIND_METADATA, KIND_TRACK_TABLE, KIND_TRAILER,
};
use super::header::{Expected, Fields, ObjectHeader, ObjectKind};
use super::keys::{Dek, Salt};
use super::manifest::Row;
use super::writer::ObjectWriter;

/// Longest part of a text that is split over several frames.
pub(super) const SPLIT_BYTES: usize = 32_000;

/// Why a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Its age or size bound was reached; another one follows.
    Rotate,
    /// The call ended.
    CallEnd,
    /// The process is shutting down.
    Shutdown,
    /// The provider's connection was lost or broke its protocol.
    SourceError,
    /// A limit of the tenant or the format was reached.
    Limit,
}

impl EndReason {
    fn number(self) -> u8 {
        match self {
            Self::Rotate => 1,
            Self::CallEnd => 2,
            Self::Shutdown => 3,
            Self::SourceError => 4,
            Self::Limit => 5,
        }
    }
}

/// Whose segment it is and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct SegmentIds {
    /// Tenant, recording and key.
    pub ids: Expected,
    /// The writer incarnation.
    pub writer: WriterId,
    /// 0, 1, 2, … per writer.
    pub seq: u32,
    /// Unix milliseconds, informative.
    pub created_ms: u64,
    /// First half of the previous segment's commitment; zero for the first.
    pub prev: [u8; 16],
}

/// What one track holds in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackTotals {
    /// Which track.
    pub track: TrackId,
    /// Audio frames.
    pub frames: u32,
    /// Smallest position of its audio, in samples.
    pub first_pts: u32,
    /// Largest position after its audio, in samples.
    pub end_pts: u32,
    /// Audio bytes.
    pub payload_bytes: u64,
}

impl TrackTotals {
    /// Counts one audio frame from `pts` to `end`.
    pub(super) fn count(totals: &mut Vec<Self>, track: TrackId, pts: u32, end: u32, payload_bytes: u64) {
        let frame = Self { track, frames: 1, first_pts: pts, end_pts: end, payload_bytes };
        match totals.iter_mut().find(|totals| totals.track == track) {
            Some(totals) => totals.add(frame),
            None => totals.push(frame),
        }
    }

    fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.first_pts = self.first_pts.min(other.first_pts);
        self.end_pts = self.end_pts.max(other.end_pts);
        self.payload_bytes += other.payload_bytes;
    }
}

/// A track of the open segment.
struct OpenTrack {
    totals: TrackTotals,
    /// Where a frame without an own position would start.
    continues_at: Option<u32>,
}

/// A segment that is complete: its bytes and what the manifest says of it.
#[derive(Debug)]
pub struct FinishedSegment {
    /// The whole object.
    pub bytes: Vec<u8>,
    /// Its row for the manifest.
    pub row: Row,
    /// Its tracks with audio, by number.
    pub tracks: Vec<TrackTotals>,
    /// What the next segment's `prev` must hold.
    pub commitment_half: [u8; 16],
}

/// Seals frames into one segment. Owns its nonce counter; not `Clone`; consumed by [`SegmentWriter::finish`].
pub struct SegmentWriter {
    object: ObjectWriter,
    ids: SegmentIds,
    /// Those with audio.
    tracks: Vec<OpenTrack>,
    /// Frames that every segment of its place begins with.
    preamble_frames: u32,
}

impl SegmentWriter {
    /// Starts a segment with its track table and, in a writer's first one, the recording's metadata (both CBOR).
    ///
    /// `salt` must be fresh random bytes. `capacity` is how many bytes to set aside at once.
    ///
    /// # Errors
    /// [`SealError`] when the cipher refuses.
    pub fn start(
        dek: &Dek,
        ids: SegmentIds,
        salt: &Salt,
        track_table: &[u8],
        metadata: Option<&[u8]>,
        capacity: usize,
    ) -> Result<Self, SealError> {
        let header = ObjectHeader {
            kind: ObjectKind::Segment,
            ids: ids.ids,
            writer: ids.writer,
            seq: ids.seq,
            created_ms: ids.created_ms,
            salt: *salt,
            prev: ids.prev,
        };
        let committed = header.encode(&[]).map_err(|_| SealError::Exhausted)?;
        let mut object = ObjectWriter::new(dek, salt, committed, capacity);
        seal_bytes(&mut object, KIND_TRACK_TABLE << 4, false, track_table)?;
        for part in metadata.unwrap_or_default().chunks(SPLIT_BYTES) {
            seal_bytes(&mut object, KIND_METADATA << 4, false, part)?;
        }
        let preamble_frames = object.frames();
        Ok(Self { object, ids, tracks: Vec::new(), preamble_frames })
    }

    /// Seals one audio frame as the next frame of this segment.
    ///
    /// `fill` appends the provider's payload, at most [`super::MAX_FRAME_PAYLOAD_BYTES`], to the segment's own bytes
    /// and answers how many samples it holds; nothing is sealed when it fails. `pts` is the position in samples.
    /// Adds [`super::OVERHEAD_BYTES`] bytes, four more when the frame does not follow the track's previous one.
    ///
    /// Nonce: base nonce XOR frame number (`docs/FORMAT.md` section 5).
    ///
    /// # Errors
    /// [`SealError::Exhausted`] after 65,535 frames or 16 MiB: start a new segment. What `fill` answers otherwise.
    pub fn audio_with<E: From<SealError>>(
        &mut self,
        track: TrackId,
        pts: u32,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<u32, E>,
    ) -> Result<u32, E> {
        let follows = self.track(track).is_some_and(|known| known.continues_at == Some(pts));
        let kind = if follows { KIND_AUDIO } else { KIND_AUDIO_AT };
        let before = self.object.bytes().len();
        let samples = self.object.seal(kind << 4 | track.number(), false, |inner| {
            if !follows {
                inner.extend_from_slice(&pts.to_be_bytes());
            }
            fill(inner)
        })?;
        let overhead = super::OVERHEAD_BYTES + if follows { 0 } else { 4 };
        let payload_bytes = self.object.bytes().len() - before - overhead;
        let end = pts.saturating_add(samples);
        let totals = TrackTotals {
            track,
            frames: 1,
            first_pts: pts,
            end_pts: end,
            payload_bytes: payload_bytes as u64,
        };
        match self.track(track) {
            Some(known) => {
                known.totals.add(totals);
                known.continues_at = Some(end);
            }
            None => self.tracks.push(OpenTrack { totals, continues_at: Some(end) }),
        }
        Ok(samples)
    }

    /// Seals a gap: audio that is missing, and why.
    ///
    /// # Errors
    /// [`SealError`]; see [`SegmentWriter::audio_with`].
    pub fn gap(
        &mut self,
        track: TrackId,
        pts: u32,
        samples: u32,
        reason: GapReason,
    ) -> Result<(), SealError> {
        self.object.seal(KIND_GAP << 4 | track.number(), false, |inner| {
            inner.extend_from_slice(&pts.to_be_bytes());
            inner.extend_from_slice(&samples.to_be_bytes());
            inner.push(reason.number());
            Ok::<_, SealError>(())
        })?;
        if let Some(known) = self.track(track) {
            known.continues_at = None;
        }
        Ok(())
    }

    /// Seals an event (CBOR) at a position of a track's clock.
    ///
    /// # Errors
    /// [`SealError`]; see [`SegmentWriter::audio_with`].
    pub fn event(&mut self, track: TrackId, pts: u32, body: &[u8]) -> Result<(), SealError> {
        self.object.seal(KIND_EVENT << 4 | track.number(), false, |inner| {
            inner.extend_from_slice(&pts.to_be_bytes());
            inner.extend_from_slice(body);
            Ok(())
        })
    }

    /// Seals the trailer and ends the segment.
    ///
    /// # Errors
    /// [`SealError`]; the segment then stays without a trailer and its bytes are lost to the caller.
    pub fn finish(mut self, reason: EndReason) -> Result<FinishedSegment, SealError> {
        self.tracks.sort_by_key(|known| known.totals.track);
        let frames = self.object.frames() + 1;
        let tracks = self.totals();
        self.object.seal(KIND_TRAILER << 4, true, |inner| {
            encode_trailer(inner, frames, reason, &tracks);
            Ok::<_, SealError>(())
        })?;
        let commitment_half = first_16(self.object.commitment());
        let bytes = self.object.into_bytes();
        let row = Row {
            writer: self.ids.writer,
            seq: self.ids.seq,
            byte_len: u32::try_from(bytes.len()).map_err(|_| SealError::Exhausted)?,
            sha256: Sha256::digest(&bytes).into(),
            complete: true,
        };
        Ok(FinishedSegment { bytes, row, tracks, commitment_half })
    }

    /// Reads a little of what the next frame needs, so that it is in the processor's cache by then.
    pub fn prefetch(&self) {
        black_box(self.tracks.first().map(|known| known.totals.frames));
        self.object.prefetch();
    }

    /// Returns the sealed bytes so far: header and whole frames.
    pub fn bytes(&self) -> &[u8] {
        self.object.bytes()
    }

    /// Returns the segment's place in the recording.
    pub fn ids(&self) -> &SegmentIds {
        &self.ids
    }

    /// Returns how many frames were sealed.
    pub fn frames(&self) -> u32 {
        self.object.frames()
    }

    /// Whether there is more in it than table and metadata.
    pub fn has_content(&self) -> bool {
        self.object.frames() > self.preamble_frames
    }

    /// Whether an earlier failure makes sealing impossible.
    pub fn is_poisoned(&self) -> bool {
        self.object.is_poisoned()
    }

    /// Returns what each track holds so far.
    pub fn totals(&self) -> Vec<TrackTotals> {
        self.tracks.iter().map(|known| known.totals).collect()
    }

    fn track(&mut self, track: TrackId) -> Option<&mut OpenTrack> {
        self.tracks.iter_mut().find(|known| known.totals.track == track)
    }
}

/// Seals `bytes` as one frame.
pub(super) fn seal_bytes(
    object: &mut ObjectWriter,
    head: u8,
    last: bool,
    bytes: &[u8],
) -> Result<(), SealError> {
    object.seal(head, last, |inner| {
        inner.extend_from_slice(bytes);
        Ok(())
    })
}

fn encode_trailer(inner: &mut Vec<u8>, frames: u32, reason: EndReason, tracks: &[TrackTotals]) {
    inner.extend_from_slice(&frames.to_be_bytes());
    inner.push(reason.number());
    inner.push(u8::try_from(tracks.len()).unwrap_or(u8::MAX));
    for totals in tracks {
        inner.extend_from_slice(&[totals.track.number(), 0, 0, 0]);
        inner.extend_from_slice(&totals.frames.to_be_bytes());
        inner.extend_from_slice(&totals.first_pts.to_be_bytes());
        inner.extend_from_slice(&totals.end_pts.to_be_bytes());
        inner.extend_from_slice(&totals.payload_bytes.to_be_bytes());
    }
}

/// A segment trailer as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailerTotals {
    /// Frames of the segment, trailer included.
    pub frames: u32,
    /// Why the segment ended, as its number.
    pub reason: u8,
    /// Its tracks with audio.
    pub tracks: Vec<TrackTotals>,
}

impl TrailerTotals {
    /// Reads the body of a segment's trailer, frame `number`.
    ///
    /// # Errors
    /// [`ReadError::MalformedFrame`] when it is cut short, too long, or counts wrongly.
    pub fn parse(number: u32, body: &[u8]) -> Result<Self, ReadError> {
        let mut fields = Fields(body);
        let parsed = (|| {
            let frames = fields.u32()?;
            let reason = fields.u8()?;
            let tracks = (0..fields.u8()?).map(|_| parse_totals(&mut fields)).collect::<Option<_>>()?;
            fields.0.is_empty().then_some(Self { frames, reason, tracks })
        })();
        let trailer = parsed.ok_or(ReadError::MalformedFrame(number, "trailer"))?;
        if trailer.frames != number + 1 {
            return Err(ReadError::MalformedFrame(number, "trailer counts other frames"));
        }
        Ok(trailer)
    }
}

fn parse_totals(fields: &mut Fields<'_>) -> Option<TrackTotals> {
    let [track, 0, 0, 0] = fields.take()? else { return None };
    if usize::from(track) >= TrackId::COUNT {
        return None;
    }
    Some(TrackTotals {
        track: TrackId::from_nibble(track),
        frames: fields.u32()?,
        first_pts: fields.u32()?,
        end_pts: fields.u32()?,
        payload_bytes: fields.u64()?,
    })
}
