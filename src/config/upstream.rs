//! Where calls are passed on to, and how.

use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Table;

use super::net::{SocketUrl, is_private_host};
use super::raw;
use super::route::RouteProvider;
use super::scope::{Bounds, Scope, Words};
use super::secret::{References, Secret};
use super::twilio::TwilioApi;

const CONNECT_TIMEOUT_MS: Bounds = Bounds::new(3_000, 100..=30_000);
const QUEUE_BYTES: Bounds = Bounds::new(256 * 1024, 64 * 1024..=16 * 1024 * 1024);
const HOLD_SECS: Bounds = Bounds::new(30, 1..=600);
/// Longer than the name of any header that an agent may want.
const MAX_HEADER_NAME: usize = 64;
/// Headers that the handshake is made of, or that callseal sets itself.
const RESERVED: [&str; 9] = [
    "host",
    "connection",
    "upgrade",
    "content-length",
    "transfer-encoding",
    "origin",
    "user-agent",
    "te",
    "trailer",
];
const RESERVED_BEGINNINGS: [&str; 2] = ["sec-websocket-", "x-callseal-"];

/// How the node dials and passes on.
#[derive(Debug, Clone)]
pub struct Relay {
    /// The authorities that vouch for upstreams; the system's unless given.
    pub ca_file: Option<PathBuf>,
    /// For name, TCP, TLS and websocket handshake together.
    pub connect_timeout: Duration,
    /// What may wait for a slow peer, in each direction of a call.
    pub queue_bytes: usize,
    /// Where Twilio is asked to end calls.
    pub twilio_api: TwilioApi,
}

/// The agent of a route.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Where it listens.
    pub url: SocketUrl,
    /// What is sent with each handshake; values are secrets.
    pub headers: HeaderMap,
    /// What our handshakes are signed with; each makes a signature.
    pub secrets: Vec<Secret>,
    /// What becomes of a call whose agent is lost.
    pub on_loss: OnLoss,
    /// Only addresses of the internet are dialled: somebody else than the node's operator has named the host.
    pub public_only: bool,
}

/// What becomes of a call whose agent is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLoss {
    /// The provider's connection is closed, and the call goes on as the provider's rules say.
    Close,
    /// The caller is kept for so long while the agent is dialled again; then as [`OnLoss::Close`].
    Hold(Duration),
    /// The phone call is ended, after the caller was kept for so long while the agent was dialled again.
    HangUp(Option<Duration>),
}

impl OnLoss {
    /// Returns for how long the agent is dialled again.
    pub fn hold(self) -> Option<Duration> {
        match self {
            Self::Close => None,
            Self::Hold(longest) => Some(longest),
            Self::HangUp(hold) => hold,
        }
    }

    /// Whether the phone call is ended when the agent does not come back.
    pub fn hangs_up(self) -> bool {
        matches!(self, Self::HangUp(_))
    }
}

impl Relay {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, references: &References<'_>) -> Self {
        let (scope, raw): (_, raw::Relay) = top.section("relay", table);
        let ca_file = raw.ca_file.map(|file| scope.path("ca_file", Some(file), PathBuf::new));
        Self {
            ca_file: ca_file.map(|file| references.dir.join(file)),
            connect_timeout: scope.millis("connect_timeout_ms", raw.connect_timeout_ms, &CONNECT_TIMEOUT_MS),
            queue_bytes: scope.size("queue_bytes", raw.queue_bytes, &QUEUE_BYTES),
            twilio_api: TwilioApi::check(
                (raw.twilio_api_url, raw.twilio_api_ca_file, raw.twilio_api_timeout_ms),
                &scope,
                references,
            ),
        }
    }
}

impl Upstream {
    /// Checks the table `upstream` of a route; `None` without one, or without a usable URL.
    pub(super) fn check(
        table: Option<Table>,
        route: &Scope<'_>,
        references: &References<'_>,
        provider: RouteProvider,
    ) -> Option<Self> {
        let (scope, raw): (_, raw::Upstream) = route.section("upstream", Some(table?));
        if raw.url.is_none() {
            scope.fault("url", "is missing; allowed: \"wss://host/path\"");
        }
        let headers = check_headers(&scope, references.map(&scope, "headers", raw.headers, MAX_HEADER_NAME));
        let secrets = references.list(&scope, "secrets", raw.secrets);
        let on_loss = check_on_loss(&scope, raw.on_loss.as_deref(), raw.hold_secs, provider);
        // Not shown when it is wrong: its path may be a secret.
        let url = raw.url?.parse::<SocketUrl>();
        let public_only = references.public_only();
        if public_only && url.as_ref().is_ok_and(|url| is_private_host(url.host())) {
            scope.fault(
                "url",
                "leads to this machine or network; allowed: a host of the internet, or any where the node's file has \
                 tenants.allow_private_hosts = true",
            );
        }
        if let Err(problem) = &url {
            scope.fault("url", format!("is no such URL; {problem}"));
        }
        Some(Self { url: url.ok()?, headers, secrets, on_loss, public_only })
    }
}

/// The words of `on_loss`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Close,
    Hold,
    HangUp,
}

fn check_on_loss(
    scope: &Scope<'_>,
    given: Option<&str>,
    hold_secs: Option<i64>,
    provider: RouteProvider,
) -> OnLoss {
    let words = Words {
        default: Word::Close,
        allowed: &[("close", Word::Close), ("hold", Word::Hold), ("hangup", Word::HangUp)],
        later: &[],
    };
    let word = scope.word("on_loss", given, &words);
    let hold = scope.secs("hold_secs", hold_secs, &HOLD_SECS);
    match word {
        Word::Close => {
            if hold_secs.is_some() {
                scope.fault(
                    "hold_secs",
                    "has no meaning without on_loss = \"hold\" or \"hangup\"; allowed: leave it out",
                );
            }
            OnLoss::Close
        }
        Word::Hold => OnLoss::Hold(hold),
        Word::HangUp if provider == RouteProvider::Twilio => OnLoss::HangUp(hold_secs.map(|_| hold)),
        Word::HangUp => {
            scope.fault(
                "on_loss",
                "\"hangup\" is given, but the phone call is Vapi's and not ours to end; allowed: \"close\", \"hold\"",
            );
            OnLoss::Close
        }
    }
}

fn check_headers(scope: &Scope<'_>, given: impl IntoIterator<Item = (String, Secret)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, secret) in given {
        let lower = name.to_ascii_lowercase();
        let option = format!("headers.{name}");
        let is_reserved = RESERVED.contains(&lower.as_str())
            || RESERVED_BEGINNINGS.iter().any(|beginning| lower.starts_with(beginning));
        let parsed = HeaderName::from_bytes(lower.as_bytes()).ok().filter(|_| !is_reserved);
        let Some(name) = parsed else {
            scope.fault(&option, "is set by callseal itself; allowed: another header");
            continue;
        };
        match HeaderValue::from_bytes(secret.expose()) {
            Ok(mut value) => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            Err(_) => {
                scope.fault(&option, "holds what no header may; allowed: printable characters on one line")
            }
        }
    }
    headers
}
