//! The task that owns one tenant's chain: puts records that wait at the same time into one object, and writes checkpoints.
//!
//! A checkpoint follows a minute after records, and then at intervals that double up to twelve hours, so that an idle
//! tenant costs next to nothing. Each says by when the chain will be heard of again: whoever cuts off the end of a chain
//! can only make it look like one that fell silent, and never like one that ended.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::chain::{Chain, Places};
use super::error::AuditError;
use super::log::WallClock;
use super::look::look;
use super::record::{AuditEvent, ChainEnd, Mark};
use crate::clock;
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;
use crate::jitter::part_of;
use crate::observe::metrics;

/// Records in one object.
const BATCH: usize = 256;
/// The longest time between two checkpoints of an idle chain.
const LONGEST_IDLE: Duration = Duration::from_secs(12 * 3600);
/// By how much a checkpoint may be late: the store may be slow, and clocks differ.
pub(super) const GRACE: Duration = Duration::from_secs(60);
/// The least time between two looks at other chains.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Ends of other chains are named again for so long: until a chain that died idle was to be heard of, and then until the
/// next look of one that is idle itself.
const RECENT: Duration = Duration::from_secs(26 * 3600);
/// How long a look may take. The next checkpoint looks again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// The same when a process ends.
const LAST_LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a writer is asked for.
pub(super) enum Order {
    /// Make a record durable.
    Record(Box<Waiting>),
    /// Begin a chain, if there is none.
    Begin,
    /// End the chain, if there is one.
    End(oneshot::Sender<()>),
}

/// A record, and who waits for it.
pub(super) struct Waiting {
    pub(super) event: AuditEvent,
    pub(super) mark: Option<Mark>,
    pub(super) done: oneshot::Sender<bool>,
}

/// The task of one tenant.
pub(super) struct Writer {
    places: Places,
    clock: WallClock,
    tenant: TenantId,
    chain: Option<Chain>,
    pace: Pace,
    looked: Option<UnixMillis>,
    looking: Option<JoinHandle<Found>>,
    /// The ends of other chains that are not long ago.
    known: HashMap<String, ChainEnd>,
}

/// What a look has found, and when it began; none if it failed.
type Found = Option<(Vec<ChainEnd>, UnixMillis)>;

/// When the next checkpoint is due.
struct Pace {
    every: Duration,
    idle: Duration,
    has_changed: bool,
    due: Option<Instant>,
}

impl Pace {
    fn changed(&mut self) {
        if !self.has_changed {
            self.has_changed = true;
            self.due = Some(Instant::now() + self.every);
        }
    }

    /// Answers in which time the checkpoint after one that is written now will be.
    fn next_idle(&self) -> Duration {
        if self.has_changed { self.every } else { (self.idle * 2).min(LONGEST_IDLE) }
    }

    fn written(&mut self, idle: Duration) {
        (self.idle, self.has_changed) = (idle, false);
        // Spread, so that a thousand tenants do not write in the same second; early, because it was promised.
        self.due = Some(Instant::now() + idle - part_of(idle / 8));
    }

    fn failed(&mut self) {
        self.due = Some(Instant::now() + self.every);
    }
}

impl Writer {
    pub(super) fn new(places: Places, clock: WallClock, every: Duration, tenant: TenantId) -> Self {
        let pace = Pace { every, idle: every, has_changed: false, due: None };
        Self { places, clock, tenant, chain: None, pace, looked: None, looking: None, known: HashMap::new() }
    }

    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let due = self.pace.due.filter(|_| self.chain.is_some() && self.looking.is_none());
            let looking = self.looking.as_mut();
            tokio::select! {
                found = wait_for(looking) => {
                    self.looking = None;
                    self.checkpoint(found).await;
                }
                count = orders.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.obey(std::mem::take(&mut batch)).await;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.due().await,
            }
        }
    }

    async fn obey(&mut self, orders: Vec<Order>) {
        let (mut records, mut ends, mut begins) = (Vec::new(), Vec::new(), false);
        for order in orders {
            match order {
                Order::Record(waiting) => records.push(*waiting),
                Order::Begin => begins = true,
                Order::End(done) => ends.push(done),
            }
        }
        if !records.is_empty() {
            self.write(records).await;
        }
        if begins && self.chain.is_none() {
            self.begin().await;
        }
        if !ends.is_empty() {
            self.end().await;
        }
        for done in ends {
            let _nobody_waits = done.send(()).is_err();
        }
    }

    async fn write(&mut self, waiting: Vec<Waiting>) {
        let (mut records, mut waiters) = (Vec::new(), Vec::new());
        for Waiting { event, mark, done } in waiting {
            records.push((event, mark));
            waiters.push(done);
        }
        let written = self.append(records).await;
        let tenant = &self.tenant;
        match &written {
            Ok(()) => self.pace.changed(),
            Err(error) => {
                let error = error as &dyn std::error::Error;
                tracing::error!(%tenant, error, "audit records are not durable; their actions are refused");
            }
        }
        for done in waiters {
            // Whoever gave up waiting refused the action already.
            if done.send(written.is_ok()).is_err() {
                tracing::debug!(%tenant, "nobody waits for an audit record any more");
            }
        }
    }

    async fn append(&mut self, records: Vec<(AuditEvent, Option<Mark>)>) -> Result<(), AuditError> {
        let now = (self.clock)();
        if self.chain.as_ref().is_some_and(|chain| chain.is_stale(now)) {
            self.forget_chain();
        }
        let chain = match &mut self.chain {
            Some(chain) => chain,
            none => none.insert(Chain::begin(&self.places, &self.tenant).await?),
        };
        let appended = chain.append(&self.places, now, records).await;
        if let Err(AuditError::Taken) = appended {
            self.forget_chain();
        }
        appended
    }

    fn forget_chain(&mut self) {
        (self.chain, self.looked) = (None, None);
        self.known.clear();
        self.pace = Pace { idle: self.pace.every, has_changed: false, due: None, ..self.pace };
    }

    /// Begins a chain, and looks at the others at once.
    async fn begin(&mut self) {
        match Chain::begin(&self.places, &self.tenant).await {
            Ok(chain) => {
                self.chain = Some(chain);
                self.pace.due = Some(Instant::now());
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(tenant = %self.tenant, error, "cannot begin an audit chain");
            }
        }
    }

    /// Begins a checkpoint: with a look, if the last one is old. Records do not wait for a look.
    async fn due(&mut self) {
        let now = (self.clock)();
        let is_fresh = self.looked.is_some_and(|looked| looked.plus(LOOK_EVERY) > now);
        match &self.chain {
            Some(_) if is_fresh => self.checkpoint(None).await,
            Some(chain) => self.looking = Some(tokio::spawn(self.look(chain, now, LOOK_TIMEOUT))),
            None => self.pace.due = None,
        }
    }

    fn look(
        &self,
        chain: &Chain,
        now: UnixMillis,
        longest: Duration,
    ) -> impl Future<Output = Found> + Send + use<> {
        let (store, tenant, own) = (self.places.store.clone(), self.tenant.clone(), chain.id());
        let since = self.looked;
        async move {
            let looked = tokio::time::timeout(longest, look(&*store, tenant.tag(), own, (since, now))).await;
            let failed = match looked {
                Ok(Ok(ends)) => return Some((ends, now)),
                Ok(Err(error)) => AuditError::Store(error),
                Err(_) => AuditError::Unavailable,
            };
            let error = &failed as &dyn std::error::Error;
            tracing::warn!(%tenant, error, "cannot look at other audit chains; the next checkpoint does");
            None
        }
    }

    async fn checkpoint(&mut self, found: Found) {
        let idle = self.pace.next_idle();
        let next_by = clock::rfc3339((self.clock)().plus(idle).plus(GRACE));
        let looked = found.as_ref().map(|(_, at)| *at);
        let chains = found.map(|(ends, at)| self.ends(ends, at)).unwrap_or_default();
        if self.mark(Mark::Checkpoint { next_by, chains }).await {
            self.pace.written(idle);
            self.looked = looked.or(self.looked);
        } else {
            self.pace.failed();
        }
    }

    /// Writes the end of the chain, after a last look if it has never looked.
    async fn end(&mut self) {
        self.looking = None;
        let Some(chain) = &self.chain else { return };
        let found = match self.looked {
            Some(_) => None,
            None => self.look(chain, (self.clock)(), LAST_LOOK_TIMEOUT).await,
        };
        let chains = found.map(|(ends, at)| self.ends(ends, at)).unwrap_or_default();
        self.mark(Mark::End { chains }).await;
        self.forget_chain();
    }

    /// Returns the ends that were found at `now`, and those that were known and have not moved since.
    fn ends(&mut self, found: Vec<ChainEnd>, now: UnixMillis) -> Vec<ChainEnd> {
        self.known.extend(found.into_iter().map(|end| (end.chain.clone(), end)));
        let mut ends: Vec<_> = self.known.values().cloned().collect();
        ends.sort_unstable_by(|one, other| (&one.at, &one.chain).cmp(&(&other.at, &other.chain)));
        let is_recent =
            |end: &ChainEnd| clock::parse_rfc3339(&end.at).is_some_and(|at| at.plus(RECENT) > now);
        self.known.retain(|_, end| is_recent(end));
        ends
    }

    async fn mark(&mut self, mark: Mark) -> bool {
        let event = AuditEvent::by_node(&self.places.node, mark.action(), String::new());
        let written = self.append(vec![(event, Some(mark))]).await;
        if let Err(error) = &written {
            let error = error as &dyn std::error::Error;
            ::metrics::counter!(metrics::AUDIT_CHECKPOINT_FAILURES).increment(1);
            tracing::error!(tenant = %self.tenant, error, "an audit checkpoint is not durable");
        }
        written.is_ok()
    }
}

async fn wait_for(looking: Option<&mut JoinHandle<Found>>) -> Found {
    match looking {
        Some(looking) => looking.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}
