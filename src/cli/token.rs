//! `callseal token`.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::admin::tokens::{NewToken, TokenList};
use crate::clock;
use crate::config::{Admin, Config};
use crate::domain::access::{Reach, Role};
use crate::domain::ids::TenantId;
use crate::server::open_store;
use crate::tenants::Book;

use super::{CommandResult, ConfigArg, output, runtime};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and show it, once
    Create(CreateArgs),
    /// List the tokens, without what makes them tokens
    List {
        #[command(flatten)]
        config: ConfigArg,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Take a token away; running nodes notice within seconds
    Revoke {
        #[command(flatten)]
        config: ConfigArg,
        /// Its id, as the list has it: 16 hexadecimal digits
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Who or what will use it: goes into the audit log
    #[arg(long)]
    name: String,
    /// What it may be used for: ingest, player, operator, key-admin, auditor or admin; may be given several times
    #[arg(long = "role", value_name = "ROLE", required = true)]
    roles: Vec<Role>,
    /// On which tenant
    #[arg(long, value_name = "ID", required_unless_present = "all_tenants")]
    tenant: Option<TenantId>,
    /// On all tenants
    #[arg(long, conflicts_with = "tenant")]
    all_tenants: bool,
    /// How long it works
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &TokenCommand) -> CommandResult {
    match command {
        TokenCommand::Create(args) => create(args),
        TokenCommand::List { config, json } => list(config, *json),
        TokenCommand::Revoke { config, id } => {
            let admin = admin(config)?;
            let mut tokens = TokenList::load(&admin.tokens_file)?;
            let revoked = tokens.revoke(id)?;
            tokens.save(&admin.tokens_file)?;
            output::line(&format!("{} ({}) is revoked", revoked.id, revoked.name));
            Ok(())
        }
    }
}

fn admin(config: &ConfigArg) -> Result<Admin, super::Failure> {
    let admin = config.load()?.admin;
    Ok(admin
        .context("the configuration has no [admin]; without it there is no admin API to have a token for")?)
}

fn create(args: &CreateArgs) -> CommandResult {
    let config = args.config.load()?;
    if let Some(tenant) = &args.tenant
        && config.tenant(tenant).is_none()
    {
        must_be_stored(&config, tenant)?;
    }
    let admin = config.admin.context("the configuration has no [admin]; add it first")?;
    let mut tokens = TokenList::load(&admin.tokens_file)?;
    let now = clock::wall();
    let mut roles = args.roles.clone();
    roles.sort();
    roles.dedup();
    let new = NewToken {
        name: args.name.clone(),
        roles,
        reach: args.tenant.clone().map_or(Reach::AllTenants, Reach::Tenant),
        expires: now.plus(DAY * args.days),
    };
    let expires = clock::rfc3339(new.expires);
    let (id, text) = tokens.create(new, now).map_err(|problem| anyhow::anyhow!("--{problem}"))?;
    tokens.save(&admin.tokens_file)?;
    output::line(&if args.json {
        json!({"id": id, "token": *text, "expires": expires}).to_string()
    } else {
        (*text).clone()
    });
    Ok(())
}

/// Looks for a tenant that no file has.
fn must_be_stored(config: &Config, tenant: &TenantId) -> anyhow::Result<()> {
    let rules = config.stored_tenants.as_ref().with_context(|| format!("there is no tenant {tenant}"))?;
    let newest = runtime()?.block_on(async {
        let book = Book::new(open_store(config).await?, rules);
        anyhow::Ok(book.revisions(tenant.tag()).await?.last().copied())
    })?;
    newest.map(drop).with_context(|| format!("there is no tenant {tenant}"))
}

fn list(config: &ConfigArg, as_json: bool) -> CommandResult {
    let admin = admin(config)?;
    let now = clock::wall();
    for token in TokenList::load(&admin.tokens_file)?.tokens() {
        let roles: Vec<_> = token.roles.iter().map(|role| role.name()).collect();
        let (tenant, expires) = (token.reach.to_string(), clock::rfc3339(token.expires));
        let is_expired = now >= token.expires;
        output::line(&if as_json {
            json!({
                "id": token.id, "name": token.name, "roles": roles, "tenant": tenant, "expires": expires,
                "expired": is_expired,
            })
            .to_string()
        } else {
            let mark = if is_expired { "expired" } else { "until" };
            format!(
                "{}  {:<20}  {tenant:<20}  {:<24}  {mark} {expires}",
                token.id,
                token.name,
                roles.join(",")
            )
        });
    }
    Ok(())
}
