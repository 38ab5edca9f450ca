//! A call as Twilio sends it, and a recording of it without sockets and disks: what the hot path is measured with.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use callseal::clock;
use callseal::domain::audio::{AudioFormat, Speakers};
use callseal::domain::cmr::{Dek, Expected};
use callseal::domain::ids::{RecordingId, TenantId};
use callseal::domain::provider::Event;
use callseal::domain::provider::twilio::TwilioDecoder;
use callseal::domain::recording::{EndCause, RecordingMetadata};
use callseal::domain::session::{
    AgentAudio, CallSession, DtmfPolicy, Entropy, EntropyFailed, Output, SegmentLimits, SessionSetup,
};
use callseal::domain::time::UnixMillis;
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{CHUNK_BYTES, CallIds, Direction, Track, TwilioMessages};

/// The account that calls are of.
pub(super) const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
const LIMITS: SegmentLimits = SegmentLimits { max_age: Duration::from_secs(5), max_bytes: 256 * 1024 };

/// A whole call as Twilio sends it, without its greeting and `stop`.
pub(super) struct Call {
    start: String,
    pub(super) media: Vec<String>,
}

impl Call {
    pub(super) fn new(ids: CallIds) -> Self {
        let mut messages = TwilioMessages::new(ids);
        let directions = [Direction::Inbound, Direction::Outbound];
        let start = messages.start(&directions, &BTreeMap::new());
        let tracks = [Track::whole(DEMO_CALLER), Track::whole(DEMO_AGENT)];
        let mut media = Vec::new();
        for chunk in 0..DEMO_CALLER.len() / CHUNK_BYTES {
            for (direction, track) in directions.into_iter().zip(&tracks) {
                let payload = track.base64(chunk).expect("both tracks are of one length");
                media.push(messages.media(direction, 102 + chunk as u64 * 20, payload));
            }
        }
        Self { start, media }
    }
}

struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        getrandom::fill(out).map_err(|_| EntropyFailed)
    }
}

/// One stream being recorded, without sockets and disks.
pub(super) struct Recording {
    decoder: TwilioDecoder,
    pub(super) session: CallSession,
    now: Instant,
}

impl Recording {
    pub(super) fn start(call: &Call) -> Self {
        let account = ACCOUNT.parse().expect("a valid account");
        let mut decoder = TwilioDecoder::new(vec![account], 0);
        decoder.decode(&call.start).expect("a valid start");
        let now = clock::monotonic();
        let session = CallSession::start(setup(), Box::new(SystemEntropy), now, UnixMillis(0))
            .expect("the system has random bytes");
        Self { decoder, session, now }
    }

    pub(super) fn handle(&mut self, message: &str) {
        self.handle_for(message, |output| drop(black_box(output)));
    }

    pub(super) fn finish(self) {
        self.finish_for(|output| drop(black_box(output)));
    }

    /// Takes a message and hands out what is to be stored.
    pub(super) fn handle_for(&mut self, message: &str, store: impl FnMut(Output)) {
        self.now += Duration::from_millis(10);
        let Ok(Event::Media(media)) = self.decoder.decode(message) else { panic!("a media message") };
        self.session.handle_media(self.now, UnixMillis(0), &media).expect("the input is sound");
        self.take_outputs(store);
    }

    /// Ends the recording and hands out the rest.
    pub(super) fn finish_for(mut self, store: impl FnMut(Output)) {
        self.session.finish(UnixMillis(0), EndCause::Stop).expect("the manifest is sealed");
        self.take_outputs(store);
    }

    fn take_outputs(&mut self, mut store: impl FnMut(Output)) {
        while let Some(output) = self.session.poll_output() {
            store(output);
        }
    }
}

fn setup() -> SessionSetup {
    let dek = Dek::filled_by(|key| getrandom::fill(key)).expect("the system has random bytes");
    let tenant = "acme-dental".parse::<TenantId>().expect("a valid id").tag();
    let recording = RecordingId::new(1_760_000_000_000, &[1; 10]);
    let ids = Expected { tenant, recording, key: dek.key_id(tenant, recording) };
    let metadata = RecordingMetadata {
        v: 1,
        tenant: "acme-dental".to_owned(),
        route: "reception".to_owned(),
        provider: "twilio".to_owned(),
        account: ACCOUNT.to_owned(),
        call: "CA".to_owned(),
        stream: "MZ".to_owned(),
        started_ms: 0,
        parameters: BTreeMap::new(),
        retention_days: 90,
        own_days: false,
        ticket: BTreeMap::new(),
        consent: None,
        format: AudioFormat::TELEPHONE,
    };
    SessionSetup {
        dek,
        ids,
        limits: LIMITS,
        dtmf: DtmfPolicy::Redact,
        agent: AgentAudio::Received,
        speakers: Speakers::CallerAndAgent,
        metadata,
    }
}
