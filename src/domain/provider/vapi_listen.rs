//! Vapi's live listen: a socket that callseal dials, with the audio of both parties as interleaved 16-bit samples.
//!
//! Vapi documents neither format nor first message. Others' clients agree on 16,000 Hz and two channels, and some saw a
//! `start` text as the transcriber's; it is believed when it comes first and makes sense. Which channel is whose voice is
//! not known, so channels have numbers here, not names. The byte rate of the first seconds tells a wrong assumption.

use std::time::Instant;

use serde_json::Value;

use crate::domain::audio::RATES;

use super::vapi::{MAX_BINARY_BYTES, MAX_TEXT_BYTES, TextKind, start_format};
use super::vapi_pcm::{ByteRate, ByteRateCheck, MAX_CHANNELS, Pace, PcmChunk, PcmFormat, PcmSplit};
use super::{CloseReason, Refusal};

/// What is assumed unless a start says otherwise.
const ASSUMED_RATE: u32 = 16_000;
const ASSUMED_CHANNELS: u8 = 2;

/// One text message of a listen socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenText {
    /// The format, said before any audio.
    Start(PcmFormat),
    /// A start that is not used: it came too late or names no format that is supported. The format is in doubt when it
    /// names another one than is assumed.
    UnusedStart,
    /// Anything else; its type is all that may be shown.
    Other(Option<TextKind>),
}

/// Decodes the messages of one listen socket, in order.
pub struct ListenDecoder {
    format: PcmFormat,
    /// From the first audio on; the format is settled then.
    split: Option<PcmSplit>,
    pace: Pace,
    rate: ByteRateCheck,
    has_odd_start: bool,
}

impl ListenDecoder {
    /// Assumes 16,000 Hz and two channels until a start says otherwise.
    #[expect(clippy::missing_panics_doc, reason = "the constants are a format, as a test shows")]
    pub fn new() -> Self {
        let format = PcmFormat::new(ASSUMED_RATE, ASSUMED_CHANNELS).expect("the constants are a format");
        // Against the largest format there is: a wrong assumption must not end a recording.
        let largest = PcmFormat::new(*RATES.end(), ASSUMED_CHANNELS).unwrap_or(format);
        Self {
            format,
            split: None,
            pace: Pace::new(largest.bytes_per_second()),
            rate: ByteRateCheck::new(),
            has_odd_start: false,
        }
    }

    /// Decodes one text message.
    ///
    /// # Errors
    /// [`Refusal::Close`] for a text beyond [`MAX_TEXT_BYTES`].
    pub fn text(&mut self, message: &str) -> Result<ListenText, Refusal> {
        if message.len() > MAX_TEXT_BYTES {
            return Err(Refusal::Close(CloseReason::TooLarge));
        }
        let kind = TextKind::of(message);
        if kind.as_ref().map(TextKind::as_str) != Some("start") {
            return Ok(ListenText::Other(kind));
        }
        let named = match serde_json::from_str(message) {
            Ok(Value::Object(fields)) => start_format(&fields),
            _ => None,
        };
        match named {
            Some(format) if self.split.is_none() => {
                self.format = format;
                Ok(ListenText::Start(format))
            }
            named => {
                self.has_odd_start |= named != Some(self.format);
                Ok(ListenText::UnusedStart)
            }
        }
    }

    /// Decodes one binary message that arrived at `now`; the answer is valid until the next one.
    ///
    /// # Errors
    /// [`Refusal::Close`] for a message beyond [`MAX_BINARY_BYTES`] or a stream beyond any call.
    pub fn binary(&mut self, now: Instant, message: &[u8]) -> Result<PcmChunk<'_>, Refusal> {
        if message.len() > MAX_BINARY_BYTES {
            return Err(Refusal::Close(CloseReason::TooLarge));
        }
        if !self.pace.admits(now, message.len()) {
            return Err(Refusal::Close(CloseReason::TooFast));
        }
        self.rate.count(now, message.len(), self.format.bytes_per_second());
        Ok(self.split.get_or_insert_with(|| PcmSplit::new(self.format)).push(message))
    }

    /// Returns the format that audio is read with.
    pub fn format(&self) -> PcmFormat {
        self.format
    }

    /// Returns how fast audio came at the beginning.
    pub fn byte_rate(&self) -> ByteRate {
        self.rate.found()
    }

    /// Whether the format may be another one than audio is read with; the samples are kept as they came all the same.
    pub fn is_in_doubt(&self) -> bool {
        self.has_odd_start || matches!(self.rate.found(), ByteRate::Differs { .. })
    }
}

impl Default for ListenDecoder {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(ASSUMED_CHANNELS as usize <= MAX_CHANNELS);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::clock::monotonic;

    use super::super::vapi::tests::{Line, channels_of, digest, fixture};
    use super::*;

    const START: &str =
        r#"{"channels":1,"type":"start","encoding":"linear16","container":"raw","sampleRate":8000.0}"#;

    #[test]
    fn the_recorded_stream_is_read() {
        let mut decoder = ListenDecoder::new();
        let began = monotonic();
        let (mut channels, mut whole) = (vec![Vec::new(), Vec::new()], Vec::new());
        for (at_ms, line) in fixture("vapi-listen.jsonl", "vapi->client") {
            match line {
                Line::Text(text) => {
                    let format = PcmFormat::new(16_000, 2).unwrap();
                    assert_eq!(decoder.text(&text), Ok(ListenText::Start(format)));
                }
                Line::Binary(message) => {
                    let chunk = decoder.binary(began + Duration::from_millis(at_ms), &message).unwrap();
                    for (channel, part) in channels.iter_mut().zip(chunk.channels()) {
                        channel.extend_from_slice(part);
                    }
                    whole.extend(message);
                }
            }
        }
        assert_eq!(digest(&whole), "eb76e1c56c6319a3d14e7e787f65e77947261b868cf4bcb12b8d125e88d404a8");
        assert!(channels == channels_of(&whole, 2));
        // 600 ms of one voice, then 600 ms of the other.
        let half = 9600 * 2;
        let is_silent = |audio: &[u8]| audio.iter().all(|byte| *byte == 0);
        assert!(is_silent(&channels[0][..half]) && !is_silent(&channels[0][half..]));
        assert!(!is_silent(&channels[1][..half]) && is_silent(&channels[1][half..]));
        assert_eq!((decoder.byte_rate(), decoder.is_in_doubt()), (ByteRate::Unknown, false));
    }

    #[test]
    fn a_start_counts_only_before_audio_and_when_it_makes_sense() {
        let began = monotonic();
        let mut decoder = ListenDecoder::new();
        assert_eq!(decoder.text(&START.replace("8000.0", "1")), Ok(ListenText::UnusedStart));
        assert!(decoder.is_in_doubt());
        let mut decoder = ListenDecoder::new();
        assert!(matches!(decoder.text(START), Ok(ListenText::Start(_))));
        assert_eq!(decoder.binary(began, &[0; 10]).unwrap().channels().count(), 1);
        assert_eq!(decoder.text(START), Ok(ListenText::UnusedStart));
        assert!(!decoder.is_in_doubt());
        assert_eq!(decoder.text(&START.replace("8000.0", "16000")), Ok(ListenText::UnusedStart));
        assert!(decoder.is_in_doubt());
        assert_eq!((decoder.format().audio().rate(), decoder.format().channels()), (8000, 1));
    }

    #[test]
    fn no_start_means_what_others_saw_and_the_byte_rate_tells_otherwise() {
        let began = monotonic();
        let mut decoder = ListenDecoder::new();
        for number in 0..=100 {
            assert!(decoder.binary(began + Duration::from_millis(number * 20), &[0; 640]).is_ok());
        }
        assert_eq!((decoder.format().audio().rate(), decoder.format().channels()), (16_000, 2));
        assert_eq!(decoder.byte_rate(), ByteRate::Differs { bytes_per_second: 32_000 });
        assert!(decoder.is_in_doubt());
    }

    #[test]
    fn other_texts_show_their_type_only_and_sizes_are_bounded() {
        let mut decoder = ListenDecoder::new();
        for (text, kind) in [
            ("not json", None),
            ("[]", None),
            (r#"{"type":7}"#, None),
            (r#"{"type":"+12025550188"}"#, None),
            (r#"{"type":"speech-update","role":"user"}"#, Some("speech-update")),
        ] {
            let Ok(ListenText::Other(found)) = decoder.text(text) else { panic!("{text}") };
            assert_eq!(found.as_ref().map(TextKind::as_str), kind, "{text}");
        }
        let too_large = Err(Refusal::Close(CloseReason::TooLarge));
        assert_eq!(decoder.text(&" ".repeat(MAX_TEXT_BYTES + 1)), too_large);
        let now = monotonic();
        assert!(decoder.binary(now, &vec![0; MAX_BINARY_BYTES]).is_ok());
        let refused = decoder.binary(now, &vec![0; MAX_BINARY_BYTES + 1]).err();
        assert_eq!(refused, Some(Refusal::Close(CloseReason::TooLarge)));
        let refused = (0..20).find_map(|_| decoder.binary(now, &vec![0; MAX_BINARY_BYTES]).err());
        assert_eq!(refused, Some(Refusal::Close(CloseReason::TooFast)));
    }
}
