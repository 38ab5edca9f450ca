//! The provider's side: TLS, websockets, authentication, limits. Must not know S3, manifests or KEKs.

mod admission;
mod connection;
mod hangup;
mod limits;
mod listener;
mod relayed;
mod samples;
mod stream;
pub mod tls;
pub mod twilio;
pub mod vapi;

use std::net::IpAddr;

pub use hangup::HangUps;
pub use limits::{Limited, StreamLimits, StreamPermit};
pub use listener::serve_public;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The address that counts: that of the socket, or the client's if a trusted proxy names it.
    pub source: IpAddr,
}
