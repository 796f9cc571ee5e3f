//! Small files that are added to a checkpoint after its commit, each in one step.

use super::directory::read_whole;
use super::{Directory, nonce};
use crate::error::{Error, Result};
use crate::format::MAX_MARK_BYTES;
use std::io;

/// A mark being written.
pub(crate) const STAGED_MARK: &str = ".tmp-mark-";

impl Directory {
    /// The mark files of a checkpoint with their bytes, by name. A file that is longer than a mark can be is returned
    /// without its bytes.
    pub(crate) fn marks(&self, checkpoint: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let path = self.path(checkpoint);
        let entries = self.disk().list(&path).map_err(|e| Error::io("list the folder", &path, e))?;
        let mut names: Vec<String> = entries.into_iter().map(|entry| entry.name).collect();
        names.retain(|name| crate::format::is_mark_file(name));
        names.sort();
        let mut marks = Vec::with_capacity(names.len());
        for name in names {
            match read_whole(&**self.disk(), &path.join(&name), MAX_MARK_BYTES as u64) {
                Ok(bytes) => marks.push((name, bytes)),
                // Replaced or removed meanwhile.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(Error::Io { action, path, source }) => return Err(Error::Io { action, path, source }),
                Err(_) => marks.push((name, Vec::new())),
            }
        }
        Ok(marks)
    }

    /// Adds a mark to a checkpoint, or replaces it, durably and in one step. Whoever has the directory's lock may.
    pub(crate) fn write_mark(&self, checkpoint: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(checkpoint);
        for left in self.disk().list(&path).map_err(|e| Error::io("list the folder", &path, e))? {
            // By a writer that died.
            if left.name.starts_with(STAGED_MARK) && !left.is_dir {
                let _ = self.disk().remove_file(&path.join(&left.name));
            }
        }
        let staged = path.join(format!("{STAGED_MARK}{}", nonce()));
        let result = self.write_small(&staged, bytes).and_then(|()| {
            let mark = path.join(name);
            self.disk().replace(&staged, &mark).map_err(|e| Error::io("rename", &mark, e))?;
            self.sync_dir(&path)
        });
        if result.is_err() {
            let _ = self.disk().remove_file(&staged);
        }
        result
    }
}
