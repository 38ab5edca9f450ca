//! Says whether a tenant's log is whole: every chain unbroken, none cut off, none gone.
//!
//! What is found does not end the search: everything that is wrong is told at once.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use serde::Serialize;

use super::error::{AuditError, Finding, Id};
use super::file::Witness;
use super::links::{Fault, Link, Links};
use super::log::CHECKPOINT_EVERY;
use super::place::Place;
use super::read::{AuditReader, Opened, Span};
use super::record::{ChainEnd, Mark};
use super::writer::GRACE;
use crate::clock;
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::time::UnixMillis;

/// Findings that are told; more are counted. A bucket that was emptied needs no million lines.
const MAX_FINDINGS: usize = 1000;

/// What a verification has found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verification {
    /// Records that are there and authentic.
    pub records: u64,
    /// Objects that hold them.
    pub objects: u64,
    /// The time of the first record; none when there is none.
    pub from: Option<String>,
    /// The time of the last record.
    pub to: Option<String>,
    /// From this UTC date on all records are kept; none when none was ever removed because of its age.
    pub kept_since: Option<String>,
    /// The chains, with their ends.
    pub chains: Vec<ChainState>,
    /// What shows that somebody meddled with the log.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more_findings: u64,
    /// Whether there was a copy outside of the store to hold the log against.
    pub witnessed: bool,
}

/// One chain, as far as it is there.
#[derive(Debug, Clone, Serialize)]
pub struct ChainState {
    /// The chain.
    pub chain: Id,
    /// The node that writes it.
    pub node: String,
    /// The number of its first record; more than 0 when its beginning was removed because of its age.
    pub first: u64,
    /// Records up to its end, the removed ones included.
    pub records: u64,
    /// The hash of its last record.
    pub head: String,
    /// The time of its last record.
    pub last: String,
    /// Whether it goes on.
    pub state: ChainLife,
}

/// Whether a chain goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChainLife {
    /// Its process has ended it.
    Ended,
    /// Its process is heard of in time.
    Open,
    /// It fell silent, and a later chain has seen it end here: its process was killed.
    Died,
    /// It fell silent, and nobody has seen where: its process was killed a short time ago, or its end was cut off.
    Silent,
}

impl Verification {
    /// Whether nothing shows that a record was changed, moved, inserted or removed.
    pub fn is_unbroken(&self) -> bool {
        self.findings.is_empty()
    }

    /// Returns the chains whose end nobody vouches for.
    pub fn silent(&self) -> impl Iterator<Item = &ChainState> {
        self.chains.iter().filter(|chain| chain.state == ChainLife::Silent)
    }
}

/// What a later chain has seen of another.
struct Seen {
    objects: u32,
    /// The time of the last object that was seen.
    last: Option<UnixMillis>,
    by: RecordingId,
    /// When it was seen.
    at: UnixMillis,
}

/// What is known until the last object was read.
#[derive(Default)]
struct Verifier {
    links: Links,
    records: u64,
    objects: u64,
    from: Option<UnixMillis>,
    to: Option<UnixMillis>,
    kept_since: Option<String>,
    faults: Vec<Fault>,
    more_faults: u64,
    /// Until when each chain must be heard of again; none when it has ended.
    promises: HashMap<RecordingId, Option<UnixMillis>>,
    seen: HashMap<RecordingId, Seen>,
}

impl AuditReader<'_> {
    /// Checks all of a tenant's log; `witness` is what a copy outside of the store has of it.
    ///
    /// # Errors
    /// [`AuditError::Key`], [`AuditError::Store`]. What is wrong with the log is no error but in the answer.
    pub async fn verify(
        &self,
        tenant: &TenantId,
        mut witness: Option<Witness>,
        now: UnixMillis,
    ) -> Result<Verification, AuditError> {
        let mut verifier = Verifier::default();
        let mut objects = std::pin::pin!(self.objects(tenant, Span::default(), None));
        while let Some(opened) = objects.try_next().await? {
            if let (Some(witness), Some((place, digest))) = (&mut witness, opened.digest)
                && witness.objects.remove(&place).is_some_and(|theirs| theirs != digest)
            {
                verifier.fault(Finding::Differs { object: opened.name.to_string() }.into());
            }
            verifier.take(opened);
        }
        let witnessed = witness.is_some();
        let missing = witness.map(|witness| witness.objects).unwrap_or_default();
        Ok(Verification { witnessed, ..verifier.finish(tenant.tag(), missing, now) })
    }
}

impl Verifier {
    fn fault(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FINDINGS {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }

    fn take(&mut self, opened: Opened) {
        let (place, text) = match opened.read {
            Ok(read) => read,
            Err(finding) => {
                // A key that was destroyed with its old records is none that was stolen.
                let is_keyless = matches!(finding, Finding::NoKey { .. });
                let of = opened.digest.filter(|_| is_keyless).map(|(place, _)| place.at);
                return self.fault(Fault { finding, of });
            }
        };
        self.objects += 1;
        self.from = self.from.or(Some(place.at));
        self.to = self.to.max(Some(place.at));
        let mut said = Vec::new();
        let followed = self.links.follow(place, &text, |_, _, link: &Link| {
            said.push(link.mark.clone());
        });
        for mark in said {
            self.records += 1;
            self.hear(place, mark);
        }
        if let Err(fault) = followed {
            self.fault(fault);
        }
    }

    fn hear(&mut self, place: Place, mark: Option<Mark>) {
        let soon = Some(place.at.plus(CHECKPOINT_EVERY).plus(GRACE));
        let (promise, chains) = match mark {
            None => (soon, Vec::new()),
            Some(Mark::Checkpoint { next_by, chains }) => (clock::parse_rfc3339(&next_by).or(soon), chains),
            Some(Mark::End { chains }) => (None, chains),
            Some(Mark::Purge { kept_since }) => {
                self.kept_since = self.kept_since.take().max(Some(kept_since));
                (soon, Vec::new())
            }
        };
        self.promises.insert(place.chain, promise);
        for ChainEnd { chain, objects, at } in chains {
            let Ok(chain) = chain.parse() else { continue };
            let last = clock::parse_rfc3339(&at);
            let new = Seen { objects, last, by: place.chain, at: place.at };
            let seen = self.seen.entry(chain).or_insert(Seen { objects: 0, ..new });
            if (new.objects, new.at) >= (seen.objects, seen.at) {
                *seen = new;
            }
        }
    }

    fn finish(
        mut self,
        tenant: TenantTag,
        missing: HashMap<Place, [u8; 32]>,
        now: UnixMillis,
    ) -> Verification {
        let kept_since = self.kept_since.as_deref().and_then(clock::begin_of_utc_date);
        let is_too_old = |of: Option<UnixMillis>| match (of, kept_since) {
            (Some(of), Some(kept_since)) => of < kept_since,
            _ => false,
        };
        for fault in self.ends(&is_too_old) {
            self.fault(fault);
        }
        let mut lost: Vec<Place> = missing.into_keys().collect();
        lost.sort_unstable();
        for place in lost {
            let finding = Finding::Lost { object: place.name(tenant).to_string() };
            self.fault(Fault { finding, of: Some(place.at) });
        }
        self.faults.retain(|fault| !is_too_old(fault.of));
        let mut chains: Vec<_> = self.links.chains.keys().copied().collect();
        chains.sort_unstable();
        Verification {
            records: self.records,
            objects: self.objects,
            from: self.from.map(clock::rfc3339),
            to: self.to.map(clock::rfc3339),
            chains: chains.iter().filter_map(|chain| self.chain(*chain, now)).collect(),
            kept_since: self.kept_since,
            findings: self.faults.into_iter().map(|fault| fault.finding).collect(),
            more_findings: self.more_faults,
            witnessed: false,
        }
    }

    /// Finds chains that lack their beginning or their end, or that are gone.
    fn ends(&self, is_too_old: &dyn Fn(Option<UnixMillis>) -> bool) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (chain, followed) in self.links.chains.iter().filter(|(_, followed)| followed.first > 0) {
            let finding = Finding::Beheaded { chain: Id(*chain), number: followed.first };
            faults.push(Fault { finding, of: followed.first_after });
        }
        for (chain, seen) in &self.seen {
            let (chain, by, at) = (Id(*chain), Id(seen.by), clock::rfc3339(seen.at));
            let finding = match self.links.chains.get(&chain.0) {
                None => Finding::Gone { chain, seen: seen.objects, by, at },
                Some(there) if there.objects < seen.objects => {
                    Finding::Cut { chain, objects: there.objects, seen: seen.objects, by, at }
                }
                Some(_) => continue,
            };
            if !is_too_old(seen.last) {
                faults.push(finding.into());
            }
        }
        faults.sort_by_key(|fault| fault.finding.to_string());
        faults
    }

    fn chain(&self, chain: RecordingId, now: UnixMillis) -> Option<ChainState> {
        let followed = self.links.chains.get(&chain)?;
        let state = match self.promises.get(&chain).copied().flatten() {
            None => ChainLife::Ended,
            Some(promise) if promise >= now => ChainLife::Open,
            Some(promise) => match self.seen.get(&chain) {
                Some(seen) if seen.objects == followed.objects && seen.at > promise => ChainLife::Died,
                Some(_) | None => ChainLife::Silent,
            },
        };
        Some(ChainState {
            chain: Id(chain),
            node: followed.node.clone(),
            first: followed.first,
            records: followed.number,
            head: followed.head.clone(),
            last: clock::rfc3339(followed.last),
            state,
        })
    }
}
