//! One try to put an object into the store, compared when its name is taken.

use std::time::Duration;

use bytes::Bytes;

use crate::keys::fill_random;
use crate::store::{ObjectName, PutOutcome, Store, StoreError, Tags};

/// Why an object will never get there.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Another object has its name.
    #[error("another object has the name {0}")]
    Taken(ObjectName),
}

/// One try. `Ok(false)`: other bytes have the name. `Err(None)`: no answer in time.
pub(super) async fn try_put(
    store: &dyn Store,
    name: &ObjectName,
    body: &Bytes,
    tags: &Tags,
    limit: Duration,
) -> Result<bool, Option<StoreError>> {
    let put = async {
        match store.put_new(name, body.clone(), tags).await? {
            PutOutcome::Created => Ok(true),
            PutOutcome::AlreadyExists => Ok(store.get(name, None).await?.bytes == *body),
        }
    };
    match tokio::time::timeout(limit, put).await {
        Ok(outcome) => outcome.map_err(Some),
        Err(_) => Err(None),
    }
}

pub(super) fn warn_of_retry(name: &ObjectName, error: Option<&StoreError>, wait: Duration) {
    let error = error.map(|error| error as &dyn std::error::Error);
    tracing::warn!(object = %name, error, wait_ms = wait.as_millis(), "store did not take an object; trying again");
}

/// A number for jitter; a predictable one, should the system have no random bytes, does no harm.
pub(super) fn random_u32() -> u32 {
    let mut bytes = [0x55; 4];
    match fill_random(&mut bytes) {
        Ok(()) => u32::from_be_bytes(bytes),
        Err(_) => u32::MAX / 3,
    }
}
