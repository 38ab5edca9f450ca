//! Looks at how far the other chains of a tenant have come, from the names of their objects alone.
//!
//! A chain that names the ends of others bears witness to them: cut off or removed, they are missed. Each chain looks
//! when it begins, at everything since the newest day that has records before its own, and from then on at what came
//! since its last look. So the end of every chain is named by some later one, and nobody ever lists the whole log.

use std::collections::HashMap;
use std::time::Duration;

use super::place::{self, Place};
use super::record::ChainEnd;
use crate::clock;
use crate::domain::ids::{RecordingId, TenantTag};
use crate::domain::time::UnixMillis;
use crate::store::{ObjectInfo, Store, StoreError, layout};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Who was idle for half a day may have been alive when the newest day began.
const BEFORE_NEWEST: Duration = Duration::from_secs(26 * 3600);
/// By how much clocks of nodes may differ.
pub(super) const SLACK: Duration = Duration::from_secs(600);
const PAGE: usize = 1000;
/// Names that one look reads: two days of a tenant with three records a second.
const MAX_PAGES: usize = 512;
/// Chains that one look names; more have not come since any last look.
const MAX_CHAINS: usize = 10_000;
/// Days and months that the search for the newest records goes back; records are kept for ten years at most.
const DAYS_BACK: u32 = 32;
const MONTHS_BACK: u32 = 124;

/// Returns the ends of the chains that have written since `since`, or as far back as it takes to see those of before.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn look(
    store: &dyn Store,
    tenant: TenantTag,
    own: RecordingId,
    (since, now): (Option<UnixMillis>, UnixMillis),
) -> Result<Vec<ChainEnd>, StoreError> {
    let since = match since {
        Some(since) => since,
        None => match newest_day(store, (tenant, own), now).await? {
            Some(day) => UnixMillis(day.0.saturating_sub(millis(BEFORE_NEWEST))),
            None => return Ok(Vec::new()),
        },
    };
    let mut after = Some(place::from(tenant, UnixMillis(since.0.saturating_sub(millis(SLACK)))));
    let mut ends: HashMap<RecordingId, Place> = HashMap::new();
    for page in 0.. {
        let listed = store.list_after(&layout::audit_prefix(tenant), after.as_ref(), PAGE).await?;
        for place in listed.iter().filter_map(|info| Place::parse(tenant, &info.name)) {
            if place.chain != own {
                let end = ends.entry(place.chain).or_insert(place);
                *end = if end.seq < place.seq { place } else { *end };
            }
        }
        if listed.len() < PAGE {
            break;
        }
        if page >= MAX_PAGES {
            tracing::warn!(%tenant, "too many audit records for one look at the ends of their chains");
            break;
        }
        after = listed.last().map(|info| info.name.clone());
    }
    let mut ends: Vec<Place> = ends.into_values().collect();
    ends.sort_unstable();
    let beyond = ends.len().saturating_sub(MAX_CHAINS);
    Ok(ends.into_iter().skip(beyond).map(chain_end).collect())
}

fn chain_end(place: Place) -> ChainEnd {
    ChainEnd {
        chain: place.chain.to_string(),
        objects: place.seq.saturating_add(1),
        at: clock::rfc3339(place.at),
    }
}

/// Returns the beginning of the newest day that has records of other chains, today included.
async fn newest_day(
    store: &dyn Store,
    (tenant, own): (TenantTag, RecordingId),
    now: UnixMillis,
) -> Result<Option<UnixMillis>, StoreError> {
    let prefix = layout::audit_prefix(tenant);
    let Some(oldest) = store.list_after(&prefix, None, 1).await?.pop() else { return Ok(None) };
    let oldest = Place::parse(tenant, &oldest.name).map_or(UnixMillis(0), |place| place.at);
    // A clock that is ahead of ours may have begun the next day.
    let mut day = now.plus(SLACK);
    for _ in 0..DAYS_BACK {
        let date = clock::utc_date(day);
        if has_others(store, (tenant, own), &layout::audit_day(tenant, &date)).await? {
            return Ok(clock::begin_of_utc_date(&date));
        }
        if day <= oldest {
            return Ok(Some(oldest));
        }
        day = UnixMillis(day.0.saturating_sub(millis(DAY)));
    }
    newest_in_month(store, (tenant, own), day, oldest).await.map(Some)
}

/// Goes back by months, and returns a moment before the newest records: their month's beginning is near enough.
async fn newest_in_month(
    store: &dyn Store,
    (tenant, own): (TenantTag, RecordingId),
    from: UnixMillis,
    oldest: UnixMillis,
) -> Result<UnixMillis, StoreError> {
    let mut day = from;
    for _ in 0..MONTHS_BACK {
        let date = clock::utc_date(day);
        let Some(month) = date.get(..7) else { break };
        let Some(begin) = clock::begin_of_utc_date(&format!("{month}-01")) else { break };
        let prefix = format!("{}{}/", layout::audit_prefix(tenant), month.replace('-', "/"));
        if begin <= oldest || has_others(store, (tenant, own), &prefix).await? {
            return Ok(begin.max(oldest));
        }
        day = UnixMillis(begin.0.saturating_sub(1));
    }
    Ok(oldest)
}

/// Whether there are records of other chains. A chain looks when it is young, so it has few of its own to step over.
async fn has_others(
    store: &dyn Store,
    (tenant, own): (TenantTag, RecordingId),
    prefix: &str,
) -> Result<bool, StoreError> {
    let (mut after, mut limit) = (None, 1);
    loop {
        let listed = store.list_after(prefix, after.as_ref(), limit).await?;
        let is_other =
            |info: &ObjectInfo| Place::parse(tenant, &info.name).is_some_and(|place| place.chain != own);
        if listed.iter().any(is_other) {
            return Ok(true);
        }
        match listed.last() {
            Some(last) if listed.len() == limit => (after, limit) = (Some(last.name.clone()), PAGE),
            Some(_) | None => return Ok(false),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
