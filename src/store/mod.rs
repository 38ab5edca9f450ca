//! The object store: where sealed bytes live for as long as retention says.
//!
//! [`Store`] is shaped for the S3 API, because that is what production uses, and it is deliberately narrow: objects are
//! created once and never changed, there is no compare-and-swap (it is not portable), and state that must change is a
//! series of numbered objects. A store sees ciphertext, object names and tags. It must not know plaintext, keys or
//! providers.
//!
//! [`folder`] keeps objects in a directory, [`s3`] in a bucket. The wrappers [`metered`], [`slow`] and [`faulty`] go around any store and
//! around each other; tests, demonstrations and load runs use them. [`conformance`] is the one suite every store passes, [`probe`] finds out
//! what a store in use really does.
//!
//! What a caller relies on, whatever the store:
//! - When `put_new` or `complete` says [`PutOutcome::Created`], bytes and tags are durable, and nobody can ever see
//!   part of them.
//! - After an error from `put_new` or `complete` the object may exist or not. Calling again is safe; the answer
//!   [`PutOutcome::AlreadyExists`] then means "somebody's, perhaps mine": read back and compare.
//! - A future dropped half-way leaves the same uncertainty and nothing else.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::domain::time::UnixMillis;

pub mod conformance;
mod error;
pub mod faulty;
pub mod folder;
pub mod layout;
pub mod metered;
mod name;
mod operation;
pub mod probe;
mod range;
pub mod s3;
pub mod slow;
mod tags;

pub use error::StoreError;
pub use name::{InvalidName, ObjectName};
pub use operation::Operation;
pub use range::ByteRange;
pub use tags::{InvalidTag, ObjectClass, Tags};

/// The least size of every part of an upload but its last, in bytes: 5 MiB, as S3 has it. 10,000 parts are 48 GiB.
///
/// Some stores want all parts equal, so callers cut parts of exactly this size.
pub const MIN_PART_BYTES: usize = 5 << 20;

/// An object store.
///
/// Every method may be called at any time from any task. Errors are told apart by what the caller can do about them, see
/// [`StoreError`].
#[async_trait]
pub trait Store: Send + Sync {
    /// Creates an object with its tags, unless the name is taken (S3: `If-None-Match: *`).
    ///
    /// A taken name is [`PutOutcome::AlreadyExists`], and its bytes and tags stay as they are.
    ///
    /// # Errors
    /// [`StoreError`]; afterwards the object may exist all the same.
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError>;

    /// Reads an object, or one range of it, into memory; the caller bounds the size.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and [`StoreError::OutOfRange`] if the range holds no byte of the object.
    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError>;

    /// Tells an object's size without reading it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError>;

    /// Lists up to `limit` objects whose names begin with `prefix` and come after `after`, in byte order of the names.
    ///
    /// `prefix` may end anywhere, also inside a path segment. Fewer than `limit` objects means there are no more.
    ///
    /// # Errors
    /// [`StoreError`]; a prefix that no name can have is no error and lists nothing.
    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError>;

    /// Deletes an object and its tags; a missing object is success.
    ///
    /// # Errors
    /// [`StoreError`]; the object may be gone all the same.
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// Reads the tags of an object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError>;

    /// Replaces all tags of an object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError>;

    /// Has the store refuse to destroy an object before a moment, to everybody (S3: object lock). A moment that is over is
    /// success and locks nothing; a lock is never made shorter.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and [`StoreError::Unsupported`] unless [`StoreProfile::object_lock`].
    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError>;

    /// Starts to create an object that is too large for one [`Store::put_new`]; nobody sees it before it is complete.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError>;

    /// Checks that the store answers and takes writes; for readiness.
    ///
    /// # Errors
    /// [`StoreError`] as the next put would give.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Tells what this store cannot do and what is done instead; it never changes while the store is open.
    fn profile(&self) -> StoreProfile;

    /// Reads the store's own clock: what decides about age, because clocks of nodes jump.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn now(&self) -> Result<UnixMillis, StoreError>;

    /// Deletes objects, in as few requests as the store allows; missing ones are success.
    ///
    /// # Errors
    /// [`StoreError`]; any of them may be gone then, and calling again is safe.
    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError>;

    /// Destroys everything under a prefix for good: all objects, all their versions and delete markers, and all
    /// unfinished uploads. Answers how many objects and versions there were, after a listing that found none left.
    ///
    /// # Errors
    /// [`StoreError`]; part of it may be gone then, and calling again is safe. [`StoreError::Refused`] for an empty
    /// prefix, [`StoreError::Locked`] when something must stay for now.
    async fn purge(&self, prefix: &str) -> Result<u64, StoreError>;

    /// Aborts the unfinished uploads of a name that began before `before` by the store's clock; answers how many.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError>;

    /// Sends bytes that were damaged on the way, and tells whether the store refuses them; `None` where nothing is sent. May
    /// leave an object of this name behind.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn refuses_damage(&self, _name: &ObjectName) -> Result<Option<bool>, StoreError> {
        Ok(None)
    }
}

/// What a store can do beside keeping objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreProfile {
    /// Tags are kept. If not, they are left out of puts, and [`Store::tags`] and [`Store::set_tags`] answer
    /// [`StoreError::Unsupported`]: retention then rests on the sealed manifest and the expiry index alone.
    pub tags: bool,
    /// Of several writers of one name at the same moment exactly one is told [`PutOutcome::Created`]. If not, a put
    /// looks first and writers that race may overwrite each other; names with a random part are not affected.
    pub create_once: bool,
    /// A deleted object leaves versions behind until [`Store::purge`] destroys them.
    pub versions: bool,
    /// Objects can be locked, see [`Store::lock`], and finished recordings are.
    pub object_lock: bool,
}

/// An object that is being created in parts.
///
/// Dropping it before [`Upload::complete`] leaves no object; call [`Upload::abort`] where possible, so that the store
/// frees the parts at once.
#[async_trait]
pub trait Upload: Send {
    /// Adds the next part; every part but the last has at least [`MIN_PART_BYTES`].
    ///
    /// # Errors
    /// [`StoreError`]; the same part may then be put again.
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError>;

    /// Makes the object visible, unless the name was taken meanwhile; then the parts are dropped.
    ///
    /// # Errors
    /// [`StoreError::Refused`] without any part; else as [`Store::put_new`], and it may be called again.
    async fn complete(&mut self) -> Result<PutOutcome, StoreError>;

    /// Drops all parts; calling it twice is success.
    ///
    /// # Errors
    /// [`StoreError`]; it may be called again.
    async fn abort(&mut self) -> Result<(), StoreError>;
}

/// What became of a create-once request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is new and holds the bytes given.
    Created,
    /// An object of that name was there and is unchanged.
    AlreadyExists,
}

/// What a store tells about an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The object's name.
    pub name: ObjectName,
    /// Its size in bytes.
    pub size: u64,
    /// When it was created by the store's clock, where the store tells.
    pub modified: Option<UnixMillis>,
}

/// Bytes that were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The object's bytes, or those of the range.
    pub bytes: Bytes,
    /// The size of the whole object in bytes.
    pub total_size: u64,
}

#[async_trait]
impl<S: Store + ?Sized> Store for Arc<S> {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        (**self).put_new(name, body, tags).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        (**self).get(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        (**self).head(name).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        (**self).list_after(prefix, after, limit).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        (**self).delete(name).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        (**self).tags(name).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        (**self).set_tags(name, tags).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        (**self).lock(name, until).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        (**self).begin_upload(name, tags).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        (**self).ping().await
    }

    fn profile(&self) -> StoreProfile {
        (**self).profile()
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        (**self).now().await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        (**self).delete_all(names).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        (**self).purge(prefix).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        (**self).abort_uploads(name, before).await
    }

    async fn refuses_damage(&self, name: &ObjectName) -> Result<Option<bool>, StoreError> {
        (**self).refuses_damage(name).await
    }
}
