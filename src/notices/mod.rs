//! Tells tenants' own servers what happens to their recordings.
//!
//! Whoever sees something happen says so to [`Notices`], which never makes a call, an upload or a deletion wait for anybody
//! outside: a notice is sealed and put into the outbox in the store by a task of its tenant, and delivered from there by
//! [`courier`], on any node, until the receiver has it or its time is over. From the outbox on a notice survives a crash.
//! Its name is created once and follows from what happened, so that nothing is told twice because two nodes saw it.

pub mod courier;
pub mod manage;
mod outbox;
mod post;
mod record;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use metrics::counter;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock;
use crate::config::{Tenant, Webhook};
use crate::domain::ids::{NoticeId, TenantId};
use crate::domain::notice::{Event, NoticeKind, Subject};
use crate::jitter::jittered;
use crate::keys::{KeyService, fill_random};
use crate::observe::metrics as names;
use crate::store::{PutOutcome, Store};

use manage::Desk;
pub use outbox::{Outbox, OutboxError};
pub use post::{PostError, Poster};

/// Notices of one tenant that may wait for the outbox, of about 1 KB each: a minute of the most calls that a tenant may begin
/// by default, with the store away.
const QUEUE: usize = 1024;
/// Notices of one tenant that are put at the same time.
const BATCH: usize = 16;
/// How long somebody waits who asks whether a notice is in the outbox.
const TOLD_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after the outbox did not take a notice; it doubles up to the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Notices for the courier that may wait; it finds the others in the store.
const WAKES: usize = 4096;
/// One notice that no key can be had is enough for so many milliseconds: five minutes.
const KEY_PERIOD_MS: u64 = 5 * 60 * 1000;

/// The webhooks of those tenants that have one.
type Hooks = HashMap<TenantId, Arc<Webhook>>;

/// Takes what happened; clones are the same.
#[derive(Clone, Default)]
pub struct Notices {
    inner: Option<Arc<Inner>>,
}

struct Inner {
    outbox: Arc<Outbox>,
    hooks: Arc<ArcSwap<Hooks>>,
    queues: Mutex<HashMap<TenantId, Queue>>,
    waiting: watch::Sender<usize>,
    wakes: mpsc::Sender<Wake>,
}

/// The way of one tenant's notices to the outbox.
#[derive(Clone)]
struct Queue {
    notices: mpsc::Sender<Told>,
    /// Whether the outbox did not take the last one.
    is_stuck: Arc<AtomicBool>,
}

/// A notice that was put into the outbox just now.
pub(crate) struct Wake {
    tenant: TenantId,
    notice: NoticeId,
}

/// What the courier needs beside its options.
pub struct Handover {
    outbox: Arc<Outbox>,
    hooks: Arc<ArcSwap<Hooks>>,
    wakes: mpsc::Receiver<Wake>,
}

/// One notice on its way to the outbox. Dropping it says that it does not wait any more.
struct Told {
    notice: NoticeId,
    body: Vec<u8>,
    done: Option<oneshot::Sender<()>>,
    waiting: watch::Sender<usize>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

impl Notices {
    /// Tells nobody anything.
    pub fn off() -> Self {
        Self::default()
    }

    /// Keeps notices in `store`, for those of `tenants` that have a webhook. Whoever delivers takes the second value.
    pub fn start<'a>(
        keys: Arc<KeyService>,
        store: Arc<dyn Store>,
        node: &str,
        tenants: impl IntoIterator<Item = &'a Tenant>,
    ) -> (Self, Handover) {
        let outbox = Arc::new(Outbox::new(store, keys, node.to_owned()));
        let hooks = Arc::new(ArcSwap::from_pointee(hooks_of(tenants)));
        let (wake, wakes) = mpsc::channel(WAKES);
        let inner = Inner {
            outbox: Arc::clone(&outbox),
            hooks: Arc::clone(&hooks),
            queues: Mutex::default(),
            waiting: watch::Sender::new(0),
            wakes: wake,
        };
        (Self { inner: Some(Arc::new(inner)) }, Handover { outbox, hooks, wakes })
    }

    /// Takes the webhooks of other tenants, or other webhooks.
    pub fn replace_tenants<'a>(&self, tenants: impl IntoIterator<Item = &'a Tenant>) {
        if let Some(inner) = &self.inner {
            inner.hooks.store(Arc::new(hooks_of(tenants)));
        }
    }

    /// Looks at the notices of a tenant, from the node that delivers them; `None` where nobody is told anything.
    pub fn desk(&self, tenant: TenantId) -> Option<Desk> {
        let inner = self.inner.as_ref()?;
        Some(Desk::of_node(Arc::clone(&inner.outbox), inner.wakes.clone(), tenant))
    }

    /// Tells of something, without waiting. To be called in a runtime.
    pub fn tell(&self, tenant: &TenantId, event: Event) {
        drop(self.hand_in(tenant, event));
    }

    /// Tells of something and waits until the notice is in the outbox, but not for long; answers whether it is, or nobody
    /// wants to know. If not, it gets there when the store and the key service take it, should this process live. While they
    /// take nothing, nobody waits.
    pub async fn told(&self, tenant: &TenantId, event: Event) -> bool {
        match self.hand_in(tenant, event) {
            HandedIn::Unwanted => true,
            HandedIn::Lost => false,
            HandedIn::Queued { is_stuck: true, .. } => false,
            HandedIn::Queued { in_outbox, .. } => {
                matches!(tokio::time::timeout(TOLD_TIMEOUT, in_outbox).await, Ok(Ok(())))
            }
        }
    }

    /// The same for several.
    pub async fn told_all(&self, tenant: &TenantId, events: Vec<Event>) -> bool {
        join_all(events.into_iter().map(|event| self.told(tenant, event))).await.into_iter().all(|told| told)
    }

    /// Tells that no key could be had for a call: once for some minutes, on all nodes.
    pub fn tell_key_unavailable(&self, tenant: &TenantId, why: &'static str) {
        let period = Subject::Period(clock::wall().0 / KEY_PERIOD_MS);
        let event = Event { kind: NoticeKind::KeyUnavailable, subject: period, facts: Default::default() };
        self.tell(tenant, event.because(why));
    }

    /// Tells that a call was refused or is not recorded.
    pub fn tell_unrecorded(&self, tenant: &TenantId, kind: NoticeKind, route: &str, why: &'static str) {
        let mut random = [0; 16];
        if fill_random(&mut random).is_err() {
            lost(tenant, "random");
            return;
        }
        let mut event = Event { kind, subject: Subject::Call(random), facts: Default::default() };
        event.facts.route = Some(route.to_owned());
        self.tell(tenant, event.because(why));
    }

    /// Waits until everything that was told is in the outbox; answers how much is not after `limit`.
    pub async fn flushed(&self, limit: Duration) -> usize {
        let Some(inner) = &self.inner else { return 0 };
        let mut waiting = inner.waiting.subscribe();
        match tokio::time::timeout(limit, waiting.wait_for(|waiting| *waiting == 0)).await {
            Ok(_) => 0,
            Err(_) => *inner.waiting.borrow(),
        }
    }

    fn hand_in(&self, tenant: &TenantId, mut event: Event) -> HandedIn {
        let Some(inner) = &self.inner else { return HandedIn::Unwanted };
        let hooks = inner.hooks.load();
        let Some(hook) = hooks.get(tenant).filter(|hook| hook.wants(event.kind)) else {
            return HandedIn::Unwanted;
        };
        if !hook.call_ids {
            event.facts.call = None;
        }
        let created = clock::rfc3339(clock::wall());
        let (done, in_outbox) = oneshot::channel();
        inner.waiting.send_modify(|waiting| *waiting += 1);
        let told = Told {
            notice: event.id(tenant.tag()),
            body: event.body(tenant, &created),
            done: Some(done),
            waiting: inner.waiting.clone(),
        };
        // Without room the notice is dropped: whatever it tells of must not wait.
        let Queue { notices, is_stuck } = inner.queue(tenant);
        if notices.try_send(told).is_err() {
            lost(tenant, "queue_full");
            return HandedIn::Lost;
        }
        HandedIn::Queued { in_outbox, is_stuck: is_stuck.load(Ordering::Relaxed) }
    }
}

/// What became of something that was told.
enum HandedIn {
    Unwanted,
    Lost,
    Queued { in_outbox: oneshot::Receiver<()>, is_stuck: bool },
}

impl Inner {
    /// The queue of a tenant, which has a task of its own, so that none waits for the key service of another.
    fn queue(&self, tenant: &TenantId) -> Queue {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(tenant.clone()).or_insert_with(|| {
            let (notices, waiting) = mpsc::channel(QUEUE);
            let queue = Queue { notices, is_stuck: Arc::default() };
            let (outbox, wakes, is_stuck) =
                (Arc::clone(&self.outbox), self.wakes.clone(), Arc::clone(&queue.is_stuck));
            tokio::spawn(Writer { outbox, wakes, is_stuck, tenant: tenant.clone() }.run(waiting));
            queue
        });
        queue.clone()
    }
}

/// The task that puts one tenant's notices into the outbox.
struct Writer {
    outbox: Arc<Outbox>,
    wakes: mpsc::Sender<Wake>,
    is_stuck: Arc<AtomicBool>,
    tenant: TenantId,
}

impl Writer {
    async fn run(self, mut waiting: mpsc::Receiver<Told>) {
        let mut batch = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut batch, BATCH).await > 0 {
            join_all(batch.drain(..).map(|told| self.write(told))).await;
        }
    }

    /// Tries until the outbox has the notice, or the process ends.
    async fn write(&self, mut told: Told) {
        let mut pause = FIRST_PAUSE;
        let outcome = loop {
            match self.outbox.put(&self.tenant, told.notice, &told.body).await {
                Ok(outcome) => break outcome,
                Err(error) => {
                    let (tenant, error) = (&self.tenant, &error as &dyn std::error::Error);
                    tracing::warn!(%tenant, error, "notice is not in the outbox yet; trying again");
                    self.is_stuck.store(true, Ordering::Relaxed);
                }
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        self.is_stuck.store(false, Ordering::Relaxed);
        if outcome == PutOutcome::Created {
            counter!(names::NOTICES_MADE).increment(1);
            let wake = Wake { tenant: self.tenant.clone(), notice: told.notice };
            // Without room, or without a courier in this process, the next look at the store finds it.
            let _told = self.wakes.try_send(wake).is_ok();
        }
        if let Some(done) = told.done.take() {
            // Whoever gave up waiting does not need to know.
            let _knows = done.send(()).is_ok();
        }
    }
}

fn lost(tenant: &TenantId, reason: &'static str) {
    counter!(names::NOTICES_LOST, "reason" => reason).increment(1);
    tracing::error!(%tenant, reason, "a notice is lost: its tenant is not told what happened");
}

fn hooks_of<'a>(tenants: impl IntoIterator<Item = &'a Tenant>) -> Hooks {
    let hook = |tenant: &Tenant| Some((tenant.id.clone(), Arc::new(tenant.webhook.clone()?)));
    tenants.into_iter().filter_map(hook).collect()
}
