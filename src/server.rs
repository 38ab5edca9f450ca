//! Puts a node together, runs it and stops it: the order of start and stop.

mod audit;
mod closing;
mod error;
mod keys;
mod listeners;
mod notices;
mod requests;
mod sweep;
mod tenants;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::authorities::AuthoritiesError;
use crate::calls::Calls;
use crate::claims::{self, Claims};
use crate::config::{Config, StoreKind, process_environment};
use crate::control::audit::{AuditFile, AuditLog, AuditOptions};
use crate::control::recovery::Recovery;
use crate::control::repair::{Repair, Schedule, Settler};
use crate::drain::{Drain, Phase};
use crate::ingest::tls::Certificate;
use crate::ingest::{HangUps, StreamLimits, vapi};
use crate::journal::{Journal, JournalConfig, Replay};
use crate::keys::{KeyProvider, KeyService, Providers};
use crate::live::{Live, orders};
use crate::node::Node;
use crate::observe::{event_loop, traces};
use crate::relay::{Dialer, Reach};
use crate::store::Store;
use crate::store::folder::Folder;
use crate::store::metered::Metered;
use crate::store::s3::S3Store;
use crate::tenants::{Ask, Book, Tenants};
use crate::tickets::Tickets;
use crate::upload::{RetryPolicy, Uploader};

pub use audit::purge_audit;
pub use error::StartError;
pub use keys::open_keys;
pub use notices::open_poster;
pub use sweep::sweep_options;
pub use tenants::{complete, make_kek};

use listeners::{Acceptors, Addresses, Listeners, open_certificate};
use tenants::Keeper;

/// Closed calls must have finished their recordings in this time.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Finished recordings must be stored in this time; what is not is in the journal.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// What was told must be in the outbox in this time.
const NOTICES_TIMEOUT: Duration = Duration::from_secs(5);
/// The journal's last sync.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The last records of audit chains.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The last traces.
const TRACES_TIMEOUT: Duration = Duration::from_secs(2);
/// How often unused keys are looked at.
const KEY_INTERVAL: Duration = Duration::from_secs(60);

/// Opens the store that the configuration names.
///
/// # Errors
/// [`StartError::Store`].
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    match &config.store {
        StoreKind::Folder { path } => Ok(Arc::new(Metered::new(Folder::open(path).await?))),
        StoreKind::S3(options) => Ok(Arc::new(Metered::new(S3Store::open(options)?))),
    }
}

/// The signals that a node obeys. Until they are caught, each of them ends the process at once.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Catches SIGTERM, SIGINT and SIGHUP. To be done before anybody is told that the node runs.
    ///
    /// # Errors
    /// [`StartError::System`].
    pub fn catch() -> Result<Self, StartError> {
        let catch = |kind: SignalKind, what: &str| -> Result<Signal, StartError> {
            signal(kind).map_err(|source| StartError::System { what: format!("catch {what}"), source })
        };
        Ok(Self {
            terminate: catch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: catch(SignalKind::interrupt(), "SIGINT")?,
            hangup: catch(SignalKind::hangup(), "SIGHUP")?,
        })
    }
}

/// Returns how requests to the store are tried again.
pub fn retry_policy(config: &Config) -> RetryPolicy {
    RetryPolicy {
        base: config.upload.retry_base,
        max: config.upload.retry_max,
        try_timeout: config.upload.try_timeout,
    }
}

/// A node that takes calls.
pub struct Running {
    node: Arc<Node>,
    addresses: Addresses,
    certificate: Arc<Certificate>,
    keeper: Arc<Keeper>,
    traces: Option<traces::Exporter>,
}

/// Starts a node: reads keys, opens store and journal, binds, and begins to recover what a crash left.
///
/// # Errors
/// [`StartError`]; nothing is bound then.
pub async fn start(config: Config, metrics: PrometheusHandle) -> Result<Running, StartError> {
    let certificate = open_certificate(&config)?;
    let acceptors = Acceptors::open(&config, &certificate)?;
    let (files, store) = (config.tenants.clone(), open_store(&config).await?);
    let claims = check_claims(&config, &*store).await?;
    let (config, stored, view) = tenants::first_look(config, &store).await;
    let (providers, keys) = open_key_service(&config, &store)?;
    let (journal, replay) = open_journal(&config).await?;
    let uploader = open_uploader(&config, &store, &journal);
    let (dialer, public_dialer, vapi_dialer) = open_dialers(&config)?;
    let hang_ups = HangUps::new(&config.relay.twilio_api)?;
    let (notices, courier, poster) = notices::open(&config, &keys, &store)?;
    let (inbox, waiting) = vapi::Inbox::new();
    let listeners = Listeners::bind(&config).await?;
    let audit = open_audit_log(&config, &keys, &store)?;
    let (tenants, asked) = open_tenants(&config, &store);
    let node = Arc::new(Node {
        tickets: Tickets::new(Arc::clone(&store)),
        live: Live::default(),
        calls: Calls::new(Arc::clone(&store)),
        store,
        keys,
        journal,
        uploader,
        audit,
        vapi: inbox,
        notices,
        poster,
        dialer,
        public_dialer,
        vapi_dialer,
        hang_ups,
        drain: Drain::new(),
        limits: StreamLimits::default(),
        metrics,
        tenants,
        recovered: AtomicBool::new(false),
        claims_broken: AtomicBool::new(false),
        config,
    });
    let keeper = Arc::new(Keeper::new(Arc::clone(&node), Arc::clone(&providers), files, stored));
    let running = Running {
        addresses: listeners.addresses()?,
        certificate: Arc::clone(&certificate),
        keeper: Arc::clone(&keeper),
        traces: open_traces(&node.config)?,
        node: Arc::clone(&node),
    };
    if node.keys.opens() {
        tokio::spawn(courier.run());
    }
    tokio::spawn(keeper.keep(view, asked));
    spawn_recovery(&node, replay);
    spawn_tasks(&node, certificate);
    spawn_check_of_claims(&node, &claims);
    tokio::spawn(keys::watch_ages(Arc::clone(&node), providers));
    tokio::spawn(vapi::work(waiting, Arc::clone(&node)));
    listeners.serve(acceptors, &node);
    Ok(running)
}

fn open_key_service(
    config: &Config,
    store: &Arc<dyn Store>,
) -> Result<(Arc<Providers>, Arc<KeyService>), StartError> {
    let providers = Arc::new(keys::open(config)?);
    let provider: Arc<dyn KeyProvider> = Arc::<Providers>::clone(&providers);
    Ok((providers, Arc::new(KeyService::new(provider, Arc::clone(store)))))
}

fn open_audit_log(
    config: &Config,
    keys: &Arc<KeyService>,
    store: &Arc<dyn Store>,
) -> Result<AuditLog, StartError> {
    let (options, name) = (audit_options(config)?, config.node.as_str().to_owned());
    Ok(AuditLog::start_with(options, name, Arc::clone(keys), Arc::clone(store)))
}

fn open_traces(config: &Config) -> Result<Option<traces::Exporter>, StartError> {
    let start = |options| traces::start(options, config.node.as_str());
    config.traces.as_deref().map(start).transpose().map_err(StartError::Traces)
}

/// Calls are taken while it is not known what the store does, and their recordings wait for it.
fn spawn_check_of_claims(node: &Arc<Node>, claims: &Claims) {
    if *claims == Claims::Unknown {
        tokio::spawn(claims::check_until_known(Arc::clone(node)));
    }
}

/// Holds the tenants, and those of the store if there may be any.
fn open_tenants(config: &Config, store: &Arc<dyn Store>) -> (Tenants, Option<mpsc::Receiver<Ask>>) {
    let tenants = Tenants::new(config.tenants.iter().cloned());
    match &config.stored_tenants {
        Some(rules) => {
            let (tenants, asked) = tenants.with_stored(Book::new(Arc::clone(store), rules));
            (tenants, Some(asked))
        }
        None => (tenants, None),
    }
}

/// Returns how the configuration wants the audit log to be written.
///
/// # Errors
/// [`StartError::Audit`].
pub fn audit_options(config: &Config) -> Result<AuditOptions, StartError> {
    let audit = &config.audit;
    let open = |path: &PathBuf| AuditFile::open(path, audit.file_timeout).map_err(StartError::Audit);
    Ok(AuditOptions {
        file: audit.file.as_ref().map(open).transpose()?,
        timeout: audit.timeout,
        refusals_per_minute: audit.refusals_per_min,
        ..AuditOptions::default()
    })
}

/// Holds a bucket against what the configuration claims of it.
async fn check_claims(config: &Config, store: &dyn Store) -> Result<Claims, StartError> {
    let claims = match &config.store {
        StoreKind::S3(_) => claims::check(store).await?,
        StoreKind::Folder { .. } => Claims::Kept,
    };
    match claims {
        Claims::Broken(broken) => Err(StartError::Claims { broken }),
        Claims::Kept | Claims::Unknown => Ok(claims),
    }
}

async fn open_journal(config: &Config) -> Result<(Journal, Replay), StartError> {
    let mut journal_config = JournalConfig::new(&config.journal.dir);
    journal_config.flush_interval = config.journal.flush_interval;
    journal_config.sync_interval = config.journal.sync_interval;
    journal_config.file_bytes = config.journal.file_bytes;
    journal_config.max_bytes = config.journal.max_bytes;
    let opening = tokio::task::spawn_blocking(move || Journal::open(&journal_config)).await;
    let opened = opening
        .map_err(|error| StartError::System { what: "journal".to_owned(), source: error.into() })??;
    Ok(opened)
}

fn open_uploader(config: &Config, store: &Arc<dyn Store>, journal: &Journal) -> Uploader {
    Uploader::new(
        Arc::clone(store),
        journal.clone(),
        retry_policy(config),
        config.upload.concurrency,
        config.upload.budget_bytes as u64,
    )
    .with_catch_up_bytes_per_sec(config.upload.catch_up_bytes_per_sec)
}

/// Works off the journal; then looks for recordings of nodes that do not come back.
fn spawn_recovery(node: &Arc<Node>, replay: Replay) {
    let (store, keys) = (Arc::clone(&node.store), Arc::clone(&node.keys));
    let (name, policy) = (node.config.node.as_str().to_owned(), retry_policy(&node.config));
    let settler = Settler::new(store, keys, node.audit.clone(), name, policy);
    let settler =
        settler.with_notices(node.notices.clone()).with_party_keys(node.config.index.party_keys.clone());
    let recovering = Arc::clone(node);
    tokio::spawn(async move {
        let report = Recovery::new(replay, settler.clone()).run().await;
        recovering.recovered.store(true, Ordering::Release);
        tracing::info!(
            recovered = report.recovered,
            handed_over = report.handed_over,
            failed = report.failed,
            nothing_to_do = report.nothing_to_do,
            "journal of earlier processes is worked off"
        );
        let options = &recovering.config.repair;
        if options.enabled {
            let schedule = Schedule { after: options.after, interval: options.interval };
            let repair = Repair::new(settler, Arc::clone(&recovering.store), schedule);
            let tenants = || recovering.tenants.ids();
            repair.run(tenants, |recording| recovering.uploader.is_live(recording)).await;
        }
    });
}

fn spawn_tasks(node: &Arc<Node>, certificate: Arc<Certificate>) {
    if !node.keys.opens() {
        tracing::info!(
            "this node only records; another one has to play, repair, sweep, index and deliver notices"
        );
    }
    let keys = Arc::clone(&node.keys);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(KEY_INTERVAL).await;
            keys.expire_pool().await;
        }
    });
    let rendering = Arc::clone(node);
    tokio::spawn(async move {
        loop {
            // Histograms keep their values until somebody empties them.
            tokio::time::sleep(Duration::from_secs(5)).await;
            rendering.metrics.run_upkeep();
            rendering.live.watch();
        }
    });
    tokio::spawn(event_loop::watch());
    tokio::spawn(certificate.watch());
    tokio::spawn(orders::obey(node.live.clone(), Arc::clone(&node.store)));
    tokio::spawn(audit::keep(Arc::clone(node)));
    tokio::spawn(requests::watch(Arc::clone(node)));
    if node.config.retention.sweep {
        tokio::spawn(sweep::sweep_on(Arc::clone(node)));
        tokio::spawn(closing::close_on(Arc::clone(node)));
    }
}

/// Makes what dials agents, whom the configuration names, or who must be on the internet, and what dials Vapi, which webhooks and
/// tickets name.
fn open_dialers(config: &Config) -> Result<(Dialer, Dialer, Dialer), AuthoritiesError> {
    let (relay, vapi) = (&config.relay, &config.vapi);
    let vapi_reach = if vapi.allow_private_hosts { Reach::Any } else { Reach::Public };
    let open = |ca_file: &Option<std::path::PathBuf>, reach| {
        Dialer::new(ca_file.as_deref(), relay.connect_timeout, &config.ingest, reach)
    };
    let agents = |reach| open(&relay.ca_file, reach);
    Ok((agents(Reach::Any)?, agents(Reach::Public)?, open(&vapi.ca_file, vapi_reach)?))
}

impl Running {
    /// Returns the node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Returns the address of the public listener.
    pub fn public(&self) -> SocketAddr {
        self.addresses.public
    }

    /// Returns the address of the admin listener; `None` where there is none.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.addresses.admin
    }

    /// Returns the address of the ops listener.
    pub fn ops(&self) -> SocketAddr {
        self.addresses.ops
    }

    /// Runs until signals have stopped the node.
    ///
    /// SIGTERM drains: no new calls, running ones go on for at most `drain.max_secs`. SIGINT, or a second SIGTERM, closes
    /// running calls. SIGHUP reads tenants, secrets and the certificate again; a broken file changes nothing.
    pub async fn run(self, config_file: PathBuf, signals: Signals) {
        let Signals { mut terminate, mut interrupt, mut hangup } = signals;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                () = self.node.drain.reached(Phase::Draining) => break,
                _ = interrupt.recv() => {
                    return self.stop(Duration::ZERO).await;
                }
                _ = hangup.recv() => self.reload(&config_file),
            }
        }
        let node = Arc::clone(&self.node);
        let hurry = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("second signal: running calls are closed");
            node.drain.advance(Phase::Stopping);
            std::future::pending::<()>().await;
        };
        let longest = self.node.config.drain.max;
        tokio::select! {
            () = self.stop(longest) => {}
            () = hurry => {}
        }
    }

    /// Stops: no new calls; running calls may go on for `longest`, then they are closed; recordings are stored.
    pub async fn stop(&self, longest: Duration) {
        let drain = &self.node.drain;
        drain.advance(Phase::Draining);
        tracing::info!(streams = self.node.limits.streams(), "draining");
        tokio::select! {
            left = drain.idle(longest) => {
                if left > 0 {
                    tracing::warn!(streams = left, "calls are closed: the drain has lasted its longest");
                }
            }
            () = drain.reached(Phase::Stopping) => {}
        }
        drain.advance(Phase::Stopping);
        let left = drain.idle(STOP_TIMEOUT).await;
        if left > 0 {
            tracing::error!(streams = left, "calls did not end in time; recovery will finish them");
        }
        let left = self.node.uploader.drained(UPLOAD_TIMEOUT).await;
        if left > 0 {
            tracing::warn!(recordings = left, "recordings are not stored yet; the journal has them");
        }
        let left = self.node.notices.flushed(NOTICES_TIMEOUT).await;
        if left > 0 {
            tracing::error!(notices = left, "notices are lost: the outbox did not take them");
        }
        if !self.node.audit.end(AUDIT_TIMEOUT).await {
            tracing::warn!("audit chains have no end in the store; verification will call them silent");
        }
        self.node.keys.erase_pool().await;
        let journal = self.node.journal.clone();
        let closed = tokio::task::spawn_blocking(move || journal.close(JOURNAL_TIMEOUT)).await;
        if let Ok(Err(error)) = closed {
            tracing::error!(error = &error as &dyn std::error::Error, "journal was not closed properly");
        }
        if let Some(traces) = &self.traces {
            // What becomes of the last traces is no matter of a node that ends.
            let _sent = traces.finish(TRACES_TIMEOUT).await;
        }
        tracing::info!("stopped");
    }

    fn reload(&self, config_file: &std::path::Path) {
        match Config::load(config_file, process_environment()) {
            Ok(config) => match self.keeper.take_config(config) {
                Ok(()) => tracing::info!("tenants, their secrets and keys were read again"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "keys cannot be used; the old configuration stays");
                }
            },
            Err(faults) => tracing::error!(%faults, "configuration cannot be used; the old one stays"),
        }
        if let Err(error) = self.certificate.reload() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "certificate cannot be used; the old one stays"
            );
        }
    }
}
