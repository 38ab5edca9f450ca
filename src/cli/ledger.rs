//! `callseal ledger show`, `verify`, `export` and `replay`.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::clock;
use crate::control::erase::Eraser;
use crate::control::ledger::{Ledger, Objects, Read};
use crate::control::retention::OrderedBy;
use crate::domain::ids::RecordingId;
use crate::domain::ledger::{Entry, Head};
use crate::domain::sign::{decode_base64, encode_base64};
use crate::domain::time::UnixMillis;

use super::keys::print_erased;
use super::target::{Opened, TenantArg, end_audit};
use super::{CommandResult, output, runtime, serve};

/// The longest line of a copy: the largest object in base64, and its name.
const MAX_LINE_BYTES: usize = 128 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Print who ordered which recording to be deleted, and when its key was destroyed, oldest first
    ///
    /// Fails if the chain is broken.
    Show {
        #[command(flatten)]
        target: TenantArg,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Check that nothing in the ledger was changed, exchanged, taken out or cut off, and print its end
    Verify {
        #[command(flatten)]
        target: TenantArg,
        /// An end that was printed before and kept elsewhere: the ledger must still have it
        #[arg(long, value_name = "END")]
        has: Option<Head>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Copy the ledger and the wrapped keys that open it into a new file, for replay after the store was restored
    Export {
        #[command(flatten)]
        target: TenantArg,
        /// The file; it must not exist
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
    /// After a restore from backup: delete again what the ledger says is deleted
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    target: TenantArg,
    /// A copy that was made with: callseal ledger export; beside the ledger in the store
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Who orders it: goes into audit log and deletion ledger
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
    /// Why: goes into audit log and deletion ledger
    #[arg(long, value_name = "TEXT", default_value = "restored from a backup", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Count what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// One object of a copy, on one line.
#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    body: String,
}

pub(super) fn run(command: &LedgerCommand) -> CommandResult {
    runtime()?.block_on(async {
        match command {
            LedgerCommand::Show { target, json } => show(target, *json).await,
            LedgerCommand::Verify { target, has, json } => verify(target, *has, *json).await,
            LedgerCommand::Export { target, out } => export(target, out).await,
            LedgerCommand::Replay(args) => replay(args).await,
        }
    })
}

fn ledger(opened: &Opened) -> Ledger {
    Ledger::new(Arc::clone(&opened.store), Arc::clone(&opened.keys))
}

async fn show(target: &TenantArg, as_json: bool) -> CommandResult {
    let opened = target.open().await?;
    let read = ledger(&opened).read(&target.tenant).await?;
    for entry in &read.entries {
        output::line(&if as_json { serde_json::to_string(entry)? } else { in_words(entry) });
    }
    Ok(())
}

fn in_words(entry: &Entry) -> String {
    let time = |at: &u64| clock::rfc3339(UnixMillis(*at));
    match entry {
        Entry::Ordered { recording, scope, actor, reason, at_ms } => format!(
            "{}  ordered  {recording}  by {actor:?}, with its {}, because: {reason:?}",
            time(at_ms),
            scope.name()
        ),
        Entry::Shortened { recording, actor, reason, at_ms, expires_ms } => format!(
            "{}  shortened  {recording}  by {actor:?}, to be gone at {}, because: {reason:?}",
            time(at_ms),
            time(expires_ms)
        ),
        Entry::Deleted { recording, reason, deleted_at_ms, final_at_ms, objects, .. } => format!(
            "{}  deleted  {recording}  {}, {objects} objects, in no backup after {}",
            time(deleted_at_ms),
            reason.name(),
            time(final_at_ms)
        ),
    }
}

async fn verify(target: &TenantArg, has: Option<Head>, as_json: bool) -> CommandResult {
    let opened = target.open().await?;
    let read = ledger(&opened).verify(&target.tenant, has).await?;
    let Read { entries, head } = read;
    output::line(&if as_json {
        json!({"entries": entries.len(), "end": head.to_string()}).to_string()
    } else {
        format!("{} entries, chain unbroken, end {head}", entries.len())
    });
    Ok(())
}

async fn export(target: &TenantArg, out: &Path) -> CommandResult {
    let opened = target.open().await?;
    let (read, objects) = ledger(&opened).export(&target.tenant).await?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out);
    let mut file = BufWriter::new(file.with_context(|| format!("write {}", out.display()))?);
    for (name, body) in objects {
        let line = Line { name: name.to_string(), body: encode_base64(&body) };
        writeln!(file, "{}", serde_json::to_string(&line)?)?;
    }
    file.flush()?;
    file.get_ref().sync_all()?;
    output::line(&format!("{}: {} entries, end {}", out.display(), read.entries.len(), read.head));
    Ok(())
}

/// Reads a copy; what is in it is checked later.
fn read_copy(path: &Path) -> anyhow::Result<Objects> {
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let (mut reader, mut objects, mut line) = (BufReader::new(file), Objects::new(), Vec::new());
    loop {
        line.clear();
        let limit = MAX_LINE_BYTES as u64;
        let read = std::io::Read::take(&mut reader, limit).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(objects);
        }
        let number = objects.len() + 1;
        let wrong = || format!("{}: line {number} is not one of a copy of a ledger", path.display());
        if read == MAX_LINE_BYTES {
            bail!("{}", wrong());
        }
        let Line { name, body } = serde_json::from_slice(&line).map_err(|_| anyhow::anyhow!(wrong()))?;
        let name = name.parse().map_err(|_| anyhow::anyhow!(wrong()))?;
        let body = decode_base64(body.as_bytes()).with_context(wrong)?;
        objects.push((name, Bytes::from(body)));
    }
}

async fn replay(args: &ReplayArgs) -> CommandResult {
    let ReplayArgs { target, from, actor, reason, .. } = args;
    let copy = from.as_deref().map(read_copy).transpose()?;
    let opened = target.open().await?;
    serve::install_logs(&opened.config)?;
    let (tenant, ledger) = (&target.tenant, ledger(&opened));
    let now = opened.store.now().await?;
    let mut recordings: BTreeSet<RecordingId> = ledger.read(tenant).await?.recordings(now);
    if let Some(copy) = copy {
        recordings.extend(ledger.read_copy(tenant, copy).await.context("--from")?.recordings(now));
    }
    let audit = opened.audit_log()?;
    let notices = opened.notices();
    let eraser = Eraser::new(opened.store, opened.keys, audit.clone(), opened.config.retention.grace)
        .with_notices(notices);
    let by = OrderedBy::operator(actor, reason);
    let done = replay_with(&eraser, args, &recordings, &by).await;
    end_audit(&audit).await;
    done
}

async fn replay_with(
    eraser: &Eraser,
    ReplayArgs { target, dry_run, json: as_json, yes, .. }: &ReplayArgs,
    recordings: &BTreeSet<RecordingId>,
    by: &OrderedBy,
) -> CommandResult {
    let tenant = &target.tenant;
    if *dry_run || !yes {
        let would = eraser.replay(tenant, recordings, by, false).await?;
        let question = format!("{} will be destroyed again.", output::counted(would.deleted, "recording"));
        if *dry_run || would.deleted == 0 {
            print_erased(&would, *dry_run, *as_json);
            return Ok(());
        }
        if !output::confirm(&question)? {
            return Ok(());
        }
    }
    let report = eraser.replay(tenant, recordings, by, true).await?;
    print_erased(&report, false, *as_json);
    if report.failed > 0 {
        return Err(anyhow::anyhow!("{} recordings were not destroyed; say it again", report.failed).into());
    }
    Ok(())
}
