//! A telephony provider as a server sees it; used by demo, load generator and tests.
//!
//! Beside it stands [`chaos`], a bad network between the server and its object store.
//!
//! Knows the provider's side of the wire: TLS, the signed handshake, messages byte for byte as the provider writes
//! them, and their pace. Must not know how the server works: no configuration, store, key or journal.
//!
//! Every message is a websocket message, a TLS record and a write of its own, as a provider's are. Sessions are never
//! resumed, so that every call costs the server a full handshake.

pub mod agent;
pub mod chaos;
pub mod https;
pub mod lag;
pub mod messages;
pub mod received;
pub mod speech;
#[cfg(test)]
mod test_server;
pub mod tls;
pub mod transcriber;
pub mod twilio;
pub mod twilio_api;
pub mod vapi;

pub use agent::{AgentCall, AgentServer};
pub use chaos::{Chaos, Mishap, Passed, Weather};
pub use https::{HttpsClient, HttpsError, Response, StreamingResponse};
pub use lag::LagHistogram;
pub use messages::{CallIds, Direction, TwilioMessages};
pub use received::Received;
pub use speech::{CHUNK_BYTES, CHUNK_MS, Speech, Track};
pub use tls::{ConnectError, Endpoint, TlsClient};
pub use transcriber::TranscriberCall;
pub use twilio::{
    CallEnd, CallError, CallPlan, CallReport, Conversation, Pacing, Progress, Signing, TwilioCall,
};
pub use twilio_api::{ApiAnswer, ApiRequest, TwilioApiServer};
pub use vapi::{LISTEN_CHUNK_BYTES, LISTEN_RATE, ListenServer, ListenSpeech, VapiMessages};
