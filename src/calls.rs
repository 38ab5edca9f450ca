//! Which calls of Vapi are heard, so that each makes one recording, however often and wherever its webhooks arrive.
//!
//! On this node a call is known by its id, from the first message about it until an hour after its end. Between nodes an object
//! that is created once says who was first. A store that does not answer in time decides nothing: two recordings of a call are
//! better than none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::counter;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::clock;
use crate::domain::ids::{TenantId, TenantTag};
use crate::domain::provider::vapi_webhook::{CallFacts, CallId};
use crate::domain::time::UnixMillis;
use crate::observe::metrics as names;
use crate::store::{ObjectClass, PutOutcome, Store, Tags, layout};

/// Calls of one tenant that are remembered: two a second for an hour. Beyond it those that are over are forgotten, and a
/// message about one of them that comes late costs a dial.
const MAX_REMEMBERED: usize = 8192;
/// How long a call that is over is remembered: longer than a webhook is tried again.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// News of a call that wait to be read: its end, its report, and repetitions of both.
const MAX_NEWS: usize = 8;
/// How long the store may take to say that nobody else hears a call. Its audio waits meanwhile.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(2);
/// A message whose time is further off than this does not say which day it is: two days.
const BELIEVED_MS: u64 = 2 * 24 * 60 * 60 * 1000;

/// What a message said about a call.
#[derive(Debug)]
pub enum News {
    /// It is over.
    Ended(CallFacts),
    /// It is over, and this is all there is to know of it.
    Report(CallFacts),
}

/// Why a call is not heard because of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBegun {
    /// It is heard already.
    Known,
    /// It is over.
    Over,
}

/// Who hears a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// This node; or nobody knows.
    Ours,
    /// Another node, or this one before it was started again.
    Elsewhere,
}

/// The calls that a node knows of.
pub struct Calls {
    store: Arc<dyn Store>,
    known: Mutex<HashMap<TenantId, OfTenant>>,
}

/// The calls of one tenant; no tenant can make another's be forgotten.
type OfTenant = HashMap<CallId, Known>;

enum Known {
    Heard(mpsc::Sender<News>),
    Over(Instant),
}

/// A call that is heard; it counts as over when this is dropped.
pub struct HeardCall {
    calls: Arc<Calls>,
    tenant: TenantId,
    call: CallId,
    /// What is said about it.
    pub news: mpsc::Receiver<News>,
}

impl Calls {
    /// Tells other nodes through `store`.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, known: Mutex::default() })
    }

    /// Whether a call may begin to be heard.
    ///
    /// # Errors
    /// [`NotBegun`].
    pub fn check(&self, tenant: &TenantId, call: &CallId, now: Instant) -> Result<(), NotBegun> {
        match self.known().get(tenant).and_then(|calls| calls.get(call)) {
            Some(Known::Heard(_)) => Err(NotBegun::Known),
            Some(Known::Over(since)) if is_remembered(*since, now) => Err(NotBegun::Over),
            Some(Known::Over(_)) | None => Ok(()),
        }
    }

    /// Begins to hear a call that [`Calls::check`] allows.
    pub fn begin(self: &Arc<Self>, tenant: &TenantId, call: &CallId, now: Instant) -> HeardCall {
        let (sender, news) = mpsc::channel(MAX_NEWS);
        remember(&mut self.known(), tenant, call, Known::Heard(sender), now);
        HeardCall { calls: Arc::clone(self), tenant: tenant.clone(), call: call.clone(), news }
    }

    /// Passes news on to whoever hears the call. Without anybody, the call is remembered as over.
    pub fn tell(&self, tenant: &TenantId, call: &CallId, news: News, now: Instant) {
        let mut known = self.known();
        match known.get(tenant).and_then(|calls| calls.get(call)) {
            // What does not fit is a repetition.
            Some(Known::Heard(heard)) => drop(heard.try_send(news)),
            Some(Known::Over(_)) => {}
            None => remember(&mut known, tenant, call, Known::Over(now), now),
        }
    }

    /// Asks the store whether another node hears the call. `sent_ms` is when Vapi wrote the message, which is the same in
    /// every repetition of it.
    pub async fn claim(&self, tenant: TenantTag, call: &CallId, sent_ms: Option<u64>) -> Claim {
        let now = clock::wall();
        let day = sent_ms.filter(|sent| sent.abs_diff(now.0) < BELIEVED_MS).map_or(now, UnixMillis);
        let name = layout::heard_call(&clock::utc_date(day), tenant, &blind(tenant, call));
        let tags = Tags::of(tenant, ObjectClass::Ticket);
        let putting = self.store.put_new(&name, Bytes::new(), &tags);
        match tokio::time::timeout(CLAIM_TIMEOUT, putting).await {
            Ok(Ok(PutOutcome::Created)) => Claim::Ours,
            Ok(Ok(PutOutcome::AlreadyExists)) => Claim::Elsewhere,
            Ok(Err(_)) | Err(_) => {
                counter!(names::VAPI_UNCONFIRMED).increment(1);
                Claim::Ours
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<TenantId, OfTenant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeardCall {
    fn drop(&mut self) {
        let now = clock::monotonic();
        remember(&mut self.calls.known(), &self.tenant, &self.call, Known::Over(now), now);
    }
}

fn is_remembered(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < REMEMBERED
}

/// Calls that are heard are bounded by the tenant's limit of streams; those that are over make room.
fn remember(
    known: &mut HashMap<TenantId, OfTenant>,
    tenant: &TenantId,
    call: &CallId,
    what: Known,
    now: Instant,
) {
    let calls = known.entry(tenant.clone()).or_default();
    if calls.len() >= MAX_REMEMBERED {
        calls.retain(|_, call| match call {
            Known::Heard(_) => true,
            Known::Over(since) => is_remembered(*since, now),
        });
    }
    if calls.len() >= MAX_REMEMBERED {
        calls.retain(|_, call| matches!(call, Known::Heard(_)));
    }
    calls.insert(call.clone(), what);
}

/// The provider's id of a call, in 16 bytes that tell nothing about it.
fn blind(tenant: TenantTag, call: &CallId) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"callseal vapi call\0");
    hash.update(tenant.0);
    hash.update(call.as_str());
    let digest: [u8; 32] = hash.finalize().into();
    crate::domain::ids::first_16(&digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::folder::Folder;

    const CALL: &str = "01a024d9-bef8-7b44-9a10-6f2c8e51b7d0";

    async fn calls(dir: &tempfile::TempDir) -> Arc<Calls> {
        Calls::new(Arc::new(Folder::open(dir.path().to_owned()).await.unwrap()))
    }

    fn ids() -> (TenantId, CallId) {
        ("acme".parse().unwrap(), CALL.parse().unwrap())
    }

    #[tokio::test]
    async fn a_call_is_heard_once_whatever_is_said_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (calls, (tenant, call), now) = (calls(&dir).await, ids(), clock::monotonic());
        assert_eq!(calls.check(&tenant, &call, now), Ok(()));
        let mut heard = calls.begin(&tenant, &call, now);
        assert_eq!(calls.check(&tenant, &call, now), Err(NotBegun::Known));
        assert_eq!(calls.check(&"other".parse().unwrap(), &call, now), Ok(()), "tenants do not share");
        for _ in 0..100 {
            calls.tell(&tenant, &call, News::Ended(CallFacts::default()), now);
        }
        let mut news = 0;
        while heard.news.try_recv().is_ok() {
            news += 1;
        }
        assert_eq!(news, MAX_NEWS);
        drop(heard);
        assert_eq!(calls.check(&tenant, &call, now), Err(NotBegun::Over));
        assert_eq!(calls.check(&tenant, &call, clock::monotonic() + REMEMBERED), Ok(()));
    }

    #[tokio::test]
    async fn the_end_of_a_call_may_be_said_first() {
        let dir = tempfile::tempdir().unwrap();
        let (calls, (tenant, call), now) = (calls(&dir).await, ids(), clock::monotonic());
        calls.tell(&tenant, &call, News::Report(CallFacts::default()), now);
        assert_eq!(calls.check(&tenant, &call, now), Err(NotBegun::Over));
    }

    #[tokio::test]
    async fn memory_is_bounded_and_no_tenant_pushes_out_another_or_a_call_that_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let (calls, (tenant, call), now) = (calls(&dir).await, ids(), clock::monotonic());
        let _heard = calls.begin(&tenant, &call, now);
        let other: TenantId = "other".parse().unwrap();
        calls.tell(&other, &call, News::Ended(CallFacts::default()), now);
        for number in 0..3 * MAX_REMEMBERED {
            let id = format!("{number:08x}-bef8-7b44-9a10-6f2c8e51b7d0").parse().unwrap();
            calls.tell(&tenant, &id, News::Ended(CallFacts::default()), now);
            assert!(calls.known()[&tenant].len() <= MAX_REMEMBERED);
        }
        assert_eq!(calls.check(&tenant, &call, now), Err(NotBegun::Known));
        assert_eq!(calls.check(&other, &call, now), Err(NotBegun::Over));
    }

    #[tokio::test]
    async fn of_two_nodes_one_hears_a_call() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, (tenant, call)) = (calls(&dir).await, calls(&dir).await, ids());
        let sent = Some(clock::wall().0);
        assert_eq!(one.claim(tenant.tag(), &call, sent).await, Claim::Ours);
        assert_eq!(two.claim(tenant.tag(), &call, sent).await, Claim::Elsewhere);
        let other: TenantId = "other".parse().unwrap();
        assert_eq!(two.claim(other.tag(), &call, sent).await, Claim::Ours);
    }
}
