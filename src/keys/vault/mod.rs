//! The `vault-transit` provider: KEKs that never leave the Transit engine of Vault.
//!
//! Written from Vault's API documentation. A key must be derived: then Vault makes a key of its own for each context, and what
//! is wrapped opens only with the same one. With a key that is not derived Vault ignores the context without a word, so that each
//! key is looked at before it is used.
//!
//! `rewrap` moves a DEK to the newest version of its key inside Vault, with the same context, which for that has no version.

mod http;
mod login;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use crate::config::Vault as Options;
use crate::domain::cmr::{Dek, Expected, WrapContext};
use crate::domain::time::UnixMillis;

use super::{KekService, KeyError, Said, Wrapped};

use http::{Answer, Http};
use login::{Login, Session};

/// The Transit engines of one Vault.
pub(crate) struct VaultTransit {
    http: Arc<Http>,
    login: Login,
    /// Keys that were seen to be derived, which can never change; as many as the configuration names.
    derived: Mutex<HashSet<String>>,
}

impl VaultTransit {
    /// Begins to log in. To be called within a runtime.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let http = Arc::new(Http::new(options)?);
        let login = Login::begin(Arc::clone(&http), options.login.clone());
        Ok(Self { http, login, derived: Mutex::default() })
    }

    /// Asks once; a second time with a new login when the first one is not accepted.
    async fn ask(&self, method: Method, path: &str, body: Option<&str>) -> Result<Answer, KeyError> {
        let session = self.login.session().await?;
        let answer = self.ask_as(&session, method.clone(), path, body).await?;
        if answer.status != StatusCode::FORBIDDEN || !session.may_be_over(answer.says("invalid token")) {
            return Ok(answer);
        }
        let session = self.login.after(&session).await?;
        self.ask_as(&session, method, path, body).await
    }

    async fn ask_as(
        &self,
        session: &Session,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Answer, KeyError> {
        self.http.ask(method, path, Some(&session.token), body).await
    }

    async fn look_at(&self, kek: &str) -> Result<TransitKey, KeyError> {
        let answer = self.ask(Method::GET, &path_of(kek, "keys")?, None).await?;
        let key: TransitKey = read(&answer, Purpose::Look)?;
        if !key.derived {
            let why = "it is not derived, so that nothing would bind a wrap to its recording";
            return Err(KeyError::Denied { why, source: answer.said() });
        }
        self.derived.lock().unwrap_or_else(PoisonError::into_inner).insert(kek.to_owned());
        Ok(key)
    }

    async fn see_that_it_is_derived(&self, kek: &str) -> Result<(), KeyError> {
        let is_known = self.derived.lock().unwrap_or_else(PoisonError::into_inner).contains(kek);
        if is_known { Ok(()) } else { self.look_at(kek).await.map(drop) }
    }
}

/// What Vault tells of a key.
#[derive(Deserialize)]
struct TransitKey {
    derived: bool,
    latest_version: u32,
    /// When each version was made, in Unix seconds, by its number.
    #[serde(default)]
    keys: HashMap<String, serde_json::Value>,
}

impl TransitKey {
    fn newest_made(&self) -> Option<UnixMillis> {
        let seconds = self.keys.get(&self.latest_version.to_string())?.as_u64()?;
        Some(UnixMillis(seconds.checked_mul(1000)?))
    }
}

#[derive(Deserialize)]
struct Ciphertext {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Plaintext {
    plaintext: Zeroizing<String>,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[async_trait]
impl KekService for VaultTransit {
    async fn wrap(&self, kek: &str, ids: &Expected, dek: &Dek) -> Result<Wrapped, KeyError> {
        self.see_that_it_is_derived(kek).await?;
        let plaintext = Zeroizing::new(base64_simd::STANDARD.encode_to_string(dek.expose()));
        // Nothing in it needs escaping.
        let body = format!(r#"{{"plaintext":"{}","context":"{}"}}"#, *plaintext, context(kek, ids));
        let body = Zeroizing::new(body);
        let answer = self.ask(Method::POST, &path_of(kek, "encrypt")?, Some(&body)).await?;
        wrapped(read(&answer, Purpose::Wrap)?)
    }

    async fn unwrap(&self, kek: &str, ids: &Expected, blob: &[u8]) -> Result<Dek, KeyError> {
        let body = json!({"ciphertext": ciphertext_of(blob)?, "context": context(kek, ids)}).to_string();
        let answer = self.ask(Method::POST, &path_of(kek, "decrypt")?, Some(&body)).await?;
        let Plaintext { plaintext } = read(&answer, Purpose::Open)?;
        let dek = base64_simd::STANDARD.decode_to_vec(plaintext.as_bytes());
        super::dek_of(&Zeroizing::new(dek.map_err(|_| KeyError::BadEnvelope("not base64"))?))
    }

    async fn rewrap(
        &self,
        from: &str,
        to: &str,
        ids: &Expected,
        blob: &[u8],
    ) -> Result<Option<Wrapped>, KeyError> {
        if from != to {
            return Ok(None);
        }
        self.see_that_it_is_derived(to).await?;
        let body = json!({"ciphertext": ciphertext_of(blob)?, "context": context(to, ids)}).to_string();
        let answer = self.ask(Method::POST, &path_of(to, "rewrap")?, Some(&body)).await?;
        wrapped(read(&answer, Purpose::Open)?).map(Some)
    }

    async fn newest_version(&self, kek: &str) -> Result<String, KeyError> {
        Ok(self.look_at(kek).await?.latest_version.to_string())
    }

    async fn newest_made(&self, kek: &str) -> Result<Option<UnixMillis>, KeyError> {
        Ok(self.look_at(kek).await?.newest_made())
    }
}

/// The path of an operation on a key; its name is what stands behind the last slash.
fn path_of(kek: &str, operation: &str) -> Result<String, KeyError> {
    let (mount, name) = kek.rsplit_once('/').ok_or(KeyError::BadEnvelope("name of the key"))?;
    Ok(format!("{mount}/{operation}/{name}"))
}

/// What a wrapped DEK is bound to, in base64.
fn context(kek: &str, ids: &Expected) -> String {
    let bound = WrapContext { tenant: ids.tenant, recording: ids.recording, key: ids.key, kek_name: kek };
    base64_simd::STANDARD.encode_to_string(bound.canonical())
}

fn wrapped(Ciphertext { ciphertext }: Ciphertext) -> Result<Wrapped, KeyError> {
    let version =
        version_of(&ciphertext).ok_or(KeyError::BadEnvelope("key service answered no wrapped key"))?;
    Ok(Wrapped { version: version.to_string(), blob: ciphertext.into_bytes() })
}

fn ciphertext_of(blob: &[u8]) -> Result<&str, KeyError> {
    let text = std::str::from_utf8(blob).ok().filter(|text| version_of(text).is_some());
    text.ok_or(KeyError::BadEnvelope("not a wrapped key of Vault"))
}

/// Reads the version out of `vault:v7:…`.
fn version_of(ciphertext: &str) -> Option<u32> {
    let (version, rest) = ciphertext.strip_prefix("vault:v")?.split_once(':')?;
    let is_base64 = rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
    version.parse().ok().filter(|_| !rest.is_empty() && is_base64)
}

/// What was asked for; the same status means different things.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Look,
    Wrap,
    Open,
}

fn read<T: DeserializeOwned>(answer: &Answer, purpose: Purpose) -> Result<T, KeyError> {
    if answer.status.is_success() {
        let data: Result<Data<T>, _> = serde_json::from_slice(&answer.body);
        return data
            .map(|data| data.data)
            .map_err(|_| KeyError::Unavailable(Said::new("an answer that cannot be read")));
    }
    Err(sort(answer, purpose))
}

/// Sorts what Vault answered. Its texts are looked at but not kept, but for those that it has for everybody.
fn sort(answer: &Answer, purpose: Purpose) -> KeyError {
    let denied = |why| KeyError::Denied { why, source: answer.said() };
    match answer.status.as_u16() {
        400 if answer.says("encryption key not found") => denied("there is no such key"),
        400 if answer.says("disallowed by policy") => denied("its version is not allowed any more"),
        400 if purpose == Purpose::Open => KeyError::BadEnvelope("wrong key or context"),
        403 => denied("no right to use it"),
        404 => denied("there is no such key"),
        400..=499 if answer.status != StatusCode::TOO_MANY_REQUESTS && answer.status.as_u16() != 412 => {
            denied("the request is not taken")
        }
        _ => answer.passing(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_wrapped_keys() {
        assert_eq!(version_of("vault:v1:YWJj"), Some(1));
        assert_eq!(version_of("vault:v42:YWJj+/=="), Some(42));
        for bad in [
            "",
            "vault:v1",
            "vault:v1:",
            "vault:1:YWJj",
            "vault:v-1:YWJj",
            "vault:v1:a b",
            "v1:YWJj",
            "vault:v1:\"}",
        ] {
            assert_eq!(version_of(bad), None, "{bad}");
        }
    }
}
