//! The objects of one recording in the store, read without any key.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::domain::cmr::{Manifest, ReadError, Row, TAIL_BYTES, Tail, check_digest};
use crate::domain::ids::{RecordingId, TenantTag, WriterId};
use crate::store::layout::{self, RecordingPart};
use crate::store::{ByteRange, Fetched, ObjectInfo, ObjectName, StoreError};

use super::compact::CompactError;
use super::requests::Requests;

/// The first read of a final object: tail and manifest of calls up to about an hour and a half.
const SUFFIX_BYTES: u64 = 64 * 1024;

/// A segment by its writer and number.
pub type SegmentId = (WriterId, u32);

/// Where the objects of one recording are, and how the store is asked.
#[derive(Clone, Copy)]
pub struct RecordingObjects<'a> {
    /// The store.
    pub requests: Requests<'a>,
    /// Whose recording.
    pub tenant: TenantTag,
    /// Which one.
    pub recording: RecordingId,
}

/// What a listing shows of a recording.
#[derive(Debug, Default)]
pub struct Listed {
    /// Final objects by revision.
    pub finals: BTreeMap<u32, ObjectInfo>,
    /// Manifests by revision.
    pub manifests: BTreeMap<u32, ObjectInfo>,
    /// Segments that are objects of their own.
    pub segments: BTreeMap<SegmentId, ObjectInfo>,
}

impl Listed {
    /// Sorts objects by what they are; foreign names are left out.
    pub fn new(objects: impl IntoIterator<Item = ObjectInfo>) -> Self {
        let mut listed = Self::default();
        for object in objects {
            match layout::part_of(&object.name) {
                Some(RecordingPart::Final { revision }) => drop(listed.finals.insert(revision, object)),
                Some(RecordingPart::Manifest { revision }) => drop(listed.manifests.insert(revision, object)),
                Some(RecordingPart::Segment { writer, seq }) => {
                    listed.segments.insert((writer, seq), object);
                }
                None => {}
            }
        }
        listed
    }
}

/// A final object, as its manifest describes it.
#[derive(Debug, Clone)]
pub struct FinalObject {
    /// The revision in its name.
    pub revision: u32,
    /// Its name.
    pub name: ObjectName,
    /// The bytes of its manifest.
    pub manifest: Bytes,
    /// Its rows, and where each begins.
    pub rows: BTreeMap<SegmentId, (Row, u64)>,
}

impl FinalObject {
    /// Describes the object that a manifest belongs to.
    ///
    /// # Errors
    /// The parse classes of [`ReadError`].
    pub fn new(revision: u32, name: ObjectName, manifest: Bytes) -> Result<Self, ReadError> {
        let (mut rows, mut position) = (BTreeMap::new(), 0);
        for row in Manifest::rows_without_key(&manifest)? {
            rows.insert((row.writer, row.seq), (row, position));
            position += u64::from(row.byte_len);
        }
        Ok(Self { revision, name, manifest, rows })
    }

    /// Whether it lists each of these rows, equal in length and digest.
    pub fn lists_all<'r>(&self, rows: impl IntoIterator<Item = &'r Row>) -> bool {
        rows.into_iter().all(|row| {
            let listed = self.rows.get(&(row.writer, row.seq));
            listed.is_some_and(|(kept, _)| kept.byte_len == row.byte_len && kept.sha256 == row.sha256)
        })
    }
}

impl RecordingObjects<'_> {
    /// Lists everything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Listed, StoreError> {
        let prefix = layout::recording_prefix(self.tenant, self.recording);
        Ok(Listed::new(self.requests.list_all(&prefix).await?))
    }

    /// Lists segments.
    pub(super) async fn segments(&self) -> Result<BTreeMap<SegmentId, ObjectInfo>, StoreError> {
        let prefix = layout::segments_prefix(self.tenant, self.recording);
        Ok(Listed::new(self.requests.list_all(&prefix).await?).segments)
    }

    /// Lists manifests.
    pub(super) async fn manifests(&self) -> Result<BTreeMap<u32, ObjectInfo>, StoreError> {
        let prefix = layout::manifests_prefix(self.tenant, self.recording);
        Ok(Listed::new(self.requests.list_all(&prefix).await?).manifests)
    }

    /// Lists final objects.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn finals(&self) -> Result<BTreeMap<u32, ObjectInfo>, StoreError> {
        let prefix = layout::finals_prefix(self.tenant, self.recording);
        Ok(Listed::new(self.requests.list_all(&prefix).await?).finals)
    }

    /// Reads what a final object says of itself.
    ///
    /// # Errors
    /// [`CompactError::Store`], also when it is gone; [`CompactError::Read`].
    pub async fn read_final(&self, revision: u32, name: &ObjectName) -> Result<FinalObject, CompactError> {
        let manifest =
            final_manifest::<CompactError, _>(|range| self.requests.get(name, Some(range))).await?;
        Ok(FinalObject::new(revision, name.clone(), manifest)?)
    }

    /// Reads the bytes of a row from a final object and checks its digest.
    ///
    /// # Errors
    /// [`CompactError::Store`]; [`CompactError::Read`] when they are not those of the row.
    pub async fn row(&self, name: &ObjectName, row: &Row, position: u64) -> Result<Bytes, CompactError> {
        let span = position..position + u64::from(row.byte_len);
        let bytes = match self.requests.get(name, Some(ByteRange::Span(span))).await {
            Err(StoreError::OutOfRange { .. }) => Bytes::new(),
            fetched => fetched?.bytes,
        };
        check_digest(0, row, &bytes)?;
        Ok(bytes)
    }
}

/// Reads the manifest of a final object through `get`, in one read for most recordings.
///
/// # Errors
/// What `get` answers; the parse classes of [`ReadError`], [`ReadError::NoTail`] and [`ReadError::TrailingData`].
pub async fn final_manifest<E, F>(mut get: impl FnMut(ByteRange) -> F) -> Result<Bytes, E>
where
    E: From<StoreError> + From<ReadError>,
    F: Future<Output = Result<Fetched, StoreError>>,
{
    let suffix = get(ByteRange::Suffix(SUFFIX_BYTES)).await?;
    let tail = Tail::parse(&suffix.bytes, suffix.total_size)?;
    let length = u64::from(tail.manifest_len);
    let kept = suffix.bytes.len() as u64;
    let manifest = if length + TAIL_BYTES as u64 <= kept {
        let start = usize::try_from(kept - TAIL_BYTES as u64 - length).unwrap_or(usize::MAX);
        suffix.bytes.slice(start..suffix.bytes.len() - TAIL_BYTES)
    } else {
        get(ByteRange::Span(tail.manifest_offset..tail.manifest_offset + length)).await?.bytes
    };
    let rows = Manifest::rows_without_key(&manifest)?;
    let segment_bytes: u64 = rows.iter().map(|row| u64::from(row.byte_len)).sum();
    if segment_bytes != tail.manifest_offset || usize::try_from(tail.segments) != Ok(rows.len()) {
        return Err(ReadError::TrailingData.into());
    }
    Ok(manifest)
}
