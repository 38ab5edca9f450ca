//! `callseal store`.

use anyhow::bail;
use clap::{Args, Subcommand};

use crate::server::open_store;
use crate::store::probe::{self, Finding, Found};

use super::{CommandResult, ConfigArg, output, runtime};

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Find out what the store really does, below a name of its own, and compare it with what the configuration claims;
    /// fails if something that is claimed is missing
    Probe(ProbeArgs),
}

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &StoreCommand) -> CommandResult {
    let StoreCommand::Probe(args) = command;
    let config = args.config.load()?;
    runtime()?
        .block_on(async {
            let store = open_store(&config).await?;
            let findings = probe::run(&*store).await?;
            if args.json {
                output::line(&serde_json::to_string_pretty(&findings)?);
            } else {
                output::line(&table(&findings));
            }
            match probe::broken_claims(&findings) {
                None => Ok(()),
                Some(broken) => bail!("the store does not do what the configuration claims: {broken}"),
            }
        })
        .map_err(Into::into)
}

fn table(findings: &[Finding]) -> String {
    let mut table =
        format!("{:<17} {:<8} {:<10} what callseal does without it", "feature", "claimed", "found");
    for finding in findings {
        let claimed = if finding.claimed { "yes" } else { "no" };
        let found = match finding.found {
            Found::Yes => "yes",
            Found::No => "no",
            Found::NotAsked => "not asked",
        };
        let (feature, instead) = (finding.feature.label(), finding.feature.instead());
        table.push_str(&format!("\n{feature:<17} {claimed:<8} {found:<10} {instead}"));
        if let Some(why) = &finding.why {
            table.push_str(&format!(" ({why})"));
        }
    }
    table
}
