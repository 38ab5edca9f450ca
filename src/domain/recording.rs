//! What is sealed about a recording beside its audio, as CBOR in its segments and manifest.
//!
//! Compatible growth: new optional fields. Readers ignore fields they do not know.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::domain::audio::{AudioFormat, Codec, Speakers};
use crate::domain::cmr::GapReason;

/// One track as the track table lists it: codec bytes are kept as the provider sent them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackEntry {
    /// Its number in frame heads.
    pub track: u8,
    /// `caller`, `agent`, `channel` or `mixed`.
    pub role: String,
    /// The name of a [`Codec`].
    pub codec: String,
    /// Samples per second.
    pub rate: u32,
    /// Channels of the track itself.
    pub channels: u8,
}

/// Returns the tracks of a recording, numbered from 0.
pub fn track_table(format: AudioFormat, speakers: Speakers) -> Vec<TrackEntry> {
    let entry = |(track, role): (u8, &&str)| TrackEntry {
        track,
        role: (*role).to_owned(),
        codec: format.codec().name().to_owned(),
        rate: format.rate(),
        channels: 1,
    };
    (0..).zip(speakers.roles()).map(entry).collect()
}

/// Returns the one format of all tracks of a table.
///
/// # Errors
/// [`BadRecord`] when there is no table, tracks differ, or the codec or rate is not one of this version.
pub fn format_of_table(table: &[u8]) -> Result<AudioFormat, BadRecord> {
    let entries: Vec<TrackEntry> = from_cbor(table)?;
    let format = |entry: &TrackEntry| AudioFormat::new(Codec::from_name(&entry.codec)?, entry.rate);
    let first = entries.first().and_then(format).ok_or(BadRecord)?;
    let is_alike = |entry: &TrackEntry| entry.channels == 1 && format(entry) == Some(first);
    if entries.iter().all(is_alike) { Ok(first) } else { Err(BadRecord) }
}

/// A format as it stands in records; records without one are of telephony.
mod format_record {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::{AudioFormat, Codec};

    #[derive(Serialize, Deserialize)]
    struct Written {
        codec: String,
        rate: u32,
    }

    pub(super) fn serialize<S: Serializer>(format: &AudioFormat, serializer: S) -> Result<S::Ok, S::Error> {
        let written = Written { codec: format.codec().name().to_owned(), rate: format.rate() };
        written.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AudioFormat, D::Error> {
        let Written { codec, rate } = Written::deserialize(deserializer)?;
        let format = Codec::from_name(&codec).and_then(|codec| AudioFormat::new(codec, rate));
        format.ok_or_else(|| de::Error::custom("audio of another format than this version plays"))
    }

    pub(super) fn telephone() -> AudioFormat {
        AudioFormat::TELEPHONE
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes what it asks about by reference")]
    pub(super) fn is_telephone(format: &AudioFormat) -> bool {
        *format == AudioFormat::TELEPHONE
    }
}

/// What is known when a recording begins. Sealed in its first segment and in its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingMetadata {
    /// Version of this record: 1.
    pub v: u8,
    /// The tenant's id.
    pub tenant: String,
    /// The route's name.
    pub route: String,
    /// `twilio` or `vapi`.
    pub provider: String,
    /// The provider's account.
    pub account: String,
    /// The provider's call.
    pub call: String,
    /// The provider's stream.
    pub stream: String,
    /// Unix milliseconds of the start message.
    pub started_ms: u64,
    /// Values set by whoever placed the call; often personal data.
    pub parameters: BTreeMap<String, String>,
    /// How many days after its end the recording is kept.
    pub retention_days: u32,
    /// Whether the call's ticket gave these days, and not the tenant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_days: bool,
    /// What the call's ticket says; often personal data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ticket: BTreeMap<String, String>,
    /// How the caller's consent is known, where the route asks for it: `ticket`, `parameter` or `api`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<String>,
    /// The format of all tracks, as every track table repeats it. Absent for that of telephony.
    #[serde(
        with = "format_record",
        default = "format_record::telephone",
        skip_serializing_if = "format_record::is_telephone"
    )]
    pub format: AudioFormat,
}

/// Where a recording stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// All that the provider sent is there and it said that the stream was over.
    Complete,
    /// Something is missing or the stream broke off; the gaps say what.
    Partial,
    /// Finished by a recovery job after a crash.
    Recovered,
}

impl Life {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Recovered => "recovered",
        }
    }
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndCause {
    /// The provider said so.
    Stop,
    /// The provider closed the connection without saying so.
    ClosedEarly,
    /// The connection broke or went silent.
    PeerLost,
    /// We closed it: the provider broke the protocol.
    ProtocolError,
    /// The agent ended the call.
    AgentClosed,
    /// The agent was lost, and with it the call.
    AgentLost,
    /// The tenant's longest stream was reached.
    Limit,
    /// The process stopped before the call did.
    Shutdown,
    /// We failed; the log says how.
    Internal,
    /// The process died; a recovery job finished the recording.
    Crash,
}

impl EndCause {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::ClosedEarly => "closed-early",
            Self::PeerLost => "peer-lost",
            Self::ProtocolError => "protocol-error",
            Self::AgentClosed => "agent-closed",
            Self::AgentLost => "agent-lost",
            Self::Limit => "limit",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
            Self::Crash => "crash",
        }
    }
}

/// More gaps than this are only counted. An entry has up to 38 bytes, and the end record must fit into the one frame that
/// is the manifest's trailer.
pub const MAX_GAP_ENTRIES: usize = 512;

/// How many notes an end record holds. With the gaps they must fit into the one frame.
pub const MAX_NOTES: usize = 16;
/// The longest name and text of a note together.
pub const MAX_NOTE_BYTES: usize = 320;

/// One stretch of missing audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapEntry {
    /// The track's number.
    pub track: u8,
    /// Where it starts, in samples.
    pub pts: u32,
    /// How long it is, in samples.
    pub samples: u32,
    /// The number of its [`GapReason`].
    pub reason: u8,
}

impl GapEntry {
    /// Returns the name of its reason; `unknown` for one that this version does not know.
    pub fn reason_name(&self) -> &'static str {
        GapReason::from_number(self.reason).map_or("unknown", GapReason::name)
    }

    /// Whether audio was lost here, rather than not made by the source or left out on purpose. Reasons that this version does
    /// not know count as loss.
    pub fn is_loss(&self) -> bool {
        let reason = GapReason::from_number(self.reason);
        !matches!(reason, Some(GapReason::Source | GapReason::Pause | GapReason::Policy))
    }
}

/// Counts over the whole stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamCounts {
    /// Audio messages stored.
    pub frames: u64,
    /// Audio bytes stored.
    pub audio_bytes: u64,
    /// Messages that came after a later one.
    pub late: u64,
    /// Messages that came twice and were stored once.
    pub duplicates: u64,
    /// Messages without a usable timestamp, stored where the track stood.
    pub untimed: u64,
    /// Messages whose timestamp was more than an hour ahead or ten seconds behind, stored where the track stood.
    pub implausible: u64,
    /// Messages whose audio was not readable.
    pub undecodable: u64,
    /// Numbers missing in the provider's counting: messages that never reached us.
    pub missing_messages: u64,
    /// Messages without audio that were dropped.
    pub dropped: u64,
    /// Messages whose audio was dropped because our own bound was reached.
    pub dropped_frames: u64,
    /// Gaps beyond the list's bound, and their samples.
    pub unlisted_gaps: u64,
    /// Samples of unlisted gaps.
    pub unlisted_gap_samples: u64,
}

/// What is known when a recording has ended. Sealed in the manifest's trailer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingEnd {
    /// Version of this record: 1.
    pub v: u8,
    /// Complete, partial or recovered.
    pub life: Life,
    /// Why the stream ended.
    pub cause: EndCause,
    /// Unix milliseconds.
    pub ended_ms: u64,
    /// Unix milliseconds after which the recording must be gone: the truth that the sweeper obeys.
    pub expires_ms: u64,
    /// Missing audio, at most [`MAX_GAP_ENTRIES`].
    pub gaps: Vec<GapEntry>,
    /// Counts over the whole stream.
    pub counts: StreamCounts,
    /// What was learned of the call while it ran, at most [`MAX_NOTES`]; often personal data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
}

/// Writes a record as CBOR.
///
/// # Panics
/// Never: plain records of text and numbers always have a CBOR form.
pub fn to_cbor(record: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    ciborium::into_writer(record, &mut out).expect("writing plain records to memory cannot fail");
    out
}

/// Reads a record of at most a few MiB, nested at most 16 levels.
///
/// # Errors
/// [`BadRecord`] when it is not CBOR or lacks a field.
pub fn from_cbor<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadRecord> {
    ciborium::de::from_reader_with_recursion_limit(bytes, 16).map_err(|_| BadRecord)
}

/// An authentic record that this version cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed record has another shape")]
pub struct BadRecord;
