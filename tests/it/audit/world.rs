//! A store with an invented clock, and processes that write audit logs into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use callseal::clock;
use callseal::control::audit::{
    AuditEvent, AuditLog, AuditOptions, AuditReader, Filter, Mark, Verification, Witness,
};
use callseal::domain::ids::TenantId;
use callseal::domain::time::UnixMillis;
use callseal::keys::{KeyService, Keyring, LocalKeys, system_random};
use callseal::store::faulty::{Faults, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{Store, layout};
use tempfile::TempDir;

use crate::support::LIMIT;

pub(super) const MINUTE: u64 = 60_000;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;
/// 2026-09-21, a quarter past two in the afternoon.
const BEGIN: u64 = 1_790_000_100_000;

/// The time as processes see it.
#[derive(Clone)]
pub(super) struct Time(Arc<AtomicU64>);

impl Time {
    pub(super) fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }

    pub(super) fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }

    pub(super) fn go_back(&self, millis: u64) {
        self.0.fetch_sub(millis, Ordering::SeqCst);
    }
}

/// A folder with a store and the keys of two tenants.
pub(super) struct World {
    dir: TempDir,
    pub(super) time: Time,
    pub(super) tenant: TenantId,
    pub(super) other: TenantId,
    pub(super) store: Arc<dyn Store>,
    pub(super) faults: Faults,
    pub(super) keys: Arc<KeyService>,
}

/// One process that writes.
pub(super) struct Process {
    pub(super) log: AuditLog,
    pub(super) node: String,
}

impl World {
    pub(super) async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (tenant, other): (TenantId, TenantId) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let ring = dir.path().join("keyring.json");
        Keyring::init(&ring, &[tenant.clone(), other.clone()], "2026-01-01T00:00:00Z", system_random)
            .unwrap();
        let time = Time(Arc::new(AtomicU64::new(BEGIN)));
        Self::open(dir, time, (tenant, other)).await
    }

    async fn open(dir: TempDir, time: Time, (tenant, other): (TenantId, TenantId)) -> Self {
        let store = Faulty::new(Folder::open(dir.path().join("store")).await.unwrap());
        let (faults, store): (_, Arc<dyn Store>) = (store.faults(), Arc::new(store));
        let ring = Keyring::load(&dir.path().join("keyring.json")).unwrap();
        let keys = Arc::new(KeyService::new(Arc::new(LocalKeys::new(ring)), Arc::clone(&store)));
        Self { dir, time, tenant, other, store, faults, keys }
    }

    /// A copy of everything, to be meddled with.
    pub(super) async fn copy(&self) -> Self {
        let dir = TempDir::new().unwrap();
        copy_all(self.dir.path(), dir.path());
        let time = Time(Arc::new(AtomicU64::new(self.time.now().0)));
        Self::open(dir, time, (self.tenant.clone(), self.other.clone())).await
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where the store keeps an object.
    pub(super) fn file(&self, object: &str) -> PathBuf {
        self.dir.path().join("store").join(object)
    }

    pub(super) fn options(&self) -> AuditOptions {
        let time = self.time.clone();
        // A checkpoint never comes by itself, but on order: a machine may be slow.
        AuditOptions {
            clock: Arc::new(move || time.now()),
            checkpoint_every: Duration::from_secs(3600),
            ..AuditOptions::default()
        }
    }

    pub(super) fn process(&self, node: &str) -> Process {
        self.process_with(node, self.options())
    }

    pub(super) fn process_with(&self, node: &str, options: AuditOptions) -> Process {
        let (keys, store) = (Arc::clone(&self.keys), Arc::clone(&self.store));
        Process { log: AuditLog::start_with(options, node.to_owned(), keys, store), node: node.to_owned() }
    }

    pub(super) fn reader(&self) -> AuditReader<'_> {
        AuditReader::new(&self.keys, &*self.store)
    }

    /// Verifies the tenant's log as of now.
    pub(super) async fn verify(&self) -> Verification {
        self.reader().verify(&self.tenant, None, self.time.now()).await.unwrap()
    }

    pub(super) async fn verify_against(&self, witness: &Path) -> Verification {
        let witness = Witness::read(&[witness.to_owned()], self.tenant.tag()).unwrap();
        self.reader().verify(&self.tenant, Some(witness), self.time.now()).await.unwrap()
    }

    /// Begins the tenant's chain of a process, and waits for its first checkpoint.
    pub(super) async fn begin(&self, process: &Process) {
        process.log.begin(&self.tenant).await;
        let filter = Filter { with_marks: true, ..Filter::default() };
        let began = clock::monotonic();
        loop {
            let page = self.reader().query(&self.tenant, &filter, None, usize::MAX).await.unwrap();
            let has_checkpoint = page.records.iter().any(|record| {
                record.node == process.node && matches!(record.mark, Some(Mark::Checkpoint { .. }))
            });
            if has_checkpoint {
                return;
            }
            assert!(clock::since(began) < LIMIT, "waited in vain for a checkpoint");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the names of a tenant's audit objects, oldest first.
    pub(super) async fn objects(&self, tenant: &TenantId) -> Vec<String> {
        let listed = self.store.list_after(&layout::audit_prefix(tenant.tag()), None, 100_000).await.unwrap();
        listed.into_iter().map(|info| info.name.as_str().to_owned()).collect()
    }
}

impl Process {
    pub(super) async fn record(&self, tenant: &TenantId, event: AuditEvent) {
        self.log.record(tenant, event).await.unwrap();
    }

    pub(super) async fn end(&self) {
        assert!(self.log.end(LIMIT).await);
    }
}

/// Somebody plays a recording.
pub(super) fn played(actor: &str, source: &str, key: &str, subject: &str) -> AuditEvent {
    AuditEvent {
        role: "player".to_owned(),
        source: Some(source.to_owned()),
        key: Some(key.to_owned()),
        ..AuditEvent::by_operator(actor, "play", subject.to_owned())
    }
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_all(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
