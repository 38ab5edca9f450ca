//! After a crash: finishes every recording that the journal of an earlier process knows and the store does not.
//!
//! A node that only records cannot finish one, as that takes the key. It puts what the journal has into the store, where a node
//! that opens recordings finds and finishes it, as those of a node that never came back.
//!
//! Idempotent: a crash during recovery leaves it to the next start, which comes to the same objects.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::control::repair::{Outcome, SettleError, Settler};
use crate::domain::cmr::whole_frames_prefix;
use crate::domain::ids::{RecordingId, TenantId};
use crate::journal::{Replay, ReplayedRecording, ReplayedSegment};
use crate::keys::KeyError;
use crate::observe::metrics;
use crate::store::{ByteRange, ObjectName, PutOutcome, StoreError, layout};
use crate::upload::{CompactError, FinalObject, RecordingObjects, RetentionTags, Retry};

/// What the journal keeps about a recording that began. No personal data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedNote {
    /// Version of this record: 1.
    pub v: u8,
    /// The tenant's id.
    pub tenant: String,
    /// How many days the recording is kept.
    pub retention_days: u32,
}

/// What recovery did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Recordings finished now.
    pub recovered: u64,
    /// Recordings of which everything is in the store now, for a node that opens them to finish.
    pub handed_over: u64,
    /// Recordings that were finished before, or of which nothing had been sealed.
    pub nothing_to_do: u64,
    /// Recordings that could not be finished; they stay in the journal.
    pub failed: u64,
}

/// Why a recording was not recovered.
#[derive(Debug, thiserror::Error)]
enum RecoverError {
    #[error("journal does not name its tenant")]
    NoNote,
    #[error("journal file")]
    Journal(#[source] std::io::Error),
    #[error("key")]
    Key(#[from] KeyError),
    #[error("store")]
    Store(#[from] StoreError),
    #[error("final object")]
    Final(#[from] CompactError),
    #[error("segment {0} in the store is another one")]
    Conflict(ObjectName),
    #[error("finishing")]
    Settle(#[from] SettleError),
}

impl RecoverError {
    /// Whether a key service is the reason, and trying again may help.
    fn is_of_key_service(&self) -> bool {
        let (Self::Key(error) | Self::Settle(SettleError::Key(error))) = self else { return false };
        error.is_retryable() && !matches!(error, KeyError::Store(_))
    }

    fn is_retryable(&self) -> bool {
        match self {
            Self::Key(KeyError::Store(error))
            | Self::Store(error)
            | Self::Final(CompactError::Store(error)) => is_passing(error),
            Self::Settle(error) => error.is_retryable(),
            Self::Key(error) => error.is_retryable(),
            Self::NoNote | Self::Journal(_) | Self::Final(_) | Self::Conflict(_) => false,
        }
    }
}

/// A name that was listed and is gone was compacted by another node meanwhile.
fn is_passing(error: &StoreError) -> bool {
    error.is_retryable() || matches!(error, StoreError::NotFound)
}

/// What became of a recording.
enum Recovered {
    /// There was nothing to do.
    Nothing,
    Finished,
    HandedOver,
}

/// Finishes what earlier processes left.
pub struct Recovery {
    replay: Arc<Replay>,
    settler: Settler,
}

impl Recovery {
    /// Recovers what `replay` found.
    pub fn new(replay: Replay, settler: Settler) -> Self {
        Self { replay: Arc::new(replay), settler }
    }

    /// Recovers one recording after the other. While the store does not answer it waits and tries again. A recording whose key
    /// service does not answer waits behind the others: they may be of tenants with another one.
    pub async fn run(self) -> RecoveryReport {
        let mut report = RecoveryReport::default();
        let mut left = self.replay.recordings().to_vec();
        let mut retry = Retry::new(self.settler.policy());
        loop {
            let mut without_key = Vec::new();
            for recording in left {
                match self.recover_patiently(&recording).await {
                    Err(error) if error.is_of_key_service() => {
                        warn_of_waiting(recording.recording, &error);
                        without_key.push(recording);
                    }
                    outcome => self.note(&mut report, &recording, outcome).await,
                }
            }
            if without_key.is_empty() {
                return report;
            }
            left = without_key;
            tokio::time::sleep(retry.next_wait(u32::MAX / 2)).await;
        }
    }

    async fn note(
        &self,
        report: &mut RecoveryReport,
        recording: &ReplayedRecording,
        outcome: Result<Recovered, RecoverError>,
    ) {
        match outcome {
            Ok(Recovered::Finished) => {
                report.recovered += 1;
                ::metrics::counter!(metrics::RECORDINGS_RECOVERED).increment(1);
                tracing::info!(recording = %recording.recording, "recording recovered after a crash");
            }
            Ok(Recovered::HandedOver) => {
                report.handed_over += 1;
                ::metrics::counter!(metrics::RECORDINGS_HANDED_OVER).increment(1);
                tracing::info!(recording = %recording.recording, "recording cut off by a crash is stored, for others to finish");
            }
            Ok(Recovered::Nothing) => report.nothing_to_do += 1,
            Err(error) => {
                report.failed += 1;
                ::metrics::counter!(metrics::RECOVERY_FAILED).increment(1);
                tracing::error!(
                    recording = %recording.recording,
                    error = &error as &dyn std::error::Error,
                    "recording stays in the journal"
                );
                if let Ok((_, tenant)) = opened_note(recording) {
                    self.settler.tell_failed(&tenant, recording.recording, "recovery").await;
                }
                return;
            }
        }
        self.release(recording.recording).await;
    }

    async fn recover_patiently(&self, recording: &ReplayedRecording) -> Result<Recovered, RecoverError> {
        let mut retry = Retry::new(self.settler.policy());
        loop {
            match self.recover(recording).await {
                Err(error) if error.is_retryable() && !error.is_of_key_service() => {
                    let wait = retry.next_wait(u32::MAX / 2);
                    warn_of_waiting(recording.recording, &error);
                    tokio::time::sleep(wait).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn recover(&self, replayed: &ReplayedRecording) -> Result<Recovered, RecoverError> {
        if replayed.finished {
            return Ok(Recovered::Nothing);
        }
        let (note, tenant) = opened_note(replayed)?;
        if !self.can_be_finished(&tenant, replayed.recording).await? {
            // Its key was destroyed on purpose: nothing of it can be opened any more.
            return Ok(Recovered::Nothing);
        }
        let retention = RetentionTags { tenant: tenant.tag(), days: note.retention_days };
        let objects = self.settler.objects(&tenant, replayed.recording);
        let finals = finals(&objects).await?;
        for segment in &replayed.segments {
            self.put_segment(&objects, retention, &finals, segment).await?;
        }
        if !self.settler.opens() {
            return Ok(Recovered::HandedOver);
        }
        let settlement = self.settler.settle(&tenant, replayed.recording).await?;
        if settlement.set_aside > 0 {
            let segments = settlement.set_aside;
            tracing::warn!(recording = %replayed.recording, segments, "segments behind a missing one are not played");
        }
        match settlement.outcome {
            Outcome::Nothing => Ok(Recovered::Nothing),
            Outcome::AlreadyFinal | Outcome::Cleaned | Outcome::Finished { .. } => Ok(Recovered::Finished),
        }
    }

    /// Whether a recording has its key still; where recordings are opened, that it opens.
    async fn can_be_finished(&self, tenant: &TenantId, recording: RecordingId) -> Result<bool, RecoverError> {
        if !self.settler.opens() {
            return Ok(self.settler.has_key(tenant, recording).await?);
        }
        match self.settler.open_key(tenant, recording).await {
            Err(KeyError::NoEnvelope) => Ok(false),
            key => Ok(key.map(|_| true)?),
        }
    }

    /// Puts what the journal has of a segment that the store does not have.
    async fn put_segment(
        &self,
        objects: &RecordingObjects<'_>,
        retention: RetentionTags,
        finals: &[FinalObject],
        segment: &ReplayedSegment,
    ) -> Result<(), RecoverError> {
        if segment.stored {
            return Ok(());
        }
        let bytes = self.read_segment(segment).await?;
        if bytes.is_empty() || is_in(objects, finals, segment, &bytes).await? {
            return Ok(());
        }
        let name = layout::segment(objects.tenant, objects.recording, segment.writer, segment.seq);
        match objects.requests.put(&name, bytes.clone(), &retention.tags(clock::wall())).await? {
            PutOutcome::Created => Ok(()),
            // Stored before the crash, perhaps with frames that the journal had not written yet.
            PutOutcome::AlreadyExists
                if objects.requests.get(&name, None).await?.bytes.starts_with(&bytes) =>
            {
                Ok(())
            }
            PutOutcome::AlreadyExists => Err(RecoverError::Conflict(name)),
        }
    }

    async fn read_segment(&self, segment: &ReplayedSegment) -> Result<Bytes, RecoverError> {
        let (replay, wanted) = (Arc::clone(&self.replay), segment.clone());
        let reading = tokio::task::spawn_blocking(move || replay.segment_bytes(&wanted));
        let bytes = reading.await.map_err(|error| RecoverError::Journal(error.into()))?;
        let mut bytes = bytes.map_err(RecoverError::Journal)?;
        // The journal is cut at records, which hold whole frames; a reader of other frames would stop there as well.
        bytes.truncate(whole_frames_prefix(&bytes));
        Ok(bytes)
    }

    async fn release(&self, recording: RecordingId) {
        let replay = Arc::clone(&self.replay);
        let released = tokio::task::spawn_blocking(move || replay.release(recording)).await;
        if let Ok(Err(error)) = released {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(%recording, error, "journal keeps a recovered recording; it is compared again at the next start");
        }
    }
}

/// Reads what the journal says of a recording that began, and whose it is.
fn opened_note(replayed: &ReplayedRecording) -> Result<(OpenedNote, TenantId), RecoverError> {
    let note = replayed.body.as_deref().ok_or(RecoverError::NoNote)?;
    let note: OpenedNote = serde_json::from_slice(note).map_err(|_| RecoverError::NoNote)?;
    let tenant = note.tenant.parse().map_err(|_| RecoverError::NoNote)?;
    Ok((note, tenant))
}

/// Reads what the final objects of a recording hold: another node may have made one of what was stored.
async fn finals(objects: &RecordingObjects<'_>) -> Result<Vec<FinalObject>, RecoverError> {
    let mut finals = Vec::new();
    for (revision, info) in objects.finals().await? {
        finals.push(objects.read_final(revision, &info.name).await?);
    }
    Ok(finals)
}

/// Whether a final object has a segment, at least as far as the journal has it.
async fn is_in(
    objects: &RecordingObjects<'_>,
    finals: &[FinalObject],
    segment: &ReplayedSegment,
    bytes: &Bytes,
) -> Result<bool, RecoverError> {
    for object in finals.iter().rev() {
        let Some((row, position)) = object.rows.get(&(segment.writer, segment.seq)) else { continue };
        let span = ByteRange::Span(*position..*position + u64::from(row.byte_len));
        let stored = objects.requests.get(&object.name, Some(span)).await?.bytes;
        if stored.starts_with(bytes) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn warn_of_waiting(recording: RecordingId, error: &RecoverError) {
    tracing::warn!(%recording, error = error as &dyn std::error::Error, "recovery waits for the store");
}
