//! Changes of tenants that are kept in the store, from the API and from the command line.
//!
//! A change is drafted from the revision that its author has read, checked as a file would be, and put as the next revision. Whoever
//! drafts puts it into the audit log before it is put.

use std::fmt;

use toml::{Table, Value};

use crate::clock;
use crate::config::{Config, Fault, Retention, Tenant, TenantStatus};
use crate::domain::ids::{TenantId, TenantTag};
use crate::domain::policy::{Policy, PolicyRefusal};
use crate::domain::time::UnixMillis;

use super::book::{Book, BookError};
use super::revision::{Made, Revision};
use super::settings::Settings;
use super::view::{check, check_table, origin};

/// Revisions have eight digits, so that they sort.
const MAX_REVISION: u32 = 99_999_999;

/// Why a tenant is not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Everything that is wrong with what was given.
    #[error("{}", listed(.0))]
    Invalid(Vec<Fault>),
    /// There is none in the store.
    #[error("there is no such tenant in the store")]
    NotFound,
    /// A file has it.
    #[error("a file of the node has a tenant of this name; change the file")]
    OfFile,
    /// There is one already, or was.
    #[error("there is a tenant of this name, or was one; names are not used again")]
    Exists,
    /// The author has read another revision than the newest.
    #[error("the tenant has revision {newest}, not {expected}; read it again")]
    Stale {
        /// What the author has read.
        expected: u32,
        /// What is there.
        newest: u32,
    },
    /// The status of the tenant does not allow it.
    #[error("the tenant is {}; {allowed}", .status.name())]
    Status {
        /// Its status.
        status: TenantStatus,
        /// What would be allowed.
        allowed: &'static str,
    },
    /// Somebody else has changed it at the same moment.
    #[error("somebody else has changed the tenant just now; read it again")]
    Contended,
    /// The settings have other days for recordings, which are changed another way.
    #[error(
        "retention.call_audio_days: {holds} days hold, and are not changed with the settings; allowed: what holds, or \
         POST …/retention, or callseal retention change"
    )]
    DaysInSettings {
        /// What holds.
        holds: u32,
    },
    /// The rules for the days of recordings do not allow it.
    #[error(transparent)]
    Retention(#[from] PolicyRefusal),
    /// The store.
    #[error(transparent)]
    Book(#[from] BookError),
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Who changes a tenant, and why.
#[derive(Debug, Clone)]
pub struct Author {
    /// As the audit log calls them.
    pub name: String,
    /// In their words.
    pub reason: Option<String>,
}

/// What is to be done to the status of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// No new calls and no playback until it is resumed.
    Suspend,
    /// As before, also after an order to close, until its day.
    Resume,
    /// No new calls; everything is deleted when the time is over.
    Close,
}

/// A revision that is not put yet.
pub struct Draft {
    /// What will be put.
    pub revision: Revision,
    /// What it means on this node.
    pub tenant: Tenant,
    tag: TenantTag,
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Draft").field(&self.revision).finish()
    }
}

impl Draft {
    /// Whether recordings that have ended wait for days that this lets hold.
    pub fn reaches_ended(&self) -> bool {
        matches!(self.revision.made, Made::RetentionShortened | Made::RetentionLengthened)
            && self.revision.retention.is_last_outstanding()
    }

    /// Returns what the audit log says of it.
    pub fn detail(&self) -> String {
        let close_by = self.revision.close_by_ms.map(|at| clock::rfc3339(UnixMillis(at)));
        let close_by = close_by.map(|at| format!(" close_by={at}")).unwrap_or_default();
        let days = match self.revision.made {
            Made::RetentionProposed => format!(" {}", self.revision.retention.told_proposal()),
            Made::RetentionShortened | Made::RetentionLengthened | Made::RetentionWithdrawn => {
                format!(" {}", self.revision.retention.told_last())
            }
            Made::Created
            | Made::Updated
            | Made::Suspended
            | Made::Resumed
            | Made::Closing
            | Made::Closed
            | Made::RetentionDone => String::new(),
        };
        format!("revision={}{close_by}{days}", self.revision.revision)
    }

    /// Puts it.
    ///
    /// # Errors
    /// [`ChangeError::Contended`] and [`ChangeError::Book`]; after the latter it may be there all the same.
    pub async fn put(&self, book: &Book) -> Result<(), ChangeError> {
        if book.put(self.tag, &self.revision).await? { Ok(()) } else { Err(ChangeError::Contended) }
    }
}

/// Drafts changes on a node.
pub struct Desk<'a> {
    /// The rules of the node.
    pub config: &'a Config,
    /// The tenants of its files.
    pub of_files: Vec<TenantId>,
    /// The store.
    pub book: &'a Book,
    /// Who changes something.
    pub author: Author,
}

impl Desk<'_> {
    /// Drafts a new tenant; its id is among the settings.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn create(&self, mut settings: Table) -> Result<Draft, ChangeError> {
        let id = settings.remove("id");
        let draft = self.draft(id, 1, Made::Created, (TenantStatus::Active, None), (settings, None))?;
        self.must_be_free(&draft.tenant.id)?;
        match self.book.newest(draft.tag).await? {
            Some(_) => Err(ChangeError::Exists),
            None => Ok(draft),
        }
    }

    /// Drafts other settings for a tenant. `expected` is the revision that its author has read.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn update(
        &self,
        id: &TenantId,
        expected: Option<u32>,
        mut settings: Table,
    ) -> Result<Draft, ChangeError> {
        let before = self.newest(id, expected).await?;
        if before.status == TenantStatus::Closed {
            return Err(ChangeError::Status {
                status: before.status,
                allowed: "nothing of it can be changed",
            });
        }
        let own = Value::String(id.to_string());
        if settings.remove("id").is_some_and(|given| given != own) {
            let problem = "names another tenant; allowed: the same id, or leave it out";
            return Err(ChangeError::Invalid(vec![fault("id", problem)]));
        }
        let state = (before.status, before.close_by_ms);
        let settings = (settings, Some(&before.settings));
        let mut draft = self.draft(Some(own), before.revision + 1, Made::Updated, state, settings)?;
        self.must_keep_key(&before, &draft.tenant)?;
        must_keep_days(&before, &draft.tenant)?;
        draft.revision.retention = before.retention;
        Ok(draft)
    }

    /// Drafts another status.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn order(
        &self,
        id: &TenantId,
        expected: Option<u32>,
        order: Order,
    ) -> Result<Draft, ChangeError> {
        let before = self.newest(id, expected).await?;
        let now = self.book.now().await?;
        let (made, status, close_by) = next(order, &before, now, self.book.rules().close_after)?;
        self.same_settings(&before, made, (status, close_by))
    }

    /// Returns what a revision means on this node.
    ///
    /// # Errors
    /// [`ChangeError::Invalid`].
    pub fn read(&self, revision: &Revision) -> Result<Tenant, ChangeError> {
        check(self.config, revision).map_err(|faults| invalid(&faults))
    }

    /// Drafts the end of a tenant of which nothing is left.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn closed(&self, id: &TenantId) -> Result<Draft, ChangeError> {
        let before = self.newest(id, None).await?;
        if before.status != TenantStatus::Closing {
            return Err(ChangeError::Status {
                status: before.status,
                allowed: "only one that is closing ends",
            });
        }
        let state = (TenantStatus::Closed, before.close_by_ms);
        self.same_settings(&before, Made::Closed, state)
    }

    fn same_settings(
        &self,
        before: &Revision,
        made: Made,
        state: (TenantStatus, Option<u64>),
    ) -> Result<Draft, ChangeError> {
        let (settings, retention) = (before.settings.clone(), before.retention.clone());
        let revision = self.next_revision(&before.tenant, before.revision + 1, made, state);
        self.finish(Revision { settings, retention, ..revision })
    }

    /// Drafts what follows on `before` with another policy and its days.
    pub(super) fn other_days(
        &self,
        before: &Revision,
        made: Made,
        (retention, days): (Policy, Option<u32>),
    ) -> Result<Draft, ChangeError> {
        let state = (before.status, before.close_by_ms);
        let revision = self.next_revision(&before.tenant, before.revision + 1, made, state);
        let settings = days.map_or_else(|| before.settings.clone(), |days| before.settings.with_days(days));
        self.finish(Revision { settings, retention, ..revision })
    }

    fn finish(&self, revision: Revision) -> Result<Draft, ChangeError> {
        let tenant = self.read(&revision)?;
        Ok(Draft { revision, tag: tenant.id.tag(), tenant })
    }

    /// Reads the newest revision, which must be the one that the author has read.
    pub(super) async fn newest(&self, id: &TenantId, expected: Option<u32>) -> Result<Revision, ChangeError> {
        self.must_be_free(id)?;
        let newest = self.book.newest(id.tag()).await?.ok_or(ChangeError::NotFound)?;
        match expected {
            Some(expected) if expected != newest.revision => {
                Err(ChangeError::Stale { expected, newest: newest.revision })
            }
            _ if newest.revision >= MAX_REVISION => Err(ChangeError::Contended),
            _ => Ok(newest),
        }
    }

    fn must_be_free(&self, id: &TenantId) -> Result<(), ChangeError> {
        if self.of_files.contains(id) { Err(ChangeError::OfFile) } else { Ok(()) }
    }

    /// A key that recordings are under must stay known, or nobody could open them any more.
    fn must_keep_key(&self, before: &Revision, after: &Tenant) -> Result<(), ChangeError> {
        let Ok(before) = check(self.config, before) else { return Ok(()) };
        let present = &before.keks.current;
        if after.keks.all().any(|kek| kek == present) {
            return Ok(());
        }
        let problem = format!(
            "lacks the present key ({} {:?}), which recordings are under; allowed: a list with it",
            present.provider, present.kek
        );
        Err(ChangeError::Invalid(vec![fault("keys.former_keks", problem)]))
    }

    /// Checks everything that was given, so that all of its faults are told at once.
    fn draft(
        &self,
        id: Option<Value>,
        revision: u32,
        made: Made,
        state: (TenantStatus, Option<u64>),
        (mut table, before): (Table, Option<&Settings>),
    ) -> Result<Draft, ChangeError> {
        let mut faults = Vec::new();
        if table.remove("status").is_some() {
            faults.push(fault(
                "status",
                "is not among the settings; allowed: the orders suspend, resume and close",
            ));
        }
        let (settings, not_kept) = Settings::given(table, before, self.book.naming_key());
        faults.extend(not_kept);
        let status = Value::String(state.0.name().to_owned());
        let checked = settings.with(id.map(|id| ("id", id)).into_iter().chain([("status", status)]));
        match check_table(self.config, checked) {
            Ok(tenant) if faults.is_empty() => {
                let next = self.next_revision(tenant.id.as_str(), revision, made, state);
                let (revision, tag) = (Revision { settings, ..next }, tenant.id.tag());
                Ok(Draft { tenant: Tenant { origin: origin(&revision), ..tenant }, revision, tag })
            }
            Ok(_) => Err(ChangeError::Invalid(faults)),
            Err(more) => {
                // A secret that is not kept is no secret either, which need not be said twice.
                let is_new = |fault: &&Fault| {
                    let kept = format!("{}.kept", fault.option);
                    !faults.iter().any(|said| said.option == kept)
                };
                let more: Vec<_> = more.iter().filter(is_new).cloned().collect();
                Err(ChangeError::Invalid([faults, more].concat()))
            }
        }
    }

    fn next_revision(
        &self,
        tenant: &str,
        revision: u32,
        made: Made,
        (status, close_by_ms): (TenantStatus, Option<u64>),
    ) -> Revision {
        Revision {
            v: 1,
            tenant: tenant.to_owned(),
            revision,
            at: clock::rfc3339(clock::wall()),
            by: self.author.name.clone(),
            reason: self.author.reason.clone(),
            made,
            status,
            close_by_ms,
            retention: Policy::default(),
            settings: Settings::default(),
        }
    }
}

fn invalid(faults: &crate::config::Faults) -> ChangeError {
    ChangeError::Invalid(faults.iter().cloned().collect())
}

fn fault(option: &str, problem: impl Into<String>) -> Fault {
    Fault { option: option.to_owned(), problem: problem.into() }
}

/// More days need somebody who approves them, so that there is one way to change them.
fn must_keep_days(before: &Revision, after: &Tenant) -> Result<(), ChangeError> {
    let Some(Retention { call_audio_days: holds, .. }) = Retention::of_settings(before.settings.table())
    else {
        return Ok(());
    };
    if after.retention.call_audio_days == holds { Ok(()) } else { Err(ChangeError::DaysInSettings { holds }) }
}

/// Says what an order makes of a tenant.
fn next(
    order: Order,
    before: &Revision,
    now: UnixMillis,
    close_after: std::time::Duration,
) -> Result<(Made, TenantStatus, Option<u64>), ChangeError> {
    let status = before.status;
    let refuse = |allowed| Err(ChangeError::Status { status, allowed });
    match (order, status) {
        (_, TenantStatus::Closed) => refuse("nothing of it can be changed"),
        (Order::Suspend, TenantStatus::Active) => Ok((Made::Suspended, TenantStatus::Suspended, None)),
        (Order::Suspend, _) => refuse("allowed for one that is active"),
        (Order::Resume, TenantStatus::Active) => refuse("allowed for one that is suspended or closing"),
        (Order::Resume, TenantStatus::Closing) if before.close_by_ms.is_none_or(|by| by <= now.0) => {
            refuse("its time is over, and what it has is being deleted")
        }
        (Order::Resume, _) => Ok((Made::Resumed, TenantStatus::Active, None)),
        (Order::Close, TenantStatus::Closing) => refuse("allowed for one that is active or suspended"),
        (Order::Close, _) => Ok((Made::Closing, TenantStatus::Closing, Some(now.plus(close_after).0))),
    }
}
