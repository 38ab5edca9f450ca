//! Changes of the days for which a tenant of the store keeps recordings. The rules are in `domain::policy`.

use crate::config::{Retention, TenantStatus};
use crate::domain::ids::TenantId;
use crate::domain::policy::{By, PolicyRefusal, Wanted};

use super::change::{ChangeError, Desk, Draft};
use super::revision::Made;

/// What is to be done about a tenant's days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetentionOrder {
    /// Fewer at once, or more if somebody approves them.
    Change(Wanted),
    /// What is proposed holds.
    Approve,
    /// What is proposed is off.
    Withdraw,
}

impl RetentionOrder {
    /// Returns the action in the audit log of one that is refused.
    pub fn action(self) -> &'static str {
        match self {
            Self::Change(_) => "retention.change",
            Self::Approve => "retention.approve",
            Self::Withdraw => "retention.withdraw",
        }
    }
}

impl Desk<'_> {
    /// Drafts other days, or the proposal of them. `expected` is the revision that its author has read.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn retention(
        &self,
        id: &TenantId,
        expected: Option<u32>,
        order: RetentionOrder,
    ) -> Result<Draft, ChangeError> {
        let before = self.newest(id, expected).await?;
        if before.status == TenantStatus::Closed {
            let allowed = "nothing of it can be changed";
            return Err(ChangeError::Status { status: before.status, allowed });
        }
        let now = self.book.now().await?;
        let holds = Retention::of_settings(before.settings.table()).ok_or(PolicyRefusal::Invalid {
            field: "retention",
            problem: "what holds cannot be read; allowed: settings that this node can use".to_owned(),
        })?;
        let holds = holds.call_audio_days;
        let reason = self.author.reason.clone().unwrap_or_default();
        let (by, policy) = (By { actor: self.author.name.clone(), reason }, before.retention.clone());
        let (made, changed) = match order {
            RetentionOrder::Change(wanted) if wanted.days > holds => {
                (Made::RetentionProposed, policy.change(holds, wanted, by, now)?)
            }
            RetentionOrder::Change(wanted) => {
                (Made::RetentionShortened, policy.change(holds, wanted, by, now)?)
            }
            RetentionOrder::Approve => (Made::RetentionLengthened, policy.approve(by, now)?),
            RetentionOrder::Withdraw => (Made::RetentionWithdrawn, policy.withdraw(by, now)?),
        };
        let days = (changed.days != holds).then_some(changed.days);
        self.other_days(&before, made, (changed.policy, days))
    }

    /// Drafts the note that every ended recording has the date of a change; `None` when nobody waits for that any more.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn retention_done(&self, id: &TenantId, number: u32) -> Result<Option<Draft>, ChangeError> {
        let before = self.newest(id, None).await?;
        let now = self.book.now().await?;
        let Some(policy) = before.retention.clone().done(number, now) else { return Ok(None) };
        self.other_days(&before, Made::RetentionDone, (policy, None)).map(Some)
    }
}
