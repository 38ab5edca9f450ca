//! Counts the requests of people that are open, and tells of those that should have been dealt with by now.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::config::TenantStatus;
use crate::control::requests::{OpenRequests, Requests};
use crate::domain::ids::RequestId;
use crate::domain::notice::Event;
use crate::drain::Phase;
use crate::jitter::jittered;
use crate::node::Node;
use crate::observe::metrics;

/// How often: deadlines are days, and each look costs a request to the store for each tenant.
const ROUND: Duration = Duration::from_secs(900);
/// The looks at many tenants are spread, so that the store does not feel them: 1,000 in 50 seconds.
const PAUSE: Duration = Duration::from_millis(50);

/// Counts again and again until the node drains.
pub(super) async fn watch(node: Arc<Node>) {
    let (store, keys) = (Arc::clone(&node.store), Arc::clone(&node.keys));
    let requests = Requests::new(store, keys, node.audit.clone(), node.config.retention.grace);
    let mut told = HashSet::new();
    loop {
        tokio::select! {
            () = round(&node, &requests, &mut told) => {}
            () = node.drain.reached(Phase::Draining) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(ROUND)) => {}
            () = node.drain.reached(Phase::Draining) => return,
        }
    }
}

async fn round(node: &Node, requests: &Requests, told: &mut HashSet<RequestId>) {
    let (mut all_open, mut all_overdue) = (0, HashSet::new());
    let tenants = Arc::clone(&node.tenants.load());
    for tenant in tenants.iter().filter(|tenant| tenant.status != TenantStatus::Closed) {
        match requests.count(&tenant.id).await {
            Ok(OpenRequests { open, overdue }) => {
                all_open += open;
                for request in overdue {
                    all_overdue.insert(request);
                    if told.insert(request) {
                        tracing::warn!(tenant = %tenant.id, %request, "somebody's request is overdue");
                        node.notices.told(&tenant.id, Event::of_request(request)).await;
                    }
                }
            }
            Err(error) => {
                ::metrics::counter!(metrics::REQUESTS_COUNT_FAILURES).increment(1);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(tenant = %tenant.id, error, "somebody's requests cannot be counted");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    told.retain(|request| all_overdue.contains(request));
    ::metrics::gauge!(metrics::REQUESTS_OPEN).set(u32::try_from(all_open).unwrap_or(u32::MAX));
    let overdue = u32::try_from(all_overdue.len()).unwrap_or(u32::MAX);
    ::metrics::gauge!(metrics::REQUESTS_OVERDUE).set(overdue);
}
