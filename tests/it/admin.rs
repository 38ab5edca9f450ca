//! The admin API, as programs use it: over TLS, with tokens of the command line.

mod access;
mod audit;
mod calls;
mod deletions;
mod exports;
mod idempotency;
mod jwt;
mod recordings;
mod requests;
mod retention;
mod tenants;

use callseal::simulate::HttpsClient;
use hyper::Method;
use serde_json::Value;

use crate::support::{Home, Server, Setup, TENANT, TenantSetup};

const OTHER: &str = "other-tenant";

/// A node with two tenants and an admin API.
fn setup() -> Setup {
    let route = |name: &str, lines: &str| (name.to_owned(), lines.to_owned());
    let with_more = |tenant: &mut TenantSetup| {
        tenant
            .top
            .push_str("\n[tickets]\nkeys = { t1 = { file = \"../secrets/ticket\" } }\nmax_ttl_secs = 600\n");
        tenant.routes.push(route("ticketed", "require_ticket = true"));
        tenant.routes.push(route("consenting", "record = \"on-consent\""));
    };
    Setup::new()
        .option("admin", "tokens_file", "\"tokens.toml\"")
        .option("admin", "requests_per_sec", "10000")
        .tenant(with_more)
        .add_tenant(TenantSetup::new(OTHER))
}

/// Makes a token; answers its text.
pub(crate) fn token(home: &Home, role: &str, tenant: Option<&str>) -> String {
    let made = ["token", "create", "--name", role, "--role", role];
    let reach = tenant.map_or(vec!["--all-tenants"], |tenant| vec!["--tenant", tenant]);
    home.run_ok(&[&made[..], &reach[..]].concat()).trim().to_owned()
}

/// Starts a node that knows a token of each of these roles, for [`TENANT`].
fn serve(roles: &[&str]) -> (Home, Server, Vec<Asker>) {
    let home = setup().write();
    let tokens: Vec<_> = roles.iter().map(|role| token(&home, role, Some(TENANT))).collect();
    let server = home.serve();
    let askers = tokens.iter().map(|token| Asker::new(&server, token)).collect();
    (home, server, askers)
}

/// Somebody with a token.
pub(crate) struct Asker {
    client: HttpsClient,
    token: String,
}

/// What the API answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) body: Value,
    request: String,
    etag: String,
    pub(crate) headers: hyper::HeaderMap,
}

impl Asker {
    pub(crate) fn new(server: &Server, token: &str) -> Self {
        Self { client: server.admin(), token: token.to_owned() }
    }

    async fn ask(&self, method: Method, path: &str, reason: Option<&str>, body: Option<Value>) -> Answered {
        let reason: Vec<_> = reason.map(|reason| ("x-callseal-reason", reason)).into_iter().collect();
        self.ask_with(method, path, &reason, body).await
    }

    /// Asks with further headers.
    pub(crate) async fn ask_with(
        &self,
        method: Method,
        path: &str,
        more: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answered {
        let bearer = format!("Bearer {}", self.token);
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(more);
        headers.extend(body.as_ref().map(|_| ("content-type", "application/json")));
        let body = body.map(|body| body.to_string().into()).unwrap_or_default();
        let answer = self.client.request(method, path, &headers, body).await.unwrap();
        let header =
            |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert!(header("strict-transport-security").starts_with("max-age=63072000"));
        assert_eq!(header("cache-control"), "no-store");
        let kind = if answer.status.is_success() { "application/json" } else { "application/problem+json" };
        assert_eq!(header("content-type"), kind, "{path}: {}", answer.status);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let request = header("x-request-id").to_owned();
        if !answer.status.is_success() {
            assert_eq!(
                (&body["status"], &body["request"]),
                (&answer.status.as_u16().into(), &request.clone().into())
            );
        }
        let etag = header("etag").to_owned();
        Answered { status: answer.status.as_u16(), body, request, etag, headers: answer.headers }
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.ask(Method::GET, path, None, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answered {
        self.ask(Method::POST, path, None, Some(body)).await
    }

    pub(crate) async fn post_because(&self, path: &str, reason: &str) -> Answered {
        self.ask(Method::POST, path, Some(reason), None).await
    }
}

/// Writes the path of something of [`TENANT`].
pub(crate) fn path(rest: &str) -> String {
    format!("/v1/tenants/{TENANT}/{rest}")
}

/// Returns the audit records of [`TENANT`] with this action.
pub(crate) fn audited(home: &Home, action: &str) -> Vec<Value> {
    let mut records = home.run_json(&["audit", "show", "--tenant", TENANT]);
    records.retain(|record| record["action"] == action);
    records
}
