//! Checkpoints of other tools: PyTorch, Hugging Face, TensorFlow, Keras, tch.
//!
//! Each format is read as a [`TensorSource`]. Nothing in a file is executed or imported, and time and memory are
//! bounded by the size of the file. [`open`] recognizes the format by content, not by file name. `docs/formats.md` in
//! the repository lists what is read, written and verified of each format.
//!
//! The formats that [`open`] recognizes are fixed. For a custom format, implement [`TensorSource`] and pass it to
//! [`Checkpoint::restore_source`](crate::Checkpoint::restore_source), to [`convert`](crate::convert::convert), or to
//! [`inspect::Target::of`](crate::inspect::Target::of).

#[cfg(feature = "pytorch")]
mod blob;
mod detect;
pub(crate) mod durable;
#[cfg(feature = "pytorch")]
mod foreign;
#[cfg(feature = "huggingface")]
pub mod huggingface;
#[cfg(any(feature = "pytorch", feature = "tensorflow", feature = "keras"))]
#[allow(dead_code, reason = "not every format needs all of it")]
mod input;
#[cfg(feature = "keras")]
pub mod keras;
#[cfg(any(feature = "tensorflow", feature = "keras"))]
mod keras_optimizer;
#[cfg(feature = "pytorch")]
pub mod npz;
#[cfg(feature = "pytorch")]
mod optimizer;
mod ours;
mod probe;
#[cfg(feature = "pytorch")]
pub mod pytorch;
#[cfg(any(feature = "tensorflow", feature = "keras"))]
mod room;
#[cfg(feature = "pytorch")]
mod seal;
#[cfg(any(feature = "tensorflow", feature = "keras"))]
mod slot;
mod stream;
pub(crate) mod temporary;
#[cfg(feature = "tensorflow")]
pub mod tensorflow;
#[cfg(feature = "pytorch")]
mod view;
#[cfg(feature = "pytorch")]
mod zip;

#[cfg(any(feature = "tensorflow", feature = "keras"))]
pub use keras_optimizer::KerasOptimizer;
#[cfg(feature = "pytorch")]
pub use optimizer::OptimizerState;
#[cfg(feature = "pytorch")]
pub use seal::{seal, seal_with};
#[cfg(any(feature = "tensorflow", feature = "keras"))]
pub use slot::Slot;
#[cfg(feature = "pytorch")]
use stream::for_each_chunk;
pub(crate) use stream::{AT_ONCE, verify_before_streaming};

pub(crate) use ours::{FORMAT, Ours, is_listed};

/// The advice for a format that [`open`] does not recognize.
pub(crate) const OWN_FORMAT: &str = "to read another format, implement `TensorSource` and pass it to \
     `Checkpoint::restore_source`, `convert` or `inspect::Target::of`";

use crate::error::Result;
use crate::source::TensorSource;
use std::collections::BTreeMap;
use std::path::Path;

/// Limits for a file, and how to treat unknown objects.
///
/// ```
/// use tch_checkpoint::interop::ReadOptions;
/// let options = ReadOptions::default().max_expansion(10_000);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// See [`max_expansion`](ReadOptions::max_expansion).
    pub(crate) max_expansion: u64,
    /// See [`unknown_objects`](ReadOptions::unknown_objects).
    pub(crate) unknown_objects: bool,
}

/// Bytes of tensors that are always allowed, whatever the length of the file.
#[cfg(feature = "pytorch")]
const FREE_EXPANSION: u64 = 64 << 20;

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions { max_expansion: 100, unknown_objects: false }
    }
}

impl ReadOptions {
    /// Sets the maximum size of all tensors together, as a multiple of the size of the files. 64 MiB are always
    /// allowed. Formats can describe terabytes in a few bytes (expanded elements, compression, fill values); opening a
    /// source beyond the limit is an error. Defaults to 100.
    #[must_use]
    pub fn max_expansion(mut self, times: u64) -> Self {
        self.max_expansion = times;
        self
    }

    /// Sets whether a file with objects of unknown classes is opened. Such objects are listed as
    /// [`unreadable`](TensorSource::unreadable), and are never executed. Defaults to `false`: opening such a file is an
    /// error that names the class.
    #[must_use]
    pub fn unknown_objects(mut self, allowed: bool) -> Self {
        self.unknown_objects = allowed;
        self
    }

    /// Checks that tensors of `tensors` bytes may come from `files` bytes. The error is the reason.
    #[cfg(feature = "pytorch")]
    pub(crate) fn check_expansion(&self, tensors: u64, files: u64) -> Result<(), String> {
        if tensors <= FREE_EXPANSION.max(files.saturating_mul(self.max_expansion)) {
            return Ok(());
        }
        Err(format!(
            "its tensors would take {tensors} bytes, {files} bytes are in the file; more than {} times as much is refused \
             unless `ReadOptions::max_expansion` with `interop::open_with`, or `ckpt --max-expansion`, allows it",
            self.max_expansion
        ))
    }
}

/// Opens the checkpoint at `path`: a file, a directory, or the prefix of a TensorFlow bundle, of any format including
/// this crate's own. If it has a seal (`PATH.seal.json`), everything is compared with the seal.
///
/// # Errors
/// [`Error::NotFound`](crate::Error::NotFound) if nothing is there; [`Error::Unsupported`](crate::Error::Unsupported)
/// for an unknown format, or for features of a format that this version does not read;
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a URL; [`Error::Damaged`](crate::Error::Damaged);
/// [`Error::Io`](crate::Error::Io).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::{Checkpoint, Counter, interop};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
/// let source = interop::open(&path)?;
/// assert_eq!(source.values()["step"], 7);
/// # Ok(())
/// # }
/// ```
pub fn open(path: impl AsRef<Path>) -> Result<Box<dyn TensorSource>> {
    open_with(path, &ReadOptions::default())
}

/// Like [`open`], with options.
///
/// # Errors
/// As for [`open`].
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::interop::{self, ReadOptions};
/// // Objects of unknown classes are listed instead of being an error.
/// let source = interop::open_with("model.pt", &ReadOptions::default().unknown_objects(true))?;
/// for (key, reason) in source.unreadable() {
///     println!("{key} cannot be read: {reason}");
/// }
/// # Ok(())
/// # }
/// ```
pub fn open_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Box<dyn TensorSource>> {
    let source = detect::open(path.as_ref(), options)?;
    #[cfg(feature = "pytorch")]
    let source = seal::with_seal(path.as_ref(), source)?;
    Ok(source)
}

/// The result of writing a file: what it contains and what was left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Written {
    /// The number of tensor names in it.
    pub tensors: usize,
    /// Entries that the format cannot hold or the source could not read: the reason, by key.
    pub left_out: BTreeMap<String, String>,
    /// What the source has in addition to tensors and values and the result lacks: the reason, by name. Names are
    /// `step`, `requires_grad`, and keys such as `metrics/loss`, `metadata/layers`, `assets/tokenizer.json` and
    /// `notes/reviewed`. Only [`convert`](crate::convert::convert) fills it.
    pub attributes_left_out: BTreeMap<String, String>,
}
