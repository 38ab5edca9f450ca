//! `callseal-load`: places many simulated calls and says what they cost the server.
//!
//! The calls of a run are placed by one thread, so that it can be kept on one core beside the server's. Loopback
//! only: load on somebody else's machine is an attack.

mod compare;
mod course;
mod curve;
mod drain;
mod faults;
mod html;
mod latency;
mod ledger;
mod node;
mod ops;
mod place;
mod playback;
mod process;
mod random;
mod recordings;
mod sampler;
mod scenario;
mod sheet;
mod storm;
mod traffic;
mod vapi;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use faults::Ordered;

/// Nothing was measured: bad options, an unreadable file.
const EXIT_USAGE: u8 = 2;

/// Places simulated phone calls and measures what they cost the server.
///
/// Every call is a TLS connection of its own that speaks as the provider does: signed handshake, two tracks, 100
/// masked websocket messages a second, each its own TLS record and write. Calls are paced in real time, so a server
/// that cannot keep up shows as send lag. All runs are bounded in time and in calls, and go to this machine only.
#[derive(Parser)]
#[command(name = "callseal-load", version, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

const EXAMPLES: &str = "\
Examples:
  200 calls for 30 seconds at a server of our own, and every recording compared:
    callseal-load steady --dir /tmp/load --callseal target/release/callseal --calls 200 --html load.html

  Server on core 0, generator on core 1, a server that runs already:
    taskset -c 0 callseal serve --config config/dev.toml &
    taskset -c 1 callseal-load steady --connect 127.0.0.1:8443 --public-url wss://localhost:8443 \\
      --ca data/tls/ca.pem --tenant acme-dental --route reception \\
      --account AC00000000000000000000000000000001 --auth-token-file data/twilio-token \\
      --calls 200 --duration-secs 30 --ramp-secs 5 --server-pid $! --ops 127.0.0.1:9464

  The same again after a change, and what is different:
    callseal-load steady … --seed 1 --save before.json
    callseal-load steady … --seed 1 --compare before.json

  The store hangs for a minute under 50 calls:
    callseal-load store-outage --how hang --dir /tmp/faults --callseal target/release/callseal --store store.toml \\
      --calls 50 --secs 120 --after-secs 20 --fault-secs 60

  Calls that callseal passes on to a simulated Vapi, and both voices compared:
    callseal-load vapi --kind transport --dir /tmp/load --callseal target/release/callseal --calls 100

  What callseal adds to the delay of messages, beside a plain TCP relay, with a store in trouble; 4 minutes:
    callseal-load relay-latency --dir /tmp/latency --callseal target/release/callseal --store store.toml \\
      --max-added-p99-us 1000 --max-fault-percent 10

Reading the result (docs/LOAD.md has more):
  send lag          how much later than due a message was with the kernel: timer, generator and a slow reader together
  CPU per message   the server's user and system time in the measured time, divided by the messages of that time
  memory per call   highest resident memory less that before the first call, divided by the calls

Exit codes:
  0  every bound is kept; one is always that no call fails, unless told
  1  a bound is broken
  2  nothing was measured: bad options, an unreadable file, no server; or the result cannot be written";

#[derive(Subcommand)]
enum Scenario {
    /// A constant number of calls in real time, measured after the last one has begun.
    Steady(Box<scenario::Steady>),
    /// Many calls that begin at once while others run.
    Burst(Box<scenario::BurstOptions>),
    /// Short calls at a high rate while others run: how fast they are let in, and whether the others notice.
    Storm(Box<storm::StormOptions>),
    /// Connections that say nothing: what they cost, when they are closed, and whether a call beside them notices.
    Idle(Box<storm::IdleOptions>),
    /// One long recording, heard by many and from anywhere.
    Playback(Box<playback::Playback>),
    /// Calls that come and go for long, and whether memory stays where it is.
    Soak(Box<scenario::Soak>),
    /// Calls while the store answers late; then every sample is compared.
    SlowStore(Box<faults::SlowStore>),
    /// Calls while the store is away; then every sample is compared.
    StoreOutage(Box<faults::StoreOutage>),
    /// Calls while the server is killed and started again; then every sample is compared.
    Kill(Box<faults::Kill>),
    /// Calls while something else breaks: the way to the store, the disk, what a command breaks.
    Faults(Box<faults::Faults>),
    /// How much later messages arrive through callseal than through a plain TCP relay, in both directions.
    RelayLatency(Box<latency::Latency>),
    /// What `relay-latency` compares with; it starts this by itself.
    #[command(hide = true)]
    PlainRelay(latency::PlainRelay),
    /// The server is asked to end while calls run; then every sample is compared.
    Drain(Box<drain::Drain>),
    /// As steady, with calls of Vapi's: to a custom transcriber, heard live, or over its websocket transport.
    Vapi(Box<vapi::Vapi>),
    /// As steady, with more and more calls: what one of them costs.
    Curve(Box<curve::Curve>),
    /// Two saved results beside each other.
    Compare(Compare),
}

#[derive(Args)]
struct Compare {
    /// The earlier one.
    #[arg(value_name = "OLD.json")]
    old: PathBuf,
    /// The later one.
    #[arg(value_name = "NEW.json")]
    new: PathBuf,
}

fn main() -> ExitCode {
    match run(Cli::parse().scenario) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            sheet::tell(&format!("callseal-load: {error:#}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Runs a scenario and prints its result; answers whether all bounds are kept.
fn run(scenario: Scenario) -> anyhow::Result<bool> {
    match scenario {
        Scenario::Steady(options) => on_one_thread(scenario::steady(&options)),
        Scenario::Burst(options) => on_one_thread(scenario::burst(*options)),
        Scenario::Soak(options) => on_one_thread(scenario::soak(*options)),
        Scenario::Storm(options) => on_one_thread(storm::storm(*options)),
        Scenario::Idle(options) => on_one_thread(storm::idle(*options)),
        Scenario::Playback(options) => on_one_thread(playback::run(&options)),
        Scenario::Drain(options) => on_one_thread(drain::run(&options)),
        Scenario::Vapi(options) => on_one_thread(vapi::run(&options)),
        Scenario::Curve(options) => on_one_thread(curve::run(&options)),
        Scenario::SlowStore(options) => run_faults(*options),
        Scenario::StoreOutage(options) => run_faults(*options),
        Scenario::Kill(options) => run_faults(*options),
        Scenario::Faults(options) => run_faults(*options),
        Scenario::RelayLatency(options) => on_two_threads(latency::run(&options)),
        Scenario::PlainRelay(options) => latency::run_plain(&options).map(|()| true),
        Scenario::Compare(Compare { old, new }) => {
            let new = compare::read(&new)?;
            compare::with_file(&old, &new)?.iter().try_for_each(|line| sheet::print_line(line))?;
            Ok(true)
        }
    }
}

fn run_faults(options: impl Into<Ordered>) -> anyhow::Result<bool> {
    on_two_threads(faults::run(&options.into()))
}

fn on_one_thread(running: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(unless_stopped(running))
}

fn on_two_threads(running: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(unless_stopped(running))
}

/// Gives up on a signal, so that a server of our own does not outlive us.
async fn unless_stopped(running: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        result = running => result,
        _ = terminated.recv() => bail!("stopped by SIGTERM"),
        _ = tokio::signal::ctrl_c() => bail!("stopped by SIGINT"),
    }
}
