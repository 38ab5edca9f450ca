//! `callseal-load`: places many simulated calls and says what they cost the server.
//!
//! One thread, so that it can be kept on one core beside the server's. Loopback only: load on somebody else's machine
//! is an attack.

mod faults;
mod latency;
mod node;
mod process;
mod report;
mod scenario;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use callseal::domain::ids::{RouteName, TenantId};
use callseal::domain::provider::twilio::AccountSid;
use callseal::simulate::{Endpoint, TlsClient};
use clap::{Args, Parser, Subcommand};
use zeroize::Zeroizing;

use scenario::Target;

/// Scenarios that have a name already.
const PLANNED: [&str; 3] = ["burst", "drain", "vapi"];
/// Nothing was measured: bad options, an unreadable file.
const EXIT_USAGE: u8 = 2;

/// Places simulated phone calls and measures what they cost the server.
///
/// Every call is a TLS connection of its own that speaks as Twilio does: signed handshake, two tracks of real speech,
/// 100 masked websocket messages a second, each its own TLS record. Calls are paced in real time, so a server that
/// cannot keep up shows as send lag.
#[derive(Parser)]
#[command(name = "callseal-load", version, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

const EXAMPLES: &str = "\
Examples:
  Server on core 0, generator on core 1, 200 calls for 30 seconds:
    taskset -c 0 callseal serve --config config/dev.toml &
    taskset -c 1 callseal-load steady --connect 127.0.0.1:8443 --public-url wss://localhost:8443 \\
      --ca data/tls/ca.pem --tenant acme-dental --route reception \\
      --account AC00000000000000000000000000000001 --auth-token-file data/twilio-token \\
      --calls 200 --duration-secs 30 --ramp-secs 5 --server-pid $!

  The floor to compare with, a server that only reads:
    cargo run --release --example null_sink -- 127.0.0.1:8444 null.pem

  The store hangs for a minute under 50 calls; a throw-away server with its files in a directory:
    callseal-load faults --dir /tmp/faults --callseal target/release/callseal --store store.toml \\
      --fault hang --calls 50 --secs 120 --after-secs 20 --fault-secs 60

  What callseal adds to the delay of messages, beside a plain TCP relay, with 200 calls and a store in trouble; about 4 minutes:
    callseal-load relay-latency --dir /tmp/latency --callseal target/release/callseal --store store.toml \\
      --max-added-p99-us 1000 --max-fault-percent 10

Reading the result:
  send lag          how much later than due a message was with the kernel: timer, generator and a slow reader together
  CPU per message   the server's user and system time in the steady state, divided by the messages of that time
  memory per call   highest resident memory of the steady state less that before the first call, divided by the calls

Exit codes:
  0  every call ended as planned
  1  a call failed, or was refused, or a bound was broken
  2  nothing was measured: bad options, an unreadable file";

#[derive(Subcommand)]
enum Scenario {
    /// A constant number of calls in real time, measured after the last one has begun.
    Steady(Box<Steady>),
    /// Calls while something breaks: the store, the way to it, the server or its disk; then every sample is compared.
    Faults(Box<faults::Faults>),
    /// How much later messages arrive through callseal than through a plain TCP relay, in both directions.
    RelayLatency(latency::Latency),
    /// What `relay-latency` compares with; it starts this by itself.
    #[command(hide = true)]
    PlainRelay(latency::PlainRelay),
    #[command(external_subcommand)]
    Other(Vec<String>),
}

#[derive(Args)]
struct Steady {
    /// Address of the server; must be a loopback address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    connect: SocketAddr,
    /// The server's public URL without a path, exactly as in its configuration: it is what Twilio signs.
    #[arg(long, value_name = "URL", default_value = "wss://localhost:8443")]
    public_url: String,
    /// PEM file with the root certificate that the server's certificate comes from.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Tenant that the calls are for.
    #[arg(long)]
    tenant: TenantId,
    /// Route of the tenant.
    #[arg(long, default_value = RouteName::DEFAULT)]
    route: RouteName,
    /// Twilio account of the tenant.
    #[arg(long, value_name = "AC…")]
    account: AccountSid,
    /// File with the account's auth token, which signs the handshakes.
    #[arg(long, value_name = "FILE")]
    auth_token_file: PathBuf,
    /// Calls at the same time.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration_secs: u64,
    /// Seconds over which the calls begin, evenly spread: TLS handshakes all at once would show as send lag.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    ramp_secs: u64,
    /// Process id of the server, to measure its CPU time and memory. It must run on this machine.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Makes call and stream ids and the speech's offsets repeatable; random without it, and part of the result.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("callseal-load: {error:#}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Runs a scenario and prints its result; answers whether all calls ended as planned.
fn run(cli: Cli) -> anyhow::Result<bool> {
    let steady = match cli.scenario {
        Scenario::Steady(steady) => steady,
        Scenario::Faults(options) => return run_faults(&options),
        Scenario::RelayLatency(options) => return run_latency(&options),
        Scenario::PlainRelay(options) => return latency::run_plain(&options).map(|()| true),
        Scenario::Other(words) => return refuse_scenario(&words),
    };
    let json = steady.json;
    let server = steady.server_pid;
    let plan = plan(*steady)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(scenario::steady(plan, server, !json))?;
    report::print(&report, json)?;
    Ok(report.all_went_well())
}

fn run_faults(options: &faults::Faults) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(faults::run(options, !options.json))?;
    report::print_json(&report)?;
    Ok(report.all_went_well())
}

fn run_latency(options: &latency::Latency) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(latency::run(options))?;
    report.print(options.json);
    Ok(report.all_went_well())
}

fn plan(options: Steady) -> anyhow::Result<scenario::Steady> {
    let address = options.connect;
    ensure!(
        address.ip().to_canonical().is_loopback(),
        "{address} is not a loopback address: load goes to this machine only, on another one it is an attack"
    );
    let pem = fs::read(&options.ca).with_context(|| format!("read {}", options.ca.display()))?;
    let tls = TlsClient::new(&pem).with_context(|| format!("use {}", options.ca.display()))?;
    let token_file = &options.auth_token_file;
    let token = fs::read_to_string(token_file).with_context(|| format!("read {}", token_file.display()))?;
    let auth_token = Zeroizing::new(Zeroizing::new(token).trim_end().as_bytes().to_vec());
    ensure!(!auth_token.is_empty(), "{} holds no auth token", token_file.display());
    let seed = match options.seed {
        Some(seed) => seed,
        None => getrandom::u64().context("no random seed")?,
    };
    Ok(scenario::Steady {
        target: Target {
            endpoint: Endpoint::new(address, &options.public_url)?,
            path: format!("/twilio/v1/{}/{}", options.tenant, options.route),
            tls,
            account: options.account,
            auth_token,
        },
        calls: options.calls,
        duration_secs: options.duration_secs,
        ramp_secs: options.ramp_secs,
        seed,
    })
}

fn refuse_scenario(words: &[String]) -> anyhow::Result<bool> {
    let name = words.first().map_or("", String::as_str);
    if PLANNED.contains(&name) {
        bail!("scenario {name} is not available yet; available: steady, faults, relay-latency");
    }
    bail!("there is no scenario {name:?}; available: steady, faults, relay-latency")
}
