//! Rules of the bucket: a late safety net behind the sweeper, for stores that understand them.
//!
//! A store may keep a rule and lose its filter, and the rule then deletes the whole bucket. So what was put is read back
//! at once, and what is not exactly as it was given is taken back. Rules of others in the same bucket stay as they are.

use std::time::Duration;

use aws_sdk_s3::types::{BucketLifecycleConfiguration, LifecycleRule};

use crate::store::StoreError;

use super::{Bucket, S3Store};

mod rule;

pub use rule::Rule;

/// A store may show the rules from before for a moment; it is asked so often, a second apart.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The rules of a bucket.
#[derive(Debug, Clone)]
pub struct BucketRules {
    all: Vec<LifecycleRule>,
    prefix: String,
}

/// Why rules were not applied.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// The store refused or did not answer; the rules are as they were, unless an answer was lost.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store showed other rules than it was given, and has none of the new ones any more.
    #[error(
        "the store did not keep the rules as they were given, so they were taken back; it must not be given rules"
    )]
    TakenBack,
    /// As before, and they could not be taken back.
    #[error(
        "the store did not keep the rules as they were given, AND THEY COULD NOT BE TAKEN BACK: remove the lifecycle \
         configuration of the bucket now, or it may delete recordings"
    )]
    Stuck(#[source] StoreError),
}

impl BucketRules {
    /// Returns the rules with a name of ours that can be understood.
    pub fn ours(&self) -> Vec<Rule> {
        self.all.iter().filter(|rule| Rule::is_ours(rule)).filter_map(Rule::read).collect()
    }

    /// Counts the rules of others.
    pub fn of_others(&self) -> usize {
        self.all.iter().filter(|rule| !Rule::is_ours(rule)).count()
    }

    /// Names the rules that may delete recordings before their time: of others, or changed by somebody.
    pub fn dangers(&self, wanted: &[Rule]) -> Vec<String> {
        let is_danger = |rule: &&LifecycleRule| {
            rule::may_delete_ours(rule, &self.prefix)
                && !Rule::read(rule).is_some_and(|read| wanted.contains(&read))
        };
        let name = |rule: &LifecycleRule| rule.id().unwrap_or("(without a name)").to_owned();
        self.all.iter().filter(is_danger).map(name).collect()
    }

    /// Returns all rules after ours were replaced by `wanted`.
    fn with(&self, wanted: &[Rule]) -> Result<Self, StoreError> {
        let mut all: Vec<_> = self.all.iter().filter(|rule| !Rule::is_ours(rule)).cloned().collect();
        for rule in wanted {
            all.push(
                rule.write().map_err(|_| StoreError::Refused { rule: "a rule has a filter and a status" })?,
            );
        }
        Ok(Self { all, prefix: self.prefix.clone() })
    }

    /// Whether both say the same, in whatever order.
    fn is_same(&self, other: &Self) -> bool {
        let has = |rules: &Self, rule: &LifecycleRule| match Rule::read(rule) {
            Some(read) => rules.all.iter().any(|other| Rule::read(other).as_ref() == Some(&read)),
            None => rules.all.contains(rule),
        };
        self.all.len() == other.all.len() && self.all.iter().all(|rule| has(other, rule))
    }
}

impl S3Store {
    /// Reads the rules of the bucket; a bucket without any has an empty list.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lifecycle(&self) -> Result<BucketRules, StoreError> {
        self.bucket.rules().await
    }

    /// Replaces our rules in the bucket, reads all rules back, and takes them back unless they are what was given.
    ///
    /// # Errors
    /// [`LifecycleError`].
    pub async fn apply_lifecycle(&self, wanted: &[Rule]) -> Result<(), LifecycleError> {
        let bucket = &self.bucket;
        let before = bucket.rules().await?;
        let after = before.with(wanted)?;
        bucket.put_rules(&after).await?;
        for _ in 0..LOOKS {
            // Rules that nobody can read back are as bad as wrong ones.
            let Ok(seen) = bucket.rules().await else { break };
            if seen.is_same(&after) {
                return Ok(());
            }
            if !seen.is_same(&before) {
                break;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        bucket.take_back(&before).await.map_err(LifecycleError::Stuck)?;
        Err(LifecycleError::TakenBack)
    }
}

impl Bucket {
    async fn rules(&self) -> Result<BucketRules, StoreError> {
        let asked = self.client.get_bucket_lifecycle_configuration().bucket(self.name()).send().await;
        let all = match asked {
            Ok(answer) => answer.rules.unwrap_or_default(),
            Err(error) => {
                let failed = self.failed(error);
                if !failed.is_code("NoSuchLifecycleConfiguration") {
                    return Err(failed.during("read lifecycle rules"));
                }
                Vec::new()
            }
        };
        Ok(BucketRules { all, prefix: self.options.prefix.clone() })
    }

    async fn put_rules(&self, rules: &BucketRules) -> Result<(), StoreError> {
        let configuration = BucketLifecycleConfiguration::builder().set_rules(Some(rules.all.clone()));
        let configuration =
            configuration.build().map_err(|_| StoreError::Refused { rule: "a configuration has rules" })?;
        let put = self.client.put_bucket_lifecycle_configuration().bucket(self.name());
        let put = put.lifecycle_configuration(configuration).send().await;
        put.map(drop).map_err(|error| self.failed(error).during("write lifecycle rules"))
    }

    /// Puts the rules from before; where they do not come back as they were, no rule is better than a wrong one.
    async fn take_back(&self, before: &BucketRules) -> Result<(), StoreError> {
        let are_back = async || {
            self.put_rules(before).await?;
            Ok::<_, StoreError>(self.rules().await?.is_same(before))
        };
        if !before.all.is_empty() && are_back().await.unwrap_or(false) {
            return Ok(());
        }
        let deleted = self.client.delete_bucket_lifecycle().bucket(self.name()).send().await;
        deleted.map_err(|error| self.failed(error).during("delete lifecycle rules"))?;
        if self.rules().await?.all.is_empty() {
            Ok(())
        } else {
            Err(StoreError::Refused { rule: "the store has lifecycle rules after it deleted them" })
        }
    }
}
