//! Orders about live recordings on their way through the store: left by the node that was asked, obeyed by the node that has
//! the call.
//!
//! One list request a second and node, while it has live streams. The nodes need not know each other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Live;
use crate::clock;
use crate::domain::ids::{RecordingId, TenantTag};
use crate::domain::live_order::LiveOrder;
use crate::domain::time::UnixMillis;
use crate::jitter::jittered;
use crate::store::{ObjectClass, ObjectName, Store, StoreError, Tags, layout};

/// How often orders are looked for. A person who reads out a card number is warned by the agent that it takes a moment.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Orders of one look; more wait for the next.
const PAGE: usize = 1_000;
/// An order that nobody has obeyed by then was about a call that had ended.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
/// How long the store may take for one look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Leaves an order for the node that has the call.
///
/// # Errors
/// [`StoreError`]: it may have been left, and leaving it again is safe.
pub async fn leave(
    store: &dyn Store,
    (tenant, recording): (TenantTag, RecordingId),
    key: &[u8; 32],
    order: LiveOrder,
    at: UnixMillis,
) -> Result<(), StoreError> {
    let name = layout::live_order(tenant, recording, at.0, order.name());
    let text = Bytes::from(order.seal(key, tenant, recording, at));
    store.put_new(&name, text, &Tags::of(tenant, ObjectClass::LiveOrder)).await.map(drop)
}

/// Obeys orders of other nodes as long as the process lives.
pub async fn obey(live: Live, store: Arc<dyn Store>) {
    loop {
        tokio::time::sleep(jittered(INTERVAL)).await;
        if live.is_empty() {
            continue;
        }
        match tokio::time::timeout(LOOK_TIMEOUT, look(&live, &*store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "orders about live recordings cannot be read now");
            }
            Err(_) => tracing::debug!("orders about live recordings cannot be read in time"),
        }
    }
}

/// Looks at every order once, from the oldest on.
async fn look(live: &Live, store: &dyn Store) -> Result<(), StoreError> {
    let mut after: Option<ObjectName> = None;
    loop {
        let page = store.list_after(layout::LIVE_ORDERS_PREFIX, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.name.clone());
        for object in page {
            if is_done_with(live, store, &object.name).await? {
                store.delete(&object.name).await?;
            }
        }
    }
}

/// Obeys an order if it is about a stream of this node; answers whether nobody needs it any more.
async fn is_done_with(live: &Live, store: &dyn Store, name: &ObjectName) -> Result<bool, StoreError> {
    let Some((tenant, recording, at_ms)) = layout::live_order_of(name) else { return Ok(false) };
    let stream = live.streams().get(&recording).filter(|stream| stream.tenant.tag() == tenant).cloned();
    let Some(stream) = stream else {
        let age_ms = clock::wall().0.saturating_sub(at_ms);
        return Ok(u128::from(age_ms) > FORGET_AFTER.as_millis());
    };
    match store.get(name, None).await {
        Ok(fetched) => {
            if !stream.obey_text(&fetched.bytes) {
                tracing::warn!(%recording, "an order about a live recording was not made by this system");
            }
            Ok(true)
        }
        Err(StoreError::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::super::{Entry, LiveState};
    use super::*;
    use crate::domain::ids::TenantId;
    use crate::store::folder::Folder;

    #[tokio::test]
    async fn an_order_is_obeyed_by_the_node_that_has_the_call_and_then_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Folder::open(dir.path()).await.unwrap();
        let (here, elsewhere) = (Live::default(), Live::default());
        let tenant: TenantId = "acme".parse().unwrap();
        let (recording, key) = (RecordingId([1; 16]), [5; 32]);
        let stream = here.enter(Entry {
            tenant: tenant.clone(),
            recording,
            route: "default".parse().unwrap(),
            provider: "twilio",
            call: String::new(),
            order_key: Zeroizing::new(key),
            has_consent: true,
        });
        let about = (tenant.tag(), recording);
        let left = async || store.list_after(layout::LIVE_ORDERS_PREFIX, None, 10).await.unwrap().len();
        let now = clock::wall();
        leave(&store, about, &key, LiveOrder::Pause, now).await.unwrap();
        leave(&store, about, &key, LiveOrder::Pause, now).await.unwrap();
        assert_eq!(left().await, 1, "the same order is one");
        look(&elsewhere, &store).await.unwrap();
        assert_eq!(left().await, 1, "a node that does not have the call leaves it alone");
        look(&here, &store).await.unwrap();
        assert_eq!((stream.state(), left().await), (LiveState::Paused, 0));
        leave(&store, about, &[6; 32], LiveOrder::Resume, UnixMillis(now.0 + 1)).await.unwrap();
        look(&here, &store).await.unwrap();
        assert_eq!((stream.state(), left().await), (LiveState::Paused, 0), "forged, and removed");
        leave(&store, about, &key, LiveOrder::Resume, UnixMillis(now.0 + 2)).await.unwrap();
        look(&here, &store).await.unwrap();
        assert_eq!(stream.state(), LiveState::Recording);
        drop(stream);
        leave(&store, about, &key, LiveOrder::Pause, now).await.unwrap();
        leave(&store, about, &key, LiveOrder::Pause, UnixMillis(now.0 - 3_700_000)).await.unwrap();
        look(&here, &store).await.unwrap();
        assert_eq!(left().await, 1, "the old one is forgotten, the new one may find its call elsewhere");
    }
}
