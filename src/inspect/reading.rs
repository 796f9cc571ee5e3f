//! Reading the elements of a tensor in pieces.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::format::Hasher;
use crate::name;
use crate::source::{TensorSource, VerifiedBy};

/// The length of a piece in bytes: whole elements of every type, and few enough to stay in the core's cache.
pub(super) const CHUNK: u64 = 512 << 10;

/// Reads the elements of a tensor piece by piece, and verifies them as far as the source allows.
pub(super) struct Elements<'a> {
    source: &'a dyn TensorSource,
    key: &'a str,
    dtype: Dtype,
    next: u64,
    count: u64,
    hasher: Option<Hasher>,
    buffer: Vec<u8>,
}

impl<'a> Elements<'a> {
    /// Starts to read the tensor `key`. A checksum of the container is over more than the elements, so it is verified
    /// first.
    pub(super) fn open(source: &'a dyn TensorSource, key: &'a str) -> Result<Elements<'a>> {
        let spec = source.tensors().get(key).ok_or_else(|| no_such_tensor(source, key))?;
        let is_digested = source.digest(key).is_some();
        if !is_digested && source.verified_by(key) != VerifiedBy::Nothing {
            source.verify_tensor(key)?;
        }
        Ok(Elements {
            source,
            key,
            dtype: spec.dtype,
            next: 0,
            count: spec.bytes().unwrap_or_default() / spec.dtype.size() as u64,
            hasher: is_digested.then(Hasher::new),
            buffer: Vec::new(),
        })
    }

    /// Returns the type of the elements.
    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Returns the next elements, little-endian, or `None` at the end, where the digest is compared.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>> {
        let size = self.dtype.size() as u64;
        let end = (self.next + CHUNK / size).min(self.count);
        if self.next == end {
            return self.finish().map(|()| None);
        }
        self.buffer.resize(((end - self.next) * size) as usize, 0);
        self.source.read_range(self.key, self.next..end, &mut self.buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.buffer);
        }
        self.next = end;
        Ok(Some(&self.buffer))
    }

    fn finish(&mut self) -> Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        if self.source.digest(self.key) == Some(hasher.finish()) {
            return Ok(());
        }
        // Returns the error, unless it was temporary.
        self.source.verify_tensor(self.key)?;
        Err(Error::damaged(self.source.path(), format!("the tensor {:?} changed while it was read", self.key)))
    }
}

/// The error for a key that the source lacks, with the key that is most like it.
pub(super) fn no_such_tensor(source: &dyn TensorSource, key: &str) -> Error {
    let near = name::nearest_hint(key, source.tensors().keys().map(String::as_str));
    Error::object(key, format!("{} has no such tensor{near}", source.path().display()))
}
