//! Python, for tests in which other tools read what this crate wrote.
#![allow(dead_code, reason = "each test uses a part")]

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

/// Returns the Pythons that have `module`: of those that `TCH_CHECKPOINT_PYTHON` lists, separated as in `PATH`, or
/// `python3`. Prints that the test is skipped if there is none; with `TCH_CHECKPOINT_PYTHON_REQUIRED`, which
/// `cargo xtask test --python` sets, the test fails then.
pub fn pythons(module: &str) -> Vec<PathBuf> {
    let listed = env::var_os("TCH_CHECKPOINT_PYTHON").unwrap_or_else(|| "python3".into());
    let mut found: Vec<PathBuf> = env::split_paths(&listed).collect();
    let import = format!("import {module}");
    found.retain(|python| command(python).args(["-c", &import]).output().is_ok_and(|output| output.status.success()));
    if found.is_empty() {
        let listed = listed.to_string_lossy();
        let message = format!("SKIPPED: {listed} has no {module} (TCH_CHECKPOINT_PYTHON lists other Pythons)");
        assert!(env::var_os("TCH_CHECKPOINT_PYTHON_REQUIRED").is_none(), "{message}");
        println!("{message}");
    }
    found
}

/// Returns the first of the Pythons that have `module`.
pub fn python(module: &str) -> Option<PathBuf> {
    pythons(module).into_iter().next()
}

/// Returns a command that starts a Python. It finds the libraries of its own torch, not those that the tests use.
pub fn command(python: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(python);
    command.env_remove("LD_LIBRARY_PATH").env("TF_CPP_MIN_LOG_LEVEL", "3").env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// Runs `program` with the first of the Pythons that have `module`, and returns what it prints. `None` if there is
/// none.
pub fn run(module: &str, program: &str, arguments: &[&str]) -> Option<String> {
    python(module).map(|python| output(command(python).args(["-c", program]).args(arguments)))
}

/// Returns the output of a command, which must succeed.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {printed}{errors}");
    printed.into_owned()
}
