//! The manifest of a recording: its rows, metadata and time index (`docs/FORMAT.md` section 7).

use crate::domain::ids::{TrackId, WriterId};

use super::error::{ReadError, SealError};
use super::frame::{Frame, KIND_METADATA, KIND_TIME_INDEX, KIND_TRAILER};
use super::header::{Expected, Fields, ObjectHeader, ObjectKind, parse};
use super::keys::{Dek, Salt};
use super::reader::{EndOfObject, ObjectReader};
use super::segment::{SPLIT_BYTES, seal_bytes};
use super::writer::ObjectWriter;

const COMPLETE: u8 = 1;
const TORN: u8 = 2;
const ROW_BYTES: usize = 44;
const NO_AUDIO: u32 = u32::MAX;

/// One segment as the manifest lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The writer incarnation.
    pub writer: WriterId,
    /// Its number with that writer.
    pub seq: u32,
    /// Bytes of the object.
    pub byte_len: u32,
    /// Digest of the object.
    pub sha256: [u8; 32],
    /// Whether it ends with a trailer.
    pub complete: bool,
}

/// Where one track's audio lies within one row, in samples; `first_pts < end_pts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackSpan {
    /// Which track.
    pub track: TrackId,
    /// Smallest position.
    pub first_pts: u32,
    /// Largest position.
    pub end_pts: u32,
}

/// The tracks with audio of one row.
pub type RowSpan = Vec<TrackSpan>;

/// Widens the span of a row by one audio frame.
pub fn extend_span(span: &mut RowSpan, track: TrackId, pts: u32, samples: u32) {
    let end_pts = pts.saturating_add(samples);
    match span.iter_mut().find(|span| span.track == track) {
        Some(span) => {
            span.first_pts = span.first_pts.min(pts);
            span.end_pts = span.end_pts.max(end_pts);
        }
        None => span.push(TrackSpan { track, first_pts: pts, end_pts }),
    }
}

/// How the recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndState {
    /// By its own writer.
    Complete,
    /// By a recovery job after a crash.
    Recovered,
    /// By a decision of policy.
    ClosedByPolicy,
}

impl EndState {
    fn number(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Recovered => 1,
            Self::ClosedByPolicy => 2,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Complete),
            1 => Some(Self::Recovered),
            2 => Some(Self::ClosedByPolicy),
            _ => None,
        }
    }
}

/// What goes into a manifest.
pub struct ManifestWriter<'a> {
    /// Tenant, recording and key.
    pub ids: Expected,
    /// The writer incarnation of the manifest itself.
    pub writer: WriterId,
    /// 0 at call end; each later one is a new object.
    pub revision: u32,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Every segment in playing order.
    pub rows: &'a [Row],
    /// As many as rows.
    pub spans: &'a [RowSpan],
    /// CBOR.
    pub metadata: &'a [u8],
    /// How the recording ended.
    pub state: EndState,
    /// CBOR.
    pub end: &'a [u8],
}

impl ManifestWriter<'_> {
    /// Seals the manifest. `salt` must be fresh random bytes.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] when there are more rows than 4 MiB of header hold (about 95,000).
    pub fn seal(&self, dek: &Dek, salt: &Salt) -> Result<Vec<u8>, SealError> {
        let header = ObjectHeader {
            kind: ObjectKind::Manifest,
            ids: self.ids,
            writer: self.writer,
            seq: self.revision,
            created_ms: self.created_ms,
            salt: *salt,
            prev: [0; 16],
        };
        let extension = encode_rows(self.rows).ok_or(SealError::Exhausted)?;
        let committed = header.encode(&extension).map_err(|_| SealError::Exhausted)?;
        let mut object = ObjectWriter::new(dek, salt, committed, 0);
        for part in self.metadata.chunks(SPLIT_BYTES) {
            seal_bytes(&mut object, KIND_METADATA << 4, false, part)?;
        }
        for part in encode_index(self.spans).chunks(SPLIT_BYTES) {
            seal_bytes(&mut object, KIND_TIME_INDEX << 4, false, part)?;
        }
        let mut trailer = vec![self.state.number()];
        trailer.extend_from_slice(self.end);
        seal_bytes(&mut object, KIND_TRAILER << 4, true, &trailer)?;
        Ok(object.into_bytes())
    }
}

/// An authenticated manifest.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// 0 at call end.
    pub revision: u32,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Every segment in playing order.
    pub rows: Vec<Row>,
    /// As many as rows.
    pub spans: Vec<RowSpan>,
    /// CBOR.
    pub metadata: Vec<u8>,
    /// How the recording ended.
    pub state: EndState,
    /// CBOR.
    pub end: Vec<u8>,
    /// The commitment of the manifest; its first half is the playback ETag.
    pub commitment: [u8; 32],
}

impl Manifest {
    /// Opens a manifest. It must be complete and nothing may follow it.
    ///
    /// # Errors
    /// Any [`ReadError`] of the object; [`ReadError::TrailingData`] after its end.
    pub fn open(bytes: &[u8], dek: &Dek, expected: &Expected) -> Result<Self, ReadError> {
        let mut reader = ObjectReader::new(bytes, ObjectKind::Manifest, dek, expected)?;
        if reader.header().prev != [0; 16] {
            return Err(ReadError::ChainMismatch(0));
        }
        let rows = parse_rows(reader.extension())?;
        let body = Body::read(&mut reader)?;
        if reader.end() != Some(EndOfObject::Complete) {
            return Err(ReadError::StateMismatch(0));
        }
        if reader.consumed_bytes() != bytes.len() {
            return Err(ReadError::TrailingData);
        }
        let last = reader.frames().saturating_sub(1);
        let (state, end) = body.trailer.split_first().ok_or(ReadError::MalformedFrame(last, "trailer"))?;
        if end.is_empty() {
            return Err(ReadError::MalformedFrame(last, "trailer without a reason"));
        }
        Ok(Self {
            revision: reader.header().seq,
            created_ms: reader.header().created_ms,
            spans: parse_index(&body.index, rows.len())
                .ok_or(ReadError::MalformedFrame(last, "time index"))?,
            rows,
            metadata: body.metadata,
            state: EndState::from_number(*state).ok_or(ReadError::MalformedFrame(last, "state"))?,
            end: end.to_vec(),
            commitment: *reader.commitment(),
        })
    }

    /// Reads the rows of a manifest without any key, for the compactor and for digest checks. Nothing is authenticated.
    ///
    /// # Errors
    /// The parse classes of [`ReadError`].
    pub fn rows_without_key(bytes: &[u8]) -> Result<Vec<Row>, ReadError> {
        let parsed = parse(bytes)?;
        if parsed.header.kind != ObjectKind::Manifest {
            return Err(ReadError::MalformedHeader("type"));
        }
        parse_rows(parsed.extension)
    }

    /// Reads the revision that a manifest states, without any key. Nothing is authenticated.
    ///
    /// # Errors
    /// The parse classes of [`ReadError`].
    pub fn revision_without_key(bytes: &[u8]) -> Result<u32, ReadError> {
        parse(bytes).map(|parsed| parsed.header.seq)
    }
}

/// The joined frames of a manifest.
#[derive(Default)]
struct Body {
    metadata: Vec<u8>,
    index: Vec<u8>,
    trailer: Vec<u8>,
}

impl Body {
    /// Reads all frames: metadata, then the time index, then the trailer.
    fn read(reader: &mut ObjectReader<'_>) -> Result<Self, ReadError> {
        let mut body = Self::default();
        let mut scratch = Vec::new();
        while let Some(frame) = reader.next_frame(&mut scratch)? {
            match frame {
                Frame::Metadata(part) if body.index.is_empty() => body.metadata.extend_from_slice(part),
                Frame::TimeIndex(part) if !body.metadata.is_empty() => body.index.extend_from_slice(part),
                Frame::Trailer(end) if !body.index.is_empty() => body.trailer.extend_from_slice(end),
                Frame::Unknown(_) => {}
                Frame::Metadata(_)
                | Frame::TimeIndex(_)
                | Frame::Trailer(_)
                | Frame::Audio { .. }
                | Frame::Gap { .. }
                | Frame::Event { .. }
                | Frame::TrackTable(_) => {
                    let number = reader.frames().saturating_sub(1);
                    return Err(ReadError::MalformedFrame(number, "kind or order in a manifest"));
                }
            }
        }
        Ok(body)
    }
}

fn encode_rows(rows: &[Row]) -> Option<Vec<u8>> {
    let mut writers: Vec<WriterId> = Vec::new();
    for row in rows {
        if !writers.contains(&row.writer) {
            writers.push(row.writer);
        }
    }
    let mut out = Vec::with_capacity(6 + writers.len() * 16 + rows.len() * ROW_BYTES);
    out.extend_from_slice(&u16::try_from(writers.len()).ok()?.to_be_bytes());
    for writer in &writers {
        out.extend_from_slice(&writer.0);
    }
    out.extend_from_slice(&u32::try_from(rows.len()).ok()?.to_be_bytes());
    for row in rows {
        let writer = writers.iter().position(|writer| *writer == row.writer)?;
        out.extend_from_slice(&u16::try_from(writer).ok()?.to_be_bytes());
        out.extend_from_slice(&[if row.complete { COMPLETE } else { TORN }, 0]);
        out.extend_from_slice(&row.seq.to_be_bytes());
        out.extend_from_slice(&row.byte_len.to_be_bytes());
        out.extend_from_slice(&row.sha256);
    }
    Some(out)
}

fn parse_rows(extension: &[u8]) -> Result<Vec<Row>, ReadError> {
    let malformed = ReadError::MalformedHeader("row table");
    let mut fields = Fields(extension);
    let n_writers = fields.u16().ok_or(malformed.clone())?;
    let writers: Option<Vec<_>> = (0..n_writers).map(|_| fields.take().map(WriterId)).collect();
    let writers = writers.ok_or(malformed.clone())?;
    let distinct: std::collections::BTreeSet<_> = writers.iter().collect();
    if distinct.len() != writers.len() {
        return Err(malformed);
    }
    let n_rows = fields.u32().ok_or(malformed.clone())?;
    // The count is checked against the bytes that are there before anything is set aside for it.
    if usize::try_from(n_rows).ok().and_then(|n| n.checked_mul(ROW_BYTES)) != Some(fields.0.len()) {
        return Err(malformed);
    }
    (0..n_rows).map(|_| parse_row(&mut fields, &writers)).collect::<Option<_>>().ok_or(malformed)
}

fn parse_row(fields: &mut Fields<'_>, writers: &[WriterId]) -> Option<Row> {
    let writer = *writers.get(usize::from(fields.u16()?))?;
    let complete = match fields.take()? {
        [COMPLETE, 0] => true,
        [TORN, 0] => false,
        _ => return None,
    };
    Some(Row { writer, seq: fields.u32()?, byte_len: fields.u32()?, sha256: fields.take()?, complete })
}

/// `u8 n || n x track || per row and track: first, end`; both all-ones where a track has no audio.
fn encode_index(spans: &[RowSpan]) -> Vec<u8> {
    let mut tracks: Vec<TrackId> = spans.iter().flatten().map(|span| span.track).collect();
    tracks.sort_unstable();
    tracks.dedup();
    let mut out = Vec::with_capacity(1 + tracks.len() + spans.len() * tracks.len() * 8);
    out.push(u8::try_from(tracks.len()).unwrap_or(u8::MAX));
    out.extend(tracks.iter().map(|track| track.number()));
    for row in spans {
        for track in &tracks {
            let span = row.iter().find(|span| span.track == *track);
            let (first, end) = span.map_or((NO_AUDIO, NO_AUDIO), |span| (span.first_pts, span.end_pts));
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&end.to_be_bytes());
        }
    }
    out
}

fn parse_index(index: &[u8], rows: usize) -> Option<Vec<RowSpan>> {
    let mut fields = Fields(index);
    let n_tracks = usize::from(fields.u8()?);
    let tracks: Vec<u8> = (0..n_tracks).map(|_| fields.u8()).collect::<Option<_>>()?;
    let ascending = tracks.is_sorted_by(|a, b| a < b);
    let in_range = tracks.iter().all(|track| usize::from(*track) < TrackId::COUNT);
    if !ascending || !in_range || fields.0.len() != rows.checked_mul(n_tracks)?.checked_mul(8)? {
        return None;
    }
    (0..rows).map(|_| parse_row_span(&mut fields, &tracks)).collect()
}

fn parse_row_span(fields: &mut Fields<'_>, tracks: &[u8]) -> Option<RowSpan> {
    let mut row = RowSpan::new();
    for track in tracks {
        let (first_pts, end_pts) = (fields.u32()?, fields.u32()?);
        match (first_pts, end_pts) {
            (NO_AUDIO, NO_AUDIO) => {}
            _ if first_pts < end_pts => {
                row.push(TrackSpan { track: TrackId::from_nibble(*track), first_pts, end_pts });
            }
            _ => return None,
        }
    }
    Some(row)
}
