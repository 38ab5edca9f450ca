//! Twilio Media Streams: JSON text messages with μ-law audio in base64.
//!
//! Field order, extra fields and numbers as text or number are all accepted; ids, format and size are not negotiable.
//! A damaged message is dropped, never the call. Source: Twilio's pages "Media Streams – WebSocket Messages" and
//! "Stream"; where they are silent, `docs/TWILIO.md` says what was seen and what is our rule.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::domain::ids::TrackId;

use super::twilio_scan::{ScannedMedia, scan_media};
use super::{
    CloseReason, Digit, DropBudget, DropReason, Event, IgnoreReason, Media, Payload, Refusal, StreamStart,
};

/// Nesting of JSON that is still parsed. Twilio's messages have three levels.
const MAX_DEPTH: usize = 32;
/// The largest whole number that every JSON implementation keeps exactly.
const MAX_NUMBER: u64 = 1 << 53;
/// Custom parameters of one stream; Twilio's REST interface stops at 99.
const MAX_PARAMETERS: usize = 128;

/// Twilio's account id: `AC` and 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountSid(String);

/// Why a text is no account; it does not show the text, which may be a token in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no account; allowed: \"AC\" and 32 hexadecimal digits")]
pub struct InvalidAccountSid;

impl FromStr for AccountSid {
    type Err = InvalidAccountSid;

    fn from_str(text: &str) -> Result<Self, InvalidAccountSid> {
        if is_sid(text, "AC") { Ok(Self(text.to_owned())) } else { Err(InvalidAccountSid) }
    }
}

impl AccountSid {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Twilio's id of a call: `CA` and 32 hexadecimal digits, so that it can stand in a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSid(String);

/// Why a text is no call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no call; allowed: \"CA\" and 32 hexadecimal digits")]
pub struct InvalidCallSid;

impl FromStr for CallSid {
    type Err = InvalidCallSid;

    fn from_str(text: &str) -> Result<Self, InvalidCallSid> {
        if is_sid(text, "CA") { Ok(Self(text.to_owned())) } else { Err(InvalidCallSid) }
    }
}

impl CallSid {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Decodes the messages of one stream, in order.
pub struct TwilioDecoder {
    accounts: Vec<AccountSid>,
    drops: DropBudget,
    phase: Phase,
}

enum Phase {
    /// Before `start`.
    Open,
    /// Between `start` and `stop`.
    Live(Identity),
    /// After `stop`.
    Stopped,
}

#[derive(PartialEq, Eq)]
struct Identity {
    account: Sid,
    call: Sid,
    stream: Sid,
}

/// One of Twilio's ids, two letters and 32 hexadecimal digits. Every message is compared with one, so it lies in place.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sid([u8; SID_BYTES]);

/// The length of all ids.
const SID_BYTES: usize = 34;

impl Sid {
    fn new(text: &str, prefix: &str) -> Option<Self> {
        if is_sid(text, prefix) { text.as_bytes().try_into().ok().map(Self) } else { None }
    }

    fn as_str(&self) -> &str {
        // Only ever made of text.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    fn is(&self, text: &str) -> bool {
        self.0 == text.as_bytes()
    }
}

impl TwilioDecoder {
    /// Decodes for a tenant that has these accounts; closes the stream after more than `max_drops` dropped messages.
    pub fn new(accounts: Vec<AccountSid>, max_drops: u32) -> Self {
        Self { accounts, drops: DropBudget::new(max_drops), phase: Phase::Open }
    }

    /// Decodes one text message.
    ///
    /// # Errors
    /// [`Refusal::Drop`]: go on without it. [`Refusal::Close`]: close the connection and finish what is stored.
    pub fn decode<'m>(&mut self, message: &'m str) -> Result<Event<'m>, Refusal> {
        if let Some(scanned) = scan_media(message) {
            return self.scanned_media(&scanned);
        }
        self.parsed(message)
    }

    /// Reads a little of what the next message is compared with, so that it is in the processor's cache by then.
    pub fn prefetch(&self) {
        if let Phase::Live(live) = &self.phase {
            black_box(live.stream.0.first().copied());
        }
    }

    /// Counts a message that was dropped for `reason` and answers what to do about it.
    pub fn dropped(&mut self, reason: DropReason) -> Refusal {
        self.drops.spend(reason)
    }

    /// Whether `start` was accepted.
    pub fn has_started(&self) -> bool {
        !matches!(self.phase, Phase::Open)
    }

    /// Whether `stop` was seen.
    pub fn has_stopped(&self) -> bool {
        matches!(self.phase, Phase::Stopped)
    }

    /// Returns the call of the stream while it lives, and its account, which is one of those it decodes for.
    pub fn call(&self) -> Option<(AccountSid, CallSid)> {
        match &self.phase {
            Phase::Live(live) => live.account.as_str().parse().ok().zip(live.call.as_str().parse().ok()),
            Phase::Open | Phase::Stopped => None,
        }
    }

    fn scanned_media<'m>(&mut self, scanned: &ScannedMedia<'m>) -> Result<Event<'m>, Refusal> {
        self.check_live(Some(scanned.stream))?;
        Ok(Event::Media(Media {
            track: if scanned.outbound { TrackId::AGENT } else { TrackId::CALLER },
            sequence: Some(scanned.sequence),
            timestamp_ms: Some(scanned.timestamp_ms),
            payload: Payload::new(scanned.payload),
        }))
    }

    fn parsed<'m>(&mut self, message: &str) -> Result<Event<'m>, Refusal> {
        if depth(message) > MAX_DEPTH {
            return Err(self.dropped(DropReason::TooDeep));
        }
        let Ok(Value::Object(mut fields)) = serde_json::from_str(message) else {
            return Err(self.dropped(DropReason::NotAnEvent));
        };
        let Some(Value::String(event)) = fields.remove("event") else {
            return Err(self.dropped(DropReason::NotAnEvent));
        };
        if matches!(self.phase, Phase::Stopped) {
            return Err(self.dropped(DropReason::AfterStop));
        }
        let sequence = number(fields.get("sequenceNumber"));
        match event.as_str() {
            "connected" => Ok(Event::Connected),
            "start" => self.start(&fields),
            "media" => self.media(fields),
            "mark" => self.mark(&fields),
            "dtmf" => self.dtmf(&fields),
            "stop" => self.stop(&fields),
            _ => Ok(Event::Ignored { sequence, reason: IgnoreReason::UnknownEvent }),
        }
    }

    fn start<'m>(&mut self, fields: &Map<String, Value>) -> Result<Event<'m>, Refusal> {
        let bad_start = Refusal::Close(CloseReason::BadStart);
        let start = fields.get("start").and_then(Value::as_object).ok_or(bad_start)?;
        let identity = read_identity(fields, start).ok_or(bad_start)?;
        if let Phase::Live(live) = &self.phase {
            if *live == identity {
                return Err(self.dropped(DropReason::RepeatedStart));
            }
            return Err(Refusal::Close(CloseReason::OtherStream));
        }
        if !self.accounts.iter().any(|account| identity.account.is(account.as_str())) {
            return Err(Refusal::Close(CloseReason::ForeignAccount));
        }
        if !is_mulaw(start.get("mediaFormat")) {
            return Err(Refusal::Close(CloseReason::UnsupportedFormat));
        }
        let stream_start = StreamStart {
            account: identity.account.as_str().to_owned(),
            call: identity.call.as_str().to_owned(),
            stream: identity.stream.as_str().to_owned(),
            parameters: read_parameters(start.get("customParameters")),
            sequence: number(fields.get("sequenceNumber")),
        };
        self.phase = Phase::Live(identity);
        Ok(Event::Start(Box::new(stream_start)))
    }

    fn media<'m>(&mut self, mut fields: Map<String, Value>) -> Result<Event<'m>, Refusal> {
        self.check_live(fields.get("streamSid").and_then(Value::as_str))?;
        let sequence = number(fields.get("sequenceNumber"));
        let Some(Value::Object(mut media)) = fields.remove("media") else {
            return Err(self.dropped(DropReason::BadMedia));
        };
        let track = match media.get("track").map(Value::as_str) {
            None | Some(Some("inbound")) => TrackId::CALLER,
            Some(Some("outbound")) => TrackId::AGENT,
            Some(_) => return Err(self.dropped(DropReason::UnknownTrack)),
        };
        let payload = match media.remove("payload") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(payload)) => payload,
            Some(_) => return Err(self.dropped(DropReason::BadMedia)),
        };
        let timestamp_ms = number(media.get("timestamp"));
        Ok(Event::Media(Media { track, sequence, timestamp_ms, payload: Payload::new(payload) }))
    }

    fn mark<'m>(&mut self, fields: &Map<String, Value>) -> Result<Event<'m>, Refusal> {
        let sequence = self.check_other(fields)?;
        let name = fields.get("mark").and_then(|mark| mark.get("name")).and_then(Value::as_str);
        Ok(match name {
            Some(name) => Event::Mark { sequence, name: name.to_owned() },
            None => Event::Ignored { sequence, reason: IgnoreReason::Incomplete },
        })
    }

    fn dtmf<'m>(&mut self, fields: &Map<String, Value>) -> Result<Event<'m>, Refusal> {
        let sequence = self.check_other(fields)?;
        let digit = fields.get("dtmf").and_then(|dtmf| dtmf.get("digit")).and_then(Value::as_str);
        Ok(match digit.and_then(Digit::parse) {
            Some(digit) => Event::Dtmf { sequence, digit },
            None => Event::Ignored { sequence, reason: IgnoreReason::Incomplete },
        })
    }

    fn stop<'m>(&mut self, fields: &Map<String, Value>) -> Result<Event<'m>, Refusal> {
        let sequence = self.check_other(fields)?;
        self.phase = Phase::Stopped;
        Ok(Event::Stop { sequence })
    }

    /// Checks a message other than audio: its stream, if it names one and ours is known.
    fn check_other(&self, fields: &Map<String, Value>) -> Result<Option<u64>, Refusal> {
        if let (Phase::Live(live), Some(stream)) = (&self.phase, fields.get("streamSid"))
            && !stream.as_str().is_some_and(|stream| live.stream.is(stream))
        {
            return Err(Refusal::Close(CloseReason::OtherStream));
        }
        Ok(number(fields.get("sequenceNumber")))
    }

    fn check_live(&mut self, stream: Option<&str>) -> Result<(), Refusal> {
        match &self.phase {
            Phase::Open => Err(Refusal::Close(CloseReason::MediaBeforeStart)),
            Phase::Stopped => Err(self.dropped(DropReason::AfterStop)),
            Phase::Live(live) if stream.is_some_and(|stream| !live.stream.is(stream)) => {
                Err(Refusal::Close(CloseReason::OtherStream))
            }
            Phase::Live(_) => Ok(()),
        }
    }
}

fn read_identity(fields: &Map<String, Value>, start: &Map<String, Value>) -> Option<Identity> {
    let sid = |value: Option<&Value>, prefix| Sid::new(value?.as_str()?, prefix);
    let account = sid(start.get("accountSid"), "AC")?;
    let call = sid(start.get("callSid"), "CA")?;
    let (inner, outer) = (start.get("streamSid"), fields.get("streamSid"));
    let stream = sid(inner.or(outer), "MZ")?;
    let agree = inner.is_none() || outer.is_none() || inner == outer;
    agree.then_some(Identity { account, call, stream })
}

/// Absent: Twilio's constant is assumed.
fn is_mulaw(format: Option<&Value>) -> bool {
    let Some(format) = format else { return true };
    let is = |name: &str, wanted: u64| number(format.get(name)) == Some(wanted);
    let encoding = format.get("encoding").and_then(Value::as_str);
    encoding == Some("audio/x-mulaw") && is("sampleRate", 8000) && is("channels", 1)
}

/// Values that are not text are left out.
fn read_parameters(parameters: Option<&Value>) -> BTreeMap<String, String> {
    let texts = parameters.and_then(Value::as_object).into_iter().flatten().filter_map(|(name, value)| {
        let value = value.as_str()?;
        Some((name.clone(), value.to_owned()))
    });
    texts.take(MAX_PARAMETERS).collect()
}

/// A whole number up to 2^53, as text or as a number. Anything else is no number.
fn number(value: Option<&Value>) -> Option<u64> {
    let number = match value? {
        Value::String(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse().ok()?
        }
        Value::Number(number) => number.as_u64()?,
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    (number <= MAX_NUMBER).then_some(number)
}

/// Whether a text is an id of Twilio's: a prefix and 32 hexadecimal digits.
pub(crate) fn is_sid(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// How deep brackets nest outside of texts. Cheap, and made before any parser recurses.
fn depth(message: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0, false, false);
    for byte in message.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
