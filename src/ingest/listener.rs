//! Accepts connections on the public listener: a place, a TLS handshake in time, then HTTP.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::answer::{Answer, CutOff};
use crate::drain::Phase;
use crate::node::Node;
use crate::observe::metrics;

/// Requests of one HTTP/2 connection at a time: a player needs a handful.
const H2_STREAMS: u32 = 32;
/// HTTP/2 connections that do not answer are given up.
const H2_KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Serves the public listener until the drain begins; connections that were accepted go on.
///
/// `handle` answers each request; it gets the address of the connection's other end.
pub async fn serve_public<H, F>(listener: TcpListener, tls: TlsAcceptor, node: Arc<Node>, handle: H)
where
    H: Fn(Request<Incoming>, IpAddr, Arc<Node>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(node.config.ingest.max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = node.drain.reached(Phase::Stopping) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: others must end first.
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            ::metrics::counter!(metrics::HANDSHAKES, "status" => "no_place").increment(1);
            continue;
        };
        tokio::spawn(connection(stream, peer, tls.clone(), Arc::clone(&node), place, handle.clone()));
    }
}

async fn connection<H, F>(
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    node: Arc<Node>,
    place: OwnedSemaphorePermit,
    handle: H,
) where
    H: Fn(Request<Incoming>, IpAddr, Arc<Node>) -> F + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection was gone at once");
        return;
    }
    let handshake = tokio::time::timeout(node.config.ingest.tls_handshake_timeout, tls.accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!("TLS handshake took too long");
            return;
        }
    };
    ::metrics::gauge!(metrics::CONNECTIONS).increment(1.0);
    serve(stream, peer, node, place, handle).await;
    ::metrics::gauge!(metrics::CONNECTIONS).decrement(1.0);
}

async fn serve<H, F>(
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    node: Arc<Node>,
    place: OwnedSemaphorePermit,
    handle: H,
) where
    H: Fn(Request<Incoming>, IpAddr, Arc<Node>) -> F + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let header_timeout = node.config.ingest.header_timeout;
    let place = Arc::new(place);
    let asked = Arc::new(Notify::new());
    let first_request = Arc::clone(&asked);
    let service = service_fn(move |mut request: Request<Incoming>| {
        // A websocket that grows out of this request keeps the connection's place.
        request.extensions_mut().insert(Arc::clone(&place));
        asked.notify_one();
        let answer = handle(request, peer.ip(), Arc::clone(&node));
        async move { Ok::<Answer, CutOff>(answer.await) }
    });
    let stream = TokioIo::new(stream);
    let ended = if is_h2 {
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(H2_STREAMS)
                .keep_alive_interval(H2_KEEP_ALIVE)
                .keep_alive_timeout(H2_KEEP_ALIVE)
                .serve_connection(stream, service)
        );
        // hyper bounds neither the client's preface nor its first request.
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = first_request.notified() => connection.await,
            () = tokio::time::sleep(header_timeout) => {
                tracing::debug!("first HTTP/2 request took too long");
                return;
            }
        }
    } else {
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(16 * 1024)
            .serve_connection(stream, service)
            .with_upgrades()
            .await
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
}
