//! Compaction: segments, manifest and tail become one final object, without any key (`docs/FORMAT.md` section 8).
//!
//! Nothing is deleted before the final object was read back and has the digest of what went into it. Idempotent: an
//! interrupted compaction is simply run again. A long recording takes thousands of requests, so one that fails is made
//! again by itself a few times; starting over for each would never end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::domain::cmr::{Manifest, ReadError, Row, TAIL_BYTES, Tail, check_digest};
use crate::domain::ids::{RecordingId, TenantTag};
use crate::observe::metrics;
use crate::store::{
    ByteRange, Fetched, MIN_PART_BYTES, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, Tags, Upload,
    layout,
};

use super::put::random_u32;
use super::retry::{Retry, RetryPolicy};

/// Objects listed at a time.
const PAGE: usize = 1000;
/// How often one request is made before the compaction counts as interrupted.
const TRIES: u32 = 5;

/// Why a recording could not be compacted.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The store; try again.
    #[error("store")]
    Store(#[from] StoreError),
    /// The manifest or a segment is not what it was; nothing was deleted.
    #[error("stored bytes")]
    Read(#[from] ReadError),
    /// A segment that the manifest names is in no object.
    #[error("segment {0} is missing")]
    Missing(ObjectName),
    /// There is no manifest yet.
    #[error("recording has no manifest")]
    NoManifest,
    /// The final object does not hold what was put into it; nothing was deleted.
    #[error("final object differs from what was put into it")]
    Differs,
}

impl CompactError {
    /// Whether running it again may help. If not, bytes in the store are wrong, and stay there for a closer look.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Read(_) | Self::Missing(_) | Self::NoManifest | Self::Differs => false,
        }
    }
}

/// Makes the final object of a recording whose manifest is stored, and deletes what it replaces.
///
/// Memory: one segment and one part of 8 MiB. Each request may take `policy.try_timeout` and is made at most five times.
///
/// # Errors
/// [`CompactError`].
pub async fn compact(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
    tags: &Tags,
    policy: RetryPolicy,
) -> Result<(), CompactError> {
    Compaction { requests: Requests { store, policy }, tenant, recording, tags }.run().await
}

/// One recording on its way to one object.
struct Compaction<'a> {
    requests: Requests<'a>,
    tenant: TenantTag,
    recording: RecordingId,
    tags: &'a Tags,
}

impl Compaction<'_> {
    async fn run(&self) -> Result<(), CompactError> {
        let (requests, name) = (self.requests, layout::final_object(self.tenant, self.recording));
        let manifests = requests.list(&layout::manifests_prefix(self.tenant, self.recording)).await?;
        let Some(newest) = manifests.last() else {
            return match requests.head(&name).await {
                // Done before, but for the answer.
                Ok(_) => self.delete_parts().await,
                Err(StoreError::NotFound) => Err(CompactError::NoManifest),
                Err(error) => Err(error.into()),
            };
        };
        let manifest = requests.get(&newest.name, None).await?.bytes;
        let rows = Manifest::rows_without_key(&manifest)?;
        let mut parts = Parts {
            requests,
            name: &name,
            tags: self.tags,
            upload: None,
            part: BytesMut::new(),
            hash: Sha256::new(),
            length: 0,
        };
        let written = self.write_final(&mut parts, &rows, &manifest).await;
        if written.is_err() {
            parts.abort().await;
        }
        match written? {
            Some((digest, length)) if requests.read_back(&name, length).await? != digest => {
                Err(CompactError::Differs)
            }
            Some(_) | None => self.delete_parts().await,
        }
    }

    /// Writes the object; answers its digest and length. `None`: an earlier run wrote it, and it is the right one.
    async fn write_final(
        &self,
        parts: &mut Parts<'_>,
        rows: &[Row],
        manifest: &Bytes,
    ) -> Result<Option<([u8; 32], u64)>, CompactError> {
        for (number, row) in rows.iter().enumerate() {
            let name = layout::segment(self.tenant, self.recording, row.writer, row.seq);
            let segment = match self.requests.get(&name, None).await {
                // Deleted by an earlier run that had already written the final object.
                Err(StoreError::NotFound) => {
                    self.check_final(parts.name, rows, manifest, name).await?;
                    return Ok(None);
                }
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
        parts.complete().await.map(Some)
    }

    /// Checks that the object of an earlier run, which got as far as deleting, holds every row and the manifest.
    async fn check_final(
        &self,
        name: &ObjectName,
        rows: &[Row],
        manifest: &Bytes,
        missing: ObjectName,
    ) -> Result<(), CompactError> {
        let requests = self.requests;
        let tail = match requests.get(name, Some(ByteRange::Suffix(TAIL_BYTES as u64))).await {
            Err(StoreError::NotFound) => return Err(CompactError::Missing(missing)),
            tail => tail?,
        };
        Tail::parse(&tail.bytes, tail.total_size)?;
        let mut position = 0;
        for (number, row) in rows.iter().enumerate() {
            let segment = requests.span(name, position, u64::from(row.byte_len)).await?;
            check_digest(u32::try_from(number).unwrap_or(u32::MAX), row, &segment)?;
            position += u64::from(row.byte_len);
        }
        match requests.span(name, position, manifest.len() as u64).await? == *manifest {
            true => Ok(()),
            false => Err(CompactError::Differs),
        }
    }

    async fn delete_parts(&self) -> Result<(), CompactError> {
        let (tenant, recording) = (self.tenant, self.recording);
        for prefix in
            [layout::segments_prefix(tenant, recording), layout::manifests_prefix(tenant, recording)]
        {
            loop {
                let page = self.requests.list(&prefix).await?;
                if page.is_empty() {
                    break;
                }
                for object in page {
                    self.requests.delete(&object.name).await?;
                }
            }
        }
        Ok(())
    }
}

/// The store, asked with patience: an answer that does not come in time, or that may be better the next time, is asked
/// for again.
#[derive(Clone, Copy)]
struct Requests<'a> {
    store: &'a dyn Store,
    policy: RetryPolicy,
}

impl Requests<'_> {
    async fn patiently<T, F>(&self, mut request: impl FnMut() -> F) -> Result<T, StoreError>
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

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.patiently(|| self.store.get(name, range.clone())).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.patiently(|| self.store.head(name)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        self.patiently(|| self.store.list_after(prefix, None, PAGE)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.patiently(|| self.store.delete(name)).await
    }

    /// A name that is taken may be taken by an earlier try, so its object is always read back.
    async fn put(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.patiently(|| self.store.put_new(name, body.clone(), tags)).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        self.patiently(|| self.store.begin_upload(name, tags)).await
    }

    async fn put_part(&self, upload: &mut dyn Upload, part: &Bytes) -> Result<(), StoreError> {
        let mut patience = Patience::new(self.policy);
        loop {
            let answer = patience.limit(upload.put_part(part.clone())).await;
            if let Some(answer) = patience.judge(answer).await {
                return answer;
            }
        }
    }

    async fn complete(&self, upload: &mut dyn Upload) -> Result<PutOutcome, StoreError> {
        let mut patience = Patience::new(self.policy);
        loop {
            let answer = patience.limit(upload.complete()).await;
            if let Some(answer) = patience.judge(answer).await {
                return answer;
            }
        }
    }

    /// Reads `length` bytes from `position` on; an object that is shorter is another one.
    async fn span(&self, name: &ObjectName, position: u64, length: u64) -> Result<Bytes, CompactError> {
        match self.get(name, Some(ByteRange::Span(position..position + length))).await {
            Err(StoreError::OutOfRange { .. }) => Err(CompactError::Differs),
            fetched => Ok(fetched?.bytes),
        }
    }

    async fn read_back(&self, name: &ObjectName, length: u64) -> Result<[u8; 32], CompactError> {
        let mut hash = Sha256::new();
        let mut position = 0;
        while position < length {
            let end = length.min(position + MIN_PART_BYTES as u64);
            let fetched = match self.get(name, Some(ByteRange::Span(position..end))).await {
                Err(StoreError::OutOfRange { .. }) => return Err(CompactError::Differs),
                fetched => fetched?,
            };
            if fetched.total_size != length || fetched.bytes.len() as u64 != end - position {
                return Err(CompactError::Differs);
            }
            hash.update(&fetched.bytes);
            position = end;
        }
        Ok(hash.finalize().into())
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

/// Collects bytes into parts of 8 MiB; a small object goes up in one put.
struct Parts<'a> {
    requests: Requests<'a>,
    name: &'a ObjectName,
    tags: &'a Tags,
    upload: Option<Box<dyn Upload>>,
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
                none => none.insert(self.requests.begin_upload(self.name, self.tags).await?),
            };
            self.requests.put_part(&mut **upload, &part).await?;
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<([u8; 32], u64), CompactError> {
        let rest = self.part.split().freeze();
        let outcome = match &mut self.upload {
            None => self.requests.put(self.name, rest, self.tags).await?,
            Some(upload) => {
                if !rest.is_empty() {
                    self.requests.put_part(&mut **upload, &rest).await?;
                }
                self.requests.complete(&mut **upload).await?
            }
        };
        if outcome == PutOutcome::AlreadyExists {
            tracing::info!(object = %self.name, "final object was there; it is compared");
        }
        Ok((std::mem::take(&mut self.hash).finalize().into(), self.length))
    }

    /// Lets the store free the parts at once; if it does not, its own rules for unfinished uploads will.
    async fn abort(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        let aborted = Patience::new(self.requests.policy).limit(upload.abort()).await;
        if let Err(error) = aborted {
            tracing::debug!(object = %self.name, error = &error as &dyn std::error::Error, "upload stays unfinished");
        }
    }
}
