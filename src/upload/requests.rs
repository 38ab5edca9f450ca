//! The store, asked with patience: for work that takes thousands of requests, where starting over for each that fails
//! would never end.

use std::time::Duration;

use bytes::Bytes;

use crate::domain::time::UnixMillis;
use crate::observe::metrics;
use crate::store::{ByteRange, Fetched, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, Tags, Upload};

use super::put::random_u32;
use super::retry::{Retry, RetryPolicy};

/// Objects listed at a time.
const PAGE: usize = 1000;
/// Objects deleted at a time: all segments of four minutes. A store that takes one after the other must be through with
/// them within the time for one try.
const DELETED_AT_ONCE: usize = 50;
/// How often one request is made before its failure counts.
const TRIES: u32 = 5;

/// Makes requests: each may take `policy.try_timeout`, and one that fails but may be better the next time is made again,
/// at most five times in all.
#[derive(Clone, Copy)]
pub struct Requests<'a> {
    store: &'a dyn Store,
    policy: RetryPolicy,
}

impl<'a> Requests<'a> {
    /// Asks `store`.
    pub fn new(store: &'a dyn Store, policy: RetryPolicy) -> Self {
        Self { store, policy }
    }

    /// Returns the store itself.
    pub fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// Reads an object or a range of it.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.patiently(|| self.store.get(name, range.clone())).await
    }

    /// Lists all objects below a prefix.
    ///
    /// # Errors
    /// As [`Store::list_after`].
    pub async fn list_all(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut objects: Vec<ObjectInfo> = Vec::new();
        loop {
            let after = objects.last().map(|object| object.name.clone());
            let page = self.patiently(|| self.store.list_after(prefix, after.as_ref(), PAGE)).await?;
            let is_last = page.len() < PAGE;
            objects.extend(page);
            if is_last {
                return Ok(objects);
            }
        }
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// As [`Store::delete`].
    pub async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.patiently(|| self.store.delete(name)).await
    }

    /// Deletes objects, some with one request where the store can; missing ones are success.
    ///
    /// # Errors
    /// As [`Store::delete_all`].
    pub async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        for some in names.chunks(DELETED_AT_ONCE) {
            self.patiently(|| self.store.delete_all(some)).await?;
        }
        Ok(())
    }

    /// Puts an object. A name that is taken may be taken by an earlier try: the caller reads back.
    ///
    /// # Errors
    /// As [`Store::put_new`].
    pub async fn put(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.patiently(|| self.store.put_new(name, body.clone(), tags)).await
    }

    /// Reads the tags of an object.
    ///
    /// # Errors
    /// As [`Store::tags`].
    pub async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        self.patiently(|| self.store.tags(name)).await
    }

    /// Locks an object.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.patiently(|| self.store.lock(name, until)).await
    }

    pub(super) async fn begin_upload(
        &self,
        name: &ObjectName,
        tags: &Tags,
    ) -> Result<Box<dyn Upload>, StoreError> {
        self.patiently(|| self.store.begin_upload(name, tags)).await
    }

    pub(super) async fn put_part(&self, upload: &mut dyn Upload, part: &Bytes) -> Result<(), StoreError> {
        let mut patience = Patience::new(self.policy);
        loop {
            let answer = patience.limit(upload.put_part(part.clone())).await;
            if let Some(answer) = patience.judge(answer).await {
                return answer;
            }
        }
    }

    pub(super) async fn complete(&self, upload: &mut dyn Upload) -> Result<PutOutcome, StoreError> {
        let mut patience = Patience::new(self.policy);
        loop {
            let answer = patience.limit(upload.complete()).await;
            if let Some(answer) = patience.judge(answer).await {
                return answer;
            }
        }
    }

    /// Lets the store free the parts at once; tried once.
    pub(super) async fn abort(&self, upload: &mut dyn Upload) -> Result<(), StoreError> {
        Patience::new(self.policy).limit(upload.abort()).await
    }

    /// Makes a request of the caller's; one that is several may be repeated as a whole.
    pub(super) async fn patiently<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut patience = Patience::new(self.policy);
        loop {
            let answer = patience.limit(request()).await;
            if let Some(answer) = patience.judge(answer).await {
                return answer;
            }
        }
    }
}

/// The tries of one request.
struct Patience {
    retry: Retry,
    try_timeout: Duration,
    left: u32,
}

impl Patience {
    fn new(policy: RetryPolicy) -> Self {
        Self { retry: Retry::new(policy), try_timeout: policy.try_timeout, left: TRIES - 1 }
    }

    async fn limit<T>(&self, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let late =
            || StoreError::Io { action: "answer in time", source: std::io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(self.try_timeout, request).await.unwrap_or_else(|_| Err(late()))
    }

    /// Answers what counts; `None`, after a wait, when the request is to be made again.
    async fn judge<T>(&mut self, answer: Result<T, StoreError>) -> Option<Result<T, StoreError>> {
        match answer {
            Err(error) if error.is_retryable() && self.left > 0 => {
                self.left -= 1;
                ::metrics::counter!(metrics::UPLOAD_RETRIES).increment(1);
                tokio::time::sleep(self.retry.next_wait(random_u32())).await;
                None
            }
            answer => Some(answer),
        }
    }
}
