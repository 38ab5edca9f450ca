//! Ends a tenant: everything that it has is deleted when its time is over, but what is held; its keys go last.
//!
//! 1. Every recording that is not held is ordered to expire, so that the sweeper deletes it with audit record and receipt, as any other.
//! 2. When no recording is left, so go the blind index, waiting notices and orders. The tenant is closed then. Its audit log stays for as
//!    long as its records are kept, and with it the keys that open it; receipts of deletions stay.
//! 3. When the audit log's time is over, it is deleted with what people have asked for and every envelope of the tenant. Nothing can be
//!    opened any more, whoever has the key-encryption key, which may go now.
//!
//! Any number of nodes may do this at the same time, and any of them goes on where another stopped.

use std::sync::Arc;

use crate::control::audit::AuditLog;
use crate::control::recordings::{RecordingError, list};
use crate::control::retention::{OrderedBy, Orders, RetentionError};
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::retention::{Change, Refusal};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyService, envelopes_prefix};
use crate::store::{Store, StoreError, layout};

/// Recordings listed at a time.
const PAGE: usize = 500;
/// Why the orders are given, in the audit log.
const REASON: &str = "the tenant is closed";

/// Why it is not known what is left, or not ordered.
#[derive(Debug, thiserror::Error)]
pub enum ClosingError {
    /// The recordings cannot be listed.
    #[error("list of recordings")]
    List(#[from] RecordingError),
    /// A recording cannot be ordered to expire.
    #[error(transparent)]
    Order(#[from] RetentionError),
}

/// What is left of a tenant that is being closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// Recordings that are held: nothing deletes them until somebody releases them.
    pub held: Vec<RecordingId>,
    /// Recordings that are not deleted yet.
    pub waiting: Vec<RecordingId>,
}

impl Left {
    /// Whether nothing is.
    pub fn is_nothing(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }
}

/// Ends tenants.
pub struct Closing {
    store: Arc<dyn Store>,
    orders: Orders,
    node: String,
}

impl Closing {
    /// Works on `store`; `node` is who orders deletions, for the audit log.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog, node: &str) -> Self {
        Self { orders: Orders::new(Arc::clone(&store), keys, audit), store, node: node.to_owned() }
    }

    /// Tells what is left of a tenant; with `now`, the store's clock, what is not held is ordered to expire.
    ///
    /// # Errors
    /// [`ClosingError`]; calling again is safe.
    pub async fn left(&self, tenant: &TenantId, now: Option<UnixMillis>) -> Result<Left, ClosingError> {
        let (mut left, mut after) = (Left::default(), None);
        let at = now.unwrap_or(UnixMillis(0));
        let by = OrderedBy { role: "node", ..OrderedBy::operator(&self.node, REASON) };
        loop {
            let page = list(&*self.store, tenant, after, PAGE).await?;
            for recording in &page {
                match self.orders.preview(tenant, *recording, Change::ExpireAt(at)).await {
                    Err(RetentionError::Refused(Refusal::Held)) => left.held.push(*recording),
                    Ok(placed) => {
                        if placed.changed && now.is_some() {
                            self.orders.delete(tenant, *recording, &by).await?;
                        }
                        left.waiting.push(*recording);
                    }
                    Err(
                        RetentionError::Refused(Refusal::Deleting)
                        | RetentionError::NotFound
                        | RetentionError::Deleted(_),
                    ) => left.waiting.push(*recording),
                    Err(error) => return Err(error.into()),
                }
            }
            if page.len() < PAGE {
                return Ok(left);
            }
            after = page.last().copied();
        }
    }

    /// Deletes what a tenant without recordings has beside its audit log. Receipts stay.
    ///
    /// # Errors
    /// [`StoreError`]; calling again is safe.
    pub async fn tidy(&self, tag: TenantTag) -> Result<(), StoreError> {
        for prefix in [
            layout::recordings_prefix(tag),
            layout::index_prefix(tag),
            layout::answers_of_prefix(tag),
            format!("o/{tag}/"),
            format!("{}{tag}/", layout::LIVE_ORDERS_PREFIX),
            format!("h/{tag}/"),
        ] {
            self.store.purge(&prefix).await?;
        }
        Ok(())
    }

    /// Deletes the audit log of a closed tenant, what people have asked for, and every envelope; answers whether there was
    /// anything.
    ///
    /// # Errors
    /// [`StoreError`]; calling again is safe.
    pub async fn forget(&self, tag: TenantTag) -> Result<bool, StoreError> {
        // The envelopes go last: while there is a record, it can be opened.
        let records = self.store.purge(&layout::audit_prefix(tag)).await?;
        let requests = self.store.purge(&layout::people_prefix(tag)).await?;
        let envelopes = self.store.purge(&envelopes_prefix(tag)).await?;
        Ok(records + requests + envelopes > 0)
    }
}
