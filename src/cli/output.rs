//! What commands say: results on standard output, complaints on standard error.

/// Writes a line of results.
#[expect(clippy::print_stdout, reason = "results of commands belong on standard output")]
pub(super) fn line(text: &str) {
    println!("{text}");
}

/// Writes a complaint.
#[expect(clippy::print_stderr, reason = "complaints of commands belong on standard error")]
pub(super) fn error(text: &str) {
    eprintln!("{}", text.trim_end());
}
