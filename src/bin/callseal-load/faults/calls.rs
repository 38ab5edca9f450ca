//! The calls of one run: what they say, how far they came, how they ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use callseal::simulate::{CHUNK_MS, CallError, CallIds, CallPlan, CallReport, TlsClient, Track, TwilioCall};
use tokio::task::JoinSet;

use super::options::Plan;
use crate::course::{NOISE_CHUNKS, noise};
use crate::node::Target;
use crate::random::SplitMix;
use crate::sampler::Tally;

/// Running calls.
pub(super) struct Calls {
    calls: Vec<Call>,
    tasks: JoinSet<(usize, Result<CallReport, CallError>)>,
}

/// One call and what it has sent.
pub(super) struct Call {
    /// The provider's id, by which its recording is found.
    pub(super) id: String,
    pub(super) tracks: [Track; 2],
    sent_ms: Arc<AtomicU64>,
    /// What had been sent of it when the server was killed.
    noted_ms: AtomicU64,
    failure: Option<CallError>,
}

/// All calls after their end.
pub(super) struct Outcome {
    pub(super) calls: Vec<Call>,
}

impl Calls {
    pub(super) fn start(plan: &Plan, run: u32, target: &Target, tally: &Arc<Tally>) -> Self {
        let noise = noise(plan.seed);
        let mut random = SplitMix(plan.seed.wrapping_add(u64::from(run) << 20));
        let (mut calls, mut tasks) = (Vec::new(), JoinSet::new());
        for index in 0..plan.calls {
            let ids = CallIds::new(target.account.as_str(), &random.bytes(), &random.bytes());
            let chunks =
                usize::try_from(plan.length.as_millis() / u128::from(CHUNK_MS)).unwrap_or(usize::MAX);
            let first = usize::try_from(random.next() % NOISE_CHUNKS as u64).unwrap_or(0);
            let tracks = [first, first + NOISE_CHUNKS / 2].map(|first| Track::looped(&noise, first, chunks));
            let sent_ms = Arc::new(AtomicU64::new(0));
            let call = Call {
                id: ids.call.clone(),
                tracks: tracks.clone(),
                sent_ms: Arc::clone(&sent_ms),
                noted_ms: AtomicU64::new(u64::MAX),
                failure: None,
            };
            let [caller, agent] = tracks;
            let mut call_plan =
                CallPlan::new(target.endpoint.clone(), &target.path, &target.auth_token, ids, caller);
            call_plan.agent = Some(agent);
            let (tls, wait) =
                (target.tls.clone(), plan.ramp.mul_f64(f64::from(index) / f64::from(plan.calls)));
            let (position, tally) = (calls.len(), Arc::clone(tally));
            tasks.spawn(async move { (position, place(call_plan, tls, wait, &sent_ms, &tally).await) });
            calls.push(call);
        }
        Self { calls, tasks }
    }

    /// Notes how much of each call has been sent by now: what a killed server may have received.
    pub(super) fn note_sent(&self) {
        for call in &self.calls {
            call.noted_ms.store(call.sent_ms.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    /// Waits for the end of all calls.
    pub(super) async fn end(mut self) -> anyhow::Result<Outcome> {
        while let Some(ended) = self.tasks.join_next().await {
            let (position, result) = ended.context("a call's task died")?;
            if let (Some(call), Err(error)) = (self.calls.get_mut(position), result) {
                call.failure = Some(error);
            }
        }
        Ok(Outcome { calls: self.calls })
    }
}

impl Call {
    /// Returns how much was sent before the server was killed; `None` where it was not.
    pub(super) fn killed_at_ms(&self) -> Option<u64> {
        let noted = self.noted_ms.load(Ordering::SeqCst);
        (noted != u64::MAX).then_some(noted)
    }

    /// Whether the server had begun to record it for sure.
    pub(super) fn was_sent(&self) -> bool {
        match self.killed_at_ms() {
            Some(noted) => noted > 0,
            None => self.failure.is_none(),
        }
    }
}

impl Outcome {
    /// Counts the calls that failed; those that a kill ended did not.
    pub(super) fn dropped(&self, was_killed: bool) -> u32 {
        let failed = self.calls.iter().filter(|call| call.failure.is_some() && !was_killed);
        u32::try_from(failed.count()).unwrap_or(u32::MAX)
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        let failures = self.calls.iter().filter_map(|call| call.failure.as_ref());
        let mut reasons: Vec<String> = failures.map(ToString::to_string).collect();
        reasons.sort();
        reasons.dedup();
        reasons
    }

    /// Returns the seconds of all calls together.
    pub(super) fn call_secs(&self) -> f64 {
        let sent: u64 = self.calls.iter().map(|call| call.sent_ms.load(Ordering::SeqCst)).sum();
        Duration::from_millis(sent).as_secs_f64()
    }
}

async fn place(
    plan: CallPlan,
    tls: TlsClient,
    wait: Duration,
    sent_ms: &AtomicU64,
    tally: &Tally,
) -> Result<CallReport, CallError> {
    tokio::time::sleep(wait).await;
    let call = TwilioCall::connect(plan, &tls).await?;
    tally.open.fetch_add(1, Ordering::Relaxed);
    let mut counted = 0;
    let running = call.run(|progress| {
        sent_ms.store(progress.sent_ms, Ordering::SeqCst);
        tally.sent(progress.messages - counted, progress.lag);
        counted = progress.messages;
    });
    let report = running.await;
    tally.open.fetch_sub(1, Ordering::Relaxed);
    report
}
