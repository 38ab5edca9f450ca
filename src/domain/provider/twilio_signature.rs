//! Checks that a request comes from Twilio: the `X-Twilio-Signature` of stream handshakes and status callbacks.
//!
//! Twilio signs the URL that the customer gave it, followed by the form fields of a POST, with HMAC-SHA-1 under the
//! account's auth token, or under a SharedKey that a settings header names. Nothing else is covered: not the account,
//! the call or the time. The URL comes from configuration and the request target, never from `Host` or a forwarded
//! header, and nothing in it is decoded or normalised. Everything odd is refused, nothing falls back to a weaker check.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};

use crate::domain::percent;
use crate::domain::sign;

/// The largest form body that [`parse_form`] reads, in bytes. Twilio's callbacks are below 1 KiB.
pub const MAX_FORM_BYTES: usize = 64 * 1024;
/// The largest number of fields in a form. Twilio's callbacks have seven.
pub const MAX_FORM_FIELDS: usize = 128;

/// The secrets that a tenant's requests may be signed with.
#[derive(Clone, Copy)]
pub struct TwilioSecrets<'a> {
    /// The auth tokens as text bytes: the current one, and during a rotation the next.
    pub auth_tokens: &'a [&'a [u8]],
    /// Finds the secret of a SharedKey by its id.
    pub shared_keys: &'a dyn Fn(&str) -> Option<&'a [u8]>,
    /// Whether a signature under an auth token is refused.
    pub require_shared_key: bool,
}

/// The signature headers of one request, every occurrence in order, names matched without regard to case.
#[derive(Clone, Copy)]
pub struct SignatureHeaders<'a> {
    /// Values of `X-Twilio-Signature`; exactly one is allowed.
    pub signatures: &'a [&'a [u8]],
    /// Values of `X-Twilio-Webhooks-Signature-Settings`; at most one is allowed.
    pub settings: &'a [&'a [u8]],
}

/// Why a request is not accepted as Twilio's. All are the same 403 outside; the variant is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No signature header.
    #[error("signature header is missing")]
    MissingSignature,
    /// Two signature or two settings headers.
    #[error("signature header is repeated")]
    RepeatedHeader,
    /// Not the strict base64 of as many bytes as the algorithm makes.
    #[error("signature is malformed")]
    MalformedSignature,
    /// The settings header names no key, or something twice.
    #[error("signature settings are malformed")]
    MalformedSettings,
    /// The settings header names an algorithm other than `HMAC_SHA1` and `HMAC_SHA256`.
    #[error("signature algorithm is unknown")]
    UnknownAlgorithm,
    /// The settings header names a SharedKey that the tenant does not have.
    #[error("shared key is unknown")]
    UnknownSharedKey,
    /// The tenant demands a SharedKey, the request is signed with an auth token.
    #[error("shared key is required")]
    SharedKeyRequired,
    /// The request target does not start with `/`, or has a `?` or `#`, which stream URLs never have.
    #[error("request target is malformed")]
    MalformedTarget,
    /// No secret gives this signature for any form of the URL.
    #[error("signature does not match")]
    Mismatch,
}

/// Why a form body is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormFault {
    /// Over [`MAX_FORM_BYTES`] or [`MAX_FORM_FIELDS`].
    #[error("form is too large")]
    TooLarge,
    /// A field without `=`, a broken escape, a bare control or non-ASCII byte, or text that is not UTF-8.
    #[error("form is malformed")]
    Malformed,
}

/// Checks the signature of a stream handshake.
///
/// `public_base` is the configured `wss://host[:port]` without a slash at its end; `target` is the request target
/// exactly as received. Every secret is tried on every one of the [`candidates`], without stopping at a match.
///
/// # Errors
/// A [`Refusal`]; the request must then be answered before the upgrade.
pub fn verify_handshake(
    secrets: &TwilioSecrets<'_>,
    public_base: &str,
    target: &str,
    headers: SignatureHeaders<'_>,
) -> Result<(), Refusal> {
    if !target.starts_with('/') || target.contains(['?', '#']) {
        return Err(Refusal::MalformedTarget);
    }
    verify(secrets, candidates(public_base, target), "", headers)
}

/// Checks the signature of a status callback.
///
/// `url` is the whole configured `https` URL, for a GET with its query; `params` are the decoded form fields of a POST,
/// all of them, known or not. The URL is tried as it is and with its port toggled.
///
/// # Errors
/// A [`Refusal`].
pub fn verify_callback(
    secrets: &TwilioSecrets<'_>,
    url: &str,
    params: &[(String, String)],
    headers: SignatureHeaders<'_>,
) -> Result<(), Refusal> {
    verify(secrets, with_and_without_port(url).into_iter(), &signed_form(params), headers)
}

/// Returns the signature that Twilio would send for a handshake to `url`: the part of the provider in a demonstration.
pub fn sign_url(token: &[u8], url: &str) -> String {
    sign::encode_base64(&sign::hmac_sha1(token, [url.as_bytes()]))
}

/// Reads an `application/x-www-form-urlencoded` body, strictly, in the order of its fields.
///
/// `+` is a space, escapes are decoded, and the text must be UTF-8. An empty body has no fields.
///
/// # Errors
/// [`FormFault`]; no part of the body is returned then.
pub fn parse_form(body: &[u8]) -> Result<Vec<(String, String)>, FormFault> {
    if body.len() > MAX_FORM_BYTES {
        return Err(FormFault::TooLarge);
    }
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let fields = body.split(|byte| *byte == b'&');
    if fields.clone().nth(MAX_FORM_FIELDS).is_some() {
        return Err(FormFault::TooLarge);
    }
    fields.map(|field| parse_field(field).ok_or(FormFault::Malformed)).collect()
}

/// A URL in pieces, so that a candidate costs no allocation: start and host, port, rest of the base, target, slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidateUrl<'a>([&'a str; 5]);

impl fmt::Display for CandidateUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| f.write_str(piece))
    }
}

/// Lists the URLs that Twilio may have signed for a handshake, two or four of them.
///
/// The URL itself; the one with a slash at its end (Twilio documents that it sometimes signs that), or for `/` the one
/// without; and both with the port toggled. `:80`, which Twilio's own libraries try, is not among them.
pub fn candidates<'a>(public_base: &'a str, target: &'a str) -> impl Iterator<Item = CandidateUrl<'a>> {
    with_and_without_port(public_base).into_iter().flat_map(move |CandidateUrl([host, port, rest, ..])| {
        let as_received = CandidateUrl([host, port, rest, target, ""]);
        let other_end = match target {
            "/" => Some(CandidateUrl([host, port, rest, "", ""])),
            _ if target.ends_with('/') => None,
            _ => Some(CandidateUrl([host, port, rest, target, "/"])),
        };
        [Some(as_received), other_end].into_iter().flatten()
    })
}

/// Returns the URL as it is, and with its port removed, or with `:443` where it has none.
fn with_and_without_port(url: &str) -> [CandidateUrl<'_>; 2] {
    let scheme_end = url.find("://").map_or(0, |at| at + "://".len());
    let after_scheme = url.get(scheme_end..).unwrap_or_default();
    let host_end = after_scheme.find(['/', '?']).map_or(url.len(), |at| scheme_end + at);
    let (authority, rest) = url.split_at(host_end);
    // A colon inside the brackets of an IPv6 address, or in the scheme, starts no port.
    let address_end = authority.rfind(']').unwrap_or(scheme_end);
    let port_start = authority.rfind(':').filter(|colon| *colon > address_end).unwrap_or(authority.len());
    let (host, port) = authority.split_at(port_start);
    let toggled = if port.is_empty() { ":443" } else { "" };
    [CandidateUrl([host, port, rest, "", ""]), CandidateUrl([host, toggled, rest, "", ""])]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    HmacSha1,
    HmacSha256,
}

impl Algorithm {
    fn parse(name: &str) -> Option<Self> {
        let known = [("HMAC_SHA1", Self::HmacSha1), ("HMAC_SHA256", Self::HmacSha256)];
        known.into_iter().find(|(text, _)| text.eq_ignore_ascii_case(name)).map(|(_, algorithm)| algorithm)
    }

    fn signature_bytes(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::HmacSha256 => 32,
        }
    }

    fn matches(self, key: &[u8], url: CandidateUrl<'_>, form: &str, received: &[u8]) -> Choice {
        let parts = url.0.into_iter().chain([form]).map(str::as_bytes);
        match self {
            Self::HmacSha1 => sign::hmac_sha1(key, parts).ct_eq(received),
            Self::HmacSha256 => sign::hmac_sha256(key, parts).ct_eq(received),
        }
    }
}

/// What the settings header says: which SharedKey, which algorithm.
#[derive(Debug, PartialEq, Eq)]
struct Settings<'a> {
    key_id: &'a str,
    algorithm: Algorithm,
}

impl<'a> Settings<'a> {
    /// Reads `key=<id>,algorithm=<name>`: spaces around the parts are dropped, HMAC_SHA1 is the default algorithm, and
    /// parts with other names are skipped, as twilio-python 9.13.0 does; unlike there, a part given twice is refused.
    fn parse(header: &'a [u8]) -> Result<Self, Refusal> {
        let text = str::from_utf8(header).map_err(|_| Refusal::MalformedSettings)?;
        let (mut key_id, mut algorithm) = (None, None);
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or(Refusal::MalformedSettings)?;
            let slot = match name.trim() {
                "key" => &mut key_id,
                "algorithm" => &mut algorithm,
                _ => continue,
            };
            if slot.replace(value.trim()).is_some() {
                return Err(Refusal::MalformedSettings);
            }
        }
        let key_id = key_id.filter(|id| !id.is_empty()).ok_or(Refusal::MalformedSettings)?;
        let algorithm =
            Algorithm::parse(algorithm.unwrap_or("HMAC_SHA1")).ok_or(Refusal::UnknownAlgorithm)?;
        Ok(Self { key_id, algorithm })
    }
}

fn verify<'a>(
    secrets: &TwilioSecrets<'_>,
    urls: impl Iterator<Item = CandidateUrl<'a>>,
    form: &str,
    headers: SignatureHeaders<'_>,
) -> Result<(), Refusal> {
    let signature = single(headers.signatures)?.ok_or(Refusal::MissingSignature)?;
    let settings = single(headers.settings)?.map(Settings::parse).transpose()?;
    let shared_secret;
    let (algorithm, keys) = match settings {
        Some(Settings { key_id, algorithm }) => {
            shared_secret = [(secrets.shared_keys)(key_id).ok_or(Refusal::UnknownSharedKey)?];
            (algorithm, shared_secret.as_slice())
        }
        None if secrets.require_shared_key => return Err(Refusal::SharedKeyRequired),
        None => (Algorithm::HmacSha1, secrets.auth_tokens),
    };
    let received = sign::decode_base64(signature)
        .filter(|bytes| bytes.len() == algorithm.signature_bytes())
        .ok_or(Refusal::MalformedSignature)?;

    let mut found = Choice::from(0);
    for url in urls {
        for key in keys.iter().filter(|key| !key.is_empty()) {
            found |= algorithm.matches(key, url, form, &received);
        }
    }
    if found.into() { Ok(()) } else { Err(Refusal::Mismatch) }
}

/// Returns the one value of a header, or `None` where it is absent.
fn single<'a>(values: &[&'a [u8]]) -> Result<Option<&'a [u8]>, Refusal> {
    match values {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(Refusal::RepeatedHeader),
    }
}

/// Joins the fields as Twilio signs them: sorted by name, the values of a repeated name sorted and each taken once.
fn signed_form(params: &[(String, String)]) -> String {
    let mut fields: Vec<_> = params.iter().collect();
    fields.sort_unstable();
    fields.dedup();
    fields.into_iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]).collect()
}

fn parse_field(field: &[u8]) -> Option<(String, String)> {
    let equals = field.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (field.get(..equals)?, field.get(equals + 1..)?);
    let literal = |byte: u8| match byte {
        b'+' => Some(b' '),
        _ => byte.is_ascii_graphic().then_some(byte),
    };
    Some((percent::decode(name, literal)?, percent::decode(value, literal)?))
}

#[cfg(test)]
mod tests;
