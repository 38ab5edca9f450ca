//! The public listener's routes.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use crate::domain::sign::encode_hex;
use crate::ingest::{Peer, twilio, vapi};
use crate::keys::fill_random;
use crate::node::Node;
use crate::observe::metrics as names;

use super::playback;
use crate::answer::{Answer, add_common_headers, problem, text};

/// Answers one request of the admin listener.
pub async fn handle_admin(
    request: Request<Incoming>,
    socket: IpAddr,
    node: Arc<Node>,
    api: crate::admin::Api,
) -> Answer {
    let source = source(&request, socket, &node);
    api.handle(request, source, request_id()).await
}

/// Answers one request of the public listener.
pub async fn handle(request: Request<Incoming>, socket: IpAddr, node: Arc<Node>) -> Answer {
    let peer = Peer { source: source(&request, socket, &node) };
    let id = request_id();
    let mut answer = route(request, peer, &id, node).await;
    add_common_headers(&mut answer);
    answer
}

async fn route(request: Request<Incoming>, peer: Peer, id: &str, node: Arc<Node>) -> Answer {
    let path = request.uri().path().to_owned();
    if path.starts_with("/twilio/v1/") {
        return twilio::answer(request, peer, id, node).await;
    }
    if vapi::is_events(&path) {
        return vapi::answer(request, id, node).await;
    }
    if path.starts_with(vapi::PREFIX) {
        return vapi::transcriber::answer(request, peer, id, node).await;
    }
    if path.starts_with(vapi::transport::PREFIX) {
        return vapi::transport::answer(request, peer, id, node).await;
    }
    if path.starts_with("/play/") {
        return playback::answer(&request, peer, id, node).await;
    }
    match (path.as_str(), request.method()) {
        ("/healthz", &Method::GET | &Method::HEAD) => text(StatusCode::OK, "ok\n"),
        ("/healthz", _) => {
            problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "allowed: GET, HEAD", id)
        }
        _ => problem(StatusCode::NOT_FOUND, "not_found", "nothing is here", id),
    }
}

/// The address behind a trusted proxy, else that of the socket. A header from anybody else is not looked at, and a proxy that
/// names no address is counted, because its own then stands for that of everybody.
fn source(request: &Request<Incoming>, socket: IpAddr, node: &Node) -> IpAddr {
    let proxies = &node.config.proxies;
    let Some(name) = &proxies.client_ip_header else { return socket };
    if !proxies.trusted.iter().any(|range| range.contains(socket)) {
        return socket;
    }
    let mut values = request.headers().get_all(name).iter();
    let (first, more) = (values.next(), values.next());
    let named = first.filter(|_| more.is_none()).and_then(|value| value.to_str().ok());
    named.and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| {
        metrics::counter!(names::PROXIED_WITHOUT_ADDRESS).increment(1);
        socket
    })
}

/// Twelve random hexadecimal digits.
fn request_id() -> String {
    let mut random = [0; 6];
    if fill_random(&mut random).is_err() {
        return "none".to_owned();
    }
    encode_hex(&random)
}
