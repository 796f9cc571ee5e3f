//! Which bundle a path means.

use super::state::CheckpointState;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The name of the state file.
pub(super) const STATE: &str = "checkpoint";

/// Returns the path with `suffix` behind its last name.
pub(super) fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(suffix);
    PathBuf::from(name)
}

/// Returns the `.index` file of a prefix.
pub(super) fn index(prefix: &Path) -> PathBuf {
    with_suffix(prefix, ".index")
}

/// A data file of a prefix.
pub(super) fn data(prefix: &Path, shard: u32, shards: u32) -> PathBuf {
    with_suffix(prefix, &format!(".data-{shard:05}-of-{shards:05}"))
}

/// Returns the prefix that `path` means: it may be the prefix, its `.index` file, or a directory.
pub(super) fn prefix(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        return prefix_in(path);
    }
    if index(path).exists() {
        return Ok(path.to_path_buf());
    }
    if let Some(prefix) = path.to_str().and_then(|text| text.strip_suffix(".index")).filter(|_| path.exists()) {
        return Ok(PathBuf::from(prefix));
    }
    let reason =
        "there is no such `.index` file; a TensorFlow checkpoint is named by what its files have in common, such as \
                  `ckpt-5`"
            .to_string();
    Err(Error::not_found(index(path), reason))
}

/// Returns the prefix that a directory means.
fn prefix_in(directory: &Path) -> Result<PathBuf> {
    if is_saved_model(directory) {
        return Ok(directory.join("variables").join("variables"));
    }
    let state = directory.join(STATE);
    if state.exists() {
        let newest = CheckpointState::read(&state)?.model_checkpoint_path;
        let Some(prefix) = inside(directory, Path::new(&newest)) else {
            let reason = format!("it names {newest:?}, which is not in this directory; open that path itself");
            return Err(Error::damaged(&state, reason));
        };
        if !index(&prefix).exists() {
            let reason = format!("the state file {} names it, and there is no such file", state.display());
            return Err(Error::not_found(index(&prefix), reason));
        }
        return Ok(prefix);
    }
    let reason = "neither a state file `checkpoint` nor a `saved_model.pb` is in the directory".to_string();
    Err(Error::not_found(directory, reason))
}

/// Returns `true` if the directory is a SavedModel's.
pub(super) fn is_saved_model(directory: &Path) -> bool {
    ["saved_model.pb", "saved_model.pbtxt"].iter().any(|name| directory.join(name).exists())
}

/// Returns a path of a state file as a path in the directory. Absolute ones are common, and the directory may have been
/// moved.
fn inside(directory: &Path, path: &Path) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(directory.join(path.file_name()?)).filter(|prefix| index(prefix).exists());
    }
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    plain.then(|| directory.join(path))
}
