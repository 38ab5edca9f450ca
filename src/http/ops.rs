//! The ops listener: metrics, health, readiness and drain, in plain HTTP on loopback only.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::drain::Phase;
use crate::node::Node;
use crate::observe::metrics;

use crate::answer::{Answer, CutOff, text};

/// Slow clients of the ops listener are cut off after this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves the ops listener until the process ends.
pub async fn serve_ops(listener: TcpListener, node: Arc<Node>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let node = Arc::clone(&node);
                async move { Ok::<Answer, CutOff>(answer(&request, &node).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "ops connection ended");
            }
        });
    }
}

async fn answer(request: &Request<Incoming>, node: &Node) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            metrics::sample_process();
            node.publish_metrics();
            text(StatusCode::OK, node.metrics.render())
        }
        (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
        (&Method::GET, "/readyz") => match node.not_ready().await {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        (&Method::POST, "/drain") => {
            node.drain.advance(Phase::Draining);
            text(StatusCode::ACCEPTED, "draining\n")
        }
        (_, "/metrics" | "/healthz" | "/readyz" | "/drain") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
        }
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}
