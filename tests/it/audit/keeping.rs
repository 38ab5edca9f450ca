//! Records are kept for their time and removed after it, and the log can be verified all the while.

use std::fs;

use callseal::control::audit::{Finding, purge};
use callseal::domain::time::UnixMillis;
use callseal::keys::KeyError;
use callseal::store::faulty::Fault;
use callseal::store::{Operation, layout};

use super::world::{DAY, Process, World, played};

const KEPT_DAYS: u32 = 3;

/// One chain of each of ten days, which ends, and one that lives all along.
async fn ten_days() -> (World, Process) {
    let world = World::new().await;
    let living = world.process("living");
    for day in 0..10 {
        let process = world.process(&format!("day-{day}"));
        for number in 0..2 {
            process
                .record(&world.tenant, played("alice", "192.0.2.1", "k1", &format!("r{day}-{number}")))
                .await;
            living.record(&world.tenant, played("bob", "192.0.2.2", "k1", &format!("l{day}-{number}"))).await;
            world.time.advance(1000);
        }
        process.end().await;
        // A chain that lives says so twice a day; these records stand for its checkpoints.
        for _ in 0..2 {
            world.time.advance(DAY / 2 - 1000);
            living.record(&world.tenant, played("bob", "192.0.2.2", "k1", "checkpoint")).await;
        }
    }
    (world, living)
}

async fn purge_now(world: &World, by: &Process) -> callseal::control::audit::Purged {
    let now = world.time.now();
    purge(world.reader(), (&world.keys, &by.log), &world.tenant, (KEPT_DAYS, now)).await.unwrap()
}

fn day_of(object: &str) -> &str {
    &object[object.len() - "2026/09/21/hhmmssmmm-".len() - 32 - "-00000000.car".len()..][..10]
}

#[tokio::test]
async fn old_records_go_and_the_rest_is_unbroken_from_a_date_on() {
    let (world, living) = ten_days().await;
    let before = world.verify().await;
    assert!(before.is_unbroken() && before.kept_since.is_none(), "{:?}", before.findings);
    let old_chain = before.chains.iter().find(|chain| chain.node == "day-0").unwrap().chain.0;
    let purged = purge_now(&world, &living).await;
    assert_eq!((purged.days, purged.chains), (7, 7), "{purged:?}");
    let kept_since = purged.kept_since.unwrap();
    assert_eq!(kept_since, "2026-09-28");
    let objects = world.objects(&world.tenant).await;
    assert!(objects.iter().all(|object| day_of(object).replace('/', "-") >= kept_since), "{objects:#?}");
    let verified = world.verify().await;
    assert!(verified.is_unbroken(), "{:?}", verified.findings);
    assert_eq!(verified.kept_since.as_deref(), Some("2026-09-28"));
    assert!(verified.chains.iter().any(|chain| chain.node == "living" && chain.first > 0));
    // The keys of chains that are gone are gone too, and those of others are not.
    let listed = world.store.list_after(&format!("k/{}/", world.tenant.tag()), None, 100).await.unwrap();
    assert_eq!(listed.len(), 4, "three days' chains and the one that lives");
    assert!(matches!(world.keys.open(&world.tenant, old_chain).await, Err(KeyError::NoEnvelope)));
    // Again: nothing to do, and nothing is written.
    assert_eq!(purge_now(&world, &living).await.days, 0);
    assert_eq!(world.objects(&world.tenant).await.len(), objects.len());
    // A day later one more day goes.
    world.time.advance(DAY);
    assert_eq!(purge_now(&world, &living).await.days, 1);
    assert!(world.verify().await.is_unbroken());
}

#[tokio::test]
async fn age_excuses_nothing_that_is_younger_than_the_log_says() {
    let (world, living) = ten_days().await;
    purge_now(&world, &living).await;
    let objects = world.objects(&world.tenant).await;
    let youngest_day = day_of(&objects[0]).to_owned();
    for object in objects.iter().filter(|object| day_of(object) == youngest_day) {
        fs::remove_file(world.file(object)).unwrap();
    }
    let verified = world.verify().await;
    let living_chain = verified.chains.iter().find(|chain| chain.node == "living").unwrap().chain;
    assert!(
        verified
            .findings
            .iter()
            .any(|finding| matches!(finding, Finding::Beheaded { chain, .. } if *chain == living_chain)),
        "{:?}",
        verified.findings
    );
    assert!(
        verified.findings.iter().any(|finding| matches!(finding, Finding::Gone { .. })),
        "{:?}",
        verified.findings
    );
}

#[tokio::test]
async fn a_purge_that_stops_anywhere_is_finished_by_the_next_and_breaks_nothing() {
    let (world, living) = ten_days().await;
    for requests in 1..16 {
        let copy = world.copy().await;
        let by = copy.process("sweeper");
        // The first record needs a key, before any request of the purge itself may fail.
        by.record(&copy.tenant, played("sweeper", "::1", "k1", "first")).await;
        let now = copy.time.now();
        let fault = if requests % 2 == 0 { Fault::Break } else { Fault::LoseAnswer };
        copy.faults.fail_every(Operation::Purge, requests, fault);
        let stopped = purge(copy.reader(), (&copy.keys, &by.log), &copy.tenant, (KEPT_DAYS, now)).await;
        copy.faults.heal();
        let between = copy.verify().await;
        assert!(
            between.is_unbroken(),
            "after request {requests} ({}): {:?}",
            stopped.is_ok(),
            between.findings
        );
        purge_now(&copy, &by).await;
        let verified = copy.verify().await;
        assert!(verified.is_unbroken(), "{requests}: {:?}", verified.findings);
        let oldest = copy.store.list_after(&layout::audit_prefix(copy.tenant.tag()), None, 1).await.unwrap();
        assert_eq!(day_of(oldest[0].name.as_str()), "2026/09/28");
        by.end().await;
    }
    drop(living);
}

#[tokio::test]
async fn nothing_is_removed_when_the_log_cannot_say_so() {
    let (world, _living) = ten_days().await;
    let before = world.objects(&world.tenant).await;
    let by = world.process("sweeper");
    world.faults.fail_every(Operation::PutNew, 1, Fault::Full);
    let now = world.time.now();
    purge(world.reader(), (&world.keys, &by.log), &world.tenant, (KEPT_DAYS, now)).await.unwrap_err();
    assert_eq!(world.objects(&world.tenant).await, before);
    let far_back = UnixMillis(0);
    let purged =
        purge(world.reader(), (&world.keys, &by.log), &world.tenant, (3650, far_back)).await.unwrap();
    assert_eq!(purged.days, 0, "a clock of 1970 removes nothing");
}
