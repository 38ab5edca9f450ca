//! DEKs that were minted ahead of need, so that a call start waits neither for a key service nor for the store.
//!
//! Plain state without tasks: what is to be done about it comes back as a return value. Holds at most [`SIZE`] DEKs for each
//! tenant and none that is older than [`AGE`]. While no DEK can be minted for a tenant, only one task tries.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;

use crate::clock;
use crate::domain::ids::TenantId;
use crate::observe::metrics as names;

use super::Minted;

/// How many minted DEKs wait per tenant: a burst of calls of one second.
const SIZE: usize = 8;
/// How long a minted DEK may wait, and how long a tenant without calls is kept ready.
const AGE: Duration = Duration::from_secs(600);

/// The DEKs that wait, by tenant.
#[derive(Default)]
pub(super) struct Pool(Mutex<State>);

#[derive(Default)]
struct State {
    tenants: HashMap<TenantId, Waiting>,
    /// How often KEKs have changed; a DEK of before is not taken.
    generation: u64,
    is_closed: bool,
}

struct Waiting {
    minted: Vec<Minted>,
    taken_at: Instant,
    is_refilled: bool,
    /// The last attempt to mint failed with this kind of error.
    failing: Option<&'static str>,
}

/// What taking a DEK came to.
pub(super) struct Taken {
    /// One that waited.
    pub(super) minted: Option<Minted>,
    /// Those that were too old, to be erased.
    pub(super) stale: Vec<Minted>,
    /// The caller is the one who refills.
    pub(super) refill: bool,
    /// No DEK could be minted a moment ago, for this kind of reason.
    pub(super) failing: Option<&'static str>,
}

impl Pool {
    /// Takes a DEK, if one waits.
    pub(super) fn take(&self, tenant: &TenantId) -> Taken {
        let mut state = self.state();
        let may_refill = !state.is_closed;
        let waiting = state.tenants.entry(tenant.clone()).or_insert_with(Waiting::new);
        waiting.taken_at = clock::monotonic();
        let stale = waiting.remove_stale();
        let minted = waiting.minted.pop();
        let refill = may_refill && !waiting.is_refilled && waiting.minted.len() < SIZE;
        waiting.is_refilled |= refill;
        let failing = waiting.failing;
        state.show();
        Taken { minted, stale, refill, failing }
    }

    /// Returns what a DEK that is minted from now on carries.
    pub(super) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Returns how many DEKs wait.
    pub(super) fn waiting(&self, tenant: &TenantId) -> usize {
        self.state().tenants.get(tenant).map_or(0, |waiting| waiting.minted.len())
    }

    /// Puts a DEK back, or a new one in; answers it when there is no place for it.
    pub(super) fn put(&self, tenant: &TenantId, minted: Minted) -> Option<Minted> {
        let mut state = self.state();
        let is_refused = state.is_closed || minted.generation != state.generation;
        let waiting = state.tenants.entry(tenant.clone()).or_insert_with(Waiting::new);
        if is_refused || waiting.minted.len() >= SIZE {
            return Some(minted);
        }
        waiting.minted.push(minted);
        state.show();
        None
    }

    /// Notes what an attempt to mint came to.
    pub(super) fn note(&self, tenant: &TenantId, failing: Option<&'static str>) {
        if let Some(waiting) = self.state().tenants.get_mut(tenant) {
            waiting.failing = failing;
        }
    }

    /// Returns how many DEKs the task that refills shall mint next: for a tenant with calls, as many as there is place for. With
    /// none it is over, and the next call begins another one.
    pub(super) fn missing(&self, tenant: &TenantId) -> usize {
        let mut state = self.state();
        let is_closed = state.is_closed;
        let Some(waiting) = state.tenants.get_mut(tenant) else { return 0 };
        let is_active = clock::since(waiting.taken_at) < AGE;
        let missing = if is_closed || !is_active { 0 } else { SIZE.saturating_sub(waiting.minted.len()) };
        if missing == 0 {
            waiting.is_refilled = false;
            waiting.failing = waiting.failing.filter(|_| is_active);
        }
        missing
    }

    /// Takes out what has waited too long, and forgets tenants without calls.
    pub(super) fn remove_stale(&self) -> Vec<Minted> {
        let mut state = self.state();
        let stale = state.tenants.values_mut().flat_map(Waiting::remove_stale).collect();
        state.tenants.retain(|_, waiting| waiting.is_refilled || !waiting.minted.is_empty());
        state.show();
        stale
    }

    /// Takes out all DEKs of these tenants, and lets in none that was begun before.
    pub(super) fn remove(&self, tenants: &[TenantId]) -> Vec<Minted> {
        let mut state = self.state();
        state.generation += u64::from(!tenants.is_empty());
        let of_tenant =
            |tenant| state.tenants.get_mut(tenant).map(|waiting| std::mem::take(&mut waiting.minted));
        let removed = tenants.iter().filter_map(of_tenant).flatten().collect();
        state.show();
        removed
    }

    /// Takes out everything, and takes nothing more.
    pub(super) fn close(&self) -> Vec<Minted> {
        let mut state = self.state();
        state.is_closed = true;
        let all = state.tenants.drain().flat_map(|(_, waiting)| waiting.minted).collect();
        state.show();
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    #[expect(clippy::cast_precision_loss, reason = "a few keys for each tenant are far below 2^52")]
    fn show(&self) {
        let waiting: usize = self.tenants.values().map(|waiting| waiting.minted.len()).sum();
        gauge!(names::KEYS_WAITING).set(waiting as f64);
    }
}

impl Waiting {
    fn new() -> Self {
        Self { minted: Vec::new(), taken_at: clock::monotonic(), is_refilled: false, failing: None }
    }

    fn remove_stale(&mut self) -> Vec<Minted> {
        let (stale, fresh) = std::mem::take(&mut self.minted).into_iter().partition(|m| m.age() >= AGE);
        self.minted = fresh;
        stale
    }
}
