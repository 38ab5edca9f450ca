//! `callseal demo`: a real server, a real call over TLS, and proof of what became of it. Needs nothing.

mod plaintext;
mod setup;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::clock;
use crate::config::{Config, Tenant};
use crate::control::audit::{self, AuditRecord};
use crate::control::mint::{self, GrantOrder};
use crate::control::recordings::list;
use crate::domain::ids::RecordingId;
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::wav::{Channels, Encoding, WavLayout};
use crate::keys::system_random;
use crate::observe::metrics;
use crate::server::{self, Running};
use crate::simulate::https::HttpsClient;
use crate::simulate::messages::CallIds;
use crate::simulate::speech::{DEMO_AGENT, DEMO_CALLER, Track};
use crate::simulate::tls::{Endpoint, TlsClient};
use crate::simulate::twilio::{CallPlan, CallReport, Pacing, TwilioCall};
use crate::store::{StoreError, layout};

use super::{CommandResult, audit::summary, output, runtime, serve};
use setup::Demo;

/// The final object must be there in this time after the call.
const FINAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the store is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long the printed link works.
const LINK_SECS: u64 = 900;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Send the call as fast as possible instead of in real time (58 s)
    #[arg(long)]
    fast: bool,
    /// End after the proof: 0 if everything was as it should be, 1 if not
    #[arg(long)]
    once: bool,
    /// Where everything goes: configuration, certificates, keys, journal and store
    #[arg(long, value_name = "DIR", default_value = "data/demo")]
    data: PathBuf,
    /// Port of the server on 127.0.0.1; any free one if it is taken
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    port: u16,
}

pub(super) fn run(args: &DemoArgs) -> CommandResult {
    let demo = Demo::prepare(&args.data, args.port)?;
    let config = demo.load()?;
    serve::install_logs(&config)?;
    let metrics = metrics::install()?;
    runtime()?.block_on(async {
        say("1. A server", &format!("configuration, keys and certificates in {}", args.data.display()));
        let running = server::start(config.clone(), metrics).await?;
        output::line(&format!(
            "   listens on {} (TLS), metrics on http://{}/metrics",
            running.public(),
            running.ops()
        ));
        let proof = prove(args, &config, &running).await;
        if let (Ok(url), false) = (&proof, args.once) {
            stay(url, &args.data, &running).await?;
        }
        running.stop(Duration::ZERO).await;
        proof?;
        Ok(())
    })
}

/// Everything from the call to the comparison; answers the link.
async fn prove(args: &DemoArgs, config: &Config, running: &Running) -> anyhow::Result<String> {
    let tenant = config.tenants.first().context("demo tenant")?;
    let setup::Clients { tls, endpoint } = setup::clients(config, running.public())?;
    let before = list(&*running.node().store, &tenant.id, None, usize::MAX).await?;
    let report = place_call(args, tenant, &tls, endpoint.clone()).await?;
    output::line(&format!(
        "   {} messages, {} bytes sent; sealed while it ran",
        report.messages, report.bytes
    ));
    let recording = wait_for_final(running, tenant, &before).await?;
    show_object(running, tenant, recording).await?;
    prove_nothing_readable(config)?;
    let url = play_and_compare(config, tenant, recording, &tls, endpoint).await?;
    show_audit(running, tenant, recording).await?;
    Ok(url)
}

async fn place_call(
    args: &DemoArgs,
    tenant: &Tenant,
    tls: &TlsClient,
    endpoint: Endpoint,
) -> anyhow::Result<CallReport> {
    say("2. A call", "both tracks of a reception call, placed over wss as Twilio does, with its signature");
    let token = tenant.twilio.auth_tokens.first().context("demo token")?;
    let account = tenant.twilio.account_sids.first().context("demo account")?;
    let (mut call, mut stream) = ([0; 16], [0; 16]);
    system_random(&mut call)?;
    system_random(&mut stream)?;
    let ids = CallIds::new(account.as_str(), &call, &stream);
    let target = format!("/twilio/v1/{}/{}", tenant.id, setup::ROUTE);
    let mut plan = CallPlan::new(endpoint, &target, token.expose(), ids, Track::whole(DEMO_CALLER));
    plan.agent = Some(Track::whole(DEMO_AGENT));
    plan.parameters.insert("from".to_owned(), plaintext::PHONE_NUMBER.to_owned());
    plan.pacing = if args.fast { Pacing::AsFastAsPossible } else { Pacing::RealTime };
    let bar = ProgressBar::new(1).with_style(
        ProgressStyle::with_template("   {wide_bar} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let report = TwilioCall::connect(plan, tls).await?.run(|progress| {
        bar.set_length(progress.total_ms);
        bar.set_position(progress.sent_ms);
        bar.set_message(format!("{:4.1} of {:.1} s", secs(progress.sent_ms), secs(progress.total_ms)));
    });
    let report = report.await?;
    bar.finish_and_clear();
    ensure!(report.close_code == Some(1000), "the server closed the call with {:?}", report.close_code);
    Ok(report)
}

async fn wait_for_final(
    running: &Running,
    tenant: &Tenant,
    before: &[RecordingId],
) -> anyhow::Result<RecordingId> {
    let store = &running.node().store;
    let started = clock::monotonic();
    while clock::since(started) < FINAL_TIMEOUT {
        let now = list(&**store, &tenant.id, before.last().copied(), 10).await?;
        for recording in now.into_iter().filter(|recording| !before.contains(recording)) {
            match store.head(&layout::final_object(tenant.id.tag(), recording)).await {
                Ok(_) => return Ok(recording),
                Err(StoreError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("no final object after {} s", FINAL_TIMEOUT.as_secs())
}

async fn show_object(running: &Running, tenant: &Tenant, recording: RecordingId) -> anyhow::Result<()> {
    let store = &running.node().store;
    let name = layout::final_object(tenant.id.tag(), recording);
    let size = store.head(&name).await?.size;
    let audio = DEMO_CALLER.len() + DEMO_AGENT.len();
    say("3. One sealed object", &format!("{name}"));
    output::line(&format!("   {size} bytes for {audio} bytes of audio"));
    for (key, value) in store.tags(&name).await?.iter() {
        output::line(&format!("   {key} = {value}"));
    }
    Ok(())
}

fn prove_nothing_readable(config: &Config) -> anyhow::Result<()> {
    let searched = plaintext::search(config)?;
    say(
        "4. Nothing readable at rest",
        &format!("{} files, {} bytes searched", searched.files, searched.bytes),
    );
    output::line(&format!(
        "   for {} pieces of what was said (raw, base64, PCM) and the caller's number: found {}",
        searched.needles, searched.hits
    ));
    ensure!(searched.hits == 0, "plaintext was found at rest");
    Ok(())
}

async fn play_and_compare(
    config: &Config,
    tenant: &Tenant,
    recording: RecordingId,
    tls: &TlsClient,
    endpoint: Endpoint,
) -> anyhow::Result<String> {
    let order = GrantOrder {
        ttl_secs: Some(LINK_SECS.min(tenant.playback.max_ttl.as_secs())),
        sub: "demo".to_owned(),
        reason: Some("demonstration".to_owned()),
        ip: None,
        track: TrackSelection::Both,
        format: Encoding::Pcm16,
        dl: false,
    };
    let (_, url) = mint::grant(config, tenant, recording, order)?;
    let target = url.strip_prefix(&config.public_url.https()).context("link")?;
    let answer = HttpsClient::new(tls, endpoint).get(target, &[]).await?;
    ensure!(answer.status == 200, "playback answered {}", answer.status);
    let samples = DEMO_CALLER.len() as u64;
    let layout = WavLayout::new(Encoding::Pcm16, Channels::Stereo, 8000, samples)?;
    let mut wanted = layout.header();
    layout.write_frames(DEMO_CALLER, DEMO_AGENT, &mut wanted)?;
    ensure!(answer.body == wanted, "what is played differs from what was sent");
    say("5. Played through a signed link", &format!("{} bytes of WAV", answer.body.len()));
    output::line(&format!("   {samples} samples of each track compared with what was sent: all equal"));
    Ok(url)
}

async fn show_audit(running: &Running, tenant: &Tenant, recording: RecordingId) -> anyhow::Result<()> {
    let node = running.node();
    say("6. Audit trail", "chained, sealed, durable before the first byte of audio was sent");
    let subject = recording.to_string();
    let started = clock::monotonic();
    loop {
        let records = audit::read(&tenant.id, &node.keys, &*node.store).await?;
        let of_this: Vec<&AuditRecord> =
            records.iter().filter(|record| record.event.subject == subject).collect();
        let has = |action: &str| of_this.iter().any(|record| record.event.action == action);
        if has("record") && has("play") {
            of_this.iter().for_each(|record| output::line(&format!("   {}", summary(record))));
            return Ok(());
        }
        ensure!(clock::since(started) < FINAL_TIMEOUT, "the audit trail lacks a record");
        tokio::time::sleep(POLL).await;
    }
}

async fn stay(url: &str, data: &std::path::Path, running: &Running) -> anyhow::Result<()> {
    say(
        "Listen",
        &format!("for {} minutes, with a certificate made for this demonstration:", LINK_SECS / 60),
    );
    output::line(&format!("   {url}"));
    output::line(&format!("   curl --cacert {} '…' works as well", data.join("tls/ca.pem").display()));
    output::line("   Ctrl-C ends the server.");
    let node = Arc::clone(running.node());
    tokio::select! {
        caught = tokio::signal::ctrl_c() => caught.context("wait for Ctrl-C"),
        () = node.drain.reached(crate::drain::Phase::Draining) => Ok(()),
    }
}

fn say(title: &str, text: &str) {
    output::line(&format!("\n{title}: {text}"));
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a call are far below 2^52")]
fn secs(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
