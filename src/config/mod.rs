//! The whole configuration: read, checked, and only then used.
//!
//! A node has one file, described option by option in `config/callseal.toml`, and one file for each tenant. Both are
//! read at once, every fault of every file is reported at once, and nothing else runs before. Options that are
//! unknown, and options that this version cannot obey, are faults; nothing is ignored in silence.
//!
//! This module is the only one that reads the environment. It makes nothing: no key, certificate or directory.
//!
//! Invariants: a [`Config`] that exists has passed every check; no secret is in a [`Fault`] or in the debug text of a
//! [`Config`].

mod admin;
mod admin_jwt;
mod audit;
mod aws_kms;
mod environment;
mod faults;
mod files;
mod hipaa;
mod index;
mod keys;
mod listen;
mod net;
mod pkcs11;
mod raw;
mod recipient;
mod recording;
mod requests;
mod route;
mod scope;
mod secret;
mod serving;
mod store;
mod stored;
mod sweep;
mod tenant;
#[cfg(test)]
mod tests;
mod traces;
mod twilio;
mod upstream;
mod vapi;
mod vault;
mod webhook;

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Table;

use crate::domain::ids::TenantId;

use environment::Environment;
use faults::Collector;
use hipaa::NodeFacts;
use scope::Scope;
use secret::References;
use tenant::NodeRules;

pub use admin::Admin;
pub use admin_jwt::{AdminJwt, JwtKeys};
pub use audit::Audit;
pub use aws_kms::AwsKms;
pub(crate) use aws_kms::region_of_arn;
pub use environment::process_environment;
pub use faults::{Fault, Faults};
pub use files::{Disk, Files, TenantFile};
pub use hipaa::{HIPAA_EFFECTS, Hipaa, HipaaNode};
pub use index::Index;
pub use keys::{KekName, KeyProviderKind, KeyServices, KeysConfig, TenantKeks};
pub use listen::{Listen, Proxies, Tls};
pub use net::{HttpsUrl, InvalidName, NodeName, PublicUrl, SocketUrl, WebOrigin};
pub use pkcs11::Pkcs11;
pub(crate) use recipient::RECIPIENT_PREFIX;
pub use recipient::{KeysRole, RecipientFiles};
pub use recording::{Journal, Segments, Upload};
pub use requests::Requests;
pub use route::{Dtmf, Record, Route, RouteMode, RouteProvider};
pub use secret::{Secret, SecretRef};
pub use serving::{Drain, Ingest, Log, LogFormat, Playback, Repair};
pub use store::{AwsCredentials, S3, S3Checksum, S3Claims, S3Encryption, S3ObjectLock, StoreKind};
pub use stored::StoredTenants;
pub use sweep::Sweep;
pub use tenant::{
    Limits, NoKeyPolicy, Origin, Retention, Tenant, TenantPlayback, TenantStatus, TenantTickets,
};
pub use traces::Traces;
pub use twilio::{ApiUser, Twilio, TwilioApi};
pub use upstream::{OnLoss, Relay, Upstream};
pub use vapi::{ListenChannels, Vapi, VapiHmac, VapiNode};
pub use vault::{Vault, VaultLogin};
pub use webhook::{Webhook, WebhookNode};

/// A checked configuration.
///
/// Paths of data are relative to the current directory; paths of tenants, secrets and certificates are already joined
/// to the directory of the file that names them.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name under which providers and players reach this node.
    pub public_url: PublicUrl,
    /// The name of this node in audit records.
    pub node: NodeName,
    /// The directory of everything that has no directory of its own; made when missing.
    pub data_dir: PathBuf,
    /// The addresses to bind.
    pub listen: Listen,
    /// The API of operators; `None` where there is none.
    pub admin: Option<Admin>,
    /// Where the certificate is.
    pub tls: Tls,
    /// Authorities of those who may connect to the public listener; `None` where anybody may.
    pub client_ca_file: Option<PathBuf>,
    /// Who may say on whose behalf a request comes.
    pub proxies: Proxies,
    /// Where objects are stored.
    pub store: StoreKind,
    /// Where tenants' KEKs are.
    pub keys: KeysConfig,
    /// How key services are reached.
    pub key_services: KeyServices,
    /// The journal that bounds what a crash can lose.
    pub journal: Journal,
    /// When a segment ends.
    pub segments: Segments,
    /// The limits of the providers' connections.
    pub ingest: Ingest,
    /// How calls are passed on.
    pub relay: Relay,
    /// How Vapi is reached.
    pub vapi: VapiNode,
    /// How notices are delivered.
    pub webhook: WebhookNode,
    /// How segments get to the store.
    pub upload: Upload,
    /// The times of grants.
    pub playback: Playback,
    /// How the audit log is written.
    pub audit: Audit,
    /// When recordings of other nodes are finished by this one.
    pub repair: Repair,
    /// How expired recordings are deleted.
    pub retention: Sweep,
    /// By what recordings can be looked for.
    pub index: Index,
    /// How long requests of people may take.
    pub requests: Requests,
    /// How the node stops.
    pub drain: Drain,
    /// What is logged, and how.
    pub log: Log,
    /// Where traces are sent; `None` where there are none.
    pub traces: Option<Box<Traces>>,
    /// The tenants, with different ids, in the order of their files' names.
    pub tenants: Vec<Tenant>,
    /// How further tenants are kept in the store; `None` where there are none.
    pub stored_tenants: Option<StoredTenants>,
    /// What holds for health data on this node.
    pub hipaa: HipaaNode,
}

/// Where secrets belong, for the command that makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretPlaces {
    /// The keyring.
    pub keyring_file: PathBuf,
    /// Every file that a `{ file = "…" }` names, each once; it may be missing.
    pub secret_files: Vec<PathBuf>,
}

impl Config {
    /// Reads the file of a node and those of its tenants; `env` is [`process_environment`].
    ///
    /// # Errors
    /// Everything that is wrong, in all files.
    pub fn load<K: Into<OsString>, V: Into<OsString>>(
        path: &Path,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, Faults> {
        let (text, base_dir) = read_node_file(path)?;
        Self::from_toml(&text, base_dir, env, &Disk)
    }

    /// Checks the text of a node's file that stands in `base_dir`, and what it names among `files`.
    ///
    /// # Errors
    /// Everything that is wrong. When the text is not TOML at all, that alone.
    pub fn from_toml<K: Into<OsString>, V: Into<OsString>>(
        text: &str,
        base_dir: &Path,
        env: impl IntoIterator<Item = (K, V)>,
        files: &dyn Files,
    ) -> Result<Self, Faults> {
        let mut table =
            parse_toml(text).map_err(|problem| Faults::one("configuration".to_owned(), problem))?;
        let env = Environment::new(env);
        let faults = Collector::default();
        let overrides = env.apply(&mut table, &faults);
        let checked =
            Self::check(table, &References { dir: base_dir, env: &env, files, from_store: None }, &faults);
        for (option, variable) in overrides {
            faults.name_variable(&option, &variable);
        }
        faults.finish(checked)
    }

    /// Finds the files that secrets belong in, without reading them.
    ///
    /// # Errors
    /// Everything that is wrong but for these files and the certificates.
    pub fn secret_places<K: Into<OsString>, V: Into<OsString>>(
        path: &Path,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<SecretPlaces, Faults> {
        let (text, base_dir) = read_node_file(path)?;
        let survey = files::Survey::default();
        let config = Self::from_toml(&text, base_dir, env, &survey)?;
        let mut secret_files = survey.0.into_inner();
        secret_files.sort();
        secret_files.dedup();
        Ok(SecretPlaces { keyring_file: config.keys.keyring_file, secret_files })
    }

    /// Finds the address of the ops listener. Of the rest only the names of options are checked, and no other file is read.
    ///
    /// # Errors
    /// What is wrong with the file or with `listen`.
    pub fn ops_address<K: Into<OsString>, V: Into<OsString>>(
        path: &Path,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<SocketAddr, Faults> {
        let (text, _) = read_node_file(path)?;
        let mut table =
            parse_toml(&text).map_err(|problem| Faults::one("configuration".to_owned(), problem))?;
        let faults = Collector::default();
        let overrides = Environment::new(env).apply(&mut table, &faults);
        let top = Scope::node(&faults);
        let raw: raw::Node = top.read(table);
        let listen = Listen::check(raw.listen, &top);
        for (option, variable) in overrides {
            faults.name_variable(&option, &variable);
        }
        faults.finish(Some(listen.ops))
    }

    /// Finds a tenant by its id.
    pub fn tenant(&self, id: &TenantId) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.id == *id)
    }

    #[expect(clippy::too_many_lines, reason = "one line for each table")]
    fn check(table: Table, references: &References<'_>, faults: &Collector) -> Option<Self> {
        let top = Scope::node(faults);
        let raw: raw::Node = top.read(table);
        let services = keys::given_services(&raw);
        let public_url = check_public_url(raw.public_url.as_deref(), &top);
        let node = raw.node.map_or_else(|| Some(NodeName::default()), |name| top.parse("node", &name));
        let data_dir = top.path("data_dir", raw.data_dir, || PathBuf::from("data"));
        let (tls, client_ca_file) = Tls::check(raw.tls, &top, references, &data_dir);
        let segments = Segments::check(raw.segments, &top);
        let upload = Upload::check(raw.upload, &top, &segments);
        let playback = Playback::check(raw.playback, &top);
        let listen = Listen::check(raw.listen, &top);
        let proxies = Proxies::check(raw.trusted_proxies, raw.client_ip_header.as_deref(), &top);
        let store = StoreKind::check(raw.store, &top, &data_dir, references);
        let key_services = KeyServices::check((raw.aws_kms, raw.vault, raw.pkcs11), &top, references);
        let keys = KeysConfig::check(raw.keys, &top, &data_dir);
        let journal = Journal::check(raw.journal, &top, &data_dir);
        let ingest = Ingest::check(raw.ingest, &top);
        let relay = Relay::check(raw.relay, &top, references);
        let vapi = VapiNode::check(raw.vapi, &top, references, tls.as_ref());
        let webhook = WebhookNode::check(raw.webhook, &top, references);
        let audit = Audit::check(raw.audit, &top);
        let repair = Repair::check(raw.repair, &top, keys.role);
        let retention = Sweep::check(raw.retention, &top, keys.role);
        let index = Index::check(raw.index, &top);
        let requests = Requests::check(raw.requests, &top);
        let drain = Drain::check(raw.drain, &top);
        let log = Log::check(raw.log, &top);
        let traces = Traces::check(raw.traces, &top, references).map(Box::new);
        let admin = Admin::check((raw.admin, raw.admin_jwt), &top, references, keys.role);
        let (scope, mut raw_tenants): (_, raw::Tenants) = top.section("tenants", raw.tenants);
        let hipaa = HipaaNode::check(raw.hipaa, &top);
        let facts = NodeFacts {
            hipaa: &hipaa,
            store: store.as_ref(),
            locks_memory: keys.require_locked_memory,
            has_admin: admin.is_some(),
            traces: traces.as_deref(),
        };
        let rules = NodeRules { keys: &keys, max_ttl: playback.max_ttl, facts };
        let stored_tenants = StoredTenants::check(&mut raw_tenants, &scope, references);
        let tenants = check_tenants(raw_tenants, &scope, references, rules, faults);
        keys::require_services(&tenants, services, &top);
        recipient::refuse_services(keys.role, services, &top);
        let recipient = RecipientFiles::check(raw.recipient, &top, references, (&keys, &tenants));
        // Only here, after all faults have been found, may the check end early.
        let (public_url, node, tls, store, key_services) = (public_url?, node?, tls?, store?, key_services?);
        Some(Self {
            public_url,
            node,
            data_dir,
            listen,
            admin,
            tls,
            client_ca_file,
            proxies,
            store,
            keys,
            key_services: KeyServices { recipient, ..key_services },
            journal,
            segments,
            ingest,
            relay,
            vapi,
            webhook,
            upload,
            playback,
            audit,
            repair,
            retention,
            index,
            requests,
            drain,
            log,
            traces,
            tenants,
            stored_tenants,
            hipaa,
        })
    }
}

/// Reads a node's file; returns its text and directory.
fn read_node_file(path: &Path) -> Result<(String, &Path), Faults> {
    let text = fs::read_to_string(path)
        .map_err(|error| Faults::one(path.display().to_string(), files::unreadable(path, &error)))?;
    Ok((text, path.parent().unwrap_or(Path::new(""))))
}

/// Parses TOML; the problem says where it is, but shows nothing of the text.
fn parse_toml(text: &str) -> Result<Table, String> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("is not TOML at line {line}, column {column}: {}", error.message())
    })
}

fn check_public_url(given: Option<&str>, scope: &Scope<'_>) -> Option<PublicUrl> {
    let Some(given) = given else {
        scope.fault(
            "public_url",
            "is missing; allowed: the name that providers dial, such as \"wss://media.example.com\"",
        );
        return None;
    };
    if given.contains('@') {
        scope.fault("public_url", "holds a user or password; allowed: \"wss://host\" or \"wss://host:port\"");
        return None;
    }
    scope.parse("public_url", given)
}

/// Reads and checks the tenants' files; those with a fault are left out.
fn check_tenants(
    raw: raw::Tenants,
    scope: &Scope<'_>,
    node: &References<'_>,
    rules: NodeRules<'_>,
    faults: &Collector,
) -> Vec<Tenant> {
    let dir = scope.path("dir", raw.dir, || PathBuf::from("tenants"));
    let references = References { dir: &node.dir.join(&dir), ..*node };
    let files = node.files.tenant_files(references.dir).unwrap_or_else(|problem| {
        scope.fault("dir", problem);
        Vec::new()
    });
    let mut labels: Vec<(TenantId, String)> = Vec::new();
    let mut tenants = Vec::new();
    for file in files {
        let label = dir.join(&file.name).display().to_string();
        let table = match file.text.and_then(|text| parse_toml(&text)) {
            Ok(table) => table,
            Err(problem) => {
                faults.add(label, problem);
                continue;
            }
        };
        let scope = Scope::tenant_file(faults, &label);
        let checked = Tenant::check(table, &scope, &references, rules);
        tenants.extend(checked.tenant);
        let Some(id) = checked.id else { continue };
        match labels.iter().find(|(other, _)| *other == id) {
            Some((_, other)) => scope.fault("id", format!("\"{id}\" is already the id of {other}")),
            None => labels.push((id, label)),
        }
    }
    tenants
}
