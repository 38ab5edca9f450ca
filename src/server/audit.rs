//! What a node does for the audit log beside writing what happens: it keeps a chain for every tenant, and removes records
//! whose time is over.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::config::{Tenant, TenantStatus};
use crate::control::audit::{AuditError, AuditLog, AuditReader, Purged, purge};
use crate::domain::time::UnixMillis;
use crate::drain::Phase;
use crate::jitter::jittered;
use crate::keys::KeyService;
use crate::node::Node;
use crate::observe::metrics;
use crate::store::Store;

/// Chains begin no later than this after a start: long after the first calls were taken.
const FIRST_ROUND: Duration = Duration::from_secs(300);
/// How often tenants are looked at: new ones get a chain, and all may have a day of records that is too old.
const ROUND: Duration = Duration::from_secs(3600);
/// The chains of many tenants begin over so long, so that key service and store do not feel it: 1,000 in ten minutes.
const PAUSE: Duration = Duration::from_millis(600);

/// Sees to the audit logs of all tenants until the node drains.
pub(super) async fn keep(node: Arc<Node>) {
    let mut wait = jittered(FIRST_ROUND);
    loop {
        tokio::select! {
            () = round(&node, wait) => {}
            () = node.drain.reached(Phase::Draining) => return,
        }
        wait = jittered(ROUND);
    }
}

async fn round(node: &Node, wait: Duration) {
    tokio::time::sleep(wait).await;
    let tenants = node.tenants.load();
    for tenant in tenants.iter().filter(|tenant| tenant.status != TenantStatus::Closed) {
        node.audit.begin(&tenant.id).await;
        tokio::time::sleep(PAUSE).await;
        if node.config.retention.sweep {
            remove_old(node, tenant).await;
        }
    }
}

async fn remove_old(node: &Node, tenant: &Tenant) {
    let purged = match believed_now(&*node.store).await {
        Ok(Some(now)) => purge_audit(&node.keys, &*node.store, &node.audit, tenant, now).await,
        Ok(None) => return,
        Err(error) => Err(error),
    };
    match purged {
        Ok(Purged { days: 0, .. }) => {}
        Ok(Purged { days, objects, chains, .. }) => {
            tracing::info!(tenant = %tenant.id, days, objects, chains, "old audit records are removed");
        }
        Err(error) => {
            ::metrics::counter!(metrics::AUDIT_PURGE_FAILURES).increment(1);
            let error = &error as &dyn std::error::Error;
            tracing::error!(tenant = %tenant.id, error, "old audit records are not removed");
        }
    }
}

/// Reads the store's clock; none while it and ours are a day apart, because then one of them is wrong.
pub(super) async fn believed_now(store: &dyn Store) -> Result<Option<UnixMillis>, AuditError> {
    let (theirs, ours) = (store.now().await?, clock::wall());
    if theirs.0.abs_diff(ours.0) > 24 * 3600 * 1000 {
        tracing::error!(
            "no old audit records are removed: our clock and the store's are more than a day apart"
        );
        return Ok(None);
    }
    Ok(Some(theirs))
}

/// Removes the audit records of a tenant that are older than it wants; `now` is the store's clock.
///
/// # Errors
/// [`AuditError`].
pub async fn purge_audit(
    keys: &KeyService,
    store: &dyn Store,
    audit: &AuditLog,
    tenant: &Tenant,
    now: UnixMillis,
) -> Result<Purged, AuditError> {
    let days = tenant.retention.access_log_days;
    purge(AuditReader::new(keys, store), (keys, audit), &tenant.id, (days, now)).await
}
