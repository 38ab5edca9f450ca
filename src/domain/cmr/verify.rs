//! Checks the segments of a recording against its manifest, row by row (`docs/FORMAT.md` section 13.2).

use sha2::{Digest, Sha256};

use crate::domain::ids::{WriterId, first_16};

use super::error::ReadError;
use super::frame::Frame;
use super::header::{Expected, ObjectKind};
use super::keys::Dek;
use super::manifest::{Row, RowSpan, extend_span};
use super::reader::{EndOfObject, ObjectReader};
use super::segment::TrailerTotals;

/// How much a verification proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Without a key: lengths and digests agree with the manifest.
    Integrity,
    /// With the DEK: every frame, and the manifest itself, was sealed with it and nothing is missing.
    Authentic,
    /// The manifest is also the one that the audit log names.
    Evidence,
}

impl Grade {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Integrity => "integrity",
            Self::Authentic => "authentic",
            Self::Evidence => "evidence",
        }
    }
}

/// What a checked row showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowEvidence {
    /// Frames of the segment.
    pub frames: u32,
    /// Its trailer; `None` if it has none.
    pub trailer: Option<TrailerTotals>,
}

/// Checks rows in their order; keeps only what the next row must be compared with.
pub struct RecordingVerifier<'k> {
    dek: &'k Dek,
    expected: Expected,
    next_row: u32,
    writers: Vec<WriterSoFar>,
}

/// The last segment seen of one writer.
struct WriterSoFar {
    writer: WriterId,
    seq: u32,
    commitment_half: [u8; 16],
    torn: bool,
}

impl<'k> RecordingVerifier<'k> {
    /// Starts at row 0.
    pub fn new(dek: &'k Dek, expected: Expected) -> Self {
        Self { dek, expected, next_row: 0, writers: Vec::new() }
    }

    /// Checks `segment` against the next row and shows every frame of it to `visit`.
    ///
    /// # Errors
    /// The class of the first fault. Frames shown before it were authentic by themselves, the row is not.
    pub fn check_row(
        &mut self,
        row: &Row,
        segment: &[u8],
        mut visit: impl FnMut(&Frame<'_>),
    ) -> Result<RowEvidence, ReadError> {
        let number = self.next_row;
        let opened = open_row(number, row, segment, self.dek, &self.expected, &mut visit)?;
        self.check_chain(number, row, opened.prev)?;
        self.remember(row, opened.commitment_half);
        self.next_row += 1;
        Ok(opened.evidence)
    }

    /// As [`Self::check_row`], and compares where its audio lies with what the manifest's time index lists.
    ///
    /// # Errors
    /// Also [`ReadError::StateMismatch`].
    pub fn check_listed_row(
        &mut self,
        row: &Row,
        listed: &RowSpan,
        segment: &[u8],
    ) -> Result<RowEvidence, ReadError> {
        let (number, mut held) = (self.next_row, RowSpan::new());
        let evidence = self.check_row(row, segment, |frame| {
            if let Frame::Audio { track, pts, samples, .. } = frame {
                extend_span(&mut held, *track, *pts, *samples);
            }
        })?;
        held.sort_by_key(|span| span.track);
        if held == *listed { Ok(evidence) } else { Err(ReadError::StateMismatch(number)) }
    }

    fn check_chain(&self, number: u32, row: &Row, found: [u8; 16]) -> Result<(), ReadError> {
        let (seq, prev, torn) = match self.writers.iter().find(|seen| seen.writer == row.writer) {
            Some(seen) => (seen.seq.checked_add(1), seen.commitment_half, seen.torn),
            None => (Some(0), [0; 16], false),
        };
        if torn {
            // A torn segment that is not its writer's last one is tampering, not a crash.
            return Err(ReadError::StateMismatch(number));
        }
        if seq != Some(row.seq) {
            return Err(ReadError::SequenceMismatch(number));
        }
        if found != prev {
            return Err(ReadError::ChainMismatch(number));
        }
        Ok(())
    }

    fn remember(&mut self, row: &Row, commitment_half: [u8; 16]) {
        let now = WriterSoFar { writer: row.writer, seq: row.seq, commitment_half, torn: !row.complete };
        match self.writers.iter_mut().find(|seen| seen.writer == row.writer) {
            Some(seen) => *seen = now,
            None => self.writers.push(now),
        }
    }
}

/// A row that was opened by itself, with what ties it to its neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedRow {
    /// What it showed.
    pub evidence: RowEvidence,
    /// What its predecessor's commitment must begin with.
    pub prev: [u8; 16],
    /// What its own commitment begins with.
    pub commitment_half: [u8; 16],
}

/// Opens one row by itself, as a reader in the middle of a recording does: everything but the chain is checked.
///
/// # Errors
/// The class of the first fault; nothing of the failing frame was shown to `visit`.
pub fn open_row(
    number: u32,
    row: &Row,
    segment: &[u8],
    dek: &Dek,
    expected: &Expected,
    visit: &mut dyn FnMut(&Frame<'_>),
) -> Result<OpenedRow, ReadError> {
    check_digest(number, row, segment)?;
    let mut reader = ObjectReader::new(segment, ObjectKind::Segment, dek, expected)?;
    if reader.header().writer != row.writer || reader.header().seq != row.seq {
        return Err(ReadError::SequenceMismatch(number));
    }
    let mut scratch = Vec::new();
    while let Some(frame) = reader.next_frame(&mut scratch)? {
        visit(&frame);
    }
    let (frames, trailer) = (reader.frames(), reader.take_trailer());
    if (reader.end() == Some(EndOfObject::Complete)) != row.complete {
        return Err(ReadError::StateMismatch(number));
    }
    if reader.end() == Some(EndOfObject::Complete) && reader.consumed_bytes() != segment.len() {
        return Err(ReadError::TrailingData);
    }
    Ok(OpenedRow {
        evidence: RowEvidence { frames, trailer },
        prev: reader.header().prev,
        commitment_half: first_16(reader.commitment()),
    })
}

/// Checks length and digest of a segment, which needs no key.
///
/// # Errors
/// [`ReadError::DigestMismatch`].
pub fn check_digest(number: u32, row: &Row, segment: &[u8]) -> Result<(), ReadError> {
    let same_length = usize::try_from(row.byte_len) == Ok(segment.len());
    if same_length && sha256(segment) == row.sha256 {
        return Ok(());
    }
    Err(ReadError::DigestMismatch(number))
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
