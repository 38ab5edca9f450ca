//! `callseal-load faults`: real calls through a real server while something breaks, then every sample compared.
//!
//! The server is a process of its own, with its own configuration; between it and its object store stands a proxy that
//! can be given bad weather. The ledger at the end must balance: audio sent = audio that plays + audio that the manifest
//! declares lost.

mod calls;
mod options;
mod recordings;
mod report;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use callseal::clock;
use callseal::simulate::{Chaos, Passed, Weather};

use crate::ledger::Ledger;
use crate::node::{Home, Server};
use crate::sampler::{Sampler, Tally, Watched};
use crate::sheet::tell;
use calls::Calls;
use options::{Fault, Plan};
pub(crate) use options::{Faults, Kill, Ordered, SlowStore, StoreOutage, read_store, upstream};
use recordings::Recordings;
use report::Report;

/// How often memory and backlog are looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// A server that asked its store nothing for so long has nothing more to ask.
const QUIET: Duration = Duration::from_secs(2);
/// Calls under way before anything is measured or broken.
const SETTLE: Duration = Duration::from_millis(500);
/// An oldest unstored segment younger than this means that nothing is behind: two segments of five seconds.
const CAUGHT_UP_SECS: f64 = 10.0;

/// What one run showed.
pub(crate) struct Run {
    pub(crate) ledger: Ledger,
    /// Calls that were refused or broke off although nothing was to end them.
    pub(crate) dropped_calls: u32,
    pub(crate) why_dropped: Vec<String>,
    /// Milliseconds of audio that each track of a killed server lost.
    pub(crate) kill_losses_ms: Vec<u64>,
    /// From the start of a new process to its readiness.
    pub(crate) ready_after: Option<Duration>,
    pub(crate) resident_before_kib: u64,
    pub(crate) resident_peak_kib: u64,
    /// From the end of the fault until nothing was behind.
    pub(crate) drained_after: Option<Duration>,
    pub(crate) passed: Option<Passed>,
    pub(crate) call_secs: f64,
}

/// Runs all repetitions, and answers whether all bounds are kept; fails only where nothing can be compared.
pub(crate) async fn run(ordered: &Ordered) -> anyhow::Result<bool> {
    let (plan, output) = (ordered.plan()?, &ordered.run.output);
    let chaos = match plan.upstream {
        Some(upstream) => Some(Chaos::start(upstream).await.context("start the proxy")?),
        None => None,
    };
    let home = Home::make(&plan.launch(), chaos.as_ref().map(Chaos::address))?;
    let mut recordings = Recordings::open(&home).await?;
    let mut server = Server::start(&plan.launch(), &home)?;
    let tally: Arc<Tally> = Arc::default();
    let sampler = Sampler::start(server.watched(), Arc::clone(&tally), clock::monotonic());
    let mut runs = Vec::new();
    for number in 0..plan.repeat {
        if !output.json {
            tell(&format!("run {} of {}", number + 1, plan.repeat));
        }
        let (chaos, sampler, tally) = (chaos.as_ref(), &sampler, &tally);
        let scene = Scene { plan: &plan, chaos, home: &home, number, sampler, tally };
        runs.push(scene.play(&mut server, &mut recordings).await?);
    }
    let samples = sampler.stop().await;
    server.stop()?;
    Report::new(&plan, &runs).sheet(ordered.scenario, &plan, samples)?.finish(output)
}

/// One run: calls, a fault in their middle, its end, and the comparison.
struct Scene<'a> {
    plan: &'a Plan,
    chaos: Option<&'a Chaos>,
    home: &'a Home,
    number: u32,
    sampler: &'a Sampler,
    tally: &'a Arc<Tally>,
}

impl Scene<'_> {
    async fn play(&self, server: &mut Server, recordings: &mut Recordings) -> anyhow::Result<Run> {
        let began = clock::monotonic();
        let passed_before = self.chaos.map(Chaos::passed);
        let calls = Calls::start(self.plan, self.number, &server.target()?, self.tally);
        let fault_at = began + self.plan.fault_at(self.number);
        sleep_until(fault_at.min(began + self.plan.ramp + SETTLE)).await;
        sleep_until(fault_at).await;
        let mut watch = Watch::new(server)?;
        let mut ready_after = None;
        let mut drained_after = None;
        match self.plan.fault {
            Fault::None => {}
            Fault::Kill => {
                self.hook(&self.plan.at_fault)?;
                calls.note_sent();
                self.sampler.watch(Watched::default());
                server.kill()?;
                self.hook(&self.plan.after_fault)?;
                let restarted = clock::monotonic();
                *server = Server::start(&self.plan.launch(), self.home)?;
                self.sampler.watch(server.watched());
                server.wait_until_ready(self.plan.patience).await?;
                ready_after = Some(clock::since(restarted));
            }
            Fault::Hook | Fault::Weather(_) => {
                self.weather_begins();
                self.hook(&self.plan.at_fault)?;
                watch.until(fault_at + self.plan.fault_length, server).await?;
                self.weather_ends();
                self.hook(&self.plan.after_fault)?;
                drained_after = watch.until_caught_up(server, self.plan.patience).await?;
            }
        }
        let outcome = calls.end().await?;
        let (ledger, kill_losses_ms) = recordings.compare(&outcome, self.plan.patience).await?;
        let passed = self.all_passed().await.zip(passed_before).map(|(now, before)| now.since(before));
        Ok(Run {
            ledger,
            dropped_calls: outcome.dropped(self.plan.fault == Fault::Kill),
            why_dropped: outcome.reasons(),
            kill_losses_ms,
            ready_after,
            resident_before_kib: watch.before_kib,
            resident_peak_kib: watch.peak_kib,
            drained_after,
            passed,
            call_secs: outcome.call_secs(),
        })
    }

    /// What the store was asked in all, once the server asks it no more: after the calls it merges their segments.
    async fn all_passed(&self) -> Option<Passed> {
        let chaos = self.chaos?;
        let began = clock::monotonic();
        let mut passed = chaos.passed();
        loop {
            tokio::time::sleep(QUIET).await;
            let now = chaos.passed();
            if now.requests == passed.requests || clock::since(began) > self.plan.patience {
                return Some(now);
            }
            passed = now;
        }
    }

    fn weather_begins(&self) {
        if let (Some(chaos), Fault::Weather(weather)) = (self.chaos, self.plan.fault) {
            chaos.set(weather);
        }
    }

    fn weather_ends(&self) {
        if let Some(chaos) = self.chaos {
            chaos.set(Weather::Fair);
        }
    }

    /// Runs a command of the operator's, such as one that cuts the power of the journal's disk.
    fn hook(&self, command: &Option<String>) -> anyhow::Result<()> {
        let Some(command) = command else { return Ok(()) };
        let status = Command::new("sh").args(["-c", command]).status().context("run the given command")?;
        ensure!(status.success(), "the given command failed ({status}): {command}");
        Ok(())
    }
}

/// The server's memory over time.
struct Watch {
    before_kib: u64,
    peak_kib: u64,
}

impl Watch {
    fn new(server: &Server) -> anyhow::Result<Self> {
        let now = server.process().resident_kib()?;
        Ok(Self { before_kib: now, peak_kib: now })
    }

    fn look(&mut self, server: &Server) -> anyhow::Result<()> {
        self.peak_kib = self.peak_kib.max(server.process().resident_kib()?);
        Ok(())
    }

    async fn until(&mut self, end: Instant, server: &Server) -> anyhow::Result<()> {
        while clock::monotonic() < end {
            sleep_until(end.min(clock::monotonic() + SAMPLE_EVERY)).await;
            self.look(server)?;
        }
        Ok(())
    }

    /// Waits until no segment is behind; `None` when it takes longer than `patience`.
    async fn until_caught_up(
        &mut self,
        server: &Server,
        patience: Duration,
    ) -> anyhow::Result<Option<Duration>> {
        let began = clock::monotonic();
        while clock::since(began) < patience {
            self.look(server)?;
            if server.metric("upload_oldest_unstored_seconds").await? < CAUGHT_UP_SECS {
                return Ok(Some(clock::since(began)));
            }
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
        Ok(None)
    }
}

async fn sleep_until(at: Instant) {
    tokio::time::sleep_until(at.into()).await;
}
