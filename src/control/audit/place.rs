//! Where an object of audit records stands, and what its box is bound to.

use crate::clock;
use crate::domain::ids::{RecordingId, TenantTag};
use crate::domain::time::UnixMillis;
use crate::store::{ObjectName, layout};

/// When an object was written, and as which one of which chain. Places order as the names of their objects do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The time of all its records.
    pub(super) at: UnixMillis,
    pub(super) chain: RecordingId,
    /// Its number in its chain, from 0.
    pub(super) seq: u32,
}

impl Place {
    pub(super) fn name(self, tenant: TenantTag) -> ObjectName {
        layout::audit(tenant, &clock::utc_path(self.at), self.chain, self.seq)
    }

    /// Reads a place out of the one name that it has; `None` for any other.
    pub(super) fn parse(tenant: TenantTag, name: &ObjectName) -> Option<Self> {
        let rest = name.as_str().strip_prefix(&layout::audit_prefix(tenant))?.strip_suffix(".car")?;
        let (moment, rest) = rest.split_once('-')?;
        let (chain, seq) = rest.split_once('-')?;
        let place =
            Self { at: clock::parse_utc_path(moment)?, chain: chain.parse().ok()?, seq: seq.parse().ok()? };
        (place.name(tenant) == *name).then_some(place)
    }

    /// What the box is bound to: tenant, chain, number and time, so that it opens nowhere else.
    pub(super) fn context(self, tenant: TenantTag) -> Vec<u8> {
        [&tenant.0[..], &self.chain.0, &self.seq.to_be_bytes(), &self.at.0.to_be_bytes()].concat()
    }
}

/// What comes before all names of objects written at `at` or later.
pub(super) fn from(tenant: TenantTag, at: UnixMillis) -> ObjectName {
    layout::audit_from(tenant, &clock::utc_path(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_one_name_and_names_sort_by_time() {
        let tenant = TenantTag([1; 16]);
        let place = |at, chain, seq| Place { at: UnixMillis(at), chain: RecordingId([chain; 16]), seq };
        let places = [
            place(1_790_000_000_000, 9, 4),
            place(1_790_000_000_001, 2, 3),
            place(1_790_000_000_001, 2, 4),
            place(1_790_000_000_001, 3, 0),
            place(1_790_086_400_000, 1, 0),
        ];
        let names: Vec<_> = places.iter().map(|place| place.name(tenant)).collect();
        assert!(names.is_sorted());
        for (place, name) in places.iter().zip(&names) {
            assert_eq!(Place::parse(tenant, name), Some(*place));
            assert_eq!(Place::parse(TenantTag([2; 16]), name), None);
        }
        assert!(names[0] < from(tenant, places[1].at) && from(tenant, places[1].at) < names[1]);
        for wrong in [
            names[0].as_str().replace(".car", ".cmr"),
            names[0].as_str().replace("-00000004", "-4"),
            names[0].as_str().replace("-00000004", "-x"),
            format!("a/{tenant}/2026/09/21/{}-00000000.car", RecordingId([1; 16])),
            format!("a/{tenant}/x"),
        ] {
            assert_eq!(Place::parse(tenant, &ObjectName::new(wrong).unwrap()), None);
        }
    }
}
