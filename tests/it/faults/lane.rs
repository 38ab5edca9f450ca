//! The way of one recording to a store that fails: what gets there is what was sealed, or nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use callseal::store::faulty::{Fault, Faults, Faulty};
use callseal::store::slow::Slow;
use callseal::store::{Operation, PutOutcome, Store, Tags};
use callseal::upload::Uploader;

use super::sealed::{CHUNK, Disk, Sealed};

/// Far more than any of these calls needs.
const BUDGET: u64 = 64 << 20;
/// Far more than a lane needs.
const LIMIT: Duration = Duration::from_secs(20);

/// A call of 10 s in segments of about 8 KiB.
fn call() -> Sealed {
    Sealed::call(500, CHUNK, 8 * 1024)
}

/// Sends a call to a store that fails as `plan` says; answers the faults for their counts.
async fn upload(plan: impl FnOnce(&Faults)) -> Faults {
    let (disk, call) = (Disk::new().await, call());
    let store = Faulty::new(disk.folder.clone());
    let faults = store.faults();
    let uploader = disk.uploader(Arc::new(store), BUDGET);
    plan(&faults);
    let lane = call.lane(&uploader);
    call.hand_segments(&lane);
    call.finish(lane);
    assert_eq!(uploader.drained(LIMIT).await, 0);
    faults.heal();
    call.assert_stored(&disk.folder).await;
    faults
}

#[tokio::test]
async fn a_store_that_fails_gets_the_same_bytes_in_the_end() {
    let busy = Fault::Busy { retry_after: Some(Duration::from_millis(1)) };
    for fault in [busy, Fault::Break, Fault::LoseAnswer, Fault::Deny, Fault::Full] {
        let puts = upload(|_| ()).await.requests(Operation::PutNew);
        let tried = upload(|faults| faults.fail_next(Operation::PutNew, 7, fault)).await;
        let again = tried.requests(Operation::PutNew) - puts;
        assert_eq!(again, 7, "{fault:?}: each failed put is tried again once");
        upload(|faults| faults.fail_every(Operation::PutNew, 2, fault)).await;
        if fault != Fault::Deny {
            // Denied requests are not made again by themselves: somebody must act first.
            upload(|faults| faults.fail_every(Operation::Get, 3, fault)).await;
        }
        upload(|faults| faults.fail_next(Operation::Get, 7, fault)).await;
        upload(|faults| faults.fail_next(Operation::DeleteAll, 3, fault)).await;
        upload(|faults| faults.fail_next(Operation::ListAfter, 3, fault)).await;
    }
}

#[tokio::test]
async fn a_put_that_hangs_is_given_up_and_made_again() {
    let faults = upload(|faults| faults.fail_next(Operation::PutNew, 3, Fault::Hang)).await;
    assert_eq!(faults.hanging(), 0);
}

#[tokio::test]
async fn a_store_that_is_down_and_slow_afterwards_loses_nothing() {
    let (disk, call) = (Disk::new().await, call());
    let store = Faulty::new(Slow::new(disk.folder.clone(), Duration::from_millis(3)));
    let faults = store.faults();
    faults.fail_every(None, 1, Fault::Break);
    let uploader = disk.uploader(Arc::new(store), BUDGET);
    let lane = call.lane(&uploader);
    call.hand_segments(&lane);
    call.finish(lane);
    assert_eq!(uploader.drained(Duration::from_millis(200)).await, 1, "it waits for the store");
    assert!(faults.requests(Operation::PutNew) > 3, "and tries again meanwhile");
    faults.heal();
    assert_eq!(uploader.drained(LIMIT).await, 0);
    call.assert_stored(&disk.folder).await;
}

/// What waited was counted out again.
fn assert_nothing_waits(uploader: &Uploader) {
    assert_eq!((uploader.memory_bytes(), uploader.spilled_bytes()), (0, 0), "nothing waits any more");
}

#[tokio::test]
async fn other_bytes_under_a_name_are_never_overwritten() {
    let (disk, call) = (Disk::new().await, call());
    let (taken, foreign) = (call.segment_name(2), Bytes::from_static(b"somebody else's"));
    let put = disk.folder.put_new(&taken, foreign.clone(), &Tags::new()).await.unwrap();
    assert_eq!(put, PutOutcome::Created);
    let uploader = disk.uploader(Arc::new(disk.folder.clone()), 1);
    let lane = call.lane(&uploader);
    call.hand_segments(&lane);
    assert!(uploader.memory_bytes() > 0);
    call.finish(lane);
    assert_eq!(uploader.drained(LIMIT).await, 0, "the lane gives up");
    assert_eq!(disk.folder.get(&taken, None).await.unwrap().bytes, foreign);
    assert!(disk.folder.head(&call.final_name()).await.is_err(), "no final object of a broken recording");
    assert!(disk.folder.head(&call.segment_name(0)).await.is_ok(), "what is stored stays");
    assert_nothing_waits(&uploader);
}

#[tokio::test]
async fn a_damaged_segment_ends_its_lane_and_holds_up_no_other() {
    let (disk, broken) = (Disk::new().await, call());
    let uploader = disk.uploader(Arc::new(disk.folder.clone()), BUDGET);
    // More of them than puts at once.
    for _ in 0..6 {
        let broken = call();
        let lane = broken.lane(&uploader);
        broken.hand_segments(&lane);
        let last = broken.segment_name(broken.segments.len() - 1);
        crate::support::eventually("the last segment", || disk.path(&last).exists().then_some(())).await;
        let path = disk.path(&broken.segment_name(1));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[300] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        broken.finish(lane);
        crate::support::eventually("the manifest", || {
            disk.path(&broken.manifest_name()).exists().then_some(())
        })
        .await;
        assert_eq!(uploader.drained(LIMIT).await, 0, "the lane gives up");
        assert!(path.exists() && !disk.path(&broken.final_name()).exists(), "nothing is deleted");
    }
    let lane = broken.lane(&uploader);
    broken.hand_segments(&lane);
    broken.finish(lane);
    assert_eq!(uploader.drained(LIMIT).await, 0);
    broken.assert_stored(&disk.folder).await;
}

/// Puts a file where the folder of a recording's segments should be, so that the store refuses its objects.
fn block(disk: &Disk, call: &Sealed) -> std::path::PathBuf {
    let folder = disk.path(&call.segment_name(0)).parent().unwrap().to_owned();
    std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    folder
}

#[tokio::test]
async fn names_that_fail_for_good_hold_up_nobody() {
    let disk = Disk::new().await;
    let uploader = disk.uploader(Arc::new(disk.folder.clone()), BUDGET);
    // More of them than puts at once.
    let stuck: Vec<_> = (0..8).map(|_| call()).collect();
    let blocks: Vec<_> = stuck.iter().map(|call| block(&disk, call)).collect();
    for call in &stuck {
        let lane = call.lane(&uploader);
        call.hand_segments(&lane);
        call.finish(lane);
    }
    let free = call();
    let lane = free.lane(&uploader);
    free.hand_segments(&lane);
    free.finish(lane);
    crate::support::eventually("the other recording", || {
        disk.path(&free.final_name()).exists().then_some(())
    })
    .await;
    assert!(blocks.iter().all(|block| block.is_file()), "the others wait");
    blocks.iter().for_each(|block| std::fs::remove_file(block).unwrap());
    assert_eq!(uploader.drained(LIMIT).await, 0, "and lose nothing");
    for call in &stuck {
        call.assert_stored(&disk.folder).await;
    }
}
