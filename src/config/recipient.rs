//! What a node holds of the key pairs that data keys are wrapped for, and what it must not hold.
//!
//! A node with the role `ingest` opens nothing, whoever has it in hand. So whatever opens is refused in its configuration, and
//! what cannot be done without opening is off.

use std::path::PathBuf;

use toml::Table;

use super::keys::{KeyProviderKind, KeysConfig};
use super::raw;
use super::scope::{Scope, Words};
use super::secret::References;
use super::tenant::Tenant;

/// Files of one kind: a key pair for each of a few hundred tenants, each read in less than a millisecond.
const MAX_FILES: usize = 256;
/// What the name of a key pair begins with.
pub(crate) const RECIPIENT_PREFIX: &str = "xwing/";
const NAME_DIGITS: usize = 64;
pub(super) const RECIPIENT_RULE: &str =
    "the name of a key pair as callseal keys recipient init prints it, \"xwing/\" and 64 hexadecimal digits";
/// Why a node that opens nothing has no other provider.
pub(super) const ONLY_RECIPIENTS: &str =
    "only keys.provider = \"recipient\" with keys.role = \"ingest\", as all others open recordings";

/// What a node does with keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysRole {
    /// Records, and opens what is recorded.
    Full,
    /// Records, and can open nothing.
    Ingest,
}

impl KeysRole {
    pub(super) const WORDS: Words<Self> =
        Words { default: Self::Full, allowed: &[("full", Self::Full), ("ingest", Self::Ingest)], later: &[] };

    /// Checks a switch of something that opens recordings: on unless switched off, and never on where nothing opens.
    pub(super) fn opener(self, scope: &Scope<'_>, option: &str, given: Option<bool>) -> bool {
        if self == Self::Ingest && given == Some(true) {
            scope.fault(
                option,
                "true is given; allowed: false with keys.role = \"ingest\", as a node that opens recordings does it",
            );
        }
        self == Self::Full && given.unwrap_or(true)
    }
}

/// The files of key pairs.
#[derive(Debug, Clone, Default)]
pub struct RecipientFiles {
    /// Those that wrap and open.
    pub open: Vec<PathBuf>,
    /// Those that only wrap.
    pub wrap: Vec<PathBuf>,
}

impl RecipientFiles {
    pub(super) fn check(
        table: Option<Table>,
        top: &Scope<'_>,
        references: &References<'_>,
        (keys, tenants): (&KeysConfig, &[Tenant]),
    ) -> Self {
        let (scope, raw): (_, raw::Recipient) = top.section("recipient", table);
        let (open, wrap) = (raw.open_files.unwrap_or_default(), raw.wrap_files.unwrap_or_default());
        let is_used = tenants.iter().any(|tenant| tenant.keks.use_provider(KeyProviderKind::Recipient));
        let ingest = keys.role == KeysRole::Ingest;
        let (needed, other, why) = if ingest {
            (("wrap_files", &wrap), ("open_files", &open), "with keys.role = \"ingest\", which opens nothing")
        } else {
            (
                ("open_files", &open),
                ("wrap_files", &wrap),
                "without keys.role = \"ingest\", as an open file wraps, too",
            )
        };
        if !other.1.is_empty() {
            scope.fault(other.0, format!("is given; allowed: none {why}"));
        }
        if keys.require_locked_memory && !ingest && !open.is_empty() {
            scope.fault(
                "open_files",
                "is given; allowed: none with keys.require_locked_memory = true, as private keys of key pairs lie where the \
                 library keeps them, which is not locked",
            );
        }
        if is_used && needed.1.is_empty() {
            let or = if ingest { "" } else { ", or keys.role = \"ingest\" on a node that only records" };
            scope.fault(
                needed.0,
                format!("is missing; allowed: files that callseal keys recipient init made{or}"),
            );
        }
        let files = |option: &str, given: Vec<String>| {
            if given.len() > MAX_FILES {
                scope.fault(option, format!("{} are given; allowed: at most {MAX_FILES}", given.len()));
            }
            let place = |(index, path): (usize, String)| {
                let option = format!("{option}[{index}]");
                let path = references.dir.join(scope.path(&option, Some(path), PathBuf::new));
                if let Err(problem) = references.files.check_readable(&path) {
                    scope.fault(&option, problem);
                }
                path
            };
            given.into_iter().take(MAX_FILES).enumerate().map(place).collect()
        };
        Self { open: files("open_files", open), wrap: files("wrap_files", wrap) }
    }
}

/// Whether a text is the name of a key pair.
pub(super) fn is_recipient(text: &str) -> bool {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.strip_prefix(RECIPIENT_PREFIX)
        .is_some_and(|digits| digits.len() == NAME_DIGITS && digits.bytes().all(is_digit))
}

/// Reports the tables of key services that a node with the role `ingest` must not know; `given` says which there are.
pub(super) fn refuse_services(role: KeysRole, given: [(&str, bool); 3], top: &Scope<'_>) {
    for (table, _) in given.into_iter().filter(|(_, is_given)| *is_given && role == KeysRole::Ingest) {
        top.fault(table, format!("is given; allowed: {ONLY_RECIPIENTS}"));
    }
}
