//! Tensors that are read in pieces, for writers.

#[cfg(feature = "pytorch")]
use crate::error::Error;
use crate::error::Result;
use crate::parallel;
#[cfg(feature = "pytorch")]
use crate::source::room;
use crate::source::{TensorSource, VerifiedBy};
use std::collections::BTreeSet;

/// The size of the largest tensor that is read in one piece, in bytes.
pub(crate) const AT_ONCE: u64 = 8 << 20;

/// The size of the pieces of a larger one, in bytes.
#[cfg(feature = "pytorch")]
const CHUNK: u64 = 4 << 20;

/// The number of threads that verify: each needs a buffer.
const THREADS: usize = 2;

/// Verifies the tensors that are too large to be verified as they are read.
pub(crate) fn verify_before_streaming<'a>(
    source: &dyn TensorSource,
    keys: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let is_long = |key: &&str| source.tensors().get(*key).and_then(|spec| spec.bytes()) > Some(AT_ONCE);
    let long: BTreeSet<&str> = keys.filter(is_long).map(|key| source.first_alias(key)).collect();
    let long: Vec<&str> = long.into_iter().filter(|key| source.verified_by(key) != VerifiedBy::Nothing).collect();
    parallel::for_each(&long, THREADS, || (), |key, ()| source.verify_tensor(key))
}

/// Passes the bytes of a tensor on in pieces, verified unless the tensor is large.
#[cfg(feature = "pytorch")]
pub(super) fn for_each_chunk(
    source: &dyn TensorSource,
    key: &str,
    with: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let spec = source.tensors().get(key).ok_or_else(|| Error::object(key, "the source has no such tensor"))?;
    let bytes = spec.bytes().ok_or_else(|| Error::object(key, "it has no length"))?;
    if bytes <= AT_ONCE {
        let mut buffer = room(key, Some(bytes))?;
        source.read(key, &mut buffer)?;
        return if bytes == 0 { Ok(()) } else { with(&buffer) };
    }
    let size = spec.dtype.size() as u64;
    let (count, step) = (bytes / size, CHUNK / size);
    let mut buffer = room(key, Some(CHUNK))?;
    let mut at = 0;
    while at < count {
        let end = (at + step).min(count);
        let chunk = &mut buffer[..((end - at) * size) as usize];
        source.read_range(key, at..end, chunk)?;
        with(chunk)?;
        at = end;
    }
    Ok(())
}
