//! Why there is no audit record, and what can be wrong with those that there are.

use serde::Serialize;

use crate::domain::ids::RecordingId;
use crate::keys::KeyError;
use crate::store::StoreError;

/// Why there is no audit record, and so no action; or why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Too many records wait, or a place where they must be kept does not take them in time.
    #[error("audit log does not take records")]
    Unavailable,
    /// Another object has the name of the next one of the chain.
    #[error("the name of an audit object is taken")]
    Taken,
    /// The audit key.
    #[error("audit key")]
    Key(#[from] KeyError),
    /// The store.
    #[error("store of audit records")]
    Store(#[from] StoreError),
    /// The second place where records are kept.
    #[error("file of audit records")]
    File(#[source] std::io::Error),
    /// Whoever wants to read does not take what is read.
    #[error("audit records cannot be handed on")]
    Output(#[source] std::io::Error),
    /// A record that was changed, moved or removed.
    #[error(transparent)]
    Broken(#[from] Box<Finding>),
}

impl From<Finding> for AuditError {
    fn from(finding: Finding) -> Self {
        Self::Broken(Box::new(finding))
    }
}

/// One thing that shows that somebody meddled with the log, or that a store has lost something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Finding {
    /// Something lies among the records that no node has put there.
    #[error("{object} is not an object of the audit log: no chain writes such a name")]
    Foreign {
        /// Its name.
        object: String,
    },
    /// A box that does not open at its place.
    #[error(
        "audit chain {chain} is broken at object {seq}: it does not open; it was changed, swapped, renamed or comes from \
         elsewhere"
    )]
    Changed {
        /// The chain.
        chain: Id,
        /// The object's number.
        seq: u32,
    },
    /// The chain's key does not open, or there is none.
    #[error("audit chain {chain} cannot be opened: there is no key for it under this tenant")]
    NoKey {
        /// The chain.
        chain: Id,
    },
    /// Objects are missing from within a chain.
    #[error("audit chain {chain} is broken at object {seq}: objects before it are missing, from {from} on")]
    Missing {
        /// The chain.
        chain: Id,
        /// The first missing object.
        from: u32,
        /// The one that was found instead.
        seq: u32,
    },
    /// An object is there twice, or comes late.
    #[error("audit chain {chain} is broken at object {seq}: it is out of order or there twice")]
    Repeated {
        /// The chain.
        chain: Id,
        /// The object's number.
        seq: u32,
    },
    /// A record that does not follow the one before it.
    #[error("audit chain {chain} is broken at record {number}: it does not follow the record before it")]
    Unlinked {
        /// The chain.
        chain: Id,
        /// The number that the record should have.
        number: u64,
    },
    /// The beginning of a chain is missing, and it was not removed because of its age.
    #[error("audit chain {chain} lacks its beginning: its first record is number {number}")]
    Beheaded {
        /// The chain.
        chain: Id,
        /// The number of its first record.
        number: u64,
    },
    /// The end of a chain is missing.
    #[error("audit chain {chain} was cut off: it has {objects} objects, and chain {by} saw {seen} at {at}")]
    Cut {
        /// The chain.
        chain: Id,
        /// Objects that are there.
        objects: u32,
        /// Objects that were there.
        seen: u32,
        /// The chain that saw them.
        by: Id,
        /// When.
        at: String,
    },
    /// All of a chain is missing.
    #[error("audit chain {chain} is gone: chain {by} saw {seen} objects of it at {at}")]
    Gone {
        /// The chain.
        chain: Id,
        /// Objects that were there.
        seen: u32,
        /// The chain that saw them.
        by: Id,
        /// When.
        at: String,
    },
    /// The copy outside of the store has an object that the store has not.
    #[error("{object} is missing: the copy outside of the store has it")]
    Lost {
        /// Its name.
        object: String,
    },
    /// The copy outside of the store has another object of the same name.
    #[error("{object} is another one than in the copy outside of the store")]
    Differs {
        /// Its name.
        object: String,
    },
}

/// The id of a chain, written as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(pub RecordingId);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
