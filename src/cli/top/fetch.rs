//! Fetches the metrics page of an ops listener, in plain HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::observe::metrics::BUILD;
use crate::observe::page::Page;

/// How long a look may take, name and connection included; the listener is on this machine or at the end of a tunnel.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The largest page: a hundred times what a node has.
const MAX_BYTES: usize = 4 << 20;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("nobody answers at {at}")]
    Away {
        at: String,
        #[source]
        why: std::io::Error,
    },
    #[error("no answer within {} seconds", TIMEOUT.as_secs())]
    TimedOut,
    #[error("what answers there speaks no plain HTTP")]
    NoHttp,
    #[error("the answer is {0}; is this the ops listener?")]
    Status(StatusCode),
    #[error("the page is cut off, or larger than {} MiB", MAX_BYTES >> 20)]
    Body,
    #[error("what is there is no metrics page of callseal: {BUILD} is missing")]
    NotCallseal,
}

/// Where a metrics page is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "allowed: http://HOST:PORT/metrics of the ops listener (listen.ops)";
        let uri: Uri = text.parse().map_err(|_| format!("is no URL; {allowed}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!(
                "must begin with http://, because the ops listener has no TLS; for another machine, tunnel to it; {allowed}"
            ));
        }
        let authority = uri.authority().ok_or_else(|| format!("has no host; {allowed}"))?;
        if authority.as_str().contains('@') {
            return Err(format!("must not name a user; {allowed}"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().ok_or_else(|| format!("needs a port; {allowed}"))?;
        let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" => "/metrics".to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { authority: authority.to_string(), host, port, path })
    }
}

impl From<SocketAddr> for Target {
    fn from(ops: SocketAddr) -> Self {
        let (host, port) = (ops.ip().to_string(), ops.port());
        Self { authority: ops.to_string(), host, port, path: "/metrics".to_owned() }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl Target {
    /// Looks once; takes three seconds at most.
    pub(super) async fn look(&self) -> Result<Page, FetchError> {
        let looking = tokio::time::timeout(TIMEOUT, self.fetch()).await;
        let page = looking.map_err(|_| FetchError::TimedOut)??;
        page.sum(BUILD).map(|_| page).ok_or(FetchError::NotCallseal)
    }

    async fn fetch(&self) -> Result<Page, FetchError> {
        let away = |why| FetchError::Away { at: self.authority.clone(), why };
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(away)?;
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|_| FetchError::NoHttp)?;
        let _driving = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::get(&self.path).header(HOST, &self.authority).body(Empty::<Bytes>::new());
        let request = request.map_err(|_| FetchError::NoHttp)?;
        let answer = sender.send_request(request).await.map_err(|_| FetchError::NoHttp)?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
        let bytes = body.map_err(|_| FetchError::Body)?.to_bytes();
        Ok(Page::new(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_in_plain_http() {
        for (given, shown) in [
            ("http://127.0.0.1:9464", "http://127.0.0.1:9464/metrics"),
            ("http://localhost:1/", "http://localhost:1/metrics"),
            ("http://[::1]:9464/metrics", "http://[::1]:9464/metrics"),
            ("http://a:1/node-3/metrics?x=y", "http://a:1/node-3/metrics?x=y"),
        ] {
            assert_eq!(given.parse::<Target>().unwrap().to_string(), shown);
        }
        let six: SocketAddr = "[::1]:9464".parse().unwrap();
        assert_eq!(Target::from(six), "http://[::1]:9464".parse().unwrap());
        for (bad, why) in [
            ("", "no URL"),
            ("127.0.0.1:9464", "http://"),
            ("https://127.0.0.1:9464", "no TLS"),
            ("http://127.0.0.1", "port"),
            ("http://127.0.0.1:99999", "port"),
            ("http://u:p@127.0.0.1:9464", "user"),
        ] {
            let error = bad.parse::<Target>().unwrap_err();
            assert!(error.contains(why) && error.contains("allowed: http://HOST:PORT"), "{bad}: {error}");
        }
    }
}
