//! Removes records whose time is over, whole UTC days at a time.
//!
//! The log says from which date on it is kept before anything is removed; a verification takes missing records of before
//! that date for old ones, and misses any other. The key of a chain is destroyed with the last of its records.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;

use super::error::AuditError;
use super::log::AuditLog;
use super::place::{self, Place};
use super::read::AuditReader;
use super::record::AuditEvent;
use crate::clock;
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::time::UnixMillis;
use crate::keys::KeyService;
use crate::store::{ObjectName, StoreError, layout};

const DAY: Duration = Duration::from_secs(24 * 3600);
const PAGE: usize = 1000;
/// Days that one purge removes; the next one goes on.
const MAX_DAYS: usize = 64;
/// A chain that lives writes at least every twelve hours, and one that was silent for a day is not gone on with. So one
/// without a record in so many days after the removed ones has ended.
const ALIVE_DAYS: u32 = 2;

/// What a purge has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Days whose records were removed.
    pub days: u64,
    /// Objects that were removed, versions included.
    pub objects: u64,
    /// Chains whose keys were destroyed, because no record of them is left.
    pub chains: u64,
    /// From this date on all records are kept; none when nothing was old enough.
    pub kept_since: Option<String>,
}

/// Removes a tenant's records from before the day that was `days` days ago; `now` is the store's clock.
///
/// Safe to do twice, by any number of nodes, and to stop anywhere.
///
/// # Errors
/// [`AuditError`]; nothing was removed if the log could not say so.
pub async fn purge(
    reader: AuditReader<'_>,
    (keys, log): (&KeyService, &AuditLog),
    tenant: &TenantId,
    (days, now): (u32, UnixMillis),
) -> Result<Purged, AuditError> {
    let (store, tag) = (reader.store(), tenant.tag());
    let age = u64::try_from((DAY * days).as_millis()).unwrap_or(u64::MAX);
    let kept_since = clock::utc_date(UnixMillis(now.0.saturating_sub(age)));
    let Some(begin) = clock::begin_of_utc_date(&kept_since) else { return Ok(Purged::default()) };
    let mut purged = Purged::default();
    while let Some(first) = next_day(reader, tag, begin).await? {
        if purged.days == 0 {
            let event = AuditEvent {
                detail: Some(format!("records from before {kept_since} are removed")),
                ..AuditEvent::by_node("sweeper", "purge-audit", tenant.to_string())
            };
            log.record_purge(tenant, event, kept_since.clone()).await?;
            purged.kept_since = Some(kept_since.clone());
        }
        let day = layout::audit_day(tag, &clock::utc_date(first.at));
        let mut chains = chains_of(reader, tag, &day, None).await?;
        let alive_until = begin.plus(DAY * ALIVE_DAYS);
        forget_living(reader, tag, &mut chains, (first.at, alive_until)).await?;
        // First the key: what cannot be opened any more is gone, whenever its bytes go.
        for chain in &chains {
            keys.shred(tag, *chain).await?;
            purged.chains += 1;
        }
        purged.objects += store.purge(&day).await?;
        purged.days += 1;
        if purged.days >= MAX_DAYS as u64 {
            break;
        }
    }
    Ok(purged)
}

/// Finds the oldest object from before a moment. What has a name that tells no time is left for a verification to find.
async fn next_day(
    reader: AuditReader<'_>,
    tag: TenantTag,
    before: UnixMillis,
) -> Result<Option<Place>, StoreError> {
    let mut after: Option<ObjectName> = None;
    loop {
        let listed = reader.store().list_after(&layout::audit_prefix(tag), after.as_ref(), PAGE).await?;
        let found = listed.iter().find_map(|info| Place::parse(tag, &info.name));
        match (found, listed.last()) {
            (Some(place), _) => return Ok(Some(place).filter(|place| place.at < before)),
            (None, Some(last)) => after = Some(last.name.clone()),
            (None, None) => return Ok(None),
        }
    }
}

async fn chains_of(
    reader: AuditReader<'_>,
    tag: TenantTag,
    day: &str,
    mut after: Option<ObjectName>,
) -> Result<HashSet<RecordingId>, StoreError> {
    let mut chains = HashSet::new();
    loop {
        let listed = reader.store().list_after(day, after.as_ref(), PAGE).await?;
        chains
            .extend(listed.iter().filter_map(|info| Place::parse(tag, &info.name)).map(|place| place.chain));
        match listed.last() {
            Some(last) if listed.len() == PAGE => after = Some(last.name.clone()),
            Some(_) | None => return Ok(chains),
        }
    }
}

/// Takes those chains out that have a record after the day that is removed.
async fn forget_living(
    reader: AuditReader<'_>,
    tag: TenantTag,
    chains: &mut HashSet<RecordingId>,
    (day, until): (UnixMillis, UnixMillis),
) -> Result<(), StoreError> {
    let Some(end) = clock::end_of_utc_date(&clock::utc_date(day)) else { return Ok(()) };
    let mut after = place::from(tag, end);
    while !chains.is_empty() {
        let listed = reader.store().list_after(&layout::audit_prefix(tag), Some(&after), PAGE).await?;
        for place in listed.iter().filter_map(|info| Place::parse(tag, &info.name)) {
            if place.at >= until {
                return Ok(());
            }
            chains.remove(&place.chain);
        }
        match listed.last() {
            Some(last) if listed.len() == PAGE => after = last.name.clone(),
            Some(_) | None => return Ok(()),
        }
    }
    Ok(())
}
