//! How long a recording is kept: the date sealed in its manifest, the orders that change it, and what follows from both.
//!
//! An order is a small object in clear, numbered, created once and never changed; the highest revision counts, so each
//! carries over what still holds of the one before. It names no person and no reason: these are in the audit log. An
//! order can shorten the time and hold a recording; it lengthens the time only by a date that is proven with the recording's
//! own key (`domain::kept_until`).
//!
//! The order that begins a deletion is the last of its recording. Because each revision is created once, an order to hold
//! and the begin of a deletion cannot both win: whoever comes second sees the other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{RecordingId, TenantTag};
use super::kept_until::KeptUntil;
use super::time::UnixMillis;

/// How long after its beginning somebody may still be busy with a recording: a stream lasts at most 24 hours, and
/// whoever finishes it after a crash gets as long again.
pub const BUSY: Duration = Duration::from_secs(48 * 3600);
/// How far our clock and the store's may be apart; S3 allows requests 15 minutes, a machine with NTP needs less than one
/// second.
pub const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(300);
/// How far the store's clock may go back between two sweeps: its machines need not agree to the second.
pub const MAX_CLOCK_STEP_BACK: Duration = Duration::from_secs(10);
/// So many recordings may be deleted in one sweep whatever their share: a small store may expire as a whole.
pub const UNCHECKED_DELETIONS: u64 = 100;

/// Why a recording is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// Its time is over.
    Expired,
    /// Somebody ordered it.
    Requested,
}

impl Reason {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Requested => "requested",
        }
    }
}

/// One revision of a recording's retention order (`docs/FORMAT.md` section 11.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Version of this record: 1.
    pub v: u8,
    /// Whether nothing may be deleted, whatever its date.
    pub hold: bool,
    /// Unix milliseconds after which the recording must be gone, if that is before the date that counts otherwise.
    pub expires_ms: Option<u64>,
    /// A date that counts instead of an earlier sealed one, if its proof is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<KeptUntil>,
    /// The deletion that has begun; nothing stops it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
}

/// A deletion that has begun: what its receipt will say, and how to finish it after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Why.
    pub reason: Reason,
    /// Unix milliseconds after which the recording had to be gone; unknown when its envelope was gone before.
    pub expires_ms: Option<u64>,
    /// How many objects it had, its envelopes included.
    pub objects: u64,
    /// The dates of its entries in the expiry index. The first is removed last, because it leads back here.
    pub dates: Vec<String>,
}

/// What proves a deletion (`docs/FORMAT.md` section 11.5). Names no person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Version of this record: 1.
    pub v: u8,
    /// Whose recording, 32 hexadecimal digits.
    pub tenant_tag: String,
    /// Which recording, 32 hexadecimal digits.
    pub recording: String,
    /// Why.
    pub reason: Reason,
    /// Unix milliseconds after which it had to be gone; unknown when its envelope was gone before.
    pub expires_ms: Option<u64>,
    /// Unix milliseconds, by the store's clock, when nothing of it was left.
    pub deleted_at_ms: u64,
    /// Unix milliseconds from which backups and versions of the store have nothing of it either.
    pub final_at_ms: u64,
    /// How many objects it had, its envelopes included.
    pub objects: u64,
    /// The number of its entry in the deletion ledger; earlier versions had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<u64>,
}

impl Receipt {
    /// Makes the receipt of a deletion that was finished at `deleted_at`; copies may live for `grace` longer.
    pub fn new(
        tenant: TenantTag,
        recording: RecordingId,
        (deletion, ledger): (&Deletion, u64),
        deleted_at: UnixMillis,
        grace: Duration,
    ) -> Self {
        Self {
            v: 1,
            tenant_tag: tenant.to_string(),
            recording: recording.to_string(),
            reason: deletion.reason,
            expires_ms: deletion.expires_ms,
            deleted_at_ms: deleted_at.0,
            final_at_ms: deleted_at.plus(grace).0,
            objects: deletion.objects,
            ledger: Some(ledger),
        }
    }
}

/// What somebody wants of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Keep it whatever its date.
    Hold,
    /// Let its date count again.
    Release,
    /// Delete it from this moment on.
    ExpireAt(UnixMillis),
    /// Keep it until this moment and no longer, because its tenant keeps recordings for fewer days; a hold still beats it.
    Shorten(UnixMillis),
    /// Keep it until a later date than the sealed one, because its tenant keeps recordings for more days.
    Lengthen {
        /// The date.
        kept: KeptUntil,
        /// What stood in its place when somebody decided that this date is later.
        seen: Option<KeptUntil>,
    },
}

/// Why a change is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is held; somebody must release it first.
    #[error("recording is held; release it first")]
    Held,
    /// Its deletion has begun.
    #[error("deletion of the recording has begun")]
    Deleting,
    /// Somebody else has given it a later date meanwhile.
    #[error("recording has got another later date meanwhile")]
    Overtaken,
}

impl Refusal {
    /// Returns the code for the audit log.
    pub fn code(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Deleting => "deleting",
            Self::Overtaken => "overtaken",
        }
    }
}

impl Order {
    /// What holds while there is no order.
    pub const NONE: Self = Self { v: 1, hold: false, expires_ms: None, kept_until: None, deletion: None };

    /// Reads an order; `None` for anything that is not one of version 1, which must then not be acted upon.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(|order: &Self| order.v == 1)
    }

    /// Returns the order that follows on this one; `None` when nothing changes.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn changed(&self, change: Change) -> Result<Option<Self>, Refusal> {
        if self.deletion.is_some() {
            return Err(Refusal::Deleting);
        }
        let mut next = self.clone();
        match change {
            Change::Hold => next.hold = true,
            Change::Release => next.hold = false,
            Change::ExpireAt(_) if self.hold => return Err(Refusal::Held),
            Change::ExpireAt(at) | Change::Shorten(at) => {
                next.expires_ms = Some(at.0.min(self.expires_ms.unwrap_or(u64::MAX)));
            }
            Change::Lengthen { kept, seen } if [seen, Some(kept)].contains(&self.kept_until) => {
                next.kept_until = Some(kept);
            }
            Change::Lengthen { .. } => return Err(Refusal::Overtaken),
        }
        Ok((next != *self).then_some(next))
    }

    /// Whether objects need other tags than those that they are stored with.
    pub fn changes_tags(&self) -> bool {
        self.hold || self.kept_until.is_some()
    }

    /// Returns the order that begins a deletion.
    pub fn begin(&self, deletion: Deletion) -> Self {
        Self { deletion: Some(deletion), ..self.clone() }
    }

    /// Returns when a recording must be gone, and why then; `sealed` is its sealed date, or a proven later one.
    pub fn effective(&self, sealed: UnixMillis) -> (UnixMillis, Reason) {
        match self.expires_ms {
            Some(ordered) if ordered < sealed.0 => (UnixMillis(ordered), Reason::Requested),
            Some(_) | None => (sealed, Reason::Expired),
        }
    }
}

/// What the store has of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// A manifest that opens, and nobody works on the rest any more.
    Finished {
        /// The date sealed in it, or a later one that is proven.
        expires: UnixMillis,
    },
    /// Somebody may be recording or finishing it.
    Busy,
    /// It has no manifest, and nobody is busy with it: it waits to be repaired.
    Unfinished,
    /// It has a manifest that does not open.
    Damaged,
    /// It has an envelope and nothing else, long after the date of its entry: a rule of the bucket took the rest.
    Emptied,
    /// It has no envelope: whatever else there is, nobody can open it.
    Gone,
}

/// What becomes of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Keep everything, whatever the date.
    Hold,
    /// Keep it for now.
    Keep {
        /// When it must be gone.
        until: UnixMillis,
    },
    /// Keep it: somebody works on it.
    Wait,
    /// Keep it: nobody knows its date. An order to delete it counts all the same.
    Stuck,
    /// Delete it.
    Delete {
        /// Why.
        reason: Reason,
        /// Since when, if that is known.
        since: Option<UnixMillis>,
    },
    /// Finish the deletion that has begun.
    Finish,
}

/// Decides about a recording; `now` is the store's clock.
pub fn decide(stored: Stored, order: &Order, now: UnixMillis) -> Fate {
    if order.deletion.is_some() {
        return Fate::Finish;
    }
    if order.hold {
        return Fate::Hold;
    }
    let ordered = order.expires_ms.map(UnixMillis);
    match stored {
        Stored::Gone | Stored::Emptied if ordered.is_some() => {
            Fate::Delete { reason: Reason::Requested, since: ordered }
        }
        Stored::Gone | Stored::Emptied => Fate::Delete { reason: Reason::Expired, since: None },
        Stored::Busy => Fate::Wait,
        Stored::Unfinished | Stored::Damaged => match ordered {
            Some(since) if since <= now => Fate::Delete { reason: Reason::Requested, since: Some(since) },
            Some(_) | None => Fate::Stuck,
        },
        Stored::Finished { expires } => {
            let (until, reason) = order.effective(expires);
            if until <= now { Fate::Delete { reason, since: Some(until) } } else { Fate::Keep { until } }
        }
    }
}

/// Why the clocks cannot be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockFault {
    /// One of the two is wrong, and nobody knows which.
    #[error("our clock and the store's differ by {} s; allowed: {} s", .by.as_secs(), MAX_CLOCK_DIFFERENCE.as_secs())]
    Differ {
        /// By how much.
        by: Duration,
    },
    /// The store's clock went back since the last sweep of this process.
    #[error("the store's clock went back by {} s", .by.as_secs())]
    WentBack {
        /// By how much.
        by: Duration,
    },
}

/// Checks the store's clock against ours and against what it showed at the last sweep.
///
/// # Errors
/// [`ClockFault`]: nothing may be deleted.
pub fn check_clocks(ours: UnixMillis, store: UnixMillis, last: Option<UnixMillis>) -> Result<(), ClockFault> {
    let by = Duration::from_millis(ours.0.abs_diff(store.0));
    if by > MAX_CLOCK_DIFFERENCE {
        return Err(ClockFault::Differ { by });
    }
    let back = last.map_or(0, |last| last.0.saturating_sub(store.0));
    match Duration::from_millis(back) {
        by if by > MAX_CLOCK_STEP_BACK => Err(ClockFault::WentBack { by }),
        _ => Ok(()),
    }
}

/// Returns how many entries the expiry index must have for `due` deletions to be at most `percent` of them; 0 when the
/// share does not matter.
pub fn entries_needed(due: u64, percent: u8) -> u64 {
    if due <= UNCHECKED_DELETIONS || percent >= 100 {
        return 0;
    }
    due.saturating_mul(100).div_ceil(u64::from(percent.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
    const EARLIER: UnixMillis = UnixMillis(NOW.0 - 1);
    const LATER: UnixMillis = UnixMillis(NOW.0 + 1);

    fn deletion() -> Deletion {
        Deletion { reason: Reason::Expired, expires_ms: Some(1), objects: 2, dates: vec![] }
    }

    fn order(hold: bool, expires: Option<UnixMillis>) -> Order {
        Order { hold, expires_ms: expires.map(|at| at.0), ..Order::NONE }
    }

    #[test]
    fn a_hold_beats_every_date_but_not_a_deletion_that_has_begun() {
        let all = [Stored::Finished { expires: EARLIER }, Stored::Busy, Stored::Unfinished, Stored::Gone];
        for stored in all {
            assert_eq!(decide(stored, &order(true, Some(EARLIER)), NOW), Fate::Hold);
            assert_eq!(decide(stored, &order(true, None).begin(deletion()), NOW), Fate::Finish);
        }
    }

    #[test]
    fn the_earlier_of_both_dates_counts() {
        let cases = [
            (EARLIER, None, Some((Reason::Expired, EARLIER))),
            (NOW, None, Some((Reason::Expired, NOW))),
            (LATER, None, None),
            (LATER, Some(NOW), Some((Reason::Requested, NOW))),
            (EARLIER, Some(LATER), Some((Reason::Expired, EARLIER))),
            (UnixMillis(LATER.0 + 1), Some(LATER), None),
        ];
        for (sealed, ordered, deleted) in cases {
            let wanted = match deleted {
                Some((reason, since)) => Fate::Delete { reason, since: Some(since) },
                None => Fate::Keep { until: LATER },
            };
            assert_eq!(decide(Stored::Finished { expires: sealed }, &order(false, ordered), NOW), wanted);
        }
    }

    #[test]
    fn what_is_not_known_is_kept_unless_somebody_ordered_otherwise() {
        assert_eq!(decide(Stored::Busy, &order(false, Some(EARLIER)), NOW), Fate::Wait);
        for stored in [Stored::Unfinished, Stored::Damaged] {
            assert_eq!(decide(stored, &Order::NONE, NOW), Fate::Stuck);
            assert_eq!(decide(stored, &order(false, Some(LATER)), NOW), Fate::Stuck);
            let fate = Fate::Delete { reason: Reason::Requested, since: Some(NOW) };
            assert_eq!(decide(stored, &order(false, Some(NOW)), NOW), fate);
        }
        let gone = Fate::Delete { reason: Reason::Expired, since: None };
        assert_eq!(decide(Stored::Gone, &Order::NONE, NOW), gone);
    }

    #[test]
    fn orders_follow_on_each_other() {
        let held = Order::NONE.changed(Change::Hold).unwrap().unwrap();
        assert!(held.hold);
        assert_eq!(held.changed(Change::Hold), Ok(None));
        assert_eq!(held.changed(Change::ExpireAt(NOW)), Err(Refusal::Held));
        let held_shorter = held.changed(Change::Shorten(NOW)).unwrap().unwrap();
        assert_eq!((held_shorter.hold, held_shorter.expires_ms), (true, Some(NOW.0)));
        assert_eq!(held_shorter.changed(Change::Shorten(LATER)), Ok(None), "nothing is lengthened");
        let released = held.changed(Change::Release).unwrap().unwrap();
        let shortened = released.changed(Change::ExpireAt(NOW)).unwrap().unwrap();
        assert_eq!(shortened.expires_ms, Some(NOW.0));
        assert_eq!(shortened.changed(Change::ExpireAt(LATER)), Ok(None), "nothing is lengthened");
        let held_again = shortened.changed(Change::Hold).unwrap().unwrap();
        assert_eq!(held_again.expires_ms, Some(NOW.0), "carried over");
        for change in [Change::Hold, Change::Release, Change::ExpireAt(NOW), Change::Shorten(NOW)] {
            assert_eq!(shortened.begin(deletion()).changed(change), Err(Refusal::Deleting));
        }
    }

    #[test]
    fn orders_that_are_not_understood_are_not_read() {
        assert_eq!(Order::parse(br#"{"v":1,"hold":false,"expires_ms":null}"#), Some(Order::NONE));
        assert!(Order::parse(br#"{"v":1,"hold":true,"new":1}"#).unwrap().hold);
        for bad in ["", "{}", "[]", r#"{"v":2,"hold":false}"#, r#"{"v":1,"hold":"no"}"#, r#"{"v":1}"#] {
            assert_eq!(Order::parse(bad.as_bytes()), None, "{bad}");
        }
        let begun = order(false, Some(NOW)).begin(deletion());
        assert_eq!(Order::parse(&serde_json::to_vec(&begun).unwrap()), Some(begun));
    }

    #[test]
    fn clocks_must_agree_and_go_forward() {
        let at = |secs: u64| UnixMillis(NOW.0 + secs * 1000);
        assert_eq!(check_clocks(at(300), at(0), None), Ok(()));
        assert_eq!(check_clocks(at(0), at(300), Some(at(300))), Ok(()));
        let by = Duration::from_secs(301);
        assert_eq!(check_clocks(at(301), at(0), None), Err(ClockFault::Differ { by }));
        assert_eq!(check_clocks(at(0), at(301), None), Err(ClockFault::Differ { by }));
        assert_eq!(check_clocks(at(0), at(0), Some(at(10))), Ok(()));
        let by = Duration::from_secs(11);
        assert_eq!(check_clocks(at(0), at(0), Some(at(11))), Err(ClockFault::WentBack { by }));
    }

    #[test]
    fn the_share_counts_only_for_many() {
        assert_eq!(entries_needed(100, 1), 0);
        assert_eq!(entries_needed(101, 10), 1010);
        assert_eq!(entries_needed(101, 100), 0);
        assert_eq!(entries_needed(101, 0), 10_100);
        assert_eq!(entries_needed(u64::MAX, 10), u64::MAX / 10 + 1);
    }
}
