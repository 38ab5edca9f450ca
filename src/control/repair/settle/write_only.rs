//! What a settler does where nothing can be settled, because the node only records.

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
}
