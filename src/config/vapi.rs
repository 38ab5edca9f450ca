//! How Vapi proves to be the Vapi of a tenant, and what of it is dialled.

use std::path::PathBuf;

use hyper::header::HeaderName;
use toml::{Table, Value};

use crate::domain::provider::vapi_auth::{HmacEncoding, HmacHash, HmacScheme, PayloadFormat};
use crate::domain::provider::vapi_listen_url::HostSuffix;
use crate::domain::provider::vapi_webhook::CallId;

use super::listen::Tls;
use super::raw;
use super::scope::{Scope, Words};
use super::secret::{References, Secret};

/// Every message is checked against each of them; this bounds what a stranger can cost.
const MAX_SECRETS: usize = 16;
/// Names of hosts that a tenant may allow; Vapi has a handful.
const MAX_HOSTS: usize = 16;
/// Where all hosts of Vapi lie.
const DEFAULT_HOST: &str = "vapi.ai";

/// How the node reaches Vapi.
#[derive(Debug, Clone)]
pub struct VapiNode {
    /// The authorities that vouch for Vapi's hosts; the system's unless given.
    pub ca_file: Option<PathBuf>,
    /// Hosts of this machine and network may be dialled, at any port.
    pub allow_private_hosts: bool,
}

/// How Vapi proves who it is, and which calls are heard.
#[derive(Debug, Clone)]
pub struct Vapi {
    /// Values of `x-vapi-secret`, current first.
    pub secrets: Vec<Secret>,
    /// Bearer tokens, current first.
    pub bearer_tokens: Vec<Secret>,
    /// How messages are signed, where they are.
    pub hmac: Option<VapiHmac>,
    /// The organisations whose calls are this tenant's; any that can authenticate unless given.
    pub org_ids: Vec<String>,
    /// Hosts that listen URLs may name.
    pub listen_hosts: Vec<HostSuffix>,
    /// The organisation's public key, for assistants that ask listeners for it.
    pub listen_key: Option<Secret>,
    /// Whose voice the channels of a listen socket are.
    pub listen_channels: ListenChannels,
}

/// How messages are signed.
#[derive(Debug, Clone)]
pub struct VapiHmac {
    /// The secrets, current first.
    pub secrets: Vec<Secret>,
    /// How a signature is made and written.
    pub scheme: HmacScheme,
    /// The header that it stands in.
    pub signature_header: HeaderName,
    /// The header of the time of signing.
    pub timestamp_header: HeaderName,
    /// The header of the message's id.
    pub message_id_header: HeaderName,
}

/// Whose voice the channels of a listen socket are. Vapi does not say; one test call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenChannels {
    /// Nobody has said.
    Unknown,
    /// The caller on channel 0, the assistant on channel 1.
    CallerFirst,
    /// The assistant on channel 0, the caller on channel 1.
    AssistantFirst,
}

impl VapiNode {
    pub(super) fn check(
        table: Option<Table>,
        top: &Scope<'_>,
        references: &References<'_>,
        tls: Option<&Tls>,
    ) -> Self {
        let (scope, raw): (_, raw::VapiNode) = top.section("vapi", table);
        let ca_file = raw.ca_file.map(|file| scope.path("ca_file", Some(file), PathBuf::new));
        let allow_private_hosts = raw.allow_private_hosts.unwrap_or(false);
        if allow_private_hosts && matches!(tls, Some(Tls::Files { .. })) {
            scope.fault(
                "allow_private_hosts",
                "true is given with a certificate of real calls; allowed: false, or tls.self_signed = true for tests",
            );
        }
        Self { ca_file: ca_file.map(|file| references.dir.join(file)), allow_private_hosts }
    }
}

impl Vapi {
    /// Checks the table; a tenant with routes of Vapi needs something that Vapi proves itself with.
    pub(super) fn check(
        table: Option<Table>,
        scope: &Scope<'_>,
        references: &References<'_>,
        has_routes: bool,
    ) -> Self {
        let (scope, raw): (_, raw::Vapi) = scope.section("vapi", table);
        let is_given = raw.secrets.is_some() || raw.bearer_tokens.is_some() || raw.hmac.is_some();
        if has_routes && !is_given {
            scope.fault(
                "secrets",
                "is missing; allowed: a list such as [{ file = \"…\" }], or bearer_tokens, or hmac",
            );
        }
        let words = Words {
            default: ListenChannels::Unknown,
            allowed: &[
                ("unknown", ListenChannels::Unknown),
                ("caller-first", ListenChannels::CallerFirst),
                ("assistant-first", ListenChannels::AssistantFirst),
            ],
            later: &[],
        };
        Self {
            secrets: secrets(&scope, references, "secrets", raw.secrets),
            bearer_tokens: secrets(&scope, references, "bearer_tokens", raw.bearer_tokens),
            hmac: raw.hmac.and_then(|table| VapiHmac::check(table, &scope, references)),
            org_ids: check_org_ids(&scope, raw.org_ids.unwrap_or_default()),
            listen_hosts: check_hosts(&scope, raw.listen_hosts),
            listen_key: check_listen_key(&scope, references, raw.listen_key),
            listen_channels: scope.word("listen_channels", raw.listen_channels.as_deref(), &words),
        }
    }
}

impl VapiHmac {
    fn check(table: Table, scope: &Scope<'_>, references: &References<'_>) -> Option<Self> {
        let (scope, raw): (_, raw::VapiHmac) = scope.section("hmac", Some(table));
        if raw.secrets.is_none() {
            scope.fault("secrets", "is missing; allowed: a list such as [{ file = \"…\" }]");
        }
        let hashes = Words {
            default: HmacHash::Sha256,
            allowed: &[("sha256", HmacHash::Sha256), ("sha512", HmacHash::Sha512)],
            later: &["sha1"],
        };
        let encodings = Words {
            default: HmacEncoding::Hex,
            allowed: &[("hex", HmacEncoding::Hex), ("base64", HmacEncoding::Base64)],
            later: &[],
        };
        let payload = raw.payload.as_deref().unwrap_or("{timestamp}.{body}");
        let header = |option: &str, given: Option<String>, default: &str| {
            let name = given.unwrap_or_else(|| default.to_owned()).to_ascii_lowercase();
            let parsed = HeaderName::from_bytes(name.as_bytes());
            if parsed.is_err() {
                scope.fault(option, format!("{name:?} is given; allowed: the name of a header"));
            }
            parsed.ok()
        };
        let prefix = raw.prefix.unwrap_or_default();
        if prefix.len() > 64 || !prefix.bytes().all(|b| b.is_ascii_graphic()) {
            scope.fault("prefix", "is no prefix of a header; allowed: up to 64 printable characters");
        }
        let payload = scope.parse::<PayloadFormat>("payload", payload);
        let signature_header = header("signature_header", raw.signature_header, "x-signature");
        let timestamp_header = header("timestamp_header", raw.timestamp_header, "x-timestamp");
        let message_id_header = header("message_id_header", raw.message_id_header, "svix-id");
        Some(Self {
            secrets: secrets(&scope, references, "secrets", raw.secrets),
            scheme: HmacScheme {
                hash: scope.word("algorithm", raw.algorithm.as_deref(), &hashes),
                encoding: scope.word("encoding", raw.encoding.as_deref(), &encodings),
                prefix,
                payload: payload?,
                secret_is_base64: raw.secret_is_base64.unwrap_or(false),
            },
            signature_header: signature_header?,
            timestamp_header: timestamp_header?,
            message_id_header: message_id_header?,
        })
    }
}

fn secrets(
    scope: &Scope<'_>,
    references: &References<'_>,
    option: &str,
    given: Option<Value>,
) -> Vec<Secret> {
    let secrets = references.list(scope, option, given);
    if secrets.len() > MAX_SECRETS {
        scope.fault(option, format!("{} are given; allowed: at most {MAX_SECRETS}", secrets.len()));
    }
    secrets
}

fn check_listen_key(scope: &Scope<'_>, references: &References<'_>, given: Option<Value>) -> Option<Secret> {
    let key = references.list(scope, "listen_key", Some(Value::Array(vec![given?]))).pop()?;
    let is_header = key.expose().iter().all(u8::is_ascii_graphic);
    if !is_header {
        scope.fault("listen_key", "holds what no header may; allowed: printable characters on one line");
    }
    is_header.then_some(key)
}

fn check_org_ids(scope: &Scope<'_>, given: Vec<String>) -> Vec<String> {
    let is_id = |(index, id): (usize, String)| {
        // Written as the ids of calls are.
        let id = id.parse::<CallId>().ok();
        if id.is_none() {
            scope.fault(&format!("org_ids[{index}]"), "is no id; allowed: 36 hexadecimal digits and hyphens");
        }
        id.map(|id| id.as_str().to_owned())
    };
    given.into_iter().enumerate().filter_map(is_id).collect()
}

fn check_hosts(scope: &Scope<'_>, given: Option<Vec<String>>) -> Vec<HostSuffix> {
    let given = given.unwrap_or_else(|| vec![DEFAULT_HOST.to_owned()]);
    if !(1..=MAX_HOSTS).contains(&given.len()) {
        scope.fault("listen_hosts", format!("{} are given; allowed: 1 to {MAX_HOSTS}", given.len()));
    }
    let parse = |(index, host): (usize, &String)| scope.parse(&format!("listen_hosts[{index}]"), host);
    given.iter().enumerate().filter_map(parse).collect()
}
