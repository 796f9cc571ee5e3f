//! Writes any source as a checkpoint of this crate, or as files of another tool.

mod checkpoint;

use crate::error::Result;
use crate::interop::Written;
#[cfg(feature = "huggingface")]
use crate::interop::huggingface;
#[cfg(feature = "pytorch")]
use crate::interop::pytorch;
#[cfg(feature = "tensorflow")]
use crate::interop::tensorflow;
use crate::location::Location;
#[cfg(feature = "pytorch")]
use crate::source::SourceAttributes;
use crate::source::TensorSource;
use checkpoint::checkpoint;

/// The format that [`convert`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// A checkpoint of this crate.
    Checkpoint,
    /// A safetensors file if the path ends in `.safetensors`, otherwise a Hugging Face directory.
    #[cfg(feature = "huggingface")]
    Safetensors,
    /// A file for `torch.load`.
    #[cfg(feature = "pytorch")]
    PyTorch,
    /// A TensorFlow checkpoint; the path is its prefix.
    #[cfg(feature = "tensorflow")]
    TensorFlow,
}

/// Writes the content of `source` to `path`, atomically and durably. The source is verified as it is read, as far as
/// its format allows. A [`Mapped`](crate::map::Mapped) source is written under its new names.
///
/// In a checkpoint of this crate, the first name of a key is the component and its file. A key of a single name, as in
/// safetensors files, becomes `model/NAME` unless the source is a checkpoint of this crate. Entries that the format
/// cannot hold are left out and listed in the result.
///
/// A checkpoint of this crate also gets what the source has in addition to tensors and values
/// ([`TensorSource::attributes`]): the step, the save counter, metrics, metadata, files, and which variables require a
/// gradient. It is a new checkpoint with its own run and sequence, and follows no other. The program of a saved model
/// is left out unless all its variables are unchanged. A checkpoint that was made from several lists them in the
/// metadata `sources`. Other formats cannot represent any of this. [`Written::attributes_left_out`] lists what is left
/// out.
///
/// Memory use does not depend on the size of the tensors: a tensor of more than 8 MiB is verified, and then read and
/// written in pieces. The exceptions are tensors that a map can only compute in one piece
/// ([`Mapped`](crate::map::Mapped)).
///
/// # Errors
/// [`Error::AlreadyExists`](crate::Error::AlreadyExists) if anything is at `path` ([`ConvertOptions::replace`] replaces
/// a file); [`Error::InvalidName`](crate::Error::InvalidName) for names that the format cannot hold; errors of reading
/// and writing. After an error, nothing is left at `path`.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::convert::{Format, convert};
/// use tch_checkpoint::{interop, map::NameMap};
/// let source = interop::open("encoder.weights.h5")?;
/// let names = NameMap::open("encoder.map")?.apply(&*source)?;
/// let written = convert(&names, "encoder", Format::Checkpoint)?;
/// println!("{} tensors", written.tensors);
/// # Ok(())
/// # }
/// ```
pub fn convert(source: &dyn TensorSource, path: impl Into<Location>, format: Format) -> Result<Written> {
    convert_with(source, path, format, &ConvertOptions::default())
}

/// Options of [`convert_with`].
///
/// ```
/// use tch_checkpoint::convert::ConvertOptions;
/// use tch_checkpoint::interop::pytorch::WriteOptions;
/// let options = ConvertOptions::default().replace(true).pytorch(WriteOptions::default().only("model").flat(true));
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    replace: bool,
    #[cfg(feature = "huggingface")]
    safetensors: huggingface::WriteOptions,
    #[cfg(feature = "pytorch")]
    pytorch: pytorch::WriteOptions,
    #[cfg(feature = "tensorflow")]
    tensorflow: tensorflow::WriteOptions,
}

impl ConvertOptions {
    /// Sets whether an existing file is replaced, atomically. Directories and TensorFlow checkpoints are never
    /// replaced. Defaults to `false`.
    #[must_use]
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Sets the options of [`Format::Safetensors`].
    #[cfg(feature = "huggingface")]
    #[must_use]
    pub fn safetensors(mut self, options: huggingface::WriteOptions) -> Self {
        self.safetensors = options;
        self
    }

    /// Sets the options of [`Format::PyTorch`].
    #[cfg(feature = "pytorch")]
    #[must_use]
    pub fn pytorch(mut self, options: pytorch::WriteOptions) -> Self {
        self.pytorch = options;
        self
    }

    /// Sets the options of [`Format::TensorFlow`].
    #[cfg(feature = "tensorflow")]
    #[must_use]
    pub fn tensorflow(mut self, options: tensorflow::WriteOptions) -> Self {
        self.tensorflow = options;
        self
    }
}

/// Like [`convert`], with options.
///
/// # Errors
/// As for [`convert`]; [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the options of a format do not fit
/// the source.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::convert::{ConvertOptions, Format, convert_with};
/// use tch_checkpoint::interop;
/// let source = interop::open("checkpoints/run/ckpt-900")?;
/// let written = convert_with(&*source, "model.safetensors", Format::Safetensors, &ConvertOptions::default().replace(true))?;
/// for (key, reason) in &written.left_out {
///     println!("{key} is left out: {reason}");
/// }
/// # Ok(())
/// # }
/// ```
#[cfg_attr(not(feature = "pytorch"), allow(unused_variables, reason = "no format has any"))]
pub fn convert_with(
    source: &dyn TensorSource,
    path: impl Into<Location>,
    format: Format,
    options: &ConvertOptions,
) -> Result<Written> {
    let path = &path.into();
    let attributes = source.attributes()?;
    match format {
        Format::Checkpoint => checkpoint(source, attributes, path),
        #[cfg(feature = "huggingface")]
        Format::Safetensors => {
            let mut with = options.safetensors.clone();
            with.is_new = !options.replace;
            let written = huggingface::write(source, path, &with)?;
            Ok(without_attributes(written, source, attributes, "safetensors files hold tensors only"))
        }
        #[cfg(feature = "pytorch")]
        Format::PyTorch => {
            let mut with = options.pytorch.clone();
            with.is_new = !options.replace;
            let written = pytorch::write(source, path, &with)?;
            Ok(without_attributes(written, source, attributes, "PyTorch files hold tensors and values only"))
        }
        #[cfg(feature = "tensorflow")]
        Format::TensorFlow => {
            let left_out = tensorflow::write(source, path, &options.tensorflow)?;
            let tensors = source.tensors().keys().filter(|key| !left_out.contains_key(*key)).count();
            let written = Written { tensors, left_out, ..Written::default() };
            Ok(without_attributes(written, source, attributes, "TensorFlow checkpoints hold tensors and values only"))
        }
    }
}

/// Lists everything but tensors and values as left out, with the format's reason.
#[cfg(feature = "pytorch")]
fn without_attributes(
    written: Written,
    source: &dyn TensorSource,
    attributes: SourceAttributes,
    reason: &str,
) -> Written {
    let mut names = attributes.names();
    if source.tensors().keys().any(|key| source.requires_grad(key).is_some()) {
        names.push("requires_grad".to_string());
    }
    let mut attributes_left_out = attributes.left_out;
    attributes_left_out.extend(names.into_iter().map(|name| (name, reason.to_string())));
    Written { attributes_left_out, ..written }
}
