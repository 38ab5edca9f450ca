//! A store that answers late.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    ByteRange, Fetched, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, StoreProfile, Tags, Upload,
};
use crate::domain::time::UnixMillis;

/// Waits before every request to the store inside.
#[derive(Debug)]
pub struct Slow<S> {
    inner: S,
    latency: Duration,
}

impl<S: Store> Slow<S> {
    /// Puts `latency` before every request to `inner`.
    pub fn new(inner: S, latency: Duration) -> Self {
        Self { inner, latency }
    }

    async fn wait(&self) {
        tokio::time::sleep(self.latency).await;
    }
}

#[async_trait]
impl<S: Store> Store for Slow<S> {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.wait().await;
        self.inner.put_new(name, body, tags).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.wait().await;
        self.inner.get(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.wait().await;
        self.inner.head(name).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.wait().await;
        self.inner.list_after(prefix, after, limit).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.wait().await;
        self.inner.delete(name).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        self.wait().await;
        self.inner.tags(name).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        self.wait().await;
        self.inner.set_tags(name, tags).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.wait().await;
        self.inner.lock(name, until).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        self.wait().await;
        let inner = self.inner.begin_upload(name, tags).await?;
        Ok(Box::new(SlowUpload { inner, latency: self.latency }))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.wait().await;
        self.inner.ping().await
    }

    fn profile(&self) -> StoreProfile {
        self.inner.profile()
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.wait().await;
        self.inner.now().await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        self.wait().await;
        self.inner.delete_all(names).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        self.wait().await;
        self.inner.purge(prefix).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        self.wait().await;
        self.inner.abort_uploads(name, before).await
    }

    async fn refuses_damage(&self, name: &ObjectName) -> Result<Option<bool>, StoreError> {
        self.inner.refuses_damage(name).await
    }
}

struct SlowUpload {
    inner: Box<dyn Upload>,
    latency: Duration,
}

#[async_trait]
impl Upload for SlowUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        tokio::time::sleep(self.latency).await;
        self.inner.put_part(part).await
    }

    async fn complete(&mut self) -> Result<PutOutcome, StoreError> {
        tokio::time::sleep(self.latency).await;
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        tokio::time::sleep(self.latency).await;
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{conformance, folder::Folder};

    #[tokio::test]
    async fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).await.unwrap();
        conformance::run(&Slow::new(folder, Duration::from_millis(1)), "t/slow").await;
    }
}
