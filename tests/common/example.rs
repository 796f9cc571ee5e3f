//! The examples' programs.

use std::path::PathBuf;
use std::process::Command;

/// The program of an example. `cargo test` may have built only its unit tests, or nothing of it, so this asks Cargo.
pub fn example(name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--example", name]);
    cargo.args(if cfg!(debug_assertions) { None } else { Some("--release") });
    assert!(cargo.status().unwrap().success(), "the example {name} does not build");
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}
