//! `callseal-load vapi`: calls whose audio Vapi sends to a custom transcriber, 16-bit samples at 16,000 Hz, both
//! parties in one stream, 20 ms a message.
//!
//! Each call has a ticket, for Vapi does not say which call it is. The server needs a route of provider
//! "vapi-transcriber"; with `record_only = true` it needs no transcriber behind it. A server of our own has one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use callseal::clock;
use callseal::domain::playback::wav::ulaw_to_pcm16;
use callseal::domain::sign::decode_base64;
use callseal::simulate::{
    CHUNK_MS, CallError, Endpoint, LagHistogram, Received, TlsClient, Track, TranscriberCall,
};
use clap::Args;
use futures_util::FutureExt;

use crate::course::{Course, Planned, Voices};
use crate::place::Wire;
use crate::process::check_open_files;
use crate::recordings::{Api, Encoding, Said};
use crate::sampler::Tally;
use crate::scenario::{Load, compared_figures, figures};
use crate::sheet::Sheet;
use crate::traffic::{self, CallFailed, Went};

/// Messages that a call sends in a second: one for both parties every 20 ms.
const PER_SEC: f64 = 50.0;
const RATE: u32 = 16_000;
const CHANNELS: u8 = 2;
/// The close code of a call that is over.
const NORMAL: u16 = 1000;
/// Tickets are for calls that begin within so long; the longest that a server takes.
const TICKET_TTL_SECS: u64 = 3_600;

/// The options of `callseal-load vapi`.
#[derive(Args)]
pub(crate) struct Vapi {
    #[command(flatten)]
    load: Load,
}

pub(crate) async fn run(Vapi { load }: &Vapi) -> anyhow::Result<bool> {
    let wanted = load.wanted(50, 30, None)?;
    let course = Course::new(&wanted, None)?;
    let secs = course.secs();
    ensure!(
        secs < TICKET_TTL_SECS,
        "{secs} seconds; a run of vapi is shorter than the {TICKET_TTL_SECS} of a ticket"
    );
    check_open_files(course.most)?;
    let mut open = load.place.open(u64::from(course.most), Wire::Vapi).await?;
    let mut sheet = Sheet::new("vapi", wanted.seed);
    load.describe(&wanted, &mut sheet);
    let voices = Voices::new(load.audio(), course.seed);
    let bar = traffic::progress_bar(course.secs(), !load.output.json);
    let tickets = match &open.api {
        Some(api) => tickets(api, &course, &open.target.path).await.context("tickets")?,
        None => HashMap::new(),
    };
    let tally: Arc<Tally> = Arc::default();
    let secret = String::from_utf8(open.target.auth_token.clone()).context("the secret is no text")?;
    let place = |call: Planned| {
        let target = tickets.get(&call.index).cloned().unwrap_or_else(|| open.target.path.clone());
        let mut endpoint = open.target.endpoint.clone();
        if let Some(address) = course.address(call, endpoint.address().ip()) {
            endpoint = endpoint.from_address(address);
        }
        let tracks = course.tracks(call, &voices);
        let dialled = Dialled { endpoint, target, secret: secret.clone(), tracks };
        dialled.place(open.target.tls.clone(), Arc::clone(&tally))
    };
    let ran = traffic::run(&course, open.watched, &tally, &bar, place).await?;
    let compared = match &open.api {
        Some(api) => {
            let said = ran.outcome.well.iter().map(|call| Said {
                call: name(&course, *call),
                tracks: course.tracks(*call, &voices).map(|track| pcm(&track.audio())),
                encoding: Encoding::Pcm16,
            });
            Some(api.compare(said, load.patience(), &bar).await)
        }
        None => None,
    };
    bar.finish_and_clear();
    figures(ran, PER_SEC, &mut sheet);
    compared_figures(compared.as_ref(), &mut sheet);
    load.limits().hold(&mut sheet);
    if let Some(own) = open.own.take() {
        own.server.stop()?;
    }
    sheet.finish(&load.output)
}

/// Names a call by its seed and number.
fn name(course: &Course, call: Planned) -> String {
    format!("load-{:016x}-{}", course.seed, call.index)
}

/// Makes a ticket for each call; answers the paths that lead to them.
async fn tickets(api: &Api, course: &Course, path: &str) -> anyhow::Result<HashMap<u32, String>> {
    let route = path.rsplit('/').next().unwrap_or_default();
    let mut tickets = HashMap::new();
    for call in &course.calls {
        let ticket = api.ticket(route, &name(course, *call), TICKET_TTL_SECS).await?;
        tickets.insert(call.index, format!("{path}/{ticket}"));
    }
    Ok(tickets)
}

/// Makes 16-bit samples at twice the rate: every one twice.
fn pcm(ulaw: &[u8]) -> Vec<u8> {
    ulaw.iter().flat_map(|code| [ulaw_to_pcm16(*code).to_le_bytes(); 2].concat()).collect()
}

/// Takes 20 ms of both parties, in base64, as one message: the caller's sample first.
fn interleaved(caller: Option<&str>, assistant: Option<&str>) -> Vec<u8> {
    let [caller, assistant] = [caller, assistant]
        .map(|payload| pcm(&decode_base64(payload.unwrap_or_default().as_bytes()).unwrap_or_default()));
    let pairs = caller.chunks_exact(2).zip(assistant.chunks_exact(2));
    pairs.flat_map(|(caller, assistant)| [caller, assistant].concat()).collect()
}

/// One call as Vapi places it.
struct Dialled {
    endpoint: Endpoint,
    target: String,
    secret: String,
    tracks: [Track; 2],
}

impl Dialled {
    async fn place(self, tls: TlsClient, tally: Arc<Tally>) -> Result<Went, CallFailed> {
        let began = clock::monotonic();
        let headers = [("x-vapi-secret", self.secret.as_str())];
        let connected = TranscriberCall::connect(&self.endpoint, &self.target, &headers, &tls).await;
        let handshake = clock::since(began);
        tally.tried.fetch_add(1, Ordering::Relaxed);
        let mut call = connected.map_err(CallFailed::Connect)?;
        tally.open.fetch_add(1, Ordering::Relaxed);
        let sent = self.talk(&mut call, &tally).await;
        tally.open.fetch_sub(1, Ordering::Relaxed);
        let send_lag = sent.map_err(CallFailed::Later)?;
        call.close(NORMAL).await;
        Ok(Went { handshake, send_lag, ..Went::default() })
    }

    async fn talk(&self, call: &mut TranscriberCall, tally: &Tally) -> Result<LagHistogram, CallError> {
        call.send_text(TranscriberCall::start(RATE, CHANNELS)).await?;
        let began = clock::monotonic();
        let mut lags = LagHistogram::default();
        let [caller, assistant] = &self.tracks;
        for number in 0..caller.chunks() {
            let due = began + Duration::from_millis(CHUNK_MS) * u32::try_from(number).unwrap_or(u32::MAX);
            tokio::time::sleep_until(due.into()).await;
            let message = interleaved(caller.base64(number), assistant.base64(number));
            call.send_binary(message).await?;
            let lag = clock::since(due);
            lags.record(lag);
            tally.sent(1, lag);
            // A transcriber's words are read and thrown away.
            while let Some(received) = call.recv().now_or_never() {
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
}
