//! The live call: passes messages between a provider and an agent, verbatim and in order, and hands copies to whoever
//! listens. Never waits for recording, and never stops reading a provider.
//!
//! Knows both sockets. Must not know sealing, the journal, the store or keys.

mod counts;
mod dial;
mod overheard;
mod passed;
mod pulse;
mod pump;
mod queue;
mod socket;

pub use dial::{DialError, Dialer, Handshake, MAX_MESSAGE_BYTES, Reach, UpstreamSocket};
pub use overheard::{Copy, Listener, Listening, Missed, Side, Verdict, overhear};
pub use passed::{Passed, Traffic};
pub use pump::{Call, Ended, Settings, relay};
