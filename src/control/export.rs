//! Hands recordings on, many at a time: as WAV files, or sealed as they are stored with their keys under a KEK of whoever
//! gets them. One tar archive, written while it is made, with a manifest and the digests of all files at its end.
//!
//! Each recording is verified before any of its bytes leaves, and in the audit log before that. One that cannot be handed on is
//! named in the manifest and stops nothing. Must not know who asks.

use std::sync::Arc;

use serde::Serialize;
use tokio::io::AsyncWrite;

use crate::clock;
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::index::{self, IndexError};
use crate::control::recordings::{self, Finished, RecordingError, StoredRecording};
use crate::control::restriction::is_restricted;
use crate::control::tar::{Filed, Tar, TarError};
use crate::control::wav::WavFile;
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::index::Term;
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::wav::Encoding;
use crate::domain::retention::Order;
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::keys::{Envelope, KeyError, KeyProvider, KeyService, Providers, Recipient, envelope_name};
use crate::store::layout::{self, RecordingPart};
use crate::store::{ByteRange, ObjectInfo, Store, StoreError};
use crate::upload::newest_order;

/// Recordings of one archive: its manifest, which is made in memory, has some hundred bytes for each.
pub const MAX_RECORDINGS: usize = 10_000;
/// Recordings listed at a time.
const PAGE: usize = 100;
/// Bytes of a sealed object that are read at a time.
const CHUNK_BYTES: u64 = 1 << 20;
/// The file at the beginning, so that bytes flow while the first recording is verified; the manifest; the digests.
const ABOUT: &str = "about.json";
const MANIFEST: &str = "manifest.json";
const SUMS: &str = "SHA256SUMS";

/// Why an archive is not whole.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no audit record, so nothing is handed on.
    #[error("audit log")]
    Audit(#[from] AuditError),
    /// Which recordings there are.
    #[error("list of recordings")]
    List(#[from] RecordingError),
    /// Which recordings there are of a call or a party.
    #[error("index of recordings")]
    Index(#[from] IndexError),
    /// The archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The manifest.
    #[error("manifest cannot be written")]
    Manifest(#[source] serde_json::Error),
}

/// Which recordings.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// These; others if there are none.
    pub recordings: Vec<RecordingId>,
    /// Those of a call or a party.
    pub term: Option<Term>,
    /// Begun at this moment or later.
    pub from: Option<UnixMillis>,
    /// Begun before this moment.
    pub until: Option<UnixMillis>,
}

impl Selection {
    /// Whether it names nothing, and so all.
    pub fn is_empty(&self) -> bool {
        self.recordings.is_empty() && self.term.is_none() && self.from.is_none() && self.until.is_none()
    }

    fn contains(&self, recording: RecordingId) -> bool {
        let at = UnixMillis(recording.created_ms());
        self.from.is_none_or(|from| at >= from) && self.until.is_none_or(|until| at < until)
    }
}

/// As what.
#[derive(Clone)]
pub enum Form {
    /// WAV files of both tracks, 16-bit PCM.
    Wav,
    /// The sealed objects, and the envelope as it is stored.
    Sealed,
    /// The sealed objects, and an envelope under what these keys wrap the tenant's DEKs with; its name is told.
    SealedFor(Arc<dyn KeyProvider>, String),
}

impl Form {
    /// Wraps keys for the holder of a private key.
    pub fn sealed_for(tenant: &TenantId, recipient: Recipient) -> Self {
        let kek = recipient.kek().kek;
        Self::SealedFor(Arc::new(Providers::of_recipient(tenant, recipient)), kek)
    }

    /// Returns the word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Wav => "wav",
            Self::Sealed | Self::SealedFor(..) => "sealed",
        }
    }

    /// Returns the name of the KEK that keys are wrapped under for whoever gets them.
    pub fn kek(&self) -> Option<&str> {
        match self {
            Self::Wav | Self::Sealed => None,
            Self::SealedFor(_, kek) => Some(kek),
        }
    }

    /// Returns what the audit log says of it.
    pub fn detail(&self) -> String {
        let kek = self.kek().map(|kek| format!(" kek={kek}"));
        format!("format={}{}", self.name(), kek.unwrap_or_default())
    }
}

/// What was handed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// Recordings that are whole in the archive.
    pub exported: u64,
    /// Recordings that were wanted and are not; the manifest says why.
    pub left_out: u64,
    /// Whether there were more than one archive may have.
    pub truncated: bool,
}

/// What the manifest says.
#[derive(Serialize)]
struct Manifest {
    v: u8,
    tenant: String,
    format: &'static str,
    /// What keys are wrapped under, unless it is what they are under in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    kek: Option<String>,
    made: String,
    #[serde(flatten)]
    report: ExportReport,
    recordings: Vec<Listed>,
}

/// A recording in the manifest.
#[derive(Serialize)]
struct Listed {
    recording: String,
    created: String,
    /// Whether it is whole in the archive.
    exported: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    about: Option<About>,
    files: Vec<ListedFile>,
}

#[derive(Serialize)]
struct ListedFile {
    name: String,
    bytes: u64,
    sha256: String,
}

/// What is known of a recording. Where it is handed on sealed, nothing that is sealed.
#[derive(Serialize)]
struct About {
    state: &'static str,
    seconds: f64,
    root: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<Call>,
}

#[derive(Serialize)]
struct Call {
    started: String,
    ended: String,
    route: String,
    provider: String,
    call: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    consent: Option<String>,
}

/// Why a recording is left out.
enum LeftOut {
    /// For this reason; the archive goes on.
    Named(&'static str),
    /// The archive does not go on.
    All(ExportError),
}

impl<E: Into<ExportError>> From<E> for LeftOut {
    fn from(error: E) -> Self {
        Self::All(error.into())
    }
}

/// Makes archives of a tenant's recordings.
pub struct Exporter {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    tenant: TenantId,
    form: Form,
}

impl Exporter {
    /// Reads from `store`.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<KeyService>,
        audit: AuditLog,
        (tenant, form): (TenantId, Form),
    ) -> Self {
        Self { store, keys, audit, tenant, form }
    }

    /// Writes an archive to `out`. `event` is what the audit log is told of who does it; action, subject and detail are added.
    ///
    /// # Errors
    /// [`ExportError`]: the archive ends there, and has no manifest.
    pub async fn run<W: AsyncWrite + Unpin + Send>(
        &self,
        selection: &Selection,
        event: &AuditEvent,
        out: W,
    ) -> Result<ExportReport, ExportError> {
        let now = clock::wall();
        let mut tar = Tar::new(out, now.secs());
        let mut manifest = Manifest {
            v: 1,
            tenant: self.tenant.to_string(),
            format: self.form.name(),
            kek: self.form.kek().map(str::to_owned),
            made: clock::rfc3339(now),
            report: ExportReport::default(),
            recordings: Vec::new(),
        };
        let (mut after, mut page) = (None, Vec::new());
        // What cannot be listed at all begins no archive.
        page.extend(self.page(selection, &mut after).await?);
        let about = serde_json::json!({"v": 1, "tenant": manifest.tenant, "format": manifest.format, "made": manifest.made});
        tar.file(ABOUT, about.to_string().as_bytes()).await?;
        while let Some(recordings) = page.pop() {
            for recording in recordings.into_iter().filter(|recording| selection.contains(*recording)) {
                if manifest.recordings.len() == MAX_RECORDINGS {
                    manifest.report.truncated = true;
                    break;
                }
                let listed = self.one(recording, event, &mut tar).await?;
                let report = &mut manifest.report;
                report.exported += u64::from(listed.exported);
                report.left_out += u64::from(!listed.exported);
                manifest.recordings.push(listed);
            }
            let is_past =
                |last: RecordingId| selection.until.is_some_and(|until| last.created_ms() >= until.0);
            if manifest.report.truncated || !selection.recordings.is_empty() || after.is_some_and(is_past) {
                break;
            }
            page.extend(self.page(selection, &mut after).await?);
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(ExportError::Manifest)?;
        tar.file(MANIFEST, &text).await?;
        tar.finish(SUMS).await?;
        Ok(manifest.report)
    }

    /// Lists the next recordings; `None` behind the last.
    async fn page(
        &self,
        selection: &Selection,
        after: &mut Option<RecordingId>,
    ) -> Result<Option<Vec<RecordingId>>, ExportError> {
        if !selection.recordings.is_empty() {
            let mut recordings = selection.recordings.clone();
            recordings.sort_unstable();
            recordings.dedup();
            return Ok(Some(recordings));
        }
        // The last id that could have been made before that time.
        let before = selection.from.map(|from| RecordingId::new(from.0.saturating_sub(1), &[0xff; 10]));
        let place = ((*after).max(before), PAGE);
        let found = match &selection.term {
            Some(term) => index::find(&*self.store, &self.keys, &self.tenant, term, place).await?.1,
            None => recordings::list(&*self.store, &self.tenant, place.0, place.1).await?,
        };
        *after = found.last().copied();
        Ok((!found.is_empty()).then_some(found))
    }

    /// Writes one recording, or says why not.
    async fn one<W: AsyncWrite + Unpin + Send>(
        &self,
        recording: RecordingId,
        event: &AuditEvent,
        tar: &mut Tar<W>,
    ) -> Result<Listed, ExportError> {
        let mut listed = Listed {
            recording: recording.to_string(),
            created: clock::rfc3339(UnixMillis(recording.created_ms())),
            exported: false,
            error: None,
            about: None,
            files: Vec::new(),
        };
        match self.try_one(recording, event, tar, &mut listed).await {
            Ok(()) => listed.exported = true,
            Err(LeftOut::Named(why)) => listed.error = Some(why),
            Err(LeftOut::All(error)) => return Err(error),
        }
        Ok(listed)
    }

    async fn try_one<W: AsyncWrite + Unpin + Send>(
        &self,
        recording: RecordingId,
        event: &AuditEvent,
        tar: &mut Tar<W>,
        listed: &mut Listed,
    ) -> Result<(), LeftOut> {
        let named = |error: RecordingError| LeftOut::Named(self.named(recording, &error));
        let order = newest_order(&*self.store, self.tenant.tag(), recording).await;
        let order = order.map_err(|error| named(error.into()))?.map_or(Order::NONE, |(_, order)| order);
        if order.deletion.is_some() {
            return Err(LeftOut::Named("deleted"));
        }
        let restricted = is_restricted(&*self.store, self.tenant.tag(), recording).await;
        if restricted.map_err(|error| named(error.into()))? {
            return Err(LeftOut::Named("restricted"));
        }
        let stored =
            StoredRecording::open(Arc::clone(&self.store), &self.keys, &self.tenant, recording).await;
        let stored = stored.map_err(named)?;
        let finished = stored.manifest().ok_or(LeftOut::Named("receiving"))?;
        let expires = stored.kept_until(&order).map(|until| order.effective(until).0);
        if !order.hold && expires.is_some_and(|expires| clock::wall() > expires) {
            return Err(LeftOut::Named("expired"));
        }
        stored.verify().await.map_err(named)?;
        let root = encode_hex(&finished.root);
        let event = AuditEvent {
            action: "export".to_owned(),
            subject: recording.to_string(),
            detail: Some(format!("root={root} {}", self.form.detail())),
            ..event.clone()
        };
        self.audit.record(&self.tenant, event).await?;
        listed.about = Some(About {
            state: stored.state_name(),
            seconds: stored.seconds(),
            root,
            call: matches!(self.form, Form::Wav).then(|| call(finished)),
        });
        match &self.form {
            Form::Wav => self.write_wav(&stored, tar, listed).await,
            Form::Sealed | Form::SealedFor(..) => self.write_sealed(&stored, tar, listed).await,
        }
    }

    /// Names what is wrong with a recording, and logs it.
    fn named(&self, recording: RecordingId, error: &RecordingError) -> &'static str {
        let source = error as &dyn std::error::Error;
        match error {
            RecordingError::NotFound => "not_found",
            RecordingError::Unavailable(_) => {
                tracing::warn!(%recording, error = source, "recording is not exported");
                "unavailable"
            }
            RecordingError::Integrity(_) => {
                tracing::error!(%recording, error = source, "recording is not exported: it is damaged");
                "damaged"
            }
        }
    }

    async fn write_wav<W: AsyncWrite + Unpin + Send>(
        &self,
        stored: &StoredRecording,
        tar: &mut Tar<W>,
        listed: &mut Listed,
    ) -> Result<(), LeftOut> {
        let wav = WavFile::new(stored, TrackSelection::Both, Encoding::Pcm16);
        let mut wav = wav.map_err(|_| LeftOut::Named("too_long"))?;
        let name = format!("recordings/{}.wav", listed.recording);
        let bytes = wav.total_bytes();
        tar.begin(&name, bytes).await?;
        loop {
            match wav.piece().await {
                Ok(Some(piece)) => tar.write(&piece).await?,
                Ok(None) => break,
                Err(error) => {
                    tar.fill().await?;
                    return Err(LeftOut::Named(self.named(stored.ids().recording, &error)));
                }
            }
        }
        listed.push(tar.end(&name, bytes).await?);
        Ok(())
    }

    async fn write_sealed<W: AsyncWrite + Unpin + Send>(
        &self,
        stored: &StoredRecording,
        tar: &mut Tar<W>,
        listed: &mut Listed,
    ) -> Result<(), LeftOut> {
        let ids = stored.ids();
        let named = |error: RecordingError| LeftOut::Named(self.named(ids.recording, &error));
        let envelope = self.envelope(stored).await.map_err(|error| named(error.into()))?;
        let objects = self.objects(stored).await.map_err(|error| named(error.into()))?;
        for object in objects {
            let name = object.name.as_str();
            tar.begin(name, object.size).await?;
            let mut at = 0;
            while at < object.size {
                let to = object.size.min(at + CHUNK_BYTES);
                match self.store.get(&object.name, Some(ByteRange::Span(at..to))).await {
                    Ok(fetched) if fetched.bytes.len() as u64 == to - at => tar.write(&fetched.bytes).await?,
                    fetched => {
                        tar.fill().await?;
                        let short = StoreError::Corrupt { what: "object is shorter than it was" };
                        return Err(named(fetched.err().unwrap_or(short).into()));
                    }
                }
                at = to;
            }
            listed.push(tar.end(name, object.size).await?);
        }
        let text = serde_json::to_vec(&envelope).map_err(ExportError::Manifest)?;
        let name = envelope_name(ids.tenant, ids.recording, 0);
        listed.push(tar.file(name.as_str(), &text).await?);
        Ok(())
    }

    /// Returns the envelope to hand on.
    async fn envelope(&self, stored: &StoredRecording) -> Result<Envelope, KeyError> {
        let key = stored.key();
        match &self.form {
            Form::Wav | Form::Sealed => self.keys.envelope(&self.tenant, key.ids.recording).await,
            Form::SealedFor(keys, _) => {
                let wrap = keys.wrap(&self.tenant, &key.ids, &key.dek).await?;
                Ok(Envelope::new(&key.ids, wrap))
            }
        }
    }

    /// Lists what a reader needs: the newest final object alone, or else manifests and segments.
    async fn objects(&self, stored: &StoredRecording) -> Result<Vec<ObjectInfo>, StoreError> {
        let ids = stored.ids();
        let prefix = layout::recording_prefix(ids.tenant, ids.recording);
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.list_after(&prefix, after.as_ref(), 1000).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            found.extend(page.into_iter().filter_map(|info| Some((layout::part_of(&info.name)?, info))));
        }
        let revision = |part: &RecordingPart| match part {
            RecordingPart::Final { revision } => Some(*revision),
            RecordingPart::Segment { .. } | RecordingPart::Manifest { .. } => None,
        };
        let newest = found.iter().filter_map(|(part, _)| revision(part)).max();
        let is_needed = |part: &RecordingPart| newest.is_none() || revision(part) == newest;
        Ok(found.into_iter().filter(|(part, _)| is_needed(part)).map(|(_, info)| info).collect())
    }
}

impl Listed {
    fn push(&mut self, Filed { name, bytes, sha256 }: Filed) {
        self.files.push(ListedFile { name, bytes, sha256 });
    }
}

fn call(finished: &Finished) -> Call {
    let Finished { metadata, end, .. } = finished;
    Call {
        started: clock::rfc3339(UnixMillis(metadata.started_ms)),
        ended: clock::rfc3339(UnixMillis(end.ended_ms)),
        route: metadata.route.clone(),
        provider: metadata.provider.clone(),
        call: metadata.call.clone(),
        consent: metadata.consent.clone(),
    }
}
