//! The streams of this node that are recorded or could be, and what people have ordered about them.
//!
//! An order is one store to memory that the stream's own task looks at before it seals anything: whatever comes after the
//! order was given is not sealed. Nothing here waits, and the task of a call never waits for anything here.
//!
//! Knows streams by the id of their recording. Must not know sockets, sessions or who may order what.

pub mod orders;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::clock;
use crate::domain::ids::{RecordingId, RouteName, TenantId};
use crate::domain::live_order::LiveOrder;
use crate::domain::time::UnixMillis;
use crate::observe::metrics as names;

/// A recording that is paused for so long was most likely forgotten.
pub const LONG_PAUSE: Duration = Duration::from_secs(300);

/// What [`LiveStream::provider`] may be.
const PROVIDERS: [&str; 2] = ["twilio", "vapi"];

/// The live streams of a node; clones are the same.
#[derive(Clone, Default)]
pub struct Live {
    streams: Arc<Mutex<HashMap<RecordingId, Arc<LiveStream>>>>,
    /// How many orders have been obeyed, of all streams: as long as it stays, none of them need look at what is wanted of it.
    orders: Arc<AtomicU64>,
}

/// One stream: what it is, and what is wanted of it.
pub struct LiveStream {
    /// Whose it is.
    pub tenant: TenantId,
    /// The recording that it makes, or will make once the caller agrees.
    pub recording: RecordingId,
    /// Its route.
    pub route: RouteName,
    /// `twilio` or `vapi`.
    pub provider: &'static str,
    /// The provider's call; empty where the provider does not say.
    pub call: String,
    /// When it began.
    pub started: UnixMillis,
    /// What orders of other nodes are authenticated with.
    order_key: Zeroizing<[u8; 32]>,
    wanted: Wanted,
    /// Those of [`Live`].
    orders: Arc<AtomicU64>,
    /// When the first audio of its open segment was sealed.
    open_since: Mutex<Option<Instant>>,
}

/// What is wanted of a stream.
struct Wanted {
    /// Unix milliseconds of the newest order; older ones change nothing any more.
    newest_ms: AtomicU64,
    is_paused: AtomicBool,
    /// When the pause began, for those who watch.
    paused_ms: AtomicU64,
    has_warned: AtomicBool,
    /// Whether the caller has agreed, where that is asked for.
    has_consent: AtomicBool,
}

/// How a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveState {
    /// What comes is sealed.
    Recording,
    /// It is passed on but not sealed.
    Paused,
    /// The caller has not agreed yet.
    AwaitingConsent,
}

impl LiveState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Recording, Self::Paused, Self::AwaitingConsent];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::Paused => "paused",
            Self::AwaitingConsent => "awaiting-consent",
        }
    }
}

/// What a stream is, to be entered.
pub struct Entry {
    /// See [`LiveStream::tenant`].
    pub tenant: TenantId,
    /// See [`LiveStream::recording`].
    pub recording: RecordingId,
    /// See [`LiveStream::route`].
    pub route: RouteName,
    /// See [`LiveStream::provider`].
    pub provider: &'static str,
    /// See [`LiveStream::call`].
    pub call: String,
    /// See [`Dek::live_order_key`](crate::domain::cmr::Dek::live_order_key).
    pub order_key: Zeroizing<[u8; 32]>,
    /// Whether the caller need not agree any more.
    pub has_consent: bool,
}

impl Live {
    /// Enters a stream, until what is returned is dropped.
    pub fn enter(&self, entry: Entry) -> Present {
        let Entry { tenant, recording, route, provider, call, order_key, has_consent } = entry;
        let wanted = Wanted {
            newest_ms: AtomicU64::new(0),
            is_paused: AtomicBool::new(false),
            paused_ms: AtomicU64::new(0),
            has_warned: AtomicBool::new(false),
            has_consent: AtomicBool::new(has_consent),
        };
        let started = clock::wall();
        let (orders, open_since) = (Arc::clone(&self.orders), Mutex::default());
        let stream = Arc::new(LiveStream {
            tenant,
            recording,
            route,
            provider,
            call,
            started,
            order_key,
            wanted,
            orders,
            open_since,
        });
        self.streams().insert(recording, Arc::clone(&stream));
        Present { live: self.clone(), stream }
    }

    /// Finds a stream of a tenant by its recording.
    pub fn find(&self, tenant: &TenantId, recording: RecordingId) -> Option<Arc<LiveStream>> {
        self.streams().get(&recording).filter(|stream| stream.tenant == *tenant).cloned()
    }

    /// Returns a tenant's streams, oldest first.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<Arc<LiveStream>> {
        let mut streams: Vec<_> =
            self.streams().values().filter(|stream| stream.tenant == *tenant).cloned().collect();
        streams.sort_by_key(|stream| (stream.started.0, stream.recording));
        streams
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.streams().is_empty()
    }

    /// Returns how long ago the oldest frame was sealed that is in an open segment; zero when there is none.
    pub fn oldest_open_age(&self) -> Duration {
        let streams = self.streams();
        let oldest = streams.values().filter_map(|stream| *stream.open_since()).min();
        oldest.map(clock::since).unwrap_or_default()
    }

    /// Publishes how many streams of each provider are in each state.
    pub fn publish_metrics(&self) {
        let mut counts = PROVIDERS.map(|provider| (provider, [0u32; LiveState::ALL.len()]));
        for stream in self.streams().values() {
            let of_provider = counts.iter_mut().find(|(provider, _)| *provider == stream.provider);
            let state = LiveState::ALL.iter().position(|state| *state == stream.state());
            if let (Some((_, counts)), Some(state)) = (of_provider, state)
                && let Some(count) = counts.get_mut(state)
            {
                *count += 1;
            }
        }
        for (provider, counts) in counts {
            for (state, count) in LiveState::ALL.iter().zip(counts) {
                ::metrics::gauge!(names::STREAMS, "provider" => provider, "state" => state.name())
                    .set(f64::from(count));
            }
        }
    }

    /// Counts paused streams, and warns once of each that is paused for long.
    pub fn watch(&self) {
        let now = clock::wall().0;
        let streams: Vec<_> = self.streams().values().cloned().collect();
        let (mut paused, mut longest) = (0u32, 0);
        for stream in streams.iter().filter(|stream| stream.state() == LiveState::Paused) {
            let for_ms = now.saturating_sub(stream.wanted.paused_ms.load(Ordering::Relaxed));
            (paused, longest) = (paused + 1, for_ms.max(longest));
            let is_long = u128::from(for_ms) >= LONG_PAUSE.as_millis();
            if is_long && !stream.wanted.has_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(recording = %stream.recording, "recording is paused for five minutes; was it forgotten?");
            }
        }
        ::metrics::gauge!(names::STREAMS_PAUSED).set(f64::from(paused));
        ::metrics::gauge!(names::LONGEST_PAUSE).set(Duration::from_millis(longest).as_secs_f64());
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<RecordingId, Arc<LiveStream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveStream {
    /// Returns how it stands.
    pub fn state(&self) -> LiveState {
        match (self.has_consent(), self.is_paused()) {
            (false, _) => LiveState::AwaitingConsent,
            (true, true) => LiveState::Paused,
            (true, false) => LiveState::Recording,
        }
    }

    /// Notes when the first audio of the open segment was sealed; `None` when it holds none. Once for each segment.
    pub fn segment_open_since(&self, at: Option<Instant>) {
        *self.open_since() = at;
    }

    fn open_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.open_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is to be sealed.
    pub fn is_paused(&self) -> bool {
        self.wanted.is_paused.load(Ordering::Acquire)
    }

    /// Whether the caller has agreed, or need not.
    pub fn has_consent(&self) -> bool {
        self.wanted.has_consent.load(Ordering::Acquire)
    }

    /// Obeys from this moment on. An order that was given before another that was obeyed changes nothing.
    pub fn obey(&self, order: LiveOrder, at: UnixMillis) {
        let wanted = &self.wanted;
        if wanted.newest_ms.fetch_max(at.0, Ordering::AcqRel) > at.0 {
            return;
        }
        match order {
            LiveOrder::Pause => {
                if !wanted.is_paused.swap(true, Ordering::AcqRel) {
                    wanted.paused_ms.store(clock::wall().0, Ordering::Relaxed);
                    wanted.has_warned.store(false, Ordering::Relaxed);
                }
            }
            LiveOrder::Resume => wanted.is_paused.store(false, Ordering::Release),
            LiveOrder::Consent => wanted.has_consent.store(true, Ordering::Release),
        }
        // After what it changes: who sees the number sees that as well.
        self.orders.fetch_add(1, Ordering::Release);
    }

    /// Obeys an order that another node has left; `false` when it is none of this stream.
    pub fn obey_text(&self, text: &[u8]) -> bool {
        let opened = LiveOrder::open(text, &self.order_key, self.tenant.tag(), self.recording);
        let Some((order, at)) = opened else { return false };
        self.obey(order, at);
        true
    }
}

/// A stream that is live until this is dropped.
pub struct Present {
    live: Live,
    stream: Arc<LiveStream>,
}

impl Present {
    /// Returns a number that is another one once a stream was ordered anything, this one or another.
    pub fn orders(&self) -> u64 {
        self.live.orders.load(Ordering::Acquire)
    }
}

impl std::ops::Deref for Present {
    type Target = LiveStream;

    fn deref(&self) -> &LiveStream {
        &self.stream
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut streams = self.live.streams();
        if streams.get(&self.stream.recording).is_some_and(|known| Arc::ptr_eq(known, &self.stream)) {
            streams.remove(&self.stream.recording);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::TenantTag;

    fn entry(tenant: &str, recording: u8, has_consent: bool) -> Entry {
        Entry {
            tenant: tenant.parse().unwrap(),
            recording: RecordingId([recording; 16]),
            route: "default".parse().unwrap(),
            provider: "twilio",
            call: "CA1".to_owned(),
            order_key: Zeroizing::new([recording; 32]),
            has_consent,
        }
    }

    #[test]
    fn a_stream_is_found_by_its_own_tenant_and_as_long_as_it_is_live() {
        let live = Live::default();
        let (acme, other) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let first = live.enter(entry("acme", 1, true));
        let _second = live.enter(entry("other", 2, true));
        assert!(live.find(&acme, first.recording).is_some());
        assert!(live.find(&other, first.recording).is_none(), "tenants do not see each other");
        assert_eq!(live.of_tenant(&acme).len(), 1);
        let again = live.enter(entry("acme", 1, true));
        drop(first);
        assert!(live.find(&acme, again.recording).is_some(), "the one that has taken its place stays");
        drop(again);
        assert!(live.of_tenant(&acme).is_empty() && !live.is_empty());
    }

    #[test]
    fn an_open_segment_has_its_age_until_it_is_cut() {
        let live = Live::default();
        let stream = live.enter(entry("acme", 1, true));
        assert_eq!(live.oldest_open_age(), Duration::ZERO);
        let (now, minute) = (clock::monotonic(), Duration::from_secs(60));
        let Some(earlier) = now.checked_sub(minute) else { return };
        let other = live.enter(entry("acme", 2, true));
        other.segment_open_since(Some(now));
        stream.segment_open_since(Some(earlier));
        assert!(live.oldest_open_age() >= minute, "the oldest counts");
        stream.segment_open_since(None);
        assert!(live.oldest_open_age() < minute);
        drop(other);
        assert_eq!(live.oldest_open_age(), Duration::ZERO);
        stream.segment_open_since(Some(earlier));
        drop(stream);
        assert_eq!(live.oldest_open_age(), Duration::ZERO, "nothing is left of a stream that has ended");
    }

    #[test]
    fn the_newest_order_counts_in_whatever_order_they_come() {
        let live = Live::default();
        let stream = live.enter(entry("acme", 1, false));
        assert_eq!(stream.state(), LiveState::AwaitingConsent);
        stream.obey(LiveOrder::Consent, UnixMillis(10));
        assert_eq!(stream.state(), LiveState::Recording);
        stream.obey(LiveOrder::Pause, UnixMillis(30));
        stream.obey(LiveOrder::Resume, UnixMillis(20));
        assert_eq!(stream.state(), LiveState::Paused, "the resumption is older than the pause");
        stream.obey(LiveOrder::Resume, UnixMillis(40));
        assert_eq!(stream.state(), LiveState::Recording);
    }

    #[test]
    fn orders_of_other_nodes_must_be_of_this_stream() {
        let live = Live::default();
        let stream = live.enter(entry("acme", 1, true));
        let tag = "acme".parse::<TenantId>().unwrap().tag();
        let (own, at) = (RecordingId([1; 16]), UnixMillis(50));
        let seal = |key: [u8; 32], tag: TenantTag, recording| LiveOrder::Pause.seal(&key, tag, recording, at);
        assert!(!stream.obey_text(seal([2; 32], tag, own).as_bytes()));
        assert!(!stream.obey_text(seal([1; 32], tag, RecordingId([2; 16])).as_bytes()));
        assert!(!stream.obey_text(b"pause"));
        assert_eq!(stream.state(), LiveState::Recording);
        assert!(stream.obey_text(seal([1; 32], tag, own).as_bytes()));
        assert_eq!(stream.state(), LiveState::Paused);
    }
}
