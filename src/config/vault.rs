//! How Vault is reached, and who we are to it.

use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::raw;
use super::scope::{Bounds, Scope, Words};
use super::secret::{References, SecretRef};
use super::store::{check_ca_file, check_url};

const CONNECT_TIMEOUT_MS: Bounds = Bounds::new(1_000, 100..=30_000);
/// The longest path of a mount, namespace or key.
const MAX_PATH: usize = 128;

/// How Vault is reached.
#[derive(Debug, Clone)]
pub struct Vault {
    /// Its URL, without a slash at the end.
    pub address: String,
    /// The namespace that all requests are in; none outside Vault Enterprise.
    pub namespace: Option<String>,
    /// PEM certificates that alone are believed; none means those of the system.
    pub ca_file: Option<PathBuf>,
    /// Who we are to it.
    pub login: VaultLogin,
    /// From dialling to a connection.
    pub connect_timeout: Duration,
}

/// Who we are to Vault.
#[derive(Debug, Clone)]
pub enum VaultLogin {
    /// A token that somebody else makes and may replace; read again while the node runs.
    Token(SecretRef),
    /// A role of the AppRole method.
    AppRole {
        /// Where the method is mounted, below `auth/`.
        mount: String,
        /// The role.
        role_id: SecretRef,
        /// Its secret.
        secret_id: SecretRef,
    },
}

impl Vault {
    /// Checks the table; without one there is no Vault.
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, references: &References<'_>) -> Option<Self> {
        let (scope, raw): (_, raw::Vault) = top.section("vault", Some(table?));
        if raw.address.is_none() {
            scope.fault("address", "is missing; allowed: \"https://host\", with a port if need be");
        }
        let address = raw.address.map(|url| check_url(&scope, "address", &url));
        let namespace = raw.namespace.map(|path| check_path(&scope, "namespace", path));
        let ca_file = raw.ca_file.map(|path| check_ca_file(&scope, path, references));
        let connect_timeout = scope.millis("connect_timeout_ms", raw.connect_timeout_ms, &CONNECT_TIMEOUT_MS);
        let methods = Words { default: false, allowed: &[("token", false), ("approle", true)], later: &[] };
        let is_approle = scope.word("auth", raw.auth.as_deref(), &methods);
        let mount = raw.approle_mount.map(|path| check_path(&scope, "approle_mount", path));
        let (token, role) =
            ([("token", raw.token)], [("role_id", raw.role_id), ("secret_id", raw.secret_id)]);
        let login = if is_approle {
            refuse_others(&scope, &token, "token");
            let [role_id, secret_id] = role.map(|given| required(&scope, given, references));
            let mount = mount.unwrap_or_else(|| "approle".to_owned());
            role_id.zip(secret_id).map(|(role_id, secret_id)| VaultLogin::AppRole {
                mount,
                role_id,
                secret_id,
            })
        } else {
            refuse_others(&scope, &role, "approle");
            let [token] = token.map(|given| required(&scope, given, references));
            token.map(VaultLogin::Token)
        };
        Some(Self { address: address?, namespace, ca_file, login: login?, connect_timeout })
    }
}

fn refuse_others(scope: &Scope<'_>, options: &[(&str, Option<Value>)], auth: &str) {
    for (option, _) in options.iter().filter(|(_, given)| given.is_some()) {
        scope.fault(option, format!("is given; allowed: only with vault.auth = {auth:?}"));
    }
}

fn required(
    scope: &Scope<'_>,
    (option, given): (&str, Option<Value>),
    references: &References<'_>,
) -> Option<SecretRef> {
    if given.is_none() {
        scope.fault(option, "is missing; allowed: { file = \"…\" } or { env = \"…\" }");
    }
    given.and_then(|entry| references.given(scope, option, &entry))
}

fn check_path(scope: &Scope<'_>, option: &str, given: String) -> String {
    if !is_path(&given, "") {
        scope.fault(option, format!("{given:?} is given; allowed: {PATH_RULE}"));
    }
    given
}

const PATH_RULE: &str = "parts of A-Z, a-z, 0-9, '_', '-' and '.', split by '/', at most 128 characters";

/// What is allowed as the name of a Transit key.
pub(super) const KEY_RULE: &str =
    "the mount of a Transit engine, '/' and the name of a key in it, such as \"transit/callseal-{tenant}\"";

/// Whether a text names a Transit key; `placeholder` may be a part of it.
pub(super) fn is_transit_key(text: &str, placeholder: &str) -> bool {
    text.contains('/') && is_path(text, placeholder)
}

/// Whether a text can stand in a URL as it is, and stays below its beginning.
fn is_path(text: &str, placeholder: &str) -> bool {
    let plain = if placeholder.is_empty() { text.to_owned() } else { text.replace(placeholder, "t") };
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    text.len() <= MAX_PATH && plain.split('/').all(is_part)
}
