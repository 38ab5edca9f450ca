//! An invented AWS KMS: `Encrypt`, `Decrypt` and `ReEncrypt` with encryption contexts, states of keys, and errors in the
//! JSON that KMS's API reference describes. It does what no server here can be made to do: refuse disabled keys and keys
//! about to be deleted, throttle, be slow, and lie.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::http::{Answer, HttpServer, Request};

/// What KMS does beside answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Fine,
    /// Answers every request with this code.
    Refuse(&'static str),
    /// Answers so many requests with this code, then does what is asked.
    RefuseFirst(u32, &'static str),
    /// `Decrypt` answers the plaintext of what was wrapped last, whatever is asked.
    MixUpPlaintexts,
    /// `Encrypt` uses another key than it was asked to, and says so.
    UseAnotherKey,
    /// `Encrypt` answers bytes that nobody can open.
    Garble,
}

struct State {
    /// Keys and their states, as `DescribeKey` calls them.
    keys: BTreeMap<String, &'static str>,
    wrapped: Vec<Wrapped>,
    mood: Mood,
}

#[derive(Clone)]
struct Wrapped {
    key: String,
    context: Value,
    plaintext: String,
}

/// A running KMS.
#[derive(Clone)]
pub(super) struct FakeKms {
    pub(super) http: HttpServer,
    state: Arc<Mutex<State>>,
}

impl FakeKms {
    pub(super) async fn start(keys: &[&str]) -> Self {
        let keys = keys.iter().map(|arn| ((*arn).to_owned(), "Enabled")).collect();
        let state = Arc::new(Mutex::new(State { keys, wrapped: Vec::new(), mood: Mood::Fine }));
        let answering = Arc::clone(&state);
        let http = HttpServer::start(move |request| answering.lock().unwrap().answer(request)).await;
        Self { http, state }
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// Puts a key in another state: `Enabled`, `Disabled`, `PendingDeletion` or `Gone`.
    pub(super) fn set_state(&self, arn: &str, state: &'static str) {
        self.state.lock().unwrap().keys.insert(arn.to_owned(), state);
    }

    /// Returns operation and body of all requests so far.
    pub(super) fn asked(&self) -> Vec<(String, Value)> {
        let operation = |request: &Request| request.headers["x-amz-target"].replace("TrentService.", "");
        self.http.requests().iter().map(|request| (operation(request), request.body.clone())).collect()
    }
}

fn refusal(code: &str, message: &str) -> Answer {
    let status = match code {
        "KMSInternalException" => 500,
        "KeyUnavailableException" => 500,
        _ => 400,
    };
    (status, json!({"__type": code, "message": message}))
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        match self.mood {
            Mood::Refuse(code) => return refusal(code, "arn:aws:kms:… of somebody"),
            Mood::RefuseFirst(left, code) => {
                self.mood = if left > 1 { Mood::RefuseFirst(left - 1, code) } else { Mood::Fine };
                return refusal(code, "try again");
            }
            Mood::Fine | Mood::MixUpPlaintexts | Mood::UseAnotherKey | Mood::Garble => {}
        }
        let (target, body) = (request.headers["x-amz-target"].as_str(), &request.body);
        let done = match target {
            "TrentService.Encrypt" => self.encrypt(body),
            "TrentService.Decrypt" => self.decrypt(body),
            "TrentService.ReEncrypt" => self.re_encrypt(body),
            _ => Err(refusal("UnknownOperationException", "")),
        };
        done.map_or_else(|refused| refused, |done| (200, done))
    }

    fn check_key(&self, arn: &str) -> Result<(), Answer> {
        match self.keys.get(arn).copied() {
            Some("Enabled") => Ok(()),
            Some("Disabled") => Err(refusal("DisabledException", &format!("{arn} is disabled."))),
            Some("PendingDeletion") => {
                Err(refusal("KMSInvalidStateException", &format!("{arn} is pending deletion.")))
            }
            Some(_) | None => Err(refusal("NotFoundException", &format!("Key '{arn}' does not exist"))),
        }
    }

    fn wrap(&mut self, arn: &str, context: &Value, plaintext: String) -> String {
        self.wrapped.push(Wrapped { key: arn.to_owned(), context: context.clone(), plaintext });
        BASE64_STANDARD.encode(format!("wrapped {:>8}", self.wrapped.len() - 1))
    }

    fn encrypt(&mut self, body: &Value) -> Result<Value, Answer> {
        let asked = body["KeyId"].as_str().unwrap();
        self.check_key(asked)?;
        let plaintext = body["Plaintext"].as_str().unwrap().to_owned();
        let other = "arn:aws:kms:eu-central-1:111122223333:key/00000000-other";
        let used = if self.mood == Mood::UseAnotherKey { other } else { asked };
        let blob = self.wrap(used, &body["EncryptionContext"], plaintext);
        let blob = if self.mood == Mood::Garble { BASE64_STANDARD.encode("garbled") } else { blob };
        Ok(json!({"CiphertextBlob": blob, "KeyId": used, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}))
    }

    fn find(&self, key: &Value, context: &Value, blob: &Value) -> Result<Wrapped, Answer> {
        let blob = BASE64_STANDARD.decode(blob.as_str().unwrap()).unwrap();
        let number = std::str::from_utf8(&blob).ok().and_then(|text| text.strip_prefix("wrapped "));
        let found = number.and_then(|number| self.wrapped.get(number.trim().parse::<usize>().ok()?));
        let invalid = || refusal("InvalidCiphertextException", "");
        let found = found.ok_or_else(invalid)?;
        self.check_key(&found.key)?;
        if key.as_str() != Some(&found.key) {
            return Err(refusal(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK",
            ));
        }
        if found.context != *context {
            return Err(invalid());
        }
        Ok(found.clone())
    }

    fn decrypt(&mut self, body: &Value) -> Result<Value, Answer> {
        let found = self.find(&body["KeyId"], &body["EncryptionContext"], &body["CiphertextBlob"])?;
        let last = self.wrapped.last().unwrap().plaintext.clone();
        let plaintext = if self.mood == Mood::MixUpPlaintexts { last } else { found.plaintext };
        Ok(json!({"KeyId": found.key, "Plaintext": plaintext, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}))
    }

    fn re_encrypt(&mut self, body: &Value) -> Result<Value, Answer> {
        let to = body["DestinationKeyId"].as_str().unwrap();
        self.check_key(to)?;
        let found =
            self.find(&body["SourceKeyId"], &body["SourceEncryptionContext"], &body["CiphertextBlob"])?;
        let blob = self.wrap(to, &body["DestinationEncryptionContext"], found.plaintext);
        Ok(json!({"CiphertextBlob": blob, "SourceKeyId": found.key, "KeyId": to}))
    }
}
