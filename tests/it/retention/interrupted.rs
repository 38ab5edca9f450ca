//! Deletions that are interrupted at every request to the store, and gone on with by another node.

use bytes::Bytes;
use callseal::domain::ids::{RecordingId, WriterId};
use callseal::domain::retention::Reason;
use callseal::store::faulty::Fault;
use callseal::store::{Operation, Store, Tags, layout};
use futures_util::{StreamExt, stream};

use super::world::{DAY, Node, OPTIONS, World, by};

/// Stores that are worked on at the same time, because most of the time is waiting for the disk.
const AT_ONCE: usize = 8;
const OPERATIONS: [Operation; 17] = [
    Operation::PutNew,
    Operation::Get,
    Operation::Head,
    Operation::ListAfter,
    Operation::Delete,
    Operation::Tags,
    Operation::SetTags,
    Operation::Lock,
    Operation::BeginUpload,
    Operation::PutPart,
    Operation::Complete,
    Operation::Abort,
    Operation::Ping,
    Operation::Now,
    Operation::DeleteAll,
    Operation::Purge,
    Operation::AbortUploads,
];

/// A recording that was held, released and ordered to be deleted, with a segment that its manifest does not know, and
/// one that nothing is due of.
struct Prepared {
    world: World,
    due: RecordingId,
    kept: RecordingId,
    ordered_ms: u64,
}

impl Prepared {
    async fn new() -> Self {
        let world = World::new().await;
        let node = world.node(OPTIONS);
        let (due, kept) = (world.record(&node, 5).await, world.record(&node, 5).await);
        node.orders.hold(&world.tenant, due, &by()).await.unwrap();
        node.orders.release(&world.tenant, due, &by()).await.unwrap();
        node.orders.delete(&world.tenant, due, &by()).await.unwrap();
        let ordered_ms = world.clocks.now().0;
        world.clocks.advance(3 * DAY);
        let orphan = layout::segment(world.tenant.tag(), due, WriterId([9; 16]), 7);
        world.store.put_new(&orphan, Bytes::from_static(b"orphan"), &Tags::new()).await.unwrap();
        Self { world, due, kept, ordered_ms }
    }

    fn node(&self) -> Node {
        self.world.node(OPTIONS)
    }

    async fn assert_done(&self, when: &str) {
        let receipt = self.world.assert_deleted(self.due, when).await;
        assert_eq!(
            (receipt.reason, receipt.expires_ms),
            (Reason::Requested, Some(self.ordered_ms)),
            "{when}"
        );
        assert_eq!((receipt.objects, receipt.deleted_at_ms), (3, self.world.clocks.now().0), "{when}");
        self.world.assert_whole(self.kept, when).await;
        let audited = self.world.audited(&self.node()).await;
        let deletions = audited.iter().filter(|record| record.event.role == "node").count();
        assert!(deletions >= 1, "{when}: the deletion is in the audit log");
    }

    fn requests(&self) -> u64 {
        OPERATIONS.iter().map(|operation| self.world.faults.requests(*operation)).sum()
    }
}

/// Answers how many requests a sweep makes that nothing interrupts.
async fn requests_of_a_sweep() -> u32 {
    let prepared = Prepared::new().await;
    let before = prepared.requests();
    prepared.node().sweep_well().await;
    prepared.assert_done("not interrupted").await;
    u32::try_from(prepared.requests() - before).unwrap()
}

#[tokio::test]
async fn a_failure_at_any_request_is_made_good_by_the_next_sweep() {
    let requests = requests_of_a_sweep().await;
    assert!((15..80).contains(&requests), "{requests} requests");
    let cases = [Fault::Break, Fault::LoseAnswer].map(|fault| (1..=requests).map(move |at| (fault, at)));
    let cases = stream::iter(cases.into_iter().flatten());
    cases.for_each_concurrent(AT_ONCE, |(fault, request)| fail_at(fault, request)).await;
}

async fn fail_at(fault: Fault, request: u32) {
    let when = format!("{fault:?} at request {request}");
    let prepared = Prepared::new().await;
    prepared.world.faults.fail_every(None, request, fault);
    let node = prepared.node();
    // Whether it says so or not, the next sweep must come to the same end.
    let _interrupted = node.sweep().await.is_err();
    prepared.world.faults.heal();
    prepared.world.assert_whole(prepared.kept, &when).await;
    let report = node.sweep().await.unwrap();
    assert_eq!((report.failed, report.overdue), (0, 0), "{when}");
    prepared.assert_done(&when).await;
}

#[tokio::test]
async fn a_death_at_any_request_is_made_good_by_another_node() {
    let requests = requests_of_a_sweep().await;
    stream::iter(1..=requests).for_each_concurrent(AT_ONCE, die_at).await;
}

async fn die_at(request: u32) {
    let when = format!("died at request {request}");
    let prepared = Prepared::new().await;
    prepared.world.faults.fail_every(None, request, Fault::Hang);
    let node = prepared.node();
    let hangs = async {
        while prepared.world.faults.hanging() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        swept = node.sweep() => drop(swept),
        () = hangs => {}
    }
    drop(node);
    prepared.world.faults.heal();
    prepared.node().sweep_well().await;
    prepared.assert_done(&when).await;
}

#[tokio::test]
async fn a_hold_and_a_deletion_at_the_same_time_do_not_both_win() {
    for round in 0..24 {
        let prepared = Prepared::new().await;
        let (sweeping, holding) = (prepared.node(), prepared.node());
        let by = by();
        let hold = async {
            for _ in 0..round * 7 {
                tokio::task::yield_now().await;
            }
            holding.orders.hold(&prepared.world.tenant, prepared.due, &by).await
        };
        let (swept, held) = tokio::join!(sweeping.sweep(), hold);
        let report = swept.unwrap();
        let when = format!("round {round}: {report:?}, {held:?}");
        match held {
            Ok(placed) => {
                assert!(placed.order.hold && report.deleted == 0, "{when}");
                prepared.world.assert_whole(prepared.due, &when).await;
                assert_eq!(sweeping.sweep_well().await.held, 1);
            }
            Err(_) => {
                sweeping.sweep_well().await;
                prepared.world.assert_deleted(prepared.due, &when).await;
            }
        }
    }
}
