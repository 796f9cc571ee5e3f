//! Files of a checkpoint that are not components, written sequentially with one digest.

use super::tracked::check_asset_name;
use crate::error::{Error, Result};
use crate::format::{AssetEntry, Hasher};
use crate::repository::{StagedFile, Transaction};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, Write};

/// A file that one save writes in addition to the components, with a digest, without holding its content in memory.
/// Given to [`Checkpoint::write_with_assets`](crate::Checkpoint::write_with_assets) and
/// [`CheckpointReader::copy_to`](crate::CheckpointReader::copy_to).
///
/// [`Asset`](crate::Asset) is a file in every save of a checkpoint.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let dir = directory.path();
/// use std::io::Write;
/// use tch_checkpoint::{AssetStream, Checkpoint, CheckpointReader, Counter, SaveOptions};
///
/// let replay: Vec<u64> = (0..1000).collect();
/// let asset = AssetStream::new("replay.bin", 8 * replay.len() as u64, |out| {
///     replay.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
/// });
/// let mut checkpoint = Checkpoint::new().track("step", Counter::new(7))?;
/// let path = checkpoint.write_with_assets(dir.join("ckpt"), &SaveOptions::new(), [asset])?;
/// assert_eq!(CheckpointReader::open(path)?.asset("replay.bin")?.len(), 8000);
/// # Ok(())
/// # }
/// ```
#[must_use = "an asset is written by the save that it is given to"]
pub struct AssetStream<'a> {
    pub(super) name: String,
    /// Its approximate length in bytes.
    pub(super) bytes: u64,
    write: Box<WriteOnce<'a>>,
}

type WriteOnce<'a> = dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a;

impl<'a> AssetStream<'a> {
    /// Creates an asset `name`, whose content `write` writes during the save. `bytes` is its approximate length: the
    /// save fails early if the file system has less space. Writes are not buffered, so write large pieces.
    ///
    /// If `write` returns an error, the save fails with [`Error::Object`], or with the crate's own [`Error`] if that is
    /// the inner error of the [`io::Error`]; nothing of the checkpoint remains.
    pub fn new(
        name: impl Into<String>,
        bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> AssetStream<'a> {
        AssetStream { name: name.into(), bytes, write: Box::new(write) }
    }

    /// Returns the name that the file has in the checkpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn write(self, staging: &dyn Transaction) -> Result<(String, AssetEntry)> {
        let mut file = AssetFile::create(staging, &self.name, self.bytes)?;
        (self.write)(&mut file).map_err(|error| match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::object(&self.name, format!("its writer failed: {error}")),
        })?;
        Ok((self.name, file.finish()?))
    }
}

impl fmt::Debug for AssetStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AssetStream").field("name", &self.name).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Checks the names of assets; `others` are written as well.
pub(crate) fn check_names<'a>(streams: &'a [AssetStream<'_>], others: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut names: HashSet<String> = others.into_iter().map(str::to_ascii_lowercase).collect();
    for AssetStream { name, .. } in streams {
        check_asset_name(name)?;
        if !names.insert(name.to_ascii_lowercase()) {
            return Err(Error::name(name, "another asset of the checkpoint has this name; choose another"));
        }
    }
    Ok(())
}

/// Writes assets. Returns their entries by name.
pub(super) fn write_streams(
    streams: Vec<AssetStream<'_>>,
    staging: &dyn Transaction,
) -> Result<BTreeMap<String, AssetEntry>> {
    streams.into_iter().map(|stream| stream.write(staging)).collect()
}

/// A file being written.
pub(super) struct AssetFile<'a> {
    file: Box<dyn StagedFile + 'a>,
    bytes: u64,
    hasher: Hasher,
}

impl<'a> AssetFile<'a> {
    /// Creates a file that will have about `bytes` bytes.
    pub(super) fn create(staging: &'a dyn Transaction, name: &str, bytes: u64) -> Result<AssetFile<'a>> {
        Ok(AssetFile { file: staging.create(name, bytes)?, bytes: 0, hasher: Hasher::new() })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(self.bytes, bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Returns how many bytes were written.
    pub(super) fn written(&self) -> u64 {
        self.bytes
    }

    /// Ends the file. It is durable when the checkpoint is committed.
    pub(super) fn finish(self) -> Result<AssetEntry> {
        self.file.finish(self.bytes)?;
        Ok(AssetEntry { bytes: self.bytes, digest: self.hasher.finish() })
    }
}

impl Write for AssetFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
