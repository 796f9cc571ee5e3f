//! What a checkpoint of a history holds, read without the crate under test.

use serde_json::Value;
use std::fs;
use std::path::Path;

/// A checkpoint's manifest.
pub(super) struct Seen {
    pub value: Option<u64>,
    pub run: String,
    pub sequence: u64,
    pub unclean: bool,
}

/// Reads the manifest of a checkpoint. Returns `None` if there is none.
pub(super) fn manifest(checkpoint: &Path) -> Option<Seen> {
    let text = fs::read(checkpoint.join("manifest.json")).ok()?;
    let manifest: Value = serde_json::from_slice(&text).ok()?;
    let commit = &manifest["commit"];
    Some(Seen {
        value: manifest["values"]["value"].as_u64(),
        run: commit["run"].as_str()?.to_string(),
        sequence: commit["sequence"].as_u64()?,
        unclean: commit["unclean"].as_bool().unwrap_or(false),
    })
}

/// Returns the last eight bytes of a component's file: the data of its only tensor.
pub(super) fn tensor(checkpoint: &Path, component: &str) -> Option<[u8; 8]> {
    let bytes = fs::read(checkpoint.join(format!("{component}.safetensors"))).ok()?;
    bytes.last_chunk().copied()
}
