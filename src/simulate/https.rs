//! A small HTTPS client: one request per connection, bodies bounded or streamed.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, StatusCode, header, http};
use hyper_util::rt::TokioIo;

use super::tls::{ConnectError, Endpoint, TlsClient};

/// The largest body that is collected: more than four hours of two tracks in μ-law.
const MAX_BODY_BYTES: usize = 256 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// No TLS connection.
    #[error("connect for request")]
    Connect(#[from] ConnectError),
    /// The target or a header cannot be written as HTTP.
    #[error("request cannot be written")]
    BadRequest(#[source] http::Error),
    /// The connection broke, or the answer is not HTTP.
    #[error("request")]
    Http(#[from] hyper::Error),
    /// The body is larger than 256 MiB.
    #[error("response body is larger than 256 MiB")]
    TooLarge,
}

/// Asks one server.
#[derive(Clone)]
pub struct HttpsClient {
    tls: TlsClient,
    endpoint: Endpoint,
}

/// An answer with its whole body.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// An answer whose body is still on its way.
#[derive(Debug)]
pub struct StreamingResponse {
    /// The status.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
    body: Incoming,
}

impl HttpsClient {
    /// Asks the server at `endpoint`; of its URL only host and port are used.
    pub fn new(tls: &TlsClient, endpoint: Endpoint) -> Self {
        Self { tls: tls.clone(), endpoint }
    }

    /// Gets `target` (path and query) with these extra headers.
    ///
    /// # Errors
    /// [`HttpsError`]. Every status is an answer, not an error.
    pub async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Result<Response, HttpsError> {
        self.request(Method::GET, target, headers, Bytes::new()).await
    }

    /// Asks for the headers that a GET would have.
    ///
    /// # Errors
    /// See [`HttpsClient::get`].
    pub async fn head(&self, target: &str, headers: &[(&str, &str)]) -> Result<Response, HttpsError> {
        self.request(Method::HEAD, target, headers, Bytes::new()).await
    }

    /// Sends any request and collects the answer.
    ///
    /// # Errors
    /// See [`HttpsClient::get`].
    pub async fn request(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response, HttpsError> {
        let StreamingResponse { status, headers, body } = self.open(method, target, headers, body).await?;
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(body_error)?.to_bytes();
        Ok(Response { status, headers, body })
    }

    /// Gets `target` and leaves its body to be read in chunks.
    ///
    /// # Errors
    /// See [`HttpsClient::get`].
    pub async fn get_streaming(
        &self,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<StreamingResponse, HttpsError> {
        self.open(Method::GET, target, headers, Bytes::new()).await
    }

    async fn open(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<StreamingResponse, HttpsError> {
        let host = self.endpoint.authority();
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(HttpsError::BadRequest)?;
        let stream = self.tls.connect(&self.endpoint).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the connection: when the body was read or dropped. Its error reaches the caller through the body.
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok(StreamingResponse { status: parts.status, headers: parts.headers, body })
    }
}

impl StreamingResponse {
    /// Returns the next part of the body; `None` at its end. Dropping the response ends the connection.
    ///
    /// # Errors
    /// [`HttpsError::Http`] when the body breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpsError> {
        while let Some(frame) = self.body.frame().await.transpose()? {
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

fn body_error(error: Box<dyn std::error::Error + Send + Sync>) -> HttpsError {
    if error.is::<LengthLimitError>() {
        return HttpsError::TooLarge;
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => HttpsError::Http(*error),
        // `Limited` passes on nothing but its own error and the body's.
        Err(_) => HttpsError::TooLarge,
    }
}

#[cfg(test)]
mod tests;
