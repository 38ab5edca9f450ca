//! Places the calls of a course, each in its time, and measures meanwhile.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use callseal::clock;
use callseal::observe::page::Page;
use callseal::simulate::{CallError, CallPlan, LagHistogram, Received, TlsClient, TwilioCall};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::course::{Course, Group, Planned};
use crate::ops;
use crate::process::Process;
use crate::sampler::{Sample, Sampler, Tally, Watched};

/// Handshakes of silent connections at a time: more would only wait for each other, until the server gives them up.
static SILENT_HANDSHAKES: Semaphore = Semaphore::const_new(64);
/// How many ways of failing are told apart; more are counted as others.
const MAX_REASONS: usize = 20;

/// Why a call did not end as planned.
pub(crate) enum CallFailed {
    Connect(CallError),
    Later(CallError),
}

/// How a call went.
#[derive(Default)]
pub(crate) struct Went {
    /// TCP, TLS and the upgrade.
    pub(crate) handshake: Duration,
    pub(crate) send_lag: LagHistogram,
    /// When and how a connection that said nothing was closed, if it was.
    pub(crate) silence: Option<Option<(Duration, String)>>,
}

/// What became of all calls.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Those that ended as planned.
    pub(crate) well: Vec<Planned>,
    pub(crate) connect_failures: u32,
    pub(crate) broken: u32,
    /// How many calls failed in each way, by the whole chain of errors.
    pub(crate) failures: BTreeMap<String, u32>,
    pub(crate) send_lag: LagHistogram,
    pub(crate) handshakes: LagHistogram,
    /// The same of the calls beside the base alone.
    pub(crate) burst_handshakes: LagHistogram,
    /// Failed calls of the base.
    pub(crate) base_failed: u32,
    /// Handshakes that were answered with this status.
    pub(crate) refused: BTreeMap<u16, u32>,
    pub(crate) silent: Silences,
}

/// What became of connections that said nothing.
#[derive(Default)]
pub(crate) struct Silences {
    pub(crate) closed_after: LagHistogram,
    /// How many were closed in each way.
    pub(crate) ends: BTreeMap<String, u32>,
    pub(crate) not_closed: u32,
}

impl CallFailed {
    pub(crate) fn error(self) -> CallError {
        match self {
            Self::Connect(error) | Self::Later(error) => error,
        }
    }
}

impl Outcome {
    pub(crate) fn failed(&self) -> u32 {
        self.connect_failures + self.broken
    }

    fn add(&mut self, call: Planned, went: Result<Went, CallFailed>) {
        let error = match went {
            Ok(went) => {
                self.well.push(call);
                self.send_lag.merge(&went.send_lag);
                self.handshakes.record(went.handshake);
                if call.group != Group::Base {
                    self.burst_handshakes.record(went.handshake);
                }
                if let Some(silence) = went.silence {
                    self.silent.add(silence);
                }
                return;
            }
            Err(CallFailed::Connect(error)) => {
                self.connect_failures += 1;
                error
            }
            Err(CallFailed::Later(error)) => {
                self.broken += 1;
                error
            }
        };
        self.base_failed += u32::from(call.group == Group::Base);
        if let CallError::Refused { status } = &error {
            *self.refused.entry(*status).or_default() += 1;
        }
        let reason = format!("{:#}", anyhow::Error::new(error));
        count(&mut self.failures, reason);
    }
}

impl Silences {
    fn add(&mut self, closed: Option<(Duration, String)>) {
        match closed {
            Some((after, how)) => {
                self.closed_after.record(after);
                count(&mut self.ends, how);
            }
            None => self.not_closed += 1,
        }
    }
}

fn count(ways: &mut BTreeMap<String, u32>, way: String) {
    let is_told = ways.len() < MAX_REASONS || ways.contains_key(&way);
    *ways.entry(if is_told { way } else { "other reasons".to_owned() }).or_default() += 1;
}

/// What happened between the start and the end of the measurement.
#[derive(Default)]
pub(crate) struct Window {
    pub(crate) took: Duration,
    /// Calls that were open when it began.
    pub(crate) open: u64,
    pub(crate) messages: u64,
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) own_cpu: Duration,
    pub(crate) sealed_p99: Option<f64>,
    /// Counter of lost audio, what it grew by.
    pub(crate) server_lost_bytes: Option<f64>,
}

/// A run that is over.
pub(crate) struct Ran {
    pub(crate) outcome: Outcome,
    pub(crate) window: Window,
    pub(crate) samples: Vec<Sample>,
    /// The server's memory before the first call.
    pub(crate) before_mib: Option<f64>,
}

/// Places all calls with `place` and measures between the course's two times.
pub(crate) async fn run<P, F>(
    course: &Course,
    watched: Watched,
    tally: &Arc<Tally>,
    bar: &ProgressBar,
    place: P,
) -> anyhow::Result<Ran>
where
    P: Fn(Planned) -> F,
    F: Future<Output = Result<Went, CallFailed>> + Send + 'static,
{
    let before_mib = watched.process.map(Process::resident_kib).transpose()?.map(|kib| kib as f64 / 1024.0);
    let began = clock::monotonic();
    let sampler = Sampler::start(watched, Arc::clone(tally), began);
    let (outcome, window) =
        tokio::try_join!(all_calls(course, began, place), measure(course, watched, tally, began, bar))?;
    Ok(Ran { outcome, window, samples: sampler.stop().await, before_mib })
}

/// Starts calls when they are due, so that those to come cost nothing, and collects those that are over.
pub(crate) async fn all_calls<P, F>(course: &Course, began: Instant, place: P) -> anyhow::Result<Outcome>
where
    P: Fn(Planned) -> F,
    F: Future<Output = Result<Went, CallFailed>> + Send + 'static,
{
    let (mut outcome, mut running) = (Outcome::default(), JoinSet::new());
    let mut next = course.calls.iter();
    let mut due = next.next();
    while due.is_some() || !running.is_empty() {
        let start = due.map_or(began, |call| began + call.start);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(start.into()), if due.is_some() => {
                if let Some(call) = due {
                    let (call, placed) = (*call, place(*call));
                    running.spawn(async move { (call, placed.await) });
                }
                due = next.next();
            }
            Some(ended) = running.join_next(), if !running.is_empty() => {
                let (call, went) = ended.context("a call's task died")?;
                outcome.add(call, went);
            }
        }
    }
    Ok(outcome)
}

/// Places one call of Twilio's and stays to its end.
pub(crate) async fn twilio(plan: CallPlan, tls: TlsClient, tally: Arc<Tally>) -> Result<Went, CallFailed> {
    let began = clock::monotonic();
    let connected = TwilioCall::connect(plan, &tls).await;
    let handshake = clock::since(began);
    tally.tried.fetch_add(1, Ordering::Relaxed);
    let call = connected.map_err(CallFailed::Connect)?;
    tally.open.fetch_add(1, Ordering::Relaxed);
    let mut counted = 0;
    let report = call.run(|progress| {
        tally.sent(progress.messages - counted, progress.lag);
        counted = progress.messages;
    });
    let report = report.await;
    tally.open.fetch_sub(1, Ordering::Relaxed);
    report
        .map(|report| Went { handshake, send_lag: report.send_lag, ..Went::default() })
        .map_err(CallFailed::Later)
}

/// Connects, says nothing, and waits as long as `patience` for the server to close; shakes hands as Twilio does, or ends
/// with TLS.
pub(crate) async fn silent(
    plan: CallPlan,
    tls: TlsClient,
    tally: Arc<Tally>,
    is_upgraded: bool,
    patience: Duration,
) -> Result<Went, CallFailed> {
    let turn = SILENT_HANDSHAKES.acquire().await;
    let began = clock::monotonic();
    let connected = if is_upgraded {
        TwilioCall::connect(plan, &tls).await.map(|call| Silent::Upgraded(Box::new(call)))
    } else {
        tls.connect(&plan.endpoint).await.map(|stream| Silent::Tls(Box::new(stream))).map_err(CallError::from)
    };
    let handshake = clock::since(began);
    tally.tried.fetch_add(1, Ordering::Relaxed);
    drop(turn);
    let mut connection = connected.map_err(CallFailed::Connect)?;
    tally.open.fetch_add(1, Ordering::Relaxed);
    let began = clock::monotonic();
    let end = timeout(patience, connection.closed()).await;
    tally.open.fetch_sub(1, Ordering::Relaxed);
    let silence = end.ok().map(|how| (clock::since(began), how));
    Ok(Went { handshake, silence: Some(silence), ..Went::default() })
}

/// A connection that says nothing.
enum Silent {
    Upgraded(Box<TwilioCall>),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Silent {
    /// Waits until the server closes; answers how it did.
    async fn closed(&mut self) -> String {
        match self {
            Self::Upgraded(call) => loop {
                match call.recv().await {
                    Ok(Received::Closed { code, reason }) => break format!("close code {code:?} ({reason})"),
                    Ok(Received::Text(_) | Received::Binary(_)) => {}
                    Err(error) => break format!("{:#}", anyhow::Error::new(error)),
                }
            },
            Self::Tls(stream) => match stream.read(&mut [0; 64]).await {
                Ok(0) => "end of TLS".to_owned(),
                Ok(_) => "an answer to nothing".to_owned(),
                Err(error) => error.to_string(),
            },
        }
    }
}

async fn measure(
    course: &Course,
    watched: Watched,
    tally: &Tally,
    began: Instant,
    bar: &ProgressBar,
) -> anyhow::Result<Window> {
    let this = Process::new(std::process::id());
    bar.set_message("calls begin");
    wait_and_show(began, course.from, bar).await;
    bar.set_message("measuring");
    let measured_from = clock::monotonic();
    let open = tally.open.load(Ordering::Relaxed);
    let messages = tally.messages.load(Ordering::Relaxed);
    let (server_before, own_before) = (watched.process.map(Process::cpu).transpose()?, this.cpu()?);
    let page_before = page(watched).await;
    // Where all calls so far have failed there is nothing to measure, and no reason to wait.
    let all_failed = messages == 0 && open == 0 && tally.tried.load(Ordering::Relaxed) > 0;
    if !all_failed {
        wait_and_show(began, course.until, bar).await;
    }
    let server_after = watched.process.map(Process::cpu).transpose()?;
    let own_cpu = this.cpu()?.saturating_sub(own_before);
    let took = clock::since(measured_from).max(Duration::from_millis(1));
    let messages = tally.messages.load(Ordering::Relaxed) - messages;
    let page_after = page(watched).await;
    bar.set_message("calls end");
    let pages = page_before.zip(page_after);
    Ok(Window {
        took,
        open,
        messages,
        server_cpu: server_before.zip(server_after).map(|(before, after)| after.saturating_sub(before)),
        own_cpu,
        sealed_p99: pages.as_ref().and_then(|(before, after)| {
            let name = "ingest_read_to_sealed_seconds";
            after.buckets(name).quantile_since(&before.buckets(name), 0.99)
        }),
        server_lost_bytes: pages.as_ref().map(|(before, after)| {
            let lost = |page: &Page| page.sum("audio_lost_bytes_total").unwrap_or(0.0);
            lost(after) - lost(before)
        }),
    })
}

async fn page(watched: Watched) -> Option<Page> {
    ops::look(watched.ops?).await.ok()
}

async fn wait_and_show(began: Instant, until: Duration, bar: &ProgressBar) {
    while clock::since(began) < until {
        let second = Duration::from_secs(clock::since(began).as_secs() + 1);
        tokio::time::sleep_until((began + second.min(until)).into()).await;
        bar.set_position(clock::since(began).as_secs());
    }
}

/// Makes a bar of so many seconds.
pub(crate) fn progress_bar(secs: u64, is_shown: bool) -> ProgressBar {
    if !is_shown {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}");
    ProgressBar::new(secs).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
