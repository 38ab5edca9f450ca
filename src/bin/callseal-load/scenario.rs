//! What is done to the server.
//!
//! A call's plan follows from the options and its number alone, so whatever it said can be made again and compared with
//! its recording.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use callseal::clock;
use callseal::domain::provider::twilio::AccountSid;
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{
    CHUNK_MS, CallError, CallIds, CallPlan, CallReport, Endpoint, LagHistogram, Speech, TlsClient, Track,
    TwilioCall,
};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::process::{Process, check_open_files};
use crate::report::{Failure, GeneratorReport, LagReport, Report, ServerReport};

/// Between the last call's start and the measurement: its handshake, and the memory that handshakes need only shortly.
const SETTLE: Duration = Duration::from_secs(1);
/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Whom the calls go to.
pub(crate) struct Target {
    pub(crate) endpoint: Endpoint,
    pub(crate) path: String,
    pub(crate) tls: TlsClient,
    pub(crate) account: AccountSid,
    pub(crate) auth_token: Zeroizing<Vec<u8>>,
}

/// A constant number of calls.
pub(crate) struct Steady {
    pub(crate) target: Target,
    pub(crate) calls: u32,
    pub(crate) duration_secs: u64,
    pub(crate) ramp_secs: u64,
    pub(crate) seed: u64,
}

/// What both sides of every call say.
struct Voices {
    caller: Arc<Speech>,
    agent: Arc<Speech>,
}

/// Why a call did not end as planned.
enum CallFailed {
    Connect(CallError),
    Later(CallError),
}

/// What the tasks of all calls count together.
#[derive(Default)]
struct Tally {
    connected: AtomicU64,
    messages: AtomicU64,
}

impl Steady {
    /// Returns how long after the beginning call `index` starts: evenly spread, so that they are out of step as well.
    fn start_of(&self, index: u32) -> Duration {
        Duration::from_secs(self.ramp_secs).mul_f64(f64::from(index) / f64::from(self.calls))
    }

    fn measured_from(&self) -> Duration {
        Duration::from_secs(self.ramp_secs) + SETTLE
    }

    fn end(&self) -> Duration {
        self.measured_from() + Duration::from_secs(self.duration_secs)
    }

    /// Plans call `index`. It lasts until the end of the measurement, or as much longer as its handshake takes.
    fn call(&self, index: u32, voices: &Voices) -> CallPlan {
        let mut random = SplitMix(self.seed ^ u64::from(index).wrapping_mul(0x2545_f491_4f6c_dd1d));
        let ids = CallIds::new(self.target.account.as_str(), &random.bytes(), &random.bytes());
        let millis = (self.end() - self.start_of(index)).as_millis();
        let chunks = usize::try_from(millis.div_ceil(u128::from(CHUNK_MS))).unwrap_or(usize::MAX);
        let offset = usize::try_from(random.next() >> 48).unwrap_or(0);
        let target = &self.target;
        let caller = Track::looped(&voices.caller, offset, chunks);
        let mut plan = CallPlan::new(target.endpoint.clone(), &target.path, &target.auth_token, ids, caller);
        plan.agent = Some(Track::looped(&voices.agent, offset, chunks));
        plan
    }
}

/// Runs the scenario to its end. Fails only where nothing can be measured; calls that fail are in the report.
pub(crate) async fn steady(
    plan: Steady,
    server_pid: Option<u32>,
    show_progress: bool,
) -> anyhow::Result<Report> {
    check_open_files(plan.calls)?;
    let voices = Voices {
        caller: Speech::new(Bytes::from_static(DEMO_CALLER)),
        agent: Speech::new(Bytes::from_static(DEMO_AGENT)),
    };
    let server = server_pid.map(Process::new);
    let resident_before = server.map(Process::resident_kib).transpose()?.unwrap_or(0);
    let bar = if show_progress { progress_bar(plan.end()) } else { ProgressBar::hidden() };
    let tally = Arc::new(Tally::default());
    let began = clock::monotonic();
    let mut calls = JoinSet::new();
    for index in 0..plan.calls {
        let (call, tls) = (plan.call(index, &voices), plan.target.tls.clone());
        calls.spawn(place_call(call, tls, began + plan.start_of(index), Arc::clone(&tally)));
    }
    let window = measure(&plan, server, began, &tally, &bar).await?;
    bar.set_message("calls end");
    let outcome = collect(calls).await?;
    bar.finish_and_clear();

    Ok(Report {
        scenario: "steady",
        seed: plan.seed,
        calls: plan.calls,
        connected_in_time: window.connected,
        connect_failures: outcome.connect_failures,
        call_failures: outcome.call_failures,
        failures: outcome.failures.into_iter().map(|(what, calls)| Failure { what, calls }).collect(),
        window_secs: window.took.as_secs_f64(),
        messages: window.messages,
        messages_per_sec: window.messages as f64 / window.took.as_secs_f64(),
        send_lag: LagReport::new(&outcome.send_lag),
        server: window.server_cpu.map(|cpu| {
            let used = window.used(cpu);
            ServerReport::new(&used, resident_before, window.resident_peak_kib)
        }),
        generator: GeneratorReport::new(window.own_cpu, window.took),
    })
}

/// Waits for its turn, then places one call and stays to its end.
async fn place_call(
    plan: CallPlan,
    tls: TlsClient,
    start: Instant,
    tally: Arc<Tally>,
) -> Result<CallReport, CallFailed> {
    tokio::time::sleep_until(start.into()).await;
    let call = TwilioCall::connect(plan, &tls).await.map_err(CallFailed::Connect)?;
    tally.connected.fetch_add(1, Ordering::Relaxed);
    let mut counted = 0;
    let report = call.run(|progress| {
        tally.messages.fetch_add(progress.messages - counted, Ordering::Relaxed);
        counted = progress.messages;
    });
    report.await.map_err(CallFailed::Later)
}

/// What happened between the start and the end of the measurement.
struct Window {
    took: Duration,
    /// Calls that were open when it began.
    connected: u64,
    messages: u64,
    server_cpu: Option<Duration>,
    own_cpu: Duration,
    resident_peak_kib: u64,
}

/// What the server's CPU time was spent on.
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) took: Duration,
    pub(crate) calls: u64,
    pub(crate) messages: u64,
}

impl Window {
    fn used(&self, cpu: Duration) -> Used {
        Used { cpu, took: self.took, calls: self.connected, messages: self.messages }
    }
}

async fn measure(
    plan: &Steady,
    server: Option<Process>,
    began: Instant,
    tally: &Tally,
    bar: &ProgressBar,
) -> anyhow::Result<Window> {
    let this = Process::new(std::process::id());
    bar.set_message("calls begin");
    sleep_and_show(began, plan.measured_from(), bar).await;
    bar.set_message("measuring");
    let measured_from = clock::monotonic();
    let connected = tally.connected.load(Ordering::Relaxed);
    let messages_before = tally.messages.load(Ordering::Relaxed);
    let server_before = server.map(Process::cpu).transpose()?;
    let own_before = this.cpu()?;
    let mut resident_peak_kib = 0;
    // With no call there is nothing to measure, and no reason to wait.
    let seconds = if connected == 0 { 0 } else { plan.duration_secs };
    for second in 1..=seconds {
        sleep_and_show(began, plan.measured_from() + SAMPLE_EVERY * u32::try_from(second)?, bar).await;
        if let Some(server) = server {
            resident_peak_kib = resident_peak_kib.max(server.resident_kib()?);
        }
    }
    let server_after = server.map(Process::cpu).transpose()?;
    Ok(Window {
        took: (clock::monotonic() - measured_from).max(Duration::from_millis(1)),
        connected,
        messages: tally.messages.load(Ordering::Relaxed) - messages_before,
        server_cpu: server_before.zip(server_after).map(|(before, after)| after.saturating_sub(before)),
        own_cpu: this.cpu()?.saturating_sub(own_before),
        resident_peak_kib,
    })
}

async fn sleep_and_show(began: Instant, until: Duration, bar: &ProgressBar) {
    tokio::time::sleep_until((began + until).into()).await;
    bar.set_position(until.as_secs());
}

/// What became of all calls.
#[derive(Default)]
struct Outcome {
    connect_failures: u32,
    call_failures: u32,
    /// How many calls failed in each way, by the whole chain of errors.
    failures: BTreeMap<String, u32>,
    send_lag: LagHistogram,
}

async fn collect(mut calls: JoinSet<Result<CallReport, CallFailed>>) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    while let Some(ended) = calls.join_next().await {
        let error = match ended.context("a call's task died")? {
            Ok(report) => {
                outcome.send_lag.merge(&report.send_lag);
                continue;
            }
            Err(CallFailed::Connect(error)) => {
                outcome.connect_failures += 1;
                error
            }
            Err(CallFailed::Later(error)) => {
                outcome.call_failures += 1;
                error
            }
        };
        *outcome.failures.entry(format!("{:#}", anyhow::Error::new(error))).or_default() += 1;
    }
    Ok(outcome)
}

fn progress_bar(length: Duration) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}");
    ProgressBar::new(length.as_secs()).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// SplitMix64 (Steele, Lea and Flood, 2014): repeatable numbers for ids; nothing secret comes from it.
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn bytes(&mut self) -> [u8; 16] {
        let (high, low) = (self.next(), self.next());
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn options(seed: u64) -> Steady {
        let tls = TlsClient::new(rcgen::generate_simple_self_signed(vec![]).unwrap().cert.pem().as_bytes());
        let target = Target {
            endpoint: Endpoint::new("127.0.0.1:1".parse().unwrap(), "wss://localhost:1").unwrap(),
            path: "/twilio/v1/acme-dental/reception".to_owned(),
            tls: tls.unwrap(),
            account: "AC000000000000000000000000c0ffee01".parse().unwrap(),
            auth_token: Zeroizing::new(b"token".to_vec()),
        };
        Steady { target, calls: 100, duration_secs: 10, ramp_secs: 5, seed }
    }

    fn voices() -> Voices {
        Voices { caller: Speech::new(DEMO_CALLER.into()), agent: Speech::new(DEMO_AGENT.into()) }
    }

    #[test]
    fn calls_are_repeatable_and_all_different() {
        let (steady, again, other) = (options(1), options(1), options(2));
        let voices = voices();
        let mut streams = BTreeSet::new();
        for index in 0..steady.calls {
            let call = steady.call(index, &voices);
            assert_eq!(call.ids, again.call(index, &voices).ids);
            assert!(streams.insert(call.ids.stream.clone()) && streams.insert(call.ids.call));
            assert!(streams.insert(other.call(index, &voices).ids.stream));
        }
        let (one, same) = (steady.call(7, &voices), again.call(7, &voices));
        assert_eq!(one.caller.audio(), same.caller.audio());
    }

    #[test]
    fn every_call_lasts_to_the_end() {
        let steady = options(1);
        let voices = voices();
        let ends = |index| {
            let call = steady.call(index, &voices);
            steady.start_of(index) + Duration::from_millis(call.caller.chunks() as u64 * CHUNK_MS)
        };
        for index in 0..steady.calls {
            assert!(ends(index) >= steady.end(), "call {index}");
            assert!(ends(index) <= steady.end() + Duration::from_millis(CHUNK_MS), "call {index}");
        }
    }
}
