//! Grants: signed, expiring rights to play one recording, carried in the query of a URL.
//!
//! The signature is `base64url(HMAC-SHA-256(key, "callseal-grant-v1\n" tenant "\n" recording "\n" canonical_query))`.
//! The canonical query is every parameter but `sig`, decoded and encoded again as RFC 3986 wants it, sorted by name and
//! joined by `&`. Whatever changes the answer is signed, and two spellings of the same values are one grant.
//! Tenant and recording come from the path and contain no line feed, so no two grants share a string to sign.
//!
//! Nothing here finds keys, keeps revocations or knows HTTP. A [`SignedGrant`] shows only its key id before it verified.

use core::net::IpAddr;
use std::fmt;

use crate::domain::address::IpRange;
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::playback::wav::{Channels, Encoding};
use crate::domain::sign;
use crate::domain::time::UnixMillis;

use self::query::{Parameters, canonical};

mod query;

/// The longest query that is read, in bytes: all parameters at their limits, fully escaped, stay below it.
pub const MAX_QUERY_BYTES: usize = 4096;
/// The longest key id, in characters of `A-Z`, `a-z`, `0-9`, `-` and `_`.
pub const MAX_KID_BYTES: usize = 64;
/// The longest name of a listener, in bytes of UTF-8.
pub const MAX_SUB_BYTES: usize = 256;
/// The longest reason, in bytes of UTF-8.
pub const MAX_REASON_BYTES: usize = 512;
/// The largest time: 2^53, up to which every JSON reader is exact.
pub const MAX_TIME_SECS: u64 = 1 << 53;

/// Which tracks a grant lets play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrackSelection {
    /// The person on the phone.
    Caller,
    /// The AI agent, or whoever talks to the caller.
    Agent,
    /// Two channels, caller left and agent right.
    #[default]
    Both,
}

impl TrackSelection {
    /// Returns how many channels of a WAV file it takes.
    pub const fn channels(self) -> Channels {
        match self {
            Self::Both => Channels::Stereo,
            Self::Caller | Self::Agent => Channels::Mono,
        }
    }

    /// Returns the word of the query parameter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Agent => "agent",
            Self::Both => "both",
        }
    }
}

/// The right to play one recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whose recording it is; from the path.
    pub tenant: TenantId,
    /// The recording; from the path.
    pub recording: RecordingId,
    /// When the grant was made, in seconds since 1970.
    pub iat: u64,
    /// When it ends, in seconds since 1970, that second excluded; later than `iat`.
    pub exp: u64,
    /// The tenant's grant key that signed it; at most [`MAX_KID_BYTES`].
    pub kid: String,
    /// Who listens, for the audit record; not empty, no control characters, at most [`MAX_SUB_BYTES`].
    pub sub: String,
    /// Why, for the audit record; not empty, no control characters, at most [`MAX_REASON_BYTES`].
    pub reason: Option<String>,
    /// The only addresses that may use it.
    pub ip: Option<IpRange>,
    /// What may be heard; a query without `track` means both.
    pub track: TrackSelection,
    /// Whether the player offers the file for download (`dl=1`).
    pub dl: bool,
    /// The one rendering it is for, `pcm` or `ulaw`; `None` leaves the choice to the server's default.
    pub format: Option<Encoding>,
}

/// Why a query is not a grant. Each is a 400 that names the parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantFault {
    /// Over [`MAX_QUERY_BYTES`], or a piece between two `&` that is not `name=value` in strict percent-encoding.
    #[error("query is malformed")]
    Query,
    /// A parameter that grants do not have; the name is cut after 32 characters.
    #[error("parameter {0:?} is unknown")]
    Unknown(String),
    /// A parameter given twice.
    #[error("parameter {0:?} is repeated")]
    Repeated(&'static str),
    /// A parameter that every grant has.
    #[error("parameter {0:?} is missing")]
    Missing(&'static str),
    /// A value outside what the parameter allows, `exp` not later than `iat` included.
    #[error("parameter {0:?} is malformed")]
    Malformed(&'static str),
}

/// Why a well-formed grant gives no access. Each is a 403 with the stable [`code`](Self::code).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No key of that id.
    #[error("grant key is unknown")]
    UnknownKey,
    /// The signature is not that of this key, path and query.
    #[error("grant signature does not match")]
    Signature,
    /// Made before the moment from which the tenant's grants count again.
    #[error("grant is revoked")]
    Revoked,
    /// Made in the future, by more than the tolerated skew.
    #[error("grant is not yet valid")]
    NotYetValid,
    /// Its end has come.
    #[error("grant has expired")]
    Expired,
    /// Runs longer than the tenant allows.
    #[error("grant runs too long")]
    TooLong,
    /// Bound to addresses, and the request's is not one of them or not known.
    #[error("grant is for another address")]
    Address,
}

impl Denied {
    /// Returns the code of the error body; it never changes.
    pub const fn code(self) -> &'static str {
        match self {
            Self::UnknownKey => "grant_unknown_key",
            Self::Signature => "grant_signature",
            Self::Revoked => "grant_revoked",
            Self::NotYetValid => "grant_not_yet_valid",
            Self::Expired => "grant_expired",
            Self::TooLong => "grant_too_long",
            Self::Address => "grant_address",
        }
    }
}

/// What a tenant allows of its grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantLimits {
    /// The largest `exp - iat`, in seconds.
    pub max_ttl_secs: u64,
    /// How far `iat` may lie in the future, in seconds: clocks of minting servers run ahead. `exp` has no tolerance.
    pub skew_secs: u64,
}

/// One request that presents a grant: what the decision depends on beside the grant itself.
#[derive(Clone, Copy)]
pub struct GrantCheck<'a> {
    /// The key of [`SignedGrant::kid`], `None` where the tenant has none of that id.
    pub key: Option<&'a [u8]>,
    /// The time.
    pub now: UnixMillis,
    /// What the tenant allows.
    pub limits: GrantLimits,
    /// The address of the listener.
    pub source: Option<IpAddr>,
    /// Grants made before this second are revoked. One made within it counts, so a revocation names the next second.
    pub not_before: Option<u64>,
}

/// A grant as it came in: well formed, but trusted only after [`verify`](Self::verify).
#[derive(Clone, PartialEq, Eq)]
pub struct SignedGrant {
    grant: Grant,
    canonical_query: String,
    signature: [u8; 32],
}

impl Grant {
    /// Checks the fields against the limits that readers enforce; a minting side asks before it signs.
    ///
    /// # Errors
    /// [`GrantFault::Malformed`] naming the first field that no reader would accept.
    pub fn validate(&self) -> Result<(), GrantFault> {
        let rows = [
            ("iat", self.iat <= MAX_TIME_SECS),
            ("exp", self.exp <= MAX_TIME_SECS && self.exp > self.iat),
            ("kid", is_kid(&self.kid)),
            ("sub", is_text(&self.sub, MAX_SUB_BYTES)),
            ("reason", self.reason.as_deref().is_none_or(|reason| is_text(reason, MAX_REASON_BYTES))),
        ];
        match rows.into_iter().find(|(_, good)| !good) {
            Some((name, _)) => Err(GrantFault::Malformed(name)),
            None => Ok(()),
        }
    }

    /// Signs with the key named by `kid` and returns the whole query, `sig` at its end, without a question mark.
    ///
    /// Fields at their defaults are left out. A grant that does not [`validate`](Self::validate) is signed too, and
    /// refused by every reader.
    pub fn sign(&self, key: &[u8]) -> String {
        let mut query = self.canonical_query();
        let signature = signature(key, &self.tenant, self.recording, &query);
        query.push_str("&sig=");
        query.push_str(&sign::encode_base64url(&signature));
        query
    }

    fn canonical_query(&self) -> String {
        let optional = |present: bool, value: &str| present.then(|| value.to_owned());
        canonical(&mut [
            ("iat", Some(self.iat.to_string())),
            ("exp", Some(self.exp.to_string())),
            ("kid", Some(self.kid.clone())),
            ("sub", Some(self.sub.clone())),
            ("reason", self.reason.clone()),
            ("ip", self.ip.map(|range| range.to_string())),
            ("track", optional(self.track != TrackSelection::Both, self.track.as_str())),
            ("dl", optional(self.dl, "1")),
            ("format", self.format.map(|format| format_word(format).to_owned())),
        ])
    }
}

impl fmt::Debug for SignedGrant {
    /// Shows the key id only: whoever reads the rest can play the recording.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedGrant").field("kid", &self.grant.kid).finish_non_exhaustive()
    }
}

impl SignedGrant {
    /// Reads the query of a playback URL, without its question mark.
    ///
    /// # Errors
    /// A [`GrantFault`] for the first parameter that is unknown, repeated, missing or malformed.
    pub fn parse_query(tenant: &TenantId, recording: RecordingId, query: &str) -> Result<Self, GrantFault> {
        let mut values = Parameters::parse(query)?;
        let canonical_query = values.canonical();
        let grant = Grant {
            tenant: tenant.clone(),
            recording,
            iat: values.required("iat", parse_secs)?,
            exp: values.required("exp", parse_secs)?,
            kid: values.required("kid", Some)?,
            sub: values.required("sub", Some)?,
            reason: values.take("reason"),
            ip: values.optional("ip", |text| text.parse().ok())?,
            track: values.optional("track", |text| parse_track(&text))?.unwrap_or_default(),
            dl: values.optional("dl", |text| (text == "1").then_some(()))?.is_some(),
            format: values.optional("format", |text| parse_format(&text))?,
        };
        let signature =
            values.required("sig", |text| sign::decode_base64url(text.as_bytes())?.try_into().ok())?;
        grant.validate()?;
        Ok(Self { grant, canonical_query, signature })
    }

    /// Returns the id of the key to verify with; chosen by whoever made the URL.
    pub fn kid(&self) -> &str {
        &self.grant.kid
    }

    /// Decides about one request and hands out the grant's content.
    ///
    /// The signature is checked before anything that it covers, and takes the same time for an unknown key. Long
    /// transfers ask again as time passes.
    ///
    /// # Errors
    /// [`Denied`], the first that applies in the order of its variants.
    pub fn verify(&self, check: &GrantCheck<'_>) -> Result<&Grant, Denied> {
        let grant = &self.grant;
        let key = check.key.filter(|key| !key.is_empty());
        let computed =
            signature(key.unwrap_or_default(), &grant.tenant, grant.recording, &self.canonical_query);
        let matches = sign::equal(&computed, &self.signature);
        if key.is_none() {
            return Err(Denied::UnknownKey);
        }
        if !matches {
            return Err(Denied::Signature);
        }
        self.check_content(check).map(|()| grant)
    }

    fn check_content(&self, check: &GrantCheck<'_>) -> Result<(), Denied> {
        let Grant { iat, exp, ip, .. } = self.grant;
        let now = check.now.secs();
        if check.not_before.is_some_and(|not_before| iat < not_before) {
            return Err(Denied::Revoked);
        }
        if iat > now.saturating_add(check.limits.skew_secs) {
            return Err(Denied::NotYetValid);
        }
        if now >= exp {
            return Err(Denied::Expired);
        }
        if exp.saturating_sub(iat) > check.limits.max_ttl_secs {
            return Err(Denied::TooLong);
        }
        match (ip, check.source) {
            (None, _) => Ok(()),
            (Some(range), Some(source)) if range.contains(source) => Ok(()),
            (Some(_), _) => Err(Denied::Address),
        }
    }
}

fn signature(key: &[u8], tenant: &TenantId, recording: RecordingId, canonical_query: &str) -> [u8; 32] {
    sign::hmac_sha256(key, [string_to_sign(tenant, recording, canonical_query).as_bytes()])
}

fn string_to_sign(tenant: &TenantId, recording: RecordingId, canonical_query: &str) -> String {
    format!("callseal-grant-v1\n{tenant}\n{recording}\n{canonical_query}")
}

/// Reads decimal digits without sign or leading zero, at most [`MAX_TIME_SECS`].
#[expect(clippy::needless_pass_by_value, reason = "the shape of every parameter's reader")]
fn parse_secs(text: String) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|secs| digits && *secs <= MAX_TIME_SECS)
}

fn parse_track(text: &str) -> Option<TrackSelection> {
    let all = [TrackSelection::Caller, TrackSelection::Agent, TrackSelection::Both];
    all.into_iter().find(|track| track.as_str() == text)
}

fn parse_format(text: &str) -> Option<Encoding> {
    [Encoding::Pcm16, Encoding::Ulaw].into_iter().find(|format| format_word(*format) == text)
}

fn format_word(format: Encoding) -> &'static str {
    match format {
        Encoding::Pcm16 => "pcm",
        Encoding::Ulaw => "ulaw",
    }
}

fn is_kid(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_KID_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_text(text: &str, max_bytes: usize) -> bool {
    (1..=max_bytes).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
