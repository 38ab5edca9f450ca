//! `GET` and `HEAD /play/{tenant}/{recording}.wav`: audio for whoever has a grant.
//!
//! Order: the grant's signature, its terms, the recording, a durable audit record, and only then audio. A node that only records
//! looks at nothing of it, as it has not even the keys that grants are signed with.

use std::net::IpAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, StreamBody};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Request, StatusCode, header};

use crate::clock;
use crate::config::{Tenant, TenantStatus};
use crate::control::audit::AuditEvent;
use crate::control::recordings::{RecordingError, StoredRecording};
use crate::control::restriction::is_restricted;
use crate::control::retention::receipt;
use crate::domain::address::IpRange;
use crate::domain::audio::Codec;
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::playback::grant::{Grant, GrantCheck, GrantFault, GrantLimits, SignedGrant};
use crate::domain::playback::range::{ByteRange, if_range_matches};
use crate::domain::playback::wav::{Encoding, WavLayout};
use crate::domain::retention::Order;
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::node::Node;
use crate::observe::metrics;
use crate::observe::traces::{Span, words};

use super::play_body::{PlayRequest, play};
use super::traced::Traced;
use crate::answer::{Answer, empty, problem, set};
use crate::ingest::Peer;
use crate::upload::newest_order;

/// A refusal: status, stable code and a text for the client.
#[derive(Clone)]
struct Refused {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl Refused {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "no such recording")
    }

    /// Only for whoever has a grant, as well.
    fn restricted() -> Self {
        let status = StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS;
        Self::new(status, "restricted", "the use of the recording is restricted at somebody's request")
    }

    /// Only for whoever has a grant: nobody else learns that there was one.
    fn deleted() -> Self {
        Self::new(StatusCode::GONE, "deleted", "the recording was deleted")
    }
}

/// Answers a playback request.
pub(super) async fn answer<B>(request: &Request<B>, peer: Peer, id: &str, node: Arc<Node>) -> Answer {
    let mut span = Span::default();
    let outcome = match request.method() {
        &Method::GET | &Method::HEAD => {
            span = Span::begin(words::PLAYBACK);
            span.request(id);
            span.place().around(serve(request, peer, id, &node, &mut span)).await
        }
        &Method::OPTIONS => return preflight(request, &node),
        _ => Err(Refused::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "allowed: GET, HEAD, OPTIONS",
        )),
    };
    let mut answer = match outcome {
        Ok(answer) => {
            ::metrics::counter!(metrics::PLAYS, "result" => "allowed").increment(1);
            answer
        }
        Err(Refused { status, code, detail }) => {
            ::metrics::counter!(metrics::PLAYS, "result" => code).increment(1);
            span.fail(code);
            let mut answer = problem(status, code, &detail, id);
            if status == StatusCode::METHOD_NOT_ALLOWED {
                set(answer.headers_mut(), header::ALLOW, "GET, HEAD, OPTIONS");
            }
            answer
        }
    };
    span.number(words::STATUS, answer.status().as_u16().into());
    let headers = answer.headers_mut();
    set(headers, header::CACHE_CONTROL, "private, no-store");
    if let Some(tenant) = parse_path(request.uri().path()).and_then(|(tenant, _)| node.tenant(&tenant)) {
        add_cors(request.headers(), &tenant, headers);
    }
    Traced::keep(span, answer)
}

async fn serve<B>(
    request: &Request<B>,
    peer: Peer,
    id: &str,
    node: &Arc<Node>,
    span: &mut Span,
) -> Result<Answer, Refused> {
    let (tenant_id, recording) = parse_path(request.uri().path()).ok_or_else(Refused::not_found)?;
    if !node.keys.opens() {
        let detail = "this node cannot open recordings; ask a node that does";
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "write_only", detail));
    }
    let query = request.uri().query().unwrap_or_default();
    let tenant = node.tenant(&tenant_id);
    let grant = SignedGrant::parse_query(&tenant_id, recording, query)
        .map_err(|fault| bad_grant(&fault))
        .and_then(|signed| check_grant(&signed, tenant.as_deref(), peer.source, node).cloned());
    let found = match &grant {
        Ok(grant) => {
            // Only of whoever has a link: what others name may be anything.
            span.tenant(&grant.tenant);
            span.recording(grant.recording);
            find(grant, node).await
        }
        Err(refused) => Err(refused.clone()),
    };
    let result = found.as_ref().map_or_else(|refused| refused.code, |_| "allowed");
    let event = audit_event(grant.as_ref().ok(), &recording, peer, id, result);
    let recorded = match (&tenant, &grant) {
        (None, _) => false,
        (Some(_), Ok(_)) => node.audit.record(&tenant_id, event).await.is_ok(),
        // Anybody can be refused as often as they like, so that must not fill the bucket.
        (Some(_), Err(_)) => node.audit.record_refusal(&tenant_id, event).await.is_ok(),
    };
    // A refusal is recorded when it can be; there is nothing to hold back if it cannot.
    let (grant, Found { opened, encoding, layout }) = (grant?, found?);
    if !recorded {
        let (status, detail) = (StatusCode::SERVICE_UNAVAILABLE, "try again in a moment");
        return Err(Refused::new(status, "audit_unavailable", detail));
    }
    let etag =
        format!("\"{}-{}-{}\"", encode_hex(&opened.version()), encoding_name(encoding), grant.track.as_str());
    let cut_at = UnixMillis(grant.exp.saturating_mul(1000)).plus(node.config.playback.cut_after_exp);
    let play_request = PlayRequest { recording: opened, layout, track: grant.track, cut_at };
    respond(request, play_request, &etag, &grant)
}

/// What a grant lets play.
struct Found {
    opened: Arc<StoredRecording>,
    encoding: Encoding,
    layout: WavLayout,
}

async fn find(grant: &Grant, node: &Node) -> Result<Found, Refused> {
    let store = Arc::clone(&node.store);
    let (opened, order, restricted) = tokio::join!(
        StoredRecording::open(store, &node.keys, &grant.tenant, grant.recording),
        newest_order(&*node.store, grant.tenant.tag(), grant.recording),
        is_restricted(&*node.store, grant.tenant.tag(), grant.recording),
    );
    let refused = |error: RecordingError| recording_refused(&error, grant.recording);
    let order = order.map_err(|error| refused(error.into()))?.map_or(Order::NONE, |(_, order)| order);
    if order.deletion.is_some() {
        return Err(Refused::deleted());
    }
    let opened = match opened {
        Err(RecordingError::NotFound) => {
            let receipt = receipt(&*node.store, grant.tenant.tag(), grant.recording).await;
            let is_deleted = receipt.map_err(|error| refused(error.into()))?.is_some();
            return Err(if is_deleted { Refused::deleted() } else { Refused::not_found() });
        }
        opened => opened.map_err(refused)?,
    };
    if restricted.map_err(|error| refused(error.into()))? {
        return Err(Refused::restricted());
    }
    // A call that goes on has no date of its own yet, but somebody may have ordered one.
    let expires = order.effective(opened.kept_until(&order).unwrap_or(UnixMillis(u64::MAX))).0;
    if !order.hold && clock::wall() > expires {
        return Err(Refused::new(StatusCode::GONE, "expired", "the recording is past its retention"));
    }
    let (encoding, layout) = wav_layout(grant, &opened)?;
    Ok(Found { opened: Arc::new(opened), encoding, layout })
}

fn check_grant<'g>(
    signed: &'g SignedGrant,
    tenant: Option<&Tenant>,
    source: IpAddr,
    node: &Node,
) -> Result<&'g Grant, Refused> {
    let key = tenant.and_then(|tenant| tenant.playback.grant_keys.get(signed.kid()));
    let max_ttl = tenant.map_or(node.config.playback.max_ttl, |tenant| tenant.playback.max_ttl);
    let check = GrantCheck {
        key: key.map(|secret| secret.expose()),
        now: clock::wall(),
        limits: GrantLimits {
            max_ttl_secs: max_ttl.as_secs(),
            skew_secs: node.config.playback.clock_skew.as_secs(),
        },
        source: Some(source),
        not_before: None,
    };
    let grant = signed.verify(&check).map_err(|denied| {
        Refused::new(StatusCode::FORBIDDEN, denied.code(), "this link does not give access")
    })?;
    // Said to nobody who does not hold a link of the tenant.
    match tenant.map(|tenant| tenant.status) {
        Some(TenantStatus::Suspended) => Err(Refused::new(
            StatusCode::FORBIDDEN,
            "tenant_suspended",
            "nothing is played for this tenant now",
        )),
        Some(TenantStatus::Closed) => Err(Refused::new(
            StatusCode::FORBIDDEN,
            "tenant_closed",
            "nothing is played for this tenant any more",
        )),
        // A tenant signs links of its own, so that this is seen here, too.
        _ if tenant.is_some_and(|tenant| must_be_bound(tenant, grant)) => Err(Refused::new(
            StatusCode::FORBIDDEN,
            "not_bound",
            "links of this tenant are bound to an address",
        )),
        Some(TenantStatus::Active | TenantStatus::Closing) | None => Ok(grant),
    }
}

/// Whether a grant gives too much for want of an address, or with too many of them.
fn must_be_bound(tenant: &Tenant, grant: &Grant) -> bool {
    tenant.hipaa.is_some() && !grant.ip.as_ref().is_some_and(IpRange::is_one_line)
}

fn wav_layout(grant: &Grant, recording: &StoredRecording) -> Result<(Encoding, WavLayout), Refused> {
    let encoding = grant.format.unwrap_or(Encoding::Pcm16);
    let format = recording.format();
    if encoding == Encoding::Ulaw && format.codec() != Codec::Ulaw {
        let detail = "the recording has samples of 16 bits; allowed: format=pcm";
        return Err(Refused::new(StatusCode::BAD_REQUEST, "format_unavailable", detail));
    }
    let samples = recording.timeline().samples();
    let layout = WavLayout::new(encoding, grant.track.channels(), format.rate(), samples);
    let layout = layout.map_err(|_| {
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "too_long",
            "the recording is too long for one WAV file",
        )
    })?;
    Ok((encoding, layout))
}

fn respond<B>(
    request: &Request<B>,
    play_request: PlayRequest,
    etag: &str,
    grant: &Grant,
) -> Result<Answer, Refused> {
    let total = play_request.layout.total_bytes();
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let range = match text(header::RANGE) {
        Some(range) if if_range_matches(text(header::IF_RANGE), etag) => ByteRange::parse(Some(range), total),
        _ => ByteRange::Whole,
    };
    let (status, first, last) = match range {
        ByteRange::Whole => (StatusCode::OK, 0, total.saturating_sub(1)),
        ByteRange::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last),
        ByteRange::Unsatisfiable => {
            let mut answer = empty(StatusCode::RANGE_NOT_SATISFIABLE);
            insert(answer.headers_mut(), header::CONTENT_RANGE, range.content_range(total));
            return Ok(answer);
        }
    };
    let life = play_request.recording.state_name();
    let file = format!("{}.wav", play_request.recording.ids().recording);
    let mut answer = empty(status);
    if request.method() == Method::GET {
        *answer.body_mut() = StreamBody::new(play(play_request, first, last)).boxed_unsync();
    }
    let headers = answer.headers_mut();
    set(headers, header::CONTENT_TYPE, "audio/wav");
    // A browser that opens the link itself makes a page around it, which loads the audio from the same place.
    set(
        headers,
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; media-src 'self'; frame-ancestors 'none'",
    );
    set(headers, header::ACCEPT_RANGES, "bytes");
    insert(headers, header::ETAG, Some(etag.to_owned()));
    insert(headers, header::CONTENT_LENGTH, Some((last + 1 - first).to_string()));
    insert(headers, header::CONTENT_RANGE, range.content_range(total));
    insert(headers, header::HeaderName::from_static("x-callseal-state"), Some(life.to_owned()));
    if grant.dl {
        insert(headers, header::CONTENT_DISPOSITION, Some(format!("attachment; filename=\"{file}\"")));
    }
    Ok(answer)
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: Option<String>) {
    if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
        headers.insert(name, value);
    }
}

fn parse_path(path: &str) -> Option<(TenantId, RecordingId)> {
    let (tenant, recording) = path.strip_prefix("/play/")?.split_once('/')?;
    Some((tenant.parse().ok()?, recording.strip_suffix(".wav")?.parse().ok()?))
}

fn bad_grant(fault: &GrantFault) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, "grant_malformed", fault.to_string())
}

fn recording_refused(error: &RecordingError, recording: RecordingId) -> Refused {
    let source = error as &dyn std::error::Error;
    match error {
        RecordingError::NotFound => Refused::not_found(),
        RecordingError::Unavailable(_) => {
            tracing::warn!(%recording, error = source, "recording is not available");
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "try again in a moment")
        }
        RecordingError::Integrity(_) => {
            ::metrics::counter!(metrics::INTEGRITY_FAILURES).increment(1);
            tracing::error!(%recording, error = source, "stored recording is damaged");
            Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "damaged", "the recording cannot be played")
        }
    }
}

fn audit_event(
    grant: Option<&Grant>,
    recording: &RecordingId,
    peer: Peer,
    id: &str,
    result: &str,
) -> AuditEvent {
    AuditEvent {
        actor: grant.map_or_else(|| "unknown".to_owned(), |grant| grant.sub.clone()),
        role: "player".to_owned(),
        source: Some(peer.source.to_string()),
        action: "play".to_owned(),
        subject: recording.to_string(),
        reason: grant.and_then(|grant| grant.reason.clone()),
        result: result.to_owned(),
        request: id.to_owned(),
        detail: None,
        key: grant.map(|grant| grant.kid.clone()),
    }
}

/// A browser asks whether another page's script may send a `Range` header.
fn preflight<B>(request: &Request<B>, node: &Node) -> Answer {
    let mut answer = empty(StatusCode::NO_CONTENT);
    if let Some(tenant) = parse_path(request.uri().path()).and_then(|(tenant, _)| node.tenant(&tenant)) {
        let headers = answer.headers_mut();
        if add_cors(request.headers(), &tenant, headers) {
            set(headers, header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD");
            set(headers, header::ACCESS_CONTROL_ALLOW_HEADERS, "range, if-range");
        }
    }
    answer
}

/// Lets the tenant's own pages read the answer. Answers whether the page is one of them.
fn add_cors(request: &HeaderMap, tenant: &Tenant, headers: &mut HeaderMap) -> bool {
    let Some(origin) = request.get(header::ORIGIN) else { return false };
    let allowed = tenant
        .playback
        .allowed_origins
        .iter()
        .any(|allowed| allowed.as_str().as_bytes() == origin.as_bytes());
    if allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        set(
            headers,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            "content-range, accept-ranges, etag, x-callseal-state",
        );
        set(headers, header::VARY, "origin");
    }
    allowed
}

fn encoding_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Ulaw => "ulaw",
        Encoding::Pcm16 => "pcm",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::playback::grant::TrackSelection;

    #[test]
    fn links_to_health_data_work_from_one_line_only() {
        let plain = crate::tenants::plain_tenant();
        let mut clinic = plain.clone();
        clinic.hipaa = Some(crate::config::Hipaa::default());
        let grant = |ip: Option<&str>| Grant {
            tenant: plain.id.clone(),
            recording: RecordingId([1; 16]),
            iat: 0,
            exp: 300,
            kid: "k1".to_owned(),
            sub: "ada".to_owned(),
            reason: None,
            ip: ip.map(|ip| ip.parse().unwrap()),
            track: TrackSelection::Both,
            dl: false,
            format: None,
        };
        for (ip, is_loose) in [
            (None, true),
            (Some("0.0.0.0/0"), true),
            (Some("192.0.2.0/31"), true),
            (Some("2001:db8::/63"), true),
            (Some("192.0.2.7"), false),
            (Some("2001:db8::/64"), false),
        ] {
            assert_eq!(must_be_bound(&clinic, &grant(ip)), is_loose, "{ip:?}");
            assert!(!must_be_bound(&plain, &grant(ip)), "{ip:?}");
        }
    }
}
