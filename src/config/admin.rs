//! The admin API: who may use it, and how much.

use std::path::PathBuf;
use std::time::Duration;

use toml::Table;

use super::admin_jwt::AdminJwt;
use super::raw;
use super::recipient::KeysRole;
use super::scope::{Bounds, Scope};
use super::secret::References;

const TOKENS_FILE: &str = "tokens.toml";
const REQUESTS_PER_SEC: Bounds = Bounds::new(50, 1..=10_000);
const REQUEST_TIMEOUT_MS: Bounds = Bounds::new(30_000, 1_000..=600_000);

/// The admin API. Without its table in the configuration there is none.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where API tokens are listed, by their hashes; `callseal token` writes it. It need not be there yet.
    pub tokens_file: PathBuf,
    /// Requests per second of one principal.
    pub requests_per_sec: u32,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// Tokens of an identity provider, if they are known beside those of callseal.
    pub jwt: Option<AdminJwt>,
}

impl Admin {
    /// Checks the table; without one there is no admin API.
    pub(super) fn check(
        (table, jwt): (Option<Table>, Option<Table>),
        top: &Scope<'_>,
        references: &References<'_>,
        role: KeysRole,
    ) -> Option<Self> {
        let jwt = AdminJwt::check(jwt, top, references, table.is_some());
        let (scope, raw): (_, raw::Admin) = top.section("admin", Some(table?));
        if role == KeysRole::Ingest {
            top.fault(
                "admin",
                "is given; allowed: no table [admin] with keys.role = \"ingest\", as a node that opens recordings has the API; \
                 its orders about live calls reach this node through the store",
            );
        }
        let written = scope.path("tokens_file", raw.tokens_file, || PathBuf::from(TOKENS_FILE));
        Some(Self {
            tokens_file: references.dir.join(written),
            requests_per_sec: scope.count("requests_per_sec", raw.requests_per_sec, &REQUESTS_PER_SEC),
            request_timeout: scope.millis("request_timeout_ms", raw.request_timeout_ms, &REQUEST_TIMEOUT_MS),
            jwt,
        })
    }
}
