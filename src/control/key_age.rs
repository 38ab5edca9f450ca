//! Looks how old the tenants' KEKs are: metrics for all, a warning once a day for each that should have been rotated, and a new
//! version of those in the keyring where the configuration says that the node makes them.
//!
//! A key service rotates on its own side; what it does not tell counts as unknown. A new version changes nothing that runs.

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::gauge;

use crate::clock;
use crate::config::{KeyProviderKind, Tenant};
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, Keyring, KeyringError, system_random};
use crate::observe::metrics as names;

/// How often the log tells of the same tenant.
const TOLD_AGAIN: Duration = Duration::from_secs(24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why a node could not make a new version.
#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error("key-encryption key")]
    Key(#[from] KeyError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error("audit log")]
    Audit(#[from] AuditError),
    #[error("a task was stopped")]
    Stopped,
}

/// What a look has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgeReport {
    /// Age of the oldest.
    pub oldest: Duration,
    /// Tenants whose KEK should have been rotated, those that were rotated now not among them.
    pub due: u64,
    /// Tenants whose KEK has no known age, or could not be asked about.
    pub unknown: u64,
    /// Versions that were made.
    pub rotated: u64,
}

/// Watches the age of KEKs.
pub struct KeyAges {
    keys: Arc<KeyService>,
    audit: AuditLog,
    node: String,
    /// The keyring, where the node makes new versions in it.
    rotates_in: Option<PathBuf>,
    told: HashMap<TenantId, Instant>,
}

impl KeyAges {
    /// Makes new versions in the keyring `rotates_in`, if there is one; `node` is who says so in the audit log.
    pub fn new(keys: Arc<KeyService>, audit: AuditLog, node: String, rotates_in: Option<PathBuf>) -> Self {
        Self { keys, audit, node, rotates_in, told: HashMap::new() }
    }

    /// Looks once, and sets the gauges.
    #[expect(clippy::cast_precision_loss, reason = "tenants are far fewer than 2^52")]
    pub async fn look(&mut self, tenants: &[Arc<Tenant>]) -> AgeReport {
        let mut report = AgeReport::default();
        for tenant in tenants {
            self.look_at(tenant, &mut report).await;
        }
        self.told.retain(|_, told| clock::since(*told) < TOLD_AGAIN);
        gauge!(names::KEK_AGE).set(report.oldest.as_secs_f64());
        gauge!(names::KEKS_DUE).set(report.due as f64);
        gauge!(names::KEKS_OF_UNKNOWN_AGE).set(report.unknown as f64);
        report
    }

    async fn look_at(&mut self, tenant: &Tenant, report: &mut AgeReport) {
        let made = match self.keys.newest_kek_made(&tenant.id).await {
            Ok(made) => made,
            Err(error) => {
                tracing::debug!(tenant = %tenant.id, error = &error as &dyn Error, "age of a key is not known");
                None
            }
        };
        let Some(age) = made.map(age_of) else {
            report.unknown += 1;
            return;
        };
        if tenant.keks.rotate_after.is_none_or(|longest| age < longest) {
            report.oldest = report.oldest.max(age);
            return;
        }
        match self.rotate(tenant, age).await {
            Ok(true) => report.rotated += 1,
            Ok(false) => self.tell(&tenant.id, age, report),
            Err(error) => {
                tracing::error!(tenant = %tenant.id, error = &error as &dyn Error, "key could not be rotated");
                self.tell(&tenant.id, age, report);
            }
        }
    }

    fn tell(&mut self, tenant: &TenantId, age: Duration, report: &mut AgeReport) {
        report.due += 1;
        report.oldest = report.oldest.max(age);
        if !self.told.contains_key(tenant) {
            self.told.insert(tenant.clone(), clock::monotonic());
            let days = age.as_secs() / DAY.as_secs();
            tracing::warn!(%tenant, days, "key should have been rotated; see: callseal keys rotate");
        }
    }

    /// Makes a new version where the node may do that; answers whether the key is young again.
    async fn rotate(&self, tenant: &Tenant, age: Duration) -> Result<bool, RotateError> {
        let Some(file) = &self.rotates_in else { return Ok(false) };
        if tenant.keks.current.provider != KeyProviderKind::Local {
            return Ok(false);
        }
        let used = self.keys.newest_kek(&tenant.id).await?;
        let from = used.version.parse().map_err(|_| KeyError::NoKek)?;
        // What the file has may be newer than what this node has read.
        let (path, id) = (file.clone(), tenant.id.clone());
        if blocking(move || Ok(Keyring::load(&path)?.newest_version(&id))).await? != Some(from) {
            return Ok(true);
        }
        self.record(&tenant.id, from, age).await?;
        let (path, id) = (file.clone(), tenant.id.clone());
        let now = clock::rfc3339(clock::wall());
        let made = blocking(move || Keyring::rotate_from(&path, &id, from, &now, system_random)).await?;
        if let Some(version) = made {
            tracing::warn!(
                tenant = %tenant.id,
                version,
                "a new version of a key was made; copy the keyring to where its backup is"
            );
        }
        Ok(true)
    }

    /// Before it has any effect, and named by the version that it is about to become.
    async fn record(&self, tenant: &TenantId, from: u32, age: Duration) -> Result<(), AuditError> {
        let days = age.as_secs() / DAY.as_secs();
        let event = AuditEvent {
            reason: Some(format!("{days} days old")),
            detail: Some(format!("version={}", from.saturating_add(1))),
            ..AuditEvent::by_node(&self.node, "keys-rotate", tenant.to_string())
        };
        self.audit.record(tenant, event).await
    }
}

fn age_of(UnixMillis(made): UnixMillis) -> Duration {
    Duration::from_millis(clock::wall().0.saturating_sub(made))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeyringError> + Send + 'static,
) -> Result<T, RotateError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RotateError::Stopped)?.map_err(RotateError::from)
}
