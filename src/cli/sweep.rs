//! `callseal sweep`.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use crate::control::audit::AuditLog;
use crate::control::redate::{Redating, waiting};
use crate::control::sweep::{SweepOptions, SweepReport, Sweeper};
use crate::domain::ids::TenantId;
use crate::server::{purge_audit, sweep_options};
use crate::tenants::Book;

use super::target::{Opened, end_audit};
use super::{CommandResult, ConfigArg, output, runtime, serve};

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Say what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    /// Go on although more than retention.max_share_percent of all recordings are due, up to this share
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    allow_share: Option<u8>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(args: &SweepArgs) -> CommandResult {
    let config = args.config.load()?;
    serve::install_logs(&config)?;
    runtime()?.block_on(async {
        let opened = Opened::of(config).await?;
        opened.must_open()?;
        let audit = opened.audit_log()?;
        let done = sweep(args, opened, &audit).await;
        end_audit(&audit).await;
        done
    })
}

async fn sweep(args: &SweepArgs, opened: Opened, audit: &AuditLog) -> CommandResult {
    let notices = opened.notices();
    let Opened { config, store, keys } = opened;
    let options = sweep_options(&config);
    let max_share_percent = args.allow_share.unwrap_or(options.max_share_percent);
    let sweeper = Sweeper::new(
        Arc::clone(&store),
        Arc::clone(&keys),
        audit.clone(),
        SweepOptions { max_share_percent, ..options },
    )
    .with_notices(notices);
    if let Some(rules) = config.stored_tenants.as_ref().filter(|_| !args.dry_run) {
        let redating = Redating::new(Arc::clone(&store), Arc::clone(&keys), audit.clone());
        let book = Book::new(Arc::clone(&store), rules);
        redating.carry_out_all((&config, &book), &waiting(&config.tenants)).await;
    }
    let tenants: Vec<TenantId> = config.tenants.iter().map(|tenant| tenant.id.clone()).collect();
    let survey = sweeper.survey(&tenants).await?;
    let due = survey.report().due;
    if let Some(too_much) = survey.too_much_due() {
        print(args, survey.report());
        return Err(too_much.into());
    }
    if args.dry_run {
        print(args, survey.report());
        return Ok(());
    }
    let question = format!("{} will be destroyed for good.", output::counted(due, "recording"));
    if due > 0 && !args.yes && !output::confirm(&question)? {
        return Ok(());
    }
    let report = sweeper.run(&tenants).await?;
    print(args, report);
    let now = store.now().await.context("the store's clock")?;
    for tenant in &config.tenants {
        purge_audit(&keys, &*store, audit, tenant, now).await.context("old audit records")?;
    }
    if report.failed > 0 || report.overdue > 0 {
        bail_of(report)?;
    }
    Ok(())
}

fn bail_of(report: SweepReport) -> anyhow::Result<()> {
    let failed = output::counted(report.failed, "recording");
    bail!("{failed} could not be deleted, overdue: {}", report.overdue)
}

fn print(args: &SweepArgs, report: SweepReport) {
    let SweepReport { due, deleted, held, tidied, waiting, failed, overdue } = report;
    let dry_run = args.dry_run;
    output::line(&if args.json {
        json!({"dry_run": dry_run, "due": due, "deleted": deleted, "held": held, "tidied": tidied,
            "waiting": waiting, "failed": failed, "overdue": overdue})
        .to_string()
    } else {
        format!(
            "due {due}, deleted {deleted}, held {held}, waiting {waiting}, failed {failed}, overdue {overdue}"
        )
    });
}
