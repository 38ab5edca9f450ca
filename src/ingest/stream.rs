//! What is made of one stream's messages: decoded, and recorded if the route says so. Knows no socket.

use std::sync::Arc;
use std::time::Instant;

use metrics::counter;

use crate::config::{NoKeyPolicy, Record as RecordPolicy, Route, Tenant};
use crate::domain::audio::{AudioFormat, Speakers};
use crate::domain::ids::TenantId;
use crate::domain::provider::twilio::{AccountSid, TwilioDecoder};
use crate::domain::provider::twilio_agent::{Said, decode_said};
use crate::domain::provider::{CloseReason, DropReason, Event, Refusal, StreamStart};
use crate::domain::recording::EndCause;
use crate::domain::session::SessionError;
use crate::domain::ticket::Ticket;
use crate::keys::Minted;
use crate::node::Node;
use crate::observe::metrics as names;
use crate::recorder::{self, Begin, Recorder};
use crate::tickets::Redeemed;

use super::limits::StreamPermit;
use super::twilio::Admitted;

/// Why a stream must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MustEnd {
    pub(super) cause: EndCause,
    /// Code and reason of our close frame.
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

/// One stream.
pub(super) struct StreamInHand {
    node: Arc<Node>,
    tenant: Arc<Tenant>,
    route: Route,
    permit: StreamPermit,
    ticket: Option<(Ticket, Redeemed)>,
    /// Until the stream starts; `None` also where the tenant lets calls go on unrecorded.
    key: Option<Minted>,
    decoder: TwilioDecoder,
    recorder: Option<Recorder>,
}

impl StreamInHand {
    /// Takes what was admitted, but not its place.
    pub(super) fn new(node: Arc<Node>, admitted: Admitted) -> Self {
        let Admitted { tenant, route, ticket, key, permit, place: _ } = admitted;
        let accounts: Vec<AccountSid> = tenant.twilio.account_sids.clone();
        let decoder = TwilioDecoder::new(accounts, node.config.ingest.max_dropped_messages);
        Self { node, tenant, route, permit, ticket, key, decoder, recorder: None }
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.tenant.id
    }

    pub(super) fn has_started(&self) -> bool {
        self.decoder.has_started()
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.decoder.has_stopped()
    }

    /// Takes a text message of the provider.
    pub(super) fn text(&mut self, now: Instant, text: &str) -> Option<MustEnd> {
        if self.ticket.as_ref().is_some_and(|(_, redeemed)| redeemed.was_used_elsewhere()) {
            self.ticket = None;
            tracing::warn!(tenant = %self.tenant.id, "ticket was used on another node");
            return Some(MustEnd {
                cause: EndCause::ProtocolError,
                code: 1008,
                reason: "ticket already used",
            });
        }
        let outcome = match self.decoder.decode(text) {
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
        self.recorded(outcome)
    }

    /// Takes a text message of the agent.
    pub(super) fn said(&mut self, now: Instant, text: &str) {
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
            Err(SessionError::BadBase64(_)) | Ok(()) => {}
            Err(error) => drop(self.recorded(Err(error))),
        }
    }

    /// Counts a message that is not text.
    pub(super) fn dropped(&mut self, reason: DropReason) -> Option<MustEnd> {
        let refusal = self.decoder.dropped(reason);
        self.refused(refusal)
    }

    /// Notes that messages were not looked at, because there was no time for them.
    pub(super) fn missed(&mut self, messages: u64) {
        if let Some(recorder) = self.recorder.as_mut().filter(|_| messages > 0) {
            recorder.missed(messages);
        }
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

    /// Ends the stream; after the provider's `stop` every end is a good one.
    pub(super) fn finish(mut self, cause: EndCause) {
        if let Some(recorder) = self.recorder.take() {
            recorder.finish(if self.has_stopped() { EndCause::Stop } else { cause });
        }
        if let Some(key) = self.key.take() {
            counter!(names::STREAMS_ENDED, "cause" => "never-started").increment(1);
            self.node.keys.give_back(&self.tenant.id, key);
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
        let ticket = self.ticket.as_ref().map(|(ticket, _)| ticket);
        if ticket.and_then(|ticket| ticket.call.as_ref()).is_some_and(|call| *call != start.call) {
            tracing::warn!(tenant = %self.tenant.id, "ticket is for another call");
            return Some(MustEnd { cause: EndCause::ProtocolError, code: 1008, reason: "other_call" });
        }
        let key = self.key.take()?;
        let consent = consent(ticket, start);
        let is_wanted = match self.route.record {
            RecordPolicy::Always => true,
            RecordPolicy::OnConsent => consent.is_some(),
            RecordPolicy::Never => false,
        };
        if !is_wanted {
            self.node.keys.give_back(&self.tenant.id, key);
            if self.route.record == RecordPolicy::OnConsent {
                recorder::skipped(&self.node, &self.tenant, "no-consent");
            }
            return None;
        }
        let begin = Begin {
            start,
            ticket,
            consent,
            provider: "twilio",
            format: AudioFormat::TELEPHONE,
            speakers: Speakers::CallerAndAgent,
        };
        match Recorder::start(&self.node, &self.tenant, &self.route, key, &begin) {
            Ok(recorder) => {
                tracing::info!(
                    tenant = %self.tenant.id,
                    route = %self.route.name,
                    recording = %recorder.recording(),
                    "recording begins"
                );
                self.recorder = Some(recorder);
                None
            }
            Err(error) => {
                tracing::error!(tenant = %self.tenant.id, error = &error as &dyn std::error::Error, "no recording");
                match self.tenant.no_key_policy {
                    NoKeyPolicy::PassUnrecorded => None,
                    NoKeyPolicy::Refuse => {
                        Some(MustEnd { cause: EndCause::Internal, code: 1011, reason: "cannot record" })
                    }
                }
            }
        }
    }

    fn stop(&mut self, sequence: Option<u64>) {
        if let Some(mut recorder) = self.recorder.take() {
            recorder.number(sequence);
            recorder.finish(EndCause::Stop);
        }
    }

    fn recorded(&mut self, outcome: Result<(), SessionError>) -> Option<MustEnd> {
        match outcome {
            Ok(()) => None,
            Err(SessionError::BadBase64(_)) => {
                let refusal = self.decoder.dropped(DropReason::BadBase64);
                self.refused(refusal)
            }
            Err(error) => {
                // The call goes on; only its recording does not.
                tracing::error!(error = &error as &dyn std::error::Error, "recording ends early");
                if let Some(recorder) = self.recorder.take() {
                    recorder.finish(EndCause::Internal);
                }
                None
            }
        }
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
