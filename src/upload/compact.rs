//! Compaction: segments, manifest and tail become one final object, without any key (`docs/FORMAT.md` section 8).
//!
//! Nothing is deleted but what the newest final object holds byte for byte, after it was read back. Idempotent: an
//! interrupted compaction is simply run again. Any number of processes may compact the same recording.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::domain::cmr::{Manifest, ReadError, Row, TAIL_BYTES, Tail, check_digest};
use crate::domain::ids::{RecordingId, TenantTag};
use crate::store::{MIN_PART_BYTES, ObjectName, PutOutcome, Store, StoreError, Tags, Upload, layout};

use super::objects::{FinalObject, RecordingObjects, SegmentId};
use super::read_back::read_back;
use super::requests::Requests;
use super::retry::RetryPolicy;
use super::tags::{locked_until, newest_order, tag_order};

/// Segments asked for at the same time: 4 of 90 KB are little beside the part that they go into.
const READ_AHEAD: usize = 4;

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
    /// Another process has finished the recording from another manifest; nothing was deleted.
    #[error("recording was finished from another manifest")]
    Adopted,
    /// The final object does not hold what was put into it; nothing was deleted.
    #[error("final object differs from what was put into it")]
    Differs,
}

impl CompactError {
    /// Whether running it again may help. If not, bytes in the store are wrong, and stay there for a closer look.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Read(_) | Self::Missing(_) | Self::NoManifest | Self::Adopted | Self::Differs => false,
        }
    }
}

/// Makes the final object of a recording whose manifest is stored, and deletes what it replaces.
///
/// Memory: a part of 5 MiB, or all of a shorter recording, and the segments that are read ahead. Each request may take
/// `policy.try_timeout` and is made at most five times.
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
    let objects = RecordingObjects { requests: Requests::new(store, policy), tenant, recording };
    let written = match write_final(&objects, tags).await {
        // Done before, but for the answer.
        Err(CompactError::NoManifest) => match objects.finals().await?.last_key_value() {
            Some((revision, newest)) => {
                WrittenFinal::found(objects.read_final(*revision, &newest.name).await?)
            }
            None => return Err(CompactError::NoManifest),
        },
        written => written?,
    };
    clean(&objects, &written, &[]).await?;
    // Whoever held the recording meanwhile, or gave it a later date, could not tag an object that did not exist yet.
    let requests = objects.requests;
    match requests.patiently(|| newest_order(store, tenant, recording)).await? {
        Some((_, order)) if order.changes_tags() => {
            Ok(requests.patiently(|| tag_order(store, tenant, recording, &order)).await?)
        }
        Some(_) | None => Ok(()),
    }
}

/// A final object that is complete in the store, and what is known about it.
#[derive(Debug)]
pub struct WrittenFinal {
    /// The object.
    pub object: FinalObject,
    /// The manifest object that it was made from, if this run has read it.
    manifest: Option<ObjectName>,
    /// Segments that were read by this run and are in it.
    copied: BTreeSet<SegmentId>,
    /// Whether all its rows were compared with their digests by this run.
    is_verified: bool,
}

impl WrittenFinal {
    /// Knows nothing of an object but what its manifest says.
    pub fn found(object: FinalObject) -> Self {
        Self { object, manifest: None, copied: BTreeSet::new(), is_verified: false }
    }
}

/// Writes the final object of the newest manifest, reads it back, and has the store lock it where that is wanted; deletes
/// nothing.
///
/// # Errors
/// [`CompactError`].
pub async fn write_final(objects: &RecordingObjects<'_>, tags: &Tags) -> Result<WrittenFinal, CompactError> {
    let RecordingObjects { requests, tenant, recording } = *objects;
    let (revision, newest) = objects.manifests().await?.pop_last().ok_or(CompactError::NoManifest)?;
    let manifest = requests.get(&newest.name, None).await?.bytes;
    if Manifest::revision_without_key(&manifest)? != revision {
        return Err(ReadError::SequenceMismatch(0).into());
    }
    let name = layout::final_revision(tenant, recording, revision);
    let mut writing = Writing {
        objects: *objects,
        tags,
        rows: Manifest::rows_without_key(&manifest)?,
        written: WrittenFinal {
            object: FinalObject::new(revision, name, manifest)?,
            manifest: Some(newest.name),
            copied: BTreeSet::new(),
            is_verified: true,
        },
        older: None,
    };
    writing.run().await?;
    if objects.requests.store().profile().object_lock
        && let Some(until) = locked_until(tags)
    {
        requests.lock(&writing.written.object.name, until).await?;
    }
    Ok(writing.written)
}

/// One final object on its way.
struct Writing<'a> {
    objects: RecordingObjects<'a>,
    tags: &'a Tags,
    rows: Vec<Row>,
    written: WrittenFinal,
    /// Final objects of other revisions, once a segment was found to be nowhere else.
    older: Option<Vec<FinalObject>>,
}

impl Writing<'_> {
    async fn run(&mut self) -> Result<(), CompactError> {
        if self.is_there().await? {
            return self.check_final().await;
        }
        let (requests, name) = (self.objects.requests, self.written.object.name.clone());
        let mut parts = Parts {
            requests,
            name: &name,
            tags: self.tags,
            upload: None,
            part: Vec::new(),
            length: 0,
            expected: self.expected_length(),
        };
        let outcome = self.write(&mut parts).await;
        if outcome.is_err() {
            parts.abort().await;
        }
        match outcome? {
            Some(tail) => {
                let manifest = &self.written.object.manifest;
                read_back(requests, &name, &self.rows, [manifest, &tail]).await
            }
            None => Ok(()),
        }
    }

    fn expected_length(&self) -> u64 {
        let rows: u64 = self.rows.iter().map(|row| u64::from(row.byte_len)).sum();
        rows + (self.written.object.manifest.len() + TAIL_BYTES) as u64
    }

    /// Whether an earlier run, or another process, has written the object of this name.
    async fn is_there(&self) -> Result<bool, CompactError> {
        match self.objects.finals().await?.last_key_value() {
            Some((newest, _)) if *newest > self.written.object.revision => Err(CompactError::Adopted),
            Some((newest, _)) => Ok(*newest == self.written.object.revision),
            None => Ok(false),
        }
    }

    /// Writes the object; answers its end. `None`: an earlier run wrote it, and it is the right one.
    async fn write(&mut self, parts: &mut Parts<'_>) -> Result<Option<[u8; TAIL_BYTES]>, CompactError> {
        let RecordingObjects { requests, tenant, recording } = self.objects;
        let rows = self.rows.clone();
        // Some are asked for ahead: one after the other, an hour of a call would take a minute in a distant store.
        let mut segments = stream::iter(rows.clone())
            .map(|row: Row| {
                let name = layout::segment(tenant, recording, row.writer, row.seq);
                async move { (requests.get(&name, None).await, name) }
            })
            .buffered(READ_AHEAD);
        for (number, row) in (0..).zip(&rows) {
            let Some((fetched, name)) = segments.next().await else { break };
            let segment = match fetched {
                // Deleted by whoever has written a final object with it.
                Err(StoreError::NotFound) if self.is_there().await? => {
                    self.check_final().await?;
                    return Ok(None);
                }
                Err(StoreError::NotFound) => self.row_of_older(row, name).await?,
                segment => {
                    let segment = segment?.bytes;
                    check_digest(number, row, &segment)?;
                    self.written.copied.insert((row.writer, row.seq));
                    segment
                }
            };
            parts.push(&segment).await?;
        }
        let manifest = self.written.object.manifest.clone();
        let manifest_offset = parts.length;
        parts.push(&manifest).await?;
        let manifest_len = u32::try_from(manifest.len()).map_err(|_| ReadError::LimitExceeded("manifest"))?;
        let segments = u32::try_from(self.rows.len()).map_err(|_| ReadError::LimitExceeded("rows"))?;
        let tail = Tail { manifest_offset, manifest_len, segments }.encode();
        parts.push(&tail).await?;
        parts.complete().await?;
        Ok(Some(tail))
    }

    /// Reads a row from the final object of another revision.
    async fn row_of_older(&mut self, row: &Row, missing: ObjectName) -> Result<Bytes, CompactError> {
        let objects = self.objects;
        if self.older.is_none() {
            let mut older = Vec::new();
            for (revision, info) in objects.finals().await? {
                older.push(objects.read_final(revision, &info.name).await?);
            }
            self.older = Some(older);
        }
        let mut older = self.older.iter().flatten().rev();
        let found = older.find_map(|object| {
            let (listed, position) = object.rows.get(&(row.writer, row.seq))?;
            (listed.sha256 == row.sha256 && listed.byte_len == row.byte_len).then_some((object, *position))
        });
        let (object, position) = found.ok_or(CompactError::Missing(missing))?;
        objects.row(&object.name, row, position).await
    }

    /// Checks that the object of this name holds every row and the manifest.
    async fn check_final(&self) -> Result<(), CompactError> {
        let object = &self.written.object;
        let there = match self.objects.read_final(object.revision, &object.name).await {
            Err(CompactError::Read(_)) => return Err(CompactError::Differs),
            there => there?,
        };
        if there.manifest != object.manifest {
            return Err(CompactError::Adopted);
        }
        for (row, position) in there.rows.values() {
            match self.objects.row(&object.name, row, *position).await {
                Err(CompactError::Read(_)) => return Err(CompactError::Differs),
                checked => drop(checked?),
            }
        }
        Ok(())
    }
}

/// Deletes what a final object replaces: segments and older final objects whose bytes it holds, its own manifest object,
/// and `manifests`, which the caller has judged. Answers the segments that stay although their names are in it: their
/// bytes are others.
///
/// # Errors
/// [`CompactError::Adopted`] when it is not the newest one: then it may be deleted itself, and nothing rests on it.
pub async fn clean(
    objects: &RecordingObjects<'_>,
    written: &WrittenFinal,
    manifests: &[ObjectName],
) -> Result<Vec<ObjectName>, CompactError> {
    let (requests, kept) = (objects.requests, &written.object);
    let finals = objects.finals().await?;
    if finals.last_key_value().map(|(newest, _)| *newest) != Some(kept.revision) {
        return Err(CompactError::Adopted);
    }
    let (mut replaced, mut others) = (Vec::new(), Vec::new());
    for (id, info) in objects.segments().await? {
        let Some((row, position)) = kept.rows.get(&id) else { continue };
        if written.copied.contains(&id) || holds(objects, kept, row, *position, &info.name).await? {
            replaced.push(info.name);
        } else {
            others.push(info.name);
        }
    }
    replaced.extend(written.manifest.iter().chain(manifests).cloned());
    requests.delete_all(&replaced).await?;
    for (revision, info) in finals.range(..kept.revision) {
        let older = match objects.read_final(*revision, &info.name).await {
            Err(CompactError::Store(StoreError::NotFound)) => continue,
            older => older?,
        };
        if kept.lists_all(older.rows.values().map(|(row, _)| row)) {
            if !written.is_verified {
                verify_rows(objects, kept, &older).await?;
            }
            requests.delete(&info.name).await?;
        }
    }
    Ok(others)
}

/// Whether a row of a final object has the bytes of a segment, or goes on where that was cut.
async fn holds(
    objects: &RecordingObjects<'_>,
    kept: &FinalObject,
    row: &Row,
    position: u64,
    segment: &ObjectName,
) -> Result<bool, CompactError> {
    let segment = match objects.requests.get(segment, None).await {
        Err(StoreError::NotFound) => return Ok(true),
        fetched => fetched?.bytes,
    };
    Ok(objects.row(&kept.name, row, position).await?.starts_with(&segment))
}

/// Checks that `kept` has the bytes of every row of `older`.
async fn verify_rows(
    objects: &RecordingObjects<'_>,
    kept: &FinalObject,
    older: &FinalObject,
) -> Result<(), CompactError> {
    for id in older.rows.keys() {
        if let Some((row, position)) = kept.rows.get(id) {
            objects.row(&kept.name, row, *position).await?;
        }
    }
    Ok(())
}

/// Collects bytes into parts of 5 MiB, of which only one is there at a time; a small object goes up in one put.
struct Parts<'a> {
    requests: Requests<'a>,
    name: &'a ObjectName,
    tags: &'a Tags,
    upload: Option<Box<dyn Upload>>,
    part: Vec<u8>,
    length: u64,
    /// What the length will be.
    expected: u64,
}

impl Parts<'_> {
    async fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.length += bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(MIN_PART_BYTES - self.part.len()));
            if self.part.capacity() == 0 {
                // At once to its full size: growing by doubling would take twice the memory.
                let missing = self.expected.saturating_sub(self.length) + rest.len() as u64;
                self.part.reserve_exact(usize::try_from(missing).unwrap_or(usize::MAX).min(MIN_PART_BYTES));
            }
            self.part.extend_from_slice(now);
            rest = later;
            if self.part.len() == MIN_PART_BYTES {
                self.put_part().await?;
            }
        }
        Ok(())
    }

    async fn put_part(&mut self) -> Result<(), StoreError> {
        let part = Bytes::from(std::mem::take(&mut self.part));
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.requests.begin_upload(self.name, self.tags).await?),
        };
        self.requests.put_part(&mut **upload, &part).await
    }

    async fn complete(&mut self) -> Result<(), StoreError> {
        if self.upload.is_some() && !self.part.is_empty() {
            self.put_part().await?;
        }
        let outcome = match &mut self.upload {
            None => self.requests.put(self.name, std::mem::take(&mut self.part).into(), self.tags).await?,
            Some(upload) => self.requests.complete(&mut **upload).await?,
        };
        if outcome == PutOutcome::AlreadyExists {
            tracing::info!(object = %self.name, "final object was there; it is compared");
        }
        Ok(())
    }

    /// Lets the store free the parts at once; if it does not, its own rules for unfinished uploads will.
    async fn abort(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        if let Err(error) = self.requests.abort(&mut *upload).await {
            tracing::debug!(object = %self.name, error = &error as &dyn std::error::Error, "upload stays unfinished");
        }
    }
}
