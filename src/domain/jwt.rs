//! Who brings a JSON Web Token (RFC 7519) that an identity provider has signed: its signature, its terms, and what it makes of
//! whoever brings it.
//!
//! Deny by default. The algorithm must be one of three and belong to the key that the token names; keys that a token brings
//! along are not looked at; a claim that is missing, of another kind or there twice makes the token worth nothing.

mod keys;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::access::{Principal, Reach, Role};
use super::cmr::sha256;
use super::sign::{decode_base64url, encode_hex};
use super::time::UnixMillis;

pub use keys::{BadKeySet, KeySet};

/// The longest token: providers keep theirs below 4 KiB, for they travel in cookies.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// The longest subject; it goes into every audit record.
const MAX_SUBJECT_BYTES: usize = 128;
/// The longest id of a token that is taken as it is.
const MAX_ID_BYTES: usize = 64;
/// Roles that one token may name.
const MAX_ROLES: usize = 32;

/// How a token may be signed. Secrets shared with an issuer (HS256 and the like) are none of them: whoever checks such a token could
/// make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA PKCS #1 v1.5 with SHA-256, 2,048 bits or more.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// Returns its name in tokens, key sets and the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// Where a claim stands: its name, or the names that lead to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPath(String);

/// A text that is no place of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: the name of a claim, or up to 8 names with '.' between them, 1 to 256 characters")]
pub struct InvalidPath;

impl FromStr for ClaimPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let names = text.split('.');
        let is_good = |name: &str| !name.is_empty() && !name.contains(char::is_control);
        if text.len() <= 256 && names.clone().count() <= 8 && names.clone().all(is_good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidPath)
        }
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ClaimPath {
    /// Finds the claim: under the whole text, as names of claims may have dots in them, or else step by step.
    fn find<'v>(&self, claims: &'v Value) -> Option<&'v Value> {
        claims.get(&self.0).or_else(|| self.0.split('.').try_fold(claims, |value, name| value.get(name)))
    }
}

/// What a claim must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where it stands.
    pub claim: ClaimPath,
    /// One of these.
    pub values: Vec<String>,
}

impl Wanted {
    /// Whether it does: as a text, as a truth value, or as one of a list of texts.
    fn is_met(&self, claims: &Value) -> bool {
        let has = |text: &str| self.values.iter().any(|value| value == text);
        match self.claim.find(claims) {
            Some(Value::String(text)) => has(text),
            Some(Value::Bool(truth)) => has(if *truth { "true" } else { "false" }),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).any(has),
            _ => false,
        }
    }
}

/// What is asked of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Who must have made them, as written.
    pub issuer: String,
    /// For whom they must be, one of these; any if there are none.
    pub audiences: Vec<String>,
    /// For which program they must have been made (`azp`), one of these; any if there are none.
    pub parties: Vec<String>,
    /// How they may be signed.
    pub algorithms: Vec<Algorithm>,
    /// Where the tenant's id stands.
    pub tenant: ClaimPath,
    /// Where the roles stand.
    pub role: ClaimPath,
    /// What a role is called there; the roles' own names if there are none.
    pub roles: BTreeMap<String, Role>,
    /// What else they must say.
    pub required: Vec<Wanted>,
    /// What says that a second factor was shown, and the roles that nobody has without.
    pub second_factor: Option<(Wanted, Vec<Role>)>,
    /// By how much clocks may differ.
    pub leeway: Duration,
    /// How long after its making a token may be used, whatever it says itself.
    pub max_age: Duration,
}

/// Why a token is worth nothing. For the log; whoever brings it learns nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not what a token looks like.
    #[error("it is no token: {0}")]
    Malformed(&'static str),
    /// Signed in a way that is not allowed.
    #[error("its algorithm is not allowed")]
    Algorithm,
    /// Signed with a key that the issuer does not have, or not for this algorithm.
    #[error("its key is not known")]
    UnknownKey,
    /// Not signed with the key that it names.
    #[error("its signature is wrong")]
    Signature,
    /// By somebody else.
    #[error("its issuer is another one")]
    Issuer,
    /// For somebody else.
    #[error("its audience is another one")]
    Audience,
    /// Made for another program.
    #[error("its authorized party is another one")]
    Party,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYet,
    /// It was made too long ago.
    #[error("it is older than allowed")]
    TooOld,
    /// Nobody, or nobody whose name can stand in an audit record.
    #[error("its subject is missing, or not 1 to {MAX_SUBJECT_BYTES} visible ASCII characters")]
    Subject,
    /// Without something that is asked of every token.
    #[error("its claim {0} does not say what is required")]
    Required(String),
    /// Not for one tenant.
    #[error("its claim {0} is no id of a tenant")]
    Tenant(String),
    /// Without a role.
    #[error("its claim {0} names no role")]
    Role(String),
    /// Only with roles that need a second factor.
    #[error("all its roles need a second factor")]
    SecondFactor,
}

/// A token that was taken apart, and of which nothing is believed yet.
#[derive(Debug)]
pub struct Unverified<'t> {
    algorithm: Algorithm,
    kid: String,
    /// What the signature is over.
    signed: &'t str,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

/// The claims that RFC 7519 names, each at most once.
#[derive(Deserialize)]
struct Registered {
    iss: String,
    sub: Option<String>,
    aud: Option<OneOrMore>,
    azp: Option<String>,
    exp: u64,
    nbf: Option<u64>,
    iat: u64,
    jti: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn has_one_of(&self, wanted: &[String]) -> bool {
        match self {
            Self::One(text) => wanted.contains(text),
            Self::More(texts) => texts.iter().any(|text| wanted.contains(text)),
        }
    }
}

impl<'t> Unverified<'t> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`Refused::Malformed`], [`Refused::Algorithm`].
    pub fn parse(text: &'t str, rules: &Rules) -> Result<Self, Refused> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Refused::Malformed("too long"));
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Refused::Malformed("parts"))?;
        let (header, claims) = signed.split_once('.').ok_or(Refused::Malformed("parts"))?;
        let decode = |part: &str| decode_base64url(part.as_bytes()).ok_or(Refused::Malformed("base64url"));
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| Refused::Malformed("header"))?;
        let is_jwt = |typ: &String| typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("at+jwt");
        if header.crit.is_some() || !header.typ.as_ref().is_none_or(is_jwt) {
            return Err(Refused::Malformed("header"));
        }
        let algorithm = Algorithm::from_name(&header.alg)
            .filter(|algorithm| rules.algorithms.contains(algorithm))
            .ok_or(Refused::Algorithm)?;
        let kid = header.kid.ok_or(Refused::Malformed("no kid"))?;
        Ok(Self { algorithm, kid, signed, claims: decode(claims)?, signature: decode(signature)? })
    }

    /// Whether the key that it names is among these.
    pub fn is_of(&self, keys: &KeySet) -> bool {
        keys.find(&self.kid, self.algorithm).is_some()
    }

    /// Says who brings it.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn verify(self, keys: &KeySet, rules: &Rules, now: UnixMillis) -> Result<Principal, Refused> {
        let key = keys.find(&self.kid, self.algorithm).ok_or(Refused::UnknownKey)?;
        if !key.has_signed(self.signed.as_bytes(), &self.signature) {
            return Err(Refused::Signature);
        }
        let malformed = |_| Refused::Malformed("claims");
        let registered: Registered = serde_json::from_slice(&self.claims).map_err(malformed)?;
        let claims: Value = serde_json::from_slice(&self.claims).map_err(malformed)?;
        rules.check_parties(&registered)?;
        rules.check_times(&registered, now)?;
        if let Some(unmet) = rules.required.iter().find(|wanted| !wanted.is_met(&claims)) {
            return Err(Refused::Required(unmet.claim.to_string()));
        }
        let subject =
            registered.sub.filter(|sub| is_visible(sub, MAX_SUBJECT_BYTES)).ok_or(Refused::Subject)?;
        let id = registered.jti.filter(|id| is_visible(id, MAX_ID_BYTES));
        // A token without an id of its own is told from others by its digest.
        let digest = || encode_hex(sha256(self.signed.as_bytes()).get(..8).unwrap_or_default());
        Ok(Principal {
            actor: format!("jwt:{subject}"),
            key: id.unwrap_or_else(digest),
            roles: rules.roles_of(&claims)?,
            reach: rules.tenant_of(&claims)?,
        })
    }
}

impl Rules {
    fn check_parties(&self, claims: &Registered) -> Result<(), Refused> {
        if claims.iss != self.issuer {
            return Err(Refused::Issuer);
        }
        let is_for_us = claims.aud.as_ref().is_some_and(|aud| aud.has_one_of(&self.audiences));
        if !self.audiences.is_empty() && !is_for_us {
            return Err(Refused::Audience);
        }
        if !self.parties.is_empty() && !claims.azp.as_ref().is_some_and(|azp| self.parties.contains(azp)) {
            return Err(Refused::Party);
        }
        Ok(())
    }

    fn check_times(&self, claims: &Registered, now: UnixMillis) -> Result<(), Refused> {
        let (now, leeway) = (now.secs(), self.leeway.as_secs());
        if now >= claims.exp.saturating_add(leeway) {
            return Err(Refused::Expired);
        }
        let begins = claims.nbf.unwrap_or(0).max(claims.iat);
        if begins > now.saturating_add(leeway) {
            return Err(Refused::NotYet);
        }
        if now > claims.iat.saturating_add(self.max_age.as_secs()).saturating_add(leeway) {
            return Err(Refused::TooOld);
        }
        Ok(())
    }

    /// Tokens of people are for one tenant; what reaches all is made by `callseal token`.
    fn tenant_of(&self, claims: &Value) -> Result<Reach, Refused> {
        let tenant = self.tenant.find(claims).and_then(Value::as_str).and_then(|text| text.parse().ok());
        tenant.map(Reach::Tenant).ok_or_else(|| Refused::Tenant(self.tenant.to_string()))
    }

    /// Names of other programs' roles are passed over.
    fn roles_of(&self, claims: &Value) -> Result<Vec<Role>, Refused> {
        let none = || Refused::Role(self.role.to_string());
        let names: Vec<&str> = match self.role.find(claims) {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(list)) if list.len() <= MAX_ROLES => {
                list.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(none)?
            }
            _ => return Err(none()),
        };
        let role = |name: &&str| {
            if self.roles.is_empty() { name.parse().ok() } else { self.roles.get(*name).copied() }
        };
        let mut roles: Vec<Role> = names.iter().filter_map(role).collect();
        if roles.is_empty() {
            return Err(none());
        }
        if let Some((wanted, need_it)) = &self.second_factor
            && !wanted.is_met(claims)
        {
            roles.retain(|role| !need_it.contains(role));
            if roles.is_empty() {
                return Err(Refused::SecondFactor);
            }
        }
        Ok(roles)
    }
}

fn is_visible(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
