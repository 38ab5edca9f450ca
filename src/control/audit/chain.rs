//! One chain: seals records, and makes an object of them durable in every place where it must be.
//!
//! An object whose fate is not known is not given up: it is put again before anything else is written, so a chain goes on
//! after any outage and never has a hole.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::error::AuditError;
use super::file::{self, AuditFile};
use super::place::Place;
use super::record::{AuditEvent, AuditRecord, Mark};
use crate::clock;
use crate::domain::cmr::{SealedBox, sha256};
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::keys::{KeyService, Minted, fill_random};
use crate::observe::metrics;
use crate::store::{ObjectClass, ObjectName, PutOutcome, Store, Tags};

/// How long the store may take for one object.
const PUT_TIMEOUT: Duration = Duration::from_secs(4);
/// A chain that has not written for so long is not gone on with: its key may have been destroyed with its old records.
pub(super) const LONGEST_SILENCE: Duration = Duration::from_secs(24 * 3600);

/// What is needed to write any chain.
#[derive(Clone)]
pub(super) struct Places {
    pub(super) node: String,
    pub(super) keys: Arc<KeyService>,
    pub(super) store: Arc<dyn Store>,
    pub(super) file: Option<AuditFile>,
}

/// The chain of one tenant and process.
pub(super) struct Chain {
    key: Minted,
    tip: Tip,
    pending: Option<Pending>,
}

/// Where the next object of a chain goes.
#[derive(Clone)]
struct Tip {
    objects: u32,
    number: u64,
    prev: String,
    at: Option<UnixMillis>,
}

/// An object that is not known to be durable everywhere.
struct Pending {
    name: ObjectName,
    sealed: Bytes,
    records: usize,
    is_stored: bool,
    /// Where the next one goes then.
    tip: Tip,
}

impl Chain {
    pub(super) async fn begin(places: &Places, tenant: &TenantId) -> Result<Self, AuditError> {
        let key = places.keys.mint(tenant).await?;
        let tip = Tip { objects: 0, number: 0, prev: "0".repeat(64), at: None };
        Ok(Self { key, tip, pending: None })
    }

    pub(super) fn id(&self) -> RecordingId {
        self.key.ids.recording
    }

    /// Whether it was silent for so long that a new one should begin.
    pub(super) fn is_stale(&self, now: UnixMillis) -> bool {
        self.pending.is_none() && self.tip.at.is_some_and(|at| at.plus(LONGEST_SILENCE) < now)
    }

    /// Makes records durable.
    ///
    /// # Errors
    /// [`AuditError`]; the records may become durable later, before the next ones.
    pub(super) async fn append(
        &mut self,
        places: &Places,
        now: UnixMillis,
        records: Vec<(AuditEvent, Option<Mark>)>,
    ) -> Result<(), AuditError> {
        self.settle(places).await?;
        self.pending = Some(self.seal(&places.node, now, records)?);
        self.settle(places).await
    }

    fn seal(
        &self,
        node: &str,
        now: UnixMillis,
        records: Vec<(AuditEvent, Option<Mark>)>,
    ) -> Result<Pending, AuditError> {
        let (ids, mut tip, count) = (self.key.ids, self.tip.clone(), records.len());
        // A clock that goes back must not put a chain's objects into another order.
        let at = tip.at.map_or(now, |last| last.max(now));
        let place = Place { at, chain: ids.recording, seq: tip.objects };
        let mut text = Vec::new();
        for (event, mark) in records {
            let record = AuditRecord {
                v: 1,
                number: tip.number,
                prev: tip.prev,
                after: tip.at.map(clock::rfc3339),
                time: clock::rfc3339(at),
                node: node.to_owned(),
                event,
                mark,
            };
            let line = serde_json::to_vec(&record).map_err(|_| AuditError::Unavailable)?;
            let prev = encode_hex(&sha256(&line));
            tip = Tip { objects: tip.objects, number: tip.number + 1, prev, at: Some(at) };
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        tip.objects += 1;
        let mut salt = [0; 32];
        fill_random(&mut salt)?;
        let sealed = SealedBox::AUDIT_RECORD
            .seal(self.key.dek.expose(), &salt, &place.context(ids.tenant), &text)
            .map_err(|_| AuditError::Unavailable)?;
        let (name, sealed) = (place.name(ids.tenant), Bytes::from(sealed));
        Ok(Pending { name, sealed, records: count, is_stored: false, tip })
    }

    /// Puts what is pending into every place where it is not yet.
    async fn settle(&mut self, places: &Places) -> Result<(), AuditError> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        if !pending.is_stored {
            let tags = Tags::of(self.key.ids.tenant, ObjectClass::Audit);
            let put = put(&*places.store, pending, &tags);
            tokio::time::timeout(PUT_TIMEOUT, put).await.map_err(|_| AuditError::Unavailable)??;
            pending.is_stored = true;
        }
        if let Some(copy) = &places.file {
            let line = file::line(&pending.name, &pending.sealed, pending.records, &pending.tip.prev);
            if let Err(error) = copy.append(line).await {
                ::metrics::counter!(metrics::AUDIT_FILE_FAILURES).increment(1);
                return Err(AuditError::File(error));
            }
        }
        ::metrics::counter!(metrics::AUDIT_RECORDS).increment(pending.records as u64);
        if let Some(settled) = self.pending.take() {
            self.tip = settled.tip;
        }
        Ok(())
    }
}

/// Puts an object, or finds that an earlier try has put it.
async fn put(store: &dyn Store, pending: &Pending, tags: &Tags) -> Result<(), AuditError> {
    match store.put_new(&pending.name, pending.sealed.clone(), tags).await? {
        PutOutcome::Created => Ok(()),
        PutOutcome::AlreadyExists => {
            let there = store.get(&pending.name, None).await?;
            // Somebody else's object under a name that only this chain knows: nothing more can be written to it.
            if there.bytes == pending.sealed { Ok(()) } else { Err(AuditError::Taken) }
        }
    }
}
