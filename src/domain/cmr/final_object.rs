//! The final object: segments, manifest and tail in one (`docs/FORMAT.md` section 8). Made without any key.

use super::error::ReadError;
use super::header::Fields;

/// Bytes of the tail that ends every final object.
pub const TAIL_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"CMRTAIL1";

/// Where the manifest lies in a final object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Its offset: the sum of all segment lengths.
    pub manifest_offset: u64,
    /// Its length.
    pub manifest_len: u32,
    /// How many segments stand before it.
    pub segments: u32,
}

impl Tail {
    /// Writes the tail.
    pub fn encode(&self) -> [u8; TAIL_BYTES] {
        let mut out = Vec::with_capacity(TAIL_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.manifest_offset.to_be_bytes());
        out.extend_from_slice(&self.manifest_len.to_be_bytes());
        out.extend_from_slice(&self.segments.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        let mut tail = [0; TAIL_BYTES];
        tail.copy_from_slice(&out);
        tail
    }

    /// Reads the tail off the end of `bytes`, of an object that is `total_bytes` long.
    ///
    /// # Errors
    /// [`ReadError::NoTail`] when magic, checksum, reserved bytes or bounds are wrong. Nothing is authenticated; the
    /// manifest that it points to is.
    pub fn parse(bytes: &[u8], total_bytes: u64) -> Result<Self, ReadError> {
        let tail: &[u8; TAIL_BYTES] = bytes.last_chunk().ok_or(ReadError::NoTail)?;
        let (checked, crc) = tail.split_last_chunk::<4>().ok_or(ReadError::NoTail)?;
        let mut fields = Fields(checked);
        let parsed = (|| {
            let magic: [u8; 8] = fields.take()?;
            let found =
                Self { manifest_offset: fields.u64()?, manifest_len: fields.u32()?, segments: fields.u32()? };
            let reserved = fields.u32()?;
            (magic == MAGIC && reserved == 0).then_some(found)
        })();
        let found = parsed.ok_or(ReadError::NoTail)?;
        let end = found
            .manifest_offset
            .checked_add(u64::from(found.manifest_len))
            .and_then(|end| end.checked_add(TAIL_BYTES as u64));
        if crc32fast::hash(checked).to_be_bytes() != *crc || end != Some(total_bytes) {
            return Err(ReadError::NoTail);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_round_trip_and_every_bit_flip() {
        let tail = Tail { manifest_offset: 1000, manifest_len: 500, segments: 3 };
        let total = 1000 + 500 + TAIL_BYTES as u64;
        let bytes = tail.encode();
        assert_eq!(Tail::parse(&bytes, total), Ok(tail));
        assert_eq!(Tail::parse(&bytes, total + 1), Err(ReadError::NoTail));
        assert_eq!(Tail::parse(&bytes[1..], total), Err(ReadError::NoTail));
        for bit in 0..TAIL_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Tail::parse(&flipped, total), Err(ReadError::NoTail), "bit {bit}");
        }
    }
}
