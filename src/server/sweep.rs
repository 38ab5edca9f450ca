//! Sweeps by the node itself, at intervals of its configuration.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::control::redate::{Redating, waiting};
use crate::control::sweep::{SweepOptions, SweepReport, Sweeper};
use crate::drain::Phase;
use crate::jitter::jittered;
use crate::node::Node;
use crate::observe::traces::{Span, words};

/// The first sweep after a start comes no later than this: long after the node has taken its first calls.
const FIRST_SWEEP: Duration = Duration::from_secs(300);

/// Deletes what is due, again and again, until the node drains.
pub(super) async fn sweep_on(node: Arc<Node>) {
    let (store, keys) = (Arc::clone(&node.store), Arc::clone(&node.keys));
    let sweeper = Sweeper::new(store, keys, node.audit.clone(), sweep_options(&node.config))
        .with_notices(node.notices.clone());
    let interval = node.config.retention.interval;
    let mut wait = jittered(interval.min(FIRST_SWEEP));
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = node.drain.reached(Phase::Draining) => return,
        }
        let mut span = Span::begin(words::SWEEP);
        span.place().around(sweep(&node, &sweeper, &mut span)).await;
        drop(span);
        wait = jittered(interval);
    }
}

async fn sweep(node: &Node, sweeper: &Sweeper, span: &mut Span) {
    // What gets its date here may be due for the sweep.
    redate(node).await;
    let tenants = node.tenants.ids();
    // What stops it is logged and counted by the sweeper.
    let Ok(SweepReport { due, deleted, held, failed, overdue, .. }) = sweeper.run(&tenants).await else {
        return span.fail("stopped");
    };
    tracing::debug!(due, deleted, held, failed, overdue, "expired recordings were swept");
    let counts = [(words::DUE, due), (words::DELETED, deleted), (words::HELD, held), (words::FAILED, failed)];
    for (key, count) in counts {
        span.number(key, count);
    }
}

/// Gives ended recordings the dates that other days of their tenants give them.
async fn redate(node: &Node) {
    let Some(stored) = node.tenants.stored() else { return };
    let redating = Redating::new(Arc::clone(&node.store), Arc::clone(&node.keys), node.audit.clone());
    let waiting = waiting(node.tenants.load().iter().map(Arc::as_ref));
    redating.carry_out_all((&node.config, &stored.book), &waiting).await;
}

/// Returns how the configuration wants expired recordings to be deleted.
pub fn sweep_options(config: &Config) -> SweepOptions {
    let retention = &config.retention;
    SweepOptions {
        interval: retention.interval,
        grace: retention.grace,
        max_deletions: retention.max_deletions,
        concurrency: retention.concurrency,
        max_share_percent: retention.max_share_percent,
    }
}
