//! What is heard of one call, over all its sockets: decoded, placed in time, and recorded from the first audio on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;

use crate::clock;
use crate::config::{ListenChannels, Route, Tenant};
use crate::domain::audio::Speakers;
use crate::domain::cmr::GapReason;
use crate::domain::ids::{TenantId, TrackId};
use crate::domain::provider::vapi_absence::AbsenceWatch;
use crate::domain::provider::vapi_listen::{ListenDecoder, ListenText};
use crate::domain::provider::vapi_pcm::PcmFormat;
use crate::domain::provider::vapi_webhook::{CallFacts, InProgress};
use crate::domain::provider::{CloseReason, Refusal, StreamStart};
use crate::domain::recording::EndCause;
use crate::domain::session::{AgentAudio, SessionError};
use crate::ingest::samples::{record, time_of};
use crate::keys::Minted;
use crate::node::Node;
use crate::observe::metrics as names;
use crate::observe::traces::{Span, words};
use crate::recorder::{Begin, Recorder};

use super::super::begin::ToHear;

/// A message that was written longer ago is not believed: Vapi tries ten times, at most ten seconds apart.
const MAX_LATE: Duration = Duration::from_secs(600);

/// Texts that one call may bring: two a second for twelve hours, which is Vapi's longest call.
const MAX_TEXTS: u32 = 86_400;

pub(super) struct Hearing {
    node: Arc<Node>,
    tenant: Arc<Tenant>,
    route: Route,
    call: InProgress,
    told_at: Instant,
    /// Until the first audio.
    key: Option<Minted>,
    decoder: ListenDecoder,
    /// The recording and the format that it has.
    recorder: Option<(Recorder, PcmFormat)>,
    absence: AbsenceWatch,
    texts: u32,
    /// The socket was lost, and nothing was heard since.
    is_lost: bool,
    was_in_doubt: bool,
    /// What is told to the other end where it has broken a rule.
    refused_with: Option<CloseReason>,
    span: Span,
}

impl Hearing {
    pub(super) fn new(node: &Arc<Node>, to_hear: &ToHear, key: Minted, span: Span) -> Self {
        Self {
            node: Arc::clone(node),
            tenant: Arc::clone(&to_hear.tenant),
            route: to_hear.route.clone(),
            call: to_hear.call.clone(),
            told_at: to_hear.told_at,
            key: Some(key),
            decoder: ListenDecoder::new(),
            recorder: None,
            absence: AbsenceWatch::default(),
            texts: 0,
            is_lost: false,
            was_in_doubt: false,
            refused_with: None,
            span,
        }
    }

    /// Takes a text; answers why the recording must end.
    pub(super) fn text(&mut self, text: &str) -> Option<EndCause> {
        counter!(names::MESSAGES_IN).increment(1);
        self.texts += 1;
        if self.texts > MAX_TEXTS {
            return Some(self.refused(Refusal::Close(CloseReason::Flood)));
        }
        match self.decoder.text(text) {
            Ok(ListenText::Other(kind)) => {
                let kind = kind.as_ref().map_or("unnamed", |kind| kind.as_str());
                tracing::trace!(tenant = %self.tenant.id, kind, bytes = text.len(), "text on a listen socket");
                None
            }
            Ok(ListenText::Start(_) | ListenText::UnusedStart) => None,
            Err(refusal) => Some(self.refused(refusal)),
        }
    }

    /// Takes audio; answers why the recording must end.
    pub(super) fn binary(&mut self, now: Instant, audio: &[u8]) -> Option<EndCause> {
        counter!(names::MESSAGES_IN).increment(1);
        counter!(names::BYTES_IN).increment(audio.len() as u64);
        let format = self.decoder.format();
        if let Some((_, recorded)) = &self.recorder
            && *recorded != format
        {
            return Some(self.refused(Refusal::Close(CloseReason::OtherFormat)));
        }
        if self.recorder.is_none()
            && let Err(error) = self.start(now, format)
        {
            return Some(self.failed(&error));
        }
        let channels = self.tenant.vapi.listen_channels;
        let chunk = match self.decoder.binary(now, audio) {
            Ok(chunk) => chunk,
            Err(refusal) => return Some(self.refused(refusal)),
        };
        let (recorder, _) = self.recorder.as_mut()?;
        let mut recorded = Ok(());
        if chunk.samples() > 0 {
            let time = time_of(chunk.samples() as u64, format.audio());
            let was_lost = std::mem::take(&mut self.is_lost);
            let reason = if was_lost { GapReason::LostBeforeUs } else { GapReason::Source };
            let missing = self.absence.audio(now, time).map(|missing| (missing, reason));
            let tracks = tracks(format, channels).into_iter().zip(chunk.channels());
            recorded = record(recorder, now, missing, tracks);
        }
        recorder.hand_over(now);
        self.note_doubt();
        recorded.err().map(|error| self.failed(&error))
    }

    /// Begins the recording with the time that was missed.
    fn start(&mut self, now: Instant, format: PcmFormat) -> Result<(), SessionError> {
        let Some(key) = self.key.take() else { return Ok(()) };
        let facts = self.call.facts.0.iter();
        let start = StreamStart {
            account: self.call.org.clone().unwrap_or_default(),
            parameters: facts.map(|(name, text)| ((*name).to_owned(), text.clone())).collect(),
            ..StreamStart::of_call(self.call.call.as_str().to_owned())
        };
        let begin = Begin {
            start: &start,
            ticket: None,
            consent: None,
            provider: "vapi",
            format: format.audio(),
            speakers: speakers(format, self.tenant.vapi.listen_channels),
            agent: AgentAudio::Received,
        };
        let place = self.span.place();
        let mut recorder =
            place.around_now(|| Recorder::start(&self.node, &self.tenant, &self.route, key, &begin))?;
        self.span.recording(recorder.recording());
        self.span.event(words::RECORDED);
        recorder.joined_late(now, self.missed(now))?;
        tracing::info!(recording = %recorder.recording(), tenant = %self.tenant.id, provider = "vapi", "recording started");
        self.recorder = Some((recorder, format));
        Ok(())
    }

    /// How long the call had been running: since the message was written, if its time can be believed, or since it came.
    fn missed(&self, now: Instant) -> Duration {
        let since_told = now.saturating_duration_since(self.told_at);
        let written = self.call.sent_ms.and_then(|sent| clock::wall().0.checked_sub(sent));
        let since_written = written.map(Duration::from_millis).filter(|written| *written <= MAX_LATE);
        since_written.unwrap_or_default().max(since_told).max(Duration::from_millis(1))
    }

    /// Notes that the socket is gone; the next one begins anew, with a format of its own.
    pub(super) fn lost(&mut self) {
        self.decoder = ListenDecoder::new();
        self.absence.lost();
        self.is_lost = true;
    }

    /// Cuts the segment if its time has come; answers why the recording must end.
    pub(super) fn timeout(&mut self, now: Instant) -> Option<EndCause> {
        let (recorder, _) = self.recorder.as_mut()?;
        let cut = recorder.timeout(now);
        recorder.hand_over(now);
        cut.err().map(|error| self.failed(&error))
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.recorder.as_ref().and_then(|(recorder, _)| recorder.next_timeout())
    }

    /// Ends the recording; answers whether there is one.
    pub(super) fn finish(mut self, cause: EndCause, learned: &CallFacts, tenant: &TenantId) -> bool {
        self.span.word(words::END_CAUSE, cause.name());
        if let Some(key) = self.key.take() {
            self.node.keys.give_back(tenant, key);
        }
        let Some((mut recorder, _)) = self.recorder.take() else { return false };
        let known = &self.call.facts.0;
        for (name, text) in learned.0.iter().filter(|(name, text)| known.get(**name) != Some(*text)) {
            recorder.note(name, text);
        }
        if self.was_in_doubt {
            recorder.note("format_in_doubt", "true");
        }
        recorder.finish(cause);
        true
    }

    fn note_doubt(&mut self) {
        if self.was_in_doubt || !self.decoder.is_in_doubt() {
            return;
        }
        self.was_in_doubt = true;
        counter!(names::VAPI_FORMAT_IN_DOUBT).increment(1);
        tracing::warn!(tenant = %self.tenant.id, "audio does not come as its format says; it is kept as it comes");
    }

    /// Returns why the socket is closed by us, if a rule was broken.
    pub(super) fn refused_with(&self) -> Option<CloseReason> {
        self.refused_with
    }

    fn refused(&mut self, refusal: Refusal) -> EndCause {
        let why = match refusal {
            Refusal::Close(reason) => {
                self.refused_with = Some(reason);
                reason.name()
            }
            Refusal::Drop(reason) => reason.name(),
        };
        tracing::warn!(tenant = %self.tenant.id, why, "listen socket is closed");
        EndCause::ProtocolError
    }

    fn failed(&self, error: &SessionError) -> EndCause {
        let error = error as &dyn std::error::Error;
        tracing::error!(tenant = %self.tenant.id, error, "call cannot be recorded any more");
        EndCause::Internal
    }
}

/// The tracks of the channels, in order. A single channel is on the first track, whosever the first of two is.
fn tracks(format: PcmFormat, channels: ListenChannels) -> [TrackId; 2] {
    if format.channels() == 2 && channels == ListenChannels::AssistantFirst {
        return [TrackId::AGENT, TrackId::CALLER];
    }
    [TrackId::CALLER, TrackId::AGENT]
}

fn speakers(format: PcmFormat, channels: ListenChannels) -> Speakers {
    match (format.channels(), channels) {
        (1, _) => Speakers::Mixed,
        (_, ListenChannels::Unknown) => Speakers::Unnamed,
        (_, ListenChannels::CallerFirst | ListenChannels::AssistantFirst) => Speakers::CallerAndAgent,
    }
}
