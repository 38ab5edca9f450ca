//! How a server message proves to come from a tenant's Vapi: a shared secret, a bearer token, or an HMAC.
//!
//! Everything about Vapi's HMAC is chosen by the tenant, so there is no fixed header. Every live secret is tried, in a time
//! that does not depend on which one fits. Source: Vapi's page "Server authentication" and the schema
//! `HMACAuthenticationPlan`; the unit of the timestamp is not documented, so seconds and milliseconds are both read.

use zeroize::Zeroizing;

use crate::domain::sign::{decode_base64, encode_base64, encode_hex, equal, hmac_sha256, hmac_sha512};

/// How old or new a signed timestamp may be.
pub const REPLAY_WINDOW_SECS: u64 = 300;
/// From this number on a timestamp counts milliseconds: in seconds it would be the year 5138.
const MILLIS_FROM: u64 = 100_000_000_000;

/// Which hash an HMAC is made with. SHA-1, which Vapi also offers, is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HmacHash {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// How an HMAC is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HmacEncoding {
    /// Hexadecimal digits in either case.
    Hex,
    /// Standard base64.
    Base64,
}

/// A piece of what is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Characters as they stand.
    Literal(String),
    /// The request's body, byte for byte.
    Body,
    /// The value of the timestamp header.
    Timestamp,
    /// `POST`.
    Method,
    /// The URL that Vapi was told.
    Url,
    /// The value of the header with the message's id.
    MessageId,
}

/// What is signed, such as `{timestamp}.{body}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFormat(Vec<Part>);

/// Why a format cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "allowed: text with {{body}} and perhaps {{timestamp}}, {{method}}, {{url}} and {{svix-id}}, each once"
)]
pub struct BadPayloadFormat;

impl std::str::FromStr for PayloadFormat {
    type Err = BadPayloadFormat;

    fn from_str(text: &str) -> Result<Self, BadPayloadFormat> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(open) = rest.find('{') {
            let (literal, placeholder) = rest.split_at(open);
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            let (name, after) = placeholder.split_once('}').ok_or(BadPayloadFormat)?;
            let part = match name {
                "{body" => Part::Body,
                "{timestamp" => Part::Timestamp,
                "{method" => Part::Method,
                "{url" => Part::Url,
                "{svix-id" => Part::MessageId,
                _ => return Err(BadPayloadFormat),
            };
            if parts.contains(&part) {
                return Err(BadPayloadFormat);
            }
            parts.push(part);
            rest = after;
        }
        if rest.contains('}') || text.len() > 256 || !parts.contains(&Part::Body) {
            return Err(BadPayloadFormat);
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

impl PayloadFormat {
    /// Whether a timestamp is signed, so that an old request can be told.
    pub fn has_timestamp(&self) -> bool {
        self.0.contains(&Part::Timestamp)
    }

    /// Whether the message's id is signed.
    pub fn has_message_id(&self) -> bool {
        self.0.contains(&Part::MessageId)
    }
}

/// How a tenant has told Vapi to sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HmacScheme {
    /// The hash.
    pub hash: HmacHash,
    /// How the signature is written.
    pub encoding: HmacEncoding,
    /// What stands before it, such as `sha256=`.
    pub prefix: String,
    /// What is signed.
    pub payload: PayloadFormat,
    /// The secret is base64 of the key, instead of the key itself.
    pub secret_is_base64: bool,
}

/// What a request brings to prove itself; each is the value of the one header of its name.
#[derive(Clone, Copy, Default)]
pub struct Proofs<'a> {
    /// `x-vapi-secret`.
    pub secret: Option<&'a [u8]>,
    /// `authorization`.
    pub authorization: Option<&'a [u8]>,
    /// The header with the HMAC.
    pub signature: Option<&'a [u8]>,
    /// The header with the time of signing.
    pub timestamp: Option<&'a [u8]>,
    /// The header with the message's id.
    pub message_id: Option<&'a [u8]>,
}

/// The live secrets of a tenant, newest first.
pub struct VapiSecrets<'a> {
    /// Values of `x-vapi-secret`.
    pub secrets: &'a [&'a [u8]],
    /// Bearer tokens.
    pub tokens: &'a [&'a [u8]],
    /// Keys of HMACs, and how they are made.
    pub hmac: Option<(&'a HmacScheme, &'a [&'a [u8]])>,
}

/// The request is nobody's. Deliberately without detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("server message is not authentic")]
pub struct NotAuthentic;

/// The signed parts of a request that are no headers.
#[derive(Clone, Copy)]
pub struct Signed<'a> {
    /// The URL that Vapi was told.
    pub url: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// Checks a request: any one proof that the tenant has set up is enough.
///
/// # Errors
/// [`NotAuthentic`].
pub fn verify(
    secrets: &VapiSecrets<'_>,
    proofs: &Proofs<'_>,
    request: Signed<'_>,
    now_secs: u64,
) -> Result<(), NotAuthentic> {
    let any = |live: &[&[u8]], given: Option<&[u8]>| {
        let given = given.unwrap_or_default();
        // An empty value is never a secret; all are compared, whichever fits.
        live.iter().fold(false, |found, secret| found | (!secret.is_empty() && equal(secret, given)))
    };
    let token = proofs.authorization.and_then(bearer);
    let by_secret = any(secrets.secrets, proofs.secret);
    let by_token = any(secrets.tokens, token);
    let by_hmac =
        secrets.hmac.is_some_and(|(scheme, keys)| is_signed(scheme, keys, proofs, request, now_secs));
    if by_secret | by_token | by_hmac { Ok(()) } else { Err(NotAuthentic) }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

fn is_signed(
    scheme: &HmacScheme,
    keys: &[&[u8]],
    proofs: &Proofs<'_>,
    request: Signed<'_>,
    now_secs: u64,
) -> bool {
    let payload = &scheme.payload;
    let timestamp = proofs.timestamp.unwrap_or_default();
    let (Some(signature), true, true) = (
        proofs.signature.and_then(|value| value.strip_prefix(scheme.prefix.as_bytes())),
        !payload.has_timestamp() || is_recent(timestamp, now_secs),
        !payload.has_message_id() || proofs.message_id.is_some(),
    ) else {
        return false;
    };
    let parts: Vec<&[u8]> = payload
        .0
        .iter()
        .map(|part| match part {
            Part::Literal(text) => text.as_bytes(),
            Part::Body => request.body,
            Part::Timestamp => timestamp,
            Part::Method => b"POST",
            Part::Url => request.url.as_bytes(),
            Part::MessageId => proofs.message_id.unwrap_or_default(),
        })
        .collect();
    keys.iter().fold(false, |found, key| found | is_mac_of(scheme, key, &parts, signature))
}

fn is_mac_of(scheme: &HmacScheme, secret: &[u8], parts: &[&[u8]], signature: &[u8]) -> bool {
    let decoded;
    let key = if scheme.secret_is_base64 {
        let Some(bytes) = decode_base64(secret) else { return false };
        decoded = Zeroizing::new(bytes);
        &decoded[..]
    } else {
        secret
    };
    let parts = parts.iter().copied();
    let mac = match scheme.hash {
        HmacHash::Sha256 => hmac_sha256(key, parts).to_vec(),
        HmacHash::Sha512 => hmac_sha512(key, parts).to_vec(),
    };
    match scheme.encoding {
        HmacEncoding::Hex => equal(encode_hex(&mac).as_bytes(), &signature.to_ascii_lowercase()),
        HmacEncoding::Base64 => equal(encode_base64(&mac).as_bytes(), signature),
    }
}

fn is_recent(timestamp: &[u8], now_secs: u64) -> bool {
    let text = std::str::from_utf8(timestamp).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let Some(number) = text.and_then(|text| text.parse::<u64>().ok()) else { return false };
    let secs = if number >= MILLIS_FROM { number / 1000 } else { number };
    secs.abs_diff(now_secs) <= REPLAY_WINDOW_SECS
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/vapi/");
    const SIGNED_AT: u64 = 1_787_324_648;

    struct Vector {
        name: String,
        scheme: HmacScheme,
        secret: String,
        signature: String,
        timestamp: Option<String>,
        id: Option<String>,
        url: String,
    }

    fn vectors() -> (Vec<Vector>, Vec<u8>) {
        let headers = std::fs::read_to_string(format!("{DIR}vapi-webhook-headers.json")).unwrap();
        let headers: Value = serde_json::from_str(&headers).unwrap();
        let body = std::fs::read(format!("{DIR}{}", headers["body_file"].as_str().unwrap())).unwrap();
        let vectors = headers["hmac_vectors"].as_array().unwrap().iter().map(|vector| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let config = &vector["config"];
            let header = |name: &str, default: &str| {
                text(&vector["headers"][config[name].as_str().unwrap_or(default)])
            };
            Vector {
                name: text(&vector["name"]).unwrap(),
                scheme: HmacScheme {
                    hash: if config["algorithm"] == "sha512" { HmacHash::Sha512 } else { HmacHash::Sha256 },
                    encoding: if config["signatureEncoding"] == "base64" {
                        HmacEncoding::Base64
                    } else {
                        HmacEncoding::Hex
                    },
                    prefix: text(&config["signaturePrefix"]).unwrap_or_default(),
                    payload: config["payloadFormat"].as_str().unwrap().parse().unwrap(),
                    secret_is_base64: config["secretIsBase64"] == true,
                },
                secret: text(&vector["secretKey"]).unwrap(),
                signature: header("signatureHeader", "x-signature").unwrap(),
                timestamp: header("timestampHeader", "x-timestamp"),
                id: header("messageIdHeader", "svix-id"),
                url: text(&vector["request"]["url"]).unwrap_or_default(),
            }
        });
        (vectors.collect(), body)
    }

    impl Vector {
        fn verify(&self, secrets: &[&[u8]], signature: &str, body: &[u8], now: u64) -> bool {
            let secrets = VapiSecrets { secrets: &[], tokens: &[], hmac: Some((&self.scheme, secrets)) };
            let proofs = Proofs {
                signature: Some(signature.as_bytes()),
                timestamp: self.timestamp.as_deref().map(str::as_bytes),
                message_id: self.id.as_deref().map(str::as_bytes),
                ..Proofs::default()
            };
            verify(&secrets, &proofs, Signed { url: &self.url, body }, now).is_ok()
        }
    }

    #[test]
    fn published_signatures_are_taken_and_nothing_near_them() {
        let (vectors, body) = vectors();
        assert_eq!(vectors.len(), 5);
        for vector in vectors {
            let (name, secret) = (&vector.name, vector.secret.as_bytes());
            let verify = |secrets: &[&[u8]], signature: &str, body: &[u8], now| {
                vector.verify(secrets, signature, body, now)
            };
            assert!(verify(&[secret], &vector.signature, &body, SIGNED_AT), "{name}");
            assert!(verify(&[b"older", secret, b"oldest"], &vector.signature, &body, SIGNED_AT), "{name}");
            assert!(!verify(&[b"older"], &vector.signature, &body, SIGNED_AT), "{name}");
            assert!(!verify(&[], &vector.signature, &body, SIGNED_AT), "{name}");
            assert!(!verify(&[secret], &vector.signature, &body[1..], SIGNED_AT), "{name}");
            for at in 0..vector.signature.len() {
                let mut other = vector.signature.clone().into_bytes();
                other[at] ^= 1;
                let other = String::from_utf8(other).unwrap();
                assert!(!verify(&[secret], &other, &body, SIGNED_AT), "{name} {at}");
                assert!(!verify(&[secret], &vector.signature[..at], &body, SIGNED_AT), "{name} {at}");
            }
            let has_time = vector.scheme.payload.has_timestamp();
            for late in [REPLAY_WINDOW_SECS + 1, 86_400] {
                assert_eq!(
                    !verify(&[secret], &vector.signature, &body, SIGNED_AT + late),
                    has_time,
                    "{name}"
                );
                assert_eq!(
                    !verify(&[secret], &vector.signature, &body, SIGNED_AT - late),
                    has_time,
                    "{name}"
                );
            }
            assert!(verify(&[secret], &vector.signature, &body, SIGNED_AT + REPLAY_WINDOW_SECS), "{name}");
        }
    }

    #[test]
    fn secrets_and_tokens_are_compared_whole() {
        let secrets = VapiSecrets { secrets: &[b"", b"one", b"two"], tokens: &[b"token"], hmac: None };
        let check = |secret: Option<&str>, authorization: Option<&str>| {
            let proofs = Proofs {
                secret: secret.map(str::as_bytes),
                authorization: authorization.map(str::as_bytes),
                ..Proofs::default()
            };
            verify(&secrets, &proofs, Signed { url: "", body: b"" }, 0).is_ok()
        };
        assert!(check(Some("one"), None) && check(Some("two"), None));
        assert!(check(None, Some("Bearer token")) && check(Some("no"), Some("bearer token")));
        for (secret, authorization) in [
            (None, None),
            (Some(""), Some("")),
            (Some("on"), None),
            (Some("one "), None),
            (Some("token"), None),
            (None, Some("one")),
            (None, Some("Bearer one")),
            (None, Some("Bearer ")),
            (None, Some("token")),
            (None, Some("Basic token")),
        ] {
            assert!(!check(secret, authorization), "{secret:?} {authorization:?}");
        }
    }

    #[test]
    fn timestamps_and_formats_are_strict() {
        for (text, is_recent_at_1000) in [
            ("1000", true),
            ("700", true),
            ("1300", true),
            ("699", false),
            ("1301", false),
            ("", false),
            ("+1000", false),
            ("1000.0", false),
            ("99999999999999999999", false),
        ] {
            assert_eq!(is_recent(text.as_bytes(), 1000), is_recent_at_1000, "{text}");
        }
        assert!(is_recent(b"1787324648311", SIGNED_AT));
        for bad in ["", "{timestamp}", "{body}{body}", "{body", "{body}}", "{other}.{body}", "body"] {
            assert_eq!(bad.parse::<PayloadFormat>(), Err(BadPayloadFormat), "{bad}");
        }
        assert!("v0:{timestamp}:{body}!".parse::<PayloadFormat>().unwrap().has_timestamp());
    }
}
