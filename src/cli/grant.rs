//! `callseal grant`.

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::control::mint::{self, GrantOrder};
use crate::domain::address::IpRange;
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::wav::Encoding;

use super::requests::check_unrestricted;
use super::target::{RecordingArg, end_audit};
use super::ticket::named;
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
        check_unrestricted(&*opened.store, &args.target.tenant.tenant, args.target.recording).await?;
        let (grant, url) = mint::grant(&opened.config, tenant, *recording, order(args)).map_err(named)?;
        let audit = opened.audit_log()?;
        let event = mint::grant_event(&grant.sub, &grant);
        let recorded = audit.record(&tenant.id, event).await.context("no audit record, no link");
        if recorded.is_ok() {
            output::line(&url);
        }
        end_audit(&audit).await;
        Ok(recorded?)
    })
}

fn order(args: &GrantArgs) -> GrantOrder {
    GrantOrder {
        ttl_secs: args.ttl_secs,
        sub: args.sub.clone(),
        reason: args.reason.clone(),
        ip: args.ip,
        track: args.track.selection(),
        format: args.format.encoding(),
        dl: args.dl,
    }
}
