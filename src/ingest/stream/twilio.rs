//! Twilio's events, and what its agents say.

use std::time::Instant;

use crate::domain::audio::AudioFormat;
use crate::domain::provider::twilio_agent::{Said, decode_said};
use crate::domain::provider::{CloseReason, DropReason, Event, Refusal, StreamStart};
use crate::domain::recording::EndCause;
use crate::domain::session::{AgentAudio, SessionError};

use super::{Audio, MustEnd, StreamInHand};

impl StreamInHand {
    /// Takes what was decoded of a message.
    pub(super) fn event(&mut self, now: Instant, event: Result<Event<'_>, Refusal>) -> Option<MustEnd> {
        let outcome = match event {
            Ok(Event::Media(media)) => match &mut self.recorder {
                Some(recorder) => recorder.media(now, &media),
                None => Ok(()),
            },
            Ok(Event::Start(start)) => return self.start(&start),
            Ok(Event::Stop { sequence }) => {
                self.stop(sequence);
                Ok(())
            }
            Ok(Event::Connected) => Ok(()),
            Ok(Event::Mark { sequence, name }) => match &mut self.recorder {
                Some(recorder) => recorder.mark(now, sequence, &name),
                None => Ok(()),
            },
            Ok(Event::Dtmf { sequence, digit }) => match &mut self.recorder {
                Some(recorder) => recorder.dtmf(now, sequence, digit),
                None => Ok(()),
            },
            Ok(Event::Ignored { sequence, .. }) => {
                if let Some(recorder) = &mut self.recorder {
                    recorder.number(sequence);
                }
                Ok(())
            }
            Err(refusal) => return self.refused(refusal),
        };
        self.after(outcome)
    }

    /// Takes a text message of the agent.
    pub(super) fn agent_said(&mut self, now: Instant, text: &str) {
        let Some(recorder) = &mut self.recorder else { return };
        let outcome = match decode_said(text) {
            Said::Media(payload) => recorder.agent_media(now, &payload),
            Said::Clear => recorder.agent_clear(now),
            Said::Mark(name) => {
                recorder.agent_mark(now, &name);
                Ok(())
            }
            Said::Other => Ok(()),
        };
        match outcome {
            // What the agent sends is its own matter: the provider judges it, not we.
            Err(SessionError::BadBase64(_)) => {}
            outcome => self.recorded(outcome),
        }
    }

    fn start(&mut self, start: &StreamStart) -> Option<MustEnd> {
        if !self.permit.claim(&start.stream) {
            let reason = CloseReason::OtherStream;
            return Some(MustEnd {
                cause: EndCause::ProtocolError,
                code: reason.code(),
                reason: reason.name(),
            });
        }
        let ticket = self.ticket.as_deref().map(|(ticket, _)| ticket);
        if ticket.and_then(|ticket| ticket.call.as_ref()).is_some_and(|call| *call != start.call) {
            tracing::warn!(tenant = %self.tenant.id, "ticket is for another call");
            return Some(MustEnd { cause: EndCause::ProtocolError, code: 1008, reason: "other_call" });
        }
        let agent = if self.route.upstream.is_some() { AgentAudio::Queued } else { AgentAudio::Received };
        self.begin(start, Audio { provider: "twilio", format: AudioFormat::TELEPHONE, agent })
    }

    fn stop(&mut self, sequence: Option<u64>) {
        if let Some(mut recorder) = self.recorder.take() {
            recorder.number(sequence);
            recorder.finish(EndCause::Stop);
        }
    }

    fn after(&mut self, outcome: Result<(), SessionError>) -> Option<MustEnd> {
        match outcome {
            Err(SessionError::BadBase64(_)) => self.dropped(DropReason::BadBase64),
            outcome => {
                self.recorded(outcome);
                None
            }
        }
    }
}
