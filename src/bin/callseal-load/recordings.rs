//! Recordings as their owner sees them: found and described by the admin API, played through signed URLs, and compared
//! sample by sample with what was sent.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use callseal::simulate::{Endpoint, HttpsClient, Response, TlsClient};
use futures_util::{StreamExt, stream};
use hyper::Method;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::ledger::Ledger;

/// Pause between two looks at a recording that is not finished, or after a server has said that it is asked too often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Recordings compared at the same time; an hour of one is about 60 MB in memory.
const AT_ONCE: usize = 4;
/// Who listens, in the audit log.
const LISTENER: &str = "callseal-load";

/// What a call said, to be compared.
pub(crate) struct Said {
    /// The provider's id of the call.
    pub(crate) call: String,
    /// Both tracks, as they are played in [`Said::encoding`].
    pub(crate) tracks: [Vec<u8>; 2],
    pub(crate) encoding: Encoding,
    pub(crate) placed: Placed,
}

/// Where a recording has what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// From the beginning of the call on.
    Whole,
    /// From when it was first heard. What the recording says is missing before that was never said here.
    Joined,
    /// The second track when it was played to the caller: one sample after the other, with pauses anywhere.
    Queued,
}

/// How audio is sent and played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// μ-law at 8,000 Hz.
    Ulaw,
    /// 16-bit samples at 16,000 Hz.
    Pcm16,
}

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Self::Ulaw => "ulaw",
            Self::Pcm16 => "pcm",
        }
    }

    /// A sample of silence.
    fn silence(self) -> &'static [u8] {
        match self {
            Self::Ulaw => &[0xff],
            Self::Pcm16 => &[0, 0],
        }
    }

    /// Bytes of a sample, and samples of a second.
    pub(crate) fn sizes(self) -> (usize, u32) {
        match self {
            Self::Ulaw => (1, 8_000),
            Self::Pcm16 => (2, 16_000),
        }
    }
}

/// All comparisons together.
#[derive(Default)]
pub(crate) struct Compared {
    pub(crate) recordings: u32,
    /// In milliseconds of both tracks.
    pub(crate) sent_ms: f64,
    pub(crate) playable_ms: f64,
    pub(crate) declared_ms: f64,
    pub(crate) silent_ms: f64,
    /// Pauses between what was queued.
    pub(crate) paused_ms: f64,
    /// What could not be compared, and why.
    pub(crate) failures: Vec<String>,
}

/// A server's admin API and its public listener.
#[derive(Clone)]
pub(crate) struct Api {
    admin: HttpsClient,
    public: HttpsClient,
    tenant: String,
    bearer: String,
}

impl Api {
    pub(crate) fn new(
        tls: &TlsClient,
        public: Endpoint,
        admin: SocketAddr,
        public_url: &str,
        tenant: &str,
        token: &str,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            admin: HttpsClient::new(tls, Endpoint::new(admin, public_url).context("--public-url")?),
            public: HttpsClient::new(tls, public),
            tenant: tenant.to_owned(),
            bearer: format!("Bearer {token}"),
        })
    }

    /// Compares the recordings of all calls. Waits for each as long as `patience`.
    pub(crate) async fn compare(
        &self,
        calls: impl ExactSizeIterator<Item = Said>,
        patience: Duration,
        bar: &ProgressBar,
    ) -> Compared {
        bar.set_length(calls.len() as u64);
        bar.set_position(0);
        bar.set_message("recordings are compared");
        let mut comparisons = stream::iter(calls)
            .map(|said| async move {
                let waited = tokio::time::timeout(patience, self.hear(&said)).await;
                let heard = waited.unwrap_or_else(|_| bail!("no finished recording within {patience:?}"));
                heard.with_context(|| format!("call {}", said.call))
            })
            .buffer_unordered(AT_ONCE);
        let mut all = Compared::default();
        while let Some(heard) = comparisons.next().await {
            bar.inc(1);
            match heard {
                Ok(heard) => all.add(&heard),
                Err(error) => all.failures.push(format!("{error:#}")),
            }
        }
        all
    }

    /// Makes a ticket for one call, which goes on to `line` with 16-bit samples where one is given.
    pub(crate) async fn ticket(
        &self,
        route: &str,
        call: &str,
        ttl_secs: u64,
        line: Option<&str>,
    ) -> anyhow::Result<String> {
        let target = format!("/v1/tenants/{}/tickets", self.tenant);
        let mut wanted = json!({"route": route, "call": call, "ttl_secs": ttl_secs});
        if let (Some(line), Value::Object(wanted)) = (line, &mut wanted) {
            let (_, rate) = Encoding::Pcm16.sizes();
            wanted.insert("vapi_url".to_owned(), line.into());
            wanted.insert("vapi_audio".to_owned(), format!("pcm_s16le:{rate}").into());
        }
        let made = self.ask(Method::POST, &target, &wanted.to_string()).await?;
        Ok(made.get("ticket").and_then(Value::as_str).context("an answer without a ticket")?.to_owned())
    }

    /// Waits until a call has a finished recording, plays the whole of it, and compares.
    ///
    /// # Errors
    /// There is no recording, or it cannot be played.
    pub(crate) async fn hear(&self, said: &Said) -> anyhow::Result<Heard> {
        let (recording, gaps) = self.find(&said.call).await?;
        let path = self.link(&recording, said.encoding, None).await?;
        let answer = self.public.get(&path, &[]).await.context("play")?;
        ensure!(answer.status == 200, "play: status {}", answer.status);
        let (ledger, pauses) = compare(said, &split(&answer.body, said.encoding)?, &gaps);
        Ok(Heard { recording, encoding: said.encoding, wav: answer.body, ledger, pauses })
    }

    /// Makes a signed link to a recording; answers its path and query. It lives so long, or as the tenant has it.
    pub(crate) async fn link(
        &self,
        recording: &str,
        encoding: Encoding,
        ttl_secs: Option<u64>,
    ) -> anyhow::Result<String> {
        let target = format!("/v1/tenants/{}/recordings/{recording}/grants", self.tenant);
        let mut wanted = json!({"sub": LISTENER, "format": encoding.name()});
        if let (Some(ttl_secs), Value::Object(wanted)) = (ttl_secs, &mut wanted) {
            wanted.insert("ttl_secs".to_owned(), ttl_secs.into());
        }
        let made = self.ask(Method::POST, &target, &wanted.to_string()).await?;
        let url = made.get("url").and_then(Value::as_str).context("the grant has no url")?;
        let path = url.find("/play/").and_then(|at| url.get(at..));
        Ok(path.context("the grant's url is none of /play/")?.to_owned())
    }

    /// Returns what plays: the public listener's client.
    pub(crate) fn player(&self) -> &HttpsClient {
        &self.public
    }

    /// Waits until a call has a finished recording; answers its id and its gaps.
    async fn find(&self, call: &str) -> anyhow::Result<(String, Vec<Gap>)> {
        let list = format!("/v1/tenants/{}/recordings?call={call}", self.tenant);
        loop {
            let page = self.ask(Method::GET, &list, "").await?;
            let found = page.get("recordings").and_then(Value::as_array).context("a list of recordings")?;
            ensure!(found.len() <= 1, "{} recordings", found.len());
            let recording = found.first().and_then(|found| found.get("recording")?.as_str());
            if let Some(recording) = recording {
                let show = format!("/v1/tenants/{}/recordings/{recording}", self.tenant);
                let shown = self.ask(Method::GET, &show, "").await?;
                if let Some(gaps) = shown.pointer("/ended/gaps").and_then(Value::as_array) {
                    let gaps = gaps.iter().map(Gap::read).collect::<Option<_>>().context("gaps")?;
                    return Ok((recording.to_owned(), gaps));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn ask(&self, method: Method, target: &str, body: &str) -> anyhow::Result<Value> {
        loop {
            let mut headers = vec![("authorization", self.bearer.as_str())];
            if !body.is_empty() {
                headers.push(("content-type", "application/json"));
            }
            let asked = self.admin.request(method.clone(), target, &headers, body.to_owned().into()).await;
            let Response { status, body: answer, .. } = asked.context("the admin API")?;
            match status.as_u16() {
                200 | 201 => return serde_json::from_slice(&answer).context("the admin API's answer"),
                // Asked too often, or the store does not answer at the moment.
                429 | 503 => tokio::time::sleep(LOOK_EVERY).await,
                status => {
                    bail!("the admin API answered {status}: {}", String::from_utf8_lossy(&answer))
                }
            }
        }
    }
}

/// A recording that was played as a whole.
pub(crate) struct Heard {
    pub(crate) recording: String,
    pub(crate) wav: Bytes,
    encoding: Encoding,
    ledger: Ledger,
    /// In samples.
    pauses: u64,
}

impl Compared {
    pub(crate) fn add(&mut self, Heard { ledger, pauses, encoding, .. }: &Heard) {
        let (_, rate) = encoding.sizes();
        let ms = |samples: u64| samples as f64 * 1000.0 / f64::from(rate);
        self.recordings += 1;
        self.sent_ms += ms(ledger.sent);
        self.playable_ms += ms(ledger.playable);
        self.declared_ms += ms(ledger.declared);
        self.silent_ms += ms(ledger.silent);
        self.paused_ms += ms(*pauses);
    }
}

/// A stretch that a recording says is lost.
#[derive(Debug, Clone, Copy)]
struct Gap {
    track: u64,
    /// From the first sample that is played; below 0 for what is missing before it.
    at_secs: f64,
    secs: f64,
    is_lost: bool,
}

impl Gap {
    fn read(gap: &Value) -> Option<Self> {
        Some(Self {
            track: gap.get("track")?.as_u64()?,
            at_secs: gap.get("at_seconds")?.as_f64()?,
            secs: gap.get("seconds")?.as_f64()?,
            is_lost: gap.get("lost")?.as_bool()?,
        })
    }

    /// Returns how many samples before the first one that is played it begins.
    #[expect(clippy::cast_possible_truncation, reason = "0 or more and small")]
    fn before(&self, rate: u32) -> usize {
        (-self.at_secs * f64::from(rate)).round().max(0.0) as usize
    }

    /// Whether it ends where the first sample is played.
    fn is_over_before_playing(&self, rate: u32) -> bool {
        (self.at_secs + self.secs) * f64::from(rate) < 0.5
    }

    /// Returns the samples of a track whose first played one has the number `first`.
    #[expect(clippy::cast_possible_truncation, reason = "both are 0 or more and small")]
    fn samples(&self, rate: u32, first: usize) -> Range<usize> {
        let sample = |secs: f64| (secs * f64::from(rate)).round().max(0.0) as usize;
        let at = (first + sample(self.at_secs)).saturating_sub(self.before(rate));
        at..at + sample(self.secs)
    }
}

/// Compares both tracks; answers pauses between what was queued as well. A recording begins with its first sample that is
/// there: what is lost before it on both tracks is not played.
fn compare(said: &Said, played: &[Vec<u8>; 2], gaps: &[Gap]) -> (Ledger, u64) {
    let (size, rate) = said.encoding.sizes();
    let counts = |gap: &&Gap| said.placed != Placed::Joined || !gap.is_over_before_playing(rate);
    let gaps: Vec<_> = gaps.iter().filter(counts).collect();
    let leading = gaps.iter().map(|gap| gap.before(rate)).max().unwrap_or(0);
    let of_track = |number: usize| {
        let own = gaps.iter().filter(move |gap| gap.is_lost && gap.track == number as u64);
        own.map(|gap| gap.samples(rate, leading)).collect::<Vec<_>>()
    };
    let lost = [of_track(0), of_track(1)];
    let (mut ledger, mut pauses) = (Ledger::default(), 0);
    for (number, ((sent, played), lost)) in said.tracks.iter().zip(played).zip(&lost).enumerate() {
        let mut placed = vec![0; leading * size];
        placed.extend_from_slice(played);
        if said.placed == Placed::Queued && number == 1 {
            let (queued, paused) = Ledger::of_queued(sent, &placed, lost, said.encoding.silence());
            ledger.add(queued);
            pauses += paused;
        } else {
            ledger.add(Ledger::of_samples(sent, &placed, lost, size));
        }
    }
    (ledger, pauses)
}

/// Takes a file of two channels apart.
fn split(wav: &[u8], encoding: Encoding) -> anyhow::Result<[Vec<u8>; 2]> {
    let (size, rate) = encoding.sizes();
    let (format, data) = chunks(wav).context("what was played is no WAV file")?;
    let field = |at: usize, length: usize| {
        let bytes = format.get(at..at + length).unwrap_or_default();
        bytes.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte))
    };
    let tag = match encoding {
        Encoding::Ulaw => 7,
        Encoding::Pcm16 => 1,
    };
    let found = (field(0, 2), field(2, 2), field(4, 4));
    ensure!(
        found == (tag, 2, rate),
        "played as (format, channels, rate) {found:?}, not {:?}",
        (tag, 2, rate)
    );
    let mut tracks = [Vec::new(), Vec::new()];
    for frame in data.chunks_exact(2 * size) {
        let (caller, agent) = frame.split_at(size);
        let [first, second] = &mut tracks;
        first.extend_from_slice(caller);
        second.extend_from_slice(agent);
    }
    Ok(tracks)
}

/// Finds the chunks `fmt ` and `data`.
fn chunks(wav: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = wav.strip_prefix(b"RIFF")?.get(4..)?.strip_prefix(b"WAVE")?;
    let mut format = None;
    loop {
        let (name, after) = rest.split_at_checked(4)?;
        let (length, after) = after.split_at_checked(4)?;
        let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
        let body = after.get(..length)?;
        match name {
            b"fmt " => format = Some(body),
            b"data" => return Some((format?, body)),
            _ => {}
        }
        rest = after.get(length + length % 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wav(tag: u8, data: &[u8]) -> Vec<u8> {
        let mut wav = b"RIFF\0\0\0\0WAVEfmt \x12\0\0\0".to_vec();
        wav.extend([tag, 0, 2, 0, 0x40, 0x1f, 0, 0]);
        wav.extend([0; 10]);
        wav.extend(b"fact\x03\0\0\0abc\0data");
        wav.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        wav.extend(data);
        wav
    }

    #[test]
    fn files_are_taken_apart() {
        let tracks = split(&wav(7, &[1, 2, 3, 4]), Encoding::Ulaw).unwrap();
        assert_eq!(tracks, [vec![1, 3], vec![2, 4]]);
        assert!(split(&wav(1, &[1, 2]), Encoding::Ulaw).is_err());
        assert!(split(&wav(7, &[1, 2]), Encoding::Pcm16).is_err());
        let whole = wav(7, &[1, 2, 3, 4]);
        for end in 0..whole.len() {
            assert!(split(&whole[..end], Encoding::Ulaw).is_err(), "cut at {end}");
        }
    }

    fn said(tracks: [&[u8]; 2]) -> Said {
        Said {
            call: String::new(),
            tracks: tracks.map(<[u8]>::to_vec),
            encoding: Encoding::Ulaw,
            placed: Placed::Whole,
        }
    }

    fn gap(track: u64, samples: Range<i32>, is_lost: bool) -> Gap {
        let secs = |samples: i32| f64::from(samples) / 8_000.0;
        Gap { track, at_secs: secs(samples.start), secs: secs(samples.end - samples.start), is_lost }
    }

    #[test]
    fn what_is_lost_must_be_declared_lost() {
        let said = said([&[1, 2, 3, 4], &[5, 6, 7, 8]]);
        let compare = |said: &Said, played: &[Vec<u8>; 2], gaps: &[Gap]| compare(said, played, gaps).0;
        let whole = compare(&said, &said.tracks, &[]);
        assert_eq!((whole.sent, whole.playable), (8, 8));
        let hole = [vec![1, 255, 3, 4], vec![5, 6, 7, 8]];
        assert_eq!(compare(&said, &hole, &[]).silent, 1);
        let declared = compare(&said, &hole, &[gap(0, 1..2, true)]);
        assert_eq!((declared.declared, declared.silent, declared.playable), (1, 0, 7));
        // What the provider did not send is no loss; here it did.
        assert_eq!(compare(&said, &hole, &[gap(0, 1..2, false)]).silent, 1);
        assert_eq!(compare(&said, &hole, &[gap(1, 1..2, true)]).silent, 1);
    }

    #[test]
    fn a_recording_without_its_beginning_is_placed_where_it_belongs() {
        let said = said([&[1, 2, 3, 4], &[5, 6, 7, 8]]);
        let late = [vec![255, 4], vec![7, 8]];
        let (found, _) = compare(&said, &late, &[gap(0, -2..1, true), gap(1, -2..0, true)]);
        assert_eq!((found.declared, found.playable, found.silent), (5, 3, 0));
    }
    #[test]
    fn what_was_said_before_a_call_was_heard_does_not_count() {
        let joined = Said { placed: Placed::Joined, ..said([&[1, 2, 3, 4], &[5, 6, 7, 8]]) };
        let before = [gap(0, -9..0, true), gap(1, -9..0, true)];
        assert_eq!(compare(&joined, &joined.tracks, &before).0.playable, 8);
        let hole = [vec![1, 255, 3, 4], vec![5, 6, 7, 8]];
        assert_eq!(compare(&joined, &hole, &before).0.silent, 1);
        let declared = [before[0], before[1], gap(0, 1..2, true)];
        assert_eq!(compare(&joined, &hole, &declared).0.declared, 1);
        // Without its beginning it is not what was said.
        assert!(compare(&joined, &[vec![2, 3, 4], vec![6, 7, 8]], &before).0.silent > 0);
    }

    #[test]
    fn only_the_second_track_may_have_pauses_and_only_where_it_was_queued() {
        let queued = Said { placed: Placed::Queued, ..said([&[1, 2, 3], &[5, 6, 7]]) };
        let late = [vec![1, 2, 3, 255, 255], vec![255, 5, 6, 255, 7]];
        let (found, pauses) = compare(&queued, &late, &[]);
        assert_eq!((found.playable, found.silent, pauses), (6, 0, 1));
        let [caller, agent] = late;
        assert!(compare(&queued, &[agent.clone(), caller.clone()], &[]).0.silent > 0);
        let whole = Said { placed: Placed::Whole, ..queued };
        assert!(compare(&whole, &[caller, agent], &[]).0.silent > 0);
    }
}
