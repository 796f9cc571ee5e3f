//! The tool, run as a user runs it.

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `ckpt` in a directory. Returns its exit status, its standard output and its standard error.
pub fn ckpt(args: &[&str], dir: &Path) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    let output = command.args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}
