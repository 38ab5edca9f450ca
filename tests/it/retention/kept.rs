//! What more days of a tenant do to calls that have ended, once a second person has approved them.

use bytes::Bytes;
use callseal::clock;
use callseal::control::recordings::StoredRecording;
use callseal::control::redate::{RedateError, Redated};
use callseal::domain::ids::RecordingId;
use callseal::domain::kept_until::KeptUntil;
use callseal::domain::policy::{Reach, Way};
use callseal::domain::retention::{Order, Reason};
use callseal::domain::time::UnixMillis;
use callseal::store::faulty::Fault;
use callseal::store::{Store, Tags, layout};
use callseal::upload::newest_order;

use super::world::{DAY, Node, OPTIONS, World, by};

const LONGER: Way = Way::Longer { began_by: None };

async fn redate(world: &World, node: &Node, days: u32, way: Way) -> Result<Redated, RedateError> {
    let reach = Reach { days, at: world.clocks.now(), way };
    node.redating.run(&world.tenant, reach, &by(), |_| {}).await
}

async fn lengthen(world: &World, node: &Node, days: u32) -> Redated {
    redate(world, node, days, LONGER).await.unwrap()
}

async fn order_of(world: &World, recording: RecordingId) -> Option<Order> {
    newest_order(&*world.store, world.tenant.tag(), recording).await.unwrap().map(|(_, order)| order)
}

/// Puts an order as whoever can write the store may.
async fn forge(world: &World, recording: RecordingId, order: &Order) {
    let bytes = Bytes::from(serde_json::to_vec(order).unwrap());
    let name = layout::order(world.tenant.tag(), recording, 0);
    world.store.put_new(&name, bytes, &Tags::new()).await.unwrap();
}

/// The days and the date in the tags of everything that is stored of a recording, its index entries included.
async fn tags_of(world: &World, recording: RecordingId) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, _, tags) in world.backup().await {
        let name = name.to_string();
        if name.contains(&recording.to_string()) && (name.starts_with("r/") || name.starts_with("x/")) {
            let value = |key| tags.value(key).unwrap().to_owned();
            found.push((value("callseal-retention-days"), value("callseal-expires")));
        }
    }
    assert!(found.len() > 1, "{found:?}");
    found
}

async fn plays(world: &World, node: &Node, recording: RecordingId) {
    let opened = StoredRecording::open(world.store.clone(), &node.keys, &world.tenant, recording).await;
    assert!(opened.unwrap().verify().await.unwrap() > 0, "every row opens");
}

#[tokio::test]
async fn a17_an_ended_call_of_90_days_is_kept_to_365_and_goes_then() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let ended = world.clocks.now();
    let recording = world.record(&node, 90).await;
    let other = world.record(&node, 90).await;
    world.clocks.advance(80 * DAY);
    node.orders.delete(&world.tenant, other, &by()).await.unwrap();
    assert_eq!(node.sweep().await.unwrap().deleted, 1);
    let wanted = Redated { longer: 1, ..Redated::default() };
    assert_eq!(lengthen(&world, &node, 365).await, wanted, "what is gone stays so");
    world.assert_deleted(other, "gone").await;
    let until = UnixMillis(ended.0 + 365 * DAY);
    for tags in tags_of(&world, recording).await {
        assert_eq!(tags, ("365".to_owned(), clock::utc_date(until)), "rules of the bucket fire by these");
    }
    world.clocks.advance(20 * DAY);
    assert_eq!(node.sweep_well().await.deleted, 0, "day 100");
    node.orders.hold(&world.tenant, recording, &by()).await.unwrap();
    node.orders.release(&world.tenant, recording, &by()).await.unwrap();
    world.clocks.advance(264 * DAY);
    assert_eq!(node.sweep_well().await.deleted, 0, "day 364, as later orders carry the date over");
    plays(&world, &world.node(OPTIONS), recording).await;
    world.clocks.advance(DAY - 1);
    assert_eq!(node.sweep_well().await.deleted, 0, "one millisecond early");
    world.clocks.advance(1);
    assert_eq!(node.sweep_well().await.deleted, 1);
    let receipt = world.assert_deleted(recording, "day 365").await;
    assert_eq!((receipt.reason, receipt.expires_ms), (Reason::Expired, Some(until.0)));
    let audited = world.audited(&node).await;
    let said = audited.iter().find(|record| record.event.action == "lengthen").unwrap();
    assert_eq!((said.event.actor.as_str(), said.event.reason.as_deref()), ("counsel", Some("a lawsuit")));
}

#[tokio::test]
async fn a17_a_later_date_that_is_forged_or_copied_changes_nothing() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let source = world.record(&node, 30).await;
    assert_eq!(lengthen(&world, &node, 3650).await.longer, 1);
    let copied = order_of(&world, source).await.unwrap();
    let tag = world.tenant.tag();
    let invented = KeptUntil::seal(&[7; 32], tag, source, UnixMillis(world.clocks.now().0 + 3650 * DAY));
    let mut victims = Vec::new();
    for order in [copied.clone(), Order { kept_until: Some(invented), ..Order::NONE }] {
        let victim = world.record(&node, 30).await;
        forge(&world, victim, &order).await;
        victims.push(victim);
    }
    world.clocks.advance(30 * DAY);
    assert_eq!(node.sweep_well().await.deleted, 2);
    for victim in victims {
        world.assert_deleted(victim, "whoever can write the store cannot keep it for longer").await;
    }
    world.assert_whole(source, "its own").await;
}

#[tokio::test]
async fn a17_early_deletion_and_hold_win_over_a_later_date() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let (early, before, held, over) = (
        world.record(&node, 90).await,
        world.record(&node, 90).await,
        world.record(&node, 90).await,
        world.record(&node, 1).await,
    );
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    node.orders.delete(&world.tenant, before, &by()).await.unwrap();
    world.clocks.advance(2 * DAY);
    let wanted = Redated { longer: 2, held: 1, unchanged: 2, ..Redated::default() };
    assert_eq!(lengthen(&world, &node, 365).await, wanted);
    node.orders.delete(&world.tenant, early, &by()).await.unwrap();
    assert_eq!(node.sweep_well().await.deleted, 3);
    world.assert_deleted(early, "ordered after the later date").await;
    world.assert_deleted(before, "ordered before it").await;
    world.assert_deleted(over, "its date was over").await;
    world.clocks.advance(400 * DAY);
    // Both entries of its index, that of the sealed and that of the later date, lead to it.
    let swept = node.sweep().await.unwrap();
    assert_eq!((swept.deleted, swept.held), (0, 2), "{swept:?}");
    plays(&world, &node, held).await;
    node.orders.release(&world.tenant, held, &by()).await.unwrap();
    assert_eq!(node.sweep_well().await.deleted, 1);
    world.assert_deleted(held, "released").await;
}

#[tokio::test]
async fn a17_a_look_at_more_days_counts_what_the_run_then_does() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    world.record(&node, 90).await;
    let held = world.record(&node, 90).await;
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    world.record_own(&node, 30).await;
    world.record(&node, 400).await;
    let before = world.backup().await;
    let looked = node.redating.survey(&world.tenant, (365, LONGER), |_| {}).await.unwrap();
    assert_eq!(world.backup().await, before, "a look changes nothing");
    let wanted = Redated { longer: 2, held: 1, own_days: 1, unchanged: 1, ..Redated::default() };
    assert_eq!(looked, wanted);
    assert_eq!(lengthen(&world, &node, 365).await, looked);
    let again = Redated { own_days: 1, unchanged: 3, ..Redated::default() };
    assert_eq!(lengthen(&world, &node, 365).await, again, "nothing twice");
    let none = redate(&world, &node, 3650, Way::Longer { began_by: Some(UnixMillis(1)) }).await.unwrap();
    assert_eq!(none, Redated::default(), "calls that began with days of a later change are not reached");
}

#[tokio::test]
async fn a17_a_pass_for_more_days_that_breaks_is_gone_on_with() {
    for (fault, request) in
        [Fault::Break, Fault::LoseAnswer].into_iter().flat_map(|fault| [5, 7, 11, 23].map(|at| (fault, at)))
    {
        let when = format!("{fault:?} at request {request}");
        let world = World::new().await;
        let node = world.node(OPTIONS);
        let ended = world.clocks.now();
        let mut recordings = Vec::new();
        for _ in 0..4 {
            recordings.push(world.record(&node, 90).await);
        }
        world.faults.fail_every(None, request, fault);
        // Whether it says so or not, the next pass must come to the same end.
        let _died = redate(&world, &node, 365, LONGER).await.is_err();
        world.faults.heal();
        lengthen(&world, &world.node(OPTIONS), 365).await;
        let until = clock::utc_date(UnixMillis(ended.0 + 365 * DAY));
        for recording in &recordings {
            let names = world.objects_of(*recording).await;
            assert_eq!(names.iter().filter(|name| name.starts_with("h/")).count(), 1, "{when}: {names:?}");
            assert!(names.iter().any(|name| name.starts_with(&format!("e/{until}/"))), "{when}: {names:?}");
            for tags in tags_of(&world, *recording).await {
                assert_eq!(tags, ("365".to_owned(), until.clone()), "{when}");
            }
        }
        let again = lengthen(&world, &node, 365).await;
        assert_eq!(again, Redated { unchanged: 4, ..Redated::default() }, "{when}");
        world.clocks.advance(364 * DAY);
        assert_eq!(node.sweep_well().await.deleted, 0, "{when}");
    }
}

#[tokio::test]
async fn a17_fewer_days_shorten_a_later_date_again() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 90).await;
    lengthen(&world, &node, 365).await;
    let shorter = redate(&world, &node, 120, Way::Shorter).await.unwrap();
    assert_eq!(shorter, Redated { shorter: 1, ..Redated::default() });
    let unchanged = Redated { unchanged: 1, ..Redated::default() };
    assert_eq!(lengthen(&world, &node, 365).await, unchanged, "an order for an earlier date stays");
    world.clocks.advance(119 * DAY);
    assert_eq!(node.sweep_well().await.deleted, 0);
    world.clocks.advance(DAY);
    assert_eq!(node.sweep_well().await.deleted, 1);
    world.assert_deleted(recording, "day 120").await;
}

#[tokio::test]
async fn a17_a_final_object_that_is_made_later_has_the_later_date() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let ended = world.clocks.now();
    let recording = world.store_parts(&node, 90).await;
    assert_eq!(lengthen(&world, &node, 365).await.longer, 1);
    world.compact(recording, 90).await;
    let until = clock::utc_date(UnixMillis(ended.0 + 365 * DAY));
    for tags in tags_of(&world, recording).await {
        assert_eq!(tags, ("365".to_owned(), until.clone()));
    }
}
