//! The inside of a sealed frame: head byte and body (`docs/FORMAT.md` section 5).

use serde::Deserialize;

use crate::domain::audio::Codec;
use crate::domain::ids::TrackId;

use super::error::ReadError;
use super::header::Fields;
use super::segment::TrackTotals;

/// Bytes that sealing adds to an ordinary audio frame: prefix 2, head 1, tag 16.
pub const OVERHEAD_BYTES: usize = 19;
/// The same for a frame that carries its own position.
pub const OVERHEAD_EXPLICIT_BYTES: usize = OVERHEAD_BYTES + 4;
/// The longest audio payload of one frame, a whole number of samples of every codec; longer ones are split.
pub const MAX_FRAME_PAYLOAD_BYTES: usize = 32_746;
/// The longest inside of a frame.
pub(super) const MAX_INNER_BYTES: usize = 32_751;

pub(super) const KIND_AUDIO: u8 = 0;
pub(super) const KIND_AUDIO_AT: u8 = 1;
pub(super) const KIND_GAP: u8 = 2;
pub(super) const KIND_EVENT: u8 = 3;
pub(super) const KIND_TRACK_TABLE: u8 = 4;
pub(super) const KIND_METADATA: u8 = 5;
pub(super) const KIND_TIME_INDEX: u8 = 6;
pub(super) const KIND_TRAILER: u8 = 15;

/// Why audio is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GapReason {
    /// The provider sent none: mute, hold, silence suppression, packet loss before it.
    Source,
    /// Our own bound was reached; dropped before sealing.
    Overload,
    /// Recording was paused on request.
    Pause,
    /// The tenant's policy mutes this part.
    Policy,
    /// The provider's numbering has a hole: sent, but lost or discarded before it reached us; or it was not readable.
    LostBeforeUs,
}

impl GapReason {
    /// Returns the number that stands in the frame.
    pub fn number(self) -> u8 {
        match self {
            Self::Source => 1,
            Self::Overload => 2,
            Self::Pause => 3,
            Self::Policy => 4,
            Self::LostBeforeUs => 5,
        }
    }

    /// Returns the reason for the number of a frame; `None` for one that version 1 does not have.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Source),
            2 => Some(Self::Overload),
            3 => Some(Self::Pause),
            4 => Some(Self::Policy),
            5 => Some(Self::LostBeforeUs),
            _ => None,
        }
    }

    /// Returns the word for it in metrics and command output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Overload => "overload",
            Self::Pause => "pause",
            Self::Policy => "policy",
            Self::LostBeforeUs => "lost_before_us",
        }
    }
}

/// One opened frame. Positions (`pts`) count samples of the track's clock since the start of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Audio.
    Audio {
        /// Which track.
        track: TrackId,
        /// Where it starts: stated by the frame, or the end of the track's previous audio in this object.
        pts: u32,
        /// How many samples it holds.
        samples: u32,
        /// Codec bytes as the provider sent them.
        payload: &'a [u8],
    },
    /// Audio that is missing.
    Gap {
        /// Which track.
        track: TrackId,
        /// Where the gap starts.
        pts: u32,
        /// How long it is, in samples.
        samples: u32,
        /// Why.
        reason: GapReason,
    },
    /// Something that happened: CBOR.
    Event {
        /// Which track's clock `pts` counts.
        track: TrackId,
        /// When.
        pts: u32,
        /// CBOR.
        body: &'a [u8],
    },
    /// The tracks of the segment: CBOR. Frame 0 of every segment.
    TrackTable(&'a [u8]),
    /// A part of the recording's metadata: CBOR once joined.
    Metadata(&'a [u8]),
    /// A part of the time index.
    TimeIndex(&'a [u8]),
    /// The last frame.
    Trailer(&'a [u8]),
    /// A kind of a later version; authenticated, skipped.
    Unknown(u8),
}

impl<'a> Frame<'a> {
    /// Reads the opened inside of frame `number`; `last` is its F bit.
    pub(super) fn parse(
        number: u32,
        last: bool,
        inner: &'a [u8],
        positions: &mut Positions,
    ) -> Result<Self, ReadError> {
        let (head, body) = inner.split_first().ok_or(ReadError::MalformedFrame(number, "empty frame"))?;
        let kind = head >> 4;
        if (kind == KIND_TRAILER) != last {
            return Err(ReadError::MalformedFrame(number, "trailer must be the last frame"));
        }
        let track = TrackId::from_nibble(*head);
        let mut fields = Fields(body);
        match kind {
            KIND_AUDIO => positions.audio(track, None, body),
            KIND_AUDIO_AT => fields.u32().and_then(|pts| positions.audio(track, Some(pts), fields.0)),
            KIND_GAP => Self::parse_gap(track, fields),
            KIND_EVENT => fields.u32().map(|pts| Self::Event { track, pts, body: fields.0 }),
            KIND_TRACK_TABLE => {
                if number == 0 {
                    positions.note_table(body);
                }
                Some(Self::TrackTable(body))
            }
            KIND_METADATA => Some(Self::Metadata(body)),
            KIND_TIME_INDEX => Some(Self::TimeIndex(body)),
            KIND_TRAILER => Some(Self::Trailer(body)),
            later => Some(Self::Unknown(later)),
        }
        .ok_or(ReadError::MalformedFrame(number, "body"))
    }

    fn parse_gap(track: TrackId, mut fields: Fields<'a>) -> Option<Self> {
        let pts = fields.u32()?;
        let samples = fields.u32()?;
        let reason = GapReason::from_number(fields.u8()?)?;
        pts.checked_add(samples)?;
        fields.0.is_empty().then_some(Self::Gap { track, pts, samples, reason })
    }
}

/// Where each track of one object stands, and what it held so far.
#[derive(Debug, Default)]
pub(super) struct Positions {
    totals: Vec<TrackTotals>,
    ends: [Option<u32>; TrackId::COUNT],
    /// The codecs that frame 0 names; a byte is a sample where it names none.
    codecs: [Option<Codec>; TrackId::COUNT],
}

/// What of a track table says how long audio is.
#[derive(Deserialize)]
struct TableEntry {
    track: u8,
    codec: String,
}

impl Positions {
    /// Whether the table is a good one is judged where the object's place in a recording is.
    fn note_table(&mut self, table: &[u8]) {
        let entries = ciborium::de::from_reader_with_recursion_limit::<Vec<TableEntry>, _>(table, 16);
        for TableEntry { track, codec } in entries.unwrap_or_default() {
            if let Some(known) = self.codecs.get_mut(usize::from(track)) {
                *known = Codec::from_name(&codec);
            }
        }
    }

    /// `None`: the frame follows nothing, ends inside a sample, or ends beyond the clock.
    fn audio<'a>(&mut self, track: TrackId, pts: Option<u32>, payload: &'a [u8]) -> Option<Frame<'a>> {
        let end = self.ends.get_mut(usize::from(track.number()))?;
        let pts = pts.or(*end)?;
        let codec = self.codecs.get(usize::from(track.number())).copied().flatten().unwrap_or(Codec::Ulaw);
        if !payload.len().is_multiple_of(codec.sample_bytes()) {
            return None;
        }
        let samples = codec.samples_of(payload.len());
        let next = pts.checked_add(samples)?;
        *end = Some(next);
        TrackTotals::count(&mut self.totals, track, pts, next, payload.len() as u64);
        Some(Frame::Audio { track, pts, samples, payload })
    }

    /// Returns what each track held, by number.
    pub(super) fn into_totals(mut self) -> Vec<TrackTotals> {
        self.totals.sort_by_key(|totals| totals.track);
        self.totals
    }
}
