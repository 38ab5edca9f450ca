//! One rule of a bucket, as far as callseal makes and understands them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aws_sdk_s3::error::BuildError;
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, ExpirationStatus, LifecycleExpiration, LifecycleRule,
    LifecycleRuleAndOperator, LifecycleRuleFilter, NoncurrentVersionExpiration, Tag,
};
use serde::Serialize;

/// What the names of our rules begin with; all other rules are somebody else's.
const OURS: &str = "callseal-";
/// An upload that nobody finished is given up after so many days. Ours are finished or aborted within hours.
const UNFINISHED_DAYS: u32 = 7;

/// A rule of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its name in the bucket.
    pub id: String,
    /// Whether the store obeys it.
    pub is_enabled: bool,
    /// What the keys begin with that it is about.
    pub prefix: String,
    /// The tags that an object must have, all of them.
    pub tags: BTreeMap<String, String>,
    /// Objects are deleted so many days after they were made.
    pub delete_after_days: Option<u32>,
    /// Versions are destroyed so many days after they were replaced or deleted.
    pub destroy_versions_after_days: Option<u32>,
    /// Delete markers with no version behind them are removed.
    pub removes_markers: bool,
    /// Uploads are aborted so many days after they began.
    pub abort_uploads_after_days: Option<u32>,
}

impl Rule {
    /// Returns the rules for recordings kept for any of `windows` days, each to fire `grace_days` after that.
    ///
    /// `prefix` is what every key of ours begins with. Where the bucket keeps versions, these go, too.
    pub fn wanted(windows: &BTreeSet<u32>, grace_days: u32, prefix: &str, keeps_versions: bool) -> Vec<Self> {
        let mut rules: Vec<_> = windows
            .iter()
            .map(|days| Self {
                tags: BTreeMap::from([
                    ("callseal-hold".to_owned(), "false".to_owned()),
                    ("callseal-retention-days".to_owned(), days.to_string()),
                ]),
                delete_after_days: Some(days.saturating_add(grace_days)),
                destroy_versions_after_days: keeps_versions.then_some(1),
                ..Self::empty(format!("{OURS}{days}-days"), prefix)
            })
            .collect();
        // Stores take neither of these in a rule with tags.
        rules.push(Self {
            abort_uploads_after_days: Some(UNFINISHED_DAYS),
            removes_markers: keeps_versions,
            ..Self::empty(format!("{OURS}unfinished"), prefix)
        });
        rules
    }

    fn empty(id: String, prefix: &str) -> Self {
        Self {
            id,
            is_enabled: true,
            prefix: prefix.to_owned(),
            tags: BTreeMap::new(),
            delete_after_days: None,
            destroy_versions_after_days: None,
            removes_markers: false,
            abort_uploads_after_days: None,
        }
    }

    /// Returns how many days recordings are kept that this rule is about, if it is one of ours for recordings.
    pub fn window(&self) -> Option<u32> {
        self.id.strip_prefix(OURS)?.strip_suffix("-days")?.parse().ok()
    }

    /// Whether a rule of the bucket has a name of ours.
    pub(super) fn is_ours(rule: &LifecycleRule) -> bool {
        rule.id().is_some_and(|id| id.starts_with(OURS))
    }

    /// Reads a rule of the bucket; `None` if it says anything that ours never say.
    pub(super) fn read(rule: &LifecycleRule) -> Option<Self> {
        let is_strange = !rule.transitions().is_empty() || !rule.noncurrent_version_transitions().is_empty();
        if is_strange {
            return None;
        }
        let mut seen = Self {
            is_enabled: *rule.status() == ExpirationStatus::Enabled,
            ..Self::empty(rule.id()?.to_owned(), &prefix_of(rule))
        };
        if let Some(filter) = rule.filter() {
            if filter.object_size_greater_than().is_some() || filter.object_size_less_than().is_some() {
                return None;
            }
            let several = filter.and();
            if several.is_some_and(|and| {
                and.object_size_greater_than().is_some() || and.object_size_less_than().is_some()
            }) {
                return None;
            }
            let tags = several.map(LifecycleRuleAndOperator::tags).unwrap_or_default();
            for tag in tags.iter().chain(filter.tag()) {
                seen.tags.insert(tag.key().to_owned(), tag.value().to_owned());
            }
        }
        if let Some(expiration) = rule.expiration() {
            if expiration.date().is_some() {
                return None;
            }
            seen.delete_after_days = days(expiration.days())?;
            seen.removes_markers = expiration.expired_object_delete_marker() == Some(true);
        }
        if let Some(versions) = rule.noncurrent_version_expiration() {
            if versions.newer_noncurrent_versions().is_some_and(|kept| kept > 0) {
                return None;
            }
            seen.destroy_versions_after_days = days(versions.noncurrent_days())?;
        }
        if let Some(abort) = rule.abort_incomplete_multipart_upload() {
            seen.abort_uploads_after_days = days(abort.days_after_initiation())?;
        }
        Some(seen)
    }

    /// Writes the rule for the store.
    pub(super) fn write(&self) -> Result<LifecycleRule, BuildError> {
        let number = |days: u32| i32::try_from(days).unwrap_or(i32::MAX);
        let mut rule = LifecycleRule::builder().id(&self.id).filter(self.filter()?);
        rule =
            rule.status(if self.is_enabled { ExpirationStatus::Enabled } else { ExpirationStatus::Disabled });
        if self.delete_after_days.is_some() || self.removes_markers {
            let expiration = LifecycleExpiration::builder().set_days(self.delete_after_days.map(number));
            let expiration =
                expiration.set_expired_object_delete_marker(self.removes_markers.then_some(true));
            rule = rule.expiration(expiration.build());
        }
        if let Some(after) = self.destroy_versions_after_days {
            let versions = NoncurrentVersionExpiration::builder().noncurrent_days(number(after));
            rule = rule.noncurrent_version_expiration(versions.build());
        }
        if let Some(after) = self.abort_uploads_after_days {
            let abort = AbortIncompleteMultipartUpload::builder().days_after_initiation(number(after));
            rule = rule.abort_incomplete_multipart_upload(abort.build());
        }
        rule.build()
    }

    fn filter(&self) -> Result<LifecycleRuleFilter, BuildError> {
        if self.tags.is_empty() {
            return Ok(LifecycleRuleFilter::builder().prefix(&self.prefix).build());
        }
        let mut and = LifecycleRuleAndOperator::builder();
        // Some stores lose the tags beside an empty prefix.
        if !self.prefix.is_empty() {
            and = and.prefix(&self.prefix);
        }
        for (key, value) in &self.tags {
            and = and.tags(Tag::builder().key(key).value(value).build()?);
        }
        Ok(LifecycleRuleFilter::builder().and(and.build()).build())
    }
}

/// Whether a rule of somebody else may delete objects whose keys begin with `prefix`.
pub(super) fn may_delete_ours(rule: &LifecycleRule, prefix: &str) -> bool {
    let theirs = prefix_of(rule);
    let deletes = rule
        .expiration()
        .is_some_and(|expiration| expiration.days().is_some() || expiration.date().is_some());
    *rule.status() == ExpirationStatus::Enabled
        && deletes
        && (theirs.starts_with(prefix) || prefix.starts_with(&theirs))
}

/// Returns what the keys begin with that a rule is about, wherever it says so.
fn prefix_of(rule: &LifecycleRule) -> String {
    let filter = rule.filter();
    let in_filter = filter.and_then(|filter| filter.prefix().or_else(|| filter.and()?.prefix()));
    #[expect(deprecated, reason = "buckets have old rules")]
    let outside = rule.prefix();
    in_filter.or(outside).unwrap_or_default().to_owned()
}

/// Reads a number of days, which may be missing; `None` for one that cannot be.
fn days(days: Option<i32>) -> Option<Option<u32>> {
    // RGW answers 0 for what it was not given.
    days.filter(|days| *days != 0).map(u32::try_from).transpose().ok()
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.id)?;
        if let Some(days) = self.delete_after_days {
            write!(f, " delete after {days} days")?;
        }
        if let Some(days) = self.destroy_versions_after_days {
            write!(f, ", versions {days} day later")?;
        }
        if let Some(days) = self.abort_uploads_after_days {
            write!(f, " abort unfinished uploads after {days} days")?;
        }
        if self.removes_markers {
            write!(f, ", remove delete markers")?;
        }
        let tags: Vec<_> = self.tags.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        match tags.is_empty() {
            true => write!(f, ", whatever the tags")?,
            false => write!(f, ", only with {}", tags.join(" and "))?,
        }
        if !self.prefix.is_empty() {
            write!(f, ", only below {}", self.prefix)?;
        }
        if !self.is_enabled {
            write!(f, ", switched off")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(prefix: &str, keeps_versions: bool) -> Vec<Rule> {
        Rule::wanted(&BTreeSet::from([90, 365]), 30, prefix, keeps_versions)
    }

    #[test]
    fn there_is_a_rule_for_each_window_and_one_for_uploads() {
        let rules = wanted("eu/", true);
        let texts: Vec<_> = rules.iter().map(ToString::to_string).collect();
        let tags = |days| format!("only with callseal-hold = false and callseal-retention-days = {days}");
        assert_eq!(
            texts,
            [
                format!("callseal-90-days: delete after 120 days, versions 1 day later, {}, only below eu/", tags(90)),
                format!("callseal-365-days: delete after 395 days, versions 1 day later, {}, only below eu/", tags(365)),
                "callseal-unfinished: abort unfinished uploads after 7 days, remove delete markers, whatever the \
                 tags, only below eu/"
                    .to_owned(),
            ]
        );
        assert_eq!(rules.iter().map(Rule::window).collect::<Vec<_>>(), [Some(90), Some(365), None]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for rule in wanted("", false).into_iter().chain(wanted("eu/", true)) {
            assert_eq!(Rule::read(&rule.write().unwrap()), Some(rule));
        }
    }

    #[test]
    fn a_rule_that_lost_its_filter_is_another_rule() {
        let rule = &wanted("", false)[0];
        let written = rule.write().unwrap();
        let stored = LifecycleRule::builder()
            .id(written.id().unwrap())
            .status(ExpirationStatus::Enabled)
            .expiration(written.expiration().unwrap().clone())
            .filter(LifecycleRuleFilter::builder().prefix("").build())
            .build()
            .unwrap();
        assert_ne!(Rule::read(&stored).as_ref(), Some(rule));
    }

    #[test]
    fn rules_of_others_that_may_delete_recordings_are_known() {
        let rule = |prefix: &str, days: Option<i32>| {
            let expiration = LifecycleExpiration::builder().set_days(days).build();
            let filter = LifecycleRuleFilter::builder().prefix(prefix).build();
            let rule = LifecycleRule::builder().status(ExpirationStatus::Enabled).filter(filter);
            rule.expiration(expiration).build().unwrap()
        };
        for (theirs, days, ours, expected) in [
            ("", Some(3), "eu/", true),
            ("eu/r/", Some(3), "eu/", true),
            ("us/", Some(3), "eu/", false),
            ("us/", Some(3), "", true),
            ("", None, "", false),
        ] {
            assert_eq!(may_delete_ours(&rule(theirs, days), ours), expected, "{theirs} {days:?} {ours}");
        }
    }
}
