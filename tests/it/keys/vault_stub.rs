//! An invented Vault, written from its API documentation: Transit keys with versions and contexts, tokens that end, AppRole,
//! namespaces, a seal, standbys, and errors as `{"errors": [...]}`. It is no Vault, and proves nothing about one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use callseal::clock;
use serde_json::{Value, json};

use super::http::{Answer, HttpServer, Request};

/// A Transit key.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) derived: bool,
    pub(super) versions: u32,
    pub(super) min_decryption_version: u32,
}

/// What Vault is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Fine,
    Sealed,
    /// Answers with a redirect to the active node.
    Standby,
    /// Answers every request but those of a login with this status and text.
    Refuse(u16, &'static str),
    /// `decrypt` answers the plaintext of what was wrapped last.
    MixUpPlaintexts,
}

pub(super) struct State {
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) mood: Mood,
    /// Tokens, and when they end.
    tokens: BTreeMap<String, Option<Instant>>,
    /// How long tokens of a role, and renewed ones, live; zero is for ever.
    pub(super) lease: Duration,
    pub(super) renewable: bool,
    /// Role and secret.
    pub(super) role: (String, String),
    logins: usize,
    wrapped: Vec<(String, u32, String, String)>,
}

/// A running Vault.
#[derive(Clone)]
pub(super) struct VaultStub {
    pub(super) http: HttpServer,
    state: Arc<Mutex<State>>,
}

pub(super) const TOKEN: &str = "hvs.made-by-somebody-else";

impl VaultStub {
    /// Starts with derived keys of one version.
    pub(super) async fn start(keys: &[&str]) -> Self {
        let state = State::new(keys);
        let answering = Arc::clone(&state);
        let http = HttpServer::start(move |request| answering.lock().unwrap().answer(request)).await;
        Self { http, state }
    }

    /// The same over TLS; see [`HttpServer::start_tls`].
    pub(super) async fn start_tls(keys: &[&str], dir: &Path) -> Self {
        let state = State::new(keys);
        let answering = Arc::clone(&state);
        let answer = move |request: &Request| answering.lock().unwrap().answer(request);
        Self { http: HttpServer::start_tls(dir, answer).await, state }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Ends all tokens at once.
    pub(super) fn end_tokens(&self) {
        self.change(|state| state.tokens.clear());
    }

    /// Returns method and path of all requests so far.
    pub(super) fn asked(&self) -> Vec<String> {
        let line = |request: &Request| format!("{} {}", request.method, request.path);
        self.http.requests().iter().map(line).collect()
    }
}

fn errors(status: u16, text: &str) -> Answer {
    (status, json!({"errors": [text]}))
}

fn done(data: &Value) -> Answer {
    (
        200,
        json!({"request_id": "r", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data, "auth": null}),
    )
}

impl State {
    fn new(keys: &[&str]) -> Arc<Mutex<Self>> {
        let key = Key { derived: true, versions: 1, min_decryption_version: 1 };
        Arc::new(Mutex::new(Self {
            keys: keys.iter().map(|name| ((*name).to_owned(), key.clone())).collect(),
            mood: Mood::Fine,
            tokens: BTreeMap::from([(TOKEN.to_owned(), None)]),
            lease: Duration::ZERO,
            renewable: true,
            role: ("role-1".to_owned(), "secret-1".to_owned()),
            logins: 0,
            wrapped: Vec::new(),
        }))
    }

    pub(super) fn add_token(&mut self, token: &str) {
        let ends = (!self.lease.is_zero()).then(|| clock::monotonic() + self.lease);
        self.tokens.insert(token.to_owned(), ends);
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let path = request.path.strip_prefix("/v1/").unwrap();
        match self.mood {
            Mood::Sealed => return errors(503, "Vault is sealed"),
            Mood::Standby => return (307, Value::Null),
            Mood::Fine | Mood::Refuse(..) | Mood::MixUpPlaintexts => {}
        }
        if request.headers.get("x-vault-request").map(String::as_str) != Some("true") {
            return errors(412, "missing X-Vault-Request header");
        }
        if path == "auth/approle/login" {
            return self.log_in(&request.body);
        }
        let token = request.headers.get("x-vault-token").cloned().unwrap_or_default();
        let is_valid =
            self.tokens.get(&token).is_some_and(|ends| ends.is_none_or(|at| clock::monotonic() < at));
        if !is_valid {
            return errors(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n");
        }
        match path {
            "auth/token/lookup-self" => return self.look_up(&token),
            "auth/token/renew-self" => return self.renew(&token),
            _ => {}
        }
        if let Mood::Refuse(status, text) = self.mood {
            return errors(status, text);
        }
        let parts: Vec<&str> = path.split('/').collect();
        let ["transit", operation, name] = parts.as_slice() else {
            return errors(404, "no handler for route. route entry not found.");
        };
        self.transit(operation, name, &request.body)
    }

    fn auth(&mut self, token: &str) -> Answer {
        self.add_token(token);
        let auth = json!({"client_token": token, "lease_duration": self.lease.as_secs(), "renewable": self.renewable});
        (200, json!({"request_id": "r", "data": null, "auth": auth}))
    }

    fn log_in(&mut self, body: &Value) -> Answer {
        if (body["role_id"].as_str(), body["secret_id"].as_str()) != (Some(&self.role.0), Some(&self.role.1))
        {
            return errors(400, "invalid role or secret ID");
        }
        self.logins += 1;
        self.auth(&format!("hvs.of-login-{}", self.logins))
    }

    fn look_up(&self, token: &str) -> Answer {
        let ends = self.tokens[token];
        let ttl = ends.map_or(0, |at| at.saturating_duration_since(clock::monotonic()).as_secs());
        done(&json!({"id": token, "ttl": ttl, "renewable": self.renewable && ends.is_some()}))
    }

    fn renew(&mut self, token: &str) -> Answer {
        if !self.renewable {
            return errors(400, "lease is not renewable");
        }
        self.auth(token)
    }

    fn transit(&mut self, operation: &str, name: &str, body: &Value) -> Answer {
        let Some(key) = self.keys.get(name).cloned() else {
            return if operation == "keys" {
                (404, json!({"errors": []}))
            } else {
                errors(400, "encryption key not found")
            };
        };
        let context = body["context"].as_str().unwrap_or_default();
        if key.derived && context.is_empty() && operation != "keys" {
            return errors(
                400,
                "missing 'context' for key derivation; the key was created using a derived key",
            );
        }
        let context = if key.derived { context } else { "" };
        match operation {
            "keys" => done(&json!({"name": name, "derived": key.derived, "latest_version": key.versions,
                "keys": made_now(key.versions),
                "min_decryption_version": key.min_decryption_version, "type": "aes256-gcm96", "supports_derivation": true})),
            "encrypt" => {
                let ciphertext = self.wrap(name, key.versions, context, body["plaintext"].as_str().unwrap());
                done(&json!({"ciphertext": ciphertext, "key_version": key.versions}))
            }
            "decrypt" => match self.open(name, &key, context, body["ciphertext"].as_str().unwrap()) {
                Ok(plaintext) => done(&json!({"plaintext": plaintext})),
                Err(refused) => refused,
            },
            "rewrap" => match self.open(name, &key, context, body["ciphertext"].as_str().unwrap()) {
                Ok(plaintext) => {
                    let ciphertext = self.wrap(name, key.versions, context, &plaintext);
                    done(&json!({"ciphertext": ciphertext, "key_version": key.versions}))
                }
                Err(refused) => refused,
            },
            _ => errors(404, "no handler for route"),
        }
    }

    fn wrap(&mut self, name: &str, version: u32, context: &str, plaintext: &str) -> String {
        assert_eq!(BASE64_STANDARD.decode(plaintext).unwrap().len(), 32);
        self.wrapped.push((name.to_owned(), version, context.to_owned(), plaintext.to_owned()));
        let number = BASE64_STANDARD.encode(format!("wrapped {:>8}", self.wrapped.len() - 1));
        format!("vault:v{version}:{number}")
    }

    fn open(&self, name: &str, key: &Key, context: &str, ciphertext: &str) -> Result<String, Answer> {
        let invalid = || errors(400, "invalid ciphertext: unable to decrypt");
        let (version, number) =
            ciphertext.strip_prefix("vault:v").and_then(|rest| rest.split_once(':')).ok_or_else(invalid)?;
        let version: u32 = version.parse().map_err(|_| invalid())?;
        if version < key.min_decryption_version {
            return Err(errors(400, "ciphertext or signature version is disallowed by policy (too old)"));
        }
        let number = BASE64_STANDARD.decode(number).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let number =
            number.as_deref().and_then(|text| text.strip_prefix("wrapped ")?.trim().parse::<usize>().ok());
        let found = number.and_then(|number| self.wrapped.get(number)).ok_or_else(invalid)?;
        if (found.0.as_str(), found.1, found.2.as_str()) != (name, version, context) {
            return Err(invalid());
        }
        let last = self.wrapped.last().unwrap();
        Ok(if self.mood == Mood::MixUpPlaintexts { last.3.clone() } else { found.3.clone() })
    }
}

/// When each version was made, as Vault tells it.
fn made_now(versions: u32) -> Value {
    let seconds = callseal::clock::wall().0 / 1000;
    (1..=versions)
        .map(|version| (version.to_string(), Value::from(seconds)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
