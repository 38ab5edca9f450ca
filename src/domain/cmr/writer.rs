//! Seals frames one after the other into one object. Shared by segments and manifests.

use std::hint::black_box;

use zeroize::Zeroizing;

use super::cipher::{CipherSuite, DefaultSuite};
use super::error::SealError;
use super::frame::MAX_INNER_BYTES;
use super::keys::{Dek, ObjectKeys};
use super::limits;
use super::reader::{PREFIX_BYTES, frame_aad, frame_nonce};

const TAG_BYTES: usize = 16;
const LAST_FRAME: u16 = 1 << 15;
/// The longest frame as stored.
const MAX_SEALED_BYTES: usize = PREFIX_BYTES + MAX_INNER_BYTES + TAG_BYTES;

/// The sealed bytes of one object so far, and the only owner of its nonce counter.
pub(super) struct ObjectWriter {
    sealed: Vec<u8>,
    key: <DefaultSuite as CipherSuite>::SealKey,
    base_nonce: Zeroizing<[u8; 12]>,
    commitment: [u8; 32],
    next_frame: u32,
    poisoned: bool,
}

impl ObjectWriter {
    /// Starts an object from its header without commitment.
    pub(super) fn new(dek: &Dek, salt: &[u8; 32], committed: Vec<u8>, capacity: usize) -> Self {
        let ObjectKeys { key, base_nonce, commitment } = dek.object_keys(salt, &committed);
        let mut sealed = committed;
        sealed.reserve(capacity.saturating_sub(sealed.len()));
        sealed.extend_from_slice(&commitment);
        let key = DefaultSuite::seal_key(key);
        Self { sealed, key, base_nonce, commitment, next_frame: 0, poisoned: false }
    }

    /// Seals one frame: `head`, then whatever `fill` appends.
    ///
    /// `fill` gets the object's own bytes and may only append to them; nothing is sealed when it fails.
    pub(super) fn seal<T, E: From<SealError>>(
        &mut self,
        head: u8,
        last: bool,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.check_room(last)?;
        let frame_start = self.sealed.len();
        let inner_start = frame_start + PREFIX_BYTES;
        self.sealed.extend_from_slice(&[0, 0, head]);
        let filled = match fill(&mut self.sealed) {
            Ok(filled) => filled,
            Err(error) => {
                self.sealed.truncate(frame_start);
                return Err(error);
            }
        };
        let inner_bytes = self.sealed.len().saturating_sub(inner_start);
        if inner_bytes > MAX_INNER_BYTES {
            self.sealed.truncate(frame_start);
            return Err(SealError::FrameSize(inner_bytes).into());
        }
        self.encrypt_tail(frame_start, last)?;
        Ok(filled)
    }

    /// Encrypts everything after the prefix at `frame_start` in place and appends the tag.
    fn encrypt_tail(&mut self, frame_start: usize, last: bool) -> Result<(), SealError> {
        let inner_bytes = self.sealed.len() - frame_start - PREFIX_BYTES;
        let length = u16::try_from(inner_bytes + TAG_BYTES).map_err(|_| SealError::FrameSize(inner_bytes))?;
        let prefix = (if last { length | LAST_FRAME } else { length }).to_be_bytes();
        let nonce = frame_nonce(&self.base_nonce, self.next_frame, last);
        let aad = frame_aad(&self.commitment, prefix);
        self.next_frame += 1;
        self.poisoned = true;
        let frame =
            self.sealed.get_mut(frame_start..).and_then(<[u8]>::split_first_chunk_mut::<PREFIX_BYTES>);
        let Some((prefix_slot, inner)) = frame else { return Err(SealError::Poisoned) };
        *prefix_slot = prefix;
        match DefaultSuite::seal(&mut self.key, &nonce, &aad, inner) {
            Ok(tag) => self.sealed.extend_from_slice(&tag),
            Err(failed) => {
                inner.fill(0);
                self.sealed.truncate(frame_start);
                return Err(failed.into());
            }
        }
        self.poisoned = false;
        Ok(())
    }

    /// Reads where the next frame goes and the key that seals it.
    pub(super) fn prefetch(&self) {
        black_box((self.sealed.last().copied(), self.next_frame));
        DefaultSuite::prefetch(&self.key);
    }

    fn check_room(&self, last: bool) -> Result<(), SealError> {
        if self.poisoned {
            return Err(SealError::Poisoned);
        }
        // One frame number and the bytes of one frame are kept back for the trailer.
        let frames = if last { 1 } else { 2 };
        let bytes_left = limits::OBJECT_BYTES.saturating_sub(self.sealed.len());
        let has_bytes = bytes_left / MAX_SEALED_BYTES >= frames;
        let has_numbers = usize::try_from(limits::FRAMES - self.next_frame).is_ok_and(|left| left >= frames);
        if has_bytes && has_numbers { Ok(()) } else { Err(SealError::Exhausted) }
    }

    pub(super) fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    pub(super) fn frames(&self) -> u32 {
        self.next_frame
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.sealed
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.sealed
    }
}
