//! The rules for health data: all of them hold for a tenant, or none does.
//!
//! `hipaa.mode = "on"` is not a label. Each rule that is not kept is a fault of its own, and a configuration with faults is not used; so a
//! tenant is never half under these rules. `docs/HIPAA.md` says what they do, and what they are not.

use toml::Table;

use crate::domain::provider::vapi_listen_url::HostSuffix;

use super::aws_kms::region_of_arn;
use super::keys::KeyProviderKind;
use super::raw;
use super::route::RouteProvider;
use super::scope::{Scope, Words};
use super::store::StoreKind;
use super::tenant::{NoKeyPolicy, Tenant};
use super::traces::Traces;

/// The longest life of a grant, in seconds: time to open a link, little to pass it on.
pub(super) const MAX_GRANT_SECS: u64 = 300;
const MAX_TEXT: usize = 256;
const MAX_VENDORS: usize = 64;
const MAX_REGIONS: usize = 16;
/// Whom the calls of a provider come from.
const TWILIO: &str = "twilio.com";
const VAPI: &str = "vapi.ai";

/// What the mode does by itself, beside refusing to be on where a rule is not kept: a word for it, and what it is.
pub const HIPAA_EFFECTS: [(&str, &str); 4] = [
    ("no_key_policy", "a call for which no key can be had is refused, also where nothing is said"),
    ("grant_life", "links work for at most 300 seconds, also where nothing is said"),
    ("grant_address", "links are made and taken only with an address that they are bound to"),
    ("reason", "every request of the admin API about the tenant says why, whatever the role"),
];

/// What the rules of a tenant refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hipaa {
    /// Where the executed agreement is found.
    pub baa_reference: String,
    /// Hosts, and those below them, of vendors who have an agreement too.
    pub vendors: Vec<HostSuffix>,
    /// Regions in which bucket and keys may be.
    pub regions: Vec<String>,
    /// Why a key in the keyring is enough, where there is one.
    pub local_key_reason: Option<String>,
}

/// What the node says of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HipaaNode {
    /// Every tenant must be under them.
    pub is_required: bool,
    /// What asks whoever uses the admin API for a second factor, before this node does for a token.
    pub second_factor: Option<String>,
}

/// What the rules must know of the node.
#[derive(Clone, Copy)]
pub(super) struct NodeFacts<'a> {
    pub(super) hipaa: &'a HipaaNode,
    /// The store, if its table has no fault.
    pub(super) store: Option<&'a StoreKind>,
    pub(super) locks_memory: bool,
    pub(super) has_admin: bool,
    /// Where traces are sent, if anywhere.
    pub(super) traces: Option<&'a Traces>,
}

impl HipaaNode {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::HipaaNode) = top.section("hipaa", table);
        let words = Words { default: false, allowed: &[("off", false), ("on", true)], later: &[] };
        let is_required = scope.word("mode", raw.mode.as_deref(), &words);
        Self { is_required, second_factor: text(&scope, "second_factor", raw.second_factor) }
    }
}

impl Hipaa {
    /// Checks the table; `None` where the mode is off. What the rest of the tenant must be is seen by [`Hipaa::require`].
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, node: &HipaaNode) -> Option<Self> {
        let (scope, raw): (_, raw::Hipaa) = top.section("hipaa", table);
        let words = Words { default: false, allowed: &[("off", false), ("on", true)], later: &[] };
        let is_on = scope.word("mode", raw.mode.as_deref(), &words);
        if !is_on {
            if node.is_required {
                scope.fault(
                    "mode",
                    "is off, and the node's file has hipaa.mode = \"on\" for all tenants; allowed: \"on\"",
                );
            }
            return None;
        }
        match raw.baa.as_deref() {
            Some("active") => {}
            Some("none" | "pending") => {
                scope.fault(
                    "baa",
                    "no agreement is in force; allowed: \"active\", once it is executed and confirmed",
                );
            }
            _ => scope.fault(
                "baa",
                "is missing or no choice; allowed: \"active\" (\"none\" and \"pending\" keep the mode off)",
            ),
        }
        let baa_reference = text(&scope, "baa_reference", raw.baa_reference);
        if baa_reference.is_none() {
            scope.fault(
                "baa_reference",
                "is missing; allowed: where the executed agreement is found, 1 to 256 bytes",
            );
        }
        Some(Self {
            baa_reference: baa_reference.unwrap_or_default(),
            vendors: check_vendors(&scope, raw.vendors),
            regions: check_regions(&scope, raw.regions),
            local_key_reason: text(&scope, "local_key_reason", raw.local_key_reason),
        })
    }

    /// Reports every rule that the tenant, or the node for it, does not keep.
    pub(super) fn require(&self, tenant: &Tenant, node: NodeFacts<'_>, scope: &Scope<'_>) {
        self.require_keys(tenant, scope);
        self.require_vendors(tenant, scope);
        self.require_of_node(node, scope);
        if tenant.no_key_policy != NoKeyPolicy::Refuse {
            scope.fault(
                "no_key_policy",
                "\"pass-unrecorded\" is given with hipaa.mode = \"on\"; allowed: \"refuse\"",
            );
        }
        if tenant.playback.max_ttl.as_secs() > MAX_GRANT_SECS {
            let problem = format!(
                "{} is given with hipaa.mode = \"on\"; allowed: 1 to {MAX_GRANT_SECS}",
                tenant.playback.max_ttl.as_secs()
            );
            scope.fault("playback.max_ttl_secs", problem);
        }
        if tenant.webhook.as_ref().is_some_and(|webhook| webhook.call_ids) {
            scope.fault("webhook.call_ids", "true is given with hipaa.mode = \"on\"; allowed: false");
        }
    }

    fn require_keys(&self, tenant: &Tenant, scope: &Scope<'_>) {
        let is_local = tenant.keks.current.provider == KeyProviderKind::Local;
        if is_local && self.local_key_reason.is_none() {
            scope.fault(
                "keys.provider",
                "\"local\" with hipaa.mode = \"on\"; allowed: a key service, or hipaa.local_key_reason",
            );
        }
        for kek in tenant.keks.all().filter(|kek| kek.provider == KeyProviderKind::AwsKms) {
            let region = region_of_arn(&kek.kek);
            if !self.regions.iter().any(|allowed| allowed == region) {
                scope.fault("hipaa.regions", format!("lacks {region:?}, where a key of the tenant is"));
            }
        }
    }

    fn require_vendors(&self, tenant: &Tenant, scope: &Scope<'_>) {
        let lacks = |host: &str| !self.vendors.iter().any(|vendor| vendor.allows(host));
        let fault = |host: &str, what: &str| {
            scope.fault(
                "hipaa.vendors",
                format!("lacks {host:?}, {what}; allowed: vendors with an agreement of their own"),
            );
        };
        let dials =
            |wanted: fn(RouteProvider) -> bool| tenant.routes.iter().any(|route| wanted(route.provider));
        if dials(|provider| provider == RouteProvider::Twilio) && lacks(TWILIO) {
            fault(TWILIO, "whose calls a route takes");
        }
        if dials(|provider| provider != RouteProvider::Twilio) {
            if lacks(VAPI) {
                fault(VAPI, "whose calls a route takes");
            }
            for host in tenant.vapi.listen_hosts.iter().map(HostSuffix::as_str).filter(|host| *host != VAPI) {
                if lacks(host) {
                    fault(host, "which vapi.listen_hosts allows");
                }
            }
        }
        for route in &tenant.routes {
            if let Some(upstream) = route.upstream.as_ref().filter(|upstream| lacks(upstream.url.host())) {
                fault(upstream.url.host(), &format!("the agent of route {}", route.name));
            }
        }
        if let Some(webhook) = tenant.webhook.as_ref().filter(|webhook| lacks(webhook.url.host())) {
            fault(webhook.url.host(), "which the webhook tells");
        }
    }

    fn require_of_node(&self, node: NodeFacts<'_>, scope: &Scope<'_>) {
        match node.store {
            Some(StoreKind::S3(bucket)) if !self.regions.contains(&bucket.region) => {
                scope.fault(
                    "hipaa.regions",
                    format!("lacks {:?}, where the store of this node is", bucket.region),
                );
            }
            Some(StoreKind::Folder { .. }) => {
                scope.fault(
                    "hipaa.mode",
                    "\"on\" is given, and the store of this node is a folder; allowed: a bucket",
                );
            }
            Some(StoreKind::S3(_)) | None => {}
        }
        if !node.locks_memory {
            scope.fault(
                "hipaa.mode",
                "\"on\" is given, and keys of this node may lie in ordinary memory; allowed: with keys.require_locked_memory = \
                 true in the node's file",
            );
        }
        if node.has_admin && node.hipaa.second_factor.is_none() {
            scope.fault(
                "hipaa.mode",
                "\"on\" is given, and nothing is said of a second factor for the admin API; allowed: with hipaa.second_factor in the \
                 node's file, or without [admin]",
            );
        }
        if let Some(traces) = node.traces {
            self.require_of_traces(traces, scope);
        }
    }

    /// Traces hold ids and times of a tenant's calls, as notices do.
    fn require_of_traces(&self, traces: &Traces, scope: &Scope<'_>) {
        if traces.are_in_clear() {
            scope.fault(
                "hipaa.mode",
                "\"on\" is given, and traces of this node go without TLS; allowed: with an https URL in traces.endpoint",
            );
        }
        let host = traces.host();
        if !traces.stay_here() && !self.vendors.iter().any(|vendor| vendor.allows(host)) {
            let problem = format!(
                "lacks {host:?}, where traces of this node go; allowed: vendors with an agreement of their own"
            );
            scope.fault("hipaa.vendors", problem);
        }
    }
}

fn text(scope: &Scope<'_>, option: &str, given: Option<String>) -> Option<String> {
    let given = given?;
    let is_allowed = (1..=MAX_TEXT).contains(&given.trim().len()) && !given.contains(char::is_control);
    if !is_allowed {
        scope.fault(
            option,
            format!("is empty or no line; allowed: 1 to {MAX_TEXT} bytes without control characters"),
        );
    }
    is_allowed.then_some(given)
}

fn check_vendors(scope: &Scope<'_>, given: Option<Vec<String>>) -> Vec<HostSuffix> {
    let given = given.unwrap_or_default();
    if given.len() > MAX_VENDORS {
        scope.fault("vendors", format!("{} are given; allowed: at most {MAX_VENDORS}", given.len()));
    }
    let parse = |(index, host): (usize, &String)| scope.parse(&format!("vendors[{index}]"), host);
    given.iter().enumerate().filter_map(parse).collect()
}

fn check_regions(scope: &Scope<'_>, given: Option<Vec<String>>) -> Vec<String> {
    let given = given.unwrap_or_default();
    if !(1..=MAX_REGIONS).contains(&given.len()) {
        scope.fault(
            "regions",
            format!("{} are given; allowed: 1 to {MAX_REGIONS}, such as [\"us-east-1\"]", given.len()),
        );
    }
    given
}
