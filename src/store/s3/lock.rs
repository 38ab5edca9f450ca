//! Locks of objects: what nobody may destroy before a moment.
//!
//! They are set when an object is complete and not with its put, because not every store obeys them at the beginning of
//! an upload in parts (RGW does not).

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};

use crate::clock;
use crate::config::S3ObjectLock;
use crate::domain::time::UnixMillis;
use crate::store::{ObjectName, StoreError};

use super::Bucket;
use super::clock::millis_of;
use super::removal::Removal;

impl Bucket {
    pub(super) async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        let mode = match self.options.object_lock {
            S3ObjectLock::None => return Err(StoreError::Unsupported { feature: "object lock" }),
            S3ObjectLock::Governance => ObjectLockRetentionMode::Governance,
            S3ObjectLock::Compliance => ObjectLockRetentionMode::Compliance,
        };
        // Stores refuse a date that is over. Whose clock says so matters little: dates are days away.
        if until <= clock::wall() {
            return Ok(());
        }
        let date = DateTime::from_secs(i64::try_from(until.0 / 1000).unwrap_or(i64::MAX));
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(date).build();
        let put = self.client.put_object_retention().bucket(self.name()).key(self.key(name));
        put.retention(retention)
            .send()
            .await
            .map(drop)
            .map_err(|error| self.failed(error).during("lock object"))
    }

    /// Says why a purge was denied: the lock that holds longest, or else what the store said.
    pub(super) async fn locked(&self, page: &[Removal], error: StoreError) -> StoreError {
        if !matches!(error, StoreError::Denied { .. }) || self.options.object_lock == S3ObjectLock::None {
            return error;
        }
        let mut longest = None;
        for removal in page.iter().filter(|removal| !removal.is_marker) {
            longest = longest.max(self.lock_of(removal).await);
        }
        longest.map_or(error, |until| StoreError::Locked { until })
    }

    /// Reads until when a version is locked; nothing where that cannot be told.
    async fn lock_of(&self, removal: &Removal) -> Option<UnixMillis> {
        let get = self.client.get_object_retention().bucket(self.name()).key(&removal.key);
        let answer = get.set_version_id(removal.version.clone()).send().await.ok()?;
        answer.retention().and_then(ObjectLockRetention::retain_until_date).and_then(millis_of)
    }
}
