//! `callseal audit`.

use clap::Subcommand;

use crate::control::audit::{self, AuditRecord};

use super::target::TenantArg;
use super::{CommandResult, output, runtime};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Print a tenant's audit records, oldest first, one JSON object a line; fails if a chain is broken
    Show(TenantArg),
    /// Check that no audit record was changed, moved or removed from within a chain
    Verify(TenantArg),
}

pub(super) fn run(command: &AuditCommand) -> CommandResult {
    runtime()?.block_on(async {
        let (AuditCommand::Show(args) | AuditCommand::Verify(args)) = command;
        let opened = args.open().await?;
        let records = audit::read(&args.tenant, &opened.keys, &*opened.store).await?;
        match command {
            AuditCommand::Show(_) => {
                for record in &records {
                    output::line(&serde_json::to_string(record)?);
                }
            }
            AuditCommand::Verify(_) => {
                output::line(&format!("{} audit records, all chains unbroken", records.len()));
            }
        }
        Ok(())
    })
}

/// One record for people.
pub(super) fn summary(record: &AuditRecord) -> String {
    let event = &record.event;
    format!(
        "{}  {:<12} {:<10} by {} from {}{}",
        record.time,
        event.action,
        event.result,
        event.actor,
        event.source.as_deref().unwrap_or("this node"),
        event.reason.as_ref().map(|reason| format!(", because: {reason}")).unwrap_or_default()
    )
}
