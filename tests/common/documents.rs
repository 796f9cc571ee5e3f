//! Documents with valid frames and arbitrary content, and checkpoints with them.
#![allow(dead_code, reason = "each test uses a part")]

use super::Memory;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use tch_checkpoint::Checkpoint;
use tch_checkpoint::Location;
use tch_checkpoint::format::{Digest, Manifest};

/// The bound in SECURITY.md: so many bytes of memory per byte of input, in addition to a constant.
pub const TIMES: usize = 64;
pub const BESIDE: usize = 32 << 20;

/// Returns the bytes between a valid first and a valid last line.
pub fn sealed(format: &str, body: &str) -> Vec<u8> {
    let mut text = format!("{{\"format\":\"{format}\",\"version\":1,\n{body}\n");
    let digest = Digest::of(text.as_bytes());
    let _ = writeln!(text, "\"xxh3_128\":\"{digest}\"}}");
    text.into_bytes()
}

pub const COMMIT: &str =
    r#""commit":{"sequence":1,"run":"0123456789abcdef0123456789abcdef","saved_at":"2026-11-22T10:11:12Z"},"#;

/// A manifest without tensors, with these values.
pub fn with_values(values: &str) -> Vec<u8> {
    let body = format!(
        "\"step\":null,\"save_counter\":null,\"files\":{{}},\"tensors\":{{}},\"values\":{{{values}}},\"metrics\":{{}},{COMMIT}"
    );
    sealed("tch-checkpoint", &body)
}

/// A checkpoint of this manifest alone.
pub fn checkpoint_of(dir: &Path, manifest: &[u8]) -> PathBuf {
    let path = dir.join("ckpt-1");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("manifest.json"), manifest).unwrap();
    path
}

/// `count` times `part`, with commas between.
pub fn list(part: &str, count: usize) -> String {
    vec![part; count].join(",")
}

/// A checkpoint in whose manifest `change` adds keys and pieces for the one tensor `model` of 4 MiB.
pub fn checkpoint_with(dir: &Path, change: impl Fn(&mut Manifest)) -> Result<Location, Box<dyn std::error::Error>> {
    let path = Checkpoint::new().track("model", Memory::seeded(1 << 20, 7))?.write(dir.join("ckpt-1"))?;
    let file = path.join("manifest.json");
    let mut manifest = Manifest::from_bytes(&fs::read(&file)?).map_err(|e| e.to_string())?;
    change(&mut manifest);
    fs::write(&file, manifest.to_bytes()?)?;
    Ok(path)
}
