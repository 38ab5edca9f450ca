//! `callseal ticket`.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use crate::clock;
use crate::control::mint::{self, MintRefused, TICKET_TTL_SECS, TicketOrder};
use crate::domain::ids::RouteName;
use crate::domain::provider::vapi_transport::TransportFormat;
use crate::domain::provider::vapi_webhook::SecretUrl;
use crate::domain::ticket::{MAX_LINE_BYTES, RETENTION_DAYS};
use crate::domain::time::UnixMillis;

use super::target::{TenantArg, end_audit};
use super::{CommandResult, output, runtime};

#[derive(Debug, Args)]
pub(super) struct TicketArgs {
    #[command(flatten)]
    target: TenantArg,
    /// The only route that it is for
    #[arg(long, value_name = "NAME", default_value = RouteName::DEFAULT)]
    route: RouteName,
    /// The provider's call that it is for, such as Twilio's CallSid; any call unless given
    #[arg(long, value_name = "ID")]
    call: Option<String>,
    /// How long it works; at most the tenant's tickets.max_ttl_secs
    #[arg(long, value_name = "SECONDS", default_value_t = TICKET_TTL_SECS)]
    ttl_secs: u64,
    /// How many days the recording is kept, instead of the tenant's; at most as many as these
    #[arg(long, value_name = "DAYS", value_parser = retention_days)]
    retention_days: Option<u32>,
    /// The caller has agreed to be recorded
    #[arg(long)]
    consent: bool,
    /// What the recording shall say of itself, sealed; may be given several times
    #[arg(long = "meta", value_name = "NAME=VALUE", value_parser = name_and_value)]
    metadata: Vec<(String, String)>,
    /// Vapi's websocketCallUrl, for a route of its transport; '-' reads it from stdin, where no list of processes shows it
    #[arg(long, value_name = "URL", value_parser = secret_url, requires = "vapi_audio")]
    vapi_url: Option<SecretUrl>,
    /// The file that holds it, instead
    #[arg(long, value_name = "FILE", conflicts_with = "vapi_url", requires = "vapi_audio")]
    vapi_url_file: Option<PathBuf>,
    /// The audioFormat that the call was made with: pcm_s16le:RATE or mulaw:8000
    #[arg(long, value_name = "FORMAT")]
    vapi_audio: Option<TransportFormat>,
    /// Who makes it: goes into the audit log
    #[arg(long, value_name = "NAME", default_value = "operator")]
    actor: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

fn retention_days(text: &str) -> Result<u32, String> {
    let days = text.parse().ok().filter(|days| RETENTION_DAYS.contains(days));
    days.ok_or_else(|| format!("allowed: {} to {}", RETENTION_DAYS.start(), RETENTION_DAYS.end()))
}

fn secret_url(text: &str) -> Result<SecretUrl, Infallible> {
    Ok(SecretUrl::new(text))
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("allowed: NAME=VALUE".to_owned()),
    }
}

pub(super) fn run(args: &TicketArgs) -> CommandResult {
    runtime()?.block_on(async {
        let opened = args.target.open().await?;
        let tenant = opened.config.tenant(&args.target.tenant).context("tenant")?;
        let made = mint::ticket(&opened.config, tenant, order(args)?).map_err(named)?;
        let audit = opened.audit_log()?;
        let event = mint::ticket_event(&args.actor, &made.ticket, tenant);
        let recorded = audit.record(&tenant.id, event).await.context("no audit record, no ticket");
        if recorded.is_ok() {
            output::line(&if args.json {
                let expires = clock::rfc3339(UnixMillis(made.ticket.exp * 1000));
                json!({"ticket": made.text, "url": made.url, "expires": expires}).to_string()
            } else {
                made.url
            });
        }
        end_audit(&audit).await;
        Ok(recorded?)
    })
}

/// Names an option instead of a field.
pub(super) fn named(refused: MintRefused) -> anyhow::Error {
    match refused.field {
        "" => anyhow!(refused.problem),
        field => anyhow!("--{}: {}", field.replace('_', "-"), refused.problem),
    }
}

fn order(args: &TicketArgs) -> anyhow::Result<TicketOrder> {
    let vapi_url = match (&args.vapi_url, &args.vapi_url_file) {
        (Some(url), _) if url.expose() == "-" => Some(read_url(std::io::stdin())?),
        (Some(url), _) => Some(url.clone()),
        (None, Some(file)) => {
            let file = File::open(file).with_context(|| format!("--vapi-url-file {}", file.display()))?;
            Some(read_url(file)?)
        }
        (None, None) => None,
    };
    Ok(TicketOrder {
        route: args.route.clone(),
        call: args.call.clone(),
        ttl_secs: args.ttl_secs,
        retention_days: args.retention_days,
        consent: args.consent,
        metadata: args.metadata.iter().cloned().collect(),
        vapi_url,
        vapi_audio: args.vapi_audio,
    })
}

/// Reads one line, no longer than a ticket may hold.
fn read_url(from: impl Read) -> anyhow::Result<SecretUrl> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_LINE_BYTES + 2));
    from.take(MAX_LINE_BYTES as u64 + 2).read_to_string(&mut text).context("--vapi-url")?;
    Ok(SecretUrl::new(text.trim()))
}
