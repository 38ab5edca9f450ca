//! Who waits for a key service: no call that finds a key made ahead, and no tenant for that of another.

use std::sync::Arc;
use std::time::Duration;

use callseal::control::audit::{AuditEvent, AuditLog};
use callseal::keys::{KeyError, KeyService, Minted};
use futures_util::FutureExt;

use super::aws_kms::ARN;
use super::http::Way;
use super::kms::{FakeKms, Mood};
use super::world::{ACME, OTHER, World, kms_tables, tenant};
use crate::support::{eventually, files_below};

const SIZE: usize = 8;

async fn world() -> (FakeKms, World, Arc<KeyService>) {
    let kms = FakeKms::start(&[ARN]).await;
    let world = World::new(&kms_tables(&kms.http.url(), ARN)).await;
    let keys = world.keys();
    (kms, world, keys)
}

fn wrapped(kms: &FakeKms) -> usize {
    kms.asked().iter().filter(|(operation, _)| operation == "Encrypt").count()
}

/// Takes a key without waiting for anything; nothing when it would have to.
fn take_now(keys: &Arc<KeyService>, id: &str) -> Option<Result<Minted, KeyError>> {
    keys.take(&tenant(id)).now_or_never()
}

async fn wait_for_pool(keys: &KeyService) {
    eventually("a full pool", || (keys.waiting(&tenant(ACME)) == SIZE).then_some(())).await;
}

fn envelopes(world: &World) -> usize {
    files_below(&world.dir.path().join("store/k")).len()
}

#[tokio::test]
async fn a_call_does_not_wait_for_a_slow_key_service() {
    let (kms, _world, keys) = world().await;
    kms.http.set_way(Way::Open(Duration::from_millis(500)));
    assert!(take_now(&keys, ACME).is_none(), "the first one waits");
    let mut taken = vec![keys.take(&tenant(ACME)).await.unwrap()];
    wait_for_pool(&keys).await;
    for _ in 0..SIZE {
        taken.push(take_now(&keys, ACME).expect("it does not wait").unwrap());
    }
    assert!(take_now(&keys, ACME).is_none(), "there were no more than that");
    assert!(take_now(&keys, OTHER).is_none(), "nor are they for another tenant");
    let mut ids: Vec<_> = taken.iter().map(|minted| minted.ids.recording.to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), SIZE + 1);
}

#[tokio::test]
async fn a_dead_key_service_is_asked_by_one_task_and_waited_for_by_nobody() {
    let (kms, _world, keys) = world().await;
    kms.set_mood(Mood::Refuse("KMSInternalException"));
    assert!(keys.take(&tenant(ACME)).await.is_err());
    let before = wrapped(&kms);
    for _ in 0..100 {
        let failed = take_now(&keys, ACME).expect("it does not wait").unwrap_err();
        assert!(matches!(failed, KeyError::StillFailing("unavailable")), "{failed}");
    }
    assert!(wrapped(&kms) - before <= 3, "{} requests for 100 calls", wrapped(&kms) - before);
    kms.set_mood(Mood::Fine);
    eventually("recovery without a call", || take_now(&keys, ACME)?.ok()).await;
}

#[tokio::test]
async fn what_is_given_back_or_not_used_leaves_nothing_behind() {
    let (_kms, world, keys) = world().await;
    let taken = keys.take(&tenant(ACME)).await.unwrap();
    wait_for_pool(&keys).await;
    keys.give_back(&tenant(ACME), taken);
    eventually("the one that has no place is erased", || (envelopes(&world) == SIZE).then_some(())).await;
    keys.erase_pools_of(&[tenant(OTHER)]).await;
    assert_eq!(envelopes(&world), SIZE);
    keys.erase_pools_of(&[tenant(ACME)]).await;
    assert_eq!(envelopes(&world), 0, "a tenant with another key has none of the old one left");
    let taken = keys.take(&tenant(ACME)).await.unwrap();
    keys.erase_pool().await;
    keys.give_back(&tenant(ACME), taken);
    eventually("nothing after the end", || (envelopes(&world) == 0).then_some(())).await;
}

#[tokio::test]
async fn no_tenant_waits_for_the_key_service_of_another() {
    let (kms, world, _keys) = world().await;
    world.write_tenant(OTHER, "provider = \"local\"");
    let keys = world.keys();
    let audit = AuditLog::start("test".to_owned(), Arc::clone(&keys), Arc::clone(&world.store));
    let event = || AuditEvent {
        actor: "ops".to_owned(),
        role: "operator".to_owned(),
        source: None,
        action: "look".to_owned(),
        subject: "x".to_owned(),
        reason: None,
        result: "allowed".to_owned(),
        request: String::new(),
        detail: None,
        key: None,
    };
    kms.http.set_way(Way::Silent);
    let (acme, other) = (tenant(ACME), tenant(OTHER));
    let mut stuck = Box::pin(audit.record(&acme, event()));
    assert!(stuck.as_mut().now_or_never().is_none());
    for _ in 0..3 {
        tokio::select! {
            biased;
            outcome = &mut stuck => panic!("that one cannot be done: {outcome:?}"),
            outcome = audit.record(&other, event()) => assert!(outcome.is_ok(), "{outcome:?}"),
        }
    }
    assert!(stuck.await.is_err(), "what cannot be audited is refused");
}
