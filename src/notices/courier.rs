//! Delivers notices from the outbox: one task for each tenant, so that a receiver that hangs delays nobody else's notices.
//!
//! A notice is sent at once by the node that made it, and by any other that finds it waiting longer than one look at the store
//! takes. Attempts are claimed in the store before they are made. When the next one is due follows from when the last was
//! begun, by the store's clock, so that every node comes to the same time and a node that dies leaves nothing behind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::clock;
use crate::config::{Webhook, WebhookNode};
use crate::domain::ids::{NoticeId, TenantId};
use crate::domain::notice::Schedule;
use crate::domain::time::UnixMillis;
use crate::jitter::{jittered, part_of};
use crate::observe::metrics as names;
use crate::observe::traces::{Span, words};
use crate::store::layout::NoticePlace;

use super::outbox::{Outbox, OutboxError, Waiting};
use super::post::{PostError, Poster};
use super::record::Settled;
use super::{Handover, Hooks, Wake, lost};

/// Waiting notices of one tenant that a node knows of, of about 100 bytes each; it takes others up when these are delivered.
const MAX_KNOWN: usize = 10_000;
/// The pause when the store or the key service does not let a notice be sent.
const TROUBLE_PAUSE: Duration = Duration::from_secs(15);
/// How often it is tried again to note that a notice was delivered or is dead, and the pause between.
const SETTLE_RETRIES: u32 = 10;
const SETTLE_PAUSE: Duration = Duration::from_secs(2);
/// How long a delivered notice is remembered, so that a repetition of the same event is not told again.
const KEEP_SENT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a dead notice can be sent again.
const KEEP_DEAD: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often what was kept for long enough is looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// What one such look removes at most for one tenant and place; the next one goes on.
const TIDY_LIMIT: usize = 10_000;

/// How notices are delivered.
#[derive(Debug, Clone)]
pub struct CourierOptions {
    /// When notices are told again.
    pub schedule: Schedule,
    /// From one look at the store to the next.
    pub scan_interval: Duration,
    /// Notices of one tenant on their way at the same time.
    pub concurrency: usize,
}

impl From<&WebhookNode> for CourierOptions {
    fn from(node: &WebhookNode) -> Self {
        let WebhookNode { schedule, scan_interval, concurrency, .. } = node;
        Self { schedule: *schedule, scan_interval: *scan_interval, concurrency: *concurrency }
    }
}

/// Runs as long as the process: what is on its way when that ends is told again later.
pub struct Courier {
    shared: Arc<Shared>,
    wakes: mpsc::Receiver<Wake>,
}

struct Shared {
    outbox: Arc<Outbox>,
    hooks: Arc<ArcSwap<Hooks>>,
    poster: Poster,
    options: CourierOptions,
    /// What the last look at each tenant's outbox has found.
    backlog: Mutex<HashMap<TenantId, Backlog>>,
}

/// What waits for one tenant.
#[derive(Debug, Clone, Copy, Default)]
struct Backlog {
    count: usize,
    oldest: Duration,
}

impl Courier {
    /// Delivers what `handover` is about.
    pub fn new(handover: Handover, poster: Poster, options: CourierOptions) -> Self {
        let Handover { outbox, hooks, wakes } = handover;
        let shared = Shared { outbox, hooks, poster, options, backlog: Mutex::default() };
        Self { shared: Arc::new(shared), wakes }
    }

    /// Gives each tenant with a webhook a task, and passes on what was made just now. Dropping it ends them all.
    pub async fn run(mut self) {
        let mut postmen: HashMap<TenantId, mpsc::Sender<NoticeId>> = HashMap::new();
        let shared = Arc::clone(&self.shared);
        let mut look = tokio::time::interval(shared.options.scan_interval.min(Duration::from_secs(1)));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    // Of a tenant whose webhook is gone nobody is told; its task ends with its queue.
                    let hooks = shared.hooks.load();
                    postmen.retain(|tenant, queue| hooks.contains_key(tenant) && !queue.is_closed());
                    for tenant in hooks.keys() {
                        if !postmen.contains_key(tenant) {
                            postmen.insert(tenant.clone(), Postman::start(&shared, tenant.clone()));
                        }
                    }
                    shared.forget_backlog_of_others(&hooks);
                }
                wake = self.wakes.recv() => {
                    // The outbox lives as long as the process.
                    let Some(Wake { tenant, notice }) = wake else { return };
                    if let Some(queue) = postmen.get(&tenant) {
                        // Without room the next look at the store finds it.
                        let _taken = queue.try_send(notice).is_ok();
                    }
                }
            }
        }
    }
}

impl Shared {
    fn hook(&self, tenant: &TenantId) -> Option<Arc<Webhook>> {
        self.hooks.load().get(tenant).cloned()
    }

    fn note_backlog(&self, tenant: &TenantId, found: Backlog) {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        backlog.insert(tenant.clone(), found);
        publish(&backlog);
    }

    fn forget_backlog_of_others(&self, hooks: &Hooks) {
        let mut backlog = self.backlog.lock().unwrap_or_else(PoisonError::into_inner);
        let before = backlog.len();
        backlog.retain(|tenant, _| hooks.contains_key(tenant));
        if backlog.len() != before {
            publish(&backlog);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "notices are far below 2^52")]
fn publish(backlog: &HashMap<TenantId, Backlog>) {
    let count: usize = backlog.values().map(|found| found.count).sum();
    let oldest = backlog.values().map(|found| found.oldest).max().unwrap_or_default();
    gauge!(names::NOTICES_WAITING).set(count as f64);
    gauge!(names::NOTICES_OLDEST).set(oldest.as_secs_f64());
}

/// A waiting notice that this node knows of.
#[derive(Debug, Clone)]
struct Known {
    attempts: u32,
    due: Instant,
    /// When this node came to know of it.
    since: Instant,
    /// What came of this node's last attempt.
    last: Option<String>,
}

/// What became of a notice that was worked on.
enum Outcome {
    /// The receiver has it.
    Delivered,
    /// It does not wait any more, for another reason.
    Done,
    /// It waits for its next attempt; `last` is what came of this one.
    Again { attempts: u32, due: Instant, last: Option<String> },
}

/// Delivers the notices of one tenant.
struct Postman {
    shared: Arc<Shared>,
    tenant: TenantId,
    known: HashMap<NoticeId, Known>,
    busy: HashSet<NoticeId>,
    working: JoinSet<(NoticeId, Outcome)>,
    /// Whether the last attempt came to nothing: then one at a time is enough.
    is_ailing: bool,
    tidied_at: Option<Instant>,
}

impl Postman {
    fn start(shared: &Arc<Shared>, tenant: TenantId) -> mpsc::Sender<NoticeId> {
        let (queue, wakes) = mpsc::channel(super::QUEUE);
        let postman = Self {
            shared: Arc::clone(shared),
            tenant,
            known: HashMap::new(),
            busy: HashSet::new(),
            working: JoinSet::new(),
            is_ailing: false,
            tidied_at: None,
        };
        tokio::spawn(postman.run(wakes));
        queue
    }

    async fn run(mut self, mut wakes: mpsc::Receiver<NoticeId>) {
        // Soon after the start: an earlier process may have left something.
        let mut look_at = clock::monotonic() + part_of(self.shared.options.scan_interval);
        loop {
            let next = self.begin_due();
            let wake_at = next.map_or(look_at, |due| due.min(look_at));
            tokio::select! {
                wake = wakes.recv() => match wake {
                    Some(notice) => self.learn(notice),
                    None => return,
                },
                Some(done) = self.working.join_next() => self.done(done),
                () = tokio::time::sleep_until(wake_at.into()) => {
                    if clock::monotonic() >= look_at {
                        self.look().await;
                        look_at = clock::monotonic() + jittered(self.shared.options.scan_interval);
                    }
                }
            }
        }
    }

    /// Takes a notice up that was made just now.
    fn learn(&mut self, notice: NoticeId) {
        let now = clock::monotonic();
        if self.known.len() < MAX_KNOWN {
            let new = Known { attempts: 0, due: now, since: now, last: None };
            let known = self.known.entry(notice).or_insert(new);
            if known.attempts == 0 {
                // A look may have found it first.
                known.due = now;
            }
        }
    }

    /// Begins what is due and has room; answers when the next notice is due that may begin then.
    fn begin_due(&mut self) -> Option<Instant> {
        let room = if self.is_ailing { 1 } else { self.shared.options.concurrency };
        let now = clock::monotonic();
        loop {
            if self.working.len() >= room {
                return None;
            }
            let idle = self.known.iter().filter(|(notice, _)| !self.busy.contains(*notice));
            let (notice, known) = idle.min_by_key(|(_, known)| known.due)?;
            if known.due > now {
                return Some(known.due);
            }
            let (notice, known) = (*notice, known.clone());
            let delivery = Delivery { shared: Arc::clone(&self.shared), tenant: self.tenant.clone(), notice };
            self.busy.insert(notice);
            self.working.spawn(async move { (notice, delivery.work(known.attempts, known.last).await) });
        }
    }

    fn done(&mut self, done: Result<(NoticeId, Outcome), tokio::task::JoinError>) {
        let Ok((notice, outcome)) = done else {
            // A task that panicked; its notice is in the store, and the next look finds it.
            self.busy.clear();
            return;
        };
        self.busy.remove(&notice);
        match outcome {
            Outcome::Delivered => {
                self.is_ailing = false;
                self.known.remove(&notice);
            }
            Outcome::Done => drop(self.known.remove(&notice)),
            Outcome::Again { attempts, due, last } => {
                self.is_ailing |= last.is_some();
                let since = clock::monotonic();
                self.known.insert(notice, Known { attempts, due, since, last });
            }
        }
    }

    /// Looks at the outbox: for what another node has left, and what earlier processes did.
    async fn look(&mut self) {
        let (began, tag) = (clock::monotonic(), self.tenant.tag());
        let outbox = Arc::clone(&self.shared.outbox);
        let tenant = &self.tenant;
        if let Err(error) = outbox.prepare(tenant).await {
            tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "no key for notices");
        }
        let looking =
            async { Ok::<_, OutboxError>((outbox.now().await?, outbox.waiting(tag, MAX_KNOWN).await?)) };
        let (now, (found, count, oldest)) = match looking.await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "outbox cannot be looked at");
                return;
            }
        };
        let oldest = oldest.map_or(Duration::ZERO, |at| age(at, now));
        self.shared.note_backlog(tenant, Backlog { count, oldest });
        let seen: HashSet<NoticeId> = found.iter().map(|waiting| waiting.notice).collect();
        // What was listed before this look and is not there now, another node has delivered.
        self.known.retain(|notice, known| {
            seen.contains(notice) || known.since >= began || self.busy.contains(notice)
        });
        for waiting in found {
            self.compare(waiting, now);
        }
        if self.tidied_at.is_none_or(|at| clock::since(at) >= TIDY_INTERVAL) {
            self.tidied_at = Some(clock::monotonic());
            self.tidy(now).await;
        }
    }

    /// Takes over what the store says of a notice.
    fn compare(&mut self, waiting: Waiting, now: UnixMillis) {
        let Waiting { notice, attempts, last_at, .. } = waiting;
        if self.busy.contains(&notice)
            || self.known.get(&notice).is_some_and(|known| known.attempts >= attempts)
        {
            return;
        }
        let is_new = !self.known.contains_key(&notice);
        if is_new && self.known.len() >= MAX_KNOWN {
            return;
        }
        let options = &self.shared.options;
        // Its own node sends a new notice at once; a look later that node has died, or it was told elsewhere.
        let wait =
            if attempts == 0 { options.scan_interval } else { options.schedule.wait(notice, attempts) };
        let since = clock::monotonic();
        let due = since + wait.saturating_sub(age(last_at, now));
        self.known.insert(notice, Known { attempts, due, since, last: None });
    }

    /// Removes what was kept for long enough.
    async fn tidy(&self, now: UnixMillis) {
        let (outbox, tag, tenant) = (&self.shared.outbox, self.tenant.tag(), &self.tenant);
        for (place, keep) in [(NoticePlace::Sent, KEEP_SENT), (NoticePlace::Dead, KEEP_DEAD)] {
            let tidying = async {
                for (notice, at) in outbox.list_settled(tag, place, TIDY_LIMIT).await? {
                    if at.is_some_and(|at| age(at, now) > keep) {
                        outbox.forget(tag, place, notice).await?;
                    }
                }
                Ok::<_, OutboxError>(())
            };
            if let Err(error) = tidying.await {
                let (place, error) = (place.name(), &error as &dyn std::error::Error);
                tracing::warn!(%tenant, place, error, "old notices stay in the store");
            }
        }
    }
}

fn age(at: UnixMillis, now: UnixMillis) -> Duration {
    Duration::from_millis(now.0.saturating_sub(at.0))
}

/// One notice that is due.
struct Delivery {
    shared: Arc<Shared>,
    tenant: TenantId,
    notice: NoticeId,
}

impl Delivery {
    async fn work(&self, attempts: u32, last: Option<String>) -> Outcome {
        match self.try_work(attempts, last.clone()).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_final() => self.give_up(&error).await,
            Err(error) => {
                let (tenant, notice, error) = (&self.tenant, self.notice, &error as &dyn std::error::Error);
                tracing::warn!(%tenant, %notice, error, "notice cannot be sent now");
                Outcome::Again { attempts, due: clock::monotonic() + jittered(TROUBLE_PAUSE), last }
            }
        }
    }

    /// Claims the next attempt, makes it, and notes what came of it.
    async fn try_work(&self, attempts: u32, last: Option<String>) -> Result<Outcome, OutboxError> {
        let Self { shared, tenant, notice } = self;
        let (outbox, schedule) = (&shared.outbox, &shared.options.schedule);
        let Some(hook) = shared.hook(tenant) else { return Ok(Outcome::Done) };
        let body = outbox.body(tenant, *notice).await?;
        let attempt = attempts + 1;
        let began = clock::monotonic();
        if !outbox.begin_attempt(tenant, *notice, attempt, last).await? {
            let due = began + schedule.wait(*notice, attempt);
            return Ok(Outcome::Again { attempts: attempt, due, last: None });
        }
        if outbox.is_sent(tenant.tag(), *notice).await? {
            // The same event was told before, or a node died between delivery and this.
            outbox.take_out(tenant.tag(), *notice).await?;
            return Ok(Outcome::Done);
        }
        let posted = self.post(&hook, attempt, &body).await;
        let result = posted.as_ref().map_or_else(PostError::name, |_| "delivered");
        counter!(names::NOTICES_ATTEMPTS, "result" => result).increment(1);
        let error = match posted {
            Ok(status) => {
                self.settle(NoticePlace::Sent, attempt, format!("status {status}"), &body).await?;
                tracing::debug!(%tenant, %notice, attempt, status, "notice delivered");
                return Ok(Outcome::Delivered);
            }
            Err(error) => error,
        };
        let said = said(&error);
        let wait = schedule.wait(*notice, attempt);
        if matches!(error, PostError::Gone) || schedule.is_last(*notice, attempt) {
            self.settle(NoticePlace::Dead, attempt, said, &body).await?;
            counter!(names::NOTICES_DEAD).increment(1);
            let error = &error as &dyn std::error::Error;
            tracing::error!(%tenant, %notice, attempt, host = hook.url.authority(), error, "notice is dead");
            return Ok(Outcome::Done);
        }
        let (error, retry_secs) = (&error as &dyn std::error::Error, wait.as_secs());
        tracing::warn!(%tenant, %notice, attempt, host = hook.url.authority(), error, retry_secs, "notice not delivered");
        Ok(Outcome::Again { attempts: attempt, due: began + wait, last: Some(said) })
    }

    async fn post(&self, hook: &Webhook, attempt: u32, body: &[u8]) -> Result<u16, PostError> {
        let mut span = Span::begin(words::DELIVERY);
        span.tenant(&self.tenant);
        span.notice(self.notice);
        span.number(words::ATTEMPT, attempt.into());
        let posted = span.place().around(self.shared.poster.post(hook, self.notice, body)).await;
        match &posted {
            Ok(status) => span.number(words::STATUS, (*status).into()),
            Err(error) => span.fail(error.name()),
        }
        posted
    }

    async fn settle(
        &self,
        place: NoticePlace,
        attempts: u32,
        outcome: String,
        body: &[u8],
    ) -> Result<(), OutboxError> {
        let outbox = &self.shared.outbox;
        let settled = Settled {
            v: 1,
            at: clock::rfc3339(clock::wall()),
            node: outbox.node.clone(),
            attempts,
            outcome,
            body: String::from_utf8_lossy(body).into_owned(),
        };
        let mut tries = 0;
        loop {
            match outbox.settle(&self.tenant, self.notice, place, &settled).await {
                // What is not noted is done again, so this is worth some patience.
                Err(_) if tries < SETTLE_RETRIES => tokio::time::sleep(jittered(SETTLE_PAUSE)).await,
                outcome => return outcome,
            }
            tries += 1;
        }
    }

    /// Takes a notice out that is gone, or that nobody can read.
    async fn give_up(&self, error: &OutboxError) -> Outcome {
        let (tenant, notice) = (&self.tenant, self.notice);
        let again =
            || Outcome::Again { attempts: 0, due: clock::monotonic() + jittered(TROUBLE_PAUSE), last: None };
        if matches!(error, OutboxError::Store(_)) {
            // Another node has delivered it; an attempt that came too late may be left.
            let dropped = self.shared.outbox.drop_attempts(tenant.tag(), notice).await;
            return if dropped.is_ok() { Outcome::Done } else { again() };
        }
        if matches!(error, OutboxError::Damaged(_)) {
            counter!(names::INTEGRITY_FAILURES).increment(1);
        }
        lost(tenant, "unreadable");
        tracing::error!(%tenant, %notice, error = error as &dyn std::error::Error, "notice cannot be read");
        match self.shared.outbox.take_out(tenant.tag(), notice).await {
            Ok(()) => Outcome::Done,
            Err(_) => again(),
        }
    }
}

/// Returns what may be kept of a failure: its text and that of its innermost cause, on one short line.
fn said(error: &PostError) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    let (outer, inner) = (error.to_string(), innermost.to_string());
    let text = if outer == inner { outer } else { format!("{outer}: {inner}") };
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
