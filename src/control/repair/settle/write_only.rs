//! What a settler does where nothing can be settled, because the node only records, and what it does for such nodes.

use std::sync::Arc;

use crate::control::index::{Reindex, Reindexed};
use crate::domain::ids::{RecordingId, TenantId};
use crate::store::StoreError;

use super::Settler;

impl Settler {
    /// Whether this node can settle anything: that takes the key.
    pub(in crate::control) fn opens(&self) -> bool {
        self.keys.opens()
    }

    /// Whether a recording's key exists, which may take as long as any request.
    pub(in crate::control) async fn has_key(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<bool, StoreError> {
        let looking = self.keys.has_envelope(tenant.tag(), recording);
        let late = || StoreError::Io { action: "list in time", source: std::io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(self.policy.try_timeout, looking).await.map_err(|_| late())?
    }

    /// Puts the index entries that nodes which only record have asked for.
    pub(in crate::control) async fn index_wanted(
        &self,
        tenant: &TenantId,
        is_unfinished: impl Fn(RecordingId) -> bool + Send,
    ) -> Result<Reindexed, StoreError> {
        let (store, keys) = (Arc::clone(&self.store), Arc::clone(&self.keys));
        let options = (self.party_keys.clone(), self.policy);
        Reindex::new(store, keys, self.audit.clone(), options).catch_up(tenant, is_unfinished).await
    }
}
