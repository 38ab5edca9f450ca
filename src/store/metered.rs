//! A store that counts and times its requests.

use std::future::Future;

use async_trait::async_trait;
use bytes::Bytes;
use metrics::{counter, histogram};

use super::{
    ByteRange, Fetched, ObjectInfo, ObjectName, Operation, PutOutcome, Store, StoreError, StoreProfile, Tags,
    Upload,
};
use crate::clock;
use crate::domain::time::UnixMillis;

/// Counter of requests; labels `operation` and `outcome` (`ok`, `exists`, or [`StoreError::label`]).
pub const REQUESTS: &str = "store_requests_total";
/// Histogram of the seconds from request to answer, failed ones too; label `operation`.
pub const REQUEST_SECONDS: &str = "store_request_seconds";
/// Counter of object bytes written; label `operation`.
pub const WRITTEN_BYTES: &str = "store_written_bytes_total";
/// Counter of object bytes read.
pub const READ_BYTES: &str = "store_read_bytes_total";

/// Counts and times every request to the store inside, through the `metrics` crate.
#[derive(Debug)]
pub struct Metered<S> {
    inner: S,
}

impl<S: Store> Metered<S> {
    /// Measures `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

#[async_trait]
impl<S: Store> Store for Metered<S> {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        let bytes = body.len();
        let outcome = measured(Operation::PutNew, self.inner.put_new(name, body, tags)).await?;
        if outcome == PutOutcome::Created {
            count_written(Operation::PutNew, bytes);
        }
        Ok(outcome)
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        let fetched = measured(Operation::Get, self.inner.get(name, range)).await?;
        counter!(READ_BYTES).increment(fetched.bytes.len() as u64);
        Ok(fetched)
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        measured(Operation::Head, self.inner.head(name)).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        measured(Operation::ListAfter, self.inner.list_after(prefix, after, limit)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        measured(Operation::Delete, self.inner.delete(name)).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        measured(Operation::Tags, self.inner.tags(name)).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        measured(Operation::SetTags, self.inner.set_tags(name, tags)).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        measured(Operation::Lock, self.inner.lock(name, until)).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        let inner = measured(Operation::BeginUpload, self.inner.begin_upload(name, tags)).await?;
        Ok(Box::new(MeteredUpload { inner }))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        measured(Operation::Ping, self.inner.ping()).await
    }

    fn profile(&self) -> StoreProfile {
        self.inner.profile()
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        measured(Operation::Now, self.inner.now()).await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        measured(Operation::DeleteAll, self.inner.delete_all(names)).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        measured(Operation::Purge, self.inner.purge(prefix)).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        measured(Operation::AbortUploads, self.inner.abort_uploads(name, before)).await
    }

    async fn refuses_damage(&self, name: &ObjectName) -> Result<Option<bool>, StoreError> {
        measured(Operation::PutNew, self.inner.refuses_damage(name)).await
    }
}

struct MeteredUpload {
    inner: Box<dyn Upload>,
}

#[async_trait]
impl Upload for MeteredUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let bytes = part.len();
        measured(Operation::PutPart, self.inner.put_part(part)).await?;
        count_written(Operation::PutPart, bytes);
        Ok(())
    }

    async fn complete(&mut self) -> Result<PutOutcome, StoreError> {
        measured(Operation::Complete, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        measured(Operation::Abort, self.inner.abort()).await
    }
}

/// What an answer counts as when it is no error.
trait Answer {
    fn label(&self) -> &'static str {
        "ok"
    }
}

impl Answer for () {}
impl Answer for u64 {}
impl Answer for Option<bool> {}
impl Answer for UnixMillis {}
impl Answer for Fetched {}
impl Answer for ObjectInfo {}
impl Answer for Vec<ObjectInfo> {}
impl Answer for Tags {}
impl Answer for Box<dyn Upload> {}
impl Answer for PutOutcome {
    fn label(&self) -> &'static str {
        match self {
            Self::Created => "ok",
            Self::AlreadyExists => "exists",
        }
    }
}

async fn measured<T: Answer>(
    operation: Operation,
    request: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let started = clock::monotonic();
    let answer = request.await;
    let seconds = clock::monotonic().duration_since(started).as_secs_f64();
    let outcome = answer.as_ref().map_or_else(StoreError::label, Answer::label);
    counter!(REQUESTS, "operation" => operation.label(), "outcome" => outcome).increment(1);
    histogram!(REQUEST_SECONDS, "operation" => operation.label()).record(seconds);
    answer
}

fn count_written(operation: Operation, bytes: usize) {
    counter!(WRITTEN_BYTES, "operation" => operation.label()).increment(bytes as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{conformance, folder::Folder};
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[tokio::test]
    async fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).await.unwrap();
        conformance::run(&Metered::new(folder), "t/metered").await;
    }

    #[tokio::test]
    async fn requests_are_counted_by_outcome() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let dir = tempfile::tempdir().unwrap();
        let store = Metered::new(Folder::open(dir.path()).await.unwrap());
        let name = ObjectName::new("a").unwrap();

        store.put_new(&name, Bytes::from_static(b"five!"), &Tags::new()).await.unwrap();
        store.put_new(&name, Bytes::from_static(b"other"), &Tags::new()).await.unwrap();
        store.get(&ObjectName::new("b").unwrap(), None).await.unwrap_err();

        let page = recorder.handle().render();
        for line in [
            r#"store_requests_total{operation="put_new",outcome="ok"} 1"#,
            r#"store_requests_total{operation="put_new",outcome="exists"} 1"#,
            r#"store_requests_total{operation="get",outcome="not_found"} 1"#,
            r#"store_written_bytes_total{operation="put_new"} 5"#,
            r#"store_request_seconds_count{operation="put_new"} 2"#,
        ] {
            assert!(page.contains(line), "{line} is missing in\n{page}");
        }
    }
}
