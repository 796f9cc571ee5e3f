//! Files of Hugging Face: safetensors, alone or in shards with an index, and shards of PyTorch files.
//!
//! The name of a tensor is one name, including its dots, as in `state_dict`.

mod directory;
mod safetensors;
mod write;

pub use write::{WriteOptions, write};

use super::ReadOptions;
use super::foreign::Foreign;
use super::input::Input;
use super::probe::Probe;
use crate::error::{Error, Result};
use crate::format::safetensors::MAX_HEADER;
use crate::source::TensorSource;
use std::path::Path;

/// Opens a safetensors file, an index (`model.safetensors.index.json`, `pytorch_model.bin.index.json`), or a directory
/// that holds either.
///
/// A shard that is missing, a tensor that is in two shards or in none, and an index that leads out of its directory are
/// errors. A tensor in a shard that the index does not list, and an output layer that is tied to the embedding and
/// therefore not stored, are listed as [`unreadable`](TensorSource::unreadable).
///
/// # Errors
/// [`Error::Unsupported`] if it is none of these; [`Error::Damaged`]; [`Error::NotFound`]; [`Error::Io`].
pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Box<dyn TensorSource>> {
    let path = path.as_ref();
    let source = if path.is_dir() { directory::open(path, options)? } else { open_file(path, options)? };
    Ok(Box::new(source))
}

fn open_file(path: &Path, options: &ReadOptions) -> Result<Foreign> {
    let input = Input::open(path)?;
    let mut start = vec![0; input.len().min(16) as usize];
    input.read(0, &mut start)?;
    if start.trim_ascii_start().starts_with(b"{") && !is_safetensors(&start) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return directory::open_index(parent, path, options);
    }
    let found = safetensors::read(input)?.alone()?;
    Foreign::new("safetensors", path, found, options)
}

/// Returns `true` if a safetensors file can start with these bytes.
fn is_safetensors(start: &[u8]) -> bool {
    let length = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    length.is_some_and(|length| length <= MAX_HEADER) && start.get(8) == Some(&b'{')
}

pub(super) fn detect(probe: &Probe<'_>, options: &ReadOptions) -> Option<Result<Box<dyn TensorSource>>> {
    let is_ours = match (&probe.start, &probe.names) {
        (Some(start), _) => {
            let is_index = start.trim_ascii_start().starts_with(b"{")
                && start.windows(12).any(|part| part == b"\"weight_map\"" || part.starts_with(b"\"metadata\""));
            is_index || is_safetensors(start)
        }
        (_, Some(names)) => directory::is_one(names),
        _ => false,
    };
    is_ours.then(|| open(probe.path, options))
}

/// An [`Error::Damaged`] about an index or a shard.
fn damaged(path: &Path, reason: impl Into<String>) -> Error {
    Error::damaged(path, reason)
}
