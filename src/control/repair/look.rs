//! What the store shows of one recording, and what is to be done about it. The decision is pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::domain::cmr::{EndState, Manifest, ReadError, Row};
use crate::domain::ids::WriterId;
use crate::keys::OpenedKey;
use crate::store::{ObjectInfo, ObjectName, StoreError};
use crate::upload::{CompactError, FinalObject, RecordingObjects, SegmentId};

use super::settle::SettleError;

/// A manifest that was opened with the key, and the object it came from.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) revision: u32,
    pub(super) name: ObjectName,
    pub(super) bytes: Bytes,
    pub(super) manifest: Manifest,
}

/// Everything that the store shows of a recording.
#[derive(Debug)]
pub(super) struct Look {
    /// By revision, the newest last. Each with its place in the store.
    pub(super) finals: Vec<(Sealed, FinalObject)>,
    /// Manifests that are objects of their own, the newest last.
    pub(super) manifests: Vec<Sealed>,
    /// Segments that are objects of their own.
    pub(super) segments: BTreeMap<SegmentId, ObjectInfo>,
}

/// One place where the bytes of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// An object of its own, of so many bytes.
    Loose(u64),
    /// A row of the final object with this index.
    Row(usize, Row, u64),
}

impl Piece {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Loose(bytes) => bytes,
            Self::Row(_, row, _) => u64::from(row.byte_len),
        }
    }
}

/// The next step towards the final form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// There is no object.
    Nothing,
    /// It is in its final form.
    Done,
    /// The newest final object holds everything; what is left of its parts goes.
    Clean,
    /// The newest manifest lists everything and needs its final object.
    Compact,
    /// The recorder's own manifest lists everything, but needs a later revision.
    Reseal(Own),
    /// A manifest is to be made from all segments.
    Rebuild,
}

/// Where the recorder's own manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// Among the loose ones.
    Loose(usize),
    /// Among the final objects.
    Final(usize),
}

impl Look {
    /// Lists the recording and opens its manifests.
    pub(super) async fn take(objects: &RecordingObjects<'_>, key: &OpenedKey) -> Result<Self, SettleError> {
        let listed = objects.list().await?;
        let mut finals = Vec::new();
        for (revision, info) in listed.finals {
            let object = match objects.read_final(revision, &info.name).await {
                Err(CompactError::Read(source)) => {
                    return Err(SettleError::Manifest { name: info.name, source });
                }
                object => object?,
            };
            let bytes = object.manifest.clone();
            finals.push((Sealed::open(revision, info.name, bytes, key)?, object));
        }
        let mut manifests = Vec::new();
        for (revision, info) in listed.manifests {
            let bytes = objects.requests.get(&info.name, None).await?.bytes;
            manifests.push(Sealed::open(revision, info.name, bytes, key)?);
        }
        Ok(Self { finals, manifests, segments: listed.segments })
    }

    /// Every segment that any object holds, and where.
    pub(super) fn pieces(&self) -> BTreeMap<SegmentId, Vec<Piece>> {
        let mut pieces: BTreeMap<SegmentId, Vec<Piece>> = BTreeMap::new();
        for (index, (_, object)) in self.finals.iter().enumerate() {
            for (id, (row, position)) in &object.rows {
                pieces.entry(*id).or_default().push(Piece::Row(index, *row, *position));
            }
        }
        for (id, info) in &self.segments {
            pieces.entry(*id).or_default().push(Piece::Loose(info.size));
        }
        pieces
    }

    /// The segments that make a recording: those of each writer up to the first that no object holds. What stands behind
    /// such a hole is left alone, until whoever has the missing one brings it.
    pub(super) fn usable(&self) -> BTreeMap<SegmentId, Vec<Piece>> {
        let mut pieces = self.pieces();
        let mut expected: BTreeMap<WriterId, u32> = BTreeMap::new();
        pieces.retain(|(writer, seq), _| {
            let next = expected.entry(*writer).or_default();
            let follows = next == seq;
            *next += u32::from(follows);
            follows
        });
        pieces
    }

    /// How many segments stand behind a hole.
    pub(super) fn behind_holes(&self) -> usize {
        self.pieces().len() - self.usable().len()
    }

    /// The revision of the next manifest.
    pub(super) fn next_revision(&self) -> u32 {
        let finals = self.finals.iter().map(|(sealed, _)| sealed.revision);
        let manifests = self.manifests.iter().map(|sealed| sealed.revision);
        finals.chain(manifests).max().map_or(0, |newest| newest.saturating_add(1))
    }

    /// The loose manifests all of whose rows the newest final object holds.
    pub(super) fn replaced_manifests(&self) -> Vec<ObjectName> {
        let Some((_, newest)) = self.finals.last() else { return Vec::new() };
        let replaced = self.manifests.iter().filter(|sealed| newest.lists_all(&sealed.manifest.rows));
        replaced.map(|sealed| sealed.name.clone()).collect()
    }

    /// Decides what to do next.
    pub(super) fn plan(&self) -> Plan {
        let usable = self.usable();
        let newest_final = self.finals.last().map(|(sealed, _)| sealed);
        let newest = self
            .manifests
            .last()
            .filter(|sealed| newest_final.is_none_or(|newest_final| newest_final.revision < sealed.revision));
        if usable.is_empty() && newest.is_none() && newest_final.is_none() {
            return Plan::Nothing;
        }
        if let Some(newest) = newest
            && newest.covers(&usable)
        {
            return Plan::Compact;
        }
        let own = self.own(&usable);
        match (newest_final, own) {
            (Some(newest), own) if newest.covers(&usable) => match own {
                // It says more about the end than what was rebuilt without it.
                Some(own) if newest.manifest.state != EndState::Complete => Plan::Reseal(own),
                Some(_) | None if self.has_leftovers(&usable) => Plan::Clean,
                Some(_) | None => Plan::Done,
            },
            (_, Some(own)) => Plan::Reseal(own),
            (_, None) => Plan::Rebuild,
        }
    }

    fn has_leftovers(&self, usable: &BTreeMap<SegmentId, Vec<Piece>>) -> bool {
        self.finals.len() > 1
            || !self.manifests.is_empty()
            || self.segments.keys().any(|id| usable.contains_key(id))
    }

    /// Finds the manifest of the recorder itself, if it lists exactly what there is.
    fn own(&self, usable: &BTreeMap<SegmentId, Vec<Piece>>) -> Option<Own> {
        let is_own = |sealed: &Sealed| {
            sealed.manifest.state == EndState::Complete
                && sealed.covers(usable)
                && sealed.manifest.rows.len() == usable.len()
        };
        let loose = self.manifests.iter().rposition(is_own).map(Own::Loose);
        loose.or_else(|| self.finals.iter().rposition(|(sealed, _)| is_own(sealed)).map(Own::Final))
    }
}

impl Sealed {
    fn open(revision: u32, name: ObjectName, bytes: Bytes, key: &OpenedKey) -> Result<Self, SettleError> {
        let opened = Manifest::open(&bytes, &key.dek, &key.ids).and_then(|manifest| {
            (manifest.revision == revision).then_some(manifest).ok_or(ReadError::SequenceMismatch(0))
        });
        match opened {
            Ok(manifest) => Ok(Self { revision, name, bytes, manifest }),
            Err(source) => Err(SettleError::Manifest { name, source }),
        }
    }

    /// Whether it lists every usable segment, none of them shorter than any object has it.
    fn covers(&self, usable: &BTreeMap<SegmentId, Vec<Piece>>) -> bool {
        let rows: BTreeMap<SegmentId, u64> =
            self.manifest.rows.iter().map(|row| ((row.writer, row.seq), u64::from(row.byte_len))).collect();
        usable.iter().all(|(id, pieces)| {
            rows.get(id).is_some_and(|listed| pieces.iter().all(|piece| piece.bytes() <= *listed))
        })
    }
}

impl From<StoreError> for SettleError {
    fn from(error: StoreError) -> Self {
        // Every name was listed a moment ago.
        if matches!(error, StoreError::NotFound) { Self::Moved } else { Self::Store(error) }
    }
}

impl From<CompactError> for SettleError {
    fn from(error: CompactError) -> Self {
        match error {
            CompactError::Store(error) => error.into(),
            CompactError::Adopted | CompactError::NoManifest => Self::Moved,
            CompactError::Read(_) | CompactError::Missing(_) | CompactError::Differs => Self::Compact(error),
        }
    }
}
