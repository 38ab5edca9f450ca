//! Fills an audit log with records and measures how long questions to it take.
//!
//! The records are those of three nodes over a year, written through the log itself, up to BATCH of them into an object.
//! DIR must be new; a memory file system makes the filling fast.
//!
//! ```text
//! cargo run --release --example audit_log -- /dev/shm/audit 1000000 32
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use callseal::clock;
use callseal::control::audit::{AuditEvent, AuditLog, AuditOptions, AuditReader, ExportFormat, Filter, Span};
use callseal::domain::ids::TenantId;
use callseal::domain::time::UnixMillis;
use callseal::keys::{KeyService, Keyring, LocalKeys, system_random};
use callseal::store::Store;
use callseal::store::folder::Folder;
use futures_util::future::try_join_all;

const YEAR_MS: u64 = 365 * 24 * 3_600_000;
/// A year before 2026-11-01.
const BEGIN_MS: u64 = 1_762_000_000_000;
const NODES: usize = 3;
/// Listeners, addresses and keys take turns at different speeds.
const ACTORS: u64 = 500;
const SOURCES: u64 = 240;
const KEYS: u64 = 10;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [dir, records, batch] = arguments.as_slice() else { bail!("usage: audit_log DIR RECORDS BATCH") };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(Path::new(dir), records.parse()?, batch.parse()?))
}

async fn measure(dir: &Path, records: u64, batch: u64) -> anyhow::Result<()> {
    ensure!(batch > 0, "BATCH: allowed: 1 and more");
    std::fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
    let tenant: TenantId = "acme".parse()?;
    let ring = dir.join("keyring.json");
    Keyring::init(&ring, std::slice::from_ref(&tenant), "2026-01-01T00:00:00Z", system_random)?;
    let store: Arc<dyn Store> = Arc::new(Folder::open(dir.join("store")).await?);
    let service = || -> anyhow::Result<_> {
        Ok(Arc::new(KeyService::new(Arc::new(LocalKeys::new(Keyring::load(&ring)?)), Arc::clone(&store))))
    };
    fill(&service()?, &store, &tenant, (records, batch)).await?;
    let keys = service()?;
    let reader = AuditReader::new(&keys, &*store);
    let text = |value: &str| Some(value.to_owned());
    let day = |day: u64| Some(UnixMillis(BEGIN_MS + day * 24 * 3_600_000));
    let month = Span { from: day(180), until: day(210) };
    let questions = [
        ("principal, all the year", Filter { actor: text("listener-7"), ..Filter::default() }),
        ("address, all the year", Filter { source: Some("192.0.2.7".parse()?), ..Filter::default() }),
        ("key, all the year", Filter { key: text("k7"), ..Filter::default() }),
        ("principal, one month", Filter { span: month, actor: text("listener-7"), ..Filter::default() }),
        (
            "principal, one day",
            Filter {
                span: Span { from: day(200), until: day(201) },
                actor: text("listener-7"),
                ..Filter::default()
            },
        ),
        ("all records, all the year", Filter::default()),
    ];
    for (name, filter) in questions {
        let (began, mut found, mut cursor) = (clock::monotonic(), 0, None);
        loop {
            let page = reader.query(&tenant, &filter, cursor, 10_000).await?;
            found += page.records.len();
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        say(name, &format!("{found} found"), clock::since(began));
    }
    let began = clock::monotonic();
    let verified = reader.verify(&tenant, None, clock::wall()).await?;
    ensure!(verified.is_unbroken(), "{:?}", verified.findings);
    say(
        "verify",
        &format!("{} records in {} objects", verified.records, verified.objects),
        clock::since(began),
    );
    let began = clock::monotonic();
    let proof =
        reader.export(&tenant, Span::default(), ExportFormat::JsonLines, &mut tokio::io::sink()).await?;
    say("export", &format!("{} records", proof.records), clock::since(began));
    Ok(())
}

async fn fill(
    keys: &Arc<KeyService>,
    store: &Arc<dyn Store>,
    tenant: &TenantId,
    (records, batch): (u64, u64),
) -> anyhow::Result<()> {
    let time = Arc::new(AtomicU64::new(BEGIN_MS));
    let logs: Vec<AuditLog> = (0..NODES)
        .map(|node| {
            let time = Arc::clone(&time);
            let clock = Arc::new(move || UnixMillis(time.load(Ordering::Relaxed)));
            let options = AuditOptions { clock, timeout: Duration::from_secs(60), ..AuditOptions::default() };
            AuditLog::start_with(options, format!("node-{node}"), Arc::clone(keys), Arc::clone(store))
        })
        .collect();
    let (began, batches) = (clock::monotonic(), records.div_ceil(batch));
    for number in 0..batches {
        let first = number * batch;
        let log = logs.iter().cycle().nth(usize::try_from(number)? % NODES).context("a node")?;
        let batch = (first..records.min(first + batch)).map(|at| log.record(tenant, event(at)));
        try_join_all(batch).await?;
        time.fetch_add(YEAR_MS / batches, Ordering::Relaxed);
    }
    for log in &logs {
        ensure!(log.end(Duration::from_secs(60)).await, "the chains have no end");
    }
    say("filled", &format!("{records} records, up to {batch} in an object"), clock::since(began));
    Ok(())
}

fn event(number: u64) -> AuditEvent {
    AuditEvent {
        role: "player".to_owned(),
        source: Some(format!("192.0.2.{}", number % SOURCES)),
        reason: Some("quality review".to_owned()),
        request: format!("{number:032x}"),
        key: Some(format!("k{}", number % KEYS)),
        ..AuditEvent::by_operator(
            &format!("listener-{}", number % ACTORS),
            "play",
            format!("{:032x}", number / 3),
        )
    }
}

/// Says how long something took, and how much memory the process has used at most until then.
#[expect(clippy::print_stdout, reason = "says what it measures")]
fn say(what: &str, result: &str, took: Duration) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim();
    println!("{what:<28} {:>9.2} s  {result}, peak memory {peak}", took.as_secs_f64());
}
