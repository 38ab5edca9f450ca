//! One store, tenants with webhooks, and any number of nodes that deliver from it, in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use callseal::config::{Config, Tenant, Webhook, process_environment};
use callseal::domain::ids::{NoticeId, RecordingId, TenantId};
use callseal::domain::notice::{Event, NoticeKind, Schedule};
use callseal::keys::{KeyService, Keyring, LocalKeys};
use callseal::notices::courier::{Courier, CourierOptions};
use callseal::notices::manage::{Desk, Shown};
use callseal::notices::{Notices, Poster};
use callseal::store::Store;
use callseal::store::folder::Folder;
use callseal::store::layout::{self, NoticePlace};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::receiver::{Identity, Receiver};
use crate::support::{Home, LIMIT, Setup, TENANT, TenantSetup, write_private};

/// What notices of the tenants are signed with.
pub(crate) const SECRETS: [&str; 2] =
    ["an old webhook secret of more than 32 bytes", "a new webhook secret of more than 32 bytes"];

/// For what succeeds at once: an attempt may take as long as a busy machine needs.
pub(crate) const PATIENT: Schedule = Schedule {
    attempt: Duration::from_secs(15),
    first: Duration::from_millis(10),
    longest: Duration::from_millis(20),
    give_up: Duration::from_secs(3600),
};

/// For what is tried again: attempts of a second, pauses of some milliseconds.
pub(crate) const QUICK: Schedule = Schedule {
    attempt: Duration::from_millis(1000),
    first: Duration::from_millis(10),
    longest: Duration::from_millis(20),
    give_up: Duration::from_secs(3600),
};

/// Returns the table `webhook` of a tenant, after its table `playback`.
pub(crate) fn table(dir: &Path, url: &str, more: &str) -> String {
    let secrets = SECRETS.iter().enumerate().map(|(index, secret)| {
        let path = dir.join(format!("webhook-{index}.secret"));
        write_private(&path, secret);
        format!("{{ file = {:?} }}", path.display().to_string())
    });
    let secrets: Vec<_> = secrets.collect();
    format!("[webhook]\nurl = {url:?}\nsecrets = [{}]\nallow_private = true\n{more}\n", secrets.join(", "))
}

pub(crate) struct World {
    dir: TempDir,
    home: Home,
    store_dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
}

/// One process.
pub(crate) struct Node {
    pub(crate) notices: Notices,
    delivering: Option<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(delivering) = &self.delivering {
            delivering.abort();
        }
    }
}

impl World {
    /// The tenant [`TENANT`] with a receiver at this URL.
    pub(crate) async fn new(url: impl Fn(&Identity) -> String) -> Self {
        Self::with(url, "", &[]).await
    }

    /// The same with more lines in its table, and with other tenants and where they are told.
    pub(crate) async fn with(
        url: impl Fn(&Identity) -> String,
        more: &str,
        others: &[(&str, String)],
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let identity = Identity::new(dir.path(), "receiver");
        let first = table(dir.path(), &url(&identity), more);
        let mut setup = Setup::new().tenant(|tenant| tenant.playback = first);
        for (id, url) in others {
            let mut tenant = TenantSetup::new(id);
            tenant.playback = table(dir.path(), url, "");
            setup = setup.add_tenant(tenant);
        }
        let home = setup.write();
        let config = Config::load(&home.config(), process_environment()).unwrap();
        let store_dir = home.data().join("store");
        let store = Arc::new(Folder::open(store_dir.clone()).await.unwrap());
        Self { dir, home, store_dir, identity, config, store }
    }

    /// A world whose tenant is told by a receiver that listens already.
    pub(crate) async fn listening() -> (Self, Receiver) {
        let port = free_port();
        let world = Self::new(|_| format!("https://localhost:{port}/callseal?token=t0ken")).await;
        let receiver = world.identity.listen(port).await;
        (world, receiver)
    }

    pub(crate) fn tenant(&self) -> &Tenant {
        self.config.tenants.iter().find(|tenant| tenant.id.as_str() == TENANT).unwrap()
    }

    pub(crate) fn webhook(&self) -> Webhook {
        self.tenant().webhook.clone().unwrap()
    }

    pub(crate) fn id(&self) -> TenantId {
        TENANT.parse().unwrap()
    }

    pub(crate) fn poster(&self) -> Poster {
        Poster::new(Some(&self.identity.ca_file), PATIENT.attempt).unwrap()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store_dir(&self) -> &Path {
        &self.store_dir
    }

    /// Waits until nothing waits, whatever it is.
    pub(crate) async fn wait_for_empty_outbox(&self) {
        let prefix = layout::notices_prefix(self.id().tag(), NoticePlace::Waiting);
        let looking = async {
            while !self.store.list_after(&prefix, None, 1).await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, looking).await.expect("nothing waits");
    }

    pub(crate) fn keys(&self) -> Arc<KeyService> {
        let ring = Keyring::load(&self.home.data().join("keyring.json")).unwrap();
        Arc::new(KeyService::new(Arc::new(LocalKeys::new(ring)), Arc::clone(&self.store)))
    }

    /// A process that delivers.
    pub(crate) fn node(&self, name: &str) -> Node {
        self.node_with(name, PATIENT)
    }

    pub(crate) fn node_with(&self, name: &str, schedule: Schedule) -> Node {
        let (store, tenants) = (Arc::clone(&self.store), &self.config.tenants);
        let (notices, handover) = Notices::start(self.keys(), store, name, tenants);
        let options = CourierOptions { schedule, scan_interval: Duration::from_millis(200), concurrency: 4 };
        let poster = Poster::new(Some(&self.identity.ca_file), schedule.attempt).unwrap();
        let delivering = tokio::spawn(Courier::new(handover, poster, options).run());
        Node { notices, delivering: Some(delivering) }
    }

    /// A process that tells and never delivers.
    pub(crate) fn teller(&self) -> Node {
        let (store, tenants) = (Arc::clone(&self.store), &self.config.tenants);
        Node { notices: Notices::start(self.keys(), store, "teller", tenants).0, delivering: None }
    }

    pub(crate) fn desk(&self) -> Desk {
        Desk::new(self.keys(), Arc::clone(&self.store), "desk", self.id())
    }

    /// Waits until so many notices are in a place; answers them.
    pub(crate) async fn wait_for(&self, place: NoticePlace, count: usize) -> Vec<Shown> {
        let desk = self.desk();
        let looking = async {
            loop {
                let found = desk.list(&[place], usize::MAX).await.unwrap();
                if found.len() == count {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, looking)
            .await
            .unwrap_or_else(|_| panic!("not {count} notices in {place:?}"))
    }
}

/// Returns a port on which nobody listens.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Event number `number`.
pub(crate) fn event(kind: NoticeKind, number: u8) -> Event {
    Event::of_recording(kind, RecordingId([number; 16]), 0)
}

/// Returns the id of a notice of [`TENANT`].
pub(crate) fn notice(event: &Event) -> NoticeId {
    event.id(TENANT.parse::<TenantId>().unwrap().tag())
}
