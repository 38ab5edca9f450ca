//! Where the node listens, with which certificates, and whom it believes about addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use hyper::header::HeaderName;
use toml::Table;

use crate::domain::address::IpRange;

use super::raw;
use super::scope::Scope;
use super::secret::References;

const PUBLIC: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9443);
const OPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
const CLIENT_IP_HEADER: HeaderName = HeaderName::from_static("cf-connecting-ip");

/// The addresses to bind. Port 0 lets the system choose one.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Providers and players, over TLS.
    pub public: SocketAddr,
    /// The admin API, over TLS; bound only where the configuration has one.
    pub admin: SocketAddr,
    /// Metrics, readiness and drain, in plain; always a loopback address.
    pub ops: SocketAddr,
}

impl Listen {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Listen) = top.section("listen", table);
        let public = address(&scope, "public", raw.public.as_deref(), PUBLIC);
        let admin = address(&scope, "admin", raw.admin.as_deref(), ADMIN);
        let ops = address(&scope, "ops", raw.ops.as_deref(), OPS);
        if !ops.ip().to_canonical().is_loopback() {
            scope.fault(
                "ops",
                format!("\"{ops}\" is given; allowed: a loopback address such as \"127.0.0.1:9464\""),
            );
        }
        for (option, own, others) in [
            ("admin", admin, &[("public", public)][..]),
            ("ops", ops, &[("public", public), ("admin", admin)]),
        ] {
            for (other, taken) in others.iter().filter(|(_, taken)| are_same_place(own, *taken)) {
                let problem =
                    format!("\"{own}\" is also taken by listen.{other}, \"{taken}\"; allowed: another port");
                scope.fault(option, problem);
            }
        }
        Self { public, admin, ops }
    }
}

/// Whether one of two addresses could not be bound beside the other.
fn are_same_place(a: SocketAddr, b: SocketAddr) -> bool {
    let is_same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && is_same_ip
}

fn address(scope: &Scope<'_>, option: &str, given: Option<&str>, default: SocketAddr) -> SocketAddr {
    let Some(given) = given else { return default };
    given.parse().unwrap_or_else(|_| {
        scope
            .fault(option, format!("{given:?} is given; allowed: an address and port such as \"{default}\""));
        default
    })
}

/// Where the certificate of the public listener is.
#[derive(Debug, Clone)]
pub enum Tls {
    /// Made at start, for development; clients cannot check it.
    SelfSigned {
        /// The directory that keeps the certificate and its key.
        dir: PathBuf,
    },
    /// Given by the operator, PEM.
    Files {
        /// The certificate and the chain below it.
        cert_file: PathBuf,
        /// The private key.
        key_file: PathBuf,
    },
}

impl Tls {
    /// Answers also the file of authorities one of which must have certified whoever connects; anybody may without it.
    pub(super) fn check(
        table: Option<Table>,
        top: &Scope<'_>,
        references: &References<'_>,
        data_dir: &Path,
    ) -> (Option<Self>, Option<PathBuf>) {
        let (scope, raw): (_, raw::Tls) = top.section("tls", table);
        let client_ca_file =
            raw.client_ca_file.map(|file| readable(&scope, "client_ca_file", file, references));
        let is_self_signed = raw.self_signed.unwrap_or(false);
        let own = match (is_self_signed, raw.cert_file, raw.key_file) {
            (true, None, None) => Some(Self::SelfSigned { dir: data_dir.join("tls") }),
            (false, Some(cert), Some(key)) => Some(Self::Files {
                cert_file: readable(&scope, "cert_file", cert, references),
                key_file: readable(&scope, "key_file", key, references),
            }),
            (true, ..) => {
                scope.fault(
                    "self_signed",
                    "true is given beside cert_file or key_file; allowed: one of the two ways",
                );
                None
            }
            (false, ..) => {
                scope
                    .fault_here("has no certificate; allowed: cert_file and key_file, or self_signed = true");
                None
            }
        };
        (own, client_ca_file)
    }
}

/// Takes the path of a file, relative to the directory of the file that names it, and checks that it can be read.
fn readable(scope: &Scope<'_>, option: &str, given: String, references: &References<'_>) -> PathBuf {
    let written = scope.path(option, Some(given), PathBuf::new);
    let path = references.dir.join(&written);
    if !written.as_os_str().is_empty()
        && let Err(problem) = references.files.check_readable(&path)
    {
        scope.fault(option, problem);
    }
    path
}

/// Who may say on whose behalf a request comes.
#[derive(Debug, Clone)]
pub struct Proxies {
    /// The proxies that are believed; empty when clients connect directly.
    pub trusted: Vec<IpRange>,
    /// The header that carries the client's address; none when no proxy is trusted.
    pub client_ip_header: Option<HeaderName>,
}

impl Proxies {
    pub(super) fn check(ranges: Option<Vec<String>>, header: Option<&str>, scope: &Scope<'_>) -> Self {
        let ranges = ranges.unwrap_or_default();
        if ranges.is_empty() && header.is_some() {
            scope.fault("client_ip_header", "is given, but no trusted_proxies; allowed: both or none");
        }
        let header = header.and_then(|text| parse_header(text, scope)).unwrap_or(CLIENT_IP_HEADER);
        let parse = |(index, text): (usize, &String)| scope.parse(&format!("trusted_proxies[{index}]"), text);
        let trusted = ranges.iter().enumerate().filter_map(parse).collect();
        Self { trusted, client_ip_header: (!ranges.is_empty()).then_some(header) }
    }
}

fn parse_header(text: &str, scope: &Scope<'_>) -> Option<HeaderName> {
    let header = text.parse().ok();
    if header.is_none() {
        scope.fault("client_ip_header", format!("{text:?} is given; allowed: the name of an HTTP header"));
    }
    header
}
