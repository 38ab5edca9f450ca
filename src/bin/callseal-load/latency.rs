//! `callseal-load relay-latency`: the same calls through callseal and through a plain TCP relay, and how long each message
//! was on its way, socket to socket.
//!
//! Caller and agent are both in this process, so that one clock measures. Messages of both directions are Twilio's, every
//! 20 ms. The plain relay copies bytes between two sockets and cannot know what they say: TLS goes through it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use callseal::clock;
use callseal::domain::provider::twilio::AccountSid;
use callseal::simulate::speech::{DEMO_CALLER, Track};
use callseal::simulate::{
    AgentCall, AgentServer, CallIds, CallPlan, Chaos, Direction, Endpoint, LagHistogram, Received, TlsClient,
    TwilioCall, Weather,
};
use clap::Args;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::faults::{read_store, upstream};
use crate::node::{Home, Launch, Server, Target};

const TICK: Duration = Duration::from_millis(20);
/// Calls under way before anything is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// How long anything may take that the measurement waits for.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(crate) struct Latency {
    /// Directory for the server's files; made when missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The program to measure
    #[arg(long, value_name = "FILE")]
    callseal: PathBuf,
    /// A file with a `[store]` table; a second part is then measured while that store does not answer. A folder without it
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Calls at the same time
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=2_000))]
    calls: u16,
    /// Seconds of each part
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    secs: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was measured.
pub(crate) struct Report {
    calls: u16,
    parts: Vec<(&'static str, [LagHistogram; 2])>,
    failed: usize,
}

/// Delays by direction.
type Delays = Arc<Directions>;

#[derive(Default)]
struct Directions {
    to_agent: Mutex<LagHistogram>,
    to_caller: Mutex<LagHistogram>,
}

pub(crate) async fn run(options: &Latency) -> anyhow::Result<Report> {
    let store = options.store.as_ref().map(read_store).transpose()?;
    let chaos = match store.as_ref().map(upstream).transpose()? {
        Some(address) => Some(Chaos::start(address).await.context("start the proxy")?),
        None => None,
    };
    let mut agent = AgentServer::start(None).await?;
    let launch = Launch {
        dir: &options.dir,
        callseal: &options.callseal,
        wrap: &[],
        store: store.as_ref(),
        agent: Some((agent.address().port(), agent.certificate_pem())),
    };
    let home = Home::make(&launch, chaos.as_ref().map(Chaos::address))?;
    let server = Server::start(&launch, &home)?;
    server.wait_until_ready(PATIENCE).await?;
    let (mut parts, mut failed) = (Vec::new(), 0);
    let secs = Duration::from_secs(options.secs);

    let plain = plain_relay(agent.address()).await?;
    let to_agent = Target {
        endpoint: Endpoint::new(plain, &format!("wss://localhost:{}", agent.address().port()))?,
        path: "/agent".to_owned(),
        tls: TlsClient::new(agent.certificate_pem().as_bytes())?,
        ..server.target()?
    };
    let mut calls = Calls::start(options.calls, &to_agent, &mut agent).await?;
    parts.push(("plain TCP relay", calls.measure(secs).await));
    failed += calls.end().await;

    let path = format!("/twilio/v1/{}/agent", crate::node::TENANT);
    let through = Target { path, ..server.target()? };
    let mut calls = Calls::start(options.calls, &through, &mut agent).await?;
    parts.push(("callseal", calls.measure(secs).await));
    if let Some(chaos) = &chaos {
        chaos.set(Weather::Hang);
        parts.push(("callseal, store hangs", calls.measure(secs).await));
        chaos.set(Weather::Fair);
    }
    failed += calls.end().await;
    server.stop()?;
    Ok(Report { calls: options.calls, parts, failed })
}

/// Copies bytes between whoever connects and `to`; answers where.
async fn plain_relay(to: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    // A thread of its own, as callseal is a process of its own.
    let listener = listener.into_std()?;
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((mut from, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(mut agent) = TcpStream::connect(to).await else { return };
                    if from.set_nodelay(true).is_ok() && agent.set_nodelay(true).is_ok() {
                        let _ended = tokio::io::copy_bidirectional(&mut from, &mut agent).await.is_ok();
                    }
                });
            }
        });
    });
    Ok(address)
}

/// Calls that go on until they are ended.
struct Calls {
    delays: Delays,
    ends: tokio::sync::watch::Sender<bool>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Calls {
    async fn start(count: u16, target: &Target, agent: &mut AgentServer) -> anyhow::Result<Self> {
        let delays: Delays = Arc::default();
        let (ends, ended) = tokio::sync::watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let plan = plan(number, target);
            let call = TwilioCall::connect(plan, &target.tls).await.context("place a call")?;
            let reached = tokio::time::timeout(PATIENCE, agent.call()).await;
            let reached =
                reached.context("the agent was not reached")?.context("the agent listens no more")?;
            let sent: [Sent; 2] = Default::default();
            let caller = caller(call, sent.clone(), Arc::clone(&delays), ended.clone());
            tasks.spawn(caller);
            tasks.spawn(answer(reached, sent, Arc::clone(&delays), ended.clone()));
        }
        Ok(Self { delays, ends, tasks })
    }

    /// Measures for a while.
    async fn measure(&mut self, secs: Duration) -> [LagHistogram; 2] {
        tokio::time::sleep(SETTLE).await;
        self.take();
        tokio::time::sleep(secs).await;
        self.take()
    }

    fn take(&self) -> [LagHistogram; 2] {
        [&self.delays.to_agent, &self.delays.to_caller].map(|delays| std::mem::take(&mut *lock(delays)))
    }

    /// Ends all calls; answers how many had not gone well.
    async fn end(mut self) -> usize {
        self.ends.send_replace(true);
        let mut failed = 0;
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                failed += 1;
                eprintln!("a call failed: {error:#}");
            }
        }
        failed
    }
}

/// When the messages on their way were sent: they arrive in order.
type Sent = Arc<Mutex<VecDeque<Instant>>>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn arrived(sent: &Sent, delays: &Mutex<LagHistogram>) {
    if let Some(at) = lock(sent).pop_front() {
        lock(delays).record(clock::since(at));
    }
}

fn plan(number: u16, target: &Target) -> CallPlan {
    let id = u128::from(number).to_be_bytes();
    let account: &AccountSid = &target.account;
    let ids = CallIds::new(account.as_str(), &id, &id);
    let caller = Track::whole(DEMO_CALLER);
    CallPlan::new(target.endpoint.clone(), &target.path, &target.auth_token, ids, caller)
}

async fn caller(
    mut call: TwilioCall,
    [to_agent, to_caller]: [Sent; 2],
    delays: Delays,
    mut ended: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<()> {
    call.greet().await?;
    let track = Track::whole(DEMO_CALLER);
    let mut tick = tokio::time::interval(TICK);
    let mut number = 0;
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let payload = track.base64(number % track.chunks()).unwrap_or_default();
                let timestamp_ms = 102 + 20 * u64::try_from(number)?;
                lock(&to_agent).push_back(clock::monotonic());
                call.send_media(Direction::Inbound, timestamp_ms, payload).await?;
                number += 1;
            }
            received = call.recv() => match received? {
                Received::Text(_) => arrived(&to_caller, &delays.to_caller),
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
    delays: Delays,
    mut ended: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut stream = String::new();
    let track = Track::whole(DEMO_CALLER);
    let mut tick = tokio::time::interval(TICK);
    let mut number = 0;
    loop {
        tokio::select! {
            _ = tick.tick(), if !stream.is_empty() && !*ended.borrow() => {
                let payload = track.base64(number % track.chunks()).unwrap_or_default();
                let media = format!(
                    r#"{{"event":"media","streamSid":"{stream}","media":{{"payload":"{payload}"}}}}"#
                );
                lock(&to_caller).push_back(clock::monotonic());
                call.send_text(media).await?;
                number += 1;
            }
            received = call.recv() => match received? {
                Received::Text(text) if text.starts_with(r#"{"event":"media""#) => arrived(&to_agent, &delays.to_agent),
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

impl Report {
    pub(crate) fn all_went_well(&self) -> bool {
        self.failed == 0 && self.parts.iter().all(|(_, [a, b])| a.count() > 0 && b.count() > 0)
    }

    /// Prints the delays, and those that callseal adds.
    pub(crate) fn print(&self, as_json: bool) -> anyhow::Result<()> {
        ensure!(!self.parts.is_empty(), "nothing was measured");
        let rows = self.parts.iter().flat_map(|(name, directions)| {
            ["to agent", "to caller"]
                .into_iter()
                .zip(directions)
                .map(move |(direction, delays)| (*name, direction, delays))
        });
        if as_json {
            let rows: Vec<_> = rows
                .map(|(name, direction, delays)| {
                    let [p50, p99, p999] = percentiles(delays);
                    json!({"through": name, "direction": direction, "messages": delays.count(),
                        "p50_us": p50, "p99_us": p99, "p999_us": p999, "max_us": micros(delays.max())})
                })
                .collect();
            print_line(&json!({"calls": self.calls, "failed": self.failed, "rows": rows}).to_string());
            return Ok(());
        }
        print_line(&format!("{} calls, both sides talking; {} failed", self.calls, self.failed));
        print_line("through                  direction   messages    p50 us    p99 us  p99.9 us    max us");
        for (name, direction, delays) in rows {
            let [p50, p99, p999] = percentiles(delays);
            print_line(&format!(
                "{name:<24} {direction:<10} {:>9} {p50:>9} {p99:>9} {p999:>9} {:>9}",
                delays.count(),
                micros(delays.max())
            ));
        }
        Ok(())
    }
}

fn percentiles(delays: &LagHistogram) -> [u64; 3] {
    [500, 990, 999].map(|per_mille| micros(delays.per_mille(per_mille)))
}

fn micros(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::print_stdout, reason = "the result belongs on standard output")]
fn print_line(text: &str) {
    println!("{text}");
}
