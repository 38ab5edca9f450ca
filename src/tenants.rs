//! The tenants as they are now: the one place that is asked who a tenant is and what holds for it.
//!
//! Whoever needs a tenant asks for it when something begins, and keeps what it got until that has ended: a change never
//! reaches into a call that runs.
//!
//! Knows tenants. Must not know what is done for them.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::Tenant;
use crate::domain::ids::TenantId;

/// The tenants of a node.
pub struct Tenants {
    now: ArcSwap<Vec<Arc<Tenant>>>,
}

impl Tenants {
    /// Holds these tenants, whose ids differ.
    pub fn new(tenants: impl IntoIterator<Item = Tenant>) -> Self {
        Self { now: ArcSwap::from_pointee(tenants.into_iter().map(Arc::new).collect()) }
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
