//! The bytes of a checkpoint: the manifest, the index, safetensors headers and digests.
//!
//! Nothing here opens a file: bytes are converted to structs and back. `docs/format.md` in the repository is the
//! specification. All readers accept arbitrary bytes: invalid ones are refused with a [`FormatError`], in time and
//! memory proportional to their length.

mod digest;
mod envelope;
mod index;
mod json;
mod manifest;
mod marks;
pub mod safetensors;
mod saved_model;

#[cfg(test)]
mod tests;

pub use digest::{Digest, Hasher};
pub use index::{Index, IndexEntry, MAX_INDEX_BYTES};
pub(crate) use json::canonical;
pub(crate) use manifest::MAX_SEQUENCE;
pub use manifest::{
    AssetEntry, FileEntry, Follows, HeaderEntry, MAX_EARLIER, MAX_MANIFEST_BYTES, Manifest, Piece, Statistics,
    TensorRecord,
};
pub(crate) use marks::is_thinned_file;
pub use marks::{MAX_MARK_BYTES, Mark, MarkKind, is_mark_file};

pub use saved_model::{
    EXAMPLES_FILE, Length, PROGRAM_FILE, SAVED_MODEL_FILE, SavedModelInfo, Signature, TensorInfo, Variable,
};
pub(crate) use saved_model::{SAVED_MODEL_FILES, check_length as check_saved_model_length};
#[cfg(feature = "torch")]
pub(crate) use saved_model::{is_identifier, unexportable};

use crate::dtype::Dtype;
use crate::error::Error;
use crate::location::Location;
use crate::name::short_message;

/// The name of the manifest in a checkpoint's directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The name of the index in a manager's directory.
pub const INDEX_FILE: &str = "checkpoint.json";

/// The maximum number of dimensions of a tensor (libtorch's limit).
pub const MAX_RANK: usize = 64;

/// The maximum length of a tensor's name in a safetensors file, in bytes.
pub const MAX_TENSOR_NAME: usize = 64 * 1024;

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// They were changed, or were never valid.
    #[error("{0}")]
    Damaged(String),
    /// They may be valid, but need a newer or another reader.
    #[error("{0}")]
    Unsupported(String),
}

impl FormatError {
    /// Returns the crate's error for the file that held the bytes.
    pub(crate) fn at(self, path: impl Into<Location>) -> Error {
        match self {
            FormatError::Damaged(reason) => Error::damaged(path, reason),
            FormatError::Unsupported(reason) => Error::unsupported(path, short_message(reason)),
        }
    }

    /// Returns the crate's error for something that must not be written because readers would refuse it.
    fn unwritable(self, what: &str) -> Error {
        Error::InvalidArgument(format!("{what} cannot be written: {self}"))
    }
}

/// Creates a [`FormatError::Damaged`].
fn damaged(reason: impl Into<String>) -> FormatError {
    FormatError::Damaged(short_message(reason.into()))
}

/// Returns the element type of this name, if this version knows it.
fn dtype_named(name: &str) -> Option<Dtype> {
    Dtype::ALL.iter().copied().find(|dtype| dtype.name() == name)
}
