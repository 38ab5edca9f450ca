//! What telephony providers say, decoded once into [`Event`]s.
//!
//! Knows message fields, base64, frame lengths and rates. Must not know sockets, tenants or keys. Nothing after this
//! module asks whether a message is valid.

pub mod twilio;
pub mod twilio_agent;
mod twilio_scan;
pub mod twilio_signature;
pub mod vapi;
pub mod vapi_absence;
pub mod vapi_auth;
pub mod vapi_listen;
pub mod vapi_listen_url;
pub mod vapi_pcm;
pub mod vapi_transport;
pub mod vapi_webhook;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::domain::ids::TrackId;

/// Samples per millisecond of every μ-law track.
pub const SAMPLES_PER_MS: u32 = 8;

/// One decoded message of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The provider greets; carries nothing that is needed.
    Connected,
    /// The stream begins and says what it is.
    Start(Box<StreamStart>),
    /// Audio.
    Media(Media<'a>),
    /// What we had sent before this mark was played, or thrown away.
    Mark {
        /// The message's number, if it has a usable one.
        sequence: Option<u64>,
        /// The name that the agent gave it.
        name: String,
    },
    /// A key was pressed.
    Dtmf {
        /// The message's number, if it has a usable one.
        sequence: Option<u64>,
        /// One of `0-9 * # A-D`. Never logged: it can be part of a card number.
        digit: Digit,
    },
    /// The stream is over; nothing that follows counts.
    Stop {
        /// The message's number, if it has a usable one.
        sequence: Option<u64>,
    },
    /// A message that is none of our business, such as an event of a later protocol version.
    Ignored {
        /// The message's number, if it has a usable one.
        sequence: Option<u64>,
        /// Why.
        reason: IgnoreReason,
    },
}

/// What a stream says of itself when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStart {
    /// The provider's account.
    pub account: String,
    /// The provider's call.
    pub call: String,
    /// The provider's stream: one websocket.
    pub stream: String,
    /// Values set by whoever placed the call. Often personal data.
    pub parameters: BTreeMap<String, String>,
    /// The message's number, if it has a usable one.
    pub sequence: Option<u64>,
}

impl StreamStart {
    /// A stream that says nothing of itself; its call is known otherwise, or empty.
    pub fn of_call(call: String) -> Self {
        Self {
            account: String::new(),
            call,
            stream: String::new(),
            parameters: BTreeMap::new(),
            sequence: None,
        }
    }
}

/// One message with audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media<'a> {
    /// Whose voice.
    pub track: TrackId,
    /// The message's number within the stream, if it has a usable one.
    pub sequence: Option<u64>,
    /// Milliseconds since the start of the stream, if the message has a usable one.
    pub timestamp_ms: Option<u64>,
    /// The audio.
    pub payload: Payload<'a>,
}

/// The audio of one message, as the provider wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload<'a>(Written<'a>);

#[derive(Clone, PartialEq, Eq)]
enum Written<'a> {
    Base64(Cow<'a, str>),
    Bytes(&'a [u8]),
}

/// A payload that is not strict standard base64 (RFC 4648 section 4, padded).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("payload is not base64")]
pub struct BadBase64;

impl<'a> Payload<'a> {
    /// Wraps base64 text; it is checked when it is decoded.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self(Written::Base64(text.into()))
    }

    /// Wraps audio that is written as it is, in whole samples.
    pub fn bytes_of(audio: &'a [u8]) -> Self {
        Self(Written::Bytes(audio))
    }

    /// Whether there is no audio in it.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Written::Base64(text) => text.is_empty(),
            Written::Bytes(audio) => audio.is_empty(),
        }
    }

    /// Returns how many bytes it decodes to at most.
    pub fn max_bytes(&self) -> usize {
        match &self.0 {
            Written::Base64(text) => text.len() / 4 * 3 + 3,
            Written::Bytes(audio) => audio.len(),
        }
    }

    /// Returns how many bytes it decodes to if it can be decoded.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Written::Base64(text) => {
                let padding = text.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
                (text.len() / 4 * 3).saturating_sub(padding)
            }
            Written::Bytes(audio) => audio.len(),
        }
    }

    /// Decodes to the end of `out` and answers how many bytes that were.
    ///
    /// # Errors
    /// [`BadBase64`]; `out` may then hold a part and must be cut back by the caller.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<usize, BadBase64> {
        let before = out.len();
        match &self.0 {
            Written::Base64(text) => {
                base64_simd::STANDARD.decode_append(text.as_bytes(), out).map_err(|_| BadBase64)?;
            }
            Written::Bytes(audio) => out.extend_from_slice(audio),
        }
        Ok(out.len() - before)
    }
}

impl std::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Written::Base64(text) => write!(f, "Payload({} characters)", text.len()),
            Written::Bytes(audio) => write!(f, "Payload({} bytes)", audio.len()),
        }
    }
}

/// A pressed key. `Debug` does not show which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digit(char);

impl Digit {
    /// Returns the key for the text of a message.
    pub fn parse(text: &str) -> Option<Self> {
        let mut letters = text.chars();
        let digit = letters.next().filter(|c| matches!(c, '0'..='9' | '*' | '#' | 'A'..='D'))?;
        letters.next().is_none().then_some(Self(digit))
    }

    /// Returns the key, to be sealed and nothing else.
    pub fn expose(self) -> char {
        self.0
    }
}

impl std::fmt::Debug for Digit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digit")
    }
}

/// Why a message is passed over without counting against the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IgnoreReason {
    /// An event that this version does not know.
    UnknownEvent,
    /// A mark or key press without a usable value.
    Incomplete,
}

/// Why a message is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The message is dropped and counted; the stream goes on.
    Drop(DropReason),
    /// Identity, isolation or format is at stake; the connection is closed.
    Close(CloseReason),
}

/// Why a message is dropped. A closed set, used as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// A binary websocket message.
    Binary,
    /// Not JSON, not an object, or without a text `event`.
    NotAnEvent,
    /// Nested deeper than 32 levels.
    TooDeep,
    /// An audio message without the shape of one.
    BadMedia,
    /// Audio that is not base64.
    BadBase64,
    /// A track that is none of the provider's.
    UnknownTrack,
    /// The same start message once more.
    RepeatedStart,
    /// Anything after the stream's end.
    AfterStop,
}

impl DropReason {
    /// Returns the word for it in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::NotAnEvent => "not_an_event",
            Self::TooDeep => "too_deep",
            Self::BadMedia => "bad_media",
            Self::BadBase64 => "bad_base64",
            Self::UnknownTrack => "unknown_track",
            Self::RepeatedStart => "repeated_start",
            Self::AfterStop => "after_stop",
        }
    }
}

/// Why a connection is closed by us. A closed set, used as a metric label and as the close reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Audio before the stream said what it is.
    MediaBeforeStart,
    /// The start message lacks an id, or an id does not have its form.
    BadStart,
    /// The account is not one of the tenant's.
    ForeignAccount,
    /// A second, different start, or a message of another stream.
    OtherStream,
    /// Another encoding, rate or channel count than the provider's constant.
    UnsupportedFormat,
    /// A later start with another format than the first one.
    OtherFormat,
    /// A message longer than any that the provider needs.
    TooLarge,
    /// More audio than real time can hold.
    TooFast,
    /// More than the allowed number of dropped messages.
    Flood,
    /// No start message in time.
    NoStart,
}

impl CloseReason {
    /// Returns the websocket close code (RFC 6455 section 7.4.1).
    pub fn code(self) -> u16 {
        match self {
            Self::OtherFormat => 1002,
            Self::UnsupportedFormat => 1003,
            Self::TooLarge => 1009,
            Self::MediaBeforeStart
            | Self::BadStart
            | Self::ForeignAccount
            | Self::OtherStream
            | Self::TooFast
            | Self::Flood
            | Self::NoStart => 1008,
        }
    }

    /// Returns the words for it; free of personal data.
    pub fn name(self) -> &'static str {
        match self {
            Self::MediaBeforeStart => "media_before_start",
            Self::BadStart => "bad_start",
            Self::ForeignAccount => "foreign_account",
            Self::OtherStream => "other_stream",
            Self::UnsupportedFormat => "unsupported_format",
            Self::OtherFormat => "other_format",
            Self::TooLarge => "too_large",
            Self::TooFast => "too_fast",
            Self::Flood => "flood",
            Self::NoStart => "no_start",
        }
    }
}

/// Counts what is dropped of one stream: some damage is nobody's fault, much of it is an attack.
#[derive(Debug)]
pub(super) struct DropBudget {
    left: u32,
}

impl DropBudget {
    /// Allows so many messages to be dropped.
    pub(super) fn new(max_drops: u32) -> Self {
        Self { left: max_drops }
    }

    /// Counts a message that was dropped for `reason` and answers what to do about it.
    pub(super) fn spend(&mut self, reason: DropReason) -> Refusal {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Refusal::Drop(reason)
            }
            None => Refusal::Close(CloseReason::Flood),
        }
    }
}
