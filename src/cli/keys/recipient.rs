//! `callseal keys recipient`: key pairs of which a node may have only the half that wraps. Needs no configuration.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::clock;
use crate::keys::{Recipient, RecipientFile, init_recipient, write_wrap_file};

use super::super::{CommandResult, output};

#[derive(Debug, Subcommand)]
pub(crate) enum RecipientCommand {
    /// Make a key pair: an open file for nodes that open recordings, and a wrap file for nodes that only record
    ///
    /// Make it where recordings are opened, and take the wrap file to the others. Existing files are never written over.
    Init(InitArgs),
    /// Write the wrap file of a key pair anew, from its open file
    WrapFile(InitArgs),
    /// Tell which key pair a file is of, and what can be done with it
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The file that opens recordings: whoever loses it can open none
    #[arg(long, value_name = "FILE")]
    open_file: PathBuf,
    /// The file that only wraps; a new one
    #[arg(long, value_name = "FILE")]
    wrap_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// An open file or a wrap file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &RecipientCommand) -> CommandResult {
    match command {
        RecipientCommand::Init(args) => init(args),
        RecipientCommand::WrapFile(args) => {
            let recipient = Recipient::load(&args.open_file, RecipientFile::Open)?;
            write_wrap_file(&recipient, &args.wrap_file)?;
            output::line(&format!("{}: wraps for {}", args.wrap_file.display(), recipient.kek().kek));
            Ok(())
        }
        RecipientCommand::Show(args) => show(args),
    }
}

fn init(args: &InitArgs) -> CommandResult {
    let InitArgs { open_file, wrap_file } = args;
    let recipient = init_recipient(open_file, wrap_file, &clock::rfc3339(clock::wall()))?;
    let (open, wrap, kek) = (open_file.display(), wrap_file.display(), recipient.kek().kek);
    output::line(&format!(
        "made {open}, which opens recordings; keep a copy apart from the store and from nodes that only record"
    ));
    output::line(&format!("made {wrap}, which only wraps; take it to the nodes that only record"));
    output::line(&format!("both are of {kek}; name it in keys.kek:"));
    output::line(&format!("\n[keys]\nprovider = \"recipient\"\nkek = \"{kek}\""));
    Ok(())
}

fn show(args: &ShowArgs) -> CommandResult {
    let (file, recipient) = Recipient::load_either(&args.file)?;
    let (kek, created) = (recipient.kek().kek, recipient.created());
    let opens = file == RecipientFile::Open;
    output::line(&if args.json {
        json!({"kek": kek, "created": created, "opens": opens}).to_string()
    } else {
        let can = if opens { "wraps and opens" } else { "only wraps" };
        format!("{}: {file} of {kek}, made {created}; {can}", args.file.display())
    });
    Ok(())
}
