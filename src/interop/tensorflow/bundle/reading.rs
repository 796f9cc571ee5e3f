//! The elements of a bundle's tensors, read and compared with their checksums.

use super::Bundle;
use crate::error::{Error, Result};
use crate::interop::tensorflow::checksum::mask;
use crate::interop::tensorflow::messages::Entry;
use crate::interop::tensorflow::slices::Slice;
use crate::interop::tensorflow::stored::Stored;
use crate::interop::tensorflow::strings;
use serde_json::Value;
use std::ops::Range;

/// The longest tensor of strings that becomes a value.
const MAX_STRINGS: u64 = 4 << 20;
/// Lists that strings may be in beside one for each byte of them.
const MAX_NESTING: u64 = 1 << 10;
/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

impl Bundle {
    /// Compares the checksums of a tensor's slices.
    pub(super) fn verify_stored(&self, stored: &Stored) -> Result<()> {
        for entry in stored.entries() {
            if stored.kind.size == 0 {
                let bytes = self.bytes(entry)?;
                self.check_strings(stored, entry, &bytes)?;
                continue;
            }
            let mut crc = 0;
            self.copy_entry(entry, |chunk| {
                crc = crc32c::crc32c_append(crc, chunk);
                Ok(())
            })?;
            self.check(stored, entry, crc)?;
        }
        Ok(())
    }

    /// Returns the bytes of an entry whose range has been checked.
    pub(super) fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        self.shard(entry.shard)?.read_vec(entry.offset..entry.offset.saturating_add(entry.size), u64::MAX)
    }

    /// Returns a tensor of strings as a value; the inner error is the reason if it cannot be one.
    pub(super) fn value(&self, stored: &Stored) -> Result<Result<Value, String>> {
        if stored.bytes() > MAX_STRINGS {
            return Ok(Err(format!("strings of {} bytes are too long for a value", stored.bytes())));
        }
        let count = stored.entry.elements().unwrap_or(0);
        let nesting = strings::lists(&stored.entry.shape);
        if count > 0 && nesting > stored.bytes().saturating_add(MAX_NESTING) {
            return Ok(Err(format!("strings in {nesting} lists are too many lists for a value")));
        }
        let mut parts = Vec::new();
        for entry in stored.entries() {
            parts.push(self.bytes(entry)?);
        }
        // Each element has at least the byte of its length.
        let mut elements = vec![&[][..]; count.min(stored.bytes()) as usize];
        for (i, (entry, bytes)) in stored.entries().zip(&parts).enumerate() {
            for (j, element) in self.decode(stored, entry, bytes)?.into_iter().enumerate() {
                let position = stored.slices.get(i).map_or(j as u64, |slice| slice.position(j as u64));
                if let Some(place) = elements.get_mut(position as usize) {
                    *place = element;
                }
            }
        }
        Ok(Ok(strings::to_json(&elements, &stored.entry.shape)))
    }

    /// Returns the strings of an entry, verified.
    pub(super) fn decode<'a>(&self, stored: &Stored, entry: &Entry, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>> {
        strings::decode(bytes, entry.elements().unwrap_or(u64::MAX), entry.crc).map_err(|reason| {
            let reason = format!("{reason} ({})", String::from_utf8_lossy(&stored.name));
            self.shard(entry.shard).map_or_else(|e| e, |file| Error::damaged(file.path(), reason))
        })
    }

    /// Reads all bytes of a tensor and compares its checksums.
    pub(super) fn read_stored(&self, stored: &Stored, target: &mut [u8]) -> Result<()> {
        if stored.kind.size == 0 {
            let mut rest = target;
            for entry in stored.entries() {
                let (part, tail) = rest.split_at_mut(entry.size as usize);
                self.shard(entry.shard)?.read(entry.offset, part)?;
                self.check_strings(stored, entry, part)?;
                rest = tail;
            }
            return Ok(());
        }
        if stored.slices.is_empty() {
            let file = self.shard(stored.entry.shard)?;
            let mut crc = 0;
            for (i, chunk) in target.chunks_mut(CHUNK as usize).enumerate() {
                file.read(stored.entry.offset + i as u64 * CHUNK, chunk)?;
                crc = crc32c::crc32c_append(crc, chunk);
            }
            return self.check(stored, &stored.entry, crc);
        }
        let mut buffer = Vec::new();
        for slice in &stored.slices {
            let crc = self.read_slice(slice, 0..slice.entry.size, stored.kind.size, 0, target, &mut buffer)?;
            self.check(stored, &slice.entry, crc)?;
        }
        Ok(())
    }

    /// Reads the bytes `range` of a slice to their place in `target`, which starts at byte `begin` of the tensor.
    /// Returns the checksum of the bytes.
    pub(super) fn read_slice(
        &self,
        slice: &Slice,
        range: Range<u64>,
        element: u64,
        begin: u64,
        target: &mut [u8],
        buffer: &mut Vec<u8>,
    ) -> Result<u32> {
        let file = self.shard(slice.entry.shard)?;
        let (mut position, mut crc) = (range.start, 0);
        while position < range.end {
            let length = (range.end - position).min(CHUNK);
            buffer.resize(length as usize, 0);
            file.read(slice.entry.offset + position, buffer)?;
            crc = crc32c::crc32c_append(crc, buffer);
            slice.scatter(position, buffer, element, begin, target);
            position += length;
        }
        Ok(crc)
    }

    pub(super) fn check(&self, stored: &Stored, entry: &Entry, crc: u32) -> Result<()> {
        if mask(crc) == entry.crc {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&stored.name);
        let reason = format!("checksum mismatch: the tensor {name:?} is not what was written");
        Err(Error::damaged(self.shard(entry.shard)?.path(), reason))
    }

    /// Strings have a checksum of their own kind; resources and variants are not verified.
    pub(super) fn check_strings(&self, stored: &Stored, entry: &Entry, bytes: &[u8]) -> Result<()> {
        if stored.kind.name == "string" { self.decode(stored, entry, bytes).map(drop) } else { Ok(()) }
    }

    /// Reads an entry's bytes in chunks, in order, without verifying them.
    pub(in crate::interop::tensorflow) fn copy_entry(
        &self,
        entry: &Entry,
        mut with: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let file = self.shard(entry.shard)?;
        let mut buffer = vec![0; entry.size.min(CHUNK) as usize];
        let mut position = 0;
        while position < entry.size {
            let length = (entry.size - position).min(CHUNK) as usize;
            file.read(entry.offset + position, &mut buffer[..length])?;
            with(&buffer[..length])?;
            position += length as u64;
        }
        Ok(())
    }
}
