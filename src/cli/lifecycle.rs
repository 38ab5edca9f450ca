//! `callseal lifecycle`.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::config::{Config, S3, StoreKind};
use crate::server::open_store;
use crate::store::Store;
use crate::store::probe::{self, Feature, Found};
use crate::store::s3::{BucketRules, Rule, S3Store};

use super::target::with_stored;
use super::{CommandResult, ConfigArg, output, runtime};

const DAY_SECS: u64 = 24 * 3600;

#[derive(Debug, Subcommand)]
pub(super) enum LifecycleCommand {
    /// Compare the rules of the bucket with those that callseal would give it; fails if they differ or are dangerous
    Show(ShowArgs),
    /// Give the bucket rules that delete recordings retention.grace_days after their date, should no sweep ever do it
    Apply(ApplyArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Say what the rules would be, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove the rules for numbers of days that no tenant has any more; recordings from before may still have them
    #[arg(long)]
    prune: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(command: &LifecycleCommand) -> CommandResult {
    let (LifecycleCommand::Show(ShowArgs { config, .. }) | LifecycleCommand::Apply(ApplyArgs { config, .. })) =
        command;
    let config = config.load()?;
    runtime()?.block_on(async {
        let config = complete(config).await?;
        match command {
            LifecycleCommand::Show(args) => show(args, &config).await,
            LifecycleCommand::Apply(args) => apply(args, &config).await,
        }
    })?;
    Ok(())
}

async fn show(args: &ShowArgs, config: &Config) -> anyhow::Result<()> {
    let bucket = bucket(config)?;
    let rules = S3Store::open(bucket)?.lifecycle().await?;
    let wanted = wanted(config, bucket, &rules, false);
    let (ours, dangers) = (rules.ours(), rules.dangers(&wanted));
    if args.json {
        let object =
            json!({"in_bucket": ours, "wanted": wanted, "of_others": rules.of_others(), "dangers": dangers});
        output::line(&serde_json::to_string_pretty(&object)?);
    } else {
        output::line(&table(&ours, &wanted, rules.of_others()));
    }
    if !dangers.is_empty() {
        bail!("these rules may delete recordings before their time: {}", dangers.join(", "));
    }
    if !wanted.iter().all(|rule| ours.contains(rule)) {
        bail!("the bucket does not have the rules that callseal would give it");
    }
    Ok(())
}

async fn apply(args: &ApplyArgs, config: &Config) -> anyhow::Result<()> {
    let bucket = bucket(config)?;
    if !bucket.claims.tags {
        bail!(
            "the store keeps no tags (store.tags = false), so a rule cannot tell recordings apart; it needs none, the \
             sweeper works without"
        );
    }
    let store = S3Store::open(bucket)?;
    let before = store.lifecycle().await?;
    let wanted = wanted(config, bucket, &before, args.prune);
    output::line(&table(&before.ours(), &wanted, before.of_others()));
    if args.dry_run {
        return Ok(());
    }
    must_keep_tags(&store).await?;
    if !args.yes
        && !output::confirm("The bucket will delete what these rules say, also if callseal does not run.")?
    {
        return Ok(());
    }
    store.apply_lifecycle(&wanted).await?;
    output::line("applied, read back, and found as given");
    let dangers = store.lifecycle().await?.dangers(&wanted);
    if !dangers.is_empty() {
        bail!("other rules of the bucket may delete recordings before their time: {}", dangers.join(", "));
    }
    Ok(())
}

/// Rules are for the days of all tenants, also of those of the store.
async fn complete(config: Config) -> anyhow::Result<Config> {
    match config.stored_tenants {
        Some(_) => {
            let store = open_store(&config).await?;
            with_stored(config, &store).await
        }
        None => Ok(config),
    }
}

fn bucket(config: &Config) -> anyhow::Result<&S3> {
    match &config.store {
        StoreKind::S3(bucket) => Ok(bucket),
        StoreKind::Folder { .. } => bail!("a folder has no lifecycle rules: the sweeper deletes what is due"),
    }
}

/// Returns the rules for the days of all tenants and, unless they are to go, of rules that are there already.
fn wanted(config: &Config, bucket: &S3, rules: &BucketRules, prune: bool) -> Vec<Rule> {
    let mut windows: BTreeSet<u32> =
        config.tenants.iter().map(|tenant| tenant.retention.call_audio_days).collect();
    if !prune {
        windows.extend(rules.ours().iter().filter_map(Rule::window));
    }
    let grace_days = u32::try_from(config.retention.grace.as_secs() / DAY_SECS).unwrap_or(u32::MAX);
    Rule::wanted(&windows, grace_days, &bucket.prefix, bucket.claims.versions)
}

/// A rule that looks at tags is for a store that was seen to keep them, however an object was made.
async fn must_keep_tags(store: &dyn Store) -> anyhow::Result<()> {
    let findings = probe::run(store).await.context("probe")?;
    for feature in [Feature::TagsOnPut, Feature::TagsOnUpload] {
        let found = findings.iter().find(|finding| finding.feature == feature).map(|finding| finding.found);
        if found != Some(Found::Yes) {
            bail!("the store was not seen to keep tags ({}); no rule is given to it", feature.label());
        }
    }
    Ok(())
}

fn table(ours: &[Rule], wanted: &[Rule], of_others: usize) -> String {
    let mut lines = Vec::new();
    for rule in wanted {
        let state = match ours.iter().find(|other| other.id == rule.id) {
            Some(other) if other == rule => "in place",
            Some(_) => "differs",
            None => "missing",
        };
        lines.push(format!("{state:<9} {rule}"));
    }
    for rule in ours.iter().filter(|rule| wanted.iter().all(|other| other.id != rule.id)) {
        lines.push(format!("{:<9} {rule}", "unwanted"));
    }
    lines.push(format!("rules of others, which stay as they are: {of_others}"));
    lines.join("\n")
}
