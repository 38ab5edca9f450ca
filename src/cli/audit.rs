//! `callseal audit`.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use futures_util::TryStreamExt;
use tokio::io::{AsyncWrite, BufWriter};

use crate::clock;
use crate::control::audit::{
    AuditError, AuditReader, AuditRecord, ChainLife, Cursor, ExportCheck, ExportFormat, Filter, Found, Proof,
    Span, Verification, Witness,
};
use crate::domain::address::IpRange;
use crate::domain::time::UnixMillis;

use super::target::TenantArg;
use super::{CommandResult, output, runtime};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Print a tenant's audit records, oldest first, one JSON object a line; fails if one cannot be read
    Show(ShowArgs),
    /// Find audit records: what a person, an address or a key has done, and when
    Query(QueryArgs),
    /// Write a tenant's audit records for somebody else, with what proves that none is missing
    Export(ExportArgs),
    /// Check that no audit record was changed, moved, inserted or removed
    Verify(VerifyArgs),
    /// Check an export in JSON lines; needs neither keys nor store
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    target: TenantArg,
    /// Print checkpoints and ends of chains as well
    #[arg(long)]
    all: bool,
}

/// When.
#[derive(Debug, Clone, Args)]
struct SpanArgs {
    /// Only records of this time and later, such as 2026-11-23T12:00:00Z or 2026-11-23
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<UnixMillis>,
    /// Only records of before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<UnixMillis>,
}

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    #[command(flatten)]
    target: TenantArg,
    #[command(flatten)]
    span: SpanArgs,
    /// Only what this listener, operator or node has done
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only what came from this address or range, such as 203.0.113.7 or 203.0.113.0/24
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpRange>,
    /// Only what was done to this recording or other subject
    #[arg(long, value_name = "ID")]
    subject: Option<String>,
    /// Only this action, such as play or mint-grant
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only what could be done by this key: the kid of a grant or ticket, the id of a token
    #[arg(long, value_name = "KID")]
    key: Option<String>,
    /// Only what had this result, such as allowed
    #[arg(long, value_name = "RESULT")]
    result: Option<String>,
    /// Print no more records than this; a cursor to go on with is printed to standard error
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on where an earlier query has stopped
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<Cursor>,
    /// Print checkpoints and ends of chains as well
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line, the proof last
    Jsonl,
    /// A table; the proof goes to --proof
    Csv,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    target: TenantArg,
    #[command(flatten)]
    span: SpanArgs,
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Write to this new file, for its owner alone; standard output without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the proof to this new file as well
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    target: TenantArg,
    /// Hold the log against this copy outside of the store, written by audit.file; may be given several times
    #[arg(long, value_name = "FILE")]
    witness: Vec<PathBuf>,
    /// As one JSON object, with the head of each chain
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The export
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

fn parse_time(text: &str) -> Result<UnixMillis, String> {
    let time = clock::begin_of_utc_date(text).or_else(|| clock::parse_rfc3339(text));
    time.ok_or_else(|| {
        "allowed: a time such as 2026-11-23T12:00:00Z, or a UTC date such as 2026-11-23".to_owned()
    })
}

pub(super) fn run(command: &AuditCommand) -> CommandResult {
    match command {
        AuditCommand::Show(args) => {
            let filter = Filter { with_marks: args.all, ..Filter::default() };
            print(&args.target, &filter, None, None)
        }
        AuditCommand::Query(args) => {
            print(&args.target, &args.filter()?, args.cursor, args.limit.map(|limit| limit as usize))
        }
        AuditCommand::Export(args) => export(args),
        AuditCommand::Verify(args) => verify(args),
        AuditCommand::Check(args) => check(args),
    }
}

impl SpanArgs {
    fn span(&self) -> anyhow::Result<Span> {
        let Self { from, until } = *self;
        if from.zip(until).is_some_and(|(from, until)| from >= until) {
            bail!("--until: allowed: a time after that of --from");
        }
        Ok(Span { from, until })
    }
}

impl QueryArgs {
    fn filter(&self) -> anyhow::Result<Filter> {
        Ok(Filter {
            span: self.span.span()?,
            actor: self.actor.clone(),
            source: self.source,
            subject: self.subject.clone(),
            action: self.action.clone(),
            key: self.key.clone(),
            result: self.result.clone(),
            with_marks: self.all,
        })
    }
}

/// Prints records as they are found.
fn print(target: &TenantArg, filter: &Filter, cursor: Option<Cursor>, limit: Option<usize>) -> CommandResult {
    runtime()?.block_on(async {
        let opened = target.open_to_read().await?;
        let reader = AuditReader::new(&opened.keys, &*opened.store);
        let mut found = std::pin::pin!(reader.find(&target.tenant, filter, cursor));
        let (mut printed, mut damaged, mut last) = (0, 0_u64, None);
        while let Some(found) = found.try_next().await? {
            match found {
                Found::Record(..) if Some(printed) == limit => {
                    let next = last.map(|cursor: Cursor| cursor.to_string()).unwrap_or_default();
                    output::error(&format!("there is more; go on with: --cursor {next}"));
                    break;
                }
                Found::Record(record, next) => {
                    output::line(&serde_json::to_string(&record)?);
                    if output::is_closed() {
                        return Ok(());
                    }
                    (printed, last) = (printed + 1, Some(next));
                }
                Found::Damage(finding) => {
                    output::error(&finding.to_string());
                    damaged += 1;
                }
            }
        }
        match damaged {
            0 => Ok(()),
            _ => {
                Err(anyhow!("{damaged} objects of the log cannot be read; see: callseal audit verify").into())
            }
        }
    })
}

fn export(args: &ExportArgs) -> CommandResult {
    let span = args.span.span()?;
    let format = match args.format {
        Format::Jsonl => ExportFormat::JsonLines,
        Format::Csv => ExportFormat::Csv,
    };
    runtime()?.block_on(async {
        let opened = args.target.open_to_read().await?;
        let reader = AuditReader::new(&opened.keys, &*opened.store);
        let mut out: Box<dyn AsyncWrite + Unpin> = match &args.out {
            Some(path) => Box::new(BufWriter::new(tokio::fs::File::from_std(new_file(path)?))),
            None => {
                let standard_output = std::io::stdout().as_fd().try_clone_to_owned()?;
                Box::new(BufWriter::new(tokio::fs::File::from_std(standard_output.into())))
            }
        };
        let proof = match reader.export(&args.target.tenant, span, format, &mut out).await {
            // Whoever reads wanted no more; nobody asked for a proof of the whole.
            Err(AuditError::Output(error))
                if error.kind() == ErrorKind::BrokenPipe && args.out.is_none() && args.proof.is_none() =>
            {
                return Ok(());
            }
            proof => proof?,
        };
        if let Some(path) = &args.proof {
            serde_json::to_writer(new_file(path)?, &proof)?;
        }
        if args.out.is_some() {
            output::line(&exported(&proof));
        }
        Ok(())
    })
}

fn exported(proof: &Proof) -> String {
    format!("{} audit records of {} chains, none missing in between", proof.records, proof.chains.len())
}

/// Makes a file that only its owner may read; an existing one is never written over.
fn new_file(path: &PathBuf) -> anyhow::Result<std::fs::File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.with_context(|| format!("make {}", path.display()))
}

fn verify(args: &VerifyArgs) -> CommandResult {
    runtime()?.block_on(async {
        let opened = args.target.open_to_read().await?;
        let tenant = &args.target.tenant;
        let witness = match args.witness.as_slice() {
            [] => None,
            paths => Some(Witness::read(paths, tenant.tag()).context("--witness")?),
        };
        if let Some(torn) = witness.as_ref().map(Witness::torn_lines).filter(|torn| *torn > 0) {
            output::error(&format!("warning: {torn} lines of the copy cannot be read"));
        }
        let reader = AuditReader::new(&opened.keys, &*opened.store);
        let verified = reader.verify(tenant, witness, clock::wall()).await?;
        if args.json {
            output::line(&serde_json::to_string(&verified)?);
        }
        for finding in verified.findings.iter().filter(|_| !args.json) {
            output::error(&finding.to_string());
        }
        for silent in verified.silent().filter(|_| !args.json) {
            output::error(&format!(
                "audit chain {} of node {} fell silent after record {} at {} and has no end: its process was killed, or its \
                 end was cut off",
                silent.chain,
                silent.node,
                silent.records.saturating_sub(1),
                silent.last,
            ));
        }
        let (findings, silent) = (verified.findings.len(), verified.silent().count());
        if !verified.is_unbroken() {
            return Err(anyhow!("the audit log is broken: {findings} findings").into());
        }
        if silent > 0 {
            return Err(anyhow!("nobody vouches for the ends of {silent} audit chains").into());
        }
        if !args.json {
            output::line(&in_words(&verified));
        }
        Ok(())
    })
}

fn in_words(verified: &Verification) -> String {
    let since = match (&verified.kept_since, &verified.from) {
        (Some(kept), _) => format!(" since {kept}, older ones are removed"),
        (None, Some(from)) => format!(" since {from}"),
        (None, None) => String::new(),
    };
    let died = verified.chains.iter().filter(|chain| chain.state == ChainLife::Died).count();
    let died = match died {
        0 => String::new(),
        _ => format!("; {died} chains ended with killed processes"),
    };
    let (records, chains) = (verified.records, verified.chains.len());
    format!("{records} audit records in {chains} chains, all chains unbroken{since}{died}")
}

fn check(args: &CheckArgs) -> CommandResult {
    let file = std::fs::File::open(&args.file).with_context(|| format!("open {}", args.file.display()))?;
    let (mut lines, mut line, mut check) = (BufReader::new(file), Vec::new(), ExportCheck::default());
    while lines.read_until(b'\n', &mut line)? > 0 {
        check.line(line.strip_suffix(b"\n").unwrap_or(&line))?;
        line.clear();
    }
    let proof = check.finish()?;
    output::line(&format!("{}, tenant {}", exported(&proof), proof.tenant));
    Ok(())
}

/// One record for people.
pub(super) fn summary(record: &AuditRecord) -> String {
    let event = &record.event;
    format!(
        "{}  {:<12} {:<10} by {} from {}{}",
        record.time,
        event.action,
        event.result,
        event.actor,
        event.source.as_deref().unwrap_or("this node"),
        event.reason.as_ref().map(|reason| format!(", because: {reason}")).unwrap_or_default()
    )
}
