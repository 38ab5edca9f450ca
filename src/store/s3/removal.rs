//! Deletion: of single objects, of many, of everything under a prefix with its versions, and of unfinished uploads.

use std::io;
use std::sync::atomic::Ordering;

use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use crate::domain::time::UnixMillis;
use crate::store::{ObjectName, StoreError};

use super::Bucket;
use super::clock::millis_of;
use super::error::Failed;
use super::listing::PAGE;

const DELETE: &str = "delete objects";
const ABORT: &str = "abort uploads";

/// One key, or one version of it, to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Removal {
    pub(super) key: String,
    pub(super) version: Option<String>,
    /// Only the mark that a versioned store leaves for a deleted object.
    pub(super) is_marker: bool,
}

impl Removal {
    pub(super) fn of(key: String) -> Self {
        Self { key, version: None, is_marker: false }
    }
}

impl Bucket {
    /// Deletes one key; a missing one is success.
    pub(super) async fn delete_key(&self, key: &str, version: Option<&str>) -> Result<(), StoreError> {
        let delete = self.client.delete_object().bucket(self.name()).key(key);
        match delete.set_version_id(version.map(str::to_owned)).send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let failed = self.failed(error);
                if failed.is_missing() { Ok(()) } else { Err(failed.during("delete object")) }
            }
        }
    }

    /// Deletes keys, a thousand with one request where the store can.
    pub(super) async fn remove(&self, removals: &[Removal]) -> Result<(), StoreError> {
        for batch in removals.chunks(PAGE) {
            if batch.len() > 1 && self.takes_batches() && self.remove_batch(batch).await? {
                continue;
            }
            for removal in batch {
                self.delete_key(&removal.key, removal.version.as_deref()).await?;
            }
        }
        Ok(())
    }

    /// Deletes with one request; `false` when the store does not take such requests.
    async fn remove_batch(&self, batch: &[Removal]) -> Result<bool, StoreError> {
        let identify = |removal: &Removal| {
            let version = removal.version.clone();
            ObjectIdentifier::builder().key(&removal.key).set_version_id(version).build()
        };
        let objects: Result<Vec<_>, _> = batch.iter().map(identify).collect();
        let delete =
            objects.and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build());
        let delete = delete.map_err(|_| StoreError::Refused { rule: "an object to be deleted has a key" })?;
        match self.client.delete_objects().bucket(self.name()).delete(delete).send().await {
            Ok(answer) => {
                let codes = answer.errors().iter().map(|error| error.code().unwrap_or_default());
                let refused = codes.into_iter().find(|code| !matches!(*code, "NoSuchKey" | "NoSuchVersion"));
                refused.map_or(Ok(true), |code| Err(Failed::of_code(code).during(DELETE)))
            }
            Err(error) => {
                let failed = self.failed(error);
                let is_refused = failed.is_unsupported() || failed.is_status(400) && !failed.is_denial();
                if is_refused {
                    // Older stores want a Content-MD5 that the client does not send; others have no batches.
                    self.batch_delete.store(false, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(failed.during(DELETE))
            }
        }
    }

    pub(super) async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        if prefix.is_empty() {
            return Err(StoreError::Refused { rule: "a prefix to be purged is not empty" });
        }
        let prefix = format!("{}{prefix}", self.options.prefix);
        let mut purged = 0;
        let mut last: Vec<Removal> = Vec::new();
        loop {
            self.abort_below(&prefix).await?;
            let page = self.everything_below(&prefix).await?;
            if page.is_empty() {
                return Ok(purged);
            }
            if page == last {
                let source = io::Error::other("what was deleted is still listed");
                return Err(StoreError::Io { action: "purge", source });
            }
            if let Err(error) = self.remove(&page).await {
                return Err(self.locked(&page, error).await);
            }
            purged += page.iter().filter(|removal| !removal.is_marker).count() as u64;
            last = page;
        }
    }

    /// Lists a page of what there is under a prefix: versions and delete markers, or objects where the store has no
    /// versions.
    async fn everything_below(&self, prefix: &str) -> Result<Vec<Removal>, StoreError> {
        let list = self.client.list_object_versions().bucket(self.name()).prefix(prefix);
        let page = match list.send().await {
            Ok(page) => page,
            Err(error) => {
                let failed = self.failed(error);
                // Never where versions are known to be kept: what is not listed here would stay.
                let is_unknown = failed.is_unsupported() || failed.is_status(400) && !failed.is_denial();
                if is_unknown && !self.options.claims.versions {
                    let keys = self.some_keys(prefix).await?;
                    return Ok(keys.into_iter().map(Removal::of).collect());
                }
                return Err(failed.during("list versions"));
            }
        };
        let removal = |key: Option<&str>, version: Option<&str>, is_marker| {
            Some(Removal { key: key?.to_owned(), version: version.map(str::to_owned), is_marker })
        };
        let versions = page.versions().iter().filter_map(|v| removal(v.key(), v.version_id(), false));
        let markers = page.delete_markers().iter().filter_map(|m| removal(m.key(), m.version_id(), true));
        Ok(versions.chain(markers).collect())
    }

    pub(super) async fn abort_uploads(
        &self,
        name: &ObjectName,
        before: UnixMillis,
    ) -> Result<u64, StoreError> {
        let key = self.key(name);
        let mut aborted = 0;
        for upload in self.uploads_below(&key).await? {
            let is_older = upload.began.is_some_and(|began| began.0 < before.0);
            if upload.key == key && is_older {
                self.abort_upload(&upload.key, &upload.id).await?;
                aborted += 1;
            }
        }
        Ok(aborted)
    }

    async fn abort_below(&self, prefix: &str) -> Result<(), StoreError> {
        for upload in self.uploads_below(prefix).await? {
            self.abort_upload(&upload.key, &upload.id).await?;
        }
        Ok(())
    }

    /// Aborts an upload; a missing one is success.
    pub(super) async fn abort_upload(&self, key: &str, id: &str) -> Result<(), StoreError> {
        let abort = self.client.abort_multipart_upload().bucket(self.name()).key(key).upload_id(id);
        match abort.send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let failed = self.failed(error);
                if failed.is_missing() { Ok(()) } else { Err(failed.during("abort upload")) }
            }
        }
    }

    /// Lists the unfinished uploads of keys that begin with `prefix`; none where the store cannot tell.
    async fn uploads_below(&self, prefix: &str) -> Result<Vec<Unfinished>, StoreError> {
        let mut uploads = Vec::new();
        let mut next: Option<(String, Option<String>)> = None;
        loop {
            let (key, id) = next.take().map_or((None, None), |(key, id)| (Some(key), id));
            let list = self.client.list_multipart_uploads().bucket(self.name()).prefix(prefix);
            let page = match list.set_key_marker(key).set_upload_id_marker(id).send().await {
                Ok(page) => page,
                Err(error) => {
                    let failed = self.failed(error);
                    return if failed.is_unsupported() { Ok(uploads) } else { Err(failed.during(ABORT)) };
                }
            };
            uploads.extend(page.uploads().iter().filter_map(|upload| {
                let (key, id) = (upload.key()?.to_owned(), upload.upload_id()?.to_owned());
                Some(Unfinished { key, id, began: upload.initiated().and_then(millis_of) })
            }));
            match page.next_key_marker().filter(|_| page.is_truncated().unwrap_or(false)) {
                Some(key) => next = Some((key.to_owned(), page.next_upload_id_marker().map(str::to_owned))),
                None => return Ok(uploads),
            }
        }
    }
}

/// An upload that somebody began.
struct Unfinished {
    key: String,
    id: String,
    began: Option<UnixMillis>,
}
