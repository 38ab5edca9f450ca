//! When a recording is deleted, and when it is not.

use bytes::Bytes;
use callseal::clock;
use callseal::control::retention::RetentionError;
use callseal::control::sweep::{SweepError, SweepOptions};
use callseal::domain::retention::{Change, ClockFault, Reason, Refusal};
use callseal::domain::time::UnixMillis;
use callseal::store::faulty::Fault;
use callseal::store::{Operation, Store, Tags, layout};

use super::world::{DAY, HOUR, OPTIONS, World, by};

#[tokio::test]
async fn a_recording_goes_when_its_time_is_over_and_leaves_a_receipt() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let ended = world.clocks.now();
    let (short, long) = (world.record(&node, 1).await, world.record(&node, 30).await);
    world.clocks.advance(DAY - 1);
    assert_eq!(node.sweep_well().await.deleted, 0);
    world.assert_whole(short, "one millisecond early").await;
    world.clocks.advance(1);
    assert_eq!(node.survey().await.due, 1);
    world.assert_whole(short, "after a look").await;
    let report = node.sweep_well().await;
    assert_eq!((report.due, report.deleted), (1, 1));
    let receipt = world.assert_deleted(short, "due").await;
    assert_eq!((receipt.reason, receipt.expires_ms), (Reason::Expired, Some(ended.0 + DAY)));
    assert_eq!(receipt.deleted_at_ms, world.clocks.now().0);
    assert_eq!(receipt.final_at_ms, receipt.deleted_at_ms + 30 * DAY);
    assert_eq!(receipt.objects, 2, "the final object and the envelope");
    world.assert_whole(long, "not due").await;
    let audited = world.audited(&node).await;
    let expired = audited.iter().find(|record| record.event.subject == short.to_string()).unwrap();
    assert_eq!((expired.event.action.as_str(), expired.event.role.as_str()), ("expire", "node"));
    assert_eq!(node.sweep_well().await.due, 0);
}

#[tokio::test]
async fn a_hold_beats_the_date_and_a_release_does_not() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 1).await;
    let placed = node.orders.hold(&world.tenant, recording, &by()).await.unwrap();
    assert!(placed.changed && placed.order.hold);
    assert!(!node.orders.hold(&world.tenant, recording, &by()).await.unwrap().changed);
    assert_eq!(world.hold_tag(recording).await, "true");
    world.clocks.advance(100 * DAY);
    assert_eq!(node.sweep_well().await.held, 1);
    world.assert_whole(recording, "held").await;
    let refused = node.orders.delete(&world.tenant, recording, &by()).await;
    assert!(matches!(refused, Err(RetentionError::Refused(Refusal::Held))), "{refused:?}");
    node.orders.release(&world.tenant, recording, &by()).await.unwrap();
    assert_eq!(world.hold_tag(recording).await, "false");
    assert_eq!(node.sweep().await.unwrap().deleted, 1);
    assert_eq!(world.assert_deleted(recording, "released").await.reason, Reason::Expired);
    let orders: Vec<_> = world.audited(&node).await.into_iter().map(|record| record.event).collect();
    let orders: Vec<_> = orders.iter().map(|event| (&*event.action, &*event.role, &*event.result)).collect();
    let wanted = [
        ("hold", "operator", "allowed"),
        ("hold", "operator", "allowed"),
        ("delete", "operator", "held"),
        ("release", "operator", "allowed"),
        ("expire", "node", "allowed"),
    ];
    assert_eq!(orders, wanted);
}

#[tokio::test]
async fn an_order_deletes_before_the_date() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 365).await;
    let change = Change::ExpireAt(world.clocks.now());
    assert!(node.orders.preview(&world.tenant, recording, change).await.unwrap().changed);
    assert_eq!(node.sweep_well().await.due, 0, "a preview orders nothing");
    let ordered_at = world.clocks.now();
    node.orders.delete(&world.tenant, recording, &by()).await.unwrap();
    world.assert_whole(recording, "ordered only").await;
    world.clocks.advance(HOUR / 2);
    assert_eq!(node.sweep_well().await.deleted, 1);
    let receipt = world.assert_deleted(recording, "ordered").await;
    assert_eq!((receipt.reason, receipt.expires_ms), (Reason::Requested, Some(ordered_at.0)));
    for again in [
        node.orders.hold(&world.tenant, recording, &by()).await,
        node.orders.delete(&world.tenant, recording, &by()).await,
    ] {
        assert!(matches!(again, Err(RetentionError::Deleted(found)) if *found == receipt));
    }
    let nothing = world.record(&node, 1).await;
    world.store.purge(&format!("k/{}/{nothing}/", world.tenant.tag())).await.unwrap();
    let unknown = node.orders.hold(&world.tenant, nothing, &by()).await;
    assert!(matches!(unknown, Err(RetentionError::NotFound)), "{unknown:?}");
}

#[tokio::test]
async fn what_is_being_made_is_kept() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.store_parts(&node, 365).await;
    node.orders.delete(&world.tenant, recording, &by()).await.unwrap();
    let before = world.objects_of(recording).await;
    assert_eq!(node.sweep_well().await.waiting, 1);
    assert_eq!(world.objects_of(recording).await, before, "its compaction is not done");
    world.compact(recording, 365).await;
    assert_eq!(node.sweep_well().await.deleted, 1);
    world.assert_deleted(recording, "compacted").await;
}

#[tokio::test]
async fn without_a_manifest_only_an_order_deletes_and_not_before_everybody_is_done() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.store_parts(&node, 1).await;
    let manifest = layout::manifest(world.tenant.tag(), recording, 0);
    world.store.delete(&manifest).await.unwrap();
    let before = world.objects_of(recording).await;
    world.clocks.advance(3 * DAY);
    let report = node.sweep().await.unwrap();
    assert_eq!((report.due, report.waiting, report.overdue), (0, 1, 1), "somebody must look at it");
    assert_eq!(world.objects_of(recording).await, before);
    node.orders.delete(&world.tenant, recording, &by()).await.unwrap();
    assert_eq!(node.sweep().await.unwrap().deleted, 1);
    world.assert_deleted(recording, "ordered").await;
}

#[tokio::test]
async fn a_damaged_recording_goes_only_on_order() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 1).await;
    let name = layout::final_object(world.tenant.tag(), recording);
    let mut bytes = world.store.get(&name, None).await.unwrap().bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.store.delete(&name).await.unwrap();
    world.store.put_new(&name, Bytes::from(bytes), &Tags::new()).await.unwrap();
    world.clocks.advance(5 * DAY);
    let report = node.sweep().await.unwrap();
    assert_eq!((report.deleted, report.overdue), (0, 1));
    node.orders.delete(&world.tenant, recording, &by()).await.unwrap();
    assert_eq!(node.sweep().await.unwrap().deleted, 1);
    world.assert_deleted(recording, "ordered").await;
}

#[tokio::test]
async fn a_final_object_made_under_a_hold_says_so() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.store_parts(&node, 1).await;
    node.orders.hold(&world.tenant, recording, &by()).await.unwrap();
    world.compact(recording, 1).await;
    assert_eq!(world.hold_tag(recording).await, "true");
}

#[tokio::test]
async fn a_sweep_tags_what_a_hold_could_not() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 1).await;
    world.faults.fail_every(Operation::SetTags, 1, Fault::Break);
    let failed = node.orders.hold(&world.tenant, recording, &by()).await;
    assert!(matches!(failed, Err(RetentionError::Store(_))), "{failed:?}");
    world.faults.heal();
    world.clocks.advance(2 * DAY);
    assert_eq!(node.sweep_well().await.held, 1);
    assert_eq!(world.hold_tag(recording).await, "true");
}

#[tokio::test]
async fn entries_that_say_something_else_are_put_right() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 365).await;
    let tag = world.tenant.tag();
    let wrong = layout::expiry(&clock::utc_date(world.clocks.now()), tag, recording);
    let right_date = clock::utc_date(UnixMillis(world.clocks.now().0 + 365 * DAY));
    let right = layout::expiry(&right_date, tag, recording);
    world.store.put_new(&wrong, Bytes::new(), &Tags::new()).await.unwrap();
    world.store.delete(&right).await.unwrap();
    let entries = || async {
        let entries = world.store.list_after("e/", None, 10).await.unwrap();
        entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    node.sweep_well().await;
    assert_eq!(entries().await, [wrong, right.clone()], "an order may follow on a young entry");
    world.clocks.advance(4 * DAY);
    assert_eq!(node.sweep_well().await.tidied, 1);
    assert_eq!(entries().await, [right]);
    world.assert_whole(recording, "put right").await;
}

#[tokio::test]
async fn clocks_that_disagree_or_go_back_delete_nothing() {
    let world = World::new().await;
    let (node, other) = (world.node(OPTIONS), world.node(OPTIONS));
    let recording = world.record(&node, 1).await;
    node.sweep_well().await;
    world.clocks.advance(2 * DAY);
    for ahead in [301_000, -301_000] {
        world.clocks.set_ahead(ahead);
        let refused = node.sweep().await;
        assert!(matches!(refused, Err(SweepError::Clock(ClockFault::Differ { .. }))), "{refused:?}");
        world.assert_whole(recording, "clocks differ").await;
    }
    world.clocks.set_ahead(299_000);
    world.clocks.go_back(3 * DAY);
    let refused = node.sweep().await;
    assert!(matches!(refused, Err(SweepError::Clock(ClockFault::WentBack { .. }))), "{refused:?}");
    assert_eq!(other.sweep_well().await.due, 0, "by its only clock it is not due");
    world.clocks.advance(3 * DAY);
    assert_eq!(node.sweep().await.unwrap().deleted, 1);
    world.assert_deleted(recording, "clocks agree").await;
}

#[tokio::test]
async fn too_much_at_once_stops_before_anything_is_deleted() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let tag = world.tenant.tag();
    let keep = world.record(&node, 1).await;
    // Recordings without anything but an entry are half-deleted ones: due at once, cheap to make.
    let today = clock::utc_date(world.clocks.now());
    for number in 0..100_u8 {
        let mut recording = keep;
        recording.0[15] = recording.0[15].wrapping_add(number + 1);
        let entry = layout::expiry(&today, tag, recording);
        world.store.put_new(&entry, Bytes::new(), &Tags::new()).await.unwrap();
    }
    world.clocks.advance(DAY);
    let refused = node.sweep().await;
    assert!(
        matches!(refused, Err(SweepError::TooMuchDue(ref much)) if (much.due, much.entries) == (101, 101))
    );
    world.assert_whole(keep, "stopped").await;
    assert_eq!(world.store.list_after("d/", None, 10).await.unwrap().len(), 0);
    // 909 more that are not due make 101 just 10 %.
    let later = clock::utc_date(UnixMillis(world.clocks.now().0 + 90 * DAY));
    for number in 0..909_u16 {
        let mut recording = keep;
        recording.0[..2].copy_from_slice(&number.to_be_bytes());
        let entry = layout::expiry(&later, tag, recording);
        world.store.put_new(&entry, Bytes::new(), &Tags::new()).await.unwrap();
    }
    assert_eq!(node.sweep().await.unwrap().deleted, 101);
    let again = world.record(&node, 1).await;
    let all = world.node(SweepOptions { max_share_percent: 100, ..OPTIONS });
    world.clocks.advance(DAY);
    assert_eq!(all.sweep().await.unwrap().deleted, 1);
    world.assert_deleted(again, "allowed").await;
}

#[tokio::test]
async fn a_sweep_deletes_no_more_than_it_may_and_the_next_goes_on() {
    let world = World::new().await;
    let node = world.node(SweepOptions { max_deletions: 2, ..OPTIONS });
    for _ in 0..5 {
        world.record(&node, 1).await;
    }
    world.clocks.advance(2 * DAY);
    for (due, deleted) in [(5, 2), (3, 2), (1, 1), (0, 0)] {
        let report = node.sweep().await.unwrap();
        assert_eq!((report.due, report.deleted, report.failed), (due, deleted, 0));
        assert_eq!(report.overdue, due - deleted, "due since a day");
    }
}

#[tokio::test]
async fn a_store_without_tags_keeps_retention_all_the_same() {
    let world = World::new().await;
    world.clocks.take_tags_away();
    let node = world.node(OPTIONS);
    let (held, due) = (world.record(&node, 1).await, world.record(&node, 1).await);
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    world.clocks.advance(DAY);
    let report = node.sweep_well().await;
    assert_eq!((report.deleted, report.held), (1, 1));
    world.assert_deleted(due, "due").await;
    world.assert_whole(held, "held").await;
    node.orders.release(&world.tenant, held, &by()).await.unwrap();
    assert_eq!(node.sweep_well().await.deleted, 1);
    assert_eq!(world.faults.requests(Operation::SetTags) + world.faults.requests(Operation::Tags), 0);
}

#[tokio::test]
async fn recordings_of_unknown_tenants_are_kept_and_reported() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 1).await;
    world.clocks.advance(3 * DAY);
    let report = node.sweeper.run(&[]).await.unwrap();
    assert_eq!((report.due, report.failed, report.overdue), (0, 1, 1));
    world.assert_whole(recording, "of a stranger").await;
}

#[tokio::test]
async fn an_order_that_is_not_understood_keeps() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 1).await;
    let name = layout::order(world.tenant.tag(), recording, 0);
    let order = Bytes::from_static(br#"{"v":2,"hold":false,"expires_ms":0}"#);
    world.store.put_new(&name, order, &Tags::new()).await.unwrap();
    world.clocks.advance(3 * DAY);
    let report = node.sweep().await.unwrap();
    assert_eq!((report.deleted, report.failed, report.overdue), (0, 1, 1));
    world.assert_whole(recording, "not understood").await;
}
