//! Small files that are added to a checkpoint after its commit, each in one step.

use super::directory::{nonce, read_whole};
use super::{Dir, Directory, Kind};
use crate::error::{Error, Result};
use crate::format::MAX_MARK_BYTES;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A mark being written.
pub(crate) const STAGED_MARK: &str = ".tmp-mark-";

/// The mark files of a checkpoint with their bytes, by name. A file that is longer than a mark can be is returned
/// without its bytes.
pub(super) fn marks_in(dir: &dyn Dir, path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let entries = dir.list().map_err(|e| Error::io("list the checkpoint", path, e))?;
    let mut names: Vec<String> = entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect();
    names.retain(|name| crate::format::is_mark_file(name));
    names.sort();
    let mut marks = Vec::with_capacity(names.len());
    for name in names {
        match read_whole(dir, &name, &path.join(&name), MAX_MARK_BYTES as u64) {
            Ok(bytes) => marks.push((name, bytes)),
            // Replaced or removed meanwhile.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(_) => marks.push((name, Vec::new())),
        }
    }
    Ok(marks)
}

impl Directory {
    fn checkpoint(&self, name: &str) -> Result<Arc<dyn Dir>> {
        let opened = self.dir()?.open_dir(name.as_ref());
        opened.map_err(|e| Error::io("open the checkpoint", self.path(name), e))
    }

    /// The mark files of a checkpoint; see [`marks_in`].
    pub(crate) fn marks(&self, checkpoint: &str) -> Result<Vec<(String, Vec<u8>)>> {
        marks_in(&*self.checkpoint(checkpoint)?, &self.path(checkpoint))
    }

    /// Adds a mark to a checkpoint, or replaces it, durably and in one step. Whoever has the directory's lock may.
    pub(crate) fn write_mark(&self, checkpoint: &str, name: &str, bytes: &[u8]) -> Result<()> {
        self.check_process()?;
        let path = self.path(checkpoint);
        let dir = self.checkpoint(checkpoint)?;
        for left in dir.list().map_err(|e| Error::io("list the checkpoint", &path, e))? {
            // By a writer that died.
            if left.name.to_str().is_some_and(|name| name.starts_with(STAGED_MARK)) && left.kind != Kind::Directory {
                let _ = dir.remove_file(&left.name);
            }
        }
        let staged = format!("{STAGED_MARK}{}", nonce());
        let result = self.write_small(&*dir, &staged, &path.join(&staged), bytes).and_then(|()| {
            let replaced = dir.replace(staged.as_ref(), name.as_ref());
            replaced.map_err(|e| Error::io("rename", path.join(name), e))?;
            self.sync(&*dir, &path)
        });
        if result.is_err() {
            let _ = dir.remove_file(staged.as_ref());
        }
        result
    }
}
