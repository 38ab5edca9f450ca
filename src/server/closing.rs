//! Ends tenants of the store whose time is over, at the intervals of the sweeper.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::config::{KeyProviderKind, Origin, Tenant, TenantStatus};
use crate::control::audit::AuditEvent;
use crate::control::closing::{Closing, Left};
use crate::domain::time::UnixMillis;
use crate::drain::Phase;
use crate::jitter::jittered;
use crate::keys::Keyring;
use crate::node::Node;
use crate::tenants::{Author, Desk, Stored};

use super::audit::believed_now;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The first look after a start comes no later than this.
const FIRST_LOOK: Duration = Duration::from_secs(300);

/// Looks at the tenants that are being closed, again and again, until the node drains.
pub(super) async fn close_on(node: Arc<Node>) {
    let interval = node.config.retention.interval;
    let mut wait = jittered(interval.min(FIRST_LOOK));
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = node.drain.reached(Phase::Draining) => return,
        }
        if let Some(stored) = node.tenants.stored() {
            look(&node, stored).await;
        }
        wait = jittered(interval);
    }
}

async fn look(node: &Node, stored: &Stored) {
    let tenants = node.tenants.load();
    let is_ending = |tenant: &&Arc<Tenant>| {
        matches!(tenant.status, TenantStatus::Closing | TenantStatus::Closed)
            && matches!(tenant.origin, Origin::Store { .. })
    };
    let ending: Vec<_> = tenants.iter().filter(is_ending).collect();
    if ending.is_empty() {
        return;
    }
    // The store's clock decides, and only where ours says nearly the same.
    let Ok(Some(now)) = believed_now(&*node.store).await else { return };
    for tenant in ending {
        if let Err(error) = go_on(node, stored, tenant, now).await {
            tracing::error!(tenant = %tenant.id, error = format!("{error:#}"), "a tenant is not closed yet");
        }
    }
}

async fn go_on(node: &Node, stored: &Stored, tenant: &Tenant, now: UnixMillis) -> anyhow::Result<()> {
    let Origin::Store { close_by, .. } = tenant.origin else { return Ok(()) };
    let name = node.config.node.as_str();
    let closing = Closing::new(Arc::clone(&node.store), Arc::clone(&node.keys), node.audit.clone(), name);
    if tenant.status == TenantStatus::Closed {
        return forget(node, stored, (tenant, &closing), now).await;
    }
    if close_by.is_none_or(|by| now < by) {
        return Ok(());
    }
    let left = closing.left(&tenant.id, Some(now)).await?;
    if !left.is_nothing() {
        let Left { held, waiting } = left;
        tracing::info!(tenant = %tenant.id, held = held.len(), waiting = waiting.len(), "a tenant is being closed");
        return Ok(());
    }
    closing.tidy(tenant.id.tag()).await?;
    let author = Author { name: name.to_owned(), reason: None };
    let desk = Desk { config: &node.config, of_files: Vec::new(), book: &stored.book, author };
    let draft = desk.closed(&tenant.id).await?;
    let event = AuditEvent {
        detail: Some(draft.detail()),
        ..AuditEvent::by_node(name, draft.revision.made.action(), tenant.id.to_string())
    };
    node.audit.record(&tenant.id, event).await?;
    draft.put(&stored.book).await?;
    stored.look().await;
    tracing::info!(tenant = %tenant.id, "a tenant is closed: nothing is left of it but audit log and receipts");
    Ok(())
}

/// Deletes what was kept of a closed tenant, its keys last, when its audit log's time is over.
async fn forget(
    node: &Node,
    stored: &Stored,
    (tenant, closing): (&Tenant, &Closing),
    now: UnixMillis,
) -> anyhow::Result<()> {
    let newest = stored.book.newest(tenant.id.tag()).await?;
    let Some(closed_at) = newest.and_then(|revision| clock::parse_rfc3339(&revision.at)) else {
        return Ok(());
    };
    if now < closed_at.plus(DAY * tenant.retention.access_log_days) {
        return Ok(());
    }
    if closing.forget(tenant.id.tag()).await? {
        tracing::info!(tenant = %tenant.id, "the audit log of a closed tenant and all of its data keys are deleted");
    }
    let keys = &node.config.keys;
    let is_local = tenant.keks.use_provider(KeyProviderKind::Local);
    if is_local && keys.rotate_by_itself && Keyring::remove(&keys.keyring_file, &tenant.id)? {
        tracing::info!(tenant = %tenant.id, "the key of a closed tenant is destroyed");
    }
    Ok(())
}
