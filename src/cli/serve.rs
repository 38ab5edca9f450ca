//! `callseal serve` and `callseal check-config`.

use crate::config::{Config, HIPAA_EFFECTS, LogFormat};
use crate::observe::logs::{self, LogStyle};
use crate::observe::metrics;
use crate::server::{self, Signals};

use super::{CommandResult, ConfigArg, output, runtime};

/// Takes calls until signals stop the node.
pub(super) fn run(args: &ConfigArg) -> CommandResult {
    let config = args.load()?;
    install_logs(&config)?;
    let metrics = metrics::install()?;
    let config_file = args.config.clone();
    runtime()?.block_on(async move {
        let running = server::start(config, metrics).await?;
        let signals = Signals::catch()?;
        let admin = running.admin().map(tracing::field::display);
        tracing::info!(public = %running.public(), admin, ops = %running.ops(), "taking calls");
        running.run(config_file, signals).await;
        Ok(())
    })
}

/// Reads the configuration and starts nothing.
pub(super) fn check(args: &ConfigArg) -> CommandResult {
    let config = args.load()?;
    output::line(&format!(
        "{}: no faults; {}, public URL {}",
        args.config.display(),
        output::counted(config.tenants.len(), "tenant"),
        config.public_url.as_str()
    ));
    for tenant in config.tenants.iter().filter(|tenant| tenant.hipaa.is_some()) {
        output::line(&format!("tenant {}: hipaa.mode = \"on\" changes:", tenant.id));
        for (name, what) in HIPAA_EFFECTS {
            output::line(&format!("  {name:<14} {what}"));
        }
    }
    Ok(())
}

/// Installs logging as configured.
pub(super) fn install_logs(config: &Config) -> Result<(), logs::LogsError> {
    let style = match config.log.format {
        LogFormat::Json => LogStyle::Json,
        LogFormat::Text => LogStyle::Text,
    };
    logs::install(style, config.log.level, std::io::stderr)
}
