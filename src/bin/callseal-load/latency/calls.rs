//! Calls with both ends in this process, and when each message left and arrived.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use callseal::clock;
use callseal::simulate::speech::{DEMO_CALLER, Track};
use callseal::simulate::{
    AgentCall, AgentServer, CallIds, CallPlan, Direction, LagHistogram, Received, TwilioCall,
};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, interval_at};

use crate::node::Target;
use crate::sampler::Tally;
use crate::sheet::tell;

use super::PATIENCE;

const TICK: Duration = Duration::from_millis(20);

/// What was measured since the last time.
#[derive(Default)]
pub(super) struct Measured {
    /// How long messages were on their way: to the agent, to the caller.
    pub(super) delays: [LagHistogram; 2],
    /// How much later than due they were sent.
    pub(super) lag: LagHistogram,
}

#[derive(Default)]
struct Shared {
    to_agent: Mutex<LagHistogram>,
    to_caller: Mutex<LagHistogram>,
    lag: Mutex<LagHistogram>,
    tally: Arc<Tally>,
}

/// Calls that go on until they are ended.
pub(super) struct Calls {
    shared: Arc<Shared>,
    ends: watch::Sender<bool>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Calls {
    /// Places the calls one after the other, each at another moment of 20 ms.
    pub(super) async fn start(
        count: u16,
        target: &Target,
        agent: &mut AgentServer,
        tally: &Arc<Tally>,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared { tally: Arc::clone(tally), ..Shared::default() });
        let (ends, ended) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let began = clock::monotonic();
        for number in 0..count {
            let call =
                TwilioCall::connect(plan(number, target), &target.tls).await.context("place a call")?;
            let reached = tokio::time::timeout(PATIENCE, agent.call()).await;
            let reached =
                reached.context("the agent was not reached")?.context("the agent listens no more")?;
            let sent: [Sent; 2] = Default::default();
            let share = |side: u32| TICK * (2 * u32::from(number) + side) / (2 * u32::from(count));
            let ticks = |side| ticks(began, share(side));
            tasks.spawn(caller(call, sent.clone(), ticks(0), Arc::clone(&shared), ended.clone()));
            tasks.spawn(answer(reached, sent, ticks(1), Arc::clone(&shared), ended.clone()));
        }
        Ok(Self { shared, ends, tasks })
    }

    pub(super) fn take(&self) -> Measured {
        let Shared { to_agent, to_caller, lag, .. } = &*self.shared;
        let [to_agent, to_caller, lag] =
            [to_agent, to_caller, lag].map(|part| std::mem::take(&mut *lock(part)));
        Measured { delays: [to_agent, to_caller], lag }
    }

    /// Ends all calls; answers how many had not gone well.
    pub(super) async fn end(mut self) -> usize {
        self.ends.send_replace(true);
        let mut failed = 0;
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                failed += 1;
                tell(&format!("a call failed: {error:#}"));
            }
        }
        failed
    }
}

/// Returns the times to send at: every 20 ms, so much after the full ones since `began`.
fn ticks(began: Instant, share: Duration) -> Interval {
    let full = u32::try_from(clock::since(began).as_millis() / TICK.as_millis()).unwrap_or(0);
    interval_at((began + TICK * (full + 2) + share).into(), TICK)
}

/// When the messages on their way were sent: they arrive in order.
type Sent = Arc<Mutex<VecDeque<Instant>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that a message leaves which was due then.
fn leaves(sent: &Sent, shared: &Shared, due: tokio::time::Instant) {
    let now = clock::monotonic();
    let late = now.saturating_duration_since(due.into_std());
    lock(&shared.lag).record(late);
    shared.tally.sent(1, late);
    lock(sent).push_back(now);
}

fn arrived(sent: &Sent, delays: &Mutex<LagHistogram>) {
    let now = clock::monotonic();
    if let Some(at) = lock(sent).pop_front() {
        lock(delays).record(now.saturating_duration_since(at));
    }
}

fn plan(number: u16, target: &Target) -> CallPlan {
    let id = u128::from(number).to_be_bytes();
    let ids = CallIds::new(target.account.as_str(), &id, &id);
    let caller = Track::whole(DEMO_CALLER);
    CallPlan::new(target.endpoint.clone(), &target.path, &target.auth_token, ids, caller)
}

async fn caller(
    mut call: TwilioCall,
    [to_agent, to_caller]: [Sent; 2],
    mut ticks: Interval,
    shared: Arc<Shared>,
    mut ended: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    call.greet().await?;
    let track = Track::whole(DEMO_CALLER);
    let mut number = 0;
    loop {
        tokio::select! {
            due = ticks.tick() => {
                let payload = track.base64(number % track.chunks()).unwrap_or_default();
                let timestamp_ms = 102 + 20 * u64::try_from(number)?;
                leaves(&to_agent, &shared, due);
                call.send_media(Direction::Inbound, timestamp_ms, payload).await?;
                number += 1;
            }
            received = call.recv() => match received? {
                Received::Text(_) => arrived(&to_caller, &shared.to_caller),
                Received::Binary(_) => {}
                Received::Closed { code, reason } => anyhow::bail!("closed with {code:?} ({reason})"),
            },
            _ = ended.changed() => break,
        }
    }
    call.send_stop().await?;
    call.close(1000, "").await;
    Ok(())
}

async fn answer(
    mut call: AgentCall,
    [to_agent, to_caller]: [Sent; 2],
    mut ticks: Interval,
    shared: Arc<Shared>,
    mut ended: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut stream = String::new();
    let track = Track::whole(DEMO_CALLER);
    let mut number = 0;
    loop {
        tokio::select! {
            due = ticks.tick(), if !stream.is_empty() && !*ended.borrow() => {
                let payload = track.base64(number % track.chunks()).unwrap_or_default();
                let media = format!(
                    r#"{{"event":"media","streamSid":"{stream}","media":{{"payload":"{payload}"}}}}"#
                );
                leaves(&to_caller, &shared, due);
                call.send_text(media).await?;
                number += 1;
            }
            received = call.recv() => match received? {
                Received::Text(text) if text.starts_with(r#"{"event":"media""#) => {
                    arrived(&to_agent, &shared.to_agent);
                }
                Received::Text(text) => {
                    let message: Value = serde_json::from_str(&text).unwrap_or_default();
                    if let Some(id) = message.get("streamSid").and_then(Value::as_str) {
                        id.clone_into(&mut stream);
                    }
                }
                Received::Binary(_) => {}
                Received::Closed { .. } => return Ok(()),
            },
            _ = ended.changed() => {}
        }
    }
}
