//! The deletion ledger: what it says, who may append to it at once, and what nobody can do to it unnoticed.

use bytes::Bytes;
use callseal::control::ledger::LedgerError;
use callseal::domain::ids::RecordingId;
use callseal::domain::ledger::{ChainFault, Entry, Head, Scope};
use callseal::domain::retention::Reason;
use callseal::store::{Store, Tags, layout};
use futures_util::future::join_all;

use super::world::{DAY, Node, OPTIONS, World, by};

/// Three recordings that were deleted, one of them by order: four entries.
async fn kept() -> (World, Node, Vec<RecordingId>) {
    let world = World::new().await;
    let node = world.node(OPTIONS);
    let mut recordings = Vec::new();
    for _ in 0..3 {
        recordings.push(world.record(&node, 1).await);
    }
    node.orders.delete(&world.tenant, recordings[1], &by()).await.unwrap();
    assert_eq!(node.sweep_well().await.deleted, 1);
    world.clocks.advance(DAY);
    assert_eq!(node.sweep_well().await.deleted, 2);
    (world, node, recordings)
}

async fn replace(world: &World, number: u64, bytes: Option<Bytes>) {
    let name = layout::ledger(world.tenant.tag(), number);
    world.store.purge(name.as_str()).await.unwrap();
    if let Some(bytes) = bytes {
        world.store.put_new(&name, bytes, &Tags::new()).await.unwrap();
    }
}

async fn bytes_of(world: &World, number: u64) -> Bytes {
    world.store.get(&layout::ledger(world.tenant.tag(), number), None).await.unwrap().bytes
}

#[tokio::test]
async fn it_says_who_ordered_a_deletion_and_when_its_key_was_gone() {
    let (world, node, recordings) = kept().await;
    let read = node.ledger.verify(&world.tenant, None).await.unwrap();
    assert_eq!(read.head.links, 4);
    let deleted_first = world.clocks.now().0 - DAY;
    let [ordered, deleted, rest @ ..] = &read.entries[..] else { panic!("{:?}", read.entries) };
    let wanted = Entry::Ordered {
        recording: recordings[1].to_string(),
        scope: Scope::Recording,
        actor: "counsel".to_owned(),
        reason: "a lawsuit".to_owned(),
        at_ms: deleted_first,
    };
    assert_eq!(*ordered, wanted);
    let wanted = Entry::Deleted {
        recording: recordings[1].to_string(),
        reason: Reason::Requested,
        expires_ms: Some(deleted_first),
        deleted_at_ms: deleted_first,
        final_at_ms: deleted_first + 30 * DAY,
        objects: 2,
    };
    assert_eq!(*deleted, wanted);
    let expired: Vec<_> = rest.iter().filter_map(Entry::recording).collect();
    assert!(expired.len() == 2 && expired.contains(&recordings[0]) && expired.contains(&recordings[2]));
    assert_eq!(world.assert_deleted(recordings[1], "ordered").await.ledger, Some(1));
    for object in world.store.list_after("d/", None, 100).await.unwrap() {
        let bytes = world.store.get(&object.name, None).await.unwrap().bytes;
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("counsel") && !text.contains("lawsuit"), "{text}");
    }
}

#[tokio::test]
async fn what_is_changed_taken_out_exchanged_or_cut_off_is_noticed() {
    let (world, node, _) = kept().await;
    let whole = node.ledger.verify(&world.tenant, None).await.unwrap().head;
    let good: Vec<Bytes> = join_all((0..4).map(|number| bytes_of(&world, number))).await;
    let read = || node.ledger.read(&world.tenant);
    for number in 0..4_u8 {
        let place = u64::from(number);
        let original = &good[usize::from(number)];
        for at in (0..original.len()).step_by(7) {
            let mut forged = original.to_vec();
            forged[at] ^= 1;
            replace(&world, place, Some(forged.into())).await;
            let broken = read().await;
            assert!(broken.is_err(), "byte {at} of entry {number}");
        }
        replace(&world, place, None).await;
        let gone = node.ledger.verify(&world.tenant, None).await;
        match gone {
            Err(LedgerError::Broken(ChainFault::Missing(missing))) => assert_eq!(missing, place),
            // Without the last one the chain is whole, but a receipt names more.
            Err(LedgerError::CutOff { number: 3, .. }) => assert_eq!(place, 3),
            other => panic!("entry {number} is gone: {other:?}"),
        }
        replace(&world, place, Some(original.clone())).await;
    }
    replace(&world, 1, Some(good[2].clone())).await;
    replace(&world, 2, Some(good[1].clone())).await;
    assert!(matches!(read().await, Err(LedgerError::Broken(ChainFault::Malformed(1)))), "exchanged");
    for number in 1..3_u8 {
        replace(&world, number.into(), Some(good[usize::from(number)].clone())).await;
    }
    // Somebody who removes the receipts as well is found out by whoever has noted the end.
    replace(&world, 3, None).await;
    for object in world.store.list_after("d/", None, 100).await.unwrap() {
        if layout::receipt_recording(&object.name).is_some() {
            world.store.purge(object.name.as_str()).await.unwrap();
        }
    }
    assert_eq!(node.ledger.verify(&world.tenant, None).await.unwrap().head.links, 3);
    let short = node.ledger.verify(&world.tenant, Some(whole)).await;
    assert!(matches!(short, Err(LedgerError::OtherEnd(3))), "{short:?}");
    replace(&world, 3, Some(good[3].clone())).await;
    assert!(node.ledger.verify(&world.tenant, Some(whole)).await.is_ok());
    let other: Head = format!("4:{}", "0".repeat(64)).parse().unwrap();
    assert!(node.ledger.verify(&world.tenant, Some(other)).await.is_err());
}

#[tokio::test]
async fn a_receipt_that_names_another_entry_is_noticed() {
    let (world, node, recordings) = kept().await;
    let name = layout::receipt(world.tenant.tag(), recordings[0]);
    let receipt = world.store.get(&name, None).await.unwrap().bytes;
    let text = String::from_utf8(receipt.to_vec()).unwrap();
    let number: u64 =
        serde_json::from_slice::<serde_json::Value>(&receipt).unwrap()["ledger"].as_u64().unwrap();
    let forged = text.replace(&format!("\"ledger\":{number}"), "\"ledger\":0");
    world.store.purge(name.as_str()).await.unwrap();
    world.store.put_new(&name, Bytes::from(forged), &Tags::new()).await.unwrap();
    let found = node.ledger.verify(&world.tenant, None).await;
    assert!(matches!(found, Err(LedgerError::Mismatch { number: 0, .. })), "{found:?}");
}

#[tokio::test]
async fn many_processes_append_to_one_chain() {
    let world = World::new().await;
    let nodes: Vec<Node> = (0..4).map(|_| world.node(OPTIONS)).collect();
    let entry = |number: u8| Entry::Ordered {
        recording: RecordingId([number; 16]).to_string(),
        scope: Scope::Recording,
        actor: "a".to_owned(),
        reason: "b".to_owned(),
        at_ms: 0,
    };
    let appends = (0..40_u8).map(|number| {
        let (node, tenant) = (&nodes[usize::from(number % 4)], &world.tenant);
        async move { node.ledger.append(tenant, &entry(number)).await.unwrap() }
    });
    let mut numbers = join_all(appends).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<u64>>());
    let read = nodes[0].ledger.read(&world.tenant).await.unwrap();
    let mut recordings: Vec<_> = read.entries.iter().filter_map(Entry::recording).collect();
    recordings.sort_unstable();
    assert_eq!(recordings, (0..40).map(|number| RecordingId([number; 16])).collect::<Vec<_>>());
    // A process that begins later finds the end.
    assert_eq!(world.node(OPTIONS).ledger.append(&world.tenant, &entry(41)).await.unwrap(), 40);
}
