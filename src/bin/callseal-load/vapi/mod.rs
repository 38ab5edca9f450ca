//! `callseal-load vapi`: calls whose audio comes from Vapi, in one of its three ways, as 16-bit samples at 16,000 Hz, 20 ms
//! a message.
//!
//! - `transcriber`: Vapi dials and sends both parties in one stream. The server needs a route of provider "vapi-transcriber";
//!   with `record_only = true` it needs no transcriber behind it. A server of our own has one.
//! - `listen`: Vapi tells of the call, the server dials us and hears both parties. A route of provider "vapi-listen".
//! - `transport`: a client brings the caller, the server dials us for the assistant. A route of provider "vapi-transport".
//!
//! Where the server dials us we are Vapi, with a certificate that the server must have been told to believe.

mod listen;
mod switchboard;
mod transcriber;
mod transport;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use callseal::clock;
use callseal::domain::playback::wav::ulaw_to_pcm16;
use callseal::domain::sign::decode_base64;
use callseal::simulate::{CHUNK_MS, CallError, Endpoint, LagHistogram, Received, TlsClient, Track};
use clap::{Args, ValueEnum};
use futures_util::FutureExt;

use crate::course::{Course, Planned, Tracks, Voices, Wanted};
use crate::place::{Open, Wire};
use crate::process::check_open_files;
use crate::recordings::{Compared, Encoding, Placed, Said};
use crate::sampler::Tally;
use crate::scenario::{Load, compared_figures, figures};
use crate::sheet::Sheet;
use crate::traffic::{self, CallFailed, Ran, Went};

use switchboard::Switchboard;
use transport::Lines;

const RATE: u32 = 16_000;
const CHANNELS: u8 = 2;
/// The close code of a call that is over.
const NORMAL: u16 = 1000;
/// Tickets are for calls that begin within so long; the longest that a server takes.
const TICKET_TTL_SECS: u64 = 3_600;
/// Calls at the same time where the server dials: from its one address there are 28,000 ports to ours.
const MAX_DIALLED: u32 = 20_000;
/// How long the server may take for what it does by itself: to dial, to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// In which way audio comes from Vapi.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Vapi dials the server and sends both parties, as to a custom transcriber
    Transcriber,
    /// A client of the tenant's dials the server, which dials Vapi and passes both voices on
    Transport,
    /// The server is told of a call and dials Vapi to hear it
    Listen,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Transcriber => "transcriber",
            Self::Transport => "transport",
            Self::Listen => "listen",
        }
    }

    /// Messages that a call sends in a second: one for both parties every 20 ms, or one for each.
    fn messages_per_sec(self) -> f64 {
        match self {
            Self::Transcriber | Self::Listen => 50.0,
            Self::Transport => 100.0,
        }
    }

    /// Connections of a call to this process, and from it.
    fn sockets(self) -> u32 {
        match self {
            Self::Transcriber | Self::Listen => 1,
            Self::Transport => 2,
        }
    }

    /// Whether the server dials us.
    fn is_dialled(self) -> bool {
        matches!(self, Self::Transport | Self::Listen)
    }

    fn has_tickets(self) -> bool {
        matches!(self, Self::Transcriber | Self::Transport)
    }

    fn placed(self) -> Placed {
        match self {
            Self::Transcriber => Placed::Whole,
            Self::Transport => Placed::Queued,
            Self::Listen => Placed::Joined,
        }
    }
}

/// The options of `callseal-load vapi`.
#[derive(Args)]
pub(crate) struct Vapi {
    /// In which way audio comes from Vapi.
    #[arg(long, value_enum, default_value = "transcriber")]
    kind: Kind,
    /// PEM file with a certificate for "localhost", which Vapi has where a running server dials it (--kind transport and
    /// listen). The server needs it, or what it comes from, as vapi.ca_file, with vapi.allow_private_hosts = true.
    #[arg(long, value_name = "FILE", requires = "vapi_key", conflicts_with = "dir")]
    vapi_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[arg(long, value_name = "FILE", requires = "vapi_cert", conflicts_with = "dir")]
    vapi_key: Option<PathBuf>,
    #[command(flatten)]
    load: Load,
}

/// What all calls of a run have in common.
struct Run<'a> {
    kind: Kind,
    course: &'a Course,
    voices: &'a Voices,
    open: &'a Open,
    switchboard: Option<&'a Switchboard>,
    /// Paths with a ticket, by the number of the call.
    tickets: HashMap<u32, String>,
    secret: String,
    tally: Arc<Tally>,
    lines: Arc<Lines>,
}

pub(crate) async fn run(options: &Vapi) -> anyhow::Result<bool> {
    let Vapi { kind, load, .. } = options;
    let wanted = load.wanted(50, 30, None)?;
    ensure!(
        wanted.tracks == Tracks::Both,
        "--tracks is for calls of Twilio's; those of Vapi have both parties"
    );
    let course = Course::new(&wanted, None)?;
    options.check(&course)?;
    let switchboard = options.switchboard().await?;
    let certificate = switchboard.as_ref().map(Switchboard::certificate_pem);
    let wire = Wire::Vapi(*kind);
    let mut open = load.place.open_beside(u64::from(course.most), wire, certificate).await?;
    let voices = Voices::new(load.audio(), course.seed);
    let mut run = Run {
        kind: *kind,
        course: &course,
        voices: &voices,
        open: &open,
        switchboard: switchboard.as_ref(),
        tickets: HashMap::new(),
        secret: String::from_utf8(open.target.auth_token.clone()).context("the secret is no text")?,
        tally: Arc::default(),
        lines: Arc::default(),
    };
    run.make_tickets().await.context("tickets")?;
    let (ran, compared) = run.place_and_compare(load).await?;
    let lines = Arc::clone(&run.lines);
    drop(run);
    let mut sheet = options.sheet(&wanted);
    figures(ran, kind.messages_per_sec(), &mut sheet);
    compared_figures(compared.as_ref(), &mut sheet);
    if *kind == Kind::Transport {
        lines.figures(compared.as_ref(), &mut sheet);
    }
    switchboard::note(&mut sheet);
    load.limits().hold(&mut sheet);
    if let Some(own) = open.own.take() {
        own.server.stop()?;
    }
    sheet.finish(&load.output)
}

impl Vapi {
    /// Refuses what cannot be before anything is started.
    fn check(&self, course: &Course) -> anyhow::Result<()> {
        let (kind, place, secs) = (self.kind, &self.load.place, course.secs());
        let name = kind.name();
        ensure!(
            !kind.has_tickets() || secs < TICKET_TTL_SECS,
            "{secs} seconds; a run of --kind {name} is shorter than the {TICKET_TTL_SECS} of a ticket"
        );
        ensure!(
            !kind.is_dialled() || course.most <= MAX_DIALLED,
            "--calls: {}; allowed with --kind {name}: {MAX_DIALLED}, since the server dials from one address",
            course.most
        );
        ensure!(
            kind.is_dialled() || self.vapi_cert.is_none(),
            "--vapi-cert: nobody dials Vapi with --kind {name}; allowed: with --kind transport or listen"
        );
        ensure!(
            !kind.is_dialled() || place.is_own() || self.vapi_cert.is_some(),
            "--kind {name}: the server dials Vapi, whose certificate it must know; give --vapi-cert and --vapi-key, or \
             --dir and --callseal instead of --connect"
        );
        ensure!(
            kind != Kind::Transport || place.has_api(),
            "--kind {name}: each call needs a ticket; give --admin and --admin-token-file, of a token with the role ingest"
        );
        check_open_files(course.most.saturating_mul(kind.sockets()))
    }

    async fn switchboard(&self) -> anyhow::Result<Option<Switchboard>> {
        if !self.kind.is_dialled() {
            return Ok(None);
        }
        let (Some(certificate), Some(key)) = (&self.vapi_cert, &self.vapi_key) else {
            return Switchboard::start(None).await.map(Some);
        };
        let pem = fs::read_to_string(certificate)
            .with_context(|| format!("--vapi-cert: read {}", certificate.display()))?;
        let key = fs::read(key).with_context(|| format!("--vapi-key: read {}", key.display()))?;
        let started = Switchboard::start(Some((&pem, &key))).await;
        started.context("--vapi-cert and --vapi-key").map(Some)
    }

    fn sheet(&self, wanted: &Wanted) -> Sheet {
        let mut sheet = Sheet::new("vapi", wanted.seed);
        self.load.describe(wanted, &mut sheet);
        sheet.set("kind", &self.kind.name());
        sheet
    }
}

impl Run<'_> {
    /// Makes a ticket for each call, for Vapi does not say which call it is.
    async fn make_tickets(&mut self) -> anyhow::Result<()> {
        let Some(api) = self.open.api.as_ref().filter(|_| self.kind.has_tickets()) else { return Ok(()) };
        let path = &self.open.target.path;
        let route = path.rsplit('/').next().unwrap_or_default();
        for call in &self.course.calls {
            let name = self.name(*call);
            let line = self.switchboard.map(|switchboard| switchboard.url(&name, self.kind));
            let ticket = api.ticket(route, &name, TICKET_TTL_SECS, line.as_deref()).await?;
            self.tickets.insert(call.index, format!("{path}/{ticket}"));
        }
        Ok(())
    }

    async fn place_and_compare(&self, load: &Load) -> anyhow::Result<(Ran, Option<Compared>)> {
        let bar = traffic::progress_bar(self.course.secs(), !load.output.json);
        let place = |call| Box::pin(self.place(call));
        let ran = traffic::run(self.course, self.open.watched, &self.tally, &bar, place).await?;
        let compared = match &self.open.api {
            Some(api) => {
                let said = ran.outcome.well.iter().map(|call| self.said(*call));
                Some(api.compare(said, load.patience(), &bar).await)
            }
            None => None,
        };
        bar.finish_and_clear();
        Ok((ran, compared))
    }

    /// Places one call and stays to its end.
    fn place(&self, call: Planned) -> impl Future<Output = Result<Went, CallFailed>> + Send + use<> {
        let target = &self.open.target;
        let mut endpoint = target.endpoint.clone();
        if let Some(address) = self.course.address(call, endpoint.address().ip()) {
            endpoint = endpoint.from_address(address);
        }
        let name = self.name(call);
        let line = self.switchboard.map(|switchboard| switchboard.line(&name, self.kind));
        let dialled = Dialled {
            name,
            endpoint,
            target: self.tickets.get(&call.index).unwrap_or(&target.path).clone(),
            secret: self.secret.clone(),
            tracks: self.course.voices(call, self.voices),
            tls: target.tls.clone(),
            tally: Arc::clone(&self.tally),
        };
        let (kind, lines) = (self.kind, Arc::clone(&self.lines));
        async move {
            match (kind, line) {
                (Kind::Transcriber, _) | (_, None) => transcriber::place(dialled).await,
                (Kind::Listen, Some(line)) => listen::place(dialled, line).await,
                (Kind::Transport, Some(line)) => transport::place(dialled, line, &lines).await,
            }
        }
    }

    fn said(&self, call: Planned) -> Said {
        Said {
            call: self.name(call),
            tracks: self.course.voices(call, self.voices).map(|track| pcm(&track.audio())),
            encoding: Encoding::Pcm16,
            placed: self.kind.placed(),
        }
    }

    /// Names a call by the seed and its number, in the form of Vapi's ids.
    fn name(&self, call: Planned) -> String {
        call_id(self.course.seed, self.kind, call.index)
    }
}

/// One way has its calls, the others have others: a server may have recordings of the same seed.
fn call_id(seed: u64, kind: Kind, index: u32) -> String {
    let (high, middle, low) = (seed >> 32, seed >> 16 & 0xffff, seed & 0xffff);
    format!("{high:08x}-{middle:04x}-{low:04x}-{:04x}-{index:012x}", kind as u8)
}

/// Makes 16-bit samples at twice the rate: every one twice.
fn pcm(ulaw: &[u8]) -> Vec<u8> {
    ulaw.iter().flat_map(|code| [ulaw_to_pcm16(*code).to_le_bytes(); 2].concat()).collect()
}

/// Returns the samples of 20 ms that are given in base64; none where there are none.
fn samples(payload: Option<&str>) -> Vec<u8> {
    pcm(&decode_base64(payload.unwrap_or_default().as_bytes()).unwrap_or_default())
}

/// Takes 20 ms of both parties, in base64, as one message: the caller's sample first.
fn interleaved(caller: Option<&str>, assistant: Option<&str>) -> Vec<u8> {
    let [caller, assistant] = [caller, assistant].map(samples);
    let pairs = caller.chunks_exact(2).zip(assistant.chunks_exact(2));
    pairs.flat_map(|(caller, assistant)| [caller, assistant].concat()).collect()
}

/// When message `number` is due.
fn due(began: std::time::Instant, number: usize) -> std::time::Instant {
    began + Duration::from_millis(CHUNK_MS) * u32::try_from(number).unwrap_or(u32::MAX)
}

/// One call as Vapi, or a client, places it.
struct Dialled {
    name: String,
    endpoint: Endpoint,
    target: String,
    secret: String,
    tracks: [Track; 2],
    tls: TlsClient,
    tally: Arc<Tally>,
}

/// A websocket with the server at its other end.
trait Socket: Send {
    fn say(&mut self, message: Vec<u8>) -> impl Future<Output = Result<(), CallError>> + Send;
    fn hear(&mut self) -> impl Future<Output = Result<Received, CallError>> + Send;
}

impl Dialled {
    /// Counts a call whose socket is there until `talking` is over.
    async fn while_open<T>(&self, talking: impl Future<Output = T>) -> T {
        self.tally.open.fetch_add(1, Ordering::Relaxed);
        let talked = talking.await;
        self.tally.open.fetch_sub(1, Ordering::Relaxed);
        talked
    }

    /// Says what both parties say, in real time; answers how late it was.
    async fn talk(&self, socket: &mut impl Socket) -> Result<LagHistogram, CallError> {
        let began = clock::monotonic();
        let mut lags = LagHistogram::default();
        let [caller, assistant] = &self.tracks;
        for number in 0..caller.chunks() {
            let due = due(began, number);
            tokio::time::sleep_until(due.into()).await;
            socket.say(interleaved(caller.base64(number), assistant.base64(number))).await?;
            let lag = clock::since(due);
            lags.record(lag);
            self.tally.sent(1, lag);
            // What comes back is read and thrown away.
            while let Some(received) = socket.hear().now_or_never() {
                if let Received::Closed { code, reason } = received? {
                    return Err(CallError::Closed { code, reason });
                }
            }
        }
        Ok(lags)
    }
}

#[cfg(test)]
mod tests {
    use callseal::domain::provider::vapi_webhook::CallId;

    use super::*;

    #[test]
    fn samples_have_twice_the_rate() {
        assert_eq!(pcm(&[0xff, 0x00]).len(), 8);
        let [first, second] = [0xff, 0x00].map(|code| ulaw_to_pcm16(code).to_le_bytes());
        assert_eq!(pcm(&[0xff, 0x00]), [first, first, second, second].concat());
        // "/wA=" is ff 00, "AP8=" is 00 ff.
        let message = interleaved(Some("/wA="), Some("AP8="));
        assert_eq!(message, [first, second, first, second, second, first, second, first].concat());
    }

    #[test]
    fn ids_are_vapis_and_all_different() {
        let seed = 0x0123_4567_89ab_cdef;
        let id = call_id(seed, Kind::Listen, 17);
        assert_eq!(id, "01234567-89ab-cdef-0002-000000000011");
        assert!(id.parse::<CallId>().is_ok());
        for other in [
            call_id(seed, Kind::Transport, 17),
            call_id(seed, Kind::Listen, 18),
            call_id(seed + 1, Kind::Listen, 17),
        ] {
            assert!(other.parse::<CallId>().is_ok() && other != id, "{other}");
        }
    }
}
