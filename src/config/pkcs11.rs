//! The PKCS#11 token that KEKs are in: an HSM, or software that speaks like one.

use std::path::PathBuf;

use toml::Table;

use super::raw;
use super::scope::Scope;
use super::secret::{References, SecretRef};

/// What PKCS#11 gives a label room for.
const MAX_LABEL: usize = 32;
/// The longest label of a key; the standard has no bound.
const MAX_KEY_LABEL: usize = 128;

/// A token, and the module that speaks to it.
#[derive(Debug, Clone)]
pub struct Pkcs11 {
    /// The library of the token's maker; it is loaded into this process.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// The PIN of the token's user.
    pub pin: SecretRef,
}

impl Pkcs11 {
    /// Checks the table; without one there is no token.
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, references: &References<'_>) -> Option<Self> {
        let (scope, raw): (_, raw::Pkcs11) = top.section("pkcs11", Some(table?));
        let missing = |option: &str, rule: &str| scope.fault(option, format!("is missing; allowed: {rule}"));
        if raw.module.is_none() {
            missing("module", "the path of a PKCS#11 library");
        }
        let module =
            raw.module.map(|path| references.dir.join(scope.path("module", Some(path), PathBuf::new)));
        if let Some(Err(problem)) = module.as_deref().map(|path| references.files.check_readable(path)) {
            scope.fault("module", problem);
        }
        let rule = format!(
            "1 to {MAX_LABEL} printable ASCII characters, as it was given when the token was initialised"
        );
        match raw.token_label.as_deref() {
            None => missing("token_label", &rule),
            Some(label) if is_label(label, MAX_LABEL) => {}
            Some(label) => scope.fault("token_label", format!("{label:?} is given; allowed: {rule}")),
        }
        if raw.pin.is_none() {
            missing("pin", "{ file = \"…\" } or { env = \"…\" }");
        }
        let pin = raw.pin.and_then(|entry| references.given(&scope, "pin", &entry));
        Some(Self { module: module?, token_label: raw.token_label?, pin: pin? })
    }
}

fn is_label(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// What is allowed as the name of a key in a token.
pub(super) const KEY_LABEL_RULE: &str = "the label of a secret key, 1 to 128 characters of A-Z, a-z, 0-9, '_', '-', '.' and '/', such as \"callseal-{tenant}\"";

/// Whether a text is the label of a key; `placeholder` may be a part of it.
pub(super) fn is_key_label(text: &str, placeholder: &str) -> bool {
    let plain = if placeholder.is_empty() { text.to_owned() } else { text.replace(placeholder, "t") };
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
    (1..=MAX_KEY_LABEL).contains(&text.len()) && plain.bytes().all(is_allowed)
}
