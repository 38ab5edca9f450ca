//! The texts that Twilio sends, byte for byte in its key order and without spaces.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Twilio's names of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallIds {
    /// `AC` and 32 hexadecimal digits.
    pub account: String,
    /// `CA` and 32 hexadecimal digits.
    pub call: String,
    /// `MZ` and 32 hexadecimal digits.
    pub stream: String,
}

impl CallIds {
    /// Names a call and its stream by these bytes, which are best random.
    pub fn new(account: &str, call: &[u8; 16], stream: &[u8; 16]) -> Self {
        Self { account: account.to_owned(), call: sid("CA", call), stream: sid("MZ", stream) }
    }
}

fn sid(prefix: &str, bytes: &[u8; 16]) -> String {
    format!("{prefix}{:032x}", u128::from_be_bytes(*bytes))
}

/// Whose voice, from Twilio's viewpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What Twilio hears: the caller.
    Inbound,
    /// What Twilio plays to the caller: the agent.
    Outbound,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Writes the messages of one stream and keeps their numbers: one sequence over all, one chunk count per track.
pub struct TwilioMessages {
    ids: CallIds,
    sequence: u64,
    chunks: [u64; 2],
}

impl TwilioMessages {
    /// Begins a stream. The ids are written as they are and must need no escapes in JSON.
    pub fn new(ids: CallIds) -> Self {
        Self { ids, sequence: 0, chunks: [0; 2] }
    }

    /// Writes `start`.
    pub fn start(&mut self, tracks: &[Direction], parameters: &BTreeMap<String, String>) -> String {
        let sequence = self.next_sequence();
        let CallIds { account, call, stream } = &self.ids;
        let tracks = tracks.iter().map(|track| format!("\"{}\"", track.name())).collect::<Vec<_>>().join(",");
        let parameters = serde_json::json!(parameters);
        format!(
            r#"{{"event":"start","sequenceNumber":"{sequence}","start":{{"accountSid":"{account}","streamSid":"{stream}","callSid":"{call}","tracks":[{tracks}],"mediaFormat":{{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"customParameters":{parameters}}},"streamSid":"{stream}"}}"#
        )
    }

    /// Writes `media` with audio that is already base64.
    pub fn media(&mut self, direction: Direction, timestamp_ms: u64, payload: &str) -> String {
        let sequence = self.next_sequence();
        let [inbound, outbound] = &mut self.chunks;
        let chunk = match direction {
            Direction::Inbound => inbound,
            Direction::Outbound => outbound,
        };
        *chunk += 1;
        // Everything but the payload is at most 190 bytes.
        let mut text = String::with_capacity(payload.len() + 192);
        write!(
            text,
            r#"{{"event":"media","sequenceNumber":"{sequence}","media":{{"track":"{}","chunk":"{chunk}","timestamp":"{timestamp_ms}","payload":"{payload}"}},"streamSid":"{}"}}"#,
            direction.name(),
            self.ids.stream,
        )
        .expect("writing to a String never fails");
        text
    }

    /// Writes that a mark of the agent has come back.
    pub fn mark(&mut self, name: &str) -> String {
        let (sequence, name) = (self.next_sequence(), serde_json::json!(name));
        let stream = &self.ids.stream;
        format!(
            r#"{{"event":"mark","sequenceNumber":"{sequence}","streamSid":"{stream}","mark":{{"name":{name}}}}}"#
        )
    }

    /// Writes that the caller has pressed a key.
    pub fn dtmf(&mut self, digit: char) -> String {
        let sequence = self.next_sequence();
        let stream = &self.ids.stream;
        format!(
            r#"{{"event":"dtmf","streamSid":"{stream}","sequenceNumber":"{sequence}","dtmf":{{"track":"inbound_track","digit":"{digit}"}}}}"#
        )
    }

    /// Writes `stop`.
    pub fn stop(&mut self) -> String {
        let sequence = self.next_sequence();
        let CallIds { account, call, stream } = &self.ids;
        format!(
            r#"{{"event":"stop","sequenceNumber":"{sequence}","streamSid":"{stream}","stop":{{"accountSid":"{account}","callSid":"{call}"}}}}"#
        )
    }

    /// Takes the next number without a message: the hole that a message leaves which Twilio threw away.
    pub fn skip(&mut self) {
        self.sequence += 1;
    }

    /// Returns the names of the stream.
    pub fn ids(&self) -> &CallIds {
        &self.ids
    }

    /// Returns `connected`, which has no number.
    pub fn connected() -> &'static str {
        r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;
    use crate::domain::ids::TrackId;
    use crate::domain::provider::Event;
    use crate::domain::provider::twilio::TwilioDecoder;
    use crate::simulate::speech::{CHUNK_MS, DEMO_CALLER, Track};

    const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";

    fn fixture(name: &str) -> String {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/vectors/twilio", name].iter().collect();
        std::fs::read_to_string(path).unwrap()
    }

    fn text<'a>(message: &'a Value, path: &str) -> &'a str {
        message.pointer(path).and_then(Value::as_str).unwrap()
    }

    /// Writes a recorded call again from nothing but its values; answers how many messages that were.
    fn rewrite(transcript: &str) -> usize {
        let mut messages = None;
        for line in transcript.lines() {
            let recorded: Value = serde_json::from_str(line).unwrap();
            let event = text(&recorded, "/event");
            if event == "connected" {
                assert_eq!(TwilioMessages::connected(), line);
                continue;
            }
            let messages = messages.get_or_insert_with(|| {
                let start = |name: &str| text(&recorded, &format!("/start/{name}")).to_owned();
                let ids = CallIds {
                    account: start("accountSid"),
                    call: start("callSid"),
                    stream: start("streamSid"),
                };
                TwilioMessages::new(ids)
            });
            let written = match event {
                "start" => {
                    let both = [Direction::Inbound, Direction::Outbound];
                    // The fixture's parameters are in no order of their own, so they are compared as values.
                    let parameters = serde_json::from_value(recorded["start"]["customParameters"].clone());
                    let written = messages.start(&both, &parameters.unwrap());
                    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), recorded);
                    assert_eq!(
                        written.split("customParameters").next(),
                        line.split("customParameters").next()
                    );
                    line.to_owned()
                }
                "media" => {
                    let outbound = text(&recorded, "/media/track") == "outbound";
                    let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
                    let timestamp = text(&recorded, "/media/timestamp").parse().unwrap();
                    messages.media(direction, timestamp, text(&recorded, "/media/payload"))
                }
                "stop" => messages.stop(),
                other => panic!("{other}"),
            };
            assert_eq!(written, line);
        }
        transcript.lines().count()
    }

    #[test]
    fn messages_equal_recorded_ones() {
        assert_eq!(rewrite(&fixture("twilio-uni-both-tracks.jsonl")), 201);
    }

    #[test]
    fn every_message_is_decoded_and_the_audio_comes_back() {
        let ids = CallIds::new(ACCOUNT, &[0xab; 16], &[1; 16]);
        assert_eq!(ids.call, format!("CA{}", "ab".repeat(16)));
        let mut decoder = TwilioDecoder::new(vec![ACCOUNT.parse().unwrap()], 0);
        let mut messages = TwilioMessages::new(ids.clone());
        decoder.decode(TwilioMessages::connected()).unwrap();
        let parameters = BTreeMap::from([("say \"hi\"".to_owned(), "\\ é\n".to_owned())]);
        let start = messages.start(&[Direction::Inbound], &parameters);
        let Event::Start(start) = decoder.decode(&start).unwrap() else { panic!("a start") };
        assert_eq!((start.call, start.stream, start.parameters), (ids.call, ids.stream, parameters));

        let track = Track::whole(DEMO_CALLER);
        let mut audio = Vec::new();
        for chunk in 0..track.chunks() {
            let timestamp = 102 + chunk as u64 * CHUNK_MS;
            let direction = [Direction::Inbound, Direction::Outbound][chunk % 2];
            let message = messages.media(direction, timestamp, track.base64(chunk).unwrap());
            let Event::Media(media) = decoder.decode(&message).unwrap() else { panic!("audio") };
            assert_eq!(media.track, [TrackId::CALLER, TrackId::AGENT][chunk % 2]);
            assert_eq!((media.sequence, media.timestamp_ms), (Some(chunk as u64 + 2), Some(timestamp)));
            media.payload.append_to(&mut audio).unwrap();
        }
        assert_eq!(audio, DEMO_CALLER);
        messages.skip();
        let last = track.chunks() as u64 + 3;
        assert_eq!(decoder.decode(&messages.stop()), Ok(Event::Stop { sequence: Some(last) }));
    }
}
