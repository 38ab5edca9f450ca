//! CMR1, the encrypted call-media recording format (`docs/FORMAT.md`).
//!
//! Knows keys of one recording, nonces, byte layouts and what every frame is bound to. Must not know how audio sounds, object
//! names, or where KEKs live. All integers are big-endian.
//!
//! Invariants: a writer is created with a fresh salt, is not `Clone`, and is consumed by its trailer, so a nonce cannot
//! repeat; a reader releases nothing of a frame before its tag was checked, and takes the ids it expects as arguments.

mod cipher;
mod error;
mod final_object;
mod frame;
mod header;
mod key_box;
mod keys;
mod manifest;
mod reader;
mod segment;
mod verify;
mod wrap;
mod writer;

#[cfg(feature = "seal-aws-lc")]
pub use cipher::AwsLc;
pub use cipher::{CipherFailed, CipherSuite, DefaultSuite, RustCrypto};
pub use error::{ReadError, SealError};
pub use final_object::{TAIL_BYTES, Tail};
pub use frame::{Frame, GapReason, MAX_FRAME_PAYLOAD_BYTES, OVERHEAD_BYTES, OVERHEAD_EXPLICIT_BYTES};
pub use header::{Expected, HEADER_BYTES, MAX_HEADER_BYTES, ObjectHeader, ObjectKind};
pub use key_box::{KeyBox, KeyMemory, KeyPlace, keep_keys_in};
pub use keys::{Dek, KEY_BYTES, Salt};
pub use manifest::{EndState, Manifest, ManifestWriter, Row, RowSpan, TrackSpan, extend_span};
pub use reader::{EndOfObject, ObjectReader, PREFIX_BYTES, whole_frames_prefix};
pub use segment::{EndReason, FinishedSegment, SegmentIds, SegmentWriter, TrackTotals, TrailerTotals};
pub use verify::{Grade, OpenedRow, RecordingVerifier, RowEvidence, check_digest, open_row, sha256};
pub use wrap::{SealedBox, WrapContext};

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "small numbers, few cases"
)]
mod tests;

/// The limits of one object (`docs/FORMAT.md` section 16).
pub mod limits {
    /// Frames under one object key, trailer included: keeps the forgery advantage far below 2^-64.
    pub const FRAMES: u32 = 65_536;
    /// Bytes of frames under one object key.
    pub const OBJECT_BYTES: usize = 16 * 1024 * 1024;
    /// Seconds one segment may span: bounds what a cloned recorder could repeat.
    pub const SEGMENT_SECS: u64 = 60;
}
