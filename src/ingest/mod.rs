//! The provider's side: TLS, websockets, authentication, limits. Must not know S3, manifests or KEKs.

mod connection;
mod limits;
mod listener;
mod recorder;
pub mod tls;
pub mod twilio;

pub use limits::{Limited, StreamLimits, StreamPermit};
pub use listener::serve_public;
