//! What a call is to be.

use std::collections::BTreeMap;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::domain::provider::twilio_signature::sign_url;
use crate::simulate::messages::{CallIds, Direction};
use crate::simulate::speech::{CHUNK_MS, Track};
use crate::simulate::tls::Endpoint;

/// Everything about one call. Made by [`CallPlan::new`] as a plain call of one track; change what shall differ.
#[derive(Clone)]
pub struct CallPlan {
    /// The server.
    pub endpoint: Endpoint,
    /// The path of the stream's URL, such as `/twilio/v1/acme-dental/reception`.
    pub target: String,
    /// What stands in `x-twilio-signature`.
    pub signing: Signing,
    /// Headers that Twilio does not send, for tests.
    pub extra_headers: Vec<(String, String)>,
    /// Account, call and stream.
    pub ids: CallIds,
    /// What the caller says: the inbound track.
    pub caller: Track,
    /// What the agent says: the outbound track, if the stream has one.
    pub agent: Option<Track>,
    /// `customParameters` of the start message.
    pub parameters: BTreeMap<String, String>,
    /// Timestamp of the first audio of both tracks. Twilio's is not 0: 102, 155 and 171 ms were seen.
    pub first_timestamp_ms: u64,
    /// How fast the audio is sent.
    pub pacing: Pacing,
    /// How much later than the caller's an agent's message of the same 20 ms is sent, in call time.
    ///
    /// The tracks of a real call come from two packet streams; 10 ms makes each message wake the server of its own.
    pub agent_delay: Duration,
    /// How the call ends.
    pub end: CallEnd,
}

/// How the handshake is signed.
#[derive(Clone)]
pub enum Signing {
    /// With an account's auth token.
    AuthToken(Zeroizing<Vec<u8>>),
    /// With this text.
    Given(String),
    /// Not at all.
    Missing,
}

/// How fast audio is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pacing {
    /// 20 ms of audio every 20 ms.
    RealTime,
    /// So many times faster than real time.
    Scaled(f64),
    /// One message after the other.
    AsFastAsPossible,
}

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallEnd {
    /// `stop`, then a websocket close: the call was hung up.
    Stop,
    /// A websocket close without `stop`.
    CloseWithoutStop,
    /// A TCP reset.
    Drop,
}

impl CallPlan {
    /// Plans a call in real time with one track, signed with `auth_token`, that ends with `stop`.
    pub fn new(endpoint: Endpoint, target: &str, auth_token: &[u8], ids: CallIds, caller: Track) -> Self {
        Self {
            endpoint,
            target: target.to_owned(),
            signing: Signing::AuthToken(Zeroizing::new(auth_token.to_vec())),
            extra_headers: Vec::new(),
            ids,
            caller,
            agent: None,
            parameters: BTreeMap::new(),
            first_timestamp_ms: 102,
            pacing: Pacing::RealTime,
            agent_delay: Duration::from_millis(CHUNK_MS / 2),
            end: CallEnd::Stop,
        }
    }

    /// Returns how many intervals of 20 ms the longer track has.
    pub(super) fn ticks(&self) -> usize {
        self.caller.chunks().max(self.agent.as_ref().map_or(0, Track::chunks))
    }

    pub(super) fn track(&self, direction: Direction) -> Option<&Track> {
        match direction {
            Direction::Inbound => Some(&self.caller),
            Direction::Outbound => self.agent.as_ref(),
        }
    }

    /// Returns how long after the first audio this one is due; `None` where nothing is paced.
    pub(super) fn due(&self, position_ms: u64, direction: Direction) -> Option<Duration> {
        let delay = match direction {
            Direction::Inbound => Duration::ZERO,
            Direction::Outbound => self.agent_delay,
        };
        let call_time = Duration::from_millis(position_ms) + delay;
        match self.pacing {
            Pacing::RealTime => Some(call_time),
            Pacing::Scaled(factor) => Duration::try_from_secs_f64(call_time.as_secs_f64() / factor).ok(),
            Pacing::AsFastAsPossible => None,
        }
    }

    pub(super) fn signature(&self) -> Option<String> {
        match &self.signing {
            Signing::AuthToken(token) => {
                Some(sign_url(token, &format!("{}{}", self.endpoint.public_url(), self.target)))
            }
            Signing::Given(text) => Some(text.clone()),
            Signing::Missing => None,
        }
    }
}
