//! What one process is made of, shared by its tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::calls::Calls;
use crate::config::{Config, Tenant};
use crate::control::audit::AuditLog;
use crate::domain::ids::TenantId;
use crate::drain::{Drain, Phase};
use crate::ingest::vapi::Inbox;
use crate::ingest::{HangUps, StreamLimits};
use crate::journal::{Journal, JournalState};
use crate::keys::KeyService;
use crate::live::Live;
use crate::notices::{Notices, Poster};
use crate::observe::metrics as names;
use crate::relay::Dialer;
use crate::store::Store;
use crate::tenants::Tenants;
use crate::tickets::Tickets;
use crate::upload::Uploader;

/// How long readiness waits for the store.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The parts of a running node.
pub struct Node {
    /// The configuration it was started with. Tenants are in [`Node::tenant`], because they can change.
    pub config: Config,
    /// The object store.
    pub store: Arc<dyn Store>,
    /// Mints and opens DEKs.
    pub keys: Arc<KeyService>,
    /// Sealed bytes on this machine's disk.
    pub journal: Journal,
    /// The way to the store.
    pub uploader: Uploader,
    /// Who did what.
    pub audit: AuditLog,
    /// Which tickets were used.
    pub tickets: Tickets,
    /// The streams that are recorded now, and what is wanted of them.
    pub live: Live,
    /// Which calls of Vapi are heard.
    pub calls: Arc<Calls>,
    /// Where Vapi's messages wait.
    pub vapi: Inbox,
    /// Tells tenants what happens to their recordings.
    pub notices: Notices,
    /// Posts a notice at once, past the outbox: to try a receiver.
    pub poster: Poster,
    /// Dials agents.
    pub dialer: Dialer,
    /// Dials agents of tenants that may name hosts of the internet alone.
    pub public_dialer: Dialer,
    /// Dials Vapi.
    pub vapi_dialer: Dialer,
    /// Ends phone calls whose agents are lost.
    pub hang_ups: HangUps,
    /// How far stopping has come.
    pub drain: Drain,
    /// Streams per tenant.
    pub limits: StreamLimits,
    /// Renders the metrics page.
    pub metrics: PrometheusHandle,
    /// The tenants as they are now.
    pub tenants: Tenants,
    /// Whether the journal of earlier processes was worked off.
    pub recovered: AtomicBool,
    /// Whether the store was seen not to do what the configuration claims of it.
    pub claims_broken: AtomicBool,
}

impl Node {
    /// Returns a tenant.
    pub fn tenant(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.tenants.find(id)
    }

    /// Puts other tenants in place; running calls keep what they began with.
    pub fn replace_tenants(&self, tenants: Vec<Tenant>) {
        self.notices.replace_tenants(&tenants);
        self.tenants.replace(tenants);
    }

    /// Publishes what is only known at the moment somebody asks.
    pub fn publish_metrics(&self) {
        self.uploader.publish_metrics();
        self.journal.publish_metrics();
        self.live.publish_metrics();
        let store_lag = self.uploader.oldest_age().max(self.live.oldest_open_age());
        // A frame is safe with either: what the journal has lost may be in the store by now.
        let unsaved = self.journal.oldest_unsaved_age().min(store_lag);
        metrics::gauge!(names::STORE_LAG).set(store_lag.as_secs_f64());
        metrics::gauge!(names::OLDEST_UNSAVED).set(unsaved.as_secs_f64());
    }

    /// Returns why the audio of new calls cannot be kept; `None` when it can.
    pub fn cannot_keep(&self) -> Option<&'static str> {
        if self.claims_broken.load(Ordering::Acquire) {
            return Some("the store does not do what the configuration claims");
        }
        if self.journal.is_nearly_full() {
            return Some("the journal has no room");
        }
        self.uploader.is_nearly_full().then_some("too many sealed bytes wait for the store")
    }

    /// Returns why new calls should go elsewhere; `None` when they are welcome.
    pub async fn not_ready(&self) -> Option<&'static str> {
        if self.drain.phase() != Phase::Running {
            return Some("draining");
        }
        if !self.recovered.load(Ordering::Acquire) {
            return Some("recovering recordings of an earlier process");
        }
        if let Some(why) = self.cannot_keep() {
            return Some(why);
        }
        if let JournalState::Failing { .. } = self.journal.state() {
            return Some("the journal cannot be written");
        }
        match tokio::time::timeout(PING_TIMEOUT, self.store.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(_)) | Err(_) => Some("the store does not answer"),
        }
    }
}
