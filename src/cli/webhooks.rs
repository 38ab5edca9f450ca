//! `callseal webhooks`.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::config::Webhook;
use crate::control::audit::{AuditEvent, AuditLog};
use crate::domain::ids::NoticeId;
use crate::notices::manage::{Desk, Shown, try_out};
use crate::server::open_poster;
use crate::store::layout::NoticePlace;

use super::target::{Opened, TenantArg, end_audit};
use super::{CommandResult, output, runtime};

#[derive(Debug, Subcommand)]
pub(super) enum WebhooksCommand {
    /// List a tenant's notices, and what came of them
    List(ListArgs),
    /// Show one notice with its body, as one JSON object
    Show(NoticeArg),
    /// Post a `webhook.test` notice to the tenant's receiver once, from this machine, and say what came of it
    Test(TestArgs),
    /// Send a dead or delivered notice again, with the same id; a running node does it
    Redeliver(RedeliverArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    tenant: TenantArg,
    /// Only notices in this state; may be given more than once [default: waiting and dead]
    #[arg(long, value_name = "STATE")]
    state: Vec<State>,
    /// At most so many of each state
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: usize,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// To be delivered
    Waiting,
    /// Delivered in the last week
    Sent,
    /// Not deliverable, for a month
    Dead,
}

#[derive(Debug, Args)]
pub(super) struct NoticeArg {
    #[command(flatten)]
    tenant: TenantArg,
    /// The notice's id: 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    id: NoticeId,
}

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    #[command(flatten)]
    tenant: TenantArg,
    /// Who tries it: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RedeliverArgs {
    #[command(flatten)]
    tenant: TenantArg,
    /// The notice's id: 32 hexadecimal digits; may be given more than once
    #[arg(long, value_name = "ID", required_unless_present = "all_dead")]
    id: Vec<NoticeId>,
    /// All that are dead
    #[arg(long, conflicts_with = "id")]
    all_dead: bool,
    /// Who orders it: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
}

pub(super) fn run(command: &WebhooksCommand) -> CommandResult {
    runtime()?.block_on(async {
        match command {
            WebhooksCommand::List(args) => list(args).await,
            WebhooksCommand::Show(args) => show(args).await,
            WebhooksCommand::Test(args) => test(args).await,
            WebhooksCommand::Redeliver(args) => redeliver(args).await,
        }
    })
}

impl From<State> for NoticePlace {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Sent => Self::Sent,
            State::Dead => Self::Dead,
        }
    }
}

fn desk(opened: &Opened, target: &TenantArg) -> Desk {
    let (keys, store) = (Arc::clone(&opened.keys), Arc::clone(&opened.store));
    Desk::new(keys, store, opened.config.node.as_str(), target.tenant.clone())
}

fn webhook<'a>(opened: &'a Opened, target: &TenantArg) -> anyhow::Result<&'a Webhook> {
    let tenant = opened.config.tenant(&target.tenant);
    let webhook = tenant.and_then(|tenant| tenant.webhook.as_ref());
    webhook.with_context(|| format!("tenant {} has no webhook", target.tenant))
}

async fn list(args: &ListArgs) -> CommandResult {
    let opened = args.tenant.open().await?;
    let mut places: Vec<NoticePlace> = args.state.iter().map(|state| (*state).into()).collect();
    if places.is_empty() {
        places = vec![NoticePlace::Waiting, NoticePlace::Dead];
    }
    places.dedup();
    for shown in desk(&opened, &args.tenant).list(&places, args.limit).await? {
        output::line(&if args.json { serde_json::to_string(&shown)? } else { in_words(&shown) });
    }
    Ok(())
}

fn in_words(shown: &Shown) -> String {
    let Shown { id, state, attempts, at, last, body } = shown;
    let text = |name: &str| body.get(name).and_then(serde_json::Value::as_str).unwrap_or("-").to_owned();
    format!(
        "{id}  {state:<7}  {:<20}  {}  recording {}  attempts {attempts}{}{}",
        text("type"),
        text("created"),
        text("recording"),
        at.as_ref().map(|at| format!(", at {at}")).unwrap_or_default(),
        last.as_ref().map(|last| format!(", {last}")).unwrap_or_default(),
    )
}

async fn show(args: &NoticeArg) -> CommandResult {
    let opened = args.tenant.open_to_read().await?;
    let shown = desk(&opened, &args.tenant).show(args.id).await?;
    let shown = shown.with_context(|| format!("there is no notice {}", args.id))?;
    output::line(&serde_json::to_string(&shown)?);
    Ok(())
}

async fn test(args: &TestArgs) -> CommandResult {
    let opened = args.tenant.open_to_read().await?;
    let (tenant, webhook) = (&args.tenant.tenant, webhook(&opened, &args.tenant)?);
    let poster = open_poster(&opened.config)?;
    let host = webhook.url.authority();
    let event = AuditEvent::by_operator(&args.actor, "webhook-test", host.to_owned());
    let audit = opened.audit_log()?;
    let recorded = audit.record(tenant, event).await;
    end_audit(&audit).await;
    recorded?;
    let trial = try_out(&poster, tenant, webhook).await.with_context(|| format!("{host} has no notice"))?;
    output::line(&if args.json {
        serde_json::to_string(&trial)?
    } else {
        format!("{host} has taken notice {} with status {}", trial.id, trial.status)
    });
    Ok(())
}

async fn redeliver(args: &RedeliverArgs) -> CommandResult {
    let opened = args.tenant.open_to_read().await?;
    webhook(&opened, &args.tenant)?;
    let audit = opened.audit_log()?;
    let done = redeliver_all(args, &opened, &audit).await;
    end_audit(&audit).await;
    done
}

async fn redeliver_all(args: &RedeliverArgs, opened: &Opened, audit: &AuditLog) -> CommandResult {
    let (tenant, desk) = (&args.tenant.tenant, desk(opened, &args.tenant));
    let notices = if args.all_dead { desk.dead().await? } else { args.id.clone() };
    let (mut sent, mut failed) = (0, 0);
    for notice in notices {
        let event = AuditEvent::by_operator(&args.actor, "webhook-redeliver", notice.to_string());
        audit.record(tenant, event).await?;
        match desk.redeliver(notice).await {
            Ok(()) => {
                sent += 1;
                output::line(&json!({"id": notice.to_string(), "state": "waiting"}).to_string());
            }
            Err(error) => {
                failed += 1;
                output::error(&format!("{notice}: {error}"));
            }
        }
    }
    if failed > 0 {
        bail_of(sent, failed)?;
    }
    Ok(())
}

fn bail_of(sent: u32, failed: u32) -> anyhow::Result<()> {
    bail!("{sent} notices wait for delivery again, {failed} do not")
}
