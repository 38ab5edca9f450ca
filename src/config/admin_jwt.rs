//! Tokens of an identity provider for the admin API: what is asked of them, and where the keys to check them with are.
//!
//! The reason for each value stands beside the option in `config/callseal.toml`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use crate::domain::access::Role;
use crate::domain::address::is_public;
use crate::domain::jwt::{Algorithm, ClaimPath, Rules, Wanted};

use super::net::HttpsUrl;
use super::raw;
use super::scope::{Bounds, Scope};
use super::secret::References;
use super::store::check_ca_file;

const LEEWAY_SECS: Bounds = Bounds::new(30, 0..=60);
const MAX_AGE_SECS: Bounds = Bounds::new(3_600, 60..=86_400);
const REFRESH_SECS: Bounds = Bounds::new(300, 30..=86_400);
const UNKNOWN_KID_SECS: Bounds = Bounds::new(30, 1..=3_600);
const STALE_SECS: Bounds = Bounds::new(86_400, 60..=604_800);
/// Entries of one list, or of one table.
const MAX_ENTRIES: usize = 64;
const MAX_TEXT_BYTES: usize = 512;
const TENANT_CLAIM: &str = "callseal_tenant";
const ROLE_CLAIM: &str = "callseal_role";

/// Tokens of an identity provider.
#[derive(Debug, Clone)]
pub struct AdminJwt {
    /// What is asked of them.
    pub rules: Rules,
    /// Where the keys are.
    pub keys: JwtKeys,
    /// From one look at the keys to the next.
    pub refresh: Duration,
    /// How long keys are used that cannot be looked at any more.
    pub stale: Duration,
    /// How often, at most, keys are looked at because a token names one that is not known.
    pub unknown: Duration,
}

/// Where the keys of an issuer are.
#[derive(Debug, Clone)]
pub enum JwtKeys {
    /// At the issuer.
    Url {
        /// Where.
        url: HttpsUrl,
        /// The authorities that vouch for it; the system's unless given.
        ca_file: Option<PathBuf>,
        /// It may be on this machine or in this network.
        allow_private: bool,
    },
    /// In a file.
    File(PathBuf),
}

impl AdminJwt {
    /// Checks the table; without one only tokens of callseal are known. `has_api` is whether there is an admin API.
    pub(super) fn check(
        table: Option<Table>,
        top: &Scope<'_>,
        references: &References<'_>,
        has_api: bool,
    ) -> Option<Self> {
        let (scope, raw): (_, raw::AdminJwt) = top.section("admin_jwt", Some(table?));
        if !has_api {
            scope.fault_here("is given; allowed: only with a table [admin]");
        }
        let second_factor = check_second_factor(&scope, (raw.mfa_claim, raw.mfa_values, raw.mfa_roles));
        let claim = |option: &str, given: Option<String>, default: &str| {
            scope.parse::<ClaimPath>(option, given.as_deref().unwrap_or(default))
        };
        let tenant = claim("tenant_claim", raw.tenant_claim, TENANT_CLAIM);
        let role = claim("role_claim", raw.role_claim, ROLE_CLAIM);
        let audiences = check_texts(&scope, "audience", raw.audience);
        let parties = check_texts(&scope, "azp", raw.azp);
        if audiences.is_empty() && parties.is_empty() {
            scope.fault(
                "audience",
                "is missing, and azp as well; allowed: at least one of the two, or tokens that the issuer has made for any other \
                 program would do",
            );
        }
        let algorithms = check_algorithms(&scope, raw.algorithms);
        let (roles, required) = (check_roles(&scope, raw.roles), check_required(&scope, raw.required));
        let issuer = check_issuer(&scope, raw.issuer);
        let leeway = scope.secs("leeway_secs", raw.leeway_secs, &LEEWAY_SECS);
        let max_age = scope.secs("max_age_secs", raw.max_age_secs, &MAX_AGE_SECS);
        let refresh = scope.secs("refresh_secs", raw.refresh_secs, &REFRESH_SECS);
        let stale = scope.secs("stale_secs", raw.stale_secs, &STALE_SECS);
        let unknown = scope.secs("unknown_kid_secs", raw.unknown_kid_secs, &UNKNOWN_KID_SECS);
        if stale < refresh {
            scope.fault("stale_secs", "is less than refresh_secs; allowed: refresh_secs or more");
        }
        let place = (raw.jwks_url, raw.jwks_file, raw.ca_file, raw.allow_private);
        let keys = check_keys(&scope, references, place);
        let rules = Rules {
            issuer,
            audiences,
            parties,
            algorithms,
            tenant: tenant?,
            role: role?,
            roles,
            required,
            second_factor,
            leeway,
            max_age,
        };
        Some(Self { rules, keys: keys?, refresh, stale, unknown })
    }
}

type Place = (Option<String>, Option<String>, Option<String>, Option<bool>);

fn check_keys(scope: &Scope<'_>, references: &References<'_>, place: Place) -> Option<JwtKeys> {
    let (url, file, ca_file, allow_private) = place;
    match (url, file) {
        (Some(url), None) => {
            let ca_file = ca_file.map(|path| check_ca_file(scope, path, references));
            let allow_private = allow_private.unwrap_or(false);
            let url = check_url(scope, &url, allow_private)?;
            Some(JwtKeys::Url { url, ca_file, allow_private })
        }
        (None, Some(file)) => {
            for (option, is_given) in
                [("ca_file", ca_file.is_some()), ("allow_private", allow_private.is_some())]
            {
                if is_given {
                    scope.fault(option, "is given; allowed: only with jwks_url");
                }
            }
            let path = references.dir.join(scope.path("jwks_file", Some(file), PathBuf::new));
            if let Err(problem) = references.files.check_readable(&path) {
                scope.fault("jwks_file", problem);
            }
            Some(JwtKeys::File(path))
        }
        (None, None) => {
            scope.fault(
                "jwks_url",
                "is missing; allowed: \"https://host/path\" of the issuer's key set, or jwks_file",
            );
            None
        }
        (Some(_), Some(_)) => {
            scope.fault("jwks_file", "is given beside jwks_url; allowed: one of the two");
            None
        }
    }
}

fn check_url(scope: &Scope<'_>, given: &str, allow_private: bool) -> Option<HttpsUrl> {
    let url: HttpsUrl = match given.parse() {
        Ok(url) => url,
        Err(problem) => {
            scope.fault("jwks_url", format!("is no such URL; {problem}"));
            return None;
        }
    };
    let host = url.host();
    let is_private = host.parse::<IpAddr>().map_or(host == "localhost", |address| !is_public(address));
    if is_private && !allow_private {
        scope.fault(
            "jwks_url",
            "leads to this machine or network; allowed: a host of the internet, or allow_private = true",
        );
    }
    Some(url)
}

fn is_text(text: &str) -> bool {
    (1..=MAX_TEXT_BYTES).contains(&text.len()) && !text.contains(char::is_control)
}

fn check_issuer(scope: &Scope<'_>, given: Option<String>) -> String {
    let given = given.unwrap_or_default();
    if !is_text(&given) {
        scope.fault(
            "issuer",
            format!(
                "is missing or no such text; allowed: what tokens have as iss, 1 to {MAX_TEXT_BYTES} bytes"
            ),
        );
    }
    given
}

fn check_texts(scope: &Scope<'_>, option: &str, given: Option<Vec<String>>) -> Vec<String> {
    let Some(given) = given else { return Vec::new() };
    if given.is_empty() || given.len() > MAX_ENTRIES {
        scope.fault(option, format!("{} are given; allowed: 1 to {MAX_ENTRIES}", given.len()));
    }
    for (index, _) in given.iter().enumerate().filter(|(_, text)| !is_text(text)) {
        scope.fault(&format!("{option}[{index}]"), format!("allowed: 1 to {MAX_TEXT_BYTES} bytes"));
    }
    given
}

fn check_algorithms(scope: &Scope<'_>, given: Option<Vec<String>>) -> Vec<Algorithm> {
    let Some(given) = given else { return Algorithm::ALL.into() };
    if given.is_empty() {
        scope.fault("algorithms", "is empty; allowed: some of RS256, ES256, EdDSA");
    }
    let mut algorithms = Vec::new();
    for (index, name) in given.iter().enumerate() {
        match Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name) {
            Some(algorithm) => algorithms.push(algorithm),
            None => {
                let why = match name.as_str() {
                    name if name.eq_ignore_ascii_case("none") => {
                        ", as anybody can make a token without a signature"
                    }
                    name if name.starts_with("HS") => {
                        ", as whoever checks a token with a shared secret can make one"
                    }
                    _ => "",
                };
                let problem = format!("{name:?} is given; allowed: RS256, ES256, EdDSA{why}");
                scope.fault(&format!("algorithms[{index}]"), problem);
            }
        }
    }
    algorithms
}

/// Reads what roles are called elsewhere.
fn check_roles(scope: &Scope<'_>, given: Option<Table>) -> BTreeMap<String, Role> {
    let mut roles = BTreeMap::new();
    for (name, value) in bounded(scope, "roles", given) {
        if let Some(role) = text_of(scope, &format!("roles.{name}"), &value)
            .and_then(|(option, text)| scope.parse(&option, text))
        {
            roles.insert(name, role);
        }
    }
    roles
}

fn check_required(scope: &Scope<'_>, given: Option<Table>) -> Vec<Wanted> {
    let mut required = Vec::new();
    for (name, value) in bounded(scope, "required", given) {
        let option = format!("required.{name}");
        let claim = scope.parse::<ClaimPath>(&option, &name);
        let value = text_of(scope, &option, &value).map(|(_, text)| text.to_owned());
        if let (Some(claim), Some(value)) = (claim, value) {
            required.push(Wanted { claim, values: vec![value] });
        }
    }
    required
}

fn bounded(scope: &Scope<'_>, option: &str, given: Option<Table>) -> Table {
    let given = given.unwrap_or_default();
    if given.len() > MAX_ENTRIES {
        scope.fault(option, format!("{} are given; allowed: at most {MAX_ENTRIES}", given.len()));
    }
    given
}

fn text_of<'v>(scope: &Scope<'_>, option: &str, value: &'v Value) -> Option<(String, &'v str)> {
    let text = value.as_str().filter(|text| is_text(text));
    if text.is_none() {
        scope.fault(option, format!("allowed: a text of 1 to {MAX_TEXT_BYTES} bytes"));
    }
    text.map(|text| (option.to_owned(), text))
}

type SecondFactor = (Option<String>, Option<Vec<String>>, Option<Vec<String>>);

/// Reads what says that a second factor was shown; all three options, or none.
fn check_second_factor(scope: &Scope<'_>, given: SecondFactor) -> Option<(Wanted, Vec<Role>)> {
    if given.0.is_none() && given.1.is_none() && given.2.is_none() {
        return None;
    }
    let (claim, values, roles) = given;
    for (option, is_given) in
        [("mfa_claim", claim.is_some()), ("mfa_values", values.is_some()), ("mfa_roles", roles.is_some())]
    {
        if !is_given {
            scope.fault(
                option,
                "is missing; allowed: mfa_claim, mfa_values and mfa_roles together, or none of them",
            );
        }
    }
    let values = check_texts(scope, "mfa_values", values);
    let role = |(index, name): (usize, &String)| scope.parse(&format!("mfa_roles[{index}]"), name);
    let named = check_texts(scope, "mfa_roles", roles);
    let roles = named.iter().enumerate().filter_map(role).collect();
    Some((Wanted { claim: scope.parse("mfa_claim", &claim?)?, values }, roles))
}
