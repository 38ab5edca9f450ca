//! Who puts next: tenants take turns, and what catches up leaves room for what is live. Nothing here waits.

use std::collections::{HashMap, VecDeque};

use crate::domain::ids::TenantTag;

/// How soon something wants to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// It was sealed just now.
    Live,
    /// It waited in the journal, or is work on what is stored already: it can wait, and there may be a lot of it.
    CatchUp,
}

/// The permits of all puts and those who wait for one.
///
/// Each permit goes to the next tenant that waits, whatever number of recordings it has. At most half of the permits, but
/// at least one, are for catching up; where both kinds wait they take turns, so that neither starves.
#[derive(Debug)]
pub(super) struct Turns<W> {
    free: usize,
    free_for_catch_up: usize,
    live: Ring<W>,
    catch_up: Ring<W>,
    last: Urgency,
}

/// Those who wait, by tenant.
#[derive(Debug)]
struct Ring<W> {
    /// The tenants with somebody waiting, the next first.
    order: VecDeque<TenantTag>,
    waiting: HashMap<TenantTag, VecDeque<W>>,
}

impl<W> Turns<W> {
    pub(super) fn new(permits: usize) -> Self {
        let permits = permits.max(1);
        Self {
            free: permits,
            free_for_catch_up: (permits / 2).max(1),
            live: Ring::new(),
            catch_up: Ring::new(),
            last: Urgency::CatchUp,
        }
    }

    pub(super) fn wait(&mut self, tenant: TenantTag, urgency: Urgency, waiter: W) {
        self.ring(urgency).push(tenant, waiter);
    }

    /// Takes a permit for whoever is next; nothing if there is no permit or nobody that may have it.
    pub(super) fn next(&mut self) -> Option<(Urgency, W)> {
        if self.free == 0 {
            return None;
        }
        let may_catch_up = self.free_for_catch_up > 0 && !self.catch_up.is_empty();
        let urgency = match (self.live.is_empty(), may_catch_up, self.last) {
            (true, false, _) => return None,
            (true, true, _) | (false, true, Urgency::Live) => Urgency::CatchUp,
            (false, false, _) | (false, true, Urgency::CatchUp) => Urgency::Live,
        };
        let waiter = self.ring(urgency).pop()?;
        self.last = urgency;
        self.free -= 1;
        if urgency == Urgency::CatchUp {
            self.free_for_catch_up -= 1;
        }
        Some((urgency, waiter))
    }

    /// Gives a permit back.
    pub(super) fn release(&mut self, urgency: Urgency) {
        self.free += 1;
        if urgency == Urgency::CatchUp {
            self.free_for_catch_up += 1;
        }
    }

    fn ring(&mut self, urgency: Urgency) -> &mut Ring<W> {
        match urgency {
            Urgency::Live => &mut self.live,
            Urgency::CatchUp => &mut self.catch_up,
        }
    }
}

impl<W> Ring<W> {
    fn new() -> Self {
        Self { order: VecDeque::new(), waiting: HashMap::new() }
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn push(&mut self, tenant: TenantTag, waiter: W) {
        let waiting = self.waiting.entry(tenant).or_default();
        if waiting.is_empty() {
            self.order.push_back(tenant);
        }
        waiting.push_back(waiter);
    }

    fn pop(&mut self) -> Option<W> {
        let tenant = self.order.pop_front()?;
        let waiting = self.waiting.get_mut(&tenant)?;
        let waiter = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.order.push_back(tenant);
        }
        waiter
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn tenant(number: u8) -> TenantTag {
        TenantTag([number; 16])
    }

    #[test]
    fn a_tenant_with_ten_times_the_recordings_gets_its_share() {
        let mut turns = Turns::new(1);
        (0..100).for_each(|_| turns.wait(tenant(1), Urgency::Live, 1));
        (0..10).for_each(|_| turns.wait(tenant(2), Urgency::Live, 2));
        let mut first = Vec::new();
        for _ in 0..20 {
            let (urgency, who) = turns.next().unwrap();
            assert!(turns.next().is_none(), "one permit");
            turns.release(urgency);
            first.push(who);
        }
        assert_eq!(first.iter().filter(|who| **who == 2).count(), 10);
    }

    #[test]
    fn catching_up_takes_half_of_the_permits() {
        let mut turns = Turns::new(8);
        (0..20).for_each(|n| turns.wait(tenant(1), Urgency::CatchUp, n));
        assert_eq!(std::iter::from_fn(|| turns.next()).count(), 4);
        turns.wait(tenant(1), Urgency::Live, 99);
        assert_eq!(turns.next(), Some((Urgency::Live, 99)));
    }

    #[test]
    fn with_one_permit_the_two_kinds_take_turns() {
        let mut turns = Turns::new(1);
        for n in 0..4 {
            turns.wait(tenant(1), Urgency::CatchUp, n);
            turns.wait(tenant(1), Urgency::Live, n);
        }
        let mut kinds = Vec::new();
        while let Some((urgency, _)) = turns.next() {
            turns.release(urgency);
            kinds.push(urgency);
        }
        assert_eq!(kinds, [Urgency::Live, Urgency::CatchUp].repeat(4));
    }

    proptest! {
        /// Against a model: everybody is served once, in order within a tenant and kind, no tenant twice while another
        /// waits, and never more at once than there are permits.
        #[test]
        fn everybody_is_served_in_turn(
            permits in 1..6_usize,
            steps in vec((0..3_u8, 0..4_u8, any::<bool>()), 1..200),
        ) {
            let mut turns = Turns::new(permits);
            let mut waiting: Vec<(u8, Urgency, usize)> = Vec::new();
            let mut held: Vec<Urgency> = Vec::new();
            let mut served_since: HashMap<(u8, u8), usize> = HashMap::new();
            let kind = |urgency: Urgency| u8::from(urgency == Urgency::Live);
            for (number, (step, who, is_live)) in steps.into_iter().enumerate() {
                let urgency = if is_live { Urgency::Live } else { Urgency::CatchUp };
                match step {
                    0 => {
                        turns.wait(tenant(who), urgency, (who, number));
                        waiting.push((who, urgency, number));
                    }
                    1 => if let Some(urgency) = held.pop() { turns.release(urgency) },
                    _ => {
                        let Some((urgency, (who, number))) = turns.next() else {
                            let catching_up = held.iter().filter(|held| **held == Urgency::CatchUp).count();
                            let may_catch_up = catching_up < (permits / 2).max(1);
                            let is_due = |(_, urgency, _): &(u8, Urgency, usize)| *urgency == Urgency::Live || may_catch_up;
                            prop_assert!(held.len() == permits || !waiting.iter().any(is_due));
                            continue;
                        };
                        let place = waiting.iter().position(|next| (next.0, next.1) == (who, urgency));
                        let place = place.expect("only who waits is served");
                        prop_assert_eq!(waiting.remove(place).2, number, "in order");
                        held.push(urgency);
                        let catching_up = held.iter().filter(|held| **held == Urgency::CatchUp).count();
                        prop_assert!(held.len() <= permits && catching_up <= (permits / 2).max(1));
                        // Whoever of this kind waits now is not passed by more than once by each other tenant.
                        for other in 0..4_u8 {
                            let waits = waiting.iter().any(|next| (next.0, next.1) == (other, urgency));
                            let passed = served_since.entry((other, kind(urgency))).or_default();
                            *passed = if other == who || !waits { 0 } else { *passed + 1 };
                            prop_assert!(*passed <= 3, "{other} was passed by {passed} times");
                        }
                    }
                }
            }
        }
    }
}
