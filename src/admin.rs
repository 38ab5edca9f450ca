//! The API of operators and their programs: JSON over HTTPS, on a listener of its own.
//!
//! Every request passes `guard` before a handler sees it: who asks, what they may do, on which tenant, and why. What is not
//! in the table of `domain::access` nobody may do. Handlers turn JSON into calls of `control` and back; what happens is in the
//! audit log before its effect can be seen.
//!
//! Knows nodes and their tenants. Must not know wire formats of providers or bare keys.

mod audit;
mod deletions;
mod error;
mod exports;
mod grants;
mod guard;
mod idempotency;
mod input;
pub mod jwt;
mod live;
mod openapi;
mod recordings;
mod requests;
mod retention;
mod stream;
mod tenants;
mod tickets;
pub mod tokens;
mod webhooks;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{Answer, CutOff, add_common_headers};
use crate::control::answers::Answers;
use crate::node::Node;

use error::ApiError;
use guard::{Meta, Pace};
use jwt::Issuer;
use tokens::Tokens;

pub use openapi::document;

/// Deletions at the same time: each has one request to the store at a time, and calls come first.
const MAX_DELETIONS: usize = 4;
/// Audit logs that are read from end to end at the same time: each reads 32 objects at once.
const LOG_READERS: usize = 2;

/// Exports at the same time: each opens and seals audio on a core that calls need.
const EXPORTERS: usize = 2;

/// The admin API of a node; clones are the same.
#[derive(Clone)]
pub struct Api {
    router: Router,
}

/// What handlers work with.
#[derive(Clone)]
struct Shared {
    node: Arc<Node>,
    tokens: Arc<Tokens>,
    /// Who else says who somebody is.
    issuer: Option<Arc<Issuer>>,
    pace: Arc<Pace>,
    /// Places for deletions that go on behind their answers.
    deletions: Arc<Semaphore>,
    answers: Arc<Answers>,
    /// Who may read a whole audit log now.
    log_readers: Arc<Semaphore>,
    /// Who may export recordings now.
    exporters: Arc<Semaphore>,
}

impl Api {
    /// Puts the API together.
    pub fn new(node: Arc<Node>, tokens: Arc<Tokens>, issuer: Option<Arc<Issuer>>) -> Self {
        let (per_sec, timeout) =
            node.config.admin.as_ref().map_or((1, std::time::Duration::from_secs(1)), |admin| {
                (admin.requests_per_sec, admin.request_timeout)
            });
        let deletions = Arc::new(Semaphore::new(MAX_DELETIONS));
        let answers = Arc::new(Answers::new(Arc::clone(&node.store), Arc::clone(&node.keys)));
        let shared = Shared {
            node,
            tokens,
            issuer,
            pace: Arc::new(Pace::new(per_sec, timeout)),
            deletions,
            answers,
            log_readers: Arc::new(Semaphore::new(LOG_READERS)),
            exporters: Arc::new(Semaphore::new(EXPORTERS)),
        };
        let (operations, _) = operations().split_for_parts();
        let router = operations
            .route_layer(axum::middleware::from_fn_with_state(shared.clone(), guard::guard))
            .route("/openapi.json", get(openapi::serve))
            .fallback(|| async { ApiError::NotFound })
            .with_state(shared);
        Self { router }
    }

    /// Answers one request.
    pub async fn handle(self, request: Request<Incoming>, source: IpAddr, id: String) -> Answer {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(Meta { id: id.clone(), source });
        let answered = self.router.oneshot(request).await;
        let response = answered.unwrap_or_else(|never| match never {});
        let response = error::with_request(response, &id).into_response();
        let mut answer = response.map(|body| body.map_err(|_| CutOff).boxed_unsync());
        add_common_headers(&mut answer);
        answer
    }
}

/// Every operation with its description.
fn operations() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(tenants::list, tenants::change::create))
        .routes(routes!(tenants::show))
        .routes(routes!(tenants::change::settings, tenants::change::update))
        .routes(routes!(tenants::change::suspend))
        .routes(routes!(tenants::change::resume))
        .routes(routes!(tenants::change::close))
        .routes(routes!(retention::show, retention::change))
        .routes(routes!(retention::approve))
        .routes(routes!(retention::withdraw))
        .routes(routes!(tickets::create))
        .routes(routes!(live::list))
        .routes(routes!(live::pause))
        .routes(routes!(live::resume))
        .routes(routes!(live::consent))
        .routes(routes!(audit::query))
        .routes(routes!(audit::verify))
        .routes(routes!(audit::export))
        .routes(routes!(audit::proof))
        .routes(routes!(recordings::list))
        .routes(routes!(recordings::show, recordings::delete))
        .routes(routes!(deletions::create))
        .routes(routes!(deletions::show_receipt))
        .routes(routes!(deletions::list_ledger))
        .routes(routes!(requests::open, requests::list))
        .routes(routes!(requests::show))
        .routes(routes!(requests::report))
        .routes(routes!(requests::fulfil))
        .routes(routes!(requests::refuse))
        .routes(routes!(requests::lift))
        .routes(routes!(grants::create))
        .routes(routes!(exports::create))
        .routes(routes!(recordings::hold))
        .routes(routes!(recordings::release))
        .routes(routes!(webhooks::show))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::list))
        .routes(routes!(webhooks::notice))
        .routes(routes!(webhooks::redeliver))
}
