//! Files that other tools wrote, each next to a description of its content: those of the repository, and those in the
//! directory that the environment variable `FIXTURES` names.
#![allow(dead_code, reason = "each test uses a part")]

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// All files below `tests/fixtures/KIND` and `$FIXTURES/KIND` (or `$FIXTURES` itself) whose name ends in `suffix`.
pub fn find(kind: &str, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind), suffix, &mut found);
    assert!(!found.is_empty(), "the repository has no {suffix} of {kind}");
    if let Some(more) = std::env::var_os("FIXTURES").map(PathBuf::from) {
        let below = more.join(kind);
        walk(if below.is_dir() { &below } else { &more }, suffix, &mut found);
    }
    found
}

fn walk(directory: &Path, suffix: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, suffix, found);
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The path without `suffix`.
pub fn without(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(path.to_str().unwrap().strip_suffix(suffix).unwrap())
}

pub fn shape(expected: &Value) -> Vec<u64> {
    expected["shape"].as_array().unwrap().iter().map(|length| length.as_u64().unwrap()).collect()
}

/// Returns the SHA-256 in hexadecimal digits, with which the fixtures describe their content.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
