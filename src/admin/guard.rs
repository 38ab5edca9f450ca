//! What every request passes before a handler sees it: who asks, what they may do, on which tenant, how often, and why.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, MatchedPath, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::clock;
use crate::config::Tenant;
use crate::control::audit::AuditEvent;
use crate::domain::access::{OPERATIONS, Operation, Principal, Role, operation};
use crate::observe::metrics as names;
use crate::observe::traces::{Place, Span, words};

use super::error::ApiError;
use super::jwt::JwtRefusal;
use super::tokens::{self, TokenRefusal};
use super::{Shared, idempotency};

/// Where the reason for an access stands.
pub(super) const REASON: &str = "x-callseal-reason";
/// The longest reason, in bytes; it goes into the audit log.
const MAX_REASON_BYTES: usize = 256;
/// Principals whose pace is remembered; more than there are tokens.
const MAX_PACED: usize = 4_096;

/// What is known of every request.
#[derive(Clone)]
pub(super) struct Meta {
    pub(super) id: String,
    /// Where it comes from; a proxy's client, if the proxy is trusted.
    pub(super) source: IpAddr,
}

/// Who asks, and as what.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) principal: Principal,
    /// The role that allows it.
    role: Role,
    reason: Option<String>,
    meta: Meta,
    /// Whose things it is about; `None` for operations about all tenants.
    tenant: Option<Arc<Tenant>>,
}

impl Caller {
    /// Returns whose things it is about.
    pub(super) fn tenant(&self) -> Result<&Arc<Tenant>, ApiError> {
        self.tenant.as_ref().ok_or(ApiError::NotFound)
    }

    /// Returns the id of the request.
    pub(super) fn request(&self) -> &str {
        &self.meta.id
    }

    /// Returns the role that allows it.
    pub(super) fn role(&self) -> &'static str {
        self.role.name()
    }

    /// Returns why, in the caller's words.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Returns what the audit log is told of an allowed action.
    pub(super) fn event(&self, action: &str, subject: String) -> AuditEvent {
        let event = AuditEvent::by_operator(&self.principal.actor, action, subject);
        self.complete(event)
    }

    /// Adds who asks, from where and why to an event.
    pub(super) fn complete(&self, event: AuditEvent) -> AuditEvent {
        AuditEvent {
            actor: self.principal.actor.clone(),
            role: self.role.name().to_owned(),
            source: Some(self.meta.source.to_string()),
            reason: event.reason.clone().or_else(|| self.reason.clone()),
            request: self.meta.id.clone(),
            key: event.key.clone().or_else(|| Some(self.principal.key.clone())),
            ..event
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // The guard has put it there; without one, nobody is asking.
        parts.extensions.get().cloned().ok_or(ApiError::Unauthorized("no token"))
    }
}

/// Lets through who may, and counts what becomes of it.
pub(super) async fn guard(
    State(shared): State<Shared>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let method = request.method().as_str().to_owned();
    let Some(wanted) = operation(&method, path.as_str()) else {
        let methods = OPERATIONS.iter().filter(|operation| operation.path == path.as_str());
        let methods: Vec<_> = methods.map(|operation| operation.method).collect();
        return ApiError::MethodNotAllowed(methods.join(", ")).into_response();
    };
    let response = match admit(&shared, wanted, request).await {
        Ok(request) => {
            let mut span = begin_span(&request, wanted);
            let answering = span.place().around(idempotency::answer(&shared, wanted, request, next));
            let answered = tokio::time::timeout(shared.pace.timeout, answering).await;
            let response =
                answered.unwrap_or_else(|_| ApiError::Unavailable("an answer in time").into_response());
            span.number(words::STATUS, response.status().as_u16().into());
            if response.status().is_server_error() {
                span.fail("server_error");
            }
            response
        }
        Err(refused) => refused.into_response(),
    };
    let status = response.status().as_u16().to_string();
    ::metrics::counter!(names::ADMIN_REQUESTS, "operation" => wanted.id, "status" => status).increment(1);
    response
}

/// Begins what is told of a request. Whoever was let through may say which trace it is a part of.
fn begin_span(request: &Request, wanted: &'static Operation) -> Span {
    let place = Place::of_request(request.headers());
    let mut span = Span::begin_kind(words::ADMIN, wanted.id, &place);
    span.word(words::OPERATION, wanted.id);
    if let Some(caller) = request.extensions().get::<Caller>() {
        span.request(caller.request());
        span.word(words::ROLE, caller.role());
        if let Some(tenant) = &caller.tenant {
            span.tenant(&tenant.id);
        }
    }
    span
}

async fn admit(shared: &Shared, wanted: &'static Operation, request: Request) -> Result<Request, ApiError> {
    let (mut parts, body) = request.into_parts();
    let meta: Meta = parts.extensions.get().cloned().ok_or(ApiError::Unauthorized("no request id"))?;
    let principal = principal(shared, &parts.headers, &meta).await?;
    if !shared.pace.takes(&principal.actor, clock::monotonic()) {
        return Err(ApiError::TooMany);
    }
    let tenant = tenant(shared, &principal, wanted, &mut parts).await?;
    let Some(role) = principal.role_for(wanted) else {
        return Err(refused(shared, &principal, wanted, &meta, tenant.as_deref()).await);
    };
    let reason = reason(&parts.headers)?;
    if reason.is_none() && needs_reason(wanted, role, tenant.as_deref()) {
        return Err(ApiError::invalid(REASON, "is missing; say why, in 1 to 256 bytes"));
    }
    parts.extensions.insert(Caller { principal, role, reason, meta, tenant });
    Ok(Request::from_parts(parts, body))
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, more) = (values.next(), values.next());
    let Some(first) = first.filter(|_| more.is_none()) else {
        return Err(ApiError::Unauthorized("send one header: Authorization: Bearer TOKEN"));
    };
    let text = first.to_str().ok().and_then(|text| text.split_once(' '));
    let token =
        text.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    let Some(token) = token else {
        return Err(ApiError::Unauthorized("send one header: Authorization: Bearer TOKEN"));
    };
    Ok(token)
}

/// Says who asks. Whoever brings a token of an identity provider that is worth nothing is told only that.
async fn principal(shared: &Shared, headers: &HeaderMap, meta: &Meta) -> Result<Principal, ApiError> {
    let token = bearer(headers)?;
    let refuse = |why: &dyn std::error::Error| {
        tracing::warn!(source = %meta.source, %why, "admin API refuses a token");
    };
    if let Some(issuer) = shared.issuer.as_ref().filter(|_| !tokens::is_ours(token)) {
        return issuer.find(token).await.map_err(|why| {
            refuse(&why);
            match why {
                JwtRefusal::Refused(_) => ApiError::Unauthorized("the token is not valid"),
                JwtRefusal::NoKeys => ApiError::Unavailable("the key set of the identity provider"),
            }
        });
    }
    shared.tokens.find(token).map_err(|why| {
        refuse(&why);
        match why {
            TokenRefusal::Unknown => ApiError::Unauthorized("the token is not known"),
            TokenRefusal::Expired => ApiError::Unauthorized("the token has expired"),
        }
    })
}

/// Finds the tenant that the path names. One that the principal may not know of is not there.
async fn tenant(
    shared: &Shared,
    principal: &Principal,
    wanted: &Operation,
    parts: &mut Parts,
) -> Result<Option<Arc<Tenant>>, ApiError> {
    if !wanted.path.contains("{tenant}") {
        return Ok(None);
    }
    let Path(named) = Path::<HashMap<String, String>>::from_request_parts(parts, &())
        .await
        .map_err(|_| ApiError::NotFound)?;
    let id = named.get("tenant").and_then(|id| id.parse().ok()).filter(|id| principal.reach.covers(id));
    id.and_then(|id| shared.node.tenant(&id)).map(Some).ok_or(ApiError::NotFound)
}

/// Notes that somebody whom we know wanted what they may not.
async fn refused(
    shared: &Shared,
    principal: &Principal,
    wanted: &'static Operation,
    meta: &Meta,
    tenant: Option<&Tenant>,
) -> ApiError {
    let role = principal.roles.first().map_or("none", |role| role.name());
    tracing::warn!(actor = principal.actor, operation = wanted.id, "admin API refuses an operation");
    if let Some(tenant) = tenant {
        let event = AuditEvent {
            role: role.to_owned(),
            source: Some(meta.source.to_string()),
            result: "forbidden".to_owned(),
            request: meta.id.clone(),
            key: Some(principal.key.clone()),
            ..AuditEvent::by_operator(&principal.actor, wanted.id, tenant.id.to_string())
        };
        if let Err(error) = shared.node.audit.record(&tenant.id, event).await {
            // It is refused in any case.
            tracing::error!(error = &error as &dyn std::error::Error, "a refusal is not in the audit log");
        }
    }
    ApiError::Forbidden(wanted)
}

/// Of health data everybody says why they want it.
fn needs_reason(wanted: &Operation, role: Role, tenant: Option<&Tenant>) -> bool {
    wanted.needs_reason || role == Role::Operator || tenant.is_some_and(|tenant| tenant.hipaa.is_some())
}

fn reason(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(REASON) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes()).ok().map(str::trim);
    let good =
        text.filter(|text| (1..=MAX_REASON_BYTES).contains(&text.len()) && !text.contains(char::is_control));
    match good {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(ApiError::invalid(REASON, "allowed: 1 to 256 bytes of UTF-8 without control characters")),
    }
}

/// How often each principal may ask, and how long one request may take.
pub(super) struct Pace {
    per_sec: u32,
    pub(super) timeout: Duration,
    /// Requests left of each principal, and when that was so.
    left: Mutex<HashMap<String, (f64, Instant)>>,
}

impl Pace {
    /// Twice as many as in a second may come at once.
    pub(super) fn new(per_sec: u32, timeout: Duration) -> Self {
        Self { per_sec, timeout, left: Mutex::default() }
    }

    /// How long one request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    fn takes(&self, actor: &str, now: Instant) -> bool {
        let (per_sec, burst) = (f64::from(self.per_sec), 2.0 * f64::from(self.per_sec));
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if left.len() >= MAX_PACED && !left.contains_key(actor) {
            // Tokens are few; whoever has been silent for a second starts anew.
            left.retain(|_, (_, at)| now.duration_since(*at) < Duration::from_secs(1));
        }
        let (requests, at) = left.entry(actor.to_owned()).or_insert((burst, now));
        *requests = (*requests + now.duration_since(*at).as_secs_f64() * per_sec).min(burst);
        *at = now;
        let is_taken = *requests >= 1.0;
        if is_taken {
            *requests -= 1.0;
        }
        is_taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_principal_has_its_own_pace() {
        let pace = Pace::new(10, Duration::from_secs(1));
        let now = clock::monotonic();
        assert_eq!((0..100).filter(|_| pace.takes("a", now)).count(), 20);
        assert!(pace.takes("b", now));
        let later = now + Duration::from_millis(500);
        assert_eq!((0..100).filter(|_| pace.takes("a", later)).count(), 5);
    }

    #[test]
    fn of_health_data_everybody_says_why() {
        let plain = crate::tenants::plain_tenant();
        let mut clinic = plain.clone();
        clinic.hipaa = Some(crate::config::Hipaa::default());
        for operation in &OPERATIONS {
            for role in Role::ALL {
                let usual = operation.needs_reason || role == Role::Operator;
                assert_eq!(needs_reason(operation, role, Some(&plain)), usual, "{}", operation.id);
                assert_eq!(needs_reason(operation, role, None), usual, "{}", operation.id);
                assert!(needs_reason(operation, role, Some(&clinic)), "{}", operation.id);
            }
        }
    }

    #[test]
    fn reasons_are_bounded_text() {
        let read = |bytes: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REASON, axum::http::HeaderValue::from_bytes(bytes).unwrap());
            reason(&headers)
        };
        assert_eq!(
            read("Beschwerde über Gespräch".as_bytes()).unwrap().as_deref(),
            Some("Beschwerde über Gespräch")
        );
        for wrong in [&b""[..], b"  ", &[b'x'; 257], &[0xff, 0xfe], b"a\tb"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(reason(&HeaderMap::new()).unwrap(), None);
    }
}
