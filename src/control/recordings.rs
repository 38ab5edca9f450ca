//! Finds and opens stored recordings: finished ones through their manifest, running ones through their segments.

use std::sync::{Arc, Mutex, Once, PoisonError};

use bytes::Bytes;

use crate::domain::audio::AudioFormat;
use crate::domain::cmr::{
    EndState, Expected, Manifest, ReadError, RecordingVerifier, Row, RowSpan, open_row, sha256,
};
use crate::domain::ids::{RecordingId, TenantId, WriterId, first_16};
use crate::domain::playback::timeline::{Canvas, Timeline};
use crate::domain::recording::{BadRecord, RecordingEnd, RecordingMetadata, from_cbor};
use crate::domain::recovery::{Rebuild, RebuildError};
use crate::domain::retention::Order;
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, OpenedKey};
use crate::observe::metrics;
use crate::store::{ByteRange, ObjectName, Store, StoreError, layout};
use crate::upload::{FinalObject, Listed, final_manifest};

/// How often a recording is looked at again because its objects were replaced while they were read.
const LOOKS: u32 = 4;
/// Objects listed at a time.
const PAGE: usize = 1000;
/// Whoever can write the store could fill the log.
static WARN_FORGED: Once = Once::new();

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
            | StoreError::Locked { .. }
            | StoreError::Io { .. } => Self::Unavailable(Box::new(error)),
        }
    }
}

impl From<KeyError> for RecordingError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::NoEnvelope => Self::NotFound,
            KeyError::BadEnvelope(_) => Self::Integrity(Box::new(error)),
            KeyError::NoKek
            | KeyError::ForeignKek
            | KeyError::WriteOnly
            | KeyError::Denied { .. }
            | KeyError::BadLogin(_)
            | KeyError::Throttled(_)
            | KeyError::Unavailable(_)
            | KeyError::TimedOut
            | KeyError::StillFailing(_)
            | KeyError::Entropy
            | KeyError::NotLocked(_)
            | KeyError::Store(_) => Self::Unavailable(Box::new(error)),
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
    spans: Vec<RowSpan>,
    format: AudioFormat,
    finished: Option<Finished>,
    /// The final object it was opened from.
    from_final: Option<ObjectName>,
    /// The final object that has taken the place of what it was opened from.
    replaced_by: Mutex<Option<Arc<FinalObject>>>,
    version: [u8; 16],
}

/// Where a manifest was found.
struct Found {
    bytes: Bytes,
    revision: u32,
    final_object: Option<ObjectName>,
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
    /// The manifest's revision: 0 unless segments came after it.
    pub revision: u32,
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
        let mut looks = 0;
        loop {
            looks += 1;
            match Self::look(&store, &key).await {
                // Compacted, or replaced by a later revision, between two reads.
                Err(RecordingError::NotFound) if looks < LOOKS => {}
                opened => return opened,
            }
        }
    }

    /// Opens a tenant's recording if it has a manifest; no segment is read.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub async fn open_finished(
        store: &Arc<dyn Store>,
        keys: &KeyService,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<Option<Self>, RecordingError> {
        let key = keys.open(tenant, recording).await?;
        let mut looks = 0;
        loop {
            looks += 1;
            match find_manifest(&**store, &key.ids).await {
                // As above.
                Err(RecordingError::NotFound) if looks < LOOKS => {}
                found => {
                    let opened = found?.map(|found| Self::finished(Arc::clone(store), key, found));
                    return opened.transpose();
                }
            }
        }
    }

    async fn look(store: &Arc<dyn Store>, key: &OpenedKey) -> Result<Self, RecordingError> {
        match find_manifest(&**store, &key.ids).await? {
            Some(found) => Self::finished(Arc::clone(store), key.clone(), found),
            None => Self::running(Arc::clone(store), key.clone()).await,
        }
    }

    fn finished(store: Arc<dyn Store>, key: OpenedKey, found: Found) -> Result<Self, RecordingError> {
        let manifest = Manifest::open(&found.bytes, &key.dek, &key.ids)?;
        if manifest.revision != found.revision {
            return Err(ReadError::SequenceMismatch(0).into());
        }
        let finished = Finished {
            state: manifest.state,
            metadata: from_cbor(&manifest.metadata)?,
            end: from_cbor(&manifest.end)?,
            root: sha256(&found.bytes),
            revision: manifest.revision,
        };
        Ok(Self {
            store,
            key,
            timeline: Timeline::new(&manifest.rows, &manifest.spans),
            spans: manifest.spans,
            format: finished.metadata.format,
            finished: Some(finished),
            from_final: found.final_object,
            replaced_by: Mutex::default(),
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
        let format = rebuild.metadata()?.format;
        let version = first_16(&last.sha256);
        let timeline = Timeline::new(&rows, &spans);
        let (finished, from_final, replaced_by) = (None, None, Mutex::default());
        Ok(Self { store, key, timeline, spans, format, finished, from_final, replaced_by, version })
    }

    /// Returns how its samples are written.
    pub fn format(&self) -> AudioFormat {
        self.format
    }

    /// Returns nothing but silence for a stretch of it, to be painted.
    pub fn canvas(&self, window: &std::ops::Range<u64>) -> Canvas {
        Canvas::new(self.format, self.timeline.origin(), window)
    }

    /// Returns where the samples are.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Returns where the audio of a row lies, by its time index or, while the call goes on, by its frames.
    pub fn span(&self, index: usize) -> Option<&RowSpan> {
        self.spans.get(index)
    }

    /// Returns what the manifest says; `None` while the call goes on.
    pub fn manifest(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }

    /// Returns its sealed date, or the later one of its order if that is proven; `None` while the call goes on. An order for an
    /// earlier date is not looked at.
    pub fn kept_until(&self, order: &Order) -> Option<UnixMillis> {
        let sealed = UnixMillis(self.manifest()?.end.expires_ms);
        let Some(kept) = order.kept_until else { return Some(sealed) };
        let Expected { tenant, recording, .. } = self.key.ids;
        let proven = kept.open(&self.key.dek.kept_until_key(), tenant, recording);
        if proven.is_none() {
            ::metrics::counter!(metrics::RETENTION_FAILURES, "reason" => "kept_until").increment(1);
            WARN_FORGED.call_once(|| {
                tracing::warn!(%recording, "an order has a later date that is not proven; it is ignored, and others are only counted");
            });
        }
        Some(proven.map_or(sealed, |at| at.max(sealed)))
    }

    /// Names how far it has come: `receiving` while the call goes on, then how it ended.
    pub fn state_name(&self) -> &'static str {
        self.manifest().map_or("receiving", |finished| finished.end.life.name())
    }

    /// Returns how long it is, silence included.
    #[expect(clippy::cast_precision_loss, reason = "samples of a call are far below 2^52")]
    pub fn seconds(&self) -> f64 {
        self.timeline.samples() as f64 / f64::from(self.format.rate())
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
        self.from_final.is_some()
    }

    /// Reads the sealed bytes of one row.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub async fn segment(&self, index: usize) -> Result<Bytes, RecordingError> {
        let row = self.timeline.rows().get(index).ok_or(RecordingError::NotFound)?;
        let (ids, row, offset) = (&self.key.ids, row.row, row.offset);
        let fetched = match (&self.from_final, self.replaced_by()) {
            (_, Some(_)) => Err(StoreError::NotFound),
            (Some(name), None) => self.store.get(name, Some(span(&row, offset))).await,
            (None, None) => {
                let name = layout::segment(ids.tenant, ids.recording, row.writer, row.seq);
                self.store.get(&name, None).await
            }
        };
        match fetched {
            // Compacted, or replaced by a later revision, since it was opened: the same bytes lie there.
            Err(StoreError::NotFound) => self.moved_segment(&row).await,
            fetched => Ok(fetched?.bytes),
        }
    }

    /// Reads a row from the final object that has replaced what this was opened from.
    async fn moved_segment(&self, row: &Row) -> Result<Bytes, RecordingError> {
        for look in 0..LOOKS {
            let known = self.replaced_by().filter(|_| look == 0);
            let object = match known {
                Some(object) => object,
                None => match newest_final(&*self.store, &self.key.ids).await {
                    // Replaced between the two reads.
                    Err(RecordingError::NotFound) => continue,
                    object => self.remember(object?.ok_or(RecordingError::NotFound)?),
                },
            };
            let (kept, offset) = object.rows.get(&(row.writer, row.seq)).ok_or(RecordingError::NotFound)?;
            match self.store.get(&object.name, Some(span(kept, *offset))).await {
                Err(StoreError::NotFound) => {}
                fetched => {
                    let bytes = fetched?.bytes;
                    // A later revision may have more of a segment that was cut short.
                    let length = bytes.len().min(usize::try_from(row.byte_len).unwrap_or(usize::MAX));
                    return Ok(bytes.slice(..length));
                }
            }
        }
        Err(RecordingError::NotFound)
    }

    fn replaced_by(&self) -> Option<Arc<FinalObject>> {
        self.replaced_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, object: FinalObject) -> Arc<FinalObject> {
        let object = Arc::new(object);
        *self.replaced_by.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&object));
        object
    }

    /// Checks every row, and that they follow each other. Answers how many frames there are.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub async fn verify(&self) -> Result<u64, RecordingError> {
        let mut verifier = RecordingVerifier::new(&self.key.dek, self.key.ids);
        let mut frames = 0;
        for (index, row) in self.timeline.rows().iter().enumerate() {
            let segment = self.segment(index).await?;
            let unlisted = || RecordingError::Integrity("row without a place in the time index".into());
            let listed = self.span(index).ok_or_else(unlisted)?;
            frames += u64::from(verifier.check_listed_row(&row.row, listed, &segment)?.frames);
        }
        Ok(frames)
    }

    /// Opens the sealed bytes of one row and paints its audio.
    ///
    /// # Errors
    /// [`RecordingError::Integrity`]; what was painted before must not be used.
    pub fn paint(&self, index: usize, segment: &[u8], canvas: &mut Canvas) -> Result<(), RecordingError> {
        let row = self.timeline.rows().get(index).ok_or(RecordingError::NotFound)?;
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let mut painted = Ok(());
        open_row(number, &row.row, segment, &self.key.dek, &self.key.ids, &mut |frame| {
            painted = painted.and_then(|()| canvas.paint_frame(frame));
        })?;
        Ok(painted?)
    }
}

/// Where a row lies in a final object.
fn span(row: &Row, offset: u64) -> ByteRange {
    ByteRange::Span(offset..offset + u64::from(row.byte_len))
}

/// Finds the manifest that counts; `None` while there is none. The first final object is tried first, because nearly
/// every recording has that one and no other.
async fn find_manifest(store: &dyn Store, ids: &Expected) -> Result<Option<Found>, RecordingError> {
    let first = layout::final_object(ids.tenant, ids.recording);
    match read_final(store, &first).await {
        Ok(bytes) => return Ok(Some(Found { bytes, revision: 0, final_object: Some(first) })),
        Err(RecordingError::NotFound) => {}
        Err(error) => return Err(error),
    }
    if let Some(newest) = newest_final(store, ids).await? {
        let FinalObject { revision, name, manifest, .. } = newest;
        return Ok(Some(Found { bytes: manifest, revision, final_object: Some(name) }));
    }
    let prefix = layout::manifests_prefix(ids.tenant, ids.recording);
    let mut manifests = Listed::new(store.list_after(&prefix, None, PAGE).await?).manifests;
    let Some((revision, newest)) = manifests.pop_last() else { return Ok(None) };
    let bytes = store.get(&newest.name, None).await?.bytes;
    Ok(Some(Found { bytes, revision, final_object: None }))
}

/// Finds the newest final object.
async fn newest_final(store: &dyn Store, ids: &Expected) -> Result<Option<FinalObject>, RecordingError> {
    let prefix = layout::finals_prefix(ids.tenant, ids.recording);
    let mut finals = Listed::new(store.list_after(&prefix, None, PAGE).await?).finals;
    let Some((revision, newest)) = finals.pop_last() else { return Ok(None) };
    let manifest = read_final(store, &newest.name).await?;
    Ok(Some(FinalObject::new(revision, newest.name, manifest)?))
}

async fn read_final(store: &dyn Store, name: &ObjectName) -> Result<Bytes, RecordingError> {
    final_manifest(|range| store.get(name, Some(range))).await
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
