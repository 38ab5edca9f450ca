//! How many streams a tenant may have at once and start per second.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::ids::TenantId;

/// Why a stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Limited {
    /// The tenant has as many streams as it may.
    #[error("too many streams at once")]
    Streams,
    /// The tenant starts streams faster than it may.
    #[error("too many streams started in a second")]
    Starts,
}

/// Counts the streams of all tenants; clones count the same.
#[derive(Debug, Clone, Default)]
pub struct StreamLimits {
    shared: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    tenants: HashMap<TenantId, TenantCount>,
    /// Streams that are live now, by tenant and the provider's id.
    live: HashSet<(TenantId, String)>,
}

#[derive(Debug, Default)]
struct TenantCount {
    streams: u32,
    second: Option<Instant>,
    starts: u32,
}

/// A place for one stream; given back when dropped.
#[derive(Debug)]
pub struct StreamPermit {
    limits: StreamLimits,
    tenant: TenantId,
    stream: Option<String>,
}

impl StreamLimits {
    /// Takes a place for a stream of this tenant.
    ///
    /// # Errors
    /// [`Limited`].
    pub fn admit(
        &self,
        tenant: &TenantId,
        max_streams: u32,
        max_starts_per_sec: u32,
        now: Instant,
    ) -> Result<StreamPermit, Limited> {
        let mut counts = self.counts();
        let count = counts.tenants.entry(tenant.clone()).or_default();
        if count.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
            (count.second, count.starts) = (Some(now), 0);
        }
        if count.streams >= max_streams {
            return Err(Limited::Streams);
        }
        if count.starts >= max_starts_per_sec {
            return Err(Limited::Starts);
        }
        count.streams += 1;
        count.starts += 1;
        Ok(StreamPermit { limits: self.clone(), tenant: tenant.clone(), stream: None })
    }

    /// Returns how many streams there are.
    pub fn streams(&self) -> u64 {
        self.counts().tenants.values().map(|count| u64::from(count.streams)).sum()
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamPermit {
    /// Notes the provider's id of the stream. `false`: a stream of that id is live already.
    pub fn claim(&mut self, stream: &str) -> bool {
        let id = (self.tenant.clone(), stream.to_owned());
        let is_new = self.limits.counts().live.insert(id);
        if is_new {
            self.stream = Some(stream.to_owned());
        }
        is_new
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut counts = self.limits.counts();
        if let Some(count) = counts.tenants.get_mut(&self.tenant) {
            count.streams = count.streams.saturating_sub(1);
        }
        if let Some(stream) = self.stream.take() {
            counts.live.remove(&(self.tenant.clone(), stream));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_starts_are_bounded_per_tenant() {
        let limits = StreamLimits::default();
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let now = crate::clock::monotonic();
        let first = limits.admit(&a, 2, 3, now).unwrap();
        let _second = limits.admit(&a, 2, 3, now).unwrap();
        assert_eq!(limits.admit(&a, 2, 3, now).unwrap_err(), Limited::Streams);
        drop(first);
        let _third = limits.admit(&a, 2, 3, now).unwrap();
        assert_eq!(limits.admit(&a, 9, 3, now).unwrap_err(), Limited::Starts);
        assert!(limits.admit(&a, 9, 3, now + Duration::from_secs(1)).is_ok());
        assert!(limits.admit(&b, 1, 1, now).is_ok(), "tenants do not share");
    }

    #[test]
    fn one_stream_id_is_live_once() {
        let limits = StreamLimits::default();
        let a: TenantId = "a".parse().unwrap();
        let now = crate::clock::monotonic();
        let mut first = limits.admit(&a, 9, 9, now).unwrap();
        let mut second = limits.admit(&a, 9, 9, now).unwrap();
        assert!(first.claim("MZ1"));
        assert!(!second.claim("MZ1"));
        drop(first);
        assert!(second.claim("MZ1"));
    }
}
