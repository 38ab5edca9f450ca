//! `callseal tenant`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::clock;
use crate::config::{Config, KeyProviderKind, Origin, StoredTenants, Tenant, process_environment};
use crate::control::audit::AuditEvent;
use crate::control::closing::Closing;
use crate::domain::ids::{RecordingId, TenantId};
use crate::server::{make_kek, open_store};
use crate::store::Store;
use crate::tenants::{Author, Book, ChangeError, Desk, Draft, Order};

use super::target::{Opened, TenantArg, end_audit, with_stored};
use super::{CommandResult, ConfigArg, Failure, output, runtime};

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Make a tenant from a tenant's file: what the file refers to is read now, sealed, and kept in the store
    ///
    /// Where its key is to be in the keyring, it is made there.
    Create(FromArgs),
    /// Give a tenant the settings of a file, all of them
    Update(UpdateArgs),
    /// Tell the tenants of files and store
    List(ListArgs),
    /// Show the settings of a tenant of the store, without its secrets, and who made them
    Show(ShowArgs),
    /// Tell what is left of a tenant that is being closed: recordings that are held, and those that are not deleted yet
    Left(LeftArgs),
    /// Take no new calls and play nothing until it is resumed
    Suspend(OrderArgs),
    /// Take calls again, also after an order to close, until its day
    Resume(OrderArgs),
    /// Take no new calls, and delete everything that is not held when the time is over
    Close(CloseArgs),
}

#[derive(Debug, Args)]
pub(super) struct By {
    /// Why: goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Who orders it: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
}

impl By {
    pub(super) fn actor(&self) -> &str {
        &self.actor
    }

    pub(super) fn reason(&self) -> &str {
        &self.reason
    }
}

#[derive(Debug, Args)]
pub(super) struct FromArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// A tenant's file; see config/tenants/acme-dental.toml. Not one that the node reads itself
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    #[command(flatten)]
    by: By,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Target {
    /// The tenant's id
    #[arg(long, value_name = "ID")]
    pub(super) tenant: TenantId,
    /// Do nothing unless this is its newest revision
    #[arg(long, value_name = "NUMBER")]
    pub(super) revision: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(super) struct OrderArgs {
    #[command(flatten)]
    pub(super) config: ConfigArg,
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) by: By,
    /// As one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CloseArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The tenant's id
    #[arg(long, value_name = "ID")]
    tenant: TenantId,
}

#[derive(Debug, Args)]
pub(super) struct LeftArgs {
    #[command(flatten)]
    target: TenantArg,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &TenantCommand) -> CommandResult {
    runtime()?.block_on(async {
        match command {
            TenantCommand::Create(args) => create(args).await,
            TenantCommand::Update(args) => update(args).await,
            TenantCommand::List(args) => list(args).await,
            TenantCommand::Show(args) => show(args).await,
            TenantCommand::Left(args) => left(args).await,
            TenantCommand::Suspend(args) => order(args, Order::Suspend).await,
            TenantCommand::Resume(args) => order(args, Order::Resume).await,
            TenantCommand::Close(CloseArgs { order: args, yes }) => {
                let question =
                    format!("Everything of {} will be deleted when its time is over.", args.target.tenant);
                if !yes && !output::confirm(&question)? {
                    return Ok(());
                }
                order(args, Order::Close).await
            }
        }
    })
}

/// What the commands work on.
pub(super) struct Kept {
    pub(super) config: Config,
    of_files: Vec<TenantId>,
    pub(super) store: Arc<dyn Store>,
    book: Book,
}

impl Kept {
    pub(super) async fn open(config: &ConfigArg) -> Result<Self, Failure> {
        let config = config.load()?;
        let rules = rules(&config)?.clone();
        let of_files = config.tenants.iter().map(|tenant| tenant.id.clone()).collect();
        let store = open_store(&config).await?;
        let book = Book::new(Arc::clone(&store), &rules);
        let config = with_stored(config, &store).await?;
        Ok(Self { config, of_files, store, book })
    }

    pub(super) fn desk(&self, by: &By) -> Desk<'_> {
        let author = Author { name: by.actor.clone(), reason: Some(by.reason.clone()) };
        Desk { config: &self.config, of_files: self.of_files.clone(), book: &self.book, author }
    }

    /// Returns the configuration as a draft makes it.
    pub(super) fn with(&self, draft: &Draft) -> Config {
        let mut config = self.config.clone();
        config.tenants.retain(|tenant| tenant.id != draft.tenant.id);
        config.tenants.push(draft.tenant.clone());
        config
    }

    /// Notes in the audit log of a tenant that something was refused.
    pub(super) async fn refuse(
        &self,
        id: &TenantId,
        action: &str,
        code: &str,
        by: &By,
    ) -> anyhow::Result<()> {
        let opened = Opened::with(self.config.clone(), Arc::clone(&self.store))?;
        let audit = opened.audit_log()?;
        let event = AuditEvent {
            reason: Some(by.reason.clone()),
            result: code.to_owned(),
            ..AuditEvent::by_operator(&by.actor, action, id.to_string())
        };
        let noted = audit.record(id, event).await.context("audit log");
        end_audit(&audit).await;
        noted
    }

    /// Puts a draft after its audit record.
    pub(super) async fn put(&self, draft: &Draft, by: &By) -> CommandResult {
        let id = &draft.tenant.id;
        let opened = Opened::with(self.with(draft), Arc::clone(&self.store))?;
        // A key that does not work is seen before anything is put.
        opened.keys.mint(id).await.with_context(|| format!("tenant {id}: no key can be had"))?;
        let audit = opened.audit_log()?;
        let event = AuditEvent {
            reason: Some(by.reason.clone()),
            detail: Some(draft.detail()),
            ..AuditEvent::by_operator(&by.actor, draft.revision.made.action(), id.to_string())
        };
        let done = match audit.record(id, event.clone()).await {
            Ok(_) => draft.put(&self.book).await.map_err(anyhow::Error::from),
            Err(error) => Err(anyhow::Error::from(error).context("audit log")),
        };
        if done.as_ref().is_err_and(|error| error.is::<ChangeError>()) {
            let failed = AuditEvent { result: "failed".to_owned(), ..event };
            audit.record(id, failed).await.context("audit log")?;
        }
        end_audit(&audit).await;
        Ok(done?)
    }
}

fn rules(config: &Config) -> anyhow::Result<&StoredTenants> {
    config.stored_tenants.as_ref().context(
        "the configuration keeps no tenants in the store; allowed where it has [tenants] keys = { s1 = { file = \"…\" } }",
    )
}

async fn create(args: &FromArgs) -> CommandResult {
    let table = Config::read_for_store(&args.from, process_environment()).map_err(Failure::Config)?;
    let kept = Kept::open(&args.config).await?;
    let draft = kept.desk(&args.by).create(table).await.map_err(explained)?;
    put_from(args, &kept, &draft).await
}

async fn update(args: &UpdateArgs) -> CommandResult {
    let UpdateArgs { from, target } = args;
    let table = Config::read_for_store(&from.from, process_environment()).map_err(Failure::Config)?;
    let kept = Kept::open(&from.config).await?;
    let draft = kept.desk(&from.by).update(&target.tenant, target.revision, table).await;
    if let Err(ChangeError::DaysInSettings { .. }) = &draft {
        kept.refuse(&target.tenant, "tenant.updated", "retention_days", &from.by).await?;
    }
    let draft = draft.map_err(explained)?;
    put_from(from, &kept, &draft).await
}

async fn put_from(args: &FromArgs, kept: &Kept, draft: &Draft) -> CommandResult {
    if !args.dry_run {
        if draft.tenant.keks.use_provider(KeyProviderKind::Local) {
            make_kek(true, &kept.config.keys.keyring_file, &draft.tenant)
                .map_err(|problem| anyhow!(problem))?;
        }
        kept.put(draft, &args.by).await?;
    }
    print(draft, args.dry_run, args.json);
    Ok(())
}

async fn order(args: &OrderArgs, order: Order) -> CommandResult {
    let kept = Kept::open(&args.config).await?;
    let Target { tenant, revision } = &args.target;
    let draft = kept.desk(&args.by).order(tenant, *revision, order).await.map_err(explained)?;
    kept.put(&draft, &args.by).await?;
    print(&draft, false, args.json);
    Ok(())
}

/// Faults each on a line of its own.
pub(super) fn explained(error: ChangeError) -> anyhow::Error {
    let ChangeError::Invalid(faults) = error else { return error.into() };
    let lines = faults.iter().fold(String::new(), |lines, fault| format!("{lines}\n  {fault}"));
    anyhow!("{} in the settings{lines}", output::counted(faults.len(), "fault"))
}

fn print(draft: &Draft, dry_run: bool, as_json: bool) {
    let mut line = described(&draft.tenant);
    let (id, revision, status) = (&draft.tenant.id, draft.revision.revision, draft.revision.status.name());
    let close_by =
        line.get("close_by").and_then(Value::as_str).map(|at| format!(" until {at}")).unwrap_or_default();
    if let Value::Object(members) = &mut line {
        members.insert("dry_run".to_owned(), dry_run.into());
    }
    output::line(&if as_json {
        line.to_string()
    } else if dry_run {
        format!("{id}: would have revision {revision}, {status}{close_by}")
    } else {
        format!("{id}: revision {revision}, {status}{close_by}; running nodes have it within 15 seconds")
    });
}

async fn list(args: &ListArgs) -> CommandResult {
    let config = args.config.load()?;
    let config = match &config.stored_tenants {
        Some(_) => {
            let store = open_store(&config).await?;
            with_stored(config, &store).await?
        }
        None => config,
    };
    for tenant in &config.tenants {
        let line = described(tenant);
        output::line(&if args.json {
            line.to_string()
        } else {
            let source = match tenant.origin {
                Origin::File => "file".to_owned(),
                Origin::Store { revision, .. } => format!("store, revision {revision}"),
            };
            format!("{:<24} {:<10} {source}", tenant.id, tenant.status.name())
        });
    }
    Ok(())
}

fn described(tenant: &Tenant) -> Value {
    let (source, revision, close_by) = match tenant.origin {
        Origin::File => ("file", None, None),
        Origin::Store { revision, close_by, .. } => ("store", Some(revision), close_by.map(clock::rfc3339)),
    };
    json!({"tenant": tenant.id.as_str(), "source": source, "revision": revision, "status": tenant.status.name(),
        "close_by": close_by, "routes": tenant.routes.len()})
}

async fn show(args: &ShowArgs) -> CommandResult {
    let kept = Kept::open(&args.config).await?;
    if kept.of_files.contains(&args.tenant) {
        return Err(ChangeError::OfFile.into());
    }
    let read = kept.book.newest(args.tenant.tag()).await?.ok_or(ChangeError::NotFound)?;
    let settings = serde_json::to_value(read.settings.shown(kept.book.naming_key()))?;
    output::line(
        &json!({"tenant": read.tenant, "revision": read.revision, "at": read.at, "by": read.by, "reason": read.reason,
            "status": read.status.name(), "settings": settings})
        .to_string(),
    );
    Ok(())
}

async fn left(args: &LeftArgs) -> CommandResult {
    let (opened, tenant) = (args.target.open().await?, &args.target.tenant);
    let audit = opened.audit_log()?;
    let (store, keys) = (Arc::clone(&opened.store), Arc::clone(&opened.keys));
    let closing = Closing::new(store, keys, audit, opened.config.node.as_str());
    let left = closing.left(tenant, None).await?;
    let ids = |recordings: &[RecordingId]| recordings.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (held, waiting) = (ids(&left.held), ids(&left.waiting));
    if args.json {
        output::line(&json!({"tenant": tenant.as_str(), "held": held, "waiting": waiting}).to_string());
        return Ok(());
    }
    held.iter().for_each(|recording| output::line(&format!("{recording} held")));
    waiting.iter().for_each(|recording| output::line(&format!("{recording} not deleted yet")));
    output::line(&format!("{tenant}: {} held, {} not deleted yet", held.len(), waiting.len()));
    Ok(())
}
