//! Object names.

use std::fmt;
use std::str::FromStr;

/// Why a text is not an object name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "object name must be 1 to 512 characters of a-z, 0-9, '.', '_' and '-' in segments of 1 to 200 split by '/', none beginning with '.'"
)]
pub struct InvalidName;

/// The name of an object: 1 to 512 characters of `a-z`, `0-9`, `.`, `_`, `-`, in segments split by `/`.
///
/// No segment is empty or begins with a dot, so `.` and `..` are no names and a folder can keep its own files under
/// dotted ones; none is longer than 200 characters, because file systems allow 255 bytes. Names order as S3 lists them:
/// by their bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// The greatest length of a name in bytes, which are its characters.
    pub const MAX_BYTES: usize = 512;
    /// The greatest length of one segment in bytes.
    const MAX_SEGMENT_BYTES: usize = 200;

    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        let valid = text.len() <= Self::MAX_BYTES && text.split('/').all(is_segment);
        if valid { Ok(Self(text)) } else { Err(InvalidName) }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tells whether a text can stand between two slashes of a name.
pub(super) fn is_segment(text: &str) -> bool {
    (1..=ObjectName::MAX_SEGMENT_BYTES).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "r/0f/s/1-00000000.cmr", "a.b_c-d/e..f", &vec!["a"; 256].join("/")] {
            assert_eq!(ObjectName::new(good).unwrap().as_str(), good);
        }
        let long = vec!["a"; 257].join("/");
        for bad in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", ".tmp/a", "A", "é", "a b", "a\0", "a\\b",
        ]
        .into_iter()
        .chain([long.as_str(), &"a".repeat(201)])
        {
            assert_eq!(ObjectName::new(bad), Err(InvalidName), "{bad:?}");
        }
    }
}
