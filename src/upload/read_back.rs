//! Whether an object in the store is what was put into it, found out by reading it back.
//!
//! The digests of the rows are known already, so nothing has to be hashed when the object is written.

use sha2::{Digest, Sha256};

use crate::domain::cmr::Row;
use crate::store::{ByteRange, ObjectName, StoreError};

use super::compact::CompactError;
use super::requests::Requests;

/// An object is read back in pieces of 1 MiB: an answer is in memory twice for a moment.
const PIECE_BYTES: u64 = 1 << 20;

/// Reads an object back that consists of `rows` and then of `end`, the manifest and the tail.
///
/// # Errors
/// [`CompactError::Differs`] when it does not; [`CompactError::Store`].
pub(super) async fn read_back(
    requests: Requests<'_>,
    name: &ObjectName,
    rows: &[Row],
    end: [&[u8]; 2],
) -> Result<(), CompactError> {
    let last = (end.iter().map(|part| part.len() as u64).sum(), Sha256::digest(end.concat()).into());
    let parts = rows.iter().map(|row| (u64::from(row.byte_len), row.sha256)).chain([last]);
    let length: u64 = parts.clone().map(|(length, _)| length).sum();
    let mut comparison = Comparison::new(parts.filter(|(length, _)| *length > 0));
    let mut position = 0;
    while position < length {
        let until = length.min(position + PIECE_BYTES);
        let fetched = match requests.get(name, Some(ByteRange::Span(position..until))).await {
            Err(StoreError::OutOfRange { .. }) => return Err(CompactError::Differs),
            fetched => fetched?,
        };
        let is_whole = fetched.total_size == length && fetched.bytes.len() as u64 == until - position;
        if !is_whole || !comparison.goes_on_with(&fetched.bytes) {
            return Err(CompactError::Differs);
        }
        position = until;
    }
    Ok(())
}

/// Compares bytes that come in pieces with the digests of what they consist of.
struct Comparison<P> {
    parts: P,
    hash: Sha256,
    /// The bytes of the current part that are still to come, and its digest.
    left: u64,
    wanted: [u8; 32],
}

impl<P: Iterator<Item = (u64, [u8; 32])>> Comparison<P> {
    /// `parts` are lengths above 0 and digests.
    fn new(parts: P) -> Self {
        Self { parts, hash: Sha256::new(), left: 0, wanted: [0; 32] }
    }

    /// Takes the next bytes; `false` when a part that ends in them is another.
    fn goes_on_with(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.left == 0 {
                let Some(next) = self.parts.next() else { return false };
                (self.left, self.wanted) = next;
            }
            let (now, later) =
                bytes.split_at(usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len())));
            self.hash.update(now);
            self.left -= now.len() as u64;
            if self.left == 0 && <[u8; 32]>::from(self.hash.finalize_reset()) != self.wanted {
                return false;
            }
            bytes = later;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(lengths: &[usize], bytes: &[u8]) -> Vec<(u64, [u8; 32])> {
        let mut rest = bytes;
        let mut cut = |length: usize| {
            let (part, later) = rest.split_at(length);
            rest = later;
            (length as u64, Sha256::digest(part).into())
        };
        lengths.iter().map(|length| cut(*length)).collect()
    }

    fn is_same(parts: &[(u64, [u8; 32])], pieces: usize, bytes: &[u8]) -> bool {
        let mut comparison = Comparison::new(parts.iter().copied());
        bytes.chunks(pieces).all(|piece| comparison.goes_on_with(piece)) && comparison.left == 0
    }

    #[test]
    fn a_changed_byte_is_found_wherever_parts_and_pieces_end() {
        let bytes: Vec<u8> = (0..40).collect();
        let parts = parts(&[1, 7, 12, 20], &bytes);
        for pieces in 1..=41 {
            assert!(is_same(&parts, pieces, &bytes), "pieces of {pieces}");
            for at in 0..bytes.len() {
                let mut other = bytes.clone();
                other[at] ^= 1;
                assert!(!is_same(&parts, pieces, &other), "byte {at}, pieces of {pieces}");
            }
        }
    }

    #[test]
    fn bytes_behind_the_last_part_are_no_part() {
        let bytes = [7; 9];
        assert!(!is_same(&parts(&[8], &bytes), 4, &bytes));
        assert!(!is_same(&parts(&[9], &bytes), 4, &[7; 8]), "nor may any be missing");
    }

    #[test]
    fn parts_that_changed_places_are_found() {
        let parts = parts(&[2, 2], &[1, 2, 3, 4]);
        assert!(!is_same(&parts, 4, &[3, 4, 1, 2]));
    }
}
