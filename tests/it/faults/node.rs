//! A node inside the test: the real listener, session, uploader and journal, but a store and a disk that fail on purpose.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use callseal::calls::Calls;
use callseal::config::{Config, process_environment};
use callseal::control::audit::AuditLog;
use callseal::domain::time::UnixMillis;
use callseal::drain::{Drain, Phase};
use callseal::ingest::tls::{Certificate, SelfSigned, server_config};
use callseal::ingest::vapi::Inbox;
use callseal::ingest::{HangUps, StreamLimits, serve_public};
use callseal::journal::{Journal, JournalConfig, JournalFile, JournalFiles, JournalMetrics, SystemFiles};
use callseal::keys::{KeyService, Keyring, LocalKeys};
use callseal::node::Node;
use callseal::notices::{Notices, Poster};
use callseal::observe::metrics;
use callseal::relay::{Dialer, Reach};
use callseal::simulate::{CallIds, CallPlan, Endpoint, Pacing, TlsClient, Track};
use callseal::store::faulty::{Faults, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{
    ByteRange, Fetched, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, StoreProfile, Tags, Upload,
};
use callseal::tickets::Tickets;
use callseal::upload::{RetryPolicy, Uploader};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{ACCOUNT, AUTH_TOKEN, Home, Setup};

/// Keys and audit records always work; only what belongs to recordings fails.
struct RecordingsFail {
    recordings: Faulty<Folder>,
    others: Folder,
}

impl RecordingsFail {
    fn of(&self, name: &str) -> &dyn Store {
        if name.starts_with("r/") { &self.recordings } else { &self.others }
    }
}

#[async_trait]
impl Store for RecordingsFail {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.of(name.as_str()).put_new(name, body, tags).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.of(name.as_str()).get(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.of(name.as_str()).head(name).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.of(prefix).list_after(prefix, after, limit).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.of(name.as_str()).delete(name).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        self.of(name.as_str()).tags(name).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        self.of(name.as_str()).set_tags(name, tags).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.of(name.as_str()).lock(name, until).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        self.of(name.as_str()).begin_upload(name, tags).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.others.ping().await
    }

    fn profile(&self) -> StoreProfile {
        self.others.profile()
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.others.now().await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        for name in names {
            self.delete(name).await?;
        }
        Ok(())
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        self.of(prefix).purge(prefix).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        self.of(name.as_str()).abort_uploads(name, before).await
    }
}

/// A disk of the journal that can be full, or hang.
#[derive(Clone, Default)]
pub(super) struct JournalDisk {
    full: Arc<AtomicBool>,
    hanging: Arc<(Mutex<bool>, Condvar)>,
    refused: Arc<AtomicUsize>,
}

impl JournalDisk {
    /// Lets every write fail from now on, or none any more.
    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// Lets every write wait from now on, or none any more.
    pub(super) fn set_hanging(&self, hanging: bool) {
        let (state, changed) = &*self.hanging;
        *state.lock().unwrap() = hanging;
        changed.notify_all();
    }

    /// Returns how many writes the full disk has refused.
    pub(super) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }
}

impl JournalFiles for JournalDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        Ok(Arc::new(FullFile { file: SystemFiles.create(path)?, disk: self.clone() }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        SystemFiles.sync_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemFiles.remove(path)
    }
}

struct FullFile {
    file: Arc<dyn JournalFile>,
    disk: JournalDisk,
}

impl JournalFile for FullFile {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let (state, changed) = &*self.disk.hanging;
        drop(changed.wait_while(state.lock().unwrap(), |hanging| *hanging).unwrap());
        if self.disk.full.load(Ordering::SeqCst) {
            self.disk.refused.fetch_add(1, Ordering::SeqCst);
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A node that takes calls.
pub(super) struct TestNode {
    pub(super) home: Home,
    pub(super) node: Arc<Node>,
    /// What goes wrong with the objects of recordings.
    pub(super) faults: Faults,
    pub(super) journal_disk: JournalDisk,
    pub(super) tls: TlsClient,
    endpoint: Endpoint,
}

/// One recorder serves all tests of this process.
fn metrics_handle() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| metrics::install().unwrap()).clone()
}

impl TestNode {
    pub(super) async fn start(setup: Setup) -> Self {
        let home = setup.write();
        let config = Config::load(&home.config(), process_environment()).unwrap();
        let (tls_dir, keyring_file) = (home.data().join("tls"), &config.keys.keyring_file);
        let made = SelfSigned::ensure(&tls_dir, config.public_url.host()).unwrap();
        let tls = TlsClient::new(&std::fs::read(&made.ca_file).unwrap()).unwrap();
        let certificate = Certificate::load(&made.cert_file, &made.key_file).unwrap();
        let folder = Folder::open(home.data().join("store")).await.unwrap();
        let recordings = Faulty::new(folder.clone());
        let faults = recordings.faults();
        let store: Arc<dyn Store> = Arc::new(RecordingsFail { recordings, others: folder });
        let provider = LocalKeys::new(Keyring::load(keyring_file).unwrap());
        let keys = Arc::new(KeyService::new(Arc::new(provider), Arc::clone(&store)));
        let journal_disk = JournalDisk::default();
        let mut journal = JournalConfig::new(home.data().join("journal"));
        journal.retry_pause = Duration::from_millis(20);
        (journal.file_bytes, journal.max_bytes) = (config.journal.file_bytes, config.journal.max_bytes);
        let files = Arc::new(journal_disk.clone());
        let (journal, _replay) =
            Journal::open_with(&journal, files, Arc::new(JournalMetrics::new())).unwrap();
        let policy = RetryPolicy {
            base: Duration::from_millis(2),
            max: Duration::from_millis(50),
            try_timeout: Duration::from_millis(300),
        };
        let budget = config.upload.budget_bytes as u64;
        let uploader = Uploader::new(Arc::clone(&store), journal.clone(), policy, 4, budget);
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let endpoint = Endpoint::new(listener.local_addr().unwrap(), home.public_url()).unwrap();
        let tickets = Tickets::new(Arc::clone(&store));
        let node = Arc::new(Node {
            tickets,
            live: callseal::live::Live::default(),
            calls: Calls::new(Arc::clone(&store)),
            vapi: Inbox::new().0,
            notices: Notices::off(),
            poster: Poster::new(None, Duration::from_secs(1)).unwrap(),
            public_dialer: Dialer::new(None, config.relay.connect_timeout, &config.ingest, Reach::Public)
                .unwrap(),
            vapi_dialer: Dialer::new(None, config.relay.connect_timeout, &config.ingest, Reach::Any).unwrap(),
            hang_ups: HangUps::new(&config.relay.twilio_api).unwrap(),
            audit: AuditLog::start("test".to_owned(), Arc::clone(&keys), Arc::clone(&store)),
            store,
            keys,
            journal,
            uploader,
            drain: Drain::new(),
            limits: StreamLimits::default(),
            metrics: metrics_handle(),
            tenants: callseal::tenants::Tenants::new(config.tenants.iter().cloned()),
            recovered: AtomicBool::new(true),
            claims_broken: AtomicBool::new(false),
            dialer: Dialer::new(None, config.relay.connect_timeout, &config.ingest, Reach::Any).unwrap(),
            config,
        });
        let acceptor = TlsAcceptor::from(server_config(certificate, None).unwrap());
        tokio::spawn(serve_public(listener, acceptor, Arc::clone(&node), callseal::http::handle));
        Self { home, node, faults, journal_disk, tls, endpoint }
    }

    /// Plans call number `number` of one track, four times as fast as it was spoken.
    pub(super) fn plan(&self, number: u8, caller: Track) -> CallPlan {
        let ids = CallIds::new(ACCOUNT, &[number; 16], &[number; 16]);
        let target = "/twilio/v1/acme-dental/reception";
        let mut plan = CallPlan::new(self.endpoint.clone(), target, AUTH_TOKEN.as_bytes(), ids, caller);
        plan.pacing = Pacing::Scaled(4.0);
        plan
    }

    /// Waits until everything is stored, and ends the node.
    pub(super) async fn stop(self) -> Home {
        self.node.drain.advance(Phase::Stopping);
        assert_eq!(self.node.uploader.drained(Duration::from_secs(20)).await, 0);
        let journal = self.node.journal.clone();
        tokio::task::spawn_blocking(move || journal.close(Duration::from_secs(5))).await.unwrap().unwrap();
        self.home
    }
}
