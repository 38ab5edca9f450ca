//! Vapi's websocket transport: one voice each way, in the format that was chosen when the call was made.
//!
//! The caller's voice goes up in real time. The assistant's comes down as fast as Vapi makes it, so its bytes say when
//! it was made, not when it was heard; after `user-interrupted` a player drops what it has queued. Texts hold the
//! conversation: only their type is looked at. The two directions have nothing to do with each other's clock.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::domain::audio::{AudioFormat, Codec};
use crate::domain::ids::TrackId;

use super::vapi::{MAX_BINARY_BYTES, MAX_TEXT_BYTES, TextKind};
use super::vapi_pcm::{Pace, PcmFormat, PcmSplit};
use super::{CloseReason, Refusal};

/// The format of both directions, chosen when the call was made. Written as `pcm_s16le:16000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TransportFormat(AudioFormat);

impl TransportFormat {
    /// Reads the words of Vapi's `audioFormat`; `None` for a rate outside [`RATES`], which Vapi would take as well.
    ///
    /// [`RATES`]: crate::domain::audio::RATES
    pub fn parse(format: &str, sample_rate: u32) -> Option<Self> {
        let (_, codec) = WORDS.into_iter().find(|(word, _)| *word == format)?;
        AudioFormat::new(codec, sample_rate).map(Self)
    }

    /// Returns how samples are written.
    pub fn audio(self) -> AudioFormat {
        self.0
    }
}

/// Vapi's words for codecs.
const WORDS: [(&str, Codec); 2] = [("pcm_s16le", Codec::S16le), ("mulaw", Codec::Ulaw)];

/// Not the name of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: \"pcm_s16le:RATE\" with a rate of 8000 to 48000, or \"mulaw:8000\"")]
pub struct InvalidFormat;

impl FromStr for TransportFormat {
    type Err = InvalidFormat;

    /// Reads `pcm_s16le:16000`; μ-law has the rate of telephony only.
    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        let (encoding, rate) = text.split_once(':').ok_or(InvalidFormat)?;
        let rate = Some(rate).filter(|rate| rate.bytes().all(|b| b.is_ascii_digit()));
        let format = rate.and_then(|rate| Self::parse(encoding, rate.parse().ok()?));
        let is_taken = |format: &Self| format.0.codec() == Codec::S16le || format.0 == AudioFormat::TELEPHONE;
        format.filter(is_taken).ok_or(InvalidFormat)
    }
}

impl fmt::Display for TransportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.0.codec() {
            Codec::S16le => "pcm_s16le",
            Codec::Ulaw => "mulaw",
        };
        write!(f, "{word}:{}", self.0.rate())
    }
}

impl TryFrom<String> for TransportFormat {
    type Error = InvalidFormat;

    fn try_from(text: String) -> Result<Self, InvalidFormat> {
        text.parse()
    }
}

impl From<TransportFormat> for String {
    fn from(format: TransportFormat) -> Self {
        format.to_string()
    }
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportWay {
    /// From the caller to Vapi.
    Up,
    /// From Vapi to the caller.
    Down,
}

/// What a text message is, by its type alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportText {
    /// `user-interrupted`: what the player has queued of the assistant is not heard.
    UserInterrupted,
    /// `end-call`: whoever sends it wants the call to end.
    EndCall,
    /// Anything else; its type is all that may be shown.
    Other(Option<TextKind>),
}

/// Tells what a text message of either direction is; it is passed on whatever it is.
///
/// # Errors
/// [`Refusal::Close`] for a text beyond [`MAX_TEXT_BYTES`].
pub fn classify_text(way: TransportWay, message: &str) -> Result<TransportText, Refusal> {
    if message.len() > MAX_TEXT_BYTES {
        return Err(Refusal::Close(CloseReason::TooLarge));
    }
    let kind = TextKind::of(message);
    Ok(match (way, kind.as_ref().map(TextKind::as_str)) {
        (TransportWay::Down, Some("user-interrupted")) => TransportText::UserInterrupted,
        (TransportWay::Up, Some("end-call")) => TransportText::EndCall,
        _ => TransportText::Other(kind),
    })
}

/// Decodes the binary messages of one direction, in order.
pub struct TransportDecoder {
    way: TransportWay,
    samples: Samples,
    /// Only the caller speaks in real time.
    pace: Option<Pace>,
}

enum Samples {
    Cut(PcmSplit),
    Whole,
}

/// The whole samples of one binary message. `Debug` shows no audio.
#[derive(Clone, Copy)]
pub struct TransportAudio<'a> {
    /// Whose voice.
    pub track: TrackId,
    /// The samples, written as the format says.
    pub samples: &'a [u8],
}

impl std::fmt::Debug for TransportAudio<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TransportAudio({:?}, {} bytes)", self.track, self.samples.len())
    }
}

impl TransportDecoder {
    /// Begins one direction.
    pub fn new(format: TransportFormat, way: TransportWay) -> Self {
        let TransportFormat(audio) = format;
        let (cut, bytes_per_second) = match audio.codec() {
            Codec::S16le => (PcmFormat::new(audio.rate(), 1), 2 * audio.rate()),
            Codec::Ulaw => (None, audio.rate()),
        };
        Self {
            way,
            samples: cut.map_or(Samples::Whole, |format| Samples::Cut(PcmSplit::new(format))),
            pace: (way == TransportWay::Up).then(|| Pace::new(bytes_per_second)),
        }
    }

    /// Decodes one binary message that arrived at `now`; the answer is valid until the next one.
    ///
    /// # Errors
    /// [`Refusal::Close`] for a message beyond [`MAX_BINARY_BYTES`] or a caller faster than anybody speaks.
    pub fn binary<'a>(&'a mut self, now: Instant, message: &'a [u8]) -> Result<TransportAudio<'a>, Refusal> {
        if message.len() > MAX_BINARY_BYTES {
            return Err(Refusal::Close(CloseReason::TooLarge));
        }
        if self.pace.as_mut().is_some_and(|pace| !pace.admits(now, message.len())) {
            return Err(Refusal::Close(CloseReason::TooFast));
        }
        let samples = match &mut self.samples {
            Samples::Whole => message,
            Samples::Cut(split) => split.push(message).channels().next().unwrap_or_default(),
        };
        let track = match self.way {
            TransportWay::Up => TrackId::CALLER,
            TransportWay::Down => TrackId::AGENT,
        };
        Ok(TransportAudio { track, samples })
    }

    /// Goes on behind `bytes` that nobody has looked at; answers how many samples are missing by that.
    ///
    /// # Errors
    /// [`Refusal::Close`] for a caller faster than anybody speaks.
    pub fn skip(&mut self, now: Instant, bytes: u64) -> Result<u64, Refusal> {
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if self.pace.as_mut().is_some_and(|pace| !pace.admits(now, length)) {
            return Err(Refusal::Close(CloseReason::TooFast));
        }
        Ok(match &mut self.samples {
            Samples::Whole => bytes,
            Samples::Cut(split) => split.skip(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::clock::monotonic;

    use super::super::vapi::tests::{Line, digest, fixture};
    use super::*;

    #[test]
    fn the_recorded_calls_are_read() {
        for (name, format, rate, up, down, texts) in [
            (
                "vapi-websocket-transport.jsonl",
                "pcm_s16le",
                16_000,
                "e1ffd185bd2dd64fe9b202d0a0aaf9ef012cf9f816da95959adca03118628668",
                "c77f1952d271a04234fd55196e4b9b687e510a2ea9284d00b6fa729f5d73ce49",
                16,
            ),
            (
                "vapi-websocket-transport-mulaw.jsonl",
                "mulaw",
                8000,
                "10168f9ce9365979d68520d6f3a7c163e61ee283f3d489c4c19c9860d766caaf",
                "272012fad5d62111f6b39437f5b470eff2a6144ff090d7f89d7ba6f7f4120b6a",
                2,
            ),
        ] {
            let format = TransportFormat::parse(format, rate).unwrap();
            let mut seen = Vec::new();
            for (way, dir, track, wanted) in [
                (TransportWay::Up, "client->vapi", TrackId::CALLER, up),
                (TransportWay::Down, "vapi->client", TrackId::AGENT, down),
            ] {
                let began = monotonic();
                let mut decoder = TransportDecoder::new(format, way);
                let mut whole = Vec::new();
                for (at_ms, line) in fixture(name, dir) {
                    match line {
                        Line::Text(text) => seen.push(classify_text(way, &text).unwrap()),
                        Line::Binary(message) => {
                            let at = began + Duration::from_millis(at_ms);
                            let audio = decoder.binary(at, &message).unwrap();
                            assert_eq!(audio.track, track);
                            whole.extend_from_slice(audio.samples);
                        }
                    }
                }
                assert_eq!(digest(&whole), wanted, "{name} {dir}");
            }
            let count = |wanted: &TransportText| seen.iter().filter(|text| *text == wanted).count();
            assert_eq!(seen.len(), texts, "{name}");
            assert_eq!(count(&TransportText::EndCall), 1, "{name}");
            assert_eq!(count(&TransportText::UserInterrupted), usize::from(texts == 16), "{name}");
        }
    }

    #[test]
    fn samples_that_are_cut_are_put_together() {
        let now = monotonic();
        let pcm = TransportFormat::parse("pcm_s16le", 24_000).unwrap();
        let mut decoder = TransportDecoder::new(pcm, TransportWay::Down);
        let mut whole = Vec::new();
        for message in [&[1u8][..], &[], &[2, 3], &[4, 5, 6, 7]] {
            whole.extend_from_slice(decoder.binary(now, message).unwrap().samples);
        }
        assert_eq!(whole, [1, 2, 3, 4, 5, 6]);
        // The byte that waits, and five that nobody has: three samples, and the next byte begins one.
        assert_eq!(decoder.skip(now, 5), Ok(3));
        assert_eq!(decoder.binary(now, &[8, 9]).unwrap().samples, [8, 9]);
        let mulaw = TransportFormat::parse("mulaw", 8000).unwrap();
        assert_eq!(TransportDecoder::new(mulaw, TransportWay::Up).skip(now, 5), Ok(5));
        let minute = 60 * 8000;
        let refused = TransportDecoder::new(mulaw, TransportWay::Up).skip(now, minute);
        assert_eq!(refused, Err(Refusal::Close(CloseReason::TooFast)));
    }

    #[test]
    fn formats_have_one_spelling() {
        for text in ["pcm_s16le:8000", "pcm_s16le:16000", "pcm_s16le:48000", "mulaw:8000"] {
            let format: TransportFormat = text.parse().unwrap();
            assert_eq!(format.to_string(), text);
        }
        for text in
            ["", "mulaw", "mulaw:16000", "pcm_s16le:", "pcm_s16le:+16000", "pcm_s16le:7999", "opus:48000"]
        {
            assert_eq!(text.parse::<TransportFormat>(), Err(InvalidFormat), "{text}");
        }
    }

    #[test]
    fn formats_and_types_that_are_none() {
        for (format, rate) in
            [("pcm_s16le", 7999), ("mulaw", 48_001), ("MULAW", 8000), ("opus", 48_000), ("", 0)]
        {
            assert_eq!(TransportFormat::parse(format, rate), None, "{format} {rate}");
        }
        // A type means something in its own direction only.
        let end = r#"{"type":"end-call"}"#;
        assert!(matches!(classify_text(TransportWay::Down, end), Ok(TransportText::Other(Some(_)))));
        let interrupted = r#"{"type":"user-interrupted"}"#;
        assert!(matches!(classify_text(TransportWay::Up, interrupted), Ok(TransportText::Other(Some(_)))));
        assert_eq!(classify_text(TransportWay::Up, "{"), Ok(TransportText::Other(None)));
        let long = " ".repeat(MAX_TEXT_BYTES + 1);
        assert_eq!(classify_text(TransportWay::Up, &long), Err(Refusal::Close(CloseReason::TooLarge)));
    }

    #[test]
    fn only_the_caller_speaks_in_real_time() {
        let now = monotonic();
        let mulaw = TransportFormat::parse("mulaw", 8000).unwrap();
        let minute = vec![0xff; 8000 * 60];
        let mut down = TransportDecoder::new(mulaw, TransportWay::Down);
        assert!(down.binary(now, &minute).is_ok());
        let mut up = TransportDecoder::new(mulaw, TransportWay::Up);
        assert_eq!(up.binary(now, &minute).err(), Some(Refusal::Close(CloseReason::TooFast)));
        let long = vec![0; MAX_BINARY_BYTES + 1];
        assert_eq!(down.binary(now, &long).err(), Some(Refusal::Close(CloseReason::TooLarge)));
    }
}
