//! Asking before something is removed.

use crate::escape;
use std::io::{self, BufRead, Write};

/// Asks a question on standard error, and returns whether the answer is `y` or `yes`. The end of standard input is no.
pub fn asked(question: &str) -> bool {
    let mut terminal = io::stderr();
    if write!(terminal, "{} [y/N] ", escape::line(question)).and_then(|()| terminal.flush()).is_err() {
        return false;
    }
    let mut answer = String::new();
    // An answer is short; anything longer is not an answer.
    let mut input = io::Read::take(io::stdin().lock(), 100);
    let read = input.read_line(&mut answer);
    if read.is_err() || !answer.ends_with('\n') {
        let _ = writeln!(terminal);
    }
    read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}
