//! The retention tags on every object of a recording: a copy, for the operator and for rules of the bucket, of what its
//! manifest and its retention order say.

use crate::clock;
use crate::domain::ids::{RecordingId, TenantTag};
use crate::domain::retention::Order;
use crate::domain::time::UnixMillis;
use crate::store::{ObjectClass, ObjectName, Store, StoreError, Tags, layout};

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The tag that names the day on which a recording must go.
const EXPIRES_TAG: &str = "callseal-expires";
/// The tag that rules of the bucket look at before they delete.
const HOLD_TAG: &str = "callseal-hold";
/// Objects listed at a time.
const PAGE: usize = 1000;
/// How often an order that is listed and then missing is looked for again.
const ORDER_TRIES: u32 = 3;

/// What retention says of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionTags {
    /// Whose recording.
    pub tenant: TenantTag,
    /// How many days it is kept after its end.
    pub days: u32,
}

impl RetentionTags {
    /// Returns the moment after which a recording that ended at `ended` must be gone.
    pub fn expires(&self, ended: UnixMillis) -> UnixMillis {
        UnixMillis(ended.0.saturating_add(u64::from(self.days) * DAY_MS))
    }

    /// Returns the tags of an object whose recording ended, or has come, at `at`.
    ///
    /// # Panics
    /// Never: six short keys with digits, dashes and letters are valid tags.
    pub fn tags(&self, at: UnixMillis) -> Tags {
        self.tags_of(ObjectClass::CallAudio, at)
    }

    /// Returns the tags of an entry of the blind index, which goes with its recording.
    pub fn index_tags(&self, at: UnixMillis) -> Tags {
        self.tags_of(ObjectClass::Index, at)
    }

    fn tags_of(&self, class: ObjectClass, at: UnixMillis) -> Tags {
        let mut tags = Tags::of(self.tenant, class);
        for (key, value) in [
            ("callseal-retention-days", self.days.to_string()),
            (EXPIRES_TAG, clock::utc_date(self.expires(at))),
            (HOLD_TAG, "false".to_owned()),
            ("callseal-hipaa", "false".to_owned()),
        ] {
            tags.insert(key, value)
                .expect("short keys and values of digits, dashes and letters are valid tags");
        }
        tags
    }
}

/// Returns until when an object with these tags may be locked: the beginning of its day, so that no lock outlasts its date.
pub(super) fn locked_until(tags: &Tags) -> Option<UnixMillis> {
    let end = clock::end_of_utc_date(tags.value(EXPIRES_TAG)?)?;
    Some(UnixMillis(end.0.saturating_sub(DAY_MS)))
}

/// Reads the newest retention order of a recording with its revision; `None` if nobody ever gave one.
///
/// # Errors
/// [`StoreError::Corrupt`] for an order that this version does not understand: it may be a hold.
pub async fn newest_order(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
) -> Result<Option<(u32, Order)>, StoreError> {
    let not_understood = StoreError::Corrupt { what: "retention order is not understood" };
    for _ in 0..ORDER_TRIES {
        let orders = store.list_after(&layout::orders_prefix(tenant, recording), None, PAGE).await?;
        let Some(newest) = orders.last() else { return Ok(None) };
        match store.get(&newest.name, None).await {
            // The deletion that it began has been finished meanwhile, and then the next listing finds none.
            Err(StoreError::NotFound) => {}
            fetched => {
                let order = Order::parse(&fetched?.bytes);
                return layout::order_revision(&newest.name).zip(order).map(Some).ok_or(not_understood);
            }
        }
    }
    Err(not_understood)
}

/// Writes on every object of a recording, and on its entries in the blind index, whether it is held; does nothing where the store has no tags.
///
/// # Errors
/// [`StoreError`]; some objects may have the tag then, and calling again is safe.
pub async fn tag_hold(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
    held: bool,
) -> Result<(), StoreError> {
    if !store.profile().tags {
        return Ok(());
    }
    for prefix in [layout::recording_prefix(tenant, recording), layout::index_of_prefix(tenant, recording)] {
        let mut after = None;
        loop {
            let page = store.list_after(&prefix, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for object in page {
                let entry = layout::index_entry_of(&object.name);
                let entry = entry.map(|entry| layout::index_entry(tenant, entry, recording));
                for name in entry.iter().chain([&object.name]) {
                    match tag_one(store, name, held).await {
                        // Compacted meanwhile; its successor is listed, or tagged by whoever compacts.
                        Ok(()) | Err(StoreError::NotFound) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
    Ok(())
}

async fn tag_one(store: &dyn Store, name: &ObjectName, held: bool) -> Result<(), StoreError> {
    let value = if held { "true" } else { "false" };
    let mut tags = store.tags(name).await?;
    if tags.value(HOLD_TAG) == Some(value) {
        return Ok(());
    }
    tags.insert(HOLD_TAG, value)
        .map_err(|_| StoreError::Corrupt { what: "object has more tags than it was given" })?;
    store.set_tags(name, &tags).await
}
