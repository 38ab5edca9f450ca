//! For how many days a tenant's recordings are kept, as that was changed: by whom, why, and who agreed.
//!
//! Fewer days hold at once. More days are a proposal until a second actor approves it: there is one at most, it changes
//! nothing, it can be withdrawn, and it ends by itself. What was decided is never changed again, only added to, and the
//! oldest is forgotten when there is no room.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ticket::RETENTION_DAYS;
use super::time::UnixMillis;

/// The longest reason, in bytes: it stands in the audit log as well.
pub const MAX_REASON_BYTES: usize = 512;
/// The longest name of an actor, in bytes: those of the API have 132 at most.
pub const MAX_ACTOR_BYTES: usize = 200;
/// How long a proposal waits for somebody who approves it.
pub const PROPOSAL_LIFE: Duration = Duration::from_secs(14 * 24 * 3600);
/// What is remembered of a tenant: with the longest reasons a third of what a revision of it may have.
pub const MAX_HISTORY: usize = 200;

/// Who does something, and why, in their words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// As the audit log calls them.
    pub actor: String,
    /// 1 to [`MAX_REASON_BYTES`] bytes without control characters.
    pub reason: String,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Days from the end of a call to the expiry of its audio.
    pub days: u32,
    /// Whether calls that have ended get the date as well.
    pub also_ended: bool,
}

/// More days, which nobody has approved yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// What holds.
    pub days_before: u32,
    /// What would hold.
    pub days: u32,
    /// Whether calls that have ended would get the date as well.
    #[serde(default, skip_serializing_if = "is_false")]
    pub also_ended: bool,
    /// Why.
    pub reason: String,
    /// Who proposed it.
    pub by: String,
    /// When; Unix milliseconds by the store's clock.
    pub at_ms: u64,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Fewer days hold.
    Shortened,
    /// More days hold: two actors wanted it.
    Lengthened,
    /// A proposal that somebody took back or declined.
    Withdrawn,
    /// A proposal that was overtaken: the days were shortened meanwhile.
    Superseded,
    /// A proposal that nobody approved in time.
    Expired,
}

impl Outcome {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shortened => "shortened",
            Self::Lengthened => "lengthened",
            Self::Withdrawn => "withdrawn",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
        }
    }
}

/// Who ended a proposal, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When; Unix milliseconds by the store's clock.
    pub at_ms: u64,
}

/// A change that is decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settled {
    /// Counts the changes of a tenant, from 1.
    pub number: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// What held before.
    pub days_before: u32,
    /// What was wanted.
    pub days: u32,
    /// Whether calls that had ended were to get the date as well.
    pub also_ended: bool,
    /// Why.
    pub reason: String,
    /// Who wanted it.
    pub by: String,
    /// When; Unix milliseconds by the store's clock.
    pub at_ms: u64,
    /// Who approved, declined or overtook a proposal; nobody of one that has expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// With `also_ended`: when every ended recording had its date; Unix milliseconds by the store's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_at_ms: Option<u64>,
}

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefusal {
    /// Something that was given is not allowed.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is allowed.
        problem: String,
    },
    /// These days hold already.
    #[error("recordings are kept for {0} days already")]
    SameDays(u32),
    /// There is a proposal already.
    #[error("more days are proposed already; approve that or withdraw it first")]
    ProposalPending,
    /// There is none to be approved or withdrawn.
    #[error("nothing is proposed")]
    NoProposal,
    /// It was proposed too long ago.
    #[error("the proposal has expired; propose it again")]
    ProposalExpired,
    /// Nobody approves what they have proposed.
    #[error("whoever proposed it cannot approve it; somebody else must")]
    SameActor,
    /// So many earlier changes wait to be carried out that there is no room.
    #[error("too many changes wait to reach ended recordings; let a sweep carry them out first")]
    HistoryFull,
}

impl PolicyRefusal {
    /// Returns the stable code for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::SameDays(_) => "same_days",
            Self::ProposalPending => "proposal_pending",
            Self::NoProposal => "no_proposal",
            Self::ProposalExpired => "proposal_expired",
            Self::SameActor => "same_actor",
            Self::HistoryFull => "history_full",
        }
    }
}

/// What was decided about a tenant's days, and what is proposed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<Proposal>,
    /// Oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<Settled>,
}

/// Whether recordings that have ended get an earlier or a later date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Earlier; whatever is earlier already stays.
    Shorter,
    /// Later; whatever is later already stays.
    Longer {
        /// Only those of calls that began before this moment, when other days came to hold.
        began_by: Option<UnixMillis>,
    },
}

impl Way {
    /// Returns the way from the days that hold to others.
    pub fn from_to(holds: u32, days: u32) -> Self {
        if days > holds { Self::Longer { began_by: None } } else { Self::Shorter }
    }
}

/// Days, and the calls that they are for: those that began by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Days from the end of a call to the expiry of its audio.
    pub days: u32,
    /// When the days were changed, by the store's clock.
    pub at: UnixMillis,
    /// Which recordings get another date by them.
    pub way: Way,
}

/// What a change makes of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// What holds now.
    pub policy: Policy,
    /// The days that hold now.
    pub days: u32,
}

impl By {
    fn check(&self) -> Result<(), PolicyRefusal> {
        for (field, text, max) in
            [("actor", &self.actor, MAX_ACTOR_BYTES), ("reason", &self.reason, MAX_REASON_BYTES)]
        {
            if text.trim().is_empty() || text.len() > max || text.contains(char::is_control) {
                let problem = format!("allowed: 1 to {max} bytes without control characters");
                return Err(PolicyRefusal::Invalid { field, problem });
            }
        }
        Ok(())
    }

    fn decision(self, now: UnixMillis) -> Decision {
        Decision { by: self.actor, reason: self.reason, at_ms: now.0 }
    }
}

impl Proposal {
    /// Returns until when it can be approved.
    pub fn expires(&self) -> UnixMillis {
        UnixMillis(self.at_ms).plus(PROPOSAL_LIFE)
    }

    fn is_over(&self, now: UnixMillis) -> bool {
        self.expires() <= now
    }
}

impl Settled {
    /// Whether ended recordings still wait for the date.
    pub fn is_outstanding(&self) -> bool {
        self.holds() && self.also_ended && self.done_at_ms.is_none()
    }

    /// Whether the days came to hold.
    fn holds(&self) -> bool {
        matches!(self.outcome, Outcome::Shortened | Outcome::Lengthened)
    }

    /// Returns when it was decided: a proposal when somebody approved it.
    pub fn decided_at(&self) -> UnixMillis {
        UnixMillis(self.decision.as_ref().map_or(self.at_ms, |decision| decision.at_ms))
    }
}

impl Policy {
    /// Whether nothing was ever decided or proposed.
    pub fn is_empty(&self) -> bool {
        self.pending.is_none() && self.history.is_empty()
    }

    /// Returns what is proposed, if it can still be approved.
    pub fn pending(&self, now: UnixMillis) -> Option<&Proposal> {
        self.pending.as_ref().filter(|proposal| !proposal.is_over(now))
    }

    /// Returns what was decided, oldest first, at most [`MAX_HISTORY`]; one that has expired is among it in any case.
    pub fn history(&self, now: UnixMillis) -> Vec<Settled> {
        self.clone().tidied(now).map_or_else(|_| self.history.clone(), |tidied| tidied.history)
    }

    /// Returns the changes that ended recordings still wait for, oldest first.
    pub fn outstanding(&self) -> impl Iterator<Item = &Settled> {
        self.history.iter().filter(|settled| settled.is_outstanding())
    }

    /// Whether ended recordings wait for the date of what was decided last.
    pub fn is_last_outstanding(&self) -> bool {
        self.history.last().is_some_and(Settled::is_outstanding)
    }

    /// Returns whom an outstanding change is for, after what was decided later: more days never go beyond fewer ones that were
    /// to reach ended calls as well, nor reach calls that began with the days of a later change.
    pub fn reach(&self, settled: &Settled) -> Reach {
        let at = settled.decided_at();
        let later = self.history.iter().filter(|one| one.number > settled.number && one.holds());
        let (mut days, mut began_by) = (settled.days, None);
        if settled.outcome != Outcome::Lengthened {
            return Reach { days, at, way: Way::Shorter };
        }
        for one in later {
            began_by.get_or_insert(one.decided_at());
            if one.outcome == Outcome::Shortened && one.also_ended {
                days = days.min(one.days);
            }
        }
        Reach { days, at, way: Way::Longer { began_by } }
    }

    /// Changes the days: fewer hold at once, more are proposed.
    ///
    /// # Errors
    /// [`PolicyRefusal`]; nothing changes.
    pub fn change(
        self,
        days_before: u32,
        wanted: Wanted,
        by: By,
        now: UnixMillis,
    ) -> Result<Changed, PolicyRefusal> {
        by.check()?;
        let Wanted { days, also_ended } = wanted;
        if !RETENTION_DAYS.contains(&days) {
            let problem = format!("allowed: {} to {}", RETENTION_DAYS.start(), RETENTION_DAYS.end());
            return Err(PolicyRefusal::Invalid { field: "call_audio_days", problem });
        }
        let mut policy = self.tidied(now)?;
        if days > days_before {
            if policy.pending.is_some() {
                return Err(PolicyRefusal::ProposalPending);
            }
            let By { actor, reason } = by;
            policy.pending =
                Some(Proposal { days_before, days, also_ended, reason, by: actor, at_ms: now.0 });
            return Ok(Changed { policy, days: days_before });
        }
        if days == days_before && !also_ended {
            return Err(PolicyRefusal::SameDays(days));
        }
        // Whoever approved it later would approve another step than the one that was proposed.
        if days < days_before
            && let Some(proposal) = policy.pending.take()
        {
            policy.settle_proposal(proposal, Outcome::Superseded, Some(by.clone().decision(now)))?;
        }
        policy.push(Settled {
            number: 0,
            outcome: Outcome::Shortened,
            days_before,
            days,
            also_ended,
            reason: by.reason,
            by: by.actor,
            at_ms: now.0,
            decision: None,
            done_at_ms: None,
        })?;
        Ok(Changed { policy, days })
    }

    /// Lets what is proposed hold.
    ///
    /// # Errors
    /// [`PolicyRefusal`]; nothing changes.
    pub fn approve(self, by: By, now: UnixMillis) -> Result<Changed, PolicyRefusal> {
        let (mut policy, proposal) = self.take_proposal(&by, now)?;
        if is_same_actor(&proposal.by, &by.actor) {
            return Err(PolicyRefusal::SameActor);
        }
        let days = proposal.days;
        policy.settle_proposal(proposal, Outcome::Lengthened, Some(by.decision(now)))?;
        Ok(Changed { policy, days })
    }

    /// Takes back what is proposed, or declines it.
    ///
    /// # Errors
    /// [`PolicyRefusal`]; nothing changes.
    pub fn withdraw(self, by: By, now: UnixMillis) -> Result<Changed, PolicyRefusal> {
        let (mut policy, proposal) = self.take_proposal(&by, now)?;
        let days = proposal.days_before;
        policy.settle_proposal(proposal, Outcome::Withdrawn, Some(by.decision(now)))?;
        Ok(Changed { policy, days })
    }

    /// Notes that every ended recording has the date of a change; `None` when that is not waited for.
    #[must_use]
    pub fn done(mut self, number: u32, now: UnixMillis) -> Option<Self> {
        let settled = self.history.iter_mut().find(|one| one.number == number && one.is_outstanding())?;
        settled.done_at_ms = Some(now.0);
        Some(self)
    }

    /// Says what is proposed, for the audit log.
    pub fn told_proposal(&self) -> String {
        let told = |proposal: &Proposal| {
            let ended = if proposal.also_ended { " also_ended" } else { "" };
            format!("days={}->{} proposed{ended}", proposal.days_before, proposal.days)
        };
        self.pending.as_ref().map_or_else(String::new, told)
    }

    /// Says what was decided last, for the audit log.
    pub fn told_last(&self) -> String {
        self.history.last().map_or_else(String::new, |last| {
            let Settled { days_before, days, outcome, number, also_ended, .. } = last;
            let ended = if *also_ended { " also_ended" } else { "" };
            format!("days={days_before}->{days} {} change={number}{ended}", outcome.name())
        })
    }

    /// Moves a proposal that nobody approved in time to what is decided.
    fn tidied(mut self, now: UnixMillis) -> Result<Self, PolicyRefusal> {
        if let Some(proposal) = self.pending.take_if(|proposal| proposal.is_over(now)) {
            self.settle_proposal(proposal, Outcome::Expired, None)?;
        }
        Ok(self)
    }

    fn take_proposal(mut self, by: &By, now: UnixMillis) -> Result<(Self, Proposal), PolicyRefusal> {
        by.check()?;
        match self.pending.take() {
            None => Err(PolicyRefusal::NoProposal),
            Some(proposal) if proposal.is_over(now) => Err(PolicyRefusal::ProposalExpired),
            Some(proposal) => Ok((self, proposal)),
        }
    }

    fn settle_proposal(
        &mut self,
        proposal: Proposal,
        outcome: Outcome,
        decision: Option<Decision>,
    ) -> Result<(), PolicyRefusal> {
        let Proposal { days_before, days, also_ended, reason, by, at_ms } = proposal;
        let (number, done_at_ms) = (0, None);
        self.push(Settled {
            number,
            outcome,
            days_before,
            days,
            also_ended,
            reason,
            by,
            at_ms,
            decision,
            done_at_ms,
        })
    }

    /// Adds what is decided under the next number. What ended recordings wait for is not forgotten.
    fn push(&mut self, settled: Settled) -> Result<(), PolicyRefusal> {
        if self.history.len() >= MAX_HISTORY {
            let oldest = self.history.iter().position(|one| !one.is_outstanding());
            self.history.remove(oldest.ok_or(PolicyRefusal::HistoryFull)?);
        }
        let number = self.history.last().map_or(1, |last| last.number.saturating_add(1));
        self.history.push(Settled { number, ..settled });
        Ok(())
    }
}

/// Returns the days of a call whose ticket says some, and whether they are the ticket's: those of a tenant hold for all of its
/// calls, so that a ticket can give fewer only.
pub fn days_of_call(tenant: u32, ticket: Option<u32>) -> (u32, bool) {
    let own = ticket.filter(|own| *own < tenant);
    (own.unwrap_or(tenant), own.is_some())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Whether two names are of one person, as far as names tell: a name counts as one, however often a token of it was made, and
/// whether a token, an identity provider or a command says it.
fn is_same_actor(one: &str, other: &str) -> bool {
    let person = |actor: &str| {
        let token = actor.strip_prefix("token:").and_then(|rest| rest.split_once(':'));
        let name = token.map(|(_, name)| name).or_else(|| actor.strip_prefix("jwt:"));
        name.unwrap_or(actor).trim().to_lowercase()
    };
    person(one) == person(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn by(actor: &str) -> By {
        By { actor: actor.to_owned(), reason: "a reason".to_owned() }
    }

    fn wanted(days: u32) -> Wanted {
        Wanted { days, also_ended: false }
    }

    fn proposed() -> Policy {
        let changed = Policy::default().change(90, wanted(365), by("ann"), NOW).unwrap();
        assert_eq!(changed.days, 90, "nothing changes until it is approved");
        changed.policy
    }

    fn outcomes(policy: &Policy) -> Vec<(u32, Outcome, u32)> {
        policy.history(NOW).iter().map(|one| (one.number, one.outcome, one.days)).collect()
    }

    #[test]
    fn a17_fewer_days_hold_at_once_and_more_when_a_second_actor_approves() {
        let shorter = Policy::default().change(365, wanted(90), by("ann"), NOW).unwrap();
        assert_eq!((shorter.days, shorter.policy.pending(NOW)), (90, None));
        let Changed { policy, days } = shorter.policy.change(90, wanted(180), by("ann"), NOW).unwrap();
        assert_eq!((days, policy.pending(NOW).unwrap().days), (90, 180));
        let again = policy.clone().change(90, wanted(181), by("bob"), NOW);
        assert_eq!(again, Err(PolicyRefusal::ProposalPending));
        let Changed { policy, days } = policy.approve(by("bob"), NOW).unwrap();
        assert_eq!(days, 180);
        assert_eq!(outcomes(&policy), [(1, Outcome::Shortened, 90), (2, Outcome::Lengthened, 180)]);
        let lengthened = &policy.history(NOW)[1];
        assert_eq!((lengthened.by.as_str(), lengthened.days_before), ("ann", 90));
        assert_eq!(lengthened.decision.as_ref().unwrap().by, "bob");
        assert_eq!(policy.approve(by("bob"), NOW), Err(PolicyRefusal::NoProposal), "approved once");
    }

    #[test]
    fn a17_nobody_approves_what_they_proposed() {
        for actor in ["ann", "Ann ", "ANN", "token:1:ann", "jwt:ann"] {
            assert_eq!(proposed().approve(by(actor), NOW), Err(PolicyRefusal::SameActor), "{actor}");
        }
        let of_token = Policy::default().change(90, wanted(365), by("token:1:ops"), NOW).unwrap().policy;
        assert_eq!(of_token.clone().approve(by("token:2:ops"), NOW), Err(PolicyRefusal::SameActor));
        assert!(of_token.approve(by("token:2:legal"), NOW).is_ok());
    }

    #[test]
    fn a17_a_proposal_can_be_withdrawn_expires_and_is_overtaken() {
        let withdrawn = proposed().withdraw(by("ann"), NOW).unwrap();
        assert_eq!(outcomes(&withdrawn.policy), [(1, Outcome::Withdrawn, 365)]);
        assert_eq!(withdrawn.policy.approve(by("bob"), NOW), Err(PolicyRefusal::NoProposal));
        let last = UnixMillis(NOW.plus(PROPOSAL_LIFE).0 - 1);
        assert!(proposed().approve(by("bob"), last).is_ok());
        let over = NOW.plus(PROPOSAL_LIFE);
        assert_eq!(proposed().approve(by("bob"), over), Err(PolicyRefusal::ProposalExpired));
        assert_eq!(proposed().withdraw(by("bob"), over), Err(PolicyRefusal::ProposalExpired));
        assert_eq!((proposed().pending(over), proposed().history(over).len()), (None, 1));
        let anew = proposed().change(90, wanted(180), by("bob"), over).unwrap().policy;
        assert_eq!(outcomes(&anew), [(1, Outcome::Expired, 365)]);
        let shorter = proposed().change(90, wanted(30), by("bob"), NOW).unwrap();
        assert_eq!((shorter.days, shorter.policy.pending(NOW)), (30, None));
        assert_eq!(outcomes(&shorter.policy), [(1, Outcome::Superseded, 365), (2, Outcome::Shortened, 30)]);
    }

    #[test]
    fn a12_a_ticket_gives_fewer_days_and_never_more() {
        assert_eq!(days_of_call(90, None), (90, false));
        assert_eq!(days_of_call(90, Some(30)), (30, true));
        assert_eq!(days_of_call(90, Some(90)), (90, false));
        assert_eq!(days_of_call(90, Some(3650)), (90, false));
    }

    #[test]
    fn what_is_given_is_bounded() {
        for days in [0, 3651, u32::MAX] {
            let refused = Policy::default().change(90, wanted(days), by("ann"), NOW).unwrap_err();
            assert!(refused.to_string().starts_with("call_audio_days: allowed: 1 to 3650"), "{refused}");
        }
        for reason in ["", "  ", "a\nb", &"x".repeat(MAX_REASON_BYTES + 1)] {
            let by = By { actor: "ann".to_owned(), reason: reason.to_owned() };
            let refused = Policy::default().change(90, wanted(30), by.clone(), NOW).unwrap_err();
            assert!(refused.to_string().starts_with("reason: "), "{refused}");
            assert!(proposed().approve(by.clone(), NOW).is_err() && proposed().withdraw(by, NOW).is_err());
        }
        let same = Policy::default().change(90, wanted(90), by("ann"), NOW);
        assert_eq!(same, Err(PolicyRefusal::SameDays(90)));
        let again = Wanted { days: 90, also_ended: true };
        assert_eq!(Policy::default().change(90, again, by("ann"), NOW).unwrap().days, 90, "for ended ones");
    }

    #[test]
    fn a17_more_days_reach_ended_calls_only_as_far_as_later_decisions_let_them() {
        let ended = |days| Wanted { days, also_ended: true };
        let at = |secs: u64| NOW.plus(Duration::from_secs(secs));
        let proposed = Policy::default().change(90, ended(365), by("ann"), NOW).unwrap().policy;
        assert!(proposed.pending(NOW).unwrap().also_ended);
        assert_eq!(proposed.outstanding().count(), 0, "nobody has approved it");
        let withdrawn = proposed.clone().withdraw(by("bob"), NOW).unwrap().policy;
        assert_eq!(withdrawn.outstanding().count(), 0);
        let mut policy = proposed.approve(by("bob"), at(5)).unwrap().policy;
        let reaches = |policy: &Policy| policy.outstanding().map(|one| policy.reach(one)).collect::<Vec<_>>();
        let way = Way::Longer { began_by: None };
        assert_eq!(reaches(&policy), [Reach { days: 365, at: at(5), way }]);
        policy = policy.change(365, wanted(200), by("ann"), at(20)).unwrap().policy;
        policy = policy.change(200, ended(120), by("ann"), at(30)).unwrap().policy;
        let way = Way::Longer { began_by: Some(at(20)) };
        let shorter = Reach { days: 120, at: at(30), way: Way::Shorter };
        assert_eq!(reaches(&policy), [Reach { days: 120, at: at(5), way }, shorter]);
    }

    #[test]
    fn history_is_bounded_and_keeps_what_is_waited_for() {
        let ended = |days| Wanted { days, also_ended: true };
        let mut policy = Policy::default().change(3650, ended(3000), by("ann"), NOW).unwrap().policy;
        for days in (1..=u32::try_from(MAX_HISTORY).unwrap() + 5).rev() {
            policy = policy.change(days + 1, wanted(days), by("ann"), NOW).unwrap().policy;
        }
        let history = policy.history(NOW);
        assert_eq!((history.len(), history[0].number), (MAX_HISTORY, 1), "it waits for ended recordings");
        assert_eq!(policy.outstanding().count(), 1);
        let policy = policy.done(1, NOW).unwrap();
        assert_eq!((policy.outstanding().count(), policy.clone().done(1, NOW)), (0, None));
        let mut full = Policy::default();
        for _ in 0..MAX_HISTORY {
            full = full.change(90, ended(90), by("ann"), NOW).unwrap().policy;
        }
        assert_eq!(full.change(90, wanted(30), by("ann"), NOW), Err(PolicyRefusal::HistoryFull));
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    }
}
