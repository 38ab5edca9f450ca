//! Stores that fail: nothing is lost that can be kept, and what is lost is counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use callseal::domain::cmr::{
    Dek, EndState, Expected, ManifestWriter, Row, SegmentIds, SegmentWriter, TrackSpan,
};
use callseal::domain::ids::{RecordingId, TenantId, TrackId, WriterId};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use callseal::store::faulty::{Fault, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{Store, StoreError, Tags, layout};
use callseal::upload::{PutError, RetryPolicy, compact, put_verified};

use crate::support::{Setup, TENANT};

const QUICK: RetryPolicy = RetryPolicy {
    base: Duration::from_millis(1),
    max: Duration::from_millis(5),
    try_timeout: Duration::from_millis(200),
};

/// A recording of three segments and its manifest, as a recorder leaves it in the store.
struct Recorded {
    ids: Expected,
    objects: Vec<(callseal::store::ObjectName, Bytes)>,
    whole: Vec<u8>,
}

fn recorded() -> Recorded {
    let dek = Dek::filled_by::<()>(|key| {
        key.fill(7);
        Ok(())
    })
    .unwrap();
    let tenant = TENANT.parse::<TenantId>().unwrap().tag();
    let recording = RecordingId::new(1_760_000_000_000, &[5; 10]);
    let ids = Expected { tenant, recording, key: dek.key_id(tenant, recording) };
    let writer = WriterId([9; 16]);
    let (mut rows, mut spans, mut objects, mut whole, mut prev): (Vec<Row>, Vec<_>, Vec<_>, Vec<u8>, _) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), [0; 16]);
    for seq in 0..3u8 {
        let place = SegmentIds { ids, writer, seq: seq.into(), created_ms: 0, prev };
        let metadata = (seq == 0).then_some(&b"\xa0"[..]);
        let mut segment = SegmentWriter::start(&dek, place, &[seq + 1; 32], b"\x80", metadata, 0).unwrap();
        segment.event(TrackId::CALLER, 0, b"\xa0").unwrap();
        let done = segment.finish(callseal::domain::cmr::EndReason::Rotate).unwrap();
        prev = done.commitment_half;
        objects
            .push((layout::segment(tenant, recording, writer, seq.into()), Bytes::from(done.bytes.clone())));
        whole.extend_from_slice(&done.bytes);
        rows.push(done.row);
        spans.push(Vec::<TrackSpan>::new());
    }
    let manifest = ManifestWriter {
        ids,
        writer,
        revision: 0,
        created_ms: 0,
        rows: &rows,
        spans: &spans,
        metadata: b"\xa0",
        state: EndState::Complete,
        end: b"\xa0",
    };
    let manifest = manifest.seal(&dek, &[8; 32]).unwrap();
    objects.push((layout::manifest(tenant, recording, 0), Bytes::from(manifest.clone())));
    whole.extend_from_slice(&manifest);
    Recorded { ids, objects, whole }
}

#[tokio::test]
async fn compaction_interrupted_at_any_request_ends_in_the_same_final_object() {
    let recorded = recorded();
    let (tenant, recording) = (recorded.ids.tenant, recorded.ids.recording);
    for fault in [Fault::Break, Fault::LoseAnswer] {
        // More requests than a compaction makes, so that the last round meets no fault.
        for failing in 1..=40u32 {
            let dir = tempfile::tempdir().unwrap();
            let store = Faulty::new(Folder::open(dir.path()).await.unwrap());
            for (name, bytes) in &recorded.objects {
                store.put_new(name, bytes.clone(), &Tags::new()).await.unwrap();
            }
            let faults = store.faults();
            faults.fail_every(None, failing, fault);
            let first = compact(&store, tenant, recording, &Tags::new()).await;
            faults.heal();
            let name = layout::final_object(tenant, recording);
            if first.is_err() {
                let parts =
                    store.list_after(&layout::segments_prefix(tenant, recording), None, 10).await.unwrap();
                let is_final = store.head(&name).await.is_ok();
                assert!(is_final || parts.len() == 3, "nothing is deleted before the final object is there");
            }
            compact(&store, tenant, recording, &Tags::new()).await.unwrap();
            let done = store.get(&name, None).await.unwrap().bytes;
            assert_eq!(done[..done.len() - 32], recorded.whole[..], "{fault:?} at request {failing}");
            let left =
                store.list_after(&layout::recording_prefix(tenant, recording), None, 10).await.unwrap();
            assert_eq!(left.len(), 1, "only the final object is left");
        }
    }
}

#[tokio::test]
async fn a_put_is_tried_until_it_is_there_and_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Faulty::new(Folder::open(dir.path()).await.unwrap()));
    let (name, body) = (callseal::store::ObjectName::new("r/a").unwrap(), Bytes::from_static(b"sealed"));
    let faults = store.faults();
    faults.fail_next(None, 3, Fault::Busy { retry_after: None });
    faults.fail_next(None, 2, Fault::Break);
    put_verified(&*store, &name, &body, &Tags::new(), QUICK).await.unwrap();
    let lost = callseal::store::ObjectName::new("r/b").unwrap();
    faults.fail_next(None, 1, Fault::LoseAnswer);
    put_verified(&*store, &lost, &body, &Tags::new(), QUICK).await.unwrap();
    let hung = callseal::store::ObjectName::new("r/c").unwrap();
    faults.fail_next(None, 1, Fault::Hang);
    put_verified(&*store, &hung, &body, &Tags::new(), QUICK).await.unwrap();
    for name in [&name, &lost, &hung] {
        assert_eq!(store.get(name, None).await.unwrap().bytes, body);
    }
    let other = Bytes::from_static(b"something else");
    let taken = put_verified(&*store, &name, &other, &Tags::new(), QUICK).await;
    assert!(matches!(taken, Err(PutError::Taken(_))));
    assert_eq!(store.get(&name, None).await.unwrap().bytes, body);
    assert!(matches!(
        store.get(&callseal::store::ObjectName::new("r/d").unwrap(), None).await,
        Err(StoreError::NotFound)
    ));
}

#[tokio::test]
async fn a_store_that_takes_nothing_costs_counted_gaps_and_no_call() {
    let (home, mut server) = Setup::new()
        .option("upload", "budget_bytes", "1048576")
        .option("upload", "retry_max_ms", "200")
        .option("segments", "max_bytes", "65536")
        .serve();
    for allowed in ["store did not take", "readiness", "not stored", "compaction"] {
        server.allow(allowed);
    }
    // Something stands where recordings belong, so that every put fails.
    let (blocked, moved) = (home.data().join("store/r"), home.data().join("moved"));
    if blocked.exists() {
        std::fs::rename(&blocked, &moved).unwrap();
    }
    std::fs::write(&blocked, "in the way").unwrap();
    // About 1.9 MB of sealed audio: nearly twice the budget.
    let audio: Vec<u8> = DEMO_CALLER.iter().cycle().take(1_600_000).copied().collect();
    let plan = server.plan("acme-dental/reception", 1, Track::whole(audio.clone()));
    let report = TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    assert_eq!(report.close_code, Some(1000), "the call is not harmed");
    let refused = server.plan("acme-dental/reception", 2, Track::whole(DEMO_CALLER));
    let refused = TwilioCall::connect(refused, &server.tls()).await.err().unwrap();
    assert!(refused.to_string().contains("503"), "{refused}");
    assert_eq!(server.ops_get("/readyz").status, 503);
    std::fs::remove_file(&blocked).unwrap();
    let stored = server.wait_log("recording stored", 1).await;
    let shown = home.finished(TENANT, stored.field("recording")).await;
    assert_eq!(shown["state"], "partial");
    let gaps: Vec<(u64, u64)> = shown["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| {
            assert_eq!(gap["reason"], 2, "dropped because our own bound was reached");
            (gap["pts"].as_u64().unwrap(), gap["samples"].as_u64().unwrap())
        })
        .collect();
    let lost: u64 = gaps.iter().map(|gap| gap.1).sum();
    let kept = shown["counts"]["audio_bytes"].as_u64().unwrap();
    assert!(lost > 0, "the budget was used up");
    assert_eq!(lost + kept, audio.len() as u64, "every sample is stored or declared lost");
    assert_eq!(server.metric("audio_lost_bytes_total{reason=\"overload\"}"), lost as f64);
    // What is played is what was said, but for the gaps.
    let mut wanted = audio;
    for (pts, samples) in gaps {
        let first = usize::try_from(pts).unwrap() - 102 * 8;
        wanted[first..first + usize::try_from(samples).unwrap()].fill(0xff);
    }
    let heard = home.open_ulaw(TENANT, stored.field("recording"), "caller");
    assert!(heard == wanted[..heard.len()] && wanted[heard.len()..].iter().all(|sample| *sample == 0xff));
    server.stop().await;
}
