//! `callseal ticket`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{Config, RouteProvider, Tenant};
use crate::control::audit::AuditEvent;
use crate::domain::ids::RouteName;
use crate::domain::provider::vapi_listen_url::{ListenPolicy, ListenUrl};
use crate::domain::provider::vapi_transport::TransportFormat;
use crate::domain::provider::vapi_webhook::SecretUrl;
use crate::domain::sign::encode_hex;
use crate::domain::ticket::{MAX_LINE_BYTES, RETENTION_DAYS, Ticket, VapiLine};
use crate::domain::time::UnixMillis;
use crate::keys::fill_random;

use super::target::TenantArg;
use super::{CommandResult, output, runtime};

/// How long a ticket works unless told: a call is placed within minutes of its TwiML.
const DEFAULT_TTL_SECS: u64 = 300;

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
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TTL_SECS)]
    ttl_secs: u64,
    /// How many days the recording is kept, instead of the tenant's [1 to 3650]
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
        let provider = provider(args, tenant)?;
        let ticket = ticket(args, &opened.config, tenant)?;
        let text = seal(&ticket, tenant)?;
        let (public, route) = (&opened.config.public_url, &ticket.route);
        let url = format!("{}/{provider}/v1/{}/{route}/{text}", public.as_str(), tenant.id);
        opened
            .audit_log()
            .record(&tenant.id, event(args, &ticket))
            .await
            .context("no audit record, no ticket")?;
        output::line(&if args.json {
            let expires = clock::rfc3339(UnixMillis(ticket.exp * 1000));
            json!({"ticket": text, "url": url, "expires": expires}).to_string()
        } else {
            url
        });
        Ok(())
    })
}

/// Returns what the path of a ticket's URL begins with.
fn provider(args: &TicketArgs, tenant: &Tenant) -> anyhow::Result<&'static str> {
    match tenant.route(&args.route).map(|route| route.provider) {
        Some(RouteProvider::Twilio) => Ok("twilio"),
        Some(RouteProvider::VapiTranscriber) => Ok("vapi"),
        Some(RouteProvider::VapiTransport) => Ok("vapi-transport"),
        Some(RouteProvider::VapiListen) => {
            bail!("--route: nobody dials route {}; allowed: one of another provider", args.route)
        }
        None => {
            let names: Vec<_> = tenant.routes.iter().map(|route| route.name.as_str()).collect();
            bail!("--route: the tenant has no route {}; allowed: {}", args.route, names.join(", "))
        }
    }
}

/// Returns where a call of a transport route goes on to; a call of another one has no such line.
fn line(args: &TicketArgs, config: &Config, tenant: &Tenant) -> anyhow::Result<Option<VapiLine>> {
    let route = tenant.route(&args.route);
    let is_transport = route.is_some_and(|route| route.provider == RouteProvider::VapiTransport);
    let url = match (&args.vapi_url, &args.vapi_url_file) {
        (Some(url), _) if url.expose() == "-" => Some(read_url(std::io::stdin())?),
        (Some(url), _) => Some(url.clone()),
        (None, Some(file)) => {
            let file = File::open(file).with_context(|| format!("--vapi-url-file {}", file.display()))?;
            Some(read_url(file)?)
        }
        (None, None) => None,
    };
    match (is_transport, url.zip(args.vapi_audio)) {
        (true, Some((url, audio))) => {
            let policy = ListenPolicy {
                hosts: tenant.vapi.listen_hosts.clone(),
                any_port: config.vapi.allow_private_hosts,
            };
            let checked = ListenUrl::check_transport(&url, args.call.as_deref(), &policy);
            checked.map_err(|why| {
                anyhow!("--vapi-url: its {why} is not allowed; allowed: wss://HOST/CALL/transport, of --call if given, with \
                         a host below [vapi] listen_hosts")
            })?;
            Ok(Some(VapiLine { url, audio }))
        }
        (true, None) => bail!(
            "--vapi-url and --vapi-audio are missing; route {} passes a call on to where they say",
            args.route
        ),
        (false, None) if args.vapi_audio.is_none() => Ok(None),
        (false, _) => {
            bail!("--vapi-url and --vapi-audio: allowed with a route of provider \"vapi-transport\" only")
        }
    }
}

/// Reads one line, no longer than a ticket may hold.
fn read_url(from: impl Read) -> anyhow::Result<SecretUrl> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_LINE_BYTES + 2));
    from.take(MAX_LINE_BYTES as u64 + 2).read_to_string(&mut text).context("--vapi-url")?;
    Ok(SecretUrl::new(text.trim()))
}

fn ticket(args: &TicketArgs, config: &Config, tenant: &Tenant) -> anyhow::Result<Ticket> {
    let longest = tenant.tickets.max_ttl.as_secs();
    if args.ttl_secs == 0 || args.ttl_secs > longest {
        bail!("--ttl-secs: allowed for this tenant: 1 to {longest}");
    }
    let mut id = [0; 16];
    fill_random(&mut id)?;
    let iat = clock::wall().0 / 1000;
    Ok(Ticket {
        v: 1,
        id: encode_hex(&id),
        iat,
        exp: iat + args.ttl_secs,
        route: args.route.as_str().to_owned(),
        call: args.call.clone(),
        retention_days: args.retention_days,
        consent: args.consent,
        metadata: args.metadata.iter().cloned().collect::<BTreeMap<_, _>>(),
        vapi: line(args, config, tenant)?,
    })
}

fn seal(ticket: &Ticket, tenant: &Tenant) -> anyhow::Result<String> {
    let kid = tenant.tickets.kid.as_ref().context("the tenant has no tickets.keys")?;
    let secret = tenant.tickets.keys.get(kid).context("ticket key")?;
    let mut salt = Zeroizing::new([0; 32]);
    fill_random(&mut *salt)?;
    Ok(ticket.seal(&tenant.id, kid, secret.expose(), &salt)?)
}

/// Says that a ticket was made, by its id: the ticket itself is a secret.
fn event(args: &TicketArgs, ticket: &Ticket) -> AuditEvent {
    AuditEvent {
        detail: Some(format!("exp={} route={}", ticket.exp, ticket.route)),
        ..AuditEvent::by_operator(&args.actor, "mint-ticket", ticket.id.clone())
    }
}
