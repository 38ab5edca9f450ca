//! Whole segments: written once more in one run and found again, so that a caller may let go of their bytes.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::record::{HEADER_BYTES, MAX_PIECE_BYTES, SEALED_FIELDS_BYTES};
use super::scan::{Found, scan_buffered};
use crate::domain::ids::{RecordingId, WriterId};

/// A segment among all recordings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentId {
    /// The recording.
    pub recording: RecordingId,
    /// The writer of the segment.
    pub writer: WriterId,
    /// The segment's number.
    pub seq: u32,
}

/// Where the journal of this process has a whole segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the file.
    pub(super) file: u32,
    /// Where the first record begins in it.
    pub(super) at: u64,
    /// The bytes of the segment.
    pub(super) length: u32,
}

/// Whoever handed a whole segment over.
pub trait Keeper: fmt::Debug + Send + Sync {
    /// The segment is durable at `place`, and stays there until it is stored or its recording finished.
    ///
    /// Called on a thread of the journal and must not block. A segment that was handed over more than once may come once
    /// or more often; the last place counts. After a failure of the journal it may not come at all.
    fn kept(&self, place: Place);
}

/// Why a whole segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBackError {
    /// The disk; it may be better the next time.
    #[error("cannot read journal file")]
    Io(#[source] io::Error),
    /// The file is gone or holds other bytes.
    #[error("journal file does not hold the segment any more")]
    Lost,
}

/// Reads a whole segment and checks every record of it.
pub(super) fn read(path: &Path, place: Place, segment: SegmentId) -> Result<Bytes, ReadBackError> {
    let length = usize::try_from(place.length).map_err(|_| ReadBackError::Lost)?;
    let records = length.div_ceil(MAX_PIECE_BYTES);
    let mut encoded = vec![0; length + records * (HEADER_BYTES + SEALED_FIELDS_BYTES)];
    let file = File::open(path).map_err(sort)?;
    file.read_exact_at(&mut encoded, place.at).map_err(sort)?;
    let mut whole = BytesMut::with_capacity(length);
    let mut is_wrong = false;
    scan_buffered(&encoded[..], |found| {
        let Found::Sealed { recording, writer, seq, offset, length, at } = found else {
            is_wrong = true;
            return;
        };
        let is_next = usize::try_from(offset).is_ok_and(|offset| offset == whole.len());
        is_wrong |= (SegmentId { recording, writer, seq }) != segment || !is_next;
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let piece = usize::try_from(length).ok().and_then(|length| encoded.get(start..start + length));
        whole.extend_from_slice(piece.unwrap_or_default());
    });
    if is_wrong || whole.len() != length { Err(ReadBackError::Lost) } else { Ok(whole.freeze()) }
}

fn sort(error: io::Error) -> ReadBackError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list of kinds is open")]
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => ReadBackError::Lost,
        _ => ReadBackError::Io(error),
    }
}

/// A whole segment that is written and not yet known to be durable.
pub(super) struct Written {
    pub(super) segment: SegmentId,
    pub(super) place: Place,
    pub(super) keeper: Arc<dyn Keeper>,
}

/// Whole segments on their way to the disk, in the order they were written.
#[derive(Default)]
pub(super) struct Pending {
    written: VecDeque<(u64, Written)>,
}

impl Pending {
    /// Notes a segment that is durable once everything up to `position` is.
    pub(super) fn push(&mut self, position: u64, written: Written) {
        self.written.push_back((position, written));
    }

    /// Forgets what is in a file that could not be synced; its keepers hear nothing.
    pub(super) fn disbelieve(&mut self, file: u32) {
        self.written.retain(|(_, written)| written.place.file != file);
    }

    /// Takes the next segment that is durable when everything up to `synced` is.
    pub(super) fn next_durable(&mut self, synced: u64) -> Option<Written> {
        let (position, _) = self.written.front()?;
        if *position > synced {
            return None;
        }
        self.written.pop_front().map(|(_, written)| written)
    }
}
