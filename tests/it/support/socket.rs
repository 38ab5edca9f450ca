//! A provider's websocket for tests that decide every frame, and Twilio's recorded messages to send over it.

use std::fs;

use callseal::simulate::{CallPlan, Track, TwilioCall};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::wire::{READ_TIMEOUT, Raw};
use super::{ACCOUNT, Server};
use crate::reader::repository;

/// An open websocket; frames are masked as a client's must be.
pub(crate) struct Socket(WebSocketStream<Raw>);

impl Server {
    /// Opens the websocket of a signed handshake to `/twilio/v1/{path}`; nothing is sent yet.
    pub(crate) async fn open(&self, path: &str) -> Socket {
        self.open_planned(self.plan(path, 0, Track::whole(Vec::new()))).await
    }

    /// As [`Server::open`], with another handshake.
    pub(crate) async fn open_planned(&self, plan: CallPlan) -> Socket {
        let call = TwilioCall::connect(plan, &self.tls()).await.unwrap();
        Socket(WebSocketStream::from_raw_socket(call.into_inner(), Role::Client, None).await)
    }
}

impl Socket {
    /// Sends a text message.
    pub(crate) async fn text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    /// Sends anything.
    pub(crate) async fn send(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    /// Sends anything; the server may have closed meanwhile.
    pub(crate) async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        self.0.send(message).await
    }

    /// Waits until the server has read everything that was sent: it answers a ping.
    ///
    /// # Panics
    /// When the server closes instead.
    pub(crate) async fn settle(&mut self) {
        self.send(Message::Ping(b"settle"[..].into())).await;
        loop {
            match self.next().await {
                Some(Ok(Message::Pong(data))) if data == b"settle"[..] => return,
                Some(Ok(Message::Pong(_) | Message::Ping(_))) => {}
                other => panic!("still open? {other:?}"),
            }
        }
    }

    /// Returns what the server sends next; pings are answered.
    pub(crate) async fn next(&mut self) -> Option<Result<Message, Error>> {
        timeout(READ_TIMEOUT, self.0.next()).await.expect("something in time")
    }

    /// Waits for the server's close frame; answers its code and reason. `None`: the connection ended without one.
    pub(crate) async fn closed(&mut self) -> Option<(u16, String)> {
        loop {
            match self.next().await {
                Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                    // Reading on sends the answer, which the server waits for.
                    while let Some(Ok(_)) = self.next().await {}
                    return Some((code.into(), reason.as_str().to_owned()));
                }
                Some(Ok(Message::Close(None)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// As [`Socket::closed`], but does not wait for anything.
    pub(crate) fn closed_already(&mut self) -> Option<(u16, String)> {
        match self.0.next().now_or_never()?? {
            Ok(Message::Close(Some(CloseFrame { code, reason }))) => {
                Some((code.into(), reason.as_str().to_owned()))
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Closes with a code, or without one (1005); answers the server's code.
    pub(crate) async fn close(mut self, code: Option<u16>) -> Option<u16> {
        let frame = code.map(|code| CloseFrame { code: code.into(), reason: "".into() });
        self.send(Message::Close(frame)).await;
        self.closed().await.map(|(code, _)| code)
    }

    /// Ends the connection with a TCP reset.
    pub(crate) fn reset(self) {
        self.0.get_ref().get_ref().0.set_zero_linger().unwrap();
    }

    /// Returns the TLS stream below.
    pub(crate) fn into_inner(self) -> Raw {
        self.0.into_inner()
    }
}

/// Returns the id of a stream that is not one of the fixtures'.
pub(crate) fn stream_id(number: u8) -> String {
    format!("MZ{number:032x}")
}

/// Writes the first two messages of a stream.
pub(crate) fn greeting(number: u8) -> [String; 2] {
    let (stream, call) = (stream_id(number), format!("CA{number:032x}"));
    let connected = json!({"event": "connected", "protocol": "Call", "version": "1.0.0"});
    let start = json!({
        "event": "start",
        "sequenceNumber": "1",
        "streamSid": stream,
        "start": {
            "accountSid": ACCOUNT,
            "callSid": call,
            "streamSid": stream,
            "tracks": ["inbound", "outbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {},
        },
    });
    [connected.to_string(), start.to_string()]
}

/// Writes the caller's audio number `chunk` (from 1) of a stream: 20 ms of one byte's value.
pub(crate) fn media(stream: &str, chunk: u32, value: u8) -> String {
    media_of(stream, chunk, &[value; 160])
}

/// The same of any audio.
pub(crate) fn media_of(stream: &str, chunk: u32, audio: &[u8]) -> String {
    let (sequence, timestamp) = ((chunk + 1).to_string(), (82 + chunk * 20).to_string());
    let payload = callseal::domain::sign::encode_base64(audio);
    json!({
        "event": "media",
        "sequenceNumber": sequence,
        "media": {"track": "inbound", "chunk": chunk.to_string(), "timestamp": timestamp, "payload": payload},
        "streamSid": stream,
    })
    .to_string()
}

/// Writes the end of a stream.
pub(crate) fn stop(stream: &str) -> String {
    json!({"event": "stop", "streamSid": stream}).to_string()
}

/// Reads one of Twilio's recorded files.
pub(crate) fn fixture(name: &str) -> String {
    fs::read_to_string(repository("tests/vectors/twilio").join(name)).unwrap()
}

/// Reads what is expected of the recorded files.
pub(crate) fn manifest() -> Value {
    serde_json::from_str(&fixture("twilio-manifest.json")).unwrap()
}

/// Reads the messages of a recorded call that Twilio sends.
pub(crate) fn transcript(name: &str) -> Vec<String> {
    let unwrap = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        match value["from"].as_str() {
            Some("twilio") => Some(value["msg"].to_string()),
            Some(_) => None,
            None => Some(line.to_owned()),
        }
    };
    fixture(name).lines().filter_map(unwrap).collect()
}
