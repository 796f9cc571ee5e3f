//! Small files that are added to a checkpoint after its commit, each in one step.

use super::directory::PosixDirectory;
use crate::error::{Error, Result};
use crate::repository::names::nonce;
use crate::repository::{Kind, Repository};

/// A mark being written.
pub(crate) const STAGED_MARK: &str = ".tmp-mark-";

impl PosixDirectory {
    /// Adds a mark to a checkpoint, or replaces it, durably and in one step. Whoever has the directory's lock may.
    pub(super) fn write_mark(&self, checkpoint: &str, name: &str, bytes: &[u8]) -> Result<()> {
        self.check_process()?;
        let path = self.path(checkpoint);
        let opened = self.open_root()?.open_dir(checkpoint.as_ref());
        let dir = opened.map_err(|e| Error::io("open the checkpoint", &path, e))?;
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
