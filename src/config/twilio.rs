//! How Twilio proves to be the Twilio of a tenant, and how we prove to it who we are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use crate::domain::provider::twilio::{AccountSid, InvalidAccountSid, is_sid};

use super::raw;
use super::scope::{Bounds, Scope};
use super::secret::{References, Secret, SecretRef};
use super::store::check_url;

/// A handshake is checked against every token in four spellings of the URL; this bounds what a stranger can cost.
const MAX_TOKENS: usize = 16;
const MAX_SHARED_KEY_ID: usize = 64;
/// Tokens that are tried when a call is ended: the current one, and the next while they change.
const TRIED_TOKENS: usize = 2;
const API_URL: &str = "https://api.twilio.com";
/// A caller hears nothing meanwhile; Twilio answers within half a second.
const API_TIMEOUT_MS: Bounds = Bounds::new(3_000, 200..=10_000);

/// Where Twilio is asked to end calls.
#[derive(Debug, Clone)]
pub struct TwilioApi {
    /// Its URL, without a slash at the end.
    pub url: String,
    /// The authorities that vouch for it; the system's unless given.
    pub ca_file: Option<PathBuf>,
    /// For one request: name, TCP, TLS and the answer together.
    pub timeout: Duration,
}

/// Whom Twilio is asked as.
#[derive(Debug, Clone)]
pub struct ApiUser {
    /// An API key, or an account.
    pub sid: String,
    /// The key's secret, or the account's auth token.
    pub secret: SecretRef,
}

/// How Twilio proves who it is.
#[derive(Debug, Clone)]
pub struct Twilio {
    /// The accounts whose streams are this tenant's.
    pub account_sids: Vec<AccountSid>,
    /// The secrets that Twilio signs with, current first, at most 16.
    pub auth_tokens: Vec<Secret>,
    /// The SharedKeys that Twilio may sign with instead, by their id.
    pub shared_keys: BTreeMap<String, Secret>,
    /// Refuse handshakes that are signed with an auth token.
    pub require_shared_key: bool,
    /// The API keys that calls are ended with, by account.
    pub api_keys: BTreeMap<AccountSid, ApiUser>,
}

impl TwilioApi {
    /// Checks what the node's table `relay` says of it: URL, file of authorities, milliseconds.
    pub(super) fn check(
        (url, ca_file, timeout_ms): (Option<String>, Option<String>, Option<i64>),
        scope: &Scope<'_>,
        references: &References<'_>,
    ) -> Self {
        let ca_file = ca_file.map(|file| {
            let path = references.dir.join(scope.path("twilio_api_ca_file", Some(file), PathBuf::new));
            if let Err(problem) = references.files.check_readable(&path) {
                scope.fault("twilio_api_ca_file", problem);
            }
            path
        });
        Self {
            url: check_url(scope, "twilio_api_url", url.as_deref().unwrap_or(API_URL)),
            ca_file,
            timeout: scope.millis("twilio_api_timeout_ms", timeout_ms, &API_TIMEOUT_MS),
        }
    }
}

impl Twilio {
    /// Checks the table; a tenant with routes needs an account and something that Twilio signs with.
    pub(super) fn check(
        table: Option<Table>,
        scope: &Scope<'_>,
        references: &References<'_>,
        has_routes: bool,
    ) -> Self {
        let (scope, raw): (_, raw::Twilio) = scope.section("twilio", table);
        let has_secret = raw.auth_tokens.is_some() || raw.shared_keys.is_some();
        let sids = raw.account_sids.unwrap_or_default();
        let account_sids = check_account_sids(&sids, &scope);
        let twilio = Self {
            api_keys: check_api_keys(raw.api_keys, &account_sids, &scope, references),
            account_sids,
            auth_tokens: references.list(&scope, "auth_tokens", raw.auth_tokens),
            shared_keys: references.map(&scope, "shared_keys", raw.shared_keys, MAX_SHARED_KEY_ID),
            require_shared_key: raw.require_shared_key.unwrap_or(false),
        };
        if has_routes && sids.is_empty() {
            scope.fault(
                "account_sids",
                "is missing; allowed: one or more accounts, \"AC\" and 32 hexadecimal digits",
            );
        }
        if has_routes && !has_secret {
            scope.fault(
                "auth_tokens",
                "is missing; allowed: a list such as [{ file = \"…\" }], or shared_keys",
            );
        }
        if twilio.auth_tokens.len() > MAX_TOKENS {
            let problem = format!("{} are given; allowed: at most {MAX_TOKENS}", twilio.auth_tokens.len());
            scope.fault("auth_tokens", problem);
        }
        if twilio.require_shared_key && twilio.shared_keys.is_empty() {
            scope.fault(
                "require_shared_key",
                "true is given, but no key in twilio.shared_keys; allowed: both or none",
            );
        }
        twilio
    }

    /// Reports accounts whose calls nobody could end.
    pub(super) fn require_api_users(&self, scope: &Scope<'_>) {
        let without = self.account_sids.iter().position(|account| self.api_users(account).is_empty());
        if let Some(index) = without {
            scope.fault(
                "twilio.api_keys",
                format!(
                    "has no key for account_sids[{index}], whose calls a route with on_loss = \"hangup\" ends; allowed: \
                     {{ AC… = {{ sid = \"SK…\", secret = {{ file = \"…\" }} }} }}, or a single account with auth_tokens"
                ),
            );
        }
    }

    /// Returns whom Twilio may be asked as about calls of an account, in the order to try.
    pub fn api_users(&self, account: &AccountSid) -> Vec<ApiUser> {
        if let Some(key) = self.api_keys.get(account) {
            return vec![key.clone()];
        }
        if self.account_sids.as_slice() != std::slice::from_ref(account) {
            // Of several accounts nobody says whose token is whose.
            return Vec::new();
        }
        let tokens = self.auth_tokens.iter().take(TRIED_TOKENS);
        let user = |token: &Secret| ApiUser {
            sid: account.as_str().to_owned(),
            secret: SecretRef::fixed(token.clone()),
        };
        tokens.map(user).collect()
    }
}

/// Reads the API keys. Wrong names and ids are not shown: they may be secrets in the wrong place.
fn check_api_keys(
    given: Option<Table>,
    accounts: &[AccountSid],
    scope: &Scope<'_>,
    references: &References<'_>,
) -> BTreeMap<AccountSid, ApiUser> {
    let mut keys = BTreeMap::new();
    for (index, (name, entry)) in given.unwrap_or_default().into_iter().enumerate() {
        let account = name.parse().ok().filter(|account| accounts.contains(account));
        let (Some(account), Value::Table(entry)) = (account, entry) else {
            let problem = format!(
                "entry {} is no key of one of account_sids; allowed: AC… = {{ sid = \"SK…\", secret = {{ file = \"…\" }} }}",
                index + 1
            );
            scope.fault("api_keys", problem);
            continue;
        };
        let (scope, raw): (_, raw::TwilioApiKey) = scope.section(&format!("api_keys.{name}"), Some(entry));
        let sid = raw.sid.filter(|sid| is_sid(sid, "SK"));
        if sid.is_none() {
            scope.fault("sid", "is no API key; allowed: \"SK\" and 32 hexadecimal digits");
        }
        if raw.secret.is_none() {
            scope.fault("secret", "is missing; allowed: { file = \"…\" } or { env = \"…\" }");
        }
        let secret = raw.secret.and_then(|entry| references.given(&scope, "secret", &entry));
        if let Some((sid, secret)) = sid.zip(secret) {
            keys.insert(account, ApiUser { sid, secret });
        }
    }
    keys
}

fn check_account_sids(given: &[String], scope: &Scope<'_>) -> Vec<AccountSid> {
    let mut sids = Vec::new();
    for (index, text) in given.iter().enumerate() {
        match text.parse() {
            Ok(sid) => sids.push(sid),
            Err(InvalidAccountSid) => {
                scope.fault(&format!("account_sids[{index}]"), InvalidAccountSid.to_string())
            }
        }
    }
    sids
}
