//! Brings one recording from whatever the store shows to its final form: all its segments in one final object.
//!
//! Idempotent, and safe in any number of processes at once, also while its recorder still adds segments: names are
//! created once, what exists already is read and continued from, and nothing is deleted but what the newest final object
//! holds byte for byte.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

mod write_only;

use super::look::{Look, Own, Piece, Plan, Sealed};
use crate::clock;
use crate::control::audit::{AuditEvent, AuditLog};
use crate::control::index::blind;
use crate::domain::cmr::{ManifestWriter, ReadError, SealError, sha256};
use crate::domain::ids::{RecordingId, TenantId, WriterId};
use crate::domain::index::PartyKeys;
use crate::domain::notice::{self, Ended, Event, NoticeKind};
use crate::domain::recording::{BadRecord, Life, RecordingEnd, RecordingMetadata, from_cbor};
use crate::domain::recovery::{Rebuild, RebuildError};
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::jitter::part_of;
use crate::keys::{KeyError, KeyService, OpenedKey, fill_random};
use crate::notices::Notices;
use crate::observe::metrics;
use crate::store::{ObjectName, PutOutcome, Store, StoreError, Tags, layout};
use crate::upload::{
    CompactError, RecordingObjects, Requests, RetentionTags, RetryPolicy, SegmentId, WrittenFinal, clean,
    put_entries, write_final,
};

/// Steps that one recording may take: three without disturbance, and each other process may spoil a few.
const STEPS: u32 = 24;
/// How long to stay away from a recording that another process is changing, at most.
const STAY_AWAY: Duration = Duration::from_millis(100);
/// Where names are not created once: how long another writer of the same name may be on its way.
const RACE: Duration = Duration::from_secs(120);

/// What was done about a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// What it came to.
    pub outcome: Outcome,
    /// Segments that stay as they are, because one before them is in no object.
    pub set_aside: usize,
}

/// What a recording came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is nothing of it, or its key was destroyed.
    Nothing,
    /// It was in its final form.
    AlreadyFinal,
    /// It had its final object, and leftovers of its parts were deleted.
    Cleaned,
    /// It has its final object now.
    Finished {
        /// The revision.
        revision: u32,
        /// How many segments are in it.
        rows: usize,
        /// How it ended.
        life: Life,
    },
}

/// Why a recording was not settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The store.
    #[error("store")]
    Store(#[source] StoreError),
    /// The key.
    #[error("key")]
    Key(#[from] KeyError),
    /// A manifest that does not open.
    #[error("manifest in {name}")]
    Manifest {
        /// The object.
        name: ObjectName,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A manifest with records of another shape.
    #[error("manifest")]
    Record(#[from] BadRecord),
    /// The segments.
    #[error("segments")]
    Rebuild(#[from] RebuildError),
    /// The manifest cannot be sealed.
    #[error("manifest")]
    Seal(#[from] SealError),
    /// The final object.
    #[error("compaction")]
    Compact(#[source] CompactError),
    /// Two objects hold different bytes of one segment; all of them stay.
    #[error("segment {0} has other bytes elsewhere")]
    Conflict(ObjectName),
    /// Other processes changed it again and again.
    #[error("recording is being changed by others")]
    Moved,
}

impl SettleError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Key(error) => error.is_retryable(),
            Self::Store(error) | Self::Compact(CompactError::Store(error)) => error.is_retryable(),
            Self::Moved => true,
            Self::Manifest { .. }
            | Self::Record(_)
            | Self::Rebuild(_)
            | Self::Seal(_)
            | Self::Compact(_)
            | Self::Conflict(_) => false,
        }
    }

    /// Whether it may come from another process that changed the recording meanwhile, so that a new look helps.
    fn may_be_a_race(&self) -> bool {
        matches!(self, Self::Moved | Self::Compact(CompactError::Missing(_)))
    }
}

/// Settles recordings; clones are the same.
#[derive(Clone)]
pub struct Settler {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    node: String,
    policy: RetryPolicy,
    notices: Notices,
    party_keys: PartyKeys,
}

impl Settler {
    /// Settles in `store`; `node` stands in the audit records.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<KeyService>,
        audit: AuditLog,
        node: String,
        policy: RetryPolicy,
    ) -> Self {
        let (notices, party_keys) = (Notices::off(), PartyKeys::default());
        Self { store, keys, audit, node, policy, notices, party_keys }
    }

    /// Tells tenants how their recordings ended.
    #[must_use]
    pub fn with_notices(mut self, notices: Notices) -> Self {
        self.notices = notices;
        self
    }

    /// Tells a tenant that a recording cannot be finished.
    pub(in crate::control) async fn tell_failed(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        why: &'static str,
    ) {
        let event = Event::of_recording(NoticeKind::Failed, recording, 0).because(why);
        self.notices.told(tenant, event).await;
    }

    /// Looks for parties under these names in the metadata of calls.
    #[must_use]
    pub fn with_party_keys(self, party_keys: PartyKeys) -> Self {
        Self { party_keys, ..self }
    }

    /// Brings a recording to its final form.
    ///
    /// Memory: one segment, one part of 5 MiB, and the manifests.
    ///
    /// # Errors
    /// [`SettleError`]; nothing is lost, and it may be called again.
    pub async fn settle(&self, tenant: &TenantId, recording: RecordingId) -> Result<Settlement, SettleError> {
        let key = match self.open_key(tenant, recording).await {
            // Its key was destroyed on purpose: nothing of it can be opened any more.
            Err(KeyError::NoEnvelope) => return Ok(Settlement { outcome: Outcome::Nothing, set_aside: 0 }),
            key => key?,
        };
        let settling =
            Settling { settler: self, tenant, key: &key, objects: self.objects(tenant, recording) };
        let mut last = SettleError::Moved;
        for _ in 0..STEPS {
            match settling.step().await {
                Ok(Some(settlement)) => return Ok(settlement),
                Ok(None) => {}
                Err(error) if error.may_be_a_race() => {
                    last = error;
                    tokio::time::sleep(part_of(STAY_AWAY)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The store, as the requests for one recording ask it.
    pub(in crate::control) fn objects(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> RecordingObjects<'_> {
        let requests = Requests::new(&*self.store, self.policy);
        RecordingObjects { requests, tenant: tenant.tag(), recording }
    }

    /// Opens a recording's key, which may take as long as any request.
    pub(in crate::control) async fn open_key(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<OpenedKey, KeyError> {
        let opening = self.keys.open(tenant, recording);
        tokio::time::timeout(self.policy.try_timeout, opening).await.unwrap_or(Err(KeyError::TimedOut))
    }

    /// How retries are timed.
    pub(in crate::control) fn policy(&self) -> RetryPolicy {
        self.policy
    }
}

/// One recording on its way.
struct Settling<'a> {
    settler: &'a Settler,
    tenant: &'a TenantId,
    key: &'a OpenedKey,
    objects: RecordingObjects<'a>,
}

impl Settling<'_> {
    /// Looks, and does what is next; `None` while there is more to do.
    async fn step(&self) -> Result<Option<Settlement>, SettleError> {
        let look = Look::take(&self.objects, self.key).await?;
        let set_aside = look.behind_holes();
        let settlement = |outcome| Ok(Some(Settlement { outcome, set_aside }));
        match look.plan() {
            Plan::Nothing => settlement(Outcome::Nothing),
            Plan::Done => {
                self.tell_again(&look).await?;
                self.index_final(&look).await?;
                settlement(Outcome::AlreadyFinal)
            }
            Plan::Clean => {
                self.tell_again(&look).await?;
                self.index_final(&look).await?;
                self.clean(&look, None).await?;
                settlement(Outcome::Cleaned)
            }
            Plan::Compact => settlement(self.compact(&look).await?),
            Plan::Reseal(own) => {
                let own = match own {
                    Own::Loose(index) => look.manifests.get(index),
                    Own::Final(index) => look.finals.get(index).map(|(sealed, _)| sealed),
                };
                self.reseal(&look, own.ok_or(SettleError::Moved)?).await?;
                Ok(None)
            }
            Plan::Rebuild => {
                self.rebuild(&look).await?;
                Ok(None)
            }
        }
    }

    /// Makes the final object of the newest manifest.
    async fn compact(&self, look: &Look) -> Result<Outcome, SettleError> {
        let newest = look.manifests.last().ok_or(SettleError::Moved)?;
        let end: RecordingEnd = from_cbor(&newest.manifest.end)?;
        let metadata: RecordingMetadata = from_cbor(&newest.manifest.metadata)?;
        // Its writer may have died before the audit log had it.
        self.record(&newest.bytes, newest.revision, newest.manifest.rows.len(), end.life).await;
        let tags = self.tags(look, &metadata, UnixMillis(end.ended_ms)).await?;
        self.index(&metadata, &end).await?;
        let written = write_final(&self.objects, &tags).await?;
        let outcome = Outcome::Finished {
            revision: written.object.revision,
            rows: written.object.rows.len(),
            life: end.life,
        };
        self.tell(newest.revision, &end, &metadata).await;
        self.clean(look, Some(written)).await?;
        Ok(outcome)
    }

    /// Puts the entries of a recording whose final object is there: its node may have died before it did.
    async fn index_final(&self, look: &Look) -> Result<(), SettleError> {
        let Some((newest, _)) = look.finals.last() else { return Ok(()) };
        self.index(&from_cbor(&newest.manifest.metadata)?, &from_cbor(&newest.manifest.end)?).await
    }

    /// Puts the entries under which the recording is found. A key that does not open for good holds nothing up.
    async fn index(&self, metadata: &RecordingMetadata, end: &RecordingEnd) -> Result<(), SettleError> {
        let RecordingObjects { requests, tenant, recording } = self.objects;
        let terms = self.settler.party_keys.terms(metadata, &end.notes);
        let blinding = blind(&self.settler.keys, self.tenant, &terms);
        let blinded = tokio::time::timeout(self.settler.policy.try_timeout, blinding).await;
        let entries = match blinded.unwrap_or(Err(KeyError::TimedOut)) {
            Err(error) if !error.is_retryable() => {
                ::metrics::counter!(metrics::INDEX_FAILURES).increment(1);
                let error = &error as &dyn std::error::Error;
                tracing::error!(%recording, error, "recording is not found by call or number");
                return Ok(());
            }
            entries => entries?,
        };
        let retention = RetentionTags { tenant, days: metadata.retention_days };
        let ended = UnixMillis(end.ended_ms);
        put_entries(requests, retention, recording, (&entries, ended)).await.map_err(SettleError::Store)
    }

    /// Deletes what the newest final object replaces.
    async fn clean(&self, look: &Look, written: Option<WrittenFinal>) -> Result<(), SettleError> {
        let store = self.objects.requests.store();
        if !store.profile().create_once && !self.is_undisturbed().await? {
            return Ok(());
        }
        let (written, replaced) = match (written, look.finals.last()) {
            (Some(written), _) => {
                let rows = |sealed: &&Sealed| written.object.lists_all(&sealed.manifest.rows);
                let replaced = look.manifests.iter().filter(rows).map(|sealed| sealed.name.clone()).collect();
                (written, replaced)
            }
            (None, Some((_, newest))) => (WrittenFinal::found(newest.clone()), look.replaced_manifests()),
            (None, None) => return Ok(()),
        };
        match clean(&self.objects, &written, &replaced).await?.into_iter().next() {
            None => Ok(()),
            Some(other) => Err(SettleError::Conflict(other)),
        }
    }

    /// Where names are not created once, another writer of the same name may be on its way, so leftovers stay until the
    /// newest final object has stood for a while.
    async fn is_undisturbed(&self) -> Result<bool, SettleError> {
        let now = self.objects.requests.store().now().await?;
        let finals = self.objects.finals().await?;
        let newest = finals.last_key_value().and_then(|(_, info)| info.modified);
        Ok(newest.is_some_and(|modified| modified.plus(RACE) <= now))
    }

    /// Seals what the recorder itself has said as a later revision.
    async fn reseal(&self, look: &Look, own: &Sealed) -> Result<(), SettleError> {
        let (revision, manifest) = (look.next_revision(), &own.manifest);
        let (writer, salt) = fresh()?;
        let bytes = ManifestWriter {
            ids: self.key.ids,
            writer,
            revision,
            created_ms: clock::wall().0,
            rows: &manifest.rows,
            spans: &manifest.spans,
            metadata: &manifest.metadata,
            state: manifest.state,
            end: &manifest.end,
        }
        .seal(&self.key.dek, &salt)?;
        let (end, metadata) = (from_cbor(&manifest.end)?, from_cbor(&manifest.metadata)?);
        self.put_manifest(look, revision, bytes, &metadata, &end, manifest.rows.len()).await
    }

    /// Opens every segment and makes a manifest of them.
    async fn rebuild(&self, look: &Look) -> Result<(), SettleError> {
        let usable = look.usable();
        let mut rebuild = Rebuild::new(&self.key.dek, self.key.ids);
        for (id, pieces) in &usable {
            rebuild.add(id.0, id.1, &self.segment(look, *id, pieces).await?)?;
        }
        let revision = look.next_revision();
        let (writer, salt) = fresh()?;
        let rebuilt = rebuild.finish(revision, writer, &salt, clock::wall())?;
        self.put_manifest(look, revision, rebuilt.manifest, &rebuilt.metadata, &rebuilt.end, usable.len())
            .await
    }

    /// Reads a segment: the longest copy, of which all others must be beginnings.
    async fn segment(&self, look: &Look, id: SegmentId, pieces: &[Piece]) -> Result<Bytes, SettleError> {
        let longest = pieces.iter().max_by_key(|piece| piece.bytes()).ok_or(SettleError::Moved)?;
        let bytes = self.piece(look, id, *longest).await?;
        for other in pieces.iter().filter(|piece| piece.bytes() != longest.bytes()) {
            if !bytes.starts_with(&self.piece(look, id, *other).await?) {
                return Err(SettleError::Conflict(self.segment_name(id)));
            }
        }
        Ok(bytes)
    }

    async fn piece(&self, look: &Look, id: SegmentId, piece: Piece) -> Result<Bytes, SettleError> {
        match piece {
            Piece::Loose(_) => Ok(self.objects.requests.get(&self.segment_name(id), None).await?.bytes),
            Piece::Row(index, row, position) => {
                let (_, object) = look.finals.get(index).ok_or(SettleError::Moved)?;
                Ok(self.objects.row(&object.name, &row, position).await?)
            }
        }
    }

    fn segment_name(&self, id: SegmentId) -> ObjectName {
        layout::segment(self.objects.tenant, self.objects.recording, id.0, id.1)
    }

    /// Audit record, expiry entry, manifest: in this order, so that nothing is found without what must be known of it.
    async fn put_manifest(
        &self,
        look: &Look,
        revision: u32,
        bytes: Vec<u8>,
        metadata: &RecordingMetadata,
        end: &RecordingEnd,
        rows: usize,
    ) -> Result<(), SettleError> {
        let RecordingObjects { requests, tenant, recording } = self.objects;
        self.record(&bytes, revision, rows, end.life).await;
        let ended = UnixMillis(end.ended_ms);
        let retention = RetentionTags { tenant, days: metadata.retention_days };
        let expiry = layout::expiry(&clock::utc_date(retention.expires(ended)), tenant, recording);
        // A taken name is an entry that an earlier attempt made.
        requests.put(&expiry, Bytes::new(), &Tags::new()).await?;
        let name = layout::manifest(tenant, recording, revision);
        let tags = self.tags(look, metadata, ended).await?;
        let outcome = requests.put(&name, Bytes::from(bytes), &tags).await?;
        if outcome == PutOutcome::Created && !requests.store().profile().create_once {
            // Whoever wrote the same name at the same time is through after this; all go on with what is there then.
            tokio::time::sleep(STAY_AWAY + part_of(STAY_AWAY)).await;
        }
        // Ours, or that of another process: the next look tells.
        Ok(())
    }

    /// Tags as the recorder's; what a hold has set on the object that is replaced stays set.
    async fn tags(
        &self,
        look: &Look,
        metadata: &RecordingMetadata,
        ended: UnixMillis,
    ) -> Result<Tags, SettleError> {
        let requests = self.objects.requests;
        let mut tags =
            RetentionTags { tenant: self.objects.tenant, days: metadata.retention_days }.tags(ended);
        let Some((newest, _)) = look.finals.last().filter(|_| requests.store().profile().tags) else {
            return Ok(tags);
        };
        for (key, value) in requests.tags(&newest.name).await?.iter() {
            if matches!(key, "callseal-hold" | "callseal-hipaa") {
                tags.insert(key, value).unwrap_or_default();
            }
        }
        Ok(tags)
    }

    /// Tells the tenant how a recording ended.
    async fn tell(&self, revision: u32, end: &RecordingEnd, metadata: &RecordingMetadata) {
        let RecordingMetadata { format, ref route, ref call, .. } = *metadata;
        let recording = self.objects.recording;
        let events = notice::ended(&Ended { recording, revision, end, format, route, call });
        self.settler.notices.told_all(self.tenant, events).await;
    }

    /// The same of one that was finished before: whoever did it may have died before it told.
    async fn tell_again(&self, look: &Look) -> Result<(), SettleError> {
        let Some((newest, _)) = look.finals.last() else { return Ok(()) };
        let (end, metadata) = (from_cbor(&newest.manifest.end)?, from_cbor(&newest.manifest.metadata)?);
        self.tell(newest.revision, &end, &metadata).await;
        Ok(())
    }

    /// Tells the audit log the root, so that verification can reach the grade of evidence.
    async fn record(&self, manifest: &[u8], revision: u32, rows: usize, life: Life) {
        let event = AuditEvent {
            result: life.name().to_owned(),
            detail: Some(format!("root={} revision={revision} rows={rows}", encode_hex(&sha256(manifest)))),
            ..AuditEvent::by_node(&self.settler.node, "record", self.objects.recording.to_string())
        };
        if let Err(error) = self.settler.audit.record(self.tenant, event).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(recording = %self.objects.recording, error, "recording root is not in the audit log");
        }
    }
}

/// Random bytes for a new manifest.
fn fresh() -> Result<(WriterId, [u8; 32]), KeyError> {
    let (mut writer, mut salt) = (WriterId([0; 16]), [0; 32]);
    fill_random(&mut writer.0)?;
    fill_random(&mut salt)?;
    Ok((writer, salt))
}
