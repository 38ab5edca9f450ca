//! The tenants as they are now: the one place that is asked who a tenant is and what holds for it.
//!
//! Tenants come from files of the node, and from the store, where they are numbered revisions that every node looks for at intervals.
//! Whoever needs a tenant asks for it when something begins, and keeps what it got until that has ended: a change never
//! reaches into a call that runs.
//!
//! Knows tenants, and how they are kept. Must not know what is done for them.

mod book;
mod cache;
mod change;
mod retention;
mod revision;
mod settings;
mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::config::Tenant;
use crate::domain::ids::TenantId;

pub use book::{Book, BookError};
pub use change::{Author, ChangeError, Desk, Draft, Order};
pub use retention::RetentionOrder;
pub use revision::{Made, NoRevision, Revision};
pub use settings::{Settings, wipe};
pub use view::{View, together};

/// A tenant with defaults alone, for tests of other modules.
#[cfg(test)]
pub(crate) fn plain_tenant() -> Tenant {
    let text = "public_url = \"wss://media.example.com\"\n[tls]\nself_signed = true\n";
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("tenants")).expect("a directory in it");
    let config = crate::config::Config::from_toml(text, dir.path(), [("A", "B"); 0], &crate::config::Disk);
    let table = "id = \"acme\"".parse().expect("TOML");
    config.expect("no fault").check_stored_tenant(table).expect("no fault")
}

/// Questions to whoever keeps the tenants that may wait.
const ASKS: usize = 64;

/// The tenants of a node.
pub struct Tenants {
    now: ArcSwap<Vec<Arc<Tenant>>>,
    stored: Option<Stored>,
}

/// What the API needs to change tenants of the store.
pub struct Stored {
    /// Their revisions.
    pub book: Book,
    asks: mpsc::Sender<Ask>,
}

/// What is asked of whoever keeps the tenants of a node.
pub enum Ask {
    /// To see to it that keys can be had for a tenant that is not put yet.
    Admit(Box<Tenant>, oneshot::Sender<Result<(), NotAdmitted>>),
    /// To look at the store now.
    Look(oneshot::Sender<()>),
}

/// Why no keys can be had for a tenant, as the option that is wrong and the problem with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAdmitted {
    /// The option.
    pub option: &'static str,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

impl Tenants {
    /// Holds these tenants, whose ids differ.
    pub fn new(tenants: impl IntoIterator<Item = Tenant>) -> Self {
        Self { now: ArcSwap::from_pointee(tenants.into_iter().map(Arc::new).collect()), stored: None }
    }

    /// Has further ones in the store; whoever keeps them takes the second value.
    #[must_use]
    pub fn with_stored(self, book: Book) -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(ASKS);
        (Self { stored: Some(Stored { book, asks }), ..self }, asked)
    }

    /// Returns what those of the store are changed with; `None` where there are none.
    pub fn stored(&self) -> Option<&Stored> {
        self.stored.as_ref()
    }

    /// Returns all of them as they are now.
    pub fn load(&self) -> Arc<Vec<Arc<Tenant>>> {
        self.now.load_full()
    }

    /// Returns one of them as it is now.
    pub fn find(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.now.load().iter().find(|tenant| tenant.id == *id).cloned()
    }

    /// Returns the ids of all of them.
    pub fn ids(&self) -> Vec<TenantId> {
        self.now.load().iter().map(|tenant| tenant.id.clone()).collect()
    }

    /// Puts others in place.
    pub fn replace(&self, tenants: impl IntoIterator<Item = Tenant>) {
        self.now.store(Arc::new(tenants.into_iter().map(Arc::new).collect()));
    }
}

impl Stored {
    /// Sees to it that keys can be had for a tenant that is not put yet.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub async fn admit(&self, tenant: Tenant) -> Result<(), NotAdmitted> {
        let (answer, answered) = oneshot::channel();
        let stopped = || NotAdmitted { option: "keys", problem: "the node is stopping".to_owned() };
        self.asks.send(Ask::Admit(Box::new(tenant), answer)).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Has this node take what is in the store now.
    pub async fn look(&self) {
        let (done, looked) = oneshot::channel();
        if self.asks.send(Ask::Look(done)).await.is_ok() {
            // A node that stops does not need to know any more.
            let _looked = looked.await.is_ok();
        }
    }
}
