//! `callseal export`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use tokio::io::BufWriter;

use crate::clock;
use crate::config::KekName;
use crate::control::audit::{AuditEvent, AuditLog};
use crate::control::export::{ExportReport, Exporter, Form, Selection};
use crate::domain::ids::RecordingId;
use crate::domain::time::UnixMillis;
use crate::keys::{Keyring, LocalKeys, Recipient, RecipientFile};

use super::find::TermArgs;
use super::target::{Opened, TenantArg, end_audit};
use super::{CommandResult, output, runtime};

/// Bytes of the archive that are written at a time.
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormArg {
    /// One file of 16-bit PCM for each recording, caller left and agent right
    Wav,
    /// The objects as they are stored, with their wrapped keys
    Sealed,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    target: TenantArg,
    /// This recording; may be given more than once
    #[arg(long, value_name = "ID")]
    recording: Vec<RecordingId>,
    #[command(flatten)]
    term: TermArgs,
    /// Recordings that began at this time or later, such as 2026-11-23T12:00:00Z or 2026-11-23
    #[arg(long, value_name = "TIME", value_parser = clock_time)]
    from: Option<UnixMillis>,
    /// Recordings that began before this time
    #[arg(long, value_name = "TIME", value_parser = clock_time)]
    until: Option<UnixMillis>,
    /// All recordings
    #[arg(long, conflicts_with_all = ["recording", "call", "party", "from", "until"])]
    all: bool,
    /// As what they are handed on
    #[arg(long, value_enum, default_value = "wav")]
    format: FormArg,
    /// With sealed: wrap their keys under the newest key that this keyring has for the tenant; as they are without it
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// With sealed: wrap their keys for the holder of a private key, whose wrap file this is
    #[arg(long, value_name = "FILE", conflicts_with = "keyring")]
    recipient: Option<PathBuf>,
    /// The archive, a new file for its owner alone
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Who exports: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
    /// Why: goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

fn clock_time(text: &str) -> Result<UnixMillis, String> {
    let time = clock::begin_of_utc_date(text).or_else(|| clock::parse_rfc3339(text));
    time.ok_or_else(|| {
        "allowed: a time such as 2026-11-23T12:00:00Z, or a UTC date such as 2026-11-23".to_owned()
    })
}

pub(super) fn run(args: &ExportArgs) -> CommandResult {
    let (selection, form) = (selection(args)?, form(args)?);
    runtime()?.block_on(async {
        let opened = args.target.open().await?;
        let file = new_file(&args.out)?;
        let audit = opened.audit_log()?;
        let done = export(args, (&selection, form), (&opened, &audit), file).await;
        end_audit(&audit).await;
        if done.is_err() {
            // A part must not be taken for the whole.
            std::fs::remove_file(&args.out)?;
        }
        say(args, done?)
    })
}

async fn export(
    args: &ExportArgs,
    (selection, form): (&Selection, Form),
    (opened, audit): (&Opened, &AuditLog),
    file: std::fs::File,
) -> anyhow::Result<ExportReport> {
    let tenant = args.target.tenant.clone();
    let mut event = AuditEvent::by_operator(&args.actor, "export-recordings", tenant.to_string());
    event.reason = Some(args.reason.clone());
    audit.record(&tenant, AuditEvent { detail: Some(form.detail()), ..event.clone() }).await?;
    let out = BufWriter::with_capacity(BUFFER_BYTES, tokio::fs::File::from_std(file.try_clone()?));
    let (store, keys) = (Arc::clone(&opened.store), Arc::clone(&opened.keys));
    let exporter = Exporter::new(store, keys, audit.clone(), (tenant, form));
    let report = exporter.run(selection, &event, out).await?;
    file.sync_all()?;
    Ok(report)
}

fn say(args: &ExportArgs, report: ExportReport) -> CommandResult {
    let ExportReport { exported, left_out, truncated } = report;
    output::line(&if args.json {
        serde_json::to_string(&report)?
    } else {
        format!("{}: {exported} recordings, {left_out} left out", args.out.display())
    });
    if truncated {
        return Err(anyhow!("there are more recordings than one archive may have; go on with --from").into());
    }
    if left_out > 0 {
        return Err(
            anyhow!("{left_out} recordings are not in the archive; its manifest.json says why").into()
        );
    }
    Ok(())
}

fn selection(args: &ExportArgs) -> anyhow::Result<Selection> {
    let selection = Selection {
        recordings: args.recording.clone(),
        term: args.term.term()?,
        from: args.from,
        until: args.until,
    };
    if selection.is_empty() && !args.all {
        bail!("say which recordings: --recording, --call, --party, --from, --until, or --all");
    }
    let is_order = args.from.zip(args.until).is_none_or(|(from, until)| from < until);
    ensure!(is_order, "--until: allowed: a time after that of --from");
    ensure!(
        selection.recordings.is_empty() || selection.term.is_none(),
        "--recording: allowed without --call and --party only"
    );
    Ok(selection)
}

fn form(args: &ExportArgs) -> anyhow::Result<Form> {
    let tenant = &args.target.tenant;
    match (args.format, &args.keyring, &args.recipient) {
        (FormArg::Wav, None, None) => Ok(Form::Wav),
        (FormArg::Wav, ..) => bail!("--keyring and --recipient: allowed with --format sealed only"),
        (FormArg::Sealed, None, None) => Ok(Form::Sealed),
        (FormArg::Sealed, _, Some(path)) => {
            Ok(Form::sealed_for(tenant, Recipient::load(path, RecipientFile::Wrap)?))
        }
        (FormArg::Sealed, Some(path), None) => {
            let keys = LocalKeys::new(Keyring::load(path)?);
            ensure!(keys.has(tenant), "--keyring: {} has no key for tenant {tenant}", path.display());
            Ok(Form::SealedFor(Arc::new(keys), KekName::local(tenant).kek))
        }
    }
}

/// Makes a file that only its owner may read; an existing one is never written over.
fn new_file(path: &Path) -> anyhow::Result<std::fs::File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.with_context(|| format!("make {}", path.display()))
}
