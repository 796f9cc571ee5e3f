//! Object headers: the messages that describe a group or a dataset.

use super::metadata::Metadata;
use crate::error::Result;

/// Blocks of one header.
const MAX_BLOCKS: usize = 4096;

/// Returns the messages of an object, without those that say nothing about its data.
pub(super) fn messages(metadata: &Metadata<'_>, address: u64) -> Result<Vec<(u16, Vec<u8>)>> {
    let start = metadata.read(address, 16)?;
    if start.starts_with(b"OHDR") {
        return Err(metadata.unsupported(NEWER));
    }
    let mut cursor = metadata.cursor(&start);
    let version = cursor.u8()?;
    if version != 1 {
        return Err(metadata.damaged(format!("at {address} there is no object")));
    }
    cursor.skip(1)?;
    let mut count = cursor.u16()?;
    cursor.skip(4)?;
    let size = u64::from(cursor.u32()?);
    let mut blocks = vec![(address.saturating_add(16), size)];
    let mut found = Vec::new();
    let mut next = 0;
    while let Some((address, size)) = blocks.get(next).copied() {
        next += 1;
        let block = metadata.read(address, size)?;
        let mut cursor = metadata.cursor(&block);
        while count > 0 && cursor.bytes.len() >= 8 {
            count -= 1;
            let (kind, size, flags) = (cursor.u16()?, u64::from(cursor.u16()?), cursor.u8()?);
            cursor.skip(3)?;
            let data = cursor.take(size)?;
            if flags & 2 != 0 && kind != 0 {
                return Err(metadata.unsupported("an object shares its description with another one"));
            }
            match kind {
                // Links in a newer form, of which one may lead into another file.
                0x02 | 0x06 => return Err(metadata.unsupported(LINKS)),
                0x07 => return Err(metadata.unsupported("the bytes of a dataset are in another file")),
                0x15 => return Err(metadata.unsupported(NEWER)),
                0x10 => {
                    let mut cursor = metadata.cursor(data);
                    blocks.push((cursor.u64()?, cursor.u64()?));
                    if blocks.len() > MAX_BLOCKS {
                        return Err(metadata.damaged("the description of an object has no end"));
                    }
                }
                0x01 | 0x03..=0x05 | 0x08 | 0x0b | 0x0c | 0x11 => found.push((kind, data.to_vec())),
                _ => {}
            }
        }
    }
    if count > 0 {
        return Err(metadata.damaged("messages of an object are missing"));
    }
    Ok(found)
}

/// What to say of files that h5py writes with `libver="latest"`.
pub(super) const NEWER: &str = "it is in the newer form of HDF5, which Keras does not write; this crate reads the form that \
                                h5py writes unless `libver=\"latest\"` is asked for";
const LINKS: &str = "it has links in the newer form of HDF5, which may lead into other files; Keras writes none";
