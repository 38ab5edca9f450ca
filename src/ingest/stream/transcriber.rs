//! Vapi's transcriber streams: samples of both parties in binary messages, without timestamps.

use std::time::Instant;

use crate::domain::audio::AudioFormat;
use crate::domain::cmr::GapReason;
use crate::domain::provider::vapi::{TranscriberDecoder, TranscriberText};
use crate::domain::provider::vapi_absence::AbsenceWatch;
use crate::domain::provider::vapi_pcm::{PcmFormat, SAMPLE_BYTES};
use crate::domain::provider::{Refusal, StreamStart};
use crate::domain::session::AgentAudio;
use crate::ingest::samples::{record, time_of};
use crate::relay::Traffic;

use super::{Audio, Decoder, MustEnd, StreamInHand};

/// What is known of one stream.
pub(super) struct Transcriber {
    pub(super) decoder: TranscriberDecoder,
    absence: AbsenceWatch,
}

impl Transcriber {
    pub(super) fn new(max_drops: u32) -> Self {
        Self { decoder: TranscriberDecoder::new(max_drops), absence: AbsenceWatch::default() }
    }

    pub(super) fn traffic(&self) -> Traffic {
        let channels = self.decoder.format().map_or(1, |format| usize::from(format.channels()));
        Traffic::Samples { frame_bytes: channels * SAMPLE_BYTES }
    }
}

impl StreamInHand {
    /// Takes what was decoded of a text.
    pub(super) fn transcriber_text(&mut self, text: Result<TranscriberText, Refusal>) -> Option<MustEnd> {
        match text {
            Ok(TranscriberText::Start(format)) => {
                let call = self.ticket.as_deref().and_then(|(ticket, _)| ticket.call.clone());
                // Vapi does not say which call it is; who has made the ticket may have.
                let start = StreamStart::of_call(call.unwrap_or_default());
                let format = format.audio();
                self.begin(&start, Audio { provider: "vapi", format, agent: AgentAudio::Received })
            }
            Ok(TranscriberText::RepeatedStart | TranscriberText::Ignored(_)) => None,
            Err(refusal) => self.refused(refusal),
        }
    }

    /// Takes a message of samples.
    pub(super) fn samples(&mut self, now: Instant, bytes: &[u8]) -> Option<MustEnd> {
        let Decoder::Transcriber(Transcriber { decoder, absence }) = &mut self.decoder else { return None };
        let format = decoder.format().map_or(AudioFormat::TELEPHONE, PcmFormat::audio);
        let audio = match decoder.binary(now, bytes) {
            Ok(audio) => audio,
            Err(refusal) => return self.refused(refusal),
        };
        let recorder = self.recorder.as_mut().filter(|_| audio.samples() > 0)?;
        let missing = absence.audio(now, time_of(audio.samples() as u64, format));
        let missing = missing.map(|missing| (missing, GapReason::Source));
        let outcome = record(recorder, now, missing, audio.tracks());
        self.recorded(outcome);
        None
    }

    /// Seals that the recorder had no time for so many bytes of samples.
    pub(super) fn missed_samples(&mut self, now: Instant, bytes: u64) -> Option<MustEnd> {
        let Decoder::Transcriber(Transcriber { decoder, absence }) = &mut self.decoder else { return None };
        let format = decoder.format().map_or(AudioFormat::TELEPHONE, PcmFormat::audio);
        let missed = match decoder.skip(now, bytes) {
            Ok(samples) => time_of(samples, format),
            Err(refusal) => return self.refused(refusal),
        };
        // Those samples were sent in time; they are not absent.
        let absent = absence.audio(now, missed).unwrap_or_default();
        let recorder = self.recorder.as_mut()?;
        let outcome = recorder.gap(now, missed + absent, GapReason::Overload);
        self.recorded(outcome);
        None
    }
}
