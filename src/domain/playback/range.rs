//! Byte ranges of one representation (RFC 9110 section 14), so that players can seek.
//!
//! One range is served. Several ranges, other units and malformed headers are ignored, which section 14.2 allows, and
//! the whole is sent: no player needs several, and a thousand small ones are a known attack.

/// What a `Range` header asks of a representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// All of it: answer 200.
    Whole,
    /// The bytes from `first` to `last`, both included and below the total: answer 206.
    Part {
        /// The first byte.
        first: u64,
        /// The last byte, not before the first.
        last: u64,
    },
    /// Nothing that exists: answer 416.
    Unsatisfiable,
}

impl ByteRange {
    /// Reads a `Range` header for a representation of `total` bytes.
    ///
    /// `None`, several ranges, a unit other than `bytes` and malformed text are [`Whole`](Self::Whole). Numbers of any
    /// length are read; what lies behind the end is cut off.
    pub fn parse(header: Option<&str>, total: u64) -> Self {
        header.and_then(|text| parse_single(text, total)).unwrap_or(Self::Whole)
    }

    /// Returns the value of the `Content-Range` header, none for the whole.
    pub fn content_range(self, total: u64) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Part { first, last } => Some(format!("bytes {first}-{last}/{total}")),
            Self::Unsatisfiable => Some(format!("bytes */{total}")),
        }
    }
}

/// Whether a `Range` header counts, given the `If-Range` header beside it and the representation's `etag`.
///
/// Compares strongly (RFC 9110 section 13.1.5): a weak tag on either side never matches, and neither does a date, as we
/// send none. `etag` includes its quotes.
pub fn if_range_matches(if_range: Option<&str>, etag: &str) -> bool {
    let is_strong = |tag: &str| tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"');
    if_range.is_none_or(|tag| tag == etag && is_strong(tag))
}

/// `None` where the header is to be ignored.
fn parse_single(header: &str, total: u64) -> Option<ByteRange> {
    let (unit, spec) = header.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim_matches([' ', '\t']).split_once('-')?;
    if first.is_empty() {
        return suffix(parse_number(last)?, total);
    }
    let first = parse_number(first)?;
    let last = if last.is_empty() { u64::MAX } else { parse_number(last)? };
    if last < first {
        return None;
    }
    if first >= total {
        return Some(ByteRange::Unsatisfiable);
    }
    Some(ByteRange::Part { first, last: last.min(total - 1) })
}

/// The last `length` bytes. Of an empty representation that is the whole, which no `Content-Range` could describe.
fn suffix(length: u64, total: u64) -> Option<ByteRange> {
    if length == 0 {
        return Some(ByteRange::Unsatisfiable);
    }
    let last = total.checked_sub(1)?;
    Some(ByteRange::Part { first: total.saturating_sub(length), last })
}

/// Reads one or more digits; more than fit count as the largest number.
fn parse_number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(first: u64, last: u64) -> ByteRange {
        ByteRange::Part { first, last }
    }

    #[test]
    fn headers_of_the_standard() {
        // RFC 9110 section 14.1.2, a representation of 10,000 bytes.
        let rows = [
            ("bytes=0-499", part(0, 499)),
            ("bytes=500-999", part(500, 999)),
            ("bytes=-500", part(9500, 9999)),
            ("bytes=9500-", part(9500, 9999)),
            ("bytes=0-0", part(0, 0)),
            ("bytes=-1", part(9999, 9999)),
            ("bytes=0-", part(0, 9999)),
            ("Bytes= 0-499 ", part(0, 499)),
            ("bytes=9999-20000", part(9999, 9999)),
            ("bytes=-20000", part(0, 9999)),
            ("bytes=00-007", part(0, 7)),
            ("bytes=0-99999999999999999999999999", part(0, 9999)),
            ("bytes=-99999999999999999999999999", part(0, 9999)),
            ("bytes=0-18446744073709551615", part(0, 9999)),
            ("bytes=10000-", ByteRange::Unsatisfiable),
            ("bytes=10000-10001", ByteRange::Unsatisfiable),
            ("bytes=99999999999999999999999999-", ByteRange::Unsatisfiable),
            ("bytes=-0", ByteRange::Unsatisfiable),
        ];
        for (header, expected) in rows {
            assert_eq!(ByteRange::parse(Some(header), 10_000), expected, "{header}");
        }
    }

    #[test]
    fn other_headers_are_ignored() {
        let rows = [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5",
            "bytes=5-4",
            "bytes=0-0,-1",
            "bytes=0-1,",
            "bytes=,0-1",
            "items=0-5",
            "bytes =0-5",
            "bytes=0 - 5",
            "bytes=+1-5",
            "bytes=1-+5",
            "bytes=--5",
            "bytes=1-2-3",
            "bytes=0x0-0x5",
            "bytes=1.0-5",
            "bytes=٠-٥",
            "bytes=0-5;",
            "bytes==0-5",
            " bytes=0-5",
            "none",
        ];
        for header in rows {
            assert_eq!(ByteRange::parse(Some(header), 10_000), ByteRange::Whole, "{header:?}");
        }
        assert_eq!(ByteRange::parse(None, 10_000), ByteRange::Whole);
        let thousand = format!("bytes={}", vec!["0-1"; 1000].join(","));
        assert_eq!(ByteRange::parse(Some(&thousand), 10_000), ByteRange::Whole);
    }

    #[test]
    fn edges_of_the_total() {
        assert_eq!(ByteRange::parse(Some("bytes=0-"), 0), ByteRange::Unsatisfiable);
        assert_eq!(ByteRange::parse(Some("bytes=-5"), 0), ByteRange::Whole);
        assert_eq!(ByteRange::parse(Some("bytes=-0"), 0), ByteRange::Unsatisfiable);
        assert_eq!(ByteRange::parse(Some("bytes=0-"), 1), part(0, 0));
        assert_eq!(ByteRange::parse(Some("bytes=1-"), u64::MAX), part(1, u64::MAX - 1));
        assert_eq!(ByteRange::parse(Some("bytes=18446744073709551615-"), u64::MAX), ByteRange::Unsatisfiable);
    }

    #[test]
    fn content_range_texts() {
        assert_eq!(ByteRange::Whole.content_range(9), None);
        assert_eq!(part(2, 5).content_range(9).as_deref(), Some("bytes 2-5/9"));
        assert_eq!(ByteRange::Unsatisfiable.content_range(9).as_deref(), Some("bytes */9"));
    }

    #[test]
    fn only_a_strong_equal_tag_matches() {
        assert!(if_range_matches(None, "\"v1\""));
        assert!(if_range_matches(Some("\"v1\""), "\"v1\""));
        for other in ["\"v2\"", "W/\"v1\"", "v1", "", "*", "\"v1\", \"v2\"", "Sat, 29 Oct 1994 19:43:31 GMT"]
        {
            assert!(!if_range_matches(Some(other), "\"v1\""), "{other}");
        }
        assert!(!if_range_matches(Some("W/\"v1\""), "W/\"v1\""));
        assert!(!if_range_matches(Some("v1"), "v1"));
        assert!(!if_range_matches(Some("\""), "\""));
    }

    proptest! {
        #[test]
        fn a_range_gives_exactly_the_slice(total in 0usize..40, first in 0usize..50, length in 0usize..50) {
            let whole: Vec<usize> = (0..total).collect();
            let place = |at: u64| usize::try_from(at).unwrap();
            let slice = |header: String| match ByteRange::parse(Some(&header), total as u64) {
                ByteRange::Whole => Some(whole.clone()),
                ByteRange::Part { first, last } => Some(whole[place(first)..=place(last)].to_vec()),
                ByteRange::Unsatisfiable => None,
            };
            let end = (first + length).min(total);
            let expected = (first < total).then(|| whole[first..].to_vec());
            prop_assert_eq!(slice(format!("bytes={first}-")), expected);
            if length > 0 {
                let expected = (first < total).then(|| whole[first..end].to_vec());
                prop_assert_eq!(slice(format!("bytes={first}-{}", first + length - 1)), expected);
            }
            let expected = (length > 0).then(|| whole[total.saturating_sub(length)..].to_vec());
            prop_assert_eq!(slice(format!("bytes=-{length}")), expected);
        }

        #[test]
        fn any_header_stays_within_the_whole(text in "(bytes=)?[-0-9, ]{0,30}|.*", total in any::<u64>()) {
            match ByteRange::parse(Some(&text), total) {
                ByteRange::Part { first, last } => prop_assert!(first <= last && last < total),
                ByteRange::Whole | ByteRange::Unsatisfiable => {}
            }
        }
    }
}
