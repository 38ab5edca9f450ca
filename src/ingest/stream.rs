//! What is made of one stream's messages: decoded, and recorded if the route says so. Knows no socket.

mod transcriber;
mod transport;
mod twilio;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use metrics::counter;

use crate::config::{NoKeyPolicy, Record as RecordPolicy, Route, RouteProvider, Tenant};
use crate::domain::audio::{AudioFormat, Speakers};
use crate::domain::ids::TenantId;
use crate::domain::notice::NoticeKind;
use crate::domain::provider::twilio::{AccountSid, CallSid, TwilioDecoder};
use crate::domain::provider::{DropReason, Refusal, StreamStart};
use crate::domain::recording::EndCause;
use crate::domain::session::{AgentAudio, SessionError};
use crate::domain::ticket::Ticket;
use crate::keys::Minted;
use crate::live::{Entry, Present};
use crate::node::Node;
use crate::observe::metrics as names;
use crate::observe::traces::{Span, words};
use crate::recorder::{self, Begin, Recorder};
use crate::relay::{Missed, Traffic};
use crate::tickets::Redeemed;

use super::admission::Admitted;
use super::limits::StreamPermit;
use transcriber::Transcriber;
use transport::Transport;

/// Why a stream must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MustEnd {
    pub(super) cause: EndCause,
    /// Code and reason of our close frame.
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

/// One stream. What no message needs is in boxes, so that what every message needs lies close together.
pub(super) struct StreamInHand {
    node: Arc<Node>,
    tenant: Arc<Tenant>,
    route: Box<Route>,
    permit: StreamPermit,
    ticket: Option<Box<(Ticket, Redeemed)>>,
    /// Until the stream starts; `None` also where the tenant lets calls go on unrecorded.
    key: Option<Box<Minted>>,
    decoder: Decoder,
    recorder: Option<Recorder>,
    /// Where the caller has not agreed yet; the key is kept for when that happens.
    awaiting: Option<Box<Awaiting>>,
    span: Span,
}

/// What a recording will begin with once the caller agrees.
struct Awaiting {
    start: StreamStart,
    audio: Audio,
    present: Present,
}

/// What reads the provider's messages.
enum Decoder {
    Twilio(TwilioDecoder),
    Transcriber(Transcriber),
    Transport(Box<Transport>),
}

/// What is recorded of a stream.
#[derive(Clone, Copy)]
struct Audio {
    /// The provider's name.
    provider: &'static str,
    format: AudioFormat,
    /// Where the agent's audio comes from.
    agent: AgentAudio,
}

impl StreamInHand {
    /// Takes what was admitted, but not its place.
    pub(super) fn new(node: Arc<Node>, admitted: Admitted) -> Self {
        let Admitted { tenant, route, ticket, key, permit, line, span, place: _ } = admitted;
        let max_drops = node.config.ingest.max_dropped_messages;
        let decoder = match (line, route.provider) {
            (Some(line), _) => Decoder::Transport(Box::new(Transport::new(line))),
            (None, RouteProvider::VapiTranscriber) => Decoder::Transcriber(Transcriber::new(max_drops)),
            // Listen routes are dialled by us and have no such stream, and no transport is without a line.
            (None, RouteProvider::Twilio | RouteProvider::VapiListen | RouteProvider::VapiTransport) => {
                Decoder::Twilio(TwilioDecoder::new(tenant.twilio.account_sids.clone(), max_drops))
            }
        };
        Self {
            node,
            tenant,
            route: Box::new(route),
            permit,
            ticket: ticket.map(Box::new),
            key: key.map(Box::new),
            decoder,
            recorder: None,
            awaiting: None,
            span,
        }
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.tenant.id
    }

    /// Returns whose configuration it follows.
    pub(super) fn tenant_in_full(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// Returns Twilio's call and its account, once the stream has started.
    pub(super) fn twilio_call(&self) -> Option<(AccountSid, CallSid)> {
        match &self.decoder {
            Decoder::Twilio(decoder) => decoder.call(),
            Decoder::Transcriber(_) | Decoder::Transport(_) => None,
        }
    }

    pub(super) fn has_started(&self) -> bool {
        match &self.decoder {
            Decoder::Twilio(decoder) => decoder.has_started(),
            Decoder::Transcriber(transcriber) => transcriber.decoder.format().is_some(),
            Decoder::Transport(_) => true,
        }
    }

    /// Whether the provider has said that the stream is over. Streams of Vapi are over when they are closed.
    pub(super) fn has_stopped(&self) -> bool {
        match &self.decoder {
            Decoder::Twilio(decoder) => decoder.has_stopped(),
            Decoder::Transcriber(_) | Decoder::Transport(_) => false,
        }
    }

    /// Reads a little of what the next message needs, so that it is in the processor's cache by then.
    pub(super) fn prefetch(&self) {
        black_box((self.awaiting.is_some(), self.ticket.is_some()));
        if let Decoder::Twilio(decoder) = &self.decoder {
            decoder.prefetch();
        }
        if let Some(recorder) = &self.recorder {
            recorder.prefetch();
        }
    }

    /// Takes a text message of the provider.
    pub(super) fn text(&mut self, now: Instant, text: &str) -> Option<MustEnd> {
        if let Some(end) = self.begin_if_agreed() {
            return Some(end);
        }
        if let Some(end) = self.used_elsewhere() {
            return Some(end);
        }
        match &mut self.decoder {
            Decoder::Twilio(decoder) => {
                let event = decoder.decode(text);
                self.event(now, event)
            }
            Decoder::Transcriber(transcriber) => {
                let text = transcriber.decoder.text(text);
                self.transcriber_text(text)
            }
            Decoder::Transport(_) => self.transport_text(text),
        }
    }

    /// Takes a binary message of the provider.
    pub(super) fn binary(&mut self, now: Instant, bytes: &[u8]) -> Option<MustEnd> {
        if let Some(end) = self.begin_if_agreed() {
            return Some(end);
        }
        match self.decoder {
            Decoder::Twilio(_) => self.dropped(DropReason::Binary),
            Decoder::Transcriber(_) => self.used_elsewhere().or_else(|| self.samples(now, bytes)),
            Decoder::Transport(_) => self.used_elsewhere().or_else(|| self.caller_samples(now, bytes)),
        }
    }

    /// Takes a binary message of the agent; only Vapi has any that are audio.
    pub(super) fn said_samples(&mut self, now: Instant, bytes: &[u8]) {
        match self.decoder {
            Decoder::Transport(_) => self.agent_samples(now, bytes),
            Decoder::Twilio(_) | Decoder::Transcriber(_) => {}
        }
    }

    /// Takes a text message of the agent.
    pub(super) fn said(&mut self, now: Instant, text: &str) {
        match self.decoder {
            Decoder::Twilio(_) => self.agent_said(now, text),
            // What was understood of a call is no business of its recording.
            Decoder::Transcriber(_) => {}
            Decoder::Transport(_) => self.vapi_said(now, text),
        }
    }

    /// Says what is passed on, once the stream has started.
    pub(super) fn traffic(&self) -> Traffic {
        match &self.decoder {
            Decoder::Twilio(_) => Traffic::Texts,
            Decoder::Transcriber(transcriber) => transcriber.traffic(),
            Decoder::Transport(transport) => transport.traffic(),
        }
    }

    /// Notes what was not looked at, because there was no time for it.
    pub(super) fn missed(&mut self, now: Instant, missed: Missed) -> Option<MustEnd> {
        if missed.messages == 0 {
            return None;
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.missed(missed.messages);
        }
        if let Decoder::Transport(_) = self.decoder {
            return self.missed_transport(now, missed);
        }
        if missed.sample_bytes == 0 { None } else { self.missed_samples(now, missed.sample_bytes) }
    }

    /// Hands over what was sealed since `read_at`. To be called after every batch of messages.
    pub(super) fn hand_over(&mut self, read_at: Instant) {
        if let Some(recorder) = &mut self.recorder {
            recorder.hand_over(read_at);
        }
    }

    /// Returns when [`StreamInHand::timeout`] is wanted.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.recorder.as_ref().and_then(Recorder::next_timeout)
    }

    /// Does what is due by now.
    pub(super) fn timeout(&mut self, now: Instant) {
        if let Some(recorder) = &mut self.recorder {
            let outcome = recorder.timeout(now);
            recorder.hand_over(now);
            self.recorded(outcome);
        }
    }

    /// Ends the stream; after the provider's `stop` every end is a good one, and so is its close where it has no `stop`.
    pub(super) fn finish(mut self, cause: EndCause) {
        let is_over = match self.decoder {
            Decoder::Twilio(_) => self.has_stopped(),
            Decoder::Transcriber(_) | Decoder::Transport(_) => cause == EndCause::ClosedEarly,
        };
        let cause = if is_over { EndCause::Stop } else { cause };
        self.span.word(words::END_CAUSE, cause.name());
        if let Some(recorder) = self.recorder.take() {
            recorder.finish(cause);
        }
        let was_awaited = self.awaiting.take().is_some();
        if was_awaited {
            recorder::skipped(&self.node, &self.tenant, &self.route, "no-consent");
        }
        if let Some(key) = self.key.take() {
            if !was_awaited {
                counter!(names::STREAMS_ENDED, "cause" => "never-started").increment(1);
            }
            self.node.keys.give_back(&self.tenant.id, *key);
        }
    }

    fn used_elsewhere(&mut self) -> Option<MustEnd> {
        if !self.ticket.as_deref().is_some_and(|(_, redeemed)| redeemed.was_used_elsewhere()) {
            return None;
        }
        self.ticket = None;
        tracing::warn!(tenant = %self.tenant.id, "ticket was used on another node");
        Some(MustEnd { cause: EndCause::ProtocolError, code: 1008, reason: "ticket already used" })
    }

    /// Begins the recording, if there is to be one by now.
    fn begin(&mut self, start: &StreamStart, audio: Audio) -> Option<MustEnd> {
        self.span.event(words::STARTED);
        let consent = consent(self.ticket.as_deref().map(|(ticket, _)| ticket), start);
        match self.route.record {
            RecordPolicy::Always => self.begin_recording(start, audio, consent),
            RecordPolicy::OnConsent if consent.is_some() => self.begin_recording(start, audio, consent),
            RecordPolicy::OnConsent => {
                self.await_consent(start, audio);
                None
            }
            RecordPolicy::Never => {
                if let Some(key) = self.key.take() {
                    self.node.keys.give_back(&self.tenant.id, *key);
                }
                None
            }
        }
    }

    /// Lets whoever asks the caller say later that they agree.
    fn await_consent(&mut self, start: &StreamStart, audio: Audio) {
        let Some(key) = &self.key else { return };
        self.span.event(words::AWAITS_CONSENT);
        let entry = recorder::entry(&self.tenant, &self.route, key, audio.provider, &start.call);
        let present = self.node.live.enter(Entry { has_consent: false, ..entry });
        self.awaiting = Some(Box::new(Awaiting { start: start.clone(), audio, present }));
    }

    /// Begins the recording when the caller has agreed since; what was said before is nowhere.
    fn begin_if_agreed(&mut self) -> Option<MustEnd> {
        self.awaiting.as_ref().filter(|awaiting| awaiting.present.has_consent())?;
        let Awaiting { start, audio, present } = *self.awaiting.take()?;
        drop(present);
        // Numbers count from here on: what was not recorded is not missing.
        let start = StreamStart { sequence: None, ..start };
        self.begin_recording(&start, audio, Some("api"))
    }

    fn begin_recording(
        &mut self,
        start: &StreamStart,
        audio: Audio,
        consent: Option<&'static str>,
    ) -> Option<MustEnd> {
        let key = self.key.take()?;
        let ticket = self.ticket.as_deref().map(|(ticket, _)| ticket);
        let Audio { provider, format, agent } = audio;
        let speakers = Speakers::CallerAndAgent;
        let begin = Begin { start, ticket, consent, provider, format, speakers, agent };
        let place = self.span.place();
        match place.around_now(|| Recorder::start(&self.node, &self.tenant, &self.route, *key, &begin)) {
            Ok(recorder) => {
                self.span.recording(recorder.recording());
                self.span.event(words::RECORDED);
                tracing::info!(
                    tenant = %self.tenant.id,
                    route = %self.route.name,
                    recording = %recorder.recording(),
                    "recording begins"
                );
                self.recorder = Some(recorder);
                None
            }
            Err(error) => self.not_begun(&error),
        }
    }

    /// Sees to a stream whose recording cannot begin.
    fn not_begun(&self, error: &SessionError) -> Option<MustEnd> {
        tracing::error!(tenant = %self.tenant.id, error = error as &dyn std::error::Error, "no recording");
        let (kind, end) = match self.tenant.no_key_policy {
            NoKeyPolicy::PassUnrecorded => (NoticeKind::Skipped, None),
            NoKeyPolicy::Refuse => {
                let end = MustEnd { cause: EndCause::Internal, code: 1011, reason: "cannot record" };
                (NoticeKind::Blocked, Some(end))
            }
        };
        self.node.notices.tell_unrecorded(&self.tenant.id, kind, self.route.name.as_str(), "internal");
        end
    }

    /// Sees to an outcome that is no matter of the provider's.
    fn recorded(&mut self, outcome: Result<(), SessionError>) {
        let Err(error) = outcome else { return };
        // The call goes on; only its recording does not.
        tracing::error!(error = &error as &dyn std::error::Error, "recording ends early");
        if let Some(recorder) = self.recorder.take() {
            recorder.finish(EndCause::Internal);
        }
    }

    fn dropped(&mut self, reason: DropReason) -> Option<MustEnd> {
        let refusal = match &mut self.decoder {
            Decoder::Twilio(decoder) => decoder.dropped(reason),
            Decoder::Transcriber(_) | Decoder::Transport(_) => Refusal::Drop(reason),
        };
        self.refused(refusal)
    }

    fn refused(&mut self, refusal: Refusal) -> Option<MustEnd> {
        match refusal {
            Refusal::Drop(reason) => {
                counter!(names::MESSAGES_DROPPED, "reason" => reason.name()).increment(1);
                if let Some(recorder) = self.recorder.as_mut().filter(|_| reason != DropReason::BadBase64) {
                    recorder.dropped();
                }
                None
            }
            Refusal::Close(reason) => {
                tracing::warn!(tenant = %self.tenant.id, reason = reason.name(), "stream closed by us");
                Some(MustEnd { cause: EndCause::ProtocolError, code: reason.code(), reason: reason.name() })
            }
        }
    }
}

/// The parameter by which whoever places a call says that the caller agrees to be recorded.
const CONSENT_PARAMETER: &str = "callseal_consent";

/// Returns how the caller's consent is known.
fn consent(ticket: Option<&Ticket>, start: &StreamStart) -> Option<&'static str> {
    if ticket.is_some_and(|ticket| ticket.consent) {
        return Some("ticket");
    }
    start.parameters.get(CONSENT_PARAMETER).is_some_and(|value| value == "true").then_some("parameter")
}
