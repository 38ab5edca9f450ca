//! The table of `docs/AUDIT.md`: what somebody can do who writes to the store, and what a verification says then.

use std::fs;
use std::time::Duration;

use callseal::clock;
use callseal::control::audit::{AuditFile, AuditOptions, ChainLife, Finding, Verification};
use callseal::domain::ids::RecordingId;

use super::world::{DAY, HOUR, Process, World, played};
use crate::support::LIMIT;

/// What happened: node a wrote 3 records and stopped; node b saw that, wrote 3 records, and stopped an hour later.
struct Stage {
    world: World,
    /// The objects of node a: 3 with a record each, and the end. Then those of node b: a checkpoint, 3, the end.
    a: Vec<String>,
    b: Vec<String>,
    /// Two objects of the other tenant.
    strange: Vec<String>,
}

async fn write(process: &Process, world: &World) {
    for number in 0..3 {
        world.time.advance(1_000);
        process.record(&world.tenant, played("alice", "192.0.2.1", "k1", &format!("r{number}"))).await;
    }
}

impl Stage {
    async fn new() -> Self {
        let world = World::new().await;
        let copy = AuditFile::open(&world.path().join("copy.jsonl"), Duration::from_secs(60)).unwrap();
        let process = |node: &str| {
            world.process_with(node, AuditOptions { file: Some(copy.clone()), ..world.options() })
        };
        let first = process("a");
        write(&first, &world).await;
        first.record(&world.other, played("mallory", "192.0.2.9", "k9", "theirs")).await;
        first.end().await;
        let a = world.objects(&world.tenant).await;
        world.time.advance(HOUR);
        let second = process("b");
        world.begin(&second).await;
        write(&second, &world).await;
        world.time.advance(HOUR);
        second.end().await;
        let b = world.objects(&world.tenant).await.split_off(a.len());
        let strange = world.objects(&world.other).await;
        assert_eq!((a.len(), b.len(), strange.len()), (4, 5, 2));
        let sound = world.verify().await;
        assert!(sound.is_unbroken() && sound.silent().count() == 0, "{sound:?}");
        assert_eq!((sound.records, sound.objects, sound.chains.len()), (9, 9, 2));
        world.time.advance(DAY);
        Self { world, a, b, strange }
    }

    /// Meddles with a copy, and verifies it.
    async fn after(&self, meddle: impl FnOnce(&World)) -> Verification {
        let copy = self.world.copy().await;
        meddle(&copy);
        copy.verify().await
    }
}

fn chain(object: &str) -> RecordingId {
    object.split('-').nth(1).unwrap().parse().unwrap()
}

fn remove(world: &World, objects: &[String]) {
    objects.iter().for_each(|object| fs::remove_file(world.file(object)).unwrap());
}

fn put(world: &World, object: &str, bytes: &[u8]) {
    let path = world.file(object);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn codes(verified: &Verification) -> Vec<String> {
    let code =
        |finding: &Finding| serde_json::to_value(finding).unwrap()["code"].as_str().unwrap().to_owned();
    verified.findings.iter().map(code).collect()
}

#[tokio::test]
async fn whatever_is_done_to_objects_is_found() {
    let stage = Stage::new().await;
    let Stage { a, b, strange, .. } = &stage;
    let (first, second) = (chain(&a[0]), chain(&b[0]));

    let edited = stage.after(|world| {
        let mut bytes = fs::read(world.file(&a[1])).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        put(world, &a[1], &bytes);
    });
    let edited = edited.await;
    assert_eq!(codes(&edited), ["changed", "missing"]);
    assert!(edited.findings[0].to_string().contains(&format!("chain {first} is broken at object 1")));

    let removed = stage.after(|world| remove(world, &a[1..2])).await;
    assert_eq!(codes(&removed), ["missing"]);
    assert!(removed.findings[0].to_string().contains("objects before it are missing, from 1 on"));

    let swapped = stage.after(|world| {
        let (one, other) = (fs::read(world.file(&a[1])).unwrap(), fs::read(world.file(&a[2])).unwrap());
        put(world, &a[1], &other);
        put(world, &a[2], &one);
    });
    assert_eq!(codes(&swapped.await), ["changed", "changed", "missing"]);

    let renamed = stage.after(|world| {
        let later = a[1].replace("/21/", "/22/");
        put(world, &later, &fs::read(world.file(&a[1])).unwrap());
        remove(world, &a[1..2]);
    });
    assert_eq!(codes(&renamed.await), ["missing", "changed"]);

    let beheaded = stage.after(|world| remove(world, &a[..1])).await;
    assert_eq!(codes(&beheaded), ["beheaded"]);

    let inserted = stage.after(|world| {
        put(world, &a[3].replace("-00000003", "-00000004"), &fs::read(world.file(&a[1])).unwrap());
        put(world, &a[3].replace(&first.to_string(), &RecordingId([7; 16]).to_string()), b"a record");
        put(world, &a[0].replace(".car", ".txt"), b"a record");
    });
    let mut inserted = codes(&inserted.await);
    inserted.sort();
    assert_eq!(inserted, ["changed", "foreign", "no-key"]);

    // A record of another chain, and one of another tenant, in the place of ours.
    for from in [&b[1], &strange[0]] {
        let spliced = stage.after(|world| put(world, &a[1], &fs::read(world.file(from)).unwrap())).await;
        assert_eq!(codes(&spliced), ["changed", "missing"], "{from}");
    }
    // A whole chain of another tenant, with its key.
    let (own, theirs) = (stage.world.tenant.tag().to_string(), stage.world.other.tag().to_string());
    let adopted = stage.after(|world| {
        for object in strange {
            put(world, &object.replace(&theirs, &own), &fs::read(world.file(object)).unwrap());
        }
        let envelope = format!("k/{theirs}/{}/0000.json", chain(&strange[0]));
        put(world, &envelope.replace(&theirs, &own), &fs::read(world.file(&envelope)).unwrap());
    });
    assert_eq!(codes(&adopted.await), ["no-key", "no-key"]);
    let other = stage.world.reader().verify(&stage.world.other, None, stage.world.time.now()).await.unwrap();
    assert!(other.is_unbroken(), "another tenant's log is not touched by any of this");

    let keyless = stage.after(|world| {
        fs::remove_dir_all(world.file(&format!("k/{own}/{second}"))).unwrap();
    });
    assert!(codes(&keyless.await).iter().all(|code| code == "no-key"));
}

#[tokio::test]
async fn ends_that_are_cut_off_and_chains_that_are_gone_are_missed() {
    let stage = Stage::new().await;
    let Stage { world, a, b, .. } = &stage;
    let (first, second) = (chain(&a[0]), chain(&b[0]));

    // Somebody has seen them.
    let cut = stage.after(|world| remove(world, &a[2..])).await;
    assert_eq!(codes(&cut), ["cut"]);
    let said = cut.findings[0].to_string();
    assert!(said.contains(&format!("chain {first} was cut off: it has 2 objects, and chain {second} saw 4")));
    let gone = stage.after(|world| remove(world, a)).await;
    assert_eq!(codes(&gone), ["gone"]);
    let own = world.tenant.tag();
    let gone = stage.after(|world| {
        remove(world, a);
        fs::remove_dir_all(world.file(&format!("k/{own}/{first}"))).unwrap();
    });
    assert_eq!(codes(&gone.await), ["gone"]);

    // Nobody has: then the chain has no end, and was to be heard of again.
    for kept in 1..b.len() {
        let rolled_back = stage.after(|world| remove(world, &b[kept..])).await;
        assert!(rolled_back.is_unbroken());
        let silent: Vec<_> = rolled_back.silent().map(|silent| silent.chain.0).collect();
        assert_eq!(silent, [second], "rolled back to object {kept}");
    }
    let ended = world.verify().await;
    assert!(ended.chains.iter().all(|chain| chain.state == ChainLife::Ended));

    // Only a copy outside of the store misses a last chain that nobody has seen.
    let (copied, copy) = (world.copy().await, world.path().join("copy.jsonl"));
    assert!(copied.verify_against(&copy).await.is_unbroken());
    remove(&copied, b);
    assert!(copied.verify().await.is_unbroken());
    let witnessed = copied.verify_against(&copy).await;
    assert!(witnessed.witnessed && codes(&witnessed) == ["lost"; 5]);
    put(&copied, &b[0], b"another one");
    let expected = [&["differs", "changed"][..], &["lost"; 4]].concat();
    assert_eq!(codes(&copied.verify_against(&copy).await), expected);
}

#[tokio::test]
async fn a_chain_that_lives_shows_that_its_end_was_cut_off() {
    let world = World::new().await;
    let process = world.process("a");
    write(&process, &world).await;
    let before = world.objects(&world.tenant).await;
    remove(&world, &before[1..]);
    assert!(world.verify().await.is_unbroken(), "it may still be heard of");
    write(&process, &world).await;
    assert_eq!(codes(&world.verify().await), ["missing"]);
}

#[tokio::test]
async fn a_killed_process_is_told_from_a_cut_chain_once_another_has_looked() {
    let world = World::new().await;
    let killed = world.process("a");
    write(&killed, &world).await;
    drop(killed);
    assert_eq!(world.verify().await.silent().count(), 0, "it may still be heard of");
    world.time.advance(HOUR);
    assert_eq!(world.verify().await.silent().count(), 1);
    let next = world.process("b");
    world.begin(&next).await;
    let verified = world.verify().await;
    assert!(verified.is_unbroken() && verified.silent().count() == 0);
    let states: Vec<_> = verified.chains.iter().map(|chain| chain.state).collect();
    assert_eq!(states, [ChainLife::Died, ChainLife::Open]);
    let objects = world.objects(&world.tenant).await;
    remove(&world, &objects[2..3]);
    assert_eq!(codes(&world.verify().await), ["cut"]);
}

#[tokio::test]
async fn a_look_that_came_too_early_is_made_up_for_by_the_next() {
    let world = World::new().await;
    let killed = world.process("a");
    write(&killed, &world).await;
    drop(killed);
    let every = Duration::from_millis(5);
    let next = world.process_with("b", AuditOptions { checkpoint_every: every, ..world.options() });
    world.begin(&next).await;
    // What was seen before the chain was to be heard of does not tell where it ended.
    world.time.advance(HOUR);
    let began = clock::monotonic();
    loop {
        let verified = world.verify().await;
        assert!(verified.is_unbroken());
        if verified.chains[0].state == ChainLife::Died {
            break;
        }
        assert_eq!(verified.chains[0].state, ChainLife::Silent);
        assert!(clock::since(began) < LIMIT, "nobody looks again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_new_chain_sees_those_of_long_ago_and_all_that_came_since() {
    let world = World::new().await;
    let mut processes = Vec::new();
    for (node, later) in [("a", 0), ("b", DAY), ("c", 50 * DAY), ("d", 400 * DAY)] {
        world.time.advance(later);
        let process = world.process(node);
        write(&process, &world).await;
        process.end().await;
        processes.push(process);
    }
    let objects = world.objects(&world.tenant).await;
    assert_eq!(objects.len(), 16);
    for (index, of) in ["a", "b", "c"].iter().enumerate() {
        let copy = world.copy().await;
        remove(&copy, &objects[index * 4..][..4]);
        assert_eq!(codes(&copy.verify().await), ["gone"], "the chain of {of}");
    }
}
