//! The retention tags on every object of a recording: a copy, for the operator and for rules of the bucket, of what its
//! manifest and its retention order say.

use crate::clock;
use crate::domain::ids::{RecordingId, TenantTag};
use crate::domain::retention::Order;
use crate::domain::time::UnixMillis;
use crate::store::{ObjectClass, ObjectName, Store, StoreError, Tags, layout};

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The tag that names how many days it is kept after its end.
const DAYS_TAG: &str = "callseal-retention-days";
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
            (DAYS_TAG, self.days.to_string()),
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

/// Writes on every object of a recording, and on its entries in the blind index, what an order says: whether it is held, and
/// the days and the date of a later one; does nothing where the store has no tags.
///
/// # Errors
/// [`StoreError`]; some objects may have the tag then, and calling again is safe.
pub async fn tag_order(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
    order: &Order,
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
                    match tag_one(store, name, order).await {
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

async fn tag_one(store: &dyn Store, name: &ObjectName, order: &Order) -> Result<(), StoreError> {
    let before = store.tags(name).await?;
    let mut tags = before.clone();
    let hold = if order.hold { "true" } else { "false" };
    let later = order.kept_until.and_then(|kept| later(&before, kept.unproven()));
    let later = later.into_iter().flat_map(|(days, date)| [(DAYS_TAG, days), (EXPIRES_TAG, date)]);
    for (key, value) in later.chain([(HOLD_TAG, hold.to_owned())]) {
        tags.insert(key, value)
            .map_err(|_| StoreError::Corrupt { what: "object has more tags than it was given" })?;
    }
    if tags == before { Ok(()) } else { store.set_tags(name, &tags).await }
}

/// Returns the days and the date of an object whose recording is kept until `at`; `None` if its tags say no earlier date.
fn later(tags: &Tags, at: UnixMillis) -> Option<(String, String)> {
    let days: u64 = tags.value(DAYS_TAG)?.parse().ok()?;
    let date = clock::utc_date(at);
    let more =
        clock::end_of_utc_date(&date)?.0.checked_sub(clock::end_of_utc_date(tags.value(EXPIRES_TAG)?)?.0)?;
    (more > 0).then(|| ((days + more / DAY_MS).to_string(), date))
}
