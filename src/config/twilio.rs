//! How Twilio proves to be the Twilio of a tenant.

use std::collections::BTreeMap;

use toml::Table;

use crate::domain::provider::twilio::{AccountSid, InvalidAccountSid};

use super::raw;
use super::scope::Scope;
use super::secret::{References, Secret};

/// A handshake is checked against every token in four spellings of the URL; this bounds what a stranger can cost.
const MAX_TOKENS: usize = 16;
const MAX_SHARED_KEY_ID: usize = 64;

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
        let twilio = Self {
            account_sids: check_account_sids(&sids, &scope),
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
