//! Writing a bundle again.

use super::Bundle;
use super::checksum::mask;
use super::messages::Entry;
use super::ordered::slice_key;
use super::place;
use super::stored::Stored;
use super::table::TableWriter;
use crate::error::{Error, Result};
use crate::interop::durable::{DurableFile, already_there, publish_all};
use std::collections::BTreeMap;
use std::path::Path;

impl Bundle {
    /// Copies the checkpoint to another prefix, byte for byte unless its files have holes. Every tensor is verified on
    /// the way. The new checkpoint is complete and durable when its `.index` file appears.
    ///
    /// ```no_run
    /// # use tch_checkpoint::interop::tensorflow::Bundle;
    /// Bundle::open("run/ckpt-5")?.copy_to("elsewhere/ckpt-5")?;
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if there is such a checkpoint; [`Error::Damaged`] if a checksum does not match;
    /// [`Error::Io`], [`Error::NoSpace`]. After an error, nothing is left at `prefix`.
    pub fn copy_to(&self, prefix: impl AsRef<Path>) -> Result<()> {
        let prefix = prefix.as_ref();
        check_free(prefix)?;
        // The entries with bytes, by data file, in the order of their bytes.
        let mut shards: BTreeMap<u32, Vec<(u64, u64, usize, usize)>> = BTreeMap::new();
        for (at, stored) in self.stored.iter().enumerate() {
            for (part, entry) in stored.entries().enumerate() {
                shards.entry(entry.shard).or_default().push((entry.offset, entry.size, at, part));
            }
        }
        let mut places = BTreeMap::new();
        let mut files = Vec::new();
        for (shard, mut entries) in shards {
            entries.sort_unstable();
            let file = DurableFile::create(&place::data(prefix, shard, self.header.shards))?;
            let mut position = 0;
            for (_, _, at, part) in entries {
                places.insert((at, part), position);
                let stored = &self.stored[at];
                if let Some(entry) = stored.entry(part) {
                    position = self.copy_bytes(stored, entry, &file, position)?;
                }
            }
            files.push(file);
        }
        let index = DurableFile::create(&place::index(prefix))?;
        index.write_at(0, &self.copied_index(&places))?;
        files.push(index);
        publish_all(files)
    }

    /// Copies the bytes of an entry, verified, to `position`. Returns where they end.
    fn copy_bytes(&self, stored: &Stored, entry: &Entry, file: &DurableFile, position: u64) -> Result<u64> {
        let (mut end, mut crc) = (position, 0);
        self.copy_entry(entry, |chunk| {
            crc = crc32c::crc32c_append(crc, chunk);
            file.write_at(end, chunk)?;
            end += chunk.len() as u64;
            Ok(())
        })?;
        // The checksum of strings is not one of their bytes; it was compared when the bundle was opened.
        if stored.kind.size > 0 && mask(crc) != entry.crc {
            let name = String::from_utf8_lossy(&stored.name);
            return Err(Error::damaged(self.prefix(), format!("checksum mismatch in the tensor {name:?}")));
        }
        Ok(end)
    }

    fn copied_index(&self, places: &BTreeMap<(usize, usize), u64>) -> Vec<u8> {
        let mut table = BTreeMap::from([(Vec::new(), self.header.encode())]);
        for (at, stored) in self.stored.iter().enumerate() {
            let moved = |part: usize, entry: &Entry| {
                let offset = places.get(&(at, part)).copied().unwrap_or(entry.offset);
                Entry { offset, ..entry.clone() }.encode()
            };
            for (part, slice) in stored.slices.iter().enumerate() {
                table.insert(slice_key(&stored.name, &slice.written), moved(part, &slice.entry));
            }
            let own = if stored.slices.is_empty() { moved(0, &stored.entry) } else { stored.entry.encode() };
            table.insert(stored.name.clone(), own);
        }
        let mut writer = TableWriter::default();
        table.iter().for_each(|(key, value)| writer.add(key, value));
        writer.finish()
    }
}

/// A checkpoint is never overwritten: between its data and its index it would be neither the old nor the new one.
pub(super) fn check_free(prefix: &Path) -> Result<()> {
    if place::index(prefix).exists() {
        return Err(already_there(place::index(prefix)));
    }
    Ok(())
}
