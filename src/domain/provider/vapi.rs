//! Vapi's custom transcriber: one `start` text, then binary messages of interleaved 16-bit audio.
//!
//! The start says the format and nothing else: no call, assistant or organisation. Channel 0 is the caller and channel 1
//! the assistant. Source: Vapi's page "Custom transcriber"; where it is silent, `docs/VAPI.md` says what is our rule.

use std::time::Instant;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::domain::ids::TrackId;

use super::vapi_pcm::{Pace, PcmChunk, PcmFormat, PcmSplit};
use super::{CloseReason, DropBudget, DropReason, IgnoreReason, Refusal};

/// The largest text message that is read, in bytes; a start has about a hundred.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;
/// The largest binary message that is taken, in bytes: at least five seconds of every format.
pub const MAX_BINARY_BYTES: usize = 1024 * 1024;

/// The longest type of a text message that is kept to be shown.
const MAX_KIND_BYTES: usize = 40;

/// The tracks of the channels, in order.
const TRACKS: [TrackId; 2] = [TrackId::CALLER, TrackId::AGENT];

/// One text message of Vapi.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TranscriberText {
    /// The stream begins and says what it is.
    Start(PcmFormat),
    /// The same start once more; nothing changes.
    RepeatedStart,
    /// A message that is none of our business.
    Ignored(IgnoreReason),
}

/// The whole samples of one binary message.
#[derive(Debug, Clone, Copy)]
pub struct TranscriberAudio<'a>(PcmChunk<'a>);

impl<'a> TranscriberAudio<'a> {
    /// Lists each track with its samples, two bytes each, little-endian; all tracks are equally long.
    pub fn tracks(self) -> impl Iterator<Item = (TrackId, &'a [u8])> {
        TRACKS.into_iter().zip(self.0.channels())
    }

    /// Returns how many samples each track has.
    pub fn samples(self) -> usize {
        self.0.samples()
    }
}

/// Decodes the messages of one transcriber connection, in order.
pub struct TranscriberDecoder {
    drops: DropBudget,
    live: Option<Live>,
}

struct Live {
    split: PcmSplit,
    pace: Pace,
}

impl TranscriberDecoder {
    /// Closes the stream after more than `max_drops` texts that are not JSON objects.
    pub fn new(max_drops: u32) -> Self {
        Self { drops: DropBudget::new(max_drops), live: None }
    }

    /// Decodes one text message.
    ///
    /// # Errors
    /// [`Refusal::Drop`]: go on without it. [`Refusal::Close`]: close the connection and finish what is stored.
    pub fn text(&mut self, message: &str) -> Result<TranscriberText, Refusal> {
        if message.len() > MAX_TEXT_BYTES {
            return Err(Refusal::Close(CloseReason::TooLarge));
        }
        // The parser goes 128 levels deep and no further.
        let Ok(Value::Object(fields)) = serde_json::from_str(message) else {
            return Err(self.drops.spend(DropReason::NotAnEvent));
        };
        if fields.get("type").and_then(Value::as_str) != Some("start") {
            return Ok(TranscriberText::Ignored(IgnoreReason::UnknownEvent));
        }
        let format = start_format(&fields);
        if let Some(live) = &self.live {
            return match format {
                Some(format) if format == live.split.format() => Ok(TranscriberText::RepeatedStart),
                _ => Err(Refusal::Close(CloseReason::OtherFormat)),
            };
        }
        let format = format.ok_or(Refusal::Close(CloseReason::UnsupportedFormat))?;
        self.live = Some(Live { split: PcmSplit::new(format), pace: Pace::new(format.bytes_per_second()) });
        Ok(TranscriberText::Start(format))
    }

    /// Decodes one binary message that arrived at `now`; the answer is valid until the next one.
    ///
    /// # Errors
    /// [`Refusal::Close`]: close the connection and finish what is stored.
    pub fn binary(&mut self, now: Instant, message: &[u8]) -> Result<TranscriberAudio<'_>, Refusal> {
        if message.len() > MAX_BINARY_BYTES {
            return Err(Refusal::Close(CloseReason::TooLarge));
        }
        let live = self.live.as_mut().ok_or(Refusal::Close(CloseReason::MediaBeforeStart))?;
        if !live.pace.admits(now, message.len()) {
            return Err(Refusal::Close(CloseReason::TooFast));
        }
        Ok(TranscriberAudio(live.split.push(message)))
    }

    /// Goes on behind `bytes` of audio that came by `now` and nobody has kept; answers how many samples of each track are
    /// missing by that.
    ///
    /// # Errors
    /// As [`TranscriberDecoder::binary`]: what is not kept has come all the same.
    pub fn skip(&mut self, now: Instant, bytes: u64) -> Result<u64, Refusal> {
        let live = self.live.as_mut().ok_or(Refusal::Close(CloseReason::MediaBeforeStart))?;
        if !live.pace.admits(now, usize::try_from(bytes).unwrap_or(usize::MAX)) {
            return Err(Refusal::Close(CloseReason::TooFast));
        }
        Ok(live.split.skip(bytes))
    }

    /// Returns the format once a start was accepted.
    pub fn format(&self) -> Option<PcmFormat> {
        self.live.as_ref().map(|live| live.split.format())
    }
}

/// Reads the format that a start names; `None` for one that is not supported, also where a field is missing.
pub(super) fn start_format(fields: &Map<String, Value>) -> Option<PcmFormat> {
    let is = |name: &str, wanted: &str| fields.get(name).and_then(Value::as_str) == Some(wanted);
    if !is("encoding", "linear16") || !is("container", "raw") {
        return None;
    }
    let sample_rate = whole_number(fields.get("sampleRate"))?;
    let channels = u8::try_from(whole_number(fields.get("channels"))?).ok()?;
    PcmFormat::new(sample_rate, channels)
}

/// A whole number of JSON, also when it is written as `16000.0`. A text is no number.
fn whole_number(value: Option<&Value>) -> Option<u32> {
    let number = value?.as_number()?;
    if let Some(number) = number.as_u64() {
        return u32::try_from(number).ok();
    }
    let number = number.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=1e6).contains(number))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and within 0 to 1e6")]
    let number = number as u32;
    Some(number)
}

/// The type of a text message, for a log: nothing else of the message is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextKind(String);

impl TextKind {
    /// Reads the type of a JSON object; `None` where there is none, or one that looks like anything but a name.
    pub fn of(message: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Typed {
            r#type: String,
        }
        Self::new(&serde_json::from_str::<Typed>(message).ok()?.r#type)
    }

    /// Takes a type; `None` for one that looks like anything but a name.
    pub fn new(kind: &str) -> Option<Self> {
        // No digits, so that no number can be one.
        let is_name = |b: u8| b.is_ascii_lowercase() || matches!(b, b'-' | b'.' | b'_');
        ((1..=MAX_KIND_BYTES).contains(&kind.len()) && kind.bytes().all(is_name))
            .then(|| Self(kind.to_owned()))
    }

    /// Returns the type as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
pub(super) mod tests;
