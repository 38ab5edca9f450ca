//! The header of segments and manifests (`docs/FORMAT.md` section 4).

use crate::domain::ids::{KeyId, RecordingId, TenantTag, WriterId};

use super::error::ReadError;
use super::keys::Salt;

/// Bytes of a header without extension, commitment included.
pub const HEADER_BYTES: usize = 176;
/// The longest header a manifest may have: about 95,000 rows, five days of 5-second segments.
pub const MAX_HEADER_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of the commitment that ends every header.
pub(super) const COMMITMENT_BYTES: usize = 32;

const MAGIC: [u8; 8] = [0x89, b'C', b'M', b'R', 0x0d, 0x0a, 0x1a, 0x0a];
const VERSION: u8 = 1;
const SUITE: u8 = 1;
const FIXED_BYTES: usize = HEADER_BYTES - COMMITMENT_BYTES;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A run of sealed frames.
    Segment,
    /// A recording's rows and time index.
    Manifest,
}

impl ObjectKind {
    fn number(self) -> u8 {
        match self {
            Self::Segment => 1,
            Self::Manifest => 2,
        }
    }
}

/// What the caller was authorised for. Never taken from the object itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The tenant whose path and credential were checked.
    pub tenant: TenantTag,
    /// The recording that the caller asked for.
    pub recording: RecordingId,
    /// The key that the recording's envelope names.
    pub key: KeyId,
}

/// The clear fields of a header, without extension and commitment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHeader {
    /// Segment or manifest.
    pub kind: ObjectKind,
    /// Whose object it is, and under which key.
    pub ids: Expected,
    /// The writer incarnation.
    pub writer: WriterId,
    /// Segments: 0, 1, 2, … per writer. Manifests: the revision.
    pub seq: u32,
    /// Unix milliseconds, informative.
    pub created_ms: u64,
    /// Fresh random bytes.
    pub salt: Salt,
    /// First half of the commitment of the same writer's previous segment; zero for the first and for manifests.
    pub prev: [u8; 16],
}

impl ObjectHeader {
    /// Writes the header without its commitment.
    ///
    /// # Errors
    /// [`ReadError::LimitExceeded`] when the extension makes it longer than 4 MiB.
    pub(super) fn encode(&self, extension: &[u8]) -> Result<Vec<u8>, ReadError> {
        let header_bytes = HEADER_BYTES + extension.len();
        let header_len = u32::try_from(header_bytes)
            .ok()
            .filter(|_| header_bytes <= MAX_HEADER_BYTES)
            .ok_or(ReadError::LimitExceeded("manifest header"))?;
        let mut out = Vec::with_capacity(header_bytes);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, SUITE, self.kind.number(), 0]);
        out.extend_from_slice(&header_len.to_be_bytes());
        out.extend_from_slice(&self.ids.tenant.0);
        out.extend_from_slice(&self.ids.recording.0);
        out.extend_from_slice(&self.ids.key.0);
        out.extend_from_slice(&self.writer.0);
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.created_ms.to_be_bytes());
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.prev);
        out.extend_from_slice(extension);
        Ok(out)
    }
}

/// A header as found, nothing of it authenticated yet but its shape.
pub(super) struct ParsedHeader<'a> {
    pub(super) header: ObjectHeader,
    pub(super) extension: &'a [u8],
    /// Everything before the commitment.
    pub(super) committed: &'a [u8],
    pub(super) commitment: [u8; 32],
    pub(super) header_bytes: usize,
}

/// Splits a header off the front of `object`. Reads nothing past it and allocates nothing.
///
/// # Errors
/// The parse classes of [`ReadError`]; a header cut short is [`ReadError::MalformedHeader`].
pub(super) fn parse(object: &[u8]) -> Result<ParsedHeader<'_>, ReadError> {
    let mut fields = Fields(object);
    if fields.take::<8>() != Some(MAGIC) {
        return Err(ReadError::NotARecording);
    }
    let short = ReadError::MalformedHeader("cut short");
    let [version, suite, kind, flags] = fields.take().ok_or(short.clone())?;
    if version != VERSION {
        return Err(ReadError::UnsupportedVersion(version));
    }
    if suite != SUITE {
        return Err(ReadError::UnsupportedSuite(suite));
    }
    let kind = match kind {
        1 => ObjectKind::Segment,
        2 => ObjectKind::Manifest,
        _ => return Err(ReadError::MalformedHeader("type")),
    };
    if flags != 0 {
        return Err(ReadError::MalformedHeader("flags"));
    }
    let header_bytes = checked_length(kind, fields.u32().ok_or(short.clone())?)?;
    let header = read_ids(kind, &mut fields).ok_or(short.clone())??;
    let committed_bytes = header_bytes - COMMITMENT_BYTES;
    let committed = object.get(..committed_bytes).ok_or(short.clone())?;
    let extension = committed.get(FIXED_BYTES..).ok_or(short.clone())?;
    let commitment =
        object.get(committed_bytes..header_bytes).and_then(|bytes| bytes.try_into().ok()).ok_or(short)?;
    Ok(ParsedHeader { header, extension, committed, commitment, header_bytes })
}

fn checked_length(kind: ObjectKind, header_len: u32) -> Result<usize, ReadError> {
    let header_bytes = usize::try_from(header_len).map_err(|_| ReadError::MalformedHeader("length"))?;
    match kind {
        ObjectKind::Segment if header_bytes == HEADER_BYTES => Ok(header_bytes),
        ObjectKind::Manifest if (HEADER_BYTES..=MAX_HEADER_BYTES).contains(&header_bytes) => Ok(header_bytes),
        ObjectKind::Segment | ObjectKind::Manifest => Err(ReadError::MalformedHeader("length")),
    }
}

/// `None`: cut short.
fn read_ids(kind: ObjectKind, fields: &mut Fields<'_>) -> Option<Result<ObjectHeader, ReadError>> {
    let ids = Expected {
        tenant: TenantTag(fields.take()?),
        recording: RecordingId(fields.take()?),
        key: KeyId(fields.take()?),
    };
    let writer = WriterId(fields.take()?);
    let seq = fields.u32()?;
    if fields.u32()? != 0 {
        return Some(Err(ReadError::MalformedHeader("reserved bytes")));
    }
    let created_ms = u64::from_be_bytes(fields.take()?);
    let salt = fields.take()?;
    let prev = fields.take()?;
    Some(Ok(ObjectHeader { kind, ids, writer, seq, created_ms, salt, prev }))
}

/// Reads fixed-size fields off the front of a slice.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}
