//! Vapi as a recorder sees it: server messages about a call, and the socket on which the call can be heard.
//!
//! What Vapi does not document is as others have seen it: 16,000 Hz, two channels, 20 ms a message.

use hyper::Method;
use serde_json::{Value, json};

use crate::domain::playback::wav::ulaw_to_pcm16;

use super::agent::{AgentCall, AgentServer};
use super::https::{HttpsClient, HttpsError, Response};
use super::speech::{DEMO_AGENT, DEMO_CALLER};

/// Samples per second of one channel.
pub const LISTEN_RATE: u32 = 16_000;
/// Bytes of 20 ms of both channels.
pub const LISTEN_CHUNK_BYTES: usize = 1280;

/// Where calls are heard.
pub struct ListenServer(AgentServer);

impl ListenServer {
    /// Listens on a free port of this machine as `localhost`; `refuse_with` answers every handshake with that status.
    ///
    /// # Errors
    /// No certificate, no port.
    pub async fn start(refuse_with: Option<u16>) -> anyhow::Result<Self> {
        Ok(Self(AgentServer::start(refuse_with).await?))
    }

    /// Returns the certificate that vouches for it.
    pub fn certificate_pem(&self) -> &str {
        self.0.certificate_pem()
    }

    /// Waits for the next listener; `None` when nothing listens any more.
    pub async fn listener(&mut self) -> Option<AgentCall> {
        self.0.call().await
    }

    /// Describes a call that can be heard here.
    pub fn describe(&self, call: &str) -> VapiMessages {
        VapiMessages { call: call.to_owned(), authority: format!("localhost:{}", self.0.address().port()) }
    }
}

/// Writes the server messages of one call.
#[derive(Debug, Clone)]
pub struct VapiMessages {
    /// The call's id.
    pub call: String,
    /// Host and port of its sockets.
    pub authority: String,
}

impl VapiMessages {
    /// The number of the other party.
    pub const CUSTOMER: &'static str = "+12025550188";
    /// The tenant's number.
    pub const OWN: &'static str = "+12025550123";
    /// The organisation.
    pub const ORG: &'static str = "2f6a7c10-0d4b-4b5f-9d0e-1a7b3c5d9e20";
    /// The assistant.
    pub const ASSISTANT: &'static str = "7d1f0c52-9a3e-4c1b-8a55-20f4c6b9e311";

    /// Returns where the call can be heard.
    pub fn listen_url(&self) -> String {
        format!("wss://{}/{}/listen", self.authority, self.call)
    }

    /// Says that the call is in this state, at this time (Unix milliseconds).
    pub fn status(&self, status: &str, sent_ms: u64) -> Value {
        let reason = (status == "ended").then_some("customer-ended-call");
        self.message("status-update", sent_ms, json!({"status": status, "endedReason": reason}))
    }

    /// Says all there is to know of a call that is over, with much that a recorder must not keep.
    pub fn report(&self, sent_ms: u64) -> Value {
        let more = json!({
            "endedReason": "customer-ended-call",
            "startedAt": "2026-08-21T15:04:08.311Z",
            "transcript": "AI: Front desk. User: The secret of Zora Quillfeather.",
            "artifact": {
                "presignedStereoUrl": "https://presigned.example.test/stereo.wav?sig=not-real",
                "messages": [{"role": "user", "message": "The secret of Zora Quillfeather."}],
            },
        });
        self.message("end-of-call-report", sent_ms, more)
    }

    /// Posts a message to a tenant's URL as Vapi does, with the secret that the tenant has chosen.
    ///
    /// # Errors
    /// [`HttpsError`]. Every status is an answer, not an error.
    pub async fn post(
        &self,
        https: &HttpsClient,
        target: &str,
        secret: &str,
        message: &Value,
    ) -> Result<Response, HttpsError> {
        let headers = [
            ("x-vapi-secret", secret),
            ("content-type", "application/json"),
            ("x-call-id", self.call.as_str()),
        ];
        https.request(Method::POST, target, &headers, message.to_string().into()).await
    }

    fn message(&self, kind: &str, sent_ms: u64, more: Value) -> Value {
        let mut message = json!({
            "type": kind,
            "timestamp": sent_ms,
            "call": {
                "id": self.call,
                "orgId": Self::ORG,
                "type": "inboundPhoneCall",
                // That of the call's creation, as Vapi sends it.
                "status": "ringing",
                "assistantId": Self::ASSISTANT,
                "monitor": {
                    "listenUrl": self.listen_url(),
                    "controlUrl": format!("https://{}/{}/control", self.authority, self.call),
                },
            },
            "phoneNumber": {"number": Self::OWN},
            "customer": {"number": Self::CUSTOMER},
        });
        if let (Some(fields), Value::Object(more)) = (message.as_object_mut(), more) {
            fields.extend(more);
        }
        json!({"message": message})
    }
}

/// What a listen socket sends of the demonstration call.
pub struct ListenSpeech {
    /// Both channels, interleaved: the caller on channel 0.
    pub interleaved: Vec<u8>,
    /// Each channel.
    pub channels: [Vec<u8>; 2],
}

impl ListenSpeech {
    /// Takes so many milliseconds of the demonstration call, from a time in it on.
    pub fn new(from_ms: usize, ms: usize) -> Self {
        let pcm = |ulaw: &[u8]| -> Vec<u8> {
            let part = ulaw.iter().skip(from_ms * 8).take(ms * 8);
            // Twice the rate: every sample twice.
            part.flat_map(|code| [ulaw_to_pcm16(*code).to_le_bytes(); 2].concat()).collect()
        };
        let channels = [pcm(DEMO_CALLER), pcm(DEMO_AGENT)];
        let [caller, agent] = &channels;
        let pairs = caller.chunks_exact(2).zip(agent.chunks_exact(2));
        let interleaved = pairs.flat_map(|(caller, agent)| [caller, agent].concat()).collect();
        Self { interleaved, channels }
    }
}
