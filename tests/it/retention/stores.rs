//! Retention on real stores: the sweeper alone, and beside rules of the bucket.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use callseal::clock;
use callseal::config::{S3Claims, S3ObjectLock};
use callseal::domain::ids::RecordingId;
use callseal::domain::retention::Reason;
use callseal::store::layout;
use callseal::store::s3::{Rule, S3Store};

use crate::s3::servers::{ALL, NO_TAGS, Server, ceph, garage, open};

use super::world::{DAY, Node, OPTIONS, World, by};

/// A native day of the tests' Ceph passes in ten seconds, and its rules are executed as often.
const NATIVE_DAY: Duration = Duration::from_secs(10);

async fn the_sweeper_deletes_what_is_due_and_nothing_else(server: &Server, claims: S3Claims) {
    let options = server.bucket(claims).await;
    if claims.versions {
        server.keep_versions(&options.bucket).await;
    }
    let world = World::of(Arc::new(open(&options).await));
    let node = world.node(OPTIONS);
    let (due, held, later) =
        (world.record(&node, 1).await, world.record(&node, 1).await, world.record(&node, 30).await);
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    world.clocks.advance(2 * DAY);
    let report = node.sweep_well().await;
    assert_eq!((report.deleted, report.held), (1, 1));
    assert_eq!(world.assert_deleted(due, "due").await.reason, Reason::Expired);
    world.assert_whole(held, "held").await;
    world.assert_whole(later, "not due").await;
    if claims.versions {
        let all = server.client().list_object_versions().bucket(&options.bucket).send().await.unwrap();
        let keys = all.versions().iter().map(|version| version.key());
        let keys = keys.chain(all.delete_markers().iter().map(|marker| marker.key())).flatten();
        let left: Vec<_> = keys.filter(|key| key.contains(&due.to_string())).collect();
        assert!(matches!(*left, [receipt] if receipt.starts_with("d/")), "no version is left: {left:?}");
    }
    node.orders.release(&world.tenant, held, &by()).await.unwrap();
    assert_eq!(node.sweep().await.unwrap().deleted, 1);
    world.assert_deleted(held, "released").await;
}

#[tokio::test]
async fn the_sweeper_works_on_ceph() {
    let Some(ceph) = ceph() else { return };
    the_sweeper_deletes_what_is_due_and_nothing_else(&ceph, ALL).await;
}

#[tokio::test]
async fn the_sweeper_works_on_ceph_with_versions() {
    let Some(ceph) = ceph() else { return };
    the_sweeper_deletes_what_is_due_and_nothing_else(
        &ceph,
        S3Claims { versions: true, create_once: false, ..ALL },
    )
    .await;
}

#[tokio::test]
async fn the_sweeper_works_alone_on_garage() {
    let Some(garage) = garage() else { return };
    the_sweeper_deletes_what_is_due_and_nothing_else(&garage, NO_TAGS).await;
}

#[tokio::test]
async fn a_locked_recording_is_shredded_now_and_removed_when_its_lock_ends() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket_with_locks(S3ObjectLock::Governance).await;
    let world = World::of(Arc::new(open(&options).await));
    let node = world.node(OPTIONS);
    let recording = world.record(&node, 30).await;
    let (client, key) = (ceph.client(), layout::final_object(world.tenant.tag(), recording).to_string());
    let versions = client.list_object_versions().bucket(&options.bucket).prefix(&key).send().await.unwrap();
    let version = versions.versions()[0].version_id().unwrap();
    let destroy = || client.delete_object().bucket(&options.bucket).key(&key).version_id(version);
    destroy().send().await.expect_err("nobody destroys a recording before its date");

    node.orders.delete(&world.tenant, recording, &by()).await.unwrap();
    for round in 0..2 {
        let report = node.sweep().await.unwrap();
        assert_eq!((report.waiting, report.failed, report.overdue), (1, 0, 0), "round {round}: {report:?}");
    }
    let objects = world.objects_of(recording).await;
    assert!(!objects.iter().any(|name| name.starts_with("k/")), "the key is destroyed: {objects:?}");
    assert!(!objects.iter().any(|name| name.starts_with("d/")), "no receipt before it is gone: {objects:?}");
    assert!(objects.iter().any(|name| name.starts_with("e/")), "the index leads back to it: {objects:?}");

    destroy().bypass_governance_retention(true).send().await.unwrap();
    node.sweep_well().await;
    assert_eq!(world.assert_deleted(recording, "after the lock").await.reason, Reason::Requested);
}

async fn has_audio(world: &World, recording: RecordingId) -> bool {
    world.objects_of(recording).await.iter().any(|name| name.starts_with("r/"))
}

async fn native_rules_delete(world: &World, recording: RecordingId) {
    let began = clock::monotonic();
    while has_audio(world, recording).await {
        assert!(clock::since(began) < 12 * NATIVE_DAY, "the store does not obey its rule");
        tokio::time::sleep(NATIVE_DAY / 10).await;
    }
}

async fn records(world: &World, node: &Node, days: u32) -> [RecordingId; 2] {
    let held = world.record(node, days).await;
    node.orders.hold(&world.tenant, held, &by()).await.unwrap();
    [world.record(node, days).await, held]
}

#[tokio::test]
async fn rules_of_the_bucket_and_the_sweeper_agree() {
    let Some(ceph) = ceph() else { return };
    let bucket = ceph.bucket(ALL).await;
    let store: S3Store = open(&bucket).await;
    let world = World::of(Arc::new(store.clone()));
    let node = world.node(OPTIONS);
    // The rules fire one day after the date: nobody has swept by then.
    let wanted = Rule::wanted(&BTreeSet::from([1, 300]), 1, "", false);
    store.apply_lifecycle(&wanted).await.unwrap();
    let [short, held] = records(&world, &node, 1).await;
    let long = world.record(&node, 300).await;
    native_rules_delete(&world, short).await;
    world.assert_whole(held, "held").await;
    world.assert_whole(long, "of another rule").await;
    assert!(
        world.objects_of(short).await.iter().any(|name| name.starts_with("k/")),
        "rules know nothing of keys"
    );

    world.clocks.advance(2 * DAY);
    assert_eq!(node.sweep().await.unwrap().deleted, 0, "somebody may still have audio of it");
    world.clocks.advance(3 * DAY);
    let report = node.sweep_well().await;
    assert_eq!((report.deleted, report.held), (1, 1), "the key goes, and the index is put right");
    assert_eq!(world.assert_deleted(short, "after the rules").await.reason, Reason::Expired);
    let [swept, held_longer] = records(&world, &node, 1).await;
    world.clocks.advance(2 * DAY);
    node.sweep_well().await;
    assert_eq!(world.assert_deleted(swept, "before the rules could").await.reason, Reason::Expired);
    // Long enough for the rules to fire at everything they are about.
    tokio::time::sleep(4 * NATIVE_DAY).await;
    for kept in [held, held_longer, long] {
        world.assert_whole(kept, "after both").await;
    }
}
