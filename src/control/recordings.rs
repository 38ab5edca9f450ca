//! Finds and opens stored recordings: finished ones through their manifest, running ones through their segments.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::cmr::{
    EndState, Expected, Manifest, ReadError, Row, RowSpan, TAIL_BYTES, Tail, open_row, sha256,
};
use crate::domain::ids::{RecordingId, TenantId, WriterId, first_16};
use crate::domain::playback::timeline::{Canvas, Timeline};
use crate::domain::recording::{BadRecord, RecordingEnd, RecordingMetadata, from_cbor};
use crate::domain::recovery::{Rebuild, RebuildError};
use crate::keys::{KeyError, KeyService, OpenedKey};
use crate::store::{ByteRange, ObjectName, Store, StoreError, layout};

/// The first read of a final object: tail and manifest of calls up to about an hour and a half.
const SUFFIX_BYTES: u64 = 64 * 1024;
/// Objects listed at a time.
const PAGE: usize = 1000;

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// There is none of that id for this tenant.
    #[error("no such recording")]
    NotFound,
    /// The store or the key service does not answer; try again.
    #[error("recording is not available now")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Stored bytes are not what was stored: damage or tampering.
    #[error("stored recording is damaged")]
    Integrity(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for RecordingError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::NotFound,
            StoreError::OutOfRange { .. } | StoreError::Corrupt { .. } => Self::Integrity(Box::new(error)),
            StoreError::Denied { .. }
            | StoreError::Busy { .. }
            | StoreError::Full { .. }
            | StoreError::Refused { .. }
            | StoreError::Unsupported { .. }
            | StoreError::Io { .. } => Self::Unavailable(Box::new(error)),
        }
    }
}

impl From<KeyError> for RecordingError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::NoEnvelope => Self::NotFound,
            KeyError::BadEnvelope(_) => Self::Integrity(Box::new(error)),
            KeyError::NoKek | KeyError::Entropy | KeyError::Store(_) | KeyError::TimedOut => {
                Self::Unavailable(Box::new(error))
            }
        }
    }
}

impl From<ReadError> for RecordingError {
    fn from(error: ReadError) -> Self {
        Self::Integrity(Box::new(error))
    }
}

impl From<RebuildError> for RecordingError {
    fn from(error: RebuildError) -> Self {
        Self::Integrity(Box::new(error))
    }
}

impl From<BadRecord> for RecordingError {
    fn from(error: BadRecord) -> Self {
        Self::Integrity(Box::new(error))
    }
}

/// A recording that can be read: its rows are known and its key is open.
pub struct StoredRecording {
    store: Arc<dyn Store>,
    key: OpenedKey,
    timeline: Timeline,
    finished: Option<Finished>,
    is_final: bool,
    version: [u8; 16],
}

/// What a manifest says.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub state: EndState,
    /// What was known at its beginning.
    pub metadata: RecordingMetadata,
    /// What is known of its end.
    pub end: RecordingEnd,
    /// SHA-256 of the manifest: the recording root.
    pub root: [u8; 32],
}

impl StoredRecording {
    /// Opens a tenant's recording.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub async fn open(
        store: Arc<dyn Store>,
        keys: &KeyService,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<Self, RecordingError> {
        let key = keys.open(tenant, recording).await?;
        if let Some(manifest) = final_manifest(&*store, &key.ids).await? {
            return Self::finished(store, key, &manifest, true);
        }
        let prefix = layout::manifests_prefix(key.ids.tenant, recording);
        if let Some(newest) = store.list_after(&prefix, None, PAGE).await?.last() {
            return match store.get(&newest.name, None).await {
                Ok(manifest) => Self::finished(store, key, &manifest.bytes, false),
                // Compacted between the two reads.
                Err(StoreError::NotFound) => {
                    let manifest =
                        final_manifest(&*store, &key.ids).await?.ok_or(RecordingError::NotFound)?;
                    Self::finished(store, key, &manifest, true)
                }
                Err(error) => Err(error.into()),
            };
        }
        Self::running(store, key).await
    }

    fn finished(
        store: Arc<dyn Store>,
        key: OpenedKey,
        bytes: &[u8],
        is_final: bool,
    ) -> Result<Self, RecordingError> {
        let manifest = Manifest::open(bytes, &key.dek, &key.ids)?;
        let finished = Finished {
            state: manifest.state,
            metadata: from_cbor(&manifest.metadata)?,
            end: from_cbor(&manifest.end)?,
            root: sha256(bytes),
        };
        Ok(Self {
            store,
            key,
            timeline: Timeline::new(&manifest.rows, &manifest.spans),
            finished: Some(finished),
            is_final,
            version: first_16(&manifest.commitment),
        })
    }

    /// A call that goes on, or one whose writer died: what is stored of it so far.
    async fn running(store: Arc<dyn Store>, key: OpenedKey) -> Result<Self, RecordingError> {
        let mut rebuild = Rebuild::new(&key.dek, key.ids);
        for (writer, seq, name) in stored_segments(&*store, &key.ids).await? {
            rebuild.add(writer, seq, &store.get(&name, None).await?.bytes)?;
        }
        let (rows, spans): (Vec<Row>, Vec<RowSpan>) = rebuild.rows_so_far()?.into_iter().unzip();
        let last = rows.last().ok_or(RecordingError::NotFound)?;
        let version = first_16(&last.sha256);
        let timeline = Timeline::new(&rows, &spans);
        Ok(Self { store, key, timeline, finished: None, is_final: false, version })
    }

    /// Returns where the samples are.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Returns what the manifest says; `None` while the call goes on.
    pub fn manifest(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }

    /// Returns 16 bytes that change whenever the recording does: the playback ETag.
    pub fn version(&self) -> [u8; 16] {
        self.version
    }

    /// Returns tenant, recording and key.
    pub fn ids(&self) -> &Expected {
        &self.key.ids
    }

    /// Returns the key and its ids, for verification.
    pub fn key(&self) -> &OpenedKey {
        &self.key
    }

    /// Whether there is a final object.
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    /// Reads the sealed bytes of one row.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub async fn segment(&self, index: usize) -> Result<Bytes, RecordingError> {
        let row = self.timeline.rows().get(index).ok_or(RecordingError::NotFound)?;
        let ids = &self.key.ids;
        if !self.is_final {
            let name = layout::segment(ids.tenant, ids.recording, row.row.writer, row.row.seq);
            match self.store.get(&name, None).await {
                // Compacted meanwhile: the same bytes lie in the final object.
                Err(StoreError::NotFound) => {}
                fetched => return Ok(fetched?.bytes),
            }
        }
        let span = row.offset..row.offset + u64::from(row.row.byte_len);
        let name = layout::final_object(ids.tenant, ids.recording);
        Ok(self.store.get(&name, Some(ByteRange::Span(span))).await?.bytes)
    }

    /// Opens the sealed bytes of one row and paints its audio.
    ///
    /// # Errors
    /// [`RecordingError::Integrity`]; what was painted before must not be used.
    pub fn paint(&self, index: usize, segment: &[u8], canvas: &mut Canvas) -> Result<(), RecordingError> {
        let row = self.timeline.rows().get(index).ok_or(RecordingError::NotFound)?;
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        open_row(number, &row.row, segment, &self.key.dek, &self.key.ids, &mut |frame| {
            canvas.paint_frame(frame);
        })?;
        Ok(())
    }
}

/// Reads the manifest of the final object; `None` if there is no final object.
async fn final_manifest(store: &dyn Store, ids: &Expected) -> Result<Option<Bytes>, RecordingError> {
    let name = layout::final_object(ids.tenant, ids.recording);
    let suffix = match store.get(&name, Some(ByteRange::Suffix(SUFFIX_BYTES))).await {
        Err(StoreError::NotFound) => return Ok(None),
        suffix => suffix?,
    };
    let tail = Tail::parse(&suffix.bytes, suffix.total_size)?;
    let length = u64::from(tail.manifest_len);
    let kept = suffix.bytes.len() as u64;
    let manifest = if length + TAIL_BYTES as u64 <= kept {
        let start = usize::try_from(kept - TAIL_BYTES as u64 - length).unwrap_or(usize::MAX);
        suffix.bytes.slice(start..suffix.bytes.len() - TAIL_BYTES)
    } else {
        let span = tail.manifest_offset..tail.manifest_offset + length;
        store.get(&name, Some(ByteRange::Span(span))).await?.bytes
    };
    let rows = Manifest::rows_without_key(&manifest)?;
    let segment_bytes: u64 = rows.iter().map(|row| u64::from(row.byte_len)).sum();
    if segment_bytes != tail.manifest_offset || usize::try_from(tail.segments) != Ok(rows.len()) {
        return Err(ReadError::TrailingData.into());
    }
    Ok(Some(manifest))
}

/// Lists the stored segments of a recording.
///
/// # Errors
/// [`RecordingError`].
pub async fn stored_segments(
    store: &dyn Store,
    ids: &Expected,
) -> Result<Vec<(WriterId, u32, ObjectName)>, RecordingError> {
    let prefix = layout::segments_prefix(ids.tenant, ids.recording);
    let (mut segments, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_after(&prefix, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(segments) };
        after = Some(last.name.clone());
        for object in page {
            let file = object.name.as_str().strip_prefix(&prefix).and_then(|file| file.strip_suffix(".cmr"));
            let Some((writer, seq)) = file.and_then(|file| file.split_once('-')) else { continue };
            if let (Ok(writer), Ok(seq)) = (writer.parse(), seq.parse()) {
                segments.push((writer, seq, object.name));
            }
        }
    }
}

/// Lists a tenant's recordings that have objects in the store, oldest first, up to `limit` after `after`.
///
/// # Errors
/// [`RecordingError`].
pub async fn list(
    store: &dyn Store,
    tenant: &TenantId,
    after: Option<RecordingId>,
    limit: usize,
) -> Result<Vec<RecordingId>, RecordingError> {
    let prefix = layout::recordings_prefix(tenant.tag());
    // After every object of a recording comes no name before this one.
    let last_of = |recording| ObjectName::new(format!("{prefix}{recording}/z")).ok();
    let mut after = after.and_then(last_of);
    let mut recordings = Vec::new();
    while recordings.len() < limit {
        let page = store.list_after(&prefix, after.as_ref(), 1).await?;
        let Some(recording) = page.first().and_then(|object| layout::recording_of(&object.name)) else {
            break;
        };
        recordings.push(recording);
        after = last_of(recording);
    }
    Ok(recordings)
}
