//! A small HTTP/1.1 server for invented key services. One request for each connection; answers are JSON.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use callseal::ingest::tls::{Certificate, SelfSigned, server_config};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    /// Null for a request without body.
    pub(super) body: Value,
}

/// Status and body.
pub(super) type Answer = (u16, Value);

/// How the way to a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Every request arrives and is answered after this time.
    Open(Duration),
    /// Requests arrive and are never answered.
    Silent,
    /// Connections are closed at once.
    Closed,
}

/// A running server; ends with the test.
#[derive(Clone)]
pub(super) struct HttpServer {
    port: u16,
    tls: Option<TlsAcceptor>,
    way: Arc<Mutex<Way>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl HttpServer {
    pub(super) async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    /// The same over TLS, with a certificate for `localhost` whose authority is `ca.pem` in `dir`.
    pub(super) async fn start_tls(
        dir: &Path,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let made = SelfSigned::ensure(dir, "localhost").unwrap();
        let certificate = Certificate::load(&made.cert_file, &made.key_file).unwrap();
        Self::start_with(Some(TlsAcceptor::from(server_config(certificate, None).unwrap())), answer).await
    }

    async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self {
            port,
            tls,
            way: Arc::new(Mutex::new(Way::Open(Duration::ZERO))),
            requests: Arc::default(),
        };
        let (serving, answer) = (server.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (serving, answer) = (serving.clone(), Arc::clone(&answer));
                tokio::spawn(async move {
                    match serving.tls.clone() {
                        Some(tls) => serving.serve(tls.accept(stream).await?, &*answer).await,
                        None => serving.serve(stream, &*answer).await,
                    }
                });
            }
        });
        server
    }

    pub(super) fn url(&self) -> String {
        match self.tls {
            Some(_) => format!("https://localhost:{}", self.port),
            None => format!("http://127.0.0.1:{}", self.port),
        }
    }

    pub(super) fn set_way(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }

    /// Returns all requests so far.
    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        answer: &(dyn Fn(&Request) -> Answer + Send + Sync),
    ) -> io::Result<()> {
        let way = *self.way.lock().unwrap();
        if way == Way::Closed {
            return Ok(());
        }
        let mut stream = BufReader::new(stream);
        let Some(request) = read(&mut stream).await? else { return Ok(()) };
        self.requests.lock().unwrap().push(request.clone());
        match way {
            Way::Open(latency) => tokio::time::sleep(latency).await,
            Way::Silent | Way::Closed => std::future::pending().await,
        }
        let (status, body) = answer(&request);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "HTTP/1.1 {status} Whatever\r\nconnection: close\r\ncontent-type: application/json\r\n\
             x-amzn-requestid: r-7\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        stream.shutdown().await
    }
}

async fn read(stream: &mut BufReader<impl AsyncRead + Unpin>) -> io::Result<Option<Request>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ').map(str::to_owned);
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |value| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Ok(Some(Request { method, path, headers, body }))
}
