//! Opens one object frame by frame (`docs/FORMAT.md` section 13.1).

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::cipher::{CipherSuite, DefaultSuite};
use super::error::ReadError;
use super::frame::{Frame, Positions};
use super::header::{Expected, ObjectHeader, ObjectKind, parse};
use super::keys::{Dek, ObjectKeys};
use super::limits;
use super::segment::TrailerTotals;

/// Bytes before every sealed frame: the F bit and 15 bits of length.
pub const PREFIX_BYTES: usize = 2;
const TAG_BYTES: usize = 16;
const MIN_SEALED_BYTES: usize = TAG_BYTES + 1;

/// How an object ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfObject {
    /// Its trailer was seen and checked.
    Complete,
    /// It ends on a frame boundary without a trailer.
    Unfinished,
    /// It ends inside a frame.
    TornTail,
}

/// Opens the frames of one object in order; stops at the first fault and releases nothing of that frame.
pub struct ObjectReader<'a> {
    header: ObjectHeader,
    extension: &'a [u8],
    object: &'a [u8],
    header_bytes: usize,
    position: usize,
    key: <DefaultSuite as CipherSuite>::OpenKey,
    base_nonce: Zeroizing<[u8; 12]>,
    commitment: [u8; 32],
    next_frame: u32,
    positions: Positions,
    trailer: Option<TrailerTotals>,
    end: Option<EndOfObject>,
}

/// One frame as stored.
struct SealedFrame<'a> {
    last: bool,
    /// Ciphertext and tag.
    sealed: &'a [u8],
    prefix: [u8; PREFIX_BYTES],
}

impl<'a> ObjectReader<'a> {
    /// Checks the header against `expected` and the commitment against `dek`.
    ///
    /// # Errors
    /// The parse classes, [`ReadError::ContextMismatch`] and [`ReadError::WrongKeyOrTamperedHeader`].
    pub fn new(
        object: &'a [u8],
        kind: ObjectKind,
        dek: &Dek,
        expected: &Expected,
    ) -> Result<Self, ReadError> {
        let parsed = parse(object)?;
        check_context(&parsed.header.ids, expected)?;
        let ObjectKeys { key, base_nonce, commitment } =
            dek.object_keys(&parsed.header.salt, parsed.committed);
        if !bool::from(commitment.ct_eq(&parsed.commitment)) {
            return Err(ReadError::WrongKeyOrTamperedHeader);
        }
        if parsed.header.kind != kind {
            return Err(ReadError::MalformedHeader("type"));
        }
        Ok(Self {
            extension: parsed.extension,
            object,
            header_bytes: parsed.header_bytes,
            position: parsed.header_bytes,
            key: DefaultSuite::open_key(key),
            base_nonce,
            commitment,
            header: parsed.header,
            next_frame: 0,
            positions: Positions::default(),
            trailer: None,
            end: None,
        })
    }

    /// Opens the next frame into `scratch`, which is overwritten. `None` once the object has ended.
    ///
    /// # Errors
    /// [`ReadError::FrameAuth`], [`ReadError::MalformedFrame`], [`ReadError::LimitExceeded`]; the reader is then at its
    /// end and must not be used further.
    pub fn next_frame<'s>(&mut self, scratch: &'s mut Vec<u8>) -> Result<Option<Frame<'s>>, ReadError> {
        let Some(SealedFrame { last, sealed, prefix }) = self.split_frame()? else { return Ok(None) };
        let number = self.next_frame;
        let (text, tag) = sealed
            .split_last_chunk::<TAG_BYTES>()
            .ok_or(ReadError::MalformedFrame(number, "shorter than its tag"))?;
        scratch.clear();
        scratch.extend_from_slice(text);
        let nonce = frame_nonce(&self.base_nonce, number, last);
        let aad = frame_aad(&self.commitment, prefix);
        DefaultSuite::open(&self.key, &nonce, &aad, scratch, tag).map_err(|_| {
            self.end = Some(EndOfObject::TornTail);
            ReadError::FrameAuth(number)
        })?;
        self.position += PREFIX_BYTES + sealed.len();
        let frame = Frame::parse(number, last, scratch, &mut self.positions)?;
        if let Frame::Trailer(body) = &frame {
            self.check_trailer(number, body)?;
            self.end = Some(EndOfObject::Complete);
        }
        self.next_frame += 1;
        Ok(Some(frame))
    }

    /// A segment's trailer must count what the segment held.
    fn check_trailer(&mut self, number: u32, body: &[u8]) -> Result<(), ReadError> {
        if self.header.kind == ObjectKind::Manifest {
            return Ok(());
        }
        let trailer = TrailerTotals::parse(number, body)?;
        let held = std::mem::take(&mut self.positions).into_totals();
        let listed_are_held = trailer.tracks.iter().all(|listed| held.contains(listed));
        if !listed_are_held || !trailer.tracks.is_sorted_by(|a, b| a.track < b.track) {
            return Err(ReadError::MalformedFrame(number, "trailer counts other audio"));
        }
        self.trailer = Some(trailer);
        Ok(())
    }

    /// Cuts the next frame off, or notes how the object ends.
    fn split_frame(&mut self) -> Result<Option<SealedFrame<'a>>, ReadError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let rest = self.object.get(self.position..).unwrap_or_default();
        if rest.is_empty() {
            self.end = Some(EndOfObject::Unfinished);
            return Ok(None);
        }
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX_BYTES>() else {
            self.end = Some(EndOfObject::TornTail);
            return Ok(None);
        };
        let (last, length) = split_prefix(*prefix);
        let Some(sealed) = rest.get(..length) else {
            self.end = Some(EndOfObject::TornTail);
            return Ok(None);
        };
        if length < MIN_SEALED_BYTES {
            return Err(ReadError::MalformedFrame(self.next_frame, "length below 17"));
        }
        if self.next_frame >= limits::FRAMES {
            return Err(ReadError::LimitExceeded("frames of one object"));
        }
        if self.position + PREFIX_BYTES + length - self.header_bytes > limits::OBJECT_BYTES {
            return Err(ReadError::LimitExceeded("bytes of one object"));
        }
        Ok(Some(SealedFrame { last, sealed, prefix: *prefix }))
    }

    /// Returns how the object ended; `None` while frames are left.
    pub fn end(&self) -> Option<EndOfObject> {
        self.end
    }

    /// Returns the authenticated header.
    pub fn header(&self) -> &ObjectHeader {
        &self.header
    }

    /// Returns the authenticated clear extension of a manifest; empty for segments.
    pub fn extension(&self) -> &'a [u8] {
        self.extension
    }

    /// Returns the commitment; its first half is what the next segment's `prev` must hold.
    pub fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    /// Takes a segment's checked trailer; `None` before its end, and if it has none.
    pub fn take_trailer(&mut self) -> Option<TrailerTotals> {
        self.trailer.take()
    }

    /// Returns how many frames were opened.
    pub fn frames(&self) -> u32 {
        self.next_frame
    }

    /// Returns how many bytes of the object are verified so far.
    pub fn consumed_bytes(&self) -> usize {
        self.position
    }
}

/// Returns the length of the longest prefix of `segment` that holds whole frames only. Needs no key.
pub fn whole_frames_prefix(segment: &[u8]) -> usize {
    let mut position = match parse(segment) {
        Ok(parsed) => parsed.header_bytes,
        Err(_) => return 0,
    };
    loop {
        let rest = segment.get(position..).unwrap_or_default();
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX_BYTES>() else { return position };
        let (last, length) = split_prefix(*prefix);
        if length < MIN_SEALED_BYTES || rest.len() < length {
            return position;
        }
        position += PREFIX_BYTES + length;
        if last {
            return position;
        }
    }
}

/// The nonce of frame `number`: base nonce XOR (32 zero bits || number with the F bit on top); RFC 8446 section 5.3
/// builds its per-record nonces the same way.
pub(super) fn frame_nonce(base: &[u8; 12], number: u32, last: bool) -> [u8; 12] {
    let counter = u64::from(number) | u64::from(last) << 63;
    let mut nonce = *base;
    for (byte, mask) in nonce.iter_mut().skip(4).zip(counter.to_be_bytes()) {
        *byte ^= mask;
    }
    nonce
}

/// What every frame is bound to: the object's commitment and the frame's own prefix, one GHASH block.
pub(super) fn frame_aad(commitment: &[u8; 32], prefix: [u8; PREFIX_BYTES]) -> [u8; 16] {
    let mut aad = [0; 16];
    for (slot, byte) in aad.iter_mut().zip(commitment.iter().take(14).chain(&prefix)) {
        *slot = *byte;
    }
    aad
}

fn split_prefix(prefix: [u8; PREFIX_BYTES]) -> (bool, usize) {
    let word = u16::from_be_bytes(prefix);
    (word & 0x8000 != 0, usize::from(word & 0x7fff))
}

fn check_context(found: &Expected, expected: &Expected) -> Result<(), ReadError> {
    if found.tenant != expected.tenant {
        return Err(ReadError::ContextMismatch("tenant"));
    }
    if found.recording != expected.recording {
        return Err(ReadError::ContextMismatch("recording"));
    }
    if found.key != expected.key {
        return Err(ReadError::ContextMismatch("key"));
    }
    Ok(())
}
