//! Where a tenant is told what happens to its recordings, and how the node tells it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use toml::Table;

use crate::domain::notice::{NoticeKind, Schedule};

use super::net::{HttpsUrl, is_private_host};
use super::raw;
use super::recipient::KeysRole;
use super::scope::{Bounds, Scope};
use super::secret::{References, Secret};
use super::store::check_ca_file;

const ATTEMPT_TIMEOUT_MS: Bounds = Bounds::new(10_000, 100..=30_000);
const FIRST_RETRY_SECS: Bounds = Bounds::new(15, 1..=3_600);
const GIVE_UP_HOURS: Bounds = Bounds::new(24, 1..=168);
const SCAN_INTERVAL_SECS: Bounds = Bounds::new(30, 1..=3_600);
const CONCURRENCY: Bounds = Bounds::new(4, 1..=64);
/// The longest pause: with it a receiver that was away for a day is still tried six times in that day.
const LONGEST_RETRY: Duration = Duration::from_secs(4 * 3600);
/// The present secret and the next one, while they change.
const MAX_SECRETS: usize = 2;
/// As many bytes as the HMAC has; a shorter key would be its weakest part.
const MIN_SECRET_BYTES: usize = 32;

/// How the node delivers notices.
#[derive(Debug, Clone)]
pub struct WebhookNode {
    /// The authorities that vouch for receivers; the system's unless given.
    pub ca_file: Option<PathBuf>,
    /// When notices are told again.
    pub schedule: Schedule,
    /// From one look at the store to the next.
    pub scan_interval: Duration,
    /// Notices of one tenant that are on their way at the same time.
    pub concurrency: usize,
}

/// Where one tenant is told, and of what.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Where notices are posted.
    pub url: HttpsUrl,
    /// What they are signed with: one or two, each with at least 32 bytes. None where notices are only written.
    pub secrets: Vec<Secret>,
    /// What is told.
    pub events: BTreeSet<NoticeKind>,
    /// The receiver may be on this machine or in this network.
    pub allow_private: bool,
    /// Notices hold the provider's id of the call.
    pub call_ids: bool,
}

impl WebhookNode {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, references: &References<'_>) -> Self {
        let (scope, raw): (_, raw::WebhookNode) = top.section("webhook", table);
        Self {
            ca_file: raw.ca_file.map(|path| check_ca_file(&scope, path, references)),
            schedule: Schedule {
                attempt: scope.millis("attempt_timeout_ms", raw.attempt_timeout_ms, &ATTEMPT_TIMEOUT_MS),
                first: scope.secs("first_retry_secs", raw.first_retry_secs, &FIRST_RETRY_SECS),
                longest: LONGEST_RETRY,
                give_up: scope.hours("give_up_hours", raw.give_up_hours, &GIVE_UP_HOURS),
            },
            scan_interval: scope.secs("scan_interval_secs", raw.scan_interval_secs, &SCAN_INTERVAL_SECS),
            concurrency: scope.size("concurrency", raw.concurrency, &CONCURRENCY),
        }
    }
}

impl Webhook {
    /// Whether the tenant wants to be told.
    pub fn wants(&self, kind: NoticeKind) -> bool {
        self.events.contains(&kind)
    }

    /// Checks the table; without one nobody is told.
    pub(super) fn check(
        table: Option<Table>,
        scope: &Scope<'_>,
        references: &References<'_>,
        role: KeysRole,
    ) -> Option<Self> {
        let (scope, raw): (_, raw::Webhook) = scope.section("webhook", Some(table?));
        if raw.url.is_none() {
            scope.fault("url", "is missing; allowed: \"https://host/path\"");
        }
        if role == KeysRole::Ingest && raw.secrets.is_some() {
            scope.fault(
                "secrets",
                "is given; allowed: none with keys.role = \"ingest\", as nodes that open recordings sign and deliver notices",
            );
        }
        if role == KeysRole::Full && raw.secrets.is_none() {
            scope.fault("secrets", "is missing; allowed: a list such as [{ file = \"…\" }]");
        }
        let secrets = check_secrets(&scope, references.list(&scope, "secrets", raw.secrets.clone()));
        if raw.secrets.is_some_and(|given| given.as_array().is_some_and(Vec::is_empty)) {
            scope.fault("secrets", "is empty; allowed: one secret, or two while they change");
        }
        let events = check_events(&scope, raw.events);
        let allow_private = raw.allow_private.unwrap_or(false);
        if allow_private && references.public_only() {
            scope.fault(
                "allow_private",
                "true is given; allowed: false, or true where the node's file has tenants.allow_private_hosts = true",
            );
        }
        let url = raw.url.and_then(|url| check_url(&scope, &url, allow_private));
        let call_ids = raw.call_ids.unwrap_or(false);
        Some(Self { url: url?, secrets, events, allow_private, call_ids })
    }
}

/// The URL is never shown: its path or query may be a secret.
fn check_url(scope: &Scope<'_>, given: &str, allow_private: bool) -> Option<HttpsUrl> {
    let url: HttpsUrl = match given.parse() {
        Ok(url) => url,
        Err(problem) => {
            scope.fault("url", format!("is no such URL; {problem}"));
            return None;
        }
    };
    if is_private_host(url.host()) && !allow_private {
        scope.fault(
            "url",
            "leads to this machine or network; allowed: a host of the internet, or allow_private = true",
        );
    }
    Some(url)
}

fn check_secrets(scope: &Scope<'_>, secrets: Vec<Secret>) -> Vec<Secret> {
    if secrets.len() > MAX_SECRETS {
        scope.fault("secrets", format!("{} are given; allowed: 1 or {MAX_SECRETS}", secrets.len()));
    }
    for (index, _) in
        secrets.iter().enumerate().filter(|(_, secret)| secret.expose().len() < MIN_SECRET_BYTES)
    {
        let problem = format!("the secret is too short; allowed: at least {MIN_SECRET_BYTES} bytes");
        scope.fault(&format!("secrets[{index}]"), problem);
    }
    secrets
}

fn check_events(scope: &Scope<'_>, given: Option<Vec<String>>) -> BTreeSet<NoticeKind> {
    let Some(given) = given else { return NoticeKind::CHOICES.into() };
    let allowed = || NoticeKind::CHOICES.map(|kind| format!("\"{}\"", kind.name())).join(", ");
    if given.is_empty() {
        scope.fault("events", format!("is empty; allowed: some of {}, or leave it out for all", allowed()));
    }
    let mut events = BTreeSet::new();
    for (index, name) in given.iter().enumerate() {
        match NoticeKind::from_name(name).filter(|kind| *kind != NoticeKind::Test) {
            Some(kind) => drop(events.insert(kind)),
            None => scope.fault(
                &format!("events[{index}]"),
                format!("{name:?} is not a choice; allowed: {}", allowed()),
            ),
        }
    }
    events
}
