//! Where tenants' KEKs are: what the node does for all, and what a tenant has of its own.
//!
//! A tenant with a KEK of its own has no other: what the node uses for the rest is neither a fall-back for it nor opens its
//! recordings, unless the tenant's file names it as a former one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Table;

use crate::domain::ids::TenantId;

use super::aws_kms::{ARN_RULE, AwsKms, is_key_arn};
use super::pkcs11::{KEY_LABEL_RULE, Pkcs11, is_key_label};
use super::raw;
use super::recipient::{KeysRole, ONLY_RECIPIENTS, RECIPIENT_RULE, RecipientFiles, is_recipient};
use super::scope::{Bounds, Scope, Words};
use super::secret::References;
use super::tenant::Tenant;
use super::vault::{KEY_RULE, Vault, is_transit_key};

/// A key service answers within 50 ms, from another continent within 500.
const ATTEMPT_TIMEOUT_MS: Bounds = Bounds::new(1_500, 100..=30_000);
/// At 20 ms each, 800 calls a second: far more than calls begin, and no flood for the service.
const CONCURRENCY: Bounds = Bounds::new(16, 1..=256);
/// A year, as most policies have it; 0 is never.
const ROTATE_AFTER_DAYS: Bounds = Bounds::new(365, 0..=3650);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Former KEKs of one tenant: one for each move between key services, which nobody makes often.
const MAX_FORMER: usize = 16;

/// What stands for the tenant's id in the name of a KEK of the node.
const PLACEHOLDER: &str = "{tenant}";

/// A kind of key service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyProviderKind {
    /// A keyring file of the node.
    Local,
    /// AWS KMS.
    AwsKms,
    /// The Transit engine of Vault.
    VaultTransit,
    /// A PKCS#11 token.
    Pkcs11,
    /// A key pair, of which a node may have only the half that wraps.
    Recipient,
}

impl KeyProviderKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Local, Self::AwsKms, Self::VaultTransit, Self::Pkcs11, Self::Recipient];

    /// Returns the word for it in configuration, envelopes and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::AwsKms => "aws-kms",
            Self::VaultTransit => "vault-transit",
            Self::Pkcs11 => "pkcs11",
            Self::Recipient => "recipient",
        }
    }
}

impl fmt::Display for KeyProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One KEK in all its versions: where it is, and its name there, as envelopes have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KekName {
    /// The kind of key service.
    pub provider: KeyProviderKind,
    /// `local/<tenant>`, the ARN of a KMS key, mount and name of a Transit key, the label of a key in a token, or the name of
    /// a key pair.
    pub kek: String,
}

impl KekName {
    /// Returns the name of a tenant's KEK in the keyring.
    pub fn local(tenant: &TenantId) -> Self {
        KekRule { provider: KeyProviderKind::Local, kek: String::new() }.of(tenant.as_str())
    }
}

/// The KEKs of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantKeks {
    /// The one that new DEKs are wrapped under.
    pub current: KekName,
    /// Those that older envelopes may be under.
    pub former: Vec<KekName>,
    /// How old the newest version of the current one may get; `None` for any age.
    pub rotate_after: Option<Duration>,
}

impl TenantKeks {
    /// Returns all of them, the current one first.
    pub fn all(&self) -> impl Iterator<Item = &KekName> {
        std::iter::once(&self.current).chain(&self.former)
    }

    /// Whether one of them is of this kind.
    pub fn use_provider(&self, provider: KeyProviderKind) -> bool {
        self.all().any(|kek| kek.provider == provider)
    }
}

/// How key services are reached.
#[derive(Debug, Clone)]
pub struct KeyServices {
    /// AWS KMS; its defaults do.
    pub aws_kms: AwsKms,
    /// Vault; there is one where a tenant's KEK is in it.
    pub vault: Option<Vault>,
    /// A token; there is one where a tenant's KEK is in it.
    pub pkcs11: Option<Pkcs11>,
    /// Files of key pairs; there are some where a tenant's KEK is one.
    pub recipient: RecipientFiles,
}

impl KeyServices {
    /// Checks the tables of key services; those of key pairs are checked once the tenants are known.
    pub(super) fn check(
        (aws_kms, vault, pkcs11): (Option<Table>, Option<Table>, Option<Table>),
        top: &Scope<'_>,
        references: &References<'_>,
    ) -> Option<Self> {
        let aws_kms = AwsKms::check(aws_kms, top, references);
        let vault = Vault::check(vault, top, references);
        let pkcs11 = Pkcs11::check(pkcs11, top, references);
        Some(Self { aws_kms: aws_kms?, vault, pkcs11, recipient: RecipientFiles::default() })
    }
}

/// Which tables of key services are given.
pub(super) fn given_services(raw: &raw::Node) -> [(&'static str, bool); 3] {
    let (aws_kms, vault, pkcs11) = (&raw.aws_kms, &raw.vault, &raw.pkcs11);
    [("aws_kms", aws_kms.is_some()), ("vault", vault.is_some()), ("pkcs11", pkcs11.is_some())]
}

/// Reports the tables that are missing although a tenant's KEK is there. That of AWS KMS may be.
pub(super) fn require_services(tenants: &[Tenant], given: [(&str, bool); 3], top: &Scope<'_>) {
    let is_used = |kind| tenants.iter().any(|tenant| tenant.keks.use_provider(kind));
    let used = [false, is_used(KeyProviderKind::VaultTransit), is_used(KeyProviderKind::Pkcs11)];
    for ((table, _), _) in given.iter().zip(used).filter(|((_, is_given), is_used)| !*is_given && *is_used) {
        top.fault(table, format!("is missing; allowed: a table [{table}], as a tenant has its key there"));
    }
}

/// Where KEKs are, and how key services are asked.
#[derive(Debug, Clone)]
pub struct KeysConfig {
    /// Whether this node opens what it records.
    pub role: KeysRole,
    /// The keyring, made by `callseal keys init`; needed only where a tenant has a KEK in it.
    pub keyring_file: PathBuf,
    /// The longest time that one attempt of one request to a key service may take.
    pub attempt_timeout: Duration,
    /// How many requests to one key service may run at the same time.
    pub concurrency: usize,
    /// Whether a key that cannot lie in locked memory is refused.
    pub require_locked_memory: bool,
    /// Whether a node makes new versions of KEKs in its keyring when they are too old.
    pub rotate_by_itself: bool,
    /// As [`TenantKeks::rotate_after`], for tenants that say nothing of it.
    rotate_after: Option<Duration>,
    default: KekRule,
    former: Vec<KekRule>,
}

/// What names the KEK of a tenant.
#[derive(Debug, Clone)]
struct KekRule {
    provider: KeyProviderKind,
    /// Empty for the keyring.
    kek: String,
}

impl KekRule {
    fn of(&self, tenant: &str) -> KekName {
        let kek = match self.provider {
            KeyProviderKind::Local => format!("local/{tenant}"),
            KeyProviderKind::AwsKms | KeyProviderKind::Recipient => self.kek.clone(),
            KeyProviderKind::VaultTransit | KeyProviderKind::Pkcs11 => self.kek.replace(PLACEHOLDER, tenant),
        };
        KekName { provider: self.provider, kek }
    }
}

impl KeysConfig {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, data_dir: &Path) -> Self {
        let (scope, raw): (_, raw::Keys) = top.section("keys", table);
        let role = scope.word("role", raw.role.as_deref(), &KeysRole::WORDS);
        let provider = scope.word("provider", raw.provider.as_deref(), &providers());
        let default = check_rule(provider, raw.kek, &scope, (Names::OfNode, role));
        let former = check_former(raw.former_keks, &scope, (Names::OfNode, role));
        let keyring = || data_dir.join("keyring.json");
        Self {
            role,
            keyring_file: scope.path("keyring_file", raw.keyring_file, keyring),
            attempt_timeout: scope.millis("attempt_timeout_ms", raw.attempt_timeout_ms, &ATTEMPT_TIMEOUT_MS),
            concurrency: scope.size("concurrency", raw.concurrency, &CONCURRENCY),
            rotate_by_itself: check_rotate(raw.rotate.as_deref(), &scope, role),
            rotate_after: check_rotate_after(raw.rotate_after_days, &scope, None),
            require_locked_memory: raw.require_locked_memory.unwrap_or(false),
            default,
            former,
        }
    }

    /// Returns where the KEKs of tenants are that have none of their own.
    pub fn default_provider(&self) -> KeyProviderKind {
        self.default.provider
    }

    /// Returns the KEKs of a tenant that has none of its own.
    fn keks_of(&self, tenant: &str) -> TenantKeks {
        let former = self.former.iter().map(|rule| rule.of(tenant)).collect();
        TenantKeks { current: self.default.of(tenant), former, rotate_after: self.rotate_after }
    }
}

impl TenantKeks {
    /// Checks a tenant's own table; a tenant without one has what the node gives.
    /// Without `id` the tenant's file has a fault already.
    pub(super) fn check(
        table: Option<Table>,
        top: &Scope<'_>,
        id: Option<&TenantId>,
        node: &KeysConfig,
    ) -> Self {
        let id = id.map_or("", TenantId::as_str);
        let (scope, raw): (_, raw::TenantKeys) = top.section("keys", table);
        let rotate_after = check_rotate_after(raw.rotate_after_days, &scope, Some(node.rotate_after));
        let own = check_former(raw.former_keks, &scope, (Names::OfTenant, node.role));
        let own = own.iter().map(|rule| rule.of(id));
        let Some(provider) = raw.provider else {
            if raw.kek.is_some() {
                scope.fault("kek", "is given; allowed: only with keys.provider in the same file");
            }
            let given = node.keks_of(id);
            return Self { former: given.former.into_iter().chain(own).collect(), rotate_after, ..given };
        };
        let provider = scope.word("provider", Some(provider.as_str()), &providers());
        let current = check_rule(provider, raw.kek, &scope, (Names::OfTenant, node.role)).of(id);
        Self { current, former: own.collect(), rotate_after }
    }
}

/// Who makes new versions of KEKs in the keyring.
const ROTATE: Words<bool> =
    Words { default: false, allowed: &[("manual", false), ("auto", true)], later: &[] };

fn check_rotate(given: Option<&str>, scope: &Scope<'_>, role: KeysRole) -> bool {
    let by_itself = scope.word("rotate", given, &ROTATE);
    if by_itself && role == KeysRole::Ingest {
        scope.fault(
            "rotate",
            "\"auto\" is given; allowed: \"manual\" with keys.role = \"ingest\", as it makes versions in a keyring",
        );
    }
    by_itself
}

/// Reads after how many days a KEK is to be rotated; `given` is what holds where nothing is said.
fn check_rotate_after(
    days: Option<i64>,
    scope: &Scope<'_>,
    given: Option<Option<Duration>>,
) -> Option<Duration> {
    if let (None, Some(given)) = (days, given) {
        return given;
    }
    match scope.count("rotate_after_days", days, &ROTATE_AFTER_DAYS) {
        0 => None,
        days => Some(DAY * days),
    }
}

fn providers() -> Words<KeyProviderKind> {
    Words {
        default: KeyProviderKind::Local,
        allowed: &[
            ("local", KeyProviderKind::Local),
            ("aws-kms", KeyProviderKind::AwsKms),
            ("vault-transit", KeyProviderKind::VaultTransit),
            ("pkcs11", KeyProviderKind::Pkcs11),
            ("recipient", KeyProviderKind::Recipient),
        ],
        later: &[],
    }
}

/// Whose KEK is named: a node's name may hold the place of the tenant's id.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    OfNode,
    OfTenant,
}

fn check_rule(
    provider: KeyProviderKind,
    kek: Option<String>,
    scope: &Scope<'_>,
    (names, role): (Names, KeysRole),
) -> KekRule {
    let placeholder = if names == Names::OfNode { PLACEHOLDER } else { "" };
    if role == KeysRole::Ingest && provider != KeyProviderKind::Recipient {
        scope.fault("provider", format!("\"{provider}\" is used; allowed: {ONLY_RECIPIENTS}"));
    }
    match provider {
        KeyProviderKind::Local => {
            if kek.is_some() {
                scope.fault(
                    "kek",
                    "is given; allowed: only with a key service, as the keyring has one for each tenant",
                );
            }
        }
        KeyProviderKind::AwsKms => check_kek(scope, kek.as_deref(), is_key_arn, ARN_RULE),
        KeyProviderKind::VaultTransit => {
            check_kek(scope, kek.as_deref(), |kek| is_transit_key(kek, placeholder), KEY_RULE);
        }
        KeyProviderKind::Pkcs11 => {
            check_kek(scope, kek.as_deref(), |kek| is_key_label(kek, placeholder), KEY_LABEL_RULE);
        }
        KeyProviderKind::Recipient => check_kek(scope, kek.as_deref(), is_recipient, RECIPIENT_RULE),
    }
    KekRule { provider, kek: kek.unwrap_or_default() }
}

/// Checks the name of a KEK in a key service.
fn check_kek(scope: &Scope<'_>, given: Option<&str>, is_allowed: impl Fn(&str) -> bool, rule: &str) {
    match given {
        None => scope.fault("kek", format!("is missing with this provider; allowed: {rule}")),
        Some(kek) if is_allowed(kek) => {}
        Some(kek) => scope.fault("kek", format!("{kek:?} is given; allowed: {rule}")),
    }
}

fn check_former(tables: Option<Vec<Table>>, scope: &Scope<'_>, rules: (Names, KeysRole)) -> Vec<KekRule> {
    let tables = tables.unwrap_or_default();
    if tables.len() > MAX_FORMER {
        scope.fault("former_keks", format!("{} are given; allowed: at most {MAX_FORMER}", tables.len()));
    }
    let check = |(index, table)| {
        let (scope, raw): (_, raw::FormerKek) = scope.section(&format!("former_keks[{index}]"), Some(table));
        if raw.provider.is_none() {
            scope.fault("provider", "is missing; allowed: what keys.provider allows");
        }
        let provider = scope.word("provider", raw.provider.as_deref(), &providers());
        check_rule(provider, raw.kek, &scope, rules)
    };
    tables.into_iter().take(MAX_FORMER).enumerate().map(check).collect()
}
