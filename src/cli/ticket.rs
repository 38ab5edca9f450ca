//! `callseal ticket`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{RouteProvider, Tenant};
use crate::control::audit::AuditEvent;
use crate::domain::ids::RouteName;
use crate::domain::sign::encode_hex;
use crate::domain::ticket::{RETENTION_DAYS, Ticket};
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
        let ticket = ticket(args, tenant)?;
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
        Some(RouteProvider::VapiListen) => {
            bail!("--route: nobody dials route {}; allowed: one of another provider", args.route)
        }
        None => {
            let names: Vec<_> = tenant.routes.iter().map(|route| route.name.as_str()).collect();
            bail!("--route: the tenant has no route {}; allowed: {}", args.route, names.join(", "))
        }
    }
}

fn ticket(args: &TicketArgs, tenant: &Tenant) -> anyhow::Result<Ticket> {
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
