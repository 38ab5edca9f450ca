//! What an agent sends to Twilio on a bidirectional stream: `media`, `mark` and `clear`.
//!
//! It is passed on verbatim whatever it is; this is only for those who want to know what the caller will hear. Source:
//! Twilio's page "Media Streams – WebSocket Messages", "Messages you send to Twilio".

use serde::Deserialize;

use super::Payload;

/// The longest name of a mark that is remembered; Twilio's limit is not documented.
const MAX_MARK_BYTES: usize = 256;

/// One message of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said<'a> {
    /// Audio to be queued.
    Media(Payload<'a>),
    /// The queue is to be emptied.
    Clear,
    /// To be told when everything before it was played.
    Mark(String),
    /// Anything else, also what is malformed.
    Other,
}

#[derive(Deserialize)]
struct Message<'a> {
    event: &'a str,
    #[serde(borrow)]
    media: Option<Media<'a>>,
    mark: Option<Mark>,
}

#[derive(Deserialize)]
struct Media<'a> {
    /// Borrowed: base64 that is escaped in JSON, which nobody was seen to send, is read as something else.
    #[serde(borrow)]
    payload: Option<&'a str>,
}

#[derive(Deserialize)]
struct Mark {
    name: Option<String>,
}

/// Decodes a text message of an agent.
pub fn decode_said(message: &str) -> Said<'_> {
    let Ok(message) = serde_json::from_str::<Message<'_>>(message) else { return Said::Other };
    match message.event {
        "media" => match message.media.and_then(|media| media.payload) {
            Some(payload) => Said::Media(Payload::new(payload)),
            None => Said::Other,
        },
        "mark" => match message.mark.and_then(|mark| mark.name).filter(|name| name.len() <= MAX_MARK_BYTES) {
            Some(name) => Said::Mark(name),
            None => Said::Other,
        },
        "clear" => Said::Clear,
        _ => Said::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_agents_send_and_passes_over_the_rest() {
        let media = r#"{"event":"media","streamSid":"MZ1","media":{"payload":"AAEC"}}"#;
        assert_eq!(decode_said(media), Said::Media(Payload::new("AAEC")));
        let spaced = "{ \"media\" : {\"payload\":\"AAEC\", \"x\": 1}, \"event\" : \"media\" }";
        assert_eq!(decode_said(spaced), Said::Media(Payload::new("AAEC")));
        let mark = r#"{"event":"mark","streamSid":"MZ1","mark":{"name":"a\u0062"}}"#;
        assert_eq!(decode_said(mark), Said::Mark("ab".to_owned()));
        assert_eq!(decode_said(r#"{"event":"clear","streamSid":"MZ1"}"#), Said::Clear);
        for other in [
            "",
            "[]",
            "{}",
            r#"{"event":"media"}"#,
            r#"{"event":"media","media":{}}"#,
            r#"{"event":"media","media":{"payload":7}}"#,
            r#"{"event":"mark","mark":{"name":null}}"#,
            r#"{"event":"hello"}"#,
            &format!(r#"{{"event":"mark","mark":{{"name":"{}"}}}}"#, "x".repeat(257)),
        ] {
            assert_eq!(decode_said(other), Said::Other, "{other}");
        }
    }

    #[test]
    fn reads_the_recorded_messages() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/twilio/twilio-bidi-call.sent.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let counts = text.lines().fold([0; 4], |mut counts, line| {
            let kind = match decode_said(line) {
                Said::Media(_) => 0,
                Said::Clear => 1,
                Said::Mark(_) => 2,
                Said::Other => 3,
            };
            counts[kind] += 1;
            counts
        });
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] > 0 && counts[3] == 0, "{counts:?}");
    }
}
