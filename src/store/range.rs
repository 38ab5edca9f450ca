//! Byte ranges of objects.

use std::ops::Range;

/// A range of an object's bytes, as HTTP's `Range` can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first number up to, but without, the second; it may reach beyond the object's end.
    Span(Range<u64>),
    /// The last so many bytes; more than the object has means all of it.
    Suffix(u64),
}

impl ByteRange {
    /// Returns the bytes that are meant in an object of `total_size` bytes, or nothing if that is none at all.
    pub fn within(&self, total_size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Span(span) => span.start..span.end.min(total_size),
            Self::Suffix(length) => total_size.saturating_sub(*length)..total_size,
        };
        (range.start < range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped_and_empty_ones_refused() {
        assert_eq!(ByteRange::Span(2..5).within(10), Some(2..5));
        assert_eq!(ByteRange::Span(2..50).within(10), Some(2..10));
        assert_eq!(ByteRange::Span(9..u64::MAX).within(10), Some(9..10));
        assert_eq!(ByteRange::Suffix(3).within(10), Some(7..10));
        assert_eq!(ByteRange::Suffix(30).within(10), Some(0..10));
        let backwards = Range { start: 6, end: 5 };
        for empty in
            [ByteRange::Span(10..11), ByteRange::Span(5..5), ByteRange::Span(backwards), ByteRange::Suffix(0)]
        {
            assert_eq!(empty.within(10), None, "{empty:?}");
        }
        assert_eq!(ByteRange::Suffix(1).within(0), None);
    }
}
