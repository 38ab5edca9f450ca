//! `callseal grant`.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::clock;
use crate::config::{Config, Tenant};
use crate::control::audit::AuditEvent;
use crate::domain::address::IpRange;
use crate::domain::ids::RecordingId;
use crate::domain::playback::grant::{Grant, TrackSelection};
use crate::domain::playback::wav::Encoding;

use super::target::RecordingArg;
use super::{CommandResult, output, runtime};

/// Which track to play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TrackArg {
    /// The caller alone, one channel
    Caller,
    /// The agent alone, one channel
    Agent,
    /// Both: caller left, agent right
    Both,
}

/// How audio is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FormatArg {
    /// 16-bit PCM, for browsers
    Pcm,
    /// μ-law as stored
    Ulaw,
}

impl TrackArg {
    pub(super) fn selection(self) -> TrackSelection {
        match self {
            Self::Caller => TrackSelection::Caller,
            Self::Agent => TrackSelection::Agent,
            Self::Both => TrackSelection::Both,
        }
    }
}

impl FormatArg {
    pub(super) fn encoding(self) -> Encoding {
        match self {
            Self::Pcm => Encoding::Pcm16,
            Self::Ulaw => Encoding::Ulaw,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct GrantArgs {
    #[command(flatten)]
    target: RecordingArg,
    /// How long the link works; at most the tenant's playback.max_ttl_secs [default: playback.default_ttl_secs]
    #[arg(long, value_name = "SECONDS")]
    ttl_secs: Option<u64>,
    /// Who will listen: goes into the audit log
    #[arg(long, value_name = "NAME", default_value = "operator")]
    sub: String,
    /// Why: goes into the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only from this address or range
    #[arg(long, value_name = "CIDR")]
    ip: Option<IpRange>,
    /// Which track
    #[arg(long, value_enum, default_value = "both")]
    track: TrackArg,
    /// How audio is written
    #[arg(long, value_enum, default_value = "pcm")]
    format: FormatArg,
    /// Let the browser save it instead of playing it
    #[arg(long)]
    dl: bool,
}

pub(super) fn run(args: &GrantArgs) -> CommandResult {
    let RecordingArg { tenant: tenant_arg, recording } = &args.target;
    runtime()?.block_on(async {
        let opened = tenant_arg.open().await?;
        let tenant = opened.config.tenant(&tenant_arg.tenant).context("tenant")?;
        opened.keys.open(&tenant.id, *recording).await.context("recording")?;
        let grant = grant(args, &opened.config, tenant, *recording)?;
        let url = url(&opened.config, tenant, &grant)?;
        opened
            .audit_log()
            .record(&tenant.id, mint_event(&grant))
            .await
            .context("no audit record, no link")?;
        output::line(&url);
        Ok(())
    })
}

fn grant(
    args: &GrantArgs,
    config: &Config,
    tenant: &Tenant,
    recording: RecordingId,
) -> anyhow::Result<Grant> {
    let longest = tenant.playback.max_ttl.as_secs();
    let ttl_secs = args.ttl_secs.unwrap_or_else(|| config.playback.default_ttl.as_secs().min(longest));
    if ttl_secs == 0 || ttl_secs > longest {
        bail!("--ttl-secs: allowed for this tenant: 1 to {longest}");
    }
    let iat = clock::wall().secs();
    let grant = Grant {
        tenant: tenant.id.clone(),
        recording,
        iat,
        exp: iat + ttl_secs,
        kid: tenant.playback.grant_kid.clone().context("the tenant has no playback.grant_keys")?,
        sub: args.sub.clone(),
        reason: args.reason.clone(),
        ip: args.ip,
        track: args.track.selection(),
        dl: args.dl,
        format: Some(args.format.encoding()),
    };
    grant.validate()?;
    Ok(grant)
}

/// Signs a grant and returns the whole link.
pub(super) fn url(config: &Config, tenant: &Tenant, grant: &Grant) -> anyhow::Result<String> {
    let key = tenant.playback.grant_keys.get(&grant.kid).context("grant key")?;
    let query = grant.sign(key.expose());
    Ok(format!("{}/play/{}/{}.wav?{query}", config.public_url.https(), grant.tenant, grant.recording))
}

/// The audit event of a minted grant.
pub(super) fn mint_event(grant: &Grant) -> AuditEvent {
    AuditEvent {
        reason: grant.reason.clone(),
        detail: Some(format!("exp={} track={}", grant.exp, grant.track.as_str())),
        ..AuditEvent::by_operator(&grant.sub, "mint-grant", grant.recording.to_string())
    }
}
