//! What requests bring: JSON bodies and queries, bounded, with errors that name the field.

use std::collections::HashMap;
use std::str::FromStr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::domain::ids::{NoticeId, RecordingId, RequestId};

use super::error::ApiError;

/// The longest body: a ticket's metadata has 512 bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// A JSON body; none at all is an empty object.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        parse(&parts.headers, &whole(body).await?).map(Self)
    }
}

/// Reads a body to its end.
pub(super) async fn whole(body: Body) -> Result<Bytes, ApiError> {
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge),
        Err(_) => Err(ApiError::invalid("body", "it broke off")),
    }
}

fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, ApiError> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_json = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if body != b"{}" && !is_json.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Err(ApiError::NotJson);
    }
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::invalid("body", "allowed: a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if matches!(path.as_str(), "." | "?") { "body".to_owned() } else { path };
        ApiError::invalid(field, without_place(&error.inner().to_string()))
    })?;
    json.end().map_err(|_| ApiError::invalid("body", "there is more after the JSON"))?;
    Ok(parsed)
}

/// Leaves out where in the body it is, which the field's name says better.
fn without_place(text: &str) -> String {
    text.rsplit_once(" at line ").map_or(text, |(text, _)| text).to_owned()
}

/// The parameters of a query.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let parsed = Query::try_from_uri(&parts.uri);
        parsed.map(|Query(parsed)| Self(parsed)).map_err(|rejection| {
            let text = rejection.body_text();
            let (_, cause) = text.rsplit_once("query string: ").unwrap_or(("", &text));
            ApiError::invalid("query", cause)
        })
    }
}

/// The recording that a path names. A text that is no id names none.
pub(super) struct Named(pub(super) RecordingId);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        named(parts, state, "recording").await.map(Self)
    }
}

/// The request of a person that a path names. A text that is no id names none.
pub(super) struct NamedRequest(pub(super) RequestId);

impl<S: Send + Sync> FromRequestParts<S> for NamedRequest {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        named(parts, state, "request").await.map(Self)
    }
}

/// The notice that a path names. A text that is no id names none.
pub(super) struct NamedNotice(pub(super) NoticeId);

impl<S: Send + Sync> FromRequestParts<S> for NamedNotice {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        named(parts, state, "notice").await.map(Self)
    }
}

async fn named<T: FromStr, S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<T, ApiError> {
    let path = Path::<HashMap<String, String>>::from_request_parts(parts, state).await;
    let Path(names) = path.map_err(|_| ApiError::NotFound)?;
    names.get(name).and_then(|name| name.parse().ok()).ok_or(ApiError::NotFound)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[expect(dead_code, reason = "read by serde only")]
        #[serde(default)]
        ttl_secs: Option<u64>,
        #[expect(dead_code, reason = "read by serde only")]
        #[serde(default)]
        metadata: std::collections::BTreeMap<String, String>,
    }

    fn read(kind: &'static str, body: &'static str) -> Result<Order, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        parse(&headers, &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn faults_name_their_field() {
        assert!(read("application/json", "").is_ok());
        assert!(read("application/json; charset=utf-8", r#"{"ttl_secs":1}"#).is_ok());
        for (body, field) in [
            (r#"{"ttl_secs":-1}"#, "ttl_secs"),
            (r#"{"ttl_secs":"a"}"#, "ttl_secs"),
            (r#"{"metadata":{"a":1}}"#, "metadata.a"),
            (r#"{"colour":1}"#, "colour"),
            ("[]", "body"),
            ("{", "body"),
            ("{} {}", "body"),
        ] {
            match read("application/json", body) {
                Err(ApiError::Invalid { field: named, problem }) => {
                    assert!(named == field || problem.contains(field), "{body}: {named}: {problem}");
                }
                other => panic!("{body}: {other:?}"),
            }
        }
        assert!(matches!(read("text/plain", r#"{"ttl_secs":1}"#), Err(ApiError::NotJson)));
    }
}
