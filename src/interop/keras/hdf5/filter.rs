//! Filters: transformations of the bytes of a chunk.

use super::metadata::Metadata;
use crate::error::Result;
use std::io::Read;

/// HDF5's own limit.
const MAX_FILTERS: u8 = 32;

/// A filter of a dataset, in the order of writing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Filter {
    Deflate,
    /// Bytes of the elements.
    Shuffle(usize),
    Fletcher,
    /// One that this crate does not know.
    Other(u16),
}

/// Returns the filters of a message.
pub(super) fn parse(metadata: &Metadata<'_>, message: &[u8]) -> Result<Vec<Filter>> {
    let mut cursor = metadata.cursor(message);
    let (version, count) = (cursor.u8()?, cursor.u8()?);
    if version != 1 {
        return Err(metadata.unsupported(format!("version {version} of a list of filters")));
    }
    if count > MAX_FILTERS {
        return Err(metadata.damaged(format!("a dataset is written with {count} filters")));
    }
    cursor.skip(6)?;
    let mut filters = Vec::new();
    for _ in 0..count {
        let (id, name, _flags, values) = (cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?);
        cursor.skip(u64::from(name).next_multiple_of(8))?;
        let first = if values > 0 { Some(cursor.u32()?) } else { None };
        cursor.skip(4 * u64::from(values.saturating_sub(1)) + if values % 2 == 1 { 4 } else { 0 })?;
        filters.push(match (id, first) {
            (1, _) => Filter::Deflate,
            (2, Some(size)) if size > 0 => Filter::Shuffle(size as usize),
            (3, _) => Filter::Fletcher,
            (id, _) => Filter::Other(id),
        });
    }
    Ok(filters)
}

/// Returns the bytes that were written, of which there are `length`. Filters whose bit is set in `mask` were skipped.
pub(super) fn undo(filters: &[Filter], mask: u32, mut bytes: Vec<u8>, length: usize) -> Result<Vec<u8>, String> {
    for (i, filter) in filters.iter().enumerate().rev() {
        if i < 32 && mask >> i & 1 == 1 {
            continue;
        }
        bytes = match filter {
            // Checksums that were added before compression are in addition.
            Filter::Deflate => inflate(&bytes, length + 4 * filters.len())?,
            Filter::Shuffle(size) => unshuffle(&bytes, *size),
            Filter::Fletcher => check_fletcher(bytes)?,
            Filter::Other(id) => return Err(format!("it is written with filter {id}, which this crate does not know")),
        };
    }
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(format!("a chunk has {} bytes, not {length}", bytes.len())),
    }
}

/// The maximum number of bytes to which one byte of a deflated stream can expand.
const MAX_INFLATION: usize = 1032;

/// Returns at most `most` bytes, and no byte more.
fn inflate(bytes: &[u8], most: usize) -> Result<Vec<u8>, String> {
    // The maximum size is allocated at once: a growing vector needs up to three times as much.
    let mut inflated = Vec::with_capacity(most.min(bytes.len().saturating_mul(MAX_INFLATION)));
    let mut decoder = flate2::read::ZlibDecoder::new(bytes).take(most as u64 + 1);
    match decoder.read_to_end(&mut inflated) {
        Ok(_) if inflated.len() <= most => Ok(inflated),
        Ok(_) => Err("a compressed chunk is longer than stated".into()),
        Err(e) => Err(format!("a compressed chunk is damaged: {e}")),
    }
}

/// Returns the elements of bytes that were sorted by their place in the element.
fn unshuffle(bytes: &[u8], size: usize) -> Vec<u8> {
    let count = bytes.len() / size;
    let mut plain = Vec::with_capacity(bytes.len());
    for element in 0..count {
        plain.extend((0..size).map(|byte| bytes[byte * count + element]));
    }
    plain.extend_from_slice(&bytes[count * size..]);
    plain
}

/// Verifies the checksum at the end, and returns the bytes without it.
fn check_fletcher(mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let Some(length) = bytes.len().checked_sub(4) else {
        return Err("a chunk is shorter than its checksum".into());
    };
    let stored = bytes.split_off(length);
    match fletcher(&bytes).to_le_bytes() == stored[..] {
        true => Ok(bytes),
        false => Err("checksum mismatch: a chunk is not what was written".into()),
    }
}

/// Fletcher's sum over 16-bit words, big-endian, as HDF5 takes it.
fn fletcher(bytes: &[u8]) -> u32 {
    let (mut low, mut high) = (0u32, 0u32);
    let mut add = |word: u32| {
        low = (low + word) % 65535;
        high = (high + low) % 65535;
    };
    let words = bytes.chunks_exact(2);
    let last = words.remainder().first().copied();
    words.for_each(|word| add(u32::from(word[0]) << 8 | u32::from(word[1])));
    if let Some(last) = last {
        add(u32::from(last) << 8);
    }
    high << 16 | low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffled_bytes_come_back() {
        assert_eq!(unshuffle(&[1, 2, 3, 10, 20, 30, 7], 2), [1, 10, 2, 20, 3, 30, 7]);
        assert!(unshuffle(&[], 8).is_empty());
    }

    #[test]
    fn compressed_bytes_are_bounded() {
        use std::io::Write;
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![0; 100_000]).unwrap();
        let bomb = encoder.finish().unwrap();
        assert_eq!(inflate(&bomb, 100_000).unwrap().len(), 100_000);
        assert!(inflate(&bomb, 99_999).is_err());
        for at in 0..bomb.len() {
            assert!(undo(&[Filter::Deflate], 0, bomb[..at].to_vec(), 100_000).is_err());
        }
    }
}
