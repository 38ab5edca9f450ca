//! The identifiers of the system, one type each, so that no two of them can be confused.
//!
//! Everything here is opaque and free of personal data: it may appear in object names, tags and logs. A [`TenantId`] is
//! chosen by the operator and is the one readable name; objects carry its [`TenantTag`] instead.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Why a text is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {allowed}")]
pub struct InvalidId {
    what: &'static str,
    allowed: &'static str,
}

/// A tenant's readable name: 1 to 63 characters of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(String);

impl TenantId {
    /// Returns the name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the tag that stands for this tenant in object names and headers (`docs/FORMAT.md` section 3).
    pub fn tag(&self) -> TenantTag {
        let mut hash = Sha256::new();
        hash.update(b"cmr1 tenant\0");
        hash.update(self.0.as_bytes());
        TenantTag(first_16(&hash.finalize().into()))
    }
}

impl FromStr for TenantId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if is_label(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidId { what: "tenant id", allowed: "1 to 63 characters of a-z, 0-9 and '-'" })
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A route's name within its tenant: 1 to 63 characters of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteName(String);

impl RouteName {
    /// The route of a URL that names none.
    pub const DEFAULT: &'static str = "default";

    /// Returns the name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RouteName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if is_label(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidId { what: "route name", allowed: "1 to 63 characters of a-z, 0-9 and '-'" })
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a 16-byte identifier that is written as 32 lower-case hexadecimal digits.
macro_rules! id_16 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse_hex_16(text)
                    .map(Self)
                    .ok_or(InvalidId { what: $what, allowed: "32 lower-case hexadecimal digits" })
            }
        }
    };
}

id_16!(
    /// The first 16 bytes of a hash of the tenant's name.
    TenantTag, "tenant tag"
);
id_16!(
    /// One recording: a UUID version 7, so that names sort by time.
    RecordingId, "recording id"
);
id_16!(
    /// Names a DEK without telling anything about it.
    KeyId, "key id"
);
id_16!(
    /// One writer incarnation: random, new for every stream in every process.
    WriterId, "writer id"
);
id_16!(
    /// One notice: what it follows from is in `domain::notice`.
    NoticeId, "notice id"
);
id_16!(
    /// One request of a person about what is kept of them: a UUID version 7.
    RequestId, "request id"
);
id_16!(
    /// A call id or a telephone number that nobody can read.
    BlindId, "blind id"
);

impl RecordingId {
    /// Makes an id from the time of its creation and ten random bytes (UUID version 7, RFC 9562).
    pub fn new(unix_ms: u64, random: &[u8; 10]) -> Self {
        Self(*uuid::Builder::from_unix_timestamp_millis(unix_ms, random).as_uuid().as_bytes())
    }

    /// Returns the Unix time in milliseconds that the id was made at.
    pub fn created_ms(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

/// One direction or channel of a stream, numbered from 0 to 15 as in the frame head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackId(u8);

impl TrackId {
    /// How many tracks a stream can have: the frame head has four bits for them.
    pub const COUNT: usize = 16;
    /// The person on the phone.
    pub const CALLER: Self = Self(0);
    /// The AI agent, or whoever talks to the caller.
    pub const AGENT: Self = Self(1);

    /// Returns the track of a frame head's low four bits.
    pub const fn from_nibble(byte: u8) -> Self {
        Self(byte & 0x0f)
    }

    /// Returns the number, at most 15.
    pub const fn number(self) -> u8 {
        self.0
    }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Returns the first half of a SHA-256 digest.
pub(crate) fn first_16(digest: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(digest.split_at(16).0);
    half
}

fn parse_hex_16(text: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_tag_is_the_published_one() {
        let tenant: TenantId = "acme-dental".parse().unwrap();
        assert_eq!(tenant.tag().to_string(), "8f60e616c2f0f2bc9a6ef3fd41cae7a3");
    }

    #[test]
    fn labels_are_checked() {
        for bad in ["", "Acme", "a_b", "a/b", "..", "é", &"a".repeat(64)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad:?}");
            assert!(bad.parse::<RouteName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(63).parse::<TenantId>().is_ok());
    }

    #[test]
    fn ids_are_written_and_read_as_hex() {
        let text = "018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f";
        let id: RecordingId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.created_ms(), 0x018f_4c2e_7b5a);
        for bad in ["", "018F4c2e7b5a7c3d9e1f0a2b3c4d5e6f", "018f4c2e-7b5a-7c3d-9e1f-0a2b3c4d5e6f", "zz"] {
            assert!(bad.parse::<RecordingId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn recording_ids_sort_by_time() {
        let early = RecordingId::new(1_760_000_000_000, &[0xff; 10]);
        let late = RecordingId::new(1_760_000_000_001, &[0; 10]);
        assert!(early < late);
        assert_eq!(late.created_ms(), 1_760_000_000_001);
    }
}
