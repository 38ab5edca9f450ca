//! One tenant, from one file: whose calls are taken, what is kept and for how long, who may listen.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::domain::ids::{RouteName, TenantId};
use crate::domain::time::UnixMillis;

use super::faults::Collector;
use super::hipaa::{Hipaa, MAX_GRANT_SECS, NodeFacts};
use super::keys::{KeysConfig, TenantKeks};
use super::net::WebOrigin;
use super::raw;
use super::recipient::KeysRole;
use super::route::Route;
use super::scope::{Bounds, Scope, Words};
use super::secret::{References, Secret};
use super::twilio::Twilio;
use super::vapi::Vapi;
use super::webhook::Webhook;

/// What profile "1string" promises its customers.
const DAYS_1STRING: u64 = 365;
/// What profile "ring-the-pro" promises its customers.
const DAYS_RING_THE_PRO: u64 = 90;
const DAYS: std::ops::RangeInclusive<u64> = 1..=3650;
const ACCESS_LOG_DAYS: Bounds = Bounds::new(365, DAYS);
const MAX_STREAMS: Bounds = Bounds::new(200, 1..=1_000_000);
const MAX_STARTS_PER_SEC: Bounds = Bounds::new(20, 1..=10_000);
const MAX_STREAM_HOURS: Bounds = Bounds::new(24, 1..=24);
/// A day: tickets are made when a call is placed, or for calls that are planned.
const TICKET_TTL_SECS: Bounds = Bounds::new(3_600, 1..=86_400);
pub(super) const MAX_KID: usize = 32;
/// As many bytes as the HMACs of grants and tickets have; a shorter key would be their weakest part.
const MIN_KEY_BYTES: usize = 32;

/// A customer whose keys and rules apply.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// The name in URLs.
    pub id: TenantId,
    /// Where it is kept.
    pub origin: Origin,
    /// What may be done for this tenant.
    pub status: TenantStatus,
    /// What becomes of a call when no key can be had.
    pub no_key_policy: NoKeyPolicy,
    /// How long things are kept.
    pub retention: Retention,
    /// What the rules for health data refer to, where they hold.
    pub hipaa: Option<Hipaa>,
    /// The KEKs that the tenant's DEKs are wrapped under.
    pub keks: TenantKeks,
    /// How much the tenant may use.
    pub limits: Limits,
    /// How Twilio proves who it is.
    pub twilio: Twilio,
    /// How Vapi proves who it is.
    pub vapi: Vapi,
    /// What tickets are sealed with.
    pub tickets: TenantTickets,
    /// Who may listen.
    pub playback: TenantPlayback,
    /// Where the tenant is told what happens; nowhere unless given.
    pub webhook: Option<Webhook>,
    /// The routes, in the order of the file, with different names.
    pub routes: Vec<Route>,
}

/// Where a tenant is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In a file of this node.
    File,
    /// In the store, for all nodes.
    Store {
        /// Counts its changes, from 1.
        revision: u32,
        /// When what it has is deleted, if it is being closed.
        close_by: Option<UnixMillis>,
        /// Whether ended recordings wait for the date that other days give them.
        redates: bool,
    },
}

/// What may be done for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantStatus {
    /// Take calls, play recordings.
    Active,
    /// Take no calls, play nothing; recordings are kept until their date, as promised, and then deleted.
    Suspended,
    /// Take no calls; recordings can be played until they are deleted.
    Closing,
    /// Everything is deleted.
    Closed,
}

/// What becomes of a call when no key can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKeyPolicy {
    /// The call goes on without a recording.
    PassUnrecorded,
    /// The call is refused.
    Refuse,
}

/// How long things are kept.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Days from the end of a call to the expiry of its audio, 1 to 3650.
    pub call_audio_days: u32,
    /// Days that audit records are kept, 1 to 3650.
    pub access_log_days: u32,
}

/// How much a tenant may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Streams at the same time.
    pub max_streams: u32,
    /// New streams per second.
    pub max_starts_per_sec: u32,
    /// The longest stream; the node's [`Ingest::max_stream`](super::Ingest::max_stream) holds as well.
    pub max_stream: Duration,
}

/// Who may listen to a tenant's recordings.
#[derive(Debug, Clone)]
pub struct TenantPlayback {
    /// The longest life of a grant, at most the node's.
    pub max_ttl: Duration,
    /// The web pages that may load recordings.
    pub allowed_origins: Vec<WebOrigin>,
    /// The keys that grants may be signed with, by `kid`; each has at least 32 bytes.
    pub grant_keys: BTreeMap<String, Secret>,
    /// The `kid` of the key that new grants are signed with; none exactly when there are no keys.
    pub grant_kid: Option<String>,
}

/// What a tenant's tickets are sealed with.
#[derive(Debug, Clone)]
pub struct TenantTickets {
    /// The secrets by `kid`; each has at least 32 bytes.
    pub keys: BTreeMap<String, Secret>,
    /// The `kid` of the secret that new tickets are sealed with; none exactly when there are no secrets.
    pub kid: Option<String>,
    /// The longest life of a ticket.
    pub max_ttl: Duration,
}

/// What a tenant is checked against.
#[derive(Clone, Copy)]
pub(super) struct NodeRules<'a> {
    /// The KEKs of tenants that have none of their own.
    pub(super) keys: &'a KeysConfig,
    /// The longest life of a grant.
    pub(super) max_ttl: Duration,
    /// What the rules for health data must know.
    pub(super) facts: NodeFacts<'a>,
}

/// A tenant's file after its checks.
pub(super) struct CheckedFile {
    /// Known even when something else is wrong, to find two files for one tenant.
    pub(super) id: Option<TenantId>,
    pub(super) tenant: Option<Tenant>,
}

impl Tenant {
    /// Checks one file against what the node says.
    pub(super) fn check(
        table: Table,
        scope: &Scope<'_>,
        references: &References<'_>,
        rules: NodeRules<'_>,
    ) -> CheckedFile {
        let NodeRules { keys, max_ttl, facts } = rules;
        let raw: raw::Tenant = scope.read(table);
        let id = check_id(raw.id.as_deref(), scope);
        let status = TenantStatus::check(raw.status.as_deref(), scope);
        let hipaa = Hipaa::check(raw.hipaa, scope, facts.hipaa);
        let no_key_policy = NoKeyPolicy::check(raw.no_key_policy.as_deref(), scope, hipaa.is_some());
        let retention = Retention::check(raw.retention, scope);
        let keks = TenantKeks::check(raw.keys, scope, id.as_ref(), keys);
        let limits = Limits::check(raw.limits, scope);
        let providers = Providers::of(raw.route.as_deref().unwrap_or_default());
        let twilio = Twilio::check(raw.twilio, scope, references, providers.twilio);
        let vapi = Vapi::check(raw.vapi, scope, references, providers.vapi);
        let tickets = TenantTickets::check(raw.tickets, scope, references, providers.vapi_transport);
        let ttl_rules = (keys.role, max_ttl, hipaa.is_some());
        let playback = TenantPlayback::check(raw.playback, scope, references, ttl_rules);
        let webhook = Webhook::check(raw.webhook, scope, references, keys.role);
        let routes = Route::check_all(raw.route.unwrap_or_default(), scope, references);
        if routes.iter().filter_map(|route| route.upstream.as_ref()).any(|agent| agent.on_loss.hangs_up()) {
            twilio.require_api_users(scope);
        }
        let tenant = id.clone().map(|id| Self {
            id,
            origin: Origin::File,
            status,
            no_key_policy,
            retention,
            hipaa,
            keks,
            limits,
            twilio,
            vapi,
            tickets,
            playback,
            webhook,
            routes,
        });
        if let Some((tenant, hipaa)) =
            tenant.as_ref().and_then(|tenant| Some((tenant, tenant.hipaa.as_ref()?)))
        {
            hipaa.require(tenant, facts, scope);
        }
        CheckedFile { id, tenant }
    }

    /// Finds a route by its name.
    pub fn route(&self, name: &RouteName) -> Option<&Route> {
        self.routes.iter().find(|route| route.name == *name)
    }
}

/// Of whom there are routes, and so what must be known of them.
struct Providers {
    /// A route whose provider is not given, or none of all, counts as Twilio's.
    twilio: bool,
    /// Routes on which Vapi must prove itself.
    vapi: bool,
    /// Routes whose only proof is a ticket.
    vapi_transport: bool,
}

impl Providers {
    fn of(routes: &[Table]) -> Self {
        let is_any = |wanted: fn(&str) -> bool| {
            let name = |route: &Table| route.get("provider").and_then(Value::as_str).map(wanted);
            routes.iter().any(|route| name(route).unwrap_or_else(|| wanted("twilio")))
        };
        Self {
            twilio: is_any(|name| !name.starts_with("vapi-")),
            vapi: is_any(|name| name.starts_with("vapi-") && name != "vapi-transport"),
            vapi_transport: is_any(|name| name == "vapi-transport"),
        }
    }
}

fn check_id(given: Option<&str>, scope: &Scope<'_>) -> Option<TenantId> {
    if given.is_none() {
        scope.fault("id", "is missing; allowed: 1 to 63 characters of a-z, 0-9 and '-'");
    }
    scope.parse("id", given?)
}

impl TenantStatus {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }

    fn check(given: Option<&str>, scope: &Scope<'_>) -> Self {
        let words = Words {
            default: Self::Active,
            allowed: &[
                ("active", Self::Active),
                ("suspended", Self::Suspended),
                ("closing", Self::Closing),
                ("closed", Self::Closed),
            ],
            later: &[],
        };
        scope.word("status", given, &words)
    }
}

impl NoKeyPolicy {
    fn check(given: Option<&str>, scope: &Scope<'_>, is_hipaa: bool) -> Self {
        let words = Words {
            default: if is_hipaa { Self::Refuse } else { Self::PassUnrecorded },
            allowed: &[("pass-unrecorded", Self::PassUnrecorded), ("refuse", Self::Refuse)],
            later: &[],
        };
        scope.word("no_key_policy", given, &words)
    }
}

impl Retention {
    /// Reads what the settings of a tenant say of it; `None` if that is not allowed.
    pub fn of_settings(settings: &Table) -> Option<Self> {
        let faults = Collector::default();
        let given = match settings.get("retention") {
            None => None,
            Some(given) => Some(given.as_table()?.clone()),
        };
        let retention = Self::check(given, &Scope::stored_tenant(&faults));
        faults.finish(Some(retention)).ok()
    }

    fn check(table: Option<Table>, scope: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Retention) = scope.section("retention", table);
        let profiles = Words {
            default: DAYS_1STRING,
            allowed: &[("1string", DAYS_1STRING), ("ring-the-pro", DAYS_RING_THE_PRO)],
            later: &[],
        };
        let days = Bounds::new(scope.word("profile", raw.profile.as_deref(), &profiles), DAYS);
        Self {
            call_audio_days: scope.count("call_audio_days", raw.call_audio_days, &days),
            access_log_days: scope.count("access_log_days", raw.access_log_days, &ACCESS_LOG_DAYS),
        }
    }
}

impl Limits {
    fn check(table: Option<Table>, scope: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Limits) = scope.section("limits", table);
        Self {
            max_streams: scope.count("max_streams", raw.max_streams, &MAX_STREAMS),
            max_starts_per_sec: scope.count(
                "max_starts_per_sec",
                raw.max_starts_per_sec,
                &MAX_STARTS_PER_SEC,
            ),
            max_stream: scope.hours("max_stream_hours", raw.max_stream_hours, &MAX_STREAM_HOURS),
        }
    }
}

impl TenantTickets {
    fn check(table: Option<Table>, scope: &Scope<'_>, references: &References<'_>, are_needed: bool) -> Self {
        let (scope, raw): (_, raw::Tickets) = scope.section("tickets", table);
        if are_needed && raw.keys.is_none() {
            scope.fault(
                "keys",
                "is missing, and a route of provider \"vapi-transport\" takes calls with a ticket only; allowed: a table \
                 such as { t1 = { file = \"…\" } }",
            );
        }
        let names = key_names(raw.keys.as_ref());
        Self {
            keys: check_keys(&scope, "keys", references.map(&scope, "keys", raw.keys, MAX_KID)),
            kid: check_kid(("kid", "tickets.keys"), raw.kid, &names, &scope),
            max_ttl: scope.secs("max_ttl_secs", raw.max_ttl_secs, &TICKET_TTL_SECS),
        }
    }
}

impl TenantPlayback {
    fn check(
        table: Option<Table>,
        scope: &Scope<'_>,
        references: &References<'_>,
        (role, node_max, is_hipaa): (KeysRole, Duration, bool),
    ) -> Self {
        let (scope, raw): (_, raw::TenantPlayback) = scope.section("playback", table);
        if role == KeysRole::Ingest && raw.grant_keys.is_some() {
            scope.fault(
                "grant_keys",
                "is given; allowed: none with keys.role = \"ingest\", as whoever has one can make links that other nodes obey",
            );
        }
        let longest = node_max.as_secs();
        let usual = if is_hipaa { longest.min(MAX_GRANT_SECS) } else { longest };
        let ttl = Bounds::new(usual, 1..=longest);
        let parse = |(index, text): (usize, &String)| scope.parse(&format!("allowed_origins[{index}]"), text);
        let origins = raw.allowed_origins.unwrap_or_default();
        let names = key_names(raw.grant_keys.as_ref());
        let grant_keys = references.map(&scope, "grant_keys", raw.grant_keys, MAX_KID);
        let grant_keys = check_keys(&scope, "grant_keys", grant_keys);
        Self {
            max_ttl: scope.secs("max_ttl_secs", raw.max_ttl_secs, &ttl),
            allowed_origins: origins.iter().enumerate().filter_map(parse).collect(),
            grant_keys,
            grant_kid: check_kid(("grant_kid", "playback.grant_keys"), raw.grant_kid, &names, &scope),
        }
    }
}

/// Reports keys that are too short.
pub(super) fn check_keys(
    scope: &Scope<'_>,
    option: &str,
    keys: BTreeMap<String, Secret>,
) -> BTreeMap<String, Secret> {
    for (kid, _) in keys.iter().filter(|(_, key)| key.expose().len() < MIN_KEY_BYTES) {
        let problem = format!("the secret is too short; allowed: at least {MIN_KEY_BYTES} bytes");
        scope.fault(&format!("{option}.{kid}"), problem);
    }
    keys
}

/// Returns the names of all keys as written, also of those that cannot be read.
pub(super) fn key_names(given: Option<&Value>) -> Vec<String> {
    given.and_then(Value::as_table).map(|keys| keys.keys().cloned().collect()).unwrap_or_default()
}

/// Finds the key that signs or seals; a single key needs no naming. A wrong name is not shown: it may be a key.
pub(super) fn check_kid(
    (option, keys): (&str, &str),
    given: Option<String>,
    names: &[String],
    scope: &Scope<'_>,
) -> Option<String> {
    match (given, names) {
        (Some(kid), _) if names.contains(&kid) => Some(kid),
        (Some(_), _) => {
            scope.fault(option, format!("names no key; allowed: a name from {keys}"));
            None
        }
        (None, []) => None,
        (None, [only]) => Some(only.clone()),
        (None, _) => {
            scope.fault(
                option,
                format!("is missing; allowed: the name from {keys} that new ones are made with"),
            );
            None
        }
    }
}
