//! The handle to the audit log, and the task that gives each tenant a writer of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::chain::Places;
use super::error::AuditError;
use super::file::AuditFile;
use super::record::{AuditEvent, Mark};
use super::refusals::Refusals;
use super::writer::{Order, Waiting, Writer};
use crate::clock;
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;
use crate::keys::KeyService;
use crate::observe::metrics;
use crate::store::Store;

/// Records that may wait: a second of a thousand listeners.
const QUEUE: usize = 1024;
/// How long a caller waits for durability before the action is refused.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);
/// A checkpoint follows a record so soon.
pub(super) const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// Refusals of strangers that are recorded one by one: enough to see what somebody tries, and at most 86,400 objects
/// a day and tenant.
const REFUSALS_PER_MINUTE: u32 = 60;
/// How long refusals are counted before they are told.
const MINUTE: Duration = Duration::from_secs(60);
/// How often the log of the process says that records cannot be written.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);

/// Shows the time.
pub type WallClock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// How a log is written.
#[derive(Clone)]
pub struct AuditOptions {
    /// A second place for every record; records count only when they are in both.
    pub file: Option<AuditFile>,
    /// How long a caller waits for durability before the action is refused.
    pub timeout: Duration,
    /// How soon a checkpoint follows a record.
    pub checkpoint_every: Duration,
    /// Refusals of strangers that are recorded one by one, for each tenant and minute.
    pub refusals_per_minute: u32,
    /// The clock that records have their times from.
    pub clock: WallClock,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self {
            file: None,
            timeout: RECORD_TIMEOUT,
            checkpoint_every: CHECKPOINT_EVERY,
            refusals_per_minute: REFUSALS_PER_MINUTE,
            clock: Arc::new(clock::wall),
        }
    }
}

/// A handle to the audit log; clones are the same log.
#[derive(Clone)]
pub struct AuditLog {
    queue: mpsc::Sender<Task>,
    shared: Arc<Shared>,
}

struct Shared {
    file: Option<AuditFile>,
    timeout: Duration,
    refusals: Refusals,
    complained: Mutex<(Option<Instant>, u64)>,
}

enum Task {
    Of(TenantId, Order),
    EndAll(oneshot::Sender<()>),
}

impl AuditLog {
    /// Starts the tasks that own the chains; they end when the last handle is dropped.
    pub fn start(node: String, keys: Arc<KeyService>, store: Arc<dyn Store>) -> Self {
        Self::start_with(AuditOptions::default(), node, keys, store)
    }

    /// The same, with other options.
    pub fn start_with(
        options: AuditOptions,
        node: String,
        keys: Arc<KeyService>,
        store: Arc<dyn Store>,
    ) -> Self {
        let (queue, tasks) = mpsc::channel(QUEUE);
        let AuditOptions { file, timeout, checkpoint_every, refusals_per_minute, clock } = options;
        let refusals = Refusals::new(refusals_per_minute);
        let shared = Arc::new(Shared { file: file.clone(), timeout, refusals, complained: Mutex::default() });
        let places = Places { node, keys, store, file };
        let router =
            Router { places, clock, checkpoint_every, shared: Arc::clone(&shared), tenants: HashMap::new() };
        tokio::spawn(router.run(tasks));
        Self { queue, shared }
    }

    /// Makes a record durable. The action may have its effect only after this has answered.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`]: the action must be refused.
    pub async fn record(&self, tenant: &TenantId, event: AuditEvent) -> Result<(), AuditError> {
        self.write(tenant, event, None).await
    }

    /// Records that somebody was refused who has shown nothing that proves who it is. Of many such refusals in a minute
    /// only the first are written one by one; the others are counted, and told when the minute is over.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`].
    pub async fn record_refusal(&self, tenant: &TenantId, event: AuditEvent) -> Result<(), AuditError> {
        match self.shared.refusals.take(tenant, event) {
            Some(event) => self.record(tenant, event).await,
            None => {
                ::metrics::counter!(metrics::AUDIT_REFUSALS_COUNTED).increment(1);
                Ok(())
            }
        }
    }

    /// Records that records from before a date are about to be removed.
    pub(super) async fn record_purge(
        &self,
        tenant: &TenantId,
        event: AuditEvent,
        kept_since: String,
    ) -> Result<(), AuditError> {
        self.write(tenant, event, Some(Mark::Purge { kept_since })).await
    }

    /// Begins a chain for a tenant, so that its checkpoints bear witness to the chains of before, and its first record
    /// does not wait for a key.
    pub async fn begin(&self, tenant: &TenantId) {
        // A log that has ended begins nothing.
        let _sent = self.queue.send(Task::Of(tenant.clone(), Order::Begin)).await.is_ok();
    }

    /// Ends all chains, so that they do not look as if their ends were cut off; answers whether that was done in time.
    /// Records that are written later begin new chains.
    pub async fn end(&self, longest: Duration) -> bool {
        let (done, ended) = oneshot::channel();
        let ending = async { self.queue.send(Task::EndAll(done)).await.is_ok() && ended.await.is_ok() };
        tokio::time::timeout(longest, ending).await.unwrap_or(false)
    }

    async fn write(
        &self,
        tenant: &TenantId,
        event: AuditEvent,
        mark: Option<Mark>,
    ) -> Result<(), AuditError> {
        let (done, durable) = oneshot::channel();
        let action = event.action.clone();
        let waiting = Box::new(Waiting { event, mark, done });
        let recorded = async {
            if self.shared.file.as_ref().is_some_and(AuditFile::hangs) {
                return Err(AuditError::Unavailable);
            }
            let task = Task::Of(tenant.clone(), Order::Record(waiting));
            self.queue.send(task).await.map_err(|_| AuditError::Unavailable)?;
            match durable.await {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(AuditError::Unavailable),
            }
        };
        let outcome =
            tokio::time::timeout(self.shared.timeout, recorded).await.unwrap_or(Err(AuditError::Unavailable));
        if outcome.is_err() {
            self.shared.complain(tenant, &action);
        }
        outcome
    }
}

impl Shared {
    /// Counts a record that could not be written, and says so, but not more often than anybody can read it.
    fn complain(&self, tenant: &TenantId, action: &str) {
        ::metrics::counter!(metrics::AUDIT_FAILURES).increment(1);
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unsaid) = &mut *complained;
        if last.is_some_and(|last| clock::since(last) < COMPLAIN_EVERY) {
            *unsaid += 1;
            return;
        }
        let more = std::mem::take(unsaid);
        *last = Some(clock::monotonic());
        tracing::error!(%tenant, action, more, "an audit record cannot be written; its action is refused");
    }
}

/// Gives each tenant a task of its own, so that none waits for the key service of another.
struct Router {
    places: Places,
    clock: WallClock,
    checkpoint_every: Duration,
    shared: Arc<Shared>,
    tenants: HashMap<TenantId, mpsc::Sender<Order>>,
}

impl Router {
    async fn run(mut self, mut tasks: mpsc::Receiver<Task>) {
        let mut minutes = tokio::time::interval(MINUTE);
        minutes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                task = tasks.recv() => match task {
                    Some(Task::Of(tenant, order)) => self.route(&tenant, order),
                    Some(Task::EndAll(done)) => self.end_all(done),
                    None => return,
                },
                _ = minutes.tick() => self.end_minute(),
            }
        }
    }

    fn route(&mut self, tenant: &TenantId, order: Order) {
        // Without room the record is dropped, which refuses its action.
        if self.tenant(tenant).try_send(order).is_err() {
            tracing::error!(%tenant, "too many audit records wait; their actions are refused");
        }
    }

    fn tenant(&mut self, tenant: &TenantId) -> &mpsc::Sender<Order> {
        self.tenants.entry(tenant.clone()).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(QUEUE);
            let (places, clock) = (self.places.clone(), Arc::clone(&self.clock));
            let writer = Writer::new(places, clock, self.checkpoint_every, tenant.clone());
            tokio::spawn(writer.run(waiting));
            queue
        })
    }

    /// Tells what was only counted.
    fn end_minute(&mut self) {
        for (tenant, event) in self.shared.refusals.end_minute() {
            let (done, durable) = oneshot::channel();
            self.route(&tenant, Order::Record(Box::new(Waiting { event, mark: None, done })));
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                if !durable.await.unwrap_or(false) {
                    shared.complain(&tenant, "more-refusals");
                }
            });
        }
    }

    fn end_all(&mut self, done: oneshot::Sender<()>) {
        self.end_minute();
        let writers: Vec<_> = self.tenants.values().cloned().collect();
        tokio::spawn(async move {
            let ends = writers.into_iter().map(|writer| async move {
                let (done, ended) = oneshot::channel();
                writer.send(Order::End(done)).await.is_ok() && ended.await.is_ok()
            });
            futures_util::future::join_all(ends).await;
            let _nobody_waits = done.send(()).is_err();
        });
    }
}
