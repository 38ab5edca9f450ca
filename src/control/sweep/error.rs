//! Why a sweep has deleted nothing.

use crate::domain::retention::ClockFault;
use crate::store::StoreError;

/// Too much is due at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{due} of {entries} recordings are due, more than {allowed_percent} %; if that is right, run: callseal sweep \
     --allow-share 100"
)]
pub struct TooMuchDue {
    /// How many are due.
    pub due: u64,
    /// How many there are.
    pub entries: u64,
    /// How many may be.
    pub allowed_percent: u8,
}

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The clocks.
    #[error("clocks cannot be believed")]
    Clock(#[from] ClockFault),
    /// The circuit breaker.
    #[error(transparent)]
    TooMuchDue(#[from] TooMuchDue),
    /// The store does not give its clock or its index.
    #[error("expiry index")]
    Store(#[from] StoreError),
}

impl SweepError {
    /// Names the kind for metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Clock(_) => "clock",
            Self::TooMuchDue(_) => "too_much_due",
            Self::Store(_) => "store",
        }
    }
}
