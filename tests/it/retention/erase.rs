//! Recordings are destroyed at once, by what they have in common, and stay destroyed when a backup brings them back.

use std::collections::BTreeSet;

use callseal::control::erase::{EraseReport, Target};
use callseal::control::sweep::SweepReport;
use callseal::domain::ids::RecordingId;
use callseal::domain::index::Term;
use callseal::domain::ledger::{Entry, Scope};
use callseal::domain::retention::Reason;
use callseal::store::Store;
use callseal::store::faulty::Fault;

use super::world::{DAY, Node, OPTIONS, World, by};

fn party() -> Term {
    Term::party("+49 30 901820017").unwrap()
}

fn counts(found: u64, deleted: u64, held: u64) -> EraseReport {
    EraseReport { found, deleted, held, ..EraseReport::default() }
}

/// Scopes of the orders in the ledger.
async fn scopes(world: &World, node: &Node) -> Vec<Scope> {
    let read = node.ledger.verify(&world.tenant, None).await.unwrap();
    let scope = |entry: Entry| match entry {
        Entry::Ordered { scope, .. } => Some(scope),
        Entry::Shortened { .. } | Entry::Deleted { .. } => None,
    };
    read.entries.into_iter().filter_map(scope).collect()
}

#[tokio::test]
async fn everything_of_a_party_goes_but_what_is_held() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let (first, second) = (world.record(&node, 30).await, world.record(&node, 30).await);
    let (held, other) = (world.record(&node, 30).await, world.record(&node, 30).await);
    for recording in [first, second, held] {
        world.index(&node, recording, &party()).await;
    }
    world.index(&node, other, &Term::party("+4930901820018").unwrap()).await;
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    let target = Target::Term(party());
    let before = world.backup().await.len();
    let survey = node.eraser.survey(&world.tenant, &target, &by()).await.unwrap();
    assert_eq!(survey, counts(3, 2, 1));
    assert_eq!(world.backup().await.len(), before, "nothing was done");
    let report = node.eraser.run(&world.tenant, &target, &by(), |_| ()).await.unwrap();
    assert_eq!(report, counts(3, 2, 1));
    for recording in [first, second] {
        let receipt = world.assert_deleted(recording, "of the party").await;
        assert_eq!(
            (receipt.reason, receipt.final_at_ms),
            (Reason::Requested, receipt.deleted_at_ms + 30 * DAY)
        );
    }
    assert!(world.objects_of(held).await.iter().any(|name| name.ends_with("final.cmr")), "held");
    assert!(world.objects_of(other).await.iter().any(|name| name.ends_with("final.cmr")), "another party");
    assert_eq!(scopes(&world, &node).await, [Scope::Party; 2]);
    let again = node.eraser.run(&world.tenant, &target, &by(), |_| ()).await.unwrap();
    assert_eq!(again, counts(1, 0, 1), "only the held one is found any more");
    let audited = world.audited(&node).await;
    let told: Vec<_> = audited.iter().filter(|record| record.event.action == "shred").collect();
    let results: Vec<_> = told.iter().map(|record| record.event.result.as_str()).collect();
    assert_eq!(results, ["looked", "begun", "incomplete", "begun", "incomplete"]);
    assert!(told.iter().all(|record| record.event.subject == "party"), "no number");
}

#[tokio::test]
async fn a_tenant_goes_with_its_index_and_what_runs_goes_later() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let (done, running) = (world.record(&node, 30).await, world.store_parts(&node, 30).await);
    world.index(&node, done, &party()).await;
    let report = node.eraser.run(&world.tenant, &Target::Tenant, &by(), |_| ()).await.unwrap();
    assert_eq!(report, EraseReport { found: 2, deleted: 1, waiting: 1, ..EraseReport::default() });
    world.assert_deleted(done, "finished").await;
    let index = || async { world.store.list_after("x/", None, 100).await.unwrap().len() };
    assert_eq!(index().await, 4, "entries of what still runs");
    world.compact(running, 30).await;
    let SweepReport { deleted, .. } = node.sweep_well().await;
    assert_eq!(deleted, 1);
    world.assert_deleted(running, "finished later").await;
    let report = node.eraser.run(&world.tenant, &Target::Tenant, &by(), |_| ()).await.unwrap();
    assert_eq!(report, EraseReport::default());
    assert_eq!(index().await, 0);
    assert!(node.keys.known_index_key(&world.tenant).await.unwrap().is_none(), "the index key is destroyed");
    node.ledger.verify(&world.tenant, None).await.unwrap();
}

#[tokio::test]
async fn one_recording_and_none() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let (one, other) = (world.record(&node, 30).await, world.record(&node, 30).await);
    let erase = |recording| {
        let (node, world) = (&node, &world);
        async move {
            let target = Target::Recording(recording);
            node.eraser.run(&world.tenant, &target, &by(), |_| ()).await.unwrap()
        }
    };
    assert_eq!(erase(one).await, counts(1, 1, 0));
    world.assert_deleted(one, "one").await;
    world.assert_whole(other, "the other").await;
    let gone = EraseReport { found: 1, gone: 1, ..EraseReport::default() };
    assert_eq!(erase(one).await, gone);
    assert_eq!(
        erase(RecordingId([7; 16])).await,
        EraseReport::default(),
        "one that never was is not called gone"
    );
    assert_eq!(world.objects_of(RecordingId([7; 16])).await, [""; 0]);
}

#[tokio::test]
async fn a_failure_anywhere_is_made_good_by_saying_it_again() {
    for request in (1..60).step_by(4) {
        let world = World::new().await;
        let node = world.node(OPTIONS);
        let (due, kept) = (world.record(&node, 30).await, world.record(&node, 30).await);
        world.index(&node, due, &party()).await;
        world.faults.fail_next(None, request, Fault::Break);
        let target = Target::Term(party());
        // As many requests as that fail in a row, from the first one on.
        let _interrupted = node.eraser.run(&world.tenant, &target, &by(), |_| ()).await.is_ok();
        world.faults.heal();
        let again = world.node(OPTIONS);
        let when = format!("after {request} failures");
        let report = again.eraser.run(&world.tenant, &target, &by(), |_| ()).await.unwrap();
        assert_eq!((report.held, report.failed), (0, 0), "{when}: {report:?}");
        again.sweep_well().await;
        world.assert_deleted(due, &when).await;
        world.assert_whole(kept, &when).await;
        again.ledger.verify(&world.tenant, None).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_backup_brings_back_is_deleted_again() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let (gone, kept) = (world.record(&node, 30).await, world.record(&node, 30).await);
    let held = world.record(&node, 30).await;
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    let backup = world.backup().await;
    node.orders.release(&world.tenant, held, &by()).await.unwrap();
    for recording in [gone, held] {
        node.eraser.run(&world.tenant, &Target::Recording(recording), &by(), |_| ()).await.unwrap();
        world.assert_deleted(recording, "before the restore").await;
    }
    world.restore(&backup).await;
    assert!(world.objects_of(gone).await.len() > 5, "it is back");

    let fresh = world.node(OPTIONS);
    let recordings = fresh.ledger.verify(&world.tenant, None).await.unwrap().recordings(world.clocks.now());
    assert_eq!(recordings, BTreeSet::from([gone, held]));
    let by = by();
    let replay = |does_it| fresh.eraser.replay(&world.tenant, &recordings, &by, does_it);
    assert_eq!(replay(false).await.unwrap(), counts(2, 2, 0), "the hold was released before the deletion");
    assert!(world.objects_of(gone).await.len() > 5, "nothing was done");
    assert_eq!(replay(true).await.unwrap(), counts(2, 2, 0));
    world.assert_deleted(gone, "replayed").await;
    world.assert_deleted(held, "replayed, though held in the backup").await;
    world.assert_whole(kept, "never deleted").await;
    let again = replay(true).await.unwrap();
    assert_eq!(again, EraseReport { found: 2, gone: 2, ..EraseReport::default() });
    let wanted = [Scope::Recording, Scope::Recording, Scope::Replay, Scope::Replay];
    assert_eq!(scopes(&world, &fresh).await, wanted);
}

#[tokio::test]
async fn a_copy_of_the_ledger_is_enough_for_a_store_that_lost_its_own() {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let (gone, kept) = (world.record(&node, 30).await, world.record(&node, 30).await);
    let held = world.record(&node, 30).await;
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    let backup = world.backup().await;
    node.orders.release(&world.tenant, held, &by()).await.unwrap();
    for recording in [gone, held] {
        node.eraser.run(&world.tenant, &Target::Recording(recording), &by(), |_| ()).await.unwrap();
    }
    let (read, copy) = node.ledger.export(&world.tenant).await.unwrap();
    assert_eq!(read.head.links, 4);

    // Another bucket, made from the backup alone: neither ledger nor its key.
    world.store.purge("d/").await.unwrap();
    world.store.purge("k/").await.unwrap();
    world.restore(&backup).await;
    let fresh = world.node(OPTIONS);
    assert_eq!(fresh.ledger.read(&world.tenant).await.unwrap().head.links, 0);
    let mut damaged = copy.clone();
    damaged.remove(0);
    assert!(fresh.ledger.read_copy(&world.tenant, damaged).await.is_err(), "a copy is checked as well");
    let recordings =
        fresh.ledger.read_copy(&world.tenant, copy).await.unwrap().recordings(world.clocks.now());
    let report = fresh.eraser.replay(&world.tenant, &recordings, &by(), true).await.unwrap();
    assert_eq!(report, counts(2, 1, 1), "nobody can tell whether the hold is a new one");
    let receipt = world.assert_deleted(gone, "replayed from a copy").await;
    assert_eq!(receipt.ledger, Some(1), "noted in the ledger of the new store");
    world.assert_whole(kept, "never deleted").await;
    fresh.orders.release(&world.tenant, held, &by()).await.unwrap();
    let again = fresh.eraser.replay(&world.tenant, &recordings, &by(), true).await.unwrap();
    assert_eq!(again, EraseReport { found: 2, deleted: 1, gone: 1, ..EraseReport::default() });
    fresh.ledger.verify(&world.tenant, None).await.unwrap();
}
