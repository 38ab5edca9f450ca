//! Objects made in parts: the parts are written one after another into one temporary file.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Folder, Temporary};
use crate::store::{MIN_PART_BYTES, ObjectName, PutOutcome, StoreError, Tags, Upload};

pub(super) struct FolderUpload {
    folder: Folder,
    name: ObjectName,
    tags: Tags,
    /// Gone after `complete` or `abort`.
    parts: Option<Arc<Temporary>>,
    /// The bytes of all parts that were put, so that a repeated part lands at its place.
    length: u64,
    /// How a repeated `complete` answers.
    outcome: Option<PutOutcome>,
    /// A part below the least size was put, so that no other may follow.
    ended: bool,
}

impl FolderUpload {
    pub(super) fn new(folder: Folder, name: ObjectName, tags: Tags, parts: Temporary) -> Self {
        Self { folder, name, tags, parts: Some(Arc::new(parts)), length: 0, outcome: None, ended: false }
    }

    fn parts(&self) -> Result<Arc<Temporary>, StoreError> {
        self.parts
            .clone()
            .ok_or(StoreError::Refused { rule: "an upload ends when it is completed or aborted" })
    }
}

#[async_trait]
impl Upload for FolderUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let parts = self.parts()?;
        if self.ended {
            return Err(StoreError::Refused { rule: "every part but the last has at least 5 MiB" });
        }
        if part.is_empty() {
            return Err(StoreError::Refused { rule: "a part has at least one byte" });
        }
        let (offset, length) = (self.length, part.len());
        self.folder.blocking("write part", move |_| Ok(parts.file().write_all_at(&part, offset)?)).await?;
        self.length = offset + length as u64;
        self.ended = length < MIN_PART_BYTES;
        Ok(())
    }

    async fn complete(&mut self) -> Result<PutOutcome, StoreError> {
        if let Some(outcome) = self.outcome {
            return Ok(outcome);
        }
        let parts = self.parts()?;
        if self.length == 0 {
            return Err(StoreError::Refused { rule: "an upload has at least one part" });
        }
        let (name, tags, length) = (self.name.clone(), self.tags.clone(), self.length);
        let publish = move |root: &super::Root| {
            // A part that failed may have left bytes behind the last good one.
            parts.file().set_len(length)?;
            root.publish(&parts, &name, &tags)
        };
        let outcome = self.folder.blocking("complete upload", publish).await?;
        self.outcome = Some(outcome);
        self.parts = None;
        Ok(outcome)
    }

    async fn abort(&mut self) -> Result<(), StoreError> {
        let parts = self.parts.take();
        self.folder
            .blocking("abort upload", move |_| {
                drop(parts);
                Ok(())
            })
            .await
    }
}
