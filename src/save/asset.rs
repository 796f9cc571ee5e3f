//! Files of a checkpoint that are no components: written from the beginning to the end, under one digest.

use crate::error::Result;
use crate::format::{AssetEntry, Hasher};
use crate::source::{CHUNK, Source};
use crate::store::{StagedFile, Staging};

/// A file being written.
pub(crate) struct Asset<'a> {
    file: StagedFile<'a>,
    bytes: u64,
    hasher: Hasher,
}

impl<'a> Asset<'a> {
    pub(crate) fn create(staging: &'a Staging<'_>, name: &str) -> Result<Asset<'a>> {
        Ok(Asset { file: staging.create(name, 0)?, bytes: 0, hasher: Hasher::new() })
    }

    /// Appends `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(self.bytes, bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The content is durable when the checkpoint is published, where durability asks for it.
    pub(crate) fn finish(self) -> Result<AssetEntry> {
        self.file.end(self.bytes)?;
        Ok(AssetEntry { bytes: self.bytes, digest: self.hasher.finish() })
    }
}

/// Writes a whole asset.
pub(crate) fn write_asset(staging: &Staging<'_>, name: &str, bytes: &[u8]) -> Result<AssetEntry> {
    let mut asset = Asset::create(staging, name)?;
    asset.write(bytes)?;
    asset.finish()
}

/// Copies a component's file from another checkpoint.
pub(super) fn copy_file(source: &Source, name: &str, bytes: u64, staging: &Staging<'_>) -> Result<()> {
    let mut copy = Asset::create(staging, name)?;
    let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
    while copy.bytes < bytes {
        let length = (bytes - copy.bytes).min(CHUNK as u64) as usize;
        source.read(name, copy.bytes, &mut buffer[..length])?;
        copy.write(&buffer[..length])?;
    }
    copy.finish().map(drop)
}
