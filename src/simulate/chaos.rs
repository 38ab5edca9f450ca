//! A proxy between a node and its object store that fails on purpose: the network that a store has on a bad day.
//!
//! It speaks HTTP/1.1 without TLS on a loopback port, passes requests on as they are (the signature of S3 covers the
//! `Host` header, which stays what the client wrote), and does to them what its [`Weather`] says, which may change at
//! any time. It counts what it passes on, so that it also tells what a call costs.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, client::conn::http1 as client};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bodies are held whole; the largest are parts of 5 MiB and ranges.
const MAX_BODY_BYTES: usize = 32 << 20;
/// How often binding the own port again is tried when it was given up; connections of before may linger.
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// What happens to requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// They are passed on.
    Fair,
    /// Nobody listens: connections are refused, and open ones end.
    Refuse,
    /// Connections are taken, requests are read and never answered; when the weather changes, they end unanswered.
    Hang,
    /// They are passed on after this long.
    Delay(Duration),
    /// They are passed on at this many bytes a second in each direction, each connection for itself.
    Trickle {
        /// At least 1.
        bytes_per_sec: u32,
    },
    /// So many of a hundred go wrong, in this way.
    Some {
        /// 0 to 100.
        percent: u8,
        /// The way.
        fault: Mishap,
    },
}

/// How one request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Answered with 503 `SlowDown`; not passed on.
    Busy,
    /// Answered with 500 `InternalError`; not passed on.
    InternalError,
    /// Answered with 200 and an error document in the body; not passed on.
    ErrorBody,
    /// The connection ends in the middle of the request's body; not passed on.
    ResetRequest,
    /// Passed on, but the answer breaks off in the middle.
    ResetAnswer,
    /// Passed on, but never answered: the connection ends.
    LoseAnswer,
    /// Passed on, but a byte of the answer's body is another one.
    Corrupt,
}

/// What was passed on, and what was done to the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Requests of all kinds.
    pub requests: u64,
    /// PUT and POST, which stores charge most for.
    pub writes: u64,
    /// GET of a listing.
    pub listings: u64,
    /// Other GET and HEAD.
    pub reads: u64,
    /// DELETE.
    pub deletions: u64,
    /// Bytes of request bodies.
    pub sent_bytes: u64,
    /// Bytes of answers' bodies.
    pub received_bytes: u64,
    /// Requests that something was done to.
    pub mishaps: u64,
}

impl Passed {
    /// Returns what was passed on since an earlier count.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    /// Returns both counts together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn with(self, other: Self, join: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: join(self.requests, other.requests),
            writes: join(self.writes, other.writes),
            listings: join(self.listings, other.listings),
            reads: join(self.reads, other.reads),
            deletions: join(self.deletions, other.deletions),
            sent_bytes: join(self.sent_bytes, other.sent_bytes),
            received_bytes: join(self.received_bytes, other.received_bytes),
            mishaps: join(self.mishaps, other.mishaps),
        }
    }
}

/// A running proxy; it ends when this is dropped.
pub struct Chaos {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    upstream: SocketAddr,
    weather: watch::Receiver<Weather>,
    number: AtomicU64,
    writes: AtomicU64,
    listings: AtomicU64,
    reads: AtomicU64,
    deletions: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    mishaps: AtomicU64,
}

impl Chaos {
    /// Starts a proxy on a free loopback port in fair weather.
    ///
    /// # Errors
    /// What the system says when there is no port.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Fair);
        let shared = Arc::new(Shared {
            upstream,
            weather: seen,
            number: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            listings: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            deletions: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            mishaps: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, address, Arc::clone(&shared)));
        Ok(Self { address, weather, shared, _tasks: tasks })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather, also for requests that hang.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Returns what was passed on so far.
    pub fn passed(&self) -> Passed {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        let (writes, listings) = (count(&shared.writes), count(&shared.listings));
        let (reads, deletions) = (count(&shared.reads), count(&shared.deletions));
        Passed {
            requests: writes + listings + reads + deletions,
            writes,
            listings,
            reads,
            deletions,
            sent_bytes: count(&shared.sent_bytes),
            received_bytes: count(&shared.received_bytes),
            mishaps: count(&shared.mishaps),
        }
    }
}

/// Takes connections while the weather allows it.
async fn listen(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut weather = shared.weather.clone();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        if *weather.borrow_and_update() == Weather::Refuse {
            listener = None;
            connections.abort_all();
            if weather.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &listener else {
            match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                Err(_) => tokio::time::sleep(BIND_PAUSE).await,
            }
            continue;
        };
        tokio::select! {
            changed = weather.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            accepted = open.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    let connection = server::Builder::new().serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::trace!(error = &error as &dyn std::error::Error, "a connection to the store ended");
    }
}

/// An answer that arrives, or that breaks off after its first half.
type Answer = Response<Either<Full<Bytes>, StreamBody<BrokenOff>>>;
type BrokenOff = futures_util::stream::Iter<std::array::IntoIter<io::Result<Frame<Bytes>>, 2>>;

impl Shared {
    /// Answers a request; an error ends the connection without an answer.
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Answer> {
        let weather = *self.weather.borrow();
        match weather {
            Weather::Fair | Weather::Refuse => self.pass(request, None).await,
            Weather::Hang => {
                self.mishaps.fetch_add(1, Ordering::Relaxed);
                let mut now = self.weather.clone();
                // The body is read so that a client sees a server that works on its request.
                let _read = collect(request.into_body()).await;
                now.wait_for(|now| *now != weather).await.map_err(io::Error::other)?;
                Err(unanswered())
            }
            Weather::Delay(delay) => {
                tokio::time::sleep(delay).await;
                self.pass(request, None).await
            }
            Weather::Trickle { bytes_per_sec } => self.pass(request, Some(bytes_per_sec.max(1))).await,
            Weather::Some { percent, fault } if self.is_hit(percent) => {
                self.mishaps.fetch_add(1, Ordering::Relaxed);
                self.mishap(request, fault).await
            }
            Weather::Some { .. } => self.pass(request, None).await,
        }
    }

    /// Spreads the hits evenly, so that runs are alike.
    fn is_hit(&self, percent: u8) -> bool {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        number.wrapping_mul(61) % 100 < u64::from(percent)
    }

    async fn mishap(&self, request: Request<Incoming>, fault: Mishap) -> io::Result<Answer> {
        match fault {
            Mishap::Busy => error_document(request, StatusCode::SERVICE_UNAVAILABLE, "SlowDown").await,
            Mishap::InternalError => {
                error_document(request, StatusCode::INTERNAL_SERVER_ERROR, "InternalError").await
            }
            Mishap::ErrorBody => error_document(request, StatusCode::OK, "InternalError").await,
            Mishap::ResetRequest => {
                let mut body = request.into_body();
                let _first = body.frame().await;
                Err(unanswered())
            }
            Mishap::ResetAnswer => {
                let (parts, body) = self.exchange(request, None).await?.into_parts();
                let half = body.slice(..body.len() / 2);
                let frames = [Ok(Frame::data(half)), Err(unanswered())];
                let body = StreamBody::new(futures_util::stream::iter(frames));
                Ok(Response::from_parts(parts, Either::Right(body)))
            }
            Mishap::LoseAnswer => {
                self.exchange(request, None).await?;
                Err(unanswered())
            }
            Mishap::Corrupt => {
                let (parts, body) = self.exchange(request, None).await?.into_parts();
                let mut bytes = BytesMut::from(&body[..]);
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 0x20;
                }
                Ok(Response::from_parts(parts, Either::Left(Full::new(bytes.freeze()))))
            }
        }
    }

    async fn pass(&self, request: Request<Incoming>, bytes_per_sec: Option<u32>) -> io::Result<Answer> {
        Ok(self.exchange(request, bytes_per_sec).await?.map(|body| Either::Left(Full::new(body))))
    }

    /// Asks the store over a connection of its own.
    async fn exchange(
        &self,
        request: Request<Incoming>,
        bytes_per_sec: Option<u32>,
    ) -> io::Result<Response<Bytes>> {
        let (parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        self.count(&parts);
        let body = collect(body).await?;
        wait_for(body.len(), bytes_per_sec).await;
        self.sent_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        let stream = TcpStream::connect(self.upstream).await?;
        let (mut sender, connection) =
            client::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(error = &error as &dyn std::error::Error, "the store ended a connection");
            }
        });
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await;
        let (mut parts, body) = answer.map_err(io::Error::other)?.into_parts();
        let body = if is_head { Bytes::new() } else { collect(body).await? };
        if !is_head {
            // The body is whole now; hyper writes its length.
            parts.headers.remove(hyper::header::TRANSFER_ENCODING);
        }
        wait_for(body.len(), bytes_per_sec).await;
        self.received_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        Ok(Response::from_parts(parts, body))
    }

    fn count(&self, request: &hyper::http::request::Parts) {
        let is_listing = request.uri.query().is_some_and(|query| query.contains("list-type=2"));
        let counter = match request.method {
            Method::PUT | Method::POST => &self.writes,
            Method::DELETE => &self.deletions,
            _ if is_listing => &self.listings,
            _ => &self.reads,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Lets the time pass that so many bytes take.
fn wait_for(bytes: usize, bytes_per_sec: Option<u32>) -> impl Future<Output = ()> {
    let seconds = bytes_per_sec.map_or(0.0, |rate| bytes as f64 / f64::from(rate));
    tokio::time::sleep(Duration::from_secs_f64(seconds))
}

async fn error_document(request: Request<Incoming>, status: StatusCode, code: &str) -> io::Result<Answer> {
    // Answered after the body was read, as most stores do; a connection that ends early would be another fault.
    collect(request.into_body()).await?;
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>"
    );
    let answer = Response::builder().status(status).header(hyper::header::CONTENT_TYPE, "application/xml");
    answer.body(Either::Left(Full::new(body.into()))).map_err(io::Error::other)
}

async fn collect(body: impl Body<Data = Bytes, Error = hyper::Error>) -> io::Result<Bytes> {
    let collected = Limited::new(body, MAX_BODY_BYTES).collect().await;
    Ok(collected.map_err(io::Error::other)?.to_bytes())
}

fn unanswered() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "ended on purpose")
}

#[cfg(test)]
mod tests;
