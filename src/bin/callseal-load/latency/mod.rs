//! `callseal-load relay-latency`: the same calls through callseal and through a plain TCP relay, and how long each message
//! was on its way, socket to socket.
//!
//! Caller and agent are both in this process, so that one clock measures: from just before a message is written on one side
//! to just after it was read on the other. Both directions carry Twilio's messages, one every 20 ms. The plain relay copies
//! bytes between two TCP sockets in a process of its own and cannot know what they say: caller and agent have one TLS session
//! through it. Through callseal they have two, and websockets that it takes apart, and it records beside that.
//!
//! With `--wrap` both relays can be put on a core of their own. Where they share the cores with callers and agents, the
//! highest percentiles say who was given a core first.

mod calls;
mod plain;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use callseal::clock;
use callseal::simulate::{AgentServer, Chaos, Endpoint, TlsClient, Weather};
use clap::Args;
use toml::Table;

use crate::faults::{read_store, upstream};
use crate::node::{Home, Launch, Server, TENANT, Target};
use crate::process::{Process, check_open_files};
use crate::sampler::{Sampler, Tally, Watched};
use crate::sheet::{Output, tell};

use calls::Calls;
pub(crate) use plain::{PlainRelay, run as run_plain};
use report::{Bounds, Kind, Report, Row};

/// Calls under way, in their weather, before anything is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// How long anything may take that the measurement waits for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How late a slow store answers.
const SLOW: Duration = Duration::from_secs(2);
/// Sockets of one call in this process: caller and agent.
const SOCKETS: u32 = 2;

#[derive(Args)]
pub(crate) struct Latency {
    /// Directory for the server's files; made when missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The program to measure
    #[arg(long, value_name = "FILE")]
    callseal: PathBuf,
    /// A file with a `[store]` table of kind "s3" and an endpoint on loopback; calls are then also measured while that store
    /// is slow, hangs, is dead and is back. A folder without it, which has none of that
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Words before the command lines of both relays, such as "taskset -c 0"; they must become the relay
    #[arg(long, value_name = "WORDS")]
    wrap: Option<String>,
    /// Calls at the same time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=2_000))]
    calls: u16,
    /// Seconds of each part; there are five without a store, and nine with one
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    secs: u64,
    /// Exit with 1 when callseal's p99 is more than so many microseconds above that of the plain relay
    #[arg(long, value_name = "MICROSECONDS")]
    max_added_p99_us: Option<u64>,
    /// Exit with 1 when the p99 under a fault of the store is more than so many per cent above that without one
    #[arg(long, value_name = "PERCENT", requires = "store")]
    max_fault_percent: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// One part of the measurement.
struct Part {
    name: &'static str,
    kind: Kind,
    weather: Weather,
}

const fn part(name: &'static str, kind: Kind, weather: Weather) -> Part {
    Part { name, kind, weather }
}

static PLAIN: [Part; 1] = [part("plain TCP relay", Kind::Plain, Weather::Fair)];
static UNRECORDED: [Part; 1] = [part("callseal, not recorded", Kind::Other, Weather::Fair)];
static RECORDED: [Part; 5] = [
    part("callseal", Kind::Fair, Weather::Fair),
    part("callseal, store takes 2 s", Kind::Fault, Weather::Delay(SLOW)),
    part("callseal, store hangs", Kind::Fault, Weather::Hang),
    part("callseal, store is dead", Kind::Fault, Weather::Refuse),
    part("callseal, store is back", Kind::Other, Weather::Fair),
];
static CUT: [Part; 1] = [part("callseal, segments of 1 s", Kind::Other, Weather::Fair)];

static SEGMENTS_OF_1_S: [&str; 2] = ["env", "CALLSEAL_SEGMENTS__MAX_AGE_MS=1000"];

/// What all parts need.
struct Bench<'a> {
    options: &'a Latency,
    agent: AgentServer,
    chaos: Option<Chaos>,
    report: Report,
    sampler: Sampler,
    tally: Arc<Tally>,
}

/// Measures everything, and answers whether all bounds are kept.
pub(crate) async fn run(options: &Latency) -> anyhow::Result<bool> {
    check_open_files(u32::from(options.calls) * SOCKETS)?;
    let store = options.store.as_ref().map(read_store).transpose()?;
    let chaos = match store.as_ref().map(upstream).transpose()? {
        Some(address) => Some(Chaos::start(address).await.context("start the proxy")?),
        None => None,
    };
    let agent = AgentServer::start(None).await?;
    let certificate = agent.certificate_pem().to_owned();
    let bounds = Bounds { added_p99_us: options.max_added_p99_us, fault_percent: options.max_fault_percent };
    let report = Report::new(options.calls, options.secs, bounds);
    let wrap: Vec<String> =
        options.wrap.iter().flat_map(|words| words.split_whitespace()).map(str::to_owned).collect();
    let wrap_often: Vec<_> = wrap.iter().cloned().chain(SEGMENTS_OF_1_S.map(str::to_owned)).collect();
    // Two servers, and neither finds what the other has stored.
    let [store, store_of_other] =
        ["default/", "cut/"].map(|part| store.clone().map(|store| below(store, part)));
    let launch = Launch {
        dir: &options.dir.join("default"),
        callseal: &options.callseal,
        wrap: &wrap,
        store: store.as_ref(),
        agent: Some((agent.address().port(), &certificate)),
        vapi: None,
    };
    let often =
        Launch { dir: &options.dir.join("cut"), wrap: &wrap_often, store: store_of_other.as_ref(), ..launch };
    let tally: Arc<Tally> = Arc::default();
    let sampler = Sampler::start(Watched::default(), Arc::clone(&tally), clock::monotonic());
    let mut bench = Bench { options, agent, chaos, report, sampler, tally };
    let server = bench.start(&launch).await?;
    bench.measure_plain(&wrap, &server).await?;
    bench.measure(&route(&server, "unrecorded")?, server.process(), &UNRECORDED).await?;
    let parts = if bench.chaos.is_some() { RECORDED.len() } else { 1 };
    let parts = RECORDED.get(..parts).unwrap_or_default();
    bench.measure(&route(&server, "agent")?, server.process(), parts).await?;
    server.stop()?;
    let server = bench.start(&often).await?;
    bench.measure(&route(&server, "agent")?, server.process(), &CUT).await?;
    bench.measure_plain(&wrap, &server).await?;
    server.stop()?;
    let samples = bench.sampler.stop().await;
    bench.report.sheet(samples).finish(&options.output)
}

/// The same store, with everything below another prefix.
fn below(mut store: Table, part: &str) -> Table {
    let prefix = store.get("prefix").and_then(toml::Value::as_str).unwrap_or_default();
    let prefix = format!("{}{part}", if prefix.is_empty() { String::new() } else { format!("{prefix}/") });
    store.insert("prefix".to_owned(), toml::Value::String(prefix));
    store
}

/// Where calls of a route go.
fn route(server: &Server, name: &str) -> anyhow::Result<Target> {
    Ok(Target { path: format!("/twilio/v1/{TENANT}/{name}"), ..server.target()? })
}

impl Bench<'_> {
    async fn start(&self, launch: &Launch<'_>) -> anyhow::Result<Server> {
        let home = Home::make(launch, self.chaos.as_ref().map(Chaos::address))?;
        let server = Server::start(launch, &home)?;
        server.wait_until_ready(PATIENCE).await?;
        self.sampler.watch(server.watched());
        Ok(server)
    }

    /// Measures a plain relay to the agent. Calls are signed as for the server, which nobody looks at.
    async fn measure_plain(&mut self, wrap: &[String], server: &Server) -> anyhow::Result<()> {
        let agent = self.agent.address();
        let relay = plain::Running::start(wrap, agent)?;
        let target = Target {
            endpoint: Endpoint::new(relay.address(), &format!("wss://localhost:{}", agent.port()))?,
            path: "/agent".to_owned(),
            tls: TlsClient::new(self.agent.certificate_pem().as_bytes())?,
            ..server.target()?
        };
        self.measure(&target, relay.process(), &PLAIN).await
    }

    /// Places all calls, and measures them in each part's weather.
    async fn measure(&mut self, target: &Target, relay: Process, parts: &[Part]) -> anyhow::Result<()> {
        let calls = Calls::start(self.options.calls, target, &mut self.agent, &self.tally).await?;
        for part in parts {
            tell(&format!("measuring: {}", part.name));
            if let Some(chaos) = &self.chaos {
                chaos.set(part.weather);
            }
            let row = row(part, &calls, relay, Duration::from_secs(self.options.secs)).await?;
            self.report.rows.push(row);
        }
        if let Some(chaos) = &self.chaos {
            chaos.set(Weather::Fair);
        }
        self.report.failed += calls.end().await;
        Ok(())
    }
}

async fn row(part: &Part, calls: &Calls, relay: Process, secs: Duration) -> anyhow::Result<Row> {
    let own = Process::new(std::process::id());
    tokio::time::sleep(SETTLE).await;
    let (relay_before, own_before, began) = (relay.cpu()?, own.cpu()?, clock::monotonic());
    calls.take();
    tokio::time::sleep(secs).await;
    let measured = calls.take();
    let took = clock::since(began).as_secs_f64();
    ensure!(measured.delays.iter().all(|delays| delays.count() > 0), "{}: nothing arrived", part.name);
    let cores = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / took;
    Ok(Row {
        name: part.name,
        kind: part.kind,
        relay_cores: cores(relay_before, relay.cpu()?),
        own_cores: cores(own_before, own.cpu()?),
        delays: measured.delays,
        lag: measured.lag,
    })
}
