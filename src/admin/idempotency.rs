//! Requests that come again: what makes something, and brings an `Idempotency-Key`, is done once and answered alike for a day.
//!
//! The work goes on when the one who asked is gone, because that is when the request comes again. Refusals are not kept:
//! whatever was refused has made nothing.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use sha2::{Digest, Sha256};

use crate::control::answers::{Claim, Claimed, KeptAnswer, MAX_ANSWER_BYTES, Question};
use crate::domain::access::Operation;
use crate::observe::traces::Place;

use super::Shared;
use super::error::ApiError;
use super::guard::Caller;
use super::input;

/// Where the key stands.
const KEY: &str = "idempotency-key";
/// Says that an answer was given before.
const REPLAYED: &str = "idempotency-replayed";
/// The longest key: a UUID has 36 bytes.
const MAX_KEY_BYTES: usize = 128;

/// Answers a request that was let through: once, if it says which one it is.
pub(super) async fn answer(
    shared: &Shared,
    wanted: &'static Operation,
    request: Request,
    next: Next,
) -> Response {
    if !wanted.creates || !request.headers().contains_key(KEY) {
        return next.run(request).await;
    }
    once(shared, wanted, request, next).await.unwrap_or_else(ApiError::into_response)
}

async fn once(
    shared: &Shared,
    wanted: &'static Operation,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let key = key(&parts.headers)?;
    let caller: Caller = parts.extensions.get().cloned().ok_or(ApiError::Unauthorized("no token"))?;
    let tenant = &caller.tenant()?.id;
    let body = input::whole(body).await?;
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let reason = caller.reason().unwrap_or_default();
    let question = Question {
        tenant,
        principal: &caller.principal.actor,
        operation: wanted.id,
        key: &key,
        digest: digest(&[target.as_bytes(), reason.as_bytes(), &body]),
        longest: shared.pace.timeout,
    };
    match shared.answers.claim(&question).await? {
        Claimed::Running => Err(ApiError::InProgress),
        Claimed::OtherRequest => Err(ApiError::KeyReused),
        Claimed::Kept(kept) => {
            let mut event = caller.event("answer-again", wanted.id.to_owned());
            event.detail = Some(format!("first={}", kept.request));
            shared.node.audit.record(tenant, event).await?;
            again(kept)
        }
        Claimed::Mine(claim) => {
            let request = Request::from_parts(parts, Body::from(body));
            let (id, longest) = (caller.request().to_owned(), shared.pace.timeout);
            let working = tokio::spawn(Place::here().around(async move {
                match tokio::time::timeout(longest, next.run(request)).await {
                    Ok(response) => keep(claim, response, id).await,
                    Err(_) => {
                        give_up(claim).await;
                        Err(ApiError::Unavailable("an answer in time"))
                    }
                }
            }));
            working.await.unwrap_or(Err(ApiError::Unavailable("an answer")))
        }
    }
}

/// Reads the key. Quotes around it, as the draft of the header has them, do not count.
fn key(headers: &HeaderMap) -> Result<String, ApiError> {
    let mut values = headers.get_all(KEY).iter();
    let text = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().unwrap_or_default().trim(),
        _ => "",
    };
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_good = (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let wrong =
        || ApiError::invalid(KEY, "allowed: one, of 1 to 128 visible ASCII characters without spaces");
    is_good.then(|| text.to_owned()).ok_or_else(wrong)
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// Keeps what was answered, and gives it; if it cannot be kept, nobody gets it.
async fn keep(claim: Claim, response: Response, request: String) -> Result<Response, ApiError> {
    if !response.status().is_success() {
        give_up(claim).await;
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let read = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let body = read.ok().and_then(|body| String::from_utf8(body.to_bytes().to_vec()).ok());
    let Some(body) = body else {
        give_up(claim).await;
        return Err(ApiError::Unavailable("an answer that can be kept"));
    };
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kept = KeptAnswer {
        status: parts.status.as_u16(),
        kind: kind.unwrap_or_default().to_owned(),
        body: body.clone(),
        request,
    };
    claim.keep(kept).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

async fn give_up(claim: Claim) {
    if let Err(error) = claim.give_up().await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "a request that made nothing cannot come again for a while");
    }
}

fn again(kept: KeptAnswer) -> Result<Response, ApiError> {
    let (Ok(status), Ok(kind)) = (StatusCode::from_u16(kept.status), HeaderValue::from_str(&kept.kind))
    else {
        return Err(ApiError::Damaged);
    };
    let mut response = (status, kept.body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}
