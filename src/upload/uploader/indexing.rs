//! How a lane puts the entries of its recording into the blind index.
//!
//! Once something of the recording is stored, beside its segments, so that a call that goes on is found; and for certain
//! at its end, before the journal may forget it. The key that makes terms blind may be out of reach then: segments,
//! manifest and final object do not wait for it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::domain::ids::RecordingId;
use crate::domain::time::UnixMillis;
use crate::observe::metrics;
use crate::store::{ObjectName, StoreError};

use super::super::index::{Index, NotIndexed, see_to_order};
use super::super::put::random_u32;
use super::super::retry::Retry;
use super::{Body, Failed, LaneTask};

/// What a lane knows of its entries; clones are the same.
#[derive(Clone)]
pub(super) struct LaneIndex {
    index: Arc<dyn Index>,
    /// Somebody puts entries beside the segments, or has done so.
    is_begun: Arc<AtomicBool>,
    put: Arc<Mutex<BTreeSet<ObjectName>>>,
}

/// Why entries are not there.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error(transparent)]
    Terms(#[from] NotIndexed),
    #[error("store")]
    Store(#[source] StoreError),
    #[error("it took too long")]
    TimedOut,
}

impl LaneIndex {
    pub(super) fn new(index: Arc<dyn Index>) -> Self {
        Self { index, is_begun: Arc::default(), put: Arc::default() }
    }

    fn is_put(&self, name: &ObjectName) -> bool {
        self.put.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    fn note(&self, name: ObjectName) {
        self.put.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }
}

impl LaneTask {
    /// Puts what is known of the entries, beside whatever the lane does next; after a failure the next segment tries again.
    pub(super) fn index_beside(&self) {
        let Some(index) = self.index.clone().filter(|index| !index.is_begun.swap(true, Ordering::Relaxed))
        else {
            return;
        };
        let (context, shared, place) = (self.context, Arc::clone(&self.shared), self.place.clone());
        tokio::spawn(async move {
            let stored_bytes = AtomicU64::new(0);
            let beside = Self { context, shared, stored_bytes, index: Some(index.clone()), place };
            if let Err(error) = beside.try_index(&index, clock::wall()).await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(recording = %context.recording, error, "a call that goes on is not found yet");
                index.is_begun.store(false, Ordering::Relaxed);
            }
        });
    }

    /// Tries once to put all entries; answers whether they are there.
    pub(super) async fn index_now(&self, ended: UnixMillis) -> bool {
        let Some(index) = &self.index else { return true };
        match self.try_index(index, ended).await {
            Ok(()) => true,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(recording = %self.context.recording, error, "recording is not found yet");
                false
            }
        }
    }

    /// Puts all entries, and tries again for as long as that may help.
    pub(super) async fn index_at_last(&self, ended: UnixMillis) {
        let Some(index) = &self.index else { return };
        let recording = self.context.recording;
        let mut retry = Retry::new(self.shared.policy);
        loop {
            let tried = match self.try_index(index, ended).await {
                Ok(()) => self.see_to_order().await,
                Err(error) => Err(error),
            };
            let error = match tried {
                Ok(()) => return,
                Err(error) => error,
            };
            if matches!(&error, Missing::Terms(terms) if !terms.is_retryable) {
                ::metrics::counter!(metrics::INDEX_FAILURES).increment(1);
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    %recording, error,
                    "recording is stored and not found by call or number; see callseal recordings reindex"
                );
                return;
            }
            let wait = retry.next_wait(random_u32());
            warn_of_retry(recording, &error, wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// Nobody knew of these entries when an order was given before they came.
    async fn see_to_order(&self) -> Result<(), Missing> {
        let (store, context) = (&*self.shared.store, self.context);
        let seeing = see_to_order(store, context.retention.tenant, context.recording);
        match tokio::time::timeout(self.shared.policy.try_timeout, seeing).await {
            Ok(seen) => seen.map_err(Missing::Store),
            Err(_) => Err(Missing::TimedOut),
        }
    }

    async fn try_index(&self, index: &LaneIndex, at: UnixMillis) -> Result<(), Missing> {
        let limit = self.shared.policy.try_timeout;
        let entries = tokio::time::timeout(limit, index.index.entries()).await;
        let entries = entries.map_err(|_| Missing::TimedOut)??;
        let (tags, empty) = (self.context.retention.index_tags(at), Bytes::new());
        let names = entries.objects(self.context.retention.tenant, self.context.recording);
        for name in names.into_iter().filter(|name| !index.is_put(name)) {
            match self.try_once(&name, Body::Bytes(&empty), &tags).await {
                // Whatever stands in an entry, its name is all that counts.
                Ok(true | false) => index.note(name),
                Err(Failed::Store(Some(error))) => return Err(Missing::Store(error)),
                Err(Failed::Store(None) | Failed::Journal(_)) => return Err(Missing::TimedOut),
            }
        }
        Ok(())
    }
}

fn warn_of_retry(recording: RecordingId, error: &Missing, wait: Duration) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(%recording, error, wait_ms = wait.as_millis(), "recording is not found yet; trying again");
}
