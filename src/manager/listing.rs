//! Looking into a folder of checkpoints without opening it for writing.

use crate::error::Result;
use crate::source::Source;
use crate::store::{Directory, Durability, LocalDisk};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The checkpoints in a folder that are whole as far as manifests and file sizes tell, oldest first by commit
/// sequence. Takes no lock; works on a read-only file system; a folder that is not there has none.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) when the folder cannot be listed.
pub fn checkpoints(directory: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let directory = Directory::new(Arc::new(LocalDisk::default()), directory.as_ref(), Durability::default());
    let mut found = Vec::new();
    for name in directory.scan()?.checkpoints {
        let path = directory.root().join(&name);
        match Source::open(directory.disk(), &path) {
            Ok(Source { manifest, .. }) => {
                found.push(((manifest.sequence, manifest.saved_at, manifest.run, name), path))
            }
            Err(error) => log::debug!("{} is not listed: {error}", path.display()),
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The newest of [`checkpoints`], if there is one.
///
/// # Errors
/// As for [`checkpoints`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let dir = folder.path();
/// use tch_checkpoint::{Checkpoint, Counter, latest_checkpoint};
/// assert_eq!(latest_checkpoint(dir)?, None);
/// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(7))?;
/// let path = checkpoint.save(dir.join("ckpt"))?;
/// assert_eq!(latest_checkpoint(dir)?, Some(path));
/// # Ok(())
/// # }
/// ```
pub fn latest_checkpoint(directory: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    Ok(checkpoints(directory)?.pop())
}
