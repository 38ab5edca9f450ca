//! Tenants that are kept in the store: whether there may be any, what they are sealed with, and what they may say.
//!
//! Such a tenant is checked as one of a file is, with two differences. Its secrets are values that were given once, because a
//! reference would have the node read what whoever uses the API names. And what it has the node dial is a host of the
//! internet, unless the node's file says otherwise.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::iter;
use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};
use zeroize::Zeroize;

use super::environment::Environment;
use super::faults::{Collector, Faults};
use super::files::{self, Disk, Files, TenantFile};
use super::hipaa::NodeFacts;
use super::keys::KeyProviderKind;
use super::raw;
use super::scope::{Bounds, Scope};
use super::secret::{FromStore, References, Secret};
use super::tenant::{MAX_KID, NodeRules, Tenant, check_keys, check_kid, key_names};
use super::{Config, parse_toml};

/// What customers are promised: two months to fetch what is theirs.
const CLOSE_AFTER_DAYS: Bounds = Bounds::new(60, 1..=365);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How tenants are kept in the store.
#[derive(Debug, Clone)]
pub struct StoredTenants {
    /// What they are sealed with, by `kid`; each has at least 32 bytes.
    pub keys: BTreeMap<String, Secret>,
    /// The `kid` of the one that new revisions are sealed with.
    pub kid: String,
    /// Agents and receivers of theirs may be on this machine or in this network.
    pub allow_private_hosts: bool,
    /// From the order to close a tenant to the deletion of what it has.
    pub close_after: Duration,
}

impl StoredTenants {
    /// Checks what the table `tenants` says of it; without keys there are none in the store.
    pub(super) fn check(
        raw: &mut raw::Tenants,
        scope: &Scope<'_>,
        references: &References<'_>,
    ) -> Option<Self> {
        let given = [
            ("kid", raw.kid.is_some()),
            ("allow_private_hosts", raw.allow_private_hosts.is_some()),
            ("close_after_days", raw.close_after_days.is_some()),
        ];
        if raw.keys.is_none() {
            for (option, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
                scope.fault(
                    option,
                    "has no meaning without tenants.keys; allowed: leave it out, or give both",
                );
            }
            return None;
        }
        let names = key_names(raw.keys.as_ref());
        if names.is_empty() {
            scope.fault(
                "keys",
                "is empty; allowed: a table such as { s1 = { file = \"…\" } }, or leave it out",
            );
        }
        let keys = check_keys(scope, "keys", references.map(scope, "keys", raw.keys.take(), MAX_KID));
        let kid = check_kid(("kid", "tenants.keys"), raw.kid.take(), &names, scope);
        let days = scope.number("close_after_days", raw.close_after_days, &CLOSE_AFTER_DAYS);
        let close_after = DAY * u32::try_from(days).unwrap_or(u32::MAX);
        let allow_private_hosts = raw.allow_private_hosts.unwrap_or(false);
        Some(Self { keys, kid: kid?, allow_private_hosts, close_after })
    }
}

impl Config {
    /// Checks what the store has of a tenant, its id and status included.
    ///
    /// # Errors
    /// Everything that is wrong with it, on this node.
    pub fn check_stored_tenant(&self, table: Table) -> Result<Tenant, Faults> {
        let faults = Collector::default();
        let scope = Scope::stored_tenant(&faults);
        let env = Environment::new(iter::empty::<(OsString, OsString)>());
        let allow_private_hosts =
            self.stored_tenants.as_ref().is_some_and(|stored| stored.allow_private_hosts);
        let references = References {
            dir: Path::new(""),
            env: &env,
            files: &NoFiles,
            from_store: Some(FromStore { allow_private_hosts }),
        };
        let facts = NodeFacts {
            hipaa: &self.hipaa,
            store: Some(&self.store),
            locks_memory: self.keys.require_locked_memory,
            has_admin: self.admin.is_some(),
            traces: self.traces.as_deref(),
        };
        let rules = NodeRules { keys: &self.keys, max_ttl: self.playback.max_ttl, facts };
        let checked = Tenant::check(table, &scope, &references, rules);
        if let Some(tenant) = &checked.tenant {
            let services = &self.key_services;
            for (kind, is_there) in [
                (KeyProviderKind::VaultTransit, services.vault.is_some()),
                (KeyProviderKind::Pkcs11, services.pkcs11.is_some()),
            ] {
                if tenant.keks.use_provider(kind) && !is_there {
                    scope.fault("keys.provider", format!("\"{kind}\" is no key service of this node"));
                }
            }
        }
        faults.finish(checked.tenant)
    }

    /// Reads a tenant's file for the store: what it refers to is read now, and stands in its place.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML; every secret that cannot be read.
    pub fn read_for_store<K: Into<OsString>, V: Into<OsString>>(
        path: &Path,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Table, Faults> {
        let label = path.display().to_string();
        let text = fs::read_to_string(path)
            .map_err(|error| Faults::one(label.clone(), files::unreadable(path, &error)))?;
        let mut table = parse_toml(&text).map_err(|problem| Faults::one(label.clone(), problem))?;
        let faults = Collector::default();
        let scope = Scope::tenant_file(&faults, &label);
        let dir = path.parent().unwrap_or(Path::new(""));
        let env = Environment::new(env);
        let references = References { dir, env: &env, files: &Disk, from_store: None };
        for (name, value) in &mut table {
            put_values(value, name, &scope, &references);
        }
        faults.finish(Some(table))
    }
}

/// Puts the values in the place of references.
fn put_values(value: &mut Value, name: &str, scope: &Scope<'_>, references: &References<'_>) {
    match value {
        Value::Table(table) if References::is_reference(table) => {
            if let Some(secret) = references.read(scope, name, &Value::Table(table.clone())) {
                match String::from_utf8(secret.expose().to_vec()) {
                    Ok(text) => *table = Table::from_iter([("value".to_owned(), Value::String(text))]),
                    Err(error) => {
                        error.into_bytes().zeroize();
                        scope.fault(name, "the secret is not text; allowed: UTF-8");
                    }
                }
            }
        }
        Value::Table(table) => {
            for (inner, value) in table {
                put_values(value, &format!("{name}.{inner}"), scope, references);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter_mut().enumerate() {
                put_values(entry, &format!("{name}[{index}]"), scope, references);
            }
        }
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// The files of a tenant of the store: none, whatever it says.
struct NoFiles;

const NO_FILES: &str = "names a file; allowed in the store: values";

impl Files for NoFiles {
    fn read_secret(&self, _path: &Path) -> Result<Secret, String> {
        Err(NO_FILES.to_owned())
    }

    fn check_readable(&self, _path: &Path) -> Result<(), String> {
        Err(NO_FILES.to_owned())
    }

    fn tenant_files(&self, _dir: &Path) -> Result<Vec<TenantFile>, String> {
        Err(NO_FILES.to_owned())
    }
}
