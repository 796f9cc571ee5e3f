//! Tensors that are read in pieces, for writers.

use crate::error::{Error, Result};
use crate::source::{TensorSource, VerifiedBy};

/// The size of the largest tensor that is read in one piece, in bytes.
const AT_ONCE: u64 = 32 << 20;

/// The size of the pieces of a larger one, in bytes.
const CHUNK: u64 = 4 << 20;

/// Verifies the whole source if a tensor is too large to be verified as it is read.
pub(super) fn verify_before_streaming<'a>(
    source: &dyn TensorSource,
    keys: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let mut long = keys.filter(|key| source.tensors().get(*key).and_then(|spec| spec.bytes()) > Some(AT_ONCE));
    if long.any(|key| source.verified_by(key) != VerifiedBy::Nothing) { source.verify() } else { Ok(()) }
}

/// Passes the bytes of a tensor on in pieces, verified unless the tensor is large.
pub(super) fn for_each_chunk(
    source: &dyn TensorSource,
    key: &str,
    with: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let spec = source.tensors().get(key).ok_or_else(|| Error::object(key, "the source has no such tensor"))?;
    let bytes = spec.bytes().ok_or_else(|| Error::object(key, "it has no length"))?;
    if bytes <= AT_ONCE {
        let mut buffer = vec![0; bytes as usize];
        source.read(key, &mut buffer)?;
        return if bytes == 0 { Ok(()) } else { with(&buffer) };
    }
    let size = spec.dtype.size() as u64;
    let (count, step) = (bytes / size, CHUNK / size);
    let mut buffer = vec![0; CHUNK as usize];
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
