//! Where traces are sent, and how many of them.
//!
//! The reason for each number stands beside the option in `config/callseal.toml`.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderName;
use toml::{Table, Value};

use super::net::{host_of, is_private_host};
use super::raw;
use super::scope::{Bounds, Scope};
use super::secret::{References, SecretRef};
use super::store::{check_ca_file, check_url};

const INTERVAL_MS: Bounds = Bounds::new(5_000, 100..=60_000);
const TIMEOUT_MS: Bounds = Bounds::new(10_000, 100..=60_000);
/// One trace in a hundred: enough to see what is slow, little enough for any collector.
const SAMPLE_PERCENT: f64 = 1.0;
/// More than any collector asks for.
const MAX_HEADERS: usize = 8;
const MAX_HEADER_NAME: usize = 64;
/// Headers that a request is made of, or that callseal sets itself.
const RESERVED: [&str; 12] = [
    "host",
    "connection",
    "upgrade",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "user-agent",
    "te",
    "trailer",
    "traceparent",
    "tracestate",
];

/// Where traces are sent.
#[derive(Debug, Clone)]
pub struct Traces {
    /// The collector: OTLP over HTTP.
    pub endpoint: Uri,
    /// What is sent with each request; the values are secrets, read again each time.
    pub headers: Vec<(HeaderName, SecretRef)>,
    /// PEM certificates that alone are believed; none means those of the system.
    pub ca_file: Option<PathBuf>,
    /// The share of traces that are made, 0 to 1.
    pub share: f64,
    /// How long spans wait for others before they are sent.
    pub interval: Duration,
    /// How long one request may take.
    pub timeout: Duration,
}

impl Traces {
    /// Checks the table; without one there are no traces.
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, references: &References<'_>) -> Option<Self> {
        let (scope, raw): (_, raw::Traces) = top.section("traces", Some(table?));
        let ca_file = raw.ca_file.map(|path| check_ca_file(&scope, path, references));
        let headers = check_headers(&scope, raw.headers, references);
        let interval = scope.millis("interval_ms", raw.interval_ms, &INTERVAL_MS);
        let timeout = scope.millis("timeout_ms", raw.timeout_ms, &TIMEOUT_MS);
        let percent = raw.sample_percent.unwrap_or(SAMPLE_PERCENT);
        if !(0.0..=100.0).contains(&percent) {
            scope.fault("sample_percent", format!("{percent} is given; allowed: 0.0 to 100.0"));
        }
        let endpoint = check_endpoint(&scope, raw.endpoint);
        Some(Self { endpoint: endpoint?, headers, ca_file, share: percent / 100.0, interval, timeout })
    }

    /// Returns the host, and the port if one is given: all of the endpoint that may be shown.
    pub fn authority(&self) -> &str {
        self.endpoint.authority().map(|authority| authority.as_str()).unwrap_or_default()
    }

    /// Returns the host as written; an IPv6 address without its brackets.
    pub(super) fn host(&self) -> &str {
        host_of(self.authority()).unwrap_or_default()
    }

    /// Whether anybody between here and the collector can read them.
    pub(super) fn are_in_clear(&self) -> bool {
        self.endpoint.scheme_str() != Some("https")
    }

    /// Whether the collector is on this machine or in this network, by what is written.
    pub(super) fn stay_here(&self) -> bool {
        is_private_host(self.host())
    }
}

fn check_endpoint(scope: &Scope<'_>, given: Option<String>) -> Option<Uri> {
    let Some(given) = given else {
        scope.fault(
            "endpoint",
            "is missing; allowed: where a collector takes OTLP over HTTP, such as \"https://host:4318/v1/traces\"",
        );
        return None;
    };
    // What is wrong with a URL has been said by its check.
    check_url(scope, "endpoint", &given).parse().ok()
}

fn check_headers(
    scope: &Scope<'_>,
    given: Option<Table>,
    references: &References<'_>,
) -> Vec<(HeaderName, SecretRef)> {
    let given = given.unwrap_or_default();
    if given.len() > MAX_HEADERS {
        scope.fault("headers", format!("{} are given; allowed: at most {MAX_HEADERS}", given.len()));
    }
    let mut headers = Vec::new();
    for (index, (name, entry)) in given.into_iter().enumerate() {
        match check_header_name(&name) {
            Some(name) => headers.extend(check_header(scope, name, &entry, references)),
            // Not shown: it may be the secret, at the wrong side of the sign.
            None => scope.fault(
                "headers",
                format!(
                    "entry {} has a wrong name; allowed: a header that callseal does not set itself",
                    index + 1
                ),
            ),
        }
    }
    headers
}

fn check_header_name(given: &str) -> Option<HeaderName> {
    let lower = given.to_ascii_lowercase();
    let is_allowed = given.len() <= MAX_HEADER_NAME && !RESERVED.contains(&lower.as_str());
    HeaderName::from_bytes(lower.as_bytes()).ok().filter(|_| is_allowed)
}

fn check_header(
    scope: &Scope<'_>,
    name: HeaderName,
    entry: &Value,
    references: &References<'_>,
) -> Option<(HeaderName, SecretRef)> {
    let secret = references.given(scope, &format!("headers.{name}"), entry)?;
    Some((name, secret))
}
