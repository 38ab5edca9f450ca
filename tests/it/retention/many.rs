//! How long a sweep of many recordings takes, and that one that is killed is gone on with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use callseal::clock;
use callseal::control::sweep::SweepOptions;
use callseal::store::folder::Folder;
use futures_util::{StreamExt, stream};

use super::world::{DAY, OPTIONS, World};

/// `CALLSEAL_RECORDINGS=100000 cargo nextest run --release --run-ignored only -E 'test(b15_many_due)' --no-capture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: makes and sweeps a hundred thousand recordings in memory; run it alone"]
async fn b15_many_due_recordings_are_swept_and_a_killed_sweep_is_gone_on_with() {
    let wanted: usize = std::env::var_os("CALLSEAL_RECORDINGS")
        .map_or(100_000, |text| text.to_str().unwrap().parse().unwrap());
    let place =
        std::env::var_os("CALLSEAL_RECORDINGS_IN").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::TempDir::new_in(place).unwrap();
    let world = World::of(Arc::new(Folder::open(&dir.path().join("store")).await.unwrap()));
    let options = SweepOptions { max_deletions: usize::MAX, max_share_percent: 100, ..OPTIONS };
    let began = clock::monotonic();
    let node = world.node(options);
    let making = stream::iter(0..wanted).map(|_| world.record(&node, 1)).buffer_unordered(8);
    assert_eq!(making.count().await, wanted);
    report("made", wanted, began.elapsed());
    world.clocks.advance(DAY);

    // Killed when half is gone.
    let killed = world.node(options);
    let began = clock::monotonic();
    let half = async {
        while entries(&world).await > wanted / 2 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    tokio::select! {
        swept = killed.sweep() => panic!("it came to its end: {swept:?}"),
        () = half => {}
    }
    let left = entries(&world).await;
    report("swept before it was killed", wanted - left, began.elapsed());
    drop(killed);

    let began = clock::monotonic();
    let swept = world.node(options).sweep_well().await;
    let deleted = usize::try_from(swept.deleted).unwrap();
    assert!(deleted + 8 >= left, "{swept:?}");
    report("swept by the next one", deleted, began.elapsed());
    let began = clock::monotonic();
    let nothing = world.node(options).sweep_well().await;
    assert_eq!((nothing.due, nothing.deleted, entries(&world).await), (0, 0, 0), "{nothing:?}");
    println!("a sweep that finds nothing: {:.1} s", began.elapsed().as_secs_f64());
    let receipts = world.store.list_after("d/", None, usize::MAX).await.unwrap();
    let receipts = receipts.iter().filter(|object| !object.name.as_str().contains("/ledger/")).count();
    assert_eq!(receipts, wanted, "each has one receipt");
    let left = world.store.list_after("r/", None, 1).await.unwrap();
    assert!(left.is_empty(), "nothing else is left: {left:?}");
}

/// Recordings that the expiry index leads to.
async fn entries(world: &World) -> usize {
    world.store.list_after("e/", None, usize::MAX).await.unwrap().len()
}

fn report(what: &str, recordings: usize, took: Duration) {
    let secs = took.as_secs_f64();
    println!("{what}: {recordings} recordings in {secs:.1} s, {:.0} a second", recordings as f64 / secs);
}
