//! Compaction: segments, manifest and tail become one final object, without any key (`docs/FORMAT.md` section 8).
//!
//! Nothing is deleted before the final object was read back and has the digest of what went into it. Idempotent: an
//! interrupted compaction is simply run again.

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::domain::cmr::{Manifest, ReadError, Row, TAIL_BYTES, Tail, check_digest};
use crate::domain::ids::{RecordingId, TenantTag};
use crate::store::{ByteRange, MIN_PART_BYTES, ObjectName, PutOutcome, Store, StoreError, Tags, layout};

/// Objects listed at a time.
const PAGE: usize = 1000;

/// Why a recording could not be compacted.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The store; try again.
    #[error("store")]
    Store(#[from] StoreError),
    /// The manifest or a segment is not what it was; nothing was deleted.
    #[error("stored bytes")]
    Read(#[from] ReadError),
    /// There is no manifest yet.
    #[error("recording has no manifest")]
    NoManifest,
    /// The final object does not hold what was put into it; nothing was deleted.
    #[error("final object differs from what was put into it")]
    Differs,
}

/// Makes the final object of a recording whose manifest is stored, and deletes what it replaces.
///
/// Memory: one segment and one part of 8 MiB.
///
/// # Errors
/// [`CompactError`].
pub async fn compact(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
    tags: &Tags,
) -> Result<(), CompactError> {
    let name = layout::final_object(tenant, recording);
    let manifests = store.list_after(&layout::manifests_prefix(tenant, recording), None, PAGE).await?;
    let Some(newest) = manifests.last() else {
        return match store.head(&name).await {
            // Done before, but for the answer.
            Ok(_) => delete_parts(store, tenant, recording).await,
            Err(StoreError::NotFound) => Err(CompactError::NoManifest),
            Err(error) => Err(error.into()),
        };
    };
    let manifest = store.get(&newest.name, None).await?.bytes;
    let rows = Manifest::rows_without_key(&manifest)?;
    let (digest, length) = write_final(store, &name, tenant, recording, &rows, &manifest, tags).await?;
    if read_back(store, &name, length).await? != digest {
        return Err(CompactError::Differs);
    }
    delete_parts(store, tenant, recording).await
}

/// Writes the object; answers its digest and length.
async fn write_final(
    store: &dyn Store,
    name: &ObjectName,
    tenant: TenantTag,
    recording: RecordingId,
    rows: &[Row],
    manifest: &Bytes,
    tags: &Tags,
) -> Result<([u8; 32], u64), CompactError> {
    let mut parts =
        Parts { store, name, tags, upload: None, part: BytesMut::new(), hash: Sha256::new(), length: 0 };
    for (number, row) in rows.iter().enumerate() {
        let segment = store.get(&layout::segment(tenant, recording, row.writer, row.seq), None).await;
        let segment = match segment {
            // Deleted by an earlier run that had already written the final object.
            Err(StoreError::NotFound) => return finished_before(store, name).await,
            segment => segment?.bytes,
        };
        check_digest(u32::try_from(number).unwrap_or(u32::MAX), row, &segment)?;
        parts.push(&segment).await?;
    }
    let manifest_offset = parts.length;
    parts.push(manifest).await?;
    let manifest_len = u32::try_from(manifest.len()).map_err(|_| ReadError::LimitExceeded("manifest"))?;
    let segments = u32::try_from(rows.len()).map_err(|_| ReadError::LimitExceeded("rows"))?;
    parts.push(&Tail { manifest_offset, manifest_len, segments }.encode()).await?;
    parts.complete().await
}

/// An earlier run got as far as deleting: its final object is the one.
async fn finished_before(store: &dyn Store, name: &ObjectName) -> Result<([u8; 32], u64), CompactError> {
    let tail = store.get(name, Some(ByteRange::Suffix(TAIL_BYTES as u64))).await?;
    Tail::parse(&tail.bytes, tail.total_size)?;
    let digest = read_back(store, name, tail.total_size).await?;
    Ok((digest, tail.total_size))
}

async fn read_back(store: &dyn Store, name: &ObjectName, length: u64) -> Result<[u8; 32], CompactError> {
    let mut hash = Sha256::new();
    let mut position = 0;
    while position < length {
        let end = length.min(position + MIN_PART_BYTES as u64);
        let fetched = store.get(name, Some(ByteRange::Span(position..end))).await?;
        if fetched.total_size != length || fetched.bytes.len() as u64 != end - position {
            return Err(CompactError::Differs);
        }
        hash.update(&fetched.bytes);
        position = end;
    }
    Ok(hash.finalize().into())
}

async fn delete_parts(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
) -> Result<(), CompactError> {
    for prefix in [layout::segments_prefix(tenant, recording), layout::manifests_prefix(tenant, recording)] {
        loop {
            let page = store.list_after(&prefix, None, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for object in page {
                store.delete(&object.name).await?;
            }
        }
    }
    Ok(())
}

/// Collects bytes into parts of 8 MiB; a small object goes up in one put.
struct Parts<'a> {
    store: &'a dyn Store,
    name: &'a ObjectName,
    tags: &'a Tags,
    upload: Option<Box<dyn crate::store::Upload>>,
    part: BytesMut,
    hash: Sha256,
    length: u64,
}

impl Parts<'_> {
    async fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.part.extend_from_slice(bytes);
        while self.part.len() >= MIN_PART_BYTES {
            let part = self.part.split_to(MIN_PART_BYTES).freeze();
            let upload = match &mut self.upload {
                Some(upload) => upload,
                none => none.insert(self.store.begin_upload(self.name, self.tags).await?),
            };
            upload.put_part(part).await?;
        }
        Ok(())
    }

    async fn complete(mut self) -> Result<([u8; 32], u64), CompactError> {
        let rest = self.part.split().freeze();
        let outcome = match &mut self.upload {
            None => self.store.put_new(self.name, rest, self.tags).await?,
            Some(upload) => {
                if !rest.is_empty() {
                    upload.put_part(rest).await?;
                }
                upload.complete().await?
            }
        };
        if outcome == PutOutcome::AlreadyExists {
            tracing::info!(object = %self.name, "final object was there; it is compared");
        }
        Ok((self.hash.finalize().into(), self.length))
    }
}
