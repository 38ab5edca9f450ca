//! What commands say: results on standard output, complaints on standard error.

use std::io::IsTerminal;

/// Writes a line of results.
#[expect(clippy::print_stdout, reason = "results of commands belong on standard output")]
pub(super) fn line(text: &str) {
    println!("{text}");
}

/// Asks before something is destroyed; answers whether to go on.
///
/// # Errors
/// Nobody is there to be asked.
#[expect(clippy::print_stderr, reason = "questions of commands belong on standard error")]
pub(super) fn confirm(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        anyhow::bail!("{question} Nobody can be asked; say --yes");
    }
    eprint!("{question} Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Writes a complaint.
#[expect(clippy::print_stderr, reason = "complaints of commands belong on standard error")]
pub(super) fn error(text: &str) {
    eprintln!("{}", text.trim_end());
}
