//! What commands say: results on standard output, complaints on standard error.
//!
//! Whoever reads may stop: `callseal … | head`. A command that changes something goes on to its end all the same, so that it is
//! not left half done; one that only lists asks [`is_closed`] and ends. Both succeed. Any other failure to write makes the
//! command fail at its end, see [`failure`].

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

/// Why results cannot be written; the first failure stays.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Writes a line of results.
pub(super) fn line(text: &str) {
    if FAILED.get().is_some() {
        return;
    }
    if let Err(error) = writeln!(io::stdout(), "{text}") {
        FAILED.get_or_init(|| error);
    }
}

/// Whether nobody gets what is written any more.
pub(super) fn is_closed() -> bool {
    FAILED.get().is_some()
}

/// Returns why results are missing, unless whoever reads them wanted no more.
pub(super) fn failure() -> Option<&'static io::Error> {
    FAILED.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// Says how many of something there are: "1 fault", "2 faults".
pub(super) fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, what: &str) -> String {
    let end = if count == N::from(1) { "" } else { "s" };
    format!("{count} {what}{end}")
}

/// Asks before something is destroyed; answers whether to go on.
///
/// # Errors
/// Nobody is there to be asked.
pub(super) fn confirm(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        anyhow::bail!("{question} Nobody can be asked; say --yes");
    }
    write!(io::stderr(), "{question} Go on? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Writes a complaint, if anybody can hear it.
pub(super) fn error(text: &str) {
    writeln!(io::stderr(), "{}", text.trim_end()).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_singular() {
        let said = [0, 1, 2, 11].map(|count: u32| counted(count, "fault"));
        assert_eq!(said, ["0 faults", "1 fault", "2 faults", "11 faults"]);
    }
}
