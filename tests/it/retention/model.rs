//! Random recordings, orders, clocks, failures and sweeps of two nodes, against a model of what must be there.

use callseal::control::retention::RetentionError;
use callseal::control::sweep::SweepError;
use callseal::domain::ids::RecordingId;
use callseal::store::faulty::Fault;
use proptest::collection::vec;
use proptest::prelude::*;

use super::world::{DAY, HOUR, Node, OPTIONS, World, by};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ordered {
    Hold,
    Release,
    Delete,
}

#[derive(Debug, Clone)]
enum Action {
    Record { days: u32 },
    Order(usize, Ordered),
    Advance { hours: u64 },
    GoBack { hours: u64 },
    SweepSkewed,
    SweepFailing { node: usize, request: u32, loses_answer: bool },
    Sweep(usize),
    SweepTogether,
}

fn action() -> impl Strategy<Value = Action> {
    let ordered = prop_oneof![Just(Ordered::Hold), Just(Ordered::Release), Just(Ordered::Delete)];
    prop_oneof![
        4 => (1..5_u32).prop_map(|days| Action::Record { days }),
        6 => (0..6_usize, ordered).prop_map(|(index, ordered)| Action::Order(index, ordered)),
        4 => (1..60_u64).prop_map(|hours| Action::Advance { hours }),
        1 => (1..60_u64).prop_map(|hours| Action::GoBack { hours }),
        1 => Just(Action::SweepSkewed),
        4 => (0..2_usize, 2..60_u32, any::<bool>())
            .prop_map(|(node, request, loses_answer)| Action::SweepFailing { node, request, loses_answer }),
        3 => (0..2_usize).prop_map(Action::Sweep),
        1 => Just(Action::SweepTogether),
    ]
}

/// A recording as its owner knows it.
#[derive(Debug)]
struct Known {
    recording: RecordingId,
    expires_ms: u64,
    held: bool,
    /// A sweep that failed may have begun to delete it.
    may_be_begun: bool,
    deleted: bool,
}

impl Known {
    fn is_due(&self, now: u64) -> bool {
        !self.held && self.expires_ms <= now
    }
}

struct Run {
    world: World,
    nodes: [Node; 2],
    known: Vec<Known>,
    /// The latest that a node saw on the store's clock.
    seen: [u64; 2],
}

impl Run {
    async fn new() -> Self {
        let world = World::new().await;
        let nodes = [world.node(OPTIONS), world.node(OPTIONS)];
        Self { world, nodes, known: Vec::new(), seen: [0; 2] }
    }

    async fn act(&mut self, action: &Action) {
        let now = self.world.clocks.now().0;
        match action {
            Action::Record { days } => {
                let recording = self.world.record(&self.nodes[0], *days).await;
                let expires_ms = now + u64::from(*days) * DAY;
                self.known.push(Known {
                    recording,
                    expires_ms,
                    held: false,
                    may_be_begun: false,
                    deleted: false,
                });
            }
            Action::Order(index, ordered) => self.order(*index, *ordered, now).await,
            Action::Advance { hours } => self.world.clocks.advance(hours * HOUR),
            Action::GoBack { hours } => self.world.clocks.go_back(hours * HOUR),
            Action::SweepSkewed => {
                self.world.clocks.set_ahead(600_000);
                let refused = self.nodes[0].sweep().await;
                assert!(matches!(refused, Err(SweepError::Clock(_))));
                self.world.clocks.set_ahead(0);
            }
            Action::SweepFailing { node, request, loses_answer } => {
                let fault = if *loses_answer { Fault::LoseAnswer } else { Fault::Break };
                self.world.faults.fail_every(None, *request, fault);
                let _swept = self.nodes[*node].sweep().await.is_ok();
                self.world.faults.heal();
                if self.seen[*node] <= now + 10_000 {
                    self.seen[*node] = self.seen[*node].max(now);
                    self.known.iter_mut().for_each(|known| known.may_be_begun |= known.is_due(now));
                }
            }
            Action::Sweep(node) => {
                let swept = self.nodes[*node].sweep().await;
                self.judge_sweep(*node, &swept, now);
            }
            Action::SweepTogether => {
                let (first, second) = tokio::join!(self.nodes[0].sweep(), self.nodes[1].sweep());
                self.judge_sweep(0, &first, now);
                self.judge_sweep(1, &second, now);
            }
        }
    }

    async fn order(&mut self, index: usize, ordered: Ordered, now: u64) {
        let Some(known) = self.known.get_mut(index) else { return };
        let (orders, tenant, recording) = (&self.nodes[1].orders, &self.world.tenant, known.recording);
        let placed = match ordered {
            Ordered::Hold => orders.hold(tenant, recording, &by()).await,
            Ordered::Release => orders.release(tenant, recording, &by()).await,
            Ordered::Delete => orders.delete(tenant, recording, &by()).await,
        };
        match placed {
            Ok(_) => {
                assert!(!known.deleted);
                match ordered {
                    Ordered::Hold => known.held = true,
                    Ordered::Release => known.held = false,
                    Ordered::Delete => known.expires_ms = known.expires_ms.min(now),
                }
                // Whoever gives an order learns whether a deletion has begun.
                known.may_be_begun = false;
            }
            Err(RetentionError::Refused(_)) if known.held => assert_eq!(ordered, Ordered::Delete),
            Err(RetentionError::Refused(_) | RetentionError::NotFound | RetentionError::Deleted(_)) => {
                assert!(known.deleted || known.may_be_begun, "{ordered:?} {known:?}");
            }
            Err(error) => panic!("{ordered:?} {known:?}: {error:?}"),
        }
    }

    fn judge_sweep<T: std::fmt::Debug>(&mut self, node: usize, swept: &Result<T, SweepError>, now: u64) {
        if self.seen[node] > now + 10_000 {
            assert!(matches!(swept, Err(SweepError::Clock(_))), "{swept:?}");
            return;
        }
        assert!(swept.is_ok(), "{swept:?}");
        self.seen[node] = self.seen[node].max(now);
        for known in &mut self.known {
            known.deleted |= known.is_due(now);
        }
    }

    async fn check(&self, after: &str) {
        for known in &self.known {
            if known.deleted {
                self.world.assert_deleted(known.recording, after).await;
            } else if !known.may_be_begun {
                self.world.assert_whole(known.recording, after).await;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_must_be_gone_is_gone_and_everything_else_is_there(actions in vec(action(), 1..36)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new().await;
            for (number, action) in actions.iter().enumerate() {
                run.act(action).await;
                run.check(&format!("after {number}: {action:?}")).await;
            }
            // In the end everything that may go has gone.
            run.world.clocks.advance(200 * DAY);
            run.act(&Action::Sweep(0)).await;
            run.check("in the end").await;
        });
    }
}
