//! Renames checkpoints out of the numbering. Their names become free, and none of their files are lost.

use super::Dir;
use super::directory::PosixDirectory;
use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::names::{Aside, MANIFEST};
use std::ffi::OsStr;
use std::io;

impl PosixDirectory {
    /// Renames a checkpoint, or whatever has its name, out of the numbering, durably. Returns the new name. Reads none
    /// of its files.
    pub(super) fn move_aside(&self, name: &str, aside: Aside) -> Result<String> {
        self.check()?;
        let root = self.open_root()?;
        let new = aside.new_name(name);
        let failed = |e| Error::io("move aside", self.path(name), e);
        match root.rename_new(name.as_ref(), new.as_ref()) {
            // A directory of an overlay's lower layer cannot be renamed, but its files can be moved.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                move_files(&**root, name.as_ref(), new.as_ref()).map_err(failed)?;
            }
            result => result.map_err(failed)?,
        }
        self.sync(&**root, self.root())?;
        Ok(new)
    }

    /// Gives a checkpoint back the name it had before [`move_aside`](PosixDirectory::move_aside).
    pub(super) fn move_back(&self, aside: &str, name: &str) -> Result<()> {
        let root = self.open_root()?;
        root.rename_new(aside.as_ref(), name.as_ref()).map_err(|e| Error::io("rename", self.path(aside), e))?;
        self.sync(&**root, self.root())
    }
}

/// Moves the files of a directory into a new one. The manifest is first: without it, the old directory is no
/// checkpoint.
fn move_files(root: &dyn Dir, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let old = root.open_dir(from)?;
    root.create_dir(to)?;
    let new = root.open_dir(to)?;
    let mut entries = old.list()?;
    entries.sort_by_key(|entry| entry.name != MANIFEST);
    for entry in entries {
        old.link(&entry.name, &*new, &entry.name)?;
        old.remove_file(&entry.name)?;
    }
    new.sync()?;
    root.remove_dir(from)
}
