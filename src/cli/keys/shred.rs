//! `callseal keys shred`: destroys recordings at once, key first.

use anyhow::bail;
use clap::{ArgGroup, Args};
use serde_json::json;

use crate::control::erase::{EraseReport, Eraser, Target};
use crate::control::retention::OrderedBy;
use crate::domain::ids::RecordingId;

use super::super::find::TermArgs;
use super::super::target::{TenantArg, end_audit};
use super::super::{CommandResult, output, runtime, serve};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["recording", "call", "party", "all"]))]
pub(crate) struct ShredArgs {
    #[command(flatten)]
    target: TenantArg,
    /// One recording: 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    recording: Option<RecordingId>,
    #[command(flatten)]
    term: TermArgs,
    /// Every recording of the tenant, and its index
    #[arg(long)]
    all: bool,
    /// Who orders it: goes into audit log and deletion ledger
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
    /// Why: goes into audit log and deletion ledger
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Count what would be destroyed, and destroy nothing
    #[arg(long)]
    dry_run: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl ShredArgs {
    fn what(&self) -> anyhow::Result<Target> {
        if let Some(recording) = self.recording {
            return Ok(Target::Recording(recording));
        }
        if let Some(term) = self.term.term()? {
            return Ok(Target::Term(term));
        }
        if self.all {
            return Ok(Target::Tenant);
        }
        bail!("nothing is named; allowed: --recording, --call, --party or --all")
    }
}

pub(crate) fn shred(args: &ShredArgs) -> CommandResult {
    let ShredArgs { target, actor, reason, .. } = args;
    let what = args.what()?;
    serve::install_logs(&target.config.load()?)?;
    runtime()?.block_on(async {
        let opened = target.open().await?;
        let audit = opened.audit_log()?;
        let notices = opened.notices();
        let eraser = Eraser::new(opened.store, opened.keys, audit.clone(), opened.config.retention.grace)
            .with_notices(notices);
        let by = OrderedBy::operator(actor, reason);
        let done = shred_with(&eraser, args, &what, &by).await;
        end_audit(&audit).await;
        done
    })
}

async fn shred_with(eraser: &Eraser, args: &ShredArgs, what: &Target, by: &OrderedBy) -> CommandResult {
    let ShredArgs { target, dry_run, json: as_json, yes, .. } = args;
    let tenant = &target.tenant;
    if *dry_run || !yes {
        let survey = eraser.survey(tenant, what, by).await?;
        if *dry_run {
            print(&survey, true, *as_json);
            return must_be_known(what, &survey);
        }
        let EraseReport { deleted, held, waiting, .. } = survey;
        let question = format!(
            "{} of {tenant} will be destroyed for good, {waiting} when somebody has finished with them; {held} are held \
             and stay.",
            output::counted(deleted, "recording")
        );
        if deleted + waiting == 0 {
            print(&survey, false, *as_json);
            return must_be_known(what, &survey);
        }
        if !output::confirm(&question)? {
            return Ok(());
        }
    }
    let report = eraser.run(tenant, what, by, |_| ()).await?;
    print(&report, false, *as_json);
    must_be_known(what, &report)?;
    if report.failed > 0 {
        return Err(anyhow::anyhow!("{} recordings were not destroyed; say it again", report.failed).into());
    }
    Ok(())
}

/// A wrong id must not look like a recording that is gone.
fn must_be_known(what: &Target, report: &EraseReport) -> CommandResult {
    match what {
        Target::Recording(_) if report.found == 0 => {
            Err(anyhow::anyhow!("there is no such recording, and no receipt of one").into())
        }
        Target::Recording(_) | Target::Term(_) | Target::Tenant => Ok(()),
    }
}

pub(crate) fn print(report: &EraseReport, dry_run: bool, as_json: bool) {
    let EraseReport { found, deleted, held, waiting, gone, failed } = report;
    output::line(&if as_json {
        let mut shown = json!(report);
        if let Some(shown) = shown.as_object_mut() {
            shown.insert("dry_run".into(), json!(dry_run));
        }
        shown.to_string()
    } else {
        let deleted_word = if dry_run { "would be deleted" } else { "deleted" };
        format!(
            "found {found}, {deleted_word} {deleted}, held {held}, waiting {waiting}, gone before {gone}, failed {failed}"
        )
    });
}
