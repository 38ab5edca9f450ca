//! Answers: bodies, the headers that every answer carries, and errors as problem details (RFC 9457).

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode, header};

/// Two years, subdomains, and the browsers' preload lists (RFC 6797).
const HSTS: &str = "max-age=63072000; includeSubDomains; preload";

/// Why a body broke off: the connection is then cut, so that nobody takes a part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("answer was cut off")]
pub struct CutOff;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, CutOff>;
/// An answer.
pub type Answer = Response<Body>;

/// Returns a body of bytes that are there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Returns an answer of plain text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(full(text));
    *answer.status_mut() = status;
    set(answer.headers_mut(), header::CONTENT_TYPE, "text/plain; charset=utf-8");
    answer
}

/// Returns an answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

/// Returns an error as problem details: a stable code, a text that tells the client nothing it must not know.
pub fn problem(status: StatusCode, code: &str, detail: &str, request: &str) -> Answer {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
        "request": request,
    });
    let mut answer = Response::new(full(body.to_string()));
    *answer.status_mut() = status;
    set(answer.headers_mut(), header::CONTENT_TYPE, "application/problem+json");
    if status == StatusCode::SERVICE_UNAVAILABLE {
        set(answer.headers_mut(), header::RETRY_AFTER, "2");
    }
    answer
}

/// Adds what every answer of the public listener carries, errors included.
pub fn add_common_headers(answer: &mut Answer) {
    let headers = answer.headers_mut();
    set(headers, header::STRICT_TRANSPORT_SECURITY, HSTS);
    set(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(headers, header::REFERRER_POLICY, "no-referrer");
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        set(headers, header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; sandbox");
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        set(headers, header::CACHE_CONTROL, "no-store");
    }
}

/// Sets a header to a text that is known at compile time.
pub fn set(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}
