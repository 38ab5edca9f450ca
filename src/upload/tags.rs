//! The retention tags on every object of a recording: a copy, for the operator, of what its manifest seals.

use crate::clock;
use crate::domain::ids::TenantTag;
use crate::domain::time::UnixMillis;
use crate::store::Tags;

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What retention says of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionTags {
    /// Whose recording.
    pub tenant: TenantTag,
    /// How many days it is kept after its end.
    pub days: u32,
}

impl RetentionTags {
    /// Returns the moment after which a recording that ended at `ended` must be gone.
    pub fn expires(&self, ended: UnixMillis) -> UnixMillis {
        UnixMillis(ended.0.saturating_add(u64::from(self.days) * DAY_MS))
    }

    /// Returns the tags of an object whose recording ended, or has come, at `at`.
    ///
    /// # Panics
    /// Never: six short keys with digits, dashes and letters are valid tags.
    pub fn tags(&self, at: UnixMillis) -> Tags {
        let mut tags = Tags::new();
        for (key, value) in [
            ("callseal-tenant", self.tenant.to_string()),
            ("callseal-class", "call-audio".to_owned()),
            ("callseal-retention-days", self.days.to_string()),
            ("callseal-expires", clock::utc_date(self.expires(at))),
            ("callseal-hold", "false".to_owned()),
            ("callseal-hipaa", "false".to_owned()),
        ] {
            tags.insert(key, value)
                .expect("short keys and values of digits, dashes and letters are valid tags");
        }
        tags
    }
}
