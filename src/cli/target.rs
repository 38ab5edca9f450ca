//! What most commands begin with: a configuration, its store and keys, and one tenant.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::config::Config;
use crate::control::audit::AuditLog;
use crate::domain::ids::{RecordingId, TenantId};
use crate::keys::{KeyError, KeyService};
use crate::notices::Notices;
use crate::server::{audit_options, complete, open_keys, open_store};
use crate::store::Store;

use super::{ConfigArg, Failure, output};

/// A command that has done its work waits no longer for the end of its audit chain.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// One tenant of a node.
#[derive(Debug, Clone, Args)]
pub(super) struct TenantArg {
    #[command(flatten)]
    pub(super) config: ConfigArg,
    /// The tenant's id
    #[arg(long, value_name = "ID")]
    pub(super) tenant: TenantId,
}

/// One recording of a tenant.
#[derive(Debug, Clone, Args)]
pub(super) struct RecordingArg {
    #[command(flatten)]
    pub(super) tenant: TenantArg,
    /// The recording's id: 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    pub(super) recording: RecordingId,
}

/// What a command works on.
pub(super) struct Opened {
    /// Boxed, as what works on it is kept across waits.
    pub(super) config: Box<Config>,
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Arc<KeyService>,
}

impl TenantArg {
    /// Opens store and keys; the tenant must be configured.
    pub(super) async fn open(&self) -> Result<Opened, Failure> {
        let opened = Opened::of(self.config.load()?).await?;
        opened.config.tenant(&self.tenant).with_context(|| format!("there is no tenant {}", self.tenant))?;
        Ok(opened)
    }

    /// The same, on a node that opens recordings.
    pub(super) async fn open_to_read(&self) -> Result<Opened, Failure> {
        let opened = self.open().await?;
        opened.must_open()?;
        Ok(opened)
    }
}

impl Opened {
    /// Opens the store and the keys of a node; tenants of the store stand beside those of files.
    pub(super) async fn of(config: Config) -> anyhow::Result<Self> {
        let store = open_store(&config).await?;
        let config = with_stored(config, &store).await?;
        Self::with(config, store)
    }

    /// Opens the keys of a node whose store is open. To be called within a runtime.
    pub(super) fn with(config: Config, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let keys = open_keys(&config, &store)?;
        Ok(Self { config: Box::new(config), store, keys })
    }

    /// Says what a command that opens recordings has to say on a node that only records.
    pub(super) fn must_open(&self) -> Result<(), KeyError> {
        if self.keys.opens() { Ok(()) } else { Err(KeyError::WriteOnly) }
    }

    /// Starts what tells tenants what happens; nodes deliver it.
    pub(super) fn notices(&self) -> Notices {
        let (keys, store) = (Arc::clone(&self.keys), Arc::clone(&self.store));
        Notices::start(keys, store, self.config.node.as_str(), &self.config.tenants).0
    }

    /// Starts the audit log; to be called once, and [`end_audit`] when the command has done its work or failed.
    pub(super) fn audit_log(&self) -> anyhow::Result<AuditLog> {
        let options = audit_options(&self.config)?;
        let node = self.config.node.as_str().to_owned();
        Ok(AuditLog::start_with(options, node, Arc::clone(&self.keys), Arc::clone(&self.store)))
    }
}

/// Adds the tenants of the store, and says what is wrong with some of them.
pub(super) async fn with_stored(config: Config, store: &Arc<dyn Store>) -> anyhow::Result<Config> {
    let (config, trouble) = complete(config, store).await.context("tenants of the store")?;
    for problem in trouble {
        output::error(&format!("warning: {problem}"));
    }
    Ok(config)
}

/// Ends the audit chains of a command, so that they do not look as if somebody had cut them off.
pub(super) async fn end_audit(audit: &AuditLog) {
    if !audit.end(END_TIMEOUT).await {
        output::error(
            "warning: the audit chain of this command has no end; audit verify will call it silent",
        );
    }
}
