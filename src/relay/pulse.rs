//! How long a side has been silent, and what is done about it: a ping, then nothing is expected of it any more.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;

use crate::websocket;

use super::pump::Settings;

/// When a side was heard last.
pub(super) struct Pulse {
    heard_at: Instant,
    is_pinged: bool,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard_at: now, is_pinged: false }
    }

    pub(super) fn deadline(&self, settings: &Settings) -> Instant {
        let dead_after = if self.is_pinged { settings.dead_after } else { Duration::ZERO };
        self.heard_at + settings.ping_after + dead_after
    }

    /// Pings a side that was silent for long; `false` when it was silent after that as well, or cannot be written to.
    pub(super) fn ping<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut WebSocketStream<S>,
    ) -> bool {
        !std::mem::replace(&mut self.is_pinged, true) && websocket::ping(socket)
    }
}
