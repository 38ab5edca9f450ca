//! What fewer days of a tenant do to calls that have ended.

use std::collections::BTreeSet;

use bytes::Bytes;
use callseal::control::recordings::StoredRecording;
use callseal::control::redate::Redated;
use callseal::domain::ids::RecordingId;
use callseal::domain::ledger::Entry;
use callseal::domain::policy::{Reach, Way};
use callseal::domain::retention::{Order, Reason};
use callseal::store::faulty::Fault;
use callseal::store::{Operation, Store, Tags, layout};

use super::world::{DAY, Node, OPTIONS, World, by};

async fn shorten(world: &World, node: &Node, days: u32) -> Redated {
    let reach = Reach { days, at: world.clocks.now(), way: Way::Shorter };
    node.redating.run(&world.tenant, reach, &by(), |_| {}).await.unwrap()
}

async fn look(world: &World, node: &Node, days: u32) -> Redated {
    node.redating.survey(&world.tenant, (days, Way::Shorter), |_| {}).await.unwrap()
}

/// The names of everything but audit records.
async fn names(world: &World) -> BTreeSet<String> {
    world.backup().await.into_iter().map(|(name, ..)| name.to_string()).collect()
}

/// A recording of a call that goes on.
async fn running(world: &World, node: &Node) -> RecordingId {
    let recording = world.store_parts(node, 365).await;
    world.store.delete(&layout::manifest(world.tenant.tag(), recording, 0)).await.unwrap();
    recording
}

#[tokio::test]
async fn a17_a_look_counts_what_the_run_then_does() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let (old, old_held) = (world.record(&node, 365).await, world.record(&node, 365).await);
    node.orders.hold(&world.tenant, old_held, &by()).await.unwrap();
    let damaged = world.record(&node, 365).await;
    let name = layout::final_object(world.tenant.tag(), damaged);
    world.store.delete(&name).await.unwrap();
    world.store.put_new(&name, Bytes::from_static(b"garbage"), &Tags::new()).await.unwrap();
    let abandoned = running(&world, &node).await;
    world.clocks.advance(40 * DAY);
    let new = world.record(&node, 365).await;
    let own = world.record_own(&node, 60).await;
    world.record(&node, 30).await;
    world.record(&node, 7).await;

    let before = names(&world).await;
    let looked = look(&world, &node, 30).await;
    assert_eq!(names(&world).await, before, "a look changes nothing");
    let wanted = Redated {
        shorter: 3,
        longer: 0,
        due_at_once: 1,
        held: 1,
        own_days: 1,
        unchanged: 2,
        running: 0,
        unreadable: 2,
    };
    assert_eq!(looked, wanted, "{abandoned} and {damaged} are unreadable");
    assert_eq!(shorten(&world, &node, 30).await, looked, "what it does is what the look said");

    let has_order = async |recording: RecordingId| {
        let prefix = layout::orders_prefix(world.tenant.tag(), recording);
        !world.store.list_after(&prefix, None, 1).await.unwrap().is_empty()
    };
    assert!(has_order(new).await && !has_order(own).await && !has_order(damaged).await);
    let swept = node.sweep().await.unwrap();
    assert_eq!((swept.deleted, swept.held), (1, 1), "as many as the look said: {swept:?}");
    world.assert_deleted(old, "due at once").await;
    world.assert_whole(old_held, "held").await;
    node.orders.release(&world.tenant, old_held, &by()).await.unwrap();
    assert_eq!(node.sweep().await.unwrap().deleted, 1);
    world.assert_deleted(old_held, "released").await;
    world.assert_whole(own, "its ticket's days").await;
}

#[tokio::test]
async fn a17_calls_that_run_are_told_apart() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    running(&world, &node).await;
    let wanted = Redated { running: 1, ..Redated::default() };
    assert_eq!((look(&world, &node, 30).await, shorten(&world, &node, 30).await), (wanted, wanted));
}

#[tokio::test]
async fn a12_a_shortened_recording_goes_at_its_new_date() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let ended = world.clocks.now();
    let recording = world.record(&node, 365).await;
    assert_eq!(shorten(&world, &node, 30).await.shorter, 1);
    let read = node.ledger.verify(&world.tenant, None).await.unwrap();
    let expires = ended.0 + 30 * DAY;
    let is_noted =
        |entry: &Entry| matches!(entry, Entry::Shortened { expires_ms, .. } if *expires_ms == expires);
    assert!(read.entries.len() == 1 && is_noted(&read.entries[0]), "{:?}", read.entries);
    assert!(read.recordings(ended).is_empty(), "a restored backup must not delete it before its time");
    world.clocks.advance(30 * DAY - 1);
    assert_eq!(node.sweep_well().await.deleted, 0);
    world.assert_whole(recording, "one millisecond early").await;
    world.clocks.advance(1);
    assert_eq!(read.recordings(world.clocks.now()).len(), 1);
    assert_eq!(node.sweep_well().await.deleted, 1);
    let receipt = world.assert_deleted(recording, "due").await;
    assert_eq!((receipt.reason, receipt.expires_ms), (Reason::Requested, Some(expires)));
    let audited = world.audited(&node).await;
    let shortened = audited.iter().find(|record| record.event.action == "shorten").unwrap();
    assert_eq!(
        (shortened.event.actor.as_str(), shortened.event.reason.as_deref()),
        ("counsel", Some("a lawsuit"))
    );
}

#[tokio::test]
async fn a17_a_pass_that_dies_is_gone_on_with_and_changes_nothing_twice() {
    for (fault, request) in
        [Fault::Break, Fault::LoseAnswer].into_iter().flat_map(|fault| [3, 11, 23].map(|at| (fault, at)))
    {
        let when = format!("{fault:?} at request {request}");
        let world = World::new().await;
        let node = world.node(OPTIONS);
        let mut recordings = Vec::new();
        for _ in 0..4 {
            recordings.push(world.record(&node, 365).await);
        }
        world.faults.fail_every(None, request, fault);
        let reach = Reach { days: 30, at: world.clocks.now(), way: Way::Shorter };
        // Whether it says so or not, the next pass must come to the same end.
        let _died = node.redating.run(&world.tenant, reach, &by(), |_| {}).await.is_err();
        world.faults.heal();
        let other = world.node(OPTIONS);
        other.redating.run(&world.tenant, reach, &by(), |_| {}).await.unwrap();
        let done = names(&world).await;
        for recording in &recordings {
            let orders =
                done.iter().filter(|name| name.starts_with("h/") && name.contains(&recording.to_string()));
            assert_eq!(orders.count(), 1, "{when}: one order each");
        }
        let again = node.redating.run(&world.tenant, reach, &by(), |_| {}).await.unwrap();
        assert_eq!(again, Redated { unchanged: 4, ..Redated::default() }, "{when}");
        assert_eq!(names(&world).await, done, "{when}: nothing is done twice");
    }
}

#[tokio::test]
async fn a17_one_recording_that_fails_keeps_no_other_from_its_date() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let mut recordings = Vec::new();
    // More than are worked on at the same time.
    for _ in 0..12 {
        recordings.push(world.record(&node, 365).await);
    }
    world.faults.fail_next(Operation::Get, 1, Fault::Deny);
    let reach = Reach { days: 30, at: world.clocks.now(), way: Way::Shorter };
    let failed = node.redating.run(&world.tenant, reach, &by(), |_| {}).await;
    assert!(failed.is_err(), "it is said: {failed:?}");
    let wanted = Redated { shorter: 1, unchanged: 11, ..Redated::default() };
    assert_eq!(look(&world, &node, 30).await, wanted);
}

#[tokio::test]
async fn a17_an_order_in_clear_never_lengthens() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 30).await;
    let forged = Order { expires_ms: Some(world.clocks.now().0 + 3650 * DAY), ..Order::NONE };
    let forged = Bytes::from(serde_json::to_vec(&forged).unwrap());
    let name = layout::order(world.tenant.tag(), recording, 0);
    world.store.put_new(&name, forged, &Tags::new()).await.unwrap();
    world.clocks.advance(30 * DAY);
    assert_eq!(node.sweep_well().await.deleted, 1);
    world.assert_deleted(recording, "whoever can write the store cannot keep it for longer").await;
}

#[tokio::test]
async fn a11_audio_is_there_on_day_364_and_gone_on_day_365() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 365).await;
    world.clocks.advance(364 * DAY);
    assert_eq!(node.sweep_well().await.deleted, 0);
    let opened = StoredRecording::open(world.store.clone(), &node.keys, &world.tenant, recording).await;
    assert!(opened.unwrap().verify().await.unwrap() > 0, "every row opens");
    world.clocks.advance(DAY);
    assert_eq!(node.sweep_well().await.deleted, 1);
    world.assert_deleted(recording, "day 365").await;
    let gone =
        StoredRecording::open(world.store.clone(), &world.node(OPTIONS).keys, &world.tenant, recording).await;
    assert!(gone.is_err());
}
