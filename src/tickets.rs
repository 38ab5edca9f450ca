//! Sees to it that a ticket is used once: at once on this node, and soon on all nodes of a bucket.
//!
//! A call never waits for the store here. The ticket's object is created beside the call that has brought it; if another node
//! was first, the call that came second is closed. A store that does not answer in time decides nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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

/// Used tickets that are remembered, of about 100 bytes each: 1,000 calls a second with tickets of a quarter of an hour.
const MAX_REMEMBERED: usize = 1 << 20;
/// From so many on, those that have expired are looked for whenever their number has doubled.
const FORGET_FROM: usize = 1 << 10;
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
    used: Mutex<Used>,
}

/// What a node remembers.
struct Used {
    /// Tickets by tenant and id, and when each has expired (Unix seconds).
    expiries: HashMap<(TenantTag, String), u64>,
    /// How many there may be before the expired ones are forgotten.
    forget_at: usize,
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
        Self { store, used: Mutex::new(Used { expiries: HashMap::new(), forget_at: FORGET_FROM }) }
    }

    /// Uses a ticket of a tenant.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn redeem(&self, tenant: TenantTag, ticket: &Ticket) -> Result<Redeemed, NotTaken> {
        self.used().remember(tenant, ticket, clock::wall().0 / 1000)?;
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

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    fn remember(&mut self, tenant: TenantTag, ticket: &Ticket, now_secs: u64) -> Result<(), NotTaken> {
        if self.expiries.len() >= self.forget_at {
            self.expiries.retain(|_, exp| *exp >= now_secs);
            self.expiries.shrink_to(FORGET_FROM);
            self.forget_at = (2 * self.expiries.len()).clamp(FORGET_FROM, MAX_REMEMBERED);
        }
        let is_full = self.expiries.len() >= MAX_REMEMBERED;
        match self.expiries.entry((tenant, ticket.id.clone())) {
            Entry::Occupied(_) => Err(NotTaken::Used),
            Entry::Vacant(_) if is_full => Err(NotTaken::Full),
            Entry::Vacant(unused) => {
                unused.insert(ticket.exp);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::TenantId;

    fn tag(tenant: &str) -> TenantTag {
        tenant.parse::<TenantId>().unwrap().tag()
    }

    fn ticket(number: usize, exp: u64) -> Ticket {
        Ticket {
            v: 1,
            id: format!("{number:032x}"),
            iat: 0,
            exp,
            route: "default".to_owned(),
            call: None,
            retention_days: None,
            consent: false,
            metadata: std::collections::BTreeMap::new(),
            vapi: None,
        }
    }

    #[test]
    fn a_ticket_is_used_once_by_each_tenant_and_forgotten_when_it_has_expired() {
        let mut used = Used { expiries: HashMap::new(), forget_at: FORGET_FROM };
        let (acme, other) = (tag("acme"), tag("other"));
        assert_eq!(used.remember(acme, &ticket(0, 100), 50), Ok(()));
        assert_eq!(used.remember(acme, &ticket(0, 100), 100), Err(NotTaken::Used));
        assert_eq!(used.remember(other, &ticket(0, 100), 50), Ok(()), "ids of tenants do not meet");
        for number in 1..100_000 {
            let now = number as u64;
            assert_eq!(used.remember(acme, &ticket(number, now + 300), now), Ok(()));
            assert!(used.expiries.len() <= 2 * FORGET_FROM, "300 are valid at a time");
        }
        assert_eq!(used.remember(acme, &ticket(99_999, 0), 99_999), Err(NotTaken::Used));
    }

    #[test]
    fn what_is_valid_is_never_forgotten() {
        let mut used = Used { expiries: HashMap::new(), forget_at: FORGET_FROM };
        let acme = tag("acme");
        for number in 0..MAX_REMEMBERED {
            assert_eq!(used.remember(acme, &ticket(number, 100), 50), Ok(()));
        }
        assert_eq!(used.remember(acme, &ticket(MAX_REMEMBERED, 100), 50), Err(NotTaken::Full));
        assert_eq!(used.remember(acme, &ticket(0, 100), 50), Err(NotTaken::Used));
        assert_eq!(used.remember(acme, &ticket(MAX_REMEMBERED, 200), 101), Ok(()));
    }
}
