//! After a crash: finishes every recording that the journal of an earlier process knows and the store does not.
//!
//! Idempotent: a crash during recovery leaves it to the next start, which comes to the same objects.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::control::recordings::{RecordingError, stored_segments};
use crate::domain::cmr::whole_frames_prefix;
use crate::domain::ids::{RecordingId, TenantId, WriterId};
use crate::domain::recovery::{Rebuild, RebuildError};
use crate::journal::{Replay, ReplayedRecording, ReplayedSegment};
use crate::keys::{KeyError, KeyService, OpenedKey, fill_random};
use crate::observe::metrics;
use crate::store::{ObjectName, PutOutcome, Store, StoreError, Tags, layout};
use crate::upload::{CompactError, RetentionTags, Retry, RetryPolicy, compact};

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
    #[error("stored segments")]
    Listing(#[from] RecordingError),
    #[error("segment {0} in the store is another one")]
    Conflict(ObjectName),
    #[error("segments")]
    Rebuild(#[from] RebuildError),
    #[error("compaction")]
    Compact(#[from] CompactError),
}

impl RecoverError {
    fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error)
            | Self::Key(KeyError::Store(error))
            | Self::Compact(CompactError::Store(error)) => error.is_retryable(),
            Self::Listing(RecordingError::Unavailable(_)) | Self::Key(KeyError::TimedOut) => true,
            Self::NoNote
            | Self::Journal(_)
            | Self::Key(_)
            | Self::Listing(_)
            | Self::Conflict(_)
            | Self::Rebuild(_)
            | Self::Compact(_) => false,
        }
    }
}

/// Finishes what earlier processes left.
pub struct Recovery {
    replay: Arc<Replay>,
    keys: Arc<KeyService>,
    store: Arc<dyn Store>,
    policy: RetryPolicy,
}

impl Recovery {
    /// Recovers what `replay` found.
    pub fn new(replay: Replay, keys: Arc<KeyService>, store: Arc<dyn Store>, policy: RetryPolicy) -> Self {
        Self { replay: Arc::new(replay), keys, store, policy }
    }

    /// Recovers one recording after the other. While the store does not answer it waits and tries again.
    pub async fn run(self) -> RecoveryReport {
        let mut report = RecoveryReport::default();
        for recording in self.replay.recordings().to_vec() {
            match self.recover_patiently(&recording).await {
                Ok(true) => {
                    report.recovered += 1;
                    ::metrics::counter!(metrics::RECORDINGS_RECOVERED).increment(1);
                    tracing::info!(recording = %recording.recording, "recording recovered after a crash");
                }
                Ok(false) => report.nothing_to_do += 1,
                Err(error) => {
                    report.failed += 1;
                    ::metrics::counter!(metrics::RECOVERY_FAILED).increment(1);
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(recording = %recording.recording, error, "recording stays in the journal");
                    continue;
                }
            }
            self.release(recording.recording).await;
        }
        report
    }

    async fn recover_patiently(&self, recording: &ReplayedRecording) -> Result<bool, RecoverError> {
        let mut retry = Retry::new(self.policy);
        loop {
            match self.recover(recording).await {
                Err(error) if error.is_retryable() => {
                    let wait = retry.next_wait(u32::MAX / 2);
                    warn_of_waiting(recording.recording, &error);
                    tokio::time::sleep(wait).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Answers whether there was anything to do.
    async fn recover(&self, replayed: &ReplayedRecording) -> Result<bool, RecoverError> {
        if replayed.finished {
            return Ok(false);
        }
        let note = replayed.body.as_deref().ok_or(RecoverError::NoNote)?;
        let note: OpenedNote = serde_json::from_slice(note).map_err(|_| RecoverError::NoNote)?;
        let tenant: TenantId = note.tenant.parse().map_err(|_| RecoverError::NoNote)?;
        let key = match self.keys.open(&tenant, replayed.recording).await {
            // Its key was destroyed on purpose: nothing of it can be opened any more.
            Err(KeyError::NoEnvelope) => return Ok(false),
            key => key?,
        };
        let retention = RetentionTags { tenant: key.ids.tenant, days: note.retention_days };
        match compact(
            &*self.store,
            key.ids.tenant,
            replayed.recording,
            &retention.tags(clock::wall()),
            self.policy,
        )
        .await
        {
            // Everything but the last step was done before the crash.
            Ok(()) => return Ok(true),
            Err(CompactError::NoManifest) => {}
            Err(error) => return Err(error.into()),
        }
        for segment in &replayed.segments {
            self.put_segment(&key, retention, segment).await?;
        }
        self.finish(&key, retention).await
    }

    /// Puts what the journal has of a segment that the store does not have.
    async fn put_segment(
        &self,
        key: &OpenedKey,
        retention: RetentionTags,
        segment: &ReplayedSegment,
    ) -> Result<(), RecoverError> {
        if segment.stored {
            return Ok(());
        }
        let bytes = self.read_segment(segment).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let name = layout::segment(key.ids.tenant, key.ids.recording, segment.writer, segment.seq);
        match self.store.put_new(&name, bytes.clone(), &retention.tags(clock::wall())).await? {
            PutOutcome::Created => Ok(()),
            // Stored before the crash, perhaps with frames that the journal had not written yet.
            PutOutcome::AlreadyExists if self.store.get(&name, None).await?.bytes.starts_with(&bytes) => {
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

    /// Makes the manifest from all segments in the store, and the final object; `false` if there is no segment.
    async fn finish(&self, key: &OpenedKey, retention: RetentionTags) -> Result<bool, RecoverError> {
        let segments = stored_segments(&*self.store, &key.ids).await?;
        if segments.is_empty() {
            return Ok(false);
        }
        let mut rebuild = Rebuild::new(&key.dek, key.ids);
        for (writer, seq, name) in segments {
            rebuild.add(writer, seq, &self.store.get(&name, None).await?.bytes)?;
        }
        let (mut writer, mut salt) = (WriterId([0; 16]), [0; 32]);
        fill_random(&mut writer.0)?;
        fill_random(&mut salt)?;
        let rebuilt = rebuild.finish(writer, &salt, clock::wall())?;
        let (tenant, recording) = (key.ids.tenant, key.ids.recording);
        let ended = crate::domain::time::UnixMillis(rebuilt.end.ended_ms);
        let expiry = layout::expiry(&clock::utc_date(retention.expires(ended)), tenant, recording);
        // A taken name is an entry that an earlier attempt made.
        self.store.put_new(&expiry, Bytes::new(), &Tags::new()).await?;
        let name = layout::manifest(tenant, recording, 0);
        // A taken name is a manifest of the same segments that an earlier attempt made.
        self.store.put_new(&name, Bytes::from(rebuilt.manifest), &retention.tags(ended)).await?;
        compact(&*self.store, tenant, recording, &retention.tags(ended), self.policy).await?;
        Ok(true)
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

fn warn_of_waiting(recording: RecordingId, error: &RecoverError) {
    tracing::warn!(%recording, error = error as &dyn std::error::Error, "recovery waits for the store");
}
