//! Vapi's websocket transport: the caller's samples go up as they are spoken, the agent's come down as they are made.
//!
//! The agent's track is what the caller heard: its samples are queued as a player queues them, until Vapi says that the caller
//! has interrupted. Nothing of the texts is kept.

use std::iter;
use std::time::Instant;

use crate::domain::audio::AudioFormat;
use crate::domain::cmr::GapReason;
use crate::domain::ids::TrackId;
use crate::domain::provider::vapi_absence::AbsenceWatch;
use crate::domain::provider::vapi_transport::{TransportDecoder, TransportText, TransportWay, classify_text};
use crate::domain::provider::vapi_webhook::CallId;
use crate::domain::provider::{Payload, StreamStart};
use crate::domain::session::AgentAudio;
use crate::ingest::admission::Line;
use crate::ingest::samples::{record, time_of};
use crate::relay::{Missed, Traffic};

use super::{Audio, Decoder, MustEnd, StreamInHand};

/// What is known of one call.
pub(super) struct Transport {
    call: CallId,
    format: AudioFormat,
    caller: TransportDecoder,
    agent: TransportDecoder,
    /// Of the caller; the agent is silent as it likes.
    absence: AbsenceWatch,
}

impl Transport {
    pub(super) fn new(line: Line) -> Self {
        let Line { url: _, call, format } = line;
        Self {
            call,
            format: format.audio(),
            caller: TransportDecoder::new(format, TransportWay::Up),
            agent: TransportDecoder::new(format, TransportWay::Down),
            absence: AbsenceWatch::default(),
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic::Samples { frame_bytes: self.format.codec().sample_bytes() }
    }
}

impl StreamInHand {
    /// Takes a text of the caller's side.
    pub(super) fn transport_text(&mut self, text: &str) -> Option<MustEnd> {
        match classify_text(TransportWay::Up, text) {
            // Whoever ends the call closes the socket after it.
            Ok(TransportText::EndCall | TransportText::UserInterrupted | TransportText::Other(_)) => None,
            Err(refusal) => self.refused(refusal),
        }
    }

    /// Takes a text of Vapi. One that is too long to be looked at is no reason to end a call: it holds a conversation.
    pub(super) fn vapi_said(&mut self, now: Instant, text: &str) {
        if classify_text(TransportWay::Down, text) != Ok(TransportText::UserInterrupted) {
            return;
        }
        let Some(recorder) = &mut self.recorder else { return };
        let outcome = recorder.agent_clear(now);
        self.recorded(outcome);
    }

    /// Takes samples of the caller.
    pub(super) fn caller_samples(&mut self, now: Instant, bytes: &[u8]) -> Option<MustEnd> {
        if let Some(end) = self.begin_transport() {
            return Some(end);
        }
        let Decoder::Transport(transport) = &mut self.decoder else { return None };
        let samples = match transport.caller.binary(now, bytes) {
            Ok(audio) => audio.samples,
            Err(refusal) => return self.refused(refusal),
        };
        let recorder = self.recorder.as_mut().filter(|_| !samples.is_empty())?;
        let count = u64::from(transport.format.codec().samples_of(samples.len()));
        let absent = transport.absence.audio(now, time_of(count, transport.format));
        let absent = absent.map(|absent| (absent, GapReason::Source));
        let outcome = record(recorder, now, absent, iter::once((TrackId::CALLER, samples)));
        self.recorded(outcome);
        None
    }

    /// Takes samples of the agent.
    pub(super) fn agent_samples(&mut self, now: Instant, bytes: &[u8]) {
        if self.begin_transport().is_some() {
            // There is no recording; the caller's next message ends the call.
            return;
        }
        let Decoder::Transport(transport) = &mut self.decoder else { return };
        // No message of an agent is longer than the decoder takes.
        let Ok(audio) = transport.agent.binary(now, bytes) else { return };
        let Some(recorder) = self.recorder.as_mut().filter(|_| !audio.samples.is_empty()) else { return };
        let outcome = recorder.agent_media(now, &Payload::bytes_of(audio.samples));
        self.recorded(outcome);
    }

    /// Leaves out what there was no time for, on either track.
    pub(super) fn missed_transport(&mut self, now: Instant, missed: Missed) -> Option<MustEnd> {
        let Decoder::Transport(transport) = &mut self.decoder else { return None };
        let format = transport.format;
        let caller = match transport.caller.skip(now, missed.sample_bytes) {
            Ok(samples) => time_of(samples, format),
            Err(refusal) => return self.refused(refusal),
        };
        let agent = transport.agent.skip(now, missed.agent_bytes).unwrap_or_default();
        let recorder = self.recorder.as_mut()?;
        let mut outcome = Ok(());
        if !caller.is_zero() {
            // Those samples were sent in time; they are not absent.
            let absent = transport.absence.audio(now, caller).unwrap_or_default();
            outcome = recorder.gap(now, caller + absent, GapReason::Overload);
        }
        if agent > 0 {
            let samples = u32::try_from(agent).unwrap_or(u32::MAX);
            outcome = outcome.and_then(|()| recorder.agent_missed(now, samples));
        }
        self.recorded(outcome);
        None
    }

    /// Begins the recording with the first audio of either side; nothing is recorded of a call that has none.
    fn begin_transport(&mut self) -> Option<MustEnd> {
        let Decoder::Transport(transport) = &self.decoder else { return None };
        self.key.as_ref()?;
        let start = StreamStart::of_call(transport.call.as_str().to_owned());
        let format = transport.format;
        self.begin(&start, Audio { provider: "vapi", format, agent: AgentAudio::Queued })
    }
}
