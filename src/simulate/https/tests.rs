use std::convert::Infallible;

use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;

use super::*;
use crate::simulate::test_server::serve_one;

/// Answers with what was asked, and a body of `parts` parts of 1,000 bytes.
async fn client(parts: u8) -> HttpsClient {
    let (endpoint, tls, _served) = serve_one(move |stream| async move {
        let answer = move |request: Request<Incoming>| async move {
            let body = (0..parts).map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![part; 1000]))));
            let asked = format!("{} {}", request.method(), request.uri());
            let host = request.headers().get("host").cloned().unwrap();
            let body = StreamBody::new(futures_util::stream::iter(body));
            let response =
                hyper::Response::builder().status(206).header("x-asked", asked).header("x-host", host);
            response.body(body)
        };
        let _closed_by_client =
            server::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
    })
    .await;
    HttpsClient::new(&tls, endpoint)
}

#[tokio::test]
async fn gets_and_collects() {
    let client = client(3).await;
    let response = client.get("/play/a?b=c", &[("range", "bytes=0-")]).await.unwrap();
    assert_eq!(response.status, 206);
    assert_eq!(response.headers["x-asked"], "GET /play/a?b=c");
    assert_eq!(response.headers["x-host"], client.endpoint.authority());
    assert_eq!(response.body, [[0; 1000], [1; 1000], [2; 1000]].concat());
}

#[tokio::test]
async fn asks_for_headers_only() {
    let response = client(3).await.head("/", &[]).await.unwrap();
    assert_eq!((response.headers["x-asked"].as_bytes(), response.body.len()), (&b"HEAD /"[..], 0));
}

#[tokio::test]
async fn streams() {
    let mut response = client(5).await.get_streaming("/", &[]).await.unwrap();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    assert_eq!(body.len(), 5_000);
}

#[tokio::test]
async fn a_target_with_a_space_is_not_sent() {
    assert!(matches!(client(0).await.get("/a b", &[]).await, Err(HttpsError::BadRequest(_))));
}
