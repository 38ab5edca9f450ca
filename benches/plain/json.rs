//! A media message decoded as most programs would: a typed struct, `serde_json`, the crate `base64`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Twilio's media message; text borrows from it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message<'a> {
    event: &'a str,
    sequence_number: &'a str,
    #[serde(borrow)]
    media: Media<'a>,
    stream_sid: &'a str,
}

#[derive(Deserialize)]
struct Media<'a> {
    track: &'a str,
    timestamp: &'a str,
    payload: &'a str,
}

/// What a recorder needs of a message.
pub(crate) struct Decoded {
    pub(crate) sequence: u64,
    pub(crate) outbound: bool,
    pub(crate) timestamp_ms: u64,
    pub(crate) audio: Vec<u8>,
}

/// Decodes one media message of the stream `stream`.
pub(crate) fn decode(message: &str, stream: &str) -> Decoded {
    let message: Message<'_> = serde_json::from_str(message).expect("the input is a media message");
    assert!(message.event == "media" && message.stream_sid == stream);
    Decoded {
        sequence: message.sequence_number.parse().expect("the input has a number"),
        outbound: message.media.track == "outbound",
        timestamp_ms: message.media.timestamp.parse().expect("the input has a time"),
        audio: STANDARD.decode(message.media.payload).expect("the input has audio"),
    }
}
