//! Renames checkpoints out of the numbering. Their names become free, and none of their files are lost.

use super::Dir;
use super::directory::PosixDirectory;
use crate::error::{Error, Result};
use crate::repository::names::{Aside, MANIFEST, STAGING, SUPERSEDED, before_aside, nonce_of};
use crate::repository::{Repository, Scan};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;

impl PosixDirectory {
    /// Renames a checkpoint, or whatever has its name, out of the numbering, durably. Returns the new name. Reads none
    /// of its files.
    pub(super) fn move_aside(&self, name: &str, aside: Aside) -> Result<String> {
        self.check()?;
        let new = aside.new_name(name);
        self.rename_aside(name, &new)?;
        self.sync(&**self.open_root()?, self.root())?;
        Ok(new)
    }

    /// Renames a checkpoint, which is not durable yet.
    pub(super) fn rename_aside(&self, name: &str, new: &str) -> Result<()> {
        let root = self.open_root()?;
        let failed = |e| Error::io("move aside", self.path(name), e);
        match root.rename_new(name.as_ref(), new.as_ref()) {
            // A directory of an overlay's lower layer cannot be renamed, but its files can be moved.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                move_files(&**root, name.as_ref(), new.as_ref()).map_err(failed)?;
            }
            result => result.map_err(failed)?,
        }
        Ok(())
    }

    /// Gives a checkpoint back the name it had before [`move_aside`](PosixDirectory::move_aside).
    pub(super) fn move_back(&self, aside: &str, name: &str) -> Result<()> {
        let root = self.open_root()?;
        root.rename_new(aside.as_ref(), name.as_ref()).map_err(|e| Error::io("rename", self.path(aside), e))?;
        self.sync(&**root, self.root())
    }

    /// Gives the checkpoints that an interrupted commit was to supersede their names back: those whose new name was made
    /// with that of a staging directory that is still there. Returns whether there was one. The staging directory is
    /// removed only afterwards.
    pub(super) fn undo_superseding(&self, scan: &Scan) -> Result<bool> {
        let staged: HashSet<&str> = scan.leftovers.iter().filter_map(|name| nonce_of(name, STAGING)).collect();
        let mut is_changed = false;
        for (_, aside) in &scan.aside {
            let Some((Aside::Superseded, name)) = before_aside(aside) else { continue };
            let is_of_it = nonce_of(aside, SUPERSEDED).is_some_and(|nonce| staged.contains(nonce));
            // Only an overlay's lower layer can have left both.
            if !is_of_it || scan.names.contains(name) {
                continue;
            }
            self.move_back(aside, name)?;
            log::warn!(
                "{} has its name back: the save that was to replace it was interrupted",
                self.path(name).display()
            );
            is_changed = true;
        }
        Ok(is_changed)
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
