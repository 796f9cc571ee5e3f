//! `TensorSource`: what tensors and values are read from, whatever the format of the files.

use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::format::Digest;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;

/// How far the bytes of a tensor can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerifiedBy {
    /// The file has no checksum of the bytes: only lengths, bounds and structure are checked.
    Nothing,
    /// The file format has a checksum of the bytes (CRC-32 of a zip archive, CRC-32C of a TensorFlow bundle).
    Container,
    /// A digest of the bytes is known (XXH3-128 in a manifest of this crate).
    Digest,
}

/// A set of named tensors and values, open for reading.
///
/// Keys are those of [`name::key`](crate::name::key): the names from the root to the leaf, joined by `/`. Opening a source
/// reads and checks everything but the elements of tensors, so that names, types, shapes and values are known without
/// reading them.
pub trait TensorSource: Debug + Send + Sync {
    /// The name of the format, such as `PyTorch (zip)`.
    fn format(&self) -> &'static str;

    /// The file or directory.
    fn path(&self) -> &Path;

    /// Dtype and shape of every tensor, by key.
    fn tensors(&self) -> &BTreeMap<String, TensorSpec>;

    /// The keys of the tensors in the order of the file, where that has one; else in the order of their text. PyTorch
    /// numbers parameters in that order.
    fn order(&self) -> Vec<&str> {
        self.tensors().keys().map(String::as_str).collect()
    }

    /// Values that are no tensors, by key, as JSON.
    fn values(&self) -> &BTreeMap<String, Value>;

    /// The value `key`: the one of that key, or an object of all that are under it, where nothing else is. Formats that
    /// have trees of their own do not tell an object from a branch.
    fn value(&self, key: &str) -> Option<Value> {
        if let Some(value) = self.values().get(key) {
            return Some(value.clone());
        }
        let prefix = format!("{key}/");
        let has_tensors =
            self.tensors().range(prefix.clone()..).next().is_some_and(|(key, _)| key.starts_with(&prefix));
        let inside = self.values().range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let mut object = serde_json::Map::new();
        for (full, value) in inside.filter(|_| !has_tensors) {
            let mut path = crate::name::path(&full[prefix.len()..])?;
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

    /// What the source holds and this crate cannot: the reason, by key. Such an entry is in none of the other maps.
    fn unreadable(&self) -> &BTreeMap<String, String>;

    /// The first key, in order, of the tensors that are the same elements as `key` (tied weights): `key` itself where
    /// there is no other.
    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        key
    }

    /// How far [`read`](TensorSource::read) verifies the tensor `key`.
    fn verified_by(&self, key: &str) -> VerifiedBy;

    /// Returns the digest of the elements of the tensor `key`, as recorded when it was written or sealed. Defaults to
    /// `None`.
    fn digest(&self, key: &str) -> Option<Digest> {
        let _ = key;
        None
    }

    /// Reads all elements of the tensor `key` into `target`, row-major and little-endian, and verifies them as far as
    /// [`verified_by`](TensorSource::verified_by) says. `target` has exactly the tensor's length in bytes.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object) for an unknown key or a target of another length;
    /// [`Error::Damaged`](crate::Error::Damaged), [`Error::Io`](crate::Error::Io).
    fn read(&self, key: &str, target: &mut [u8]) -> Result<()>;

    /// Reads the elements `range` of the tensor `key`, counted in row-major order, into `target`. Bounded in memory by
    /// the length of `target`, a small buffer, and what one compressed chunk of the format takes. Verifies nothing that
    /// needs the other elements.
    ///
    /// # Errors
    /// As for [`read`](TensorSource::read).
    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()>;

    /// Checks the elements of the tensor `key` as far as [`verified_by`](TensorSource::verified_by) says, without giving
    /// them. Where nothing verifies them, nothing is read. Defaults to [`read`](TensorSource::read) into memory of the
    /// tensor's size; formats of this crate need a small buffer.
    ///
    /// # Errors
    /// As for [`read`](TensorSource::read).
    fn verify_tensor(&self, key: &str) -> Result<()> {
        let Some(spec) = self.tensors().get(key) else {
            return Err(Error::object(key, format!("{} has no such tensor", self.path().display())));
        };
        if self.verified_by(key) == VerifiedBy::Nothing {
            return Ok(());
        }
        let mut buffer = room(key, spec.bytes())?;
        self.read(key, &mut buffer)
    }

    /// Checks everything in the files that has a checksum, in bounded memory.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged) with the first difference; [`Error::Io`](crate::Error::Io).
    fn verify(&self) -> Result<()>;
}

/// Memory of `bytes` bytes for the tensor `key`, or an error that says that there is none.
pub(crate) fn room(key: &str, bytes: Option<u64>) -> Result<Vec<u8>> {
    let too_large = || Error::out_of_memory(format!("the tensor {key}"), bytes);
    let length = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(too_large)?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(length).map_err(|_| too_large())?;
    buffer.resize(length, 0);
    Ok(buffer)
}

/// One element as JSON: an integer, a boolean, or a float of at most 64 bits. `None` for other types, and for what JSON
/// cannot hold.
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
