//! `callseal requests`: what people ask for about their own recordings.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::clock;
use crate::control::audit::AuditLog;
use crate::control::recordings::StoredRecording;
use crate::control::requests::{Dealt, Kept, NewRequest, RequestError, Requests, SubjectReport};
use crate::control::restriction::is_restricted;
use crate::control::retention::OrderedBy;
use crate::domain::ids::{RecordingId, RequestId, TenantId};
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::wav::Encoding;
use crate::domain::request::{MAX_BEHALF_BYTES, Request, RequestKind, RequestState};
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::store::Store;

use super::find::PartyArg;
use super::recordings::write_wav;
use super::target::{Opened, TenantArg, end_audit};
use super::{CommandResult, Failure, output, runtime, serve};

#[derive(Debug, Subcommand)]
pub(super) enum RequestsCommand {
    /// Write down a request: access, delete, port or restrict, by telephone number
    Open(OpenArgs),
    /// List requests, oldest first, without numbers
    List {
        #[command(flatten)]
        target: TenantArg,
        /// Only those that are open
        #[arg(long)]
        open: bool,
        /// Begin after this request
        #[arg(long, value_name = "ID")]
        after: Option<RequestId>,
        /// Look at no more than so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show a request with its number and everything that was done about it, as one JSON object
    Show {
        #[command(flatten)]
        target: TenantArg,
        /// The request's id: 32 hexadecimal digits
        #[arg(long, value_name = "ID")]
        id: RequestId,
    },
    /// Print what is kept about whom a request is, as one JSON object: recordings, times, retention, place
    Report(StepArgs),
    /// Write a copy of their recordings into a new directory: WAV files, what is known of each, and checksums
    Export {
        #[command(flatten)]
        step: StepArgs,
        /// The directory; it must not exist
        #[arg(long, short, value_name = "DIRECTORY")]
        out: PathBuf,
    },
    /// Do what is asked for, or note that it was done: delete, put a restriction in force, answer for access and port
    Fulfil {
        #[command(flatten)]
        step: StepArgs,
        /// Do not ask before recordings are destroyed
        #[arg(long)]
        yes: bool,
    },
    /// Decline a request; the reason is kept
    Refuse(StepArgs),
    /// End a restriction: recordings may be played again
    Lift(StepArgs),
}

#[derive(Debug, Args)]
pub(super) struct OpenArgs {
    #[command(flatten)]
    target: TenantArg,
    /// What is asked for: access, delete, port or restrict
    #[arg(long, value_name = "KIND")]
    kind: RequestKind,
    #[command(flatten)]
    party: PartyArg,
    /// When it came in, such as 2026-11-26T12:00:00Z: the time to deal with it runs from then [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    received: Option<UnixMillis>,
    /// On whose behalf somebody else asks, such as their lawyer
    #[arg(long, value_name = "TEXT", value_parser = behalf)]
    on_behalf_of: Option<String>,
    #[command(flatten)]
    by: ByArgs,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Something that is done about one request.
#[derive(Debug, Args)]
pub(super) struct StepArgs {
    #[command(flatten)]
    target: TenantArg,
    /// The request's id: 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    id: RequestId,
    #[command(flatten)]
    by: ByArgs,
}

#[derive(Debug, Args)]
struct ByArgs {
    /// Who does it: goes into the audit log and the request
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    actor: String,
    /// Why: goes into the audit log and the request
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    reason: String,
}

impl ByArgs {
    fn ordered(&self) -> OrderedBy {
        OrderedBy::operator(&self.actor, &self.reason)
    }
}

fn moment(text: &str) -> Result<UnixMillis, String> {
    clock::parse_rfc3339(text).ok_or_else(|| "allowed: a time such as 2026-11-26T12:00:00Z".to_owned())
}

fn behalf(text: &str) -> Result<String, String> {
    let is_good = (1..=MAX_BEHALF_BYTES).contains(&text.len()) && !text.contains(char::is_control);
    is_good
        .then(|| text.to_owned())
        .ok_or_else(|| format!("allowed: 1 to {MAX_BEHALF_BYTES} bytes without control characters"))
}

pub(super) fn run(command: &RequestsCommand) -> CommandResult {
    runtime()?.block_on(async {
        match command {
            RequestsCommand::Open(args) => open(args).await,
            RequestsCommand::List { target, open, after, limit, json } => {
                list(target, (*open, *after, usize::from(*limit)), *json).await
            }
            RequestsCommand::Show { target, id } => show(target, *id).await,
            RequestsCommand::Report(step) => {
                let work = async |desk: &Desk| desk.requests.report(&desk.tenant, step.id, &desk.by).await;
                let report = on_desk(step, work).await?;
                output::line(&serde_json::to_string(&report)?);
                Ok(())
            }
            RequestsCommand::Export { step, out } => export(step, out).await,
            RequestsCommand::Fulfil { step, yes } => fulfil(step, *yes).await,
            RequestsCommand::Refuse(step) => {
                let work = async |desk: &Desk| desk.requests.refuse(&desk.tenant, step.id, &desk.by).await;
                print(step.id, &on_desk(step, work).await?)
            }
            RequestsCommand::Lift(step) => {
                let work = async |desk: &Desk| desk.requests.lift(&desk.tenant, step.id, &desk.by).await;
                print(step.id, &on_desk(step, work).await?)
            }
        }
    })
}

/// What steps are taken with.
struct Desk {
    opened: Opened,
    requests: Requests,
    tenant: TenantId,
    by: OrderedBy,
}

fn requests(opened: &Opened, audit: AuditLog) -> Requests {
    let (store, keys) = (Arc::clone(&opened.store), Arc::clone(&opened.keys));
    Requests::new(store, keys, audit, opened.config.retention.grace).with_notices(opened.notices())
}

/// Takes a step, and ends the audit chain after it.
async fn on_desk<T>(
    args: &StepArgs,
    work: impl AsyncFnOnce(&Desk) -> Result<T, RequestError>,
) -> Result<T, Failure> {
    let opened = args.target.open().await?;
    serve::install_logs(&opened.config)?;
    let audit = opened.audit_log()?;
    let requests = requests(&opened, audit.clone());
    let desk = Desk { opened, requests, tenant: args.target.tenant.clone(), by: args.by.ordered() };
    let done = work(&desk).await;
    end_audit(&audit).await;
    Ok(done.with_context(|| format!("request {}", args.id))?)
}

async fn open(args: &OpenArgs) -> CommandResult {
    let party = args.party.term()?;
    let opened = args.target.open().await?;
    let audit = opened.audit_log()?;
    let new = NewRequest {
        kind: args.kind,
        party,
        received: args.received,
        due_after: opened.config.requests.due_after,
        on_behalf_of: args.on_behalf_of.clone(),
    };
    let made = requests(&opened, audit.clone()).open(&args.target.tenant, new, &args.by.ordered()).await;
    end_audit(&audit).await;
    let (id, request) = made?;
    if args.json {
        output::line(&brief(id, &request).to_string());
        return Ok(());
    }
    print(id, &request)
}

fn print(id: RequestId, request: &Request) -> CommandResult {
    output::line(&in_words(id, request));
    Ok(())
}

fn in_words(id: RequestId, request: &Request) -> String {
    let due = clock::rfc3339(UnixMillis(request.due_ms));
    let overdue = if is_overdue(request) { ", OVERDUE" } else { "" };
    format!("{id}  {:<8}  {:<9}  due {due}{overdue}", request.kind.name(), request.state.name())
}

fn is_overdue(request: &Request) -> bool {
    request.state == RequestState::Open && clock::wall().0 > request.due_ms
}

/// A request without its number.
fn brief(id: RequestId, request: &Request) -> serde_json::Value {
    json!({
        "request": id.to_string(),
        "kind": request.kind.name(),
        "state": request.state.name(),
        "received": clock::rfc3339(UnixMillis(request.received_ms)),
        "due": clock::rfc3339(UnixMillis(request.due_ms)),
        "overdue": is_overdue(request),
    })
}

async fn list(
    target: &TenantArg,
    (only_open, after, limit): (bool, Option<RequestId>, usize),
    as_json: bool,
) -> CommandResult {
    let opened = target.open().await?;
    let audit = opened.audit_log()?;
    let listed = requests(&opened, audit).list(&target.tenant, after, limit).await?;
    for (id, request) in listed {
        if only_open && request.state != RequestState::Open {
            continue;
        }
        output::line(&if as_json { brief(id, &request).to_string() } else { in_words(id, &request) });
    }
    Ok(())
}

async fn show(target: &TenantArg, id: RequestId) -> CommandResult {
    let opened = target.open().await?;
    let audit = opened.audit_log()?;
    let found = requests(&opened, audit).get(&target.tenant, id).await;
    let request = found.with_context(|| format!("request {id}"))?;
    let mut shown = brief(id, &request);
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("party".into(), json!(request.expose_party()));
        shown.insert("on_behalf_of".into(), json!(request.on_behalf_of));
        let steps = request.steps.iter().map(|step| {
            json!({"what": step.deed.name(), "at": clock::rfc3339(UnixMillis(step.at_ms)), "actor": step.actor,
                "reason": step.reason, "detail": step.detail, "exceptions": step.exceptions})
        });
        shown.insert("steps".into(), steps.collect());
    }
    output::line(&shown.to_string());
    Ok(())
}

async fn fulfil(args: &StepArgs, yes: bool) -> CommandResult {
    if !yes {
        let opened = args.target.open().await?;
        let audit = opened.audit_log()?;
        let found = requests(&opened, audit).get(&args.target.tenant, args.id).await;
        let request = found.with_context(|| format!("request {}", args.id))?;
        let question = "Every recording of them that is not held will be destroyed for good.";
        if request.kind == RequestKind::Delete && !output::confirm(question)? {
            return Ok(());
        }
    }
    let work = async |desk: &Desk| desk.requests.fulfil(&desk.tenant, args.id, &desk.by).await;
    let Dealt { request, report, erased } = on_desk(args, work).await?;
    let mut shown = brief(args.id, &request);
    if let Some(shown) = shown.as_object_mut() {
        if let Some(report) = report {
            shown.insert("report".into(), json!(report));
        }
        if let Some(erased) = erased {
            shown.insert("deleted".into(), json!(erased));
            let exceptions = request.steps.last().map(|step| &step.exceptions);
            shown.insert("exceptions".into(), json!(exceptions));
        }
    }
    output::line(&shown.to_string());
    if request.state == RequestState::Open {
        let left =
            "something is left to be done, and the request is open still; say it again after the next sweep";
        return Err(anyhow::anyhow!(left).into());
    }
    Ok(())
}

/// Refuses what is restricted, as the server does.
pub(super) async fn check_unrestricted(
    store: &dyn Store,
    tenant: &TenantId,
    recording: RecordingId,
) -> anyhow::Result<()> {
    ensure!(
        !is_restricted(store, tenant.tag(), recording).await?,
        "the use of recording {recording} is restricted at somebody's request; see: callseal requests list"
    );
    Ok(())
}

/// How many recordings a copy has, and how many it should have and has not.
#[derive(Default)]
struct Written {
    copied: usize,
    running: usize,
    failed: usize,
}

async fn export(args: &StepArgs, out: &Path) -> CommandResult {
    let made = DirBuilder::new().mode(0o700).create(out);
    made.with_context(|| format!("make {}", out.display()))?;
    let mut written = Ok(Written::default());
    let work = async |desk: &Desk| {
        let report = desk.requests.report(&desk.tenant, args.id, &desk.by).await?;
        written = write_copy(desk, &report, out).await;
        Ok(())
    };
    if let Err(failure) = on_desk(args, work).await {
        // Only while nothing is in it.
        drop(std::fs::remove_dir(out));
        return Err(failure);
    }
    let Written { copied, running, failed } = written?;
    let place = out.display();
    output::line(&format!("{place}: {copied} recordings, {running} of calls that go on left out"));
    if failed > 0 {
        return Err(anyhow::anyhow!("{failed} recordings cannot be read and are not in the copy").into());
    }
    Ok(())
}

async fn write_copy(desk: &Desk, report: &SubjectReport, out: &Path) -> anyhow::Result<Written> {
    let (mut sums, mut written) = (String::new(), Written::default());
    let mut add = |name: String| -> anyhow::Result<()> {
        sums.push_str(&format!("{}  {name}\n", digest_of(&out.join(&name))?));
        Ok(())
    };
    for kept in &report.recordings {
        if kept.state == "receiving" {
            written.running += 1;
            continue;
        }
        match write_recording(desk, kept, out).await {
            Ok(()) => {
                written.copied += 1;
                add(format!("{}.wav", kept.recording))?;
                add(format!("{}.json", kept.recording))?;
            }
            Err(error) => {
                written.failed += 1;
                output::error(&format!("{}: {error:#}", kept.recording));
            }
        }
    }
    write_new(&out.join("report.json"), &serde_json::to_vec_pretty(report)?)?;
    add("report.json".to_owned())?;
    write_new(&out.join("SHA256SUMS"), sums.as_bytes())?;
    Ok(written)
}

async fn write_recording(desk: &Desk, kept: &Kept, out: &Path) -> anyhow::Result<()> {
    let (store, keys) = (Arc::clone(&desk.opened.store), &desk.opened.keys);
    let Ok(recording) = kept.recording.parse::<RecordingId>() else { bail!("is no id of a recording") };
    let stored = StoredRecording::open(store, keys, &desk.tenant, recording).await?;
    let how = (TrackSelection::Both, Encoding::Pcm16);
    write_wav(&stored, &out.join(format!("{recording}.wav")), how).await?;
    write_new(&out.join(format!("{recording}.json")), &serde_json::to_vec_pretty(kept)?)
}

fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn digest_of(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 * 1024]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(encode_hex(&hash.finalize()));
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}
