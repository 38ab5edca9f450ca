//! One route of a tenant: which provider dials it, and what becomes of the audio.

use toml::Table;

use crate::domain::ids::RouteName;

use super::raw;
use super::scope::{Scope, Words};
use super::secret::References;
use super::upstream::Upstream;

/// One way for calls to come in.
#[derive(Debug, Clone)]
pub struct Route {
    /// The name in the URL; `default` is the route of a URL without one.
    pub name: RouteName,
    /// Who dials it.
    pub provider: RouteProvider,
    /// What the provider expects of this end.
    pub mode: RouteMode,
    /// Whether audio is kept.
    pub record: Record,
    /// Nobody answers on this route: audio is recorded and nothing is sent back.
    pub record_only: bool,
    /// What becomes of pressed digits.
    pub dtmf: Dtmf,
    /// Whether a stream must bring a ticket.
    pub require_ticket: bool,
    /// Whom the call is passed on to. None for forks, with `record_only`, and where nobody or a ticket says whom to dial.
    pub upstream: Option<Upstream>,
}

/// Who dials a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteProvider {
    /// Twilio media streams.
    Twilio,
    /// Vapi's custom transcriber.
    VapiTranscriber,
    /// Vapi's live listen: its webhooks tell of calls, which are then dialled.
    VapiListen,
    /// Vapi's websocket transport: the tenant's own client dials, with a ticket that says where the call goes on to.
    VapiTransport,
}

/// What a provider expects of this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteMode {
    /// `<Start><Stream>`: a copy of the call; nothing is sent back.
    Fork,
    /// `<Connect><Stream>`: the call itself, passed on to the route's upstream.
    Bidirectional,
}

/// Whether audio is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Every stream makes a recording.
    Always,
    /// Only streams of callers who have agreed, as a ticket or a parameter says.
    OnConsent,
    /// No stream does.
    Never,
}

/// What becomes of pressed digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtmf {
    /// The time is kept, the digit is not.
    Redact,
    /// The digit is kept, sealed.
    Keep,
}

impl Route {
    /// Whether calls of it are passed on.
    pub fn is_passed_on(&self) -> bool {
        self.upstream.is_some() || self.provider == RouteProvider::VapiTransport
    }

    /// Checks all routes of a tenant's file; those without a usable name are left out.
    pub(super) fn check_all(tables: Vec<Table>, scope: &Scope<'_>, references: &References<'_>) -> Vec<Self> {
        let mut routes: Vec<Self> = Vec::new();
        for (index, table) in tables.into_iter().enumerate() {
            let (scope, raw) = scope.section(&format!("route[{index}]"), Some(table));
            let Some(route) = Self::check(raw, &scope, references) else { continue };
            if routes.iter().any(|other| other.name == route.name) {
                scope.fault("name", format!("\"{}\" is already the name of another route", route.name));
            }
            routes.push(route);
        }
        routes
    }

    fn check(raw: raw::Route, scope: &Scope<'_>, references: &References<'_>) -> Option<Self> {
        let name = check_name(raw.name.as_deref(), scope);
        let provider = RouteProvider::check(raw.provider.as_deref(), scope);
        let mode = RouteMode::check(raw.mode.as_deref(), scope);
        let record = Record::check(raw.record.as_deref(), scope);
        let dtmf = Dtmf::check(raw.dtmf.as_deref(), scope);
        let record_only = raw.record_only.unwrap_or(false);
        let has_upstream = raw.upstream.is_some();
        match provider {
            RouteProvider::Twilio => {}
            RouteProvider::VapiTranscriber => refuse_for_transcriber(&raw, scope),
            RouteProvider::VapiListen => refuse_for_listen(&raw, record, scope),
            RouteProvider::VapiTransport => refuse_for_transport(&raw, scope),
        }
        let upstream = Upstream::check(raw.upstream, scope, references, provider);
        let is_answered = match provider {
            RouteProvider::Twilio => mode == RouteMode::Bidirectional,
            RouteProvider::VapiTranscriber => true,
            RouteProvider::VapiListen | RouteProvider::VapiTransport => false,
        };
        if is_answered && !record_only && !has_upstream {
            scope.fault(
                "upstream",
                "is missing, nobody would answer the call; allowed: { url = \"wss://…\" }, or record_only = true for \
                 tests",
            );
        }
        let is_fork = provider == RouteProvider::Twilio && mode == RouteMode::Fork;
        let may_have_one = matches!(provider, RouteProvider::Twilio | RouteProvider::VapiTranscriber);
        if may_have_one && has_upstream && (is_fork || record_only) {
            let why = if record_only { "record_only = true" } else { "mode = \"fork\"" };
            scope.fault(
                "upstream",
                format!("contradicts {why}, which passes nothing on; allowed: one of both"),
            );
        }
        Some(Self {
            name: name?,
            provider,
            mode,
            record,
            record_only,
            dtmf,
            require_ticket: provider == RouteProvider::VapiTransport || raw.require_ticket.unwrap_or(false),
            upstream,
        })
    }
}

/// A transcriber route is always passed on, and Vapi tells nothing of pressed keys there.
fn refuse_for_transcriber(raw: &raw::Route, scope: &Scope<'_>) {
    for (option, _) in
        [("mode", raw.mode.is_some()), ("dtmf", raw.dtmf.is_some())].iter().filter(|given| given.1)
    {
        scope.fault(option, "has no meaning with provider = \"vapi-transcriber\"; allowed: leave it out");
    }
}

/// A listen route only hears: what concerns an answer, pressed keys or a ticket has no meaning on it.
fn refuse_for_listen(raw: &raw::Route, record: Record, scope: &Scope<'_>) {
    let given = [
        ("mode", raw.mode.is_some()),
        ("record_only", raw.record_only.is_some()),
        ("dtmf", raw.dtmf.is_some()),
        ("upstream", raw.upstream.is_some()),
        ("require_ticket", raw.require_ticket.is_some()),
    ];
    for (option, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
        scope.fault(option, "has no meaning with provider = \"vapi-listen\"; allowed: leave it out");
    }
    if record == Record::OnConsent {
        scope.fault(
            "record",
            "\"on-consent\" cannot be obeyed with provider = \"vapi-listen\": nothing says so while the call runs; \
             allowed: \"always\", \"never\"",
        );
    }
}

/// The ticket says whom a transport route passes a call on to, and Vapi's line can be dialled once.
fn refuse_for_transport(raw: &raw::Route, scope: &Scope<'_>) {
    let given = [
        ("mode", raw.mode.is_some()),
        ("record_only", raw.record_only.is_some()),
        ("dtmf", raw.dtmf.is_some()),
        ("upstream", raw.upstream.is_some()),
    ];
    for (option, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
        scope.fault(option, "has no meaning with provider = \"vapi-transport\"; allowed: leave it out");
    }
    if raw.require_ticket == Some(false) {
        scope.fault(
            "require_ticket",
            "false is given, but a ticket is all that proves a call with provider = \"vapi-transport\"; allowed: true, \
             or leave it out",
        );
    }
}

fn check_name(given: Option<&str>, scope: &Scope<'_>) -> Option<RouteName> {
    if given.is_none() {
        scope.fault("name", "is missing; allowed: 1 to 63 characters of a-z, 0-9 and '-'");
    }
    scope.parse("name", given?)
}

impl RouteProvider {
    fn check(given: Option<&str>, scope: &Scope<'_>) -> Self {
        let words = Words {
            default: Self::Twilio,
            allowed: &[
                ("twilio", Self::Twilio),
                ("vapi-transcriber", Self::VapiTranscriber),
                ("vapi-listen", Self::VapiListen),
                ("vapi-transport", Self::VapiTransport),
            ],
            later: &[],
        };
        scope.word("provider", given, &words)
    }

    /// Returns the word for it in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Twilio => "twilio",
            Self::VapiTranscriber => "vapi-transcriber",
            Self::VapiListen => "vapi-listen",
            Self::VapiTransport => "vapi-transport",
        }
    }
}

impl RouteMode {
    fn check(given: Option<&str>, scope: &Scope<'_>) -> Self {
        let words = Words {
            default: Self::Fork,
            allowed: &[("fork", Self::Fork), ("bidirectional", Self::Bidirectional)],
            later: &[],
        };
        scope.word("mode", given, &words)
    }
}

impl Record {
    fn check(given: Option<&str>, scope: &Scope<'_>) -> Self {
        let words = Words {
            default: Self::Always,
            allowed: &[("always", Self::Always), ("on-consent", Self::OnConsent), ("never", Self::Never)],
            later: &[],
        };
        scope.word("record", given, &words)
    }
}

impl Dtmf {
    fn check(given: Option<&str>, scope: &Scope<'_>) -> Self {
        let words = Words {
            default: Self::Redact,
            allowed: &[("redact", Self::Redact), ("keep", Self::Keep)],
            later: &[],
        };
        scope.word("dtmf", given, &words)
    }
}
