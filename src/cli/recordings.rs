//! `callseal recordings`, `open` and `verify`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};
use futures_util::TryStreamExt;
use serde_json::json;

use crate::clock;
use crate::control::audit::{AuditError, AuditReader, Filter, Found};
use crate::control::recordings::{Finished, StoredRecording, list};
use crate::control::retention::{OrderedBy, receipt};
use crate::control::wav::WavFile;
use crate::domain::audio::Codec;
use crate::domain::cmr::Grade;
use crate::domain::ids::RecordingId;
use crate::domain::index::Term;
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::wav::Encoding;
use crate::domain::retention::Order;
use crate::domain::retention::Receipt;
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;
use crate::store::{ObjectName, Tags, layout};
use crate::upload::newest_order;

use super::find::{self, FinderArgs, ReindexArgs};
use super::grant::{FormatArg, TrackArg};
use super::requests::check_unrestricted;
use super::retention::{self, DeleteArgs, OrderArgs, What};
use super::target::{Opened, RecordingArg, TenantArg};
use super::unpacked::{Source, SourceArg};
use super::{CommandResult, Failure, output, runtime};

#[derive(Debug, Subcommand)]
pub(super) enum RecordingsCommand {
    /// List a tenant's recordings, oldest first: all of them, or those of a call or a party
    List {
        #[command(flatten)]
        target: TenantArg,
        #[command(flatten)]
        finder: FinderArgs,
        /// Begin after this recording
        #[arg(long, value_name = "ID")]
        after: Option<RecordingId>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show what is known of a recording: state, length, gaps, retention, objects and tags
    Show {
        #[command(flatten)]
        target: RecordingArg,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Keep a recording whatever its date, until it is released
    Hold(OrderArgs),
    /// Let the date of a held recording count again
    Release(OrderArgs),
    /// Delete a recording before its date; the next sweep does it, and a held one is refused
    Delete(DeleteArgs),
    /// Make recordings findable by call and number that are not yet: those from before there was an index
    Reindex(ReindexArgs),
}

#[derive(Debug, Args)]
pub(super) struct OpenArgs {
    #[command(flatten)]
    source: SourceArg,
    /// Where the WAV file goes; a partial file is removed when the recording does not verify
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Which track
    #[arg(long, value_enum, default_value = "both")]
    track: TrackArg,
    /// How audio is written
    #[arg(long, value_enum, default_value = "pcm")]
    format: FormatArg,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    source: SourceArg,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &RecordingsCommand) -> CommandResult {
    match command {
        RecordingsCommand::List { target, finder, after, limit, json } => {
            let wanted = finder.wanted()?;
            runtime()?.block_on(print_list(target, wanted, (*after, usize::from(*limit)), *json))
        }
        RecordingsCommand::Show { target, json } => runtime()?.block_on(show(target, *json)),
        RecordingsCommand::Hold(args) => retention::place(args, What::Hold),
        RecordingsCommand::Release(args) => retention::place(args, What::Release),
        RecordingsCommand::Delete(args) => retention::delete(args),
        RecordingsCommand::Reindex(args) => find::reindex(args),
    }
}

async fn print_list(
    target: &TenantArg,
    wanted: Option<(Term, OrderedBy)>,
    (after, limit): (Option<RecordingId>, usize),
    as_json: bool,
) -> CommandResult {
    let opened = target.open().await?;
    let recordings = match &wanted {
        Some((term, by)) => find::find(&opened, target, (term, by), (after, limit)).await?,
        None => list(&*opened.store, &target.tenant, after, limit).await?,
    };
    for recording in recordings {
        let created = clock::rfc3339(UnixMillis(recording.created_ms()));
        let stored =
            StoredRecording::open(Arc::clone(&opened.store), &opened.keys, &target.tenant, recording).await;
        let (state, seconds) = match &stored {
            Ok(stored) => (stored.state_name(), stored.seconds()),
            Err(_) => ("unreadable", 0.0),
        };
        output::line(&if as_json {
            json!({"recording": recording.to_string(), "created": created, "state": state, "seconds": seconds})
                .to_string()
        } else {
            format!("{recording}  {created}  {state:<9}  {seconds:8.2} s")
        });
        if output::is_closed() {
            break;
        }
    }
    if let Err(error) = opened.must_open() {
        output::error(&format!("note: {error}"));
    }
    Ok(())
}

async fn show(target: &RecordingArg, as_json: bool) -> CommandResult {
    let opened = target.tenant.open().await?;
    let (tag, recording) = (target.tenant.tenant.tag(), target.recording);
    if let Some(receipt) = receipt(&*opened.store, tag, recording).await? {
        output::line(&deleted(&receipt).to_string());
        return Ok(());
    }
    let store = Arc::clone(&opened.store);
    let stored = StoredRecording::open(store, &opened.keys, &target.tenant.tenant, recording).await;
    let stored = stored.with_context(|| format!("recording {recording}"))?;
    let objects = objects(&opened, target).await?;
    let mut shown = json!({
        "recording": target.recording.to_string(),
        "state": stored.state_name(),
        "seconds": stored.seconds(),
        "segments": stored.timeline().rows().len(),
        "objects": objects.iter().map(|(name, size, tags)| json!({
            "name": name.as_str(),
            "bytes": size,
            "tags": tags.iter().collect::<std::collections::BTreeMap<_, _>>(),
        })).collect::<Vec<_>>(),
    });
    let order = newest_order(&*opened.store, tag, recording).await?.map(|(_, order)| order);
    if let (Some(finished), Some(shown)) = (stored.manifest(), shown.as_object_mut()) {
        let end = &finished.end;
        shown.insert("cause".into(), json!(end.cause.name()));
        shown.insert("started".into(), json!(clock::rfc3339(UnixMillis(finished.metadata.started_ms))));
        shown.insert("ended".into(), json!(clock::rfc3339(UnixMillis(end.ended_ms))));
        let until = stored.kept_until(order.as_ref().unwrap_or(&Order::NONE));
        shown.insert("expires".into(), json!(until.map(clock::rfc3339)));
        shown.insert("route".into(), json!(finished.metadata.route));
        shown.insert("provider".into(), json!(finished.metadata.provider));
        if let Some(consent) = &finished.metadata.consent {
            shown.insert("consent".into(), json!(consent));
        }
        if !finished.metadata.ticket.is_empty() {
            shown.insert("ticket".into(), json!(finished.metadata.ticket));
        }
        shown.insert("call".into(), json!(finished.metadata.call));
        show_texts(shown, finished);
        shown.insert("gaps".into(), json!(end.gaps));
        shown.insert("counts".into(), json!(end.counts));
        shown.insert("revision".into(), json!(finished.revision));
        shown.insert("root".into(), json!(encode_hex(&finished.root)));
    }
    if let (Some(order), Some(shown)) = (order, shown.as_object_mut()) {
        shown.insert("hold".into(), json!(order.hold));
        shown.insert(
            "ordered_expiry".into(),
            json!(order.expires_ms.map(|at| clock::rfc3339(UnixMillis(at)))),
        );
    }
    if as_json {
        output::line(&shown.to_string());
    } else {
        output::line(&serde_json::to_string_pretty(&shown)?);
    }
    Ok(())
}

/// What a receipt says of a recording that is no more.
fn deleted(receipt: &Receipt) -> serde_json::Value {
    json!({
        "recording": receipt.recording,
        "state": "deleted",
        "reason": receipt.reason.name(),
        "deleted": clock::rfc3339(UnixMillis(receipt.deleted_at_ms)),
        "final": clock::rfc3339(UnixMillis(receipt.final_at_ms)),
        "objects": receipt.objects,
    })
}

pub(super) fn open(args: &OpenArgs) -> CommandResult {
    runtime()?.block_on(async {
        let source = args.source.open().await?;
        check_unrestricted(&*source.store, &source.tenant, source.recording).await?;
        let stored = source.recording().await?;
        let bytes = write_wav(&stored, &args.out, (args.track.selection(), args.format.encoding())).await?;
        output::line(&format!("{}: {bytes} bytes, {:.2} s, verified", args.out.display(), stored.seconds()));
        Ok(())
    })
}

/// Verifies a recording and writes it to a file, which is removed again if that fails.
pub(super) async fn write_wav(
    stored: &StoredRecording,
    out: &Path,
    how: (TrackSelection, Encoding),
) -> anyhow::Result<u64> {
    let written = try_write_wav(stored, out, how).await;
    if written.is_err() && out.exists() {
        std::fs::remove_file(out)?;
    }
    written
}

async fn try_write_wav(
    stored: &StoredRecording,
    out: &Path,
    (track, encoding): (TrackSelection, Encoding),
) -> anyhow::Result<u64> {
    stored.verify().await?;
    if encoding == Encoding::Ulaw && stored.format().codec() != Codec::Ulaw {
        anyhow::bail!("the recording has samples of 16 bits; allowed: --format pcm");
    }
    let mut wav = WavFile::new(stored, track, encoding)?;
    let file = File::create(out).with_context(|| format!("write {}", out.display()))?;
    let mut out = BufWriter::new(file);
    while let Some(piece) = wav.piece().await? {
        out.write_all(&piece)?;
    }
    out.flush()?;
    out.get_ref().sync_all()?;
    Ok(wav.total_bytes())
}

pub(super) fn verify(args: &VerifyArgs) -> CommandResult {
    runtime()?.block_on(async {
        let source = args.source.open().await?;
        let stored = source.recording().await?;
        let frames = stored.verify().await.context("recording does not verify")?;
        let grade = grade(&source, &stored).await?;
        let rows = stored.timeline().rows().len();
        output::line(&if args.json {
            json!({"recording": source.recording.to_string(), "grade": grade.name(), "segments": rows,
                "frames": frames, "state": stored.state_name()})
            .to_string()
        } else {
            format!("{}: {rows} segments, {frames} frames, {}", grade.name(), stored.state_name())
        });
        Ok(())
    })
}

/// The audit log lifts a verified recording to evidence if it names the same root. An export has none.
async fn grade(source: &Source, stored: &StoredRecording) -> Result<Grade, Failure> {
    let Some(finished) = stored.manifest() else { return Ok(Grade::Authentic) };
    let root = format!("root={} ", encode_hex(&finished.root));
    let filter = Filter {
        action: Some("record".to_owned()),
        subject: Some(source.recording.to_string()),
        ..Filter::default()
    };
    let reader = AuditReader::new(&source.keys, &*source.store);
    let mut found = std::pin::pin!(reader.find(&source.tenant, &filter, None));
    while let Some(found) = found.try_next().await? {
        match found {
            Found::Record(record, _)
                if record.event.detail.as_ref().is_some_and(|d| d.starts_with(&root)) =>
            {
                return Ok(Grade::Evidence);
            }
            Found::Record(..) => {}
            // What is wrong with the log must not be taken for its silence.
            Found::Damage(finding) => return Err(AuditError::from(finding).into()),
        }
    }
    Ok(Grade::Authentic)
}

/// Lists the objects of a recording with size and tags.
async fn objects(opened: &Opened, target: &RecordingArg) -> anyhow::Result<Vec<(ObjectName, u64, Tags)>> {
    let prefix = layout::recording_prefix(target.tenant.tenant.tag(), target.recording);
    let mut objects = Vec::new();
    for object in opened.store.list_after(&prefix, None, 1000).await? {
        let tags = match opened.store.profile().tags {
            true => opened.store.tags(&object.name).await?,
            false => Tags::new(),
        };
        objects.push((object.name, object.size, tags));
    }
    Ok(objects)
}

/// Shows what the provider said of the call when it began and what was learned later.
fn show_texts(shown: &mut serde_json::Map<String, serde_json::Value>, finished: &Finished) {
    for (name, texts) in [("parameters", &finished.metadata.parameters), ("notes", &finished.end.notes)] {
        if !texts.is_empty() {
            shown.insert(name.into(), json!(texts));
        }
    }
}
