//! What callers append, and how it is written.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::whole::{Keeper, SegmentId};
use crate::domain::ids::{RecordingId, TenantTag, WriterId};

/// The greatest length in bytes of the text of [`Record::Opened`]: 1 MiB.
pub const MAX_OPENED_BYTES: usize = 1 << 20;
/// The most sealed bytes in one record on disk; longer runs are split, which bounds what a reader holds in memory.
pub(super) const MAX_PIECE_BYTES: usize = 1 << 20;
/// The greatest length of a record's body: a piece and the longest fields before it.
pub(super) const MAX_BODY_BYTES: usize = MAX_PIECE_BYTES + 64;
/// The bytes before a record's body.
pub(super) const HEADER_BYTES: usize = 16;
/// The bytes of a `sealed` body before the sealed bytes.
pub(super) const SEALED_FIELDS_BYTES: usize = 40;
pub(super) const MAGIC: [u8; 4] = *b"CMJ1";

pub(super) const BEGIN: u8 = 0;
pub(super) const OPENED: u8 = 1;
pub(super) const SEALED: u8 = 2;
pub(super) const CUT: u8 = 3;
pub(super) const STORED: u8 = 4;
pub(super) const FINISHED: u8 = 5;

/// One thing to remember over a crash.
#[derive(Debug, Clone)]
pub enum Record {
    /// A recording begins.
    Opened {
        /// The recording.
        recording: RecordingId,
        /// Whose it is.
        tenant_tag: TenantTag,
        /// What recovery needs to know; opaque here, sealed or not secret, at most [`MAX_OPENED_BYTES`].
        body: Bytes,
    },
    /// A run of whole sealed frames of a segment.
    Sealed {
        /// The recording.
        recording: RecordingId,
        /// The writer of the segment.
        writer: WriterId,
        /// The segment's number.
        seq: u32,
        /// Where the run begins in the segment object, in bytes.
        offset: u32,
        /// The run; it ends before byte 2³² of the segment.
        bytes: Bytes,
        /// When the oldest frame of the run was sealed; measured only, not written.
        sealed_at: Instant,
    },
    /// A segment is complete.
    Cut {
        /// The recording.
        recording: RecordingId,
        /// The writer of the segment.
        writer: WriterId,
        /// The segment's number.
        seq: u32,
        /// The bytes of the whole segment object.
        length: u32,
    },
    /// A segment that is cut, all of it in one run, whatever was handed over before. Not after its `Stored`.
    ///
    /// When it is durable its keeper is told where, and the pieces handed over before are let go of.
    Whole {
        /// The segment.
        segment: SegmentId,
        /// All its bytes.
        bytes: Bytes,
        /// Who is told.
        keeper: Arc<dyn Keeper>,
    },
    /// The store has a segment, and its checksum was verified: its bytes are no longer needed here.
    Stored {
        /// The recording.
        recording: RecordingId,
        /// The writer of the segment.
        writer: WriterId,
        /// The segment's number.
        seq: u32,
    },
    /// The store has all of a recording: nothing of it is needed here. This is its last record.
    Finished {
        /// The recording.
        recording: RecordingId,
    },
}

impl Record {
    /// Returns the recording that this is about.
    pub fn recording(&self) -> RecordingId {
        match self {
            Self::Opened { recording, .. }
            | Self::Sealed { recording, .. }
            | Self::Cut { recording, .. }
            | Self::Stored { recording, .. }
            | Self::Finished { recording } => *recording,
            Self::Whole { segment, .. } => segment.recording,
        }
    }

    /// Returns the bytes of the caller that the record keeps in memory.
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Opened { body, .. } => body.len(),
            Self::Sealed { bytes, .. } | Self::Whole { bytes, .. } => bytes.len(),
            Self::Cut { .. } | Self::Stored { .. } | Self::Finished { .. } => 0,
        }
    }

    /// Returns when the oldest frame of a run was sealed.
    pub(super) fn sealed_at(&self) -> Option<Instant> {
        match self {
            Self::Sealed { sealed_at, .. } => Some(*sealed_at),
            Self::Opened { .. }
            | Self::Cut { .. }
            | Self::Whole { .. }
            | Self::Stored { .. }
            | Self::Finished { .. } => None,
        }
    }

    /// Appends the record as it is on disk; a long run of sealed bytes becomes several records.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Opened { recording, tenant_tag, body } => {
                encode(OPENED, &[&recording.0, &tenant_tag.0, body], out);
            }
            Self::Sealed { recording, writer, seq, offset, bytes, .. } => {
                encode_sealed(
                    SegmentId { recording: *recording, writer: *writer, seq: *seq },
                    *offset,
                    bytes,
                    out,
                );
            }
            Self::Whole { segment, bytes, .. } => {
                encode_sealed(*segment, 0, bytes, out);
                let SegmentId { recording, writer, seq } = segment;
                let length = length_u32(bytes).to_be_bytes();
                encode(CUT, &[&recording.0, &writer.0, &seq.to_be_bytes(), &length], out);
            }
            Self::Cut { recording, writer, seq, length } => {
                encode(CUT, &[&recording.0, &writer.0, &seq.to_be_bytes(), &length.to_be_bytes()], out);
            }
            Self::Stored { recording, writer, seq } => {
                encode(STORED, &[&recording.0, &writer.0, &seq.to_be_bytes()], out);
            }
            Self::Finished { recording } => encode(FINISHED, &[&recording.0], out),
        }
    }
}

/// Appends the first record of a file.
pub(super) fn encode_begin(incarnation: u64, number: u32, out: &mut Vec<u8>) {
    encode(BEGIN, &[&incarnation.to_be_bytes(), &number.to_be_bytes()], out);
}

/// Appends a run of sealed frames as it is on disk.
pub(super) fn encode_sealed(segment: SegmentId, offset: u32, bytes: &[u8], out: &mut Vec<u8>) {
    let SegmentId { recording, writer, seq } = segment;
    let mut at = offset;
    for piece in bytes.chunks(MAX_PIECE_BYTES) {
        let place = [seq.to_be_bytes(), at.to_be_bytes()].concat();
        encode(SEALED, &[&recording.0, &writer.0, &place, piece], out);
        at = at.saturating_add(length_u32(piece));
    }
}

/// Returns the checksum of a record: over its first twelve bytes and its body.
pub(super) fn checksum(start: &[u8], body: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(start);
    body.iter().for_each(|field| crc.update(field));
    crc.finalize()
}

fn encode(kind: u8, body: &[&[u8]], out: &mut Vec<u8>) {
    let length = body.iter().fold(0_u32, |sum, field| sum.saturating_add(length_u32(field)));
    let mut start = [0; 12];
    let fields = MAGIC.into_iter().chain([kind, 0, 0, 0]).chain(length.to_be_bytes());
    start.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    out.extend_from_slice(&start);
    out.extend_from_slice(&checksum(&start, body).to_be_bytes());
    body.iter().for_each(|field| out.extend_from_slice(field));
}

/// Returns a length that the limits of this file keep far below 2³².
fn length_u32(field: &[u8]) -> u32 {
    u32::try_from(field.len()).unwrap_or(u32::MAX)
}
