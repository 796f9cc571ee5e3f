//! Zip archives: a bounded reader by the central directory, and a writer of stored records.
//!
//! Stricter than most readers: every record must lie where the directory points, under the name in the directory, and
//! no two may overlap or share a name. Archives that are rejected here are read differently by different tools.

mod directory;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use write::{Sink, ZipWriter};

use super::blob::Blob;
use super::input::Input;
use crate::error::Result;
use directory::{Entry, read_directory};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The maximum compression of deflate; a higher stated ratio is wrong.
const MAX_DEFLATE: u64 = 1032;

/// An archive that is open for reading.
#[derive(Debug)]
pub(crate) struct Archive {
    input: Input,
    records: BTreeMap<String, Arc<Blob>>,
    /// Names in the order of the directory.
    order: Vec<String>,
}

impl Archive {
    /// Reads the directory and the headers of all records, and checks that they agree.
    pub(crate) fn open(input: Input) -> Result<Archive> {
        let directory = read_directory(&input)?;
        let mut placed = Vec::new();
        let (mut records, mut order) = (BTreeMap::new(), Vec::new());
        for entry in &directory.entries {
            let start = local_header(&input, entry)?;
            let end = start.checked_add(entry.compressed).filter(|&end| end <= directory.start);
            let end = end.ok_or_else(|| refuse(&input, entry, "its data lead beyond the records"))?;
            placed.push((entry.offset, end, &entry.name));
            if entry.name.ends_with('/') {
                continue;
            }
            let stored = input.slice(start..end).ok_or_else(|| refuse(&input, entry, "it is outside the file"))?;
            let crc = (entry.crc != 0).then_some(entry.crc);
            let blob = match entry.method {
                0 => Blob::stored(&entry.name, stored, crc),
                _ => Blob::deflated(&entry.name, stored, entry.size, crc),
            };
            if records.insert(entry.name.clone(), Arc::new(blob)).is_some() {
                return Err(refuse(&input, entry, "two records have this name"));
            }
            order.push(entry.name.clone());
        }
        placed.sort();
        if let Some(pair) = placed.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            return Err(input.damaged(format!("the zip records {:?} and {:?} overlap", pair[0].2, pair[1].2)));
        }
        Ok(Archive { input, records, order })
    }

    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    /// Returns the record `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Blob>> {
        self.records.get(name)
    }

    /// Returns the records by name.
    pub(crate) fn records(&self) -> &BTreeMap<String, Arc<Blob>> {
        &self.records
    }

    /// Returns the names in the order of the directory.
    pub(crate) fn order(&self) -> &[String] {
        &self.order
    }
}

fn refuse(input: &Input, entry: &Entry, reason: &str) -> crate::error::Error {
    input.damaged(format!("the zip record {:?}: {reason}", entry.name))
}

/// Checks a record's own header against the directory. Returns the start of its data.
fn local_header(input: &Input, entry: &Entry) -> Result<u64> {
    const LENGTH: u64 = 30;
    let refuse = |reason: &str| refuse(input, entry, reason);
    let length = LENGTH + entry.raw_name.len() as u64;
    let end = entry.offset.checked_add(length).filter(|&end| end <= input.len());
    let end = end.ok_or_else(|| refuse("its header is outside the file"))?;
    let header = input.read_vec(entry.offset..end, length)?;
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let wide = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if !header.starts_with(b"PK\x03\x04") {
        return Err(refuse("there is no header where the directory points to"));
    }
    if usize::from(field(26)) != entry.raw_name.len() || header[LENGTH as usize..] != entry.raw_name[..] {
        return Err(refuse("its header has another name than the directory"));
    }
    let (flags, method, crc, compressed, size) = (field(6), field(8), wide(14), wide(18), wide(22));
    if method != entry.method || (flags ^ entry.flags) & 1 != 0 {
        return Err(refuse("its header has another method than the directory"));
    }
    // Sizes and checksum are zero where they follow the data, and all ones where they are in the extra field.
    let agrees = |own: u32, listed: u64| own == 0 || own == u32::MAX || u64::from(own) == listed;
    if !agrees(crc, entry.crc.into()) || !agrees(compressed, entry.compressed) || !agrees(size, entry.size) {
        return Err(refuse("its header has other sizes or another checksum than the directory"));
    }
    end.checked_add(field(28).into()).ok_or_else(|| refuse("its header is outside the file"))
}
