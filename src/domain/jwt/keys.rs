//! The public keys of an issuer: a JSON Web Key Set (RFC 7517).
//!
//! Keys of other kinds, for other uses or with a secret in them are passed over, so that an issuer may have such beside.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

use super::super::sign::decode_base64url;
use super::Algorithm;

/// Keys of one set; issuers have two or three.
const MAX_KEYS: usize = 64;
/// The longest id of a key.
const MAX_KID_BYTES: usize = 256;
const COORDINATE_BYTES: usize = 32;

/// A text that is no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    /// Not JSON of that form.
    #[error("it is no JSON Web Key Set")]
    Malformed,
    /// Too many keys.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// None that a token could be checked with.
    #[error("it has no key for RS256, ES256 or EdDSA with a kid")]
    NoKey,
}

/// The keys of an issuer that tokens can be checked with.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<(String, PublicKey)>);

/// One key.
#[derive(Debug, Clone)]
pub(super) enum PublicKey {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256 { point: Vec<u8> },
    Ed25519 { point: Vec<u8> },
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The secret of a key pair.
    d: Option<serde_json::Value>,
}

impl KeySet {
    /// Reads a key set.
    ///
    /// # Errors
    /// [`BadKeySet`].
    pub fn parse(text: &[u8]) -> Result<Self, BadKeySet> {
        let raw: RawSet = serde_json::from_slice(text).map_err(|_| BadKeySet::Malformed)?;
        if raw.keys.len() > MAX_KEYS {
            return Err(BadKeySet::TooMany);
        }
        let keys: Vec<_> = raw
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<RawKey>(key).ok().and_then(RawKey::check))
            .collect();
        if keys.is_empty() { Err(BadKeySet::NoKey) } else { Ok(Self(keys)) }
    }

    /// Returns how many keys there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn find(&self, kid: &str, algorithm: Algorithm) -> Option<&PublicKey> {
        let mut keys = self.0.iter().filter(|(id, key)| id == kid && key.algorithm() == algorithm);
        keys.next().map(|(_, key)| key)
    }
}

impl RawKey {
    fn check(self) -> Option<(String, PublicKey)> {
        let is_for_checking = self.purpose.as_ref().is_none_or(|purpose| purpose == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let kid = self.kid.filter(|kid| (1..=MAX_KID_BYTES).contains(&kid.len()))?;
        if !is_for_checking || self.d.is_some() {
            return None;
        }
        let decode = |text: Option<String>| decode_base64url(text?.as_bytes());
        let coordinate = |text: Option<String>| decode(text).filter(|bytes| bytes.len() == COORDINATE_BYTES);
        let key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) => PublicKey::Rsa { n: decode(self.n)?, e: decode(self.e)? },
            ("EC", Some("P-256")) => {
                let (x, y) = (coordinate(self.x)?, coordinate(self.y)?);
                PublicKey::P256 { point: [&[4], &*x, &*y].concat() }
            }
            ("OKP", Some("Ed25519")) => PublicKey::Ed25519 { point: coordinate(self.x)? },
            _ => return None,
        };
        let is_its = |alg: &String| *alg == key.algorithm().name();
        self.alg.as_ref().is_none_or(is_its).then_some((kid, key))
    }
}

impl PublicKey {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256 { .. } => Algorithm::Es256,
            Self::Ed25519 { .. } => Algorithm::EdDsa,
        }
    }

    pub(super) fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        let done = match self {
            Self::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, text, signature)
            }
            Self::P256 { point } => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(text, signature)
            }
            Self::Ed25519 { point } => UnparsedPublicKey::new(&ED25519, point).verify(text, signature),
        };
        done.is_ok()
    }
}
