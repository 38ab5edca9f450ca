//! Sees to it that a ticket is used once: at once on this node, and soon on all nodes of a bucket.
//!
//! A call never waits for the store here. The ticket's object is created beside the call that has brought it; if another node
//! was first, the call that came second is closed. A store that does not answer in time decides nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;

use crate::clock;
use crate::domain::ids::TenantTag;
use crate::domain::ticket::Ticket;
use crate::domain::time::UnixMillis;
use crate::observe::metrics as names;
use crate::store::{ObjectClass, PutOutcome, Store, Tags, layout};

/// Used tickets that are remembered: a day of 1,000 calls a second with tickets of five minutes is far below.
const MAX_REMEMBERED: usize = 1 << 20;
/// How long the store may take to say that a ticket is new.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a ticket is not taken although it is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It was used on this node.
    #[error("ticket was used before")]
    Used,
    /// There is no room to remember it.
    #[error("too many tickets to remember")]
    Full,
}

/// The used tickets of a node.
pub struct Tickets {
    store: Arc<dyn Store>,
    /// Ids of used tickets, and when each has expired (Unix seconds).
    used: Mutex<HashMap<String, u64>>,
}

/// Tells whether a ticket turns out to have been used elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Redeemed(Arc<AtomicBool>);

impl Redeemed {
    /// Whether another node was first.
    pub fn was_used_elsewhere(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Tickets {
    /// Tells other nodes through `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, used: Mutex::default() }
    }

    /// Uses a ticket of a tenant.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn redeem(&self, tenant: TenantTag, ticket: &Ticket) -> Result<Redeemed, NotTaken> {
        let now = clock::wall().0 / 1000;
        {
            let mut used = self.used();
            if used.len() >= MAX_REMEMBERED {
                used.retain(|_, exp| *exp >= now);
            }
            if used.contains_key(&ticket.id) {
                return Err(NotTaken::Used);
            }
            if used.len() >= MAX_REMEMBERED {
                return Err(NotTaken::Full);
            }
            used.insert(ticket.id.clone(), ticket.exp);
        }
        let redeemed = Redeemed::default();
        let (store, told) = (Arc::clone(&self.store), redeemed.clone());
        let date = clock::utc_date(UnixMillis(ticket.exp.saturating_mul(1000)));
        let name = layout::used_ticket(&date, tenant, &ticket.id);
        tokio::spawn(async move {
            let Some(name) = name else { return };
            let tags = Tags::of(tenant, ObjectClass::Ticket);
            let putting = store.put_new(&name, Bytes::new(), &tags);
            match tokio::time::timeout(CONFIRM_TIMEOUT, putting).await {
                Ok(Ok(PutOutcome::Created)) => {}
                Ok(Ok(PutOutcome::AlreadyExists)) => told.0.store(true, Ordering::Relaxed),
                Ok(Err(_)) | Err(_) => counter!(names::TICKETS_UNCONFIRMED).increment(1),
            }
        });
        Ok(redeemed)
    }

    fn used(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
