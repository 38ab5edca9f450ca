//! A store in a bucket of an S3-compatible store.
//!
//! Bodies are sent from memory, never streamed: the client neither retries streams nor lets them pause. `If-Match` is
//! never sent, as it is not portable. What a store is said not to do (see [`S3Claims`](crate::config::S3Claims)) is
//! left out or done another way:
//! - no create-once: a put looks first; writers that race may overwrite each other.
//! - no tags: no tag is sent, and asking for tags is [`StoreError::Unsupported`].
//! - no batch delete: one request for each object. A store that refuses batches is found out by itself.
//!
//! Every object carries a random mark in its metadata. After an answer that was lost, the mark tells whether the object
//! under the name is ours.
//!
//! Clocks, rights and codes of errors are sorted in `error`; nothing here logs a URL, a header or a key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use bytes::Bytes;

use crate::aws::Rotating;
use crate::config::{S3, S3ObjectLock};
use crate::domain::time::UnixMillis;

use super::{
    ByteRange, Fetched, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, StoreProfile, Tags, Upload,
};

mod client;
mod clock;
mod damage;
mod error;
mod lifecycle;
mod listing;
mod lock;
mod objects;
mod read;
mod removal;
mod tagging;
mod upload;

pub use lifecycle::{BucketRules, LifecycleError, Rule};

use error::Failed;

/// The metadata that tells whose an object is.
const MARK: &str = "callseal-put";

/// A store in a bucket; see the module's head. Clones are the same store.
#[derive(Debug, Clone)]
pub struct S3Store {
    bucket: Arc<Bucket>,
}

impl S3Store {
    /// Prepares to use a bucket. The store is not asked anything yet.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when certificates cannot be read.
    pub fn open(options: &S3) -> Result<Self, StoreError> {
        let (client, credentials) = client::client(options)?;
        let bucket = Bucket {
            client,
            credentials,
            batch_delete: AtomicBool::new(options.claims.batch_delete),
            etag_is_md5: AtomicBool::new(true),
            refuses_damage: AtomicBool::new(false),
            options: options.clone(),
        };
        Ok(Self { bucket: Arc::new(bucket) })
    }
}

#[async_trait]
impl Store for S3Store {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.bucket.put_new(name, body, tags).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.bucket.get(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        Ok(self.bucket.look_at(name).await?.ok_or(StoreError::NotFound)?.info)
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.bucket.list_after(prefix, after, limit).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.bucket.delete_key(&self.bucket.key(name), None).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        self.bucket.tags(name).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        self.bucket.set_tags(name, tags).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.bucket.lock(name, until).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        let upload = upload::S3Upload::begin(Arc::clone(&self.bucket), name, tags).await?;
        Ok(Box::new(upload))
    }

    /// Looks at the bucket: the store answers and knows us. It does not write, because readiness is asked for every few
    /// seconds; that writing works is shown by the probe at start, and afterwards by what waits to be uploaded.
    async fn ping(&self) -> Result<(), StoreError> {
        self.bucket.date().await.map(drop)
    }

    fn profile(&self) -> StoreProfile {
        let claims = &self.bucket.options.claims;
        StoreProfile {
            tags: claims.tags,
            create_once: claims.create_once,
            versions: claims.versions,
            object_lock: self.bucket.options.object_lock != S3ObjectLock::None,
        }
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.bucket.now().await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        let keys: Vec<_> = names.iter().map(|name| removal::Removal::of(self.bucket.key(name))).collect();
        self.bucket.remove(&keys).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        self.bucket.purge(prefix).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        self.bucket.abort_uploads(name, before).await
    }

    async fn refuses_damage(&self, name: &ObjectName) -> Result<Option<bool>, StoreError> {
        self.bucket.refuses_damage(name).await.map(Some)
    }
}

/// The bucket and what was learned of it.
#[derive(Debug)]
struct Bucket {
    client: Client,
    credentials: Rotating,
    options: S3,
    /// The store takes many deletions in one request, as far as is known.
    batch_delete: AtomicBool,
    /// The store's ETag of a put is the MD5 of the body, as far as is known.
    etag_is_md5: AtomicBool,
    /// The store was seen to hold bodies against their signed digests, so that nothing else must be compared.
    refuses_damage: AtomicBool,
}

impl Bucket {
    fn name(&self) -> &str {
        &self.options.bucket
    }

    fn key(&self, name: &ObjectName) -> String {
        format!("{}{name}", self.options.prefix)
    }

    /// Returns the name that a key stands for; keys that nobody here could have made have none.
    fn name_of(&self, key: &str) -> Option<ObjectName> {
        ObjectName::new(key.strip_prefix(&self.options.prefix)?).ok()
    }

    /// Sorts an error; after a denial the credentials are read again.
    fn failed<E>(&self, error: SdkError<E, HttpResponse>) -> Failed
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let failed = Failed::from(error);
        if failed.is_denial() {
            self.credentials.doubt();
        }
        failed
    }

    fn takes_batches(&self) -> bool {
        self.batch_delete.load(Ordering::Relaxed)
    }
}

/// Makes a mark that nobody else has.
fn random_mark() -> Result<String, StoreError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| StoreError::from_io("mark an object", std::io::Error::other(error)))?;
    Ok(format!("{:032x}", u128::from_be_bytes(random)))
}
