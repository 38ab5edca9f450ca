//! `callseal repair`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};

use crate::config::Config;
use crate::control::repair::{Outcome, Settlement, Settler, Unsettled, scan};
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::time::UnixMillis;
use crate::server::retry_policy;
use crate::store::Store;

use super::target::{Opened, end_audit};
use super::{CommandResult, ConfigArg, output, runtime};

#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Only this tenant's recordings
    #[arg(long, value_name = "ID")]
    tenant: Option<TenantId>,
    /// Only this recording: 32 hexadecimal digits
    #[arg(long, value_name = "ID", requires = "tenant")]
    recording: Option<RecordingId>,
    /// Finish recordings whose newest object is at least so old; 0 also those of calls that run [default:
    /// `repair.after_secs`]
    #[arg(long, value_name = "SECONDS")]
    after: Option<u32>,
    /// Say what would be done, change nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RepairArgs) -> CommandResult {
    runtime()?.block_on(async {
        let opened = Opened::of(args.config.load()?).await?;
        opened.must_open()?;
        let (audit, notices) = (opened.audit_log()?, opened.notices());
        let Opened { config, store, keys } = opened;
        let policy = retry_policy(&config);
        let node = config.node.as_str().to_owned();
        let settler = Settler::new(Arc::clone(&store), keys, audit.clone(), node, policy)
            .with_notices(notices)
            .with_party_keys(config.index.party_keys.clone());
        let after = args.after.map_or(config.repair.after, |secs| Duration::from_secs(u64::from(secs)));
        let mut failed = 0;
        for tenant in tenants(args, &config)? {
            let now = store.now().await.context("the store's clock")?;
            let found = scan(&*store, &tenant, None, policy.try_timeout).await.context("list recordings")?;
            let wanted = |found: &&Unsettled| args.recording.is_none_or(|only| found.recording == only);
            for found in found.unsettled.iter().filter(wanted) {
                let done = if !is_old(found, now, after) {
                    Done::Young
                } else if args.dry_run {
                    Done::Would
                } else {
                    Done::Tried(settler.settle(&tenant, found.recording).await.map_err(anyhow::Error::from))
                };
                failed += u32::from(matches!(done, Done::Tried(Err(_))));
                print(args, &tenant, found, now, &done);
            }
        }
        end_audit(&audit).await;
        match failed {
            0 => Ok(()),
            _ => Err(anyhow!(
                "{} could not be finished; what there is stays as it is",
                output::counted(failed, "recording")
            )
            .into()),
        }
    })
}

/// What became of a recording.
enum Done {
    /// It may be a call that runs.
    Young,
    /// It would be finished, but for `--dry-run`.
    Would,
    Tried(anyhow::Result<Settlement>),
}

fn tenants(args: &RepairArgs, config: &Config) -> anyhow::Result<Vec<TenantId>> {
    match &args.tenant {
        Some(tenant) => {
            config.tenant(tenant).with_context(|| format!("there is no tenant {tenant}"))?;
            Ok(vec![tenant.clone()])
        }
        None => Ok(config.tenants.iter().map(|tenant| tenant.id.clone()).collect()),
    }
}

/// Where the store does not tell an age, only 0 is old enough.
fn is_old(found: &Unsettled, now: UnixMillis, after: Duration) -> bool {
    after.is_zero() || found.newest.is_some_and(|newest| newest.plus(after) <= now)
}

fn print(args: &RepairArgs, tenant: &TenantId, found: &Unsettled, now: UnixMillis, done: &Done) {
    let age_secs = found.newest.map(|newest| now.0.saturating_sub(newest.0) / 1000);
    let mut line = json!({"tenant": tenant.to_string(), "recording": found.recording.to_string(),
        "found": found.state.name(), "objects": found.objects, "age_secs": age_secs, "did": did(done)});
    if let (Some(line), Some(more)) = (line.as_object_mut(), details(done).as_object_mut()) {
        line.append(more);
    }
    if args.json {
        return output::line(&line.to_string());
    }
    let age = age_secs.map_or("of unknown age".to_owned(), |secs| format!("{secs} s old"));
    let Unsettled { recording, objects, .. } = found;
    let more = details(done);
    let more = more.as_object().into_iter().flatten();
    let more = more.fold(String::new(), |text, (name, value)| format!("{text}  {name}={value}"));
    output::line(&format!(
        "{tenant}  {recording}  {}, {objects} objects, {age}: {}{more}",
        found.state.name(),
        did(done)
    ));
}

fn did(done: &Done) -> &'static str {
    match done {
        Done::Young => "left alone, too young",
        Done::Would => "would be finished",
        Done::Tried(Ok(settlement)) => match settlement.outcome {
            Outcome::Nothing => "nothing",
            Outcome::AlreadyFinal => "already finished",
            Outcome::Cleaned => "leftovers deleted",
            Outcome::Finished { .. } => "finished",
        },
        Done::Tried(Err(_)) => "failed",
    }
}

fn details(done: &Done) -> Value {
    let Done::Tried(tried) = done else { return json!({}) };
    match tried {
        Ok(Settlement { outcome: Outcome::Finished { revision, rows, life }, set_aside }) => {
            json!({"revision": revision, "rows": rows, "life": life.name(), "set_aside": set_aside})
        }
        Ok(settlement) => json!({"set_aside": settlement.set_aside}),
        Err(error) => json!({"error": format!("{error:#}")}),
    }
}
