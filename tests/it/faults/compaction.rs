//! Compaction interrupted at every request to the store, and run again.

use std::time::Duration;

use callseal::domain::time::UnixMillis;
use callseal::store::faulty::{Fault, Faults, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{MIN_PART_BYTES, Store};
use callseal::upload::{CompactError, RetryPolicy, compact};

use super::sealed::{CHUNK, Disk, Sealed};

/// As the uploader tags them.
const ENDED: UnixMillis = UnixMillis(1_790_000_000_000);

/// Puts segments and manifest of a call into a new store.
async fn stored_parts(call: &Sealed) -> Disk {
    let disk = Disk::new().await;
    let tags = call.retention().tags(ENDED);
    for (index, (_, bytes)) in call.segments.iter().enumerate() {
        disk.folder.put_new(&call.segment_name(index), bytes.clone(), &tags).await.unwrap();
    }
    disk.folder.put_new(&call.manifest_name(), call.manifest.clone(), &tags).await.unwrap();
    disk
}

async fn run(call: &Sealed, store: &dyn Store) -> Result<(), CompactError> {
    let policy = RetryPolicy {
        base: Duration::from_millis(1),
        max: Duration::from_millis(2),
        try_timeout: Duration::from_secs(60),
    };
    compact(store, call.ids.tenant, call.ids.recording, &call.retention().tags(ENDED), policy).await
}

/// Runs until request `request`, at which the process dies: it is never made. Answers whether it came that far.
async fn run_until(call: &Sealed, store: &Faulty<Folder>, request: u32) -> bool {
    let faults: Faults = store.faults();
    faults.fail_every(None, request, Fault::Hang);
    let hangs = async {
        while faults.hanging() == 0 {
            tokio::task::yield_now().await;
        }
    };
    let died = tokio::select! {
        outcome = run(call, store) => {
            outcome.unwrap();
            false
        }
        () = hangs => true,
    };
    faults.heal();
    died
}

/// A part may be gone only when the final object is there and whole.
fn assert_nothing_lost(call: &Sealed, disk: &Disk, when: &str) {
    let parts = (0..call.segments.len()).map(|index| call.segment_name(index)).chain([call.manifest_name()]);
    let all_there = parts.into_iter().all(|name| disk.path(&name).exists());
    let is_final =
        || std::fs::read(disk.path(&call.final_name())).is_ok_and(|bytes| bytes == call.final_object());
    assert!(all_there || is_final(), "{when}: parts are gone and no final object replaces them");
}

/// Interrupts at request 1, 2, 3 and so on until there is none left; answers how many requests there are.
async fn interrupt_everywhere(call: &Sealed) -> u32 {
    for request in 1.. {
        let disk = stored_parts(call).await;
        let store = Faulty::new(disk.folder.clone());
        let when = format!("died at request {request}");
        if !run_until(call, &store, request).await {
            call.assert_stored(&disk.folder).await;
            return request - 1;
        }
        assert_nothing_lost(call, &disk, &when);
        // The next process does not get to the end either.
        run_until(call, &store, request.div_ceil(2)).await;
        assert_nothing_lost(call, &disk, &when);
        run(call, &store).await.unwrap_or_else(|error| panic!("{when}: {error:?}"));
        call.assert_stored(&disk.folder).await;
        run(call, &store).await.expect("once more does nothing");
        call.assert_stored(&disk.folder).await;
    }
    unreachable!("requests end")
}

#[tokio::test]
async fn wherever_compaction_stops_it_ends_in_the_same_object() {
    let call = Sealed::call(120, CHUNK, 8 * 1024);
    assert!(call.segments.len() >= 3);
    let requests = interrupt_everywhere(&call).await;
    println!("compaction of {} segments: {requests} requests, stopped at each", call.segments.len());
    assert!(requests as usize >= call.segments.len() + 6);
}

/// Parts go with one request, of which a crash may leave any half.
#[tokio::test]
async fn parts_that_were_deleted_by_half_are_deleted_by_the_next_run() {
    let call = Sealed::call(120, CHUNK, 8 * 1024);
    let segments: Vec<_> = (0..call.segments.len()).map(|index| call.segment_name(index)).collect();
    let (first, others) = segments.split_first().unwrap();
    let manifest = vec![call.manifest_name()];
    for gone in [vec![first.clone()], others.to_vec(), manifest.clone(), [others.to_vec(), manifest].concat()]
    {
        let disk = stored_parts(&call).await;
        let tags = call.retention().tags(ENDED);
        disk.folder.put_new(&call.final_name(), call.final_object().into(), &tags).await.unwrap();
        disk.folder.delete_all(&gone).await.unwrap();
        run(&call, &disk.folder).await.unwrap_or_else(|error| panic!("without {gone:?}: {error:?}"));
        call.assert_stored(&disk.folder).await;
    }
}

#[tokio::test]
async fn wherever_the_compaction_of_a_large_call_stops_it_ends_in_the_same_object() {
    let call = Sealed::call(140, 64 * 1024, 6 << 20);
    assert!(call.final_object().len() > MIN_PART_BYTES);
    let requests = interrupt_everywhere(&call).await;
    assert!(requests > 10, "{requests} requests, with parts of 5 MiB among them");
}

#[tokio::test]
async fn a_request_that_fails_now_and_then_is_made_again_by_itself() {
    // More segments than any run from the beginning gets through without a failure.
    let call = Sealed::call(1_000, CHUNK, 4 * 1024);
    assert!(call.segments.len() > 30);
    let large = Sealed::call(140, 64 * 1024, 6 << 20);
    for fault in [Fault::Busy { retry_after: None }, Fault::Break, Fault::LoseAnswer] {
        for call in [&call, &large] {
            let disk = stored_parts(call).await;
            let store = Faulty::new(disk.folder.clone());
            store.faults().fail_every(None, 3, fault);
            run(call, &store).await.unwrap();
            call.assert_stored(&disk.folder).await;
        }
    }
    let disk = stored_parts(&call).await;
    let store = Faulty::new(disk.folder.clone());
    store.faults().fail_every(None, 1, Fault::Break);
    let error = run(&call, &store).await.unwrap_err();
    assert!(error.is_retryable() && disk.path(&call.segment_name(0)).exists(), "{error:?}");
}

#[tokio::test]
async fn another_object_under_the_final_name_is_neither_overwritten_nor_trusted() {
    let call = Sealed::call(120, CHUNK, 8 * 1024);
    let mut foreign = call.final_object();
    foreign[500] ^= 1;
    for foreign in [foreign, b"short".to_vec()] {
        let disk = stored_parts(&call).await;
        let tags = call.retention().tags(ENDED);
        disk.folder.put_new(&call.final_name(), foreign.clone().into(), &tags).await.unwrap();
        assert!(matches!(run(&call, &disk.folder).await, Err(CompactError::Differs)));
        assert_eq!(disk.folder.get(&call.final_name(), None).await.unwrap().bytes, foreign);
        assert!(disk.path(&call.segment_name(0)).exists() && disk.path(&call.manifest_name()).exists());
        // Nor does it stand in for a segment that is gone.
        std::fs::remove_file(disk.path(&call.segment_name(1))).unwrap();
        assert!(!run(&call, &disk.folder).await.unwrap_err().is_retryable());
        assert!(disk.path(&call.segment_name(0)).exists() && disk.path(&call.manifest_name()).exists());
        std::fs::remove_file(disk.path(&call.final_name())).unwrap();
        assert!(matches!(run(&call, &disk.folder).await, Err(CompactError::Missing(_))));
    }
}
