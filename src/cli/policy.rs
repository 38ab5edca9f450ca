//! `callseal retention`.

use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::clock;
use crate::control::audit::AuditEvent;
use crate::control::redate::{Redated, Redating};
use crate::domain::policy::{Policy, Settled, Wanted, Way};
use crate::domain::ticket::RETENTION_DAYS;
use crate::domain::time::UnixMillis;
use crate::tenants::{ChangeError, Draft, RetentionOrder};

use super::target::{Opened, TenantArg, end_audit};
use super::tenant::{By, Kept, OrderArgs, Target, explained};
use super::{CommandResult, output, runtime, serve};

#[derive(Debug, Subcommand)]
pub(super) enum RetentionCommand {
    /// Show for how many days a tenant's recordings are kept, what is proposed, and what was decided
    Show(ShowArgs),
    /// Keep recordings of a tenant of the store for fewer days, at once, or propose more
    Change(ChangeArgs),
    /// Let the proposed days hold; whoever proposed them cannot
    Approve(OrderArgs),
    /// Take back what is proposed, or decline it
    Withdraw(OrderArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    target: TenantArg,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    decide: OrderArgs,
    /// Days from the end of a call to the expiry of its audio
    #[arg(long, value_name = "DAYS", value_parser = days)]
    days: u32,
    /// Give calls that have ended the date as well; more days when they are approved
    #[arg(long)]
    also_ended: bool,
    /// Say what would change, with counts for --also-ended, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before recordings are given an earlier date
    #[arg(long)]
    yes: bool,
}

fn days(text: &str) -> Result<u32, String> {
    let days = text.parse().ok().filter(|days| RETENTION_DAYS.contains(days));
    days.ok_or_else(|| format!("allowed: {} to {}", RETENTION_DAYS.start(), RETENTION_DAYS.end()))
}

pub(super) fn run(command: &RetentionCommand) -> CommandResult {
    runtime()?.block_on(async {
        match command {
            RetentionCommand::Show(args) => show(args).await,
            RetentionCommand::Change(args) => Box::pin(change(args)).await,
            RetentionCommand::Approve(args) => Box::pin(decide(args, RetentionOrder::Approve)).await,
            RetentionCommand::Withdraw(args) => Box::pin(decide(args, RetentionOrder::Withdraw)).await,
        }
    })
}

async fn show(args: &ShowArgs) -> CommandResult {
    let (opened, id) = (args.target.open().await?, &args.target.tenant);
    let tenant = opened.config.tenant(id).with_context(|| format!("there is no tenant {id}"))?;
    let now = opened.store.now().await?;
    let policy = match &opened.config.stored_tenants {
        Some(rules) if tenant.origin != crate::config::Origin::File => {
            let book = crate::tenants::Book::new(Arc::clone(&opened.store), rules);
            book.newest(id.tag()).await?.ok_or(ChangeError::NotFound)?.retention
        }
        Some(_) | None => Policy::default(),
    };
    let days = tenant.retention.call_audio_days;
    if args.json {
        output::line(&shown(id.as_str(), days, &policy, now).to_string());
        return Ok(());
    }
    output::line(&format!(
        "{id}: recordings are kept for {} after the end of a call",
        output::counted(days, "day")
    ));
    if let Some(proposal) = policy.pending(now) {
        output::line(&format!(
            "proposed: {}{}, by {:?}, because: {:?}; can be approved until {}",
            output::counted(proposal.days, "day"),
            if proposal.also_ended { ", for ended calls as well" } else { "" },
            proposal.by,
            proposal.reason,
            clock::rfc3339(proposal.expires())
        ));
    }
    policy.history(now).iter().for_each(|settled| output::line(&in_words(settled)));
    Ok(())
}

fn in_words(settled: &Settled) -> String {
    let Settled { number, outcome, days_before, days, reason, by, at_ms, .. } = settled;
    let at = clock::rfc3339(UnixMillis(*at_ms));
    let ended = match (settled.also_ended, settled.done_at_ms) {
        (false, _) => String::new(),
        (true, None) => ", ended calls wait for a sweep".to_owned(),
        (true, Some(at)) => format!(", ended calls as well, done at {}", clock::rfc3339(UnixMillis(at))),
    };
    let decision = settled.decision.as_ref().map_or_else(String::new, |decision| {
        let at = clock::rfc3339(UnixMillis(decision.at_ms));
        format!("; {} at {at} by {:?}, because: {:?}", outcome.name(), decision.by, decision.reason)
    });
    format!(
        "{number}  {at}  {}  {days_before} -> {days} days{ended}, by {by:?}, because: {reason:?}{decision}",
        outcome.name()
    )
}

fn shown(tenant: &str, days: u32, policy: &Policy, now: UnixMillis) -> Value {
    let time = |at: u64| clock::rfc3339(UnixMillis(at));
    let pending = policy.pending(now).map(|proposal| {
        json!({"call_audio_days_before": proposal.days_before, "call_audio_days": proposal.days, "also_ended": proposal.also_ended, "reason": proposal.reason,
            "by": proposal.by, "at": time(proposal.at_ms), "expires": clock::rfc3339(proposal.expires())})
    });
    let history: Vec<_> = policy
        .history(now)
        .iter()
        .map(|one| {
            let decision = one.decision.as_ref().map(|decision| {
                json!({"by": decision.by, "reason": decision.reason, "at": time(decision.at_ms)})
            });
            json!({"number": one.number, "outcome": one.outcome.name(), "call_audio_days_before": one.days_before,
                "call_audio_days": one.days, "also_ended": one.also_ended, "reason": one.reason, "by": one.by,
                "at": time(one.at_ms), "decision": decision, "done": one.done_at_ms.map(time)})
        })
        .collect();
    json!({"tenant": tenant, "call_audio_days": days, "pending": pending, "history": history})
}

async fn decide(args: &OrderArgs, order: RetentionOrder) -> CommandResult {
    let (kept, draft) = draft(args, order).await?;
    if draft.reaches_ended() {
        serve::install_logs(&kept.config)?;
    }
    put(args, &kept, &draft).await
}

/// Lets it hold, and gives ended recordings their date if they wait for it now.
async fn put(args: &OrderArgs, kept: &Kept, draft: &Draft) -> CommandResult {
    kept.put(draft, &args.by).await?;
    let reaches_ended = draft.reaches_ended();
    let counts = if reaches_ended { Some(carry_out(kept, draft, &args.by).await?) } else { None };
    print(kept, draft, (false, args.json), counts).await
}

/// Drafts an order; a refusal is in the audit log.
async fn draft(args: &OrderArgs, order: RetentionOrder) -> Result<(Kept, Draft), super::Failure> {
    let kept = Kept::open(&args.config).await?;
    let Target { tenant, revision } = &args.target;
    match kept.desk(&args.by).retention(tenant, *revision, order).await {
        Ok(draft) => Ok((kept, draft)),
        Err(error) => {
            if let ChangeError::Retention(refusal) = &error {
                kept.refuse(tenant, order.action(), refusal.code(), &args.by).await?;
            }
            Err(explained(error).into())
        }
    }
}

async fn change(args: &ChangeArgs) -> CommandResult {
    let ChangeArgs { decide, days, also_ended, dry_run, yes } = args;
    let wanted = Wanted { days: *days, also_ended: *also_ended };
    let (kept, draft) = draft(decide, RetentionOrder::Change(wanted)).await?;
    if *also_ended {
        serve::install_logs(&kept.config)?;
    }
    // More days destroy nothing.
    if *dry_run || (draft.reaches_ended() && !yes) {
        let counts = match also_ended {
            true => Some(survey(&kept, &draft, *days, &decide.by).await?),
            false => None,
        };
        if *dry_run {
            return print(&kept, &draft, (true, decide.json), counts).await;
        }
        let Redated { shorter, due_at_once, .. } = counts.unwrap_or_default();
        let question = format!(
            "{} of {} will expire earlier, and {due_at_once} of them be destroyed by the next sweep.",
            output::counted(shorter, "recording"),
            draft.tenant.id
        );
        if !output::confirm(&question)? {
            return Ok(());
        }
    }
    put(decide, &kept, &draft).await
}

async fn survey(kept: &Kept, draft: &Draft, days: u32, by: &By) -> anyhow::Result<Redated> {
    let opened = Opened::with(kept.with(draft), Arc::clone(&kept.store))?;
    opened.must_open()?;
    let (id, audit) = (&draft.tenant.id, opened.audit_log()?);
    let event = AuditEvent {
        reason: Some(by.reason().to_owned()),
        result: "looked".to_owned(),
        ..AuditEvent::by_operator(by.actor(), "retention.change", id.to_string())
    };
    let noted = audit.record(id, event).await.context("audit log");
    let redating = Redating::new(opened.store, opened.keys, audit.clone());
    let way = Way::from_to(draft.tenant.retention.call_audio_days, days);
    let counts = redating.survey(id, (days, way), |_| {}).await;
    end_audit(&audit).await;
    noted?;
    Ok(counts?)
}

/// Gives ended recordings their date. What stops it leaves the rest to the next sweep.
async fn carry_out(kept: &Kept, draft: &Draft, by: &By) -> anyhow::Result<Redated> {
    let opened = Opened::with(kept.with(draft), Arc::clone(&kept.store))?;
    opened.must_open()?;
    let audit = opened.audit_log()?;
    let redating = Redating::new(opened.store, opened.keys, audit.clone());
    let done = Box::pin(redating.carry_out(&kept.desk(by), &draft.tenant.id, |_| {})).await;
    end_audit(&audit).await;
    let done = done.context("the change holds; ended recordings: sweeps go on with it")?;
    Ok(done.unwrap_or_default())
}

async fn print(
    kept: &Kept,
    draft: &Draft,
    (dry_run, as_json): (bool, bool),
    ended: Option<Redated>,
) -> CommandResult {
    let (id, days) = (&draft.tenant.id, draft.tenant.retention.call_audio_days);
    let (revision, policy, now) =
        (&draft.revision.revision, &draft.revision.retention, kept.store.now().await?);
    if as_json {
        let mut line = shown(id.as_str(), days, policy, now);
        if let Value::Object(members) = &mut line {
            members.insert("revision".to_owned(), (*revision).into());
            members.insert("dry_run".to_owned(), dry_run.into());
            members.insert("ended".to_owned(), serde_json::to_value(ended)?);
        }
        output::line(&line.to_string());
        return Ok(());
    }
    let (would, kept) = (if dry_run { "would be" } else { "are" }, output::counted(days, "day"));
    output::line(&match policy.pending(now) {
        Some(proposal) if draft.revision.made == crate::tenants::Made::RetentionProposed => format!(
            "{id}: {} {would} proposed; recordings are kept for {kept} until somebody else approves it",
            output::counted(proposal.days, "day")
        ),
        Some(_) | None => format!("{id}: recordings {would} kept for {kept}, revision {revision}"),
    });
    if let Some(Redated { shorter, longer, due_at_once, held, own_days, unchanged, running, unreadable }) =
        ended
    {
        output::line(&format!(
            "ended calls: shorter {shorter} (due at once {due_at_once}), longer {longer}, held {held}, own days {own_days}, \
             unchanged {unchanged}, running {running}, unreadable {unreadable}"
        ));
    }
    Ok(())
}
