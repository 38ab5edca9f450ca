//! Answers that are made while they are sent: bounded memory, a bounded time, and cut off where what follows cannot be had, so
//! that nobody takes a part for the whole.
//!
//! The answer begins when its first bytes are there. Whatever fails before that is answered as any other error.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio_util::task::AbortOnDropHandle;

use crate::answer::CutOff;

use super::error::ApiError;

/// Bytes that may wait for whoever reads them.
const PIPE_BYTES: usize = 256 * 1024;
/// Bytes handed on at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// The longest answer: 100 GB at 30 MB a second. Whoever reads more slowly asks for less at a time.
const LONGEST: Duration = Duration::from_secs(3600);

/// Answers what `write` writes, as a file of this type and name.
///
/// # Errors
/// Whatever `write` answers before it has written anything.
pub(super) async fn written<W>(
    kind: &'static str,
    file: &str,
    write: impl FnOnce(DuplexStream) -> W,
) -> Result<Response, ApiError>
where
    W: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (writer, mut reader) = tokio::io::duplex(PIPE_BYTES);
    let writing = write(writer);
    // Ends with the answer, also when nobody reads it any more.
    let writing = AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::time::timeout(LONGEST, writing)
            .await
            .unwrap_or(Err(ApiError::Unavailable("an answer in time")))
    }));
    let Some(first) = next(&mut reader).await else {
        ended(writing).await?;
        return Ok(Body::empty().into_response());
    };
    let rest = stream::unfold(State::Begun(first, reader, writing), |state| async move {
        match state {
            State::Begun(first, reader, writing) => Some((Ok(first), State::Going(reader, writing))),
            State::Going(mut reader, writing) => match next(&mut reader).await {
                Some(bytes) => Some((Ok(bytes), State::Going(reader, writing))),
                None => match ended(writing).await {
                    Ok(()) => None,
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "an answer is cut off");
                        Some((Err(CutOff), State::Over))
                    }
                },
            },
            State::Over => None,
        }
    });
    let mut response = Body::from_stream(rest).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"{file}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

type Writing = AbortOnDropHandle<Result<(), ApiError>>;

enum State {
    Begun(Bytes, DuplexStream, Writing),
    Going(DuplexStream, Writing),
    Over,
}

/// Returns what was written next; `None` when nothing more will be.
async fn next(reader: &mut DuplexStream) -> Option<Bytes> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    let read = reader.read_buf(&mut bytes).await.unwrap_or(0);
    (read > 0).then(|| Bytes::from(bytes))
}

async fn ended(writing: Writing) -> Result<(), ApiError> {
    writing.await.unwrap_or(Err(ApiError::Unavailable("an answer")))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_is_written_arrives_and_a_failure_cuts_it_off() {
        let big = vec![7; 3 * PIPE_BYTES];
        for fails in [false, true] {
            let text = big.clone();
            let response = written("text/plain", "a.txt", |mut out| async move {
                out.write_all(&text).await.unwrap();
                if fails { Err(ApiError::Damaged) } else { Ok(()) }
            });
            let response = response.await.unwrap();
            assert_eq!(response.headers()["content-type"], "text/plain");
            assert_eq!(response.headers()["content-disposition"], "attachment; filename=\"a.txt\"");
            let body = response.into_body().collect().await;
            assert_eq!(body.ok().map(|body| body.to_bytes().to_vec()), (!fails).then(|| big.clone()));
        }
    }

    #[tokio::test]
    async fn a_failure_before_the_first_byte_is_an_error() {
        let nothing = written("text/plain", "a.txt", |_| async { Err(ApiError::NotFound) }).await;
        assert!(matches!(nothing, Err(ApiError::NotFound)));
        let empty = written("text/plain", "a.txt", |_| async { Ok(()) }).await.unwrap();
        assert!(empty.into_body().collect().await.unwrap().to_bytes().is_empty());
    }

    #[tokio::test]
    async fn whoever_writes_ends_with_the_answer() {
        let (dropped, mut is_dropped) = tokio::sync::oneshot::channel::<()>();
        let response = written("text/plain", "a.txt", |mut out| async move {
            let _held = dropped;
            out.write_all(b"a").await.unwrap();
            std::future::pending().await
        });
        drop(response.await.unwrap());
        assert!((&mut is_dropped).await.is_err());
    }
}
