//! Works off server messages: begins to hear calls, and tells those who hear one what is said about it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::calls::{HeardCall, News, NotBegun};
use crate::clock;
use crate::config::{Record, Route, Tenant};
use crate::domain::provider::vapi_listen_url::{ListenPolicy, ListenUrl};
use crate::domain::provider::vapi_webhook::{InProgress, Webhook};
use crate::drain::{Alive, Phase};
use crate::ingest::limits::{Limited, StreamPermit};
use crate::node::Node;
use crate::observe::metrics;

use super::{Told, listen};

/// A call that may be heard.
pub(super) struct ToHear {
    pub(super) tenant: Arc<Tenant>,
    pub(super) route: Route,
    pub(super) call: InProgress,
    pub(super) url: ListenUrl,
    /// When the message came.
    pub(super) told_at: Instant,
    pub(super) heard: HeardCall,
    /// Its place among the tenant's streams, held until it ends.
    pub(super) _permit: StreamPermit,
    /// Keeps the process until the recording is finished.
    pub(super) _alive: Alive,
}

/// Works off messages until the node ends.
pub async fn work(mut waiting: mpsc::Receiver<Told>, node: Arc<Node>) {
    while let Some(Told { tenant, route, told_at, webhook }) = waiting.recv().await {
        match webhook {
            Webhook::InProgress(call) => {
                let result = match admit(&tenant, route, *call, told_at, &node) {
                    Ok(to_hear) => {
                        tokio::spawn(Box::pin(listen::run(to_hear, Arc::clone(&node))));
                        "begun"
                    }
                    Err(why) => why,
                };
                count(result);
            }
            Webhook::Ended(call, facts) => {
                node.calls.tell(&tenant.id, &call, News::Ended(facts), clock::monotonic());
            }
            Webhook::Report(call, facts) => {
                node.calls.tell(&tenant.id, &call, News::Report(facts), clock::monotonic());
            }
            Webhook::Other(_) => {}
        }
    }
}

/// Counts what became of a call.
pub(super) fn count(result: &'static str) {
    ::metrics::counter!(metrics::VAPI_CALLS, "result" => result).increment(1);
}

/// Admits a call, or says why it is not heard. Repetitions and calls that are over are no trouble, the rest is logged.
fn admit(
    tenant: &Arc<Tenant>,
    route: Route,
    call: InProgress,
    told_at: Instant,
    node: &Node,
) -> Result<ToHear, &'static str> {
    if route.record == Record::Never {
        return Err("never");
    }
    let troubled = |why: &'static str| {
        tracing::warn!(tenant = %tenant.id, route = %route.name, why, "call is not heard");
        why
    };
    if node.drain.phase() != Phase::Running {
        return Err(troubled("draining"));
    }
    if node.cannot_keep().is_some() {
        return Err(troubled("cannot_keep"));
    }
    let url = call.listen_url.as_ref().ok_or_else(|| troubled("no_listen_url"))?;
    let policy = ListenPolicy {
        hosts: tenant.vapi.listen_hosts.clone(),
        any_port: node.config.vapi.allow_private_hosts,
    };
    let url = ListenUrl::check(url, &call.call, &policy).map_err(|refused| {
        tracing::warn!(tenant = %tenant.id, route = %route.name, why = %refused, "listen URL is not dialled");
        "refused_url"
    })?;
    let now = clock::monotonic();
    node.calls.check(&tenant.id, &call.call, now).map_err(|why| match why {
        NotBegun::Known => "duplicate",
        NotBegun::Over => "over",
    })?;
    let limits = &tenant.limits;
    let admitted = node.limits.admit(&tenant.id, limits.max_streams, limits.max_starts_per_sec, now);
    let permit = admitted.map_err(|limited| match limited {
        Limited::Streams => troubled("too_many_streams"),
        Limited::Starts => troubled("too_many_starts"),
    })?;
    // Only now, so that a call for which there is no place is not taken for one that is over.
    let heard = node.calls.begin(&tenant.id, &call.call, now);
    let (tenant, _alive) = (Arc::clone(tenant), node.drain.alive());
    Ok(ToHear { tenant, route, call, url, told_at, heard, _permit: permit, _alive })
}
