//! A tenant's own server: HTTPS with a certificate of its own making, answers as told, and everything it was sent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    pub(crate) fn id(&self) -> String {
        self.json()["id"].as_str().unwrap().to_owned()
    }
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Status(u16),
    /// 200 with this body.
    Body(String),
    /// 302 to there.
    Redirect(String),
    /// Never.
    Silent,
    /// The connection is closed.
    Close,
    /// 200, and a body that does not end.
    Endless,
    /// A head that does not end.
    LongHead,
}

/// What a receiver is made of, so that it can go and come back.
#[derive(Clone)]
pub(crate) struct Identity {
    acceptor: TlsAcceptor,
    pub(crate) ca_file: PathBuf,
}

impl Identity {
    /// Makes a certificate for `localhost` and the loopback addresses; its authority is a file in `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let ca_file = dir.join(format!("{name}.pem"));
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), ca_file }
    }

    /// Listens on a free port, or on this one.
    pub(crate) async fn listen(&self, port: u16) -> Receiver {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.unwrap();
        let receiver = Inner {
            got: Mutex::default(),
            answers: Mutex::default(),
            usual: Mutex::new(Answer::Status(200)),
            connections: AtomicUsize::new(0),
        };
        let (port, inner) = (listener.local_addr().unwrap().port(), Arc::new(receiver));
        let (serving, acceptor) = (Arc::clone(&inner), self.acceptor.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let (serving, acceptor) = (Arc::clone(&serving), acceptor.clone());
                tokio::spawn(async move { serving.serve(tcp, acceptor).await });
            }
        });
        Receiver { port, inner, accepting }
    }
}

/// A running receiver; ends when dropped.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    inner: Arc<Inner>,
    accepting: JoinHandle<()>,
}

struct Inner {
    got: Mutex<Vec<Got>>,
    /// For the next requests; then the usual one.
    answers: Mutex<VecDeque<Answer>>,
    usual: Mutex<Answer>,
    connections: AtomicUsize,
}

impl Receiver {
    /// Answers the next requests so.
    pub(crate) fn next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.inner.answers.lock().unwrap().extend(answers);
    }

    /// Answers all other requests so.
    pub(crate) fn always(&self, answer: Answer) {
        *self.inner.usual.lock().unwrap() = answer;
    }

    /// Returns all requests so far, in the order of their arrival.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.inner.got.lock().unwrap().clone()
    }

    /// Returns how many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Inner {
    async fn serve(&self, tcp: TcpStream, acceptor: TlsAcceptor) -> io::Result<()> {
        let mut stream = BufReader::new(acceptor.accept(tcp).await?);
        let got = read(&mut stream).await?;
        self.got.lock().unwrap().push(got);
        let next = self.answers.lock().unwrap().pop_front();
        let answer = next.unwrap_or_else(|| self.usual.lock().unwrap().clone());
        let ok = || "ok".to_owned();
        let (status, more, body) = match answer {
            Answer::Status(status) => (status, String::new(), ok()),
            Answer::Body(body) => (200, String::new(), body),
            Answer::Redirect(to) => (302, format!("location: {to}\r\n"), ok()),
            Answer::Silent => return std::future::pending().await,
            Answer::Close => return Ok(()),
            Answer::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n").await?;
                loop {
                    stream.write_all(&[b'x'; 1024]).await?;
                    stream.flush().await?;
                }
            }
            Answer::LongHead => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                loop {
                    stream.write_all(b"x-more: and more of the same\r\n").await?;
                    stream.flush().await?;
                }
            }
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} Whatever\r\nconnection: close\r\n{more}content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    }
}

async fn read(stream: &mut BufReader<TlsStream<TcpStream>>) -> io::Result<Got> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut lines = head.lines();
    let first = lines.next().unwrap();
    let is_known = first.starts_with("POST ") || first.starts_with("GET ");
    assert!(is_known && first.ends_with(" HTTP/1.1"), "{first}");
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or("0", String::as_str);
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await?;
    Ok(Got { target: first.split(' ').nth(1).unwrap().to_owned(), headers, body })
}
