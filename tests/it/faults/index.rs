//! The entries of a recording in the blind index, when the key that makes them or the store is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use callseal::domain::ids::BlindId;
use callseal::domain::index::{IndexEntry, IndexKind};
use callseal::domain::retention::Order;
use callseal::store::faulty::{Fault, Faulty};
use callseal::store::{Operation, Store, Tags, layout};
use callseal::upload::{Entries, Index, NotIndexed, UploadContext, Uploader, entries_of};

use super::sealed::{CHUNK, Disk, Sealed};
use crate::support::eventually;

/// Far more than any of these calls needs.
const BUDGET: u64 = 64 << 20;
/// Far more than a lane needs.
const LIMIT: Duration = Duration::from_secs(20);
const ENTRIES: [IndexEntry; 2] = [
    IndexEntry { kind: IndexKind::Call, blind: BlindId([1; 16]) },
    IndexEntry { kind: IndexKind::Party, blind: BlindId([2; 16]) },
];
const OPENS: u8 = 0;
const IS_AWAY: u8 = 1;
const IS_LOST: u8 = 2;

/// Entries whose key opens, is away, or is lost for good.
#[derive(Default)]
struct Terms {
    key: AtomicU8,
    asked: AtomicU32,
}

impl Terms {
    fn with(key: u8) -> Arc<Self> {
        Arc::new(Self { key: AtomicU8::new(key), asked: AtomicU32::new(0) })
    }

    fn come_back(&self) {
        self.key.store(OPENS, Ordering::SeqCst);
    }
}

#[async_trait]
impl Index for Terms {
    async fn entries(&self) -> Result<Entries, NotIndexed> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.key.load(Ordering::SeqCst) {
            OPENS => Ok(Entries::These(ENTRIES.to_vec())),
            key => Err(NotIndexed { is_retryable: key == IS_AWAY, source: "invented".into() }),
        }
    }
}

/// Hands a call of some segments over, to be found by `terms`.
fn hand_over(call: &Sealed, uploader: &Uploader, terms: &Arc<Terms>) {
    let context = UploadContext { recording: call.ids.recording, retention: call.retention() };
    let lane = uploader.indexed_lane(context, Arc::<Terms>::clone(terms));
    call.hand_segments(&lane);
    call.finish(lane);
}

fn call() -> Sealed {
    Sealed::call(200, CHUNK, 8 * 1024)
}

async fn names(disk: &Disk) -> Vec<String> {
    let objects = disk.folder.list_after("x/", None, 1000).await.unwrap();
    objects.into_iter().map(|object| object.name.to_string()).collect()
}

fn wanted(call: &Sealed) -> Vec<String> {
    let (tenant, recording) = (call.ids.tenant, call.ids.recording);
    let of = |entry| layout::index_of(tenant, recording, entry).to_string();
    let entries = |entry| layout::index_entry(tenant, entry, recording).to_string();
    let mut names: Vec<_> = ENTRIES.iter().flat_map(|entry| [of(*entry), entries(*entry)]).collect();
    names.sort();
    names
}

async fn hold_tags(disk: &Disk) -> Vec<String> {
    let mut tags = Vec::new();
    for object in disk.folder.list_after("x/", None, 1000).await.unwrap() {
        let found = disk.folder.tags(&object.name).await.unwrap();
        assert_eq!(
            (found.value("callseal-class"), found.value("callseal-retention-days")),
            (Some("index"), Some("90"))
        );
        tags.push(found.value("callseal-hold").unwrap().to_owned());
    }
    tags
}

#[tokio::test]
async fn entries_are_there_when_the_store_has_failed_at_every_other_request() {
    for fault in [Fault::Break, Fault::LoseAnswer, Fault::Deny] {
        for operation in [Operation::PutNew, Operation::Get] {
            if (fault, operation) == (Fault::Deny, Operation::Get) {
                // Denied requests are not made again by themselves: somebody must act first.
                continue;
            }
            let (disk, call, terms) = (Disk::new().await, call(), Terms::with(OPENS));
            let store = Faulty::new(disk.folder.clone());
            store.faults().fail_every(operation, 2, fault);
            let uploader = disk.uploader(Arc::new(store), BUDGET);
            hand_over(&call, &uploader, &terms);
            assert_eq!(uploader.drained(LIMIT).await, 0);
            call.assert_stored(&disk.folder).await;
            assert_eq!(names(&disk).await, wanted(&call), "{fault:?} {operation:?}");
            assert_eq!(hold_tags(&disk).await, ["false"; 4]);
            let found = entries_of(&disk.folder, call.ids.tenant, call.ids.recording).await.unwrap();
            assert_eq!(found, ENTRIES);
        }
    }
}

#[tokio::test]
async fn a_key_that_is_away_holds_up_no_audio() {
    let (disk, call, terms) = (Disk::new().await, call(), Terms::with(IS_AWAY));
    let uploader = disk.uploader(Arc::new(disk.folder.clone()), BUDGET);
    hand_over(&call, &uploader, &terms);
    eventually("the final object", || disk.path(&call.final_name()).exists().then_some(())).await;
    let asked = terms.asked.load(Ordering::SeqCst);
    eventually("another try", || (terms.asked.load(Ordering::SeqCst) > asked + 2).then_some(())).await;
    assert_eq!(names(&disk).await, [""; 0]);
    assert!(uploader.is_live(call.ids.recording), "the journal keeps it meanwhile");
    terms.come_back();
    assert_eq!(uploader.drained(LIMIT).await, 0);
    assert_eq!(names(&disk).await, wanted(&call));
    call.assert_stored(&disk.folder).await;
}

#[tokio::test]
async fn a_key_that_is_lost_does_not_keep_a_recording_from_its_end() {
    let (disk, call, terms) = (Disk::new().await, call(), Terms::with(IS_LOST));
    let uploader = disk.uploader(Arc::new(disk.folder.clone()), BUDGET);
    hand_over(&call, &uploader, &terms);
    assert_eq!(uploader.drained(LIMIT).await, 0);
    call.assert_stored(&disk.folder).await;
    assert_eq!(names(&disk).await, [""; 0]);
}

#[tokio::test]
async fn entries_that_come_late_obey_orders_given_before() {
    let held = Order { hold: true, ..Order::NONE };
    for (order, is_deleted) in [(Some(held), false), (None, true)] {
        let (disk, call, terms) = (Disk::new().await, call(), Terms::with(IS_AWAY));
        let uploader = disk.uploader(Arc::new(disk.folder.clone()), BUDGET);
        hand_over(&call, &uploader, &terms);
        eventually("the final object", || disk.path(&call.final_name()).exists().then_some(())).await;
        let (tenant, recording) = (call.ids.tenant, call.ids.recording);
        if let Some(order) = &order {
            let json = Bytes::from(serde_json::to_vec(order).unwrap());
            disk.folder.put_new(&layout::order(tenant, recording, 0), json, &Tags::new()).await.unwrap();
        }
        if is_deleted {
            let receipt = layout::receipt(tenant, recording);
            disk.folder.put_new(&receipt, Bytes::from_static(b"{}"), &Tags::new()).await.unwrap();
        }
        terms.come_back();
        assert_eq!(uploader.drained(LIMIT).await, 0);
        if is_deleted {
            assert_eq!(names(&disk).await, [""; 0], "nothing is left of what was deleted");
        } else {
            assert_eq!(hold_tags(&disk).await, ["true"; 4]);
        }
    }
}
