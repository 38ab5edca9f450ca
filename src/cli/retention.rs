//! `callseal recordings hold`, `release` and `delete`.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::clock;
use crate::control::retention::{OrderedBy, Orders};
use crate::domain::retention::Change;
use crate::domain::time::UnixMillis;

use super::target::{RecordingArg, end_audit};
use super::{CommandResult, output, runtime};

/// An order about one recording.
#[derive(Debug, Args)]
pub(super) struct OrderArgs {
    #[command(flatten)]
    target: RecordingArg,
    /// Why: goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Who orders it: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// An order that destroys.
#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// What is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Hold,
    Release,
    Delete,
}

pub(super) fn delete(args: &DeleteArgs) -> CommandResult {
    let DeleteArgs { order, yes } = args;
    let question = format!("Recording {} will be destroyed for good.", order.target.recording);
    if !order.dry_run && !yes && !output::confirm(&question)? {
        return Ok(());
    }
    place(order, What::Delete)
}

pub(super) fn place(args: &OrderArgs, what: What) -> CommandResult {
    let RecordingArg { tenant: tenant_arg, recording } = &args.target;
    let tenant = &tenant_arg.tenant;
    runtime()?.block_on(async {
        let opened = tenant_arg.open().await?;
        let by = OrderedBy::operator(&args.actor, &args.reason);
        let (audit, notices) = (opened.audit_log()?, opened.notices());
        let orders = Orders::new(Arc::clone(&opened.store), opened.keys, audit.clone()).with_notices(notices);
        let placed = match what {
            _ if args.dry_run => {
                let change = match what {
                    What::Hold => Change::Hold,
                    What::Release => Change::Release,
                    What::Delete => Change::ExpireAt(opened.store.now().await?),
                };
                orders.preview(tenant, *recording, change).await
            }
            What::Hold => orders.hold(tenant, *recording, &by).await,
            What::Release => orders.release(tenant, *recording, &by).await,
            What::Delete => orders.delete(tenant, *recording, &by).await,
        };
        end_audit(&audit).await;
        let placed = placed.with_context(|| format!("recording {recording}"))?;
        let expires = placed.order.expires_ms.map(|at| clock::rfc3339(UnixMillis(at)));
        output::line(&if args.json {
            json!({"recording": recording.to_string(), "changed": placed.changed, "hold": placed.order.hold,
                "ordered_expiry": expires, "dry_run": args.dry_run})
            .to_string()
        } else {
            format!("{recording}: {}", in_words(what, placed.changed, args.dry_run))
        });
        Ok(())
    })
}

fn in_words(what: What, changed: bool, dry_run: bool) -> &'static str {
    match (what, changed, dry_run) {
        (What::Hold, false, _) => "is held already",
        (What::Hold, true, false) => "is held: nothing deletes it until it is released",
        (What::Hold, true, true) => "would be held",
        (What::Release, false, _) => "is not held",
        (What::Release, true, false) => "is released: its date counts again",
        (What::Release, true, true) => "would be released",
        (What::Delete, false, _) => "is to be deleted already",
        (What::Delete, true, false) => "is deleted with the next sweep",
        (What::Delete, true, true) => "would be deleted with the next sweep",
    }
}
