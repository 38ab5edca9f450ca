//! What can go wrong with recorded bytes (`docs/FORMAT.md` section 14).

use super::cipher::CipherFailed;

/// Why recorded bytes were refused. Each variant is one error class of the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The magic bytes are missing.
    #[error("not a recording")]
    NotARecording,
    /// A version other than 1.
    #[error("unsupported format version {0}")]
    UnsupportedVersion(u8),
    /// A cipher suite other than 1.
    #[error("unsupported cipher suite {0}")]
    UnsupportedSuite(u8),
    /// A header that breaks a rule of section 4 or 7.
    #[error("malformed header: {0}")]
    MalformedHeader(&'static str),
    /// A frame that breaks a rule of section 5 to 7, by its number.
    #[error("malformed frame {0}: {1}")]
    MalformedFrame(u32, &'static str),
    /// A bound of section 16 is exceeded.
    #[error("limit exceeded: {0}")]
    LimitExceeded(&'static str),
    /// The object belongs to another tenant, recording or key than the caller was authorised for.
    #[error("object belongs to another {0}")]
    ContextMismatch(&'static str),
    /// The commitment differs: another DEK, or a changed header.
    #[error("wrong key or tampered header")]
    WrongKeyOrTamperedHeader,
    /// The tag of this frame does not match.
    #[error("frame {0} failed authentication")]
    FrameAuth(u32),
    /// A segment's bytes are not those that the manifest lists.
    #[error("digest or length of row {0} differs from the manifest")]
    DigestMismatch(u32),
    /// A segment's writer or sequence number is not that of its row.
    #[error("writer or sequence of row {0} differs from the manifest")]
    SequenceMismatch(u32),
    /// A segment does not follow the one before it.
    #[error("row {0} does not follow its predecessor")]
    ChainMismatch(u32),
    /// A segment is complete where the manifest says torn, or the other way round.
    #[error("completeness of row {0} differs from the manifest")]
    StateMismatch(u32),
    /// Bytes after the last frame, or between and after rows.
    #[error("trailing bytes")]
    TrailingData,
    /// A final object without a valid tail.
    #[error("no valid tail")]
    NoTail,
    /// A wrapped key or sealed record that does not open.
    #[error("wrapped key does not open")]
    WrongWrap,
}

/// Why a frame could not be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The segment has no frame number or byte left; the caller starts a new one.
    #[error("segment is full")]
    Exhausted,
    /// An earlier failure poisoned this writer; the segment ends torn and a new one is started.
    #[error("segment writer is poisoned")]
    Poisoned,
    /// More than 32,746 bytes in one frame, or none at all.
    #[error("frame of {0} bytes cannot be sealed")]
    FrameSize(usize),
    /// The cipher refused; the writer is poisoned now.
    #[error(transparent)]
    Cipher(#[from] CipherFailed),
}
