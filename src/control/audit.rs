//! The audit log: who did what to which recording, when, from where and why.
//!
//! Every record is chained to the one before it by a hash, sealed under an audit key of its tenant, and durable in the
//! store before the action it tells of has any effect. A process writes one chain per tenant; a verifier joins the
//! chains by time. One task owns all chains, and puts records that wait at the same time into one object.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::domain::cmr::{SealedBox, sha256};
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::sign::encode_hex;
use crate::keys::{KeyError, KeyService, Minted, fill_random};
use crate::observe::metrics;
use crate::store::{ObjectClass, ObjectName, PutOutcome, Store, StoreError, Tags, layout};

/// Records that may wait: a second of a thousand listeners.
const QUEUE: usize = 1024;
/// Records in one object.
const BATCH: usize = 256;
/// How long a caller waits for durability before the action is refused.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the store may take for one object.
const PUT_TIMEOUT: Duration = Duration::from_secs(4);

/// What happened. Texts are bounded by whoever makes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// Who: a grant's subject, an operator, a node.
    pub actor: String,
    /// In which role: `player`, `operator`, `node`.
    pub role: String,
    /// From which address, if there is one.
    pub source: Option<String>,
    /// What: `play`, `record`, `mint-grant`, …
    pub action: String,
    /// To what: a recording, mostly.
    pub subject: String,
    /// Why, in the actor's words.
    pub reason: Option<String>,
    /// `allowed`, or the code of the refusal.
    pub result: String,
    /// The request's id; empty when no request was behind it.
    pub request: String,
    /// What else belongs to it, such as the recording root.
    pub detail: Option<String>,
}

impl AuditEvent {
    /// What a person or program orders that may; `allowed` unless said otherwise.
    pub fn by_operator(actor: &str, action: &str, subject: String) -> Self {
        Self::new(actor, "operator", action, subject)
    }

    /// What a node does of its own; `actor` is its name, or that of its part.
    pub fn by_node(actor: &str, action: &str, subject: String) -> Self {
        Self::new(actor, "node", action, subject)
    }

    fn new(actor: &str, role: &str, action: &str, subject: String) -> Self {
        Self {
            actor: actor.to_owned(),
            role: role.to_owned(),
            source: None,
            action: action.to_owned(),
            subject,
            reason: None,
            result: "allowed".to_owned(),
            request: String::new(),
            detail: None,
        }
    }
}

/// One link of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Version of this record: 1.
    pub v: u8,
    /// Its number in its chain, from 0.
    pub number: u64,
    /// SHA-256 of the record before it as stored, hexadecimal; zeros for the first.
    pub prev: String,
    /// RFC 3339, UTC.
    pub time: String,
    /// The node that wrote it.
    pub node: String,
    /// What happened.
    #[serde(flatten)]
    pub event: AuditEvent,
}

/// Why there is no audit record, and so no action.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Too many records wait, or the store does not take them in time.
    #[error("audit log does not take records")]
    Unavailable,
    /// The audit key.
    #[error("audit key")]
    Key(#[from] KeyError),
    /// The store.
    #[error("store of audit records")]
    Store(#[from] StoreError),
    /// A record that was changed, moved or removed.
    #[error("audit chain {chain} is broken at record {number}")]
    Broken {
        /// The chain.
        chain: RecordingId,
        /// The first record that does not fit.
        number: u64,
    },
}

/// A handle to the audit log; clones are the same log.
#[derive(Clone)]
pub struct AuditLog {
    queue: mpsc::Sender<Waiting>,
}

struct Waiting {
    tenant: TenantId,
    event: AuditEvent,
    done: oneshot::Sender<bool>,
}

impl AuditLog {
    /// Starts the tasks that own the chains; they end when the last handle is dropped.
    pub fn start(node: String, keys: Arc<KeyService>, store: Arc<dyn Store>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let router = Router { node, keys, store, tenants: HashMap::new() };
        tokio::spawn(router.run(waiting));
        Self { queue }
    }

    /// Makes a record durable. The action may have its effect only after this has answered.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`]: the action must be refused.
    pub async fn record(&self, tenant: &TenantId, event: AuditEvent) -> Result<(), AuditError> {
        let (done, durable) = oneshot::channel();
        let waiting = Waiting { tenant: tenant.clone(), event, done };
        let recorded = async {
            self.queue.send(waiting).await.map_err(|_| AuditError::Unavailable)?;
            match durable.await {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(AuditError::Unavailable),
            }
        };
        let outcome =
            tokio::time::timeout(RECORD_TIMEOUT, recorded).await.unwrap_or(Err(AuditError::Unavailable));
        if outcome.is_err() {
            ::metrics::counter!(metrics::AUDIT_FAILURES).increment(1);
        }
        outcome
    }
}

/// Gives each tenant a task of its own, so that none waits for the key service of another.
struct Router {
    node: String,
    keys: Arc<KeyService>,
    store: Arc<dyn Store>,
    tenants: HashMap<TenantId, mpsc::Sender<Waiting>>,
}

impl Router {
    async fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        while let Some(one) = waiting.recv().await {
            // Without room the record is dropped, which refuses its action.
            if let Err(refused) = self.tenant(&one.tenant).try_send(one) {
                let tenant = refused.into_inner().tenant;
                tracing::error!(%tenant, "too many audit records wait; their actions are refused");
            }
        }
    }

    fn tenant(&mut self, tenant: &TenantId) -> &mpsc::Sender<Waiting> {
        self.tenants.entry(tenant.clone()).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(QUEUE);
            let (node, keys, store) = (self.node.clone(), Arc::clone(&self.keys), Arc::clone(&self.store));
            let writer = ChainWriter { node, keys, store, tenant: tenant.clone(), chain: None };
            tokio::spawn(writer.run(waiting));
            queue
        })
    }
}

/// The task that owns one tenant's chain.
struct ChainWriter {
    node: String,
    keys: Arc<KeyService>,
    store: Arc<dyn Store>,
    tenant: TenantId,
    chain: Option<Chain>,
}

/// One tenant's chain of this process.
struct Chain {
    key: Minted,
    next_object: u32,
    next_number: u64,
    prev: String,
}

impl ChainWriter {
    async fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut batch, BATCH).await > 0 {
            self.write(std::mem::take(&mut batch)).await;
        }
    }

    async fn write(&mut self, records: Vec<Waiting>) {
        let written = self.try_write(&records).await;
        let tenant = &self.tenant;
        if let Err(error) = &written {
            let error = error as &dyn std::error::Error;
            tracing::error!(%tenant, error, "audit records are not durable; their actions are refused");
            // The chain may have an object that we do not know of: a new one begins.
            self.chain = None;
        }
        for record in records {
            // Whoever gave up waiting refused the action already.
            if record.done.send(written.is_ok()).is_err() {
                tracing::debug!(%tenant, "nobody waits for an audit record any more");
            }
        }
    }

    async fn try_write(&mut self, records: &[Waiting]) -> Result<(), AuditError> {
        if self.chain.is_none() {
            let key = self.keys.mint(&self.tenant).await?;
            self.chain = Some(Chain { key, next_object: 0, next_number: 0, prev: "0".repeat(64) });
        }
        let chain = self.chain.as_mut().ok_or(AuditError::Unavailable)?;
        let now = clock::wall();
        let mut text = Vec::new();
        let (mut number, mut prev) = (chain.next_number, chain.prev.clone());
        for waiting in records {
            let record = AuditRecord {
                v: 1,
                number,
                prev,
                time: clock::rfc3339(now),
                node: self.node.clone(),
                event: waiting.event.clone(),
            };
            let line = serde_json::to_vec(&record).map_err(|_| AuditError::Unavailable)?;
            prev = encode_hex(&sha256(&line));
            number += 1;
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        let ids = chain.key.ids;
        let mut salt = [0; 32];
        fill_random(&mut salt)?;
        let context = context(ids.tenant, ids.recording, chain.next_object);
        let sealed = SealedBox::AUDIT_RECORD
            .seal(chain.key.dek.expose(), &salt, &context, &text)
            .map_err(|_| AuditError::Unavailable)?;
        let name = layout::audit(ids.tenant, &clock::utc_date(now), ids.recording, chain.next_object);
        let tags = Tags::of(ids.tenant, ObjectClass::Audit);
        let put = self.store.put_new(&name, Bytes::from(sealed), &tags);
        let outcome = tokio::time::timeout(PUT_TIMEOUT, put).await.map_err(|_| AuditError::Unavailable)??;
        if outcome == PutOutcome::AlreadyExists {
            return Err(AuditError::Unavailable);
        }
        (chain.next_number, chain.prev) = (number, prev);
        chain.next_object += 1;
        ::metrics::counter!(metrics::AUDIT_RECORDS).increment(records.len() as u64);
        Ok(())
    }
}

/// Reads all audit records of a tenant, oldest first, and checks that no chain is broken.
///
/// # Errors
/// [`AuditError::Broken`] when a record was changed, moved or removed from within a chain.
pub async fn read(
    tenant: &TenantId,
    keys: &KeyService,
    store: &dyn Store,
) -> Result<Vec<AuditRecord>, AuditError> {
    let tag = tenant.tag();
    let mut chains: HashMap<RecordingId, Vec<(u32, ObjectName)>> = HashMap::new();
    let (prefix, mut after) = (layout::audit_prefix(tag), None);
    loop {
        let page = store.list_after(&prefix, after.as_ref(), 1000).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        for object in page {
            if let Some((chain, seq)) = parse_name(&object.name) {
                chains.entry(chain).or_default().push((seq, object.name));
            }
        }
    }
    let mut records = Vec::new();
    for (chain, mut objects) in chains {
        objects.sort();
        let key = keys.open(tenant, chain).await?;
        records.extend(read_chain(chain, tag, key.dek.expose(), objects, store).await?);
    }
    sort_by_time(&mut records);
    Ok(records)
}

/// Joins chains. Times are compared as times: as texts, a second without a fraction would come after its own milliseconds.
fn sort_by_time(records: &mut [AuditRecord]) {
    records.sort_by_key(|record| (clock::parse_rfc3339(&record.time), record.number));
}

async fn read_chain(
    chain: RecordingId,
    tag: TenantTag,
    key: &[u8; 32],
    objects: Vec<(u32, ObjectName)>,
    store: &dyn Store,
) -> Result<Vec<AuditRecord>, AuditError> {
    let mut records: Vec<AuditRecord> = Vec::new();
    let mut prev = "0".repeat(64);
    for (index, (_, name)) in objects.iter().enumerate() {
        let broken = || AuditError::Broken { chain, number: records.len() as u64 };
        let fetched = store.get(name, None).await?;
        // The context holds the place that the object must have, so a missing or moved one does not open.
        let context = context(tag, chain, u32::try_from(index).map_err(|_| broken())?);
        let text = SealedBox::AUDIT_RECORD.open(key, &context, &fetched.bytes).map_err(|_| broken())?;
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let broken = || AuditError::Broken { chain, number: records.len() as u64 };
            let record: AuditRecord = serde_json::from_slice(line).map_err(|_| broken())?;
            if record.prev != prev || record.number != records.len() as u64 {
                return Err(broken());
            }
            prev = encode_hex(&sha256(line));
            records.push(record);
        }
    }
    Ok(records)
}

fn parse_name(name: &ObjectName) -> Option<(RecordingId, u32)> {
    let (_, file) = name.as_str().rsplit_once('/')?;
    let (chain, seq) = file.strip_suffix(".car")?.split_once('-')?;
    Some((chain.parse().ok()?, seq.parse().ok()?))
}

fn context(tenant: TenantTag, chain: RecordingId, object: u32) -> Vec<u8> {
    [&tenant.0[..], &chain.0, &object.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::UnixMillis;

    #[test]
    fn records_come_in_the_order_of_their_times() {
        let record = |(number, millis): (u64, u64)| AuditRecord {
            v: 1,
            number,
            prev: String::new(),
            time: clock::rfc3339(UnixMillis(1_790_000_000_000 + millis)),
            node: "a".to_owned(),
            event: AuditEvent::by_node("a", "record", String::new()),
        };
        // Written without the zeros at their end, these are not in the order of the alphabet.
        let mut records: Vec<_> = [(3, 632), (2, 631), (1, 630), (0, 0), (4, 632)].map(record).into();
        sort_by_time(&mut records);
        assert_eq!(records.iter().map(|record| record.number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }
}
