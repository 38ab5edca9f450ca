//! What can go wrong with a store, told apart by what the caller can do.

use std::io;
use std::time::Duration;

use crate::clock;
use crate::domain::time::UnixMillis;

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no object of that name.
    #[error("no such object")]
    NotFound,
    /// The range holds no byte of the object.
    #[error("range lies outside the object of {total_size} bytes")]
    OutOfRange {
        /// The size of the object in bytes.
        total_size: u64,
    },
    /// The store knows us and says no; somebody must change credentials, rights or the bucket.
    #[error("store denies to {action}")]
    Denied {
        /// What was tried.
        action: &'static str,
        /// What the store or the system said.
        #[source]
        source: io::Error,
    },
    /// The store asks to come back later.
    #[error("store is busy")]
    Busy {
        /// How long to wait at least, if the store says.
        retry_after: Option<Duration>,
    },
    /// The store has no space; it may have some again later.
    #[error("store is full, cannot {action}")]
    Full {
        /// What was tried.
        action: &'static str,
        /// What the store or the system said.
        #[source]
        source: io::Error,
    },
    /// What the store holds is not what was stored.
    #[error("store is corrupt: {what}")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
    },
    /// The request breaks a rule of the trait or of this store; it is a fault of the caller.
    #[error("store refuses: {rule}")]
    Refused {
        /// The rule.
        rule: &'static str,
    },
    /// The store has no such feature; see [`StoreProfile`](super::StoreProfile).
    #[error("store has no {feature}")]
    Unsupported {
        /// What it lacks.
        feature: &'static str,
    },
    /// The store keeps the object until a moment, whoever asks; see [`Store::lock`](super::Store::lock).
    #[error("store keeps the object until {}", clock::utc_date(*.until))]
    Locked {
        /// The last moment of what is kept longest, by the store's clock.
        until: UnixMillis,
    },
    /// The request failed on the way; it may have been carried out.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Tells whether the same request may succeed later although nobody changes anything.
    ///
    /// [`StoreError::Denied`] is not: the bytes stay where they are until an operator acts.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Full { .. } | Self::Io { .. } => true,
            Self::NotFound
            | Self::OutOfRange { .. }
            | Self::Denied { .. }
            | Self::Corrupt { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. }
            | Self::Locked { .. } => false,
        }
    }

    /// Names the kind for metrics: one of ten fixed words.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Denied { .. } => "denied",
            Self::Busy { .. } => "busy",
            Self::Full { .. } => "full",
            Self::Corrupt { .. } => "corrupt",
            Self::Refused { .. } => "refused",
            Self::Unsupported { .. } => "unsupported",
            Self::Locked { .. } => "locked",
            Self::Io { .. } => "io",
        }
    }

    /// Sorts an error of the file system; `action` completes "cannot …".
    pub(crate) fn from_io(action: &'static str, source: io::Error) -> Self {
        use io::ErrorKind as Kind;
        #[expect(clippy::wildcard_enum_match_arm, reason = "the list of kinds is open")]
        match source.kind() {
            Kind::NotFound => Self::NotFound,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Denied { action, source },
            Kind::StorageFull | Kind::QuotaExceeded => Self::Full { action, source },
            Kind::NotADirectory | Kind::IsADirectory => {
                Self::Refused { rule: "an object's name cannot continue another object's name after a '/'" }
            }
            Kind::UnexpectedEof => Self::Corrupt { what: "object is shorter than its size says" },
            _ => Self::Io { action, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_sorted_by_what_can_be_done() {
        let sorted = |kind: io::ErrorKind| StoreError::from_io("write object", kind.into());
        assert!(matches!(sorted(io::ErrorKind::StorageFull), StoreError::Full { .. }));
        assert!(matches!(sorted(io::ErrorKind::PermissionDenied), StoreError::Denied { .. }));
        assert!(matches!(sorted(io::ErrorKind::ReadOnlyFilesystem), StoreError::Denied { .. }));
        assert!(matches!(sorted(io::ErrorKind::NotFound), StoreError::NotFound));
        assert!(sorted(io::ErrorKind::StorageFull).is_retryable());
        assert!(sorted(io::ErrorKind::ConnectionReset).is_retryable());
        assert!(!sorted(io::ErrorKind::PermissionDenied).is_retryable());
    }
}
