//! By what commands look for recordings: a call's id, or a party's number.
//!
//! Numbers are personal: no error shows one, and `-` reads it from standard input, so that it need not be an argument that
//! other users of the machine can list.

use std::io::{self, Read};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::control::index::{Finder, Reindex, Reindexed};
use crate::control::retention::OrderedBy;
use crate::domain::ids::RecordingId;
use crate::domain::index::Term;
use crate::server::retry_policy;

use super::target::{Opened, TenantArg, end_audit};
use super::{CommandResult, output, runtime, serve};

/// More than the longest term; what is longer is none.
const MAX_INPUT: u64 = 1024;

/// A call or a party.
#[derive(Clone, Args)]
pub(super) struct TermArgs {
    /// Of this call: the provider's id of it, or - to read it from standard input
    #[arg(long, value_name = "ID")]
    call: Option<String>,
    /// Of calls with this party: a number in international form such as +493012345678, a SIP address, or - to read it from
    /// standard input
    #[arg(long, value_name = "NUMBER", conflicts_with = "call")]
    party: Option<String>,
}

impl std::fmt::Debug for TermArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TermArgs")
    }
}

impl TermArgs {
    /// Reads the term; `None` if none is given.
    pub(super) fn term(&self) -> anyhow::Result<Option<Term>> {
        if let Some(call) = &self.call {
            return Ok(Some(Term::call(&given(call)?).context("--call")?));
        }
        match &self.party {
            Some(party) => Ok(Some(Term::party(&given(party)?).context("--party")?)),
            None => Ok(None),
        }
    }
}

/// A party.
#[derive(Clone, Args)]
pub(super) struct PartyArg {
    /// Whom it is about: a number in international form such as +493012345678, a SIP address, or - to read it from standard
    /// input
    #[arg(long, value_name = "NUMBER")]
    party: String,
}

impl std::fmt::Debug for PartyArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PartyArg")
    }
}

impl PartyArg {
    /// Reads the term.
    pub(super) fn term(&self) -> anyhow::Result<Term> {
        Term::party(&given(&self.party)?).context("--party")
    }
}

fn given(text: &str) -> io::Result<String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut input = String::new();
    io::stdin().take(MAX_INPUT).read_to_string(&mut input)?;
    Ok(input)
}

/// Who looks for something, and why.
#[derive(Debug, Clone, Args)]
pub(super) struct FinderArgs {
    #[command(flatten)]
    term: TermArgs,
    /// Who looks for a call or a party: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: Option<String>,
    /// Why somebody looks for a call or a party: goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: Option<String>,
}

impl FinderArgs {
    /// Reads what is looked for, by whom and why; `None` if everything is to be listed.
    pub(super) fn wanted(&self) -> anyhow::Result<Option<(Term, OrderedBy)>> {
        let Some(term) = self.term.term()? else {
            anyhow::ensure!(
                self.actor.is_none() && self.reason.is_none(),
                "--actor and --reason are for --call and --party only"
            );
            return Ok(None);
        };
        let needed = "is missing; whoever looks for a call or a party says who they are and why";
        let actor = self.actor.clone().with_context(|| format!("--actor {needed}"))?;
        let reason = self.reason.clone().with_context(|| format!("--reason {needed}"))?;
        Ok(Some((term, OrderedBy::operator(&actor, &reason))))
    }
}

/// Finds recordings, and tells the audit log that somebody looked.
pub(super) async fn find(
    opened: &Opened,
    target: &TenantArg,
    (term, by): (&Term, &OrderedBy),
    (after, limit): (Option<RecordingId>, usize),
) -> anyhow::Result<Vec<RecordingId>> {
    opened.must_open()?;
    let audit = opened.audit_log()?;
    let finder = Finder::new(Arc::clone(&opened.store), Arc::clone(&opened.keys), audit.clone());
    let found = finder.find(&target.tenant, term, by, (after, limit)).await;
    end_audit(&audit).await;
    Ok(found?)
}

/// Puts index entries anew.
#[derive(Debug, Args)]
pub(super) struct ReindexArgs {
    #[command(flatten)]
    target: TenantArg,
    /// Put another index key in the place of the present one first: when that was lost or has leaked
    #[arg(long)]
    new_key: bool,
    /// Who orders it: goes into the audit log
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: String,
    /// Why: goes into the audit log
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn reindex(args: &ReindexArgs) -> CommandResult {
    let ReindexArgs { target, new_key, actor, reason, json: as_json, yes } = args;
    let question = "Until this has ended, recordings are not found by call or number.";
    if *new_key && !yes && !output::confirm(question)? {
        return Ok(());
    }
    serve::install_logs(&target.config.load()?)?;
    runtime()?.block_on(async {
        let opened = target.open_to_read().await?;
        let audit = opened.audit_log()?;
        let options = (opened.config.index.party_keys.clone(), retry_policy(&opened.config));
        let reindex = Reindex::new(opened.store, opened.keys, audit.clone(), options);
        let by = OrderedBy::operator(actor, reason);
        let report = reindex.run(&target.tenant, &by, *new_key, |_| ()).await;
        end_audit(&audit).await;
        let Reindexed { recordings, indexed, running, failed } = report?;
        output::line(&if *as_json {
            json!({"recordings": recordings, "indexed": indexed, "running": running, "failed": failed})
                .to_string()
        } else {
            format!("recordings {recordings}, indexed {indexed}, running {running}, failed {failed}")
        });
        if failed > 0 {
            return Err(anyhow::anyhow!("{} cannot be read", output::counted(failed, "recording")).into());
        }
        Ok(())
    })
}
