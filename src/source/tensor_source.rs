//! `TensorSource`: named tensors and values in files of any format.

use super::SourceAttributes;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::format::{Digest, Hasher};
use crate::location::Location;
use crate::name;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

/// How far the bytes of a tensor can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerifiedBy {
    /// The file has no checksum of the bytes: only lengths, bounds and structure are checked.
    Nothing,
    /// The file format has a checksum of the bytes (CRC-32 of a zip archive, CRC-32C of a TensorFlow bundle). The
    /// source itself must compare it: the crate trusts what a [`TensorSource`] claims here.
    Container,
    /// A digest of the bytes is known (XXH3-128 in a manifest of this crate).
    Digest,
}

/// A set of named tensors and values, open for reading.
///
/// Keys are those of [`name::key`](crate::name::key): the names from the root to the leaf, joined by `/`. Opening a
/// source reads and checks everything except the elements of tensors.
///
/// # Implementing it
///
/// * [`read`](TensorSource::read) and the other methods are called from several threads at once.
/// * By default a restore first calls [`verify_tensor`](TensorSource::verify_tensor) for every tensor that it needs,
///   and then [`read`](TensorSource::read). For tensors with [`VerifiedBy::Nothing`] it calls
///   [`ensure_readable`](TensorSource::ensure_readable) instead. Unless that is implemented they are read twice, the
///   first time in parts with [`read_range`](TensorSource::read_range), and must be the same both times; otherwise the
///   restore is an error.
/// * A source that claims [`VerifiedBy::Container`] is trusted: nothing else compares the checksum, and
///   [`RestoreStatus::verified_by`](crate::RestoreStatus::verified_by) reports the claim.
/// * A wrapper forwards every method, the provided ones too.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::ops::Range;
/// use tch_checkpoint::{Dtype, Error, Location, Result, TensorSource, TensorSpec, VerifiedBy};
///
/// /// Vectors by name, wherever they came from.
/// #[derive(Debug)]
/// struct Vectors {
///     path: Location,
///     vectors: BTreeMap<String, Vec<f32>>,
///     specs: BTreeMap<String, TensorSpec>,
/// }
///
/// impl Vectors {
///     fn new(path: impl Into<Location>, vectors: BTreeMap<String, Vec<f32>>) -> Vectors {
///         let spec = |vector: &Vec<f32>| TensorSpec::new(Dtype::F32, &[vector.len() as u64]);
///         let specs = vectors.iter().map(|(key, vector)| (key.clone(), spec(vector))).collect();
///         Vectors { path: path.into(), vectors, specs }
///     }
/// }
///
/// impl TensorSource for Vectors {
///     fn format(&self) -> &'static str {
///         "vectors"
///     }
///
///     fn path(&self) -> &Location {
///         &self.path
///     }
///
///     fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
///         &self.specs
///     }
///
///     fn verified_by(&self, _key: &str) -> VerifiedBy {
///         VerifiedBy::Nothing
///     }
///
///     fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
///         let elements = self.vectors.get(key).map_or(0, Vec::len) as u64;
///         self.read_range(key, 0..elements, target)
///     }
///
///     fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
///         let range = range.start as usize..range.end as usize;
///         let elements = self.vectors.get(key).and_then(|vector| vector.get(range));
///         let elements = elements.filter(|elements| 4 * elements.len() == target.len());
///         let elements = elements.ok_or_else(|| Error::object(key, "there are no such elements"))?;
///         for (bytes, element) in target.chunks_exact_mut(4).zip(elements) {
///             bytes.copy_from_slice(&element.to_le_bytes());
///         }
///         Ok(())
///     }
///
///     fn verify(&self) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// let source = Vectors::new("vectors", [("bias".to_string(), vec![1.0, 2.0])].into());
/// # #[cfg(feature = "torch")]
/// # {
/// # use tch_checkpoint::{Checkpoint, RestoreOptions};
/// let bias = tch::Tensor::zeros([2], (tch::Kind::Float, tch::Device::Cpu));
/// let mut checkpoint = Checkpoint::new().track("bias", &bias)?;
/// checkpoint.restore_source(&source, &RestoreOptions::new())?.assert_consumed()?;
/// assert_eq!(Vec::<f32>::try_from(&bias)?, [1.0, 2.0]);
/// # }
/// # let _ = source;
/// # Ok(())
/// # }
/// ```
pub trait TensorSource: Debug + Send + Sync {
    /// Returns the name of the format, such as `PyTorch (zip)`.
    fn format(&self) -> &'static str;

    /// Returns the file or directory.
    fn path(&self) -> &Location;

    /// Returns the type and shape of every tensor, by key.
    fn tensors(&self) -> &BTreeMap<String, TensorSpec>;

    /// Returns `true` if the tensor is a variable that was trained when it was saved. Defaults to `false`.
    #[doc(hidden)]
    fn was_trained(&self, key: &str) -> bool {
        let _ = key;
        false
    }

    /// Returns the keys of the tensors in the order of the file, or sorted if the file has no order. PyTorch numbers
    /// parameters in this order.
    fn order(&self) -> Vec<&str> {
        self.tensors().keys().map(String::as_str).collect()
    }

    /// Returns everything that is not a tensor, by key, as JSON. Defaults to nothing.
    fn values(&self) -> &BTreeMap<String, Value> {
        static NONE: BTreeMap<String, Value> = BTreeMap::new();
        &NONE
    }

    /// Returns the value of `key`, or an object of the values below `key` if there are no tensors below it. Formats
    /// with their own trees do not distinguish the two.
    fn value(&self, key: &str) -> Option<Value> {
        if let Some(value) = self.values().get(key) {
            return Some(value.clone());
        }
        let prefix = name::prefix(key);
        let has_tensors =
            self.tensors().range(prefix.clone()..).next().is_some_and(|(key, _)| key.starts_with(&prefix));
        let inside = self.values().range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let mut object = serde_json::Map::new();
        for (full, value) in inside.filter(|_| !has_tensors) {
            let mut path = name::path(&full[prefix.len()..])?;
            let last = path.pop()?;
            let mut at = &mut object;
            for part in path {
                let branch = at.entry(part).or_insert_with(|| Value::Object(serde_json::Map::new()));
                at = branch.as_object_mut()?;
            }
            at.insert(last, value.clone());
        }
        (!object.is_empty()).then_some(Value::Object(object))
    }

    /// Returns the entries that this crate cannot read: the reason, by key. Such an entry is in none of the other maps.
    /// Defaults to nothing.
    fn unreadable(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        &NONE
    }

    /// Returns the component of the object `key`, as the first part of the key, and the reason, if the checkpoint was saved
    /// without that component, or has lost it since.
    #[doc(hidden)]
    fn lacks(&self, key: &str) -> Option<(String, String)> {
        let _ = key;
        None
    }

    /// Returns the first key, in sorted order, of the tensors that share their elements with `key` (tied weights), or
    /// `key` itself if there is no other.
    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        key
    }

    /// Returns whether the tensor `key` was a variable that required a gradient; `None`, the default, if that has no
    /// meaning or was not recorded.
    fn requires_grad(&self, key: &str) -> Option<bool> {
        let _ = key;
        None
    }

    /// Returns what is recorded in addition to tensors and values: the step, metrics, metadata and files that are not
    /// components. Defaults to nothing.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged), [`Error::Io`](crate::Error::Io).
    fn attributes(&self) -> Result<SourceAttributes> {
        Ok(SourceAttributes::default())
    }

    /// Reads the file `name` of [`attributes`](TensorSource::attributes) from beginning to end, and passes it on in
    /// pieces. It is verified when this returns. Defaults to an error, because there are no such files.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged) if there is no such file, or it differs from what was written;
    /// [`Error::Io`](crate::Error::Io); the errors of `with`.
    fn read_asset(&self, name: &str, with: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let _ = with;
        Err(Error::damaged(self.path(), format!("it has no file {name:?}")))
    }

    /// Returns how far [`read`](TensorSource::read) verifies the tensor `key`.
    fn verified_by(&self, key: &str) -> VerifiedBy;

    /// Returns the digest of the elements of the tensor `key`, as recorded when it was written or sealed. Defaults to
    /// `None`.
    fn digest(&self, key: &str) -> Option<Digest> {
        let _ = key;
        None
    }

    /// Reads all elements of the tensor `key` into `target`, row-major and little-endian, and verifies them as far as
    /// [`verified_by`](TensorSource::verified_by) reports. `target` has exactly the tensor's length in bytes.
    /// Called from several threads at once.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object) for an unknown key or a target of another length;
    /// [`Error::Damaged`](crate::Error::Damaged), [`Error::Io`](crate::Error::Io).
    fn read(&self, key: &str, target: &mut [u8]) -> Result<()>;

    /// Reads the elements `range` of the tensor `key`, counted in row-major order, into `target`. Memory is bounded by
    /// the length of `target`, a small buffer, and two chunks of a format that compresses in chunks. Does not verify
    /// checksums that cover other elements, too.
    ///
    /// # Errors
    /// As for [`read`](TensorSource::read).
    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()>;

    /// Verifies the elements of the tensor `key` as far as [`verified_by`](TensorSource::verified_by) reports, without
    /// returning them. Reads nothing if nothing can be verified. The default implementation calls
    /// [`read`](TensorSource::read) with a buffer of the tensor's size; the formats of this crate need only a small
    /// buffer.
    ///
    /// # Errors
    /// As for [`read`](TensorSource::read).
    fn verify_tensor(&self, key: &str) -> Result<()> {
        let Some(spec) = self.tensors().get(key) else {
            return Err(no_such_tensor(self, key));
        };
        if self.verified_by(key) == VerifiedBy::Nothing {
            return Ok(());
        }
        let mut buffer = room(key, spec.bytes())?;
        self.read(key, &mut buffer)
    }

    /// Makes sure, before a restore changes anything, that all elements of the tensor `key` can be read, where nothing
    /// of them can be verified. Returns `true` if every later read returns the same elements or is an error, as with
    /// files whose changes are noticed (not those through a mapping that was already written to). Returns `false`, the
    /// default, if it did nothing: whoever needs to know reads them twice.
    ///
    /// # Errors
    /// As for [`read`](TensorSource::read).
    fn ensure_readable(&self, key: &str) -> Result<bool> {
        let _ = key;
        Ok(false)
    }

    /// Verifies everything in the files that has a checksum, in bounded memory.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged) with the first difference; [`Error::Io`](crate::Error::Io).
    fn verify(&self) -> Result<()>;
}

/// Verifies the tensor `key` as far as that can be, or else makes sure that it can be read. Returns `false` if neither
/// can be known without reading it twice.
pub(crate) fn check(source: &dyn TensorSource, key: &str) -> Result<bool> {
    match source.verified_by(key) {
        VerifiedBy::Nothing => source.ensure_readable(key),
        _ => source.verify_tensor(key).map(|()| true),
    }
}

/// How many bytes are read at a time for a digest.
const PIECE: u64 = 512 << 10;

/// Returns the digest of the elements of the tensor `key`, read piece by piece. Verifies nothing.
pub(crate) fn digest(source: &dyn TensorSource, key: &str) -> Result<Digest> {
    let spec = source.tensors().get(key).ok_or_else(|| no_such_tensor(source, key))?;
    let size = spec.dtype.size() as u64;
    let (count, step) = (spec.bytes().unwrap_or_default() / size, PIECE / size);
    let mut buffer = room(key, Some((count * size).min(PIECE)))?;
    let mut hasher = Hasher::new();
    let mut at = 0;
    while at < count {
        let end = (at + step).min(count);
        let piece = &mut buffer[..((end - at) * size) as usize];
        source.read_range(key, at..end, piece)?;
        hasher.update(piece);
        at = end;
    }
    Ok(hasher.finish())
}

/// Returns the error for a key that the source lacks, with the key that is most like it.
pub(crate) fn no_such_tensor(source: &(impl TensorSource + ?Sized), key: &str) -> Error {
    let near = name::nearest_hint(key, source.tensors().keys().map(String::as_str));
    Error::object(key, format!("{} has no such tensor{near}", source.path().display()))
}

/// Checks that a target of `length` bytes has room for all elements of a tensor, and no more.
pub(crate) fn check_target(key: &str, spec: &TensorSpec, length: usize) -> Result<()> {
    match spec.bytes() == Some(length as u64) {
        true => Ok(()),
        false => Err(Error::object(key, format!("a target of {length} bytes does not fit {spec}"))),
    }
}

/// Checks that a tensor has the elements `range`, and that a target of `length` bytes has room for them, and no more.
pub(crate) fn check_range(key: &str, spec: &TensorSpec, range: &Range<u64>, length: usize) -> Result<()> {
    let size = spec.dtype.size() as u64;
    let count = spec.bytes().unwrap_or_default() / size;
    let elements = range.end.checked_sub(range.start).filter(|_| range.end <= count);
    match elements.and_then(|elements| elements.checked_mul(size)) == Some(length as u64) {
        true => Ok(()),
        false => Err(Error::object(key, format!("elements {range:?} of {spec} do not fit a target of {length} bytes"))),
    }
}

/// Allocates `bytes` bytes for the tensor `key`, or returns an error.
pub(crate) fn room(key: &str, bytes: Option<u64>) -> Result<Vec<u8>> {
    let too_large = || Error::out_of_memory(format!("the tensor {key}"), bytes);
    let length = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(too_large)?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(length).map_err(|_| too_large())?;
    buffer.resize(length, 0);
    Ok(buffer)
}

/// Returns one element as JSON: an integer, a boolean, or a float of at most 64 bits. `None` for other types and for
/// values that JSON cannot represent.
pub(crate) fn number(dtype: Dtype, bytes: &[u8]) -> Option<Value> {
    macro_rules! read {
        ($type:ty) => {
            <$type>::from_le_bytes(bytes.try_into().ok()?)
        };
    }
    Some(match dtype {
        Dtype::Bool => Value::from(*bytes.first()? != 0),
        Dtype::U8 => Value::from(read!(u8)),
        Dtype::I8 => Value::from(read!(i8)),
        Dtype::I16 => Value::from(read!(i16)),
        Dtype::U16 => Value::from(read!(u16)),
        Dtype::I32 => Value::from(read!(i32)),
        Dtype::U32 => Value::from(read!(u32)),
        Dtype::I64 => Value::from(read!(i64)),
        Dtype::U64 => Value::from(read!(u64)),
        Dtype::F32 => serde_json::Number::from_f64(read!(f32).into()).map(Value::Number)?,
        Dtype::F64 => serde_json::Number::from_f64(read!(f64)).map(Value::Number)?,
        _ => return None,
    })
}
