//! Commands about versions of key-encryption keys.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::clock;
use crate::config::{Config, KekName, KeyProviderKind, Tenant};
use crate::control::audit::{AuditEvent, AuditLog};
use crate::control::retention::OrderedBy;
use crate::control::rewrap::{Rewrap, RewrapReport, Status};
use crate::domain::ids::TenantId;
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, Keyring, UsedKek, system_random};
use crate::store::Store;

use super::super::target::{Opened, end_audit};
use super::super::{CommandResult, ConfigArg, output, runtime, serve};

/// A node that has not read the keyring since an older version was the newest would lock its recordings out.
const RETIRE_AFTER_HOURS: u32 = 24;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Which tenants, and who says so.
#[derive(Debug, Clone, Args)]
struct Target {
    #[command(flatten)]
    config: ConfigArg,
    /// The tenant's id; all tenants unless given
    #[arg(long, value_name = "ID")]
    tenant: Option<TenantId>,
}

#[derive(Debug, Clone, Args)]
struct By {
    /// Who orders it: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
    /// Why: goes into the audit log
    #[arg(long, value_name = "TEXT", default_value = "rotation", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    by: By,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RewrapArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    by: By,
    /// Move also what was wrapped more than so many days ago: for AWS KMS, which does not tell the version it used
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=36_500))]
    older_than_days: Option<u32>,
    /// Move at most so many data keys a second
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    per_sec: u32,
    /// Count what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object for each tenant
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// One JSON object for each tenant
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RetireArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The tenant's id
    #[arg(long, value_name = "ID")]
    tenant: TenantId,
    /// The version to destroy
    #[arg(long, value_name = "N")]
    version: u32,
    #[command(flatten)]
    by: By,
    /// How long ago the newest version must have been made, so that every node uses it
    #[arg(long, value_name = "HOURS", default_value_t = RETIRE_AFTER_HOURS)]
    after_hours: u32,
    /// Say whether it could be retired, and destroy nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// What the commands work on.
struct Rotation {
    config: Box<Config>,
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
}

impl Rotation {
    async fn of(config: Config) -> anyhow::Result<Self> {
        let opened = Opened::of(config).await?;
        let audit = opened.audit_log()?;
        let Opened { config, store, keys } = opened;
        Ok(Self { config, store, keys, audit })
    }

    fn keyring_file(&self) -> &Path {
        &self.config.keys.keyring_file
    }

    fn rewrap(&self, per_sec: u32) -> Rewrap {
        Rewrap::new(Arc::clone(&self.store), Arc::clone(&self.keys), self.audit.clone(), per_sec)
    }

    /// Returns the versions of a tenant's KEK in the keyring, and when each was made; none without a KEK there.
    fn local_versions(&self, tenant: &TenantId) -> anyhow::Result<Vec<(u32, String)>> {
        let has_local = |tenant: &Tenant| tenant.keks.use_provider(KeyProviderKind::Local);
        if !self.config.tenant(tenant).is_some_and(has_local) {
            return Ok(Vec::new());
        }
        let ring = Keyring::load(self.keyring_file())?;
        let versions = ring.versions(tenant).into_iter();
        Ok(versions.map(|(version, created)| (version, created.to_owned())).collect())
    }

    /// A service that cannot be asked does not tell; the count of data keys says what is wrong.
    async fn age(&self, tenant: &TenantId) -> KekAge {
        let made = self.keys.newest_kek_made(tenant).await.ok().flatten();
        let longest = self.config.tenant(tenant).and_then(|tenant| tenant.keks.rotate_after);
        KekAge {
            days: made.and_then(days_since),
            longest_days: longest.map(|longest| longest.as_secs() / DAY.as_secs()),
        }
    }

    async fn record(&self, tenant: &TenantId, by: &By, action: &str, version: u32) -> anyhow::Result<()> {
        let event = AuditEvent {
            reason: Some(by.reason.clone()),
            detail: Some(format!("version={version}")),
            ..AuditEvent::by_operator(&by.actor, action, tenant.to_string())
        };
        self.audit.record(tenant, event).await.context("audit log")
    }
}

impl Target {
    fn tenants(&self, config: &Config) -> anyhow::Result<Vec<TenantId>> {
        match &self.tenant {
            None => Ok(config.tenants.iter().map(|tenant| tenant.id.clone()).collect()),
            Some(id) => {
                config.tenant(id).with_context(|| format!("there is no tenant {id}"))?;
                Ok(vec![id.clone()])
            }
        }
    }
}

impl By {
    fn order(&self) -> OrderedBy {
        OrderedBy::operator(&self.actor, &self.reason)
    }
}

pub(crate) fn rotate(args: &RotateArgs) -> CommandResult {
    let config = args.target.config.load()?;
    runtime()?.block_on(async {
        let opened = Rotation::of(config).await?;
        let tenants = args.target.tenants(&opened.config)?;
        let done = rotate_all(args, &opened, &tenants).await;
        end_audit(&opened.audit).await;
        done
    })
}

async fn rotate_all(args: &RotateArgs, opened: &Rotation, tenants: &[TenantId]) -> CommandResult {
    for tenant in tenants {
        if let Some(advice) = rotated_elsewhere(&opened.config, tenant) {
            if args.target.tenant.is_some() {
                return Err(anyhow!("{tenant}: {advice}").into());
            }
            output::line(&format!("{tenant}: {advice}"));
            continue;
        }
        let newest = opened.local_versions(tenant)?.last().map_or(0, |(version, _)| *version);
        if args.dry_run {
            output::line(&format!("{tenant}: version {} would be made", newest + 1));
            continue;
        }
        // Before it has any effect, and named by the version that it is about to become.
        opened.record(tenant, &args.by, "keys-rotate", newest + 1).await?;
        let now = clock::rfc3339(clock::wall());
        let version = Keyring::rotate(opened.keyring_file(), tenant, &now, system_random)?;
        output::line(&format!("{tenant}: version {version} is made; running nodes take it with SIGHUP"));
    }
    Ok(())
}

pub(crate) fn rewrap(args: &RewrapArgs) -> CommandResult {
    let config = args.target.config.load()?;
    serve::install_logs(&config)?;
    runtime()?.block_on(async {
        let opened = Rotation::of(config).await?;
        if !opened.keys.opens() {
            return Err(KeyError::WriteOnly.into());
        }
        let tenants = args.target.tenants(&opened.config)?;
        let done = rewrap_all(args, &opened, &tenants).await;
        end_audit(&opened.audit).await;
        done
    })
}

async fn rewrap_all(args: &RewrapArgs, opened: &Rotation, tenants: &[TenantId]) -> CommandResult {
    let moment = args.older_than_days.map(days_ago);
    let rewrap = opened.rewrap(args.per_sec).older_than(moment);
    let mut failed = 0;
    for tenant in tenants {
        let bar = spinner();
        if args.dry_run {
            let status = rewrap.status(tenant, |read| bar.set_position(read)).await?;
            bar.finish_and_clear();
            let newest = opened.keys.newest_kek(tenant).await?;
            print_would(args, tenant, &status, &newest);
            continue;
        }
        let show = |report: &RewrapReport| bar.set_position(report.envelopes);
        let report = rewrap.run(tenant, &args.by.order(), show).await?;
        bar.finish_and_clear();
        failed += report.failed;
        print_report(args, tenant, report);
    }
    match failed {
        0 => Ok(()),
        _ => Err(anyhow!("{failed} data keys could not be moved; they stay as they are").into()),
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {pos} data keys, {per_sec}, {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn print_would(args: &RewrapArgs, tenant: &TenantId, status: &Status, newest: &UsedKek) {
    let Status { to_move, unreadable, .. } = status;
    let stay = status.by_kek.values().map(|under| under.envelopes).sum::<u64>() - to_move;
    output::line(&if args.json {
        json!({"tenant": tenant.as_str(), "dry_run": true, "would_move": to_move, "current": stay,
            "unreadable": unreadable})
        .to_string()
    } else {
        let UsedKek { kek, version, .. } = newest;
        format!(
            "{tenant}: {to_move} would be moved, {stay} are under {kek}, version {version}, {unreadable} cannot be read"
        )
    });
}

fn print_report(args: &RewrapArgs, tenant: &TenantId, report: RewrapReport) {
    let RewrapReport { envelopes, moved, current, gone, failed } = report;
    output::line(&if args.json {
        json!({"tenant": tenant.as_str(), "dry_run": false, "envelopes": envelopes, "moved": moved,
            "current": current, "gone": gone, "failed": failed})
        .to_string()
    } else {
        format!("{tenant}: moved {moved}, current before {current}, gone {gone}, failed {failed}")
    });
}

pub(crate) fn status(args: &StatusArgs) -> CommandResult {
    let config = args.target.config.load()?;
    serve::install_logs(&config)?;
    runtime()?.block_on(async {
        let opened = Rotation::of(config).await?;
        let tenants = args.target.tenants(&opened.config)?;
        for tenant in &tenants {
            let bar = spinner();
            let status = opened.rewrap(1).status(tenant, |read| bar.set_position(read)).await?;
            bar.finish_and_clear();
            let age = opened.age(tenant).await;
            print_status(args, tenant, &opened.local_versions(tenant)?, (&status, age));
        }
        Ok(())
    })
}

fn print_status(
    args: &StatusArgs,
    tenant: &TenantId,
    versions: &[(u32, String)],
    (status, age): (&Status, KekAge),
) {
    let rows = versions.iter().map(|(version, created)| {
        (*version, created, age_in_days(created), status.under(&local_kek(tenant, *version)))
    });
    let services = || status.by_kek.iter().filter(|(kek, _)| kek.provider != KeyProviderKind::Local.name());
    if args.json {
        let versions: Vec<_> = rows
            .map(|(version, created, age, recordings)| {
                json!({"version": version, "created": created, "age_days": age, "recordings": recordings})
            })
            .collect();
        let services: Vec<_> = services()
            .map(|(UsedKek { provider, kek, version }, under)| {
                json!({"provider": provider, "kek": kek, "version": version, "recordings": under.envelopes,
                    "oldest": under.oldest})
            })
            .collect();
        let line = json!({"tenant": tenant.as_str(), "versions": versions, "services": services,
            "unreadable": status.unreadable, "age_days": age.days, "rotate_after_days": age.longest_days,
            "due": age.is_due()});
        output::line(&line.to_string());
        return;
    }
    for (version, created, age, recordings) in rows {
        let age = age.map_or("unknown age".to_owned(), |days| format!("{days} days old"));
        output::line(&format!("{tenant}: version {version}, made {created}, {age}, {recordings} data keys"));
    }
    for (UsedKek { provider, kek, version }, under) in services() {
        let (recordings, oldest) = (under.envelopes, &under.oldest);
        output::line(&format!(
            "{tenant}: {provider} {kek}, version {version}, {recordings} data keys, the oldest wrapped {oldest}"
        ));
    }
    if status.unreadable > 0 {
        output::line(&format!("{tenant}: {} envelopes cannot be read", status.unreadable));
    }
    if let KekAge { days: Some(days), longest_days: Some(longest) } = age
        && age.is_due()
    {
        output::line(&format!(
            "{tenant}: the key is {days} days old and should have been rotated after {longest}"
        ));
    }
}

/// How old the newest version of a tenant's KEK is, and may get.
#[derive(Clone, Copy)]
struct KekAge {
    /// `None` where its service does not tell.
    days: Option<u64>,
    /// `None` for any age.
    longest_days: Option<u64>,
}

impl KekAge {
    fn is_due(self) -> bool {
        self.days.zip(self.longest_days).is_some_and(|(days, longest)| days >= longest)
    }
}

fn local_kek(tenant: &TenantId, version: u32) -> UsedKek {
    let KekName { provider, kek } = KekName::local(tenant);
    UsedKek { provider: provider.name().to_owned(), kek, version: version.to_string() }
}

/// Says who rotates a tenant's KEK, where callseal does not.
fn rotated_elsewhere(config: &Config, tenant: &TenantId) -> Option<&'static str> {
    match config.tenant(tenant)?.keks.current.provider {
        KeyProviderKind::Local => None,
        KeyProviderKind::Pkcs11 => Some(
            "its key is in a token; make another key there, name it in keys.kek and this one in former_keks, then: callseal \
             keys rewrap",
        ),
        KeyProviderKind::Recipient => Some(
            "its key is a key pair; make another one (callseal keys recipient init), name it in keys.kek and this one in \
             former_keks where recordings are opened, then: callseal keys rewrap",
        ),
        KeyProviderKind::VaultTransit => Some(
            "its key is in Vault; make a new version there (vault write -f MOUNT/keys/NAME/rotate), then: callseal keys rewrap",
        ),
        KeyProviderKind::AwsKms => Some(
            "its key is in AWS KMS, which rotates it by itself (aws kms enable-key-rotation); what is older is moved with: \
             callseal keys rewrap --older-than-days",
        ),
    }
}

fn days_ago(days: u32) -> UnixMillis {
    UnixMillis(clock::wall().0.saturating_sub(u64::from(days) * 24 * 3600 * 1000))
}

/// Returns how many whole days ago an RFC 3339 time was; `None` for another text or the future.
fn age_in_days(created: &str) -> Option<u64> {
    days_since(clock::parse_rfc3339(created)?)
}

fn days_since(UnixMillis(made): UnixMillis) -> Option<u64> {
    clock::wall().0.checked_sub(made).map(|millis| Duration::from_millis(millis).as_secs() / DAY.as_secs())
}

pub(crate) fn retire(args: &RetireArgs) -> CommandResult {
    let config = args.config.load()?;
    let tenant = &args.tenant;
    runtime()?.block_on(async {
        let opened = Rotation::of(config).await?;
        opened.config.tenant(tenant).with_context(|| format!("there is no tenant {tenant}"))?;
        let done = retire_one(args, &opened).await;
        end_audit(&opened.audit).await;
        done
    })
}

async fn retire_one(args: &RetireArgs, opened: &Rotation) -> CommandResult {
    let (tenant, version) = (&args.tenant, args.version);
    check_retirable(args, opened).await?;
    if args.dry_run {
        output::line(&format!("{tenant}: version {version} would be destroyed; nothing needs it"));
        return Ok(());
    }
    let question = format!("Version {version} of the key of {tenant} will be destroyed for good.");
    if !args.yes && !output::confirm(&question)? {
        return Ok(());
    }
    opened.record(tenant, &args.by, "keys-retire", version).await?;
    Keyring::retire(opened.keyring_file(), tenant, version)?;
    output::line(&format!("{tenant}: version {version} is destroyed; running nodes forget it with SIGHUP"));
    Ok(())
}

/// Nothing in the store is under the version, and nothing will be.
async fn check_retirable(args: &RetireArgs, opened: &Rotation) -> anyhow::Result<()> {
    let versions = opened.local_versions(&args.tenant)?;
    if versions.is_empty() {
        bail!("{} has no key in the keyring; versions in a key service are destroyed there", args.tenant);
    }
    let newest = versions.last().filter(|(newest, _)| args.version < *newest);
    let Some((newest, created)) = newest.filter(|_| versions.iter().any(|(v, _)| *v == args.version)) else {
        bail!("version {} cannot be retired; allowed: a version below the newest", args.version);
    };
    let age = clock::parse_rfc3339(created).and_then(|made| clock::wall().0.checked_sub(made.0));
    let least = Duration::from_secs(u64::from(args.after_hours) * 3600);
    if age.is_none_or(|age| Duration::from_millis(age) < least) {
        bail!(
            "version {newest} is less than {} hours old; a node that has not read the keyring since would go on with \
             version {}; see --after-hours",
            args.after_hours,
            args.version
        );
    }
    let status = opened.rewrap(1).status(&args.tenant, |_| ()).await?;
    let needed = status.under(&local_kek(&args.tenant, args.version));
    if needed > 0 || status.unreadable > 0 {
        bail!(
            "{needed} data keys are under version {} and {} cannot be read; move them first: callseal keys rewrap",
            args.version,
            status.unreadable
        );
    }
    Ok(())
}
