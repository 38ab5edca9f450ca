//! Listings of objects.

use crate::domain::time::UnixMillis;
use crate::store::{ObjectInfo, ObjectName, StoreError};

use super::Bucket;
use super::clock::millis_of;

/// The most keys that S3 tells at once.
pub(super) const PAGE: usize = 1000;

impl Bucket {
    pub(super) async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let prefix = format!("{}{prefix}", self.options.prefix);
        let mut after = after.map(|name| self.key(name));
        let mut found = Vec::new();
        while found.len() < limit {
            let (keys, is_last) = self.list_page(&prefix, after.as_deref(), limit - found.len()).await?;
            // The next page starts after the last key, which need not be one of ours.
            after = keys.last().map(|key| key.key.clone()).or(after);
            found.extend(keys.iter().filter_map(|key| self.info_of(key)));
            if is_last {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    fn info_of(&self, listed: &Listed) -> Option<ObjectInfo> {
        let name = self.name_of(&listed.key)?;
        Some(ObjectInfo { name, size: listed.size, modified: listed.modified })
    }

    /// Lists up to `limit` keys that begin with `prefix` and come after `after`, and tells whether these are the last.
    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Listed>, bool), StoreError> {
        let list = self
            .client
            .list_objects_v2()
            .bucket(self.name())
            .prefix(prefix)
            .set_start_after(after.map(str::to_owned))
            .max_keys(i32::try_from(limit.min(PAGE)).unwrap_or(i32::MAX));
        let answer = list.send().await.map_err(|error| self.failed(error).during("list objects"))?;
        let keys: Vec<Listed> = answer
            .contents()
            .iter()
            .filter_map(|object| {
                let size = object.size().and_then(|size| u64::try_from(size).ok())?;
                let modified = object.last_modified().and_then(millis_of);
                Some(Listed { key: object.key()?.to_owned(), size, modified })
            })
            .collect();
        // A store that says "more" and tells nothing would be asked for ever.
        let is_last = !answer.is_truncated().unwrap_or(false) || keys.is_empty();
        Ok((keys, is_last))
    }

    /// Lists up to a page of the keys under a prefix.
    pub(super) async fn some_keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let (keys, _) = self.list_page(prefix, None, PAGE).await?;
        Ok(keys.into_iter().map(|listed| listed.key).collect())
    }
}

struct Listed {
    key: String,
    size: u64,
    modified: Option<UnixMillis>,
}
